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

/* Reads what the pages of OLD runs were. False: there is nothing, or it cannot be read. */
static bool read_prefix(struct vc_packer *p, const struct vc_src_batch *b,
                        struct vc_wire_prefix *out)
{
    uint32_t page_bytes = b->old_bytes ? b->ram->page_bytes : 0;
    size_t content = 0, n = 0;
    struct vc_err err = VC_ERR_INIT;

    if (!b->old_bytes || p->gen_failed || !vc_buf_reserve(&p->prefix, b->old_bytes))
        return false;
    for (uint32_t i = 0; i < b->n_runs; i++) {
        const struct vc_wire_run *r = &b->runs[i].run;

        if (r->old) {
            if (n <= b->old_bytes / 2) { /* the last one that begins in the first half */
                out->sample_at = n;
                out->like_at = content;
            }
            if (vc_gen_read(p->gen, (uint32_t)p->map[r->block], r->page, r->count, p->prefix.p + n,
                            &err)) {
                vc_log_err(p->log, VC_LOG_WARNING,
                           "changed pages are sent whole: the checkpoint cannot be read", &err);
                p->gen_failed = true;
                return false;
            }
            if (!are_right(p, r, p->prefix.p + n))
                return false;
            n += r->count * page_bytes;
        }
        content += r->kind == VC_RUN_OPAQUE ? r->count
                   : r->kind == VC_RUN_DATA ? r->count * page_bytes
                                            : 0;
    }
    out->p = p->prefix.p;
    out->bytes = n;
    return true;
}

/* Compresses the contents with what their pages were; 0: that cannot be, or does not pay. */
static size_t pack_delta(struct vc_packer *p, const struct vc_src_batch *b, struct vc_wire_batch *h,
                         uint8_t *out)
{
    uint32_t contents = h->body_bytes - h->runs_bytes;
    struct vc_writer w = vc_writer(out, h->runs_bytes);
    struct vc_wire_prefix prefix;
    size_t n;

    if (!read_prefix(p, b, &prefix))
        return 0;
    n = vc_wire_body_compress(p->codec, p->body.p + h->runs_bytes, contents, &prefix,
                              out + h->runs_bytes, contents);
    if (!n)
        return 0;
    vc_src_batch_runs(b, VC_SRC_DELTA, &w);
    h->codec = VC_WIRE_CODEC_DELTA;
    return h->runs_bytes + n;
}

/* Puts the body into the frame, as small as it gets. Returns its length there. */
static size_t pack(struct vc_packer *p, const struct vc_src_batch *b, enum vc_src_form form,
                   int level, struct vc_wire_batch *h, uint8_t *out)
{
    size_t n = 0;

    vc_wire_codec_set_level(p->codec, level);
    if (level && form == VC_SRC_DELTA) /* else old pages need not be read */
        n = pack_delta(p, b, h, out);
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
    h.body_bytes = (uint32_t)vc_src_batch_body(b, form == VC_SRC_DELTA ? VC_SRC_PLAIN : form,
                                               page_bytes, p->body.p, cap, &h.runs_bytes);
    memcpy(h.seal, b->seal.b, sizeof(h.seal));
    f = vc_link_frame_new(VC_WIRE_BATCH, 0, VC_WIRE_BATCH_HEADER_BYTES + h.body_bytes);
    if (!f)
        return NULL;
    f->bytes = VC_WIRE_BATCH_HEADER_BYTES +
               (uint32_t)pack(p, b, form, level, &h, f->payload + VC_WIRE_BATCH_HEADER_BYTES);
    vc_wire_batch_encode(f->payload, &h);
    return f;
}
