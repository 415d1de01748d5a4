/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/fdio.h"
#include "base/thread.h"
#include "net/internal.h"

/* Theory of operation (docs/internals/tls.md)
 *
 * An SSL object is not made for two threads, and a link has two. So it never touches the socket: it
 * reads from one buffer and writes to another, under a mutex that is held for one record at a time
 * and never across I/O. The reading thread fills the one from the socket, the writing thread
 * empties the other into it, both blocking and without the lock, so that shutdown(2) wakes them as
 * it does on a plain socket, and one write carries several records.
 *
 * What the reading thread makes SSL write (an answer to a change of keys) waits for the writing
 * thread's next write: only one thread writes to the socket, and records keep their order. */

#define RECORD_BYTES 16384u
/* One record more than is worth a write, and what the other thread may add in between. */
#define FLUSH_BYTES (64u << 10)
#define OUT_BYTES (FLUSH_BYTES + 2 * RECORD_BYTES)
#define IN_BYTES (64u << 10)
/* A handshake's bytes from the peer. Certificates take a few KiB. */
#define MAX_HANDSHAKE_BYTES (128u << 10)
#define DEFAULT_REKEY_BYTES (64ull << 30)
/* Time for a peer that is refused to read why: unread bytes would turn a close into a reset. */
#define LINGER_NS VC_NS_PER_S
#define NAMES_BYTES 2048

struct out {
    size_t len;
    uint8_t bytes[OUT_BYTES];
};

struct vc_tls {
    pthread_mutex_t mu;
    SSL *ssl;                /* [lock: mu] */
    size_t in_off, in_len;   /* [lock: mu] what SSL has not taken yet of `in` */
    struct out *pending;     /* [lock: mu] records not yet given to the socket */
    struct out *flushing;    /* [thread: writing] */
    uint64_t since_rekey;    /* [lock: mu] */
    uint64_t rekey_bytes;    /* [const] */
    atomic_bool down;        /* [atomic] set by vc_conn_shutdown() */
    struct vc_err broken;    /* [thread: reading] why nothing more can be read; code 0: it can */
    char names[NAMES_BYTES]; /* [const after the handshake] each with its NUL; ends with "" */
    uint8_t in[IN_BYTES];    /* [thread: reading] while in_off == in_len, else [lock: mu] */
    struct out bufs[2];
};

/* ---- the two buffers, as SSL sees them ---- */

static int bio_read(BIO *b, char *buf, int n)
{
    struct vc_tls *t = BIO_get_data(b);
    size_t k = VC_MIN((size_t)n, t->in_len - t->in_off);

    BIO_clear_retry_flags(b);
    if (k == 0) {
        BIO_set_retry_read(b);
        return -1;
    }
    memcpy(buf, t->in + t->in_off, k);
    t->in_off += k;
    return (int)k;
}

static int bio_write(BIO *b, const char *buf, int n)
{
    struct vc_tls *t = BIO_get_data(b);

    BIO_clear_retry_flags(b);
    if ((size_t)n > OUT_BYTES - t->pending->len) {
        BIO_set_retry_write(b);
        return -1;
    }
    memcpy(t->pending->bytes + t->pending->len, buf, (size_t)n);
    t->pending->len += (size_t)n;
    return n;
}

static long bio_ctrl(BIO *b, int cmd, long num, void *ptr)
{
    (void)b, (void)num, (void)ptr;
    return cmd == BIO_CTRL_FLUSH;
}

static BIO_METHOD *method;

static void make_method(void)
{
    method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "vecycle");
    if (!method)
        return;
    BIO_meth_set_read(method, bio_read);
    BIO_meth_set_write(method, bio_write);
    BIO_meth_set_ctrl(method, bio_ctrl);
}

static BIO *new_bio(struct vc_tls *t)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    BIO *b;

    pthread_once(&once, make_method);
    b = method ? BIO_new(method) : NULL;
    if (b) {
        BIO_set_data(b, t);
        BIO_set_init(b, 1);
    }
    return b;
}

static void tls_free(struct vc_tls *t)
{
    if (!t)
        return;
    SSL_free(t->ssl);
    pthread_mutex_destroy(&t->mu);
    free(t);
}

static int tls_new(SSL_CTX *ctx, uint64_t rekey_bytes, struct vc_tls **out, struct vc_err *err)
{
    struct vc_tls *t = malloc(sizeof(*t));
    BIO *b;

    if (!t)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a TLS connection");
    memset(t, 0, offsetof(struct vc_tls, in));
    t->bufs[0].len = t->bufs[1].len = 0;
    t->pending = &t->bufs[0];
    t->flushing = &t->bufs[1];
    t->rekey_bytes = rekey_bytes ? rekey_bytes : DEFAULT_REKEY_BYTES;
    pthread_mutex_init(&t->mu, NULL);
    t->ssl = SSL_new(ctx);
    b = t->ssl ? new_bio(t) : NULL;
    if (!b) {
        tls_free(t);
        return vc_err_set(err, VC_E_NOMEM, "no memory for a TLS connection");
    }
    SSL_set_bio(t->ssl, b, b);
    *out = t;
    return 0;
}

/* ---- reading ---- */

static int broke(struct vc_conn *c, struct vc_err *err)
{
    return vc_err_set_errno(err, VC_E_PEER_LOST, "the connection to '%s' broke", c->describe);
}

/* Decrypts what is there, up to n bytes. SSL_ERROR_NONE: all of it; else why not. A failure is
 * kept: SSL would call what follows a fatal alert an orderly end. */
static int open_records(struct vc_conn *c, uint8_t *buf, size_t n, size_t *got)
{
    struct vc_tls *t = c->tls;

    *got = 0;
    while (*got < n) {
        VC_LOCKED(&t->mu);
        size_t k = 0;
        int e;

        ERR_clear_error();
        if (SSL_read_ex(t->ssl, buf + *got, n - *got, &k)) {
            *got += k;
            continue;
        }
        e = SSL_get_error(t->ssl, 0);
        if (e != SSL_ERROR_WANT_READ && e != SSL_ERROR_ZERO_RETURN)
            vc_tls_explain(t->ssl, c->describe, NULL, &t->broken);
        return e;
    }
    return SSL_ERROR_NONE;
}

/* 1: something came; 0: the end, asked for by this side; negative: the peer's end without a
 * farewell, which may be somebody else's doing. */
static int fill(struct vc_conn *c, struct vc_err *err)
{
    struct vc_tls *t = c->tls;
    ssize_t n = vc_read_some(c->rfd, t->in, sizeof(t->in));

    if (n <= 0 && atomic_load(&t->down))
        return 0;
    if (n < 0)
        return broke(c, err);
    if (n == 0)
        return vc_err_set(err, VC_E_PEER_LOST, "the connection to '%s' was cut off", c->describe);
    {
        VC_LOCKED(&t->mu);

        t->in_off = 0;
        t->in_len = (size_t)n;
    }
    return 1;
}

static ssize_t tls_read_some(struct vc_conn *c, void *buf, size_t n, struct vc_err *err)
{
    for (;;) {
        size_t got = 0;
        int rc, e = c->tls->broken.code ? SSL_ERROR_SSL : open_records(c, buf, n, &got);

        if (got || e == SSL_ERROR_NONE)
            return (ssize_t)got;
        if (e == SSL_ERROR_ZERO_RETURN)
            return 0;
        if (e != SSL_ERROR_WANT_READ) {
            *err = c->tls->broken;
            return err->code;
        }
        rc = fill(c, err);
        if (rc <= 0)
            return rc;
    }
}

/* ---- writing ---- */

/* Gives the socket what is pending. Only the writing thread. */
static int flush(struct vc_conn *c)
{
    struct vc_tls *t = c->tls;
    struct out *full;
    struct iovec iov;

    {
        VC_LOCKED(&t->mu);

        full = t->pending;
        t->pending = t->flushing;
        t->pending->len = 0;
        t->flushing = full;
    }
    iov = (struct iovec){full->bytes, full->len};
    return full->len ? vc_writev_full(c->wfd, &iov, 1) : 0;
}

/* Encrypts one record's worth; returns whether it is time to flush, or a negative code. */
static int seal_record(struct vc_conn *c, const uint8_t *p, size_t n, struct vc_err *err)
{
    struct vc_tls *t = c->tls;
    VC_LOCKED(&t->mu);
    size_t put = 0;

    ERR_clear_error();
    if (t->since_rekey > t->rekey_bytes) {
        t->since_rekey = 0;
        if (!SSL_key_update(t->ssl, SSL_KEY_UPDATE_NOT_REQUESTED))
            return vc_tls_explain(t->ssl, c->describe, NULL, err);
    }
    if (!SSL_write_ex(t->ssl, p, n, &put) || put != n)
        return vc_tls_explain(t->ssl, c->describe, NULL, err);
    t->since_rekey += n;
    return t->pending->len >= FLUSH_BYTES;
}

static int seal(struct vc_conn *c, const uint8_t *p, size_t n, struct vc_err *err)
{
    int rc = seal_record(c, p, n, err);

    if (rc > 0)
        return flush(c) < 0 ? broke(c, err) : 0;
    return rc;
}

/* Full records straight from where the bytes are; what is smaller shares one. */
static int tls_writev_all(struct vc_conn *c, struct iovec *iov, size_t n, struct vc_err *err)
{
    uint8_t part[RECORD_BYTES];
    size_t have = 0;
    int rc = 0;

    for (size_t i = 0; i < n; i++) {
        const uint8_t *p = iov[i].iov_base;
        size_t left = iov[i].iov_len;

        while (left && !rc) {
            size_t k = VC_MIN(left, sizeof(part) - have);

            if (k == sizeof(part)) {
                rc = seal(c, p, k, err);
            } else {
                memcpy(part + have, p, k);
                have += k;
                if (have == sizeof(part)) {
                    rc = seal(c, part, have, err);
                    have = 0;
                }
            }
            p += k;
            left -= k;
        }
    }
    if (!rc && have)
        rc = seal(c, part, have, err);
    if (!rc && flush(c) < 0)
        rc = broke(c, err);
    return rc;
}

/* ---- the end ---- */

static void tls_shutdown(struct vc_conn *c)
{
    atomic_store(&c->tls->down, true);
    shutdown(c->rfd, SHUT_RDWR);
}

static void tls_shutdown_write(struct vc_conn *c)
{
    struct vc_tls *t = c->tls;

    {
        VC_LOCKED(&t->mu);

        ERR_clear_error();
        SSL_shutdown(t->ssl); /* our close_notify; the peer's is read, not waited for here */
    }
    if (flush(c) == 0)
        shutdown(c->wfd, SHUT_WR);
}

static const char *tls_peer_name(const struct vc_conn *c, unsigned i)
{
    const char *at = c->tls->names;

    while (*at && i--)
        at += strlen(at) + 1;
    return *at ? at : NULL;
}

static void tls_release(struct vc_conn *c)
{
    tls_free(c->tls);
}

static const struct vc_conn_ops tls_ops = {
    .read_some = tls_read_some,
    .writev_all = tls_writev_all,
    .shutdown = tls_shutdown,
    .shutdown_write = tls_shutdown_write,
    .peer_name = tls_peer_name,
    .release = tls_release,
};

/* ---- before the handshake ---- */

static ssize_t pending_read(struct vc_conn *c, void *buf, size_t n, struct vc_err *err)
{
    (void)buf, (void)n;
    return vc_err_set(err, VC_E_FAILED, "the connection to '%s' is not secured yet", c->describe);
}

static int pending_write(struct vc_conn *c, struct iovec *iov, size_t n, struct vc_err *err)
{
    (void)iov, (void)n;
    return vc_err_set(err, VC_E_FAILED, "the connection to '%s' is not secured yet", c->describe);
}

static void pending_shutdown(struct vc_conn *c)
{
    shutdown(c->rfd, SHUT_RDWR);
}

const struct vc_conn_ops vc_tls_pending_ops = {
    .read_some = pending_read,
    .writev_all = pending_write,
    .shutdown = pending_shutdown,
    .shutdown_write = pending_shutdown,
};

/* ---- the handshake: one thread, a deadline, a way out ---- */

struct handshake {
    struct vc_conn *c;
    const struct vc_tls_options *o;
    const char *wanted; /* name that the peer should have; NULL: a server's, any */
    uint32_t limit_ms;
    uint64_t deadline_ns;
    size_t taken; /* bytes from the peer */
};

/* Waits for the socket until the deadline. */
static int await(struct handshake *h, short events, struct vc_err *err)
{
    struct pollfd p[2] = {{.fd = h->c->rfd, .events = events},
                          {.fd = h->o->cancel_fd, .events = POLLIN}};

    for (;;) {
        uint64_t now = vc_now_ns();
        int n = 0;

        if (now < h->deadline_ns)
            n = poll(p, 2, (int)((h->deadline_ns - now) / VC_NS_PER_MS) + 1);
        if (n < 0 && errno != EINTR)
            return vc_err_set_errno(err, VC_E_FAILED, "cannot wait for '%s'", h->c->describe);
        if (n > 0 && p[1].revents)
            return vc_err_set(err, VC_E_CANCELLED, "cancelled during the TLS handshake");
        if (n > 0)
            return 0;
        if (n == 0 && vc_now_ns() >= h->deadline_ns)
            return vc_err_set_hint(err, VC_E_PEER_LOST, "see --tls-timeout",
                                   "'%s' did not complete the TLS handshake within %u ms",
                                   h->c->describe, h->limit_ms);
    }
}

static int handshake_flush(struct handshake *h, struct vc_err *err)
{
    struct out *out = h->c->tls->pending;
    size_t off = 0;

    while (off < out->len) {
        ssize_t n = send(h->c->wfd, out->bytes + off, out->len - off, MSG_DONTWAIT | MSG_NOSIGNAL);
        int rc = 0;

        if (n >= 0)
            off += (size_t)n;
        else if (errno == EAGAIN)
            rc = await(h, POLLOUT, err);
        else if (errno != EINTR)
            rc = broke(h->c, err);
        if (rc)
            return rc;
    }
    out->len = 0;
    return 0;
}

/* What comes first tells TLS (a handshake record or an alert) from anything else. */
static bool looks_like_tls(uint8_t first)
{
    return first == 0x16 || first == 0x15;
}

static int handshake_fill(struct handshake *h, struct vc_err *err)
{
    struct vc_tls *t = h->c->tls;
    ssize_t n;
    int rc;

    do {
        rc = await(h, POLLIN, err);
        if (rc)
            return rc;
        n = recv(h->c->rfd, t->in, sizeof(t->in), MSG_DONTWAIT);
    } while (n < 0 && (errno == EAGAIN || errno == EINTR));
    if (n < 0)
        return broke(h->c, err);
    if (n == 0)
        return vc_err_set(err, VC_E_PEER_LOST, "'%s' hung up during the TLS handshake",
                          h->c->describe);
    if (h->taken == 0 && !looks_like_tls(t->in[0]))
        return vc_err_set_hint(err, VC_E_PROTOCOL, "tls:// on one side needs tls:// on the other",
                               "'%s' does not speak TLS", h->c->describe);
    h->taken += (size_t)n;
    if (h->taken > MAX_HANDSHAKE_BYTES)
        return vc_err_set(err, VC_E_PROTOCOL, "'%s' sends too much for a TLS handshake",
                          h->c->describe);
    t->in_off = 0;
    t->in_len = (size_t)n;
    return 0;
}

/* Lets a client that was refused read the alert. */
static void linger(struct handshake *h)
{
    uint64_t until = vc_now_ns() + LINGER_NS;
    struct vc_err ignored = VC_ERR_INIT;
    uint8_t rest[4096];

    h->deadline_ns = VC_MIN(until, h->deadline_ns);
    shutdown(h->c->wfd, SHUT_WR);
    for (size_t n = 0; n < MAX_HANDSHAKE_BYTES && await(h, POLLIN, &ignored) == 0;) {
        ssize_t got = recv(h->c->rfd, rest, sizeof(rest), MSG_DONTWAIT);

        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
            return;
        n += (size_t)VC_MAX(got, 0);
    }
}

static int run_handshake(struct handshake *h, struct vc_err *err)
{
    SSL *ssl = h->c->tls->ssl;

    for (;;) {
        struct vc_err ignored = VC_ERR_INIT;
        int rc = 0, r, e;

        ERR_clear_error();
        r = SSL_do_handshake(ssl);
        e = SSL_get_error(ssl, r);
        if (r != 1 && e != SSL_ERROR_WANT_READ) {
            rc = vc_tls_explain(ssl, h->c->describe, h->wanted, err);
            if (handshake_flush(h, &ignored) == 0 && SSL_is_server(ssl)) /* the alert */
                linger(h);
            return rc;
        }
        rc = handshake_flush(h, err);
        if (rc || r == 1)
            return rc;
        rc = handshake_fill(h, err);
        if (rc)
            return rc;
    }
}

static int handshake(struct vc_conn *c, const char *dir, enum vc_tls_role role, const char *host,
                     const struct vc_tls_options *o, struct vc_err *err)
{
    struct handshake h = {
        .c = c,
        .o = o,
        .wanted = host,
        .limit_ms = o->handshake_ms ? o->handshake_ms : VC_TLS_HANDSHAKE_MS,
    };
    SSL_CTX *ctx;
    int rc = vc_tls_context(dir, role, &ctx, err);

    if (rc)
        return rc;
    rc = tls_new(ctx, o->rekey_bytes, &c->tls, err);
    SSL_CTX_free(ctx);
    if (rc)
        return rc;
    if (role == VC_TLS_SERVER)
        SSL_set_accept_state(c->tls->ssl);
    else
        SSL_set_connect_state(c->tls->ssl);
    h.deadline_ns = vc_now_ns() + h.limit_ms * VC_NS_PER_MS;
    if (host && !vc_tls_expect(c->tls->ssl, host))
        rc = vc_err_set(err, VC_E_USAGE, "'%.64s' is not a host name", host);
    if (!rc)
        rc = run_handshake(&h, err);
    if (rc) {
        tls_free(vc_steal_ptr(c->tls));
        return rc;
    }
    vc_tls_peer_names(c->tls->ssl, c->tls->names, sizeof(c->tls->names));
    c->security = VC_CONN_ENCRYPTED;
    c->ops = &tls_ops;
    return 0;
}

int vc_tls_connect(struct vc_conn *c, const char *host, const struct vc_tls_options *o,
                   struct vc_err *err)
{
    return handshake(c, o->dir, VC_TLS_CLIENT, o->hostname ? o->hostname : host, o, err);
}

int vc_conn_tls_accept(struct vc_conn *c, const struct vc_tls_options *o, struct vc_err *err)
{
    char address[64];
    const char *name;
    int rc;

    if (c->ops != &vc_tls_pending_ops)
        return vc_err_set(err, VC_E_FAILED, "'%s' is not a TLS connection", c->describe);
    vc_tcp_remote(c->rfd, address, sizeof(address));
    snprintf(c->describe, sizeof(c->describe), "%s", address);
    rc = handshake(c, o->dir, VC_TLS_SERVER, NULL, o, err);
    name = rc ? NULL : tls_peer_name(c, 0);
    if (name)
        snprintf(c->describe, sizeof(c->describe), "%.120s at %s", name, address);
    return rc;
}
