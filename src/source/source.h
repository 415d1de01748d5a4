/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SOURCE_SOURCE_H
#define VC_SOURCE_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "store/store.h"
#include "wire/wire.h"

/* The source pipeline: takes QEMU's migration stream from a socket, sends it as batches over a
 * link, writes this host's new generation on the way, and carries the return path back to QEMU.
 * Threads: docs/internals/threads.md. */

struct vc_link;
struct vc_link_frame;
struct vc_source;

/** Memory for raw bytes of the stream: intake, batches waiting, and the repair window. */
#define VC_SOURCE_WINDOW_BYTES (16u << 20)

struct vc_source_options {
    int qemu_fd;          /* the migration stream's socket, both directions; taken */
    int listen_fd;        /* where QEMU's second connection comes, listening; taken; 0: nowhere */
    bool channels;        /* the destination takes a second connection */
    bool delta;           /* the destination takes batches of codec delta */
    bool moved;           /* it takes moved runs */
    bool recent;          /* ... and of codec recent */
    bool shifted;         /* ... and with those of codec delta shifted runs */
    bool reads;           /* it may say READS */
    bool keeps;           /* it says KEEPS */
    unsigned workers;     /* threads that may compress beside the sender */
    struct vc_link *link; /* in phase `stream`; borrowed until vc_source_free() */
    struct vc_id session;
    struct vc_lineage lineage;
    enum vc_wire_base base;
    const struct vc_gen *shared_gen; /* PING_PONG: what both hosts hold; borrowed */
    const struct vc_gen *local_gen;  /* base of txn, or NULL; borrowed */
    struct vc_txn *txn;              /* the generation being written, or NULL; taken */
    uint64_t
        pace_limit_ns; /* downtime limit that QEMU works with in its first pass; 0: no pacing */
    bool needs_return_path;     /* refuse a stream without OPEN_RETURN_PATH */
    bool holds_success;         /* QEMU gets SHUT(0) only after vc_source_pass_success() */
    uint32_t store_patience_ms; /* see vc_source_check_store(); 0: VC_STORE_PATIENCE_MS */
    const struct vc_log *log;   /* borrowed */
    /** Takes frames that are not the pipeline's (WORD_DONE, COMMITTED, CLOSE); NULL: no more
     *  will come. Thread: receive. */
    void (*on_frame)(void *opaque, struct vc_link_frame *f);
    void *opaque;
};

/** Counters and state, a snapshot. */
struct vc_source_status {
    uint64_t stream_bytes; /* taken in from QEMU */
    uint64_t return_bytes; /* carried back to it */
    uint64_t pages_same, pages_moved, pages_zero, pages_data, pages_unknown;
    uint64_t data_records, zero_records; /* vc_qs_records() of what was taken in */
    uint64_t data_bytes;                 /* contents of data pages before compression */
    uint64_t ram_bytes;                  /* 0 until known */
    uint64_t first_pass_left_bytes;      /* RAM not mentioned yet */
    uint64_t batches, acked_batches, repaired_pages, resent_batches;
    uint64_t acked_bytes; /* of the stream, in acked_batches */
    double wire_rate;     /* what crosses the wire, bytes/s; 0 while unknown */
    double data_rate;     /* new pages before compression, bytes/s; 0 while unknown */
    bool ram_known;
    bool first_pass_done; /* every page was mentioned at least once, or the RAM section ended */
    bool stream_ended;    /* QEMU closed its end */
    bool qemu_hung_up;    /* ... or had, when the pipeline failed and what came before was unread */
    bool shut;            /* the return path has carried SHUT ... */
    uint32_t shut_status; /* ... with this status, 0 = success */
    bool success_held;    /* SHUT(0) has come, and waits for vc_source_pass_success() */
    bool delivered;       /* all batches acknowledged */
    bool package_sent;    /* postcopy: QEMU has sent the device state, or is about to ... */
    bool package_delivered;  /* ... and the destination QEMU was given all of it */
    bool failed;             /* vc_source_error() says why */
    bool peer_stream_failed; /* the destination's QEMU failed (also `failed`) */
    bool recording;          /* the new generation is still being written */
    bool store_stuck;        /* see vc_source_check_store() */
    bool knows_all;          /* false: parsing was lost at some point; `reason` says why */
    char reason[160];
};

/** Starts the threads. Takes qemu_fd and txn in every case. */
int vc_source_start(const struct vc_source_options *o, struct vc_source **out,
                    struct vc_err *err) VC_NODISCARD;

/** Any thread. */
void vc_source_status(struct vc_source *s, struct vc_source_status *out);
/** To be called every now and then: where the store has been at one write for longer than
 *  store_patience_ms, no generation is written any more, and the migration goes on. Any one thread.
 */
void vc_source_check_store(struct vc_source *s);
/** The first error, if status.failed. Any thread. */
void vc_source_error(struct vc_source *s, struct vc_err *out);
/** A descriptor that is readable when the status changed in a way that matters (RAM known, first
 *  pass done, SHUT, stream ended, delivered, failed); vc_source_clear() makes it quiet again. */
int vc_source_event_fd(const struct vc_source *s);
void vc_source_clear(struct vc_source *s);

/** Lets QEMU have SHUT(0), now or when it comes. Any thread. */
void vc_source_pass_success(struct vc_source *s);

/** Changes the downtime limit that pacing assumes (0: none). Any thread. */
void vc_source_set_pace(struct vc_source *s, uint64_t limit_ns);

/** Ends everything at once: QEMU's socket is shut down in both directions, so its guest goes on.
 *  @why: becomes the pipeline's error if it has none yet. Any thread. */
void vc_source_abort(struct vc_source *s, const struct vc_err *why);

/** Waits for the stages that the stream passes through (not the receiving thread) and gives the
 *  transaction back, or NULL if it was given up. Call once, after stream_ended or an abort. */
struct vc_txn *vc_source_join(struct vc_source *s);
/** Stops the link (vc_link_stop()), joins what is left, frees. NULL is fine. */
void vc_source_free(struct vc_source *s);

#endif
