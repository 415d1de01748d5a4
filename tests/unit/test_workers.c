/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Frames that are packed side by side, against those of one packer. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "link/link.h"
#include "source/workers.h"

#define PAGE 4096u
#define SLAB_PAGES 64u
#define BATCHES 200u

static struct vc_ram ram = {.page_bytes = PAGE, .n_blocks = 1};
static struct vc_slab_pool pool;
static struct vc_queue woken;

/* Some of them large, some small, so that none ends in the order in which it began. */
static struct vc_src_batch *a_batch(uint64_t seq)
{
    const struct vc_digest digest = {0};
    struct vc_src_batch *b = vc_src_batch_new(VC_SRC_BATCH, seq, 0);
    uint32_t pages = seq % 5 ? 1 : SLAB_PAGES;
    struct vc_slab *slab;
    struct vc_err err;

    assert_non_null(b);
    assert_int_equal(vc_slab_get(&pool, UINT64_MAX, &slab, &err), 0);
    b->ram = &ram;
    for (uint32_t i = 0; i < pages * PAGE; i++)
        slab->data[i] = (uint8_t)(i * seq / 7 % (seq % 64 + 2));
    for (uint32_t i = 0; i < pages; i++) {
        struct vc_wire_run run = {.kind = VC_RUN_DATA, .as_page = true, .page = vc_page(2 * i)};

        vc_src_batch_add_page(b, slab, &run, 16, slab->data + i * PAGE, PAGE, &digest, false);
    }
    vc_slab_unref(slab);
    return b;
}

static void check_next(struct vc_pack_workers *w, struct vc_packer *alone, uint64_t seq, int level)
{
    struct vc_link_frame *f, *expected;
    struct vc_src_batch *b = vc_pack_workers_take(w, &f);

    assert_int_equal(b->seq, seq);
    expected = vc_packer_frame(alone, b, VC_SRC_PLAIN, level);
    assert_non_null(f);
    assert_int_equal(f->bytes, expected->bytes);
    assert_true(!f->rest && !expected->rest); /* all of it can be compressed */
    assert_memory_equal(f->payload, expected->payload, f->bytes);
    vc_link_frame_free(expected);
    vc_link_frame_free(f);
    vc_src_batch_unref(b);
}

static void frames_come_out_in_order_and_as_one_packer_makes_them(void **state)
{
    const int levels[] = {1, 3, 6};
    struct vc_err err = VC_ERR_INIT;
    struct vc_pack_workers w;
    struct vc_packer alone;
    struct vc_queue_node *none;
    uint64_t out = 0;

    (void)state;
    assert_int_equal(vc_slab_pool_init(&pool, SLAB_PAGES * PAGE, VC_PACK_AHEAD_MAX, &err), 0);
    assert_int_equal(vc_packer_init(&alone, NULL, NULL, NULL, NULL, &err), 0);
    for (unsigned n = 1; n <= VC_PACK_WORKERS_MAX; n++) {
        vc_pack_workers_init(&w, &woken, n, NULL, NULL, NULL, NULL);
        assert_int_equal(w.n, n);
        out = 0;
        for (uint64_t seq = 0; seq < BATCHES; seq++) {
            while (!vc_pack_workers_have_room(&w)) {
                check_next(&w, &alone, out, levels[out % 3]);
                out++;
            }
            vc_pack_workers_give(&w, a_batch(seq), VC_SRC_PLAIN, levels[seq % 3]);
        }
        assert_int_equal(vc_pack_workers_pending(&w), BATCHES - out);
        for (; out < BATCHES; out++)
            check_next(&w, &alone, out, levels[out % 3]);
        assert_int_equal(vc_pack_workers_pending(&w), 0);
        assert_int_equal(vc_queue_pop(&woken, UINT64_MAX, &none), VC_AGAIN); /* it was poked */
        vc_pack_workers_fini(&w);
    }
    vc_packer_fini(&alone);
    vc_slab_pool_fini(&pool);
}

static void none_can_be_asked_for(void **state)
{
    struct vc_pack_workers w;

    (void)state;
    vc_pack_workers_init(&w, &woken, 0, NULL, NULL, NULL, NULL);
    assert_int_equal(w.n, 0);
    assert_int_equal(vc_pack_workers_pending(&w), 0);
    vc_pack_workers_fini(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_come_out_in_order_and_as_one_packer_makes_them),
        cmocka_unit_test(none_can_be_asked_for),
    };

    vc_queue_init(&woken, 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
