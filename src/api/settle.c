/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "api/settler.h"
#include "base/clock.h"
#include "net/address.h"

/* Theory of operation
 *
 * The agent settles by itself what a lost connection, or its own death, has left open at this host
 * as the source: when it starts, after a migration, and again and again, ever more
 * rarely, until it has met the other host. A way through ssh is left to whoever has the keys.
 *
 * Another host may be away, or take its time: each has a thread of its own while it is called,
 * which goes over the VMs that went there, so that the VMs of all others need not wait for it. One
 * thread (vc-settle) knows which hosts are to be called, and when, and calls nobody itself. This
 * host's own QEMUs are looked at meanwhile (look.c). */

#define FIRST_PAUSE_S 1
#define LONGEST_PAUSE_S 60
/** When a store that could not be listed is listed again. */
#define LIST_AGAIN_S 1
/** Hosts that are called at the same time. */
#define MAX_CALLS 8
/** How long a VM is locked for an answer: others may need it, and QEMU's QMP socket, which serves
 * one client and is waited for for 15 s (VC_QMP_TIMEOUT_MS). What takes longer there is done all
 * the same, and told in the next attempt. */
#define ANSWER_MS 10000u

static_assert(ANSWER_MS < VC_VM_SETTLED_MS, "those who need the VM meanwhile wait for longer");

/* Another host that is owed a word, and the call to it. */
struct peer {
    struct vc_settler *s;
    struct peer *next;
    char address[sizeof(((struct vc_handover *)NULL)->peer)];
    struct vc_thread thread;
    bool wanted, hurry; /* [thread: vc-settle] records name it; it is called without a pause */
    uint64_t due_ns, pause_s;
    bool first;        /* [const in a call] what goes wrong is told as new */
    struct vc_id last; /* [thread: the call] the VM at which the last one ended */
    bool called;       /* [lock: mu] the call has ended */
};

bool vc_settler_read(struct vc_settler *s, const struct vc_id *vm, struct vc_handover *h)
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

struct vc_settle_options vc_settler_options(struct vc_settler *s, const struct vc_id *vm)
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
    struct vc_settle_options o = vc_settler_options(s, vm);
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

bool vc_settler_can_call(const struct vc_handover *h)
{
    return !vc_address_is_ssh(h->peer);
}

bool vc_settler_is_open(const struct vc_handover *h)
{
    return h->state == VC_HANDOVER_LEAVING || h->state == VC_HANDOVER_LEFT ||
           (h->state == VC_HANDOVER_KEPT && vc_settler_can_call(h));
}

bool vc_settler_wait(struct vc_settler *s, unsigned which, uint64_t deadline, unsigned *got)
{
    VC_LOCKED(&s->mu);

    while (!s->stop && !(s->news & which)) {
        if (!deadline)
            pthread_cond_wait(&s->changed, &s->mu);
        else if (!vc_cond_wait_until(&s->changed, &s->mu, deadline))
            break;
    }
    *got = s->news & which;
    s->news &= ~which;
    return !s->stop;
}

void vc_settler_tell(struct vc_settler *s, unsigned news)
{
    VC_LOCKED(&s->mu);

    s->news |= news;
    pthread_cond_broadcast(&s->changed);
}

/* ---- a call ---- */

/* 0: it is settled, or nothing can be done. */
static int settle_one(struct peer *p, const struct vc_id *vm)
{
    struct vc_settler *s = p->s;
    struct vc_err err = VC_ERR_INIT;
    char name[VC_ID_TEXT_BYTES];
    struct vc_handover h;
    bool open;
    int rc;

    if (!vc_settler_read(s, vm, &h) || strcmp(h.peer, p->address) != 0 ||
        !vc_settler_look_at(s, vm, &h, &open))
        return 0;
    rc = dial(s, vm, &h, &err);
    vc_id_format(vm, name);
    if (rc) {
        vc_err_prefix(&err, "%s", name);
        vc_log_err(&s->log, p->first ? VC_LOG_WARNING : VC_LOG_DEBUG, "not settled yet", &err);
    } else {
        vc_log(&s->log, VC_LOG_INFO, "%s: the migration to '%s' is settled", name, h.peer);
    }
    return rc;
}

/* Whose turn it is after that VM. */
static size_t find_next(const struct vc_id *ids, size_t n, const struct vc_id *last)
{
    for (size_t i = 0; i < n; i++)
        if (vc_id_equal(&ids[i], last))
            return i + 1;
    return 0;
}

/* Goes over the VMs that went there. A host that does not answer is not asked about others; the
 * next call begins with those, as it may be one VM that keeps it from answering. */
static void *call_main(void *arg)
{
    struct peer *p = arg;
    struct vc_settler *s = p->s;
    vc_auto_free struct vc_id *ids = NULL;
    struct vc_err err = VC_ERR_INIT;
    size_t n = 0, begin;
    int rc = vc_store_list(s->store, &ids, &n, &err);

    begin = find_next(ids, n, &p->last);
    for (size_t i = 0; i < n && rc != VC_E_UNREACHABLE && rc != VC_E_PEER_LOST; i++) {
        p->last = ids[(begin + i) % n];
        if (vc_cancel_is_set(&s->cancel))
            break;
        rc = settle_one(p, &p->last);
    }
    {
        VC_LOCKED(&s->mu);
        p->called = true;
    }
    vc_settler_tell(s, VC_NEWS_CALLED);
    return NULL;
}

/* ---- whom to call, and when ---- */

static void add_peer(struct vc_settler *s, const struct vc_handover *h)
{
    struct peer *p = s->peers;

    while (p && strcmp(p->address, h->peer) != 0)
        p = p->next;
    if (!p) {
        p = calloc(1, sizeof(*p));
        if (!p) /* no memory: another time */
            return;
        *p = (struct peer){.s = s, .next = s->peers, .hurry = true};
        snprintf(p->address, sizeof(p->address), "%s", h->peer);
        s->peers = p;
    }
    p->wanted = true;
}

/* Where the store cannot be listed, those that are known stay. */
static bool find_peers(struct vc_settler *s)
{
    vc_auto_free struct vc_id *ids = NULL;
    struct vc_err err = VC_ERR_INIT;
    struct vc_handover h;
    size_t n = 0;

    if (vc_store_list(s->store, &ids, &n, &err))
        return false;
    for (struct peer *p = s->peers; p; p = p->next)
        p->wanted = false;
    for (size_t i = 0; i < n; i++)
        if (vc_settler_read(s, &ids[i], &h) && vc_settler_is_open(&h) && vc_settler_can_call(&h))
            add_peer(s, &h);
    return true;
}

/* Joins the calls that have ended, and forgets who is owed nothing any more. */
static void reap(struct vc_settler *s, bool all)
{
    struct peer **at = &s->peers;

    while (*at) {
        struct peer *p = *at;
        bool called;

        {
            VC_LOCKED(&s->mu);
            called = p->called;
        }
        if (p->thread.running && (called || all)) {
            vc_thread_join(&p->thread);
            p->due_ns = vc_now_ns() + p->pause_s * VC_NS_PER_S;
        }
        if (p->thread.running || (p->wanted && !all)) {
            at = &p->next;
            continue;
        }
        *at = p->next;
        free(p);
    }
}

static void call(struct peer *p)
{
    struct vc_settler *s = p->s;
    struct vc_err err = VC_ERR_INIT;

    p->pause_s = p->hurry ? FIRST_PAUSE_S : VC_MIN(2 * p->pause_s, (uint64_t)LONGEST_PAUSE_S);
    p->due_ns = vc_now_ns() + p->pause_s * VC_NS_PER_S;
    p->first = p->hurry;
    p->hurry = false;
    p->called = false; /* nobody else knows it now */
    if (vc_thread_start(&p->thread, "vc-call", call_main, p, &err))
        vc_log_err(&s->log, VC_LOG_WARNING, "another host is not called", &err);
}

/* Who has waited for longest. *next_ns: when the next call is due that no other has to end for; 0:
 * none. */
static struct peer *choose(struct vc_settler *s, uint64_t *next_ns)
{
    struct peer *best = NULL;
    unsigned n = 0;

    *next_ns = 0;
    for (struct peer *p = s->peers; p; p = p->next) {
        n += p->thread.running;
        if (p->hurry)
            p->due_ns = VC_MIN(p->due_ns, vc_now_ns());
        if (!p->thread.running && (!best || p->due_ns < best->due_ns))
            best = p;
    }
    if (!best || n >= MAX_CALLS)
        return NULL;
    if (best->due_ns <= vc_now_ns())
        return best;
    *next_ns = best->due_ns;
    return NULL;
}

/* Has other hosts told what they have to know, ever more rarely. */
static void *settler_main(void *arg)
{
    struct vc_settler *s = arg;
    unsigned news = VC_NEWS_TO_SETTLE;
    uint64_t next_ns;

    do {
        bool found = find_peers(s);
        struct peer *p;

        reap(s, false);
        for (p = s->peers; p && (news & VC_NEWS_TO_SETTLE); p = p->next)
            p->hurry = true;
        while ((p = choose(s, &next_ns)))
            call(p);
        if (!found)
            next_ns = vc_now_ns() + LIST_AGAIN_S * VC_NS_PER_S;
    } while (vc_settler_wait(s, VC_NEWS_TO_SETTLE | VC_NEWS_CALLED, next_ns, &news));
    reap(s, true);
    return NULL;
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
    if (!rc)
        rc = vc_looker_start(s, err);
    if (!rc)
        rc = vc_thread_start(&s->thread, "vc-settle", settler_main, s, err);
    if (rc)
        vc_settler_stop(s);
    else
        *out = s;
    return rc;
}

void vc_settler_kick(struct vc_settler *s)
{
    vc_settler_tell(s, VC_NEWS_TO_SETTLE | VC_NEWS_TO_LOOK);
}

void vc_settler_cancel(struct vc_settler *s)
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
}

void vc_settler_stop(struct vc_settler *s)
{
    if (!s)
        return;
    vc_settler_cancel(s);
    vc_thread_join(&s->thread);
    vc_thread_join(&s->looker);
    vc_cancel_fini(&s->cancel);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->mu);
    free(s);
}
