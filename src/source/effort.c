/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/effort.h"

/* What a step costs beside the one before: on a guest's pages with their old ones as the prefix,
 * 590, 460 and 110 MB/s were measured before these went through zstd's long distance matcher. */
static const struct {
    int level;
    double cost;
} steps[VC_EFFORT_STEPS] = {{0, 0}, {1, 0}, {3, 1.4}, {6, 4}};

/* Of the time: what counts as having to wait, and as having to wait for nothing. */
#define MUCH 0.1
#define NONE 0.02
/* So much faster must a probe have come through than the sender compresses: it says nothing about
 * what the rest of the way takes. */
#define WORTH 1.5

void vc_effort_init(struct vc_effort *e, bool helped)
{
    *e = (struct vc_effort){.step = 1, .helped = helped, .ahead = helped};
}

int vc_effort_level(struct vc_effort *e, uint64_t content_bytes, bool *probe)
{
    *probe = e->probe && content_bytes >= VC_EFFORT_PROBE_BYTES &&
             e->wire_bytes >= VC_EFFORT_PROBE_SHARE * content_bytes;
    if (!*probe)
        return steps[e->step].level;
    e->probe = false;
    return 0;
}

int vc_effort_ahead_level(const struct vc_effort *e)
{
    return e->ahead && !e->probe ? steps[e->step].level : 0;
}

/* Whether a step was slower than this, not long ago. */
static bool was_slower(const struct vc_effort *e, int step, double than, uint64_t now_ns)
{
    return e->seen[step].at_ns && now_ns - e->seen[step].at_ns < VC_EFFORT_MEMORY_NS &&
           e->seen[step].bytes_per_s < than;
}

/* Whether the dearer step would take no more than half of the time: the host has guests to run.
 * (What it costs from nothing is not known beforehand: any waiting is worth a try.) */
static bool has_time_for(const struct vc_effort *e, int step)
{
    return step == 1 ||
           (double)(e->waited_ns + e->worked_ns) > 2 * (double)e->worked_ns * steps[step].cost;
}

/* The sender is what everybody waits for. */
static void hurry(struct vc_effort *e, uint64_t now_ns, double rate, double probe_rate)
{
    if (e->step == 0 || was_slower(e, e->step - 1, rate, now_ns))
        return;
    if (e->step > 1 || probe_rate > WORTH * rate)
        e->step--;
    else
        e->probe = probe_rate == 0 && ++e->slow >= VC_EFFORT_PROBE_PERIODS;
}

static void decide(struct vc_effort *e, uint64_t now_ns, double probe_rate)
{
    double all_ns = (double)(e->waited_ns + e->worked_ns);
    double waited = (double)e->waited_ns / all_ns;
    double rate = (double)e->content_bytes * 1e9 / all_ns;

    if (e->idle) /* as hard as it likes, as long as that keeps up */
        return;
    e->seen[e->step].bytes_per_s = rate;
    e->seen[e->step].at_ns = now_ns;
    if (waited >= NONE)
        e->slow = 0;
    if (waited > MUCH) {
        if (e->step + 1 < VC_EFFORT_STEPS && has_time_for(e, e->step + 1) &&
            !was_slower(e, e->step + 1, rate, now_ns))
            e->step++;
        else
            e->ahead = false;
    } else if (waited < NONE) {
        if (e->helped && e->step && !e->ahead)
            e->ahead = true;
        else
            hurry(e, now_ns, rate, probe_rate);
    }
}

void vc_effort_note(struct vc_effort *e, uint64_t now_ns, uint64_t content_bytes,
                    uint64_t wire_bytes, uint64_t waited_ns, uint64_t worked_ns, bool backlogged,
                    double probe_rate)
{
    e->wire_bytes += wire_bytes;
    if (!content_bytes)
        return;
    e->content_bytes += content_bytes;
    e->waited_ns += waited_ns;
    e->worked_ns += worked_ns;
    e->idle |= !backlogged;
    if (e->waited_ns + e->worked_ns < VC_EFFORT_PERIOD_NS)
        return;
    decide(e, now_ns, probe_rate);
    e->content_bytes = e->waited_ns = e->worked_ns = 0;
    e->idle = false;
}
