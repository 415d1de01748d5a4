/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_QSTREAM_QSTREAM_H
#define VC_QSTREAM_QSTREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/units.h"

/* The main channel of QEMU's migration stream, version 3, as QEMU 2.12 to 10.x write it
 * (docs/internals/qemu-stream.md). Pure: bytes in, items out; no descriptor, thread or clock.
 *
 * Parsing is a hint. Every input byte is covered by exactly one item, in order; whoever forwards
 * the bytes of OPAQUE items and rebuilds PAGE and ZERO items with vc_qs_rebuild() gets the input
 * back, whatever the parser made of it. What it does not understand becomes OPAQUE.
 *
 * Thread rule: one parser belongs to one thread. */

enum vc_qs_kind {
    VC_QS_OPAQUE, /* `bytes` input bytes to be passed as they are */
    VC_QS_PAGE,   /* one PAGE record: `header_bytes` of header, then one page of content */
    VC_QS_ZERO,   /* one ZERO record with fill byte 0 */
    VC_QS_NEED,   /* the input ends inside a record; give more, or ask again with flush */
};

/** What an item tells besides its bytes. Several may be set on one item. */
enum vc_qs_event {
    VC_QS_EV_RETURN_PATH = 1u << 0, /* OPEN_RETURN_PATH was seen */
    VC_QS_EV_RAM = 1u << 1,         /* the block list is complete: vc_qs_ram() is valid from here */
    VC_QS_EV_UNKNOWN = 1u << 2,     /* item->block/page: content not known from here on
                                       (XBZRLE, COMPRESS_PAGE, odd fill byte, flushed record;
                                       taken back by a switch to postcopy) */
    VC_QS_EV_LOST = 1u << 3,        /* parsing stopped (for good, or until an anchor is found):
                                       every page is unknown; vc_qs_reason() says why */
    VC_QS_EV_RESUMED = 1u << 4,     /* an anchor was found, parsing goes on */
    VC_QS_EV_SECTION = 1u << 5,     /* the first section (START) begins with this item */
    VC_QS_EV_RAM_END = 1u << 6,     /* the END of the RAM section was passed */
    VC_QS_EV_POSTCOPY = 1u << 7,    /* POSTCOPY_ADVISE was seen */
    VC_QS_EV_PACKAGED = 1u << 8,    /* a PACKAGED blob begins with this item: postcopy has switched
                                       as soon as the destination has all of it */
    VC_QS_EV_TAIL = 1u << 9,        /* device state begins: verbatim to the end, in good order */
};

struct vc_qs_item {
    enum vc_qs_kind kind;
    unsigned events;        /* of enum vc_qs_event */
    size_t bytes;           /* input bytes covered; 0 only for NEED */
    uint32_t header_bytes;  /* PAGE: bytes before the content */
    uint16_t block;         /* PAGE, ZERO, EV_UNKNOWN: index into vc_qs_ram()->blocks */
    bool named;             /* PAGE, ZERO: the record names its block (else CONTINUE) */
    struct vc_page page;    /* PAGE, ZERO, EV_UNKNOWN */
    uint64_t count;         /* EV_UNKNOWN: pages from `page` on */
    uint32_t package_bytes; /* EV_PACKAGED: length of the blob */
};

struct vc_qs_parser;

/** @page_bytes_hint: page size to assume where the stream does not say (0: 4096). */
int vc_qs_parser_new(uint32_t page_bytes_hint, struct vc_qs_parser **out,
                     struct vc_err *err) VC_NODISCARD;
void vc_qs_parser_free(struct vc_qs_parser *p);

/** Reads the next item from `data` (the input right after the last item; `len` >= 1).
 *
 *  Without flush the answer may be NEED: fewer than VC_QS_NEED_MAX_BYTES are left and belong to a
 *  record that may be complete later; the caller keeps them and asks again with more behind them.
 *  With flush the answer is never NEED: an unfinished record becomes OPAQUE (and, where it was a
 *  page, EV_UNKNOWN), and the parser remembers where in the record it is. Cheap enough to be
 *  called for every record. Never fails. */
void vc_qs_next(struct vc_qs_parser *p, const uint8_t *data, size_t len, bool flush,
                struct vc_qs_item *item);

/** Most bytes that NEED leaves with the caller: the longest header and one page. */
#define VC_QS_NEED_MAX_BYTES (8 + 1 + 255 + VC_MAX_PAGE_BYTES)

/** The RAM blocks, valid after EV_RAM; belongs to the parser. */
const struct vc_ram *vc_qs_ram(const struct vc_qs_parser *p);
/** RAM records so far, of pages with content and of zero pages, with the one that is being read:
 *  what QEMU calls ram.normal and ram.duplicate (query-migrate). */
void vc_qs_records(const struct vc_qs_parser *p, uint64_t *data, uint64_t *zero);
/** Whether the first bytes were those of a QEMU main channel ("QEVM", version 3). Meaningful after
 *  8 bytes were parsed. */
bool vc_qs_is_qemu(const struct vc_qs_parser *p);
/** Whether they were those of a connection that recovers a postcopy: nothing of it can be told. */
bool vc_qs_is_recovery(const struct vc_qs_parser *p);
/** Whether RAM records are being parsed, or may yet be (false in verbatim state). */
bool vc_qs_is_parsing(const struct vc_qs_parser *p);
/** Why parsing stopped (EV_LOST): one phrase, lower case; "" if it did not. Belongs to the parser.
 */
const char *vc_qs_reason(const struct vc_qs_parser *p);

/* ---- rebuilding ---- */

/** Longest header of a record that vc_qs_rebuild() writes. */
#define VC_QS_HEADER_MAX_BYTES (8 + 1 + 255 + 1)

/** Writes what stands before the content of a PAGE record, or a whole ZERO record (fill byte 0).
 *  @block < ram->n_blocks and @page inside it (asserted). Returns the bytes written. */
size_t vc_qs_rebuild(const struct vc_ram *ram, enum vc_qs_kind kind, uint16_t block,
                     struct vc_page page, bool named, uint8_t out[VC_QS_HEADER_MAX_BYTES]);

/* ---- return path (destination to source) ---- */

/** Watches the return path for its last message, without holding anything back. Gives up silently
 *  on what it does not understand (then `lost` is set and shut stays false). Zero-initialise. */
struct vc_qs_return_path {
    uint8_t head[8];
    unsigned have, want; /* of head[] */
    uint64_t skip;       /* bytes still to pass before it */
    bool in_bitmap;      /* head[] is the size of a RECV_BITMAP, not a message's head */
    bool shut;           /* SHUT was seen: nothing follows it */
    uint32_t status;     /* its status, 0 = success */
    bool lost;
};

void vc_qs_return_path_feed(struct vc_qs_return_path *rp, const uint8_t *data, size_t len);

#endif
