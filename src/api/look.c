/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/settler.h"
#include "base/clock.h"

/* Theory of operation
 *
 * While it is open whether a VM has left, its QEMU here is looked at every second, so that nobody
 * continues it unnoticed: once that QEMU has ended, nothing shows it any more. A QEMU that hangs
 * takes 15 s for a look (VC_QMP_TIMEOUT_MS). So each VM is looked at by a thread of its own, which
 * vc-look starts when the VM is due, and no other VM waits for it.
 *
 * The threads are not many, and those VMs that may take long, or have the time, get a part of them
 * only: whose QEMU did not answer in the last look, and whose record is settled, so that there is
 * only something to be put back or to be told. */

/** How often a QEMU is looked at while something is open. */
#define LOOK_S 1ull
/** Looks at the same time; those of them that others need not wait for. */
#define MAX_LOOKS 16
#define MAX_PATIENT 8
/** A QEMU that took longer than this did not answer. */
#define ANSWERS_S 2ull
/** How long an agent that starts waits for the first looks. */
#define FIRST_LOOKS_S 3ull
/** How often an agent that has started tries to put back in QEMU what one that was killed had set:
 * not before the migration has failed there. */
#define PUT_BACK_TIMES 30

/* A VM whose QEMU is looked at. */
struct watch {
    struct vc_settler *s;
    struct watch *next;
    struct vc_id vm;
    struct vc_thread thread;
    bool patient;    /* [thread: vc-look] it gets a part of the threads only */
    bool is_awaited; /* [thread: vc-look] the agent does not serve before its first look */
    uint64_t due_ns; /* [thread: vc-look] */

    /* [thread: the look, while it runs; else vc-look] */
    bool open;         /* another look may help */
    bool look_back;    /* what a killed agent has left was not looked at yet */
    bool tell_rest;    /* nor whether it has the rest of a postcopy */
    unsigned put_back; /* how often it is still tried */
    uint64_t took_ns;

    bool looked; /* [lock: mu] the look has ended */
};

/* ---- one look ---- */

static bool is_denied(const struct vc_handover *h)
{
    return access(h->socket, W_OK) < 0 && errno == EACCES;
}

/* Where it was the agent's user who may not connect to QEMU, root may. */
static void say_open(struct vc_settler *s, const struct vc_id *vm, const struct vc_handover *h,
                     struct vc_err *err)
{
    char name[VC_ID_TEXT_BYTES];

    vc_id_format(vm, name);
    if (!err->code)
        vc_err_set_errno(err, VC_E_UNSETTLED, "the agent cannot ask QEMU at '%.150s'", h->socket);
    vc_err_prefix(err, "%s", name);
    if (is_denied(h))
        snprintf(err->hint, sizeof(err->hint), "`vecycle resolve --retry %s` as root settles it",
                 name);
    vc_log_err(&s->log, VC_LOG_WARNING, "an interrupted migration is not settled yet", err);
}

bool vc_settler_look_at(struct vc_settler *s, const struct vc_id *vm, struct vc_handover *h,
                        bool *open)
{
    struct vc_settle_options o = vc_settler_options(s, vm);
    struct vc_err err = VC_ERR_INIT;
    int rc = 0;

    o.at_once = true; /* a VM that is being migrated is looked at another time */
    if (h->state == VC_HANDOVER_LEAVING || h->state == VC_HANDOVER_LEFT)
        rc = vc_session_look_back(&o, h, NULL, &err);
    if (rc == VC_E_BUSY) { /* a migration is under way, or a person settles it: looked at again */
        *open = true;
        return false;
    }
    *open = vc_settler_is_open(h);
    return !rc && *open && h->state != VC_HANDOVER_LEAVING && vc_settler_can_call(h);
}

static bool is_in_the_middle(const struct vc_handover *h)
{
    return h->state != VC_HANDOVER_NONE && h->state != VC_HANDOVER_SETTLED &&
           h->state != VC_HANDOVER_VOID;
}

/* A record that a killed agent left in the middle of a migration, as far as this host alone can
 * tell. True: the VM is in use, another time. */
static bool look_back(struct vc_settler *s, const struct vc_id *vm, struct vc_handover *h)
{
    struct vc_settle_options o = vc_settler_options(s, vm);
    struct vc_err err = VC_ERR_INIT;
    int rc;

    if (!is_in_the_middle(h))
        return false;
    o.socket_dir = s->socket_dir;
    o.at_once = true;
    rc = vc_session_look_back(&o, h, NULL, &err);
    if (rc == VC_E_BUSY)
        return true;
    if (rc || (h->state == VC_HANDOVER_LEAVING && is_denied(h)))
        say_open(s, vm, h, &err);
    return false;
}

/* What a killed agent had set in QEMU. True: something is left that QEMU may take another time. */
static bool put_back(struct vc_settler *s, const struct vc_id *vm, const struct vc_handover *h)
{
    struct vc_settle_options o = vc_settler_options(s, vm);
    struct vc_err err = VC_ERR_INIT;
    int rc = 0;

    o.socket_dir = s->socket_dir;
    o.at_once = true;
    if (h->n_settings)
        rc = vc_session_put_back(&o, &err);
    if (rc < 0)
        vc_log_err(&s->log, VC_LOG_DEBUG, "QEMU's settings are not put back", &err);
    return rc == VC_AGAIN || rc == VC_E_BUSY;
}

/* What the QEMU of a VM that has left by a postcopy still has of it. */
static void tell_rest(struct vc_settler *s, const struct vc_id *vm, const struct vc_handover *h)
{
    struct vc_settle_options o = vc_settler_options(s, vm);
    struct vc_err err = VC_ERR_INIT;

    if (vc_session_check_rest(&o, h, &err))
        say_open(s, vm, h, &err);
}

/* First whether it runs. */
static void look_once(struct watch *w)
{
    struct vc_settler *s = w->s;
    struct vc_handover h;
    uint8_t was;

    w->open = false;
    if (!vc_settler_read(s, &w->vm, &h)) {
        w->look_back = false;
        w->put_back = 0;
        return;
    }
    was = h.state;
    if (w->look_back) {
        w->look_back = look_back(s, &w->vm, &h);
        w->open = vc_settler_is_open(&h);
    } else {
        vc_settler_look_at(s, &w->vm, &h, &w->open);
    }
    if (h.state != was) /* the other host can be told now */
        vc_settler_tell(s, VC_NEWS_TO_SETTLE);
    if (w->put_back && !vc_cancel_is_set(&s->cancel))
        w->put_back = put_back(s, &w->vm, &h) ? w->put_back - 1 : 0;
    if (w->tell_rest && !vc_cancel_is_set(&s->cancel))
        tell_rest(s, &w->vm, &h);
    w->tell_rest = false;
}

static void *watch_main(void *arg)
{
    struct watch *w = arg;
    uint64_t begin_ns = vc_now_ns();

    look_once(w);
    w->took_ns = vc_now_ns() - begin_ns;
    {
        VC_LOCKED(&w->s->mu);
        w->looked = true;
    }
    vc_settler_tell(w->s, VC_NEWS_LOOKED);
    return NULL;
}

/* ---- whom to look at, and when ---- */

static struct watch *find_watch(struct vc_settler *s, const struct vc_id *vm)
{
    struct watch *w = s->watches;

    while (w && !vc_id_equal(&w->vm, vm))
        w = w->next;
    return w;
}

/* @h: its record. @first: the agent has just started. What is new later is looked at where the
 * other host is called. */
static void add_watch(struct vc_settler *s, const struct vc_id *vm, const struct vc_handover *h,
                      bool first)
{
    struct watch *w = calloc(1, sizeof(*w));
    bool in_the_middle = is_in_the_middle(h);

    if (!w) /* no memory: another time */
        return;
    *w = (struct watch){
        .s = s,
        .next = s->watches,
        .vm = *vm,
        .patient = !in_the_middle,
        .is_awaited = first && in_the_middle,
        .due_ns = vc_now_ns() + (first ? 0 : LOOK_S * VC_NS_PER_S),
        .look_back = first && in_the_middle,
        .tell_rest = first,
        .put_back = first && h->n_settings ? PUT_BACK_TIMES : 0,
    };
    s->watches = w;
}

/* At first those with anything to look at, later those that are open. False: the store cannot be
 * listed now. */
static bool find_watches(struct vc_settler *s, bool first)
{
    vc_auto_free struct vc_id *ids = NULL;
    struct vc_err err = VC_ERR_INIT;
    struct vc_handover h;
    size_t n = 0;

    if (vc_store_list(s->store, &ids, &n, &err))
        return false;
    for (size_t i = 0; i < n && !vc_cancel_is_set(&s->cancel); i++) {
        if (find_watch(s, &ids[i]) || !vc_settler_read(s, &ids[i], &h))
            continue;
        if (vc_settler_is_open(&h) ||
            (first && (is_in_the_middle(&h) || h.n_settings || h.awaits_rest ||
                       (h.state == VC_HANDOVER_SETTLED && vc_handover_has_path(&h)))))
            add_watch(s, &ids[i], &h, first);
    }
    return true;
}

static bool has_looked(struct watch *w)
{
    VC_LOCKED(&w->s->mu);

    return w->looked;
}

/* Its look has ended. Each holds the VM's lock: where QEMU does not answer, others get their turn.
 */
static void plan_next(struct watch *w)
{
    w->is_awaited = false;
    w->patient = !w->open || w->took_ns > ANSWERS_S * VC_NS_PER_S;
    w->due_ns = vc_now_ns() + VC_MAX(LOOK_S * VC_NS_PER_S, 2 * w->took_ns);
}

/* Joins the looks that have ended, and forgets the VMs of which nothing is open any more. */
static void reap(struct vc_settler *s, bool all)
{
    struct watch **at = &s->watches;

    while (*at) {
        struct watch *w = *at;
        bool ended = w->thread.running && (all || has_looked(w));

        if (ended) {
            vc_thread_join(&w->thread);
            plan_next(w);
        }
        if (!all && (!ended || w->open || w->look_back || w->put_back)) {
            at = &w->next;
            continue;
        }
        *at = w->next;
        free(w);
    }
}

/* Who has waited for longest. *next_ns: when the next look is due that no other has to end for; 0:
 * none. */
static struct watch *choose(struct vc_settler *s, uint64_t *next_ns)
{
    unsigned n = 0, n_patient = 0;
    struct watch *best = NULL;

    *next_ns = 0;
    for (struct watch *w = s->watches; w; w = w->next) {
        n += w->thread.running;
        n_patient += w->thread.running && w->patient;
    }
    if (n >= MAX_LOOKS)
        return NULL;
    for (struct watch *w = s->watches; w; w = w->next)
        if (!w->thread.running && (!w->patient || n_patient < MAX_PATIENT) &&
            (!best || w->due_ns < best->due_ns))
            best = w;
    if (!best || best->due_ns <= vc_now_ns())
        return best;
    *next_ns = best->due_ns;
    return NULL;
}

static void start_look(struct watch *w)
{
    struct vc_settler *s = w->s;
    struct vc_err err = VC_ERR_INIT;

    w->looked = false; /* nobody else knows it now */
    if (vc_thread_start(&w->thread, "vc-look-vm", watch_main, w, &err)) {
        w->due_ns = vc_now_ns() + LOOK_S * VC_NS_PER_S;
        vc_log_err(&s->log, VC_LOG_WARNING, "a VM's QEMU is not looked at", &err);
    }
}

/* Tells who starts the agent, once. */
static void note_first_looks(struct vc_settler *s)
{
    for (struct watch *w = s->watches; w; w = w->next)
        if (w->is_awaited)
            return;
    {
        VC_LOCKED(&s->mu);
        s->looked_first = true;
    }
    vc_settler_tell(s, 0);
}

/* Looks at this host's own QEMUs, whoever of the other hosts does not answer. */
static void *looker_main(void *arg)
{
    struct vc_settler *s = arg;
    unsigned news = VC_NEWS_TO_LOOK;
    uint64_t list_ns = 0, next_ns;
    bool first = true, listed = false;

    do {
        struct watch *w;

        if ((news & VC_NEWS_TO_LOOK) || vc_now_ns() >= list_ns) {
            listed = find_watches(s, first);
            first &= !listed;
            list_ns = vc_now_ns() + LOOK_S * VC_NS_PER_S;
        }
        reap(s, false);
        if (!first)
            note_first_looks(s);
        while ((w = choose(s, &next_ns)))
            start_look(w);
        next_ns = next_ns ? VC_MIN(next_ns, list_ns) : list_ns;
    } while (vc_settler_wait(s, VC_NEWS_TO_LOOK | VC_NEWS_LOOKED,
                             s->watches || !listed ? next_ns : 0, &news));
    reap(s, true);
    return NULL;
}

static void await_first_looks(struct vc_settler *s)
{
    uint64_t deadline = vc_now_ns() + FIRST_LOOKS_S * VC_NS_PER_S;
    VC_LOCKED(&s->mu);

    while (!s->looked_first && vc_cond_wait_until(&s->changed, &s->mu, deadline)) {
        /* another look has ended */
    }
}

int vc_looker_start(struct vc_settler *s, struct vc_err *err)
{
    int rc = vc_thread_start(&s->looker, "vc-look", looker_main, s, err);

    if (!rc)
        await_first_looks(s);
    return rc;
}
