/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/rate.h"

#include "base/compiler.h"

#define STEP_NS (VC_RATE_WINDOW_NS / (VC_RATE_SAMPLES - 1))

static unsigned at(const struct vc_rate *r, unsigned i)
{
    return (r->first + i) % VC_RATE_SAMPLES;
}

static void drop_first(struct vc_rate *r)
{
    r->first = at(r, 1);
    r->n--;
}

/* The first one stays the last that is as old as the window. */
static void keep_window(struct vc_rate *r, uint64_t now_ns)
{
    while (r->n > 1 && now_ns - r->s[at(r, 1)].ns >= VC_RATE_WINDOW_NS)
        drop_first(r);
}

double vc_rate_note(struct vc_rate *r, uint64_t now_ns, uint64_t sent, uint64_t acked)
{
    uint64_t span, bytes;
    unsigned first;

    if (r->n == 0 || now_ns - r->s[at(r, r->n - 1)].ns >= STEP_NS) {
        if (r->n == VC_RATE_SAMPLES)
            drop_first(r);
        r->s[at(r, r->n)].ns = now_ns;
        r->s[at(r, r->n)].sent = sent;
        r->s[at(r, r->n)].acked = acked;
        r->n++;
    }
    keep_window(r, now_ns);
    first = at(r, 0);
    span = now_ns - r->s[first].ns;
    bytes = VC_MIN(sent - r->s[first].sent, acked - r->s[first].acked);
    return span < VC_RATE_LEAST_NS ? 0 : (double)bytes * 1e9 / (double)span;
}
