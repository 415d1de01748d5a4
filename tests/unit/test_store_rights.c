/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "test_store.h"

#include <errno.h>
#include <ftw.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* Whose a store is, who may write in it, and file systems that cannot do all that it asks for. */

#define USER 65534

/* ---- a file system that cannot lock, or sync directories ---- */

static int flock_errno, dirsync_errno;

int flock(int fd, int what)
{
    if (flock_errno) {
        errno = flock_errno;
        return -1;
    }
    return (int)syscall(SYS_flock, fd, what);
}

int fsync(int fd)
{
    struct stat st;

    if (dirsync_errno && fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
        errno = dirsync_errno;
        return -1;
    }
    return (int)syscall(SYS_fsync, fd);
}

static const int lacking[] = {ENOLCK, EOPNOTSUPP, ENOSYS, EINVAL};

static void without_locks_nothing_is_kept_and_that_is_said_at_once(void **state)
{
    char dir[64];
    struct vc_store *s;

    (void)state;
    make_place(dir);
    s = open_store(dir);
    for (size_t i = 0; i < VC_ARRAY_LEN(lacking); i++) {
        struct vc_gc_options o = {0};
        struct vc_err err = VC_ERR_INIT;
        struct vc_gc_result r;
        struct vc_vm *vm;

        flock_errno = lacking[i];
        assert_int_equal(vc_vm_open(s, &vm_id, VC_VM_CREATE, &vm, &err), VC_E_STORE);
        assert_non_null(strstr(err.message, "flock"));
        assert_non_null(strstr(err.message, dir));
        assert_non_null(strstr(err.hint, "--store"));
        assert_int_equal(vc_store_gc(s, &o, &r, &err), VC_E_STORE);
        flock_errno = 0;
        vc_vm_close(open_vm(s, VC_VM_CREATE));
    }
    vc_store_close(s);
    remove_tree(dir);
}

static void names_that_cannot_be_synced_cost_nothing(void **state)
{
    struct image m;
    char dir[64];

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(lacking); i++) {
        bool lacks = lacking[i] != ENOLCK;
        struct vc_err err = VC_ERR_INIT;
        struct vc_store *s;
        struct vc_vm *vm;

        make_place(dir);
        dirsync_errno = lacking[i];
        if (vc_store_open(dir, true, 0, &s, &err) == 0) {
            assert_true(lacks);
            assert_false(vc_store_syncs_names(s));
            vm = open_vm(s, VC_VM_CREATE);
            commit_random(vm, NULL, NULL, 20, &m);
            vc_vm_close(vm);
            vc_store_close(s);
        } else {
            assert_false(lacks); /* what it can do and did not is an error */
        }
        dirsync_errno = 0;
        remove_tree(dir);
    }
}

/* ---- several that make the same store ---- */

static void several_may_make_a_new_store_at_once(void **state)
{
    enum { ROUNDS = 30, MAKERS = 8 };

    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        char dir[64], root[100];
        int gate[2], status;
        pid_t pids[MAKERS];

        make_place(dir);
        snprintf(root, sizeof(root), "%s/a/b/store", dir);
        assert_int_equal(pipe(gate), 0);
        for (int i = 0; i < MAKERS; i++) {
            pids[i] = fork();
            assert_true(pids[i] >= 0);
            if (pids[i] == 0) {
                struct vc_err err = VC_ERR_INIT;
                struct vc_store *s;
                char c;

                close(gate[1]);
                if (read(gate[0], &c, 1) != 0) /* until all are there */
                    _exit(2);
                if (vc_store_open(root, true, 0, &s, &err)) {
                    fprintf(stderr, "%s\n", err.message);
                    _exit(1);
                }
                _exit(0);
            }
        }
        close(gate[0]);
        close(gate[1]);
        for (int i = 0; i < MAKERS; i++) {
            assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
            assert_true(WIFEXITED(status));
            assert_int_equal(WEXITSTATUS(status), 0);
        }
        vc_store_close(open_store(root));
        remove_tree(dir);
    }
}

/* ---- whose it is ---- */

static void a_store_in_which_others_may_write_is_refused(void **state)
{
    static const char *const what[] = {"", "/vms"};

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(what); i++)
        for (int mode = 0; mode < 2; mode++) {
            struct vc_err err = VC_ERR_INIT;
            char dir[64], path[100];
            struct vc_store *s;

            make_place(dir);
            vc_store_close(open_store(dir));
            snprintf(path, sizeof(path), "%s%s", dir, what[i]);
            assert_int_equal(chmod(path, mode ? 0770 : 0707), 0);
            assert_int_equal(vc_store_open(dir, true, 0, &s, &err), VC_E_STORE);
            assert_non_null(strstr(err.message, path));
            assert_non_null(strstr(err.hint, "chmod"));
            assert_int_equal(chmod(path, 0755), 0);
            vc_store_close(open_store(dir));
            remove_tree(dir);
        }
}

static int is_the_users(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)kind, (void)at;
    if (st->st_uid != USER || st->st_gid != USER)
        fail_msg("'%s' belongs to user %u, group %u", path, st->st_uid, st->st_gid);
    return 0;
}

static void root_leaves_nothing_of_its_own_in_another_users_store(void **state)
{
    struct vc_handover h = {.state = VC_HANDOVER_LEAVING};
    struct vc_gc_options o = {0};
    struct vc_err err = VC_ERR_INIT;
    struct vc_gc_result r;
    struct vc_store *s;
    struct image m, newer;
    struct vc_vm *vm;
    struct vc_gen *g;
    char dir[64];

    (void)state;
    if (geteuid() != 0)
        skip();
    make_place(dir);
    assert_int_equal(chown(dir, USER, USER), 0);
    s = open_store(dir);
    vm = open_vm(s, VC_VM_CREATE);
    assert_int_equal(vc_handover_begin(vm, &h, &err), 0);
    assert_int_equal(vc_handover_set(vm, VC_HANDOVER_SETTLED, &err), 0);
    commit_random(vm, NULL, NULL, 20, &m);
    g = open_gen(vm, vc_vm_complete(vm));
    commit_random(vm, g, &m, 20, &newer);
    vc_gen_close(g);
    vc_vm_close(vm);
    assert_int_equal(vc_vm_fold(s, &vm_id, NULL, &err), 0);
    assert_int_equal(vc_policy_set(s, &vm_id, VC_POLICY_PINNED, &err), 0);
    assert_int_equal(vc_store_gc(s, &o, &r, &err), 0);
    vc_store_close(s);
    assert_int_equal(nftw(dir, is_the_users, 16, FTW_PHYS), 0);
    assert_int_equal(geteuid(), 0);
    assert_int_equal(access("/root", W_OK), 0); /* root is itself again */
    remove_tree(dir);
}

/* The owner may put there what it likes: root reaches through it no more than the owner could. */
static void root_does_not_read_for_another_user(void **state)
{
    struct vc_err err = VC_ERR_INIT;
    char dir[64], secret[80], root[80], vm_path[200], path[240];
    struct vc_store *s;
    struct vc_vm *vm;
    int fd, status;
    pid_t pid;

    (void)state;
    if (geteuid() != 0)
        skip();
    make_place(dir);
    snprintf(secret, sizeof(secret), "%s/secret", dir);
    fd = open(secret, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    close(fd);
    snprintf(root, sizeof(root), "%s/store", dir);
    assert_int_equal(mkdir(root, 0700), 0);
    assert_int_equal(chown(root, USER, USER), 0);
    s = open_store(root);
    vc_vm_close(open_vm(s, VC_VM_CREATE));
    vm_dir(root, vm_path);
    snprintf(path, sizeof(path), "%s/manifest", vm_path);
    unlink(path);
    assert_int_equal(link(secret, path), 0); /* a second name of root's file */
    assert_int_equal(vc_vm_open(s, &vm_id, VC_VM_READ, &vm, &err), VC_E_CORRUPT);
    assert_non_null(strstr(err.message, "Permission denied"));
    vc_store_close(s);
    /* And a user does not open another's. */
    assert_int_equal(chmod(dir, 0755), 0);
    pid = fork();
    if (pid == 0) {
        int rc = setuid(1) ? -1 : vc_store_open(root, true, 0, &s, &err);

        _exit(rc == VC_E_REFUSED ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    remove_tree(dir);
}

/* Else every migration would leave a file that nobody can take away. */
static void a_directory_that_can_only_be_added_to_gets_no_files(void **state)
{
    char dir[64] = "/tmp/vc-append-XXXXXX", path[200];
    int fd, flags = FS_APPEND_FL, none = 0;
    struct vc_ram ram = small_ram();
    struct vc_err err = VC_ERR_INIT;
    struct vc_store *s;
    struct vc_vm *vm;
    struct vc_txn *t;

    (void)state;
    assert_non_null(mkdtemp(dir)); /* tmpfs has no such flags */
    s = open_store(dir);
    vm = open_vm(s, VC_VM_CREATE);
    vm_dir(dir, path);
    fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (ioctl(fd, FS_IOC_SETFLAGS, &flags) == 0) {
        assert_int_equal(vc_txn_begin(vm, &vm_id, NULL, &t, &err), 0);
        assert_int_equal(vc_txn_set_ram(t, &ram, &err), VC_E_STORE);
        assert_non_null(strstr(err.message, path));
        vc_txn_abort(t);
        assert_int_equal(ioctl(fd, FS_IOC_SETFLAGS, &none), 0);
    }
    close(fd);
    vc_vm_close(vm);
    vc_store_close(s);
    remove_tree(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_locks_nothing_is_kept_and_that_is_said_at_once),
        cmocka_unit_test(names_that_cannot_be_synced_cost_nothing),
        cmocka_unit_test(several_may_make_a_new_store_at_once),
        cmocka_unit_test(a_store_in_which_others_may_write_is_refused),
        cmocka_unit_test(root_leaves_nothing_of_its_own_in_another_users_store),
        cmocka_unit_test(root_does_not_read_for_another_user),
        cmocka_unit_test(a_directory_that_can_only_be_added_to_gets_no_files),
    };

    rng_seed();
    return cmocka_run_group_tests_name("store_rights", tests, NULL, NULL);
}
