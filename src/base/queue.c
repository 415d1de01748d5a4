/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/queue.h"

#include "base/thread.h"

void vc_queue_init(struct vc_queue *q, uint64_t max_bytes)
{
    *q = (struct vc_queue){.max_bytes = max_bytes};
    pthread_mutex_init(&q->mu, NULL);
    vc_cond_init(&q->changed);
}

void vc_queue_fini(struct vc_queue *q)
{
    pthread_cond_destroy(&q->changed);
    pthread_mutex_destroy(&q->mu);
}

int vc_queue_push(struct vc_queue *q, struct vc_queue_node *item, uint64_t cost)
{
    VC_LOCKED(&q->mu);

    while (!q->closed && q->head && q->bytes + cost > q->max_bytes)
        pthread_cond_wait(&q->changed, &q->mu);
    if (q->closed)
        return VC_CLOSED;
    item->next = NULL;
    item->cost = cost;
    if (q->tail)
        q->tail->next = item;
    else
        q->head = item;
    q->tail = item;
    q->bytes += cost;
    pthread_cond_broadcast(&q->changed);
    return 0;
}

static struct vc_queue_node *take_locked(struct vc_queue *q)
{
    struct vc_queue_node *n = q->head;

    if (!n)
        return NULL;
    q->head = n->next;
    if (!q->head)
        q->tail = NULL;
    q->bytes -= n->cost;
    n->next = NULL;
    return n;
}

int vc_queue_pop(struct vc_queue *q, uint64_t deadline_ns, struct vc_queue_node **item)
{
    VC_LOCKED(&q->mu);

    while (!q->head && !q->closed) {
        if (deadline_ns == 0 || q->poked) {
            q->poked = false;
            return VC_AGAIN;
        }
        if (deadline_ns == UINT64_MAX)
            pthread_cond_wait(&q->changed, &q->mu);
        else if (!vc_cond_wait_until(&q->changed, &q->mu, deadline_ns) && !q->head && !q->closed)
            return VC_AGAIN;
    }
    if (q->aborted || !q->head)
        return VC_CLOSED;
    *item = take_locked(q);
    pthread_cond_broadcast(&q->changed);
    return 0;
}

void vc_queue_poke(struct vc_queue *q)
{
    VC_LOCKED(&q->mu);

    q->poked = true;
    pthread_cond_broadcast(&q->changed);
}

void vc_queue_close(struct vc_queue *q)
{
    VC_LOCKED(&q->mu);

    q->closed = true;
    pthread_cond_broadcast(&q->changed);
}

void vc_queue_abort(struct vc_queue *q)
{
    VC_LOCKED(&q->mu);

    q->closed = true;
    q->aborted = true;
    pthread_cond_broadcast(&q->changed);
}

struct vc_queue_node *vc_queue_drain(struct vc_queue *q)
{
    VC_LOCKED(&q->mu);

    return take_locked(q);
}

uint64_t vc_queue_bytes(struct vc_queue *q)
{
    VC_LOCKED(&q->mu);

    return q->bytes;
}
