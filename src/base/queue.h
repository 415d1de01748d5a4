/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BASE_QUEUE_H
#define VC_BASE_QUEUE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/* A bounded queue between threads, measured in bytes. Items change hands: who pops one owns it.
 * An item that costs more than the whole limit is taken when the queue is empty, so nothing can
 * wait for ever. Items are linked through a node that they embed: no allocation. */

struct vc_queue_node {
    struct vc_queue_node *next;
    uint64_t cost;
};

struct vc_queue {
    pthread_mutex_t mu;
    pthread_cond_t changed;
    struct vc_queue_node *head, *tail; /* [lock: mu] */
    uint64_t bytes, max_bytes;         /* [lock: mu] */
    bool closed;                       /* [lock: mu] no more pushes; pops drain */
    bool aborted;                      /* [lock: mu] pops end at once too */
    bool poked;                        /* [lock: mu] the next pop that would wait returns */
};

void vc_queue_init(struct vc_queue *q, uint64_t max_bytes);
/** Items left are the caller's business (vc_queue_drain first). */
void vc_queue_fini(struct vc_queue *q);

/** Hands over an item, waiting for room. 0, or VC_CLOSED: the item stays the caller's. */
int vc_queue_push(struct vc_queue *q, struct vc_queue_node *item, uint64_t cost) VC_NODISCARD;
/** Takes the oldest item. @deadline_ns: monotonic time to give up at (0: at once, UINT64_MAX:
 * never). 0; VC_AGAIN: time is up, or it was poked; VC_CLOSED: closed and empty, or aborted. */
int vc_queue_pop(struct vc_queue *q, uint64_t deadline_ns,
                 struct vc_queue_node **item) VC_NODISCARD;
/** Something else has happened: whoever waits in vc_queue_pop(), or is the next to do so, gets
 *  VC_AGAIN. Any thread. */
void vc_queue_poke(struct vc_queue *q);
/** Orderly end: pushes fail, pops get what is there, then VC_CLOSED. Any thread. */
void vc_queue_close(struct vc_queue *q);
/** Cancel: pushes and pops fail at once. Items stay for vc_queue_drain(). Any thread. */
void vc_queue_abort(struct vc_queue *q);
/** Takes an item whatever the state, for clean-up after all threads were joined; NULL: none. */
struct vc_queue_node *vc_queue_drain(struct vc_queue *q);
/** Bytes waiting right now (a hint). */
uint64_t vc_queue_bytes(struct vc_queue *q);

#endif
