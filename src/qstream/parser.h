/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_QSTREAM_PARSER_H
#define VC_QSTREAM_PARSER_H

#include <endian.h>
#include <string.h>

#include "base/bytes.h"
#include "qstream/qstream.h"

/* Private to src/qstream: the parser's state, and what its files call of each other.
 *
 *   parser.c     the push loop: bytes to fields, events to items
 *   stream.c     file header, configuration, commands, section headers and footers
 *   discard.c    what a switch to postcopy takes back
 *   ram.c        records of the RAM section: the fast path, and the slow one field by field
 *   blocks.c     the list of RAM blocks, and looking them up
 *   pagesize.c   finding the page size where the stream does not say it
 *   iterables.c  the other sections that have a grammar
 *   scan.c       searching for an anchor after parsing has stopped */

/** Live sections (START seen) that the parser keeps apart; QEMU has one a device that iterates. */
#define VC_QS_MAX_SECTIONS 64
/** Resumptions after which a stream that loses the parser again and again stays verbatim. */
#define VC_QS_MAX_RESUMES 64
/** Longest chunk with a length of its own that is believed (VFIO data, bitmaps, attributes). */
#define VC_QS_MAX_CHUNK_BYTES (1ull << 30)
/** Longest machine name. */
#define VC_QS_MAX_MACHINE_NAME 255

/* Section types and commands: QEMU migration/savevm.h, savevm.c (enum qemu_vm_cmd). */
#define QEMU_VM_EOF 0x00
#define QEMU_VM_SECTION_START 0x01
#define QEMU_VM_SECTION_PART 0x02
#define QEMU_VM_SECTION_END 0x03
#define QEMU_VM_SECTION_FULL 0x04
#define QEMU_VM_SUBSECTION 0x05
#define QEMU_VM_CONFIGURATION 0x07
#define QEMU_VM_COMMAND 0x08
#define QEMU_VM_SECTION_FOOTER 0x7e

/* Flags of a RAM record's header: QEMU migration/ram.c, from 10.0 ram.h. */
#define RAM_FLAG_ZERO 0x002u
#define RAM_FLAG_MEM_SIZE 0x004u
#define RAM_FLAG_PAGE 0x008u
#define RAM_FLAG_EOS 0x010u
#define RAM_FLAG_CONTINUE 0x020u
#define RAM_FLAG_XBZRLE 0x040u
#define RAM_FLAG_HOOK 0x080u
#define RAM_FLAG_COMPRESS_PAGE 0x100u
#define RAM_FLAG_MULTIFD_FLUSH 0x200u
/** All bits that may carry flags: the smallest page is 1 KiB. The page size plays no part. */
#define RAM_FLAGS_MASK 0x3ffull

/* What field the parser waits for, or passes. The order groups states by the file that takes them.
 */
enum vc_qs_state {
    /* stream.c */
    VC_QS_ST_HEADER,
    VC_QS_ST_TYPE,
    VC_QS_ST_MACHINE_LEN,
    VC_QS_ST_MACHINE,
    VC_QS_ST_SUB_NAME,
    VC_QS_ST_SUB_VERSION,
    VC_QS_ST_PAGE_BITS,
    VC_QS_ST_N_CAPS,
    VC_QS_ST_CAP,
    VC_QS_ST_COMMAND,
    VC_QS_ST_ADVISE,
    VC_QS_ST_PACKAGED,
    VC_QS_ST_SECTION_ID,
    VC_QS_ST_IDSTR,
    VC_QS_ST_VERSION,
    VC_QS_ST_FOOTER,
    VC_QS_ST_STREAM_LAST = VC_QS_ST_FOOTER,
    /* discard.c */
    VC_QS_ST_DISCARD_VERSION,
    VC_QS_ST_DISCARD_NAME,
    VC_QS_ST_DISCARD_ZERO,
    VC_QS_ST_DISCARD_RANGE,
    VC_QS_ST_DISCARD_LAST = VC_QS_ST_DISCARD_RANGE,
    /* blocks.c */
    VC_QS_ST_BLOCK_NAME,
    VC_QS_ST_BLOCK_BYTES,
    VC_QS_ST_BLOCK_PEEK,
    VC_QS_ST_BLOCK_PAGE_SIZE,
    VC_QS_ST_LAST_PEEK,
    VC_QS_ST_BLOCKS_LAST = VC_QS_ST_LAST_PEEK,
    /* ram.c */
    VC_QS_ST_RECORD,
    VC_QS_ST_RECORD_NAME,
    VC_QS_ST_XBZRLE,
    VC_QS_ST_COMPRESSED,
    VC_QS_ST_RAM_LAST = VC_QS_ST_COMPRESSED,
    /* iterables.c */
    VC_QS_ST_DISK_RECORD,
    VC_QS_ST_DISK_NAME,
    VC_QS_ST_BITMAP_FLAGS,
    VC_QS_ST_BITMAP_NODE,
    VC_QS_ST_BITMAP_NAME,
    VC_QS_ST_BITMAP_BITS,
    VC_QS_ST_BITMAP_LEN,
    VC_QS_ST_VFIO_TAG,
    VC_QS_ST_VFIO_LEN,
    VC_QS_ST_ATTR_RECORD,
    VC_QS_ST_ATTR_LEN,
    VC_QS_ST_HTAB_HEADER,
    VC_QS_ST_HTAB_CHUNK,
    VC_QS_ST_VMEM,
    /* parser.c: no fields any more */
    VC_QS_ST_SCAN,
    VC_QS_ST_VERBATIM,
};

/* Sections whose START, PART and END have a grammar. */
enum vc_qs_iterable {
    VC_QS_IT_NONE,
    VC_QS_IT_RAM,
    VC_QS_IT_DISK,
    VC_QS_IT_BITMAP,
    VC_QS_IT_VFIO,
    VC_QS_IT_ATTR,
    VC_QS_IT_HTAB,
};

/* Anchors, the byte strings that parsing resumes at:
 *   START    01 <id> 03 "ram" <instance 0> <version 4>
 *   RECORD   7e <id> 02|03 <ram id> <header of PAGE or ZERO> [<length> <block name>] */
#define VC_QS_ANCHOR_MAX_BYTES (1 + 4 + 1 + 4 + 8 + 1 + 255)
/** A window that holds the end of the last call's bytes and the beginning of this one's. */
#define VC_QS_WINDOW_BYTES (2 * VC_QS_ANCHOR_MAX_BYTES)

enum vc_qs_footers { VC_QS_FOOTERS_UNKNOWN, VC_QS_FOOTERS_YES, VC_QS_FOOTERS_NO };

struct vc_qs_section {
    uint32_t id;
    enum vc_qs_iterable kind;
};

struct vc_qs_parser {
    /* The hot part. */
    bool ready;           /* at the start of a RAM record: the fast path applies */
    bool quiet;           /* an anchor was found, but not yet a record that resumes */
    uint8_t page_shift;   /* 0: the page size is not settled */
    unsigned pending;     /* events of the next item */
    int block;            /* of the last record (CONTINUE means this one), or -1 */
    uint64_t block_bytes; /* its length; 0 if there is none */
    uint64_t data_records, zero_records; /* vc_qs_records() */

    /* The field being gathered. */
    enum vc_qs_state state;
    uint64_t skip; /* bytes to pass before it */
    unsigned have, want;
    bool counted; /* its first byte counts those that follow */
    uint8_t acc[1 + 255];

    /* Placing events. */
    bool here;              /* the events just raised belong to the field's last byte */
    unsigned ahead;         /* bytes (0 or 1) that were taken in, but are not in an item yet */
    uint16_t unknown_block; /* of a pending EV_UNKNOWN */
    struct vc_page unknown_page;
    uint64_t unknown_count;

    /* The stream. */
    bool is_qemu, is_recovery;
    bool in_configuration; /* subsections may follow */
    bool at_start;         /* nothing but the file header has passed */
    bool section_seen;
    bool page_bytes_said; /* the stream names its page size (target-page-bits) */
    uint32_t page_bytes_hint;
    enum { VC_QS_SUB_PAGE_BITS, VC_QS_SUB_CAPS, VC_QS_SUB_UUID } subsection;
    uint16_t discard_left; /* bytes of a POSTCOPY_RAM_DISCARD not yet expected */
    uint16_t discard_block;
    uint32_t package_bytes;  /* of the last PACKAGED */
    uint64_t postcopy_sizes; /* POSTCOPY_ADVISE: all page sizes of blocks, OR-ed; 0: none seen */

    /* The section. */
    uint8_t section_type;
    uint32_t section_id;
    enum vc_qs_iterable section_kind;
    bool early; /* it is the FULL section of virtio-mem-early */
    bool footer_due;
    enum vc_qs_footers footers;
    uint32_t n_sections;
    struct vc_qs_section sections[VC_QS_MAX_SECTIONS];
    uint8_t bitmap_flags;

    /* RAM. */
    bool ram_started, ram_listed, ram_announced, ram_part_seen, ram_ended;
    uint32_t ram_id;
    uint64_t list_left_bytes; /* the block list: length still to come */
    uint32_t record_flags;
    uint64_t record_offset;
    uint8_t name_len[VC_MAX_BLOCKS];
    struct vc_ram ram;

    /* Losing and finding. */
    unsigned n_resumes;
    size_t n_window;
    uint8_t window[VC_QS_WINDOW_BYTES];
    char reason[160];
};

/* ---- parser.c ---- */

/** The next field has n bytes (1 to 256) and goes to this state's handler. */
static inline void vc_qs_expect(struct vc_qs_parser *p, enum vc_qs_state state, unsigned n)
{
    p->state = state;
    p->want = n;
    p->counted = false;
}

/** The next field is a counted string: acc[0] is its length. */
static inline void vc_qs_expect_str(struct vc_qs_parser *p, enum vc_qs_state state)
{
    p->state = state;
    p->want = 1;
    p->counted = true;
}

/** Events of the item that begins behind the present field. */
static inline void vc_qs_raise(struct vc_qs_parser *p, unsigned events)
{
    p->pending |= events;
}

/** Events of the item that begins with the present field's last byte: for fields that nothing
 *  need follow soon. */
static inline void vc_qs_raise_here(struct vc_qs_parser *p, unsigned events)
{
    p->pending |= events;
    p->here = true;
}

/** Parsing stops, with EV_LOST (EV_TAIL once RAM has ended): for good, or until an anchor. The
 *  reason is one phrase; bytes of the stream in it are made printable. */
void vc_qs_lose(struct vc_qs_parser *p, bool for_good, const char *fmt, ...) VC_PRINTF(3, 4);

static inline void vc_qs_opaque(struct vc_qs_item *item, size_t bytes, unsigned events)
{
    *item = (struct vc_qs_item){.kind = VC_QS_OPAQUE, .bytes = bytes, .events = events};
}

/* ---- stream.c ---- */

/** Looks at a type byte before it is taken: true if it raised events, which begin with it. */
bool vc_qs_stream_peek(struct vc_qs_parser *p, uint8_t type);
void vc_qs_stream_field(struct vc_qs_parser *p);
/** The section's payload has ended: a footer may follow, or the next type byte. */
void vc_qs_section_end(struct vc_qs_parser *p);
/** Notes a section. False: the table is full. */
bool vc_qs_section_add(struct vc_qs_parser *p, uint32_t id, enum vc_qs_iterable kind);

/* ---- blocks.c ---- */

void vc_qs_blocks_begin(struct vc_qs_parser *p, uint64_t total_bytes);
void vc_qs_blocks_field(struct vc_qs_parser *p);
/** The block of that name, or -1. */
int vc_qs_blocks_find(const struct vc_qs_parser *p, const uint8_t *name, size_t n);

static inline void vc_qs_set_block(struct vc_qs_parser *p, int block)
{
    p->block = block;
    p->block_bytes = block < 0 ? 0 : p->ram.blocks[block].bytes;
}

/* ---- discard.c ---- */

/** The command's payload of @len bytes is next. */
void vc_qs_discard_begin(struct vc_qs_parser *p, uint16_t len);
void vc_qs_discard_field(struct vc_qs_parser *p);

/* ---- ram.c ---- */

/** At the start of a record: reads one whole record, or answers NEED. False: field by field. */
bool vc_qs_ram_record(struct vc_qs_parser *p, const uint8_t *data, size_t len, bool flush,
                      struct vc_qs_item *item);
void vc_qs_ram_begin(struct vc_qs_parser *p);
void vc_qs_ram_field(struct vc_qs_parser *p);
/** Takes a record's header that was already read. */
void vc_qs_ram_header(struct vc_qs_parser *p, uint64_t header);
/** Passes the rest of the PAGE or ZERO record in record_flags. */
void vc_qs_ram_skip_body(struct vc_qs_parser *p);

/* ---- pagesize.c ---- */

bool vc_qs_page_bytes_valid(uint64_t n);
/** Settles the page size; once the blocks are known too, see vc_qs_announce(). */
void vc_qs_page_bytes_set(struct vc_qs_parser *p, uint32_t n);
/** Raises EV_RAM if both blocks and page size are known, or loses if they do not fit. */
void vc_qs_announce(struct vc_qs_parser *p, bool here);
/** At the start of a RAM record with the page size unsettled: false if more bytes are needed. */
bool vc_qs_page_bytes_settle(struct vc_qs_parser *p, const uint8_t *data, size_t len, bool flush);

/* ---- iterables.c ---- */

/** The kind of section with this name. */
enum vc_qs_iterable vc_qs_iterable_of(const uint8_t *idstr, size_t n);
/** The version of it that is understood; QEMU has only ever had one. */
uint32_t vc_qs_iterable_version(enum vc_qs_iterable kind);
/** Fixed part of virtio-mem-device-early: u64 addr, region, block size; u32 node; u64 size. */
#define VC_QS_VMEM_BYTES 36
void vc_qs_iterable_begin(struct vc_qs_parser *p);
void vc_qs_iterable_field(struct vc_qs_parser *p);

/* ---- scan.c ---- */

/** Passes bytes until an anchor has ended. Returns how many (all, if there is none). */
size_t vc_qs_scan(struct vc_qs_parser *p, const uint8_t *data, size_t len);

static inline uint64_t vc_qs_load_u64(const uint8_t *d)
{
    uint64_t v;

    memcpy(&v, d, sizeof(v));
    return be64toh(v);
}

#endif
