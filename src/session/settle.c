/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "qmp/qmp.h"
#include "session/common.h"

/* What is left of a migration whose end got lost, mostly at its source (docs/internals/phases.md).
 * Nobody guesses: the record says how far things had come, the source's own QEMU whether it
 * completed and whether the VM runs here, and the destination answers for itself. Whoever settles
 * holds the VM's lock from reading the record to writing it. */

/** What the QEMU of the record says of the VM. */
enum whereabouts {
    HERE,    /* it runs here */
    LEFT,    /* migrated away: paused, and QEMU says that its migration completed */
    GONE,    /* there is no such QEMU any more */
    UNCLEAR, /* paused by somebody, in the middle of something, or another VM */
};

static int ask_state(struct vc_qmp *q, const struct vc_id *vm, enum whereabouts *out,
                     struct vc_err *err)
{
    struct vc_qmp_migration now;
    struct vc_id uuid;
    char state[32];
    int rc = vc_qmp_uuid(q, &uuid, err);

    if (!rc)
        rc = vc_qmp_run_state(q, state, err);
    if (!rc)
        rc = vc_qmp_migration(q, &now, err);
    if (rc)
        return rc;
    if (!vc_id_equal(&uuid, vm))
        *out = GONE; /* another VM has the socket now */
    else if (!strcmp(state, "running"))
        *out = HERE;
    else if (!strcmp(state, "postmigrate") && !strcmp(now.status, "completed"))
        *out =
            LEFT; /* after a migration that failed with the guest paused, it is not "completed" */
    else
        *out = UNCLEAR;
    return 0;
}

static int connect_vm(const struct vc_handover *h, const char *socket_dir, struct vc_qmp **q,
                      struct vc_err *err)
{
    int fd;

    if (h->state != VC_HANDOVER_ARRIVING)
        return vc_qmp_connect(h->socket, q, err);
    fd = vc_target_connect(socket_dir, h->socket, ".qmp", err);
    return fd < 0 ? fd : vc_qmp_from_fd(fd, h->socket, q, err);
}

/* *q_out: the connection, if there is that QEMU (NULL if not). */
static int find_vm(const struct vc_handover *h, const char *socket_dir, const struct vc_id *vm,
                   enum whereabouts *out, struct vc_qmp **q_out, struct vc_err *err)
{
    struct vc_qmp *q;
    int rc = connect_vm(h, socket_dir, &q, err);

    *q_out = NULL;
    if (rc && (err->sys_errno == ENOENT || err->sys_errno == ECONNREFUSED)) {
        *out = GONE;
        return 0;
    }
    if (rc)
        return rc;
    rc = ask_state(q, vm, out, err);
    if (rc || *out == GONE)
        vc_qmp_free(q);
    else
        *q_out = q;
    return rc;
}

/* What the record is to say, seen what QEMU says. */
static uint8_t state_now(uint8_t state, enum whereabouts where)
{
    if (where == HERE)
        return VC_HANDOVER_SETTLED;
    return state == VC_HANDOVER_LEAVING && where == LEFT ? VC_HANDOVER_LEFT : state;
}

/* What was interrupted is asked about; anything else is known. */
static int look(struct vc_vm *v, const struct vc_id *vm, const char *socket_dir,
                struct vc_handover *h, const struct vc_log *log, struct vc_err *err)
{
    enum whereabouts where;
    struct vc_qmp *q;
    int rc;

    if (h->state != VC_HANDOVER_LEAVING && (h->state != VC_HANDOVER_ARRIVING || !socket_dir))
        return 0;
    rc = find_vm(h, socket_dir, vm, &where, &q, err);
    vc_qmp_free(rc ? NULL : q);
    if (rc || state_now(h->state, where) == h->state)
        return rc;
    vc_log(log, VC_LOG_WARNING, "a migration %s '%s' was interrupted: %s",
           h->state == VC_HANDOVER_ARRIVING ? "from" : "to", h->peer,
           where == LEFT ? "it had completed" : "the VM runs here");
    h->state = state_now(h->state, where);
    return vc_handover_begin(v, h, err);
}

int vc_session_look_back(struct vc_store *store, const struct vc_id *vm, const char *socket_dir,
                         struct vc_handover *h, const struct vc_log *log, struct vc_err *err)
{
    struct vc_vm *v = NULL;
    int rc = vc_vm_open(store, vm, VC_VM_WRITE, &v, err);

    if (!rc)
        rc = vc_handover_get(v, h, err);
    if (!rc)
        rc = look(v, vm, socket_dir, h, log, err);
    vc_vm_close(v);
    return rc;
}

/* The exchange itself: *done is the destination's answer. */
static int ask(struct vc_link *link, const struct vc_id *vm, const struct vc_id *session,
               uint8_t which, struct vc_wire_status *done, struct vc_err *err)
{
    struct vc_wire_open open = {.session = *session, .vm = *vm, .mode = VC_WIRE_MODE_WORD};
    struct vc_wire_word_msg word = {.word = which, .session = *session};
    vc_auto_frame struct vc_link_frame *f = NULL;
    uint64_t features;
    int rc = vc_link_hello(link, 0, &features, err);

    if (!rc)
        rc = VC_SESSION_SEND(link, VC_WIRE_OPEN, vc_wire_open_encode, &open, err);
    if (!rc)
        rc = VC_SESSION_SEND(link, VC_WIRE_WORD, vc_wire_word_encode, &word, err);
    if (!rc)
        rc = vc_session_expect(link, VC_WIRE_WORD_DONE, &f, err);
    return rc ? rc : vc_wire_status_decode(f->payload, f->bytes, done, err);
}

static int ask_guarded(struct vc_conn *conn, struct vc_cancel *cancel, const struct vc_id *vm,
                       const struct vc_id *session, uint8_t which, struct vc_wire_status *done,
                       struct vc_err *err)
{
    struct vc_guard guard;
    struct vc_link *link;
    int rc = vc_link_new(conn, VC_WIRE_SOURCE, 0, &link, err);

    if (rc)
        return rc;
    rc = vc_guard_start(&guard, link, cancel, VC_OPEN_TIMES * VC_LINK_DEAD_PEER_MS, err);
    if (!rc)
        rc = vc_guard_end(&guard, ask(link, vm, session, which, done, err), err);
    vc_link_free(link);
    return rc;
}

/* The word is about a VM that is not here: it runs there, or died before it did. */
static int give(struct vc_conn *conn, struct vc_cancel *cancel, const struct vc_id *vm,
                const struct vc_handover *h, struct vc_qmp *q, const struct vc_log *log,
                struct vc_err *err)
{
    struct vc_wire_status done = {0};
    int rc = ask_guarded(conn, cancel, vm, &h->session,
                         h->suspend ? VC_WIRE_WORD_SUSPEND : VC_WIRE_WORD_CONTINUE, &done, err);

    if (rc)
        return rc;
    if (done.code == -VC_E_DEST_QEMU && q) {
        vc_log(log, VC_LOG_WARNING, "the VM is not at '%s' (%s), and goes on here", h->peer,
               done.text);
        return vc_qmp_simple(q, "cont", err);
    }
    return done.code ? vc_err_set(err, VC_E_UNSETTLED,
                                  "the destination could not continue the VM: %.150s", done.text)
                     : 0;
}

/* Somebody has continued the VM here: the destination's must never run. */
static int take_back(struct vc_conn *conn, struct vc_cancel *cancel, const struct vc_id *vm,
                     const struct vc_handover *h, struct vc_err *err)
{
    struct vc_wire_status done = {0};
    int rc = ask_guarded(conn, cancel, vm, &h->session, VC_WIRE_WORD_ABANDON, &done, err);

    if (rc || !done.code || done.code == -VC_E_DEST_QEMU)
        return rc;
    return vc_err_set_hint(err, VC_E_UNSETTLED, "stop one of the two at once",
                           "the VM runs here, and '%.80s' says: %.120s", h->peer, done.text);
}

static int settle(struct vc_vm *v, const struct vc_id *vm, struct vc_handover *h,
                  struct vc_conn *conn, struct vc_cancel *cancel, const struct vc_log *log,
                  struct vc_err *err)
{
    enum whereabouts where;
    struct vc_qmp *q;
    int rc = find_vm(h, NULL, vm, &where, &q, err);

    if (!rc && where == UNCLEAR)
        rc = vc_err_set_hint(err, VC_E_UNSETTLED, "look at both hosts, then --run or --discard",
                             "the VM at '%.120s' is neither running nor migrated away", h->socket);
    if (rc) {
        vc_conn_close(conn);
    } else {
        rc = where == HERE ? take_back(conn, cancel, vm, h, err)
                           : give(conn, cancel, vm, h, q, log, err);
    }
    vc_qmp_free(q);
    if (rc)
        return rc;
    h->state = VC_HANDOVER_SETTLED;
    return vc_handover_begin(v, h, err);
}

int vc_session_repeat_word(struct vc_store *store, const struct vc_id *vm, struct vc_conn *conn,
                           struct vc_cancel *cancel, const struct vc_log *log, struct vc_err *err)
{
    struct vc_vm *v = NULL;
    struct vc_handover h;
    int rc = vc_vm_open(store, vm, VC_VM_WRITE, &v, err);

    if (!rc)
        rc = vc_handover_get(v, &h, err);
    if (rc == VC_NOT_FOUND || (!rc && h.state != VC_HANDOVER_LEFT))
        rc = vc_err_set(err, VC_E_NO_SUCH_VM, "no migration of this VM away from here is open");
    if (rc)
        vc_conn_close(conn);
    else
        rc = settle(v, vm, &h, conn, cancel, log, err);
    vc_vm_close(v);
    return rc;
}
