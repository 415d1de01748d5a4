/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/durable.h"
#include "store/internal.h"

/* What ends a transaction and a recovery alike: docs/internals/durability.md. */

/* Layers that no page is in any more need not be kept; the order of the rest stays, and so does
 * layer 0, which says where the blocks are. */
void vc_commit_prune(struct vc_index *ix)
{
    bool used[VC_STORE_MAX_LAYERS] = {true};
    uint8_t to[VC_STORE_MAX_LAYERS] = {0};
    uint32_t n = 0;

    for (uint64_t i = 0; i < ix->n_pages; i++)
        if (ix->state[i] == VC_PAGE_HELD)
            used[ix->layer[i]] = true;
    for (uint32_t i = 0; i < ix->n_layers; i++) {
        if (!used[i])
            continue;
        to[i] = (uint8_t)n;
        ix->layers[n++] = ix->layers[i];
    }
    for (uint64_t i = 0; i < ix->n_pages; i++)
        if (ix->state[i] == VC_PAGE_HELD)
            ix->layer[i] = to[ix->layer[i]];
    ix->n_layers = n;
}

void vc_commit_fill(struct vc_index *ix, const struct vc_index *base)
{
    for (uint64_t i = 0; i < ix->n_pages; i++) {
        if (ix->state[i] != VC_PAGE_UNMENTIONED || base->state[i] != VC_PAGE_HELD)
            continue;
        ix->state[i] = VC_PAGE_HELD;
        ix->layer[i] = base->layer[i];
        memcpy(ix->slot + 4 * i, base->slot + 4 * i, 4);
        memcpy(ix->digest + i * VC_DIGEST_BYTES, base->digest + i * VC_DIGEST_BYTES,
               VC_DIGEST_BYTES);
    }
}

static uint64_t allocated(const struct vc_vm *vm, const char *name)
{
    struct stat st;

    return fstatat(vm->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 ? 0
                                                                   : (uint64_t)st.st_blocks * 512;
}

static void describe(const struct vc_vm *vm, const struct vc_index *ix,
                     const struct vc_txn_note *note, bool partial, struct vc_entry *e)
{
    struct vc_gen_info *info = &e->info;
    char name[VC_NAME_BYTES];

    info->id = ix->gen;
    memcpy(info->root, ix->root, VC_ROOT_BYTES);
    info->partial = partial;
    info->created_unix = vc_wall_s();
    info->ram_bytes = vc_ram_bytes(&ix->ram);
    info->n_layers = ix->n_layers;
    memcpy(e->layers, ix->layers, sizeof(e->layers));
    for (uint64_t i = 0; i < ix->n_pages; i++) {
        info->zero_pages += ix->state[i] == VC_PAGE_ZERO;
        info->held_pages += ix->state[i] == VC_PAGE_HELD;
        info->unknown_pages += ix->state[i] == VC_PAGE_UNKNOWN;
    }
    vc_store_file_name(name, &e->index, ".index");
    info->disk_bytes = allocated(vm, name);
    for (uint32_t i = 0; i < ix->n_layers; i++) {
        vc_layer_name(name, &ix->layers[i]);
        info->disk_bytes += allocated(vm, name);
    }
    info->same_pages = note->same_pages;
    info->data_pages = note->data_pages;
    info->role = note->role;
    if (note->peer)
        snprintf(info->peer, sizeof(info->peer), "%s", note->peer);
}

static int write_index(struct vc_vm *vm, const struct vc_index *ix, const struct vc_id *file,
                       struct vc_err *err)
{
    const struct vc_io *io = vm->store->io;
    char name[VC_NAME_BYTES];
    vc_auto_close int fd = -1;
    uint64_t granted = 0;
    int rc = vc_store_room(vm->store, &granted, VC_INDEX_PAGE_BYTES * ix->n_pages, err);

    if (rc)
        return rc;
    vc_store_file_name(name, file, ".index");
    fd = io->open(io, vm->dir_fd, name, O_RDWR | O_CREAT | O_EXCL);
    if (fd < 0)
        return vc_store_errno(err, "create", name);
    rc = vc_index_write(ix, io, fd, name, err);
    if (!rc)
        rc = vc_durable_sync_dir(io, vm->dir_fd, "the VM's directory", err);
    if (rc)
        io->unlink(io, vm->dir_fd, name, 0);
    return rc;
}

/* The manifest with the new generation: a complete one is alone, a partial one comes last. */
static void compose(struct vc_manifest *m, const struct vc_entry *e)
{
    if (!e->info.partial)
        m->n_gens = 0;
    else if (m->n_gens && m->gens[m->n_gens - 1].info.partial)
        m->n_gens--;
    else if (m->n_gens == VC_STORE_MAX_GENERATIONS)
        m->n_gens--;
    m->gens[m->n_gens++] = *e;
}

int vc_commit(struct vc_vm *vm, struct vc_index *ix, const struct vc_txn_note *note, bool partial,
              uint8_t root_out[VC_ROOT_BYTES], struct vc_err *err)
{
    struct vc_manifest m = vm->m;
    struct vc_entry e = {0};
    char name[VC_NAME_BYTES];
    int rc;

    if (!vc_id_random(&e.index))
        return vc_err_set(err, VC_E_FAILED, "the kernel gives no random numbers");
    vc_commit_prune(ix);
    vc_index_normalize(ix);
    rc = vc_index_root(ix, ix->root, err);
    if (!rc)
        rc = write_index(vm, ix, &e.index, err);
    if (rc)
        return rc;
    describe(vm, ix, note, partial, &e);
    compose(&m, &e);
    rc = vc_manifest_switch(vm, &m, err);
    vc_wipe(&m.lineage, sizeof(m.lineage));
    if (rc && !vm->in_doubt) {
        vc_store_file_name(name, &e.index, ".index");
        vm->store->io->unlink(vm->store->io, vm->dir_fd, name, 0);
    }
    if (rc)
        return rc;
    if (root_out)
        memcpy(root_out, e.info.root, VC_ROOT_BYTES);
    vc_vm_sweep(vm, true);
    return 0;
}
