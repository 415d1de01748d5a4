/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store/recorder.h"

#include "base/clock.h"

void vc_recorder_init(struct vc_recorder *r, struct vc_txn *txn, uint64_t max_bytes,
                      uint32_t patience_ms, const struct vc_log *log)
{
    vc_queue_init(&r->queue, max_bytes);
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
        vc_recorder_done(r, rc, &err);
    }
}

struct vc_txn *vc_recorder_begin(struct vc_recorder *r)
{
    atomic_store(&r->since_ns, vc_now_ns());
    return r->txn;
}

void vc_recorder_done(struct vc_recorder *r, int rc, const struct vc_err *err)
{
    if (rc && r->txn) {
        vc_log_err(r->log, VC_LOG_WARNING, "no checkpoint of this migration will be kept here",
                   err);
        vc_txn_abort(vc_steal_ptr(r->txn));
        atomic_store(&r->alive, false);
    }
    atomic_store(&r->since_ns, 0);
}

void vc_recorder_end(struct vc_recorder *r)
{
    if (atomic_load(&r->stuck)) /* items are missing */
        vc_txn_abort(vc_steal_ptr(r->txn));
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
    return true;
}
