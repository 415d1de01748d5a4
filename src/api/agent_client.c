/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/api.h"
#include "base/fdio.h"

/* The client's side of the control socket: hands the job's descriptors over, passes on what the
 * agent reports, and a cancellation the other way. */

struct call {
    int fd;
    char buf[2 * VC_CONTROL_MAX_LINE_BYTES];
    size_t have;
    const struct vc_log *log;
    vc_progress_fn progress;
    void *opaque;
    struct vc_session_result *result;
    struct vc_err *err;
    bool done;
    int rc;
};

static int hand_over(int fd, struct vc_job *j, struct vc_err *err)
{
    vc_auto_json struct json_object *o = vc_job_to_json(j);
    vc_auto_free char *line = NULL;
    int fds[4] = {j->rfd, j->wfd, j->qemu_fd, j->listen_fd}, n;
    size_t first = j->dial ? 2 : 0; /* then there is no connection yet */
    size_t end = j->listen_fd >= 0 ? 4 : j->qemu_fd >= 0 ? 3 : 2;

    n = asprintf(&line, "%s\n", vc_json_line(o));
    if (n < 0) {
        line = NULL;
        return vc_err_set(err, VC_E_NOMEM, "no memory for a request");
    }
    if (vc_send_fds(fd, line, (size_t)n, fds + first, end - first) < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot write to the agent's control socket");
    return 0;
}

static void on_line(struct call *c, const char *line, size_t n)
{
    vc_auto_json struct json_object *o = vc_json_parse(line, n);
    struct json_object *v;

    if ((v = vc_json_get(o, "log"))) {
        uint64_t level = vc_json_u64(v, "level", VC_LOG_DEBUG);

        vc_log(c->log, (enum vc_log_level)VC_MIN(level, (uint64_t)VC_LOG_DEBUG), "%s",
               vc_json_str(v, "text", ""));
    } else if ((v = vc_json_get(o, "progress"))) {
        vc_result_from_json(v, c->result);
        if (c->progress)
            c->progress(c->opaque, c->result);
    } else if ((v = vc_json_get(o, "result"))) {
        vc_result_from_json(v, c->result);
    } else if ((v = vc_json_get(o, "end"))) {
        c->done = true;
        if ((v = vc_json_get(v, "error"))) {
            vc_error_from_json(v, c->err);
            c->rc = c->err->code;
        }
    }
}

/* Reads once, and acts on whole lines. False: the agent is gone. */
static bool read_lines(struct call *c)
{
    ssize_t n = vc_read_some(c->fd, c->buf + c->have, sizeof(c->buf) - c->have);
    char *end;

    if (n <= 0)
        return false;
    c->have += (size_t)n;
    while (c->have && (end = memchr(c->buf, '\n', c->have))) {
        size_t used = (size_t)(end - c->buf) + 1;

        on_line(c, c->buf, used - 1);
        c->have -= used;
        memmove(c->buf, c->buf + used, c->have);
    }
    return c->have < sizeof(c->buf);
}

static int follow(struct call *c, struct vc_cancel *cancel)
{
    bool cancelled = false;

    while (!c->done) {
        struct pollfd p[2] = {
            {.fd = c->fd, .events = POLLIN},
            {.fd = cancel && !cancelled ? cancel->fd : -1, .events = POLLIN},
        };

        if (poll(p, 2, -1) < 0 && errno != EINTR)
            return vc_err_set_errno(c->err, VC_E_FAILED, "cannot wait for the agent");
        if (p[1].revents) {
            cancelled = true;
            if (vc_send_fds(c->fd, "{\"do\":\"cancel\"}\n", 16, NULL, 0) < 0)
                return vc_err_set_errno(c->err, VC_E_FAILED, "cannot tell the agent to cancel");
        }
        if (p[0].revents && !read_lines(c))
            return vc_err_set_hint(c->err, VC_E_FAILED,
                                   "`vecycle resolve` tells where the VM is, the agent's log why",
                                   "the agent ended before the migration did");
    }
    return c->rc;
}

/* In a directory in which a group may write, as QEMUs' users do, the one who has it says who the
 * agent is. Another one is not, and would be handed a QEMU. (Where anybody may write, whoever named
 * that path has chosen so.) */
static bool is_the_agent(int fd, const char *control)
{
    const char *slash = strrchr(control, '/');
    size_t n_dir = slash == control ? 1 : slash ? (size_t)(slash - control) : 0;
    vc_auto_free char *dir = slash ? strndup(control, n_dir) : strdup(".");
    struct ucred peer;
    socklen_t n = sizeof(peer);
    struct stat st;

    if (!dir || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n) < 0 || stat(dir, &st) < 0)
        return false;
    return peer.uid == 0 || peer.uid == geteuid() || peer.uid == st.st_uid || st.st_mode & 02;
}

int vc_agent_call(const char *control, struct vc_job *j, const struct vc_log *log,
                  struct vc_cancel *cancel, vc_progress_fn progress, void *opaque,
                  struct vc_session_result *result, struct vc_err *err)
{
    vc_auto_close int fd = vc_unix_connect(control);
    vc_auto_free struct call *c = NULL;
    int rc;

    if (fd < 0 && (errno == ENOENT || errno == ECONNREFUSED || errno == ENOTDIR))
        return VC_NOT_FOUND;
    if (fd < 0) {
        bool denied = errno == EACCES || errno == EPERM;

        rc = vc_err_set_errno_hint(err, denied ? VC_E_REFUSED : VC_E_FAILED,
                                   denied ? "join its --control-group, or say --control none"
                                   : errno == EAGAIN
                                       ? "it takes no connection: is it stopped, or hung?"
                                       : "see --control",
                                   "cannot connect to the agent at '%.160s'", control);
        vc_job_close(j);
        return rc;
    }
    if (!is_the_agent(fd, control)) {
        vc_job_close(j);
        return vc_err_set_hint(err, VC_E_REFUSED, "look who has made it; see --control",
                               "at '%s' listens another user than root, you, or its directory's",
                               control);
    }
    if (j->dial && j->tls_dir)
        vc_log(log, VC_LOG_WARNING,
               "the agent connects, with the certificates that it has, not "
               "those of --tls-dir");
    c = calloc(1, sizeof(*c));
    rc = c ? hand_over(fd, j, err) : vc_err_set(err, VC_E_NOMEM, "no memory for a request");
    vc_job_close(j); /* the agent has its own copies now */
    if (rc)
        return rc;
    c->fd = fd;
    c->log = log;
    c->progress = progress;
    c->opaque = opaque;
    c->result = result;
    c->err = err;
    return follow(c, cancel);
}
