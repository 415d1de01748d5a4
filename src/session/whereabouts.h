/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SESSION_WHEREABOUTS_H
#define VC_SESSION_WHEREABOUTS_H

#include "session/runstate.h"
#include "store/store.h"

/* Private to src/session: where the VM of a source's record is, by the evidence of its own QEMU
 * (docs/internals/handover.md, "What QEMU says of its migration"). */

struct vc_qmp;
struct vc_qmp_migration;

enum vc_whereabouts {
    VC_VM_IN_DOUBT = 0, /* cannot be told */
    VC_VM_HERE,         /* it is this host's: it was continued here, or this migration failed */
    VC_VM_LEFT,         /* QEMU completed this migration last, and does not run the VM */
    VC_VM_GONE,         /* its QEMU is gone for certain */
};

#define VC_LOOK_WHY_BYTES 200
struct vc_look {
    enum vc_whereabouts where;
    bool runs;                      /* HERE: it was seen to run */
    struct vc_qmp *qmp;             /* the QEMU of the record, or NULL */
    char state[VC_RUN_STATE_BYTES]; /* of that QEMU, or "" */
    bool started_anew;              /* IN_DOUBT: its QEMU is gone, and another one may run the VM */
    char why[VC_LOOK_WHY_BYTES];    /* IN_DOUBT: what stands in the way */
    char status[VC_RUN_STATE_BYTES]; /* query-migrate's, or "" */
    struct vc_handover_sum sum;      /* LEFT: of this migration */
};

/** Another process that has the VM's UUID, as QEMU has it, among those where @p was: its pid; 0:
 *  there is none; -1: it cannot be told. @except: not that one. */
pid_t vc_find_other_qemu(const struct vc_process *p, const struct vc_id *vm, pid_t except);

/** Looks. An error is no evidence: whatever goes wrong is IN_DOUBT. @path: where the QMP socket is,
 *  if not where the record says; or NULL. End with vc_look_end(). */
void vc_look_at_source(const struct vc_handover *h, const struct vc_id *vm, const char *path,
                       struct vc_look *out);
void vc_look_end(struct vc_look *l);

/** What a migration that has completed is known by later. */
struct vc_handover_sum vc_sum_of(const struct vc_qmp_migration *m);

/** Whether by what query-migrate said QEMU completed a migration that is not this one, so that the
 *  VM may be anywhere. */
bool vc_look_left_otherwise(const struct vc_look *l, const struct vc_handover *h);

/** Whether the VM still stands where a migration that failed has left it: QEMU 7.2 does not
 * continue a VM whose switch to postcopy failed. Asks QEMU again; then @l->state is new. */
bool vc_look_is_left_standing(struct vc_look *l);

#endif
