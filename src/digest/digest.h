/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_DIGEST_DIGEST_H
#define VC_DIGEST_DIGEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* Keyed digests of pages and of messages. The construction, its parameters and the argument why a
 * guest cannot make two pages that it confuses are in docs/internals/digest.md.
 *
 * Thread rule: a digester belongs to one thread at a time; any number may exist for one key. */

#define VC_DIGEST_BYTES 16
#define VC_DIGEST_KEY_BYTES 32

/** A page digest or a seal. Equal content under one key and purpose gives equal bytes. */
struct vc_digest {
    uint8_t b[VC_DIGEST_BYTES];
};

/** Algorithms by their number on disk and on the wire. 2 is meant for keyed SHA-256. */
enum vc_digest_algo {
    VC_DIGEST_GMAC = 1, /* AES-128-GMAC with a fixed nonce, then one AES-128 block */
};

/** What a digest is for. Each purpose has keys of its own, derived from the master key. */
enum vc_digest_purpose {
    VC_DIGEST_PAGE = 1, /* content of a page */
    VC_DIGEST_SEAL = 2, /* running seal of a wire session */
};

struct vc_digester;

/** Whether this build knows the algorithm. */
bool vc_digest_algo_known(unsigned algo);

/** Makes a digester. @key: the lineage's master key (borrowed, copied as needed, wiped on free).
 *  Errors: VC_E_VERSION (unknown algorithm), VC_E_NOMEM, VC_E_FAILED (OpenSSL). */
int vc_digester_new(unsigned algo, enum vc_digest_purpose purpose,
                    const uint8_t key[VC_DIGEST_KEY_BYTES], struct vc_digester **out,
                    struct vc_err *err) VC_NODISCARD;
void vc_digester_free(struct vc_digester *d);

/** Digests n pages of page_bytes each: out[i] is that of pages[i]. A batch costs less than single
 *  calls. Errors: VC_E_FAILED (OpenSSL). */
int vc_digest_pages(struct vc_digester *d, const uint8_t *const *pages, size_t n, size_t page_bytes,
                    struct vc_digest *out, struct vc_err *err) VC_NODISCARD;

/** A message in pieces: begin, any number of updates, end. Only one at a time, and no
 *  vc_digest_pages() in between. Nothing (NULL, 0) may be added. */
int vc_digest_begin(struct vc_digester *d, struct vc_err *err) VC_NODISCARD;
int vc_digest_update(struct vc_digester *d, const void *data, size_t n,
                     struct vc_err *err) VC_NODISCARD;
int vc_digest_end(struct vc_digester *d, struct vc_digest *out, struct vc_err *err) VC_NODISCARD;

/** Constant-time comparison. */
bool vc_digest_equal(const struct vc_digest *a, const struct vc_digest *b);

/** Whether n bytes (any n, any alignment) are all zero; a non-zero page is recognised after a few
 *  words. */
bool vc_is_zero(const void *data, size_t n);

#define VC_SHA256_BYTES 32

struct vc_sha256;
/** Plain SHA-256, for index roots and file checksums (not keyed). NULL: out of memory. */
struct vc_sha256 *vc_sha256_new(void);
void vc_sha256_update(struct vc_sha256 *s, const void *data, size_t n);
/** Writes the result and frees the object. Returns false if OpenSSL failed at any step. */
bool vc_sha256_finish(struct vc_sha256 *s, uint8_t out[VC_SHA256_BYTES]) VC_NODISCARD;
/** Drops an unfinished one; NULL is fine. */
void vc_sha256_free(struct vc_sha256 *s);
/** All at once. Returns false if OpenSSL failed. */
bool vc_sha256(const void *data, size_t n, uint8_t out[VC_SHA256_BYTES]) VC_NODISCARD;

/** Overwrites a secret so that the compiler cannot leave it out. */
void vc_wipe(void *p, size_t n);

#endif
