/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Page digests: GB/s of one core on 4 KiB pages, in groups as the source makes them. The figure to
 * look at is `gb_per_s`: pages lie in a buffer of 1 MiB, as those that were just read from a socket
 * do; `memory_gb_per_s` is for pages that no cache holds. */
#include <stdlib.h>

#include "digest/digest.h"
#include "micro.h"

#define PAGE 4096u
#define GROUP 64u /* source/ingest.c */

struct work {
    struct vc_digester *d;
    uint8_t *data;
    size_t bytes, page_bytes, group;
    struct vc_digest out[GROUP];
};

static void digest_all(void *arg)
{
    struct work *w = arg;
    const uint8_t *pages[GROUP];
    struct vc_err err;

    for (size_t at = 0; at + w->page_bytes * w->group <= w->bytes; at += w->page_bytes * w->group) {
        for (size_t i = 0; i < w->group; i++)
            pages[i] = w->data + at + i * w->page_bytes;
        micro_ok(vc_digest_pages(w->d, pages, w->group, w->page_bytes, w->out, &err), &err,
                 "digest");
    }
}

static struct micro_rate measure(const struct micro *m, struct work *w, size_t bytes,
                                 size_t page_bytes, size_t group)
{
    w->bytes = bytes;
    w->page_bytes = page_bytes;
    w->group = group;
    return micro_measure(m, digest_all, w, (double)bytes);
}

/* Whether the processor has what makes GMAC fast; "?" where we do not know how to ask. */
static const char *aes_and_clmul(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul") ? "yes" : "no";
#else
    return "?";
#endif
}

int main(int argc, char **argv)
{
    static const uint8_t key[VC_DIGEST_KEY_BYTES] = "a key that no guest knows";
    struct micro_option options[] = {
        {"algo", "the algorithm's number (digest/digest.h)", VC_DIGEST_GMAC},
        {"memory-mib", "size of what does not fit a cache", 256},
        {0},
    };
    struct micro_rate r;
    struct work w = {0};
    struct vc_err err = VC_ERR_INIT;
    struct micro m;
    unsigned algo;
    size_t big;

    micro_init(&m, "digest", options, argc, argv);
    algo = (unsigned)micro_option(&m, "algo");
    big = m.smoke ? 1u << 20 : (size_t)micro_option(&m, "memory-mib") << 20;
    micro_ok(vc_digester_new(algo, VC_DIGEST_PAGE, key, &w.d, &err), &err, "digester");
    w.data = micro_alloc(big < 1u << 20 ? 1u << 20 : big);
    micro_fill(w.data, big < 1u << 20 ? 1u << 20 : big, 1);

    micro_text("algo", algo == VC_DIGEST_GMAC ? "AES-128-GMAC, AES-128" : "other");
    micro_number("algo_number", algo, "");
    micro_text("cpu_has_aes_and_clmul", aes_and_clmul());
    micro_number("page_bytes", PAGE, "bytes");
    r = measure(&m, &w, 1u << 20, PAGE, GROUP);
    micro_gb("", &r);
    micro_number("wall_gb_per_s", r.per_s / 1e9, "GB/s");
    r = measure(&m, &w, big, PAGE, GROUP);
    micro_gb("memory", &r);
    r = measure(&m, &w, 1u << 20, PAGE, 1);
    micro_gb("one_by_one", &r);
    r = measure(&m, &w, 1u << 20, 1024, GROUP);
    micro_gb("page_1k", &r);
    r = measure(&m, &w, 4u << 20 < big ? 4u << 20 : big, 16384, m.smoke ? 16 : GROUP);
    micro_gb("page_16k", &r);
    micro_print(&m);
    vc_digester_free(w.d);
    free(w.data);
    return 0;
}
