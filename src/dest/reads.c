/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dest/reads.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "link/link.h"

/** READS is sent so often, once reading has taken more than this part of the time. */
#define REPORT_NS (100 * VC_NS_PER_MS)
#define REPORT_SHARE 4

void vc_dst_reads_tell(struct vc_dst_reads *r, struct vc_link *link)
{
    uint8_t payload[VC_WIRE_READS_BYTES];
    struct vc_writer w = vc_writer(payload, sizeof(payload));
    uint64_t elapsed;

    if (!r->begun_ns || !r->now.bytes)
        return;
    r->now.elapsed_ns = vc_now_ns() - r->begun_ns;
    elapsed = r->now.elapsed_ns - r->told.elapsed_ns;
    if (elapsed < REPORT_NS)
        return;
    r->much |= r->now.reading_ns - r->told.reading_ns > elapsed / REPORT_SHARE;
    if (r->much) {
        vc_wire_reads_encode(&w, &r->now);
        /* A link that is down is noticed elsewhere. */
        (void)!vc_link_send_small(link, VC_WIRE_READS, 0, payload, sizeof(payload));
    }
    r->told = r->now;
}
