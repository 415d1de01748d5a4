/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_STORE_FORGET_H
#define VC_STORE_FORGET_H

#include "store/internal.h"

/* Private to src/store: how the store forgets (docs/formats/store.md section 7). */

/** What is known of a generation's age: the content of the file `age`. */
struct vc_age {
    struct vc_id gen; /* the newest generation, or zero */
    uint64_t age_s;
    uint64_t wall_s, boot_s; /* when that was so */
    struct vc_id boot;
};

/** Clocks and disk as they are. */
void vc_gc_env_now(struct vc_gc_env *env, int dir_fd);
/** The age now. @note: what is noted, or NULL. */
struct vc_age vc_age_at(const struct vc_age *note, const struct vc_id *gen, uint64_t created_s,
                        const struct vc_gc_env *env);
/** Whether `now` says something that would get lost with a restart of the host. */
bool vc_age_worth_noting(const struct vc_age *note, const struct vc_age *now);
/** 0, or VC_NOT_FOUND (none, or damaged). */
int vc_age_read(int dir_fd, struct vc_age *out) VC_NODISCARD;
int vc_age_write(const struct vc_io *io, int dir_fd, const struct vc_age *age,
                 struct vc_err *err) VC_NODISCARD;

/** Size of the file system, and what of it is free for us; 0 where it does not say. */
void vc_disk_space(int dir_fd, uint64_t *disk_bytes, uint64_t *free_bytes);
/** Limits with the defaults filled in; what is off is UINT64_MAX, the reserve 0. */
struct vc_limits vc_limits_resolve(const struct vc_limits *l, uint64_t used_bytes,
                                   const struct vc_gc_env *env);

#endif
