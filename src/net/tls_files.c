/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fdio.h"
#include "net/internal.h"

/* The files of a directory, laid out as QEMU and libvirt have it, and the context made of them.
 * Whoever can write there decides who is trusted; whoever can read a key is this host. */

#define MAX_FILE_BYTES (1u << 20)

/* AES first: the processors at hand do it in hardware. */
#define SUITES "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
/* What a peer's chain of certificates may take. */
#define MAX_CHAIN_BYTES 32768

struct file {
    uint8_t *bytes;
    size_t n;
};

static void file_free(struct file *f)
{
    if (f->bytes)
        OPENSSL_cleanse(f->bytes, f->n);
    free(f->bytes);
}
#define vc_auto_file VC_CLEANUP(file_free)

bool vc_tls_key_is_private(const struct stat *st)
{
    if (st->st_uid != geteuid() && st->st_uid != 0)
        return false;
    return !(st->st_mode & (st->st_uid == 0 ? 037 : 077));
}

/* A name that leads nowhere is no missing file: what it names may be on its way, as a file system
 * that is not mounted yet. Keeps errno. */
static bool is_absent(int dirfd, const char *name)
{
    int saved = errno;
    struct stat st;
    bool absent =
        saved == ENOENT && fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 && errno == ENOENT;

    errno = saved;
    return absent;
}

/* VC_NOT_FOUND: there is no such name. */
static int read_file(int dirfd, const char *dir, const char *name, bool is_key, struct file *out,
                     struct vc_err *err)
{
    vc_auto_close int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;

    if (fd < 0 && is_absent(dirfd, name))
        return VC_NOT_FOUND;
    if (fd < 0 && errno == ENOENT)
        return vc_err_set_hint(err, VC_E_REFUSED, "mount what it leads to, or remove it",
                               "'%s/%s' is a link to what is not there", dir, name);
    if (fd < 0 || fstat(fd, &st) < 0)
        return vc_err_set_errno_hint(err, errno == EACCES ? VC_E_REFUSED : VC_E_FAILED,
                                     "it is read by the user that vecycle runs as: chgrp and chmod "
                                     "640, see vecycle-tls(1)",
                                     "cannot open '%s/%s'", dir, name);
    if (!S_ISREG(st.st_mode) || st.st_size > MAX_FILE_BYTES)
        return vc_err_set(err, VC_E_FAILED, "'%s/%s' is not a PEM file", dir, name);
    if (is_key && !vc_tls_key_is_private(&st))
        return vc_err_set_hint(err, VC_E_REFUSED, "chmod 600, and the owner is who runs vecycle",
                               "other users can get at the private key '%s/%s'", dir, name);
    if (!vc_is_guarded(&st))
        return vc_err_set_hint(err, VC_E_REFUSED,
                               "chmod go-w, and the owner is root or who runs vecycle",
                               "other users can change '%s/%s'", dir, name);
    out->n = (size_t)st.st_size;
    out->bytes = malloc(out->n + 1);
    if (!out->bytes)
        return vc_err_set(err, VC_E_NOMEM, "no memory for '%s/%s'", dir, name);
    if (out->n && vc_read_full(fd, out->bytes, out->n) != 1)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot read '%s/%s'", dir, name);
    return 0;
}

static int missing(const char *dir, const char *name, struct vc_err *err)
{
    return vc_err_set_hint(err, VC_E_USAGE, "`vecycle tls init` makes them; see --tls-dir",
                           "there is no '%s' in '%s'", name, dir);
}

static int damaged(const char *dir, const char *name, struct vc_err *err)
{
    ERR_clear_error();
    return vc_err_set(err, VC_E_FAILED, "'%s/%s' is not what its name says, or damaged", dir, name);
}

static int load_ca(SSL_CTX *ctx, const char *dir, const struct file *f, struct vc_err *err)
{
    BIO *b = BIO_new_mem_buf(f->bytes, (int)f->n);
    X509_STORE *store = SSL_CTX_get_cert_store(ctx);
    unsigned n = 0;
    X509 *x;

    while (b && (x = PEM_read_bio_X509(b, NULL, NULL, NULL))) {
        n += X509_STORE_add_cert(store, x) == 1;
        X509_free(x);
    }
    BIO_free(b);
    ERR_clear_error(); /* the end of the file is an error to the reader */
    return n ? 0 : damaged(dir, "ca-cert.pem", err);
}

/* With a list of revoked certificates every authority in a chain needs one, and a current one. */
static int load_crl(SSL_CTX *ctx, const char *dir, const struct file *f, struct vc_err *err)
{
    BIO *b = BIO_new_mem_buf(f->bytes, (int)f->n);
    X509_STORE *store = SSL_CTX_get_cert_store(ctx);
    unsigned n = 0;
    X509_CRL *x;

    while (b && (x = PEM_read_bio_X509_CRL(b, NULL, NULL, NULL))) {
        n += X509_STORE_add_crl(store, x) == 1;
        X509_CRL_free(x);
    }
    BIO_free(b);
    ERR_clear_error();
    X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL);
    return n ? 0 : damaged(dir, "ca-crl.pem", err);
}

/* Our certificate, and any between it and the authority's. */
static bool load_chain(SSL_CTX *ctx, const struct file *f)
{
    BIO *b = BIO_new_mem_buf(f->bytes, (int)f->n);
    X509 *x = b ? PEM_read_bio_X509(b, NULL, NULL, NULL) : NULL;
    bool ok = x && SSL_CTX_use_certificate(ctx, x) == 1;

    X509_free(x);
    while (ok && (x = PEM_read_bio_X509(b, NULL, NULL, NULL)))
        if (!SSL_CTX_add0_chain_cert(ctx, x)) {
            X509_free(x);
            ok = false;
        }
    BIO_free(b);
    return ok;
}

static int no_passphrase(char *buf, int n, int rwflag, void *opaque)
{
    (void)buf, (void)n, (void)rwflag, (void)opaque;
    return 0; /* an agent has nobody to ask */
}

static bool load_key(SSL_CTX *ctx, const struct file *f)
{
    BIO *b = BIO_new_mem_buf(f->bytes, (int)f->n);
    EVP_PKEY *k = b ? PEM_read_bio_PrivateKey(b, NULL, no_passphrase, NULL) : NULL;
    bool ok = k && SSL_CTX_use_PrivateKey(ctx, k) == 1;

    EVP_PKEY_free(k);
    BIO_free(b);
    return ok;
}

/* Who may write there decides who is trusted. */
static int open_dir(const char *dir, int *fd_out, struct vc_err *err)
{
    vc_auto_close int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    struct stat st;

    if (fd < 0 && errno == EACCES)
        return vc_err_set_errno_hint(err, VC_E_REFUSED,
                                     "it is read by the user that vecycle runs as: see "
                                     "vecycle-tls(1)",
                                     "cannot open the directory of certificates '%s'", dir);
    if (fd < 0 || fstat(fd, &st) < 0)
        return vc_err_set_errno_hint(err, VC_E_USAGE,
                                     "`vecycle tls init` makes certificates; see --tls-dir",
                                     "cannot open the directory of certificates '%s'", dir);
    if (!vc_is_guarded(&st))
        return vc_err_set_hint(err, VC_E_REFUSED,
                               "chmod go-w, and the owner is root or who runs vecycle",
                               "other users can change the directory of certificates '%s'", dir);
    *fd_out = vc_steal_fd(&fd);
    return 0;
}

static int load_files(SSL_CTX *ctx, const char *dir, enum vc_tls_role role, struct vc_err *err)
{
    bool server = role == VC_TLS_SERVER;
    const char *cert_name = server ? "server-cert.pem" : "client-cert.pem";
    const char *key_name = server ? "server-key.pem" : "client-key.pem";
    vc_auto_close int fd = -1;
    vc_auto_file struct file ca = {0}, crl = {0}, cert = {0}, key = {0};
    int rc = open_dir(dir, &fd, err);

    if (rc)
        return rc;
    rc = read_file(fd, dir, "ca-cert.pem", false, &ca, err);
    if (rc)
        return rc == VC_NOT_FOUND ? missing(dir, "ca-cert.pem", err) : rc;
    rc = read_file(fd, dir, cert_name, false, &cert, err);
    if (rc)
        return rc == VC_NOT_FOUND ? missing(dir, cert_name, err) : rc;
    rc = read_file(fd, dir, key_name, true, &key, err);
    if (rc)
        return rc == VC_NOT_FOUND ? missing(dir, key_name, err) : rc;
    rc = read_file(fd, dir, "ca-crl.pem", false, &crl, err);
    if (rc == 0)
        rc = load_crl(ctx, dir, &crl, err);
    if (rc < 0)
        return rc;
    rc = load_ca(ctx, dir, &ca, err);
    if (!rc && !load_chain(ctx, &cert))
        rc = damaged(dir, cert_name, err);
    if (!rc && !load_key(ctx, &key))
        rc = damaged(dir, key_name, err);
    ERR_clear_error();
    return rc;
}

/* Nothing of a session outlives it: no tickets, no cache; each handshake sees the certificates. */
static bool set_policy(SSL_CTX *ctx, enum vc_tls_role role)
{
    int verify = SSL_VERIFY_PEER;

    if (role == VC_TLS_SERVER)
        verify |= SSL_VERIFY_FAIL_IF_NO_PEER_CERT;
    SSL_CTX_set_verify(ctx, verify, NULL);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_options(ctx, SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_NO_TICKET);
    SSL_CTX_set_max_cert_list(ctx, MAX_CHAIN_BYTES);
    SSL_CTX_set_default_passwd_cb(ctx, no_passphrase);
    return SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) &&
           SSL_CTX_set_max_proto_version(ctx, TLS1_3_VERSION) && SSL_CTX_set_num_tickets(ctx, 0) &&
           SSL_CTX_set_ciphersuites(ctx, SUITES);
}

int vc_tls_context(const char *dir, enum vc_tls_role role, SSL_CTX **out, struct vc_err *err)
{
    SSL_CTX *ctx = SSL_CTX_new(role == VC_TLS_SERVER ? TLS_server_method() : TLS_client_method());
    int rc;

    if (!ctx)
        return vc_err_set(err, VC_E_NOMEM, "no memory for TLS");
    if (set_policy(ctx, role))
        rc = load_files(ctx, dir ? dir : VC_TLS_DEFAULT_DIR, role, err);
    else
        rc = vc_err_set(err, VC_E_FAILED, "this OpenSSL does not do TLS 1.3");
    if (rc) {
        SSL_CTX_free(ctx);
        return rc;
    }
    *out = ctx;
    return 0;
}

int vc_tls_check(const char *dir, enum vc_tls_role role, struct vc_err *err)
{
    SSL_CTX *ctx;
    int rc = vc_tls_context(dir, role, &ctx, err);

    if (!rc)
        SSL_CTX_free(ctx);
    return rc;
}
