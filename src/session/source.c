/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "qmp/qmp.h"
#include "session/common.h"
#include "source/source.h"

/* The source's side of a migration: docs/internals/phases.md has the table of phases and of what
 * every abort does. In short: until QEMU says `completed` any trouble lets the guest go on here;
 * from then on it belongs to the destination, which runs it on our word alone. */

#define TICK_MS 100
/** Downtime limit given to QEMU while reuse makes its estimate of the bandwidth meaningless. */
#define CAUTIOUS_LIMIT_MS 5
/** What QEMU has when nobody set anything (QEMU: migration/options.c). */
#define DEFAULT_LIMIT_MS 300
/** "Unlimited" for max-bandwidth: 1 TiB/s. */
#define UNLIMITED_BANDWIDTH (1ull << 40)
#define WORD_TIMEOUT_MS 30000
#define CANCEL_TIMEOUT_MS 30000
#define ZSTD_LEVEL 1

struct migration {
    const struct vc_source_session *o;
    struct vc_session_result *result;
    struct vc_link *link;
    struct vc_inbox inbox;
    struct vc_holding holding;
    struct vc_source *pipeline;
    struct vc_qmp *qmp; /* NULL: proxy */
    struct vc_id vm, session, generation;
    enum vc_wire_base base;
    uint64_t start_ns;
    uint64_t old_bandwidth, old_limit; /* QEMU's parameters before */
    bool parameters_changed;
    bool completed;               /* QEMU said so */
    uint64_t rate_bytes, rate_ns; /* last sample of the intake */
    double intake_rate;
    int stream_fd;      /* proxy: until the pipeline has it */
    uint64_t limit_ms;  /* what QEMU has now */
    uint64_t paused_ns; /* when the guest stopped here */
};

static bool is_plaintext(const struct migration *m)
{
    return vc_link_security(m->link) == VC_WIRE_PLAINTEXT;
}

/* ---- begin: QEMU ---- */

static int check_qemu(struct migration *m, struct vc_err *err)
{
    struct vc_qmp_migration now;
    char state[32];
    int rc = vc_qmp_uuid(m->qmp, &m->vm, err);

    if (!rc && vc_id_is_nil(&m->vm))
        return vc_err_set_hint(err, VC_E_QEMU_STATE, "start QEMU with -uuid $(uuidgen)",
                               "the VM has no UUID to know it by");
    if (!rc)
        rc = vc_qmp_run_state(m->qmp, state, err);
    if (!rc && strcmp(state, "running") != 0)
        return vc_err_set_hint(err, VC_E_QEMU_STATE, "only a running VM is migrated",
                               "the VM is not running but '%s'", state);
    if (!rc)
        rc = vc_qmp_migration(m->qmp, &now, err);
    if (!rc && (!strcmp(now.status, "active") || !strcmp(now.status, "setup") ||
                !strcmp(now.status, "device") || !strcmp(now.status, "cancelling")))
        return vc_err_set(err, VC_E_QEMU_STATE, "the VM is being migrated already");
    return rc;
}

static int set_up_qemu(struct migration *m, struct vc_err *err)
{
    static const struct {
        const char *name;
        bool on;
    } capabilities[] = {
        {"return-path", true}, /* without it a loss goes unnoticed */
        {"events", true},
        {"xbzrle", false}, /* both do what we do, and hide pages from us */
        {"multifd", false},
    };
    int rc = 0;

    for (size_t i = 0; i < VC_ARRAY_LEN(capabilities) && !rc; i++)
        rc = vc_qmp_set_capability(m->qmp, capabilities[i].name, capabilities[i].on, err);
    if (!rc)
        rc = vc_qmp_get_parameter(m->qmp, "max-bandwidth", 0, &m->old_bandwidth, err);
    if (!rc)
        rc = vc_qmp_get_parameter(m->qmp, "downtime-limit", DEFAULT_LIMIT_MS, &m->old_limit, err);
    m->parameters_changed = !rc;
    m->limit_ms = CAUTIOUS_LIMIT_MS;
    if (!rc)
        rc = vc_qmp_set_parameter(m->qmp, "max-bandwidth",
                                  m->o->max_bandwidth ? m->o->max_bandwidth : UNLIMITED_BANDWIDTH,
                                  err);
    return rc ? rc : vc_qmp_set_parameter(m->qmp, "downtime-limit", m->limit_ms, err);
}

static void restore_qemu(struct migration *m)
{
    struct vc_err err = VC_ERR_INIT;

    if (!m->parameters_changed)
        return;
    if (vc_qmp_set_parameter(m->qmp, "max-bandwidth", m->old_bandwidth, &err) ||
        vc_qmp_set_parameter(m->qmp, "downtime-limit", m->old_limit, &err))
        vc_log_err(m->o->log, VC_LOG_DEBUG, "QEMU's parameters were not restored", &err);
}

/* ---- prepare: the other host ---- */

static int refuse_unsettled(struct migration *m, struct vc_err *err)
{
    struct vc_handover h;
    int rc;

    if (!m->qmp || !m->holding.vm)
        return 0;
    rc = vc_handover_get(m->holding.vm, &h, err);
    if (rc == VC_E_CORRUPT) {
        vc_log_err(m->o->log, VC_LOG_WARNING, "an old record is overwritten", err);
        return 0;
    }
    if (!rc && h.state == VC_HANDOVER_LEFT)
        return vc_err_set_hint(err, VC_E_UNSETTLED, "see `vecycle resolve`",
                               "an earlier migration of the VM to '%.100s' is not settled", h.peer);
    return rc;
}

static int send_open(struct migration *m, struct vc_err *err)
{
    struct vc_wire_open open = {
        .session = m->session,
        .vm = m->vm,
        .mode = m->qmp ? VC_WIRE_MODE_DRIVEN : VC_WIRE_MODE_PROXY,
        .window_bytes = VC_SOURCE_WINDOW_BYTES,
    };
    const struct vc_holding *h = &m->holding;

    snprintf(open.name, sizeof(open.name), "%s", m->o->name ? m->o->name : "");
    if (h->has_lineage) {
        open.has_lineage = true;
        open.lineage = (struct vc_wire_lineage){
            .id = h->lineage.id,
            .algo = h->lineage.algo,
            .flags = h->lineage.exposed ? VC_WIRE_LINEAGE_EXPOSED : 0,
        };
    }
    if (h->gen) {
        const struct vc_gen_info *info = vc_gen_info(h->gen);

        open.n_generations = 1;
        open.generations[0].id = info->id;
        memcpy(open.generations[0].root, info->root, VC_WIRE_ROOT_BYTES);
    }
    return VC_SESSION_SEND(m->link, VC_WIRE_OPEN, vc_wire_open_encode, &open, err);
}

/* Settles on a lineage and a base, and tells the destination. */
static int send_start(struct migration *m, const struct vc_wire_accept *a, struct vc_err *err)
{
    struct vc_holding *h = &m->holding;
    struct vc_lineage l;
    struct vc_wire_start start = {.generation = m->generation};
    int rc = 0;

    m->base = VC_WIRE_BASE_NONE;
    if (h->has_lineage) {
        l = h->lineage;
        m->base = (enum vc_wire_base)a->base;
        start.has_key = a->needs_key;
    } else if (a->has_lineage && vc_digest_algo_known(a->lineage.algo) &&
               !!(a->lineage.flags & VC_WIRE_LINEAGE_EXPOSED) == is_plaintext(m)) {
        l = (struct vc_lineage){
            .id = a->lineage.id,
            .algo = a->lineage.algo,
            .exposed = a->lineage.flags & VC_WIRE_LINEAGE_EXPOSED,
        };
        memcpy(l.key, a->key, sizeof(l.key));
        m->base = (enum vc_wire_base)a->base;
    } else {
        rc = vc_lineage_random(&l, is_plaintext(m), err);
        start.has_key = true;
    }
    if (!rc)
        rc = vc_holding_adopt(h, &l, err);
    if (rc)
        return rc;
    if (m->base == VC_WIRE_BASE_PING_PONG &&
        (!h->gen || !vc_id_equal(&vc_gen_info(h->gen)->id, &a->generation)))
        return vc_err_set(err, VC_E_PROTOCOL, "ACCEPT: names a generation that was not offered");
    start.lineage = (struct vc_wire_lineage){
        .id = l.id,
        .algo = l.algo,
        .flags = l.exposed ? VC_WIRE_LINEAGE_EXPOSED : 0,
    };
    start.base = (uint8_t)m->base;
    if (start.has_key)
        memcpy(start.key, l.key, sizeof(start.key));
    rc = VC_SESSION_SEND(m->link, VC_WIRE_START, vc_wire_start_encode, &start, err);
    vc_wipe(&start, sizeof(start));
    vc_wipe(&l, sizeof(l));
    return rc;
}

static int negotiate(struct migration *m, struct vc_err *err)
{
    vc_auto_frame struct vc_link_frame *f = NULL;
    struct vc_wire_accept a;
    int rc;

    if (!vc_id_random(&m->session) || !vc_id_random(&m->generation))
        return vc_err_set(err, VC_E_FAILED, "the kernel gives no random numbers");
    rc = vc_holding_open(&m->holding, m->o->store, &m->vm, is_plaintext(m), m->o->log, err);
    if (!rc)
        rc = refuse_unsettled(m, err);
    if (!rc)
        rc = send_open(m, err);
    if (!rc)
        rc = vc_session_expect(m->link, VC_WIRE_ACCEPT, &f, err);
    if (!rc)
        rc = vc_wire_accept_decode(f->payload, f->bytes, &a, err);
    if (!rc)
        rc = send_start(m, &a, err);
    if (!rc)
        vc_link_set_phase(m->link, VC_WIRE_PHASE_STREAM);
    return rc;
}

/* ---- perform ---- */

static int start_stream(struct migration *m, int qemu_fd, struct vc_err *err)
{
    struct vc_source_options so = {
        .qemu_fd = qemu_fd,
        .link = m->link,
        .session = m->session,
        .lineage = m->holding.lineage,
        .base = m->base,
        .shared_gen = m->base == VC_WIRE_BASE_PING_PONG ? m->holding.gen : NULL,
        .local_gen = m->holding.gen,
        .zstd_level = ZSTD_LEVEL,
        .needs_return_path = true,
        .log = m->o->log,
        .on_frame = vc_inbox_put,
        .opaque = &m->inbox,
    };
    uint64_t limit_ms = m->qmp ? m->limit_ms : m->o->downtime_limit_ms;
    struct vc_err txn_err = VC_ERR_INIT;

    so.pace_limit_ns = (limit_ms ? limit_ms : DEFAULT_LIMIT_MS) * VC_NS_PER_MS;
    if (m->holding.vm &&
        vc_txn_begin(m->holding.vm, &m->generation, m->holding.gen, &so.txn, &txn_err))
        vc_log_err(m->o->log, VC_LOG_WARNING, "no checkpoint will be kept here", &txn_err);
    return vc_source_start(&so, &m->pipeline, err);
}

static int begin_handover(struct migration *m, struct vc_err *err)
{
    struct vc_handover h = {
        .state = VC_HANDOVER_LEAVING,
        .session = m->session,
        .since_unix = vc_wall_s(),
    };

    if (!m->holding.vm || !m->qmp)
        return 0;
    snprintf(h.peer, sizeof(h.peer), "%s", m->o->to);
    snprintf(h.socket, sizeof(h.socket), "%s", m->o->qmp_name);
    return vc_handover_begin(m->holding.vm, &h, err);
}

/* Copies what the pipeline knows into the result. */
static void note_status(struct migration *m, struct vc_source_status *st)
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

static void report(struct migration *m)
{
    if (m->o->progress)
        m->o->progress(m->o->opaque, m->result);
}

/* QEMU stops the guest when (its estimate of the bandwidth) x (downtime limit) covers what is left.
 * Its estimate counts reused pages; what is left to send at the end is new. So the limit shrinks by
 * the factor that the estimate is too high. */
static int adjust_limit(struct migration *m, const struct vc_source_status *st, struct vc_err *err)
{
    uint64_t user = m->o->downtime_limit_ms ? m->o->downtime_limit_ms : m->old_limit;
    double wire = st->wire_rate, share;
    uint64_t limit;

    if (!st->first_pass_done || m->completed)
        return 0;
    share = wire > 0 && m->intake_rate > wire ? wire / m->intake_rate : 1;
    limit = (uint64_t)((double)user * share);
    limit = VC_MIN(VC_MAX(limit, CAUTIOUS_LIMIT_MS), user);
    if (limit == m->limit_ms || (limit > m->limit_ms && limit < m->limit_ms + m->limit_ms / 8))
        return 0;
    m->limit_ms = limit;
    vc_source_set_pace(m->pipeline, limit * VC_NS_PER_MS);
    return vc_qmp_set_parameter(m->qmp, "downtime-limit", limit, err);
}

static void on_event(struct migration *m, struct json_object *e)
{
    const char *name = vc_json_str(e, "event", "");

    if (!strcmp(name, "STOP")) {
        m->paused_ns = vc_now_ns();
        m->result->phase = VC_PHASE_SWITCH;
    } else if (!strcmp(name, "RESUME")) {
        m->result->phase = VC_PHASE_ROUNDS;
    } else if (!strcmp(name, "MIGRATION")) {
        const char *status = vc_json_str(vc_json_get(e, "data"), "status", "");

        if (!strcmp(status, "completed"))
            m->completed = true;
    }
}

static int drain_events(struct migration *m, struct vc_err *err)
{
    struct json_object *e;
    int rc;

    while ((rc = vc_qmp_event(m->qmp, &e, err)) == 0) {
        on_event(m, e);
        json_object_put(e);
    }
    return rc == VC_AGAIN ? 0 : rc;
}

/* 0: goes on; VC_EOF: completed; an error: failed or cancelled, and the guest goes on here. */
static int check_migration(struct migration *m, struct vc_err *err)
{
    struct vc_qmp_migration now;
    int rc = vc_qmp_migration(m->qmp, &now, err);

    if (rc)
        return rc;
    m->result->rounds = now.rounds;
    m->result->remaining_bytes = now.ram_remaining;
    if (!strcmp(now.status, "completed")) {
        m->completed = true;
        m->result->downtime_ms = now.downtime_ms;
        m->result->remaining_bytes = 0;
        return VC_EOF;
    }
    if (!strcmp(now.status, "failed"))
        return vc_err_set(err, VC_E_MIGRATION, "QEMU reports that the migration failed%s%.150s",
                          now.error[0] ? ": " : "", now.error);
    if (!strcmp(now.status, "cancelled"))
        return vc_err_set(err, VC_E_CANCELLED, "the migration was cancelled in QEMU");
    return 0;
}

static void wait_for_something(struct migration *m)
{
    struct pollfd fds[3];
    nfds_t n = 0;

    fds[n++] = (struct pollfd){.fd = vc_source_event_fd(m->pipeline), .events = POLLIN};
    if (m->qmp)
        fds[n++] = (struct pollfd){.fd = vc_qmp_fd(m->qmp), .events = POLLIN};
    if (m->o->cancel)
        fds[n++] = (struct pollfd){.fd = m->o->cancel->fd, .events = POLLIN};
    poll(fds, n, TICK_MS);
    vc_source_clear(m->pipeline);
}

static bool is_cancelled(const struct migration *m)
{
    return m->o->cancel && vc_cancel_is_set(m->o->cancel);
}

/* Lets go of QEMU's stream and waits until QEMU has given up, or has completed after all (0). */
static int give_up(struct migration *m, bool cancel, struct vc_err *err)
{
    uint64_t deadline = vc_now_ns() + CANCEL_TIMEOUT_MS * VC_NS_PER_MS;
    struct vc_err ignored = VC_ERR_INIT, end = VC_ERR_INIT;
    int rc = 0;

    if (cancel && vc_qmp_simple(m->qmp, "migrate_cancel", &ignored) == 0) {
        /* A migration that completes at this very moment has been completed by the destination. */
        rc = check_migration(m, &end);
        if (rc == VC_EOF)
            return 0;
    }
    vc_source_abort(m->pipeline, err);
    while (rc == 0 && vc_now_ns() < deadline) {
        rc = check_migration(m, &end);
        if (rc == 0)
            poll(NULL, 0, 10);
    }
    return rc == VC_EOF ? 0 : err->code;
}

static int perform_driven(struct migration *m, struct vc_err *err)
{
    uint64_t next_query = 0, next_report = 0;

    for (;;) {
        struct vc_source_status st;
        int rc = drain_events(m, err);

        note_status(m, &st);
        if (!rc && (m->completed || vc_now_ns() >= next_query)) {
            rc = check_migration(m, err);
            next_query = vc_now_ns() + TICK_MS * VC_NS_PER_MS;
        }
        if (rc == VC_EOF)
            return 0;
        if (rc) { /* QEMU failed, or is gone: the stream ends; its own reason may be a better one */
            if (st.failed && rc == VC_E_MIGRATION)
                vc_source_error(m->pipeline, err);
            vc_source_abort(m->pipeline, err);
            return err->code;
        }
        if (st.failed) {
            vc_source_error(m->pipeline, err);
            return give_up(m, false, err);
        }
        if (is_cancelled(m)) {
            vc_err_set(err, VC_E_CANCELLED, "cancelled; the VM runs on here");
            return give_up(m, true, err);
        }
        rc = adjust_limit(m, &st, err);
        if (rc) {
            vc_source_abort(m->pipeline, err);
            return rc;
        }
        if (vc_now_ns() >= next_report) {
            report(m);
            next_report = vc_now_ns() + 2 * TICK_MS * VC_NS_PER_MS;
        }
        vc_link_check_peer(m->link);
        wait_for_something(m);
    }
}

/* Nobody tells a proxy how the migration goes but the stream itself. */
static int perform_proxy(struct migration *m, struct vc_err *err)
{
    for (;;) {
        struct vc_source_status st;

        note_status(m, &st);
        report(m);
        if (st.shut && st.shut_status == 0 && st.stream_ended)
            return 0;
        if (st.failed) {
            vc_source_error(m->pipeline, err);
            return err->code;
        }
        if (st.stream_ended && st.delivered) {
            vc_err_set(err, VC_E_MIGRATION, "the source QEMU gave the migration up");
            vc_source_abort(m->pipeline, err);
            return err->code;
        }
        if (is_cancelled(m)) {
            vc_err_set(err, VC_E_CANCELLED, "cancelled; the VM runs on here");
            vc_source_abort(m->pipeline, err);
            return err->code;
        }
        vc_link_check_peer(m->link);
        wait_for_something(m);
    }
}

/* ---- finish: the word ---- */

static int give_word(struct migration *m, struct vc_err *err)
{
    struct vc_wire_word_msg word = {.word = m->o->suspend ? VC_WIRE_WORD_SUSPEND
                                                          : VC_WIRE_WORD_CONTINUE,
                                    .session = m->session};
    struct vc_wire_status done;
    struct vc_link_frame *f;
    int rc = 0;

    if (m->holding.vm)
        rc = vc_handover_set(m->holding.vm, VC_HANDOVER_LEFT, err);
    if (rc) /* the word counts more than its record */
        vc_log_err(m->o->log, VC_LOG_ERROR, "the handover is not recorded", err);
    rc = VC_SESSION_SEND(m->link, VC_WIRE_WORD, vc_wire_word_encode, &word, err);
    if (!rc)
        rc = vc_inbox_get(&m->inbox, WORD_TIMEOUT_MS, &f);
    if (rc)
        return vc_err_set_hint(
            err, VC_E_UNSETTLED, "the VM is paused on both sides: `vecycle resolve` settles it",
            "the migration is complete, but '%.80s' was lost before it confirmed "
            "that the VM runs",
            vc_link_peer(m->link));
    rc = f->type == VC_WIRE_WORD_DONE
             ? vc_wire_status_decode(f->payload, f->bytes, &done, err)
             : vc_err_set(err, VC_E_PROTOCOL, "%s came where WORD_DONE was expected",
                          vc_wire_type_name(f->type));
    vc_link_frame_free(f);
    if (rc)
        return rc;
    if (done.code)
        return vc_err_set_hint(err, VC_E_UNSETTLED, "`vecycle resolve` settles it",
                               "the destination could not continue the VM: %.140s", done.text);
    if (m->paused_ns)
        m->result->downtime_ms = (vc_now_ns() - m->paused_ns) / VC_NS_PER_MS;
    if (m->holding.vm && vc_handover_set(m->holding.vm, VC_HANDOVER_SETTLED, err))
        vc_log_err(m->o->log, VC_LOG_WARNING, "the handover is not recorded", err);
    return 0;
}

/* ---- confirm: checkpoints ---- */

static void commit(struct migration *m)
{
    struct vc_session_result *r = m->result;
    struct vc_source_status st;
    struct vc_txn *txn = vc_source_join(m->pipeline);
    struct vc_err err = VC_ERR_INIT;
    uint8_t root[VC_ROOT_BYTES];

    vc_source_status(m->pipeline, &st);
    if (txn) {
        struct vc_txn_note note = {
            .same_pages = st.pages_same,
            .data_pages = st.pages_data,
            .role = 1,
            .peer = m->result->peer,
        };

        r->committed = vc_txn_commit(txn, &note, root, &err) == 0;
        if (!r->committed)
            vc_log_err(m->o->log, VC_LOG_WARNING, "no checkpoint is kept here", &err);
    }
    vc_session_confirm(m->link, &m->inbox, &m->holding, &m->generation, r->committed ? root : NULL,
                       &r->confirmed, m->o->log);
}

/* Waits until QEMU has closed the stream behind `completed`. */
static void await_stream_end(struct migration *m)
{
    uint64_t deadline = vc_now_ns() + WORD_TIMEOUT_MS * VC_NS_PER_MS;
    struct vc_source_status st;

    for (;;) {
        note_status(m, &st);
        if (st.stream_ended || st.failed || vc_now_ns() > deadline)
            break;
        wait_for_something(m);
    }
    if (!st.stream_ended && !st.failed) {
        struct vc_err err = VC_ERR_INIT;

        vc_err_set(&err, VC_E_MIGRATION, "the source QEMU does not close its stream");
        vc_source_abort(m->pipeline, &err);
    }
}

/* ---- the whole ---- */

static int get_stream(struct migration *m, int *fd_out, struct vc_err *err)
{
    int rc;

    if (m->qmp) {
        rc = begin_handover(m, err);
        if (!rc)
            rc = set_up_qemu(m, err);
        return rc ? rc : vc_qmp_migrate_fd(m->qmp, false, fd_out, err);
    }
    *fd_out = vc_steal_fd(&m->stream_fd);
    return 0;
}

/* Tells the destination that it came to nothing. */
static void abandon(struct migration *m, const struct vc_err *why)
{
    if (m->link)
        vc_link_fail(m->link, why);
    if (m->holding.vm && m->qmp && m->pipeline) {
        struct vc_err err = VC_ERR_INIT;

        if (vc_handover_set(m->holding.vm, VC_HANDOVER_SETTLED, &err))
            vc_log_err(m->o->log, VC_LOG_WARNING, "the handover is not recorded", &err);
    }
}

static int run(struct migration *m, struct vc_err *err)
{
    uint64_t features;
    int fd, rc = 0;

    if (m->qmp)
        rc = check_qemu(m, err);
    if (!rc)
        rc = vc_link_hello(m->link, VC_WIRE_FEATURE_ANNOUNCE, &features, err);
    if (!rc)
        rc = negotiate(m, err);
    m->result->vm = m->vm;
    m->result->generation = m->generation;
    m->result->base = m->base;
    if (!rc)
        rc = get_stream(m, &fd, err);
    m->start_ns = m->rate_ns = vc_now_ns();
    if (!rc)
        rc = start_stream(m, fd, err);
    if (rc)
        return rc;
    rc = m->qmp ? perform_driven(m, err) : perform_proxy(m, err);
    if (rc)
        return rc;
    if (m->qmp)
        rc = give_word(m, err);
    m->result->total_ms = (vc_now_ns() - m->start_ns) / VC_NS_PER_MS;
    if (rc)
        return rc;
    m->result->phase = VC_PHASE_COMMIT;
    report(m);
    await_stream_end(m);
    commit(m);
    return 0;
}

int vc_session_source(const struct vc_source_session *o, struct vc_session_result *result,
                      struct vc_err *err)
{
    struct migration m = {
        .o = o,
        .result = result,
        .vm = o->vm,
        .inbox = {.fd = -1},
        .stream_fd = o->stream_fd,
    };
    vc_auto_close int qmp_fd = o->qmp_fd;
    uint64_t total_ms;
    int rc = vc_link_new(o->conn, VC_WIRE_SOURCE, 0, &m.link, err);

    *result = (struct vc_session_result){0};
    if (rc) {
        vc_cleanup_close(&m.stream_fd);
        return rc;
    }
    snprintf(result->peer, sizeof(result->peer), "%s", vc_link_peer(m.link));
    rc = vc_inbox_init(&m.inbox, err);
    if (qmp_fd >= 0 && !rc)
        rc = vc_qmp_from_fd(vc_steal_fd(&qmp_fd), o->qmp_name, &m.qmp, err);
    if (!rc)
        rc = run(&m, err);
    total_ms = result->total_ms;
    if (rc && rc != VC_E_UNSETTLED)
        abandon(&m, err);
    if (m.pipeline) {
        struct vc_source_status st;

        note_status(&m, &st);
        result->total_ms = total_ms ? total_ms : result->total_ms;
    }
    vc_source_free(m.pipeline);
    vc_cleanup_close(&m.stream_fd);
    if (rc == VC_E_SEAL)
        vc_holding_quarantine(&m.holding, o->log);
    if (m.qmp)
        restore_qemu(&m);
    vc_qmp_free(m.qmp);
    vc_link_free(m.link);
    vc_inbox_fini(&m.inbox);
    vc_holding_close(&m.holding);
    if (!rc) {
        result->phase = VC_PHASE_DONE;
        report(&m);
    }
    return rc;
}
