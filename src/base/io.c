/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/io.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/compiler.h"
#include "base/fdio.h"

static int io_open(const struct vc_io *io VC_UNUSED, int dir, const char *name, int flags)
{
    return openat(dir, name, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
}

static int io_read(const struct vc_io *io VC_UNUSED, int fd, void *buf, size_t n, uint64_t at)
{
    return vc_pread_full(fd, buf, n, at);
}

static bool io_is_cached(const struct vc_io *io VC_UNUSED, int fd, uint64_t at)
{
    uint8_t byte;
    struct iovec iov = {&byte, 1};

    return preadv2(fd, &iov, 1, (off_t)at, RWF_NOWAIT) == 1;
}

static int io_write(const struct vc_io *io VC_UNUSED, int fd, struct iovec *iov, size_t n,
                    uint64_t at)
{
    return vc_pwritev_full(fd, iov, n, at);
}

static ssize_t io_copy(const struct vc_io *io VC_UNUSED, int from, uint64_t from_at, int to,
                       uint64_t to_at, size_t n)
{
    off_t in = (off_t)from_at, out = (off_t)to_at;

    return copy_file_range(from, &in, to, &out, n, 0);
}

static int io_resize(const struct vc_io *io VC_UNUSED, int fd, uint64_t bytes)
{
    return ftruncate(fd, (off_t)bytes);
}

static int io_sync(const struct vc_io *io VC_UNUSED, int fd)
{
    return fdatasync(fd);
}

static int io_sync_dir(const struct vc_io *io VC_UNUSED, int dir)
{
    return fsync(dir);
}

static int io_rename(const struct vc_io *io VC_UNUSED, int dir, const char *from, const char *to)
{
    return renameat(dir, from, dir, to);
}

static int io_unlink(const struct vc_io *io VC_UNUSED, int dir, const char *name, int flags)
{
    return unlinkat(dir, name, flags);
}

static int io_mkdir(const struct vc_io *io VC_UNUSED, int dir, const char *name)
{
    return mkdirat(dir, name, 0700);
}

const struct vc_io vc_io_kernel = {
    .open = io_open,
    .read = io_read,
    .is_cached = io_is_cached,
    .write = io_write,
    .copy = io_copy,
    .resize = io_resize,
    .sync = io_sync,
    .sync_dir = io_sync_dir,
    .rename = io_rename,
    .unlink = io_unlink,
    .mkdir = io_mkdir,
};
