/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_DEST_BATCH_H
#define VC_DEST_BATCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"
#include "base/queue.h"
#include "base/units.h"
#include "digest/digest.h"
#include "wire/wire.h"

/* A batch on the destination side: decoded runs, and the stretch of QEMU's stream that they stand
 * for as a vector of pieces. Filled by the resolve thread, then shared, unchanging, by the threads
 * that emit and record it. */

struct vc_link_frame;

struct vc_dst_page {
    const uint8_t *content;
    struct vc_digest digest; /* of the content; zeroes: a page of zeroes */
    bool same;               /* read from the base generation, here or elsewhere in it */
};

struct vc_dst_run {
    struct vc_wire_run run;
    uint32_t first; /* runs of PAGE records: index of the first page in pages[] */
};

struct vc_dst_batch {
    struct vc_queue_node emit_node; /* first */
    struct vc_queue_node record_node;
    atomic_uint refs;
    struct vc_dst_batch *next; /* while it waits in the resolving stage */

    bool is_eof;              /* not a batch: the source's stream ends here */
    const struct vc_ram *ram; /* NULL before BLOCKS */
    struct vc_wire_batch h;
    uint64_t after; /* codec recent: what must be recorded before old pages are read */

    struct vc_dst_run *runs;
    uint32_t n_runs;
    struct vc_dst_page *pages; /* of all runs of PAGE records, in order: REPAIR's ordinals */
    uint32_t n_pages, n_same, n_old;
    struct iovec *iov;
    size_t n_iov;
    uint64_t iov_bytes; /* for a check against the header's number */

    struct vc_link_frame *frame; /* owned; the body is in it ... */
    uint8_t *body;               /* ... or here, expanded */
    uint8_t *headers;            /* rebuilt headers and zero records */
    uint8_t *same;               /* contents read from the base generation */

    size_t held; /* memory that all this takes; of the stage that has the batch alone */
};

struct vc_dst_batch *vc_dst_batch_new(void);
struct vc_dst_batch *vc_dst_batch_ref(struct vc_dst_batch *b);
/** Any thread; NULL is fine. */
void vc_dst_batch_unref(struct vc_dst_batch *b);

/** What the batches of all sessions together take. */
size_t vc_dst_batches_held(void);

static inline struct vc_dst_batch *vc_dst_batch_of_record(struct vc_queue_node *n)
{
    return (struct vc_dst_batch *)((char *)n - offsetof(struct vc_dst_batch, record_node));
}

/** Takes the frame, expands its body, decodes its runs and lays out the stream: everything is
 *  checked against the limits and lengths of docs/formats/wire.md. Contents of *same* and *moved*
 *  pages are left to be filled in (pages[i].content points to room in `same`), and all contents of
 *  a batch of codec delta or recent (vc_dst_batch_undelta()). VC_E_PROTOCOL, VC_E_NOMEM. */
int vc_dst_batch_parse(struct vc_dst_batch *b, struct vc_link_frame *frame,
                       const struct vc_ram *ram, uint64_t features, struct vc_wire_codec *codec,
                       struct vc_err *err) VC_NODISCARD;
/** Expands the contents of a batch of codec delta or recent, once, before they are looked at.
 * @prefix: what the pages of all runs with `old` were, in order, n_old of them. VC_E_PROTOCOL:
 * these are not the pages that it was made with, or it is damaged. VC_E_NOMEM. */
int vc_dst_batch_undelta(struct vc_dst_batch *b, struct vc_wire_codec *codec, const uint8_t *prefix,
                         size_t prefix_bytes, struct vc_err *err) VC_NODISCARD;

/** The seal of the batch after @before, from the digests in pages[]. */
int vc_dst_batch_seal(const struct vc_dst_batch *b, struct vc_digester *d,
                      const struct vc_digest *before, struct vc_digest *out,
                      struct vc_err *err) VC_NODISCARD;

#endif
