/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "session/rekey.h"

/* Re-keying, at the host that is asked: a session of mode 7. */

static bool is_same(const struct arrival *a, const struct vc_rekey *r)
{
    const struct vc_gen_info *info = vc_gen_info(vc_rekey_gen(r));

    return a->open.has_lineage && vc_id_equal(&a->open.lineage.id, &vc_rekey_old(r)->id) &&
           a->open.n_generations == 1 && vc_id_equal(&a->open.generations[0].id, &info->id) &&
           !memcmp(a->open.generations[0].root, info->root, VC_WIRE_ROOT_BYTES);
}

/* Who may not have the VM is not told what there is of it. */
static int find(struct arrival *a, struct vc_rekey **out, struct vc_err *err)
{
    int rc = vc_arrival_ask_leave(a, "", err);

    if (rc)
        return rc;
    rc = a->o->store ? vc_rekey_open(a->o->store, &a->open.vm, out, err) : VC_NOT_FOUND;
    if (!rc && vc_rekey_old(*out)->exposed != vc_rekeying_is_plaintext(a->link))
        rc = vc_err_set(err, VC_E_REFUSED, "the checkpoint's key does not fit the connection");
    if (rc == VC_AGAIN || rc == VC_NOT_FOUND || (!rc && !is_same(a, *out)))
        rc = vc_err_set_hint(err, VC_E_NO_SUCH_VM, "--local re-keys where it is there",
                             "the other host does not have the same checkpoint");
    return rc;
}

static int check_start(struct arrival *a, const struct vc_rekey *r, struct vc_err *err)
{
    const struct vc_wire_start *s = &a->start;

    if (!vc_digest_algo_known(s->lineage.algo))
        return vc_err_set(err, VC_E_VERSION, "START: unknown digest algorithm %u", s->lineage.algo);
    if (!s->has_key || s->base != VC_WIRE_BASE_PING_PONG ||
        !!(s->lineage.flags & VC_WIRE_LINEAGE_EXPOSED) != vc_rekey_old(r)->exposed)
        return vc_err_set(err, VC_E_PROTOCOL, "START: not about a new key");
    return 0;
}

int vc_arrival_rekey_open(struct arrival *a, struct vc_rekey **out, struct vc_err *err)
{
    struct vc_wire_accept accept = {.base = VC_WIRE_BASE_PING_PONG,
                                    .max_batch_stream_bytes = VC_WIRE_MAX_BATCH_STREAM_BYTES};
    vc_auto_frame struct vc_link_frame *f = NULL;
    int rc = find(a, out, err);

    if (rc)
        return rc;
    accept.generation = vc_gen_info(vc_rekey_gen(*out))->id;
    rc = VC_SESSION_SEND(a->link, VC_WIRE_ACCEPT, vc_wire_accept_encode, &accept, err);
    if (!rc)
        rc = vc_session_expect(a->link, VC_WIRE_START, &f, err);
    if (!rc)
        rc = vc_wire_start_decode(f->payload, f->bytes, &a->start, err);
    if (!rc)
        rc = check_start(a, *out, err);
    if (!rc)
        vc_link_set_phase(a->link, VC_WIRE_PHASE_STREAM);
    return rc;
}

int vc_arrival_rekey(struct arrival *a, struct vc_rekey *r, struct vc_err *err)
{
    struct vc_rekey_result result = {0};
    struct rekeying k = {
        .store = a->o->store,
        .log = a->o->log,
        .cancel = a->o->cancel,
        .result = &result,
        .r = r,
        .gen = a->start.generation,
        .conn = a->o->conn,
        .listed = a->o->may_reach != NULL,
        .link = a->link,
        .fresh = {.id = a->start.lineage.id,
                  .algo = a->start.lineage.algo,
                  .exposed = vc_rekey_old(r)->exposed},
    };
    int rc;

    memcpy(k.fresh.key, a->start.key, sizeof(k.fresh.key));
    vc_wipe(a->start.key, sizeof(a->start.key));
    if (a->o->opened)
        a->o->opened(a->o->opaque);
    rc = vc_rekeying_with_other(&k, err);
    a->result->rekeyed = !rc;
    vc_wipe(&k.fresh, sizeof(k.fresh));
    vc_rekey_close(r);
    return rc;
}
