/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dest/reads.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "link/link.h"

/* READS is sent so often, once reading has taken more than this part of the time between. */
#define REPORT_NS (20 * VC_NS_PER_MS)
#define REPORT_SHARE 3

static void tell(const struct vc_wire_reads *m, struct vc_link *link)
{
    uint8_t payload[VC_WIRE_READS_BYTES];
    struct vc_writer w = vc_writer(payload, sizeof(payload));

    vc_wire_reads_encode(&w, m);
    /* A link that is down is noticed elsewhere. */
    (void)!vc_link_send_small(link, VC_WIRE_READS, 0, payload, sizeof(payload));
}

void vc_dst_reads_tell(struct vc_dst_reads *r, struct vc_link *link)
{
    uint64_t elapsed;

    if (!r->begun_ns || !r->now.bytes)
        return;
    r->now.elapsed_ns = vc_now_ns() - r->begun_ns;
    elapsed = r->now.elapsed_ns - r->told.elapsed_ns;
    if (elapsed < REPORT_NS)
        return;
    if (!r->much && r->now.reading_ns - r->told.reading_ns > elapsed / REPORT_SHARE) {
        r->much = true;
        tell(&r->told, link); /* so that the source sees what this time alone has gone into */
    }
    if (r->much)
        tell(&r->now, link);
    r->told = r->now;
}
