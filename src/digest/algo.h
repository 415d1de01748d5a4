/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_DIGEST_ALGO_H
#define VC_DIGEST_ALGO_H

#include "digest/digest.h"

/* Private to src/digest: what an algorithm provides. A new one is a file with such a table and a
 * line in digest.c. */

struct vc_digest_ops {
    enum vc_digest_algo algo;
    const char *name; /* goes into the key derivation: never change it */
    int (*init)(void **state, const uint8_t derived[VC_DIGEST_KEY_BYTES], struct vc_err *err);
    void (*free)(void *state);
    int (*pages)(void *state, const uint8_t *const *pages, size_t n, size_t page_bytes,
                 struct vc_digest *out, struct vc_err *err);
    int (*begin)(void *state, struct vc_err *err);
    int (*update)(void *state, const void *data, size_t n, struct vc_err *err);
    int (*end)(void *state, struct vc_digest *out, struct vc_err *err);
};

extern const struct vc_digest_ops vc_digest_gmac_ops;

/** VC_E_FAILED with OpenSSL's own reason. */
int vc_digest_openssl_error(struct vc_err *err, const char *what);

#endif
