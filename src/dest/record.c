/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>

#include "base/clock.h"
#include "dest/pipeline.h"

/* The recording stage: writes this host's new generation from verified batches. What is written is
 * a function of the runs alone, so the source's generation is the same. Trouble with the store
 * gives the generation up and never the migration. */

struct record {
    struct vc_dest *d;
    bool have_ram;
    int map[VC_MAX_BLOCKS]; /* block of the stream -> block of the base generation, or -1 */
};

static void give_up(struct vc_dest *d, const struct vc_err *err)
{
    vc_log_err(d->o.log, VC_LOG_WARNING, "no checkpoint of this migration will be kept here", err);
    vc_txn_abort(d->txn);
    d->txn = NULL;
    atomic_store(&d->recording, false);
}

void vc_dest_check_store(struct vc_dest *d)
{
    uint64_t since = atomic_load(&d->record_ns);
    struct vc_queue_node *n;

    if (!since || !atomic_load(&d->recording) ||
        vc_now_ns() - since < d->o.store_patience_ms * VC_NS_PER_MS)
        return;
    vc_log(d->o.log, VC_LOG_WARNING,
           "no checkpoint of this migration will be kept here: the store has not taken a write for "
           "%u s",
           d->o.store_patience_ms / 1000);
    /* In this order: who finds the queue shut must see why. */
    atomic_store(&d->recording, false);
    atomic_store(&d->store_stuck, true);
    vc_queue_abort(&d->to_record);
    while ((n = vc_queue_drain(&d->to_record)))
        vc_dst_batch_unref(vc_dst_batch_of_record(n));
}

/* Whether the base generation has the page already, so that it need not be written. */
static bool held(const struct record *r, uint16_t block, uint64_t page, const struct vc_dst_page *p)
{
    const struct vc_gen *gen = r->d->o.gen;
    struct vc_digest d;
    int b;

    if (p->same)
        return true;
    if (!gen || (b = r->map[block]) < 0)
        return false;
    return page < vc_ram_block_pages(vc_gen_ram(gen), (uint32_t)b) &&
           vc_gen_lookup(gen, (uint32_t)b, vc_page(page), &d) == VC_PAGE_HELD &&
           vc_digest_equal(&d, &p->digest);
}

#define PUT_GROUP 256

static int put(struct record *r, uint16_t block, uint64_t page, const struct vc_dst_page *p,
               uint64_t n, struct vc_err *err)
{
    const uint8_t *contents[PUT_GROUP];
    struct vc_digest digests[PUT_GROUP];

    while (n) {
        size_t k = VC_MIN(n, (uint64_t)PUT_GROUP);
        int rc;

        for (size_t i = 0; i < k; i++) {
            contents[i] = p[i].content;
            digests[i] = p[i].digest;
        }
        rc = vc_txn_put(r->d->txn, block, vc_page(page), k, contents, digests, err);
        if (rc)
            return rc;
        page += k;
        p += k;
        n -= k;
    }
    return 0;
}

/* Pages of one run in stretches that the base has, and that it has not. A page that had to be
 * repaired is one that the base's files have no more, whatever its index says. */
static int record_pages(struct record *r, const struct vc_dst_batch *b,
                        const struct vc_dst_run *run, struct vc_err *err)
{
    const struct vc_dst_page *p = &b->pages[run->first];
    bool repairable = run->run.kind == VC_RUN_SAME;
    uint64_t i = 0;

    while (i < run->run.count) {
        uint64_t page = run->run.page.n + i, n = 1;
        bool same = repairable ? p[i].same : held(r, run->run.block, page, &p[i]);
        int rc;

        while (i + n < run->run.count &&
               same == (repairable ? p[i + n].same : held(r, run->run.block, page + n, &p[i + n])))
            n++;
        rc = same ? vc_txn_same(r->d->txn, run->run.block, vc_page(page), n, err)
                  : put(r, run->run.block, page, &p[i], n, err);
        if (rc)
            return rc;
        i += n;
    }
    return 0;
}

static int record_batch(struct record *r, const struct vc_dst_batch *b, struct vc_err *err)
{
    struct vc_txn *t = r->d->txn;
    int rc = 0;

    if (b->ram && !r->have_ram) {
        r->have_ram = true;
        if (r->d->o.gen)
            vc_ram_map(b->ram, vc_gen_ram(r->d->o.gen), r->map);
        rc = vc_txn_set_ram(t, b->ram, err);
    }
    for (uint32_t i = 0; i < b->n_runs && !rc; i++) {
        const struct vc_dst_run *run = &b->runs[i];

        switch (run->run.kind) {
        case VC_RUN_ZERO:
            rc = vc_txn_zero(t, run->run.block, run->run.page, run->run.count, err);
            break;
        case VC_RUN_INVALIDATE:
            rc = vc_txn_unknown(t, run->run.block, run->run.page, run->run.count, err);
            break;
        case VC_RUN_SAME:
        case VC_RUN_DATA:
            rc = record_pages(r, b, run, err);
            break;
        default:
            break;
        }
    }
    return rc;
}

/* The next batch; while none comes, what was recorded is logged once a second. False: the end. */
static bool next_batch(struct vc_dest *d, struct vc_queue_node **node)
{
    for (;;) {
        struct vc_err err = VC_ERR_INIT;
        uint64_t deadline = d->txn ? vc_now_ns() + VC_NS_PER_S : UINT64_MAX;
        int rc = vc_queue_pop(&d->to_record, deadline, node);

        if (rc != VC_AGAIN)
            return rc == 0;
        atomic_store(&d->record_ns, vc_now_ns());
        if (vc_txn_log(d->txn, false, &err))
            give_up(d, &err);
        atomic_store(&d->record_ns, 0);
    }
}

void *vc_dest_record_main(void *arg)
{
    struct record *r = calloc(1, sizeof(*r));
    struct vc_dest *d = arg;
    struct vc_queue_node *node;

    if (r)
        r->d = d;
    while (next_batch(d, &node)) {
        struct vc_dst_batch *b = vc_dst_batch_of_record(node);
        struct vc_err err = VC_ERR_INIT;
        int rc = 0;

        atomic_store(&d->record_ns, vc_now_ns());
        if (!r)
            rc = vc_err_set(&err, VC_E_NOMEM, "no memory for the recorder");
        else if (d->txn && !b->is_eof)
            rc = record_batch(r, b, &err);
        vc_dst_batch_unref(b);
        if (rc && d->txn)
            give_up(d, &err);
        atomic_store(&d->record_ns, 0);
    }
    if (atomic_load(&d->store_stuck)) /* batches are missing */
        vc_txn_abort(vc_steal_ptr(d->txn));
    free(r);
    return NULL;
}
