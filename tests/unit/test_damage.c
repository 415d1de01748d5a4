/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Damage of every kind, in thousands of seeded places, while a VM returns: to what the two hosts
 * keep, and to what crosses the wire. What must hold: the bytes that reach the destination's QEMU
 * are those of the source's, or a beginning of them; the damage is repaired, or the migration fails
 * with an error and works when it is tried again. */

#include "damage.h"

#include <sys/wait.h>

/* At least so many places of each kind: image, delta, index, manifest, frames on the wire. */
#define LEAST_PLACES (THREAD_SANITIZED ? 125u : SANITIZED ? 500u : 2000u)

struct lab *the_lab;
unsigned the_worker;

static int run_groups(void)
{
    const struct CMUnitTest shared[] = {
        cmocka_unit_test(damaged_stores_are_repaired_or_not_used),
        cmocka_unit_test(damaged_frames_are_noticed),
        cmocka_unit_test(a_connection_cut_anywhere_can_be_tried_again),
        cmocka_unit_test(a_damaged_word_settles_nothing_that_is_not_so),
        cmocka_unit_test(damage_meets_what_a_real_qemu_has_sent),
    };
    const struct CMUnitTest once[] = {
        cmocka_unit_test(a_false_prefix_costs_a_batch_and_no_page),
        cmocka_unit_test(a_seal_that_fails_twice_quarantines_both_ends),
        cmocka_unit_test(a_repair_gives_the_page_of_its_place_in_the_stream),
        cmocka_unit_test(a_source_does_not_wait_for_an_answer_that_has_passed),
        cmocka_unit_test(the_end_of_a_package_waits_for_a_seal_that_is_right),
    };
    int failed = cmocka_run_group_tests(shared, NULL, NULL);

    if (the_worker == 0)
        failed += cmocka_run_group_tests(once, NULL, NULL);
    return failed;
}

/* A process of its own, with its own seed. */
static int work(unsigned worker)
{
    static struct lab lab;
    int failed;

    the_worker = worker;
    lab_rng_seed(rng_state * WORKERS + worker);
    tally_as(worker);
    lab_init(&lab);
    the_lab = &lab;
    failed = run_groups();
    lab_fini(&lab);
    return failed;
}

static bool has_places(enum victim victim)
{
    return tallied_places(victim) >= LEAST_PLACES;
}

int main(void)
{
    bool good = true;

    rng_seed();
    tally_init(WORKERS);
    fflush(stdout);
    for (unsigned i = 0; i < WORKERS; i++) {
        pid_t pid = fork();

        if (pid == 0)
            exit(work(i) != 0);
        good &= pid > 0;
    }
    for (unsigned i = 0; i < WORKERS; i++) {
        int status;

        good &= wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    print_tally();
    for (enum victim v = IMAGE; v <= WIRE; v++)
        good &= has_places(v);
    return !good;
}
