/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SOURCE_BATCH_H
#define VC_SOURCE_BATCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/bytes.h"
#include "base/err.h"
#include "base/queue.h"
#include "base/slab.h"
#include "base/units.h"
#include "digest/digest.h"
#include "source/flow.h"
#include "wire/wire.h"

/* A batch on the source side: a stretch of QEMU's stream as runs that point into the buffers it was
 * read into. Built by the ingest thread, then shared, unchanging, by the sender (until the
 * destination has acknowledged it: the repair window), the recorder, and a frame of the link's that
 * refers to its contents. */

#define VC_SRC_BATCH_STREAM_BYTES (2u << 20)
#define VC_SRC_BATCH_PAGES (VC_SRC_BATCH_STREAM_BYTES / VC_MIN_PAGE_BYTES)
#define VC_SRC_BATCH_RUNS 512
#define VC_SRC_BATCH_SLABS 8

enum vc_src_item {
    VC_SRC_BATCH,  /* a batch */
    VC_SRC_BLOCKS, /* the block list goes out here */
    VC_SRC_EOF,    /* the stream ends here */
};

struct vc_src_run {
    struct vc_wire_run run;
    const uint8_t *bytes; /* opaque: the bytes */
    uint32_t first;       /* runs of PAGE records: index of the first page in content[] */
};

struct vc_src_batch {
    struct vc_queue_node send_node; /* first */
    struct vc_queue_node record_node;
    struct vc_src_batch *next_sent; /* [lock: pipeline's mu] the window */
    atomic_uint refs;               /* [atomic] */

    enum vc_src_item item;
    const struct vc_ram *ram; /* BLOCKS, and every batch after it; owned by the pipeline */
    uint64_t seq, position;
    uint32_t stream_bytes;
    uint32_t data_bytes;   /* contents of data runs */
    uint32_t old_bytes;    /* of these, where both hosts have what the page was, or may have been */
    uint32_t recent_bytes; /* ... or will, once they have recorded ... */
    uint64_t after;        /* ... this batch; 0: there is nothing that is not in old_bytes */
    uint32_t again_bytes;  /* of recent_bytes: what the session has carried before */
    uint32_t base_bytes;   /* of old_bytes: what is not in recent_bytes */
    uint32_t opaque_bytes;
    struct vc_digest seal;
    struct vc_flow_mark mark; /* [thread: send, then lock: pipeline's mu] */
    bool sent_recent;         /* likewise: as codec recent */
    bool resent, repaired;    /* [thread: recv] */

    uint32_t n_runs, n_pages, n_slabs;
    struct vc_src_run runs[VC_SRC_BATCH_RUNS];
    const uint8_t *content[VC_SRC_BATCH_PAGES];
    struct vc_digest digests[VC_SRC_BATCH_PAGES];
    bool local_same[VC_SRC_BATCH_PAGES]; /* this host's base generation has the same content;
                                            [thread: record, once it is queued] */
    struct vc_slab *slabs[VC_SRC_BATCH_SLABS];
};

/** One reference; NULL: no memory. */
struct vc_src_batch *vc_src_batch_new(enum vc_src_item item, uint64_t seq, uint64_t position);
struct vc_src_batch *vc_src_batch_ref(struct vc_src_batch *b);
/** Any thread; the last one lets go of the buffers. NULL is fine. */
void vc_src_batch_unref(struct vc_src_batch *b);

static inline struct vc_src_batch *vc_src_batch_of_record(struct vc_queue_node *n)
{
    return (struct vc_src_batch *)((char *)n - offsetof(struct vc_src_batch, record_node));
}

/** Whether it can take something of that size from that buffer. */
bool vc_src_batch_has_room(const struct vc_src_batch *b, size_t stream_bytes,
                           const struct vc_slab *slab);

/** Appenders; vc_src_batch_has_room() was true. They extend the last run where they can. */
void vc_src_batch_add_opaque(struct vc_src_batch *b, struct vc_slab *slab, const uint8_t *p,
                             uint32_t n);
/** A ZERO record (content NULL) or a PAGE record. @kind: SAME, MOVED, ZERO or DATA, the latter with
 * `old` if both hosts have the page as it was (`shifted`: probably that), and `recent` likewise. */
void vc_src_batch_add_page(struct vc_src_batch *b, struct vc_slab *slab,
                           const struct vc_wire_run *run, uint32_t header_bytes,
                           const uint8_t *content, uint32_t page_bytes,
                           const struct vc_digest *digest, bool local_same);
void vc_src_batch_add_invalidate(struct vc_src_batch *b, uint16_t block, struct vc_page page,
                                 uint64_t count);

/** What a batch may refer to on the wire. */
enum vc_src_form {
    VC_SRC_PLAIN,          /* pages that the destination has */
    VC_SRC_DELTA,          /* and to what they were in the base generation */
    VC_SRC_RECENT,         /* or have become in this session */
    VC_SRC_SELF_CONTAINED, /* nothing */
};
/** The body of a batch (docs/formats/wire.md): runs, then contents.
 *  Writes the runs, of VC_WIRE_RUN_MAX_BYTES each at most. */
void vc_src_batch_runs(const struct vc_src_batch *b, enum vc_src_form form, struct vc_writer *w);
/** Bytes of the contents. */
size_t vc_src_batch_contents(const struct vc_src_batch *b, enum vc_src_form form,
                             uint32_t page_bytes);
/** Those of one run. */
size_t vc_src_run_contents(const struct vc_src_run *r, enum vc_src_form form, uint32_t page_bytes);
/** A walk over the contents where they lie: n_runs + n_pages pieces at most. */
struct vc_src_pieces {
    const struct vc_src_batch *batch;
    enum vc_src_form form;
    uint32_t page_bytes;
    uint32_t run;   /* the next piece is of this one, ... */
    uint64_t piece; /* ... and comes after so many */
};
/** False: that was all. */
bool vc_src_next_piece(struct vc_src_pieces *at, struct iovec *out);

#endif
