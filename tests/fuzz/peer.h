/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef FUZZ_PEER_H
#define FUZZ_PEER_H

#include "hosts.h"
#include "wire/wire.h"

/* The other end of a session, played from the input: elements of a byte (frame type), a length
 * (2 bytes) and that much payload. Element 0 waits for a frame of the type that its payload names.
 */

#define FUZZ_AWAIT 0u
/** Time that element 0 waits at most: for what the session may never say. Once that happened,
 * nothing is waited for any more. */
#define FUZZ_AWAIT_MS 500
#define FUZZ_MAX_ELEMENTS 64

struct fuzz_peer {
    int fd;       /* our end of the connection */
    bool in_vain; /* something was waited for that did not come */
    uint8_t awaited;
    bool came;
    uint8_t said[FUZZ_SOCKET_BYTES]; /* a frame of the session's that is not whole yet */
    size_t n_said;
    /** Called for each frame that the session sends. */
    void (*on_frame)(void *opaque, uint8_t type, const uint8_t *p, size_t n);
    void *opaque;
};

/** The next element; false: there is none. */
bool fuzz_element(struct vc_reader *in, uint8_t *type, struct vc_reader *payload);
/** Sends a frame; whatever becomes of it. */
void fuzz_send(struct fuzz_peer *p, uint8_t type, const void *payload, size_t n);
/** Waits until the session has sent a frame of that type, but not for long. */
void fuzz_await(struct fuzz_peer *p, uint8_t type);
/** Ends our direction, and takes what the session says until it ends its own. */
void fuzz_hang_up(struct fuzz_peer *p);

/** The payload of a HELLO. Returns its length. */
size_t fuzz_hello(uint8_t *buf, size_t cap, enum vc_wire_role role);

#endif
