/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "link/link.h"
#include "source/effort.h"
#include "source/pack.h"
#include "source/pipeline.h"

/* The sending stage: takes batches in order, waits until another one may be on its way, compresses,
 * has the batch recorded, puts it into the repair window and hands its frame to the link. It is
 * recorded no earlier, so that while a batch is packed the new generation has what was before. */

/* So many batches that came again say that the old pages at the destination are not what they
 * should be: no more deltas then. */
#define MAX_RESENT_WITH_DELTAS 8
/* The same for what was made with the new generation, which the destination may not write. */
#define MAX_RESENT_RECENT 2

struct send {
    struct vc_source *s;
    struct vc_packer packer;
    struct vc_effort effort;
    bool tried_recent; /* a batch of that codec was sent */
    struct vc_err err;
};

/* Waits for room on the wire; false if the pipeline is torn down. Notes what it waited for. */
static bool wait_for_room(struct vc_source *s, struct vc_flow_batch *batch, double *probe_rate)
{
    enum vc_flow_verdict v;
    VC_LOCKED(&s->mu);

    while (!s->stop && (v = vc_flow_may_send(&s->flow, VC_SOURCE_WINDOW_BYTES)) != VC_FLOW_GO) {
        batch->backlogged = true;
        batch->wire_limited |= v == VC_FLOW_WIRE_FULL;
        pthread_cond_wait(&s->changed, &s->mu);
    }
    *probe_rate = vc_flow_probe_rate(&s->flow, vc_now_ns(), VC_EFFORT_MEMORY_NS);
    return !s->stop;
}

/* The window's reference is the one that the queue handed over. */
static void into_window(struct vc_source *s, struct vc_src_batch *b,
                        const struct vc_flow_batch *batch)
{
    VC_LOCKED(&s->mu);

    vc_flow_sent(&s->flow, vc_now_ns(), batch, &b->mark);
    if (s->window_tail)
        s->window_tail->next_sent = b;
    else
        s->window_head = b;
    s->window_tail = b;
}

/* A store that is stuck takes nothing. */
static void have_recorded(struct vc_source *s, struct vc_src_batch *b)
{
    vc_src_batch_ref(b);
    if (vc_recorder_push(&s->recorder, &b->record_node, b->stream_bytes))
        vc_src_batch_unref(b);
}

static int no_memory(struct vc_err *err)
{
    return vc_err_set(err, VC_E_NOMEM, "no memory for a frame");
}

/* Whether the destination writes a new generation is seen from the first batch that needs it: the
 * others do not come before that is acknowledged. */
static enum vc_src_form form_of_batches(const struct send *st)
{
    struct vc_source *s = st->s;
    bool works = !st->tried_recent || atomic_load(&s->recent_works);
    uint64_t recent = atomic_load(&s->n.resent_recent), all = atomic_load(&s->n.resent_batches);

    if (all - recent >= MAX_RESENT_WITH_DELTAS)
        return VC_SRC_PLAIN;
    return works && recent < MAX_RESENT_RECENT ? VC_SRC_RECENT : VC_SRC_DELTA;
}

static int send_batch(struct send *st, struct vc_src_batch *b)
{
    struct vc_source *s = st->s;
    struct vc_flow_batch batch = {
        .stream_bytes = b->stream_bytes,
        .data_bytes = b->data_bytes,
        .backlogged = atomic_load(&s->unsent) > 1,
    };
    uint64_t content_bytes = b->data_bytes + b->opaque_bytes; /* before it can be acknowledged */
    uint64_t begun = vc_now_ns(), went, done;
    struct vc_link_frame *f;
    double probe_rate;
    int level;

    if (!wait_for_room(s, &batch, &probe_rate)) {
        have_recorded(s, b);
        vc_src_batch_unref(b);
        return VC_CLOSED;
    }
    went = vc_now_ns();
    level = vc_effort_level(&st->effort, content_bytes, &batch.probe);
    f = vc_packer_frame(&st->packer, b, form_of_batches(st), level);
    b->sent_recent = f && st->packer.last_codec == VC_WIRE_CODEC_RECENT;
    st->tried_recent |= b->sent_recent;
    have_recorded(s, b);
    if (!f) {
        vc_src_batch_unref(b);
        return no_memory(&st->err);
    }
    done = vc_now_ns();
    batch.wire_bytes = f->bytes + VC_WIRE_HEADER_BYTES;
    into_window(s, b, &batch);
    vc_effort_note(&st->effort, done, content_bytes, batch.wire_bytes,
                   batch.wire_limited ? went - begun : 0, done - went, batch.backlogged,
                   probe_rate);
    return vc_link_send(s->o.link, f, false);
}

static int send_blocks(struct vc_source *s, const struct vc_ram *ram, struct vc_err *err)
{
    size_t cap = 16 + (size_t)ram->n_blocks * (1 + VC_MAX_BLOCK_NAME + 8);
    struct vc_link_frame *f = vc_link_frame_new(VC_WIRE_BLOCKS, 0, (uint32_t)cap);
    struct vc_writer w;

    if (!f)
        return no_memory(err);
    w = vc_writer(f->payload, cap);
    vc_wire_blocks_encode(&w, ram);
    f->bytes = (uint32_t)w.len;
    return vc_link_send(s->o.link, f, false);
}

static int send_item(struct send *st, struct vc_src_batch *b)
{
    struct vc_source *s = st->s;
    struct vc_link_frame *eof;
    int rc;

    if (b->item != VC_SRC_BATCH)
        have_recorded(s, b);
    switch (b->item) {
    case VC_SRC_BLOCKS:
        rc = send_blocks(s, b->ram, &st->err);
        break;
    case VC_SRC_EOF:
        eof = vc_link_frame_new(VC_WIRE_EOF, 0, 0);
        rc = eof ? vc_link_send(s->o.link, eof, false) : no_memory(&st->err);
        if (!rc) {
            VC_LOCKED(&s->mu);
            s->eof_sent = true;
        }
        break;
    default:
        return send_batch(st, b);
    }
    vc_src_batch_unref(b);
    return rc;
}

void *vc_source_send_main(void *arg)
{
    struct vc_source *s = arg;
    struct send st = {.s = s, .err = VC_ERR_INIT};
    struct vc_queue_node *node;
    int rc =
        vc_packer_init(&st.packer, s->o.local_gen, s->local_map, &s->o.lineage, s->o.log, &st.err);

    st.packer.recorder = s->o.recent ? &s->recorder : NULL;
    vc_effort_init(&st.effort);
    while (!rc && vc_queue_pop(&s->to_send, UINT64_MAX, &node) == 0) {
        rc = send_item(&st, (struct vc_src_batch *)node);
        atomic_fetch_sub(&s->unsent, 1);
    }
    if (rc < 0)
        vc_source_abort(s, &st.err);
    while ((node = vc_queue_drain(&s->to_send))) { /* what was read is recorded */
        have_recorded(s, (struct vc_src_batch *)node);
        vc_src_batch_unref((struct vc_src_batch *)node);
    }
    vc_queue_close(&s->recorder.queue);
    /* A link that is closed tells the receiving stage why: the peer may have said it. */
    vc_packer_fini(&st.packer);
    vc_source_notify(s);
    return NULL;
}

/* The batch in the window, or NULL. */
static struct vc_src_batch *find_locked(struct vc_source *s, uint64_t seq)
{
    struct vc_src_batch *b = s->window_head;

    while (b && b->seq != seq)
        b = b->next_sent;
    return b;
}

int vc_source_window_ack(struct vc_source *s, const struct vc_wire_ack *ack, struct vc_err *err)
{
    struct vc_src_batch *done = NULL, **tail = &done, *last;
    int rc = 0;

    {
        VC_LOCKED(&s->mu);
        uint64_t now = vc_now_ns();

        last = find_locked(s, ack->seq);
        if (!last || last->position + last->stream_bytes != ack->position)
            rc = vc_err_set(err, VC_E_PROTOCOL,
                            "ACK: no batch %llu that ends at %llu is outstanding",
                            (unsigned long long)ack->seq, (unsigned long long)ack->position);
        while (!rc && s->window_head && s->window_head->seq <= ack->seq) {
            struct vc_src_batch *b = s->window_head;

            vc_flow_acked(&s->flow, now, &b->mark);
            if (b->sent_recent && !b->resent)
                atomic_store(&s->recent_works, true);
            if (s->package_end && b->position + b->stream_bytes >= s->package_end)
                s->package_delivered = true;
            vc_count(&s->n.acked_batches, 1);
            s->window_head = b->next_sent;
            *tail = b;
            tail = &b->next_sent;
            *tail = NULL;
        }
        if (!s->window_head)
            s->window_tail = NULL;
        pthread_cond_broadcast(&s->changed);
    }
    while (done) {
        struct vc_src_batch *b = done;

        done = b->next_sent;
        vc_src_batch_unref(b);
    }
    return rc;
}

struct vc_src_batch *vc_source_window_find(struct vc_source *s, uint64_t seq)
{
    VC_LOCKED(&s->mu);
    struct vc_src_batch *b = find_locked(s, seq);

    return b ? vc_src_batch_ref(b) : NULL;
}
