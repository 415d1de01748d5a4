/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/durable.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "base/fdio.h"

int vc_durable_sync(int fd, const char *what, struct vc_err *err)
{
    if (fdatasync(fd) < 0)
        return vc_err_set_errno(err, errno == ENOSPC ? VC_E_STORE_FULL : VC_E_STORE,
                                "cannot sync '%s'", what);
    return 0;
}

int vc_durable_sync_dir(int dirfd, const char *what, struct vc_err *err)
{
    if (fsync(dirfd) < 0)
        return vc_err_set_errno(err, VC_E_STORE, "cannot sync directory '%s'", what);
    return 0;
}

int vc_durable_publish(int dirfd, int fd, const char *from, const char *to, struct vc_err *err)
{
    int rc = vc_durable_sync(fd, from, err);

    if (rc)
        return rc;
    if (renameat(dirfd, from, dirfd, to) < 0)
        return vc_err_set_errno(err, VC_E_STORE, "cannot rename '%s' to '%s'", from, to);
    return vc_durable_sync_dir(dirfd, to, err);
}

int vc_durable_write_file(int dirfd, const char *name, const void *data, size_t n,
                          struct vc_err *err)
{
    char tmp[300];
    vc_auto_close int fd = -1;
    int rc;

    snprintf(tmp, sizeof(tmp), "%s.new", name);
    fd = openat(dirfd, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return vc_err_set_errno(err, errno == ENOSPC ? VC_E_STORE_FULL : VC_E_STORE,
                                "cannot create '%s'", tmp);
    if (vc_write_full(fd, data, n) < 0) {
        rc =
            vc_err_set_errno(err, errno == ENOSPC || errno == EDQUOT ? VC_E_STORE_FULL : VC_E_STORE,
                             "cannot write '%s'", tmp);
        unlinkat(dirfd, tmp, 0);
        return rc;
    }
    rc = vc_durable_publish(dirfd, fd, tmp, name, err);
    if (rc)
        unlinkat(dirfd, tmp, 0);
    return rc;
}
