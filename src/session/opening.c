/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "qmp/qmp.h"
#include "session/arrival.h"
#include "session/capabilities.h"
#include "session/parking.h"
#include "session/preempt.h"
#include "session/rekey.h"

/* How a session begins at the destination, HELLO to START: who may have which VM, the QEMU that
 * waits for it, what this host can put in. */

static bool is_plaintext(const struct arrival *a)
{
    return vc_link_security(a->link) == VC_WIRE_PLAINTEXT;
}

/* ---- begin: leave ---- */

int vc_arrival_ask_leave(struct arrival *a, const char *name, struct vc_err *err)
{
    struct vc_reach what = {
        .name = name,
        .vm = a->open.vm,
        .attested = a->open.mode != VC_WIRE_MODE_PROXY,
    };

    return a->o->may_reach ? a->o->may_reach(a->o->policy, a->o->conn, &what, err) : 0;
}

/* ---- begin: QEMU ---- */

/* Whether it waits for a migration, or for the rest of one. */
static int check_waits(struct arrival *a, struct vc_err *err)
{
    char state[32];
    int rc;

    if (a->open.mode == VC_WIRE_MODE_RECOVER)
        return 0; /* `migrate-recover` is refused by any other QEMU */
    rc = vc_qmp_run_state(a->qmp, state, err);
    if (!rc && strcmp(state, "inmigrate") != 0)
        return vc_err_set_hint(err, VC_E_DEST_QEMU, "start it with -incoming defer",
                               "the destination QEMU '%s' is not waiting for a migration but '%s'",
                               a->name, state);
    return rc;
}

static struct vc_session_wants wants_of(const struct arrival *a)
{
    return (struct vc_session_wants){
        .postcopy = vc_arrival_is_postcopy(a),
        .preempt = a->open.mode == VC_WIRE_MODE_PREEMPT,
        .plaintext = is_plaintext(a),
    };
}

static int check_settings(struct arrival *a, struct vc_err *err)
{
    struct vc_session_wants wants = wants_of(a);
    int rc = 0;

    if (a->open.mode == VC_WIRE_MODE_RECOVER)
        return 0;
    if (vc_arrival_is_postcopy(a))
        rc = vc_preempt_prepare(a, err);
    return rc ? rc : vc_session_check_settings(a->qmp, &wants, err);
}

/* Behind START: a session that is refused before leaves QEMU as it is. */
static int set_up_qemu(struct arrival *a, struct vc_err *err)
{
    struct vc_session_wants wants = wants_of(a);
    int rc;

    if (!a->qmp || a->open.mode == VC_WIRE_MODE_RECOVER)
        return 0;
    rc = vc_session_set_up(&a->settings, &wants, err);
    /* It is continued on the source's word. */
    if (!rc)
        rc = vc_settings_autostart_off(&a->settings, err);
    if (rc == VC_E_QMP || rc == VC_E_QEMU_STATE)
        err->code = rc = VC_E_DEST_QEMU;
    return rc;
}

static int check_qemu(struct arrival *a, struct vc_err *err)
{
    struct vc_id uuid;
    char want[VC_ID_TEXT_BYTES], have[VC_ID_TEXT_BYTES];
    int rc = check_waits(a, err);

    if (!rc)
        rc = vc_qmp_uuid(a->qmp, &uuid, err);
    if (!rc && !vc_id_equal(&uuid, &a->open.vm)) {
        vc_id_format(&a->open.vm, want);
        vc_id_format(&uuid, have);
        return vc_err_set_hint(err, VC_E_DEST_QEMU, "start it with the same -uuid",
                               "the destination QEMU '%s' is VM %s and not %s", a->name, have,
                               want);
    }
    if (!rc)
        vc_qmp_identify(a->qmp, &uuid);
    return rc ? rc : check_settings(a, err);
}

int vc_arrival_connect(struct arrival *a, const char *name, struct vc_err *err)
{
    int fd;

    a->qmp = vc_parking_take(a->o->parking, &a->open.vm, name);
    if (a->qmp)
        vc_arrival_note_events(a);
    a->was_parked = a->qmp && !vc_qmp_is_gone(a->qmp);
    if (a->was_parked) {
        vc_qmp_hurry(a->qmp, true);
        return 0;
    }
    vc_qmp_free(vc_steal_ptr(a->qmp)); /* that QEMU has ended */
    fd = vc_target_connect(a->o->socket_dir, name, ".qmp", err);
    if (fd < 0)
        return fd;
    return vc_arrival_is_postcopy(a) ? vc_qmp_from_fd_oob(fd, name, &a->qmp, err)
                                     : vc_qmp_from_fd(fd, name, &a->qmp, err);
}

static int find_name(struct arrival *a, struct vc_err *err)
{
    if (a->open.name[0])
        snprintf(a->name, sizeof(a->name), "%s", a->open.name);
    else
        vc_id_format(&a->open.vm, a->name);
    return vc_arrival_ask_leave(a, a->name, err);
}

static int refuse_parked(const struct arrival *a, struct vc_err *err)
{
    return vc_err_set_hint(
        err, VC_E_DEST_QEMU,
        "`vecycle migrate --recover` at the host that has it, or start another "
        "QEMU for the VM",
        "the destination QEMU '%s' waits for the rest of an interrupted postcopy", a->name);
}

static int find_qemu(struct arrival *a, struct vc_err *err)
{
    int rc;

    if (a->open.mode == VC_WIRE_MODE_PROXY)
        return vc_target_exists(a->o->socket_dir, a->name, ".sock", err);
    rc = vc_arrival_connect(a, a->name, err);
    if (!rc)
        vc_settings_init(&a->settings, a->qmp, &a->open.vm, a->o->log);
    if (!rc && a->was_parked) /* it is known, and may be unable to answer */
        return a->open.mode == VC_WIRE_MODE_RECOVER ? 0 : refuse_parked(a, err);
    if (!rc)
        rc = check_qemu(a, err);
    if (rc == VC_E_QMP || rc == VC_E_QEMU_STATE) {
        err->code = VC_E_DEST_QEMU;
        rc = VC_E_DEST_QEMU;
    }
    return rc;
}

/* ---- prepare ---- */

static bool offered(const struct vc_wire_open *open, const struct vc_gen_info *info)
{
    for (unsigned i = 0; i < open->n_generations; i++)
        if (vc_id_equal(&open->generations[i].id, &info->id) &&
            !memcmp(open->generations[i].root, info->root, VC_WIRE_ROOT_BYTES))
            return true;
    return false;
}

/* Which generation this host can put in, and how the source gets to know it. What both hosts hold
 * needs no announcement; what had arrived when an attempt failed may be worth one. */
static void choose_base(struct arrival *a, bool source_has, struct vc_wire_accept *m)
{
    const struct vc_holding *h = &a->holding;
    bool ping_pong = source_has && h->gen && offered(&a->open, vc_gen_info(h->gen));
    bool announce = a->features & VC_WIRE_FEATURE_ANNOUNCE;
    const struct vc_gen *best = vc_holding_best(h, ping_pong ? VC_WIRE_ANNOUNCE_PAGE_BYTES : 0);

    if (ping_pong && (best == h->gen || !announce)) {
        best = h->gen;
        m->base = VC_WIRE_BASE_PING_PONG;
    } else if (best && announce) {
        m->base = VC_WIRE_BASE_ANNOUNCE;
    }
    if (m->base != VC_WIRE_BASE_NONE)
        m->generation = vc_gen_info(best)->id;
    a->offered = m->base;
    a->of_partial = best && best == h->partial;
}

/* What this host can put in: the rules of docs/formats/wire.md, ACCEPT. */
static int send_accept(struct arrival *a, struct vc_err *err)
{
    const struct vc_holding *h = &a->holding;
    struct vc_wire_accept m = {.max_batch_stream_bytes = VC_WIRE_MAX_BATCH_STREAM_BYTES};
    bool source_exposed = a->open.lineage.flags & VC_WIRE_LINEAGE_EXPOSED;
    bool source_has = a->open.has_lineage && source_exposed == is_plaintext(a);
    bool shared =
        h->has_lineage && (!source_has || vc_id_equal(&h->lineage.id, &a->open.lineage.id));
    int rc;

    if (h->has_lineage && !source_has)
        vc_holding_share(&a->holding, a->o->conn, a->o->may_reach != NULL);
    if (shared)
        choose_base(a, source_has, &m);
    if (h->has_lineage && !source_has) {
        m.has_lineage = true;
        m.lineage = (struct vc_wire_lineage){
            .id = h->lineage.id,
            .algo = h->lineage.algo,
            .flags = h->lineage.exposed ? VC_WIRE_LINEAGE_EXPOSED : 0,
        };
        memcpy(m.key, h->lineage.key, sizeof(m.key));
    }
    m.needs_key = source_has && !shared;
    rc = VC_SESSION_SEND(a->link, VC_WIRE_ACCEPT, vc_wire_accept_encode, &m, err);
    vc_wipe(&m, sizeof(m));
    return rc;
}

struct vc_gen *vc_arrival_base(const struct arrival *a)
{
    return a->of_partial ? a->holding.partial : a->holding.gen;
}

static int take_start(struct arrival *a, struct vc_err *err)
{
    struct vc_lineage l;

    l = (struct vc_lineage){
        .id = a->start.lineage.id,
        .algo = a->start.lineage.algo,
        .exposed = a->start.lineage.flags & VC_WIRE_LINEAGE_EXPOSED,
    };
    if (!vc_digest_algo_known(l.algo))
        return vc_err_set(err, VC_E_VERSION, "START: unknown digest algorithm %u", l.algo);
    if (l.exposed != is_plaintext(a))
        return vc_err_set(err, VC_E_PROTOCOL, "START: the key does not fit the connection");
    if (!a->start.has_key &&
        !(a->holding.has_lineage && vc_id_equal(&l.id, &a->holding.lineage.id)))
        return vc_err_set(err, VC_E_PROTOCOL, "START: a key is missing");
    memcpy(l.key, a->start.key, sizeof(l.key));
    vc_holding_adopt(&a->holding, &l);
    vc_holding_share(&a->holding, a->o->conn, a->o->may_reach != NULL);
    vc_wipe(&l, sizeof(l));
    vc_wipe(a->start.key, sizeof(a->start.key));
    if (a->start.base != VC_WIRE_BASE_NONE && (a->start.base != a->offered || !vc_arrival_base(a)))
        return vc_err_set(err, VC_E_PROTOCOL, "START: refers to a generation not offered");
    return 0;
}

/* What a session that was killed has left in QEMU is not its owner's. */
static void take_over_settings(struct arrival *a)
{
    struct vc_err ignored = VC_ERR_INIT;
    struct vc_handover h;

    if (!a->holding.vm || vc_handover_get(a->holding.vm, &h, &ignored))
        return;
    vc_settings_take_over(&a->settings, &h);
    vc_settings_put_back(&a->settings);
}

static int begin_handover(struct arrival *a, struct vc_err *err)
{
    struct vc_handover h = {
        .state = VC_HANDOVER_ARRIVING,
        .session = a->open.session,
        .since_unix = vc_wall_s(),
    };
    int rc;

    if (!a->qmp || a->open.mode == VC_WIRE_MODE_RECOVER)
        return 0;
    take_over_settings(a);
    snprintf(h.peer, sizeof(h.peer), "%s", vc_link_peer(a->link));
    snprintf(h.socket, sizeof(h.socket), "%s", a->name);
    h.qemu = *vc_qmp_process(a->qmp);
    rc = vc_holding_record(&a->holding, &h, &a->settings, &a->recorded, err);
    a->holds_record = a->recorded;
    return rc;
}

/* ---- the whole ---- */

static int receive_open(struct arrival *a, struct vc_err *err)
{
    vc_auto_frame struct vc_link_frame *f = NULL;
    int rc = vc_link_hello(a->link, VC_SESSION_FEATURES, &a->features, err);

    if (!rc)
        rc = vc_session_expect(a->link, VC_WIRE_OPEN, &f, err);
    if (!rc)
        rc = vc_wire_open_decode(f->payload, f->bytes, &a->open, err);
    a->result->vm = a->open.vm;
    return rc;
}

static int open_holding(struct arrival *a, struct vc_err *err)
{
    return vc_holding_open(&a->holding, a->o->store, &a->open.vm, is_plaintext(a),
                           a->open.mode == VC_WIRE_MODE_RECOVER, a->o->log, err);
}

/* The session that was interrupted may still be clearing up, and has the VM's lock and the QMP
 * connection until then: the peer is not yet dead for it. */
static int await_holding(struct arrival *a, struct vc_err *err)
{
    uint64_t limit_ms = 2 * (uint64_t)vc_dead_peer_ms(a->o->dead_peer_ms);
    uint64_t deadline = vc_now_ns() + limit_ms * VC_NS_PER_MS;
    int rc;

    do {
        rc = open_holding(a, err);
    } while (rc == VC_E_BUSY && vc_now_ns() < deadline &&
             !(a->o->cancel && vc_cancel_is_set(a->o->cancel)));
    return rc;
}

/* Whether the VM of OPEN is the one at that socket by what is recorded. If not, QEMU has to say so
 * before the VM is locked: a peer that may reach one socket must not keep other VMs from theirs. */
static bool record_names_socket(const struct arrival *a)
{
    struct vc_err ignored = VC_ERR_INIT;
    struct vc_handover h;
    struct vc_vm *vm = NULL;
    bool names = a->o->store && !vc_vm_open(a->o->store, &a->open.vm, VC_VM_READ, &vm, &ignored) &&
                 !vc_handover_get(vm, &h, &ignored) && !strcmp(h.socket, a->name);

    vc_vm_close(vm);
    return names;
}

/* Whether the record speaks of what this QEMU takes in. */
static bool is_of_qemu(const struct arrival *a, const struct vc_handover *h)
{
    const struct vc_process *now = vc_qmp_process(a->qmp);

    if (h->state == VC_HANDOVER_NONE)
        return false;
    if (vc_process_is_known(now) && vc_process_is_known(&h->qemu))
        return vc_process_equal(now, &h->qemu);
    return !strcmp(h->socket, a->name);
}

/* Only the host that has the rest of the VM's memory may send it. Where there is no record that can
 * be read, the VM goes on without. */
static int check_interrupted(struct arrival *a, struct vc_err *err)
{
    struct vc_err ignored = VC_ERR_INIT;
    struct vc_handover h;

    if (!a->holding.vm || vc_handover_get(a->holding.vm, &h, &ignored) || !is_of_qemu(a, &h))
        return 0;
    a->interrupted = h;
    if (vc_id_equal(&a->open.interrupted, &h.session) ||
        (vc_id_is_nil(&a->open.interrupted) && !strcmp(h.peer, vc_link_peer(a->link))))
        return 0;
    return vc_err_set_hint(err, VC_E_DEST_QEMU, "recover it from that host, by its own agent",
                           "the rest of the VM is awaited from '%.100s', of another migration",
                           h.peer);
}

/* The record of the interrupted session stands, and is settled by this one. */
static int keep_record(struct arrival *a, struct vc_err *err)
{
    const struct vc_handover *h = &a->interrupted;
    bool is_open = h->state == VC_HANDOVER_ARRIVING || h->state == VC_HANDOVER_ABOUT_TO_RUN;
    int rc = 0;

    if (h->state == VC_HANDOVER_NONE)
        return 0;
    a->about_to_run = h->state == VC_HANDOVER_ABOUT_TO_RUN;
    vc_settings_take_over(&a->settings, h);
    if (is_open || h->n_settings || h->awaits_rest)
        rc = vc_holding_record(&a->holding, h, &a->settings, &a->holds_record, err);
    a->recorded = is_open && a->holds_record;
    return rc;
}

/* The source's QEMU resumes when this is accepted, and cannot go back then. So a QEMU here that
 * does not wait for the rest of a postcopy refuses first, and so does a disk that takes no record.
 */
static int find_interrupted(struct arrival *a, struct vc_err *err)
{
    bool is_recorded = record_names_socket(a);
    int rc = is_recorded ? await_holding(a, err) : 0;

    if (!rc)
        rc = find_qemu(a, err);
    if (!rc && !is_recorded)
        rc = await_holding(a, err);
    if (!rc)
        rc = check_interrupted(a, err);
    if (!rc)
        rc = keep_record(a, err);
    if (!rc)
        rc = vc_preempt_recover(a, err);
    if (!rc) /* what its guest waits for is about to come */
        vc_qmp_hurry(a->qmp, false);
    return rc;
}

static int find_vm(struct arrival *a, struct vc_err *err)
{
    int rc = find_name(a, err);

    if (rc)
        return rc;
    if (a->open.mode == VC_WIRE_MODE_RECOVER)
        return find_interrupted(a, err);
    rc = find_qemu(a, err);
    return rc ? rc : open_holding(a, err);
}

static int prepare(struct arrival *a, struct vc_err *err)
{
    vc_auto_frame struct vc_link_frame *f = NULL;
    int rc = find_vm(a, err);

    if (!rc)
        rc = send_accept(a, err);
    if (!rc)
        rc = vc_session_expect(a->link, VC_WIRE_START, &f, err);
    if (!rc)
        rc = vc_wire_start_decode(f->payload, f->bytes, &a->start, err);
    if (!rc)
        rc = take_start(a, err);
    if (!rc)
        rc = begin_handover(a, err);
    if (rc)
        return rc;
    a->result->base = a->start.base;
    a->result->generation = a->start.generation;
    vc_link_set_phase(a->link, VC_WIRE_PHASE_STREAM);
    return set_up_qemu(a, err);
}

/* HELLO to START, within a time and unless cancelled. 0; VC_EOF: a word was repeated. */
int vc_arrival_open(struct arrival *a, struct vc_err *err)
{
    struct vc_rekey *rekey = NULL;
    struct vc_guard guard;
    int rc = vc_guard_start(&guard, a->link, a->o->cancel,
                            VC_OPEN_TIMES * vc_dead_peer_ms(a->o->dead_peer_ms), err);

    if (rc)
        return rc;
    rc = vc_arrival_ask_leave(a, NULL, err);
    if (!rc)
        rc = receive_open(a, err);
    if (!rc && a->open.mode == VC_WIRE_MODE_WORD) {
        rc = vc_arrival_repeat_word(a, err);
        rc = rc ? rc : VC_EOF;
    } else if (!rc && a->open.mode == VC_WIRE_MODE_REKEY) {
        rc = vc_arrival_rekey_open(a, &rekey, err);
    } else if (!rc) {
        rc = prepare(a, err);
    }
    rc = vc_guard_end(&guard, rc, err);
    if (!rc && rekey)
        rc = vc_arrival_rekey(a, vc_steal_ptr(rekey), err) ? err->code : VC_EOF;
    vc_rekey_close(rekey);
    return rc;
}
