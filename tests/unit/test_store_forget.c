/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "test_store.h"

#include <malloc.h>

#include "base/clock.h"
#include "simdisk.h"

/* Forgetting on a disk that fails, fills up, and loses power, at any call: a store is led
 * through gc, eviction by age, policies, removal, the dropping of generations, and a fold. Whenever
 * that ends: what was committed and was not to be removed is there and verifies; a removal is done
 * or not begun, never half; what was reported as removed does not come back; and a policy is the
 * old one or the new one. */

#define DAY 86400ull

/* Each VM has its fate. */
enum who {
    KEPT,    /* normal, and used again later: it stays */
    PINNED,  /* as old as OLD, and pinned */
    REFUSED, /* its policy becomes `never`: gc removes it */
    OLD,     /* gc removes it for its age */
    REMOVED, /* vc_vm_remove() */
    DROPPED, /* vc_vm_drop(): its generations go, and its handover record stays */
    FOLDED,  /* it stays, in one image */
    N_VMS
};

static struct vc_id id_of(unsigned who)
{
    return (struct vc_id){.b = {0xf0, [15] = (uint8_t)who}};
}

/* ---- what is promised ---- */

#define MAX_MAYBE 2

enum removal { NOT_BEGUN, BEGUN, DONE };

struct truth {
    bool has;
    struct image committed; /* the last one whose commit returned success */
    struct image maybe[MAX_MAYBE];
    unsigned n_maybe; /* whose commit did not, but may have happened */
    enum removal removal;
    enum vc_policy policy;
    unsigned policy_maybe; /* bits: those whose setting failed */
    bool has_handover;
    bool young; /* committed since ages were noted */
};

/* ---- the life ---- */

struct life {
    struct sim *sim;
    char dir[64];
    struct vc_store *store;
    struct vc_gc_env env;
    struct truth w[N_VMS];
    unsigned too_old, unwanted; /* bits: whom gc may remove for its age, and for its policy */
};

static struct vc_vm *open_one(struct life *l, unsigned who, enum vc_vm_open mode)
{
    struct vc_id id = id_of(who);
    struct vc_vm *vm;
    struct vc_err err;

    if (vc_vm_open(l->store, &id, mode, &vm, &err))
        return NULL;
    if (mode == VC_VM_CREATE && vc_vm_set_lineage(vm, &lineage, &err)) {
        vc_vm_close(vm);
        return NULL;
    }
    return vm;
}

/* On the generation that is there, so that there is something to fold. */
static void commit(struct life *l, unsigned who)
{
    struct truth *w = &l->w[who];
    struct vc_vm *vm = open_one(l, who, VC_VM_CREATE);
    const struct vc_gen_info *info = vm ? vc_vm_complete(vm) : NULL;
    struct vc_ram ram = small_ram();
    struct vc_gen *base = NULL;
    struct image m = {0};
    struct vc_txn *t = NULL;
    struct vc_err err;
    int rc;

    if (!vm)
        return;
    if (info && w->has && vc_id_equal(&info->id, &w->committed.id) &&
        vc_gen_open(vm, &info->id, &base, &err))
        base = NULL;
    assert_true(vc_id_random(&m.id));
    rc = vc_txn_begin(vm, &m.id, base, &t, &err);
    if (!rc)
        rc = vc_txn_set_ram(t, &ram, &err);
    for (unsigned i = 0; i < 4 && !rc; i++)
        rc = random_run(t, &m, base ? &w->committed : NULL, &err);
    if (rc) {
        vc_txn_abort(t);
    } else if (vc_txn_commit(t, &note, NULL, &err) == 0) {
        w->has = w->young = true;
        w->committed = m;
        w->n_maybe = 0;
    } else {
        w->maybe[w->n_maybe++ % MAX_MAYBE] = m;
    }
    vc_gen_close(base);
    vc_vm_close(vm);
}

static void set_policy(struct life *l, unsigned who, enum vc_policy policy)
{
    struct truth *w = &l->w[who];
    struct vc_id id = id_of(who);
    struct vc_err err;

    w->policy_maybe |= 1u << policy;
    if (vc_policy_set(l->store, &id, policy, &err))
        return;
    w->policy = policy;
    w->policy_maybe = 0;
}

static void reported(void *opaque, const struct vc_gc_item *item)
{
    struct life *l = opaque;
    unsigned who = item->vm.b[15];

    assert_true(item->why == VC_GC_POLICY || item->why == VC_GC_AGE);
    assert_true((item->why == VC_GC_POLICY ? l->unwanted : l->too_old) & 1u << who);
    l->w[who].removal = DONE;
}

static bool may_be(const struct truth *w, enum vc_policy policy)
{
    return w->policy == policy || w->policy_maybe & 1u << policy;
}

/* @aged: what was not used since ages were noted is too old by now. */
static void collect(struct life *l, bool aged)
{
    struct vc_gc_options o = {.report = reported, .opaque = l, .env = &l->env};
    struct vc_gc_result r;
    struct vc_err err;

    l->too_old = l->unwanted = 0;
    for (unsigned i = 0; i < N_VMS; i++) {
        struct truth *w = &l->w[i];
        bool pinned = w->policy == VC_POLICY_PINNED && !w->policy_maybe;

        l->too_old |= (aged && !w->young && !pinned) ? 1u << i : 0;
        l->unwanted |= may_be(w, VC_POLICY_NEVER) ? 1u << i : 0;
        if ((l->too_old | l->unwanted) & 1u << i && w->removal == NOT_BEGUN)
            w->removal = BEGUN;
    }
    (void)!vc_store_gc(l->store, &o, &r, &err);
    for (unsigned i = 0; i < N_VMS && !aged; i++)
        l->w[i].young = false;
}

static void remove_one_vm(struct life *l, unsigned who)
{
    struct vc_vm *vm = open_one(l, who, VC_VM_WRITE);
    struct vc_err err;
    int rc;

    if (!vm)
        return;
    l->w[who].removal = BEGUN;
    rc = who == DROPPED ? vc_vm_drop(vm, &err) : vc_vm_remove(vm, &err);
    if (!rc)
        l->w[who].removal = DONE;
    vc_vm_close(vm);
}

static void hand_over(struct life *l, unsigned who)
{
    struct vc_handover h = {.state = VC_HANDOVER_LEFT, .peer = "there"};
    struct vc_vm *vm = open_one(l, who, VC_VM_WRITE);
    struct vc_err err;

    if (vm)
        l->w[who].has_handover = vc_handover_begin(vm, &h, &err) == 0;
    vc_vm_close(vm);
}

static void fold(struct life *l, unsigned who)
{
    struct vc_id id = id_of(who);
    struct vc_err err;

    if (vc_vm_fold(l->store, &id, NULL, &err) == VC_E_CORRUPT)
        fail_msg("%s", err.message);
}

static void live(struct life *l)
{
    struct vc_err err;

    l->env = (struct vc_gc_env){
        .wall_s = vc_wall_s() + 10,
        .boot_s = 5000,
        .boot.b = {1},
        .disk_bytes = 100 * VC_GIB,
        .free_bytes = 50 * VC_GIB,
    };
    if (vc_store_open_on(sim_io(l->sim), l->dir, true, 0, &l->store, &err))
        return;
    for (unsigned i = 0; i < N_VMS; i++)
        commit(l, i);
    commit(l, FOLDED);
    set_policy(l, PINNED, VC_POLICY_PINNED);
    set_policy(l, REFUSED, VC_POLICY_NEVER);
    hand_over(l, DROPPED);
    collect(l, false);
    set_policy(l, REFUSED, VC_POLICY_NORMAL);
    remove_one_vm(l, REMOVED);
    remove_one_vm(l, DROPPED);
    fold(l, FOLDED);
    commit(l, KEPT);
    commit(l, FOLDED);
    l->env.boot_s += 20 * DAY;
    collect(l, true);
    vc_store_close(l->store);
    l->store = NULL;
}

/* ---- afterwards ---- */

static const struct image *find(const struct truth *w, const struct vc_id *id)
{
    if (w->has && vc_id_equal(&w->committed.id, id))
        return &w->committed;
    for (unsigned i = 0; i < VC_MIN(w->n_maybe, MAX_MAYBE); i++)
        if (vc_id_equal(&w->maybe[i].id, id))
            return &w->maybe[i];
    return NULL;
}

static void check_whole(struct vc_vm *vm, const struct truth *w)
{
    const struct vc_gen_info *info = vc_vm_complete(vm);
    const struct image *m = find(w, &info->id);
    struct vc_verify_result r;
    struct vc_gen *g;
    struct vc_err err;

    assert_non_null(m);
    g = open_gen(vm, info);
    assert_generation(g, m);
    assert_int_equal(vc_gen_verify(g, &lineage, NULL, NULL, &r, &err), 0);
    assert_int_equal(r.bad_pages, 0);
    vc_gen_close(g);
}

static void check_handover(struct vc_vm *vm, const struct truth *w)
{
    struct vc_handover h;
    struct vc_err err;

    assert_int_equal(vc_handover_get(vm, &h, &err), 0);
    assert_true(!w->has_handover || h.state == VC_HANDOVER_LEFT);
}

static void check_vm(struct vc_store *s, unsigned who, const struct truth *w)
{
    struct vc_id id = id_of(who);
    enum vc_policy policy;
    struct vc_vm *vm;
    struct vc_err err;
    int rc = vc_vm_open(s, &id, VC_VM_READ, &vm, &err);
    bool whole = !rc && vc_vm_complete(vm);

    assert_true(rc == 0 || rc == VC_NOT_FOUND);
    assert_true(whole || !w->has || w->removal != NOT_BEGUN);
    assert_false(whole && w->removal == DONE);
    if (whole)
        check_whole(vm, w);
    else if (!rc)
        assert_int_equal(vc_vm_n_generations(vm), 0);
    assert_true(rc == 0 || !w->has_handover);
    if (!rc) {
        check_handover(vm, w);
        vc_vm_close(vm);
    }
    assert_int_equal(vc_policy_get(s, &id, &policy, &err), 0);
    assert_true(may_be(w, policy));
}

/* It works again: for a VM there can be a new generation, whatever was left of the old ones. */
static void check_use(struct life *l, unsigned who)
{
    struct truth before = l->w[who];
    struct vc_vm *vm;

    l->w[who] = (struct truth){0};
    commit(l, who);
    assert_true(l->w[who].has);
    vm = open_one(l, who, VC_VM_READ);
    assert_non_null(vm);
    assert_false(vc_vm_was_reset(vm));
    check_whole(vm, &l->w[who]);
    vc_vm_close(vm);
    l->w[who] = before;
}

/* @turn: who is used again. */
static void check_store(const struct life *was, const char *dir, unsigned turn)
{
    struct life l = *was;
    struct vc_gc_options o = {.env = &l.env};
    struct vc_gc_result r;
    struct vc_err err;

    l.store = open_store(dir);
    for (unsigned i = 0; i < N_VMS; i++)
        check_vm(l.store, i, &l.w[i]);
    check_use(&l, turn % N_VMS);
    check_use(&l, (turn + 3) % N_VMS);
    assert_int_equal(vc_store_gc(l.store, &o, &r, &err), 0);
    vc_store_close(l.store);
}

/* ---- every call ---- */

/* Without a fault everything comes as it is meant to. */
static void check_fates(const struct life *l)
{
    for (unsigned i = 0; i < N_VMS; i++) {
        bool goes = i == REFUSED || i == OLD || i == REMOVED || i == DROPPED;

        assert_true(l->w[i].has);
        assert_int_equal(l->w[i].removal, goes ? DONE : NOT_BEGUN);
    }
    assert_int_equal(l->w[PINNED].policy, VC_POLICY_PINNED);
    assert_int_equal(l->w[REFUSED].policy, VC_POLICY_NORMAL);
    assert_true(l->w[DROPPED].has_handover);
}

/* Leads a life with a fault; false: it was over before the fault struck. */
static bool suffer(enum sim_fault fault, unsigned at, unsigned cuts)
{
    struct life l = {0};
    uint64_t seed = 1000u * at + fault;
    bool struck;
    char after[64];

    rng_state = 43; /* the same life every time */
    n_versions = 0;
    make_place(l.dir);
    l.sim = sim_new(l.dir, fault, at, seed);
    live(&l);
    vc_store_close(l.store);
    struck = sim_struck(l.sim);
    if (!struck)
        check_fates(&l);
    for (unsigned i = 0; i < cuts; i++) {
        make_place(after);
        sim_power_cut(l.sim, 2 * seed + (cuts > 1 ? i : at / 2) % 2, after);
        check_store(&l, after, at + i);
        remove_tree(after);
    }
    check_store(&l, l.dir, at + 2);
    sim_free(l.sim);
    remove_tree(l.dir);
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
    each_call(SIM_EIO, 1, 3);
}

static void the_disk_may_be_full_from_any_call_on(void **state)
{
    (void)state;
    each_call(SIM_ENOSPC, 1, 4);
}

static void the_process_or_the_power_may_go_at_any_call(void **state)
{
    (void)state;
    each_call(SIM_DIES, 2, 2);
}

static void the_power_may_go_soon_after_a_call_has_failed(void **state)
{
    (void)state;
    each_call(SIM_TWICE, 1, 4);
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
