/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "session/rekey.h"

/* Re-keying, at the host that asks for it: with another one, or alone. */

static int check_connection(struct rekeying *k, uint64_t features, struct vc_err *err)
{
    bool exposed = k->fresh.exposed;

    if (!(features & VC_WIRE_FEATURE_REKEY))
        return vc_err_set_hint(err, VC_E_VERSION, "install a newer one there, or see --local",
                               "the vecycle of '%.100s' cannot re-key", vc_link_peer(k->link));
    if (vc_rekeying_is_plaintext(k->link) && !exposed)
        return vc_err_set_hint(err, VC_E_REFUSED, "go by ssh:// or tls://",
                               "the key is not sent in the clear, to '%.100s'",
                               vc_link_peer(k->link));
    if (!vc_rekeying_is_plaintext(k->link) && exposed)
        return vc_err_set_hint(err, VC_E_REFUSED, "--local gives it another key here",
                               "the checkpoint has crossed a network in the clear, and no secure "
                               "session uses it");
    return 0;
}

static int ask(struct rekeying *k, const struct vc_id *vm, struct vc_err *err)
{
    const struct vc_gen_info *info = vc_gen_info(vc_rekey_gen(k->r));
    const struct vc_lineage *old = vc_rekey_old(k->r);
    uint8_t flags = old->exposed ? VC_WIRE_LINEAGE_EXPOSED : 0;
    struct vc_wire_open open = {.vm = *vm, .mode = VC_WIRE_MODE_REKEY, .has_lineage = true};
    struct vc_wire_start start = {.base = VC_WIRE_BASE_PING_PONG, .has_key = true};
    vc_auto_frame struct vc_link_frame *f = NULL;
    struct vc_wire_accept accept;
    int rc;

    if (!vc_id_random(&open.session))
        return vc_err_set(err, VC_E_FAILED, "the kernel gives no random numbers");
    open.lineage = (struct vc_wire_lineage){old->id, old->algo, flags};
    open.n_generations = 1;
    open.generations[0].id = info->id;
    memcpy(open.generations[0].root, info->root, VC_WIRE_ROOT_BYTES);
    rc = VC_SESSION_SEND(k->link, VC_WIRE_OPEN, vc_wire_open_encode, &open, err);
    if (!rc)
        rc = vc_session_expect(k->link, VC_WIRE_ACCEPT, &f, err);
    if (!rc)
        rc = vc_wire_accept_decode(f->payload, f->bytes, &accept, err);
    if (!rc && (accept.base != VC_WIRE_BASE_PING_PONG || accept.has_lineage ||
                !vc_id_equal(&accept.generation, &info->id)))
        rc = vc_err_set(err, VC_E_PROTOCOL, "ACCEPT: not about the checkpoint in question");
    if (rc)
        return rc;
    start.lineage = (struct vc_wire_lineage){k->fresh.id, k->fresh.algo, flags};
    start.generation = k->gen;
    memcpy(start.key, k->fresh.key, sizeof(start.key));
    rc = VC_SESSION_SEND(k->link, VC_WIRE_START, vc_wire_start_encode, &start, err);
    vc_wipe(&start, sizeof(start));
    if (!rc)
        vc_link_set_phase(k->link, VC_WIRE_PHASE_STREAM);
    return rc;
}

static int come_to_terms(struct rekeying *k, const struct vc_rekey_session *o, struct vc_err *err)
{
    struct vc_guard guard;
    uint64_t features;
    int rc = vc_guard_start(&guard, k->link, o->cancel,
                            VC_OPEN_TIMES * vc_dead_peer_ms(o->dead_peer_ms), err);

    if (rc)
        return rc;
    rc = vc_link_hello(k->link, VC_WIRE_FEATURE_REKEY, &features, err);
    if (!rc)
        rc = check_connection(k, features, err);
    if (!rc)
        rc = ask(k, &o->vm, err);
    return vc_guard_end(&guard, rc, err);
}

static int rekey_with(struct rekeying *k, const struct vc_rekey_session *o, struct vc_err *err)
{
    int rc = vc_link_new(o->conn, VC_WIRE_SOURCE, o->dead_peer_ms, &k->link, err);

    if (rc)
        return rc;
    k->conn = o->conn;
    rc = come_to_terms(k, o, err);
    if (rc)
        vc_link_fail(k->link, err);
    else
        rc = vc_rekeying_with_other(k, err);
    vc_link_free(k->link);
    return rc;
}

static int rekey_here(struct rekeying *k, struct vc_err *err)
{
    uint8_t root[VC_ROOT_BYTES];
    int rc = vc_rekeying_digest(k, err);

    if (!rc)
        rc = vc_rekey_prepare(k->r, root, err);
    if (!rc)
        rc = vc_rekey_commit(k->r, NULL, err);
    k->result->dropped = vc_rekey_n_dropped(k->r);
    return rc;
}

/* There is nothing that could be digested anew: what there is goes, and the key with it. */
static int rekey_nothing(const struct vc_rekey_session *o, struct vc_rekey_result *result,
                         struct vc_err *err)
{
    struct vc_lineage fresh;
    int rc = vc_lineage_random(&fresh, false, err);

    if (!rc)
        rc = vc_vm_rekey_empty(o->store, &o->vm, &fresh, err);
    vc_wipe(&fresh, sizeof(fresh));
    if (rc == VC_NOT_FOUND)
        return vc_err_set_hint(err, VC_E_NO_SUCH_VM, "`vecycle ls` lists them",
                               "the store has no checkpoint of the VM");
    result->emptied = !rc;
    return rc;
}

static int open_rekey(const struct vc_rekey_session *o, struct vc_rekey **out, struct vc_err *err)
{
    int rc = vc_rekey_open(o->store, &o->vm, out, err);

    if (rc == VC_AGAIN)
        return vc_err_set_hint(err, VC_E_BUSY, "try again",
                               "the VM's checkpoint was replaced just now");
    return rc;
}

int vc_session_rekey(const struct vc_rekey_session *o, struct vc_rekey_result *result,
                     struct vc_err *err)
{
    struct rekeying k = {
        .store = o->store,
        .log = o->log,
        .cancel = o->cancel,
        .progress = o->progress,
        .opaque = o->opaque,
        .listed = o->listed,
        .result = result,
    };
    int rc;

    *result = (struct vc_rekey_result){0};
    rc = open_rekey(o, &k.r, err);
    if (!rc)
        rc = vc_lineage_random(&k.fresh, vc_rekey_old(k.r)->exposed, err);
    if (!rc && !vc_id_random(&k.gen))
        rc = vc_err_set(err, VC_E_FAILED, "the kernel gives no random numbers");
    if (!rc && o->conn) {
        rc = rekey_with(&k, o, err);
    } else {
        vc_conn_close(o->conn);
        if (!rc)
            rc = rekey_here(&k, err);
    }
    vc_rekey_close(k.r);
    if (rc == VC_NOT_FOUND || (rc == VC_E_CORRUPT && !o->conn))
        rc = rekey_nothing(o, result, err);
    vc_wipe(&k.fresh, sizeof(k.fresh));
    return rc;
}
