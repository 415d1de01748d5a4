/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "model.h"

/* The source's record when its session is over: the agent that settles it, and a person with
 * `vecycle resolve` at either host. All of them hold the VM's lock. */

static void keep(struct state *to, bool told, const struct steps *out)
{
    to->srec = is_broken(out, SETTLED_NOT_KEPT) ? SR_SETTLED : SR_KEPT;
    to->told = told && !is_broken(out, KEPT_FORGETS_TOLD);
}

static struct state *look(struct steps *out, const struct state *s, enum transition by)
{
    struct state *to = step(out, s, by);

    to->seen = to->cont3;
    return to;
}

/* *leaving*: what QEMU shows is written down. With counts, *left* may have failed to be written,
 * and the decision was sent all the same. */
static void look_back(struct steps *out, const struct state *s)
{
    enum look now = source_look(out, s);

    if (now == LOOK_CONTINUED)
        keep(look(out, s, T_R_KEPT), s->counts, out);
    else if (now == LOOK_NOT_OURS)
        keep(look(out, s, T_R_KEPT), false, out);
    else if (now == LOOK_OURS)
        look(out, s, T_R_LOOK)->srec = SR_LEFT;
}

/* *left*: the look, and the decision. */
static void give_word(struct steps *out, const struct state *s)
{
    enum look now = source_look(out, s);
    struct state *to;

    if (now == LOOK_CONTINUED && is_broken(out, DIAL_BEFORE_KEPT)) {
        to = look(out, s, T_R_ABANDON);
        send_message(out, to, MSG_ABANDON);
        to->sat = S_ASK;
    } else if (now == LOOK_CONTINUED) {
        keep(look(out, s, T_R_KEPT), true, out);
    } else if (now == LOOK_OURS || now == LOOK_GONE) {
        to = look(out, s, T_R_WORD);
        send_message(out, to, MSG_WORD);
        to->sat = S_ASK;
    }
}

static void abandon(struct steps *out, const struct state *s)
{
    struct state *to = step(out, s, T_R_ABANDON);

    send_message(out, to, source_is_seen_running(s) ? MSG_ABANDON_QUIT : MSG_ABANDON);
    to->sat = S_ASK;
}

/* Meanwhile the agent looks at its QEMU again, every second. */
static void watch(struct steps *out, const struct state *s)
{
    struct state *to;

    if (s->srec != SR_LEFT || is_broken(out, NO_WATCH) || is_broken(out, DIAL_BEFORE_KEPT) ||
        source_look(out, s) != LOOK_CONTINUED)
        return;
    to = look(out, s, T_R_KEPT);
    keep(to, true, out);
    end_source_session(to);
}

static void await_answer(struct steps *out, const struct state *s)
{
    bool word = s->srec == SR_LEFT;
    struct state *to;

    watch(out, s);
    if (s->answer == ANS_NONE) {
        if (s->msg || (s->dmsg && !s->dold))
            return;
        end_source_session(step(out, s, T_R_LOST));
        return;
    }
    if (s->answer == ANS_DONE && s->srec == SR_KEPT && s->sq == SQ_POSTMIGRATE &&
        s->mig == MIG_FAILED && s->spath == PATH_RIGHT) {
        to = step(out, s, T_R_STANDS); /* a person has to continue it */
        to->told = false;
        end_source_session(to);
        return;
    }
    to = step(out, s, T_R_HEARD);
    if (s->answer == ANS_DONE)
        to->sat = S_SETTLE;
    else if (word && (s->answer == ANS_NEVER_RAN ||
                      (is_broken(out, ANY_ERROR_IS_NEVER_RAN) && s->answer == ANS_DOUBT)))
        to->sat = S_NEVER;
    else
        end_source_session(to);
}

/* ---- a person ---- */

static bool waits_here(const struct state *s)
{
    return (s->sq == SQ_POSTMIGRATE || s->sq == SQ_PAUSED) && s->spath == PATH_RIGHT;
}

/* Without --force. */
static bool may_run_here(const struct steps *out, const struct state *s)
{
    bool asks = !is_broken(out, NO_QUERY_MIGRATE);

    if (!waits_here(s) || (asks && s->sq == SQ_POSTMIGRATE && s->mig != MIG_FAILED))
        return false;
    if (s->srec == SR_LEAVING)
        return !s->counts && s->mig != MIG_ACTIVE;
    return s->srec == SR_KEPT && !s->told;
}

static void run_at_source(struct steps *out, const struct state *s)
{
    struct state *to;

    if (!may_run_here(out, s))
        return;
    to = step(out, s, T_R_RUN_SOURCE);
    keep(to, s->told, out);
    source_cont(out, to);
}

static void run_at_dest(struct steps *out, const struct state *s)
{
    bool told = s->dtold || is_broken(out, WATCH_IS_DECISION);
    bool may =
        (s->drec == DR_ABOUT && told) || (s->drec == DR_ARRIVING && is_broken(out, RUN_UNGUARDED));

    if (!may || s->dlive || s->dat != D_IDLE || s->dpath != PATH_RIGHT ||
        (s->dq != DQ_ARRIVED && s->dq != DQ_STOPPED))
        return;
    dest_cont(out, step(out, s, T_R_RUN_DEST));
}

void later_steps(struct steps *out, const struct state *s)
{
    if (s->sup && s->sat == S_ASK)
        await_answer(out, s);
    if (s->sat == S_IDLE)
        run_at_source(out, s);
    run_at_dest(out, s);
    if (!s->sup || s->sat != S_IDLE)
        return;
    if (s->srec == SR_LEAVING)
        look_back(out, s);
    else if (s->srec == SR_LEFT)
        give_word(out, s);
    else if (s->srec == SR_KEPT)
        abandon(out, s);
}
