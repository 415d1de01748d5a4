/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/bytes.h"

#include <stdlib.h>
#include <string.h>

uint64_t vc_read_varint(struct vc_reader *r)
{
    uint64_t v = 0;

    for (unsigned shift = 0; shift < 70; shift += 7) {
        uint8_t b = vc_read_u8(r);

        if (r->failed)
            return 0;
        /* The tenth byte has one bit left; a last byte of 0 pads. */
        if ((shift == 63 && b > 1) || (shift > 0 && b == 0))
            break;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80))
            return v;
    }
    r->failed = true;
    return 0;
}

void vc_read_copy(struct vc_reader *r, void *out, size_t n)
{
    const uint8_t *p = vc_read_bytes(r, n);

    if (p)
        memcpy(out, p, n);
    else
        memset(out, 0, n);
}

bool vc_read_str8(struct vc_reader *r, char out[256])
{
    uint8_t n = vc_read_u8(r);
    const uint8_t *p = vc_read_bytes(r, n);

    out[0] = 0;
    if (!p)
        return false;
    if (memchr(p, 0, n)) {
        r->failed = true;
        return false;
    }
    memcpy(out, p, n);
    out[n] = 0;
    return true;
}

void vc_write_varint(struct vc_writer *w, uint64_t v)
{
    while (v >= 0x80) {
        vc_write_u8(w, (uint8_t)(v | 0x80));
        v >>= 7;
    }
    vc_write_u8(w, (uint8_t)v);
}

void vc_write_bytes(struct vc_writer *w, const void *p, size_t n)
{
    uint8_t *out = vc_write_reserve(w, n);

    if (out && n)
        memcpy(out, p, n);
}

void vc_write_str8(struct vc_writer *w, const char *text)
{
    size_t n = strlen(text);

    if (n > 255) {
        w->failed = true;
        return;
    }
    vc_write_u8(w, (uint8_t)n);
    vc_write_bytes(w, text, n);
}

bool vc_buf_reserve(struct vc_buf *b, size_t n)
{
    uint8_t *more;

    if (n <= b->cap)
        return true;
    more = realloc(b->p, n);
    if (!more)
        return false;
    b->p = more;
    b->cap = n;
    return true;
}
