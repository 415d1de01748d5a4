/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SESSION_CAPABILITIES_H
#define VC_SESSION_CAPABILITIES_H

#include "session/settings.h"

/* Private to src/session: what a QEMU that we drive may do in a migration. */

struct vc_session_wants {
    bool source;            /* it is the migration's source */
    bool postcopy, preempt; /* capabilities postcopy-ram and postcopy-preempt */
    bool auto_converge;     /* false: as it is */
    bool plaintext;         /* the connection to the other host is not encrypted */
};

/** Whether this QEMU can have what the migration needs. Changes nothing. VC_E_QMP: it does not know
 *  a capability; VC_E_QEMU_STATE: it is to encrypt what nobody would encrypt then. */
int vc_session_check_settings(struct vc_qmp *q, const struct vc_session_wants *w,
                              struct vc_err *err) VC_NODISCARD;
/** Turns on what the migration needs and off what it cannot have, whatever somebody set before; and
 *  vc_session_set_stream(). Errors as above. */
int vc_session_set_up(struct vc_settings *s, const struct vc_session_wants *w,
                      struct vc_err *err) VC_NODISCARD;
/** Parameters that would encrypt the stream or lead it elsewhere. */
int vc_session_set_stream(struct vc_settings *s, const struct vc_session_wants *w,
                          struct vc_err *err) VC_NODISCARD;

#endif
