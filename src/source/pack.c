/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/pack.h"

#include <assert.h>
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

    *p = (struct vc_packer){.gen = gen, .map = map, .log = log};
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
static bool are_right(struct vc_packer *p, uint32_t block, struct vc_page page, uint64_t count,
                      const uint8_t *content)
{
    struct vc_err ignored = VC_ERR_INIT;
    struct vc_page first;
    size_t bad;

    return !vc_gen_check(p->gen, p->digester, block, page, count, content, &bad, &first,
                         &ignored) &&
           !bad;
}

/* Reads pages of the base generation as the destination has them. */
static bool read_base(struct vc_packer *p, const struct vc_wire_run *r, uint8_t *to)
{
    struct vc_err err = VC_ERR_INIT;
    uint16_t named;
    struct vc_page page = vc_wire_run_base_page(r, &named);
    uint32_t block = (uint32_t)p->map[named];

    if (p->gen_failed)
        return false;
    if (vc_gen_read(p->gen, block, page, r->count, to, &err)) {
        vc_log_err(p->log, VC_LOG_WARNING,
                   "changed pages are sent whole: the checkpoint cannot be read", &err);
        p->gen_failed = true;
        return false;
    }
    return are_right(p, block, page, r->count, to);
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
        if (!known && !(r->old && !r->shifted && read_base(p, &part, to)))
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

/* The run in which byte `at` of those is, of which there are more, and how far in it that is. */
static const struct vc_src_run *find_byte(const struct vc_src_batch *b, enum vc_src_form form,
                                          uint32_t page_bytes, size_t at, size_t *within)
{
    const struct vc_src_run *r = b->runs;
    size_t n;

    while ((n = sampled_bytes(r, form, page_bytes)) <= at) {
        at -= n;
        r++;
        assert(r < b->runs + b->n_runs);
    }
    *within = at;
    return r;
}

/* What tells whether compressing a batch is worth it: a few KiB from several places, since pages
 * differ, most of all those that a guest writes here and there. */
#define PLACES 4u
#define PIECE_BYTES (VC_WIRE_SAMPLE_BYTES / PLACES)

struct sample {
    struct vc_wire_run pages[PLACES]; /* count 0: of an opaque run */
    size_t bytes;
    uint8_t contents[VC_WIRE_SAMPLE_BYTES];
};

/* A piece of the contents at byte `at` of what sampled_bytes() counts. */
static void add_piece(const struct vc_src_batch *b, enum vc_src_form form, uint32_t page_bytes,
                      size_t at, struct sample *s, struct vc_wire_run *pages)
{
    const struct vc_src_run *r = find_byte(b, form, page_bytes, at, &at);
    size_t each, k;

    *pages = r->run;
    if (r->run.kind == VC_RUN_OPAQUE) {
        pages->count = 0;
        each = VC_MIN(r->run.count, PIECE_BYTES);
        memcpy(s->contents + s->bytes, r->bytes + VC_MIN(at, r->run.count - each), each);
        s->bytes += each;
        return;
    }
    each = VC_MIN(page_bytes, PIECE_BYTES);
    k = at / page_bytes;
    pages->page.n += k;
    pages->from_page.n += k;
    pages->count = VC_MIN(r->run.count - k, PIECE_BYTES / each);
    for (size_t i = 0; i < pages->count; i++, s->bytes += each)
        memcpy(s->contents + s->bytes, b->content[r->first + k + i], each);
}

/* @all: bytes of the batch that sampled_bytes() counts, not 0. */
static void take_sample(const struct vc_src_batch *b, enum vc_src_form form, uint32_t page_bytes,
                        size_t all, struct sample *out)
{
    out->bytes = 0;
    for (unsigned i = 0; i < PLACES; i++)
        add_piece(b, form, page_bytes, all * (2 * i + 1) / (2 * PLACES), out, &out->pages[i]);
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
    struct sample s;

    take_sample(b, t ? VC_SRC_RECENT : VC_SRC_DELTA, page_bytes, old_bytes, &s);
    if (!vc_buf_reserve(&p->prefix, PLACES * VC_MAX(PIECE_BYTES, page_bytes)))
        return false;
    for (unsigned i = 0; i < PLACES; i++) {
        if (!read_old(p, t, &s.pages[i], page_bytes, p->prefix.p + prefix.bytes))
            return false;
        /* Of a large page, its begin. */
        prefix.bytes += VC_MIN(s.pages[i].count * page_bytes, PIECE_BYTES);
    }
    prefix.p = p->prefix.p;
    return vc_wire_sample_shrinks(p->codec, s.contents, s.bytes, &prefix);
}

/* The disk may have many to read at once. */
static void prefetch(struct vc_packer *p, const struct vc_src_batch *b)
{
    for (uint32_t i = 0; i < b->n_runs; i++) {
        uint16_t block;
        struct vc_page page = vc_wire_run_base_page(&b->runs[i].run, &block);

        if (b->runs[i].run.old)
            vc_gen_prefetch(p->gen, (uint32_t)p->map[block], page, b->runs[i].run.count);
    }
}

/* Reads what the pages were, one after the other. False: there is nothing, it cannot be read, or it
 * does not pay. */
static bool read_prefix(struct vc_packer *p, const struct vc_src_batch *b, const struct vc_txn *t,
                        size_t contents, struct vc_wire_prefix *out)
{
    size_t most = t ? b->recent_bytes : b->old_bytes, n = 0;

    if (!most || (contents >= VC_WIRE_SAMPLED_BYTES && !looks_worth_it(p, b, t, most)) ||
        !vc_buf_reserve(&p->prefix, most))
        return false;
    if (!t)
        prefetch(p, b);
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

/* Reads what the pages were, from the new generation if that can be and has more of them than the
 * base alone: *form says. (It has none of those that were elsewhere.) */
static bool find_prefix(struct vc_packer *p, const struct vc_src_batch *b, enum vc_src_form *form,
                        size_t contents, struct vc_wire_prefix *out)
{
    const struct vc_txn *t = NULL;
    bool found;

    if (*form == VC_SRC_RECENT && b->after && b->again_bytes >= b->base_bytes && p->recorder &&
        !p->txn_failed)
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

static uint32_t page_bytes_of(const struct vc_src_batch *b)
{
    return b->ram ? b->ram->page_bytes : 0;
}

static enum vc_src_form form_of_contents(enum vc_src_form form)
{
    return form == VC_SRC_SELF_CONTAINED ? form : VC_SRC_PLAIN;
}

static struct vc_src_pieces pieces_of(const struct vc_src_batch *b, enum vc_src_form form)
{
    return (struct vc_src_pieces){
        .batch = b, .form = form_of_contents(form), .page_bytes = page_bytes_of(b)};
}

/* Puts the contents behind the runs. */
static bool join_body(struct vc_packer *p, const struct vc_src_batch *b, enum vc_src_form form,
                      const struct vc_wire_batch *h)
{
    struct vc_src_pieces at = pieces_of(b, form);
    struct iovec piece;
    uint8_t *to;

    if (!vc_buf_reserve(&p->body, h->body_bytes))
        return false;
    to = p->body.p + h->runs_bytes;
    while (vc_src_next_piece(&at, &piece)) {
        memcpy(to, piece.iov_base, piece.iov_len);
        to += piece.iov_len;
    }
    return true;
}

/* Compresses the contents with what their pages were; 0: that cannot be, or does not pay. */
static size_t pack_delta(struct vc_packer *p, const struct vc_src_batch *b, enum vc_src_form form,
                         struct vc_wire_batch *h, uint8_t *out)
{
    uint32_t contents = h->body_bytes - h->runs_bytes, runs_bytes;
    struct vc_writer w = vc_writer(out, h->body_bytes);
    struct vc_wire_prefix prefix;
    size_t n;

    if ((form != VC_SRC_DELTA && form != VC_SRC_RECENT) ||
        !find_prefix(p, b, &form, contents, &prefix) || !join_body(p, b, form, h))
        return 0;
    vc_src_batch_runs(b, form, &w);
    runs_bytes = (uint32_t)w.len;
    if (form == VC_SRC_RECENT)
        vc_write_u64(&w, b->after);
    if (w.failed)
        return 0;
    n = vc_wire_body_compress(p->codec, p->body.p + h->runs_bytes, contents, &prefix, out + w.len,
                              h->body_bytes - w.len);
    if (!n)
        return 0;
    h->runs_bytes = runs_bytes;
    h->body_bytes = runs_bytes + contents;
    h->codec = form == VC_SRC_RECENT ? VC_WIRE_CODEC_RECENT : VC_WIRE_CODEC_DELTA;
    return w.len + n;
}

/* Compresses the body by itself; likewise. */
static size_t pack_zstd(struct vc_packer *p, const struct vc_src_batch *b, enum vc_src_form form,
                        struct vc_wire_batch *h, uint8_t *out)
{
    size_t contents = h->body_bytes - h->runs_bytes;

    if (contents >= VC_WIRE_SAMPLED_BYTES) {
        struct sample s;

        take_sample(b, form_of_contents(form), page_bytes_of(b), contents, &s);
        if (!vc_wire_sample_shrinks(p->codec, s.contents, s.bytes, NULL))
            return 0;
    }
    h->codec = VC_WIRE_CODEC_ZSTD;
    return join_body(p, b, form, h)
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
                                      enum vc_src_form form, struct vc_wire_batch *h)
{
    uint32_t contents = h->body_bytes - h->runs_bytes;
    struct vc_src_pieces at = pieces_of(b, form);
    struct iovec piece;
    struct vc_link_frame *f =
        vc_link_frame_new(VC_WIRE_BATCH, 0, VC_WIRE_BATCH_HEADER_BYTES + h->runs_bytes);

    if (!f)
        return NULL;
    h->codec = VC_WIRE_CODEC_NONE;
    memcpy(f->payload + VC_WIRE_BATCH_HEADER_BYTES, p->body.p, h->runs_bytes);
    if (!contents)
        return f;
    if (!vc_link_frame_gather(f, b->n_runs + b->n_pages, b, let_go)) {
        vc_link_frame_free(f);
        return NULL;
    }
    vc_src_batch_ref(b);
    f->rest->n_pieces = VC_REST_FIRST;
    while (vc_src_next_piece(&at, &piece))
        f->rest->pieces[f->rest->n_pieces++] = piece;
    f->rest->bytes = contents;
    f->bytes += contents;
    return f;
}

struct vc_link_frame *vc_packer_frame(struct vc_packer *p, struct vc_src_batch *b,
                                      enum vc_src_form form, int level)
{
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
    vc_src_batch_runs(b, form_of_contents(form), &w);
    h.runs_bytes = (uint32_t)w.len;
    h.body_bytes =
        h.runs_bytes + (uint32_t)vc_src_batch_contents(b, form_of_contents(form), page_bytes_of(b));
    memcpy(h.seal, b->seal.b, sizeof(h.seal));
    vc_wire_codec_set_level(p->codec, level);
    f = level ? compressed(p, b, form, &h) : NULL;
    if (!f)
        f = gathered(p, b, form, &h);
    if (!f)
        return NULL;
    vc_wire_batch_encode(f->payload, &h);
    p->last_codec = h.codec;
    return f;
}
