/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "api/agent.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fdio.h"

/* What a client's request, and its last line, may take. */
#define END_TIMEOUT_S 5

/* ---- one session ---- */

static void send_line(struct session *s, const char *key, struct json_object *value, bool last)
{
    vc_auto_json struct json_object *o = json_object_new_object();
    vc_auto_free char *line = NULL;
    int n;

    json_object_object_add(o, key, value);
    n = asprintf(&line, "%s\n", vc_json_line(o));
    if (n < 0) {
        line = NULL;
        return;
    }
    /* All or nothing: a torn line would garble what follows. A stream socket takes a small write
     * whole or not at all unless it is nearly full, and then the client is cut off. */
    if (s->control >= 0) {
        ssize_t put = send(s->control, line, (size_t)n, MSG_NOSIGNAL | (last ? 0 : MSG_DONTWAIT));

        if (put > 0 && put < n)
            shutdown(s->control, SHUT_RDWR);
    }
}

static void on_log(void *opaque, enum vc_log_level level, const char *text)
{
    struct session *s = opaque;

    if (s->control >= 0) {
        struct json_object *o = json_object_new_object();

        vc_json_add_u64(o, "level", level);
        vc_json_add_str(o, "text", text);
        send_line(s, "log", o, false);
    }
    vc_log(&s->agent->log, level, "%s", text);
}

static void on_progress(void *opaque, const struct vc_session_result *now)
{
    send_line(opaque, "progress", vc_result_to_json(now), false);
}

static void report_end(struct session *s, const struct vc_session_result *r, int rc,
                       const struct vc_err *err)
{
    struct timeval limit = {.tv_sec = END_TIMEOUT_S};
    struct json_object *end = json_object_new_object();

    if (rc < 0)
        json_object_object_add(end, "error", vc_error_to_json(err));
    if (s->control >= 0)
        setsockopt(s->control, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    send_line(s, "result", vc_result_to_json(r), true);
    send_line(s, "end", end, true);
}

static void wake_agent(struct agent *a)
{
    uint64_t one = 1;

    if (write(a->wake, &one, sizeof(one)) < 0) {
        /* Full means: awake already. */
    }
}

/* The descriptors that came with a job: its connection, unless it is yet to be made, and QEMU's.
 * True: some are missing. The job owns what there is. */
static bool take_fds(struct vc_job *job, const int fds[4], size_t n)
{
    bool source = job->kind != VC_JOB_RECEIVE;

    if (job->dial) {
        job->qemu_fd = n > 0 ? fds[0] : -1;
        job->listen_fd = n > 1 ? fds[1] : -1;
        job->rfd = n > 2 ? fds[2] : -1; /* not wanted: to be closed */
        job->wfd = n > 3 ? fds[3] : -1;
        return !source || n < 1 || n > 2;
    }
    job->rfd = n > 0 ? fds[0] : -1;
    job->wfd = n > 1 ? fds[1] : -1;
    job->qemu_fd = n > 2 ? fds[2] : -1;
    job->listen_fd = n > 3 ? fds[3] : -1;
    return job->kind == VC_JOB_ABOUT ? n > 0 : n < 2 || (source && n < 3);
}

/* Whether somebody else than root and the agent's own user asks. */
static bool is_of_another_user(int control)
{
    struct ucred who;
    socklen_t n = sizeof(who);

    return getsockopt(control, SOL_SOCKET, SO_PEERCRED, &who, &n) < 0 ||
           (who.uid != 0 && who.uid != geteuid());
}

/* QEMU's, as what reads them counts on shutdown(2) to wake it. The connection's are looked at where
 * it is made. */
static int check_fds(const struct vc_job *job, struct vc_err *err)
{
    if (job->qemu_fd >= 0 && !vc_is_unix_stream(job->qemu_fd))
        return vc_err_set(err, VC_E_PROTOCOL,
                          "control socket: what was given for QEMU is no connected Unix stream "
                          "socket");
    if (job->listen_fd >= 0 && !vc_is_unix_listener(job->listen_fd))
        return vc_err_set(
            err, VC_E_PROTOCOL,
            "control socket: what QEMU is to connect to is no Unix stream socket that "
            "listens");
    return 0;
}

/* A client sends its request at once; it is read in one piece, with a time limit. */
static int read_request(struct session *s, struct vc_err *err)
{
    struct timeval limit = {.tv_sec = END_TIMEOUT_S};
    vc_auto_json struct json_object *o = NULL;
    char line[VC_CONTROL_MAX_LINE_BYTES];
    int fds[4] = {-1, -1, -1, -1}, rc;
    size_t n_fds = 0;
    ssize_t n;

    setsockopt(s->control, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    n = vc_recv_fds(s->control, line, sizeof(line), fds, 4, &n_fds);
    limit.tv_sec = 0;
    setsockopt(s->control, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    if (n > 0 && line[n - 1] == '\n')
        o = vc_json_parse(line, (size_t)n - 1);
    rc = o ? vc_job_from_json(o, &s->job, err)
           : vc_err_set(err, VC_E_PROTOCOL, "control socket: not a request");
    s->job.must_be_known = is_of_another_user(s->control);
    if (take_fds(&s->job, fds, n_fds) && !rc)
        rc = vc_err_set(err, VC_E_PROTOCOL, "control socket: descriptors are missing");
    return rc ? rc : check_fds(&s->job, err);
}

static void on_opened(void *opaque)
{
    struct session *s = opaque;

    atomic_store(&s->opened, true);
    wake_agent(s->agent); /* which watches the client from now on */
}

static int run_job(struct session *s, struct vc_session_result *r, struct vc_err *err)
{
    struct agent *a = s->agent;
    int rc = 0;

    *r = (struct vc_session_result){0};
    if (s->control >= 0) {
        rc = read_request(s, err);
        if (!rc)
            on_opened(s);
    }
    if (rc)
        return rc;
    if (s->job.kind == VC_JOB_ABOUT) {
        send_line(s, "about", vc_about_to_json(a->store), true);
        return 0;
    }
    if (!s->job.dead_peer_ms)
        s->job.dead_peer_ms = a->o->dead_peer_ms;
    s->job.opened = on_opened;
    if (s->job.kind != VC_JOB_RECEIVE) /* else only who came through TLS */
        s->job.allow = a->o->allow;
    return vc_job_run(&s->job, a->store, &s->log, &s->cancel, on_progress, s, r, err);
}

static void *session_main(void *arg)
{
    struct session *s = arg;
    struct agent *a = s->agent;
    struct vc_session_result r;
    struct vc_err err = VC_ERR_INIT;
    char vm[VC_ID_TEXT_BYTES];
    int rc = run_job(s, &r, &err);

    report_end(s, &r, rc, &err);
    vc_id_format(&r.vm, vm);
    if (!rc && s->job.kind == VC_JOB_ABOUT) {
        atomic_store(&s->finished, true);
        wake_agent(a);
        return NULL;
    }
    if (rc)
        vc_log_err(&a->log, VC_LOG_ERROR, vc_id_is_nil(&r.vm) ? "a connection ended" : vm, &err);
    else if (r.rekeyed)
        vc_log(&a->log, VC_LOG_INFO, "%s: its checkpoint was re-keyed with '%s'", vm, r.peer);
    else if (r.phase != VC_PHASE_DONE)
        vc_log(&a->log, VC_LOG_INFO, "%s: '%s' has given its word again", vm, r.peer);
    else
        vc_log(&a->log, VC_LOG_INFO, "%s: migrated %s '%s': %llu pages reused, %llu sent", vm,
               s->job.kind == VC_JOB_RECEIVE ? "from" : "to", r.peer,
               (unsigned long long)(r.pages_same + r.pages_moved),
               (unsigned long long)r.pages_data);
    if (s->job.kind == VC_JOB_MIGRATE) /* a success too may not have been recorded */
        vc_settler_kick(a->settler);
    if (!rc && r.committed)
        vc_job_fold(a->store, &r.vm, 2, &a->stop, &a->log);
    vc_keeper_poke(a->keeper);
    vc_rekeyer_poke(a->rekeyer);
    atomic_store(&s->finished, true);
    wake_agent(a);
    return NULL;
}

static void free_session(struct session *s)
{
    vc_job_close(&s->job);
    vc_cancel_fini(&s->cancel);
    if (s->control >= 0)
        close(s->control);
    free(s);
}

/* ---- those who have not said what they want ---- */

static unsigned count_unopened(const struct agent *a)
{
    unsigned n = 0;

    for (const struct session *s = a->sessions; s; s = s->next)
        n += !atomic_load(&s->opened);
    return n;
}

/* Whether one was sent away and has not gone yet. */
static bool one_is_leaving(const struct agent *a)
{
    for (const struct session *s = a->sessions; s; s = s->next)
        if (!atomic_load(&s->opened) && vc_cancel_is_set(&s->cancel))
            return true;
    return false;
}

/* Who has to go: the oldest one, but no peer with a certificate for the sake of who may have none.
 */
static struct session *choose_one(const struct agent *a)
{
    struct session *unknown = NULL, *known = NULL;

    for (struct session *s = a->sessions; s; s = s->next) /* the newest comes first */
        if (atomic_load(&s->opened))
            continue;
        else if (atomic_load(&s->peer_known))
            known = s;
        else
            unknown = s;
    return unknown ? unknown : known;
}

/* Whether another connection may come in now. If not, one is sent away, and its end wakes us. */
bool vc_agent_make_room(struct agent *a)
{
    struct session *s;

    if (count_unopened(a) < MAX_UNOPENED)
        return true;
    s = one_is_leaving(a) ? NULL : choose_one(a);
    if (s) {
        vc_log(&a->log, VC_LOG_WARNING, "too many idle connections: the oldest one is closed");
        vc_cancel_now(&s->cancel);
        if (s->control >= 0)
            shutdown(s->control, SHUT_RDWR);
    }
    return false;
}

bool vc_agent_is_open(const struct agent *a)
{
    return !a->tired && (count_unopened(a) < MAX_UNOPENED || !one_is_leaving(a));
}

/* ---- starting and ending sessions ---- */

void vc_agent_start_session(struct agent *a, struct vc_job *job, int control)
{
    struct session *s = calloc(1, sizeof(*s));
    struct vc_err err = VC_ERR_INIT;
    int rc;

    if (!s) {
        vc_job_close(job);
        if (control >= 0)
            close(control);
        return;
    }
    s->agent = a;
    s->job = *job;
    s->control = control;
    s->cancel.fd = -1;
    s->job.peer_known = &s->peer_known;
    s->job.tls_dir = a->o->tls.dir;
    s->job.handshake_ms = vc_public_tls(&a->o->tls, NULL).handshake_ms;
    s->log = (struct vc_log){.fn = on_log, .opaque = s, .max = VC_LOG_DEBUG};
    snprintf(s->job.socket_dir, sizeof(s->job.socket_dir), "%s", a->socket_dir);
    s->job.parking = a->parking;
    rc = a->n_sessions - count_unopened(a) < MAX_SESSIONS
             ? vc_cancel_init(&s->cancel, &err)
             : vc_err_set(&err, VC_E_BUSY, "%u migrations run already", MAX_SESSIONS);
    if (!rc)
        rc = vc_thread_start(&s->thread, "vc-session", session_main, s, &err);
    if (rc) {
        struct vc_session_result none = {0};

        vc_log_err(&a->log, VC_LOG_ERROR, "a session was refused", &err);
        report_end(s, &none, rc, &err);
        free_session(s);
        return;
    }
    s->next = a->sessions;
    a->sessions = s;
    a->n_sessions++;
}

void vc_agent_reap(struct agent *a)
{
    struct session **at = &a->sessions;

    while (*at) {
        struct session *s = *at;

        if (!atomic_load(&s->finished)) {
            at = &s->next;
            continue;
        }
        *at = s->next;
        a->n_sessions--;
        vc_thread_join(&s->thread);
        free_session(s);
    }
}

void vc_agent_end_sessions(struct agent *a)
{
    for (struct session *s = a->sessions; s; s = s->next)
        vc_cancel_now(&s->cancel);
    while (a->sessions) {
        struct session *s = a->sessions;

        a->sessions = s->next;
        vc_thread_join(&s->thread);
        free_session(s);
    }
}
