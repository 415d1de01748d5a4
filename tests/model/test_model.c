/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model.h"
#include "unit/sanitized.h"

/* The design is explored with as many faults and third parties as a test has time for; each rule is
 * then taken away, with as few as show what it is for. By hand:
 *
 *     test_model FAULTS THIRD            the design, with more of them
 *     test_model FAULTS THIRD RULE       without that rule (its place in MODEL_RULES, from 0) */

#define BOTH_RUN "vecycle continues"
#define A_LIE "the destination"
#define STUCK "nobody can continue"
#define OPEN "the agents could settle"
#define OTHERS "vecycle ends a QEMU"

/* What comes of the design without a rule. */
struct way {
    enum broken rule;
    unsigned faults, third;
    bool liveness;
    const char *bad; /* how it begins */
};

/* Seven ways to run a VM twice, which vecycle had before it wrote down its evidence. */
static const struct way seven_ways[] = {
    {ERRNO_IS_GONE, 1, 2, false, BOTH_RUN},          {ERRNO_IS_NEVER_RAN, 1, 1, false, BOTH_RUN},
    {ANY_ERROR_IS_NEVER_RAN, 1, 0, false, BOTH_RUN}, {RUN_UNGUARDED, 1, 0, false, BOTH_RUN},
    {OTHERS_ARE_OURS, 1, 1, false, BOTH_RUN},        {DIAL_BEFORE_KEPT, 2, 2, false, BOTH_RUN},
    {NO_ABOUT_TO_RUN, 1, 0, false, A_LIE},
};

static const struct way other_ways[] = {
    {OTHERS_ARE_OURS_LEFT, 1, 2, false, BOTH_RUN}, {ANY_PID, 1, 1, false, BOTH_RUN},
    {SETTLED_NOT_KEPT, 0, 1, true, OPEN},          {PRELAUNCH_IS_RUN, 1, 1, true, STUCK},
    {COUNTS_ARE_RUN, 1, 0, true, STUCK},           {KEPT_FORGETS_TOLD, 1, 2, false, BOTH_RUN},
    {NO_QUERY_MIGRATE, 1, 1, false, BOTH_RUN},     {RESUME_IGNORED, 0, 1, false, BOTH_RUN},
    {LATE_RESUME_IGNORED, 1, 2, false, BOTH_RUN},  {LOOK_BEFORE_LEFT, 0, 1, false, BOTH_RUN},
    {KEPT_BEFORE_CONT, 1, 1, true, STUCK},         {INMIGRATE_SETTLES, 1, 1, true, STUCK},
    {ABANDON_UNSEEN, 1, 1, false, A_LIE},          {QUIT_ANYBODY, 1, 1, false, OTHERS},
    {SUSPEND_TOLD_FIRST, 1, 0, true, STUCK},       {NO_WATCH, 1, 2, false, BOTH_RUN},
    {SHUT_BEFORE_NOTE, 1, 0, true, STUCK},         {CONNECTION_OPTIONAL, 1, 1, false, A_LIE},
    {BROKEN_IS_UNBROKEN, 1, 1, false, BOTH_RUN},   {VOID_AFTER_NEVER_RAN, 1, 1, true, OPEN},
    {WATCH_IS_DECISION, 1, 2, false, BOTH_RUN},    {OTHERS_ARE_OURS_LIVE, 0, 2, false, BOTH_RUN},
    {COUNTS_ARE_OURS, 1, 2, false, BOTH_RUN},      {GONE_IS_NOWHERE, 1, 2, false, BOTH_RUN},
};

static bool begins(const char *text, const char *with)
{
    return !strncmp(text, with, strlen(with));
}

static void finds(const struct way *w, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct rules rules = {WITHOUT(w[i].rule), w[i].faults, w[i].third};
        struct finding f = explore(&rules, w[i].liveness, false);

        if (f.bad && begins(f.bad, w[i].bad))
            continue;
        print_error("%s: %s\n", rule_texts[w[i].rule], f.bad ? f.bad : "nothing was found");
        fail();
    }
}

static void never_two_by_vecycle_and_one_can_always_be_continued(void **state)
{
    struct rules rules = {0, SANITIZED ? 1 : 2, SANITIZED ? 1 : 2};
    struct finding f = explore(&rules, true, true);

    (void)state;
    print_message("%lu states, %lu edges\n", f.states, f.edges);
    assert_null(f.bad);
}

static void the_model_finds_the_seven_ways_in_which_two_ran(void **state)
{
    (void)state;
    finds(seven_ways, sizeof(seven_ways) / sizeof(*seven_ways));
}

static void the_model_finds_what_every_other_rule_is_for(void **state)
{
    (void)state;
    finds(other_ways, sizeof(other_ways) / sizeof(*other_ways));
}

static void every_rule_is_taken_away_once(void **state)
{
    uint32_t all = 0;

    (void)state;
    for (size_t i = 0; i < sizeof(seven_ways) / sizeof(*seven_ways); i++)
        all |= WITHOUT(seven_ways[i].rule);
    for (size_t i = 0; i < sizeof(other_ways) / sizeof(*other_ways); i++)
        all |= WITHOUT(other_ways[i].rule);
    assert_int_equal(all, WITHOUT(STRICT_UNSEEN) - 1);
}

/* handover.md, "If QEMU is gone and the record says left". */
static void the_gap_that_is_left_needs_an_agent_that_could_not_look(void **state)
{
    static const struct way strict = {STRICT_UNSEEN, 1, 1, false, BOTH_RUN};
    struct rules no_faults = {WITHOUT(STRICT_UNSEEN), 0, 2};

    (void)state;
    finds(&strict, 1);
    /* Nothing fails, and two acts of others: the agent is there, and looks. It takes a third act to
     * hide the socket from it. */
    assert_null(explore(&no_faults, false, true).bad);
}

static int by_hand(int argc, char **argv)
{
    struct rules rules = {argc > 3 ? WITHOUT(atoi(argv[3])) : 0, (unsigned)atoi(argv[1]),
                          (unsigned)atoi(argv[2])};
    struct finding f = explore(&rules, true, true);

    printf("%s%s%s: %lu states, %lu edges\n", argc > 3 ? rule_texts[atoi(argv[3])] : "the design",
           f.bad ? ": " : "", f.bad ? f.bad : "", f.states, f.edges);
    return f.bad != NULL;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(never_two_by_vecycle_and_one_can_always_be_continued),
        cmocka_unit_test(the_model_finds_the_seven_ways_in_which_two_ran),
        cmocka_unit_test(the_model_finds_what_every_other_rule_is_for),
        cmocka_unit_test(every_rule_is_taken_away_once),
        cmocka_unit_test(the_gap_that_is_left_needs_an_agent_that_could_not_look),
    };

    if (argc > 2)
        return by_hand(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
