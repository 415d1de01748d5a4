/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* BATCH frames, as the destination takes them in: header, compression, runs, contents. What is
 * accepted stands for exactly the bytes that it says; runs mean the same when encoded again; a body
 * means the same whether compressed or not, and against old pages or not.
 *
 * Input: a byte of options, the length of a BLOCKS payload (2 bytes) and that; then either a BATCH
 * payload as it is, or (option 1) the length of the runs (2 bytes), the runs, and contents, for
 * which a fitting header is made. */

#include "dest/batch.h"
#include "fuzz.h"
#include "link/link.h"
#include "wire/wire.h"

#define OPT_BUILD 1u     /* make the header */
#define OPT_COMPRESS 2u  /* and compress the body */
#define OPT_SELF 4u      /* flag self-contained */
#define OPT_NO_BLOCKS 8u /* BLOCKS has not come yet */
#define OPT_MOVED 16u    /* moved runs were agreed on */
#define OPT_FILL 32u     /* as much content as the runs ask for */
#define OPT_DELTA 64u    /* deltas were agreed on; with OPT_BUILD, runs with old pages get one */
#define MAX_FILL (1u << 20)

static struct vc_wire_codec *codec;
static struct vc_digester *seals;
static struct vc_ram ram;

static void set_up(void)
{
    static const uint8_t key[VC_DIGEST_KEY_BYTES] = "fuzz";
    struct vc_err err;

    if (codec)
        return;
    FUZZ_ASSERT(vc_wire_codec_new(1, &codec, &err) == 0);
    FUZZ_ASSERT(vc_digester_new(VC_DIGEST_GMAC, VC_DIGEST_SEAL, key, &seals, &err) == 0);
}

static void default_ram(void)
{
    memset(&ram, 0, sizeof(ram));
    ram.page_bytes = VC_MIN_PAGE_BYTES;
    ram.n_blocks = 2;
    strcpy(ram.blocks[0].name, "a");
    ram.blocks[0].bytes = 64 * VC_MIN_PAGE_BYTES;
    strcpy(ram.blocks[1].name, "bb");
    ram.blocks[1].bytes = 16 * VC_MIN_PAGE_BYTES;
}

static bool has_content(const struct vc_wire_run *r)
{
    return r->kind == VC_RUN_SAME || r->kind == VC_RUN_DATA || r->kind == VC_RUN_MOVED ||
           (r->kind == VC_RUN_ZERO && r->as_page);
}

/* ---- runs: decoded, encoded, decoded ---- */

struct sums {
    uint64_t stream, body; /* bytes that they stand for; bytes of content that they need */
    uint64_t old;          /* bytes of old pages */
};

static void sum_up(struct sums *s, const struct vc_wire_run *r, const struct vc_ram *blocks)
{
    uint64_t head;

    if (r->kind == VC_RUN_OPAQUE) {
        s->stream += r->count;
        s->body += r->count;
        return;
    }
    if (r->kind == VC_RUN_INVALIDATE)
        return;
    head = r->kind == VC_RUN_ZERO && !r->as_page ? 9 : 8;
    s->stream += head * r->count + (r->named ? 1 + strlen(blocks->blocks[r->block].name) : 0);
    if (has_content(r))
        s->stream += r->count * blocks->page_bytes;
    if (r->kind == VC_RUN_DATA)
        s->body += r->count * blocks->page_bytes;
    if (r->old)
        s->old += r->count * blocks->page_bytes;
}

static void check_run(const struct vc_wire_run *r, const struct vc_ram *blocks)
{
    uint64_t pages;

    FUZZ_ASSERT(r->count >= 1);
    if (r->kind == VC_RUN_OPAQUE)
        return;
    FUZZ_ASSERT(blocks && r->block < blocks->n_blocks);
    pages = vc_ram_block_pages(blocks, r->block);
    FUZZ_ASSERT(r->page.n < pages && r->count <= pages - r->page.n);
    if (!vc_wire_run_is_elsewhere(r))
        return;
    FUZZ_ASSERT(r->from_block < blocks->n_blocks);
    pages = vc_ram_block_pages(blocks, r->from_block);
    FUZZ_ASSERT(r->from_page.n < pages && r->count <= pages - r->from_page.n);
}

static bool run_equal(const struct vc_wire_run *a, const struct vc_wire_run *b)
{
    return a->kind == b->kind && a->named == b->named && a->as_page == b->as_page &&
           a->old == b->old && a->shifted == b->shifted && a->block == b->block &&
           a->page.n == b->page.n && a->count == b->count && a->from_block == b->from_block &&
           a->from_page.n == b->from_page.n;
}

static struct sums check_runs(struct vc_reader in, const struct vc_ram *blocks, uint64_t features)
{
    struct vc_wire_cursor c = {0}, ce = {0}, cd = {0};
    struct vc_err err = VC_ERR_INIT;
    struct vc_wire_run run, again;
    struct sums s = {0};
    int rc;

    while ((rc = vc_wire_run_decode(&in, &c, blocks, features, &run, &err)) == 0) {
        uint8_t buf[VC_WIRE_RUN_MAX_BYTES];
        struct vc_writer w = vc_writer(buf, sizeof(buf));
        struct vc_reader r;

        check_run(&run, blocks);
        vc_wire_run_encode(&w, &ce, &run);
        FUZZ_ASSERT(!w.failed);
        r = vc_reader(buf, w.len);
        FUZZ_ASSERT(vc_wire_run_decode(&r, &cd, blocks, features, &again, &err) == 0);
        FUZZ_ASSERT(run_equal(&run, &again) && vc_reader_left(&r) == 0);
        if (blocks || run.kind == VC_RUN_OPAQUE)
            sum_up(&s, &run, blocks);
    }
    fuzz_check_error(rc, &err);
    FUZZ_ASSERT(rc == VC_EOF || rc == VC_E_PROTOCOL);
    return s;
}

/* The same runs without OLD, which are as long, or shorter where they were shifted; false if they
 * are not all legal. */
static bool without_old(struct vc_reader in, const struct vc_ram *blocks, uint64_t features,
                        uint8_t *out, uint32_t *n)
{
    struct vc_writer w = vc_writer(out, in.len);
    struct vc_wire_cursor from = {0}, to = {0};
    struct vc_wire_run run;
    struct vc_err err;
    int rc;

    while ((rc = vc_wire_run_decode(&in, &from, blocks, features, &run, &err)) == 0) {
        run.old = run.shifted = false;
        vc_wire_run_encode(&w, &to, &run);
    }
    FUZZ_ASSERT(rc != VC_EOF || !w.failed);
    *n = (uint32_t)w.len;
    return rc == VC_EOF;
}

/* ---- whole batches ---- */

/* What old pages hold, one behind the other: like the contents that seeds have. */
static uint8_t *old_pages(size_t n)
{
    uint8_t *p = malloc(n + 1);

    FUZZ_ASSERT(p);
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(1 + i % 199);
    return p;
}

static void check_batch(struct vc_dst_batch *b)
{
    struct vc_digest before = {{1}}, seal, seal2;
    struct vc_err err = VC_ERR_INIT;
    uint64_t bytes = 0, pages = 0, invalid = 0;

    for (size_t i = 0; i < b->n_iov; i++) {
        const uint8_t *p = b->iov[i].iov_base;
        volatile uint8_t first = p[0], last = p[b->iov[i].iov_len - 1];

        (void)first;
        (void)last;
        bytes += b->iov[i].iov_len;
    }
    FUZZ_ASSERT(bytes == b->h.stream_bytes && bytes == b->iov_bytes);
    for (uint32_t i = 0; i < b->n_runs; i++)
        pages += has_content(&b->runs[i].run) ? b->runs[i].run.count : 0;
    FUZZ_ASSERT(pages == b->n_pages);
    for (uint32_t i = 0; i < b->n_runs; i++)
        invalid += b->runs[i].run.kind == VC_RUN_INVALIDATE ? b->runs[i].run.count : 0;
    FUZZ_ASSERT(!invalid ||
                invalid <= VC_WIRE_MAX_INVALIDATIONS * vc_ram_bytes(b->ram) / b->ram->page_bytes +
                               b->h.stream_bytes);
    for (uint32_t i = 0; i < b->n_pages; i++) {
        volatile uint8_t last = b->pages[i].content[b->ram->page_bytes - 1];

        (void)last;
    }
    FUZZ_ASSERT(vc_dst_batch_seal(b, seals, &before, &seal, &err) == 0);
    FUZZ_ASSERT(vc_dst_batch_seal(b, seals, &before, &seal2, &err) == 0);
    FUZZ_ASSERT(vc_digest_equal(&seal, &seal2));
}

/* The stream bytes of both are the same. */
static void check_equal(const struct vc_dst_batch *a, const struct vc_dst_batch *b)
{
    size_t i = 0, k = 0, at = 0, bt = 0;

    while (i < a->n_iov && k < b->n_iov) {
        size_t n = VC_MIN(a->iov[i].iov_len - at, b->iov[k].iov_len - bt);

        /* Pages of a checkpoint are not there yet. */
        if (!a->n_same)
            FUZZ_ASSERT(
                !memcmp((uint8_t *)a->iov[i].iov_base + at, (uint8_t *)b->iov[k].iov_base + bt, n));
        at += n;
        bt += n;
        if (at == a->iov[i].iov_len) {
            at = 0;
            i++;
        }
        if (bt == b->iov[k].iov_len) {
            bt = 0;
            k++;
        }
    }
    FUZZ_ASSERT(i == a->n_iov && k == b->n_iov);
}

static struct vc_dst_batch *parse(const uint8_t *p, size_t n, const struct vc_ram *blocks,
                                  uint64_t features)
{
    struct vc_link_frame *f = vc_link_frame_new(VC_WIRE_BATCH, 0, (uint32_t)n);
    struct vc_dst_batch *b = vc_dst_batch_new();
    struct vc_err err = VC_ERR_INIT;
    int rc;

    FUZZ_ASSERT(f && b);
    memcpy(f->payload, p, n);
    rc = vc_dst_batch_parse(b, f, blocks, features, codec, &err);
    fuzz_check_error(rc, &err);
    if (!rc && vc_wire_codec_is_delta(b->h.codec)) {
        size_t bytes = (size_t)b->n_old * blocks->page_bytes;
        uint8_t *prefix = old_pages(bytes);

        FUZZ_ASSERT(bytes > 0 && bytes <= b->h.stream_bytes);
        rc = vc_dst_batch_undelta(b, codec, prefix, bytes, &err);
        fuzz_check_error(rc, &err);
        free(prefix);
    }
    if (!rc)
        return b;
    FUZZ_ASSERT(rc == VC_E_PROTOCOL);
    vc_dst_batch_unref(b);
    return NULL;
}

static void raw(struct vc_reader in, const struct vc_ram *blocks, uint64_t features)
{
    struct vc_wire_batch h;
    struct vc_err err = VC_ERR_INIT;
    struct vc_dst_batch *b;
    uint8_t again[VC_WIRE_BATCH_HEADER_BYTES];
    int rc;

    if (in.len < VC_WIRE_BATCH_HEADER_BYTES)
        return; /* the table of frames does not let it pass */
    rc = vc_wire_batch_decode(in.data, in.len, &h, &err);
    fuzz_check_error(rc, &err);
    if (!rc) {
        vc_wire_batch_encode(again, &h);
        FUZZ_ASSERT(!memcmp(again, in.data, sizeof(again)));
    }
    b = parse(in.data, in.len, blocks, features);
    if (b)
        check_batch(b);
    vc_dst_batch_unref(b);
}

/* Makes the payload of a batch out of its body. */
static size_t make(uint8_t *out, size_t cap, const struct vc_wire_batch *like, const uint8_t *body,
                   bool compress)
{
    struct vc_wire_batch h = *like;
    uint8_t *at = out + VC_WIRE_BATCH_HEADER_BYTES;
    size_t n = 0;

    if (compress)
        n = vc_wire_body_compress(codec, body, h.body_bytes, NULL, at,
                                  cap - VC_WIRE_BATCH_HEADER_BYTES);
    h.codec = n ? VC_WIRE_CODEC_ZSTD : VC_WIRE_CODEC_NONE;
    vc_wire_batch_encode(out, &h);
    if (!n) {
        n = h.body_bytes;
        memcpy(at, body, n);
    }
    return VC_WIRE_BATCH_HEADER_BYTES + n;
}

/* A delta against old pages stands for the same as the batch without these. */
static void built_delta(const struct vc_wire_batch *like, struct sums *s, const uint8_t *body,
                        size_t cap, const struct vc_ram *blocks, uint64_t features)
{
    struct vc_wire_batch h = *like, plain_h = *like;
    struct vc_wire_prefix prefix = {.p = old_pages((size_t)s->old), .bytes = (size_t)s->old};
    uint8_t *payload = malloc(cap), *plain_body = malloc(h.body_bytes + 1u);
    size_t at = VC_WIRE_BATCH_HEADER_BYTES + h.runs_bytes, n;
    struct vc_dst_batch *plain = NULL, *delta;

    FUZZ_ASSERT(payload && plain_body);
    if (without_old(vc_reader(body, h.runs_bytes), blocks, features, plain_body,
                    &plain_h.runs_bytes)) {
        memcpy(plain_body + plain_h.runs_bytes, body + h.runs_bytes, h.body_bytes - h.runs_bytes);
        plain_h.body_bytes -= h.runs_bytes - plain_h.runs_bytes;
        plain = parse(payload, make(payload, cap, &plain_h, plain_body, false), blocks, features);
    }
    n = vc_wire_body_compress(codec, body + h.runs_bytes, h.body_bytes - h.runs_bytes, &prefix,
                              payload + at, cap - at);
    if (n) {
        h.codec = VC_WIRE_CODEC_DELTA;
        vc_wire_batch_encode(payload, &h);
        memcpy(payload + VC_WIRE_BATCH_HEADER_BYTES, body, h.runs_bytes);
        delta = parse(payload, at + n, blocks, features);
        FUZZ_ASSERT(!delta == (!plain || h.flags & VC_WIRE_BATCH_SELF_CONTAINED));
        if (delta) {
            check_batch(delta);
            check_equal(plain, delta);
        }
        vc_dst_batch_unref(delta);
    }
    vc_dst_batch_unref(plain);
    free(plain_body);
    free(payload);
    free((uint8_t *)prefix.p);
}

static void built(struct vc_reader in, const struct vc_ram *blocks, uint64_t features,
                  unsigned options)
{
    struct vc_reader runs = fuzz_part(&in, (size_t)fuzz_number(&in, 2)), rest = fuzz_rest(&in);
    struct sums s = check_runs(runs, blocks, features);
    size_t n = options & OPT_FILL && s.body < MAX_FILL ? (size_t)s.body : rest.len;
    size_t body_bytes = runs.len + n,
           cap = VC_WIRE_BATCH_HEADER_BYTES + vc_wire_body_bound(body_bytes);
    uint8_t *body = calloc(1, body_bytes + 1), *payload = malloc(cap);
    struct vc_wire_batch h = {
        .seq = 1,
        .stream_bytes = (uint32_t)s.stream,
        .runs_bytes = (uint32_t)runs.len,
        .body_bytes = (uint32_t)body_bytes,
        .flags = options & OPT_SELF ? VC_WIRE_BATCH_SELF_CONTAINED : 0,
    };
    struct vc_dst_batch *plain, *packed;

    FUZZ_ASSERT(body && payload);
    if (runs.len)
        memcpy(body, runs.data, runs.len);
    for (size_t i = 0; i < n && rest.len; i++)
        body[runs.len + i] = rest.data[i % rest.len];
    plain = parse(payload, make(payload, cap, &h, body, false), blocks, features);
    if (plain)
        check_batch(plain);
    FUZZ_ASSERT(!plain || !s.old);
    if (s.old && s.old <= VC_WIRE_MAX_BATCH_STREAM_BYTES)
        built_delta(&h, &s, body, cap, blocks, features);
    if (options & OPT_COMPRESS) {
        packed = parse(payload, make(payload, cap, &h, body, true), blocks, features);
        FUZZ_ASSERT(!plain == !packed);
        if (packed) {
            check_batch(packed);
            check_equal(plain, packed);
        }
        vc_dst_batch_unref(packed);
    }
    vc_dst_batch_unref(plain);
    free(body);
    free(payload);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct vc_reader in = vc_reader(data, n);
    unsigned options = (unsigned)fuzz_number(&in, 1);
    struct vc_reader list = fuzz_part(&in, (size_t)fuzz_number(&in, 2));
    uint64_t features = (options & OPT_MOVED ? VC_WIRE_FEATURE_MOVED : 0) |
                        (options & OPT_DELTA ? VC_WIRE_FEATURE_DELTA | VC_WIRE_FEATURE_RECENT |
                                                   VC_WIRE_FEATURE_SHIFTED
                                             : 0);
    const struct vc_ram *blocks = options & OPT_NO_BLOCKS ? NULL : &ram;
    struct vc_err err;

    set_up();
    if (vc_wire_blocks_decode(list.data, list.len, &ram, &err))
        default_ram();
    if (options & OPT_BUILD)
        built(in, blocks, features, options);
    else
        raw(fuzz_rest(&in), blocks, features);
    return 0;
}
