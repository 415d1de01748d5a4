/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_STORE_GENLOG_H
#define VC_STORE_GENLOG_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/thread.h"
#include "store/internal.h"

/* The log of a transaction: docs/formats/store.md section 5. Private to src/store.
 *
 * Records gather in memory and go to the file as one batch when a second has passed, when some MiB
 * of pages have been written, or when there is no more room. Nothing of that waits for the disk: a
 * thread syncs layer and log, in this order, every few seconds. It shares descriptors with the
 * writer and nothing else. What is appended between its two calls may so become durable before the
 * pages it tells of; the digests of such pages will not fit, and that is what digests are for. */

enum vc_record {
    VC_RECORD_ZERO = 1,
    VC_RECORD_HELD = 2,
    VC_RECORD_UNKNOWN = 3,
    VC_RECORD_SAME = 4,
};

#define VC_RECORD_BYTES 24u
#define VC_BATCH_HEAD_BYTES 16u
#define VC_BATCH_MAX_BYTES (1u << 20) /* of records in one batch, by the format */

struct vc_genlog_head {
    struct vc_index ix; /* ids, RAM, layers; no arrays */
    struct vc_id base;  /* nil: none */
};

/* Codec of the header. It begins the chain of checksums. */
size_t vc_genlog_encode(const struct vc_genlog_head *h, uint8_t *buf, size_t cap,
                        uint8_t chain[VC_SHA256_BYTES]);
/* Reads the header from the file and checks it. *at: where the batches begin. 0; VC_E_CORRUPT;
 * VC_E_VERSION; VC_E_STORE. */
int vc_genlog_read(const struct vc_io *io, int fd, const char *name, struct vc_genlog_head *h,
                   uint64_t *at, uint8_t chain[VC_SHA256_BYTES], struct vc_err *err) VC_NODISCARD;

struct vc_genlog {
    const struct vc_io *io;
    int dir_fd, layer_fd, fd; /* borrowed, borrowed, own */
    uint64_t at, seq;         /* of the next batch */
    uint8_t *buf;             /* chain, head of the batch, records, room for the checksum */
    size_t len, last;         /* bytes of records; where the last one begins */
    uint64_t since_ns;        /* the last batch */
    uint64_t page_bytes;      /* of pages written since then */
    uint32_t page_size;
    struct {
        struct vc_thread thread;
        pthread_mutex_t mu;
        pthread_cond_t changed;
        bool stop;          /* [lock: mu] */
        atomic_int failure; /* [atomic] errno of a sync that failed: the files are lost */
    } sync;
};

/* Creates the file and writes its header. @layer_fd is borrowed until vc_genlog_close(). */
int vc_genlog_open(struct vc_genlog **out, struct vc_vm *vm, const struct vc_genlog_head *h,
                   int layer_fd, struct vc_err *err) VC_NODISCARD;
/* The pages' contents have been written. @digests: of HELD, at most 1024. @slot: of the first page,
 * in a delta. */
int vc_genlog_add(struct vc_genlog *g, enum vc_record kind, uint32_t block, uint64_t page, size_t n,
                  uint32_t slot, const struct vc_digest *digests, struct vc_err *err) VC_NODISCARD;
int vc_genlog_flush(struct vc_genlog *g, struct vc_err *err) VC_NODISCARD;
/* Layer, log and (the first time) directory durable, here and now. */
int vc_genlog_sync(struct vc_genlog *g, struct vc_err *err) VC_NODISCARD;
/* Ends the thread and closes the file, which stays. 0, or the failure of a sync. */
int vc_genlog_close(struct vc_genlog *g, struct vc_err *err);

#endif
