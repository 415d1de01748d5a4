/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "api/api.h"

/* vecycle_resolve() and vecycle_resolve_show(): what a person does about a migration that is not
 * settled. They work on the store itself, agent or not; its locks keep them apart from sessions. */

struct request {
    struct vc_store *store;
    struct vc_id vm;
    struct vc_log log;
    struct vc_settle_options settle;
    const struct vecycle_resolve_options *o;
};

static int begin(struct request *r, const struct vecycle_context *c, const char *vm,
                 const struct vecycle_resolve_options *o, struct vc_err *err)
{
    int rc = vc_public_vm(c, vm, &r->store, &r->vm, err);

    r->log = vc_public_log(c);
    r->o = o;
    r->settle = (struct vc_settle_options){
        .store = r->store,
        .vm = &r->vm,
        .socket_dir = o->socket_dir ? o->socket_dir : vecycle_default_socket_dir(),
        .qmp_path = o->qmp,
        .cancel = o->cancel ? &o->cancel->c : NULL,
        .log = &r->log,
    };
    return rc;
}

static int nothing_open(struct vc_err *err)
{
    return vc_err_set(err, VC_E_NO_SUCH_VM, "nothing about this VM is open here");
}

static bool is_of_source(const struct vc_handover *h)
{
    return h->state == VC_HANDOVER_LEAVING || h->state == VC_HANDOVER_LEFT ||
           h->state == VC_HANDOVER_KEPT;
}

static int dial(struct request *r, const struct vc_handover *h, struct vc_conn **conn,
                struct vc_err *err)
{
    const struct vecycle_resolve_options *o = r->o;
    struct vc_tls_options tls = vc_public_tls(&o->tls, r->settle.cancel);
    struct vc_dial_options d = vc_public_dial(&r->log, o->cancel);
    char address[VC_JOB_TEXT_BYTES];
    int rc;

    d.insecure = o->insecure;
    d.ssh = o->ssh;
    d.remote = o->remote;
    d.tls = &tls;
    if (!o->to && !tls.hostname && *h->tls_hostname) /* as it was called then */
        tls.hostname = h->tls_hostname;
    rc = vc_public_address(o->to ? o->to : h->peer, address, err);
    if (!rc)
        rc = vc_conn_dial(address, &d, conn, err);
    if (!rc)
        vc_public_warn_plaintext(&r->log, *conn);
    return rc;
}

static int retry(struct request *r, struct vc_err *err)
{
    char why[VC_WHY_BYTES];
    struct vc_handover h;
    struct vc_conn *conn;
    int rc = vc_session_look_back(&r->settle, &h, why, err);

    if (rc == VC_NOT_FOUND || (!rc && (h.state == VC_HANDOVER_NONE || h.state == VC_HANDOVER_VOID)))
        return nothing_open(err);
    if (!rc && h.state == VC_HANDOVER_SETTLED) /* it runs here after all, if this was no source */
        return vc_session_check_rest(&r->settle, &h, err);
    if (rc)
        return rc;
    if (h.state == VC_HANDOVER_LEAVING)
        return vc_err_set_hint(err, VC_E_UNSETTLED,
                               "--qmp PATH, if QEMU's socket has moved; else a person decides",
                               "what became of the migration is not known: %.160s", why);
    if (!is_of_source(&h))
        return vc_err_set_hint(err, VC_E_QEMU_STATE, "run this on the source host",
                               "this host has no word to give");
    rc = dial(r, &h, &conn, err);
    return rc ? rc : vc_session_repeat_word(&r->settle, &h.session, conn, err);
}

/* Whatever becomes of the VM, what the migration had set in its QEMU is put back. */
static void put_back(struct request *r)
{
    struct vc_err err = VC_ERR_INIT;

    if (vc_session_put_back(&r->settle, &err) < 0)
        vc_log_err(&r->log, VC_LOG_DEBUG, "QEMU's settings are not put back", &err);
}

int vecycle_resolve(const struct vecycle_context *c, const char *vm, enum vecycle_resolution how,
                    const struct vecycle_resolve_options *o, struct vecycle_error *err)
{
    struct vc_err e = VC_ERR_INIT;
    struct request r;
    int rc = begin(&r, c, vm, o, &e);

    if (!rc)
        put_back(&r);
    if (!rc && how == VECYCLE_RESOLVE_RETRY)
        rc = retry(&r, &e);
    else if (!rc)
        rc = vc_session_decide(&r.settle,
                               how == VECYCLE_RESOLVE_RUN ? VC_DECIDE_RUN : VC_DECIDE_DISCARD,
                               o->force, &e);
    vc_store_close(r.store);
    return vc_public_error(rc, &e, err);
}

/* What the other host says, if it can be asked; else why not. */
static void ask_there(struct request *r, const struct vc_handover *h, char text[VC_WHY_BYTES])
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_conn *conn;
    int rc = dial(r, h, &conn, &err);

    if (!rc)
        rc = vc_session_ask(&r->settle, conn, text, &err);
    if (rc)
        snprintf(text, VC_WHY_BYTES, "it cannot be asked: %.220s", err.message);
}

int vecycle_resolve_show(const struct vecycle_context *c, const char *vm,
                         const struct vecycle_resolve_options *o, struct vecycle_doubt *out,
                         struct vecycle_error *err)
{
    struct vc_err e = VC_ERR_INIT;
    struct vc_handover h = {0};
    struct request r;
    int rc = begin(&r, c, vm, o, &e);

    *out = (struct vecycle_doubt){0};
    if (!rc)
        put_back(&r);
    if (!rc)
        rc = vc_session_look_back(&r.settle, &h, out->here, &e);
    if (rc == VC_NOT_FOUND)
        rc = vc_err_set_hint(&e, VC_E_NO_SUCH_VM, "`vecycle ls` lists them",
                             "the store has no such VM");
    if (!rc)
        rc = vc_session_check_rest(&r.settle, &h, &e);
    if (!rc && is_of_source(&h))
        ask_there(&r, &h, out->there);
    vc_store_close(r.store);
    snprintf(out->handover, sizeof(out->handover), "%s", vc_public_handover(h.state));
    snprintf(out->peer, sizeof(out->peer), "%s", h.peer);
    snprintf(out->socket, sizeof(out->socket), "%s", h.socket);
    out->told = h.state == VC_HANDOVER_LEFT || (h.state == VC_HANDOVER_KEPT && h.told);
    return vc_public_error(rc, &e, err);
}
