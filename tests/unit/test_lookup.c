/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The table of contents by hash: every page is found once the table is made, and no question does
 * more than its share of making it. */

#include "test_qstream.h"

#include "source/lookup.h"

struct set {
    uint64_t n_pages, asked;
    uint64_t (*hash)(uint64_t page);
};

static bool hash_of(void *opaque, uint64_t page, uint64_t *hash)
{
    struct set *s = opaque;

    assert_true(page < s->n_pages);
    s->asked++;
    *hash = s->hash(page);
    return page % 7 != 3; /* some are not there */
}

static uint64_t spread(uint64_t page)
{
    uint64_t z = page * 0x9e3779b97f4a7c15 + 1;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    return z ^ z >> 27;
}

static uint64_t alike(uint64_t page)
{
    return page % 2 ? 5 : spread(page);
}

/* Asks until the table is made; how often that took. */
static uint64_t make(struct vc_lookup *l, struct set *s)
{
    uint64_t before = 0, questions = 0;
    uint32_t n;

    while (l->state != VC_LOOKUP_READY) {
        (void)vc_lookup_find(l, 0, &n);
        assert_true(s->asked - before <= VC_LOOKUP_STEP);
        before = s->asked;
        questions++;
    }
    return questions;
}

static bool finds(struct vc_lookup *l, uint64_t hash, uint64_t page)
{
    uint32_t n = 0;
    const uint32_t *p = vc_lookup_find(l, hash, &n);

    assert_true(n <= VC_LOOKUP_MOST);
    for (uint32_t i = 0; p && i < n; i++)
        if (p[i] == page)
            return true;
    return false;
}

static void every_page_is_found(void **state)
{
    static const uint64_t sizes[] = {1, 2, 255, 256, 257, 5000, 100000};

    (void)state;
    for (size_t k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++) {
        struct set s = {.n_pages = sizes[k], .hash = spread};
        uint64_t steps = (s.n_pages + VC_LOOKUP_STEP - 1) / VC_LOOKUP_STEP;
        struct vc_lookup l;

        vc_lookup_init(&l, s.n_pages, hash_of, &s);
        assert_int_equal(make(&l, &s), 2 * steps);
        assert_int_equal(s.asked, 2 * s.n_pages);
        for (uint64_t i = 0; i < s.n_pages; i++)
            assert_int_equal(finds(&l, spread(i), i), i % 7 != 3);
        vc_lookup_fini(&l);
    }
}

static void pages_that_are_alike_cost_no_more_than_a_limit(void **state)
{
    struct set s = {.n_pages = 20000, .hash = alike};
    struct vc_lookup l;
    uint32_t n;

    (void)state;
    vc_lookup_init(&l, s.n_pages, hash_of, &s);
    make(&l, &s);
    assert_non_null(vc_lookup_find(&l, 5, &n));
    assert_int_equal(n, VC_LOOKUP_MOST);
    for (uint64_t i = 0; i < s.n_pages; i += 2)
        assert_true(finds(&l, spread(i), i) == (i % 7 != 3) || (spread(i) ^ 5) % 4096 == 0);
    vc_lookup_fini(&l);
}

static void no_pages_and_too_many_are_never_found(void **state)
{
    static const uint64_t sizes[] = {0, VC_LOOKUP_MAX_PAGES + 1};

    (void)state;
    for (size_t k = 0; k < 2; k++) {
        struct set s = {.n_pages = sizes[k], .hash = spread};
        struct vc_lookup l;

        vc_lookup_init(&l, s.n_pages, hash_of, &s);
        for (unsigned i = 0; i < 10; i++)
            assert_false(finds(&l, i, i));
        assert_int_equal(s.asked, 0);
        vc_lookup_fini(&l);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_page_is_found),
        cmocka_unit_test(pages_that_are_alike_cost_no_more_than_a_limit),
        cmocka_unit_test(no_pages_and_too_many_are_never_found),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
