/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/rekey.h"
#include "base/clock.h"
#include "base/thread.h"

/* Theory of operation
 *
 * The list of peers (--allow) is the pool as this host sees it. A host that was on it when a
 * lineage's key was given to it, or at any time since, is noted as listed in the VM's `holders`;
 * once such a host is on it no more, the lineage gets another key. So the file is the memory, and
 * it is all the same whether the agent ran when the list was changed. A host that never was on the
 * list was never taken off it either, and one of which not all names are noted may be on it by
 * another one.
 *
 * If the newest checkpoint is shared with a host that stays, that one is asked to re-key with this
 * one: by whichever of them called the other for the migration, and has the address; after a while,
 * if nothing has come, by the other one too. A host that cannot be reached, and one that is reached
 * through ssh, which is left to whoever has the keys, is not waited for longer than PATIENCE looks:
 * then the key is changed here alone, which costs the reuse of one return. One that only says that
 * it reads has one look, since all other VMs wait as long (session/rekey.c). */

#define LOOK_MS 5000
/** Commands work on the store too, and nobody says so. */
#define LOOK_ANYHOW_S 3600
/** While the list was just written it may not be whole. */
#define SETTLE_S 2
/** Looks that find a reason and no success, LONGEST_WAIT_S apart in the end: some 15 hours. */
#define PATIENCE 24u
/** Looks after which the host that was called does not leave it to the caller any more. */
#define POLITE_LOOKS 3u
#define FIRST_WAIT_S 5u
#define LONGEST_WAIT_S 3600u
#define MAX_PENDING 1024u

/* A VM that could not be re-keyed yet. */
struct pending {
    struct vc_id vm;
    unsigned looks;
    uint64_t next_ns;
};

struct vc_rekeyer {
    struct vc_store *store;
    const char *allow;
    const struct vc_log *log;
    const struct vecycle_tls *tls;
    struct vc_cancel cancel;
    struct vc_thread thread;
    int wake;                            /* eventfd */
    struct stat seen;                    /* [thread] the list when it was looked at */
    uint64_t looked_ns;                  /* [thread] when that was */
    bool again;                          /* [thread] something was in use */
    bool is_new;                         /* [thread] the list is another one than before */
    struct pending pending[MAX_PENDING]; /* [thread] */
    size_t n_pending;
};

/* ---- what is to be done ---- */

/* Whether the list has the holder by any of its names. */
static int is_listed(struct vc_rekeyer *k, const struct vc_holder *h, bool *listed,
                     struct vc_err *err)
{
    int rc = 0;

    *listed = false;
    for (unsigned i = 0; i < h->n_names && !*listed && !rc; i++)
        rc = vc_allow_lists(k->allow, h->names[i], listed, err);
    return rc;
}

/* Notes that these are on the list. A VM that is in use is looked at again. */
static void note_listed(struct vc_rekeyer *k, const struct vc_id *id, const struct vc_holder *h)
{
    struct vc_holder now = *h;
    struct vc_err err = VC_ERR_INIT;
    struct vc_lineage l;
    struct vc_vm *vm;
    int rc = vc_vm_open(k->store, id, VC_VM_WRITE, &vm, &err);

    if (rc == VC_NOT_FOUND)
        return;
    now.listed = true;
    if (!rc) {
        /* Not if it has got another lineage meanwhile. */
        if (vc_vm_lineage(vm, &l) && vc_id_equal(&l.id, &now.lineage))
            rc = vc_vm_share(vm, &now, &err);
        vc_wipe(&l, sizeof(l));
        vc_vm_close(vm);
    }
    if (rc)
        k->again = true;
}

/* Nobody is taken for gone by a part of its names. Said once for each list. */
static void warn_of_unknown(struct vc_rekeyer *k, struct vc_vm *vm, const struct vc_holder *h)
{
    char name[VC_ID_TEXT_BYTES];

    if (!k->is_new)
        return;
    vc_id_format(vc_vm_uuid(vm), name);
    vc_log(
        k->log, VC_LOG_WARNING,
        "%s: whether '%s' has left the list of peers is not known: its certificate has more than "
        "%d names, and the first ones are not on it (if it has: `vecycle rekey --forget %s`)",
        name, h->names[0], VC_HOLDER_NAMES, h->names[0]);
}

/* A name of a host that has left the list and has the VM's key; "": there is none. */
static int find_gone(struct vc_rekeyer *k, struct vc_vm *vm, char gone[256], struct vc_err *err)
{
    vc_auto_free struct vc_holder *h = NULL;
    size_t n = 0;
    int rc = vc_vm_holders(vm, &h, &n, err);

    gone[0] = 0;
    if (rc == VC_E_CORRUPT) {
        snprintf(gone, 256, "nobody knows who");
        return 0;
    }
    for (size_t i = 0; i < n && !rc; i++) {
        bool listed;

        rc = is_listed(k, &h[i], &listed, err);
        if (!rc && listed && !h[i].listed)
            note_listed(k, vc_vm_uuid(vm), &h[i]);
        if (!rc && !listed && h[i].listed && h[i].cut)
            warn_of_unknown(k, vm, &h[i]);
        else if (!rc && !listed && h[i].listed && !gone[0])
            snprintf(gone, 256, "%s", h[i].names[0]);
    }
    return rc;
}

/* ---- doing it ---- */

static struct pending *find_pending(struct vc_rekeyer *k, const struct vc_id *vm)
{
    for (size_t i = 0; i < k->n_pending; i++)
        if (vc_id_equal(&k->pending[i].vm, vm))
            return &k->pending[i];
    if (k->n_pending == MAX_PENDING)
        return NULL;
    k->pending[k->n_pending] = (struct pending){.vm = *vm};
    return &k->pending[k->n_pending++];
}

static void forget_pending(struct vc_rekeyer *k, const struct vc_id *vm)
{
    for (size_t i = 0; i < k->n_pending; i++)
        if (vc_id_equal(&k->pending[i].vm, vm))
            k->pending[i--] = k->pending[--k->n_pending];
}

static int dial(struct vc_rekeyer *k, const struct vc_rekey_peer *p, struct vc_conn **out,
                struct vc_err *err)
{
    struct vc_tls_options tls = vc_public_tls(k->tls, &k->cancel);
    struct vc_dial_options d = {.tls = &tls};

    tls.hostname = p->tls_hostname[0] ? p->tls_hostname : NULL;
    return vc_conn_dial(p->address, &d, out, err);
}

/* Whether one of a holder's names is that of the partner, and the list has the holder: an address
 * may be all that the checkpoint knows of it, and the list its name. */
static bool is_listed_holder(struct vc_rekeyer *k, struct vc_vm *vm, const char *host)
{
    vc_auto_free struct vc_holder *h = NULL;
    struct vc_err ignored = VC_ERR_INIT;
    size_t n = 0;
    bool listed;

    if (vc_vm_holders(vm, &h, &n, &ignored))
        return false;
    for (size_t i = 0; i < n; i++)
        for (unsigned j = 0; j < h[i].n_names; j++)
            if (vc_peer_matches(host, h[i].names[j]) && !is_listed(k, &h[i], &listed, &ignored) &&
                listed)
                return true;
    return false;
}

/* The other host of the checkpoint, if it stays in the pool and can be called. False: here alone.
 */
static bool has_partner(struct vc_rekeyer *k, struct vc_vm *vm, struct vc_rekey_peer *p)
{
    struct vc_err ignored = VC_ERR_INIT;
    char host[256];
    bool listed;

    if (vc_rekey_find_peer(vm, p, &ignored) || strncmp(p->address, "tls://", 6) != 0)
        return false;
    vc_holder_host(p->tls_hostname[0] ? p->tls_hostname : p->address, host);
    if (!vc_allow_lists(k->allow, host, &listed, &ignored) && listed)
        return true;
    return is_listed_holder(k, vm, host);
}

static int rekey(struct vc_rekeyer *k, const struct vc_id *id, const struct vc_rekey_peer *with,
                 struct vc_rekey_result *r, struct vc_err *err)
{
    struct vc_rekey_session s = {
        .store = k->store,
        .log = k->log,
        .cancel = &k->cancel,
        .vm = *id,
        .listed = true,
    };
    int rc = with ? dial(k, with, &s.conn, err) : 0;

    return rc ? rc : vc_session_rekey(&s, r, err);
}

/* Not with this partner, whatever one waits for. */
static bool is_final(int rc)
{
    return rc == VC_E_NO_SUCH_VM || rc == VC_E_VERSION || rc == VC_E_REFUSED ||
           rc == VC_E_PROTOCOL || rc == VC_E_CORRUPT || rc == VC_E_USAGE || rc == VC_E_FAILED;
}

static uint64_t wait_ns(unsigned looks)
{
    uint64_t s = looks < 16 ? (uint64_t)FIRST_WAIT_S << looks : LONGEST_WAIT_S;

    return VC_MIN(s, (uint64_t)LONGEST_WAIT_S) * VC_NS_PER_S;
}

static void rekey_for(struct vc_rekeyer *k, struct vc_vm *vm, const char *gone)
{
    struct pending *p = find_pending(k, vc_vm_uuid(vm));
    struct vc_rekey_result r = {0};
    struct vc_rekey_peer peer;
    struct vc_err err = VC_ERR_INIT;
    char name[VC_ID_TEXT_BYTES];
    bool with;
    int rc;

    if (!p || vc_now_ns() < p->next_ns)
        return;
    vc_id_format(vc_vm_uuid(vm), name);
    with = p->looks < PATIENCE && has_partner(k, vm, &peer);
    p->next_ns = vc_now_ns() + wait_ns(p->looks);
    if (p->looks++ < POLITE_LOOKS && with && !peer.asks)
        return;
    rc = rekey(k, vc_vm_uuid(vm), with ? &peer : NULL, &r, &err);
    if (with && is_final(rc)) {
        vc_log_err(k->log, VC_LOG_INFO, "the checkpoint is re-keyed here alone", &err);
        err = VC_ERR_INIT;
        rc = rekey(k, vc_vm_uuid(vm), NULL, &r, &err);
    }
    if (rc) {
        vc_err_prefix(&err, "%s", name);
        vc_log_err(k->log, p->looks == 1 ? VC_LOG_WARNING : VC_LOG_DEBUG, "not re-keyed yet", &err);
        return;
    }
    vc_log(k->log, VC_LOG_INFO,
           "%s: '%s' has left the list of peers and had its checkpoint's key: "
           "re-keyed%s%s%s",
           name, gone, r.peer[0] ? ", as is that of '" : ", here alone", r.peer,
           r.peer[0] ? "'" : "");
    forget_pending(k, vc_vm_uuid(vm));
}

/* False: the list cannot be read, and says nothing about anybody. */
static bool look_at(struct vc_rekeyer *k, const struct vc_id *id)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_vm *vm;
    char gone[256];
    int rc;

    if (vc_vm_open(k->store, id, VC_VM_READ, &vm, &err))
        return true;
    rc = find_gone(k, vm, gone, &err);
    if (!rc && gone[0])
        rekey_for(k, vm, gone);
    else if (!rc)
        forget_pending(k, id);
    vc_vm_close(vm);
    return rc != VC_E_REFUSED;
}

static void look_at_all(struct vc_rekeyer *k)
{
    vc_auto_free struct vc_id *ids = NULL;
    struct vc_err err = VC_ERR_INIT;
    size_t n = 0;

    if (vc_allow_check(k->allow, &err)) {
        vc_log_err(k->log, VC_LOG_WARNING, "who has left the pool cannot be told", &err);
        return;
    }
    if (vc_store_list(k->store, &ids, &n, &err))
        return;
    for (size_t i = 0; i < n && !vc_cancel_is_set(&k->cancel); i++)
        if (!look_at(k, &ids[i]))
            return;
}

/* ---- when ---- */

static bool is_same(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/* 1: another list than at the last look; 0: the same; -1: it is not there, or just being written.
 */
static int look_at_list(struct vc_rekeyer *k)
{
    struct stat now;
    uint64_t wall = vc_wall_s();

    if (stat(k->allow, &now) < 0)
        return -1;
    if ((uint64_t)now.st_mtim.tv_sec <= wall && wall - (uint64_t)now.st_mtim.tv_sec < SETTLE_S)
        return -1;
    if (is_same(&now, &k->seen))
        return 0;
    k->seen = now;
    return 1;
}

static bool is_due(const struct vc_rekeyer *k)
{
    uint64_t now = vc_now_ns();

    if (now - k->looked_ns >= LOOK_ANYHOW_S * VC_NS_PER_S)
        return true;
    for (size_t i = 0; i < k->n_pending; i++)
        if (now >= k->pending[i].next_ns)
            return true;
    return false;
}

static void *rekeyer_main(void *arg)
{
    struct vc_rekeyer *k = arg;
    uint64_t n;

    k->again = true;
    while (!vc_cancel_is_set(&k->cancel)) {
        struct pollfd p[2] = {
            {.fd = k->wake, .events = POLLIN},
            {.fd = k->cancel.fd, .events = POLLIN},
        };
        int changed = look_at_list(k);

        if (changed > 0 || (changed == 0 && (k->again || is_due(k)))) {
            k->again = false;
            k->is_new = changed > 0;
            k->looked_ns = vc_now_ns();
            look_at_all(k);
        }
        if (poll(p, 2, LOOK_MS) > 0 && p[0].revents && read(k->wake, &n, sizeof(n)) > 0)
            k->again = true;
    }
    return NULL;
}

int vc_rekeyer_start(struct vc_store *store, const char *allow, const struct vc_log *log,
                     const struct vecycle_tls *tls, struct vc_rekeyer **out, struct vc_err *err)
{
    struct vc_rekeyer *k = calloc(1, sizeof(*k));
    int rc;

    if (!k)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a thread");
    k->store = store;
    k->allow = allow;
    k->log = log;
    k->tls = tls;
    k->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    k->cancel.fd = -1;
    rc = k->wake < 0 ? vc_err_set_errno(err, VC_E_FAILED, "cannot make an eventfd")
                     : vc_cancel_init(&k->cancel, err);
    if (!rc)
        rc = vc_thread_start(&k->thread, "vc-rekey", rekeyer_main, k, err);
    if (rc)
        vc_rekeyer_stop(k);
    else
        *out = k;
    return rc;
}

void vc_rekeyer_poke(struct vc_rekeyer *k)
{
    uint64_t one = 1;

    if (k && write(k->wake, &one, sizeof(one)) < 0) {
        /* Full means: awake already. */
    }
}

void vc_rekeyer_stop(struct vc_rekeyer *k)
{
    if (!k)
        return;
    if (k->cancel.fd >= 0)
        vc_cancel_now(&k->cancel);
    vc_thread_join(&k->thread);
    vc_cancel_fini(&k->cancel);
    if (k->wake >= 0)
        close(k->wake);
    free(k);
}
