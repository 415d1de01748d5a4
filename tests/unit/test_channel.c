/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* QEMU's preempt connection, from one pipeline to the other and against peers that break the rules:
 * what goes in comes out, beside the main stream and past it; what is not right is refused, and
 * QEMU gets no byte of it. */

#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "synthetic.h"

#include "base/bytes.h"
#include "base/fdio.h"
#include "dest/dest.h"
#include "digest/digest.h"
#include "link/link.h"
#include "net/net.h"
#include "source/source.h"

#define TIMEOUT_MS 600000
#define URGENT_BYTES (5u << 20) /* several times what may be unacknowledged */

static const struct vc_lineage lineage = {.algo = VC_DIGEST_GMAC,
                                          .key = "a key that no guest knows"};
static const struct vc_id session = {"a session"};

/* ---- sockets ---- */

/* Listens at an address of the kernel's choice. */
static int listen_somewhere(void)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa.sun_family)), 0);
    assert_int_equal(listen(fd, 4), 0);
    return fd;
}

static int connect_to(int listener)
{
    struct sockaddr_un sa;
    socklen_t n = sizeof(sa);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&sa, &n), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&sa, n), 0);
    return fd;
}

static void wait_on(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    assert_int_equal(poll(&p, 1, TIMEOUT_MS), 1);
}

static void drop_frame(void *opaque, struct vc_link_frame *f)
{
    (void)opaque;
    vc_link_frame_free(f);
}

/* ---- the two pipelines ---- */

struct scene {
    struct vc_conn *conns[2];
    struct vc_link *links[2]; /* source's, destination's; NULL: the test plays that end */
    struct vc_source *source;
    struct vc_dest *dest;
    int listener;    /* where the source's QEMU connects; the pipeline's */
    int main_in;     /* the source QEMU's end */
    int main_out[2]; /* the destination QEMU's end is the second */
    int side_out[2];
    int connected_pipe[2];
    struct vc_txn *txns[2]; /* the generations that the two write, or NULL; the pipelines' */
};

static int connect_main(void *opaque, struct vc_err *err)
{
    struct scene *s = opaque;

    (void)err;
    return s->main_out[0];
}

static int connect_side(void *opaque, struct vc_err *err)
{
    struct scene *s = opaque;

    (void)err;
    assert_int_equal(write(s->connected_pipe[1], "c", 1), 1);
    return s->side_out[0];
}

static void connect_ends(struct scene *s)
{
    struct vc_err err = VC_ERR_INIT;

    *s = (struct scene){0};
    assert_int_equal(vc_conn_pair(&s->conns[0], &s->conns[1], &err), 0);
}

static struct vc_link *link_of(struct scene *s, int end, enum vc_wire_role role)
{
    struct vc_err err = VC_ERR_INIT;

    assert_int_equal(vc_link_new(s->conns[end], role, 0, &s->links[end], &err), 0);
    vc_link_set_phase(s->links[end], VC_WIRE_PHASE_STREAM);
    return s->links[end];
}

static void start_source(struct scene *s, bool channels)
{
    struct vc_err err = VC_ERR_INIT;
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    s->main_in = pair[1];
    s->listener = listen_somewhere();

    struct vc_source_options o = {
        .qemu_fd = pair[0],
        .listen_fd = s->listener,
        .channels = channels,
        .link = link_of(s, 0, VC_WIRE_SOURCE),
        .session = session,
        .lineage = lineage,
        .txn = s->txns[0],
        .needs_return_path = true,
        .on_frame = drop_frame,
    };
    assert_int_equal(vc_source_start(&o, &s->source, &err), 0);
}

static void start_dest(struct scene *s)
{
    struct vc_err err = VC_ERR_INIT;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, s->main_out), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, s->side_out), 0);
    assert_int_equal(pipe(s->connected_pipe), 0);

    struct vc_dest_options o = {
        .link = link_of(s, 1, VC_WIRE_DESTINATION),
        .session = session,
        .lineage = lineage,
        .features = VC_WIRE_FEATURE_CHANNELS,
        .txn = s->txns[1],
        .connect = connect_main,
        .connect_preempt = connect_side,
        .on_frame = drop_frame,
        .opaque = s,
    };
    assert_int_equal(vc_dest_start(&o, &s->dest, &err), 0);
}

static void finish(struct scene *s)
{
    struct vc_dest_status st = {0};

    if (s->dest)
        vc_dest_status(s->dest, &st);
    vc_source_free(s->source);
    vc_dest_free(s->dest);
    for (int i = 0; i < 2; i++) {
        if (s->links[i])
            vc_link_free(s->links[i]);
        else
            vc_conn_close(s->conns[i]);
    }
    if (s->source)
        close(s->main_in);
    if (!s->dest)
        return;
    if (!st.connected) /* else it was the pipeline's */
        close(s->main_out[0]);
    close(s->main_out[1]);
    close(s->side_out[1]);
    close(s->connected_pipe[0]);
    close(s->connected_pipe[1]);
}

/* ---- both against each other ---- */

struct flow {
    int fd;
    struct buf b;
    size_t expected; /* reading */
    pthread_t thread;
};

static void *write_all(void *arg)
{
    struct flow *f = arg;
    size_t put = 0;

    while (put < f->b.n) { /* in pieces, as records come */
        size_t n = VC_MIN(f->b.n - put, 1 + put * 7919 % 20000);

        assert_int_equal(vc_write_full(f->fd, f->b.d + put, n), 0);
        put += n;
    }
    return NULL;
}

static void *read_all(void *arg)
{
    struct flow *f = arg;
    uint8_t buf[65536];
    ssize_t n;

    while (f->b.n < f->expected && (n = vc_read_some(f->fd, buf, sizeof(buf))) > 0)
        put_bytes(&f->b, buf, (size_t)n);
    return NULL;
}

static void assert_the_same(const struct flow *in, const struct flow *out)
{
    assert_int_equal(out->b.n, in->b.n);
    assert_memory_equal(out->b.d, in->b.d, in->b.n);
}

static void say_shut(int fd)
{
    static const uint8_t shut[8] = {0, 1, 0, 4, 0, 0, 0, 0};

    assert_int_equal(vc_write_full(fd, shut, sizeof(shut)), 0);
}

static void bytes_come_out_as_they_went_in(void **state)
{
    struct flow in[2] = {{0}}, out[2] = {{0}};
    struct vc_source_status st;
    struct vc_dest_status dst;
    static struct memory m;
    struct scene s;
    uint8_t rest;

    (void)state;
    connect_ends(&s);
    start_dest(&s);
    start_source(&s, true);
    some_memory(&m, MAX_PAGES);
    put_migration(&in[0].b, &m, NULL);
    for (unsigned i = 0; i < URGENT_BYTES; i += 8)
        put_be(&in[1].b, rng(), 8);
    in[0].fd = s.main_in;
    in[1].fd = connect_to(s.listener);
    out[0].fd = s.main_out[1];
    out[1].fd = s.side_out[1];
    for (int i = 0; i < 2; i++) {
        out[i].expected = in[i].b.n;
        pthread_create(&in[i].thread, NULL, write_all, &in[i]);
        pthread_create(&out[i].thread, NULL, read_all, &out[i]);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(in[i].thread, NULL);
        pthread_join(out[i].thread, NULL);
        assert_the_same(&in[i], &out[i]);
    }
    /* An end of one is an end of that one alone. */
    close(in[1].fd);
    assert_int_equal(vc_read_some(s.side_out[1], &rest, 1), 0);
    say_shut(s.main_out[1]);
    do {
        wait_on(vc_source_event_fd(s.source));
        vc_source_clear(s.source);
        vc_source_status(s.source, &st);
        assert_false(st.failed);
    } while (!st.shut);
    vc_dest_status(s.dest, &dst);
    assert_false(dst.failed);
    assert_int_equal(st.stream_bytes, in[0].b.n + in[1].b.n);
    for (int i = 0; i < 2; i++) {
        buf_free(&in[i].b);
        buf_free(&out[i].b);
    }
    finish(&s);
}

/* The first bytes of a main stream, so that the destination is connected. */
static void begin_main(int fd)
{
    struct buf b = {0};

    put_header(&b);
    put_config(&b, "pc-i440fx-7.2");
    put_command(&b, 1, NULL, 0); /* OPEN_RETURN_PATH */
    assert_int_equal(vc_write_full(fd, b.d, b.n), 0);
    buf_free(&b);
}

static void a_connection_without_a_byte_is_made(void **state)
{
    struct pollfd p;
    struct scene s;
    int side;

    (void)state;
    connect_ends(&s);
    start_dest(&s);
    start_source(&s, true);
    side = connect_to(s.listener);
    p = (struct pollfd){.fd = s.connected_pipe[0], .events = POLLIN};
    assert_int_equal(poll(&p, 1, 100), 0); /* QEMU would take it for its main one */
    begin_main(s.main_in);
    wait_on(s.connected_pipe[0]);
    close(side);
    finish(&s);
}

/* ---- what the two hosts know of it ---- */

/* What becomes of a page, by its number: all are sent once, and named before the switch (but for
 * those that are left alone). */
enum fate { ALONE, NEVER, SIDE, MAIN, SIDE_THEN_MAIN, MAIN_THEN_SIDE, ZERO_SIDE, ZERO_BOTH, FATES };
#define FATED_PAGES (50u * FATES)

static enum fate fate_of(unsigned page)
{
    return (enum fate)(page % FATES);
}

static const enum vc_page_state known[FATES] = {
    [ALONE] = VC_PAGE_HELD,        [NEVER] = VC_PAGE_UNKNOWN,       [SIDE] = VC_PAGE_UNKNOWN,
    [MAIN] = VC_PAGE_HELD,         [SIDE_THEN_MAIN] = VC_PAGE_HELD, [MAIN_THEN_SIDE] = VC_PAGE_HELD,
    [ZERO_SIDE] = VC_PAGE_UNKNOWN, [ZERO_BOTH] = VC_PAGE_ZERO,
};

struct place {
    char dir[64];
    struct vc_store *store;
    struct vc_vm *vm;
};

static void place_init(struct place *p, struct vc_txn **txn)
{
    static const struct vc_id vm = {"the VM's UUID..."}, gen = {"the generation.."};
    struct vc_err err;

    snprintf(p->dir, sizeof(p->dir), "/tmp/vc-channel-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    assert_int_equal(vc_store_open(p->dir, true, 0, &p->store, &err), 0);
    assert_int_equal(vc_vm_open(p->store, &vm, VC_VM_CREATE, &p->vm, &err), 0);
    assert_int_equal(vc_vm_set_lineage(p->vm, &lineage, &err), 0);
    assert_int_equal(vc_txn_begin(p->vm, &gen, NULL, txn, &err), 0);
}

static void place_fini(struct place *p)
{
    vc_vm_close(p->vm);
    vc_store_close(p->store);
    remove_tree(p->dir);
}

static struct vc_digest digest_of(const struct memory *m, unsigned page)
{
    uint8_t content[PAGE];
    const uint8_t *p = content;
    struct vc_digester *d;
    struct vc_digest out;
    struct vc_err err;

    fill_page(content, page, m->version[page]);
    assert_int_equal(vc_digester_new(lineage.algo, VC_DIGEST_PAGE, lineage.key, &d, &err), 0);
    assert_int_equal(vc_digest_pages(d, &p, 1, PAGE, &out, &err), 0);
    vc_digester_free(d);
    return out;
}

static void assert_known(struct place *p, const struct memory *before, const struct memory *now)
{
    struct vc_gen *g;
    struct vc_err err;

    assert_non_null(vc_vm_complete(p->vm));
    assert_int_equal(vc_gen_open(p->vm, &vc_vm_complete(p->vm)->id, &g, &err), 0);
    for (unsigned i = 0; i < FATED_PAGES; i++) {
        enum fate fate = fate_of(i);
        struct vc_digest have, want = digest_of(fate == ALONE ? before : now, i);

        if (vc_gen_lookup(g, 0, vc_page(i), &have) != known[fate])
            fail_msg("page %u of fate %d has state %d", i, fate,
                     vc_gen_lookup(g, 0, vc_page(i), NULL));
        if (known[fate] == VC_PAGE_HELD)
            assert_true(vc_digest_equal(&have, &want));
    }
    vc_gen_close(g);
}

/* Both memories: each page changes between its first time and the switch. */
static void fated_memory(struct memory *before, struct memory *now)
{
    before->pages = now->pages = FATED_PAGES;
    for (unsigned i = 0; i < FATED_PAGES; i++) {
        enum fate fate = fate_of(i);

        before->version[i] = 1 + i % 3;
        now->version[i] = fate == ZERO_SIDE || fate == ZERO_BOTH ? 0 : 11 + i % 3;
    }
}

/* Pages of those fates as QEMU writes them, on either connection. */
static void put_fates(struct buf *b, const struct memory *m, unsigned fates)
{
    bool named = true;

    for (unsigned i = 0; i < FATED_PAGES; i++)
        if (fates & 1u << fate_of(i)) {
            put_memory_page(b, m, i, named);
            named = false;
        }
}

/* Up to the switch: all pages, those that are to come again, and the device state. */
static void put_until_switch(struct buf *b, const struct memory *m)
{
    uint64_t ranges[FATED_PAGES][2];
    unsigned n = 0;

    put_setup(b, m);
    put_part(b, 2, RAM_ID);
    put_fates(b, m, ~0u);
    put_ram_end(b);
    for (unsigned i = 0; i < FATED_PAGES; i++)
        if (fate_of(i) != ALONE) {
            ranges[n][0] = (uint64_t)i * PAGE;
            ranges[n++][1] = PAGE;
        }
    put_discard(b, "pc.ram", (const uint64_t(*)[2])ranges, n);
    put_command(b, 7, "\0\0\1\0", 4); /* PACKAGED */
    put_fill(b, 0xee, 256);
}

/* Writes it at one end, and waits until it is at the other one; it is freed. */
static void carry(struct buf *b, int in_fd, int out_fd)
{
    struct flow in = {.fd = in_fd, .b = *b}, out = {.fd = out_fd, .expected = b->n};

    pthread_create(&in.thread, NULL, write_all, &in);
    read_all(&out);
    pthread_join(in.thread, NULL);
    assert_the_same(&in, &out);
    buf_free(&out.b);
    buf_free(b);
}

static void carry_main(struct scene *s, const struct memory *m, uint8_t section, unsigned fates)
{
    struct buf b = {0};

    put_part(&b, section, RAM_ID);
    put_fates(&b, m, fates);
    put_ram_end(&b);
    carry(&b, s->main_in, s->main_out[1]);
}

static void carry_side(struct scene *s, int side, const struct memory *m, unsigned fates)
{
    struct buf b = {0};

    put_fates(&b, m, fates);
    carry(&b, side, s->side_out[1]);
}

static void end_stream(struct scene *s)
{
    struct vc_source_status st;
    struct vc_dest_status dst;

    say_shut(s->main_out[1]);
    do {
        wait_on(vc_source_event_fd(s->source));
        vc_source_clear(s->source);
        vc_source_status(s->source, &st);
        assert_false(st.failed);
    } while (!st.shut);
    shutdown(s->main_in, SHUT_WR);
    do {
        wait_on(vc_dest_event_fd(s->dest));
        vc_dest_clear(s->dest);
        vc_dest_status(s->dest, &dst);
        assert_false(dst.failed);
    } while (!dst.source_eof);
    assert_true(st.knows_all);
}

static void commit_both(struct scene *s)
{
    struct vc_txn_note note = {.peer = "test"};
    uint8_t roots[2][VC_ROOT_BYTES];
    struct vc_err err;

    assert_int_equal(vc_txn_commit(vc_source_join(s->source), &note, roots[0], &err), 0);
    assert_int_equal(vc_txn_commit(vc_dest_join(s->dest), &note, roots[1], &err), 0);
    assert_memory_equal(roots[0], roots[1], VC_ROOT_BYTES);
}

/* docs/formats/wire.md, the end of section 4. */
static void its_pages_are_unknown_unless_channel_0_brings_them_too(void **state)
{
    static struct memory before, now;
    struct place places[2];
    struct buf b = {0};
    struct scene s;
    int side;

    (void)state;
    fated_memory(&before, &now);
    connect_ends(&s);
    for (int i = 0; i < 2; i++)
        place_init(&places[i], &s.txns[i]);
    start_dest(&s);
    start_source(&s, true);
    side = connect_to(s.listener);
    put_until_switch(&b, &before);
    carry(&b, s.main_in, s.main_out[1]);
    carry_side(&s, side, &now,
               1u << SIDE | 1u << SIDE_THEN_MAIN | 1u << ZERO_SIDE | 1u << ZERO_BOTH);
    carry_main(&s, &now, 2,
               1u << MAIN | 1u << SIDE_THEN_MAIN | 1u << MAIN_THEN_SIDE | 1u << ZERO_BOTH);
    carry_side(&s, side, &now, 1u << MAIN_THEN_SIDE);
    carry_main(&s, &now, 3, 0);
    end_stream(&s);
    close(side);
    commit_both(&s);
    for (int i = 0; i < 2; i++)
        assert_known(&places[i], &before, &now);
    finish(&s);
    for (int i = 0; i < 2; i++)
        place_fini(&places[i]);
}

/* ---- the source against a peer ---- */

static void assert_source_fails(struct scene *s, int code)
{
    struct vc_source_status st;
    struct vc_err err;

    do {
        wait_on(vc_source_event_fd(s->source));
        vc_source_clear(s->source);
        vc_source_status(s->source, &st);
    } while (!st.failed);
    vc_source_error(s->source, &err);
    if (err.code != code)
        fail_msg("%d: %s", err.code, err.message);
    assert_true(code == VC_E_PROTOCOL || err.hint[0]);
}

static void a_multifd_connection_is_refused(void **state)
{
    static const uint8_t magic[4] = {0x11, 0x22, 0x33, 0x44};
    struct vc_err err;
    struct scene s;
    int side;

    (void)state;
    connect_ends(&s);
    start_source(&s, true);
    side = connect_to(s.listener);
    for (size_t i = 0; i < sizeof(magic); i++)
        assert_int_equal(vc_write_full(side, &magic[i], 1), 0);
    assert_source_fails(&s, VC_E_NOT_QEMU);
    vc_source_error(s.source, &err);
    assert_non_null(strstr(err.hint, "multifd"));
    close(side);
    finish(&s);
}

static void a_third_connection_is_refused(void **state)
{
    struct scene s;
    int side[2];

    (void)state;
    connect_ends(&s);
    start_source(&s, true);
    side[0] = connect_to(s.listener);
    side[1] = connect_to(s.listener);
    assert_source_fails(&s, VC_E_NOT_QEMU);
    close(side[0]);
    close(side[1]);
    finish(&s);
}

/* A program that only looks whether somebody listens there is not QEMU's second connection. */
static void a_stranger_is_turned_away(void **state)
{
    struct scene s;
    int side, status;
    pid_t child;

    (void)state;
    connect_ends(&s);
    start_dest(&s);
    start_source(&s, true);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char byte;

        _exit(vc_read_some(connect_to(s.listener), &byte, 1) == 0 ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    side = connect_to(s.listener); /* would be a third one */
    begin_main(s.main_in);
    wait_on(s.connected_pipe[0]);
    close(side);
    finish(&s);
}

static void a_peer_that_knows_no_channels_gets_none(void **state)
{
    struct vc_err err;
    struct scene s;
    int side;

    (void)state;
    connect_ends(&s);
    start_source(&s, false);
    side = connect_to(s.listener);
    assert_source_fails(&s, VC_E_VERSION);
    vc_source_error(s.source, &err);
    assert_non_null(strstr(err.hint, "postcopy-preempt"));
    close(side);
    finish(&s);
}

static void an_acknowledgement_of_nothing_is_an_error(void **state)
{
    const struct {
        uint64_t seq, position;
        uint16_t channel;
    } cases[] = {{1, 0, 1}, {1, 0, 2}, {2, 0, 1}};

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(cases); i++) {
        uint8_t ack[16];
        struct scene s;

        connect_ends(&s);
        start_source(&s, true);
        link_of(&s, 1, VC_WIRE_DESTINATION);
        vc_store_le(ack, cases[i].seq, 8);
        vc_store_le(ack + 8, cases[i].position, 8);
        assert_int_equal(
            vc_link_send_small(s.links[1], VC_WIRE_ACK, cases[i].channel, ack, sizeof(ack)), 0);
        assert_source_fails(&s, VC_E_PROTOCOL);
        finish(&s);
    }
}

/* ---- the destination against a peer ---- */

struct chain {
    uint16_t channel;
    uint64_t seq, position;
    struct vc_digest seal;
};

static void digest3(const void *a, size_t na, const void *b, size_t nb, const void *c, size_t nc,
                    struct vc_digest *out)
{
    struct vc_digester *d;
    struct vc_err err;

    assert_int_equal(vc_digester_new(lineage.algo, VC_DIGEST_SEAL, lineage.key, &d, &err), 0);
    assert_int_equal(vc_digest_begin(d, &err), 0);
    assert_int_equal(vc_digest_update(d, a, na, &err), 0);
    assert_int_equal(vc_digest_update(d, b, nb, &err), 0);
    assert_int_equal(vc_digest_update(d, c, nc, &err), 0);
    assert_int_equal(vc_digest_end(d, out, &err), 0);
    vc_digester_free(d);
}

static struct chain new_chain(uint16_t channel)
{
    struct chain c = {.channel = channel};
    uint8_t number[2];

    vc_store_le(number, channel, 2);
    digest3(session.b, sizeof(session.b), number, channel ? 2 : 0, NULL, 0, &c.seal);
    return c;
}

/* Sends a batch of n bytes as docs/formats/wire.md has it; @flip: into its seal. */
static void send_batch(struct scene *s, struct chain *c, const char *bytes, uint32_t n,
                       uint8_t flip)
{
    struct vc_link_frame *f =
        vc_link_frame_new(VC_WIRE_BATCH, c->channel, VC_WIRE_BATCH_HEADER_BYTES + (n ? 11 + n : 0));
    struct vc_wire_batch h = {.seq = ++c->seq, .position = c->position, .stream_bytes = n};
    struct vc_writer w;
    uint8_t place[16];

    assert_non_null(f);
    vc_store_le(place, h.seq, 8);
    vc_store_le(place + 8, h.position, 8);
    digest3(c->seal.b, sizeof(c->seal.b), place, sizeof(place), bytes, n, &c->seal);
    memcpy(h.seal, c->seal.b, sizeof(h.seal));
    h.seal[3] ^= flip;
    w = vc_writer(f->payload + VC_WIRE_BATCH_HEADER_BYTES, f->bytes - VC_WIRE_BATCH_HEADER_BYTES);
    if (n) {
        vc_write_u8(&w, VC_RUN_OPAQUE);
        vc_write_varint(&w, n);
        h.runs_bytes = (uint32_t)w.len;
        vc_write_bytes(&w, bytes, n);
    }
    h.body_bytes = (uint32_t)w.len;
    f->bytes = VC_WIRE_BATCH_HEADER_BYTES + (uint32_t)w.len;
    vc_wire_batch_encode(f->payload, &h);
    c->position += n;
    assert_int_equal(vc_link_send(s->links[0], f, c->channel != 0), 0);
}

/* One byte of the stream in a frame of a mebibyte: what waits for QEMU is counted in bytes of the
 * stream. */
static void send_padded(struct scene *s, struct chain *c)
{
    struct vc_link_frame *f = vc_link_frame_new(VC_WIRE_BATCH, c->channel, 1u << 20);
    struct vc_wire_batch h = {
        .seq = ++c->seq,
        .position = c->position,
        .stream_bytes = 1,
        .runs_bytes = 2,
        .body_bytes = 3,
        .codec = VC_WIRE_CODEC_ZSTD,
    };

    assert_non_null(f);
    memset(f->payload, 0, f->bytes);
    vc_wire_batch_encode(f->payload, &h);
    assert_int_equal(vc_link_send(s->links[0], f, true), 0);
}

static void send_eof(struct scene *s, uint16_t channel)
{
    assert_int_equal(vc_link_send_small(s->links[0], VC_WIRE_EOF, channel, NULL, 0), 0);
}

static void begin_dest(struct scene *s)
{
    connect_ends(s);
    start_dest(s);
    link_of(s, 0, VC_WIRE_SOURCE);
}

static void assert_dest_fails(struct scene *s, int code, const char *what)
{
    struct vc_dest_status st;
    struct vc_err err;

    do {
        wait_on(vc_dest_event_fd(s->dest));
        vc_dest_clear(s->dest);
        vc_dest_status(s->dest, &st);
    } while (!st.failed);
    vc_dest_error(s->dest, &err);
    if (err.code != code || !strstr(err.message, what))
        fail_msg("'%s': %d: %s", what, err.code, err.message);
}

static void an_acknowledgement_comes_when_qemu_has_the_bytes(void **state)
{
    struct chain urgent = new_chain(1), main = new_chain(0);
    char buf[6];
    struct scene s;

    (void)state;
    begin_dest(&s);
    send_batch(&s, &urgent, NULL, 0, 0);
    send_batch(&s, &urgent, "urgent", 6, 0);
    send_batch(&s, &main, "QEVM", 4, 0);
    assert_int_equal(vc_read_full(s.side_out[1], buf, 6), 1);
    assert_memory_equal(buf, "urgent", 6);
    for (int left = 3; left;) {
        struct vc_link_frame *f;
        struct vc_wire_ack ack;
        struct vc_err err;

        assert_int_equal(vc_link_recv(s.links[0], &f, &err), 0);
        assert_int_equal(f->type, VC_WIRE_ACK);
        assert_int_equal(vc_wire_ack_decode(f->payload, f->bytes, &ack, &err), 0);
        assert_int_equal(ack.position, !f->channel ? 4 : ack.seq == 1 ? 0 : 6);
        vc_link_frame_free(f);
        left--;
    }
    finish(&s);
}

static void a_wrong_seal_gives_qemu_nothing(void **state)
{
    struct chain urgent = new_chain(1), main = new_chain(0);
    struct scene s;
    char byte;

    (void)state;
    begin_dest(&s);
    send_batch(&s, &main, "QEVM", 4, 0);
    send_batch(&s, &urgent, NULL, 0, 0);
    send_batch(&s, &urgent, "urgent", 6, 1);
    assert_dest_fails(&s, VC_E_SEAL, "seal");
    assert_true(vc_read_some(s.side_out[1], &byte, 1) <= 0);
    finish(&s);
}

/* The chain of channel 0 is another one. */
static void a_batch_is_sealed_for_its_channel(void **state)
{
    struct chain urgent = new_chain(0), main = new_chain(0);
    struct scene s;

    (void)state;
    urgent.channel = 1;
    begin_dest(&s);
    send_batch(&s, &main, "QEVM", 4, 0);
    send_batch(&s, &urgent, "urgent", 6, 0);
    assert_dest_fails(&s, VC_E_SEAL, "seal");
    finish(&s);
}

static void whoever_breaks_the_rules_is_told(void **state)
{
    enum { CLOSED, SECOND, EMPTY, BEHIND, TWICE, MUCH, MANY, PADDED, CASES };
    static const char *const what[] = {
        [CLOSED] = "was not opened", [SECOND] = "no such channel", [EMPTY] = "empty",
        [BEHIND] = "has ended",      [TWICE] = "has ended",        [MUCH] = "unacknowledged",
        [MANY] = "unacknowledged",   [PADDED] = "too long",
    };
    static char bytes[300000];

    (void)state;
    for (int i = 0; i < CASES; i++) {
        struct chain c = new_chain(i == SECOND ? 2 : 1);
        struct scene s;

        begin_dest(&s);
        if (i == CLOSED)
            send_eof(&s, 1);
        else
            send_batch(&s, &c, NULL, 0, 0);
        if (i == EMPTY)
            send_batch(&s, &c, NULL, 0, 0);
        if (i == BEHIND || i == TWICE)
            send_eof(&s, 1);
        if (i == BEHIND)
            send_batch(&s, &c, "x", 1, 0);
        if (i == TWICE)
            send_eof(&s, 1);
        for (unsigned k = 0; k < 4 && i == MUCH; k++) /* nothing is connected yet */
            send_batch(&s, &c, bytes, sizeof(bytes), 0);
        for (unsigned k = 0; k < VC_WIRE_CHANNEL_BATCHES && i == MANY; k++)
            send_batch(&s, &c, "x", 1, 0);
        if (i == PADDED)
            send_padded(&s, &c);
        assert_dest_fails(&s, VC_E_PROTOCOL, what[i]);
        finish(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_come_out_as_they_went_in),
        cmocka_unit_test(a_connection_without_a_byte_is_made),
        cmocka_unit_test(its_pages_are_unknown_unless_channel_0_brings_them_too),
        cmocka_unit_test(a_multifd_connection_is_refused),
        cmocka_unit_test(a_third_connection_is_refused),
        cmocka_unit_test(a_stranger_is_turned_away),
        cmocka_unit_test(a_peer_that_knows_no_channels_gets_none),
        cmocka_unit_test(an_acknowledgement_of_nothing_is_an_error),
        cmocka_unit_test(an_acknowledgement_comes_when_qemu_has_the_bytes),
        cmocka_unit_test(a_wrong_seal_gives_qemu_nothing),
        cmocka_unit_test(a_batch_is_sealed_for_its_channel),
        cmocka_unit_test(whoever_breaks_the_rules_is_told),
    };

    rng_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
