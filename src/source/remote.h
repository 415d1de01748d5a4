/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SOURCE_REMOTE_H
#define VC_SOURCE_REMOTE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "digest/digest.h"
#include "source/lookup.h"
#include "wire/wire.h"

/* What the source knows of the memory that the destination already has: nothing, the generation
 * both hold (ping-pong), or what the destination announces while pages already flow. */

struct vc_gen;

/** Memory for what is announced is taken by so many pages, where one of them is held. */
#define VC_REMOTE_CHUNK_PAGES 16384u
/** Before the RAM of the source's own VM is known, an announcement takes no more; this is that of
 *  28 GiB. After that, no more than the RAM that the VM has can need, twice. */
#define VC_REMOTE_EARLY_BYTES (64u << 20)
/** QEMU is slow to begin at times: so long an announcement that is longer waits for it. */
#define VC_REMOTE_PATIENCE_MS 2000u

struct vc_remote_chunk {
    uint64_t prefix[VC_REMOTE_CHUNK_PAGES];      /* first 8 bytes of the digest, as they came */
    _Atomic uint8_t held[VC_REMOTE_CHUNK_PAGES]; /* release after the prefix, acquire before it */
};

struct vc_remote_block {
    uint64_t pages;
    struct vc_remote_chunk *_Atomic *chunks; /* NULL: nothing in it is held */
};

struct vc_remote {
    enum vc_wire_base base;
    const struct vc_gen *gen; /* ping-pong: borrowed */
    const struct vc_log *log; /* borrowed; NULL: none */
    struct vc_ram announced;  /* [thread: recv] */
    struct vc_remote_block *blocks;
    bool ignored;                /* [thread: recv] the announcement is too large to be of use */
    bool overflowed;             /* [thread: recv] some of it was */
    uint32_t at_block;           /* [thread: recv] the next page that may be announced */
    uint64_t at_page;            /* likewise */
    uint64_t n_chunks;           /* [thread: recv] */
    uint32_t patience_ms;        /* [thread: recv] what is left of it */
    atomic_ullong own_chunks;    /* what the VM's own RAM can need; 0: not known yet */
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

/** The VM's own RAM is known. Any thread. */
void vc_remote_limit(struct vc_remote *r, const struct vc_ram *own);
/** ANNOUNCE_BLOCKS and ANNOUNCE came. What is too large is not looked at, with a warning. [thread:
 * recv] VC_E_PROTOCOL, VC_E_NOMEM. */
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
