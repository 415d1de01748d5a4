/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Preloaded into vecycle: the first opening of an index in a store that finds the file
 * VC_HANG_TRIGGER removes that file, and waits until somebody opens the FIFO VC_HANG_FIFO for
 * writing. Then it is done as if nothing had been. */

static void perhaps_hang(const char *name)
{
    const char *trigger = getenv("VC_HANG_TRIGGER"), *fifo = getenv("VC_HANG_FIFO");
    const char *end = strrchr(name, '.');

    if (trigger && fifo && end && !strcmp(end, ".index") && unlinkat(AT_FDCWD, trigger, 0) == 0)
        close(open(fifo, O_RDONLY | O_CLOEXEC));
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define HANGING(function)                                   \
    int function(int dir, const char *name, int flags, ...) \
    {                                                       \
        va_list more;                                       \
        mode_t mode;                                        \
                                                            \
        va_start(more, flags);                              \
        mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;  \
        va_end(more);                                       \
        perhaps_hang(name);                                 \
        return NEXT(function)(dir, name, flags, mode);      \
    }

HANGING(openat64)
HANGING(openat)
