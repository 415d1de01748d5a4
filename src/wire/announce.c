/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/bytes.h"
#include "wire/wire.h"

int vc_wire_announce_open(const uint8_t *p, size_t n, const struct vc_ram *ram,
                          struct vc_wire_announce *a, struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);

    a->block = vc_read_u32(&r);
    a->page = vc_page(vc_read_u64(&r));
    if (r.failed || a->block >= ram->n_blocks)
        return vc_err_set(err, VC_E_PROTOCOL, "ANNOUNCE: no such block");
    a->p = p + r.off;
    a->left = n - r.off;
    return 0;
}

int vc_wire_announce_next(struct vc_wire_announce *a, const struct vc_ram *ram,
                          struct vc_wire_announce_run *run, struct vc_err *err)
{
    struct vc_reader r = vc_reader(a->p, a->left);
    uint64_t pages = vc_ram_block_pages(ram, a->block);

    if (!a->left)
        return VC_EOF;
    run->held = vc_read_u8(&r);
    run->count = vc_read_varint(&r);
    run->page = a->page;
    run->prefixes = NULL;
    if (r.failed || run->held > VC_WIRE_HELD || run->count == 0 || a->page.n > pages ||
        run->count > pages - a->page.n)
        return vc_err_set(err, VC_E_PROTOCOL, "ANNOUNCE: a run outside its block");
    if (run->held == VC_WIRE_HELD) {
        if (run->count > vc_reader_left(&r) / 8)
            return vc_err_set(err, VC_E_PROTOCOL, "ANNOUNCE: digests are missing");
        run->prefixes = vc_read_bytes(&r, run->count * 8);
    }
    a->page.n += run->count;
    a->p += r.off;
    a->left -= r.off;
    return 0;
}
