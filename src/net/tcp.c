/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "net/internal.h"
#include "net/names.h"

/* Bytes that the kernel may hold unsent: queues belong where they are counted. tcp(7). */
#define NOTSENT_BYTES (128 * 1024)

/* "HOST", "HOST:PORT", "[V6]:PORT". */
bool vc_tcp_split(const char *rest, const char *default_port, char host[256], char port[16])
{
    const char *end, *colon;
    size_t n;

    if (*rest == '[') {
        end = strchr(++rest, ']');
        if (!end || (end[1] && end[1] != ':'))
            return false;
        colon = end[1] ? end + 1 : NULL;
    } else {
        colon = strchr(rest, ':');
        end = colon ? colon : rest + strlen(rest);
    }
    n = (size_t)(end - rest);
    if (n == 0 || n > 255 || (colon && (!colon[1] || strlen(colon + 1) > 15)))
        return false;
    memcpy(host, rest, n);
    host[n] = 0;
    snprintf(port, 16, "%s", colon ? colon + 1 : default_port);
    return true;
}

static int resolve(const char *rest, const char *default_port, int flags, const char *address,
                   struct addrinfo **out, struct vc_err *err)
{
    struct addrinfo want = {.ai_socktype = SOCK_STREAM, .ai_flags = flags};
    char host[256], port[16];
    int rc;

    if (!vc_tcp_split(rest, default_port, host, port))
        return vc_err_set_hint(err, VC_E_USAGE, "HOST:PORT or [V6]:PORT behind the slashes",
                               "'%s' is not an address", address);
    rc = vc_names_find(host, port, &want, out);
    if (rc)
        return vc_err_set(err, VC_E_UNREACHABLE, "cannot resolve '%s': %s", address,
                          gai_strerror(rc));
    return 0;
}

void vc_tcp_tune(int fd)
{
    int one = 1, notsent = NOTSENT_BYTES;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &notsent, sizeof(notsent));
}

/* Connects within the time; returns the blocking descriptor, or -1 with errno. */
static int connect_one(const struct addrinfo *a, int timeout_ms)
{
    vc_auto_close int fd =
        socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    socklen_t len = sizeof(int);
    int failed = 0;

    if (fd < 0)
        return -1;
    if (connect(fd, a->ai_addr, a->ai_addrlen) < 0) {
        if (errno != EINPROGRESS)
            return -1;
        if (poll(&p, 1, timeout_ms) != 1) {
            errno = ETIMEDOUT;
            return -1;
        }
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &len) < 0 || failed) {
            errno = failed;
            return -1;
        }
    }
    if (fcntl(fd, F_SETFL, 0) < 0)
        return -1;
    return vc_steal_fd(&fd);
}

int vc_tcp_connect(const char *rest, const char *default_port, int timeout_ms, const char *address,
                   int *fd_out, struct vc_err *err)
{
    struct addrinfo *list = NULL;
    int fd = -1, rc = resolve(rest, default_port, 0, address, &list, err);

    if (rc)
        return rc;
    for (const struct addrinfo *a = list; a && fd < 0; a = a->ai_next)
        fd = connect_one(a, timeout_ms);
    rc = errno;
    vc_names_free(list);
    errno = rc;
    if (fd < 0)
        return vc_err_set_errno_hint(err, VC_E_UNREACHABLE, "is 'vecycle serve' listening there?",
                                     "cannot connect to '%s'", address);
    vc_tcp_tune(fd);
    *fd_out = fd;
    return 0;
}

int vc_tcp_listen(const char *rest, const char *default_port, const char *address, int *fd_out,
                  struct vc_err *err)
{
    struct addrinfo *list = NULL;
    vc_auto_close int fd = -1;
    int one = 1, rc = resolve(rest, default_port, AI_PASSIVE, address, &list, err);

    if (rc)
        return rc;
    fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, list->ai_protocol);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
        bind(fd, list->ai_addr, list->ai_addrlen) < 0 || listen(fd, 16) < 0)
        rc = vc_err_set_errno(err, VC_E_FAILED, "cannot listen on '%s'", address);
    vc_names_free(list);
    if (!rc)
        *fd_out = vc_steal_fd(&fd);
    return rc;
}
