/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SOURCE_PIPELINE_H
#define VC_SOURCE_PIPELINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/queue.h"
#include "base/slab.h"
#include "base/thread.h"
#include "qstream/qstream.h"
#include "source/batch.h"
#include "source/channel.h"
#include "source/flow.h"
#include "source/rate.h"
#include "source/remote.h"
#include "source/reuse.h"
#include "source/source.h"
#include "store/recorder.h"

/* Private to src/source: the object that the stages share. The stages are ingest.c (QEMU's socket
 * to batches), send.c (batches to the wire), receive.c (what comes back), record.c (batches to the
 * store); channel.c has a connection of QEMU's to itself. */

struct vc_source_counters {
    atomic_ullong stream_bytes, return_bytes;
    atomic_ullong pages_same, pages_moved, pages_zero, pages_data, pages_unknown;
    atomic_ullong data_bytes, first_pass_left;
    atomic_ullong data_records, zero_records;
    atomic_ullong batches, acked_batches, acked_bytes, repaired_pages, resent_batches,
        resent_recent;
};

struct vc_source {
    struct vc_source_options o; /* [const after start] */
    int event_fd;               /* [const after start] */
    struct vc_slab_pool slabs;
    struct vc_queue to_send;
    struct vc_thread ingest, send, receive, record;

    struct vc_ram ram;            /* [thread: ingest; const once ram_known] */
    int local_map[VC_MAX_BLOCKS]; /* likewise: block of the stream -> of o.local_gen, or -1 */
    struct vc_remote remote;      /* see there */
    struct vc_recorder recorder;  /* see there */
    struct vc_src_channel side;   /* see there */

    pthread_mutex_t mu;
    pthread_cond_t changed;
    struct vc_flow flow;                            /* [lock: mu] */
    struct vc_rate rate;                            /* [lock: mu] */
    struct vc_src_batch *window_head, *window_tail; /* [lock: mu] sent, not acknowledged */
    bool ram_known, first_pass_done, stream_ended, qemu_hung_up, eof_sent, shut, failed,
        peer_stream_failed, lost, stop; /* [lock: mu] */
    bool success_passes;                /* [lock: mu] vc_source_pass_success() was called */
    uint32_t shut_status;               /* [lock: mu] */
    uint64_t package_end;               /* [lock: mu] position behind a postcopy's package, or 0 */
    bool package_delivered; /* [lock: mu] the destination QEMU has been given all of it */
    char reason[160];       /* [lock: mu] */
    struct vc_err err;      /* [lock: mu] the first one */

    struct vc_reuse reuse;       /* [thread: recv] */
    atomic_uint reuse_share;     /* [atomic] reuse.share */
    atomic_bool recent_works;    /* [atomic] a batch of codec recent was acknowledged as it was */
    atomic_uint keeps;           /* [atomic] VC_WIRE_KEEPS_*, of the destination */
    atomic_int unsent;           /* [atomic] batches pushed and not yet handed to the link */
    atomic_ullong pace_limit_ns; /* [atomic] */
    struct vc_source_counters n; /* [atomic] */
};

void *vc_source_ingest_main(void *arg);
void *vc_source_send_main(void *arg);
void *vc_source_receive_main(void *arg);
void *vc_source_record_main(void *arg);

/** Wakes whoever watches the event descriptor. Any thread. */
void vc_source_notify(struct vc_source *s);
/** Whether the pipeline is being torn down. Any thread. */
bool vc_source_stopping(struct vc_source *s);

/** The acknowledged batch and all before it leave the window. VC_E_PROTOCOL if it is not there, or
 *  ends elsewhere. */
int vc_source_window_ack(struct vc_source *s, const struct vc_wire_ack *ack,
                         struct vc_err *err) VC_NODISCARD;
/** A reference to a batch in the window, or NULL. */
struct vc_src_batch *vc_source_window_find(struct vc_source *s, uint64_t seq);

static inline void vc_count(atomic_ullong *c, uint64_t n)
{
    atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

#endif
