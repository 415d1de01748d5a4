/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/flow.h"

#include "base/compiler.h"

/* Time after which an old maximum is forgotten. */
#define RATE_PERIOD_NS (1000 * 1000000ull)
/* The share of "what is left / limit" at which to take in: below 1, since QEMU divides by a rate
 * that is up to two windows old, and what is left shrinks meanwhile. */
#define PACE_SHARE 0.5

void vc_flow_sent(struct vc_flow *f, uint64_t now_ns, const struct vc_flow_batch *batch,
                  struct vc_flow_mark *mark)
{
    if (f->sent_stream == f->acked_stream)
        f->acked_ns = now_ns; /* nothing was under way: idle time is not part of a sample */
    *mark = (struct vc_flow_mark){
        .sent_ns = now_ns,
        .acked_wire = f->acked_wire,
        .acked_stream = f->acked_stream,
        .acked_data = f->acked_data,
        .acked_ns = f->acked_ns,
        .batch = *batch,
    };
    f->sent_wire += batch->wire_bytes;
    f->sent_stream += batch->stream_bytes;
}

/* A sample that the link did not limit says only that the rate is at least that. */
static void rate_sample(struct vc_flow_rate *r, double sample, uint64_t now_ns, bool limited)
{
    if (now_ns - r->period_start_ns > RATE_PERIOD_NS) {
        if (r->current > 0)
            r->bytes_per_s = r->current;
        r->current = 0;
        r->period_start_ns = now_ns;
    }
    if (!limited && sample <= r->bytes_per_s)
        return;
    if (sample > r->current)
        r->current = sample;
    if (sample > r->bytes_per_s)
        r->bytes_per_s = sample;
}

void vc_flow_acked(struct vc_flow *f, uint64_t now_ns, const struct vc_flow_mark *mark)
{
    uint64_t rtt = now_ns - mark->sent_ns;
    uint64_t span = now_ns - mark->acked_ns;
    const struct vc_flow_batch *batch = &mark->batch;
    uint64_t wire, stream, data;

    f->acked_wire += batch->wire_bytes;
    f->acked_stream += batch->stream_bytes;
    f->acked_data += batch->data_bytes;
    f->acked_ns = now_ns;
    wire = f->acked_wire - mark->acked_wire;
    stream = f->acked_stream - mark->acked_stream;
    data = f->acked_data - mark->acked_data;
    if (rtt > 0 && (f->min_rtt_ns == 0 || rtt < f->min_rtt_ns))
        f->min_rtt_ns = rtt;
    if (batch->probe && rtt > f->min_rtt_ns) {
        f->probe_rate = (double)batch->wire_bytes * 1e9 / (double)(rtt - f->min_rtt_ns);
        f->probe_ns = now_ns;
    }
    if (span == 0)
        return;
    /* Small bursts say nothing about a rate. */
    if (wire >= VC_FLOW_BATCH_MIN_BYTES)
        rate_sample(&f->wire, (double)wire * 1e9 / (double)span, now_ns, batch->wire_limited);
    rate_sample(&f->stream, (double)stream * 1e9 / (double)span, now_ns, true);
    /* Where most of it was reused, the time it took says little about new pages. */
    if (data >= VC_FLOW_BATCH_MIN_BYTES && data >= stream / 2)
        rate_sample(&f->data, (double)data * 1e9 / (double)span, now_ns, batch->backlogged);
}

static uint64_t limit(double rate, uint64_t rtt_ns, uint64_t slack_ns, uint64_t min)
{
    double bytes = rate * (double)(rtt_ns + slack_ns) / 1e9;

    return bytes > (double)min ? (uint64_t)bytes : min;
}

uint64_t vc_flow_wire_limit(const struct vc_flow *f)
{
    return limit(f->wire.bytes_per_s, f->min_rtt_ns, VC_FLOW_WIRE_SLACK_NS, VC_FLOW_WIRE_MIN_BYTES);
}

uint64_t vc_flow_stream_limit(const struct vc_flow *f, uint64_t most)
{
    uint64_t n = limit(f->stream.bytes_per_s, f->min_rtt_ns, VC_FLOW_STREAM_SLACK_NS,
                       VC_FLOW_STREAM_MIN_BYTES);

    return VC_MIN(n, most);
}

enum vc_flow_verdict vc_flow_may_send(const struct vc_flow *f, uint64_t most_stream)
{
    if (f->sent_wire - f->acked_wire >= vc_flow_wire_limit(f))
        return VC_FLOW_WIRE_FULL;
    if (f->sent_stream - f->acked_stream >= vc_flow_stream_limit(f, most_stream))
        return VC_FLOW_STREAM_FULL;
    return VC_FLOW_GO;
}

uint32_t vc_flow_batch_data(const struct vc_flow *f)
{
    uint64_t n = limit(vc_flow_data_rate(f), 0, VC_FLOW_BATCH_SLACK_NS, VC_FLOW_BATCH_MIN_BYTES);

    return (uint32_t)VC_MIN(n, (uint64_t)VC_FLOW_BATCH_MAX_BYTES);
}

double vc_flow_wire_rate(const struct vc_flow *f)
{
    return f->wire.bytes_per_s;
}

double vc_flow_data_rate(const struct vc_flow *f)
{
    return f->data.bytes_per_s > 0 ? f->data.bytes_per_s : f->wire.bytes_per_s;
}

double vc_flow_probe_rate(const struct vc_flow *f, uint64_t now_ns, uint64_t age_ns)
{
    return f->probe_ns && now_ns - f->probe_ns < age_ns ? f->probe_rate : 0;
}

uint64_t vc_flow_downtime_limit(double data_rate, double intake_rate, uint64_t user_ms,
                                uint64_t least_ms)
{
    double share = data_rate > 0 && intake_rate > data_rate ? data_rate / intake_rate : 1;
    uint64_t limit = (uint64_t)((double)user_ms * share);

    return VC_MIN(VC_MAX(limit, least_ms), user_ms);
}

double vc_flow_pace(double data_rate, uint64_t remaining_bytes, uint64_t limit_ns)
{
    double rate = data_rate > 0 ? data_rate : VC_FLOW_UNKNOWN_RATE;
    double limit_s = (double)(limit_ns > 0 ? limit_ns : 1) / 1e9;
    double pause_s = (double)VC_FLOW_PAUSE_NS / 1e9;
    /* The rate that is always honest enough: what the pause it can lead to would carry anyway. */
    double floor = limit_s < pause_s ? rate * pause_s / limit_s : rate;
    double tail = floor * (double)VC_FLOW_ESTIMATE_NS / 1e9;
    double rest = (double)remaining_bytes - tail;
    double paced = rest > 0 ? PACE_SHARE * rest / limit_s : 0;

    return VC_MAX(floor, paced);
}
