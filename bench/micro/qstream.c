/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The parser of QEMU's stream, on what lies in memory: GB of stream a second. It looks at headers
 * only, so pages cost next to nothing; a stream of zero pages is nothing but headers. */
#include <stdio.h>
#include <stdlib.h>

#include "micro.h"
#include "qstream/qstream.h"
#include "synth.h"

#define BUFFER (1u << 20) /* as the source reads it */

struct work {
    const uint8_t *stream;
    size_t bytes;
    uint64_t pages, zeroes;
};

static void parse(void *arg)
{
    struct work *w = arg;
    struct vc_qs_parser *p;
    struct vc_err err = VC_ERR_INIT;
    size_t at = 0, end = 0;

    micro_ok(vc_qs_parser_new(0, &p, &err), &err, "parser");
    w->pages = w->zeroes = 0;
    while (at < w->bytes) {
        struct vc_qs_item it;

        end = w->bytes - at < BUFFER ? w->bytes : at + BUFFER;
        do {
            vc_qs_next(p, w->stream + at, end - at, end == w->bytes, &it);
            w->pages += it.kind == VC_QS_PAGE;
            w->zeroes += it.kind == VC_QS_ZERO;
            at += it.bytes;
        } while (at < end && it.kind != VC_QS_NEED);
    }
    vc_qs_parser_free(p);
}

static void measure(const struct micro *m, const char *field, double zero, size_t bytes)
{
    struct synth s;
    struct work w = {0};
    struct micro_rate r;
    uint8_t *p = micro_alloc(bytes);
    char name[48];

    synth_init(&s, 1u << 22, zero, 0, 1);
    w.stream = p;
    w.bytes = synth_to_memory(&s, p, bytes);
    r = micro_measure(m, parse, &w, (double)w.bytes);
    if (zero > 0 ? !w.zeroes : w.zeroes || w.pages < w.bytes / 5000)
        micro_fail("%s: the parser did not see the pages", field);
    micro_gb(field, &r);
    snprintf(name, sizeof(name), "%s_ns_per_record", field);
    micro_number(name, 1e9 / (r.per_cpu_s / (double)w.bytes * (double)(w.pages + w.zeroes)), "ns");
    synth_fini(&s);
    free(p);
}

int main(int argc, char **argv)
{
    struct micro_option options[] = {{"mib", "of stream in memory", 64}, {0}};
    struct micro m;
    size_t bytes;

    micro_init(&m, "qstream", options, argc, argv);
    bytes = (size_t)(m.smoke ? 12 : micro_option(&m, "mib")) << 20;
    measure(&m, "data", 0, bytes);
    measure(&m, "mixed", 0.3, bytes);
    measure(&m, "zero", 1, bytes);
    micro_print(&m);
    return 0;
}
