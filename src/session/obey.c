/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "qmp/qmp.h"
#include "session/arrival.h"
#include "session/runstate.h"

/* The source's word, at the destination: in the session of the migration, or in a later one of mode
 * 3 (docs/formats/wire.md, WORD). What must be known before the VM is continued, and what may be
 * said of it, is in docs/internals/handover.md. */

/** Time for a process to be gone whose sockets are closed. */
#define EXIT_TIMEOUT_MS 2000
/** Time for the last word to go out. */
#define BYE_TIMEOUT_MS 5000

void vc_arrival_note_events(struct arrival *a)
{
    struct vc_err ignored = VC_ERR_INIT;
    struct json_object *e;

    while (vc_qmp_event(a->qmp, &e, &ignored) == 0)
        json_object_put(e);
}

bool vc_arrival_is_postcopy(const struct arrival *a)
{
    return a->open.mode == VC_WIRE_MODE_POSTCOPY || a->open.mode == VC_WIRE_MODE_PREEMPT ||
           a->open.mode == VC_WIRE_MODE_RECOVER;
}

int vc_arrival_make_void(struct arrival *a, struct vc_err *err)
{
    int rc = a->recorded ? vc_handover_set(a->holding.vm, VC_HANDOVER_VOID, err) : 0;

    a->is_void = !rc;
    return rc;
}

void vc_arrival_watch(struct arrival *a)
{
    struct vc_err err = VC_ERR_INIT;

    if (!a->qmp || !a->pipeline || a->word_done || a->about_to_run)
        return;
    if (a->open.mode == VC_WIRE_MODE_RECOVER && !a->recorded) /* it was continued before, by us */
        return;
    vc_arrival_note_events(a);
    if (vc_qmp_is_gone(a->qmp) && !a->end_seen) {
        a->end_seen = true;
        a->unwatched = !vc_qmp_process_ended(a->qmp, EXIT_TIMEOUT_MS);
    }
    if (!vc_qmp_has_run(a->qmp))
        return;
    a->about_to_run = true;
    vc_log(
        a->o->log, VC_LOG_WARNING,
        "somebody has continued the VM here, before the source decided; if the source fails now, "
        "it runs there as well");
    if (a->recorded && vc_handover_set(a->holding.vm, VC_HANDOVER_ABOUT_TO_RUN, &err))
        vc_log_err(a->o->log, VC_LOG_WARNING, "the handover is not recorded", &err);
}

/* ---- the decision, applied to the VM that has arrived ---- */

/* Another QEMU that waits for a migration has not taken this one. */
static int check_arrived(const char *state, struct vc_err *err)
{
    if (strcmp(state, "inmigrate") != 0 && strcmp(state, "preconfig") != 0)
        return 0;
    return vc_err_set(err, VC_E_UNSETTLED, "the QEMU there is in state '%s': it has no VM yet",
                      state);
}

static bool is_to_go_on(uint8_t word, const char *state)
{
    return word == VC_WIRE_WORD_CONTINUE &&
           (!strcmp(state, "paused") || !strcmp(state, "suspended"));
}

/* `cont`, and the state that it has led to. */
static int continue_vm(struct vc_qmp *q, char state[VC_RUN_STATE_BYTES], struct vc_err *err)
{
    struct vc_err ignored = VC_ERR_INIT;
    int rc = vc_qmp_simple(q, "cont", err);

    if (!rc && vc_qmp_run_state(q, state, &ignored))
        snprintf(state, VC_RUN_STATE_BYTES, "running");
    return rc;
}

/* Does what the word says. *state: the VM's then, "" if it was not asked. */
static int apply(struct arrival *a, uint8_t word, char state[VC_RUN_STATE_BYTES],
                 struct vc_err *err)
{
    struct vc_dest_status st;
    int rc;

    *state = '\0';
    vc_dest_status(a->pipeline, &st);
    if (vc_arrival_is_postcopy(a) && word != VC_WIRE_WORD_CONTINUE && !st.shut)
        return 0; /* it runs, or somebody paused it: QEMU may be too busy to say which */
    rc = vc_qmp_run_state(a->qmp, state, err);
    if (!rc)
        rc = check_arrived(state, err);
    if (rc || !is_to_go_on(word, state) || a->interrupted.state == VC_HANDOVER_SETTLED)
        return rc; /* whatever became of the VM since it was continued is its own affair */
    if (a->interrupted.state == VC_HANDOVER_VOID)
        return vc_err_set(err, VC_E_UNSETTLED, "the VM is the source's, and never runs there");
    if (a->recorded) {
        vc_handover_edit(a->holding.vm)->told = true;
        rc = vc_handover_set(a->holding.vm, VC_HANDOVER_ABOUT_TO_RUN, err);
        if (rc)
            return rc;
    }
    a->about_to_run = true;
    return continue_vm(a->qmp, state, err);
}

/* ---- in the session of the migration ---- */

static void answer(struct arrival *a, enum vc_wire_type type, int rc, const char *text)
{
    struct vc_wire_status done = {.code = (uint32_t)-rc};
    struct vc_err ignored = VC_ERR_INIT;

    snprintf(done.text, sizeof(done.text), "%s", text);
    if (VC_SESSION_SEND(a->link, (uint8_t)type, vc_wire_status_encode, &done, &ignored))
        vc_log(a->o->log, VC_LOG_WARNING, "the source did not hear what became of the VM here");
}

/* Whether it is certain that the VM is dead and never ran. */
static bool never_ran(struct arrival *a)
{
    /* In a recovery the connection may be younger than the VM. */
    if (a->about_to_run || a->open.mode == VC_WIRE_MODE_RECOVER || !vc_qmp_is_gone(a->qmp) ||
        !vc_qmp_process_ended(a->qmp, EXIT_TIMEOUT_MS))
        return false;
    vc_arrival_watch(a); /* what it had said before it went */
    return !a->unwatched && !vc_qmp_has_run(a->qmp);
}

/* The word could not be applied. VC_E_DEST_QEMU: the VM is the source's again, and is told to be.
 */
static int cannot_apply(struct arrival *a, int rc, struct vc_err *err)
{
    struct vc_err why = *err, void_err = VC_ERR_INIT;

    if (!never_ran(a) || vc_arrival_make_void(a, &void_err)) {
        answer(a, VC_WIRE_WORD_DONE, rc, err->message);
        return why.code;
    }
    (void)vc_err_set_hint(err, VC_E_DEST_QEMU, "see its own messages",
                          "the destination QEMU died before the VM ran there");
    answer(a, VC_WIRE_NEVER_RAN, VC_E_DEST_QEMU, err->message);
    return VC_E_DEST_QEMU;
}

static void record_settled(struct arrival *a)
{
    struct vc_err err = VC_ERR_INIT;

    if (a->recorded)
        vc_handover_edit(a->holding.vm)->awaits_rest = vc_arrival_is_postcopy(a);
    if (a->recorded && vc_handover_set(a->holding.vm, VC_HANDOVER_SETTLED, &err))
        vc_log_err(a->o->log, VC_LOG_WARNING, "the handover is not recorded", &err);
}

/* The copy that the source has no use for. Only the QEMU that took the migration is told to end,
 * and only if it has arrived: one that waits may take the next. */
static void dismiss(struct arrival *a, const struct vc_process *qemu, const char *name)
{
    struct vc_err ignored = VC_ERR_INIT;
    char state[VC_RUN_STATE_BYTES];

    if (vc_qmp_is_gone(a->qmp) || vc_qmp_run_state(a->qmp, state, &ignored) ||
        !strcmp(state, "running") || check_arrived(state, &ignored))
        return;
    if (strcmp(state, "paused") != 0 || !vc_process_equal(vc_qmp_process(a->qmp), qemu))
        vc_log(
            a->o->log, VC_LOG_WARNING,
            "the QEMU at '%.120s' is left over from a migration that the source gave up: quit it",
            name);
    else if (vc_qmp_simple(a->qmp, "quit", &ignored) == 0)
        vc_log(
            a->o->log, VC_LOG_INFO,
            "the QEMU at '%.120s' was left over from a migration that the source gave up: it was "
            "told to quit",
            name);
}

/* The VM is the source's. Its copy here is told to quit where the source's was seen to run. */
static int abandon(struct arrival *a, uint8_t word, struct vc_err *err)
{
    struct vc_dest_status st;

    vc_arrival_watch(a);
    vc_dest_status(a->pipeline, &st);
    if (a->about_to_run || a->word_done) {
        answer(a, VC_WIRE_WORD_DONE, VC_E_UNSETTLED, "the VM runs there, or did");
        return vc_err_set_hint(err, VC_E_UNSETTLED, "stop one of the two at once",
                               "the source keeps the VM, and it runs here too");
    }
    if (a->unwatched && st.shut && !st.shut_status) {
        answer(a, VC_WIRE_WORD_DONE, VC_E_UNSETTLED, "its QEMU cannot be asked any more");
        return vc_err_set(err, VC_E_UNSETTLED,
                          "the source keeps the VM, and QEMU here cannot be asked whether it runs");
    }
    if (vc_arrival_make_void(a, err)) {
        answer(a, VC_WIRE_WORD_DONE, err->code, err->message);
        return err->code;
    }
    answer(a, VC_WIRE_WORD_DONE, 0, "");
    if (word == VC_WIRE_WORD_DISMISS)
        dismiss(a, vc_qmp_process(a->qmp), a->name);
    return vc_err_set(err, VC_E_CANCELLED, "the source gave the migration up");
}

static int check_word(struct arrival *a, const struct vc_wire_word_msg *word, struct vc_err *err)
{
    struct vc_dest_status st;
    bool has_come;

    vc_dest_status(a->pipeline, &st);
    has_come = st.shut && !st.shut_status;
    if (!vc_id_equal(&word->session, &a->open.session) || !a->qmp || word->word == VC_WIRE_WORD_ASK)
        return vc_err_set(err, VC_E_PROTOCOL, "WORD: about another session");
    if (word->word == VC_WIRE_WORD_ABANDON || word->word == VC_WIRE_WORD_DISMISS)
        return a->open.mode == VC_WIRE_MODE_RECOVER
                   ? vc_err_set(err, VC_E_PROTOCOL, "WORD: of a VM that may run here already")
                   : 0;
    if (vc_arrival_is_postcopy(a) && a->open.mode != VC_WIRE_MODE_RECOVER)
        has_come = st.stream_bytes;
    if (!has_come)
        return vc_err_set(err, VC_E_PROTOCOL, "WORD: came before the VM had arrived");
    return 0;
}

int vc_arrival_obey(struct arrival *a, const struct vc_link_frame *f, struct vc_err *err)
{
    struct vc_wire_word_msg word;
    char state[VC_RUN_STATE_BYTES];
    int rc = vc_wire_word_decode(f->payload, f->bytes, &word, err);

    if (!rc)
        rc = check_word(a, &word, err);
    if (rc)
        return rc;
    if (word.word == VC_WIRE_WORD_ABANDON || word.word == VC_WIRE_WORD_DISMISS)
        return abandon(a, word.word, err);
    rc = apply(a, word.word, state, err);
    if (rc) {
        rc = cannot_apply(a, rc, err);
        if (a->is_void || vc_qmp_is_gone(a->qmp))
            return rc;
        vc_log_err(a->o->log, VC_LOG_WARNING, "the VM is not continued yet", err);
        *err = VC_ERR_INIT;
        return 0; /* the word is given again */
    }
    a->word_done = true;
    snprintf(a->result->state, sizeof(a->result->state), "%s", state);
    /* Of a VM that goes on the record knows enough; the guest waits for nobody's disk. */
    if (!a->about_to_run)
        record_settled(a);
    answer(a, VC_WIRE_WORD_DONE, 0, state);
    if (a->about_to_run)
        record_settled(a);
    return 0;
}

/* ---- mode 3: a word that was lost ---- */

/* The QEMU that the record names, if it is the one of the record. VC_NOT_FOUND: it is gone for
 * certain; VC_E_UNSETTLED: it cannot be told, for whatever reason. */
static int find_arrived(struct arrival *a, const struct vc_handover *h, struct vc_err *err)
{
    int rc = vc_arrival_connect(a, h->socket, err);

    if (!rc)
        rc = vc_target_check(a->qmp, &a->open.vm, h, err);
    if (rc && vc_process_look(&h->qemu) == VC_PROCESS_GONE) {
        (void)vc_err_set(err, VC_E_UNSETTLED,
                         "its QEMU has ended there, and whether the VM ran is not known");
        return VC_NOT_FOUND;
    }
    if (rc)
        err->code = VC_E_UNSETTLED;
    return rc ? VC_E_UNSETTLED : 0;
}

static int record(struct arrival *a, struct vc_handover *h, enum vc_handover_state state,
                  struct vc_err *err)
{
    if (h->state == state)
        return 0;
    h->state = (uint8_t)state;
    return vc_handover_begin(a->holding.vm, h, err);
}

/* Continue or suspend. The VM may run already, if somebody has continued it, or the word was
 * applied and its record came too late. */
static int apply_late(struct arrival *a, struct vc_handover *h, uint8_t word,
                      char state[VC_RUN_STATE_BYTES], struct vc_err *err)
{
    int rc = find_arrived(a, h, err);

    if (rc == VC_NOT_FOUND)
        return VC_E_UNSETTLED;
    if (!rc)
        rc = vc_qmp_run_state(a->qmp, state, err);
    if (!rc)
        rc = check_arrived(state, err);
    if (!rc && is_to_go_on(word, state)) {
        bool decided = h->state == VC_HANDOVER_ABOUT_TO_RUN && h->told;

        h->told = true;
        h->state = VC_HANDOVER_ABOUT_TO_RUN;
        rc = decided ? 0 : vc_handover_begin(a->holding.vm, h, err);
        if (!rc)
            rc = continue_vm(a->qmp, state, err);
    }
    return rc ? rc : record(a, h, VC_HANDOVER_SETTLED, err);
}

/* The VM is the source's: the one that has arrived here must never run. */
static int abandon_late(struct arrival *a, struct vc_handover *h, uint8_t word, struct vc_err *err)
{
    bool is_void = h->state == VC_HANDOVER_VOID;
    char state[VC_RUN_STATE_BYTES] = "";
    int rc = find_arrived(a, h, err), gone = rc == VC_NOT_FOUND;

    if (is_void && (rc || word != VC_WIRE_WORD_DISMISS))
        return 0;
    if (!rc)
        rc = vc_qmp_run_state(a->qmp, state, err);
    if (!rc && (!strcmp(state, "running") || vc_qmp_has_run(a->qmp)))
        rc = vc_err_set(err, VC_E_UNSETTLED, "the VM runs there");
    if (!rc || gone)
        rc = record(a, h, VC_HANDOVER_VOID, err);
    if (!rc && !gone && word == VC_WIRE_WORD_DISMISS)
        dismiss(a, &h->qemu, h->socket);
    return rc;
}

/* What is known here, as a text. */
static void tell(struct arrival *a, const struct vc_handover *h, char *text, size_t n)
{
    static const char *const says[] = {
        [VC_HANDOVER_ARRIVING] = "it is arriving, or has arrived and waits",
        [VC_HANDOVER_ABOUT_TO_RUN] = "it was about to be continued",
        [VC_HANDOVER_SETTLED] = "the migration is settled: it runs there, or did",
        [VC_HANDOVER_VOID] = "it never ran there and never will",
    };
    const char *what = h->state < VC_ARRAY_LEN(says) && says[h->state]
                           ? says[h->state]
                           : "it is leaving, or has left";
    bool is_open = h->state == VC_HANDOVER_ARRIVING || h->state == VC_HANDOVER_ABOUT_TO_RUN;
    char state[VC_RUN_STATE_BYTES];
    struct vc_err err = VC_ERR_INIT;
    int rc = find_arrived(a, h, &err);

    if (rc == VC_NOT_FOUND && is_open) {
        snprintf(text, n, "its QEMU has ended there, and whether the VM ran is not known");
        return;
    }
    if (!rc)
        rc = vc_qmp_run_state(a->qmp, state, &err);
    if (!rc)
        snprintf(text, n, "%s; its QEMU is in state '%s'", what, state);
    else if (is_open)
        snprintf(text, n, "%s; %.150s", what, err.message);
    else
        snprintf(text, n, "%s", what);
}

/* Applies the word to the migration of that record. *text: of the answer. */
static int judge(struct arrival *a, struct vc_handover *h, uint8_t word, char *text, size_t n,
                 struct vc_err *err)
{
    bool to_abandon = word == VC_WIRE_WORD_ABANDON || word == VC_WIRE_WORD_DISMISS;
    char state[VC_RUN_STATE_BYTES] = "";
    int rc = 0;

    if (word == VC_WIRE_WORD_ASK) {
        tell(a, h, text, n);
        return 0;
    }
    switch (h->state) {
    case VC_HANDOVER_ARRIVING:
        rc = to_abandon ? abandon_late(a, h, word, err) : apply_late(a, h, word, state, err);
        break;
    case VC_HANDOVER_ABOUT_TO_RUN:
        rc = to_abandon ? vc_err_set(err, VC_E_UNSETTLED, "the VM runs there, or did")
                        : apply_late(a, h, word, state, err);
        break;
    case VC_HANDOVER_SETTLED: /* whatever became of the VM since is its own affair */
        rc = to_abandon ? vc_err_set(err, VC_E_UNSETTLED, "the VM runs there, or did") : 0;
        break;
    case VC_HANDOVER_VOID:
        rc = to_abandon ? abandon_late(a, h, word, err)
                        : vc_err_set(err, VC_E_DEST_QEMU, "the VM never ran there");
        break;
    default:
        rc = vc_err_set(err, VC_E_UNSETTLED, "the VM is leaving there, or has left");
    }
    snprintf(text, n, "%s", rc ? err->message : state);
    return rc;
}

/* Reads the record; before that, and before the VM is locked, the peer's access is known: to this
 * host (asked for when it came), then to the VM at the socket that the record names. */
static int read_record(struct arrival *a, const struct vc_wire_word_msg *word,
                       struct vc_handover *h, struct vc_err *err)
{
    struct vc_vm *vm = NULL;
    struct vc_err trouble = VC_ERR_INIT;
    int rc = a->o->store ? vc_vm_open(a->o->store, &a->open.vm, VC_VM_READ, &vm, &trouble)
                         : VC_NOT_FOUND;
    int leave;

    *h = (struct vc_handover){0};
    if (!rc)
        rc = vc_handover_get(vm, h, &trouble);
    vc_vm_close(vm);
    leave = vc_arrival_ask_leave(a, h->socket, err); /* also where there is no record */
    if (leave)
        return leave;
    if (!rc)
        rc = vc_vm_open(a->o->store, &a->open.vm, VC_VM_WRITE, &a->holding.vm, &trouble);
    if (!rc)
        rc = vc_handover_get(a->holding.vm, h, &trouble); /* as it is under the lock */
    if (rc == VC_NOT_FOUND ||
        (!rc && (h->state == VC_HANDOVER_NONE || !vc_id_equal(&h->session, &word->session))))
        return vc_err_set(err, VC_E_NO_SUCH_VM, "this host knows nothing of that migration");
    if (rc)
        *err = trouble;
    return rc;
}

int vc_arrival_repeat_word(struct arrival *a, struct vc_err *err)
{
    vc_auto_frame struct vc_link_frame *f = NULL;
    char text[VC_WIRE_MAX_TEXT_BYTES + 1] = "";
    struct vc_wire_word_msg word;
    struct vc_handover h;
    int rc = vc_session_expect(a->link, VC_WIRE_WORD, &f, err);

    if (!rc)
        rc = vc_wire_word_decode(f->payload, f->bytes, &word, err);
    if (!rc)
        rc = read_record(a, &word, &h, err);
    if (rc)
        return rc;
    rc = judge(a, &h, word.word, text, sizeof(text), err);
    answer(a,
           rc && h.state == VC_HANDOVER_VOID && word.word != VC_WIRE_WORD_ABANDON &&
                   word.word != VC_WIRE_WORD_DISMISS
               ? VC_WIRE_NEVER_RAN
               : VC_WIRE_WORD_DONE,
           rc, text);
    vc_link_finish(a->link, BYE_TIMEOUT_MS);
    return rc;
}
