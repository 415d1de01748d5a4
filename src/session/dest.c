/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "qmp/qmp.h"
#include "session/arrival.h"
#include "session/parking.h"
#include "session/preempt.h"

/* The destination's side of a migration: docs/internals/phases.md. The VM arrives paused and is
 * continued on the source's word; without the word it stays paused, and `vecycle resolve` shows it.
 */

#define TICK_MS 200
/** Time for the source's stream to end once the source has said that it committed, or did not. */
#define LATE_END_MS 2000

/* ---- perform ---- */

static int connect_qemu(void *opaque, struct vc_err *err)
{
    struct arrival *a = opaque;
    int fd, rc;

    if (!a->qmp)
        return vc_target_connect(a->o->socket_dir, a->name, ".sock", err);
    if (a->open.mode == VC_WIRE_MODE_RECOVER)
        return vc_target_connect(a->o->socket_dir, a->name, a->stream_suffix, err);
    if (a->open.mode == VC_WIRE_MODE_PREEMPT)
        return vc_preempt_incoming(a, err);
    rc = vc_qmp_migrate_fd(a->qmp, VC_QMP_INCOMING, &fd, err);
    if (rc)
        err->code = VC_E_DEST_QEMU;
    return rc ? VC_E_DEST_QEMU : fd;
}

static void on_frame(void *opaque, struct vc_link_frame *f)
{
    struct arrival *a = opaque;

    vc_inbox_put(&a->inbox, f);
}

static int start_stream(struct arrival *a, struct vc_err *err)
{
    struct vc_dest_options d = {
        .link = a->link,
        .session = a->open.session,
        .lineage = a->holding.lineage,
        .features = a->features,
        .base = (enum vc_wire_base)a->start.base,
        .gen = vc_arrival_base(a),
        .log = a->o->log,
        .connect = connect_qemu,
        .connect_preempt = vc_preempt_connect,
        .on_frame = on_frame,
        .opaque = a,
    };
    struct vc_err txn_err = VC_ERR_INIT;
    int rc;

    if (a->holding.keeps && a->open.mode != VC_WIRE_MODE_RECOVER &&
        vc_txn_begin(a->holding.vm, &a->start.generation, d.gen, &d.txn, &txn_err))
        vc_log_err(a->o->log, VC_LOG_WARNING, "no checkpoint will be kept here", &txn_err);
    rc = vc_dest_start(&d, &a->pipeline, err);
    vc_wipe(&d.lineage, sizeof(d.lineage));
    return rc;
}

static void note_status(struct arrival *a, struct vc_dest_status *st)
{
    struct vc_session_result *r = a->result;

    vc_dest_status(a->pipeline, st);
    r->pages_same = st->pages_same;
    r->pages_moved = st->pages_moved;
    r->pages_zero = st->pages_zero;
    r->pages_data = st->pages_data;
    r->pages_unknown = st->pages_unknown;
    r->stream_bytes = st->stream_bytes;
    r->repaired_pages = st->repaired_pages;
    r->resent_batches = st->resent_batches;
    r->wire_sent_bytes = vc_link_bytes_sent(a->link);
    r->wire_received_bytes = vc_link_bytes_received(a->link);
}

static void wait_for_something(struct arrival *a)
{
    struct pollfd fds[3] = {
        {.fd = vc_dest_event_fd(a->pipeline), .events = POLLIN},
        {.fd = a->inbox.fd, .events = POLLIN},
        {.fd = a->o->cancel && !a->stopped_late ? a->o->cancel->fd : -1, .events = POLLIN},
    };

    poll(fds, VC_ARRAY_LEN(fds), TICK_MS);
    vc_dest_check_store(a->pipeline);
    vc_dest_clear(a->pipeline);
}

/* QEMU has reported that nothing is missing. */
static bool is_complete(const struct vc_dest_status *st)
{
    return st->shut && st->shut_status == 0;
}

static bool has_all(struct arrival *a)
{
    struct vc_dest_status st;

    vc_dest_status(a->pipeline, &st);
    return is_complete(&st);
}

/* The source of a proxied migration is done when SHUT has passed, and says so while the end of its
 * stream may still wait here in a queue. */
static bool is_early(struct arrival *a, const struct vc_link_frame *f)
{
    return f->type == VC_WIRE_COMMITTED && !a->qmp && has_all(a);
}

/* Frames of the session while the stream flows. 0, or an error that ends the session. */
static int take_frames(struct arrival *a, struct vc_err *err)
{
    struct vc_link_frame *f;
    int rc;

    while (!a->word_done && vc_inbox_get(&a->inbox, 0, &f) == 0) {
        if (is_early(a, f)) {
            vc_inbox_unget(&a->inbox, f);
            return 0;
        }
        rc = f->type == VC_WIRE_WORD
                 ? vc_arrival_obey(a, f, err)
                 : vc_err_set(err, VC_E_PROTOCOL, "%s came too early", vc_wire_type_name(f->type));
        vc_link_frame_free(f);
        if (rc)
            return rc;
    }
    return 0;
}

static bool has_arrived(const struct arrival *a, const struct vc_dest_status *st)
{
    bool complete = is_complete(st) && st->source_eof;

    if (!a->qmp)
        return complete;
    return a->word_done && (complete || !vc_arrival_is_postcopy(a));
}

/* Whether QEMU has the device state and waits for no more than memory. A QEMU that cannot answer,
 * and is there, has its lock held by a guest that waits for a page. */
static bool has_switched(struct arrival *a, const struct vc_dest_status *st)
{
    struct vc_qmp_migration now;
    struct vc_err ignored = VC_ERR_INIT;

    if (!vc_arrival_is_postcopy(a) || !st->connected)
        return false;
    if (a->word_done || a->open.mode == VC_WIRE_MODE_RECOVER)
        return true;
    if (vc_qmp_migration(a->qmp, &now, &ignored))
        return !vc_qmp_is_gone(a->qmp);
    return vc_qmp_status_is_switched(now.status);
}

/* Who waits for a source with good reason: a VM that has arrived, for the word, since the source's
 * disk may hang at its record; and once a proxied stream flows, whoever drives the source QEMU may
 * hold it up (pause-before-switchover), as with plain QEMU. */
static bool may_wait(const struct arrival *a, const struct vc_dest_status *st)
{
    return a->qmp ? is_complete(st) : st->connected;
}

/* A source that answers and sends nothing would keep the VM from every other. One that sends a byte
 * now and then does: how slow is too slow depends on what an operator has limited the bandwidth to,
 * which is not known here, and what it keeps waiting is a QEMU that never ran. */
static int check_stall(struct arrival *a, const struct vc_dest_status *st, struct vc_err *err)
{
    uint64_t mark = st->stream_bytes + st->return_bytes + st->connected;
    uint64_t limit_ms = (uint64_t)VC_STALL_DEST_TIMES * vc_dead_peer_ms(a->o->dead_peer_ms);

    if (may_wait(a, st))
        a->progress = (struct vc_progress){0};
    if (vc_stands_still_ns(&a->progress, mark) < limit_ms * VC_NS_PER_MS)
        return 0;
    return vc_err_set_hint(err, VC_E_PEER_LOST, "see the source's own messages",
                           "'%.100s' has sent nothing of the VM for %llu s", vc_link_peer(a->link),
                           (unsigned long long)limit_ms / 1000);
}

/* After the switch to postcopy the rest of the memory comes first. */
static bool is_stopped(struct arrival *a, const struct vc_dest_status *st)
{
    if (a->stopped_late || !a->o->cancel || !vc_cancel_is_set(a->o->cancel))
        return false;
    a->stopped_late = a->qmp && has_switched(a, st);
    return !a->stopped_late;
}

/* Until the VM has arrived and, if it is driven, runs on the source's word. */
static int await_vm(struct arrival *a, struct vc_dest_status *st, struct vc_err *err)
{
    for (;;) {
        int rc;

        vc_arrival_watch(a);
        rc = take_frames(a, err);
        note_status(a, st);
        if (rc || has_arrived(a, st))
            return rc;
        if (st->failed) {
            rc = take_frames(a, err); /* the word may have been the last */
            if (rc || (a->word_done && !vc_arrival_is_postcopy(a)))
                return rc;
            vc_dest_error(a->pipeline, err);
            return err->code;
        }
        if (is_stopped(a, st))
            return vc_err_set(err, VC_E_CANCELLED, "the destination's vecycle was stopped");
        rc = check_stall(a, st, err);
        if (rc)
            return rc;
        vc_link_check_peer(a->link);
        wait_for_something(a);
    }
}

/* After the switch to postcopy the end of the session pauses QEMU's side of the migration, unless
 * the source's VM goes on. */
static int perform(struct arrival *a, struct vc_err *err)
{
    struct vc_dest_status st;
    struct vc_err cause;
    int rc = await_vm(a, &st, err);

    if (!rc || a->is_void || !has_switched(a, &st))
        return rc;
    if (is_complete(&st))
        return a->word_done ? 0 : rc;
    cause = *err;
    return vc_err_set_hint(err, VC_E_POSTCOPY,
                           "`vecycle migrate --recover` at the source carries the rest",
                           "a postcopy migration was interrupted: %.150s", cause.message);
}

/* ---- confirm ---- */

/* Whether all of the source's stream came through, so that the generation is whole. */
static bool await_stream_end(struct arrival *a)
{
    uint64_t deadline =
        vc_now_ns() + VC_ANSWER_TIMES * (uint64_t)vc_link_dead_peer_ms(a->link) * VC_NS_PER_MS;
    struct vc_dest_status st;

    for (;;) {
        note_status(a, &st);
        if (st.source_eof || st.failed || vc_now_ns() > deadline)
            return st.source_eof;
        /* The source has closed its books: the end may be a moment behind, or will never come. */
        if (vc_queue_bytes(&a->inbox.q))
            deadline = VC_MIN(deadline, vc_now_ns() + LATE_END_MS * VC_NS_PER_MS);
        wait_for_something(a);
    }
}

/* Not so in the recovery of a postcopy: what passes then cannot be told. */
static bool knows_ram(struct arrival *a)
{
    struct vc_dest_status st;

    note_status(a, &st);
    return st.ram_known;
}

static struct vc_txn_note describe(const struct arrival *a)
{
    return (struct vc_txn_note){
        .same_pages = a->result->pages_same + a->result->pages_moved,
        .data_pages = a->result->pages_data,
        .role = 2,
        .peer = a->result->peer,
    };
}

/* What had arrived is kept for the next attempt. */
static void keep(struct arrival *a, const struct vc_err *why)
{
    struct vc_txn_note note;
    struct vc_dest_status st;
    struct vc_txn *txn;

    vc_dest_abort(a->pipeline, why);
    txn = vc_dest_join(a->pipeline);
    note_status(a, &st);
    note = describe(a);
    vc_session_keep(txn, &note, a->o->log);
}

static void commit(struct arrival *a)
{
    struct vc_session_result *r = a->result;
    bool whole = await_stream_end(a) && knows_ram(a);
    struct vc_txn *txn = vc_dest_join(a->pipeline);
    struct vc_txn_note note = describe(a);
    struct vc_err err = VC_ERR_INIT;
    uint8_t root[VC_ROOT_BYTES];

    if (txn && whole) {
        r->committed = vc_txn_commit(txn, &note, root, &err) == 0;
        if (!r->committed)
            vc_log_err(a->o->log, VC_LOG_WARNING, "no checkpoint is kept here", &err);
        r->committed = r->committed && vc_holding_stays(&a->holding);
    } else {
        vc_session_keep(txn, &note, a->o->log);
    }
    vc_session_confirm(a->link, &a->inbox, &a->holding, &a->start.generation,
                       r->committed ? root : NULL, &r->confirmed, a->o->log);
}

/* ---- the whole ---- */

/* Whether QEMU still waits for the rest of a postcopy. One that does not answer has its lock held
 * by a guest that waits for a page. */
static bool awaits_rest(struct arrival *a)
{
    struct vc_qmp_migration now;
    struct vc_err ignored = VC_ERR_INIT;

    if (vc_qmp_migration(a->qmp, &now, &ignored))
        return !vc_qmp_is_gone(a->qmp);
    return vc_qmp_status_is_switched(now.status);
}

/* One that comes for a migration of its own is refused, and QEMU is asked nothing for it. */
static bool is_refused_parked(const struct arrival *a)
{
    return a->open.mode != VC_WIRE_MODE_RECOVER && a->open.mode != VC_WIRE_MODE_WORD;
}

/* Whether the connection to QEMU is needed for that rest: such a QEMU may be unable to take a new
 * one. Any other QEMU needs its only QMP connection for others. */
static bool parks(struct arrival *a, int rc, bool arrived)
{
    if (!a->qmp || vc_qmp_is_gone(a->qmp) || arrived)
        return false;
    if (rc == VC_E_POSTCOPY || !a->was_parked)
        return rc == VC_E_POSTCOPY;
    return is_refused_parked(a) || awaits_rest(a);
}

/* Whether the rest of a postcopy has come, for whoever asks about a VM that waits for it. */
static void record_rest(struct arrival *a, int rc)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_handover *h = a->holds_record ? vc_handover_edit(a->holding.vm) : NULL;

    if (!h || !h->awaits_rest || rc == VC_E_POSTCOPY || !a->pipeline || !has_all(a))
        return;
    h->awaits_rest = false;
    if (vc_handover_set(a->holding.vm, (enum vc_handover_state)h->state, &err))
        vc_log_err(a->o->log, VC_LOG_WARNING, "the handover is not recorded", &err);
}

static int run(struct arrival *a, struct vc_err *err)
{
    int rc = vc_arrival_open(a, err);

    if (!rc && a->o->opened)
        a->o->opened(a->o->opaque);
    if (!rc)
        rc = start_stream(a, err);
    if (!rc)
        rc = perform(a, err);
    record_rest(a, rc);
    if (rc)
        return rc == VC_EOF ? 0 : rc;
    a->result->phase = VC_PHASE_COMMIT;
    vc_settings_put_back(&a->settings); /* before the source hears that all is done */
    commit(a);
    a->result->phase = VC_PHASE_DONE;
    return 0;
}

/* It did not come to a good end. A VM that has arrived waits for its word, which the source gives
 * again; any other will never run here, and the record says so. Looked at when nothing more can go
 * out: QEMU may have reported success a moment ago, and the source must not learn of it later. */
static int wind_up(struct arrival *a, int rc, struct vc_err *err)
{
    struct vc_err why = *err, ignored = VC_ERR_INIT;
    struct vc_dest_status st = {0};

    vc_link_fail(a->link, err);
    if (a->pipeline)
        vc_dest_status(a->pipeline, &st);
    vc_arrival_watch(a);
    /* The VM is this host's, as far as it has come; the record of what is recovered stands. */
    if (rc == VC_E_POSTCOPY || a->open.mode == VC_WIRE_MODE_RECOVER)
        return rc;
    if (a->about_to_run && !a->word_done)
        return vc_err_set_hint(
            err, VC_E_UNSETTLED, "see `vecycle resolve` on both hosts which of them runs the VM",
            "the VM was continued here, and what the source does with its own is "
            "not known: %.100s",
            why.message);
    if (a->qmp && is_complete(&st) && !a->is_void && !a->word_done)
        return vc_err_set_hint(err, VC_E_UNSETTLED,
                               "the source settles it when they meet again, or `vecycle resolve`",
                               "the VM has arrived and is paused, but the source's word did not "
                               "come: %.100s",
                               why.message);
    if (!a->is_void && !a->word_done && vc_arrival_make_void(a, &ignored))
        vc_log_err(a->o->log, VC_LOG_WARNING, "the handover is not recorded", &ignored);
    return rc;
}

int vc_session_dest(const struct vc_dest_session *o, struct vc_session_result *result,
                    struct vc_err *err)
{
    struct arrival a = {.o = o, .result = result, .inbox = {.fd = -1}};
    bool stays, arrived;
    int rc = vc_link_new(o->conn, VC_WIRE_DESTINATION, o->dead_peer_ms, &a.link, err);

    *result = (struct vc_session_result){0};
    if (rc)
        return rc;
    snprintf(result->peer, sizeof(result->peer), "%s", vc_link_peer(a.link));
    rc = vc_inbox_init(&a.inbox, err);
    if (!rc)
        rc = run(&a, err);
    if (rc)
        rc = wind_up(&a, rc, err);
    if (rc && rc != VC_E_SEAL && a.pipeline)
        keep(&a, err);
    arrived = a.pipeline && has_all(&a);
    vc_dest_free(a.pipeline);
    vc_preempt_tidy(&a);
    stays = parks(&a, rc, arrived);
    if (!stays)
        vc_settings_put_back(&a.settings);
    else
        vc_parking_put(o->parking, &a.open.vm, vc_steal_ptr(a.qmp));
    if (rc == VC_E_SEAL)
        vc_holding_quarantine(&a.holding);
    vc_qmp_free(a.qmp);
    vc_link_free(a.link);
    vc_inbox_fini(&a.inbox);
    vc_holding_close(&a.holding);
    vc_wipe(&a.start, sizeof(a.start));
    return rc;
}
