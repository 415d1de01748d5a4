/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/bytes.h"
#include "wire/wire.h"

/* Runs of a batch: docs/formats/wire.md, "BATCH". */

#define KIND_MASK 0x0fu
#define NAMED 0x10u
#define BLOCK 0x20u
#define PAGE 0x40u
#define AS_PAGE 0x80u /* of zero runs */
#define OLD 0x80u     /* of data runs */

/* Runs of data with what the pages were at another place; VC_RUN_DATA to everybody else. */
#define KIND_SHIFTED 7

static bool is_pages(unsigned kind)
{
    return kind >= VC_RUN_SAME && kind <= VC_RUN_MOVED;
}

void vc_wire_run_encode(struct vc_writer *w, struct vc_wire_cursor *c,
                        const struct vc_wire_run *run)
{
    uint8_t head = run->shifted ? KIND_SHIFTED : run->kind;

    if (!is_pages(run->kind)) {
        vc_write_u8(w, head);
        vc_write_varint(w, run->count);
        return;
    }
    if (run->named)
        head |= NAMED;
    if (run->as_page)
        head |= AS_PAGE;
    if (run->old && !run->shifted)
        head |= OLD;
    if (run->block != c->block) {
        head |= BLOCK;
        *c = (struct vc_wire_cursor){.block = run->block};
    }
    if (run->page.n != c->page)
        head |= PAGE;
    vc_write_u8(w, head);
    if (head & BLOCK)
        vc_write_varint(w, run->block);
    if (head & PAGE)
        vc_write_varint(w, vc_zigzag((int64_t)(run->page.n - c->page)));
    vc_write_varint(w, run->count);
    if (vc_wire_run_is_elsewhere(run)) {
        vc_write_varint(w, run->from_block);
        vc_write_varint(w, run->from_page.n);
    }
    c->page = run->page.n + run->count;
}

static int illegal(struct vc_err *err, const char *what)
{
    return vc_err_set(err, VC_E_PROTOCOL, "BATCH: %s", what);
}

static int decode_pages(struct vc_reader *r, struct vc_wire_cursor *c, const struct vc_ram *ram,
                        uint8_t head, struct vc_wire_run *run, struct vc_err *err)
{
    uint64_t block = c->block, page, pages;

    if (!ram)
        return illegal(err, "a run of pages before BLOCKS");
    if (head & BLOCK) {
        block = vc_read_varint(r);
        if (block == c->block)
            return illegal(err, "a run that names the block it is in");
        c->page = 0;
    }
    page = c->page;
    if (head & PAGE) {
        page += (uint64_t)vc_unzigzag(vc_read_varint(r));
        if (page == c->page)
            return illegal(err, "a run that moves by no page");
    }
    run->count = vc_read_varint(r);
    if (r->failed)
        return illegal(err, "a run is cut off");
    if (block >= ram->n_blocks)
        return illegal(err, "a run in no block");
    pages = vc_ram_block_pages(ram, (uint32_t)block);
    if (run->count == 0 || page >= pages || run->count > pages - page)
        return illegal(err, "a run outside its block");
    run->block = (uint16_t)block;
    run->page = vc_page(page);
    c->block = (uint16_t)block;
    c->page = page + run->count;
    return 0;
}

static int decode_source(struct vc_reader *r, const struct vc_ram *ram, struct vc_wire_run *run,
                         struct vc_err *err)
{
    uint64_t block = vc_read_varint(r), page = vc_read_varint(r), pages;

    if (r->failed || block >= ram->n_blocks)
        return illegal(err, "a run from no block");
    pages = vc_ram_block_pages(ram, (uint32_t)block);
    if (page >= pages || run->count > pages - page)
        return illegal(err, "a run from outside its block");
    run->from_block = (uint16_t)block;
    run->from_page = vc_page(page);
    return 0;
}

int vc_wire_run_decode(struct vc_reader *r, struct vc_wire_cursor *c, const struct vc_ram *ram,
                       uint64_t features, struct vc_wire_run *run, struct vc_err *err)
{
    uint8_t head;
    int rc;

    if (vc_reader_left(r) == 0)
        return VC_EOF;
    head = vc_read_u8(r);
    *run = (struct vc_wire_run){
        .kind = head & KIND_MASK,
        .named = head & NAMED,
    };

    if (run->kind == VC_RUN_DATA)
        run->old = head & OLD;
    else
        run->as_page = head & AS_PAGE;
    if (run->kind == KIND_SHIFTED) {
        run->kind = VC_RUN_DATA;
        run->old = run->shifted = true;
    }
    if (run->kind == VC_RUN_OPAQUE) {
        run->count = vc_read_varint(r);
        if (head != VC_RUN_OPAQUE || r->failed || run->count == 0)
            return illegal(err, "a malformed opaque run");
        return 0;
    }
    if (!is_pages(run->kind))
        return illegal(err, "a run of unknown kind");
    if (run->as_page && run->kind != VC_RUN_ZERO)
        return illegal(err, "AS_PAGE on a run that is not zero");
    if (run->named && run->kind == VC_RUN_INVALIDATE)
        return illegal(err, "NAMED on an invalidate run");
    if (run->old && !(features & VC_WIRE_FEATURE_DELTA))
        return illegal(err, "OLD, which was not agreed on");
    if (run->shifted && !(features & VC_WIRE_FEATURE_SHIFTED))
        return illegal(err, "a shifted run, which was not agreed on");
    if (run->kind == VC_RUN_MOVED && !(features & VC_WIRE_FEATURE_MOVED))
        return illegal(err, "a moved run, which was not agreed on");
    rc = decode_pages(r, c, ram, head, run, err);
    if (!rc && vc_wire_run_is_elsewhere(run))
        rc = decode_source(r, ram, run, err);
    return rc;
}
