/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <limits.h>
#include <openssl/evp.h>

#include "digest/algo.h"

/* AES-128-GMAC with a fixed nonce, then one AES-128 block under a second key: a universal hash made
 * safe to show by a pseudo-random permutation. docs/internals/digest.md has the argument.
 *
 * GMAC is AES-GCM with the message as associated data and no plaintext. The context keeps the key
 * schedule and the powers of H; setting the nonce again starts the next message. */

struct gmac {
    EVP_CIPHER *gcm, *ecb;
    EVP_CIPHER_CTX *hash; /* AES-128-GCM under the first half of the key */
    EVP_CIPHER_CTX *hide; /* AES-128-ECB under the second half */
};

static const uint8_t nonce[12];

static void gmac_free(void *state)
{
    struct gmac *g = state;

    if (!g)
        return;
    EVP_CIPHER_CTX_free(g->hash); /* wipes its keys */
    EVP_CIPHER_CTX_free(g->hide);
    EVP_CIPHER_free(g->gcm);
    EVP_CIPHER_free(g->ecb);
    free(g);
}

static int gmac_init(void **state, const uint8_t derived[VC_DIGEST_KEY_BYTES], struct vc_err *err)
{
    struct gmac *g = calloc(1, sizeof(*g));

    if (!g)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a digester");
    g->gcm = EVP_CIPHER_fetch(NULL, "AES-128-GCM", NULL);
    g->ecb = EVP_CIPHER_fetch(NULL, "AES-128-ECB", NULL);
    g->hash = EVP_CIPHER_CTX_new();
    g->hide = EVP_CIPHER_CTX_new();
    if (!g->gcm || !g->ecb || !g->hash || !g->hide ||
        EVP_EncryptInit_ex2(g->hash, g->gcm, derived, nonce, NULL) != 1 ||
        EVP_EncryptInit_ex2(g->hide, g->ecb, derived + 16, NULL, NULL) != 1 ||
        EVP_CIPHER_CTX_set_padding(g->hide, 0) != 1) {
        gmac_free(g);
        return vc_digest_openssl_error(err, "AES-128-GCM");
    }
    *state = g;
    return 0;
}

static int gmac_begin(void *state, struct vc_err *err)
{
    struct gmac *g = state;

    if (EVP_EncryptInit_ex2(g->hash, NULL, NULL, nonce, NULL) != 1)
        return vc_digest_openssl_error(err, "GMAC");
    return 0;
}

static int gmac_update(void *state, const void *data, size_t n, struct vc_err *err)
{
    struct gmac *g = state;
    const uint8_t *p = data;

    while (n) {
        int k = n > INT_MAX / 2 ? INT_MAX / 2 : (int)n, out;

        if (EVP_EncryptUpdate(g->hash, NULL, &out, p, k) != 1)
            return vc_digest_openssl_error(err, "GMAC");
        p += k;
        n -= (size_t)k;
    }
    return 0;
}

static int gmac_tag(struct gmac *g, struct vc_digest *out, struct vc_err *err)
{
    uint8_t none[16];
    int n;

    if (EVP_EncryptFinal_ex(g->hash, none, &n) != 1 ||
        EVP_CIPHER_CTX_ctrl(g->hash, EVP_CTRL_AEAD_GET_TAG, VC_DIGEST_BYTES, out->b) != 1)
        return vc_digest_openssl_error(err, "GMAC");
    return 0;
}

/* n tags at once. */
static int gmac_hide(struct gmac *g, struct vc_digest *tags, size_t n, struct vc_err *err)
{
    uint8_t *p = tags->b;
    int out;

    if (n == 0)
        return 0;
    if (EVP_EncryptUpdate(g->hide, p, &out, p, (int)(n * VC_DIGEST_BYTES)) != 1)
        return vc_digest_openssl_error(err, "AES-128");
    return 0;
}

static int gmac_end(void *state, struct vc_digest *out, struct vc_err *err)
{
    struct gmac *g = state;
    int rc = gmac_tag(g, out, err);

    return rc ? rc : gmac_hide(g, out, 1, err);
}

static int gmac_pages(void *state, const uint8_t *const *pages, size_t n, size_t page_bytes,
                      struct vc_digest *out, struct vc_err *err)
{
    struct gmac *g = state;

    for (size_t i = 0; i < n; i++) {
        int rc = gmac_begin(g, err);

        if (!rc)
            rc = gmac_update(g, pages[i], page_bytes, err);
        if (!rc)
            rc = gmac_tag(g, &out[i], err);
        if (rc)
            return rc;
    }
    return gmac_hide(g, out, n, err);
}

const struct vc_digest_ops vc_digest_gmac_ops = {
    .algo = VC_DIGEST_GMAC,
    .name = "gmac",
    .init = gmac_init,
    .free = gmac_free,
    .pages = gmac_pages,
    .begin = gmac_begin,
    .update = gmac_update,
    .end = gmac_end,
};
