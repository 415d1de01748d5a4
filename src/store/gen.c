/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "store/internal.h"

#define VERIFY_PAGES 64

static int missing(struct vc_err *err, const char *name)
{
    vc_err_set_errno_hint(err, VC_E_CORRUPT, "'vecycle rm' drops the VM's checkpoint",
                          "cannot open '%s'", name);
    return VC_NOT_FOUND;
}

static int open_layers(struct vc_gen *g, const struct vc_vm *vm, struct vc_err *err)
{
    for (uint32_t i = 0; i < g->index.n_layers; i++) {
        const struct vc_layer *l = &g->index.layers[i];
        char name[VC_NAME_BYTES];
        struct stat st;

        vc_layer_name(name, l);
        g->fds[i] = g->io->open(g->io, vm->dir_fd, name, O_RDONLY);
        if (g->fds[i] < 0 && errno == ENOENT)
            return missing(err, name);
        if (g->fds[i] < 0 || fstat(g->fds[i], &st) < 0)
            return vc_vm_open_errno(vm, name, err);
        if ((uint64_t)st.st_size < l->bytes)
            return vc_err_set_hint(err, VC_E_CORRUPT, "'vecycle rm' drops the VM's checkpoint",
                                   "'%s' is cut off: %lld of %llu bytes", name,
                                   (long long)st.st_size, (unsigned long long)l->bytes);
    }
    return 0;
}

/* 0, VC_NOT_FOUND (a file is missing; err filled as if it were damage), or an error. */
static int open_entry(struct vc_vm *vm, const struct vc_entry *e, struct vc_gen **out,
                      struct vc_err *err)
{
    struct vc_gen *g = calloc(1, sizeof(*g));
    int rc;

    if (!g)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a generation");
    for (size_t k = 0; k < VC_STORE_MAX_LAYERS; k++)
        g->fds[k] = -1;
    g->io = vm->store->io;
    g->info = e->info;
    g->index_file = e->index;
    rc = vc_index_read(&g->index, vm, e, &g->file, err);
    if (!rc)
        rc = open_layers(g, vm, err);
    if (rc) {
        vc_gen_close(g);
        return rc;
    }
    *out = g;
    return 0;
}

/* Who reads holds no lock: a fold or a commit may have taken the files away, and then the manifest
 * says so, or is gone with them. False: it is as it was, the file is really missing. Reads vm->m
 * anew, so that nothing that is passed here may lie in it. */
static bool manifest_moved(struct vc_vm *vm, const struct vc_id *id)
{
    struct vc_entry *e = vc_manifest_find(&vm->m, id);
    struct vc_id before = e->index;
    int rc = vm->lock_fd >= 0 ? VC_E_CORRUPT : vc_manifest_read(vm, NULL);

    if (rc == VC_NOT_FOUND)
        vm->m.n_gens = 0; /* the VM was removed */
    else if (rc)
        return false;
    e = vc_manifest_find(&vm->m, id);
    return !e || !vc_id_equal(&e->index, &before);
}

int vc_gen_open(struct vc_vm *vm, const struct vc_id *gen, struct vc_gen **out, struct vc_err *err)
{
    struct vc_id wanted = *gen; /* most callers point into vm->m */

    for (;;) {
        struct vc_entry *e = vc_manifest_find(&vm->m, &wanted);
        int rc = e ? open_entry(vm, e, out, err) : VC_NOT_FOUND;

        if (!e || rc != VC_NOT_FOUND)
            return vc_vm_blame(vm, rc, err);
        if (!manifest_moved(vm, &wanted))
            return vc_vm_blame(vm, VC_E_CORRUPT, err);
    }
}

void vc_gen_close(struct vc_gen *g)
{
    if (!g)
        return;
    for (size_t k = 0; k < VC_STORE_MAX_LAYERS; k++)
        if (g->fds[k] >= 0)
            close(g->fds[k]);
    free(g->file);
    vc_index_uncharge(&g->index);
    free(g);
}

const struct vc_ram *vc_gen_ram(const struct vc_gen *g)
{
    return &g->index.ram;
}

const struct vc_gen_info *vc_gen_info(const struct vc_gen *g)
{
    return &g->info;
}

enum vc_page_state vc_gen_lookup(const struct vc_gen *g, uint32_t block, struct vc_page page,
                                 struct vc_digest *digest)
{
    uint64_t i = g->index.first[block] + page.n;

    assert(block < g->index.ram.n_blocks && page.n < vc_ram_block_pages(&g->index.ram, block));
    if (g->index.state[i] == VC_PAGE_HELD && digest)
        memcpy(digest->b, g->index.digest + i * VC_DIGEST_BYTES, VC_DIGEST_BYTES);
    return (enum vc_page_state)g->index.state[i];
}

bool vc_gen_holds(const struct vc_gen *g, int block, struct vc_page page, struct vc_digest *digest)
{
    return block >= 0 && page.n < vc_ram_block_pages(&g->index.ram, (uint32_t)block) &&
           vc_gen_lookup(g, (uint32_t)block, page, digest) == VC_PAGE_HELD;
}

/* How many of n pages, one at least, lie in a row in one file: at *at of *layer. */
static size_t extent(const struct vc_index *ix, uint32_t block, uint64_t page, size_t n,
                     uint32_t *layer, uint64_t *at)
{
    uint32_t next_layer;
    size_t k = 1;

    *at = vc_index_offset(ix, block, page, layer);
    while (k < n &&
           vc_index_offset(ix, block, page + k, &next_layer) == *at + k * ix->ram.page_bytes &&
           next_layer == *layer)
        k++;
    return k;
}

int vc_gen_read(const struct vc_gen *g, uint32_t block, struct vc_page page, size_t n, uint8_t *buf,
                struct vc_err *err)
{
    uint32_t page_bytes = g->index.ram.page_bytes;

    for (size_t i = 0; i < n;) {
        uint32_t layer;
        uint64_t at;
        size_t k = extent(&g->index, block, page.n + i, n - i, &layer, &at);
        int rc = g->io->read(g->io, g->fds[layer], buf + i * page_bytes, k * page_bytes, at);

        if (rc == 0)
            return vc_err_set(err, VC_E_CORRUPT, "a checkpoint file is cut off");
        if (rc < 0)
            return vc_err_set_errno(err, VC_E_STORE, "cannot read a checkpoint file");
        i += k;
    }
    return 0;
}

bool vc_gen_is_cached(const struct vc_gen *g, uint32_t block, struct vc_page page, size_t n)
{
    if (!g->io->is_cached)
        return false;
    for (size_t i = 0; i < n;) {
        uint32_t layer;
        uint64_t at;
        size_t k = extent(&g->index, block, page.n + i, n - i, &layer, &at);

        if (!g->io->is_cached(g->io, g->fds[layer], at + k * g->index.ram.page_bytes - 1))
            return false;
        i += k;
    }
    return true;
}

/* More may be left undone in one call: as much as the device reads ahead, by default
 * (mm/readahead.c, force_page_cache_ra(); Documentation/ABI/stable/sysfs-block, read_ahead_kb). */
#define PREFETCH_BYTES (128u << 10)

void vc_gen_prefetch(const struct vc_gen *g, uint32_t block, struct vc_page page, uint64_t n)
{
    const struct vc_index *ix = &g->index;
    uint64_t pages = vc_ram_block_pages(&ix->ram, block), end, p;

    if (page.n >= pages)
        return;
    end = page.n + VC_MIN(n, pages - page.n);
    for (p = page.n; p < end;) {
        uint32_t layer;
        uint64_t at;
        size_t k = 0, bytes;

        while (p + k < end && vc_gen_lookup(g, block, vc_page(p + k), NULL) == VC_PAGE_HELD)
            k++;
        if (!k) {
            p++;
            continue;
        }
        k = extent(ix, block, p, k, &layer, &at);
        p += k;
        bytes = k * ix->ram.page_bytes;
        for (size_t i = 0; i < bytes; i += PREFETCH_BYTES)
            posix_fadvise(g->fds[layer], (off_t)(at + i),
                          (off_t)VC_MIN(bytes - i, (size_t)PREFETCH_BYTES), POSIX_FADV_WILLNEED);
    }
}

void vc_gen_read_sparsely(const struct vc_gen *g)
{
    for (size_t k = 0; k < VC_STORE_MAX_LAYERS; k++)
        if (g->fds[k] >= 0)
            posix_fadvise(g->fds[k], 0, 0, POSIX_FADV_RANDOM);
}

/* ---- verifying ---- */

int vc_gen_check(const struct vc_gen *g, struct vc_digester *d, uint32_t block, struct vc_page page,
                 size_t n, const uint8_t *content, size_t *bad, struct vc_page *first,
                 struct vc_err *err)
{
    uint32_t page_bytes = g->index.ram.page_bytes;
    const uint8_t *pages[VERIFY_PAGES];
    struct vc_digest got[VERIFY_PAGES], want;

    *bad = 0;
    for (size_t at = 0, k; at < n; at += k) {
        int rc;

        k = VC_MIN(n - at, (size_t)VERIFY_PAGES);
        for (size_t i = 0; i < k; i++)
            pages[i] = content + (at + i) * page_bytes;
        rc = vc_digest_pages(d, pages, k, page_bytes, got, err);
        if (rc)
            return rc;
        for (size_t i = 0; i < k; i++) {
            struct vc_page p = vc_page(page.n + at + i);

            vc_gen_lookup(g, block, p, &want);
            if (!vc_digest_equal(&want, &got[i]) && !(*bad)++)
                *first = p;
        }
    }
    return 0;
}

struct verify {
    const struct vc_gen *g;
    struct vc_digester *d;
    uint8_t *buf;
    struct vc_verify_result *out;
};

static int verify_run(struct verify *v, uint32_t block, uint64_t page, size_t n, struct vc_err *err)
{
    struct vc_page first;
    size_t bad;
    int rc = vc_gen_read(v->g, block, vc_page(page), n, v->buf, err);

    if (!rc)
        rc = vc_gen_check(v->g, v->d, block, vc_page(page), n, v->buf, &bad, &first, err);
    if (rc)
        return rc;
    if (bad && !v->out->bad_pages) {
        v->out->first_bad_block = block;
        v->out->first_bad_page = first;
    }
    v->out->bad_pages += bad;
    v->out->pages += n;
    return 0;
}

static int verify_block(struct verify *v, uint32_t block, struct vc_err *err)
{
    for (uint64_t p = 0, n; (n = vc_index_held(&v->g->index, block, &p, VERIFY_PAGES)) > 0;
         p += n) {
        int rc = verify_run(v, block, p, n, err);

        if (rc)
            return rc;
    }
    return 0;
}

int vc_gen_verify(const struct vc_gen *g, const struct vc_lineage *l,
                  void (*progress)(void *opaque, uint64_t done, uint64_t total), void *opaque,
                  struct vc_verify_result *out, struct vc_err *err)
{
    vc_auto_free uint8_t *buf = malloc((size_t)VERIFY_PAGES * g->index.ram.page_bytes);
    struct verify v = {.g = g, .buf = buf, .out = out};
    uint8_t root[VC_ROOT_BYTES];
    int rc;

    *out = (struct vc_verify_result){0};
    if (!buf)
        return vc_err_set(err, VC_E_NOMEM, "no memory to verify");
    rc = vc_index_root(&g->index, root, err);
    if (!rc && memcmp(root, g->info.root, sizeof(root)) != 0)
        rc = vc_err_set(err, VC_E_CORRUPT, "the index does not fit its root");
    if (!rc)
        rc = vc_digester_new(l->algo, VC_DIGEST_PAGE, l->key, &v.d, err);
    for (uint32_t b = 0; b < g->index.ram.n_blocks && !rc; b++) {
        rc = verify_block(&v, b, err);
        if (progress)
            progress(opaque, out->pages, g->info.held_pages);
    }
    vc_digester_free(v.d);
    return rc;
}
