/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "net/ssh.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

/* Theory of operation
 *
 * ssh runs as a child with a socket for its standard input and output, and a pipe for what it
 * says. It is in a process group of its own, so that neither Ctrl-C nor the end of a terminal
 * reaches it: either is ours to act on, and in a postcopy to leave alone. Not in a session of its
 * own, which would have no terminal: an ssh that was given with --ssh may ask for a password there.
 * To read from a terminal a process has to be in its foreground, else it is stopped (SIGTTIN). So
 * ours is lent to ssh, if we have it, until the other end speaks, as a shell lends it to a job;
 * Ctrl-C then ends ssh, which is a cancellation too. The stock command asks nothing (BatchMode).
 *
 * It ends because its connection does: that is closed first, and only what does not end then is
 * signalled, with its whole group. */

#define EARLY_GRACE_MS 200
#define GRACE_MS 2000
#define STEP_MS 10

extern char **environ;

/* Whatever a user's configuration has for his own sessions is not for this one. A master that
 * connections share would end them together; forwardings that are taken end the second ssh;
 * commands of the configuration collide with ours. (scp(1) does likewise.) What comes first counts,
 * so whoever wants something else says it in --ssh. */
static const char *const own_options[] = {
    "-T",
    "-e",
    "none",
    "-o",
    "BatchMode=yes",
    "-x",
    "-a",
    "-o",
    "ControlMaster=no",
    "-o",
    "ControlPath=none",
    "-o",
    "ClearAllForwardings=yes",
    "-o",
    "RemoteCommand=none",
    "-o",
    "PermitLocalCommand=no",
};

int vc_ssh_split(const char *text, char *buf, const char *words[VC_SSH_MAX_WORDS], size_t *n,
                 struct vc_err *err)
{
    const char *p = text;

    for (*n = 0;;) {
        char quote = 0;

        p += strspn(p, " \t\r\n");
        if (!*p)
            break;
        if (*n == VC_SSH_MAX_WORDS)
            return vc_err_set(err, VC_E_USAGE, "the ssh command has more than %d words",
                              VC_SSH_MAX_WORDS);
        words[(*n)++] = buf;
        for (; *p && (quote || !strchr(" \t\r\n", *p)); p++) {
            if (quote && *p == quote && p[1] == quote)
                *buf++ = *p++; /* twice: itself */
            else if (quote && *p == quote)
                quote = 0;
            else if (!quote && (*p == '\'' || *p == '"'))
                quote = *p;
            else
                *buf++ = *p;
        }
        if (quote)
            return vc_err_set_hint(err, VC_E_USAGE, "close the quote, or double it",
                                   "the ssh command '%.100s' ends within quotes", text);
        *buf++ = 0;
    }
    if (!*n || !*words[0])
        return vc_err_set(err, VC_E_USAGE, "the ssh command is empty");
    return 0;
}

/* Our terminal, if we are in its foreground; else -1. */
static int own_terminal(void)
{
    vc_auto_close int tty = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);

    return tty >= 0 && tcgetpgrp(tty) == getpgrp() ? vc_steal_fd(&tty) : -1;
}

/* From the background, where asking for it would stop us. */
static void take_terminal_back(struct vc_ssh *s)
{
    sigset_t set, old;

    if (s->tty < 0)
        return;
    sigemptyset(&set);
    sigaddset(&set, SIGTTOU);
    pthread_sigmask(SIG_BLOCK, &set, &old);
    if (tcgetpgrp(s->tty) == s->child && tcsetpgrp(s->tty, getpgrp()) < 0) {
        /* Somebody else has it now. */
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    vc_cleanup_close(&s->tty);
}

/* Runs argv with the socket as standard input and output. Signals that are ignored stay so, but for
 * SIGPIPE, which is our own doing. */
static int spawn(struct vc_ssh *s, char *const argv[], int sock, int words)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none, pipe;
    int rc;

    sigemptyset(&none);
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    posix_spawn_file_actions_init(&actions);
    if (s->tty >= 0)
        posix_spawn_file_actions_addtcsetpgrp_np(&actions, s->tty);
    posix_spawn_file_actions_adddup2(&actions, sock, 0);
    posix_spawn_file_actions_adddup2(&actions, sock, 1);
    posix_spawn_file_actions_adddup2(&actions, words, 2);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &pipe);
    posix_spawnattr_setpgroup(&attr, 0);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                        POSIX_SPAWN_SETPGROUP);
    rc = posix_spawnp(&s->child, argv[0], &actions, &attr, argv, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&actions);
    if (rc)
        s->child = 0;
    return rc;
}

/* Never an option, and an IPv6 address without brackets, which ssh takes from addresses with a
 * scheme only. */
static int run(struct vc_ssh *s, const struct vc_address *a, const struct vc_dial_options *o,
               int sock, int words, struct vc_err *err)
{
    const char *argv[VC_SSH_MAX_WORDS + VC_ARRAY_LEN(own_options) + 5];
    vc_auto_free char *buf = malloc(strlen(s->program) + 1);
    size_t n = 0;
    int rc;

    if (!buf)
        return vc_err_set(err, VC_E_NOMEM, "no memory for an ssh command");
    rc = vc_ssh_split(s->program, buf, argv, &n, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < VC_ARRAY_LEN(own_options); i++)
        argv[n++] = own_options[i];
    if (a->port[0]) {
        argv[n++] = "-p";
        argv[n++] = a->port;
    }
    argv[n++] = s->name;
    argv[n++] = s->remote;
    argv[n] = NULL;
    s->tty = o->ssh ? own_terminal() : -1;
    rc = spawn(s, (char *const *)argv, sock, words);
    if (!rc) {
        s->pidfd = (int)syscall(SYS_pidfd_open, s->child, 0);
        return 0;
    }
    errno = rc;
    vc_err_set_errno_hint(err, VC_E_UNREACHABLE,
                          rc == ENOENT ? "install an ssh client, or see --ssh" : "see --ssh",
                          "cannot run '%.100s'", argv[0]);
    err->lasts = rc != EAGAIN && rc != ENOMEM;
    return err->code;
}

int vc_ssh_start(const struct vc_address *a, const struct vc_dial_options *o, struct vc_ssh **out,
                 int *fd_out, struct vc_err *err)
{
    struct vc_ssh *s = calloc(1, sizeof(*s));
    vc_auto_close int ours = -1, theirs = -1, said = -1, say = -1;
    int fds[2], rc = 0;

    if (!s)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a connection");
    s->program = o->ssh ? o->ssh : "ssh";
    s->remote = o->remote ? o->remote : "vecycle recv";
    s->greeting = o->greeting;
    s->greeting_bytes = o->greeting_bytes;
    s->greeting_at = o->greeting_at;
    s->cancel_fd = o->cancel_fd;
    s->limit_ms = VC_SSH_OPEN_TIMES * o->timeout_ms;
    s->log = o->log ? *o->log : (struct vc_log){0};
    s->tty = s->words = s->stop = s->pidfd = -1;
    s->begun = !o->greeting;
    pthread_mutex_init(&s->mu, NULL);
    if (snprintf(s->name, sizeof(s->name), "%s%s%s", a->user, a->user[0] ? "@" : "", a->host) >=
        (int)sizeof(s->name))
        rc = vc_err_set(err, VC_E_USAGE, "the name of the host '%.64s...' is too long", s->name);
    if (!rc && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        rc = vc_err_set_errno(err, VC_E_FAILED, "cannot make a socket pair");
    if (!rc) {
        ours = fds[0];
        theirs = fds[1];
        if (pipe2(fds, O_CLOEXEC) < 0)
            rc = vc_err_set_errno(err, VC_E_FAILED, "cannot make a pipe");
    }
    if (!rc) {
        said = fds[0];
        say = fds[1];
        rc = run(s, a, o, theirs, say, err);
    }
    if (!rc)
        rc = vc_ssh_listen(s, vc_steal_fd(&said), err);
    if (rc) {
        vc_cleanup_close(&ours);
        vc_ssh_end(s);
        return rc;
    }
    *out = s;
    *fd_out = vc_steal_fd(&ours);
    return 0;
}

bool vc_ssh_has_ended(struct vc_ssh *s, int timeout_ms)
{
    uint64_t deadline = vc_now_ns() + (uint64_t)timeout_ms * VC_NS_PER_MS;

    while (s->child > 0) {
        pid_t got = waitpid(s->child, &s->status, WNOHANG);

        if (got == s->child || (got < 0 && errno != EINTR)) {
            take_terminal_back(s);
            if (got < 0) /* whoever embeds us waits for all children himself */
                s->status = 0;
            s->child = 0;
            break;
        }
        if (vc_now_ns() > deadline)
            return false;
        poll(NULL, 0, STEP_MS);
    }
    return true;
}

void vc_ssh_end(struct vc_ssh *s)
{
    static const int signals[] = {SIGTERM, SIGKILL};
    int grace_ms;

    if (!s)
        return;
    {
        VC_LOCKED(&s->mu);
        grace_ms = s->begun ? GRACE_MS : EARLY_GRACE_MS;
        s->ending = true;
    }
    take_terminal_back(s);
    for (size_t i = 0; i < VC_ARRAY_LEN(signals) && !vc_ssh_has_ended(s, grace_ms); i++) {
        kill(-s->child, signals[i]);
        grace_ms = GRACE_MS;
    }
    if (!vc_ssh_has_ended(s, GRACE_MS)) {
        /* The kernel holds it: nothing more can be done. */
    }
    vc_ssh_stop_listening(s);
    vc_cleanup_close(&s->pidfd);
    pthread_mutex_destroy(&s->mu);
    free(s);
}

/* ---- what comes before vecycle speaks ---- */

#define MAX_NOISE_BYTES (256u * 1024)
#define NOISE_TEXT_BYTES 120

struct noise {
    char text[NOISE_TEXT_BYTES]; /* how it begins */
    size_t len, bytes;
    bool blank; /* behind the text there was something that is none */
};

/* Text stays, everything else is a blank. */
static void note_noise(struct noise *x, const char *p, size_t n)
{
    x->bytes += n;
    for (size_t i = 0; i < n && x->len < sizeof(x->text) - 2; i++) {
        unsigned char c = (unsigned char)p[i];

        if (c <= ' ' || c == 0x7f) {
            x->blank = x->len > 0;
            continue;
        }
        if (x->blank)
            x->text[x->len++] = ' ';
        x->blank = false;
        x->text[x->len++] = (char)c;
    }
}

/* Where the greeting's frame begins in what waits; n: not there. */
static size_t find_greeting(const struct vc_ssh *s, const char *p, size_t n)
{
    size_t len = s->greeting_bytes, at = s->greeting_at;

    for (size_t i = 0; i + at + len <= n; i++)
        if (!memcmp(p + i + at, s->greeting, len))
            return i;
    return n;
}

/* Looks at what waits and takes out of it what is noise. 1: the greeting comes next; 0: not yet;
 * VC_EOF, also if ssh has ended and something that it left behind holds the socket; an error. */
static int look(struct vc_ssh *s, int fd, struct noise *x, struct vc_err *err)
{
    size_t frame = s->greeting_at + s->greeting_bytes;
    struct pollfd p[2] = {{.fd = fd, .events = POLLRDHUP}, {.fd = s->pidfd, .events = POLLIN}};
    bool over = poll(p, 2, 0) > 0; /* asked first: nothing comes after it */
    char buf[4096];
    ssize_t n = recv(fd, buf, sizeof(buf), MSG_PEEK | MSG_DONTWAIT), took;
    size_t at, noise;

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return over ? VC_EOF : 0;
    if (n <= 0)
        return VC_EOF;
    at = find_greeting(s, buf, (size_t)n);
    noise = at < (size_t)n ? at : (size_t)n >= frame ? (size_t)n - frame + 1 : 0;
    took = noise ? recv(fd, buf, noise, MSG_DONTWAIT) : 0;
    if (took > 0)
        note_noise(x, buf, (size_t)took);
    if (at < (size_t)n)
        return 1;
    if (over && took <= 0)
        return VC_EOF;
    if (x->bytes > MAX_NOISE_BYTES) {
        vc_err_set_hint(err, VC_E_PROTOCOL, "does --remote name vecycle's recv?",
                        "what ssh runs at '%.80s' is not vecycle: it prints '%.60s...'", s->name,
                        x->text);
        err->lasts = true;
        return err->code;
    }
    return 0;
}

/* The rest of what came, once nothing more counts: less than a greeting's frame. */
static void take_rest(int fd, struct noise *x)
{
    char buf[64];
    ssize_t n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);

    if (n > 0)
        note_noise(x, buf, (size_t)n);
}

/* Waits for more. Where bytes wait that may be the beginning of a greeting, poll(2) would not. */
static int wait_more(struct vc_ssh *s, int fd, uint64_t deadline, struct vc_err *err)
{
    struct pollfd p[3] = {
        {.fd = s->cancel_fd > 0 ? s->cancel_fd : -1, .events = POLLIN},
        {.fd = s->pidfd, .events = POLLIN},
        {.fd = fd, .events = POLLIN},
    };
    char c;
    bool some = recv(fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
    uint64_t now = vc_now_ns();

    if (now >= deadline)
        return VC_AGAIN;
    if (some)
        poll(p, 2, 5 * STEP_MS);
    else
        poll(p, 3, (int)((deadline - now) / VC_NS_PER_MS) + 1);
    if (p[0].revents)
        return vc_err_set(err, VC_E_CANCELLED, "cancelled while connecting to '%s'", s->name);
    return 0;
}

static int too_late(const struct vc_ssh *s, const struct noise *x, struct vc_err *err)
{
    return vc_err_set_hint(err, VC_E_PEER_LOST, "try `ssh` to that host by hand",
                           "vecycle has not begun at '%.80s' within %d s%s%.60s%s", s->name,
                           s->limit_ms / 1000, x->len ? "; there came '" : "", x->text,
                           x->len ? "'" : "");
}

int vc_ssh_await(struct vc_ssh *s, int fd, struct vc_err *err)
{
    uint64_t deadline = vc_now_ns() + (uint64_t)s->limit_ms * VC_NS_PER_MS;
    struct noise x = {0};
    int rc;

    while ((rc = look(s, fd, &x, err)) == 0) {
        rc = wait_more(s, fd, deadline, err);
        if (rc == VC_AGAIN)
            rc = too_late(s, &x, err);
        if (rc)
            break;
    }
    if (rc == VC_EOF) {
        take_rest(fd, &x);
        vc_make_printable(x.text);
        return vc_ssh_explain(s, x.text, err);
    }
    take_terminal_back(s);
    if (rc < 0)
        return rc;
    {
        VC_LOCKED(&s->mu);
        s->begun = true;
    }
    vc_make_printable(x.text);
    if (x.bytes)
        vc_log(&s->log, VC_LOG_WARNING,
               "'%s' sent %zu bytes before vecycle began there: '%s' (its shell's start-up files "
               "should print only to terminals)",
               s->name, x.bytes, x.len ? x.text : "nothing printable");
    return 0;
}
