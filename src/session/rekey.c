/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "session/rekey.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"

/* Re-keying, here alone or with the host that has the same checkpoint: docs/formats/wire.md,
 * section 6. Each side reads its own pages, and says which ones are not as they should be; what
 * either has dropped the other drops too, so that both end with the same generation. A side
 * switches once both have said that nothing but that is left to do; where only one of them came so
 * far, the next migration finds two lineages and sends more. */

/** How often the other side hears how far this one is. */
#define TELL_MS 1000
#define WAIT_STEP_MS 200
/** The other side has one more dead-peer time to read its pages for each so many bytes of them (at
 *  10 s that is 3 MiB/s, of a disk that others use as well): how far it says that it has come is no
 *  more than its word, and whoever waits for it holds up others. */
#define BYTES_PER_DEAD_PEER (32u << 20)

/* Reading pages is nothing that anybody waits for. (ioprio_set(2): this thread, best effort, last.)
 */
static void step_back(bool back)
{
    syscall(SYS_ioprio_set, 1, 0, back ? 2 << 13 | 7 : 0);
}

/* ---- what comes in ---- */

/* It rises, and comes to an end. */
static int take_progress(struct rekeying *k, const struct vc_link_frame *f, struct vc_err *err)
{
    uint64_t total = vc_gen_info(vc_rekey_gen(k->r))->held_pages;
    uint64_t done;
    int rc = vc_wire_u64_decode(f->payload, f->bytes, &done, err);

    if (!rc && (done <= atomic_load(&k->done) || done > total))
        rc = vc_err_set(err, VC_E_PROTOCOL, "REKEYING: %llu pages behind %llu, of %llu",
                        (unsigned long long)done, (unsigned long long)atomic_load(&k->done),
                        (unsigned long long)total);
    if (!rc)
        atomic_store(&k->done, done);
    return rc;
}

/* Each of these comes once, in this order, and REKEYING before all of them: behind REKEYED there is
 * nothing to be slow at, and this host holds the VM's lock. 0 (the frame is somebody else's now, or
 * gone), or an error. */
static int take(struct rekeying *k, struct vc_link_frame *f, struct vc_err *err)
{
    static const uint8_t order[] = {VC_WIRE_REKEYED, VC_WIRE_READY, VC_WIRE_COMMITTED,
                                    VC_WIRE_CLOSE};
    int rc;

    if (k->n_taken < VC_ARRAY_LEN(order) && f->type == order[k->n_taken]) {
        k->n_taken++;
        vc_inbox_put(&k->inbox, f);
        return 0;
    }
    if (f->type == VC_WIRE_REKEYING && !k->n_taken)
        rc = take_progress(k, f, err);
    else
        rc = vc_err_set(err, VC_E_PROTOCOL, "%s: not at this point of re-keying",
                        vc_wire_type_name(f->type));
    vc_link_frame_free(f);
    return rc;
}

static void *pump_main(void *arg)
{
    struct rekeying *k = arg;
    int rc = 0;

    while (!rc) {
        struct vc_link_frame *f;

        rc = vc_link_recv(k->link, &f, &k->why);
        if (!rc)
            rc = take(k, f, &k->why);
    }
    if (rc > 0)
        vc_err_set(&k->why, VC_E_PEER_LOST, "peer '%s' hung up", vc_link_peer(k->link));
    atomic_store(&k->ended, true);
    vc_inbox_put(&k->inbox, NULL);
    return NULL;
}

static int peer_ended(struct rekeying *k, struct vc_err *err)
{
    *err = k->why;
    return err->code;
}

static int cancelled(struct vc_err *err)
{
    return vc_err_set(err, VC_E_CANCELLED, "cancelled; the checkpoint keeps the key that it had");
}

static bool is_cancelled(const struct rekeying *k)
{
    return k->cancel && vc_cancel_is_set(k->cancel);
}

static int does_not_get_on(const struct rekeying *k, struct vc_err *err)
{
    return vc_err_set_hint(err, VC_E_PEER_LOST, "see the other host's own messages",
                           "'%.100s' does not get on with re-keying", vc_link_peer(k->link));
}

/* It may as well lie about how far it is: asking it again is of no use. */
static int reads_for_too_long(const struct rekeying *k, struct vc_err *err)
{
    return vc_err_set_hint(err, VC_E_FAILED, "--local goes without the other host",
                           "'%.100s' reads its checkpoint for too long", vc_link_peer(k->link));
}

/* The next frame behind REKEYING; take() sees to it which one that is. VC_AGAIN: it has not come
 * yet. */
static int look(struct rekeying *k, struct vc_link_frame **out, struct vc_err *err)
{
    if (vc_inbox_get(&k->inbox, WAIT_STEP_MS, out) == 0)
        return 0;
    if (atomic_load(&k->ended))
        return peer_ended(k, err);
    if (is_cancelled(k))
        return cancelled(err);
    vc_link_check_peer(k->link);
    return VC_AGAIN;
}

/* Until the other side has read its pages as well. Nothing is locked meanwhile, but a host that
 * lies would keep an agent from re-keying anything else. */
static int await_rekeyed(struct rekeying *k, struct vc_link_frame **out, struct vc_err *err)
{
    const struct vc_gen *g = vc_rekey_gen(k->r);
    uint64_t bytes = vc_gen_info(g)->held_pages * vc_gen_ram(g)->page_bytes;
    uint64_t dead_peer_ns = vc_link_dead_peer_ms(k->link) * VC_NS_PER_MS;
    uint64_t still_ns = VC_STALL_DEST_TIMES * dead_peer_ns;
    uint64_t end_ns = vc_now_ns() + still_ns + bytes / BYTES_PER_DEAD_PEER * dead_peer_ns;
    struct vc_progress p = {0};
    int rc;

    while ((rc = look(k, out, err)) == VC_AGAIN) {
        if (vc_stands_still_ns(&p, atomic_load(&k->done)) > still_ns)
            return does_not_get_on(k, err);
        if (vc_now_ns() > end_ns)
            return reads_for_too_long(k, err);
    }
    return rc;
}

/* This host holds the VM's lock, and migrations of it are refused: so there is one limit, which
 * nothing that the other side says moves. */
static int await_ready(struct rekeying *k, struct vc_link_frame **out, struct vc_err *err)
{
    uint64_t limit_ms = (uint64_t)VC_COMMIT_TIMES * vc_link_dead_peer_ms(k->link);
    uint64_t end_ns = vc_now_ns() + limit_ms * VC_NS_PER_MS;
    int rc;

    while ((rc = look(k, out, err)) == VC_AGAIN)
        if (vc_now_ns() > end_ns)
            return does_not_get_on(k, err);
    return rc;
}

/* ---- digesting ---- */

static bool on_page(void *opaque, uint64_t done, uint64_t total)
{
    struct rekeying *k = opaque;
    struct vc_err ignored;
    uint64_t now = vc_now_ns();

    if (is_cancelled(k) || (k->link && atomic_load(&k->ended)))
        return false;
    if (now - k->told_ns < TELL_MS * VC_NS_PER_MS)
        return true;
    k->told_ns = now;
    if (k->progress)
        k->progress(k->opaque, done, total);
    if (k->link) {
        vc_link_check_peer(k->link);
        return !VC_SESSION_SEND(k->link, VC_WIRE_REKEYING, vc_wire_u64_encode, done, &ignored);
    }
    return true;
}

int vc_rekeying_digest(struct rekeying *k, struct vc_err *err)
{
    const struct vc_gen_info *info = vc_gen_info(vc_rekey_gen(k->r));
    int rc;

    k->told_ns = vc_now_ns();
    step_back(true);
    rc = vc_rekey_digest(k->r, &k->fresh, &k->gen, on_page, k, err);
    step_back(false);
    if (rc == VC_AGAIN && is_cancelled(k))
        rc = cancelled(err);
    if (rc == VC_AGAIN)
        rc = atomic_load(&k->ended)
                 ? peer_ended(k, err)
                 : vc_err_set(err, VC_E_PEER_LOST, "the connection to '%s' is gone",
                              vc_link_peer(k->link));
    if (!rc && k->progress)
        k->progress(k->opaque, info->held_pages, info->held_pages);
    k->result->pages = info->held_pages;
    return rc;
}

/* ---- with another host ---- */

static int tell_dropped(struct rekeying *k, struct vc_err *err)
{
    size_t n;
    bool all;
    const struct vc_dropped *d = vc_rekey_dropped(k->r, &n, &all);
    uint32_t bytes = 4 + 20 * VC_WIRE_MAX_REKEYED_RANGES;
    vc_auto_free struct vc_wire_range *ranges = calloc(n + 1, sizeof(*ranges));
    vc_auto_free uint8_t *buf = malloc(bytes);
    struct vc_writer w = vc_writer(buf, bytes);

    if (!all)
        return vc_err_set_hint(err, VC_E_CORRUPT, "--local goes without the other host",
                               "too many pages of the checkpoint are damaged");
    static_assert(VC_REKEY_MAX_DROPPED == VC_WIRE_MAX_REKEYED_RANGES, "one REKEYED is enough");
    if (!ranges || !buf)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a list of pages");
    for (size_t i = 0; i < n; i++)
        ranges[i] = (struct vc_wire_range){d[i].block, d[i].page, d[i].count};
    vc_wire_rekeyed_encode(&w, ranges, (uint32_t)n);
    return vc_session_send(k->link, VC_WIRE_REKEYED, buf, (uint32_t)w.len, err);
}

static int drop_theirs(struct rekeying *k, struct vc_err *err)
{
    vc_auto_frame struct vc_link_frame *f = NULL;
    struct vc_wire_rekeyed m;
    int rc = await_rekeyed(k, &f, err);

    if (!rc)
        rc = vc_wire_rekeyed_decode(f->payload, f->bytes, &m, err);
    for (uint32_t i = 0; !rc && i < m.n; i++) {
        struct vc_wire_range r = vc_wire_rekeyed_range(&m, i);

        rc = vc_rekey_drop(k->r, &(struct vc_dropped){r.block, r.page, r.count}, err);
    }
    return rc;
}

/* Nothing but the switch is left to do, at both. */
static int agree(struct rekeying *k, const uint8_t root[VC_ROOT_BYTES], struct vc_err *err)
{
    struct vc_wire_generation mine = {.id = k->gen}, theirs;
    vc_auto_frame struct vc_link_frame *f = NULL;
    int rc;

    memcpy(mine.root, root, sizeof(mine.root));
    rc = VC_SESSION_SEND(k->link, VC_WIRE_READY, vc_wire_ready_encode, &mine, err);
    if (!rc)
        rc = await_ready(k, &f, err);
    if (!rc)
        rc = vc_wire_ready_decode(f->payload, f->bytes, &theirs, err);
    if (!rc && (!vc_id_equal(&theirs.id, &mine.id) ||
                memcmp(theirs.root, mine.root, sizeof(mine.root)) != 0))
        rc = vc_err_set(err, VC_E_FAILED, "the checkpoint of '%.100s' differs from this one",
                        vc_link_peer(k->link));
    return rc;
}

static int commit_both(struct rekeying *k, const uint8_t root[VC_ROOT_BYTES], struct vc_err *err)
{
    vc_auto_free struct vc_holder *who = malloc(sizeof(*who));
    struct vc_holding h;
    int rc;

    if (!who)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a host");
    vc_holder_describe(who, &k->fresh.id, k->conn, k->listed);
    rc = vc_rekey_commit(k->r, who, err);
    if (rc)
        return rc;
    h = (struct vc_holding){.vm = vc_rekey_vm(k->r)};
    vc_session_confirm(k->link, &k->inbox, &h, &k->gen, root, &k->result->confirmed, k->log);
    return 0;
}

static int run_both(struct rekeying *k, struct vc_err *err)
{
    uint8_t root[VC_ROOT_BYTES];
    int rc = vc_rekeying_digest(k, err);

    if (!rc)
        rc = tell_dropped(k, err);
    if (!rc)
        rc = drop_theirs(k, err);
    if (!rc)
        rc = vc_rekey_prepare(k->r, root, err);
    if (!rc)
        rc = agree(k, root, err);
    if (!rc)
        rc = commit_both(k, root, err);
    k->result->dropped = vc_rekey_n_dropped(k->r);
    return rc;
}

/* The link is in its stream phase. */
int vc_rekeying_with_other(struct rekeying *k, struct vc_err *err)
{
    int rc = vc_inbox_init(&k->inbox, err);

    snprintf(k->result->peer, sizeof(k->result->peer), "%s", vc_link_peer(k->link));
    k->why = VC_ERR_INIT;
    if (!rc)
        rc = vc_thread_start(&k->pump, "vc-rekey-recv", pump_main, k, err);
    if (!rc)
        rc = run_both(k, err);
    if (rc)
        vc_link_fail(k->link, err);
    vc_link_shutdown(k->link);
    vc_thread_join(&k->pump);
    vc_inbox_fini(&k->inbox);
    return rc;
}
