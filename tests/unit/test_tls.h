/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef TEST_TLS_H
#define TEST_TLS_H

/* Of a handshake that is to succeed, however busy the machine is. */
#define PATIENT_MS 600000u

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "base/fdio.h"
#include "base/thread.h"
#include "net/net.h"

/* What the tests of TLS share: hosts' directories in a temporary one, a server in a thread, and
 * peers made of bare OpenSSL that do what ours would not. */

static char root[] = "/tmp/vecycle-tls-XXXXXX";

static inline const char *path(const char *rest)
{
    static char texts[8][300];
    static unsigned next;
    char *text = texts[next++ % 8];

    snprintf(text, sizeof(texts[0]), "%s/%s", root, rest);
    return text;
}

static inline int make_hosts(const char *ca, int64_t now, uint32_t days, const char *host,
                             struct vc_err *err)
{
    struct vc_tls_ca_options o = {
        .dir = path(ca), .hosts = &host, .n_hosts = 1, .now = now, .days = days};

    return vc_tls_ca_init(&o, err);
}

static inline void remove_tree(const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    char sub[600];

    if (!d)
        return;
    while ((e = readdir(d))) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        snprintf(sub, sizeof(sub), "%.300s/%.255s", dir, e->d_name);
        if (unlink(sub) < 0)
            remove_tree(sub);
    }
    closedir(d);
    rmdir(dir);
}

static inline void copy_file(const char *from, const char *to)
{
    static char bytes[1 << 16];
    int in = open(path(from), O_RDONLY), out = open(path(to), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ssize_t n = read(in, bytes, sizeof(bytes));

    assert_true(in >= 0 && out >= 0 && n > 0);
    assert_int_equal(write(out, bytes, (size_t)n), n);
    close(in);
    close(out);
}

/* ---- a server that takes one connection ---- */

struct server {
    struct vc_listener *listener;
    struct vc_thread thread;
    struct vc_tls_options o;
    char dir[300];
    char address[64];
    int port;
    struct vc_conn *conn; /* after join_server() */
    struct vc_err err;
    int rc;
};

static inline void *server_main(void *arg)
{
    struct server *s = arg;

    s->rc = vc_listener_accept(s->listener, &s->conn, &s->err);
    if (!s->rc)
        s->rc = vc_conn_tls_accept(s->conn, &s->o, &s->err);
    return NULL;
}

static inline void start_server(struct server *s, const char *dir)
{
    struct sockaddr_in sa;
    socklen_t n = sizeof(sa);
    struct vc_err err;

    snprintf(s->dir, sizeof(s->dir), "%s", path(dir));
    s->o = VC_TLS_OPTIONS_INIT;
    s->o.dir = s->dir;
    s->o.handshake_ms = PATIENT_MS;
    assert_int_equal(vc_listener_open("tls://127.0.0.1:0", false, 0, &s->listener, &err), 0);
    assert_true(vc_listener_is_tls(s->listener));
    assert_int_equal(getsockname(vc_listener_fd(s->listener), (struct sockaddr *)&sa, &n), 0);
    s->port = ntohs(sa.sin_port);
    snprintf(s->address, sizeof(s->address), "tls://127.0.0.1:%d", s->port);
}

static inline void run_server(struct server *s)
{
    struct vc_err err;

    assert_int_equal(vc_thread_start(&s->thread, "server", server_main, s, &err), 0);
}

static inline void end_server(struct server *s)
{
    vc_thread_join(&s->thread);
    vc_conn_close(s->conn);
    vc_listener_close(s->listener);
    *s = (struct server){0};
}

static inline int dial(const char *address, const char *dir, const char *hostname,
                       struct vc_conn **out, struct vc_err *err)
{
    struct vc_tls_options t = VC_TLS_OPTIONS_INIT;
    struct vc_dial_options o = {.tls = &t};
    char full[300];

    snprintf(full, sizeof(full), "%s", path(dir));
    t.dir = full;
    t.handshake_ms = PATIENT_MS;
    t.hostname = hostname;
    *out = NULL;
    return vc_conn_dial(address, &o, out, err);
}

/* Two ends of one connection, both ours. */
static inline void connect_pair(struct server *s, struct vc_conn **client, uint64_t rekey_bytes)
{
    struct vc_tls_options t = {.dir = path("ca/b"),
                               .cancel_fd = -1,
                               .handshake_ms = PATIENT_MS,
                               .rekey_bytes = rekey_bytes};
    struct vc_dial_options o = {.tls = &t};
    struct vc_err err;

    start_server(s, "ca/a");
    s->o.rekey_bytes = rekey_bytes;
    run_server(s);
    assert_int_equal(vc_conn_dial(s->address, &o, client, &err), 0);
    vc_thread_join(&s->thread);
    assert_int_equal(s->rc, 0);
}

static inline void say(struct vc_conn *c, const char *text)
{
    struct iovec iov = {(void *)(uintptr_t)text, strlen(text)};
    struct vc_err err;

    assert_int_equal(vc_conn_writev_all(c, &iov, 1, &err), 0);
}

static inline void hear(struct vc_conn *c, const char *text)
{
    char buf[256];
    size_t have = 0, n = strlen(text);
    struct vc_err err = VC_ERR_INIT;

    while (have < n) {
        ssize_t got = vc_conn_read_some(c, buf + have, n - have, &err);

        assert_true(got > 0);
        have += (size_t)got;
    }
    assert_memory_equal(buf, text, n);
}

/* ---- bare peers ---- */

static inline int plain_connect(int port)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
    return fd;
}

/* A client that trusts anybody; @dir NULL: without a certificate. */
static inline SSL *bare_client(int fd, const char *dir, int max_version)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    char file[400];
    SSL *ssl;

    SSL_CTX_set_max_proto_version(ctx, max_version);
    if (dir) {
        snprintf(file, sizeof(file), "%s/client-cert.pem", path(dir));
        assert_int_equal(SSL_CTX_use_certificate_file(ctx, file, SSL_FILETYPE_PEM), 1);
        snprintf(file, sizeof(file), "%s/client-key.pem", path(dir));
        assert_int_equal(SSL_CTX_use_PrivateKey_file(ctx, file, SSL_FILETYPE_PEM), 1);
    }
    ssl = SSL_new(ctx);
    SSL_CTX_free(ctx);
    SSL_set_fd(ssl, fd);
    return ssl;
}

/* Reads until the peer has closed, so that nothing that it says is lost by a reset. */
static inline void drain(int fd)
{
    char buf[4096];

    while (read(fd, buf, sizeof(buf)) > 0) {
        /* go on */
    }
}

#endif
