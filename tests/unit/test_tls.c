/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* TLS between two hosts: who is let in and who is not, with a reason; that a connection behaves as
 * any other does; and the authority that makes the certificates. */

#include "test_tls.h"

static int setup(void **state)
{
    struct vc_err err;
    int64_t past = (int64_t)time(NULL) - 400 * 86400;

    (void)state;
    if (!mkdtemp(root))
        return -1;
    assert_int_equal(make_hosts("ca", 0, 0, "a,127.0.0.1", &err), 0);
    assert_int_equal(make_hosts("ca", 0, 0, "b,b.example,127.0.0.1,::1", &err), 0);
    assert_int_equal(make_hosts("ca", 0, 0, "elsewhere.example", &err), 0);
    assert_int_equal(make_hosts("ca", past, 30, "old,127.0.0.1", &err), 0);
    assert_int_equal(make_hosts("other", 0, 0, "x,127.0.0.1", &err), 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    remove_tree(root);
    return 0;
}

/* ---- who is let in ---- */

static void hosts_of_one_authority_talk_and_part_in_order(void **state)
{
    struct server s = {0};
    struct vc_conn *c;
    struct vc_err err;
    char b;

    (void)state;
    connect_pair(&s, &c, 0);
    assert_int_equal(vc_conn_security(c), VC_CONN_ENCRYPTED);
    assert_int_equal(vc_conn_security(s.conn), VC_CONN_ENCRYPTED);
    assert_string_equal(vc_conn_peer_name(s.conn, 0), "b");
    assert_string_equal(vc_conn_peer_name(s.conn, 1), "b.example");
    assert_string_equal(vc_conn_peer_name(s.conn, 2), "127.0.0.1");
    assert_string_equal(vc_conn_peer_name(s.conn, 3), "::1");
    assert_null(vc_conn_peer_name(s.conn, 4));
    assert_string_equal(vc_conn_describe(s.conn), "b at 127.0.0.1");
    say(c, "from the client");
    hear(s.conn, "from the client");
    vc_conn_shutdown_write(c);
    assert_int_equal(vc_conn_read_some(s.conn, &b, 1, &err), 0);
    say(s.conn, "the other direction is still open");
    hear(c, "the other direction is still open");
    vc_conn_shutdown_write(s.conn);
    assert_int_equal(vc_conn_read_some(c, &b, 1, &err), 0);
    assert_int_equal(vc_conn_read_some(c, &b, 1, &err), 0);
    vc_conn_close(c);
    end_server(&s);
}

/* What our client thinks of a server with that directory. */
static void client_refuses(const char *server_dir, const char *hostname, const char *words)
{
    struct server s = {0};
    struct vc_err err = VC_ERR_INIT;
    struct vc_conn *c;

    start_server(&s, server_dir);
    run_server(&s);
    assert_int_equal(dial(s.address, "ca/b", hostname, &c, &err), VC_E_REFUSED);
    assert_non_null(strstr(err.message, words));
    vc_thread_join(&s.thread);
    assert_int_equal(s.rc, VC_E_REFUSED);
    assert_non_null(strstr(s.err.message, "does not take this host's certificate"));
    end_server(&s);
}

/* What our server thinks of a client with that directory, and that the client hears of it. */
static void server_refuses(const char *client_dir, const char *words)
{
    struct server s = {0};
    struct vc_err err = VC_ERR_INIT;
    struct vc_conn *c;
    char b;

    start_server(&s, "ca/a");
    run_server(&s);
    assert_int_equal(dial(s.address, client_dir, NULL, &c, &err), 0);
    assert_int_equal(vc_conn_read_some(c, &b, 1, &err), VC_E_REFUSED);
    assert_non_null(strstr(err.message, "does not take this host's certificate"));
    vc_conn_close(c);
    vc_thread_join(&s.thread);
    assert_int_equal(s.rc, VC_E_REFUSED);
    assert_non_null(strstr(s.err.message, words));
    assert_null(vc_conn_peer_name(s.conn, 0));
    end_server(&s);
}

static void the_certificate_is_of_the_same_authority(void **state)
{
    (void)state;
    client_refuses("other/x", NULL, "is not trusted");
    /* The client's trust, too, has to be such that it takes our server: both authorities. */
    assert_int_equal(mkdir(path("mixed"), 0700), 0);
    copy_file("ca/ca-cert.pem", "mixed/ca-cert.pem");
    copy_file("other/x/client-cert.pem", "mixed/client-cert.pem");
    copy_file("other/x/client-key.pem", "mixed/client-key.pem");
    server_refuses("mixed", "is not trusted");
}

static void the_certificate_is_valid_today(void **state)
{
    struct vc_err err;

    (void)state;
    client_refuses("ca/old", NULL, "has expired");
    server_refuses("ca/old", "has expired");
    assert_int_equal(make_hosts("ca", (int64_t)time(NULL) + 40 * 86400, 9, "soon,127.0.0.1", &err),
                     0);
    client_refuses("ca/soon", NULL, "is not valid yet");
}

static void the_certificate_names_the_host_that_was_called(void **state)
{
    struct server s = {0};
    struct vc_conn *c;
    struct vc_err err;

    (void)state;
    client_refuses("ca/elsewhere.example", NULL, "is not for '127.0.0.1'");
    client_refuses("ca/a", "b", "is not for 'b'");
    client_refuses("ca/a", "127.0.0.2", "is not for '127.0.0.2'");
    client_refuses("ca/elsewhere.example", "example", "is not for 'example'");
    start_server(&s, "ca/elsewhere.example");
    run_server(&s);
    assert_int_equal(dial(s.address, "ca/b", "elsewhere.example", &c, &err), 0);
    vc_conn_close(c);
    end_server(&s);
}

static void a_clients_certificate_does_not_make_a_server(void **state)
{
    (void)state;
    assert_int_equal(mkdir(path("swapped"), 0700), 0);
    copy_file("ca/ca-cert.pem", "swapped/ca-cert.pem");
    copy_file("ca/a/client-cert.pem", "swapped/server-cert.pem");
    copy_file("ca/a/client-key.pem", "swapped/server-key.pem");
    copy_file("ca/a/server-cert.pem", "swapped/client-cert.pem");
    copy_file("ca/a/server-key.pem", "swapped/client-key.pem");
    client_refuses("swapped", NULL, "unsuitable certificate purpose");
    server_refuses("swapped", "unsuitable certificate purpose");
}

/* A list of the authority `ca` that revokes host b's client. */
static void write_crl(const char *to, bool expired)
{
    FILE *f = fopen(path("ca/ca-key.pem"), "r"), *g = fopen(path("ca/ca-cert.pem"), "r");
    FILE *h = fopen(path("ca/b/client-cert.pem"), "r"), *out = fopen(path(to), "w");
    EVP_PKEY *key = PEM_read_PrivateKey(f, NULL, NULL, NULL);
    X509 *ca = PEM_read_X509(g, NULL, NULL, NULL), *b = PEM_read_X509(h, NULL, NULL, NULL);
    X509_CRL *crl = X509_CRL_new();
    X509_REVOKED *r = X509_REVOKED_new();
    ASN1_TIME *at = ASN1_TIME_set(NULL, time(NULL) - 7200);

    assert_true(X509_CRL_set_version(crl, 1));
    assert_true(X509_CRL_set_issuer_name(crl, X509_get_subject_name(ca)));
    assert_true(X509_CRL_set1_lastUpdate(crl, at));
    assert_true(X509_REVOKED_set_serialNumber(r, X509_get_serialNumber(b)));
    assert_true(X509_REVOKED_set_revocationDate(r, at));
    assert_true(X509_CRL_add0_revoked(crl, r));
    ASN1_TIME_set(at, time(NULL) + (expired ? -3600 : 86400));
    assert_true(X509_CRL_set1_nextUpdate(crl, at));
    assert_true(X509_CRL_sign(crl, key, EVP_sha256()) > 0);
    assert_true(PEM_write_X509_CRL(out, crl));
    ASN1_TIME_free(at);
    X509_CRL_free(crl);
    X509_free(ca);
    X509_free(b);
    EVP_PKEY_free(key);
    fclose(f);
    fclose(g);
    fclose(h);
    fclose(out);
}

static void a_revoked_certificate_is_refused_from_the_next_connection_on(void **state)
{
    struct server s = {0};
    struct vc_conn *c;

    (void)state;
    connect_pair(&s, &c, 0);
    vc_conn_close(c);
    end_server(&s);
    write_crl("ca/a/ca-crl.pem", false);
    server_refuses("ca/b", "is revoked");
    write_crl("ca/a/ca-crl.pem", true);
    server_refuses("ca/b", "CRL has expired");
    unlink(path("ca/a/ca-crl.pem"));
}

static void a_client_without_a_certificate_is_refused(void **state)
{
    struct server s = {0};
    int fd;
    SSL *ssl;

    (void)state;
    start_server(&s, "ca/a");
    run_server(&s);
    fd = plain_connect(s.port);
    ssl = bare_client(fd, NULL, TLS1_3_VERSION);
    assert_int_equal(SSL_connect(ssl), 1); /* it learns it after its own last message */
    drain(fd);
    SSL_free(ssl);
    close(fd);
    vc_thread_join(&s.thread);
    assert_int_equal(s.rc, VC_E_REFUSED);
    assert_non_null(strstr(s.err.message, "has no certificate"));
    end_server(&s);
}

/* ---- peers that are no TLS 1.3 ---- */

static void a_client_of_tls_1_2_is_refused(void **state)
{
    struct server s = {0};
    int fd;
    SSL *ssl;

    (void)state;
    start_server(&s, "ca/a");
    run_server(&s);
    fd = plain_connect(s.port);
    ssl = bare_client(fd, "ca/b", TLS1_2_VERSION);
    assert_true(SSL_connect(ssl) <= 0);
    SSL_free(ssl);
    close(fd);
    vc_thread_join(&s.thread);
    assert_int_equal(s.rc, VC_E_VERSION);
    end_server(&s);
}

/* A listener whose one connection is served by @serve. */
struct rogue {
    struct vc_thread thread;
    int listener, port;
    char address[64];
    void (*serve)(int fd);
};

static void *rogue_main(void *arg)
{
    struct rogue *r = arg;
    int fd = accept4(r->listener, NULL, NULL, SOCK_CLOEXEC);

    r->serve(fd);
    close(fd);
    return NULL;
}

static void client_meets(void (*serve)(int fd), int code, const char *words)
{
    struct sockaddr_in sa = {.sin_family = AF_INET};
    struct rogue r = {.serve = serve};
    socklen_t n = sizeof(sa);
    struct vc_err err = VC_ERR_INIT;
    struct vc_conn *c;

    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    r.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(r.listener, (struct sockaddr *)&sa, n), 0);
    assert_int_equal(listen(r.listener, 1), 0);
    assert_int_equal(getsockname(r.listener, (struct sockaddr *)&sa, &n), 0);
    snprintf(r.address, sizeof(r.address), "tls://127.0.0.1:%d", ntohs(sa.sin_port));
    assert_int_equal(vc_thread_start(&r.thread, "rogue", rogue_main, &r, &err), 0);
    assert_int_equal(dial(r.address, "ca/b", NULL, &c, &err), code);
    assert_non_null(strstr(err.message, words));
    vc_thread_join(&r.thread);
    close(r.listener);
}

static void serve_tls_1_2(int fd)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    SSL *ssl;

    SSL_CTX_set_max_proto_version(ctx, TLS1_2_VERSION);
    SSL_CTX_use_certificate_file(ctx, path("ca/a/server-cert.pem"), SSL_FILETYPE_PEM);
    SSL_CTX_use_PrivateKey_file(ctx, path("ca/a/server-key.pem"), SSL_FILETYPE_PEM);
    ssl = SSL_new(ctx);
    SSL_set_fd(ssl, fd);
    SSL_accept(ssl);
    drain(fd);
    SSL_free(ssl);
    SSL_CTX_free(ctx);
}

static void serve_text(int fd)
{
    assert_true(write(fd, "220 mail.example.org ESMTP\r\n", 28) == 28);
    drain(fd);
}

static void serve_nothing(int fd)
{
    char b;

    assert_true(read(fd, &b, 1) >= 0);
}

static void a_server_that_is_none_is_told_apart(void **state)
{
    (void)state;
    client_meets(serve_tls_1_2, VC_E_VERSION, "does not speak TLS 1.3");
    client_meets(serve_text, VC_E_PROTOCOL, "does not speak TLS");
    client_meets(serve_nothing, VC_E_PEER_LOST, "127.0.0.1");
}

static void server_meets(const void *bytes, size_t n, int code, const char *words)
{
    struct server s = {0};
    int fd;

    start_server(&s, "ca/a");
    run_server(&s);
    fd = plain_connect(s.port);
    assert_int_equal(send(fd, bytes, n, MSG_NOSIGNAL), n);
    shutdown(fd, SHUT_WR);
    vc_thread_join(&s.thread);
    close(fd);
    assert_int_equal(s.rc, code);
    assert_non_null(strstr(s.err.message, words));
    assert_int_equal(vc_conn_read_some(s.conn, &(char){0}, 1, &s.err), VC_E_FAILED);
    end_server(&s);
}

static void rubbish_ends_a_handshake(void **state)
{
    uint8_t hello[64] = {0x16, 3, 1, 0, 59, 1, 0, 0, 55, 3, 3};
    uint8_t longest[64] = {0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff, 3, 3};
    uint8_t beyond[64] = {0x16, 3, 1, 0xff, 0xff, 1};

    (void)state;
    server_meets("GET / HTTP/1.1\r\n\r\n", 18, VC_E_PROTOCOL, "does not speak TLS");
    server_meets("vecycle\n\1\0\1\0", 12, VC_E_PROTOCOL, "does not speak TLS");
    server_meets(hello, sizeof(hello), VC_E_PROTOCOL, "TLS");
    server_meets(longest, sizeof(longest), VC_E_PEER_LOST, "hung up");
    server_meets(beyond, sizeof(beyond), VC_E_PROTOCOL, "TLS");
    server_meets(hello, 3, VC_E_PEER_LOST, "hung up");
}

static void a_handshake_that_dawdles_ends_at_its_deadline(void **state)
{
    struct server s = {0};
    int fd;

    (void)state;
    start_server(&s, "ca/a");
    s.o.handshake_ms = 50;
    run_server(&s);
    fd = plain_connect(s.port);
    /* A byte now and then does not help. */
    while (send(fd, "\x16", 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1 && s.thread.running) {
        char b;

        if (recv(fd, &b, 1, MSG_DONTWAIT) == 0)
            break;
    }
    vc_thread_join(&s.thread);
    close(fd);
    assert_true(s.rc == VC_E_PEER_LOST || s.rc == VC_E_PROTOCOL);
    end_server(&s);

    start_server(&s, "ca/a");
    s.o.handshake_ms = 50;
    run_server(&s);
    fd = plain_connect(s.port);
    vc_thread_join(&s.thread);
    close(fd);
    assert_int_equal(s.rc, VC_E_PEER_LOST);
    assert_non_null(strstr(s.err.message, "within 50 ms"));
    end_server(&s);
}

static void a_handshake_can_be_cancelled(void **state)
{
    struct server s = {0};
    uint64_t one = 1;
    int fd;

    (void)state;
    start_server(&s, "ca/a");
    s.o.handshake_ms = 3600000;
    s.o.cancel_fd = eventfd(0, EFD_CLOEXEC);
    run_server(&s);
    fd = plain_connect(s.port);
    assert_int_equal(write(s.o.cancel_fd, &one, sizeof(one)), sizeof(one));
    vc_thread_join(&s.thread);
    assert_int_equal(s.rc, VC_E_CANCELLED);
    close(s.o.cancel_fd);
    close(fd);
    end_server(&s);
}

/* ---- what protects it ---- */

/* A relay between two of ours, which keeps the first bytes that the server says. */
struct relay {
    int listener, server_port;
    uint8_t said[160];
    size_t n_said;
    struct vc_thread thread;
};

static void keep(struct relay *r, const char *bytes, size_t n)
{
    size_t k = VC_MIN(n, sizeof(r->said) - r->n_said);

    memcpy(r->said + r->n_said, bytes, k);
    r->n_said += k;
}

static void *relay_main(void *arg)
{
    struct relay *r = arg;
    struct pollfd p[2] = {{.events = POLLIN}, {.events = POLLIN}};
    char buf[16384];
    bool over = false;

    p[0].fd = accept4(r->listener, NULL, NULL, SOCK_CLOEXEC);
    p[1].fd = plain_connect(r->server_port);
    while (!over && poll(p, 2, -1) > 0)
        for (int i = 0; i < 2 && !over; i++) {
            ssize_t n = p[i].revents ? read(p[i].fd, buf, sizeof(buf)) : 0;

            over = p[i].revents && (n <= 0 || vc_write_full(p[!i].fd, buf, (size_t)n) < 0);
            if (i == 1 && n > 0)
                keep(r, buf, (size_t)n);
        }
    close(p[0].fd);
    close(p[1].fd);
    return NULL;
}

/* Starts it; the port that it listens on. */
static int start_relay(struct relay *r, int server_port)
{
    struct sockaddr_in sa = {.sin_family = AF_INET};
    socklen_t n = sizeof(sa);
    struct vc_err err;

    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    *r = (struct relay){.server_port = server_port};
    r->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(r->listener, (struct sockaddr *)&sa, sizeof(sa)), 0);
    assert_int_equal(listen(r->listener, 1), 0);
    assert_int_equal(getsockname(r->listener, (struct sockaddr *)&sa, &n), 0);
    assert_int_equal(vc_thread_start(&r->thread, "relay", relay_main, r, &err), 0);
    return ntohs(sa.sin_port);
}

#define RECORD_HEADER 5u
#define AES_128_GCM 0x1301u
#define AES_256_GCM 0x1302u

/* What a ServerHello has chosen (RFC 8446, 4.1.3): behind its header, version, random value and
 * session id. */
static unsigned suite_of(const uint8_t *said, size_t n)
{
    const size_t id_at = RECORD_HEADER + 4 + 2 + 32;
    size_t at;

    assert_true(n > id_at && said[0] == 22 && said[RECORD_HEADER] == 2);
    at = id_at + 1 + said[id_at];
    assert_true(at + 2 <= n);
    return (unsigned)said[at] << 8 | said[at + 1];
}

static void two_of_ours_agree_on_aes_gcm(void **state)
{
    struct server s = {0};
    struct relay r;
    struct vc_conn *c;
    struct vc_err err;
    char address[64];
    unsigned suite;

    (void)state;
    start_server(&s, "ca/a");
    run_server(&s);
    snprintf(address, sizeof(address), "tls://127.0.0.1:%d", start_relay(&r, s.port));
    assert_int_equal(dial(address, "ca/b", NULL, &c, &err), 0);
    vc_thread_join(&s.thread);
    assert_int_equal(s.rc, 0);
    say(c, "through a relay");
    hear(s.conn, "through a relay");
    vc_conn_close(c);
    vc_thread_join(&r.thread);
    close(r.listener);
    end_server(&s);
    suite = suite_of(r.said, r.n_said);
    assert_true(suite == AES_128_GCM || suite == AES_256_GCM);
}

/* A client with these suites, in this order, is served with that one. */
static void assert_served(const char *offer, const char *with)
{
    struct server s = {0};
    char got[16] = "";
    SSL *ssl;
    int fd;

    start_server(&s, "ca/a");
    run_server(&s);
    fd = plain_connect(s.port);
    ssl = bare_client(fd, "ca/b", TLS1_3_VERSION);
    assert_int_equal(SSL_set_ciphersuites(ssl, offer), 1);
    assert_int_equal(SSL_connect(ssl), 1);
    assert_string_equal(SSL_get_cipher_name(ssl), with);
    assert_int_equal(SSL_write(ssl, "to and", 6), 6);
    vc_thread_join(&s.thread);
    assert_int_equal(s.rc, 0);
    hear(s.conn, "to and");
    say(s.conn, "fro");
    assert_int_equal(SSL_read(ssl, got, sizeof(got)), 3);
    assert_string_equal(got, "fro");
    SSL_free(ssl);
    close(fd);
    end_server(&s);
}

static void the_server_takes_aes_gcm_whatever_a_client_likes_best(void **state)
{
    (void)state;
    assert_served("TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256",
                  "TLS_AES_128_GCM_SHA256");
    assert_served("TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384");
}

static void a_client_that_has_chacha20_alone_is_served(void **state)
{
    (void)state;
    assert_served("TLS_CHACHA20_POLY1305_SHA256", "TLS_CHACHA20_POLY1305_SHA256");
}

/* Suites of TLS 1.3 that are not on our list. */
static void a_client_without_a_suite_of_ours_is_refused(void **state)
{
    struct server s = {0};
    SSL *ssl;
    int fd;

    (void)state;
    start_server(&s, "ca/a");
    run_server(&s);
    fd = plain_connect(s.port);
    ssl = bare_client(fd, "ca/b", TLS1_3_VERSION);
    assert_int_equal(SSL_set_ciphersuites(ssl, "TLS_AES_128_CCM_SHA256"), 1);
    assert_int_not_equal(SSL_connect(ssl), 1);
    SSL_free(ssl);
    close(fd);
    vc_thread_join(&s.thread);
    assert_true(s.rc < 0);
    assert_string_not_equal(s.err.message, "");
    end_server(&s);
}

/* ---- an established connection ---- */

static void an_end_without_farewell_is_not_taken_for_the_end(void **state)
{
    for (int farewell = 0; farewell < 2; farewell++) {
        struct server s = {0};
        struct vc_err err = VC_ERR_INIT;
        int fd;
        SSL *ssl;
        char b;

        (void)state;
        start_server(&s, "ca/a");
        run_server(&s);
        fd = plain_connect(s.port);
        ssl = bare_client(fd, "ca/b", TLS1_3_VERSION);
        assert_int_equal(SSL_connect(ssl), 1);
        assert_int_equal(SSL_write(ssl, "half of it", 10), 10);
        if (farewell)
            SSL_shutdown(ssl);
        shutdown(fd, SHUT_WR);
        vc_thread_join(&s.thread);
        hear(s.conn, "half of it");
        assert_int_equal(vc_conn_read_some(s.conn, &b, 1, &err), farewell ? 0 : VC_E_PEER_LOST);
        if (!farewell)
            assert_non_null(strstr(err.message, "cut off"));
        SSL_free(ssl);
        close(fd);
        end_server(&s);
    }
}

static void a_changed_byte_is_noticed_and_stays_noticed(void **state)
{
    uint8_t record[32] = {0x17, 3, 3, 0, 27};
    struct server s = {0};
    struct vc_err err = VC_ERR_INIT;
    int fd;
    SSL *ssl;
    char b;

    (void)state;
    start_server(&s, "ca/a");
    run_server(&s);
    fd = plain_connect(s.port);
    ssl = bare_client(fd, "ca/b", TLS1_3_VERSION);
    assert_int_equal(SSL_connect(ssl), 1);
    assert_int_equal(SSL_write(ssl, "right", 5), 5);
    assert_int_equal(write(fd, record, sizeof(record)), sizeof(record));
    vc_thread_join(&s.thread);
    hear(s.conn, "right");
    for (int i = 0; i < 3; i++)
        assert_int_equal(vc_conn_read_some(s.conn, &b, 1, &err), VC_E_PROTOCOL);
    SSL_free(ssl);
    close(fd);
    end_server(&s);
}

#define MUCH (12u << 20)
#define REKEY (1u << 20)

struct stream {
    struct vc_conn *c;
    uint64_t seed;
    struct vc_thread thread;
};

static uint8_t byte_at(uint64_t seed, uint64_t i)
{
    return (uint8_t)((i * 0x9e3779b97f4a7c15 + seed) >> 56);
}

static void *send_much(void *arg)
{
    const struct stream *s = arg;
    uint8_t *buf = malloc(200000);
    size_t sizes[] = {8, 100000, 16384, 1, 16383, 32768, 177777, 13};
    uint64_t at = 0;
    struct vc_err err;

    for (unsigned i = 0; at < MUCH; i++) {
        size_t n = VC_MIN(sizes[i % 8], MUCH - at), head = n / 3;
        struct iovec iov[3] = {{buf, head}, {NULL, 0}, {buf + head, n - head}};

        for (size_t k = 0; k < n; k++)
            buf[k] = byte_at(s->seed, at + k);
        assert_int_equal(vc_conn_writev_all(s->c, iov, 3, &err), 0);
        at += n;
    }
    vc_conn_shutdown_write(s->c);
    free(buf);
    return NULL;
}

static void *receive_much(void *arg)
{
    const struct stream *s = arg;
    uint8_t *buf = malloc(300000);
    uint64_t at = 0;
    struct vc_err err;
    ssize_t got;

    while ((got = vc_conn_read_some(s->c, buf, at % 7 ? 300000 : 8, &err)) > 0) {
        for (size_t k = 0; k < (size_t)got; k++)
            if (buf[k] != byte_at(s->seed, at + k))
                fail_msg("byte %llu differs", (unsigned long long)(at + k));
        at += (uint64_t)got;
    }
    assert_int_equal(got, 0);
    assert_int_equal(at, MUCH);
    free(buf);
    return NULL;
}

static void both_directions_flow_at_once_through_changes_of_keys(void **state)
{
    struct server s = {0};
    struct vc_conn *c;
    struct vc_err err;
    void *(*what[4])(void *) = {send_much, receive_much, send_much, receive_much};
    struct stream streams[4];

    (void)state;
    connect_pair(&s, &c, REKEY);
    for (unsigned i = 0; i < 4; i++) {
        streams[i] = (struct stream){.c = i < 2 ? c : s.conn, .seed = i == 0 || i == 3};
        assert_int_equal(vc_thread_start(&streams[i].thread, "stream", what[i], &streams[i], &err),
                         0);
    }
    for (unsigned i = 0; i < 4; i++)
        vc_thread_join(&streams[i].thread);
    vc_conn_close(c);
    end_server(&s);
}

struct blocked {
    struct vc_conn *c;
    atomic_bool started;
    struct vc_thread thread;
    ssize_t end;
};

static void *block_reading(void *arg)
{
    struct blocked *b = arg;
    struct vc_err err;
    char buf[16];

    atomic_store(&b->started, true);
    b->end = vc_conn_read_some(b->c, buf, sizeof(buf), &err);
    return NULL;
}

static void *block_writing(void *arg)
{
    struct blocked *b = arg;
    static uint8_t buf[1 << 20];
    struct vc_err err;

    atomic_store(&b->started, true);
    do {
        struct iovec iov = {buf, sizeof(buf)};

        b->end = vc_conn_writev_all(b->c, &iov, 1, &err);
    } while (b->end == 0);
    return NULL;
}

static void a_shutdown_wakes_reader_and_writer(void **state)
{
    struct server s = {0};
    struct blocked r = {0}, w = {0};
    struct vc_conn *c;
    struct vc_err err;

    (void)state;
    connect_pair(&s, &c, 0);
    r.c = w.c = c;
    assert_int_equal(vc_thread_start(&r.thread, "reader", block_reading, &r, &err), 0);
    assert_int_equal(vc_thread_start(&w.thread, "writer", block_writing, &w, &err), 0);
    while (!atomic_load(&r.started) || !atomic_load(&w.started))
        sched_yield();
    vc_conn_shutdown(c); /* nobody reads at the other end, and nobody writes */
    vc_thread_join(&r.thread);
    vc_thread_join(&w.thread);
    assert_int_equal(r.end, 0);
    assert_int_equal(w.end, VC_E_PEER_LOST);
    vc_conn_close(c);
    end_server(&s);
}

/* ---- files ---- */

static void a_key_that_others_can_read_is_refused(void **state)
{
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    assert_int_equal(vc_tls_check(path("ca/a"), VC_TLS_SERVER, &err), 0);
    chmod(path("ca/a/server-key.pem"), 0644);
    assert_int_equal(vc_tls_check(path("ca/a"), VC_TLS_SERVER, &err), VC_E_REFUSED);
    assert_non_null(strstr(err.message, "server-key.pem"));
    assert_non_null(strstr(err.hint, "chmod 600"));
    assert_int_equal(vc_tls_check(path("ca/a"), VC_TLS_CLIENT, &err), 0);
    chmod(path("ca/a/server-key.pem"), 0600);
}

static void assert_refused(const char *dir, const char *name)
{
    struct vc_err err = VC_ERR_INIT;

    assert_int_equal(vc_tls_check(path(dir), VC_TLS_SERVER, &err), VC_E_REFUSED);
    assert_non_null(strstr(err.message, name));
    assert_non_null(strstr(err.hint, "chmod"));
}

#define SOMEBODY 65534u

static void what_others_can_change_is_refused(void **state)
{
    static const char *const names[] = {"", "ca-cert.pem", "server-cert.pem", "server-key.pem"};
    static const mode_t wrong[] = {020, 002, 022}, right[] = {0, 044};
    struct vc_err err = VC_ERR_INIT;
    char name[300];

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(names); i++) {
        mode_t mode = *names[i] ? 0600 : 0700;

        snprintf(name, sizeof(name), "%s/%s", path("ca/a"), names[i]);
        for (size_t k = 0; k < VC_ARRAY_LEN(wrong); k++) {
            assert_int_equal(chmod(name, mode | wrong[k]), 0);
            assert_refused("ca/a", names[i]);
        }
        assert_int_equal(chmod(name, mode), 0);
        if (geteuid() == 0) {
            assert_int_equal(chown(name, SOMEBODY, SOMEBODY), 0);
            assert_refused("ca/a", names[i]);
            assert_int_equal(chown(name, 0, 0), 0);
        }
        for (size_t k = 0; i < 3 && k < VC_ARRAY_LEN(right); k++) {
            assert_int_equal(chmod(name, mode | right[k]), 0);
            assert_int_equal(vc_tls_check(path("ca/a"), VC_TLS_SERVER, &err), 0);
        }
        assert_int_equal(chmod(name, mode), 0);
    }
    /* As a system's authority is often had: by a link, and for all to read. */
    assert_int_equal(rename(path("ca/a/ca-cert.pem"), path("cacert.pem")), 0);
    assert_int_equal(symlink(path("cacert.pem"), path("ca/a/ca-cert.pem")), 0);
    assert_int_equal(chmod(path("cacert.pem"), 0444), 0);
    assert_int_equal(vc_tls_check(path("ca/a"), VC_TLS_SERVER, &err), 0);
    assert_int_equal(chmod(path("cacert.pem"), 0464), 0);
    assert_refused("ca/a", "ca-cert.pem");
    assert_int_equal(rename(path("cacert.pem"), path("ca/a/ca-cert.pem")), 0);
    assert_int_equal(chmod(path("ca/a/ca-cert.pem"), 0600), 0);
}

static void what_is_missing_or_damaged_is_named(void **state)
{
    struct vc_err err = VC_ERR_INIT;
    FILE *f;

    (void)state;
    assert_int_equal(vc_tls_check(path("nowhere"), VC_TLS_CLIENT, &err), VC_E_USAGE);
    assert_non_null(strstr(err.hint, "vecycle tls init"));
    assert_int_equal(mkdir(path("part"), 0700), 0);
    copy_file("ca/ca-cert.pem", "part/ca-cert.pem");
    copy_file("ca/a/client-cert.pem", "part/client-cert.pem");
    assert_int_equal(vc_tls_check(path("part"), VC_TLS_CLIENT, &err), VC_E_USAGE);
    assert_non_null(strstr(err.message, "client-key.pem"));
    copy_file("ca/b/client-key.pem", "part/client-key.pem"); /* of another certificate */
    assert_int_equal(vc_tls_check(path("part"), VC_TLS_CLIENT, &err), VC_E_FAILED);
    assert_non_null(strstr(err.message, "client-key.pem"));
    copy_file("ca/a/client-key.pem", "part/client-key.pem");
    assert_int_equal(vc_tls_check(path("part"), VC_TLS_CLIENT, &err), 0);
    f = fopen(path("part/ca-crl.pem"), "w");
    fputs("nothing\n", f);
    fclose(f);
    assert_int_equal(vc_tls_check(path("part"), VC_TLS_CLIENT, &err), VC_E_FAILED);
    assert_non_null(strstr(err.message, "ca-crl.pem"));
}

/* Else certificates that are revoked would be taken until the list's file system is mounted. */
static void a_list_of_revoked_ones_that_is_a_link_to_nothing_is_refused(void **state)
{
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    assert_int_equal(symlink("/run/not-mounted-yet/crl.pem", path("ca/a/ca-crl.pem")), 0);
    for (int role = 0; role < 2; role++) {
        assert_int_equal(vc_tls_check(path("ca/a"), role ? VC_TLS_SERVER : VC_TLS_CLIENT, &err),
                         VC_E_REFUSED);
        assert_non_null(strstr(err.message, "ca-crl.pem"));
    }
    assert_int_equal(unlink(path("ca/a/ca-crl.pem")), 0);
    assert_int_equal(vc_tls_check(path("ca/a"), VC_TLS_SERVER, &err), 0);
}

/* ---- the authority ---- */

static void an_authority_is_not_replaced_unasked(void **state)
{
    const char *host = "one";
    bool made = false;
    struct vc_tls_ca_options o = {
        .dir = path("mine"), .hosts = &host, .n_hosts = 1, .made_ca = &made};
    struct vc_err err = VC_ERR_INIT;
    struct stat before, after;

    (void)state;
    assert_int_equal(vc_tls_ca_init(&o, &err), 0);
    assert_true(made);
    assert_int_equal(stat(path("mine/ca-key.pem"), &before), 0);
    assert_int_equal(before.st_mode & 07777, 0600);
    assert_int_equal(vc_tls_ca_init(&o, &err), VC_E_REFUSED);
    assert_non_null(strstr(err.hint, "--renew"));
    host = "two";
    assert_int_equal(vc_tls_ca_init(&o, &err), 0);
    assert_false(made);
    assert_int_equal(stat(path("mine/ca-key.pem"), &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    assert_int_equal(stat(path("mine/two/client-key.pem"), &after), 0);
    assert_int_equal(after.st_mode & 07777, 0600);
    o.renew = true;
    assert_int_equal(vc_tls_ca_init(&o, &err), 0);
    o.new_ca = true;
    assert_int_equal(vc_tls_ca_init(&o, &err), 0);
    assert_true(made);
    assert_int_equal(stat(path("mine/ca-key.pem"), &after), 0);
    assert_true(before.st_ino != after.st_ino || before.st_mtim.tv_nsec != after.st_mtim.tv_nsec);
    assert_int_equal(unlink(path("mine/ca-cert.pem")), 0);
    o.new_ca = false;
    assert_int_equal(vc_tls_ca_init(&o, &err), VC_E_FAILED);
    assert_non_null(strstr(err.hint, "--new-ca"));
}

/* Of --dir planted, and of the default one in a directory in which others may write. */
static void an_authority_that_others_can_change_is_refused(void **state)
{
    static const char *const names[] = {"planted", "planted/ca-cert.pem", "planted/ca-key.pem"};
    struct vc_err err = VC_ERR_INIT;
    struct stat st;

    (void)state;
    assert_int_equal(make_hosts("planted", 0, 0, "one", &err), 0);
    for (size_t i = 0; i < VC_ARRAY_LEN(names); i++) {
        const char *name = path(names[i]);
        mode_t mode = i ? 0600 : 0700;

        assert_int_equal(chmod(name, mode | 022), 0);
        assert_int_equal(make_hosts("planted", 0, 0, "two", &err), VC_E_REFUSED);
        assert_non_null(strstr(err.message, names[i]));
        assert_int_equal(chmod(name, mode), 0);
        if (geteuid() != 0)
            continue;
        assert_int_equal(chown(name, SOMEBODY, SOMEBODY), 0);
        assert_int_equal(make_hosts("planted", 0, 0, "two", &err), VC_E_REFUSED);
        assert_int_equal(chown(name, 0, 0), 0);
    }
    assert_int_equal(stat(path("planted/two"), &st), -1);
    assert_int_equal(rename(path("planted/ca-key.pem"), path("key")), 0);
    assert_int_equal(symlink(path("key"), path("planted/ca-key.pem")), 0);
    assert_int_equal(chmod(path("key"), 0644), 0);
    assert_int_equal(make_hosts("planted", 0, 0, "two", &err), VC_E_REFUSED);
    assert_int_equal(chmod(path("key"), 0600), 0);
    assert_int_equal(make_hosts("planted", 0, 0, "kept", &err), 0); /* elsewhere */
    assert_int_equal(rename(path("key"), path("planted/ca-key.pem")), 0);
    assert_int_equal(symlink("planted", path("link")), 0);
    assert_int_equal(make_hosts("link", 0, 0, "two", &err), 0);
    if (geteuid() == 0) {
        assert_int_equal(lchown(path("link"), SOMEBODY, SOMEBODY), 0);
        assert_int_equal(make_hosts("link", 0, 0, "three", &err), VC_E_REFUSED);
    }
    unlink(path("link"));
}

static void names_of_hosts_are_never_paths(void **state)
{
    static const char *const bad[] = {
        "../x", "/etc", ".", "", ",", "a b", "a/b", "-x", "*.example", "ok,DNS:evil", "ok,a\nb"};
    struct vc_err err = VC_ERR_INIT;
    struct stat st;

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(bad); i++)
        assert_int_equal(make_hosts("names", 0, 0, bad[i], &err), VC_E_USAGE);
    assert_int_equal(stat(path("names/ca-cert.pem"), &st), -1); /* nothing half made */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hosts_of_one_authority_talk_and_part_in_order),
        cmocka_unit_test(the_certificate_is_of_the_same_authority),
        cmocka_unit_test(the_certificate_is_valid_today),
        cmocka_unit_test(the_certificate_names_the_host_that_was_called),
        cmocka_unit_test(a_clients_certificate_does_not_make_a_server),
        cmocka_unit_test(a_revoked_certificate_is_refused_from_the_next_connection_on),
        cmocka_unit_test(a_client_without_a_certificate_is_refused),
        cmocka_unit_test(a_client_of_tls_1_2_is_refused),
        cmocka_unit_test(a_server_that_is_none_is_told_apart),
        cmocka_unit_test(two_of_ours_agree_on_aes_gcm),
        cmocka_unit_test(the_server_takes_aes_gcm_whatever_a_client_likes_best),
        cmocka_unit_test(a_client_that_has_chacha20_alone_is_served),
        cmocka_unit_test(a_client_without_a_suite_of_ours_is_refused),
        cmocka_unit_test(rubbish_ends_a_handshake),
        cmocka_unit_test(a_handshake_that_dawdles_ends_at_its_deadline),
        cmocka_unit_test(a_handshake_can_be_cancelled),
        cmocka_unit_test(an_end_without_farewell_is_not_taken_for_the_end),
        cmocka_unit_test(a_changed_byte_is_noticed_and_stays_noticed),
        cmocka_unit_test(both_directions_flow_at_once_through_changes_of_keys),
        cmocka_unit_test(a_shutdown_wakes_reader_and_writer),
        cmocka_unit_test(a_key_that_others_can_read_is_refused),
        cmocka_unit_test(what_others_can_change_is_refused),
        cmocka_unit_test(what_is_missing_or_damaged_is_named),
        cmocka_unit_test(a_list_of_revoked_ones_that_is_a_link_to_nothing_is_refused),
        cmocka_unit_test(an_authority_is_not_replaced_unasked),
        cmocka_unit_test(an_authority_that_others_can_change_is_refused),
        cmocka_unit_test(names_of_hosts_are_never_paths),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
