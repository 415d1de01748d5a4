/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SOURCE_REUSE_H
#define VC_SOURCE_REUSE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/units.h"
#include "wire/wire.h"

/* How much of what the destination holds it is asked to read. All of it, unless its disk is slower
 * than the link: then some of the pages are sent, so that disk and link work side by side, and the
 * more, the slower the disk is. Reuse is never slower than sending that way.
 *
 * What the destination's time goes into tells which of the two is waited for. Whether the link is
 * faster than the disk may not be known before it was tried: with half of the pages sent, the disk
 * is waited for still if it is the slower one.
 *
 * Pure arithmetic on what READS says and on times that are passed in. Thread rule: one caller at a
 * time; vc_reuse_takes() is of a snapshot of `share` and can be called anywhere. */

/** Of this many equal parts of memory, so many are read. */
#define VC_REUSE_ALL 64u
/** Pages in a row that are treated alike: a disk reads 1 MiB as easily as less. */
#define VC_REUSE_RUN_PAGES 256u
/** How long an attempt to send more is not repeated that the link was too slow for; it doubles. */
#define VC_REUSE_HOLD_NS (5000 * 1000000ull)

struct vc_reuse {
    unsigned
        share;     /* 1..VC_REUSE_ALL: a little is always read, so that it shows how fast that is */
    bool settling; /* the next report is about what went before */
    uint64_t held_until_ns, hold_ns;
    struct vc_wire_reads last;
};

void vc_reuse_init(struct vc_reuse *r);
/** A report came. */
void vc_reuse_report(struct vc_reuse *r, uint64_t now_ns, const struct vc_wire_reads *m);
/** What the destination has read since the last report, in bytes/s of the time it took: for people.
 */
double vc_reuse_disk_rate(const struct vc_reuse *r, const struct vc_wire_reads *m);
/** Whether a page that the destination holds is to be taken from there. */
bool vc_reuse_takes(unsigned share, struct vc_page page);

#endif
