/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SESSION_CAPABILITIES_H
#define VC_SESSION_CAPABILITIES_H

#include "qmp/qmp.h"

/* Private to src/session: what a QEMU that we drive may do in a migration. */

struct vc_session_wants {
    bool source;            /* it is the migration's source */
    bool postcopy, preempt; /* capabilities postcopy-ram and postcopy-preempt */
    bool auto_converge;     /* false: as it is */
};

/** Turns on what the migration needs and off what it cannot have, whatever somebody set before.
 *  Errors: VC_E_QMP, also where this QEMU does not know what is needed. */
int vc_session_set_capabilities(struct vc_qmp *q, const struct vc_session_wants *w,
                                struct vc_err *err) VC_NODISCARD;

#endif
