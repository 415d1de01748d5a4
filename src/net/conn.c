/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/fdio.h"
#include "net/internal.h"

#define DEFAULT_TIMEOUT_MS 10000
/* A child that does not end when its socket does is told to, then made to. */
#define CHILD_GRACE_NS (2 * VC_NS_PER_S)

static const struct vc_conn_ops fd_ops;

static bool is_socket(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
}

int vc_conn_from_fds(int rfd, int wfd, enum vc_conn_security security, const char *describe,
                     struct vc_conn **out, struct vc_err *err)
{
    struct vc_conn *c = calloc(1, sizeof(*c));

    if (!c) {
        close(rfd);
        if (wfd != rfd)
            close(wfd);
        return vc_err_set(err, VC_E_NOMEM, "no memory for a connection");
    }
    c->ops = &fd_ops;
    c->rfd = rfd;
    c->wfd = wfd;
    c->wake_fd = -1;
    c->security = security;
    c->is_socket = is_socket(rfd) && (rfd == wfd || is_socket(wfd));
    snprintf(c->describe, sizeof(c->describe), "%s", describe);
    if (!c->is_socket) {
        c->wake_fd = eventfd(0, EFD_CLOEXEC);
        if (c->wake_fd < 0) {
            int rc = vc_err_set_errno(err, VC_E_FAILED, "cannot make an eventfd");

            vc_conn_close(c);
            return rc;
        }
    }
    *out = c;
    return 0;
}

int vc_conn_pair(struct vc_conn **a, struct vc_conn **b, struct vc_err *err)
{
    int fds[2], rc;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot make a socket pair");
    rc = vc_conn_from_fds(fds[0], fds[0], VC_CONN_LOCAL, "pair", a, err);
    if (rc) {
        close(fds[1]);
        return rc;
    }
    rc = vc_conn_from_fds(fds[1], fds[1], VC_CONN_LOCAL, "pair", b, err);
    if (rc)
        vc_conn_close(*a);
    return rc;
}

static bool is_tls(const char *address)
{
    return !strncmp(address, "tls://", 6);
}

static int dial_fd(const char *address, const struct vc_dial_options *o, int *fd, pid_t *child,
                   enum vc_conn_security *security, struct vc_err *err)
{
    int timeout = o->timeout_ms ? o->timeout_ms : DEFAULT_TIMEOUT_MS;

    if (!strncmp(address, "unix:", 5)) {
        *security = VC_CONN_LOCAL;
        *fd = vc_unix_connect(address + 5);
        if (*fd < 0)
            return vc_err_set_errno_hint(err, VC_E_UNREACHABLE, "is 'vecycle serve' running there?",
                                         "cannot connect to '%s'", address);
        return 0;
    }
    if (!strncmp(address, "ssh://", 6)) {
        *security = VC_CONN_ENCRYPTED;
        return vc_ssh_start(address + 6, o, address, fd, child, err);
    }
    if (!strncmp(address, "tcp://", 6)) {
        if (!o->insecure)
            return vc_err_set_hint(err, VC_E_REFUSED,
                                   "use ssh://HOST or tls://HOST, or say --insecure",
                                   "'%s' would send the VM's memory in the clear", address);
        *security = VC_CONN_PLAINTEXT;
        return vc_tcp_connect(address + 6, VC_NET_DEFAULT_PORT, timeout, address, fd, err);
    }
    if (is_tls(address)) {
        *security = VC_CONN_ENCRYPTED; /* from the handshake on, before which nothing passes */
        return vc_tcp_connect(address + 6, VC_NET_DEFAULT_TLS_PORT, timeout, address, fd, err);
    }
    return vc_err_set_hint(err, VC_E_USAGE, "unix:PATH, ssh://HOST, tls://HOST or tcp://HOST",
                           "'%s' is not an address", address);
}

static int secure(struct vc_conn *c, const char *address, const struct vc_dial_options *o,
                  struct vc_err *err)
{
    struct vc_tls_options defaults = VC_TLS_OPTIONS_INIT;
    char host[256], port[16];

    c->ops = &vc_tls_pending_ops;
    if (!vc_tcp_split(address + 6, VC_NET_DEFAULT_TLS_PORT, host, port))
        return vc_err_set(err, VC_E_USAGE, "'%s' is not an address", address);
    return vc_tls_connect(c, host, o->tls ? o->tls : &defaults, err);
}

int vc_conn_dial(const char *address, const struct vc_dial_options *o, struct vc_conn **out,
                 struct vc_err *err)
{
    enum vc_conn_security security = VC_CONN_PLAINTEXT;
    pid_t child = 0;
    int fd = -1, rc = dial_fd(address, o, &fd, &child, &security, err);

    if (rc)
        return rc;
    rc = vc_conn_from_fds(fd, fd, security, address, out, err);
    if (rc)
        return rc;
    (*out)->child = child;
    if (is_tls(address))
        rc = secure(*out, address, o, err);
    if (rc) {
        vc_conn_close(*out);
        *out = NULL;
    }
    return rc;
}

/* For pipes: waits until fd is ready; false after a shutdown. */
static bool wait_pipe(struct vc_conn *c, int fd, short events)
{
    struct pollfd p[2] = {{.fd = fd, .events = events}, {.fd = c->wake_fd, .events = POLLIN}};

    while (poll(p, 2, -1) < 0)
        if (errno != EINTR)
            return false;
    return !p[1].revents;
}

static ssize_t fd_read_some(struct vc_conn *c, void *buf, size_t n, struct vc_err *err)
{
    ssize_t got;

    if (!c->is_socket && !wait_pipe(c, c->rfd, POLLIN))
        return 0;
    got = vc_read_some(c->rfd, buf, n);
    if (got < 0)
        return vc_err_set_errno(err, VC_E_PEER_LOST, "the connection to '%s' broke", c->describe);
    return got;
}

/* A blocking pipe that poll calls writable takes PIPE_BUF bytes at once. */
static int write_pipe(struct vc_conn *c, const uint8_t *p, size_t n)
{
    while (n) {
        size_t k = VC_MIN(n, (size_t)PIPE_BUF);
        ssize_t put;

        if (!wait_pipe(c, c->wfd, POLLOUT)) {
            errno = EPIPE;
            return -1;
        }
        put = write(c->wfd, p, k);
        if (put < 0 && errno != EINTR && errno != EAGAIN)
            return -1;
        if (put > 0) {
            p += put;
            n -= (size_t)put;
        }
    }
    return 0;
}

static int fd_writev_all(struct vc_conn *c, struct iovec *iov, size_t n, struct vc_err *err)
{
    int rc = 0;

    if (c->is_socket)
        rc = vc_writev_full(c->wfd, iov, n);
    else
        for (size_t i = 0; i < n && !rc; i++)
            rc = write_pipe(c, iov[i].iov_base, iov[i].iov_len);
    if (rc)
        return vc_err_set_errno(err, VC_E_PEER_LOST, "the connection to '%s' broke", c->describe);
    return 0;
}

static void fd_shutdown(struct vc_conn *c)
{
    uint64_t one = 1;

    if (c->is_socket) {
        shutdown(c->rfd, SHUT_RDWR);
        shutdown(c->wfd, SHUT_RDWR);
    } else if (write(c->wake_fd, &one, sizeof(one)) < 0) {
        return; /* full: already readable */
    }
}

static void fd_shutdown_write(struct vc_conn *c)
{
    if (c->is_socket)
        shutdown(c->wfd, SHUT_WR);
    /* A pipe ends when it is closed, which is soon after. */
}

static const struct vc_conn_ops fd_ops = {
    .read_some = fd_read_some,
    .writev_all = fd_writev_all,
    .shutdown = fd_shutdown,
    .shutdown_write = fd_shutdown_write,
};

ssize_t vc_conn_read_some(struct vc_conn *c, void *buf, size_t n, struct vc_err *err)
{
    return c->ops->read_some(c, buf, n, err);
}

int vc_conn_writev_all(struct vc_conn *c, struct iovec *iov, size_t n, struct vc_err *err)
{
    return c->ops->writev_all(c, iov, n, err);
}

void vc_conn_shutdown(struct vc_conn *c)
{
    c->ops->shutdown(c);
}

void vc_conn_shutdown_write(struct vc_conn *c)
{
    c->ops->shutdown_write(c);
}

const char *vc_conn_peer_name(const struct vc_conn *c, unsigned i)
{
    return c->ops->peer_name ? c->ops->peer_name(c, i) : NULL;
}

void vc_conn_fds(const struct vc_conn *c, int *rfd, int *wfd)
{
    *rfd = c->rfd;
    *wfd = c->wfd;
}

static void end_child(pid_t child)
{
    uint64_t deadline = vc_now_ns() + CHILD_GRACE_NS;
    int status;

    while (waitpid(child, &status, WNOHANG) == 0) {
        if (vc_now_ns() > deadline) {
            kill(child, SIGTERM);
            waitpid(child, &status, 0);
            return;
        }
        poll(NULL, 0, 10);
    }
}

void vc_conn_close(struct vc_conn *c)
{
    if (!c)
        return;
    if (c->ops->release)
        c->ops->release(c);
    if (c->rfd >= 0)
        close(c->rfd);
    if (c->wfd >= 0 && c->wfd != c->rfd)
        close(c->wfd);
    if (c->wake_fd >= 0)
        close(c->wake_fd);
    if (c->child > 0)
        end_child(c->child);
    free(c);
}

const char *vc_conn_describe(const struct vc_conn *c)
{
    return c->describe;
}

enum vc_conn_security vc_conn_security(const struct vc_conn *c)
{
    return c->security;
}

/* ---- listening ---- */

struct vc_listener {
    int fd;
    enum vc_conn_security security;
    bool tls;
    char path[128]; /* Unix: to be removed */
    char address[256];
};

int vc_listener_open(const char *address, bool insecure, unsigned mode, struct vc_listener **out,
                     struct vc_err *err)
{
    vc_auto_free struct vc_listener *l = calloc(1, sizeof(*l));
    int rc = 0;

    if (!l)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a listener");
    snprintf(l->address, sizeof(l->address), "%s", address);
    if (!strncmp(address, "unix:", 5)) {
        l->fd = vc_unix_listen(address + 5, mode, 16);
        if (l->fd < 0)
            return vc_err_set_errno(err, VC_E_FAILED, "cannot listen on '%s'", address);
        snprintf(l->path, sizeof(l->path), "%s", address + 5);
    } else if (!strncmp(address, "tcp://", 6)) {
        if (!insecure)
            return vc_err_set_hint(err, VC_E_REFUSED, "use ssh or tls://, or say --insecure",
                                   "'%s' would take VMs' memory in the clear", address);
        l->security = VC_CONN_PLAINTEXT;
        rc = vc_tcp_listen(address + 6, VC_NET_DEFAULT_PORT, address, &l->fd, err);
    } else if (is_tls(address)) {
        l->tls = true;
        l->security = VC_CONN_ENCRYPTED;
        rc = vc_tcp_listen(address + 6, VC_NET_DEFAULT_TLS_PORT, address, &l->fd, err);
    } else {
        return vc_err_set_hint(err, VC_E_USAGE, "unix:PATH, tls://HOST:PORT or tcp://HOST:PORT",
                               "'%s' is not an address to listen on", address);
    }
    if (rc)
        return rc;
    *out = vc_steal_ptr(l);
    return 0;
}

int vc_listener_fd(const struct vc_listener *l)
{
    return l->fd;
}

int vc_listener_accept(struct vc_listener *l, struct vc_conn **out, struct vc_err *err)
{
    int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC), rc;

    if (fd < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot accept on '%s'", l->address);
    if (l->security != VC_CONN_LOCAL)
        vc_tcp_tune(fd);
    rc = vc_conn_from_fds(fd, fd, l->security, l->address, out, err);
    if (!rc && l->tls)
        (*out)->ops = &vc_tls_pending_ops;
    return rc;
}

bool vc_listener_is_tls(const struct vc_listener *l)
{
    return l->tls;
}

void vc_listener_close(struct vc_listener *l)
{
    if (!l)
        return;
    close(l->fd);
    if (l->path[0])
        unlink(l->path);
    free(l);
}
