/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a generation says of a page: in order, as a stream's first pass asks, and at random, as
 * later rounds do. Then where a content is, whatever its address: making the table, and asking it.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "gens.h"
#include "source/remote.h"

#define ASKED (1u << 16)

struct work {
    const struct vc_gen *gen;
    uint64_t pages, at, seed, held, found;
    struct vc_remote remote;
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

static bool find(struct work *w, const struct vc_digest *d)
{
    uint16_t block;
    struct vc_page page;

    return vc_remote_find(&w->remote, vc_gen_ram(w->gen), d, &block, &page);
}

static struct vc_digest unknown(struct work *w)
{
    uint64_t n[2] = {micro_random(&w->seed), micro_random(&w->seed)};
    struct vc_digest d;

    memcpy(d.b, n, sizeof(d.b));
    return d;
}

/* The time that making the table takes, all questions together. */
static double make_table(struct work *w)
{
    uint64_t begun;

    vc_remote_init(&w->remote, VC_WIRE_BASE_PING_PONG, w->gen);
    begun = vc_now_ns();
    while (w->remote.lookup.state != VC_LOOKUP_READY) {
        struct vc_digest d = unknown(w);

        w->found += find(w, &d);
    }
    return (double)(vc_now_ns() - begun);
}

static void elsewhere(void *arg)
{
    struct work *w = arg;

    for (unsigned i = 0; i < ASKED; i++) {
        struct vc_digest d = unknown(w);

        (void)vc_gen_lookup(w->gen, 0, vc_page(micro_random(&w->seed) % w->pages), &d);
        w->found += find(w, &d);
    }
}

static void nowhere(void *arg)
{
    struct work *w = arg;

    for (unsigned i = 0; i < ASKED; i++) {
        struct vc_digest d = unknown(w);

        w->found -= find(w, &d);
    }
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
    micro_number("table_ns", make_table(&w) / (double)w.pages, "ns a page, once");
    micro_number("table_bytes",
                 4.0 *
                     (double)((1ull << w.remote.lookup.bits) +
                              w.remote.lookup.begin[1ull << w.remote.lookup.bits]) /
                     (double)w.pages,
                 "bytes a page");
    r = micro_measure(&m, elsewhere, &w, ASKED);
    micro_number("elsewhere_ns", 1e9 / r.per_cpu_s, "ns a page");
    r = micro_measure(&m, nowhere, &w, ASKED);
    micro_number("nowhere_ns", 1e9 / r.per_cpu_s, "ns a page");
    vc_remote_fini(&w.remote);
    gens_close(&g);
    gens_remove(&g);
    if (!w.found)
        micro_fail("no content was found again");
    if (!w.held)
        micro_fail("the generation holds nothing");
    micro_print(&m);
    synth_fini(&s);
    return 0;
}
