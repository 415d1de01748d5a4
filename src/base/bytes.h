/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BASE_BYTES_H
#define VC_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

/* Bounded cursors over bytes. Failure is sticky: after a read beyond the end, or a write beyond
 * the capacity, `failed` is set, reads yield 0 or NULL, writes do nothing; the caller checks once.
 * Little-endian is for our own formats, big-endian for QEMU's stream alone. */

struct vc_reader {
    const uint8_t *data; /* borrowed */
    size_t len;
    size_t off;
    bool failed;
};

static inline struct vc_reader vc_reader(const void *data, size_t len)
{
    return (struct vc_reader){.data = (const uint8_t *)data, .len = len};
}

/** Bytes not yet read (0 after a failure). */
static inline size_t vc_reader_left(const struct vc_reader *r)
{
    return r->failed ? 0 : r->len - r->off;
}

/** The next n bytes, borrowed from the buffer, or NULL. */
static inline const uint8_t *vc_read_bytes(struct vc_reader *r, size_t n)
{
    const uint8_t *p;

    if (r->failed || n > r->len - r->off) {
        r->failed = true;
        return NULL;
    }
    p = r->data + r->off;
    r->off += n;
    return p;
}

static inline uint64_t vc_load_le(const uint8_t *p, unsigned n)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < n; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static inline uint64_t vc_load_be(const uint8_t *p, unsigned n)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < n; i++)
        v = v << 8 | p[i];
    return v;
}

static inline void vc_store_le(uint8_t *p, uint64_t v, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static inline void vc_store_be(uint8_t *p, uint64_t v, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> (8 * (n - 1 - i)));
}

static inline uint64_t vc_read_le(struct vc_reader *r, unsigned n)
{
    const uint8_t *p = vc_read_bytes(r, n);

    return p ? vc_load_le(p, n) : 0;
}

static inline uint8_t vc_read_u8(struct vc_reader *r)
{
    return (uint8_t)vc_read_le(r, 1);
}
static inline uint16_t vc_read_u16(struct vc_reader *r)
{
    return (uint16_t)vc_read_le(r, 2);
}
static inline uint32_t vc_read_u32(struct vc_reader *r)
{
    return (uint32_t)vc_read_le(r, 4);
}
static inline uint64_t vc_read_u64(struct vc_reader *r)
{
    return vc_read_le(r, 8);
}
/** LEB128, at most ten bytes, and no longer than needed (a padded form is a failure). */
uint64_t vc_read_varint(struct vc_reader *r);
/** Copies n bytes out; zero-fills after a failure. */
void vc_read_copy(struct vc_reader *r, void *out, size_t n);
/** u8 length and that many bytes (no NUL inside) into out[256] with a NUL. False on failure. */
bool vc_read_str8(struct vc_reader *r, char out[256]);

struct vc_writer {
    uint8_t *data; /* borrowed, capacity `cap` */
    size_t cap;
    size_t len;
    bool failed;
};

static inline struct vc_writer vc_writer(void *data, size_t cap)
{
    return (struct vc_writer){.data = (uint8_t *)data, .cap = cap};
}

/** Room for n more bytes, which count as written, or NULL. */
static inline uint8_t *vc_write_reserve(struct vc_writer *w, size_t n)
{
    uint8_t *p;

    if (w->failed || n > w->cap - w->len) {
        w->failed = true;
        return NULL;
    }
    p = w->data + w->len;
    w->len += n;
    return p;
}

static inline void vc_write_le(struct vc_writer *w, uint64_t v, unsigned n)
{
    uint8_t *p = vc_write_reserve(w, n);

    if (p)
        vc_store_le(p, v, n);
}
static inline void vc_write_u8(struct vc_writer *w, uint8_t v)
{
    vc_write_le(w, v, 1);
}
static inline void vc_write_u16(struct vc_writer *w, uint16_t v)
{
    vc_write_le(w, v, 2);
}
static inline void vc_write_u32(struct vc_writer *w, uint32_t v)
{
    vc_write_le(w, v, 4);
}
static inline void vc_write_u64(struct vc_writer *w, uint64_t v)
{
    vc_write_le(w, v, 8);
}
void vc_write_varint(struct vc_writer *w, uint64_t v);
void vc_write_bytes(struct vc_writer *w, const void *p, size_t n);
/** u8 length and the bytes; fails if the text is longer than 255. */
void vc_write_str8(struct vc_writer *w, const char *text);

/** Room that lives on from use to use: fresh memory costs more than filling it. Zero-initialise;
 * free with free(p). */
struct vc_buf {
    uint8_t *p;
    size_t cap;
};
/** Makes it at least so large; what is in it stays. False: no memory, and it is as it was. */
bool vc_buf_reserve(struct vc_buf *b, size_t n) VC_NODISCARD;

/** Maps a signed difference to an unsigned varint and back. */
static inline uint64_t vc_zigzag(int64_t v)
{
    return (uint64_t)v << 1 ^ (uint64_t)(v >> 63);
}
static inline int64_t vc_unzigzag(uint64_t v)
{
    return (int64_t)(v >> 1 ^ (0 - (v & 1)));
}

#define VC_VARINT_MAX_BYTES 10

#endif
