/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/compiler.h"
#include "source/rate.h"

/* A link of so many bytes/s, simulated: no time passes. */
#define LINK_BPS (28.0 * (1 << 20))
#define BUFFER (8u << 20) /* the kernel's, ssh's */

struct link {
    struct vc_rate rate;
    uint64_t now_ns, sent, crossed, acked;
    double most, last;
};

/* As long as there is something to send: the buffers are kept full. @holds: acknowledges nothing.
 */
static void pass(struct link *l, uint64_t ms, bool sends, bool holds)
{
    for (uint64_t i = 0; i < ms; i += 10) {
        uint64_t n = (uint64_t)(LINK_BPS / 100);

        l->now_ns += 10 * VC_NS_PER_MS;
        l->crossed = VC_MIN(l->crossed + n, l->sent);
        if (sends && l->sent - l->acked < BUFFER)
            l->sent = l->acked + BUFFER;
        if (!holds)
            l->acked = l->crossed;
        l->last = vc_rate_note(&l->rate, l->now_ns, l->sent, l->acked);
        l->most = VC_MAX(l->most, l->last);
    }
}

static void about(double have, double want)
{
    assert_true(have > 0.9 * want && have < 1.1 * want);
}

static void the_rate_is_that_of_the_link_and_never_more(void **state)
{
    struct link l = {.now_ns = 7};

    (void)state;
    pass(&l, 10000, true, false);
    about(l.last, LINK_BPS);
    assert_true(l.most < 1.1 * LINK_BPS);
}

/* A destination that waits for its disk acknowledges all at once. */
static void a_burst_of_acknowledgements_is_no_faster_link(void **state)
{
    struct link l = {.now_ns = 7};

    (void)state;
    for (int i = 0; i < 10; i++) {
        pass(&l, 3000, true, false);
        pass(&l, 700 * (unsigned)i, true, true);
    }
    pass(&l, 3000, true, false);
    about(l.last, LINK_BPS);
    assert_true(l.most < 1.1 * LINK_BPS);
}

static void it_falls_when_nothing_is_sent(void **state)
{
    struct link l = {.now_ns = 7};

    (void)state;
    pass(&l, 5000, true, false);
    pass(&l, 3000, false, false);
    assert_true(l.last == 0);
    l.now_ns += 3600 * VC_NS_PER_S; /* nobody has looked */
    pass(&l, 5000, true, false);
    about(l.last, LINK_BPS);
    assert_true(l.most < 1.1 * LINK_BPS);
}

static void a_moment_is_too_short_to_tell(void **state)
{
    struct vc_rate r = {0};

    (void)state;
    assert_true(vc_rate_note(&r, 1, 0, 0) == 0);
    assert_true(vc_rate_note(&r, 100 * VC_NS_PER_MS, 1 << 20, 1 << 20) == 0);
    assert_true(vc_rate_note(&r, VC_NS_PER_S + 1, 1 << 20, 1 << 20) == 1 << 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_rate_is_that_of_the_link_and_never_more),
        cmocka_unit_test(a_burst_of_acknowledgements_is_no_faster_link),
        cmocka_unit_test(it_falls_when_nothing_is_sent),
        cmocka_unit_test(a_moment_is_too_short_to_tell),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
