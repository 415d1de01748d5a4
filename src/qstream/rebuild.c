/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <assert.h>

#include "qstream/parser.h"

size_t vc_qs_rebuild(const struct vc_ram *ram, enum vc_qs_kind kind, uint16_t block,
                     struct vc_page page, bool named, uint8_t out[VC_QS_HEADER_MAX_BYTES])
{
    struct vc_writer w = vc_writer(out, VC_QS_HEADER_MAX_BYTES);
    uint64_t header = page.n * ram->page_bytes;

    assert(kind == VC_QS_PAGE || kind == VC_QS_ZERO);
    assert(block < ram->n_blocks && page.n < vc_ram_block_pages(ram, block));
    header |= kind == VC_QS_PAGE ? RAM_FLAG_PAGE : RAM_FLAG_ZERO;
    header |= named ? 0 : RAM_FLAG_CONTINUE;
    vc_store_be(vc_write_reserve(&w, 8), header, 8);
    if (named)
        vc_write_str8(&w, ram->blocks[block].name);
    if (kind == VC_QS_ZERO)
        vc_write_u8(&w, 0);
    return w.len;
}
