/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/durable.h"
#include "base/fdio.h"
#include "store/internal.h"

/* Theory of operation
 *
 * A transaction builds an index in memory and writes contents into one new file: a delta on top of
 * the base's layers, or an image where there is no base to stand on (none, another layout of the
 * RAM, or too many layers already). In the latter case pages that equal the base's are copied.
 * Nothing committed is touched before the manifest is switched. */

struct vc_txn {
    struct vc_vm *vm;
    const struct vc_gen *base; /* borrowed, or NULL */
    bool on_base;              /* the base's layers are this generation's too */
    struct vc_index ix;
    uint32_t own; /* layer that is written */
    int fd;
    uint64_t next_slot;
    uint64_t granted; /* bytes that may be written before the disk is looked at again */
    bool ram_set;
};

int vc_txn_begin(struct vc_vm *vm, const struct vc_id *id, const struct vc_gen *base,
                 struct vc_txn **out, struct vc_err *err)
{
    struct vc_txn *t = calloc(1, sizeof(*t));

    if (!t)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a generation");
    t->vm = vm;
    t->base = base;
    t->fd = -1;
    t->ix.gen = *id;
    t->ix.lineage = vm->lineage.id;
    *out = t;
    return 0;
}

static bool same_ram(const struct vc_ram *a, const struct vc_ram *b)
{
    if (a->page_bytes != b->page_bytes || a->n_blocks != b->n_blocks)
        return false;
    for (uint32_t i = 0; i < a->n_blocks; i++)
        if (a->blocks[i].bytes != b->blocks[i].bytes ||
            strcmp(a->blocks[i].name, b->blocks[i].name) != 0)
            return false;
    return true;
}

static int make_arrays(struct vc_index *ix, struct vc_err *err)
{
    ix->state = calloc(ix->n_pages + 1, 1);
    ix->layer = calloc(ix->n_pages + 1, 1);
    ix->slot = calloc(ix->n_pages + 1, 4);
    ix->digest = calloc(ix->n_pages + 1, VC_DIGEST_BYTES);
    if (!ix->state || !ix->layer || !ix->slot || !ix->digest)
        return vc_err_set(err, VC_E_NOMEM, "no memory for an index of %llu pages",
                          (unsigned long long)ix->n_pages);
    return 0;
}

static int make_layer(struct vc_txn *t, struct vc_err *err)
{
    struct vc_layer *l = &t->ix.layers[t->own];
    char name[VC_NAME_BYTES];

    if (!vc_id_random(&l->id))
        return vc_err_set(err, VC_E_FAILED, "the kernel gives no random numbers");
    l->kind = t->on_base ? VC_LAYER_DELTA : VC_LAYER_IMAGE;
    vc_store_file_name(name, &l->id, vc_layer_suffix(l->kind));
    t->fd = openat(t->vm->dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (t->fd < 0)
        return vc_store_errno(err, "create", name);
    if (l->kind == VC_LAYER_IMAGE) {
        l->bytes = t->ix.image_bytes;
        if (ftruncate(t->fd, (off_t)l->bytes) < 0)
            return vc_store_errno(err, "extend", name);
    }
    return 0;
}

int vc_txn_set_ram(struct vc_txn *t, const struct vc_ram *ram, struct vc_err *err)
{
    uint64_t bytes = vc_ram_bytes(ram), limit = t->vm->store->limit_bytes;
    int rc;

    assert(!t->ram_set);
    if (bytes > limit)
        return vc_err_set_hint(err, VC_E_STORE_FULL, "raise it with --store-limit",
                               "the VM has %llu MiB of RAM, the store's limit is %llu MiB",
                               (unsigned long long)(bytes >> 20),
                               (unsigned long long)(limit >> 20));
    t->ix.ram = *ram;
    vc_index_layout(&t->ix);
    if (t->ix.n_pages > UINT32_MAX)
        return vc_err_set(err, VC_E_STORE_FULL, "the VM has too many pages for the store");
    rc = make_arrays(&t->ix, err);
    if (rc)
        return rc;
    t->on_base = t->base && same_ram(ram, &t->base->index.ram) &&
                 t->base->index.n_layers < VC_STORE_MAX_LAYERS - 1;
    if (t->on_base) {
        t->ix.n_layers = t->base->index.n_layers;
        memcpy(t->ix.layers, t->base->index.layers, sizeof(t->ix.layers));
    }
    t->own = t->ix.n_layers++;
    t->ram_set = true;
    return make_layer(t, err);
}

static void mark(struct vc_txn *t, uint32_t block, struct vc_page page, size_t n,
                 enum vc_page_state state)
{
    assert(t->ram_set && block < t->ix.ram.n_blocks &&
           page.n <= vc_ram_block_pages(&t->ix.ram, block) &&
           n <= vc_ram_block_pages(&t->ix.ram, block) - page.n);
    memset(t->ix.state + t->ix.first[block] + page.n, state, n);
}

int vc_txn_zero(struct vc_txn *t, uint32_t block, struct vc_page page, size_t n, struct vc_err *err)
{
    (void)err;
    mark(t, block, page, n, VC_PAGE_ZERO);
    return 0;
}

int vc_txn_unknown(struct vc_txn *t, uint32_t block, struct vc_page page, size_t n,
                   struct vc_err *err)
{
    (void)err;
    mark(t, block, page, n, VC_PAGE_UNKNOWN);
    return 0;
}

static int copy_page(struct vc_txn *t, uint32_t block, struct vc_page page, uint32_t from,
                     const struct vc_digest *digest, struct vc_err *err)
{
    vc_auto_free uint8_t *buf = malloc(t->ix.ram.page_bytes);
    const uint8_t *content = buf;
    int rc;

    if (!buf)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a page");
    rc = vc_gen_read(t->base, from, page, 1, buf, err);
    return rc ? rc : vc_txn_put(t, block, page, 1, &content, digest, err);
}

int vc_txn_same(struct vc_txn *t, uint32_t block, struct vc_page page, size_t n, struct vc_err *err)
{
    int from = t->base ? vc_ram_find(&t->base->index.ram, t->ix.ram.blocks[block].name) : -1;

    if (from >= 0 && t->base->index.ram.page_bytes != t->ix.ram.page_bytes)
        from = -1;
    for (size_t i = 0; i < n; i++) {
        struct vc_page p = vc_page(page.n + i);
        uint64_t to = t->ix.first[block] + p.n;
        struct vc_digest d;
        uint64_t at;

        if (from < 0 || p.n >= vc_ram_block_pages(&t->base->index.ram, (uint32_t)from) ||
            vc_gen_lookup(t->base, (uint32_t)from, p, &d) != VC_PAGE_HELD) {
            mark(t, block, p, 1, VC_PAGE_UNKNOWN);
            continue;
        }
        if (!t->on_base) {
            int rc = copy_page(t, block, p, (uint32_t)from, &d, err);

            if (rc)
                return rc;
            continue;
        }
        at = t->base->index.first[from] + p.n;
        t->ix.state[to] = VC_PAGE_HELD;
        t->ix.layer[to] = t->base->index.layer[at];
        memcpy(t->ix.slot + 4 * to, t->base->index.slot + 4 * at, 4);
        memcpy(t->ix.digest + to * VC_DIGEST_BYTES, d.b, VC_DIGEST_BYTES);
    }
    return 0;
}

/* Where the page goes: its place in an image; in a delta the slot it has already, or a new one. */
static uint64_t place(struct vc_txn *t, uint32_t block, uint64_t page)
{
    uint64_t i = t->ix.first[block] + page;
    uint32_t layer;

    if (t->on_base && !(t->ix.state[i] == VC_PAGE_HELD && t->ix.layer[i] == t->own))
        vc_store_le(t->ix.slot + 4 * i, t->next_slot++, 4);
    t->ix.state[i] = VC_PAGE_HELD;
    t->ix.layer[i] = (uint8_t)t->own;
    return vc_index_offset(&t->ix, block, page, &layer);
}

int vc_txn_put(struct vc_txn *t, uint32_t block, struct vc_page page, size_t n,
               const uint8_t *const *contents, const struct vc_digest *digests, struct vc_err *err)
{
    uint32_t page_bytes = t->ix.ram.page_bytes;
    struct iovec iov[256];
    uint64_t start = 0;
    size_t k = 0;
    int rc = vc_store_room(t->vm->store, &t->granted, n * page_bytes, err);

    if (rc)
        return rc;
    mark(t, block, page, 0, VC_PAGE_HELD);
    for (size_t i = 0; i <= n; i++) {
        uint64_t at = i < n ? place(t, block, page.n + i) : 0;

        if (k && (i == n || k == VC_ARRAY_LEN(iov) || at != start + k * page_bytes)) {
            if (vc_pwritev_full(t->fd, iov, k, start) < 0)
                return vc_store_errno(err, "write", "the new generation");
            k = 0;
        }
        if (i == n)
            break;
        if (k == 0)
            start = at;
        iov[k++] = (struct iovec){(void *)contents[i], page_bytes};
        memcpy(t->ix.digest + (t->ix.first[block] + page.n + i) * VC_DIGEST_BYTES, digests[i].b,
               VC_DIGEST_BYTES);
    }
    return 0;
}

static void free_txn(struct vc_txn *t)
{
    if (t->fd >= 0)
        close(t->fd);
    free(t->ix.state);
    free(t->ix.layer);
    free(t->ix.slot);
    free(t->ix.digest);
    free(t);
}

void vc_txn_abort(struct vc_txn *t)
{
    char name[VC_NAME_BYTES];

    if (!t)
        return;
    if (t->fd >= 0) {
        const struct vc_layer *l = &t->ix.layers[t->own];

        vc_store_file_name(name, &l->id, vc_layer_suffix(l->kind));
        unlinkat(t->vm->dir_fd, name, 0);
    }
    free_txn(t);
}

/* Layers that no page is in any more need not be kept; the order of the rest stays. */
static void drop_unused_layers(struct vc_index *ix)
{
    bool used[VC_STORE_MAX_LAYERS] = {false};
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

static void describe(const struct vc_txn *t, const struct vc_txn_note *note,
                     struct vc_gen_info *info)
{
    const struct vc_index *ix = &t->ix;

    info->id = ix->gen;
    info->created_unix = vc_wall_s();
    info->ram_bytes = vc_ram_bytes(&ix->ram);
    info->n_layers = ix->n_layers;
    for (uint64_t i = 0; i < ix->n_pages; i++) {
        info->zero_pages += ix->state[i] == VC_PAGE_ZERO;
        info->held_pages += ix->state[i] == VC_PAGE_HELD;
        info->unknown_pages += ix->state[i] == VC_PAGE_UNKNOWN;
    }
    info->same_pages = note->same_pages;
    info->data_pages = note->data_pages;
    info->role = note->role;
    if (note->peer)
        snprintf(info->peer, sizeof(info->peer), "%s", note->peer);
}

static int commit(struct vc_txn *t, const struct vc_txn_note *note, uint8_t *root_out,
                  struct vc_err *err)
{
    struct vc_gen_info info = {0};
    struct vc_vm *vm = t->vm;
    struct vc_gen_info before[VC_STORE_MAX_GENERATIONS];
    size_t n_before = vm->n_gens;
    int rc;

    if (!t->ram_set)
        return vc_err_set(err, VC_E_STORE, "the migration ended before it listed the RAM");
    if (t->on_base)
        t->ix.layers[t->own].bytes = t->next_slot * t->ix.ram.page_bytes;
    rc = vc_durable_sync(t->fd, "the new generation", err);
    if (!rc)
        rc = vc_index_root(&t->ix, info.root, err);
    if (rc)
        return rc;
    drop_unused_layers(&t->ix);
    rc = vc_index_write(&t->ix, vm->dir_fd, err);
    if (rc)
        return rc;
    describe(t, note, &info);
    memcpy(before, vm->gens, sizeof(before));
    vm->gens[0] = info;
    vm->n_gens = 1;
    rc = vc_manifest_write(vm, err);
    if (rc) {
        memcpy(vm->gens, before, sizeof(before));
        vm->n_gens = n_before;
        return rc;
    }
    if (root_out)
        memcpy(root_out, info.root, VC_ROOT_BYTES);
    vc_vm_sweep(vm);
    return 0;
}

int vc_txn_commit(struct vc_txn *t, const struct vc_txn_note *note, uint8_t root_out[VC_ROOT_BYTES],
                  struct vc_err *err)
{
    int rc = commit(t, note, root_out, err);

    if (rc)
        vc_txn_abort(t);
    else
        free_txn(t);
    return rc;
}
