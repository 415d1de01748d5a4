/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "qmp/qmp.h"
#include "session/common.h"
#include "session/whereabouts.h"

/* What is left of a migration whose end got lost, mostly at its source. Nobody guesses
 * (docs/internals/handover.md): the record says how far things had come, the source's own QEMU
 * whether it completed this migration and whether the VM was continued here, and the destination
 * answers for itself. Whoever settles holds the VM's lock from reading the record to writing it.
 * The other host has said hello before that, and has a time for its answer. */

/* What the record is to say, seen what QEMU shows. */
static enum vc_handover_state state_now(const struct vc_handover *h, const struct vc_look *l)
{
    if (h->state != VC_HANDOVER_KEPT && l->where == VC_VM_HERE)
        return VC_HANDOVER_KEPT;
    if (h->state == VC_HANDOVER_LEAVING && l->where == VC_VM_LEFT)
        return VC_HANDOVER_LEFT;
    return (enum vc_handover_state)h->state;
}

static void describe(const struct vc_look *l, char why[VC_WHY_BYTES])
{
    if (l->qmp && l->where != VC_VM_IN_DOUBT)
        snprintf(why, VC_WHY_BYTES, "its QEMU is in state '%s'", l->state);
    else if (l->where == VC_VM_GONE)
        snprintf(why, VC_WHY_BYTES, "its QEMU has ended");
    else
        snprintf(why, VC_WHY_BYTES, "%s", l->why);
}

/* Brings a source's record up to date: under the VM's lock, before anybody is dialled. */
static int update_source(struct vc_vm *v, const struct vc_settle_options *o, struct vc_handover *h,
                         const struct vc_look *l, struct vc_err *err)
{
    enum vc_handover_state next = state_now(h, l);

    if (next == h->state && h->started_anew >= l->started_anew)
        return 0;
    h->started_anew |= l->started_anew;
    if (next == h->state)
        return vc_handover_begin(v, h, err);
    vc_log(o->log, VC_LOG_WARNING, "a migration to '%s' was interrupted: %s", h->peer,
           next == VC_HANDOVER_LEFT ? "it had completed"
           : l->runs                ? "the VM runs here"
                                    : "the VM is this host's");
    if (next == VC_HANDOVER_KEPT)
        h->told = h->state == VC_HANDOVER_LEFT || h->has_counts;
    if (next == VC_HANDOVER_LEFT)
        h->sum = l->sum;
    h->state = (uint8_t)next;
    return vc_handover_begin(v, h, err);
}

/* A destination's: if the VM runs here, it is settled. */
static int update_destination(struct vc_vm *v, const struct vc_settle_options *o,
                              struct vc_handover *h, char why[VC_WHY_BYTES], struct vc_err *err)
{
    char state[VC_RUN_STATE_BYTES];
    struct vc_err trouble = VC_ERR_INIT;
    struct vc_qmp *q = NULL;
    int rc = vc_target_qemu(o->socket_dir, o->vm, h, &q, &trouble);

    if (!rc)
        rc = vc_qmp_run_state(q, state, &trouble);
    vc_qmp_free(q);
    if (rc)
        snprintf(why, VC_WHY_BYTES, "%s", trouble.message);
    else
        snprintf(why, VC_WHY_BYTES, "its QEMU is in state '%s'", state);
    if (rc || strcmp(state, "running") != 0)
        return 0;
    vc_log(o->log, VC_LOG_WARNING, "a migration from '%s' was interrupted: the VM runs here",
           h->peer);
    h->state = VC_HANDOVER_SETTLED;
    return vc_handover_begin(v, h, err);
}

static bool is_of_source(const struct vc_handover *h)
{
    return h->state == VC_HANDOVER_LEAVING || h->state == VC_HANDOVER_LEFT ||
           h->state == VC_HANDOVER_KEPT;
}

static int look(struct vc_vm *v, const struct vc_settle_options *o, struct vc_handover *h,
                char why[VC_WHY_BYTES], struct vc_err *err)
{
    struct vc_look l;
    int rc;

    why[0] = '\0';
    if (o->socket_dir && (h->state == VC_HANDOVER_ARRIVING || h->state == VC_HANDOVER_ABOUT_TO_RUN))
        return update_destination(v, o, h, why, err);
    if (!is_of_source(h))
        return 0;
    vc_look_at_source(h, o->vm, o->qmp_path, &l);
    describe(&l, why);
    rc = update_source(v, o, h, &l, err);
    vc_look_end(&l);
    return rc;
}

int vc_session_look_back(const struct vc_settle_options *o, struct vc_handover *h,
                         char why[VC_WHY_BYTES], struct vc_err *err)
{
    char ignored[VC_WHY_BYTES];
    struct vc_vm *v = NULL;
    int rc = vc_vm_open(o->store, o->vm, o->at_once ? VC_VM_TRY : VC_VM_WRITE, &v, err);

    if (!rc)
        rc = vc_handover_get(v, h, err);
    if (!rc)
        rc = look(v, o, h, why ? why : ignored, err);
    vc_vm_close(v);
    return rc;
}

/* The record tells: QEMU cannot be asked as a rule, since a guest that waits for a page can hold
 * its lock, and the agent keeps the only QMP connection. */
static int check_rest_to_come(const struct vc_handover *h, struct vc_err *err)
{
    if (!h->awaits_rest || vc_process_look(&h->qemu) == VC_PROCESS_GONE)
        return 0;
    return vc_err_set_hint(err, VC_E_POSTCOPY,
                           "`vecycle migrate --recover` there carries it; until then the guest may "
                           "stand still",
                           "the VM is here, and waits for the rest of its memory from '%.80s'",
                           h->peer);
}

static int check_rest_to_go(const struct vc_settle_options *o, const struct vc_handover *h,
                            struct vc_err *err)
{
    struct vc_look l;
    int rc = 0;

    vc_look_at_source(h, o->vm, o->qmp_path, &l);
    if (l.qmp && vc_qmp_status_is_switched(l.status))
        rc = vc_err_set_hint(err, VC_E_POSTCOPY,
                             "`vecycle migrate --recover` with its QMP socket and the destination",
                             "the VM is at '%.80s', and the rest of its memory is in this host's "
                             "QEMU alone, which must not be ended (it is '%s')",
                             h->peer, l.status);
    vc_look_end(&l);
    return rc;
}

int vc_session_check_rest(const struct vc_settle_options *o, const struct vc_handover *h,
                          struct vc_err *err)
{
    if (h->state != VC_HANDOVER_SETTLED)
        return 0;
    return vc_handover_has_path(h) ? check_rest_to_go(o, h, err) : check_rest_to_come(h, err);
}

/* ---- the exchange ---- */

struct answer {
    bool never_ran;
    struct vc_wire_status status;
};

static int take_answer(struct vc_link *link, struct answer *a, struct vc_err *err)
{
    vc_auto_frame struct vc_link_frame *f = NULL;
    int rc = vc_link_recv(link, &f, err);

    if (rc == VC_EOF)
        return vc_err_set(err, VC_E_PEER_LOST, "peer '%s' hung up", vc_link_peer(link));
    if (rc)
        return rc;
    if (f->type != VC_WIRE_WORD_DONE && f->type != VC_WIRE_NEVER_RAN)
        return vc_err_set(err, VC_E_PROTOCOL, "%s came where WORD_DONE was expected",
                          vc_wire_type_name(f->type));
    a->never_ran = f->type == VC_WIRE_NEVER_RAN;
    rc = vc_wire_status_decode(f->payload, f->bytes, &a->status, err);
    if (!rc && a->never_ran && !a->status.code)
        rc = vc_err_set(err, VC_E_PROTOCOL, "NEVER_RAN: without a code");
    return rc;
}

static int say_hello(struct vc_link *link, void *opaque, struct vc_err *err)
{
    uint64_t features;

    (void)opaque;
    return vc_link_hello(link, 0, &features, err);
}

static int open_session(struct vc_link *link, const struct vc_settle_options *o,
                        const struct vc_handover *h, struct vc_err *err)
{
    struct vc_wire_open open = {.session = h->session, .vm = *o->vm, .mode = VC_WIRE_MODE_WORD};

    return VC_SESSION_SEND(link, VC_WIRE_OPEN, vc_wire_open_encode, &open, err);
}

static int exchange(struct vc_link *link, const struct vc_handover *h, uint8_t which,
                    struct answer *a, struct vc_err *err)
{
    struct vc_wire_word_msg word = {.word = which, .session = h->session};
    int rc = VC_SESSION_SEND(link, VC_WIRE_WORD, vc_wire_word_encode, &word, err);

    return rc ? rc : take_answer(link, a, err);
}

/* A part of a session of mode 3 that ends in time, or when it is cancelled. */
static int guarded(struct vc_link *link, const struct vc_settle_options *o, uint32_t limit_ms,
                   int (*talk)(struct vc_link *link, void *opaque, struct vc_err *err),
                   void *opaque, struct vc_err *err)
{
    struct vc_guard guard;
    int rc = vc_guard_start(&guard, link, o->cancel, limit_ms, err);

    return rc ? rc : vc_guard_end(&guard, talk(link, opaque, err), err);
}

/* The other host is there, and says hello. *out: NULL, or the caller's. Takes the connection. */
static int meet(struct vc_conn *conn, const struct vc_settle_options *o, struct vc_link **out,
                struct vc_err *err)
{
    int rc = vc_link_new(conn, VC_WIRE_SOURCE, o->dead_peer_ms, out, err);

    if (rc) {
        *out = NULL;
        return rc;
    }
    return guarded(*out, o, VC_OPEN_TIMES * vc_dead_peer_ms(o->dead_peer_ms), say_hello, NULL, err);
}

/* ---- settling ---- */

/* The VM never ran there: it goes on here, if it ran before, and if this QEMU has done nothing else
 * with it since. */
static int take_back(const struct vc_settle_options *o, const struct vc_handover *h,
                     const struct answer *a, struct vc_err *err)
{
    struct vc_look l;
    int rc = 0;

    vc_look_at_source(h, o->vm, o->qmp_path, &l);
    if (l.qmp && vc_qmp_status_is_switched(l.status))
        rc = vc_err_set_hint(err, VC_E_UNSETTLED, "start it anew, then --discard",
                             "the VM is lost, as with plain QEMU: it had switched to postcopy, and "
                             "its QEMU at '%.80s' ended before it ran",
                             h->peer);
    else if (l.where == VC_VM_IN_DOUBT || l.where == VC_VM_GONE)
        rc = vc_err_set_hint(err, VC_E_UNSETTLED, "look at both hosts, then --run or --discard",
                             "the VM is not at '%.60s' (%.60s), and not known to be here: %.80s",
                             h->peer, a->status.text,
                             l.where == VC_VM_GONE ? "its QEMU has ended" : l.why);
    else if (l.where == VC_VM_LEFT && !h->suspend)
        rc = vc_qmp_simple(l.qmp, "cont", err);
    if (!rc)
        vc_log(o->log, VC_LOG_WARNING, "the VM is not at '%s' (%s), and is this host's again",
               h->peer, a->status.text);
    vc_look_end(&l);
    return rc;
}

/* What is settled, and how far it has come. */
struct round {
    const struct vc_settle_options *o;
    struct vc_vm *v;
    struct vc_handover *h;
    struct vc_look look; /* of which the QMP connection stays, until the answer has come */
    uint8_t word;
    struct answer a;
};

static int say_word(struct vc_link *link, void *opaque, struct vc_err *err)
{
    struct round *r = opaque;

    return exchange(link, r->h, r->word, &r->a, err);
}

/* A word and its answer. To settle, the VM's lock is held meanwhile. */
static int tell(struct round *r, struct vc_link *link, uint8_t word, struct vc_err *err)
{
    const struct vc_settle_options *o = r->o;
    uint32_t limit_ms =
        o->answer_ms ? o->answer_ms : VC_ANSWER_TIMES * vc_dead_peer_ms(o->dead_peer_ms);

    r->word = word;
    return guarded(link, o, limit_ms, say_word, r, err);
}

/* The peer is there and waits for the word: looks at the own QEMU, and the decision follows at
 * once. */
static int look_and_decide(struct round *r, struct vc_link *link, struct vc_err *err)
{
    int rc = open_session(link, r->o, r->h, err);

    if (rc)
        return rc;
    vc_look_at_source(r->h, r->o->vm, r->o->qmp_path, &r->look);
    rc = update_source(r->v, r->o, r->h, &r->look, err);
    if (!rc && r->h->state == VC_HANDOVER_LEFT && r->look.where == VC_VM_IN_DOUBT)
        rc =
            vc_err_set_hint(err, VC_E_UNSETTLED,
                            "resolve --qmp PATH, if QEMU's socket has moved; else a person decides",
                            "whether the VM was continued here is not known: %.150s", r->look.why);
    if (rc)
        return rc;
    if (r->h->state == VC_HANDOVER_KEPT)
        return tell(r, link, r->look.runs ? VC_WIRE_WORD_DISMISS : VC_WIRE_WORD_ABANDON, err);
    return tell(r, link, r->h->suspend ? VC_WIRE_WORD_SUSPEND : VC_WIRE_WORD_CONTINUE, err);
}

/* LEFT: somebody may have continued the VM here while the answer was on its way. */
static int check_still_left(struct round *r, struct vc_err *err)
{
    struct vc_err ignored = VC_ERR_INIT;
    struct json_object *e;
    int rc;

    if (!r->look.qmp)
        return 0;
    while (vc_qmp_event(r->look.qmp, &e, &ignored) == 0)
        json_object_put(e);
    if (!vc_qmp_has_run(r->look.qmp))
        return 0;
    r->h->told = true;
    r->h->state = VC_HANDOVER_KEPT;
    rc = vc_handover_begin(r->v, r->h, err);
    return rc ? rc
              : vc_err_set_hint(err, VC_E_UNSETTLED, "if both run, stop one of the two at once",
                                "somebody continued the VM here while '%.100s' was told to",
                                r->h->peer);
}

/* The destination was told, and has no record of it any more. */
static int knows_nothing(const struct round *r, struct vc_err *err)
{
    return vc_err_set_hint(err, VC_E_UNSETTLED, "look where the VM runs, then --discard",
                           "'%.100s' may have been told to run the VM, and knows nothing of "
                           "the migration any more",
                           r->h->peer);
}

/* LEFT: what the answer to the decision comes to. */
static int heard(struct round *r, int rc, struct vc_err *err)
{
    if (rc == VC_E_NO_SUCH_VM)
        return knows_nothing(r, err);
    if (!rc)
        rc = check_still_left(r, err);
    if (rc)
        return rc;
    vc_look_end(&r->look);
    if (r->a.never_ran)
        return take_back(r->o, r->h, &r->a, err);
    return r->a.status.code
               ? vc_err_set(err, VC_E_UNSETTLED,
                            "the destination could not continue the VM: %.150s", r->a.status.text)
               : 0;
}

/* KEPT: the destination's copy must never run. One that knows nothing of the migration has none,
 * unless it was told to run it and has moved it on. */
static int confirmed(struct round *r, int rc, struct vc_err *err)
{
    if (rc == VC_E_NO_SUCH_VM && !r->h->told)
        return 0;
    if (rc == VC_E_NO_SUCH_VM)
        return knows_nothing(r, err);
    if (rc || (!r->a.status.code && !r->a.never_ran))
        return rc;
    return vc_err_set_hint(
        err, VC_E_UNSETTLED,
        r->look.runs ? "if both run, stop one of the two at once" : "see the other host",
        "the VM is kept here, and '%.80s' says: %.120s", r->h->peer, r->a.status.text);
}

/* The VM stands where QEMU left it. Whether it is to run, an agent that was killed in the migration
 * alone could know: its user may have paused it. One that lived has continued a VM that ran, and
 * noted of any other that it stays as it is. */
static int check_not_left_standing(struct round *r, struct vc_err *err)
{
    int rc;

    if (r->h->suspend || !vc_look_is_left_standing(&r->look))
        return 0;
    r->h->told = false;
    rc = vc_handover_begin(r->v, r->h, err);
    return rc ? rc
              : vc_err_set_hint(err, VC_E_UNSETTLED, "--run continues it",
                                "the VM is this host's alone, and does not run: its QEMU has left "
                                "it in state '%s'",
                                r->look.state);
}

static int settle(struct vc_vm *v, const struct vc_settle_options *o, struct vc_handover *h,
                  struct vc_link *link, struct vc_err *err)
{
    struct round r = {.o = o, .v = v, .h = h};
    int rc = look_and_decide(&r, link, err);

    if (h->state == VC_HANDOVER_KEPT)
        rc = confirmed(&r, rc, err);
    else
        rc = heard(&r, rc, err);
    if (!rc && h->state == VC_HANDOVER_KEPT)
        rc = check_not_left_standing(&r, err);
    vc_look_end(&r.look);
    if (rc)
        return rc;
    h->state = VC_HANDOVER_SETTLED;
    return vc_handover_begin(v, h, err);
}

/* Locks the VM and reads its record, which may have changed since the other host was called. 0: it
 * is open, or settled already. */
static int lock_record(const struct vc_settle_options *o, const struct vc_id *session,
                       struct vc_vm **v, struct vc_handover *h, struct vc_err *err)
{
    int rc = vc_vm_open(o->store, o->vm, VC_VM_WRITE, v, err);

    if (!rc)
        rc = vc_handover_get(*v, h, err);
    if (rc == VC_NOT_FOUND ||
        (!rc && (!vc_id_equal(&h->session, session) ||
                 (h->state != VC_HANDOVER_LEFT && h->state != VC_HANDOVER_KEPT &&
                  h->state != VC_HANDOVER_SETTLED))))
        return vc_err_set(err, VC_E_NO_SUCH_VM, "no migration of this VM away from here is open");
    return rc;
}

int vc_session_repeat_word(const struct vc_settle_options *o, const struct vc_id *session,
                           struct vc_conn *conn, struct vc_err *err)
{
    struct vc_vm *v = NULL;
    struct vc_link *link;
    struct vc_handover h;
    int rc = meet(conn, o, &link, err);

    if (!rc)
        rc = lock_record(o, session, &v, &h, err);
    if (!rc && h.state != VC_HANDOVER_SETTLED)
        rc = settle(v, o, &h, link, err);
    vc_vm_close(v);
    vc_link_free(link);
    return rc;
}

int vc_session_ask(const struct vc_settle_options *o, struct vc_conn *conn, char text[VC_WHY_BYTES],
                   struct vc_err *err)
{
    struct vc_vm *v = NULL;
    struct vc_link *link;
    struct vc_handover h;
    struct round r = {.o = o, .h = &h};
    int rc = vc_vm_open(o->store, o->vm, VC_VM_READ, &v, err);

    if (!rc)
        rc = vc_handover_get(v, &h, err);
    vc_vm_close(v);
    if (rc) {
        vc_conn_close(conn);
        return rc;
    }
    rc = meet(conn, o, &link, err);
    if (!rc)
        rc = open_session(link, o, &h, err);
    if (!rc)
        rc = tell(&r, link, VC_WIRE_WORD_ASK, err);
    vc_link_free(link);
    if (!rc)
        snprintf(text, VC_WHY_BYTES, "%s", r.a.status.text);
    return rc;
}
