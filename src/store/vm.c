/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/durable.h"
#include "store/internal.h"

/** How long to wait for those who hold the lock only for a moment (folding, forgetting). */
#define LOCK_WAIT_MS 3000
/** The same for the lock of the store, which may be our own: whoever evicts holds it. */
#define CLEAR_WAIT_MS 200

/* What is neither file nor directory has a name of ours: it is unlinked, under the store's lock, so
 * that nobody takes away what another one has just put in its place. A directory where the lock
 * belongs goes too, but not with anything in it. False: that could not be done. */
static bool clear_odd(struct vc_vm *vm, int dir_fd, const char *name, bool is_dir)
{
    vc_auto_close int store = -1;
    struct vc_err busy = VC_ERR_INIT;
    struct stat st;

    if (vc_store_lock(vm->store, CLEAR_WAIT_MS, &store, &busy))
        return false;
    if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT;
    if (is_dir ? S_ISDIR(st.st_mode) : S_ISREG(st.st_mode))
        return true;
    return vc_durable_clear(vm->store->io, dir_fd, name) == 0;
}

static int open_lock(struct vc_vm *vm)
{
    const struct vc_io *io = vm->store->io;
    int fd = io->open(io, vm->dir_fd, "lock", O_RDWR | O_CREAT), saved = errno;

    if (fd >= 0 || !vc_io_is_odd(errno) || !clear_odd(vm, vm->dir_fd, "lock", false)) {
        errno = saved;
        return fd;
    }
    return io->open(io, vm->dir_fd, "lock", O_RDWR | O_CREAT);
}

/* Whether who has the lock may be settling the VM. */
static bool may_be_settled(struct vc_vm *vm)
{
    struct vc_err ignored = VC_ERR_INIT;
    struct vc_handover h;

    return !vc_handover_get(vm, &h, &ignored) &&
           (h.state == VC_HANDOVER_LEFT || h.state == VC_HANDOVER_KEPT);
}

/* Whether to go on waiting for the lock. */
static bool may_wait(struct vc_vm *vm, uint64_t begin_ns, uint64_t wait_ms)
{
    uint64_t waited_ms = (vc_now_ns() - begin_ns) / VC_NS_PER_MS;

    return waited_ms < wait_ms || (wait_ms && waited_ms < VC_VM_SETTLED_MS && may_be_settled(vm));
}

/* 0, VC_E_BUSY, VC_E_CORRUPT, VC_E_STORE; VC_NOT_FOUND: the directory was removed meanwhile. */
static int lock(struct vc_vm *vm, const char *name, uint64_t wait_ms, struct vc_err *err)
{
    uint64_t begin_ns = vc_now_ns();
    char path[VC_PATH_BYTES];
    struct stat st;

    vm->lock_fd = open_lock(vm);
    if (vm->lock_fd < 0)
        return errno == ENOENT ? VC_NOT_FOUND : vc_vm_open_errno(vm, "lock", err);
    while (flock(vm->lock_fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK && errno != EINTR) {
            int saved = errno;

            vc_store_path(vm, "lock", path);
            errno = saved;
            return vc_lock_errno(err, path);
        }
        if (!may_wait(vm, begin_ns, wait_ms))
            return vc_err_set_hint(err, VC_E_BUSY, "wait for the other migration to end",
                                   "VM '%s' is in use by another session", name);
        poll(NULL, 0, 10);
    }
    /* Who removes a VM unlinks the lock while holding it: nobody else would see ours. */
    return fstat(vm->lock_fd, &st) < 0 || st.st_nlink == 0 ? VC_NOT_FOUND : 0;
}

static int make_dir(struct vc_vm *vm, const char *name)
{
    const struct vc_io *io = vm->store->io;

    return io->mkdir(io, vm->store->vms_fd, name) < 0 && errno != EEXIST ? -1 : 0;
}

static int open_dir(struct vc_vm *vm, enum vc_vm_open mode, const char *name, struct vc_err *err)
{
    const struct vc_io *io = vm->store->io;
    int vms = vm->store->vms_fd;

    if (mode == VC_VM_CREATE && make_dir(vm, name) < 0)
        return vc_store_errno(err, "create", name);
    vm->dir_fd = io->open(io, vms, name, O_RDONLY | O_DIRECTORY);
    if (vm->dir_fd < 0 && mode == VC_VM_CREATE && vc_io_is_odd(errno) &&
        clear_odd(vm, vms, name, true) && make_dir(vm, name) == 0)
        vm->dir_fd = io->open(io, vms, name, O_RDONLY | O_DIRECTORY);
    if (vm->dir_fd < 0)
        return errno == ENOENT ? VC_NOT_FOUND : vc_vm_open_errno(vm, "", err);
    return 0;
}

static int load(struct vc_vm *vm, enum vc_vm_open mode, struct vc_err *err)
{
    static const struct vc_manifest empty;
    int rc = vc_manifest_read(vm, err);

    /* As long as nothing has been committed, the directory itself may not be on the disk yet. */
    if (rc == VC_NOT_FOUND)
        return mode == VC_VM_READ
                   ? 0
                   : vc_durable_sync_dir(vm->store->io, vm->store->vms_fd, "vms", err);
    if (rc == VC_E_CORRUPT && mode == VC_VM_CREATE) {
        vm->was_reset = true;
        return vc_manifest_switch(vm, &empty, err);
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
            rc = lock(vm, name, mode == VC_VM_TRY ? 0 : LOCK_WAIT_MS, err);
    } while (rc == VC_NOT_FOUND && mode == VC_VM_CREATE);
    if (!rc)
        rc = load(vm, mode, err);
    if (!rc && mode != VC_VM_READ)
        rc = vc_vm_recover(vm, err);
    if (rc) {
        vc_vm_blame(vm, rc, err);
        vc_vm_close(vm);
        return rc;
    }
    if (mode != VC_VM_READ)
        vc_vm_sweep(vm, false);
    *out = vm;
    return 0;
}

void vc_vm_close(struct vc_vm *vm)
{
    if (!vm)
        return;
    close_fds(vm);
    vc_wipe(&vm->m.lineage, sizeof(vm->m.lineage));
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

/* ---- lineage and generations ---- */

bool vc_vm_lineage(const struct vc_vm *vm, struct vc_lineage *out)
{
    if (vm->m.has_lineage)
        *out = vm->m.lineage;
    return vm->m.has_lineage;
}

int vc_vm_set_lineage(struct vc_vm *vm, const struct vc_lineage *l, struct vc_err *err)
{
    bool same = vm->m.has_lineage && vc_id_equal(&vm->m.lineage.id, &l->id);
    struct vc_manifest m = vm->m;
    int rc;

    if (same && vm->m.lineage.exposed == l->exposed)
        return 0;
    if (!same)
        m.n_gens = 0;
    m.has_lineage = true;
    m.lineage = *l;
    rc = vc_manifest_switch(vm, &m, err);
    vc_wipe(&m.lineage, sizeof(m.lineage));
    if (!rc)
        vc_vm_sweep(vm, true);
    return vc_vm_blame(vm, rc, err);
}

size_t vc_vm_n_generations(const struct vc_vm *vm)
{
    return vm->m.n_gens;
}

const struct vc_gen_info *vc_vm_generation(const struct vc_vm *vm, size_t i)
{
    return &vm->m.gens[i].info;
}

const struct vc_gen_info *vc_vm_complete(const struct vc_vm *vm)
{
    return vm->m.n_gens && !vm->m.gens[0].info.partial ? &vm->m.gens[0].info : NULL;
}

const struct vc_gen_info *vc_vm_partial(const struct vc_vm *vm)
{
    size_t n = vm->m.n_gens;

    return n && vm->m.gens[n - 1].info.partial ? &vm->m.gens[n - 1].info : NULL;
}

int vc_vm_confirm(struct vc_vm *vm, const struct vc_id *gen, struct vc_err *err)
{
    struct vc_manifest m = vm->m;
    struct vc_entry *e = vc_manifest_find(&m, gen);
    int rc;

    if (!e || e->info.partial)
        return vc_err_set(err, VC_E_STORE, "no such generation");
    e->info.confirmed = true;
    rc = vc_manifest_switch(vm, &m, err);
    vc_wipe(&m.lineage, sizeof(m.lineage));
    return vc_vm_blame(vm, rc, err);
}
