/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/compiler.h"
#include "source/reuse.h"

/* A source, a link, a destination and its disk, simulated: 1 MiB of memory after the other is
 * decided upon, is read or sent, and goes to QEMU in order. */

#define CHUNK (VC_REUSE_RUN_PAGES * 4096)
#define REPORT_S 0.02
#define SLICE_S 0.1
#define BURST 1e9
#define AHEAD                                                                                     \
    (12 * 256 / VC_REUSE_RUN_PAGES) /* chunks that the destination has its disk begin with before \
                                       they are needed */
#define HISTORY 128
#define S 1000000000ull

struct way {
    double disk, link; /* bytes/s */
    double qemu;       /* takes and gives at most so much */
    double uneven;     /* by this part of itself, more or less, the disk's speed changes */
    bool throttled;    /* the disk gives what it may at the begin of each slice of time */
    double delay;      /* of the link, one way, in s */
    unsigned window;   /* chunks that are under way at most; 0: 12; of data fewer (flow.h) */
};

struct host {
    const struct way *way;
    struct vc_reuse r;
    struct vc_wire_reads now, told;
    bool much;
    uint64_t n; /* chunks */
    uint64_t chance;
    double done[HISTORY]; /* when a chunk was given to QEMU, in s */
    double data_done[HISTORY];
    uint64_t n_data, heard; /* chunks, and those whose reports have come */
    struct vc_wire_reads reports[HISTORY][2];
    unsigned n_reports[HISTORY];
    double link_free, disk_free, slice, slice_used, epoch, speed;
    double sent; /* bytes, over the link */
};

static struct host begin(const struct way *w, uint64_t chance)
{
    struct host h = {.way = w, .chance = chance, .epoch = -1};

    vc_reuse_init(&h.r);
    return h;
}

static double done_before(const struct host *h, uint64_t n)
{
    return h->n >= n ? h->done[(h->n - n) % HISTORY] : 0;
}

/* When a chunk is read that the disk may begin with at `at`. */
static double read_chunk(struct host *h, double at)
{
    const struct way *w = h->way;
    double left = CHUNK;

    at = VC_MAX(at, h->disk_free);
    if ((double)(uint64_t)(at / SLICE_S) != h->epoch) {
        h->epoch = (double)(uint64_t)(at / SLICE_S);
        h->chance = h->chance * 6364136223846793005u + 1442695040888963407u;
        h->speed = w->disk * (1 + w->uneven * ((double)(h->chance >> 33) / (1u << 30) - 1));
    }
    if (!w->throttled)
        return h->disk_free = at + CHUNK / h->speed;
    while (left > 0) {
        double may;

        if (at >= h->slice + SLICE_S) {
            h->slice = SLICE_S * (double)(uint64_t)(at / SLICE_S + 1e-9);
            h->slice_used = 0;
        }
        may = VC_MIN(left, w->disk * SLICE_S - h->slice_used);
        if (may < 1) {
            at = h->slice + SLICE_S;
            continue;
        }
        at += may / BURST;
        h->slice_used += may;
        left -= may;
    }
    return h->disk_free = at;
}

/* As src/dest/reads.c does. */
static void report(struct host *h, double at)
{
    unsigned *n = &h->n_reports[h->n % HISTORY];
    struct vc_wire_reads *to = h->reports[h->n % HISTORY];

    *n = 0;
    h->now.elapsed_ns = (uint64_t)(at * 1e9);
    if (h->now.elapsed_ns - h->told.elapsed_ns < (uint64_t)(REPORT_S * 1e9))
        return;
    if (!h->much &&
        h->now.reading_ns - h->told.reading_ns > (h->now.elapsed_ns - h->told.elapsed_ns) / 3) {
        h->much = true;
        to[(*n)++] = h->told;
    }
    if (h->much)
        to[(*n)++] = h->now;
    h->told = h->now;
}

/* The source hears what was reported up to then. */
static void hear(struct host *h, double until)
{
    for (; h->heard < h->n && h->done[h->heard % HISTORY] + h->way->delay <= until; h->heard++) {
        uint64_t at = h->heard % HISTORY;

        for (unsigned i = 0; i < h->n_reports[at]; i++)
            assert_true(vc_reuse_report(&h->r, S + (uint64_t)(until * 1e9), &h->reports[at][i]));
    }
}

/* Waits until there is room for one more chunk under way. */
static double decide(struct host *h, bool *data)
{
    const struct way *w = h->way;
    unsigned window = (w->window ? w->window : 12) * 256 / VC_REUSE_RUN_PAGES;
    unsigned of_data = VC_MIN(window, 2 + (unsigned)(w->link * (0.03 + 2 * w->delay) / CHUNK));
    double at = done_before(h, window) + (h->n >= window ? w->delay : 0);
    struct vc_page page = vc_page(h->n * VC_REUSE_RUN_PAGES);

    hear(h, at);
    if (!vc_reuse_takes(h->r.share, page) && h->n_data >= of_data) {
        at = VC_MAX(at, h->data_done[(h->n_data - of_data) % HISTORY] + w->delay);
        hear(h, at);
    }
    *data = !vc_reuse_takes(h->r.share, page);
    return at;
}

static void go_on(struct host *h)
{
    const struct way *w = h->way;
    double begun = done_before(h, 1), t, arrives, there = 0;
    bool data;

    h->link_free = VC_MAX(h->link_free, decide(h, &data));
    h->link_free += data ? CHUNK / w->link : 0;
    arrives = h->link_free + w->delay;
    t = VC_MAX(begun, arrives);
    h->now.waiting_ns += (uint64_t)((t - begun) * 1e9);
    if (!data) {
        there = read_chunk(h, VC_MAX(arrives, done_before(h, AHEAD)));
        there = VC_MAX(t, there);
        h->now.reading_ns += (uint64_t)((there - t) * 1e9);
        h->now.bytes += CHUNK;
        t = there;
    }
    t += CHUNK / w->qemu;
    h->sent += data ? CHUNK : 0;
    h->now.content_bytes += CHUNK;
    h->done[h->n % HISTORY] = t;
    if (data)
        h->data_done[h->n_data++ % HISTORY] = t;
    report(h, t);
    h->n++;
}

static double elapsed(const struct host *h)
{
    return done_before(h, 1);
}

/* Bytes/s over half a minute, once it has come to terms; *sent: the part of them that was sent. */
static double run(const struct way *w, double *sent)
{
    struct host h = begin(w, 1);
    double content, over_link, since;

    while (elapsed(&h) < 30)
        go_on(&h);
    content = (double)h.now.content_bytes;
    over_link = h.sent;
    since = elapsed(&h);
    while (elapsed(&h) < 60)
        go_on(&h);
    content = (double)h.now.content_bytes - content;
    if (sent)
        *sent = (h.sent - over_link) / content;
    return content / (elapsed(&h) - since);
}

/* Within a tenth, and as long as a disk is not many times slower: a little is always read. */
static void reuse_is_never_slower_than_sending(void **state)
{
    static const double rates[] = {12e6, 50e6, 100e6, 119e6, 200e6, 500e6, 1.2e9};

    (void)state;
    for (unsigned d = 0; d < VC_ARRAY_LEN(rates); d++)
        for (unsigned l = 0; l < VC_ARRAY_LEN(rates); l++) {
            struct way w = {rates[d], rates[l], 2e9};
            double v = run(&w, NULL);
            double sending = VC_MIN(VC_MIN(w.link, w.qemu), w.disk * VC_REUSE_ALL / 2);

            if (v < sending * 0.9 || v < VC_MIN(w.disk, w.qemu) * 0.9)
                fail_msg("%.0f MB/s: disk %.0f, link %.0f", v / 1e6, w.disk / 1e6, w.link / 1e6);
        }
}

/* From the first byte on: how long it takes, against sending everything, and how much is sent. */
static void little_time_is_lost_until_a_disk_is_seen_to_be_slow(void **state)
{
    static const struct {
        const char *what;
        struct way way;
        double most_time, most_sent;
    } cases[] = {
        {"unshaped, 100 MB/s", {100e6, 1e9, 800e6}, 1.4, 0.9},
        {"unshaped, 100 MB/s in slices", {100e6, 1e9, 800e6, .throttled = true}, 1.4, 0.9},
        {"unshaped, little CPU", {100e6, 400e6, 800e6, .throttled = true}, 1, 0.85},
        {"unshaped, 20 ms", {100e6, 1e9, 800e6, .delay = 0.02, .window = 24}, 1.8, 0.92},
        {"unshaped, cold", {400e6, 1e9, 800e6}, 1.35, 0.6},
        {"1 Gbit/s, 100 MB/s", {100e6, 119e6, 800e6}, 0.7, 0.7},
        {"1 Gbit/s, 100 MB/s in slices", {100e6, 119e6, 800e6, .throttled = true}, 0.7, 0.6},
        {"1 Gbit/s, 20 ms", {100e6, 119e6, 800e6, .delay = 0.02}, 0.7, 0.7},
        {"1 Gbit/s, cold", {400e6, 119e6, 800e6}, 0.35, 0.03},
        {"100 Mbit/s, 100 MB/s", {100e6, 12e6, 800e6}, 0.13, 0.02},
        {"100 Mbit/s, 10 MB/s", {10e6, 12e6, 800e6}, 0.75, 0.7},
        {"unshaped, fast", {3e9, 1e9, 800e6}, 1.05, 0},
        {"unshaped, fast, 20 ms", {3e9, 1e9, 800e6, .delay = 0.02, .window = 24}, 1.35, 0},
    };
    const double content = 750e6;

    (void)state;
    for (unsigned i = 0; i < VC_ARRAY_LEN(cases); i++) {
        const struct way *w = &cases[i].way;
        struct host h = begin(w, 1);
        double sending = content / VC_MIN(w->link, w->qemu);

        while ((double)h.now.content_bytes < content)
            go_on(&h);
        if (elapsed(&h) > sending * cases[i].most_time || h.sent > content * cases[i].most_sent)
            fail_msg("%s: %.2f s of %.2f, %.2f sent", cases[i].what, elapsed(&h), sending,
                     h.sent / content);
    }
}

/* As reads are where they are held to a rate, or share the disk with others. All of it counts, from
 * the first byte on. */
static void a_disk_that_is_slow_by_fits_and_starts_is_helped_soon(void **state)
{
    const struct way w = {100e6, 119e6, 2e9, 0.6};
    const double content = 700e6;

    (void)state;
    for (unsigned chance = 1; chance <= 1000; chance++) {
        struct host h = begin(&w, chance);

        while ((double)h.now.content_bytes < content)
            go_on(&h);
        if (elapsed(&h) > 1.1 * content / w.link)
            fail_msg("chance %u: %.1f s", chance, elapsed(&h));
    }
}

static void a_link_that_is_no_faster_is_left_alone(void **state)
{
    struct way w = {200e6, 119e6, 2e9};
    double sent;

    (void)state;
    run(&w, &sent);
    assert_true(sent < 0.1); /* it had to be tried */
}

static void a_disk_that_keeps_up_is_read(void **state)
{
    struct way w = {3e9, 5e9, 2e9};
    double sent;

    (void)state;
    run(&w, &sent);
    assert_true(sent == 0);
}

/* It was busy with something else. */
static void a_disk_that_becomes_fast_is_read(void **state)
{
    struct way slow = {100e6, 1e9, 800e6}, fast = {2e9, 1e9, 800e6};
    struct host h = begin(&slow, 1);

    (void)state;
    while (elapsed(&h) < 1)
        go_on(&h);
    assert_true(h.r.share < VC_REUSE_ALL / 4);
    h.way = &fast;
    while (elapsed(&h) < 2)
        go_on(&h);
    assert_int_equal(h.r.share, VC_REUSE_ALL);
}

static void a_report_of_less_is_refused(void **state)
{
    struct vc_wire_reads m = {20, 10, 5, 4096, 8192};
    uint64_t *numbers[] = {&m.elapsed_ns, &m.waiting_ns, &m.reading_ns, &m.bytes, &m.content_bytes};
    struct vc_reuse r;

    (void)state;
    vc_reuse_init(&r);
    assert_true(vc_reuse_report(&r, S, &m));
    for (unsigned i = 0; i < VC_ARRAY_LEN(numbers); i++) {
        --*numbers[i];
        assert_false(vc_reuse_report(&r, S, &m));
        ++*numbers[i];
        assert_true(vc_reuse_report(&r, S, &m));
    }
}

static void shares_are_what_they_say(void **state)
{
    (void)state;
    for (unsigned share = 1; share <= VC_REUSE_ALL; share++) {
        unsigned n = 0;

        for (uint64_t page = 0; page < 4 * VC_REUSE_ALL * VC_REUSE_RUN_PAGES; page++)
            n += vc_reuse_takes(share, vc_page(page));
        assert_int_equal(n, 4 * share * VC_REUSE_RUN_PAGES);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reuse_is_never_slower_than_sending),
        cmocka_unit_test(little_time_is_lost_until_a_disk_is_seen_to_be_slow),
        cmocka_unit_test(a_disk_that_is_slow_by_fits_and_starts_is_helped_soon),
        cmocka_unit_test(a_link_that_is_no_faster_is_left_alone),
        cmocka_unit_test(a_disk_that_keeps_up_is_read),
        cmocka_unit_test(a_disk_that_becomes_fast_is_read),
        cmocka_unit_test(a_report_of_less_is_refused),
        cmocka_unit_test(shares_are_what_they_say),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
