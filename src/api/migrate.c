/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/api.h"
#include "base/clock.h"
#include "base/fdio.h"
#include "net/address.h"

/* vecycle_migrate(), vecycle_proxy(), vecycle_receive(): open the descriptors as the caller's user,
 * then run the job in the agent if there is one, else here. */

/** Files that a checkpoint may be spread over before it is folded, where no agent does it at rest.
 */
#define FOLD_LAYERS 5
/** Connections of QEMU that may wait to be accepted: its main one and another. */
#define LISTEN_BACKLOG 2

struct progress {
    vecycle_progress fn;
    void *opaque;
    const unsigned *attempts; /* NULL: one */
};

static void on_progress(void *opaque, const struct vc_session_result *now)
{
    const struct progress *p = opaque;
    struct vecycle_result r;

    if (!p->fn)
        return;
    vc_public_result(now, &r);
    if (p->attempts)
        r.attempts = *p->attempts;
    p->fn(p->opaque, &r);
}

/* Runs a job wherever it belongs; takes its descriptors. */
static int run(const struct vecycle_context *c, struct vc_job *j, struct vecycle_cancel *cancel,
               struct progress *p, struct vc_session_result *result, struct vc_err *err)
{
    const char *control = vc_public_control(c);
    struct vc_log log = vc_public_log(c);
    struct vc_cancel *vc = cancel ? &cancel->c : NULL;
    struct vc_store *store = NULL;
    int rc = VC_NOT_FOUND;

    if (control)
        rc = vc_agent_call(control, j, &log, vc, on_progress, p, result, err);
    if (rc != VC_NOT_FOUND)
        return rc;
    rc = vc_public_store(c, true, &store, err);
    if (rc && c->store) { /* named by the user, and plainly wrong */
        vc_job_close(j);
        return rc;
    }
    if (rc) {
        vc_log_err(&log, VC_LOG_WARNING,
                   "the store cannot be opened: no reuse, no checkpoint, and no record of this "
                   "migration",
                   err);
        store = NULL;
    }
    rc = vc_job_run(j, store, &log, vc, on_progress, p, result, err);
    if (!rc && result->committed)
        vc_job_fold(store, &result->vm, FOLD_LAYERS, NULL, &log);
    if (store)
        vc_forget(store, &log, NULL);
    vc_store_close(store);
    return rc;
}

static int dup_cloexec(int fd)
{
    return fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

static int copy_text(char out[VC_JOB_TEXT_BYTES], const char *text, const char *what,
                     struct vc_err *err)
{
    if (snprintf(out, VC_JOB_TEXT_BYTES, "%s", text ? text : "") >= VC_JOB_TEXT_BYTES)
        return vc_err_set(err, VC_E_USAGE, "%s is too long", what);
    return 0;
}

/* TLS is spoken by whoever runs the job. */
static int dial_later(struct vc_job *j, const struct vecycle_tls *tls, struct vc_err *err)
{
    j->dial = true;
    j->security = VC_CONN_ENCRYPTED;
    j->tls_dir = tls->dir;
    j->handshake_ms = vc_public_tls(tls, NULL).handshake_ms;
    return copy_text(j->tls_hostname, tls->hostname, "the host's name", err);
}

/* Dials, and puts copies of the descriptors into the job; *conn keeps a child process alive. */
static int dial(const struct vecycle_context *c, struct vc_job *j, const struct vc_dial_options *o,
                const struct vecycle_tls *tls, struct vc_conn **conn, struct vc_err *err)
{
    struct vc_log log = vc_public_log(c);
    int rfd, wfd, rc;

    if (!strncmp(j->peer, "tls://", 6))
        return dial_later(j, tls, err);
    rc = vc_conn_dial(j->peer, o, conn, err);
    if (rc)
        return rc;
    vc_public_warn_plaintext(&log, *conn);
    vc_conn_fds(*conn, &rfd, &wfd);
    j->security = vc_conn_security(*conn);
    j->rfd = dup_cloexec(rfd);
    j->wfd = wfd == rfd ? j->rfd : dup_cloexec(wfd);
    return j->rfd < 0 || j->wfd < 0 ? vc_err_set_errno(err, VC_E_FAILED, "no more descriptors") : 0;
}

static int finish(int rc, struct vc_job *j, struct vc_conn *conn, const struct vc_session_result *r,
                  struct vecycle_result *result, const struct vc_err *e, struct vecycle_error *err)
{
    vc_job_close(j);
    vc_conn_close(conn);
    if (result)
        vc_public_result(r, result);
    return vc_public_error(rc, e, err);
}

struct migration {
    const struct vecycle_context *c;
    const struct vecycle_migrate_options *o;
    struct progress progress;
    const struct vc_log *log;
    char to[VC_JOB_TEXT_BYTES];
};

/* By a descriptor, and only what this process has made a moment ago: QEMU's user may write in the
 * directory, and put something else in its place. */
static int give_socket(const char *path, uid_t user)
{
    vc_auto_close int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0)
        return -1;
    if (!S_ISSOCK(st.st_mode) || st.st_uid != geteuid() || st.st_nlink != 1) {
        errno = EPERM;
        return -1;
    }
    return fchownat(fd, "", user, (gid_t)-1, AT_EMPTY_PATH);
}

/* A QEMU with a preempt connection connects by itself, to a socket beside that of its QMP. An
 * interrupted migration may have had one. */
static int listen_for_qemu(struct vc_job *j, struct vc_err *err)
{
    struct ucred qemu;
    socklen_t n = sizeof(qemu);

    snprintf(j->stream_path, sizeof(j->stream_path), "%s.%u.stream", j->qmp, (unsigned)getpid());
    j->listen_fd = vc_unix_listen(j->stream_path, 0600, LISTEN_BACKLOG);
    if (j->listen_fd < 0) {
        int rc = vc_err_set_errno_hint(err, VC_E_FAILED, vc_listen_hint(errno),
                                       "cannot listen on '%.160s'", j->stream_path);

        j->stream_path[0] = 0; /* it is not ours to remove */
        return rc;
    }
    /* QEMU may have another user. */
    if (geteuid() == 0 && !getsockopt(j->qemu_fd, SOL_SOCKET, SO_PEERCRED, &qemu, &n) &&
        qemu.uid != 0 && give_socket(j->stream_path, qemu.uid) < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot give '%.160s' to QEMU's user",
                                j->stream_path);
    return 0;
}

/* What is wrong with the way to QEMU, and what to do about it. */
static int qmp_failed(const char *path, struct vc_err *err)
{
    const char *hint;

    switch (errno) {
    case ENOENT:
    case ENOTDIR:
        hint = "start QEMU with -qmp unix:PATH,server=on,wait=off";
        break;
    case ECONNREFUSED:
        hint = "no QEMU listens there any more: is it running?";
        break;
    case EACCES:
    case EPERM:
        hint = "become QEMU's user, or root";
        break;
    case EAGAIN:
        hint = "QEMU serves one client at a time: give it a second -qmp for vecycle";
        break;
    default:
        hint = "see -qmp in qemu(1)";
    }
    return vc_err_set_errno_hint(err, VC_E_QMP_CONNECT, hint,
                                 "cannot connect to the QMP socket '%.120s'", path);
}

static int fill_job(const struct vecycle_migrate_options *o, struct vc_job *j, struct vc_err *err)
{
    int rc = copy_text(j->name, o->name, "the name", err);

    j->kind = VC_JOB_MIGRATE;
    j->max_bandwidth = o->max_bandwidth;
    j->suspend = o->suspend;
    j->postcopy = o->postcopy;
    j->postcopy_preempt = o->postcopy_preempt;
    j->recover = o->recover;
    j->auto_converge = o->auto_converge;
    j->dead_peer_ms = o->dead_peer_ms;
    j->downtime_limit_ms = o->downtime_limit_ms;
    if (!rc)
        rc = vc_public_path(o->qmp, "the QMP socket's path", j->qmp, err);
    if (rc)
        return rc;
    j->qemu_fd = vc_unix_connect(o->qmp);
    if (j->qemu_fd < 0)
        return qmp_failed(o->qmp, err);
    if (o->recover && listen_for_qemu(j, err))
        return 0; /* it may do without */
    return o->postcopy_preempt && !o->recover ? listen_for_qemu(j, err) : 0;
}

/* One attempt: connections and session are new. */
static int migrate_once(void *opaque, struct vc_session_result *r, struct vc_err *err)
{
    struct migration *m = opaque;
    const struct vecycle_migrate_options *o = m->o;
    struct vc_dial_options d = vc_public_dial(m->log, o->cancel);
    struct vc_job j = VC_JOB_INIT;
    struct vc_conn *conn = NULL;
    int rc;

    *r = (struct vc_session_result){0};
    *err = VC_ERR_INIT;
    d.timeout_ms = (int)o->dead_peer_ms;
    d.insecure = o->insecure;
    d.ssh = o->ssh;
    d.remote = o->remote;
    snprintf(j.peer, sizeof(j.peer), "%s", m->to);
    rc = fill_job(o, &j, err);
    if (!rc)
        rc = dial(m->c, &j, &d, &o->tls, &conn, err);
    if (!rc) {
        rc = run(m->c, &j, o->cancel, &m->progress, r, err);
        if (rc)
            vc_conn_blame(conn, err);
    }
    if (j.stream_path[0])
        unlink(j.stream_path);
    vc_job_close(&j);
    vc_conn_close(conn);
    return rc;
}

int vecycle_migrate(const struct vecycle_context *c, const struct vecycle_migrate_options *o,
                    struct vecycle_result *result, struct vecycle_error *err)
{
    struct migration m = {
        .c = c,
        .o = o,
        .progress = {.fn = o->progress, .opaque = o->opaque},
    };
    struct vc_log log = vc_public_log(c);
    struct vc_retry t = {
        .retries = o->retries,
        .log = &log,
        .cancel = o->cancel ? &o->cancel->c : NULL,
        .once = migrate_once,
        .opaque = &m,
    };
    struct vc_session_result r = {0};
    struct vc_err e = VC_ERR_INIT;
    int rc;

    m.progress.attempts = &t.attempts;
    m.log = &log;
    rc = vc_public_address(o->to, m.to, &e);
    t.authenticates = vc_address_is_ssh(m.to) || !strncmp(m.to, "tls:", 4);
    if (!rc)
        rc = vc_retry_run(&t, &r, &e);
    if (result) {
        vc_public_result(&r, result);
        result->attempts = t.attempts;
    }
    return vc_public_error(rc, &e, err);
}

/* One connection to a Unix socket, which stays for a second one: at its path until unlinked. */
static int accept_stream(const struct vecycle_proxy_options *o, int *fd_out, int *listener_out,
                         struct vc_err *err)
{
    vc_auto_close int listener = vc_unix_listen(o->listen, 0600, LISTEN_BACKLOG);
    struct pollfd p[2] = {
        {.fd = listener, .events = POLLIN},
        {.fd = o->cancel ? o->cancel->c.fd : -1, .events = POLLIN},
    };
    uint64_t deadline = vc_now_ns() + (uint64_t)o->wait_ms * VC_NS_PER_MS;
    int n;

    if (listener < 0)
        return vc_err_set_errno_hint(err, VC_E_FAILED, vc_listen_hint(errno),
                                     "cannot listen on '%.160s'", o->listen);
    if (o->listening)
        o->listening(o->opaque);
    do {
        uint64_t now = vc_now_ns();
        int left = now < deadline ? (int)((deadline - now) / VC_NS_PER_MS) + 1 : 0;

        n = poll(p, 2, o->wait_ms ? left : -1);
    } while (n < 0 && errno == EINTR);
    *fd_out = n <= 0 || p[1].revents ? -1 : vc_accept_waiting(listener);
    if (*fd_out >= 0) {
        *listener_out = vc_steal_fd(&listener);
        return 0;
    }
    if (n > 0 && !p[1].revents)
        vc_err_set_errno(err, VC_E_FAILED, "cannot accept on '%.160s'", o->listen);
    else if (n > 0)
        vc_err_set(err, VC_E_CANCELLED, "cancelled before a migration came");
    else
        vc_err_set_hint(err, VC_E_CANCELLED, "see --wait", "no migration came within %u s",
                        o->wait_ms / 1000);
    unlink(o->listen);
    return err->code;
}

/* While the other host is dialled two things end it: a cancellation, and a QEMU that hangs up,
 * since whoever drives it has given up. A descriptor that is readable then; -1: none is to be had,
 * and nothing is lost but time. */
static int watch_for_end(int qemu_fd, const struct vecycle_cancel *cancel)
{
    vc_auto_close int both = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event hang_up = {.events = EPOLLRDHUP}, in = {.events = EPOLLIN};

    if (both < 0 || epoll_ctl(both, EPOLL_CTL_ADD, qemu_fd, &hang_up) < 0 ||
        (cancel && epoll_ctl(both, EPOLL_CTL_ADD, cancel->c.fd, &in) < 0))
        return -1;
    return vc_steal_fd(&both);
}

static int dial_for_qemu(const struct vecycle_context *c, const struct vecycle_proxy_options *o,
                         struct vc_job *j, struct vc_dial_options *d, struct vc_conn **conn,
                         struct vc_err *err)
{
    vc_auto_close int end = watch_for_end(j->qemu_fd, o->cancel);
    int rc;

    if (end >= 0)
        d->cancel_fd = end;
    rc = dial(c, j, d, &o->tls, conn, err);
    if (rc == VC_E_CANCELLED && !(o->cancel && vc_cancel_is_set(&o->cancel->c)))
        rc = vc_err_set(err, VC_E_MIGRATION,
                        "the source QEMU gave the migration up before '%.100s' was reached",
                        j->peer);
    return rc;
}

/* What this host alone can tell, and whether the other one can be reached at all: before QEMU is
 * let in, which would pause for it. */
static int check_proxy(const struct vecycle_context *c, const struct vecycle_proxy_options *o,
                       struct vc_job *j, const struct vc_dial_options *d, struct vc_err *err)
{
    struct vc_id id;
    int rc = copy_text(j->name, o->name, "the name", err);

    if (!rc && (!vc_id_parse(o->vm, &id) || vc_id_is_nil(&id)))
        rc = vc_err_set_hint(err, VC_E_USAGE, "`virsh domuuid`, or QMP query-uuid, tells it",
                             "'%.64s' is not the UUID of a VM", o->vm);
    if (!rc) {
        vc_id_format(&id, j->vm);
        rc = vc_public_address(o->to, j->peer, err);
    }
    return rc ? rc
              : vc_probe(j->peer, d, &o->tls, vc_public_control(c), o->dead_peer_ms, o->cancel,
                         err);
}

int vecycle_proxy(const struct vecycle_context *c, const struct vecycle_proxy_options *o,
                  struct vecycle_result *result, struct vecycle_error *err)
{
    struct vc_job j = VC_JOB_INIT;
    struct vc_session_result r = {0};
    struct vc_err e = VC_ERR_INIT;
    struct vc_conn *conn = NULL;
    struct progress p = {.fn = o->progress, .opaque = o->opaque};
    struct vc_log log = vc_public_log(c);
    struct vc_dial_options d = vc_public_dial(&log, o->cancel);
    bool accepted = false;
    int rc;

    d.timeout_ms = (int)o->dead_peer_ms;
    d.insecure = o->insecure;
    d.ssh = o->ssh;
    d.remote = o->remote;
    j.kind = VC_JOB_PROXY;
    j.downtime_limit_ms = o->downtime_limit_ms;
    j.dead_peer_ms = o->dead_peer_ms;
    rc = check_proxy(c, o, &j, &d, &e);
    if (!rc) {
        rc = accept_stream(o, &j.qemu_fd, &j.listen_fd, &e);
        accepted = !rc;
    }
    if (!rc)
        rc = dial_for_qemu(c, o, &j, &d, &conn, &e);
    if (!rc) {
        rc = run(c, &j, o->cancel, &p, &r, &e);
        if (rc)
            vc_conn_blame(conn, &e);
    }
    if (accepted)
        unlink(o->listen);
    return finish(rc, &j, conn, &r, result, &e, err);
}

int vecycle_receive(const struct vecycle_context *c, const struct vecycle_receive_options *o,
                    struct vecycle_result *result, struct vecycle_error *err)
{
    struct vc_job j = VC_JOB_INIT;
    struct vc_session_result r = {0};
    struct vc_err e = VC_ERR_INIT;
    struct progress p = {0};
    int rc = copy_text(j.peer, o->peer ? o->peer : "peer", "the peer's name", &e);

    j.kind = VC_JOB_RECEIVE;
    j.dead_peer_ms = o->dead_peer_ms;
    j.security = o->encrypted ? VC_CONN_ENCRYPTED : VC_CONN_LOCAL;
    if (!rc)
        rc = vc_public_path(o->socket_dir ? o->socket_dir : vecycle_default_socket_dir(),
                            "the socket directory's path", j.socket_dir, &e);
    if (!rc) {
        j.rfd = dup_cloexec(o->rfd);
        j.wfd = o->wfd == o->rfd ? j.rfd : dup_cloexec(o->wfd);
        if (j.rfd < 0 || j.wfd < 0)
            rc = vc_err_set_errno(&e, VC_E_FAILED, "no more descriptors");
    }
    if (!rc)
        rc = run(c, &j, o->cancel, &p, &r, &e);
    return finish(rc, &j, NULL, &r, result, &e, err);
}
