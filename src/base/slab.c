/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/slab.h"

#include <stdlib.h>

#include "base/thread.h"

int vc_slab_pool_init(struct vc_slab_pool *p, size_t slab_bytes, uint32_t n, struct vc_err *err)
{
    *p = (struct vc_slab_pool){.slab_bytes = slab_bytes, .max = n};
    p->slabs = calloc(n, sizeof(*p->slabs));
    if (!p->slabs)
        return vc_err_set(err, VC_E_NOMEM, "no memory for %u buffers", n);
    pthread_mutex_init(&p->mu, NULL);
    vc_cond_init(&p->freed);
    return 0;
}

void vc_slab_pool_fini(struct vc_slab_pool *p)
{
    if (!p->slabs)
        return;
    for (uint32_t i = 0; i < p->made; i++)
        free(p->slabs[i].data);
    free(p->slabs);
    p->slabs = NULL;
    pthread_cond_destroy(&p->freed);
    pthread_mutex_destroy(&p->mu);
}

static int make_locked(struct vc_slab_pool *p, struct vc_slab **out, struct vc_err *err)
{
    struct vc_slab *s = &p->slabs[p->made];

    s->data = malloc(p->slab_bytes);
    if (!s->data)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a buffer of %zu bytes", p->slab_bytes);
    s->pool = p;
    p->made++;
    *out = s;
    return 0;
}

int vc_slab_get(struct vc_slab_pool *p, uint64_t deadline_ns, struct vc_slab **out,
                struct vc_err *err)
{
    VC_LOCKED(&p->mu);
    struct vc_slab *s = NULL;

    while (!p->closed && !p->free && p->made == p->max) {
        if (deadline_ns == 0)
            return VC_AGAIN;
        if (deadline_ns == UINT64_MAX)
            pthread_cond_wait(&p->freed, &p->mu);
        else if (!vc_cond_wait_until(&p->freed, &p->mu, deadline_ns) && !p->free && !p->closed)
            return VC_AGAIN;
    }
    if (p->closed)
        return VC_CLOSED;
    if (p->free) {
        s = p->free;
        p->free = s->next;
    } else {
        int rc = make_locked(p, &s, err);

        if (rc)
            return rc;
    }
    s->next = NULL;
    atomic_store_explicit(&s->refs, 1, memory_order_relaxed);
    *out = s;
    return 0;
}

void vc_slab_pool_close(struct vc_slab_pool *p)
{
    VC_LOCKED(&p->mu);

    p->closed = true;
    pthread_cond_broadcast(&p->freed);
}

void vc_slab_unref(struct vc_slab *s)
{
    /* Release: all uses by other holders happen before the reuse by the next one. */
    if (!s || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1)
        return;

    VC_LOCKED(&s->pool->mu);
    s->next = s->pool->free;
    s->pool->free = s;
    pthread_cond_signal(&s->pool->freed);
}
