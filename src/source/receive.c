/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <sys/socket.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/fdio.h"
#include "link/link.h"
#include "source/pack.h"
#include "source/pipeline.h"

/* What comes back from the destination: acknowledgements, requests for repair, the announcement,
 * and QEMU's return path, which goes straight on to the source QEMU. */

/* Once QEMU has SHUT(0) it may complete: what has to be written before that is written now. False:
 * QEMU is not to have it any more. */
static bool may_pass(struct vc_source *s)
{
    VC_LOCKED(&s->mu);

    while (s->o.holds_success && !s->success_passes && !s->stop)
        pthread_cond_wait(&s->changed, &s->mu);
    return !s->o.holds_success || s->success_passes;
}

static int on_return(struct vc_source *s, struct vc_qs_return_path *rp,
                     const struct vc_link_frame *f)
{
    vc_qs_return_path_feed(rp, f->payload, f->bytes);
    if (rp->shut) {
        /* Before QEMU sees it: whoever hears of the end from QEMU finds it here too. */
        VC_LOCKED(&s->mu);
        s->shut = true;
        s->shut_status = rp->status;
    }
    vc_count(&s->n.return_bytes, f->bytes);
    if (rp->shut && !rp->status) {
        vc_source_notify(s);
        if (!may_pass(s))
            return 0;
    }
    if (vc_write_full(s->o.qemu_fd, f->payload, f->bytes) < 0) {
        /* QEMU is gone or has finished: the stream's own end tells which. */
        vc_log(s->o.log, VC_LOG_DEBUG, "the source QEMU takes no more of the return path");
    }
    if (rp->shut)
        vc_source_notify(s);
    return 0;
}

/* One REPAIRED frame with up to VC_WIRE_REPAIRED_PAGES of the pages asked for. */
static int send_repair(struct vc_source *s, const struct vc_src_batch *b,
                       const struct vc_wire_repair *m, uint32_t first, uint32_t n,
                       struct vc_err *err)
{
    uint32_t page_bytes = s->ram.page_bytes;
    struct vc_link_frame *f = vc_link_frame_new(VC_WIRE_REPAIRED, 0, 12 + n * (4 + page_bytes));
    struct vc_writer w;

    if (!f)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a repair");
    w = vc_writer(f->payload, f->bytes);
    vc_write_u64(&w, m->seq);
    vc_write_u32(&w, n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t ordinal = (uint32_t)vc_load_le(m->ordinals + 4 * (size_t)(first + i), 4);

        if (ordinal >= b->n_pages) {
            vc_link_frame_free(f);
            return vc_err_set(err, VC_E_PROTOCOL, "REPAIR: batch %llu has no page %u",
                              (unsigned long long)m->seq, ordinal);
        }
        vc_write_u32(&w, ordinal);
        vc_write_bytes(&w, b->content[ordinal], page_bytes);
    }
    vc_count(&s->n.repaired_pages, n);
    return vc_link_send(s->o.link, f, true);
}

static bool is_ascending(const struct vc_wire_repair *m)
{
    for (uint32_t i = 1; i < m->n; i++)
        if (vc_load_le(m->ordinals + 4 * (size_t)(i - 1), 4) >=
            vc_load_le(m->ordinals + 4 * (size_t)i, 4))
            return false;
    return true;
}

static int on_repair(struct vc_source *s, const struct vc_link_frame *f, struct vc_err *err)
{
    struct vc_wire_repair m;
    struct vc_src_batch *b;
    int rc = vc_wire_repair_decode(f->payload, f->bytes, &m, err);

    if (rc)
        return rc;
    b = vc_source_window_find(s, m.seq);
    if (!b)
        return vc_err_set(err, VC_E_PROTOCOL, "REPAIR: batch %llu is not outstanding",
                          (unsigned long long)m.seq);
    /* What is sent for it waits in memory. */
    if (b->repaired || !is_ascending(&m)) {
        vc_src_batch_unref(b);
        return vc_err_set(err, VC_E_PROTOCOL, "REPAIR: pages of batch %llu are asked for twice",
                          (unsigned long long)m.seq);
    }
    b->repaired = true;
    if (atomic_load(&s->keeps) & VC_WIRE_KEEPS_PARTIAL)
        vc_log(s->o.log, VC_LOG_INFO, "%u pages that had arrived before are sent again", m.n);
    else
        vc_log(s->o.log, VC_LOG_WARNING,
               "the destination's checkpoint is damaged: %u pages are sent again", m.n);
    for (uint32_t i = 0; i < m.n && !rc; i += VC_WIRE_REPAIRED_PAGES)
        rc = send_repair(s, b, &m, i, VC_MIN(m.n - i, VC_WIRE_REPAIRED_PAGES), err);
    vc_src_batch_unref(b);
    return rc;
}

/* Damage has a warning. It is none that the destination does not have what a batch was made with:
 * the new generation, which it may not write, or not any more, or too slowly; or what had arrived
 * in an earlier attempt, and was written over since. */
static void tell_resend(const struct vc_source *s, const struct vc_src_batch *b)
{
    unsigned keeps = atomic_load(&s->keeps);
    bool ordinary = (keeps & VC_WIRE_KEEPS_PARTIAL) ||
                    (b->sent_recent && (!s->o.keeps || !(keeps & VC_WIRE_KEEPS_NEW)));

    if (ordinary)
        vc_log(s->o.log, VC_LOG_INFO,
               "batch %llu is sent again whole: the destination has not what it builds on",
               (unsigned long long)b->seq);
    else
        vc_log(s->o.log, VC_LOG_WARNING, "batch %llu failed its seal and is sent again",
               (unsigned long long)b->seq);
}

/* The destination could not build it: once more, without any reference to a checkpoint. */
static int on_resend(struct vc_source *s, const struct vc_link_frame *f, struct vc_err *err)
{
    struct vc_packer packer;
    struct vc_src_batch *b;
    struct vc_link_frame *again = NULL;
    bool recent;
    uint64_t seq;
    int rc = vc_wire_u64_decode(f->payload, f->bytes, &seq, err);

    if (rc)
        return rc;
    b = vc_source_window_find(s, seq);
    if (!b || b->resent) {
        vc_src_batch_unref(b);
        return vc_err_set(err, VC_E_PROTOCOL, "RESEND: batch %llu is not outstanding",
                          (unsigned long long)seq);
    }
    b->resent = true;
    recent = b->sent_recent;
    tell_resend(s, b);
    rc = vc_packer_init(&packer, NULL, NULL, NULL, s->o.log, err);
    if (!rc)
        again = vc_packer_frame(&packer, b, VC_SRC_SELF_CONTAINED, 1);
    vc_packer_fini(&packer);
    vc_src_batch_unref(b);
    if (rc)
        return rc;
    if (!again)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a batch");
    vc_count(&s->n.resent_batches, 1);
    vc_count(&s->n.resent_recent, recent);
    return vc_link_send(s->o.link, again, true);
}

static int on_stream_failed(struct vc_source *s, const struct vc_link_frame *f, struct vc_err *err)
{
    struct vc_wire_status m;
    int rc = vc_wire_status_decode(f->payload, f->bytes, &m, err);

    if (rc)
        return rc;
    {
        VC_LOCKED(&s->mu);
        s->peer_stream_failed = true;
    }
    return vc_err_set_hint(err, VC_E_DEST_QEMU, "see the destination QEMU's own messages",
                           "the destination QEMU failed: %.180s", m.text);
}

static int on_ack(struct vc_source *s, const struct vc_link_frame *f, struct vc_err *err)
{
    struct vc_wire_ack m;
    int rc = vc_wire_ack_decode(f->payload, f->bytes, &m, err);

    if (rc)
        return rc;
    if (f->channel)
        return vc_src_channel_ack(s, f->channel, &m, err);
    rc = vc_source_window_ack(s, &m, err);
    if (!rc)
        vc_source_notify(s);
    return rc;
}

static int on_reads(struct vc_source *s, const struct vc_link_frame *f, struct vc_err *err)
{
    struct vc_wire_reads m;
    unsigned before = s->reuse.share;
    int rc = vc_wire_reads_decode(f->payload, f->bytes, &m, err);

    if (rc)
        return rc;
    if (!s->o.reads)
        return vc_err_set(err, VC_E_PROTOCOL, "READS: it was not agreed on");
    if (!vc_reuse_report(&s->reuse, vc_now_ns(), &m))
        return vc_err_set(err, VC_E_PROTOCOL, "READS: less than before");
    atomic_store(&s->reuse_share, s->reuse.share);
    if (s->reuse.share != before)
        vc_log(s->o.log, VC_LOG_DEBUG,
               "the destination reads %u of %u parts of what it has: its disk does %.0f MB/s, "
               "the link %.0f",
               s->reuse.share, VC_REUSE_ALL, s->reuse.disk / 1e6, s->reuse.link / 1e6);
    return 0;
}

static int on_keeps(struct vc_source *s, const struct vc_link_frame *f, struct vc_err *err)
{
    uint8_t flags;
    int rc = vc_wire_keeps_decode(f->payload, f->bytes, &flags, err);

    if (!rc && !s->o.keeps)
        rc = vc_err_set(err, VC_E_PROTOCOL, "KEEPS: it was not agreed on");
    if (!rc)
        atomic_store(&s->keeps, flags);
    return rc;
}

/* *taken: the frame belongs to somebody else now. */
static int dispatch(struct vc_source *s, struct vc_qs_return_path *rp, struct vc_link_frame *f,
                    bool *taken, struct vc_err *err)
{
    switch (f->type) {
    case VC_WIRE_ACK:
        return on_ack(s, f, err);
    case VC_WIRE_RETURN:
        return on_return(s, rp, f);
    case VC_WIRE_EOF:
        shutdown(s->o.qemu_fd, SHUT_WR);
        return 0;
    case VC_WIRE_REPAIR:
        return on_repair(s, f, err);
    case VC_WIRE_RESEND:
        return on_resend(s, f, err);
    case VC_WIRE_ANNOUNCE_BLOCKS:
        return vc_remote_blocks(&s->remote, f->payload, f->bytes, err);
    case VC_WIRE_ANNOUNCE:
        return vc_remote_announce(&s->remote, f->payload, f->bytes, err);
    case VC_WIRE_ANNOUNCE_END:
        return vc_remote_announced(&s->remote, err);
    case VC_WIRE_READS:
        return on_reads(s, f, err);
    case VC_WIRE_KEEPS:
        return on_keeps(s, f, err);
    case VC_WIRE_STREAM_FAILED:
        return on_stream_failed(s, f, err);
    default:
        *taken = true;
        s->o.on_frame(s->o.opaque, f);
        return 0;
    }
}

void *vc_source_receive_main(void *arg)
{
    struct vc_source *s = arg;
    struct vc_qs_return_path rp = {0};
    struct vc_err err = VC_ERR_INIT;
    int rc;

    for (;;) {
        struct vc_link_frame *f;
        bool taken = false;

        rc = vc_link_recv(s->o.link, &f, &err);
        if (rc)
            break;
        rc = dispatch(s, &rp, f, &taken, &err);
        if (!taken)
            vc_link_frame_free(f);
        if (rc)
            break;
    }
    if (rc > 0)
        vc_err_set(&err, VC_E_PEER_LOST, "peer '%s' hung up", vc_link_peer(s->o.link));
    vc_source_abort(s, &err);
    s->o.on_frame(s->o.opaque, NULL);
    return NULL;
}
