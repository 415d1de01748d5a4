/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "test_store.h"

#include <errno.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>

/* Whatever stands in the place of a file of the store: nothing waits for it, what is told has the
 * path (and with it the VM), it costs reuse, and where it can be taken away the next commit does
 * so. Each kind in each place, in the life of a VM; a case that waits is ended by the alarm. */

#define MOST_SECONDS 60

static char store_dir[64], vm_path[200];
static bool no_flags; /* this file system has no such flags */

/* ---- kinds ---- */

static void make_fifo(const char *at)
{
    assert_int_equal(mkfifo(at, 0600), 0);
}

static void make_directory(const char *at)
{
    assert_int_equal(mkdir(at, 0700), 0);
}

static void make_full_directory(const char *at)
{
    char inside[500];

    make_directory(at);
    snprintf(inside, sizeof(inside), "%s/inside", at);
    make_directory(inside);
}

static void make_link(const char *at)
{
    assert_int_equal(symlink("/etc/passwd", at), 0);
}

static void make_dangling_link(const char *at)
{
    assert_int_equal(symlink("nothing-there", at), 0);
}

static void make_link_to_fifo(const char *at)
{
    char fifo[100];

    snprintf(fifo, sizeof(fifo), "%s/fifo", store_dir);
    mkfifo(fifo, 0600);
    assert_int_equal(symlink(fifo, at), 0);
}

static void make_socket(const char *at)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    int dir = open(vm_path, O_PATH | O_CLOEXEC), fd = socket(AF_UNIX, SOCK_STREAM, 0);
    char tmp[300];

    close(dir);
    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/s", store_dir);
    snprintf(tmp, sizeof(tmp), "%s/s", store_dir);
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(rename(tmp, at), 0);
    close(fd);
}

static void make_device(const char *at)
{
    assert_int_equal(mknod(at, S_IFCHR | 0600, makedev(1, 5)), 0); /* zeroes without an end */
}

static void make_empty_file(const char *at)
{
    close(open(at, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
}

static void make_unreadable(const char *at)
{
    make_empty_file(at);
    assert_int_equal(chmod(at, 0), 0);
}

static void set_flags(const char *at, int flags)
{
    int fd = open(at, O_RDONLY | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0 || ioctl(fd, FS_IOC_SETFLAGS, &flags) < 0)
        no_flags = true;
    close(fd);
}

static void make_immutable(const char *at)
{
    make_empty_file(at);
    set_flags(at, FS_IMMUTABLE_FL);
}

static void make_append_only(const char *at)
{
    make_empty_file(at);
    set_flags(at, FS_APPEND_FL);
}

static const struct {
    const char *what;
    void (*make)(const char *at);
    bool heals;     /* it can be taken away */
    bool for_root;  /* only root makes it */
    bool for_users; /* it is nothing to root */
    bool has_flags;
} kinds[] = {
    {"FIFO", make_fifo, true, false, false, false},
    {"directory", make_directory, true, false, false, false},
    {"directory with something in it", make_full_directory, false, false, false, false},
    {"link", make_link, true, false, false, false},
    {"dangling link", make_dangling_link, true, false, false, false},
    {"link to a FIFO", make_link_to_fifo, true, false, false, false},
    {"socket", make_socket, true, false, false, false},
    {"device", make_device, true, true, false, false},
    {"empty file", make_empty_file, true, false, false, false},
    {"unreadable file", make_unreadable, true, false, true, false},
    {"immutable file", make_immutable, false, true, false, true},
    {"append-only file", make_append_only, false, true, false, true},
};

/* ---- places ---- */

static const struct {
    const char *name; /* '*': the file with that end; '%': of no generation */
    bool in_root;
    bool stays; /* it is not for a commit to heal */
} places[] = {
    {"lock", false, false},
    {"manifest", false, false},
    {"manifest.new", false, false},
    {"handover", false, false},
    {"handover.new", false, false},
    {"age", false, false},
    {"age.new", false, false},
    {"*.image", false, false},
    {"*.delta", false, false},
    {"*.index", false, false},
    {"%.log", false, false},
    {"%.image", false, false},
    {"%.delta", false, false},
    {"%.index", false, false},
    {"%.image.tmp", false, false},
    {"%.index.tmp", false, false},
    {"", false, false}, /* the VM's directory */
    {"format", true, true},
    {"vms", true, true},
    {"policies", true, true},
    {"policies/*", true, true},
};

/* The first file of the VM with that end. */
static void find_file(const char *end, char out[400])
{
    DIR *d = opendir(vm_path);
    struct dirent *e;

    out[0] = 0;
    assert_non_null(d);
    while (!out[0] && (e = readdir(d))) {
        size_t n = strlen(e->d_name), k = strlen(end);

        if (n > k && !strcmp(e->d_name + n - k, end))
            snprintf(out, 400, "%s/%.100s", vm_path, e->d_name);
    }
    closedir(d);
}

static void place_of(size_t i, char out[400])
{
    const char *name = places[i].name;

    if (!strcmp(name, "policies/*"))
        snprintf(out, 400, "%s/policies/%s", store_dir, strrchr(vm_path, '/') + 1);
    else if (places[i].in_root)
        snprintf(out, 400, "%s/%s", store_dir, name);
    else if (*name == '*')
        find_file(name + 1, out);
    else if (*name == '%')
        snprintf(out, 400, "%s/00112233-4455-6677-8899-aabbccddeeff%s", vm_path, name + 1);
    else
        snprintf(out, 400, "%s%s%s", vm_path, *name ? "/" : "", name);
}

/* ---- the life of a VM ---- */

static void check(int rc, const struct vc_err *err, const char *what)
{
    if (rc >= 0)
        return;
    if (!strstr(err->message, store_dir))
        fail_msg("%s: the message has no path: %s", what, err->message);
}

static int write_generation(struct vc_vm *vm, const struct vc_gen *base, struct vc_err *err)
{
    struct vc_ram ram = small_ram();
    struct image m = {0};
    struct vc_id id;
    struct vc_txn *t;
    int rc = vc_id_random(&id) ? vc_txn_begin(vm, &id, base, &t, err) : -1;

    if (rc)
        return rc;
    rc = vc_txn_set_ram(t, &ram, err);
    if (rc) {
        vc_txn_abort(t);
        return rc;
    }
    for (int i = 0; i < 20; i++)
        assert_int_equal(random_run(t, &m, NULL, err), 0);
    return vc_txn_commit(t, &note, NULL, err);
}

/* One migration, as far as the store has to do with it. True: it kept a checkpoint. */
static bool migrate(struct vc_store *s, const char *what)
{
    struct vc_handover h = {.state = VC_HANDOVER_LEAVING};
    struct vc_err err = VC_ERR_INIT;
    struct vc_gen *base = NULL;
    enum vc_policy policy;
    struct vc_vm *vm;
    int rc;

    rc = vc_policy_get(s, &vm_id, &policy, &err);
    check(rc, &err, what);
    if (rc)
        return false;
    rc = vc_vm_open(s, &vm_id, VC_VM_CREATE, &vm, &err);
    check(rc, &err, what);
    if (rc)
        return false;
    rc = vc_vm_set_lineage(vm, &lineage, &err);
    check(rc, &err, what);
    if (vc_vm_complete(vm))
        check(vc_gen_open(vm, &vc_vm_complete(vm)->id, &base, &err), &err, what);
    if (vc_handover_begin(vm, &h, &err) == 0)
        assert_int_equal(vc_handover_set(vm, VC_HANDOVER_SETTLED, &err), 0);
    if (!rc) {
        rc = write_generation(vm, base, &err);
        check(rc, &err, what);
    }
    vc_gen_close(base);
    vc_vm_close(vm);
    return rc == 0;
}

static void look_around(struct vc_store *s, const char *what)
{
    const struct vc_gc_options o = {0};
    struct vc_gc_result r;
    struct vc_handover h;
    struct vc_id *ids;
    size_t n;
    struct vc_vm *vm;
    struct vc_err err = VC_ERR_INIT;
    int rc;

    assert_int_equal(vc_store_list(s, &ids, &n, &err), 0);
    free(ids);
    assert_int_equal(vc_store_gc(s, &o, &r, &err), 0);
    rc = vc_vm_open(s, &vm_id, VC_VM_READ, &vm, &err);
    check(rc, &err, what);
    if (rc == 0) {
        if (vc_handover_get(vm, &h, &err) == 0)
            assert_true(h.state <= VC_HANDOVER_VOID);
        vc_vm_close(vm);
    }
    rc = vc_vm_fold(s, &vm_id, NULL, &err);
    check(rc, &err, what);
}

static void one_case(size_t place, size_t kind, const char *what)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_store *s = open_store(store_dir);
    bool kept = false;
    char at[400], aside[500];
    int rc;

    assert_int_equal(vc_policy_set(s, &vm_id, VC_POLICY_PINNED, &err), 0);
    assert_true(migrate(s, what) && migrate(s, what));
    vc_store_close(s);
    place_of(place, at);
    assert_true(at[0]);
    snprintf(aside, sizeof(aside), "%s/aside", store_dir);
    if (rename(at, aside) < 0)
        assert_int_equal(errno, ENOENT);
    kinds[kind].make(at);

    rc = vc_store_open(store_dir, true, 0, &s, &err);
    check(rc, &err, what);
    if (rc)
        return; /* of a store that is none, nothing is used */
    look_around(s, what);
    for (int i = 0; i < 2; i++)
        kept = migrate(s, what);
    look_around(s, what);
    /* Who knows who has locked a file that cannot be opened? */
    if (kinds[kind].for_users && !strcmp(places[place].name, "lock"))
        return;
    if (kinds[kind].heals && !places[place].stays && !kept)
        fail_msg("%s: it was not taken away", what);
    vc_store_close(s);
}

static void clear_flags(const char *path)
{
    char command[300];

    snprintf(command, sizeof(command), "chattr -R -i -a %s 2>/dev/null", path);
    if (system(command)) {
        /* A link is nothing to it, and says so. */
    }
}

static void in_a_child(size_t place, size_t kind, uid_t user)
{
    char what[200];
    int status;
    pid_t pid;

    snprintf(what, sizeof(what), "%s at '%s'", kinds[kind].what, places[place].name);
    make_place(store_dir);
    if (kinds[kind].has_flags) { /* which tmpfs has not */
        remove_tree(store_dir);
        snprintf(store_dir, sizeof(store_dir), "/tmp/vc-odd-XXXXXX");
        assert_non_null(mkdtemp(store_dir));
    }
    if (user)
        assert_int_equal(chown(store_dir, user, user), 0);
    vm_dir(store_dir, vm_path);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        alarm(MOST_SECONDS);
        if (user && setuid(user))
            _exit(1);
        one_case(place, kind, what);
        _exit(no_flags ? 77 : 0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (kinds[kind].has_flags)
        clear_flags(store_dir);
    remove_tree(store_dir);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
        fail_msg("%s: something waits for it", what);
    if (!WIFEXITED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 77))
        fail_msg("%s: failed", what);
}

static void nothing_that_stands_in_a_files_place_is_waited_for(void **state)
{
    bool root = geteuid() == 0;

    (void)state;
    rng_seed();
    for (size_t p = 0; p < VC_ARRAY_LEN(places); p++)
        for (size_t k = 0; k < VC_ARRAY_LEN(kinds); k++) {
            if (kinds[k].for_root && !root)
                continue;
            in_a_child(p, k, root && kinds[k].for_users ? 65534 : 0);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_that_stands_in_a_files_place_is_waited_for),
    };

    return cmocka_run_group_tests_name("store_odd", tests, NULL, NULL);
}
