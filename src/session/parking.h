/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SESSION_PARKING_H
#define VC_SESSION_PARKING_H

#include "base/err.h"
#include "base/units.h"

/* QMP connections to destination QEMUs whose postcopy was interrupted. Such a QEMU may be unable to
 * take a new connection: a guest that waits for a page can hold its lock, and greeting a client
 * needs that. One that is connected already can give an out-of-band command (QEMU:
 * docs/interop/qmp-spec.txt, "Out-of-band execution"), and `migrate-recover` is one.
 *
 * Thread rule: any thread. */

struct vc_parking;
struct vc_qmp;

/** NULL: no memory. */
struct vc_parking *vc_parking_new(void);
/** Closes what is left in it. NULL is fine. */
void vc_parking_free(struct vc_parking *p);
/** Keeps the VM's connection (taken), instead of one it may have had. A NULL parking closes it. */
void vc_parking_put(struct vc_parking *p, const struct vc_id *vm, struct vc_qmp *qmp);
/** Gives it back, the caller's; NULL: there is none to the VM at the socket of that name, which is
 *  what the peer may have leave for. */
struct vc_qmp *vc_parking_take(struct vc_parking *p, const struct vc_id *vm, const char *name);

#endif
