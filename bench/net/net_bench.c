/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What TLS costs: sends some GiB through the net layer over loopback, framed as a link does it,
 * plain and encrypted in turn. Prints the rate and the processor time of each end. */

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/thread.h"
#include "net/net.h"

#define HEADER_BYTES 8
#define GIB (1ull << 30)

struct end {
    struct vc_listener *listener;
    struct vc_tls_options tls;
    uint64_t total;
    size_t frame_bytes;
    double cpu_s;
    struct vc_err err;
    int rc;
};

static void die(const char *what, const struct vc_err *err)
{
    fprintf(stderr, "net_bench: %s: %s\n", what, err->message);
    exit(1);
}

static double thread_cpu_s(void)
{
    struct rusage u;

    getrusage(RUSAGE_THREAD, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static int read_full(struct vc_conn *c, uint8_t *buf, size_t n, struct vc_err *err)
{
    while (n) {
        ssize_t got = vc_conn_read_some(c, buf, n, err);

        if (got <= 0)
            return got < 0 ? (int)got : vc_err_set(err, VC_E_PEER_LOST, "it ended early");
        buf += got;
        n -= (size_t)got;
    }
    return 0;
}

static void *receive(void *arg)
{
    struct end *e = arg;
    uint8_t *buf = malloc(e->frame_bytes), header[HEADER_BYTES];
    struct vc_conn *c;

    e->rc = vc_listener_accept(e->listener, &c, &e->err);
    if (!e->rc && vc_listener_is_tls(e->listener))
        e->rc = vc_conn_tls_accept(c, &e->tls, &e->err);
    for (uint64_t at = 0; at < e->total && !e->rc; at += e->frame_bytes) {
        e->rc = read_full(c, header, sizeof(header), &e->err);
        if (!e->rc)
            e->rc = read_full(c, buf, e->frame_bytes, &e->err);
    }
    e->cpu_s = thread_cpu_s();
    vc_conn_close(c);
    free(buf);
    return NULL;
}

static void send_all(struct vc_conn *c, uint64_t total, size_t frame_bytes)
{
    uint8_t *buf = malloc(frame_bytes), header[HEADER_BYTES] = {0};
    struct vc_err err;

    memset(buf, 0x5a, frame_bytes);
    for (uint64_t at = 0; at < total; at += frame_bytes) {
        struct iovec iov[2] = {{header, sizeof(header)}, {buf, frame_bytes}};

        if (vc_conn_writev_all(c, iov, 2, &err))
            die("send", &err);
    }
    vc_conn_shutdown_write(c);
    free(buf);
}

static void measure(bool tls, const char *server_dir, const char *client_dir, uint64_t total,
                    size_t frame_bytes)
{
    struct vc_tls_options o = {.dir = client_dir, .cancel_fd = -1};
    struct vc_dial_options d = {.insecure = true, .tls = &o};
    struct end e = {
        .tls = {.dir = server_dir, .cancel_fd = -1}, .total = total, .frame_bytes = frame_bytes};
    const char *scheme = tls ? "tls" : "tcp";
    char address[64];
    struct sockaddr_in sa;
    socklen_t n = sizeof(sa);
    struct vc_thread thread;
    struct vc_conn *c;
    struct vc_err err;
    uint64_t start;
    double s, cpu;

    snprintf(address, sizeof(address), "%s://127.0.0.1:0", scheme);
    if (vc_listener_open(address, true, 0, &e.listener, &err))
        die("listen", &err);
    getsockname(vc_listener_fd(e.listener), (struct sockaddr *)&sa, &n);
    snprintf(address, sizeof(address), "%s://127.0.0.1:%d", scheme, ntohs(sa.sin_port));
    if (vc_thread_start(&thread, "receive", receive, &e, &err) ||
        vc_conn_dial(address, &d, &c, &err))
        die("connect", &err);
    start = vc_now_ns();
    cpu = thread_cpu_s();
    send_all(c, total, frame_bytes);
    vc_thread_join(&thread);
    s = (double)(vc_now_ns() - start) / 1e9;
    cpu = thread_cpu_s() - cpu;
    if (e.rc)
        die("receive", &e.err);
    printf("%s: %7.0f MB/s  processor per GB: sender %.3f s, receiver %.3f s\n",
           tls ? "TLS  " : "plain", (double)total / s / 1e6, cpu / ((double)total / 1e9),
           e.cpu_s / ((double)total / 1e9));
    vc_conn_close(c);
    vc_listener_close(e.listener);
}

static void make_certificates(const char *dir)
{
    static const char *const hosts[] = {"a,127.0.0.1", "b,127.0.0.1"};
    struct vc_tls_ca_options o = {.dir = dir, .hosts = hosts, .n_hosts = 2};
    struct vc_err err;

    if (vc_tls_ca_init(&o, &err))
        die("certificates", &err);
}

static void remove_certificates(const char *dir)
{
    static const char *const files[] = {"ca-cert.pem",
                                        "ca-key.pem",
                                        "a/ca-cert.pem",
                                        "a/server-cert.pem",
                                        "a/server-key.pem",
                                        "a/client-cert.pem",
                                        "a/client-key.pem",
                                        "b/ca-cert.pem",
                                        "b/server-cert.pem",
                                        "b/server-key.pem",
                                        "b/client-cert.pem",
                                        "b/client-key.pem",
                                        "a",
                                        "b"};
    char path[200];

    for (size_t i = 0; i < VC_ARRAY_LEN(files); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, files[i]);
        remove(path);
    }
    rmdir(dir);
}

int main(int argc, char **argv)
{
    uint64_t gib = argc > 1 ? strtoull(argv[1], NULL, 10) : 2;
    size_t frame_bytes = argc > 2 ? strtoull(argv[2], NULL, 10) << 10 : 256 << 10;
    unsigned rounds = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : 3;
    char dir[] = "/tmp/vecycle-bench-XXXXXX", a[64], b[64];

    if (!gib || !frame_bytes || !rounds || argc > 4) {
        fprintf(stderr, "usage: net_bench [GIB [FRAME-KIB [ROUNDS]]]\n");
        return 2;
    }
    if (!mkdtemp(dir)) {
        perror("net_bench: mkdtemp");
        return 1;
    }
    make_certificates(dir);
    snprintf(a, sizeof(a), "%s/a", dir);
    snprintf(b, sizeof(b), "%s/b", dir);
    printf("%llu GiB over loopback, frames of %zu KiB\n", (unsigned long long)gib,
           frame_bytes >> 10);
    for (unsigned i = 0; i < rounds; i++) {
        measure(false, a, b, gib * GIB, frame_bytes);
        measure(true, a, b, gib * GIB, frame_bytes);
    }
    remove_certificates(dir);
    return 0;
}
