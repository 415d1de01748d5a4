/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

/* Breadth first, so that the way to what is found is a shortest one. Every state that was met is
 * kept, with the state and the transition that led there; of transitions that need neither a fault
 * nor a third party, the edges too. */

_Static_assert(sizeof(struct state) == 16, "a state is its own key");

#define NOTHING UINT32_MAX
#define BY_NEED (1u << 31) /* an edge that an agent alone does not take */

struct seen {
    struct state *state;
    uint32_t *parent, *first_edge;
    uint8_t *by;
    uint32_t n, max;
    uint32_t *slots, mask;
    uint32_t *edges, n_edges, max_edges;
};

const char *const transition_names[N_TRANSITIONS] = {
#define X(id, name, actor) [T_##id] = name,
    MODEL_TRANSITIONS(X)
#undef X
};
const enum actor transition_actors[N_TRANSITIONS] = {
#define X(id, name, actor) [T_##id] = BY_##actor,
    MODEL_TRANSITIONS(X)
#undef X
};

const char *const rule_texts[N_BROKEN] = {
#define X(id, text) [id] = text,
    MODEL_RULES(X)
#undef X
        [STRICT_UNSEEN] = "what nobody could see is not excused",
};

struct state *step(struct steps *out, const struct state *from, enum transition by)
{
    struct step *st = &out->v[out->n++];

    if (out->n > MAX_STEPS)
        abort();
    st->to = *from;
    st->by = by;
    st->bad = NULL;
    return &st->to;
}

void breaks(struct steps *out, const char *promise)
{
    out->v[out->n - 1].bad = promise;
}

static void *grow(void *p, size_t n, size_t bytes)
{
    p = realloc(p, n * bytes);
    if (!p)
        abort();
    return p;
}

/* ---- the states that were met ---- */

static uint32_t hash(const struct state *s)
{
    uint64_t w[2];

    memcpy(w, s, sizeof(w));
    w[0] ^= w[1] * 0x9e3779b97f4a7c15ull;
    w[0] = (w[0] ^ (w[0] >> 30)) * 0xbf58476d1ce4e5b9ull;
    w[0] = (w[0] ^ (w[0] >> 27)) * 0x94d049bb133111ebull;
    return (uint32_t)(w[0] ^ (w[0] >> 31));
}

static void make_room(struct seen *v)
{
    if (v->n < v->max)
        return;
    v->max = v->max ? 2 * v->max : 1u << 16;
    v->state = grow(v->state, v->max, sizeof(*v->state));
    v->parent = grow(v->parent, v->max, sizeof(*v->parent));
    v->first_edge = grow(v->first_edge, v->max + 1, sizeof(*v->first_edge));
    v->by = grow(v->by, v->max, sizeof(*v->by));
    v->mask = 2 * v->max - 1;
    v->slots = grow(v->slots, 2 * (size_t)v->max, sizeof(*v->slots));
    memset(v->slots, 0xff, 2 * (size_t)v->max * sizeof(*v->slots));
    for (uint32_t i = 0; i < v->n; i++) {
        uint32_t at = hash(&v->state[i]) & v->mask;

        while (v->slots[at] != NOTHING)
            at = (at + 1) & v->mask;
        v->slots[at] = i;
    }
}

static uint32_t meet(struct seen *v, const struct state *s, uint32_t parent, enum transition by)
{
    uint32_t at;

    make_room(v);
    for (at = hash(s) & v->mask; v->slots[at] != NOTHING; at = (at + 1) & v->mask)
        if (!memcmp(&v->state[v->slots[at]], s, sizeof(*s)))
            return v->slots[at];
    v->slots[at] = v->n;
    v->state[v->n] = *s;
    v->parent[v->n] = parent;
    v->by[v->n] = (uint8_t)by;
    return v->n++;
}

static void forget(struct seen *v)
{
    free(v->state);
    free(v->parent);
    free(v->first_edge);
    free(v->by);
    free(v->slots);
    free(v->edges);
}

static void note_edge(struct seen *v, enum transition by, uint32_t to)
{
    enum actor who = transition_actors[by];

    if (who == BY_THIRD || who == BY_FAULT)
        return;
    if (v->n_edges == v->max_edges) {
        v->max_edges = v->max_edges ? 2 * v->max_edges : 1u << 18;
        v->edges = grow(v->edges, v->max_edges, sizeof(*v->edges));
    }
    v->edges[v->n_edges++] = to | (who == BY_PERSON || who == BY_REPAIR ? BY_NEED : 0);
}

/* ---- the beginning ---- */

static void meet_starts(struct seen *v)
{
    for (unsigned i = 0; i < 6; i++) {
        struct state s;

        memset(&s, 0, sizeof(s));
        s.sknown = i != 1 && i != 3;
        s.dknown = i != 2 && i != 3;
        s.equal = i != 4;
        s.suspend = i == 5;
        s.sup = s.dup = s.slive = s.dlive = s.sconn = s.dconn = s.link = 1;
        s.sat = S_FLOW;
        meet(v, &s, NOTHING, T_START);
    }
}

static void steps_from(struct steps *out, const struct state *s)
{
    out->n = 0;
    source_steps(out, s);
    later_steps(out, s);
    dest_steps(out, s);
    world_steps(out, s);
    third_steps(out, s);
    fault_steps(out, s);
}

/* ---- what is told ---- */

static const char *const sq_names[] = {"runs",        "paused",    "finish",
                                       "postmigrate", "prelaunch", "gone"};
static const char *const mig_names[] = {"active", "ours", "other", "failed"};
static const char *const dq_names[] = {"inmigrate", "arrived",   "runs",
                                       "stopped",   "prelaunch", "gone"};
static const char *const srec_names[] = {"leaving", "left", "kept", "settled"};
static const char *const drec_names[] = {"arriving", "about", "settled", "void"};
static const char *const path_names[] = {"", " path!", " path-other"};
static const char *const sat_names[] = {"idle", "flow", "note",      "pass",    "wait", "done",
                                        "look", "word", "closed",    "abandon", "ask",  "never",
                                        "cont", "keep", "keep-told", "settle"};

void print_state(const struct state *s)
{
    printf("[S %s/%s%s%s%s%s%s | %s%s %s%s%s] [D %s%s%s%s%s | %s%s at %d msg %d] link %d msg %d%s "
           "ans %d old %d",
           sq_names[s->sq], mig_names[s->mig], path_names[s->spath], s->sknown ? "" : " unknown",
           s->went_on ? " WENT-ON" : "", s->cont3 ? " CONT3" : "", s->elsewhere ? " ELSEWHERE" : "",
           s->sup ? "" : "down ", sat_names[s->sat], srec_names[s->srec],
           s->counts ? "+counts" : "", s->told ? "+told" : "", dq_names[s->dq],
           path_names[s->dpath], s->dknown ? "" : " unknown", s->drun ? " RAN" : "",
           s->drun3 ? " RAN3" : "", s->dup ? "" : "down ", drec_names[s->drec], s->dat, s->dmsg,
           s->link, s->msg, s->stale ? "!" : "", s->answer, s->old);
}

static unsigned print_way(const struct seen *v, uint32_t at, bool verbose)
{
    unsigned depth = v->parent[at] == NOTHING ? 0 : print_way(v, v->parent[at], verbose) + 1;

    if (verbose) {
        printf("%3u %-48s ", depth, transition_names[v->by[at]]);
        print_state(&v->state[at]);
        printf("\n");
    }
    return depth;
}

static void report(const struct seen *v, uint32_t at, const struct step *last, const char *bad,
                   bool verbose, struct finding *f)
{
    f->bad = bad;
    if (verbose)
        printf("--- %s\n", bad);
    f->depth = print_way(v, at, verbose);
    if (verbose && last) {
        printf("    %-48s ", transition_names[last->by]);
        print_state(&last->to);
        printf("\n");
    }
}

/* ---- liveness ---- */

/* Which states lead to a good one, by edges without @avoid. */
static uint8_t *spread(const struct seen *v, uint8_t *good, uint32_t avoid)
{
    bool more = true;

    while (more) {
        more = false;
        for (uint32_t i = v->n; i-- > 0;) {
            if (good[i])
                continue;
            for (uint32_t e = v->first_edge[i]; e < v->first_edge[i + 1] && !good[i]; e++)
                good[i] = !(v->edges[e] & avoid) && good[v->edges[e] & ~BY_NEED];
            more |= good[i];
        }
    }
    return good;
}

static void look_for_dead_ends(const struct seen *v, const struct rules *rules, bool verbose,
                               struct finding *f)
{
    const struct steps r = {.rules = rules};

    for (int agents = 0; agents < 2 && !f->bad; agents++) {
        uint8_t *good = calloc(v->n, 1);

        if (!good)
            abort();
        for (uint32_t i = 0; i < v->n; i++)
            good[i] = agents ? is_settled(&r, &v->state[i]) : person_can_help(&v->state[i]);
        spread(v, good, agents ? BY_NEED : 0);
        for (uint32_t i = 0; i < v->n && !f->bad; i++)
            if (!good[i])
                report(v, i, NULL,
                       agents ? "the agents could settle it, and do not"
                              : "nobody can continue the VM any more",
                       verbose, f);
        free(good);
    }
}

/* ---- the whole ---- */

struct finding explore(const struct rules *rules, bool liveness, bool verbose)
{
    struct steps out = {.rules = rules};
    struct finding f = {0};
    struct seen v = {0};

    meet_starts(&v);
    for (uint32_t i = 0; i < v.n && !f.bad; i++) {
        struct state s = v.state[i];

        steps_from(&out, &s);
        v.first_edge[i] = v.n_edges;
        for (unsigned k = 0; k < out.n && !f.bad; k++) {
            if (out.v[k].bad)
                report(&v, i, &out.v[k], out.v[k].bad, verbose, &f);
            else
                note_edge(&v, out.v[k].by, meet(&v, &out.v[k].to, i, out.v[k].by));
        }
        v.first_edge[i + 1] = v.n_edges;
    }
    f.states = v.n;
    f.edges = v.n_edges;
    if (!f.bad && liveness)
        look_for_dead_ends(&v, rules, verbose, &f);
    forget(&v);
    return f;
}
