/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/compiler.h"
#include "base/fdio.h"

/* Root works in another user's directory as that user: what it makes there is the user's from its
 * first moment on, and what the user has put there is nothing that only root could reach. This
 * thread alone changes, and only for the call. */
struct caller {
    bool changed;
};

static void be_caller(const struct caller *c)
{
    int saved = errno;

    if (c->changed) {
        setfsuid(0);
        setfsgid(getegid());
    }
    errno = saved;
}

static bool be_owner(int dir, struct caller *c)
{
    struct stat st;

    c->changed = false;
    if (geteuid() != 0)
        return true;
    if (fstat(dir, &st) < 0)
        return false;
    if (st.st_uid == 0)
        return true;
    c->changed = true;
    setfsgid(st.st_gid);
    setfsuid(st.st_uid);
    if ((uid_t)setfsuid((uid_t)-1) == st.st_uid) /* which changes nothing, and tells */
        return true;
    be_caller(c);
    errno = EACCES;
    return false;
}

static int odd_errno(mode_t mode)
{
    return S_ISDIR(mode) ? EISDIR : S_ISLNK(mode) ? ELOOP : ENXIO;
}

/* Of what is no file nothing is opened: a device does things when it is, and a FIFO waits. */
static int open_file(int dir, const char *name, int flags)
{
    vc_auto_close int fd = -1;
    struct stat st;

    if (!(flags & O_EXCL) && fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
        !S_ISREG(st.st_mode)) {
        errno = odd_errno(st.st_mode);
        return -1;
    }
    fd = openat(dir, name, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0600);
    if (fd < 0 || fstat(fd, &st) < 0)
        return -1;
    if (!S_ISREG(st.st_mode)) {
        errno = odd_errno(st.st_mode);
        return -1;
    }
    /* What the umask has kept from its owner was made just now: else it would not have opened. */
    if (flags & O_CREAT && (st.st_mode & 0600) != 0600 && fchmod(fd, 0600) < 0)
        return -1;
    return vc_steal_fd(&fd);
}

static int io_open(const struct vc_io *io VC_UNUSED, int dir, const char *name, int flags)
{
    struct caller c;
    int fd;

    if (!be_owner(dir, &c))
        return -1;
    fd = flags & O_DIRECTORY ? openat(dir, name, flags | O_CLOEXEC | O_NOFOLLOW)
                             : open_file(dir, name, flags);
    be_caller(&c);
    return fd;
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

/* Some file systems cannot sync a directory, and then nobody can ask for more. */
static int io_sync_dir(const struct vc_io *io VC_UNUSED, int dir)
{
    return fsync(dir) < 0 && !vc_io_lacks(errno) ? -1 : 0;
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
    struct caller c;
    int rc;

    if (!be_owner(dir, &c))
        return -1;
    rc = vc_mkdirat(dir, name, 0700);
    be_caller(&c);
    return rc;
}

bool vc_io_lacks(int error)
{
    return error == EINVAL || error == ENOSYS || error == EOPNOTSUPP;
}

bool vc_io_is_odd(int error)
{
    return error == ELOOP || error == EISDIR || error == ENXIO || error == ENOTDIR;
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
