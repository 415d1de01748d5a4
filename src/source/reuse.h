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
 * What the destination's time goes into (READS) says whether its disk is waited for. Whether
 * sending more is faster is not known beforehand: it is tried, with half as much to read, and the
 * better of the two stays. (Acknowledgements come after the reading, so they do not tell how fast
 * the link is.)
 *
 * Pure arithmetic on reports and on times that are passed in. Thread rule: one caller at a time;
 * vc_reuse_takes() is of a snapshot of `share` and can be called anywhere. */

/** Of this many equal parts of memory, so many are read. */
#define VC_REUSE_ALL 64u
/** Pages in a row that are treated alike: a disk reads 1 MiB as easily as less. */
#define VC_REUSE_RUN_PAGES 256u
/** Time and contents that a comparison is based on, at least. */
#define VC_REUSE_WINDOW_NS (300 * 1000000ull)
#define VC_REUSE_WINDOW_BYTES (16ull << 20)
/** Contents under way when a share changes, decided upon before: the repair window, and a queue. */
#define VC_REUSE_UNDER_WAY_BYTES (32ull << 20)
/** How long an attempt that did not pay is not repeated; it doubles each time. */
#define VC_REUSE_HOLD_NS (3000 * 1000000ull)

struct vc_reuse {
    unsigned
        share; /* 1..VC_REUSE_ALL: a little is always read, so that it shows how fast that is */
    unsigned before;            /* what it was before the attempt that is going on; 0: none is */
    double rate_before;         /* contents in bytes/s, then */
    unsigned windows;           /* that an attempt has taken already */
    bool settling;              /* what comes was decided upon before `share` changed */
    double read_bytes, read_ns; /* lately, by the disk */
    uint64_t held_until_ns[2], hold_ns[2]; /* attempts to read less, and more */
    struct vc_wire_reads last, begun;      /* the last report, and that at the window's begin */
};

void vc_reuse_init(struct vc_reuse *r);
/** A report came. False: some number in it is less than in the one before. */
bool vc_reuse_report(struct vc_reuse *r, uint64_t now_ns,
                     const struct vc_wire_reads *m) VC_NODISCARD;
/** Whether a page that the destination holds is to be taken from there. */
bool vc_reuse_takes(unsigned share, struct vc_page page);

#endif
