/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/bytes.h"
#include "wire/wire.h"

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
    if (b->runs_bytes > b->body_bytes)
        return illegal(err, "the runs are longer than the body");
    if (b->runs_bytes > VC_WIRE_MAX_BATCH_RUNS_BYTES)
        return illegal(err, "the runs are too long");
    if (b->body_bytes - b->runs_bytes > b->stream_bytes)
        return illegal(err, "more contents than bytes of the stream");
    if (b->codec > VC_WIRE_CODEC_RECENT || (b->flags & ~VC_WIRE_BATCH_SELF_CONTAINED) || reserved)
        return illegal(err, "unknown codec or flags");
    if (vc_wire_codec_is_delta(b->codec) && (b->flags & VC_WIRE_BATCH_SELF_CONTAINED))
        return illegal(err, "a delta in a self-contained batch");
    if (vc_wire_codec_is_delta(b->codec) && n <= vc_wire_delta_at(b))
        return illegal(err, "a delta without contents");
    if (b->codec == VC_WIRE_CODEC_NONE && vc_reader_left(&r) != b->body_bytes)
        return illegal(err, "the body does not fit the frame");
    return 0;
}
