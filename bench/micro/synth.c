/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "synth.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "base/bytes.h"
#include "base/fdio.h"
#include "micro.h"

/* docs/internals/qemu-stream.md */
#define NAME "pc.ram"
#define RAM_ID 2u
#define FLAG_ZERO 0x02u
#define FLAG_MEM_SIZE 0x04u
#define FLAG_PAGE 0x08u
#define FLAG_EOS 0x10u
#define FLAG_CONTINUE 0x20u
#define ZERO_RUN 16u /* pages of zeroes come in runs */
#define CHUNKS_PER_PART 64u
#define SMALL_BYTES (SYNTH_CHUNK * 32u)

/* Where bytes go: a descriptor or memory. */
struct sink {
    int fd; /* -1: memory */
    uint8_t *p;
    size_t room, n;
    uint64_t bytes; /* all that was written, or would be */
    bool count;     /* only that */
    bool full;
};

/* What is not page content is gathered here between two writes. */
struct chunk {
    uint8_t small[SMALL_BYTES];
    size_t n_small, begun; /* bytes; those not yet in iov begin here */
    struct iovec iov[2 * SYNTH_CHUNK + 2];
    size_t n;
    unsigned data_pages, records;
};

static uint64_t hash(uint64_t x)
{
    return micro_random(&x);
}

/* Whether x belongs to a share of all numbers. */
static bool chosen(uint64_t x, double share)
{
    return (double)(hash(x) >> 11) < share * 0x1p53;
}

void synth_init(struct synth *s, uint64_t pages, double zero, double changed, double random)
{
    size_t random_bytes = (size_t)(random * SYNTH_PAGE) / 8 * 8;

    *s = (struct synth){.pages = pages, .zero = zero, .changed = changed, .passes = 1};
    s->pool = micro_alloc((size_t)SYNTH_CHUNK * SYNTH_PAGE);
    for (size_t i = 0; i < SYNTH_CHUNK; i++)
        micro_fill(s->pool + i * SYNTH_PAGE, random_bytes, i + 1);
}

void synth_fini(struct synth *s)
{
    free(s->pool);
}

struct vc_ram *synth_ram(const struct synth *s)
{
    struct vc_ram *ram = calloc(1, sizeof(*ram));

    if (!ram)
        micro_fail("no memory");
    ram->page_bytes = SYNTH_PAGE;
    ram->n_blocks = 1;
    strcpy(ram->blocks[0].name, NAME);
    ram->blocks[0].bytes = s->pages * SYNTH_PAGE;
    return ram;
}

bool synth_is_zero(const struct synth *s, uint64_t page)
{
    return chosen(page / ZERO_RUN, s->zero);
}

bool synth_is_changed(const struct synth *s, uint64_t page)
{
    return s->version && chosen(~page, s->changed);
}

const uint8_t *synth_page(struct synth *s, uint64_t page)
{
    uint8_t *p = s->pool + page % SYNTH_CHUNK * SYNTH_PAGE;

    vc_store_le(p, page + 1, 8);
    vc_store_le(p + 8, synth_is_changed(s, page), 8);
    return p;
}

static int flush(struct sink *out, struct chunk *c)
{
    int rc = 0;

    if (c->n_small > c->begun)
        c->iov[c->n++] = (struct iovec){c->small + c->begun, c->n_small - c->begun};
    for (size_t i = 0; i < c->n; i++)
        out->bytes += c->iov[i].iov_len;
    if (!out->count && out->fd >= 0)
        rc = vc_writev_full(out->fd, c->iov, c->n);
    for (size_t i = 0; !out->count && out->fd < 0 && i < c->n; i++) {
        memcpy(out->p + out->n, c->iov[i].iov_base, c->iov[i].iov_len);
        out->n += c->iov[i].iov_len;
    }
    c->n = c->n_small = c->begun = c->data_pages = c->records = 0;
    return rc;
}

static uint8_t *small(struct chunk *c, size_t n)
{
    c->n_small += n;
    return c->small + c->n_small - n;
}

static void put(struct chunk *c, const void *p, size_t n)
{
    memcpy(small(c, n), p, n);
}

static void put_be(struct chunk *c, uint64_t v, unsigned n)
{
    vc_store_be(small(c, n), v, n);
}

static void put_str8(struct chunk *c, const char *s)
{
    put_be(c, strlen(s), 1);
    put(c, s, strlen(s));
}

static void put_end(struct chunk *c)
{
    put_be(c, FLAG_EOS, 8);
    put_be(c, 0x7e, 1);
    put_be(c, RAM_ID, 4);
}

static void put_part(struct chunk *c, uint8_t type)
{
    put_be(c, type, 1);
    put_be(c, RAM_ID, 4);
}

static void put_start(struct chunk *c, const struct synth *s)
{
    static const char machine[] = "pc-i440fx-7.2";

    put(c, "QEVM\0\0\0\3", 8);
    put_be(c, 7, 1);
    put_be(c, sizeof(machine) - 1, 4);
    put(c, machine, sizeof(machine) - 1);
    put(c, "\x08\0\1\0\0", 5); /* OPEN_RETURN_PATH */
    put_be(c, 1, 1);
    put_be(c, RAM_ID, 4);
    put_str8(c, "ram");
    put_be(c, 0, 4);
    put_be(c, 4, 4);
    put_be(c, s->pages * SYNTH_PAGE | FLAG_MEM_SIZE, 8);
    put_str8(c, NAME);
    put_be(c, s->pages * SYNTH_PAGE, 8);
    put_end(c);
}

static void put_tail(struct chunk *c)
{
    put_be(c, 4, 1);
    put_be(c, 0, 4);
    put_str8(c, "timer");
    put_be(c, 0, 4);
    put_be(c, 2, 4);
    memset(small(c, 100), 0x55, 100);
    put_be(c, 0x7e, 1);
    put_be(c, 0, 4);
    put(c, "\0\6\0\0\0\2{}", 8);
}

static void put_record(struct synth *s, struct chunk *c, uint64_t page, bool named)
{
    unsigned flags = named ? 0 : FLAG_CONTINUE;
    bool zero = synth_is_zero(s, page);

    put_be(c, page * SYNTH_PAGE | flags | (zero ? FLAG_ZERO : FLAG_PAGE), 8);
    if (named)
        put_str8(c, NAME);
    c->records++;
    if (zero) {
        put_be(c, 0, 1);
        return;
    }
    c->iov[c->n++] = (struct iovec){c->small + c->begun, c->n_small - c->begun};
    c->begun = c->n_small;
    c->iov[c->n++] = (struct iovec){(void *)(uintptr_t)synth_page(s, page), SYNTH_PAGE};
    c->data_pages++;
}

/* One pass over the pages, as a section or several. */
static int put_pass(struct synth *s, struct sink *out, struct chunk *c, uint8_t type, bool named)
{
    unsigned chunks = 0;

    put_part(c, type);
    for (uint64_t i = 0; i < s->pages; i++) {
        put_record(s, c, i, named && i == 0);
        if (c->data_pages < SYNTH_CHUNK / 2 && c->records < SYNTH_CHUNK && i + 1 < s->pages)
            continue;
        if (++chunks % CHUNKS_PER_PART == 0 && i + 1 < s->pages) {
            put_end(c);
            put_part(c, type);
        }
        if (out->fd < 0 && !out->count && out->room - out->n < 3u * SYNTH_CHUNK * SYNTH_PAGE)
            out->full = true;
        if (flush(out, c) < 0)
            return -1;
        if (out->full)
            return 0;
    }
    put_end(c);
    return 0;
}

static int put_stream(struct synth *s, struct sink *out)
{
    static _Thread_local struct chunk c;

    c = (struct chunk){0};
    put_start(&c, s);
    for (unsigned i = 0; i < s->passes; i++) {
        if (put_pass(s, out, &c, 2, i == 0) < 0)
            return -1;
        if (out->full)
            return 0;
    }
    put_part(&c, 3);
    put_end(&c);
    put_tail(&c);
    return flush(out, &c);
}

uint64_t synth_stream_bytes(const struct synth *s)
{
    struct synth copy = *s;
    struct sink out = {.fd = -1, .count = true};

    (void)put_stream(&copy, &out);
    return out.bytes;
}

int synth_write(struct synth *s, int fd)
{
    struct sink out = {.fd = fd};

    return put_stream(s, &out);
}

size_t synth_to_memory(struct synth *s, uint8_t *p, size_t n)
{
    struct sink out = {.fd = -1, .p = p, .room = n};

    if (n < 4u * SYNTH_CHUNK * SYNTH_PAGE)
        micro_fail("too little memory for a stream");
    (void)put_stream(s, &out);
    return out.n;
}
