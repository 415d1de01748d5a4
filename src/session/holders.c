/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "session/common.h"

/* Who is given a lineage's key, for the store's list: by the names in its certificate, or by the
 * host in the address where it has none. */

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

/* False: it has no key to be noted beside, or nothing is kept. */
static bool has_key(const struct vc_holding *h)
{
    return h->vm && h->keeps && h->has_lineage;
}

static void note(struct vc_holding *h, const struct vc_holder *who)
{
    struct vc_err err = VC_ERR_INIT;
    int rc =
        who ? vc_vm_share(h->vm, who, &err) : vc_err_set(&err, VC_E_NOMEM, "no memory for a host");

    if (rc)
        vc_log_err(h->log, VC_LOG_WARNING,
                   "it is not noted that this host has the key of the VM's checkpoint", &err);
}

void vc_holding_share(struct vc_holding *h, const struct vc_conn *peer, bool listed)
{
    vc_auto_free struct vc_holder *who = has_key(h) ? malloc(sizeof(*who)) : NULL;

    if (!has_key(h))
        return;
    if (who)
        vc_holder_describe(who, &h->lineage.id, peer, listed);
    note(h, who);
}

/* By any of its names, those included that have no place in who. */
static int look_up(struct vc_holder *who, const struct vc_conn *peer, vc_is_listed_fn is_listed,
                   const void *policy, struct vc_err *err)
{
    const char *name = vc_conn_peer_name(peer, 0);
    int rc = 0;

    if (!name) /* that of its address */
        return is_listed(policy, who->names[0], &who->listed, err);
    for (unsigned i = 0; !rc && !who->listed && (name = vc_conn_peer_name(peer, i)); i++)
        rc = is_listed(policy, name, &who->listed, err);
    return rc;
}

void vc_holding_share_called(struct vc_holding *h, const struct vc_conn *peer,
                             vc_is_listed_fn is_listed, const void *policy)
{
    vc_auto_free struct vc_holder *who = has_key(h) ? malloc(sizeof(*who)) : NULL;
    struct vc_err err = VC_ERR_INIT;

    if (!has_key(h))
        return;
    if (who)
        vc_holder_describe(who, &h->lineage.id, peer, false);
    if (who && is_listed && !look_up(who, peer, is_listed, policy, &err) && !who->listed)
        vc_log(h->log, VC_LOG_WARNING,
               "'%s' gets the key of the VM's checkpoint, and no line of the list of peers has a "
               "name of the certificate that it shows: taking the host off the list will not "
               "change that key (add its name, or see vecycle-rekey(1))",
               who->names[0]);
    note(h, who);
}
