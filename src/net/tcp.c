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
#include <unistd.h>

#include "base/clock.h"
#include "net/internal.h"
#include "net/names.h"

/* Bytes that the kernel may hold unsent: queues belong where they are counted. tcp(7). */
#define NOTSENT_BYTES (128 * 1024)

/* What is wrong with a name, and whether it is so for good. */
static int explain_name(int rc, const char *text, struct vc_err *err)
{
    if (rc == EAI_SYSTEM)
        return vc_err_set_errno(err, VC_E_UNREACHABLE, "cannot resolve '%s'", text);
    if (rc == VC_NAMES_ENDED)
        return vc_err_set_hint(err, VC_E_UNREACHABLE, "restart the agent, or give an address",
                               "cannot resolve '%s': the process that looks up names has ended",
                               text);
    vc_err_set_hint(err, VC_E_UNREACHABLE,
                    rc == EAI_AGAIN ? "is there a name server that answers?"
                                    : "check the name, /etc/hosts and DNS",
                    "cannot resolve '%s': %s", text, gai_strerror(rc));
    err->lasts = rc != EAI_AGAIN;
    return err->code;
}

static int resolve(const struct vc_address *a, const char *default_port, int flags,
                   const char *text, struct addrinfo **out, struct vc_err *err)
{
    struct addrinfo want = {.ai_socktype = SOCK_STREAM, .ai_flags = flags | AI_NUMERICSERV};
    int rc = vc_names_find(a->host, a->port[0] ? a->port : default_port, &want, out);

    return rc ? explain_name(rc, text, err) : 0;
}

static const char *digits(const struct addrinfo *a, char text[64])
{
    if (getnameinfo(a->ai_addr, a->ai_addrlen, text, 64, NULL, 0, NI_NUMERICHOST))
        snprintf(text, 64, "?");
    return text;
}

void vc_tcp_remote(int fd, char *text, size_t n)
{
    struct sockaddr_storage sa = {0};
    socklen_t len = sizeof(sa);

    if (getpeername(fd, (struct sockaddr *)&sa, &len) < 0 ||
        getnameinfo((struct sockaddr *)&sa, len, text, (socklen_t)n, NULL, 0, NI_NUMERICHOST))
        snprintf(text, n, "a peer");
}

void vc_tcp_tune(int fd)
{
    int one = 1, notsent = NOTSENT_BYTES;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &notsent, sizeof(notsent));
}

/* 1: connected or failed; 0: not within the time; -1: cancelled. */
static int wait_connected(int fd, uint64_t deadline_ns, int cancel_fd)
{
    struct pollfd p[2] = {
        {.fd = fd, .events = POLLOUT},
        {.fd = cancel_fd > 0 ? cancel_fd : -1, .events = POLLIN},
    };

    for (;;) {
        uint64_t now = vc_now_ns();
        int n = poll(p, 2, now < deadline_ns ? (int)((deadline_ns - now) / VC_NS_PER_MS) + 1 : 0);

        if (n > 0)
            return p[1].revents ? -1 : 1;
        if (n < 0 && errno != EINTR)
            return 0;
        if (vc_now_ns() >= deadline_ns)
            return 0;
    }
}

/* Connects within the time; returns the blocking descriptor, or -1 with errno (ECANCELED). */
static int connect_one(const struct addrinfo *a, int timeout_ms, int cancel_fd)
{
    vc_auto_close int fd =
        socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    socklen_t len = sizeof(int);
    int failed = 0, n;

    if (fd < 0)
        return -1;
    if (connect(fd, a->ai_addr, a->ai_addrlen) < 0) {
        if (errno != EINPROGRESS)
            return -1;
        n = wait_connected(fd, vc_now_ns() + (uint64_t)timeout_ms * VC_NS_PER_MS, cancel_fd);
        if (n <= 0) {
            errno = n < 0 ? ECANCELED : ETIMEDOUT;
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

static const char *connect_hint(int e)
{
    switch (e) {
    case ECONNREFUSED:
        return "is 'vecycle serve' listening there?";
    case ETIMEDOUT:
        return "is that host up, and does a firewall let the port through?";
    case EINVAL: /* an address of one link says nothing without the link */
        return "an address of a link needs its zone: [fe80::1%eth0]";
    case EACCES:
    case EPERM:
        return "a firewall of this host, or its policy, forbids it";
    default:
        return "check the network, and the address";
    }
}

static int connect_failed(int e, const char *why, const char *text, struct vc_err *err)
{
    if (e == ECANCELED)
        return vc_err_set(err, VC_E_CANCELLED, "cancelled while connecting to '%s'", text);
    vc_err_set_hint(err, VC_E_UNREACHABLE, connect_hint(e), "cannot connect to '%s': %s", text,
                    why);
    err->sys_errno = e;
    err->lasts = e == EINVAL || e == EAFNOSUPPORT;
    return err->code;
}

int vc_tcp_connect(const struct vc_address *a, const char *default_port,
                   const struct vc_dial_options *o, const char *text, int *fd_out,
                   struct vc_err *err)
{
    struct addrinfo *list = NULL;
    char why[200] = "", where[64], what[80];
    size_t n = 0, used = 0;
    int fd = -1, e = 0, rc = resolve(a, default_port, 0, text, &list, err);

    if (rc)
        return rc;
    for (const struct addrinfo *i = list; i && n < VC_TCP_MAX_ADDRESSES; i = i->ai_next, n++) {
        const char *said;

        fd = connect_one(i, o->timeout_ms, o->cancel_fd);
        e = fd < 0 ? errno : 0;
        if (fd >= 0 || e == ECANCELED)
            break;
        said = strerror_r(e, what, sizeof(what));
        /* Which of them it was is said where there are several. */
        if (n || i->ai_next)
            used += (size_t)snprintf(why + used, sizeof(why) - used, "%s%s: %s", n ? "; " : "",
                                     digits(i, where), said);
        else
            snprintf(why, sizeof(why), "%s", said);
        used = VC_MIN(used, sizeof(why) - 1);
    }
    vc_names_free(list);
    if (fd < 0)
        return connect_failed(e, why, text, err);
    vc_tcp_tune(fd);
    *fd_out = fd;
    return 0;
}

/* ---- listening ---- */

static bool is_loopback(const struct sockaddr *sa)
{
    if (sa->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)sa)->sin_addr.s_addr) >> 24 == 127;
    return sa->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr);
}

static bool is_any_v6(const struct sockaddr *sa)
{
    return sa->sa_family == AF_INET6 &&
           IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr);
}

/* "[::]" takes IPv4 too, as it does elsewhere, unless somebody listens there; every other address
 * of IPv6 takes only its own. */
static int listen_one(const struct addrinfo *a, bool v6_only)
{
    vc_auto_close int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, a->ai_protocol);
    int one = 1, only = v6_only;

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
        (a->ai_family == AF_INET6 &&
         setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof(only)) < 0) ||
        bind(fd, a->ai_addr, a->ai_addrlen) < 0 || listen(fd, 16) < 0)
        return -1;
    return vc_steal_fd(&fd);
}

static int listen_at(const struct addrinfo *a)
{
    bool any = is_any_v6(a->ai_addr);
    int fd = listen_one(a, !any);

    return fd < 0 && any && errno == EADDRINUSE ? listen_one(a, true) : fd;
}

static bool is_repeated(const struct addrinfo *list, const struct addrinfo *a)
{
    for (const struct addrinfo *i = list; i != a; i = i->ai_next)
        if (i->ai_addrlen == a->ai_addrlen && !memcmp(i->ai_addr, a->ai_addr, a->ai_addrlen))
            return true;
    return false;
}

static int listen_failed(int e, const struct addrinfo *a, const char *text, struct vc_err *err)
{
    const char *hint = e == EADDRINUSE ? "is an agent running already? (one on [::] takes IPv4 too)"
                       : e == EADDRNOTAVAIL ? "name an address that this host has, or 0.0.0.0"
                       : e == EACCES        ? "ports below 1024 are root's"
                                            : NULL;
    char where[64];

    errno = e;
    return vc_err_set_errno_hint(err, VC_E_FAILED, hint, "cannot listen on '%s' (%s)", text,
                                 digits(a, where));
}

/* A name may have addresses that are not there (a family that is switched off, an address that
 * moves between hosts): those are left out, if one is left. */
static bool may_be_left_out(int e)
{
    return e == EADDRNOTAVAIL || e == EAFNOSUPPORT;
}

static int listen_all(const struct addrinfo *list, const char *text, int *fds, size_t *n_out,
                      char note[256], struct vc_err *err)
{
    bool loopback = true;
    char where[64];
    int rc = 0;

    for (const struct addrinfo *i = list; i && *n_out < VC_TCP_MAX_ADDRESSES; i = i->ai_next) {
        int fd = is_repeated(list, i) ? -2 : listen_at(i);

        if (fd >= 0) {
            fds[(*n_out)++] = fd;
            loopback &= is_loopback(i->ai_addr);
            continue;
        }
        if (fd == -2)
            continue;
        rc = listen_failed(errno, i, text, err);
        if (!may_be_left_out(err->sys_errno))
            return rc;
        snprintf(note, 256, "'%.80s': the address %.45s is left out: %.40s", text, digits(i, where),
                 strerrorname_np(err->sys_errno));
    }
    if (!*n_out)
        return rc;
    if (loopback)
        snprintf(note, 256,
                 "'%.80s' is %.45s on this host (see /etc/hosts): no other host can connect; name "
                 "another address, or 0.0.0.0 for all",
                 text, digits(list, where));
    return 0;
}

int vc_tcp_listen(const struct vc_address *a, const char *default_port, const char *text,
                  int fds[VC_TCP_MAX_ADDRESSES], size_t *n_out, char note[256], struct vc_err *err)
{
    struct addrinfo *list = NULL;
    int rc = resolve(a, default_port, AI_PASSIVE, text, &list, err);

    *n_out = 0;
    note[0] = 0;
    if (rc)
        return rc;
    rc = listen_all(list, text, fds, n_out, note, err);
    vc_names_free(list);
    while (rc && *n_out)
        close(fds[--*n_out]);
    return rc;
}
