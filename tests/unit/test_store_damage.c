/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "test_store.h"

#include "base/bytes.h"

/* Damaged files of a store: whatever happens to them, opening ends in a clean error or in fewer
 * generations, and never in a wrong page whose digest fits. Checksums are also made to fit again,
 * so that what lies behind them is looked at too. */

#define MAX_FILES 16

struct file {
    char name[80];
    uint8_t *data;
    size_t n;
};

/* A store with a complete generation on two layers, a partial one on top of it, a handover record,
 * and the log of a migration that was killed: the files of its VM. */
static struct specimen {
    struct file files[MAX_FILES];
    unsigned n;
    struct image complete, partial;
} good;

static void read_files(const char *store)
{
    char dir[200];
    struct dirent *e;
    DIR *d;

    vm_dir(store, dir);
    d = opendir(dir);
    assert_non_null(d);
    while ((e = readdir(d))) {
        struct file *f = &good.files[good.n];
        struct stat st;
        int fd;

        if (e->d_name[0] == '.' || !strcmp(e->d_name, "lock"))
            continue;
        assert_true(good.n < MAX_FILES);
        fd = openat(dirfd(d), e->d_name, O_RDONLY | O_CLOEXEC);
        assert_int_equal(fstat(fd, &st), 0);
        snprintf(f->name, sizeof(f->name), "%.79s", e->d_name);
        f->n = (size_t)st.st_size;
        f->data = malloc(f->n + 1);
        assert_non_null(f->data);
        assert_int_equal(vc_pread_full(fd, f->data, f->n, 0), 1);
        close(fd);
        good.n++;
    }
    closedir(d);
}

static int make_specimen(void **state)
{
    struct vc_handover h = {.state = VC_HANDOVER_LEFT};
    struct image first, running;
    struct vc_store *s;
    struct vc_gen *g;
    struct vc_vm *vm;
    struct vc_txn *t;
    struct vc_err err;
    char dir[64];

    (void)state;
    rng_seed();
    make_place(dir);
    s = open_store(dir);
    vm = open_vm(s, VC_VM_CREATE);
    assert_int_equal(vc_handover_begin(vm, &h, &err), 0);
    commit_random(vm, NULL, NULL, 40, &first);
    g = open_gen(vm, vc_vm_complete(vm));
    commit_random(vm, g, &first, 40, &good.complete);
    vc_gen_close(g);
    g = open_gen(vm, vc_vm_complete(vm));
    t = begin(vm, g, &good.partial);
    random_runs(t, 20, &good.partial, &good.complete);
    assert_int_equal(vc_txn_suspend(t, &note, &err), 0);
    fill_from_base(&good.partial, &good.complete);
    vc_gen_close(g);
    g = open_gen(vm, vc_vm_partial(vm));
    t = begin(vm, g, &running);
    for (int i = 0; i < 4; i++) {
        random_runs(t, 10, &running, &good.partial);
        assert_int_equal(vc_txn_log(t, false, &err), 0);
    }
    read_files(dir);
    vc_txn_abort(t);
    vc_gen_close(g);
    vc_vm_close(vm);
    vc_store_close(s);
    remove_tree(dir);
    return 0;
}

static int drop_specimen(void **state)
{
    (void)state;
    for (unsigned i = 0; i < good.n; i++)
        free(good.files[i].data);
    forget_digester();
    return 0;
}

/* A store with these files. */
static void make_store(char dir[64])
{
    char path[200];
    struct vc_store *s;
    int fd;

    make_place(dir);
    s = open_store(dir);
    vc_vm_close(open_vm(s, VC_VM_CREATE));
    vc_store_close(s);
    vm_dir(dir, path);
    fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (unsigned i = 0; i < good.n; i++) {
        struct iovec iov = {good.files[i].data, good.files[i].n};
        int out = openat(fd, good.files[i].name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

        assert_true(out >= 0);
        assert_int_equal(vc_pwritev_full(out, &iov, 1, 0), 0);
        close(out);
    }
    close(fd);
}

/* Whatever a generation says that it holds is right, or not usable. */
static void check_generation(struct vc_vm *vm, const struct vc_gen_info *info)
{
    struct vc_verify_result r;
    struct vc_gen *g;
    struct vc_err err;
    int rc = vc_gen_open(vm, &info->id, &g, &err);

    if (rc) {
        assert_true(rc == VC_E_CORRUPT || rc == VC_E_VERSION);
        assert_true(err.message[0]);
        return;
    }
    for (uint32_t b = 0; b < vc_gen_ram(g)->n_blocks; b++)
        for (uint64_t p = 0; p < vc_ram_block_pages(vc_gen_ram(g), b); p++) {
            unsigned i = (unsigned)(b == 2 ? FIRST_OF_LAST + p : p);
            struct vc_digest d;

            if (vc_gen_lookup(g, b, vc_page(p), &d) == VC_PAGE_HELD && i < N_PAGES &&
                vc_gen_ram(g)->page_bytes == PAGE_BYTES && vc_gen_ram(g)->n_blocks == 3)
                read_page(g, i, &d);
        }
    rc = vc_gen_verify(g, &lineage, NULL, NULL, &r, &err);
    assert_true(rc == 0 || rc == VC_E_CORRUPT);
    vc_gen_close(g);
}

/* Opens it in every way. @fixed: checksums were made to fit, and so anything may be there. */
static void use_store(const char *dir, bool fixed)
{
    static const enum vc_vm_open modes[] = {VC_VM_READ, VC_VM_WRITE, VC_VM_CREATE};
    struct vc_store *s = open_store(dir);
    struct vc_handover h;
    struct vc_vm *vm;
    struct vc_err err;

    for (size_t k = 0; k < VC_ARRAY_LEN(modes); k++) {
        int rc = vc_vm_open(s, &vm_id, modes[k], &vm, &err);

        if (rc) {
            assert_true(rc == VC_E_VERSION || (rc == VC_E_CORRUPT && modes[k] != VC_VM_CREATE));
            assert_true(err.message[0]);
            continue;
        }
        for (size_t i = 0; i < vc_vm_n_generations(vm); i++)
            check_generation(vm, vc_vm_generation(vm, i));
        rc = vc_handover_get(vm, &h, &err);
        assert_true(rc == 0 || rc == VC_E_CORRUPT);
        if (!rc && !fixed)
            assert_true(h.state == VC_HANDOVER_LEFT);
        vc_vm_close(vm);
    }
    if (vc_vm_open(s, &vm_id, VC_VM_CREATE, &vm, &err) == 0) {
        struct image m;

        if (vc_vm_set_lineage(vm, &lineage, &err) == 0)
            commit_random(vm, NULL, NULL, 10, &m);
        vc_vm_close(vm);
    }
    vc_store_close(s);
}

static bool is_kind(const struct file *f, const char *kind)
{
    size_t n = strlen(f->name), k = strlen(kind);

    return n >= k && !strcmp(f->name + n - k, kind);
}

/* A damaged store, used. The file's good content is put back afterwards. */
static void try_damage(struct file *f, uint8_t *data, size_t n, bool fixed)
{
    struct file whole = *f;
    char dir[64];

    f->data = data;
    f->n = n;
    make_store(dir);
    pages_may_move = fixed;
    use_store(dir, fixed);
    pages_may_move = false;
    remove_tree(dir);
    *f = whole;
}

static void damage_all(const char *kind, unsigned times)
{
    for (unsigned i = 0; i < good.n; i++) {
        struct file *f = &good.files[i];
        uint8_t *bad;

        if (!is_kind(f, kind))
            continue;
        bad = malloc(f->n + 1);
        assert_non_null(bad);
        for (unsigned k = 0; k < times; k++) {
            size_t n = f->n, at = (size_t)(rng() % f->n), some = 1 + (size_t)(rng() % 600);

            memcpy(bad, f->data, f->n);
            if (k % 3 == 0)
                n = k ? at : 0;
            else if (k % 3 == 1)
                bad[at] ^= (uint8_t)(1u << rng() % 8);
            else
                memset(bad + at, (int)rng(), VC_MIN(f->n - at, some));
            try_damage(f, bad, n, false);
        }
        free(bad);
    }
}

static void a_damaged_manifest_is_noticed(void **state)
{
    (void)state;
    damage_all("manifest", 60);
}

static void a_damaged_index_is_noticed(void **state)
{
    (void)state;
    damage_all(".index", 40);
}

static void a_damaged_image_or_delta_serves_no_wrong_page(void **state)
{
    (void)state;
    damage_all(".image", 40);
    damage_all(".delta", 20);
}

static void a_damaged_log_is_used_up_to_the_damage(void **state)
{
    (void)state;
    damage_all(".log", 80);
}

/* ---- with checksums that fit ---- */

static void fix_end(uint8_t *data, size_t n)
{
    if (n >= VC_SHA256_BYTES)
        assert_true(vc_sha256(data, n - VC_SHA256_BYTES, data + n - VC_SHA256_BYTES));
}

/* Header and batches of a log, as far as their lengths lead. */
static void fix_log(uint8_t *data, size_t n)
{
    size_t at = (size_t)vc_load_le(data + 24, 4), len;
    uint8_t buf[VC_SHA256_BYTES + 70000];

    if (at < 60 || at > n)
        return;
    fix_end(data, at);
    for (;;) {
        if (n - at < 48)
            return;
        len = 16 + (size_t)vc_load_le(data + at, 4);
        if (len > 70000 || len + VC_SHA256_BYTES > n - at)
            return;
        memcpy(buf, data + at - VC_SHA256_BYTES, VC_SHA256_BYTES);
        memcpy(buf + VC_SHA256_BYTES, data + at, len);
        assert_true(vc_sha256(buf, VC_SHA256_BYTES + len, data + at + len));
        at += len + VC_SHA256_BYTES;
    }
}

static void tamper_all(const char *kind, void (*fix)(uint8_t *data, size_t n), unsigned times)
{
    static const uint8_t nasty[] = {0, 1, 2, 0x7f, 0x80, 0xff};

    for (unsigned i = 0; i < good.n; i++) {
        struct file *f = &good.files[i];
        uint8_t *bad;

        if (!is_kind(f, kind))
            continue;
        bad = malloc(f->n + 1);
        assert_non_null(bad);
        for (unsigned k = 0; k < times; k++) {
            size_t most = VC_MIN(f->n, (size_t)(k % 2 ? 700 : f->n));
            unsigned n = 1 + (unsigned)(rng() % 3);

            memcpy(bad, f->data, f->n);
            while (n--)
                bad[rng() % most] = nasty[rng() % sizeof(nasty)];
            fix(bad, f->n);
            try_damage(f, bad, f->n, true);
        }
        free(bad);
    }
}

static void an_impossible_manifest_is_refused(void **state)
{
    (void)state;
    tamper_all("manifest", fix_end, 150);
}

static void an_impossible_index_is_refused(void **state)
{
    (void)state;
    tamper_all(".index", fix_end, 100);
}

static void an_impossible_log_is_not_believed(void **state)
{
    (void)state;
    tamper_all(".log", fix_log, 200);
}

/* Another version is neither damage nor empty. */
static void what_a_newer_version_wrote_is_left_alone(void **state)
{
    static const struct {
        const char *kind;
        size_t at;
        int read, write;
    } cases[] = {
        {"manifest", 8, VC_E_VERSION, VC_E_VERSION},
        {"manifest", 12, VC_E_VERSION, VC_E_VERSION},
        {"manifest", 16, 0, VC_E_VERSION},
        {"manifest", 20, 0, 0},
    };

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(cases); i++) {
        struct file *f = good.files, whole;
        struct vc_store *s;
        struct vc_vm *vm;
        struct vc_err err;
        char dir[64];

        while (!is_kind(f, cases[i].kind))
            f++;
        whole = *f;
        f->data = malloc(f->n);
        assert_non_null(f->data);
        memcpy(f->data, whole.data, f->n);
        f->data[cases[i].at] ^= 4;
        fix_end(f->data, f->n);
        make_store(dir);
        free(f->data);
        *f = whole;
        s = open_store(dir);
        for (int mode = VC_VM_READ; mode <= VC_VM_CREATE; mode++) {
            int rc = vc_vm_open(s, &vm_id, (enum vc_vm_open)mode, &vm, &err);

            assert_int_equal(rc, mode == VC_VM_READ ? cases[i].read : cases[i].write);
            if (rc)
                continue;
            assert_int_equal(vc_vm_n_generations(vm), 2);
            assert_false(vc_vm_was_reset(vm));
            vc_vm_close(vm);
        }
        vc_store_close(s);
        remove_tree(dir);
    }
}

/* Without damage, everything is as it was. */
static void the_specimen_is_good(void **state)
{
    struct vc_store *s;
    struct vc_gen *g;
    struct vc_vm *vm;
    char dir[64];

    (void)state;
    make_store(dir);
    s = open_store(dir);
    vm = open_vm(s, VC_VM_READ);
    g = open_gen(vm, vc_vm_complete(vm));
    assert_generation(g, &good.complete);
    vc_gen_close(g);
    g = open_gen(vm, vc_vm_partial(vm));
    assert_generation(g, &good.partial);
    vc_gen_close(g);
    vc_vm_close(vm);
    use_store(dir, false);
    vc_store_close(s);
    remove_tree(dir);
}

/* A mapped file that shrinks, or a disk that cannot read it any more, is a SIGBUS. */
static void an_index_that_shrinks_does_not_matter_to_who_has_it_open(void **state)
{
    char dir[64], path[200], file[300];
    struct vc_store *s;
    struct vc_gen *g;
    struct vc_vm *vm;
    unsigned n = 0;

    (void)state;
    make_store(dir);
    s = open_store(dir);
    vm = open_vm(s, VC_VM_READ);
    g = open_gen(vm, vc_vm_complete(vm));
    vm_dir(dir, path);
    for (unsigned i = 0; i < good.n; i++) {
        if (!is_kind(&good.files[i], ".index"))
            continue;
        snprintf(file, sizeof(file), "%s/%s", path, good.files[i].name);
        assert_int_equal(truncate(file, 0), 0);
        n++;
    }
    assert_true(n > 0);
    assert_generation(g, &good.complete);
    vc_gen_close(g);
    vc_vm_close(vm);
    vc_store_close(s);
    remove_tree(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_specimen_is_good),
        cmocka_unit_test(an_index_that_shrinks_does_not_matter_to_who_has_it_open),
        cmocka_unit_test(a_damaged_manifest_is_noticed),
        cmocka_unit_test(a_damaged_index_is_noticed),
        cmocka_unit_test(a_damaged_image_or_delta_serves_no_wrong_page),
        cmocka_unit_test(a_damaged_log_is_used_up_to_the_damage),
        cmocka_unit_test(an_impossible_manifest_is_refused),
        cmocka_unit_test(an_impossible_index_is_refused),
        cmocka_unit_test(an_impossible_log_is_not_believed),
        cmocka_unit_test(what_a_newer_version_wrote_is_left_alone),
    };

    return cmocka_run_group_tests(tests, make_specimen, drop_specimen);
}
