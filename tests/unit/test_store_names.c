/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "test_store.h"

#include <sys/wait.h>

#include "store/internal.h"

/* docs/formats/store.md, section 1, "Names", against those who make names: somebody who has put
 * links and directories where the store writes and deletes, and a peer that chooses ids and texts.
 * Whatever becomes of the VM, nothing else is overwritten, deleted or made. */

/* ---- the world: a store, another VM in it, and what lies beside it ---- */

struct world {
    char dir[64];
    char outside[80], root[80], vm[200];
    struct vc_store *store;
};

static const struct vc_id other_id = {"another VM's id"};
static const struct vc_id generation = {"new generation"};
static const char spare[] = "00112233-4455-6677-8899-aabbccddeeff"; /* an id of nothing */

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(vc_write_full(fd, text, strlen(text)), 0);
    close(fd);
}

static void write_in(const char *dir, const char *name, const char *text)
{
    char path[400];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    write_file(path, text);
}

/* A directory whose files have names that the store would delete in its own. */
static void make_bait(const char *path)
{
    static const char *const suffixes[] = {".image", ".delta", ".index", ".log", ".image.tmp"};
    char name[100];

    assert_int_equal(mkdir(path, 0700), 0);
    write_in(path, "manifest.new", "of somebody else");
    write_in(path, "handover", "of somebody else");
    write_in(path, "lock", "");
    for (size_t i = 0; i < VC_ARRAY_LEN(suffixes); i++) {
        snprintf(name, sizeof(name), "%s%s", spare, suffixes[i]);
        write_in(path, name, "of somebody else");
    }
}

static void commit_other(struct world *w)
{
    struct vc_vm *vm;
    struct vc_err err;
    struct image m;

    assert_int_equal(vc_vm_open(w->store, &other_id, VC_VM_CREATE, &vm, &err), 0);
    assert_int_equal(vc_vm_set_lineage(vm, &lineage, &err), 0);
    commit_random(vm, NULL, NULL, 20, &m);
    vc_vm_close(vm);
}

static void collect(struct vc_store *s)
{
    const struct vc_gc_env env = {
        .wall_s = (uint64_t)time(NULL),
        .disk_bytes = 1ull << 40,
        .free_bytes = 1ull << 39,
    };
    const struct vc_gc_options o = {.env = &env};
    struct vc_gc_result r;
    struct vc_err err;

    assert_int_equal(vc_store_gc(s, &o, &r, &err), 0);
    assert_int_equal(r.n_evicted, 0);
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof(*w));
    char path[200];

    assert_non_null(w);
    make_place(w->dir);
    snprintf(w->outside, sizeof(w->outside), "%s/outside", w->dir);
    snprintf(w->root, sizeof(w->root), "%s/store", w->dir);
    assert_int_equal(mkdir(w->outside, 0700), 0);
    write_in(w->outside, "file", "of somebody else");
    snprintf(path, sizeof(path), "%s/tree", w->outside);
    make_bait(path);
    w->store = open_store(w->root);
    vm_dir(w->root, w->vm);
    commit_other(w);
    collect(w->store); /* notes its age, once */
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;

    vc_store_close(w->store);
    remove_tree(w->dir);
    free(w);
    forget_digester();
    return 0;
}

/* ---- everything below a directory, as one text ---- */

struct text {
    char *s;
    size_t n;
};

static void add(struct text *t, const void *bytes, size_t n)
{
    t->s = realloc(t->s, t->n + n + 1);
    assert_non_null(t->s);
    memcpy(t->s + t->n, bytes, n);
    t->n += n;
}

static void describe_file(struct text *t, int at, const char *name, const struct stat *st)
{
    int fd = openat(at, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    size_t n = (size_t)st->st_size;
    uint8_t sum[VC_SHA256_BYTES], *content = malloc(n + 1);

    assert_true(fd >= 0);
    assert_non_null(content);
    assert_true(!n || vc_pread_full(fd, content, n, 0) == 1);
    assert_true(vc_sha256(content, n, sum));
    add(t, &st->st_ino, sizeof(st->st_ino));
    add(t, &st->st_size, sizeof(st->st_size));
    add(t, sum, sizeof(sum));
    free(content);
    close(fd);
}

static void describe(struct text *t, int at, const char *name)
{
    struct dirent **found;
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int n;

    assert_true(fd >= 0);
    n = scandirat(fd, ".", &found, NULL, alphasort);
    assert_true(n >= 0);
    for (int i = 0; i < n; i++) {
        const char *e = found[i]->d_name;
        struct stat st;

        if (strcmp(e, ".") != 0 && strcmp(e, "..") != 0) {
            assert_int_equal(fstatat(fd, e, &st, AT_SYMLINK_NOFOLLOW), 0);
            add(t, e, strlen(e) + 1);
            add(t, &st.st_mode, sizeof(st.st_mode));
            if (S_ISDIR(st.st_mode))
                describe(t, fd, e);
            else if (S_ISREG(st.st_mode))
                describe_file(t, fd, e, &st);
        }
        free(found[i]);
    }
    free(found);
    close(fd);
}

/* What is nobody's business of the VM: all outside, and the other VM. */
static struct text others(const struct world *w)
{
    char uuid[VC_ID_TEXT_BYTES], path[200];
    struct text t = {0};

    vc_id_format(&other_id, uuid);
    snprintf(path, sizeof(path), "%s/vms/%s", w->root, uuid);
    describe(&t, AT_FDCWD, w->outside);
    describe(&t, AT_FDCWD, path);
    return t;
}

static void assert_others(const struct world *w, const struct text *before, const char *what)
{
    struct text now = others(w);

    if (now.n != before->n || memcmp(now.s, before->s, now.n) != 0)
        fail_msg("%s: something else was changed", what);
    free(now.s);
}

/* ---- the life of a VM, as far as it gets ---- */

#define ALL_STEPS 8

static unsigned write_generation(struct vc_vm *vm)
{
    struct vc_ram ram = small_ram();
    struct image m = {0};
    struct vc_txn *t;
    struct vc_err err;

    if (vc_vm_set_lineage(vm, &lineage, &err) || vc_txn_begin(vm, &generation, NULL, &t, &err))
        return 0;
    if (vc_txn_set_ram(t, &ram, &err)) {
        vc_txn_abort(t);
        return 0;
    }
    random_runs(t, 20, &m, NULL);
    return vc_txn_commit(t, &note, NULL, &err) == 0;
}

static unsigned write_handover(struct vc_vm *vm)
{
    struct vc_handover h = {.state = VC_HANDOVER_LEAVING};
    struct vc_err err;

    return vc_handover_begin(vm, &h, &err) == 0 &&
           vc_handover_set(vm, VC_HANDOVER_SETTLED, &err) == 0;
}

static unsigned change_policy(struct vc_store *s, enum vc_policy policy)
{
    struct vc_err err;

    return vc_policy_set(s, &vm_id, policy, &err) == 0;
}

typedef void put_fn(const struct world *w, const char *at);

/* All that writes and all that deletes: how much of it worked. @put: where the VM is open. */
static unsigned live(struct world *w, put_fn *put, const char *at)
{
    unsigned done = change_policy(w->store, VC_POLICY_PINNED);
    struct vc_vm *vm;
    struct vc_err err;

    if (vc_vm_open(w->store, &vm_id, VC_VM_CREATE, &vm, &err) == 0) {
        if (put)
            put(w, at);
        done += write_handover(vm) + write_generation(vm);
        vc_vm_close(vm);
    }
    done += vc_vm_fold(w->store, &vm_id, NULL, &err) == 0;
    collect(w->store);
    if (vc_vm_open(w->store, &vm_id, VC_VM_WRITE, &vm, &err) == 0) {
        done += 1 + (vc_vm_drop(vm, &err) == 0);
        done += vc_vm_remove(vm, &err) == 0;
        vc_vm_close(vm);
    }
    return done + change_policy(w->store, VC_POLICY_NORMAL);
}

/* ---- somebody who puts things in the way ---- */

static void outside(const struct world *w, const char *name, char out[100])
{
    snprintf(out, 100, "%s/%s", w->outside, name);
}

static void link_to(const struct world *w, const char *name, const char *at)
{
    char to[100];

    unlink(at);
    outside(w, name, to);
    assert_int_equal(symlink(to, at), 0);
}

static void link_to_file(const struct world *w, const char *at)
{
    link_to(w, "file", at);
}

static void link_to_directory(const struct world *w, const char *at)
{
    link_to(w, "tree", at);
}

static void link_to_nothing(const struct world *w, const char *at)
{
    link_to(w, "new", at);
}

static void second_name(const struct world *w, const char *at)
{
    char from[100];

    unlink(at);
    outside(w, "file", from);
    assert_int_equal(link(from, at), 0);
}

static const struct {
    const char *what;
    put_fn *put;
} things[] = {
    {"a link to a file", link_to_file},
    {"a link to a directory", link_to_directory},
    {"a link to nothing", link_to_nothing},
    {"a second name of a file", second_name},
};

/* In the VM's directory; % is an id of nothing, @ the generation that will be written. */
static const char *const names[] = {
    "lock",    "manifest", "manifest.new", "handover", "handover.new", "age",         "age.new",
    "%.image", "%.delta",  "%.index",      "%.log",    "%.image.tmp",  "%.index.tmp", "@.log",
};

static void place_of(const struct world *w, const char *name, char out[400])
{
    char id[VC_ID_TEXT_BYTES];

    vc_id_format(&generation, id);
    snprintf(out, 400, "%s/%s%s", w->vm,
             *name == '%'   ? spare
             : *name == '@' ? id
                            : "",
             name + (*name == '%' || *name == '@'));
}

static void nothing_in_the_way_is_all_there_is_to_a_whole_life(void **state)
{
    struct world *w = *state;
    struct text before = others(w);

    assert_int_equal(live(w, NULL, NULL), ALL_STEPS);
    assert_int_equal(access(w->vm, F_OK), -1);
    assert_others(w, &before, "a life");
    free(before.s);
}

static void a_link_in_the_way_is_neither_followed_nor_written_to(void **state)
{
    struct world *w = *state;
    struct text before = others(w);
    char what[200], at[400];

    for (size_t i = 0; i < VC_ARRAY_LEN(names); i++)
        for (size_t k = 0; k < VC_ARRAY_LEN(things); k++)
            for (int while_open = 0; while_open < 2; while_open++) {
                place_of(w, names[i], at);
                vc_vm_close(open_vm(w->store, VC_VM_CREATE));
                if (!while_open)
                    things[k].put(w, at);
                live(w, while_open ? things[k].put : NULL, at);
                snprintf(what, sizeof(what), "%s called '%s', %s", things[k].what, names[i],
                         while_open ? "put there while the VM was open" : "there from the start");
                assert_others(w, &before, what);
                remove_tree(w->vm);
            }
    free(before.s);
}

/* It is no obstacle. */
static void a_link_called_like_garbage_is_deleted_and_that_is_all(void **state)
{
    struct world *w = *state;
    struct text before = others(w);
    char at[400];

    for (size_t i = 0; i < VC_ARRAY_LEN(names); i++)
        for (size_t k = 0; k < VC_ARRAY_LEN(things); k++) {
            struct stat st;

            if (!strchr("%@", names[i][0]) && !strstr(names[i], ".new"))
                continue;
            place_of(w, names[i], at);
            vc_vm_close(open_vm(w->store, VC_VM_CREATE));
            things[k].put(w, at);
            vc_vm_close(open_vm(w->store, VC_VM_WRITE));
            assert_int_equal(lstat(at, &st), -1);
            assert_int_equal(live(w, NULL, NULL), ALL_STEPS);
            assert_others(w, &before, names[i]);
        }
    free(before.s);
}

static void a_directory_in_the_way_keeps_what_is_in_it(void **state)
{
    struct world *w = *state;
    struct text before = others(w);
    char at[400];

    for (size_t i = 0; i < VC_ARRAY_LEN(names); i++) {
        struct text bait = {0}, now = {0};

        place_of(w, names[i], at);
        vc_vm_close(open_vm(w->store, VC_VM_CREATE));
        unlink(at);
        make_bait(at);
        describe(&bait, AT_FDCWD, at);
        live(w, NULL, NULL);
        describe(&now, AT_FDCWD, at);
        assert_int_equal(now.n, bait.n);
        assert_memory_equal(now.s, bait.s, bait.n);
        assert_others(w, &before, names[i]);
        free(bait.s);
        free(now.s);
        remove_tree(w->vm);
    }
    free(before.s);
}

static void a_vm_or_a_store_behind_a_link_is_not_entered(void **state)
{
    struct world *w = *state;
    struct text before = others(w);
    char at[400], to[100];
    struct vc_store *s;
    struct vc_vm *vm;
    struct vc_err err;

    link_to_directory(w, w->vm);
    assert_int_equal(vc_vm_open(w->store, &vm_id, VC_VM_READ, &vm, &err), VC_E_CORRUPT);
    assert_int_equal(vc_vm_open(w->store, &vm_id, VC_VM_WRITE, &vm, &err), VC_E_CORRUPT);
    assert_int_equal(live(w, NULL, NULL), ALL_STEPS); /* the link went, and what is behind it not */
    assert_others(w, &before, "a VM's directory");

    snprintf(at, sizeof(at), "%s/policies", w->root);
    remove_tree(at);
    link_to_directory(w, at);
    live(w, NULL, NULL);
    assert_others(w, &before, "the policies");
    free(before.s);

    vc_store_close(w->store);
    outside(w, "vms", to);
    snprintf(at, sizeof(at), "%s/vms", w->root);
    assert_int_equal(rename(at, to), 0);
    assert_int_equal(symlink(to, at), 0);
    assert_int_equal(vc_store_open(w->root, true, 0, &s, &err), VC_E_STORE);
    assert_int_equal(unlink(at), 0);
    assert_int_equal(rename(to, at), 0);
    w->store = open_store(w->root);
}

/* ---- a peer ---- */

/* Every name in the VM's directory is one that docs/formats/store.md has. */
static void assert_names(const struct world *w)
{
    static const char *const fixed[] = {".", "..", "lock", "manifest", "handover", "age"};
    DIR *d = opendir(w->vm);
    struct dirent *e;

    assert_non_null(d);
    while ((e = readdir(d))) {
        struct vc_id id;
        bool known = vc_store_parse_name(e->d_name, &id) != NULL;

        for (size_t i = 0; i < VC_ARRAY_LEN(fixed); i++)
            known = known || !strcmp(e->d_name, fixed[i]);
        if (!known)
            fail_msg("'%s' is no name of a file", e->d_name);
    }
    closedir(d);
}

/* The id in the name of the VM's only file of that kind. */
static struct vc_id id_of_file(const struct world *w, const char *suffix)
{
    struct vc_id found = {{0}}, id;
    DIR *d = opendir(w->vm);
    struct dirent *e;

    assert_non_null(d);
    while ((e = readdir(d))) {
        const char *s = vc_store_parse_name(e->d_name, &id);

        if (s && !strcmp(s, suffix))
            found = id;
    }
    closedir(d);
    assert_false(vc_id_is_nil(&found));
    return found;
}

/* The destination writes a generation with the id that its peer has chosen. */
static struct vc_txn *begin_as(struct vc_vm *vm, const struct vc_id *id, const struct vc_gen *base,
                               struct image *m, const struct image *base_model)
{
    struct vc_ram ram = small_ram();
    struct vc_txn *t;
    struct vc_err err;

    *m = (struct image){.id = *id};
    assert_int_equal(vc_txn_begin(vm, id, base, &t, &err), 0);
    assert_int_equal(vc_txn_set_ram(t, &ram, &err), 0);
    random_runs(t, 20, m, base_model);
    assert_int_equal(vc_txn_log(t, true, &err), 0);
    return t;
}

static void abort_it(struct vc_txn *t)
{
    vc_txn_abort(t);
}

static void suspend_it(struct vc_txn *t)
{
    struct vc_err err;

    assert_int_equal(vc_txn_suspend(t, &note, &err), 0);
}

static void commit_it(struct vc_txn *t)
{
    struct vc_err err;

    assert_int_equal(vc_txn_commit(t, &note, NULL, &err), 0);
}

/* The process is killed: what it has logged is recovered at the next opening. */
static void die(struct vc_txn *t)
{
    (void)t;
    _exit(0);
}

/* A session at the destination, on top of what it has. */
static void receive(struct world *w, const struct vc_id *id, const struct image *have,
                    void (*end)(struct vc_txn *t), struct image *m)
{
    struct vc_vm *vm = open_vm(w->store, VC_VM_WRITE);
    struct vc_gen *base = open_gen(vm, vc_vm_complete(vm));

    end(begin_as(vm, id, base, m, have));
    vc_gen_close(base);
    vc_vm_close(vm);
}

static void receive_and_die(struct world *w, const struct vc_id *id, const struct image *have)
{
    pid_t child = fork();
    struct image m;
    int status;

    assert_true(child >= 0);
    if (child == 0)
        receive(w, id, have, die, &m);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* Opening it recovers, and tidies up. */
static void assert_has(struct world *w, const struct image *m, bool partial)
{
    struct vc_vm *vm = open_vm(w->store, VC_VM_WRITE);
    struct vc_gen *g = open_gen(vm, vc_vm_complete(vm));

    assert_generation(g, m);
    vc_gen_close(g);
    assert_true(!!vc_vm_partial(vm) == partial);
    vc_vm_close(vm);
    assert_names(w);
}

/* Whatever becomes of it, the generation that is there stays until it takes its place. */
static void receive_as(struct world *w, const struct vc_id *id, struct image *have)
{
    struct image m;

    receive(w, id, have, abort_it, &m);
    assert_has(w, have, false);
    receive_and_die(w, id, have);
    assert_has(w, have, true);
    receive(w, id, have, suspend_it, &m);
    assert_has(w, have, true);
    receive(w, id, have, commit_it, &m);
    *have = m;
    assert_has(w, have, false);
}

static void an_id_that_a_peer_has_chosen_names_no_other_file(void **state)
{
    static const char *const which[] = {
        "ones",     "the VM",   "another VM", "its lineage", "the generation there is",
        "an image", "an index",
    };
    struct world *w = *state;
    struct text before = others(w);
    struct image have;
    struct vc_vm *vm = open_vm(w->store, VC_VM_CREATE);

    commit_random(vm, NULL, NULL, 40, &have);
    vc_vm_close(vm);
    for (size_t i = 0; i < VC_ARRAY_LEN(which); i++) {
        struct vc_id ids[] = {
            {{0}},
            vm_id,
            other_id,
            lineage.id,
            have.id,
            id_of_file(w, ".image"),
            id_of_file(w, ".index"),
        };

        memset(&ids[0], 0xff, sizeof(ids[0]));
        receive_as(w, &ids[i], &have);
        assert_others(w, &before, which[i]);
    }
    free(before.s);
}

/* Its name, that of a VM's socket and of a certificate, and those of RAM blocks. */
static void a_text_of_a_peer_is_part_of_no_name(void **state)
{
    static const char *const texts[] = {
        "../../../outside/file",
        "/etc/passwd",
        "..",
        "manifest",
        "handover.new",
        "a/b",
        "\x01\n\xff",
        "lock/",
        "%s%n",
        "00112233-4455-6677-8899-aabbccddeeff.image",
    };
    struct world *w = *state;
    struct text before = others(w);

    for (size_t i = 0; i < VC_ARRAY_LEN(texts); i++) {
        struct vc_txn_note from = {.role = 2, .peer = texts[i]};
        struct vc_handover h = {.state = VC_HANDOVER_ARRIVING}, got;
        struct vc_ram ram = small_ram();
        struct vc_vm *vm = open_vm(w->store, VC_VM_CREATE);
        struct image m = {0};
        struct vc_gen *g;
        struct vc_txn *t;
        struct vc_err err;

        snprintf(h.peer, sizeof(h.peer), "%s", texts[i]);
        snprintf(h.socket, sizeof(h.socket), "%s", texts[i]);
        snprintf(h.tls_hostname, sizeof(h.tls_hostname), "%s", texts[i]);
        snprintf(ram.blocks[0].name, sizeof(ram.blocks[0].name), "%s", texts[i]);
        assert_int_equal(vc_handover_begin(vm, &h, &err), 0);
        assert_int_equal(vc_txn_begin(vm, &generation, NULL, &t, &err), 0);
        assert_int_equal(vc_txn_set_ram(t, &ram, &err), 0);
        random_runs(t, 20, &m, NULL);
        assert_int_equal(vc_txn_commit(t, &from, NULL, &err), 0);
        vc_vm_close(vm);
        collect(w->store); /* judges by the peer */
        vm = open_vm(w->store, VC_VM_WRITE);
        assert_int_equal(vc_handover_get(vm, &got, &err), 0);
        assert_string_equal(got.socket, texts[i]);
        assert_string_equal(vc_vm_complete(vm)->peer, texts[i]);
        g = open_gen(vm, vc_vm_complete(vm));
        assert_string_equal(vc_gen_ram(g)->blocks[0].name, texts[i]);
        vc_gen_close(g);
        assert_names(w);
        assert_int_equal(vc_vm_remove(vm, &err), 0);
        vc_vm_close(vm);
        assert_others(w, &before, texts[i]);
    }
    free(before.s);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(nothing_in_the_way_is_all_there_is_to_a_whole_life),
        T(a_link_in_the_way_is_neither_followed_nor_written_to),
        T(a_link_called_like_garbage_is_deleted_and_that_is_all),
        T(a_directory_in_the_way_keeps_what_is_in_it),
        T(a_vm_or_a_store_behind_a_link_is_not_entered),
        T(an_id_that_a_peer_has_chosen_names_no_other_file),
        T(a_text_of_a_peer_is_part_of_no_name),
    };

    rng_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
