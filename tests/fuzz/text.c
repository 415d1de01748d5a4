/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Words that a user, or a configuration, gives: sizes, addresses, UUIDs.
 *
 * Input: a byte that chooses, then the text. */

#include <ctype.h>

#include "base/units.h"
#include "cmd/cmd.h"
#include "fuzz.h"
#include "net/internal.h"

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

static void check_host(const char host[256], const char port[16])
{
    FUZZ_ASSERT(memchr(host, 0, 256) && memchr(port, 0, 16));
    FUZZ_ASSERT(host[0]);
}

static void tcp(const char *text)
{
    char host[256], port[16];

    if (!vc_tcp_split(text, VC_NET_DEFAULT_PORT, host, port))
        return;
    check_host(host, port);
    FUZZ_ASSERT(port[0]);
    FUZZ_ASSERT(strstr(text, host));
    FUZZ_ASSERT(!strcmp(port, VC_NET_DEFAULT_PORT) || strstr(text, port));
}

static void ssh(const char *text)
{
    char host[256], port[16];

    if (!vc_ssh_split(text, host, port))
        return;
    check_host(host, port);
    /* Nothing that ssh takes for an option. */
    FUZZ_ASSERT(host[0] != '-');
    FUZZ_ASSERT(strspn(port, "0123456789") == strlen(port));
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
        tcp(text);
    else if (kind == 2)
        ssh(text);
    else
        uuid(text);
    free(text);
    return 0;
}
