/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fdio.h"
#include "net/internal.h"

/* Theory of operation
 *
 * A connection's descriptors may come from another process, which may have them still. It can take
 * what poll(2) has announced, fill what it has found writable, clear O_NONBLOCK, which belongs to
 * the open file, and undo a shutdown(2) of TCP by connecting anew. So no call on them blocks: each
 * says by itself that it does not wait (MSG_DONTWAIT, SPLICE_F_NONBLOCK), and what is waited for is
 * the descriptor or a shutdown of ours, which nobody else has a hand in.
 *
 * read(2) and write(2) cannot be told so for a pipe (RWF_NOWAIT is for newer kernels), splice(2)
 * can: bytes pass through a pipe of our own. */

/* More than sockets and pipes hold. What had come before a shutdown is read: it may say why the
 * peer ends. What comes behind it, without end, is not. */
#define MAX_LATE_BYTES (16u << 20)

static const struct vc_conn_ops fd_ops;

static bool is_pipe(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && S_ISFIFO(st.st_mode);
}

/* For a pipe one of our own, for a socket none. */
static int look_at(int fd, int own[2], const char *describe, struct vc_err *err)
{
    if (vc_is_stream(fd))
        return 0;
    if (!is_pipe(fd))
        return vc_err_set_hint(err, VC_E_USAGE, "is it run by ssh, or by an inetd?",
                               "the connection to '%s' is neither a stream socket nor a pipe",
                               describe);
    return pipe2(own, O_CLOEXEC | O_NONBLOCK) < 0
               ? vc_err_set_errno(err, VC_E_FAILED, "cannot make a pipe")
               : 0;
}

static int set_up(struct vc_conn *c, struct vc_err *err)
{
    int rc = look_at(c->rfd, c->in, c->describe, err);

    if (!rc && (c->wfd != c->rfd || c->in[0] >= 0))
        rc = look_at(c->wfd, c->out, c->describe, err);
    if (rc)
        return rc;
    c->wake_fd = eventfd(0, EFD_CLOEXEC);
    return c->wake_fd < 0 ? vc_err_set_errno(err, VC_E_FAILED, "cannot make an eventfd") : 0;
}

int vc_conn_from_fds(int rfd, int wfd, enum vc_conn_security security, const char *describe,
                     struct vc_conn **out, struct vc_err *err)
{
    struct vc_conn *c = calloc(1, sizeof(*c));
    int rc;

    if (!c) {
        close(rfd);
        if (wfd != rfd)
            close(wfd);
        return vc_err_set(err, VC_E_NOMEM, "no memory for a connection");
    }
    c->ops = &fd_ops;
    c->rfd = rfd;
    c->wfd = wfd;
    c->wake_fd = c->in[0] = c->in[1] = c->out[0] = c->out[1] = -1;
    c->security = security;
    snprintf(c->describe, sizeof(c->describe), "%s", describe);
    rc = set_up(c, err);
    if (rc)
        vc_conn_close(c);
    else
        *out = c;
    return rc;
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

/* Waits until fd is ready; false after a shutdown. */
static bool wait_ready(struct vc_conn *c, int fd, short events)
{
    struct pollfd p[2] = {{.fd = fd, .events = events}, {.fd = c->wake_fd, .events = POLLIN}};

    while (poll(p, 2, -1) < 0)
        if (errno != EINTR)
            return false;
    return !p[1].revents;
}

/* As read(2), but EAGAIN where it would wait. */
static ssize_t read_now(struct vc_conn *c, void *buf, size_t n)
{
    ssize_t got;

    if (c->in[0] < 0)
        return recv(c->rfd, buf, n, MSG_DONTWAIT);
    got = splice(c->rfd, NULL, c->in[1], NULL, n, SPLICE_F_NONBLOCK);
    return got > 0 ? vc_read_some(c->in[0], buf, (size_t)got) : got;
}

static ssize_t fd_read_some(struct vc_conn *c, void *buf, size_t n, struct vc_err *err)
{
    ssize_t got;

    if (c->late_bytes > MAX_LATE_BYTES)
        return 0;
    while ((got = read_now(c, buf, n)) < 0 && (errno == EAGAIN || errno == EINTR))
        if (!wait_ready(c, c->rfd, POLLIN))
            return 0;
    if (got < 0)
        return vc_err_set_errno(err, VC_E_PEER_LOST, "the connection to '%s' broke", c->describe);
    if (atomic_load(&c->down))
        c->late_bytes += (size_t)got;
    return got;
}

static int write_socket(struct vc_conn *c, struct iovec *iov, size_t n)
{
    vc_iov_advance(&iov, &n, 0);
    while (n) {
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = VC_MIN(n, (size_t)IOV_MAX)};
        ssize_t put = sendmsg(c->wfd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (put >= 0)
            vc_iov_advance(&iov, &n, (size_t)put);
        else if (errno != EAGAIN && errno != EINTR)
            return -1;
        else if (!wait_ready(c, c->wfd, POLLOUT))
            return -1;
    }
    return 0;
}

/* What our pipe holds goes on to the other one. */
static int pass_on(struct vc_conn *c, size_t n)
{
    while (n) {
        ssize_t put = splice(c->out[0], NULL, c->wfd, NULL, n, SPLICE_F_NONBLOCK);

        if (put >= 0)
            n -= (size_t)put;
        else if (errno != EAGAIN && errno != EINTR)
            return -1;
        else if (!wait_ready(c, c->wfd, POLLOUT))
            return -1;
    }
    return 0;
}

static int write_pipe(struct vc_conn *c, struct iovec *iov, size_t n)
{
    vc_iov_advance(&iov, &n, 0);
    while (n) {
        ssize_t put = writev(c->out[1], iov, (int)VC_MIN(n, (size_t)IOV_MAX));

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 || pass_on(c, (size_t)put) < 0)
            return -1;
        vc_iov_advance(&iov, &n, (size_t)put);
    }
    return 0;
}

static int fd_writev_all(struct vc_conn *c, struct iovec *iov, size_t n, struct vc_err *err)
{
    int rc = -1;

    errno = EPIPE;
    if (!atomic_load(&c->down))
        rc = c->out[0] < 0 ? write_socket(c, iov, n) : write_pipe(c, iov, n);
    if (rc && atomic_load(&c->down))
        errno = EPIPE;
    if (rc)
        return vc_err_set_errno(err, VC_E_PEER_LOST, "the connection to '%s' broke", c->describe);
    return 0;
}

static void fd_shutdown(struct vc_conn *c)
{
    uint64_t one = 1;

    atomic_store(&c->down, true);
    if (write(c->wake_fd, &one, sizeof(one)) < 0) {
        /* Full means: readable already. */
    }
    shutdown(c->rfd, SHUT_RDWR); /* nothing, for a pipe */
    shutdown(c->wfd, SHUT_RDWR);
}

static void fd_shutdown_write(struct vc_conn *c)
{
    shutdown(c->wfd, SHUT_WR);
    /* A pipe ends when it is closed, which is soon after. */
}

static const struct vc_conn_ops fd_ops = {
    .read_some = fd_read_some,
    .writev_all = fd_writev_all,
    .shutdown = fd_shutdown,
    .shutdown_write = fd_shutdown_write,
};
