/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Runs encoded and decoded, and the body of a batch compressed and expanded. The runs are those of
 * a VM with every tenth page changed: many and short, which is the dear case. */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "micro.h"
#include "synth.h"
#include "wire/wire.h"

#define RUNS 4096u
#define BODY (1u << 20)

struct work {
    struct vc_ram *ram;
    struct vc_wire_run runs[RUNS];
    uint8_t encoded[RUNS * VC_WIRE_RUN_MAX_BYTES];
    size_t encoded_bytes;
    struct vc_wire_codec *codec;
    uint8_t *body, *packed, *expanded;
    size_t packed_bytes;
};

static void make_runs(struct work *w)
{
    uint64_t page = 0, seed = 1;

    for (unsigned i = 0; i < RUNS; i++) {
        struct vc_wire_run *r = &w->runs[i];

        r->kind = i % 2 ? VC_RUN_DATA : i % 16 ? VC_RUN_SAME : VC_RUN_ZERO;
        r->count = i % 2 ? 1 : 1 + micro_random(&seed) % 19;
        r->page = vc_page(page);
        page += r->count;
    }
}

static void encode(void *arg)
{
    struct work *w = arg;
    struct vc_wire_cursor c = {0};
    struct vc_writer out = vc_writer(w->encoded, sizeof(w->encoded));

    for (unsigned i = 0; i < RUNS; i++)
        vc_wire_run_encode(&out, &c, &w->runs[i]);
    w->encoded_bytes = out.len;
}

static void decode(void *arg)
{
    struct work *w = arg;
    struct vc_wire_cursor c = {0};
    struct vc_reader in = vc_reader(w->encoded, w->encoded_bytes);
    struct vc_wire_run run;
    struct vc_err err;
    unsigned n = 0;
    int rc;

    while ((rc = vc_wire_run_decode(&in, &c, w->ram, 0, &run, &err)) == 0) {
        if (run.page.n != w->runs[n].page.n || run.count != w->runs[n].count)
            micro_fail("a run was decoded to another one");
        n++;
    }
    micro_ok(rc, &err, "decode");
    if (n != RUNS)
        micro_fail("%u runs instead of %u", n, RUNS);
}

static void compress(void *arg)
{
    struct work *w = arg;

    w->packed_bytes =
        vc_wire_body_compress(w->codec, w->body, BODY, NULL, w->packed, vc_wire_body_bound(BODY));
}

static void expand(void *arg)
{
    struct work *w = arg;
    struct vc_err err = VC_ERR_INIT;

    micro_ok(
        vc_wire_body_expand(w->codec, w->packed, w->packed_bytes, NULL, 0, w->expanded, BODY, &err),
        &err, "expand");
}

static void bodies(const struct micro *m, struct work *w, double random, const char *in,
                   const char *out)
{
    struct micro_rate r;
    struct synth s;

    synth_init(&s, 1u << 20, 0, 0, random);
    for (unsigned i = 0; i < BODY / SYNTH_PAGE; i++)
        memcpy(w->body + i * SYNTH_PAGE, synth_page(&s, i), SYNTH_PAGE);
    r = micro_measure(m, compress, w, BODY);
    micro_gb(in, &r);
    if (w->packed_bytes) { /* 0: it does not get smaller, and is sent as it is */
        r = micro_measure(m, expand, w, BODY);
        micro_gb(out, &r);
        if (memcmp(w->body, w->expanded, BODY))
            micro_fail("the body came out differently");
    }
    synth_fini(&s);
}

int main(int argc, char **argv)
{
    struct micro_option options[] = {{"level", "of zstd", 1}, {0}};
    struct synth s = {.pages = 1u << 20};
    struct work *w = micro_alloc(sizeof(*w));
    struct vc_err err = VC_ERR_INIT;
    struct micro_rate r;
    struct micro m;

    micro_init(&m, "wire", options, argc, argv);
    micro_ok(vc_wire_codec_new((int)micro_option(&m, "level"), &w->codec, &err), &err, "codec");
    w->ram = synth_ram(&s);
    w->body = micro_alloc(BODY);
    w->expanded = micro_alloc(BODY);
    w->packed = micro_alloc(vc_wire_body_bound(BODY));
    make_runs(w);
    r = micro_measure(&m, encode, w, RUNS);
    micro_number("encode_ns_per_run", 1e9 / r.per_cpu_s, "ns");
    micro_number("bytes_per_run", (double)w->encoded_bytes / RUNS, "bytes");
    r = micro_measure(&m, decode, w, RUNS);
    micro_number("decode_ns_per_run", 1e9 / r.per_cpu_s, "ns");
    bodies(&m, w, 0.5, "compress_half", "expand_half");
    bodies(&m, w, 1, "compress_random", "expand_random");
    micro_print(&m);
    vc_wire_codec_free(w->codec);
    free(w->body);
    free(w->expanded);
    free(w->packed);
    free(w->ram);
    free(w);
    return 0;
}
