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

/* Bytes/s over half a minute, once it has come to terms; *sent: the part of them that was sent. */
static double run(const struct way *w, double *sent)
{
    struct vc_reuse r;
    struct vc_wire_reads m = {0};
    double bytes = 0, over_link = 0;
    unsigned effective = VC_REUSE_ALL; /* of what arrives: it was decided upon a while ago */
    uint64_t changes_at = 0;

    vc_reuse_init(&r);
    for (uint64_t now = S; now < 61 * S; now += REPORT_NS) {
        double reading, waiting, v = speed(w, effective, &reading, &waiting);
        double n = v * (double)REPORT_NS / 1e9;
        unsigned share = r.share;

        if (now > 31 * S) {
            bytes += n;
            over_link += n * (VC_REUSE_ALL - effective) / VC_REUSE_ALL;
        }
        m.elapsed_ns += REPORT_NS;
        m.reading_ns += (uint64_t)(reading * REPORT_NS);
        m.waiting_ns += (uint64_t)(waiting * REPORT_NS);
        m.content_bytes += (uint64_t)n;
        m.bytes += (uint64_t)(n * effective / VC_REUSE_ALL);
        assert_true(vc_reuse_report(&r, now, &m));
        if (r.share != share)
            changes_at = m.content_bytes + UNDER_WAY;
        if (m.content_bytes >= changes_at)
            effective = r.share;
    }
    if (sent)
        *sent = over_link / bytes;
    return bytes / 30;
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
            double sending = VC_MIN(VC_MIN(w.link, w.qemu), w.disk * VC_REUSE_ALL * 0.9);

            if (v < sending * 0.9 || v < VC_MIN(w.disk, w.qemu) * 0.9)
                fail_msg("%.0f MB/s: disk %.0f, link %.0f", v / 1e6, w.disk / 1e6, w.link / 1e6);
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
        cmocka_unit_test(a_link_that_is_no_faster_is_left_alone),
        cmocka_unit_test(a_disk_that_keeps_up_is_read),
        cmocka_unit_test(a_report_of_less_is_refused),
        cmocka_unit_test(shares_are_what_they_say),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
