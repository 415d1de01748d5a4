/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* To be preloaded (LD_PRELOAD) where the kernel cannot limit a process's reading from disk: holds
 * what the process reads by pread, preadv and preadv2 to VC_SLOW_READ_BPS bytes a second, all
 * threads together. Each read waits until the pretended disk has done all reads before it and this
 * one. What is mapped is not held up, and reads that the page cache answers are, and nothing is
 * said to be in it: this stands for a disk without a cache. */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
static long long free_at_ns; /* [lock: mu] when the disk has done what was asked so far */

static long long now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static ssize_t held_up(ssize_t n)
{
    static double ns_per_byte;
    long long until;
    struct timespec t;

    if (n <= 0)
        return n;
    pthread_mutex_lock(&mu);
    if (ns_per_byte == 0) {
        const char *s = getenv("VC_SLOW_READ_BPS");
        double bps = s ? atof(s) : 0;

        ns_per_byte = 1e9 / (bps > 0 ? bps : 100e6);
    }
    if (free_at_ns < now_ns())
        free_at_ns = now_ns();
    free_at_ns += (long long)((double)n * ns_per_byte);
    until = free_at_ns;
    pthread_mutex_unlock(&mu);
    t = (struct timespec){.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
    return n;
}

/* The names in the program are those with 64 at the end or not, as it was compiled. */
#define EXPORT __attribute__((visibility("default")))
#define READ(name, params, args)                         \
    EXPORT ssize_t name params;                          \
    EXPORT ssize_t name params                           \
    {                                                    \
        static ssize_t(*real) params;                    \
                                                         \
        if (!real)                                       \
            *(void **)(&real) = dlsym(RTLD_NEXT, #name); \
        return held_up(real args);                       \
    }

READ(pread64, (int fd, void *p, size_t n, long at), (fd, p, n, at))
READ(preadv64, (int fd, const struct iovec *v, int n, long at), (fd, v, n, at))

/* Nothing is at hand. */
EXPORT ssize_t preadv64v2(int fd, const struct iovec *v, int n, long at, int flags);
EXPORT ssize_t preadv64v2(int fd, const struct iovec *v, int n, long at, int flags)
{
    static ssize_t (*real)(int, const struct iovec *, int, long, int);

    if (flags & RWF_NOWAIT) {
        errno = EAGAIN;
        return -1;
    }
    if (!real)
        *(void **)(&real) = dlsym(RTLD_NEXT, "preadv64v2");
    return held_up(real(fd, v, n, at, flags));
}
