/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "session/common.h"

/* Who is given a lineage's key, for the store's list: by the names in its certificate, or by the
 * host in the address where it has none. */

/* In "SCHEME://[USER@]HOST[:PORT]", "[V6]:PORT" or "ssh from HOST"; anything else as it
 * is.
 */
void vc_holder_host(const char *address, char out[256])
{
    const char *at = strstr(address, "://"), *end, *user;

    at = at ? at + 3 : !strncmp(address, "ssh from ", 9) ? address + 9 : address;
    user = strrchr(at, '@');
    at = user ? user + 1 : at;
    if (*at == '[' && (end = strchr(at, ']'))) {
        at++;
    } else {
        end = strchr(at, ':');
        if (!end || strchr(end + 1, ':')) /* no port, or an IPv6 address without brackets */
            end = at + strlen(at);
    }
    snprintf(out, 256, "%.*s", (int)VC_MIN(end - at, (ptrdiff_t)255), at);
}

/* False: it has no place, and would be another name if a part of it had one. */
static bool add_name(struct vc_holder *who, const char *name)
{
    size_t n = strlen(name);

    if (who->n_names == VC_HOLDER_NAMES || n >= sizeof(who->names[0]))
        return false;
    memcpy(who->names[who->n_names++], name, n);
    return true;
}

void vc_holder_describe(struct vc_holder *who, const struct vc_id *lineage,
                        const struct vc_conn *peer, bool listed)
{
    const char *name;

    *who = (struct vc_holder){.lineage = *lineage, .listed = listed};
    for (unsigned i = 0; (name = vc_conn_peer_name(peer, i)); i++)
        who->cut |= !add_name(who, name);
    if (who->n_names)
        return;
    vc_holder_host(vc_conn_describe(peer), who->names[0]);
    if (!who->names[0][0])
        snprintf(who->names[0], sizeof(who->names[0]), "%s", "?");
    who->n_names = 1;
}

void vc_holding_share(struct vc_holding *h, const struct vc_conn *peer, bool listed)
{
    vc_auto_free struct vc_holder *who = malloc(sizeof(*who));
    struct vc_err err = VC_ERR_INIT;
    int rc;

    if (!h->vm || !h->keeps || !h->has_lineage)
        return;
    rc = who ? 0 : vc_err_set(&err, VC_E_NOMEM, "no memory for a host");
    if (!rc) {
        vc_holder_describe(who, &h->lineage.id, peer, listed);
        rc = vc_vm_share(h->vm, who, &err);
    }
    if (rc)
        vc_log_err(h->log, VC_LOG_WARNING,
                   "it is not noted that this host has the key of the VM's checkpoint", &err);
}
