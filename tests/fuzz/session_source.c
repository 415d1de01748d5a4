/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A source's session (proxy) against a destination that says anything: it ends, and what QEMU is
 * told on the return path is what the destination sent, from the beginning on.
 *
 * Input: a byte of options; the length (2 bytes) of QEMU's stream and that; then what the
 * destination says (peer.h). A payload of no length is one that fits: HELLO, ACCEPT, ACK of the
 * last batch seen, REPAIR and RESEND of it, RETURN with SHUT, ANNOUNCE_BLOCKS, COMMITTED. */

#include <pthread.h>
#include <sys/socket.h>

#include "base/fdio.h"
#include "peer.h"
#include "session/session.h"

#define OPT_STORE 1u
#define OPT_RAW 2u       /* the destination's bytes as they are */
#define OPT_BASE_SHIFT 2 /* vc_wire_base of the default ACCEPT */

struct state {
    struct fuzz_peer peer;
    unsigned options;
    uint64_t seq, position;              /* of the last batch seen */
    uint8_t sent[2 * FUZZ_SOCKET_BYTES]; /* on the return path */
    size_t n_sent;
};

static struct vc_store *store;
static struct fuzz_saved *saved;

struct session {
    pthread_t thread;
    struct vc_source_session o;
};

static void *run_session(void *arg)
{
    struct session *s = arg;
    struct vc_session_result result;
    struct vc_err err = VC_ERR_INIT;
    int rc = vc_session_source(&s->o, &result, &err);

    fuzz_check_error(rc, &err);
    if (getenv("FUZZ_VERBOSE"))
        fprintf(stderr, "phase %u, code %d: %s\n", result.phase, rc, err.message);
    FUZZ_ASSERT(rc <= 0 && result.phase <= VC_PHASE_DONE);
    FUZZ_ASSERT(!rc == (result.phase == VC_PHASE_DONE));
    return NULL;
}

static void on_frame(void *opaque, uint8_t type, const uint8_t *p, size_t n)
{
    struct state *st = opaque;

    if (type != VC_WIRE_BATCH || n < VC_WIRE_BATCH_HEADER_BYTES)
        return;
    st->seq = vc_load_le(p, 8);
    st->position = vc_load_le(p + 8, 8) + vc_load_le(p + 16, 4);
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
static void defaults(struct state *st, uint8_t type, struct vc_writer *w)
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
        vc_wire_ack_encode(w, &(struct vc_wire_ack){st->seq, st->position});
        break;
    case VC_WIRE_REPAIR:
        vc_wire_repair_encode(w, st->seq, ordinals, 1);
        break;
    case VC_WIRE_RESEND:
        vc_wire_u64_encode(w, st->seq);
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
    default:
        break;
    }
}

static void play(struct state *st, struct vc_reader *in)
{
    struct vc_reader payload;
    uint8_t type;

    for (int i = 0; i < FUZZ_MAX_ELEMENTS && fuzz_element(in, &type, &payload); i++) {
        uint8_t buf[2048];
        struct vc_writer w = vc_writer(buf, sizeof(buf));
        const uint8_t *p = payload.data;
        size_t n = payload.len;

        if (type == FUZZ_AWAIT) {
            fuzz_await(&st->peer, payload.len ? payload.data[0] : 0);
            continue;
        }
        if (!n) {
            defaults(st, type, &w);
            p = buf;
            n = w.len;
        }
        if (type == VC_WIRE_RETURN && n <= sizeof(st->sent) - st->n_sent) {
            memcpy(st->sent + st->n_sent, p, n);
            st->n_sent += n;
        }
        fuzz_send(&st->peer, type, p, n);
    }
}

/* What QEMU was told. */
static void check_return(const struct state *st, int qemu)
{
    uint8_t *got = malloc(sizeof(st->sent));
    size_t have = 0;
    ssize_t n;

    FUZZ_ASSERT(got);
    while (have < sizeof(st->sent) &&
           (n = vc_read_some(qemu, got + have, sizeof(st->sent) - have)) > 0)
        have += (size_t)n;
    if (!(st->options & OPT_RAW)) {
        FUZZ_ASSERT(have <= st->n_sent);
        FUZZ_ASSERT(!memcmp(got, st->sent, have));
    }
    free(got);
}

static void set_up(void)
{
    if (store)
        return;
    store = fuzz_store(fuzz_dir());
    saved = fuzz_save(fuzz_dir());
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct state st;
    struct vc_reader in = vc_reader(data, n), stream, rest;
    struct session s;
    struct vc_conn *conn;
    struct vc_err err = VC_ERR_INIT;
    int ends[2], qemu[2];

    set_up();
    st = (struct state){.options = (unsigned)fuzz_number(&in, 1)};
    stream = fuzz_part(&in, (size_t)fuzz_number(&in, 2));
    if (st.options & OPT_STORE)
        fuzz_restore(saved);
    fuzz_seed_random(3);
    fuzz_prefilled(stream.data, stream.len, qemu);
    FUZZ_ASSERT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    FUZZ_ASSERT(vc_conn_from_fds(ends[0], ends[0], VC_CONN_LOCAL, "fuzz", &conn, &err) == 0);
    st.peer.fd = ends[1];
    st.peer.on_frame = on_frame;
    st.peer.opaque = &st;
    s.o = (struct vc_source_session){
        .store = st.options & OPT_STORE ? store : NULL,
        .to = "unix:/fuzz",
        .conn = conn,
        .name = "vm",
        .qmp_fd = -1,
        .vm = fuzz_vm,
        .stream_fd = qemu[0],
    };
    FUZZ_ASSERT(pthread_create(&s.thread, NULL, run_session, &s) == 0);
    if (st.options & OPT_RAW) {
        rest = fuzz_rest(&in);
        if (vc_write_full(ends[1], rest.data, rest.len)) {
            /* The session is over. */
        }
    } else {
        play(&st, &in);
    }
    fuzz_hang_up(&st.peer);
    pthread_join(s.thread, NULL);
    check_return(&st, qemu[1]);
    close(ends[1]);
    close(qemu[1]);
    return 0;
}
