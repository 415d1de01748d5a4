/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "test_store.h"

#include "sanitized.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>

/* The checkpoint store: docs/formats/store.md. */

struct place {
    char dir[64];
    struct vc_store *store;
};

static int setup(void **state)
{
    struct place *p = calloc(1, sizeof(*p));

    assert_non_null(p);
    make_place(p->dir);
    p->store = open_store(p->dir);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct place *p = *state;

    vc_store_close(p->store);
    remove_tree(p->dir);
    free(p);
    forget_digester();
    return 0;
}

static unsigned count_files(const char *store, const char *suffix)
{
    char dir[200];
    struct dirent *e;
    unsigned n = 0;
    DIR *d;

    vm_dir(store, dir);
    d = opendir(dir);
    assert_non_null(d);
    while ((e = readdir(d))) {
        size_t len = strlen(e->d_name), k = strlen(suffix);

        n += len > k && !strcmp(e->d_name + len - k, suffix);
    }
    closedir(d);
    return n;
}

/* Copies the store as it is now: what a killed process leaves. */
static void copy_store(const char *from, char to[64])
{
    char source[200], target[200];
    struct vc_store *s;
    struct dirent *e;
    int out_dir;
    DIR *d;

    make_place(to);
    s = open_store(to);
    vc_vm_close(open_vm(s, VC_VM_CREATE));
    vc_store_close(s);
    vm_dir(from, source);
    vm_dir(to, target);
    d = opendir(source);
    out_dir = open(target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_non_null(d);
    while ((e = readdir(d))) {
        char buf[4096];
        int in, out;
        ssize_t n;

        if (e->d_name[0] == '.')
            continue;
        in = openat(dirfd(d), e->d_name, O_RDONLY | O_CLOEXEC);
        out = openat(out_dir, e->d_name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        assert_true(in >= 0 && out >= 0);
        while ((n = read(in, buf, sizeof(buf))) > 0)
            assert_int_equal(vc_write_full(out, buf, (size_t)n), 0);
        close(in);
        close(out);
    }
    close(out_dir);
    closedir(d);
}

/* ---- complete generations ---- */

static void a_generation_comes_back_as_it_was_written(void **state)
{
    struct place *p = *state;

    for (int round = 0; round < 20; round++) {
        struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE);
        const struct vc_gen_info *info;
        struct vc_verify_result r;
        struct vc_gen *g;
        struct vc_err err;
        struct image m;

        commit_random(vm, NULL, NULL, 1 + (unsigned)(rng() % 40), &m);
        vc_vm_close(vm);
        vm = open_vm(p->store, round % 2 ? VC_VM_READ : VC_VM_WRITE);
        assert_int_equal(vc_vm_n_generations(vm), 1);
        info = vc_vm_complete(vm);
        g = open_gen(vm, info);
        assert_ptr_equal(info, vc_vm_generation(vm, 0));
        assert_null(vc_vm_partial(vm));
        assert_memory_equal(&info->id, &m.id, sizeof(m.id));
        assert_int_equal(info->ram_bytes, N_PAGES * PAGE_BYTES);
        assert_int_equal(info->held_pages, count_state(&m, VC_PAGE_HELD));
        assert_int_equal(info->zero_pages, count_state(&m, VC_PAGE_ZERO));
        assert_int_equal(info->unknown_pages, count_state(&m, VC_PAGE_UNKNOWN));
        assert_int_equal(info->same_pages, note.same_pages);
        assert_int_equal(info->data_pages, note.data_pages);
        assert_int_equal(info->role, note.role);
        assert_string_equal(info->peer, note.peer);
        assert_false(info->confirmed || info->partial);
        vc_vm_close(vm); /* the generation lives on */
        assert_generation(g, &m);
        assert_int_equal(vc_gen_verify(g, &lineage, NULL, NULL, &r, &err), 0);
        assert_int_equal(r.pages, count_state(&m, VC_PAGE_HELD));
        assert_int_equal(r.bad_pages, 0);
        vc_gen_close(g);
        assert_int_equal(count_files(p->dir, ".index"), 1);
        assert_int_equal(count_files(p->dir, ".image"), 1);
        assert_int_equal(count_files(p->dir, ".log"), 0);
    }
}

static void deltas_pile_up_to_eight_layers_and_no_further(void **state)
{
    struct place *p = *state;
    struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE);
    struct image m[20];
    struct vc_gen *g;
    unsigned most = 0;

    commit_random(vm, NULL, NULL, 40, &m[0]);
    for (unsigned i = 1; i < VC_ARRAY_LEN(m); i++) {
        struct vc_txn *t;
        struct vc_err err;

        g = open_gen(vm, vc_vm_complete(vm));
        t = begin(vm, g, &m[i]);
        assert_int_equal(vc_txn_same(t, 0, vc_page(0), FIRST_OF_LAST, &err), 0);
        for (unsigned k = 0; k < FIRST_OF_LAST; k++) {
            bool held = m[i - 1].state[k] == VC_PAGE_HELD;

            m[i].state[k] = held ? VC_PAGE_HELD : VC_PAGE_UNKNOWN;
            m[i].version[k] = m[i - 1].version[k];
        }
        random_runs(t, 2, &m[i], &m[i - 1]);
        assert_int_equal(vc_txn_commit(t, &note, NULL, &err), 0);
        vc_gen_close(g);
        g = open_gen(vm, vc_vm_complete(vm));
        assert_generation(g, &m[i]);
        vc_gen_close(g);
        assert_int_equal(vc_vm_n_generations(vm), 1);
        assert_true(vc_vm_complete(vm)->n_layers <= VC_STORE_MAX_LAYERS);
        assert_int_equal(count_files(p->dir, ".image") + count_files(p->dir, ".delta"),
                         vc_vm_complete(vm)->n_layers);
        most = VC_MAX(most, vc_vm_complete(vm)->n_layers);
    }
    assert_true(most > 3);
    vc_vm_close(vm);
}

static void another_layout_of_the_ram_copies_what_is_the_same(void **state)
{
    struct place *p = *state;
    struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE);
    struct vc_ram ram = small_ram();
    struct vc_gen *base, *g;
    struct vc_txn *t;
    struct image m;
    struct vc_digest d;
    struct vc_id id = {"another layout"};
    struct vc_err err;

    commit_random(vm, NULL, NULL, 60, &m);
    base = open_gen(vm, vc_vm_complete(vm));
    ram.blocks[0].bytes += 8 * PAGE_BYTES;
    ram.blocks[1] = ram.blocks[2];
    ram.n_blocks = 2;
    assert_int_equal(vc_txn_begin(vm, &id, base, &t, &err), 0);
    assert_int_equal(vc_txn_set_ram(t, &ram, &err), 0);
    assert_int_equal(vc_txn_same(t, 0, vc_page(0), FIRST_OF_LAST + 8, &err), 0);
    assert_int_equal(vc_txn_same(t, 1, vc_page(0), N_PAGES - FIRST_OF_LAST, &err), 0);
    assert_int_equal(vc_txn_commit(t, &note, NULL, &err), 0);
    vc_gen_close(base);
    g = open_gen(vm, vc_vm_complete(vm));
    assert_int_equal(vc_gen_info(g)->n_layers, 1);
    for (unsigned i = 0; i < N_PAGES; i++) {
        uint32_t block = i >= FIRST_OF_LAST;
        uint64_t page = block ? i - FIRST_OF_LAST : i;
        uint8_t got[PAGE_BYTES], want[PAGE_BYTES];
        bool held = m.state[i] == VC_PAGE_HELD;

        assert_int_equal(vc_gen_lookup(g, block, vc_page(page), &d),
                         held ? VC_PAGE_HELD : VC_PAGE_UNKNOWN);
        if (!held)
            continue;
        assert_int_equal(vc_gen_read(g, block, vc_page(page), 1, got, &err), 0);
        content_of(m.version[i], want);
        assert_memory_equal(got, want, PAGE_BYTES);
    }
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(vc_gen_lookup(g, 0, vc_page(FIRST_OF_LAST + i), &d), VC_PAGE_UNKNOWN);
    vc_gen_close(g);
    vc_vm_close(vm);
}

/* Two hosts that were told the same have the same, whatever files it lies in: one of them has
 * folded in between. */
static void equal_runs_have_equal_roots(void **state)
{
    struct place hosts[2] = {*(struct place *)*state};
    uint64_t seed = rng();
    uint32_t before = n_versions;
    uint8_t roots[2][VC_ROOT_BYTES], last[2][VC_ROOT_BYTES];
    struct image m[4];
    struct vc_err err;

    make_place(hosts[1].dir);
    hosts[1].store = open_store(hosts[1].dir);
    for (int i = 0; i < 2; i++) {
        struct vc_gen *g = NULL;
        struct vc_vm *vm;
        struct vc_txn *t;

        rng_state = seed;
        n_versions = before;
        for (int k = 0; k < 3; k++) {
            vm = open_vm(hosts[i].store, VC_VM_CREATE);
            g = k ? open_gen(vm, vc_vm_complete(vm)) : NULL;
            commit_random(vm, g, k ? &m[k - 1] : NULL, 30, &m[k]);
            vc_gen_close(g);
            vc_vm_close(vm);
            if (i)
                assert_int_equal(vc_vm_fold(hosts[i].store, &vm_id, NULL, &err), 0);
        }
        vm = open_vm(hosts[i].store, VC_VM_WRITE);
        assert_int_equal(vc_vm_complete(vm)->n_layers > 1, !i);
        memcpy(roots[i], vc_vm_complete(vm)->root, VC_ROOT_BYTES);
        if (i)
            assert_memory_equal(roots[0], roots[1], VC_ROOT_BYTES);
        /* One page more that differs, and they differ. */
        g = open_gen(vm, vc_vm_complete(vm));
        t = begin(vm, g, &m[3]);
        random_runs(t, 20, &m[3], &m[2]);
        assert_int_equal(vc_txn_zero(t, 0, vc_page(0), (size_t)i + 1, &err), 0);
        assert_int_equal(vc_txn_unknown(t, 0, vc_page(1), (size_t)!i, &err), 0);
        assert_int_equal(vc_txn_commit(t, &note, last[i], &err), 0);
        assert_memory_equal(vc_vm_complete(vm)->root, last[i], VC_ROOT_BYTES);
        vc_gen_close(g);
        vc_vm_close(vm);
    }
    assert_memory_not_equal(last[0], last[1], VC_ROOT_BYTES);
    vc_store_close(hosts[1].store);
    remove_tree(hosts[1].dir);
}

static void folding_changes_files_and_nothing_else(void **state)
{
    struct place *p = *state;
    struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE), *reader;
    struct vc_gen_info before;
    atomic_bool stop = true;
    struct vc_gen *g, *old;
    struct image m[3];
    struct vc_err err;

    commit_random(vm, NULL, NULL, 40, &m[0]);
    for (unsigned i = 1; i < 3; i++) {
        g = open_gen(vm, vc_vm_complete(vm));
        commit_random(vm, g, &m[i - 1], 40, &m[i]);
        vc_gen_close(g);
    }
    before = *vc_vm_complete(vm);
    assert_true(before.n_layers > 1);
    assert_int_equal(vc_vm_fold(p->store, &vm_id, NULL, &err), VC_AGAIN); /* locked */
    vc_vm_close(vm);
    assert_int_equal(vc_vm_fold(p->store, &vm_id, &stop, &err), VC_AGAIN);
    assert_int_equal(count_files(p->dir, ".tmp"), 0);
    reader = open_vm(p->store, VC_VM_READ);
    old = open_gen(reader, vc_vm_complete(reader));
    assert_int_equal(vc_vm_fold(p->store, &vm_id, NULL, &err), 0);
    assert_int_equal(count_files(p->dir, ".delta"), 0);
    assert_int_equal(count_files(p->dir, ".image"), 1);
    assert_int_equal(count_files(p->dir, ".index"), 1);
    assert_int_equal(count_files(p->dir, ".tmp"), 0);
    /* A reader with an old manifest: what it has open is readable, what it opens is the new one. */
    assert_generation(old, &m[2]);
    g = open_gen(reader, vc_vm_complete(reader));
    assert_int_equal(vc_gen_info(g)->n_layers, 1);
    assert_memory_equal(vc_gen_info(g)->root, before.root, VC_ROOT_BYTES);
    assert_memory_equal(&vc_gen_info(g)->id, &before.id, sizeof(before.id));
    assert_int_equal(vc_gen_info(g)->held_pages, before.held_pages);
    assert_generation(g, &m[2]);
    vc_gen_close(g);
    vc_gen_close(old);
    vc_vm_close(reader);
    assert_int_equal(vc_vm_fold(p->store, &vm_id, NULL, &err), 0); /* nothing to do */
}

static void another_lineage_drops_everything(void **state)
{
    struct place *p = *state;
    struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE);
    struct vc_lineage other = lineage, got;
    struct vc_txn *t;
    struct image m;
    struct vc_err err;

    commit_random(vm, NULL, NULL, 10, &m);
    assert_int_equal(vc_vm_confirm(vm, &m.id, &err), 0);
    assert_int_equal(vc_vm_confirm(vm, &vm_id, &err), VC_E_STORE);
    assert_true(vc_vm_complete(vm)->confirmed);
    t = begin(vm, NULL, &m);
    random_runs(t, 10, &m, NULL);
    other.id.b[0]++;
    other.exposed = true;
    assert_int_equal(vc_vm_set_lineage(vm, &other, &err), 0);
    assert_int_equal(vc_vm_n_generations(vm), 0);
    /* A transaction under the old one cannot end well, and does no harm before it ends. */
    random_runs(t, 10, &m, NULL);
    assert_int_equal(vc_txn_commit(t, &note, NULL, &err), VC_E_STORE);
    assert_int_equal(count_files(p->dir, ".image"), 0);
    vc_vm_close(vm);
    vm = open_vm(p->store, VC_VM_READ);
    assert_true(vc_vm_lineage(vm, &got));
    assert_memory_equal(&got.id, &other.id, sizeof(other.id));
    assert_memory_equal(got.key, other.key, sizeof(other.key));
    assert_true(got.exposed);
    assert_int_equal(vc_vm_n_generations(vm), 0);
    vc_vm_close(vm);
}

static void ram_over_the_limit_is_refused(void **state)
{
    struct place *p = *state;
    struct vc_ram ram = small_ram();
    struct vc_store *s;
    struct vc_vm *vm;
    struct vc_txn *t;
    struct vc_err err = VC_ERR_INIT;

    assert_int_equal(vc_store_open(p->dir, true, N_PAGES * PAGE_BYTES - 1, &s, &err), 0);
    vm = open_vm(s, VC_VM_CREATE);
    assert_int_equal(vc_txn_begin(vm, &vm_id, NULL, &t, &err), 0);
    assert_int_equal(vc_txn_set_ram(t, &ram, &err), VC_E_STORE_FULL);
    assert_non_null(strstr(err.hint, "--store-limit"));
    assert_int_equal(vc_txn_commit(t, &note, NULL, &err), VC_E_STORE);
    assert_int_equal(count_files(p->dir, ".image"), 0);
    assert_int_equal(count_files(p->dir, ".log"), 0);
    vc_vm_close(vm);
    vc_store_close(s);
}

/* Nothing is held, so that it takes little: a sparse file, and memory that is not touched. */
static int begin_with(struct vc_store *s, uint64_t bytes, struct vc_vm **vm, struct vc_txn **t)
{
    static struct vc_ram ram;
    struct vc_id id = {"some generation"};
    struct vc_err err = VC_ERR_INIT;

    memset(&ram, 0, sizeof(ram));
    ram.page_bytes = 4096;
    ram.n_blocks = 3;
    ram.blocks[0] = (struct vc_block){"pc.ram", bytes};
    ram.blocks[1] = (struct vc_block){"vga.vram", 16 << 20};
    ram.blocks[2] = (struct vc_block){"pc.bios", 256 << 10};
    *vm = open_vm(s, VC_VM_CREATE);
    assert_int_equal(vc_txn_begin(*vm, &id, NULL, t, &err), 0);
    return vc_txn_set_ram(*t, &ram, &err);
}

static void the_default_limit_admits_a_terabyte_with_video_memory(void **state)
{
    struct place *p = *state;
    const struct {
        uint64_t bytes;
        int rc;
    } vms[] = {
        {512ull << 30, 0},
        {1ull << 40, 0},
        {4ull << 40, VC_E_STORE_FULL}, /* with what is beside it */
        {32ull << 40, VC_E_STORE_FULL},
    };

    for (size_t i = 0; i < VC_ARRAY_LEN(vms); i++) {
        struct vc_vm *vm;
        struct vc_txn *t;
        struct vc_err err = VC_ERR_INIT;

        if (SANITIZED && !vms[i].rc) /* which touches what is only reserved */
            continue;
        assert_int_equal(begin_with(p->store, vms[i].bytes, &vm, &t), vms[i].rc);
        if (!vms[i].rc) {
            uint64_t last = vms[i].bytes / 4096 - 1;

            assert_int_equal(vc_txn_zero(t, 0, vc_page(last), 1, &err), 0);
            assert_int_equal(vc_txn_unknown(t, 1, vc_page(4095), 1, &err), 0);
        }
        vc_txn_abort(t);
        vc_vm_close(vm);
    }
}

/* Each of 64 peers names a terabyte: those beyond what a host has for indexes get no checkpoint,
 * and what the others had is given back. (A host of 2 TiB has it for all.) */
static void what_peers_name_together_has_a_limit(void **state)
{
    struct place *p = *state;
    unsigned admitted[2] = {0};

    if (SANITIZED)
        return;
    for (unsigned round = 0; round < 2; round++) {
        struct vc_vm *vms[64];
        struct vc_txn *txns[64];
        struct vc_ram ram = {.page_bytes = 4096, .n_blocks = 1};
        struct vc_err err = VC_ERR_INIT;
        unsigned n = 0;
        int rc = 0;

        ram.blocks[0] = (struct vc_block){"pc.ram", 1ull << 40};
        while (n < VC_ARRAY_LEN(vms) && !rc) {
            struct vc_id uuid = {{(uint8_t)(n + 1)}};

            assert_int_equal(vc_vm_open(p->store, &uuid, VC_VM_CREATE, &vms[n], &err), 0);
            assert_int_equal(vc_txn_begin(vms[n], &vm_id, NULL, &txns[n], &err), 0);
            rc = vc_txn_set_ram(txns[n++], &ram, &err);
            admitted[round] += !rc;
        }
        assert_true(rc == 0 || rc == VC_E_STORE_FULL);
        while (n--) {
            vc_txn_abort(txns[n]);
            vc_vm_close(vms[n]);
        }
    }
    assert_true(admitted[0] >= 1);
    assert_int_equal(admitted[0], admitted[1]);
}

static void a_locked_vm_is_busy_for_writers_alone(void **state)
{
    struct place *p = *state;
    struct vc_vm *vm, *other;
    struct vc_txn *t, *second;
    struct image m;
    struct vc_err err;

    assert_int_equal(vc_vm_open(p->store, &vm_id, VC_VM_WRITE, &vm, &err), VC_NOT_FOUND);
    assert_int_equal(vc_vm_open(p->store, &vm_id, VC_VM_READ, &vm, &err), VC_NOT_FOUND);
    vm = open_vm(p->store, VC_VM_CREATE);
    commit_random(vm, NULL, NULL, 10, &m);
    assert_int_equal(vc_vm_open(p->store, &vm_id, VC_VM_TRY, &other, &err), VC_E_BUSY);
    assert_int_equal(vc_vm_open(p->store, &vm_id, VC_VM_WRITE, &other, &err), VC_E_BUSY);
    assert_int_equal(vc_vm_open(p->store, &vm_id, VC_VM_CREATE, &other, &err), VC_E_BUSY);
    t = begin(vm, NULL, &m);
    random_runs(t, 5, &m, NULL);
    assert_int_equal(vc_txn_begin(vm, &vm_id, NULL, &second, &err), VC_E_STORE);
    other = open_vm(p->store, VC_VM_READ);
    assert_int_equal(vc_vm_n_generations(other), 1);
    vc_vm_close(other);
    vc_txn_abort(t);
    assert_int_equal(count_files(p->dir, ".image"), 1);
    vc_vm_close(vm);
    vc_vm_close(open_vm(p->store, VC_VM_WRITE));
}

/* A peer chooses it. As the id of a checkpoint, zero would keep it from being evicted. */
static void a_generation_is_not_called_zero(void **state)
{
    static const struct vc_id zero;
    struct place *p = *state;
    struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE);
    struct vc_txn *t;
    struct vc_err err;
    struct image m;

    assert_int_equal(vc_txn_begin(vm, &zero, NULL, &t, &err), VC_E_STORE);
    assert_non_null(strstr(err.message, "zero"));
    commit_random(vm, NULL, NULL, 10, &m);
    assert_int_equal(vc_vm_n_generations(vm), 1);
    vc_vm_close(vm);
}

static void a_removed_vm_leaves_nothing(void **state)
{
    struct place *p = *state;
    struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE);
    struct vc_handover h = {.state = VC_HANDOVER_LEFT};
    struct vc_id *ids = NULL;
    struct vc_err err;
    struct image m;
    char dir[200];
    size_t n;

    commit_random(vm, NULL, NULL, 10, &m);
    assert_int_equal(vc_handover_begin(vm, &h, &err), 0);
    assert_int_equal(vc_store_list(p->store, &ids, &n, &err), 0);
    assert_int_equal(n, 1);
    assert_memory_equal(&ids[0], &vm_id, sizeof(vm_id));
    free(ids);
    assert_int_equal(vc_vm_remove(vm, &err), 0);
    vc_vm_close(vm);
    vm_dir(p->dir, dir);
    assert_int_equal(access(dir, F_OK), -1);
    assert_int_equal(vc_store_list(p->store, &ids, &n, &err), 0);
    assert_int_equal(n, 0);
    free(ids);
}

static void files_of_others_are_left_alone(void **state)
{
    static const char *const theirs[] = {
        "notes",
        "00112233-4455-6677-8899-aabbccddeeff.txt",
        "00112233-4455-6677-8899-AABBCCDDEEFF.image",
        "x.image",
        "00112233-4455-6677-8899-aabbccddeeff.image.bak",
    };
    static const char *const ours[] = {
        "00112233-4455-6677-8899-aabbccddeeff.image",
        "00112233-4455-6677-8899-aabbccddeeff.delta",
        "00112233-4455-6677-8899-aabbccddeeff.index",
        "00112233-4455-6677-8899-aabbccddeeff.log",
        "00112233-4455-6677-8899-aabbccddeeff.image.tmp",
        "manifest.new",
    };
    struct place *p = *state;
    char dir[200], name[300];

    vc_vm_close(open_vm(p->store, VC_VM_CREATE));
    vm_dir(p->dir, dir);
    for (size_t i = 0; i < VC_ARRAY_LEN(theirs) + VC_ARRAY_LEN(ours); i++) {
        bool mine = i >= VC_ARRAY_LEN(theirs);

        snprintf(name, sizeof(name), "%s/%s", dir,
                 mine ? ours[i - VC_ARRAY_LEN(theirs)] : theirs[i]);
        close(open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    }
    vc_vm_close(open_vm(p->store, VC_VM_READ));
    for (size_t i = 0; i < VC_ARRAY_LEN(ours); i++) {
        snprintf(name, sizeof(name), "%s/%s", dir, ours[i]);
        assert_int_equal(access(name, F_OK), 0);
    }
    vc_vm_close(open_vm(p->store, VC_VM_WRITE));
    for (size_t i = 0; i < VC_ARRAY_LEN(ours); i++) {
        snprintf(name, sizeof(name), "%s/%s", dir, ours[i]);
        assert_int_equal(access(name, F_OK), -1);
    }
    for (size_t i = 0; i < VC_ARRAY_LEN(theirs); i++) {
        snprintf(name, sizeof(name), "%s/%s", dir, theirs[i]);
        assert_int_equal(access(name, F_OK), 0);
    }
}

static void only_a_store_is_opened_as_one(void **state)
{
    struct place *p = *state;
    struct vc_store *s;
    struct vc_err err;
    char name[100];
    int fd;

    snprintf(name, sizeof(name), "%s/nowhere", p->dir);
    assert_int_equal(vc_store_open(name, false, 0, &s, &err), VC_NOT_FOUND);
    snprintf(name, sizeof(name), "%s/format", p->dir);
    assert_int_equal(vc_store_open(name, true, 0, &s, &err), VC_E_STORE);
    fd = open(name, O_WRONLY | O_CLOEXEC);
    assert_int_equal(vc_write_full(fd, "vecycle store 2\n", 16), 0);
    close(fd);
    assert_int_equal(vc_store_open(p->dir, true, 0, &s, &err), VC_E_STORE);
    assert_int_equal(truncate(name, 3), 0);
    assert_int_equal(vc_store_open(p->dir, true, 0, &s, &err), VC_E_STORE);
}

/* ---- partial generations ---- */

static void what_had_arrived_is_kept_beside_the_complete_one(void **state)
{
    struct place *p = *state;
    struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE);
    struct vc_gen *base, *partial, *g;
    struct image complete, m, again, last;
    struct vc_verify_result r;
    struct vc_txn *t;
    struct vc_err err;

    commit_random(vm, NULL, NULL, 30, &complete);
    base = open_gen(vm, vc_vm_complete(vm));
    t = begin(vm, base, &m);
    assert_int_equal(vc_txn_suspend(t, &note, &err), VC_NOT_FOUND); /* nothing arrived */
    assert_int_equal(vc_txn_suspend(NULL, &note, &err), VC_NOT_FOUND);
    assert_null(vc_vm_partial(vm));
    t = begin(vm, base, &m);
    random_runs(t, 6, &m, &complete);
    assert_int_equal(vc_txn_put(t, 0, vc_page(0), 0, NULL, NULL, &err), 0);
    if (!count_state(&m, VC_PAGE_HELD))
        random_runs(t, 30, &m, &complete);
    assert_int_equal(vc_txn_suspend(t, &note, &err), 0);
    fill_from_base(&m, &complete);
    vc_gen_close(base);
    vc_vm_close(vm);

    vm = open_vm(p->store, VC_VM_WRITE);
    assert_int_equal(vc_vm_n_generations(vm), 2);
    assert_memory_equal(&vc_vm_complete(vm)->id, &complete.id, sizeof(complete.id));
    assert_ptr_equal(vc_vm_partial(vm), vc_vm_generation(vm, 1));
    assert_true(vc_vm_partial(vm)->partial);
    assert_memory_not_equal(&vc_vm_partial(vm)->id, &m.id, sizeof(m.id));
    assert_int_equal(vc_vm_confirm(vm, &vc_vm_partial(vm)->id, &err), VC_E_STORE);
    partial = open_gen(vm, vc_vm_partial(vm));
    assert_generation(partial, &m);
    assert_int_equal(vc_gen_verify(partial, &lineage, NULL, NULL, &r, &err), 0);
    assert_int_equal(r.bad_pages, 0);

    /* The next attempt stands on it, and fails too: the newer takes the older's place. */
    t = begin(vm, partial, &again);
    random_runs(t, 20, &again, &m);
    assert_int_equal(vc_txn_suspend(t, &note, &err), 0);
    fill_from_base(&again, &m);
    vc_gen_close(partial);
    assert_int_equal(vc_vm_n_generations(vm), 2);
    partial = open_gen(vm, vc_vm_partial(vm));
    assert_generation(partial, &again);

    /* Folding the complete one leaves it what it needs. */
    vc_vm_close(vm);
    assert_int_equal(vc_vm_fold(p->store, &vm_id, NULL, &err), 0);
    vm = open_vm(p->store, VC_VM_WRITE);
    g = open_gen(vm, vc_vm_partial(vm));
    assert_generation(g, &again);
    vc_gen_close(g);

    /* A complete one takes the place of all. */
    commit_random(vm, partial, &again, 20, &last);
    assert_int_equal(vc_vm_n_generations(vm), 1);
    assert_null(vc_vm_partial(vm));
    vc_gen_close(partial);
    g = open_gen(vm, vc_vm_complete(vm));
    assert_generation(g, &last);
    assert_int_equal(count_files(p->dir, ".index"), 1);
    assert_int_equal(count_files(p->dir, ".image") + count_files(p->dir, ".delta"),
                     vc_gen_info(g)->n_layers);
    vc_gen_close(g);
    vc_vm_close(vm);
}

static void folding_leaves_a_partial_generation_its_layers(void **state)
{
    struct place *p = *state;
    struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE);
    struct image m[2], part;
    struct vc_gen *g;
    struct vc_txn *t;
    struct vc_err err;

    commit_random(vm, NULL, NULL, 40, &m[0]);
    g = open_gen(vm, vc_vm_complete(vm));
    commit_random(vm, g, &m[0], 40, &m[1]);
    vc_gen_close(g);
    g = open_gen(vm, vc_vm_complete(vm));
    t = begin(vm, g, &part);
    random_runs(t, 30, &part, &m[1]);
    assert_int_equal(vc_txn_suspend(t, &note, &err), 0);
    fill_from_base(&part, &m[1]);
    vc_gen_close(g);
    vc_vm_close(vm);
    assert_int_equal(vc_vm_fold(p->store, &vm_id, NULL, &err), 0);
    assert_int_equal(count_files(p->dir, ".image"), 2);
    vm = open_vm(p->store, VC_VM_WRITE);
    assert_int_equal(vc_vm_complete(vm)->n_layers, 1);
    g = open_gen(vm, vc_vm_partial(vm));
    assert_generation(g, &part);
    vc_gen_close(g);
    g = open_gen(vm, vc_vm_complete(vm));
    assert_generation(g, &m[1]);
    vc_gen_close(g);
    vc_vm_close(vm);
}

/* ---- a process that is killed ---- */

/* With no base, a complete one, a partial one. */
static void what_was_logged_survives_the_process(void **state)
{
    struct place *p = *state;
    struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE);
    struct image base = {0}, m;
    struct vc_gen *g = NULL;

    for (int round = 0; round < 6; round++) {
        struct vc_txn *t = begin(vm, g, &m);
        struct vc_store *s;
        struct vc_vm *after;
        struct vc_gen *left;
        struct vc_err err;
        char copy[64];

        random_runs(t, 25, &m, &base);
        assert_int_equal(vc_txn_log(t, round & 1, &err), 0);
        random_runs(t, 25, &m, &base);
        assert_int_equal(vc_txn_log(t, false, &err), 0);
        copy_store(p->dir, copy);
        assert_int_equal(count_files(copy, ".log"), 1);
        s = open_store(copy);
        after = open_vm(s, VC_VM_READ);
        assert_int_equal(vc_vm_n_generations(after), vc_vm_n_generations(vm));
        vc_vm_close(after);
        assert_int_equal(count_files(copy, ".log"), 1);
        after = open_vm(s, VC_VM_WRITE);
        left = open_gen(after, vc_vm_partial(after));
        fill_from_base(&m, &base);
        assert_generation(left, &m);
        assert_int_equal(count_files(copy, ".log"), 0);
        assert_int_equal(vc_vm_complete(after) != NULL, vc_vm_complete(vm) != NULL);
        vc_gen_close(left);
        vc_vm_close(after);
        /* Once is enough. */
        after = open_vm(s, VC_VM_WRITE);
        assert_int_equal(vc_vm_n_generations(after), 1 + (vc_vm_complete(vm) != NULL));
        vc_vm_close(after);
        vc_store_close(s);
        remove_tree(copy);
        assert_int_equal(
            round == 2 ? vc_txn_commit(t, &note, NULL, &err) : vc_txn_suspend(t, &note, &err), 0);
        vc_gen_close(g);
        g = open_gen(vm, round == 2 ? vc_vm_complete(vm) : vc_vm_partial(vm));
        if (round == 2) /* complete: as the migration had it */
            for (unsigned i = 0; i < N_PAGES; i++) {
                struct vc_digest d;
                uint32_t block;
                uint64_t page;

                locate(i, &block, &page);
                m.state[i] = (uint8_t)vc_gen_lookup(g, block, vc_page(page), &d);
            }
        base = m;
    }
    vc_gen_close(g);
    vc_vm_close(vm);
}

static void a_log_of_nothing_leaves_nothing(void **state)
{
    struct place *p = *state;
    struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE), *after;
    struct image m;
    struct vc_txn *t = begin(vm, NULL, &m);
    struct vc_store *s;
    struct vc_err err;
    char copy[64];

    assert_int_equal(vc_txn_zero(t, 0, vc_page(0), 9, &err), 0);
    assert_int_equal(vc_txn_same(t, 0, vc_page(3), 9, &err), 0);
    assert_int_equal(vc_txn_log(t, true, &err), 0);
    copy_store(p->dir, copy);
    vc_txn_abort(t);
    vc_vm_close(vm);
    s = open_store(copy);
    after = open_vm(s, VC_VM_WRITE);
    assert_int_equal(vc_vm_n_generations(after), 0);
    assert_int_equal(count_files(copy, ".log"), 0);
    assert_int_equal(count_files(copy, ".image"), 0);
    vc_vm_close(after);
    vc_store_close(s);
    remove_tree(copy);
}

/* ---- who may run the VM ---- */

static void a_handover_is_remembered(void **state)
{
    struct place *p = *state;
    struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE);
    struct vc_handover h = {.state = VC_HANDOVER_LEAVING, .since_unix = 7}, got;
    struct vc_err err;

    assert_int_equal(vc_handover_get(vm, &got, &err), 0);
    assert_int_equal(got.state, VC_HANDOVER_NONE);
    memset(h.peer, 'p', sizeof(h.peer) - 1);
    memset(h.socket, 's', sizeof(h.socket) - 1);
    memset(h.tls_hostname, 'h', sizeof(h.tls_hostname) - 1);
    h.suspend = h.has_counts = h.told = h.left_suspended = h.started_anew = h.awaits_rest = true;
    h.data_records = UINT64_MAX;
    h.zero_records = 3;
    h.noted_ns = 4;
    h.sum = (struct vc_handover_sum){5, 6, 7, 8, 9, 10, 11};
    assert_true(vc_process_read(getpid(), &h.qemu));
    h.n_settings = VC_HANDOVER_MAX_SETTINGS;
    for (unsigned i = 0; i < h.n_settings; i++)
        h.settings[i] = (struct vc_handover_setting){.kind = (uint8_t)(1 + i % 4),
                                                     .name = "max-bandwidth",
                                                     .was = i,
                                                     .set = ~0ull,
                                                     .last = 5};
    for (unsigned i = 0; i < 5; i++) {
        h.state = VC_HANDOVER_LEAVING;
        h.session.b[0] = (uint8_t)i;
        assert_int_equal(vc_handover_begin(vm, &h, &err), 0);
        for (unsigned s = 0; s <= VC_HANDOVER_ABOUT_TO_RUN; s++) {
            assert_int_equal(vc_handover_set(vm, (enum vc_handover_state)s, &err), 0);
            assert_int_equal(vc_handover_get(vm, &got, &err), 0);
            h.state = (uint8_t)s;
            assert_memory_equal(&got, &h, sizeof(h));
        }
        vc_vm_close(vm);
        vm = open_vm(p->store, VC_VM_WRITE);
        assert_int_equal(vc_handover_get(vm, &got, &err), 0);
        assert_memory_equal(&got, &h, sizeof(h));
    }
    vc_vm_close(vm);
}

static void a_handover_may_come_to_leave_the_vm_paused(void **state)
{
    struct place *p = *state;
    struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE);
    struct vc_handover h = {.state = VC_HANDOVER_LEAVING, .peer = "there"}, got;
    struct vc_err err;

    assert_int_equal(vc_handover_begin(vm, &h, &err), 0);
    vc_handover_edit(vm)->suspend = true;
    assert_int_equal(vc_handover_get(vm, &got, &err), 0);
    assert_false(got.suspend);
    assert_int_equal(vc_handover_set(vm, VC_HANDOVER_LEFT, &err), 0);
    assert_int_equal(vc_handover_get(vm, &got, &err), 0);
    h.suspend = true;
    h.state = VC_HANDOVER_LEFT;
    assert_memory_equal(&got, &h, sizeof(h));
    /* The next migration is asked for anew. */
    h.suspend = false;
    assert_int_equal(vc_handover_begin(vm, &h, &err), 0);
    assert_int_equal(vc_handover_get(vm, &got, &err), 0);
    assert_false(got.suspend);
    vc_vm_close(vm);
}

/* A decision that could not be written was not taken, whatever is noted afterwards. */
static void a_note_does_not_say_what_could_not_be_written(void **state)
{
    struct place *p = *state;
    struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE);
    struct vc_handover h = {.state = VC_HANDOVER_ARRIVING}, got;
    struct rlimit limit, nothing;
    struct vc_err err;

    assert_int_equal(vc_handover_begin(vm, &h, &err), 0);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    nothing = (struct rlimit){.rlim_cur = 0, .rlim_max = limit.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &nothing), 0);
    assert_true(vc_handover_set(vm, VC_HANDOVER_ABOUT_TO_RUN, &err) < 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    signal(SIGXFSZ, SIG_DFL);
    vc_handover_edit(vm)->n_settings = 1;
    vc_handover_edit(vm)->settings[0].kind = VC_SETTING_PARAMETER;
    assert_int_equal(vc_handover_note(vm, &err), 0);
    assert_int_equal(vc_handover_get(vm, &got, &err), 0);
    assert_int_equal(got.state, VC_HANDOVER_ARRIVING);
    assert_int_equal(got.n_settings, 1);
    vc_vm_close(vm);
}

/* Changes a slot's bytes behind the store's back, with a checksum that is right again. */
static void rewrite_slot(const char *name, unsigned at, const void *bytes, size_t n)
{
    uint8_t file[8192];
    int fd = open(name, O_RDWR | O_CLOEXEC);

    assert_int_equal(vc_pread_full(fd, file, sizeof(file), 0), 1);
    for (unsigned slot = 0; slot < sizeof(file); slot += 4096) {
        if (vc_is_zero(file + slot, 4096))
            continue;
        memcpy(file + slot + at, bytes, n);
        assert_true(vc_sha256(file + slot, 4064, file + slot + 4064));
    }
    assert_int_equal(vc_pwritev_full(fd, &(struct iovec){file, sizeof(file)}, 1, 0), 0);
    close(fd);
}

/* What is right and what is not in each field: docs/formats/store.md, section 6. */
static void a_handover_with_an_odd_field_is_damaged(void **state)
{
    static const struct {
        unsigned at;
        const char *bytes;
        size_t n;
    } odd[] = {
        {8, "\2", 1},
        {12, "\10", 1},
        {23, "\377", 1},
        {48, "b\0x", 3},
        {304, "b\0x", 3},
        {560, "b\0x", 3},
        {1584, "\2", 1},
        {1585, "\0\0\0\200", 4},
        {1645, "\40", 1},
        {1726, "\31", 1},
        {1726, "\1", 1} /* kind 0 */,
        {1726, "\1\5", 2},
        {1727, "\1", 1} /* not counted */,
        {3095, "x", 1},
        {4063, "x", 1},
    };
    struct place *p = *state;
    struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE);
    struct vc_handover h = {.state = VC_HANDOVER_LEFT, .peer = "tls://b"}, got;
    char dir[200], name[300];
    struct vc_err err;

    vm_dir(p->dir, dir);
    snprintf(name, sizeof(name), "%s/handover", dir);
    for (size_t i = 0; i < VC_ARRAY_LEN(odd); i++) {
        unlink(name);
        assert_int_equal(vc_handover_begin(vm, &h, &err), 0);
        rewrite_slot(name, 1584, "\1", 1);
        assert_int_equal(vc_handover_get(vm, &got, &err), 0);
        rewrite_slot(name, odd[i].at, odd[i].bytes, odd[i].n);
        if (vc_handover_get(vm, &got, &err) != VC_E_CORRUPT)
            fail_msg("odd bytes at %u pass", odd[i].at);
    }
    vc_vm_close(vm);
}

/* It takes the place of the next synced one, and leaves the last synced one alone. */
static void a_note_outlives_the_process_and_not_more(void **state)
{
    struct place *p = *state;
    struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE);
    struct vc_handover h = {.state = VC_HANDOVER_LEAVING}, got;
    struct vc_err err;

    assert_int_equal(vc_handover_begin(vm, &h, &err), 0);
    for (uint64_t i = 1; i < 5; i++) {
        vc_handover_edit(vm)->has_counts = true;
        vc_handover_edit(vm)->data_records = i;
        assert_int_equal(vc_handover_note(vm, &err), 0);
        assert_int_equal(vc_handover_get(vm, &got, &err), 0);
        assert_int_equal(got.data_records, i);
        assert_int_equal(got.state, VC_HANDOVER_LEAVING);
    }
    assert_int_equal(vc_handover_set(vm, VC_HANDOVER_LEFT, &err), 0);
    vc_vm_close(vm);
    vm = open_vm(p->store, VC_VM_WRITE);
    assert_int_equal(vc_handover_get(vm, &got, &err), 0);
    assert_int_equal(got.state, VC_HANDOVER_LEFT);
    assert_int_equal(got.data_records, 4);
    vc_vm_close(vm);
}

/* Whatever prefix of the slot reached the disk, in whatever order its sectors did. */
static void a_torn_handover_leaves_the_state_before(void **state)
{
    struct place *p = *state;
    struct vc_vm *vm = open_vm(p->store, VC_VM_CREATE);
    struct vc_handover h = {.state = VC_HANDOVER_LEAVING, .peer = "there"}, got;
    uint8_t before[8192], after[8192], torn[8192];
    char dir[200], name[300];
    struct vc_err err;
    int fd;

    vm_dir(p->dir, dir);
    snprintf(name, sizeof(name), "%s/handover", dir);
    assert_int_equal(vc_handover_begin(vm, &h, &err), 0);
    for (unsigned round = 0; round < 4; round++) {
        fd = open(name, O_RDWR | O_CLOEXEC);
        assert_int_equal(vc_pread_full(fd, before, sizeof(before), 0), 1);
        assert_int_equal(
            vc_handover_set(vm, round % 2 ? VC_HANDOVER_SETTLED : VC_HANDOVER_LEFT, &err), 0);
        assert_int_equal(vc_pread_full(fd, after, sizeof(after), 0), 1);
        for (unsigned i = 0; i < 300; i++) {
            struct iovec iov = {torn, sizeof(torn)};
            bool whole = true;

            memcpy(torn, before, sizeof(torn));
            for (unsigned at = 0; at < sizeof(torn); at += 64)
                if (rng() % 2)
                    memcpy(torn + at, after + at, 64);
            whole = !memcmp(torn, after, sizeof(torn));
            assert_int_equal(vc_pwritev_full(fd, &iov, 1, 0), 0);
            assert_int_equal(vc_handover_get(vm, &got, &err), 0);
            if (!whole)
                assert_int_equal(got.state, round == 0  ? VC_HANDOVER_LEAVING
                                            : round % 2 ? VC_HANDOVER_LEFT
                                                        : VC_HANDOVER_SETTLED);
        }
        assert_int_equal(vc_pwritev_full(fd, &(struct iovec){after, sizeof(after)}, 1, 0), 0);
        close(fd);
    }
    /* Both slots gone: damage is told, and a new record can be begun. */
    fd = open(name, O_RDWR | O_CLOEXEC);
    memset(torn, 0x55, sizeof(torn));
    assert_int_equal(vc_pwritev_full(fd, &(struct iovec){torn, sizeof(torn)}, 1, 0), 0);
    assert_int_equal(vc_handover_get(vm, &got, &err), VC_E_CORRUPT);
    assert_int_equal(ftruncate(fd, 100), 0);
    close(fd);
    assert_int_equal(vc_handover_get(vm, &got, &err), VC_E_CORRUPT);
    assert_int_equal(vc_handover_begin(vm, &h, &err), 0);
    assert_int_equal(vc_handover_get(vm, &got, &err), 0);
    assert_int_equal(got.state, VC_HANDOVER_LEAVING);
    vc_vm_close(vm);
}

static bool syncs_fail;

static int sync_or_not(const struct vc_io *io, int fd)
{
    (void)io;
    if (!syncs_fail)
        return vc_io_kernel.sync(&vc_io_kernel, fd);
    errno = EIO;
    return -1;
}

/* What was written by a sync that failed may be lost; the state before must not be overwritten. */
static void a_handover_whose_sync_failed_goes_into_the_same_slot(void **state)
{
    struct place *p = *state;
    struct vc_io io = vc_io_kernel;
    struct vc_handover h = {.state = VC_HANDOVER_LEAVING}, got;
    uint8_t before[8192], after[8192];
    struct vc_store *s;
    struct vc_vm *vm;
    struct vc_err err;
    char dir[200], name[300];
    int fd;

    io.sync = sync_or_not;
    assert_int_equal(vc_store_open_on(&io, p->dir, true, 0, &s, &err), 0);
    vm = open_vm(s, VC_VM_CREATE);
    assert_int_equal(vc_handover_begin(vm, &h, &err), 0);
    vm_dir(p->dir, dir);
    snprintf(name, sizeof(name), "%s/handover", dir);
    fd = open(name, O_RDONLY | O_CLOEXEC);
    assert_int_equal(vc_pread_full(fd, before, sizeof(before), 0), 1);
    syncs_fail = true;
    assert_int_equal(vc_handover_set(vm, VC_HANDOVER_LEFT, &err), VC_E_STORE);
    syncs_fail = false;
    assert_int_equal(vc_handover_set(vm, VC_HANDOVER_SETTLED, &err), 0);
    assert_int_equal(vc_pread_full(fd, after, sizeof(after), 0), 1);
    close(fd);
    assert_memory_equal(before + 4096, after + 4096, 4096); /* where the file begins its life */
    assert_int_equal(vc_handover_get(vm, &got, &err), 0);
    assert_int_equal(got.state, VC_HANDOVER_SETTLED);
    vc_vm_close(vm);
    vc_store_close(s);
}

/* Pages that a failed sync may have lost are not committed, though the next sync succeeds. */
static void a_failed_sync_is_not_forgotten(void **state)
{
    struct place *p = *state;
    struct vc_io io = vc_io_kernel;
    struct vc_store *s;
    struct image m;
    struct vc_vm *vm;
    struct vc_txn *t;
    struct vc_err err;

    io.sync = sync_or_not;
    assert_int_equal(vc_store_open_on(&io, p->dir, true, 0, &s, &err), 0);
    vm = open_vm(s, VC_VM_CREATE);
    for (int i = 0; i < 2; i++) {
        t = begin(vm, NULL, &m);
        random_runs(t, 40, &m, NULL);
        syncs_fail = true;
        assert_int_equal(vc_txn_log(t, true, &err), VC_E_STORE);
        syncs_fail = false;
        assert_int_equal(i ? vc_txn_suspend(t, &note, &err) : vc_txn_commit(t, &note, NULL, &err),
                         VC_E_STORE);
        assert_int_equal(vc_vm_n_generations(vm), 0);
        assert_int_equal(count_files(p->dir, ".image"), 0);
    }
    vc_vm_close(vm);
    vc_store_close(s);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
#define TEST T /* docs/internals/faults.md names these */
    const struct CMUnitTest tests[] = {
        T(a_generation_comes_back_as_it_was_written),
        T(deltas_pile_up_to_eight_layers_and_no_further),
        T(another_layout_of_the_ram_copies_what_is_the_same),
        T(equal_runs_have_equal_roots),
        T(folding_changes_files_and_nothing_else),
        T(another_lineage_drops_everything),
        T(ram_over_the_limit_is_refused),
        TEST(the_default_limit_admits_a_terabyte_with_video_memory),
        TEST(what_peers_name_together_has_a_limit),
        T(a_locked_vm_is_busy_for_writers_alone),
        T(a_generation_is_not_called_zero),
        T(a_removed_vm_leaves_nothing),
        T(files_of_others_are_left_alone),
        T(only_a_store_is_opened_as_one),
        T(what_had_arrived_is_kept_beside_the_complete_one),
        T(folding_leaves_a_partial_generation_its_layers),
        T(what_was_logged_survives_the_process),
        T(a_log_of_nothing_leaves_nothing),
        T(a_handover_is_remembered),
        T(a_handover_may_come_to_leave_the_vm_paused),
        T(a_note_does_not_say_what_could_not_be_written),
        T(a_handover_with_an_odd_field_is_damaged),
        T(a_note_outlives_the_process_and_not_more),
        T(a_torn_handover_leaves_the_state_before),
        T(a_handover_whose_sync_failed_goes_into_the_same_slot),
        T(a_failed_sync_is_not_forgotten),
    };

    rng_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
