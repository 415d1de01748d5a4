/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>

#include "dest/pipeline.h"

/* The recording stage: writes this host's new generation from verified batches. What is written is
 * a function of the runs alone, so the source's generation is the same. Trouble with the store
 * gives the generation up and never the migration. */

struct record {
    struct vc_dest *d;
    bool have_ram;
    int map[VC_MAX_BLOCKS]; /* block of the stream -> block of the base generation, or -1 */
};

void vc_dest_check_store(struct vc_dest *d)
{
    struct vc_queue_node *n;

    if (vc_recorder_check(&d->recorder))
        while ((n = vc_queue_drain(&d->recorder.queue)))
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
        rc = vc_txn_put(r->d->recorder.txn, block, vc_page(page), k, contents, digests, err);
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
        rc = same ? vc_txn_same(r->d->recorder.txn, run->run.block, vc_page(page), n, err)
                  : put(r, run->run.block, page, &p[i], n, err);
        if (rc)
            return rc;
        i += n;
    }
    return 0;
}

static int record_batch(struct record *r, const struct vc_dst_batch *b, struct vc_err *err)
{
    struct vc_txn *t = r->d->recorder.txn;
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

void *vc_dest_record_main(void *arg)
{
    struct record *r = calloc(1, sizeof(*r));
    struct vc_dest *d = arg;
    struct vc_queue_node *node;

    if (r)
        r->d = d;
    while (vc_recorder_next(&d->recorder, &node)) {
        struct vc_dst_batch *b = vc_dst_batch_of_record(node);
        struct vc_err err = VC_ERR_INIT;
        int rc = 0;

        if (vc_recorder_begin(&d->recorder) && !b->is_eof)
            rc = r ? record_batch(r, b, &err)
                   : vc_err_set(&err, VC_E_NOMEM, "no memory for the recorder");
        vc_dst_batch_unref(b);
        vc_recorder_done(&d->recorder, rc, &err);
    }
    vc_recorder_end(&d->recorder);
    free(r);
    return NULL;
}
