/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/durable.h"
#include "store/internal.h"

/* Index files: docs/formats/store.md section 3. */

static const char magic[8] = "vcindex\n";
static const char root_tag[16] = "vecycle root 1\n";
#define IMAGE_ALIGN (2u << 20)
#define HEADER_ALIGN 4096u
#define ALIGN(n, to) (((n) + (to)-1) & ~((uint64_t)(to)-1))

/* ---- layout ---- */

void vc_index_number(struct vc_index *ix)
{
    ix->n_pages = 0;
    for (uint32_t i = 0; i < ix->ram.n_blocks; i++) {
        ix->first[i] = ix->n_pages;
        ix->n_pages += vc_ram_block_pages(&ix->ram, i);
    }
}

/* Blocks by length, the longest first, so that it begins where the file begins. */
uint64_t vc_index_place(struct vc_index *ix)
{
    bool placed[VC_MAX_BLOCKS] = {false};
    uint64_t at = 0, end = 0;

    for (uint32_t k = 0; k < ix->ram.n_blocks; k++) {
        int best = -1;

        for (uint32_t i = 0; i < ix->ram.n_blocks; i++)
            if (!placed[i] && (best < 0 || ix->ram.blocks[i].bytes > ix->ram.blocks[best].bytes))
                best = (int)i;
        placed[best] = true;
        ix->image_offset[best] = at;
        ix->image_room[best] = ix->ram.blocks[best].bytes;
        end = at + ix->ram.blocks[best].bytes;
        at = ALIGN(end, IMAGE_ALIGN);
    }
    return ALIGN(end, HEADER_ALIGN);
}

uint64_t vc_index_offset(const struct vc_index *ix, uint32_t block, uint64_t page, uint32_t *layer)
{
    uint64_t i = ix->first[block] + page;

    *layer = ix->layer[i];
    if (ix->layers[*layer].kind == VC_LAYER_IMAGE)
        return ix->image_offset[block] + page * ix->ram.page_bytes;
    return vc_load_le(ix->slot + 4 * i, 4) * ix->ram.page_bytes;
}

bool vc_ram_equal(const struct vc_ram *a, const struct vc_ram *b)
{
    if (a->page_bytes != b->page_bytes || a->n_blocks != b->n_blocks)
        return false;
    for (uint32_t i = 0; i < a->n_blocks; i++)
        if (a->blocks[i].bytes != b->blocks[i].bytes ||
            strcmp(a->blocks[i].name, b->blocks[i].name) != 0)
            return false;
    return true;
}

/* ---- memory ---- */

#define MEMORY_SHARE 3u /* of the host's, as a part of it */
#define MADE_LEAST_BYTES (8 * VC_GIB)
#define READ_LEAST_BYTES VC_GIB

/* The indexes of the process: those being made, and those that were read. */
static atomic_ullong made_bytes, read_bytes;

static uint64_t memory_share(uint64_t least)
{
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t all = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;

    return VC_MAX(least, all / MEMORY_SHARE);
}

static int charge(struct vc_index *ix, atomic_ullong *sum, uint64_t bytes, uint64_t limit,
                  struct vc_err *err)
{
    uint64_t before = atomic_fetch_add(sum, bytes);

    if (bytes > limit || before > limit - bytes) {
        atomic_fetch_sub(sum, bytes);
        return vc_err_set(err, VC_E_STORE_FULL,
                          "the index of the VM's memory takes %llu MiB, and all of this process "
                          "may take %llu",
                          (unsigned long long)(bytes >> 20), (unsigned long long)(limit >> 20));
    }
    ix->charged = bytes;
    return 0;
}

void vc_index_uncharge(struct vc_index *ix)
{
    atomic_fetch_sub(&read_bytes, ix->charged);
    ix->charged = 0;
}

int vc_index_alloc(struct vc_index *ix, struct vc_err *err)
{
    int rc = charge(ix, &made_bytes, VC_INDEX_PAGE_BYTES * ix->n_pages,
                    memory_share(MADE_LEAST_BYTES), err);

    if (rc)
        return rc;
    ix->state = calloc(ix->n_pages + 1, 1);
    ix->layer = calloc(ix->n_pages + 1, 1);
    ix->slot = calloc(ix->n_pages + 1, 4);
    ix->digest = calloc(ix->n_pages + 1, VC_DIGEST_BYTES);
    if (!ix->state || !ix->layer || !ix->slot || !ix->digest)
        return vc_err_set(err, VC_E_STORE_FULL, "no memory for an index of %llu pages",
                          (unsigned long long)ix->n_pages);
    return 0;
}

void vc_index_free(struct vc_index *ix)
{
    free(ix->state);
    free(ix->layer);
    free(ix->slot);
    free(ix->digest);
    atomic_fetch_sub(&made_bytes, ix->charged);
    ix->charged = 0;
}

/* Memory that nothing was written to takes none, and is zero. */
static void clear(uint8_t *p, size_t n)
{
    if (n && !vc_is_zero(p, n))
        memset(p, 0, n);
}

void vc_index_normalize(struct vc_index *ix)
{
    for (uint64_t i = 0; i < ix->n_pages; i++) {
        bool held = ix->state[i] == VC_PAGE_HELD;

        clear(ix->digest + i * VC_DIGEST_BYTES, held ? 0 : VC_DIGEST_BYTES);
        clear(ix->layer + i, held ? 0 : 1);
        if (!held || ix->layers[ix->layer[i]].kind == VC_LAYER_IMAGE)
            clear(ix->slot + 4 * i, 4);
    }
}

uint64_t vc_index_held(const struct vc_index *ix, uint32_t block, uint64_t *page, uint64_t max)
{
    const uint8_t *state = ix->state + ix->first[block];
    uint64_t pages = vc_ram_block_pages(&ix->ram, block), n = 0;

    while (*page < pages && state[*page] != VC_PAGE_HELD)
        ++*page;
    while (n < max && *page + n < pages && state[*page + n] == VC_PAGE_HELD)
        n++;
    return n;
}

/* ---- root ---- */

static void hash_block(struct vc_sha256 *s, const struct vc_index *ix, uint32_t block)
{
    const uint8_t *state = ix->state + ix->first[block];
    const uint8_t *digest = ix->digest + ix->first[block] * VC_DIGEST_BYTES;
    uint64_t pages = vc_ram_block_pages(&ix->ram, block);

    vc_sha256_update(s, state, pages);
    for (uint64_t i = 0, n; (n = vc_index_held(ix, block, &i, pages)) > 0; i += n)
        vc_sha256_update(s, digest + i * VC_DIGEST_BYTES, n * VC_DIGEST_BYTES);
}

int vc_index_root(const struct vc_index *ix, uint8_t root[VC_ROOT_BYTES], struct vc_err *err)
{
    vc_auto_free uint8_t *head = malloc(VC_HEADER_MAX);
    struct vc_sha256 *s = head ? vc_sha256_new() : NULL;
    struct vc_writer w = vc_writer(head, VC_HEADER_MAX);

    if (!s)
        return vc_err_set(err, VC_E_NOMEM, "no memory for an index root");
    vc_write_bytes(&w, root_tag, sizeof(root_tag));
    vc_write_u32(&w, ix->ram.page_bytes);
    vc_write_u32(&w, ix->ram.n_blocks);
    for (uint32_t i = 0; i < ix->ram.n_blocks; i++) {
        vc_write_str8(&w, ix->ram.blocks[i].name);
        vc_write_u64(&w, ix->ram.blocks[i].bytes);
    }
    vc_sha256_update(s, head, w.len);
    for (uint32_t i = 0; i < ix->ram.n_blocks; i++)
        hash_block(s, ix, i);
    if (!vc_sha256_finish(s, root))
        return vc_err_set(err, VC_E_FAILED, "OpenSSL: SHA-256 failed");
    return 0;
}

/* ---- writing ---- */

/* Length of the header, or 0. */
static size_t encode_header(const struct vc_index *ix, uint8_t *buf)
{
    struct vc_writer w = vc_writer(buf, VC_HEADER_MAX);
    size_t bytes;

    memset(buf, 0, VC_HEADER_MAX);
    vc_head_write(&w, magic);
    vc_write_u64(&w, 0); /* the lengths of file and header, below */
    vc_write_u32(&w, 0);
    vc_write_u32(&w, ix->ram.page_bytes);
    vc_write_bytes(&w, ix->gen.b, 16);
    vc_write_bytes(&w, ix->lineage.b, 16);
    vc_write_bytes(&w, ix->root, VC_ROOT_BYTES);
    vc_write_u64(&w, ix->n_pages);
    vc_write_u32(&w, ix->ram.n_blocks);
    vc_write_u32(&w, ix->n_layers);
    vc_layers_write(&w, ix->layers, ix->n_layers);
    vc_blocks_write(&w, ix);
    bytes = ALIGN(w.len, HEADER_ALIGN);
    vc_store_le(buf + VC_HEAD_BYTES, bytes + VC_INDEX_PAGE_BYTES * ix->n_pages + VC_SHA256_BYTES,
                8);
    vc_store_le(buf + VC_HEAD_BYTES + 8, bytes, 4);
    return w.failed ? 0 : bytes;
}

int vc_index_write(const struct vc_index *ix, const struct vc_io *io, int fd, const char *name,
                   struct vc_err *err)
{
    vc_auto_free uint8_t *head = malloc(VC_HEADER_MAX);
    size_t bytes = head ? encode_header(ix, head) : 0;
    uint8_t sum[VC_SHA256_BYTES];
    struct iovec iov[] = {
        {head, bytes},
        {ix->digest, ix->n_pages * VC_DIGEST_BYTES},
        {ix->slot, ix->n_pages * 4},
        {ix->state, ix->n_pages},
        {ix->layer, ix->n_pages},
        {sum, sizeof(sum)},
    };
    struct vc_sha256 *s = vc_sha256_new();

    if (!bytes || !s) {
        vc_sha256_free(s);
        return vc_err_set(err, VC_E_NOMEM, "no memory to write an index");
    }
    for (size_t i = 0; i + 1 < VC_ARRAY_LEN(iov); i++)
        vc_sha256_update(s, iov[i].iov_base, iov[i].iov_len);
    if (!vc_sha256_finish(s, sum))
        return vc_err_set(err, VC_E_FAILED, "OpenSSL: SHA-256 failed");
    if (io->write(io, fd, iov, VC_ARRAY_LEN(iov), 0) < 0)
        return vc_store_errno(err, "write", name);
    return vc_durable_sync(io, fd, name, err);
}

/* ---- reading ---- */

static int corrupt(struct vc_err *err, const char *name, const char *what)
{
    return vc_err_set_hint(err, VC_E_CORRUPT, "'vecycle rm' drops the VM's checkpoint",
                           "index '%s' is damaged: %s", name, what);
}

/* The header behind the head. NULL, or what is wrong with it. */
static const char *decode_header(struct vc_reader *r, struct vc_index *ix, uint64_t *bytes,
                                 uint32_t *header)
{
    uint64_t n_pages;

    *bytes = vc_read_u64(r);
    *header = vc_read_u32(r);
    ix->ram.page_bytes = vc_read_u32(r);
    vc_read_copy(r, ix->gen.b, 16);
    vc_read_copy(r, ix->lineage.b, 16);
    vc_read_copy(r, ix->root, VC_ROOT_BYTES);
    n_pages = vc_read_u64(r);
    ix->ram.n_blocks = vc_read_u32(r);
    ix->n_layers = vc_read_u32(r);
    if (!vc_layers_read(r, ix->layers, ix->n_layers))
        return "impossible layers";
    if (!vc_blocks_read(r, ix))
        return "impossible RAM blocks";
    if (*header % HEADER_ALIGN || *header > VC_HEADER_MAX || r->off > *header)
        return "impossible header";
    return n_pages == ix->n_pages ? NULL : "a wrong number of pages";
}

static bool location_fits(const struct vc_index *ix, uint32_t block, uint64_t page)
{
    uint64_t i = ix->first[block] + page, slot = vc_load_le(ix->slot + 4 * i, 4);
    uint32_t page_bytes = ix->ram.page_bytes;

    if (ix->state[i] > VC_PAGE_UNKNOWN || ix->layer[i] >= ix->n_layers)
        return false;
    if (ix->state[i] != VC_PAGE_HELD)
        return !ix->layer[i] && !slot && vc_is_zero(ix->digest + i * VC_DIGEST_BYTES, 16);
    if (ix->layer[i] == 0)
        return !slot && page < ix->image_room[block] / page_bytes;
    return (slot + 1) * page_bytes <= ix->layers[ix->layer[i]].bytes;
}

/* Every location must lie inside its layer, so that no lookup has to check. */
static bool locations_fit(const struct vc_index *ix)
{
    for (uint32_t b = 0; b < ix->ram.n_blocks; b++)
        for (uint64_t p = 0; p < vc_ram_block_pages(&ix->ram, b); p++)
            if (!location_fits(ix, b, p))
                return false;
    return true;
}

static int parse(struct vc_index *ix, uint8_t *data, uint64_t n, const char *name, bool writing,
                 struct vc_err *err)
{
    struct vc_reader r = vc_reader(data, VC_MIN(n, (uint64_t)VC_HEADER_MAX));
    uint8_t sum[VC_SHA256_BYTES];
    const char *wrong;
    uint64_t bytes;
    uint32_t header;
    bool frozen;
    int rc;

    if (n < VC_HEAD_BYTES + VC_SHA256_BYTES || !vc_sha256(data, n - VC_SHA256_BYTES, sum) ||
        memcmp(sum, data + n - VC_SHA256_BYTES, sizeof(sum)) != 0)
        return corrupt(err, name, "the checksum does not fit");
    rc = vc_head_read(&r, magic, name, &frozen, err);
    if (rc)
        return rc < 0 ? rc : corrupt(err, name, "wrong magic");
    if (frozen && writing)
        return vc_err_set(err, VC_E_VERSION, "'%s' may not be changed by this version", name);
    wrong = decode_header(&r, ix, &bytes, &header);
    if (wrong)
        return corrupt(err, name, wrong);
    if (bytes != n || header + VC_INDEX_PAGE_BYTES * ix->n_pages + VC_SHA256_BYTES != n)
        return corrupt(err, name, "impossible length");
    ix->digest = data + header;
    ix->slot = ix->digest + VC_DIGEST_BYTES * ix->n_pages;
    ix->state = ix->slot + 4 * ix->n_pages;
    ix->layer = ix->state + ix->n_pages;
    return locations_fit(ix) ? 0 : corrupt(err, name, "a page outside its layer");
}

static bool fits_entry(const struct vc_index *ix, const struct vc_manifest *m,
                       const struct vc_entry *e)
{
    return vc_id_equal(&ix->gen, &e->info.id) && vc_id_equal(&ix->lineage, &m->lineage.id) &&
           !memcmp(ix->root, e->info.root, VC_ROOT_BYTES) && ix->n_layers == e->info.n_layers &&
           vc_layers_equal(ix->layers, e->layers, ix->n_layers);
}

int vc_index_read(struct vc_index *ix, struct vc_vm *vm, const struct vc_entry *e, uint8_t **file,
                  struct vc_err *err)
{
    const struct vc_io *io = vm->store->io;
    vc_auto_free uint8_t *data = NULL;
    vc_auto_close int fd = -1;
    char name[VC_NAME_BYTES];
    struct stat st;
    int rc;

    memset(ix, 0, sizeof(*ix));
    vc_store_file_name(name, &e->index, ".index");
    fd = io->open(io, vm->dir_fd, name, O_RDONLY);
    if (fd < 0 && errno == ENOENT) {
        corrupt(err, name, "it is missing");
        return VC_NOT_FOUND;
    }
    if (fd < 0 || fstat(fd, &st) < 0)
        return vc_vm_open_errno(vm, name, err);
    if (st.st_size < VC_HEAD_BYTES + VC_SHA256_BYTES)
        return corrupt(err, name, "cut off");
    rc = charge(ix, &read_bytes, (uint64_t)st.st_size, memory_share(READ_LEAST_BYTES), err);
    if (rc)
        return rc;
    data = malloc((size_t)st.st_size);
    if (!data)
        return vc_err_set(err, VC_E_STORE_FULL, "no memory for index '%s'", name);
    rc = io->read(io, fd, data, (size_t)st.st_size, 0);
    if (rc < 0)
        return vc_store_errno(err, "read", name);
    if (rc == 0)
        return corrupt(err, name, "cut off");
    rc = parse(ix, data, (uint64_t)st.st_size, name, vm->lock_fd >= 0, err);
    if (!rc && !fits_entry(ix, &vm->m, e))
        rc = corrupt(err, name, "it belongs to another generation");
    if (rc)
        return rc;
    *file = vc_steal_ptr(data);
    return 0;
}
