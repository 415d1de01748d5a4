/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* To be preloaded (LD_PRELOAD) into an agent: lets a test kill it at the n-th step of writing a
 * handover record. A step is right before a record is written, and right after it is durable.
 * VC_AT_RECORD names a file of two 32-bit numbers that both sides map: how many steps are left (0:
 * none is meant), and whether the agent stands at the last one. It stands there without a system
 * call, since its sandbox may allow none, until the test has killed it. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_FD 4096

struct steps {
    _Atomic int left, stands;
};

static struct steps *steps;
static _Atomic bool is_record[MAX_FD];

__attribute__((constructor)) static void map_steps(void)
{
    const char *path = getenv("VC_AT_RECORD");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *p;

    if (fd < 0)
        return;
    p = mmap(NULL, sizeof(*steps), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (p != MAP_FAILED)
        steps = p;
}

static void step(void)
{
    int left = steps ? atomic_load(&steps->left) : 0;

    while (left > 0 && !atomic_compare_exchange_weak(&steps->left, &left, left - 1)) {
        /* again */
    }
    if (left != 1)
        return;
    atomic_store(&steps->stands, 1);
    while (atomic_load(&steps->stands))
        __builtin_ia32_pause();
}

static bool has_record(int fd)
{
    return fd >= 0 && fd < MAX_FD && atomic_load(&is_record[fd]);
}

static int opened(int fd, const char *name)
{
    if (fd >= 0 && fd < MAX_FD)
        atomic_store(&is_record[fd], strncmp(name, "handover", 8) == 0);
    return fd;
}

static void *next(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

static int open_next(const char *function, int dir, const char *name, int flags, va_list ap)
{
    int (*fn)(int, const char *, int, ...) = next(function);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;

    return opened(fn(dir, name, flags, mode), name);
}

EXPORT int openat(int dir, const char *name, int flags, ...)
{
    va_list ap;
    int fd;

    va_start(ap, flags);
    fd = open_next("openat", dir, name, flags, ap);
    va_end(ap);
    return fd;
}

EXPORT int openat64(int dir, const char *name, int flags, ...)
{
    va_list ap;
    int fd;

    va_start(ap, flags);
    fd = open_next("openat64", dir, name, flags, ap);
    va_end(ap);
    return fd;
}

EXPORT ssize_t pwritev(int fd, const struct iovec *iov, int n, off_t at)
{
    ssize_t (*fn)(int, const struct iovec *, int, off_t) = next("pwritev");

    if (has_record(fd))
        step();
    return fn(fd, iov, n, at);
}

EXPORT ssize_t pwritev64(int fd, const struct iovec *iov, int n, off_t at)
{
    return pwritev(fd, iov, n, at);
}

EXPORT int fdatasync(int fd)
{
    int (*fn)(int) = next("fdatasync");
    int rc = fn(fd);

    if (has_record(fd))
        step();
    return rc;
}

EXPORT int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    int (*fn)(int, const char *, int, const char *) = next("renameat");
    int rc = fn(from_dir, from, to_dir, to);

    if (strcmp(to, "handover") == 0)
        step();
    return rc;
}
