/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/reuse.h"

/* Of the destination's time: its disk is waited for. */
#define WAITED_FOR 0.8
/* Of its disk's time twice as much may take, to be tried. */
#define IN_TIME 0.9
/* So much faster must it be to read less. The first time that gives up half of what reuse saves. */
#define WORTH_HALF 1.5
#define WORTH 1.15
/* So fast must it be still if more is read, which saves bytes. */
#define NO_SLOWER 0.95
/* So many windows may an attempt to read less take, while the disk is waited for still. */
#define MAX_WINDOWS 3

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

/* How fast the disk is: what it did lately counts more. */
static void note_reading(struct vc_reuse *r, const struct vc_wire_reads *from,
                         const struct vc_wire_reads *to)
{
    r->read_bytes = r->read_bytes / 2 + (double)(to->bytes - from->bytes);
    r->read_ns = r->read_ns / 2 + (double)(to->reading_ns - from->reading_ns);
}

/* Whether twice as much could be read without being waited for, at this rate. */
static bool could_read_more(const struct vc_reuse *r, double rate)
{
    double disk = r->read_bytes * 1e9 / r->read_ns;

    return r->share < VC_REUSE_ALL && rate * 2 * r->share / VC_REUSE_ALL < disk * IN_TIME;
}

/* What a window up to @m has shown. False: it says too little, and goes on. */
static bool judge(struct vc_reuse *r, uint64_t now_ns, const struct vc_wire_reads *m)
{
    double elapsed = (double)(m->elapsed_ns - r->begun.elapsed_ns);
    double reading = (double)(m->reading_ns - r->begun.reading_ns) / elapsed;
    double rate = (double)(m->content_bytes - r->begun.content_bytes) * 1e9 / elapsed;

    if (r->before) {
        /* The disk is what is waited for, so the link could take more: only chance says that less
         * to read is no faster. */
        if (r->share < r->before && reading > WAITED_FOR && !pays(r, rate) &&
            ++r->windows < MAX_WINDOWS)
            return false;
        end_attempt(r, now_ns, rate);
    }
    note_reading(r, &r->begun, m);
    if (r->settling)
        return true;
    if (reading > WAITED_FOR && r->share > 1 && now_ns >= r->held_until_ns[LESS])
        attempt(r, r->share / 2, rate);
    else if (could_read_more(r, rate) && now_ns >= r->held_until_ns[MORE])
        attempt(r, r->share * 2, rate);
    return true;
}

bool vc_reuse_report(struct vc_reuse *r, uint64_t now_ns, const struct vc_wire_reads *m)
{
    bool settling = r->settling;
    unsigned times = r->windows + 1;
    uint64_t bytes;

    if (!is_later(m, &r->last))
        return false;
    r->last = *m;
    if (!r->begun.elapsed_ns) /* before, it had yet to begin */
        r->begun = *m;
    bytes = m->content_bytes - r->begun.content_bytes;
    if (settling ? bytes < VC_REUSE_UNDER_WAY_BYTES
                 : bytes < times * VC_REUSE_WINDOW_BYTES ||
                       m->elapsed_ns - r->begun.elapsed_ns < times * VC_REUSE_WINDOW_NS)
        return true;
    if (settling)
        r->settling = false;
    else if (!judge(r, now_ns, m))
        return true;
    r->windows = 0;
    r->begun = *m;
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
