/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qstream/parser.h"

/* The size of a page is in no record. Streams say it (target-page-bits, POSTCOPY_ADVISE), or the
 * machine has but one, or else the first RAM records are read with each size in turn: with the
 * right one, record follows record; with a wrong one a header is soon read out of the middle of a
 * page. ZERO records carry no page, but the first pass names every page, so their offsets show the
 * size as their distance. */

/** Records looked at; a wrong size shows after one page. */
#define MAX_RECORDS 256

enum fit { FIT_NO, FIT_OPEN, FIT_YES };

struct walk {
    const struct vc_qs_parser *p;
    uint32_t page_bytes;
    const uint8_t *data;
    size_t len, off;
    int block;
    uint64_t last_offset;
    bool has_last, has_page, proven;
};

bool vc_qs_page_bytes_valid(uint64_t n)
{
    return n >= VC_MIN_PAGE_BYTES && n <= VC_MAX_PAGE_BYTES && !(n & (n - 1));
}

static bool blocks_fit(const struct vc_qs_parser *p, uint32_t page_bytes)
{
    for (uint32_t i = 0; i < p->ram.n_blocks; i++)
        if (p->ram.blocks[i].bytes % page_bytes)
            return false;
    return true;
}

void vc_qs_announce(struct vc_qs_parser *p, bool here)
{
    if (!p->ram_listed || !p->page_shift)
        return;
    if (!blocks_fit(p, p->ram.page_bytes)) {
        vc_qs_lose(p, true, "list of RAM blocks: a length is not a number of pages");
        return;
    }
    p->ram_announced = true;
    if (here)
        vc_qs_raise_here(p, VC_QS_EV_RAM);
    else
        vc_qs_raise(p, VC_QS_EV_RAM);
}

void vc_qs_page_bytes_set(struct vc_qs_parser *p, uint32_t n)
{
    p->ram.page_bytes = n;
    p->page_shift = (uint8_t)__builtin_ctz(n);
    vc_qs_announce(p, false);
}

/* Reads the block of a record. Returns FIT_YES to go on. */
static enum fit walk_block(struct walk *w, bool named)
{
    size_t n;
    int block;

    if (!named)
        return w->block < 0 ? FIT_NO : FIT_YES;
    if (w->off == w->len)
        return FIT_OPEN;
    n = w->data[w->off];
    if (w->len - w->off - 1 < n)
        return FIT_OPEN;
    block = vc_qs_blocks_find(w->p, w->data + w->off + 1, n);
    if (block < 0)
        return FIT_NO;
    w->has_last = w->has_last && block == w->block;
    w->block = block;
    w->off += 1 + n;
    return FIT_YES;
}

static enum fit walk_body(struct walk *w, unsigned kind)
{
    size_t n, left = w->len - w->off;

    if (kind == RAM_FLAG_PAGE) {
        n = w->page_bytes;
    } else if (kind == RAM_FLAG_ZERO) {
        n = 1;
    } else { /* COMPRESS_PAGE: the only other record of a first pass */
        if (left < 4)
            return FIT_OPEN;
        n = 4 + (size_t)vc_load_be(w->data + w->off, 4);
    }
    if (left < n)
        return FIT_OPEN;
    w->off += n;
    w->has_page = w->has_page || kind == RAM_FLAG_PAGE;
    return FIT_YES;
}

/* One record. FIT_YES: it is plausible, go on; FIT_OPEN: the data or the section end here. */
static enum fit walk_record(struct walk *w)
{
    uint64_t header, offset;
    unsigned kind;
    enum fit fit;

    if (w->len - w->off < 8)
        return FIT_OPEN;
    header = vc_qs_load_u64(w->data + w->off);
    offset = header & ~RAM_FLAGS_MASK;
    kind = header & RAM_FLAGS_MASK & ~(uint64_t)RAM_FLAG_CONTINUE;
    if (header == RAM_FLAG_EOS) {
        w->proven = w->proven || w->has_page;
        return FIT_OPEN;
    }
    w->off += 8;
    if (header == RAM_FLAG_MULTIFD_FLUSH || header == RAM_FLAG_HOOK)
        return FIT_YES;
    if (kind != RAM_FLAG_PAGE && kind != RAM_FLAG_ZERO && kind != RAM_FLAG_COMPRESS_PAGE)
        return FIT_NO;
    fit = walk_block(w, !(header & RAM_FLAG_CONTINUE));
    if (fit != FIT_YES)
        return fit;
    if (offset & (w->page_bytes - 1) || offset >= w->p->ram.blocks[w->block].bytes)
        return FIT_NO;
    w->proven =
        w->proven || w->has_page || (w->has_last && offset - w->last_offset == w->page_bytes);
    w->has_last = true;
    w->last_offset = offset;
    return walk_body(w, kind);
}

/* The answer must not depend on where the input happens to be cut: more of it may close what is
 * open, and never changes a yes or a no. So a size is proven where its proof ends, and no more is
 * looked at than can be waited for. */
static enum fit try_size(const struct vc_qs_parser *p, uint32_t page_bytes, const uint8_t *data,
                         size_t len)
{
    struct walk w = {
        .p = p,
        .page_bytes = page_bytes,
        .data = data,
        .len = VC_MIN(len, (size_t)VC_QS_NEED_MAX_BYTES),
        .block = p->block,
    };
    enum fit fit = FIT_YES;

    if (!blocks_fit(p, page_bytes))
        return FIT_NO;
    for (int i = 0; i < MAX_RECORDS && fit == FIT_YES; i++) {
        fit = walk_record(&w);
        if (w.proven)
            return FIT_YES;
    }
    return fit == FIT_NO ? FIT_NO : FIT_OPEN;
}

/* Sets the first size that is proven, else the first that is possible. False: more is needed. */
static bool choose(struct vc_qs_parser *p, const uint8_t *data, size_t len, bool may_wait)
{
    const uint32_t sizes[] = {p->page_bytes_hint, 4096, 1024, 8192, 16384, 65536};
    uint32_t possible = 0;

    for (size_t i = 0; i < VC_ARRAY_LEN(sizes); i++) {
        enum fit fit = try_size(p, sizes[i], data, len);

        if (fit == FIT_YES) {
            vc_qs_page_bytes_set(p, sizes[i]);
            return true;
        }
        if (fit == FIT_NO)
            continue;
        if (may_wait)
            return false;
        possible = possible ? possible : sizes[i];
    }
    if (possible)
        vc_qs_page_bytes_set(p, possible);
    else
        vc_qs_lose(p, true, "no page size fits the RAM records");
    return true;
}

bool vc_qs_page_bytes_settle(struct vc_qs_parser *p, const uint8_t *data, size_t len, bool flush)
{
    bool may_wait = !flush && len < VC_QS_NEED_MAX_BYTES;
    unsigned kind;

    if (!p->ram_listed)
        return true;
    if (len < 8) {
        /* The header of a page, most likely, but it cannot be waited for. */
        if (flush && p->section_type != QEMU_VM_SECTION_START)
            return choose(p, data, len, false);
        return flush;
    }
    kind =
        (unsigned)vc_qs_load_u64(data) & (RAM_FLAG_PAGE | RAM_FLAG_ZERO | RAM_FLAG_COMPRESS_PAGE);
    return !kind || choose(p, data, len, may_wait);
}
