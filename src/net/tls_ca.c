/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/durable.h"
#include "base/fdio.h"
#include "net/internal.h"

/* A small certificate authority: what two hosts need to trust each other, and no more. Its key
 * stays in its directory; the hosts' directories are what is copied to the hosts. */

#define CA_DAYS 3650u
#define DAY_S 86400
/* Hosts' clocks differ a little. */
#define BACKDATE_S 3600
#define MAX_NAMES 16
#define MAX_FILE_BYTES 65536

struct ca {
    X509 *cert;
    EVP_PKEY *key;
    bool made;
};

static void ca_free(struct ca *ca)
{
    X509_free(ca->cert);
    EVP_PKEY_free(ca->key);
}

/* ---- names ---- */

struct host {
    char dir[256]; /* the first name */
    char san[2048];
};

static bool is_address(const char *name)
{
    uint8_t b[16];

    return inet_pton(AF_INET, name, b) == 1 || inet_pton(AF_INET6, name, b) == 1;
}

/* Letters, digits, dots, dashes: also what makes it a harmless name of a directory. */
static bool is_dns_name(const char *name)
{
    size_t n = strlen(name);

    if (n == 0 || n > 253 || !isalnum((unsigned char)name[0]))
        return false;
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)name[i]) && !strchr("-._", name[i]))
            return false;
    return true;
}

/* "NAME[,NAME-OR-ADDRESS...]" */
static int parse_host(const char *text, struct host *h, struct vc_err *err)
{
    char copy[1024], *save = NULL;
    size_t used = 0, n = 0;

    if (snprintf(copy, sizeof(copy), "%s", text) >= (int)sizeof(copy))
        return vc_err_set(err, VC_E_USAGE, "'%.64s...' is too long", text);
    for (char *p = strtok_r(copy, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
        char bare[256];
        bool address;

        vc_address_bare(p, bare);
        p = bare;
        address = is_address(p);
        if (++n > MAX_NAMES || (!address && !is_dns_name(p)))
            return vc_err_set_hint(err, VC_E_USAGE, "NAME[,NAME-OR-ADDRESS...], at most 16 of them",
                                   "'%.64s' is not the name of a host", p);
        if (n == 1)
            snprintf(h->dir, sizeof(h->dir), "%s", p);
        used += (size_t)snprintf(h->san + used, sizeof(h->san) - used, "%s%s:%s", used ? "," : "",
                                 address ? "IP" : "DNS", p);
    }
    return n ? 0 : vc_err_set(err, VC_E_USAGE, "a host has no name");
}

/* ---- certificates ---- */

static bool add_extension(X509 *x, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509_EXTENSION *e;
    bool ok;

    X509V3_set_ctx(&ctx, issuer, x, NULL, NULL, 0);
    e = X509V3_EXT_nconf_nid(NULL, &ctx, nid, value);
    ok = e && X509_add_ext(x, e, -1);
    X509_EXTENSION_free(e);
    return ok;
}

static bool set_serial(X509 *x)
{
    uint8_t b[16];
    BIGNUM *n = NULL;
    bool ok = RAND_bytes(b, sizeof(b)) == 1;

    b[0] = (uint8_t)((b[0] & 0x7f) | 0x40); /* positive, and never zero */
    if (ok)
        n = BN_bin2bn(b, sizeof(b), NULL);
    ok = n && BN_to_ASN1_INTEGER(n, X509_get_serialNumber(x));
    BN_free(n);
    return ok;
}

static bool set_times(X509 *x, int64_t now, uint32_t days)
{
    time_t from = (time_t)now - BACKDATE_S, to = (time_t)now + (time_t)days * DAY_S;

    return ASN1_TIME_set(X509_getm_notBefore(x), from) && ASN1_TIME_set(X509_getm_notAfter(x), to);
}

static X509 *new_cert(const char *name, EVP_PKEY *key, int64_t now, uint32_t days)
{
    X509 *x = X509_new();
    X509_NAME *subject = x ? X509_get_subject_name(x) : NULL;

    if (x && X509_set_version(x, X509_VERSION_3) && set_serial(x) && set_times(x, now, days) &&
        X509_set_pubkey(x, key) &&
        X509_NAME_add_entry_by_NID(subject, NID_commonName, MBSTRING_UTF8,
                                   (const unsigned char *)name, -1, -1, 0))
        return x;
    X509_free(x);
    return NULL;
}

static X509 *make_ca_cert(EVP_PKEY *key, int64_t now)
{
    uint8_t b[4];
    char name[64];
    X509 *x;

    /* A name of its own, so that two authorities are never taken for one. */
    if (RAND_bytes(b, sizeof(b)) != 1)
        return NULL;
    snprintf(name, sizeof(name), "vecycle authority %02x%02x%02x%02x", b[0], b[1], b[2], b[3]);
    x = new_cert(name, key, now, CA_DAYS);
    if (x && X509_set_issuer_name(x, X509_get_subject_name(x)) &&
        add_extension(x, x, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
        add_extension(x, x, NID_key_usage, "critical,keyCertSign,cRLSign") &&
        add_extension(x, x, NID_subject_key_identifier, "hash") && X509_sign(x, key, EVP_sha256()))
        return x;
    X509_free(x);
    return NULL;
}

static X509 *make_host_cert(const struct ca *ca, const struct host *h, enum vc_tls_role role,
                            EVP_PKEY *key, int64_t now, uint32_t days)
{
    /* A common name is 64 characters at most; it is for people, the alternative names count. */
    char name[65];
    X509 *x;

    snprintf(name, sizeof(name), "%.64s", h->dir);
    x = new_cert(name, key, now, days);
    if (x && X509_set_issuer_name(x, X509_get_subject_name(ca->cert)) &&
        add_extension(x, ca->cert, NID_basic_constraints, "critical,CA:FALSE") &&
        add_extension(x, ca->cert, NID_key_usage, "critical,digitalSignature") &&
        add_extension(x, ca->cert, NID_ext_key_usage,
                      role == VC_TLS_SERVER ? "serverAuth" : "clientAuth") &&
        add_extension(x, ca->cert, NID_subject_alt_name, h->san) &&
        add_extension(x, ca->cert, NID_subject_key_identifier, "hash") &&
        add_extension(x, ca->cert, NID_authority_key_identifier, "keyid") &&
        X509_sign(x, ca->key, EVP_sha256()))
        return x;
    X509_free(x);
    return NULL;
}

static int no_certificate(const char *what, struct vc_err *err)
{
    const char *text = ERR_reason_error_string(ERR_peek_last_error());

    ERR_clear_error();
    return vc_err_set(err, VC_E_FAILED, "cannot make a certificate for '%s': %s", what,
                      text ? text : "no reason known");
}

/* ---- files ---- */

static int write_bio(int dirfd, const char *name, BIO *b, bool ok, struct vc_err *err)
{
    char *bytes;
    long n = b ? BIO_get_mem_data(b, &bytes) : 0;
    int rc = ok && n > 0 ? vc_durable_write_file(&vc_io_kernel, dirfd, name, bytes, (size_t)n, err)
                         : no_certificate(name, err);

    BIO_free(b);
    return rc;
}

static int write_cert(int dirfd, const char *name, X509 *x, struct vc_err *err)
{
    BIO *b = BIO_new(BIO_s_mem());

    return write_bio(dirfd, name, b, b && PEM_write_bio_X509(b, x), err);
}

static int write_key(int dirfd, const char *name, EVP_PKEY *k, struct vc_err *err)
{
    BIO *b = BIO_new(BIO_s_secmem()); /* wiped when it is freed */

    return write_bio(dirfd, name, b,
                     b && PEM_write_bio_PKCS8PrivateKey(b, k, NULL, NULL, 0, NULL, NULL), err);
}

static int not_ours(const char *dir, const char *name, struct vc_err *err)
{
    return vc_err_set_hint(
        err, VC_E_REFUSED, "another --dir; or, if you know who made it, chown and chmod go-w",
        "other users can change, or use, the authority in '%s%s%s'", dir, *name ? "/" : "", name);
}

/* NULL in *out: it cannot be read. Whoever made it, or has its key, signs for any host. */
static int read_bio(int dirfd, const char *dir, const char *name, bool is_key, BIO **out,
                    struct vc_err *err)
{
    vc_auto_close int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    char bytes[MAX_FILE_BYTES];
    struct stat st;
    ssize_t n;

    *out = NULL;
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return 0;
    if (is_key ? !vc_tls_key_is_private(&st) : !vc_is_guarded(&st))
        return not_ours(dir, name, err);
    *out = BIO_new(BIO_s_secmem());
    n = *out ? vc_read_some(fd, bytes, sizeof(bytes)) : -1;
    if (n > 0)
        BIO_write(*out, bytes, (int)n);
    OPENSSL_cleanse(bytes, n > 0 ? (size_t)n : 0);
    return 0;
}

static bool exists(int dirfd, const char *name)
{
    return faccessat(dirfd, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* ---- the authority ---- */

static int make_ca(int dirfd, const struct vc_tls_ca_options *o, struct ca *ca, struct vc_err *err)
{
    int rc;

    ca->key = EVP_EC_gen("P-256");
    ca->cert = ca->key ? make_ca_cert(ca->key, o->now) : NULL;
    if (!ca->cert)
        return no_certificate("the authority", err);
    ca->made = true;
    /* The certificate last: with it the authority is there. */
    rc = write_key(dirfd, "ca-key.pem", ca->key, err);
    return rc ? rc : write_cert(dirfd, "ca-cert.pem", ca->cert, err);
}

static int load_ca(int dirfd, const char *dir, struct ca *ca, struct vc_err *err)
{
    BIO *cert = NULL, *key = NULL;
    int rc = read_bio(dirfd, dir, "ca-cert.pem", false, &cert, err);

    if (!rc)
        rc = read_bio(dirfd, dir, "ca-key.pem", true, &key, err);
    ca->cert = cert ? PEM_read_bio_X509(cert, NULL, NULL, NULL) : NULL;
    ca->key = key ? PEM_read_bio_PrivateKey(key, NULL, NULL, (void *)"") : NULL;
    BIO_free(cert);
    BIO_free(key);
    ERR_clear_error();
    if (rc)
        return rc;
    if (ca->cert && ca->key && X509_check_private_key(ca->cert, ca->key) == 1)
        return 0;
    ERR_clear_error();
    return vc_err_set_hint(err, VC_E_FAILED, "--new-ca makes a new one; all hosts then need it",
                           "the authority in '%s' cannot be used", dir);
}

static int open_ca(int dirfd, const struct vc_tls_ca_options *o, struct ca *ca, struct vc_err *err)
{
    if (o->new_ca || (!exists(dirfd, "ca-cert.pem") && !exists(dirfd, "ca-key.pem")))
        return make_ca(dirfd, o, ca, err);
    return load_ca(dirfd, o->dir, ca, err);
}

/* ---- a host ---- */

static int issue(int dirfd, const struct ca *ca, const struct host *h, enum vc_tls_role role,
                 const struct vc_tls_ca_options *o, struct vc_err *err)
{
    bool server = role == VC_TLS_SERVER;
    uint32_t days = o->days ? o->days : VC_TLS_DEFAULT_DAYS;
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = key ? make_host_cert(ca, h, role, key, o->now, days) : NULL;
    int rc = x ? write_key(dirfd, server ? "server-key.pem" : "client-key.pem", key, err)
               : no_certificate(h->dir, err);

    if (!rc)
        rc = write_cert(dirfd, server ? "server-cert.pem" : "client-cert.pem", x, err);
    X509_free(x);
    EVP_PKEY_free(key);
    return rc;
}

static int make_dir(int at, const char *name, struct vc_err *err)
{
    int fd;

    if (vc_mkdirat(at, name, 0700) < 0 && errno != EEXIST)
        return vc_err_set_errno(err, VC_E_STORE, "cannot make the directory '%s'", name);
    fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return vc_err_set_errno(err, VC_E_STORE, "cannot open the directory '%s'", name);
    return fd;
}

/* Made, or there already: by the caller or root, and nobody else can put anything there. A link is
 * followed if it is one of theirs, too. */
static int open_authority(const char *dir, struct vc_err *err)
{
    vc_auto_close int fd = make_dir(AT_FDCWD, dir, err);
    struct stat st, link;

    if (fd < 0)
        return fd;
    if (fstat(fd, &st) < 0 || lstat(dir, &link) < 0)
        return vc_err_set_errno(err, VC_E_STORE, "cannot look at '%s'", dir);
    if (S_ISLNK(link.st_mode))
        link.st_mode &= ~022u; /* which are always set */
    return vc_is_guarded(&st) && vc_is_guarded(&link) ? vc_steal_fd(&fd) : not_ours(dir, "", err);
}

static int add_host(int dirfd, const struct ca *ca, const struct host *h,
                    const struct vc_tls_ca_options *o, struct vc_err *err)
{
    vc_auto_close int fd = make_dir(dirfd, h->dir, err);
    int rc;

    if (fd < 0)
        return fd;
    rc = write_cert(fd, "ca-cert.pem", ca->cert, err);
    if (!rc)
        rc = issue(fd, ca, h, VC_TLS_SERVER, o, err);
    if (!rc)
        rc = issue(fd, ca, h, VC_TLS_CLIENT, o, err);
    return rc;
}

/* Nothing is written unless everything can be. */
static int check_hosts(int dirfd, const struct vc_tls_ca_options *o, struct vc_err *err)
{
    struct host h;

    for (size_t i = 0; i < o->n_hosts; i++) {
        int rc = parse_host(o->hosts[i], &h, err);

        if (rc)
            return rc;
        if (!o->renew && !o->new_ca && exists(dirfd, h.dir))
            return vc_err_set_hint(err, VC_E_REFUSED, "--renew replaces certificates and keys",
                                   "'%s/%s' is there already", o->dir, h.dir);
    }
    return 0;
}

int vc_tls_ca_init(const struct vc_tls_ca_options *options, struct vc_err *err)
{
    struct vc_tls_ca_options o = *options;
    struct ca ca = {0};
    vc_auto_close int dirfd = -1;
    struct host h;
    int rc;

    if (!o.now)
        o.now = (int64_t)time(NULL);
    if (o.days > VC_TLS_MAX_DAYS)
        return vc_err_set(err, VC_E_USAGE, "%u days are more than %u", o.days, VC_TLS_MAX_DAYS);
    dirfd = open_authority(o.dir, err);
    if (dirfd < 0)
        return dirfd;
    rc = check_hosts(dirfd, &o, err);
    if (!rc)
        rc = open_ca(dirfd, &o, &ca, err);
    for (size_t i = 0; i < o.n_hosts && !rc; i++) {
        rc = parse_host(o.hosts[i], &h, err);
        if (!rc)
            rc = add_host(dirfd, &ca, &h, &o, err);
    }
    if (o.made_ca)
        *o.made_ca = ca.made && !rc;
    ca_free(&ca);
    return rc;
}
