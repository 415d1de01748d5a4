/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "net/address.h"
#include "qmp/qmp.h"
#include "session/migration.h"
#include "session/runstate.h"
#include "session/whereabouts.h"

/* The end of a migration at the source: the word that makes the VM the destination's, and the
 * checkpoint that both hosts keep (docs/internals/phases.md, finish and confirm). */

/** A QEMU that cannot continue a VM now may do so in a moment; then it is left to the agents. */
#define LAST_WORDS 4
/** Time for a process to be gone whose sockets are closed. */
#define EXIT_TIMEOUT_MS 2000
#define LAST_WORD_MS 250

/* ---- finish: the word ---- */

bool vc_migration_stays(const struct vc_migration *m)
{
    return m->o->suspend || !vc_run_state_goes_on(m->state);
}

/* A word and its answer. 0: *done is filled in; anything else: it is not known what it is. An
 * answer does not say to which word: after one that did not come no other word is sent over this
 * link. */
static int exchange(struct vc_migration *m, uint8_t which, uint64_t limit_ms, bool *never_ran,
                    struct vc_wire_status *done, struct vc_err *err)
{
    struct vc_wire_word_msg word = {.word = which, .session = m->session};
    struct vc_link_frame *f;
    int rc;

    if (m->awaits_answer)
        return vc_err_set(err, VC_E_PEER_LOST, "'%.80s' has not answered the decision before",
                          vc_link_peer(m->link));
    m->awaits_answer = true;
    rc = VC_SESSION_SEND(m->link, VC_WIRE_WORD, vc_wire_word_encode, &word, err);
    if (!rc)
        rc = vc_inbox_get(&m->inbox, limit_ms, &f);
    if (rc)
        return rc;
    *never_ran = f->type == VC_WIRE_NEVER_RAN;
    m->awaits_answer = f->type != VC_WIRE_WORD_DONE && !*never_ran;
    rc = f->type == VC_WIRE_WORD_DONE || *never_ran
             ? vc_wire_status_decode(f->payload, f->bytes, done, err)
             : vc_err_set(err, VC_E_PROTOCOL, "%s came where WORD_DONE was expected",
                          vc_wire_type_name(f->type));
    vc_link_frame_free(f);
    if (!rc && *never_ran && !done->code)
        rc = vc_err_set(err, VC_E_PROTOCOL, "NEVER_RAN: without a code");
    return rc;
}

/* A way through ssh is for whoever has the keys. */
static bool agent_can_settle(const struct vc_migration *m)
{
    return !vc_address_is_ssh(m->o->to);
}

/* Who settles what stays open. */
static const char *settler(struct vc_migration *m)
{
    char vm[VC_ID_TEXT_BYTES];

    vc_id_format(&m->vm, vm);
    snprintf(m->settler, sizeof(m->settler),
             agent_can_settle(m)
                 ? "the agent settles it when it can, or `vecycle resolve --retry %s`"
                 : "`vecycle resolve --retry %s` settles it",
             vm);
    return m->settler;
}

/* Its QEMU has ended: whether somebody has started the VM anew, as a supervisor does at once. */
static int check_not_started_anew(struct vc_migration *m, struct vc_err *err)
{
    pid_t other = vc_find_other_qemu(vc_qmp_process(m->qmp), &m->vm, m->neighbour);

    if (!other)
        return 0;
    m->started_anew = vc_process_is_younger(other, vc_qmp_process(m->qmp));
    if (other < 0)
        return vc_err_set_hint(err, VC_E_UNSETTLED,
                               "look at both hosts, then see `vecycle resolve`",
                               "the source QEMU has ended, and whether another one runs the VM "
                               "cannot be told: not all processes of this host can be seen");
    return vc_err_set_hint(err, VC_E_UNSETTLED, "look at both hosts, then see `vecycle resolve`",
                           "the source QEMU has ended, and process %d has the VM's UUID: it may "
                           "run the VM",
                           (int)other);
}

/* Somebody has continued the VM here, or QEMU cannot say that nobody has: the destination's must
 * not be told to run. QEMU lets nobody do that before it has completed. Nothing comes between this
 * look and the decision. */
static int check_continued(struct vc_migration *m, struct vc_err *err)
{
    struct vc_err ignored = VC_ERR_INIT;
    bool is_over;

    if (m->orphan) /* no RESUME was seen since the guest was paused */
        return check_not_started_anew(m, err);
    /* Events that came before the end of the connection are taken in all the same. */
    is_over = vc_migration_take_events(m, &ignored) != 0;
    if (m->continued)
        return vc_err_set(err, VC_E_CANCELLED,
                          "somebody continued the VM here, before the destination was told to");
    if (!is_over)
        return 0;
    if (vc_qmp_process_ended(m->qmp, EXIT_TIMEOUT_MS))
        return check_not_started_anew(m, err);
    return vc_err_set_hint(err, VC_E_UNSETTLED, settler(m),
                           "the migration is complete, but whether somebody has continued the VM "
                           "here is not known: %.120s",
                           ignored.message);
}

/* The same while the destination was told: then both may run. */
static int check_continued_meanwhile(struct vc_migration *m, struct vc_err *err)
{
    if (!vc_migration_was_continued(m))
        return 0;
    return vc_err_set_hint(err, VC_E_UNSETTLED, "if both run, stop one of the two at once",
                           "somebody continued the VM here while '%.80s' was told to, and did",
                           vc_link_peer(m->link));
}

bool vc_migration_was_continued(struct vc_migration *m)
{
    struct vc_err ignored = VC_ERR_INIT;

    if (m->qmp && !m->orphan && vc_migration_take_events(m, &ignored))
        vc_log_err(m->o->log, VC_LOG_DEBUG, "QEMU is gone", &ignored);
    return m->continued;
}

/* The destination's QEMU died before the VM ran there: the one here is the only one. It goes on if
 * it ran, and stays as it is otherwise. */
static int take_back(struct vc_migration *m, const char *why, struct vc_err *err)
{
    bool goes_on = vc_run_state_goes_on(m->state);
    char state[VC_RUN_STATE_BYTES];
    int rc = check_continued(m, err);

    if (rc && m->continued) /* by somebody, meanwhile */
        vc_migration_record(m, VC_HANDOVER_SETTLED);
    if (rc)
        return rc;
    rc = goes_on ? vc_qmp_run_state(m->qmp, state, err) : 0;
    if (!rc && goes_on && strcmp(state, "postmigrate") != 0)
        rc = vc_err_set(err, VC_E_QEMU_STATE, "it is in state '%s'", state);
    if (!rc && goes_on)
        rc = vc_qmp_simple(m->qmp, "cont", err);
    if (rc)
        return vc_err_set_hint(err, VC_E_UNSETTLED, "`vecycle resolve` settles it",
                               "the destination lost the VM (%.80s), and it cannot be continued "
                               "here",
                               why);
    vc_migration_record(m, VC_HANDOVER_SETTLED);
    return vc_err_set(err, VC_E_DEST_QEMU, "%.160s; the VM %s here", why,
                      goes_on ? "runs on" : "is still");
}

int vc_migration_give_word(struct vc_migration *m, struct vc_err *err)
{
    bool stays = vc_migration_stays(m) || (m->o->recover && !m->owes_word), never_ran;
    struct vc_wire_status done = {0};

    vc_migration_record(m, VC_HANDOVER_LEFT); /* if not, the counts stand for it */
    /* In a postcopy it may come before the answer, which is behind it on the way. */
    vc_source_pass_success(m->pipeline);
    if (check_continued(m, err)) {
        if (m->started_anew) /* noted, for when that one has ended */
            vc_migration_record(m, VC_HANDOVER_LEFT);
        return err->code;
    }
    m->told = true;
    if (exchange(m, stays ? VC_WIRE_WORD_SUSPEND : VC_WIRE_WORD_CONTINUE,
                 VC_ANSWER_TIMES * (uint64_t)vc_link_dead_peer_ms(m->link), &never_ran, &done, err))
        return vc_err_set_hint(
            err, VC_E_UNSETTLED, settler(m),
            "the migration is complete, but '%.80s' was lost before it confirmed "
            "that the VM runs",
            vc_link_peer(m->link));
    if (never_ran && !vc_migration_has_switched(m) && !m->o->recover)
        return take_back(m, done.text, err);
    if (done.code) {
        vc_err_set_hint(err, VC_E_UNSETTLED, "`vecycle resolve` settles it",
                        "the destination could not continue the VM: %.140s", done.text);
        return VC_AGAIN;
    }
    if (check_continued_meanwhile(m, err))
        return err->code;
    snprintf(m->result->state, sizeof(m->result->state), "%.31s",
             done.text[0] ? done.text
             : stays      ? ""
                          : "running");
    if (stays && !m->o->suspend)
        m->result->downtime_ms = 0; /* it stood still before, and stands still there */
    else if (m->paused_ns)
        m->result->downtime_ms = (vc_now_ns() - m->paused_ns) / VC_NS_PER_MS;
    m->word_given = true;
    vc_migration_record(m, VC_HANDOVER_SETTLED);
    return 0;
}

/* The VM is this host's. The destination may have a copy: it is told so now if it is there still,
 * else whoever settles the record tells it later. */
void vc_migration_keep_vm(struct vc_migration *m, bool runs)
{
    struct vc_wire_status done = {0};
    struct vc_err ignored = VC_ERR_INIT;
    bool never_ran, kept = vc_migration_record(m, VC_HANDOVER_KEPT);

    if (exchange(m, runs && kept ? VC_WIRE_WORD_DISMISS : VC_WIRE_WORD_ABANDON,
                 vc_link_dead_peer_ms(m->link), &never_ran, &done, &ignored))
        vc_log(m->o->log, agent_can_settle(m) ? VC_LOG_DEBUG : VC_LOG_WARNING,
               "the destination has not confirmed that it gives the VM up (%s)", settler(m));
    else if (done.code && !never_ran)
        vc_log(m->o->log, VC_LOG_ERROR, "the VM is kept here, and '%s' says: %s",
               vc_link_peer(m->link), done.text);
    else
        vc_migration_record(m, VC_HANDOVER_SETTLED);
}

int vc_migration_give_last_word(struct vc_migration *m, struct vc_err *err)
{
    int rc = vc_migration_give_word(m, err);

    for (int i = 1; rc == VC_AGAIN && i < LAST_WORDS; i++) {
        poll(NULL, 0, LAST_WORD_MS);
        rc = vc_migration_give_word(m, err);
    }
    return rc == VC_AGAIN ? err->code : rc;
}

/* ---- confirm: checkpoints ---- */

void vc_migration_describe(const struct vc_migration *m, struct vc_txn_note *note)
{
    struct vc_source_status st;

    vc_source_status(m->pipeline, &st);
    *note = (struct vc_txn_note){
        .same_pages = st.pages_same + st.pages_moved,
        .data_pages = st.pages_data,
        .role = 1,
        .peer = m->result->peer,
    };
}

void vc_migration_commit(struct vc_migration *m)
{
    struct vc_session_result *r = m->result;
    struct vc_txn *txn = vc_source_join(m->pipeline);
    struct vc_source_status st;
    struct vc_err err = VC_ERR_INIT;
    struct vc_txn_note note;
    uint8_t root[VC_ROOT_BYTES];

    vc_migration_describe(m, &note);
    vc_source_status(m->pipeline, &st);
    if (txn && !st.ram_known) { /* the recovery of a postcopy, of which RAM cannot be told */
        vc_txn_abort(txn);
    } else if (txn) {
        r->committed = vc_txn_commit(txn, &note, root, &err) == 0;
        if (!r->committed)
            vc_log_err(m->o->log, VC_LOG_WARNING, "no checkpoint is kept here", &err);
        r->committed = r->committed && vc_holding_stays(&m->holding);
    }
    vc_session_confirm(m->link, &m->inbox, &m->holding, &m->generation, r->committed ? root : NULL,
                       &r->confirmed, m->o->log);
}
