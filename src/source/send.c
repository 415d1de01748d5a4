/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "link/link.h"
#include "source/effort.h"
#include "source/pack.h"
#include "source/pipeline.h"
#include "source/workers.h"

/* The sending stage: takes batches in order, waits until another one may be on its way, compresses,
 * has the batch recorded, puts it into the repair window and hands its frame to the link. It is
 * recorded no earlier, so that while a batch is packed the new generation has what was before.
 *
 * Where there are idle processors, large batches are compressed ahead of that, side by side: those
 * that refer to nothing that this session has recorded. */

/* So many batches that came again say that the old pages at the destination are not what they
 * should be: no more deltas then. */
#define MAX_RESENT_WITH_DELTAS 8
/* The same for what was made with the new generation, which the destination may not write. */
#define MAX_RESENT_RECENT 2
/* Contents that are worth waking another thread for. */
#define AHEAD_MIN_BYTES (64u << 10)

struct send {
    struct vc_source *s;
    struct vc_packer packer;
    struct vc_pack_workers workers;
    struct vc_effort effort;
    bool tried_recent;   /* a batch of that codec was sent */
    uint64_t packing_ns; /* the sender has waited while others packed */
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

/* Whether the destination writes a new generation it says, and an older one shows with the first
 * batch that needs it: the others do not come before that is acknowledged. */
static enum vc_src_form form_of_batches(const struct send *st)
{
    struct vc_source *s = st->s;
    bool works = (atomic_load(&s->keeps) & VC_WIRE_KEEPS_NEW) &&
                 (!st->tried_recent || atomic_load(&s->recent_works));
    uint64_t recent = atomic_load(&s->n.resent_recent), all = atomic_load(&s->n.resent_batches);

    if (all - recent >= MAX_RESENT_WITH_DELTAS)
        return VC_SRC_PLAIN;
    return works && recent < MAX_RESENT_RECENT ? VC_SRC_RECENT : VC_SRC_DELTA;
}

/* What is packed ahead does not wait: there is no backlog while those who pack keep up. */
static struct vc_flow_batch flow_of(struct send *st, const struct vc_src_batch *b)
{
    int ahead = (int)vc_pack_workers_pending(&st->workers);

    return (struct vc_flow_batch){
        .stream_bytes = b->stream_bytes,
        .data_bytes = b->data_bytes,
        .backlogged = atomic_load(&st->s->unsent) - ahead > 1,
    };
}

/* What a frame has cost. */
struct effort_spent {
    uint64_t waited_ns, worked_ns;
    double probe_rate;
};

/* Takes both, and records the batch in any case. */
static int hand_over(struct send *st, struct vc_src_batch *b, struct vc_link_frame *f,
                     struct vc_flow_batch *flow, const struct effort_spent *spent)
{
    struct vc_source *s = st->s;
    uint64_t content_bytes = b->data_bytes + b->opaque_bytes; /* before it can be acknowledged */

    have_recorded(s, b);
    if (!f) {
        vc_src_batch_unref(b);
        return no_memory(&st->err);
    }
    flow->wire_bytes = f->bytes + VC_WIRE_HEADER_BYTES;
    into_window(s, b, flow);
    vc_effort_note(&st->effort, vc_now_ns(), content_bytes, flow->wire_bytes,
                   flow->wire_limited ? spent->waited_ns : 0, spent->worked_ns, flow->backlogged,
                   spent->probe_rate);
    return vc_link_send(s->o.link, f, false);
}

static int give_up(struct vc_source *s, struct vc_src_batch *b, struct vc_link_frame *f)
{
    vc_link_frame_free(f);
    have_recorded(s, b);
    vc_src_batch_unref(b);
    return VC_CLOSED;
}

static int send_batch(struct send *st, struct vc_src_batch *b)
{
    struct vc_source *s = st->s;
    struct vc_flow_batch flow = flow_of(st, b);
    struct effort_spent spent = {0};
    uint64_t begun = vc_now_ns(), went;
    struct vc_link_frame *f;
    int level;

    if (!wait_for_room(s, &flow, &spent.probe_rate))
        return give_up(s, b, NULL);
    went = vc_now_ns();
    level = vc_effort_level(&st->effort, b->data_bytes + b->opaque_bytes, &flow.probe);
    f = vc_packer_frame(&st->packer, b, form_of_batches(st), level);
    b->sent_recent = f && st->packer.last_codec == VC_WIRE_CODEC_RECENT;
    st->tried_recent |= b->sent_recent;
    spent.waited_ns = went - begun;
    spent.worked_ns = vc_now_ns() - went;
    return hand_over(st, b, f, &flow, &spent);
}

/* The oldest batch that was packed ahead. */
static int send_packed(struct send *st)
{
    struct vc_source *s = st->s;
    struct effort_spent spent = {0};
    uint64_t begun = vc_now_ns(), done;
    struct vc_link_frame *f;
    struct vc_src_batch *b = vc_pack_workers_take(&st->workers, &f);
    struct vc_flow_batch flow = flow_of(st, b);
    int rc;

    done = vc_now_ns();
    if (f && !wait_for_room(s, &flow, &spent.probe_rate)) {
        rc = give_up(s, b, f);
    } else {
        spent.waited_ns = vc_now_ns() - done;
        spent.worked_ns = done - begun + st->packing_ns;
        st->packing_ns = 0;
        rc = hand_over(st, b, f, &flow, &spent);
    }
    atomic_fetch_sub(&s->unsent, 1);
    return rc;
}

static int send_all_packed(struct send *st)
{
    int rc = 0;

    while (!rc && vc_pack_workers_pending(&st->workers))
        rc = send_packed(st);
    return rc;
}

/* What was read is recorded all the same, in its order. */
static void give_up_packed(struct send *st)
{
    while (vc_pack_workers_pending(&st->workers)) {
        struct vc_link_frame *f;
        struct vc_src_batch *b = vc_pack_workers_take(&st->workers, &f);

        give_up(st->s, b, f);
    }
}

/* Whether it goes ahead: then the reference is taken. */
static int pack_ahead(struct send *st, struct vc_src_batch *b, bool *ahead)
{
    enum vc_src_form form = form_of_batches(st);
    int level = vc_effort_ahead_level(&st->effort), rc = 0;

    *ahead = b->item == VC_SRC_BATCH && b->data_bytes >= AHEAD_MIN_BYTES && level &&
             !(form == VC_SRC_RECENT && b->after);
    if (!*ahead)
        return 0;
    if (!vc_pack_workers_have_room(&st->workers))
        rc = send_packed(st);
    vc_pack_workers_give(&st->workers, b, form == VC_SRC_RECENT ? VC_SRC_DELTA : form, level);
    return rc;
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

/* The next thing to do: a batch that was packed ahead, or one that waits. */
static int next(struct send *st)
{
    struct vc_source *s = st->s;
    struct vc_queue_node *node;
    bool pending = vc_pack_workers_pending(&st->workers), ahead;
    uint64_t begun = pending ? vc_now_ns() : 0;
    struct vc_src_batch *b;
    int rc;

    if (vc_pack_workers_are_ready(&st->workers))
        return send_packed(st);
    rc = vc_queue_pop(&s->to_send, UINT64_MAX, &node);
    if (pending)
        st->packing_ns += vc_now_ns() - begun;
    if (rc == VC_AGAIN)
        return 0;
    if (rc && pending && !vc_source_stopping(s))
        return send_all_packed(st);
    if (rc)
        return rc;
    b = (struct vc_src_batch *)node;
    rc = pack_ahead(st, b, &ahead);
    if (ahead)
        return rc;
    rc = send_all_packed(st);
    if (rc) {
        give_up_packed(st);
        give_up(s, b, NULL);
    } else {
        rc = send_item(st, b);
    }
    atomic_fetch_sub(&s->unsent, 1);
    return rc;
}

void *vc_source_send_main(void *arg)
{
    struct vc_source *s = arg;
    struct send st = {.s = s, .err = VC_ERR_INIT};
    struct vc_queue_node *node;
    int rc =
        vc_packer_init(&st.packer, s->o.local_gen, s->local_map, &s->o.lineage, s->o.log, &st.err);

    vc_pack_workers_init(&st.workers, &s->to_send, s->o.workers, s->o.local_gen, s->local_map,
                         &s->o.lineage, s->o.log);
    st.packer.recorder = s->o.recent ? &s->recorder : NULL;
    vc_effort_init(&st.effort, st.workers.n);
    while (!rc)
        rc = next(&st);
    if (rc < 0)
        vc_source_abort(s, &st.err);
    give_up_packed(&st);
    while ((node = vc_queue_drain(&s->to_send)))
        give_up(s, (struct vc_src_batch *)node, NULL);
    vc_queue_close(&s->recorder.queue);
    /* A link that is closed tells the receiving stage why: the peer may have said it. */
    vc_pack_workers_fini(&st.workers);
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
            vc_count(&s->n.acked_bytes, b->stream_bytes);
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
