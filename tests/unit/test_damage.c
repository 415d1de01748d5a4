/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Damage of every kind, in thousands of seeded places, while a VM returns: to what the two hosts
 * keep, and to what crosses the wire. What must hold: the bytes that reach the destination's QEMU
 * are those of the source's, or a beginning of them; the damage is repaired, or the migration fails
 * with an error and works when it is tried again. */

#include "damage.h"

struct lab *the_lab;

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damaged_stores_are_repaired_or_not_used),
        cmocka_unit_test(a_false_prefix_costs_a_batch_and_no_page),
        cmocka_unit_test(a_seal_that_fails_twice_quarantines_both_ends),
        cmocka_unit_test(a_repair_gives_the_page_of_its_place_in_the_stream),
        cmocka_unit_test(damaged_frames_are_noticed),
        cmocka_unit_test(a_connection_cut_anywhere_can_be_tried_again),
    };
    static struct lab lab;
    int failed;

    rng_seed();
    lab_init(&lab);
    the_lab = &lab;
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    print_tally();
    lab_fini(&lab);
    return failed;
}
