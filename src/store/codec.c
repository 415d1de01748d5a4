/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "store/internal.h"

/* What manifest, index and log have in common: docs/formats/store.md. */

void vc_head_write(struct vc_writer *w, const char magic[8])
{
    vc_write_bytes(w, magic, 8);
    vc_write_u32(w, VC_STORE_VERSION);
    vc_write_u32(w, 0); /* features without which it cannot be read */
    vc_write_u32(w, 0); /* ... the VM must not be written */
    vc_write_u32(w, 0); /* ... that may be ignored */
}

int vc_head_read(struct vc_reader *r, const char magic[8], const char *name, bool *frozen,
                 struct vc_err *err)
{
    const uint8_t *m = vc_read_bytes(r, 8);
    uint32_t version = vc_read_u32(r), needed = vc_read_u32(r);

    *frozen = vc_read_u32(r) != 0;
    vc_read_u32(r);
    if (!m || r->failed || memcmp(m, magic, 8) != 0)
        return VC_MISMATCH;
    if (version != VC_STORE_VERSION || needed)
        return vc_err_set_hint(err, VC_E_VERSION, "a newer vecycle has written it",
                               "'%s' is of another version", name);
    return 0;
}

bool vc_read_zero(struct vc_reader *r, size_t n)
{
    const uint8_t *p = vc_read_bytes(r, n);

    return p && vc_is_zero(p, n);
}

void vc_layers_write(struct vc_writer *w, const struct vc_layer *l, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        vc_write_bytes(w, l[i].id.b, 16);
        vc_write_u8(w, l[i].kind);
        vc_write_bytes(w, "\0\0\0\0\0\0", 7);
        vc_write_u64(w, l[i].bytes);
    }
}

bool vc_layers_read(struct vc_reader *r, struct vc_layer *l, uint32_t n)
{
    if (n == 0 || n > VC_STORE_MAX_LAYERS)
        return false;
    for (uint32_t i = 0; i < n; i++) {
        vc_read_copy(r, l[i].id.b, 16);
        l[i].kind = vc_read_u8(r);
        if (!vc_read_zero(r, 7) || l[i].kind != (i ? VC_LAYER_DELTA : VC_LAYER_IMAGE))
            return false;
        l[i].bytes = vc_read_u64(r);
        if (l[i].bytes > INT64_MAX)
            return false;
    }
    return !r->failed;
}

bool vc_layers_equal(const struct vc_layer *a, const struct vc_layer *b, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (!vc_id_equal(&a[i].id, &b[i].id) || a[i].kind != b[i].kind || a[i].bytes != b[i].bytes)
            return false;
    return true;
}

void vc_blocks_write(struct vc_writer *w, const struct vc_index *ix)
{
    for (uint32_t i = 0; i < ix->ram.n_blocks; i++) {
        vc_write_u64(w, ix->ram.blocks[i].bytes);
        vc_write_u64(w, ix->image_offset[i]);
        vc_write_u64(w, ix->image_room[i]);
        vc_write_str8(w, ix->ram.blocks[i].name);
    }
}

static bool read_block(struct vc_reader *r, struct vc_index *ix, uint32_t i)
{
    struct vc_block *b = &ix->ram.blocks[i];
    uint64_t image = ix->layers[0].bytes, mask = ix->ram.page_bytes - 1;

    b->bytes = vc_read_u64(r);
    ix->image_offset[i] = vc_read_u64(r);
    ix->image_room[i] = vc_read_u64(r);
    if (!vc_read_str8(r, b->name) || !b->name[0])
        return false;
    for (uint32_t k = 0; k < i; k++)
        if (!strcmp(ix->ram.blocks[k].name, b->name))
            return false;
    return b->bytes <= VC_MAX_BLOCK_BYTES && !(b->bytes & mask) && !(ix->image_offset[i] & mask) &&
           !(ix->image_room[i] & mask) && ix->image_offset[i] <= image &&
           ix->image_room[i] <= image - ix->image_offset[i];
}

bool vc_blocks_read(struct vc_reader *r, struct vc_index *ix)
{
    uint32_t page = ix->ram.page_bytes;

    if (page < VC_MIN_PAGE_BYTES || page > VC_MAX_PAGE_BYTES || (page & (page - 1)) ||
        ix->ram.n_blocks == 0 || ix->ram.n_blocks > VC_MAX_BLOCKS)
        return false;
    for (uint32_t i = 0; i < ix->ram.n_blocks; i++)
        if (!read_block(r, ix, i))
            return false;
    vc_index_number(ix);
    return ix->n_pages <= UINT32_MAX;
}
