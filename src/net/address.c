/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "net/address.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HINT "HOST, ssh://[USER@]HOST[:PORT], tls://HOST[:PORT] or unix:PATH; [V6] in brackets"
#define MAX_PORT 65535

/* What is being taken apart: n bytes at p, and all of it for messages. */
struct part {
    const char *p;
    size_t n;
    const char *whole;
};

static int bad(const struct part *t, const char *why, struct vc_err *err)
{
    return vc_err_set_hint(err, VC_E_USAGE, HINT, "'%.100s' is not an address: %s", t->whole, why);
}

static bool is_v6(const char *p, size_t n)
{
    const char *zone = memchr(p, '%', n);
    size_t digits = zone ? (size_t)(zone - p) : n;
    char text[INET6_ADDRSTRLEN];
    struct in6_addr a;

    if (digits >= sizeof(text) || (zone && digits + 1 == n))
        return false;
    memcpy(text, p, digits);
    text[digits] = 0;
    return inet_pton(AF_INET6, text, &a) == 1;
}

/* 0 to 65535, without a sign, blanks, or more zeros than it needs. */
static bool is_port(const char *p, size_t n)
{
    unsigned v = 0;

    if (n == 0 || n > 5 || (n > 1 && *p == '0'))
        return false;
    for (size_t i = 0; i < n; i++) {
        if (p[i] < '0' || p[i] > '9')
            return false;
        v = 10 * v + (unsigned)(p[i] - '0');
    }
    return v <= MAX_PORT;
}

/* Names, aliases of ssh's configuration and zones are not judged, but for what could be taken for
 * something else: an option, a path, a part of the address, a line's end. */
static bool is_clean(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)p[i] <= ' ' || p[i] == 0x7f || strchr("/\\[]@'\"`$;&|<>(){}*?!#", p[i]))
            return false;
    return n > 0 && *p != '-';
}

static int take_host(const struct part *t, const char *p, size_t n, struct vc_address *out,
                     struct vc_err *err)
{
    out->is_v6 = is_v6(p, n);
    if (n == 0)
        return bad(t, "a host is missing", err);
    if (n >= sizeof(out->host))
        return bad(t, "the host's name is too long", err);
    if (!is_clean(p, n) || (!out->is_v6 && (memchr(p, ':', n) || memchr(p, '%', n))))
        return bad(t, "that is no host's name", err);
    memcpy(out->host, p, n);
    out->host[n] = 0;
    return 0;
}

static int take_port(const struct part *t, const char *p, size_t n, struct vc_address *out,
                     struct vc_err *err)
{
    if (!is_port(p, n))
        return bad(t, "a port is a number up to 65535", err);
    memcpy(out->port, p, n);
    out->port[n] = 0;
    return 0;
}

static int take_bracketed(const struct part *t, struct vc_address *out, struct vc_err *err)
{
    const char *end = memchr(t->p, ']', t->n);
    size_t inside, rest;
    int rc;

    if (!end)
        return bad(t, "a bracket is not closed", err);
    inside = (size_t)(end - t->p) - 1;
    rest = t->n - inside - 2;
    if (!is_v6(t->p + 1, inside))
        return bad(t, "no IPv6 address is in the brackets", err);
    if (rest && end[1] != ':')
        return bad(t, "something follows the brackets that is no port", err);
    rc = take_host(t, t->p + 1, inside, out, err);
    return rc || !rest ? rc : take_port(t, end + 2, rest - 1, out, err);
}

/* IPv6 without brackets: only if what follows the last colon cannot be meant as a port. */
static int take_v6(const struct part *t, struct vc_address *out, struct vc_err *err)
{
    const char *colon = memrchr(t->p, ':', t->n);
    size_t before = (size_t)(colon - t->p);

    if (is_port(colon + 1, t->n - before - 1) && is_v6(t->p, before))
        return vc_err_set_hint(err, VC_E_USAGE,
                               "put the IPv6 address in brackets: [V6] or [V6]:PORT",
                               "'%.100s' can be read in two ways: is '%.*s' a port?", t->whole,
                               (int)(t->n - before - 1), colon + 1);
    return take_host(t, t->p, t->n, out, err);
}

static int take_host_port(const struct part *t, struct vc_address *out, struct vc_err *err)
{
    const char *colon = memchr(t->p, ':', t->n);
    size_t n;
    int rc;

    if (t->n && *t->p == '[')
        return take_bracketed(t, out, err);
    if (is_v6(t->p, t->n))
        return take_v6(t, out, err);
    n = colon ? (size_t)(colon - t->p) : t->n;
    rc = take_host(t, t->p, n, out, err);
    return rc || !colon ? rc : take_port(t, colon + 1, t->n - n - 1, out, err);
}

static int take_user(struct part *t, struct vc_address *out, struct vc_err *err)
{
    const char *at = memrchr(t->p, '@', t->n);
    size_t n = at ? (size_t)(at - t->p) : 0;

    if (!at)
        return 0;
    if (out->scheme != VC_SCHEME_SSH)
        return bad(t, "only ssh:// has a user", err);
    if (n == 0 || n >= sizeof(out->user) || *t->p == '-' || memchr(t->p, '/', n))
        return bad(t, "that is no user's name", err);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)t->p[i] <= ' ' || t->p[i] == 0x7f)
            return bad(t, "that is no user's name", err);
    memcpy(out->user, t->p, n);
    out->user[n] = 0;
    t->p += n + 1;
    t->n -= n + 1;
    return 0;
}

static bool take_scheme(struct part *t, struct vc_address *out)
{
    static const struct {
        const char *text;
        enum vc_scheme scheme;
    } schemes[] = {
        {"ssh://", VC_SCHEME_SSH},
        {"tcp://", VC_SCHEME_TCP},
        {"tls://", VC_SCHEME_TLS},
    };

    out->scheme = VC_SCHEME_SSH;
    if (!strstr(t->p, "://"))
        return true;
    for (size_t i = 0; i < VC_ARRAY_LEN(schemes); i++)
        if (!strncmp(t->p, schemes[i].text, 6)) {
            out->scheme = schemes[i].scheme;
            t->p += 6;
            t->n -= 6;
            if (t->n > 1 && t->p[t->n - 1] == '/')
                t->n--;
            return true;
        }
    return false;
}

int vc_address_parse(const char *text, struct vc_address *out, struct vc_err *err)
{
    struct part t = {.p = text, .n = strlen(text), .whole = text};
    int rc;

    *out = (struct vc_address){0};
    if (!strncmp(text, "unix:", 5)) {
        out->scheme = VC_SCHEME_UNIX;
        out->path = text + 5;
        return *out->path ? 0 : bad(&t, "the path is missing", err);
    }
    if (!take_scheme(&t, out))
        return bad(&t, "that scheme is not known", err);
    rc = take_user(&t, out, err);
    return rc ? rc : take_host_port(&t, out, err);
}

bool vc_address_format(const struct vc_address *a, const char *port, char *out, size_t n)
{
    static const char *const schemes[] = {"unix:", "ssh://", "tcp://", "tls://"};
    const char *p = a->port[0] ? a->port : port ? port : "";
    int len;

    if (a->path)
        len = snprintf(out, n, "unix:%s", a->path);
    else
        len =
            snprintf(out, n, "%s%s%s%s%s%s%s%s", schemes[a->scheme], a->user, a->user[0] ? "@" : "",
                     a->is_v6 ? "[" : "", a->host, a->is_v6 ? "]" : "", *p ? ":" : "", p);
    return len >= 0 && (size_t)len < n;
}

bool vc_address_is_ssh(const char *address)
{
    return !strncmp(address, "ssh:", 4);
}

void vc_address_bare(const char *host, char out[256])
{
    size_t n = strlen(host);
    bool brackets = n > 2 && *host == '[' && host[n - 1] == ']';
    const char *p = brackets ? host + 1 : host;

    n -= brackets ? 2 : 0;
    if (!is_v6(p, n)) {
        snprintf(out, 256, "%s", host);
        return;
    }
    snprintf(out, 256, "%.*s", (int)strcspn(p, "%]"), p);
}
