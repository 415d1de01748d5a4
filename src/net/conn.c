/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/fdio.h"
#include "net/internal.h"

#define DEFAULT_TIMEOUT_MS 10000

/* A socket that is not there may be in a moment: its agent starts. One that is not ours to open
 * stays so. */
static int dial_unix(const struct vc_address *a, const char *text, int *fd, struct vc_err *err)
{
    bool denied;

    *fd = vc_unix_connect(a->path);
    if (*fd >= 0)
        return 0;
    denied = errno == EACCES || errno == EPERM;
    vc_err_set_errno_hint(err, denied ? VC_E_REFUSED : VC_E_UNREACHABLE,
                          denied            ? "become its owner, or root"
                          : errno == EAGAIN ? "the agent there takes no connection: is it stopped?"
                                            : "is 'vecycle serve --listen' running there?",
                          "cannot connect to '%s'", text);
    err->lasts = denied || (err->sys_errno != ECONNREFUSED && err->sys_errno != EAGAIN);
    return err->code;
}

static int dial_tcp(const struct vc_address *a, const struct vc_dial_options *o, const char *text,
                    int *fd, struct vc_err *err)
{
    if (a->scheme == VC_SCHEME_TCP && !o->insecure)
        return vc_err_set_hint(err, VC_E_REFUSED, "use ssh://HOST or tls://HOST, or say --insecure",
                               "'%s' would send the VM's memory in the clear", text);
    return vc_tcp_connect(
        a, a->scheme == VC_SCHEME_TLS ? VC_NET_DEFAULT_TLS_PORT : VC_NET_DEFAULT_PORT, o, text, fd,
        err);
}

static enum vc_conn_security security_of(enum vc_scheme scheme)
{
    switch (scheme) {
    case VC_SCHEME_UNIX:
        return VC_CONN_LOCAL;
    case VC_SCHEME_TCP:
        return VC_CONN_PLAINTEXT;
    default:
        return VC_CONN_ENCRYPTED; /* TLS: from the handshake on, before which nothing passes */
    }
}

static int secure(struct vc_conn *c, const struct vc_address *a, const struct vc_dial_options *o,
                  struct vc_err *err)
{
    struct vc_tls_options defaults = VC_TLS_OPTIONS_INIT;

    c->ops = &vc_tls_pending_ops;
    return vc_tls_connect(c, a->host, o->tls ? o->tls : &defaults, err);
}

/* Short forms are for people, and completed by whoever talks to them. */
static int parse(const char *text, struct vc_address *a, struct vc_err *err)
{
    int rc = vc_address_parse(text, a, err);

    if (!rc && a->scheme == VC_SCHEME_SSH && strncmp(text, "ssh://", 6) != 0)
        rc = vc_err_set_hint(err, VC_E_USAGE, "unix:PATH, ssh://HOST, tls://HOST or tcp://HOST",
                             "'%s' has no scheme", text);
    return rc;
}

int vc_conn_dial(const char *address, const struct vc_dial_options *options, struct vc_conn **out,
                 struct vc_err *err)
{
    struct vc_dial_options o = *options;
    struct vc_ssh *ssh = NULL;
    struct vc_address a;
    int fd = -1, rc = parse(address, &a, err);

    if (!o.timeout_ms)
        o.timeout_ms = DEFAULT_TIMEOUT_MS;
    if (rc)
        return rc;
    if (a.scheme == VC_SCHEME_UNIX)
        rc = dial_unix(&a, address, &fd, err);
    else if (a.scheme == VC_SCHEME_SSH)
        rc = vc_ssh_start(&a, &o, &ssh, &fd, err);
    else
        rc = dial_tcp(&a, &o, address, &fd, err);
    if (rc)
        return rc;
    rc = vc_conn_from_fds(fd, fd, security_of(a.scheme), address, out, err);
    if (rc) {
        vc_ssh_end(ssh);
        return rc;
    }
    (*out)->ssh = ssh;
    if (a.scheme == VC_SCHEME_TLS)
        rc = secure(*out, &a, &o, err);
    else if (ssh && o.greeting)
        rc = vc_ssh_await(ssh, fd, err);
    if (rc) {
        vc_conn_close(*out);
        *out = NULL;
    }
    return rc;
}

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

void vc_conn_blame(struct vc_conn *c, struct vc_err *err)
{
    if (c && c->ssh)
        vc_ssh_blame(c->ssh, err);
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
    for (size_t i = 0; i < 2; i++) {
        vc_cleanup_close(&c->in[i]);
        vc_cleanup_close(&c->out[i]);
    }
    vc_ssh_end(c->ssh);
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
    int fds[VC_TCP_MAX_ADDRESSES]; /* one for each address */
    size_t n;
    int any; /* an epoll instance with all of them, where they are several; else -1 */
    enum vc_conn_security security;
    bool tls;
    char *path; /* Unix: to be removed */
    char address[256];
    char note[256];
};

static int listen_unix(struct vc_listener *l, const struct vc_address *a, unsigned mode,
                       struct vc_err *err)
{
    int e;

    l->path = strdup(a->path);
    if (!l->path)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a listener");
    l->fds[0] = vc_unix_listen(a->path, mode, 16);
    e = errno;
    if (l->fds[0] >= 0) {
        l->n = 1;
        return 0;
    }
    free(vc_steal_ptr(l->path)); /* it is not ours to remove */
    errno = e;
    return vc_err_set_errno_hint(err, VC_E_FAILED, vc_listen_hint(e), "cannot listen on '%s'",
                                 l->address);
}

/* One descriptor to wait for, however many there are. */
static int join(struct vc_listener *l, struct vc_err *err)
{
    if (l->n < 2)
        return 0;
    l->any = epoll_create1(EPOLL_CLOEXEC);
    for (size_t i = 0; i < l->n && l->any >= 0; i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.fd = l->fds[i]};

        if (epoll_ctl(l->any, EPOLL_CTL_ADD, l->fds[i], &e) < 0)
            vc_cleanup_close(&l->any);
    }
    return l->any < 0 ? vc_err_set_errno(err, VC_E_FAILED, "cannot wait on '%s'", l->address) : 0;
}

static int open_listener(struct vc_listener *l, const char *address, bool insecure, unsigned mode,
                         struct vc_err *err)
{
    struct vc_address a;
    int rc = vc_address_parse(address, &a, err);

    if (rc)
        return rc;
    l->security = security_of(a.scheme);
    l->tls = a.scheme == VC_SCHEME_TLS;
    if (a.scheme == VC_SCHEME_UNIX)
        return listen_unix(l, &a, mode, err);
    if (a.scheme == VC_SCHEME_SSH)
        return vc_err_set_hint(err, VC_E_USAGE, "unix:PATH, tls://HOST:PORT or tcp://HOST:PORT",
                               "'%s' is not an address to listen on", address);
    if (a.scheme == VC_SCHEME_TCP && !insecure)
        return vc_err_set_hint(err, VC_E_REFUSED, "use ssh or tls://, or say --insecure",
                               "'%s' would take VMs' memory in the clear", address);
    rc = vc_tcp_listen(&a, l->tls ? VC_NET_DEFAULT_TLS_PORT : VC_NET_DEFAULT_PORT, address, l->fds,
                       &l->n, l->note, err);
    return rc ? rc : join(l, err);
}

int vc_listener_open(const char *address, bool insecure, unsigned mode, struct vc_listener **out,
                     struct vc_err *err)
{
    struct vc_listener *l = calloc(1, sizeof(*l));
    int rc;

    if (!l)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a listener");
    l->any = -1;
    snprintf(l->address, sizeof(l->address), "%s", address);
    rc = open_listener(l, address, insecure, mode, err);
    if (rc)
        vc_listener_close(l);
    else
        *out = l;
    return rc;
}

const char *vc_listen_hint(int e)
{
    switch (e) {
    case EADDRINUSE:
        return "something is at that path; remove it, unless a program uses it";
    case ENOENT:
    case ENOTDIR:
        return "make the directory first";
    case EACCES:
    case EPERM:
        return "this user may not make a socket there";
    case ENAMETOOLONG:
        return "choose a shorter path";
    default:
        return NULL;
    }
}

int vc_listener_fd(const struct vc_listener *l)
{
    return l->any >= 0 ? l->any : l->fds[0];
}

/* Which of them has a connection. */
static int ready_fd(const struct vc_listener *l)
{
    struct epoll_event e = {.data.fd = l->fds[0]};

    if (l->any >= 0)
        while (epoll_wait(l->any, &e, 1, -1) < 0 && errno == EINTR) {
            /* again */
        }
    return e.data.fd;
}

/* Who has come. A Unix socket's other end has no name: there it is how he came. */
static void name_peer(const struct vc_listener *l, int fd, char text[256])
{
    char address[64];

    snprintf(text, 256, "%s", l->address);
    if (l->security == VC_CONN_LOCAL)
        return;
    vc_tcp_remote(fd, address, sizeof(address));
    snprintf(text, 256, strchr(address, ':') ? "tcp://[%s]" : "tcp://%s", address);
}

int vc_listener_accept(struct vc_listener *l, struct vc_conn **out, struct vc_err *err)
{
    char peer[256];
    int fd = accept4(ready_fd(l), NULL, NULL, SOCK_CLOEXEC), rc;

    if (fd < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot accept on '%s'", l->address);
    if (l->security != VC_CONN_LOCAL)
        vc_tcp_tune(fd);
    name_peer(l, fd, peer);
    rc = vc_conn_from_fds(fd, fd, l->security, peer, out, err);
    if (!rc && l->tls)
        (*out)->ops = &vc_tls_pending_ops;
    return rc;
}

const char *vc_listener_note(const struct vc_listener *l)
{
    return l->note;
}

bool vc_listener_is_tls(const struct vc_listener *l)
{
    return l->tls;
}

void vc_listener_close(struct vc_listener *l)
{
    if (!l)
        return;
    for (size_t i = 0; i < l->n; i++)
        close(l->fds[i]);
    vc_cleanup_close(&l->any);
    if (l->path)
        unlink(l->path);
    free(l->path);
    free(l);
}
