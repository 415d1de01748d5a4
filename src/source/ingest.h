/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SOURCE_INGEST_H
#define VC_SOURCE_INGEST_H

#include "qstream/qstream.h"
#include "source/pipeline.h"
#include "source/recent.h"

/* What the two halves of the intake share: ingest.c reads and parses, runs.c makes batches. All of
 * it belongs to the ingest thread. */

#define VC_INGEST_GROUP 64

struct vc_ingest_item {
    struct vc_qs_item qs;
    const uint8_t *p;
};

struct vc_ingest {
    struct vc_source *s;
    struct vc_qs_parser *parser;
    struct vc_digester *pages, *seals;
    struct vc_err err;

    struct vc_slab *slab;
    size_t used;   /* bytes of the slab read into */
    size_t parsed; /* ... of these parsed */

    struct vc_ingest_item group[VC_INGEST_GROUP];
    uint32_t n_group;

    struct vc_src_batch *batch; /* open, or NULL */
    uint64_t opened_ns;         /* when it was */
    bool hurry; /* somebody waits for what comes now: the guest is paused, or is in postcopy */
    uint64_t next_seq, position;
    struct vc_digest seal; /* of the last closed batch */

    uint8_t *seen; /* first pass: one bit a page, blocks one behind the other */
    bool repeated; /* a page came again */
    struct vc_recent recent;
    struct vc_wire_run moved; /* the last page that was found elsewhere */
    bool moved_together;      /* with the one before */
    uint64_t block_first[VC_MAX_BLOCKS];
    bool return_path;
    double credit_bytes; /* pacing: bytes that may be read now */
    uint64_t credit_ns;
};

/** Appends to the open batch, and opens or closes batches as it must. @digest: NULL for a page of
 *  zeroes. 0, VC_CLOSED (torn down), or an error in in->err. */
int vc_runs_page(struct vc_ingest *in, const struct vc_ingest_item *g,
                 const struct vc_digest *digest) VC_NODISCARD;
int vc_runs_zero(struct vc_ingest *in, const struct vc_ingest_item *g) VC_NODISCARD;
int vc_runs_opaque(struct vc_ingest *in, const uint8_t *p, size_t n) VC_NODISCARD;
int vc_runs_invalidate(struct vc_ingest *in, uint16_t block, struct vc_page page,
                       uint64_t count) VC_NODISCARD;
/** Hands the open batch on, if there is one. */
int vc_runs_close(struct vc_ingest *in) VC_NODISCARD;
/** The same, and then an item that is no batch. */
int vc_runs_mark(struct vc_ingest *in, enum vc_src_item item) VC_NODISCARD;

#endif
