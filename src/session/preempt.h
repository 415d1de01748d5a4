/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SESSION_PREEMPT_H
#define VC_SESSION_PREEMPT_H

#include "qmp/qmp.h"
#include "session/arrival.h"
#include "session/migration.h"

/* Private to src/session: the capability postcopy-preempt, for which QEMU opens a second connection
 * by itself. */

/** Of the socket directory and a name in it. */
#define VC_PREEMPT_PATH_BYTES 1280

/** Whether this migration has a preempt connection: as asked for, or, for the rest of an
 *  interrupted one, as it had it. */
int vc_preempt_wanted(struct vc_migration *m, bool *wanted, struct vc_err *err) VC_NODISCARD;
/** Has the source QEMU migrate to the session's listening socket; *fd_out is its main connection.
 */
int vc_preempt_migrate(struct vc_migration *m, int *fd_out, struct vc_err *err) VC_NODISCARD;

/** Sees to it that QEMU can be told where to listen for the rest of a postcopy without having to
 *  answer before, as one whose guest waits for a page cannot: it gets the directory now, if the
 *  socket's path is too long for it. VC_E_DEST_QEMU: it cannot be. */
int vc_preempt_prepare(struct arrival *a, struct vc_err *err) VC_NODISCARD;
/** Has the destination QEMU listen in the socket directory. Returns its main connection, or a
 *  negative code. */
int vc_preempt_incoming(struct arrival *a, struct vc_err *err);
/** Has it listen for the rest of an interrupted postcopy, with or without a second connection.
 *  VC_E_DEST_QEMU: it refuses, as it waits for no such thing. */
int vc_preempt_recover(struct arrival *a, struct vc_err *err) VC_NODISCARD;
/** The destination pipeline's connect_preempt; its opaque is the arrival. */
int vc_preempt_connect(void *arrival, struct vc_err *err);
/** Removes the socket that QEMU made. */
void vc_preempt_tidy(struct arrival *a);

#endif
