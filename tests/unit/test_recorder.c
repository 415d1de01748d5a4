/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The recorder's two threads: the one that writes, and the one that reads what was written. */

#include "test_store.h"

#include <pthread.h>

#include "base/clock.h"
#include "store/recorder.h"

struct place {
    char dir[64];
    struct vc_store *store;
    struct vc_vm *vm;
    struct vc_recorder r;
};

struct item {
    struct vc_queue_node node;
    uint64_t seq;
    bool fails;
};

static int setup(void **state)
{
    struct place *p = calloc(1, sizeof(*p));
    struct image m;

    assert_non_null(p);
    make_place(p->dir);
    p->store = open_store(p->dir);
    p->vm = open_vm(p->store, VC_VM_CREATE);
    vc_recorder_init(&p->r, begin(p->vm, NULL, &m), UINT64_MAX / 2, 0, NULL);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct place *p = *state;

    vc_txn_abort(p->r.txn);
    vc_recorder_fini(&p->r);
    vc_vm_close(p->vm);
    vc_store_close(p->store);
    remove_tree(p->dir);
    free(p);
    forget_digester();
    return 0;
}

/* The page that has a batch's number holds it; the others of the block, the number of the last. */
static void *record(void *arg)
{
    struct vc_recorder *r = arg;
    struct vc_queue_node *node;

    while (vc_recorder_next(r, &node)) {
        struct item *item = (struct item *)node;
        uint8_t content[PAGE_BYTES];
        const uint8_t *contents[] = {content, content, content, content};
        struct vc_digest digests[4] = {0};
        struct vc_err err = VC_ERR_INIT;
        struct vc_txn *t = vc_recorder_begin(r);
        int rc = 0;

        memset(content, (int)item->seq, sizeof(content));
        for (unsigned i = 0; i < 4 && t && !rc; i++)
            rc = vc_txn_put(t, 0, vc_page(4 * i), 4, contents, digests, &err);
        if (item->fails)
            rc = vc_err_set(&err, VC_E_STORE, "it fails");
        vc_recorder_done(r, item->seq, rc, &err);
        free(item);
    }
    vc_recorder_end(r);
    return NULL;
}

static void give(struct vc_recorder *r, uint64_t seq, bool fails)
{
    struct item *item = calloc(1, sizeof(*item));

    assert_non_null(item);
    item->seq = seq;
    item->fails = fails;
    assert_int_equal(vc_recorder_push(r, &item->node, 1), 0);
}

static const struct vc_txn *hold(struct vc_recorder *r, uint64_t seq, unsigned ms)
{
    return vc_recorder_hold(r, seq, vc_now_ns() + ms * VC_NS_PER_MS);
}

#define LONG_MS 600000

/* Never half of a batch, and never an older one than was asked for. */
static void what_is_read_is_whole_batches(void **state)
{
    struct place *p = *state;
    pthread_t thread;
    struct vc_err err;

    give(&p->r, 1, false);
    pthread_create(&thread, NULL, record, &p->r);
    for (unsigned seq = 1; seq < 120; seq++) {
        static uint8_t got[16 * PAGE_BYTES];
        const struct vc_txn *t;
        bool known;

        give(&p->r, seq + 1, false);
        t = hold(&p->r, seq, LONG_MS);
        assert_non_null(t);
        assert_int_equal(vc_txn_known(t, 0, vc_page(0), 16, &known), 16);
        assert_true(known);
        assert_int_equal(vc_txn_read(t, 0, vc_page(0), 16, got, &err), 0);
        for (size_t i = 1; i < sizeof(got); i++)
            assert_int_equal(got[i], got[0]);
        assert_true(got[0] == seq || got[0] == seq + 1);
        vc_recorder_let_go(&p->r);
    }
    vc_queue_close(&p->r.queue);
    pthread_join(thread, NULL);
    assert_non_null(hold(&p->r, 120, 0));
    vc_recorder_let_go(&p->r);
}

static void what_does_not_come_is_not_waited_for(void **state)
{
    struct place *p = *state;
    pthread_t thread;

    assert_null(hold(&p->r, 1, 10));
    pthread_create(&thread, NULL, record, &p->r);
    give(&p->r, 1, false);
    assert_null(hold(&p->r, 2, 10));
    give(&p->r, 2, false);
    assert_non_null(hold(&p->r, 2, LONG_MS));
    vc_recorder_let_go(&p->r);
    vc_queue_close(&p->r.queue);
    pthread_join(thread, NULL);
}

static void nothing_is_read_of_what_was_given_up(void **state)
{
    struct place *p = *state;
    pthread_t thread;

    pthread_create(&thread, NULL, record, &p->r);
    give(&p->r, 1, false);
    give(&p->r, 2, true);
    assert_null(hold(&p->r, 3, LONG_MS)); /* it is told, and does not wait */
    assert_null(hold(&p->r, 1, LONG_MS));
    give(&p->r, 3, false);
    vc_queue_close(&p->r.queue);
    pthread_join(thread, NULL);
    assert_null(hold(&p->r, 3, LONG_MS));
}

/* The store does not answer in the middle of an item: who waits is told as soon as that is seen. */
static void nobody_waits_for_a_store_that_is_stuck(void **state)
{
    struct place *p = *state;

    p->r.patience_ms = 1;
    assert_non_null(vc_recorder_begin(&p->r));
    assert_null(hold(&p->r, 0, 10));
    assert_true(vc_recorder_check(&p->r));
    assert_null(hold(&p->r, 0, LONG_MS));
    vc_recorder_done(&p->r, 1, 0, NULL);
    assert_null(hold(&p->r, 0, LONG_MS));
    vc_recorder_end(&p->r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_read_is_whole_batches, setup, teardown),
        cmocka_unit_test_setup_teardown(what_does_not_come_is_not_waited_for, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_is_read_of_what_was_given_up, setup, teardown),
        cmocka_unit_test_setup_teardown(nobody_waits_for_a_store_that_is_stuck, setup, teardown),
    };

    rng_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
