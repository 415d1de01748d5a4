/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef TEST_STORE_H
#define TEST_STORE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/fdio.h"
#include "store/store.h"

/* Shared by the tests of src/store: a small VM whose pages are known, random runs over it that go
 * into a transaction and into a model alike, and the comparison of a generation with the model. */

/* ---- randomness: the seed is printed, and taken from VC_TEST_SEED ---- */

static uint64_t rng_state;

static inline void rng_seed(void)
{
    const char *s = getenv("VC_TEST_SEED");

    rng_state = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL);
    print_message("seed: VC_TEST_SEED=%llu\n", (unsigned long long)rng_state);
}

static inline uint64_t mix(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static inline uint64_t rng(void)
{
    return mix(&rng_state);
}

/* ---- the VM ---- */

#define PAGE_BYTES 1024u
#define N_PAGES 49u
#define FIRST_OF_LAST 40u /* block 0 has 40 pages, block 1 none, block 2 nine */

static const struct vc_id vm_id = {"the VM's UUID.."};
static const struct vc_lineage lineage = {
    .id = {"a lineage's id."},
    .algo = VC_DIGEST_GMAC,
    .key = "a key that no guest knows",
};

static inline struct vc_ram small_ram(void)
{
    struct vc_ram ram = {.page_bytes = PAGE_BYTES, .n_blocks = 3};

    ram.blocks[0] = (struct vc_block){"pc.ram", FIRST_OF_LAST * PAGE_BYTES};
    ram.blocks[1] = (struct vc_block){"empty", 0};
    ram.blocks[2] = (struct vc_block){"vga.vram", (N_PAGES - FIRST_OF_LAST) * PAGE_BYTES};
    return ram;
}

static inline void locate(unsigned i, uint32_t *block, uint64_t *page)
{
    *block = i < FIRST_OF_LAST ? 0 : 2;
    *page = i < FIRST_OF_LAST ? i : i - FIRST_OF_LAST;
}

/* ---- contents: each is written once, at one page, and known by its number ---- */

#define MAX_VERSIONS 100000u

static struct {
    uint16_t page;
    struct vc_digest digest;
} versions[MAX_VERSIONS];
static uint32_t n_versions;
static struct vc_digester *page_digester;

static inline void content_of(uint32_t v, uint8_t out[PAGE_BYTES])
{
    uint64_t state = v + 1, w;

    for (unsigned i = 0; i < PAGE_BYTES; i += 8) {
        w = mix(&state);
        memcpy(out + i, &w, 8);
    }
}

static inline struct vc_digest digest_of(const uint8_t content[PAGE_BYTES])
{
    struct vc_digest d;
    struct vc_err err;

    if (!page_digester)
        assert_int_equal(
            vc_digester_new(lineage.algo, VC_DIGEST_PAGE, lineage.key, &page_digester, &err), 0);
    assert_int_equal(vc_digest_pages(page_digester, &content, 1, PAGE_BYTES, &d, &err), 0);
    return d;
}

static inline void forget_digester(void)
{
    vc_digester_free(page_digester);
    page_digester = NULL;
}

static inline uint32_t new_version(unsigned page, uint8_t content[PAGE_BYTES])
{
    uint32_t v = n_versions++;

    assert_true(v < MAX_VERSIONS);
    content_of(v, content);
    versions[v].page = (uint16_t)page;
    versions[v].digest = digest_of(content);
    return v;
}

/* ---- the model of a generation ---- */

struct image {
    struct vc_id id;
    uint8_t state[N_PAGES];
    uint32_t version[N_PAGES]; /* of held pages */
};

/* One random run into the transaction, and if that worked into the model. */
static inline int random_run(struct vc_txn *t, struct image *m, const struct image *base,
                             struct vc_err *err)
{
    static uint8_t content[N_PAGES][PAGE_BYTES];
    const uint8_t *contents[N_PAGES];
    struct vc_digest digests[N_PAGES];
    uint32_t v[N_PAGES], block;
    unsigned i = (unsigned)(rng() % N_PAGES);
    unsigned most = (i < FIRST_OF_LAST ? FIRST_OF_LAST : N_PAGES) - i;
    unsigned n = 1 + (unsigned)(rng() % most % 9), kind = (unsigned)(rng() % 8);
    uint64_t page;
    int rc;

    locate(i, &block, &page);
    if (kind == 0) {
        rc = vc_txn_zero(t, block, vc_page(page), n, err);
        memset(m->state + i, VC_PAGE_ZERO, n);
    } else if (kind == 1) {
        rc = vc_txn_unknown(t, block, vc_page(page), n, err);
        memset(m->state + i, VC_PAGE_UNKNOWN, n);
    } else if (kind <= 3) {
        rc = vc_txn_same(t, block, vc_page(page), n, err);
        for (unsigned k = i; k < i + n; k++) {
            bool held = base && base->state[k] == VC_PAGE_HELD;

            m->state[k] = held ? VC_PAGE_HELD : VC_PAGE_UNKNOWN;
            m->version[k] = held ? base->version[k] : 0;
        }
    } else {
        for (unsigned k = 0; k < n; k++) {
            v[k] = new_version(i + k, content[k]);
            contents[k] = content[k];
            digests[k] = versions[v[k]].digest;
        }
        rc = vc_txn_put(t, block, vc_page(page), n, contents, digests, err);
        memset(m->state + i, VC_PAGE_HELD, n);
        memcpy(m->version + i, v, n * sizeof(*v));
    }
    return rc;
}

static inline unsigned count_state(const struct image *m, enum vc_page_state state)
{
    unsigned n = 0;

    for (unsigned i = 0; i < N_PAGES; i++)
        n += m->state[i] == state;
    return n;
}

/* What a partial generation has of what the model has not. */
static inline void fill_from_base(struct image *m, const struct image *base)
{
    for (unsigned i = 0; i < N_PAGES; i++)
        if (m->state[i] == VC_PAGE_UNMENTIONED && base->state[i] == VC_PAGE_HELD) {
            m->state[i] = VC_PAGE_HELD;
            m->version[i] = base->version[i];
        }
}

/* Set where an index was forged: its pages may be anywhere. */
static bool pages_may_move;

/* Reads a held page. 1: its content is the digest's, and then certainly of that page and version;
 * 0: it is not usable. */
static inline bool read_page(const struct vc_gen *g, unsigned i, struct vc_digest *want)
{
    uint8_t got[PAGE_BYTES], true_content[PAGE_BYTES];
    struct vc_digest d;
    struct vc_err err;
    uint32_t block, v;
    uint64_t page;

    locate(i, &block, &page);
    assert_int_equal(vc_gen_lookup(g, block, vc_page(page), want), VC_PAGE_HELD);
    if (vc_gen_read(g, block, vc_page(page), 1, got, &err))
        return false;
    d = digest_of(got);
    if (!vc_digest_equal(&d, want))
        return false;
    for (v = 0; v < n_versions; v++)
        if (vc_digest_equal(&versions[v].digest, want))
            break;
    assert_true(v < n_versions);
    assert_true(versions[v].page == i || pages_may_move);
    content_of(v, true_content);
    assert_memory_equal(got, true_content, PAGE_BYTES);
    return true;
}

/* The generation is the model's, page by page. */
static inline void assert_generation(const struct vc_gen *g, const struct image *m)
{
    struct vc_ram ram = small_ram();

    assert_int_equal(vc_gen_ram(g)->n_blocks, ram.n_blocks);
    assert_int_equal(vc_gen_ram(g)->page_bytes, ram.page_bytes);
    for (unsigned b = 0; b < ram.n_blocks; b++) {
        assert_string_equal(vc_gen_ram(g)->blocks[b].name, ram.blocks[b].name);
        assert_int_equal(vc_gen_ram(g)->blocks[b].bytes, ram.blocks[b].bytes);
    }
    for (unsigned i = 0; i < N_PAGES; i++) {
        struct vc_digest d;
        uint32_t block;
        uint64_t page;

        locate(i, &block, &page);
        assert_int_equal(vc_gen_lookup(g, block, vc_page(page), &d), m->state[i]);
        if (m->state[i] != VC_PAGE_HELD)
            continue;
        assert_true(vc_digest_equal(&d, &versions[m->version[i]].digest));
        assert_true(read_page(g, i, &d));
    }
}

/* ---- places ---- */

static inline void remove_at(int at, const char *name)
{
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *e;

    while (d && (e = readdir(d)))
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
            unlinkat(fd, e->d_name, 0) < 0)
            remove_at(fd, e->d_name);
    if (d)
        closedir(d);
    unlinkat(at, name, AT_REMOVEDIR);
}

static inline void remove_tree(const char *path)
{
    remove_at(AT_FDCWD, path);
}

static inline void make_place(char dir[64])
{
    const char *base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";

    snprintf(dir, 64, "%s/vc-store-XXXXXX", base);
    assert_non_null(mkdtemp(dir));
}

/* The directory of the VM in a store, for those who tamper with its files. */
static inline void vm_dir(const char *store, char out[200])
{
    char uuid[VC_ID_TEXT_BYTES];

    vc_id_format(&vm_id, uuid);
    snprintf(out, 200, "%s/vms/%s", store, uuid);
}

static inline struct vc_store *open_store(const char *dir)
{
    struct vc_store *s;
    struct vc_err err;

    assert_int_equal(vc_store_open(dir, true, 0, &s, &err), 0);
    return s;
}

static inline struct vc_vm *open_vm(struct vc_store *s, enum vc_vm_open mode)
{
    struct vc_vm *vm;
    struct vc_err err;

    assert_int_equal(vc_vm_open(s, &vm_id, mode, &vm, &err), 0);
    if (mode == VC_VM_CREATE)
        assert_int_equal(vc_vm_set_lineage(vm, &lineage, &err), 0);
    return vm;
}

static inline struct vc_gen *open_gen(struct vc_vm *vm, const struct vc_gen_info *info)
{
    struct vc_gen *g;
    struct vc_err err;

    assert_non_null(info);
    assert_int_equal(vc_gen_open(vm, &info->id, &g, &err), 0);
    return g;
}

static inline struct vc_txn *begin(struct vc_vm *vm, const struct vc_gen *base, struct image *m)
{
    struct vc_ram ram = small_ram();
    struct vc_txn *t;
    struct vc_err err;

    memset(m, 0, sizeof(*m));
    assert_true(vc_id_random(&m->id));
    assert_int_equal(vc_txn_begin(vm, &m->id, base, &t, &err), 0);
    assert_int_equal(vc_txn_set_ram(t, &ram, &err), 0);
    return t;
}

/* Pages [from, to) are in one block. */
static inline void assert_txn_block(const struct vc_txn *t, const struct image *m, unsigned from,
                                    unsigned to)
{
    static uint8_t got[N_PAGES * PAGE_BYTES];
    uint8_t want[PAGE_BYTES];
    struct vc_err err;
    uint32_t block;
    uint64_t page;
    bool known;

    for (unsigned i = from, n; i < to; i += n) {
        locate(i, &block, &page);
        n = (unsigned)vc_txn_known(t, block, vc_page(page), to - i, &known);
        assert_true(n >= 1 && n <= to - i);
        if (known)
            assert_int_equal(vc_txn_read(t, block, vc_page(page), n, got, &err), 0);
        for (unsigned k = 0; k < n; k++) {
            uint8_t state = m->state[i + k];

            assert_int_equal(known, state == VC_PAGE_HELD || state == VC_PAGE_ZERO);
            if (!known)
                continue;
            memset(want, 0, sizeof(want));
            if (state == VC_PAGE_HELD)
                content_of(m->version[i + k], want);
            assert_memory_equal(got + k * PAGE_BYTES, want, PAGE_BYTES);
        }
    }
}

static inline void random_runs(struct vc_txn *t, unsigned n, struct image *m,
                               const struct image *base)
{
    struct vc_err err;

    for (unsigned i = 0; i < n; i++)
        assert_int_equal(random_run(t, m, base, &err), 0);
    assert_txn_block(t, m, 0, FIRST_OF_LAST);
    assert_txn_block(t, m, FIRST_OF_LAST, N_PAGES);
}

static const struct vc_txn_note note = {
    .same_pages = 3, .data_pages = 4, .role = 1, .peer = "peer"};

/* A whole transaction. @base may be NULL. */
static inline void commit_random(struct vc_vm *vm, const struct vc_gen *base,
                                 const struct image *base_model, unsigned n, struct image *m)
{
    struct vc_txn *t = begin(vm, base, m);
    struct vc_err err;

    random_runs(t, n, m, base_model);
    assert_int_equal(vc_txn_commit(t, &note, NULL, &err), 0);
}

#endif
