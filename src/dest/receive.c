/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/bytes.h"
#include "base/clock.h"
#include "dest/pipeline.h"
#include "link/link.h"

/* The receiving stage: frames of the stream wait in a queue for the resolver; answers that it is
 * waiting for at this moment (REPAIRED, a batch sent again) pass them. */

/* Whether the frame is the answer that the resolver waits for; then it has it. */
static bool deliver_mail(struct vc_dest *d, struct vc_link_frame *f)
{
    VC_LOCKED(&d->mu);

    if (!d->awaited_seq || vc_load_le(f->payload, 8) != d->awaited_seq)
        return false;
    /* The resolver asks for one thing at a time, but its answer may come in several frames. */
    while (d->mail && !d->stop)
        pthread_cond_wait(&d->changed, &d->mu);
    if (d->stop || !d->awaited_seq) {
        vc_link_frame_free(f);
        return true;
    }
    d->mail = f;
    pthread_cond_broadcast(&d->changed);
    return true;
}

/* What a frame in the queue takes beside its payload. */
#define OWN_BYTES 64u
#define CROWDED_TICK_NS (20 * VC_NS_PER_MS)

static atomic_size_t held_by_all; /* what the queued frames of all sessions take */

void vc_dest_frame_left(const struct vc_queue_node *n)
{
    atomic_fetch_sub_explicit(&held_by_all, n->cost, memory_order_relaxed);
}

/* Where the sessions hold much together, one that has more than its share reads no more: its peer
 * waits, as for a host that is busy. Not while an answer is awaited, which may be behind. */
static void wait_while_crowded(struct vc_dest *d)
{
    VC_LOCKED(&d->mu);

    while (!d->stop && !d->awaited_seq && atomic_load(&held_by_all) > VC_DEST_SHARED_FRAME_BYTES &&
           vc_queue_bytes(&d->frames) > VC_DEST_OWN_FRAME_BYTES)
        vc_cond_wait_until(&d->changed, &d->mu, vc_now_ns() + CROWDED_TICK_NS);
}

static int enqueue(struct vc_dest *d, struct vc_link_frame *f, struct vc_err *err)
{
    uint64_t cost = f->bytes + OWN_BYTES;
    int rc;

    if (vc_queue_bytes(&d->frames) > VC_DEST_QUEUE_BYTES - cost)
        return vc_err_set(err, VC_E_PROTOCOL, "peer '%s' sends more than its window",
                          vc_link_peer(d->o.link));
    wait_while_crowded(d);
    atomic_fetch_add_explicit(&held_by_all, cost, memory_order_relaxed);
    rc = vc_queue_push(&d->frames, &f->node, cost);
    if (rc)
        atomic_fetch_sub_explicit(&held_by_all, cost, memory_order_relaxed);
    return rc;
}

/* Takes the frame if it returns 0. */
static int dispatch(struct vc_dest *d, struct vc_link_frame *f, struct vc_err *err)
{
    if (f->channel)
        return vc_dst_channel_frame(d, f, err);
    switch (f->type) {
    case VC_WIRE_REPAIRED:
        if (deliver_mail(d, f))
            return 0;
        return vc_err_set(err, VC_E_PROTOCOL, "REPAIRED: nothing was asked for");
    case VC_WIRE_BATCH:
        if (deliver_mail(d, f))
            return 0;
        return enqueue(d, f, err);
    case VC_WIRE_BLOCKS:
    case VC_WIRE_EOF:
        return enqueue(d, f, err);
    case VC_WIRE_STREAM_FAILED:
        return vc_err_set(err, VC_E_MIGRATION, "the source gave the migration up");
    default:
        d->o.on_frame(d->o.opaque, f);
        return 0;
    }
}

void *vc_dest_receive_main(void *arg)
{
    struct vc_dest *d = arg;
    struct vc_err err = VC_ERR_INIT;
    int rc;

    for (;;) {
        struct vc_link_frame *f;

        rc = vc_link_recv(d->o.link, &f, &err);
        if (rc)
            break;
        rc = dispatch(d, f, &err);
        if (rc) {
            vc_link_frame_free(f);
            break;
        }
    }
    if (rc == VC_E_PROTOCOL)
        vc_link_fail(d->o.link, &err);
    if (rc > 0)
        vc_err_set(&err, VC_E_PEER_LOST, "peer '%s' hung up", vc_link_peer(d->o.link));
    vc_dest_abort(d, &err);
    d->o.on_frame(d->o.opaque, NULL);
    return NULL;
}
