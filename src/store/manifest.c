/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/durable.h"
#include "store/internal.h"

/* The manifest: docs/formats/store.md section 2. It is the only commit record. */

static const char magic[8] = "vcmanif\n";
#define MANIFEST_MAX 65536u

enum { FLAG_PARTIAL = 1, FLAG_CONFIRMED = 2 };
#define LINEAGE_EXPOSED 1

static void encode_gen(struct vc_writer *w, const struct vc_entry *e)
{
    const struct vc_gen_info *g = &e->info;

    vc_write_bytes(w, g->id.b, 16);
    vc_write_bytes(w, e->index.b, 16);
    vc_write_bytes(w, g->root, VC_ROOT_BYTES);
    vc_write_u32(w, (g->partial ? FLAG_PARTIAL : 0) | (g->confirmed ? FLAG_CONFIRMED : 0));
    vc_write_u8(w, g->role);
    vc_write_u8(w, (uint8_t)g->n_layers);
    vc_write_u16(w, 0);
    vc_write_u64(w, g->created_unix);
    vc_write_u64(w, g->ram_bytes);
    vc_write_u64(w, g->zero_pages);
    vc_write_u64(w, g->held_pages);
    vc_write_u64(w, g->unknown_pages);
    vc_write_u64(w, g->disk_bytes);
    vc_write_u64(w, g->same_pages);
    vc_write_u64(w, g->data_pages);
    vc_layers_write(w, e->layers, g->n_layers);
    vc_write_str8(w, g->peer);
}

static bool decode_gen(struct vc_reader *r, struct vc_entry *e)
{
    struct vc_gen_info *g = &e->info;
    char peer[256];
    uint32_t flags;

    memset(e, 0, sizeof(*e));
    vc_read_copy(r, g->id.b, 16);
    vc_read_copy(r, e->index.b, 16);
    vc_read_copy(r, g->root, VC_ROOT_BYTES);
    flags = vc_read_u32(r);
    g->partial = flags & FLAG_PARTIAL;
    g->confirmed = flags & FLAG_CONFIRMED;
    g->role = vc_read_u8(r);
    g->n_layers = vc_read_u8(r);
    if (flags & ~(uint32_t)(FLAG_PARTIAL | FLAG_CONFIRMED) || g->role > 2 || !vc_read_zero(r, 2))
        return false;
    g->created_unix = vc_read_u64(r);
    g->ram_bytes = vc_read_u64(r);
    g->zero_pages = vc_read_u64(r);
    g->held_pages = vc_read_u64(r);
    g->unknown_pages = vc_read_u64(r);
    g->disk_bytes = vc_read_u64(r);
    g->same_pages = vc_read_u64(r);
    g->data_pages = vc_read_u64(r);
    if (!vc_layers_read(r, e->layers, g->n_layers) || !vc_read_str8(r, peer) ||
        strlen(peer) >= sizeof(g->peer))
        return false;
    memcpy(g->peer, peer, strlen(peer));
    return true;
}

static size_t encode(const struct vc_vm *vm, const struct vc_manifest *m, uint8_t *buf)
{
    struct vc_writer w = vc_writer(buf, MANIFEST_MAX - VC_SHA256_BYTES);
    static const struct vc_lineage none;
    const struct vc_lineage *l = m->has_lineage ? &m->lineage : &none;

    vc_head_write(&w, magic);
    vc_write_u32(&w, 0); /* the length, below */
    vc_write_u32(&w, (uint32_t)m->n_gens);
    vc_write_bytes(&w, vm->uuid.b, 16);
    vc_write_u8(&w, m->has_lineage);
    vc_write_u8(&w, l->algo);
    vc_write_u8(&w, l->exposed ? LINEAGE_EXPOSED : 0);
    vc_write_bytes(&w, "\0\0\0\0", 5);
    vc_write_bytes(&w, l->id.b, 16);
    vc_write_bytes(&w, l->key, VC_DIGEST_KEY_BYTES);
    for (size_t i = 0; i < m->n_gens; i++)
        encode_gen(&w, &m->gens[i]);
    if (w.failed)
        return 0;
    vc_store_le(buf + VC_HEAD_BYTES, w.len + VC_SHA256_BYTES, 4);
    return vc_sha256(buf, w.len, buf + w.len) ? w.len + VC_SHA256_BYTES : 0;
}

static bool decode_lineage(struct vc_reader *r, struct vc_manifest *m)
{
    struct vc_lineage *l = &m->lineage;
    uint8_t has = vc_read_u8(r), flags;

    l->algo = vc_read_u8(r);
    flags = vc_read_u8(r);
    l->exposed = flags & LINEAGE_EXPOSED;
    if (has > 1 || (flags & ~LINEAGE_EXPOSED) || !vc_read_zero(r, 5))
        return false;
    vc_read_copy(r, l->id.b, 16);
    vc_read_copy(r, l->key, VC_DIGEST_KEY_BYTES);
    m->has_lineage = has;
    return has ||
           (!l->algo && !flags && vc_id_is_nil(&l->id) && vc_is_zero(l->key, sizeof(l->key)));
}

/* False: not legal. The head has been read. */
static bool decode(const struct vc_vm *vm, struct vc_reader *r, size_t bytes, struct vc_manifest *m)
{
    uint32_t length = vc_read_u32(r), n = vc_read_u32(r);
    struct vc_id uuid;

    vc_read_copy(r, uuid.b, 16);
    if (length != bytes || n > VC_STORE_MAX_GENERATIONS || !vc_id_equal(&uuid, &vm->uuid) ||
        !decode_lineage(r, m) || (n && !m->has_lineage))
        return false;
    for (m->n_gens = 0; m->n_gens < n; m->n_gens++) {
        struct vc_entry *e = &m->gens[m->n_gens];

        /* The partial one, if any, is the last. */
        if (!decode_gen(r, e) || (e->info.partial && m->n_gens + 1 != n))
            return false;
    }
    return !r->failed && r->off == r->len;
}

static int corrupt(const struct vc_vm *vm, struct vc_err *err)
{
    char uuid[VC_ID_TEXT_BYTES];

    vc_id_format(&vm->uuid, uuid);
    return vc_err_set_hint(err, VC_E_CORRUPT, "'vecycle rm' drops the VM's checkpoint",
                           "the manifest of VM '%s' is damaged", uuid);
}

static int check(struct vc_vm *vm, const uint8_t *buf, size_t n, struct vc_err *err)
{
    struct vc_manifest m = {0};
    uint8_t sum[VC_SHA256_BYTES];
    struct vc_reader r;
    bool frozen;
    int rc;

    if (n < VC_SHA256_BYTES || !vc_sha256(buf, n - VC_SHA256_BYTES, sum) ||
        memcmp(sum, buf + n - VC_SHA256_BYTES, sizeof(sum)) != 0)
        return corrupt(vm, err);
    r = vc_reader(buf, n - VC_SHA256_BYTES);
    rc = vc_head_read(&r, magic, "manifest", &frozen, err);
    if (rc < 0)
        return rc;
    if (frozen && vm->lock_fd >= 0)
        return vc_err_set_hint(err, VC_E_VERSION, "a newer vecycle has written it",
                               "'manifest' may not be changed by this version");
    if (rc || !decode(vm, &r, n, &m))
        rc = corrupt(vm, err);
    else
        vm->m = m;
    vc_wipe(&m, sizeof(m));
    return rc;
}

/* The whole file into buf: its length; 0: longer than any manifest; VC_NOT_FOUND as -1 with ENOENT.
 */
static ssize_t read_file(struct vc_vm *vm, uint8_t *buf)
{
    const struct vc_io *io = vm->store->io;
    vc_auto_close int fd = io->open(io, vm->dir_fd, "manifest", O_RDONLY);
    struct stat st;
    int rc;

    if (fd < 0 || fstat(fd, &st) < 0)
        return -1;
    if (st.st_size > MANIFEST_MAX)
        return 0;
    rc = io->read(io, fd, buf, (size_t)st.st_size, 0);
    return rc < 0 ? -1 : rc ? (ssize_t)st.st_size : 0;
}

int vc_manifest_read(struct vc_vm *vm, struct vc_err *err)
{
    uint8_t buf[MANIFEST_MAX];
    ssize_t n = read_file(vm, buf);
    int rc;

    if (n < 0)
        return errno == ENOENT ? VC_NOT_FOUND : vc_vm_open_errno(vm, "manifest", err);
    rc = check(vm, buf, (size_t)n, err);
    vc_wipe(buf, (size_t)n);
    return rc;
}

/* Writing failed somewhere: the rename may have happened all the same. */
static void read_back(struct vc_vm *vm, const struct vc_manifest *m, const uint8_t *want, size_t n)
{
    uint8_t have[MANIFEST_MAX];
    ssize_t got = read_file(vm, have);

    if (got == (ssize_t)n && !memcmp(have, want, n)) {
        vm->m = *m;
        vm->in_doubt = true;
    } else if (got < 0 && errno != ENOENT) {
        vm->in_doubt = true;
    }
    vc_wipe(have, sizeof(have));
}

int vc_manifest_switch(struct vc_vm *vm, const struct vc_manifest *m, struct vc_err *err)
{
    uint8_t buf[MANIFEST_MAX];
    size_t n = encode(vm, m, buf);
    int rc;

    if (!n)
        return vc_err_set(err, VC_E_FAILED, "cannot build the manifest");
    rc = vc_durable_write_file(vm->store->io, vm->dir_fd, "manifest", buf, n, err);
    if (rc) {
        read_back(vm, m, buf, n);
    } else {
        vm->m = *m;
        vm->in_doubt = false;
    }
    vc_wipe(buf, sizeof(buf));
    return rc;
}

struct vc_entry *vc_manifest_find(struct vc_manifest *m, const struct vc_id *gen)
{
    for (size_t i = 0; i < m->n_gens; i++)
        if (vc_id_equal(&m->gens[i].info.id, gen))
            return &m->gens[i];
    return NULL;
}

bool vc_manifest_lists_layer(const struct vc_manifest *m, const struct vc_id *layer)
{
    for (size_t i = 0; i < m->n_gens; i++)
        for (uint32_t k = 0; k < m->gens[i].info.n_layers; k++)
            if (vc_id_equal(&m->gens[i].layers[k].id, layer))
                return true;
    return false;
}

bool vc_manifest_lists_index(const struct vc_manifest *m, const struct vc_id *index)
{
    for (size_t i = 0; i < m->n_gens; i++)
        if (vc_id_equal(&m->gens[i].index, index))
            return true;
    return false;
}
