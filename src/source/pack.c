/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/pack.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "link/link.h"
#include "store/recorder.h"

/* The body of a batch is put together in one buffer and compressed from there into the frame. Where
 * both hosts have what a page was before, that is given to zstd as a prefix: what has changed in it
 * is all that is left (docs/formats/wire.md, "BATCH"). What it was before the batch is best, and
 * that the new generation tells, if this host's recorder has come so far. */

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

/* Whether what the pages of a run were is in the prefix. @t: of a batch of codec recent. */
static bool has_old(const struct vc_wire_run *r, const struct vc_txn *t)
{
    return t ? r->recent : r->old;
}

static bool read_old(struct vc_packer *p, const struct vc_txn *t, const struct vc_wire_run *r,
                     uint32_t page_bytes, uint8_t *to)
{
    return t ? read_recent(p, t, r, page_bytes, to) : read_base(p, r, to);
}

/* Of the run that is in the middle of those with old pages, a part, and where its contents begin.
 */
static struct vc_wire_run pick_sample(const struct vc_src_batch *b, const struct vc_txn *t,
                                      size_t old_bytes, size_t *at)
{
    struct vc_wire_run sample = {0};
    size_t content = 0, old = 0, page_bytes = b->ram->page_bytes;

    for (uint32_t i = 0; i < b->n_runs && old <= old_bytes / 2; i++) {
        const struct vc_wire_run *r = &b->runs[i].run;

        if (has_old(r, t)) {
            sample = *r;
            *at = content;
            old += r->count * page_bytes;
        }
        content += r->kind == VC_RUN_OPAQUE ? r->count
                   : r->kind == VC_RUN_DATA ? r->count * page_bytes
                                            : 0;
    }
    sample.count = VC_MIN(sample.count, VC_MAX(VC_WIRE_SAMPLE_BYTES / page_bytes, (size_t)1));
    return sample;
}

/* Whether a delta is worth it, by a few pages and what these were: the others need not be read,
 * where what has been written is not like what was there. */
static bool looks_worth_it(struct vc_packer *p, const struct vc_src_batch *b,
                           const struct vc_txn *t, size_t old_bytes, const uint8_t *contents,
                           size_t n)
{
    struct vc_wire_prefix prefix = {.p = p->prefix.p};
    struct vc_wire_run sample;
    size_t at = 0;

    if (n < VC_WIRE_SAMPLED_BYTES)
        return true;
    sample = pick_sample(b, t, old_bytes, &at);
    prefix.bytes = sample.count * b->ram->page_bytes;
    return read_old(p, t, &sample, b->ram->page_bytes, p->prefix.p) &&
           vc_wire_sample_shrinks(p->codec, contents + at, prefix.bytes, &prefix);
}

/* Reads what the pages were, one after the other. False: there is nothing, it cannot be read, or it
 * does not pay. */
static bool read_prefix(struct vc_packer *p, const struct vc_src_batch *b, const struct vc_txn *t,
                        const uint8_t *contents, size_t contents_bytes, struct vc_wire_prefix *out)
{
    size_t most = t ? b->recent_bytes : b->old_bytes, n = 0;

    if (!most || !vc_buf_reserve(&p->prefix, most) ||
        !looks_worth_it(p, b, t, most, contents, contents_bytes))
        return false;
    for (uint32_t i = 0; i < b->n_runs && !t; i++) /* from a disk that may have many to read */
        if (b->runs[i].run.old)
            vc_gen_prefetch(p->gen, (uint32_t)p->map[b->runs[i].run.block], b->runs[i].run.page,
                            b->runs[i].run.count);
    for (uint32_t i = 0; i < b->n_runs; i++) {
        const struct vc_wire_run *r = &b->runs[i].run;

        if (!has_old(r, t))
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
                        const uint8_t *contents, size_t n, struct vc_wire_prefix *out)
{
    const struct vc_txn *t = NULL;
    bool found;

    if (*form == VC_SRC_RECENT && b->after && p->recorder && !p->txn_failed)
        t = vc_recorder_hold(p->recorder, b->after, vc_now_ns() + TURN_NS);
    if (t) {
        found = read_prefix(p, b, t, contents, n, out);
        vc_recorder_let_go(p->recorder);
        if (found)
            return true;
    }
    *form = VC_SRC_DELTA;
    return read_prefix(p, b, NULL, contents, n, out);
}

/* Compresses the contents with what their pages were; 0: that cannot be, or does not pay. */
static size_t pack_delta(struct vc_packer *p, const struct vc_src_batch *b, enum vc_src_form form,
                         struct vc_wire_batch *h, uint8_t *out)
{
    const uint8_t *contents = p->body.p + h->runs_bytes;
    uint32_t bytes = h->body_bytes - h->runs_bytes, between;
    struct vc_writer w = vc_writer(out, h->body_bytes);
    struct vc_wire_prefix prefix;
    size_t n;

    if (!find_prefix(p, b, &form, contents, bytes, &prefix))
        return 0;
    between = form == VC_SRC_RECENT ? VC_WIRE_AFTER_BYTES : 0;
    n = vc_wire_body_compress(p->codec, contents, bytes, &prefix, out + h->runs_bytes + between,
                              bytes - between);
    if (!n)
        return 0;
    vc_src_batch_runs(b, form, &w);
    if (between)
        vc_write_u64(&w, b->after);
    h->codec = between ? VC_WIRE_CODEC_RECENT : VC_WIRE_CODEC_DELTA;
    return w.len + n;
}

/* Puts the body into the frame, as small as it gets. Returns its length there. */
static size_t pack(struct vc_packer *p, const struct vc_src_batch *b, enum vc_src_form form,
                   int level, struct vc_wire_batch *h, uint8_t *out)
{
    size_t n = 0;

    vc_wire_codec_set_level(p->codec, level);
    if (level && (form == VC_SRC_DELTA || form == VC_SRC_RECENT)) /* else none need be read */
        n = pack_delta(p, b, form, h, out);
    return n ? n : vc_wire_body_pack(p->codec, p->body.p, h, out);
}

struct vc_link_frame *vc_packer_frame(struct vc_packer *p, const struct vc_src_batch *b,
                                      enum vc_src_form form, int level)
{
    uint32_t page_bytes = b->ram ? b->ram->page_bytes : 0;
    size_t cap = vc_src_batch_body_bound(b, form, page_bytes);
    struct vc_wire_batch h = {
        .seq = b->seq,
        .position = b->position,
        .stream_bytes = b->stream_bytes,
        .flags = form == VC_SRC_SELF_CONTAINED ? VC_WIRE_BATCH_SELF_CONTAINED : 0,
    };
    struct vc_link_frame *f;

    if (!vc_buf_reserve(&p->body, cap + 1))
        return NULL;
    /* A delta's body has the same length: OLD is a bit of a run's head. */
    h.body_bytes =
        (uint32_t)vc_src_batch_body(b, form == VC_SRC_SELF_CONTAINED ? form : VC_SRC_PLAIN,
                                    page_bytes, p->body.p, cap, &h.runs_bytes);
    memcpy(h.seal, b->seal.b, sizeof(h.seal));
    f = vc_link_frame_new(VC_WIRE_BATCH, 0, VC_WIRE_BATCH_HEADER_BYTES + h.body_bytes);
    if (!f)
        return NULL;
    f->bytes = VC_WIRE_BATCH_HEADER_BYTES +
               (uint32_t)pack(p, b, form, level, &h, f->payload + VC_WIRE_BATCH_HEADER_BYTES);
    vc_wire_batch_encode(f->payload, &h);
    p->last_codec = h.codec;
    return f;
}
