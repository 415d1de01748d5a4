/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The store forgets what its limits demand, oldest first, and nothing else: docs/formats/store.md,
 * section 7. Clocks and free space are given; ages are noted as another gc would have noted them.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "store/forget.h"

#define PAGE 4096u
#define DAY 86400ull

struct fixture {
    char dir[64];
    struct vc_store *s;
    struct vc_gc_env env;
    struct vc_gc_options o;
    struct vc_gc_result r;
    struct vc_err err;
    unsigned n_reported;
    struct vc_id reported[16];
    enum vc_gc_why why[16];
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    strcpy(f->dir, "/tmp/vecycle-gc-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    assert_int_equal(vc_store_open(f->dir, true, 0, &f->s, &f->err), 0);
    f->env = (struct vc_gc_env){
        .wall_s = vc_wall_s() + 10,
        .boot_s = 5000,
        .boot.b = {1},
        .disk_bytes = 100 * VC_GIB,
        .free_bytes = 50 * VC_GIB,
    };
    *state = f;
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *w)
{
    (void)st;
    (void)kind;
    (void)w;
    return remove(path);
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    vc_store_close(f->s);
    nftw(f->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    free(f);
    return 0;
}

static void report(void *opaque, const struct vc_gc_item *item)
{
    struct fixture *f = opaque;

    assert_true(f->n_reported < VC_ARRAY_LEN(f->reported));
    f->reported[f->n_reported] = item->vm;
    f->why[f->n_reported++] = item->why;
}

static int gc(struct fixture *f)
{
    f->n_reported = 0;
    f->o.report = report;
    f->o.opaque = f;
    f->o.env = &f->env;
    return vc_store_gc(f->s, &f->o, &f->r, &f->err);
}

static void limits(struct fixture *f, struct vc_limits l)
{
    vc_store_set_limits(f->s, &l);
}

static struct vc_id vm_id(unsigned n)
{
    return (struct vc_id){.b = {0xaa, [15] = (uint8_t)n}};
}

static int vm_dir(struct fixture *f, unsigned n)
{
    struct vc_id id = vm_id(n);
    char path[128], name[VC_ID_TEXT_BYTES];
    int fd;

    vc_id_format(&id, name);
    snprintf(path, sizeof(path), "%s/vms/%s", f->dir, name);
    fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(fd >= 0 || errno == ENOENT);
    return fd;
}

static bool exists(struct fixture *f, unsigned n)
{
    int fd = vm_dir(f, n);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static struct vc_vm *open_vm(struct fixture *f, unsigned n, enum vc_vm_open mode)
{
    struct vc_id id = vm_id(n);
    struct vc_vm *vm = NULL;
    int rc = vc_vm_open(f->s, &id, mode, &vm, &f->err);

    assert_true(rc == 0 || rc == VC_NOT_FOUND);
    return vm;
}

static size_t generations(struct fixture *f, unsigned n)
{
    struct vc_vm *vm = open_vm(f, n, VC_VM_READ);
    size_t k = vm ? vc_vm_n_generations(vm) : 0;

    vc_vm_close(vm);
    return k;
}

/* A generation of as many pages; the transaction is left open if @txn. */
static struct vc_vm *write_pages(struct fixture *f, unsigned n, unsigned pages, struct vc_txn **txn,
                                 int *put_rc)
{
    struct vc_vm *vm = open_vm(f, n, VC_VM_CREATE);
    struct vc_lineage l = {.id.b = {1}, .algo = VC_DIGEST_GMAC};
    struct vc_ram *ram = calloc(1, sizeof(*ram));
    struct vc_digest d = {{7}};
    struct vc_id gen;
    uint8_t content[PAGE];
    const uint8_t *p = content;

    *put_rc = 0;
    memset(content, 0x5a, sizeof(content));
    assert_int_equal(vc_vm_set_lineage(vm, &l, &f->err), 0);
    assert_true(vc_id_random(&gen));
    assert_int_equal(vc_txn_begin(vm, &gen, NULL, txn, &f->err), 0);
    ram->page_bytes = PAGE;
    ram->n_blocks = 1;
    strcpy(ram->blocks[0].name, "ram");
    ram->blocks[0].bytes = (uint64_t)pages * PAGE;
    assert_int_equal(vc_txn_set_ram(*txn, ram, &f->err), 0);
    for (unsigned i = 0; i < pages && !*put_rc; i++)
        *put_rc = vc_txn_put(*txn, 0, vc_page(i), 1, &p, &d, &f->err);
    free(ram);
    return vm;
}

/* What a migration leaves that did not finish, on top of what is there. */
static void make_partial(struct fixture *f, unsigned n, unsigned pages, const char *peer)
{
    struct vc_txn_note note = {.role = 2, .peer = peer};
    struct vc_txn *txn;
    int rc;
    struct vc_vm *vm = write_pages(f, n, pages, &txn, &rc);

    assert_int_equal(rc, 0);
    assert_int_equal(vc_txn_suspend(txn, &note, &f->err), 0);
    vc_vm_close(vm);
}

static void make_vm(struct fixture *f, unsigned n, unsigned pages, const char *peer)
{
    struct vc_txn_note note = {.role = 1, .peer = peer};
    struct vc_txn *txn;
    int rc;
    struct vc_vm *vm = write_pages(f, n, pages, &txn, &rc);

    assert_int_equal(rc, 0);
    assert_int_equal(vc_txn_commit(txn, &note, NULL, &f->err), 0);
    vc_vm_close(vm);
}

/* As if a gc had seen it at that age just now. */
static void note_age(struct fixture *f, unsigned n, uint64_t age_s)
{
    struct vc_vm *vm = open_vm(f, n, VC_VM_READ);
    struct vc_age age = {
        .gen = vc_vm_n_generations(vm) ? vc_vm_generation(vm, 0)->id : (struct vc_id){{0}},
        .age_s = age_s,
        .wall_s = f->env.wall_s,
        .boot_s = f->env.boot_s,
        .boot = f->env.boot,
    };
    int fd = vm_dir(f, n);

    assert_int_equal(vc_age_write(&vc_io_kernel, fd, &age, &f->err), 0);
    close(fd);
    vc_vm_close(vm);
}

/* n VMs of 1 MiB and a little, the first the oldest. */
static void make_vms(struct fixture *f, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        make_vm(f, i, 256, i % 2 ? "odd" : "even");
        note_age(f, i, (n - i) * 1000);
    }
}

static void expect_reported(struct fixture *f, unsigned n, const unsigned *which,
                            enum vc_gc_why why)
{
    assert_int_equal(f->n_reported, n);
    for (unsigned i = 0; i < n; i++) {
        struct vc_id id = vm_id(which[i]);

        assert_memory_equal(f->reported[i].b, id.b, sizeof(id.b));
        assert_int_equal(f->why[i], why);
    }
    assert_int_equal(f->r.n_evicted, n);
}
#define EXPECT(f, why, ...)                                              \
    do {                                                                 \
        const unsigned which_[] = {__VA_ARGS__};                         \
        expect_reported(f, (unsigned)VC_ARRAY_LEN(which_), which_, why); \
    } while (0)

static void nothing_is_forgotten_without_need(void **state)
{
    struct fixture *f = *state;

    make_vms(f, 3);
    assert_int_equal(gc(f), 0);
    assert_int_equal(f->r.n_evicted, 0);
    assert_int_equal(f->r.n_vms, 3);
    assert_false(f->r.over);
    assert_true(f->r.used_bytes >= 3 * VC_MIB && f->r.used_bytes < 4 * VC_MIB);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(generations(f, i), 1);
}

static void an_empty_store_is_fine(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(gc(f), 0);
    assert_int_equal(f->r.n_vms, 0);
}

static void old_ones_go_by_default_after_fourteen_days(void **state)
{
    struct fixture *f = *state;

    make_vms(f, 3);
    note_age(f, 1, 14 * DAY + 1);
    note_age(f, 2, 14 * DAY);
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_AGE, 1);
    assert_false(exists(f, 1));
    assert_int_equal(generations(f, 2), 1);
}

static void a_maximum_age_can_be_set_and_turned_off(void **state)
{
    struct fixture *f = *state;

    make_vms(f, 2);
    note_age(f, 0, 100 * DAY);
    limits(f, (struct vc_limits){.max_age_s = VC_UNLIMITED});
    assert_int_equal(gc(f), 0);
    assert_int_equal(f->r.n_evicted, 0);
    limits(f, (struct vc_limits){.max_age_s = 500});
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_AGE, 0, 1);
}

static void the_quota_pushes_out_the_least_recently_used(void **state)
{
    struct fixture *f = *state;

    make_vms(f, 4);
    limits(f, (struct vc_limits){.quota_bytes = 5 * VC_MIB / 2});
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_QUOTA, 0, 1);
    assert_true(f->r.used_bytes <= 5 * VC_MIB / 2);
    assert_false(f->r.over);
    assert_false(exists(f, 0));
    assert_int_equal(generations(f, 2), 1);
    assert_int_equal(generations(f, 3), 1);
}

/* As a session asks before it tells the other host that it keeps what it has just committed. */
static void a_vm_in_use_can_be_judged_as_if_it_were_not(void **state)
{
    struct fixture *f = *state;
    struct vc_id mine = vm_id(3);
    struct vc_vm *vm;

    make_vms(f, 4);
    vm = open_vm(f, 3, VC_VM_WRITE);
    limits(f, (struct vc_limits){.quota_bytes = VC_MIB / 2});
    f->o.dry_run = true;
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_QUOTA, 0, 1, 2);
    f->o.as_idle = &mine;
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_QUOTA, 0, 1, 2, 3);
    limits(f, (struct vc_limits){.quota_bytes = 5 * VC_MIB / 2});
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_QUOTA, 0, 1);
    f->o = (struct vc_gc_options){0};
    vc_vm_close(vm);
    assert_int_equal(generations(f, 3), 1);
}

static void the_quota_of_a_peer_leaves_other_peers_alone(void **state)
{
    struct fixture *f = *state;

    make_vms(f, 4); /* even: 0, 2; odd: 1, 3 */
    make_vm(f, 4, 256, "even");
    note_age(f, 4, 1);
    limits(f, (struct vc_limits){.peer_quota_bytes = 5 * VC_MIB / 2});
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_PEER_QUOTA, 0);
}

static void share(struct fixture *f, unsigned n, const char *first, const char *second)
{
    struct vc_vm *vm = open_vm(f, n, VC_VM_WRITE);
    struct vc_holder h = {.lineage.b = {1}, .n_names = 2};

    snprintf(h.names[0], sizeof(h.names[0]), "%s", first);
    snprintf(h.names[1], sizeof(h.names[1]), "%s", second);
    assert_int_equal(vc_vm_share(vm, &h, &f->err), 0);
    vc_vm_close(vm);
}

static void make_vms_of(struct fixture *f, const char *const *peers, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        make_vm(f, i, 256, peers[i]);
        note_age(f, i, (n - i) * 1000);
    }
}

static void a_peer_is_one_from_wherever_it_comes(void **state)
{
    static const char *const peers[] = {"b at 10.88.0.1", "a at 10.88.0.1", "A at 10.88.0.77",
                                        "tls://a:7891", "tls://10.88.0.1:7000"};
    struct fixture *f = *state;

    make_vms_of(f, peers, 5);
    share(f, 4, "b", "10.88.0.1"); /* as it was called before */
    share(f, 4, "a", "10.88.0.1"); /* what it showed when it was called */
    limits(f, (struct vc_limits){.peer_quota_bytes = 5 * VC_MIB / 2});
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_PEER_QUOTA, 1, 2);
}

static void a_peer_without_a_certificate_is_one_by_its_host(void **state)
{
    static const char *const peers[] = {"ssh://root@192.0.2.7", "ssh from 192.0.2.7",
                                        "tcp://192.0.2.7:7891", "tcp://192.0.2.8:7891",
                                        "unix:/run/a",          "unix:/run/b",
                                        "unix:/run/c"};
    struct fixture *f = *state;

    make_vms_of(f, peers, 7);
    limits(f, (struct vc_limits){.peer_quota_bytes = 5 * VC_MIB / 2});
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_PEER_QUOTA, 0);
}

static void one_that_is_over_the_quota_alone_pushes_out_nobody(void **state)
{
    struct fixture *f = *state;

    make_vms(f, 2);
    make_vm(f, 2, 2048, "even"); /* 8 MiB, the newest */
    note_age(f, 2, 1);
    limits(f, (struct vc_limits){.quota_bytes = 4 * VC_MIB});
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_QUOTA, 2);
    assert_int_equal(generations(f, 0), 1);
    assert_int_equal(generations(f, 1), 1);
}

static void a_reserve_of_the_disk_is_kept_free(void **state)
{
    struct fixture *f = *state;

    make_vms(f, 3);
    f->env.free_bytes = VC_GIB - VC_MIB / 2; /* the default is 1 GiB here */
    limits(f, (struct vc_limits){.quota_bytes = VC_UNLIMITED});
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_RESERVE, 0);
    assert_true(f->r.free_bytes >= VC_GIB);
    f->env.free_bytes = 0;
    limits(f, (struct vc_limits){.quota_bytes = VC_UNLIMITED, .reserve_bytes = VC_UNLIMITED});
    assert_int_equal(gc(f), 0);
    assert_int_equal(f->r.n_evicted, 0);
}

static void what_takes_more_than_its_share_of_the_disk_goes_by_default(void **state)
{
    struct fixture *f = *state;

    make_vms(f, 4);
    f->env.disk_bytes = 20 * VC_MIB;
    f->env.free_bytes = VC_MIB; /* a quarter of some 5 MiB is to be free */
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_QUOTA, 0);
}

static void what_an_unfinished_migration_left_goes_before_any_checkpoint(void **state)
{
    struct fixture *f = *state;

    make_vms(f, 2);
    make_partial(f, 2, 256, "even"); /* the newest */
    note_age(f, 2, 1);
    limits(f, (struct vc_limits){.quota_bytes = 5 * VC_MIB / 2});
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_QUOTA, 2);
    assert_int_equal(generations(f, 0), 1);
    assert_int_equal(generations(f, 1), 1);
}

static void a_vm_is_as_old_as_its_checkpoint_whatever_did_not_finish(void **state)
{
    struct fixture *f = *state;

    make_vms(f, 3);
    make_partial(f, 0, 16, "odd"); /* another peer, just now */
    limits(f, (struct vc_limits){.quota_bytes = 5 * VC_MIB / 2});
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_QUOTA, 0);
    assert_int_equal(generations(f, 1), 1);
    assert_int_equal(generations(f, 2), 1);
}

static void a_pinned_vm_stays_whatever_happens(void **state)
{
    struct fixture *f = *state;
    struct vc_id id = vm_id(0);

    make_vms(f, 2);
    assert_int_equal(vc_policy_set(f->s, &id, VC_POLICY_PINNED, &f->err), 0);
    note_age(f, 0, 100 * DAY);
    limits(f, (struct vc_limits){.quota_bytes = 4096});
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_QUOTA, 1);
    assert_true(f->r.over);
    assert_int_equal(generations(f, 0), 1);
    assert_int_equal(vc_policy_set(f->s, &id, VC_POLICY_NORMAL, &f->err), 0);
    limits(f, (struct vc_limits){0});
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_AGE, 0);
}

static void a_vm_that_is_never_kept_goes_at_once(void **state)
{
    struct fixture *f = *state;
    struct vc_id id = vm_id(1);
    enum vc_policy p;

    make_vms(f, 2);
    assert_int_equal(vc_policy_set(f->s, &id, VC_POLICY_NEVER, &f->err), 0);
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_POLICY, 1);
    assert_false(exists(f, 1));
    /* The policy outlives the VM. */
    assert_int_equal(vc_policy_get(f->s, &id, &p, &f->err), 0);
    assert_int_equal(p, VC_POLICY_NEVER);
}

static void write_policy(struct fixture *f, unsigned n, const char *text)
{
    struct vc_id id = vm_id(n);
    char path[128], name[VC_ID_TEXT_BYTES];
    FILE *file;

    vc_id_format(&id, name);
    snprintf(path, sizeof(path), "%s/policies", f->dir);
    assert_true(mkdir(path, 0700) == 0 || errno == EEXIST);
    snprintf(path, sizeof(path), "%s/policies/%s", f->dir, name);
    file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void a_damaged_policy_deletes_nothing(void **state)
{
    static const char *const texts[] = {"",
                                        "\n",
                                        "never",
                                        "never ever\n",
                                        "pinned\npinned\n",
                                        "an essay about checkpoints and where they go\n"};
    struct fixture *f = *state;
    struct vc_id id = vm_id(0);

    make_vms(f, 1);
    note_age(f, 0, 100 * DAY);
    for (size_t i = 0; i < VC_ARRAY_LEN(texts); i++) {
        enum vc_policy p;

        write_policy(f, 0, texts[i]);
        assert_int_equal(vc_policy_get(f->s, &id, &p, &f->err), VC_E_CORRUPT);
        assert_int_equal(gc(f), 0);
        assert_int_equal(f->r.n_evicted, 0);
    }
    write_policy(f, 0, "normal\n");
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_AGE, 0);
}

static void a_vm_in_use_is_skipped(void **state)
{
    struct fixture *f = *state;
    struct vc_vm *vm;

    make_vms(f, 2);
    note_age(f, 0, 100 * DAY);
    vm = open_vm(f, 0, VC_VM_WRITE);
    assert_int_equal(gc(f), 0);
    assert_int_equal(f->r.n_evicted, 0);
    assert_int_equal(f->r.n_in_use, 1);
    assert_int_equal(generations(f, 0), 1);
    vc_vm_close(vm);
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_AGE, 0);
}

static void what_is_being_written_pushes_out_nobody(void **state)
{
    struct fixture *f = *state;
    struct vc_txn *txn;
    struct vc_vm *vm;
    int rc;

    make_vms(f, 2);
    limits(f, (struct vc_limits){.quota_bytes = 10 * VC_MIB});
    vm = write_pages(f, 2, 2304, &txn, &rc); /* 9 MiB */
    assert_int_equal(rc, 0);
    assert_int_equal(gc(f), 0);
    assert_int_equal(f->r.n_evicted, 0);
    assert_true(f->r.used_bytes < 3 * VC_MIB);
    assert_int_equal(
        vc_txn_commit(txn, &(struct vc_txn_note){.role = 2, .peer = "x"}, NULL, &f->err), 0);
    vc_vm_close(vm);
    /* Complete, it is the most recently used. */
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_QUOTA, 0, 1);
    assert_int_equal(generations(f, 2), 1);
}

static void a_generation_that_would_touch_the_reserve_is_given_up(void **state)
{
    struct fixture *f = *state;
    struct vc_txn *txn;
    struct vc_vm *vm;
    int rc;

    make_vms(f, 1);
    limits(f, (struct vc_limits){.reserve_bytes = 1ull << 60});
    vm = write_pages(f, 1, 16, &txn, &rc);
    assert_int_equal(rc, VC_E_STORE_FULL);
    assert_non_null(strstr(f->err.hint, "--reserve"));
    vc_txn_abort(txn);
    vc_vm_close(vm);
    assert_int_equal(generations(f, 0), 1);
}

static void a_dry_run_changes_nothing(void **state)
{
    struct fixture *f = *state;
    struct stat before, after;
    int fd;

    make_vms(f, 3);
    fd = vm_dir(f, 2);
    assert_int_equal(fstat(fd, &before), 0);
    limits(f, (struct vc_limits){.quota_bytes = 5 * VC_MIB / 2});
    f->o.dry_run = true;
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_QUOTA, 0);
    assert_int_equal(fstat(fd, &after), 0);
    close(fd);
    assert_int_equal(before.st_mtim.tv_sec, after.st_mtim.tv_sec);
    assert_int_equal(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(generations(f, i), 1);
}

static void an_open_handover_outlives_its_checkpoint(void **state)
{
    struct fixture *f = *state;
    struct vc_handover h = {.state = VC_HANDOVER_LEFT, .session.b = {9}};
    struct vc_lineage l;
    struct vc_vm *vm;

    make_vms(f, 1);
    vm = open_vm(f, 0, VC_VM_WRITE);
    assert_int_equal(vc_handover_begin(vm, &h, &f->err), 0);
    vc_vm_close(vm);
    note_age(f, 0, 100 * DAY);
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_AGE, 0);
    vm = open_vm(f, 0, VC_VM_READ);
    assert_non_null(vm);
    assert_int_equal(vc_vm_n_generations(vm), 0);
    assert_false(vc_vm_lineage(vm, &l));
    assert_int_equal(vc_handover_get(vm, &h, &f->err), 0);
    assert_int_equal(h.state, VC_HANDOVER_LEFT);
    vc_vm_close(vm);
}

static void a_void_handover_does_not_outlive_the_vm(void **state)
{
    struct fixture *f = *state;
    struct vc_handover h = {.state = VC_HANDOVER_VOID, .session.b = {9}};
    struct vc_vm *vm;

    make_vms(f, 1);
    vm = open_vm(f, 0, VC_VM_WRITE);
    assert_int_equal(vc_handover_begin(vm, &h, &f->err), 0);
    vc_vm_close(vm);
    note_age(f, 0, 15 * DAY);
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_AGE, 0);
    assert_false(exists(f, 0));
}

/* The other host may ask for it once more. */
static void a_record_alone_is_not_aged_by_a_clock_that_jumps(void **state)
{
    struct fixture *f = *state;
    struct vc_handover h = {.state = VC_HANDOVER_SETTLED, .session.b = {9}};
    struct vc_vm *vm = open_vm(f, 0, VC_VM_CREATE);

    assert_int_equal(vc_handover_begin(vm, &h, &f->err), 0);
    vc_vm_close(vm);
    f->env.wall_s += 365 * DAY;
    assert_int_equal(gc(f), 0);
    assert_int_equal(f->r.n_evicted, 0);
    assert_true(exists(f, 0));
    f->env.wall_s += 15 * DAY;
    f->env.boot_s += 15 * DAY;
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_AGE, 0);
    assert_false(exists(f, 0));
}

static void a_damaged_manifest_is_forgotten_in_time(void **state)
{
    struct fixture *f = *state;
    struct vc_id id = vm_id(0);
    struct vc_vm *vm = NULL;
    int dir, fd;

    make_vms(f, 2);
    dir = vm_dir(f, 0);
    fd = openat(dir, "manifest", O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, "damage", 6, 40), 6);
    close(fd);
    close(dir);
    assert_int_equal(vc_vm_open(f->s, &id, VC_VM_READ, &vm, &f->err), VC_E_CORRUPT);
    assert_int_equal(gc(f), 0);
    assert_int_equal(f->r.n_evicted, 0);
    f->env.boot_s += 15 * DAY;
    f->env.wall_s += 15 * DAY;
    limits(f, (struct vc_limits){.max_age_s = 15 * DAY - 3600});
    assert_int_equal(gc(f), 0);
    assert_int_equal(f->r.n_evicted, 2);
    assert_false(exists(f, 0));
}

static void a_lock_that_stays_is_named(void **state)
{
    struct fixture *f = *state;
    struct vc_id id = vm_id(0);
    struct vc_vm *vm = NULL, *again = NULL;

    make_vms(f, 1);
    vm = open_vm(f, 0, VC_VM_WRITE);
    assert_int_equal(vc_vm_open(f->s, &id, VC_VM_CREATE, &again, &f->err), VC_E_BUSY);
    assert_non_null(strstr(f->err.message, "another session"));
    vc_vm_close(vm);
}

static unsigned open_locks(void)
{
    DIR *d = opendir("/proc/self/fd");
    char target[256];
    unsigned n = 0;
    struct dirent *e;

    assert_non_null(d);
    while ((e = readdir(d))) {
        ssize_t k = readlinkat(dirfd(d), e->d_name, target, sizeof(target) - 1);

        if (k < 5)
            continue;
        target[k] = 0;
        n += !strcmp(target + k - 5, "/lock");
    }
    closedir(d);
    return n;
}

static void *open_for_session(void *arg)
{
    struct fixture *f = arg;
    struct vc_id id = vm_id(0);
    struct vc_err err;
    struct vc_vm *vm = NULL;

    return vc_vm_open(f->s, &id, VC_VM_CREATE, &vm, &err) ? NULL : vm;
}

/* Whoever waits for the lock of a VM that is being removed must not get the removed directory. */
static void a_session_that_waited_for_a_removal_gets_a_new_vm(void **state)
{
    struct fixture *f = *state;
    struct vc_lineage l = {.id.b = {3}, .algo = VC_DIGEST_GMAC};
    struct vc_vm *vm, *made;
    pthread_t t;
    void *got;

    make_vms(f, 1);
    vm = open_vm(f, 0, VC_VM_WRITE);
    assert_int_equal(pthread_create(&t, NULL, open_for_session, f), 0);
    while (open_locks() < 2)
        sched_yield();
    assert_int_equal(vc_vm_remove(vm, &f->err), 0);
    vc_vm_close(vm);
    pthread_join(t, &got);
    made = got;
    assert_non_null(made);
    assert_int_equal(vc_vm_set_lineage(made, &l, &f->err), 0);
    vc_vm_close(made);
    assert_true(exists(f, 0));
    made = open_vm(f, 0, VC_VM_READ);
    assert_true(vc_vm_lineage(made, &l));
    vc_vm_close(made);
}

static void one_gc_at_a_time(void **state)
{
    struct fixture *f = *state;
    int lock;

    assert_int_equal(vc_store_lock(f->s, 0, &lock, &f->err), 0);
    {
        int second;

        assert_int_equal(vc_store_lock(f->s, 0, &second, &f->err), VC_E_BUSY);
    }
    close(lock);
    assert_int_equal(gc(f), 0);
}

/* ---- ages ---- */

#define T0 1800000000ull

static const struct vc_id gen1 = {{1}}, gen2 = {{2}}, boot1 = {{11}}, boot2 = {{12}};

static void ages_survive_a_clock_that_jumps(void **state)
{
    static const struct {
        const char *what;
        struct vc_age note;
        struct vc_gc_env env;
        uint64_t age_s;
    } cases[] = {
        {"same boot: the wall clock does not matter, ahead",
         {{{1}}, 100, T0, 50, {{11}}},
         {.wall_s = T0 + 1000 * DAY, .boot_s = 80, .boot = {{11}}},
         130},
        {"same boot, set back",
         {{{1}}, 100, T0, 50, {{11}}},
         {.wall_s = 12, .boot_s = 80, .boot = {{11}}},
         130},
        {"another boot: the wall clock tells how long the host was off",
         {{{1}}, 100, T0, 50, {{11}}},
         {.wall_s = T0 + 5 * DAY, .boot_s = 10, .boot = {{12}}},
         100 + 5 * DAY},
        {"another boot, set back: at least since the start",
         {{{1}}, 100, T0, 50, {{11}}},
         {.wall_s = T0 - DAY, .boot_s = 10, .boot = {{12}}},
         110},
        {"another boot, the battery is empty",
         {{{1}}, 100, T0, 50, {{11}}},
         {.wall_s = 7, .boot_s = 10, .boot = {{12}}},
         110},
        {"it was empty, and is right again",
         {{{1}}, 100, 9, 50, {{11}}},
         {.wall_s = T0, .boot_s = 10, .boot = {{12}}},
         110},
        {"the boot is not known: the wall clock alone",
         {{{1}}, 100, T0, 0, {{0}}},
         {.wall_s = T0 + 60, .boot_s = 0},
         160},
        {"... and it was set back",
         {{{1}}, 100, T0, 0, {{0}}},
         {.wall_s = T0 - 60, .boot_s = 0},
         100},
    };

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(cases); i++) {
        struct vc_age now = vc_age_at(&cases[i].note, &gen1, T0 - 100, &cases[i].env);

        if (now.age_s != cases[i].age_s)
            print_error("%s\n", cases[i].what);
        assert_int_equal(now.age_s, cases[i].age_s);
    }
}

static void a_generation_seen_first_counts_from_its_creation(void **state)
{
    struct vc_gc_env env = {.wall_s = T0, .boot_s = 10, .boot = boot1};
    struct vc_age note = {gen2, 5000, T0, 10, boot1};

    (void)state;
    assert_int_equal(vc_age_at(NULL, &gen1, T0 - 77, &env).age_s, 77);
    assert_int_equal(vc_age_at(&note, &gen1, T0 - 77, &env).age_s, 77); /* another one's note */
    assert_int_equal(vc_age_at(NULL, &gen1, T0 + DAY, &env).age_s, 0);  /* of the future */
    assert_int_equal(vc_age_at(NULL, &gen1, 12, &env).age_s, 0);        /* of 1970 */
    env.wall_s = 12;
    assert_int_equal(vc_age_at(NULL, &gen1, T0, &env).age_s, 0);
}

/* A clock that is set back for good must not keep anything for ever; one that is wrong for a while
 * must not expire anything. */
static void a_clock_set_back_neither_keeps_nor_expires(void **state)
{
    struct fixture *f = *state;
    uint64_t right = f->env.wall_s;

    make_vm(f, 0, 16, "x");
    assert_int_equal(gc(f), 0);
    f->env.wall_s = 3600; /* the battery is empty: 1970 */
    f->env.boot = boot2;
    f->env.boot_s = 20;
    assert_int_equal(gc(f), 0);
    assert_int_equal(f->r.n_evicted, 0);
    f->env.wall_s = right + 3600; /* the network has told the time */
    f->env.boot_s = 60;
    assert_int_equal(gc(f), 0);
    assert_int_equal(f->r.n_evicted, 0);
    f->env.wall_s = 3600;
    for (unsigned day = 1; day <= 13; day++) {
        f->env.boot_s += DAY;
        assert_int_equal(gc(f), 0);
        assert_int_equal(f->r.n_evicted, 0);
    }
    f->env.boot_s += DAY;
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_AGE, 0);
}

#define YEAR (365 * DAY)

static void a_clock_set_back_deletes_nothing_and_keeps_the_order(void **state)
{
    static const uint64_t jumps[] = {1, 3600, DAY, YEAR};
    struct fixture *f = *state;
    uint64_t right = f->env.wall_s;

    make_vms(f, 3); /* by their creation all are of the same second */
    for (size_t i = 0; i < VC_ARRAY_LEN(jumps); i++) {
        f->env.wall_s = right - jumps[i];
        assert_int_equal(gc(f), 0);
        assert_int_equal(f->r.n_evicted, 0);
        f->env.boot_s += 60;
    }
    limits(f, (struct vc_limits){.quota_bytes = 5 * VC_MIB / 2});
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_QUOTA, 0);
}

/* Within one start of the host, the clock that nobody sets counts; so a year too far does nothing,
 * nor does the way back. */
static void a_clock_that_jumps_ahead_by_a_year_expires_nothing(void **state)
{
    struct fixture *f = *state;

    make_vm(f, 0, 16, "x");
    assert_int_equal(gc(f), 0);
    f->env.wall_s += YEAR;
    for (unsigned day = 1; day <= 13; day++) {
        f->env.boot_s += DAY;
        f->env.wall_s += DAY;
        assert_int_equal(gc(f), 0);
        assert_int_equal(f->r.n_evicted, 0);
    }
    f->env.wall_s -= YEAR;
    assert_int_equal(gc(f), 0);
    assert_int_equal(f->r.n_evicted, 0);
    f->env.boot_s += DAY;
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_AGE, 0);
}

/* Made while the clock was a year ahead: it is the newest of all now, and grows old from now on,
 * even where the host is started anew every day. */
static void a_checkpoint_of_the_future_is_new_and_not_for_ever(void **state)
{
    struct fixture *f = *state;

    make_vms(f, 2);
    f->env.wall_s -= YEAR;
    note_age(f, 0, 10);
    note_age(f, 1, 20);
    make_vm(f, 2, 256, "even");
    limits(f, (struct vc_limits){.quota_bytes = 3 * VC_MIB / 2});
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_QUOTA, 1, 0);
    limits(f, (struct vc_limits){0});
    for (uint8_t day = 1; day <= 14; day++) {
        f->env.wall_s += DAY;
        f->env.boot.b[1] = day;
        f->env.boot_s = 30;
        assert_int_equal(gc(f), 0);
        assert_int_equal(f->r.n_evicted, 0);
    }
    f->env.boot_s += DAY;
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_AGE, 2);
}

/* The same for what is judged by the age of its files. */
static void damaged_files_of_the_future_are_not_for_ever(void **state)
{
    struct fixture *f = *state;
    int dir, fd;

    make_vm(f, 0, 16, "x");
    dir = vm_dir(f, 0);
    fd = openat(dir, "manifest", O_RDWR);
    assert_int_equal(pwrite(fd, "damage", 6, 200), 6);
    close(fd);
    close(dir);
    f->env.wall_s -= YEAR;
    assert_int_equal(gc(f), 0);
    assert_int_equal(f->r.n_evicted, 0);
    f->env.boot_s += 14 * DAY;
    assert_int_equal(gc(f), 0);
    assert_int_equal(f->r.n_evicted, 0);
    f->env.boot_s += 1;
    assert_int_equal(gc(f), 0);
    EXPECT(f, VC_GC_AGE, 0);
}

static void a_note_is_written_no_more_often_than_it_says_something(void **state)
{
    struct vc_age note = {gen1, 100, T0, 50, boot1}, now = {gen1, 200, T0 + 100, 150, boot1};

    (void)state;
    assert_false(vc_age_worth_noting(&note, &now));
    assert_true(vc_age_worth_noting(NULL, &now));
    now.age_s = 100 + DAY;
    assert_true(vc_age_worth_noting(&note, &now));
    now = (struct vc_age){gen1, 200, T0, 5, boot2};
    assert_true(vc_age_worth_noting(&note, &now));
    now = (struct vc_age){gen2, 200, T0, 150, boot1};
    assert_true(vc_age_worth_noting(&note, &now));
}

static void a_damaged_note_counts_as_none(void **state)
{
    struct fixture *f = *state;
    struct vc_age got, age = {gen1, 1, 2, 3, boot1};

    make_vms(f, 1);
    for (int at = 0; at < 104; at++) {
        int dir = vm_dir(f, 0), fd;
        uint8_t b;

        assert_int_equal(vc_age_write(&vc_io_kernel, dir, &age, &f->err), 0);
        assert_int_equal(vc_age_read(dir, &got), 0);
        assert_memory_equal(&got, &age, sizeof(age));
        fd = openat(dir, "age", O_RDWR);
        assert_int_equal(pread(fd, &b, 1, at), 1);
        b ^= 0x10;
        assert_int_equal(pwrite(fd, &b, 1, at), 1);
        close(fd);
        assert_int_equal(vc_age_read(dir, &got), VC_NOT_FOUND);
        close(dir);
    }
}

/* ---- who may read it ---- */

static unsigned n_wide;

static int check_mode(const char *path, const struct stat *st, int kind, struct FTW *w)
{
    unsigned want = S_ISDIR(st->st_mode) ? 0700 : 0600;

    (void)kind;
    if (w->level > 0 && (st->st_mode & 07777) != want) {
        print_error("%s has mode %o\n", path, st->st_mode & 07777);
        n_wide++;
    }
    return 0;
}

static void make_store_and_look(struct fixture *f, mode_t mask)
{
    struct vc_handover h = {.state = VC_HANDOVER_SETTLED};
    struct vc_id id = vm_id(1);
    char deep[96];
    struct vc_store *s;
    struct vc_vm *vm;
    mode_t old = umask(mask);

    snprintf(deep, sizeof(deep), "%s/%o/store", f->dir, mask);
    assert_int_equal(vc_store_open(deep, true, 0, &s, &f->err), 0);
    VC_UNUSED struct vc_store *first = f->s;
    f->s = s;
    make_vm(f, 0, 16, "x");
    vm = open_vm(f, 0, VC_VM_WRITE);
    assert_int_equal(vc_handover_begin(vm, &h, &f->err), 0);
    vc_vm_close(vm);
    assert_int_equal(vc_policy_set(s, &id, VC_POLICY_PINNED, &f->err), 0);
    assert_int_equal(gc(f), 0);
    umask(old);
    n_wide = 0;
    nftw(deep, check_mode, 8, FTW_PHYS);
    assert_int_equal(n_wide, 0);
    f->s = first;
    vc_store_close(s);
}

static void its_owner_and_nobody_else_may_use_the_store_whatever_the_umask(void **state)
{
    make_store_and_look(*state, 0);
    make_store_and_look(*state, 0277);
    make_store_and_look(*state, 0777);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(nothing_is_forgotten_without_need),
        TEST(an_empty_store_is_fine),
        TEST(old_ones_go_by_default_after_fourteen_days),
        TEST(a_maximum_age_can_be_set_and_turned_off),
        TEST(the_quota_pushes_out_the_least_recently_used),
        TEST(a_vm_in_use_can_be_judged_as_if_it_were_not),
        TEST(the_quota_of_a_peer_leaves_other_peers_alone),
        TEST(a_peer_is_one_from_wherever_it_comes),
        TEST(a_peer_without_a_certificate_is_one_by_its_host),
        TEST(one_that_is_over_the_quota_alone_pushes_out_nobody),
        TEST(a_reserve_of_the_disk_is_kept_free),
        TEST(what_takes_more_than_its_share_of_the_disk_goes_by_default),
        TEST(what_an_unfinished_migration_left_goes_before_any_checkpoint),
        TEST(a_vm_is_as_old_as_its_checkpoint_whatever_did_not_finish),
        TEST(a_pinned_vm_stays_whatever_happens),
        TEST(a_vm_that_is_never_kept_goes_at_once),
        TEST(a_damaged_policy_deletes_nothing),
        TEST(a_vm_in_use_is_skipped),
        TEST(what_is_being_written_pushes_out_nobody),
        TEST(a_generation_that_would_touch_the_reserve_is_given_up),
        TEST(a_dry_run_changes_nothing),
        TEST(an_open_handover_outlives_its_checkpoint),
        TEST(a_void_handover_does_not_outlive_the_vm),
        TEST(a_record_alone_is_not_aged_by_a_clock_that_jumps),
        TEST(a_damaged_manifest_is_forgotten_in_time),
        TEST(a_lock_that_stays_is_named),
        TEST(a_session_that_waited_for_a_removal_gets_a_new_vm),
        TEST(one_gc_at_a_time),
        TEST(ages_survive_a_clock_that_jumps),
        TEST(a_generation_seen_first_counts_from_its_creation),
        TEST(a_clock_set_back_neither_keeps_nor_expires),
        TEST(a_clock_set_back_deletes_nothing_and_keeps_the_order),
        TEST(a_clock_that_jumps_ahead_by_a_year_expires_nothing),
        TEST(a_checkpoint_of_the_future_is_new_and_not_for_ever),
        TEST(damaged_files_of_the_future_are_not_for_ever),
        TEST(a_note_is_written_no_more_often_than_it_says_something),
        TEST(a_damaged_note_counts_as_none),
        TEST(its_owner_and_nobody_else_may_use_the_store_whatever_the_umask),
    };

    return cmocka_run_group_tests_name("gc", tests, NULL, NULL);
}
