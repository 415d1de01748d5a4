/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef SYNTHETIC_H
#define SYNTHETIC_H

#include <ftw.h>
#include <unistd.h>

#include "test_qstream.h"

/* A pretended VM: memory whose pages are made of version numbers, and the migration stream that
 * QEMU would write of it. Shared by the tests of the two pipelines. */

#define MAX_PAGES 2048u
#define PAGE 4096u

/* A version number for each page; 0 is a page of zeroes. */
struct memory {
    unsigned pages;  /* at most MAX_PAGES */
    unsigned passes; /* over everything */
    unsigned shift;  /* each page has the content that belongs so many pages behind it */
    bool busy;       /* every page changes by a few bytes in each pass */
    unsigned writes; /* so many pages, any, are sent again after that, with anything in them */
    uint32_t version[MAX_PAGES];
};

/* Or'ed into a version: the same page, but for a few bytes. */
#define TOUCHED 0x80000000u

/* Every fourth version is of a kind that can be compressed. */
static inline void fill_page(uint8_t *p, unsigned page, uint32_t version)
{
    bool touched = version & TOUCHED;
    uint64_t x;

    version &= ~TOUCHED;
    x = page * 2654435761u + version * 40503u + 1;

    for (unsigned i = 0; i < PAGE; i += 8) {
        if (version % 4 != 3 || i % 512 == 0) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
        }
        memcpy(p + i, &x, 8);
    }
    if (touched) {
        p[100] ^= 0xff;
        p[3000] ^= 1;
    }
}

/* @changes: how many times a few of its bytes have changed. */
static inline void put_changed_page(struct buf *b, const struct memory *m, unsigned page,
                                    bool named, unsigned changes)
{
    const char *name = named ? "pc.ram" : NULL;
    unsigned content = m->shift ? (page + m->shift) % m->pages : page;
    uint8_t *p;

    if (!m->version[content]) {
        put_zero(b, (uint64_t)page * PAGE, name);
        return;
    }
    put_record(b, 0x08, (uint64_t)page * PAGE, name);
    p = put(b, PAGE);
    fill_page(p, content, m->version[content]);
    for (unsigned i = 0; i < changes; i++)
        p[(37 * i + page) % PAGE] ^= 0x5a;
}

static inline void put_memory_page(struct buf *b, const struct memory *m, unsigned page, bool named)
{
    put_changed_page(b, m, page, named, 0);
}

/* The beginning of a stream, up to the list of blocks. */
static inline void put_setup(struct buf *b, const struct memory *m)
{
    put_header(b);
    put_config(b, "pc-i440fx-7.2");
    put_command(b, 1, NULL, 0); /* OPEN_RETURN_PATH */
    put_start(b, 1, RAM_ID, "ram", 4);
    put_be(b, ((uint64_t)m->pages * PAGE) | 4, 8);
    put_block(b, "pc.ram", (uint64_t)m->pages * PAGE);
    put_ram_end(b);
}

/* Some page as it might be after a while, often one of a few. */
static inline void put_some_page(struct buf *b, const struct memory *m)
{
    static struct memory other;
    unsigned page = (unsigned)(rng() % (rng() % 4 ? m->pages : 24));

    if (rng() % 16 == 0) { /* zeroes, but QEMU has not seen that */
        put_record(b, 0x08, (uint64_t)page * PAGE, NULL);
        memset(put(b, PAGE), 0, PAGE);
        return;
    }
    other.version[page] = rng() % 8 ? m->version[page] : (uint32_t)(rng() % 5);
    put_changed_page(b, &other, page, false, (unsigned)(rng() % 6));
}

/* A whole precopy stream: passes over everything, then some pages again, among them those that
 * @later (may be NULL) has other versions of. */
static inline void put_migration(struct buf *b, const struct memory *m, const struct memory *later)
{
    bool named = true;

    put_setup(b, m);
    for (unsigned pass = 0; pass < m->passes; pass++) {
        put_part(b, 2, RAM_ID);
        for (unsigned i = 0; i < m->pages; i++)
            put_changed_page(b, m, i, i == 0, m->busy ? pass : 0);
        put_ram_end(b);
    }
    if (m->writes) {
        put_part(b, 2, RAM_ID);
        put_changed_page(b, m, 0, true, 1);
        for (unsigned i = 0; i < m->writes; i++)
            put_some_page(b, m);
        put_ram_end(b);
    }
    put_part(b, 3, RAM_ID);
    for (unsigned i = 0; i < m->pages; i++) {
        if (i % 97 != 0 && (!later || later->version[i] == m->version[i]))
            continue;
        put_memory_page(b, later ? later : m, i, named);
        named = false;
    }
    put_ram_end(b);
    put_tail(b);
}

static inline void some_memory(struct memory *m, unsigned pages)
{
    m->pages = pages;
    m->passes = 1;
    m->shift = 0;
    m->busy = false;
    m->writes = 0;
    for (unsigned i = 0; i < pages; i++)
        m->version[i] = i % 5 == 0 ? 0 : 1 + (uint32_t)(rng() % 3);
}

static inline int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st;
    (void)kind;
    (void)at;
    return remove(path);
}

static inline void remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

#endif
