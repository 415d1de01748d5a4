/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "dest/resolve.h"
#include "digest/digest.h"
#include "link/link.h"
#include "link/seal.h"

/* Theory of operation
 *
 * One thread takes frames in order. For each batch it decodes the runs, reads the pages that the
 * source referred to from the base generation, digests every page (one pass over the bytes that
 * will be written), asks for those whose digest is not the index's, and computes the running seal.
 * Only a batch with the right seal goes on to QEMU and to the new generation. A wrong seal means
 * that this side would rebuild something else than the source read: the batch is asked for again,
 * self-contained; if that fails too, there is nothing left to trust. */

#define DIGEST_GROUP 64
/* For the recorder to come as far as a delta needs, as a part of the patience with the store (a
 * second, of 5). It has at most VC_DEST_RECORD_BYTES to write, so it fails or hangs if it takes
 * longer, and the batch comes again without. */
#define PATIENCE_SHARE 5u

/* ---- pages of the base generation ---- */

/* Reads the pages that a run refers to. *digests (may be NULL): what the index has of them. 0;
 * VC_E_PROTOCOL: the base generation does not hold them; VC_MISMATCH: the store does not give them.
 */
static int read_base(struct vc_dst_resolve *r, const struct vc_wire_run *run, uint8_t *to,
                     struct vc_digest *digests)
{
    const struct vc_gen *gen = r->d->o.gen;
    uint16_t named;
    struct vc_page page = vc_wire_run_base_page(run, &named);
    int block = r->d->o.base != VC_WIRE_BASE_NONE && gen ? r->map[named] : -1;
    struct vc_err err = VC_ERR_INIT;
    uint64_t begun;
    bool cached;
    int rc;

    if (block < 0 || page.n + run->count > vc_ram_block_pages(vc_gen_ram(gen), (uint32_t)block))
        return vc_err_set(&r->err, VC_E_PROTOCOL, "BATCH: a reference to pages not held here");
    for (uint64_t i = 0; i < run->count; i++)
        if (vc_gen_lookup(gen, (uint32_t)block, vc_page(page.n + i),
                          digests ? &digests[i] : NULL) != VC_PAGE_HELD)
            return vc_err_set(&r->err, VC_E_PROTOCOL, "BATCH: a reference to pages not held here");
    /* What is in memory says nothing about the disk, however long a busy host takes to copy it. */
    cached = vc_gen_is_cached(gen, (uint32_t)block, page, run->count);
    begun = vc_now_ns();
    rc = vc_gen_read(gen, (uint32_t)block, page, run->count, to, &err);
    r->reads.now.reading_ns += cached ? 0 : vc_now_ns() - begun;
    r->reads.now.bytes += run->count * r->d->ram.page_bytes;
    if (!rc)
        return 0;
    vc_log_err(r->d->o.log, VC_LOG_WARNING, "the checkpoint cannot be read", &err);
    return VC_MISMATCH;
}

/* Reads the pages of a *same* or *moved* run and notes their digests as the index has them. What
 * cannot be read is left as zeroes, whose digest is no page's in an index, so that it will be
 * repaired. */
static int read_same(struct vc_dst_resolve *r, struct vc_dst_batch *b, const struct vc_dst_run *run,
                     struct vc_digest *expected)
{
    uint8_t *to = (uint8_t *)b->pages[run->first].content;
    int rc = read_base(r, &run->run, to, &expected[run->first]);

    if (rc != VC_MISMATCH)
        return rc;
    memset(to, 0, run->run.count * b->ram->page_bytes);
    return 0;
}

/* Reads what pages were before the batch: from the new generation, or where they have not been in
 * this session, from the base. VC_MISMATCH: there is nothing, or the store does not give it. */
static int read_recent(struct vc_dst_resolve *r, const struct vc_txn *t,
                       const struct vc_wire_run *run, uint8_t *to)
{
    struct vc_wire_run part = *run;
    struct vc_err err = VC_ERR_INIT;
    int rc = 0;

    for (uint64_t i = 0; i < run->count && !rc; i += part.count) {
        bool known;

        part.page = vc_page(run->page.n + i);
        part.count = vc_txn_known(t, run->block, part.page, run->count - i, &known);
        rc = known ? vc_txn_read(t, run->block, part.page, part.count, to, &err)
                   : read_base(r, &part, to, NULL);
        if (rc && known)
            vc_log_err(r->d->o.log, VC_LOG_WARNING, "the new generation cannot be read", &err);
        to += part.count * r->d->ram.page_bytes;
    }
    return rc ? VC_MISMATCH : 0;
}

/* Reads the old pages of a batch. @t: with those that the session has carried; may be NULL. */
static int read_old(struct vc_dst_resolve *r, const struct vc_dst_batch *b, const struct vc_txn *t)
{
    size_t n = 0;

    for (uint32_t i = 0; i < b->n_runs; i++) {
        const struct vc_wire_run *run = &b->runs[i].run;
        int rc;

        if (!run->old)
            continue;
        rc = t ? read_recent(r, t, run, r->prefix.p + n) : read_base(r, run, r->prefix.p + n, NULL);
        if (rc)
            return rc;
        n += run->count * b->ram->page_bytes;
    }
    return 0;
}

/* Reads what a delta was made against, and expands it. VC_MISMATCH: it cannot be, here. */
static int undelta(struct vc_dst_resolve *r, struct vc_dst_batch *b)
{
    bool recent = b->h.codec == VC_WIRE_CODEC_RECENT;
    size_t bytes = (size_t)b->n_old * b->ram->page_bytes;
    uint64_t patience_ns = r->d->recorder.patience_ms * VC_NS_PER_MS / PATIENCE_SHARE;
    const struct vc_txn *t = NULL;
    struct vc_err err = VC_ERR_INIT;
    int rc;

    if (!vc_buf_reserve(&r->prefix, bytes))
        return vc_err_set(&r->err, VC_E_NOMEM, "no memory for a batch");
    if (recent && !(t = vc_recorder_hold(&r->d->recorder, b->after, vc_now_ns() + patience_ns))) {
        r->too_slow = true;
        vc_dst_keeps_tell(r); /* before RESEND */
        return VC_MISMATCH;
    }
    rc = read_old(r, b, t);
    if (t)
        vc_recorder_let_go(&r->d->recorder);
    if (rc)
        return rc;
    rc = vc_dst_batch_undelta(b, r->codec, r->prefix.p, bytes, &err);
    if (rc == VC_E_PROTOCOL)
        return VC_MISMATCH;
    if (rc)
        r->err = err;
    return rc;
}

struct group {
    const uint8_t *contents[DIGEST_GROUP];
    uint32_t at[DIGEST_GROUP], n;
};

static int digest_group(struct vc_dst_resolve *r, struct vc_dst_batch *b, struct group *g)
{
    struct vc_digest digests[DIGEST_GROUP];
    int rc = vc_digest_pages(r->pages, g->contents, g->n, b->ram->page_bytes, digests, &r->err);

    for (uint32_t i = 0; i < g->n && !rc; i++)
        b->pages[g->at[i]].digest = digests[i];
    g->n = 0;
    return rc;
}

/* Digests all pages of the batch, those of zeroes apart. */
static int digest_all(struct vc_dst_resolve *r, struct vc_dst_batch *b)
{
    struct group g = {.n = 0};
    int rc = 0;

    for (uint32_t i = 0; i < b->n_runs; i++) {
        const struct vc_dst_run *run = &b->runs[i];

        if (!vc_wire_run_is_reference(&run->run) && run->run.kind != VC_RUN_DATA)
            continue;
        for (uint64_t k = 0; k < run->run.count && !rc; k++) {
            g.at[g.n] = run->first + (uint32_t)k;
            g.contents[g.n++] = b->pages[run->first + k].content;
            if (g.n == DIGEST_GROUP)
                rc = digest_group(r, b, &g);
        }
    }
    return rc || !g.n ? rc : digest_group(r, b, &g);
}

/* Compares what was read with what the index says, and has the rest repaired. */
static int check_same(struct vc_dst_resolve *r, struct vc_dst_batch *b,
                      const struct vc_digest *expected)
{
    vc_auto_free uint32_t *bad = NULL;
    uint32_t n = 0;

    for (uint32_t i = 0; i < b->n_pages; i++) {
        if (!b->pages[i].same || vc_digest_equal(&b->pages[i].digest, &expected[i]))
            continue;
        if (!bad && !(bad = malloc(b->n_pages * sizeof(*bad))))
            return vc_err_set(&r->err, VC_E_NOMEM, "no memory for a repair");
        bad[n++] = i;
    }
    return n ? vc_dst_repair(r, b, bad, n) : 0;
}

static int resolve_same(struct vc_dst_resolve *r, struct vc_dst_batch *b)
{
    vc_auto_free struct vc_digest *expected = NULL;
    int rc = 0;

    if (b->n_same) {
        expected = calloc(b->n_pages, sizeof(*expected));
        if (!expected)
            return vc_err_set(&r->err, VC_E_NOMEM, "no memory for a batch");
        for (uint32_t i = 0; i < b->n_runs && !rc; i++)
            if (vc_wire_run_is_reference(&b->runs[i].run))
                rc = read_same(r, b, &b->runs[i], expected);
    }
    if (!rc)
        rc = digest_all(r, b);
    return rc || !b->n_same ? rc : check_same(r, b, expected);
}

/* ---- batches ---- */

/* Fills a batch in and checks its seal. 0: it is right; VC_MISMATCH. */
static int build(struct vc_dst_resolve *r, struct vc_dst_batch *b)
{
    struct vc_digest seal;
    int rc = 0;

    if (b->h.seq != r->next_seq || b->h.position != r->position)
        rc = vc_err_set(&r->err, VC_E_PROTOCOL, "BATCH: number %llu at %llu, expected %llu at %llu",
                        (unsigned long long)b->h.seq, (unsigned long long)b->h.position,
                        (unsigned long long)r->next_seq, (unsigned long long)r->position);
    if (!rc && vc_wire_codec_is_delta(b->h.codec))
        rc = undelta(r, b);
    if (!rc)
        rc = resolve_same(r, b);
    if (!rc)
        rc = vc_dst_batch_seal(b, r->seals, &r->seal, &seal, &r->err);
    if (!rc && memcmp(seal.b, b->h.seal, sizeof(seal.b)) != 0)
        rc = VC_MISMATCH;
    if (!rc)
        r->seal = seal;
    return rc;
}

/* Whether a batch that could not be built means damage: its seal covers what is here, unless that
 * is not what the source thought of. */
static bool means_damage(const struct vc_dst_resolve *r, const struct vc_dst_batch *b)
{
    if (b->h.codec == VC_WIRE_CODEC_RECENT && !(r->keeps & VC_WIRE_KEEPS_NEW))
        return false;
    return !(vc_wire_codec_is_delta(b->h.codec) && vc_dst_base_is_partial(r));
}

/* The batch once more, without references, in the place of *b. */
static int build_again(struct vc_dst_resolve *r, struct vc_dst_batch **b)
{
    bool damaged = means_damage(r, *b);
    struct vc_link_frame *f;
    int rc;

    vc_dst_batch_unref(vc_steal_ptr(*b));
    rc = vc_dst_ask_again(r, damaged, &f);
    if (!rc)
        rc = vc_dst_parse(r, f, b);
    if (!rc)
        rc = build(r, *b);
    return rc != VC_MISMATCH
               ? rc
               : vc_err_set_hint(&r->err, VC_E_SEAL, "the checkpoints are dropped; migrate again",
                                 "batch %llu failed its seal twice",
                                 (unsigned long long)r->next_seq);
}

static void count(struct vc_dest *d, const struct vc_dst_batch *b)
{
    for (uint32_t i = 0; i < b->n_runs; i++) {
        const struct vc_wire_run *r = &b->runs[i].run;

        switch (r->kind) {
        case VC_RUN_SAME:
            vc_count(&d->n.pages_same, r->count);
            break;
        case VC_RUN_MOVED:
            vc_count(&d->n.pages_moved, r->count);
            break;
        case VC_RUN_ZERO:
            vc_count(&d->n.pages_zero, r->count);
            break;
        case VC_RUN_DATA:
            vc_count(&d->n.pages_data, r->count);
            break;
        case VC_RUN_INVALIDATE:
            vc_count(&d->n.pages_unknown, r->count);
            break;
        default:
            break;
        }
    }
}

/* Hands a batch to the next stages; takes it. */
static int pass_on(struct vc_dest *d, struct vc_dst_batch *b)
{
    /* Where sessions hold much together, each has one batch in each queue. */
    bool crowded = vc_dst_batches_held() >= VC_DEST_SHARED_BATCH_BYTES;
    uint64_t cost = crowded ? VC_DEST_EMIT_BYTES : VC_MAX(b->h.stream_bytes, (uint32_t)b->held);
    int rc;

    vc_dst_batch_ref(b);
    rc = vc_recorder_push(&d->recorder, &b->record_node, cost);
    if (rc)
        vc_dst_batch_unref(b);
    if (rc == VC_CLOSED) {
        vc_dst_batch_unref(b);
        return VC_CLOSED;
    }
    if (vc_queue_push(&d->to_emit, &b->emit_node, cost)) {
        vc_dst_batch_unref(b);
        return VC_CLOSED;
    }
    return 0;
}

/* Takes the batch. */
static int on_batch(struct vc_dst_resolve *r, struct vc_dst_batch *b)
{
    int rc = build(r, b);

    if (rc == VC_MISMATCH)
        rc = build_again(r, &b);
    if (rc) {
        vc_dst_batch_unref(b);
        return rc;
    }
    r->next_seq++;
    r->position += b->h.stream_bytes;
    r->reads.now.content_bytes += b->ram ? (uint64_t)b->n_pages * b->ram->page_bytes : 0;
    count(r->d, b);
    return pass_on(r->d, b);
}

static int on_blocks(struct vc_dst_resolve *r, const struct vc_link_frame *f)
{
    struct vc_dest *d = r->d;
    int rc;

    if (r->have_ram)
        return vc_err_set(&r->err, VC_E_PROTOCOL, "BLOCKS: came twice");
    rc = vc_wire_blocks_decode(f->payload, f->bytes, &d->ram, &r->err);
    if (rc)
        return rc;
    r->have_ram = true;
    {
        VC_LOCKED(&d->mu);
        d->ram_known = true;
    }
    if (d->o.gen)
        vc_ram_map(&d->ram, vc_gen_ram(d->o.gen), r->map);
    return 0;
}

static int on_eof(struct vc_dst_resolve *r)
{
    struct vc_dst_batch *eof = vc_dst_batch_new();

    if (!eof)
        return vc_err_set(&r->err, VC_E_NOMEM, "no memory for a batch");
    eof->is_eof = true;
    eof->ram = r->have_ram ? &r->d->ram : NULL; /* it may have come last */
    return pass_on(r->d, eof);
}

static int take_one(struct vc_dst_resolve *r)
{
    vc_auto_frame struct vc_link_frame *f = NULL;
    struct vc_dst_batch *b;
    int rc = vc_dst_next(r, &b, &f);

    if (rc)
        return rc;
    if (b)
        return on_batch(r, b);
    return f->type == VC_WIRE_BLOCKS ? on_blocks(r, f) : on_eof(r);
}

static int prepare(struct vc_dst_resolve *r)
{
    const struct vc_dest_options *o = &r->d->o;
    int rc = vc_digester_new(o->lineage.algo, VC_DIGEST_PAGE, o->lineage.key, &r->pages, &r->err);

    if (!rc)
        rc = vc_digester_new(o->lineage.algo, VC_DIGEST_SEAL, o->lineage.key, &r->seals, &r->err);
    if (!rc)
        rc = vc_wire_codec_new(1, &r->codec, &r->err);
    if (!rc)
        rc = vc_seal_first(r->seals, &o->session, 0, &r->seal, &r->err);
    if (!rc)
        vc_dst_keeps_tell(r);
    return rc;
}

void *vc_dest_resolve_main(void *arg)
{
    struct vc_dst_resolve r = {.d = arg, .next_seq = 1, .err = VC_ERR_INIT};
    int rc = prepare(&r);

    while (!rc) {
        rc = take_one(&r);
        if (!rc && (r.d->o.features & VC_WIRE_FEATURE_READS))
            vc_dst_reads_tell(&r.reads, r.d->o.link);
        if (!rc)
            vc_dst_keeps_tell(&r);
    }
    if (rc < 0) {
        vc_dest_abort(r.d, &r.err); /* first: the link's end is no cause */
        vc_link_fail(r.d->o.link, &r.err);
    }
    vc_queue_close(&r.d->recorder.queue);
    vc_queue_close(&r.d->to_emit);
    vc_digester_free(r.pages);
    vc_digester_free(r.seals);
    vc_wire_codec_free(r.codec);
    free(r.prefix.p);
    vc_dst_drop_ahead(&r);
    return NULL;
}
