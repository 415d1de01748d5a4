/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dest/batch.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "link/link.h"
#include "link/seal.h"
#include "qstream/qstream.h"

/* Runs that share a zero page point here. */
static const uint8_t zero_page[VC_MAX_PAGE_BYTES];

/* What malloc() has of its own for the parts of a batch, and the batch. */
#define OWN_BYTES (sizeof(struct vc_dst_batch) + 256u)

static atomic_size_t held_by_all;

size_t vc_dst_batches_held(void)
{
    return atomic_load_explicit(&held_by_all, memory_order_relaxed);
}

/* The batch is charged for what it takes, before it takes it. */
static void take(struct vc_dst_batch *b, size_t bytes)
{
    b->held += bytes;
    atomic_fetch_add_explicit(&held_by_all, bytes, memory_order_relaxed);
}

static void give_back(struct vc_dst_batch *b, size_t bytes)
{
    b->held -= bytes;
    atomic_fetch_sub_explicit(&held_by_all, bytes, memory_order_relaxed);
}

struct vc_dst_batch *vc_dst_batch_new(void)
{
    struct vc_dst_batch *b = calloc(1, sizeof(*b));

    if (!b)
        return NULL;
    atomic_init(&b->refs, 1);
    take(b, OWN_BYTES);
    return b;
}

static void drop_frame(struct vc_dst_batch *b)
{
    give_back(b, b->frame->bytes);
    vc_link_frame_free(vc_steal_ptr(b->frame));
}

struct vc_dst_batch *vc_dst_batch_ref(struct vc_dst_batch *b)
{
    atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
    return b;
}

void vc_dst_batch_unref(struct vc_dst_batch *b)
{
    if (!b || atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) != 1)
        return;
    give_back(b, b->held);
    free(b->runs);
    free(b->pages);
    free(b->iov);
    vc_link_frame_free(b->frame);
    free(b->body);
    free(b->headers);
    free(b->same);
    free(b);
}

static int illegal(struct vc_err *err, const char *what)
{
    return vc_err_set(err, VC_E_PROTOCOL, "BATCH: %s", what);
}

static int no_memory(struct vc_err *err)
{
    return vc_err_set(err, VC_E_NOMEM, "no memory for a batch");
}

/* What the batch comes to, summed up while its runs are decoded. */
struct sums {
    uint64_t stream, headers, opaque, data_pages, pages, same_pages, pieces, invalid;
    uint64_t most_invalid; /* invalidating costs time by the page, and next to nothing to say */
};

static bool has_pages(const struct vc_wire_run *r)
{
    return r->kind == VC_RUN_SAME || r->kind == VC_RUN_DATA || r->kind == VC_RUN_MOVED ||
           (r->kind == VC_RUN_ZERO && r->as_page);
}

/* Bytes of the records of a run without their contents. */
static uint64_t header_bytes(const struct vc_ram *ram, const struct vc_wire_run *r)
{
    uint64_t each = r->kind == VC_RUN_ZERO && !r->as_page ? 9 : 8;

    return each * r->count + (r->named ? 1 + strlen(ram->blocks[r->block].name) : 0);
}

/* Adds a run; false if that goes beyond what the batch says it stands for. */
static bool add_up(const struct vc_dst_batch *b, struct sums *s, const struct vc_wire_run *r)
{
    uint64_t h;

    if (r->kind == VC_RUN_INVALIDATE) {
        s->invalid += r->count; /* cannot wrap: both are far below 2^63 */
        return s->invalid <= s->most_invalid;
    }
    if (r->count > b->h.stream_bytes)
        return false;
    if (r->kind == VC_RUN_OPAQUE) {
        s->opaque += r->count;
        s->stream += r->count;
        s->pieces++;
        return s->stream <= b->h.stream_bytes;
    }
    h = header_bytes(b->ram, r);
    s->headers += h;
    s->stream += h;
    s->pieces++;
    if (has_pages(r)) {
        s->stream += r->count * b->ram->page_bytes;
        s->pages += r->count;
        s->pieces += 2 * r->count;
        if (r->kind == VC_RUN_DATA)
            s->data_pages += r->count;
        else if (r->kind != VC_RUN_ZERO)
            s->same_pages += r->count;
    }
    return s->stream <= b->h.stream_bytes;
}

/* For more runs than *cap. They are described in more bytes than they may have come in, so that
 * their number has a limit of its own. */
static int make_room(struct vc_dst_batch *b, uint32_t *cap, struct vc_err *err)
{
    uint32_t n = *cap ? *cap * 2 : 64;
    struct vc_dst_run *more;

    if (*cap == VC_WIRE_MAX_BATCH_RUNS)
        return illegal(err, "too many runs");
    more = realloc(b->runs, n * sizeof(*more));
    if (!more)
        return no_memory(err);
    take(b, (n - *cap) * sizeof(*more));
    b->runs = more;
    *cap = n;
    return 0;
}

static int decode_runs(struct vc_dst_batch *b, const uint8_t *body, uint64_t features,
                       struct sums *s, struct vc_err *err)
{
    struct vc_reader r = vc_reader(body, b->h.runs_bytes);
    struct vc_wire_cursor c = {0};
    uint32_t cap = 0;
    int rc;

    if (b->ram)
        s->most_invalid = VC_WIRE_MAX_INVALIDATIONS * (vc_ram_bytes(b->ram) / b->ram->page_bytes) +
                          b->h.stream_bytes;
    for (;;) {
        struct vc_wire_run run;

        rc = vc_wire_run_decode(&r, &c, b->ram, features, &run, err);
        if (rc)
            break;
        if (!add_up(b, s, &run))
            return illegal(err, "its runs stand for more than it says");
        if (vc_wire_run_is_reference(&run) && (b->h.flags & VC_WIRE_BATCH_SELF_CONTAINED))
            return illegal(err, "a reference in a self-contained batch");
        if (run.old && !vc_wire_codec_is_delta(b->h.codec))
            return illegal(err, "OLD where there is no delta");
        if (run.shifted && b->h.codec != VC_WIRE_CODEC_DELTA)
            return illegal(err, "a shifted run where old pages are not the base's");
        b->n_old += run.old ? (uint32_t)run.count : 0;
        if (b->n_runs == cap && (rc = make_room(b, &cap, err)))
            return rc;
        b->runs[b->n_runs++].run = run;
    }
    if (rc != VC_EOF)
        return rc;
    if (s->stream != b->h.stream_bytes)
        return illegal(err, "its runs stand for less than it says");
    if (b->h.runs_bytes + s->opaque + s->data_pages * (b->ram ? b->ram->page_bytes : 0) !=
        b->h.body_bytes)
        return illegal(err, "the body has another length than its runs say");
    if (vc_wire_codec_is_delta(b->h.codec) && !b->n_old)
        return illegal(err, "a delta to nothing");
    return 0;
}

static int allocate(struct vc_dst_batch *b, const struct sums *s, struct vc_err *err)
{
    uint32_t page_bytes = b->ram ? b->ram->page_bytes : 0;

    take(b, (s->pieces + 1) * sizeof(*b->iov) + s->headers + (s->pages + 1) * sizeof(*b->pages) +
                s->same_pages * page_bytes);
    b->iov = calloc(s->pieces + 1, sizeof(*b->iov));
    b->headers = malloc(s->headers + VC_QS_HEADER_MAX_BYTES);
    b->pages = calloc(s->pages + 1, sizeof(*b->pages));
    b->same = malloc(s->same_pages * page_bytes + 1);
    return b->iov && b->headers && b->pages && b->same ? 0 : no_memory(err);
}

static void piece(struct vc_dst_batch *b, const uint8_t *p, size_t n)
{
    struct iovec *last = b->n_iov ? &b->iov[b->n_iov - 1] : NULL;

    b->iov_bytes += n;
    if (last && (uint8_t *)last->iov_base + last->iov_len == p)
        last->iov_len += n;
    else
        b->iov[b->n_iov++] = (struct iovec){(void *)p, n};
}

/* Lays out one run of records. *h: room for headers, *same, *body: the next contents. */
static void lay_out(struct vc_dst_batch *b, struct vc_dst_run *r, uint8_t **h, uint8_t **same,
                    const uint8_t **body)
{
    uint32_t page_bytes = b->ram->page_bytes;
    bool pages = has_pages(&r->run);

    r->first = b->n_pages;
    for (uint64_t i = 0; i < r->run.count; i++) {
        uint8_t header[VC_QS_HEADER_MAX_BYTES];
        struct vc_dst_page *p = &b->pages[b->n_pages];
        size_t n = vc_qs_rebuild(b->ram, pages ? VC_QS_PAGE : VC_QS_ZERO, r->run.block,
                                 vc_page(r->run.page.n + i), r->run.named && i == 0, header);

        memcpy(*h, header, n);
        piece(b, *h, n);
        *h += n;
        if (!pages)
            continue;
        p->same = vc_wire_run_is_reference(&r->run);
        if (r->run.kind == VC_RUN_ZERO) {
            p->content = zero_page;
        } else if (p->same) {
            p->content = *same;
            *same += page_bytes;
            b->n_same++;
        } else {
            p->content = *body;
            *body += page_bytes;
        }
        piece(b, p->content, page_bytes);
        b->n_pages++;
    }
}

/* The body; of a delta its runs alone, and room for its contents. */
static int expand(struct vc_dst_batch *b, struct vc_wire_codec *codec, const uint8_t **body,
                  struct vc_err *err)
{
    const uint8_t *p = b->frame->payload + VC_WIRE_BATCH_HEADER_BYTES;
    size_t n = b->frame->bytes - VC_WIRE_BATCH_HEADER_BYTES;
    uint32_t at = vc_wire_delta_at(&b->h);
    int rc;

    *body = p;
    if (b->h.codec == VC_WIRE_CODEC_NONE)
        return 0;
    take(b, b->h.body_bytes);
    b->body = malloc(b->h.body_bytes + 1);
    if (!b->body)
        return no_memory(err);
    *body = b->body;
    if (vc_wire_codec_is_delta(b->h.codec)) {
        memcpy(b->body, p, b->h.runs_bytes);
        if (b->h.codec == VC_WIRE_CODEC_RECENT)
            b->after = vc_load_le(p + b->h.runs_bytes, VC_WIRE_AFTER_BYTES);
        if (b->after >= b->h.seq)
            return illegal(err, "a delta to what is yet to come");
        return vc_wire_body_check(b->frame->payload + at, b->frame->bytes - at,
                                  b->h.body_bytes - b->h.runs_bytes, err);
    }
    rc = vc_wire_body_expand(codec, p, n, NULL, 0, b->body, b->h.body_bytes, err);
    drop_frame(b);
    return rc;
}

int vc_dst_batch_undelta(struct vc_dst_batch *b, struct vc_wire_codec *codec, const uint8_t *prefix,
                         size_t prefix_bytes, struct vc_err *err)
{
    uint32_t packed_at = vc_wire_delta_at(&b->h);
    int rc = vc_wire_body_expand(codec, b->frame->payload + packed_at, b->frame->bytes - packed_at,
                                 prefix, prefix_bytes, b->body + b->h.runs_bytes,
                                 b->h.body_bytes - b->h.runs_bytes, err);

    drop_frame(b);
    return rc;
}

static bool is_agreed(uint8_t codec, uint64_t features)
{
    return features & VC_WIRE_FEATURE_DELTA &&
           (codec != VC_WIRE_CODEC_RECENT || features & VC_WIRE_FEATURE_RECENT);
}

int vc_dst_batch_parse(struct vc_dst_batch *b, struct vc_link_frame *frame,
                       const struct vc_ram *ram, uint64_t features, struct vc_wire_codec *codec,
                       struct vc_err *err)
{
    const uint8_t *body;
    struct sums sums = {0};
    uint8_t *h, *same;
    int rc;

    b->frame = frame;
    b->ram = ram;
    take(b, frame->bytes);
    rc = vc_wire_batch_decode(frame->payload, frame->bytes, &b->h, err);
    if (!rc && vc_wire_codec_is_delta(b->h.codec) && !is_agreed(b->h.codec, features))
        rc = illegal(err, "a delta, which was not agreed on");
    if (!rc)
        rc = expand(b, codec, &body, err);
    if (!rc)
        rc = decode_runs(b, body, features, &sums, err);
    if (!rc)
        rc = allocate(b, &sums, err);
    if (rc)
        return rc;
    body += b->h.runs_bytes;
    h = b->headers;
    same = b->same;
    for (uint32_t i = 0; i < b->n_runs; i++) {
        struct vc_dst_run *r = &b->runs[i];

        if (r->run.kind == VC_RUN_OPAQUE) {
            piece(b, body, r->run.count);
            body += r->run.count;
        } else if (r->run.kind != VC_RUN_INVALIDATE) {
            lay_out(b, r, &h, &same, &body);
        }
    }
    return 0;
}

/* ---- the seal ---- */

/* The stretch of the stream; contents of pages count as their digests. */
static int seal_pieces(const struct vc_dst_batch *b, struct vc_digester *d, struct vc_err *err)
{
    const uint8_t *h = b->headers;
    const uint8_t *opaque =
        (b->body ? b->body : b->frame->payload + VC_WIRE_BATCH_HEADER_BYTES) + b->h.runs_bytes;
    uint32_t page_bytes = b->ram ? b->ram->page_bytes : 0;
    int rc = 0;

    for (uint32_t i = 0; i < b->n_runs && !rc; i++) {
        const struct vc_dst_run *r = &b->runs[i];
        uint64_t n = r->run.count;

        switch (r->run.kind) {
        case VC_RUN_OPAQUE:
            rc = vc_digest_update(d, opaque, n, err);
            opaque += n;
            break;
        case VC_RUN_INVALIDATE:
            break;
        case VC_RUN_ZERO:
            if (!r->run.as_page) {
                size_t bytes = header_bytes(b->ram, &r->run);

                rc = vc_digest_update(d, h, bytes, err);
                h += bytes;
                break;
            }
            /* fall through */
        default:
            for (uint64_t k = 0; k < n && !rc; k++) {
                size_t bytes =
                    8 +
                    (r->run.named && k == 0 ? 1 + strlen(b->ram->blocks[r->run.block].name) : 0);

                rc = vc_digest_update(d, h, bytes, err);
                h += bytes;
                if (!rc)
                    rc = vc_digest_update(d, b->pages[r->first + k].digest.b, VC_DIGEST_BYTES, err);
            }
            if (r->run.kind == VC_RUN_DATA)
                opaque += n * page_bytes;
            break;
        }
    }
    return rc;
}

int vc_dst_batch_seal(const struct vc_dst_batch *b, struct vc_digester *d,
                      const struct vc_digest *before, struct vc_digest *out, struct vc_err *err)
{
    int rc = vc_seal_begin(d, before, b->h.seq, b->h.position, err);

    if (!rc)
        rc = seal_pieces(b, d, err);
    for (uint32_t i = 0; i < b->n_runs && !rc; i++)
        rc = vc_seal_invalidate(d, &b->runs[i].run, err);
    return rc ? rc : vc_digest_end(d, out, err);
}
