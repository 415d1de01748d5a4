/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BENCH_SYNTH_H
#define VC_BENCH_SYNTH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/units.h"

/* A pretended VM of any size, and its migration stream, made while it is written: no page of it is
 * kept. Every page that is not zero differs from every other. */

#define SYNTH_PAGE 4096u
#define SYNTH_CHUNK 512u /* pages that are written at once */

struct synth {
    uint64_t pages;
    double zero, changed; /* shares, 0 to 1: pages of zeroes; others rewritten since version 0 */
    unsigned version;     /* 0, or 1: with the changed pages as they are now */
    unsigned passes;      /* how often the stream goes over all pages */
    uint8_t *pool;        /* SYNTH_CHUNK pages; each gets a stamp when it is used */
};

/** @random: how much of a page does not compress, 0 to 1. */
void synth_init(struct synth *s, uint64_t pages, double zero, double changed, double random);
void synth_fini(struct synth *s);

struct vc_ram *synth_ram(const struct synth *s); /* malloc'd */
bool synth_is_zero(const struct synth *s, uint64_t page);
bool synth_is_changed(const struct synth *s, uint64_t page);
/** The page's content, in the pool: valid until the call for a page SYNTH_CHUNK further on. */
const uint8_t *synth_page(struct synth *s, uint64_t page);

/** Length of the whole stream. */
uint64_t synth_stream_bytes(const struct synth *s);
/** Writes it to a descriptor: 0 or -1 with errno. */
int synth_write(struct synth *s, int fd);
/** Writes the stream's first bytes into memory: up to n; whole records only. */
size_t synth_to_memory(struct synth *s, uint8_t *p, size_t n);

#endif
