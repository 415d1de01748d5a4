/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/file.h>

#include "base/bytes.h"
#include "base/durable.h"
#include "base/fdio.h"
#include "store/internal.h"

/* Folding: one new image out of an image and its deltas, copied while nothing is locked, since the
 * files it reads never change. Only the switch of the manifest needs the lock, and happens only if
 * the generation is still the newest. */

#define COPY_BYTES (1u << 20)

static int copy_range(int from, uint64_t from_at, int to, uint64_t to_at, uint64_t n, uint8_t *buf)
{
    off_t in = (off_t)from_at, out = (off_t)to_at;

    while (n) {
        ssize_t k = copy_file_range(from, &in, to, &out, n, 0);

        if (k <= 0)
            break;
        n -= (uint64_t)k;
    }
    while (n) {
        size_t k = VC_MIN(n, (uint64_t)COPY_BYTES);
        struct iovec iov = {buf, k};

        if (vc_pread_full(from, buf, k, (uint64_t)in) != 1 ||
            vc_pwritev_full(to, &iov, 1, (uint64_t)out) < 0)
            return -1;
        in += (off_t)k;
        out += (off_t)k;
        n -= k;
    }
    return 0;
}

/* 0, VC_AGAIN (stopped), or an error. */
static int copy_block(const struct vc_gen *g, uint32_t block, int to, uint8_t *buf,
                      const _Atomic bool *stop, struct vc_err *err)
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
        if (copy_range(g->fds[layer], at, to, ix->image_offset[block] + p * page_bytes,
                       n * page_bytes, buf))
            return vc_store_errno(err, "copy", "a checkpoint");
        p += n;
    }
    return 0;
}

static int copy_all(const struct vc_gen *g, int to, const _Atomic bool *stop, struct vc_err *err)
{
    vc_auto_free uint8_t *buf = malloc(COPY_BYTES);
    int rc = 0;

    if (!buf)
        return vc_err_set(err, VC_E_NOMEM, "no memory to fold a checkpoint");
    if (ftruncate(to, (off_t)g->index.image_bytes) < 0)
        return vc_store_errno(err, "extend", "a checkpoint");
    for (uint32_t b = 0; b < g->index.ram.n_blocks && !rc; b++)
        rc = copy_block(g, b, to, buf, stop, err);
    return rc;
}

/* With the VM locked: image and index under their names, then the manifest. The new index has the
 * same generation and so the same name; a crash in between leaves it and the new image, or the old
 * one: both hold the same pages. */
static int publish(struct vc_vm *vm, const struct vc_gen *g, int fd, const char *tmp,
                   const struct vc_id *image, struct vc_err *err)
{
    struct vc_index ix = g->index;
    vc_auto_free uint8_t *layer = calloc(ix.n_pages + 1, 1);
    vc_auto_free uint8_t *slot = calloc(ix.n_pages + 1, 4);
    char name[VC_NAME_BYTES];
    int rc;

    if (!layer || !slot)
        return vc_err_set(err, VC_E_NOMEM, "no memory to fold a checkpoint");
    vc_store_file_name(name, image, ".image");
    rc = vc_durable_publish(vm->dir_fd, fd, tmp, name, err);
    if (rc)
        return rc;
    ix.layer = layer;
    ix.slot = slot;
    ix.n_layers = 1;
    ix.layers[0] = (struct vc_layer){.id = *image, .kind = VC_LAYER_IMAGE, .bytes = ix.image_bytes};
    rc = vc_index_write(&ix, vm->dir_fd, err);
    if (rc)
        return rc;
    vm->gens[0].n_layers = 1;
    rc = vc_manifest_write(vm, err);
    if (!rc)
        vc_vm_sweep(vm);
    return rc;
}

static int fold(struct vc_store *s, struct vc_vm *reader, const struct vc_gen *g,
                const _Atomic bool *stop, struct vc_err *err)
{
    struct vc_id image;
    char tmp[VC_NAME_BYTES];
    vc_auto_close int fd = -1;
    struct vc_vm *vm = NULL;
    int rc;

    if (!vc_id_random(&image))
        return vc_err_set(err, VC_E_FAILED, "the kernel gives no random numbers");
    vc_store_file_name(tmp, &image, ".tmp");
    fd = openat(reader->dir_fd, tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)
        return vc_store_errno(err, "create", tmp);
    rc = copy_all(g, fd, stop, err);
    if (!rc)
        rc = vc_durable_sync(fd, tmp, err); /* the long part of it, before the lock */
    if (!rc)
        rc = vc_vm_open(s, &reader->uuid, VC_VM_WRITE, &vm, err);
    if (rc == VC_E_BUSY || rc == VC_NOT_FOUND)
        rc = VC_AGAIN;
    if (!rc && (vm->n_gens == 0 || !vc_id_equal(&vm->gens[0].id, &g->index.gen)))
        rc = VC_AGAIN;
    if (!rc)
        rc = publish(vm, g, fd, tmp, &image, err);
    if (rc)
        unlinkat(reader->dir_fd, tmp, 0);
    vc_vm_close(vm);
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
    if (reader->n_gens)
        rc = vc_gen_open(reader, &reader->gens[0].id, &g, err);
    if (!rc && g && g->index.n_layers > 1)
        rc = fold(s, reader, g, stop, err);
    vc_gen_close(g);
    vc_vm_close(reader);
    return rc;
}
