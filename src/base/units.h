/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BASE_UNITS_H
#define VC_BASE_UNITS_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Names, limits and small value types that every layer shares. */

#define VC_KIB 1024ull
#define VC_MIB (1024ull * VC_KIB)
#define VC_GIB (1024ull * VC_MIB)

/** Most RAM blocks of one VM (QEMU has some ten; DIMMs and devices add to them). */
#define VC_MAX_BLOCKS 256
/** Longest name of a RAM block, without NUL (QEMU counts it in one byte). */
#define VC_MAX_BLOCK_NAME 255
/** Page sizes of QEMU's targets lie between these (docs/internals/qemu-stream.md). */
#define VC_MIN_PAGE_BYTES 1024u
#define VC_MAX_PAGE_BYTES 65536u
/** Largest RAM block that any of our formats accepts. */
#define VC_MAX_BLOCK_BYTES (64ull * 1024 * VC_GIB)

/** The number of a page in its RAM block. A type of its own, so that it cannot be taken for a
 *  number of bytes. */
struct vc_page {
    uint64_t n;
};

static inline struct vc_page vc_page(uint64_t n)
{
    return (struct vc_page){n};
}

/** One RAM block as QEMU's stream lists it. */
struct vc_block {
    char name[VC_MAX_BLOCK_NAME + 1]; /* NUL-terminated; the name holds no NUL itself */
    uint64_t bytes;                   /* used length, a multiple of the page size */
};

/** The RAM of a VM: its blocks in the order of the stream, and the size of a page. */
struct vc_ram {
    uint32_t page_bytes;
    uint32_t n_blocks;
    struct vc_block blocks[VC_MAX_BLOCKS];
};

static inline uint64_t vc_ram_block_pages(const struct vc_ram *ram, uint32_t block)
{
    return ram->blocks[block].bytes / ram->page_bytes;
}

static inline uint64_t vc_ram_bytes(const struct vc_ram *ram)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < ram->n_blocks; i++)
        sum += ram->blocks[i].bytes;
    return sum;
}

/** The block of that name, or -1. */
static inline int vc_ram_find(const struct vc_ram *ram, const char *name)
{
    for (uint32_t i = 0; i < ram->n_blocks; i++)
        if (!strcmp(ram->blocks[i].name, name))
            return (int)i;
    return -1;
}

/** Maps blocks of one RAM to those of another by name: map[i] = index in `to`, or -1 where there is
 *  none or the page sizes differ. */
void vc_ram_map(const struct vc_ram *from, const struct vc_ram *to, int map[VC_MAX_BLOCKS]);

/** 128 bits of identity: a VM's UUID, a generation, a lineage, a session. */
struct vc_id {
    uint8_t b[16];
};

#define VC_ID_TEXT_BYTES 37 /* "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx" and NUL */

static inline bool vc_id_equal(const struct vc_id *a, const struct vc_id *b)
{
    return !memcmp(a->b, b->b, sizeof(a->b));
}

static inline bool vc_id_is_nil(const struct vc_id *id)
{
    static const struct vc_id nil;

    return vc_id_equal(id, &nil);
}

/** Writes the usual lower-case text form. */
void vc_id_format(const struct vc_id *id, char text[VC_ID_TEXT_BYTES]);
/** Parses exactly that form (either case). Returns false on anything else. */
bool vc_id_parse(const char *text, struct vc_id *id);
/** Fills *id with a random version-4 UUID from the kernel. Returns false if it has no randomness.
 */
bool vc_id_random(struct vc_id *id);

#endif
