/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SOURCE_RATE_H
#define VC_SOURCE_RATE_H

#include <stdint.h>

/* What has crossed the wire lately, for people to read. Not flow control's estimate, which is the
 * best moment of late, and may be many times what the link carries.
 *
 * What was sent lies in buffers first, and is more than has crossed; what was acknowledged comes in
 * bursts after a destination has waited for its disk or its QEMU. Over a window the lesser of the
 * two is no more than the link has carried, but for what was under way at either end of it.
 *
 * Thread rule: one caller at a time (the pipeline's lock). */

/** Over so long it is. */
#define VC_RATE_WINDOW_NS (2000 * 1000000ull)
/** Nothing is said of less. */
#define VC_RATE_LEAST_NS (500 * 1000000ull)
#define VC_RATE_SAMPLES 21

struct vc_rate {
    struct {
        uint64_t ns, sent, acked;
    } s[VC_RATE_SAMPLES];
    unsigned first, n;
};

/** Notes what was sent and acknowledged so far; both only grow. Returns bytes/s; 0: unknown yet. */
double vc_rate_note(struct vc_rate *r, uint64_t now_ns, uint64_t sent, uint64_t acked);

#endif
