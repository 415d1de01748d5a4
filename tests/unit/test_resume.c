/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a failed attempt leaves for the next one: the destination has what had arrived, and the
 * complete generation that both hosts share is never lost. */

#include <dirent.h>
#include <fcntl.h>
#include <stdatomic.h>

#include "damage.h"

#include "base/bytes.h"
#include "wire/wire.h"

struct lab *the_lab;

/* ---- a link that is cut when so much of the stream has arrived ---- */

static size_t cut_there(struct filter *f, bool to_dest, uint8_t *frame, size_t n)
{
    bool last = !to_dest && frame_type(frame) == VC_WIRE_ACK &&
                vc_load_le(frame + FRAME_HEAD + 8, 8) >= f->pause_at;

    return last ? 0 : n;
}

/* The VM leaves host 1; the link is cut when that share of the stream has arrived. */
static void failed_attempt(struct lab *lab, const struct buf *stream, double share)
{
    struct filter f = {
        .on_frame = cut_there,
        .gated = true,
        .pause_at = (size_t)((double)stream->n * share),
    };
    struct visit v = {.from = 1, .stream = stream, .filter = &f};

    lab_visit(lab, &v);
    assert_int_equal(judge(&v), FAILED);
    assert_int_equal(v.source.rc, VC_E_PEER_LOST);
}

static struct facts {
    uint64_t data, resent, repaired;
    uint32_t base;
} good_attempt(struct lab *lab, const struct buf *stream)
{
    struct filter f = {.gated = true};
    struct visit v = {.from = 1, .stream = stream, .filter = &f};

    lab_visit(lab, &v);
    if (judge(&v) == FAILED)
        fail_msg("%s", v.source.err.message);
    assert_true(v.source.result.confirmed && v.dest.result.confirmed);
    assert_int_equal(lab_bad_pages(lab, 0), 0);
    assert_int_equal(lab_bad_pages(lab, 1), 0);
    return (struct facts){v.source.result.pages_data, v.source.result.resent_batches,
                          v.source.result.repaired_pages, v.source.result.base};
}

/* Every page differs from what any host has, and none is zero. */
static void new_memory(struct lab *lab, struct memory *m, uint32_t version)
{
    *m = lab->shared;
    for (unsigned i = 0; i < m->pages; i++)
        m->version[i] = version;
}

static void assert_rest(uint64_t data, unsigned pages, double left)
{
    /* The end of the stream repeats a page or two. */
    if ((double)data > (left + 0.05) * pages + 2)
        fail_msg("%llu of %u pages were sent again", (unsigned long long)data, pages);
    assert_true(data > 0);
}

/* ---- promises ---- */

static void a_first_visit_that_was_cut_sends_only_the_rest(void **state)
{
    static const struct pristine nothing[2];
    struct buf stream = {0};
    struct memory m;
    struct facts r;

    (void)state;
    lab_restore(the_lab, nothing);
    new_memory(the_lab, &m, 50);
    put_migration(&stream, &m, NULL);
    failed_attempt(the_lab, &stream, 0.6);
    r = good_attempt(the_lab, &stream);
    assert_int_equal(r.base, VC_WIRE_BASE_ANNOUNCE);
    assert_rest(r.data, m.pages, 0.4);
    buf_free(&stream);
}

static void a_return_that_was_cut_sends_only_the_rest_of_what_changed(void **state)
{
    struct buf stream = {0};
    struct memory m = the_lab->shared;
    struct facts r;
    unsigned changed = 0, left = 0;

    (void)state;
    lab_restore(the_lab, the_lab->kept);
    for (unsigned i = 1; i < m.pages; i += 2) {
        m.version[i] = 51;
        changed++;
        left += i >= m.pages * 6 / 10;
    }
    put_migration(&stream, &m, NULL);
    failed_attempt(the_lab, &stream, 0.6);
    r = good_attempt(the_lab, &stream);
    /* Also what the attempt had not reached, and the older generation has, is reused. */
    assert_int_equal(r.base, VC_WIRE_BASE_ANNOUNCE);
    assert_rest(r.data, changed, (double)left / changed);
    buf_free(&stream);
}

/* An attempt that brought nothing new is not worth announcing. */
static void what_both_hosts_hold_is_used_where_nothing_had_arrived(void **state)
{
    struct buf stream = {0};
    struct facts r;

    (void)state;
    lab_restore(the_lab, the_lab->kept);
    put_migration(&stream, &the_lab->shared, NULL);
    failed_attempt(the_lab, &stream, 0.3);
    r = good_attempt(the_lab, &stream);
    assert_int_equal(r.base, VC_WIRE_BASE_PING_PONG);
    buf_free(&stream);
}

/* More attempts than a generation has layers; the guest writes on meanwhile. */
static void attempts_add_up_and_no_number_of_them_loses_the_complete_generation(void **state)
{
    struct memory m;
    struct facts r = {0};

    (void)state;
    lab_restore(the_lab, the_lab->kept);
    new_memory(the_lab, &m, 60);
    for (unsigned i = 1; i <= 12; i++) {
        struct buf stream = {0};

        m.version[i] = 60 + i;
        put_migration(&stream, &m, NULL);
        if (i < 12)
            failed_attempt(the_lab, &stream, 0.05 + 0.07 * i);
        else
            r = good_attempt(the_lab, &stream);
        assert_true(lab_has_complete(the_lab, 0) && lab_has_complete(the_lab, 1));
        buf_free(&stream);
    }
    assert_rest(r.data, m.pages, 0.18);
}

/* ---- what a killed process leaves ---- */

/* Host 1 is the source. Its log may have an older digest of a page than its disk has content: the
 * whole image of an attempt with version `logged` is overwritten with version `written`. */
static void killed_attempt(struct lab *lab, int host, uint32_t logged, uint32_t written)
{
    static const struct pristine nothing[2];
    struct buf stream = {0};
    struct memory m;
    struct dirent *e;
    DIR *d;
    unsigned n = 0;

    lab_restore(lab, nothing);
    new_memory(lab, &m, logged);
    put_migration(&stream, &m, NULL);
    failed_attempt(lab, &stream, 0.8);
    buf_free(&stream);
    d = opendir(lab->host[host].vm_dir);
    assert_non_null(d);
    while ((e = readdir(d))) {
        uint8_t page[PAGE];
        int fd;

        if (!strstr(e->d_name, ".image"))
            continue;
        n++;
        fd = openat(dirfd(d), e->d_name, O_WRONLY);
        for (unsigned i = 0; i < m.pages; i++) {
            fill_page(page, i, written);
            assert_int_equal(pwrite(fd, page, PAGE, (off_t)i * PAGE), PAGE);
        }
        close(fd);
    }
    closedir(d);
    assert_int_equal(n, 1);
}

static struct facts attempt_with(struct lab *lab, uint32_t version)
{
    struct buf stream = {0};
    struct memory m;
    struct facts r;

    new_memory(lab, &m, version);
    put_migration(&stream, &m, NULL);
    r = good_attempt(lab, &stream);
    buf_free(&stream);
    return r;
}

/* The guest has written what it had before: the digest is the logged one. */
static void what_was_overwritten_is_not_taken_into_a_generation(void **state)
{
    (void)state;
    killed_attempt(the_lab, 1, 70, 71);
    attempt_with(the_lab, 70);
}

static void what_was_overwritten_is_no_dictionary(void **state)
{
    (void)state;
    killed_attempt(the_lab, 1, 70, 71);
    assert_int_equal(attempt_with(the_lab, 71 | TOUCHED).resent, 0);
}

static atomic_uint warnings;

static void on_log(void *opaque, enum vc_log_level level, const char *text)
{
    (void)opaque;
    if (level > VC_LOG_WARNING)
        return;
    print_message("%s\n", text);
    atomic_fetch_add(&warnings, 1);
}

/* The destination's log may have an older digest than its disk has content, in the same way. */
static void what_was_overwritten_at_the_destination_is_no_damage(void **state)
{
    static const struct vc_log log = {.fn = on_log, .max = VC_LOG_DEBUG};
    static const uint32_t now[] = {70, 70 | TOUCHED};

    (void)state;
    for (unsigned i = 0; i < VC_ARRAY_LEN(now); i++) {
        struct facts r;

        killed_attempt(the_lab, 0, 70, 71);
        the_lab->log = &log;
        r = attempt_with(the_lab, now[i]);
        the_lab->log = NULL;
        assert_true(r.repaired + r.resent > 0);
        assert_int_equal(atomic_load(&warnings), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_first_visit_that_was_cut_sends_only_the_rest),
        cmocka_unit_test(a_return_that_was_cut_sends_only_the_rest_of_what_changed),
        cmocka_unit_test(what_both_hosts_hold_is_used_where_nothing_had_arrived),
        cmocka_unit_test(attempts_add_up_and_no_number_of_them_loses_the_complete_generation),
        cmocka_unit_test(what_was_overwritten_is_not_taken_into_a_generation),
        cmocka_unit_test(what_was_overwritten_is_no_dictionary),
        cmocka_unit_test(what_was_overwritten_at_the_destination_is_no_damage),
    };
    static struct lab lab;
    int failed;

    rng_seed();
    lab_init(&lab);
    the_lab = &lab;
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    lab_fini(&lab);
    return failed;
}
