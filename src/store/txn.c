/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/durable.h"
#include "store/genlog.h"

/* Theory of operation
 *
 * A transaction builds an index in memory and writes contents into one new file: a delta on top of
 * the base's layers, or an image where there is no base to stand on (none, another layout of the
 * RAM, or too many layers already). In the latter case pages that equal the base's are copied.
 * What the index learns is appended to a log beside it, which is all that a crash leaves of the
 * index. Nothing committed is touched before the manifest is switched. */

struct vc_txn {
    struct vc_vm *vm;
    const struct vc_gen *base; /* borrowed, or NULL */
    bool on_base;              /* the base's layers are this generation's too */
    struct vc_index ix;
    uint32_t own; /* layer that is written */
    int fd;
    struct vc_id log_id; /* names the log; nil: there is none */
    struct vc_genlog *log;
    uint64_t next_slot;
    uint64_t granted; /* bytes that may be written before the disk is looked at again */
    bool ram_set;
    bool arrived; /* some page is held, by word of the migration */
};

int vc_txn_begin(struct vc_vm *vm, const struct vc_id *id, const struct vc_gen *base,
                 struct vc_txn **out, struct vc_err *err)
{
    struct vc_txn *t;

    if (vm->txn)
        return vc_err_set(err, VC_E_STORE, "the VM has a generation in progress already");
    if (vc_id_is_nil(id)) /* a peer may choose it: logs and eviction would take it for none */
        return vc_err_set(err, VC_E_STORE, "the new generation's id is zero");
    t = calloc(1, sizeof(*t));
    if (!t)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a generation");
    t->vm = vm;
    t->base = base;
    t->fd = -1;
    t->ix.gen = *id;
    t->ix.lineage = vm->m.lineage.id;
    vm->txn = t;
    *out = t;
    return 0;
}

void vc_txn_names(const struct vc_txn *t, char layer[VC_NAME_BYTES], char log[VC_NAME_BYTES])
{
    layer[0] = log[0] = 0;
    if (t->fd >= 0)
        vc_layer_name(layer, &t->ix.layers[t->own]);
    if (!vc_id_is_nil(&t->log_id))
        vc_store_file_name(log, &t->log_id, ".log");
}

static int make_layer(struct vc_txn *t, uint64_t image_bytes, struct vc_err *err)
{
    const struct vc_io *io = t->vm->store->io;
    struct vc_layer *l = &t->ix.layers[t->own];
    char name[VC_NAME_BYTES];

    if (!vc_id_random(&l->id))
        return vc_err_set(err, VC_E_FAILED, "the kernel gives no random numbers");
    l->kind = t->on_base ? VC_LAYER_DELTA : VC_LAYER_IMAGE;
    l->bytes = t->on_base ? 0 : image_bytes;
    vc_layer_name(name, l);
    t->fd = io->open(io, t->vm->dir_fd, name, O_RDWR | O_CREAT | O_EXCL);
    if (t->fd < 0)
        return vc_store_errno(err, "create", name);
    if (!t->on_base && io->resize(io, t->fd, l->bytes) < 0)
        return vc_store_errno(err, "extend", name);
    return 0;
}

static int make_log(struct vc_txn *t, struct vc_err *err)
{
    vc_auto_free struct vc_genlog_head *h = calloc(1, sizeof(*h));

    if (!h)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a log");
    h->ix = t->ix;
    if (t->on_base)
        h->base = t->base->index.gen;
    t->log_id = t->ix.gen;
    return vc_genlog_open(&t->log, t->vm, h, t->fd, err);
}

/* Where files can be made and not be taken away again, each migration would leave one more. */
static int check_dir(const struct vc_txn *t, struct vc_err *err)
{
    struct statx x;

    if (statx(t->vm->dir_fd, "", AT_EMPTY_PATH, STATX_TYPE, &x) == 0 &&
        x.stx_attributes & (STATX_ATTR_APPEND | STATX_ATTR_IMMUTABLE))
        return vc_err_set_hint(err, VC_E_STORE, "chattr -i -a",
                               "the VM's directory is append-only or immutable");
    return 0;
}

/* The base's layers are taken over if a new one fits on top, and the blocks lie where they lay. */
static uint64_t lay_out(struct vc_txn *t)
{
    const struct vc_index *base = t->base ? &t->base->index : NULL;
    uint64_t image_bytes = vc_index_place(&t->ix);

    t->on_base =
        base && vc_ram_equal(&t->ix.ram, &base->ram) && base->n_layers < VC_STORE_MAX_LAYERS;
    if (t->on_base) {
        t->ix.n_layers = base->n_layers;
        memcpy(t->ix.layers, base->layers, sizeof(t->ix.layers));
        memcpy(t->ix.image_offset, base->image_offset, sizeof(t->ix.image_offset));
        memcpy(t->ix.image_room, base->image_room, sizeof(t->ix.image_room));
    }
    t->own = t->ix.n_layers++;
    return image_bytes;
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
    vc_index_number(&t->ix);
    if (t->ix.n_pages > UINT32_MAX)
        return vc_err_set(err, VC_E_STORE_FULL, "the VM has too many pages for the store");
    rc = vc_index_alloc(&t->ix, err);
    if (rc)
        return rc;
    rc = check_dir(t, err);
    if (!rc)
        rc = make_layer(t, lay_out(t), err);
    if (!rc)
        rc = make_log(t, err);
    t->ram_set = !rc;
    return vc_vm_blame(t->vm, rc, err);
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
    mark(t, block, page, n, VC_PAGE_ZERO);
    return n ? vc_genlog_add(t->log, VC_RECORD_ZERO, block, page.n, n, 0, NULL, err) : 0;
}

int vc_txn_unknown(struct vc_txn *t, uint32_t block, struct vc_page page, size_t n,
                   struct vc_err *err)
{
    mark(t, block, page, n, VC_PAGE_UNKNOWN);
    return n ? vc_genlog_add(t->log, VC_RECORD_UNKNOWN, block, page.n, n, 0, NULL, err) : 0;
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

/* No place to stand on: the pages are copied. */
static int copy_same(struct vc_txn *t, uint32_t block, struct vc_page page, size_t n,
                     struct vc_err *err)
{
    const struct vc_ram *ram = t->base ? &t->base->index.ram : NULL;
    int from = ram && ram->page_bytes == t->ix.ram.page_bytes
                   ? vc_ram_find(ram, t->ix.ram.blocks[block].name)
                   : -1;

    for (size_t i = 0; i < n; i++) {
        struct vc_page p = vc_page(page.n + i);
        struct vc_digest d;
        int rc = t->base && vc_gen_holds(t->base, from, p, &d)
                     ? copy_page(t, block, p, (uint32_t)from, &d, err)
                     : vc_txn_unknown(t, block, p, 1, err);

        if (rc)
            return rc;
    }
    return 0;
}

int vc_txn_same(struct vc_txn *t, uint32_t block, struct vc_page page, size_t n, struct vc_err *err)
{
    const struct vc_index *base = t->on_base ? &t->base->index : NULL;
    struct vc_index *ix = &t->ix;

    mark(t, block, page, n, VC_PAGE_UNKNOWN);
    if (!base)
        return copy_same(t, block, page, n, err);
    for (size_t i = 0; i < n; i++) {
        uint64_t at = ix->first[block] + page.n + i;

        if (base->state[at] != VC_PAGE_HELD)
            continue;
        ix->state[at] = VC_PAGE_HELD;
        ix->layer[at] = base->layer[at];
        memcpy(ix->slot + 4 * at, base->slot + 4 * at, 4);
        memcpy(ix->digest + at * VC_DIGEST_BYTES, base->digest + at * VC_DIGEST_BYTES,
               VC_DIGEST_BYTES);
        t->arrived = true;
    }
    return n ? vc_genlog_add(t->log, VC_RECORD_SAME, block, page.n, n, 0, NULL, err) : 0;
}

/* Where the page goes: its place in an image; in a delta the slot it has had there, or a new one.
 */
static uint64_t place(struct vc_txn *t, uint32_t block, uint64_t page)
{
    uint64_t i = t->ix.first[block] + page;
    uint32_t layer;

    if (t->on_base && t->ix.layer[i] != t->own)
        vc_store_le(t->ix.slot + 4 * i, t->next_slot++, 4);
    t->ix.state[i] = VC_PAGE_HELD;
    t->ix.layer[i] = (uint8_t)t->own;
    return vc_index_offset(&t->ix, block, page, &layer);
}

/* Pages that lie one behind the other in the file, k of them. */
static int put_stretch(struct vc_txn *t, uint32_t block, uint64_t page, struct iovec *iov, size_t k,
                       uint64_t at, const struct vc_digest *digests, struct vc_err *err)
{
    const struct vc_io *io = t->vm->store->io;
    uint32_t slot = t->on_base ? (uint32_t)(at / t->ix.ram.page_bytes) : 0;

    if (io->write(io, t->fd, iov, k, at) < 0)
        return vc_store_errno(err, "write", "the new generation");
    t->arrived = true;
    return vc_genlog_add(t->log, VC_RECORD_HELD, block, page, k, slot, digests, err);
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
    mark(t, block, page, 0, VC_PAGE_UNKNOWN); /* looks at the range alone */
    if (t->next_slot + n > UINT32_MAX)
        return vc_err_set(err, VC_E_STORE_FULL, "the new generation has too many pages");
    for (size_t i = 0; i <= n; i++) {
        uint64_t at = i < n ? place(t, block, page.n + i) : 0;

        if (k && (i == n || k == VC_ARRAY_LEN(iov) || at != start + k * page_bytes)) {
            rc = put_stretch(t, block, page.n + i - k, iov, k, start, &digests[i - k], err);
            if (rc)
                return vc_vm_blame(t->vm, rc, err);
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

/* ---- reading ---- */

static bool is_known(uint8_t state)
{
    return state == VC_PAGE_HELD || state == VC_PAGE_ZERO;
}

size_t vc_txn_known(const struct vc_txn *t, uint32_t block, struct vc_page page, size_t n,
                    bool *known)
{
    const uint8_t *state;
    size_t k = 1;

    *known = false;
    if (!t->ram_set)
        return n;
    state = t->ix.state + t->ix.first[block] + page.n;
    *known = is_known(state[0]);
    while (k < n && is_known(state[k]) == *known)
        k++;
    return k;
}

/* Reads the first of n pages, and what lies behind it where the next ones are; *k: so many. */
static int read_stretch(const struct vc_txn *t, uint32_t block, uint64_t page, size_t n,
                        uint8_t *buf, size_t *k, struct vc_err *err)
{
    const uint8_t *state = t->ix.state + t->ix.first[block] + page;
    const struct vc_io *io = t->vm->store->io;
    uint32_t page_bytes = t->ix.ram.page_bytes, layer, next;
    uint64_t at;
    int rc;

    *k = 1;
    if (state[0] == VC_PAGE_ZERO) {
        memset(buf, 0, page_bytes);
        return 0;
    }
    at = vc_index_offset(&t->ix, block, page, &layer);
    if (layer != t->own)
        return vc_gen_read(t->base, block, vc_page(page), 1, buf, err);
    while (*k < n && state[*k] == VC_PAGE_HELD &&
           vc_index_offset(&t->ix, block, page + *k, &next) == at + *k * page_bytes &&
           next == layer)
        ++*k;
    rc = io->read(io, t->fd, buf, *k * page_bytes, at);
    if (rc == 0)
        return vc_err_set(err, VC_E_CORRUPT, "the new generation's file is cut off");
    return rc < 0 ? vc_store_errno(err, "read", "the new generation") : 0;
}

int vc_txn_read(const struct vc_txn *t, uint32_t block, struct vc_page page, size_t n, uint8_t *buf,
                struct vc_err *err)
{
    for (size_t i = 0, k; i < n; i += k) {
        int rc = read_stretch(t, block, page.n + i, n - i, buf + i * t->ix.ram.page_bytes, &k, err);

        if (rc)
            return rc;
    }
    return 0;
}

/* ---- the log ---- */

int vc_txn_log(struct vc_txn *t, bool sync, struct vc_err *err)
{
    if (!t->ram_set)
        return 0;
    return sync ? vc_genlog_sync(t->log, err) : vc_genlog_flush(t->log, err);
}

/* ---- the end ---- */

static void free_txn(struct vc_txn *t)
{
    vc_genlog_close(t->log, NULL);
    if (t->fd >= 0)
        close(t->fd);
    vc_index_free(&t->ix);
    if (t->vm->txn == t)
        t->vm->txn = NULL;
    free(t);
}

void vc_txn_abort(struct vc_txn *t)
{
    char layer[VC_NAME_BYTES], log[VC_NAME_BYTES];
    const struct vc_io *io;
    struct vc_vm *vm;

    if (!t)
        return;
    vm = t->vm;
    io = vm->store->io;
    vc_txn_names(t, layer, log);
    free_txn(t);
    if (vm->in_doubt)
        return;
    /* The log first: alone it would be a generation with a layer missing. */
    if (log[0])
        io->unlink(io, vm->dir_fd, log, 0);
    if (layer[0])
        io->unlink(io, vm->dir_fd, layer, 0);
}

/* Everything durable but index and manifest; from now on they alone say what is garbage. */
static int finish(struct vc_txn *t, struct vc_err *err)
{
    struct vc_genlog *log = t->log;
    int rc;

    if (!t->ram_set)
        return vc_err_set(err, VC_E_STORE, "the migration ended before it listed the RAM");
    if (!vc_id_equal(&t->ix.lineage, &t->vm->m.lineage.id))
        return vc_err_set(err, VC_E_STORE, "the VM has got another lineage in the meantime");
    t->log = NULL;
    t->vm->txn = NULL;
    rc = vc_genlog_close(log, err);
    if (rc)
        return rc;
    if (t->on_base)
        t->ix.layers[t->own].bytes = t->next_slot * t->ix.ram.page_bytes;
    return vc_durable_sync(t->vm->store->io, t->fd, "the new generation", err);
}

int vc_txn_commit(struct vc_txn *t, const struct vc_txn_note *note, uint8_t root_out[VC_ROOT_BYTES],
                  struct vc_err *err)
{
    struct vc_vm *vm = t->vm;
    int rc = finish(t, err);

    if (!rc)
        rc = vc_commit(t->vm, &t->ix, note, false, root_out, err);
    if (rc)
        vc_txn_abort(t);
    else
        free_txn(t);
    return vc_vm_blame(vm, rc, err);
}

int vc_txn_suspend(struct vc_txn *t, const struct vc_txn_note *note, struct vc_err *err)
{
    struct vc_vm *vm;
    int rc;

    if (!t || !t->arrived) {
        vc_txn_abort(t);
        return VC_NOT_FOUND;
    }
    vm = t->vm;
    rc = finish(t, err);
    if (!rc && t->on_base)
        vc_commit_fill(&t->ix, &t->base->index);
    if (!rc && !vc_id_random(&t->ix.gen))
        rc = vc_err_set(err, VC_E_FAILED, "the kernel gives no random numbers");
    if (!rc)
        rc = vc_commit(t->vm, &t->ix, note, true, NULL, err);
    if (rc)
        vc_txn_abort(t);
    else
        free_txn(t);
    return vc_vm_blame(vm, rc, err);
}
