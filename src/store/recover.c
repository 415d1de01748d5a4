/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/durable.h"
#include "store/genlog.h"

/* Recovery: a log that a migration left becomes the partial generation (docs/formats/store.md
 * section 5). What cannot be used is left to the sweep, which deletes it. */

struct recovery {
    struct vc_vm *vm;
    char name[VC_NAME_BYTES];
    struct vc_genlog_head h;
    struct vc_gen *base;
    int log_fd, layer_fd;
    uint64_t n_slots;   /* that the delta has room for */
    uint64_t top_slots; /* that the index refers to */
    uint8_t *buf;       /* chain, head of a batch, records */
    bool arrived;
    struct vc_txn_note note;
};

#define RECORDS (VC_SHA256_BYTES + VC_BATCH_HEAD_BYTES)

/* ---- records ---- */

struct record {
    unsigned kind;
    uint32_t block, count, slot;
    uint64_t page;
    const uint8_t *digests;
};

static bool read_record(const struct recovery *v, struct vc_reader *r, struct record *out)
{
    const struct vc_ram *ram = &v->h.ix.ram;
    bool delta = v->h.ix.n_layers > 1, is_held;
    uint64_t pages;

    out->kind = vc_read_u8(r);
    if (!vc_read_zero(r, 3))
        return false;
    out->block = vc_read_u32(r);
    out->page = vc_read_u64(r);
    out->count = vc_read_u32(r);
    out->slot = vc_read_u32(r);
    is_held = out->kind == VC_RECORD_HELD;
    out->digests = is_held ? vc_read_bytes(r, (size_t)out->count * VC_DIGEST_BYTES) : NULL;
    if (r->failed || out->kind < VC_RECORD_ZERO || out->kind > VC_RECORD_SAME ||
        out->block >= ram->n_blocks || !out->count)
        return false;
    if (out->kind == VC_RECORD_SAME && !delta)
        return false;
    pages = vc_ram_block_pages(ram, out->block);
    if (out->page > pages || out->count > pages - out->page)
        return false;
    return is_held && delta ? out->count <= v->n_slots && out->slot <= v->n_slots - out->count
                            : out->slot == 0;
}

static void apply_held(struct recovery *v, const struct record *r, uint64_t at)
{
    struct vc_index *ix = &v->h.ix;
    uint32_t own = ix->n_layers - 1;

    memset(ix->state + at, VC_PAGE_HELD, r->count);
    memset(ix->layer + at, (int)own, r->count);
    memcpy(ix->digest + at * VC_DIGEST_BYTES, r->digests, (size_t)r->count * VC_DIGEST_BYTES);
    for (uint32_t i = 0; i < r->count && own; i++)
        vc_store_le(ix->slot + 4 * (at + i), r->slot + i, 4);
    if (own)
        v->top_slots = VC_MAX(v->top_slots, (uint64_t)r->slot + r->count);
    v->note.data_pages += r->count;
    v->arrived = true;
}

static void apply_same(struct recovery *v, const struct record *r, uint64_t at)
{
    const struct vc_index *base = &v->base->index;
    struct vc_index *ix = &v->h.ix;

    for (uint64_t i = at; i < at + r->count; i++) {
        if (base->state[i] != VC_PAGE_HELD) {
            ix->state[i] = VC_PAGE_UNKNOWN;
            continue;
        }
        ix->state[i] = VC_PAGE_HELD;
        ix->layer[i] = base->layer[i];
        memcpy(ix->slot + 4 * i, base->slot + 4 * i, 4);
        memcpy(ix->digest + i * VC_DIGEST_BYTES, base->digest + i * VC_DIGEST_BYTES,
               VC_DIGEST_BYTES);
        v->note.same_pages++;
        v->arrived = true;
    }
}

static void apply(struct recovery *v, const struct record *r)
{
    uint64_t at = v->h.ix.first[r->block] + r->page;

    switch (r->kind) {
    case VC_RECORD_ZERO:
        memset(v->h.ix.state + at, VC_PAGE_ZERO, r->count);
        break;
    case VC_RECORD_HELD:
        apply_held(v, r, at);
        break;
    case VC_RECORD_SAME:
        apply_same(v, r, at);
        break;
    default:
        memset(v->h.ix.state + at, VC_PAGE_UNKNOWN, r->count);
        break;
    }
}

/* ---- batches ---- */

/* The next batch into v->buf, behind the checksum before it: 1; 0: none that is whole; -1. */
static int read_batch(struct recovery *v, uint64_t *at, uint64_t seq, size_t *len)
{
    const struct vc_io *io = v->vm->store->io;
    uint8_t *head = v->buf + VC_SHA256_BYTES, sum[VC_SHA256_BYTES];
    int rc = io->read(io, v->log_fd, head, VC_BATCH_HEAD_BYTES, *at);
    uint64_t n;

    if (rc <= 0)
        return rc;
    n = vc_load_le(head, 4);
    if (n < VC_RECORD_BYTES || n > VC_BATCH_MAX_BYTES || vc_load_le(head + 4, 4) ||
        vc_load_le(head + 8, 8) != seq)
        return 0;
    rc = io->read(io, v->log_fd, v->buf + RECORDS, n + VC_SHA256_BYTES, *at + VC_BATCH_HEAD_BYTES);
    if (rc <= 0)
        return rc;
    if (!vc_sha256(v->buf, RECORDS + n, sum) ||
        memcmp(sum, v->buf + RECORDS + n, VC_SHA256_BYTES) != 0)
        return 0;
    *len = n;
    *at += VC_BATCH_HEAD_BYTES + n + VC_SHA256_BYTES;
    return 1;
}

/* False: something illegal, and nothing of the batch was applied. */
static bool apply_batch(struct recovery *v, size_t len)
{
    struct record r;

    for (int pass = 0; pass < 2; pass++) {
        struct vc_reader in = vc_reader(v->buf + RECORDS, len);

        while (vc_reader_left(&in)) {
            if (!read_record(v, &in, &r))
                return false;
            if (pass)
                apply(v, &r);
        }
    }
    return true;
}

static int replay(struct recovery *v, uint64_t at, struct vc_err *err)
{
    size_t len;
    int rc;

    for (uint64_t seq = 1; (rc = read_batch(v, &at, seq, &len)) > 0; seq++) {
        if (!apply_batch(v, len))
            return 0;
        memcpy(v->buf, v->buf + RECORDS + len, VC_SHA256_BYTES);
    }
    return rc < 0 ? vc_store_errno(err, "read", v->name) : 0;
}

/* ---- one log ---- */

static int useless(struct recovery *v, struct vc_err *err)
{
    return vc_err_set(err, VC_E_CORRUPT, "log '%s' is of no use", v->name);
}

/* Whether the log continues what the VM has. */
static int check_head(struct recovery *v, const struct vc_id *id, struct vc_err *err)
{
    const struct vc_index *ix = &v->h.ix;
    const struct vc_index *base;
    uint32_t below = ix->n_layers - 1;
    int rc;

    if (!vc_id_equal(&ix->gen, id) || !v->vm->m.has_lineage ||
        !vc_id_equal(&ix->lineage, &v->vm->m.lineage.id) ||
        vc_manifest_lists_layer(&v->vm->m, &ix->layers[below].id) ||
        vc_id_is_nil(&v->h.base) != (below == 0))
        return useless(v, err);
    if (!below)
        return 0;
    rc = vc_gen_open(v->vm, &v->h.base, &v->base, err);
    if (rc)
        return rc == VC_NOT_FOUND ? useless(v, err) : rc;
    base = &v->base->index;
    if (base->n_layers != below || !vc_layers_equal(base->layers, ix->layers, below) ||
        !vc_ram_equal(&base->ram, &ix->ram) ||
        memcmp(base->image_offset, ix->image_offset, sizeof(ix->image_offset)) != 0 ||
        memcmp(base->image_room, ix->image_room, sizeof(ix->image_room)) != 0)
        return useless(v, err);
    return 0;
}

static int open_layer(struct recovery *v, struct vc_err *err)
{
    const struct vc_io *io = v->vm->store->io;
    const struct vc_index *ix = &v->h.ix;
    const struct vc_layer *own = &ix->layers[ix->n_layers - 1];
    char name[VC_NAME_BYTES];
    struct stat st;

    vc_layer_name(name, own);
    v->layer_fd = io->open(io, v->vm->dir_fd, name, O_RDWR);
    if (v->layer_fd < 0 && errno == ENOENT)
        return useless(v, err);
    if (v->layer_fd < 0 || fstat(v->layer_fd, &st) < 0)
        return vc_vm_open_errno(v->vm, name, err);
    if (own->kind == VC_LAYER_IMAGE)
        return (uint64_t)st.st_size < own->bytes ? useless(v, err) : 0;
    v->n_slots = VC_MIN((uint64_t)st.st_size / ix->ram.page_bytes, (uint64_t)UINT32_MAX);
    return 0;
}

/* An image must have room for every page of every block that may be said to be held in it. */
static bool image_fits(const struct vc_index *ix)
{
    for (uint32_t i = 0; i < ix->ram.n_blocks; i++)
        if (ix->image_room[i] < ix->ram.blocks[i].bytes)
            return false;
    return true;
}

static int keep(struct recovery *v, struct vc_err *err)
{
    struct vc_index *ix = &v->h.ix;
    int rc;

    if (!v->arrived)
        return useless(v, err);
    rc = vc_durable_sync(v->vm->store->io, v->layer_fd, "the interrupted generation", err);
    if (rc)
        return rc;
    if (v->base) {
        ix->layers[ix->n_layers - 1].bytes = v->top_slots * ix->ram.page_bytes;
        vc_commit_fill(ix, &v->base->index);
    }
    if (!vc_id_random(&ix->gen))
        return vc_err_set(err, VC_E_FAILED, "the kernel gives no random numbers");
    return vc_commit(v->vm, ix, &v->note, true, NULL, err);
}

static int recover(struct recovery *v, const struct vc_id *id, struct vc_err *err)
{
    const struct vc_io *io = v->vm->store->io;
    uint64_t at;
    int rc;

    vc_store_file_name(v->name, id, ".log");
    v->log_fd = io->open(io, v->vm->dir_fd, v->name, O_RDONLY);
    if (v->log_fd < 0)
        return vc_vm_open_errno(v->vm, v->name, err);
    v->buf = malloc(RECORDS + VC_BATCH_MAX_BYTES + VC_SHA256_BYTES);
    if (!v->buf)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a recovery");
    rc = vc_genlog_read(io, v->log_fd, v->name, &v->h, &at, v->buf, err);
    if (!rc)
        rc = check_head(v, id, err);
    if (!rc && !v->base && !image_fits(&v->h.ix))
        rc = useless(v, err);
    if (!rc)
        rc = open_layer(v, err);
    if (!rc)
        rc = vc_index_alloc(&v->h.ix, err);
    if (!rc)
        rc = replay(v, at, err);
    return rc ? rc : keep(v, err);
}

static int recover_one(struct vc_vm *vm, const struct vc_id *id, struct vc_err *err)
{
    struct recovery *v = calloc(1, sizeof(*v));
    int rc;

    if (!v)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a recovery");
    v->vm = vm;
    v->log_fd = v->layer_fd = -1;
    rc = recover(v, id, err);
    vc_gen_close(v->base);
    vc_index_free(&v->h.ix);
    if (v->log_fd >= 0)
        close(v->log_fd);
    if (v->layer_fd >= 0)
        close(v->layer_fd);
    free(v->buf);
    free(v);
    return rc;
}

/* ---- all logs ---- */

/* The first log in the directory: 1; 0: none; -1 with errno. */
static int find_log(struct vc_vm *vm, struct vc_id *id)
{
    int fd = openat(vm->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *e;
    int found = 0;

    if (!d)
        return -1;
    while (!found && (e = readdir(d))) {
        const char *suffix = vc_store_parse_name(e->d_name, id);

        found = suffix && !strcmp(suffix, ".log");
    }
    closedir(d);
    return found;
}

int vc_vm_recover(struct vc_vm *vm, struct vc_err *err)
{
    struct vc_err e = VC_ERR_INIT;
    struct vc_id id;
    int rc = find_log(vm, &id);

    if (rc < 0)
        return vc_store_errno(err, "list", "the VM's directory");
    if (!rc)
        return 0;
    rc = recover_one(vm, &id, &e);
    /* Damage, or no room: then nothing comes of it, and the sweep deletes it. */
    if (rc == 0 || rc == VC_E_CORRUPT || rc == VC_E_STORE_FULL)
        return 0;
    *err = e;
    return rc;
}
