/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "model.h"

/* What works without vecycle: QEMU, third parties, faults, and what repairs them. */

/* ---- QEMU ---- */

static void fail_and_go_on(struct steps *out, struct state *to)
{
    to->mig = MIG_FAILED;
    to->in_switch = 0;
    if (to->sq == SQ_FINISH && to->was_paused) {
        to->sq = SQ_PAUSED;
    } else if (to->sq == SQ_FINISH) {
        to->sq = SQ_RUNS;
        to->went_on = 1;
        check_source_goes_on(out, to);
    }
}

void world_steps(struct steps *out, const struct state *s)
{
    bool flows = s->mig == MIG_ACTIVE && !s->closed && s->link && s->slive && s->dlive &&
                 s->dq == DQ_INMIGRATE;
    struct state *to;

    if (flows && s->sq == SQ_GONE)
        step(out, s, T_Q_DIES)->dq = DQ_GONE;
    if (s->mig == MIG_ACTIVE && (s->sq == SQ_RUNS || s->sq == SQ_PAUSED) && !s->closed && s->link) {
        to = step(out, s, T_Q_SWITCH);
        to->was_paused = s->sq == SQ_PAUSED;
        to->suspend |= s->sq == SQ_PAUSED;
        to->sq = SQ_FINISH;
        to->in_switch = 1;
    }
    /* A source that ended in the switch may have sent all of the VM. */
    if (flows && (s->sq == SQ_FINISH || (s->sq == SQ_GONE && s->in_switch))) {
        to = step(out, s, T_Q_ARRIVES);
        to->dq = s->autostart ? DQ_RUNS : DQ_ARRIVED;
        to->drun3 = s->autostart;
        to->dresume = s->autostart;
        to->shut = SHUT_SENT;
    }
    if (s->sq == SQ_FINISH && s->passed && s->mig == MIG_ACTIVE) {
        to = step(out, s, T_Q_COMPLETES);
        to->sq = SQ_POSTMIGRATE;
        to->mig = MIG_OURS;
    }
    if (s->mig == MIG_ACTIVE && s->closed && s->sq != SQ_GONE)
        fail_and_go_on(out, step(out, s, T_Q_FAILS));
    if (s->mig == MIG_OURS && s->srec == SR_LEAVING && s->counts && !s->late)
        step(out, s, T_Q_LATER)->late = 1;
    if (!s->sup)
        step(out, s, T_A_SOURCE)->sup = 1;
    if (!s->dup)
        step(out, s, T_A_DEST)->dup = 1;
    if (s->spath == PATH_NOWHERE || s->sother == OTHER_WAITS) {
        to = step(out, s, T_P_PATH_S);
        to->spath = PATH_RIGHT;
        to->sother = OTHER_NONE;
    }
    if (s->dpath != PATH_RIGHT) {
        to = step(out, s, T_P_PATH_D);
        to->dpath = PATH_RIGHT;
        to->dother = OTHER_NONE;
    }
}

/* ---- third parties ---- */

static struct state *third(struct steps *out, const struct state *s, enum transition by)
{
    struct state *to = step(out, s, by);

    to->third++;
    return to;
}

static void cont_at_source(struct steps *out, const struct state *s)
{
    struct state *to;

    if ((s->sq != SQ_PAUSED && s->sq != SQ_POSTMIGRATE && s->sq != SQ_PRELAUNCH) || s->elsewhere)
        return;
    to = third(out, s, T_T_CONT_S);
    to->sq = SQ_RUNS;
    if (s->mig == MIG_OURS) {
        to->cont3 = 1;
        to->sresume |= s->slive && s->sconn;
    }
}

/* The watch: while *left* is open, a VM that runs here is seen before it ends. */
static bool would_be_seen(const struct steps *out, const struct state *s)
{
    return s->sup && s->spath == PATH_RIGHT && s->srec == SR_LEFT && !s->slive &&
           !is_broken(out, NO_WATCH);
}

static void end_source(struct steps *out, struct state *to)
{
    if (to->cont3 && !to->seen && to->sq != SQ_POSTMIGRATE && to->sq != SQ_FINISH)
        to->unseen = !to->sup || (to->slive && !to->sconn) ||
                     (!to->slive && (to->spath != PATH_RIGHT || !is_broken(out, NO_WATCH)));
    if (to->mig == MIG_OTHER)
        to->unseen = 1;
    to->sq = SQ_GONE;
    to->passed = 0;
    if (to->dq == DQ_INMIGRATE && !to->dlive)
        to->dq = DQ_GONE;
}

static void at_source(struct steps *out, const struct state *s)
{
    struct state *to;

    cont_at_source(out, s);
    if (s->sq == SQ_RUNS)
        third(out, s, T_T_STOP_S)->sq = SQ_PAUSED;
    if ((s->sq == SQ_POSTMIGRATE || s->sq == SQ_PAUSED) && !s->elsewhere && s->mig != MIG_ACTIVE)
        third(out, s, T_T_RESET_S)->sq = SQ_PRELAUNCH;
    if ((s->sq == SQ_RUNS || s->sq == SQ_PAUSED) && s->mig != MIG_ACTIVE) {
        to = third(out, s, T_T_MIGRATE_S);
        to->sq = SQ_POSTMIGRATE;
        to->mig = MIG_OTHER;
        to->elsewhere = 1;
    }
    if (s->mig == MIG_ACTIVE && (s->sq == SQ_FINISH || s->sq == SQ_RUNS) && !s->closed)
        fail_and_go_on(out, third(out, s, T_T_CANCEL_S));
    if (s->sq != SQ_GONE && !(s->cont3 && !s->seen && s->sq == SQ_RUNS && would_be_seen(out, s)))
        end_source(out, third(out, s, T_T_END_S));
    if (s->spath == PATH_RIGHT)
        third(out, s, T_T_HIDE_S)->spath = PATH_NOWHERE;
    if (s->spath != PATH_OTHER) {
        to = third(out, s, T_T_OTHER_S);
        to->spath = PATH_OTHER;
        to->sother = OTHER_WAITS;
        to = third(out, s, T_T_BOOT_S);
        to->spath = PATH_OTHER;
        to->sother = OTHER_RUNS;
        to->booted = 1;
    }
    if (s->sq == SQ_GONE && !s->aside) {
        to = third(out, s, T_T_BOOT_ASIDE_S);
        to->aside = 1;
        to->booted = 1;
    }
}

static void at_dest(struct steps *out, const struct state *s)
{
    struct state *to;

    if (s->dq == DQ_INMIGRATE && !s->autostart)
        third(out, s, T_T_CONT_D)->autostart = 1;
    if (s->dq == DQ_ARRIVED || s->dq == DQ_STOPPED || s->dq == DQ_PRELAUNCH) {
        to = third(out, s, T_T_CONT_D);
        to->dq = DQ_RUNS;
        to->dresume |= s->dconn;
        /* behind the look on which the record says void, it is that one's own doing */
        to->drun3 |= s->drec != DR_VOID;
    }
    if (s->dq == DQ_RUNS)
        third(out, s, T_T_STOP_D)->dq = DQ_STOPPED;
    if (s->dq == DQ_ARRIVED || s->dq == DQ_STOPPED)
        third(out, s, T_T_RESET_D)->dq = DQ_PRELAUNCH;
    if (s->dq != DQ_GONE)
        third(out, s, T_T_END_D)->dq = DQ_GONE;
    if (s->dpath == PATH_RIGHT)
        third(out, s, T_T_HIDE_D)->dpath = PATH_NOWHERE;
    if (s->dpath != PATH_OTHER && !s->dlive) {
        to = third(out, s, T_T_OTHER_D);
        to->dpath = PATH_OTHER;
        to->dother = OTHER_WAITS;
    }
}

void third_steps(struct steps *out, const struct state *s)
{
    if (s->third == out->rules->third)
        return;
    at_source(out, s);
    at_dest(out, s);
}

/* ---- faults ---- */

static struct state *fault(struct steps *out, const struct state *s, enum transition by)
{
    struct state *to = step(out, s, by);

    to->faults++;
    return to;
}

static void cut_link(struct state *to)
{
    to->link = 0;
    if (to->shut == SHUT_SENT)
        to->shut = SHUT_NONE;
    if (to->slive)
        give_up_waiting(to);
}

static void kill_source(struct state *to)
{
    if (to->slive && to->mig == MIG_ACTIVE)
        to->closed = 1;
    if (to->cont3 && !to->seen && to->sq == SQ_GONE) /* before this agent could write it down */
        to->unseen = 1;
    end_source_session(to);
    to->sup = 0;
}

static void kill_dest(struct state *to)
{
    if (to->dlive) {
        cut_link(to);
        if (to->dq == DQ_INMIGRATE)
            to->dq = DQ_GONE;
    }
    to->dlive = 0;
    to->dup = 0;
    to->dat = D_IDLE;
    to->dmsg = MSG_NONE;
    to->dold = 0;
    to->dconn = 0;
    to->dresume = 0;
    if (to->drec != DR_ABOUT)
        to->dstale = 0;
}

static void faults_of_hosts(struct steps *out, const struct state *s)
{
    struct state *to;

    if (s->sup)
        kill_source(fault(out, s, T_F_CRASH_S));
    if (s->dup)
        kill_dest(fault(out, s, T_F_CRASH_D));
    to = fault(out, s, T_F_POWER_S);
    kill_source(to);
    end_source(out, to);
    to->spath = PATH_RIGHT;
    to->sother = OTHER_NONE;
    to->aside = 0;
    if (to->srec == SR_LEAVING) /* a note does not outlive the host */
        to->counts = 0;
    to = fault(out, s, T_F_POWER_D);
    kill_dest(to);
    to->dq = DQ_GONE;
    to->dpath = PATH_RIGHT;
    to->dother = OTHER_NONE;
}

void fault_steps(struct steps *out, const struct state *s)
{
    struct state *to;

    if (s->faults == out->rules->faults)
        return;
    faults_of_hosts(out, s);
    if (s->link)
        cut_link(fault(out, s, T_F_LINK));
    if (s->msg || s->answer) {
        to = fault(out, s, T_F_LOSE);
        to->msg = MSG_NONE;
        to->stale = 0;
        to->answer = ANS_NONE;
        if (to->slive)
            cut_link(to);
    }
    if ((s->msg || s->dmsg) && s->sat == S_ASK && !s->dold)
        end_source_session(fault(out, s, T_F_LATE));
    if (s->slive && s->sconn && s->sq != SQ_GONE)
        fault(out, s, T_F_QMP_S)->sconn = 0;
    if (s->dconn && s->dq != DQ_GONE)
        fault(out, s, T_F_QMP_D)->dconn = 0;
    if (s->mig == MIG_ACTIVE && s->sq == SQ_FINISH && !s->closed)
        fail_and_go_on(out, fault(out, s, T_F_FAILS));
}
