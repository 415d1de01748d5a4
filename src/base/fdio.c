/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/fdio.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

ssize_t vc_read_some(int fd, void *buf, size_t n)
{
    ssize_t got;

    do
        got = read(fd, buf, n);
    while (got < 0 && errno == EINTR);
    return got;
}

int vc_read_full(int fd, void *buf, size_t n)
{
    size_t have = 0;

    while (have < n) {
        ssize_t got = vc_read_some(fd, (uint8_t *)buf + have, n - have);

        if (got < 0)
            return -1;
        if (got == 0) {
            if (have == 0)
                return 0;
            errno = EPIPE;
            return -1;
        }
        have += (size_t)got;
    }
    return 1;
}

int vc_write_full(int fd, const void *buf, size_t n)
{
    struct iovec iov = {.iov_base = (void *)buf, .iov_len = n};

    return vc_writev_full(fd, &iov, 1);
}

void vc_iov_advance(struct iovec **iov, size_t *n, size_t done)
{
    while (*n && done >= (*iov)->iov_len) {
        done -= (*iov)->iov_len;
        (*iov)++;
        (*n)--;
    }
    if (*n) {
        (*iov)->iov_base = (uint8_t *)(*iov)->iov_base + done;
        (*iov)->iov_len -= done;
    }
}

static ssize_t write_once(int fd, struct iovec *iov, size_t n)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = VC_MIN(n, (size_t)IOV_MAX)};
    ssize_t put = sendmsg(fd, &msg, MSG_NOSIGNAL);

    if (put < 0 && errno == ENOTSOCK)
        put = writev(fd, iov, (int)VC_MIN(n, (size_t)IOV_MAX));
    return put;
}

int vc_writev_full(int fd, struct iovec *iov, size_t n)
{
    vc_iov_advance(&iov, &n, 0);
    while (n) {
        ssize_t put = write_once(fd, iov, n);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            struct pollfd p = {.fd = fd, .events = POLLOUT};

            if (poll(&p, 1, -1) < 0 && errno != EINTR)
                return -1;
            continue;
        }
        if (put < 0)
            return -1;
        vc_iov_advance(&iov, &n, (size_t)put);
    }
    return 0;
}

int vc_pwritev_full(int fd, struct iovec *iov, size_t n, uint64_t offset)
{
    vc_iov_advance(&iov, &n, 0);
    while (n) {
        ssize_t put = pwritev(fd, iov, (int)VC_MIN(n, (size_t)IOV_MAX), (off_t)offset);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -1;
        offset += (uint64_t)put;
        vc_iov_advance(&iov, &n, (size_t)put);
    }
    return 0;
}

int vc_pread_full(int fd, void *buf, size_t n, uint64_t offset)
{
    size_t have = 0;

    while (have < n) {
        ssize_t got = pread(fd, (uint8_t *)buf + have, n - have, (off_t)(offset + have));

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0)
            return 0;
        have += (size_t)got;
    }
    return 1;
}

static int socket_option(int fd, int name)
{
    int value = -1;
    socklen_t n = sizeof(value);

    return getsockopt(fd, SOL_SOCKET, name, &value, &n) < 0 ? -1 : value;
}

bool vc_is_stream(int fd)
{
    int family = socket_option(fd, SO_DOMAIN);

    return (family == AF_UNIX || family == AF_INET || family == AF_INET6) &&
           socket_option(fd, SO_TYPE) == SOCK_STREAM && socket_option(fd, SO_ACCEPTCONN) == 0;
}

bool vc_is_unix_stream(int fd)
{
    struct sockaddr_storage peer;
    socklen_t n = sizeof(peer);

    return vc_is_stream(fd) && socket_option(fd, SO_DOMAIN) == AF_UNIX &&
           getpeername(fd, (struct sockaddr *)&peer, &n) == 0;
}

bool vc_is_unix_listener(int fd)
{
    return socket_option(fd, SO_DOMAIN) == AF_UNIX && socket_option(fd, SO_TYPE) == SOCK_STREAM &&
           socket_option(fd, SO_ACCEPTCONN) == 1;
}

/* The flag is set each time: it is shared with whoever else has the listener. */
int vc_accept_waiting(int listener)
{
    int flags = fcntl(listener, F_GETFL);

    if (flags < 0 || fcntl(listener, F_SETFL, flags | O_NONBLOCK) < 0)
        return -1;
    return accept4(listener, NULL, NULL, SOCK_CLOEXEC);
}

int vc_wait_readable(int fd, int timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int rc;

    do
        rc = poll(&p, 1, timeout_ms);
    while (rc < 0 && errno == EINTR);
    return rc;
}

int vc_chmod_fd(int fd, mode_t mode)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return chmod(path, mode);
}

/* Gives back what the umask has taken from the owner of what was just made there, and nothing else:
 * should something have come in its place, nobody but its owner can do more with it. */
static int undo_umask(int dir, const char *name, mode_t mode)
{
    vc_auto_close int fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    mode_t taken;

    if (fd < 0 || fstat(fd, &st) < 0)
        return -1;
    taken = mode & S_IRWXU & ~st.st_mode;
    return taken ? vc_chmod_fd(fd, (st.st_mode & 07777) | taken) : 0;
}

int vc_mkdirat(int dir, const char *name, mode_t mode)
{
    return mkdirat(dir, name, mode) < 0 ? -1 : undo_umask(dir, name, mode);
}

bool vc_is_guarded(const struct stat *st)
{
    return (st->st_uid == geteuid() || st->st_uid == 0) && !(st->st_mode & 022);
}

/* A socket address holds 107 bytes of a path. A longer one is gone through a descriptor: of what is
 * there already, or of the directory that it is to be in (proc(5), /proc/PID/fd). */
struct unix_name {
    struct sockaddr_un sa;
    int via;   /* that descriptor, or -1 */
    bool temp; /* a new name does not fit even so: made under another one first */
};

static void close_name(struct unix_name *u)
{
    int saved = errno;

    vc_cleanup_close(&u->via);
    errno = saved;
}
#define vc_auto_name VC_CLEANUP(close_name)

static bool fits(struct unix_name *u, const char *path)
{
    size_t n = strlen(path);

    u->via = -1;
    u->temp = false;
    u->sa = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (n >= sizeof(u->sa.sun_path))
        return false;
    memcpy(u->sa.sun_path, path, n);
    return true;
}

/* The empty path would be a name of the kernel's abstract namespace. */
static int name_existing(const char *path, struct unix_name *u)
{
    if (fits(u, path)) {
        errno = ENOENT;
        return *path ? 0 : -1;
    }
    u->via = open(path, O_PATH | O_CLOEXEC);
    if (u->via < 0)
        return -1;
    snprintf(u->sa.sun_path, sizeof(u->sa.sun_path), "/proc/self/fd/%d", u->via);
    return 0;
}

static int name_new(const char *path, struct unix_name *u)
{
    const char *slash = strrchr(path, '/');
    vc_auto_free char *dir = NULL;
    int n;

    if (fits(u, path)) {
        errno = ENOENT;
        return *path ? 0 : -1;
    }
    dir = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    if (!dir)
        return -1;
    u->via = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (u->via < 0)
        return -1;
    n = snprintf(u->sa.sun_path, sizeof(u->sa.sun_path), "/proc/self/fd/%d/%s", u->via,
                 slash ? slash + 1 : path);
    u->temp = n >= (int)sizeof(u->sa.sun_path);
    if (u->temp)
        snprintf(u->sa.sun_path, sizeof(u->sa.sun_path), "/proc/self/fd/%d/.vecycle-%d-%d", u->via,
                 (int)getpid(), u->via);
    return 0;
}

int vc_unix_connect(const char *path)
{
    struct timeval limit = {.tv_sec = VC_UNIX_CONNECT_S};
    vc_auto_name struct unix_name u = {.via = -1};
    vc_auto_close int fd = -1;

    if (name_existing(path, &u))
        return -1;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    /* Blocking, so a full backlog waits instead of failing with EAGAIN, but not for ever: whoever
     * listens may be stopped. */
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    if (connect(fd, (struct sockaddr *)&u.sa, sizeof(u.sa)) < 0)
        return -1;
    limit.tv_sec = 0;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    return vc_steal_fd(&fd);
}

/* A socket file whose owner has died refuses connections; only such a one is removed. */
static void remove_dead_socket(const char *path)
{
    vc_auto_name struct unix_name u = {.via = -1};
    struct stat st;
    vc_auto_close int fd = -1;

    if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode) || name_existing(path, &u))
        return;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&u.sa, sizeof(u.sa)) < 0 &&
        errno == ECONNREFUSED)
        unlink(path);
}

static int bind_name(int fd, const char *path, const struct unix_name *u)
{
    int rc = bind(fd, (const struct sockaddr *)&u->sa, sizeof(u->sa));

    if (rc < 0 || !u->temp)
        return rc;
    /* As bind(2): what is there stays. */
    rc = renameat2(AT_FDCWD, u->sa.sun_path, AT_FDCWD, path, RENAME_NOREPLACE);
    if (rc < 0) {
        int saved = errno == EEXIST ? EADDRINUSE : errno;

        unlink(u->sa.sun_path);
        errno = saved;
    }
    return rc;
}

int vc_unix_listen(const char *path, unsigned mode, int backlog)
{
    vc_auto_name struct unix_name u = {.via = -1};
    vc_auto_close int fd = -1;

    if (name_new(path, &u))
        return -1;
    remove_dead_socket(path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    /* The file gets the socket's mode less the umask. What is for the owner alone is given nothing
     * by its path again but to its owner: others may write in the directory. Nobody can connect
     * before listen(). */
    if (fchmod(fd, mode) < 0 || bind_name(fd, path, &u) < 0)
        return -1;
    if ((mode & 077 ? chmod(path, mode) : undo_umask(AT_FDCWD, path, mode)) < 0 ||
        listen(fd, backlog) < 0) {
        int saved = errno;

        unlink(path);
        errno = saved;
        return -1;
    }
    return vc_steal_fd(&fd);
}

#define MAX_FDS 4

int vc_send_fds(int sock, const void *buf, size_t n, const int *fds, size_t n_fds)
{
    struct iovec iov = {.iov_base = (void *)buf, .iov_len = n};
    union {
        struct cmsghdr align;
        uint8_t space[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } control = {0};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t put;

    if (n_fds > MAX_FDS) {
        errno = EINVAL;
        return -1;
    }
    if (n_fds) {
        struct cmsghdr *c;

        msg.msg_control = control.space;
        msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
    }
    do
        put = sendmsg(sock, &msg, MSG_NOSIGNAL);
    while (put < 0 && errno == EINTR);
    if (put < 0)
        return -1;
    return vc_write_full(sock, (const uint8_t *)buf + put, n - (size_t)put);
}

ssize_t vc_recv_fds(int sock, void *buf, size_t n, int *fds, size_t max_fds, size_t *n_fds)
{
    struct iovec iov = {.iov_base = buf, .iov_len = n};
    union {
        struct cmsghdr align;
        uint8_t space[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } control;
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.space,
        .msg_controllen = sizeof(control.space),
    };
    ssize_t got;

    *n_fds = 0;
    do
        got = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < count; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (*n_fds < max_fds)
                fds[(*n_fds)++] = fd;
            else
                close(fd);
        }
    }
    return got;
}
