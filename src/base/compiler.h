/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BASE_COMPILER_H
#define VC_BASE_COMPILER_H

#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

/* Attributes and scope-bound cleanup. Locals that own something are declared with one of the
 * vc_auto_* attributes; ownership leaves the scope through vc_steal_ptr() or vc_steal_fd(). */

#define VC_NODISCARD __attribute__((warn_unused_result))
#define VC_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define VC_CLEANUP(fn) __attribute__((cleanup(fn)))
#define VC_UNUSED __attribute__((unused))

#define VC_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define VC_MIN(a, b) ((a) < (b) ? (a) : (b))
#define VC_MAX(a, b) ((a) > (b) ? (a) : (b))

static inline void vc_cleanup_free(void *p)
{
    free(*(void **)p);
}

static inline void vc_cleanup_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

/** Frees the pointer at the end of the scope. */
#define vc_auto_free VC_CLEANUP(vc_cleanup_free)
/** Closes the descriptor at the end of the scope; -1 means none. */
#define vc_auto_close VC_CLEANUP(vc_cleanup_close)

/** Hands over a pointer held by an automatic variable: yields it and leaves NULL behind. */
#define vc_steal_ptr(p)         \
    ({                          \
        __typeof__(p) _v = (p); \
        (p) = NULL;             \
        _v;                     \
    })

/** Hands over a descriptor held by an automatic variable: yields it and leaves -1 behind. */
static inline int vc_steal_fd(int *fd)
{
    int v = *fd;
    *fd = -1;
    return v;
}

#endif
