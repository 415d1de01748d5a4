/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <poll.h>
#include <string.h>

#include "base/clock.h"
#include "qmp/qmp.h"
#include "session/migration.h"

/* The end of a migration at the source: the word that makes the VM the destination's, and the
 * checkpoint that both hosts keep (docs/internals/phases.md, finish and confirm). */

/** A QEMU that cannot continue a VM now may do so in a moment; then it is left to the agents. */
#define LAST_WORDS 4
#define LAST_WORD_MS 250

/* ---- finish: the word ---- */

void vc_migration_record(struct vc_migration *m, enum vc_handover_state state)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_source_status st = {0};

    if (m->pipeline) /* not yet, where QEMU refuses to migrate */
        vc_source_status(m->pipeline, &st);
    if (m->recorded && m->user_paused)
        vc_handover_leave_paused(m->holding.vm);
    if (st.store_stuck)
        vc_log(m->o->log, VC_LOG_ERROR, "the handover is not recorded: the store hangs");
    else if (m->recorded && vc_handover_set(m->holding.vm, state, &err))
        vc_log_err(m->o->log, VC_LOG_ERROR, "the handover is not recorded", &err);
}

/* The answer to WORD. 0: *done is filled in; anything else: it is not known what it is. */
static int await_word_done(struct vc_migration *m, struct vc_wire_status *done, struct vc_err *err)
{
    bool stays = m->o->suspend || m->user_paused || (m->o->recover && !m->owes_word);
    struct vc_wire_word_msg word = {.word = stays ? VC_WIRE_WORD_SUSPEND : VC_WIRE_WORD_CONTINUE,
                                    .session = m->session};
    struct vc_link_frame *f;
    int rc = VC_SESSION_SEND(m->link, VC_WIRE_WORD, vc_wire_word_encode, &word, err);

    if (!rc)
        rc = vc_inbox_get(&m->inbox, VC_ANSWER_TIMES * (uint64_t)vc_link_dead_peer_ms(m->link), &f);
    if (rc)
        return rc;
    rc = f->type == VC_WIRE_WORD_DONE
             ? vc_wire_status_decode(f->payload, f->bytes, done, err)
             : vc_err_set(err, VC_E_PROTOCOL, "%s came where WORD_DONE was expected",
                          vc_wire_type_name(f->type));
    vc_link_frame_free(f);
    return rc;
}

/* The destination's QEMU died before the VM ran there: the one here is the only one, and as paused
 * as somebody has left it. */
static int take_back(struct vc_migration *m, const char *why, struct vc_err *err)
{
    int rc = m->user_paused ? 0 : vc_qmp_simple(m->qmp, "cont", err);

    if (rc)
        return vc_err_set_hint(err, VC_E_UNSETTLED, "`vecycle resolve` settles it",
                               "the destination lost the VM (%.80s), and it cannot be continued "
                               "here",
                               why);
    vc_migration_record(m, VC_HANDOVER_SETTLED);
    return vc_err_set(err, VC_E_DEST_QEMU, "%.160s; the VM %s here", why,
                      m->user_paused ? "is still" : "runs on");
}

/* Somebody has continued the VM here: the destination's must never run, and is told so at the end
 * of the session. QEMU lets nobody do that before it has completed. */
static int check_continued(struct vc_migration *m, struct vc_err *err)
{
    struct vc_err ignored = VC_ERR_INIT;
    char state[32];

    if (vc_migration_take_events(m, &ignored) || !m->continued ||
        vc_qmp_run_state(m->qmp, state, &ignored) || !strcmp(state, "postmigrate"))
        return 0;
    vc_migration_record(m, VC_HANDOVER_SETTLED);
    return vc_err_set(err, VC_E_CANCELLED,
                      "somebody continued the VM here, before the destination was told to");
}

int vc_migration_give_word(struct vc_migration *m, struct vc_err *err)
{
    struct vc_wire_status done = {0};

    vc_migration_record(m, VC_HANDOVER_LEFT); /* if it cannot be recorded, the word counts more */
    if (check_continued(m, err))
        return err->code;
    if (await_word_done(m, &done, err))
        return vc_err_set_hint(
            err, VC_E_UNSETTLED, "the agent settles it when it can, or `vecycle resolve --retry`",
            "the migration is complete, but '%.80s' was lost before it confirmed "
            "that the VM runs",
            vc_link_peer(m->link));
    if (done.code == -VC_E_DEST_QEMU && !vc_migration_has_switched(m) && !m->o->recover)
        return take_back(m, done.text, err);
    if (done.code) {
        vc_err_set_hint(err, VC_E_UNSETTLED, "`vecycle resolve` settles it",
                        "the destination could not continue the VM: %.140s", done.text);
        return VC_AGAIN;
    }
    if (m->paused_ns)
        m->result->downtime_ms = (vc_now_ns() - m->paused_ns) / VC_NS_PER_MS;
    m->word_given = true;
    vc_migration_record(m, VC_HANDOVER_SETTLED);
    return 0;
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
