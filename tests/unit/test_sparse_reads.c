/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "test_store.h"

#include <glob.h>
#include <poll.h>
#include <sys/mman.h>

/* What is read from disk is what was asked for: vc_gen_read_sparsely(), vc_gen_prefetch(). Needs a
 * file system with a disk, whose pages the kernel can drop. */

#define PAGE 4096u
#define RUN_PAGES 256u
#define N_RUNS 64u
#define RAM_PAGES (RUN_PAGES * N_RUNS)

struct place {
    char dir[64];
    struct vc_store *store;
    struct vc_vm *vm;
    struct vc_gen *gen;
    uint8_t *map; /* of the image: what of it is in the page cache */
};

static void write_generation(struct place *p)
{
    static uint8_t content[RUN_PAGES][PAGE];
    static const struct vc_digest digests[RUN_PAGES] = {{{1}}};
    struct vc_ram ram = {.page_bytes = PAGE, .n_blocks = 1};
    const uint8_t *contents[RUN_PAGES];
    struct vc_txn *t;
    struct vc_id id;
    struct vc_err err;

    ram.blocks[0] = (struct vc_block){"pc.ram", (uint64_t)RAM_PAGES * PAGE};
    assert_true(vc_id_random(&id));
    assert_int_equal(vc_txn_begin(p->vm, &id, NULL, &t, &err), 0);
    assert_int_equal(vc_txn_set_ram(t, &ram, &err), 0);
    for (unsigned i = 0; i < RUN_PAGES; i++)
        contents[i] = content[i];
    for (unsigned r = 0; r < N_RUNS; r++) {
        memset(content, 1 + (int)r, sizeof(content));
        assert_int_equal(
            vc_txn_put(t, 0, vc_page(r * RUN_PAGES), RUN_PAGES, contents, digests, &err), 0);
    }
    assert_int_equal(vc_txn_commit(t, &note, NULL, &err), 0);
}

static int setup(void **state)
{
    struct place *p = calloc(1, sizeof(*p));
    char pattern[128];
    glob_t found;
    int fd;

    assert_non_null(p);
    strcpy(p->dir, "/var/tmp/vc-sparse-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    p->store = open_store(p->dir);
    p->vm = open_vm(p->store, VC_VM_CREATE);
    write_generation(p);
    p->gen = open_gen(p->vm, vc_vm_complete(p->vm));
    snprintf(pattern, sizeof(pattern), "%s/vms/*/*.image", p->dir);
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    fd = open(found.gl_pathv[0], O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    globfree(&found);
    p->map = mmap(NULL, (size_t)RAM_PAGES * PAGE, PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(p->map, MAP_FAILED);
    assert_int_equal(fsync(fd), 0);
    assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    close(fd);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct place *p = *state;

    munmap(p->map, (size_t)RAM_PAGES * PAGE);
    vc_gen_close(p->gen);
    vc_vm_close(p->vm);
    vc_store_close(p->store);
    remove_tree(p->dir);
    free(p);
    return 0;
}

static unsigned cached(const struct place *p, unsigned run)
{
    uint8_t *at = p->map + (size_t)run * RUN_PAGES * PAGE;
    unsigned char in[RUN_PAGES];
    unsigned n = 0;

    assert_int_equal(mincore(at, (size_t)RUN_PAGES * PAGE, in), 0);
    for (unsigned i = 0; i < RUN_PAGES; i++)
        n += in[i] & 1;
    return n;
}

static void need_a_disk(const struct place *p)
{
    for (unsigned run = 0; run < N_RUNS; run++)
        if (cached(p, run)) {
            print_message(
                "skipped: /var/tmp is on a file system that keeps everything in memory\n");
            skip();
        }
}

static void what_lies_between_is_not_read(void **state)
{
    struct place *p = *state;
    uint8_t *buf = malloc((size_t)RUN_PAGES * PAGE);
    struct vc_err err;

    assert_non_null(buf);
    need_a_disk(p);
    vc_gen_read_sparsely(p->gen);
    for (unsigned run = 0; run < N_RUNS; run += 2) {
        assert_int_equal(vc_gen_read(p->gen, 0, vc_page(run * RUN_PAGES), RUN_PAGES, buf, &err), 0);
        assert_int_equal(buf[0], 1 + run);
    }
    for (unsigned run = 0; run < N_RUNS; run++)
        assert_int_equal(cached(p, run), run % 2 ? 0 : RUN_PAGES);
    free(buf);
}

static void what_is_announced_is_read_and_no_more(void **state)
{
    struct place *p = *state;
    unsigned looks = 0;

    need_a_disk(p);
    vc_gen_read_sparsely(p->gen);
    vc_gen_prefetch(p->gen, 0, vc_page(8 * RUN_PAGES), RUN_PAGES);
    vc_gen_prefetch(p->gen, 0, vc_page(RAM_PAGES - RUN_PAGES), 1ull << 60);
    vc_gen_prefetch(p->gen, 0, vc_page(1ull << 60), 1);
    while ((cached(p, 8) + cached(p, N_RUNS - 1) < 2 * RUN_PAGES ||
            !vc_gen_is_cached(p->gen, 0, vc_page(8 * RUN_PAGES), RUN_PAGES)) &&
           looks++ < 300000)
        poll(NULL, 0, 1);
    assert_true(vc_gen_is_cached(p->gen, 0, vc_page(8 * RUN_PAGES), RUN_PAGES));
    for (unsigned run = 0; run < N_RUNS; run++)
        assert_int_equal(cached(p, run), run == 8 || run == N_RUNS - 1 ? RUN_PAGES : 0);
    assert_false(vc_gen_is_cached(p->gen, 0, vc_page(8 * RUN_PAGES), RUN_PAGES + 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_lies_between_is_not_read, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_announced_is_read_and_no_more, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
