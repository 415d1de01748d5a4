/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_DEST_DEST_H
#define VC_DEST_DEST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "store/store.h"
#include "wire/wire.h"

/* The destination pipeline: takes batches from a link, rebuilds QEMU's migration stream, checks
 * each batch's seal, hands the bytes to the destination QEMU, writes this host's new generation on
 * the way, and carries the return path back. Threads: docs/internals/threads.md. */

struct vc_link;
struct vc_link_frame;
struct vc_dest;

/** Frames that may wait to be expanded. A source keeps at most its window unacknowledged (16 MiB of
 *  stream, 24 in older versions); more than this is a peer that ignores the rules. */
#define VC_DEST_QUEUE_BYTES (32u << 20)

struct vc_dest_options {
    struct vc_link *link; /* in phase `stream`; borrowed until vc_dest_free() */
    struct vc_id session;
    struct vc_lineage lineage;
    uint64_t features;
    enum vc_wire_base base;     /* whether, and how, the source refers to `gen` */
    const struct vc_gen *gen;   /* what this host has, base of txn; NULL: nothing; borrowed */
    struct vc_txn *txn;         /* the generation being written, or NULL; taken */
    uint32_t store_patience_ms; /* see vc_dest_check_store(); 0: VC_STORE_PATIENCE_MS */
    const struct vc_log *log;   /* borrowed */
    /** Connects to the destination QEMU's migration socket when the first bytes are there. Returns
     *  a descriptor, which is taken, or a negative code. Thread: emit. */
    int (*connect)(void *opaque, struct vc_err *err);
    /** The same for QEMU's second connection (postcopy-preempt), behind the first; NULL: channel 1
     *  is refused. Thread: channel. */
    int (*connect_preempt)(void *opaque, struct vc_err *err);
    /** Takes frames that are not the pipeline's (WORD, COMMITTED, CLOSE); NULL: no more
     *  will come. Thread: receive. */
    void (*on_frame)(void *opaque, struct vc_link_frame *f);
    void *opaque;
};

/** Counters and state, a snapshot. */
struct vc_dest_status {
    uint64_t stream_bytes; /* written to QEMU */
    uint64_t return_bytes; /* carried back */
    uint64_t pages_same, pages_moved, pages_zero, pages_data, pages_unknown;
    uint64_t repaired_pages, resent_batches;
    bool connected;       /* QEMU's socket is connected */
    bool source_eof;      /* the source's stream has ended, and all of it was written */
    bool return_eof;      /* QEMU closed its end */
    bool shut;            /* QEMU has sent SHUT ... */
    uint32_t shut_status; /* ... with this status, 0 = success */
    bool ram_known;       /* the block list came */
    bool failed;          /* vc_dest_error() says why */
    bool qemu_failed;     /* the destination QEMU failed (also `failed`) */
    bool recording;       /* the new generation is still being written */
};

/** Starts the threads. Takes txn in every case. */
int vc_dest_start(const struct vc_dest_options *o, struct vc_dest **out,
                  struct vc_err *err) VC_NODISCARD;

/** Any thread. */
void vc_dest_status(struct vc_dest *d, struct vc_dest_status *out);
/** To be called every now and then: where the store has been at one write for longer than
 *  store_patience_ms, no generation is written any more, and the migration goes on. Any one thread.
 */
void vc_dest_check_store(struct vc_dest *d);
/** The first error, if status.failed. Any thread. */
void vc_dest_error(struct vc_dest *d, struct vc_err *out);
/** A descriptor that is readable when the status changed in a way that matters; vc_dest_clear()
 *  makes it quiet again. */
int vc_dest_event_fd(const struct vc_dest *d);
void vc_dest_clear(struct vc_dest *d);

/** Ends everything at once: QEMU's socket is shut down in both directions. @why: becomes the
 *  pipeline's error if it has none yet. Any thread. */
void vc_dest_abort(struct vc_dest *d, const struct vc_err *why);

/** Waits for the stages that the stream passes through (not the receiving thread) and gives the
 *  transaction back, or NULL if it was given up. Call once, when the source's stream has ended, or
 *  after an abort; then the transaction has what was verified until then. */
struct vc_txn *vc_dest_join(struct vc_dest *d);
/** Shuts the link down, joins what is left, frees. NULL is fine. */
void vc_dest_free(struct vc_dest *d);

#endif
