/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "api/rekey.h"

/* vecycle_rekey(): another key for a VM's checkpoint, at both hosts that have it or here alone.
 * Like all that concerns the store it works on it directly, agent or not. */

/* ---- which host has the same ---- */

bool vc_peer_matches(const char *pattern, const char *name)
{
    return fnmatch(pattern, name, FNM_NOESCAPE | FNM_CASEFOLD) == 0;
}

/* The address behind "NAME at ", of which the name is what a certificate says; or NULL. */
static const char *behind_at(const char *peer)
{
    const char *found = NULL;

    for (const char *p = peer; (p = strstr(p, " at ")); p++)
        found = p;
    return found;
}

/* The address that was called; or "NAME at ADDRESS", as a host names a TLS peer that came to it,
 * and that listens itself as well. What else it calls those that came is no address of theirs. */
static bool dialable(const char *peer, bool called, struct vc_rekey_peer *out)
{
    const char *at = behind_at(peer);

    if (called) {
        snprintf(out->address, sizeof(out->address), "%s", peer);
        return peer[0];
    }
    if (!at)
        return false;
    snprintf(out->address, sizeof(out->address),
             strchr(at + 4, ':') ? "tls://[%.120s]" : "tls://%.120s", at + 4);
    snprintf(out->tls_hostname, sizeof(out->tls_hostname), "%.*s", (int)(at - peer), peer);
    return true;
}

/* The record of the migration has the address as it was given, and the name in the certificate. */
static void add_recorded(struct vc_vm *vm, struct vc_rekey_peer *out)
{
    struct vc_err ignored = VC_ERR_INIT;
    struct vc_handover h;

    if (!vc_handover_get(vm, &h, &ignored) && h.state != VC_HANDOVER_NONE &&
        !strcmp(h.peer, out->address))
        snprintf(out->tls_hostname, sizeof(out->tls_hostname), "%s", h.tls_hostname);
}

int vc_rekey_find_peer(struct vc_vm *vm, struct vc_rekey_peer *out, struct vc_err *err)
{
    const struct vc_gen_info *info = vc_vm_complete(vm);

    *out = (struct vc_rekey_peer){0};
    if (!info)
        return VC_NOT_FOUND;
    out->asks = info->role == 1;
    snprintf(out->name, sizeof(out->name), "%s", info->peer);
    if (!dialable(info->peer, out->asks, out))
        return vc_err_set_hint(err, VC_E_USAGE, "--to says where it is, --local leaves it out",
                               "where the other host of the checkpoint, '%.100s', is reached is "
                               "not known here",
                               info->peer);
    if (out->asks)
        add_recorded(vm, out);
    return 0;
}

bool vc_rekey_is_of(const char *peer, const char *host)
{
    struct vc_rekey_peer p = {0};
    char name[256];

    if (vc_peer_matches(host, peer))
        return true;
    vc_holder_host(peer, name);
    if (vc_peer_matches(host, name))
        return true;
    if (!dialable(peer, false, &p))
        return false;
    vc_holder_host(p.address, name);
    return vc_peer_matches(host, p.tls_hostname) || vc_peer_matches(host, name);
}

/* Whether a host of that name has the key, as far as is noted. What was noted by an older vecycle
 * is the other host of the newest checkpoint alone. */
static int was_given(struct vc_vm *vm, const char *host, bool *out, struct vc_err *err)
{
    vc_auto_free struct vc_holder *h = NULL;
    size_t n = 0;
    int rc = vc_vm_holders(vm, &h, &n, err);

    *out = rc == VC_E_CORRUPT; /* nobody knows who has it */
    for (size_t i = 0; i < vc_vm_n_generations(vm); i++)
        *out |= vc_rekey_is_of(vc_vm_generation(vm, i)->peer, host);
    for (size_t i = 0; i < n; i++) {
        *out |= h[i].cut; /* it may be one of the names that are not noted */
        for (unsigned k = 0; k < h[i].n_names; k++)
            *out |= vc_peer_matches(host, h[i].names[k]);
    }
    return rc == VC_E_CORRUPT ? 0 : rc;
}

/* ---- doing it ---- */

static int parse_vm(const char *vm, struct vc_id *id, struct vc_err *err)
{
    return vc_id_parse(vm, id)
               ? 0
               : vc_err_set_hint(err, VC_E_NO_SUCH_VM, "a VM is its UUID; `vecycle ls` lists them",
                                 "'%.64s' is not the UUID of a VM", vm);
}

static int open_vm(const struct vecycle_context *c, const char *vm, struct vc_store **store,
                   struct vc_vm **v, struct vc_id *id, struct vc_err *err)
{
    int rc = parse_vm(vm, id, err);

    *store = NULL;
    *v = NULL;
    if (!rc)
        rc = vc_public_store(c, false, store, err);
    if (!rc)
        rc = vc_vm_open(*store, id, VC_VM_READ, v, err);
    if (rc == VC_NOT_FOUND)
        return vc_err_set_hint(err, VC_E_NO_SUCH_VM, "`vecycle ls` lists them",
                               "the store has no such VM");
    return rc;
}

int vecycle_key_was_given(const struct vecycle_context *c, const char *vm, const char *host,
                          bool *out, struct vecycle_error *err)
{
    struct vc_err e = VC_ERR_INIT;
    struct vc_store *store;
    struct vc_vm *v;
    struct vc_id id;
    int rc = open_vm(c, vm, &store, &v, &id, &e);

    *out = false;
    if (!rc)
        rc = was_given(v, host, out, &e);
    vc_vm_close(v);
    vc_store_close(store);
    return vc_public_error(rc, &e, err);
}

static int dial(const struct vecycle_rekey_options *o, const struct vc_rekey_peer *p,
                struct vc_conn **out, struct vc_err *err)
{
    struct vc_tls_options tls = vc_public_tls(&o->tls, o->cancel ? &o->cancel->c : NULL);
    struct vc_dial_options d = {
        .insecure = o->insecure,
        .ssh = o->ssh,
        .remote = o->remote,
        .tls = &tls,
    };

    if (!tls.hostname && p->tls_hostname[0])
        tls.hostname = p->tls_hostname;
    return vc_conn_dial(p->address, &d, out, err);
}

/* "HOST" is short for "ssh://HOST". */
static void full_address(const char *to, struct vc_rekey_peer *out)
{
    bool whole = strstr(to, "://") || !strncmp(to, "unix:", 5);

    *out = (struct vc_rekey_peer){0};
    snprintf(out->address, sizeof(out->address), "%s%s", whole ? "" : "ssh://", to);
    snprintf(out->name, sizeof(out->name), "%s", to);
}

/* *alone: nobody else is to get the new key. */
static int choose_peer(struct vc_vm *vm, const struct vecycle_rekey_options *o,
                       struct vc_rekey_peer *p, bool *alone, struct vc_err *err)
{
    int rc = 0;

    *alone = o->local;
    if (o->local)
        return 0;
    if (o->to)
        full_address(o->to, p);
    else
        rc = vc_rekey_find_peer(vm, p, err);
    /* With nothing that another host could have as well, or with the host that is to lose it. */
    if (rc == VC_NOT_FOUND || (o->forget && vc_rekey_is_of(p->name, o->forget))) {
        *alone = true;
        return 0;
    }
    return rc;
}

static int rekey(struct vc_store *store, struct vc_vm *vm, const struct vecycle_rekey_options *o,
                 const struct vc_log *log, struct vc_rekey_result *r, struct vc_err *err)
{
    struct vc_rekey_session s = {
        .store = store,
        .log = log,
        .cancel = o->cancel ? &o->cancel->c : NULL,
        .dead_peer_ms = o->dead_peer_ms,
        .progress = o->progress,
        .opaque = o->opaque,
        .vm = *vc_vm_uuid(vm),
    };
    struct vc_rekey_peer p;
    bool alone;
    int rc = choose_peer(vm, o, &p, &alone, err);

    if (!rc && !alone)
        rc = dial(o, &p, &s.conn, err);
    if (rc)
        return rc;
    if (s.conn)
        vc_public_warn_plaintext(log, s.conn);
    if (o->writes)
        o->writes(o->opaque, true);
    rc = vc_session_rekey(&s, r, err);
    if (o->writes)
        o->writes(o->opaque, false);
    return rc;
}

int vecycle_rekey(const struct vecycle_context *c, const char *vm,
                  const struct vecycle_rekey_options *o, struct vecycle_rekeyed *out,
                  struct vecycle_error *err)
{
    struct vc_log log = vc_public_log(c);
    struct vc_rekey_result r = {0};
    struct vc_err e = VC_ERR_INIT;
    struct vc_store *store;
    struct vc_vm *v;
    struct vc_id id;
    int rc = open_vm(c, vm, &store, &v, &id, &e);

    if (!rc)
        rc = rekey(store, v, o, &log, &r, &e);
    vc_vm_close(v);
    vc_store_close(store);
    if (out) {
        *out = (struct vecycle_rekeyed){
            .pages = r.pages,
            .dropped_pages = r.dropped,
            .confirmed = r.confirmed,
            .emptied = r.emptied,
        };
        snprintf(out->peer, sizeof(out->peer), "%s", r.peer);
    }
    return vc_public_error(rc, &e, err);
}
