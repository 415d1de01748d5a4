/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Preloaded into vecycle: when the file VC_FAIL_TRIGGER exists, the VC_FAIL_NTH-th fdatasync of a
 * VM's handover record from then on writes all the same, fails with EIO, and takes the file away.
 */

int fdatasync(int fd)
{
    int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    const char *trigger = getenv("VC_FAIL_TRIGGER"), *nth = getenv("VC_FAIL_NTH");
    static int n_seen;
    char link[64], path[512];
    ssize_t n;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof(path) - 1);
    if (n <= 0 || !trigger || !nth || access(trigger, F_OK) != 0)
        return next(fd);
    path[n] = '\0';
    if (!strstr(path, "/handover") || ++n_seen != atoi(nth))
        return next(fd);
    (void)unlink(trigger);
    (void)next(fd);
    errno = EIO;
    return -1;
}
