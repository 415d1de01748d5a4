/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/compiler.h"
#include "source/effort.h"

/* A sender and a link, simulated: no time passes. The sender may be ahead of the link by a little.
 */

#define AHEAD_NS (30 * 1000000ull)
#define BATCH (256u << 10)

/* What a level does with some kind of content: bytes/s, and what is left. */
struct zstd {
    int level;
    double speed, ratio;
};
static const struct zstd compressible[] = {
    {0, 8e9, 1}, {1, 6e8, 0.3}, {3, 4.5e8, 0.27}, {6, 1.1e8, 0.24}};
static const struct zstd random_bytes[] = {{0, 8e9, 1}, {1, 4e9, 1}, {3, 3.5e9, 1}, {6, 2e9, 1}};

static unsigned packers = 1; /* threads that compress */

static const struct zstd *of_level(const struct zstd *z, int level)
{
    while (z->level != level)
        z++;
    return z;
}

/* Sends for some seconds; @fixed: at this level, -1: as it likes. Returns content bytes/s of the
 * second half. */
static double run(const struct zstd *z, double link, double intake, int fixed, unsigned at_level[7])
{
    struct vc_effort e;
    uint64_t now = 1, link_free = 1, input = 1, end = 8000000000ull, half = 0, bytes = 0;
    uint64_t probed = 0;
    double probe_rate = 0;

    vc_effort_init(&e, packers > 1);
    while (now < end) {
        bool probe = false;
        int level = fixed < 0 ? vc_effort_level(&e, BATCH, &probe) : fixed;
        const struct zstd *k = of_level(z, level);
        bool ahead = fixed < 0 && level == vc_effort_ahead_level(&e);
        uint64_t worked = (uint64_t)(BATCH / k->speed * 1e9 / (ahead ? packers : 1));
        uint64_t waited = link_free > now + AHEAD_NS ? link_free - now - AHEAD_NS : 0;
        uint64_t idle = input > now ? input - now : 0;

        input = VC_MAX(input, now) + (uint64_t)(BATCH / intake * 1e9);
        now += idle + waited + worked;
        link_free = VC_MAX(link_free, now) + (uint64_t)(BATCH * k->ratio / link * 1e9);
        if (probe) { /* what it takes is its own time and that of what is ahead of it */
            probed = now;
            probe_rate = BATCH * 1e9 / (double)(link_free - now);
        }
        if (now - probed >= VC_EFFORT_MEMORY_NS)
            probe_rate = 0;
        vc_effort_note(&e, now, BATCH, (uint64_t)(BATCH * k->ratio), waited, worked,
                       !idle || waited, probe_rate);
        if (now > end / 2) {
            half = half ? half : now;
            bytes += BATCH;
            if (at_level)
                at_level[level]++;
        }
    }
    return (double)bytes * 1e9 / (double)(now - half);
}

static void no_fixed_level_is_much_faster(void **state)
{
    static const double links[] = {1.2e6, 12e6, 60e6, 119e6, 300e6, 600e6, 1.2e9, 5e9};
    const struct zstd *contents[] = {compressible, random_bytes};

    (void)state;
    for (unsigned c = 0; c < VC_ARRAY_LEN(contents); c++)
        for (unsigned i = 0; i < VC_ARRAY_LEN(links); i++) {
            double mine = run(contents[c], links[i], 3e9, -1, NULL), best = 0;

            for (unsigned k = 0; k < VC_EFFORT_STEPS; k++)
                best = VC_MAX(best, run(contents[c], links[i], 3e9, contents[c][k].level, NULL));
            /* The highest level is not used for all of the time that it would take. */
            if (mine < 0.85 * best)
                fail_msg("%.0f instead of %.0f MB/s on a link of %.0f MB/s, content %u", mine / 1e6,
                         best / 1e6, links[i] / 1e6, c);
        }
}

/* Four threads: more through a fast link, a higher level or fewer bytes on others, never less. */
static void those_who_help_are_worth_it(void **state)
{
    static const double links[] = {1.2e6, 12e6, 60e6, 119e6, 300e6, 600e6, 1.2e9, 5e9};
    double alone[VC_ARRAY_LEN(links)], helped[VC_ARRAY_LEN(links)];

    (void)state;
    for (unsigned i = 0; i < VC_ARRAY_LEN(links); i++) {
        packers = 1;
        alone[i] = run(compressible, links[i], 3e9, -1, NULL);
        packers = 4;
        helped[i] = run(compressible, links[i], 3e9, -1, NULL);
        print_message("%.0f MB/s: %.0f, %.0f\n", links[i] / 1e6, alone[i] / 1e6, helped[i] / 1e6);
        if (helped[i] < 0.95 * alone[i])
            fail_msg("%.0f instead of %.0f MB/s on a link of %.0f MB/s", helped[i] / 1e6,
                     alone[i] / 1e6, links[i] / 1e6);
    }
    packers = 1;
    assert_true(helped[5] > 2 * alone[5]);
}

static void a_thin_link_gets_the_highest_level(void **state)
{
    unsigned at[7] = {0};

    (void)state;
    run(compressible, 5e6, 3e9, -1, at);
    assert_int_equal(at[0] + at[1] + at[3], 0);
}

static void a_fast_link_gets_none(void **state)
{
    unsigned at[7] = {0};

    (void)state;
    run(compressible, 5e9, 3e9, -1, at);
    assert_true(at[0] > 9 * (at[1] + at[3] + at[6]));
}

/* It is as fast as this processor compresses, and would be slower without. */
static void a_link_of_1_gbit_always_gets_some(void **state)
{
    unsigned at[7] = {0};

    (void)state;
    run(compressible, 119e6, 3e9, -1, at);
    assert_true(at[0] * 100 < at[1] + at[3]);
}

/* A VM of which little has changed: what is sent for it is less than a probe would be. */
static void a_return_of_few_bytes_is_not_probed(void **state)
{
    struct vc_effort e;
    uint64_t now = 1;

    (void)state;
    vc_effort_init(&e, false);
    for (unsigned i = 0; i < 1000; i++) { /* 250 MiB at 100 MB/s become 7.5 MiB */
        bool probe;

        assert_int_equal(vc_effort_level(&e, BATCH, &probe), 1);
        assert_false(probe);
        now += 2600000;
        vc_effort_note(&e, now, BATCH, BATCH * 3 / 100, 0, 2600000, true, 0);
    }
    assert_true(e.probe); /* it would have been due */
}

/* Who is not waited for has no reason to be quicker or to try harder. */
static void a_slow_qemu_changes_nothing(void **state)
{
    unsigned at[7] = {0};

    (void)state;
    run(compressible, 5e9, 5e7, -1, at);
    assert_int_equal(at[0] + at[3] + at[6], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_fixed_level_is_much_faster),
        cmocka_unit_test(those_who_help_are_worth_it),
        cmocka_unit_test(a_thin_link_gets_the_highest_level),
        cmocka_unit_test(a_fast_link_gets_none),
        cmocka_unit_test(a_link_of_1_gbit_always_gets_some),
        cmocka_unit_test(a_return_of_few_bytes_is_not_probed),
        cmocka_unit_test(a_slow_qemu_changes_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
