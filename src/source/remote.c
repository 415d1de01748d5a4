/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/remote.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "store/store.h"

/* Page numbers of the look-up by content have 32 bits; so have those of the store's files. */
#define MAX_ANNOUNCED_PAGES VC_LOOKUP_MAX_PAGES
#define EARLY_CHUNKS (VC_REMOTE_EARLY_BYTES / sizeof(struct vc_remote_chunk))

static uint64_t chunks_of(uint64_t pages)
{
    return pages / VC_REMOTE_CHUNK_PAGES + (pages % VC_REMOTE_CHUNK_PAGES != 0);
}

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
        struct vc_remote_block *b = &r->blocks[i];

        for (uint64_t k = 0; b->chunks && k < chunks_of(b->pages); k++)
            free(b->chunks[k]);
        free((void *)b->chunks);
    }
    free(r->blocks);
}

/* The destination may hold more than this VM has, as where some of its RAM was unplugged. */
void vc_remote_limit(struct vc_remote *r, const struct vc_ram *own)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < own->n_blocks; i++)
        n += chunks_of(vc_ram_block_pages(own, i));
    atomic_store(&r->own_chunks, 2 * n + VC_MAX_BLOCKS);
}

/* False: too many pages. Room for chunks, not for what is in them. */
static bool make_room(struct vc_remote *r)
{
    uint64_t pages = 0;

    r->blocks = calloc(r->announced.n_blocks, sizeof(*r->blocks));
    for (uint32_t i = 0; r->blocks && i < r->announced.n_blocks; i++) {
        struct vc_remote_block *b = &r->blocks[i];
        uint64_t n = vc_ram_block_pages(&r->announced, i);

        if (n > MAX_ANNOUNCED_PAGES - pages)
            return false;
        pages += n;
        b->chunks = calloc(chunks_of(n) + 1, sizeof(*b->chunks));
        if (!b->chunks)
            return false;
        b->pages = n;
    }
    return r->blocks;
}

int vc_remote_blocks(struct vc_remote *r, const uint8_t *p, size_t n, struct vc_err *err)
{
    int rc;

    if (r->base != VC_WIRE_BASE_ANNOUNCE || r->blocks || r->ignored)
        return vc_err_set(err, VC_E_PROTOCOL, "ANNOUNCE_BLOCKS: not expected");
    rc = vc_wire_blocks_decode(p, n, &r->announced, err);
    if (rc)
        return rc;
    r->ignored = !make_room(r);
    if (r->ignored)
        vc_log(r->log, VC_LOG_WARNING,
               "the destination's checkpoint cannot be used: %llu MiB of RAM are too much to look "
               "at",
               (unsigned long long)(vc_ram_bytes(&r->announced) >> 20));
    else
        atomic_store_explicit(&r->ready, true, memory_order_release);
    return 0;
}

/* Chunks that there may be. */
static uint64_t most_chunks(struct vc_remote *r)
{
    uint64_t own;

    while (!(own = atomic_load(&r->own_chunks)) && r->n_chunks >= EARLY_CHUNKS && r->patience_ms) {
        poll(NULL, 0, VC_MIN(r->patience_ms, 10u));
        r->patience_ms -= VC_MIN(r->patience_ms, 10u);
    }
    return own ? own : EARLY_CHUNKS;
}

/* The chunk that a page is in; NULL: there is none, and no room or no use for one. */
static struct vc_remote_chunk *chunk_at(struct vc_remote *r, struct vc_remote_block *b,
                                        uint64_t page)
{
    struct vc_remote_chunk *_Atomic *at = &b->chunks[page / VC_REMOTE_CHUNK_PAGES];
    struct vc_remote_chunk *c = atomic_load_explicit(at, memory_order_relaxed);

    if (c)
        return c;
    if (r->n_chunks < most_chunks(r) && (c = calloc(1, sizeof(*c)))) {
        r->n_chunks++;
        atomic_store_explicit(at, c, memory_order_release);
    } else if (!r->overflowed) {
        r->overflowed = true;
        vc_log(r->log, VC_LOG_WARNING,
               "the destination announces more of a checkpoint than this VM can use: the rest is "
               "not looked at");
    }
    return c;
}

static void note_held(struct vc_remote *r, struct vc_remote_block *b,
                      const struct vc_wire_announce_run *run)
{
    for (uint64_t i = 0, n; i < run->count; i += n) {
        uint64_t page = run->page.n + i, in_chunk = page % VC_REMOTE_CHUNK_PAGES;
        struct vc_remote_chunk *c = chunk_at(r, b, page);

        n = VC_MIN(run->count - i, VC_REMOTE_CHUNK_PAGES - in_chunk);
        if (!c)
            continue;
        memcpy(&c->prefix[in_chunk], run->prefixes + 8 * i, n * sizeof(c->prefix[0]));
        for (uint64_t k = 0; k < n; k++)
            atomic_store_explicit(&c->held[in_chunk + k], true, memory_order_release);
    }
}

int vc_remote_announce(struct vc_remote *r, const uint8_t *p, size_t n, struct vc_err *err)
{
    struct vc_wire_announce a;
    struct vc_wire_announce_run run;
    int rc;

    if (!r->blocks && !r->ignored)
        return vc_err_set(err, VC_E_PROTOCOL, "ANNOUNCE: came before ANNOUNCE_BLOCKS");
    if (atomic_load(&r->complete))
        return vc_err_set(err, VC_E_PROTOCOL, "ANNOUNCE: came after ANNOUNCE_END");
    rc = vc_wire_announce_open(p, n, &r->announced, &a, err);
    if (!rc && (a.block < r->at_block || (a.block == r->at_block && a.page.n < r->at_page)))
        rc = vc_err_set(err, VC_E_PROTOCOL, "ANNOUNCE: pages come twice");
    if (rc)
        return rc;
    while ((rc = vc_wire_announce_next(&a, &r->announced, &run, err)) == 0)
        if (run.held == VC_WIRE_HELD && !r->ignored)
            note_held(r, &r->blocks[a.block], &run);
    r->at_block = a.block;
    r->at_page = a.page.n;
    return rc == VC_EOF ? 0 : rc;
}

int vc_remote_announced(struct vc_remote *r, struct vc_err *err)
{
    if ((!r->blocks && !r->ignored) || atomic_load(&r->complete))
        return vc_err_set(err, VC_E_PROTOCOL, "ANNOUNCE_END: nothing was announced");
    atomic_store_explicit(&r->complete, true, memory_order_release);
    return 0;
}

static bool announced_holds(const struct vc_remote *r, int block, struct vc_page page,
                            uint64_t *prefix)
{
    const struct vc_remote_block *b = block < 0 ? NULL : &r->blocks[block];
    uint64_t i = page.n % VC_REMOTE_CHUNK_PAGES;
    const struct vc_remote_chunk *c;

    if (!b || page.n >= b->pages)
        return false;
    c = atomic_load_explicit(&b->chunks[page.n / VC_REMOTE_CHUNK_PAGES], memory_order_acquire);
    if (!c || !atomic_load_explicit(&c->held[i], memory_order_acquire))
        return false;
    *prefix = c->prefix[i];
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
