/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store/recorder.h"

#include "base/clock.h"
#include "base/thread.h"

void vc_recorder_init(struct vc_recorder *r, struct vc_txn *txn, uint64_t max_bytes,
                      uint32_t patience_ms, const struct vc_log *log)
{
    vc_queue_init(&r->queue, max_bytes);
    pthread_mutex_init(&r->mu, NULL);
    vc_cond_init(&r->changed);
    r->busy = r->held = r->wanted = false;
    r->recorded = 0;
    r->txn = txn;
    r->patience_ms = patience_ms ? patience_ms : VC_STORE_PATIENCE_MS;
    r->log = log;
    atomic_init(&r->alive, txn != NULL);
    atomic_init(&r->stuck, false);
    atomic_init(&r->since_ns, 0);
}

void vc_recorder_fini(struct vc_recorder *r)
{
    vc_queue_fini(&r->queue);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->mu);
}

int vc_recorder_push(struct vc_recorder *r, struct vc_queue_node *item, uint64_t cost)
{
    if (vc_queue_push(&r->queue, item, cost) == 0)
        return 0;
    return atomic_load(&r->stuck) ? VC_NOT_FOUND : VC_CLOSED;
}

bool vc_recorder_next(struct vc_recorder *r, struct vc_queue_node **item)
{
    for (;;) {
        struct vc_err err = VC_ERR_INIT;
        uint64_t deadline = r->txn ? vc_now_ns() + VC_NS_PER_S : UINT64_MAX;
        int rc = vc_queue_pop(&r->queue, deadline, item);

        if (rc != VC_AGAIN)
            return rc == 0;
        vc_recorder_begin(r);
        rc = vc_txn_log(r->txn, false, &err);
        vc_recorder_done(r, 0, rc, &err);
    }
}

/* From here on the transaction is this thread's. */
static void take_turn(struct vc_recorder *r)
{
    VC_LOCKED(&r->mu);

    while (r->held || r->wanted)
        pthread_cond_wait(&r->changed, &r->mu);
    r->busy = true;
}

static void end_turn(struct vc_recorder *r, uint64_t seq)
{
    VC_LOCKED(&r->mu);

    r->busy = false;
    if (seq)
        r->recorded = seq;
    pthread_cond_broadcast(&r->changed);
}

struct vc_txn *vc_recorder_begin(struct vc_recorder *r)
{
    take_turn(r);
    atomic_store(&r->since_ns, vc_now_ns());
    return r->txn;
}

void vc_recorder_done(struct vc_recorder *r, uint64_t seq, int rc, const struct vc_err *err)
{
    if (rc && r->txn) {
        vc_log_err(r->log, VC_LOG_WARNING, "no checkpoint of this migration will be kept here",
                   err);
        vc_txn_abort(vc_steal_ptr(r->txn));
        atomic_store(&r->alive, false);
    }
    atomic_store(&r->since_ns, 0);
    end_turn(r, seq);
}

void vc_recorder_end(struct vc_recorder *r)
{
    if (!atomic_load(&r->stuck)) /* no items are missing */
        return;
    take_turn(r);
    vc_txn_abort(vc_steal_ptr(r->txn));
    end_turn(r, 0);
}

const struct vc_txn *vc_recorder_hold(struct vc_recorder *r, uint64_t seq, uint64_t deadline_ns)
{
    bool in_time = true;
    VC_LOCKED(&r->mu);

    while (in_time && atomic_load(&r->alive) && (r->busy || r->recorded < seq)) {
        r->wanted = r->recorded >= seq; /* else there is more to do before */
        in_time = vc_cond_wait_until(&r->changed, &r->mu, deadline_ns);
    }
    r->wanted = false;
    r->held = atomic_load(&r->alive) && !r->busy && r->recorded >= seq;
    if (!r->held)
        pthread_cond_broadcast(&r->changed);
    return r->held ? r->txn : NULL;
}

void vc_recorder_let_go(struct vc_recorder *r)
{
    VC_LOCKED(&r->mu);

    r->held = false;
    pthread_cond_broadcast(&r->changed);
}

bool vc_recorder_check(struct vc_recorder *r)
{
    uint64_t since = atomic_load(&r->since_ns);

    if (!since || !atomic_load(&r->alive) || vc_now_ns() - since < r->patience_ms * VC_NS_PER_MS)
        return false;
    vc_log(r->log, VC_LOG_WARNING,
           "no checkpoint of this migration will be kept here: the store has not taken a write for "
           "%u s",
           r->patience_ms / 1000);
    /* In this order: who finds the queue shut must see why. */
    atomic_store(&r->alive, false);
    atomic_store(&r->stuck, true);
    vc_queue_abort(&r->queue);
    {
        VC_LOCKED(&r->mu);
        pthread_cond_broadcast(&r->changed); /* who waits to read */
    }
    return true;
}
