/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <poll.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fdio.h"
#include "base/thread.h"
#include "net/ssh.h"

/* Connections of each kind: bytes pass both ways, an end is seen, a shutdown wakes who waits. */

#define MUCH (3u << 20) /* more than the kernel takes unread */

static char dir[] = "/tmp/vecycle-test-net-XXXXXX";
static const struct vc_dial_options plain = {.insecure = true};

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return rmdir(dir); /* it is empty, or a test has left something */
}

/* unix:DIR/NAME and its path. */
static const char *address(const char *name, char *path, size_t cap)
{
    static char out[PATH_MAX];

    snprintf(path, cap, "%s/%s", dir, name);
    snprintf(out, sizeof(out), "unix:%s/%s", dir, name);
    return out;
}

/* ---- what holds for every connection ---- */

static void put(struct vc_conn *c, const void *p, size_t n)
{
    struct iovec iov = {(void *)p, n};
    struct vc_err err;

    assert_int_equal(vc_conn_writev_all(c, &iov, 1, &err), 0);
}

static void get(struct vc_conn *c, void *p, size_t n)
{
    struct vc_err err;

    for (size_t have = 0; have < n;) {
        ssize_t got = vc_conn_read_some(c, (uint8_t *)p + have, n - have, &err);

        assert_true(got > 0);
        have += (size_t)got;
    }
}

struct job {
    struct vc_conn *c;
    uint8_t *p;
    size_t n;
    struct vc_err err;
    ssize_t rc;
};

static void *write_much(void *arg)
{
    struct job *j = arg;
    struct iovec *iov = calloc(MUCH / 1000 + 1, sizeof(*iov));
    size_t k = 0;

    for (size_t at = 0; at < j->n; at += 1000) /* more pieces than one call takes */
        iov[k++] = (struct iovec){j->p + at, VC_MIN((size_t)1000, j->n - at)};
    j->rc = vc_conn_writev_all(j->c, iov, k, &j->err);
    free(iov);
    return NULL;
}

static void *read_one(void *arg)
{
    struct job *j = arg;
    uint8_t c;

    j->rc = vc_conn_read_some(j->c, &c, 1, &j->err);
    return NULL;
}

static struct job much(struct vc_conn *c)
{
    struct job j = {.c = c, .p = malloc(MUCH), .n = MUCH};

    for (size_t i = 0; i < MUCH; i++)
        j.p[i] = (uint8_t)(i * 7 + i / 65536);
    return j;
}

static void carries_bytes(struct vc_conn *a, struct vc_conn *b)
{
    struct job j = much(a);
    uint8_t *back = malloc(MUCH), c;
    struct vc_thread t = {0};
    struct vc_err err;

    assert_int_equal(vc_thread_start(&t, "writer", write_much, &j, &err), 0);
    put(b, "y", 1); /* the other direction, meanwhile */
    get(b, back, MUCH);
    vc_thread_join(&t);
    assert_int_equal(j.rc, 0);
    assert_memory_equal(back, j.p, MUCH);
    get(a, &c, 1);
    assert_int_equal(c, 'y');
    free(back);
    free(j.p);
}

static void ends_in_order(struct vc_conn *a, struct vc_conn *b)
{
    uint8_t buf[8];
    struct vc_err err;

    put(a, "last", 4);
    vc_conn_shutdown_write(a);
    get(b, buf, 4);
    assert_memory_equal(buf, "last", 4);
    assert_int_equal(vc_conn_read_some(b, buf, sizeof(buf), &err), 0);
    put(b, "answer", 6); /* that direction is still open */
    get(a, buf, 6);
}

/* A reader is in its read, or about to enter it: both have to come back. */
static void shutdown_wakes_a_reader(struct vc_conn *a)
{
    struct job j = {.c = a, .rc = 99};
    struct vc_thread t = {0};
    struct vc_err err;

    assert_int_equal(vc_thread_start(&t, "reader", read_one, &j, &err), 0);
    vc_conn_shutdown(a);
    vc_conn_shutdown(a); /* any number of times */
    vc_thread_join(&t);
    assert_true(j.rc == 0 || j.rc == VC_E_PEER_LOST);
}

static void shutdown_wakes_a_writer(struct vc_conn *a, struct vc_conn *b)
{
    struct job j = much(a);
    struct vc_thread t = {0};
    struct vc_err err;
    uint8_t c;

    assert_int_equal(vc_thread_start(&t, "writer", write_much, &j, &err), 0);
    get(b, &c, 1); /* it has begun, and nobody reads on */
    vc_conn_shutdown(a);
    vc_thread_join(&t);
    assert_int_equal(j.rc, VC_E_PEER_LOST);
    assert_non_null(strstr(j.err.message, vc_conn_describe(a)));
    free(j.p);
}

/* ---- pairs ---- */

static void pair(struct vc_conn **a, struct vc_conn **b)
{
    struct vc_err err;

    assert_int_equal(vc_conn_pair(a, b, &err), 0);
    assert_int_equal(vc_conn_security(*a), VC_CONN_LOCAL);
}

static void a_pair_carries_bytes_and_ends(void **state)
{
    struct vc_conn *a, *b;

    (void)state;
    pair(&a, &b);
    carries_bytes(a, b);
    ends_in_order(a, b);
    vc_conn_close(a);
    vc_conn_close(b);
    vc_conn_close(NULL);
}

static void shutdown_wakes_who_waits(void **state)
{
    struct vc_conn *a, *b;

    (void)state;
    pair(&a, &b);
    shutdown_wakes_a_reader(a);
    vc_conn_close(a);
    vc_conn_close(b);
    pair(&a, &b);
    shutdown_wakes_a_writer(a, b);
    vc_conn_close(a);
    vc_conn_close(b);
}

static void a_peer_that_is_gone_is_an_error_to_a_writer(void **state)
{
    struct vc_conn *a, *b;
    struct job j;

    (void)state;
    pair(&a, &b);
    vc_conn_close(b);
    j = much(a);
    write_much(&j); /* and no SIGPIPE */
    assert_int_equal(j.rc, VC_E_PEER_LOST);
    free(j.p);
    vc_conn_close(a);
}

/* ---- pipes, as ssh's far end has them ---- */

static void pipes(struct vc_conn **a, struct vc_conn **b)
{
    int there[2], back[2];
    struct vc_err err;

    assert_int_equal(pipe(there), 0);
    assert_int_equal(pipe(back), 0);
    assert_int_equal(vc_conn_from_fds(back[0], there[1], VC_CONN_ENCRYPTED, "ours", a, &err), 0);
    assert_int_equal(vc_conn_from_fds(there[0], back[1], VC_CONN_ENCRYPTED, "theirs", b, &err), 0);
    assert_string_equal(vc_conn_describe(*a), "ours");
    assert_int_equal(vc_conn_security(*a), VC_CONN_ENCRYPTED);
}

static void pipes_do_as_well(void **state)
{
    struct vc_conn *a, *b;
    struct vc_err err;
    uint8_t c;

    (void)state;
    pipes(&a, &b);
    carries_bytes(a, b);
    vc_conn_close(a);
    assert_int_equal(vc_conn_read_some(b, &c, 1, &err), 0);
    vc_conn_close(b);
    pipes(&a, &b);
    shutdown_wakes_a_reader(a);
    vc_conn_close(a);
    vc_conn_close(b);
    pipes(&a, &b);
    shutdown_wakes_a_writer(a, b);
    vc_conn_close(a);
    vc_conn_close(b);
}

/* ---- descriptors that somebody else has as well ---- */

/* Who has the pipe too, and does something with it whenever poll(2) has found it ready. */
static int other_end = -1;
static void (*meddle)(void);
static sem_t met;

int __real_poll(struct pollfd *p, nfds_t n, int timeout_ms);
int __wrap_poll(struct pollfd *p, nfds_t n, int timeout_ms);

int __wrap_poll(struct pollfd *p, nfds_t n, int timeout_ms)
{
    int rc;

    if (!meddle)
        return __real_poll(p, n, timeout_ms);
    sem_post(&met);
    rc = __real_poll(p, n, timeout_ms);
    if (p[0].revents) {
        meddle();
        sem_post(&met);
    }
    return rc;
}

static void take_all(void)
{
    char buf[64];

    while (read(other_end, buf, sizeof(buf)) > 0) {
        /* more */
    }
}

static void fill(void)
{
    static char buf[4096];

    while (write(other_end, buf, sizeof(buf)) > 0) {
        /* more */
    }
}

/* An open file of its own, whose calls do not wait. */
static void meddle_with(int fd, int flags, void (*fn)(void))
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    other_end = open(path, flags | O_NONBLOCK | O_CLOEXEC);
    assert_true(other_end >= 0);
    assert_int_equal(sem_init(&met, 0, 0), 0);
    meddle = fn;
}

static void stop_meddling(void)
{
    meddle = NULL;
    close(other_end);
    sem_destroy(&met);
}

static void bytes_that_another_process_takes_do_not_keep_a_reader(void **state)
{
    struct vc_conn *a, *b;
    struct vc_thread t = {0};
    struct vc_err err;
    struct job j;

    (void)state;
    pipes(&a, &b);
    j = (struct job){.c = b};
    meddle_with(b->rfd, O_RDONLY, take_all);
    assert_int_equal(vc_thread_start(&t, "reader", read_one, &j, &err), 0);
    sem_wait(&met); /* it waits */
    assert_int_equal(write(a->wfd, "x", 1), 1);
    sem_wait(&met); /* what it was woken for is gone */
    vc_conn_shutdown(b);
    vc_thread_join(&t);
    assert_true(j.rc <= 0);
    stop_meddling();
    vc_conn_close(a);
    vc_conn_close(b);
}

static void room_that_another_process_takes_does_not_keep_a_writer(void **state)
{
    struct vc_conn *a, *b;
    struct vc_thread t = {0};
    struct vc_err err;
    struct job j;
    char some[65536];

    (void)state;
    pipes(&a, &b);
    j = much(a);
    meddle_with(a->wfd, O_WRONLY, fill);
    assert_int_equal(vc_thread_start(&t, "writer", write_much, &j, &err), 0);
    sem_wait(&met); /* it waits */
    assert_true(read(b->rfd, some, sizeof(some)) > 0);
    sem_wait(&met); /* the room that it was woken for is gone */
    vc_conn_shutdown(a);
    vc_thread_join(&t);
    assert_int_equal(j.rc, VC_E_PEER_LOST);
    free(j.p);
    stop_meddling();
    vc_conn_close(a);
    vc_conn_close(b);
}

static void only_streams_and_pipes_make_a_connection(void **state)
{
    int pairs[2][2], fds[8], n = 0;
    char path[PATH_MAX];

    (void)state;
    address("listener", path, sizeof(path));
    fds[n++] = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_USERSOCK);
    fds[n++] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    fds[n++] = vc_unix_listen(path, 0600, 1);
    fds[n++] = eventfd(0, EFD_CLOEXEC);
    fds[n++] = open("/dev/null", O_RDWR | O_CLOEXEC);
    fds[n++] = open(dir, O_PATH | O_CLOEXEC);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(
            socketpair(AF_UNIX, (i ? SOCK_DGRAM : SOCK_SEQPACKET) | SOCK_CLOEXEC, 0, pairs[i]), 0);
        fds[n++] = pairs[i][0];
    }
    for (int i = 0; i < n; i++) {
        int good[2], rfd = fds[i];
        struct vc_conn *c = NULL;
        struct vc_err err = VC_ERR_INIT;

        assert_true(rfd >= 0);
        assert_int_equal(pipe2(good, O_CLOEXEC), 0);
        /* One of the two is enough. */
        assert_int_equal(
            vc_conn_from_fds(dup(rfd), good[1], VC_CONN_LOCAL, "standard input", &c, &err),
            VC_E_USAGE);
        assert_non_null(strstr(err.message, "neither a stream socket nor a pipe"));
        assert_int_equal(vc_conn_from_fds(good[0], rfd, VC_CONN_LOCAL, "x", &c, &err), VC_E_USAGE);
        assert_null(c);
        assert_int_equal(fcntl(rfd, F_GETFD), -1); /* it was taken all the same */
    }
    close(pairs[0][1]);
    close(pairs[1][1]);
    assert_int_equal(unlink(path), 0);
}

/* ---- Unix sockets ---- */

static void dial_and_accept(struct vc_listener *l, const char *where,
                            const struct vc_dial_options *o, struct vc_conn **a, struct vc_conn **b)
{
    struct vc_err err = VC_ERR_INIT;

    if (vc_conn_dial(where, o, a, &err))
        fail_msg("%s", err.message);
    assert_int_equal(vc_wait_readable(vc_listener_fd(l), 10000), 1);
    assert_int_equal(vc_listener_accept(l, b, &err), 0);
}

static void a_unix_socket_carries_bytes(void **state)
{
    struct vc_dial_options none = {0};
    struct vc_listener *l;
    struct vc_conn *a, *b;
    char path[PATH_MAX];
    const char *where = address("s", path, sizeof(path));
    struct stat st;
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_listener_open(where, false, 0640, &l, &err), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0640);
    dial_and_accept(l, where, &none, &a, &b);
    assert_int_equal(vc_conn_security(a), VC_CONN_LOCAL);
    assert_int_equal(vc_conn_security(b), VC_CONN_LOCAL);
    assert_string_equal(vc_conn_describe(a), where);
    carries_bytes(a, b);
    ends_in_order(a, b);
    vc_conn_close(a);
    vc_conn_close(b);
    vc_listener_close(l);
    assert_int_equal(stat(path, &st), -1);
    vc_listener_close(NULL);
}

static void a_socket_in_use_is_left_alone(void **state)
{
    struct vc_listener *l, *other = NULL;
    struct vc_dial_options none = {0};
    struct vc_conn *a, *b;
    char path[PATH_MAX];
    const char *where = address("used", path, sizeof(path));
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    assert_int_equal(vc_listener_open(where, false, 0600, &l, &err), 0);
    assert_int_equal(vc_listener_open(where, false, 0600, &other, &err), VC_E_FAILED);
    assert_int_equal(err.sys_errno, EADDRINUSE);
    assert_null(other);
    /* (What the second one knocked with is the first to be accepted.) */
    assert_int_equal(vc_listener_accept(l, &b, &err), 0);
    vc_conn_close(b);
    dial_and_accept(l, where, &none, &a, &b);
    put(a, "x", 1);
    vc_conn_close(a);
    vc_conn_close(b);
    vc_listener_close(l);
}

static void a_socket_left_behind_is_replaced(void **state)
{
    struct vc_listener *l;
    char path[PATH_MAX];
    const char *where = address("dead", path, sizeof(path));
    struct vc_err err;
    int fd, file;

    (void)state;
    fd = vc_unix_listen(path, 0600, 1);
    assert_true(fd >= 0);
    close(fd); /* its file stays, as after a kill */
    assert_int_equal(vc_listener_open(where, false, 0600, &l, &err), 0);
    vc_listener_close(l);
    file = open(path, O_CREAT | O_WRONLY, 0600);
    assert_true(file >= 0);
    close(file);
    assert_int_equal(vc_listener_open(where, false, 0600, &l, &err), VC_E_FAILED);
    assert_int_equal(unlink(path), 0); /* a file is not a socket: it was left alone */
}

static void nobody_there_is_said_with_a_hint(void **state)
{
    struct vc_conn *c = NULL;
    struct vc_err err = VC_ERR_INIT;
    char path[PATH_MAX], endless[400] = "unix:"; /* a name longer than any file's */

    (void)state;
    assert_int_equal(vc_conn_dial(address("none", path, sizeof(path)), &plain, &c, &err),
                     VC_E_UNREACHABLE);
    assert_non_null(strstr(err.message, path));
    assert_true(err.hint[0]);
    memset(endless + 5, 'x', 300);
    assert_int_equal(vc_conn_dial(endless, &plain, &c, &err), VC_E_UNREACHABLE);
    assert_int_equal(err.sys_errno, ENAMETOOLONG);
    assert_null(c);
}

/* ---- TCP ---- */

static unsigned port_of(const struct vc_listener *l)
{
    struct sockaddr_in6 sa; /* the port is at the same place in both families */
    socklen_t n = sizeof(sa);

    assert_int_equal(getsockname(vc_listener_fd(l), (struct sockaddr *)&sa, &n), 0);
    return ntohs(sa.sin6_port);
}

static void tcp_over(const char *host)
{
    char where[64];
    struct vc_listener *l;
    struct vc_conn *a, *b;
    struct vc_err err = VC_ERR_INIT;

    snprintf(where, sizeof(where), "tcp://%s:0", host);
    if (vc_listener_open(where, true, 0, &l, &err)) {
        print_message("%s\n", err.message); /* no IPv6 here */
        return;
    }
    snprintf(where, sizeof(where), "tcp://%s:%u", host, port_of(l));
    dial_and_accept(l, where, &plain, &a, &b);
    assert_int_equal(vc_conn_security(a), VC_CONN_PLAINTEXT);
    assert_int_equal(vc_conn_security(b), VC_CONN_PLAINTEXT);
    carries_bytes(a, b);
    ends_in_order(a, b);
    vc_conn_close(a);
    vc_conn_close(b);
    dial_and_accept(l, where, &plain, &a, &b);
    shutdown_wakes_a_writer(a, b);
    vc_conn_close(a);
    vc_conn_close(b);
    vc_listener_close(l);
    assert_int_equal(vc_conn_dial(where, &plain, &a, &err), VC_E_UNREACHABLE);
    assert_non_null(strstr(err.message, where));
}

static void tcp_carries_bytes(void **state)
{
    (void)state;
    tcp_over("127.0.0.1");
    tcp_over("[::1]");
}

static void plain_tcp_has_to_be_asked_for(void **state)
{
    struct vc_dial_options secure = {0};
    struct vc_listener *l = NULL;
    struct vc_conn *c = NULL;
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    assert_int_equal(vc_conn_dial("tcp://127.0.0.1:1", &secure, &c, &err), VC_E_REFUSED);
    assert_true(err.hint[0]);
    assert_int_equal(vc_listener_open("tcp://127.0.0.1:0", false, 0, &l, &err), VC_E_REFUSED);
    assert_true(c == NULL && l == NULL);
}

static void what_is_no_address_is_refused(void **state)
{
    static const char *const addresses[] = {
        "",
        "host",
        "tcp://",
        "tcp://:7890",
        "tcp://host:",
        "tcp://[::1",
        "tcp://[::1]7890",
        "tcp://[]:1",
        "http://host",
        "ssh://",
        "ssh://:22",
        "ssh://host:",
        "ssh://host:2x",
        "ssh://-oProxyCommand=x",
    };

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(addresses); i++) {
        struct vc_conn *c = NULL;
        struct vc_err err = VC_ERR_INIT;

        if (vc_conn_dial(addresses[i], &plain, &c, &err) != VC_E_USAGE || c)
            fail_msg("'%s' was taken: %s", addresses[i], err.message);
        assert_true(err.hint[0]);
    }
}

/* ---- ssh ---- */

/* A program that stands in for ssh, made of this shell script. */
static const char *stand_in(const char *script, char *path, size_t cap)
{
    int fd;

    snprintf(path, cap, "%s/ssh", dir);
    fd = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0700);
    assert_true(fd >= 0);
    assert_true(dprintf(fd, "#!/bin/sh\n%s\n", script) > 0);
    close(fd);
    return path;
}

static void ssh_gets_its_arguments_and_carries_bytes(void **state)
{
    static const char expected[] =
        "-T -e none -o BatchMode=yes -x -a -o ControlMaster=no -o ControlPath=none -o "
        "ClearAllForwardings=yes -o RemoteCommand=none -o PermitLocalCommand=no -p 2222 me@there "
        "vecycle recv -v";
    char path[PATH_MAX], line[sizeof(expected)] = "";
    struct vc_dial_options o = {
        .ssh = stand_in("printf '%s' \"$*\"; exec cat", path, sizeof(path)),
        .remote = "vecycle recv -v",
    };
    struct vc_conn *c;
    struct vc_err err;
    uint8_t buf[5];

    (void)state;
    assert_int_equal(vc_conn_dial("ssh://me@there:2222", &o, &c, &err), 0);
    assert_int_equal(vc_conn_security(c), VC_CONN_ENCRYPTED);
    get(c, line, sizeof(expected) - 1);
    assert_string_equal(line, expected);
    put(c, "hello", 5);
    get(c, buf, 5);
    assert_memory_equal(buf, "hello", 5);
    vc_conn_shutdown_write(c);
    assert_int_equal(vc_conn_read_some(c, buf, 1, &err), 0);
    vc_conn_close(c);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* it was waited for */
    assert_int_equal(unlink(path), 0);
}

static void an_ssh_that_does_not_end_is_ended(void **state)
{
    char path[PATH_MAX];
    struct vc_dial_options o = {
        .ssh = stand_in("exec sleep 600 >/dev/null", path, sizeof(path)),
    };
    struct vc_conn *c;
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_conn_dial("ssh://there", &o, &c, &err), 0);
    vc_conn_close(c);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(unlink(path), 0);
}

static void no_ssh_is_said(void **state)
{
    struct vc_dial_options o = {.ssh = "/nonexistent/ssh"};
    struct vc_conn *c = NULL;
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    assert_int_equal(vc_conn_dial("ssh://there", &o, &c, &err), VC_E_UNREACHABLE);
    assert_non_null(strstr(err.message, "/nonexistent/ssh"));
    assert_true(err.lasts); /* no attempt will find it */
    assert_null(c);
}

/* ---- what comes before the other end's vecycle ---- */

static const struct vc_dial_options greeted = {
    .greeting = "\1\0\0\0vecycle\n",
    .greeting_bytes = 12,
    .greeting_at = 4,
};

static char logged[2000];

static void on_log(void *opaque, enum vc_log_level level, const char *text)
{
    (void)opaque;
    (void)level;
    snprintf(logged + strlen(logged), sizeof(logged) - strlen(logged), "%s|", text);
}

static int dial_script(const char *script, struct vc_conn **c, struct vc_err *err)
{
    char path[PATH_MAX];
    struct vc_log log = {.fn = on_log, .max = VC_LOG_WARNING};
    struct vc_dial_options o = greeted;
    int rc;

    logged[0] = 0;
    *err = VC_ERR_INIT;
    *c = NULL;
    o.ssh = stand_in(script, path, sizeof(path));
    o.log = &log;
    rc = vc_conn_dial("ssh://me@there", &o, c, err);
    assert_int_equal(unlink(path), 0);
    return rc;
}

#define HELLO "printf '\\031\\0\\0\\0\\001\\0\\0\\0vecycle\\n'; exec cat"

static void noise_before_the_greeting_is_skipped_and_shown(void **state)
{
    static const struct {
        const char *script, *shown;
    } cases[] = {
        {HELLO, ""},
        {"echo Welcome; " HELLO, "'Welcome'"},
        {"printf x; sleep 0.1; " HELLO, "'x'"},
        {"printf '\\r\\n\\033[1mHi\\0'; " HELLO, "'[1mHi'"},
        {"echo vecycle; echo vecycle; " HELLO, "'vecycle vecycle'"},
        {"head -c 80000 /dev/zero | tr '\\0' A; " HELLO, "80000 bytes"},
    };

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(cases); i++) {
        struct vc_conn *c;
        struct vc_err err;
        char frame[16];

        if (dial_script(cases[i].script, &c, &err))
            fail_msg("%s: %s", cases[i].script, err.message);
        get(c, frame, sizeof(frame));
        assert_memory_equal(frame + 8, "vecycle\n", 8);
        assert_int_equal(frame[4], 1); /* from its first byte on */
        vc_conn_close(c);
        if (!*cases[i].shown != !*logged || !strstr(logged, cases[i].shown))
            fail_msg("%s: logged '%s'", cases[i].script, logged);
    }
}

static void why_ssh_ended_is_told_once(void **state)
{
    static const struct {
        const char *script;
        int code;
        bool lasts;
        const char *says, *hint, *logs;
    } cases[] = {
        {"echo 'Host key verification failed.' >&2; exit 255", VC_E_UNREACHABLE, true,
         "(status 255): Host key verification failed.", "host's key", ""},
        {"echo first >&2; echo 'ssh: connect to host there port 22: No route to host' >&2; exit "
         "255",
         VC_E_UNREACHABLE, false, "No route to host", "network", "first"},
        {"echo 'me@there: Permission denied (publickey).' >&2; exit 255", VC_E_UNREACHABLE, true,
         "Permission denied", "without a password", ""},
        {"echo 'sh: vecycle: not found' >&2; exit 127", VC_E_UNREACHABLE, true,
         "'vecycle recv' is not there at 'me@there' (status 127)", "install vecycle", ""},
        {"exit 126", VC_E_UNREACHABLE, true, "cannot be run", "executable", ""},
        {"echo 'This account is currently not available.'; exit 1", VC_E_PEER_LOST, true,
         "(status 1): This account is currently not available.", "log in", ""},
        {"echo 'vecycle: the store is broken (mend it)' >&2; exit 40", VC_E_STORE, false,
         "'me@there': the store is broken", "mend it", ""},
        {"printf abc", VC_E_PEER_LOST, true, "(status 0): abc", "log in", ""},
        {"kill -9 $$", VC_E_UNREACHABLE, false, "signal 9", "", ""},
        {"kill -2 $$", VC_E_CANCELLED, false, "cancelled", "", ""},
        {"exec yes", VC_E_PROTOCOL, true, "is not vecycle", "--remote", ""},
    };

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(cases); i++) {
        struct vc_conn *c;
        struct vc_err err;
        int rc = dial_script(cases[i].script, &c, &err);

        if (rc != cases[i].code || err.lasts != cases[i].lasts ||
            !strstr(err.message, cases[i].says) || !strstr(err.hint, cases[i].hint) ||
            (!*cases[i].logs ? *logged : !strstr(logged, cases[i].logs)))
            fail_msg("%s: %d, '%s' (%s), logged '%s'", cases[i].script, rc, err.message, err.hint,
                     logged);
        assert_null(c);
    }
}

static void an_ssh_that_says_nothing_is_given_up(void **state)
{
    int cancel[2];
    char path[PATH_MAX];
    struct vc_dial_options o = greeted;
    struct vc_conn *c = NULL;
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    o.ssh = stand_in("printf hm; exec sleep 600", path, sizeof(path));
    o.timeout_ms = 50;
    assert_int_equal(vc_conn_dial("ssh://there", &o, &c, &err), VC_E_PEER_LOST);
    assert_non_null(strstr(err.message, "there"));
    assert_int_equal(pipe(cancel), 0);
    assert_int_equal(write(cancel[1], "x", 1), 1);
    o.timeout_ms = 0;
    o.cancel_fd = cancel[0];
    assert_int_equal(vc_conn_dial("ssh://there", &o, &c, &err), VC_E_CANCELLED);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    close(cancel[0]);
    close(cancel[1]);
    assert_int_equal(unlink(path), 0);
}

/* The process ends once the socket is closed. */
static void a_process_of_ssh_that_holds_the_socket_is_not_waited_for(void **state)
{
    struct vc_conn *c;
    struct vc_err err;

    (void)state;
    assert_int_equal(
        dial_script("exec 3<&0; cat <&3 >/dev/null & echo 'no route' >&2; exit 255", &c, &err),
        VC_E_UNREACHABLE);
    assert_non_null(strstr(err.message, "(status 255): no route"));
    /* What it had sent itself counts, and is looked at to its end. */
    assert_int_equal(dial_script("exec 3<&0; cat <&3 & head -c 20000 /dev/zero | tr '\\0' A; "
                                 "printf ' and B'; exit 3",
                                 &c, &err),
                     VC_E_PEER_LOST);
    assert_non_null(strstr(err.message, "(status 3): AAAA"));
    assert_null(c);
}

static void an_ssh_that_fails_in_the_middle_says_why(void **state)
{
    struct vc_conn *c;
    struct vc_err err;

    (void)state;
    assert_int_equal(dial_script("printf '\\031\\0\\0\\0\\001\\0\\0\\0vecycle\\n'; read x; echo "
                                 "'client_loop: Broken pipe' >&2; exit 255",
                                 &c, &err),
                     0);
    put(c, "\n", 1);
    vc_err_set(&err, VC_E_PEER_LOST, "'me@there' hung up");
    vc_conn_blame(c, &err);
    assert_int_equal(err.code, VC_E_PEER_LOST);
    assert_non_null(strstr(err.message, "hung up; ssh ended with status 255: client_loop: Broken"));
    vc_conn_close(c);
    assert_string_equal(logged, "");
}

struct lines {
    unsigned passed, left_out, others;
    bool first;
};

static void count_lines(void *opaque, enum vc_log_level level, const char *text)
{
    struct lines *l = opaque;
    unsigned n;

    (void)level;
    if (sscanf(text, "there: line %u", &n) == 1) {
        l->first |= n == 1;
        l->passed++;
    } else if (sscanf(text, "there: %u lines were left out", &n) == 1) {
        l->left_out += n;
    } else {
        l->others++;
    }
}

/* A line a second is more than a person reads, and at that rate these would take hours. */
#define MANY_LINES 20000

static void what_the_other_host_says_without_end_is_counted(void **state)
{
    struct lines l = {0};
    struct vc_log log = {.fn = count_lines, .opaque = &l, .max = VC_LOG_DEBUG};
    struct vc_dial_options o = greeted;
    struct vc_err err = VC_ERR_INIT;
    struct vc_conn *c = NULL;
    char path[PATH_MAX], frame[16];

    (void)state;
    o.ssh = stand_in("seq -f 'line %.0f' 20000 >&2; " HELLO, path, sizeof(path));
    o.log = &log;
    if (vc_conn_dial("ssh://there", &o, &c, &err))
        fail_msg("%s", err.message);
    get(c, frame, sizeof(frame));
    vc_conn_close(c);
    assert_int_equal(unlink(path), 0);
    assert_true(l.first);
    assert_int_equal(l.others, 0);
    assert_true(l.passed < MANY_LINES);
    assert_int_equal(l.passed + l.left_out, MANY_LINES);
}

/* As a pipe does that a process keeps filling. */
static void who_never_stops_talking_is_not_listened_to_for_ever(void **state)
{
    struct vc_ssh s = {.words = -1, .stop = -1, .mu = PTHREAD_MUTEX_INITIALIZER};
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_ssh_listen(&s, open("/dev/zero", O_RDONLY | O_CLOEXEC), &err), 0);
    vc_ssh_stop_listening(&s);
    pthread_mutex_destroy(&s.mu);
}

/* A terminal's signals go to its foreground's process group, which is ours. */
static void ssh_is_in_a_process_group_of_its_own(void **state)
{
    struct vc_conn *c;
    struct vc_err err;
    char frame[16], line[64] = "";
    int pid, group, session;

    (void)state;
    assert_int_equal(
        dial_script("printf '\\031\\0\\0\\0\\001\\0\\0\\0vecycle\\n'; read -r pid a b c "
                    "group session rest </proc/self/stat; echo $$ $group $session",
                    &c, &err),
        0);
    get(c, frame, sizeof(frame));
    for (size_t n = 0; n < sizeof(line) - 1 && (!n || line[n - 1] != '\n'); n++)
        get(c, line + n, 1);
    assert_int_equal(sscanf(line, "%d %d %d", &pid, &group, &session), 3);
    assert_int_equal(group, pid);
    assert_int_equal(session, getsid(0)); /* whose terminal it may ask at */
    vc_conn_close(c);
}

static void an_ssh_command_is_a_command_line(void **state)
{
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"ssh", "ssh|"},
        {" ssh  -p\t22 ", "ssh|-p|22|"},
        {"ssh -i '/a b/key'", "ssh|-i|/a b/key|"},
        {"ssh -o \"ProxyCommand=nc -x 'p' %h\"", "ssh|-o|ProxyCommand=nc -x 'p' %h|"},
        {"a'b c'd", "ab cd|"},
        {"'it''s' \"a\"\"b\"", "it's|a\"b|"},
        {"x '' y", "x||y|"},
        {"a\\b", "a\\b|"},
    };
    const char *words[VC_SSH_MAX_WORDS];
    char buf[300], got[300];
    struct vc_err err;
    size_t n;

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(cases); i++) {
        assert_int_equal(vc_ssh_split(cases[i].text, buf, words, &n, &err), 0);
        got[0] = 0;
        for (size_t k = 0; k < n; k++)
            snprintf(got + strlen(got), sizeof(got) - strlen(got), "%s|", words[k]);
        assert_string_equal(got, cases[i].words);
    }
    assert_int_equal(vc_ssh_split("", buf, words, &n, &err), VC_E_USAGE);
    assert_int_equal(vc_ssh_split(" ", buf, words, &n, &err), VC_E_USAGE);
    assert_int_equal(vc_ssh_split("ssh 'x", buf, words, &n, &err), VC_E_USAGE);
    assert_int_equal(vc_ssh_split("''", buf, words, &n, &err), VC_E_USAGE);
}

/* ---- addresses ---- */

static void addresses_are_taken_apart_in_one_way(void **state)
{
    static const struct {
        const char *text, *user, *host, *port, *full;
    } cases[] = {
        {"host2", "", "host2", "", "ssh://host2"},
        {"root@host2", "root", "host2", "", "ssh://root@host2"},
        {"root@host2:2222", "root", "host2", "2222", "ssh://root@host2:2222"},
        {"me@work@host2", "me@work", "host2", "", "ssh://me@work@host2"},
        {"ssh://host2/", "", "host2", "", "ssh://host2"},
        {"fd00::2", "", "fd00::2", "", "ssh://[fd00::2]"},
        {"::1", "", "::1", "", "ssh://[::1]"},
        {"root@fd00::beef", "root", "fd00::beef", "", "ssh://root@[fd00::beef]"},
        {"root@[fd00::2]:22", "root", "fd00::2", "22", "ssh://root@[fd00::2]:22"},
        {"fe80::1%eth0", "", "fe80::1%eth0", "", "ssh://[fe80::1%eth0]"},
        {"2001:db8:1:2:3:4:5:6", "", "2001:db8:1:2:3:4:5:6", "", "ssh://[2001:db8:1:2:3:4:5:6]"},
        {"::ffff:10.0.0.1", "", "::ffff:10.0.0.1", "", "ssh://[::ffff:10.0.0.1]"},
        {"tls://host2", "", "host2", "", "tls://host2"},
        {"tls://fd00::2", "", "fd00::2", "", "tls://[fd00::2]"},
        {"tls://[fe80::1%eth0]:7891", "", "fe80::1%eth0", "7891", "tls://[fe80::1%eth0]:7891"},
        {"tcp://10.0.0.1:0", "", "10.0.0.1", "0", "tcp://10.0.0.1:0"},
    };

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(cases); i++) {
        struct vc_address a;
        struct vc_err err = VC_ERR_INIT;
        char full[300];

        if (vc_address_parse(cases[i].text, &a, &err))
            fail_msg("%s: %s", cases[i].text, err.message);
        assert_string_equal(a.user, cases[i].user);
        assert_string_equal(a.host, cases[i].host);
        assert_string_equal(a.port, cases[i].port);
        assert_true(vc_address_format(&a, NULL, full, sizeof(full)));
        assert_string_equal(full, cases[i].full);
    }
}

static void what_has_two_meanings_is_refused_with_both(void **state)
{
    static const char *const addresses[] = {"fd00::1:22", "root@fe80::1:7891", "tls://fd00::1:2",
                                            "tcp://::1:2"};

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(addresses); i++) {
        struct vc_address a;
        struct vc_err err = VC_ERR_INIT;

        assert_int_equal(vc_address_parse(addresses[i], &a, &err), VC_E_USAGE);
        assert_non_null(strstr(err.message, "two ways"));
        assert_non_null(strstr(err.hint, "[V6]:PORT"));
    }
}

static void certificates_know_neither_brackets_nor_zones(void **state)
{
    static const char *const cases[][2] = {
        {"host2", "host2"},       {"10.0.0.1", "10.0.0.1"},   {"fe80::1%eth0", "fe80::1"},
        {"[fd00::2]", "fd00::2"}, {"[fe80::1%2]", "fe80::1"}, {"[host]", "[host]"},
        {"a%b", "a%b"},
    };
    char out[256];

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(cases); i++) {
        vc_address_bare(cases[i][0], out);
        assert_string_equal(out, cases[i][1]);
    }
}

/* Of the family that is there. */
static void every_address_of_a_name_is_listened_on(void **state)
{
    struct vc_listener *l = NULL, *any = NULL;
    struct vc_err err = VC_ERR_INIT;
    struct vc_conn *a, *b;
    char v4[64], v6[64], where[64];
    int probe = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in6 sa = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    socklen_t n = sizeof(sa);

    (void)state;
    if (probe < 0 || bind(probe, (struct sockaddr *)&sa, n) < 0 ||
        getsockname(probe, (struct sockaddr *)&sa, &n) < 0) {
        print_message("no IPv6 here\n");
        return;
    }
    close(probe);
    snprintf(where, sizeof(where), "tcp://localhost:%u", ntohs(sa.sin6_port));
    snprintf(v4, sizeof(v4), "tcp://127.0.0.1:%u", ntohs(sa.sin6_port));
    snprintf(v6, sizeof(v6), "tcp://[::1]:%u", ntohs(sa.sin6_port));
    if (vc_listener_open(where, true, 0, &l, &err))
        fail_msg("%s", err.message);
    assert_non_null(strstr(vc_listener_note(l), "no other host can connect"));
    dial_and_accept(l, v4, &plain, &a, &b);
    put(a, "4", 1);
    vc_conn_close(a);
    vc_conn_close(b);
    if (!vc_conn_dial(v6, &plain, &a, &err)) { /* localhost may be IPv4 alone here */
        vc_conn_close(a);
        assert_int_equal(vc_listener_accept(l, &b, &err), 0);
        vc_conn_close(b);
    }
    vc_listener_close(l);
    /* Both wildcards at one port. */
    snprintf(v4, sizeof(v4), "tcp://0.0.0.0:%u", ntohs(sa.sin6_port));
    snprintf(v6, sizeof(v6), "tcp://[::]:%u", ntohs(sa.sin6_port));
    assert_int_equal(vc_listener_open(v4, true, 0, &l, &err), 0);
    assert_int_equal(vc_listener_open(v6, true, 0, &any, &err), 0);
    assert_string_equal(vc_listener_note(any), "");
    vc_listener_close(l);
    vc_listener_close(any);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pair_carries_bytes_and_ends),
        cmocka_unit_test(shutdown_wakes_who_waits),
        cmocka_unit_test(a_peer_that_is_gone_is_an_error_to_a_writer),
        cmocka_unit_test(pipes_do_as_well),
        cmocka_unit_test(bytes_that_another_process_takes_do_not_keep_a_reader),
        cmocka_unit_test(room_that_another_process_takes_does_not_keep_a_writer),
        cmocka_unit_test(only_streams_and_pipes_make_a_connection),
        cmocka_unit_test(a_unix_socket_carries_bytes),
        cmocka_unit_test(a_socket_in_use_is_left_alone),
        cmocka_unit_test(a_socket_left_behind_is_replaced),
        cmocka_unit_test(nobody_there_is_said_with_a_hint),
        cmocka_unit_test(tcp_carries_bytes),
        cmocka_unit_test(plain_tcp_has_to_be_asked_for),
        cmocka_unit_test(what_is_no_address_is_refused),
        cmocka_unit_test(ssh_gets_its_arguments_and_carries_bytes),
        cmocka_unit_test(an_ssh_that_does_not_end_is_ended),
        cmocka_unit_test(no_ssh_is_said),
        cmocka_unit_test(noise_before_the_greeting_is_skipped_and_shown),
        cmocka_unit_test(why_ssh_ended_is_told_once),
        cmocka_unit_test(an_ssh_that_says_nothing_is_given_up),
        cmocka_unit_test(a_process_of_ssh_that_holds_the_socket_is_not_waited_for),
        cmocka_unit_test(an_ssh_that_fails_in_the_middle_says_why),
        cmocka_unit_test(what_the_other_host_says_without_end_is_counted),
        cmocka_unit_test(who_never_stops_talking_is_not_listened_to_for_ever),
        cmocka_unit_test(ssh_is_in_a_process_group_of_its_own),
        cmocka_unit_test(an_ssh_command_is_a_command_line),
        cmocka_unit_test(addresses_are_taken_apart_in_one_way),
        cmocka_unit_test(what_has_two_meanings_is_refused_with_both),
        cmocka_unit_test(certificates_know_neither_brackets_nor_zones),
        cmocka_unit_test(every_address_of_a_name_is_listened_on),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
