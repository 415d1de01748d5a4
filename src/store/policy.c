/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/durable.h"
#include "base/fdio.h"
#include "store/internal.h"

/* Whether a VM's checkpoint may be kept or forgotten: docs/formats/store.md section 7. A file of
 * one word, which a person can read. */

static const char *const words[] = {"normal", "pinned", "never"};

const char *vc_policy_name(enum vc_policy p)
{
    return (unsigned)p < VC_ARRAY_LEN(words) ? words[p] : "?";
}

bool vc_policy_parse(const char *text, enum vc_policy *out)
{
    for (size_t i = 0; i < VC_ARRAY_LEN(words); i++)
        if (!strcmp(text, words[i])) {
            *out = (enum vc_policy)i;
            return true;
        }
    return false;
}

static int blame(const struct vc_store *s, int rc, struct vc_err *err)
{
    if (rc < 0 && err)
        vc_err_prefix(err, "%.160s", s->root);
    return rc;
}

int vc_policy_get(struct vc_store *s, const struct vc_id *uuid, enum vc_policy *out,
                  struct vc_err *err)
{
    char name[sizeof("policies/") + VC_ID_TEXT_BYTES] = "policies/", text[16];
    vc_auto_close int fd = -1;
    ssize_t n;

    *out = VC_POLICY_NORMAL;
    vc_id_format(uuid, name + strlen(name));
    fd = s->io->open(s->io, s->root_fd, name, O_RDONLY);
    if (fd < 0)
        return errno == ENOENT ? 0 : blame(s, vc_store_open_errno(err, name), err);
    n = vc_read_some(fd, text, sizeof(text));
    if (n < 0)
        return blame(s, vc_store_errno(err, "read", name), err);
    if (n > 0 && text[n - 1] == '\n') {
        text[n - 1] = 0;
        if (vc_policy_parse(text, out))
            return 0;
    }
    return blame(s,
                 vc_err_set_hint(err, VC_E_CORRUPT, "set it anew with 'vecycle policy'",
                                 "'%s' holds no policy", name),
                 err);
}

/* Nothing takes the place of flock(): two ways of locking would not see each other. */
int vc_lock_errno(struct vc_err *err, const char *path)
{
    return vc_err_set_errno_hint(
        err, VC_E_STORE, "give --store on another file system, local rather than NFS or FUSE",
        "no lock (flock) can be had in '%s', and without one no checkpoint is kept", path);
}

int vc_store_lock(struct vc_store *s, unsigned wait_ms, int *fd_out, struct vc_err *err)
{
    vc_auto_close int fd = openat(s->vms_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    uint64_t deadline = vc_now_ns() + wait_ms * VC_NS_PER_MS;

    if (fd < 0)
        return vc_store_errno(err, "open", "vms");
    while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return vc_lock_errno(err, s->root);
        if (vc_now_ns() >= deadline)
            return vc_err_set_hint(err, VC_E_BUSY, "try again when it is done",
                                   "checkpoints are just being dropped by another process");
        poll(NULL, 0, 20);
    }
    *fd_out = vc_steal_fd(&fd);
    return 0;
}

static int write_word(struct vc_store *s, const char *name, const char *word, struct vc_err *err)
{
    const struct vc_io *io = s->io;
    vc_auto_close int fd = -1;
    char text[16];

    if (io->mkdir(io, s->root_fd, "policies") == 0) {
        int rc = vc_durable_sync_dir(io, s->root_fd, "policies", err);

        if (rc)
            return rc;
    }
    fd = io->open(io, s->root_fd, "policies", O_RDONLY | O_DIRECTORY);
    if (fd < 0)
        return blame(s, vc_store_open_errno(err, "policies"), err);
    snprintf(text, sizeof(text), "%s\n", word);
    return vc_durable_write_file(io, fd, name, text, strlen(text), err);
}

static int remove_word(struct vc_store *s, const char *name, struct vc_err *err)
{
    const struct vc_io *io = s->io;
    vc_auto_close int fd = io->open(io, s->root_fd, "policies", O_RDONLY | O_DIRECTORY);

    if (fd < 0)
        return errno == ENOENT ? 0 : vc_store_errno(err, "open", "policies");
    if (vc_durable_clear(io, fd, name) < 0)
        return blame(s, vc_store_errno(err, "remove", name), err);
    return vc_durable_sync_dir(io, fd, "policies", err);
}

int vc_policy_set(struct vc_store *s, const struct vc_id *uuid, enum vc_policy p,
                  struct vc_err *err)
{
    vc_auto_close int lock = -1;
    char name[VC_ID_TEXT_BYTES];
    int rc = vc_store_lock(s, VC_STORE_LOCK_WAIT_MS, &lock, err);

    vc_id_format(uuid, name);
    if (rc)
        return rc;
    return p == VC_POLICY_NORMAL ? remove_word(s, name, err) : write_word(s, name, words[p], err);
}
