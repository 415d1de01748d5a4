/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/clock.h"

#include <time.h>

static uint64_t read_ns(clockid_t clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (uint64_t)ts.tv_sec * VC_NS_PER_S + (uint64_t)ts.tv_nsec;
}

uint64_t vc_now_ns(void)
{
    return read_ns(CLOCK_MONOTONIC);
}

uint64_t vc_boot_ns(void)
{
    return read_ns(CLOCK_BOOTTIME);
}

uint64_t vc_wall_s(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec;
}
