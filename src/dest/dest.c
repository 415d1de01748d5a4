/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dest/dest.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "dest/pipeline.h"
#include "link/link.h"

void vc_dest_notify(struct vc_dest *d)
{
    uint64_t one = 1;

    if (write(d->event_fd, &one, sizeof(one)) < 0) {
        /* Full means: already readable. */
    }
}

void vc_dest_clear(struct vc_dest *d)
{
    uint64_t n;

    if (read(d->event_fd, &n, sizeof(n)) < 0) {
        /* Nothing to clear. */
    }
}

int vc_dest_event_fd(const struct vc_dest *d)
{
    return d->event_fd;
}

void vc_dest_abort(struct vc_dest *d, const struct vc_err *why)
{
    {
        VC_LOCKED(&d->mu);
        if (!d->failed) {
            d->failed = true;
            d->err = *why;
        }
        d->stop = true;
        if (d->qemu_fd >= 0)
            shutdown(d->qemu_fd, SHUT_RDWR);
        pthread_cond_broadcast(&d->changed);
    }
    vc_dst_channel_abort(d);
    vc_queue_abort(&d->frames);
    vc_queue_abort(&d->to_emit);
    /* What was verified is recorded: the next attempt has it. */
    vc_queue_close(&d->recorder.queue);
    vc_dest_notify(d);
}

void vc_dest_qemu_failed(struct vc_dest *d, const struct vc_err *why)
{
    struct vc_wire_status m = {.code = (uint32_t)-why->code};
    uint8_t payload[512];
    struct vc_writer w = vc_writer(payload, sizeof(payload));

    {
        VC_LOCKED(&d->mu);
        if (d->failed)
            return;
        d->qemu_failed = true;
    }
    snprintf(m.text, sizeof(m.text), "%s", why->message);
    vc_wire_status_encode(&w, &m);
    vc_link_send_small(d->o.link, VC_WIRE_STREAM_FAILED, 0, payload, (uint32_t)w.len);
    vc_dest_abort(d, why);
}

void vc_dest_error(struct vc_dest *d, struct vc_err *out)
{
    VC_LOCKED(&d->mu);

    *out = d->err;
}

void vc_dest_status(struct vc_dest *d, struct vc_dest_status *out)
{
    VC_LOCKED(&d->mu);

    *out = (struct vc_dest_status){
        .stream_bytes = atomic_load(&d->n.stream_bytes),
        .return_bytes = atomic_load(&d->n.return_bytes),
        .pages_same = atomic_load(&d->n.pages_same),
        .pages_moved = atomic_load(&d->n.pages_moved),
        .pages_zero = atomic_load(&d->n.pages_zero),
        .pages_data = atomic_load(&d->n.pages_data),
        .pages_unknown = atomic_load(&d->n.pages_unknown),
        .repaired_pages = atomic_load(&d->n.repaired_pages),
        .resent_batches = atomic_load(&d->n.resent_batches),
        .connected = d->qemu_fd >= 0,
        .source_eof = d->source_eof,
        .return_eof = d->return_eof,
        .shut = d->shut,
        .shut_status = d->shut_status,
        .ram_known = d->ram_known,
        .failed = d->failed,
        .qemu_failed = d->qemu_failed,
        .recording = atomic_load(&d->recorder.alive),
    };
}

static int start_threads(struct vc_dest *d, struct vc_err *err)
{
    int rc = vc_thread_start(&d->record, "vc-dst-record", vc_dest_record_main, d, err);

    if (!rc)
        rc = vc_thread_start(&d->emit, "vc-dst-emit", vc_dest_emit_main, d, err);
    if (!rc)
        rc = vc_thread_start(&d->back, "vc-dst-back", vc_dest_back_main, d, err);
    if (!rc)
        rc = vc_thread_start(&d->resolve, "vc-dst-resolve", vc_dest_resolve_main, d, err);
    if (!rc)
        rc = vc_thread_start(&d->receive, "vc-dst-recv", vc_dest_receive_main, d, err);
    if (!rc && d->o.base == VC_WIRE_BASE_ANNOUNCE)
        rc = vc_thread_start(&d->announce, "vc-dst-announce", vc_dest_announce_main, d, err);
    return rc;
}

int vc_dest_start(const struct vc_dest_options *o, struct vc_dest **out, struct vc_err *err)
{
    struct vc_dest *d = calloc(1, sizeof(*d));
    int rc;

    if (!d) {
        vc_txn_abort(o->txn);
        return vc_err_set(err, VC_E_NOMEM, "no memory for a session");
    }
    d->o = *o;
    d->qemu_fd = -1;
    if (o->gen)
        vc_gen_read_sparsely(o->gen);
    vc_dst_channel_init(&d->side);
    pthread_mutex_init(&d->mu, NULL);
    vc_cond_init(&d->changed);
    vc_queue_init(&d->frames, 2ull * VC_DEST_QUEUE_BYTES); /* receive.c sees to its limit */
    vc_queue_init(&d->to_emit, VC_DEST_EMIT_BYTES);
    vc_recorder_init(&d->recorder, o->txn, VC_DEST_RECORD_BYTES, o->store_patience_ms, o->log);
    d->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rc = d->event_fd < 0 ? vc_err_set_errno(err, VC_E_FAILED, "cannot make an eventfd") : 0;
    if (!rc)
        rc = start_threads(d, err);
    if (rc) {
        vc_dest_abort(d, err);
        vc_txn_abort(vc_dest_join(d));
        vc_dest_free(d);
        return rc;
    }
    *out = d;
    return 0;
}

struct vc_txn *vc_dest_join(struct vc_dest *d)
{
    vc_dst_channel_end(d);
    vc_queue_close(&d->frames);
    vc_thread_join(&d->resolve);
    vc_thread_join(&d->emit);
    vc_thread_join(&d->record);
    return vc_steal_ptr(d->recorder.txn);
}

static void drop_queues(struct vc_dest *d)
{
    struct vc_queue_node *n;

    while ((n = vc_queue_drain(&d->frames))) {
        vc_dest_frame_left(n);
        vc_link_frame_free((struct vc_link_frame *)n);
    }
    while ((n = vc_queue_drain(&d->to_emit)))
        vc_dst_batch_unref((struct vc_dst_batch *)n);
    while ((n = vc_queue_drain(&d->recorder.queue)))
        vc_dst_batch_unref(vc_dst_batch_of_record(n));
    vc_link_frame_free(d->mail);
}

void vc_dest_free(struct vc_dest *d)
{
    struct vc_err over = VC_ERR_INIT;

    if (!d)
        return;
    vc_err_set(&over, VC_E_CANCELLED, "the session is over");
    vc_dest_abort(d, &over);
    vc_link_shutdown(d->o.link);
    vc_txn_abort(vc_dest_join(d));
    vc_thread_join(&d->receive);
    vc_thread_join(&d->back);
    vc_thread_join(&d->announce);
    vc_dst_channel_fini(d);
    drop_queues(d);
    vc_queue_fini(&d->frames);
    vc_queue_fini(&d->to_emit);
    vc_recorder_fini(&d->recorder);
    if (d->qemu_fd >= 0)
        close(d->qemu_fd);
    if (d->event_fd >= 0)
        close(d->event_fd);
    pthread_cond_destroy(&d->changed);
    pthread_mutex_destroy(&d->mu);
    vc_wipe(&d->o.lineage, sizeof(d->o.lineage));
    free(d);
}
