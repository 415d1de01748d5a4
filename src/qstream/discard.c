/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qstream/parser.h"

/* POSTCOPY_RAM_DISCARD (QEMU: migration/savevm.c, qemu_savevm_send_postcopy_ram_discard): pages
 * that were dirtied after they had been sent. The destination drops them, and they come again after
 * the switch; here they become unknown until then. u8 0; str8 block; u8 0; then ranges of u64 start
 * and u64 length in bytes. */

#define RANGE_BYTES 16u

/* The payload's part that was read or announced; false: the command is shorter than that. */
static bool take(struct vc_qs_parser *p, unsigned n)
{
    if (p->discard_left < n) {
        vc_qs_lose(p, false, "command POSTCOPY_RAM_DISCARD is too short");
        return false;
    }
    p->discard_left -= n;
    return true;
}

void vc_qs_discard_begin(struct vc_qs_parser *p, uint16_t len)
{
    p->discard_left = len;
    if (take(p, 1))
        vc_qs_expect(p, VC_QS_ST_DISCARD_VERSION, 1);
}

static void next_range(struct vc_qs_parser *p)
{
    if (p->discard_left == 0)
        vc_qs_expect(p, VC_QS_ST_TYPE, 1);
    else if (take(p, RANGE_BYTES))
        vc_qs_expect(p, VC_QS_ST_DISCARD_RANGE, RANGE_BYTES);
}

static void on_range(struct vc_qs_parser *p)
{
    uint64_t start = vc_load_be(p->acc, 8), bytes = vc_load_be(p->acc + 8, 8);
    uint64_t limit = p->ram.blocks[p->discard_block].bytes, mask = p->ram.page_bytes - 1;

    if (start > limit || bytes > limit - start || ((start | bytes) & mask)) {
        vc_qs_lose(p, false, "POSTCOPY_RAM_DISCARD names an impossible range");
        return;
    }
    if (bytes) {
        vc_qs_raise(p, VC_QS_EV_UNKNOWN);
        p->unknown_block = p->discard_block;
        p->unknown_page = vc_page(start >> p->page_shift);
        p->unknown_count = bytes >> p->page_shift;
    }
    next_range(p);
}

static void on_name(struct vc_qs_parser *p)
{
    int block;

    if (!take(p, p->acc[0]))
        return;
    block = p->ram_announced ? vc_qs_blocks_find(p, p->acc + 1, p->acc[0]) : -1;
    if (block < 0) {
        vc_qs_lose(p, false, "POSTCOPY_RAM_DISCARD names an unknown block");
        return;
    }
    p->discard_block = (uint16_t)block;
    if (take(p, 1))
        vc_qs_expect(p, VC_QS_ST_DISCARD_ZERO, 1);
}

void vc_qs_discard_field(struct vc_qs_parser *p)
{
    switch (p->state) {
    case VC_QS_ST_DISCARD_VERSION:
        if (p->acc[0] != 0)
            vc_qs_lose(p, false, "POSTCOPY_RAM_DISCARD has version %u", p->acc[0]);
        else if (take(p, 1))
            vc_qs_expect_str(p, VC_QS_ST_DISCARD_NAME);
        break;
    case VC_QS_ST_DISCARD_NAME:
        on_name(p);
        break;
    case VC_QS_ST_DISCARD_ZERO:
        next_range(p);
        break;
    default:
        on_range(p);
        break;
    }
}
