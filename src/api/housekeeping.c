/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "api/api.h"
#include "base/thread.h"

/* Forgetting checkpoints: vecycle_store_gc(), policies, and the agent's thread that does it. */

#define INTERVAL_MS (3600 * 1000)

static_assert((int)VECYCLE_POLICY_NEVER == (int)VC_POLICY_NEVER, "policies");
static_assert((int)VECYCLE_POLICY_PINNED == (int)VC_POLICY_PINNED, "policies");
static_assert(VECYCLE_UNLIMITED == VC_UNLIMITED, "limits");

static const char *why_name(enum vc_gc_why why)
{
    switch (why) {
    case VC_GC_POLICY:
        return "policy";
    case VC_GC_AGE:
        return "age";
    case VC_GC_PEER_QUOTA:
        return "peer-quota";
    case VC_GC_QUOTA:
        return "quota";
    case VC_GC_RESERVE:
        return "reserve";
    }
    return "?";
}

static void say_forgotten(void *opaque, const struct vc_gc_item *item)
{
    const struct vc_log *log = opaque;
    char vm[VC_ID_TEXT_BYTES];

    vc_id_format(&item->vm, vm);
    vc_log(log, VC_LOG_INFO, "%s: its checkpoint is forgotten (%s): %llu MiB, %llu h old", vm,
           why_name(item->why), (unsigned long long)(item->bytes >> 20),
           (unsigned long long)(item->age_s / 3600));
}

/* False: it could not be done, which is said unless @again. */
static bool forget(struct vc_store *store, const struct vc_log *log, const _Atomic bool *stop,
                   bool again)
{
    struct vc_gc_options o = {
        .report = say_forgotten,
        .opaque = (void *)log,
        .log = log,
        .stop = stop,
    };
    struct vc_err err = VC_ERR_INIT;
    struct vc_gc_result r;
    int rc = vc_store_gc(store, &o, &r, &err);

    if (rc == VC_E_BUSY)
        vc_log_err(log, VC_LOG_DEBUG, "nothing is forgotten now", &err);
    else if (rc && !again)
        vc_log_err(log, VC_LOG_WARNING, "checkpoints cannot be forgotten", &err);
    else if (rc)
        return false;
    else if (r.over)
        vc_log(log, VC_LOG_WARNING,
               "the store has %llu MiB, and the disk %llu MiB free: over the limits, and nothing "
               "that is left may be forgotten",
               (unsigned long long)(r.used_bytes >> 20), (unsigned long long)(r.free_bytes >> 20));
    return rc == 0 || rc == VC_E_BUSY;
}

void vc_forget(struct vc_store *store, const struct vc_log *log, const _Atomic bool *stop)
{
    forget(store, log, stop, false);
}

/* ---- the agent's thread ---- */

struct vc_keeper {
    struct vc_store *store; /* borrowed */
    const struct vc_log *log;
    struct vc_thread thread;
    int wake; /* eventfd */
    atomic_bool stop;
};

static void *keeper_main(void *arg)
{
    struct vc_keeper *k = arg;
    bool failed = false;
    uint64_t n;

    while (!atomic_load(&k->stop)) {
        struct pollfd p = {.fd = k->wake, .events = POLLIN};

        failed = !forget(k->store, k->log, &k->stop, failed);
        if (poll(&p, 1, INTERVAL_MS) > 0 && read(k->wake, &n, sizeof(n)) < 0)
            continue;
    }
    return NULL;
}

int vc_keeper_start(struct vc_store *store, const struct vc_log *log, struct vc_keeper **out,
                    struct vc_err *err)
{
    struct vc_keeper *k = calloc(1, sizeof(*k));
    int rc;

    if (!k)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a thread");
    k->store = store;
    k->log = log;
    k->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rc = k->wake < 0 ? vc_err_set_errno(err, VC_E_FAILED, "cannot make an eventfd")
                     : vc_thread_start(&k->thread, "vc-keeper", keeper_main, k, err);
    if (rc) {
        vc_keeper_stop(k);
        return rc;
    }
    *out = k;
    return 0;
}

void vc_keeper_poke(struct vc_keeper *k)
{
    uint64_t one = 1;

    if (write(k->wake, &one, sizeof(one)) < 0) {
        /* Full means: awake already. */
    }
}

void vc_keeper_stop(struct vc_keeper *k)
{
    if (!k)
        return;
    atomic_store(&k->stop, true);
    if (k->thread.running)
        vc_keeper_poke(k);
    vc_thread_join(&k->thread);
    if (k->wake >= 0)
        close(k->wake);
    free(k);
}

/* ---- on demand ---- */

const char *vecycle_policy_name(enum vecycle_policy policy)
{
    return vc_policy_name((enum vc_policy)policy);
}

static int parse_vm(const char *vm, struct vc_id *id, struct vc_err *err)
{
    return vc_id_parse(vm, id)
               ? 0
               : vc_err_set_hint(err, VC_E_NO_SUCH_VM, "a VM is its UUID; `vecycle ls` lists them",
                                 "'%.64s' is not the UUID of a VM", vm);
}

int vecycle_store_get_policy(const struct vecycle_context *c, const char *vm,
                             enum vecycle_policy *out, struct vecycle_error *err)
{
    struct vc_err e = VC_ERR_INIT;
    enum vc_policy policy = VC_POLICY_NORMAL;
    struct vc_store *store = NULL;
    struct vc_id id;
    int rc = parse_vm(vm, &id, &e);

    if (!rc)
        rc = vc_public_open_store(c, false, &store, &e);
    if (!rc)
        rc = vc_policy_get(store, &id, &policy, &e);
    vc_store_close(store);
    *out = (enum vecycle_policy)policy;
    return vc_public_error(rc, &e, err); /* no store: no VM has another policy */
}

/* What is there of a VM that is not to be kept. VC_AGAIN: it is in use. */
static int drop(struct vc_store *store, const struct vc_id *id, struct vc_err *err)
{
    struct vc_vm *vm;
    int rc = vc_vm_open(store, id, VC_VM_WRITE, &vm, err);

    if (rc == VC_E_BUSY || rc == VC_NOT_FOUND || rc == VC_E_CORRUPT)
        return 0; /* the next gc sees to it */
    if (rc)
        return rc;
    rc = vc_vm_drop(vm, err);
    vc_vm_close(vm);
    return rc;
}

int vecycle_store_set_policy(const struct vecycle_context *c, const char *vm,
                             enum vecycle_policy policy, struct vecycle_error *err)
{
    struct vc_err e = VC_ERR_INIT;
    struct vc_store *store = NULL;
    struct vc_id id;
    int rc = parse_vm(vm, &id, &e);

    if (!rc && (unsigned)policy > VC_POLICY_NEVER)
        rc = vc_err_set(&e, VC_E_USAGE, "no such policy");
    if (!rc)
        rc = vc_public_open_store(c, true, &store, &e);
    if (!rc)
        rc = vc_policy_set(store, &id, (enum vc_policy)policy, &e);
    if (!rc && policy == VECYCLE_POLICY_NEVER)
        rc = drop(store, &id, &e);
    vc_store_close(store);
    return vc_public_error(rc, &e, err);
}

struct reporter {
    void (*report)(void *opaque, const struct vecycle_forgotten *vm);
    void *opaque;
};

static void pass_on(void *opaque, const struct vc_gc_item *item)
{
    const struct reporter *r = opaque;
    struct vecycle_forgotten f = {
        .why = why_name(item->why),
        .bytes = item->bytes,
        .age_s = item->age_s,
    };

    if (!r->report)
        return;
    vc_id_format(&item->vm, f.vm);
    snprintf(f.peer, sizeof(f.peer), "%s", item->peer);
    r->report(r->opaque, &f);
}

int vecycle_store_gc(const struct vecycle_context *c, bool dry_run,
                     void (*report)(void *opaque, const struct vecycle_forgotten *vm), void *opaque,
                     struct vecycle_gc_result *out, struct vecycle_error *err)
{
    struct vc_log log = vc_public_log(c);
    struct reporter r = {report, opaque};
    struct vc_gc_options o = {.dry_run = dry_run, .report = pass_on, .opaque = &r, .log = &log};
    struct vc_gc_result done = {0};
    struct vc_err e = VC_ERR_INIT;
    struct vc_store *store = NULL;
    int rc = vc_public_open_store(c, false, &store, &e);

    if (!rc)
        rc = vc_store_gc(store, &o, &done, &e);
    vc_store_close(store);
    *out = (struct vecycle_gc_result){
        .n_vms = done.n_vms,
        .n_forgotten = done.n_evicted,
        .n_in_use = done.n_in_use,
        .forgotten_bytes = done.evicted_bytes,
        .used_bytes = done.used_bytes,
        .free_bytes = done.free_bytes,
        .quota_bytes = done.quota_bytes,
        .reserve_bytes = done.reserve_bytes,
        .over = done.over,
    };
    return vc_public_error(rc, &e, err); /* no store: an empty one */
}
