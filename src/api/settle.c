/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "api/api.h"
#include "base/clock.h"
#include "base/thread.h"

/* The agent settles by itself what a lost connection, or its own death, has left open at this host
 * as the source: when it starts, after a migration that failed, and again and again, ever more
 * rarely, until it has met the other host. A way through ssh is left to whoever has the keys. */

#define FIRST_PAUSE_S 1
#define LONGEST_PAUSE_S 60
/** How often this host's own QEMU is looked at while something is open. */
#define LOOK_S 1ull
/** How often an agent that has started tries to put back in QEMU what one that was killed had set:
 * not before the migration has failed there. */
#define PUT_BACK_TIMES 30
/** How long a VM is locked for an answer: others may need it. What takes longer there is done all
 * the same, and told in the next attempt. */
#define ANSWER_MS 10000u

static_assert(ANSWER_MS < VC_VM_SETTLED_MS, "those who need the VM meanwhile wait for longer");

struct vc_settler {
    struct vc_store *store;
    struct vc_log log;
    const char *socket_dir;
    const struct vecycle_agent_options *agent;
    struct vc_cancel cancel;
    struct vc_thread thread, looker;
    pthread_mutex_t mu;
    pthread_cond_t changed;
    bool kicked, looks, stop; /* [lock: mu] something is new; for the looker too */
};

/* The record as it is, without the lock. False: it cannot be read, or there is none. */
static bool read_record(struct vc_settler *s, const struct vc_id *vm, struct vc_handover *h)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_vm *v;
    int rc;

    if (vc_vm_open(s->store, vm, VC_VM_READ, &v, &err))
        return false;
    rc = vc_handover_get(v, h, &err);
    vc_vm_close(v);
    return !rc;
}

static struct vc_settle_options options(struct vc_settler *s, const struct vc_id *vm)
{
    return (struct vc_settle_options){
        .store = s->store,
        .vm = vm,
        .dead_peer_ms = s->agent->dead_peer_ms,
        .answer_ms = ANSWER_MS,
        .cancel = &s->cancel,
        .log = &s->log,
    };
}

static int dial(struct vc_settler *s, const struct vc_id *vm, const struct vc_handover *h,
                struct vc_err *err)
{
    struct vc_settle_options o = options(s, vm);
    struct vc_tls_options tls = vc_public_tls(&s->agent->tls, &s->cancel);
    struct vc_dial_options d = {
        .insecure = s->agent->insecure,
        .timeout_ms = (int)s->agent->dead_peer_ms,
        .tls = &tls,
        .cancel_fd = s->cancel.fd,
    };
    struct vc_conn *conn;
    int rc;

    tls.hostname = *h->tls_hostname ? h->tls_hostname : NULL;
    rc = vc_conn_dial(h->peer, &d, &conn, err);

    return rc ? rc : vc_session_repeat_word(&o, &h->session, conn, err);
}

static bool is_denied(const struct vc_handover *h)
{
    return access(h->socket, W_OK) < 0 && errno == EACCES;
}

/* Where it was the agent's user who may not connect to QEMU, root may. */
static void say_open(struct vc_settler *s, const struct vc_id *vm, const struct vc_handover *h,
                     struct vc_err *err)
{
    char name[VC_ID_TEXT_BYTES];

    vc_id_format(vm, name);
    if (!err->code)
        vc_err_set_errno(err, VC_E_UNSETTLED, "the agent cannot ask QEMU at '%.150s'", h->socket);
    vc_err_prefix(err, "%s", name);
    if (is_denied(h))
        snprintf(err->hint, sizeof(err->hint), "`vecycle resolve --retry %s` as root settles it",
                 name);
    vc_log_err(&s->log, VC_LOG_WARNING, "an interrupted migration is not settled yet", err);
}

/* What this host knows by itself, also while the other one is away. True: the other host has to be
 * told something, and can be. *open: something is open, and another look may help. */
static bool look_at(struct vc_settler *s, const struct vc_id *vm, struct vc_handover *h, bool *open)
{
    struct vc_settle_options o = options(s, vm);
    struct vc_err err = VC_ERR_INIT;
    bool has_way;
    int rc = 0;

    o.at_once = true; /* or one VM that is being migrated would hold up the look at all others */
    *open = false;
    if (!read_record(s, vm, h))
        return false;
    if (h->state == VC_HANDOVER_LEAVING || h->state == VC_HANDOVER_LEFT)
        rc = vc_session_look_back(&o, h, NULL, &err);
    if (rc == VC_E_BUSY) { /* a migration is under way, or a person settles it: looked at again */
        *open = true;
        return false;
    }
    /* A way through ssh is for whoever has the keys: what is left is to look. */
    has_way = strncmp(h->peer, "ssh:", 4) != 0;
    *open = h->state == VC_HANDOVER_LEAVING || h->state == VC_HANDOVER_LEFT ||
            (h->state == VC_HANDOVER_KEPT && has_way);
    return !rc && *open && h->state != VC_HANDOVER_LEAVING && has_way;
}

/* What a killed agent had set in QEMU. True: something is left that QEMU may take another time. */
static bool put_back(struct vc_settler *s)
{
    vc_auto_free struct vc_id *ids = NULL;
    struct vc_err err = VC_ERR_INIT;
    struct vc_handover h;
    bool left = false;
    size_t n = 0;

    if (vc_store_list(s->store, &ids, &n, &err))
        return false;
    for (size_t i = 0; i < n && !vc_cancel_is_set(&s->cancel); i++) {
        struct vc_settle_options o = options(s, &ids[i]);
        int rc = 0;

        err = VC_ERR_INIT;
        o.socket_dir = s->socket_dir;
        if (read_record(s, &ids[i], &h) && h.n_settings)
            rc = vc_session_put_back(&o, &err);
        if (rc < 0)
            vc_log_err(&s->log, VC_LOG_DEBUG, "QEMU's settings are not put back", &err);
        left |= rc == VC_AGAIN;
    }
    return left;
}

/* True: it is still open, and another attempt may help. */
static bool settle_one(struct vc_settler *s, const struct vc_id *vm, bool first, bool dials)
{
    struct vc_err err = VC_ERR_INIT;
    char name[VC_ID_TEXT_BYTES];
    struct vc_handover h;
    bool open;
    int rc;

    if (!look_at(s, vm, &h, &open) || !dials)
        return open;
    rc = dial(s, vm, &h, &err);
    vc_id_format(vm, name);
    if (rc) {
        vc_err_prefix(&err, "%s", name);
        vc_log_err(&s->log, first ? VC_LOG_WARNING : VC_LOG_DEBUG, "not settled yet", &err);
    } else {
        vc_log(&s->log, VC_LOG_INFO, "%s: the migration to '%s' is settled", name, h.peer);
    }
    return rc != 0;
}

/* Goes over all VMs; true: something is still open. */
static bool settle_all(struct vc_settler *s, bool first, bool dials)
{
    vc_auto_free struct vc_id *ids = NULL;
    struct vc_err err = VC_ERR_INIT;
    size_t n = 0;
    bool open = false;

    if (vc_store_list(s->store, &ids, &n, &err))
        return false;
    for (size_t i = 0; i < n && !vc_cancel_is_set(&s->cancel); i++)
        open |= settle_one(s, &ids[i], first, dials);
    return open;
}

/* False: it is time to end. *kicked: there is something new. */
static bool wait(struct vc_settler *s, bool open, uint64_t wait_s, bool *kick, bool *kicked)
{
    uint64_t deadline = vc_now_ns() + wait_s * VC_NS_PER_S;
    VC_LOCKED(&s->mu);

    while (!s->stop && !*kick) {
        if (!open)
            pthread_cond_wait(&s->changed, &s->mu);
        else if (!vc_cond_wait_until(&s->changed, &s->mu, deadline))
            break;
    }
    *kicked = *kick;
    *kick = false;
    return !s->stop;
}

/* Looks, and tells other hosts what they have to know, ever more rarely. */
static void *settler_main(void *arg)
{
    struct vc_settler *s = arg;
    uint64_t pause_s = FIRST_PAUSE_S;
    unsigned left = PUT_BACK_TIMES;
    bool kicked = true, open;

    do {
        left = left && put_back(s) ? left - 1 : 0;
        open = settle_all(s, kicked, true) || left;
        pause_s = kicked || left ? FIRST_PAUSE_S : VC_MIN(2 * pause_s, (uint64_t)LONGEST_PAUSE_S);
    } while (wait(s, open, pause_s, &s->kicked, &kicked));
    return NULL;
}

/* Looks at this host's own QEMUs, whoever does not answer to the other thread, so that nobody
 * continues a VM here unnoticed. */
static void *looker_main(void *arg)
{
    struct vc_settler *s = arg;
    uint64_t look_s = LOOK_S;
    bool kicked, open = true;

    while (wait(s, open, look_s, &s->looks, &kicked)) {
        uint64_t begin_ns = vc_now_ns();

        open = kicked || settle_all(s, false, false); /* what is new is the other thread's first */
        /* A look holds the VM's lock: at a QEMU that does not answer, others get their turn. */
        look_s = VC_MAX(LOOK_S, 2 * (vc_now_ns() - begin_ns) / VC_NS_PER_S);
    }
    return NULL;
}

/* Records that a killed agent left in the middle of a migration, as far as this host alone can
 * tell: before anybody can start a new one. */
static void look_back(struct vc_settler *s)
{
    vc_auto_free struct vc_id *ids = NULL;
    struct vc_err err = VC_ERR_INIT;
    struct vc_handover h;
    size_t n = 0;

    if (vc_store_list(s->store, &ids, &n, &err))
        return;
    for (size_t i = 0; i < n; i++) {
        struct vc_settle_options o = options(s, &ids[i]);

        err = VC_ERR_INIT;
        o.socket_dir = s->socket_dir;
        if (read_record(s, &ids[i], &h) && h.state != VC_HANDOVER_NONE &&
            h.state != VC_HANDOVER_SETTLED && h.state != VC_HANDOVER_VOID &&
            (vc_session_look_back(&o, &h, NULL, &err) ||
             (h.state == VC_HANDOVER_LEAVING && is_denied(&h))))
            say_open(s, &ids[i], &h, &err);
    }
}

int vc_settler_start(struct vc_store *store, const char *socket_dir, const struct vc_log *log,
                     const struct vecycle_agent_options *agent, struct vc_settler **out,
                     struct vc_err *err)
{
    struct vc_settler *s = calloc(1, sizeof(*s));
    int rc;

    if (!s)
        return vc_err_set(err, VC_E_NOMEM, "no memory for the agent");
    s->store = store;
    s->log = *log;
    s->socket_dir = socket_dir;
    s->agent = agent;
    pthread_mutex_init(&s->mu, NULL);
    vc_cond_init(&s->changed);
    rc = vc_cancel_init(&s->cancel, err);
    if (!rc) {
        look_back(s);
        rc = vc_thread_start(&s->thread, "vc-settle", settler_main, s, err);
    }
    if (!rc)
        rc = vc_thread_start(&s->looker, "vc-look", looker_main, s, err);
    if (rc)
        vc_settler_stop(s);
    else
        *out = s;
    return rc;
}

void vc_settler_kick(struct vc_settler *s)
{
    VC_LOCKED(&s->mu);

    s->kicked = s->looks = true;
    pthread_cond_broadcast(&s->changed);
}

void vc_settler_stop(struct vc_settler *s)
{
    if (!s)
        return;
    {
        VC_LOCKED(&s->mu);
        s->stop = true;
        pthread_cond_broadcast(&s->changed);
    }
    if (s->cancel.fd >= 0)
        vc_cancel_now(&s->cancel);
    vc_thread_join(&s->thread);
    vc_thread_join(&s->looker);
    vc_cancel_fini(&s->cancel);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->mu);
    free(s);
}
