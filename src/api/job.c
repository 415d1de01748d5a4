/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "api/api.h"

void vc_job_close(struct vc_job *j)
{
    if (j->rfd >= 0)
        close(j->rfd);
    if (j->wfd >= 0 && j->wfd != j->rfd)
        close(j->wfd);
    if (j->qemu_fd >= 0)
        close(j->qemu_fd);
    if (j->listen_fd >= 0)
        close(j->listen_fd);
    j->rfd = j->wfd = j->qemu_fd = j->listen_fd = -1;
    vc_conn_close(vc_steal_ptr(j->conn));
}

/* The connection, secured; what the job has of it is taken. */
static int open_connection(struct vc_job *j, const struct vc_cancel *cancel, struct vc_conn **out,
                           struct vc_err *err)
{
    struct vc_tls_options tls = {
        .dir = j->tls_dir,
        .hostname = j->tls_hostname[0] ? j->tls_hostname : NULL,
        .handshake_ms = j->handshake_ms,
        .cancel_fd = cancel ? cancel->fd : -1,
    };
    int rfd = j->rfd, wfd = j->wfd, rc;

    /* Nothing else: an agent must not be made to run a program, or to speak in the clear. */
    if (j->dial && strncmp(j->peer, "tls://", 6) != 0)
        return vc_err_set(err, VC_E_USAGE, "'%.64s' is not a tls:// address", j->peer);
    if (j->dial)
        return vc_conn_dial(j->peer,
                            &(struct vc_dial_options){
                                .tls = &tls,
                                .timeout_ms = (int)j->dead_peer_ms,
                                .cancel_fd = cancel ? cancel->fd : 0,
                            },
                            out, err);
    if (!j->conn) {
        j->rfd = j->wfd = -1;
        return vc_conn_from_fds(rfd, wfd, j->security, j->peer, out, err);
    }
    rc = j->accept_tls ? vc_conn_tls_accept(j->conn, &tls, err) : 0;
    if (!rc)
        *out = vc_steal_ptr(j->conn);
    return rc;
}

static int run_source(struct vc_job *j, struct vc_conn *conn, struct vc_store *store,
                      const struct vc_log *log, struct vc_cancel *cancel, vc_progress_fn progress,
                      void *opaque, struct vc_session_result *result, struct vc_err *err)
{
    bool driven = j->kind == VC_JOB_MIGRATE;
    int fd = vc_steal_fd(&j->qemu_fd);
    struct vc_source_session s = {
        .store = store,
        .log = log,
        .cancel = cancel,
        .progress = progress,
        .opaque = opaque,
        .to = j->peer,
        .tls_hostname = j->dial ? j->tls_hostname : NULL,
        .conn = conn,
        .name = j->name,
        .is_listed = j->allow ? vc_allow_lists : NULL,
        .policy = j->allow,
        .qmp_fd = driven ? fd : -1,
        .qmp_name = j->qmp,
        .must_be_known = j->must_be_known,
        .max_bandwidth = j->max_bandwidth,
        .downtime_limit_ms = j->downtime_limit_ms,
        .dead_peer_ms = j->dead_peer_ms,
        .suspend = j->suspend,
        .postcopy = j->postcopy || j->postcopy_preempt,
        .postcopy_preempt = j->postcopy_preempt,
        .stream_path = j->stream_path,
        .recover = j->recover,
        .auto_converge = j->auto_converge,
        .stream_fd = driven ? -1 : fd,
        .listen_fd = vc_steal_fd(&j->listen_fd),
    };

    if (!driven && !vc_id_parse(j->vm, &s.vm)) {
        close(fd);
        vc_cleanup_close(&s.listen_fd);
        vc_conn_close(conn);
        return vc_err_set(err, VC_E_USAGE, "'%.64s' is not a UUID", j->vm);
    }
    return vc_session_source(&s, result, err);
}

int vc_job_run(struct vc_job *j, struct vc_store *store, const struct vc_log *log,
               struct vc_cancel *cancel, vc_progress_fn progress, void *opaque,
               struct vc_session_result *result, struct vc_err *err)
{
    struct vc_conn *conn;
    int rc;

    *result = (struct vc_session_result){0};
    snprintf(result->peer, sizeof(result->peer), "%.127s", j->peer);
    rc = open_connection(j, cancel, &conn, err);
    if (rc) {
        vc_job_close(j);
        return rc;
    }
    if (j->peer_known && j->accept_tls)
        atomic_store(j->peer_known, true);
    if (j->kind == VC_JOB_RECEIVE) {
        struct vc_dest_session d = {
            .store = store,
            .log = log,
            .cancel = cancel,
            .dead_peer_ms = j->dead_peer_ms,
            .opened = j->opened,
            .opaque = opaque,
            .conn = conn,
            .parking = j->parking,
            .socket_dir = j->socket_dir,
            .may_reach = j->allow ? vc_allow_may_reach : NULL,
            .policy = (void *)(uintptr_t)j->allow,
        };

        return vc_session_dest(&d, result, err);
    }
    return run_source(j, conn, store, log, cancel, progress, opaque, result, err);
}

void vc_job_fold(struct vc_store *store, const struct vc_id *vm, uint32_t min_layers,
                 const _Atomic bool *stop, const struct vc_log *log)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_vm *v;
    bool worth;

    if (vc_vm_open(store, vm, VC_VM_READ, &v, &err))
        return;
    worth = vc_vm_n_generations(v) && vc_vm_generation(v, 0)->n_layers >= min_layers;
    vc_vm_close(v);
    if (worth && vc_vm_fold(store, vm, stop, &err) < 0)
        vc_log_err(log, VC_LOG_WARNING, "the checkpoint was not folded into one file", &err);
}
