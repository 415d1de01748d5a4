/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "dest/resolve.h"
#include "digest/digest.h"
#include "link/link.h"

/* Asking the source for pages, or for a whole batch, while the stream stands still: receive.c hands
 * the answers over past all frames that wait. */

/* How many dead-peer times the answer to REPAIR or RESEND may take: a batch on a slow link. */
#define ANSWER_DEAD_PEER_TIMES 6u

static void await(struct vc_dest *d, uint64_t seq)
{
    VC_LOCKED(&d->mu);

    d->awaited_seq = seq;
    if (!seq) {
        vc_link_frame_free(d->mail);
        d->mail = NULL;
    }
    pthread_cond_broadcast(&d->changed);
}

/* 0; VC_CLOSED: the pipeline is torn down; VC_E_PEER_LOST: the source lives, but does not answer.
 * Answers pass everything else on the wire, so that a time can be named. */
static int next_mail(struct vc_dst_resolve *r, struct vc_link_frame **out)
{
    struct vc_dest *d = r->d;
    uint32_t limit_ms = ANSWER_DEAD_PEER_TIMES * vc_link_dead_peer_ms(d->o.link);
    uint64_t deadline = vc_now_ns() + limit_ms * VC_NS_PER_MS;
    VC_LOCKED(&d->mu);

    while (!d->mail && !d->stop)
        if (!vc_cond_wait_until(&d->changed, &d->mu, deadline) && !d->mail && !d->stop)
            return vc_err_set(&r->err, VC_E_PEER_LOST,
                              "peer '%s' has not answered a request for %u ms",
                              vc_link_peer(d->o.link), limit_ms);
    if (d->stop)
        return VC_CLOSED;
    *out = d->mail;
    d->mail = NULL;
    pthread_cond_broadcast(&d->changed);
    return 0;
}

/* Puts the pages of one REPAIRED frame in place; *left counts down. */
static int take_repair(struct vc_dst_resolve *r, struct vc_dst_batch *b,
                       const struct vc_link_frame *f, const uint32_t *asked, uint32_t n_asked,
                       uint32_t *left)
{
    uint32_t page_bytes = b->ram->page_bytes;
    struct vc_wire_repaired m;
    int rc;

    if (f->type != VC_WIRE_REPAIRED)
        return vc_err_set(&r->err, VC_E_PROTOCOL, "a batch was sent again instead of repaired");
    rc = vc_wire_repaired_decode(f->payload, f->bytes, page_bytes, &m, &r->err);
    if (rc)
        return rc;
    for (uint32_t i = 0; i < m.n; i++) {
        const uint8_t *entry = m.entries + (size_t)i * (4 + page_bytes);
        uint32_t ordinal = (uint32_t)vc_load_le(entry, 4);
        uint32_t next = n_asked - *left;
        struct vc_dst_page *p;

        if (!*left || asked[next] != ordinal)
            return vc_err_set(&r->err, VC_E_PROTOCOL, "REPAIRED: page %u was not asked for",
                              ordinal);
        p = &b->pages[ordinal];
        memcpy((uint8_t *)p->content, entry + 4, page_bytes); /* room in b->same */
        p->same = false;
        --*left;
        rc = vc_digest_pages(r->pages, &p->content, 1, page_bytes, &p->digest, &r->err);
        if (rc)
            return rc;
    }
    return 0;
}

int vc_dst_repair(struct vc_dst_resolve *r, struct vc_dst_batch *b, const uint32_t *ordinals,
                  uint32_t n)
{
    struct vc_link_frame *ask = vc_link_frame_new(VC_WIRE_REPAIR, 0, 12 + 4 * n);
    struct vc_writer w;
    uint32_t left = n;
    int rc = 0;

    if (!ask)
        return vc_err_set(&r->err, VC_E_NOMEM, "no memory for a repair");
    if (vc_dst_base_is_partial(r))
        vc_log(r->d->o.log, VC_LOG_INFO,
               "%u pages that had arrived before are not as noted and are fetched again", n);
    else
        vc_log(r->d->o.log, VC_LOG_WARNING,
               "%u pages of the checkpoint are damaged and are fetched from the source", n);
    w = vc_writer(ask->payload, ask->bytes);
    vc_wire_repair_encode(&w, b->h.seq, ordinals, n);
    await(r->d, b->h.seq);
    if (vc_link_send(r->d->o.link, ask, true))
        rc = VC_CLOSED;
    while (!rc && left) {
        vc_auto_frame struct vc_link_frame *f = NULL;

        rc = next_mail(r, &f);
        if (!rc)
            rc = take_repair(r, b, f, ordinals, n, &left);
    }
    await(r->d, 0);
    vc_count(&r->d->n.repaired_pages, n - left);
    return rc;
}

int vc_dst_ask_again(struct vc_dst_resolve *r, bool damaged, struct vc_link_frame **out)
{
    struct vc_link_frame *f;
    uint8_t payload[8];
    int rc;

    if (damaged)
        vc_log(r->d->o.log, VC_LOG_WARNING, "batch %llu failed its seal and is asked for again",
               (unsigned long long)r->next_seq);
    else
        vc_log(r->d->o.log, VC_LOG_INFO,
               "batch %llu is asked for again, whole: what it builds on is not here",
               (unsigned long long)r->next_seq);
    vc_store_le(payload, r->next_seq, 8);
    await(r->d, r->next_seq);
    rc = vc_link_send_small(r->d->o.link, VC_WIRE_RESEND, 0, payload, sizeof(payload))
             ? VC_CLOSED
             : next_mail(r, &f);
    await(r->d, 0);
    if (rc)
        return rc;
    if (f->type != VC_WIRE_BATCH) {
        vc_link_frame_free(f);
        return vc_err_set(&r->err, VC_E_PROTOCOL, "a page was sent instead of a batch");
    }
    vc_count(&r->d->n.resent_batches, 1);
    *out = f;
    return 0;
}
