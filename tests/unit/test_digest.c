/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "digest/digest.h"

/* Page digests against a slow reference written from docs/internals/digest.md, and what the callers
 * rely on: equal content is equal, keys and purposes are apart, any way to feed gives the same. */

static uint64_t rng_state;

static int seed(void **state)
{
    const char *s = getenv("VC_TEST_SEED");

    (void)state;
    rng_state = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL);
    print_message("seed: VC_TEST_SEED=%llu\n", (unsigned long long)rng_state);
    return 0;
}

static uint64_t rng(void)
{
    uint64_t z = rng_state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static void fill(uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)rng();
}

static void key_count(uint8_t key[VC_DIGEST_KEY_BYTES])
{
    for (unsigned i = 0; i < VC_DIGEST_KEY_BYTES; i++)
        key[i] = (uint8_t)i;
}

static struct vc_digester *digester(enum vc_digest_purpose purpose, const uint8_t *key)
{
    struct vc_digester *d = NULL;
    struct vc_err err;

    assert_int_equal(vc_digester_new(VC_DIGEST_GMAC, purpose, key, &d, &err), 0);
    assert_non_null(d);
    return d;
}

static struct vc_digest message(struct vc_digester *d, const void *p, size_t n)
{
    struct vc_digest out;
    struct vc_err err;

    assert_int_equal(vc_digest_begin(d, &err), 0);
    assert_int_equal(vc_digest_update(d, p, n, &err), 0);
    assert_int_equal(vc_digest_end(d, &out, &err), 0);
    return out;
}

static struct vc_digest page(struct vc_digester *d, const uint8_t *p, size_t n)
{
    struct vc_digest out;
    struct vc_err err;

    assert_int_equal(vc_digest_pages(d, &p, 1, n, &out, &err), 0);
    return out;
}

/* ---- the slow reference: HMAC and single AES blocks are all that it takes from OpenSSL ---- */

static void aes(const uint8_t key[16], const uint8_t in[16], uint8_t out[16])
{
    EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
    int n;

    assert_int_equal(EVP_EncryptInit_ex(c, EVP_aes_128_ecb(), NULL, key, NULL), 1);
    assert_int_equal(EVP_CIPHER_CTX_set_padding(c, 0), 1);
    assert_int_equal(EVP_EncryptUpdate(c, out, &n, in, 16), 1);
    EVP_CIPHER_CTX_free(c);
}

/* RFC 5869 with an empty salt and one block of output. */
static void hkdf(const uint8_t key[32], const char *info, uint8_t out[32])
{
    static const uint8_t salt[32];
    uint8_t prk[32], text[128];
    unsigned n;

    assert_non_null(HMAC(EVP_sha256(), salt, sizeof(salt), key, 32, prk, &n));
    memcpy(text, info, strlen(info));
    text[strlen(info)] = 1;
    assert_non_null(HMAC(EVP_sha256(), prk, sizeof(prk), text, strlen(info) + 1, out, &n));
}

/* y = (y xor x) * h in GF(2^128) of SP 800-38D, a bit at a time. */
static void ghash_block(uint8_t y[16], const uint8_t x[16], const uint8_t h[16])
{
    uint8_t z[16] = {0}, v[16];

    memcpy(v, h, 16);
    for (unsigned i = 0; i < 16; i++)
        y[i] ^= x[i];
    for (unsigned bit = 0; bit < 128; bit++) {
        unsigned carry = v[15] & 1;

        if (y[bit / 8] >> (7 - bit % 8) & 1)
            for (unsigned i = 0; i < 16; i++)
                z[i] ^= v[i];
        for (unsigned i = 15; i > 0; i--)
            v[i] = (uint8_t)(v[i] >> 1 | v[i - 1] << 7);
        v[0] >>= 1;
        if (carry)
            v[0] ^= 0xe1;
    }
    memcpy(y, z, 16);
}

static struct vc_digest reference(const char *info, const uint8_t key[32], const uint8_t *m,
                                  size_t n)
{
    static const uint8_t zero[16], first[16] = {[15] = 1};
    uint8_t k[32], h[16], mask[16], y[16] = {0}, last[16] = {0};
    struct vc_digest out;

    hkdf(key, info, k);
    aes(k, zero, h);
    aes(k, first, mask);
    for (size_t i = 0; i < n; i += 16) {
        uint8_t x[16] = {0};

        memcpy(x, m + i, n - i < 16 ? n - i : 16);
        ghash_block(y, x, h);
    }
    for (unsigned i = 0; i < 8; i++)
        last[i] = (uint8_t)((uint64_t)n * 8 >> (56 - 8 * i));
    ghash_block(y, last, h);
    for (unsigned i = 0; i < 16; i++)
        y[i] ^= mask[i];
    aes(k + 16, y, out.b);
    return out;
}

static void assert_digest(const struct vc_digest *got, const struct vc_digest *expect)
{
    assert_memory_equal(got->b, expect->b, VC_DIGEST_BYTES);
}

static void assert_hex(struct vc_digest got, const char *hex)
{
    char text[2 * VC_DIGEST_BYTES + 1];

    for (unsigned i = 0; i < VC_DIGEST_BYTES; i++)
        snprintf(text + 2 * i, 3, "%02x", got.b[i]);
    assert_string_equal(text, hex);
}

/* ---- the tests ---- */

static void the_documented_vectors_hold(void **state)
{
    static const char *const expect[2][3] = {
        {"52140a561b353d901f86fedf9c22b379", "9d4b6eb51a382d569bdf9655ef453482",
         "c27e67433aff6588c062d2612668522e"},
        {"e63178a2cbda73db3e3a3ea5c75212aa", "cb8a3a46ad0bd6829b061f7ca867a96c",
         "0bf1515456f2deb1b9537c486a845e99"},
    };
    uint8_t key[VC_DIGEST_KEY_BYTES], p[4096];

    (void)state;
    key_count(key);
    for (unsigned i = 0; i < sizeof(p); i++)
        p[i] = (uint8_t)(7 * i + i / 256);
    for (unsigned i = 0; i < 2; i++) {
        struct vc_digester *d = digester(i ? VC_DIGEST_SEAL : VC_DIGEST_PAGE, key);

        assert_hex(message(d, "", 0), expect[i][0]);
        assert_hex(message(d, "abc", 3), expect[i][1]);
        assert_hex(message(d, p, sizeof(p)), expect[i][2]);
        assert_hex(page(d, p, sizeof(p)), expect[i][2]);
        vc_digester_free(d);
    }
}

static void any_message_agrees_with_the_slow_reference(void **state)
{
    static const size_t lengths[] = {0, 1, 15, 16, 17, 31, 32, 127, 1024, 4095, 4096, 4097, 9000};
    uint8_t key[VC_DIGEST_KEY_BYTES], m[9000];
    struct vc_digester *pages, *seals;

    (void)state;
    fill(key, sizeof(key));
    fill(m, sizeof(m));
    pages = digester(VC_DIGEST_PAGE, key);
    seals = digester(VC_DIGEST_SEAL, key);
    for (size_t i = 0; i < VC_ARRAY_LEN(lengths); i++) {
        struct vc_digest want = reference("vecycle v1 gmac page", key, m, lengths[i]);
        struct vc_digest got = page(pages, m, lengths[i]);

        assert_digest(&got, &want);
        got = message(pages, m, lengths[i]);
        assert_digest(&got, &want);
        want = reference("vecycle v1 gmac seal", key, m, lengths[i]);
        got = message(seals, m, lengths[i]);
        assert_digest(&got, &want);
    }
    vc_digester_free(pages);
    vc_digester_free(seals);
}

static void equal_content_has_an_equal_digest_in_any_digester(void **state)
{
    uint8_t key[VC_DIGEST_KEY_BYTES], space[2 * 4096 + 16];
    uint8_t *a = space, *b = space + 4096 + 13;
    struct vc_digester *d, *other;
    struct vc_digest x, y;

    (void)state;
    fill(key, sizeof(key));
    fill(a, 4096);
    memcpy(b, a, 4096);
    d = digester(VC_DIGEST_PAGE, key);
    other = digester(VC_DIGEST_PAGE, key);
    x = page(d, a, 4096);
    y = page(other, b, 4096);
    assert_true(vc_digest_equal(&x, &y));
    y = page(d, b, 4096);
    assert_true(vc_digest_equal(&x, &y));
    vc_digester_free(d);
    vc_digester_free(other);
}

static void any_changed_bit_changes_the_digest(void **state)
{
    uint8_t key[VC_DIGEST_KEY_BYTES], p[1024];
    struct vc_digester *d;
    struct vc_digest x;

    (void)state;
    fill(key, sizeof(key));
    fill(p, sizeof(p));
    d = digester(VC_DIGEST_PAGE, key);
    x = page(d, p, sizeof(p));
    for (size_t bit = 0; bit < 8 * sizeof(p); bit++) {
        struct vc_digest y;

        p[bit / 8] ^= (uint8_t)(1u << bit % 8);
        y = page(d, p, sizeof(p));
        p[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_false(vc_digest_equal(&x, &y));
    }
    vc_digester_free(d);
}

static void zeroes_of_different_lengths_differ(void **state)
{
    static const uint8_t zero[64];
    uint8_t key[VC_DIGEST_KEY_BYTES];
    struct vc_digest seen[65];
    struct vc_digester *d;

    (void)state;
    fill(key, sizeof(key));
    d = digester(VC_DIGEST_PAGE, key);
    for (size_t n = 0; n <= 64; n++) {
        seen[n] = message(d, zero, n);
        for (size_t k = 0; k < n; k++)
            assert_false(vc_digest_equal(&seen[k], &seen[n]));
    }
    vc_digester_free(d);
}

static void purposes_and_keys_are_apart(void **state)
{
    uint8_t key[VC_DIGEST_KEY_BYTES], p[4096];
    struct vc_digester *d[2];
    struct vc_digest x, y;

    (void)state;
    fill(key, sizeof(key));
    fill(p, sizeof(p));
    d[0] = digester(VC_DIGEST_PAGE, key);
    d[1] = digester(VC_DIGEST_SEAL, key);
    x = page(d[0], p, sizeof(p));
    y = page(d[1], p, sizeof(p));
    assert_false(vc_digest_equal(&x, &y));
    vc_digester_free(d[1]);
    for (unsigned bit = 0; bit < 8 * VC_DIGEST_KEY_BYTES; bit++) {
        key[bit / 8] ^= (uint8_t)(1u << bit % 8);
        d[1] = digester(VC_DIGEST_PAGE, key);
        y = page(d[1], p, sizeof(p));
        assert_false(vc_digest_equal(&x, &y));
        vc_digester_free(d[1]);
        key[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    vc_digester_free(d[0]);
}

#define BATCH_PAGES 67

static void a_batch_equals_single_pages(void **state)
{
    uint8_t key[VC_DIGEST_KEY_BYTES];
    uint8_t *space = malloc(BATCH_PAGES * 1024);
    const uint8_t *pages[BATCH_PAGES];
    struct vc_digest out[BATCH_PAGES + 1];
    struct vc_digester *d;
    struct vc_err err;

    (void)state;
    assert_non_null(space);
    fill(key, sizeof(key));
    fill(space, BATCH_PAGES * 1024);
    d = digester(VC_DIGEST_PAGE, key);
    for (size_t i = 0; i < BATCH_PAGES; i++)
        pages[i] = space + (i * 31 % BATCH_PAGES) * 1024;
    for (size_t n = 0; n <= BATCH_PAGES; n++) {
        memset(out, 0x5a, sizeof(out));
        assert_int_equal(vc_digest_pages(d, pages, n, 1024, out, &err), 0);
        for (size_t i = 0; i < n; i++) {
            struct vc_digest one = page(d, pages[i], 1024);

            assert_digest(&out[i], &one);
        }
        assert_int_equal(out[n].b[0], 0x5a);
    }
    vc_digester_free(d);
    free(space);
}

static void update_in_pieces(struct vc_digester *d, const uint8_t *m, size_t n, size_t most)
{
    struct vc_err err;

    for (size_t at = 0; at < n;) {
        size_t k = rng() % (most + 1);

        if (k > n - at)
            k = n - at;
        assert_int_equal(vc_digest_update(d, m + at, k, &err), 0);
        at += k;
    }
}

static void a_message_in_pieces_equals_the_whole(void **state)
{
    static const size_t most[] = {1, 3, 16, 40, 4095, 4096, 4097, 8193, 20000};
    uint8_t key[VC_DIGEST_KEY_BYTES];
    uint8_t *m = malloc(20000);
    struct vc_digester *d;

    (void)state;
    assert_non_null(m);
    fill(key, sizeof(key));
    fill(m, 20000);
    d = digester(VC_DIGEST_SEAL, key);
    for (unsigned round = 0; round < 40; round++) {
        size_t n = rng() % 20001;
        struct vc_digest whole = message(d, m, n), got;
        struct vc_err err;

        assert_int_equal(vc_digest_begin(d, &err), 0);
        update_in_pieces(d, m, n, most[round % VC_ARRAY_LEN(most)]);
        assert_int_equal(vc_digest_end(d, &got, &err), 0);
        assert_digest(&got, &whole);
    }
    vc_digester_free(d);
    free(m);
}

static void an_abandoned_message_leaves_nothing_behind(void **state)
{
    uint8_t key[VC_DIGEST_KEY_BYTES], junk[5000];
    struct vc_digester *d;
    struct vc_digest x, y;
    struct vc_err err;

    (void)state;
    fill(key, sizeof(key));
    fill(junk, sizeof(junk));
    d = digester(VC_DIGEST_SEAL, key);
    x = message(d, "abc", 3);
    for (size_t n = 1; n < sizeof(junk); n += 1249) {
        assert_int_equal(vc_digest_begin(d, &err), 0);
        assert_int_equal(vc_digest_update(d, junk, n, &err), 0);
        y = message(d, "abc", 3);
        assert_digest(&y, &x);
    }
    vc_digester_free(d);
}

static void an_unknown_algorithm_is_refused(void **state)
{
    static const unsigned unknown[] = {0, 2, 3, 255, 257, UINT32_MAX};
    uint8_t key[VC_DIGEST_KEY_BYTES] = {0};
    struct vc_digester *d = NULL;

    (void)state;
    assert_true(vc_digest_algo_known(VC_DIGEST_GMAC));
    for (size_t i = 0; i < VC_ARRAY_LEN(unknown); i++) {
        struct vc_err err = VC_ERR_INIT;

        assert_false(vc_digest_algo_known(unknown[i]));
        assert_int_equal(vc_digester_new(unknown[i], VC_DIGEST_PAGE, key, &d, &err), VC_E_VERSION);
        assert_int_equal(err.code, VC_E_VERSION);
        assert_true(err.hint[0] != 0);
        assert_null(d);
    }
    vc_digester_free(NULL);
}

static void digests_compare_in_every_byte(void **state)
{
    struct vc_digest a = {{0}}, b = {{0}};

    (void)state;
    assert_true(vc_digest_equal(&a, &b));
    for (unsigned bit = 0; bit < 8 * VC_DIGEST_BYTES; bit++) {
        b.b[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_false(vc_digest_equal(&a, &b));
        b.b[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

/* The bytes around are not zero: reading beyond either end would show. */
static void zero_is_recognised_at_all_alignments_and_lengths(void **state)
{
    uint8_t space[96];

    (void)state;
    for (size_t align = 0; align < 17; align++)
        for (size_t n = 0; n < 70; n++) {
            memset(space, 0xff, sizeof(space));
            memset(space + align, 0, n);
            assert_true(vc_is_zero(space + align, n));
            for (size_t i = 0; i < n; i++) {
                space[align + i] = 0x80;
                assert_false(vc_is_zero(space + align, n));
                space[align + i] = 0;
            }
        }
}

static void one_bit_anywhere_makes_a_page_not_zero(void **state)
{
    uint8_t *p = calloc(1, 65536);

    (void)state;
    assert_non_null(p);
    for (size_t n = 1024; n <= 65536; n *= 2) {
        assert_true(vc_is_zero(p, n));
        for (unsigned k = 0; k < 200; k++) {
            size_t at = k == 0 ? n - 1 : rng() % n;

            p[at] = (uint8_t)(1u << rng() % 8);
            assert_false(vc_is_zero(p, n));
            p[at] = 0;
        }
    }
    free(p);
}

static void sha256_gives_the_published_answers(void **state)
{
    static const uint8_t abc[32] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea,
                                    0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23,
                                    0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c,
                                    0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad};
    struct vc_sha256 *s = vc_sha256_new();
    uint8_t out[32], empty[32];

    (void)state;
    assert_true(vc_sha256("abc", 3, out));
    assert_memory_equal(out, abc, 32);
    assert_non_null(s);
    vc_sha256_update(s, "a", 1);
    vc_sha256_update(s, NULL, 0);
    vc_sha256_update(s, "bc", 2);
    assert_true(vc_sha256_finish(s, out));
    assert_memory_equal(out, abc, 32);
    assert_true(vc_sha256("", 0, empty));
    assert_int_equal(empty[0], 0xe3);
    assert_int_equal(empty[31], 0x55);
    vc_sha256_free(vc_sha256_new());
    vc_sha256_free(NULL);
}

static void a_wiped_secret_is_gone(void **state)
{
    uint8_t secret[40], zero[40] = {0};

    (void)state;
    memset(secret, 0xa5, sizeof(secret));
    vc_wipe(secret, 0);
    assert_int_equal(secret[0], 0xa5);
    vc_wipe(secret, sizeof(secret));
    assert_memory_equal(secret, zero, sizeof(secret));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_documented_vectors_hold),
        cmocka_unit_test(any_message_agrees_with_the_slow_reference),
        cmocka_unit_test(equal_content_has_an_equal_digest_in_any_digester),
        cmocka_unit_test(any_changed_bit_changes_the_digest),
        cmocka_unit_test(zeroes_of_different_lengths_differ),
        cmocka_unit_test(purposes_and_keys_are_apart),
        cmocka_unit_test(a_batch_equals_single_pages),
        cmocka_unit_test(a_message_in_pieces_equals_the_whole),
        cmocka_unit_test(an_abandoned_message_leaves_nothing_behind),
        cmocka_unit_test(an_unknown_algorithm_is_refused),
        cmocka_unit_test(digests_compare_in_every_byte),
        cmocka_unit_test(zero_is_recognised_at_all_alignments_and_lengths),
        cmocka_unit_test(one_bit_anywhere_makes_a_page_not_zero),
        cmocka_unit_test(sha256_gives_the_published_answers),
        cmocka_unit_test(a_wiped_secret_is_gone),
    };

    return cmocka_run_group_tests_name("digest", tests, seed, NULL);
}
