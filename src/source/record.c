/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/clock.h"
#include "source/pipeline.h"

/* The recording stage: writes this host's new generation from the batches as they were built. What
 * it writes is a function of the runs alone, so the destination's generation is the same. Trouble
 * with the store gives the generation up and never the migration. */

static void give_up(struct vc_source *s, const struct vc_err *err)
{
    vc_log_err(s->o.log, VC_LOG_WARNING, "no checkpoint of this migration will be kept here", err);
    vc_txn_abort(s->txn);
    s->txn = NULL;
    atomic_store(&s->recording, false);
}

void vc_source_check_store(struct vc_source *s)
{
    uint64_t since = atomic_load(&s->record_ns);
    struct vc_queue_node *n;

    if (!since || !atomic_load(&s->recording) ||
        vc_now_ns() - since < s->o.store_patience_ms * VC_NS_PER_MS)
        return;
    vc_log(s->o.log, VC_LOG_WARNING,
           "no checkpoint of this migration will be kept here: the store has not taken a write for "
           "%u s",
           s->o.store_patience_ms / 1000);
    /* In this order: who finds the queue shut must see why. */
    atomic_store(&s->recording, false);
    atomic_store(&s->store_stuck, true);
    vc_queue_abort(&s->to_record);
    while ((n = vc_queue_drain(&s->to_record)))
        vc_src_batch_unref(vc_src_batch_of_record(n));
}

/* Pages of one run in stretches that the base has, and that it has not. */
static int record_pages(struct vc_source *s, const struct vc_src_batch *b,
                        const struct vc_src_run *r, struct vc_err *err)
{
    uint64_t i = 0;

    while (i < r->run.count) {
        bool same = b->local_same[r->first + i];
        struct vc_page page = vc_page(r->run.page.n + i);
        uint64_t n = 1;
        int rc;

        while (i + n < r->run.count && b->local_same[r->first + i + n] == same)
            n++;
        rc = same ? vc_txn_same(s->txn, r->run.block, page, n, err)
                  : vc_txn_put(s->txn, r->run.block, page, n, &b->content[r->first + i],
                               &b->digests[r->first + i], err);
        if (rc)
            return rc;
        i += n;
    }
    return 0;
}

static int record_batch(struct vc_source *s, const struct vc_src_batch *b, struct vc_err *err)
{
    for (uint32_t i = 0; i < b->n_runs; i++) {
        const struct vc_src_run *r = &b->runs[i];
        int rc = 0;

        switch (r->run.kind) {
        case VC_RUN_ZERO:
            rc = vc_txn_zero(s->txn, r->run.block, r->run.page, r->run.count, err);
            break;
        case VC_RUN_INVALIDATE:
            rc = vc_txn_unknown(s->txn, r->run.block, r->run.page, r->run.count, err);
            break;
        case VC_RUN_SAME:
        case VC_RUN_DATA:
            rc = record_pages(s, b, r, err);
            break;
        default:
            break;
        }
        if (rc)
            return rc;
    }
    return 0;
}

/* The next batch; while none comes, what was recorded is logged once a second. False: the end. */
static bool next_batch(struct vc_source *s, struct vc_queue_node **node)
{
    for (;;) {
        struct vc_err err = VC_ERR_INIT;
        uint64_t deadline = s->txn ? vc_now_ns() + VC_NS_PER_S : UINT64_MAX;
        int rc = vc_queue_pop(&s->to_record, deadline, node);

        if (rc != VC_AGAIN)
            return rc == 0;
        atomic_store(&s->record_ns, vc_now_ns());
        if (vc_txn_log(s->txn, false, &err))
            give_up(s, &err);
        atomic_store(&s->record_ns, 0);
    }
}

void *vc_source_record_main(void *arg)
{
    struct vc_source *s = arg;
    struct vc_queue_node *node;

    while (next_batch(s, &node)) {
        struct vc_src_batch *b = vc_src_batch_of_record(node);
        struct vc_err err = VC_ERR_INIT;
        int rc = 0;

        atomic_store(&s->record_ns, vc_now_ns());
        if (s->txn && b->item == VC_SRC_BLOCKS)
            rc = vc_txn_set_ram(s->txn, b->ram, &err);
        else if (s->txn && b->item == VC_SRC_BATCH)
            rc = record_batch(s, b, &err);
        vc_src_batch_unref(b);
        if (rc)
            give_up(s, &err);
        atomic_store(&s->record_ns, 0);
    }
    if (atomic_load(&s->store_stuck)) /* batches are missing */
        vc_txn_abort(vc_steal_ptr(s->txn));
    return NULL;
}
