/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef TEST_QSTREAM_H
#define TEST_QSTREAM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "qstream/qstream.h"

/* Shared by the tests of src/qstream: a writer of synthetic streams, and a feeder that cuts them in
 * different ways, rebuilds them, checks what must always hold, and records the items. */

/* ---- randomness: the seed is printed, and taken from VC_TEST_SEED ---- */

static uint64_t rng_state;

static inline void rng_seed(void)
{
    const char *s = getenv("VC_TEST_SEED");

    rng_state = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL);
    print_message("seed: VC_TEST_SEED=%llu\n", (unsigned long long)rng_state);
}

static inline uint64_t rng(void)
{
    uint64_t z = rng_state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* ---- writing streams ---- */

struct buf {
    uint8_t *d;
    size_t n, cap;
};

static inline uint8_t *put(struct buf *b, size_t n)
{
    if (n > b->cap - b->n) {
        b->cap = (b->cap + n) * 2;
        b->d = realloc(b->d, b->cap);
        assert_non_null(b->d);
    }
    b->n += n;
    return b->d + b->n - n;
}
static inline void put_be(struct buf *b, uint64_t v, unsigned n)
{
    vc_store_be(put(b, n), v, n);
}
static inline void put_u8(struct buf *b, uint8_t v)
{
    put_be(b, v, 1);
}
static inline void put_bytes(struct buf *b, const void *p, size_t n)
{
    memcpy(put(b, n), p, n);
}
static inline void put_fill(struct buf *b, uint8_t v, size_t n)
{
    memset(put(b, n), v, n);
}
static inline void put_str8(struct buf *b, const char *s)
{
    put_u8(b, (uint8_t)strlen(s));
    put_bytes(b, s, strlen(s));
}
static inline void buf_free(struct buf *b)
{
    free(b->d);
    *b = (struct buf){0};
}

static inline void put_header(struct buf *b)
{
    put_bytes(b, "QEVM\0\0\0\3", 8);
}
static inline void put_config(struct buf *b, const char *machine)
{
    put_u8(b, 7);
    put_be(b, strlen(machine), 4);
    put_bytes(b, machine, strlen(machine));
}
static inline void put_subsection(struct buf *b, const char *name)
{
    put_u8(b, 5);
    put_str8(b, name);
    put_be(b, 1, 4);
}
static inline void put_page_bits(struct buf *b, uint32_t bits)
{
    put_subsection(b, "configuration/target-page-bits");
    put_be(b, bits, 4);
}
static inline void put_command(struct buf *b, uint16_t command, const void *p, uint16_t n)
{
    put_u8(b, 8);
    put_be(b, command, 2);
    put_be(b, n, 2);
    if (n)
        put_bytes(b, p, n);
}
static inline void put_advise(struct buf *b, uint64_t sizes, uint64_t page_bytes)
{
    put_u8(b, 8);
    put_be(b, 3, 2);
    put_be(b, 16, 2);
    put_be(b, sizes, 8);
    put_be(b, page_bytes, 8);
}
/* A POSTCOPY_RAM_DISCARD of n ranges. */
static inline void put_discard(struct buf *b, const char *name, const uint64_t (*ranges)[2],
                               unsigned n)
{
    struct buf p = {0};

    put_u8(&p, 0);
    put_str8(&p, name);
    put_u8(&p, 0);
    for (unsigned i = 0; i < n; i++) {
        put_be(&p, ranges[i][0], 8);
        put_be(&p, ranges[i][1], 8);
    }
    put_command(b, 6, p.d, (uint16_t)p.n);
    buf_free(&p);
}
/* START (1) or FULL (4) */
static inline void put_start(struct buf *b, uint8_t type, uint32_t id, const char *idstr,
                             uint32_t version)
{
    put_u8(b, type);
    put_be(b, id, 4);
    put_str8(b, idstr);
    put_be(b, 0, 4);
    put_be(b, version, 4);
}
/* PART (2) or END (3) */
static inline void put_part(struct buf *b, uint8_t type, uint32_t id)
{
    put_u8(b, type);
    put_be(b, id, 4);
}
static inline void put_footer(struct buf *b, uint32_t id)
{
    put_u8(b, 0x7e);
    put_be(b, id, 4);
}
static inline void put_eos(struct buf *b)
{
    put_be(b, 0x10, 8);
}
/* A record's header, named unless name is NULL. */
static inline void put_record(struct buf *b, unsigned flag, uint64_t offset, const char *name)
{
    put_be(b, offset | flag | (name ? 0u : 0x20u), 8);
    if (name)
        put_str8(b, name);
}
static inline void put_zero(struct buf *b, uint64_t offset, const char *name)
{
    put_record(b, 2, offset, name);
    put_u8(b, 0);
}
/* Content that holds nothing that looks like a header. */
static inline void put_page(struct buf *b, uint64_t offset, const char *name, size_t page_bytes)
{
    uint8_t *p;

    put_record(b, 8, offset, name);
    p = put(b, page_bytes);
    for (size_t i = 0; i < page_bytes; i++)
        p[i] = (uint8_t)(0x81 + (offset >> 10) + i * 7) | 0x80;
}
static inline void put_block(struct buf *b, const char *name, uint64_t bytes)
{
    put_str8(b, name);
    put_be(b, bytes, 8);
}

#define RAM_ID 2u
#define RAM_BYTES (64ull << 12)
#define VGA_BYTES (4ull << 12)

/* START ram with two blocks. */
static inline void put_ram_start(struct buf *b, bool footer)
{
    put_start(b, 1, RAM_ID, "ram", 4);
    put_be(b, (RAM_BYTES + VGA_BYTES) | 4, 8);
    put_block(b, "pc.ram", RAM_BYTES);
    put_block(b, "vga.vram", VGA_BYTES);
    put_eos(b);
    if (footer)
        put_footer(b, RAM_ID);
}
static inline void put_preamble(struct buf *b)
{
    put_header(b);
    put_config(b, "pc-q35-7.2");
    put_command(b, 1, NULL, 0);
    put_command(b, 2, "\0\0\0\1", 4);
}
static inline void put_ram_end(struct buf *b)
{
    put_eos(b);
    put_footer(b, RAM_ID);
}
static inline void put_tail(struct buf *b)
{
    put_start(b, 4, 0, "timer", 2);
    put_fill(b, 0x55, 100);
    put_footer(b, 0);
    put_u8(b, 0);
    put_u8(b, 6);
    put_be(b, 2, 4);
    put_bytes(b, "{}", 2);
}
/* A whole precopy stream. */
static inline void put_precopy(struct buf *b)
{
    put_preamble(b);
    put_ram_start(b, true);
    put_part(b, 2, RAM_ID);
    put_page(b, 0, "pc.ram", 4096);
    for (uint64_t i = 1; i < 6; i++)
        put_zero(b, i << 12, NULL);
    put_page(b, 6 << 12, NULL, 4096);
    put_ram_end(b);
    put_part(b, 2, RAM_ID);
    put_page(b, 7 << 12, NULL, 4096);
    put_zero(b, 0, "vga.vram");
    put_ram_end(b);
    put_part(b, 3, RAM_ID);
    put_page(b, 1 << 12, "pc.ram", 4096);
    put_ram_end(b);
    put_tail(b);
}

/* ---- feeding ---- */

enum feed {
    FEED_WHOLE,       /* all at once */
    FEED_BYTES,       /* byte by byte, no flush before the end */
    FEED_CUTS,        /* random pieces, no flush before the end */
    FEED_BYTES_FLUSH, /* byte by byte, each flushed */
    FEED_CUTS_FLUSH,  /* random pieces, some flushed */
    FEED_MODES
};

struct seen {
    struct vc_qs_item item;
    size_t at; /* position of its first byte */
};

struct run {
    struct vc_qs_parser *p;
    struct buf in; /* borrowed */
    struct seen *items;
    size_t n, cap;
    size_t at;      /* bytes covered by items */
    bool ram, lost; /* EV_RAM was seen; LOST without RESUMED */
};

static inline void check_page(const struct run *r, const struct vc_qs_item *it)
{
    const struct vc_ram *ram = vc_qs_ram(r->p);

    assert_true(r->ram);
    assert_in_range(it->block, 0, ram->n_blocks - 1);
    assert_true(it->page.n < vc_ram_block_pages(ram, it->block));
}

/* What is said in qstream.h of every item. The bytes are rebuilt and compared. */
static inline void check_item(struct run *r, const struct vc_qs_item *it, size_t len)
{
    const uint8_t *d = r->in.d + r->at;
    uint8_t head[VC_QS_HEADER_MAX_BYTES];
    size_t n;

    assert_true(it->bytes >= 1 && it->bytes <= len);
    if (it->events & VC_QS_EV_RAM) {
        assert_false(r->ram);
        r->ram = true;
        assert_in_range(vc_qs_ram(r->p)->n_blocks, 1, VC_MAX_BLOCKS);
        if (it->kind == VC_QS_OPAQUE)
            assert_false(it->events & (VC_QS_EV_UNKNOWN | VC_QS_EV_LOST));
    }
    if (it->events & VC_QS_EV_LOST) {
        assert_int_equal(it->kind, VC_QS_OPAQUE);
        assert_string_not_equal(vc_qs_reason(r->p), "");
        r->lost = true;
    }
    if (it->events & VC_QS_EV_RESUMED) {
        assert_true(r->lost);
        r->lost = false;
    }
    if (it->events & VC_QS_EV_UNKNOWN) {
        assert_int_equal(it->kind, VC_QS_OPAQUE);
        check_page(r, it);
        assert_in_range(it->count, 1, vc_ram_block_pages(vc_qs_ram(r->p), it->block) - it->page.n);
    }
    if (it->kind == VC_QS_OPAQUE)
        return;
    assert_true(it->kind == VC_QS_PAGE || it->kind == VC_QS_ZERO);
    assert_false(r->lost);
    check_page(r, it);
    n = vc_qs_rebuild(vc_qs_ram(r->p), it->kind, it->block, it->page, it->named, head);
    assert_memory_equal(head, d, n);
    if (it->kind == VC_QS_PAGE) {
        assert_int_equal(n, it->header_bytes);
        assert_int_equal(it->bytes, n + vc_qs_ram(r->p)->page_bytes);
    } else {
        assert_int_equal(it->bytes, n);
    }
}

static inline void add_item(struct run *r, const struct vc_qs_item *it)
{
    if (r->n == r->cap) {
        r->cap = r->cap * 2 + 64;
        r->items = realloc(r->items, r->cap * sizeof(*r->items));
        assert_non_null(r->items);
    }
    r->items[r->n++] = (struct seen){*it, r->at};
    r->at += it->bytes;
}

/* Gives the parser what lies between r->at and `end`, in memory of exactly that size, so that the
 * sanitizer sees a look too far. */
static inline void feed_to(struct run *r, size_t end, bool flush)
{
    size_t len = end - r->at, base = r->at;
    uint8_t *d = malloc(len ? len : 1);

    assert_non_null(d);
    memcpy(d, r->in.d + r->at, len);
    while (r->at < end) {
        struct vc_qs_item it;
        size_t left = end - r->at;

        vc_qs_next(r->p, d + (r->at - base), left, flush, &it);
        if (it.kind == VC_QS_NEED) {
            assert_false(flush);
            assert_int_equal(it.bytes, 0);
            assert_true(left < VC_QS_NEED_MAX_BYTES);
            break;
        }
        check_item(r, &it, left);
        add_item(r, &it);
    }
    free(d);
}

static inline struct run run_hint(struct buf in, enum feed feed, uint32_t page_bytes_hint)
{
    struct run r = {.in = in};
    struct vc_err err = VC_ERR_INIT;
    size_t end = 0;

    assert_int_equal(vc_qs_parser_new(page_bytes_hint, &r.p, &err), 0);
    while (end < in.n) {
        size_t step = in.n;
        bool flush = feed == FEED_BYTES_FLUSH;

        if (feed == FEED_BYTES || feed == FEED_BYTES_FLUSH)
            step = 1;
        else if (feed != FEED_WHOLE)
            step = 1 + rng() % (rng() % 4 ? 30 : 6000);
        if (feed == FEED_CUTS_FLUSH)
            flush = rng() % 3 == 0;
        end = step < in.n - end ? end + step : in.n;
        feed_to(&r, end, flush);
    }
    feed_to(&r, in.n, true);
    assert_int_equal(r.at, in.n);
    return r;
}

static inline struct run run(struct buf in, enum feed feed)
{
    return run_hint(in, feed, 0);
}

static inline void run_free(struct run *r)
{
    vc_qs_parser_free(r->p);
    free(r->items);
}

/* The n-th item of that kind, or NULL. */
static inline const struct seen *nth(const struct run *r, enum vc_qs_kind kind, size_t n)
{
    for (size_t i = 0; i < r->n; i++)
        if (r->items[i].item.kind == kind && n-- == 0)
            return &r->items[i];
    return NULL;
}
static inline size_t count(const struct run *r, enum vc_qs_kind kind)
{
    size_t n = 0;

    for (size_t i = 0; i < r->n; i++)
        n += r->items[i].item.kind == kind;
    return n;
}
static inline size_t count_events(const struct run *r, unsigned event)
{
    size_t n = 0;

    for (size_t i = 0; i < r->n; i++)
        n += !!(r->items[i].item.events & event);
    return n;
}
/* Where the event's item begins; SIZE_MAX: nowhere. */
static inline size_t event_at(const struct run *r, unsigned event)
{
    for (size_t i = 0; i < r->n; i++)
        if (r->items[i].item.events & event)
            return r->items[i].at;
    return SIZE_MAX;
}

/* What passes does not depend on the cuts, as long as nothing is flushed. */
static inline void assert_same_run(const struct run *a, const struct run *b)
{
    size_t i = 0, j = 0;

    for (;;) {
        const struct vc_qs_item *x, *y;

        while (i < a->n && a->items[i].item.kind == VC_QS_OPAQUE && !a->items[i].item.events)
            i++;
        while (j < b->n && b->items[j].item.kind == VC_QS_OPAQUE && !b->items[j].item.events)
            j++;
        if (i == a->n || j == b->n)
            break;
        x = &a->items[i].item;
        y = &b->items[j].item;
        assert_int_equal(a->items[i].at, b->items[j].at);
        assert_int_equal(x->kind, y->kind);
        assert_int_equal(x->events, y->events);
        assert_int_equal(x->block, y->block);
        assert_int_equal(x->page.n, y->page.n);
        i++;
        j++;
    }
    assert_int_equal(i, a->n);
    assert_int_equal(j, b->n);
}

/* Runs a stream in every way; the result is that of the whole at once. */
static inline struct run run_all(struct buf in)
{
    struct run whole = run(in, FEED_WHOLE);

    for (int feed = FEED_BYTES; feed < FEED_MODES; feed++) {
        struct run r = run(in, (enum feed)feed);

        if (feed == FEED_BYTES || feed == FEED_CUTS)
            assert_same_run(&whole, &r);
        run_free(&r);
    }
    return whole;
}

#endif
