/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/durable.h"
#include "store/internal.h"

/** How long to wait for those who hold the lock only for a moment (folding, forgetting).
 */
#define LOCK_WAIT_MS 3000

/* 0, VC_E_BUSY, VC_E_STORE; VC_NOT_FOUND: the directory was removed meanwhile. */
static int lock(struct vc_vm *vm, const char *name, struct vc_err *err)
{
    uint64_t deadline = vc_now_ns() + LOCK_WAIT_MS * VC_NS_PER_MS;
    struct stat st;

    vm->lock_fd = openat(vm->dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (vm->lock_fd < 0)
        return errno == ENOENT ? VC_NOT_FOUND : vc_store_errno(err, "open the lock of", name);
    while (flock(vm->lock_fd, LOCK_EX | LOCK_NB) < 0) {
        if (vc_now_ns() >= deadline)
            return vc_err_set_hint(err, VC_E_BUSY, "wait for the other migration to end",
                                   "VM '%s' is in use by another session", name);
        poll(NULL, 0, 10);
    }
    /* Who removes a VM unlinks the lock while holding it. */
    return fstat(vm->lock_fd, &st) < 0 || st.st_nlink == 0 ? VC_NOT_FOUND : 0;
}

static int open_dir(struct vc_vm *vm, enum vc_vm_open mode, const char *name, struct vc_err *err)
{
    struct vc_store *s = vm->store;

    if (mode == VC_VM_CREATE) {
        if (mkdirat(s->vms_fd, name, 0700) == 0) {
            int rc = vc_durable_sync_dir(s->vms_fd, "vms", err);

            if (rc)
                return rc;
        } else if (errno != EEXIST) {
            return vc_store_errno(err, "create", name);
        }
    }
    vm->dir_fd = openat(s->vms_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (vm->dir_fd < 0)
        return errno == ENOENT ? VC_NOT_FOUND : vc_store_errno(err, "open", name);
    return 0;
}

static int load(struct vc_vm *vm, enum vc_vm_open mode, struct vc_err *err)
{
    int rc = vc_manifest_read(vm, err);

    if (rc == VC_NOT_FOUND)
        return 0;
    if (rc == VC_E_CORRUPT && mode == VC_VM_CREATE) {
        vm->has_lineage = false;
        vm->n_gens = 0;
        vm->was_reset = true;
        return vc_manifest_write(vm, err);
    }
    return rc;
}

static void close_fds(struct vc_vm *vm)
{
    if (vm->handover_fd >= 0)
        close(vm->handover_fd);
    if (vm->lock_fd >= 0)
        close(vm->lock_fd);
    if (vm->dir_fd >= 0)
        close(vm->dir_fd);
    vm->handover_fd = vm->lock_fd = vm->dir_fd = -1;
}

int vc_vm_open(struct vc_store *s, const struct vc_id *uuid, enum vc_vm_open mode,
               struct vc_vm **out, struct vc_err *err)
{
    struct vc_vm *vm = calloc(1, sizeof(*vm));
    char name[VC_ID_TEXT_BYTES];
    int rc;

    if (!vm)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a VM");
    vm->store = s;
    vm->uuid = *uuid;
    vm->dir_fd = vm->lock_fd = vm->handover_fd = -1;
    vc_id_format(uuid, name);
    do {
        close_fds(vm);
        rc = open_dir(vm, mode, name, err);
        if (!rc && mode != VC_VM_READ)
            rc = lock(vm, name, err);
    } while (rc == VC_NOT_FOUND && mode == VC_VM_CREATE);
    if (!rc)
        rc = load(vm, mode, err);
    if (rc) {
        vc_vm_close(vm);
        return rc;
    }
    if (mode != VC_VM_READ)
        vc_vm_sweep(vm);
    *out = vm;
    return 0;
}

void vc_vm_close(struct vc_vm *vm)
{
    if (!vm)
        return;
    close_fds(vm);
    vc_wipe(&vm->lineage, sizeof(vm->lineage));
    free(vm);
}

const struct vc_id *vc_vm_uuid(const struct vc_vm *vm)
{
    return &vm->uuid;
}

bool vc_vm_was_reset(const struct vc_vm *vm)
{
    return vm->was_reset;
}

/* ---- sweeping ---- */

struct keep {
    size_t n;
    char names[VC_STORE_MAX_GENERATIONS * (VC_STORE_MAX_LAYERS + 1)][VC_NAME_BYTES];
};

/* The files of a generation; false if its index cannot be read, so that nothing may be judged. */
static bool keep_generation(struct vc_vm *vm, const struct vc_id *id, struct keep *k)
{
    struct vc_gen *g;

    vc_store_file_name(k->names[k->n++], id, ".index");
    if (vc_gen_open(vm, id, &g, NULL))
        return false;
    for (uint32_t i = 0; i < g->index.n_layers; i++)
        vc_store_file_name(k->names[k->n++], &g->index.layers[i].id,
                           vc_layer_suffix(g->index.layers[i].kind));
    vc_gen_close(g);
    return true;
}

static bool is_ours(const char *name)
{
    const char *dot = strchr(name, '.');

    return dot && (!strcmp(dot, ".index") || !strcmp(dot, ".image") || !strcmp(dot, ".delta") ||
                   !strcmp(dot, ".index.new"));
}

/* A file being written by a fold is locked by it. */
static bool is_dead_tmp(struct vc_vm *vm, const char *name)
{
    size_t n = strlen(name);
    vc_auto_close int fd = -1;

    if (n < 4 || strcmp(name + n - 4, ".tmp") != 0)
        return false;
    fd = openat(vm->dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    return fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0;
}

static void sweep_dir(struct vc_vm *vm, const struct keep *k)
{
    int fd = openat(vm->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *e;

    if (!d)
        return;
    while ((e = readdir(d))) {
        bool kept = false;

        for (size_t i = 0; i < k->n; i++)
            kept |= !strcmp(e->d_name, k->names[i]);
        if (!kept && (is_ours(e->d_name) || is_dead_tmp(vm, e->d_name)))
            unlinkat(vm->dir_fd, e->d_name, 0);
    }
    closedir(d);
}

void vc_vm_sweep(struct vc_vm *vm)
{
    vc_auto_free struct keep *k = calloc(1, sizeof(*k));

    if (!k)
        return;
    for (size_t i = 0; i < vm->n_gens; i++)
        if (!keep_generation(vm, &vm->gens[i].id, k))
            return;
    sweep_dir(vm, k);
}

int vc_vm_remove(struct vc_vm *vm, struct vc_err *err)
{
    struct keep none = {0};
    char name[VC_ID_TEXT_BYTES];
    int rc;

    vc_id_format(&vm->uuid, name);
    vm->n_gens = 0;
    vm->has_lineage = false;
    /* The manifest first, and for good: without it nothing else is believed. */
    if (unlinkat(vm->dir_fd, "manifest", 0) < 0 && errno != ENOENT)
        return vc_store_errno(err, "remove", "manifest");
    rc = vc_durable_sync_dir(vm->dir_fd, name, err);
    if (rc)
        return rc;
    sweep_dir(vm, &none);
    unlinkat(vm->dir_fd, "handover", 0);
    unlinkat(vm->dir_fd, "age", 0);
    unlinkat(vm->dir_fd, "lock", 0);
    if (unlinkat(vm->store->vms_fd, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
        return vc_store_errno(err, "remove", name);
    return vc_durable_sync_dir(vm->store->vms_fd, "vms", err);
}

int vc_vm_drop(struct vc_vm *vm, struct vc_err *err)
{
    int rc;

    vm->n_gens = 0;
    vm->has_lineage = false;
    vc_wipe(&vm->lineage, sizeof(vm->lineage));
    rc = vc_manifest_write(vm, err);
    if (!rc)
        vc_vm_sweep(vm);
    return rc;
}

/* ---- lineage and generations ---- */

bool vc_vm_lineage(const struct vc_vm *vm, struct vc_lineage *out)
{
    if (vm->has_lineage)
        *out = vm->lineage;
    return vm->has_lineage;
}

int vc_vm_set_lineage(struct vc_vm *vm, const struct vc_lineage *l, struct vc_err *err)
{
    bool same = vm->has_lineage && vc_id_equal(&vm->lineage.id, &l->id);
    int rc;

    if (same && vm->lineage.exposed == l->exposed)
        return 0;
    if (!same)
        vm->n_gens = 0;
    vm->has_lineage = true;
    vm->lineage = *l;
    rc = vc_manifest_write(vm, err);
    if (!rc)
        vc_vm_sweep(vm);
    return rc;
}

size_t vc_vm_n_generations(const struct vc_vm *vm)
{
    return vm->n_gens;
}

const struct vc_gen_info *vc_vm_generation(const struct vc_vm *vm, size_t i)
{
    return &vm->gens[i];
}

int vc_vm_confirm(struct vc_vm *vm, const struct vc_id *gen, struct vc_err *err)
{
    for (size_t i = 0; i < vm->n_gens; i++) {
        if (!vc_id_equal(&vm->gens[i].id, gen))
            continue;
        vm->gens[i].confirmed = true;
        return vc_manifest_write(vm, err);
    }
    return vc_err_set(err, VC_E_STORE, "no such generation");
}
