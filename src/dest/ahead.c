/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/clock.h"
#include "dest/resolve.h"
#include "link/link.h"

/* Frames are taken some way ahead of what is done with them, as far as they are there, and the disk
 * is told what they refer to: it reads that, in the order of the stream, while batches before are
 * digested. The kernel's own reading ahead is off (vc_gen_read_sparsely()): it would read what is
 * sent as well. */

/* The batches that are taken ahead: bytes of the stream, and what they take in memory, which a peer
 * can make much more. */
#define AHEAD_BYTES (12u << 20)
#define AHEAD_HELD_BYTES (20u << 20)

int vc_dst_parse(struct vc_dst_resolve *r, struct vc_link_frame *f, struct vc_dst_batch **out)
{
    struct vc_dst_batch *b = vc_dst_batch_new();
    int rc;

    if (!b) {
        vc_link_frame_free(f);
        return vc_err_set(&r->err, VC_E_NOMEM, "no memory for a batch");
    }
    rc = vc_dst_batch_parse(b, f, r->have_ram ? &r->d->ram : NULL, r->d->o.features, r->codec,
                            &r->err);
    if (rc)
        vc_dst_batch_unref(b);
    else
        *out = b;
    return rc;
}

/* Has the disk begin with what the batch refers to. Whether that is there is checked later. */
static void prefetch(const struct vc_dst_resolve *r, const struct vc_dst_batch *b)
{
    const struct vc_gen *gen = r->d->o.gen;

    if (!gen || !(b->n_same || b->n_old))
        return;
    for (uint32_t i = 0; i < b->n_runs; i++) {
        const struct vc_wire_run *run = &b->runs[i].run;
        uint16_t block;
        struct vc_page page = vc_wire_run_base_page(run, &block);

        if ((vc_wire_run_is_reference(run) || (run->old && !b->after)) && r->map[block] >= 0)
            vc_gen_prefetch(gen, (uint32_t)r->map[block], page, run->count);
    }
}

static int append(struct vc_dst_resolve *r, struct vc_link_frame *f)
{
    struct vc_dst_batch *b;
    int rc;

    if (f->type != VC_WIRE_BATCH) {
        r->behind = f;
        return 0;
    }
    rc = vc_dst_parse(r, f, &b);
    if (rc)
        return rc;
    prefetch(r, b);
    if (r->ahead)
        r->ahead_last->next = b;
    else
        r->ahead = b;
    r->ahead_last = b;
    r->ahead_bytes += b->h.stream_bytes;
    r->ahead_held += b->held;
    return 0;
}

/* Reading ahead is worth while, and no more than that: where many sessions hold much each has one
 * batch. */
static bool has_room(const struct vc_dst_resolve *r)
{
    return !r->ahead || (r->ahead_bytes < AHEAD_BYTES && r->ahead_held < AHEAD_HELD_BYTES &&
                         vc_dst_batches_held() < VC_DEST_SHARED_BATCH_BYTES);
}

static int wait_for_frame(struct vc_dst_resolve *r, struct vc_queue_node **node)
{
    uint64_t begun = vc_now_ns();
    int rc = vc_queue_pop(&r->d->frames, UINT64_MAX, node);

    if (r->reads.begun_ns)
        r->reads.now.waiting_ns += vc_now_ns() - begun;
    else if (r->have_ram)
        r->reads.begun_ns = vc_now_ns();
    return rc;
}

int vc_dst_next(struct vc_dst_resolve *r, struct vc_dst_batch **b, struct vc_link_frame **f)
{
    *b = NULL;
    *f = NULL;
    while (!r->behind && has_room(r)) {
        struct vc_queue_node *node;
        int rc = r->ahead ? vc_queue_pop(&r->d->frames, 0, &node) : wait_for_frame(r, &node);

        if (rc && r->ahead)
            break;
        if (!rc) {
            vc_dest_frame_left(node);
            rc = append(r, (struct vc_link_frame *)node);
        }
        if (rc)
            return rc;
    }
    if (!r->ahead) {
        *f = vc_steal_ptr(r->behind);
        return 0;
    }
    *b = r->ahead;
    r->ahead = (*b)->next;
    (*b)->next = NULL;
    r->ahead_bytes -= (*b)->h.stream_bytes;
    r->ahead_held -= (*b)->held;
    return 0;
}

void vc_dst_drop_ahead(struct vc_dst_resolve *r)
{
    while (r->ahead) {
        struct vc_dst_batch *b = r->ahead;

        r->ahead = b->next;
        vc_dst_batch_unref(b);
    }
    vc_link_frame_free(r->behind);
}
