/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "session/common.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "session/settings.h"

/** Time for it to hang up. */
#define BYE_TIMEOUT_MS 5000

uint64_t vc_pause_limit_ms(uint32_t dead_peer_option_ms, uint64_t taken_bytes)
{
    return vc_dead_peer_ms(dead_peer_option_ms) * (VC_STALL_TIMES + taken_bytes / VC_PAUSED_BYTES);
}

uint64_t vc_stands_still_ns(struct vc_progress *p, uint64_t mark)
{
    uint64_t now = vc_now_ns();

    if (mark != p->mark || !p->ns)
        *p = (struct vc_progress){.mark = mark, .ns = now};
    return now - p->ns;
}

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
    vc_link_frame_free(vc_steal_ptr(in->back));
    vc_queue_fini(&in->q);
    if (in->fd >= 0)
        close(in->fd);
}

void vc_inbox_put(void *inbox, struct vc_link_frame *f)
{
    struct vc_inbox *in = inbox;
    uint64_t one = 1;

    if (f && vc_queue_bytes(&in->q) >= VC_INBOX_MAX_FRAMES) {
        vc_link_frame_free(f);
        f = NULL;
    }
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

    if (in->back) {
        *out = vc_steal_ptr(in->back);
        return 0;
    }
    if (read(in->fd, &n, sizeof(n)) < 0) {
        /* Nothing to clear. */
    }
    rc = vc_queue_pop(&in->q, timeout_ms ? vc_now_ns() + timeout_ms * VC_NS_PER_MS : 0, &node);
    if (!rc)
        *out = (struct vc_link_frame *)node;
    return rc;
}

void vc_inbox_unget(struct vc_inbox *in, struct vc_link_frame *f)
{
    in->back = f;
}

int vc_lineage_random(struct vc_lineage *l, bool exposed, struct vc_err *err)
{
    *l = (struct vc_lineage){.algo = VC_DIGEST_GMAC, .exposed = exposed};
    if (!vc_id_random(&l->id) || getrandom(l->key, sizeof(l->key), 0) != sizeof(l->key))
        return vc_err_set(err, VC_E_FAILED, "the kernel gives no random numbers");
    return 0;
}

static void open_generation(struct vc_holding *h, const struct vc_gen_info *info,
                            struct vc_gen **out, const struct vc_log *log)
{
    struct vc_err err = VC_ERR_INIT;

    if (info && vc_gen_open(h->vm, &info->id, out, &err))
        vc_log_err(log, VC_LOG_WARNING,
                   info->partial ? "what had arrived before cannot be used"
                                 : "the checkpoint cannot be used",
                   &err);
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
                    bool plaintext, bool recovers, const struct vc_log *log, struct vc_err *err)
{
    struct vc_err trouble = VC_ERR_INIT;
    char name[VC_ID_TEXT_BYTES];
    int rc;

    *h = (struct vc_holding){.log = log, .store = store, .uuid = *uuid, .recovers = recovers};
    if (!store)
        return 0;
    rc = vc_vm_open(store, uuid, recovers ? VC_VM_WRITE : VC_VM_CREATE, &h->vm, &trouble);
    if (rc == VC_E_CORRUPT && recovers) /* the manifest; the record counts */
        rc = vc_vm_open(store, uuid, VC_VM_CREATE, &h->vm, &trouble);
    if (rc == VC_NOT_FOUND)
        return 0;
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
    if (vc_vm_was_reset(h->vm)) {
        vc_id_format(uuid, name);
        vc_log(log, VC_LOG_WARNING,
               "the VM's manifest was damaged: its checkpoints are dropped ('%s/vms/%s/manifest')",
               vc_store_root(store), name);
    }
    h->keeps = !recovers && may_keep(store, uuid, log);
    if (!h->keeps)
        return 0;
    h->has_lineage = vc_vm_lineage(h->vm, &h->lineage) && h->lineage.exposed == plaintext &&
                     vc_digest_algo_known(h->lineage.algo);
    if (h->has_lineage) {
        open_generation(h, vc_vm_complete(h->vm), &h->gen, log);
        open_generation(h, vc_vm_partial(h->vm), &h->partial, log);
    }
    return 0;
}

/* What one of the two generations offers for a page and the other does not. */
struct comparison {
    uint64_t gain; /* pages that the partial one holds, and the complete one does not hold alike */
    uint64_t loss; /* pages that the complete one holds, and the partial one knows nothing of */
};

static void compare_page(struct comparison *c, enum vc_page_state partial,
                         enum vc_page_state complete, bool alike)
{
    if (partial == VC_PAGE_HELD)
        c->gain += complete != VC_PAGE_HELD || !alike;
    else if (partial != VC_PAGE_ZERO)
        c->loss += complete == VC_PAGE_HELD;
}

static struct comparison compare(const struct vc_gen *partial, const struct vc_gen *complete)
{
    const struct vc_ram *ram = vc_gen_ram(partial), *other = vc_gen_ram(complete);
    struct comparison c = {0};
    int map[VC_MAX_BLOCKS];

    vc_ram_map(ram, other, map);
    for (uint32_t b = 0; b < ram->n_blocks; b++) {
        uint64_t pages = vc_ram_block_pages(ram, b);
        uint64_t theirs = map[b] < 0 ? 0 : vc_ram_block_pages(other, (uint32_t)map[b]);

        for (uint64_t i = 0; i < pages; i++) {
            struct vc_digest mine, its;
            enum vc_page_state s = vc_gen_lookup(partial, b, vc_page(i), &mine);
            enum vc_page_state t = i < theirs
                                       ? vc_gen_lookup(complete, (uint32_t)map[b], vc_page(i), &its)
                                       : VC_PAGE_UNMENTIONED;

            compare_page(&c, s, t,
                         s == VC_PAGE_HELD && t == VC_PAGE_HELD && vc_digest_equal(&mine, &its));
        }
    }
    return c;
}

/* A partial generation mostly stands on the complete one and has all that it has; but a page that
 * has to be announced costs some bytes, and one that is sent half a page, say. */
struct vc_gen *vc_holding_best(const struct vc_holding *h, uint32_t announce_bytes)
{
    struct comparison c;
    uint64_t cost;

    if (!h->gen || !h->partial)
        return h->gen ? h->gen : h->partial;
    c = compare(h->partial, h->gen);
    cost = vc_gen_info(h->partial)->held_pages * announce_bytes /
           (vc_gen_ram(h->partial)->page_bytes / 2);
    return c.gain > c.loss + cost ? h->partial : h->gen;
}

static int adopt(struct vc_holding *h, const struct vc_lineage *l, struct vc_err *err)
{
    int rc = 0;

    if (h->has_lineage && vc_id_equal(&h->lineage.id, &l->id))
        return 0;
    vc_gen_close(vc_steal_ptr(h->gen));
    vc_gen_close(vc_steal_ptr(h->partial));
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

int vc_holding_record(struct vc_holding *h, const struct vc_handover *record,
                      struct vc_settings *settings, bool *recorded, struct vc_err *err)
{
    struct vc_err why = VC_ERR_INIT, trouble = VC_ERR_INIT;

    *recorded = h->vm && vc_handover_begin(h->vm, record, &why) == 0;
    if (*recorded)
        vc_settings_record(settings, h->vm);
    if (*recorded || !h->vm)
        return 0;
    if (h->recovers) { /* what is on the disk is true still */
        *err = why;
        return why.code;
    }
    if (vc_handover_forget(h->vm, &trouble))
        return vc_err_set_hint(err, VC_E_STORE, "mend its file system, or give another --store",
                               "the VM's handover can neither be recorded nor be left out: %.150s",
                               trouble.message);
    vc_log_err(h->log, VC_LOG_WARNING,
               "the handover is not recorded: should the connection be lost at its very end, "
               "`vecycle resolve` cannot help",
               &why);
    return 0;
}

struct verdict {
    const struct vc_id *uuid;
    bool goes;
    enum vc_gc_why why;
};

static void on_forgotten(void *opaque, const struct vc_gc_item *item)
{
    struct verdict *v = opaque;

    if (!vc_id_equal(&item->vm, v->uuid))
        return;
    v->goes = true;
    v->why = item->why;
}

bool vc_holding_stays(struct vc_holding *h)
{
    struct verdict v = {.uuid = &h->uuid};
    struct vc_gc_options o = {
        .dry_run = true, .as_idle = &h->uuid, .report = on_forgotten, .opaque = &v};
    struct vc_err err = VC_ERR_INIT;
    struct vc_gc_result r;

    /* Where nobody can tell now, it is not told either that it goes. */
    if (vc_store_gc(h->store, &o, &r, &err) || !v.goes)
        return true;
    vc_log(h->log, VC_LOG_WARNING, "no checkpoint is kept here: %s",
           v.why == VC_GC_POLICY ? "the VM's policy became 'never' meanwhile"
                                 : "the limits of the store ('vecycle gc') do not admit it");
    return false; /* whoever runs this session forgets it behind it */
}

void vc_holding_quarantine(struct vc_holding *h)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_lineage fresh;
    int rc;

    if (!h->keeps)
        return;
    rc = vc_lineage_random(&fresh, h->lineage.exposed, &err);
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
    vc_gen_close(h->partial);
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
        return vc_err_set_hint(err, VC_E_PEER_LOST, "see the other host's own messages",
                               "peer '%s' hung up in the opening", vc_link_peer(link));
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

void vc_session_keep(struct vc_txn *txn, const struct vc_txn_note *note, const struct vc_log *log)
{
    struct vc_err err = VC_ERR_INIT;
    int rc = vc_txn_suspend(txn, note, &err);

    if (rc == 0)
        vc_log(log, VC_LOG_INFO, "what had passed is kept for the next attempt");
    else if (rc < 0)
        vc_log_err(log, VC_LOG_WARNING, "what had passed is not kept for the next attempt", &err);
}

static uint64_t ms_until(uint64_t ns)
{
    uint64_t now = vc_now_ns();

    return ns > now ? (ns - now) / VC_NS_PER_MS + 1 : 0;
}

/* Waits for the peer's COMMITTED; false: it never came, or it keeps nothing. */
static bool peer_committed(struct vc_inbox *in, uint32_t limit_ms, struct vc_wire_committed *m)
{
    struct vc_link_frame *f;
    uint64_t end = vc_now_ns() + limit_ms * VC_NS_PER_MS;
    struct vc_err err;

    while (vc_inbox_get(in, ms_until(end), &f) == 0) {
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
    if (peer_committed(in, VC_COMMIT_TIMES * vc_link_dead_peer_ms(link), &theirs) && root) {
        if (vc_id_equal(&theirs.generation, gen) && !memcmp(theirs.root, root, sizeof(mine.root)))
            *confirmed = vc_vm_confirm(h->vm, gen, &err) == 0;
        else
            vc_log(log, VC_LOG_WARNING, "the other host's checkpoint differs from this one");
    }
    vc_session_bye(link, in);
}

void vc_session_bye(struct vc_link *link, struct vc_inbox *in)
{
    uint64_t end = vc_now_ns() + BYE_TIMEOUT_MS * VC_NS_PER_MS;
    struct vc_link_frame *f;

    vc_link_send_small(link, VC_WIRE_CLOSE, 0, NULL, 0);
    vc_link_finish(link, BYE_TIMEOUT_MS);
    /* Closing with unread bytes would reset a TCP connection and take our last words with it. */
    while (vc_inbox_get(in, ms_until(end), &f) == 0)
        vc_link_frame_free(f);
}
