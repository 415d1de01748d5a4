/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "qmp/qmp.h"
#include "session/arrival.h"

/* The source's word, at the destination: in the session of the migration, or in a later one of mode
 * 3 (docs/formats/wire.md, WORD). A VM is continued only while the record says that it waits for
 * its word, and only if it is paused: once obeyed, what became of it is its own affair. */

/** Time for a process to be gone whose sockets are closed. */
#define EXIT_TIMEOUT_MS 2000
/** Time for the last word to go out. */
#define BYE_TIMEOUT_MS 5000

void vc_arrival_note_events(struct arrival *a)
{
    struct vc_err ignored = VC_ERR_INIT;
    struct json_object *e;

    while (vc_qmp_event(a->qmp, &e, &ignored) == 0) {
        if (!strcmp(vc_json_str(e, "event", ""), "RESUME"))
            a->ran = true;
        json_object_put(e);
    }
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

/* Does what the word says with the VM that has arrived. */
static int apply(struct arrival *a, uint8_t word, struct vc_err *err)
{
    char state[32];
    int rc;

    if (vc_arrival_is_postcopy(a) && word != VC_WIRE_WORD_CONTINUE)
        return 0; /* it runs, or somebody paused it: QEMU may be too busy to say which */
    rc = vc_qmp_run_state(a->qmp, state, err);
    if (!rc && word == VC_WIRE_WORD_CONTINUE)
        rc = vc_qmp_simple(a->qmp, "cont", err);
    return rc;
}

/* The word could not be obeyed. Where it is certain that the VM is dead and never ran, it is the
 * source's again: VC_E_DEST_QEMU, which the source acts upon. */
static int cannot_obey(struct arrival *a, int rc, struct vc_err *err)
{
    struct vc_err why = *err, void_err = VC_ERR_INIT;

    if (!vc_qmp_is_gone(a->qmp) || !vc_qmp_process_ended(a->qmp, EXIT_TIMEOUT_MS))
        return rc;
    vc_arrival_note_events(a);
    if (a->ran)
        return rc;
    rc = vc_arrival_make_void(a, &void_err);
    if (rc)
        return why.code;
    return vc_err_set_hint(err, VC_E_DEST_QEMU, "see its own messages",
                           "the destination QEMU died before the VM ran there");
}

static int check_word(struct arrival *a, const struct vc_wire_word_msg *word, struct vc_err *err)
{
    struct vc_dest_status st;
    bool has_come;

    vc_dest_status(a->pipeline, &st);
    has_come = st.shut && !st.shut_status;
    if (!vc_id_equal(&word->session, &a->open.session) || !a->qmp)
        return vc_err_set(err, VC_E_PROTOCOL, "WORD: about another session");
    if (word->word == VC_WIRE_WORD_ABANDON) {
        if (vc_arrival_make_void(a, err))
            return err->code;
        return vc_err_set(err, VC_E_CANCELLED, "the source gave the migration up");
    }
    if (vc_arrival_is_postcopy(a) && a->open.mode != VC_WIRE_MODE_RECOVER)
        has_come = st.stream_bytes;
    if (!has_come)
        return vc_err_set(err, VC_E_PROTOCOL, "WORD: came before the VM had arrived");
    return 0;
}

int vc_arrival_obey(struct arrival *a, const struct vc_link_frame *f, struct vc_err *err)
{
    struct vc_wire_word_msg word;
    struct vc_wire_status done = {0};
    struct vc_err ignored = VC_ERR_INIT;
    int rc = vc_wire_word_decode(f->payload, f->bytes, &word, err);

    if (!rc)
        rc = check_word(a, &word, err);
    if (rc)
        return rc;
    rc = apply(a, word.word, err);
    if (rc)
        rc = cannot_obey(a, rc, err);
    if (rc) {
        done.code = (uint32_t)-rc;
        snprintf(done.text, sizeof(done.text), "%s", err->message);
    }
    a->word_done = !rc;
    if (VC_SESSION_SEND(a->link, VC_WIRE_WORD_DONE, vc_wire_status_encode, &done, &ignored))
        vc_log(a->o->log, VC_LOG_WARNING, "the source did not hear what became of the VM here");
    if (!rc && a->recorded && vc_handover_set(a->holding.vm, VC_HANDOVER_SETTLED, &ignored))
        vc_log_err(a->o->log, VC_LOG_WARNING, "the handover is not recorded", &ignored);
    if (!rc || a->is_void || vc_qmp_is_gone(a->qmp))
        return rc;
    vc_log_err(a->o->log, VC_LOG_WARNING, "the VM is not continued yet", err);
    *err = VC_ERR_INIT;
    return 0; /* the word is given again */
}

/* ---- mode 3: a word that was lost ---- */

/* The QEMU that the record names, if it is this VM's. */
static int find_arrived(struct arrival *a, const struct vc_handover *h, struct vc_err *err)
{
    struct vc_id uuid;
    int rc = vc_arrival_connect(a, h->socket, err);

    if (!rc)
        rc = vc_qmp_uuid(a->qmp, &uuid, err);
    if (!rc && !vc_id_equal(&uuid, &a->open.vm))
        rc = vc_err_set(err, VC_E_UNSETTLED, "another VM has its socket now");
    return rc;
}

/* A VM that waits for its word is paused. If it runs, somebody has continued it, or the word was
 * obeyed and the record came too late. In any other state it has run and gone on. */
static int obey_late(struct arrival *a, const struct vc_handover *h, uint8_t word,
                     struct vc_err *err)
{
    char state[32];
    int rc = find_arrived(a, h, err);

    if (!rc)
        rc = vc_qmp_run_state(a->qmp, state, err);
    if (rc || !strcmp(state, "running"))
        return rc;
    if (strcmp(state, "paused") != 0)
        return vc_err_set(err, VC_E_UNSETTLED, "the VM is in state '%s' there", state);
    return word == VC_WIRE_WORD_CONTINUE ? vc_qmp_simple(a->qmp, "cont", err) : 0;
}

/* The source's VM runs: the one that has arrived here must not. */
static int abandon_late(struct arrival *a, const struct vc_handover *h, struct vc_err *err)
{
    char state[32];
    int rc = find_arrived(a, h, err);

    if (rc == VC_E_NO_SUCH_VM || rc == VC_E_DEST_QEMU) /* no such QEMU any more */
        return 0;
    if (!rc)
        rc = vc_qmp_run_state(a->qmp, state, err);
    if (!rc && strcmp(state, "paused") != 0 && strcmp(state, "inmigrate") != 0)
        rc = vc_err_set(err, VC_E_UNSETTLED, "the VM is in state '%s' there", state);
    return rc;
}

/* What is to be said about the migration of that record. *end: how the record is to end. */
static int judge(struct arrival *a, const struct vc_handover *h, uint8_t word,
                 enum vc_handover_state *end, struct vc_err *err)
{
    bool abandon = word == VC_WIRE_WORD_ABANDON;

    *end = (enum vc_handover_state)h->state;
    switch (h->state) {
    case VC_HANDOVER_ARRIVING:
        *end = abandon ? VC_HANDOVER_VOID : VC_HANDOVER_SETTLED;
        return abandon ? abandon_late(a, h, err) : obey_late(a, h, word, err);
    case VC_HANDOVER_SETTLED: /* it was obeyed: whatever became of the VM since is its own affair */
        return abandon ? vc_err_set(err, VC_E_UNSETTLED, "the VM runs there, or did") : 0;
    case VC_HANDOVER_VOID:
        return abandon ? 0 : vc_err_set(err, VC_E_DEST_QEMU, "the VM never ran there");
    default:
        return vc_err_set(err, VC_E_UNSETTLED, "the VM is leaving there, or has left");
    }
}

static int read_record(struct arrival *a, const struct vc_wire_word_msg *word,
                       struct vc_handover *h, struct vc_err *err)
{
    int rc = a->o->store ? vc_vm_open(a->o->store, &a->open.vm, VC_VM_WRITE, &a->holding.vm, err)
                         : VC_NOT_FOUND;

    if (!rc)
        rc = vc_handover_get(a->holding.vm, h, err);
    if (rc >= 0) { /* also who may not is not told whether there is a record */
        int leave = vc_arrival_ask_leave(a, h->socket, err);

        if (leave)
            return leave;
    }
    if (rc == VC_NOT_FOUND ||
        (!rc && (h->state == VC_HANDOVER_NONE || !vc_id_equal(&h->session, &word->session))))
        rc = vc_err_set(err, VC_E_NO_SUCH_VM, "this host knows nothing of that migration");
    return rc;
}

int vc_arrival_repeat_word(struct arrival *a, struct vc_err *err)
{
    vc_auto_frame struct vc_link_frame *f = NULL;
    struct vc_wire_status done = {0};
    struct vc_wire_word_msg word;
    struct vc_err ignored = VC_ERR_INIT;
    enum vc_handover_state end;
    struct vc_handover h = {0};
    int rc = vc_session_expect(a->link, VC_WIRE_WORD, &f, err);

    if (!rc)
        rc = vc_wire_word_decode(f->payload, f->bytes, &word, err);
    if (!rc)
        rc = read_record(a, &word, &h, err);
    if (rc)
        return rc;
    rc = judge(a, &h, word.word, &end, err);
    if (!rc && end != h.state) {
        h.state = (uint8_t)end;
        rc = vc_handover_begin(a->holding.vm, &h, err);
        if (rc && end == VC_HANDOVER_SETTLED) { /* it runs all the same */
            vc_log_err(a->o->log, VC_LOG_WARNING, "the handover is not recorded", err);
            rc = 0;
        }
    }
    if (rc) {
        done.code = (uint32_t)-rc;
        snprintf(done.text, sizeof(done.text), "%s", err->message);
    }
    if (VC_SESSION_SEND(a->link, VC_WIRE_WORD_DONE, vc_wire_status_encode, &done, &ignored))
        vc_log(a->o->log, VC_LOG_WARNING, "the source did not hear what became of the VM here");
    vc_link_finish(a->link, BYE_TIMEOUT_MS);
    return rc;
}
