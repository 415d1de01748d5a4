/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_LINK_LINK_H
#define VC_LINK_LINK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"
#include "base/queue.h"
#include "wire/wire.h"

/* A session's frames over a connection: joins `wire` (what the bytes mean) and `net` (how they
 * move). One thread of its own sends; the thread that calls vc_link_recv() receives. Keeps the
 * session alive with PING, and notices a peer that has fallen silent. */

struct vc_conn;
struct vc_link;

/** Silence after which a peer is taken for dead, unless set. */
#define VC_LINK_DEAD_PEER_MS 10000u
/** Idle time after which a PING goes out (docs/formats/wire.md section 2); a fifth of the dead-peer
 *  time if that is less. */
#define VC_LINK_PING_MS 2000u

/** A frame with its payload, on its way in or out. Free with vc_link_frame_free(). */
struct vc_link_frame {
    struct vc_queue_node node; /* first */
    uint8_t type;
    uint16_t channel;
    uint32_t bytes;       /* of the payload */
    uint64_t sent_ns;     /* outgoing: unused; incoming: when it was complete */
    struct vc_rest *rest; /* outgoing: where the last part of the payload is; else NULL */
    uint8_t payload[];
};

/** The part of a payload that is not in the frame but where it was. */
struct vc_rest {
    void *owner; /* released with the frame, by any thread */
    void (*release)(void *owner);
    uint32_t bytes;
    uint32_t n_pieces;
    struct iovec pieces[]; /* the first two are the link's own */
};
#define VC_REST_FIRST 2u

/** NULL: no memory. */
struct vc_link_frame *vc_link_frame_new(uint8_t type, uint16_t channel, uint32_t bytes);
void vc_link_frame_free(struct vc_link_frame *f);
/** Room for n pieces at pieces[VC_REST_FIRST] of the frame's rest. The caller fills them in, sets
 *  n_pieces where they are fewer, and both `bytes`: the frame's are those of payload[] and rest.
 *  False: no memory, nothing is owned. */
bool vc_link_frame_gather(struct vc_link_frame *f, uint32_t n, void *owner,
                          void (*release)(void *owner)) VC_NODISCARD;
static inline void vc_cleanup_frame(struct vc_link_frame **f)
{
    vc_link_frame_free(*f);
}
#define vc_auto_frame VC_CLEANUP(vc_cleanup_frame)

/** Takes the connection (also on failure) and starts the sending thread.
 *  @dead_peer_ms: 0 = VC_LINK_DEAD_PEER_MS. */
int vc_link_new(struct vc_conn *conn, enum vc_wire_role role, uint32_t dead_peer_ms,
                struct vc_link **out, struct vc_err *err) VC_NODISCARD;
/** Shuts down, joins the sending thread, drops what it has not sent: nothing of anybody's is held
 * any more. One thread. */
void vc_link_stop(struct vc_link *l);
/** The same, and closes the connection. NULL is fine. No other thread may be inside a call. */
void vc_link_free(struct vc_link *l);

/** Exchanges HELLO; *features_out are those both sides have. VC_E_VERSION, VC_E_PROTOCOL (not
 *  vecycle at all), VC_E_PEER_LOST. Afterwards the phase is `open`. */
int vc_link_hello(struct vc_link *l, uint64_t features, uint64_t *features_out,
                  struct vc_err *err) VC_NODISCARD;

/** Moves to another phase: what the peer may send from now on. */
void vc_link_set_phase(struct vc_link *l, enum vc_wire_phase phase);

/** The peer's next frame, PING and PONG apart. One thread at a time. 0 (*out is the caller's);
 *  VC_EOF: the connection ended between frames; an ERROR frame becomes the error it carries;
 *  VC_E_PROTOCOL; VC_E_PEER_LOST. */
int vc_link_recv(struct vc_link *l, struct vc_link_frame **out, struct vc_err *err) VC_NODISCARD;

/** Queues a frame; takes it in every case. Urgent frames pass those that are not. VC_CLOSED: the
 *  link is down, the frame is gone. Any thread. Waits while too much is queued (512 KiB; urgent:
 *  16 MiB). */
int vc_link_send(struct vc_link *l, struct vc_link_frame *f, bool urgent);
/** Builds and queues an urgent frame with a copy of the payload. Any thread. */
int vc_link_send_small(struct vc_link *l, uint8_t type, uint16_t channel, const void *payload,
                       uint32_t bytes);

/** Tells the peer why the session ends (best effort, at most a second), then shuts down. */
void vc_link_fail(struct vc_link *l, const struct vc_err *why);
/** Sends what is queued, then ends the sending direction in order. Waits for it, at most
 *  @timeout_ms. */
void vc_link_finish(struct vc_link *l, uint32_t timeout_ms);
/** Ends both directions at once; wakes everybody. Any thread, any number of times. */
void vc_link_shutdown(struct vc_link *l);

/** Takes the link down if the peer has been silent for too long while somebody was in
 *  vc_link_recv(). The sending thread looks too, but not while a write is stuck; whoever owns the
 *  session calls this a few times a second. */
void vc_link_check_peer(struct vc_link *l);

/** Silence after which the peer is taken for dead. */
uint32_t vc_link_dead_peer_ms(const struct vc_link *l);
/** Bytes on the wire, with frame headers. Any thread. */
uint64_t vc_link_bytes_sent(const struct vc_link *l);
uint64_t vc_link_bytes_received(const struct vc_link *l);
/** The peer as the transport names it, for messages. */
const char *vc_link_peer(const struct vc_link *l);
/** vc_wire_security of this end; after HELLO that of the connection as a whole. */
enum vc_wire_security vc_link_security(const struct vc_link *l);

#endif
