/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/pack.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "link/link.h"
#include "store/store.h"

/* The body of a batch is put together in one buffer and compressed from there into the frame. Where
 * both hosts have what a page was before, that is given to zstd as a prefix: what has changed in it
 * is all that is left (docs/formats/wire.md, "BATCH"). */

int vc_packer_init(struct vc_packer *p, const struct vc_gen *gen, const int *map,
                   const struct vc_log *log, struct vc_err *err)
{
    *p = (struct vc_packer){.gen = gen, .map = map, .log = log};
    return vc_wire_codec_new(1, &p->codec, err);
}

void vc_packer_fini(struct vc_packer *p)
{
    vc_wire_codec_free(p->codec);
    free(p->body);
    free(p->prefix);
}

/* Buffers live on from batch to batch: fresh memory costs more than filling it. */
static bool reserve(uint8_t **buf, size_t *cap, size_t n)
{
    uint8_t *more;

    if (n <= *cap)
        return true;
    more = realloc(*buf, n);
    if (!more)
        return false;
    *buf = more;
    *cap = n;
    return true;
}

/* Reads what the pages of OLD runs were. False: there is nothing, or it cannot be read. */
static bool read_prefix(struct vc_packer *p, const struct vc_src_batch *b,
                        struct vc_wire_prefix *out)
{
    uint32_t page_bytes = b->old_bytes ? b->ram->page_bytes : 0;
    size_t content = 0, n = 0;
    struct vc_err err = VC_ERR_INIT;

    if (!b->old_bytes || p->gen_failed || !reserve(&p->prefix, &p->prefix_cap, b->old_bytes))
        return false;
    for (uint32_t i = 0; i < b->n_runs; i++) {
        const struct vc_wire_run *r = &b->runs[i].run;

        if (r->old) {
            if (n <= b->old_bytes / 2) { /* the last one that begins in the first half */
                out->sample_at = n;
                out->like_at = content;
            }
            if (vc_gen_read(p->gen, (uint32_t)p->map[r->block], r->page, r->count, p->prefix + n,
                            &err)) {
                vc_log_err(p->log, VC_LOG_WARNING,
                           "changed pages are sent whole: the checkpoint cannot be read", &err);
                p->gen_failed = true;
                return false;
            }
            n += r->count * page_bytes;
        }
        content += r->kind == VC_RUN_OPAQUE ? r->count
                   : r->kind == VC_RUN_DATA ? r->count * page_bytes
                                            : 0;
    }
    out->p = p->prefix;
    out->bytes = n;
    return true;
}

/* Puts the body into the frame, as small as it gets. Returns its length there. */
static size_t compress(struct vc_packer *p, const struct vc_src_batch *b, struct vc_wire_batch *h,
                       uint8_t *out)
{
    uint32_t runs = h->runs_bytes;
    struct vc_wire_prefix prefix;
    size_t n;

    if (!(h->flags & VC_WIRE_BATCH_SELF_CONTAINED) && read_prefix(p, b, &prefix)) {
        struct vc_writer w = vc_writer(out, runs);

        n = vc_wire_body_compress(p->codec, p->body + runs, h->body_bytes - runs, &prefix,
                                  out + runs, h->body_bytes - runs);
        h->codec = VC_WIRE_CODEC_DELTA;
        vc_src_batch_runs(b, VC_SRC_DELTA, &w);
        if (n)
            return runs + n;
    } else {
        n = vc_wire_body_compress(p->codec, p->body, h->body_bytes, NULL, out, h->body_bytes);
        h->codec = VC_WIRE_CODEC_ZSTD;
        if (n)
            return n;
    }
    return 0;
}

struct vc_link_frame *vc_packer_frame(struct vc_packer *p, const struct vc_src_batch *b,
                                      bool self_contained, int level)
{
    enum vc_src_form form = self_contained ? VC_SRC_SELF_CONTAINED : VC_SRC_PLAIN;
    uint32_t page_bytes = b->ram ? b->ram->page_bytes : 0;
    size_t cap = vc_src_batch_body_bound(b, form, page_bytes), packed = 0;
    struct vc_wire_batch h = {
        .seq = b->seq,
        .position = b->position,
        .stream_bytes = b->stream_bytes,
        .flags = self_contained ? VC_WIRE_BATCH_SELF_CONTAINED : 0,
    };
    struct vc_link_frame *f;
    uint8_t *out;

    if (!reserve(&p->body, &p->body_cap, cap + 1))
        return NULL;
    h.body_bytes = (uint32_t)vc_src_batch_body(b, form, page_bytes, p->body, cap, &h.runs_bytes);
    memcpy(h.seal, b->seal.b, sizeof(h.seal));
    f = vc_link_frame_new(VC_WIRE_BATCH, 0, VC_WIRE_BATCH_HEADER_BYTES + h.body_bytes);
    if (!f)
        return NULL;
    out = f->payload + VC_WIRE_BATCH_HEADER_BYTES;
    if (level) {
        vc_wire_codec_set_level(p->codec, level);
        packed = compress(p, b, &h, out);
    }
    if (!packed) {
        h.codec = VC_WIRE_CODEC_NONE;
        memcpy(out, p->body, h.body_bytes);
        packed = h.body_bytes;
    }
    f->bytes = (uint32_t)(VC_WIRE_BATCH_HEADER_BYTES + packed);
    vc_wire_batch_encode(f->payload, &h);
    return f;
}
