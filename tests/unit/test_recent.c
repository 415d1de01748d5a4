/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The note of which batch a page went out in last, against one that keeps whole numbers. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "source/recent.h"

#define PAGES 64u

static void it_is_never_earlier_than_the_truth_and_always_earlier_than_now(void **state)
{
    const char *given = getenv("VC_TEST_SEED");
    unsigned seed = given ? (unsigned)strtoul(given, NULL, 0) : (unsigned)time(NULL), known = 0;
    uint64_t last[PAGES] = {0};
    bool noted[PAGES] = {false};
    struct vc_recent r;
    struct vc_err err;

    (void)state;
    print_message("seed: VC_TEST_SEED=%u\n", seed);
    srand(seed);
    assert_int_equal(vc_recent_init(&r, PAGES, &err), 0);
    for (uint64_t seq = 1; seq < 20000; seq++) {
        for (unsigned k = (unsigned)rand() % 4; k; k--) {
            unsigned page = (unsigned)rand() % PAGES, n = (unsigned)rand() % (PAGES - page);
            uint64_t before = vc_recent_before(&r, page, seq);

            assert_int_equal(vc_recent_is_noted(&r, page), noted[page]);
            assert_true(before < seq);
            if (before) {
                assert_true(last[page] && before >= last[page]);
                known++;
            } else if (last[page]) {
                assert_int_equal((seq - last[page]) % 254, 0); /* it looks like the same batch */
            }
            if (rand() % 16) {
                vc_recent_sent(&r, page, seq);
                last[page] = seq;
                noted[page] = true;
                continue;
            }
            vc_recent_lost(&r, page, n);
            for (unsigned i = page; i < page + n; i++) {
                last[i] = 0;
                noted[i] = true;
            }
        }
        if (rand() % 100 == 0)
            seq += (unsigned)rand() % 1000;
    }
    assert_true(known > 1000);
    vc_recent_fini(&r);
}

static void without_memory_nothing_is_noted(void **state)
{
    struct vc_recent r = {NULL};

    (void)state;
    vc_recent_sent(&r, 7, 1);
    vc_recent_lost(&r, 7, 100);
    assert_false(vc_recent_is_noted(&r, 7));
    assert_int_equal(vc_recent_before(&r, 7, 9), 0);
    vc_recent_fini(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_never_earlier_than_the_truth_and_always_earlier_than_now),
        cmocka_unit_test(without_memory_nothing_is_noted),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
