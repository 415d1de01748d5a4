/* SPDX-License-Identifier: LGPL-2.1-or-later */
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

#define FIRST_WAIT_S 1
#define LONGEST_WAIT_S 60

struct vc_settler {
    struct vc_store *store;
    struct vc_log log;
    const char *socket_dir;
    bool insecure;
    struct vecycle_tls tls;
    struct vc_cancel cancel;
    struct vc_thread thread;
    pthread_mutex_t mu;
    pthread_cond_t changed;
    bool kicked, stop; /* [lock: mu] */
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

static int give_word(struct vc_settler *s, const struct vc_id *vm, const struct vc_handover *h,
                     struct vc_err *err)
{
    struct vc_tls_options tls = vc_public_tls(&s->tls, &s->cancel);
    struct vc_dial_options d = {.insecure = s->insecure, .tls = &tls};
    struct vc_conn *conn;
    int rc;

    tls.hostname = *h->tls_hostname ? h->tls_hostname : NULL;
    rc = vc_conn_dial(h->peer, &d, &conn, err);

    return rc ? rc : vc_session_repeat_word(s->store, vm, conn, &s->cancel, &s->log, err);
}

/* What this agent cannot look at, and who can. */
static void say_who_can(struct vc_settler *s, const char *name, const struct vc_handover *h)
{
    bool denied = access(h->socket, W_OK) < 0 && errno == EACCES;

    vc_log(&s->log, VC_LOG_WARNING,
           "%s: the migration to '%.100s' is not settled: %s '%.100s' "
           "(`vecycle resolve --retry %s`%s)",
           name, h->peer,
           denied ? "the agent's user may not connect to QEMU at" : "no QEMU answers at", h->socket,
           name, denied ? " as root settles it" : "");
}

/* Where it was the agent's user who was refused, root is not. */
static void say_who_is_not_refused(struct vc_err *err, const char *name)
{
    if (err->sys_errno == EACCES)
        snprintf(err->hint, sizeof(err->hint), "`vecycle resolve --retry %s` as root settles it",
                 name);
}

/* True: it is still open, and another attempt may help. */
static bool settle_one(struct vc_settler *s, const struct vc_id *vm, bool first)
{
    struct vc_err err = VC_ERR_INIT;
    char name[VC_ID_TEXT_BYTES];
    struct vc_handover h;
    int rc = 0;

    if (!read_record(s, vm, &h))
        return false;
    if (h.state == VC_HANDOVER_LEAVING)
        rc = vc_session_look_back(s->store, vm, NULL, &h, &s->log, &err);
    vc_id_format(vm, name);
    if (!rc && h.state == VC_HANDOVER_LEAVING) { /* its QEMU cannot be asked now */
        if (first)
            say_who_can(s, name, &h);
        return true;
    }
    if (rc == VC_E_BUSY || (!rc && h.state != VC_HANDOVER_LEFT))
        return false; /* a migration is under way; or there is nothing to do */
    if (!rc && !strncmp(h.peer, "ssh:", 4))
        return false;
    if (!rc)
        rc = give_word(s, vm, &h, &err);
    if (rc) {
        vc_err_prefix(&err, "%s", name);
        say_who_is_not_refused(&err, name);
        vc_log_err(&s->log, first ? VC_LOG_WARNING : VC_LOG_DEBUG, "not settled yet", &err);
    } else {
        vc_log(&s->log, VC_LOG_INFO, "%s: the migration to '%s' is settled", name, h.peer);
    }
    return rc != 0;
}

/* Goes over all VMs; true: something is still open. */
static bool settle_all(struct vc_settler *s, bool first)
{
    vc_auto_free struct vc_id *ids = NULL;
    struct vc_err err = VC_ERR_INIT;
    size_t n = 0;
    bool open = false;

    if (vc_store_list(s->store, &ids, &n, &err))
        return false;
    for (size_t i = 0; i < n && !vc_cancel_is_set(&s->cancel); i++)
        open |= settle_one(s, &ids[i], first);
    return open;
}

/* False: it is time to end. *kicked: there is something new. */
static bool wait(struct vc_settler *s, bool open, uint64_t wait_s, bool *kicked)
{
    uint64_t deadline = vc_now_ns() + wait_s * VC_NS_PER_S;
    VC_LOCKED(&s->mu);

    while (!s->stop && !s->kicked) {
        if (!open)
            pthread_cond_wait(&s->changed, &s->mu);
        else if (!vc_cond_wait_until(&s->changed, &s->mu, deadline))
            break;
    }
    *kicked = s->kicked;
    s->kicked = false;
    return !s->stop;
}

static void *settler_main(void *arg)
{
    struct vc_settler *s = arg;
    uint64_t wait_s = FIRST_WAIT_S;
    bool kicked = true, open = true;

    do {
        open = settle_all(s, kicked);
        wait_s = kicked ? FIRST_WAIT_S : VC_MIN(2 * wait_s, (uint64_t)LONGEST_WAIT_S);
    } while (wait(s, open, wait_s, &kicked));
    return NULL;
}

/* Records that a killed agent left in the middle of a migration, as far as this host alone can
 * tell: before anybody can start a new one. */
static void look_back(struct vc_settler *s)
{
    vc_auto_free struct vc_id *ids = NULL;
    struct vc_err err = VC_ERR_INIT;
    char name[VC_ID_TEXT_BYTES];
    struct vc_handover h;
    size_t n = 0;

    if (vc_store_list(s->store, &ids, &n, &err))
        return;
    for (size_t i = 0; i < n; i++)
        if (read_record(s, &ids[i], &h) &&
            (h.state == VC_HANDOVER_LEAVING || h.state == VC_HANDOVER_ARRIVING) &&
            vc_session_look_back(s->store, &ids[i], s->socket_dir, &h, &s->log, &err)) {
            vc_id_format(&ids[i], name);
            say_who_is_not_refused(&err, name);
            vc_log_err(&s->log, VC_LOG_WARNING, "an interrupted migration is not settled yet",
                       &err);
        }
}

int vc_settler_start(struct vc_store *store, const char *socket_dir, const struct vc_log *log,
                     bool insecure, const struct vecycle_tls *tls, struct vc_settler **out,
                     struct vc_err *err)
{
    struct vc_settler *s = calloc(1, sizeof(*s));
    int rc;

    if (!s)
        return vc_err_set(err, VC_E_NOMEM, "no memory for the agent");
    s->store = store;
    s->log = *log;
    s->socket_dir = socket_dir;
    s->insecure = insecure;
    s->tls = *tls;
    pthread_mutex_init(&s->mu, NULL);
    vc_cond_init(&s->changed);
    rc = vc_cancel_init(&s->cancel, err);
    if (!rc) {
        look_back(s);
        rc = vc_thread_start(&s->thread, "vc-settle", settler_main, s, err);
    }
    if (rc)
        vc_settler_stop(s);
    else
        *out = s;
    return rc;
}

void vc_settler_kick(struct vc_settler *s)
{
    VC_LOCKED(&s->mu);

    s->kicked = true;
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
    vc_cancel_fini(&s->cancel);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->mu);
    free(s);
}
