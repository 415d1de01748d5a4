/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SOURCE_LOOKUP_H
#define VC_SOURCE_LOOKUP_H

#include <stdbool.h>
#include <stdint.h>

/* Finds the pages of a set that may have a content, whatever their addresses: a table of page
 * numbers in order of the hashes of their contents, 4 bytes for each page and 1 for the places
 * where the hashes begin (1.25 MiB for each GiB of RAM). The hashes are not kept: it knows how to
 * get them.
 *
 * Making it takes some 20 ms for each GiB, and whether it will pay nobody knows beforehand. So
 * every question does a little of the work, in proportion to what it could save, and until all is
 * done nothing is found: a VM of which little has changed never makes its table.
 *
 * Thread rule: one caller at a time. */

/** The hash of a page, evenly spread; false: there is no such page. The same at every call. */
typedef bool (*vc_lookup_hash_fn)(void *opaque, uint64_t page, uint64_t *hash);

/** Pages that one question works on: about what it takes to compress one. */
#define VC_LOOKUP_STEP 512u
/** Pages that are looked at for a content: many may be alike in the lowest bits of their hashes. */
#define VC_LOOKUP_MOST 32u
/** Page numbers have 32 bits; a set with more has no table. */
#define VC_LOOKUP_MAX_PAGES (1ull << 32)

struct vc_lookup {
    uint64_t n_pages;
    vc_lookup_hash_fn hash;
    void *opaque;

    enum { VC_LOOKUP_COUNTING, VC_LOOKUP_PLACING, VC_LOOKUP_READY, VC_LOOKUP_NOTHING } state;
    unsigned bits;   /* of a hash, that name its place */
    uint64_t done;   /* pages counted, or placed */
    uint32_t *begin; /* of each place in pages[], and one more; the ends until all are placed */
    uint32_t *pages;
};

/** The table of pages 0 to @n_pages - 1. */
void vc_lookup_init(struct vc_lookup *l, uint64_t n_pages, vc_lookup_hash_fn hash, void *opaque);
/** Fine for one that is zeroed. */
void vc_lookup_fini(struct vc_lookup *l);
/** Pages that may have that hash: *n of them, at most VC_LOOKUP_MOST. NULL: none is known. */
const uint32_t *vc_lookup_find(struct vc_lookup *l, uint64_t hash, uint32_t *n);

#endif
