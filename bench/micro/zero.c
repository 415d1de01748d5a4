/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The test for pages of zeroes: on pages that are, on pages that are not from their first word on,
 * and on pages of which only the last byte is not. */
#include <stdlib.h>

#include "digest/digest.h"
#include "micro.h"

#define PAGE 4096u
#define BYTES (1u << 20)

struct work {
    uint8_t *data;
    unsigned found;
};

static void test_all(void *arg)
{
    struct work *w = arg;
    unsigned found = 0;

    for (size_t at = 0; at < BYTES; at += PAGE)
        found += vc_is_zero(w->data + at, PAGE);
    w->found = found;
}

static void measure(const struct micro *m, struct work *w, const char *field, unsigned expected)
{
    struct micro_rate r = micro_measure(m, test_all, w, BYTES);

    if (w->found != expected)
        micro_fail("%s: %u pages of zeroes instead of %u", field, w->found, expected);
    micro_gb(field, &r);
}

int main(int argc, char **argv)
{
    struct work w = {0};
    struct micro m;

    micro_init(&m, "zero", NULL, argc, argv);
    w.data = micro_alloc(BYTES);
    measure(&m, &w, "zero", BYTES / PAGE);
    for (size_t at = 0; at < BYTES; at += PAGE)
        w.data[at + PAGE - 1] = 1;
    measure(&m, &w, "last_byte", 0);
    micro_fill(w.data, BYTES, 1);
    measure(&m, &w, "not_zero", 0);
    micro_print(&m);
    free(w.data);
    return 0;
}
