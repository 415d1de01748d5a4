/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SOURCE_FLOW_H
#define VC_SOURCE_FLOW_H

#include <stdbool.h>
#include <stdint.h>

/* How much may be on its way, and how fast QEMU's stream may be taken in: the numbers behind
 * promise 8 ("bounded, and honest to QEMU"). Pure arithmetic on times that are passed in.
 *
 * Model: every batch that is sent is acknowledged when the destination QEMU has taken it. Of each
 * acknowledgement we know how many bytes were delivered since the batch was sent, which gives a
 * rate (as in TCP BBR's delivery-rate estimation, draft-cheng-iccrg-delivery-rate-estimation), and
 * the smallest time from sending to acknowledgement gives the round trip. What may be
 * unacknowledged is rate x (round trip + slack): enough to keep the link full, and no more than
 * `slack` of queue, whatever kernel buffers, ssh, or relays lie between.
 *
 * Thread rule: one caller at a time (the pipeline's lock). */

/** What may be unacknowledged beyond one round trip: 10 ms of the link for the queue on the wire
 * and 20 ms for what the destination has not expanded yet, at least 128 KiB (promise 8). An
 *  acknowledgement stands for both. */
#define VC_FLOW_WIRE_SLACK_NS (30 * 1000000ull)
#define VC_FLOW_WIRE_MIN_BYTES (128u << 10)
/** Queue of stream bytes that the destination has not expanded yet: 20 ms, at least 4 MiB (it can
 *  take some GB/s). */
#define VC_FLOW_STREAM_SLACK_NS (20 * 1000000ull)
#define VC_FLOW_STREAM_MIN_BYTES (4u << 20)
/** New data in one batch: what is delivered in 4 ms, within these. */
#define VC_FLOW_BATCH_SLACK_NS (4 * 1000000ull)
#define VC_FLOW_BATCH_MIN_BYTES (32u << 10)
#define VC_FLOW_BATCH_MAX_BYTES (1u << 20)

/** A running estimate of a rate: the largest sample of the current and the last period. */
struct vc_flow_rate {
    double bytes_per_s; /* 0: not known yet */
    double current;     /* largest of the current period */
    uint64_t period_start_ns;
};

struct vc_flow {
    uint64_t sent_wire, acked_wire;
    uint64_t sent_stream, acked_stream;
    uint64_t acked_ns;   /* time of the last acknowledgement */
    uint64_t min_rtt_ns; /* 0: not known yet */
    uint64_t acked_data;
    struct vc_flow_rate wire, stream, data;
    double probe_rate; /* bytes/s; 0: no probe came back yet */
    uint64_t probe_ns; /* when it came */
};

/** What one batch is made of, and what had held it up. */
struct vc_flow_batch {
    uint32_t wire_bytes, stream_bytes;
    uint32_t data_bytes; /* of new pages, before compression */
    bool wire_limited;   /* it had to wait for room on the wire */
    bool backlogged;     /* it had to wait, or others wait behind it: the rate is not QEMU's */
    bool probe;          /* it was not compressed, to see how fast the link is */
};

/** What has to be remembered of a batch between its sending and its acknowledgement. */
struct vc_flow_mark {
    uint64_t sent_ns;
    uint64_t acked_wire, acked_stream, acked_data; /* delivered when it was sent */
    uint64_t acked_ns;                             /* when those were delivered */
    struct vc_flow_batch batch;
};

/** A batch goes out now. Fills *mark. */
void vc_flow_sent(struct vc_flow *f, uint64_t now_ns, const struct vc_flow_batch *batch,
                  struct vc_flow_mark *mark);
/** It was acknowledged. */
void vc_flow_acked(struct vc_flow *f, uint64_t now_ns, const struct vc_flow_mark *mark);

/** Bytes that may be unacknowledged. */
uint64_t vc_flow_wire_limit(const struct vc_flow *f);
uint64_t vc_flow_stream_limit(const struct vc_flow *f, uint64_t most);
enum vc_flow_verdict {
    VC_FLOW_GO,
    VC_FLOW_WIRE_FULL,   /* enough is on the wire */
    VC_FLOW_STREAM_FULL, /* the destination has enough to expand */
};
/** Whether another batch may go out: both below their limits. @most_stream: the memory window. */
enum vc_flow_verdict vc_flow_may_send(const struct vc_flow *f, uint64_t most_stream);
/** New data that one batch should hold at most. */
uint32_t vc_flow_batch_data(const struct vc_flow *f);

/** The link's rate in bytes/s; 0 while unknown. A lower bound as long as nothing had to wait. */
double vc_flow_wire_rate(const struct vc_flow *f);
/** How fast new pages are delivered, in bytes/s before compression: what the link, the compression,
 *  and both processors make of them together. The wire rate while unknown. */
double vc_flow_data_rate(const struct vc_flow *f);
/** How fast the last probe came through, in bytes/s, where that was not longer ago than @age_ns;
 * else 0. */
double vc_flow_probe_rate(const struct vc_flow *f, uint64_t now_ns, uint64_t age_ns);
/** The downtime limit to give to a QEMU that takes in @intake_rate bytes/s, so that what it has
 * left takes at most @user_ms if all of that is new. At least @least_ms, at most @user_ms. */
uint64_t vc_flow_downtime_limit(double data_rate, double intake_rate, uint64_t user_ms,
                                uint64_t least_ms);

/* ---- pacing near the end of the first pass ----
 *
 * QEMU measures how fast its stream is taken in, over windows of 100 ms (migration.c,
 * BUFFER_DELAY), and stops the guest as soon as what it has left fits into rate x downtime-limit.
 * Reuse makes that rate many times the link's, while what is left may be new: then the guest stands
 * still for long. So, when the first pass nears its end, intake slows to a rate at which QEMU's
 * conclusion is right. */

/** Pause of the guest that pacing keeps possible without further slowing, when the limit QEMU works
 *  with is smaller. */
#define VC_FLOW_PAUSE_NS (20 * 1000000ull)
/** Time over which QEMU's estimate forgets the fast part: two windows. */
#define VC_FLOW_ESTIMATE_NS (200 * 1000000ull)
/** Taken for it while nothing is known. */
#define VC_FLOW_UNKNOWN_RATE (12.5e6)

/** The highest intake rate in bytes/s when @remaining_bytes of the first pass are left, QEMU's
 *  downtime limit is @limit_ns, and new pages are delivered at @data_rate (0: unknown). */
double vc_flow_pace(double data_rate, uint64_t remaining_bytes, uint64_t limit_ns);

#endif
