/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "test_store.h"

#include "simdisk.h"

/* Re-keying: the same pages under another key, at every call that fails or is the last; damaged
 * pages are dropped; nobody waits for it; and who has the key is known whatever happens. */

static const struct vc_lineage fresh = {
    .id = {"a newer lineage"},
    .algo = VC_DIGEST_GMAC,
    .key = "a key that fewer hosts know.",
};
static const struct vc_id new_gen = {"newer generation"};

static struct vc_holder holder(const struct vc_lineage *l, const char *name, bool listed)
{
    struct vc_holder h = {.lineage = l->id, .listed = listed, .n_names = 1};

    snprintf(h.names[0], sizeof(h.names[0]), "%s", name);
    return h;
}

/* ---- what is there ---- */

static bool has_holder(struct vc_vm *vm, const char *name, bool listed)
{
    struct vc_holder *h;
    struct vc_err err;
    bool found = false;
    size_t n;

    assert_int_equal(vc_vm_holders(vm, &h, &n, &err), 0);
    for (size_t i = 0; i < n; i++)
        found |= !strcmp(h[i].names[0], name) && h[i].listed == listed;
    free(h);
    return found;
}

/* States and contents are the model's, and every digest is right under the lineage's key. */
static void assert_contents(struct vc_vm *vm, const struct image *m)
{
    struct vc_gen *g = open_gen(vm, vc_vm_complete(vm));
    struct vc_verify_result r;
    struct vc_lineage l;
    struct vc_err err;

    assert_true(vc_vm_lineage(vm, &l));
    assert_int_equal(vc_gen_verify(g, &l, NULL, NULL, &r, &err), 0);
    assert_int_equal(r.bad_pages, 0);
    assert_int_equal(vc_gen_info(g)->held_pages, count_state(m, VC_PAGE_HELD));
    assert_int_equal(vc_gen_info(g)->unknown_pages, count_state(m, VC_PAGE_UNKNOWN));
    for (unsigned i = 0; i < N_PAGES; i++) {
        uint8_t got[PAGE_BYTES], want[PAGE_BYTES];
        uint32_t block;
        uint64_t page;

        locate(i, &block, &page);
        assert_int_equal(vc_gen_lookup(g, block, vc_page(page), NULL), m->state[i]);
        if (m->state[i] != VC_PAGE_HELD)
            continue;
        assert_int_equal(vc_gen_read(g, block, vc_page(page), 1, got, &err), 0);
        content_of(m->version[i], want);
        assert_memory_equal(got, want, PAGE_BYTES);
    }
    vc_gen_close(g);
}

static bool is_in_tree(const char *dir, const void *secret, size_t n)
{
    char path[200];
    struct dirent *e;
    bool found = false;
    DIR *d;

    vm_dir(dir, path);
    d = opendir(path);
    assert_non_null(d);
    while ((e = readdir(d))) {
        int fd = openat(dirfd(d), e->d_name, O_RDONLY | O_CLOEXEC);
        static uint8_t buf[1 << 20];
        ssize_t got = fd < 0 ? 0 : read(fd, buf, sizeof(buf));

        found |= got > 0 && memmem(buf, (size_t)got, secret, n);
        if (fd >= 0)
            close(fd);
    }
    closedir(d);
    return found;
}

/* ---- making it ---- */

/* A generation of an image and a delta; false: the disk did not let it. */
static bool make_generations(struct vc_store *s, struct image *m)
{
    struct vc_ram ram = small_ram();
    struct image first = {0};
    struct vc_gen *base = NULL;
    struct vc_vm *vm = NULL;
    struct vc_err err;
    bool ok = vc_vm_open(s, &vm_id, VC_VM_CREATE, &vm, &err) == 0 &&
              vc_vm_set_lineage(vm, &lineage, &err) == 0;

    for (unsigned round = 0; ok && round < 2; round++) {
        struct vc_txn *t = NULL;

        memset(m, 0, sizeof(*m));
        m->id = (struct vc_id){.b = {1, (uint8_t)round}};
        ok = vc_txn_begin(vm, &m->id, base, &t, &err) == 0 && vc_txn_set_ram(t, &ram, &err) == 0;
        for (unsigned i = 0; ok && i < 30; i++)
            ok = random_run(t, m, base ? &first : NULL, &err) == 0;
        if (!ok)
            vc_txn_abort(t);
        ok = ok && vc_txn_commit(t, &(struct vc_txn_note){.role = 1, .peer = "b"}, NULL, &err) == 0;
        vc_gen_close(base);
        base = NULL;
        first = *m;
        if (ok && !round)
            ok = vc_gen_open(vm, &m->id, &base, &err) == 0;
    }
    vc_gen_close(base);
    if (ok) {
        struct vc_holder a = holder(&lineage, "a", true), c = holder(&lineage, "c", false);

        ok = vc_vm_share(vm, &a, &err) == 0 && vc_vm_share(vm, &c, &err) == 0;
    }
    vc_vm_close(vm);
    return ok;
}

static int rekey(struct vc_store *s, struct vc_err *err)
{
    struct vc_holder b = holder(&fresh, "b", true);
    uint8_t root[VC_ROOT_BYTES];
    struct vc_rekey *r = NULL;
    int rc = vc_rekey_open(s, &vm_id, &r, err);

    if (!rc)
        rc = vc_rekey_digest(r, &fresh, &new_gen, NULL, NULL, err);
    if (!rc)
        rc = vc_rekey_prepare(r, root, err);
    if (!rc)
        rc = vc_rekey_commit(r, &b, err);
    vc_rekey_close(r);
    return rc;
}

struct place {
    char dir[64];
    struct vc_store *s;
    struct image m;
};

static struct place *set_up(void)
{
    static struct place p;

    rng_seed();
    n_versions = 0;
    make_place(p.dir);
    p.s = open_store(p.dir);
    assert_true(make_generations(p.s, &p.m));
    return &p;
}

static void tear_down(struct place *p)
{
    vc_store_close(p->s);
    remove_tree(p->dir);
}

/* ---- promises ---- */

static void the_same_pages_have_another_key(void **state)
{
    struct place *p = set_up();
    struct vc_gen_info before;
    struct vc_holder h;
    struct vc_lineage l;
    struct vc_err err;
    struct vc_vm *vm = open_vm(p->s, VC_VM_READ);

    (void)state;
    before = *vc_vm_complete(vm);
    vc_vm_close(vm);
    assert_true(is_in_tree(p->dir, lineage.key, sizeof(lineage.key)));
    assert_int_equal(rekey(p->s, &err), 0);
    assert_false(is_in_tree(p->dir, lineage.key, sizeof(lineage.key)));
    vm = open_vm(p->s, VC_VM_READ);
    assert_true(vc_vm_lineage(vm, &l));
    assert_memory_equal(l.key, fresh.key, sizeof(l.key));
    assert_true(vc_id_equal(&l.id, &fresh.id));
    assert_true(vc_id_equal(&vc_vm_complete(vm)->id, &new_gen));
    assert_int_equal(vc_vm_complete(vm)->created_unix, before.created_unix);
    assert_string_equal(vc_vm_complete(vm)->peer, before.peer);
    assert_false(vc_vm_complete(vm)->confirmed);
    assert_memory_not_equal(vc_vm_complete(vm)->root, before.root, VC_ROOT_BYTES);
    assert_contents(vm, &p->m);
    assert_true(has_holder(vm, "b", true));
    assert_false(has_holder(vm, "a", true) || has_holder(vm, "c", false));
    vc_vm_close(vm);
    /* Who has the old one is known, should a VM bring it back. */
    vm = open_vm(p->s, VC_VM_CREATE);
    assert_true(has_holder(vm, "a", true) && has_holder(vm, "c", false));
    h = holder(&lineage, "b", false); /* and that it was on the list stays known */
    assert_int_equal(vc_vm_share(vm, &h, &err), 0);
    assert_true(has_holder(vm, "b", true));
    vc_vm_close(vm);
    tear_down(p);
}

static void two_hosts_end_with_the_same_root(void **state)
{
    struct place *p = set_up();
    uint8_t roots[2][VC_ROOT_BYTES];
    struct vc_err err;

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct vc_rekey *r;

        assert_int_equal(vc_rekey_open(p->s, &vm_id, &r, &err), 0);
        assert_int_equal(vc_rekey_digest(r, &fresh, &new_gen, NULL, NULL, &err), 0);
        assert_int_equal(vc_rekey_prepare(r, roots[i], &err), 0);
        vc_rekey_close(r); /* and nothing has changed */
    }
    assert_memory_equal(roots[0], roots[1], VC_ROOT_BYTES);
    assert_int_equal(rekey(p->s, &err), 0);
    tear_down(p);
}

/* Flips a byte of every copy of that content in the VM's files. */
static void damage_content(const char *dir, uint32_t version)
{
    uint8_t want[PAGE_BYTES];
    char path[200];
    struct dirent *e;
    DIR *d;

    content_of(version, want);
    vm_dir(dir, path);
    d = opendir(path);
    assert_non_null(d);
    while ((e = readdir(d))) {
        int fd = openat(dirfd(d), e->d_name, O_RDWR | O_CLOEXEC);
        static uint8_t buf[1 << 23];
        ssize_t got = fd < 0 ? 0 : read(fd, buf, sizeof(buf));
        uint8_t *at = got > 0 ? memmem(buf, (size_t)got, want, PAGE_BYTES) : NULL;

        if (at) {
            uint8_t wrong = (uint8_t)~at[17];

            assert_int_equal(pwrite(fd, &wrong, 1, at + 17 - buf), 1);
        }
        if (fd >= 0)
            close(fd);
    }
    closedir(d);
}

static unsigned a_held_page(const struct image *m, unsigned from)
{
    for (unsigned i = from; i < N_PAGES; i++)
        if (m->state[i] == VC_PAGE_HELD)
            return i;
    fail_msg("no page is held");
    return 0;
}

static void a_wrong_page_is_dropped_and_so_is_the_other_hosts(void **state)
{
    struct place *p = set_up();
    unsigned mine = a_held_page(&p->m, 0), theirs = a_held_page(&p->m, mine + 1);
    struct vc_dropped other = {.count = 1};
    const struct vc_dropped *d;
    uint8_t root[VC_ROOT_BYTES];
    struct vc_rekey *r;
    struct vc_err err;
    struct vc_vm *vm;
    uint32_t block;
    uint64_t page;
    size_t n;
    bool all;

    (void)state;
    damage_content(p->dir, p->m.version[mine]);
    assert_int_equal(vc_rekey_open(p->s, &vm_id, &r, &err), 0);
    assert_int_equal(vc_rekey_digest(r, &fresh, &new_gen, NULL, NULL, &err), 0);
    d = vc_rekey_dropped(r, &n, &all);
    locate(mine, &block, &page);
    assert_true(n == 1 && all);
    assert_true(d->block == block && d->page.n == page && d->count == 1);
    locate(theirs, &other.block, &other.page.n);
    assert_int_equal(vc_rekey_drop(r, &other, &err), 0);
    assert_int_equal(vc_rekey_drop(r, &other, &err), 0); /* twice is once */
    for (unsigned i = 0; i < 4; i++) {
        const struct vc_dropped wrong[] = {{3, vc_page(0), 1},
                                           {0, vc_page(FIRST_OF_LAST), 1},
                                           {0, vc_page(1), UINT64_MAX},
                                           {2, vc_page(UINT64_MAX), 2}};

        assert_int_equal(vc_rekey_drop(r, &wrong[i], &err), VC_E_PROTOCOL);
    }
    assert_int_equal(vc_rekey_n_dropped(r), 2);
    assert_int_equal(vc_rekey_prepare(r, root, &err), 0);
    assert_int_equal(vc_rekey_commit(r, NULL, &err), 0);
    vc_rekey_close(r);
    p->m.state[mine] = p->m.state[theirs] = VC_PAGE_UNKNOWN;
    vm = open_vm(p->s, VC_VM_READ);
    assert_contents(vm, &p->m);
    vc_vm_close(vm);
    tear_down(p);
}

static bool stop_at_once(void *opaque, uint64_t done, uint64_t total)
{
    assert_true(done && done <= total);
    return --*(unsigned *)opaque > 0;
}

static void it_can_be_stopped_and_nothing_has_changed(void **state)
{
    struct place *p = set_up();
    struct vc_rekey *r;
    struct vc_err err;
    struct vc_vm *vm;
    unsigned left = 1;

    (void)state;
    assert_int_equal(vc_rekey_open(p->s, &vm_id, &r, &err), 0);
    assert_int_equal(vc_rekey_digest(r, &fresh, &new_gen, stop_at_once, &left, &err), VC_AGAIN);
    vc_rekey_close(r);
    vm = open_vm(p->s, VC_VM_READ);
    assert_contents(vm, &p->m);
    assert_true(vc_id_equal(&vc_vm_complete(vm)->id, &p->m.id));
    assert_true(has_holder(vm, "a", true) && has_holder(vm, "c", false));
    vc_vm_close(vm);
    tear_down(p);
}

static void a_migration_wins_and_two_are_kept_apart(void **state)
{
    struct place *p = set_up();
    uint8_t root[VC_ROOT_BYTES];
    struct vc_rekey *r, *other;
    struct image m;
    struct vc_txn *t;
    struct vc_err err;
    struct vc_vm *vm;

    (void)state;
    assert_int_equal(vc_rekey_open(p->s, &vm_id, &r, &err), 0);
    assert_int_equal(vc_rekey_open(p->s, &vm_id, &other, &err), VC_E_BUSY);
    assert_int_equal(vc_rekey_digest(r, &fresh, &new_gen, NULL, NULL, &err), 0);
    vm = open_vm(p->s, VC_VM_WRITE); /* nobody waits */
    t = begin(vm, NULL, &m);
    assert_int_equal(random_run(t, &m, NULL, &err), 0);
    assert_int_equal(vc_txn_commit(t, &note, NULL, &err), 0);
    vc_vm_close(vm);
    assert_int_equal(vc_rekey_prepare(r, root, &err), VC_E_BUSY);
    vc_rekey_close(r);
    vm = open_vm(p->s, VC_VM_READ);
    assert_contents(vm, &m);
    vc_vm_close(vm);
    assert_int_equal(rekey(p->s, &err), 0); /* the place was given back */
    tear_down(p);
}

/* As commands do, which pass the id that lies in what is read anew. */
static void who_reads_beside_it_is_told_that_the_generation_has_gone(void **state)
{
    struct place *p = set_up();
    struct vc_vm *vm = open_vm(p->s, VC_VM_READ);
    struct vc_gen *g = NULL;
    struct vc_lineage l;
    struct vc_err err;

    (void)state;
    assert_int_equal(rekey(p->s, &err), 0);
    assert_int_equal(vc_gen_open(vm, &vc_vm_complete(vm)->id, &g, &err), VC_NOT_FOUND);
    assert_true(vc_id_equal(&vc_vm_complete(vm)->id, &new_gen));
    assert_true(vc_vm_lineage(vm, &l) && vc_id_equal(&l.id, &fresh.id));
    assert_contents(vm, &p->m);
    vc_vm_close(vm);
    tear_down(p);
}

static void who_reads_beside_a_removal_is_told_so(void **state)
{
    struct place *p = set_up();
    struct vc_vm *reader = open_vm(p->s, VC_VM_READ), *vm = open_vm(p->s, VC_VM_WRITE);
    struct vc_gen *g = NULL;
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_vm_remove(vm, &err), 0);
    vc_vm_close(vm);
    assert_int_equal(vc_gen_open(reader, &vc_vm_complete(reader)->id, &g, &err), VC_NOT_FOUND);
    assert_null(vc_vm_complete(reader));
    vc_vm_close(reader);
    tear_down(p);
}

static void an_open_handover_refuses_it(void **state)
{
    static const uint8_t open[] = {VC_HANDOVER_LEAVING, VC_HANDOVER_LEFT, VC_HANDOVER_ARRIVING};
    struct place *p = set_up();
    struct vc_handover h = {.session = {"some session..."}};
    struct vc_err err;
    struct vc_vm *vm;

    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        h.state = open[i];
        vm = open_vm(p->s, VC_VM_WRITE);
        assert_int_equal(vc_handover_begin(vm, &h, &err), 0);
        vc_vm_close(vm);
        assert_int_equal(rekey(p->s, &err), VC_E_UNSETTLED);
        assert_int_equal(vc_vm_rekey_empty(p->s, &vm_id, &fresh, &err), VC_E_UNSETTLED);
    }
    vm = open_vm(p->s, VC_VM_WRITE);
    h.state = VC_HANDOVER_SETTLED;
    assert_int_equal(vc_handover_begin(vm, &h, &err), 0);
    vc_vm_close(vm);
    assert_int_equal(rekey(p->s, &err), 0);
    tear_down(p);
}

static void a_damaged_list_of_holders_says_so_and_begins_anew(void **state)
{
    struct place *p = set_up();
    struct vc_holder *h, b = holder(&lineage, "b", false);
    char path[256], dir[200];
    struct vc_err err;
    struct vc_vm *vm;
    size_t n;
    int fd;

    (void)state;
    vm_dir(p->dir, dir);
    snprintf(path, sizeof(path), "%s/holders", dir);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "x", 1, 20), 1);
    close(fd);
    vm = open_vm(p->s, VC_VM_WRITE);
    assert_int_equal(vc_vm_holders(vm, &h, &n, &err), VC_E_CORRUPT);
    assert_int_equal(vc_vm_share(vm, &b, &err), 0);
    assert_true(has_holder(vm, "b", false));
    assert_true(has_holder(vm, "a host whose name is lost", true));
    /* One that is known is at most listed from then on. */
    b.listed = true;
    assert_int_equal(vc_vm_share(vm, &b, &err), 0);
    b.listed = false;
    assert_int_equal(vc_vm_share(vm, &b, &err), 0);
    assert_true(has_holder(vm, "b", true));
    vc_vm_close(vm);
    assert_int_equal(rekey(p->s, &err), 0);
    tear_down(p);
}

static void as_many_holders_as_come_are_kept_in_bounds(void **state)
{
    struct place *p = set_up();
    struct vc_vm *vm = open_vm(p->s, VC_VM_WRITE);
    struct vc_err err;
    char name[16];

    (void)state;
    for (unsigned i = 0; i < 300; i++) {
        struct vc_holder h;

        snprintf(name, sizeof(name), "host%u", i);
        h = holder(&lineage, name, false);
        assert_int_equal(vc_vm_share(vm, &h, &err), 0);
    }
    assert_true(has_holder(vm, "host299", false) && has_holder(vm, "host44", false));
    assert_false(has_holder(vm, "host43", false));
    vc_vm_close(vm);
    tear_down(p);
}

static void a_holder_keeps_all_its_names_and_whether_it_has_more(void **state)
{
    struct place *p = set_up();
    struct vc_vm *vm = open_vm(p->s, VC_VM_WRITE);
    struct vc_holder want = holder(&lineage, "", true), *h;
    struct vc_err err;
    size_t n;

    (void)state;
    want.n_names = VC_HOLDER_NAMES;
    for (unsigned i = 0; i < VC_HOLDER_NAMES; i++)
        snprintf(want.names[i], sizeof(want.names[i]), "%0*u", i ? 100 : 255, i);
    for (unsigned i = 0; i < 2; i++) {
        want.cut = i;
        assert_int_equal(vc_vm_share(vm, &want, &err), 0);
        assert_int_equal(vc_vm_holders(vm, &h, &n, &err), 0);
        assert_int_equal(n, 3 + i);
        assert_true(h[n - 1].listed && h[n - 1].cut == (i == 1));
        assert_int_equal(h[n - 1].n_names, VC_HOLDER_NAMES);
        assert_memory_equal(h[n - 1].names, want.names, sizeof(want.names));
        free(h);
    }
    vc_vm_close(vm);
    tear_down(p);
}

static void a_vm_without_a_checkpoint_gets_a_key_too(void **state)
{
    struct place *p = set_up();
    struct vc_vm *vm = open_vm(p->s, VC_VM_WRITE);
    struct vc_rekey *r;
    struct vc_lineage l;
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_vm_drop(vm, &err), 0);
    assert_int_equal(vc_vm_set_lineage(vm, &lineage, &err), 0);
    vc_vm_close(vm);
    assert_int_equal(vc_rekey_open(p->s, &vm_id, &r, &err), VC_NOT_FOUND);
    assert_int_equal(vc_vm_rekey_empty(p->s, &vm_id, &fresh, &err), 0);
    vm = open_vm(p->s, VC_VM_WRITE);
    assert_true(vc_vm_lineage(vm, &l) && vc_id_equal(&l.id, &fresh.id));
    assert_false(has_holder(vm, "a", true));
    assert_int_equal(vc_vm_remove(vm, &err), 0);
    vc_vm_close(vm);
    assert_int_equal(vc_rekey_open(p->s, &vm_id, &r, &err), VC_NOT_FOUND);
    tear_down(p);
}

/* ---- every call ---- */

/* Whatever happened, the checkpoint is whole, under the old key or the new one, and who has that
 * key is known. */
static void check_store(const char *dir, bool made, bool done, const struct image *m)
{
    struct vc_store *s = open_store(dir);
    struct vc_lineage l;
    struct vc_err err;
    struct vc_vm *vm;
    bool is_new;

    assert_int_equal(vc_vm_open(s, &vm_id, VC_VM_CREATE, &vm, &err), 0);
    assert_false(vc_vm_was_reset(vm));
    if (made) {
        assert_true(vc_vm_lineage(vm, &l));
        is_new = vc_id_equal(&l.id, &fresh.id);
        assert_true(is_new || !done);
        assert_memory_equal(l.key, is_new ? fresh.key : lineage.key, sizeof(l.key));
        assert_true(vc_id_equal(&vc_vm_complete(vm)->id, is_new ? &new_gen : &m->id));
        assert_contents(vm, m);
        assert_true(is_new ? has_holder(vm, "b", true)
                           : has_holder(vm, "a", true) && has_holder(vm, "c", false));
        if (is_new && done)
            assert_false(is_in_tree(dir, lineage.key, sizeof(lineage.key)));
    }
    vc_vm_close(vm);
    if (made && !is_new)
        assert_int_equal(rekey(s, &err), 0); /* and it can be done again */
    vc_store_close(s);
}

static bool suffer(enum sim_fault fault, unsigned at, unsigned cuts)
{
    struct vc_store *s = NULL;
    struct image m;
    bool made, done = false, struck;
    uint64_t seed = 1000u * at + fault;
    char dir[64], after[64];
    struct vc_err err;
    struct sim *sim;

    rng_state = 42; /* the same life every time */
    n_versions = 0;
    make_place(dir);
    sim = sim_new(dir, fault, at, seed);
    made = vc_store_open_on(sim_io(sim), dir, true, 0, &s, &err) == 0 && make_generations(s, &m);
    if (made)
        done = rekey(s, &err) == 0;
    if (!done && made && !sim_dead(sim)) /* once more, as one would */
        done = rekey(s, &err) == 0;
    vc_store_close(s);
    struck = sim_struck(sim);
    for (unsigned i = 0; i < cuts; i++) {
        make_place(after);
        sim_power_cut(sim, 2 * seed + (cuts > 1 ? i : at) % 2, after);
        check_store(after, made, done, &m);
        remove_tree(after);
    }
    check_store(dir, made, done, &m);
    sim_free(sim);
    remove_tree(dir);
    return struck;
}

static void a_call_that_fails_costs_no_page_and_no_key(void **state)
{
    (void)state;
    sim_each_call(suffer, SIM_EIO, 0, 1, 0);
}

static void a_full_disk_costs_no_page_and_no_key(void **state)
{
    (void)state;
    sim_each_call(suffer, SIM_ENOSPC, 0, 1, 0);
}

static void a_power_cut_leaves_the_old_key_or_the_new_one(void **state)
{
    (void)state;
    sim_each_call(suffer, SIM_DIES, 2, 1, 0);
}

static void a_power_cut_soon_after_a_failure_does_as_well(void **state)
{
    (void)state;
    sim_each_call(suffer, SIM_TWICE, 1, 1, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_pages_have_another_key),
        cmocka_unit_test(two_hosts_end_with_the_same_root),
        cmocka_unit_test(a_wrong_page_is_dropped_and_so_is_the_other_hosts),
        cmocka_unit_test(it_can_be_stopped_and_nothing_has_changed),
        cmocka_unit_test(a_migration_wins_and_two_are_kept_apart),
        cmocka_unit_test(who_reads_beside_it_is_told_that_the_generation_has_gone),
        cmocka_unit_test(who_reads_beside_a_removal_is_told_so),
        cmocka_unit_test(an_open_handover_refuses_it),
        cmocka_unit_test(a_damaged_list_of_holders_says_so_and_begins_anew),
        cmocka_unit_test(as_many_holders_as_come_are_kept_in_bounds),
        cmocka_unit_test(a_holder_keeps_all_its_names_and_whether_it_has_more),
        cmocka_unit_test(a_vm_without_a_checkpoint_gets_a_key_too),
        cmocka_unit_test(a_call_that_fails_costs_no_page_and_no_key),
        cmocka_unit_test(a_full_disk_costs_no_page_and_no_key),
        cmocka_unit_test(a_power_cut_leaves_the_old_key_or_the_new_one),
        cmocka_unit_test(a_power_cut_soon_after_a_failure_does_as_well),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);

    forget_digester();
    return rc;
}
