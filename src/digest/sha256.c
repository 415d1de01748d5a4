/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <openssl/evp.h>

#include "digest/digest.h"

struct vc_sha256 {
    EVP_MD_CTX *ctx;
    bool failed; /* sticky, told by finish */
};

struct vc_sha256 *vc_sha256_new(void)
{
    struct vc_sha256 *s = calloc(1, sizeof(*s));

    if (!s)
        return NULL;
    s->ctx = EVP_MD_CTX_new();
    if (!s->ctx) {
        free(s);
        return NULL;
    }
    s->failed = EVP_DigestInit_ex(s->ctx, EVP_sha256(), NULL) != 1;
    return s;
}

void vc_sha256_update(struct vc_sha256 *s, const void *data, size_t n)
{
    if (n && EVP_DigestUpdate(s->ctx, data, n) != 1)
        s->failed = true;
}

bool vc_sha256_finish(struct vc_sha256 *s, uint8_t out[VC_SHA256_BYTES])
{
    unsigned n;
    bool ok = !s->failed && EVP_DigestFinal_ex(s->ctx, out, &n) == 1;

    vc_sha256_free(s);
    return ok;
}

void vc_sha256_free(struct vc_sha256 *s)
{
    if (!s)
        return;
    EVP_MD_CTX_free(s->ctx);
    free(s);
}

bool vc_sha256(const void *data, size_t n, uint8_t out[VC_SHA256_BYTES])
{
    struct vc_sha256 *s = vc_sha256_new();

    if (!s)
        return false;
    vc_sha256_update(s, data, n);
    return vc_sha256_finish(s, out);
}
