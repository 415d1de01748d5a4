/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a peer that nobody knows yet can make this host allocate: little, and the same whatever it
 * sends, and however much (docs/internals/tls.md, the handshake). Counted is what malloc() gives to
 * our own code (the linker wraps it) and to OpenSSL (which takes its allocator from us). */

#include "test_tls.h"

#include <malloc.h>

#include "base/bytes.h"
#include "link/link.h"

/** A TLS connection that is not authenticated, with OpenSSL's part and the certificates read. */
#define HANDSHAKE_BYTES (512u << 10)
/** What more than a silent peer's a peer's bytes may come to in a handshake. */
#define STEERED_BYTES (256u << 10)
/** A link before OPEN was taken in, whatever lengths its frames claim. */
#define LINK_BYTES (16u << 10)

/* ---- counting ---- */

static _Atomic size_t now_bytes, peak_bytes;

void *__real_malloc(size_t n);
void *__real_calloc(size_t k, size_t n);
void *__real_realloc(void *p, size_t n);
void __real_free(void *p);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t k, size_t n);
void *__wrap_realloc(void *p, size_t n);
void __wrap_free(void *p);

static void *count(void *p)
{
    size_t now = atomic_fetch_add(&now_bytes, malloc_usable_size(p)) + malloc_usable_size(p);
    size_t peak = atomic_load(&peak_bytes);

    while (now > peak && !atomic_compare_exchange_weak(&peak_bytes, &peak, now)) {
        /* again */
    }
    return p;
}

void *__wrap_malloc(size_t n)
{
    return count(__real_malloc(n));
}

void *__wrap_calloc(size_t k, size_t n)
{
    return count(__real_calloc(k, n));
}

void *__wrap_realloc(void *p, size_t n)
{
    atomic_fetch_sub(&now_bytes, malloc_usable_size(p));
    return count(__real_realloc(p, n));
}

void __wrap_free(void *p)
{
    atomic_fetch_sub(&now_bytes, malloc_usable_size(p));
    __real_free(p);
}

static void *ssl_malloc(size_t n, const char *file, int line)
{
    (void)file;
    (void)line;
    return malloc(n);
}

static void *ssl_realloc(void *p, size_t n, const char *file, int line)
{
    (void)file;
    (void)line;
    return realloc(p, n);
}

static void ssl_free(void *p, const char *file, int line)
{
    (void)file;
    (void)line;
    free(p);
}

/* Begins to count; returns what there is already. */
static size_t start_counting(void)
{
    size_t now = atomic_load(&now_bytes);

    atomic_store(&peak_bytes, now);
    return now;
}

static size_t most_since(size_t before)
{
    return atomic_load(&peak_bytes) - before;
}

/* ---- TLS: nobody is authenticated yet ---- */

#define MUCH (2u << 20)
static uint8_t bytes[MUCH];

/* Sends as much as the server takes, and reads nothing. */
static void pour(int fd, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t k = send(fd, bytes + at, n - at, MSG_NOSIGNAL);

        if (k <= 0)
            break;
        at += (size_t)k;
    }
    shutdown(fd, SHUT_WR);
}

/* What the server comes to for a peer that sends so many of the bytes; none: it waits in vain. */
static size_t handshake_with(size_t n)
{
    struct server s = {0};
    size_t before;
    int fd;

    start_server(&s, "ca/a");
    s.o.handshake_ms = n ? PATIENT_MS : 50;
    before = start_counting();
    run_server(&s);
    fd = plain_connect(s.port);
    if (n)
        pour(fd, n);
    vc_thread_join(&s.thread);
    assert_true(s.rc < 0);
    close(fd);
    before = most_since(before);
    end_server(&s);
    return before;
}

static void fill(uint64_t seed)
{
    for (size_t i = 0; i < MUCH; i += 8) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        vc_store_le(bytes + i, seed >> 11, 8);
    }
}

/* Handshake records as long as they may be, of a message that claims to be so long. */
static void fill_with_records(uint8_t message, uint32_t length)
{
    const uint8_t head[] = {
        message, (uint8_t)(length >> 16), (uint8_t)(length >> 8), (uint8_t)length, 3, 3};
    const size_t record = 5 + 16384;

    fill(message);
    for (size_t at = 0; at + record <= MUCH; at += record) {
        memcpy(bytes + at, "\x16\3\3\x40\0", 5);
        if (at == 0)
            memcpy(bytes + 5, head, sizeof(head));
    }
}

static void a_frame_head(uint8_t out[8], uint32_t length, uint8_t type, uint8_t flags)
{
    vc_store_le(out, length, 4);
    out[4] = type;
    out[5] = flags;
    vc_store_le(out + 6, 0, 2);
}

/* Neither silence nor garbage, nor the head of the longest frame there is, costs much. */
static void a_handshake_costs_the_same_whatever_is_sent(void **state)
{
    static const uint8_t types[] = {VC_WIRE_HELLO, VC_WIRE_BATCH};
    /* Longer than OpenSSL takes, as long as it does, and what fits into one record. */
    static const uint32_t lengths[] = {0xffffff, 0x1f000, 0x3000};
    size_t silent, most = 0;

    (void)state;
    handshake_with(0); /* what OpenSSL sets up once for the process */
    silent = handshake_with(0);
    for (uint64_t seed = 1; seed <= 20; seed++) {
        fill(seed);
        if (seed % 2)
            memcpy(bytes, "\x16\3\1", 3);
        most = VC_MAX(most, handshake_with(MUCH));
    }
    for (unsigned message = 0; message < 25; message++)
        for (size_t i = 0; i < VC_ARRAY_LEN(lengths); i++) {
            fill_with_records((uint8_t)message, lengths[i]);
            most = VC_MAX(most, handshake_with(MUCH));
        }
    for (size_t i = 0; i < VC_ARRAY_LEN(types); i++) {
        fill(i);
        a_frame_head(bytes, i ? VC_WIRE_MAX_FRAME_BYTES : UINT32_MAX, types[i], 0);
        most = VC_MAX(most, handshake_with(MUCH));
    }
    print_message("silent: %zu bytes, at most: %zu\n", silent, most);
    assert_true(silent > 0 && silent <= HANDSHAKE_BYTES);
    assert_true(most <= silent + STEERED_BYTES);
}

/* ---- a link: nobody has said OPEN yet ---- */

static size_t put_hello(uint8_t *out)
{
    struct vc_wire_hello h = {
        .version_min = VC_WIRE_VERSION,
        .version_max = VC_WIRE_VERSION,
        .role = VC_WIRE_SOURCE,
        .software = "a peer",
    };
    struct vc_writer w = vc_writer(out + VC_WIRE_HEADER_BYTES, 512);

    vc_wire_hello_encode(&w, &h);
    a_frame_head(out, (uint32_t)w.len, VC_WIRE_HELLO, 0);
    return VC_WIRE_HEADER_BYTES + w.len;
}

struct talker {
    int fd;
    size_t n;
    struct vc_thread thread;
};

static void *talk(void *arg)
{
    struct talker *t = arg;

    pour(t->fd, t->n);
    drain(t->fd);
    return NULL;
}

/* What a link comes to for a peer that sends so many of the bytes, and then nothing more. */
static size_t link_with(size_t n)
{
    struct talker t = {.n = n};
    struct vc_link_frame *f = NULL;
    struct vc_err err = VC_ERR_INIT;
    struct vc_conn *conn;
    struct vc_link *link;
    uint64_t features;
    size_t most;
    int fds[2], rc;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    assert_int_equal(vc_conn_from_fds(fds[0], fds[0], VC_CONN_LOCAL, "a peer", &conn, &err), 0);
    t.fd = fds[1];
    most = start_counting();
    assert_int_equal(vc_link_new(conn, VC_WIRE_DESTINATION, 0, &link, &err), 0);
    assert_int_equal(vc_thread_start(&t.thread, "peer", talk, &t, &err), 0);
    rc = vc_link_hello(link, 0, &features, &err);
    if (!rc)
        rc = vc_link_recv(link, &f, &err);
    most = most_since(most);
    assert_true(rc != 0 || f->type == VC_WIRE_OPEN); /* not decoded yet */
    vc_link_frame_free(f);
    vc_link_free(link);
    vc_thread_join(&t.thread);
    close(fds[1]);
    return most;
}

static void a_length_that_is_claimed_before_open_costs_nothing(void **state)
{
    static const struct {
        uint32_t length;
        uint8_t type, flags;
    } heads[] = {
        {UINT32_MAX, VC_WIRE_HELLO, 0},
        {VC_WIRE_MAX_FRAME_BYTES, VC_WIRE_HELLO, 0},
        {512, VC_WIRE_HELLO, 0},
        {VC_WIRE_MAX_FRAME_BYTES, VC_WIRE_BATCH, 0},
        {8192, VC_WIRE_OPEN, 0},
        {UINT32_MAX, 200, VC_WIRE_FRAME_OPTIONAL},
        {VC_WIRE_MAX_FRAME_BYTES, 200, VC_WIRE_FRAME_OPTIONAL}, /* is skipped */
    };
    size_t most = 0;

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(heads); i++)
        for (int hello = 0; hello < 2; hello++) {
            size_t at;

            fill(i);
            at = hello ? put_hello(bytes) : 0;
            a_frame_head(bytes + at, heads[i].length, heads[i].type, heads[i].flags);
            most = VC_MAX(most, link_with(at + 8));
            most = VC_MAX(most, link_with(MUCH));
        }
    print_message("at most %zu bytes\n", most);
    assert_true(most > 0 && most <= LINK_BYTES);
}

static int setup(void **state)
{
    struct vc_err err;

    (void)state;
    if (!mkdtemp(root))
        return -1;
    return make_hosts("ca", 0, 0, "a,127.0.0.1", &err);
}

static int teardown(void **state)
{
    (void)state;
    remove_tree(root);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_handshake_costs_the_same_whatever_is_sent),
        cmocka_unit_test(a_length_that_is_claimed_before_open_costs_nothing),
    };

    /* Before anything else of OpenSSL. */
    if (!CRYPTO_set_mem_functions(ssl_malloc, ssl_realloc, ssl_free))
        return 1;
    return cmocka_run_group_tests(tests, setup, teardown);
}
