/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BASE_CLOCK_H
#define VC_BASE_CLOCK_H

#include <stdint.h>

#define VC_NS_PER_MS 1000000ull
#define VC_NS_PER_S 1000000000ull

/** Monotonic time in nanoseconds. */
uint64_t vc_now_ns(void);
/** Time since boot in nanoseconds, also while the host was suspended. */
uint64_t vc_boot_ns(void);
/** Wall-clock time in seconds since 1970. */
uint64_t vc_wall_s(void);

#endif
