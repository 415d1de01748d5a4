/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "base/clock.h"
#include "session/migration.h"

/* The source's word that the VM is the destination's now: given by the session that migrated it, or
 * repeated in a session of mode 3 (docs/formats/wire.md, WORD). */

#define WORD_TIMEOUT_MS 30000

/* ---- the word, at its time ---- */

int vc_migration_give_word(struct vc_migration *m, struct vc_err *err)
{
    bool stays = m->o->suspend || m->user_paused || (m->o->recover && !m->owes_word);
    struct vc_wire_word_msg word = {.word = stays ? VC_WIRE_WORD_SUSPEND : VC_WIRE_WORD_CONTINUE,
                                    .session = m->session};
    struct vc_wire_status done;
    struct vc_link_frame *f;
    int rc = 0;

    if (m->has_record)
        rc = vc_handover_set(m->holding.vm, VC_HANDOVER_LEFT, err);
    if (rc) /* the word counts more than its record */
        vc_log_err(m->o->log, VC_LOG_ERROR, "the handover is not recorded", err);
    rc = VC_SESSION_SEND(m->link, VC_WIRE_WORD, vc_wire_word_encode, &word, err);
    if (!rc)
        rc = vc_inbox_get(&m->inbox, WORD_TIMEOUT_MS, &f);
    if (rc)
        return vc_err_set_hint(
            err, VC_E_UNSETTLED, "the VM is paused on both sides: `vecycle resolve` settles it",
            "the migration is complete, but '%.80s' was lost before it confirmed "
            "that the VM runs",
            vc_link_peer(m->link));
    rc = f->type == VC_WIRE_WORD_DONE
             ? vc_wire_status_decode(f->payload, f->bytes, &done, err)
             : vc_err_set(err, VC_E_PROTOCOL, "%s came where WORD_DONE was expected",
                          vc_wire_type_name(f->type));
    vc_link_frame_free(f);
    if (rc)
        return rc;
    if (done.code)
        return vc_err_set_hint(err, VC_E_UNSETTLED, "`vecycle resolve` settles it",
                               "the destination could not continue the VM: %.140s", done.text);
    if (m->paused_ns)
        m->result->downtime_ms = (vc_now_ns() - m->paused_ns) / VC_NS_PER_MS;
    m->word_given = true;
    if (m->has_record && vc_handover_set(m->holding.vm, VC_HANDOVER_SETTLED, err))
        vc_log_err(m->o->log, VC_LOG_WARNING, "the handover is not recorded", err);
    return 0;
}

/* ---- a word that was lost ---- */

static int ask(struct vc_link *link, const struct vc_id *vm, const struct vc_id *session,
               struct vc_err *err)
{
    struct vc_wire_open open = {.session = *session, .vm = *vm, .mode = VC_WIRE_MODE_WORD};
    struct vc_wire_word_msg word = {.word = VC_WIRE_WORD_CONTINUE, .session = *session};
    vc_auto_frame struct vc_link_frame *f = NULL;
    struct vc_wire_status done;
    uint64_t features;
    int rc = vc_link_hello(link, 0, &features, err);

    if (!rc)
        rc = VC_SESSION_SEND(link, VC_WIRE_OPEN, vc_wire_open_encode, &open, err);
    if (!rc)
        rc = VC_SESSION_SEND(link, VC_WIRE_WORD, vc_wire_word_encode, &word, err);
    if (!rc)
        rc = vc_session_expect(link, VC_WIRE_WORD_DONE, &f, err);
    if (!rc)
        rc = vc_wire_status_decode(f->payload, f->bytes, &done, err);
    if (!rc && done.code)
        rc = vc_err_set(err, VC_E_UNSETTLED, "the destination could not continue the VM: %.150s",
                        done.text);
    return rc;
}

int vc_session_repeat_word(struct vc_store *store, const struct vc_id *vm, struct vc_conn *conn,
                           struct vc_err *err)
{
    struct vc_link *link;
    struct vc_vm *v = NULL;
    struct vc_handover h;
    int rc = vc_link_new(conn, VC_WIRE_SOURCE, 0, &link, err);

    if (rc)
        return rc;
    rc = vc_vm_open(store, vm, VC_VM_WRITE, &v, err);
    if (!rc)
        rc = vc_handover_get(v, &h, err);
    if (rc == VC_NOT_FOUND || (!rc && h.state != VC_HANDOVER_LEFT))
        rc = vc_err_set(err, VC_E_NO_SUCH_VM, "no migration of this VM away from here is open");
    if (!rc)
        rc = ask(link, vm, &h.session, err);
    if (!rc) {
        h.state = VC_HANDOVER_SETTLED;
        rc = vc_handover_begin(v, &h, err);
    }
    vc_link_free(link);
    vc_vm_close(v);
    return rc;
}
