/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a generation says of a page: in order, as a stream's first pass asks, and at random, as
 * later rounds do. */
#include <stdlib.h>

#include "gens.h"

#define ASKED (1u << 16)

struct work {
    const struct vc_gen *gen;
    uint64_t pages, at, seed, held;
};

static void ask(struct work *w, uint64_t page)
{
    struct vc_digest d;

    w->held += vc_gen_lookup(w->gen, 0, vc_page(page), &d) == VC_PAGE_HELD;
}

static void in_order(void *arg)
{
    struct work *w = arg;

    for (unsigned i = 0; i < ASKED; i++) {
        ask(w, w->at);
        w->at = w->at + 1 < w->pages ? w->at + 1 : 0;
    }
}

static void at_random(void *arg)
{
    struct work *w = arg;

    for (unsigned i = 0; i < ASKED; i++)
        ask(w, micro_random(&w->seed) % w->pages);
}

int main(int argc, char **argv)
{
    struct micro_option options[] = {
        {"gib", "RAM of the VM", 1}, {"zero", "% of zero pages", 50}, {0}};
    static const struct vc_id id = {"a generation..."};
    struct work w = {.seed = 1};
    struct micro_rate r;
    struct synth s;
    struct gens g;
    struct micro m;

    micro_init(&m, "lookup", options, argc, argv);
    w.pages = m.smoke ? 4096 : (uint64_t)(micro_option(&m, "gib") * (1 << 18));
    synth_init(&s, w.pages, micro_option(&m, "zero") / 100, 0, 1);
    gens_make(&g, w.pages * SYNTH_PAGE);
    gens_open(&g);
    gens_write(&g, &s, &id, false);
    gens_close(&g);
    gens_open(&g);
    w.gen = g.gen;
    r = micro_measure(&m, in_order, &w, ASKED);
    micro_number("in_order_ns", 1e9 / r.per_cpu_s, "ns a page");
    r = micro_measure(&m, at_random, &w, ASKED);
    micro_number("at_random_ns", 1e9 / r.per_cpu_s, "ns a page");
    gens_close(&g);
    gens_remove(&g);
    if (!w.held)
        micro_fail("the generation holds nothing");
    micro_print(&m);
    synth_fini(&s);
    return 0;
}
