/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/durable.h"
#include "base/fdio.h"
#include "store/internal.h"

/* Index files: docs/formats/store.md section 3. */

static const char magic[8] = "vcindex\n";
#define HEADER_MAX (256u << 10)
#define IMAGE_ALIGN (2u << 20)
#define ALIGN8(n) (((n) + 7) & ~(uint64_t)7)

/* Blocks by size, the largest first, so that it begins where the file begins. */
static void place_blocks(struct vc_index *ix)
{
    bool placed[VC_MAX_BLOCKS] = {false};
    uint64_t at = 0;

    for (uint32_t k = 0; k < ix->ram.n_blocks; k++) {
        int best = -1;

        for (uint32_t i = 0; i < ix->ram.n_blocks; i++)
            if (!placed[i] && (best < 0 || ix->ram.blocks[i].bytes > ix->ram.blocks[best].bytes))
                best = (int)i;
        placed[best] = true;
        ix->image_offset[best] = at;
        ix->image_bytes = at + ix->ram.blocks[best].bytes;
        at = (ix->image_bytes + IMAGE_ALIGN - 1) & ~(uint64_t)(IMAGE_ALIGN - 1);
    }
}

void vc_index_layout(struct vc_index *ix)
{
    ix->n_pages = 0;
    for (uint32_t i = 0; i < ix->ram.n_blocks; i++) {
        ix->first[i] = ix->n_pages;
        ix->n_pages += vc_ram_block_pages(&ix->ram, i);
    }
    place_blocks(ix);
}

static void write_ram(struct vc_writer *w, const struct vc_ram *ram)
{
    vc_write_u32(w, ram->page_bytes);
    vc_write_u32(w, ram->n_blocks);
    for (uint32_t i = 0; i < ram->n_blocks; i++) {
        vc_write_str8(w, ram->blocks[i].name);
        vc_write_u64(w, ram->blocks[i].bytes);
    }
}

static bool read_ram(struct vc_reader *r, struct vc_ram *ram)
{
    ram->page_bytes = vc_read_u32(r);
    ram->n_blocks = vc_read_u32(r);
    if (ram->page_bytes < VC_MIN_PAGE_BYTES || ram->page_bytes > VC_MAX_PAGE_BYTES ||
        (ram->page_bytes & (ram->page_bytes - 1)) || ram->n_blocks == 0 ||
        ram->n_blocks > VC_MAX_BLOCKS)
        return false;
    for (uint32_t i = 0; i < ram->n_blocks; i++) {
        vc_read_str8(r, ram->blocks[i].name);
        ram->blocks[i].bytes = vc_read_u64(r);
        if (ram->blocks[i].bytes > VC_MAX_BLOCK_BYTES || ram->blocks[i].bytes % ram->page_bytes)
            return false;
    }
    return !r->failed;
}

int vc_index_root(const struct vc_index *ix, uint8_t root[VC_ROOT_BYTES], struct vc_err *err)
{
    vc_auto_free uint8_t *head = malloc(HEADER_MAX);
    struct vc_sha256 *s = head ? vc_sha256_new() : NULL;
    struct vc_writer w = vc_writer(head, HEADER_MAX);

    if (!s)
        return vc_err_set(err, VC_E_NOMEM, "no memory for an index root");
    write_ram(&w, &ix->ram);
    vc_sha256_update(s, head, w.len);
    vc_sha256_update(s, ix->state, ix->n_pages);
    for (uint64_t i = 0; i < ix->n_pages;) {
        uint64_t n = 0;

        while (i + n < ix->n_pages && ix->state[i + n] == VC_PAGE_HELD)
            n++;
        vc_sha256_update(s, ix->digest + i * VC_DIGEST_BYTES, n * VC_DIGEST_BYTES);
        i += n ? n : 1;
    }
    if (!vc_sha256_finish(s, root))
        return vc_err_set(err, VC_E_FAILED, "OpenSSL: SHA-256 failed");
    return 0;
}

static void encode_header(struct vc_writer *w, const struct vc_index *ix)
{
    vc_write_bytes(w, magic, sizeof(magic));
    vc_write_u32(w, VC_STORE_VERSION);
    vc_write_u32(w, 0); /* incompatible features */
    vc_write_bytes(w, ix->gen.b, 16);
    vc_write_bytes(w, ix->lineage.b, 16);
    write_ram(w, &ix->ram);
    vc_write_u32(w, ix->n_layers);
    for (uint32_t i = 0; i < ix->n_layers; i++) {
        vc_write_bytes(w, ix->layers[i].id.b, 16);
        vc_write_u8(w, ix->layers[i].kind);
        vc_write_u64(w, ix->layers[i].bytes);
    }
}

/* Lengths of the arrays on disk, in order. */
static void array_bytes(const struct vc_index *ix, uint64_t n[4])
{
    n[0] = ALIGN8(ix->n_pages);
    n[1] = ALIGN8(ix->n_pages);
    n[2] = ALIGN8(ix->n_pages * 4);
    n[3] = ix->n_pages * VC_DIGEST_BYTES;
}

struct sink {
    int fd;
    struct vc_sha256 *sum;
};

static int sink_put(struct sink *s, const void *p, uint64_t n, uint64_t padded)
{
    static const uint8_t zeroes[8];

    vc_sha256_update(s->sum, p, n);
    vc_sha256_update(s->sum, zeroes, padded - n);
    return vc_write_full(s->fd, p, n) || vc_write_full(s->fd, zeroes, padded - n) ? -1 : 0;
}

static int write_all(const struct vc_index *ix, int fd, struct vc_sha256 **sum, uint8_t *head)
{
    struct vc_writer w = vc_writer(head + 8, HEADER_MAX - 8);
    struct sink s = {fd, *sum};
    uint8_t check[VC_SHA256_BYTES];
    uint64_t n[4];
    bool ok;

    encode_header(&w, ix);
    vc_store_le(head, w.len, 8);
    array_bytes(ix, n);
    if (w.failed || sink_put(&s, head, 8 + w.len, ALIGN8(8 + w.len)) ||
        sink_put(&s, ix->state, ix->n_pages, n[0]) || sink_put(&s, ix->layer, ix->n_pages, n[1]) ||
        sink_put(&s, ix->slot, ix->n_pages * 4, n[2]) || sink_put(&s, ix->digest, n[3], n[3]))
        return -1;
    ok = vc_sha256_finish(vc_steal_ptr(*sum), check);
    return ok ? vc_write_full(fd, check, sizeof(check)) : -1;
}

int vc_index_write(const struct vc_index *ix, int dir_fd, struct vc_err *err)
{
    char name[VC_NAME_BYTES], tmp[VC_NAME_BYTES];
    vc_auto_free uint8_t *head = malloc(HEADER_MAX);
    struct vc_sha256 *sum = vc_sha256_new();
    vc_auto_close int fd = -1;
    int rc = 0;

    vc_store_file_name(name, &ix->gen, ".index");
    vc_store_file_name(tmp, &ix->gen, ".index.new");
    if (!head || !sum) {
        vc_sha256_free(sum);
        return vc_err_set(err, VC_E_NOMEM, "no memory to write an index");
    }
    fd = openat(dir_fd, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || write_all(ix, fd, &sum, head))
        rc = vc_store_errno(err, "write", tmp);
    vc_sha256_free(sum);
    if (!rc)
        rc = vc_durable_publish(dir_fd, fd, tmp, name, err);
    if (rc)
        unlinkat(dir_fd, tmp, 0);
    return rc;
}

static int corrupt(struct vc_err *err, const char *name, const char *what)
{
    return vc_err_set_hint(err, VC_E_CORRUPT, "'vecycle rm' drops the VM's checkpoint",
                           "index '%s' is damaged: %s", name, what);
}

static int decode_header(struct vc_reader *r, struct vc_index *ix, const char *name,
                         struct vc_err *err)
{
    const uint8_t *m = vc_read_bytes(r, sizeof(magic));

    if (!m || memcmp(m, magic, sizeof(magic)) != 0)
        return corrupt(err, name, "wrong magic");
    if (vc_read_u32(r) != VC_STORE_VERSION || vc_read_u32(r) != 0)
        return vc_err_set(err, VC_E_VERSION, "index '%s' is of another version", name);
    vc_read_copy(r, ix->gen.b, 16);
    vc_read_copy(r, ix->lineage.b, 16);
    if (!read_ram(r, &ix->ram))
        return corrupt(err, name, "impossible RAM blocks");
    ix->n_layers = vc_read_u32(r);
    if (ix->n_layers > VC_STORE_MAX_LAYERS)
        return corrupt(err, name, "too many layers");
    for (uint32_t i = 0; i < ix->n_layers; i++) {
        vc_read_copy(r, ix->layers[i].id.b, 16);
        ix->layers[i].kind = vc_read_u8(r);
        ix->layers[i].bytes = vc_read_u64(r);
        if (ix->layers[i].kind != VC_LAYER_IMAGE && ix->layers[i].kind != VC_LAYER_DELTA)
            return corrupt(err, name, "unknown kind of layer");
    }
    return r->failed ? corrupt(err, name, "cut off") : 0;
}

/* Every location must lie inside its layer, so that no lookup has to check. */
static bool locations_fit(const struct vc_index *ix)
{
    for (uint64_t i = 0; i < ix->n_pages; i++) {
        const struct vc_layer *l;

        if (ix->state[i] > VC_PAGE_UNKNOWN)
            return false;
        if (ix->state[i] != VC_PAGE_HELD)
            continue;
        if (ix->layer[i] >= ix->n_layers)
            return false;
        l = &ix->layers[ix->layer[i]];
        if (l->kind == VC_LAYER_DELTA &&
            (vc_load_le(ix->slot + 4 * i, 4) + 1) * ix->ram.page_bytes > l->bytes)
            return false;
        if (l->kind == VC_LAYER_IMAGE && l->bytes < ix->image_bytes)
            return false;
    }
    return true;
}

static int parse_map(struct vc_index *ix, uint8_t *map, uint64_t bytes, const char *name,
                     struct vc_err *err)
{
    uint8_t check[VC_SHA256_BYTES];
    uint64_t head, n[4];
    struct vc_reader r;
    int rc;

    if (bytes < 8 + VC_SHA256_BYTES || !vc_sha256(map, bytes - VC_SHA256_BYTES, check) ||
        memcmp(check, map + bytes - VC_SHA256_BYTES, sizeof(check)) != 0)
        return corrupt(err, name, "the checksum does not fit");
    head = vc_load_le(map, 8);
    if (head > bytes - 8 - VC_SHA256_BYTES)
        return corrupt(err, name, "impossible header");
    r = vc_reader(map + 8, head);
    rc = decode_header(&r, ix, name, err);
    if (rc)
        return rc;
    vc_index_layout(ix);
    array_bytes(ix, n);
    head = ALIGN8(8 + head);
    if (ix->n_pages > bytes || head + n[0] + n[1] + n[2] + n[3] + VC_SHA256_BYTES != bytes)
        return corrupt(err, name, "impossible length");
    ix->state = map + head;
    ix->layer = ix->state + n[0];
    ix->slot = ix->layer + n[1];
    ix->digest = ix->slot + n[2];
    return locations_fit(ix) ? 0 : corrupt(err, name, "a page outside its layer");
}

int vc_index_map(struct vc_index *ix, int dir_fd, const struct vc_id *gen, void **map_out,
                 size_t *bytes_out, struct vc_err *err)
{
    char name[VC_NAME_BYTES];
    vc_auto_close int fd = -1;
    struct stat st;
    void *map;
    int rc;

    memset(ix, 0, sizeof(*ix));
    vc_store_file_name(name, gen, ".index");
    fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &st) < 0)
        return errno == ENOENT ? corrupt(err, name, "it is missing")
                               : vc_store_errno(err, "open", name);
    if (st.st_size < 8 + VC_SHA256_BYTES)
        return corrupt(err, name, "cut off");
    map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED)
        return vc_store_errno(err, "map", name);
    rc = parse_map(ix, map, (uint64_t)st.st_size, name, err);
    if (!rc && !vc_id_equal(&ix->gen, gen))
        rc = corrupt(err, name, "it belongs to another generation");
    if (rc) {
        munmap(map, (size_t)st.st_size);
        return rc;
    }
    *map_out = map;
    *bytes_out = (size_t)st.st_size;
    return 0;
}
