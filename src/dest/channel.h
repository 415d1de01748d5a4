/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_DEST_CHANNEL_H
#define VC_DEST_CHANNEL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/queue.h"
#include "base/thread.h"

/* Private to src/dest: channel 1 of the wire (docs/formats/wire.md, section 4), which becomes a
 * second connection to the destination QEMU (capability postcopy-preempt). It has a queue and a
 * thread of its own, so that it waits for nothing that passes on channel 0. */

struct vc_dest;
struct vc_link_frame;

struct vc_dst_channel {
    struct vc_queue frames;
    struct vc_thread thread;         /* [thread: receive; joined behind it] */
    int fd;                          /* [lock: pipeline's mu] -1 until connected */
    bool opened, ended;              /* [thread: receive] */
    uint64_t got_bytes, got_batches; /* [thread: receive] */
    atomic_ullong acked_bytes, acked_batches;
};

void vc_dst_channel_init(struct vc_dst_channel *c);
/** A frame that is not of channel 0; taken if it returns 0. The first one starts the thread. It
 *  never waits. VC_E_PROTOCOL. Thread: receive. */
int vc_dst_channel_frame(struct vc_dest *d, struct vc_link_frame *f,
                         struct vc_err *err) VC_NODISCARD;
/** Channel 0 has ended: what is left for this one is dropped. Any thread. */
void vc_dst_channel_end(struct vc_dest *d);
/** QEMU's end is shut down, the thread ends. Any thread, any number of times. */
void vc_dst_channel_abort(struct vc_dest *d);
/** Joins the thread, after an abort and when the receiving thread was joined. */
void vc_dst_channel_fini(struct vc_dest *d);

#endif
