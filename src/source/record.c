/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "source/pipeline.h"

/* The recording stage: writes this host's new generation from the batches as they were built. What
 * it writes is a function of the runs alone, so the destination's generation is the same. Trouble
 * with the store gives the generation up and never the migration. */

void vc_source_check_store(struct vc_source *s)
{
    struct vc_queue_node *n;

    if (vc_recorder_check(&s->recorder))
        while ((n = vc_queue_drain(&s->recorder.queue)))
            vc_src_batch_unref(vc_src_batch_of_record(n));
}

/* Bytes of a partial base that are looked at together. */
#define LOOK_BYTES VC_MAX_PAGE_BYTES

/* A partial base may have been written over after a digest was logged (docs/formats/store.md,
 * section 3): what lies on its disk decides, and what cannot be read is written anew. */
static void look_into_base(const struct vc_source *s, struct vc_src_batch *b,
                           const struct vc_src_run *r)
{
    uint8_t buf[LOOK_BYTES];
    uint32_t page_bytes = b->ram->page_bytes;
    struct vc_err ignored = VC_ERR_INIT;
    uint64_t n;

    if (r->run.kind == VC_RUN_SAME && s->local_map[r->run.block] >= 0)
        vc_gen_prefetch(s->o.local_gen, (uint32_t)s->local_map[r->run.block], r->run.page,
                        r->run.count);
    for (uint64_t i = 0; i < r->run.count; i += n) {
        bool *same = &b->local_same[r->first + i];
        const uint8_t *const *content = &b->content[r->first + i];

        for (n = 0; n < LOOK_BYTES / page_bytes && i + n < r->run.count && same[n]; n++) {
        }
        if (!n) {
            n = 1;
            continue;
        }
        if (vc_gen_read(s->o.local_gen, (uint32_t)s->local_map[r->run.block],
                        vc_page(r->run.page.n + i), n, buf, &ignored))
            memset(same, 0, n * sizeof(*same));
        for (uint64_t k = 0; k < n; k++)
            same[k] = same[k] && !memcmp(buf + k * page_bytes, content[k], page_bytes);
    }
}

/* Pages of one run in stretches that the base has, and that it has not. */
static int record_pages(struct vc_txn *t, const struct vc_src_batch *b, const struct vc_src_run *r,
                        struct vc_err *err)
{
    uint64_t i = 0;

    while (i < r->run.count) {
        bool same = b->local_same[r->first + i];
        struct vc_page page = vc_page(r->run.page.n + i);
        uint64_t n = 1;
        int rc;

        while (i + n < r->run.count && b->local_same[r->first + i + n] == same)
            n++;
        rc = same ? vc_txn_same(t, r->run.block, page, n, err)
                  : vc_txn_put(t, r->run.block, page, n, &b->content[r->first + i],
                               &b->digests[r->first + i], err);
        if (rc)
            return rc;
        i += n;
    }
    return 0;
}

static int record_batch(const struct vc_source *s, struct vc_txn *t, struct vc_src_batch *b,
                        struct vc_err *err)
{
    bool partial = s->o.local_gen && vc_gen_info(s->o.local_gen)->partial;

    for (uint32_t i = 0; i < b->n_runs; i++) {
        const struct vc_src_run *r = &b->runs[i];
        int rc = 0;

        switch (r->run.kind) {
        case VC_RUN_ZERO:
            rc = vc_txn_zero(t, r->run.block, r->run.page, r->run.count, err);
            break;
        case VC_RUN_INVALIDATE:
            rc = vc_txn_unknown(t, r->run.block, r->run.page, r->run.count, err);
            break;
        case VC_RUN_SAME:
        case VC_RUN_MOVED:
        case VC_RUN_DATA:
            if (partial)
                look_into_base(s, b, r);
            rc = record_pages(t, b, r, err);
            break;
        default:
            break;
        }
        if (rc)
            return rc;
    }
    return 0;
}

void *vc_source_record_main(void *arg)
{
    struct vc_source *s = arg;
    struct vc_queue_node *node;

    while (vc_recorder_next(&s->recorder, &node)) {
        struct vc_src_batch *b = vc_src_batch_of_record(node);
        struct vc_err err = VC_ERR_INIT;
        struct vc_txn *t = vc_recorder_begin(&s->recorder);
        uint64_t seq = b->seq;
        int rc = 0;

        if (t && b->item == VC_SRC_BLOCKS)
            rc = vc_txn_set_ram(t, b->ram, &err);
        else if (t && b->item == VC_SRC_BATCH)
            rc = record_batch(s, t, b, &err);
        vc_src_batch_unref(b);
        vc_recorder_done(&s->recorder, seq, rc, &err);
    }
    vc_recorder_end(&s->recorder);
    return NULL;
}
