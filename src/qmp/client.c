/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fdio.h"
#include "base/thread.h"
#include "base/units.h"
#include "qmp/qmp.h"

/* Lines are read into one growing buffer with a named maximum. While an answer is awaited events
 * may come: what is read of them waits in a list until it is asked for. */

#define MAX_EVENTS 256
/** Lines that are taken in in one look for the next event, or for the answer that is owed. */
#define MAX_LOOKS 1024
/** Longer than any word that QEMU says in a field that is read. */
#define MAX_WORD_BYTES 32

/* The events that somebody reads, and the one member of their data that is read. Of all else that
 * QEMU may say in an event nothing is kept. */
static const struct {
    const char *name, *member;
} known_events[] = {
    {"STOP", NULL},
    {"RESUME", NULL},
    {"SUSPEND", NULL},
    {"WAKEUP", NULL},
    {"SHUTDOWN", "reason"},
    {"MIGRATION", "status"},
    {"GUEST_PANICKED", "action"},
    {"BLOCK_IO_ERROR", "action"},
    {"WATCHDOG", "action"},
};

struct event {
    uint8_t kind;              /* index into known_events */
    char word[MAX_WORD_BYTES]; /* of its member; "": it has none */
};

struct vc_qmp {
    int fd;
    pid_t pid;                 /* of the process that called listen(), or 0 */
    int pidfd;                 /* of it, or -1 */
    struct vc_process process; /* the same once it is shown to be this VM's QEMU, else unknown */
    char name[160]; /* any legal name of a socket (session/target.c), or the start of a path */
    pthread_mutex_t
        mu;           /* from a command to its answer: of what follows, and of reading the socket */
    atomic_bool gone; /* [atomic] */
    atomic_bool ran;  /* [atomic] the VM was seen to run, or to be continued */
    char *buf;
    size_t have, cap;
    struct event events[MAX_EVENTS]; /* oldest first */
    unsigned n_events;
    uint64_t next_id;
    uint64_t owed_id; /* of the in-band command that QEMU has yet to answer, or 0 */
    char owed[40];    /* its name */
    bool hurry;       /* the next one fails at once then */
    int kept_fd;      /* the number of a descriptor in QEMU, plus 1 */
    bool oob;         /* out-of-band commands were negotiated */
};

const char *vc_qmp_name(const struct vc_qmp *q)
{
    return q->name;
}

int vc_qmp_fd(const struct vc_qmp *q)
{
    return q->fd;
}

bool vc_qmp_is_gone(const struct vc_qmp *q)
{
    return q->gone;
}

bool vc_qmp_process_ended(const struct vc_qmp *q, int timeout_ms)
{
    return vc_process_is_known(&q->process) && vc_wait_readable(q->pidfd, timeout_ms) > 0;
}

const struct vc_process *vc_qmp_process(const struct vc_qmp *q)
{
    return &q->process;
}

bool vc_qmp_has_run(const struct vc_qmp *q)
{
    return q->ran;
}

void vc_qmp_note_run(struct vc_qmp *q)
{
    q->ran = true;
}

void vc_qmp_shutdown(struct vc_qmp *q)
{
    shutdown(q->fd, SHUT_RDWR);
}

void vc_qmp_free(struct vc_qmp *q)
{
    if (!q)
        return;
    close(q->fd);
    if (q->pidfd >= 0)
        close(q->pidfd);
    pthread_mutex_destroy(&q->mu);
    free(q->buf);
    free(q);
}

static int grow(struct vc_qmp *q, struct vc_err *err)
{
    size_t cap = q->cap ? q->cap * 2 : 16384;
    char *more;

    if (cap > VC_QMP_MAX_LINE_BYTES)
        return vc_err_set(err, VC_E_QMP, "'%s' sent a line of more than %u bytes", q->name,
                          VC_QMP_MAX_LINE_BYTES);
    more = realloc(q->buf, cap);
    if (!more)
        return vc_err_set(err, VC_E_NOMEM, "no memory for QMP");
    q->buf = more;
    q->cap = cap;
    return 0;
}

/* Takes one whole line out of the buffer as an object: 0, VC_AGAIN. */
static int take_line(struct vc_qmp *q, struct json_object **out, struct vc_err *err)
{
    for (;;) {
        char *end = q->have ? memchr(q->buf, '\n', q->have) : NULL;
        size_t n, skip;
        struct json_object *o;
        bool is_too_much;

        if (!end)
            return VC_AGAIN;
        n = (size_t)(end - q->buf);
        skip = n + 1;
        while (n && (q->buf[n - 1] == '\r' || q->buf[n - 1] == ' '))
            n--;
        o = n ? vc_json_parse(q->buf, n) : NULL;
        is_too_much = !o && vc_json_is_too_much(q->buf, n);
        q->have -= skip;
        memmove(q->buf, q->buf + skip, q->have);
        if (!n)
            continue;
        if (is_too_much)
            return vc_err_set_hint(err, VC_E_QMP, "no QEMU says so much: what is at that socket?",
                                   "'%s' sent a line of more than %u values", q->name,
                                   VC_JSON_MAX_VALUES);
        if (!json_object_is_type(o, json_type_object)) {
            json_object_put(o);
            return vc_err_set_hint(err, VC_E_QMP, "give the path of a QMP socket (-qmp unix:PATH)",
                                   "'%s' does not speak QMP", q->name);
        }
        *out = o;
        return 0;
    }
}

/* Reads once. 0, VC_AGAIN: time is up. */
static int fill(struct vc_qmp *q, int timeout_ms, struct vc_err *err)
{
    ssize_t n;
    int rc = vc_wait_readable(q->fd, timeout_ms);

    if (rc == 0)
        return VC_AGAIN;
    if (q->have == q->cap) {
        rc = grow(q, err);
        if (rc < 0)
            return rc;
    }
    n = recv(q->fd, q->buf + q->have, q->cap - q->have, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0; /* who has the socket as well has taken it */
    q->gone = n <= 0;
    if (n <= 0)
        return vc_err_set(err, VC_E_QMP, "QEMU closed its QMP socket '%s'", q->name);
    q->have += (size_t)n;
    return 0;
}

/* The next object, waiting until the deadline: 0, VC_AGAIN. */
static int next_object(struct vc_qmp *q, uint64_t deadline_ns, struct json_object **out,
                       struct vc_err *err)
{
    for (;;) {
        uint64_t now = vc_now_ns();
        int rc = take_line(q, out, err);

        if (rc != VC_AGAIN)
            return rc;
        if (deadline_ns && now >= deadline_ns) /* whatever trickles in */
            return VC_AGAIN;
        rc = fill(q, now < deadline_ns ? (int)((deadline_ns - now) / VC_NS_PER_MS) + 1 : 0, err);
        if (rc)
            return rc;
    }
}

static void keep_event(struct vc_qmp *q, struct json_object *event)
{
    const char *name = vc_json_str(event, "event", "");
    struct event e = {0};

    while (e.kind < VC_ARRAY_LEN(known_events) && strcmp(known_events[e.kind].name, name) != 0)
        e.kind++;
    if (e.kind == VC_ARRAY_LEN(known_events))
        return;
    if (!strcmp(name, "RESUME"))
        q->ran = true;
    if (known_events[e.kind].member)
        snprintf(e.word, sizeof(e.word), "%s",
                 vc_json_str(vc_json_get(event, "data"), known_events[e.kind].member, ""));
    if (q->n_events == MAX_EVENTS) /* nobody listens: the oldest is the least interesting */
        memmove(q->events, q->events + 1, --q->n_events * sizeof(e));
    q->events[q->n_events++] = e;
}

/* Keeps an event; of an answer, notes that it has come. */
static void take_in(struct vc_qmp *q, struct json_object *o)
{
    if (vc_json_get(o, "event"))
        keep_event(q, o);
    else if (vc_json_u64(o, "id", 0) == q->owed_id)
        q->owed_id = 0;
}

/* The event again, as far as it was kept. */
static struct json_object *event_to_json(const struct event *e)
{
    struct json_object *o = json_object_new_object(), *data;

    vc_json_add_str(o, "event", known_events[e->kind].name);
    if (*e->word) {
        data = json_object_new_object();
        vc_json_add_str(data, known_events[e->kind].member, e->word);
        json_object_object_add(o, "data", data);
    }
    return o;
}

static int take_event(struct vc_qmp *q, struct json_object **out, struct vc_err *err)
{
    for (unsigned i = 0; !q->n_events; i++) {
        vc_auto_json struct json_object *o = NULL;
        int rc = i < MAX_LOOKS ? next_object(q, 0, &o, err) : VC_AGAIN;

        if (rc)
            return rc;
        take_in(q, o); /* whatever it is, an event may be behind it */
    }
    *out = event_to_json(&q->events[0]);
    memmove(q->events, q->events + 1, --q->n_events * sizeof(q->events[0]));
    return 0;
}

int vc_qmp_event(struct vc_qmp *q, struct json_object **out, struct vc_err *err)
{
    int rc;

    if (pthread_mutex_trylock(&q->mu)) /* another thread's command keeps the events, too */
        return VC_AGAIN;
    rc = take_event(q, out, err);
    pthread_mutex_unlock(&q->mu);
    return rc;
}

/* Waits for the answer with that id; events are kept. */
static int await_answer(struct vc_qmp *q, const char *command, uint64_t id,
                        struct json_object **ret_out, struct vc_err *err)
{
    uint64_t deadline = vc_now_ns() + VC_QMP_TIMEOUT_MS * VC_NS_PER_MS;

    for (;;) {
        vc_auto_json struct json_object *o = NULL;
        struct json_object *error;
        int rc = vc_now_ns() < deadline ? next_object(q, deadline, &o, err) : VC_AGAIN;

        if (rc == VC_AGAIN)
            return vc_err_set_hint(err, VC_E_QMP, "is another client connected to this QMP socket?",
                                   "'%s' did not answer %s within %u s", q->name, command,
                                   VC_QMP_TIMEOUT_MS / 1000);
        if (rc)
            return rc;
        take_in(q, o);
        if (vc_json_get(o, "event"))
            continue;
        error = vc_json_get(o, "error");
        if (error && !vc_json_get(o, "id") && q->owed_id == id)
            q->owed_id = 0;
        if (error && (!vc_json_get(o, "id") || vc_json_u64(o, "id", 0) == id))
            return vc_err_set(err, VC_E_QMP, "QEMU refused %s: %.160s", command,
                              vc_json_str(error, "desc", "?"));
        if (vc_json_u64(o, "id", 0) != id)
            continue;
        if (ret_out)
            *ret_out = json_object_get(vc_json_get(o, "return"));
        return 0;
    }
}

/* After a failed write: the connection is over, but not what it carried before. */
static void drain(struct vc_qmp *q)
{
    struct vc_err ignored = VC_ERR_INIT;
    struct json_object *o;
    int saved = errno;

    while (!q->gone && next_object(q, 0, &o, &ignored) == 0) {
        take_in(q, o);
        json_object_put(o);
    }
    q->gone = true;
    errno = saved;
}

/* QEMU queues few commands in band, and once they are 8 it reads none out of band either. So there
 * is never more than one of ours: the next one goes out when the one before is answered. */
static int catch_up(struct vc_qmp *q, struct vc_err *err)
{
    uint64_t deadline = q->hurry ? 0 : vc_now_ns() + VC_QMP_TIMEOUT_MS * VC_NS_PER_MS;

    for (unsigned i = 0; q->owed_id && (!q->hurry || i < MAX_LOOKS); i++) {
        vc_auto_json struct json_object *o = NULL;
        int rc = next_object(q, deadline, &o, err);

        if (rc == VC_AGAIN)
            break;
        if (rc)
            return rc;
        take_in(q, o);
    }
    if (!q->owed_id)
        return 0;
    return vc_err_set_hint(err, VC_E_QMP, "does QEMU hang, or its guest wait for a page?",
                           "'%s' has not answered the command before yet, %s", q->name, q->owed);
}

void vc_qmp_keep_fd(struct vc_qmp *q, int number)
{
    q->kept_fd = number + 1;
}

int vc_qmp_kept_fd(const struct vc_qmp *q)
{
    return q->kept_fd - 1;
}

void vc_qmp_hurry(struct vc_qmp *q, bool hurry)
{
    VC_LOCKED(&q->mu);

    q->hurry = hurry;
}

bool vc_qmp_is_same_peer(const struct vc_qmp *q, int fd)
{
    struct ucred want, have;
    socklen_t n = sizeof(want), k = sizeof(have);

    return !getsockopt(q->fd, SOL_SOCKET, SO_PEERCRED, &want, &n) &&
           !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &have, &k) &&
           (want.pid == have.pid || want.uid == have.uid);
}

/* The process that called listen(): QEMU, or whoever handed the socket to it; 0: it is in another
 * PID namespace. */
static pid_t listener_of(int sock)
{
    struct ucred cred;
    socklen_t n = sizeof(cred);

    return getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &n) < 0 || cred.pid < 0 ? 0 : cred.pid;
}

void vc_qmp_identify(struct vc_qmp *q, const struct vc_id *vm)
{
    struct vc_id want = *vm;
    struct vc_process p;

    if (q->pidfd < 0 || !vc_process_has_option(q->pid, "uuid", vc_process_option_is_id, &want) ||
        !vc_process_read(q->pid, &p))
        return;
    /* If it lives still, what was read is about it, and not about a later one with that pid. */
    if (vc_wait_readable(q->pidfd, 0) == 0)
        q->process = p;
}

/* A line for QEMU, the caller's; NULL: no memory. Takes @args. */
static char *command_line(const char *how, const char *command, struct json_object *args,
                          uint64_t id)
{
    vc_auto_json struct json_object *o = json_object_new_object();
    char *line = NULL;

    if (!o) {
        json_object_put(args);
        return NULL;
    }
    vc_json_add_str(o, how, command);
    vc_json_add_u64(o, "id", id);
    if (args)
        json_object_object_add(o, "arguments", args);
    return asprintf(&line, "%s\n", vc_json_line(o)) < 0 ? NULL : line;
}

static int execute(struct vc_qmp *q, bool oob, const char *command, struct json_object *args,
                   int fd, struct json_object **ret_out, struct vc_err *err)
{
    vc_auto_free char *line = NULL;
    uint64_t id;
    int rc;
    VC_LOCKED(&q->mu);

    id = ++q->next_id;
    line = command_line(oob ? "exec-oob" : "execute", command, args, id);
    if (!line)
        return vc_err_set(err, VC_E_NOMEM, "no memory for QMP");
    rc = oob ? 0 : catch_up(q, err);
    if (rc)
        return rc;
    if (vc_send_fds(q->fd, line, strlen(line), &fd, fd >= 0 ? 1 : 0) < 0) {
        drain(q); /* what it said before it went */
        return vc_err_set_errno(err, VC_E_QMP, "cannot write to '%s'", q->name);
    }
    if (!oob) {
        q->owed_id = id;
        snprintf(q->owed, sizeof(q->owed), "%s", command);
    }
    return await_answer(q, command, id, ret_out, err);
}

int vc_qmp_execute(struct vc_qmp *q, const char *command, struct json_object *args, int fd,
                   struct json_object **ret_out, struct vc_err *err)
{
    return execute(q, false, command, args, fd, ret_out, err);
}

int vc_qmp_execute_oob(struct vc_qmp *q, const char *command, struct json_object *args,
                       struct vc_err *err)
{
    return execute(q, q->oob, command, args, -1, NULL, err);
}

static bool offers_oob(struct json_object *greeting)
{
    struct json_object *list = vc_json_get(vc_json_get(greeting, "QMP"), "capabilities");

    if (!json_object_is_type(list, json_type_array))
        return false;
    for (size_t i = 0; i < json_object_array_length(list); i++) {
        struct json_object *one = json_object_array_get_idx(list, i);

        if (json_object_is_type(one, json_type_string) &&
            !strcmp(json_object_get_string(one), "oob"))
            return true;
    }
    return false;
}

static int negotiate(struct vc_qmp *q, bool oob, struct vc_err *err)
{
    struct json_object *args, *enable;
    vc_auto_json struct json_object *greeting = NULL;
    int rc = next_object(q, vc_now_ns() + VC_QMP_TIMEOUT_MS * VC_NS_PER_MS, &greeting, err);

    if (rc == VC_AGAIN)
        return vc_err_set_hint(
            err, VC_E_QMP, "QEMU serves one client at a time: is another one connected?",
            "'%s' sent no QMP greeting within %u s", q->name, VC_QMP_TIMEOUT_MS / 1000);
    if (rc)
        return rc;
    if (!vc_json_get(greeting, "QMP"))
        return vc_err_set_hint(err, VC_E_QMP, "give the path of a QMP socket (-qmp unix:PATH)",
                               "'%s' does not speak QMP", q->name);
    if (!oob || !offers_oob(greeting))
        return vc_qmp_simple(q, "qmp_capabilities", err);
    q->oob = true;
    args = json_object_new_object();
    enable = json_object_new_array();
    json_object_array_add(enable, json_object_new_string("oob"));
    json_object_object_add(args, "enable", enable);
    return vc_qmp_execute(q, "qmp_capabilities", args, -1, NULL, err);
}

static int from_fd(int fd, const char *name, bool oob, struct vc_qmp **out, struct vc_err *err)
{
    struct timeval limit = {.tv_sec = VC_QMP_TIMEOUT_MS / 1000};
    struct vc_qmp *q = calloc(1, sizeof(*q));
    int rc;

    if (!q) {
        close(fd);
        return vc_err_set(err, VC_E_NOMEM, "no memory for QMP");
    }
    pthread_mutex_init(&q->mu, NULL);
    q->fd = fd;
    q->pid = listener_of(fd);
    q->pidfd = q->pid ? (int)syscall(SYS_pidfd_open, q->pid, 0) : -1;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    snprintf(q->name, sizeof(q->name), "%s", name);
    rc = negotiate(q, oob, err);
    if (rc) {
        vc_qmp_free(q);
        return rc;
    }
    *out = q;
    return 0;
}

int vc_qmp_from_fd(int fd, const char *name, struct vc_qmp **out, struct vc_err *err)
{
    return from_fd(fd, name, false, out, err);
}

int vc_qmp_from_fd_oob(int fd, const char *name, struct vc_qmp **out, struct vc_err *err)
{
    return from_fd(fd, name, true, out, err);
}

int vc_qmp_connect(const char *path, struct vc_qmp **out, struct vc_err *err)
{
    int fd = vc_unix_connect(path);

    if (fd < 0)
        return vc_err_set_errno_hint(err, VC_E_QMP_CONNECT,
                                     "start QEMU with -qmp unix:PATH,server=on,wait=off",
                                     "cannot connect to the QMP socket '%.120s'", path);
    return vc_qmp_from_fd(fd, path, out, err);
}
