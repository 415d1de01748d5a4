/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "session/whereabouts.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "qmp/qmp.h"

/** What QEMU's milliseconds may be wrong by, at both ends. */
#define ROUNDING_MS 2

static void in_doubt(struct vc_look *l, const char *why)
{
    l->where = VC_VM_IN_DOUBT;
    snprintf(l->why, sizeof(l->why), "%.199s", why);
}

pid_t vc_find_other_qemu(const struct vc_process *p, const struct vc_id *vm, pid_t except)
{
    struct vc_id want = *vm;

    return vc_process_find_option(p, "uuid", vc_process_option_is_id, &want, except);
}

/* The QEMU of the record is gone for certain. So is the VM, unless somebody has started it anew,
 * wherever its QMP socket is now, or had done so: what has left is older than that. @waits: a QEMU
 * that waits for a migration, or 0. */
static void look_for_another(struct vc_look *l, const struct vc_handover *h, const struct vc_id *vm,
                             pid_t waits)
{
    pid_t other = vc_find_other_qemu(&h->qemu, vm, waits);

    l->where = other || h->started_anew ? VC_VM_IN_DOUBT : VC_VM_GONE;
    l->started_anew = vc_process_is_younger(other, &h->qemu);
    if (!other && h->started_anew)
        in_doubt(l,
                 "its QEMU has ended, and another process had the VM's UUID then: it may have run "
                 "the VM");
    else if (other > 0)
        snprintf(l->why, sizeof(l->why),
                 "its QEMU has ended, and process %d has the VM's UUID: it may run the VM",
                 (int)other);
    else if (other < 0)
        in_doubt(l, "its QEMU has ended, and whether another one runs the VM cannot be told: not "
                    "all processes of this host can be seen");
}

static bool waits(const struct vc_look *l)
{
    return l->qmp && !strcmp(l->state, "inmigrate");
}

/* The QEMU at the path is not the one of the record, or cannot be asked. */
static void not_reached(struct vc_look *l, const struct vc_handover *h, const struct vc_id *vm,
                        const char *why)
{
    in_doubt(l, why);
    if (vc_process_look(&h->qemu) == VC_PROCESS_GONE)
        look_for_another(l, h, vm, waits(l) ? vc_qmp_process(l->qmp)->pid : 0);
    else if (vc_process_is_elsewhere(&h->qemu))
        in_doubt(l, "the record is of another machine, or of this one before it had a machine-id: "
                    "whether the VM runs there is not known here");
    vc_qmp_free(vc_steal_ptr(l->qmp));
    l->state[0] = l->status[0] = '\0';
}

static bool is_same_qemu(const struct vc_handover *h, const struct vc_qmp *q)
{
    return vc_process_look(&h->qemu) != VC_PROCESS_GONE &&
           vc_process_may_equal(vc_qmp_process(q), &h->qemu);
}

static bool has_failed(const struct vc_qmp_migration *m)
{
    return !strcmp(m->status, "failed") || !strcmp(m->status, "cancelled");
}

struct vc_handover_sum vc_sum_of(const struct vc_qmp_migration *m)
{
    return (struct vc_handover_sum){
        .total_ms = m->total_ms,
        .setup_ms = m->setup_ms,
        .downtime_ms = m->downtime_ms,
        .sent_bytes = m->ram_transferred,
        .rounds = m->rounds,
        .data_pages = m->data_records,
        .zero_pages = m->zero_records,
    };
}

/* *why: what is not as it would be after this migration. */
static bool is_recorded_one(const struct vc_qmp_migration *m, const struct vc_handover *h,
                            char why[VC_LOOK_WHY_BYTES])
{
    const struct vc_handover_sum *was = &h->sum;
    struct vc_handover_sum now = vc_sum_of(m);

    if (was->total_ms && !memcmp(&now, was, sizeof(now)))
        return true;
    if (!was->total_ms)
        snprintf(why, VC_LOOK_WHY_BYTES,
                 "whether its QEMU has completed another migration since is not known: this one "
                 "was not summed up when it was recorded");
    else
        snprintf(why, VC_LOOK_WHY_BYTES,
                 "its QEMU has completed another migration since (%llu ms, %llu bytes; this one "
                 "took %llu ms and %llu bytes)",
                 (unsigned long long)now.total_ms, (unsigned long long)now.sent_bytes,
                 (unsigned long long)was->total_ms, (unsigned long long)was->sent_bytes);
    return false;
}

/* The counts alone are no proof: those of a guest that does nothing are the same each time. But any
 * other migration has begun after the note, and took no longer than the time since. (QEMU's clock
 * stands still while the host is suspended, and this one does not.) */
static bool is_noted_one(const struct vc_qmp_migration *m, const struct vc_handover *h,
                         char why[VC_LOOK_WHY_BYTES])
{
    uint64_t now_ns = vc_boot_ns(), passed_ms;

    if (m->data_records != h->data_records || m->zero_records != h->zero_records) {
        snprintf(why, VC_LOOK_WHY_BYTES,
                 "its QEMU's last migration (%llu and %llu pages) is not known to be this one "
                 "(%lld and %lld)",
                 (unsigned long long)m->data_records, (unsigned long long)m->zero_records,
                 (long long)h->data_records, (long long)h->zero_records);
        return false;
    }
    if (!h->noted_ns || now_ns < h->noted_ns || vc_process_look(&h->qemu) != VC_PROCESS_ALIVE) {
        snprintf(why, VC_LOOK_WHY_BYTES,
                 "its QEMU's last migration may be a later one than this, of which it is not known "
                 "when it was about to complete");
        return false;
    }
    passed_ms = (now_ns - h->noted_ns) / VC_NS_PER_MS;
    if (m->total_ms > passed_ms + ROUNDING_MS)
        return true;
    snprintf(why, VC_LOOK_WHY_BYTES,
             "its QEMU's last migration may be a later one than this: it took %llu ms, and %llu "
             "ms have passed since this one was about to complete",
             (unsigned long long)m->total_ms, (unsigned long long)passed_ms);
    return false;
}

/* Whether the migration that QEMU completed last is this one, for certain. */
static bool is_ours(const struct vc_qmp_migration *m, const struct vc_handover *h,
                    char why[VC_LOOK_WHY_BYTES])
{
    if (h->state != VC_HANDOVER_LEAVING)
        return is_recorded_one(m, h, why);
    return h->has_counts && is_noted_one(m, h, why);
}

/* What the QEMU of the record shows. */
static void classify(struct vc_look *l, const struct vc_handover *h,
                     const struct vc_qmp_migration *m)
{
    bool completed = !strcmp(m->status, "completed");
    bool leaving = h->state == VC_HANDOVER_LEAVING && !h->has_counts;
    bool suspended = !strcmp(l->state, "suspended");
    char why[VC_LOOK_WHY_BYTES] = "";

    l->runs = !strcmp(l->state, "running");
    if (vc_run_state_shows_run(l->state) && !(suspended && h->left_suspended))
        l->where = VC_VM_HERE;
    else if (leaving && (completed || has_failed(m) || !*m->status || !strcmp(m->status, "none")))
        l->where = VC_VM_HERE; /* and no decision was ever sent */
    else if (completed && !strcmp(l->state, "postmigrate") && is_ours(m, h, why))
        l->where = VC_VM_LEFT;
    else {
        if (!*why)
            snprintf(why, sizeof(why), "its QEMU is in state '%s', and its last migration is '%s'",
                     l->state, m->status);
        in_doubt(l, why);
    }
    l->sum = vc_sum_of(m);
}

void vc_look_at_source(const struct vc_handover *h, const struct vc_id *vm, const char *path,
                       struct vc_look *out)
{
    struct vc_qmp_migration m;
    struct vc_err err = VC_ERR_INIT;
    struct vc_id uuid;
    struct vc_qmp *q = NULL;
    int rc = vc_qmp_connect(path ? path : h->socket, &q, &err);

    *out = (struct vc_look){.qmp = q};
    if (!rc)
        rc = vc_qmp_uuid(out->qmp, &uuid, &err);
    if (!rc)
        rc = vc_qmp_run_state(out->qmp, out->state, &err);
    if (!rc)
        rc = vc_qmp_migration(out->qmp, &m, &err);
    if (rc) {
        not_reached(out, h, vm, err.message);
        return;
    }
    if (!vc_id_equal(&uuid, vm)) {
        not_reached(out, h, vm, "another VM's QEMU is at its QMP socket");
        return;
    }
    vc_qmp_identify(out->qmp, vm);
    if (!is_same_qemu(h, out->qmp)) {
        bool is_waiting = waits(out);

        not_reached(out, h, vm, "another QEMU of the VM is at its QMP socket");
        if (!is_waiting && out->where == VC_VM_GONE) { /* it runs the VM, or may */
            in_doubt(out, "another QEMU of the VM is at its QMP socket");
            out->started_anew = true;
        }
        return;
    }
    snprintf(out->status, sizeof(out->status), "%s", m.status);
    classify(out, h, &m);
}

void vc_look_end(struct vc_look *l)
{
    vc_qmp_free(vc_steal_ptr(l->qmp));
}

bool vc_look_left_otherwise(const struct vc_look *l, const struct vc_handover *h)
{
    return l->qmp && !strcmp(l->status, "completed") && !vc_run_state_shows_run(l->state) &&
           l->where != VC_VM_LEFT && !h->has_counts;
}

bool vc_look_is_left_standing(struct vc_look *l)
{
    struct vc_qmp_migration m;
    struct vc_err ignored = VC_ERR_INIT;

    return l->qmp && !vc_qmp_run_state(l->qmp, l->state, &ignored) &&
           vc_run_state_is_migration(l->state) && !vc_qmp_migration(l->qmp, &m, &ignored) &&
           has_failed(&m);
}
