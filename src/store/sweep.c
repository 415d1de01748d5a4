/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>

#include "base/durable.h"
#include "store/internal.h"

/* Deleting what nothing refers to. Only the manifest, and the transaction in progress, refer. */

struct keep {
    size_t n;
    char names[VC_STORE_MAX_GENERATIONS * (VC_STORE_MAX_LAYERS + 1) + 2][VC_NAME_BYTES];
};

static void keep_all(const struct vc_vm *vm, struct keep *k)
{
    for (size_t i = 0; i < vm->m.n_gens; i++) {
        const struct vc_entry *e = &vm->m.gens[i];

        vc_store_file_name(k->names[k->n++], &e->index, ".index");
        for (uint32_t l = 0; l < e->info.n_layers; l++)
            vc_layer_name(k->names[k->n++], &e->layers[l]);
    }
    if (vm->txn) {
        vc_txn_names(vm->txn, k->names[k->n], k->names[k->n + 1]);
        k->n += 2;
    }
}

/* A file that is written without the VM's lock is locked itself. */
static bool is_dead_tmp(struct vc_vm *vm, const char *name)
{
    vc_auto_close int fd = vm->store->io->open(vm->store->io, vm->dir_fd, name, O_RDONLY);

    return fd < 0 ? vc_io_is_odd(errno) : flock(fd, LOCK_EX | LOCK_NB) == 0;
}

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), k = strlen(end);

    return n > k && !strcmp(name + n - k, end);
}

static bool is_garbage(struct vc_vm *vm, const struct keep *k, const char *name)
{
    struct vc_id id;

    for (size_t i = 0; i < k->n; i++)
        if (!strcmp(name, k->names[i]))
            return false;
    if (ends_with(name, ".tmp"))
        return is_dead_tmp(vm, name);
    return ends_with(name, ".new") || vc_store_parse_name(name, &id);
}

/* Errors leave garbage behind, for the next time. */
static void sweep(struct vc_vm *vm, const struct keep *k, bool synced)
{
    const struct vc_io *io = vm->store->io;
    int fd = openat(vm->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *e;

    if (!d)
        return;
    while ((e = readdir(d))) {
        if (!is_garbage(vm, k, e->d_name))
            continue;
        /* The manifest that was read may not be on the disk yet, and the one before need these. */
        if (!synced && vc_durable_sync_dir(io, vm->dir_fd, "the VM's directory", NULL))
            break;
        synced = true;
        if (vc_durable_clear(io, vm->dir_fd, e->d_name) < 0)
            continue;
    }
    closedir(d);
}

void vc_vm_sweep(struct vc_vm *vm, bool synced)
{
    vc_auto_free struct keep *k = calloc(1, sizeof(*k));

    if (!k || vm->in_doubt)
        return;
    keep_all(vm, k);
    sweep(vm, k, synced);
}

int vc_vm_remove(struct vc_vm *vm, struct vc_err *err)
{
    const struct vc_io *io = vm->store->io;
    vc_auto_free struct keep *none = calloc(1, sizeof(*none));
    char name[VC_ID_TEXT_BYTES];
    int rc;

    if (!none)
        return vc_err_set(err, VC_E_NOMEM, "no memory to remove a VM");
    vc_id_format(&vm->uuid, name);
    vm->m.n_gens = 0;
    vm->m.has_lineage = false;
    /* The manifest first, and for good: without it nothing else is believed. */
    if (vc_durable_clear(io, vm->dir_fd, "manifest") < 0)
        return vc_vm_blame(vm, vc_store_errno(err, "remove", "manifest"), err);
    rc = vc_durable_sync_dir(io, vm->dir_fd, name, err);
    if (rc)
        return rc;
    sweep(vm, none, true);
    if (vc_durable_clear(io, vm->dir_fd, "handover") < 0 ||
        vc_durable_clear(io, vm->dir_fd, "age") < 0 ||
        vc_durable_clear(io, vm->dir_fd, "holders") < 0)
        return vc_vm_blame(vm, vc_store_errno(err, "remove", "handover, age and holders"), err);
    io->unlink(io, vm->dir_fd, "lock", 0);
    if (io->unlink(io, vm->store->vms_fd, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
        return vc_vm_blame(vm, vc_store_errno(err, "remove", name), err);
    return vc_durable_sync_dir(io, vm->store->vms_fd, "vms", err);
}

int vc_vm_drop(struct vc_vm *vm, struct vc_err *err)
{
    static const struct vc_manifest empty;
    int rc = vc_manifest_switch(vm, &empty, err);

    if (!rc)
        vc_vm_sweep(vm, true);
    return vc_vm_blame(vm, rc, err);
}
