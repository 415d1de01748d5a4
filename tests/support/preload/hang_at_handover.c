/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* Preloaded into vecycle: the first write to a VM's handover record (VC_HANG_IN=write), or sync of
 * it (sync), or write to another file of the VM's in the store (other), that finds the file
 * VC_HANG_TRIGGER removes that file, and waits until somebody opens the FIFO VC_HANG_FIFO for
 * writing. Then it is done as if nothing had been. VC_HANG_AFTER: so many that find it are let pass
 * before. */

/* 1: a handover record; 2: another file of a VM in the store. */
static int kind_of(int fd)
{
    char link[64], path[512];
    const char *name;
    ssize_t n;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof(path) - 1);
    if (n <= 0)
        return 0;
    path[n] = '\0';
    name = strrchr(path, '/');
    return name && !strcmp(name, "/handover") ? 1 : strstr(path, "/store/vms/") ? 2 : 0;
}

static void perhaps_hang(int fd, const char *call)
{
    const char *in = getenv("VC_HANG_IN"), *trigger = getenv("VC_HANG_TRIGGER");
    const char *fifo = getenv("VC_HANG_FIFO");

    static int passed;
    const char *after = getenv("VC_HANG_AFTER");

    if (!in || !trigger || !fifo ||
        (strcmp(in, "other") ? kind_of(fd) != 1 || strcmp(in, call) : kind_of(fd) != 2) ||
        access(trigger, F_OK) != 0 || passed++ < (after ? atoi(after) : 0) ||
        unlinkat(AT_FDCWD, trigger, 0) < 0)
        return;
    close(open(fifo, O_RDONLY | O_CLOEXEC));
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwritev64(int fd, const struct iovec *iov, int n, __off64_t offset)
{
    perhaps_hang(fd, "write");
    return NEXT(pwritev64)(fd, iov, n, offset);
}

int fdatasync(int fd)
{
    perhaps_hang(fd, "sync");
    return NEXT(fdatasync)(fd);
}
