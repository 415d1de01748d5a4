/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>
#include <unistd.h>

#include "api/api.h"
#include "base/fdio.h"
#include "link/link.h"
#include "net/address.h"

/* A look at the other host before a proxy begins. Afterwards nobody could be told that the address
 * is wrong but a QEMU that has connected already. */

/* Both say HELLO, and the other end is told that this was all. */
static int greet(struct vc_conn *conn, uint32_t dead_peer_ms, struct vc_err *err)
{
    struct vc_err done = VC_ERR_INIT;
    struct vc_link *link;
    uint64_t features;
    int rc = vc_link_new(conn, VC_WIRE_SOURCE, dead_peer_ms, &link, err);

    if (rc)
        return rc;
    rc = vc_link_hello(link, 0, &features, err);
    vc_err_set(&done, VC_E_CANCELLED, "a proxy has only looked whether it can be reached");
    vc_link_fail(link, &done);
    vc_link_free(link);
    return rc;
}

static bool has_agent(const char *control)
{
    vc_auto_close int fd = control ? vc_unix_connect(control) : -1;

    return fd >= 0;
}

/* The certificates are the agent's. */
static int knock(const char *address, struct vc_dial_options *d, struct vc_err *err)
{
    char plain[VC_JOB_TEXT_BYTES];
    struct vc_conn *conn;
    struct vc_address a;
    char *scheme;
    int rc = vc_address_parse(address, &a, err);

    a.scheme = VC_SCHEME_TCP;
    if (rc || !vc_address_format(&a, VC_NET_DEFAULT_TLS_PORT, plain, sizeof(plain)))
        return rc;
    d->insecure = true; /* nothing is said */
    rc = vc_conn_dial(plain, d, &conn, err);
    if (!rc)
        vc_conn_close(conn);
    else if ((scheme = strstr(err->message, "tcp://")))
        memcpy(scheme, "tls://", 6); /* as it was given */
    return rc;
}

int vc_probe(const char *address, const struct vc_dial_options *options,
             const struct vecycle_tls *t, const char *control, uint32_t dead_peer_ms,
             const struct vecycle_cancel *cancel, struct vc_err *err)
{
    struct vc_tls_options tls = vc_public_tls(t, cancel ? &cancel->c : NULL);
    struct vc_dial_options d = *options;
    struct vc_conn *conn;
    int rc;

    if (!strncmp(address, "tls://", 6) && has_agent(control))
        return knock(address, &d, err);
    d.tls = &tls;
    rc = vc_conn_dial(address, &d, &conn, err);
    return rc ? rc : greet(conn, dead_peer_ms, err);
}
