/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/pack.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "link/link.h"
#include "store/recorder.h"

/* Where a sample says that it pays, the body of a batch is put together in one buffer and
 * compressed from there into the frame; else the frame refers to the pages where QEMU's stream was
 * read to. Where both hosts have what a page was before, that is given to zstd as a prefix: what
 * has changed in it is all that is left (docs/formats/wire.md, "BATCH"). What it was before the
 * batch is best, and that the new generation tells, if this host's recorder has come so far. */

/* For what the recorder is at to be done. It writes to the page cache, or is not worth waiting for.
 */
#define TURN_NS (5 * VC_NS_PER_MS)

int vc_packer_init(struct vc_packer *p, const struct vc_gen *gen, const int *map,
                   const struct vc_lineage *lineage, const struct vc_log *log, struct vc_err *err)
{
    int rc;

    memset(p, 0, sizeof(*p));
    p->gen = gen;
    p->map = map;
    p->log = log;
    rc = vc_wire_codec_new(1, &p->codec, err);
    if (!rc && gen)
        rc = vc_digester_new(lineage->algo, VC_DIGEST_PAGE, lineage->key, &p->digester, err);
    return rc;
}

void vc_packer_fini(struct vc_packer *p)
{
    vc_wire_codec_free(p->codec);
    vc_digester_free(p->digester);
    free(p->body.p);
    free(p->prefix.p);
}

/* Whether pages that were read are what the index says, and so what the destination has. */
static bool are_right(struct vc_packer *p, const struct vc_wire_run *r, const uint8_t *content)
{
    struct vc_err ignored = VC_ERR_INIT;
    struct vc_page first;
    size_t bad;

    return !vc_gen_check(p->gen, p->digester, (uint32_t)p->map[r->block], r->page, r->count,
                         content, &bad, &first, &ignored) &&
           !bad;
}

/* Reads pages of the base generation as the destination has them. */
static bool read_base(struct vc_packer *p, const struct vc_wire_run *r, uint8_t *to)
{
    struct vc_err err = VC_ERR_INIT;

    if (p->gen_failed)
        return false;
    if (vc_gen_read(p->gen, (uint32_t)p->map[r->block], r->page, r->count, to, &err)) {
        vc_log_err(p->log, VC_LOG_WARNING,
                   "changed pages are sent whole: the checkpoint cannot be read", &err);
        p->gen_failed = true;
        return false;
    }
    return are_right(p, r, to);
}

/* Reads what pages were before the batch: from the new generation, or where they have not been in
 * this session, from the base. These had `old` as well, so that it holds them. */
static bool read_recent(struct vc_packer *p, const struct vc_txn *t, const struct vc_wire_run *r,
                        uint32_t page_bytes, uint8_t *to)
{
    struct vc_wire_run part = *r;
    struct vc_err err = VC_ERR_INIT;

    for (uint64_t i = 0; i < r->count; i += part.count, to += part.count * page_bytes) {
        bool known;

        part.page = vc_page(r->page.n + i);
        part.count = vc_txn_known(t, r->block, part.page, r->count - i, &known);
        if (!known && !(r->old && read_base(p, &part, to)))
            return false;
        if (known && vc_txn_read(t, r->block, part.page, part.count, to, &err)) {
            vc_log_err(p->log, VC_LOG_WARNING, "the new generation cannot be read", &err);
            p->txn_failed = true;
            return false;
        }
    }
    return true;
}

/* ---- samples ---- */

/* Bytes of a run that a sample may be of: of what is sent, or of pages that were something before.
 */
static size_t sampled_bytes(const struct vc_src_run *r, enum vc_src_form form, uint32_t page_bytes)
{
    bool counts = form == VC_SRC_RECENT ? r->run.recent : form != VC_SRC_DELTA || r->run.old;

    return counts ? vc_src_run_contents(r, form, page_bytes) : 0;
}

/* The run in which the middle of `all` such bytes is, and what of it comes before. */
static const struct vc_src_run *find_middle(const struct vc_src_batch *b, enum vc_src_form form,
                                            uint32_t page_bytes, size_t all, size_t *before)
{
    const struct vc_src_run *r = b->runs;
    size_t at = 0, n;

    while (at + (n = sampled_bytes(r, form, page_bytes)) <= all / 2) {
        at += n;
        r++;
    }
    *before = all / 2 - at;
    return r;
}

/* What tells whether compressing a batch is worth it. */
struct sample {
    struct vc_wire_run run; /* old pages are those of this one */
    size_t bytes;
    uint8_t contents[VC_WIRE_SAMPLE_BYTES];
};

/* @all: bytes of the batch that sampled_bytes() counts, not 0. */
static void take_sample(const struct vc_src_batch *b, enum vc_src_form form, uint32_t page_bytes,
                        size_t all, struct sample *out)
{
    size_t before, k;
    const struct vc_src_run *r = find_middle(b, form, page_bytes, all, &before);

    out->run = r->run;
    if (r->run.kind == VC_RUN_OPAQUE) {
        out->bytes = VC_MIN(r->run.count - before, sizeof(out->contents));
        memcpy(out->contents, r->bytes + before, out->bytes);
        return;
    }
    k = before / page_bytes;
    out->run.page.n += k;
    out->run.count = VC_MIN(r->run.count - k, VC_MAX(sizeof(out->contents) / page_bytes, 1));
    out->bytes = VC_MIN(out->run.count * page_bytes, sizeof(out->contents));
    for (size_t i = 0, at = 0; at < out->bytes; i++, at += page_bytes)
        memcpy(out->contents + at, b->content[r->first + k + i],
               VC_MIN(out->bytes - at, (size_t)page_bytes));
}

/* ---- with what the pages were ---- */

/* @t: of a batch of codec recent. */
static bool read_old(struct vc_packer *p, const struct vc_txn *t, const struct vc_wire_run *r,
                     uint32_t page_bytes, uint8_t *to)
{
    return t ? read_recent(p, t, r, page_bytes, to) : read_base(p, r, to);
}

/* Whether a delta is worth it, by a few pages and what these were: the others need not be read,
 * where what has been written is not like what was there. */
static bool looks_worth_it(struct vc_packer *p, const struct vc_src_batch *b,
                           const struct vc_txn *t, size_t old_bytes)
{
    uint32_t page_bytes = b->ram->page_bytes;
    struct vc_wire_prefix prefix = {.p = p->prefix.p};
    struct sample sample;

    take_sample(b, t ? VC_SRC_RECENT : VC_SRC_DELTA, page_bytes, old_bytes, &sample);
    prefix.bytes = sample.run.count * page_bytes;
    return read_old(p, t, &sample.run, page_bytes, p->prefix.p) &&
           vc_wire_sample_shrinks(p->codec, sample.contents, sample.bytes, &prefix);
}

/* Reads what the pages were, one after the other. False: there is nothing, it cannot be read, or it
 * does not pay. */
static bool read_prefix(struct vc_packer *p, const struct vc_src_batch *b, const struct vc_txn *t,
                        size_t contents, struct vc_wire_prefix *out)
{
    size_t most = t ? b->recent_bytes : b->old_bytes, n = 0;

    if (!most || !vc_buf_reserve(&p->prefix, most) ||
        (contents >= VC_WIRE_SAMPLED_BYTES && !looks_worth_it(p, b, t, most)))
        return false;
    for (uint32_t i = 0; i < b->n_runs && !t; i++) /* from a disk that may have many to read */
        if (b->runs[i].run.old)
            vc_gen_prefetch(p->gen, (uint32_t)p->map[b->runs[i].run.block], b->runs[i].run.page,
                            b->runs[i].run.count);
    for (uint32_t i = 0; i < b->n_runs; i++) {
        const struct vc_wire_run *r = &b->runs[i].run;

        if (!(t ? r->recent : r->old))
            continue;
        if (!read_old(p, t, r, b->ram->page_bytes, p->prefix.p + n))
            return false;
        n += r->count * b->ram->page_bytes;
    }
    *out = (struct vc_wire_prefix){.p = p->prefix.p, .bytes = n};
    return true;
}

/* Reads what the pages were, from the new generation if that can be: *form says. */
static bool find_prefix(struct vc_packer *p, const struct vc_src_batch *b, enum vc_src_form *form,
                        size_t contents, struct vc_wire_prefix *out)
{
    const struct vc_txn *t = NULL;
    bool found;

    if (*form == VC_SRC_RECENT && b->after && p->recorder && !p->txn_failed)
        t = vc_recorder_hold(p->recorder, b->after, vc_now_ns() + TURN_NS);
    if (t) {
        found = read_prefix(p, b, t, contents, out);
        vc_recorder_let_go(p->recorder);
        if (found)
            return true;
    }
    *form = VC_SRC_DELTA;
    return read_prefix(p, b, NULL, contents, out);
}

/* ---- frames ---- */

/* Puts the contents behind the runs. */
static bool join_body(struct vc_packer *p, const struct vc_wire_batch *h)
{
    uint8_t *to;

    if (!vc_buf_reserve(&p->body, h->body_bytes))
        return false;
    to = p->body.p + h->runs_bytes;
    for (uint32_t i = 0; i < p->n_pieces; i++) {
        memcpy(to, p->pieces[i].iov_base, p->pieces[i].iov_len);
        to += p->pieces[i].iov_len;
    }
    return true;
}

/* Compresses the contents with what their pages were; 0: that cannot be, or does not pay. */
static size_t pack_delta(struct vc_packer *p, const struct vc_src_batch *b, enum vc_src_form form,
                         struct vc_wire_batch *h, uint8_t *out)
{
    uint32_t contents = h->body_bytes - h->runs_bytes, between;
    struct vc_writer w = vc_writer(out, h->body_bytes);
    struct vc_wire_prefix prefix;
    size_t n;

    if ((form != VC_SRC_DELTA && form != VC_SRC_RECENT) ||
        !find_prefix(p, b, &form, contents, &prefix) || !join_body(p, h))
        return 0;
    between = form == VC_SRC_RECENT ? VC_WIRE_AFTER_BYTES : 0;
    n = vc_wire_body_compress(p->codec, p->body.p + h->runs_bytes, contents, &prefix,
                              out + h->runs_bytes + between, contents - between);
    if (!n)
        return 0;
    vc_src_batch_runs(b, form, &w);
    if (between)
        vc_write_u64(&w, b->after);
    h->codec = between ? VC_WIRE_CODEC_RECENT : VC_WIRE_CODEC_DELTA;
    return w.len + n;
}

/* Compresses the body by itself; likewise. */
static size_t pack_zstd(struct vc_packer *p, const struct vc_src_batch *b, enum vc_src_form form,
                        struct vc_wire_batch *h, uint8_t *out)
{
    size_t contents = h->body_bytes - h->runs_bytes;
    uint32_t page_bytes = b->ram ? b->ram->page_bytes : 0;

    if (contents >= VC_WIRE_SAMPLED_BYTES) {
        struct sample sample;

        take_sample(b, form == VC_SRC_SELF_CONTAINED ? form : VC_SRC_PLAIN, page_bytes, contents,
                    &sample);
        if (!vc_wire_sample_shrinks(p->codec, sample.contents, sample.bytes, NULL))
            return 0;
    }
    h->codec = VC_WIRE_CODEC_ZSTD;
    return join_body(p, h)
               ? vc_wire_body_compress(p->codec, p->body.p, h->body_bytes, NULL, out, h->body_bytes)
               : 0;
}

/* NULL: it does not get smaller. */
static struct vc_link_frame *compressed(struct vc_packer *p, const struct vc_src_batch *b,
                                        enum vc_src_form form, struct vc_wire_batch *h)
{
    struct vc_link_frame *f =
        vc_link_frame_new(VC_WIRE_BATCH, 0, VC_WIRE_BATCH_HEADER_BYTES + h->body_bytes);
    uint8_t *out;
    size_t n;

    if (!f)
        return NULL;
    out = f->payload + VC_WIRE_BATCH_HEADER_BYTES;
    n = pack_delta(p, b, form, h, out);
    if (!n)
        n = pack_zstd(p, b, form, h, out);
    if (!n) {
        vc_link_frame_free(f);
        return NULL;
    }
    f->bytes = VC_WIRE_BATCH_HEADER_BYTES + (uint32_t)n;
    return f;
}

static void let_go(void *batch)
{
    vc_src_batch_unref(batch);
}

/* As it is, where it is. */
static struct vc_link_frame *gathered(struct vc_packer *p, struct vc_src_batch *b,
                                      struct vc_wire_batch *h)
{
    struct vc_link_frame *f =
        vc_link_frame_new(VC_WIRE_BATCH, 0, VC_WIRE_BATCH_HEADER_BYTES + h->runs_bytes);

    if (!f || !vc_link_frame_gather(f, p->n_pieces, vc_src_batch_ref(b), let_go)) {
        if (f)
            vc_src_batch_unref(b);
        vc_link_frame_free(f);
        return NULL;
    }
    memcpy(f->payload + VC_WIRE_BATCH_HEADER_BYTES, p->body.p, h->runs_bytes);
    memcpy(f->rest->pieces + VC_REST_FIRST, p->pieces, p->n_pieces * sizeof(p->pieces[0]));
    f->rest->bytes = h->body_bytes - h->runs_bytes;
    f->bytes += f->rest->bytes;
    h->codec = VC_WIRE_CODEC_NONE;
    return f;
}

struct vc_link_frame *vc_packer_frame(struct vc_packer *p, struct vc_src_batch *b,
                                      enum vc_src_form form, int level)
{
    enum vc_src_form plain = form == VC_SRC_SELF_CONTAINED ? form : VC_SRC_PLAIN;
    uint32_t page_bytes = b->ram ? b->ram->page_bytes : 0;
    size_t cap = (size_t)b->n_runs * VC_WIRE_RUN_MAX_BYTES + 1;
    struct vc_wire_batch h = {
        .seq = b->seq,
        .position = b->position,
        .stream_bytes = b->stream_bytes,
        .flags = form == VC_SRC_SELF_CONTAINED ? VC_WIRE_BATCH_SELF_CONTAINED : 0,
    };
    struct vc_link_frame *f;
    struct vc_writer w;

    if (!vc_buf_reserve(&p->body, cap))
        return NULL;
    w = vc_writer(p->body.p, cap);
    vc_src_batch_runs(b, plain, &w);
    h.runs_bytes = (uint32_t)w.len;
    h.body_bytes = h.runs_bytes + (uint32_t)vc_src_batch_contents(b, plain, page_bytes);
    memcpy(h.seal, b->seal.b, sizeof(h.seal));
    p->n_pieces = vc_src_batch_pieces(b, plain, page_bytes, p->pieces);
    vc_wire_codec_set_level(p->codec, level);
    f = level ? compressed(p, b, form, &h) : NULL;
    if (!f)
        f = gathered(p, b, &h);
    if (!f)
        return NULL;
    vc_wire_batch_encode(f->payload, &h);
    p->last_codec = h.codec;
    return f;
}
