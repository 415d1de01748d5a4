/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "session/preempt.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fdio.h"

/* A QEMU that is handed a descriptor cannot open a second connection, which the capability
 * postcopy-preempt needs. So both QEMUs get the path of a Unix socket instead: at the source one
 * that whoever asked for the migration listens on, at the destination one that QEMU listens on. */

#define SUFFIX ".preempt"
#define RECOVER_SUFFIX ".recover"
#define CONNECT_TIMEOUT_MS 10000
#define TICK_MS 100
/** From here on QEMU makes its second connection at the switch. */
#define LATE_SECOND_VERSION 800
#define SECOND_TIMEOUT_MS 2000

/* What a socket address holds, also one of QEMU's. */
#define QEMU_PATH_BYTES 108

static int path_by_fd(int number, const char *slash, char out[QEMU_PATH_BYTES], struct vc_err *err)
{
    if (snprintf(out, QEMU_PATH_BYTES, "/proc/self/fd/%d%s", number, slash) < QEMU_PATH_BYTES)
        return 0;
    return vc_err_set_hint(err, VC_E_USAGE, "choose a shorter name",
                           "QEMU cannot open a socket with the name '%.120s'", slash + 1);
}

/* How QEMU is told of a socket at that path. One that is too long for it goes by way of the
 * directory, of which it is given a descriptor; that stays with QEMU as long as our connection to
 * it, or a guest that is paused, lasts. */
static int path_for_qemu(struct vc_qmp *q, const char *path, char out[QEMU_PATH_BYTES],
                         struct vc_err *err)
{
    vc_auto_json struct json_object *ret = NULL;
    const char *slash = strrchr(path, '/');
    vc_auto_free char *dir = slash ? strndup(path, (size_t)(slash - path) + 1) : NULL;
    vc_auto_close int fd = -1;
    int rc, number = vc_qmp_kept_fd(q);

    if (snprintf(out, QEMU_PATH_BYTES, "%s", path) < QEMU_PATH_BYTES)
        return 0;
    if (number >= 0)
        return path_by_fd(number, slash, out, err);
    fd = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd < 0)
        return vc_err_set_errno_hint(err, VC_E_FAILED, "choose a shorter path",
                                     "cannot show QEMU the way to '%.160s'", path);
    rc = vc_qmp_execute(q, "add-fd", NULL, fd, &ret, err);
    if (rc)
        return rc;
    number = (int)vc_json_u64(ret, "fd", INT32_MAX);
    vc_qmp_keep_fd(q, number);
    return path_by_fd(number, slash, out, err);
}

/* ---- the source ---- */

int vc_preempt_wanted(struct vc_migration *m, bool *wanted, struct vc_err *err)
{
    int rc;

    *wanted = m->o->postcopy_preempt;
    if (!m->o->recover)
        return 0;
    rc = vc_qmp_get_capability(m->qmp, "postcopy-preempt", wanted, err);
    return rc < 0 ? rc : 0;
}

/* Whether QEMU has given the connection up. 0: not yet; VC_AGAIN: it refuses to say. */
static int check_qemu(struct vc_migration *m, struct vc_err *err)
{
    struct vc_qmp_migration now;
    int rc = vc_qmp_migration(m->qmp, &now, err);

    if (rc == VC_E_QMP && !vc_qmp_is_gone(m->qmp)) {
        vc_log_err(m->o->log, VC_LOG_DEBUG, "QEMU is asked again", err);
        return VC_AGAIN;
    }
    if (!rc && !strcmp(now.status, "cancelled"))
        return vc_err_set(err, VC_E_CANCELLED,
                          "the migration was cancelled in QEMU; the VM runs on here");
    if (rc || strcmp(now.status, "failed") != 0)
        return rc;
    return vc_err_set_hint(err, VC_E_MIGRATION, "may QEMU's user open that socket?",
                           "QEMU did not connect to '%.100s': %.100s", m->o->stream_path,
                           now.error);
}

/* QEMU's first connection. Who else gets through to the socket is turned away. */
static int accept_qemu(struct vc_migration *m, int *fd_out, struct vc_err *err)
{
    uint64_t deadline = vc_now_ns() + CONNECT_TIMEOUT_MS * VC_NS_PER_MS;

    while (vc_now_ns() < deadline) {
        struct pollfd p[2] = {
            {.fd = m->listen_fd, .events = POLLIN},
            {.fd = m->o->cancel ? m->o->cancel->fd : -1, .events = POLLIN},
        };
        int fd, rc;

        if (poll(p, 2, TICK_MS) < 0 && errno != EINTR)
            return vc_err_set_errno(err, VC_E_FAILED, "cannot wait for QEMU's connection");
        if (p[1].revents)
            return vc_migration_cancelled(m, err);
        fd = p[0].revents ? vc_accept_waiting(m->listen_fd) : -1;
        if (fd >= 0 && vc_qmp_is_same_peer(m->qmp, fd)) {
            *fd_out = fd;
            return 0;
        }
        if (fd >= 0) {
            vc_log(m->o->log, VC_LOG_WARNING, "somebody else than QEMU has connected to '%s'",
                   m->o->stream_path);
            close(fd);
        }
        rc = check_qemu(m, err);
        if (rc && rc != VC_AGAIN)
            return rc;
    }
    return vc_err_set_hint(err, VC_E_MIGRATION, "may QEMU's user open that socket?",
                           "QEMU did not connect to '%.100s' within %u s", m->o->stream_path,
                           CONNECT_TIMEOUT_MS / 1000);
}

/* Before 8.0 QEMU makes its second connection right behind the first one, and ends if the first one
 * breaks meanwhile (docs/internals/faults.md): nothing that may fail begins before it is made, and
 * nothing is given up. It is taken by the pipeline. */
static int await_second(struct vc_migration *m, struct vc_err *err)
{
    uint64_t deadline = vc_now_ns() + SECOND_TIMEOUT_MS * VC_NS_PER_MS;
    int rc;

    if (vc_wait_readable(m->listen_fd, SECOND_TIMEOUT_MS) <= 0)
        vc_log(m->o->log, VC_LOG_WARNING, "QEMU makes no second connection yet");
    /* It has finished with the connection when it answers. */
    while ((rc = check_qemu(m, err)) == VC_AGAIN && vc_now_ns() < deadline)
        poll(NULL, 0, TICK_MS);
    return rc == VC_AGAIN ? err->code : rc;
}

int vc_preempt_migrate(struct vc_migration *m, int *fd_out, struct vc_err *err)
{
    struct vc_err ignored = VC_ERR_INIT;
    char path[QEMU_PATH_BYTES];
    unsigned version;
    int rc;

    if (!(m->features & VC_WIRE_FEATURE_CHANNELS))
        return vc_err_set_hint(err, VC_E_VERSION, "install a newer vecycle there",
                               "the other host's vecycle carries no preempt connection");
    if (m->listen_fd < 0 || !m->o->stream_path || !m->o->stream_path[0])
        return vc_err_set(err, VC_E_USAGE, "there is no socket for QEMU's preempt connection");
    rc = vc_qmp_version(m->qmp, &version, err); /* while there is nothing yet to be given up */
    if (!rc)
        rc = path_for_qemu(m->qmp, m->o->stream_path, path, err);
    if (!rc)
        rc =
            vc_qmp_migrate_unix(m->qmp, m->o->recover ? VC_QMP_RESUME : VC_QMP_OUTGOING, path, err);
    if (rc)
        return rc;
    rc = accept_qemu(m, fd_out, err);
    if (!rc && version < LATE_SECOND_VERSION && (rc = await_second(m, err)))
        vc_cleanup_close(fd_out);
    /* A resumed one stays paused without its connection; the guest is not to go on here. */
    if (rc && !m->o->recover && vc_qmp_simple(m->qmp, "migrate_cancel", &ignored))
        vc_log_err(m->o->log, VC_LOG_DEBUG, "the migration was not cancelled", &ignored);
    return rc;
}

/* ---- the destination ---- */

static int path_of(const struct arrival *a, const char *suffix, char out[VC_PREEMPT_PATH_BYTES],
                   struct vc_err *err)
{
    if (snprintf(out, VC_PREEMPT_PATH_BYTES, "%s/%s%s", a->o->socket_dir, a->name, suffix) <
        VC_PREEMPT_PATH_BYTES)
        return 0;
    return vc_err_set(err, VC_E_DEST_QEMU, "the path of the socket directory is too long");
}

int vc_preempt_prepare(struct arrival *a, struct vc_err *err)
{
    char path[VC_PREEMPT_PATH_BYTES], short_path[QEMU_PATH_BYTES];
    int rc = path_of(a, RECOVER_SUFFIX, path, err);

    if (!rc)
        rc = path_for_qemu(a->qmp, path, short_path, err);
    if (rc)
        err->code = VC_E_DEST_QEMU;
    return rc ? VC_E_DEST_QEMU : 0;
}

int vc_preempt_incoming(struct arrival *a, struct vc_err *err)
{
    char path[VC_PREEMPT_PATH_BYTES], short_path[QEMU_PATH_BYTES];
    int rc = path_of(a, SUFFIX, path, err);

    if (rc)
        return rc;
    unlink(path);
    rc = path_for_qemu(a->qmp, path, short_path, err);
    if (!rc)
        rc = vc_qmp_migrate_unix(a->qmp, VC_QMP_INCOMING, short_path, err);
    if (rc) {
        err->code = VC_E_DEST_QEMU;
        return VC_E_DEST_QEMU;
    }
    a->stream_suffix = SUFFIX;
    return vc_target_connect(a->o->socket_dir, a->name, SUFFIX, err);
}

/* A QEMU that is postcopy-paused listens where it is told to, and any other refuses. */
int vc_preempt_recover(struct arrival *a, struct vc_err *err)
{
    char path[VC_PREEMPT_PATH_BYTES], short_path[QEMU_PATH_BYTES];
    int rc = path_of(a, RECOVER_SUFFIX, path, err);

    if (rc)
        return rc;
    unlink(path);
    rc = path_for_qemu(a->qmp, path, short_path, err);
    if (!rc)
        rc = vc_qmp_recover(a->qmp, short_path, err);
    if (rc) {
        err->code = VC_E_DEST_QEMU;
        return VC_E_DEST_QEMU;
    }
    a->stream_suffix = RECOVER_SUFFIX; /* it may take a second connection there */
    return 0;
}

int vc_preempt_connect(void *opaque, struct vc_err *err)
{
    struct arrival *a = opaque;
    const char *suffix = a->qmp ? a->stream_suffix : ".sock";
    struct vc_err why = VC_ERR_INIT;
    int fd;

    if (!suffix)
        return vc_err_set(err, VC_E_DEST_QEMU,
                          "the destination QEMU was not told of a second connection");
    fd = vc_target_connect(a->o->socket_dir, a->name, suffix, &why);
    if (fd < 0)
        return vc_err_set_hint(err, VC_E_DEST_QEMU, "set the same capabilities on both QEMUs",
                               "the destination QEMU takes no second connection (has it "
                               "postcopy-preempt, and no multifd?): %.100s",
                               why.message);
    return fd;
}

void vc_preempt_tidy(struct arrival *a)
{
    char path[VC_PREEMPT_PATH_BYTES];
    struct vc_err ignored;

    if (a->stream_suffix && !path_of(a, a->stream_suffix, path, &ignored))
        unlink(path); /* QEMU does it too, as a rule */
}
