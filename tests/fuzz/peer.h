/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef FUZZ_PEER_H
#define FUZZ_PEER_H

#include "base/log.h"
#include "hosts.h"
#include "qemu.h"
#include "wire/wire.h"

/* The other end of a session, played from the input: elements of a byte (frame type), a length
 * (2 bytes) and that much payload. Bit 7 of the type puts the frame on channel 1. Some types are
 * none: element 0 waits for a frame of the type that its payload names, for the n-th one where it
 * stands for the n-th time. */

#define FUZZ_AWAIT 0u
#define FUZZ_CHANNEL 0x80u /* bit of a type */
#define FUZZ_BYTES 0x7fu   /* sends the payload as it is */
#define FUZZ_QEMU 0x7eu    /* it is more of QEMU's script (qemu.h) */
#define FUZZ_AGAIN 0x7du   /* the session ends, and the next one begins */
#define FUZZ_CANCEL 0x7cu  /* it is cancelled from here */
#define FUZZ_ACKS 0x7bu    /* from here on each BATCH that is seen is acknowledged */
/** Time that element 0 waits at most: for what the session may never say. Once that happened,
 * nothing is waited for any more. (Less where many inputs are tried: meson.build.) */
#ifndef FUZZ_AWAIT_MS
#define FUZZ_AWAIT_MS 500
#endif
#define FUZZ_MAX_ELEMENTS 64

struct fuzz_peer {
    int fd;                           /* our end of the connection */
    bool in_vain;                     /* something was waited for that did not come */
    uint32_t came[256], awaited[256]; /* frames of each type */
    uint8_t said[FUZZ_SOCKET_BYTES];  /* a frame of the session's that is not whole yet */
    size_t n_said;
    /** Called for each frame that the session sends; the type has the bit of the channel. */
    void (*on_frame)(void *opaque, uint8_t type, const uint8_t *p, size_t n);
    void *opaque;
};

/** A log whose lines are lines. */
extern const struct vc_log fuzz_log;

/** The next element; false: there is none. */
bool fuzz_element(struct vc_reader *in, uint8_t *type, struct vc_reader *payload);
/** Sends a frame; whatever becomes of it. @type: with the bit of the channel. */
void fuzz_send(struct fuzz_peer *p, uint8_t type, const void *payload, size_t n);
/** Waits until the session has sent one more frame of that type than was waited for before, but not
 *  for long. */
void fuzz_await(struct fuzz_peer *p, uint8_t type);
/** Ends our direction, and takes what the session says until it ends its own. */
void fuzz_hang_up(struct fuzz_peer *p);

/** Does what QEMU's script says at the beginning of the input. */
void fuzz_prelude(struct vc_reader *in, struct fuzz_qemu *q);

/** The payload of a HELLO. Returns its length. */
size_t fuzz_hello(uint8_t *buf, size_t cap, enum vc_wire_role role);
/** The same of WORD (in: a byte that says which, or none) and WORD_DONE (a byte: the code). */
size_t fuzz_word(uint8_t *buf, size_t cap, struct vc_reader in, const struct vc_id *session);
size_t fuzz_word_done(uint8_t *buf, size_t cap, struct vc_reader in);

#endif
