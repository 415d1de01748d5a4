/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/batch.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

struct vc_src_batch *vc_src_batch_new(enum vc_src_item item, uint64_t seq, uint64_t position)
{
    /* Not cleared as a whole: the arrays are large, and only their used part is looked at. */
    struct vc_src_batch *b = malloc(sizeof(*b));

    if (!b)
        return NULL;
    memset(b, 0, offsetof(struct vc_src_batch, runs));
    b->item = item;
    b->seq = seq;
    b->position = position;
    atomic_init(&b->refs, 1);
    return b;
}

struct vc_src_batch *vc_src_batch_ref(struct vc_src_batch *b)
{
    atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
    return b;
}

void vc_src_batch_unref(struct vc_src_batch *b)
{
    if (!b || atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) != 1)
        return;
    for (uint32_t i = 0; i < b->n_slabs; i++)
        vc_slab_unref(b->slabs[i]);
    free(b);
}

static bool holds_slab(const struct vc_src_batch *b, const struct vc_slab *slab)
{
    return b->n_slabs && b->slabs[b->n_slabs - 1] == slab;
}

bool vc_src_batch_has_room(const struct vc_src_batch *b, size_t stream_bytes,
                           const struct vc_slab *slab)
{
    return stream_bytes <= VC_SRC_BATCH_STREAM_BYTES - b->stream_bytes &&
           b->n_runs < VC_SRC_BATCH_RUNS && b->n_pages < VC_SRC_BATCH_PAGES &&
           (holds_slab(b, slab) || b->n_slabs < VC_SRC_BATCH_SLABS);
}

static void hold_slab(struct vc_src_batch *b, struct vc_slab *slab)
{
    if (!holds_slab(b, slab))
        b->slabs[b->n_slabs++] = vc_slab_ref(slab);
}

static struct vc_src_run *last_run(struct vc_src_batch *b)
{
    return b->n_runs ? &b->runs[b->n_runs - 1] : NULL;
}

void vc_src_batch_add_opaque(struct vc_src_batch *b, struct vc_slab *slab, const uint8_t *p,
                             uint32_t n)
{
    struct vc_src_run *last = last_run(b);

    hold_slab(b, slab);
    b->stream_bytes += n;
    b->opaque_bytes += n;
    if (last && last->run.kind == VC_RUN_OPAQUE && last->bytes + last->run.count == p) {
        last->run.count += n;
        return;
    }
    b->runs[b->n_runs++] = (struct vc_src_run){
        .run = {.kind = VC_RUN_OPAQUE, .count = n},
        .bytes = p,
    };
}

static bool continues(const struct vc_src_run *last, const struct vc_wire_run *run)
{
    return last && last->run.kind == run->kind && last->run.as_page == run->as_page &&
           last->run.old == run->old && last->run.shifted == run->shifted &&
           last->run.recent == run->recent && last->run.block == run->block &&
           last->run.page.n + last->run.count == run->page.n && !run->named &&
           (!vc_wire_run_is_elsewhere(run) ||
            (last->run.from_block == run->from_block &&
             last->run.from_page.n + last->run.count == run->from_page.n));
}

void vc_src_batch_add_page(struct vc_src_batch *b, struct vc_slab *slab,
                           const struct vc_wire_run *run, uint32_t header_bytes,
                           const uint8_t *content, uint32_t page_bytes,
                           const struct vc_digest *digest, bool local_same)
{
    struct vc_src_run *last = last_run(b);

    b->stream_bytes += header_bytes;
    if (continues(last, run)) {
        last->run.count++;
    } else {
        b->runs[b->n_runs] = (struct vc_src_run){.run = *run, .first = b->n_pages};
        b->runs[b->n_runs++].run.count = 1;
    }
    if (!content)
        return;
    hold_slab(b, slab);
    b->stream_bytes += page_bytes;
    if (run->kind == VC_RUN_DATA)
        b->data_bytes += page_bytes;
    if (run->old)
        b->old_bytes += page_bytes;
    if (run->recent)
        b->recent_bytes += page_bytes;
    else if (run->old)
        b->base_bytes += page_bytes;
    b->content[b->n_pages] = content;
    b->digests[b->n_pages] = *digest;
    b->local_same[b->n_pages] = local_same;
    b->n_pages++;
}

void vc_src_batch_add_invalidate(struct vc_src_batch *b, uint16_t block, struct vc_page page,
                                 uint64_t count)
{
    b->runs[b->n_runs++] = (struct vc_src_run){
        .run = {.kind = VC_RUN_INVALIDATE, .block = block, .page = page, .count = count},
    };
}

/* The content a run has in the body. */
static bool has_content(const struct vc_src_run *r, enum vc_src_form form)
{
    return r->run.kind == VC_RUN_DATA ||
           (form == VC_SRC_SELF_CONTAINED && vc_wire_run_is_reference(&r->run));
}

size_t vc_src_run_contents(const struct vc_src_run *r, enum vc_src_form form, uint32_t page_bytes)
{
    if (r->run.kind == VC_RUN_OPAQUE)
        return r->run.count;
    return has_content(r, form) ? r->run.count * page_bytes : 0;
}

size_t vc_src_batch_contents(const struct vc_src_batch *b, enum vc_src_form form,
                             uint32_t page_bytes)
{
    size_t n = 0;

    for (uint32_t i = 0; i < b->n_runs; i++)
        n += vc_src_run_contents(&b->runs[i], form, page_bytes);
    return n;
}

void vc_src_batch_runs(const struct vc_src_batch *b, enum vc_src_form form, struct vc_writer *w)
{
    struct vc_wire_cursor cursor = {0};

    for (uint32_t i = 0; i < b->n_runs; i++) {
        struct vc_wire_run run = b->runs[i].run;

        if (has_content(&b->runs[i], form))
            run.kind = VC_RUN_DATA;
        run.old = (run.old && form == VC_SRC_DELTA) || (run.recent && form == VC_SRC_RECENT);
        run.shifted = run.shifted && form == VC_SRC_DELTA;
        vc_wire_run_encode(w, &cursor, &run);
    }
}

bool vc_src_next_piece(struct vc_src_pieces *at, struct iovec *out)
{
    for (; at->run < at->batch->n_runs; at->run++, at->piece = 0) {
        const struct vc_src_run *r = &at->batch->runs[at->run];
        bool opaque = r->run.kind == VC_RUN_OPAQUE;

        if (at->piece == (opaque ? 1 : has_content(r, at->form) ? r->run.count : 0))
            continue;
        if (opaque)
            *out = (struct iovec){(void *)r->bytes, r->run.count};
        else
            *out = (struct iovec){(void *)at->batch->content[r->first + at->piece], at->page_bytes};
        at->piece++;
        return true;
    }
    return false;
}
