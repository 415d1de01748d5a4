/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qemu.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fdio.h"
#include "base/json.h"

static const char *const commands[] = {
    "qmp_capabilities",
    "query-uuid",
    "query-status",
    "query-migrate",
    "query-migrate-capabilities",
    "migrate-set-capabilities",
    "query-migrate-parameters",
    "migrate-set-parameters",
    "stop",
    "cont",
    "getfd",
    "migrate",
    "migrate-incoming",
    "migrate-recover",
    "migrate-start-postcopy",
    "migrate_cancel",
};

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void set(char out[32], struct vc_reader text)
{
    snprintf(out, 32, "%.*s", (int)VC_MIN(text.len, (size_t)31), (const char *)text.data);
}

/* ---- what it says ---- */

static void say(struct fuzz_qemu *q, const void *p, size_t n)
{
    if (q->qmp >= 0 && (vc_write_full(q->qmp, p, n) || vc_write_full(q->qmp, "\n", 1)))
        q->hang_up = true; /* nobody listens */
}

static void say_json(struct fuzz_qemu *q, struct json_object *o)
{
    const char *line = vc_json_line(o);

    say(q, line, strlen(line));
    json_object_put(o);
}

static void say_event(struct fuzz_qemu *q, const char *name)
{
    struct json_object *o = json_object_new_object(), *data = json_object_new_object();

    vc_json_add_str(o, "event", name);
    vc_json_add_str(data, "status", q->status);
    json_object_object_add(o, "data", data);
    say_json(q, o);
}

/* ---- the migration's connections ---- */

static bool has_switched(const struct fuzz_qemu *q)
{
    return !strncmp(q->status, "postcopy", 8);
}

static void send_on(struct fuzz_qemu *q, unsigned which, struct vc_reader text)
{
    if (q->fds[which] < 0 && which && q->is_source && q->path[0])
        q->fds[which] = vc_unix_connect(q->path);
    if (q->fds[which] >= 0 && vc_write_full(q->fds[which], text.data, text.len))
        return; /* nobody reads it any more */
}

static void end_stream(struct fuzz_qemu *q)
{
    for (unsigned i = 0; i < 2; i++)
        if (q->fds[i] >= 0)
            shutdown(q->fds[i], SHUT_RDWR);
}

static bool do_steps(struct fuzz_qemu *q, unsigned moment);

static void connected(struct fuzz_qemu *q)
{
    strcpy(q->status, has_switched(q) ? "postcopy-active" : "active");
    q->came = true;
    if (q->is_source) {
        send_on(q, 0, q->stream);
    } else {
        strcpy(q->state, "paused");
        send_on(q, 0, q->answer);
        if (q->ends_answer)
            shutdown(q->fds[0], SHUT_WR);
    }
    do_steps(q, FUZZ_QEMU_CONNECTED);
}

/* The migration's connection is over. */
static void let_go(struct fuzz_qemu *q)
{
    if (!strcmp(q->status, "completed") || (!q->is_source && !has_switched(q)))
        return;
    strcpy(q->status, has_switched(q) ? "postcopy-paused" : "failed");
    if (!has_switched(q) && strcmp(q->state, "running") != 0) {
        strcpy(q->state, "running");
        say_event(q, "RESUME");
    }
    say_event(q, "MIGRATION");
}

/* SHUT has come to a source. */
static void was_shut(struct fuzz_qemu *q, uint64_t status)
{
    q->shut = true;
    if (do_steps(q, FUZZ_QEMU_SHUT))
        return;
    strcpy(q->status, status ? "failed" : "completed");
    strcpy(q->state, status ? "running" : "postmigrate");
    say_event(q, "MIGRATION");
    end_stream(q);
}

/* Goes through the return path as far as it has come: QEMU's migration.c,
 * source_return_path_thread.
 */
static void look_at_return_path(struct fuzz_qemu *q)
{
    const uint8_t *p = q->got[0];

    while (!q->shut && q->n_got[0] - q->looked_at >= 4) {
        size_t n = (size_t)p[q->looked_at + 2] << 8 | p[q->looked_at + 3];
        const uint8_t *payload = p + q->looked_at + 4;

        if (q->n_got[0] - q->looked_at - 4 < n)
            return;
        if (p[q->looked_at] == 0 && p[q->looked_at + 1] == 1 && n == 4)
            was_shut(q, vc_load_le(payload, 4));
        q->looked_at += 4 + n;
    }
}

static void read_stream(struct fuzz_qemu *q, unsigned which)
{
    uint8_t full[4096];
    bool room = q->n_got[which] < FUZZ_QEMU_BYTES;
    ssize_t n = vc_read_some(q->fds[which], room ? q->got[which] + q->n_got[which] : full,
                             room ? FUZZ_QEMU_BYTES - q->n_got[which] : sizeof(full));

    if (n > 0) {
        q->n_got[which] += room ? (size_t)n : 0;
        if (q->is_source && !q->proxied && which == 0)
            look_at_return_path(q);
        return;
    }
    close_fd(&q->fds[which]);
    if (which == 0 && !do_steps(q, FUZZ_QEMU_LET_GO))
        let_go(q);
}

/* A destination's first connection is its main one. */
static void take_stream(struct fuzz_qemu *q)
{
    int fd = accept4(q->listener, NULL, NULL, SOCK_CLOEXEC);

    if (!q->came) {
        q->fds[0] = fd;
        connected(q);
        return;
    }
    close_fd(&q->fds[1]);
    q->fds[1] = fd;
    do_steps(q, FUZZ_QEMU_SIDE);
}

/* ---- steps ---- */

/* Without an answer to give. */
static void do_step(struct fuzz_qemu *q, const struct fuzz_qemu_step *s)
{
    char name[32];

    set(name, s->text);
    switch (s->action & 0x7f) {
    case FUZZ_QEMU_SAY:
        say(q, s->text.data, s->text.len);
        break;
    case FUZZ_QEMU_STATUS:
        strcpy(q->status, name);
        break;
    case FUZZ_QEMU_STATE:
        strcpy(q->state, name);
        break;
    case FUZZ_QEMU_GO:
        q->hang_up = true;
        break;
    case FUZZ_QEMU_END_STREAM:
        end_stream(q);
        break;
    case FUZZ_QEMU_EVENT:
        say_event(q, name);
        break;
    case FUZZ_QEMU_STREAM:
        send_on(q, 0, s->text);
        break;
    case FUZZ_QEMU_SEND_SIDE:
        send_on(q, 1, s->text);
        break;
    case FUZZ_QEMU_END_SIDE:
        if (q->fds[1] >= 0)
            shutdown(q->fds[1], SHUT_RDWR);
        if (q->fds[0] >= 0)
            shutdown(q->fds[0], SHUT_WR);
        break;
    default:
        break;
    }
}

/* The next step for the moment, or NULL. */
static struct fuzz_qemu_step *next_step(struct fuzz_qemu *q, unsigned moment)
{
    for (unsigned i = 0; i < q->n_steps; i++)
        if (!q->steps[i].done && q->steps[i].moment == moment) {
            q->steps[i].done = true;
            return &q->steps[i];
        }
    return NULL;
}

/* Returns whether it is idle instead of what it does by itself. */
static bool do_steps(struct fuzz_qemu *q, unsigned moment)
{
    struct fuzz_qemu_step *s;
    bool idle = false;

    do {
        s = next_step(q, moment);
        if (s)
            do_step(q, s);
        idle = idle || (s && (s->action & 0x7f) == FUZZ_QEMU_IDLE);
    } while (s && s->action & 0x80);
    return idle;
}

void fuzz_qemu_script(struct fuzz_qemu *q, struct vc_reader script)
{
    pthread_mutex_lock(&q->mu);
    while (vc_reader_left(&script) && q->n_steps < FUZZ_QEMU_STEPS) {
        struct fuzz_qemu_step *s = &q->steps[q->n_steps++];

        s->done = false;
        s->moment = (uint8_t)(fuzz_number(&script, 1) % FUZZ_QEMU_MOMENTS);
        s->action = (uint8_t)fuzz_number(&script, 1);
        s->action = (uint8_t)((s->action & 0x80) | (s->action & 0x7f) % FUZZ_QEMU_ACTIONS);
        s->text = fuzz_part(&script, (size_t)fuzz_number(&script, 2));
        if (s->moment == FUZZ_QEMU_NOW) {
            s->done = true;
            do_step(q, s);
        }
    }
    pthread_mutex_unlock(&q->mu);
}

/* ---- commands ---- */

/* The value of a query. */
static struct json_object *value_of(struct fuzz_qemu *q, const char *name)
{
    static const char *const capabilities[] = {"events",      "postcopy-ram",  "postcopy-preempt",
                                               "return-path", "auto-converge", "xbzrle"};
    struct json_object *o = json_object_new_object();
    char uuid[VC_ID_TEXT_BYTES];

    if (!strcmp(name, "query-uuid")) {
        vc_id_format(&fuzz_vm, uuid);
        vc_json_add_str(o, "UUID", uuid);
    } else if (!strcmp(name, "query-status")) {
        vc_json_add_str(o, "status", q->state);
    } else if (!strcmp(name, "query-migrate") && q->status[0]) {
        struct json_object *ram = json_object_new_object();

        vc_json_add_str(o, "status", q->status);
        vc_json_add_u64(ram, "dirty-sync-count", 2);
        vc_json_add_u64(ram, "remaining", 1 << 20);
        json_object_object_add(o, "ram", ram);
        vc_json_add_u64(o, "downtime", 7);
    } else if (!strcmp(name, "query-migrate-parameters")) {
        vc_json_add_u64(o, "downtime-limit", 300);
    } else if (!strcmp(name, "query-migrate-capabilities")) {
        json_object_put(o);
        o = json_object_new_array();
        for (size_t i = 0; i < VC_ARRAY_LEN(capabilities); i++) {
            struct json_object *one = json_object_new_object();

            vc_json_add_str(one, "capability", capabilities[i]);
            vc_json_add_bool(one, "state", i == 5 || (i == 2 && q->preempt));
            json_object_array_add(o, one);
        }
    }
    return o;
}

/* A source that is told to migrate, to the descriptor it was given or a socket. */
static void migrate(struct fuzz_qemu *q, const char *uri, bool resume)
{
    if (resume)
        strcpy(q->status, "postcopy-recover");
    if (!strncmp(uri, "unix:", 5)) {
        snprintf(q->path, sizeof(q->path), "%s", uri + 5);
        q->fds[0] = vc_unix_connect(q->path);
    } else {
        q->fds[0] = vc_steal_fd(&q->passed_fd);
    }
    if (q->fds[0] < 0) {
        strcpy(q->status, "failed");
        return;
    }
    connected(q);
    if (has_switched(q) || !q->stream.len)
        return;
    strcpy(q->state, "finish-migrate");
    say_event(q, "STOP");
}

/* A destination that is told where its migration comes from. */
static void incoming(struct fuzz_qemu *q, const char *uri)
{
    if (!strncmp(uri, "unix:", 5)) {
        snprintf(q->path, sizeof(q->path), "%s", uri + 5);
        close_fd(&q->listener);
        q->listener = vc_unix_listen(q->path, 0600, 4);
    } else if (q->passed_fd >= 0 && q->fds[0] < 0) {
        q->fds[0] = vc_steal_fd(&q->passed_fd);
        connected(q);
    }
}

/* Does what a command asks for. */
static void obey(struct fuzz_qemu *q, const char *name, struct json_object *args)
{
    const char *uri = vc_json_str(args, "uri", "");

    if (!strcmp(name, "cont") && strcmp(q->state, "running") != 0) {
        strcpy(q->state, "running");
        say_event(q, "RESUME");
    } else if (!strcmp(name, "migrate") && q->is_source && q->fds[0] < 0) {
        migrate(q, uri, vc_json_bool(args, "resume", false));
    } else if (!strcmp(name, "migrate-incoming") || !strcmp(name, "migrate-recover")) {
        if (!strcmp(name, "migrate-recover"))
            strcpy(q->status, "postcopy-paused");
        incoming(q, uri);
    } else if (!strcmp(name, "migrate-start-postcopy") && q->fds[0] >= 0) {
        strcpy(q->status, "postcopy-active");
        strcpy(q->state, "finish-migrate");
        say_event(q, "STOP");
    } else if (!strcmp(name, "migrate_cancel")) {
        strcpy(q->status, "cancelled");
    }
}

/* One answer: 0 is an error. */
static void answer(struct fuzz_qemu *q, const char *name, uint64_t id,
                   const struct fuzz_qemu_step *s)
{
    struct json_object *o = json_object_new_object(), *value = NULL;

    vc_json_add_u64(o, "id", id);
    if (s && (s->action & 0x7f) == FUZZ_QEMU_ERROR) {
        char text[256];

        snprintf(text, sizeof(text), "%.*s", (int)VC_MIN(s->text.len, (size_t)255),
                 (const char *)s->text.data);
        value = json_object_new_object();
        vc_json_add_str(value, "desc", text);
    } else if (s && (s->action & 0x7f) == FUZZ_QEMU_RETURN) {
        value = vc_json_parse((const char *)s->text.data, s->text.len);
    } else {
        value = value_of(q, name);
    }
    json_object_object_add(o, s && (s->action & 0x7f) == FUZZ_QEMU_ERROR ? "error" : "return",
                           value);
    say_json(q, o);
}

static bool is_under_way(const struct fuzz_qemu *q)
{
    static const char *const ends[] = {"completed", "failed", "cancelled", "postcopy-paused"};

    for (size_t i = 0; i < VC_ARRAY_LEN(ends); i++)
        if (!strcmp(q->status, ends[i]))
            return false;
    return true;
}

static unsigned number_of(const char *name)
{
    for (unsigned i = 0; i < VC_ARRAY_LEN(commands); i++)
        if (!strcmp(commands[i], name))
            return i;
    return FUZZ_QEMU_MOMENTS; /* nothing is scripted for it */
}

static void on_command(struct fuzz_qemu *q, struct json_object *o)
{
    const char *name = vc_json_str(o, "execute", vc_json_str(o, "exec-oob", "?"));
    const struct fuzz_qemu_step *s, *how = NULL;
    bool idle = false, go = false;

    if (q->on_command)
        q->on_command(q->opaque, name);
    if (q->is_source && q->came && q->fds[0] < 0 && !strcmp(name, "query-migrate") &&
        is_under_way(q))
        let_go(q); /* whatever it said before */
    do {
        unsigned action;

        s = next_step(q, number_of(name));
        if (!s)
            break;
        action = s->action & 0x7f;
        idle = idle || action == FUZZ_QEMU_IDLE || action == FUZZ_QEMU_ERROR;
        go = go || action == FUZZ_QEMU_ANSWER_GO;
        if (action == FUZZ_QEMU_ERROR || action == FUZZ_QEMU_RETURN)
            how = s;
        do_step(q, s);
    } while (s->action & 0x80);
    if (q->hang_up)
        return;
    if (!idle)
        obey(q, name, vc_json_get(o, "arguments"));
    else if (!strcmp(name, "migrate"))
        strcpy(q->status, "failed"); /* and nobody waits for it */
    answer(q, name, vc_json_u64(o, "id", 0), how);
    q->hang_up = q->hang_up || go;
}

static void greet(struct fuzz_qemu *q)
{
    static const char greeting[] = "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}";

    q->qmp = accept4(q->qmp_listener, NULL, NULL, SOCK_CLOEXEC);
    q->n_line = 0;
    if (!do_steps(q, FUZZ_QEMU_GREETS))
        say(q, greeting, strlen(greeting));
    else
        q->hang_up = true;
}

/* Takes in what a client says, line by line. */
static void read_qmp(struct fuzz_qemu *q)
{
    int fds[1];
    size_t n_fds = 0;
    ssize_t n =
        vc_recv_fds(q->qmp, q->line + q->n_line, sizeof(q->line) - q->n_line, fds, 1, &n_fds);
    char *end;

    if (n_fds) {
        close_fd(&q->passed_fd);
        q->passed_fd = fds[0];
    }
    if (n <= 0) {
        q->hang_up = true;
        return;
    }
    q->n_line += (size_t)n;
    while (!q->hang_up && (end = memchr(q->line, '\n', q->n_line))) {
        size_t used = (size_t)(end - q->line) + 1;
        vc_auto_json struct json_object *o = vc_json_parse(q->line, used - 1);

        FUZZ_ASSERT(o);
        q->n_line -= used;
        memmove(q->line, end + 1, q->n_line);
        on_command(q, o);
    }
}

/* ---- the thread ---- */

/* Looks at each of its descriptors once. False: there was nothing to do. */
static bool turn(struct fuzz_qemu *q, int timeout_ms)
{
    struct pollfd p[] = {
        {.fd = q->over ? -1 : q->wake_fd, .events = POLLIN},
        {.fd = q->qmp, .events = POLLIN},
        {.fd = q->qmp < 0 ? q->qmp_listener : -1, .events = POLLIN},
        {.fd = q->listener, .events = POLLIN},
        {.fd = q->fds[0], .events = POLLIN},
        {.fd = q->fds[1], .events = POLLIN},
    };
    int n;

    pthread_mutex_unlock(&q->mu);
    n = poll(p, VC_ARRAY_LEN(p), timeout_ms);
    pthread_mutex_lock(&q->mu);
    if (p[0].revents)
        q->over = true;
    if (p[1].revents)
        read_qmp(q);
    if (p[2].revents)
        greet(q);
    if (p[3].revents)
        take_stream(q);
    for (unsigned i = 0; i < 2; i++)
        if (p[4 + i].revents && q->fds[i] == p[4 + i].fd)
            read_stream(q, i);
    if (q->hang_up)
        close_fd(&q->qmp);
    q->hang_up = false;
    return n > 0;
}

static void *qemu_main(void *arg)
{
    struct fuzz_qemu *q = arg;

    pthread_mutex_lock(&q->mu);
    while (turn(q, q->over ? 0 : -1) || !q->over) {
        /* goes on */
    }
    pthread_mutex_unlock(&q->mu);
    return NULL;
}

void fuzz_qemu_init(struct fuzz_qemu *q, bool is_source)
{
    static uint8_t buffers[2][FUZZ_QEMU_BYTES];

    *q = (struct fuzz_qemu){
        .is_source = is_source,
        .qmp_listener = -1,
        .listener = -1,
        .state = "inmigrate",
        .got = {buffers[0], buffers[1]},
        .mu = PTHREAD_MUTEX_INITIALIZER,
        .wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
        .qmp = -1,
        .fds = {-1, -1},
        .passed_fd = -1,
    };
    if (is_source)
        strcpy(q->state, "running");
    FUZZ_ASSERT(q->wake_fd >= 0);
}

void fuzz_qemu_start(struct fuzz_qemu *q)
{
    q->over = q->shut = q->came = false;
    q->n_got[0] = q->n_got[1] = q->looked_at = 0;
    FUZZ_ASSERT(pthread_create(&q->thread, NULL, qemu_main, q) == 0);
}

void fuzz_qemu_stop(struct fuzz_qemu *q)
{
    uint64_t n = 1;

    FUZZ_ASSERT(write(q->wake_fd, &n, sizeof(n)) == sizeof(n));
    pthread_join(q->thread, NULL);
    FUZZ_ASSERT(read(q->wake_fd, &n, sizeof(n)) == sizeof(n));
}

void fuzz_qemu_fini(struct fuzz_qemu *q)
{
    if (!q->is_source && q->path[0])
        unlink(q->path);
    close_fd(&q->qmp);
    close_fd(&q->listener);
    close_fd(&q->fds[0]);
    close_fd(&q->fds[1]);
    close_fd(&q->passed_fd);
    close_fd(&q->wake_fd);
}

/* Who a socket belongs to, for those that connect, is whoever called listen(2) last. */
int fuzz_qemu_listen(const char *path, bool ended)
{
    int fd = vc_unix_listen(path, 0600, 8);
    siginfo_t info;
    pid_t child;

    FUZZ_ASSERT(fd >= 0);
    child = fork();
    FUZZ_ASSERT(child >= 0);
    if (child == 0)
        _exit(listen(fd, 8) != 0);
    FUZZ_ASSERT(waitid(P_PID, (id_t)child, &info, WEXITED | (ended ? WNOWAIT : 0)) == 0);
    FUZZ_ASSERT(info.si_code == CLD_EXITED && info.si_status == 0);
    return fd;
}
