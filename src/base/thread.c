/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/thread.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"

int vc_thread_start(struct vc_thread *t, const char *name, void *(*fn)(void *), void *arg,
                    struct vc_err *err)
{
    sigset_t all, old;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&t->id, NULL, fn, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc)
        return vc_err_set_at(err, __FILE__, __LINE__, VC_E_FAILED, rc, NULL,
                             "cannot start thread '%s'", name);
    pthread_setname_np(t->id, name);
    t->running = true;
    return 0;
}

void vc_thread_join(struct vc_thread *t)
{
    if (!t->running)
        return;
    pthread_join(t->id, NULL);
    t->running = false;
}

unsigned vc_idle_processors(unsigned taken)
{
    double load = 0;
    cpu_set_t set;
    double n = sched_getaffinity(0, sizeof(set), &set) ? 1 : CPU_COUNT(&set);

    if (getloadavg(&load, 1) < 1)
        return 0;
    n -= load + taken;
    return n > 0 ? (unsigned)n : 0;
}

void vc_cond_init(pthread_cond_t *c)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attr);
    pthread_condattr_destroy(&attr);
}

bool vc_cond_wait_until(pthread_cond_t *c, pthread_mutex_t *m, uint64_t deadline_ns)
{
    struct timespec ts = {
        .tv_sec = (time_t)(deadline_ns / VC_NS_PER_S),
        .tv_nsec = (long)(deadline_ns % VC_NS_PER_S),
    };

    return pthread_cond_timedwait(c, m, &ts) != ETIMEDOUT;
}
