/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "model.h"

/* The source's agent in the session of the migration. */

void send_message(const struct steps *out, struct state *to, enum message m)
{
    bool strict = is_broken(out, STRICT_UNSEEN);

    to->msg = m;
    to->stale =
        m == MSG_WORD && (to->cont3 || to->elsewhere || to->went_on) && (!to->unseen || strict);
    to->answer = ANS_NONE;
    if (m == MSG_WORD && !to->slive && to->spath == PATH_OTHER && to->sother == OTHER_RUNS)
        to->stale = 1; /* it was there to be seen */
    if (m == MSG_WORD && to->sq == SQ_GONE && to->aside)
        to->stale = 1; /* the same */
}

void give_up_waiting(struct state *to)
{
    if (to->msg && !to->old) {
        to->old = to->msg;
        to->old_stale = to->stale;
    }
    to->msg = MSG_NONE;
    to->stale = 0;
    to->answer = ANS_NONE;
    if (to->dmsg)
        to->dold = 1;
}

void end_source_session(struct state *to)
{
    give_up_waiting(to);
    if (to->slive)
        to->link = 0;
    if (to->shut == SHUT_SENT)
        to->shut = SHUT_NONE;
    to->slive = 0;
    to->sconn = 0;
    to->sresume = 0;
    to->asked = 0;
    to->sat = S_IDLE;
}

/* ---- the look ---- */

static bool continued_state(const struct steps *out, const struct state *s)
{
    if (s->sq == SQ_RUNS)
        return true;
    if (s->sq == SQ_PRELAUNCH && is_broken(out, PRELAUNCH_IS_RUN))
        return true;
    return is_broken(out, COUNTS_ARE_RUN) && s->counts && s->sq == SQ_POSTMIGRATE &&
           (s->mig == MIG_OTHER || (s->mig == MIG_OURS && !s->equal));
}

/* *left* has what QEMU says of this migration and of no other one. Before that the note has only
 * the counts, and when it was: they tell for as long as no other migration fits in since then. */
static bool is_ours(const struct steps *out, const struct state *s)
{
    if (s->mig == MIG_OTHER && (is_broken(out, OTHERS_ARE_OURS) ||
                                (is_broken(out, OTHERS_ARE_OURS_LEFT) && s->srec == SR_LEFT) ||
                                (is_broken(out, COUNTS_ARE_OURS) && s->counts)))
        return true;
    return s->mig == MIG_OURS && (s->srec != SR_LEAVING || (s->equal && !s->late));
}

static enum look look_at_it(const struct steps *out, const struct state *s)
{
    bool ours = is_ours(out, s);

    if (continued_state(out, s))
        return LOOK_CONTINUED;
    if (s->sq == SQ_POSTMIGRATE && ours && (s->counts || is_broken(out, OTHERS_ARE_OURS)))
        return LOOK_OURS;
    if (s->srec == SR_LEAVING && !s->counts && s->mig != MIG_ACTIVE)
        return LOOK_NOT_OURS;
    return LOOK_DOUBT;
}

/* The QEMU of the record cannot be reached: is it gone? */
static enum look look_for_process(const struct steps *out, const struct state *s)
{
    if (is_broken(out, ERRNO_IS_GONE))
        return LOOK_GONE;
    if (is_broken(out, ANY_PID) && !s->sknown) /* that one has ended */
        return LOOK_GONE;
    if (s->sq == SQ_GONE && s->aside && !is_broken(out, GONE_IS_NOWHERE))
        return LOOK_DOUBT;
    return s->sknown && s->sq == SQ_GONE ? LOOK_GONE : LOOK_DOUBT;
}

/* In the session the connection tells, if it is unbroken: nothing comes between `completed` and a
 * RESUME but a third party's `cont`. */
static enum look look_in_session(const struct steps *out, const struct state *s)
{
    if (s->sresume && !is_broken(out, RESUME_IGNORED))
        return LOOK_CONTINUED;
    if (s->sq == SQ_GONE && s->aside && !is_broken(out, GONE_IS_NOWHERE))
        return LOOK_DOUBT;
    if (s->sconn || is_broken(out, BROKEN_IS_UNBROKEN))
        return s->sq == SQ_GONE ? LOOK_GONE : LOOK_OURS;
    return look_for_process(out, s);
}

/* Another process with the VM's UUID has the path. */
static enum look look_at_other(const struct steps *out, const struct state *s)
{
    if (is_broken(out, ERRNO_IS_GONE))
        return LOOK_GONE;
    if (s->sknown) /* one that waits does not run the VM */
        return s->sother == OTHER_WAITS ? look_for_process(out, s) : LOOK_DOUBT;
    return s->sother == OTHER_RUNS ? LOOK_CONTINUED : LOOK_DOUBT;
}

enum look source_look(const struct steps *out, const struct state *s)
{
    if (s->slive)
        return look_in_session(out, s);
    if (s->sq != SQ_GONE && s->spath == PATH_RIGHT)
        return look_at_it(out, s);
    if (s->spath == PATH_OTHER && s->sother)
        return look_at_other(out, s);
    return look_for_process(out, s);
}

bool source_is_seen_running(const struct state *s)
{
    return s->sq == SQ_RUNS && (s->slive ? s->sconn : s->spath == PATH_RIGHT);
}

void check_source_goes_on(struct steps *out, const struct state *to)
{
    if (to->drun)
        breaks(out, "the source's VM goes on, and vecycle has continued the destination's");
}

void source_cont(struct steps *out, struct state *to)
{
    /* Who continues both is a third party, where this migration did not complete, or where it had
     * been continued here. */
    if (to->drun || (to->drun3 && to->mig == MIG_OURS && !to->cont3))
        breaks(out, "vecycle continues the source's VM, and the destination's has run");
    if (to->elsewhere)
        breaks(out, "vecycle continues the source's VM, and another migration took it away");
    to->sq = SQ_RUNS;
    to->went_on = 1;
    to->in_switch = 0;
}

/* ---- while the stream flows ---- */

static void close_socket(struct state *to)
{
    to->closed = 1;
    to->sat = S_CLOSED;
}

static void while_it_flows(struct steps *out, const struct state *s)
{
    struct state *to;

    if (s->sat == S_FLOW && s->shut == SHUT_SENT && s->link) {
        to = step(out, s, T_S_SHUT);
        to->shut = SHUT_HERE;
        to->sat = S_NOTE;
    }
    if (s->sq == SQ_GONE || s->mig != MIG_ACTIVE || !s->sconn)
        return;
    if (!s->link) {
        to = step(out, s, T_S_GIVE_UP);
        close_socket(to);
    } else if (s->faults < out->rules->faults) {
        to = step(out, s, T_S_CANCEL);
        to->faults++;
        close_socket(to);
    }
}

static void pass_shut(struct steps *out, const struct state *s)
{
    bool early = is_broken(out, SHUT_BEFORE_NOTE);
    struct state *to = step(out, s, (s->sat == S_NOTE) != early ? T_S_NOTE : T_S_PASS);

    if ((s->sat == S_NOTE) != early)
        to->counts = 1;
    else
        to->passed = 1;
    to->sat = s->sat == S_NOTE ? S_PASS : S_WAIT;
}

/* What QEMU says of the migration, once it is over. */
static void take_verdict(struct steps *out, const struct state *s)
{
    struct state *to;

    if (s->sq != SQ_GONE && !s->sconn) { /* nobody says what becomes of it */
        to = step(out, s, T_S_UNSETTLED);
        to->closed = 1;
        end_source_session(to);
    } else if (s->sq == SQ_GONE) {
        if (s->sat == S_CLOSED) { /* it may have gone on, or completed, before */
            to = step(out, s, T_S_UNSETTLED);
            end_source_session(to);
        } else if (!s->in_switch || !s->link || s->shut) {
            to = step(out, s, T_S_ORPHAN);
            if (s->in_switch && s->sknown && s->sconn)
                to->sat = S_DONE;
            else if (s->in_switch)
                end_source_session(to);
            else
                to->sat = S_KEEP;
        }
    } else if (s->mig == MIG_OURS ||
               (s->mig == MIG_OTHER && is_broken(out, OTHERS_ARE_OURS_LIVE))) {
        step(out, s, T_S_COMPLETED)->sat = S_DONE;
    } else if (s->mig == MIG_FAILED || s->mig == MIG_OTHER) {
        to = step(out, s, T_S_FAILED);
        to->closed = 1;
        to->sat = S_KEEP;
    }
}

/* ---- the decision ---- */

static void write_left(struct steps *out, const struct state *s)
{
    struct state *to = step(out, s, T_S_LEFT);
    /* The look came before; what it saw is what counts then. */
    bool early = is_broken(out, LOOK_BEFORE_LEFT);
    enum look look = source_look(out, s);

    to->srec = SR_LEFT;
    to->sat = S_LOOK;
    if (early && look == LOOK_CONTINUED)
        to->sat = S_KEEP;
    if (s->faults < out->rules->faults && !early) {
        to = step(out, s, T_F_LEFT);
        to->faults++;
        to->sat = S_LOOK;
    }
}

static void continued(struct steps *out, const struct state *s, enum source_at next)
{
    step(out, s, T_S_CONTINUED)->sat = next;
}

static void decide(struct steps *out, const struct state *s)
{
    enum look look = source_look(out, s);
    struct state *to;

    if (is_broken(out, LOOK_BEFORE_LEFT))
        look = LOOK_OURS;
    if (look == LOOK_CONTINUED) {
        continued(out, s, S_KEEP);
    } else if ((look == LOOK_OURS || look == LOOK_GONE) && s->link) {
        to = step(out, s, T_S_WORD);
        send_message(out, to, MSG_WORD);
        to->sat = S_WORD;
    } else {
        end_source_session(step(out, s, T_S_UNSETTLED));
    }
}

static void await_answer(struct steps *out, const struct state *s)
{
    enum answer a = s->answer;
    struct state *to;

    if (s->sresume && !is_broken(out, RESUME_IGNORED) && !is_broken(out, LATE_RESUME_IGNORED)) {
        continued(out, s, S_KEEP_TOLD);
        return;
    }
    if (a == ANS_NONE && s->link)
        return;
    to = step(out, s, a ? T_S_HEARD : T_S_UNSETTLED);
    if (a == ANS_DONE)
        to->sat = S_SETTLE;
    else if (a == ANS_NEVER_RAN || (is_broken(out, ANY_ERROR_IS_NEVER_RAN) && a == ANS_DOUBT))
        to->sat = S_NEVER;
    else
        end_source_session(to);
}

/* NEVER_RAN came, in whichever session: look, `cont`, settled. */
static void take_back(struct steps *out, const struct state *s)
{
    enum look look = source_look(out, s);
    struct state *to = step(out, s, T_S_TAKE_BACK);

    to->answer = ANS_NONE;
    if (look == LOOK_CONTINUED) { /* by somebody, meanwhile */
        to->sat = S_SETTLE;
    } else if (look == LOOK_OURS && is_broken(out, KEPT_BEFORE_CONT)) {
        to->srec = SR_KEPT;
        to->told = 1;
        to->sat = S_CONT;
    } else if (look == LOOK_OURS) {
        if (!s->was_paused)
            source_cont(out, to);
        to->sat = S_SETTLE;
    } else { /* in doubt, or lost */
        end_source_session(to);
    }
}

static void await_abandon(struct steps *out, const struct state *s)
{
    struct state *to;

    if (!s->msg && !s->answer && (!s->dmsg || s->dold) && s->link && !s->asked) {
        to = step(out, s, T_S_ABANDON);
        send_message(out, to, source_is_seen_running(s) ? MSG_ABANDON_QUIT : MSG_ABANDON);
        to->asked = 1;
        return;
    }
    if (s->answer == ANS_NONE && s->link)
        return;
    to = step(out, s, T_S_CONFIRMED);
    if (s->answer == ANS_DONE)
        to->sat = S_SETTLE;
    else
        end_source_session(to);
}

static void write_end(struct steps *out, const struct state *s)
{
    bool settled = s->sat == S_SETTLE || is_broken(out, SETTLED_NOT_KEPT);
    struct state *to = step(out, s, settled ? T_S_SETTLED : T_S_KEPT);

    to->srec = settled ? SR_SETTLED : SR_KEPT;
    to->seen = to->cont3;
    if (settled) {
        end_source_session(to);
        return;
    }
    to->told = s->sat == S_KEEP_TOLD && !is_broken(out, KEPT_FORGETS_TOLD);
    give_up_waiting(to);
    to->sat = S_ABANDON;
}

void source_steps(struct steps *out, const struct state *s)
{
    if (!s->sup)
        return;
    switch (s->sat) {
    case S_FLOW:
        while_it_flows(out, s);
        take_verdict(out, s);
        break;
    case S_NOTE:
    case S_PASS:
        pass_shut(out, s);
        while_it_flows(out, s);
        take_verdict(out, s);
        break;
    case S_WAIT:
        while_it_flows(out, s);
        take_verdict(out, s);
        break;
    case S_CLOSED:
        take_verdict(out, s);
        break;
    case S_DONE:
        write_left(out, s);
        break;
    case S_LOOK:
        decide(out, s);
        break;
    case S_WORD:
        await_answer(out, s);
        break;
    case S_ABANDON:
        await_abandon(out, s);
        break;
    case S_NEVER:
        take_back(out, s);
        break;
    case S_CONT:
        source_cont(out, step(out, s, T_S_TAKE_BACK));
        out->v[out->n - 1].to.sat = S_SETTLE;
        break;
    case S_KEEP:
    case S_KEEP_TOLD:
    case S_SETTLE:
        write_end(out, s);
        break;
    default:
        break;
    }
}
