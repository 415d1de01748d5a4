/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SOURCE_REUSE_H
#define VC_SOURCE_REUSE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/units.h"
#include "wire/wire.h"

/* How much of what the destination holds it is asked to read. All of it, unless its disk is slower
 * than the link: then some of the pages are sent, so that disk and link work side by side, and the
 * more, the slower the disk is.
 *
 * What the destination's time goes into (READS) says whether its disk is waited for, and how fast
 * that is then. How fast pages can be sent is not known beforehand (acknowledgements come after the
 * reading): for a moment nearly all of them are, which shows it. Of the two rates follows the share
 * with which both have as much to do as they can. From then on either is corrected, whichever is
 * waited for, with a little more given to the other to see whether that can do more.
 *
 * Pure arithmetic on reports and on times that are passed in. Thread rule: one caller at a time;
 * vc_reuse_takes() is of a snapshot of `share` and can be called anywhere. */

/** Of this many equal parts of memory, so many are read. */
#define VC_REUSE_ALL 64u
/** Pages in a row that are treated alike: a disk reads 1 MiB as easily as less. */
#define VC_REUSE_RUN_PAGES 128u
/** Time and bytes read after which a disk of up to VC_REUSE_SLOW_BPS may be called slow. The faster
 * it is, the less there is to gain, and the longer it has to have been waited for. */
#define VC_REUSE_NOTICE_NS (50 * 1000000ull)
#define VC_REUSE_NOTICE_BYTES (3ull << 20)
#define VC_REUSE_SLOW_BPS 100e6
/** Time and contents that a rate is based on, at least. */
#define VC_REUSE_WINDOW_NS (40 * 1000000ull)
#define VC_REUSE_WINDOW_BYTES (2ull << 20)
/** Contents under way when a share changes, decided upon before. */
#define VC_REUSE_UNDER_WAY_BYTES (8ull << 20)
/** How long sending is not tried again, if it was no faster; it doubles each time. */
#define VC_REUSE_HOLD_NS (3000 * 1000000ull)

enum vc_reuse_phase {
    VC_REUSE_READING,  /* everything */
    VC_REUSE_SENDING,  /* nearly everything, to see how fast that is */
    VC_REUSE_BALANCED, /* both, as fast as they are */
};

struct vc_reuse {
    unsigned
        share; /* 1..VC_REUSE_ALL: a little is always read, so that it shows how fast that is */
    enum vc_reuse_phase phase;
    double disk, link;         /* bytes/s, as far as they are known; 0: not yet */
    double sending;            /* what `link` was with nearly everything sent */
    bool arrived;              /* SENDING: what was decided upon before is through */
    unsigned windows;          /* SENDING: so many were looked at */
    unsigned steps;            /* BALANCED: so many on end gave the disk more to do */
    uint64_t settled_at_bytes; /* BALANCED: contents, from where on `share` shows */
    struct {
        double ns, read_bytes, sent_bytes, reading_ns, waiting_ns;
    } lately; /* BALANCED: sums in which what is longer ago counts less */
    uint64_t held_until_ns, hold_ns;
    bool has_begun;
    struct vc_wire_reads last, begun; /* the last report, and that at the window's begin */
};

void vc_reuse_init(struct vc_reuse *r);
/** A report came. False: some number in it is less than in the one before. */
bool vc_reuse_report(struct vc_reuse *r, uint64_t now_ns,
                     const struct vc_wire_reads *m) VC_NODISCARD;
/** Whether a page that the destination holds is to be taken from there. */
bool vc_reuse_takes(unsigned share, struct vc_page page);

#endif
