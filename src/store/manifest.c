/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/bytes.h"
#include "base/durable.h"
#include "base/fdio.h"
#include "store/internal.h"

/* The manifest: docs/formats/store.md section 2. */

static const char magic[8] = "vcmanif\n";
#define MANIFEST_MAX 16384

static void encode_gen(struct vc_writer *w, const struct vc_gen_info *g)
{
    vc_write_bytes(w, g->id.b, 16);
    vc_write_bytes(w, g->root, VC_ROOT_BYTES);
    vc_write_u64(w, g->created_unix);
    vc_write_u64(w, g->ram_bytes);
    vc_write_u64(w, g->zero_pages);
    vc_write_u64(w, g->held_pages);
    vc_write_u64(w, g->unknown_pages);
    vc_write_u64(w, g->same_pages);
    vc_write_u64(w, g->data_pages);
    vc_write_u32(w, g->n_layers);
    vc_write_u8(w, g->role);
    vc_write_u8(w, g->confirmed);
    vc_write_str8(w, g->peer);
}

static void decode_gen(struct vc_reader *r, struct vc_gen_info *g)
{
    char peer[256];

    memset(g, 0, sizeof(*g));
    vc_read_copy(r, g->id.b, 16);
    vc_read_copy(r, g->root, VC_ROOT_BYTES);
    g->created_unix = vc_read_u64(r);
    g->ram_bytes = vc_read_u64(r);
    g->zero_pages = vc_read_u64(r);
    g->held_pages = vc_read_u64(r);
    g->unknown_pages = vc_read_u64(r);
    g->same_pages = vc_read_u64(r);
    g->data_pages = vc_read_u64(r);
    g->n_layers = vc_read_u32(r);
    g->role = vc_read_u8(r);
    g->confirmed = vc_read_u8(r);
    vc_read_str8(r, peer);
    memcpy(g->peer, peer, sizeof(g->peer) - 1);
}

int vc_manifest_write(struct vc_vm *vm, struct vc_err *err)
{
    uint8_t buf[MANIFEST_MAX];
    struct vc_writer w = vc_writer(buf, sizeof(buf) - VC_SHA256_BYTES);
    int rc;

    vc_write_bytes(&w, magic, sizeof(magic));
    vc_write_u32(&w, VC_STORE_VERSION);
    vc_write_u32(&w, 0); /* incompatible features */
    vc_write_bytes(&w, vm->uuid.b, 16);
    vc_write_u8(&w, vm->has_lineage);
    if (vm->has_lineage) {
        vc_write_bytes(&w, vm->lineage.id.b, 16);
        vc_write_u8(&w, vm->lineage.algo);
        vc_write_u8(&w, vm->lineage.exposed);
        vc_write_bytes(&w, vm->lineage.key, VC_DIGEST_KEY_BYTES);
    }
    vc_write_u8(&w, (uint8_t)vm->n_gens);
    for (size_t i = 0; i < vm->n_gens; i++)
        encode_gen(&w, &vm->gens[i]);
    if (w.failed || !vc_sha256(buf, w.len, buf + w.len))
        return vc_err_set(err, VC_E_FAILED, "cannot build the manifest");
    rc = vc_durable_write_file(vm->dir_fd, "manifest", buf, w.len + VC_SHA256_BYTES, err);
    vc_wipe(buf, sizeof(buf));
    return rc;
}

static int corrupt(struct vc_vm *vm, struct vc_err *err)
{
    char uuid[VC_ID_TEXT_BYTES];

    vc_id_format(&vm->uuid, uuid);
    return vc_err_set_hint(err, VC_E_CORRUPT, "'vecycle rm' drops the VM's checkpoint",
                           "the manifest of VM '%s' is damaged", uuid);
}

static int decode(struct vc_vm *vm, const uint8_t *buf, size_t n, struct vc_err *err)
{
    uint8_t sum[VC_SHA256_BYTES];
    struct vc_reader r;
    const uint8_t *m;
    struct vc_id uuid;

    if (n < VC_SHA256_BYTES || !vc_sha256(buf, n - VC_SHA256_BYTES, sum) ||
        memcmp(sum, buf + n - VC_SHA256_BYTES, sizeof(sum)) != 0)
        return corrupt(vm, err);
    r = vc_reader(buf, n - VC_SHA256_BYTES);
    m = vc_read_bytes(&r, sizeof(magic));
    if (!m || memcmp(m, magic, sizeof(magic)) != 0)
        return corrupt(vm, err);
    if (vc_read_u32(&r) != VC_STORE_VERSION || vc_read_u32(&r) != 0)
        return vc_err_set(err, VC_E_VERSION, "the manifest is of another version");
    vc_read_copy(&r, uuid.b, 16);
    vm->has_lineage = vc_read_u8(&r);
    if (vm->has_lineage) {
        vc_read_copy(&r, vm->lineage.id.b, 16);
        vm->lineage.algo = vc_read_u8(&r);
        vm->lineage.exposed = vc_read_u8(&r);
        vc_read_copy(&r, vm->lineage.key, VC_DIGEST_KEY_BYTES);
    }
    vm->n_gens = vc_read_u8(&r);
    if (vm->n_gens > VC_STORE_MAX_GENERATIONS || !vc_id_equal(&uuid, &vm->uuid)) {
        vm->n_gens = 0;
        return corrupt(vm, err);
    }
    for (size_t i = 0; i < vm->n_gens; i++)
        decode_gen(&r, &vm->gens[i]);
    if (r.failed || r.off != r.len)
        return corrupt(vm, err);
    return 0;
}

int vc_manifest_read(struct vc_vm *vm, struct vc_err *err)
{
    uint8_t buf[MANIFEST_MAX];
    vc_auto_close int fd = openat(vm->dir_fd, "manifest", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    size_t have = 0;
    ssize_t n = 0;
    int rc;

    if (fd < 0)
        return errno == ENOENT ? VC_NOT_FOUND : vc_store_errno(err, "open", "manifest");
    while (have < sizeof(buf) && (n = vc_read_some(fd, buf + have, sizeof(buf) - have)) > 0)
        have += (size_t)n;
    if (n < 0)
        return vc_store_errno(err, "read", "manifest");
    rc = decode(vm, buf, have, err);
    vc_wipe(buf, sizeof(buf));
    return rc;
}
