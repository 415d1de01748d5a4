/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "dest/dest.h"
#include "qmp/qmp.h"
#include "session/common.h"

/* The destination's side of a migration: docs/internals/phases.md. The VM arrives paused and is
 * continued on the source's word; without the word it stays paused, and `vecycle resolve` shows it.
 */

#define TICK_MS 200
/** Time for QEMU to close its end after SHUT, and the source's stream to end. */
#define END_TIMEOUT_MS 30000

struct arrival {
    const struct vc_dest_session *o;
    struct vc_session_result *result;
    struct vc_link *link;
    struct vc_inbox inbox;
    struct vc_holding holding;
    struct vc_dest *pipeline;
    struct vc_qmp *qmp; /* NULL: proxy */
    struct vc_wire_open open;
    char name[256];
    struct vc_wire_start start;
    uint64_t features;
    bool recorded; /* a handover was begun */
    bool word_done;
};

static bool is_plaintext(const struct arrival *a)
{
    return vc_link_security(a->link) == VC_WIRE_PLAINTEXT;
}

/* ---- begin: QEMU ---- */

static int check_qemu(struct arrival *a, struct vc_err *err)
{
    struct vc_id uuid;
    char state[32], want[VC_ID_TEXT_BYTES], have[VC_ID_TEXT_BYTES];
    int rc = vc_qmp_run_state(a->qmp, state, err);

    if (!rc && strcmp(state, "inmigrate") != 0)
        return vc_err_set_hint(err, VC_E_DEST_QEMU, "start it with -incoming defer",
                               "the destination QEMU '%s' is not waiting for a migration but '%s'",
                               a->name, state);
    if (!rc)
        rc = vc_qmp_uuid(a->qmp, &uuid, err);
    if (!rc && !vc_id_equal(&uuid, &a->open.vm)) {
        vc_id_format(&a->open.vm, want);
        vc_id_format(&uuid, have);
        return vc_err_set_hint(err, VC_E_DEST_QEMU, "start it with the same -uuid",
                               "the destination QEMU '%s' is VM %s and not %s", a->name, have,
                               want);
    }
    if (!rc)
        rc = vc_qmp_set_capability(a->qmp, "events", true, err);
    /* Not autostart: it is continued on the source's word (QEMU: qmp_stop() in inmigrate). */
    return rc ? rc : vc_qmp_simple(a->qmp, "stop", err);
}

static int find_qemu(struct arrival *a, struct vc_err *err)
{
    int fd, rc;

    if (a->open.name[0])
        snprintf(a->name, sizeof(a->name), "%s", a->open.name);
    else
        vc_id_format(&a->open.vm, a->name);
    if (a->open.mode == VC_WIRE_MODE_PROXY)
        return vc_target_exists(a->o->socket_dir, a->name, ".sock", err);
    fd = vc_target_connect(a->o->socket_dir, a->name, ".qmp", err);
    if (fd < 0)
        return fd;
    rc = vc_qmp_from_fd(fd, a->name, &a->qmp, err);
    if (!rc)
        rc = check_qemu(a, err);
    if (rc == VC_E_QMP) {
        err->code = VC_E_DEST_QEMU;
        rc = VC_E_DEST_QEMU;
    }
    return rc;
}

/* ---- prepare ---- */

static bool offered(const struct vc_wire_open *open, const struct vc_gen_info *info)
{
    for (unsigned i = 0; i < open->n_generations; i++)
        if (vc_id_equal(&open->generations[i].id, &info->id) &&
            !memcmp(open->generations[i].root, info->root, VC_WIRE_ROOT_BYTES))
            return true;
    return false;
}

/* What this host can put in: the rules of docs/formats/wire.md, ACCEPT. */
static int send_accept(struct arrival *a, struct vc_err *err)
{
    const struct vc_holding *h = &a->holding;
    struct vc_wire_accept m = {.max_batch_stream_bytes = VC_WIRE_MAX_BATCH_STREAM_BYTES};
    bool source_exposed = a->open.lineage.flags & VC_WIRE_LINEAGE_EXPOSED;
    bool source_has = a->open.has_lineage && source_exposed == is_plaintext(a);
    bool shared =
        h->has_lineage && (!source_has || vc_id_equal(&h->lineage.id, &a->open.lineage.id));
    int rc;

    if (shared && h->gen) {
        const struct vc_gen_info *info = vc_gen_info(h->gen);

        m.base = source_has && offered(&a->open, info)      ? VC_WIRE_BASE_PING_PONG
                 : (a->features & VC_WIRE_FEATURE_ANNOUNCE) ? VC_WIRE_BASE_ANNOUNCE
                                                            : VC_WIRE_BASE_NONE;
        m.generation = info->id;
    }
    if (h->has_lineage && !source_has) {
        m.has_lineage = true;
        m.lineage = (struct vc_wire_lineage){
            .id = h->lineage.id,
            .algo = h->lineage.algo,
            .flags = h->lineage.exposed ? VC_WIRE_LINEAGE_EXPOSED : 0,
        };
        memcpy(m.key, h->lineage.key, sizeof(m.key));
    }
    m.needs_key = source_has && !shared;
    rc = VC_SESSION_SEND(a->link, VC_WIRE_ACCEPT, vc_wire_accept_encode, &m, err);
    vc_wipe(&m, sizeof(m));
    return rc;
}

static int take_start(struct arrival *a, struct vc_err *err)
{
    struct vc_lineage l;

    l = (struct vc_lineage){
        .id = a->start.lineage.id,
        .algo = a->start.lineage.algo,
        .exposed = a->start.lineage.flags & VC_WIRE_LINEAGE_EXPOSED,
    };
    if (!vc_digest_algo_known(l.algo))
        return vc_err_set(err, VC_E_VERSION, "START: unknown digest algorithm %u", l.algo);
    if (l.exposed != is_plaintext(a))
        return vc_err_set(err, VC_E_PROTOCOL, "START: the key does not fit the connection");
    if (!a->start.has_key &&
        !(a->holding.has_lineage && vc_id_equal(&l.id, &a->holding.lineage.id)))
        return vc_err_set(err, VC_E_PROTOCOL, "START: a key is missing");
    memcpy(l.key, a->start.key, sizeof(l.key));
    vc_holding_adopt(&a->holding, &l);
    vc_wipe(&l, sizeof(l));
    vc_wipe(a->start.key, sizeof(a->start.key));
    if (a->start.base != VC_WIRE_BASE_NONE && !a->holding.gen)
        return vc_err_set(err, VC_E_PROTOCOL, "START: refers to a generation not held here");
    return 0;
}

static void begin_handover(struct arrival *a)
{
    struct vc_handover h = {
        .state = VC_HANDOVER_ARRIVING,
        .session = a->open.session,
        .since_unix = vc_wall_s(),
    };

    if (!a->qmp)
        return;
    snprintf(h.peer, sizeof(h.peer), "%s", vc_link_peer(a->link));
    snprintf(h.socket, sizeof(h.socket), "%s", a->name);
    a->recorded = vc_holding_record(&a->holding, &h);
}

/* ---- perform ---- */

static int connect_qemu(void *opaque, struct vc_err *err)
{
    struct arrival *a = opaque;
    int fd, rc;

    if (!a->qmp)
        return vc_target_connect(a->o->socket_dir, a->name, ".sock", err);
    rc = vc_qmp_migrate_fd(a->qmp, true, &fd, err);
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
        .gen = a->holding.gen,
        .log = a->o->log,
        .connect = connect_qemu,
        .on_frame = on_frame,
        .opaque = a,
    };
    struct vc_err txn_err = VC_ERR_INIT;
    int rc;

    if (a->holding.keeps &&
        vc_txn_begin(a->holding.vm, &a->start.generation, a->holding.gen, &d.txn, &txn_err))
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
        {.fd = a->o->cancel ? a->o->cancel->fd : -1, .events = POLLIN},
    };

    poll(fds, VC_ARRAY_LEN(fds), TICK_MS);
    vc_dest_clear(a->pipeline);
}

/* Continues the VM and says so; the answer to WORD. */
static int obey(struct arrival *a, const struct vc_link_frame *f, struct vc_err *err)
{
    struct vc_wire_word_msg word;
    struct vc_wire_status done = {0};
    struct vc_dest_status st;
    int rc = vc_wire_word_decode(f->payload, f->bytes, &word, err);

    if (rc)
        return rc;
    vc_dest_status(a->pipeline, &st);
    if (!vc_id_equal(&word.session, &a->open.session) || !a->qmp)
        return vc_err_set(err, VC_E_PROTOCOL, "WORD: about another session");
    if (word.word == VC_WIRE_WORD_ABANDON)
        return vc_err_set(err, VC_E_CANCELLED, "the source gave the migration up");
    if (!st.shut || st.shut_status)
        return vc_err_set(err, VC_E_PROTOCOL, "WORD: came before the VM had arrived");
    rc = word.word == VC_WIRE_WORD_CONTINUE ? vc_qmp_simple(a->qmp, "cont", err) : 0;
    if (rc) {
        done.code = (uint32_t)-rc;
        snprintf(done.text, sizeof(done.text), "%s", err->message);
    }
    if (VC_SESSION_SEND(a->link, VC_WIRE_WORD_DONE, vc_wire_status_encode, &done, err))
        vc_log(a->o->log, VC_LOG_WARNING, "the source did not hear that the VM runs here");
    if (!rc && a->recorded && vc_handover_set(a->holding.vm, VC_HANDOVER_SETTLED, err))
        vc_log_err(a->o->log, VC_LOG_WARNING, "the handover is not recorded", err);
    a->word_done = !rc;
    return rc;
}

/* Frames of the session while the stream flows. 0, or an error that ends the session. */
static int take_frames(struct arrival *a, struct vc_err *err)
{
    struct vc_link_frame *f;

    while (!a->word_done && vc_inbox_get(&a->inbox, 0, &f) == 0) {
        int rc = f->type == VC_WIRE_WORD ? obey(a, f, err)
                                         : vc_err_set(err, VC_E_PROTOCOL, "%s came too early",
                                                      vc_wire_type_name(f->type));

        vc_link_frame_free(f);
        if (rc)
            return rc;
    }
    return 0;
}

/* Until the VM has arrived and, if it is driven, runs on the source's word. */
static int perform(struct arrival *a, struct vc_err *err)
{
    for (;;) {
        struct vc_dest_status st;
        int rc = take_frames(a, err);

        if (rc)
            return rc;
        note_status(a, &st);
        if (a->word_done || (!a->qmp && st.shut && st.shut_status == 0 && st.source_eof))
            return 0;
        if (st.failed) {
            vc_dest_error(a->pipeline, err);
            if (st.shut && st.shut_status == 0 && a->qmp) /* the word may have been the last */
                return take_frames(a, err) || a->word_done
                           ? 0
                           : vc_err_set_hint(err, VC_E_UNSETTLED, "`vecycle resolve` settles it",
                                             "the VM has arrived and is paused, but the source's "
                                             "word did not come");
            return err->code;
        }
        if (a->o->cancel && vc_cancel_is_set(a->o->cancel))
            return vc_err_set(err, VC_E_CANCELLED, "the destination's vecycle was stopped");
        vc_link_check_peer(a->link);
        wait_for_something(a);
    }
}

/* ---- confirm ---- */

/* Whether all of the source's stream came through, so that the generation is whole. */
static bool await_stream_end(struct arrival *a)
{
    uint64_t deadline = vc_now_ns() + END_TIMEOUT_MS * VC_NS_PER_MS;
    struct vc_dest_status st;

    for (;;) {
        note_status(a, &st);
        if (st.source_eof || st.failed || vc_now_ns() > deadline)
            return st.source_eof;
        wait_for_something(a);
    }
}

static void commit(struct arrival *a)
{
    struct vc_session_result *r = a->result;
    bool whole = await_stream_end(a);
    struct vc_txn *txn = vc_dest_join(a->pipeline);
    struct vc_err err = VC_ERR_INIT;
    uint8_t root[VC_ROOT_BYTES];

    if (txn && whole) {
        struct vc_txn_note note = {
            .same_pages = r->pages_same,
            .data_pages = r->pages_data,
            .role = 2,
            .peer = r->peer,
        };

        r->committed = vc_txn_commit(txn, &note, root, &err) == 0;
        if (!r->committed)
            vc_log_err(a->o->log, VC_LOG_WARNING, "no checkpoint is kept here", &err);
    } else {
        vc_txn_abort(txn);
    }
    vc_session_confirm(a->link, &a->inbox, &a->holding, &a->start.generation,
                       r->committed ? root : NULL, &r->confirmed, a->o->log);
}

/* ---- mode 3: a word that was lost ---- */

static int repeat_word(struct arrival *a, struct vc_err *err)
{
    vc_auto_frame struct vc_link_frame *f = NULL;
    struct vc_wire_status done = {0};
    struct vc_wire_word_msg word;
    struct vc_handover h;
    char state[32];
    int fd, rc = vc_session_expect(a->link, VC_WIRE_WORD, &f, err);

    if (!rc)
        rc = vc_wire_word_decode(f->payload, f->bytes, &word, err);
    if (!rc && !a->o->store)
        rc = vc_err_set(err, VC_E_NO_SUCH_VM, "this host keeps no records");
    if (!rc)
        rc = vc_vm_open(a->o->store, &a->open.vm, VC_VM_WRITE, &a->holding.vm, err);
    if (!rc)
        rc = vc_handover_get(a->holding.vm, &h, err);
    if (rc == VC_NOT_FOUND ||
        (!rc && (h.state == VC_HANDOVER_NONE || !vc_id_equal(&h.session, &word.session))))
        rc = vc_err_set(err, VC_E_NO_SUCH_VM, "this host knows nothing of that migration");
    if (rc)
        return rc;
    fd = vc_target_connect(a->o->socket_dir, h.socket, ".qmp", err);
    rc = fd < 0 ? fd : vc_qmp_from_fd(fd, h.socket, &a->qmp, err);
    if (!rc)
        rc = vc_qmp_run_state(a->qmp, state, err);
    if (!rc && strcmp(state, "running") != 0) {
        rc = !strcmp(state, "paused") || !strcmp(state, "postmigrate")
                 ? vc_qmp_simple(a->qmp, "cont", err)
                 : vc_err_set(err, VC_E_DEST_QEMU, "the VM is in state '%s' there", state);
    }
    if (rc)
        return rc;
    rc = vc_handover_begin(a->holding.vm,
                           &(struct vc_handover){
                               .state = VC_HANDOVER_SETTLED,
                               .session = h.session,
                               .since_unix = vc_wall_s(),
                           },
                           err);
    if (rc)
        vc_log_err(a->o->log, VC_LOG_WARNING, "the handover is not recorded", err);
    rc = VC_SESSION_SEND(a->link, VC_WIRE_WORD_DONE, vc_wire_status_encode, &done, err);
    vc_link_finish(a->link, 5000);
    return rc;
}

/* ---- the whole ---- */

static int receive_open(struct arrival *a, struct vc_err *err)
{
    vc_auto_frame struct vc_link_frame *f = NULL;
    int rc = vc_link_hello(a->link, VC_WIRE_FEATURE_ANNOUNCE, &a->features, err);

    if (!rc)
        rc = vc_session_expect(a->link, VC_WIRE_OPEN, &f, err);
    if (!rc)
        rc = vc_wire_open_decode(f->payload, f->bytes, &a->open, err);
    a->result->vm = a->open.vm;
    return rc;
}

static int prepare(struct arrival *a, struct vc_err *err)
{
    vc_auto_frame struct vc_link_frame *f = NULL;
    int rc = find_qemu(a, err);

    if (!rc)
        rc =
            vc_holding_open(&a->holding, a->o->store, &a->open.vm, is_plaintext(a), a->o->log, err);
    if (!rc)
        rc = send_accept(a, err);
    if (!rc)
        rc = vc_session_expect(a->link, VC_WIRE_START, &f, err);
    if (!rc)
        rc = vc_wire_start_decode(f->payload, f->bytes, &a->start, err);
    if (!rc)
        rc = take_start(a, err);
    if (rc)
        return rc;
    begin_handover(a);
    a->result->base = a->start.base;
    a->result->generation = a->start.generation;
    vc_link_set_phase(a->link, VC_WIRE_PHASE_STREAM);
    return start_stream(a, err);
}

static int run(struct arrival *a, struct vc_err *err)
{
    int rc = receive_open(a, err);

    if (!rc && a->open.mode == VC_WIRE_MODE_WORD)
        return repeat_word(a, err);
    if (!rc)
        rc = prepare(a, err);
    if (!rc)
        rc = perform(a, err);
    if (rc)
        return rc;
    a->result->phase = VC_PHASE_COMMIT;
    commit(a);
    a->result->phase = VC_PHASE_DONE;
    return 0;
}

/* The VM did not arrive: the record says that nothing is open. */
static void settle(struct arrival *a)
{
    struct vc_err err = VC_ERR_INIT;

    if (a->recorded && vc_handover_set(a->holding.vm, VC_HANDOVER_SETTLED, &err))
        vc_log_err(a->o->log, VC_LOG_WARNING, "the handover is not recorded", &err);
}

int vc_session_dest(const struct vc_dest_session *o, struct vc_session_result *result,
                    struct vc_err *err)
{
    struct arrival a = {.o = o, .result = result, .inbox = {.fd = -1}};
    int rc = vc_link_new(o->conn, VC_WIRE_DESTINATION, 0, &a.link, err);

    *result = (struct vc_session_result){0};
    if (rc)
        return rc;
    snprintf(result->peer, sizeof(result->peer), "%s", vc_link_peer(a.link));
    rc = vc_inbox_init(&a.inbox, err);
    if (!rc)
        rc = run(&a, err);
    if (rc && rc != VC_E_UNSETTLED) {
        vc_link_fail(a.link, err);
        settle(&a);
    }
    vc_dest_free(a.pipeline);
    if (rc == VC_E_SEAL)
        vc_holding_quarantine(&a.holding);
    vc_qmp_free(a.qmp);
    vc_link_free(a.link);
    vc_inbox_fini(&a.inbox);
    vc_holding_close(&a.holding);
    vc_wipe(&a.start, sizeof(a.start));
    return rc;
}
