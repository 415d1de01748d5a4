/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qstream/parser.h"

/* Records of the RAM section, version 4 (QEMU migration/ram.c: ram_save_page_header,
 * save_zero_page, save_xbzrle_page, ram_load_precopy): a header of 8 bytes, offset and flags; the
 * block's name unless CONTINUE says that it is the last one's (in this channel: sections do not
 * reset it); and what the flag asks for. */

/** XBZRLE: the marker that comes before its length (ENCODING_FLAG_XBZRLE). */
#define XBZRLE_MARK 0x01
/** zlib's compressBound() of a page is little more than the page. */
#define MAX_COMPRESSED_BYTES(page_bytes) (2 * (page_bytes))

enum found { FOUND, SHORT, BAD };

struct record {
    unsigned kind; /* one of RAM_FLAG_{PAGE,ZERO,XBZRLE,COMPRESS_PAGE} */
    bool named;
    int block;
    uint64_t offset;
    size_t head_bytes; /* header and name */
};

static bool is_page_kind(unsigned kind)
{
    return kind == RAM_FLAG_PAGE || kind == RAM_FLAG_ZERO || kind == RAM_FLAG_XBZRLE ||
           kind == RAM_FLAG_COMPRESS_PAGE;
}

/* ---- the fast path ---- */

/* Reads a record's name, which makes its block the present one. */
static enum found take_name(struct vc_qs_parser *p, const uint8_t *data, size_t len,
                            struct record *r)
{
    size_t n;
    int block;

    if (len < 9)
        return SHORT;
    n = data[8];
    if (len - 9 < n)
        return SHORT;
    block = vc_qs_blocks_find(p, data + 9, n);
    if (block < 0)
        return BAD;
    r->head_bytes = 9 + n;
    r->block = block;
    return FOUND;
}

/* Bytes of a record behind its head. */
static enum found body_bytes(const struct vc_qs_parser *p, const struct record *r,
                             const uint8_t *data, size_t len, size_t *bytes)
{
    const uint8_t *body = data + r->head_bytes;
    size_t have = len - r->head_bytes, n;

    switch (r->kind) {
    case RAM_FLAG_PAGE:
        *bytes = p->ram.page_bytes;
        return FOUND;
    case RAM_FLAG_ZERO:
        *bytes = 1;
        return FOUND;
    case RAM_FLAG_XBZRLE:
        if (have < 3)
            return SHORT;
        n = (size_t)vc_load_be(body + 1, 2);
        *bytes = 3 + n;
        return body[0] == XBZRLE_MARK && n <= p->ram.page_bytes ? FOUND : BAD;
    default:
        if (have < 4)
            return SHORT;
        n = (size_t)vc_load_be(body, 4);
        *bytes = 4 + n;
        return n <= MAX_COMPRESSED_BYTES(p->ram.page_bytes) ? FOUND : BAD;
    }
}

static bool need(bool flush, size_t len, struct vc_qs_item *item)
{
    if (flush || len >= VC_QS_NEED_MAX_BYTES)
        return false;
    *item = (struct vc_qs_item){.kind = VC_QS_NEED};
    return true;
}

/* As QEMU counts them (ram.normal, ram.duplicate), whatever becomes of them here. */
static void count(struct vc_qs_parser *p, unsigned kind)
{
    p->data_records += kind == RAM_FLAG_PAGE;
    p->zero_records += kind == RAM_FLAG_ZERO;
}

static void found(struct vc_qs_parser *p, const struct record *r, size_t body, const uint8_t *data,
                  struct vc_qs_item *item)
{
    count(p, r->kind);
    item->events = p->pending;
    p->pending = 0;
    vc_qs_set_block(p, r->block);
    if (p->quiet) {
        p->quiet = false;
        item->events |= VC_QS_EV_RESUMED;
    }
    if (r->kind == RAM_FLAG_PAGE) {
        item->kind = VC_QS_PAGE;
    } else if (r->kind == RAM_FLAG_ZERO && data[r->head_bytes] == 0) {
        item->kind = VC_QS_ZERO;
    } else {
        item->kind = VC_QS_OPAQUE;
        item->events |= VC_QS_EV_UNKNOWN;
    }
    item->bytes = r->head_bytes + body;
    item->header_bytes = item->kind == VC_QS_PAGE ? (uint32_t)r->head_bytes : 0;
    item->block = (uint16_t)r->block;
    item->named = r->named;
    item->page = vc_page(r->offset >> p->page_shift);
    item->count = 1;
}

bool vc_qs_ram_record(struct vc_qs_parser *p, const uint8_t *data, size_t len, bool flush,
                      struct vc_qs_item *item)
{
    struct record r = {.block = p->block, .head_bytes = 8};
    uint64_t header, block_bytes;
    enum found f;
    size_t body;

    if (!p->page_shift) {
        if (!vc_qs_page_bytes_settle(p, data, len, flush))
            return need(flush, len, item);
        if (!p->page_shift)
            return false;
    }
    if (len < 8)
        return need(flush, len, item);
    header = vc_qs_load_u64(data);
    r.kind = header & RAM_FLAGS_MASK & ~(uint64_t)RAM_FLAG_CONTINUE;
    r.offset = header & ~RAM_FLAGS_MASK;
    if (!is_page_kind(r.kind))
        return false;
    block_bytes = p->block_bytes;
    if (!(header & RAM_FLAG_CONTINUE)) {
        r.named = true;
        f = take_name(p, data, len, &r);
        if (f != FOUND)
            return f == SHORT && need(flush, len, item);
        block_bytes = p->ram.blocks[r.block].bytes;
    }
    /* Blocks are whole pages, so the page is inside if its offset is. */
    if (r.offset >= block_bytes || r.offset & (p->ram.page_bytes - 1))
        return false;
    f = body_bytes(p, &r, data, len, &body);
    if (f != FOUND || len - r.head_bytes < body)
        return f != BAD && need(flush, len, item);
    found(p, &r, body, data, item);
    return true;
}

/* ---- field by field ---- */

void vc_qs_ram_begin(struct vc_qs_parser *p)
{
    vc_qs_expect(p, VC_QS_ST_RECORD, 8);
}

void vc_qs_ram_skip_body(struct vc_qs_parser *p)
{
    p->skip = p->record_flags & RAM_FLAG_PAGE ? p->ram.page_bytes : 1;
    vc_qs_expect(p, VC_QS_ST_RECORD, 8);
}

/* Header and name were read: the page is not known from here on. */
static void page_record(struct vc_qs_parser *p)
{
    bool known = p->block >= 0;
    uint64_t limit = known ? p->block_bytes : VC_MAX_BLOCK_BYTES;

    if (!p->page_shift || !p->ram_announced) {
        vc_qs_lose(p, false, "a RAM page comes before the list of blocks");
        return;
    }
    if (!known && !p->quiet) {
        vc_qs_lose(p, false, "a RAM record continues no block");
        return;
    }
    if (p->record_offset >= limit || p->record_offset & (p->ram.page_bytes - 1)) {
        vc_qs_lose(p, false, "a RAM record has an impossible offset");
        return;
    }
    count(p, p->record_flags & ~RAM_FLAG_CONTINUE);
    if (known) {
        vc_qs_raise(p, VC_QS_EV_UNKNOWN | (p->quiet ? VC_QS_EV_RESUMED : 0u));
        p->quiet = false;
        p->unknown_block = (uint16_t)p->block;
        p->unknown_page = vc_page(p->record_offset >> p->page_shift);
        p->unknown_count = 1;
    }
    if (p->record_flags & RAM_FLAG_XBZRLE)
        vc_qs_expect(p, VC_QS_ST_XBZRLE, 3);
    else if (p->record_flags & RAM_FLAG_COMPRESS_PAGE)
        vc_qs_expect(p, VC_QS_ST_COMPRESSED, 4);
    else
        vc_qs_ram_skip_body(p);
}

static void on_name(struct vc_qs_parser *p)
{
    int block = vc_qs_blocks_find(p, p->acc + 1, p->acc[0]);

    if (block < 0) {
        vc_qs_lose(p, false, "unknown RAM block '%.*s'", p->acc[0], (const char *)p->acc + 1);
        return;
    }
    vc_qs_set_block(p, block);
    page_record(p);
}

static void on_eos(struct vc_qs_parser *p)
{
    if (p->section_type == QEMU_VM_SECTION_END) {
        p->ram_ended = true;
        vc_qs_raise_here(p, VC_QS_EV_RAM_END);
    }
    vc_qs_section_end(p);
}

void vc_qs_ram_header(struct vc_qs_parser *p, uint64_t header)
{
    unsigned flags = header & RAM_FLAGS_MASK;
    unsigned kind = flags & ~RAM_FLAG_CONTINUE;

    p->record_flags = flags;
    p->record_offset = header & ~RAM_FLAGS_MASK;
    if (header == RAM_FLAG_EOS)
        on_eos(p);
    else if (header == RAM_FLAG_HOOK || header == RAM_FLAG_MULTIFD_FLUSH)
        vc_qs_expect(p, VC_QS_ST_RECORD, 8);
    else if (flags == RAM_FLAG_MEM_SIZE && p->section_type == QEMU_VM_SECTION_START &&
             !p->ram_listed)
        vc_qs_blocks_begin(p, p->record_offset);
    else if (!is_page_kind(kind))
        vc_qs_lose(p, false, "a RAM record has unknown flags (0x%x)", flags);
    else if (flags & RAM_FLAG_CONTINUE)
        page_record(p);
    else
        vc_qs_expect_str(p, VC_QS_ST_RECORD_NAME);
}

static void on_xbzrle(struct vc_qs_parser *p)
{
    uint16_t n = (uint16_t)vc_load_be(p->acc + 1, 2);

    if (p->acc[0] != XBZRLE_MARK || n > p->ram.page_bytes) {
        vc_qs_lose(p, false, "an XBZRLE record is not well formed");
        return;
    }
    p->skip = n;
    vc_qs_expect(p, VC_QS_ST_RECORD, 8);
}

static void on_compressed(struct vc_qs_parser *p)
{
    uint32_t n = (uint32_t)vc_load_be(p->acc, 4);

    if (n > MAX_COMPRESSED_BYTES(p->ram.page_bytes)) {
        vc_qs_lose(p, false, "a compressed page has %u bytes", n);
        return;
    }
    p->skip = n;
    vc_qs_expect(p, VC_QS_ST_RECORD, 8);
}

void vc_qs_ram_field(struct vc_qs_parser *p)
{
    switch (p->state) {
    case VC_QS_ST_RECORD:
        vc_qs_ram_header(p, vc_load_be(p->acc, 8));
        break;
    case VC_QS_ST_RECORD_NAME:
        on_name(p);
        break;
    case VC_QS_ST_XBZRLE:
        on_xbzrle(p);
        break;
    case VC_QS_ST_COMPRESSED:
        on_compressed(p);
        break;
    default:
        break;
    }
}
