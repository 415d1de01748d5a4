/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A VM's directory in the store, as somebody else left it: manifest, index, layers, handover.
 * Opening it, for reading and for writing, ends with what is there or with an error; what is read
 * lies within bounds; and a VM that is opened to be written takes a new generation, whatever there
 * was.
 *
 * The store is made when the program starts, by the code that is tested, so the corpus does not
 * depend on the layout of a file: an input is a list of changes to it.
 *
 * Input: a byte of options, then changes: a byte (file: low 3 bits, what: the others), and what it
 * takes (struct change). Checksums are made right afterwards unless the options say otherwise. */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "base/fdio.h"
#include "hosts.h"

#define OPT_BAD_SUMS 1u /* leave checksums wrong */
#define OPT_WRITE 2u    /* write a generation, too */
#define OPT_FOLD 4u     /* fold, too */
#define OPT_HANDOVER 8u /* and change the handover */

#define MAX_FILES 16
#define KEPT_BYTES (64u << 10)
#define MAX_CHANGES 64
#define SLOT_BYTES 1024u

enum change { PATCH, SET, CUT, REPLACE, APPEND, REMOVE, COPY, N_CHANGES };

/* An image is long and sparse: its end is not kept. */
struct file {
    char name[64];
    uint8_t *data; /* `have` bytes of `n` */
    size_t have, n;
    bool gone;
};

static struct vc_store *store;
static int dir_fd;
static struct file made[MAX_FILES]; /* as the store made them */
static size_t n_files;

/* ---- the directory ---- */

static void load(const char *name)
{
    struct file *f = &made[n_files++];
    int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
    struct stat st;

    FUZZ_ASSERT(n_files <= MAX_FILES && fd >= 0 && fstat(fd, &st) == 0);
    snprintf(f->name, sizeof(f->name), "%.63s", name);
    f->n = (size_t)st.st_size;
    f->have = VC_MIN(f->n, (size_t)KEPT_BYTES);
    f->data = malloc(f->have + 1);
    FUZZ_ASSERT(f->data && vc_read_full(fd, f->data, f->have) == 1);
    close(fd);
}

static int by_kind(const void *a, const void *b)
{
    const struct file *x = a, *y = b;
    const char *dx = strchr(x->name, '.'), *dy = strchr(y->name, '.');
    int c = strcmp(dx ? dx : x->name, dy ? dy : y->name);

    return c ? c : strcmp(x->name, y->name);
}

/* Calls fn for every file in the VM's directory. */
static void each(void (*fn)(const char *name))
{
    int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fdopendir(fd);
    struct dirent *e;

    FUZZ_ASSERT(d);
    while ((e = readdir(d)))
        if (e->d_name[0] != '.')
            fn(e->d_name);
    closedir(d);
}

static void load_if_file(const char *name)
{
    if (strcmp(name, "lock") != 0)
        load(name);
}

static void drop(const char *name)
{
    unlinkat(dir_fd, name, 0);
}

static void set_up(void)
{
    char path[512], uuid[VC_ID_TEXT_BYTES];

    if (store)
        return;
    store = fuzz_store(fuzz_dir());
    vc_id_format(&fuzz_vm, uuid);
    snprintf(path, sizeof(path), "%s/vms/%s", fuzz_dir(), uuid);
    dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    FUZZ_ASSERT(dir_fd >= 0);
    each(load_if_file);
    FUZZ_ASSERT(n_files);
    qsort(made, n_files, sizeof(made[0]), by_kind);
}

static void write_files(const struct file *files)
{
    char path[512], uuid[VC_ID_TEXT_BYTES];

    /* A run may have removed the VM. */
    vc_id_format(&fuzz_vm, uuid);
    snprintf(path, sizeof(path), "%s/vms/%s", fuzz_dir(), uuid);
    FUZZ_ASSERT(mkdir(path, 0700) == 0 || errno == EEXIST);
    each(drop);
    for (size_t i = 0; i < n_files; i++) {
        int fd;

        if (files[i].gone)
            continue;
        fd = openat(dir_fd, files[i].name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        FUZZ_ASSERT(fd >= 0 && vc_write_full(fd, files[i].data, files[i].have) == 0);
        FUZZ_ASSERT(ftruncate(fd, (off_t)files[i].n) == 0);
        close(fd);
    }
}

/* ---- changes ---- */

static const uint64_t numbers[] = {
    0,      1,          2,        8,          0x7f,       0xff,       0x100,      0x400,     0x1000,
    0xffff, 0x7fffffff, 1u << 31, UINT32_MAX, 1ull << 32, 1ull << 46, 1ull << 63, UINT64_MAX};

static void resize(struct file *f, size_t n)
{
    size_t have = VC_MIN(n, (size_t)KEPT_BYTES);

    f->data = realloc(f->data, have + 1);
    FUZZ_ASSERT(f->data);
    if (have > f->have)
        memset(f->data + f->have, 0, have - f->have);
    f->have = have;
    f->n = n;
}

static void patch(struct file *f, size_t at, const uint8_t *p, size_t n)
{
    if (at < f->have && n)
        memcpy(f->data + at, p, VC_MIN(n, f->have - at));
}

static void change(struct file *files, struct vc_reader *in)
{
    unsigned op = (unsigned)fuzz_number(in, 1);
    struct file *f = &files[(op & 7) % n_files];
    struct vc_reader part;
    uint8_t number[8];
    size_t at = (size_t)fuzz_number(in, 2);
    unsigned arg;

    switch ((op >> 3) % N_CHANGES) {
    case PATCH:
        part = fuzz_part(in, (size_t)fuzz_number(in, 1));
        patch(f, at, part.data, part.len);
        break;
    case SET:
        arg = (unsigned)fuzz_number(in, 1);
        vc_store_le(number, numbers[(arg >> 2) % VC_ARRAY_LEN(numbers)], 8);
        patch(f, at, number, 1u << (arg & 3));
        break;
    case CUT:
        resize(f, VC_MIN(at, f->n));
        break;
    case REPLACE:
        part = fuzz_part(in, at);
        resize(f, part.len);
        patch(f, 0, part.data, part.len);
        break;
    case APPEND:
        resize(f, f->n + at);
        break;
    case REMOVE:
        f->gone = true;
        break;
    default: /* one file's content under another's name */
        arg = (unsigned)fuzz_number(in, 1);
        part = vc_reader(made[arg % n_files].data, made[arg % n_files].have);
        resize(f, part.len);
        patch(f, 0, part.data, part.len);
        break;
    }
}

static bool is_named(const struct file *f, const char *end)
{
    size_t n = strlen(f->name), k = strlen(end);

    return n >= k && !strcmp(f->name + n - k, end);
}

/* The SHA-256 at the end of a file, or of a slot. */
static void seal(uint8_t *p, size_t n)
{
    if (n >= VC_SHA256_BYTES)
        FUZZ_ASSERT(vc_sha256(p, n - VC_SHA256_BYTES, p + n - VC_SHA256_BYTES));
}

static void fix_sums(struct file *f)
{
    if (is_named(f, "manifest") || is_named(f, ".index"))
        seal(f->data, f->have);
    if (!is_named(f, "handover"))
        return;
    for (size_t at = 0; at + SLOT_BYTES <= f->have; at += SLOT_BYTES)
        seal(f->data + at, SLOT_BYTES);
}

/* ---- what a host does with it ---- */

static void read_pages(struct vc_gen *g)
{
    const struct vc_ram *ram = vc_gen_ram(g);
    uint8_t *buf = malloc(4ull * ram->page_bytes);

    FUZZ_ASSERT(buf);
    for (uint32_t b = 0; b < ram->n_blocks; b++) {
        uint64_t pages = vc_ram_block_pages(ram, b);

        for (uint64_t p = 0; p < pages; p++) {
            struct vc_err err = VC_ERR_INIT;
            struct vc_digest d;
            size_t n = 0;

            while (n < 4 && p + n < pages &&
                   vc_gen_lookup(g, b, vc_page(p + n), &d) == VC_PAGE_HELD)
                n++;
            if (n)
                fuzz_check_error(vc_gen_read(g, b, vc_page(p), n, buf, &err), &err);
        }
    }
    free(buf);
}

/* Returns how many generations could be opened. */
static unsigned read_generations(struct vc_vm *vm)
{
    struct vc_lineage l;
    bool has_lineage = vc_vm_lineage(vm, &l);
    unsigned opened = 0;

    for (size_t i = 0; i < vc_vm_n_generations(vm); i++) {
        const struct vc_gen_info *info = vc_vm_generation(vm, i);
        struct vc_verify_result v;
        struct vc_err err = VC_ERR_INIT;
        struct vc_gen *g;
        int rc = vc_gen_open(vm, &info->id, &g, &err);

        FUZZ_ASSERT(memchr(info->peer, 0, sizeof(info->peer)));
        fuzz_check_error(rc, &err);
        if (rc)
            continue;
        opened++;
        read_pages(g);
        if (has_lineage)
            fuzz_check_error(vc_gen_verify(g, &l, NULL, NULL, &v, &err), &err);
        vc_gen_close(g);
    }
    return opened;
}

static unsigned read_vm(enum vc_vm_open mode)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_handover h;
    struct vc_vm *vm;
    unsigned opened;
    int rc = vc_vm_open(store, &fuzz_vm, mode, &vm, &err);

    fuzz_check_error(rc, &err);
    if (rc)
        return 0;
    opened = read_generations(vm);
    rc = vc_handover_get(vm, &h, &err);
    fuzz_check_error(rc, &err);
    if (!rc) {
        FUZZ_ASSERT(h.state <= VC_HANDOVER_VOID);
        FUZZ_ASSERT(memchr(h.peer, 0, sizeof(h.peer)) && memchr(h.socket, 0, sizeof(h.socket)));
        FUZZ_ASSERT(memchr(h.tls_hostname, 0, sizeof(h.tls_hostname)));
    }
    vc_vm_close(vm);
    return opened;
}

/* Migrates the VM, as far as the store is concerned, on top of what there is. */
static void write_vm(unsigned options)
{
    static const struct vc_id id = {"generation new"};
    struct vc_txn_note note = {.role = 2, .peer = "p"};
    struct vc_err err = VC_ERR_INIT;
    struct vc_gen *base = NULL;
    struct vc_txn *t;
    struct vc_vm *vm;
    struct vc_ram ram;
    int rc = vc_vm_open(store, &fuzz_vm, VC_VM_CREATE, &vm, &err);

    fuzz_check_error(rc, &err);
    FUZZ_ASSERT(rc == 0 || rc == VC_E_VERSION);
    if (rc)
        return;
    FUZZ_ASSERT(!vc_vm_was_reset(vm) || vc_vm_n_generations(vm) == 0);
    FUZZ_ASSERT(vc_vm_set_lineage(vm, &fuzz_lineage, &err) == 0);
    if (options & OPT_HANDOVER) {
        struct vc_handover h = {.state = VC_HANDOVER_ARRIVING, .since_unix = 9}, got;

        FUZZ_ASSERT(vc_handover_begin(vm, &h, &err) == 0);
        FUZZ_ASSERT(vc_handover_get(vm, &got, &err) == 0 && got.state == h.state);
        FUZZ_ASSERT(vc_handover_set(vm, VC_HANDOVER_SETTLED, &err) == 0);
        FUZZ_ASSERT(vc_handover_get(vm, &got, &err) == 0 && got.state == VC_HANDOVER_SETTLED);
    }
    if (vc_vm_n_generations(vm) && vc_gen_open(vm, &vc_vm_generation(vm, 0)->id, &base, &err))
        base = NULL;
    fuzz_ram(&ram);
    FUZZ_ASSERT(vc_txn_begin(vm, &id, base, &t, &err) == 0);
    FUZZ_ASSERT(vc_txn_set_ram(t, &ram, &err) == 0);
    FUZZ_ASSERT(vc_txn_zero(t, 0, vc_page(0), 20, &err) == 0);
    if (base)
        FUZZ_ASSERT(vc_txn_same(t, 0, vc_page(0), 20, &err) == 0);
    FUZZ_ASSERT(vc_txn_commit(t, &note, NULL, &err) == 0);
    vc_gen_close(base);
    FUZZ_ASSERT(vc_vm_n_generations(vm) && vc_id_equal(&vc_vm_generation(vm, 0)->id, &id));
    FUZZ_ASSERT(vc_gen_open(vm, &id, &base, &err) == 0);
    read_pages(base);
    vc_gen_close(base);
    vc_vm_close(vm);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct vc_reader in = vc_reader(data, n);
    unsigned options = (unsigned)fuzz_number(&in, 1);
    struct file files[MAX_FILES];
    bool changed = vc_reader_left(&in);
    struct vc_err err = VC_ERR_INIT;
    unsigned opened;

    set_up();
    fuzz_seed_random(2);
    for (size_t i = 0; i < n_files; i++) {
        files[i] = made[i];
        files[i].data = malloc(made[i].have + 1);
        FUZZ_ASSERT(files[i].data);
        memcpy(files[i].data, made[i].data, made[i].have);
    }
    for (int i = 0; i < MAX_CHANGES && vc_reader_left(&in); i++)
        change(files, &in);
    for (size_t i = 0; i < n_files && !(options & OPT_BAD_SUMS); i++)
        fix_sums(&files[i]);
    write_files(files);
    opened = read_vm(VC_VM_READ);
    FUZZ_ASSERT(changed || opened);
    read_vm(VC_VM_WRITE);
    if (options & OPT_WRITE)
        write_vm(options);
    if (options & OPT_FOLD)
        fuzz_check_error(vc_vm_fold(store, &fuzz_vm, NULL, &err), &err);
    for (size_t i = 0; i < n_files; i++)
        free(files[i].data);
    return 0;
}
