/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The parser of QEMU's stream. Whatever the bytes are: items cover them all, in order; what is
 * rebuilt from the items is what went in; with flush the parser never waits; and what it reports
 * does not depend on where the input was cut.
 *
 * Input: the stream, then 8 bytes that choose the cuts and the hint for the page size. */

#include "qstream/qstream.h"
#include "fuzz.h"

#define TRAILER_BYTES 8u
/* Byte by byte only what is short: what is left over is given again each time. */
#define BYTEWISE_MAX_BYTES 2048u

enum feed { WHOLE, CUTS, CUTS_FLUSH, BYTES, FEEDS };

struct seen {
    size_t at;
    struct vc_qs_item item;
};

struct run {
    struct vc_qs_parser *p;
    const uint8_t *in;
    size_t n, at; /* bytes, and how many of them items have covered */
    bool ram, lost;
    struct seen *seen; /* items but for silent opaque ones */
    size_t n_seen, cap;
};

static void check_page(const struct run *r, const struct vc_qs_item *it)
{
    const struct vc_ram *ram = vc_qs_ram(r->p);

    FUZZ_ASSERT(r->ram);
    FUZZ_ASSERT(it->block < ram->n_blocks);
    FUZZ_ASSERT(it->page.n < vc_ram_block_pages(ram, it->block));
}

static void check_rebuilt(const struct run *r, const struct vc_qs_item *it)
{
    const struct vc_ram *ram = vc_qs_ram(r->p);
    uint8_t head[VC_QS_HEADER_MAX_BYTES];
    size_t n;

    FUZZ_ASSERT(it->kind == VC_QS_PAGE || it->kind == VC_QS_ZERO);
    FUZZ_ASSERT(!r->lost);
    check_page(r, it);
    n = vc_qs_rebuild(ram, it->kind, it->block, it->page, it->named, head);
    FUZZ_ASSERT(n <= it->bytes && !memcmp(head, r->in + r->at, n));
    if (it->kind == VC_QS_PAGE)
        FUZZ_ASSERT(n == it->header_bytes && it->bytes == n + ram->page_bytes);
    else
        FUZZ_ASSERT(it->bytes == n);
}

static void check_ram(const struct vc_ram *ram)
{
    FUZZ_ASSERT(ram->n_blocks >= 1 && ram->n_blocks <= VC_MAX_BLOCKS);
    FUZZ_ASSERT(ram->page_bytes >= VC_MIN_PAGE_BYTES && ram->page_bytes <= VC_MAX_PAGE_BYTES);
    for (uint32_t i = 0; i < ram->n_blocks; i++) {
        FUZZ_ASSERT(ram->blocks[i].name[0]);
        FUZZ_ASSERT(ram->blocks[i].bytes % ram->page_bytes == 0);
        FUZZ_ASSERT(vc_ram_find(ram, ram->blocks[i].name) == (int)i);
    }
}

static void check_item(struct run *r, const struct vc_qs_item *it, size_t len)
{
    FUZZ_ASSERT(it->bytes >= 1 && it->bytes <= len);
    if (it->events & VC_QS_EV_RAM) {
        FUZZ_ASSERT(!r->ram);
        r->ram = true;
        check_ram(vc_qs_ram(r->p));
    }
    if (it->events & VC_QS_EV_LOST) {
        FUZZ_ASSERT(it->kind == VC_QS_OPAQUE && vc_qs_reason(r->p)[0]);
        r->lost = true;
    }
    if (it->events & VC_QS_EV_RESUMED) {
        FUZZ_ASSERT(r->lost);
        r->lost = false;
    }
    if (it->events & VC_QS_EV_UNKNOWN) {
        FUZZ_ASSERT(it->kind == VC_QS_OPAQUE);
        check_page(r, it);
    }
    if (it->kind != VC_QS_OPAQUE)
        check_rebuilt(r, it);
}

static void note(struct run *r, const struct vc_qs_item *it)
{
    if (it->kind == VC_QS_OPAQUE && !it->events)
        return;
    if (r->n_seen == r->cap) {
        r->cap = 2 * r->cap + 64;
        r->seen = realloc(r->seen, r->cap * sizeof(*r->seen));
        FUZZ_ASSERT(r->seen);
    }
    r->seen[r->n_seen++] = (struct seen){r->at, *it};
}

/* Gives what lies between r->at and `end`, in memory of just that size. */
static void feed_to(struct run *r, size_t end, bool flush)
{
    size_t base = r->at;
    uint8_t *copy = malloc(end - base + 1);

    FUZZ_ASSERT(copy);
    if (end > base)
        memcpy(copy + 1, r->in + base, end - base);
    while (r->at < end) {
        size_t left = end - r->at;
        struct vc_qs_item it;

        vc_qs_next(r->p, copy + 1 + (r->at - base), left, flush, &it);
        if (it.kind == VC_QS_NEED) {
            FUZZ_ASSERT(!flush && it.bytes == 0 && left < VC_QS_NEED_MAX_BYTES);
            break;
        }
        check_item(r, &it, left);
        note(r, &it);
        r->at += it.bytes;
    }
    free(copy);
}

static void run_all(struct run *r, enum feed feed, uint64_t seed, uint32_t hint)
{
    struct vc_err err = VC_ERR_INIT;
    size_t end = 0;

    FUZZ_ASSERT(vc_qs_parser_new(hint, &r->p, &err) == 0);
    while (end < r->n) {
        size_t step = r->n;
        bool flush = false;

        if (feed == BYTES)
            step = 1;
        else if (feed != WHOLE)
            step = 1 + fuzz_random(&seed) % (fuzz_random(&seed) % 4 ? 64 : 8192);
        if (feed == CUTS_FLUSH)
            flush = fuzz_random(&seed) % 3 == 0;
        end = VC_MIN(r->n, end + step);
        feed_to(r, end, flush);
    }
    feed_to(r, r->n, true);
    FUZZ_ASSERT(r->at == r->n);
}

static void run_free(struct run *r)
{
    vc_qs_parser_free(r->p);
    free(r->seen);
}

static bool is_same(const struct seen *a, const struct seen *b)
{
    const struct vc_qs_item *x = &a->item, *y = &b->item;

    return a->at == b->at && x->kind == y->kind && x->events == y->events && x->block == y->block &&
           x->page.n == y->page.n && x->named == y->named;
}

static void print_seen(const char *how, const struct run *r, size_t i)
{
    const struct seen *s = i < r->n_seen ? &r->seen[i] : NULL;

    if (s)
        fprintf(stderr, "%s: item %zu at %zu: kind %d events %#x block %u page %llu\n", how, i,
                s->at, s->item.kind, s->item.events, s->item.block,
                (unsigned long long)s->item.page.n);
    else
        fprintf(stderr, "%s: no item %zu\n", how, i);
    fprintf(stderr, "%s: reason '%s', page size %u\n", how, vc_qs_reason(r->p),
            vc_qs_ram(r->p)->page_bytes);
}

static void check_same(const struct run *a, const struct run *b)
{
    size_t i = 0;

    while (i < a->n_seen && i < b->n_seen && is_same(&a->seen[i], &b->seen[i]))
        i++;
    if (i < a->n_seen || i < b->n_seen) {
        print_seen("whole", a, i);
        print_seen("cut", b, i);
    }
    FUZZ_ASSERT(i == a->n_seen && i == b->n_seen);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const uint32_t hints[] = {0, 4096, 1024, 8192, 16384, 65536};
    size_t trailer = VC_MIN(n, (size_t)TRAILER_BYTES);
    uint64_t seed = trailer ? vc_load_le(data + n - trailer, (unsigned)trailer) : 0;
    uint32_t hint = hints[(seed >> 56) % VC_ARRAY_LEN(hints)];
    struct run whole = {.in = data, .n = n - trailer};

    run_all(&whole, WHOLE, seed, hint);
    for (int feed = CUTS; feed < FEEDS; feed++) {
        struct run r = {.in = data, .n = n - trailer};

        if (feed == BYTES && r.n > BYTEWISE_MAX_BYTES)
            continue;
        run_all(&r, (enum feed)feed, seed, hint);
        if (feed != CUTS_FLUSH)
            check_same(&whole, &r);
        run_free(&r);
    }
    run_free(&whole);
    return 0;
}
