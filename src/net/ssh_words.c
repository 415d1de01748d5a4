/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fdio.h"
#include "net/ssh.h"

/* What ssh, and the other host's vecycle behind it, say on the standard error. Each line is passed
 * on as a message. The last one is held back until another one comes: where ssh fails it is the
 * reason, and becomes part of the error instead of being told twice.
 *
 * The other host is not trusted with our terminal and log: what it says at once is limited, and
 * what it says for ever. */

/* Lines that are passed on at once (ssh -vv says some 100), and time for each more. */
#define MAX_LINES 200
#define LINE_NS VC_NS_PER_S

/* As much as a pipe holds: what is to be read yet once nothing more counts. */
#define MAX_LAST_BYTES (1u << 20)

/* Time for ssh to end, and for its words to arrive, once its connection has. */
#define END_MS 2000
#define WORDS_MS 200

/* "vecycle: MESSAGE (HINT)" of the other host, whose message is in our error already. */
static bool is_told(const struct vc_ssh *s)
{
    const char *text = !strncmp(s->last, "vecycle: ", 9) ? s->last + 9 : s->last;
    char message[VC_SSH_LINE_BYTES];

    if (!s->told[0])
        return false;
    snprintf(message, sizeof(message), "%.*s", (int)strcspn(text, "("), text);
    for (size_t n = strlen(message); n && message[n - 1] == ' '; n--)
        message[n - 1] = 0;
    return strlen(message) < 8 || strstr(s->told, message) || strstr(message, s->told);
}

static bool may_pass_locked(struct vc_ssh *s)
{
    uint64_t now = vc_now_ns(), from = VC_MAX(s->lines_until_ns, now);

    if (from - now > (MAX_LINES - 1) * LINE_NS)
        return false;
    s->lines_until_ns = from + LINE_NS;
    return true;
}

static void count_left_out_locked(struct vc_ssh *s)
{
    if (s->left_out)
        vc_log(&s->log, VC_LOG_WARNING, "%s: %llu lines were left out: there are too many", s->name,
               (unsigned long long)s->left_out);
    s->left_out = 0;
}

static void pass_on_locked(struct vc_ssh *s)
{
    if (s->last[0] && !is_told(s)) {
        if (may_pass_locked(s)) {
            count_left_out_locked(s);
            vc_log(&s->log, s->ending ? VC_LOG_DEBUG : VC_LOG_WARNING, "%s: %s", s->name, s->last);
        } else {
            s->left_out++;
        }
    }
    s->last[0] = 0;
}

/* A line is complete. */
static void on_line(struct vc_ssh *s, char *line)
{
    size_t n = strlen(line);
    VC_LOCKED(&s->mu);

    while (n && (line[n - 1] == '\r' || line[n - 1] == ' '))
        line[--n] = 0;
    if (!n)
        return;
    pass_on_locked(s);
    vc_make_printable(line);
    snprintf(s->last, sizeof(s->last), "%s", line);
}

struct line {
    char text[VC_SSH_LINE_BYTES];
    size_t len;
};

static void on_bytes(struct vc_ssh *s, struct line *l, const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (p[i] == '\n') {
            l->text[l->len] = 0;
            on_line(s, l->text);
            l->len = 0;
        } else if (l->len < sizeof(l->text) - 1 && p[i]) {
            l->text[l->len++] = p[i]; /* what is longer is cut */
        }
    }
}

static void *words_main(void *arg)
{
    struct vc_ssh *s = arg;
    struct line l = {.len = 0};
    struct pollfd p[2] = {{.fd = s->words, .events = POLLIN}, {.fd = s->stop, .events = POLLIN}};
    size_t left = MAX_LAST_BYTES;
    char buf[1024];
    ssize_t n = 1;

    while (n && left) {
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            break;
        if (!p[0].revents && p[1].revents)
            break;
        n = read(s->words, buf, sizeof(buf));
        if (p[1].revents && n > 0)
            left -= VC_MIN((size_t)n, left);
        if (n > 0)
            on_bytes(s, &l, buf, (size_t)n);
        else if (n < 0 && errno != EINTR && errno != EAGAIN)
            break;
    }
    on_bytes(s, &l, "\n", 1);
    return NULL;
}

int vc_ssh_listen(struct vc_ssh *s, int words, struct vc_err *err)
{
    s->words = words;
    s->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->stop < 0 || fcntl(words, F_SETFL, O_NONBLOCK) < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot make an eventfd");
    return vc_thread_start(&s->thread, "vc-ssh-words", words_main, s, err);
}

/* Its words end with it, as a rule; a process that it has left behind may hold the pipe, and fill
 * it. */
static void finish_listening(struct vc_ssh *s)
{
    uint64_t one = 1;

    if (s->stop >= 0 && write(s->stop, &one, sizeof(one)) < 0) {
        /* Full means: readable already. */
    }
    vc_thread_join(&s->thread);
}

void vc_ssh_stop_listening(struct vc_ssh *s)
{
    finish_listening(s);
    {
        VC_LOCKED(&s->mu);
        pass_on_locked(s);
        count_left_out_locked(s);
    }
    vc_cleanup_close(&s->words);
    vc_cleanup_close(&s->stop);
}

void vc_ssh_last_words(struct vc_ssh *s, char out[VC_SSH_LINE_BYTES])
{
    finish_listening(s); /* it reads what is there first */
    VC_LOCKED(&s->mu);
    snprintf(out, VC_SSH_LINE_BYTES, "%s", s->last);
    s->last[0] = 0;
}

/* ---- whose failure it was ---- */

/* What to do about it, and whether it stays so. @words: ssh's. */
static const char *advise(const char *words, bool *lasts)
{
    static const struct {
        const char *words, *hint;
        bool lasts;
    } known[] = {
        {"Host key verification failed", "connect by hand once, and check the host's key", true},
        {"HOST IDENTIFICATION HAS CHANGED", "connect by hand, and check the host's key", true},
        {"Permission denied", "`ssh HOST true` has to work without a password", true},
        {"Too many authentication failures", "say which key with --ssh 'ssh -i KEY'", true},
        {"Temporary failure in name", "is there a name server that answers?", false},
        {"Could not resolve", "check the name, /etc/hosts and DNS", true},
        {"no matching", "the two versions of ssh have nothing in common", true},
        {"Bad configuration", "see ssh_config(5)", true},
        {"Bad owner", "see ssh_config(5)", true},
        {"usage:", "see --ssh", true},
        {"unknown option", "see --ssh", true},
        {"illegal option", "see --ssh", true},
        {"Connection refused", "is sshd running there, and at that port?", false},
    };

    for (size_t i = 0; i < VC_ARRAY_LEN(known); i++)
        if (strcasestr(words, known[i].words)) {
            *lasts = known[i].lasts;
            return known[i].hint;
        }
    *lasts = false;
    return "check the network and the other host; `ssh HOST true` has to work";
}

/* The other host's vecycle has said why it ends, in its way. */
static int explain_recv(struct vc_ssh *s, int status, const char *words, struct vc_err *err)
{
    const char *text = words + strlen("vecycle: "), *hint = strrchr(text, '(');
    char copy[160] = "see the other host's own messages";
    size_t n = hint ? (size_t)(hint - text) : strlen(text);

    if (hint)
        snprintf(copy, sizeof(copy), "%.*s", (int)strcspn(hint + 1, ")"), hint + 1);
    while (n && text[n - 1] == ' ')
        n--;
    return vc_err_set_hint(err, -status, copy, "'%.80s': %.*s", s->name, (int)n, text);
}

/* The shell did what it was asked to, or could not. */
static int explain_status(struct vc_ssh *s, int status, const char *said, struct vc_err *err)
{
    const char *sep = *said ? ": " : "";

    if (status == 127)
        vc_err_set_hint(err, VC_E_UNREACHABLE,
                        "install vecycle there, or give its path: --remote '/PATH/vecycle recv'",
                        "'%.60s' is not there at '%.60s' (status 127)%s%.80s", s->remote, s->name,
                        sep, said);
    else if (status == 126)
        vc_err_set_hint(err, VC_E_UNREACHABLE, "is it executable, and for that machine?",
                        "'%.60s' cannot be run at '%.60s' (status 126)%s%s", s->remote, s->name,
                        sep, said);
    else if (!strncmp(said, "vecycle: ", 9) && status &&
             strcmp(vc_err_name(-status), "unknown") != 0)
        return explain_recv(s, status, said, err); /* which may pass or not, as its code says */
    else
        vc_err_set_hint(err, VC_E_PEER_LOST, "may that user log in, and run vecycle there?",
                        "'%.60s' ended at '%.60s' before vecycle began (status %d)%s%s", s->remote,
                        s->name, status, sep, said);
    err->lasts = true;
    return err->code;
}

int vc_ssh_explain(struct vc_ssh *s, const char *noise, struct vc_err *err)
{
    char words[VC_SSH_LINE_BYTES], said[2 * VC_SSH_LINE_BYTES];
    const char *hint;
    bool lasts;

    if (!vc_ssh_has_ended(s, END_MS))
        return vc_err_set_hint(err, VC_E_PEER_LOST, "try `ssh` to that host by hand",
                               "ssh has closed the connection to '%.80s', and runs on%s%.60s",
                               s->name, *noise ? "; there came: " : "", noise);
    vc_ssh_last_words(s, words);
    snprintf(said, sizeof(said), "%s%s%s", words, *words && *noise ? "; it printed: " : "", noise);
    if (WIFSIGNALED(s->status) && WTERMSIG(s->status) == SIGINT)
        return vc_err_set(err, VC_E_CANCELLED, "cancelled while connecting to '%s'", s->name);
    if (WIFSIGNALED(s->status))
        return vc_err_set(err, VC_E_UNREACHABLE, "ssh to '%.80s' was ended by signal %d%s%s",
                          s->name, WTERMSIG(s->status), *said ? ": " : "", said);
    if (WEXITSTATUS(s->status) != 255)
        return explain_status(s, WEXITSTATUS(s->status), said, err);
    hint = advise(words, &lasts);
    vc_err_set_hint(err, VC_E_UNREACHABLE, hint, "ssh cannot reach '%.80s' (status 255)%s%s",
                    s->name, *said ? ": " : "", said);
    err->lasts = lasts;
    return err->code;
}

void vc_ssh_blame(struct vc_ssh *s, struct vc_err *err)
{
    char words[VC_SSH_LINE_BYTES] = "";
    bool lasts;

    if (err->code == VC_E_PEER_LOST && vc_ssh_has_ended(s, WORDS_MS) &&
        (WIFSIGNALED(s->status) || WEXITSTATUS(s->status) != 0)) {
        struct vc_err before = *err;
        const char *hint;

        vc_ssh_last_words(s, words);
        hint = advise(words, &lasts);
        vc_err_set_hint(err, VC_E_PEER_LOST, before.hint[0] ? before.hint : hint,
                        "%.110s; ssh %s %d%s%s", before.message,
                        WIFSIGNALED(s->status) ? "was ended by signal" : "ended with status",
                        WIFSIGNALED(s->status) ? WTERMSIG(s->status) : WEXITSTATUS(s->status),
                        *words ? ": " : "", words);
    }
    VC_LOCKED(&s->mu);
    snprintf(s->told, sizeof(s->told), "%s", err->message);
}
