/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "qmp/qmp.h"
#include "session/migration.h"
#include "session/whereabouts.h"
#include "source/flow.h"

/* The source's side while the stream flows: watches QEMU, the pipeline, the peer and the user,
 * keeps QEMU's downtime limit honest, and on any trouble sees to it that the guest goes on here. */

#define TICK_MS 100
#define CANCEL_TIMEOUT_MS 30000
/* QEMU sums up right behind `completed`. */
#define SUM_TIMEOUT_MS 1000
/* Time for a process to be gone whose sockets are closed. */
#define EXIT_TIMEOUT_MS 2000

/* Copies what the pipeline knows into the result. */
void vc_migration_note(struct vc_migration *m, struct vc_source_status *st)
{
    struct vc_session_result *r = m->result;
    uint64_t now = vc_now_ns();

    vc_source_status(m->pipeline, st);
    r->total_ms = (now - m->start_ns) / VC_NS_PER_MS;
    r->ram_bytes = st->ram_bytes;
    r->pages_same = st->pages_same;
    r->pages_moved = st->pages_moved;
    r->pages_zero = st->pages_zero;
    r->pages_data = st->pages_data;
    r->pages_unknown = st->pages_unknown;
    r->stream_bytes = st->stream_bytes;
    r->repaired_pages = st->repaired_pages;
    r->resent_batches = st->resent_batches;
    r->wire_sent_bytes = vc_link_bytes_sent(m->link);
    r->wire_received_bytes = vc_link_bytes_received(m->link);
    r->wire_rate = st->wire_rate;
    r->passthrough = !st->knows_all;
    snprintf(r->reason, sizeof(r->reason), "%s", st->reason);
    if (!m->qmp)
        r->remaining_bytes = st->first_pass_left_bytes;
    if (now - m->rate_ns > 50 * VC_NS_PER_MS) {
        m->intake_rate =
            (double)(st->stream_bytes - m->rate_bytes) * 1e9 / (double)(now - m->rate_ns);
        m->rate_bytes = st->stream_bytes;
        m->rate_ns = now;
    }
    if (r->phase < VC_PHASE_ROUNDS)
        r->phase = st->first_pass_done ? VC_PHASE_ROUNDS : VC_PHASE_FIRST_PASS;
}

void vc_migration_report(struct vc_migration *m)
{
    if (m->o->progress)
        m->o->progress(m->o->opaque, m->result);
}

/* QEMU stops the guest when (its estimate of the bandwidth) x (downtime limit) covers what is left.
 * Its estimate counts reused pages; what is left to send at the end is new. So the limit shrinks by
 * the factor that the estimate is too high. */
static int adjust_limit(struct vc_migration *m, const struct vc_source_status *st,
                        struct vc_err *err)
{
    uint64_t user = m->o->downtime_limit_ms ? m->o->downtime_limit_ms : m->old_limit;
    uint64_t limit;
    int rc;

    if (!st->first_pass_done || m->completed || m->o->recover || m->limit_is_theirs ||
        vc_migration_has_switched(m))
        return 0;
    limit = vc_flow_downtime_limit(st->data_rate, m->intake_rate, user, VC_CAUTIOUS_LIMIT_MS);
    if (limit == m->limit_ms || (limit > m->limit_ms && limit < m->limit_ms + m->limit_ms / 8))
        return 0;
    if (st->store_stuck) /* nor is it waited for */
        m->settings.vm = NULL;
    rc = vc_settings_number(&m->settings, "downtime-limit", limit, err);
    m->limit_is_theirs = rc == VC_AGAIN;
    if (rc == VC_AGAIN)
        rc = vc_qmp_get_parameter(m->qmp, "downtime-limit", limit, &limit, err);
    if (rc < 0)
        return rc;
    m->limit_ms = limit;
    vc_source_set_pace(m->pipeline, limit * VC_NS_PER_MS);
    return 0;
}

/* The guest ends, and QEMU with it unless it was started with -no-shutdown. QEMU may be told to end
 * as well, by a person or a signal: then the guest has not shut down. */
static bool guest_has_ended(const struct vc_migration *m)
{
    return m->shutdown[0] && strncmp(m->shutdown, "host-", 5) != 0;
}

static void on_shutdown(struct vc_migration *m, struct json_object *e)
{
    snprintf(m->shutdown, sizeof(m->shutdown), "%s",
             vc_json_str(vc_json_get(e, "data"), "reason", "guest-shutdown"));
    if (!guest_has_ended(m))
        m->event[0] = '\0';
}

/* QEMU tells each state of each migration. Whoever cancels this one may start another: what follows
 * is that one's. */
static void on_status(struct vc_migration *m, const char *status)
{
    if (!strcmp(status, "setup")) {
        m->is_over |= m->has_begun;
        m->has_begun = true;
    } else if (!strcmp(status, "cancelling") || !strcmp(status, "cancelled") ||
               !strcmp(status, "failed")) {
        m->is_over |= m->has_begun;
    } else if (!strcmp(status, "completed")) {
        m->says_completed = true;
    }
}

static void on_event(struct vc_migration *m, struct json_object *e)
{
    const char *name = vc_json_str(e, "event", "");
    const char *state = vc_run_state_after(e);

    if (state)
        snprintf(m->event, sizeof(m->event), "%s", state);
    if (!strcmp(name, "STOP")) {
        m->paused_ns = vc_now_ns();
        m->guest_paused = m->stop_seen = true;
        m->result->phase = VC_PHASE_SWITCH;
    } else if (!strcmp(name, "RESUME")) {
        m->guest_paused = false;
        m->event[0] = m->shutdown[0] = '\0';
        snprintf(m->state, sizeof(m->state), "running");
        m->continued |= m->completed || m->says_completed;
        m->result->phase = VC_PHASE_FIRST_PASS; /* or the rounds: as far as it was */
    } else if (!strcmp(name, "SHUTDOWN")) {
        on_shutdown(m, e);
    } else if (!strcmp(name, "SUSPEND") || !strcmp(name, "WAKEUP")) {
        snprintf(m->state, sizeof(m->state), "%s", m->event);
        m->event[0] = '\0';
    } else if (!strcmp(name, "MIGRATION")) {
        on_status(m, vc_json_str(vc_json_get(e, "data"), "status", ""));
    }
}

int vc_migration_take_events(struct vc_migration *m, struct vc_err *err)
{
    struct json_object *e;
    int rc;

    while ((rc = vc_qmp_event(m->qmp, &e, err)) == 0) {
        on_event(m, e);
        json_object_put(e);
    }
    return rc == VC_AGAIN ? 0 : rc;
}

/* What stopped the guest? If it was not the migration, the VM arrives in that state, and stays so.
 * A switch that began before QEMU was asked hides the state; then events tell. */
static int who_stopped_it(struct vc_migration *m, struct vc_err *err)
{
    char state[VC_RUN_STATE_BYTES];
    int rc;

    if (!m->stop_seen)
        return 0;
    rc = vc_qmp_run_state(m->qmp, state, err);
    m->stop_seen = rc;
    if (rc)
        return rc;
    if (vc_run_state_is_migration(state)) {
        if (m->event[0] && strcmp(m->event, "running") != 0)
            snprintf(m->state, sizeof(m->state), "%s", m->event);
        return 0;
    }
    snprintf(m->state, sizeof(m->state), "%s", state);
    m->guest_paused = false;
    m->paused_ns = 0;
    m->result->phase = VC_PHASE_FIRST_PASS; /* likewise */
    return 0;
}

/* QEMU says that it completed a migration. This one cannot complete before QEMU has the
 * destination's SHUT(0), which the pipeline sees first; and it has not been cancelled before. */
static int check_own(struct vc_migration *m, struct vc_err *err)
{
    struct vc_source_status st;
    struct vc_err ignored = VC_ERR_INIT;
    bool may_have;

    if (vc_migration_take_events(m, &ignored))
        vc_log_err(m->o->log, VC_LOG_DEBUG, "QEMU is gone", &ignored);
    vc_source_status(m->pipeline, &st);
    may_have = st.shut && !st.shut_status && !st.success_held;
    if (may_have && !m->is_over)
        return 0;
    m->unknown = may_have; /* the cancellation may have been the earlier, and the later one */
    return vc_err_set(err, VC_E_CANCELLED,
                      "this migration was cancelled in QEMU, which has completed another since");
}

/* QEMU says `completed` a moment before it has summed up. */
static void await_sum(struct vc_migration *m, struct vc_qmp_migration *now)
{
    uint64_t deadline = vc_now_ns() + SUM_TIMEOUT_MS * VC_NS_PER_MS;
    struct vc_err ignored = VC_ERR_INIT;

    while (!now->total_ms && vc_now_ns() < deadline) {
        poll(NULL, 0, 1);
        if (vc_qmp_migration(m->qmp, now, &ignored))
            break;
    }
    m->sum = vc_sum_of(now);
}

/* 0: goes on; VC_EOF: completed; an error: failed or cancelled, and the guest goes on here. */
static int check_migration(struct vc_migration *m, struct vc_err *err)
{
    struct vc_qmp_migration now;
    int rc = vc_qmp_migration(m->qmp, &now, err);

    if (rc)
        return rc;
    snprintf(m->status, sizeof(m->status), "%s", now.status);
    m->result->rounds = now.rounds;
    m->result->remaining_bytes = now.ram_remaining;
    if (!strcmp(now.status, "completed")) {
        rc = check_own(m, err);
        if (rc)
            return rc;
        m->completed = true;
        await_sum(m, &now);
        m->result->downtime_ms = now.downtime_ms;
        m->result->remaining_bytes = 0;
        return VC_EOF;
    }
    if (!strcmp(now.status, "failed"))
        return vc_err_set(err, VC_E_MIGRATION, "QEMU reports that the migration failed%s%.150s",
                          now.error[0] ? ": " : "", now.error);
    if (!strcmp(now.status, "postcopy-paused"))
        return vc_err_set(err, VC_E_POSTCOPY, "QEMU has paused the migration%s%.150s",
                          now.error[0] ? ": " : "", now.error);
    if (!strcmp(now.status, "cancelled"))
        return vc_err_set(err, VC_E_CANCELLED,
                          "the migration was cancelled in QEMU; the VM runs on here");
    return 0;
}

void vc_migration_wait(struct vc_migration *m)
{
    struct pollfd fds[3];
    nfds_t n = 0;

    fds[n++] = (struct pollfd){.fd = vc_source_event_fd(m->pipeline), .events = POLLIN};
    if (m->qmp && !m->orphan)
        fds[n++] = (struct pollfd){.fd = vc_qmp_fd(m->qmp), .events = POLLIN};
    if (m->o->cancel && !m->completed && !m->orphan && !m->cancelled_late)
        fds[n++] = (struct pollfd){.fd = m->o->cancel->fd, .events = POLLIN};
    poll(fds, n, TICK_MS);
    vc_source_check_store(m->pipeline);
    vc_source_clear(m->pipeline);
}

int vc_migration_cancelled(const struct vc_migration *m, struct vc_err *err)
{
    return vc_err_set(err, VC_E_CANCELLED, "cancelled%s",
                      vc_migration_has_switched(m)     ? ""
                      : vc_run_state_goes_on(m->state) ? "; the VM runs on here"
                                                       : "; the VM is still here");
}

/* From the switch to postcopy on there is no way back: the VM would wait for its memory for
 * nothing, and where QEMU has just switched, or sent its last byte, it would be lost
 * (docs/internals/faults.md). */
static bool is_cancelled(struct vc_migration *m, const struct vc_source_status *st)
{
    bool cancelled = m->o->cancel && vc_cancel_is_set(m->o->cancel);

    if (!m->postcopy_asked && !st->package_sent && !(m->o->recover && m->resumed))
        return cancelled;
    if (cancelled && !m->cancelled_late)
        vc_log(m->o->log, VC_LOG_WARNING,
               "it is too late to cancel a migration that has switched to postcopy; it goes on");
    m->cancelled_late |= cancelled;
    return false;
}

/* Lets go of QEMU's stream and waits until QEMU has given up, or has completed after all (0). If it
 * does not tell, nobody knows where the VM belongs.
 *
 * Also on a cancellation, without migrate_cancel: QEMU 7.2 obeys that even while it stops the guest
 * for the switch, and then lets it go on with its disks inactive (docs/internals/faults.md); and
 * after a switch to postcopy the guest would run in both places. */
static int give_up(struct vc_migration *m, struct vc_err *err)
{
    uint64_t deadline = vc_now_ns() + CANCEL_TIMEOUT_MS * VC_NS_PER_MS;
    struct vc_err end = VC_ERR_INIT;
    int rc = 0;

    vc_source_abort(m->pipeline, err);
    while ((rc == 0 || rc == VC_E_QMP) && !vc_qmp_is_gone(m->qmp) && vc_now_ns() < deadline) {
        rc = check_migration(m, &end);
        if (rc == 0 || rc == VC_E_QMP)
            poll(NULL, 0, 10);
    }
    if (rc == VC_EOF)
        return 0;
    if (rc == VC_E_POSTCOPY || vc_migration_has_switched(m))
        return vc_migration_interrupted(m, err);
    /* Only somebody else's migrate_cancel ends so: that was the reason for all that broke. */
    if (rc == VC_E_CANCELLED && err->code != VC_E_CANCELLED)
        *err = end;
    m->unknown |= rc == 0 || rc == VC_E_QMP;
    return err->code;
}

/* What QEMU had said before it closed its socket. */
static void take_last_events(struct vc_migration *m)
{
    struct vc_err ignored = VC_ERR_INIT;

    if (vc_migration_take_events(m, &ignored))
        vc_log_err(m->o->log, VC_LOG_DEBUG, "QEMU is gone", &ignored);
}

/* The process is gone: why, as far as it has said. */
static int qemu_ended(const struct vc_migration *m, struct vc_err *err)
{
    if (!m->shutdown[0])
        return vc_err_set_hint(err, VC_E_QMP, "see its own messages",
                               "the source QEMU ended in the middle of the migration");
    if (!strncmp(m->shutdown, "host-", 5))
        return vc_err_set(err, VC_E_QEMU_STATE,
                          "the source QEMU was told to end (%s) during the migration", m->shutdown);
    return vc_err_set(err, VC_E_QEMU_STATE, "the guest shut down (%s) during the migration",
                      m->shutdown);
}

/* A command failed. VC_AGAIN: QEMU is only busy (it holds its lock while it sends the last pages),
 * or gone in a way that the destination decides about. */
static int qmp_failed(struct vc_migration *m, struct vc_err *err)
{
    if (!vc_qmp_is_gone(m->qmp)) {
        vc_log_err(m->o->log, VC_LOG_DEBUG, "QEMU is busy", err);
        *err = VC_ERR_INIT;
        return VC_AGAIN;
    }
    take_last_events(m);
    if (guest_has_ended(m)) /* what has been sent is older than its end, and must never run */
        return qemu_ended(m, err);
    if (!vc_qmp_process_ended(m->qmp, EXIT_TIMEOUT_MS)) { /* it may complete all the same */
        vc_source_abort(m->pipeline, err);
        m->unknown = true;
        return err->code;
    }
    m->orphan = m->guest_paused && !vc_migration_has_switched(m);
    return m->orphan ? VC_AGAIN : qemu_ended(m, err);
}

/* What has moved. Before the switch QEMU waits for nothing on its return path but SHUT, and a
 * destination could say PONG there for ever; in postcopy it asks for pages. */
static uint64_t what_moved(const struct vc_migration *m, const struct vc_source_status *st)
{
    uint64_t n = st->stream_bytes + st->acked_batches + st->shut;

    return vc_migration_has_switched(m) ? n + st->return_bytes : n;
}

/* Whether the destination draws the pause out, while the guest could go on here: a batch is
 * progress, and may be as small as the link is slow. From the switch to postcopy on nothing here
 * gets the guest back, from SHUT(0) on it waits for this host; and while it runs the destination
 * may take its time. */
static int check_pause(struct vc_migration *m, const struct vc_source_status *st,
                       struct vc_err *err)
{
    uint64_t now = vc_now_ns(), limit_ms;

    if (!m->guest_paused || m->orphan || vc_migration_has_switched(m) ||
        (st->shut && !st->shut_status)) {
        m->acked_before_pause = st->acked_bytes;
        return 0;
    }
    limit_ms = vc_pause_limit_ms(m->o->dead_peer_ms, st->acked_bytes - m->acked_before_pause);
    if (now - m->paused_ns < limit_ms * VC_NS_PER_MS)
        return 0;
    return vc_err_set_hint(err, VC_E_MIGRATION,
                           "is the connection, or the other host's disk, that slow?",
                           "the guest has been paused for %llu s, in which the destination has "
                           "taken %llu KiB",
                           (unsigned long long)(now - m->paused_ns) / VC_NS_PER_S,
                           (unsigned long long)(st->acked_bytes - m->acked_before_pause) / 1024);
}

/* Whether nothing has moved for too long, or too little while the guest waits. */
static int check_stall(struct vc_migration *m, const struct vc_source_status *st,
                       struct vc_err *err)
{
    uint64_t still_ns = vc_stands_still_ns(&m->progress, what_moved(m, st));
    uint64_t limit_ms = vc_dead_peer_ms(m->o->dead_peer_ms);

    limit_ms *= m->guest_paused ? VC_STALL_PAUSED_TIMES : VC_STALL_TIMES;
    if (still_ns < limit_ms * VC_NS_PER_MS)
        return check_pause(m, st, err);
    return vc_err_set_hint(err, VC_E_MIGRATION, "is one of the two QEMUs stopped or hung?",
                           "the migration has not moved for %llu s, with the guest %s",
                           (unsigned long long)still_ns / VC_NS_PER_S,
                           m->guest_paused ? "paused" : "running");
}

/* QEMU is gone for certain, after the guest had been paused for the switch: the VM will never run
 * here again. What QEMU had sent may be all of it, so it is the destination's, if that has it
 * whole. 0: not decided yet; VC_EOF. */
static int check_orphan(struct vc_migration *m, const struct vc_source_status *st,
                        struct vc_err *err)
{
    struct vc_err ignored = VC_ERR_INIT;

    if (st->package_sent && !(st->shut && !st->shut_status))
        return vc_err_set(
            err, VC_E_QMP,
            "the source QEMU ended in a postcopy, and what it had not sent of the VM's "
            "memory went with it");
    if (st->peer_stream_failed || (st->shut && st->shut_status))
        return vc_err_set(err, VC_E_QMP, "the source QEMU ended before it had sent everything");
    if (!st->shut && !st->failed && !check_stall(m, st, &ignored))
        return 0;
    vc_log(m->o->log, VC_LOG_WARNING, "the source QEMU is gone; the VM is the destination's");
    m->completed = true;
    return VC_EOF;
}

/* What QEMU says. 0, VC_AGAIN: goes on; VC_EOF: completed; an error: it is over. */
static int ask_qemu(struct vc_migration *m, const struct vc_source_status *st, uint64_t *next_query,
                    struct vc_err *err)
{
    int rc;

    if (m->orphan)
        return check_orphan(m, st, err);
    rc = vc_migration_take_events(m, err);
    if (!rc)
        rc = who_stopped_it(m, err);
    if (!rc && (m->completed || m->says_completed || vc_now_ns() >= *next_query)) {
        rc = check_migration(m, err);
        /* A QEMU that resumes has connected, and says so only once it has its other connection. */
        if (rc == VC_E_POSTCOPY && m->o->recover && !m->resumed) {
            *err = VC_ERR_INIT;
            rc = 0;
        } else {
            m->resumed = true;
        }
        *next_query = vc_now_ns() + TICK_MS * VC_NS_PER_MS;
    }
    if (!rc && !m->completed)
        rc = vc_migration_postcopy(m, st, err);
    if (!rc && !m->completed)
        rc = adjust_limit(m, st, err);
    return rc == VC_E_QMP ? qmp_failed(m, err) : rc;
}

int vc_migration_drive(struct vc_migration *m, struct vc_err *err)
{
    uint64_t next_query = 0, next_report = 0;

    for (;;) {
        struct vc_source_status st;
        int rc;

        vc_migration_note(m, &st);
        if (st.shut && !st.shut_status && !m->noted && vc_migration_note_success(m, &st, err))
            return give_up(m, err);
        rc = ask_qemu(m, &st, &next_query, err);
        if (rc == VC_EOF)
            return 0;
        if (rc < 0) { /* QEMU failed, or is gone; the stream's own reason may be a better one.
                         Asked again: the pipeline has a reason before it closes QEMU's socket. */
            vc_source_status(m->pipeline, &st);
            if (st.failed && (rc == VC_E_MIGRATION || rc == VC_E_POSTCOPY))
                vc_source_error(m->pipeline, err);
            if (vc_migration_has_switched(m))
                return vc_migration_interrupted(m, err);
            vc_source_abort(m->pipeline, err);
            return err->code;
        }
        if (m->orphan) {
            vc_migration_wait(m);
            continue;
        }
        if (st.failed) {
            vc_source_error(m->pipeline, err);
            return give_up(m, err);
        }
        if (is_cancelled(m, &st)) {
            (void)vc_migration_cancelled(m, err);
            return give_up(m, err);
        }
        vc_source_status(m->pipeline, &st); /* QEMU may have been asked for a while */
        if (check_stall(m, &st, err))
            return give_up(m, err);
        if (vc_now_ns() >= next_report) {
            vc_migration_report(m);
            next_report = vc_now_ns() + 2 * TICK_MS * VC_NS_PER_MS;
        }
        vc_link_check_peer(m->link);
        vc_migration_wait(m);
    }
}

/* Nobody tells a proxy how the migration goes but the stream itself. */
int vc_migration_follow(struct vc_migration *m, struct vc_err *err)
{
    for (;;) {
        struct vc_source_status st;
        /* The destination says COMMITTED after it has carried SHUT: asked first, seen first. */
        bool done_there = vc_queue_bytes(&m->inbox.q) > 0;

        vc_migration_note(m, &st);
        vc_migration_report(m);
        if (st.shut && st.shut_status == 0 && st.stream_ended)
            return 0;
        if (done_there && !st.shut) {
            vc_err_set(err, VC_E_PROTOCOL,
                       "the destination is done, and its QEMU's answer has not come");
            vc_source_abort(m->pipeline, err);
            return err->code;
        }
        if (st.failed)
            vc_source_error(m->pipeline, err);
        /* Whoever cancels it in QEMU may end the destination's QEMU at once, as libvirt does. */
        if (st.failed && (err->code != VC_E_DEST_QEMU || !st.qemu_hung_up || st.shut))
            return err->code;
        if (st.failed || (st.stream_ended && st.delivered)) {
            (void)vc_err_set_hint(err, VC_E_MIGRATION, "was it cancelled there?",
                                  "the source QEMU gave the migration up");
            vc_source_abort(m->pipeline, err);
            return err->code;
        }
        if (is_cancelled(m, &st)) {
            (void)vc_migration_cancelled(m, err);
            vc_source_abort(m->pipeline, err);
            return err->code;
        }
        vc_link_check_peer(m->link);
        vc_migration_wait(m);
    }
}
