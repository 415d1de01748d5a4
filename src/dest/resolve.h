/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_DEST_RESOLVE_H
#define VC_DEST_RESOLVE_H

#include "base/bytes.h"
#include "dest/pipeline.h"
#include "dest/reads.h"

/* Private to the resolving stage, all of its one thread: resolve.c fills batches in and checks
 * them, ahead.c takes frames and has the disk read what they refer to, repair.c asks the source for
 * what is not as it should be. */

struct vc_dst_resolve {
    struct vc_dest *d;
    struct vc_digester *pages, *seals;
    struct vc_wire_codec *codec;
    struct vc_buf prefix;  /* old pages of a batch */
    struct vc_digest seal; /* of the last batch */
    uint64_t next_seq, position;
    struct vc_dst_reads reads;
    uint8_t keeps; /* VC_WIRE_KEEPS_*, as the source was told last */
    bool too_slow; /* the recorder was waited for in vain */
    bool keeps_told;
    bool have_ram;
    int map[VC_MAX_BLOCKS]; /* block of the stream -> block of the base generation, or -1 */

    struct vc_dst_batch *ahead, *ahead_last; /* parsed, and yet to be filled in */
    uint64_t ahead_bytes, ahead_held;        /* of the stream; of memory */
    struct vc_link_frame *behind;            /* not a batch; comes after those */

    struct vc_err err;
};

/** Makes a batch of the frame, which is taken; contents are yet to be filled in. */
int vc_dst_parse(struct vc_dst_resolve *r, struct vc_link_frame *f,
                 struct vc_dst_batch **out) VC_NODISCARD;
/** What comes next, a batch that is parsed or another frame (the other one is NULL): the caller's.
 *  Waits for it. VC_CLOSED; VC_E_PROTOCOL, VC_E_NOMEM: in r->err. */
int vc_dst_next(struct vc_dst_resolve *r, struct vc_dst_batch **b,
                struct vc_link_frame **f) VC_NODISCARD;
/** Frees what was taken and not given out. */
void vc_dst_drop_ahead(struct vc_dst_resolve *r);

/** Has the source send the pages with these ordinals, in ascending order, and puts them in place.
 *  VC_CLOSED, or an error in r->err. */
int vc_dst_repair(struct vc_dst_resolve *r, struct vc_dst_batch *b, const uint32_t *ordinals,
                  uint32_t n) VC_NODISCARD;
/** Has the source send the batch r->next_seq once more, without references. @damaged: something is
 *  not as it was; else it only is not here. *out is the caller's. VC_CLOSED, or an error in r->err.
 */
int vc_dst_ask_again(struct vc_dst_resolve *r, bool damaged,
                     struct vc_link_frame **out) VC_NODISCARD;

/** Whether pages of the base generation may have been written over without any damage. */
bool vc_dst_base_is_partial(const struct vc_dst_resolve *r);
/** Tells the source (KEEPS) what there is to build on, where it does not know. */
void vc_dst_keeps_tell(struct vc_dst_resolve *r);

#endif
