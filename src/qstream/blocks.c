/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qstream/parser.h"

/* The list of RAM blocks in the START of the RAM section (QEMU migration/ram.c: ram_save_setup,
 * parse_ramblocks): name and length of each, until the lengths add up to the announced total.
 *
 * With postcopy a block whose page size is not the usual one has that size behind its length, and
 * nothing says whether it is there. What follows tells: a name begins with its length, which is
 * never 0, a page size with a zero byte; after the last block a page size has none of the bits
 * that every record has. */

static bool name_is(const struct vc_qs_parser *p, uint32_t i, const uint8_t *name, size_t n)
{
    return p->name_len[i] == n && !memcmp(p->ram.blocks[i].name, name, n);
}

int vc_qs_blocks_find(const struct vc_qs_parser *p, const uint8_t *name, size_t n)
{
    if (p->block >= 0 && name_is(p, (uint32_t)p->block, name, n))
        return p->block;
    for (uint32_t i = 0; i < p->ram.n_blocks; i++)
        if (name_is(p, i, name, n))
            return (int)i;
    return -1;
}

static void lose(struct vc_qs_parser *p, const char *why)
{
    p->ram.n_blocks = 0;
    vc_qs_lose(p, true, "list of RAM blocks: %s", why);
}

static void list_done(struct vc_qs_parser *p)
{
    p->ram_listed = true;
    if (p->postcopy_sizes)
        vc_qs_expect(p, VC_QS_ST_LAST_PEEK, 8);
    else
        vc_qs_expect(p, VC_QS_ST_RECORD, 8);
    vc_qs_announce(p, true);
}

void vc_qs_blocks_begin(struct vc_qs_parser *p, uint64_t total_bytes)
{
    p->list_left_bytes = total_bytes;
    if (total_bytes)
        vc_qs_expect_str(p, VC_QS_ST_BLOCK_NAME);
    else
        lose(p, "it is empty");
}

static void on_name(struct vc_qs_parser *p)
{
    size_t n = p->acc[0];
    uint32_t i = p->ram.n_blocks;

    if (n == 0 || memchr(p->acc + 1, 0, n))
        lose(p, "a name is not a name");
    else if (i == VC_MAX_BLOCKS)
        lose(p, "too many blocks");
    else if (vc_qs_blocks_find(p, p->acc + 1, n) >= 0)
        lose(p, "a name occurs twice");
    else {
        memcpy(p->ram.blocks[i].name, p->acc + 1, n);
        p->ram.blocks[i].name[n] = 0;
        p->name_len[i] = (uint8_t)n;
        vc_qs_expect(p, VC_QS_ST_BLOCK_BYTES, 8);
    }
}

static void on_bytes(struct vc_qs_parser *p)
{
    uint64_t bytes = vc_load_be(p->acc, 8);

    if (bytes > p->list_left_bytes || bytes > VC_MAX_BLOCK_BYTES || bytes % VC_MIN_PAGE_BYTES) {
        lose(p, "a length is impossible");
        return;
    }
    p->ram.blocks[p->ram.n_blocks++].bytes = bytes;
    p->list_left_bytes -= bytes;
    if (!p->list_left_bytes)
        list_done(p);
    else if (p->postcopy_sizes)
        vc_qs_expect(p, VC_QS_ST_BLOCK_PEEK, 1);
    else
        vc_qs_expect_str(p, VC_QS_ST_BLOCK_NAME);
}

/* Not the last block: the byte begins a name or a page size, and stays in acc[]. */
static void on_peek(struct vc_qs_parser *p)
{
    if (p->acc[0])
        vc_qs_expect(p, VC_QS_ST_BLOCK_NAME, 1u + p->acc[0]);
    else
        vc_qs_expect(p, VC_QS_ST_BLOCK_PAGE_SIZE, 8);
    p->have = 1;
}

static bool is_postcopy_size(const struct vc_qs_parser *p, uint64_t n)
{
    return n && !(n & (n - 1)) && !(n & RAM_FLAGS_MASK) && (n & p->postcopy_sizes);
}

static void on_page_size(struct vc_qs_parser *p)
{
    if (is_postcopy_size(p, vc_load_be(p->acc, 8)))
        vc_qs_expect_str(p, VC_QS_ST_BLOCK_NAME);
    else
        lose(p, "a page size is impossible");
}

static void on_last_peek(struct vc_qs_parser *p)
{
    uint64_t v = vc_load_be(p->acc, 8);

    if (is_postcopy_size(p, v))
        vc_qs_expect(p, VC_QS_ST_RECORD, 8);
    else
        vc_qs_ram_header(p, v);
}

void vc_qs_blocks_field(struct vc_qs_parser *p)
{
    switch (p->state) {
    case VC_QS_ST_BLOCK_NAME:
        on_name(p);
        break;
    case VC_QS_ST_BLOCK_BYTES:
        on_bytes(p);
        break;
    case VC_QS_ST_BLOCK_PEEK:
        on_peek(p);
        break;
    case VC_QS_ST_BLOCK_PAGE_SIZE:
        on_page_size(p);
        break;
    case VC_QS_ST_LAST_PEEK:
        on_last_peek(p);
        break;
    default:
        break;
    }
}
