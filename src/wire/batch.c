/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>
#include <zstd.h>

#include "base/bytes.h"
#include "wire/wire.h"

/* Below this compression gains nothing. */
#define COMPRESS_MIN_BYTES 64
#define SAMPLE_BYTES 16384

void vc_wire_batch_encode(uint8_t out[VC_WIRE_BATCH_HEADER_BYTES], const struct vc_wire_batch *b)
{
    struct vc_writer w = vc_writer(out, VC_WIRE_BATCH_HEADER_BYTES);

    vc_write_u64(&w, b->seq);
    vc_write_u64(&w, b->position);
    vc_write_u32(&w, b->stream_bytes);
    vc_write_u32(&w, b->runs_bytes);
    vc_write_u32(&w, b->body_bytes);
    vc_write_u8(&w, b->codec);
    vc_write_u8(&w, b->flags);
    vc_write_u16(&w, 0);
    vc_write_bytes(&w, b->seal, VC_WIRE_SEAL_BYTES);
}

static int illegal(struct vc_err *err, const char *what)
{
    return vc_err_set(err, VC_E_PROTOCOL, "BATCH: %s", what);
}

int vc_wire_batch_decode(const uint8_t *p, size_t n, struct vc_wire_batch *b, struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);
    uint16_t reserved;

    b->seq = vc_read_u64(&r);
    b->position = vc_read_u64(&r);
    b->stream_bytes = vc_read_u32(&r);
    b->runs_bytes = vc_read_u32(&r);
    b->body_bytes = vc_read_u32(&r);
    b->codec = vc_read_u8(&r);
    b->flags = vc_read_u8(&r);
    reserved = vc_read_u16(&r);
    vc_read_copy(&r, b->seal, VC_WIRE_SEAL_BYTES);
    if (r.failed)
        return illegal(err, "too short");
    if (b->seq == 0 || b->stream_bytes > VC_WIRE_MAX_BATCH_STREAM_BYTES)
        return illegal(err, "impossible sequence number or length");
    if (b->body_bytes > VC_WIRE_MAX_BATCH_BODY_BYTES)
        return illegal(err, "the body is too long");
    if (b->runs_bytes > b->body_bytes)
        return illegal(err, "the runs are longer than the body");
    if (b->codec > VC_WIRE_CODEC_ZSTD || (b->flags & ~VC_WIRE_BATCH_SELF_CONTAINED) || reserved)
        return illegal(err, "unknown codec or flags");
    if (b->codec == VC_WIRE_CODEC_NONE && vc_reader_left(&r) != b->body_bytes)
        return illegal(err, "the body does not fit the frame");
    return 0;
}

struct vc_wire_codec {
    ZSTD_CCtx *c;
    ZSTD_DCtx *d;
    int level;
};

int vc_wire_codec_new(int level, struct vc_wire_codec **out, struct vc_err *err)
{
    struct vc_wire_codec *c = calloc(1, sizeof(*c));

    if (!c)
        return vc_err_set(err, VC_E_NOMEM, "no memory for compression");
    c->level = level;
    *out = c;
    return 0;
}

void vc_wire_codec_free(struct vc_wire_codec *c)
{
    if (!c)
        return;
    ZSTD_freeCCtx(c->c);
    ZSTD_freeDCtx(c->d);
    free(c);
}

size_t vc_wire_body_bound(size_t n)
{
    return ZSTD_compressBound(n);
}

/* Whether a sample from the middle says that trying is worth it: most of a guest's memory either
 * shrinks well or, being compressed or encrypted already, not at all. */
static bool looks_compressible(struct vc_wire_codec *c, const uint8_t *body, size_t n)
{
    uint8_t out[SAMPLE_BYTES];
    size_t k;

    if (n < 4 * SAMPLE_BYTES)
        return true;
    k = ZSTD_compressCCtx(c->c, out, sizeof(out), body + n / 2, SAMPLE_BYTES, c->level);
    return !ZSTD_isError(k) && k < SAMPLE_BYTES - SAMPLE_BYTES / 32;
}

/* A context is made when it is first needed: a side compresses or expands, rarely both. */
size_t vc_wire_body_compress(struct vc_wire_codec *c, const uint8_t *body, size_t n, uint8_t *out,
                             size_t cap)
{
    size_t k;

    if (n < COMPRESS_MIN_BYTES || (!c->c && !(c->c = ZSTD_createCCtx())))
        return 0;
    if (!looks_compressible(c, body, n))
        return 0;
    k = ZSTD_compressCCtx(c->c, out, cap, body, n, c->level);
    return ZSTD_isError(k) || k >= n ? 0 : k;
}

int vc_wire_body_expand(struct vc_wire_codec *c, const uint8_t *p, size_t n, uint8_t *out,
                        size_t body_bytes, struct vc_err *err)
{
    size_t k;

    if (!c->d && !(c->d = ZSTD_createDCtx()))
        return vc_err_set(err, VC_E_NOMEM, "no memory for compression");
    if (ZSTD_getFrameContentSize(p, n) != body_bytes || ZSTD_findFrameCompressedSize(p, n) != n)
        return illegal(err, "the body is not one zstd frame of the length given");
    k = ZSTD_decompressDCtx(c->d, out, body_bytes, p, n);
    if (ZSTD_isError(k) || k != body_bytes)
        return illegal(err, "the body cannot be expanded");
    return 0;
}
