/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qstream/parser.h"

/* Where parsing has stopped, bytes pass unread until an anchor: a string that a section of RAM
 * begins with and that is unlikely anywhere else. It is a hint like all of parsing, and one that a
 * guest could forge in a page; then parsing stops again soon.
 *
 *   START    the RAM section's own header, as long as none was seen: 13 known bytes of 17
 *   RECORD   the footer of any section, the RAM section's PART or END, and a PAGE or ZERO record of
 *            a known block, or one that continues a block. A block that was named before the anchor
 *            is not known, so after the latter parsing goes on quietly until a name occurs.
 *
 * No byte is held back: the anchor itself has passed when it is recognised, and with it the header
 * of its first record, whose page therefore stays unknown. An anchor may be cut anywhere between
 * calls, so what may be the beginning of one is kept in a window. Each byte is looked at a bounded
 * number of times. */

#define START_BYTES 17u
#define RECORD_TYPE 5u
#define RECORD_ID 6u
#define RECORD_HEADER 10u
#define RECORD_NAME 18u

enum match { MATCH_NO, MATCH_PARTLY, MATCH_YES };

static enum match match_start(const uint8_t *d, size_t len)
{
    static const uint8_t tail[] = {3, 'r', 'a', 'm', 0, 0, 0, 0, 0, 0, 0, 4};
    const size_t head = START_BYTES - sizeof(tail);

    if (len > head && memcmp(d + head, tail, VC_MIN(len - head, sizeof(tail))) != 0)
        return MATCH_NO;
    return len < START_BYTES ? MATCH_PARTLY : MATCH_YES;
}

static bool offset_is_in(const struct vc_qs_parser *p, uint32_t block, uint64_t offset)
{
    return offset < p->ram.blocks[block].bytes;
}

static enum match match_name(const struct vc_qs_parser *p, const uint8_t *d, size_t len,
                             uint64_t offset, size_t *bytes)
{
    int block;

    if (len <= RECORD_NAME || len - RECORD_NAME - 1 < d[RECORD_NAME])
        return MATCH_PARTLY;
    block = vc_qs_blocks_find(p, d + RECORD_NAME + 1, d[RECORD_NAME]);
    if (block < 0 || !offset_is_in(p, (uint32_t)block, offset))
        return MATCH_NO;
    *bytes = RECORD_NAME + 1u + d[RECORD_NAME];
    return MATCH_YES;
}

static enum match match_header(const struct vc_qs_parser *p, const uint8_t *d, size_t len,
                               size_t *bytes)
{
    uint64_t header = vc_qs_load_u64(d + RECORD_HEADER);
    uint64_t offset = header & ~RAM_FLAGS_MASK;
    unsigned kind = header & RAM_FLAGS_MASK & ~(uint64_t)RAM_FLAG_CONTINUE;

    if (kind != RAM_FLAG_PAGE && kind != RAM_FLAG_ZERO)
        return MATCH_NO;
    if (p->page_shift && offset & (p->ram.page_bytes - 1))
        return MATCH_NO;
    if (!(header & RAM_FLAG_CONTINUE))
        return match_name(p, d, len, offset, bytes);
    *bytes = RECORD_NAME;
    for (uint32_t i = 0; i < p->ram.n_blocks; i++)
        if (offset_is_in(p, i, offset))
            return MATCH_YES;
    return MATCH_NO;
}

static enum match match_record(const struct vc_qs_parser *p, const uint8_t *d, size_t len,
                               size_t *bytes)
{
    uint8_t id[4];

    if (len > RECORD_TYPE && d[RECORD_TYPE] != QEMU_VM_SECTION_PART &&
        d[RECORD_TYPE] != QEMU_VM_SECTION_END)
        return MATCH_NO;
    vc_store_be(id, p->ram_id, 4);
    if (len > RECORD_ID && memcmp(d + RECORD_ID, id, VC_MIN(len - RECORD_ID, sizeof(id))) != 0)
        return MATCH_NO;
    return len < RECORD_NAME ? MATCH_PARTLY : match_header(p, d, len, bytes);
}

/* The first anchor that is complete. *start is where it begins, or where the first incomplete one
 * does; len if there is neither. Returns its length, or 0. */
static size_t search(const struct vc_qs_parser *p, const uint8_t *d, size_t len, size_t *start)
{
    int first = p->ram_started ? QEMU_VM_SECTION_FOOTER : QEMU_VM_SECTION_START;
    const uint8_t *at = d;
    size_t partly = len, bytes = START_BYTES;

    while ((at = memchr(at, first, len - (size_t)(at - d))) != NULL) {
        size_t pos = (size_t)(at - d);
        enum match m =
            p->ram_started ? match_record(p, at, len - pos, &bytes) : match_start(at, len - pos);

        if (m == MATCH_YES) {
            *start = pos;
            return bytes;
        }
        if (m == MATCH_PARTLY && partly == len)
            partly = pos;
        at++;
    }
    *start = partly;
    return 0;
}

static void resume_start(struct vc_qs_parser *p, const uint8_t *d)
{
    p->section_type = QEMU_VM_SECTION_START;
    p->section_id = p->ram_id = (uint32_t)vc_load_be(d + 1, 4);
    p->section_kind = VC_QS_IT_RAM;
    p->section_seen = true;
    p->ram_started = true;
    if (!vc_qs_section_add(p, p->section_id, VC_QS_IT_RAM)) {
        vc_qs_lose(p, true, "more than %u sections", VC_QS_MAX_SECTIONS);
        return;
    }
    vc_qs_raise(p, VC_QS_EV_RESUMED);
    vc_qs_ram_begin(p);
}

static void resume_record(struct vc_qs_parser *p, const uint8_t *d)
{
    uint64_t header = vc_qs_load_u64(d + RECORD_HEADER);

    p->section_type = d[RECORD_TYPE];
    p->section_id = p->ram_id;
    p->section_kind = VC_QS_IT_RAM;
    p->ram_part_seen = true;
    p->quiet = true;
    p->record_flags = header & RAM_FLAGS_MASK;
    vc_qs_set_block(p, header & RAM_FLAG_CONTINUE
                           ? -1
                           : vc_qs_blocks_find(p, d + RECORD_NAME + 1, d[RECORD_NAME]));
    vc_qs_ram_skip_body(p);
    if (!p->page_shift)
        vc_qs_page_bytes_set(p, p->page_bytes_hint);
}

static void resume(struct vc_qs_parser *p, const uint8_t *d)
{
    p->n_window = 0;
    p->n_resumes++;
    if (p->ram_started)
        resume_record(p, d);
    else
        resume_start(p, d);
}

static void keep(struct vc_qs_parser *p, const uint8_t *d, size_t n)
{
    memmove(p->window, d, n);
    p->n_window = n;
}

size_t vc_qs_scan(struct vc_qs_parser *p, const uint8_t *data, size_t len)
{
    size_t start, bytes;

    if (p->n_window) {
        size_t old = p->n_window;
        size_t n = VC_MIN(len, VC_QS_WINDOW_BYTES - old);

        memcpy(p->window + old, data, n);
        bytes = search(p, p->window, old + n, &start);
        if (bytes && (start < old || n == len)) {
            resume(p, p->window + start);
            return start + bytes - old;
        }
        if (n == len) {
            keep(p, p->window + start, old + n - start);
            return len;
        }
        p->n_window = 0;
    }
    bytes = search(p, data, len, &start);
    if (bytes) {
        resume(p, data + start);
        return start + bytes;
    }
    keep(p, data + start, len - start);
    return len;
}
