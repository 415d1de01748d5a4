/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dest/channel.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/fdio.h"
#include "dest/pipeline.h"
#include "link/link.h"
#include "link/seal.h"

/* Theory of operation
 *
 * The receiving thread puts the channel's frames into a queue that is never full: whoever sends
 * more than may be unacknowledged breaks the rules. The channel's thread connects to QEMU as soon
 * as channel 0 is connected (the first connection that QEMU accepts is its main one, and it may
 * wait for the second before it reads), and writes each batch whose seal is right. Nothing that
 * passes here is recorded: docs/formats/wire.md says why that is right. */

/** How long a QEMU that closed this connection may take to report success on the other one. */
#define SHUT_WAIT_NS (2 * VC_NS_PER_S)
/** How often QEMU's end is looked at while nothing passes. */
#define CHECK_NS (VC_NS_PER_S / 4)

struct channel {
    struct vc_dest *d;
    struct vc_digester *seals;
    struct vc_wire_codec *codec;
    struct vc_digest seal; /* of the last batch */
    uint64_t next_seq, position;
    bool qemu_failed, qemu_closed;
    struct vc_err err;
};

/* ---- to QEMU ---- */

/* Waits for channel 0. False: torn down. */
static bool main_is_connected(struct vc_dest *d)
{
    VC_LOCKED(&d->mu);

    while (d->qemu_fd < 0 && !d->stop)
        pthread_cond_wait(&d->changed, &d->mu);
    return !d->stop;
}

static int connect_qemu(struct channel *c)
{
    struct vc_dest *d = c->d;
    int fd = d->o.connect_preempt(d->o.opaque, &c->err);
    VC_LOCKED(&d->mu);

    c->qemu_failed = fd < 0;
    if (fd < 0)
        return fd;
    d->side.fd = fd;
    if (d->stop)
        shutdown(fd, SHUT_RDWR);
    return 0;
}

/* Whether QEMU has all it needs; it says so before it closes its connections. */
static bool has_shut(struct vc_dest *d)
{
    uint64_t deadline = vc_now_ns() + SHUT_WAIT_NS;
    int saved = errno; /* says why it is asked */
    VC_LOCKED(&d->mu);

    while (!d->shut && !d->return_eof && !d->stop)
        if (!vc_cond_wait_until(&d->changed, &d->mu, deadline))
            break;
    errno = saved;
    return d->shut && d->shut_status == 0;
}

static int emit(struct channel *c, struct vc_dst_batch *b)
{
    struct vc_dest *d = c->d;
    uint8_t ack[16];

    c->qemu_failed = b->n_iov && vc_writev_full(d->side.fd, b->iov, b->n_iov) < 0 && !has_shut(d);
    if (c->qemu_failed)
        return vc_err_set_errno_hint(&c->err, VC_E_DEST_QEMU,
                                     "see the destination QEMU's own messages",
                                     "the destination QEMU stopped reading its preempt connection "
                                     "(has it postcopy-preempt?)");
    vc_count(&d->n.stream_bytes, b->h.stream_bytes);
    vc_count(&d->side.acked_bytes, b->h.stream_bytes);
    vc_count(&d->side.acked_batches, 1);
    vc_store_le(ack, b->h.seq, 8);
    vc_store_le(ack + 8, b->h.position + b->h.stream_bytes, 8);
    return vc_link_send_small(d->o.link, VC_WIRE_ACK, VC_WIRE_CHANNEL_PREEMPT, ack, sizeof(ack))
               ? VC_CLOSED
               : 0;
}

/* ---- batches ---- */

/* Parses and checks one BATCH, which is taken. Without a list of blocks no run of pages is legal.
 */
static int build(struct channel *c, struct vc_link_frame *f, struct vc_dst_batch *b)
{
    struct vc_digest seal;
    int rc = vc_dst_batch_parse(b, f, NULL, c->d->o.features, c->codec, &c->err);

    if (!rc && (b->h.seq != c->next_seq || b->h.position != c->position))
        rc = vc_err_set(&c->err, VC_E_PROTOCOL,
                        "BATCH: number %llu at %llu of channel %u, expected %llu at %llu",
                        (unsigned long long)b->h.seq, (unsigned long long)b->h.position,
                        VC_WIRE_CHANNEL_PREEMPT, (unsigned long long)c->next_seq,
                        (unsigned long long)c->position);
    if (!rc && b->n_runs > 1)
        rc = vc_err_set(&c->err, VC_E_PROTOCOL, "BATCH: more than one run on channel %u",
                        VC_WIRE_CHANNEL_PREEMPT);
    if (!rc)
        rc = vc_dst_batch_seal(b, c->seals, &c->seal, &seal, &c->err);
    if (rc)
        return rc;
    if (memcmp(seal.b, b->h.seal, sizeof(seal.b)) != 0)
        return vc_err_set_hint(&c->err, VC_E_SEAL, "the memory of one of the hosts may be faulty",
                               "batch %llu of channel %u failed its seal",
                               (unsigned long long)b->h.seq, VC_WIRE_CHANNEL_PREEMPT);
    c->seal = seal;
    c->next_seq++;
    c->position += b->h.stream_bytes;
    return 0;
}

static int on_batch(struct channel *c, struct vc_link_frame *f)
{
    struct vc_dst_batch *b = vc_dst_batch_new();
    int rc;

    if (!b) {
        vc_link_frame_free(f);
        return vc_err_set(&c->err, VC_E_NOMEM, "no memory for a batch");
    }
    rc = build(c, f, b);
    if (!rc)
        rc = emit(c, b);
    vc_dst_batch_unref(b);
    return rc;
}

static int prepare(struct channel *c)
{
    const struct vc_dest_options *o = &c->d->o;
    int rc = vc_digester_new(o->lineage.algo, VC_DIGEST_SEAL, o->lineage.key, &c->seals, &c->err);

    if (!rc)
        rc = vc_wire_codec_new(1, &c->codec, &c->err);
    return rc ? rc
              : vc_seal_first(c->seals, &o->session, VC_WIRE_CHANNEL_PREEMPT, &c->seal, &c->err);
}

/* A QEMU that expects no second connection closes it, maybe without having looked at it. That has
 * to be noticed while the VM can still stay where it is, and nothing may pass here until the
 * switch. */
static int check_open(struct channel *c)
{
    char byte;
    ssize_t n = recv(c->d->side.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

    if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)))
        return 0;
    c->qemu_closed = true;
    if (c->position > 0) /* the switch is over; if QEMU failed, its other connection tells */
        return 0;
    c->qemu_failed = !has_shut(c->d);
    if (!c->qemu_failed)
        return 0;
    return vc_err_set_hint(&c->err, VC_E_DEST_QEMU, "set the same capabilities on both QEMUs",
                           "the destination QEMU closed its second connection (has it "
                           "postcopy-preempt, and no multifd?)");
}

/* The next frame: 0; VC_CLOSED: the end. While none comes, QEMU is watched. */
static int next_frame(struct channel *c, struct vc_link_frame **out)
{
    struct vc_queue_node *node;
    int rc;

    for (;;) {
        uint64_t deadline = c->qemu_closed ? UINT64_MAX : vc_now_ns() + CHECK_NS;

        rc = vc_queue_pop(&c->d->side.frames, deadline, &node);
        if (rc != VC_AGAIN)
            break;
        rc = check_open(c);
        if (rc)
            return rc;
    }
    if (!rc)
        *out = (struct vc_link_frame *)node;
    return rc;
}

static int run(struct channel *c)
{
    struct vc_dest *d = c->d;
    struct vc_link_frame *f;
    int rc = main_is_connected(d) ? connect_qemu(c) : VC_CLOSED;

    while (!rc && (rc = next_frame(c, &f)) == 0) {
        if (f->type == VC_WIRE_BATCH) {
            rc = on_batch(c, f);
        } else { /* EOF */
            shutdown(d->side.fd, SHUT_WR);
            c->qemu_closed = true; /* it may, from now on */
            vc_link_frame_free(f);
        }
    }
    return rc;
}

static void *channel_main(void *arg)
{
    struct channel c = {.d = arg, .next_seq = 1, .err = VC_ERR_INIT};
    int rc = prepare(&c);

    if (!rc)
        rc = run(&c);
    if (rc < 0 && c.qemu_failed) {
        vc_dest_qemu_failed(c.d, &c.err);
    } else if (rc < 0) {            /* the peer is told why; QEMU was given nothing of it */
        vc_dest_abort(c.d, &c.err); /* first: the link's end is no cause */
        vc_link_fail(c.d->o.link, &c.err);
    }
    vc_digester_free(c.seals);
    vc_wire_codec_free(c.codec);
    return NULL;
}

/* ---- the receiving thread's side ---- */

static int illegal(const struct vc_link_frame *f, const char *what, struct vc_err *err)
{
    return vc_err_set(err, VC_E_PROTOCOL, "%s on channel %u: %s", vc_wire_type_name(f->type),
                      f->channel, what);
}

/* What a batch comes to, looked at before anything of it is expanded. */
static int admit_batch(struct vc_dest *d, const struct vc_link_frame *f, struct vc_err *err)
{
    struct vc_dst_channel *c = &d->side;
    struct vc_wire_batch h;
    int rc = vc_wire_batch_decode(f->payload, f->bytes, &h, err);

    if (rc)
        return rc;
    if (c->opened && h.stream_bytes == 0)
        return illegal(f, "it is empty, and not the first one", err);
    if (h.stream_bytes > VC_WIRE_CHANNEL_BYTES ||
        h.body_bytes > h.stream_bytes + VC_WIRE_RUN_MAX_BYTES ||
        f->bytes > VC_WIRE_BATCH_HEADER_BYTES + h.body_bytes)
        return illegal(f, "it is too long", err);
    c->got_bytes += h.stream_bytes;
    c->got_batches++;
    if (c->got_bytes - atomic_load(&c->acked_bytes) > VC_WIRE_CHANNEL_BYTES ||
        c->got_batches - atomic_load(&c->acked_batches) > VC_WIRE_CHANNEL_BATCHES)
        return illegal(f, "the peer sends more than may be unacknowledged", err);
    return 0;
}

int vc_dst_channel_frame(struct vc_dest *d, struct vc_link_frame *f, struct vc_err *err)
{
    struct vc_dst_channel *c = &d->side;
    int rc = 0;

    if (!(d->o.features & VC_WIRE_FEATURE_CHANNELS) || !d->o.connect_preempt ||
        f->channel != VC_WIRE_CHANNEL_PREEMPT)
        return illegal(f, "there is no such channel", err);
    if (c->ended)
        return illegal(f, "the channel has ended", err);
    if (f->type == VC_WIRE_BATCH)
        rc = admit_batch(d, f, err);
    else if (!c->opened)
        rc = illegal(f, "the channel was not opened", err);
    if (!rc && !c->opened)
        rc = vc_thread_start(&c->thread, "vc-dst-channel", channel_main, d, err);
    if (rc)
        return rc;
    c->opened = true;
    c->ended = f->type == VC_WIRE_EOF;
    if (vc_queue_push(&c->frames, &f->node, 0))
        vc_link_frame_free(f); /* channel 0 has ended, and this one with it */
    return 0;
}

void vc_dst_channel_init(struct vc_dst_channel *c)
{
    c->fd = -1;
    vc_queue_init(&c->frames, UINT64_MAX / 2); /* what may be unacknowledged is its limit */
}

void vc_dst_channel_abort(struct vc_dest *d)
{
    {
        VC_LOCKED(&d->mu);
        if (d->side.fd >= 0)
            shutdown(d->side.fd, SHUT_RDWR);
    }
    vc_queue_abort(&d->side.frames);
}

void vc_dst_channel_end(struct vc_dest *d)
{
    vc_queue_abort(&d->side.frames);
}

void vc_dst_channel_fini(struct vc_dest *d)
{
    struct vc_queue_node *n;

    vc_thread_join(&d->side.thread);
    while ((n = vc_queue_drain(&d->side.frames)))
        vc_link_frame_free((struct vc_link_frame *)n);
    vc_queue_fini(&d->side.frames);
    if (d->side.fd >= 0)
        close(d->side.fd);
}
