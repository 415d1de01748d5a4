/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "net/names.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fdio.h"

/* The process takes a question and a socket for the answer, and has a child of its own answer, so
 * that a module that crashes or hangs costs one answer. Both ends are one program: the messages are
 * structs.
 *
 * We cannot start it again once our system calls are filtered. So its parent is not ours but a
 * process that does nothing but that: it has the socket, too, and the questions wait in there. */

#define MOST_ADDRESSES 32
/** Longer than any resolver tries by default. */
#define LOOKUP_MS 60000
/** Before the process is started again: whatever ends it may do so at once. */
#define PAUSE_MS 100

struct question {
    int flags, family, socktype;
    char host[256], port[32];
    bool no_host;
};

struct answer {
    int rc, system_errno; /* of EAI_SYSTEM */
    unsigned n;
    struct {
        int family, socktype, protocol;
        socklen_t len;
        struct sockaddr_storage addr;
    } a[MOST_ADDRESSES];
};

static int helper_fd = -1;

static void look_up(const struct question *q, struct answer *out)
{
    struct addrinfo want = {q->flags, q->family, q->socktype, 0, 0, NULL, NULL, NULL};
    struct addrinfo *list = NULL;

    memset(out, 0, sizeof(*out));
    out->rc = getaddrinfo(q->no_host ? NULL : q->host, q->port, &want, &list);
    out->system_errno = errno;
    if (out->rc)
        return;
    for (const struct addrinfo *i = list; i && out->n < MOST_ADDRESSES; i = i->ai_next) {
        if (i->ai_addrlen > sizeof(out->a[0].addr))
            continue;
        out->a[out->n].family = i->ai_family;
        out->a[out->n].socktype = i->ai_socktype;
        out->a[out->n].protocol = i->ai_protocol;
        out->a[out->n].len = i->ai_addrlen;
        memcpy(&out->a[out->n++].addr, i->ai_addr, i->ai_addrlen);
    }
    freeaddrinfo(list);
}

/* ---- the process ---- */

static void answer(const struct question *q, int fd)
{
    struct answer out;

    look_up(q, &out);
    if (send(fd, &out, sizeof(out), MSG_NOSIGNAL) < 0)
        _exit(1);
    _exit(0);
}

static void serve(int fd)
{
    signal(SIGCHLD, SIG_IGN); /* nobody waits for those that answer */
    for (;;) {
        struct question q;
        size_t n_fds = 0;
        int to = -1;
        ssize_t n = vc_recv_fds(fd, &q, sizeof(q), &to, 1, &n_fds);

        if (n <= 0)
            _exit(0); /* whose process it was is gone */
        q.host[sizeof(q.host) - 1] = q.port[sizeof(q.port) - 1] = 0;
        if (n == sizeof(q) && n_fds == 1 && fork() == 0)
            answer(&q, to);
        if (n_fds)
            close(to);
    }
}

/* Runs the process until it ends by itself. */
static void keep_serving(int fd)
{
    int status = 0;

    for (;;) {
        pid_t pid = fork();

        if (pid == 0)
            serve(fd);
        while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
            /* again */
        }
        if (pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0)
            _exit(0);
        poll(NULL, 0, PAUSE_MS);
    }
}

/* It keeps nothing of its parent's, and ends with it rather than by a signal to a whole group, so
 * that a lookup can be made until then. */
static void be_helper(int fd)
{
    static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    setsid();
    prctl(PR_SET_NAME, "vecycle-names");
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    for (size_t i = 0; i < VC_ARRAY_LEN(ignored); i++)
        signal(ignored[i], SIG_IGN);
    signal(SIGCHLD, SIG_DFL);
    for (int i = 0; i < 3 && null >= 0; i++)
        dup2(null, i);
    fd = dup3(fd, 3, O_CLOEXEC) == 3 || fd == 3 ? 3 : fd;
    close_range((unsigned)fd + 1, ~0u, 0);
    keep_serving(fd);
}

int vc_names_start(struct vc_err *err)
{
    pid_t pid;
    int fds[2];

    if (helper_fd >= 0)
        return 0;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot make a socket for looking up names");
    pid = fork();
    if (pid == 0) {
        close(fds[0]);
        be_helper(fds[1]);
    }
    close(fds[1]);
    if (pid < 0) {
        close(fds[0]);
        return vc_err_set_errno(err, VC_E_FAILED, "cannot start a process for looking up names");
    }
    helper_fd = fds[0];
    return 0;
}

void vc_names_stop(void)
{
    if (helper_fd < 0)
        return;
    close(helper_fd);
    helper_fd = -1;
}

/* ---- asking ---- */

static struct addrinfo *add_one(const struct answer *in, unsigned i)
{
    struct addrinfo *a = calloc(1, sizeof(*a) + sizeof(in->a[i].addr));

    if (!a)
        return NULL;
    a->ai_family = in->a[i].family;
    a->ai_socktype = in->a[i].socktype;
    a->ai_protocol = in->a[i].protocol;
    a->ai_addrlen = VC_MIN(in->a[i].len, (socklen_t)sizeof(in->a[i].addr));
    a->ai_addr = (struct sockaddr *)(a + 1);
    memcpy(a->ai_addr, &in->a[i].addr, a->ai_addrlen);
    return a;
}

static int unpack(const struct answer *in, struct addrinfo **out)
{
    struct addrinfo *list = NULL, **end = &list;

    for (unsigned i = 0; i < in->n && i < MOST_ADDRESSES; i++) {
        *end = add_one(in, i);
        if (!*end) {
            vc_names_free(list);
            return EAI_MEMORY;
        }
        end = &(*end)->ai_next;
    }
    *out = list;
    return list ? 0 : EAI_NONAME;
}

static int take(const struct answer *in, struct addrinfo **out)
{
    errno = in->system_errno;
    return in->rc ? in->rc : unpack(in, out);
}

/* Why there is no answer: both processes are gone, or this look-up has failed. */
static int no_answer(void)
{
    struct pollfd p = {.fd = helper_fd};

    return poll(&p, 1, 0) > 0 && p.revents & (POLLHUP | POLLERR) ? VC_NAMES_ENDED : EAI_AGAIN;
}

static int ask(const struct question *q, struct addrinfo **out)
{
    vc_auto_close int mine = -1, theirs = -1;
    vc_auto_free struct answer *in = calloc(1, sizeof(*in));
    int fds[2];

    if (!in)
        return EAI_MEMORY;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return EAI_SYSTEM;
    mine = fds[0];
    theirs = fds[1];
    if (vc_send_fds(helper_fd, q, sizeof(*q), &theirs, 1) < 0)
        return no_answer();
    close(vc_steal_fd(&theirs)); /* so that its end ends the waiting */
    if (vc_wait_readable(mine, LOOKUP_MS) <= 0 ||
        recv(mine, in, sizeof(*in), 0) != (ssize_t)sizeof(*in))
        return no_answer();
    return take(in, out);
}

static int find_here(const struct question *q, struct addrinfo **out)
{
    vc_auto_free struct answer *in = calloc(1, sizeof(*in));

    if (!in)
        return EAI_MEMORY;
    look_up(q, in);
    return take(in, out);
}

/* What is an address, with a zone or without, needs nobody to look it up. */
static int find_number(const struct question *q, struct addrinfo **out)
{
    struct question number = *q;

    number.flags |= AI_NUMERICHOST;
    return find_here(&number, out);
}

int vc_names_find(const char *host, const char *port, const struct addrinfo *want,
                  struct addrinfo **out)
{
    struct question q;

    memset(&q, 0, sizeof(q));
    q.flags = want->ai_flags;
    q.family = want->ai_family;
    q.socktype = want->ai_socktype;
    q.no_host = !host;
    *out = NULL;
    if ((host && snprintf(q.host, sizeof(q.host), "%s", host) >= (int)sizeof(q.host)) ||
        snprintf(q.port, sizeof(q.port), "%s", port) >= (int)sizeof(q.port))
        return EAI_NONAME;
    if (helper_fd < 0)
        return find_here(&q, out);
    return host && find_number(&q, out) == 0 ? 0 : ask(&q, out);
}

void vc_names_free(struct addrinfo *list)
{
    while (list) {
        struct addrinfo *next = list->ai_next;

        free(list);
        list = next;
    }
}
