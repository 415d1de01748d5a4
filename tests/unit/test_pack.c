/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Frames of batches, taken apart again: whatever a batch is made of, and in whichever form, its
 * body is what its runs say. */

#include "test_qstream.h"

#include "link/link.h"
#include "source/pack.h"

#define SLAB_BYTES (1u << 20)
#define MEMORY_BYTES (64u << 20)

static struct vc_slab_pool pool;
static struct vc_ram ram = {.n_blocks = 1};

/* ---- batches ---- */

enum { DATA, SAME, ZERO_PAGE, ZERO, OPAQUE, UNKNOWN, KINDS };

/* Some of it can be compressed. */
static void fill(uint8_t *p, size_t n, bool hard)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(hard ? rng() : i / 7);
}

static void add_page(struct vc_src_batch *b, struct vc_slab *slab, uint8_t *content, unsigned kind,
                     struct vc_page page, uint32_t page_bytes)
{
    static const struct vc_digest digest;
    struct vc_wire_run run = {
        .kind = kind == DATA   ? VC_RUN_DATA
                : kind == SAME ? VC_RUN_SAME
                               : VC_RUN_ZERO,
        .as_page = kind == ZERO_PAGE,
        .page = page,
    };

    if (kind == ZERO_PAGE)
        memset(content, 0, page_bytes);
    vc_src_batch_add_page(b, slab, &run, 8, kind == ZERO ? NULL : content, page_bytes, &digest,
                          false);
}

/* @likely: a kind that most of its items are of. */
static struct vc_src_batch *a_batch(uint32_t page_bytes, unsigned likely, unsigned items, bool hard)
{
    struct vc_src_batch *b = vc_src_batch_new(VC_SRC_BATCH, 1, 0);
    struct vc_slab *slab;
    struct vc_err err;
    uint64_t page = 0;
    size_t used = 0;

    assert_non_null(b);
    assert_int_equal(vc_slab_get(&pool, UINT64_MAX, &slab, &err), 0);
    b->ram = &ram;
    for (unsigned i = 0; i < items; i++) {
        unsigned kind = rng() % 4 ? likely : (unsigned)(rng() % KINDS);
        uint32_t n = kind == OPAQUE ? 1 + (uint32_t)(rng() % 5000) : page_bytes;

        if (used + n > SLAB_BYTES || !vc_src_batch_has_room(b, n + 8, slab))
            break;
        fill(slab->data + used, n, hard);
        page += 1 + !(rng() % 8);
        if (kind == OPAQUE)
            vc_src_batch_add_opaque(b, slab, slab->data + used, n);
        else if (kind == UNKNOWN)
            vc_src_batch_add_invalidate(b, 0, vc_page(page), 1);
        else
            add_page(b, slab, slab->data + used, kind, vc_page(page), page_bytes);
        used += n;
    }
    vc_slab_unref(slab);
    return b;
}

/* ---- frames ---- */

static uint8_t *flatten(const struct vc_link_frame *f)
{
    uint8_t *p = malloc(f->bytes);
    size_t n = f->bytes - (f->rest ? f->rest->bytes : 0);

    assert_non_null(p);
    memcpy(p, f->payload, n);
    for (uint32_t i = VC_REST_FIRST; f->rest && i < f->rest->n_pieces; i++) {
        const struct iovec *piece = &f->rest->pieces[i];

        assert_true(n + piece->iov_len <= f->bytes);
        memcpy(p + n, piece->iov_base, piece->iov_len);
        n += piece->iov_len;
    }
    assert_int_equal(n, f->bytes);
    return p;
}

/* The body, as the destination has it. */
static uint8_t *unpack(struct vc_wire_codec *codec, const struct vc_link_frame *f,
                       struct vc_wire_batch *h)
{
    vc_auto_free uint8_t *p = flatten(f);
    size_t n = f->bytes - VC_WIRE_BATCH_HEADER_BYTES;
    struct vc_err err;
    uint8_t *body;

    assert_int_equal(vc_wire_batch_decode(p, f->bytes, h, &err), 0);
    body = malloc(h->body_bytes + 1);
    assert_non_null(body);
    if (h->codec == VC_WIRE_CODEC_NONE) {
        assert_int_equal(n, h->body_bytes);
        memcpy(body, p + VC_WIRE_BATCH_HEADER_BYTES, n);
    } else {
        assert_int_equal(h->codec, VC_WIRE_CODEC_ZSTD);
        assert_int_equal(vc_wire_body_expand(codec, p + VC_WIRE_BATCH_HEADER_BYTES, n, NULL, 0,
                                             body, h->body_bytes, &err),
                         0);
    }
    return body;
}

static const uint8_t *check_contents(const struct vc_src_batch *b, const struct vc_src_run *r,
                                     const uint8_t *p)
{
    if (r->run.kind == VC_RUN_OPAQUE) {
        assert_memory_equal(p, r->bytes, r->run.count);
        return p + r->run.count;
    }
    for (uint64_t k = 0; k < r->run.count; k++, p += ram.page_bytes)
        assert_memory_equal(p, b->content[r->first + k], ram.page_bytes);
    return p;
}

static void check_frame(struct vc_wire_codec *codec, const struct vc_src_batch *b,
                        const struct vc_link_frame *f, enum vc_src_form form)
{
    struct vc_wire_cursor c = {0};
    struct vc_wire_batch h;
    vc_auto_free uint8_t *body = unpack(codec, f, &h);
    struct vc_reader r = vc_reader(body, h.runs_bytes);
    const uint8_t *p = body + h.runs_bytes;
    struct vc_err err;

    for (uint32_t i = 0; i < b->n_runs; i++) {
        const struct vc_src_run *expected = &b->runs[i];
        uint8_t kind = expected->run.kind;
        struct vc_wire_run run;

        if (kind == VC_RUN_SAME && form == VC_SRC_SELF_CONTAINED)
            kind = VC_RUN_DATA;
        assert_int_equal(vc_wire_run_decode(&r, &c, &ram, 0, &run, &err), 0);
        assert_int_equal(run.kind, kind);
        assert_int_equal(run.count, expected->run.count);
        if (kind == VC_RUN_DATA || kind == VC_RUN_OPAQUE)
            p = check_contents(b, expected, p);
    }
    assert_int_equal(r.off, r.len);
    assert_ptr_equal(p, body + h.body_bytes);
}

static void a_frame_holds_what_its_batch_is(void **state)
{
    static const uint32_t sizes[] = {VC_MIN_PAGE_BYTES, 4096, 8192, VC_MAX_PAGE_BYTES};
    static const unsigned items[] = {0, 1, 5, 40, 400};
    struct vc_wire_codec *codec;
    struct vc_packer packer;
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_wire_codec_new(1, &codec, &err), 0);
    assert_int_equal(vc_packer_init(&packer, NULL, NULL, NULL, NULL, &err), 0);
    for (unsigned round = 0; round < 3000; round++) {
        unsigned likely = round % KINDS, n = items[rng() % VC_ARRAY_LEN(items)];
        enum vc_src_form form = rng() % 2 ? VC_SRC_PLAIN : VC_SRC_SELF_CONTAINED;
        struct vc_src_batch *b;
        struct vc_link_frame *f;

        ram.page_bytes = sizes[rng() % VC_ARRAY_LEN(sizes)];
        b = a_batch(ram.page_bytes, likely, n, rng() % 2);
        f = vc_packer_frame(&packer, b, form, (int)(rng() % 3));
        assert_non_null(f);
        check_frame(codec, b, f, form);
        vc_src_batch_unref(b);
        free(flatten(f)); /* it has a reference of its own */
        vc_link_frame_free(f);
    }
    vc_packer_fini(&packer);
    vc_wire_codec_free(codec);
}

static int setup(void **state)
{
    struct vc_err err;

    (void)state;
    ram.blocks[0] = (struct vc_block){"pc.ram", MEMORY_BYTES};
    return vc_slab_pool_init(&pool, SLAB_BYTES, 1, &err); /* so that a reference kept is noticed */
}

static int teardown(void **state)
{
    (void)state;
    vc_slab_pool_fini(&pool);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_frame_holds_what_its_batch_is),
    };

    rng_seed();
    return cmocka_run_group_tests(tests, setup, teardown);
}
