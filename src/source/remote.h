/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SOURCE_REMOTE_H
#define VC_SOURCE_REMOTE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/units.h"
#include "digest/digest.h"
#include "source/lookup.h"
#include "wire/wire.h"

/* What the source knows of the memory that the destination already has: nothing, the generation
 * both hold (ping-pong), or what the destination announces while pages already flow. */

struct vc_gen;

struct vc_remote_block {
    uint64_t pages;
    _Atomic uint8_t *held; /* vc_wire_held; release after the prefix, acquire before it */
    uint64_t *prefix;      /* first 8 bytes of the digest, as they came */
};

struct vc_remote {
    enum vc_wire_base base;
    const struct vc_gen *gen; /* ping-pong: borrowed */
    struct vc_ram announced;  /* [thread: recv] */
    struct vc_remote_block *blocks;
    atomic_bool ready;           /* announce: `announced` and `blocks` are there */
    int map[VC_MAX_BLOCKS];      /* [thread: ingest] block of the stream -> block here, or -1 */
    const struct vc_ram *mapped; /* [thread: ingest] what map was made for */

    atomic_bool complete; /* announce: nothing more will come */
    /* Contents at other addresses. [thread: ingest] */
    uint64_t first[VC_MAX_BLOCKS + 1]; /* pages of the stream's RAM in the blocks before */
    struct vc_lookup lookup;
};

/** @gen: with PING_PONG. */
void vc_remote_init(struct vc_remote *r, enum vc_wire_base base, const struct vc_gen *gen);
void vc_remote_fini(struct vc_remote *r);

/** ANNOUNCE_BLOCKS and ANNOUNCE came. [thread: recv] VC_E_PROTOCOL, VC_E_NOMEM. */
int vc_remote_blocks(struct vc_remote *r, const uint8_t *p, size_t n,
                     struct vc_err *err) VC_NODISCARD;
int vc_remote_announce(struct vc_remote *r, const uint8_t *p, size_t n,
                       struct vc_err *err) VC_NODISCARD;

/** That was all. [thread: recv] */
int vc_remote_announced(struct vc_remote *r, struct vc_err *err) VC_NODISCARD;

/** Whether the destination holds this content at this address. [thread: ingest] */
bool vc_remote_has(struct vc_remote *r, const struct vc_ram *ram, uint16_t block,
                   struct vc_page page, const struct vc_digest *digest);
/** Whether it holds it elsewhere, and where: nothing is found before the lookup has been asked
 * often enough. [thread: ingest] */
bool vc_remote_find(struct vc_remote *r, const struct vc_ram *ram, const struct vc_digest *digest,
                    uint16_t *block, struct vc_page *page);

#endif
