/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/err.h"

/* What the fuzz targets share: tests/fuzz/README.md. A target is one file that defines
 * LLVMFuzzerTestOneInput(); it is built with libFuzzer, and with replay.c to run its corpus. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* A promise that was broken: dies so that fuzzers and sanitizers notice. */
#define FUZZ_ASSERT(cond)                                                                    \
    do {                                                                                     \
        if (!(cond)) {                                                                       \
            fprintf(stderr, "%s:%d: %s: broken: %s\n", __FILE__, __LINE__, __func__, #cond); \
            abort();                                                                         \
        }                                                                                    \
    } while (0)

/* The next bytes of the input as a number; 0 behind its end. */
static inline uint64_t fuzz_number(struct vc_reader *r, unsigned bytes)
{
    uint64_t v = vc_reader_left(r) >= bytes ? vc_read_le(r, bytes) : 0;

    return v;
}

/* Up to n bytes of the input. */
static inline struct vc_reader fuzz_part(struct vc_reader *r, size_t n)
{
    n = VC_MIN(n, vc_reader_left(r));
    return vc_reader(n ? vc_read_bytes(r, n) : (const uint8_t *)"", n);
}

/* All that is left. */
static inline struct vc_reader fuzz_rest(struct vc_reader *r)
{
    return fuzz_part(r, SIZE_MAX);
}

/* A sequence of numbers that a seed determines (Steele et al., SplitMix64). */
static inline uint64_t fuzz_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* An error that was reported is one: a code, and one line of text. */
static inline void fuzz_check_error(int rc, const struct vc_err *err)
{
    if (rc >= 0)
        return;
    FUZZ_ASSERT(err->code == rc);
    FUZZ_ASSERT(err->message[0] && !strchr(err->message, '\n'));
    FUZZ_ASSERT(memchr(err->message, 0, sizeof(err->message)));
}

#endif
