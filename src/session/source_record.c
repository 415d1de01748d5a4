/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fdio.h"
#include "session/migration.h"
#include "session/runstate.h"

/* What the source writes into the handover record (docs/internals/handover.md). The store may hang,
 * as it does where a write of the checkpoint does not end: then nothing of the record is synced. It
 * is written at the end of the session, which waits for the disk. */

/** Time for the note of how much was sent, which is not synced, to be taken by a store that hangs
 *  elsewhere. The guest is paused. */
#define NOTE_LIMIT_MS 2000

static bool store_hangs(const struct vc_migration *m)
{
    struct vc_source_status st = {0};

    if (m->pipeline) /* not yet, where QEMU refuses to migrate; no longer, at the end */
        vc_source_status(m->pipeline, &st);
    return st.store_stuck || m->noting.thread.running;
}

bool vc_migration_record(struct vc_migration *m, enum vc_handover_state state)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_handover *h;

    if (!m->recorded)
        return true;
    if (store_hangs(m)) {
        if (!m->owed_state)
            vc_log(m->o->log, VC_LOG_ERROR,
                   "the handover is not recorded before the store answers: it hangs");
        m->owed_state = state;
        return false;
    }
    h = vc_handover_edit(m->holding.vm);
    h->suspend |= vc_migration_stays(m);
    h->left_suspended = !strcmp(m->state, "suspended");
    h->told = m->told;
    h->started_anew = m->started_anew;
    h->sum = m->sum;
    if (vc_handover_set(m->holding.vm, state, &err) == 0)
        return true;
    vc_log_err(m->o->log, VC_LOG_ERROR, "the handover is not recorded", &err);
    return false;
}

void vc_migration_record_owed(struct vc_migration *m)
{
    vc_thread_join(&m->noting.thread);
    if (m->noting.done_fd > 0)
        close(m->noting.done_fd);
    if (m->owed_state)
        vc_migration_record(m, m->owed_state);
}

static void *note_main(void *arg)
{
    struct vc_migration *m = arg;
    uint64_t one = 1;

    m->noting.rc = vc_handover_note(m->holding.vm, &m->noting.err);
    if (write(m->noting.done_fd, &one, sizeof(one)) != sizeof(one))
        m->noting.rc = VC_E_STORE;
    return NULL;
}

/* Another file of the store hangs; the record may be written all the same. */
static int note_in_time(struct vc_migration *m, struct vc_err *err)
{
    int rc;

    m->noting.done_fd = eventfd(0, EFD_CLOEXEC);
    if (m->noting.done_fd < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot make an eventfd");
    rc = vc_thread_start(&m->noting.thread, "vc-note", note_main, m, err);
    if (rc)
        return rc;
    if (vc_wait_readable(m->noting.done_fd, NOTE_LIMIT_MS) <= 0)
        return vc_err_set_hint(err, VC_E_STORE, "another directory can be given with --store",
                               "the store hangs, and the handover cannot be recorded");
    vc_thread_join(&m->noting.thread);
    *err = m->noting.err;
    return m->noting.rc;
}

/* What is known of this migration before QEMU may complete it. The clock is read first: whatever
 * other migration QEMU has begun until then, its events tell. */
static void fill_in_note(struct vc_migration *m, const struct vc_source_status *st,
                         struct vc_handover *h)
{
    uint64_t now_ns = vc_boot_ns();
    struct vc_err ignored = VC_ERR_INIT;
    bool heard = m->qmp && !vc_migration_take_events(m, &ignored);
    /* postcopy has another connection, perhaps */
    bool counts = st->knows_all && !st->package_sent && !m->is_over;

    h->has_counts = true;
    h->data_records = counts ? st->data_records : UINT64_MAX; /* equal to nothing */
    h->zero_records = st->zero_records;
    h->noted_ns = heard && counts ? now_ns : 0;
}

int vc_migration_note_success(struct vc_migration *m, const struct vc_source_status *st,
                              struct vc_err *err)
{
    struct vc_handover *h = m->recorded ? vc_handover_edit(m->holding.vm) : NULL;
    int rc = 0;

    m->noted = true;
    if (h) {
        fill_in_note(m, st, h);
        rc = st->store_stuck ? note_in_time(m, err) : vc_handover_note(m->holding.vm, err);
    }
    /* Without a note, whoever reads the record later would take it that no decision was ever sent:
     * while QEMU can still be kept from completing, it is. */
    if (rc && st->success_held)
        return rc;
    vc_source_pass_success(m->pipeline);
    return 0;
}
