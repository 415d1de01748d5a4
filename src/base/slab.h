/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BASE_SLAB_H
#define VC_BASE_SLAB_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/* Large counted buffers from a pool of fixed size. The pool is a memory budget: when it is empty
 * whoever wants one waits, and that is how intake stops while the peer lags behind. */

struct vc_slab_pool;

struct vc_slab {
    atomic_uint refs; /* [atomic] the last vc_slab_unref() gives it back to the pool */
    struct vc_slab_pool *pool;
    struct vc_slab *next; /* [lock: pool->mu] in the free list */
    uint8_t *data;        /* pool->slab_bytes of them */
};

struct vc_slab_pool {
    pthread_mutex_t mu;
    pthread_cond_t freed;
    struct vc_slab *free;  /* [lock: mu] */
    struct vc_slab *slabs; /* [const after start] */
    uint32_t made;         /* [lock: mu] buffers are allocated when first needed */
    uint32_t max;          /* [const after start] */
    size_t slab_bytes;     /* [const after start] */
    bool closed;           /* [lock: mu] */
};

int vc_slab_pool_init(struct vc_slab_pool *p, size_t slab_bytes, uint32_t n,
                      struct vc_err *err) VC_NODISCARD;
/** All slabs must be back. */
void vc_slab_pool_fini(struct vc_slab_pool *p);
/** A slab with one reference. Waits until one is free, or @deadline_ns (see vc_queue_pop).
 *  0, VC_AGAIN, VC_CLOSED, VC_E_NOMEM. */
int vc_slab_get(struct vc_slab_pool *p, uint64_t deadline_ns, struct vc_slab **out,
                struct vc_err *err) VC_NODISCARD;
/** Wakes all waiters for good. Any thread. */
void vc_slab_pool_close(struct vc_slab_pool *p);

/** Any thread. */
static inline struct vc_slab *vc_slab_ref(struct vc_slab *s)
{
    atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
    return s;
}
/** Any thread; NULL is fine. */
void vc_slab_unref(struct vc_slab *s);

#endif
