/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/bytes.h"
#include "qstream/qstream.h"

/* Messages are u16 type, u16 length and that many bytes (QEMU migration/migration.c:
 * migrate_send_rp_message, rp_cmd_args). Only RECV_BITMAP has more behind them: u64 size, that many
 * bytes, u64 end mark (ram.c: ramblock_recv_bitmap_send). */

#define RP_SHUT 1
#define RP_PONG 2
#define RP_REQ_PAGES_ID 3
#define RP_REQ_PAGES 4
#define RP_RECV_BITMAP 5
#define RP_RESUME_ACK 6
#define RP_SWITCHOVER_ACK 7

#define HEAD_BYTES 4u
#define BITMAP_MARK_BYTES 8u
/** The bitmap of the largest block, one bit a page. */
#define MAX_BITMAP_BYTES (1ull << 40)

static bool length_is_legal(uint16_t type, uint16_t len)
{
    switch (type) {
    case RP_SHUT:
    case RP_PONG:
    case RP_RESUME_ACK:
        return len == 4;
    case RP_REQ_PAGES_ID:
        return len >= 13 && len <= 13 + 255;
    case RP_REQ_PAGES:
        return len == 12;
    case RP_RECV_BITMAP:
        return len >= 1 && len <= 1 + 255;
    case RP_SWITCHOVER_ACK:
        return len == 0;
    default:
        return false;
    }
}

static void next_message(struct vc_qs_return_path *rp)
{
    rp->have = 0;
    rp->want = HEAD_BYTES;
    rp->in_bitmap = false;
}

static void on_head(struct vc_qs_return_path *rp)
{
    uint16_t type = (uint16_t)vc_load_be(rp->head, 2);
    uint16_t len = (uint16_t)vc_load_be(rp->head + 2, 2);

    if (!length_is_legal(type, len)) {
        rp->lost = true;
    } else if (type == RP_SHUT) {
        rp->want = HEAD_BYTES + len;
    } else {
        next_message(rp);
        rp->skip = len;
        rp->in_bitmap = type == RP_RECV_BITMAP;
        rp->want = rp->in_bitmap ? 8 : HEAD_BYTES;
    }
}

static void on_bitmap_size(struct vc_qs_return_path *rp)
{
    uint64_t bytes = vc_load_be(rp->head, 8);

    if (bytes > MAX_BITMAP_BYTES) {
        rp->lost = true;
        return;
    }
    next_message(rp);
    rp->skip = bytes + BITMAP_MARK_BYTES;
}

static void on_field(struct vc_qs_return_path *rp)
{
    if (rp->in_bitmap) {
        on_bitmap_size(rp);
    } else if (rp->have == HEAD_BYTES) {
        on_head(rp);
    } else {
        rp->shut = true;
        rp->status = (uint32_t)vc_load_be(rp->head + HEAD_BYTES, 4);
    }
}

void vc_qs_return_path_feed(struct vc_qs_return_path *rp, const uint8_t *data, size_t len)
{
    while (len && !rp->shut && !rp->lost) {
        size_t n;

        if (!rp->want)
            next_message(rp);
        if (rp->skip) {
            n = rp->skip < len ? (size_t)rp->skip : len;
            rp->skip -= n;
        } else {
            n = 1;
            rp->head[rp->have++] = *data;
            if (rp->have == rp->want)
                on_field(rp);
        }
        data += n;
        len -= n;
    }
}
