/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>

#include "base/durable.h"
#include "store/internal.h"

/* Folding: one new image out of an image and its deltas, copied while nothing is locked, since the
 * files it reads never change. Only the switch of the manifest needs the lock, and happens only if
 * the generation is still the newest. */

#define COPY_BYTES (1u << 20)

static int copy_range(const struct vc_io *io, int from, uint64_t from_at, int to, uint64_t to_at,
                      uint64_t n, uint8_t *buf)
{
    while (n) {
        ssize_t k = io->copy(io, from, from_at, to, to_at, n);

        if (k <= 0)
            break;
        from_at += (uint64_t)k;
        to_at += (uint64_t)k;
        n -= (uint64_t)k;
    }
    while (n) {
        size_t k = VC_MIN(n, (uint64_t)COPY_BYTES);
        struct iovec iov = {buf, k};

        if (io->read(io, from, buf, k, from_at) != 1 || io->write(io, to, &iov, 1, to_at) < 0)
            return -1;
        from_at += k;
        to_at += k;
        n -= k;
    }
    return 0;
}

/* 0, VC_AGAIN (stopped), or an error. */
static int copy_block(const struct vc_gen *g, const struct vc_index *folded, uint32_t block, int to,
                      uint8_t *buf, const _Atomic bool *stop, struct vc_err *err)
{
    const struct vc_index *ix = &g->index;
    uint64_t pages = vc_ram_block_pages(&ix->ram, block);
    uint32_t page_bytes = ix->ram.page_bytes;

    for (uint64_t p = 0; p < pages;) {
        uint32_t layer, other;
        uint64_t at, n = 1;

        if (ix->state[ix->first[block] + p] != VC_PAGE_HELD) {
            p++;
            continue;
        }
        if (stop && atomic_load(stop))
            return VC_AGAIN;
        at = vc_index_offset(ix, block, p, &layer);
        while (p + n < pages && n * page_bytes < COPY_BYTES &&
               ix->state[ix->first[block] + p + n] == VC_PAGE_HELD &&
               vc_index_offset(ix, block, p + n, &other) == at + n * page_bytes && other == layer)
            n++;
        if (copy_range(g->io, g->fds[layer], at, to, folded->image_offset[block] + p * page_bytes,
                       n * page_bytes, buf))
            return vc_store_errno(err, "copy", "a checkpoint");
        p += n;
    }
    return 0;
}

/* The pages, durable. */
static int copy_all(const struct vc_gen *g, const struct vc_index *folded, int to,
                    const _Atomic bool *stop, struct vc_err *err)
{
    vc_auto_free uint8_t *buf = malloc(COPY_BYTES);
    int rc = 0;

    if (!buf)
        return vc_err_set(err, VC_E_NOMEM, "no memory to fold a checkpoint");
    if (g->io->resize(g->io, to, folded->layers[0].bytes) < 0)
        return vc_store_errno(err, "extend", "a checkpoint");
    for (uint32_t b = 0; b < g->index.ram.n_blocks && !rc; b++)
        rc = copy_block(g, folded, b, to, buf, stop, err);
    return rc ? rc : vc_durable_sync(g->io, to, "a folded checkpoint", err);
}

/* With the VM locked: image and index get their names, then the manifest is switched. */
static int publish(struct vc_vm *vm, const struct vc_gen *g, const struct vc_index *folded,
                   const struct vc_id *index, struct vc_tmp tmp[2], struct vc_err *err)
{
    struct vc_manifest m = vm->m;
    struct vc_entry *e = &m.gens[0];
    char name[VC_NAME_BYTES];
    int rc;

    if (!m.n_gens || e->info.partial || !vc_id_equal(&e->info.id, &g->index.gen) ||
        !vc_id_equal(&e->index, &g->index_file))
        return VC_AGAIN;
    vc_layer_name(name, &folded->layers[0]);
    rc = vc_tmp_name(vm, &tmp[0], name, err);
    vc_store_file_name(name, index, ".index");
    if (!rc)
        rc = vc_tmp_name(vm, &tmp[1], name, err);
    if (!rc)
        rc = vc_durable_sync_dir(vm->store->io, vm->dir_fd, "the VM's directory", err);
    if (!rc) {
        struct stat image = {0}, list = {0};

        e->index = *index;
        e->info.n_layers = 1;
        e->layers[0] = folded->layers[0];
        if (fstat(tmp[0].fd, &image) == 0 && fstat(tmp[1].fd, &list) == 0)
            e->info.disk_bytes = (uint64_t)(image.st_blocks + list.st_blocks) * 512;
        rc = vc_manifest_switch(vm, &m, err);
    }
    vc_wipe(&m.lineage, sizeof(m.lineage));
    vc_vm_sweep(vm, rc == 0); /* the old files; on failure the new ones */
    return rc;
}

/* The index of the same pages in one image. Layer numbers and slots are the caller's to free, the
 * other arrays are g's. */
static int plan(const struct vc_gen *g, const struct vc_id *image, struct vc_index *folded,
                struct vc_err *err)
{
    *folded = g->index;
    folded->n_layers = 1;
    folded->layers[0] = (struct vc_layer){.id = *image, .kind = VC_LAYER_IMAGE};
    folded->layers[0].bytes = vc_index_place(folded);
    folded->layer = calloc(folded->n_pages + 1, 1);
    folded->slot = calloc(folded->n_pages + 1, 4);
    return folded->layer && folded->slot
               ? 0
               : vc_err_set(err, VC_E_NOMEM, "no memory to fold a checkpoint");
}

static int fold(struct vc_store *s, struct vc_vm *reader, const struct vc_gen *g,
                struct vc_index *folded, struct vc_tmp tmp[2], const _Atomic bool *stop,
                struct vc_err *err)
{
    struct vc_id image, index;
    struct vc_vm *vm = NULL;
    int rc;

    if (!vc_id_random(&image) || !vc_id_random(&index))
        return vc_err_set(err, VC_E_FAILED, "the kernel gives no random numbers");
    rc = plan(g, &image, folded, err);
    if (!rc)
        rc = vc_tmp_make(reader, &image, ".image.tmp", &tmp[0], err);
    if (!rc)
        rc = copy_all(g, folded, tmp[0].fd, stop, err);
    if (!rc)
        rc = vc_tmp_make(reader, &index, ".index.tmp", &tmp[1], err);
    if (!rc)
        rc = vc_index_write(folded, g->io, tmp[1].fd, tmp[1].name, err);
    if (!rc)
        rc = vc_vm_open(s, &reader->uuid, VC_VM_WRITE, &vm, err);
    if (rc == VC_E_BUSY || rc == VC_NOT_FOUND)
        rc = VC_AGAIN;
    if (!rc)
        rc = publish(vm, g, folded, &index, tmp, err);
    vc_vm_close(vm);
    return rc;
}

static int fold_generation(struct vc_store *s, struct vc_vm *reader, const struct vc_gen *g,
                           const _Atomic bool *stop, struct vc_err *err)
{
    struct vc_index *folded = calloc(1, sizeof(*folded));
    struct vc_tmp tmp[2] = {VC_TMP_INIT, VC_TMP_INIT};
    int rc;

    if (!folded)
        return vc_err_set(err, VC_E_NOMEM, "no memory to fold a checkpoint");
    rc = fold(s, reader, g, folded, tmp, stop, err);
    vc_tmp_drop(reader, &tmp[0]);
    vc_tmp_drop(reader, &tmp[1]);
    free(folded->layer); /* plan()'s */
    free(folded->slot);
    free(folded);
    return rc;
}

int vc_vm_fold(struct vc_store *s, const struct vc_id *uuid, const _Atomic bool *stop,
               struct vc_err *err)
{
    struct vc_vm *reader;
    struct vc_gen *g = NULL;
    int rc = vc_vm_open(s, uuid, VC_VM_READ, &reader, err);

    if (rc)
        return rc == VC_NOT_FOUND ? 0 : rc;
    if (vc_vm_complete(reader))
        rc = vc_gen_open(reader, &vc_vm_complete(reader)->id, &g, err);
    if (rc == VC_NOT_FOUND)
        rc = VC_AGAIN;
    if (!rc && g && g->index.n_layers > 1)
        rc = fold_generation(s, reader, g, stop, err);
    vc_vm_blame(reader, rc, err);
    vc_gen_close(g);
    vc_vm_close(reader);
    return rc;
}
