/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/reuse.h"

/* Of the destination's time: its disk is waited for; it could read twice as much. */
#define WAITED_FOR 0.8
#define HALF_IDLE 0.45
/* So much faster must it be to read less. The first time that gives up half of what reuse saves. */
#define WORTH_HALF 1.5
#define WORTH 1.15
/* So fast must it be still if more is read, which saves bytes. */
#define NO_SLOWER 0.95

enum { LESS, MORE };

void vc_reuse_init(struct vc_reuse *r)
{
    *r = (struct vc_reuse){
        .share = VC_REUSE_ALL,
        .hold_ns = {VC_REUSE_HOLD_NS, VC_REUSE_HOLD_NS},
    };
}

static void change(struct vc_reuse *r, unsigned share)
{
    r->share = share;
    r->settling = true;
}

/* An attempt ends: whether its share stays. */
static bool pays(const struct vc_reuse *r, double rate)
{
    if (r->share > r->before)
        return rate > r->rate_before * NO_SLOWER;
    return rate > r->rate_before * (r->before == VC_REUSE_ALL ? WORTH_HALF : WORTH);
}

static void end_attempt(struct vc_reuse *r, uint64_t now_ns, double rate)
{
    int way = r->share > r->before ? MORE : LESS;

    if (!pays(r, rate)) {
        r->held_until_ns[way] = now_ns + r->hold_ns[way];
        r->hold_ns[way] *= 2;
        change(r, r->before);
    }
    r->before = 0;
}

static void attempt(struct vc_reuse *r, unsigned share, double rate)
{
    r->before = r->share;
    r->rate_before = rate;
    change(r, share);
}

void vc_reuse_report(struct vc_reuse *r, uint64_t now_ns, const struct vc_wire_reads *m)
{
    uint64_t elapsed = m->elapsed_ns - r->begun.elapsed_ns;
    uint64_t bytes = m->content_bytes - r->begun.content_bytes;
    double reading, rate;

    r->last = *m;
    if (r->settling && bytes >= VC_REUSE_UNDER_WAY_BYTES) {
        r->settling = false;
        r->begun = *m;
        return;
    }
    if (r->settling || elapsed < VC_REUSE_WINDOW_NS || bytes < VC_REUSE_WINDOW_BYTES)
        return;
    reading = (double)(m->reading_ns - r->begun.reading_ns) / (double)elapsed;
    rate = (double)bytes * 1e9 / (double)elapsed;
    r->begun = *m;
    if (r->before)
        end_attempt(r, now_ns, rate);
    if (r->settling)
        return;
    if (reading > WAITED_FOR && r->share > 1 && now_ns >= r->held_until_ns[LESS])
        attempt(r, r->share / 2, rate);
    else if (reading < HALF_IDLE && r->share < VC_REUSE_ALL && now_ns >= r->held_until_ns[MORE])
        attempt(r, r->share * 2, rate);
}

bool vc_reuse_takes(unsigned share, struct vc_page page)
{
    unsigned part, turn = 0;

    if (share == VC_REUSE_ALL)
        return true;
    part = (unsigned)(page.n / VC_REUSE_RUN_PAGES) % VC_REUSE_ALL;
    /* Its bits the other way round: what is read lies spread among what is sent. */
    for (unsigned bit = 1; bit < VC_REUSE_ALL; bit *= 2)
        turn = turn * 2 + !!(part & bit);
    return turn < share;
}
