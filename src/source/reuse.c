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

static bool is_later(const struct vc_wire_reads *m, const struct vc_wire_reads *before)
{
    return m->elapsed_ns >= before->elapsed_ns && m->waiting_ns >= before->waiting_ns &&
           m->reading_ns >= before->reading_ns && m->bytes >= before->bytes &&
           m->content_bytes >= before->content_bytes;
}

/* What a window has shown. @reading: part of the time. */
static void judge(struct vc_reuse *r, uint64_t now_ns, double reading, double rate)
{
    if (r->before)
        end_attempt(r, now_ns, rate);
    if (r->settling)
        return;
    if (reading > WAITED_FOR && r->share > 1 && now_ns >= r->held_until_ns[LESS])
        attempt(r, r->share / 2, rate);
    else if (reading < HALF_IDLE && r->share < VC_REUSE_ALL && now_ns >= r->held_until_ns[MORE])
        attempt(r, r->share * 2, rate);
}

bool vc_reuse_report(struct vc_reuse *r, uint64_t now_ns, const struct vc_wire_reads *m)
{
    uint64_t elapsed, bytes;
    double reading;
    bool settling = r->settling;

    if (!is_later(m, &r->last))
        return false;
    r->last = *m;
    elapsed = m->elapsed_ns - r->begun.elapsed_ns;
    bytes = m->content_bytes - r->begun.content_bytes;
    reading = (double)(m->reading_ns - r->begun.reading_ns);
    if (bytes < (settling ? VC_REUSE_UNDER_WAY_BYTES : VC_REUSE_WINDOW_BYTES) ||
        (!settling && elapsed < VC_REUSE_WINDOW_NS))
        return true;
    r->begun = *m;
    if (settling)
        r->settling = false;
    else
        judge(r, now_ns, reading / (double)elapsed, (double)bytes * 1e9 / (double)elapsed);
    return true;
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
