/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/reuse.h"

#include "base/compiler.h"

/* Of the destination's time: the disk is waited for; the link is; the disk could do twice as much.
 */
#define DISK_SHARE 0.8
#define LINK_SHARE 0.25
#define HALF_SHARE 0.45

void vc_reuse_init(struct vc_reuse *r)
{
    *r = (struct vc_reuse){.share = VC_REUSE_ALL, .hold_ns = VC_REUSE_HOLD_NS};
}

double vc_reuse_disk_rate(const struct vc_reuse *r, const struct vc_wire_reads *m)
{
    uint64_t ns = m->reading_ns - r->last.reading_ns;

    return ns ? (double)(m->bytes - r->last.bytes) * 1e9 / (double)ns : 0;
}

static void read_less(struct vc_reuse *r, uint64_t now_ns)
{
    if (r->share == 1 || (r->share == VC_REUSE_ALL && now_ns < r->held_until_ns))
        return;
    r->settling = true;
    r->share /= 2;
}

static void read_more(struct vc_reuse *r, uint64_t now_ns)
{
    if (r->share == VC_REUSE_ALL)
        return;
    r->share *= 2;
    r->settling = true;
    if (r->share == VC_REUSE_ALL) {
        r->held_until_ns = now_ns + r->hold_ns;
        r->hold_ns *= 2;
    }
}

void vc_reuse_report(struct vc_reuse *r, uint64_t now_ns, const struct vc_wire_reads *m)
{
    double elapsed = (double)(m->elapsed_ns - r->last.elapsed_ns);
    double reading = (double)(m->reading_ns - r->last.reading_ns);
    double waiting = (double)(m->waiting_ns - r->last.waiting_ns);

    r->last = *m;
    if (r->settling || elapsed <= 0) {
        r->settling = false;
        return;
    }
    if (reading > DISK_SHARE * elapsed)
        read_less(r, now_ns);
    else if (waiting > LINK_SHARE * elapsed &&
             (r->share == VC_REUSE_ALL / 2 || reading < HALF_SHARE * elapsed))
        read_more(r, now_ns); /* all of it, wherever the link turned out to be the slower one */
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
