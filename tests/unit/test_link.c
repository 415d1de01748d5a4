/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/fdio.h"
#include "base/thread.h"
#include "link/link.h"
#include "net/net.h"

/* A link against another one, and against a peer that the test plays byte by byte. */

#define BULK_BYTES 65536u
#define BULK_FRAMES 7u /* fit a link's queue */

/* ---- two links ---- */

struct ends {
    struct vc_link *source, *dest;
};

struct greeter {
    struct vc_link *link;
    uint64_t features, agreed;
    struct vc_err err;
    int rc;
};

static void *greet(void *arg)
{
    struct greeter *g = arg;

    g->rc = vc_link_hello(g->link, g->features, &g->agreed, &g->err);
    return NULL;
}

/* Both say HELLO; the results are in a (source) and b. */
static void say_hello(struct greeter *a, struct greeter *b)
{
    struct vc_thread t = {0};
    struct vc_err err;

    assert_int_equal(vc_thread_start(&t, "greeter", greet, b, &err), 0);
    greet(a);
    if (a->rc)
        vc_link_shutdown(a->link);
    vc_thread_join(&t);
}

static struct ends connected(void)
{
    struct vc_conn *a, *b;
    struct ends e;
    struct vc_err err;
    struct greeter x = {.features = 1}, y = {.features = 1};

    assert_int_equal(vc_conn_pair(&a, &b, &err), 0);
    assert_int_equal(vc_link_new(a, VC_WIRE_SOURCE, 0, &e.source, &err), 0);
    assert_int_equal(vc_link_new(b, VC_WIRE_DESTINATION, 0, &e.dest, &err), 0);
    x.link = e.source;
    y.link = e.dest;
    say_hello(&x, &y);
    assert_true(x.rc == 0 && y.rc == 0);
    vc_link_set_phase(e.source, VC_WIRE_PHASE_STREAM);
    vc_link_set_phase(e.dest, VC_WIRE_PHASE_STREAM);
    return e;
}

static void part(struct ends *e)
{
    vc_link_free(e->source);
    vc_link_free(e->dest);
}

/* ---- a link and a peer of bytes ---- */

struct raw {
    struct vc_link *link; /* a source */
    int fd;               /* the destination */
};

static struct raw raw_peer(uint32_t dead_peer_ms)
{
    struct raw r;
    struct vc_conn *c;
    struct vc_err err;
    int pair[2], small = 32768;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
    assert_int_equal(vc_conn_from_fds(pair[0], pair[0], VC_CONN_LOCAL, "the peer", &c, &err), 0);
    assert_int_equal(vc_link_new(c, VC_WIRE_SOURCE, dead_peer_ms, &r.link, &err), 0);
    r.fd = pair[1];
    return r;
}

static void raw_end(struct raw *r)
{
    if (r->fd >= 0)
        close(r->fd);
    vc_link_free(r->link);
}

static void raw_frame(struct raw *r, uint8_t type, uint8_t flags, const void *p, uint32_t n)
{
    struct vc_wire_frame f = {.bytes = n, .type = type, .flags = flags};
    uint8_t header[VC_WIRE_HEADER_BYTES];

    vc_wire_frame_encode(&f, header);
    assert_int_equal(vc_write_full(r->fd, header, sizeof(header)), 0);
    assert_int_equal(vc_write_full(r->fd, p, n), 0);
}

/* The next frame of the link; its type, or -1 at the end. */
static int raw_read(struct raw *r, uint8_t *payload, size_t cap, uint32_t *n_out)
{
    uint8_t header[VC_WIRE_HEADER_BYTES];
    uint32_t n;
    int rc = vc_read_full(r->fd, header, sizeof(header));

    if (rc <= 0)
        return -1;
    n = (uint32_t)vc_load_le(header, 4);
    assert_true(n <= cap);
    assert_int_equal(header[5], 0);
    assert_true(n == 0 || vc_read_full(r->fd, payload, n) == 1);
    if (n_out)
        *n_out = n;
    return header[4];
}

static uint8_t buffer[BULK_BYTES];

static void raw_hello(struct raw *r, uint16_t low, uint16_t high, uint8_t role, uint8_t security)
{
    struct vc_wire_hello m = {.version_min = low,
                              .version_max = high,
                              .role = role,
                              .security = security,
                              .features = 3,
                              .software = "somebody 9"};
    uint8_t payload[512];
    struct vc_writer w = vc_writer(payload, sizeof(payload));

    vc_wire_hello_encode(&w, &m);
    raw_frame(r, VC_WIRE_HELLO, 0, payload, (uint32_t)w.len);
}

/* A peer with which HELLO has been exchanged, in the stream's phase. */
static struct raw raw_session(uint32_t dead_peer_ms)
{
    struct raw r = raw_peer(dead_peer_ms);
    uint64_t features;
    struct vc_err err;

    raw_hello(&r, 1, 1, VC_WIRE_DESTINATION, VC_WIRE_LOCAL);
    assert_int_equal(vc_link_hello(r.link, 5, &features, &err), 0);
    assert_int_equal(features, 1);
    assert_int_equal(raw_read(&r, buffer, sizeof(buffer), NULL), VC_WIRE_HELLO);
    vc_link_set_phase(r.link, VC_WIRE_PHASE_STREAM);
    return r;
}

/* What the link makes of the next bytes. */
static int recv_code(struct raw *r, struct vc_err *err)
{
    struct vc_link_frame *f = NULL;
    int rc = vc_link_recv(r->link, &f, err);

    vc_link_frame_free(f);
    return rc;
}

/* ---- hello ---- */

static void hello_agrees_on_what_both_have(void **state)
{
    struct vc_conn *a, *b;
    struct greeter x = {.features = 0x0f}, y = {.features = 0x35};
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_conn_pair(&a, &b, &err), 0);
    assert_int_equal(vc_link_new(a, VC_WIRE_SOURCE, 0, &x.link, &err), 0);
    assert_int_equal(vc_link_new(b, VC_WIRE_DESTINATION, 0, &y.link, &err), 0);
    say_hello(&x, &y);
    assert_true(x.rc == 0 && y.rc == 0);
    assert_true(x.agreed == 0x05 && y.agreed == 0x05);
    assert_int_equal(vc_link_security(x.link), VC_WIRE_LOCAL);
    assert_string_equal(vc_link_peer(x.link), "pair");
    vc_link_free(x.link);
    vc_link_free(y.link);
}

static void two_of_one_role_do_not_talk(void **state)
{
    struct vc_conn *a, *b;
    struct greeter x = {0}, y = {0};
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_conn_pair(&a, &b, &err), 0);
    assert_int_equal(vc_link_new(a, VC_WIRE_SOURCE, 0, &x.link, &err), 0);
    assert_int_equal(vc_link_new(b, VC_WIRE_SOURCE, 0, &y.link, &err), 0);
    say_hello(&x, &y);
    assert_int_equal(x.rc, VC_E_PROTOCOL);
    assert_non_null(strstr(x.err.message, "role"));
    vc_link_free(x.link);
    vc_link_free(y.link);
}

static void versions_must_overlap(void **state)
{
    static const struct {
        uint16_t low, high;
        int rc;
    } cases[] = {{1, 1, 0}, {0, 1, 0}, {1, 9, 0}, {0, 0, VC_E_VERSION}, {2, 9, VC_E_VERSION}};

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(cases); i++) {
        struct raw r = raw_peer(0);
        struct vc_err err = VC_ERR_INIT;
        uint64_t features;

        raw_hello(&r, cases[i].low, cases[i].high, VC_WIRE_DESTINATION, VC_WIRE_LOCAL);
        assert_int_equal(vc_link_hello(r.link, 0, &features, &err), cases[i].rc);
        if (cases[i].rc) {
            assert_non_null(strstr(err.message, "somebody 9"));
            assert_true(err.hint[0]);
        }
        raw_end(&r);
    }
}

static void the_less_secure_view_counts(void **state)
{
    struct raw r = raw_peer(0);
    uint64_t features;
    struct vc_err err;

    (void)state;
    raw_hello(&r, 1, 1, VC_WIRE_DESTINATION, VC_WIRE_PLAINTEXT);
    assert_int_equal(vc_link_hello(r.link, 0, &features, &err), 0);
    assert_int_equal(vc_link_security(r.link), VC_WIRE_PLAINTEXT);
    raw_end(&r);
}

static void what_is_not_vecycle_is_told_apart(void **state)
{
    struct vc_err err = VC_ERR_INIT;
    uint64_t features;
    struct raw r = raw_peer(0);

    (void)state;
    assert_int_equal(vc_write_full(r.fd, "SSH-2.0-OpenSSH_9.2p1\r\n", 23), 0);
    assert_int_equal(vc_link_hello(r.link, 0, &features, &err), VC_E_PROTOCOL);
    raw_end(&r);

    r = raw_peer(0);
    raw_frame(&r, VC_WIRE_HELLO, 0, "not the magic, but long enough", 30);
    assert_int_equal(vc_link_hello(r.link, 0, &features, &err), VC_E_PROTOCOL);
    raw_end(&r);

    r = raw_peer(0);
    close(r.fd);
    r.fd = -1;
    assert_int_equal(vc_link_hello(r.link, 0, &features, &err), VC_E_PEER_LOST);
    assert_non_null(strstr(err.message, "the peer"));
    raw_end(&r);
}

static void an_error_may_come_instead_of_hello(void **state)
{
    struct vc_err err = VC_ERR_INIT;
    uint64_t features;
    struct raw r = raw_peer(0);

    (void)state;
    raw_frame(&r, VC_WIRE_ERROR, 0, "\x18\0\0\0\x02no", 7);
    assert_int_equal(vc_link_hello(r.link, 0, &features, &err), VC_E_REFUSED);
    assert_non_null(strstr(err.message, "no"));
    raw_end(&r);
}

/* ---- frames ---- */

static void frames_arrive_whole_and_in_order(void **state)
{
    struct ends e = connected();
    const uint32_t sizes[] = {48, 49, 70000, 1 << 20, 48, 3 << 20};
    struct vc_err err;

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(sizes); i++) {
        struct vc_link_frame *f = vc_link_frame_new(VC_WIRE_BATCH, (uint16_t)i, sizes[i]), *got;

        for (uint32_t k = 0; k < sizes[i]; k++)
            f->payload[k] = (uint8_t)(k * 31 + i);
        assert_int_equal(vc_link_send(e.source, f, false), 0);
        assert_int_equal(vc_link_recv(e.dest, &got, &err), 0);
        assert_true(got->type == VC_WIRE_BATCH && got->channel == i && got->bytes == sizes[i]);
        for (uint32_t k = 0; k < sizes[i]; k++)
            assert_int_equal(got->payload[k], (uint8_t)(k * 31 + i));
        vc_link_frame_free(got);
    }
    assert_true(vc_link_bytes_sent(e.source) == vc_link_bytes_received(e.dest));
    part(&e);
}

static void count_release(void *owner)
{
    atomic_fetch_add((atomic_uint *)owner, 1);
}

/* A frame of so many bytes in itself, and n pieces of 1, 2, 3... bytes elsewhere. */
static struct vc_link_frame *gathered_frame(uint32_t own, uint32_t n, uint8_t *pieces,
                                            atomic_uint *released)
{
    struct vc_link_frame *f = vc_link_frame_new(VC_WIRE_BATCH, 0, own);

    memset(f->payload, 7, own);
    assert_true(vc_link_frame_gather(f, n, released, count_release));
    for (uint32_t i = 0; i < n; i++) {
        f->rest->pieces[VC_REST_FIRST + i] = (struct iovec){pieces, i + 1};
        memset(pieces, (int)i, i + 1);
        pieces += i + 1;
        f->rest->bytes += i + 1;
    }
    f->bytes += f->rest->bytes;
    return f;
}

static void what_lies_elsewhere_is_part_of_the_frame(void **state)
{
    const uint32_t counts[] = {0, 1, 3, 1500}; /* more than one writev() takes */
    struct ends e = connected();
    atomic_uint released = 0;
    struct vc_err err;

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(counts); i++) {
        uint32_t n = counts[i], bytes = 60 + n * (n + 1) / 2;
        uint8_t *pieces = malloc(bytes), *p;
        struct vc_link_frame *got;

        assert_int_equal(vc_link_send(e.source, gathered_frame(60, n, pieces, &released), false),
                         0);
        assert_int_equal(vc_link_recv(e.dest, &got, &err), 0);
        assert_int_equal(got->bytes, bytes);
        p = got->payload + 60;
        assert_int_equal(got->payload[59], 7);
        for (uint32_t k = 0; k < n; k++)
            for (uint32_t j = 0; j <= k; j++)
                assert_int_equal(*p++, (uint8_t)k);
        vc_link_frame_free(got);
        assert_int_equal(vc_link_send_small(e.source, VC_WIRE_EOF, 0, NULL, 0), 0);
        assert_int_equal(vc_link_recv(e.dest, &got, &err), 0); /* so the one before is done with */
        vc_link_frame_free(got);
        assert_int_equal(atomic_load(&released), i + 1);
        free(pieces);
    }
    assert_true(vc_link_bytes_sent(e.source) == vc_link_bytes_received(e.dest));
    part(&e);
}

static void a_link_that_is_stopped_holds_nothing(void **state)
{
    struct raw r = raw_peer(0);
    atomic_uint released = 0;
    uint8_t pieces[2][700 * 701 / 2];

    (void)state;
    for (unsigned i = 0; i < 2; i++) /* more than the socket takes: one of them is being written */
        assert_int_equal(vc_link_send(r.link, gathered_frame(60, 700, pieces[i], &released), false),
                         0);
    vc_link_stop(r.link);
    assert_int_equal(atomic_load(&released), 2);
    assert_int_equal(vc_link_send(r.link, gathered_frame(60, 1, pieces[0], &released), false),
                     VC_CLOSED);
    assert_int_equal(atomic_load(&released), 3);
    raw_end(&r);
}

static void send_bulk(struct vc_link *l, uint16_t channel)
{
    struct vc_link_frame *f = vc_link_frame_new(VC_WIRE_BATCH, channel, BULK_BYTES);

    memset(f->payload, 0, f->bytes);
    assert_int_equal(vc_link_send(l, f, false), 0);
}

static void urgent_frames_pass_the_others(void **state)
{
    struct raw r = raw_session(0);
    unsigned bulk = 0, before_urgent = BULK_FRAMES;

    (void)state;
    for (unsigned i = 0; i < BULK_FRAMES; i++) /* nobody reads: most of them wait */
        send_bulk(r.link, 0);
    assert_int_equal(vc_link_send_small(r.link, VC_WIRE_WORD, 0, buffer, 17), 0);
    while (bulk < BULK_FRAMES) {
        int type = raw_read(&r, buffer, sizeof(buffer), NULL);

        assert_true(type == VC_WIRE_BATCH || type == VC_WIRE_WORD);
        if (type == VC_WIRE_BATCH)
            bulk++;
        else
            before_urgent = bulk;
    }
    assert_true(before_urgent < BULK_FRAMES);
    raw_end(&r);
}

struct stuck {
    struct vc_link *link;
    unsigned sent;
    atomic_bool over;
};

static void *send_until_closed(void *arg)
{
    struct stuck *s = arg;

    for (;;) {
        struct vc_link_frame *f = vc_link_frame_new(VC_WIRE_BATCH, 0, BULK_BYTES);

        memset(f->payload, 0, f->bytes);
        if (vc_link_send(s->link, f, false))
            break;
        s->sent++;
    }
    atomic_store(&s->over, true);
    return NULL;
}

static void a_sender_that_waits_is_woken_by_shutdown(void **state)
{
    struct raw r = raw_session(0);
    struct stuck s = {.link = r.link};
    struct vc_thread t = {0};
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_thread_start(&t, "stuck", send_until_closed, &s, &err), 0);
    assert_int_equal(raw_read(&r, buffer, sizeof(buffer), NULL), VC_WIRE_BATCH);
    vc_link_shutdown(r.link);
    vc_thread_join(&t);
    assert_true(s.sent < 100); /* its queue has a limit */
    assert_int_equal(vc_link_send_small(r.link, VC_WIRE_EOF, 0, NULL, 0), VC_CLOSED);
    raw_end(&r);
}

static void finish_sends_what_waits(void **state)
{
    struct raw r = raw_session(0);
    unsigned n = 0;

    (void)state;
    for (unsigned i = 0; i < BULK_FRAMES; i++)
        send_bulk(r.link, 0);
    vc_link_finish(r.link, 0); /* does not wait */
    assert_int_equal(vc_link_send_small(r.link, VC_WIRE_EOF, 0, NULL, 0), VC_CLOSED);
    while (raw_read(&r, buffer, sizeof(buffer), NULL) == VC_WIRE_BATCH)
        n++;
    assert_int_equal(n, BULK_FRAMES);
    raw_end(&r);
}

static void illegal_frames_end_the_session(void **state)
{
    static const struct {
        uint8_t type, flags;
        uint16_t channel;
        uint32_t bytes;
    } cases[] = {
        {99, 0, 0, 0},                          /* unknown */
        {VC_WIRE_ACK, 0, 0, 15},                /* short */
        {VC_WIRE_REPAIR, 0, 0, 262157},         /* long */
        {VC_WIRE_RETURN, 0, 0, UINT32_MAX},     /* longer */
        {VC_WIRE_BATCH, 0, 0, 48},              /* not from a destination */
        {VC_WIRE_HELLO, 0, 0, 25},              /* not now */
        {VC_WIRE_ACCEPT, 0, 0, 23},             /* not any more */
        {VC_WIRE_ACK, 2, 0, 16},                /* unknown flag */
        {VC_WIRE_RETURN, 0, 64, 1},             /* no such channel */
        {99, 1, 0, VC_WIRE_MAX_FRAME_BYTES + 1} /* nothing to skip for ever */
    };

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(cases); i++) {
        struct raw r = raw_session(0);
        struct vc_wire_frame f = {cases[i].bytes, cases[i].type, cases[i].flags, cases[i].channel};
        uint8_t header[VC_WIRE_HEADER_BYTES];
        struct vc_err err = VC_ERR_INIT;

        vc_wire_frame_encode(&f, header);
        assert_int_equal(vc_write_full(r.fd, header, sizeof(header)), 0);
        if (recv_code(&r, &err) != VC_E_PROTOCOL)
            fail_msg("case %zu was taken", i);
        raw_end(&r);
    }
}

static void optional_frames_are_skipped(void **state)
{
    struct raw r = raw_session(0);
    struct vc_link_frame *f;
    struct vc_err err;

    (void)state;
    raw_frame(&r, 99, VC_WIRE_FRAME_OPTIONAL, buffer, 20000);
    raw_frame(&r, 98, VC_WIRE_FRAME_OPTIONAL, buffer, 0);
    raw_frame(&r, VC_WIRE_RESEND, 0, "12345678", 8);
    assert_int_equal(vc_link_recv(r.link, &f, &err), 0);
    assert_int_equal(f->type, VC_WIRE_RESEND);
    assert_memory_equal(f->payload, "12345678", 8);
    vc_link_frame_free(f);
    raw_end(&r);
}

static void the_end_has_to_be_between_frames(void **state)
{
    struct raw r = raw_session(0);
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    close(r.fd);
    r.fd = -1;
    assert_int_equal(recv_code(&r, &err), VC_EOF);
    raw_end(&r);
    for (size_t n = 1; n < 24; n++) {
        static const uint8_t ack[24] = {16, 0, 0, 0, VC_WIRE_ACK};

        r = raw_session(0);
        assert_int_equal(vc_write_full(r.fd, ack, n), 0);
        close(r.fd);
        r.fd = -1;
        assert_int_equal(recv_code(&r, &err), VC_E_PEER_LOST);
        assert_non_null(strstr(err.message, "in the middle of a frame"));
        raw_end(&r);
    }
}

/* ---- errors ---- */

static void the_peers_error_becomes_ours(void **state)
{
    struct ends e = connected();
    struct vc_err why, err = VC_ERR_INIT;
    struct vc_link_frame *f = NULL;

    (void)state;
    vc_err_set_hint(&why, VC_E_REFUSED, "ask its owner", "VM 'x' may not come here");
    vc_link_fail(e.dest, &why);
    assert_int_equal(vc_link_recv(e.source, &f, &err), VC_E_REFUSED);
    assert_string_equal(err.message, "peer 'pair': VM 'x' may not come here");
    assert_string_equal(err.hint, "ask its owner");
    part(&e);
}

static void a_code_that_is_not_ours_is_a_protocol_error(void **state)
{
    static const uint8_t codes[] = {0, 4, 99, 255};

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(codes); i++) {
        struct raw r = raw_session(0);
        struct vc_err err = VC_ERR_INIT;
        uint8_t payload[9] = {codes[i], 0, 0, 0, 4, 'w', 'h', 'a', 't'};

        raw_frame(&r, VC_WIRE_ERROR, 0, payload, sizeof(payload));
        assert_int_equal(recv_code(&r, &err), VC_E_PROTOCOL);
        assert_non_null(strstr(err.message, "what"));
        assert_string_equal(err.hint, "");
        raw_end(&r);
    }
}

static void the_longest_message_reaches_the_peer(void **state)
{
    struct raw r = raw_session(0);
    struct vc_err why = {.code = VC_E_FAILED};
    struct vc_wire_status m;
    struct vc_err err;
    uint32_t n = 0;

    (void)state;
    memset(why.message, 'm', sizeof(why.message) - 1);
    memset(why.hint, 'h', sizeof(why.hint) - 1);
    vc_link_fail(r.link, &why);
    assert_int_equal(raw_read(&r, buffer, sizeof(buffer), &n), VC_WIRE_ERROR);
    assert_int_equal(vc_wire_status_decode(buffer, n, &m, &err), 0);
    assert_int_equal(m.code, 1);
    assert_true(strlen(m.text) > 100 && strlen(m.hint) > 50);
    assert_int_equal(raw_read(&r, buffer, sizeof(buffer), NULL), -1);
    raw_end(&r);
}

/* ---- staying alive ---- */

static void a_ping_is_answered_with_its_token(void **state)
{
    struct raw r = raw_session(0);
    struct vc_err err;
    struct vc_link_frame *f;

    (void)state;
    raw_frame(&r, VC_WIRE_PING, 0, "12345678", 8);
    raw_frame(&r, VC_WIRE_PONG, 0, "87654321", 8); /* never asked for: no harm */
    raw_frame(&r, VC_WIRE_ANNOUNCE_END, 0, NULL, 0);
    assert_int_equal(vc_link_recv(r.link, &f, &err), 0);
    assert_int_equal(f->type, VC_WIRE_ANNOUNCE_END);
    vc_link_frame_free(f);
    assert_int_equal(raw_read(&r, buffer, sizeof(buffer), NULL), VC_WIRE_PONG);
    assert_memory_equal(buffer, "12345678", 8);
    raw_end(&r);
}

static void an_idle_link_pings(void **state)
{
    struct raw r = raw_session(0);

    (void)state;
    assert_int_equal(raw_read(&r, buffer, sizeof(buffer), NULL), VC_WIRE_PING);
    raw_end(&r);
}

static void a_silent_peer_is_dead(void **state)
{
    struct raw r = raw_session(200);
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    assert_int_equal(recv_code(&r, &err), VC_E_PEER_LOST);
    assert_non_null(strstr(err.message, "silent for 200 ms"));
    assert_int_equal(vc_link_send_small(r.link, VC_WIRE_EOF, 0, NULL, 0), VC_CLOSED);
    raw_end(&r);
}

static void a_peer_silent_from_the_start_is_dead(void **state)
{
    struct raw r = raw_peer(200);
    struct vc_err err = VC_ERR_INIT;
    uint64_t features;

    (void)state;
    assert_int_equal(vc_link_hello(r.link, 0, &features, &err), VC_E_PEER_LOST);
    assert_non_null(strstr(err.message, "silent"));
    raw_end(&r);
}

struct listener {
    struct vc_link *link;
    struct vc_err err;
    int rc;
};

static void *listen_once(void *arg)
{
    struct listener *l = arg;
    struct vc_link_frame *f = NULL;

    l->rc = vc_link_recv(l->link, &f, &l->err);
    vc_link_frame_free(f);
    return NULL;
}

static void a_write_that_is_stuck_does_not_hide_a_dead_peer(void **state)
{
    struct raw r = raw_session(200);
    struct stuck s = {.link = r.link};
    struct listener l = {.link = r.link};
    struct vc_thread t = {0}, u = {0};
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    assert_int_equal(vc_thread_start(&t, "stuck", send_until_closed, &s, &err), 0);
    assert_int_equal(vc_thread_start(&u, "listener", listen_once, &l, &err), 0);
    /* What the session's owner does; without it the sending thread would sit in its write. */
    while (!atomic_load(&s.over)) {
        vc_link_check_peer(r.link);
        poll(NULL, 0, 10);
    }
    vc_thread_join(&t);
    vc_thread_join(&u);
    assert_int_equal(l.rc, VC_E_PEER_LOST);
    assert_non_null(strstr(l.err.message, "silent"));
    raw_end(&r);
}

/* A QEMU may take longer to answer than a peer may be silent. */
static void a_peer_to_whom_nobody_listens_is_not_silent(void **state)
{
    struct raw r = raw_session(200);
    struct vc_link_frame *f = NULL;
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    for (int pings = 0; pings < 15; pings++) /* 40 ms apart */
        assert_int_equal(raw_read(&r, buffer, sizeof(buffer), NULL), VC_WIRE_PING);
    raw_frame(&r, VC_WIRE_EOF, 0, "", 0);
    assert_int_equal(vc_link_recv(r.link, &f, &err), 0);
    assert_int_equal(f->type, VC_WIRE_EOF);
    vc_link_frame_free(f);
    raw_end(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hello_agrees_on_what_both_have),
        cmocka_unit_test(two_of_one_role_do_not_talk),
        cmocka_unit_test(versions_must_overlap),
        cmocka_unit_test(the_less_secure_view_counts),
        cmocka_unit_test(what_is_not_vecycle_is_told_apart),
        cmocka_unit_test(an_error_may_come_instead_of_hello),
        cmocka_unit_test(frames_arrive_whole_and_in_order),
        cmocka_unit_test(what_lies_elsewhere_is_part_of_the_frame),
        cmocka_unit_test(a_link_that_is_stopped_holds_nothing),
        cmocka_unit_test(urgent_frames_pass_the_others),
        cmocka_unit_test(a_sender_that_waits_is_woken_by_shutdown),
        cmocka_unit_test(finish_sends_what_waits),
        cmocka_unit_test(illegal_frames_end_the_session),
        cmocka_unit_test(optional_frames_are_skipped),
        cmocka_unit_test(the_end_has_to_be_between_frames),
        cmocka_unit_test(the_peers_error_becomes_ours),
        cmocka_unit_test(a_code_that_is_not_ours_is_a_protocol_error),
        cmocka_unit_test(the_longest_message_reaches_the_peer),
        cmocka_unit_test(a_ping_is_answered_with_its_token),
        cmocka_unit_test(an_idle_link_pings),
        cmocka_unit_test(a_silent_peer_is_dead),
        cmocka_unit_test(a_peer_silent_from_the_start_is_dead),
        cmocka_unit_test(a_write_that_is_stuck_does_not_hide_a_dead_peer),
        cmocka_unit_test(a_peer_to_whom_nobody_listens_is_not_silent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
