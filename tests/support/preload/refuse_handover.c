/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* Preloaded into vecycle: as long as the file VC_REFUSE_TRIGGER exists, a write to a VM's handover
 * record fails with EIO, as on a file system that has turned read-only. */

static int is_refused(int fd)
{
    const char *trigger = getenv("VC_REFUSE_TRIGGER");
    char link[64], path[512];
    ssize_t n;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof(path) - 1);
    if (n <= 0 || !trigger)
        return 0;
    path[n] = '\0';
    return strstr(path, "/handover") && access(trigger, F_OK) == 0;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwritev64(int fd, const struct iovec *iov, int n, __off64_t offset)
{
    if (is_refused(fd)) {
        errno = EIO;
        return -1;
    }
    return NEXT(pwritev64)(fd, iov, n, offset);
}
