/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "session/common.h"

/* Repeating a word that was lost: a session of mode 3 (docs/formats/wire.md, WORD). */

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
