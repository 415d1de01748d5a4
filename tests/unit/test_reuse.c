/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/compiler.h"
#include "source/reuse.h"

/* A disk and a link side by side, simulated: pages are read or sent, what is slower is waited for.
 */

#define REPORT_NS 100000000ull
#define S 1000000000ull
#define UNDER_WAY (24u << 20)

struct way {
    double disk, link; /* bytes/s */
    double qemu;       /* takes and gives at most so much */
    double uneven;     /* by this part of itself, more or less, the disk's speed changes */
};

/* The speed that a share makes, and what the destination's time goes into. */
static double speed(const struct way *w, unsigned share, double *reading, double *waiting)
{
    double read = (double)share / VC_REUSE_ALL;
    double v = VC_MIN(w->qemu, w->disk / read);

    if (read < 1)
        v = VC_MIN(v, w->link / (1 - read));
    *reading = v * read / w->disk;
    *waiting = v < w->qemu ? 1 - *reading : 0;
    return v;
}

struct host {
    const struct way *way;
    struct vc_reuse r;
    struct vc_wire_reads m; /* reported last */
    uint64_t now;
    unsigned effective; /* share of what arrives: it was decided upon a while ago */
    uint64_t changes_at, chance;
    double sent; /* bytes, over the link */
};

static struct host begin(const struct way *w, uint64_t chance)
{
    struct host h = {.way = w, .now = S, .effective = VC_REUSE_ALL, .chance = chance};

    vc_reuse_init(&h.r);
    return h;
}

/* Until the next report. */
static void go_on(struct host *h)
{
    unsigned share = h->r.share;
    struct way here = *h->way;
    double reading, waiting, n;

    h->chance = h->chance * 6364136223846793005u + 1442695040888963407u;
    here.disk *= 1 + here.uneven * ((double)(h->chance >> 33) / (1u << 30) - 1);
    n = speed(&here, h->effective, &reading, &waiting) * (double)REPORT_NS / 1e9;
    h->sent += n * (VC_REUSE_ALL - h->effective) / VC_REUSE_ALL;
    h->m.elapsed_ns += REPORT_NS;
    h->m.reading_ns += (uint64_t)(reading * REPORT_NS);
    h->m.waiting_ns += (uint64_t)(waiting * REPORT_NS);
    h->m.content_bytes += (uint64_t)n;
    h->m.bytes += (uint64_t)(n * h->effective / VC_REUSE_ALL);
    assert_true(vc_reuse_report(&h->r, h->now, &h->m));
    if (h->r.share != share)
        h->changes_at = h->m.content_bytes + UNDER_WAY;
    if (h->m.content_bytes >= h->changes_at)
        h->effective = h->r.share;
    h->now += REPORT_NS;
}

/* Bytes/s over half a minute, once it has come to terms; *sent: the part of them that was sent. */
static double run(const struct way *w, double *sent)
{
    struct host h = begin(w, 1);
    double content, over_link;

    while (h.now < 31 * S)
        go_on(&h);
    content = (double)h.m.content_bytes;
    over_link = h.sent;
    while (h.now < 61 * S)
        go_on(&h);
    content = (double)h.m.content_bytes - content;
    if (sent)
        *sent = (h.sent - over_link) / content;
    return content / 30;
}

/* Within a tenth, and as long as a disk is not many times slower: a little is always read. */
static void reuse_is_never_slower_than_sending(void **state)
{
    static const double rates[] = {12e6, 50e6, 100e6, 119e6, 200e6, 500e6, 1.2e9};

    (void)state;
    for (unsigned d = 0; d < VC_ARRAY_LEN(rates); d++)
        for (unsigned l = 0; l < VC_ARRAY_LEN(rates); l++) {
            struct way w = {rates[d], rates[l], 2e9, 0};
            double v = run(&w, NULL);
            double sending = VC_MIN(VC_MIN(w.link, w.qemu), w.disk * VC_REUSE_ALL * 0.9);

            if (v < sending * 0.9 || v < VC_MIN(w.disk, w.qemu) * 0.9)
                fail_msg("%.0f MB/s: disk %.0f, link %.0f", v / 1e6, w.disk / 1e6, w.link / 1e6);
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

        while ((double)h.m.content_bytes < content)
            go_on(&h);
        if ((double)(h.now - S) / 1e9 > 1.1 * content / w.link)
            fail_msg("chance %u: %.1f s", chance, (double)(h.now - S) / 1e9);
    }
}

static void a_link_that_is_no_faster_is_left_alone(void **state)
{
    struct way w = {200e6, 119e6, 2e9, 0};
    double sent;

    (void)state;
    run(&w, &sent);
    assert_true(sent < 0.1); /* it had to be tried */
}

static void a_disk_that_keeps_up_is_read(void **state)
{
    struct way w = {3e9, 5e9, 2e9, 0};
    double sent;

    (void)state;
    run(&w, &sent);
    assert_true(sent == 0);
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
        cmocka_unit_test(a_disk_that_is_slow_by_fits_and_starts_is_helped_soon),
        cmocka_unit_test(a_link_that_is_no_faster_is_left_alone),
        cmocka_unit_test(a_disk_that_keeps_up_is_read),
        cmocka_unit_test(a_report_of_less_is_refused),
        cmocka_unit_test(shares_are_what_they_say),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
