/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "api/api.h"

/* vecycle_store_*(): they work on the store itself, agent or not; its locks keep them apart from
 * sessions. */

static const char *const handover_names[] = {"none",    "leaving", "left", "arriving",
                                             "settled", "void",    "kept", "about-to-run"};

static void describe_partial(const struct vc_gen_info *g, struct vecycle_vm *out)
{
    vc_id_format(&g->id, out->partial_generation);
    out->partial_unix = g->created_unix;
    out->partial_held_pages = g->held_pages;
    out->partial_disk_bytes = g->disk_bytes;
}

/* What to show of a VM: the newest complete generation, or else the partial one; NULL: neither. */
static const struct vc_gen_info *shown(struct vc_vm *vm)
{
    const struct vc_gen_info *g = vc_vm_complete(vm);

    return g ? g : vc_vm_partial(vm);
}

static void describe_generation(struct vc_vm *vm, struct vecycle_vm *out)
{
    static const char *const roles[] = {"", "source", "destination"};
    const struct vc_gen_info *partial = vc_vm_partial(vm), *g = shown(vm);
    struct vc_lineage l;

    out->n_generations = vc_vm_n_generations(vm) - (partial != NULL);
    out->has_key = vc_vm_lineage(vm, &l);
    if (out->has_key)
        out->exposed = l.exposed;
    vc_wipe(&l, sizeof(l));
    if (partial)
        describe_partial(partial, out);
    if (!g)
        return;
    out->partial = g->partial;
    vc_id_format(&g->id, out->generation);
    for (int i = 0; i < VC_ROOT_BYTES; i++)
        snprintf(out->root + 2 * i, 3, "%02x", g->root[i]);
    out->created_unix = g->created_unix;
    out->ram_bytes = g->ram_bytes;
    out->disk_bytes = g->disk_bytes;
    out->zero_pages = g->zero_pages;
    out->held_pages = g->held_pages;
    out->unknown_pages = g->unknown_pages;
    out->layers = g->n_layers;
    out->same_pages = g->same_pages;
    out->data_pages = g->data_pages;
    out->confirmed = g->confirmed;
    snprintf(out->peer, sizeof(out->peer), "%s", g->peer);
    snprintf(out->role, sizeof(out->role), "%s", roles[g->role]);
}

static bool is_open(const struct vc_handover *h)
{
    return h->state != VC_HANDOVER_NONE && h->state != VC_HANDOVER_SETTLED &&
           h->state != VC_HANDOVER_VOID;
}

static void describe_handover(struct vc_vm *vm, struct vecycle_vm *out, struct vc_err *err)
{
    struct vc_handover h;

    if (vc_handover_get(vm, &h, err)) {
        out->damaged = true;
        snprintf(out->error, sizeof(out->error), "%s", err->message);
        snprintf(out->handover, sizeof(out->handover), "?");
        return;
    }
    snprintf(out->handover, sizeof(out->handover), "%s", handover_names[h.state]);
    if (h.state == VC_HANDOVER_NONE)
        return;
    snprintf(out->handover_peer, sizeof(out->handover_peer), "%s", h.peer);
    snprintf(out->handover_socket, sizeof(out->handover_socket), "%s", h.socket);
    out->handover_unix = h.since_unix;
}

/* What there is to say of one VM. A damaged one is described too. */
static int describe(struct vc_store *store, const struct vc_id *id, struct vecycle_vm *out,
                    struct vc_err *err)
{
    struct vc_err trouble = VC_ERR_INIT;
    enum vc_policy policy;
    struct vc_gen *gen = NULL;
    struct vc_vm *vm;
    int rc;

    memset(out, 0, sizeof(*out));
    vc_id_format(id, out->vm);
    snprintf(out->policy, sizeof(out->policy), "%s",
             vc_policy_get(store, id, &policy, NULL) ? "?" : vc_policy_name(policy));
    rc = vc_vm_open(store, id, VC_VM_READ, &vm, &trouble);
    if (rc == VC_NOT_FOUND)
        return vc_err_set_hint(err, VC_E_NO_SUCH_VM, "`vecycle ls` lists them",
                               "the store has no VM %s", out->vm);
    if (rc && rc != VC_E_CORRUPT) {
        *err = trouble;
        return rc;
    }
    if (!rc) {
        describe_generation(vm, out);
        describe_handover(vm, out, &trouble);
        if (shown(vm))
            rc = vc_gen_open(vm, &shown(vm)->id, &gen, &trouble);
        if (rc == VC_NOT_FOUND)
            rc = 0; /* another one took its place just now */
        vc_gen_close(gen);
        vc_vm_close(vm);
    }
    if (rc) {
        out->damaged = true;
        snprintf(out->error, sizeof(out->error), "%s", trouble.message);
    }
    return 0;
}

static int parse_vm(const char *vm, struct vc_id *id, struct vc_err *err)
{
    return vc_id_parse(vm, id)
               ? 0
               : vc_err_set_hint(err, VC_E_NO_SUCH_VM, "a VM is its UUID; `vecycle ls` lists them",
                                 "'%.64s' is not the UUID of a VM", vm);
}

/* Opens the store for reading; an absent one is an empty one (*out NULL). */
static int open_store(const struct vecycle_context *c, struct vc_store **out, struct vc_err *err)
{
    int rc = vc_public_open_store(c, false, out, err);

    if (rc == VC_NOT_FOUND) {
        *out = NULL;
        return 0;
    }
    return rc;
}

/* Store and VM together, for those that work on one VM. */
static int open_both(const struct vecycle_context *c, const char *vm, struct vc_store **store,
                     struct vc_id *id, struct vc_err *err)
{
    int rc = parse_vm(vm, id, err);

    *store = NULL;
    if (!rc)
        rc = open_store(c, store, err);
    if (!rc && !*store)
        rc = vc_err_set_hint(err, VC_E_NO_SUCH_VM, "see --store", "there is no store at '%s'",
                             c->store ? c->store : vecycle_default_store());
    return rc;
}

int vecycle_store_list(const struct vecycle_context *c, struct vecycle_vm **vms, size_t *n,
                       struct vecycle_error *err)
{
    struct vc_err e = VC_ERR_INIT;
    struct vc_store *store = NULL;
    vc_auto_free struct vc_id *ids = NULL;
    struct vecycle_vm *list = NULL;
    size_t n_ids = 0, k = 0;
    int rc = open_store(c, &store, &e);

    if (!rc && store)
        rc = vc_store_list(store, &ids, &n_ids, &e);
    if (!rc && !(list = calloc(n_ids + 1, sizeof(*list))))
        rc = vc_err_set(&e, VC_E_NOMEM, "no memory for the list");
    for (size_t i = 0; i < n_ids && !rc; i++) {
        rc = describe(store, &ids[i], &list[k], &e);
        if (rc == VC_E_NO_SUCH_VM)
            rc = 0; /* it went away just now */
        else
            k++;
    }
    if (!rc && !store) {
        struct vc_log log = vc_public_log(c);

        vc_log(&log, VC_LOG_WARNING, "there is no store at '%s' yet",
               c->store ? c->store : vecycle_default_store());
    }
    vc_store_close(store);
    if (rc) {
        free(list);
        return vc_public_error(rc, &e, err);
    }
    *vms = list;
    *n = k;
    return 0;
}

int vecycle_store_show(const struct vecycle_context *c, const char *vm, struct vecycle_vm *out,
                       struct vecycle_error *err)
{
    struct vc_err e = VC_ERR_INIT;
    struct vc_store *store;
    struct vc_id id;
    int rc = open_both(c, vm, &store, &id, &e);

    if (!rc)
        rc = describe(store, &id, out, &e);
    vc_store_close(store);
    return vc_public_error(rc, &e, err);
}

typedef const struct vc_gen_info *which_gen(const struct vc_vm *vm);

/* The generation, and the lineage that the manifest had beside it: both are of one reading. If
 * another generation takes its place just then, that one. VC_NOT_FOUND: there is none. */
static int open_with_lineage(struct vc_vm *vm, which_gen *which, struct vc_gen **out,
                             struct vc_lineage *l, struct vc_err *err)
{
    int rc;

    do {
        const struct vc_gen_info *info = which(vm);

        if (!info)
            return VC_NOT_FOUND;
        rc = vc_gen_open(vm, &info->id, out, err);
    } while (rc == VC_NOT_FOUND);
    if (!rc && !vc_vm_lineage(vm, l)) {
        vc_gen_close(vc_steal_ptr(*out));
        rc = VC_NOT_FOUND;
    }
    return rc;
}

static int verify_one(struct vc_vm *vm, which_gen *which,
                      void (*progress)(void *opaque, uint64_t done, uint64_t total), void *opaque,
                      struct vc_verify_result *r, struct vc_err *err)
{
    struct vc_gen *gen = NULL;
    struct vc_lineage l = {0};
    int rc = open_with_lineage(vm, which, &gen, &l, err);

    if (!rc)
        rc = vc_gen_verify(gen, &l, progress, opaque, r, err);
    vc_wipe(&l, sizeof(l));
    vc_gen_close(gen);
    return rc == VC_NOT_FOUND ? 0 : rc;
}

static int verify(struct vc_store *store, const struct vc_id *id,
                  void (*progress)(void *opaque, uint64_t done, uint64_t total), void *opaque,
                  struct vecycle_verified *out, struct vc_err *err)
{
    struct vc_verify_result r = {0}, partial = {0};
    struct vc_vm *vm;
    int rc = vc_vm_open(store, id, VC_VM_READ, &vm, err);

    if (rc == VC_NOT_FOUND)
        return vc_err_set_hint(err, VC_E_NO_SUCH_VM, "`vecycle ls` lists them",
                               "the store has no such VM");
    if (rc)
        return rc;
    rc = verify_one(vm, vc_vm_complete, progress, opaque, &r, err);
    if (!rc)
        rc = verify_one(vm, vc_vm_partial, progress, opaque, &partial, err);
    vc_vm_close(vm);
    out->pages = r.pages;
    out->bad_pages = r.bad_pages;
    out->partial_pages = partial.pages;
    out->unusable_pages = partial.bad_pages;
    if (!rc && r.bad_pages)
        rc = vc_err_set_hint(err, VC_E_CORRUPT,
                             "damaged pages are fetched again at the next migration",
                             "%llu of %llu pages are damaged, the first is page %llu of block %u",
                             (unsigned long long)r.bad_pages, (unsigned long long)r.pages,
                             (unsigned long long)r.first_bad_page.n, r.first_bad_block);
    return rc;
}

int vecycle_store_verify(const struct vecycle_context *c, const char *vm,
                         void (*progress)(void *opaque, uint64_t done, uint64_t total),
                         void *opaque, struct vecycle_verified *out, struct vecycle_error *err)
{
    struct vc_err e = VC_ERR_INIT;
    struct vc_store *store;
    struct vc_id id;
    int rc = open_both(c, vm, &store, &id, &e);

    *out = (struct vecycle_verified){0};
    if (!rc)
        rc = verify(store, &id, progress, opaque, out, &e);
    vc_store_close(store);
    return vc_public_error(rc, &e, err);
}

/* Opens for writing; a damaged manifest is no obstacle to removing. */
static int open_for_removal(struct vc_store *store, const struct vc_id *id, struct vc_vm **vm,
                            struct vc_err *err)
{
    int rc = vc_vm_open(store, id, VC_VM_WRITE, vm, err);

    if (rc == VC_E_CORRUPT)
        rc = vc_vm_open(store, id, VC_VM_CREATE, vm, err);
    if (rc == VC_NOT_FOUND)
        return vc_err_set_hint(err, VC_E_NO_SUCH_VM, "`vecycle ls` lists them",
                               "the store has no such VM");
    return rc;
}

int vecycle_store_remove(const struct vecycle_context *c, const char *vm, bool force,
                         struct vecycle_error *err)
{
    struct vc_err e = VC_ERR_INIT;
    struct vc_store *store;
    struct vc_handover h;
    struct vc_vm *v = NULL;
    struct vc_id id;
    int rc = open_both(c, vm, &store, &id, &e);

    if (!rc)
        rc = open_for_removal(store, &id, &v, &e);
    if (!rc && !force && vc_handover_get(v, &h, &e) == 0 && is_open(&h))
        rc = vc_err_set_hint(&e, VC_E_UNSETTLED, "see `vecycle resolve`, or use --force",
                             "a migration of the VM is not settled");
    if (!rc)
        rc = vc_vm_remove(v, &e);
    vc_vm_close(v);
    vc_store_close(store);
    return vc_public_error(rc, &e, err);
}

int vc_public_vm(const struct vecycle_context *c, const char *vm, struct vc_store **store,
                 struct vc_id *id, struct vc_err *err)
{
    return open_both(c, vm, store, id, err);
}

const char *vc_public_handover(uint8_t state)
{
    return state < VC_ARRAY_LEN(handover_names) ? handover_names[state] : "?";
}
