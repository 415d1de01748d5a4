/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/recent.h"

#include <stdlib.h>
#include <string.h>

enum { NEVER = 0, LOST = 1, FIRST = 2 };
#define CYCLE (256u - FIRST)

static uint8_t rest(uint64_t seq)
{
    return (uint8_t)(FIRST + seq % CYCLE);
}

int vc_recent_init(struct vc_recent *r, uint64_t pages, struct vc_err *err)
{
    r->last = calloc(pages + 1, 1);
    return r->last
               ? 0
               : vc_err_set(err, VC_E_NOMEM, "no memory for %llu pages", (unsigned long long)pages);
}

void vc_recent_fini(struct vc_recent *r)
{
    free(r->last);
    r->last = NULL;
}

void vc_recent_sent(struct vc_recent *r, uint64_t page, uint64_t seq)
{
    if (r->last)
        r->last[page] = rest(seq);
}

void vc_recent_lost(struct vc_recent *r, uint64_t page, uint64_t n)
{
    if (r->last)
        memset(r->last + page, LOST, n);
}

bool vc_recent_is_noted(const struct vc_recent *r, uint64_t page)
{
    return r->last && r->last[page] != NEVER;
}

uint64_t vc_recent_before(const struct vc_recent *r, uint64_t page, uint64_t seq)
{
    uint8_t last = r->last ? r->last[page] : NEVER;
    unsigned ago;

    if (last < FIRST)
        return 0;
    ago = (unsigned)((seq % CYCLE + CYCLE - (last - FIRST)) % CYCLE);
    return ago && ago < seq ? seq - ago : 0;
}
