/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/lookup.h"

#include <stdlib.h>

#include "base/compiler.h"

/* A counting sort by the lowest bits of the hashes: all pages are counted, then put in place, from
 * the end of each stretch to its begin. */

/* Pages of a place, on average: a place costs as much memory as a page, and a page that is looked
 * at in vain costs time. */
#define PAGES_OF_A_PLACE 4u
#define MAX_BITS 30u

static uint64_t place(const struct vc_lookup *l, uint64_t hash)
{
    return hash & ((1ull << l->bits) - 1);
}

void vc_lookup_init(struct vc_lookup *l, uint64_t n_pages, vc_lookup_hash_fn hash, void *opaque)
{
    *l = (struct vc_lookup){.n_pages = n_pages, .hash = hash, .opaque = opaque};
    while ((uint64_t)PAGES_OF_A_PLACE << l->bits < n_pages && l->bits < MAX_BITS)
        l->bits++;
    if (n_pages > VC_LOOKUP_MAX_PAGES ||
        !(l->begin = calloc((1ull << l->bits) + 1, sizeof(*l->begin))))
        l->state = VC_LOOKUP_NOTHING;
}

void vc_lookup_fini(struct vc_lookup *l)
{
    free(l->begin);
    free(l->pages);
}

/* All are counted: where each place ends. */
static void add_up(struct vc_lookup *l)
{
    uint64_t places = 1ull << l->bits;
    uint32_t sum = 0;

    for (uint64_t i = 0; i < places; i++)
        l->begin[i] = sum += l->begin[i];
    l->begin[places] = sum;
    l->pages = malloc((sum ? sum : 1) * sizeof(*l->pages));
    l->state = l->pages ? VC_LOOKUP_PLACING : VC_LOOKUP_NOTHING;
    l->done = 0;
}

static void work(struct vc_lookup *l)
{
    uint64_t end = VC_MIN(l->done + VC_LOOKUP_STEP, l->n_pages), hash;
    bool counting = l->state == VC_LOOKUP_COUNTING;

    for (; l->done < end; l->done++) {
        if (!l->hash(l->opaque, l->done, &hash))
            continue;
        if (counting)
            l->begin[place(l, hash)]++;
        else
            l->pages[--l->begin[place(l, hash)]] = (uint32_t)l->done;
    }
    if (l->done < l->n_pages)
        return;
    if (counting)
        add_up(l);
    else
        l->state = VC_LOOKUP_READY;
}

const uint32_t *vc_lookup_find(struct vc_lookup *l, uint64_t hash, uint32_t *n)
{
    uint64_t at = place(l, hash);

    if (l->state == VC_LOOKUP_COUNTING || l->state == VC_LOOKUP_PLACING)
        work(l);
    if (l->state != VC_LOOKUP_READY)
        return NULL;
    *n = VC_MIN(l->begin[at + 1] - l->begin[at], VC_LOOKUP_MOST);
    return *n ? &l->pages[l->begin[at]] : NULL;
}
