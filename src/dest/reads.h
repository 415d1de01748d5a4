/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_DEST_READS_H
#define VC_DEST_READS_H

#include <stdbool.h>
#include <stdint.h>

#include "wire/wire.h"

/* Private to src/dest: what the resolving stage's time goes into, and the source's being told of it
 * (READS). Of one thread. */

struct vc_link;

struct vc_dst_reads {
    struct vc_wire_reads now;  /* who waits and reads adds to it, but for elapsed_ns */
    struct vc_wire_reads told; /* as it was when it was looked at last */
    uint64_t begun_ns;         /* 0: not yet */
    bool much;                 /* reading has taken much of the time once */
};

/** Tells the source, where it is time to and reading has much to do with it. */
void vc_dst_reads_tell(struct vc_dst_reads *r, struct vc_link *link);

#endif
