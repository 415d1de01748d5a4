/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/durable.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

static int code(void)
{
    return errno == ENOSPC || errno == EDQUOT ? VC_E_STORE_FULL : VC_E_STORE;
}

int vc_durable_sync(const struct vc_io *io, int fd, const char *what, struct vc_err *err)
{
    if (io->sync(io, fd) < 0)
        return vc_err_set_errno(err, code(), "cannot sync '%s'", what);
    return 0;
}

int vc_durable_sync_dir(const struct vc_io *io, int dirfd, const char *what, struct vc_err *err)
{
    if (io->sync_dir(io, dirfd) < 0)
        return vc_err_set_errno(err, code(), "cannot sync directory '%s'", what);
    return 0;
}

int vc_durable_rename(const struct vc_io *io, int dirfd, const char *from, const char *to,
                      struct vc_err *err)
{
    if (io->rename(io, dirfd, from, to) < 0)
        return vc_err_set_errno(err, code(), "cannot rename '%s' to '%s'", from, to);
    return 0;
}

int vc_durable_clear(const struct vc_io *io, int dirfd, const char *name)
{
    if (io->unlink(io, dirfd, name, 0) == 0 || errno == ENOENT)
        return 0;
    return errno == EISDIR ? io->unlink(io, dirfd, name, AT_REMOVEDIR) : -1;
}

int vc_durable_publish(const struct vc_io *io, int dirfd, int fd, const char *from, const char *to,
                       struct vc_err *err)
{
    int rc = vc_durable_sync(io, fd, from, err);

    if (rc)
        return rc;
    /* A directory is nothing that a file can be renamed over. */
    if (io->rename(io, dirfd, from, to) < 0 &&
        (errno != EISDIR || vc_durable_clear(io, dirfd, to) < 0 ||
         io->rename(io, dirfd, from, to) < 0))
        return vc_err_set_errno(err, code(), "cannot rename '%s' to '%s'", from, to);
    return vc_durable_sync_dir(io, dirfd, to, err);
}

int vc_durable_write_file(const struct vc_io *io, int dirfd, const char *name, const void *data,
                          size_t n, struct vc_err *err)
{
    char tmp[300];

    snprintf(tmp, sizeof(tmp), "%s.new", name);
    return vc_durable_write_file_as(io, dirfd, tmp, name, data, n, err);
}

int vc_durable_write_file_as(const struct vc_io *io, int dirfd, const char *tmp, const char *name,
                             const void *data, size_t n, struct vc_err *err)
{
    struct iovec iov = {(void *)data, n};
    vc_auto_close int fd = -1;
    int rc;

    /* What an interrupted write left. It may have another name, too: it is not written into. */
    if (vc_durable_clear(io, dirfd, tmp) < 0 && errno != EROFS) /* creating tells that better */
        return vc_err_set_errno(err, code(), "cannot remove '%s'", tmp);
    fd = io->open(io, dirfd, tmp, O_WRONLY | O_CREAT | O_EXCL);
    if (fd < 0)
        return vc_err_set_errno(err, code(), "cannot create '%s'", tmp);
    if (io->write(io, fd, &iov, 1, 0) < 0)
        rc = vc_err_set_errno(err, code(), "cannot write '%s'", tmp);
    else
        rc = vc_durable_publish(io, dirfd, fd, tmp, name, err);
    if (rc)
        io->unlink(io, dirfd, tmp, 0);
    return rc;
}
