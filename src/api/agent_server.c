/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <grp.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/api.h"
#include "api/sandbox.h"
#include "base/fdio.h"
#include "base/thread.h"
#include "session/parking.h"

/* Theory of operation
 *
 * One thread waits for connections: from other hosts (each becomes a session as destination) and on
 * the control socket (each hands over one job). Every session runs in a thread of its own, which
 * shakes hands with the peer or reads the client's request, so that a slow one holds nobody up, and
 * reports on its control connection; the waiting thread watches that connection for a cancellation
 * or its end, both of which end the session. What a client reads too slowly is dropped, but for the
 * last line: nobody's terminal holds up a migration.
 *
 * Sessions are limited in number, and apart from them those of peers and clients that have not said
 * yet what they want: while there is no room, nobody else is let in, and one of them has to go. */

#define MAX_LISTENERS 8
#define MAX_SESSIONS 64
/* Beside these, peers and clients that have not got past the opening, TLS handshake included, which
 * takes an honest one a moment: whoever fills all places must keep coming back faster than that. */
#define MAX_UNOPENED 16
#define MAX_POLLED (3 + MAX_LISTENERS + MAX_SESSIONS + MAX_UNOPENED)
/* When there are no descriptors left for another connection. */
#define REST_MS 200
#define END_TIMEOUT_S 5

struct agent;

struct session {
    struct agent *agent;
    struct session *next;
    struct vc_thread thread;
    struct vc_job job; /* [thread: session] */
    struct vc_cancel cancel;
    int control;            /* connection of the client, or -1 */
    struct vc_log log;      /* to the client and to the agent's own log */
    atomic_bool peer_known; /* TLS: its certificate is verified */
    atomic_bool opened;     /* the request was read; a peer is past the opening */
    atomic_bool finished;
};

struct agent {
    const struct vecycle_agent_options *o;
    struct vc_log log;
    struct vc_store *store;
    struct vc_keeper *keeper;
    struct vc_sandbox_user user;
    const char *socket_dir;
    struct vc_parking *parking;
    struct vc_listener *listeners[MAX_LISTENERS];
    size_t n_listeners;
    int control; /* listening */
    char control_path[108];
    int wake;                 /* eventfd: a session has finished */
    struct session *sessions; /* [thread: main] */
    size_t n_sessions;
    struct vc_settler *settler;
    bool tired;       /* [thread: main] a connection could not be taken */
    atomic_bool stop; /* for what goes on in the background */
};

/* ---- one session ---- */

static void send_line(struct session *s, const char *key, struct json_object *value, bool last)
{
    vc_auto_json struct json_object *o = json_object_new_object();
    vc_auto_free char *line = NULL;
    int n;

    json_object_object_add(o, key, value);
    n = asprintf(&line, "%s\n", vc_json_line(o));
    if (n < 0) {
        line = NULL;
        return;
    }
    /* All or nothing: a torn line would garble what follows. A stream socket takes a small write
     * whole or not at all unless it is nearly full, and then the client is cut off. */
    if (s->control >= 0) {
        ssize_t put = send(s->control, line, (size_t)n, MSG_NOSIGNAL | (last ? 0 : MSG_DONTWAIT));

        if (put > 0 && put < n)
            shutdown(s->control, SHUT_RDWR);
    }
}

static void on_log(void *opaque, enum vc_log_level level, const char *text)
{
    struct session *s = opaque;

    if (s->control >= 0) {
        struct json_object *o = json_object_new_object();

        vc_json_add_u64(o, "level", level);
        vc_json_add_str(o, "text", text);
        send_line(s, "log", o, false);
    }
    vc_log(&s->agent->log, level, "%s", text);
}

static void on_progress(void *opaque, const struct vc_session_result *now)
{
    send_line(opaque, "progress", vc_result_to_json(now), false);
}

static void report_end(struct session *s, const struct vc_session_result *r, int rc,
                       const struct vc_err *err)
{
    struct timeval limit = {.tv_sec = END_TIMEOUT_S};
    struct json_object *end = json_object_new_object();

    if (rc < 0)
        json_object_object_add(end, "error", vc_error_to_json(err));
    if (s->control >= 0)
        setsockopt(s->control, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    send_line(s, "result", vc_result_to_json(r), true);
    send_line(s, "end", end, true);
}

static void wake_agent(struct agent *a)
{
    uint64_t one = 1;

    if (write(a->wake, &one, sizeof(one)) < 0) {
        /* Full means: awake already. */
    }
}

/* The descriptors that came with a job: its connection, unless it is yet to be made, and QEMU's.
 * True: some are missing. The job owns what there is. */
static bool take_fds(struct vc_job *job, const int fds[4], size_t n)
{
    bool source = job->kind != VC_JOB_RECEIVE;

    if (job->dial) {
        job->qemu_fd = n > 0 ? fds[0] : -1;
        job->listen_fd = n > 1 ? fds[1] : -1;
        job->rfd = n > 2 ? fds[2] : -1; /* not wanted: to be closed */
        job->wfd = n > 3 ? fds[3] : -1;
        return !source || n < 1 || n > 2;
    }
    job->rfd = n > 0 ? fds[0] : -1;
    job->wfd = n > 1 ? fds[1] : -1;
    job->qemu_fd = n > 2 ? fds[2] : -1;
    job->listen_fd = n > 3 ? fds[3] : -1;
    return n < 2 || (source && n < 3);
}

/* A client sends its request at once; it is read in one piece, with a time limit. */
static int read_request(struct session *s, struct vc_err *err)
{
    struct timeval limit = {.tv_sec = END_TIMEOUT_S};
    vc_auto_json struct json_object *o = NULL;
    char line[VC_CONTROL_MAX_LINE_BYTES];
    int fds[4] = {-1, -1, -1, -1}, rc;
    size_t n_fds = 0;
    ssize_t n;

    setsockopt(s->control, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    n = vc_recv_fds(s->control, line, sizeof(line), fds, 4, &n_fds);
    limit.tv_sec = 0;
    setsockopt(s->control, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    if (n > 0 && line[n - 1] == '\n')
        o = vc_json_parse(line, (size_t)n - 1);
    rc = o ? vc_job_from_json(o, &s->job, err)
           : vc_err_set(err, VC_E_PROTOCOL, "control socket: not a request");
    if (take_fds(&s->job, fds, n_fds) && !rc)
        rc = vc_err_set(err, VC_E_PROTOCOL, "control socket: descriptors are missing");
    return rc;
}

static void on_opened(void *opaque)
{
    struct session *s = opaque;

    atomic_store(&s->opened, true);
    wake_agent(s->agent); /* which watches the client from now on */
}

static int run_job(struct session *s, struct vc_session_result *r, struct vc_err *err)
{
    struct agent *a = s->agent;
    int rc = 0;

    *r = (struct vc_session_result){0};
    if (s->control >= 0) {
        rc = read_request(s, err);
        if (!rc)
            on_opened(s);
    }
    if (rc)
        return rc;
    if (!s->job.dead_peer_ms)
        s->job.dead_peer_ms = a->o->dead_peer_ms;
    s->job.opened = on_opened;
    return vc_job_run(&s->job, a->store, &s->log, &s->cancel, on_progress, s, r, err);
}

static void *session_main(void *arg)
{
    struct session *s = arg;
    struct agent *a = s->agent;
    struct vc_session_result r;
    struct vc_err err = VC_ERR_INIT;
    char vm[VC_ID_TEXT_BYTES];
    int rc = run_job(s, &r, &err);

    report_end(s, &r, rc, &err);
    vc_id_format(&r.vm, vm);
    if (rc)
        vc_log_err(&a->log, VC_LOG_ERROR, vc_id_is_nil(&r.vm) ? "a connection ended" : vm, &err);
    else
        vc_log(&a->log, VC_LOG_INFO, "%s: migrated %s '%s': %llu pages reused, %llu sent", vm,
               s->job.kind == VC_JOB_RECEIVE ? "from" : "to", r.peer,
               (unsigned long long)r.pages_same, (unsigned long long)r.pages_data);
    if (rc && s->job.kind == VC_JOB_MIGRATE)
        vc_settler_kick(a->settler);
    if (!rc && r.committed)
        vc_job_fold(a->store, &r.vm, 2, &a->stop, &a->log);
    vc_keeper_poke(a->keeper);
    atomic_store(&s->finished, true);
    wake_agent(a);
    return NULL;
}

static void free_session(struct session *s)
{
    vc_job_close(&s->job);
    vc_cancel_fini(&s->cancel);
    if (s->control >= 0)
        close(s->control);
    free(s);
}

/* ---- those who have not said what they want ---- */

static unsigned count_unopened(const struct agent *a)
{
    unsigned n = 0;

    for (const struct session *s = a->sessions; s; s = s->next)
        n += !atomic_load(&s->opened);
    return n;
}

/* Whether one was sent away and has not gone yet. */
static bool one_is_leaving(const struct agent *a)
{
    for (const struct session *s = a->sessions; s; s = s->next)
        if (!atomic_load(&s->opened) && vc_cancel_is_set(&s->cancel))
            return true;
    return false;
}

/* Who has to go: the oldest one, but no peer with a certificate for the sake of who may have none.
 */
static struct session *choose_one(const struct agent *a)
{
    struct session *unknown = NULL, *known = NULL;

    for (struct session *s = a->sessions; s; s = s->next) /* the newest comes first */
        if (atomic_load(&s->opened))
            continue;
        else if (atomic_load(&s->peer_known))
            known = s;
        else
            unknown = s;
    return unknown ? unknown : known;
}

/* Whether another connection may come in now. If not, one is sent away, and its end wakes us. */
static bool make_room(struct agent *a)
{
    struct session *s;

    if (count_unopened(a) < MAX_UNOPENED)
        return true;
    s = one_is_leaving(a) ? NULL : choose_one(a);
    if (s) {
        vc_log(&a->log, VC_LOG_WARNING, "too many idle connections: the oldest one is closed");
        vc_cancel_now(&s->cancel);
        if (s->control >= 0)
            shutdown(s->control, SHUT_RDWR);
    }
    return false;
}

/* Whether to look for new connections at all: not while one has to end first. */
static bool is_open(const struct agent *a)
{
    return !a->tired && (count_unopened(a) < MAX_UNOPENED || !one_is_leaving(a));
}

/* ---- starting and ending sessions ---- */

/* Starts a session; the job's descriptors and @control are taken. */
static void start_session(struct agent *a, struct vc_job *job, int control)
{
    struct session *s = calloc(1, sizeof(*s));
    struct vc_err err = VC_ERR_INIT;
    int rc;

    if (!s) {
        vc_job_close(job);
        if (control >= 0)
            close(control);
        return;
    }
    s->agent = a;
    s->job = *job;
    s->control = control;
    s->cancel.fd = -1;
    s->job.peer_known = &s->peer_known;
    s->job.tls_dir = a->o->tls.dir;
    s->job.handshake_ms = vc_public_tls(&a->o->tls, NULL).handshake_ms;
    s->log = (struct vc_log){.fn = on_log, .opaque = s, .max = VC_LOG_DEBUG};
    snprintf(s->job.socket_dir, sizeof(s->job.socket_dir), "%s", a->socket_dir);
    s->job.parking = a->parking;
    rc = a->n_sessions - count_unopened(a) < MAX_SESSIONS
             ? vc_cancel_init(&s->cancel, &err)
             : vc_err_set(&err, VC_E_BUSY, "%u migrations run already", MAX_SESSIONS);
    if (!rc)
        rc = vc_thread_start(&s->thread, "vc-session", session_main, s, &err);
    if (rc) {
        struct vc_session_result none = {0};

        vc_log_err(&a->log, VC_LOG_ERROR, "a session was refused", &err);
        report_end(s, &none, rc, &err);
        free_session(s);
        return;
    }
    s->next = a->sessions;
    a->sessions = s;
    a->n_sessions++;
}

static void reap(struct agent *a)
{
    struct session **at = &a->sessions;

    while (*at) {
        struct session *s = *at;

        if (!atomic_load(&s->finished)) {
            at = &s->next;
            continue;
        }
        *at = s->next;
        a->n_sessions--;
        vc_thread_join(&s->thread);
        free_session(s);
    }
}

/* ---- connections ---- */

static void on_peer(struct agent *a, struct vc_listener *l)
{
    struct vc_job job = VC_JOB_INIT;
    struct vc_conn *conn;
    struct vc_err err = VC_ERR_INIT;
    int rc = vc_listener_accept(l, &conn, &err);

    if (rc) {
        a->tired = true;
        vc_log_err(&a->log, VC_LOG_WARNING, "a connection was lost", &err);
        return;
    }
    job.kind = VC_JOB_RECEIVE;
    job.security = vc_conn_security(conn);
    snprintf(job.peer, sizeof(job.peer), "%s", vc_conn_describe(conn));
    job.conn = conn;
    job.accept_tls = vc_listener_is_tls(l);
    job.allow = job.accept_tls ? a->o->allow : NULL;
    start_session(a, &job, -1);
}

static void on_client(struct agent *a)
{
    struct vc_job none = VC_JOB_INIT;
    int fd = accept4(a->control, NULL, NULL, SOCK_CLOEXEC);

    if (fd >= 0)
        start_session(a, &none, fd);
    else
        a->tired = true;
}

/* Anything that a client says later, or its end, cancels. */
static void on_client_says(struct session *s)
{
    char buf[256];
    ssize_t n = recv(s->control, buf, sizeof(buf), MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    vc_cancel_now(&s->cancel);
    if (n <= 0) {
        /* Not closed: the session's thread may be writing to it. */
        shutdown(s->control, SHUT_RDWR);
    }
}

/* ---- the agent ---- */

static int make_dirs(struct agent *a, struct vc_err *err)
{
    if (mkdir(a->socket_dir, 0755) == 0) {
        if (a->user.name && chown(a->socket_dir, a->user.uid, a->user.gid) < 0)
            return vc_err_set_errno(err, VC_E_FAILED, "cannot give '%s' to user '%s'",
                                    a->socket_dir, a->user.name);
    } else if (errno != EEXIST)
        return vc_err_set_errno_hint(err, VC_E_FAILED, "see --socket-dir",
                                     "cannot make the socket directory '%s'", a->socket_dir);
    return 0;
}

static int open_control(struct agent *a, const char *path, struct vc_err *err)
{
    struct group *g = NULL;

    if (!path)
        return 0;
    if (snprintf(a->control_path, sizeof(a->control_path), "%s", path) >=
        (int)sizeof(a->control_path))
        return vc_err_set(err, VC_E_USAGE, "the control socket's path is too long");
    if (a->o->control_group && !(g = getgrnam(a->o->control_group)))
        return vc_err_set(err, VC_E_USAGE, "there is no group '%s'", a->o->control_group);
    a->control = vc_unix_listen(path, g ? 0660 : 0600, 16);
    if (a->control < 0)
        return vc_err_set_errno_hint(err, errno == EADDRINUSE ? VC_E_BUSY : VC_E_FAILED,
                                     errno == EADDRINUSE ? "one agent per host is enough"
                                                         : "see --control",
                                     "cannot listen on the control socket '%s'", path);
    if (a->user.name && chown(path, a->user.uid, (gid_t)-1) < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot give '%s' to user '%s'", path,
                                a->user.name);
    if (g && chown(path, (uid_t)-1, g->gr_gid) < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot give '%s' to group '%s'", path,
                                a->o->control_group);
    return 0;
}

static bool has_scheme(const char *address, const char *scheme)
{
    return !strncmp(address, scheme, strlen(scheme));
}

/* What would be wrong with every connection is said now. */
static int check_listener(struct agent *a, const char *address, struct vc_err *err)
{
    if (has_scheme(address, "tls://"))
        return vc_tls_check(a->o->tls.dir, VC_TLS_SERVER, err);
    if (!has_scheme(address, "tcp://"))
        return 0;
    if (a->o->allow)
        return vc_err_set_hint(err, VC_E_USAGE, "peers have names on tls:// alone",
                               "--allow cannot be kept at '%.64s'", address);
    if (a->o->insecure)
        vc_log(&a->log, VC_LOG_WARNING,
               "'%s' takes VMs' memory in the clear, from anybody who can reach it", address);
    return 0;
}

static int open_listener(struct agent *a, const char *address, struct vc_err *err)
{
    int rc = check_listener(a, address, err);

    if (!rc)
        rc = vc_listener_open(address, a->o->insecure, 0600, &a->listeners[a->n_listeners], err);
    if (rc)
        return rc;
    a->n_listeners++;
    if (a->user.name && has_scheme(address, "unix:") &&
        chown(address + strlen("unix:"), a->user.uid, a->user.gid) < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot give '%s' to user '%s'", address,
                                a->user.name);
    return 0;
}

static int open_listeners(struct agent *a, struct vc_err *err)
{
    int rc = a->o->allow ? vc_allow_check(a->o->allow, err) : 0;

    if (!rc && a->o->n_listen > MAX_LISTENERS)
        rc = vc_err_set(err, VC_E_USAGE, "more than %d addresses to listen on", MAX_LISTENERS);
    for (size_t i = 0; i < a->o->n_listen && !rc; i++)
        rc = open_listener(a, a->o->listen[i], err);
    return rc;
}

/* Everything is open that needs privileges: gives up those, then what is not needed any more. */
static int give_up_privileges(struct agent *a, const struct vecycle_context *c, struct vc_err *err)
{
    struct vc_err no_tls = VC_ERR_INIT;
    int rc = vc_sandbox_give_store(&a->user, c->store ? c->store : vecycle_default_store(), err);

    if (!rc)
        rc = vc_sandbox_become(&a->user, err);
    if (!rc)
        rc = vc_public_store(c, true, &a->store, err);
    if (rc || a->o->sandbox == VECYCLE_SANDBOX_OFF)
        return rc;
    /* It calls other hosts where it has the means to: to migrate there, or to settle what is open.
     */
    rc = vc_sandbox_enter(a->o->sandbox == VECYCLE_SANDBOX_STRICT,
                          a->o->insecure || !vc_tls_check(a->o->tls.dir, VC_TLS_CLIENT, &no_tls),
                          err);
    if (rc == VC_NOT_FOUND)
        vc_log(&a->log, VC_LOG_INFO, "this build does not filter system calls");
    return rc == VC_NOT_FOUND ? 0 : rc;
}

static void serve(struct agent *a)
{
    struct pollfd p[MAX_POLLED];
    struct session *of[MAX_POLLED];
    bool stop = false;

    while (!stop) {
        bool open = is_open(a);
        nfds_t n = 0, first_session;
        uint64_t count;
        int ready;

        p[n++] = (struct pollfd){.fd = a->o->cancel ? a->o->cancel->c.fd : -1, .events = POLLIN};
        p[n++] = (struct pollfd){.fd = a->wake, .events = POLLIN};
        p[n++] = (struct pollfd){.fd = open ? a->control : -1, .events = POLLIN};
        for (size_t i = 0; i < a->n_listeners; i++)
            p[n++] = (struct pollfd){.fd = open ? vc_listener_fd(a->listeners[i]) : -1,
                                     .events = POLLIN};
        first_session = n;
        for (struct session *s = a->sessions; s; s = s->next)
            if (s->control >= 0 && atomic_load(&s->opened) && !vc_cancel_is_set(&s->cancel)) {
                of[n] = s;
                p[n++] = (struct pollfd){.fd = s->control, .events = POLLIN};
            }
        ready = poll(p, n, a->tired ? REST_MS : -1);
        a->tired = false;
        if (ready < 0)
            continue;
        stop = p[0].revents;
        if (p[1].revents && read(a->wake, &count, sizeof(count)) < 0)
            continue;
        for (nfds_t i = first_session; i < n; i++)
            if (p[i].revents)
                on_client_says(of[i]);
        if (p[2].revents && make_room(a))
            on_client(a);
        for (size_t i = 0; i < a->n_listeners; i++)
            if (p[3 + i].revents && make_room(a))
                on_peer(a, a->listeners[i]);
        reap(a);
    }
}

static void shut_down(struct agent *a)
{
    atomic_store(&a->stop, true);
    for (size_t i = 0; i < a->n_listeners; i++)
        vc_listener_close(a->listeners[i]);
    if (a->control >= 0) {
        close(a->control);
        unlink(a->control_path);
    }
    for (struct session *s = a->sessions; s; s = s->next)
        vc_cancel_now(&s->cancel);
    while (a->sessions) {
        struct session *s = a->sessions;

        a->sessions = s->next;
        vc_thread_join(&s->thread);
        free_session(s);
    }
    vc_keeper_stop(a->keeper);
    vc_settler_stop(a->settler);
    vc_parking_free(a->parking);
    if (a->wake >= 0)
        close(a->wake);
    vc_store_close(a->store);
}

int vecycle_agent_run(const struct vecycle_context *c, const struct vecycle_agent_options *o,
                      struct vecycle_error *err)
{
    struct agent a = {.o = o, .log = vc_public_log(c), .control = -1};
    struct vc_err e = VC_ERR_INIT;
    int rc;

    vc_sandbox_protect_memory();
    a.socket_dir = o->socket_dir ? o->socket_dir : vecycle_default_socket_dir();
    a.parking = vc_parking_new();
    a.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rc = a.wake < 0 ? vc_err_set_errno(&e, VC_E_FAILED, "cannot make an eventfd") : 0;
    if (!rc)
        rc = vc_sandbox_find_user(o->user, &a.user, &e);
    if (!rc)
        rc = make_dirs(&a, &e);
    if (!rc)
        rc = open_control(&a, vc_public_control(c), &e);
    if (!rc)
        rc = open_listeners(&a, &e);
    if (!rc)
        rc = give_up_privileges(&a, c, &e);
    if (!rc)
        rc = vc_settler_start(a.store, a.socket_dir, &a.log, o->insecure, &o->tls, &a.settler, &e);
    if (!rc)
        rc = vc_keeper_start(a.store, &a.log, &a.keeper, &e);
    if (!rc) {
        if (o->ready)
            o->ready(o->opaque);
        serve(&a);
    }
    shut_down(&a);
    return vc_public_error(rc, &e, err);
}
