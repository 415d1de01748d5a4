/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A source's session, in any mode, against a destination and a QEMU that say anything: it ends;
 * what QEMU is told on the return path is what the destination sent, from the beginning on; once
 * the VM was said to be the destination's, it is not continued here unless that said that it never
 * ran, and is not taken back.
 *
 * Input: a byte of options; the length (2 bytes) of QEMU's stream and that; then what the
 * destination says (peer.h). A payload of no length is one that fits: HELLO, ACCEPT, ACK of the
 * last batch seen on its channel, REPAIR and RESEND of it, RETURN with SHUT, ANNOUNCE_BLOCKS,
 * COMMITTED, WORD_DONE; so is a byte for WORD_DONE, which is the code. */

#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fdio.h"
#include "peer.h"
#include "session/session.h"

#define OPT_STORE 1u
#define OPT_RAW 2u       /* the destination's bytes as they are */
#define OPT_BASE_SHIFT 2 /* vc_wire_base of the default ACCEPT; settle: which record there is */
#define OPT_MODE_SHIFT 4 /* enum mode */
#define OPT_ENDED 128u   /* whoever listens for QMP is known to have ended; settle: nobody does */

enum mode {
    PROXY = 0,
    PROXY_SIDE = 1, /* QEMU may open a second connection */
    DRIVEN = 2,
    POSTCOPY = 3,
    PREEMPT = 4,
    RECOVER = 5, /* with a second connection if the base is not 0 */
    SETTLE = 6,
    SUSPEND = 7, /* driven, with the rarer options */
};

struct state {
    struct fuzz_peer peer;
    struct fuzz_qemu qemu;
    struct vc_cancel cancel;
    unsigned options;
    enum mode mode;
    uint64_t seq[2], position[2];        /* of the last batch seen on a channel */
    uint8_t sent[2 * FUZZ_SOCKET_BYTES]; /* on the return path */
    size_t n_sent;
    bool acks;                /* each batch is acknowledged */
    bool gave_word;           /* the VM is the destination's */
    atomic_bool never_ran;    /* the destination said that it is not, or may have */
    atomic_bool told_migrate; /* QEMU was */
};

static struct vc_store *store;
static struct fuzz_saved *saved;
static int qmp_listeners[2]; /* of a process of which nothing is known, and of one that ended */
static char qmp_paths[2][256], stream_path[256];

struct session {
    pthread_t thread;
    struct vc_source_session o;
    enum mode mode;
    struct vc_err err; /* what it came to */
};

/* What is left of a migration, in two steps; the record says afterwards that nothing is. */
static void settle(struct session *s)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_handover h;
    struct vc_vm *vm;
    struct vc_settle_options o = {.store = store,
                                  .vm = &fuzz_vm,
                                  .socket_dir = fuzz_dir(),
                                  .cancel = s->o.cancel,
                                  .log = &fuzz_log};
    int rc = vc_session_look_back(&o, &h, NULL, &err);

    fuzz_check_error(rc, &err);
    rc = vc_session_repeat_word(&o, &h.session, s->o.conn, &err);
    fuzz_check_error(rc, &err);
    if (getenv("FUZZ_VERBOSE"))
        fprintf(stderr, "code %d: %s\n", rc, err.message);
    if (rc)
        return;
    FUZZ_ASSERT(vc_vm_open(store, &fuzz_vm, VC_VM_READ, &vm, &err) == 0);
    FUZZ_ASSERT(vc_handover_get(vm, &h, &err) == 0 && h.state == VC_HANDOVER_SETTLED);
    vc_vm_close(vm);
}

static void *run_session(void *arg)
{
    struct session *s = arg;
    struct vc_session_result result;
    struct vc_err err = VC_ERR_INIT;
    int rc;

    if (s->mode == SETTLE) {
        settle(s);
        return NULL;
    }
    rc = vc_session_source(&s->o, &result, &err);
    s->err = err;

    fuzz_check_error(rc, &err);
    if (getenv("FUZZ_VERBOSE"))
        fprintf(stderr, "phase %u, code %d: %s\n", result.phase, rc, err.message);
    FUZZ_ASSERT(rc <= 0 && result.phase <= VC_PHASE_DONE);
    FUZZ_ASSERT(!rc == (result.phase == VC_PHASE_DONE));
    return NULL;
}

static void send_ack(struct state *st, unsigned channel)
{
    struct vc_wire_ack ack = {st->seq[channel], st->position[channel]};
    uint8_t buf[16];
    struct vc_writer w = vc_writer(buf, sizeof(buf));

    vc_wire_ack_encode(&w, &ack);
    fuzz_send(&st->peer, (uint8_t)(VC_WIRE_ACK | (channel ? FUZZ_CHANNEL : 0)), buf, w.len);
}

static void on_frame(void *opaque, uint8_t type, const uint8_t *p, size_t n)
{
    struct state *st = opaque;
    unsigned channel = type & FUZZ_CHANNEL ? 1 : 0;

    if (type == VC_WIRE_WORD && n) {
        bool abandons = p[0] == VC_WIRE_WORD_ABANDON || p[0] == VC_WIRE_WORD_DISMISS;

        FUZZ_ASSERT(!abandons || !st->gave_word || atomic_load(&st->never_ran));
        if (!abandons) {
            FUZZ_ASSERT(st->mode == SETTLE || atomic_load(&st->told_migrate));
            st->gave_word = true;
        }
    }
    if ((type & 0x7f) != VC_WIRE_BATCH || n < VC_WIRE_BATCH_HEADER_BYTES)
        return;
    st->seq[channel] = vc_load_le(p, 8);
    st->position[channel] = vc_load_le(p + 8, 8) + vc_load_le(p + 16, 4);
    if (st->acks)
        send_ack(st, channel);
}

static void on_command(void *opaque, const char *name)
{
    struct state *st = opaque;

    if (!strcmp(name, "migrate"))
        atomic_store(&st->told_migrate, true);
    FUZZ_ASSERT(strcmp(name, "cont") != 0 || atomic_load(&st->never_ran));
    FUZZ_ASSERT(strcmp(name, "migrate_cancel") != 0 || st->mode == PREEMPT);
}

static void accept_(struct state *st, struct vc_writer *w)
{
    struct vc_wire_accept m = {
        .base = (uint8_t)(st->options >> OPT_BASE_SHIFT & 3),
        .generation = {"generation two"},
        .max_batch_stream_bytes = 1u << 20,
    };

    if (!(st->options & OPT_STORE) && m.base) {
        m.has_lineage = true;
        m.lineage = (struct vc_wire_lineage){.id = fuzz_lineage.id, .algo = fuzz_lineage.algo};
        memcpy(m.key, fuzz_lineage.key, sizeof(m.key));
    }
    vc_wire_accept_encode(w, &m);
}

/* A payload that fits the type. */
static void defaults(struct state *st, uint8_t type, struct vc_reader in, struct vc_writer *w)
{
    static const uint8_t shut[8] = {0, 1, 0, 4, 0, 0, 0, 0};
    static const uint32_t ordinals[] = {0};
    struct vc_wire_committed committed = {.committed = true};
    struct vc_ram ram;

    switch (type) {
    case VC_WIRE_HELLO:
        w->len = fuzz_hello(w->data, w->cap, VC_WIRE_DESTINATION);
        break;
    case VC_WIRE_ACCEPT:
        accept_(st, w);
        break;
    case VC_WIRE_ACK:
        vc_wire_ack_encode(w, &(struct vc_wire_ack){st->seq[0], st->position[0]});
        break;
    case VC_WIRE_ACK | FUZZ_CHANNEL:
        vc_wire_ack_encode(w, &(struct vc_wire_ack){st->seq[1], st->position[1]});
        break;
    case VC_WIRE_REPAIR:
        vc_wire_repair_encode(w, st->seq[0], ordinals, 1);
        break;
    case VC_WIRE_RESEND:
        vc_wire_u64_encode(w, st->seq[0]);
        break;
    case VC_WIRE_RETURN:
        vc_write_bytes(w, shut, sizeof(shut));
        break;
    case VC_WIRE_ANNOUNCE_BLOCKS:
        fuzz_ram(&ram);
        vc_wire_blocks_encode(w, &ram);
        break;
    case VC_WIRE_COMMITTED:
        vc_wire_committed_encode(w, &committed);
        break;
    case VC_WIRE_WORD_DONE:
    case VC_WIRE_NEVER_RAN:
        w->len = fuzz_word_done(w->data, w->cap, in);
        break;
    default:
        break;
    }
}

/* Before it is sent: what it lets the session do. */
static void note(struct state *st, uint8_t type, const struct vc_reader *payload)
{
    if (type == FUZZ_BYTES || type == VC_WIRE_NEVER_RAN)
        atomic_store(&st->never_ran, true);
    if (type == FUZZ_BYTES) /* it may be of the return path */
        st->options |= OPT_RAW;
    if (type == VC_WIRE_RETURN && payload->len <= sizeof(st->sent) - st->n_sent) {
        memcpy(st->sent + st->n_sent, payload->data, payload->len);
        st->n_sent += payload->len;
    }
}

static void play_element(struct state *st, uint8_t type, struct vc_reader payload)
{
    uint8_t buf[2048];
    struct vc_writer w = vc_writer(buf, sizeof(buf));

    if (type == FUZZ_AWAIT) {
        fuzz_await(&st->peer, payload.len ? payload.data[0] : 0);
        return;
    }
    if (type == FUZZ_QEMU) {
        fuzz_qemu_script(&st->qemu, payload);
        return;
    }
    if (!payload.len ||
        (payload.len == 1 && (type == VC_WIRE_WORD_DONE || type == VC_WIRE_NEVER_RAN))) {
        defaults(st, type, payload, &w);
        payload = vc_reader(buf, w.len);
    }
    note(st, type, &payload);
    fuzz_send(&st->peer, type, payload.data, payload.len);
}

static void play(struct state *st, struct vc_reader *in)
{
    struct vc_reader payload;
    uint8_t type;

    for (int i = 0; i < FUZZ_MAX_ELEMENTS && fuzz_element(in, &type, &payload); i++)
        if (type == FUZZ_ACKS)
            st->acks = true;
        else if (type == FUZZ_CANCEL)
            vc_cancel_now(&st->cancel);
        else
            play_element(st, type, payload);
}

/* What QEMU was told. */
static void check_return(const struct state *st)
{
    if (st->options & OPT_RAW)
        return;
    FUZZ_ASSERT(st->qemu.n_got[0] <= st->n_sent);
    FUZZ_ASSERT(!memcmp(st->qemu.got[0], st->sent, st->qemu.n_got[0]));
}

/* ---- what there is before ---- */

static void set_up(void)
{
    if (store)
        return;
    store = fuzz_store(fuzz_dir());
    saved = fuzz_save(fuzz_dir());
    snprintf(qmp_paths[0], sizeof(qmp_paths[0]), "%s/vm.qmp", fuzz_dir());
    snprintf(qmp_paths[1], sizeof(qmp_paths[1]), "%s/ended.qmp", fuzz_dir());
    snprintf(stream_path, sizeof(stream_path), "%s/stream", fuzz_dir());
    for (int i = 0; i < 2; i++)
        qmp_listeners[i] = fuzz_qemu_listen(qmp_paths[i], i);
}

/* The record of the VM's last migration. */
static void record(const struct state *st)
{
    static const uint8_t settle_states[] = {VC_HANDOVER_LEFT, VC_HANDOVER_LEAVING,
                                            VC_HANDOVER_ARRIVING, VC_HANDOVER_VOID};
    unsigned ended = !!(st->options & OPT_ENDED);
    struct vc_handover h = {.state = VC_HANDOVER_SETTLED, .since_unix = 1, .peer = "unix:/fuzz"};
    struct vc_err err;
    struct vc_vm *vm;

    if (st->mode == SETTLE)
        h.state = settle_states[st->options >> OPT_BASE_SHIFT & 3];
    else if (st->mode == RECOVER)
        h.state = VC_HANDOVER_LEFT;
    snprintf(h.socket, sizeof(h.socket), "%s", qmp_paths[ended]);
    if (st->mode == SETTLE && ended)
        strcpy(h.socket, "/nonexistent/qmp");
    else if (h.state == VC_HANDOVER_ARRIVING)
        strcpy(h.socket, "vm");
    FUZZ_ASSERT(vc_vm_open(store, &fuzz_vm, VC_VM_WRITE, &vm, &err) == 0);
    FUZZ_ASSERT(vc_handover_begin(vm, &h, &err) == 0);
    vc_vm_close(vm);
}

static bool is_driven(const struct state *st)
{
    return st->mode != PROXY && st->mode != PROXY_SIDE;
}

static void set_up_qemu(struct state *st, struct vc_reader stream, struct vc_source_session *o)
{
    unsigned ended = !!(st->options & OPT_ENDED);
    struct fuzz_qemu *q = &st->qemu;
    int pair[2];

    fuzz_qemu_init(q, true);
    q->stream = stream;
    q->on_command = on_command;
    q->opaque = st;
    q->qmp_listener = is_driven(st) ? qmp_listeners[ended] : -1;
    q->proxied = !is_driven(st);
    if (q->proxied) {
        fuzz_prefilled(stream.data, stream.len, pair);
        o->stream_fd = pair[0];
        q->fds[0] = pair[1];
        snprintf(q->path, sizeof(q->path), "%s", stream_path);
    } else if (st->mode == SETTLE) {
        strcpy(q->status, "completed");
        strcpy(q->state, "postmigrate");
    } else {
        o->qmp_fd = vc_unix_connect(qmp_paths[ended]);
        FUZZ_ASSERT(o->qmp_fd >= 0);
    }
    if (st->mode == RECOVER) {
        strcpy(q->status, "postcopy-paused");
        strcpy(q->state, "finish-migrate");
        q->preempt = st->options >> OPT_BASE_SHIFT & 3;
    }
    if (st->mode == PROXY_SIDE || st->mode == PREEMPT || st->mode == RECOVER) {
        unlink(stream_path);
        o->listen_fd = vc_unix_listen(stream_path, 0600, 4);
        FUZZ_ASSERT(o->listen_fd > 0);
    }
}

static struct vc_source_session wishes(struct state *st)
{
    return (struct vc_source_session){
        .store = st->options & OPT_STORE ? store : NULL,
        .log = &fuzz_log,
        .cancel = &st->cancel,
        .to = "unix:/fuzz",
        .name = "vm",
        .qmp_fd = -1,
        .qmp_name = qmp_paths[!!(st->options & OPT_ENDED)],
        .suspend = st->mode == SUSPEND,
        .auto_converge = st->mode == SUSPEND,
        .downtime_limit_ms = st->mode == SUSPEND ? 40 : 0,
        .max_bandwidth = st->mode == SUSPEND ? 1u << 20 : 0,
        .postcopy = st->mode == POSTCOPY || st->mode == PREEMPT,
        .postcopy_preempt = st->mode == PREEMPT,
        .recover = st->mode == RECOVER,
        .stream_path = stream_path,
        .vm = is_driven(st) ? (struct vc_id){{0}} : fuzz_vm,
        .stream_fd = -1,
        .listen_fd = -1,
    };
}

/* ---- the whole ---- */

static void talk(struct state *st, struct vc_reader *in)
{
    struct vc_reader rest;

    if (st->options & OPT_RAW) {
        rest = fuzz_rest(in);
        if (vc_write_full(st->peer.fd, rest.data, rest.len)) {
            /* The session is over. */
        }
    } else {
        play(st, in);
    }
    fuzz_hang_up(&st->peer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct state st;
    struct vc_reader in = vc_reader(data, n), stream;
    struct session s;
    struct vc_err err = VC_ERR_INIT;
    int ends[2];

    set_up();
    st = (struct state){.options = (unsigned)fuzz_number(&in, 1)};
    st.mode = (enum mode)(st.options >> OPT_MODE_SHIFT & 7);
    atomic_store(&st.never_ran, st.options & OPT_RAW);
    stream = fuzz_part(&in, (size_t)fuzz_number(&in, 2));
    if (st.options & OPT_STORE || st.mode == SETTLE)
        fuzz_restore(saved);
    if (is_driven(&st) && (st.options & OPT_STORE || st.mode == SETTLE))
        record(&st);
    fuzz_seed_random(3);
    FUZZ_ASSERT(vc_cancel_init(&st.cancel, &err) == 0);
    s.mode = st.mode;
    s.err = VC_ERR_INIT;
    s.o = wishes(&st);
    set_up_qemu(&st, stream, &s.o);
    if (!(st.options & OPT_RAW))
        fuzz_prelude(&in, &st.qemu);
    fuzz_qemu_start(&st.qemu);
    FUZZ_ASSERT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    FUZZ_ASSERT(vc_conn_from_fds(ends[0], ends[0], VC_CONN_LOCAL, "fuzz", &s.o.conn, &err) == 0);
    st.peer.fd = ends[1];
    st.peer.on_frame = on_frame;
    st.peer.opaque = &st;
    FUZZ_ASSERT(pthread_create(&s.thread, NULL, run_session, &s) == 0);
    talk(&st, &in);
    pthread_join(s.thread, NULL);
    fuzz_qemu_stop(&st.qemu);
    check_return(&st);
    FUZZ_ASSERT((!st.gave_word && st.mode != RECOVER) || atomic_load(&st.never_ran) ||
                !strstr(s.err.message, "runs on here"));
    close(ends[1]);
    vc_cancel_fini(&st.cancel);
    fuzz_qemu_fini(&st.qemu);
    return 0;
}
