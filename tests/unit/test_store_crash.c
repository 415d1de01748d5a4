/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "test_store.h"

#include <malloc.h>

#include "simdisk.h"

/* The store on a disk that fails, fills up, and loses power, at every single call: docs/internals/
 * durability.md. A life of one VM is led on the simulated disk; whenever it ends, the store must
 * open with everything whose commit had returned success, every page in it must be the right one,
 * what had been logged must be there, and a new migration must work. */

/* ---- what is promised ---- */

#define MAX_MAYBE 4

/* What a log has told, and which pages were told of again since. */
struct logged {
    bool valid;
    struct image m;
    bool touched[N_PAGES];
};

struct truth {
    bool has_lineage;
    bool has_complete;
    struct image complete; /* the last one whose commit returned success */
    struct image maybe[MAX_MAYBE];
    unsigned n_maybe; /* whose commit did not, but may have happened */
    bool has_partial;
    bool partial_in_doubt; /* there may be a newer one: of a log that was not told to be there */
    struct image partial;
    struct logged killed, cut; /* what survives a killed process, and a power cut */
    bool has_handover;
    uint8_t handover;
    unsigned handover_maybe; /* bits: states whose writing failed since */
};

static void forget_logged(struct truth *w)
{
    w->killed.valid = w->cut.valid = false;
}

/* ---- the life ---- */

struct life {
    struct sim *sim;
    struct store_place {
        char dir[64];
    } at;
    struct vc_store *store;
    struct vc_vm *vm;
    struct truth w;
};

static bool open_life(struct life *l)
{
    struct vc_err err;

    if (!l->store && vc_store_open_on(sim_io(l->sim), l->at.dir, true, 0, &l->store, &err))
        return false;
    if (!l->vm && vc_vm_open(l->store, &vm_id, VC_VM_CREATE, &l->vm, &err))
        return false;
    assert_false(vc_vm_was_reset(l->vm));
    if (vc_vm_set_lineage(l->vm, &lineage, &err))
        return false;
    l->w.has_lineage = true;
    return true;
}

static void close_vm(struct life *l)
{
    vc_vm_close(l->vm);
    l->vm = NULL;
}

/* One run; what it says of pages is not in the log yet. */
static int run(struct life *l, struct vc_txn *t, struct image *m, const struct image *base)
{
    struct image before = *m;
    struct vc_err err;
    int rc = random_run(t, m, base, &err);

    for (unsigned i = 0; i < N_PAGES; i++)
        if (before.state[i] != m->state[i] || before.version[i] != m->version[i])
            l->w.killed.touched[i] = l->w.cut.touched[i] = true;
    return rc;
}

static int tell_log(struct life *l, struct vc_txn *t, const struct image *m, bool sync)
{
    struct vc_err err;
    int rc = vc_txn_log(t, sync, &err);

    if (rc)
        return rc;
    l->w.killed = (struct logged){.valid = true, .m = *m};
    if (sync)
        l->w.cut = l->w.killed;
    return 0;
}

static void abort_txn(struct life *l, struct vc_txn *t)
{
    if (!sim_dead(l->sim))
        forget_logged(&l->w);
    l->w.partial_in_doubt = true; /* its log may be there again after a power cut */
    vc_txn_abort(t);
}

enum ending { COMMIT, SUSPEND, ABORT };

static void end_commit(struct life *l, struct vc_txn *t, const struct image *m)
{
    struct truth *w = &l->w;
    uint8_t root[VC_ROOT_BYTES];
    struct vc_err err;

    w->maybe[w->n_maybe++ % MAX_MAYBE] = *m;
    if (vc_txn_commit(t, &note, root, &err) == 0) {
        w->has_complete = true;
        w->complete = *m;
        w->n_maybe = 0;
        w->has_partial = w->partial_in_doubt = false;
        forget_logged(w);
    } else {
        w->partial_in_doubt = true;
        if (!sim_dead(l->sim))
            forget_logged(w);
    }
}

static void end_suspend(struct life *l, struct vc_txn *t, struct image *m, const struct image *base)
{
    struct truth *w = &l->w;
    struct vc_err err;
    int rc;

    rc = vc_txn_suspend(t, &note, &err);
    if (rc)
        w->partial_in_doubt = true;
    if (rc == 0) {
        if (base)
            fill_from_base(m, base);
        w->has_partial = true;
        w->partial_in_doubt = false;
        w->partial = *m;
        w->partial.id = vc_vm_partial(l->vm)->id;
    }
    if (rc == 0 || !sim_dead(l->sim))
        forget_logged(w);
}

/* A migration. On whatever base is there. */
static void migrate(struct life *l, bool on_partial, enum ending ending)
{
    const struct vc_gen_info *info = NULL;
    const struct image *base = NULL;
    struct vc_gen *g = NULL;
    struct vc_ram ram = small_ram();
    struct vc_txn *t;
    struct image m = {0};
    struct vc_err err;
    int rc;

    if (!l->vm && !open_life(l))
        return;
    info = on_partial && vc_vm_partial(l->vm) ? vc_vm_partial(l->vm) : vc_vm_complete(l->vm);
    base = !info ? NULL : info->partial ? &l->w.partial : &l->w.complete;
    if (info && memcmp(&info->id, &base->id, sizeof(info->id)) != 0)
        base = NULL; /* one whose commit reported an error */
    if (base && vc_gen_open(l->vm, &info->id, &g, &err))
        base = NULL;
    assert_true(vc_id_random(&m.id));
    if (vc_txn_begin(l->vm, &m.id, g, &t, &err)) {
        vc_gen_close(g);
        return;
    }
    rc = vc_txn_set_ram(t, &ram, &err);
    for (unsigned i = 0; i < 9 && !rc; i++) {
        rc = run(l, t, &m, base);
        if (!rc && (i == 3 || i == 6))
            rc = tell_log(l, t, &m, i == 6);
    }
    if (rc || ending == ABORT)
        abort_txn(l, t);
    else if (ending == COMMIT)
        end_commit(l, t, &m);
    else
        end_suspend(l, t, &m, base);
    vc_gen_close(g);
}

static void hand_over(struct life *l, uint8_t state, bool begins)
{
    struct vc_handover h = {.state = state, .peer = "there"};
    struct vc_err err;
    int rc;

    if (!l->vm || (!begins && !l->w.has_handover))
        return;
    l->w.handover_maybe |= 1u << state;
    rc = begins ? vc_handover_begin(l->vm, &h, &err)
                : vc_handover_set(l->vm, (enum vc_handover_state)state, &err);
    if (rc)
        return;
    l->w.has_handover = true;
    l->w.handover = state;
    l->w.handover_maybe = 0;
}

/* The life of the VM, as long as the disk lets it. */
static void live(struct life *l)
{
    struct vc_err err;

    if (!open_life(l))
        return;
    migrate(l, false, COMMIT);
    hand_over(l, VC_HANDOVER_LEAVING, true);
    if (l->w.has_handover) {
        hand_over(l, VC_HANDOVER_LEFT, false);
        hand_over(l, VC_HANDOVER_SETTLED, false);
    }
    migrate(l, false, COMMIT);
    if (l->vm && l->w.has_complete && vc_vm_complete(l->vm) &&
        vc_vm_confirm(l->vm, &vc_vm_complete(l->vm)->id, &err) == VC_E_CORRUPT)
        fail_msg("%s", err.message);
    migrate(l, false, SUSPEND);
    close_vm(l);
    migrate(l, true, SUSPEND);
    migrate(l, false, ABORT);
    close_vm(l);
    if (l->store && vc_vm_fold(l->store, &vm_id, NULL, &err) == VC_E_CORRUPT)
        fail_msg("%s", err.message);
    migrate(l, true, COMMIT);
    migrate(l, true, SUSPEND);
}

static void end_life(struct life *l)
{
    close_vm(l);
    vc_store_close(l->store);
    l->store = NULL;
}

/* ---- afterwards ---- */

static void check_page_of_partial(const struct vc_gen *g, unsigned i, bool must)
{
    struct vc_digest d;
    bool usable = read_page(g, i, &d);
    uint32_t v;

    for (v = 0; v < n_versions; v++)
        if (vc_digest_equal(&versions[v].digest, &d))
            break;
    assert_true(v < n_versions && versions[v].page == i);
    assert_true(usable || !must);
}

/* What was logged is in the partial generation, or at least in a complete one. */
static void check_logged(const struct vc_gen *g, const struct logged *l)
{
    for (unsigned i = 0; i < N_PAGES; i++) {
        struct vc_digest d;
        uint32_t block;
        uint64_t page;

        if (l->touched[i] || l->m.state[i] != VC_PAGE_HELD)
            continue;
        locate(i, &block, &page);
        assert_non_null(g);
        assert_int_equal(vc_gen_lookup(g, block, vc_page(page), &d), VC_PAGE_HELD);
        assert_true(vc_digest_equal(&d, &versions[l->m.version[i]].digest));
        check_page_of_partial(g, i, true);
    }
}

static const struct image *find_complete(const struct truth *w, const struct vc_id *id, bool *newer)
{
    *newer = false;
    if (w->has_complete && vc_id_equal(&w->complete.id, id))
        return &w->complete;
    *newer = true;
    for (unsigned i = 0; i < VC_MIN(w->n_maybe, MAX_MAYBE); i++)
        if (vc_id_equal(&w->maybe[i].id, id))
            return &w->maybe[i];
    return NULL;
}

static void check_complete(struct vc_vm *vm, const struct truth *w, bool *newer)
{
    const struct vc_gen_info *info = vc_vm_complete(vm);
    const struct image *m;
    struct vc_verify_result r;
    struct vc_gen *g;
    struct vc_err err;

    *newer = false;
    if (!info) {
        assert_false(w->has_complete);
        return;
    }
    m = find_complete(w, &info->id, newer);
    assert_non_null(m);
    g = open_gen(vm, info);
    assert_generation(g, m);
    assert_int_equal(vc_gen_verify(g, &lineage, NULL, NULL, &r, &err), 0);
    assert_int_equal(r.bad_pages, 0);
    vc_gen_close(g);
}

static void check_partial(struct vc_vm *vm, const struct truth *w, const struct logged *logged,
                          bool exact)
{
    const struct vc_gen_info *info = vc_vm_partial(vm);
    struct vc_gen *g = info ? open_gen(vm, info) : NULL;

    for (unsigned i = 0; g && i < N_PAGES; i++) {
        uint32_t block;
        uint64_t page;

        locate(i, &block, &page);
        if (vc_gen_lookup(g, block, vc_page(page), NULL) == VC_PAGE_HELD)
            check_page_of_partial(g, i, false);
    }
    if (logged->valid)
        check_logged(g, logged);
    else if (w->has_partial && exact)
        assert_generation(g, &w->partial);
    else if (w->has_partial)
        assert_non_null(g);
    vc_gen_close(g);
}

static void check_handover(struct vc_vm *vm, const struct truth *w)
{
    struct vc_handover h;
    struct vc_err err;

    assert_int_equal(vc_handover_get(vm, &h, &err), 0);
    if (!(w->handover_maybe & 1u << h.state) && (w->has_handover || h.state != VC_HANDOVER_NONE))
        assert_int_equal(h.state, w->handover);
}

static void check_tidy(const char *dir)
{
    struct dirent *e;
    char path[200];
    DIR *d;

    vm_dir(dir, path);
    d = opendir(path);
    assert_non_null(d);
    while ((e = readdir(d))) {
        const char *dot = strrchr(e->d_name, '.');

        assert_false(dot && (!strcmp(dot, ".log") || !strcmp(dot, ".new") || !strcmp(dot, ".tmp")));
    }
    closedir(d);
}

/* The store as it was left opens, has what it must have, and works. @logged: of the running
 * migration. @exact: no doubts about a partial generation that was committed. */
static void check_store(const char *dir, const struct truth *w, const struct logged *logged)
{
    struct vc_store *s = open_store(dir);
    struct vc_lineage l;
    struct vc_gen *base, *g;
    struct image m, base_model = {0};
    struct vc_txn *t;
    struct vc_vm *vm;
    struct vc_err err;
    bool newer;

    assert_int_equal(vc_vm_open(s, &vm_id, VC_VM_CREATE, &vm, &err), 0);
    assert_false(vc_vm_was_reset(vm));
    assert_true(vc_vm_lineage(vm, &l) || !w->has_lineage);
    check_complete(vm, w, &newer);
    if (!newer)
        check_partial(vm, w, logged, !w->partial_in_doubt);
    check_handover(vm, w);
    check_tidy(dir);

    assert_int_equal(vc_vm_set_lineage(vm, &lineage, &err), 0);
    base = vc_vm_n_generations(vm) ? open_gen(vm, vc_vm_generation(vm, vc_vm_n_generations(vm) - 1))
                                   : NULL;
    for (unsigned i = 0; base && i < N_PAGES; i++) {
        struct vc_digest d;
        uint32_t block;
        uint64_t page;

        locate(i, &block, &page);
        base_model.state[i] = (uint8_t)vc_gen_lookup(base, block, vc_page(page), &d);
        /* What is not usable would not be called the same. */
        if (base_model.state[i] == VC_PAGE_HELD && !read_page(base, i, &d))
            base_model.state[i] = VC_PAGE_UNKNOWN;
        for (uint32_t v = 0; v < n_versions && base_model.state[i] == VC_PAGE_HELD; v++)
            if (vc_digest_equal(&versions[v].digest, &d))
                base_model.version[i] = v;
    }
    t = begin(vm, base, &m);
    for (unsigned i = 0; i < N_PAGES; i++) {
        uint32_t block;
        uint64_t page;

        locate(i, &block, &page);
        if (base_model.state[i] != VC_PAGE_HELD)
            continue;
        assert_int_equal(vc_txn_same(t, block, vc_page(page), 1, &err), 0);
        m.state[i] = VC_PAGE_HELD;
        m.version[i] = base_model.version[i];
    }
    assert_int_equal(vc_txn_zero(t, 0, vc_page(3), 2, &err), 0);
    m.state[3] = m.state[4] = VC_PAGE_ZERO;
    assert_int_equal(vc_txn_commit(t, &note, NULL, &err), 0);
    vc_gen_close(base);
    g = open_gen(vm, vc_vm_complete(vm));
    assert_generation(g, &m);
    vc_gen_close(g);
    vc_vm_close(vm);
    vc_store_close(s);
}

/* ---- every call ---- */

/* Leads a life with a fault; false: it was over before the fault struck. */
static bool suffer(enum sim_fault fault, unsigned at, unsigned cuts)
{
    static const struct logged nothing;
    struct life l = {0};
    uint64_t seed = 1000u * at + fault;
    bool dead, struck;
    char after[64];

    rng_state = 42; /* the same life every time */
    n_versions = 0;
    make_place(l.at.dir);
    l.sim = sim_new(l.at.dir, fault, at, seed);
    live(&l);
    end_life(&l);
    if (getenv("VC_TEST_TELL"))
        print_message("fault %d at %u: %u calls\n", fault, at, sim_calls(l.sim));
    /* After a call that failed what was logged may have been given up in the meantime. */
    dead = sim_dead(l.sim) && fault == SIM_DIES;
    struck = sim_struck(l.sim);
    for (unsigned i = 0; i < cuts; i++) {
        make_place(after);
        sim_power_cut(l.sim, 2 * seed + (cuts > 1 ? i : at) % 2, after);
        check_store(after, &l.w, dead ? &l.w.cut : &nothing);
        remove_tree(after);
    }
    check_store(l.at.dir, &l.w, dead ? &l.w.killed : &nothing);
    sim_free(l.sim);
    remove_tree(l.at.dir);
    return struck;
}

static unsigned offset;

static void each_call(enum sim_fault fault, unsigned cuts, unsigned step)
{
    sim_each_call(suffer, fault, cuts, step, offset);
}

static void any_call_may_fail(void **state)
{
    (void)state;
    each_call(SIM_EIO, 1, 1);
}

static void the_disk_may_be_full_from_any_call_on(void **state)
{
    (void)state;
    each_call(SIM_ENOSPC, 1, 3);
}

static void the_process_or_the_power_may_go_at_any_call(void **state)
{
    (void)state;
    each_call(SIM_DIES, 2, 1);
}

static void the_power_may_go_soon_after_a_call_has_failed(void **state)
{
    (void)state;
    each_call(SIM_TWICE, 2, 1);
}

static int teardown(void **state)
{
    (void)state;
    forget_digester();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(any_call_may_fail, teardown),
        cmocka_unit_test_teardown(the_disk_may_be_full_from_any_call_on, teardown),
        cmocka_unit_test_teardown(the_process_or_the_power_may_go_at_any_call, teardown),
        cmocka_unit_test_teardown(the_power_may_go_soon_after_a_call_has_failed, teardown),
    };

    rng_seed();
    offset = (unsigned)(rng_state % 1000);
    /* Large pieces come and go all the time: keep their memory. */
    mallopt(M_MMAP_THRESHOLD, 64 << 20);
    mallopt(M_TRIM_THRESHOLD, 128 << 20);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
