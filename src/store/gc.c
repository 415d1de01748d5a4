/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "store/forget.h"

/* Theory of operation
 *
 * First a look at all VMs without a lock: what they take, how old they are, which policy they have.
 * Then the limits are gone through in the order of docs/formats/store.md section 7, and a VM that
 * one of them demands is locked, looked at again, and evicted; the sums follow. A dry run does the
 * same sums without locking. What somebody is using is skipped, and so is what cannot be read:
 * deleting needs to be sure, keeping does not. */

struct candidate {
    struct vc_id id;
    struct vc_id gen; /* newest complete one, else the partial one, or zero */
    bool partial;     /* it is the partial one */
    char peer[128];
    char account[256]; /* of the host that the peer is, under whatever address */
    uint64_t bytes, age_s;
    enum vc_policy policy;
    bool in_use, damaged;
    bool keep; /* not to be judged */
    bool gone;
};

struct gc {
    struct vc_store *s;
    const struct vc_gc_options *o;
    struct vc_gc_env env;
    struct vc_limits limits;
    struct candidate *c; /* in the order in which they go */
    size_t n;
    struct vc_gc_result *out;
};

/* ---- looking ---- */

/* Bytes allocated by a VM's files, and when the newest of them was changed. */
static void measure(int dir_fd, uint64_t *bytes, uint64_t *newest_s)
{
    int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *e;
    struct stat st;

    *bytes = *newest_s = 0;
    if (!d) {
        if (fd >= 0)
            close(fd);
        return;
    }
    while ((e = readdir(d))) {
        if (fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode))
            continue;
        *bytes += (uint64_t)st.st_blocks * 512;
        if (strcmp(e->d_name, "age") != 0)
            *newest_s = VC_MAX(*newest_s, (uint64_t)VC_MAX(st.st_mtime, 0));
    }
    closedir(d);
}

/* An open descriptor of the VM's lock, held; -1: somebody else has it, or there is none. */
static int try_lock(const struct vc_io *io, int dir_fd, bool *in_use)
{
    vc_auto_close int fd = io->open(io, dir_fd, "lock", O_RDWR);

    *in_use = false;
    if (fd < 0)
        return -1;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        *in_use = errno == EWOULDBLOCK || errno == EINTR;
        return -1;
    }
    return vc_steal_fd(&fd);
}

/* What a VM is judged by; NULL: it has nothing. */
static const struct vc_gen_info *newest_gen(const struct vc_vm *vm)
{
    const struct vc_gen_info *complete = vc_vm_complete(vm);

    return complete ? complete : vc_vm_partial(vm);
}

static void look_at_age(struct gc *g, struct candidate *c, int dir_fd, uint64_t created_s)
{
    struct vc_age noted, now;
    bool have = vc_age_read(dir_fd, &noted) == 0, in_use;
    vc_auto_close int lock = -1;

    /* A record alone takes no room, and the other host may still ask for it: its age is counted
     * from the first look on, and not by a clock that may have jumped. */
    if (vc_id_is_nil(&c->gen) && !(have && vc_id_is_nil(&noted.gen)))
        created_s = g->env.wall_s;
    now = vc_age_at(have ? &noted : NULL, &c->gen, created_s, &g->env);
    c->age_s = now.age_s;
    lock = try_lock(g->s->io, dir_fd, &in_use);
    c->in_use = in_use;
    /* Without the note, which says more than the clock can, the next look knows less: no harm. */
    if (lock >= 0 && !g->o->dry_run && vc_age_worth_noting(have ? &noted : NULL, &now) &&
        vc_age_write(g->s->io, dir_fd, &now, NULL))
        vc_log(g->o->log, VC_LOG_DEBUG, "the age of a checkpoint is not noted");
}

/* VC_NOT_FOUND: it is gone. */
static int look(struct gc *g, const struct vc_id *id, struct candidate *c)
{
    struct vc_err err = VC_ERR_INIT;
    vc_auto_close int dir_fd = -1;
    char name[VC_ID_TEXT_BYTES];
    const struct vc_gen_info *gen = NULL;
    struct vc_vm *vm = NULL;
    uint64_t newest;
    int rc;

    *c = (struct candidate){.id = *id};
    vc_id_format(id, name);
    dir_fd = openat(g->s->vms_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (dir_fd < 0 && errno != ENOENT) {
        vc_store_open_errno(&err, name);
        vc_err_prefix(&err, "%.160s/vms", g->s->root);
        vc_log_err(g->o->log, VC_LOG_WARNING, "a VM gets no reuse", &err);
    }
    if (dir_fd < 0)
        return VC_NOT_FOUND;
    measure(dir_fd, &c->bytes, &newest);
    rc = vc_vm_open(g->s, id, VC_VM_READ, &vm, &err);
    if (rc == VC_NOT_FOUND)
        return rc;
    c->damaged = rc == VC_E_CORRUPT;
    if (!rc)
        gen = newest_gen(vm);
    if (gen) {
        c->gen = gen->id;
        c->partial = gen->partial;
        newest = gen->created_unix;
        snprintf(c->peer, sizeof(c->peer), "%s", gen->peer);
        vc_vm_account(vm, gen->peer, c->account);
    }
    look_at_age(g, c, dir_fd, newest);
    if (g->o->as_idle && vc_id_equal(g->o->as_idle, id))
        c->in_use = false;
    if (!rc && c->in_use) /* what is being written does not count */
        c->bytes = gen ? VC_MIN(gen->disk_bytes, c->bytes) : 0;
    vc_vm_close(vm);
    if (!rc || c->damaged)
        rc = vc_policy_get(g->s, id, &c->policy, &err);
    if (rc) {
        c->keep = true;
        vc_log_err(g->o->log, VC_LOG_WARNING, name, &err);
    }
    return 0;
}

/* What an unfinished migration left goes before any checkpoint, then the oldest. */
static int order(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;

    if (x->partial != y->partial)
        return x->partial ? -1 : 1;
    if (x->age_s != y->age_s)
        return x->age_s > y->age_s ? -1 : 1;
    return memcmp(x->id.b, y->id.b, sizeof(x->id.b));
}

static bool stopped(const struct gc *g)
{
    return g->o->stop && atomic_load(g->o->stop);
}

static int look_at_all(struct gc *g, struct vc_err *err)
{
    vc_auto_free struct vc_id *ids = NULL;
    size_t n = 0;
    int rc = vc_store_list(g->s, &ids, &n, err);

    if (rc)
        return rc;
    g->c = calloc(n + 1, sizeof(*g->c));
    if (!g->c)
        return vc_err_set(err, VC_E_NOMEM, "no memory for %zu VMs", n);
    for (size_t i = 0; i < n && !stopped(g); i++)
        if (look(g, &ids[i], &g->c[g->n]) == 0) {
            g->out->used_bytes += g->c[g->n].bytes;
            g->out->n_in_use += g->c[g->n].in_use;
            g->n++;
        }
    qsort(g->c, g->n, sizeof(*g->c), order);
    return 0;
}

/* ---- evicting ---- */

static bool is_open(struct vc_vm *vm)
{
    struct vc_handover h;

    return vc_handover_get(vm, &h, NULL) != 0 ||
           (h.state != VC_HANDOVER_NONE && h.state != VC_HANDOVER_SETTLED &&
            h.state != VC_HANDOVER_VOID);
}

/* 0; VC_AGAIN: it is in use, or was renewed since we looked; VC_NOT_FOUND: gone. */
static int evict_locked(struct gc *g, const struct candidate *c, struct vc_err *err)
{
    const struct vc_gen_info *gen;
    struct vc_vm *vm;
    int rc = vc_vm_open(g->s, &c->id, VC_VM_WRITE, &vm, err);

    if (rc == VC_E_CORRUPT && c->damaged)
        rc = vc_vm_open(g->s, &c->id, VC_VM_CREATE, &vm, err);
    if (rc)
        return rc == VC_E_BUSY ? VC_AGAIN : rc;
    gen = newest_gen(vm);
    if (gen && !vc_id_equal(&gen->id, &c->gen))
        rc = VC_AGAIN;
    else
        rc = is_open(vm) ? vc_vm_drop(vm, err) : vc_vm_remove(vm, err);
    vc_vm_close(vm);
    return rc;
}

static void evict(struct gc *g, struct candidate *c, enum vc_gc_why why)
{
    struct vc_gc_item item = {c->id, why, c->bytes, c->age_s, c->peer};
    struct vc_err err = VC_ERR_INIT;
    int rc = g->o->dry_run ? 0 : evict_locked(g, c, &err);

    c->keep = rc != 0;
    c->gone = rc == 0;
    if (rc == VC_AGAIN)
        g->out->n_in_use++;
    if (rc < 0)
        vc_log_err(g->o->log, VC_LOG_WARNING, "a checkpoint cannot be dropped", &err);
    if (rc)
        return;
    g->out->n_evicted++;
    g->out->evicted_bytes += c->bytes;
    g->out->used_bytes -= c->bytes;
    g->out->free_bytes += c->bytes;
    if (g->o->report)
        g->o->report(g->o->opaque, &item);
}

static bool may_touch(const struct gc *g, const struct candidate *c)
{
    return !c->keep && !c->gone && !c->in_use && !stopped(g);
}

static bool has_content(const struct candidate *c)
{
    return c->damaged || !vc_id_is_nil(&c->gen);
}

/* Whether it may go to make room for others. */
static bool may_evict(const struct gc *g, const struct candidate *c)
{
    return may_touch(g, c) && has_content(c) && c->policy == VC_POLICY_NORMAL;
}

static void evict_for_itself(struct gc *g, struct candidate *c)
{
    const struct vc_limits *l = &g->limits;

    if (may_touch(g, c) && has_content(c) && c->policy == VC_POLICY_NEVER)
        evict(g, c, VC_GC_POLICY);
    else if (may_touch(g, c) && c->policy != VC_POLICY_PINNED && c->age_s > l->max_age_s)
        evict(g, c, VC_GC_AGE);
    else if (may_evict(g, c) && *c->account && c->bytes > l->peer_quota_bytes)
        evict(g, c, VC_GC_PEER_QUOTA);
    else if (may_evict(g, c) && c->bytes > l->quota_bytes)
        evict(g, c, VC_GC_QUOTA);
}

static uint64_t used_by_peer(const struct gc *g, const char *account)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < g->n; i++)
        if (!g->c[i].gone && !strcasecmp(g->c[i].account, account))
            sum += g->c[i].bytes;
    return sum;
}

static void evict_for_peers(struct gc *g)
{
    for (size_t i = 0; i < g->n && g->limits.peer_quota_bytes != VC_UNLIMITED; i++) {
        struct candidate *c = &g->c[i];

        if (*c->account && may_evict(g, c) &&
            used_by_peer(g, c->account) > g->limits.peer_quota_bytes)
            evict(g, c, VC_GC_PEER_QUOTA);
    }
}

static void evict_for_store(struct gc *g)
{
    const struct vc_gc_result *r = g->out;

    for (size_t i = 0; i < g->n && r->used_bytes > g->limits.quota_bytes; i++)
        if (may_evict(g, &g->c[i]))
            evict(g, &g->c[i], VC_GC_QUOTA);
    for (size_t i = 0; i < g->n && r->free_bytes < g->limits.reserve_bytes; i++)
        if (may_evict(g, &g->c[i]))
            evict(g, &g->c[i], VC_GC_RESERVE);
}

int vc_store_gc(struct vc_store *s, const struct vc_gc_options *o, struct vc_gc_result *out,
                struct vc_err *err)
{
    struct gc g = {.s = s, .o = o, .out = out};
    vc_auto_close int lock = -1;
    int rc = vc_store_lock(s, VC_STORE_LOCK_WAIT_MS, &lock, err);

    *out = (struct vc_gc_result){0};
    if (rc)
        return rc;
    if (o->env)
        g.env = *o->env;
    else
        vc_gc_env_now(&g.env, s->vms_fd);
    rc = look_at_all(&g, err);
    if (rc)
        return rc;
    out->n_vms = g.n;
    out->free_bytes = g.env.free_bytes;
    g.limits = vc_limits_resolve(&s->limits, out->used_bytes, &g.env);
    for (size_t i = 0; i < g.n; i++)
        evict_for_itself(&g, &g.c[i]);
    evict_for_peers(&g);
    evict_for_store(&g);
    out->quota_bytes = g.limits.quota_bytes;
    out->reserve_bytes = g.limits.reserve_bytes;
    out->over = out->used_bytes > out->quota_bytes || out->free_bytes < out->reserve_bytes;
    free(g.c);
    return 0;
}
