/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_NET_ADDRESS_H
#define VC_NET_ADDRESS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

/* Addresses of vecycles, as users, records and configurations have them: the one place that takes
 * them apart. Pure: nothing is resolved here.
 *
 *     unix:PATH
 *     tls://HOST[:PORT]   tcp://HOST[:PORT]   ssh://[USER@]HOST[:PORT]
 *     [USER@]HOST[:PORT], which is short for ssh://
 *
 * HOST is a name, an IPv4 address, or an IPv6 address, the last with or without brackets and with
 * a zone (fe80::1%eth0). One slash at the end of what has a scheme is nothing. What could be read
 * in two ways (fd00::1:22: a port, or the end of the address?) is refused. */

enum vc_scheme { VC_SCHEME_UNIX, VC_SCHEME_SSH, VC_SCHEME_TCP, VC_SCHEME_TLS };

struct vc_address {
    enum vc_scheme scheme;
    const char *path; /* unix: within the text that was taken apart; else NULL */
    char user[128];   /* ssh: "" = none */
    char host[256];   /* without brackets, with its zone */
    char port[8];     /* digits; "" = none */
    bool is_v6;       /* host is an address of IPv6 */
};

/** Takes an address apart. VC_E_USAGE, with what is wrong and a hint. */
int vc_address_parse(const char *text, struct vc_address *out, struct vc_err *err) VC_NODISCARD;

/** The address again, in the form with a scheme and brackets, with @port if it has none of its own
 *  (NULL: without). False: it does not fit. */
bool vc_address_format(const struct vc_address *a, const char *port, char *out,
                       size_t n) VC_NODISCARD;

/** Whether it is reached through ssh, so by whoever has the keys. @address in full, with its
 * scheme. */
bool vc_address_is_ssh(const char *address);

/** An IPv6 address without brackets and zone, as certificates have it; any other name as it is:
 *  "[fe80::1%eth0]" -> "fe80::1". */
void vc_address_bare(const char *host, char out[256]);

#endif
