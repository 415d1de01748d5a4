/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BASE_THREAD_H
#define VC_BASE_THREAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/* Threads are always joined, never detached or cancelled, and start with all signals blocked. */

struct vc_thread {
    pthread_t id;
    bool running; /* started and not yet joined */
};

/** @name: at most 15 characters, shown by ps and gdb. */
int vc_thread_start(struct vc_thread *t, const char *name, void *(*fn)(void *), void *arg,
                    struct vc_err *err) VC_NODISCARD;
/** Waits for its end; nothing if it was never started. */
void vc_thread_join(struct vc_thread *t);

/** Processors that this process may use, without those that were busy over the last minute (the
 *  machine's load average) and @taken more. */
unsigned vc_idle_processors(unsigned taken);

static inline void vc_cleanup_unlock(pthread_mutex_t **m)
{
    if (*m)
        pthread_mutex_unlock(*m);
}
/** Holds a mutex until the end of the scope. */
#define VC_LOCKED(m)              \
    VC_CLEANUP(vc_cleanup_unlock) \
    VC_UNUSED pthread_mutex_t *vc_locked_ = (pthread_mutex_lock(m), (m))

/** Initialises a condition variable on the monotonic clock. */
void vc_cond_init(pthread_cond_t *c);
/** Waits until signalled or the monotonic time is reached; false on time-out. */
bool vc_cond_wait_until(pthread_cond_t *c, pthread_mutex_t *m, uint64_t deadline_ns);

#endif
