/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BASE_PROCESS_H
#define VC_BASE_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/units.h"

/* Which process that was, and whether it is gone for certain: docs/internals/handover.md, "Who QEMU
 * is". A pid alone proves nothing: it is used again, and means another process in another PID
 * namespace, after a reboot and on another machine.
 *
 * Thread rule: no shared state. */

struct vc_process {
    int32_t pid;          /* 0: unknown */
    uint64_t start;       /* /proc/PID/stat, field 22: clock ticks since boot (proc(5)) */
    struct vc_id boot;    /* /proc/sys/kernel/random/boot_id */
    struct vc_id machine; /* machine-id(5); nil: it has none */
    uint64_t pid_ns;      /* inode of the namespace in which `pid` was read ... */
    uint64_t time_ns;     /* ... and of that of `start`; 0: a kernel without time namespaces */
};

/** The process of that pid, as this process sees it. False: it cannot be told; *out is unknown. */
bool vc_process_read(pid_t pid, struct vc_process *out);

static inline bool vc_process_is_known(const struct vc_process *p)
{
    return p->pid > 0;
}

/** Whether both are known and the same process. */
bool vc_process_equal(const struct vc_process *a, const struct vc_process *b);
/** Whether they are not known to be two. */
static inline bool vc_process_may_equal(const struct vc_process *a, const struct vc_process *b)
{
    return !vc_process_is_known(a) || !vc_process_is_known(b) || vc_process_equal(a, b);
}

enum vc_process_life {
    VC_PROCESS_IN_DOUBT = 0, /* it cannot be told from here */
    VC_PROCESS_ALIVE = 1,
    VC_PROCESS_GONE = 2, /* for certain; a zombie whose threads have all ended is gone */
};
/** What has become of it. */
enum vc_process_life vc_process_look(const struct vc_process *p);

/** Whether it was a process of another machine, or may have been: a record of it was copied, as
 * with a backup or a cloned disk. */
bool vc_process_is_elsewhere(const struct vc_process *p);

/** Whether the process of that pid, if it is one, began after @p did; as far as it cannot be told,
 * it did. A program that has started @p, as sudo(8) does, has the same options, and did not. */
bool vc_process_is_younger(pid_t pid, const struct vc_process *p);

/** Whether that process was started with the option @name (without its dashes) and, if @value is
 *  not NULL, a value that @value accepts. False too where the command line cannot be read. */
bool vc_process_has_option(pid_t pid, const char *name,
                           bool (*value)(void *opaque, const char *text), void *opaque);

/** A value that is the id at @opaque, in upper or lower case. */
bool vc_process_option_is_id(void *opaque, const char *text);

/** Looks through all processes for one like that, other than @except. Returns its pid; 0: there is
 *  none; -1: it cannot be told, as not all can be seen of those among which @p was. */
pid_t vc_process_find_option(const struct vc_process *p, const char *name,
                             bool (*value)(void *opaque, const char *text), void *opaque,
                             pid_t except);

#endif
