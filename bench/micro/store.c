/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The store on a disk: a generation written as an image (with digests, to the commit), one on top
 * of it with some pages changed, that folded into one image, and read back and verified. Time on
 * the wall: it is the disk's that counts. */
#include <stdio.h>
#include <stdlib.h>

#include "gens.h"

struct timed {
    double wall, cpu;
};

static struct timed begin(void)
{
    return (struct timed){micro_wall_s(), micro_thread_cpu_s()};
}

static void report(const char *what, const struct timed *t, double bytes)
{
    char name[48];
    double wall = micro_wall_s() - t->wall, cpu = micro_thread_cpu_s() - t->cpu;

    snprintf(name, sizeof(name), "%s_gb_per_s", what);
    micro_number(name, bytes / 1e9 / wall, "GB/s");
    snprintf(name, sizeof(name), "%s_gb_per_cpu_s", what);
    micro_number(name, bytes / 1e9 / (cpu > 1e-9 ? cpu : 1e-9), "GB/s of a core");
}

static void write_one(struct gens *g, struct synth *s, const struct vc_id *id, bool changed,
                      const char *what)
{
    struct timed t = begin();
    double bytes = (double)gens_write(g, s, id, changed);

    report(what, &t, bytes);
    gens_close(g);
    gens_open(g);
}

static void verify(struct gens *g, double bytes)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_verify_result v;
    struct timed t = begin();

    micro_ok(vc_gen_verify(g->gen, &gens_lineage, NULL, NULL, &v, &err), &err, "verify");
    if (v.bad_pages)
        micro_fail("%llu pages came back wrong", (unsigned long long)v.bad_pages);
    report("verify", &t, bytes);
}

int main(int argc, char **argv)
{
    struct micro_option options[] = {
        {"gib", "RAM of the VM", 1},
        {"zero", "% of zero pages", 20},
        {"changed", "% of the others that changed", 25},
        {0},
    };
    static const struct vc_id first = {"a generation 1."}, second = {"a generation 2."};
    struct vc_err err = VC_ERR_INIT;
    double bytes = 0;
    struct timed t;
    struct synth s;
    struct gens g;
    struct micro m;
    uint64_t pages;

    micro_init(&m, "store", options, argc, argv);
    pages = m.smoke ? 4096 : (uint64_t)(micro_option(&m, "gib") * (1 << 18));
    synth_init(&s, pages, micro_option(&m, "zero") / 100, micro_option(&m, "changed") / 100, 1);
    gens_make(&g, 3 * pages * SYNTH_PAGE);
    gens_open(&g);
    micro_number("gib", (double)pages / (1 << 18), "GiB");
    write_one(&g, &s, &first, false, "write");
    s.version = 1;
    write_one(&g, &s, &second, true, "write_changed");
    for (uint64_t i = 0; i < pages; i++)
        bytes += synth_is_zero(&s, i) ? 0 : SYNTH_PAGE;
    vc_vm_close(g.vm);
    g.vm = NULL;
    t = begin();
    micro_ok(vc_vm_fold(g.store, &gens_vm, NULL, &err), &err, "fold");
    report("fold", &t, bytes);
    gens_close(&g);
    gens_open(&g);
    verify(&g, bytes);
    gens_close(&g);
    gens_remove(&g);
    micro_print(&m);
    synth_fini(&s);
    return 0;
}
