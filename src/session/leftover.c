/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "session/session.h"
#include "session/settings.h"
#include "session/whereabouts.h"

/* Whoever finds a record with settings of QEMU in it puts them back: the session that had changed
 * them was killed, or QEMU did not take them then (docs/internals/handover.md). */

/* A record's socket is a path at the source, and a name at the destination. */
static bool is_destination(const struct vc_handover *h)
{
    switch (h->state) {
    case VC_HANDOVER_LEAVING:
    case VC_HANDOVER_LEFT:
    case VC_HANDOVER_KEPT:
        return false;
    case VC_HANDOVER_SETTLED:
        return !strchr(h->socket, '/');
    default:
        return true;
    }
}

/* *q: the QEMU of the record. */
static int find_qemu(const struct vc_settle_options *o, const struct vc_handover *h,
                     struct vc_qmp **q, struct vc_err *err)
{
    struct vc_look l;

    if (is_destination(h))
        return vc_target_qemu(o->socket_dir, o->vm, h, q, err);
    vc_look_at_source(h, o->vm, o->qmp_path, &l);
    *q = vc_steal_ptr(l.qmp);
    if (!*q)
        vc_err_set(err, VC_E_UNSETTLED, "QEMU at '%.100s' cannot be asked: %.100s", h->socket,
                   l.why);
    vc_look_end(&l);
    return *q ? 0 : err->code;
}

/* A postcopy that is interrupted needs the rest until its recovery, which puts it back. */
static bool is_switched(struct vc_qmp *q)
{
    struct vc_err ignored = VC_ERR_INIT;
    struct vc_qmp_migration now;

    return !vc_qmp_migration(q, &now, &ignored) && vc_qmp_status_is_switched(now.status);
}

static int put_back(struct vc_vm *v, const struct vc_settle_options *o, struct vc_handover *h,
                    struct vc_err *err)
{
    struct vc_qmp *q = NULL;
    bool changed, again;
    int rc;

    if (vc_process_look(&h->qemu) == VC_PROCESS_GONE) { /* they went with it */
        h->n_settings = 0;
        return vc_handover_begin(v, h, err);
    }
    if (is_destination(h) && !o->socket_dir)
        return 0;
    rc = find_qemu(o, h, &q, err);
    if (rc)
        return rc;
    changed = vc_settings_restore(q, o->vm, h, o->log);
    again = h->n_settings && !is_switched(q);
    vc_qmp_free(q);
    if (changed)
        vc_log(o->log, VC_LOG_INFO, "what a migration had set in QEMU is put back");
    rc = changed ? vc_handover_begin(v, h, err) : 0;
    return !rc && again ? VC_AGAIN : rc;
}

int vc_session_put_back(const struct vc_settle_options *o, struct vc_err *err)
{
    struct vc_handover h;
    struct vc_vm *v = NULL;
    int rc = vc_vm_open(o->store, o->vm, o->at_once ? VC_VM_TRY : VC_VM_WRITE, &v, err);

    if (!rc)
        rc = vc_handover_get(v, &h, err);
    if (!rc && h.n_settings)
        rc = put_back(v, o, &h, err);
    vc_vm_close(v);
    return rc;
}
