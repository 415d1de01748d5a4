/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/remote.h"

#include <stdlib.h>
#include <string.h>

#include "store/store.h"

/* Pages of RAM that an announcement may describe: 9 bytes of memory each, so 1 TiB of RAM costs
 * 2.25 GiB. A peer cannot make us take more. */
#define MAX_ANNOUNCED_PAGES (1ull << 28)

void vc_remote_init(struct vc_remote *r, enum vc_wire_base base, const struct vc_gen *gen)
{
    memset(r, 0, sizeof(*r));
    r->base = base;
    r->gen = gen;
}

void vc_remote_fini(struct vc_remote *r)
{
    vc_lookup_fini(&r->lookup);
    for (uint32_t i = 0; r->blocks && i < r->announced.n_blocks; i++) {
        free((void *)r->blocks[i].held);
        free(r->blocks[i].prefix);
    }
    free(r->blocks);
}

int vc_remote_blocks(struct vc_remote *r, const uint8_t *p, size_t n, struct vc_err *err)
{
    uint64_t pages = 0;
    int rc;

    if (r->base != VC_WIRE_BASE_ANNOUNCE || r->blocks)
        return vc_err_set(err, VC_E_PROTOCOL, "ANNOUNCE_BLOCKS: not expected");
    rc = vc_wire_blocks_decode(p, n, &r->announced, err);
    if (rc)
        return rc;
    for (uint32_t i = 0; i < r->announced.n_blocks; i++) {
        uint64_t k = vc_ram_block_pages(&r->announced, i);

        if (k > MAX_ANNOUNCED_PAGES - pages)
            return vc_err_set(err, VC_E_PROTOCOL, "ANNOUNCE_BLOCKS: more than %llu pages",
                              MAX_ANNOUNCED_PAGES);
        pages += k;
    }
    r->blocks = calloc(r->announced.n_blocks, sizeof(*r->blocks));
    if (!r->blocks)
        return vc_err_set(err, VC_E_NOMEM, "no memory for the peer's announcement");
    for (uint32_t i = 0; i < r->announced.n_blocks; i++) {
        struct vc_remote_block *b = &r->blocks[i];

        b->pages = vc_ram_block_pages(&r->announced, i);
        b->held = calloc(b->pages ? b->pages : 1, 1);
        b->prefix = calloc(b->pages ? b->pages : 1, sizeof(*b->prefix));
        if (!b->held || !b->prefix)
            return vc_err_set(err, VC_E_NOMEM, "no memory for the peer's announcement");
    }
    atomic_store_explicit(&r->ready, true, memory_order_release);
    return 0;
}

int vc_remote_announce(struct vc_remote *r, const uint8_t *p, size_t n, struct vc_err *err)
{
    struct vc_wire_announce a;
    struct vc_wire_announce_run run;
    int rc;

    if (!r->blocks)
        return vc_err_set(err, VC_E_PROTOCOL, "ANNOUNCE: came before ANNOUNCE_BLOCKS");
    if (atomic_load(&r->complete))
        return vc_err_set(err, VC_E_PROTOCOL, "ANNOUNCE: came after ANNOUNCE_END");
    rc = vc_wire_announce_open(p, n, &r->announced, &a, err);
    if (rc)
        return rc;
    while ((rc = vc_wire_announce_next(&a, &r->announced, &run, err)) == 0) {
        struct vc_remote_block *b = &r->blocks[a.block];

        if (run.held == VC_WIRE_HELD)
            memcpy(&b->prefix[run.page.n], run.prefixes, run.count * sizeof(*b->prefix));
        for (uint64_t i = 0; i < run.count; i++)
            atomic_store_explicit(&b->held[run.page.n + i], run.held, memory_order_release);
    }
    return rc == VC_EOF ? 0 : rc;
}

int vc_remote_announced(struct vc_remote *r, struct vc_err *err)
{
    if (!r->blocks || atomic_load(&r->complete))
        return vc_err_set(err, VC_E_PROTOCOL, "ANNOUNCE_END: nothing was announced");
    atomic_store_explicit(&r->complete, true, memory_order_release);
    return 0;
}

static bool announced_holds(const struct vc_remote *r, int block, struct vc_page page,
                            uint64_t *prefix)
{
    const struct vc_remote_block *b = block < 0 ? NULL : &r->blocks[block];

    if (!b || page.n >= b->pages ||
        atomic_load_explicit(&b->held[page.n], memory_order_acquire) != VC_WIRE_HELD)
        return false;
    *prefix = b->prefix[page.n];
    return true;
}

/* Whether anything of it is known yet. */
static bool is_known(struct vc_remote *r, const struct vc_ram *ram)
{
    if (r->base == VC_WIRE_BASE_NONE || (r->base == VC_WIRE_BASE_ANNOUNCE &&
                                         !atomic_load_explicit(&r->ready, memory_order_acquire)))
        return false;
    if (r->mapped != ram) {
        vc_ram_map(ram, r->gen ? vc_gen_ram(r->gen) : &r->announced, r->map);
        r->mapped = ram;
    }
    return true;
}

bool vc_remote_has(struct vc_remote *r, const struct vc_ram *ram, uint16_t block,
                   struct vc_page page, const struct vc_digest *digest)
{
    struct vc_digest d;
    uint64_t prefix;

    if (!is_known(r, ram))
        return false;
    if (r->gen)
        return vc_gen_holds(r->gen, r->map[block], page, &d) && vc_digest_equal(&d, digest);
    return announced_holds(r, r->map[block], page, &prefix) &&
           !memcmp(&prefix, digest->b, sizeof(prefix));
}

/* ---- at another address ---- */

static struct vc_page locate(const struct vc_remote *r, uint64_t n, uint16_t *block)
{
    uint16_t b = 0;

    while (n >= r->first[b + 1])
        b++;
    *block = b;
    return vc_page(n - r->first[b]);
}

/* For the lookup: the beginning of the digest of a page of the stream's RAM. */
static bool hash_of(void *opaque, uint64_t n, uint64_t *hash)
{
    const struct vc_remote *r = opaque;
    uint16_t block;
    struct vc_page page = locate(r, n, &block);
    struct vc_digest d;

    if (!r->gen)
        return announced_holds(r, r->map[block], page, hash);
    if (!vc_gen_holds(r->gen, r->map[block], page, &d))
        return false;
    memcpy(hash, d.b, sizeof(*hash));
    return true;
}

bool vc_remote_find(struct vc_remote *r, const struct vc_ram *ram, const struct vc_digest *digest,
                    uint16_t *block, struct vc_page *page)
{
    const uint32_t *candidates;
    uint64_t hash;
    uint32_t n;

    if (!is_known(r, ram) || (!r->gen && !atomic_load_explicit(&r->complete, memory_order_acquire)))
        return false;
    if (!r->lookup.hash) {
        for (uint32_t i = 0; i < ram->n_blocks; i++)
            r->first[i + 1] = r->first[i] + vc_ram_block_pages(ram, i);
        vc_lookup_init(&r->lookup, r->first[ram->n_blocks], hash_of, r);
    }
    memcpy(&hash, digest->b, sizeof(hash));
    candidates = vc_lookup_find(&r->lookup, hash, &n);
    for (uint32_t i = 0; candidates && i < n; i++) {
        *page = locate(r, candidates[i], block);
        if (vc_remote_has(r, ram, *block, *page, digest))
            return true;
    }
    return false;
}
