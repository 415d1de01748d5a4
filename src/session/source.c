/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/thread.h"
#include "qmp/qmp.h"
#include "session/capabilities.h"
#include "session/disks.h"
#include "session/preempt.h"
#include "session/whereabouts.h"

/* The source's side of a migration: docs/internals/phases.md has the table of phases and of what
 * every abort does. In short: until QEMU says `completed` any trouble lets the guest go on here;
 * from then on it belongs to the destination, which runs it on our word alone. */

/** What QEMU has when nobody set anything (QEMU: migration/options.c). */
#define DEFAULT_LIMIT_MS 300
/** "Unlimited" for max-bandwidth: 1 TiB/s. */
#define UNLIMITED_BANDWIDTH (1ull << 40)
/* QEMU's migration thread, and the one that reads from it. */
#define BUSY_THREADS 2

static bool is_plaintext(const struct vc_migration *m)
{
    return vc_link_security(m->link) == VC_WIRE_PLAINTEXT;
}

/* ---- begin: QEMU ---- */

/* The rest of a postcopy: the VM runs, or will, at the destination. */
static int check_paused(struct vc_migration *m, struct vc_err *err)
{
    struct vc_qmp_migration now;
    int rc = vc_qmp_migration(m->qmp, &now, err);

    if (!rc && !strncmp(now.status, "postcopy-recover", 16))
        return vc_err_set_hint(
            err, VC_E_QEMU_STATE,
            "wait for it; QEMU before 8.2 hangs in one whose link fails at once, "
            "and then the VM is lost",
            "a recovery has begun already (it is '%s')", now.status);
    if (!rc && !strcmp(now.status, "completed"))
        return vc_err_set(err, VC_E_QEMU_STATE,
                          "there is nothing to recover: the VM's migration has completed");
    if (!rc && strcmp(now.status, "postcopy-paused") != 0)
        return vc_err_set_hint(err, VC_E_QEMU_STATE, "migrate without --recover",
                               "there is no interrupted postcopy to recover (it is '%s')",
                               now.status);
    return rc;
}

static int check_qemu(struct vc_migration *m, struct vc_err *err)
{
    struct vc_qmp_migration now;
    char state[VC_RUN_STATE_BYTES];
    int rc = vc_qmp_uuid(m->qmp, &m->vm, err);

    if (!rc)
        vc_qmp_identify(m->qmp, &m->vm);
    if (!rc && vc_id_is_nil(&m->vm))
        return vc_err_set_hint(err, VC_E_QEMU_STATE, "start QEMU with -uuid $(uuidgen)",
                               "the VM has no UUID to know it by");
    if (!rc)
        m->neighbour =
            vc_find_other_qemu(vc_qmp_process(m->qmp), &m->vm, vc_qmp_process(m->qmp)->pid);
    if (!rc && m->o->recover)
        return check_paused(m, err);
    if (!rc)
        rc = vc_qmp_migration(m->qmp, &now, err);
    if (!rc && vc_qmp_status_is_switched(now.status))
        return vc_err_set_hint(err, VC_E_QEMU_STATE, "`vecycle migrate --recover` carries the rest",
                               "the VM has gone already, by postcopy (it is '%s')", now.status);
    if (!rc && !vc_qmp_status_is_idle(now.status))
        return vc_err_set(err, VC_E_QEMU_STATE, "the VM is being migrated already (it is '%s')",
                          now.status);
    if (!rc)
        rc = vc_qmp_run_state(m->qmp, state, err);
    if (!rc && !vc_run_state_may_migrate(state))
        return vc_err_set_hint(err, VC_E_QEMU_STATE, "see query-status in QEMU's documentation",
                               "a VM in state '%s' is not migrated", state);
    if (!rc)
        snprintf(m->state, sizeof(m->state), "%s", state);
    return rc;
}

/* Later this process reaches QEMU by a path that somebody else has named, with rights of its own.
 * It must find the QEMU that this one is, and no other that has the VM's UUID. */
static int check_known(const struct vc_migration *m, struct vc_err *err)
{
    if (!m->o->must_be_known || vc_process_is_known(vc_qmp_process(m->qmp)))
        return 0;
    return vc_err_set_hint(
        err, VC_E_REFUSED,
        "connect to QEMU's own socket in the agent's PID namespace; or migrate as "
        "root, or with --control none",
        "the agent cannot tell which process the QEMU at '%.100s' is, and works "
        "for another user",
        m->o->qmp_name);
}

/* The destination has the same as OPEN says. */
static struct vc_session_wants wants_of(const struct vc_migration *m)
{
    return (struct vc_session_wants){
        .source = true,
        .postcopy = m->o->postcopy,
        .preempt = m->o->postcopy_preempt,
        .auto_converge = m->o->auto_converge,
        .plaintext = is_plaintext(m),
    };
}

static int check_settings(struct vc_migration *m, struct vc_err *err)
{
    struct vc_session_wants wants = wants_of(m);

    return m->qmp && !m->o->recover ? vc_session_check_settings(m->qmp, &wants, err) : 0;
}

static int set_up_qemu(struct vc_migration *m, struct vc_err *err)
{
    struct vc_session_wants wants = wants_of(m);
    uint64_t bandwidth = m->o->max_bandwidth ? m->o->max_bandwidth : UNLIMITED_BANDWIDTH;
    int rc;

    if (m->o->recover) /* the rest is as the interrupted session left it */
        return vc_session_set_stream(&m->settings, &wants, err);
    rc = vc_session_set_up(&m->settings, &wants, err);
    if (!rc)
        rc = vc_qmp_get_parameter(m->qmp, "downtime-limit", DEFAULT_LIMIT_MS, &m->old_limit, err);
    m->limit_ms = VC_CAUTIOUS_LIMIT_MS;
    if (!rc)
        rc = vc_settings_number(&m->settings, "max-bandwidth", bandwidth, err);
    if (rc >= 0)
        rc = vc_settings_number(&m->settings, "downtime-limit", m->limit_ms, err);
    return rc < 0 ? rc : 0;
}

/* ---- prepare: the other host ---- */

/* What a session that was killed has left in QEMU is not the user's. In a recovery the record of
 * that session is kept up to date, if there is anything to be settled by us. */
static int take_over(struct vc_migration *m, const struct vc_handover *h, struct vc_err *err)
{
    bool begun = false;
    int rc = 0;

    vc_settings_take_over(&m->settings, h);
    if (!m->o->recover)
        vc_settings_put_back(&m->settings);
    else if (m->owes_word || h->n_settings)
        rc = vc_holding_record(&m->holding, h, &m->settings, &begun, err);
    m->recorded = m->owes_word && begun;
    return rc;
}

/* Whether the record is of a migration away from this QEMU. */
static bool is_of_qemu(const struct vc_migration *m, const struct vc_handover *h)
{
    return h->state != VC_HANDOVER_NONE && vc_handover_has_path(h) &&
           vc_process_may_equal(vc_qmp_process(m->qmp), &h->qemu);
}

static int refuse_unsettled(struct vc_migration *m, struct vc_err *err)
{
    struct vc_err trouble = VC_ERR_INIT;
    struct vc_handover h;
    int rc;

    if (!m->qmp || !m->holding.vm)
        return 0;
    rc = vc_handover_get(m->holding.vm, &h, &trouble);
    if (rc) {
        vc_log_err(m->o->log, VC_LOG_WARNING, "an old record is overwritten", &trouble);
        return 0;
    }
    if (is_of_qemu(m, &h))
        m->interrupted = h.session;
    /* LEFT comes before the word; an agent that died may not have come so far. */
    m->owes_word = m->o->recover && (h.state == VC_HANDOVER_LEFT || h.state == VC_HANDOVER_LEAVING);
    if (m->owes_word && h.suspend)
        snprintf(m->state, sizeof(m->state), "paused");
    rc = take_over(m, &h, err);
    if (rc)
        return rc;
    if ((h.state == VC_HANDOVER_ARRIVING ||
         (h.state == VC_HANDOVER_ABOUT_TO_RUN && !vc_run_state_goes_on(m->state))) &&
        !m->o->recover && vc_process_look(&h.qemu) != VC_PROCESS_GONE &&
        vc_process_may_equal(&h.qemu, vc_qmp_process(m->qmp)) && strcmp(m->state, "running") != 0)
        return vc_err_set_hint(err, VC_E_UNSETTLED, "see `vecycle resolve`",
                               "the VM has arrived from '%.100s', and whether it is this host's is "
                               "not known",
                               h.peer);
    if (h.state == VC_HANDOVER_VOID && vc_process_equal(&h.qemu, vc_qmp_process(m->qmp)) &&
        !vc_run_state_shows_run(m->state))
        return vc_err_set_hint(err, VC_E_UNSETTLED,
                               "migrate the VM from there; if it has come here since by other "
                               "means, continue it first",
                               "this is a copy of the VM that never ran: the VM stayed at '%.100s'",
                               h.peer);
    if (!m->o->recover &&
        (h.state == VC_HANDOVER_LEFT || (h.state == VC_HANDOVER_KEPT && h.told) ||
         (h.state == VC_HANDOVER_LEAVING && h.has_counts))) /* which stand for LEFT */
        return vc_err_set_hint(err, VC_E_UNSETTLED, "see `vecycle resolve`",
                               "an earlier migration of the VM to '%.100s' is not settled", h.peer);
    return 0;
}

static enum vc_wire_mode mode_of(const struct vc_migration *m)
{
    if (!m->qmp)
        return VC_WIRE_MODE_PROXY;
    if (m->o->recover)
        return VC_WIRE_MODE_RECOVER;
    if (m->o->postcopy_preempt)
        return VC_WIRE_MODE_PREEMPT;
    return m->o->postcopy ? VC_WIRE_MODE_POSTCOPY : VC_WIRE_MODE_DRIVEN;
}

static int send_open(struct vc_migration *m, struct vc_err *err)
{
    struct vc_wire_open open = {
        .session = m->session,
        .vm = m->vm,
        .mode = mode_of(m),
        .window_bytes = VC_SOURCE_WINDOW_BYTES,
        .interrupted = m->interrupted,
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
static int send_start(struct vc_migration *m, const struct vc_wire_accept *a, struct vc_err *err)
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
    if (rc)
        return rc;
    vc_holding_adopt(h, &l);
    vc_holding_share_called(h, m->o->conn, m->o->is_listed, m->o->policy);
    if (m->base == VC_WIRE_BASE_PING_PONG &&
        (!h->gen || !vc_id_equal(&vc_gen_info(h->gen)->id, &a->generation))) {
        vc_wipe(&l, sizeof(l));
        return vc_err_set(err, VC_E_PROTOCOL, "ACCEPT: names a generation that was not offered");
    }
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

/* Before the destination is asked: the QEMU that waits there takes the disks itself, as the VM has
 * not, when it is told to go on waiting after an attempt that failed (`cont`, settings.c). */
static int activate_disks(struct vc_migration *m, struct vc_err *err)
{
    bool stands = m->qmp && !m->o->recover && !vc_run_state_goes_on(m->state);

    return stands ? vc_disks_activate(m->qmp, err) : 0;
}

static int negotiate(struct vc_migration *m, struct vc_err *err)
{
    vc_auto_frame struct vc_link_frame *f = NULL;
    struct vc_wire_accept a;
    int rc;

    if (!vc_id_random(&m->session) || !vc_id_random(&m->generation))
        return vc_err_set(err, VC_E_FAILED, "the kernel gives no random numbers");
    rc = vc_holding_open(&m->holding, m->o->store, &m->vm, is_plaintext(m), m->o->recover,
                         m->o->log, err);
    if (!rc)
        rc = refuse_unsettled(m, err);
    if (!rc)
        rc = activate_disks(m, err);
    if (!rc)
        rc = send_open(m, err);
    if (!rc)
        rc = vc_session_expect(m->link, VC_WIRE_ACCEPT, &f, err);
    if (!rc)
        rc = vc_wire_accept_decode(f->payload, f->bytes, &a, err);
    if (!rc)
        rc = send_start(m, &a, err);
    vc_wipe(&a, sizeof(a));
    if (!rc)
        vc_link_set_phase(m->link, VC_WIRE_PHASE_STREAM);
    return rc;
}

/* ---- perform ---- */

static int start_stream(struct vc_migration *m, int qemu_fd, struct vc_err *err)
{
    struct vc_source_options so = {
        .qemu_fd = qemu_fd,
        .listen_fd = m->listen_fd > 0 ? vc_steal_fd(&m->listen_fd) : 0,
        .channels = m->features & VC_WIRE_FEATURE_CHANNELS,
        .delta = m->features & VC_WIRE_FEATURE_DELTA,
        .moved = m->features & VC_WIRE_FEATURE_MOVED,
        .recent = m->features & VC_WIRE_FEATURE_RECENT,
        .shifted = m->features & VC_WIRE_FEATURE_SHIFTED,
        .reads = m->features & VC_WIRE_FEATURE_READS,
        .keeps = m->features & VC_WIRE_FEATURE_KEEPS,
        .workers = vc_idle_processors(BUSY_THREADS),
        .link = m->link,
        .session = m->session,
        .lineage = m->holding.lineage,
        .base = m->base,
        .shared_gen = m->base == VC_WIRE_BASE_PING_PONG ? m->holding.gen : NULL,
        .local_gen = vc_holding_best(&m->holding, 0),
        .needs_return_path = true,
        .holds_success = m->recorded && !m->o->recover,
        .log = m->o->log,
        .on_frame = vc_inbox_put,
        .opaque = &m->inbox,
    };
    uint64_t limit_ms = m->qmp ? m->limit_ms : m->o->downtime_limit_ms;
    struct vc_err txn_err = VC_ERR_INIT;
    int rc;

    so.pace_limit_ns = (limit_ms ? limit_ms : DEFAULT_LIMIT_MS) * VC_NS_PER_MS;
    if (m->holding.keeps && !m->o->recover &&
        vc_txn_begin(m->holding.vm, &m->generation, so.local_gen, &so.txn, &txn_err))
        vc_log_err(m->o->log, VC_LOG_WARNING, "no checkpoint will be kept here", &txn_err);
    rc = vc_source_start(&so, &m->pipeline, err);
    vc_wipe(&so.lineage, sizeof(so.lineage));
    return rc;
}

static int begin_handover(struct vc_migration *m, struct vc_err *err)
{
    struct vc_handover h = {
        .state = VC_HANDOVER_LEAVING,
        .session = m->session,
        .since_unix = vc_wall_s(),
        .suspend = m->o->suspend,
    };

    if (m->o->recover) /* the record of the interrupted session stands */
        return 0;
    snprintf(h.peer, sizeof(h.peer), "%s", m->o->to);
    snprintf(h.socket, sizeof(h.socket), "%s", m->o->qmp_name);
    h.qemu = *vc_qmp_process(m->qmp);
    snprintf(h.tls_hostname, sizeof(h.tls_hostname), "%s",
             m->o->tls_hostname ? m->o->tls_hostname : "");
    return vc_holding_record(&m->holding, &h, &m->settings, &m->recorded, err);
}

/* ---- the whole ---- */

/* Waits until QEMU has closed the stream behind `completed`. */
static void await_stream_end(struct vc_migration *m)
{
    uint64_t deadline =
        vc_now_ns() + VC_ANSWER_TIMES * (uint64_t)vc_link_dead_peer_ms(m->link) * VC_NS_PER_MS;
    struct vc_source_status st;

    for (;;) {
        vc_migration_note(m, &st);
        if (st.stream_ended || st.failed || vc_now_ns() > deadline)
            break;
        vc_migration_wait(m);
    }
    if (!st.stream_ended && !st.failed) {
        struct vc_err err = VC_ERR_INIT;

        vc_err_set(&err, VC_E_MIGRATION, "the source QEMU does not close its stream");
        vc_source_abort(m->pipeline, &err);
    }
}

static int get_stream(struct vc_migration *m, int *fd_out, struct vc_err *err)
{
    bool preempt;
    int rc;

    if (m->qmp) {
        rc = begin_handover(m, err);
        if (!rc)
            rc = set_up_qemu(m, err);
        if (!rc)
            rc = vc_preempt_wanted(m, &preempt, err);
        if (!rc)
            rc = vc_migration_take_events(m, err);
        if (rc)
            return rc;
        m->has_begun = m->is_over = m->says_completed = false; /* of others' before this one */
        if (preempt)
            return vc_preempt_migrate(m, fd_out, err);
        vc_cleanup_close(&m->listen_fd);
        m->listen_fd = -1;
        return vc_qmp_migrate_fd(m->qmp, m->o->recover ? VC_QMP_RESUME : VC_QMP_OUTGOING, fd_out,
                                 err);
    }
    *fd_out = vc_steal_fd(&m->stream_fd);
    return 0;
}

/* QEMU 7.2 leaves the guest paused where it fails to start postcopy: then it is continued. Returns
 * whether the guest was seen to go on. */
static bool see_that_it_runs(struct vc_migration *m)
{
    struct vc_qmp_migration now;
    struct vc_err err = VC_ERR_INIT;
    char state[VC_RUN_STATE_BYTES];

    if (m->word_given || vc_qmp_run_state(m->qmp, state, &err))
        return false;
    if (!strcmp(state, "running"))
        return true;
    if (m->completed || !vc_run_state_goes_on(m->state) || strcmp(state, "postmigrate") != 0 ||
        vc_qmp_migration(m->qmp, &now, &err) ||
        (strcmp(now.status, "failed") != 0 && strcmp(now.status, "cancelled") != 0))
        return false;
    if (vc_qmp_simple(m->qmp, "cont", &err)) {
        vc_log_err(m->o->log, VC_LOG_ERROR, "QEMU has left the VM paused, and it stays so", &err);
        return false;
    }
    vc_log(m->o->log, VC_LOG_WARNING, "QEMU had left the VM paused: continued");
    return true;
}

/* It did not come to a good end. Where that is certain, the VM is this host's: the record says so,
 * and the destination is told; else the record stays as it is, for `vecycle resolve` and the agent.
 */
static int wind_up(struct vc_migration *m, int rc, struct vc_err *err)
{
    struct vc_err why = *err;
    bool keeps;

    if (rc == VC_E_POSTCOPY || m->o->recover) { /* the record says already whose the VM is */
        vc_link_fail(m->link, err);
        return rc;
    }
    if (rc != VC_E_UNSETTLED && m->unknown)
        rc = vc_err_set_hint(err, VC_E_UNSETTLED, "see `vecycle resolve`",
                             "whether the migration completed is not known: %.140s", why.message);
    /* Once it has completed, the record says all, but for who continued the VM here since: also
     * while the answer was waited for. */
    keeps = rc == VC_E_UNSETTLED ? m->told && vc_migration_was_continued(m)
                                 : !m->completed || m->continued;
    if (m->qmp && keeps) {
        if (m->pipeline)
            vc_migration_keep_vm(m, see_that_it_runs(m));
        else
            vc_migration_record(m, VC_HANDOVER_SETTLED); /* nothing was sent */
    }
    if (m->link)
        vc_link_fail(m->link, err);
    return rc;
}

/* HELLO to START: the two sides come to terms, within a time and unless cancelled. */
static int come_to_terms(struct vc_migration *m, struct vc_err *err)
{
    struct vc_guard guard;
    int rc = vc_guard_start(&guard, m->link, m->o->cancel,
                            VC_OPEN_TIMES * vc_dead_peer_ms(m->o->dead_peer_ms), err);

    if (rc)
        return rc;
    rc = vc_link_hello(m->link, VC_SESSION_FEATURES, &m->features, err);
    if (!rc && m->o->postcopy_preempt && !(m->features & VC_WIRE_FEATURE_CHANNELS))
        rc = vc_err_set_hint(err, VC_E_VERSION,
                             "install a newer vecycle there, or leave --postcopy-preempt out",
                             "the other host's vecycle carries no preempt connection");
    if (!rc)
        rc = check_settings(m, err);
    if (!rc)
        rc = negotiate(m, err);
    return vc_guard_end(&guard, rc, err);
}

/* What passed is kept here too: it spares the next attempt writing it again. It is never offered to
 * the other host, which may have seen less of it. */
static void keep(struct vc_migration *m, const struct vc_err *why)
{
    struct vc_txn_note note;

    vc_source_abort(m->pipeline, why);
    vc_migration_describe(m, &note);
    vc_session_keep(vc_source_join(m->pipeline), &note, m->o->log);
}

static int run(struct vc_migration *m, struct vc_err *err)
{
    int fd, rc = 0;

    if (m->qmp)
        rc = check_qemu(m, err);
    if (!rc && m->qmp)
        rc = check_known(m, err);
    if (!rc && m->qmp)
        vc_settings_init(&m->settings, m->qmp, &m->vm, m->o->log);
    if (!rc)
        rc = come_to_terms(m, err);
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
    rc = m->qmp ? vc_migration_drive(m, err) : vc_migration_follow(m, err);
    if (rc)
        return rc;
    if (m->qmp && !m->word_given)
        rc = vc_migration_give_last_word(m, err);
    m->result->total_ms = (vc_now_ns() - m->start_ns) / VC_NS_PER_MS;
    if (rc)
        return rc;
    m->result->phase = VC_PHASE_COMMIT;
    vc_migration_report(m);
    await_stream_end(m);
    vc_migration_commit(m);
    return 0;
}

int vc_session_source(const struct vc_source_session *o, struct vc_session_result *result,
                      struct vc_err *err)
{
    struct vc_migration m = {
        .o = o,
        .result = result,
        .vm = o->vm,
        .state = "running",
        .inbox = {.fd = -1},
        .stream_fd = o->stream_fd,
        .listen_fd = o->listen_fd > 0 ? o->listen_fd : -1,
    };
    vc_auto_close int qmp_fd = o->qmp_fd;
    uint64_t total_ms;
    int rc = vc_link_new(o->conn, VC_WIRE_SOURCE, o->dead_peer_ms, &m.link, err);

    *result = (struct vc_session_result){0};
    if (rc) {
        vc_cleanup_close(&m.stream_fd);
        vc_cleanup_close(&m.listen_fd);
        return rc;
    }
    snprintf(result->peer, sizeof(result->peer), "%s", vc_link_peer(m.link));
    rc = vc_inbox_init(&m.inbox, err);
    if (qmp_fd >= 0 && !rc)
        rc = vc_qmp_from_fd(vc_steal_fd(&qmp_fd), o->qmp_name, &m.qmp, err);
    if (!rc)
        rc = run(&m, err);
    total_ms = result->total_ms;
    if (rc)
        rc = wind_up(&m, rc, err);
    if (m.pipeline) {
        struct vc_source_status st;

        vc_migration_note(&m, &st);
        if (st.store_stuck)
            m.settings.vm = NULL;
        result->total_ms = total_ms ? total_ms : result->total_ms;
        if (rc && rc != VC_E_SEAL)
            keep(&m, err);
    }
    vc_source_free(vc_steal_ptr(m.pipeline));
    vc_migration_record_owed(&m);
    vc_cleanup_close(&m.stream_fd);
    vc_cleanup_close(&m.listen_fd);
    if (rc == VC_E_SEAL)
        vc_holding_quarantine(&m.holding);
    vc_settings_put_back(&m.settings);
    vc_qmp_free(m.qmp);
    vc_link_free(m.link);
    vc_inbox_fini(&m.inbox);
    vc_holding_close(&m.holding);
    if (!rc) {
        result->phase = VC_PHASE_DONE;
        vc_migration_report(&m);
    }
    return rc;
}
