/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <sys/mman.h>

#include "damage.h"

#include "wire/wire.h"

#define MAX_KINDS 160

struct row {
    char kind[40];
    enum victim victim;
    unsigned visits, places, verdicts[N_VERDICTS];
};

/* Each worker writes to a table of its own, in memory that their parent sees. */
static struct row (*tables)[MAX_KINDS];
static unsigned n_tables, own_table;

void tally_init(unsigned workers)
{
    tables = mmap(NULL, workers * sizeof(*tables), PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(tables != MAP_FAILED);
    n_tables = workers;
}

void tally_as(unsigned worker)
{
    own_table = worker;
}

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

/* The row of a kind in a table; a new one if there is none. */
static struct row *row_of(struct row *rows, enum victim victim, const char *kind)
{
    struct row *r = rows;

    while (r->kind[0] && (strcmp(r->kind, kind) != 0 || r->victim != victim))
        r++;
    assert_true(r < rows + MAX_KINDS - 1);
    snprintf(r->kind, sizeof(r->kind), "%s", kind);
    r->victim = victim;
    return r;
}

void tally(enum victim victim, const char *kind, unsigned places, enum verdict v)
{
    struct row *r = row_of(tables[own_table], victim, kind);

    r->visits++;
    r->places += places;
    r->verdicts[v]++;
}

unsigned tallied_places(enum victim victim)
{
    unsigned places = 0;

    for (unsigned i = 0; i < n_tables; i++)
        for (const struct row *r = tables[i]; r->kind[0]; r++)
            places += r->victim == victim ? r->places : 0;
    return places;
}

static void add_up(struct row *all)
{
    for (unsigned i = 0; i < n_tables; i++)
        for (const struct row *r = tables[i]; r->kind[0]; r++) {
            struct row *sum = row_of(all, r->victim, r->kind);

            sum->visits += r->visits;
            sum->places += r->places;
            for (int k = 0; k < N_VERDICTS; k++)
                sum->verdicts[k] += r->verdicts[k];
        }
}

void print_tally(void)
{
    static const char *const names[] = {"image", "delta", "index", "manifest", "wire"};
    static struct row all[MAX_KINDS];
    unsigned visits = 0;

    add_up(all);
    print_message("%-34s %7s %7s | %7s %8s %7s %8s %7s\n", "damage", "places", "visits", "intact",
                  "repaired", "resent", "no reuse", "failed");
    for (const struct row *r = all; r->kind[0]; r++) {
        print_message("%-34s %7u %7u | %7u %8u %7u %8u %7u\n", r->kind, r->places, r->visits,
                      r->verdicts[INTACT], r->verdicts[REPAIRED], r->verdicts[RESENT],
                      r->verdicts[NO_REUSE], r->verdicts[FAILED]);
        visits += r->visits;
    }
    for (int k = 0; k < N_VICTIMS; k++)
        print_message("%s: %u places\n", names[k], tallied_places((enum victim)k));
    print_message("%u visits\n", visits);
}

enum verdict conclude(struct lab *lab, struct visit *v, enum victim victim, const char *kind,
                      unsigned places)
{
    enum verdict verdict = judge(v);

    tally(victim, kind, places, verdict);
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
