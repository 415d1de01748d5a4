/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_WIRE_WIRE_H
#define VC_WIRE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/err.h"
#include "base/units.h"

/* Frames and messages between two hosts, as docs/formats/wire.md has them. Pure: bytes in, structs
 * out, and back; no descriptor, thread or clock. Everything decoded here has been checked against
 * the limits of the format; nothing that a peer sends makes these functions allocate more than the
 * caller's own buffers.
 *
 * Thread rule: no shared state, except where an object is passed. */

#define VC_WIRE_VERSION 1
#define VC_WIRE_HEADER_BYTES 8
/** How the payload of HELLO begins. */
#define VC_WIRE_MAGIC "vecycle\n"
/** And how a connection begins, in either direction, from its fifth byte on: the rest of HELLO's
 *  frame header (type, flags, channel), and that. */
#define VC_WIRE_GREETING "\1\0\0\0" VC_WIRE_MAGIC
#define VC_WIRE_GREETING_AT 4
#define VC_WIRE_MAX_CHANNELS 64
/** The channel of QEMU's postcopy-preempt connection; between the main one and it there is none. */
#define VC_WIRE_CHANNEL_PREEMPT 1
/** What may be unacknowledged on a channel other than 0. */
#define VC_WIRE_CHANNEL_BYTES (1u << 20)
#define VC_WIRE_CHANNEL_BATCHES 256u
#define VC_WIRE_MAX_GENERATIONS 64
/** Longest encoding of one run. */
#define VC_WIRE_RUN_MAX_BYTES (1u + 5u * VC_VARINT_MAX_BYTES)
#define VC_WIRE_MAX_BATCH_STREAM_BYTES (4u << 20)
/** Runs of a batch: what a side holds for a batch grows with them, though they may stand for
 *  nothing. A source of ours closes a batch at 512. */
#define VC_WIRE_MAX_BATCH_RUNS 4096u
#define VC_WIRE_MAX_BATCH_RUNS_BYTES (VC_WIRE_MAX_BATCH_RUNS * VC_WIRE_RUN_MAX_BYTES)
/** Longest body of a batch before compression: its stream bytes as data, and its runs. */
#define VC_WIRE_MAX_BATCH_BODY_BYTES (VC_WIRE_MAX_BATCH_STREAM_BYTES + VC_WIRE_MAX_BATCH_RUNS_BYTES)
/** Longest BATCH: such a body, and what it takes to say that it cannot be compressed. */
#define VC_WIRE_MAX_BATCH_BYTES (VC_WIRE_MAX_BATCH_STREAM_BYTES + (256u << 10))
/** How often the *invalidate* runs of a batch may cover all of RAM: as often as the parser gives
 * up. */
#define VC_WIRE_MAX_INVALIDATIONS 65
#define VC_WIRE_MAX_FRAME_BYTES (9u << 20)
#define VC_WIRE_BATCH_HEADER_BYTES 48
#define VC_WIRE_SEAL_BYTES 16
#define VC_WIRE_ROOT_BYTES 32
#define VC_WIRE_KEY_BYTES 32
#define VC_WIRE_MAX_TEXT_BYTES 255
#define VC_WIRE_MAX_REPAIR_PAGES 65536u
#define VC_WIRE_REPAIRED_PAGES 64u

enum vc_wire_type {
    VC_WIRE_HELLO = 1,
    VC_WIRE_OPEN = 2,
    VC_WIRE_ACCEPT = 3,
    VC_WIRE_START = 4,
    VC_WIRE_BLOCKS = 16,
    VC_WIRE_BATCH = 17,
    VC_WIRE_EOF = 18,
    VC_WIRE_ACK = 19,
    VC_WIRE_REPAIR = 20,
    VC_WIRE_REPAIRED = 21,
    VC_WIRE_RESEND = 22,
    VC_WIRE_RETURN = 23,
    VC_WIRE_ANNOUNCE_BLOCKS = 24,
    VC_WIRE_ANNOUNCE = 25,
    VC_WIRE_ANNOUNCE_END = 26,
    VC_WIRE_CREDIT = 27,
    VC_WIRE_STREAM_FAILED = 28,
    VC_WIRE_READS = 29,
    VC_WIRE_KEEPS = 30,
    VC_WIRE_COMMITTED = 32,
    VC_WIRE_WORD = 33,
    VC_WIRE_WORD_DONE = 34,
    VC_WIRE_CLOSE = 35,
    VC_WIRE_NEVER_RAN = 36,
    VC_WIRE_REKEYING = 40,
    VC_WIRE_REKEYED = 41,
    VC_WIRE_READY = 42,
    VC_WIRE_PING = 48,
    VC_WIRE_PONG = 49,
    VC_WIRE_ERROR = 50,
};

enum vc_wire_role { VC_WIRE_SOURCE = 1, VC_WIRE_DESTINATION = 2 };

/** Phases as bits, so that a table row can allow several. */
enum vc_wire_phase {
    VC_WIRE_PHASE_HELLO = 1u << 0,
    VC_WIRE_PHASE_OPEN = 1u << 1,
    VC_WIRE_PHASE_STREAM = 1u << 2,
    VC_WIRE_PHASE_END = 1u << 3,
};

enum vc_wire_security { VC_WIRE_LOCAL = 0, VC_WIRE_ENCRYPTED = 1, VC_WIRE_PLAINTEXT = 2 };
enum vc_wire_mode {
    VC_WIRE_MODE_PROXY = 1,
    VC_WIRE_MODE_DRIVEN = 2,
    VC_WIRE_MODE_WORD = 3,
    VC_WIRE_MODE_POSTCOPY = 4,
    VC_WIRE_MODE_RECOVER = 5,
    VC_WIRE_MODE_PREEMPT = 6,
    VC_WIRE_MODE_REKEY = 7,
};
enum vc_wire_base { VC_WIRE_BASE_NONE = 0, VC_WIRE_BASE_PING_PONG = 1, VC_WIRE_BASE_ANNOUNCE = 2 };
enum vc_wire_word {
    VC_WIRE_WORD_CONTINUE = 1,
    VC_WIRE_WORD_ABANDON = 2,
    VC_WIRE_WORD_SUSPEND = 3,
    VC_WIRE_WORD_DISMISS = 12, /* abandon, and the VM that has arrived is told to quit */
    VC_WIRE_WORD_ASK = 24,     /* what is known there? Nothing changes */
};

#define VC_WIRE_FEATURE_ANNOUNCE (1ull << 0)
#define VC_WIRE_FEATURE_MOVED (1ull << 1)   /* moved runs */
#define VC_WIRE_FEATURE_CREDITS (1ull << 2) /* reserved */
#define VC_WIRE_FEATURE_CHANNELS (1ull << 3)
#define VC_WIRE_FEATURE_DELTA (1ull << 4)
#define VC_WIRE_FEATURE_READS (1ull << 5)
#define VC_WIRE_FEATURE_RECENT (1ull << 6)  /* with _DELTA */
#define VC_WIRE_FEATURE_SHIFTED (1ull << 7) /* with _DELTA: shifted runs */
#define VC_WIRE_FEATURE_KEEPS (1ull << 8)
#define VC_WIRE_FEATURE_REKEY (1ull << 9) /* mode 7 */
#define VC_WIRE_LINEAGE_EXPOSED 1u
#define VC_WIRE_FRAME_OPTIONAL 1u

struct vc_wire_frame {
    uint32_t bytes; /* of the payload */
    uint8_t type;   /* vc_wire_type, or unknown and optional */
    uint8_t flags;
    uint16_t channel;
};

/** Decodes and checks a header against the table: known type or optional, length limits, role of
 *  the sender, phase. Returns 0; VC_NOT_FOUND: optional and unknown, skip `bytes`; VC_E_PROTOCOL.
 */
int vc_wire_frame_decode(const uint8_t header[VC_WIRE_HEADER_BYTES], enum vc_wire_role sender,
                         enum vc_wire_phase phase, struct vc_wire_frame *out,
                         struct vc_err *err) VC_NODISCARD;
void vc_wire_frame_encode(const struct vc_wire_frame *f, uint8_t header[VC_WIRE_HEADER_BYTES]);
/** "BATCH", ... ; "?" for unknown. */
const char *vc_wire_type_name(unsigned type);

/* ---- messages: `encode` appends the payload to a writer (sticky failure there), `decode` reads a
 *      whole payload and returns 0 or VC_E_PROTOCOL ---- */

struct vc_wire_hello {
    uint16_t version_min, version_max;
    uint8_t role;     /* vc_wire_role */
    uint8_t security; /* vc_wire_security */
    uint64_t features;
    char software[256];
};

struct vc_wire_lineage {
    struct vc_id id;
    uint8_t algo;  /* vc_digest_algo, not checked here */
    uint8_t flags; /* VC_WIRE_LINEAGE_* */
};

struct vc_wire_generation {
    struct vc_id id;
    uint8_t root[VC_WIRE_ROOT_BYTES];
};

struct vc_wire_open {
    struct vc_id session, vm;
    uint8_t mode; /* vc_wire_mode */
    char name[256];
    uint32_t window_bytes;
    bool has_lineage;
    struct vc_wire_lineage lineage;
    uint8_t n_generations;
    struct vc_wire_generation generations[VC_WIRE_MAX_GENERATIONS];
    struct vc_id interrupted; /* mode 5: the session whose rest this is; nil: not known */
};

struct vc_wire_accept {
    uint8_t base; /* vc_wire_base */
    struct vc_id generation;
    bool has_lineage;
    struct vc_wire_lineage lineage;
    uint8_t key[VC_WIRE_KEY_BYTES]; /* of that lineage */
    bool needs_key;
    uint32_t max_batch_stream_bytes;
};

struct vc_wire_start {
    struct vc_wire_lineage lineage;
    uint8_t base; /* vc_wire_base */
    bool has_key;
    uint8_t key[VC_WIRE_KEY_BYTES];
    struct vc_id generation;
};

struct vc_wire_ack {
    uint64_t seq, position;
};
struct vc_wire_committed {
    struct vc_id generation;
    bool committed;
    uint8_t root[VC_WIRE_ROOT_BYTES];
};
struct vc_wire_word_msg {
    uint8_t word; /* vc_wire_word */
    struct vc_id session;
};
/** ERROR, STREAM_FAILED, WORD_DONE: a code (VC_E_* without sign, 0 for none) and a text; behind a
 *  newline in it what can be done about it. Both together have room in 255 bytes. Decoded ones hold
 *  no control characters. */
struct vc_wire_status {
    uint32_t code;
    char text[256];
    char hint[256]; /* "": none */
};

struct vc_writer;

void vc_wire_hello_encode(struct vc_writer *w, const struct vc_wire_hello *m);
int vc_wire_hello_decode(const uint8_t *p, size_t n, struct vc_wire_hello *m,
                         struct vc_err *err) VC_NODISCARD;
void vc_wire_open_encode(struct vc_writer *w, const struct vc_wire_open *m);
int vc_wire_open_decode(const uint8_t *p, size_t n, struct vc_wire_open *m,
                        struct vc_err *err) VC_NODISCARD;
void vc_wire_accept_encode(struct vc_writer *w, const struct vc_wire_accept *m);
int vc_wire_accept_decode(const uint8_t *p, size_t n, struct vc_wire_accept *m,
                          struct vc_err *err) VC_NODISCARD;
void vc_wire_start_encode(struct vc_writer *w, const struct vc_wire_start *m);
int vc_wire_start_decode(const uint8_t *p, size_t n, struct vc_wire_start *m,
                         struct vc_err *err) VC_NODISCARD;
/** BLOCKS and ANNOUNCE_BLOCKS. */
void vc_wire_blocks_encode(struct vc_writer *w, const struct vc_ram *ram);
int vc_wire_blocks_decode(const uint8_t *p, size_t n, struct vc_ram *ram,
                          struct vc_err *err) VC_NODISCARD;
void vc_wire_ack_encode(struct vc_writer *w, const struct vc_wire_ack *m);
int vc_wire_ack_decode(const uint8_t *p, size_t n, struct vc_wire_ack *m,
                       struct vc_err *err) VC_NODISCARD;
void vc_wire_committed_encode(struct vc_writer *w, const struct vc_wire_committed *m);
int vc_wire_committed_decode(const uint8_t *p, size_t n, struct vc_wire_committed *m,
                             struct vc_err *err) VC_NODISCARD;
void vc_wire_word_encode(struct vc_writer *w, const struct vc_wire_word_msg *m);
int vc_wire_word_decode(const uint8_t *p, size_t n, struct vc_wire_word_msg *m,
                        struct vc_err *err) VC_NODISCARD;
void vc_wire_status_encode(struct vc_writer *w, const struct vc_wire_status *m);
int vc_wire_status_decode(const uint8_t *p, size_t n, struct vc_wire_status *m,
                          struct vc_err *err) VC_NODISCARD;
/** How the destination's time goes: all since its first batch. */
struct vc_wire_reads {
    uint64_t elapsed_ns, waiting_ns, reading_ns;
    uint64_t bytes;         /* read from the base generation */
    uint64_t content_bytes; /* of all PAGE records */
};
#define VC_WIRE_READS_BYTES 40
void vc_wire_reads_encode(struct vc_writer *w, const struct vc_wire_reads *m);
int vc_wire_reads_decode(const uint8_t *p, size_t n, struct vc_wire_reads *m,
                         struct vc_err *err) VC_NODISCARD;

/** KEEPS: one u8 of these. */
#define VC_WIRE_KEEPS_NEW 1u     /* a new generation, which codec recent can build on */
#define VC_WIRE_KEEPS_PARTIAL 2u /* the base generation is partial */
int vc_wire_keeps_decode(const uint8_t *p, size_t n, uint8_t *flags,
                         struct vc_err *err) VC_NODISCARD;

/* ---- rekey.c: mode 7 ---- */

/** Pages of a block, one behind the other. */
struct vc_wire_range {
    uint32_t block;
    struct vc_page page;
    uint64_t count;
};
#define VC_WIRE_MAX_REKEYED_RANGES 1024u
/** REKEYED: what the sender has dropped; `ranges` points into the payload. */
struct vc_wire_rekeyed {
    uint32_t n;
    const uint8_t *ranges;
};
void vc_wire_rekeyed_encode(struct vc_writer *w, const struct vc_wire_range *ranges, uint32_t n);
int vc_wire_rekeyed_decode(const uint8_t *p, size_t n, struct vc_wire_rekeyed *m,
                           struct vc_err *err) VC_NODISCARD;
/** One of them, as it was sent: at least one page, of whatever block. */
struct vc_wire_range vc_wire_rekeyed_range(const struct vc_wire_rekeyed *m, uint32_t i);
void vc_wire_ready_encode(struct vc_writer *w, const struct vc_wire_generation *m);
int vc_wire_ready_decode(const uint8_t *p, size_t n, struct vc_wire_generation *m,
                         struct vc_err *err) VC_NODISCARD;

/** RESEND, PING, PONG, CREDIT, REKEYING: one u64. */
void vc_wire_u64_encode(struct vc_writer *w, uint64_t v);
int vc_wire_u64_decode(const uint8_t *p, size_t n, uint64_t *v, struct vc_err *err) VC_NODISCARD;

/** REPAIR: `ordinals` points into the payload, little-endian u32 each. */
struct vc_wire_repair {
    uint64_t seq;
    uint32_t n;
    const uint8_t *ordinals;
};
void vc_wire_repair_encode(struct vc_writer *w, uint64_t seq, const uint32_t *ordinals, uint32_t n);
int vc_wire_repair_decode(const uint8_t *p, size_t n, struct vc_wire_repair *m,
                          struct vc_err *err) VC_NODISCARD;

/** REPAIRED: entry i lies at entries + i * (4 + page_bytes). */
struct vc_wire_repaired {
    uint64_t seq;
    uint32_t n;
    const uint8_t *entries;
};
int vc_wire_repaired_decode(const uint8_t *p, size_t n, uint32_t page_bytes,
                            struct vc_wire_repaired *m, struct vc_err *err) VC_NODISCARD;

/* ---- announce ---- */

/** What a page that is held costs in an ANNOUNCE: the first half of its digest. */
#define VC_WIRE_ANNOUNCE_PAGE_BYTES 8u

enum vc_wire_held { VC_WIRE_NOT_HELD = 0, VC_WIRE_HELD_ZERO = 1, VC_WIRE_HELD = 2 };

/** Walks one ANNOUNCE payload. */
struct vc_wire_announce {
    uint32_t block;
    struct vc_page page; /* first page of the next run */
    const uint8_t *p;    /* private */
    size_t left;
};
struct vc_wire_announce_run {
    uint8_t held; /* vc_wire_held */
    struct vc_page page;
    uint64_t count;
    const uint8_t *prefixes; /* count x 8 bytes if VC_WIRE_HELD */
};
int vc_wire_announce_open(const uint8_t *p, size_t n, const struct vc_ram *ram,
                          struct vc_wire_announce *a, struct vc_err *err) VC_NODISCARD;
/** 0: a run, inside its block; VC_EOF: no more; VC_E_PROTOCOL. */
int vc_wire_announce_next(struct vc_wire_announce *a, const struct vc_ram *ram,
                          struct vc_wire_announce_run *run, struct vc_err *err) VC_NODISCARD;

/* ---- runs ---- */

enum vc_wire_run_kind {
    VC_RUN_OPAQUE = 1,
    VC_RUN_SAME = 2,
    VC_RUN_ZERO = 3,
    VC_RUN_DATA = 4,
    VC_RUN_INVALIDATE = 5,
    VC_RUN_MOVED = 6,
};

struct vc_wire_run {
    uint8_t kind; /* vc_wire_run_kind */
    bool named;   /* the first record names its block */
    bool as_page; /* zero: PAGE records */
    bool old;     /* data: what these pages were is in the prefix */
    bool shifted; /* only with old: in the base generation that is elsewhere; kind 7 on the wire */
    bool recent;  /* old holds for codec recent; a note of the source's, not on the wire */
    uint16_t block;
    struct vc_page page;
    uint64_t count; /* pages, or bytes of an opaque run */
    uint16_t from_block;
    struct vc_page from_page; /* moved, shifted */
};

/** Whether the run's contents are those of pages of the base generation. */
static inline bool vc_wire_run_is_reference(const struct vc_wire_run *run)
{
    return run->kind == VC_RUN_SAME || run->kind == VC_RUN_MOVED;
}

/** Whether it names another place in the base generation than its own. */
static inline bool vc_wire_run_is_elsewhere(const struct vc_wire_run *run)
{
    return run->kind == VC_RUN_MOVED || run->shifted;
}

/** Where in the base generation the pages of a reference begin, or what the pages of an `old` run
 *  were. */
static inline struct vc_page vc_wire_run_base_page(const struct vc_wire_run *run, uint16_t *block)
{
    bool elsewhere = vc_wire_run_is_elsewhere(run);

    *block = elsewhere ? run->from_block : run->block;
    return elsewhere ? run->from_page : run->page;
}

/** The place that cursor fields are relative to. Zero-initialise for each batch. */
struct vc_wire_cursor {
    uint16_t block;
    uint64_t page;
};

void vc_wire_run_encode(struct vc_writer *w, struct vc_wire_cursor *c,
                        const struct vc_wire_run *run);

struct vc_reader;
/** Reads the next run. @ram: to check blocks and pages; NULL: no run of pages is legal yet.
 *  @features: as negotiated (moved runs need VC_WIRE_FEATURE_MOVED, OLD needs _DELTA, shifted
 *  runs need _SHIFTED and _DELTA).
 *  0; VC_EOF at the end of the reader; VC_E_PROTOCOL. */
int vc_wire_run_decode(struct vc_reader *r, struct vc_wire_cursor *c, const struct vc_ram *ram,
                       uint64_t features, struct vc_wire_run *run, struct vc_err *err) VC_NODISCARD;

/* ---- batches ---- */

struct vc_wire_batch {
    uint64_t seq, position;
    uint32_t stream_bytes, runs_bytes, body_bytes;
    uint8_t codec; /* VC_WIRE_CODEC_* */
    uint8_t flags; /* VC_WIRE_BATCH_* */
    uint8_t seal[VC_WIRE_SEAL_BYTES];
};
#define VC_WIRE_BATCH_SELF_CONTAINED 1u
#define VC_WIRE_CODEC_NONE 0
#define VC_WIRE_CODEC_ZSTD 1
#define VC_WIRE_CODEC_DELTA 2 /* runs plain, contents with old pages as zstd's prefix */
/* The same with pages that the session has carried; behind the runs is the number of a batch. */
#define VC_WIRE_CODEC_RECENT 3
#define VC_WIRE_AFTER_BYTES 8 /* that number */

static inline bool vc_wire_codec_is_delta(uint8_t codec)
{
    return codec == VC_WIRE_CODEC_DELTA || codec == VC_WIRE_CODEC_RECENT;
}
/** Where a delta's frame begins in the payload of BATCH. */
static inline uint32_t vc_wire_delta_at(const struct vc_wire_batch *b)
{
    return VC_WIRE_BATCH_HEADER_BYTES + b->runs_bytes +
           (b->codec == VC_WIRE_CODEC_RECENT ? VC_WIRE_AFTER_BYTES : 0);
}

void vc_wire_batch_encode(uint8_t out[VC_WIRE_BATCH_HEADER_BYTES], const struct vc_wire_batch *b);
/** Checks the header's own limits and lengths against each other and the payload's length. */
int vc_wire_batch_decode(const uint8_t *p, size_t n, struct vc_wire_batch *b,
                         struct vc_err *err) VC_NODISCARD;

/** Compression contexts of one thread. */
struct vc_wire_codec;
/** @level: zstd level of the compressing side. */
int vc_wire_codec_new(int level, struct vc_wire_codec **out, struct vc_err *err) VC_NODISCARD;
void vc_wire_codec_free(struct vc_wire_codec *c);
/** From the next body on; 0: none is compressed. */
void vc_wire_codec_set_level(struct vc_wire_codec *c, int level);
/** Most bytes that a body of n bytes can become. */
size_t vc_wire_body_bound(size_t n);

/** Bytes that the other side has too, like those that are to be compressed. */
struct vc_wire_prefix {
    const uint8_t *p;
    size_t bytes; /* 0: none */
};
/** Most of a guest's memory either shrinks well or, being compressed or encrypted already, not at
 *  all: from so many bytes on a sample of them is tried first. */
#define VC_WIRE_SAMPLE_BYTES 16384u
#define VC_WIRE_SAMPLED_BYTES (4 * VC_WIRE_SAMPLE_BYTES)
/** Whether p[0..n), of which VC_WIRE_SAMPLE_BYTES are looked at, gets smaller. @prefix: what that
 * was before; NULL for none. */
bool vc_wire_sample_shrinks(struct vc_wire_codec *c, const uint8_t *p, size_t n,
                            const struct vc_wire_prefix *prefix);
/** Compresses body[0..n) into out[0..cap). Returns the bytes, or 0 where compression does not make
 *  it smaller (send it as codec none). Bodies under 64 bytes are never compressed.
 *  @prefix: NULL for none. */
size_t vc_wire_body_compress(struct vc_wire_codec *c, const uint8_t *body, size_t n,
                             const struct vc_wire_prefix *prefix, uint8_t *out, size_t cap);
/** Puts the body of h->body_bytes into out, which has as much room: compressed, or as it is where
 *  that is no longer. Sets h->codec; returns the bytes. */
size_t vc_wire_body_pack(struct vc_wire_codec *c, const uint8_t *body, struct vc_wire_batch *h,
                         uint8_t *out);
/** Whether p[0..n) looks like one zstd frame of exactly body_bytes; VC_E_PROTOCOL. */
int vc_wire_body_check(const uint8_t *p, size_t n, size_t body_bytes,
                       struct vc_err *err) VC_NODISCARD;
/** Expands a zstd frame of exactly body_bytes into out; VC_E_PROTOCOL if it is anything else.
 *  With a prefix (else NULL, 0) that can mean that it is not the one it was compressed with. */
int vc_wire_body_expand(struct vc_wire_codec *c, const uint8_t *p, size_t n, const uint8_t *prefix,
                        size_t prefix_bytes, uint8_t *out, size_t body_bytes,
                        struct vc_err *err) VC_NODISCARD;

#endif
