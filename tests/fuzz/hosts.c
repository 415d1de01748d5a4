/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "hosts.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fdio.h"

const struct vc_id fuzz_vm = {"the VM's UUID..."};
const struct vc_lineage fuzz_lineage = {
    .id = {"a lineage......"},
    .algo = VC_DIGEST_GMAC,
    .key = "a key that no guest knows",
};

/* ---- randomness ---- */

static pthread_mutex_t random_mu = PTHREAD_MUTEX_INITIALIZER;
static uint64_t random_state = 1;

void fuzz_seed_random(uint64_t seed)
{
    pthread_mutex_lock(&random_mu);
    random_state = seed;
    pthread_mutex_unlock(&random_mu);
}

/* Takes the place of the C library's, so that an input always means the same. */
ssize_t getrandom(void *buf, size_t n, unsigned flags)
{
    uint8_t *p = buf;

    (void)flags;
    pthread_mutex_lock(&random_mu);
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(fuzz_random(&random_state) >> 32);
    pthread_mutex_unlock(&random_mu);
    return (ssize_t)n;
}

/* ---- directories ---- */

static char dir[256];

void fuzz_remove_tree(const char *path)
{
    DIR *d = opendir(path);
    struct dirent *e;

    while (d && (e = readdir(d))) {
        char name[600];
        struct stat st;

        snprintf(name, sizeof(name), "%s/%s", path, e->d_name);
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || lstat(name, &st) < 0)
            continue;
        if (S_ISDIR(st.st_mode))
            fuzz_remove_tree(name);
        else
            unlink(name);
    }
    if (d)
        closedir(d);
    rmdir(path);
}

static void remove_dir(void)
{
    fuzz_remove_tree(dir);
}

const char *fuzz_dir(void)
{
    const char *bases[] = {getenv("FUZZ_DIR"), "/dev/shm", "/tmp"};

    for (size_t i = 0; i < VC_ARRAY_LEN(bases) && !dir[0]; i++) {
        if (!bases[i])
            continue;
        snprintf(dir, sizeof(dir), "%s/vc-fuzz-XXXXXX", bases[i]);
        if (mkdtemp(dir))
            atexit(remove_dir);
        else
            dir[0] = 0;
    }
    FUZZ_ASSERT(dir[0]);
    return dir;
}

/* ---- a store ---- */

void fuzz_ram(struct vc_ram *ram)
{
    memset(ram, 0, sizeof(*ram));
    ram->page_bytes = FUZZ_PAGE_BYTES;
    ram->n_blocks = 2;
    strcpy(ram->blocks[0].name, "pc.ram");
    ram->blocks[0].bytes = (FUZZ_PAGES - 4ull) * FUZZ_PAGE_BYTES;
    strcpy(ram->blocks[1].name, "vga.vram");
    ram->blocks[1].bytes = 4ull * FUZZ_PAGE_BYTES;
}

void fuzz_page(uint8_t *p, unsigned page, unsigned version)
{
    uint64_t seed = page * 1000ull + version;

    for (size_t i = 0; i < FUZZ_PAGE_BYTES; i++)
        p[i] = version ? (uint8_t)fuzz_random(&seed) : 0;
}

static void put(struct vc_txn *t, uint32_t block, unsigned page, unsigned version)
{
    struct vc_digester *d;
    struct vc_digest digest;
    struct vc_err err;
    uint8_t content[FUZZ_PAGE_BYTES];
    const uint8_t *p = content;

    fuzz_page(content, block * 100 + page, version);
    FUZZ_ASSERT(vc_digester_new(fuzz_lineage.algo, VC_DIGEST_PAGE, fuzz_lineage.key, &d, &err) ==
                0);
    FUZZ_ASSERT(vc_digest_pages(d, &p, 1, FUZZ_PAGE_BYTES, &digest, &err) == 0);
    FUZZ_ASSERT(vc_txn_put(t, block, vc_page(page), 1, &p, &digest, &err) == 0);
    vc_digester_free(d);
}

static void generation(struct vc_vm *vm, const struct vc_id *id)
{
    struct vc_txn_note note = {.role = 1, .peer = "ssh://elsewhere"};
    struct vc_gen *base = NULL;
    struct vc_txn *t;
    struct vc_ram ram;
    struct vc_err err;

    fuzz_ram(&ram);
    if (vc_vm_n_generations(vm))
        FUZZ_ASSERT(vc_gen_open(vm, &vc_vm_generation(vm, 0)->id, &base, &err) == 0);
    FUZZ_ASSERT(vc_txn_begin(vm, id, base, &t, &err) == 0);
    FUZZ_ASSERT(vc_txn_set_ram(t, &ram, &err) == 0);
    if (base)
        FUZZ_ASSERT(vc_txn_same(t, 0, vc_page(0), 16, &err) == 0);
    for (unsigned i = 0; i < 16; i += base ? 5 : 1)
        put(t, 0, i, base ? 2 : 1);
    FUZZ_ASSERT(vc_txn_zero(t, 0, vc_page(16), 2, &err) == 0);
    FUZZ_ASSERT(vc_txn_unknown(t, 0, vc_page(18), 1, &err) == 0);
    put(t, 1, 1, 7);
    FUZZ_ASSERT(vc_txn_commit(t, &note, NULL, &err) == 0);
    vc_gen_close(base);
}

struct vc_store *fuzz_store(const char *path)
{
    static const struct vc_id gens[] = {{"generation one"}, {"generation two"}};
    struct vc_handover h = {
        .state = VC_HANDOVER_LEAVING, .since_unix = 1, .peer = "ssh://b", .socket = "/q"};
    struct vc_store *s;
    struct vc_vm *vm;
    struct vc_err err;

    fuzz_seed_random(1);
    FUZZ_ASSERT(vc_store_open(path, true, FUZZ_STORE_LIMIT_BYTES, &s, &err) == 0);
    FUZZ_ASSERT(vc_vm_open(s, &fuzz_vm, VC_VM_CREATE, &vm, &err) == 0);
    FUZZ_ASSERT(vc_vm_set_lineage(vm, &fuzz_lineage, &err) == 0);
    for (size_t i = 0; i < VC_ARRAY_LEN(gens); i++)
        generation(vm, &gens[i]);
    FUZZ_ASSERT(vc_handover_begin(vm, &h, &err) == 0);
    FUZZ_ASSERT(vc_handover_set(vm, VC_HANDOVER_LEFT, &err) == 0);
    vc_vm_close(vm);
    return s;
}

/* ---- a directory as it was ---- */

struct saved_file {
    char name[64];
    uint8_t *data; /* the first `have` bytes; an image's end is a hole */
    size_t have, n;
};

struct fuzz_saved {
    int dir_fd;
    size_t n;
    struct saved_file files[16];
};

static void save_file(struct fuzz_saved *s, const char *name)
{
    struct saved_file *f = &s->files[s->n++];
    int fd = openat(s->dir_fd, name, O_RDONLY | O_CLOEXEC);
    struct stat st;

    FUZZ_ASSERT(s->n <= VC_ARRAY_LEN(s->files) && fd >= 0 && fstat(fd, &st) == 0);
    snprintf(f->name, sizeof(f->name), "%.63s", name);
    f->n = (size_t)st.st_size;
    f->have = VC_MIN(f->n, (size_t)FUZZ_SOCKET_BYTES);
    f->data = malloc(f->have + 1);
    FUZZ_ASSERT(f->data && vc_read_full(fd, f->data, f->have) == 1);
    close(fd);
}

static bool next_name(DIR *d, char name[256])
{
    struct dirent *e;

    while ((e = readdir(d)))
        if (e->d_name[0] != '.') {
            snprintf(name, 256, "%s", e->d_name);
            return true;
        }
    return false;
}

static DIR *list(int dir_fd)
{
    int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);

    FUZZ_ASSERT(d);
    return d;
}

struct fuzz_saved *fuzz_save(const char *path)
{
    struct fuzz_saved *s = calloc(1, sizeof(*s));
    char where[600], uuid[VC_ID_TEXT_BYTES], name[256];
    DIR *d;

    FUZZ_ASSERT(s);
    vc_id_format(&fuzz_vm, uuid);
    snprintf(where, sizeof(where), "%s/vms/%s", path, uuid);
    s->dir_fd = open(where, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    FUZZ_ASSERT(s->dir_fd >= 0);
    d = list(s->dir_fd);
    while (next_name(d, name))
        if (strcmp(name, "lock") != 0)
            save_file(s, name);
    closedir(d);
    return s;
}

void fuzz_restore(const struct fuzz_saved *s)
{
    DIR *d = list(s->dir_fd);
    char name[256];

    while (next_name(d, name))
        unlinkat(s->dir_fd, name, 0);
    closedir(d);
    for (size_t i = 0; i < s->n; i++) {
        const struct saved_file *f = &s->files[i];
        int fd = openat(s->dir_fd, f->name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

        FUZZ_ASSERT(fd >= 0 && vc_write_full(fd, f->data, f->have) == 0);
        FUZZ_ASSERT(ftruncate(fd, (off_t)f->n) == 0);
        close(fd);
    }
}

void fuzz_prefilled(const uint8_t *p, size_t n, int fds[2])
{
    FUZZ_ASSERT(n <= FUZZ_SOCKET_BYTES);
    FUZZ_ASSERT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    FUZZ_ASSERT(n == 0 || vc_write_full(fds[1], p, n) == 0);
    shutdown(fds[1], SHUT_WR);
}
