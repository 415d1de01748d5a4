/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qstream/parser.h"

/* Sections other than RAM that occur while pages are on their way. They are passed, so their
 * grammar need only tell where they end. Named after what QEMU registers with
 * register_savevm_live(). */

/* migration/block.c (until 9.0) */
#define DISK_DEVICE_BLOCK 0x01u
#define DISK_EOS 0x02u
#define DISK_PROGRESS 0x04u
#define DISK_ZERO_BLOCK 0x08u
#define DISK_FLAGS_MASK 0x1ffu
#define DISK_BLOCK_BYTES (1u << 20)

/* migration/block-dirty-bitmap.c */
#define BITMAP_EOS 0x01u
#define BITMAP_ZEROES 0x02u
#define BITMAP_NAME 0x04u
#define BITMAP_NODE 0x08u
#define BITMAP_START 0x10u
#define BITMAP_COMPLETE 0x20u
#define BITMAP_BITS 0x40u
#define BITMAP_EXTRA_FLAGS 0x80u /* never sent */

/* hw/vfio/migration.c */
#define VFIO_TAG_BASE 0xffffffffef100000ull
#define VFIO_END_OF_STATE 1
#define VFIO_SETUP 3
#define VFIO_DATA 4
#define VFIO_INIT_DATA_SENT 5
#define VFIO_CONFIG_LOAD_READY 6

/* hw/s390x/s390-stattrib.c */
#define ATTR_EOS 0x1u
#define ATTR_MORE 0x2u
#define ATTR_ERROR 0x4u
#define ATTR_DONE 0x8u
#define ATTR_FLAGS_MASK 0xfffu

/* hw/ppc/spapr.c */
#define HTAB_CHUNKS 0
#define HTAB_ENTRY_BYTES 16u

static bool ends_with(const uint8_t *s, size_t n, const char *end)
{
    size_t k = strlen(end);

    return n >= k && !memcmp(s + n - k, end, k);
}

enum vc_qs_iterable vc_qs_iterable_of(const uint8_t *idstr, size_t n)
{
    static const struct {
        const char *name;
        enum vc_qs_iterable kind;
    } known[] = {
        {"ram", VC_QS_IT_RAM},
        {"block", VC_QS_IT_DISK},
        {"dirty-bitmap", VC_QS_IT_BITMAP},
        {"vfio", VC_QS_IT_VFIO},
        {"s390-storage_attributes", VC_QS_IT_ATTR},
        {"spapr/htab", VC_QS_IT_HTAB},
    };

    for (size_t i = 0; i < VC_ARRAY_LEN(known); i++)
        if (n == strlen(known[i].name) && ends_with(idstr, n, known[i].name))
            return known[i].kind;
    return ends_with(idstr, n, "/vfio") ? VC_QS_IT_VFIO : VC_QS_IT_NONE;
}

uint32_t vc_qs_iterable_version(enum vc_qs_iterable kind)
{
    switch (kind) {
    case VC_QS_IT_RAM:
        return 4;
    case VC_QS_IT_ATTR:
        return 0;
    default:
        return 1;
    }
}

void vc_qs_iterable_begin(struct vc_qs_parser *p)
{
    switch (p->section_kind) {
    case VC_QS_IT_DISK:
        vc_qs_expect(p, VC_QS_ST_DISK_RECORD, 8);
        break;
    case VC_QS_IT_BITMAP:
        vc_qs_expect(p, VC_QS_ST_BITMAP_FLAGS, 1);
        break;
    case VC_QS_IT_VFIO:
        vc_qs_expect(p, VC_QS_ST_VFIO_TAG, 8);
        break;
    case VC_QS_IT_ATTR:
        vc_qs_expect(p, VC_QS_ST_ATTR_RECORD, 8);
        break;
    case VC_QS_IT_HTAB:
        vc_qs_expect(p, VC_QS_ST_HTAB_HEADER, 4);
        break;
    case VC_QS_IT_RAM:
    case VC_QS_IT_NONE:
        break;
    }
}

static void lose(struct vc_qs_parser *p, const char *what)
{
    vc_qs_lose(p, false, "%s is not well formed", what);
}

/* Passes a chunk whose length was in the field, then goes on in `next`. */
static void pass_chunk(struct vc_qs_parser *p, enum vc_qs_state next, unsigned n, const char *what)
{
    uint64_t bytes = vc_load_be(p->acc, 8);

    if (bytes > VC_QS_MAX_CHUNK_BYTES) {
        lose(p, what);
        return;
    }
    p->skip = bytes;
    vc_qs_expect(p, next, n);
}

/* ---- block ---- */

static void on_disk_record(struct vc_qs_parser *p)
{
    unsigned flags = vc_load_be(p->acc, 8) & DISK_FLAGS_MASK;

    p->record_flags = flags;
    if (flags == DISK_EOS)
        vc_qs_section_end(p);
    else if (flags == DISK_PROGRESS)
        vc_qs_expect(p, VC_QS_ST_DISK_RECORD, 8);
    else if ((flags & ~DISK_ZERO_BLOCK) == DISK_DEVICE_BLOCK)
        vc_qs_expect_str(p, VC_QS_ST_DISK_NAME);
    else
        lose(p, "section 'block'");
}

static void on_disk_name(struct vc_qs_parser *p)
{
    p->skip = p->record_flags & DISK_ZERO_BLOCK ? 0 : DISK_BLOCK_BYTES;
    vc_qs_expect(p, VC_QS_ST_DISK_RECORD, 8);
}

/* ---- dirty-bitmap ---- */

static void bitmap_next(struct vc_qs_parser *p)
{
    if (p->bitmap_flags & BITMAP_EOS)
        vc_qs_section_end(p);
    else
        vc_qs_expect(p, VC_QS_ST_BITMAP_FLAGS, 1);
}

/* The names have passed: what the flags ask for. */
static void bitmap_body(struct vc_qs_parser *p)
{
    if (p->bitmap_flags & BITMAP_START) {
        p->skip = 4 + 1; /* granularity, flags */
        bitmap_next(p);
    } else if (p->bitmap_flags & BITMAP_BITS) {
        vc_qs_expect(p, VC_QS_ST_BITMAP_BITS, 8 + 4);
    } else {
        bitmap_next(p);
    }
}

static void on_bitmap_flags(struct vc_qs_parser *p)
{
    p->bitmap_flags = p->acc[0];
    if (p->bitmap_flags & BITMAP_EXTRA_FLAGS)
        lose(p, "section 'dirty-bitmap'");
    else if (p->bitmap_flags & BITMAP_NODE)
        vc_qs_expect_str(p, VC_QS_ST_BITMAP_NODE);
    else if (p->bitmap_flags & BITMAP_NAME)
        vc_qs_expect_str(p, VC_QS_ST_BITMAP_NAME);
    else
        bitmap_body(p);
}

static void on_bitmap_node(struct vc_qs_parser *p)
{
    if (p->bitmap_flags & BITMAP_NAME)
        vc_qs_expect_str(p, VC_QS_ST_BITMAP_NAME);
    else
        bitmap_body(p);
}

static void on_bitmap_bits(struct vc_qs_parser *p)
{
    if (p->bitmap_flags & BITMAP_ZEROES)
        bitmap_next(p);
    else
        vc_qs_expect(p, VC_QS_ST_BITMAP_LEN, 8);
}

static void on_bitmap_len(struct vc_qs_parser *p)
{
    uint64_t bytes = vc_load_be(p->acc, 8);

    if (bytes > VC_QS_MAX_CHUNK_BYTES) {
        lose(p, "section 'dirty-bitmap'");
        return;
    }
    p->skip = bytes;
    bitmap_next(p);
}

/* ---- vfio ---- */

static void on_vfio_tag(struct vc_qs_parser *p)
{
    switch (vc_load_be(p->acc, 8) - VFIO_TAG_BASE) {
    case VFIO_END_OF_STATE:
    case VFIO_INIT_DATA_SENT: /* ends the section by itself */
        vc_qs_section_end(p);
        break;
    case VFIO_SETUP:
    case VFIO_CONFIG_LOAD_READY:
        vc_qs_expect(p, VC_QS_ST_VFIO_TAG, 8);
        break;
    case VFIO_DATA:
        vc_qs_expect(p, VC_QS_ST_VFIO_LEN, 8);
        break;
    default: /* also CONFIG_STATE, a device's state without a length */
        lose(p, "section 'vfio'");
        break;
    }
}

/* ---- s390-storage_attributes ---- */

static void on_attr_record(struct vc_qs_parser *p)
{
    switch (vc_load_be(p->acc, 8) & ATTR_FLAGS_MASK) {
    case ATTR_EOS:
        vc_qs_section_end(p);
        break;
    case ATTR_MORE:
        vc_qs_expect(p, VC_QS_ST_ATTR_LEN, 8);
        break;
    case ATTR_ERROR:
    case ATTR_DONE:
        vc_qs_expect(p, VC_QS_ST_ATTR_RECORD, 8);
        break;
    default:
        lose(p, "section 's390-storage_attributes'");
        break;
    }
}

/* ---- spapr/htab ---- */

static void on_htab_header(struct vc_qs_parser *p)
{
    /* Otherwise it says that there is no table, or its size, and that is all. */
    if (vc_load_be(p->acc, 4) == HTAB_CHUNKS)
        vc_qs_expect(p, VC_QS_ST_HTAB_CHUNK, 8);
    else
        vc_qs_section_end(p);
}

static void on_htab_chunk(struct vc_qs_parser *p)
{
    uint64_t n_valid = vc_load_be(p->acc + 4, 2);

    if (vc_load_be(p->acc, 8) == 0) {
        vc_qs_section_end(p);
        return;
    }
    p->skip = n_valid * HTAB_ENTRY_BYTES;
    vc_qs_expect(p, VC_QS_ST_HTAB_CHUNK, 8);
}

/* ---- virtio-mem-device-early ---- */

static void on_vmem(struct vc_qs_parser *p)
{
    uint64_t region_bytes = vc_load_be(p->acc + 8, 8), block_bytes = vc_load_be(p->acc + 16, 8);
    uint64_t n_blocks = block_bytes ? region_bytes / block_bytes : UINT64_MAX;

    if (n_blocks / 8 > VC_QS_MAX_CHUNK_BYTES) {
        lose(p, "section 'virtio-mem-device-early'");
        return;
    }
    p->skip = (n_blocks + 63) / 64 * 8;
    vc_qs_section_end(p);
}

void vc_qs_iterable_field(struct vc_qs_parser *p)
{
    switch (p->state) {
    case VC_QS_ST_DISK_RECORD:
        on_disk_record(p);
        break;
    case VC_QS_ST_DISK_NAME:
        on_disk_name(p);
        break;
    case VC_QS_ST_BITMAP_FLAGS:
        on_bitmap_flags(p);
        break;
    case VC_QS_ST_BITMAP_NODE:
        on_bitmap_node(p);
        break;
    case VC_QS_ST_BITMAP_NAME:
        bitmap_body(p);
        break;
    case VC_QS_ST_BITMAP_BITS:
        on_bitmap_bits(p);
        break;
    case VC_QS_ST_BITMAP_LEN:
        on_bitmap_len(p);
        break;
    case VC_QS_ST_VFIO_TAG:
        on_vfio_tag(p);
        break;
    case VC_QS_ST_VFIO_LEN:
        pass_chunk(p, VC_QS_ST_VFIO_TAG, 8, "section 'vfio'");
        break;
    case VC_QS_ST_ATTR_RECORD:
        on_attr_record(p);
        break;
    case VC_QS_ST_ATTR_LEN:
        pass_chunk(p, VC_QS_ST_ATTR_RECORD, 8, "section 's390-storage_attributes'");
        break;
    case VC_QS_ST_HTAB_HEADER:
        on_htab_header(p);
        break;
    case VC_QS_ST_HTAB_CHUNK:
        on_htab_chunk(p);
        break;
    case VC_QS_ST_VMEM:
        on_vmem(p);
        break;
    default:
        break;
    }
}
