/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "digest/digest.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <stdio.h>
#include <string.h>

#include "digest/algo.h"

static const struct vc_digest_ops *const algorithms[] = {
    &vc_digest_gmac_ops,
};

#define SCRATCH_BYTES 4096

struct vc_digester {
    const struct vc_digest_ops *ops;
    void *state;
    size_t gathered; /* bytes of a message not yet passed on */
    uint8_t scratch[SCRATCH_BYTES];
};

int vc_digest_openssl_error(struct vc_err *err, const char *what)
{
    const char *reason = ERR_reason_error_string(ERR_get_error());

    return vc_err_set(err, VC_E_FAILED, "OpenSSL: %s: %s", what, reason ? reason : "failed");
}

static const struct vc_digest_ops *find(unsigned algo)
{
    for (size_t i = 0; i < VC_ARRAY_LEN(algorithms); i++)
        if ((unsigned)algorithms[i]->algo == algo)
            return algorithms[i];
    return NULL;
}

bool vc_digest_algo_known(unsigned algo)
{
    return find(algo) != NULL;
}

/* HKDF-SHA256 with the algorithm and the purpose as its info: docs/internals/digest.md. */
static int derive(const uint8_t *key, const char *info, uint8_t *out, struct vc_err *err)
{
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    EVP_KDF_CTX *ctx = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, (char *)"SHA256", 0),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)key, VC_DIGEST_KEY_BYTES),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, (void *)info, strlen(info)),
        OSSL_PARAM_construct_end(),
    };
    int rc = 0;

    if (!ctx || EVP_KDF_derive(ctx, out, VC_DIGEST_KEY_BYTES, params) != 1)
        rc = vc_digest_openssl_error(err, "key derivation");
    EVP_KDF_CTX_free(ctx);
    EVP_KDF_free(kdf);
    return rc;
}

int vc_digester_new(unsigned algo, enum vc_digest_purpose purpose,
                    const uint8_t key[VC_DIGEST_KEY_BYTES], struct vc_digester **out,
                    struct vc_err *err)
{
    const struct vc_digest_ops *ops = find(algo);
    uint8_t derived[VC_DIGEST_KEY_BYTES];
    vc_auto_free struct vc_digester *d = NULL;
    char info[64];
    int rc;

    if (!ops)
        return vc_err_set_hint(err, VC_E_VERSION, "use versions of vecycle that fit together",
                               "unknown digest algorithm %u", algo);
    d = calloc(1, sizeof(*d));
    if (!d)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a digester");
    d->ops = ops;
    snprintf(info, sizeof(info), "vecycle v1 %s %s", ops->name,
             purpose == VC_DIGEST_PAGE ? "page" : "seal");
    rc = derive(key, info, derived, err);
    if (!rc)
        rc = ops->init(&d->state, derived, err);
    vc_wipe(derived, sizeof(derived));
    if (rc)
        return rc;
    *out = vc_steal_ptr(d);
    return 0;
}

void vc_digester_free(struct vc_digester *d)
{
    if (!d)
        return;
    d->ops->free(d->state);
    free(d);
}

int vc_digest_pages(struct vc_digester *d, const uint8_t *const *pages, size_t n, size_t page_bytes,
                    struct vc_digest *out, struct vc_err *err)
{
    return d->ops->pages(d->state, pages, n, page_bytes, out, err);
}

int vc_digest_begin(struct vc_digester *d, struct vc_err *err)
{
    d->gathered = 0;
    return d->ops->begin(d->state, err);
}

static int flush(struct vc_digester *d, struct vc_err *err)
{
    int rc = d->gathered ? d->ops->update(d->state, d->scratch, d->gathered, err) : 0;

    d->gathered = 0;
    return rc;
}

/* A seal is fed with headers and digests, a few bytes each: they are gathered, since a call into
 * OpenSSL costs more than they do. */
int vc_digest_update(struct vc_digester *d, const void *data, size_t n, struct vc_err *err)
{
    if (n > SCRATCH_BYTES - d->gathered) {
        int rc = flush(d, err);

        if (rc)
            return rc;
        if (n > SCRATCH_BYTES)
            return d->ops->update(d->state, data, n, err);
    }
    if (n)
        memcpy(d->scratch + d->gathered, data, n);
    d->gathered += n;
    return 0;
}

int vc_digest_end(struct vc_digester *d, struct vc_digest *out, struct vc_err *err)
{
    int rc = flush(d, err);

    return rc ? rc : d->ops->end(d->state, out, err);
}

bool vc_digest_equal(const struct vc_digest *a, const struct vc_digest *b)
{
    return CRYPTO_memcmp(a->b, b->b, VC_DIGEST_BYTES) == 0;
}

void vc_wipe(void *p, size_t n)
{
    OPENSSL_cleanse(p, n);
}
