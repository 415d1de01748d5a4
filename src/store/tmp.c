/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/durable.h"
#include "store/internal.h"

/* Files that are written without the VM's lock, by folding and re-keying. */

int vc_tmp_make(struct vc_vm *vm, const struct vc_id *id, const char *suffix, struct vc_tmp *t,
                struct vc_err *err)
{
    const struct vc_io *io = vm->store->io;
    struct stat st;

    vc_store_file_name(t->name, id, suffix);
    t->fd = io->open(io, vm->dir_fd, t->name, O_RDWR | O_CREAT | O_EXCL);
    if (t->fd < 0)
        return vc_store_errno(err, "create", t->name);
    /* Whoever swept in between took it for a dead one. */
    if (flock(t->fd, LOCK_EX | LOCK_NB) < 0 || fstat(t->fd, &st) < 0 || st.st_nlink == 0)
        return VC_AGAIN;
    return 0;
}

void vc_tmp_drop(struct vc_vm *vm, struct vc_tmp *t)
{
    if (t->fd < 0)
        return;
    if (!t->named)
        vm->store->io->unlink(vm->store->io, vm->dir_fd, t->name, 0);
    close(t->fd);
    t->fd = -1;
}

int vc_tmp_name(struct vc_vm *vm, struct vc_tmp *t, const char *name, struct vc_err *err)
{
    int rc = vc_durable_rename(vm->store->io, vm->dir_fd, t->name, name, err);

    t->named = !rc;
    return rc;
}
