/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "model.h"

/* The destination's agent: in the session of the migration, and in later ones. */

/** What its QEMU shows. */
enum seen { SEEN_DOUBT, SEEN_GONE, SEEN_WAITS, SEEN_PAUSED, SEEN_RUNS, SEEN_ELSE };

static enum seen own_state(const struct state *s)
{
    switch (s->dq) {
    case DQ_INMIGRATE:
        return SEEN_WAITS;
    case DQ_ARRIVED:
    case DQ_STOPPED:
        return SEEN_PAUSED;
    case DQ_RUNS:
        return SEEN_RUNS;
    default:
        return SEEN_ELSE;
    }
}

/* Over the kept connection first, then by the path. */
static enum seen look(const struct steps *out, const struct state *s)
{
    if (s->dq != DQ_GONE && (s->dconn || s->dpath == PATH_RIGHT))
        return own_state(s);
    if (s->dq == DQ_GONE && s->dknown)
        return s->dpath == PATH_OTHER && s->dother && !s->dconn ? SEEN_DOUBT : SEEN_GONE;
    if (!s->dconn && s->dpath == PATH_OTHER && s->dother && !s->dknown)
        return SEEN_WAITS;
    if (is_broken(out, ANY_PID) && !s->dknown)
        return SEEN_GONE;
    return SEEN_DOUBT;
}

void dest_cont(struct steps *out, struct state *to)
{
    bool copy_counts_there =
        to->sq == SQ_FINISH || ((to->sq == SQ_RUNS || to->sq == SQ_PAUSED) &&
                                (to->mig == MIG_ACTIVE || to->mig == MIG_FAILED));

    if (to->dstale)
        breaks(out, "vecycle continues the destination's VM, and the source's had run when that "
                    "was decided");
    if (to->went_on)
        breaks(out, "vecycle continues the destination's VM, and the source's has gone on");
    if (copy_counts_there)
        breaks(
            out,
            "vecycle continues the destination's VM, and the source's migration did not complete");
    to->dq = DQ_RUNS;
    to->drun = 1;
    if (to->dconn)
        to->dresume = 1;
}

/* ---- a message comes ---- */

static void take_message(struct steps *out, const struct state *s)
{
    bool reaches = s->slive ? s->link && s->dlive : !s->dlive;
    struct state *to;

    if (s->msg && reaches && s->answer == ANS_NONE) {
        to = step(out, s, T_D_GET);
        to->dmsg = s->msg;
        to->dstale = s->stale;
        to->dold = 0;
        to->msg = MSG_NONE;
        to->stale = 0;
        to->dat = D_GOT;
    }
    if (s->old) {
        to = step(out, s, T_D_GET_OLD);
        to->dmsg = s->old;
        to->dstale = s->old_stale;
        to->dold = 1;
        to->old = MSG_NONE;
        to->old_stale = 0;
        to->dat = D_GOT;
    }
}

static void say(struct steps *out, const struct state *s, enum transition by, enum dest_at what)
{
    step(out, s, by)->dat = what;
}

/* ---- continue, or stay ---- */

/* The VM died, and it is certain that it never ran. */
static bool never_ran(const struct steps *out, const struct state *s)
{
    if (s->dq != DQ_GONE || s->drec != DR_ARRIVING)
        return false;
    if (is_broken(out, CONNECTION_OPTIONAL) || (is_broken(out, BROKEN_IS_UNBROKEN) && s->dlive))
        return s->dknown && !s->dresume;
    if (is_broken(out, ANY_PID) && !s->dknown)
        return s->dconn && !s->dresume;
    return s->dconn && !s->dresume && s->dknown;
}

static void judge_death(struct steps *out, const struct state *s)
{
    struct state *to;

    if (!never_ran(out, s)) {
        say(out, s, T_D_DOUBT, D_SAY_DOUBT);
        return;
    }
    to = step(out, s, T_D_NEVER_RAN);
    to->dat = D_SAY_NEVER;
    if (!is_broken(out, VOID_AFTER_NEVER_RAN))
        to->drec = DR_VOID;
    if (to->drun || to->drun3)
        breaks(out, "the destination says that the VM never ran, and it did");
}

static void stays(struct steps *out, const struct state *s)
{
    struct state *to = step(out, s, T_D_STAYS);

    to->dat = s->suspend && is_broken(out, SUSPEND_TOLD_FIRST) ? D_TELL : D_SETTLE;
    to->stayed = s->dq != DQ_GONE;
}

static void about_to_run(struct steps *out, const struct state *s)
{
    struct state *to = step(out, s, T_D_ABOUT);

    if (!is_broken(out, NO_ABOUT_TO_RUN))
        to->drec = DR_ABOUT;
    to->dtold = to->drec == DR_ABOUT;
    to->dat = D_CONT;
}

static void unreachable(struct steps *out, const struct state *s)
{
    struct state *to;

    if (!is_broken(out, ERRNO_IS_NEVER_RAN) || s->dconn) {
        say(out, s, T_D_DOUBT, D_SAY_DOUBT);
        return;
    }
    to = step(out, s, T_D_NEVER_RAN);
    to->drec = DR_VOID;
    to->dat = D_SAY_NEVER;
}

static void obey(struct steps *out, const struct state *s)
{
    if (s->drec == DR_SETTLED || s->drec == DR_VOID) {
        say(out, s, T_D_AGAIN, s->drec == DR_VOID ? D_SAY_NEVER : D_SAY_DONE);
        return;
    }
    switch (look(out, s)) {
    case SEEN_DOUBT:
        unreachable(out, s);
        break;
    case SEEN_GONE:
        judge_death(out, s);
        break;
    case SEEN_WAITS:
        if (is_broken(out, INMIGRATE_SETTLES))
            stays(out, s);
        else
            say(out, s, T_D_DOUBT, D_SAY_DOUBT);
        break;
    case SEEN_PAUSED:
        if (s->suspend)
            stays(out, s);
        else
            about_to_run(out, s);
        break;
    default:
        stays(out, s);
        break;
    }
}

static void cont(struct steps *out, const struct state *s)
{
    struct state *to;

    if (s->dq == DQ_GONE || (!s->dconn && s->dpath != PATH_RIGHT)) {
        say(out, s, T_D_CONT_FAILS, D_GOT);
        return;
    }
    if (s->dq == DQ_PRELAUNCH || s->dq == DQ_RUNS) { /* somebody came between */
        stays(out, s);
        return;
    }
    to = step(out, s, T_D_CONT);
    to->dat = D_TELL;
    dest_cont(out, to);
    if (s->faults == out->rules->faults)
        return;
    to = step(out, s, T_F_DIES); /* before it has told anybody */
    to->faults++;
    dest_cont(out, to);
    to->dresume = s->dresume;
    to->dq = DQ_GONE;
    to->dat = D_GOT;
}

/* ---- abandon ---- */

static bool ran_as_seen(const struct state *s, enum seen now)
{
    return now == SEEN_RUNS || s->dresume;
}

static void make_void(struct steps *out, const struct state *s)
{
    struct state *to = step(out, s, T_D_VOID);

    to->drec = DR_VOID;
    to->dat = s->dmsg == MSG_ABANDON_QUIT ? D_QUIT : D_SAY_DONE;
    /* Where another process stands at the path of a QEMU without identity, that one is looked at.
     */
    if (s->drun || (s->dq == DQ_RUNS && (s->dconn || s->dpath == PATH_RIGHT)) || s->dresume)
        breaks(out, "the destination's record says that the VM never ran, and it did");
}

static void abandon(struct steps *out, const struct state *s)
{
    enum seen now = look(out, s);

    if (s->drec == DR_ABOUT || s->drec == DR_SETTLED)
        say(out, s, T_D_REFUSE, D_SAY_REFUSED);
    else if (s->drec == DR_VOID)
        say(out, s, T_D_AGAIN, s->dmsg == MSG_ABANDON_QUIT ? D_QUIT : D_SAY_DONE);
    else if (is_broken(out, ABANDON_UNSEEN))
        make_void(out, s);
    else if (ran_as_seen(s, now))
        say(out, s, T_D_REFUSE, D_SAY_REFUSED);
    else if (now == SEEN_DOUBT)
        say(out, s, T_D_DOUBT, D_SAY_DOUBT);
    else
        make_void(out, s);
}

static void quit(struct steps *out, const struct state *s)
{
    bool reaches_own = s->dq != DQ_GONE && (s->dconn || s->dpath == PATH_RIGHT);
    bool reaches_other = !s->dconn && s->dpath == PATH_OTHER && s->dother;
    struct state *to = step(out, s, T_D_QUIT);

    to->dat = D_SAY_DONE;
    if (reaches_own && (s->dknown || is_broken(out, QUIT_ANYBODY)) &&
        (own_state(s) == SEEN_PAUSED || own_state(s) == SEEN_WAITS)) {
        to->dq = DQ_GONE;
    } else if (reaches_other && is_broken(out, QUIT_ANYBODY)) {
        to->dother = OTHER_NONE;
        breaks(out, "vecycle ends a QEMU that is not the recorded one");
    }
}

/* ---- the end of it ---- */

static void done_with_message(struct state *to)
{
    to->dat = D_IDLE;
    to->dmsg = MSG_NONE;
    to->dold = 0;
    if (to->drec != DR_ABOUT) /* that one stands for the decision */
        to->dstale = 0;
}

static void answer(struct steps *out, const struct state *s, enum answer a, enum dest_at next)
{
    struct state *to = step(out, s, T_D_ANSWER);

    if (!s->dold)
        to->answer = a;
    to->dat = next;
    if (next == D_IDLE)
        done_with_message(to);
}

static void settle(struct steps *out, const struct state *s)
{
    struct state *to = step(out, s, T_D_SETTLED);

    to->drec = DR_SETTLED;
    to->dat = s->dat == D_SETTLE ? D_SAY_DONE : D_IDLE;
    if (to->dat == D_IDLE)
        done_with_message(to);
}

/* The session of the migration ends with its link. What has arrived waits; what has not never
 * will. */
static void end_session(struct steps *out, const struct state *s)
{
    struct state *to;

    bool died = s->dq == DQ_GONE && s->shut == SHUT_NONE;

    if (!s->dlive || (s->link && !died))
        return;
    to = step(out, s, T_D_END);
    to->dlive = 0;
    to->link = 0;
    if (s->dresume && s->drec == DR_ARRIVING) /* as the watch */
        to->drec = DR_ABOUT;
    if (s->slive)
        give_up_waiting(to);
    if (s->dq == DQ_INMIGRATE ||
        (s->dq == DQ_GONE && s->drec == DR_ARRIVING && never_ran(out, s))) {
        to->dq = DQ_GONE;
        if (s->drec == DR_ARRIVING)
            to->drec = DR_VOID;
    }
}

/* Events, and a look at the start, tell that the VM was continued by others. */
static void watch(struct steps *out, const struct state *s)
{
    struct state *to;

    if (s->drec != DR_ARRIVING && s->drec != DR_ABOUT)
        return;
    if (s->dlive && s->dresume && s->drec == DR_ARRIVING) {
        to = step(out, s, T_D_WATCH);
        to->drec = DR_ABOUT;
    }
    if (!s->dlive && s->dpath == PATH_RIGHT && s->dq == DQ_RUNS) {
        to = step(out, s, T_D_LOOK_BACK);
        to->drec = DR_SETTLED;
        to->dstale = 0;
    }
}

void dest_steps(struct steps *out, const struct state *s)
{
    struct state *to;

    if (!s->dup)
        return;
    switch (s->dat) {
    case D_IDLE:
        take_message(out, s);
        watch(out, s);
        end_session(out, s);
        break;
    case D_GOT:
        if (s->dmsg == MSG_WORD)
            obey(out, s);
        else
            abandon(out, s);
        break;
    case D_CONT:
        cont(out, s);
        break;
    case D_TELL:
        answer(out, s, ANS_DONE, D_LATE);
        break;
    case D_SETTLE:
    case D_LATE:
        settle(out, s);
        break;
    case D_LATE_VOID:
        to = step(out, s, T_D_VOID);
        to->drec = DR_VOID;
        done_with_message(to);
        break;
    case D_QUIT:
        quit(out, s);
        break;
    case D_SAY_DONE:
        answer(out, s, ANS_DONE, D_IDLE);
        break;
    case D_SAY_NEVER:
        answer(out, s, ANS_NEVER_RAN, s->drec == DR_ARRIVING ? D_LATE_VOID : D_IDLE);
        break;
    case D_SAY_REFUSED:
        answer(out, s, ANS_REFUSED, D_IDLE);
        break;
    case D_SAY_DOUBT:
        answer(out, s, ANS_DOUBT, D_IDLE);
        break;
    default:
        break;
    }
}
