/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <sys/statvfs.h>

#include "store/forget.h"

/* What the store may take of the disk. */

#define DEFAULT_MAX_AGE_S (14ull * 86400)
#define DEFAULT_RESERVE_BYTES VC_GIB
/** Between two looks at the free space at most that much is written. */
#define STEP_BYTES (64 * VC_MIB)

void vc_store_set_limits(struct vc_store *s, const struct vc_limits *l)
{
    s->limits = *l;
}

void vc_store_get_limits(const struct vc_store *s, struct vc_limits *out)
{
    *out = s->limits;
}

void vc_disk_space(int dir_fd, uint64_t *disk_bytes, uint64_t *free_bytes)
{
    struct statvfs fs;

    *disk_bytes = *free_bytes = 0;
    if (fstatvfs(dir_fd, &fs) < 0)
        return;
    *disk_bytes = (uint64_t)fs.f_blocks * fs.f_frsize;
    *free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
}

static uint64_t reserve(const struct vc_limits *l, uint64_t disk_bytes)
{
    if (l->reserve_bytes == VC_UNLIMITED)
        return 0;
    return l->reserve_bytes ? l->reserve_bytes : VC_MIN(disk_bytes / 20, DEFAULT_RESERVE_BYTES);
}

struct vc_limits vc_limits_resolve(const struct vc_limits *l, uint64_t used_bytes,
                                   const struct vc_gc_env *env)
{
    uint64_t room = used_bytes + env->free_bytes;
    uint64_t quota = env->disk_bytes ? room - room / 4 : VC_UNLIMITED;

    return (struct vc_limits){
        .quota_bytes = l->quota_bytes ? l->quota_bytes : quota,
        .peer_quota_bytes = l->peer_quota_bytes ? l->peer_quota_bytes : VC_UNLIMITED,
        .reserve_bytes = reserve(l, env->disk_bytes),
        .max_age_s = l->max_age_s ? l->max_age_s : DEFAULT_MAX_AGE_S,
    };
}

int vc_store_room(struct vc_store *s, uint64_t *granted, uint64_t n, struct vc_err *err)
{
    uint64_t disk, free_now, keep, step;

    if (*granted >= n) {
        *granted -= n;
        return 0;
    }
    if (s->limits.reserve_bytes == VC_UNLIMITED)
        return 0;
    vc_disk_space(s->vms_fd, &disk, &free_now);
    if (disk == 0)
        return 0;
    keep = reserve(&s->limits, disk);
    step = VC_MAX(VC_MIN(STEP_BYTES, keep / 8), VC_MIB);
    if (free_now < n + step || free_now - n - step < keep)
        return vc_err_set_hint(
            err, VC_E_STORE_FULL, "make room, or see --reserve of 'vecycle serve'",
            "the disk has %llu MiB free, of which %llu MiB are kept in reserve",
            (unsigned long long)(free_now >> 20), (unsigned long long)(keep >> 20));
    *granted = step;
    return 0;
}
