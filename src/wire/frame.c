/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/bytes.h"
#include "wire/wire.h"

/* The one table of frame types: docs/formats/wire.md section 3. */

#define BOTH (1u << VC_WIRE_SOURCE | 1u << VC_WIRE_DESTINATION)
#define SRC (1u << VC_WIRE_SOURCE)
#define DST (1u << VC_WIRE_DESTINATION)
#define HELLO VC_WIRE_PHASE_HELLO
#define OPEN VC_WIRE_PHASE_OPEN
#define STREAM VC_WIRE_PHASE_STREAM
#define END VC_WIRE_PHASE_END

static const struct row {
    uint8_t type;
    const char *name;
    uint32_t min, max;
    unsigned senders, phases;
    unsigned side; /* who may send it on a channel other than 0 */
} table[] = {
    {VC_WIRE_HELLO, "HELLO", 25, 512, BOTH, HELLO},
    {VC_WIRE_OPEN, "OPEN", 40, 8192, SRC, OPEN},
    {VC_WIRE_ACCEPT, "ACCEPT", 23, 512, DST, OPEN},
    {VC_WIRE_START, "START", 72, 256, SRC, OPEN},
    {VC_WIRE_BLOCKS, "BLOCKS", 18, 70000, SRC, STREAM},
    {VC_WIRE_BATCH, "BATCH", VC_WIRE_BATCH_HEADER_BYTES, VC_WIRE_MAX_BATCH_BYTES, SRC, STREAM, SRC},
    {VC_WIRE_EOF, "EOF", 0, 0, BOTH, STREAM, SRC},
    {VC_WIRE_ACK, "ACK", 16, 16, DST, STREAM, DST},
    {VC_WIRE_REPAIR, "REPAIR", 16, 12 + 4 * VC_WIRE_MAX_REPAIR_PAGES, DST, STREAM},
    {VC_WIRE_REPAIRED, "REPAIRED", 12 + 4 + VC_MIN_PAGE_BYTES,
     12 + VC_WIRE_REPAIRED_PAGES *(4 + VC_MAX_PAGE_BYTES), SRC, STREAM},
    {VC_WIRE_RESEND, "RESEND", 8, 8, DST, STREAM},
    {VC_WIRE_RETURN, "RETURN", 1, 65536, DST, STREAM},
    {VC_WIRE_ANNOUNCE_BLOCKS, "ANNOUNCE_BLOCKS", 18, 70000, DST, STREAM},
    {VC_WIRE_ANNOUNCE, "ANNOUNCE", 14, 65536, DST, STREAM},
    {VC_WIRE_ANNOUNCE_END, "ANNOUNCE_END", 0, 0, DST, STREAM},
    {VC_WIRE_CREDIT, "CREDIT", 8, 8, DST, STREAM},
    {VC_WIRE_STREAM_FAILED, "STREAM_FAILED", 5, 512, BOTH, STREAM},
    {VC_WIRE_READS, "READS", VC_WIRE_READS_BYTES, VC_WIRE_READS_BYTES, DST, STREAM},
    {VC_WIRE_KEEPS, "KEEPS", 1, 1, DST, STREAM},
    {VC_WIRE_COMMITTED, "COMMITTED", 56, 56, BOTH, STREAM | END},
    {VC_WIRE_WORD, "WORD", 17, 17, SRC, OPEN | STREAM | END},
    {VC_WIRE_WORD_DONE, "WORD_DONE", 5, 512, DST, OPEN | STREAM | END},
    {VC_WIRE_NEVER_RAN, "NEVER_RAN", 5, 512, DST, OPEN | STREAM | END},
    {VC_WIRE_CLOSE, "CLOSE", 0, 0, BOTH, OPEN | STREAM | END},
    {VC_WIRE_REKEYING, "REKEYING", 8, 8, BOTH, STREAM},
    {VC_WIRE_REKEYED, "REKEYED", 4, 4 + 20 * VC_WIRE_MAX_REKEYED_RANGES, BOTH, STREAM},
    {VC_WIRE_READY, "READY", 48, 48, BOTH, STREAM},
    {VC_WIRE_PING, "PING", 8, 8, BOTH, OPEN | STREAM | END},
    {VC_WIRE_PONG, "PONG", 8, 8, BOTH, OPEN | STREAM | END},
    {VC_WIRE_ERROR, "ERROR", 5, 512, BOTH, HELLO | OPEN | STREAM | END},
};

static const struct row *find(unsigned type)
{
    for (size_t i = 0; i < VC_ARRAY_LEN(table); i++)
        if (table[i].type == type)
            return &table[i];
    return NULL;
}

const char *vc_wire_type_name(unsigned type)
{
    const struct row *r = find(type);

    return r ? r->name : "?";
}

void vc_wire_frame_encode(const struct vc_wire_frame *f, uint8_t header[VC_WIRE_HEADER_BYTES])
{
    vc_store_le(header, f->bytes, 4);
    header[4] = f->type;
    header[5] = f->flags;
    vc_store_le(header + 6, f->channel, 2);
}

int vc_wire_frame_decode(const uint8_t header[VC_WIRE_HEADER_BYTES], enum vc_wire_role sender,
                         enum vc_wire_phase phase, struct vc_wire_frame *out, struct vc_err *err)
{
    struct vc_wire_frame f = {
        .bytes = (uint32_t)vc_load_le(header, 4),
        .type = header[4],
        .flags = header[5],
        .channel = (uint16_t)vc_load_le(header + 6, 2),
    };
    const struct row *r = find(f.type);

    if (f.flags & ~VC_WIRE_FRAME_OPTIONAL)
        return vc_err_set(err, VC_E_PROTOCOL, "frame of type %u with unknown flags %#x", f.type,
                          f.flags);
    if (f.channel >= VC_WIRE_MAX_CHANNELS)
        return vc_err_set(err, VC_E_PROTOCOL, "frame of type %u for channel %u", f.type, f.channel);
    if (!r) {
        if (!(f.flags & VC_WIRE_FRAME_OPTIONAL) || f.bytes > VC_WIRE_MAX_FRAME_BYTES)
            return vc_err_set(err, VC_E_PROTOCOL, "frame of unknown type %u", f.type);
        *out = f;
        return VC_NOT_FOUND;
    }
    if (f.bytes < r->min || f.bytes > r->max)
        return vc_err_set(err, VC_E_PROTOCOL, "%s: length %u is not within %u to %u", r->name,
                          f.bytes, r->min, r->max);
    if (!(r->senders & 1u << sender))
        return vc_err_set(err, VC_E_PROTOCOL, "%s: not for this side to send", r->name);
    if (!(r->phases & phase))
        return vc_err_set(err, VC_E_PROTOCOL, "%s: not allowed in this phase", r->name);
    if (f.channel && !(r->side & 1u << sender))
        return vc_err_set(err, VC_E_PROTOCOL, "%s: has no place on channel %u", r->name, f.channel);
    *out = f;
    return 0;
}
