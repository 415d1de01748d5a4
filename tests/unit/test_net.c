/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fdio.h"
#include "base/thread.h"
#include "net/net.h"

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
    char path[PATH_MAX], endless[400] = "unix:";

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
    static const char expected[] = "-T -e none -o BatchMode=yes -p 2222 me@there vecycle recv -v";
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
    assert_null(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pair_carries_bytes_and_ends),
        cmocka_unit_test(shutdown_wakes_who_waits),
        cmocka_unit_test(a_peer_that_is_gone_is_an_error_to_a_writer),
        cmocka_unit_test(pipes_do_as_well),
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
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
