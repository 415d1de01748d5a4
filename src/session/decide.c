/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "qmp/qmp.h"
#include "session/common.h"
#include "session/whereabouts.h"

/* A person decides what becomes of a VM in doubt: docs/internals/handover.md, "A person decides".
 * Under the VM's lock: no session, and no agent, settles it otherwise meanwhile. */

#define FORCE_HINT \
    "make certain that the VM does not run, and will not, on the other host; then --run --force"

/* Whether the VM waits to be continued (0), or runs already (VC_NOT_FOUND). Anything else is not
 * ours to touch. @left: it may also stand where a migration away from here has left it. */
static int check_waiting(struct vc_qmp *q, bool left, struct vc_err *err)
{
    struct vc_qmp_migration m;
    char state[VC_RUN_STATE_BYTES];
    int rc = vc_qmp_run_state(q, state, err);

    if (!rc)
        rc = vc_qmp_migration(q, &m, err);
    if (rc)
        return rc;
    if (!strcmp(state, "running"))
        return VC_NOT_FOUND;
    if (vc_qmp_status_is_switched(m.status) && left)
        return vc_err_set_hint(err, VC_E_QEMU_STATE,
                               "`vecycle migrate --recover` carries the rest; if the destination's "
                               "QEMU has ended, the VM is lost, as with plain QEMU",
                               "the VM has gone by postcopy (it is '%s')", m.status);
    if (!strcmp(state, "paused") || !strcmp(state, "suspended") ||
        (left && !strcmp(state, "postmigrate")))
        return 0;
    return vc_err_set_hint(err, VC_E_QEMU_STATE, "see query-status in QEMU's documentation",
                           "the VM is in state '%s', from which it is not continued", state);
}

/* ---- at the source ---- */

/* Why the VM may run on the other host, as far as this one knows; NULL: it does not. */
static const char *may_run_elsewhere(const struct vc_handover *h, const struct vc_look *l)
{
    if (l->runs)
        return NULL; /* there is nothing to continue */
    if (l->qmp && vc_qmp_status_is_switched(l->status))
        return "it has switched to postcopy";
    if (h->state == VC_HANDOVER_LEFT || l->where == VC_VM_LEFT)
        return "its migration completed";
    if (h->state == VC_HANDOVER_KEPT && h->told)
        return "the destination may have been told to run it, and has not said that it does not";
    if (h->state == VC_HANDOVER_KEPT && l->qmp && strcmp(l->status, "completed") != 0)
        return NULL; /* whatever stopped it since */
    if (vc_look_left_otherwise(l, h))
        return "its QEMU completed another migration";
    if (l->where == VC_VM_IN_DOUBT)
        return l->why;
    return NULL;
}

static int run_at_source(struct vc_vm *v, const struct vc_settle_options *o, struct vc_handover *h,
                         bool force, struct vc_err *err)
{
    struct vc_look l;
    const char *reason;
    bool runs;
    int rc = 0;

    vc_look_at_source(h, o->vm, o->qmp_path, &l);
    reason = may_run_elsewhere(h, &l);
    if (reason && !force)
        rc = vc_err_set_hint(err, VC_E_UNSETTLED, FORCE_HINT, "the VM may run at '%.80s': %.120s",
                             h->peer, reason);
    else if (!l.qmp)
        rc = vc_err_set_hint(err, VC_E_QMP_CONNECT, "--qmp PATH says where its socket is now",
                             "the VM's QEMU cannot be reached here: %.120s",
                             l.where == VC_VM_GONE ? "it has ended" : l.why);
    if (!rc)
        rc = check_waiting(l.qmp, true, err); /* before anything is written */
    runs = rc == VC_NOT_FOUND;
    if (rc >= 0) {
        if (h->state != VC_HANDOVER_KEPT)
            h->told = h->state == VC_HANDOVER_LEFT || h->has_counts;
        if (force) /* the person answers for the other host */
            h->told = false;
        h->state = VC_HANDOVER_KEPT;
        rc = vc_handover_begin(v, h, err);
    }
    if (rc >= 0 && !runs)
        rc = vc_qmp_simple(l.qmp, "cont", err);
    vc_look_end(&l);
    return rc < 0 ? rc : 0;
}

/* ---- at the destination ---- */

static int run_at_destination(struct vc_vm *v, const struct vc_settle_options *o,
                              struct vc_handover *h, bool force, struct vc_err *err)
{
    struct vc_qmp *q = NULL;
    int rc = vc_target_qemu(o->socket_dir, o->vm, h, &q, err);

    if (!rc)
        rc = check_waiting(q, false, err);
    if (!force && rc != VC_NOT_FOUND)
        rc = vc_err_set_hint(err, VC_E_UNSETTLED, FORCE_HINT,
                             "the VM may run at its source '%.100s': what it has decided since is "
                             "not known here",
                             h->peer);
    if (!rc) {
        h->told = true;
        h->state = VC_HANDOVER_ABOUT_TO_RUN;
        rc = vc_handover_begin(v, h, err);
        if (!rc)
            rc = vc_qmp_simple(q, "cont", err);
    }
    vc_qmp_free(q);
    if (rc < 0)
        return rc;
    h->state = VC_HANDOVER_SETTLED;
    return vc_handover_begin(v, h, err);
}

static int run(struct vc_vm *v, const struct vc_settle_options *o, struct vc_handover *h,
               bool force, struct vc_err *err)
{
    switch (h->state) {
    case VC_HANDOVER_LEAVING:
    case VC_HANDOVER_LEFT:
    case VC_HANDOVER_KEPT:
        return run_at_source(v, o, h, force, err);
    case VC_HANDOVER_ARRIVING:
    case VC_HANDOVER_ABOUT_TO_RUN:
        return run_at_destination(v, o, h, force, err);
    case VC_HANDOVER_VOID:
        return vc_err_set_hint(err, VC_E_UNSETTLED, "look at the source",
                               "the VM is the source's: what arrived from '%.100s' never runs here",
                               h->peer);
    default:
        return vc_err_set(err, VC_E_NO_SUCH_VM, "nothing about this VM is open here");
    }
}

/* At the destination: whether the copy here has run nobody can tell; that it runs, its QEMU. */
static int check_discardable(const struct vc_settle_options *o, const struct vc_handover *h,
                             bool force, struct vc_err *err)
{
    char state[VC_RUN_STATE_BYTES];
    struct vc_qmp *q = NULL;
    int rc;

    /* Of a record that is another machine's, or was this one's before it had an id, a person knows.
     */
    if (vc_process_look(&h->qemu) != VC_PROCESS_GONE &&
        !(force && vc_process_is_elsewhere(&h->qemu))) {
        rc = vc_target_qemu(o->socket_dir, o->vm, h, &q, err);
        if (!rc)
            rc = vc_qmp_run_state(q, state, err);
        vc_qmp_free(q);
        if (rc)
            return rc;
        if (h->state == VC_HANDOVER_ABOUT_TO_RUN || vc_run_state_shows_run(state))
            return vc_err_set_hint(err, VC_E_UNSETTLED, "quit its QEMU first, if it does not count",
                                   "the VM runs here, or may have (it is in state '%s')", state);
    }
    if (!force)
        return vc_err_set_hint(err, VC_E_UNSETTLED,
                               "make certain that it has not run here; then --discard --force",
                               "the source ('%.80s') will continue its own VM, which is older "
                               "than this one if this one has run",
                               h->peer);
    return 0;
}

static int discard(struct vc_vm *v, const struct vc_settle_options *o, struct vc_handover *h,
                   bool force, struct vc_err *err)
{
    bool arrived = h->state == VC_HANDOVER_ARRIVING || h->state == VC_HANDOVER_ABOUT_TO_RUN;
    int rc;

    if (h->state == VC_HANDOVER_NONE || h->state == VC_HANDOVER_SETTLED ||
        h->state == VC_HANDOVER_VOID)
        return vc_err_set(err, VC_E_NO_SUCH_VM, "nothing about this VM is open here");
    if (arrived) {
        rc = check_discardable(o, h, force, err);
        if (rc)
            return rc;
    }
    h->state = arrived ? VC_HANDOVER_VOID : VC_HANDOVER_SETTLED;
    return vc_handover_begin(v, h, err);
}

int vc_session_decide(const struct vc_settle_options *o, enum vc_decision what, bool force,
                      struct vc_err *err)
{
    struct vc_handover h;
    struct vc_vm *v = NULL;
    int rc = vc_vm_open(o->store, o->vm, VC_VM_WRITE, &v, err);

    if (!rc)
        rc = vc_handover_get(v, &h, err);
    if (rc == VC_NOT_FOUND)
        rc = vc_err_set(err, VC_E_NO_SUCH_VM, "nothing about this VM is open here");
    if (!rc)
        rc = what == VC_DECIDE_RUN ? run(v, o, &h, force, err) : discard(v, o, &h, force, err);
    vc_vm_close(v);
    return rc;
}
