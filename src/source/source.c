/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/source.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fdio.h"
#include "link/link.h"
#include "source/pipeline.h"

#define SLAB_BYTES (1u << 20)
/* Bytes of new data that may wait for the sender: more would only be delay that QEMU cannot see. */
#define TO_SEND_BYTES (64u << 10)

void vc_source_notify(struct vc_source *s)
{
    uint64_t one = 1;

    if (write(s->event_fd, &one, sizeof(one)) < 0) {
        /* Full means: already readable. */
    }
}

void vc_source_clear(struct vc_source *s)
{
    uint64_t n;

    if (read(s->event_fd, &n, sizeof(n)) < 0) {
        /* Nothing to clear. */
    }
}

int vc_source_event_fd(const struct vc_source *s)
{
    return s->event_fd;
}

bool vc_source_stopping(struct vc_source *s)
{
    VC_LOCKED(&s->mu);

    return s->stop;
}

void vc_source_set_pace(struct vc_source *s, uint64_t limit_ns)
{
    atomic_store(&s->pace_limit_ns, limit_ns);
}

/* Asked before we hang up ourselves. */
static bool has_hung_up(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLRDHUP};

    return poll(&p, 1, 0) > 0 && p.revents & (POLLRDHUP | POLLHUP | POLLERR);
}

void vc_source_abort(struct vc_source *s, const struct vc_err *why)
{
    {
        VC_LOCKED(&s->mu);
        if (!s->failed) {
            s->failed = true;
            s->err = *why;
            s->qemu_hung_up = has_hung_up(s->o.qemu_fd);
        }
        s->stop = true;
        pthread_cond_broadcast(&s->changed);
    }
    /* Both directions: a QEMU that only lost its return path might go on for long. */
    shutdown(s->o.qemu_fd, SHUT_RDWR);
    vc_src_channel_abort(s);
    vc_queue_abort(&s->to_send);
    vc_slab_pool_close(&s->slabs);
    vc_source_notify(s);
}

void vc_source_error(struct vc_source *s, struct vc_err *out)
{
    VC_LOCKED(&s->mu);

    *out = s->err;
}

void vc_source_status(struct vc_source *s, struct vc_source_status *out)
{
    VC_LOCKED(&s->mu);

    *out = (struct vc_source_status){
        .stream_bytes = atomic_load(&s->n.stream_bytes),
        .return_bytes = atomic_load(&s->n.return_bytes),
        .pages_same = atomic_load(&s->n.pages_same),
        .pages_moved = atomic_load(&s->n.pages_moved),
        .pages_zero = atomic_load(&s->n.pages_zero),
        .pages_data = atomic_load(&s->n.pages_data),
        .pages_unknown = atomic_load(&s->n.pages_unknown),
        .data_records = atomic_load(&s->n.data_records),
        .zero_records = atomic_load(&s->n.zero_records),
        .data_bytes = atomic_load(&s->n.data_bytes),
        .first_pass_left_bytes = atomic_load(&s->n.first_pass_left),
        .batches = atomic_load(&s->n.batches),
        .acked_batches = atomic_load(&s->n.acked_batches),
        .acked_bytes = atomic_load(&s->n.acked_bytes),
        .repaired_pages = atomic_load(&s->n.repaired_pages),
        .resent_batches = atomic_load(&s->n.resent_batches),
        .wire_rate =
            vc_rate_note(&s->rate, vc_now_ns(), vc_link_bytes_sent(s->o.link), s->flow.acked_wire),
        .data_rate = vc_flow_data_rate(&s->flow),
        .ram_known = s->ram_known,
        .ram_bytes = s->ram_known ? vc_ram_bytes(&s->ram) : 0,
        .first_pass_done = s->first_pass_done,
        .stream_ended = s->stream_ended,
        .qemu_hung_up = s->qemu_hung_up,
        .shut = s->shut,
        .shut_status = s->shut_status,
        .success_held = s->o.holds_success && s->shut && !s->shut_status && !s->success_passes,
        .delivered = s->eof_sent && !s->window_head,
        .package_sent = s->package_end,
        .package_delivered = s->package_delivered,
        .failed = s->failed,
        .peer_stream_failed = s->peer_stream_failed,
        .recording = atomic_load(&s->recorder.alive),
        .store_stuck = atomic_load(&s->recorder.stuck),
        .knows_all = !s->lost,
    };
    snprintf(out->reason, sizeof(out->reason), "%s", s->reason);
}

void vc_source_pass_success(struct vc_source *s)
{
    VC_LOCKED(&s->mu);

    s->success_passes = true;
    pthread_cond_broadcast(&s->changed);
}

static int start_threads(struct vc_source *s, struct vc_err *err)
{
    int rc = vc_thread_start(&s->record, "vc-src-record", vc_source_record_main, s, err);

    if (!rc)
        rc = vc_thread_start(&s->send, "vc-src-send", vc_source_send_main, s, err);
    if (!rc)
        rc = vc_src_channel_start(s, err); /* before those that may wake it */
    if (!rc)
        rc = vc_thread_start(&s->receive, "vc-src-recv", vc_source_receive_main, s, err);
    if (!rc)
        rc = vc_thread_start(&s->ingest, "vc-src-ingest", vc_source_ingest_main, s, err);
    return rc;
}

int vc_source_start(const struct vc_source_options *o, struct vc_source **out, struct vc_err *err)
{
    struct vc_source *s = calloc(1, sizeof(*s));
    int rc;

    if (!s) {
        close(o->qemu_fd);
        if (o->listen_fd > 0)
            close(o->listen_fd);
        vc_txn_abort(o->txn);
        return vc_err_set(err, VC_E_NOMEM, "no memory for a session");
    }
    s->o = *o;
    if (o->local_gen)
        vc_gen_read_sparsely(o->local_gen);
    vc_src_channel_init(&s->side, o->listen_fd > 0 ? o->listen_fd : -1);
    atomic_store(&s->pace_limit_ns, o->pace_limit_ns);
    pthread_mutex_init(&s->mu, NULL);
    vc_cond_init(&s->changed);
    vc_queue_init(&s->to_send, TO_SEND_BYTES);
    vc_recorder_init(&s->recorder, o->txn, UINT64_MAX / 2 /* bounded by the buffers */,
                     o->store_patience_ms, o->log);
    vc_remote_init(&s->remote, o->base, o->shared_gen);
    s->remote.log = o->log;
    s->remote.patience_ms = VC_REMOTE_PATIENCE_MS;
    vc_reuse_init(&s->reuse);
    atomic_init(&s->reuse_share, s->reuse.share);
    atomic_init(&s->recent_works, false);
    atomic_init(&s->keeps, o->keeps ? 0 : VC_WIRE_KEEPS_NEW); /* an older one may or may not */
    s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rc = s->event_fd < 0 ? vc_err_set_errno(err, VC_E_FAILED, "cannot make an eventfd") : 0;
    if (!rc)
        rc = vc_slab_pool_init(&s->slabs, SLAB_BYTES, VC_SOURCE_WINDOW_BYTES / SLAB_BYTES, err);
    if (!rc)
        rc = start_threads(s, err);
    if (rc) {
        vc_source_abort(s, err);
        vc_queue_close(&s->recorder.queue); /* there may be no sender who would */
        vc_txn_abort(vc_source_join(s));
        vc_source_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

struct vc_txn *vc_source_join(struct vc_source *s)
{
    vc_thread_join(&s->ingest);
    vc_thread_join(&s->send);
    vc_thread_join(&s->record);
    vc_src_channel_join(s);
    return vc_steal_ptr(s->recorder.txn);
}

static void drop_queues(struct vc_source *s)
{
    struct vc_queue_node *n;

    while ((n = vc_queue_drain(&s->to_send)))
        vc_src_batch_unref((struct vc_src_batch *)n);
    while ((n = vc_queue_drain(&s->recorder.queue)))
        vc_src_batch_unref(vc_src_batch_of_record(n));
    while (s->window_head) {
        struct vc_src_batch *b = s->window_head;

        s->window_head = b->next_sent;
        vc_src_batch_unref(b);
    }
}

void vc_source_free(struct vc_source *s)
{
    if (!s)
        return;
    {
        VC_LOCKED(&s->mu);
        s->stop = true;
        pthread_cond_broadcast(&s->changed);
    }
    vc_link_shutdown(s->o.link);
    vc_txn_abort(vc_source_join(s));
    vc_thread_join(&s->receive);
    drop_queues(s);
    vc_link_stop(s->o.link); /* what it has not sent lies in our buffers */
    vc_remote_fini(&s->remote);
    vc_slab_pool_fini(&s->slabs);
    vc_queue_fini(&s->to_send);
    vc_recorder_fini(&s->recorder);
    close(s->o.qemu_fd);
    vc_src_channel_fini(&s->side);
    if (s->event_fd >= 0)
        close(s->event_fd);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->mu);
    vc_wipe(&s->o.lineage, sizeof(s->o.lineage));
    free(s);
}
