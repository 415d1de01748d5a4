/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "damage.h"

#include "wire/wire.h"

#define MAX_KINDS 128

static struct row {
    char kind[40];
    unsigned visits, places, verdicts[N_VERDICTS];
} rows[MAX_KINDS];

enum verdict judge(const struct visit *v)
{
    const struct vc_session_result *r = &v->source.result;

    if (v->stalled)
        fail_msg("the session stalled: source: %s; destination: %s", v->source.err.message,
                 v->dest.err.message);
    assert_false(v->wrong);
    if (v->source.rc) {
        assert_true(v->source.rc < 0 && v->source.err.code == v->source.rc);
        assert_string_not_equal(v->source.err.message, "");
        return FAILED;
    }
    assert_true(v->whole);
    /* Nobody builds on a generation that the two hosts hold differently. */
    if (v->source.result.confirmed && v->dest.result.confirmed)
        assert_memory_equal(&v->source.result.generation, &v->dest.result.generation,
                            sizeof(struct vc_id));
    if (r->resent_batches)
        return RESENT;
    if (r->repaired_pages)
        return REPAIRED;
    return r->pages_same ? INTACT : NO_REUSE;
}

void tally(const char *kind, unsigned places, enum verdict v)
{
    struct row *r = rows;

    while (r->kind[0] && strcmp(r->kind, kind) != 0)
        r++;
    assert_true(r < rows + MAX_KINDS - 1);
    snprintf(r->kind, sizeof(r->kind), "%s", kind);
    r->visits++;
    r->places += places;
    r->verdicts[v]++;
}

void print_tally(void)
{
    unsigned places = 0, visits = 0;

    print_message("%-34s %7s %7s | %7s %8s %7s %8s %7s\n", "damage", "places", "visits", "intact",
                  "repaired", "resent", "no reuse", "failed");
    for (struct row *r = rows; r->kind[0]; r++) {
        print_message("%-34s %7u %7u | %7u %8u %7u %8u %7u\n", r->kind, r->places, r->visits,
                      r->verdicts[INTACT], r->verdicts[REPAIRED], r->verdicts[RESENT],
                      r->verdicts[NO_REUSE], r->verdicts[FAILED]);
        places += r->places;
        visits += r->visits;
    }
    print_message("%u places in %u visits\n", places, visits);
}

enum verdict conclude(struct lab *lab, struct visit *v, const char *kind, unsigned places)
{
    enum verdict verdict = judge(v);

    tally(kind, places, verdict);
    if (verdict == FAILED) {
        struct visit again = {.from = v->from, .stream = v->stream};

        lab_visit(lab, &again);
        if (judge(&again) == FAILED)
            fail_msg("after '%s': %s", v->source.err.message, again.source.err.message);
        if (v->source.rc == VC_E_SEAL && v->dest.rc == VC_E_SEAL)
            assert_int_equal(again.source.result.pages_same, 0);
    }
    return verdict;
}
