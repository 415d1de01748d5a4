/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "base/bytes.h"
#include "dest/pipeline.h"
#include "link/link.h"

/* Tells the source what this host has, in the background while first pages flow: of each page that
 * is held the first half of its digest (docs/formats/wire.md, "ANNOUNCE"). */

#define FRAME_BYTES 65536u
#define PREFIX_BYTES VC_WIRE_ANNOUNCE_PAGE_BYTES
#define HEAD_BYTES 12

static int send_blocks(struct vc_dest *d, const struct vc_ram *ram)
{
    size_t cap = 16 + (size_t)ram->n_blocks * (1 + VC_MAX_BLOCK_NAME + 8);
    struct vc_link_frame *f = vc_link_frame_new(VC_WIRE_ANNOUNCE_BLOCKS, 0, (uint32_t)cap);
    struct vc_writer w;

    if (!f)
        return VC_CLOSED;
    w = vc_writer(f->payload, cap);
    vc_wire_blocks_encode(&w, ram);
    f->bytes = (uint32_t)w.len;
    return vc_link_send(d->o.link, f, false);
}

static enum vc_wire_held held_state(const struct vc_gen *gen, uint32_t block, uint64_t page,
                                    struct vc_digest *digest)
{
    switch (vc_gen_lookup(gen, block, vc_page(page), digest)) {
    case VC_PAGE_HELD:
        return VC_WIRE_HELD;
    case VC_PAGE_ZERO:
        return VC_WIRE_HELD_ZERO;
    default:
        return VC_WIRE_NOT_HELD;
    }
}

/* Appends one run from *page on, as long as room and states allow. False: no room. */
static bool append_run(struct vc_writer *w, const struct vc_gen *gen, uint32_t block,
                       uint64_t *page, uint64_t pages)
{
    size_t room = w->cap - w->len;
    struct vc_digest digest;
    enum vc_wire_held state = held_state(gen, block, *page, &digest);
    uint64_t most = pages - *page, n = 1;

    if (room < 1 + VC_VARINT_MAX_BYTES + PREFIX_BYTES)
        return false;
    if (state == VC_WIRE_HELD)
        most = VC_MIN(most, (room - 1 - VC_VARINT_MAX_BYTES) / PREFIX_BYTES);
    while (n < most && held_state(gen, block, *page + n, &digest) == state)
        n++;
    vc_write_u8(w, (uint8_t)state);
    vc_write_varint(w, n);
    for (uint64_t i = 0; state == VC_WIRE_HELD && i < n; i++) {
        held_state(gen, block, *page + i, &digest);
        vc_write_bytes(w, digest.b, PREFIX_BYTES);
    }
    *page += n;
    return true;
}

static int send_frame(struct vc_dest *d, uint32_t block, uint64_t *page, uint64_t pages)
{
    struct vc_link_frame *f = vc_link_frame_new(VC_WIRE_ANNOUNCE, 0, FRAME_BYTES);
    struct vc_writer w;

    if (!f)
        return VC_CLOSED;
    w = vc_writer(f->payload, FRAME_BYTES);
    vc_write_u32(&w, block);
    vc_write_u64(&w, *page);
    while (*page < pages && append_run(&w, d->o.gen, block, page, pages)) {
        /* as many runs as fit */
    }
    f->bytes = (uint32_t)w.len;
    return vc_link_send(d->o.link, f, false);
}

void *vc_dest_announce_main(void *arg)
{
    struct vc_dest *d = arg;
    const struct vc_ram *ram = vc_gen_ram(d->o.gen);
    struct vc_link_frame *end;
    int rc = send_blocks(d, ram);

    for (uint32_t i = 0; i < ram->n_blocks && !rc; i++) {
        uint64_t page = 0, pages = vc_ram_block_pages(ram, i);

        while (page < pages && !rc)
            rc = send_frame(d, i, &page, pages);
    }
    end = rc ? NULL : vc_link_frame_new(VC_WIRE_ANNOUNCE_END, 0, 0);
    if (end && vc_link_send(d->o.link, end, false)) {
        /* The link is down; others notice. */
    }
    return NULL;
}
