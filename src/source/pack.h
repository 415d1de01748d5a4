/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SOURCE_PACK_H
#define VC_SOURCE_PACK_H

#include "source/batch.h"

/* Private to src/source: batches become frames, compressed where that pays. An object belongs to
 * one thread. */

struct vc_gen;
struct vc_lineage;
struct vc_link_frame;
struct vc_recorder;

struct vc_packer {
    const struct vc_gen *gen; /* this host's base generation, or NULL; borrowed */
    const int *map;           /* block of the stream -> block of `gen`, or -1; borrowed */
    const struct vc_log *log; /* borrowed */
    struct vc_wire_codec *codec;
    struct vc_digester *digester;
    bool gen_failed;              /* it could not be read: no more deltas */
    bool txn_failed;              /* likewise: no more batches of codec recent */
    struct vc_recorder *recorder; /* of the new generation; NULL: no batches of codec recent */
    struct vc_buf body, prefix;   /* of a batch */
    uint8_t last_codec;           /* of the last frame */
};

/** @lineage: of `gen`; may be NULL where that is. */
int vc_packer_init(struct vc_packer *p, const struct vc_gen *gen, const int *map,
                   const struct vc_lineage *lineage, const struct vc_log *log,
                   struct vc_err *err) VC_NODISCARD;
void vc_packer_fini(struct vc_packer *p);
/** Builds the BATCH frame; DELTA means where that can be, RECENT that or DELTA. @level: zstd's; 0:
 *  not compressed. What is not compressed, or does not shrink, is not copied: the frame refers to
 *  the batch, and holds it. NULL: no memory. */
struct vc_link_frame *vc_packer_frame(struct vc_packer *p, struct vc_src_batch *b,
                                      enum vc_src_form form, int level);

#endif
