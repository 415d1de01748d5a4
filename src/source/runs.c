/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "base/clock.h"
#include "digest/digest.h"
#include "link/seal.h"
#include "source/ingest.h"

/* The second half of the intake: what the parser has found becomes runs of a batch. Each page is
 * matched against what the destination holds; the running seal is fed on the way. */

/* So far from a page that has moved others may have moved with it: a huge page, where pages are of
 * 4 KiB. What is in between may be a page or two more or less than there was. */
#define NEAR_PAGES 512u
#define SLACK_PAGES 2u

/* ---- batches ---- */

static int open_batch(struct vc_ingest *in)
{
    in->batch = vc_src_batch_new(VC_SRC_BATCH, in->next_seq, in->position);
    if (!in->batch)
        return vc_err_set(&in->err, VC_E_NOMEM, "no memory for a batch");
    in->opened_ns = vc_now_ns();
    in->batch->ram = in->s->ram.n_blocks ? &in->s->ram : NULL;
    return vc_seal_begin(in->seals, &in->seal, in->next_seq, in->position, &in->err);
}

/* What a batch counts in the queue of the sender. References are small, but whether a page becomes
 * one is decided here, by what is known now: of those, no more than 2 MiB of the stream wait. */
static uint64_t queue_cost(const struct vc_src_batch *b)
{
    return b->data_bytes + b->opaque_bytes + b->stream_bytes / 32 + 1024u;
}

static int push(struct vc_ingest *in, struct vc_src_batch *b)
{
    struct vc_source *s = in->s;

    atomic_fetch_add(&s->unsent, 1);
    if (vc_queue_push(&s->to_send, &b->send_node, queue_cost(b))) {
        vc_src_batch_unref(b);
        return VC_CLOSED;
    }
    return 0;
}

int vc_runs_close(struct vc_ingest *in)
{
    struct vc_src_batch *b = in->batch;
    int rc = 0;

    if (!b)
        return 0;
    for (uint32_t i = 0; i < b->n_runs && !rc; i++) /* they count after the content */
        rc = vc_seal_invalidate(in->seals, &b->runs[i].run, &in->err);
    if (!rc)
        rc = vc_digest_end(in->seals, &in->seal, &in->err);
    if (rc)
        return rc;
    b->seal = in->seal;
    in->batch = NULL;
    in->next_seq++;
    in->position += b->stream_bytes;
    vc_count(&in->s->n.batches, 1);
    return push(in, b);
}

int vc_runs_mark(struct vc_ingest *in, enum vc_src_item item)
{
    struct vc_src_batch *b;
    int rc = vc_runs_close(in);

    if (rc)
        return rc;
    b = vc_src_batch_new(item, 0, 0);
    if (!b)
        return vc_err_set(&in->err, VC_E_NOMEM, "no memory for a batch");
    b->ram = &in->s->ram;
    return push(in, b);
}

/* Makes sure that the open batch can take so much more. */
static int make_room(struct vc_ingest *in, size_t stream_bytes)
{
    int rc;

    if (in->batch && !vc_src_batch_has_room(in->batch, stream_bytes, in->slab)) {
        rc = vc_runs_close(in);
        if (rc)
            return rc;
    }
    return in->batch ? 0 : open_batch(in);
}

static bool batch_has_enough_data(struct vc_ingest *in)
{
    uint32_t most;

    if (!in->batch || in->batch->data_bytes + in->batch->opaque_bytes < VC_FLOW_BATCH_MIN_BYTES)
        return false;
    {
        VC_LOCKED(&in->s->mu);
        most = vc_flow_batch_data(&in->s->flow);
    }
    return in->batch->data_bytes + in->batch->opaque_bytes >= most;
}

int vc_runs_opaque(struct vc_ingest *in, const uint8_t *p, size_t n)
{
    while (n) {
        size_t k = VC_MIN(n, (size_t)VC_SRC_BATCH_STREAM_BYTES / 4);
        int rc = make_room(in, k);

        if (!rc)
            rc = vc_digest_update(in->seals, p, k, &in->err);
        if (rc)
            return rc;
        vc_src_batch_add_opaque(in->batch, in->slab, p, (uint32_t)k);
        p += k;
        n -= k;
        if (batch_has_enough_data(in)) {
            rc = vc_runs_close(in);
            if (rc)
                return rc;
        }
    }
    return 0;
}

/* ---- pages ---- */

/* The first pass ends when every page has come, or one comes again: QEMU goes over memory in order,
 * so it has been at the end then. (Some pages never come: those that a balloon has reported free.)
 */
static void mark_seen(struct vc_ingest *in, uint16_t block, struct vc_page page)
{
    uint64_t bit = in->block_first[block] + page.n;
    uint8_t mask = (uint8_t)(1u << (bit & 7));

    if (!in->seen)
        return;
    if (in->seen[bit >> 3] & mask) {
        in->repeated = true;
        return;
    }
    in->seen[bit >> 3] |= mask;
    /* Only this thread writes it. */
    atomic_store_explicit(&in->s->n.first_pass_left,
                          atomic_load_explicit(&in->s->n.first_pass_left, memory_order_relaxed) -
                              in->s->ram.page_bytes,
                          memory_order_relaxed);
}

/* Whether this host's base generation holds the page, and with which digest. */
static bool held_here(const struct vc_source *s, uint16_t block, struct vc_page page,
                      struct vc_digest *digest)
{
    return s->o.local_gen && vc_gen_holds(s->o.local_gen, s->local_map[block], page, digest);
}

/* Where a page has come from, if it has moved as far as another one; false: that is outside. */
static bool beside(const struct vc_source *s, const struct vc_wire_run *moved,
                   struct vc_wire_run *run)
{
    run->from_block = moved->from_block;
    run->from_page = vc_page(moved->from_page.n + run->page.n - moved->page.n);
    return run->from_page.n < vc_ram_block_pages(&s->ram, run->from_block);
}

/* Whether the destination holds the content at another address: where the page before it, if that
 * has moved too, had its next one, or anywhere. */
static bool has_moved(struct vc_ingest *in, const struct vc_digest *digest, struct vc_wire_run *run)
{
    struct vc_source *s = in->s;
    const struct vc_src_batch *b = in->batch;
    const struct vc_wire_run *last = b->n_runs ? &b->runs[b->n_runs - 1].run : NULL;

    if (last && last->kind == VC_RUN_MOVED && last->block == run->block &&
        last->page.n + last->count == run->page.n && beside(s, last, run) &&
        vc_remote_has(&s->remote, &s->ram, run->from_block, run->from_page, digest))
        return true;
    return vc_remote_find(&s->remote, &s->ram, digest, &run->from_block, &run->from_page);
}

/* Whether two numbers are no further from each other. */
static bool is_within(uint64_t a, uint64_t b, uint64_t most)
{
    return a - b + most <= 2 * most;
}

/* Notes a page that has moved, and whether one near to it has come as far: a single one may be
 * found anywhere by chance. */
static void note_moved(struct vc_ingest *in, const struct vc_wire_run *run)
{
    const struct vc_wire_run *last = &in->moved;

    in->moved_together =
        last->kind == VC_RUN_MOVED && last->block == run->block &&
        last->from_block == run->from_block && is_within(run->page.n, last->page.n, NEAR_PAGES) &&
        is_within(run->page.n - run->from_page.n, last->page.n - last->from_page.n, SLACK_PAGES);
    in->moved = *run;
}

/* A guest's kernel moves memory in stretches, to make a huge page of it for one, and in between
 * some of it changes. So a page may have been where the last ones that have moved, if they are
 * near, have come from, as far from them as it is now. */
static bool may_have_moved(struct vc_ingest *in, struct vc_wire_run *run)
{
    const struct vc_wire_run *near = &in->moved;
    struct vc_source *s = in->s;
    struct vc_digest before;

    if (!s->o.shifted || !in->moved_together || near->block != run->block ||
        !is_within(run->page.n, near->page.n, NEAR_PAGES))
        return false;
    run->shifted = beside(s, near, run) && held_here(s, run->from_block, run->from_page, &before) &&
                   vc_remote_has(&s->remote, &s->ram, run->from_block, run->from_page, &before);
    return run->shifted;
}

/* Notes that the page goes out, and whether what it was before is in the new generation. Where it
 * was said to be as in the base, it does not matter whether that is recorded yet. */
static void note_recent(struct vc_ingest *in, struct vc_wire_run *run, bool local_same)
{
    uint64_t page = in->block_first[run->block] + run->page.n, seq = in->batch->seq, before;

    if (!in->recent.last)
        return;
    before = vc_recent_before(&in->recent, page, seq);
    if (run->kind == VC_RUN_DATA) {
        run->recent =
            vc_recent_is_noted(&in->recent, page) ? before != 0 : run->old && !run->shifted;
        in->batch->after = VC_MAX(in->batch->after, before);
        in->batch->again_bytes += before ? in->s->ram.page_bytes : 0;
    }
    if (run->kind == VC_RUN_ZERO)
        vc_recent_lost(&in->recent, page, 1);
    else if (run->kind != VC_RUN_SAME || !local_same || vc_recent_is_noted(&in->recent, page))
        vc_recent_sent(&in->recent, page, seq);
}

int vc_runs_page(struct vc_ingest *in, const struct vc_ingest_item *g,
                 const struct vc_digest *digest)
{
    static const struct vc_digest zero_digest;
    struct vc_source *s = in->s;
    const uint8_t *content = g->p + g->qs.header_bytes;
    struct vc_wire_run run = {
        .kind = VC_RUN_DATA,
        .named = g->qs.named,
        .block = g->qs.block,
        .page = g->qs.page,
        .count = 1,
    };
    struct vc_digest before;
    bool local, local_same = false, read_there;
    int rc = make_room(in, g->qs.bytes);

    if (rc)
        return rc;
    mark_seen(in, run.block, run.page);
    if (!digest) {
        run.kind = VC_RUN_ZERO;
        run.as_page = true;
        digest = &zero_digest;
        vc_count(&s->n.pages_zero, 1);
    } else {
        local = held_here(s, run.block, run.page, &before);
        local_same = local && vc_digest_equal(&before, digest);
        read_there =
            vc_reuse_takes(atomic_load_explicit(&s->reuse_share, memory_order_relaxed), run.page);
        if (read_there && vc_remote_has(&s->remote, &s->ram, run.block, run.page, digest)) {
            run.kind = VC_RUN_SAME;
            vc_count(&s->n.pages_same, 1);
        } else if (read_there && s->o.moved && has_moved(in, digest, &run)) {
            run.kind = VC_RUN_MOVED;
            note_moved(in, &run);
            vc_count(&s->n.pages_moved, 1);
        } else {
            vc_count(&s->n.pages_data, 1);
            vc_count(&s->n.data_bytes, s->ram.page_bytes);
            run.old =
                s->o.delta && read_there &&
                ((local && vc_remote_has(&s->remote, &s->ram, run.block, run.page, &before)) ||
                 may_have_moved(in, &run));
        }
    }
    note_recent(in, &run, local_same);
    rc = vc_digest_update(in->seals, g->p, g->qs.header_bytes, &in->err);
    if (!rc)
        rc = vc_digest_update(in->seals, digest->b, VC_DIGEST_BYTES, &in->err);
    if (rc)
        return rc;
    vc_src_batch_add_page(in->batch, in->slab, &run, g->qs.header_bytes, content, s->ram.page_bytes,
                          digest, local_same);
    return run.kind == VC_RUN_DATA && batch_has_enough_data(in) ? vc_runs_close(in) : 0;
}

int vc_runs_zero(struct vc_ingest *in, const struct vc_ingest_item *g)
{
    struct vc_wire_run run = {
        .kind = VC_RUN_ZERO,
        .named = g->qs.named,
        .block = g->qs.block,
        .page = g->qs.page,
        .count = 1,
    };
    int rc = make_room(in, g->qs.bytes);

    if (!rc)
        rc = vc_digest_update(in->seals, g->p, g->qs.bytes, &in->err);
    if (rc)
        return rc;
    mark_seen(in, run.block, run.page);
    note_recent(in, &run, false);
    vc_count(&in->s->n.pages_zero, 1);
    vc_src_batch_add_page(in->batch, in->slab, &run, (uint32_t)g->qs.bytes, NULL, 0, NULL, false);
    return 0;
}

int vc_runs_invalidate(struct vc_ingest *in, uint16_t block, struct vc_page page, uint64_t count)
{
    int rc = make_room(in, 0);

    if (rc || count == 0)
        return rc;
    for (uint64_t i = 0; i < count && in->seen && !in->repeated; i++)
        mark_seen(in, block, vc_page(page.n + i));
    vc_recent_lost(&in->recent, in->block_first[block] + page.n, count);
    vc_src_batch_add_invalidate(in->batch, block, page, count);
    vc_count(&in->s->n.pages_unknown, count);
    return 0;
}
