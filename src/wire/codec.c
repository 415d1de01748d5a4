/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "base/bytes.h"
#include "base/units.h"
#include "wire/wire.h"

/* Bodies of batches through zstd, with or without a prefix (docs/formats/wire.md, "BATCH"). */

/* Below this compression gains nothing. */
#define COMPRESS_MIN_BYTES 64
/* Of the table in which zstd's fast strategies look for what they have seen. Their own choice is
 * for a window of 512 KiB at most; a prefix must be found as a whole. */
#define PREFIX_HASH_LOG 17
/* A prefix and a body of their longest. */
#define PREFIX_WINDOW_LOG 24
/* zstd's long distance matcher finds the old page of a new one again behind each change, where the
 * fast strategies are led astray by what pages have in common. It notes one position of 128, which
 * a table of 2^14 has room for in a MiB of pages and as much of what they were. */
#define PREFIX_LDM_HASH_LOG 14
#define PREFIX_LDM_RATE_LOG 7

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

void vc_wire_codec_set_level(struct vc_wire_codec *c, int level)
{
    c->level = level;
}

size_t vc_wire_body_bound(size_t n)
{
    return ZSTD_compressBound(n);
}

/* 0: it does not fit, or a fault: it is sent as it is. */
static size_t compress(struct vc_wire_codec *c, const uint8_t *prefix, size_t prefix_bytes,
                       const uint8_t *p, size_t n, uint8_t *out, size_t cap)
{
    const struct {
        ZSTD_cParameter name;
        int value;
    } with_prefix[] = {
        {ZSTD_c_compressionLevel, c->level},      {ZSTD_c_hashLog, PREFIX_HASH_LOG},
        {ZSTD_c_windowLog, PREFIX_WINDOW_LOG},    {ZSTD_c_enableLongDistanceMatching, 1},
        {ZSTD_c_ldmHashLog, PREFIX_LDM_HASH_LOG}, {ZSTD_c_ldmHashRateLog, PREFIX_LDM_RATE_LOG},
    };
    size_t k;

    if (!prefix_bytes) {
        k = ZSTD_compressCCtx(c->c, out, cap, p, n, c->level);
        return ZSTD_isError(k) ? 0 : k;
    }
    ZSTD_CCtx_reset(c->c, ZSTD_reset_session_and_parameters);
    for (size_t i = 0; i < VC_ARRAY_LEN(with_prefix); i++)
        if (ZSTD_isError(ZSTD_CCtx_setParameter(c->c, with_prefix[i].name, with_prefix[i].value)))
            return 0;
    if (ZSTD_isError(ZSTD_CCtx_refPrefix(c->c, prefix, prefix_bytes)))
        return 0;
    k = ZSTD_compress2(c->c, out, cap, p, n);
    return ZSTD_isError(k) ? 0 : k;
}

/* A context is made when it is first needed: a side compresses or expands, rarely both. */
static bool has_context(struct vc_wire_codec *c)
{
    return c->c || (c->c = ZSTD_createCCtx());
}

bool vc_wire_sample_shrinks(struct vc_wire_codec *c, const uint8_t *p, size_t n,
                            const struct vc_wire_prefix *prefix)
{
    uint8_t out[VC_WIRE_SAMPLE_BYTES];
    size_t k;

    n = VC_MIN(n, sizeof(out));
    if (!c->level || !has_context(c))
        return false;
    k = compress(c, prefix ? prefix->p : NULL, prefix ? prefix->bytes : 0, p, n, out, sizeof(out));
    return k && k < n - n / 32;
}

size_t vc_wire_body_compress(struct vc_wire_codec *c, const uint8_t *body, size_t n,
                             const struct vc_wire_prefix *prefix, uint8_t *out, size_t cap)
{
    size_t k;

    if (!c->level || n < COMPRESS_MIN_BYTES || !has_context(c))
        return 0;
    k = compress(c, prefix ? prefix->p : NULL, prefix ? prefix->bytes : 0, body, n, out, cap);
    return k >= n ? 0 : k;
}

size_t vc_wire_body_pack(struct vc_wire_codec *c, const uint8_t *body, struct vc_wire_batch *h,
                         uint8_t *out)
{
    size_t n = vc_wire_body_compress(c, body, h->body_bytes, NULL, out, h->body_bytes);

    h->codec = n ? VC_WIRE_CODEC_ZSTD : VC_WIRE_CODEC_NONE;
    if (n)
        return n;
    memcpy(out, body, h->body_bytes);
    return h->body_bytes;
}

int vc_wire_body_check(const uint8_t *p, size_t n, size_t body_bytes, struct vc_err *err)
{
    /* The library takes more for a frame than the format has: skippable ones, and, as most
     * distributions build it, those of its own past, with decoders that nobody looks after. */
    if (n < 4 || vc_load_le(p, 4) != ZSTD_MAGICNUMBER ||
        ZSTD_getFrameContentSize(p, n) != body_bytes || ZSTD_findFrameCompressedSize(p, n) != n ||
        ZSTD_getDictID_fromFrame(p, n) != 0)
        return vc_err_set(err, VC_E_PROTOCOL,
                          "BATCH: the body is not one zstd frame of the length given");
    return 0;
}

int vc_wire_body_expand(struct vc_wire_codec *c, const uint8_t *p, size_t n, const uint8_t *prefix,
                        size_t prefix_bytes, uint8_t *out, size_t body_bytes, struct vc_err *err)
{
    int rc = vc_wire_body_check(p, n, body_bytes, err);
    size_t k;

    if (rc)
        return rc;
    if (!c->d && !(c->d = ZSTD_createDCtx()))
        return vc_err_set(err, VC_E_NOMEM, "no memory for compression");
    /* Not ZSTD_decompress_usingDict(): a guest could write a page that is taken for a dictionary.
     */
    ZSTD_DCtx_reset(c->d, ZSTD_reset_session_only);
    k = ZSTD_DCtx_refPrefix(c->d, prefix, prefix_bytes);
    if (!ZSTD_isError(k))
        k = ZSTD_decompressDCtx(c->d, out, body_bytes, p, n);
    if (ZSTD_isError(k) || k != body_bytes)
        return vc_err_set(err, VC_E_PROTOCOL, "BATCH: the body cannot be expanded");
    return 0;
}
