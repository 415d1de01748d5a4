/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "model.h"

/* What is wanted of every state: that one VM runs, or can be made to, and that the agents leave
 * nothing open which they could settle. */

static bool has_run_there(const struct state *s)
{
    return s->drun || s->drun3;
}

static bool has_run_here(const struct state *s)
{
    return s->went_on || s->cont3;
}

/* Nothing has run since the switch. */
static bool waits_well(const struct state *s)
{
    bool copy_here = s->sq == SQ_FINISH || s->sq == SQ_POSTMIGRATE;
    bool copy_there = s->dq == DQ_ARRIVED;

    if (s->sq == SQ_RUNS || s->sq == SQ_PAUSED || s->mig == MIG_FAILED)
        return true;               /* it never left; and where it has ended, it has ended there */
    if (!copy_here && !copy_there) /* ended by others, or by a fault; reset: it boots */
        return true;
    if (s->was_paused && s->srec == SR_SETTLED && s->drec == DR_VOID) /* back as it was */
        return copy_here;
    /* Handed over as it was, or reset, and it stays so: what becomes of it is its own affair. */
    return s->drec == DR_SETTLED && s->stayed;
}

bool vm_is_well(const struct state *s)
{
    if (s->elsewhere || s->booted || has_run_there(s))
        return true;
    if (has_run_here(s)) /* a third party may have paused it since, or it has ended */
        return s->sq != SQ_POSTMIGRATE && s->sq != SQ_FINISH;
    return waits_well(s);
}

bool person_can_help(const struct state *s)
{
    if (vm_is_well(s))
        return true;
    if (s->sq == SQ_POSTMIGRATE && s->sat == S_IDLE && s->spath == PATH_RIGHT &&
        s->srec != SR_SETTLED)
        return true;
    return (s->dq == DQ_ARRIVED || s->dq == DQ_PRELAUNCH) && !s->dlive && s->dat == D_IDLE &&
           s->dpath == PATH_RIGHT && (s->drec == DR_ARRIVING || s->drec == DR_ABOUT);
}

/* Why the agents must leave it to a person: what is in doubt at the source ... */
static bool source_is_in_doubt(const struct steps *rules, const struct state *s)
{
    enum look look = source_look(rules, s);

    if (s->sat != S_IDLE || !s->sup || (s->srec != SR_LEAVING && s->srec != SR_LEFT) ||
        (s->mig == MIG_ACTIVE && s->sq != SQ_GONE))
        return false;
    return look == LOOK_DOUBT || (look == LOOK_GONE && s->srec == SR_LEAVING);
}

/* ... at the destination: nobody knows whether it ran, or where it is ... */
static bool dest_is_in_doubt(const struct state *s)
{
    bool over = s->dup && !s->dlive && s->dat == D_IDLE;
    bool certain =
        s->dq == DQ_GONE && s->dconn && s->dknown && !s->dresume && s->drec == DR_ARRIVING;

    if (!over || (s->drec != DR_ARRIVING && s->drec != DR_ABOUT))
        return false;
    if (s->dq == DQ_GONE)
        return !certain && (s->srec == SR_LEFT || !s->dknown || s->dresume ||
                            s->dpath == PATH_OTHER || s->drec == DR_ABOUT);
    return !s->dconn && s->dpath != PATH_RIGHT;
}

/* ... that both may run ... */
static bool both_may_run(const struct state *s)
{
    return s->srec == SR_KEPT &&
           (s->drec == DR_ABOUT || s->drec == DR_SETTLED || s->dq == DQ_RUNS || s->dresume);
}

/* ... or that it is lost on both hosts; the record says so until a person discards it. */
static bool is_lost(const struct state *s)
{
    return s->srec == SR_LEFT && s->sq == SQ_GONE && s->drec == DR_VOID;
}

bool is_settled(const struct steps *rules, const struct state *s)
{
    /* *about to run* says the same as *settled* to everybody but whoever reads the record there. */
    bool settled = s->srec == SR_SETTLED && s->drec != DR_ARRIVING;

    if (s->sat != S_IDLE || s->dat != D_IDLE)
        return false;
    return (settled && vm_is_well(s)) || source_is_in_doubt(rules, s) || dest_is_in_doubt(s) ||
           both_may_run(s) || is_lost(s);
}
