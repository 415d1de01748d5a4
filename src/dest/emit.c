/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/fdio.h"
#include "dest/pipeline.h"
#include "link/link.h"

/* The emitting stage: verified batches to the destination QEMU, in order, then the acknowledgement.
 * A thread of its own carries QEMU's return path the other way. */

static int connect_qemu(struct vc_dest *d, struct vc_err *err)
{
    int fd = d->o.connect(d->o.opaque, err);

    if (fd < 0)
        return fd;
    {
        VC_LOCKED(&d->mu);
        d->qemu_fd = fd;
        if (d->stop)
            shutdown(fd, SHUT_RDWR);
        pthread_cond_broadcast(&d->changed);
    }
    vc_dest_notify(d);
    return 0;
}

static bool has_shut(struct vc_dest *d)
{
    VC_LOCKED(&d->mu);

    return d->shut && d->shut_status == 0;
}

static int emit_batch(struct vc_dest *d, struct vc_dst_batch *b, struct vc_err *err)
{
    uint8_t ack[16];

    if (vc_writev_full(d->qemu_fd, b->iov, b->n_iov) < 0 && !has_shut(d))
        return vc_err_set_errno_hint(err, VC_E_DEST_QEMU, "see the destination QEMU's own messages",
                                     "the destination QEMU stopped reading its migration stream");
    vc_count(&d->n.stream_bytes, b->h.stream_bytes);
    vc_store_le(ack, b->h.seq, 8);
    vc_store_le(ack + 8, b->h.position + b->h.stream_bytes, 8);
    if (vc_link_send_small(d->o.link, VC_WIRE_ACK, 0, ack, sizeof(ack)))
        return VC_CLOSED;
    return 0;
}

static void emit_eof(struct vc_dest *d)
{
    if (d->qemu_fd >= 0)
        shutdown(d->qemu_fd, SHUT_WR);
    {
        VC_LOCKED(&d->mu);
        d->source_eof = true;
    }
    vc_dest_notify(d);
}

void *vc_dest_emit_main(void *arg)
{
    struct vc_dest *d = arg;
    struct vc_queue_node *node;
    struct vc_err err = VC_ERR_INIT;
    int rc = 0;

    while (!rc && vc_queue_pop(&d->to_emit, UINT64_MAX, &node) == 0) {
        struct vc_dst_batch *b = (struct vc_dst_batch *)node;

        if (b->is_eof) {
            emit_eof(d);
        } else {
            if (d->qemu_fd < 0)
                rc = connect_qemu(d, &err);
            if (!rc)
                rc = emit_batch(d, b, &err);
        }
        vc_dst_batch_unref(b);
    }
    if (rc < 0)
        vc_dest_qemu_failed(d, &err);
    return NULL;
}

/* ---- the return path ---- */

/* Waits for QEMU's socket; -1: torn down before there was one. */
static int wait_connected(struct vc_dest *d)
{
    VC_LOCKED(&d->mu);

    while (d->qemu_fd < 0 && !d->stop)
        pthread_cond_wait(&d->changed, &d->mu);
    return d->stop ? -1 : d->qemu_fd;
}

static void note_return(struct vc_dest *d, const struct vc_qs_return_path *rp)
{
    {
        VC_LOCKED(&d->mu);
        d->shut = true;
        d->shut_status = rp->status;
        pthread_cond_broadcast(&d->changed);
    }
    vc_dest_notify(d);
}

/* QEMU closed: in order after SHUT, or it failed. */
static void return_ended(struct vc_dest *d, const struct vc_qs_return_path *rp)
{
    struct vc_err err = VC_ERR_INIT;
    bool source_eof;

    {
        VC_LOCKED(&d->mu);
        d->return_eof = true;
        pthread_cond_broadcast(&d->changed);
        source_eof = d->source_eof;
    }
    if (rp->shut || rp->lost) {
        vc_link_send_small(d->o.link, VC_WIRE_EOF, 0, NULL, 0);
        vc_dest_notify(d);
        return;
    }
    if (source_eof)
        vc_err_set(&err, VC_E_MIGRATION, "the source QEMU ended the stream before its end");
    else
        vc_err_set_hint(&err, VC_E_DEST_QEMU, "see the destination QEMU's own messages",
                        "the destination QEMU closed its migration socket");
    vc_dest_qemu_failed(d, &err);
}

void *vc_dest_back_main(void *arg)
{
    struct vc_dest *d = arg;
    struct vc_qs_return_path rp = {0};
    uint8_t buf[16384];
    int fd = wait_connected(d);
    ssize_t n;

    if (fd < 0)
        return NULL;
    while ((n = vc_read_some(fd, buf, sizeof(buf))) > 0) {
        struct vc_link_frame *f = vc_link_frame_new(VC_WIRE_RETURN, 0, (uint32_t)n);

        if (!f)
            break;
        memcpy(f->payload, buf, (size_t)n);
        vc_qs_return_path_feed(&rp, buf, (size_t)n);
        vc_count(&d->n.return_bytes, (uint64_t)n);
        if (rp.shut)
            note_return(d, &rp);
        if (vc_link_send(d->o.link, f, true))
            return NULL;
    }
    return_ended(d, &rp);
    return NULL;
}
