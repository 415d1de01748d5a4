/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SOURCE_CHANNEL_H
#define VC_SOURCE_CHANNEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/thread.h"
#include "wire/wire.h"

/* Private to src/source: QEMU's second connection (capability postcopy-preempt), which goes over
 * the wire as channel 1 (docs/formats/wire.md, section 4). One thread takes the connection and
 * carries its bytes, whatever they are. */

struct vc_source;

/** Connections that are held until the migration has failed. */
#define VC_SRC_REFUSED_MAX 64

struct vc_src_channel {
    struct vc_thread thread;
    int listen_fd; /* [const after start] -1: no second connection is taken */
    int wake_fd;   /* [const after start] eventfd: acknowledged, or the end */
    int fd;        /* [lock: pipeline's mu] -1 until connected; closed by _fini() */
    int refused[VC_SRC_REFUSED_MAX]; /* [thread: channel] closed by _fini() */
    unsigned n_refused;              /* [thread: channel] */
    bool over;                       /* [lock: pipeline's mu] nothing more is to be sent */
    uint64_t seq, position;          /* [lock: pipeline's mu] sent */
    uint32_t outstanding[VC_WIRE_CHANNEL_BATCHES]; /* [lock: pipeline's mu] stream bytes of batch
                                                      n, at n modulo the length */
    uint64_t acked_seq, acked_position;            /* [lock: pipeline's mu] */
};

/** Before anything else. @listen_fd: taken; -1: there will be no second connection. */
void vc_src_channel_init(struct vc_src_channel *c, int listen_fd);
/** Starts the thread, if there is something to listen on. */
int vc_src_channel_start(struct vc_source *s, struct vc_err *err) VC_NODISCARD;
/** An ACK that is not of channel 0. VC_E_PROTOCOL. Thread: receive. */
int vc_src_channel_ack(struct vc_source *s, uint16_t channel, const struct vc_wire_ack *ack,
                       struct vc_err *err) VC_NODISCARD;
/** Nothing more of it is wanted: QEMU's end is shut down, the thread ends. Any thread, any number
 *  of times. */
void vc_src_channel_abort(struct vc_source *s);
/** Ends it in order, when channel 0 has ended: joins the thread. */
void vc_src_channel_join(struct vc_source *s);
/** Closes its descriptors; the thread was joined. */
void vc_src_channel_fini(struct vc_src_channel *c);

#endif
