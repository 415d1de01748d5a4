/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/durable.h"
#include "base/err.h"
#include "base/fdio.h"
#include "base/json.h"
#include "base/log.h"
#include "base/queue.h"
#include "base/slab.h"
#include "base/thread.h"
#include "base/units.h"

static uint64_t rng_state;

static int seed(void **state)
{
    const char *s = getenv("VC_TEST_SEED");

    (void)state;
    rng_state = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL);
    print_message("seed: VC_TEST_SEED=%llu\n", (unsigned long long)rng_state);
    return 0;
}

static uint64_t rng(void)
{
    uint64_t z = rng_state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static void start(struct vc_thread *t, void *(*fn)(void *), void *arg)
{
    struct vc_err err;

    assert_int_equal(vc_thread_start(t, "test", fn, arg, &err), 0);
}

/* ---- bytes.h ---- */

static void numbers_come_back_in_their_byte_order(void **state)
{
    uint8_t buf[15], be[8];
    struct vc_writer w = vc_writer(buf, sizeof(buf));
    struct vc_reader r;

    (void)state;
    vc_write_u8(&w, 0x01);
    vc_write_u16(&w, 0x0203);
    vc_write_u32(&w, 0x04050607);
    vc_write_u64(&w, 0x08090a0b0c0d0e0f);
    assert_false(w.failed);
    assert_int_equal(w.len, 15);
    assert_memory_equal(buf, "\x01\x03\x02\x07\x06\x05\x04\x0f\x0e\x0d\x0c\x0b\x0a\x09\x08", 15);
    r = vc_reader(buf, sizeof(buf));
    assert_int_equal(vc_read_u8(&r), 0x01);
    assert_int_equal(vc_read_u16(&r), 0x0203);
    assert_int_equal(vc_read_u32(&r), 0x04050607);
    assert_int_equal(vc_reader_left(&r), 8);
    assert_int_equal(vc_read_u64(&r), 0x08090a0b0c0d0e0f);
    assert_int_equal(vc_reader_left(&r), 0);
    assert_false(r.failed);
    vc_store_be(be, 0x0102030405060708, 8);
    assert_memory_equal(be, "\1\2\3\4\5\6\7\10", 8);
    assert_int_equal(vc_load_be(be, 3), 0x010203);
    assert_int_equal(vc_load_le(be, 3), 0x030201);
}

static void a_failed_reader_stays_failed(void **state)
{
    const uint8_t buf[4] = {1, 2, 3, 4};
    struct vc_reader r = vc_reader(buf, sizeof(buf));
    uint8_t copy[2] = {9, 9};
    char text[256] = "x";

    (void)state;
    assert_int_equal(vc_read_u8(&r), 1);
    assert_int_equal(vc_read_u32(&r), 0);
    assert_true(r.failed);
    assert_int_equal(vc_reader_left(&r), 0);
    assert_int_equal(vc_read_u8(&r), 0);
    assert_null(vc_read_bytes(&r, 0));
    assert_int_equal(vc_read_varint(&r), 0);
    vc_read_copy(&r, copy, 2);
    assert_int_equal(copy[0] | copy[1], 0);
    assert_false(vc_read_str8(&r, text));
    assert_string_equal(text, "");
    r = vc_reader(buf, sizeof(buf));
    assert_null(vc_read_bytes(&r, SIZE_MAX));
    assert_true(r.failed);
}

static void a_failed_writer_stays_failed_and_writes_nothing(void **state)
{
    uint8_t buf[4] = {7, 7, 7, 7};
    struct vc_writer w = vc_writer(buf, 3);

    (void)state;
    vc_write_u16(&w, 0);
    vc_write_u16(&w, 0);
    assert_true(w.failed);
    vc_write_u8(&w, 1);
    vc_write_bytes(&w, "", 0);
    assert_null(vc_write_reserve(&w, 0));
    assert_int_equal(w.len, 2);
    assert_memory_equal(buf, "\0\0\7\7", 4);
    w = vc_writer(buf, 3);
    assert_null(vc_write_reserve(&w, SIZE_MAX));
}

static void texts_are_counted_and_hold_no_nul(void **state)
{
    uint8_t buf[300];
    char text[257], out[256];
    struct vc_writer w = vc_writer(buf, sizeof(buf));
    struct vc_reader r;

    (void)state;
    memset(text, 'x', sizeof(text));
    text[255] = 0;
    vc_write_str8(&w, text);
    vc_write_str8(&w, "");
    assert_false(w.failed);
    assert_int_equal(w.len, 257);
    r = vc_reader(buf, w.len);
    assert_true(vc_read_str8(&r, out));
    assert_string_equal(out, text);
    assert_true(vc_read_str8(&r, out));
    assert_string_equal(out, "");
    text[255] = 'x';
    text[256] = 0;
    w = vc_writer(buf, sizeof(buf));
    vc_write_str8(&w, text);
    assert_true(w.failed);
    r = vc_reader("\3a\0b", 4);
    assert_false(vc_read_str8(&r, out));
    assert_true(r.failed);
    r = vc_reader("\3ab", 3);
    assert_false(vc_read_str8(&r, out));
}

static void every_varint_comes_back_in_its_shortest_form(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4000; i++) {
        uint64_t v = i < 200 ? i : rng() >> rng() % 64;
        uint8_t buf[VC_VARINT_MAX_BYTES];
        struct vc_writer w = vc_writer(buf, sizeof(buf));
        struct vc_reader r;
        size_t expect = 1;

        if (i < 64)
            v = (1ull << i) - (i % 2);
        if (i == 64)
            v = UINT64_MAX;
        while (expect < 10 && v >> (7 * expect))
            expect++;
        vc_write_varint(&w, v);
        assert_false(w.failed);
        assert_int_equal(w.len, expect);
        r = vc_reader(buf, w.len);
        assert_true(vc_read_varint(&r) == v);
        assert_false(r.failed);
        assert_int_equal(vc_reader_left(&r), 0);
        for (size_t n = 0; n < w.len; n++) {
            r = vc_reader(buf, n);
            assert_int_equal(vc_read_varint(&r), 0);
            assert_true(r.failed);
        }
    }
}

static void a_padded_or_oversized_varint_is_refused(void **state)
{
    static const struct {
        size_t n;
        const char *bytes;
    } bad[] = {
        {2, "\x80\x00"},
        {3, "\xff\x80\x00"},
        {10, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"},
        {10, "\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00"},
        {11, "\x80\x80\x80\x80\x80\x80\x80\x80\x80\x81\x00"},
        {11, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"},
    };

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(bad); i++) {
        struct vc_reader r = vc_reader(bad[i].bytes, bad[i].n);

        assert_int_equal(vc_read_varint(&r), 0);
        assert_true(r.failed);
    }
}

static void zigzag_maps_small_differences_to_small_numbers(void **state)
{
    static const int64_t edge[] = {0, -1, 1, -2, 2, INT64_MAX, INT64_MIN};

    (void)state;
    for (size_t i = 0; i < 5; i++)
        assert_true(vc_zigzag(edge[i]) == i);
    assert_true(vc_zigzag(INT64_MAX) == UINT64_MAX - 1);
    assert_true(vc_zigzag(INT64_MIN) == UINT64_MAX);
    for (size_t i = 0; i < VC_ARRAY_LEN(edge); i++)
        assert_true(vc_unzigzag(vc_zigzag(edge[i])) == edge[i]);
    for (unsigned i = 0; i < 1000; i++) {
        uint64_t v = rng() >> rng() % 64;

        assert_true(vc_zigzag(vc_unzigzag(v)) == v);
    }
}

/* ---- queue ---- */

struct item {
    struct vc_queue_node node;
    unsigned n;
};

static unsigned pop_number(struct vc_queue *q)
{
    struct vc_queue_node *n = NULL;

    assert_int_equal(vc_queue_pop(q, UINT64_MAX, &n), 0);
    return ((struct item *)n)->n;
}

static void a_queue_hands_over_in_order_and_counts_bytes(void **state)
{
    struct vc_queue q;
    struct item items[4] = {{.n = 0}, {.n = 1}, {.n = 2}, {.n = 3}};
    struct vc_queue_node *n;

    (void)state;
    vc_queue_init(&q, 100);
    assert_int_equal(vc_queue_pop(&q, 0, &n), VC_AGAIN);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(vc_queue_push(&q, &items[i].node, 25), 0);
    assert_int_equal(vc_queue_bytes(&q), 100);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(pop_number(&q), i);
    assert_int_equal(vc_queue_bytes(&q), 0);
    assert_int_equal(vc_queue_pop(&q, 0, &n), VC_AGAIN);
    assert_int_equal(vc_queue_pop(&q, 1, &n), VC_AGAIN);
    assert_int_equal(vc_queue_pop(&q, vc_now_ns() + VC_NS_PER_MS, &n), VC_AGAIN);
    vc_queue_fini(&q);
}

static void a_closed_queue_gives_what_is_there_then_ends(void **state)
{
    struct vc_queue q;
    struct item a = {.n = 1}, b = {.n = 2};
    struct vc_queue_node *n;

    (void)state;
    vc_queue_init(&q, 10);
    assert_int_equal(vc_queue_push(&q, &a.node, 1), 0);
    vc_queue_close(&q);
    assert_int_equal(vc_queue_push(&q, &b.node, 1), VC_CLOSED);
    assert_int_equal(pop_number(&q), 1);
    assert_int_equal(vc_queue_pop(&q, UINT64_MAX, &n), VC_CLOSED);
    assert_int_equal(vc_queue_pop(&q, 0, &n), VC_CLOSED);
    assert_null(vc_queue_drain(&q));
    vc_queue_fini(&q);
}

static void an_aborted_queue_ends_at_once_and_can_be_drained(void **state)
{
    struct vc_queue q;
    struct item a = {.n = 1}, b = {.n = 2};
    struct vc_queue_node *n;

    (void)state;
    vc_queue_init(&q, 10);
    assert_int_equal(vc_queue_push(&q, &a.node, 1), 0);
    assert_int_equal(vc_queue_push(&q, &b.node, 1), 0);
    vc_queue_abort(&q);
    assert_int_equal(vc_queue_pop(&q, UINT64_MAX, &n), VC_CLOSED);
    assert_int_equal(vc_queue_push(&q, &a.node, 1), VC_CLOSED);
    assert_ptr_equal(vc_queue_drain(&q), &a.node);
    assert_ptr_equal(vc_queue_drain(&q), &b.node);
    assert_null(vc_queue_drain(&q));
    assert_int_equal(vc_queue_bytes(&q), 0);
    vc_queue_fini(&q);
}

static void an_item_above_the_limit_is_taken_when_the_queue_is_empty(void **state)
{
    struct vc_queue q;
    struct item a = {.n = 1};

    (void)state;
    vc_queue_init(&q, 10);
    assert_int_equal(vc_queue_push(&q, &a.node, 1000), 0);
    assert_int_equal(vc_queue_bytes(&q), 1000);
    assert_int_equal(pop_number(&q), 1);
    vc_queue_fini(&q);
}

struct pusher {
    struct vc_queue *q;
    struct item *items;
    unsigned n;
    uint64_t cost;
    int rc;
};

static void *push_all(void *arg)
{
    struct pusher *p = arg;

    for (unsigned i = 0; i < p->n && !p->rc; i++)
        p->rc = vc_queue_push(p->q, &p->items[i].node, p->cost);
    return NULL;
}

#define MANY 5000

static void a_full_queue_holds_its_pusher_and_loses_nothing(void **state)
{
    struct item *items = calloc(MANY, sizeof(*items));
    struct vc_queue q;
    struct pusher p = {.q = &q, .items = items, .n = MANY, .cost = 7};
    struct vc_thread t = {0};
    struct vc_queue_node *n;

    (void)state;
    assert_non_null(items);
    for (unsigned i = 0; i < MANY; i++)
        items[i].n = i;
    vc_queue_init(&q, 20);
    start(&t, push_all, &p);
    for (unsigned i = 0; i < MANY; i++) {
        assert_true(vc_queue_bytes(&q) <= 20);
        assert_int_equal(pop_number(&q), i);
    }
    vc_thread_join(&t);
    assert_int_equal(p.rc, 0);
    assert_int_equal(vc_queue_pop(&q, 0, &n), VC_AGAIN);
    vc_queue_fini(&q);
    free(items);
}

/* Whether the pusher waits already or comes later makes no difference to what it must be told. */
static void end_a_waiting_pusher(void (*end)(struct vc_queue *))
{
    struct item items[3] = {{.n = 0}, {.n = 1}, {.n = 2}};
    struct vc_queue q;
    struct pusher p = {.q = &q, .items = items, .n = 3, .cost = 10};
    struct vc_thread t = {0};
    unsigned left = 0;

    vc_queue_init(&q, 10);
    start(&t, push_all, &p);
    while (vc_queue_bytes(&q) == 0)
        sched_yield();
    end(&q);
    vc_thread_join(&t);
    assert_int_equal(p.rc, VC_CLOSED);
    while (vc_queue_drain(&q))
        left++;
    assert_int_equal(left, 1);
    vc_queue_fini(&q);
}

static void close_and_abort_wake_a_waiting_pusher(void **state)
{
    (void)state;
    end_a_waiting_pusher(vc_queue_close);
    end_a_waiting_pusher(vc_queue_abort);
}

struct popper {
    struct vc_queue *q;
    int rc;
};

static void *pop_for_ever(void *arg)
{
    struct popper *p = arg;
    struct vc_queue_node *n;

    do
        p->rc = vc_queue_pop(p->q, UINT64_MAX, &n);
    while (p->rc == 0);
    return NULL;
}

static void close_and_abort_wake_waiting_poppers(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 2; round++) {
        struct vc_queue q;
        struct popper p[3] = {{.q = &q}, {.q = &q}, {.q = &q}};
        struct vc_thread t[3] = {{0}};

        vc_queue_init(&q, 10);
        for (unsigned i = 0; i < 3; i++)
            start(&t[i], pop_for_ever, &p[i]);
        if (round)
            vc_queue_close(&q);
        else
            vc_queue_abort(&q);
        for (unsigned i = 0; i < 3; i++) {
            vc_thread_join(&t[i]);
            assert_int_equal(p[i].rc, VC_CLOSED);
        }
        vc_queue_fini(&q);
    }
}

/* ---- slab ---- */

static void a_pool_gives_no_more_than_its_slabs(void **state)
{
    struct vc_slab_pool pool;
    struct vc_slab *a, *b, *c = NULL;
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_slab_pool_init(&pool, 4096, 2, &err), 0);
    assert_int_equal(vc_slab_get(&pool, 0, &a, &err), 0);
    assert_int_equal(vc_slab_get(&pool, 0, &b, &err), 0);
    assert_ptr_not_equal(a->data, b->data);
    memset(a->data, 1, 4096);
    memset(b->data, 2, 4096);
    assert_int_equal(vc_slab_get(&pool, 0, &c, &err), VC_AGAIN);
    assert_int_equal(vc_slab_get(&pool, vc_now_ns() + VC_NS_PER_MS, &c, &err), VC_AGAIN);
    assert_null(c);
    vc_slab_unref(vc_slab_ref(a));
    assert_int_equal(vc_slab_get(&pool, 0, &c, &err), VC_AGAIN);
    vc_slab_unref(a);
    assert_int_equal(vc_slab_get(&pool, 0, &c, &err), 0);
    assert_ptr_equal(c, a);
    vc_slab_unref(b);
    vc_slab_unref(c);
    vc_slab_unref(NULL);
    vc_slab_pool_fini(&pool);
}

struct taker {
    struct vc_slab_pool *pool;
    unsigned n;
    int rc;
};

static void *take_and_give(void *arg)
{
    struct taker *t = arg;
    struct vc_err err;

    for (unsigned i = 0; i < t->n && !t->rc; i++) {
        struct vc_slab *s;

        t->rc = vc_slab_get(t->pool, UINT64_MAX, &s, &err);
        if (!t->rc) {
            memset(s->data, (int)i, t->pool->slab_bytes);
            vc_slab_unref(s);
        }
    }
    return NULL;
}

static void takers_that_wait_all_get_their_turn(void **state)
{
    struct vc_slab_pool pool;
    struct taker k[4];
    struct vc_thread t[4] = {{0}};
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_slab_pool_init(&pool, 64, 2, &err), 0);
    for (unsigned i = 0; i < 4; i++) {
        k[i] = (struct taker){.pool = &pool, .n = 2000};
        start(&t[i], take_and_give, &k[i]);
    }
    for (unsigned i = 0; i < 4; i++) {
        vc_thread_join(&t[i]);
        assert_int_equal(k[i].rc, 0);
    }
    assert_true(pool.made <= 2);
    vc_slab_pool_fini(&pool);
}

static void closing_a_pool_wakes_all_who_wait(void **state)
{
    struct vc_slab_pool pool;
    struct taker k[3];
    struct vc_thread t[3] = {{0}};
    struct vc_slab *s, *none;
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_slab_pool_init(&pool, 64, 1, &err), 0);
    assert_int_equal(vc_slab_get(&pool, UINT64_MAX, &s, &err), 0);
    for (unsigned i = 0; i < 3; i++) {
        k[i] = (struct taker){.pool = &pool, .n = 1};
        start(&t[i], take_and_give, &k[i]);
    }
    vc_slab_pool_close(&pool);
    for (unsigned i = 0; i < 3; i++) {
        vc_thread_join(&t[i]);
        assert_int_equal(k[i].rc, VC_CLOSED);
    }
    vc_slab_unref(s);
    assert_int_equal(vc_slab_get(&pool, 0, &none, &err), VC_CLOSED);
    vc_slab_pool_fini(&pool);
    vc_slab_pool_fini(&pool);
}

/* ---- fdio: a folder of its own for each test ---- */

struct place {
    char dir[64], path[96];
    int fd;
};

static int place_make(void **state)
{
    struct place *p = calloc(1, sizeof(*p));

    if (!p)
        return -1;
    strcpy(p->dir, "/tmp/vc-test-base-XXXXXX");
    if (!mkdtemp(p->dir))
        return -1;
    snprintf(p->path, sizeof(p->path), "%s/it", p->dir);
    p->fd = open(p->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    *state = p;
    return p->fd < 0 ? -1 : 0;
}

static int place_remove(void **state)
{
    struct place *p = *state;

    close(p->fd);
    unlink(p->path);
    if (rmdir(p->dir) < 0)
        print_message("left behind: %s\n", p->dir);
    free(p);
    return 0;
}

struct reading {
    int fd;
    uint8_t *buf;
    size_t n;
    int rc;
};

static void *read_it(void *arg)
{
    struct reading *r = arg;

    r->rc = vc_read_full(r->fd, r->buf, r->n);
    return NULL;
}

#define LONG_BYTES (1u << 20)

/* A vector of many odd pieces (more than IOV_MAX, empty ones among them) of `data`. */
static size_t cut(uint8_t *data, struct iovec *iov, size_t cap)
{
    size_t at = 0, n = 0;

    while (at < LONG_BYTES && n < cap - 1) {
        size_t k = n % 7 == 3 ? 0 : rng() % 400;

        if (k > LONG_BYTES - at)
            k = LONG_BYTES - at;
        iov[n++] = (struct iovec){data + at, k};
        at += k;
    }
    iov[n++] = (struct iovec){data + at, LONG_BYTES - at};
    return n;
}

static void long_writes_arrive_whole(int a, int b)
{
    uint8_t *data = malloc(LONG_BYTES), *got = malloc(LONG_BYTES);
    struct iovec *iov = calloc(3000, sizeof(*iov));
    struct vc_thread t = {0};

    assert_true(data && got && iov);
    for (size_t i = 0; i < LONG_BYTES; i++)
        data[i] = (uint8_t)rng();
    for (unsigned round = 0; round < 2; round++) {
        struct reading r = {.fd = b, .buf = got, .n = LONG_BYTES};

        memset(got, 0, LONG_BYTES);
        start(&t, read_it, &r);
        if (round)
            assert_int_equal(vc_writev_full(a, iov, cut(data, iov, 3000)), 0);
        else
            assert_int_equal(vc_write_full(a, data, LONG_BYTES), 0);
        vc_thread_join(&t);
        assert_int_equal(r.rc, 1);
        assert_memory_equal(got, data, LONG_BYTES);
    }
    free(data);
    free(got);
    free(iov);
}

static void short_writes_are_continued(void **state)
{
    int sv[2], pv[2], small = 4096;

    (void)state;
    for (unsigned flags = 0; flags < 2; flags++) {
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
        setsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
        if (flags)
            fcntl(sv[0], F_SETFL, O_NONBLOCK);
        long_writes_arrive_whole(sv[0], sv[1]);
        close(sv[0]);
        close(sv[1]);
        assert_int_equal(pipe2(pv, 0), 0);
        if (flags)
            fcntl(pv[1], F_SETFL, O_NONBLOCK);
        long_writes_arrive_whole(pv[1], pv[0]);
        close(pv[0]);
        close(pv[1]);
    }
}

static void an_end_in_the_middle_is_told_from_one_at_the_start(void **state)
{
    int sv[2];
    uint8_t buf[8];

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
    assert_int_equal(vc_wait_readable(sv[1], 0), 0);
    assert_int_equal(vc_write_full(sv[0], "abc", 3), 0);
    assert_int_equal(vc_write_full(sv[0], "", 0), 0);
    assert_int_equal(vc_wait_readable(sv[1], -1), 1);
    close(sv[0]);
    errno = 0;
    assert_int_equal(vc_read_full(sv[1], buf, 4), -1);
    assert_int_equal(errno, EPIPE);
    assert_int_equal(vc_read_full(sv[1], buf, 4), 0);
    assert_int_equal(vc_read_some(sv[1], buf, 4), 0);
    assert_int_equal(vc_wait_readable(sv[1], 0), 1);
    errno = 0;
    assert_int_equal(vc_write_full(sv[1], "x", 1), -1); /* and no SIGPIPE */
    assert_int_equal(errno, EPIPE);
    close(sv[1]);
}

static void reads_and_writes_at_an_offset_are_whole(void **state)
{
    struct place *p = *state;
    uint8_t *data = malloc(LONG_BYTES), *got = malloc(LONG_BYTES);
    struct iovec *iov = calloc(3000, sizeof(*iov));
    int fd = open(p->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    assert_true(data && got && iov && fd >= 0);
    for (size_t i = 0; i < LONG_BYTES; i++)
        data[i] = (uint8_t)rng();
    assert_int_equal(vc_pwritev_full(fd, iov, cut(data, iov, 3000), 4097), 0);
    assert_int_equal(vc_pread_full(fd, got, LONG_BYTES, 4097), 1);
    assert_memory_equal(got, data, LONG_BYTES);
    assert_int_equal(vc_pread_full(fd, got, LONG_BYTES, 4098), 0);
    assert_int_equal(vc_pread_full(fd, got, 1, 1u << 30), 0);
    assert_int_equal(vc_pread_full(-1, got, 1, 0), -1);
    close(fd);
    free(data);
    free(got);
    free(iov);
}

static void descriptors_pass_and_are_closed_on_exec(void **state)
{
    int sv[2], pv[2], got[4] = {-1, -1, -1, -1};
    size_t n_got = 9;
    char buf[8];

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
    assert_int_equal(pipe(pv), 0);
    assert_int_equal(vc_send_fds(sv[0], "hi", 2, pv, 2), 0);
    assert_int_equal(vc_recv_fds(sv[1], buf, sizeof(buf), got, 4, &n_got), 2);
    assert_memory_equal(buf, "hi", 2);
    assert_int_equal(n_got, 2);
    assert_true(fcntl(got[0], F_GETFD) & FD_CLOEXEC);
    assert_int_equal(vc_write_full(got[1], "z", 1), 0);
    assert_int_equal(vc_read_full(pv[0], buf, 1), 1);
    assert_int_equal(buf[0], 'z');
    assert_int_equal(vc_send_fds(sv[0], "no", 2, NULL, 0), 0);
    assert_int_equal(vc_recv_fds(sv[1], buf, sizeof(buf), got + 2, 2, &n_got), 2);
    assert_int_equal(n_got, 0);
    errno = 0;
    assert_int_equal(vc_send_fds(sv[0], "x", 1, pv, 5), -1);
    assert_int_equal(errno, EINVAL);
    close(sv[0]);
    assert_int_equal(vc_recv_fds(sv[1], buf, sizeof(buf), got + 2, 2, &n_got), 0);
    close(sv[1]);
    for (unsigned i = 0; i < 2; i++) {
        close(pv[i]);
        close(got[i]);
    }
}

/* The pipe's other end sees that no copy of a descriptor nobody asked for is left. */
static void descriptors_above_the_number_asked_for_are_closed(void **state)
{
    int sv[2], pv[2], keep[2], got[2] = {-1, -1};
    size_t n_got;
    char c;

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
    assert_int_equal(pipe(keep), 0);
    assert_int_equal(pipe(pv), 0);
    assert_int_equal(vc_send_fds(sv[0], "x", 1, (int[]){keep[1], pv[1], pv[1]}, 3), 0);
    close(pv[1]);
    assert_int_equal(vc_recv_fds(sv[1], &c, 1, got, 1, &n_got), 1);
    assert_int_equal(n_got, 1);
    assert_int_equal(got[1], -1);
    assert_int_equal(vc_read_full(pv[0], &c, 1), 0);
    close(pv[0]);
    close(got[0]);
    close(keep[0]);
    close(keep[1]);
    close(sv[0]);
    close(sv[1]);
}

static void listening_replaces_a_dead_socket_but_not_a_live_one(void **state)
{
    struct place *p = *state;
    int dead = vc_unix_listen(p->path, 0600, 1), live, fd;
    struct stat st;

    assert_true(dead >= 0);
    assert_int_equal(stat(p->path, &st), 0);
    assert_true(S_ISSOCK(st.st_mode));
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_true(fcntl(dead, F_GETFD) & FD_CLOEXEC);
    errno = 0;
    assert_int_equal(vc_unix_listen(p->path, 0600, 1), -1);
    assert_int_equal(errno, EADDRINUSE);
    close(dead);
    errno = 0;
    assert_int_equal(vc_unix_connect(p->path), -1);
    assert_int_equal(errno, ECONNREFUSED);
    live = vc_unix_listen(p->path, 0666, 1);
    assert_true(live >= 0);
    assert_int_equal(stat(p->path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0666);
    fd = vc_unix_connect(p->path);
    assert_true(fd >= 0);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    close(fd);
    close(live);
}

static void what_is_made_is_its_owners_whatever_the_umask(void **state)
{
    static const mode_t masks[] = {0, 0077, 0277, 0777};
    struct place *p = *state;
    struct stat st;

    for (unsigned i = 0; i < VC_ARRAY_LEN(masks); i++) {
        mode_t old = umask(masks[i]);
        int rc = vc_mkdirat(AT_FDCWD, p->path, 0700), fd;

        assert_int_equal(rc, 0);
        assert_int_equal(stat(p->path, &st), 0);
        assert_int_equal(st.st_mode & 07777, 0700);
        assert_int_equal(vc_mkdirat(AT_FDCWD, p->path, 0700), -1);
        assert_int_equal(errno, EEXIST);
        rmdir(p->path);
        fd = vc_unix_listen(p->path, 0600, 1);
        umask(old);
        assert_true(fd >= 0);
        assert_int_equal(stat(p->path, &st), 0);
        assert_int_equal(st.st_mode & 07777, 0600);
        close(fd);
        unlink(p->path);
    }
}

/* A backlog that is full must not pass for a socket that nobody listens on. */
static void a_live_socket_with_a_full_backlog_is_kept(void **state)
{
    struct place *p = *state;
    int live = vc_unix_listen(p->path, 0600, 0), fd = vc_unix_connect(p->path), again;

    assert_true(live >= 0 && fd >= 0);
    errno = 0;
    assert_int_equal(vc_unix_listen(p->path, 0600, 1), -1);
    assert_int_equal(errno, EADDRINUSE);
    again = accept(live, NULL, NULL);
    assert_true(again >= 0);
    close(again);
    close(fd);
    close(live);
}

static void listening_never_removes_what_is_no_socket(void **state)
{
    struct place *p = *state;
    int fd = open(p->path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    struct stat st;

    close(fd);
    errno = 0;
    assert_int_equal(vc_unix_listen(p->path, 0600, 1), -1);
    assert_int_equal(errno, EADDRINUSE);
    assert_int_equal(stat(p->path, &st), 0);
    assert_true(S_ISREG(st.st_mode));
}

/* A directory that deep, and a name that long: neither fits a socket address. */
static void connect_at(const char *path)
{
    int live = vc_unix_listen(path, 0660, 1), fd;
    struct stat st;

    assert_true(live >= 0);
    assert_int_equal(stat(path, &st), 0);
    assert_true(S_ISSOCK(st.st_mode));
    assert_int_equal(st.st_mode & 0777, 0660);
    errno = 0;
    assert_int_equal(vc_unix_listen(path, 0600, 1), -1);
    assert_int_equal(errno, EADDRINUSE);
    close(accept(live, NULL, NULL)); /* what it knocked with */
    fd = vc_unix_connect(path);
    assert_true(fd >= 0);
    close(fd);
    close(live);
    live = vc_unix_listen(path, 0600, 1); /* in place of a dead one */
    assert_true(live >= 0);
    close(live);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(vc_unix_connect(path), -1);
    assert_int_equal(errno, ENOENT);
}

static void a_path_longer_than_a_socket_address_works(void **state)
{
    struct place *p = *state;
    char path[1024], deep[400];

    for (unsigned n = 60; n <= 240; n += 60) {
        snprintf(path, sizeof(path), "%s/%0*d", p->dir, (int)n, 0);
        connect_at(path);
    }
    snprintf(deep, sizeof(deep), "%s/%0240d", p->dir, 1);
    assert_int_equal(mkdir(deep, 0700), 0);
    for (unsigned n = 1; n <= 240; n += 120) {
        snprintf(path, sizeof(path), "%s/%0*d", deep, (int)n, 0);
        connect_at(path);
    }
    assert_int_equal(rmdir(deep), 0); /* nothing was left behind */
}

static void a_path_too_long_for_a_file_is_told(void **state)
{
    char path[5000];

    (void)state;
    memset(path, 'x', sizeof(path));
    path[0] = '/';
    path[4999] = 0;
    errno = 0;
    assert_int_equal(vc_unix_connect(path), -1);
    assert_int_equal(errno, ENAMETOOLONG);
    errno = 0;
    assert_int_equal(vc_unix_listen(path, 0600, 1), -1);
    assert_int_equal(errno, ENAMETOOLONG);
    assert_int_equal(vc_unix_connect(""), -1);
    assert_int_equal(errno, ENOENT);
    assert_int_equal(vc_unix_listen("", 0600, 1), -1);
    path[107] = 0;
    assert_int_equal(vc_unix_connect(path), -1);
    assert_int_equal(errno, ENOENT);
    path[108] = 0;
    assert_int_equal(vc_unix_connect(path), -1);
    assert_int_equal(errno, ENOENT);
}

/* ---- durable ---- */

static void assert_file(const struct place *p, const char *expect)
{
    char buf[100] = {0};
    int fd = openat(p->fd, "it", O_RDONLY | O_CLOEXEC);
    struct stat st;

    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(vc_read_some(fd, buf, sizeof(buf) - 1), strlen(expect));
    assert_string_equal(buf, expect);
    close(fd);
    assert_int_equal(faccessat(p->fd, "it.new", F_OK, 0), -1);
}

static void a_published_file_replaces_the_old_one_whole(void **state)
{
    struct place *p = *state;
    struct vc_err err;
    int old;
    char buf[8] = {0};

    assert_int_equal(vc_durable_write_file(&vc_io_kernel, p->fd, "it", "first", 5, &err), 0);
    assert_file(p, "first");
    old = openat(p->fd, "it", O_RDONLY | O_CLOEXEC);
    assert_int_equal(vc_durable_write_file(&vc_io_kernel, p->fd, "it", "2nd", 3, &err), 0);
    assert_file(p, "2nd");
    assert_int_equal(vc_read_some(old, buf, sizeof(buf)), 5);
    assert_string_equal(buf, "first");
    close(old);
    assert_int_equal(vc_durable_write_file(&vc_io_kernel, p->fd, "it", "", 0, &err), 0);
    assert_file(p, "");
}

static void what_an_interrupted_write_left_is_overwritten(void **state)
{
    struct place *p = *state;
    struct vc_err err;
    int fd = openat(p->fd, "it.new", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

    assert_int_equal(vc_write_full(fd, "a long rest of a write", 22), 0);
    close(fd);
    assert_int_equal(vc_durable_write_file(&vc_io_kernel, p->fd, "it", "new", 3, &err), 0);
    assert_file(p, "new");
}

static void a_write_that_fails_leaves_the_old_file_alone(void **state)
{
    struct place *p = *state;
    struct vc_err err = VC_ERR_INIT;

    assert_int_equal(vc_durable_write_file(&vc_io_kernel, -1, "it", "x", 1, &err), VC_E_STORE);
    assert_int_equal(err.sys_errno, EBADF);
    assert_non_null(strstr(err.message, "it.new"));
    /* A directory with something in it stays. */
    assert_int_equal(mkdirat(p->fd, "it", 0700), 0);
    assert_int_equal(mkdirat(p->fd, "it/more", 0700), 0);
    assert_int_equal(vc_durable_write_file(&vc_io_kernel, p->fd, "it", "x", 1, &err), VC_E_STORE);
    assert_int_equal(faccessat(p->fd, "it.new", F_OK, 0), -1);
    assert_int_equal(unlinkat(p->fd, "it/more", AT_REMOVEDIR), 0);
    assert_int_equal(unlinkat(p->fd, "it", AT_REMOVEDIR), 0);
    assert_int_equal(mkdirat(p->fd, "it.new", 0700), 0);
    assert_int_equal(mkdirat(p->fd, "it.new/more", 0700), 0);
    assert_int_equal(vc_durable_write_file(&vc_io_kernel, p->fd, "it", "x", 1, &err), VC_E_STORE);
    assert_int_equal(faccessat(p->fd, "it", F_OK, 0), -1);
    assert_int_equal(unlinkat(p->fd, "it.new/more", AT_REMOVEDIR), 0);
    assert_int_equal(unlinkat(p->fd, "it.new", AT_REMOVEDIR), 0);
}

static void a_file_in_the_way_is_never_written_to(void **state)
{
    struct place *p = *state;
    char buf[8] = {0};
    struct vc_err err;
    int fd = openat(p->fd, "mine", O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    assert_int_equal(vc_write_full(fd, "keep it", 7), 0);
    assert_int_equal(linkat(p->fd, "mine", p->fd, "it.new", 0), 0);
    assert_int_equal(vc_durable_write_file(&vc_io_kernel, p->fd, "it", "1st", 3, &err), 0);
    assert_file(p, "1st");
    assert_int_equal(symlinkat("mine", p->fd, "it.new"), 0);
    assert_int_equal(vc_durable_write_file(&vc_io_kernel, p->fd, "it", "2nd", 3, &err), 0);
    assert_file(p, "2nd");
    assert_int_equal(symlinkat("other", p->fd, "it.new"), 0);
    assert_int_equal(vc_durable_write_file(&vc_io_kernel, p->fd, "it", "3rd", 3, &err), 0);
    assert_file(p, "3rd");
    assert_int_equal(faccessat(p->fd, "other", F_OK, 0), -1);
    assert_int_equal(vc_pread_full(fd, buf, 7, 0), 1);
    assert_string_equal(buf, "keep it");
    close(fd);
}

static void syncing_no_descriptor_is_a_store_error(void **state)
{
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    assert_int_equal(vc_durable_sync(&vc_io_kernel, -1, "it", &err), VC_E_STORE);
    assert_int_equal(vc_durable_sync_dir(&vc_io_kernel, -1, "it", &err), VC_E_STORE);
    assert_int_equal(vc_durable_publish(&vc_io_kernel, -1, -1, "a", "b", &err), VC_E_STORE);
    assert_non_null(strstr(err.message, "'a'"));
}

/* ---- units ---- */

static const char uuid[] = "00112233-4455-6677-8899-aabbccddeeff";

static void an_id_has_the_bytes_of_its_text(void **state)
{
    struct vc_id id, again;
    char text[VC_ID_TEXT_BYTES];

    (void)state;
    assert_true(vc_id_parse(uuid, &id));
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(id.b[i], 0x11 * i);
    vc_id_format(&id, text);
    assert_string_equal(text, uuid);
    assert_true(vc_id_parse("00112233-4455-6677-8899-AABBCCDDEEFF", &again));
    assert_true(vc_id_equal(&id, &again));
    assert_false(vc_id_is_nil(&id));
    assert_true(vc_id_parse("00000000-0000-0000-0000-000000000000", &id));
    assert_true(vc_id_is_nil(&id));
    assert_false(vc_id_equal(&id, &again));
}

static void any_other_text_is_no_id(void **state)
{
    struct vc_id id, before;
    char text[VC_ID_TEXT_BYTES + 1];

    (void)state;
    memset(&id, 0x77, sizeof(id));
    before = id;
    for (size_t n = 0; n < sizeof(uuid) - 1; n++) {
        strcpy(text, uuid);
        text[n] = 0;
        assert_false(vc_id_parse(text, &id));
        text[n] = 'g';
        assert_false(vc_id_parse(text, &id));
        text[n] = uuid[n] == '-' ? '0' : '-';
        assert_false(vc_id_parse(text, &id));
    }
    snprintf(text, sizeof(text), "%s ", uuid);
    assert_false(vc_id_parse(text, &id));
    assert_false(vc_id_parse("00112233445566778899aabbccddeeff", &id));
    assert_false(vc_id_parse("{0112233-4455-6677-8899-aabbccddeeff", &id));
    assert_true(vc_id_equal(&id, &before));
}

static void random_ids_are_of_version_4_and_differ(void **state)
{
    struct vc_id a, b;

    (void)state;
    assert_true(vc_id_random(&a));
    assert_true(vc_id_random(&b));
    assert_false(vc_id_equal(&a, &b));
    assert_int_equal(a.b[6] >> 4, 4);
    assert_int_equal(a.b[8] >> 6, 2);
}

static void blocks_are_found_and_mapped_by_name(void **state)
{
    struct vc_ram *a = calloc(2, sizeof(*a)), *b = a + 1;
    int map[VC_MAX_BLOCKS];

    (void)state;
    assert_non_null(a);
    *a = (struct vc_ram){4096, 3, {{"pc.ram", 8192}, {"vga", 4096}, {"rom", 0}}};
    *b = (struct vc_ram){4096, 2, {{"rom", 0}, {"pc.ram", 4096}}};
    assert_int_equal(vc_ram_bytes(a), 12288);
    assert_int_equal(vc_ram_block_pages(a, 0), 2);
    assert_int_equal(vc_ram_block_pages(a, 2), 0);
    assert_int_equal(vc_ram_find(a, "vga"), 1);
    assert_int_equal(vc_ram_find(b, "vga"), -1);
    vc_ram_map(a, b, map);
    assert_int_equal(map[0], 1);
    assert_int_equal(map[1], -1);
    assert_int_equal(map[2], 0);
    b->page_bytes = 8192;
    vc_ram_map(a, b, map);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(map[i], -1);
    free(a);
}

/* ---- err, log ---- */

static void an_error_carries_its_origin_reason_and_hint(void **state)
{
    struct vc_err err;

    (void)state;
    errno = ENOENT;
    assert_int_equal(
        vc_err_set_errno_hint(&err, VC_E_STORE, "make it", "cannot open '%s'", "there"),
        VC_E_STORE);
    assert_int_equal(err.code, VC_E_STORE);
    assert_int_equal(err.sys_errno, ENOENT);
    assert_string_equal(err.message, "cannot open 'there': No such file or directory");
    assert_string_equal(err.hint, "make it");
    assert_non_null(strstr(err.file, "test_base.c"));
    assert_true(err.line > 0);
    assert_int_equal(vc_err_set(&err, VC_E_USAGE, "no"), VC_E_USAGE);
    assert_string_equal(err.message, "no");
    assert_string_equal(err.hint, "");
    assert_int_equal(err.sys_errno, 0);
    assert_int_equal(vc_err_set(NULL, VC_E_QMP, "dropped"), VC_E_QMP);
}

static void a_prefix_stands_before_the_message_and_keeps_the_rest(void **state)
{
    struct vc_err err;

    (void)state;
    (void)vc_err_set_hint(&err, VC_E_CORRUPT, "verify it", "page %d differs", 7);
    assert_int_equal(vc_err_prefix(&err, "VM '%s'", "a"), VC_E_CORRUPT);
    assert_string_equal(err.message, "VM 'a': page 7 differs");
    assert_string_equal(err.hint, "verify it");
    assert_true(vc_err_prefix(NULL, "x") < 0);
}

static void long_messages_are_cut_and_end_in_nul(void **state)
{
    struct vc_err err;
    char text[1000];

    (void)state;
    memset(text, 'm', sizeof(text));
    text[sizeof(text) - 1] = 0;
    errno = EIO;
    (void)vc_err_set_errno_hint(&err, VC_E_STORE, text, "%s", text);
    assert_int_equal(strlen(err.message), sizeof(err.message) - 1);
    assert_int_equal(strlen(err.hint), sizeof(err.hint) - 1);
    assert_int_equal(vc_err_prefix(&err, "%s", "short"), VC_E_STORE);
    assert_int_equal(strlen(err.message), sizeof(err.message) - 1);
    assert_memory_equal(err.message, "short: mmm", 10);
    assert_int_equal(vc_err_prefix(&err, "%s", text), VC_E_STORE);
    assert_int_equal(strlen(err.message), sizeof(err.message) - 1);
    assert_int_equal(strlen(err.hint), sizeof(err.hint) - 1);
}

static void every_code_has_a_name_of_its_own(void **state)
{
    static const int codes[] = {
        0,
        VC_E_FAILED,
        VC_E_USAGE,
        VC_E_NOMEM,
        VC_E_QMP_CONNECT,
        VC_E_QMP,
        VC_E_QEMU_STATE,
        VC_E_UNREACHABLE,
        VC_E_VERSION,
        VC_E_PROTOCOL,
        VC_E_PEER_LOST,
        VC_E_REFUSED,
        VC_E_NO_SUCH_VM,
        VC_E_DEST_QEMU,
        VC_E_STORE,
        VC_E_STORE_FULL,
        VC_E_CORRUPT,
        VC_E_BUSY,
        VC_E_NOT_QEMU,
        VC_E_NO_RETURN_PATH,
        VC_E_MIGRATION,
        VC_E_SEAL,
        VC_E_CANCELLED,
        VC_E_UNSETTLED,
    };

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(codes); i++) {
        assert_string_not_equal(vc_err_name(codes[i]), "unknown");
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(vc_err_name(codes[i]), vc_err_name(codes[k]));
    }
    assert_string_equal(vc_err_name(-99), "unknown");
    assert_string_equal(vc_err_name(1), "unknown");
}

static void keep_line(void *opaque, enum vc_log_level level, const char *text)
{
    snprintf(opaque, 1000, "%d %s", (int)level, text);
}

static void a_log_drops_what_is_above_its_level(void **state)
{
    char line[1000] = "";
    struct vc_log log = {keep_line, line, VC_LOG_INFO};
    struct vc_err err;

    (void)state;
    vc_log(NULL, VC_LOG_ERROR, "nobody");
    vc_log(&(struct vc_log){0}, VC_LOG_ERROR, "nobody");
    vc_log(&log, VC_LOG_DEBUG, "dropped");
    assert_string_equal(line, "");
    vc_log(&log, VC_LOG_INFO, "%d pages", 3);
    assert_string_equal(line, "2 3 pages");
    (void)vc_err_set_hint(&err, VC_E_BUSY, "wait", "busy");
    vc_log_err(&log, VC_LOG_WARNING, "store", &err);
    assert_string_equal(line, "1 store: busy (wait)");
}

static void a_message_is_one_line_whatever_is_in_it(void **state)
{
    char line[1000] = "";
    struct vc_log log = {keep_line, line, VC_LOG_INFO};
    struct vc_err err;

    (void)state;
    (void)vc_err_set_hint(&err, VC_E_NO_SUCH_VM, "a\thint", "no VM '%s'",
                          "x\nall is well\x1b[2J\x7f");
    assert_string_equal(err.message, "no VM 'x?all is well?[2J?'");
    assert_string_equal(err.hint, "a?hint");
    vc_log(&log, VC_LOG_INFO, "from '%s'", "a\r\nb \xc2\x9b\x32J \xc3\xa9 \xc2\xb0 \xc2");
    assert_string_equal(line, "2 from 'a??b ??2J \xc3\xa9 \xc2\xb0 \xc2'");
}

/* U+202E lets "gpj.exe" read as "exe.jpg". */
static void what_others_say_does_not_change_the_direction_of_writing(void **state)
{
    static const char *const controls[] = {
        "\u061c", "\u200e", "\u200f", "\u202a", "\u202b", "\u202c",
        "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069",
    };
    /* What is beside them, and one that is cut short. */
    static const char *const seen[] = {"\u061b", "\u061d", "\u200d", "\u2010",
                                       "\u202f", "\u2065", "\u206a", "\xe2\x80"};
    char line[1000] = "";
    struct vc_log log = {keep_line, line, VC_LOG_INFO};
    struct vc_err err;

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(controls); i++) {
        const char *marks = strlen(controls[i]) == 2 ? "??" : "???";
        char want[64];

        snprintf(want, sizeof(want), "2 from 'a%sb%s'", marks, marks);
        vc_log(&log, VC_LOG_INFO, "from 'a%sb%s'", controls[i], controls[i]);
        assert_string_equal(line, want);
        (void)vc_err_set(&err, VC_E_FAILED, "x");
        (void)vc_err_prefix(&err, "a%s", controls[i]);
        snprintf(want, sizeof(want), "a%s: x", marks);
        assert_string_equal(err.message, want);
    }
    for (size_t i = 0; i < VC_ARRAY_LEN(seen); i++) {
        char want[64];

        snprintf(want, sizeof(want), "2 %s", seen[i]);
        vc_log(&log, VC_LOG_INFO, "%s", seen[i]);
        assert_string_equal(line, want);
    }
}

/* ---- json ---- */

static struct json_object *parse(const char *text)
{
    return vc_json_parse(text, strlen(text));
}

static void members_of_another_type_count_as_absent(void **state)
{
    vc_auto_json struct json_object *o =
        parse("{\"s\": \"x\", \"n\": 18446744073709551615, \"m\": -1, \"b\": true, \"z\": null}");

    (void)state;
    assert_non_null(o);
    assert_string_equal(vc_json_str(o, "s", "-"), "x");
    assert_string_equal(vc_json_str(o, "n", "-"), "-");
    assert_string_equal(vc_json_str(o, "none", "-"), "-");
    assert_true(vc_json_u64(o, "n", 7) == UINT64_MAX);
    assert_true(vc_json_u64(o, "m", 7) == 7);
    assert_true(vc_json_u64(o, "s", 7) == 7);
    assert_true(vc_json_u64(o, "b", 7) == 7);
    assert_true(vc_json_bool(o, "b", false));
    assert_true(vc_json_bool(o, "n", true));
    assert_false(vc_json_bool(o, "z", false));
    assert_null(vc_json_get(NULL, "s"));
    assert_null(vc_json_get(vc_json_get(o, "s"), "s"));
}

static void what_is_no_single_value_is_no_json(void **state)
{
    static const char *const bad[] = {"", "{", "{\"a\":", "[1,2", "nul", "\"a", "{]", "\x01"};
    char deep[2 * VC_JSON_MAX_DEPTH + 10];

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(bad); i++)
        assert_null(parse(bad[i]));
    memset(deep, '[', sizeof(deep));
    memset(deep + VC_JSON_MAX_DEPTH + 5, ']', VC_JSON_MAX_DEPTH + 5);
    assert_null(vc_json_parse(deep, sizeof(deep)));
}

#define NESTED 30

/* An array of objects as deep as they may be, which cost most: that many times NESTED. */
static char *many_objects(size_t n)
{
    char *text = malloc(n * (6 * NESTED + 2) + 2), *at = text;

    assert_non_null(text);
    for (size_t i = 0; i < n; i++) {
        *at++ = i ? ',' : '[';
        for (int k = 1; k < NESTED; k++)
            at = stpcpy(at, "{\"a\":");
        at = stpcpy(at, "{}");
        memset(at, '}', NESTED - 1);
        at += NESTED - 1;
    }
    strcpy(at, "]");
    return text;
}

static void what_has_too_many_values_is_not_parsed(void **state)
{
    size_t n = VC_JSON_MAX_VALUES / (NESTED + 1);
    vc_auto_free char *most = many_objects(n);
    vc_auto_free char *more = many_objects(n + 1);
    size_t before = mallinfo2().uordblks;
    vc_auto_json struct json_object *o = parse(most);

    (void)state;
    assert_int_equal(json_object_array_length(o), n);
    assert_true(mallinfo2().uordblks < before + (64u << 20));
    assert_false(vc_json_is_too_much(most, strlen(most)));
    assert_true(vc_json_is_too_much(more, strlen(more)));
    assert_null(parse(more));
}

static void an_object_is_written_as_one_line(void **state)
{
    vc_auto_json struct json_object *o = json_object_new_object();

    (void)state;
    vc_json_add_str(o, "path", "/a/b\n");
    vc_json_add_u64(o, "n", UINT64_MAX);
    vc_json_add_bool(o, "b", false);
    assert_string_equal(vc_json_line(o),
                        "{\"path\":\"/a/b\\n\",\"n\":18446744073709551615,\"b\":false}");
}

/* ---- threads and clocks ---- */

static void *signals_blocked(void *arg)
{
    sigset_t now;

    pthread_sigmask(SIG_SETMASK, NULL, &now);
    *(bool *)arg = sigismember(&now, SIGTERM) == 1 && sigismember(&now, SIGINT) == 1;
    return NULL;
}

static void threads_start_with_signals_blocked(void **state)
{
    struct vc_thread t = {0};
    bool blocked = false;
    sigset_t now;

    (void)state;
    vc_thread_join(&t);
    start(&t, signals_blocked, &blocked);
    assert_true(t.running);
    vc_thread_join(&t);
    vc_thread_join(&t);
    assert_false(t.running);
    assert_true(blocked);
    pthread_sigmask(SIG_SETMASK, NULL, &now);
    assert_false(sigismember(&now, SIGTERM));
}

static void clocks_go_forward(void **state)
{
    uint64_t a = vc_now_ns(), b = vc_now_ns();

    (void)state;
    assert_true(b >= a);
    assert_true(vc_wall_s() > 1600000000);
}

#define IN_A_PLACE(test) cmocka_unit_test_setup_teardown(test, place_make, place_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_come_back_in_their_byte_order),
        cmocka_unit_test(a_failed_reader_stays_failed),
        cmocka_unit_test(a_failed_writer_stays_failed_and_writes_nothing),
        cmocka_unit_test(texts_are_counted_and_hold_no_nul),
        cmocka_unit_test(every_varint_comes_back_in_its_shortest_form),
        cmocka_unit_test(a_padded_or_oversized_varint_is_refused),
        cmocka_unit_test(zigzag_maps_small_differences_to_small_numbers),
        cmocka_unit_test(a_queue_hands_over_in_order_and_counts_bytes),
        cmocka_unit_test(a_closed_queue_gives_what_is_there_then_ends),
        cmocka_unit_test(an_aborted_queue_ends_at_once_and_can_be_drained),
        cmocka_unit_test(an_item_above_the_limit_is_taken_when_the_queue_is_empty),
        cmocka_unit_test(a_full_queue_holds_its_pusher_and_loses_nothing),
        cmocka_unit_test(close_and_abort_wake_a_waiting_pusher),
        cmocka_unit_test(close_and_abort_wake_waiting_poppers),
        cmocka_unit_test(a_pool_gives_no_more_than_its_slabs),
        cmocka_unit_test(takers_that_wait_all_get_their_turn),
        cmocka_unit_test(closing_a_pool_wakes_all_who_wait),
        cmocka_unit_test(short_writes_are_continued),
        cmocka_unit_test(an_end_in_the_middle_is_told_from_one_at_the_start),
        IN_A_PLACE(reads_and_writes_at_an_offset_are_whole),
        cmocka_unit_test(descriptors_pass_and_are_closed_on_exec),
        cmocka_unit_test(descriptors_above_the_number_asked_for_are_closed),
        IN_A_PLACE(what_is_made_is_its_owners_whatever_the_umask),
        IN_A_PLACE(listening_replaces_a_dead_socket_but_not_a_live_one),
        IN_A_PLACE(a_live_socket_with_a_full_backlog_is_kept),
        IN_A_PLACE(listening_never_removes_what_is_no_socket),
        cmocka_unit_test_setup_teardown(a_path_longer_than_a_socket_address_works, place_make,
                                        place_remove),
        cmocka_unit_test(a_path_too_long_for_a_file_is_told),
        IN_A_PLACE(a_published_file_replaces_the_old_one_whole),
        IN_A_PLACE(what_an_interrupted_write_left_is_overwritten),
        IN_A_PLACE(a_file_in_the_way_is_never_written_to),
        IN_A_PLACE(a_write_that_fails_leaves_the_old_file_alone),
        cmocka_unit_test(syncing_no_descriptor_is_a_store_error),
        cmocka_unit_test(an_id_has_the_bytes_of_its_text),
        cmocka_unit_test(any_other_text_is_no_id),
        cmocka_unit_test(random_ids_are_of_version_4_and_differ),
        cmocka_unit_test(blocks_are_found_and_mapped_by_name),
        cmocka_unit_test(an_error_carries_its_origin_reason_and_hint),
        cmocka_unit_test(a_prefix_stands_before_the_message_and_keeps_the_rest),
        cmocka_unit_test(long_messages_are_cut_and_end_in_nul),
        cmocka_unit_test(every_code_has_a_name_of_its_own),
        cmocka_unit_test(a_log_drops_what_is_above_its_level),
        cmocka_unit_test(a_message_is_one_line_whatever_is_in_it),
        cmocka_unit_test(what_others_say_does_not_change_the_direction_of_writing),
        cmocka_unit_test(members_of_another_type_count_as_absent),
        cmocka_unit_test(what_is_no_single_value_is_no_json),
        cmocka_unit_test(what_has_too_many_values_is_not_parsed),
        cmocka_unit_test(an_object_is_written_as_one_line),
        cmocka_unit_test(threads_start_with_signals_blocked),
        cmocka_unit_test(clocks_go_forward),
    };

    return cmocka_run_group_tests_name("base", tests, seed, NULL);
}
