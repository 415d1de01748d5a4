/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "session/common.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"

/** Time for the other end to commit what it has: it may have to sync much to a slow disk. */
#define COMMIT_TIMEOUT_MS 120000
/** Time for it to hang up. */
#define BYE_TIMEOUT_MS 5000

int vc_inbox_init(struct vc_inbox *in, struct vc_err *err)
{
    vc_queue_init(&in->q, UINT64_MAX / 2);
    in->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return in->fd < 0 ? vc_err_set_errno(err, VC_E_FAILED, "cannot make an eventfd") : 0;
}

void vc_inbox_fini(struct vc_inbox *in)
{
    struct vc_queue_node *n;

    while ((n = vc_queue_drain(&in->q)))
        vc_link_frame_free((struct vc_link_frame *)n);
    vc_queue_fini(&in->q);
    if (in->fd >= 0)
        close(in->fd);
}

void vc_inbox_put(void *inbox, struct vc_link_frame *f)
{
    struct vc_inbox *in = inbox;
    uint64_t one = 1;

    if (!f)
        vc_queue_close(&in->q);
    else if (vc_queue_push(&in->q, &f->node, 1))
        vc_link_frame_free(f);
    if (write(in->fd, &one, sizeof(one)) < 0) {
        /* Full means: readable already. */
    }
}

int vc_inbox_get(struct vc_inbox *in, uint64_t timeout_ms, struct vc_link_frame **out)
{
    struct vc_queue_node *node;
    uint64_t n;
    int rc;

    if (read(in->fd, &n, sizeof(n)) < 0) {
        /* Nothing to clear. */
    }
    rc = vc_queue_pop(&in->q, timeout_ms ? vc_now_ns() + timeout_ms * VC_NS_PER_MS : 0, &node);
    if (!rc)
        *out = (struct vc_link_frame *)node;
    return rc;
}

int vc_lineage_random(struct vc_lineage *l, bool exposed, struct vc_err *err)
{
    *l = (struct vc_lineage){.algo = VC_DIGEST_GMAC, .exposed = exposed};
    if (!vc_id_random(&l->id) || getrandom(l->key, sizeof(l->key), 0) != sizeof(l->key))
        return vc_err_set(err, VC_E_FAILED, "the kernel gives no random numbers");
    return 0;
}

static bool may_keep(struct vc_store *store, const struct vc_id *uuid, const struct vc_log *log)
{
    struct vc_err err = VC_ERR_INIT;
    enum vc_policy policy;

    if (vc_policy_get(store, uuid, &policy, &err)) {
        vc_log_err(log, VC_LOG_WARNING, "no checkpoint is used or kept here", &err);
        return false;
    }
    if (policy == VC_POLICY_NEVER)
        vc_log(log, VC_LOG_INFO, "the VM's policy is that no checkpoint is kept here");
    return policy != VC_POLICY_NEVER;
}

int vc_holding_open(struct vc_holding *h, struct vc_store *store, const struct vc_id *uuid,
                    bool plaintext, const struct vc_log *log, struct vc_err *err)
{
    struct vc_err trouble = VC_ERR_INIT;
    int rc;

    *h = (struct vc_holding){.log = log};
    if (!store)
        return 0;
    rc = vc_vm_open(store, uuid, VC_VM_CREATE, &h->vm, &trouble);
    if (rc == VC_E_BUSY || rc == VC_E_NOMEM) {
        *err = trouble;
        return rc;
    }
    if (rc) {
        h->vm = NULL;
        vc_log_err(log, VC_LOG_WARNING,
                   "the store cannot be used: no reuse, no checkpoint, and no record of this "
                   "migration",
                   &trouble);
        return 0;
    }
    if (vc_vm_was_reset(h->vm))
        vc_log(log, VC_LOG_WARNING, "the VM's manifest was damaged: its checkpoints are dropped");
    h->keeps = may_keep(store, uuid, log);
    if (!h->keeps)
        return 0;
    h->has_lineage = vc_vm_lineage(h->vm, &h->lineage) && h->lineage.exposed == plaintext &&
                     vc_digest_algo_known(h->lineage.algo);
    if (!h->has_lineage || vc_vm_n_generations(h->vm) == 0)
        return 0;
    rc = vc_gen_open(h->vm, &vc_vm_generation(h->vm, 0)->id, &h->gen, &trouble);
    if (rc)
        vc_log_err(log, VC_LOG_WARNING, "the checkpoint cannot be used", &trouble);
    return 0;
}

static int adopt(struct vc_holding *h, const struct vc_lineage *l, struct vc_err *err)
{
    int rc = 0;

    if (h->has_lineage && vc_id_equal(&h->lineage.id, &l->id))
        return 0;
    vc_gen_close(vc_steal_ptr(h->gen));
    if (h->keeps)
        rc = vc_vm_set_lineage(h->vm, l, err);
    h->lineage = *l;
    h->has_lineage = true;
    return rc;
}

void vc_holding_adopt(struct vc_holding *h, const struct vc_lineage *l)
{
    struct vc_err err = VC_ERR_INIT;

    if (!adopt(h, l, &err))
        return;
    vc_log_err(h->log, VC_LOG_WARNING, "no checkpoint will be kept here", &err);
    h->keeps = false;
}

bool vc_holding_record(struct vc_holding *h, const struct vc_handover *record)
{
    struct vc_err err = VC_ERR_INIT;

    if (!h->vm)
        return false;
    if (vc_handover_begin(h->vm, record, &err) == 0)
        return true;
    vc_log_err(h->log, VC_LOG_WARNING,
               "the handover is not recorded: should the connection be lost at its very end, "
               "`vecycle resolve` cannot help",
               &err);
    return false;
}

void vc_holding_quarantine(struct vc_holding *h)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_lineage fresh;
    int rc = vc_lineage_random(&fresh, h->lineage.exposed, &err);

    if (!rc)
        rc = adopt(h, &fresh, &err);
    vc_wipe(&fresh, sizeof(fresh));
    if (rc)
        vc_log_err(h->log, VC_LOG_ERROR, "the VM's checkpoints cannot be dropped", &err);
    else
        vc_log(h->log, VC_LOG_WARNING, "the VM's checkpoints are not trusted any more and dropped");
}

void vc_holding_close(struct vc_holding *h)
{
    vc_gen_close(h->gen);
    vc_vm_close(h->vm);
    vc_wipe(&h->lineage, sizeof(h->lineage));
    *h = (struct vc_holding){0};
}

int vc_session_send(struct vc_link *link, uint8_t type, const void *p, uint32_t n,
                    struct vc_err *err)
{
    if (vc_link_send_small(link, type, 0, p, n))
        return vc_err_set(err, VC_E_PEER_LOST, "the connection to '%s' is gone",
                          vc_link_peer(link));
    return 0;
}

int vc_session_expect(struct vc_link *link, uint8_t type, struct vc_link_frame **out,
                      struct vc_err *err)
{
    struct vc_link_frame *f;
    int rc = vc_link_recv(link, &f, err);

    if (rc == VC_EOF)
        return vc_err_set(err, VC_E_PEER_LOST, "peer '%s' hung up", vc_link_peer(link));
    if (rc)
        return rc;
    if (f->type != type) {
        rc = vc_err_set(err, VC_E_PROTOCOL, "%s came where %s was expected",
                        vc_wire_type_name(f->type), vc_wire_type_name(type));
        vc_link_frame_free(f);
        return rc;
    }
    *out = f;
    return 0;
}

/* Waits for the peer's COMMITTED; false: it never came, or it keeps nothing. */
static bool peer_committed(struct vc_inbox *in, struct vc_wire_committed *m)
{
    struct vc_link_frame *f;
    struct vc_err err;

    while (vc_inbox_get(in, COMMIT_TIMEOUT_MS, &f) == 0) {
        bool is_it = f->type == VC_WIRE_COMMITTED;
        int rc = is_it ? vc_wire_committed_decode(f->payload, f->bytes, m, &err) : -1;

        vc_link_frame_free(f);
        if (is_it)
            return rc == 0 && m->committed;
    }
    return false;
}

void vc_session_confirm(struct vc_link *link, struct vc_inbox *in, struct vc_holding *h,
                        const struct vc_id *gen, const uint8_t *root, bool *confirmed,
                        const struct vc_log *log)
{
    struct vc_wire_committed mine = {.generation = *gen, .committed = root != NULL}, theirs;
    struct vc_err err = VC_ERR_INIT;

    *confirmed = false;
    if (root)
        memcpy(mine.root, root, sizeof(mine.root));
    if (VC_SESSION_SEND(link, VC_WIRE_COMMITTED, vc_wire_committed_encode, &mine, &err))
        return;
    if (peer_committed(in, &theirs) && root) {
        if (vc_id_equal(&theirs.generation, gen) && !memcmp(theirs.root, root, sizeof(mine.root)))
            *confirmed = vc_vm_confirm(h->vm, gen, &err) == 0;
        else
            vc_log(log, VC_LOG_WARNING, "the other host's checkpoint differs from this one");
    }
    vc_session_bye(link, in);
}

void vc_session_bye(struct vc_link *link, struct vc_inbox *in)
{
    struct vc_link_frame *f;

    vc_link_send_small(link, VC_WIRE_CLOSE, 0, NULL, 0);
    vc_link_finish(link, BYE_TIMEOUT_MS);
    /* Closing with unread bytes would reset a TCP connection and take our last words with it. */
    while (vc_inbox_get(in, BYE_TIMEOUT_MS, &f) == 0)
        vc_link_frame_free(f);
}
