/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_DEST_PIPELINE_H
#define VC_DEST_PIPELINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/queue.h"
#include "base/thread.h"
#include "dest/batch.h"
#include "dest/channel.h"
#include "dest/dest.h"
#include "qstream/qstream.h"
#include "store/recorder.h"

/* Private to src/dest: the object that the stages share. The stages are receive.c (link to queue),
 * resolve.c, with ahead.c and repair.c (frames to verified batches), emit.c (batches to QEMU, and
 * QEMU's return path), record.c (batches to the store), announce.c (what this host has); channel.c
 * has a connection to QEMU to itself. */

/** What verified batches take that wait for QEMU, and for the disk. */
#define VC_DEST_EMIT_BYTES (8u << 20)
#define VC_DEST_RECORD_BYTES VC_DEST_EMIT_BYTES
/** From so much on that the batches, or the frames, of all sessions of a process take, each session
 *  has but one batch in each place, and so many bytes of frames. */
#define VC_DEST_SHARED_BATCH_BYTES (256u << 20)
#define VC_DEST_SHARED_FRAME_BYTES (256u << 20)
#define VC_DEST_OWN_FRAME_BYTES (4u << 20)

struct vc_dest_counters {
    atomic_ullong stream_bytes, return_bytes;
    atomic_ullong pages_same, pages_moved, pages_zero, pages_data, pages_unknown;
    atomic_ullong repaired_pages, resent_batches;
};

struct vc_dest {
    struct vc_dest_options o; /* [const after start] */
    int event_fd;             /* [const after start] */
    struct vc_queue frames, to_emit;
    struct vc_thread receive, resolve, emit, back, record, announce;

    struct vc_ram ram;           /* [thread: resolve; const once BLOCKS came] */
    struct vc_recorder recorder; /* see there */
    struct vc_dst_channel side;  /* see there */

    pthread_mutex_t mu;
    pthread_cond_t changed;
    int qemu_fd;                /* [lock: mu] -1 until connected; closed by vc_dest_free() */
    uint64_t awaited_seq;       /* [lock: mu] batch that repairs are awaited for, or 0 */
    struct vc_link_frame *mail; /* [lock: mu] REPAIRED or a resent BATCH for resolve */
    bool ram_known, source_eof, return_eof, shut, failed, qemu_failed, stop; /* [lock: mu] */
    uint32_t shut_status;                                                    /* [lock: mu] */
    struct vc_err err; /* [lock: mu] the first one */

    struct vc_dest_counters n; /* [atomic] */
};

void *vc_dest_receive_main(void *arg);
void *vc_dest_resolve_main(void *arg);
void *vc_dest_emit_main(void *arg);
void *vc_dest_back_main(void *arg);
void *vc_dest_record_main(void *arg);
void *vc_dest_announce_main(void *arg);

/** A frame has left the queue. Any thread. */
void vc_dest_frame_left(const struct vc_queue_node *n);
/** Wakes whoever watches the event descriptor. Any thread. */
void vc_dest_notify(struct vc_dest *d);
/** QEMU failed: tells the source, and ends the pipeline with that error. Any thread. */
void vc_dest_qemu_failed(struct vc_dest *d, const struct vc_err *why);

static inline void vc_count(atomic_ullong *c, uint64_t n)
{
    atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

#endif
