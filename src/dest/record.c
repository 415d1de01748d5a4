/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dest/pipeline.h"

/* The recording stage: writes this host's new generation from verified batches. What is written is
 * a function of the runs alone, so the source's generation is the same. Trouble with the store
 * gives the generation up and never the migration. */

void vc_dest_check_store(struct vc_dest *d)
{
    struct vc_queue_node *n;

    if (vc_recorder_check(&d->recorder))
        while ((n = vc_queue_drain(&d->recorder.queue)))
            vc_dst_batch_unref(vc_dst_batch_of_record(n));
}

#define PUT_GROUP 256

static int put(struct vc_txn *t, uint16_t block, uint64_t page, const struct vc_dst_page *p,
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
        rc = vc_txn_put(t, block, vc_page(page), k, contents, digests, err);
        if (rc)
            return rc;
        page += k;
        p += k;
        n -= k;
    }
    return 0;
}

/* Pages of one run in stretches that were read from the base, and that were not: what was sent is
 * written, though the base's index may have the same digest, since nobody has looked into its
 * files. */
static int record_pages(struct vc_txn *t, const struct vc_dst_batch *b,
                        const struct vc_dst_run *run, struct vc_err *err)
{
    const struct vc_dst_page *p = &b->pages[run->first];
    uint64_t i = 0;

    while (i < run->run.count) {
        uint64_t page = run->run.page.n + i, n = 1;
        int rc;

        bool same = run->run.kind == VC_RUN_SAME && p[i].same;

        while (i + n < run->run.count && p[i].same == p[i + n].same)
            n++;
        rc = same ? vc_txn_same(t, run->run.block, vc_page(page), n, err)
                  : put(t, run->run.block, page, &p[i], n, err);
        if (rc)
            return rc;
        i += n;
    }
    return 0;
}

/* *have_ram: the transaction knows the RAM. */
static int record_batch(struct vc_txn *t, const struct vc_dst_batch *b, bool *have_ram,
                        struct vc_err *err)
{
    int rc = 0;

    if (b->ram && !*have_ram) {
        *have_ram = true;
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
        case VC_RUN_MOVED:
        case VC_RUN_DATA:
            rc = record_pages(t, b, run, err);
            break;
        default:
            break;
        }
    }
    return rc;
}

void *vc_dest_record_main(void *arg)
{
    struct vc_dest *d = arg;
    struct vc_queue_node *node;
    bool have_ram = false;

    while (vc_recorder_next(&d->recorder, &node)) {
        struct vc_dst_batch *b = vc_dst_batch_of_record(node);
        struct vc_txn *t = vc_recorder_begin(&d->recorder);
        struct vc_err err = VC_ERR_INIT;
        uint64_t seq = b->h.seq;
        int rc = t ? record_batch(t, b, &have_ram, &err) : 0;

        vc_dst_batch_unref(b);
        vc_recorder_done(&d->recorder, seq, rc, &err);
    }
    vc_recorder_end(&d->recorder);
    return NULL;
}
