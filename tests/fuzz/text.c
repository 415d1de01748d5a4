/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Words that a user, or a configuration, gives: sizes, addresses, ssh's command line, UUIDs.
 *
 * Input: a byte that chooses, then the text. */

#include <ctype.h>

#include "base/units.h"
#include "cmd/cmd.h"
#include "fuzz.h"
#include "net/ssh.h"

/* The rule once more: digits and at most one of K, M, G, T; 64 bits. */
static bool expected_size(const char *s, uint64_t *out)
{
    static const char units[] = "kmgt";
    const char *unit;
    uint64_t v = 0;

    if (!*s)
        return false;
    for (; *s >= '0' && *s <= '9'; s++) {
        unsigned digit = (unsigned)(*s - '0');

        if (v > (UINT64_MAX - digit) / 10)
            return false;
        v = v * 10 + digit;
        *out = v;
        if (!s[1])
            return true;
    }
    unit = strchr(units, tolower((unsigned char)*s));
    if (!*s || !unit || s[1])
        return false;
    for (long i = 0; i <= unit - units; i++) {
        if (v > UINT64_MAX >> 10)
            return false;
        v <<= 10;
    }
    *out = v;
    return true;
}

static void size(const char *text)
{
    uint64_t got = 0, want = 0;
    bool ok = text[0] >= '0' && text[0] <= '9' && expected_size(text, &want);

    FUZZ_ASSERT(cmd_parse_size(text, &got) == ok);
    FUZZ_ASSERT(!ok || got == want);
    FUZZ_ASSERT(strlen(cmd_size(got)) < 32);
}

static void check_text(const char *text, const char *whole, size_t room)
{
    FUZZ_ASSERT(memchr(text, 0, room));
    FUZZ_ASSERT(strstr(whole, text));
    FUZZ_ASSERT(*text != '-'); /* nothing that ssh takes for an option */
}

/* What is taken apart is put together again, and means the same. */
static void address(const char *text)
{
    struct vc_address a, b;
    char full[1024], bare[256];

    if (vc_address_parse(text, &a, NULL))
        return;
    if (a.path) {
        FUZZ_ASSERT(!strncmp(text, "unix:", 5) && a.path == text + 5 && *a.path);
        return;
    }
    check_text(a.user, text, sizeof(a.user));
    check_text(a.host, text, sizeof(a.host));
    check_text(a.port, text, sizeof(a.port));
    FUZZ_ASSERT(a.host[0]);
    FUZZ_ASSERT(strspn(a.port, "0123456789") == strlen(a.port));
    FUZZ_ASSERT(a.is_v6 == !!strchr(a.host, ':'));
    FUZZ_ASSERT(a.scheme == VC_SCHEME_SSH || !a.user[0]);
    vc_address_bare(a.host, bare);
    FUZZ_ASSERT(!a.is_v6 || !strchr(bare, '%'));
    FUZZ_ASSERT(vc_address_format(&a, NULL, full, sizeof(full)));
    FUZZ_ASSERT(!vc_address_parse(full, &b, NULL));
    FUZZ_ASSERT(a.scheme == b.scheme && a.is_v6 == b.is_v6 && !strcmp(a.user, b.user) &&
                !strcmp(a.host, b.host) && !strcmp(a.port, b.port));
}

static void command(const char *text)
{
    const char *words[VC_SSH_MAX_WORDS];
    char *buf = malloc(strlen(text) + 1);
    size_t n, bytes = 0;

    FUZZ_ASSERT(buf);
    if (!vc_ssh_split(text, buf, words, &n, NULL)) {
        FUZZ_ASSERT(n && *words[0]);
        for (size_t i = 0; i < n; i++)
            bytes += strlen(words[i]) + 1;
        FUZZ_ASSERT(bytes <= strlen(text) + 1);
    }
    free(buf);
}

static void uuid(const char *text)
{
    char again[VC_ID_TEXT_BYTES];
    struct vc_id id, id2;

    if (!vc_id_parse(text, &id))
        return;
    FUZZ_ASSERT(strlen(text) == VC_ID_TEXT_BYTES - 1);
    vc_id_format(&id, again);
    for (size_t i = 0; again[i]; i++)
        FUZZ_ASSERT(again[i] == tolower((unsigned char)text[i]));
    FUZZ_ASSERT(vc_id_parse(again, &id2) && vc_id_equal(&id, &id2));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct vc_reader in = vc_reader(data, n);
    unsigned kind = (unsigned)fuzz_number(&in, 1) % 4;
    struct vc_reader rest = fuzz_rest(&in);
    char *text = calloc(1, rest.len + 1);

    FUZZ_ASSERT(text);
    if (rest.len)
        memcpy(text, rest.data, rest.len);
    if (kind == 0)
        size(text);
    else if (kind == 1)
        address(text);
    else if (kind == 2)
        command(text);
    else
        uuid(text);
    free(text);
    return 0;
}
