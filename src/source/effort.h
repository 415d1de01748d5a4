/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SOURCE_EFFORT_H
#define VC_SOURCE_EFFORT_H

#include <stdbool.h>
#include <stdint.h>

/* How hard the sender compresses: as hard as the link leaves it time for, as `zstd --adapt` does.
 * Pure arithmetic on times that are passed in.
 *
 * The sender waits for the wire or works, on one batch after the other. While it waits much, a
 * higher level costs nothing and saves bytes; while it does not wait at all and more batches wait
 * behind, compression is what everybody waits for. What a level brought is remembered for a while,
 * so that one that was slower is not tried again at once. Whether the link is so fast that any
 * compression is too much cannot be seen while there is some: then one batch goes uncompressed, a
 * probe, and its acknowledgement tells.
 *
 * Where other threads can help they do so before the level falls, and only as long as compression
 * may be what everybody waits for: what is packed and waits for the wire would delay what comes
 * next.
 *
 * Thread rule: one caller at a time. */

/** zstd's levels, in steps that can be told apart on pages of a guest; 0: not compressed. */
#define VC_EFFORT_STEPS 4
/** Time at work and waiting that a decision is based on. */
#define VC_EFFORT_PERIOD_NS (40 * 1000000ull)
/** How long it is remembered how fast a step was, and a probe. */
#define VC_EFFORT_MEMORY_NS (2000 * 1000000ull)
/** A probe is at least as large, and costs bytes: it comes when the sender has been what everybody
 *  waits for in so many periods on end, and so many times as much has crossed the wire. */
#define VC_EFFORT_PROBE_BYTES (128u << 10)
#define VC_EFFORT_PROBE_PERIODS 5
#define VC_EFFORT_PROBE_SHARE 32

struct vc_effort {
    int step;
    bool helped;
    bool ahead;                                   /* they are needed */
    uint64_t waited_ns, worked_ns, content_bytes; /* of the current period */
    bool idle;  /* at some time of the period nothing waited behind: QEMU is the slow one */
    bool probe; /* the next batch that is large enough goes as it is */
    int slow;   /* periods on end in which the sender was what everybody waited for */
    uint64_t wire_bytes; /* in all */
    struct {
        double bytes_per_s;
        uint64_t at_ns;
    } seen[VC_EFFORT_STEPS];
};

/** @helped: other threads can compress beside the sender. */
void vc_effort_init(struct vc_effort *e, bool helped);
/** The level for the next batch, of @content_bytes before compression. *probe: it is a probe. */
int vc_effort_level(struct vc_effort *e, uint64_t content_bytes, bool *probe);
/** The level at which batches are to be packed side by side, ahead of the sender; 0: they are not.
 */
int vc_effort_ahead_level(const struct vc_effort *e);
/** It went out, in @wire_bytes: it had waited for the wire, and been worked on, for so long.
 *  @backlogged: another one waits behind it. @probe_rate: how fast the last probe came through,
 * within VC_EFFORT_MEMORY_NS; 0: there was none. */
void vc_effort_note(struct vc_effort *e, uint64_t now_ns, uint64_t content_bytes,
                    uint64_t wire_bytes, uint64_t waited_ns, uint64_t worked_ns, bool backlogged,
                    double probe_rate);

#endif
