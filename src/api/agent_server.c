/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/agent.h"
#include "base/fdio.h"
#include "base/thread.h"
#include "net/names.h"
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

#define MAX_POLLED (3 + MAX_LISTENERS + MAX_SESSIONS + MAX_UNOPENED)
/* When there are no descriptors left for another connection. */
#define REST_MS 200
#define CONTROL_BACKLOG 16

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
    vc_agent_start_session(a, &job, -1);
}

static void on_client(struct agent *a)
{
    struct vc_job none = VC_JOB_INIT;
    int fd = accept4(a->control, NULL, NULL, SOCK_CLOEXEC);

    if (fd >= 0)
        vc_agent_start_session(a, &none, fd);
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

/* As the packaging makes it (tmpfiles): QEMUs of the user's group make their sockets there, which
 * get that group, and cannot touch each other's. */
#define SHARED_DIR_MODE 03770

static int make_dirs(struct agent *a, struct vc_err *err)
{
    bool lesser = vc_sandbox_has_lesser(&a->user);
    vc_auto_close int fd = -1;

    if (vc_sandbox_make_dir(&a->user, a->socket_dir, 0755) < 0)
        return errno == EEXIST
                   ? 0
                   : vc_err_set_errno_hint(err, VC_E_FAILED, "see --socket-dir",
                                           "cannot make the socket directory '%s'", a->socket_dir);
    if (!lesser)
        return 0;
    if (vc_sandbox_look(a->socket_dir, S_IFDIR, a->user.uid, &fd) < 0 ||
        vc_chmod_fd(fd, SHARED_DIR_MODE) < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot give '%s' to user '%s'", a->socket_dir,
                                a->user.name);
    return 0;
}

/* What the user made, or what root made for it where it could not: errno, or 0. */
static int listen_as_user(struct agent *a, const char *path,
                          int (*open_it)(void *, struct vc_err *), void *opaque, struct vc_err *err)
{
    struct vc_sandbox_rights was;
    int rc = vc_sandbox_borrow(&a->user, &was, err);

    if (rc)
        return rc;
    rc = open_it(opaque, err);
    errno = rc ? err->sys_errno : 0;
    vc_sandbox_give_back(&was);
    if (!rc || !vc_sandbox_may_as_root(&a->user, path))
        return rc;
    rc = open_it(opaque, err);
    if (!rc && vc_sandbox_give(&a->user, path, S_IFSOCK) < 0)
        rc =
            vc_err_set_errno(err, VC_E_FAILED, "cannot give '%s' to user '%s'", path, a->user.name);
    return rc;
}

static int listen_on_control(void *opaque, struct vc_err *err)
{
    struct agent *a = opaque;

    a->control = vc_unix_listen(a->control_path, 0600, CONTROL_BACKLOG);
    return a->control >= 0
               ? 0
               : vc_err_set_errno_hint(err, errno == EADDRINUSE ? VC_E_BUSY : VC_E_FAILED,
                                       errno == EADDRINUSE ? "one agent per host is enough"
                                                           : "see --control",
                                       "cannot listen on the control socket '%s'", a->control_path);
}

/* By a descriptor of what was looked at: who may write in the directory may put anything there. */
static int give_to_group(struct agent *a, const struct group *g, struct vc_err *err)
{
    uid_t owner = vc_sandbox_has_lesser(&a->user) ? a->user.uid : geteuid();
    vc_auto_close int fd = -1;

    if (vc_sandbox_look(a->control_path, S_IFSOCK, owner, &fd) < 0 ||
        fchownat(fd, "", (uid_t)-1, g->gr_gid, AT_EMPTY_PATH) < 0 || vc_chmod_fd(fd, 0660) < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot give '%s' to group '%s'", a->control_path,
                                a->o->control_group);
    return 0;
}

static int open_control(struct agent *a, const char *path, struct vc_err *err)
{
    struct group *g = NULL;
    struct stat st = {0};
    int rc;

    if (!path)
        return 0;
    if (snprintf(a->control_path, sizeof(a->control_path), "%s", path) >=
        (int)sizeof(a->control_path))
        return vc_err_set(err, VC_E_USAGE, "the control socket's path is too long");
    if (a->o->control_group && !(g = getgrnam(a->o->control_group)))
        return vc_err_set(err, VC_E_USAGE, "there is no group '%s'", a->o->control_group);
    rc = listen_as_user(a, path, listen_on_control, a, err);
    /* Once more, as root: who connects may see that the agent was started by root (SO_PEERCRED). */
    if (!rc && listen(a->control, CONTROL_BACKLOG) < 0)
        rc = vc_err_set_errno(err, VC_E_FAILED, "cannot listen on '%s'", path);
    if (!rc && g)
        rc = give_to_group(a, g, err);
    if (!rc && lstat(path, &st) == 0)
        a->control_ino = st.st_ino;
    return rc;
}

/* Only what is still ours: another agent may have made its own meanwhile. */
static void close_control(struct agent *a)
{
    struct stat st;

    if (a->control < 0)
        return;
    close(a->control);
    if (lstat(a->control_path, &st) == 0 && S_ISSOCK(st.st_mode) && st.st_ino == a->control_ino)
        unlink(a->control_path);
}

static bool has_scheme(const char *address, const char *scheme)
{
    return !strncmp(address, scheme, strlen(scheme));
}

/* What would be wrong with every connection is said now. */
static int check_listener(struct agent *a, const char *address, struct vc_err *err)
{
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

struct opening {
    struct agent *a;
    const char *address;
};

static int open_it(void *opaque, struct vc_err *err)
{
    struct opening *o = opaque;

    return vc_listener_open(o->address, o->a->o->insecure, 0600,
                            &o->a->listeners[o->a->n_listeners], err);
}

static int open_listener(struct agent *a, const char *address, struct vc_err *err)
{
    struct opening o = {a, address};
    int rc = check_listener(a, address, err);

    if (!rc)
        rc = has_scheme(address, "unix:")
                 ? listen_as_user(a, address + strlen("unix:"), open_it, &o, err)
                 : open_it(&o, err);
    if (!rc)
        a->n_listeners++;
    return rc;
}

static int open_listeners(struct agent *a, struct vc_err *err)
{
    int rc = 0;

    if (a->o->n_listen > MAX_LISTENERS)
        rc = vc_err_set(err, VC_E_USAGE, "more than %d addresses to listen on", MAX_LISTENERS);
    for (size_t i = 0; i < a->o->n_listen && !rc; i++)
        rc = open_listener(a, a->o->listen[i], err);
    return rc;
}

/* What is read anew for each connection has to be readable now, by who reads it then. */
static int check_files(struct agent *a, struct vc_err *err)
{
    int rc = a->o->allow ? vc_allow_check(a->o->allow, err) : 0;

    for (size_t i = 0; i < a->n_listeners && !rc; i++)
        if (vc_listener_is_tls(a->listeners[i]))
            rc = vc_tls_check(a->o->tls.dir, VC_TLS_SERVER, err);
    return rc;
}

/* It calls other hosts where it has the means to: to migrate there, or to settle what is open. */
static bool may_dial(struct agent *a)
{
    struct vc_err err = VC_ERR_INIT;
    int rc = vc_tls_check(a->o->tls.dir, VC_TLS_CLIENT, &err);

    if (rc && rc != VC_E_USAGE) /* there are certificates, and something is wrong with them */
        vc_log_err(&a->log, VC_LOG_WARNING,
                   a->o->insecure ? "no migration from here goes to a tls:// address"
                                  : "no migration from here goes to another host through the agent",
                   &err);
    return !rc || a->o->insecure;
}

/* Everything is open that needs privileges: gives up those, then what is not needed any more. */
static int give_up_privileges(struct agent *a, const struct vecycle_context *c, struct vc_err *err)
{
    bool dials;
    int rc = vc_sandbox_give_store(&a->user, c->store ? c->store : vecycle_default_store(), err);

    if (!rc)
        rc = vc_sandbox_become(&a->user, err);
    if (!rc)
        rc = check_files(a, err);
    if (!rc)
        rc = vc_public_store(c, true, &a->store, err);
    if (rc)
        return rc;
    if (!vc_store_syncs_names(a->store))
        vc_log(&a->log, VC_LOG_WARNING,
               "the file system of '%s' cannot sync directories: a power cut may cost the newest "
               "checkpoints, and the record of who may run a VM",
               vc_store_root(a->store));
    dials = may_dial(a);
    if (a->o->sandbox == VECYCLE_SANDBOX_OFF)
        return 0;
    rc = vc_sandbox_enter(a->o->sandbox == VECYCLE_SANDBOX_STRICT, dials, err);
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
        bool open = vc_agent_is_open(a);
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
        if (p[2].revents && vc_agent_make_room(a))
            on_client(a);
        for (size_t i = 0; i < a->n_listeners; i++)
            if (p[3 + i].revents && vc_agent_make_room(a))
                on_peer(a, a->listeners[i]);
        vc_agent_reap(a);
    }
}

static void shut_down(struct agent *a)
{
    atomic_store(&a->stop, true);
    for (size_t i = 0; i < a->n_listeners; i++)
        vc_listener_close(a->listeners[i]);
    close_control(a);
    vc_settler_cancel(a->settler); /* a session may wait for a VM that it has locked */
    vc_agent_end_sessions(a);
    vc_rekeyer_stop(a->rekeyer);
    vc_keeper_stop(a->keeper);
    vc_settler_stop(a->settler);
    vc_parking_free(a->parking);
    if (a->wake >= 0)
        close(a->wake);
    vc_store_close(a->store);
    vc_names_stop();
}

int vecycle_agent_run(const struct vecycle_context *c, const struct vecycle_agent_options *o,
                      struct vecycle_error *err)
{
    struct agent a = {.o = o, .log = vc_public_log(c), .control = -1};
    struct vc_err e = VC_ERR_INIT;
    int rc;

    vc_sandbox_protect_memory();
    a.socket_dir = o->socket_dir ? o->socket_dir : vecycle_default_socket_dir();
    if (strlen(a.socket_dir) >= VC_JOB_PATH_BYTES) {
        rc = vc_err_set(&e, VC_E_USAGE, "the path of the socket directory is too long");
        return vc_public_error(rc, &e, err);
    }
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
    for (size_t i = 0; i < a.n_listeners && !rc; i++)
        if (*vc_listener_note(a.listeners[i]))
            vc_log(&a.log, VC_LOG_WARNING, "%s", vc_listener_note(a.listeners[i]));
    if (!rc)
        rc = vc_settler_start(a.store, a.socket_dir, &a.log, o, &a.settler, &e);
    if (!rc)
        rc = vc_keeper_start(a.store, &a.log, &a.keeper, &e);
    if (!rc && o->allow)
        rc = vc_rekeyer_start(a.store, o->allow, &a.log, &o->tls, &a.rekeyer, &e);
    if (!rc) {
        if (o->ready)
            o->ready(o->opaque);
        serve(&a);
    }
    shut_down(&a);
    return vc_public_error(rc, &e, err);
}
