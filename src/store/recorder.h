/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_STORE_RECORDER_H
#define VC_STORE_RECORDER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/log.h"
#include "base/queue.h"
#include "store/store.h"

/* What the recording stages of both pipelines have in common: a queue of batches, a thread that
 * writes them into a transaction, and somebody who looks whether the store still answers. Trouble
 * with the store gives the generation up, and never holds a migration up. */

/* One other thread may read what was recorded. It and the recording one keep out of each other's
 * way by turns, and not by a lock, since both wait for disks: who reads waits until the item at
 * hand is done, but not for long. */

struct vc_recorder {
    struct vc_queue queue;
    pthread_mutex_t mu;
    pthread_cond_t changed;
    bool busy, held, wanted; /* [lock: mu] an item is at hand; somebody reads; or waits for it */
    uint64_t recorded;       /* [lock: mu] number of the last batch that was */
    struct vc_txn
        *txn; /* [thread: recording, while busy, until it ends] NULL: nothing is recorded */
    uint32_t patience_ms;
    const struct vc_log *log;
    atomic_bool alive;      /* [atomic] the transaction is */
    atomic_bool stuck;      /* [atomic] the thread's last batch is its last */
    atomic_ullong since_ns; /* [atomic] when the thread began what it is at; 0: idle */
};

/** @txn: taken; may be NULL. @max_bytes: of the queue. @patience_ms: 0 = VC_STORE_PATIENCE_MS. */
void vc_recorder_init(struct vc_recorder *r, struct vc_txn *txn, uint64_t max_bytes,
                      uint32_t patience_ms, const struct vc_log *log);
/** The thread has ended, and the queue was drained. */
void vc_recorder_fini(struct vc_recorder *r);

/** Hands an item on. VC_CLOSED: the pipeline is torn down; VC_NOT_FOUND: nothing is taken any more,
 *  as the store is stuck. Any thread. */
int vc_recorder_push(struct vc_recorder *r, struct vc_queue_node *item, uint64_t cost) VC_NODISCARD;
/** The next item. While none comes, what was recorded is logged once a second. False: the end.
 *  Thread: recording, like the next three. */
bool vc_recorder_next(struct vc_recorder *r, struct vc_queue_node **item);
/** The thread begins with an item: the transaction to write it to, or NULL. */
struct vc_txn *vc_recorder_begin(struct vc_recorder *r);
/** It is done; with an error the transaction is given up. @seq: the batch's number; 0: none. */
void vc_recorder_done(struct vc_recorder *r, uint64_t seq, int rc, const struct vc_err *err);
/** The thread ends. */
void vc_recorder_end(struct vc_recorder *r);

/** Waits until batch @seq is recorded: the transaction, in which nothing changes from now on until
 *  vc_recorder_let_go(). NULL: it is not by then, or nothing is recorded any more. Not the
 * recording thread, and one thread at a time. */
const struct vc_txn *vc_recorder_hold(struct vc_recorder *r, uint64_t seq, uint64_t deadline_ns);
void vc_recorder_let_go(struct vc_recorder *r);

/** To be called every now and then: true if the store has just been found to have been at one item
 *  for longer than is patient. Nothing is recorded any more; who called drains the queue. Any one
 *  thread. */
bool vc_recorder_check(struct vc_recorder *r);

#endif
