/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* Preloaded into vecycle: once the file VC_DIE_TRIGGER exists, the process is killed, as by kill
 * -9, in the place of its VC_DIE_WRITE-th write to a VM's handover record (counted from then on),
 * or, with VC_DIE_STATE, of the first that writes that state (docs/formats/store.md, section 6). */

static void perhaps_die(int fd, const unsigned char *slot, size_t size)
{
    static int writes;
    const char *trigger = getenv("VC_DIE_TRIGGER"), *nth = getenv("VC_DIE_WRITE");
    const char *state = getenv("VC_DIE_STATE");
    char link[64], path[512];
    ssize_t n;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof(path) - 1);
    if (n <= 0 || !trigger)
        return;
    path[n] = '\0';
    if (!strstr(path, "/handover") || access(trigger, F_OK) != 0)
        return;
    if (state ? size > 12 && slot[12] == atoi(state) : ++writes == (nth ? atoi(nth) : 1))
        kill(getpid(), SIGKILL);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwritev64(int fd, const struct iovec *iov, int n, __off64_t offset)
{
    perhaps_die(fd, n > 0 ? iov[0].iov_base : NULL, n > 0 ? iov[0].iov_len : 0);
    return NEXT(pwritev64)(fd, iov, n, offset);
}

ssize_t pwrite64(int fd, const void *buf, size_t n, __off64_t offset)
{
    perhaps_die(fd, buf, n);
    return NEXT(pwrite64)(fd, buf, n, offset);
}
