/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef SIMDISK_H
#define SIMDISK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/io.h"

/* A disk for the store to fail on. What a process sees is kept in real files under a directory (on
 * a tmpfs); what the disk is sure to have is kept beside it: contents as of the last sync, names as
 * of the last sync of the directory, and everything that was done since in order. From that,
 * sim_power_cut() makes the directory that a power cut might leave. */

struct sim;

enum sim_fault {
    SIM_NONE,
    SIM_EIO,    /* one call fails */
    SIM_ENOSPC, /* from that call on there is no room */
    SIM_DIES,   /* from that call on nothing happens any more */
    SIM_TWICE,  /* one call fails, and some calls later nothing happens any more */
};

/* Under an existing, empty directory, which is durable. Call @at (from 0) suffers the fault. */
struct sim *sim_new(const char *dir, enum sim_fault fault, unsigned at, uint64_t seed);
void sim_free(struct sim *s);
const struct vc_io *sim_io(struct sim *s);
/* How many calls there were. */
unsigned sim_calls(const struct sim *s);
/* Whether the fault has struck. */
bool sim_struck(const struct sim *s);
/* Nothing happens any more. */
bool sim_dead(const struct sim *s);

/* A life in which call @at suffers the fault, what it leaves, and what @cuts power cuts do,
 * checked; false: the fault did not strike any more. */
typedef bool sim_suffer_fn(enum sim_fault fault, unsigned at, unsigned cuts);
/* Every @step-th call suffers it, from one that @offset chooses on: others each time. Under a
 * sanitizer each life takes some ten times as long: one in fifteen of them then. */
void sim_each_call(sim_suffer_fn *suffer, enum sim_fault fault, unsigned cuts, unsigned step,
                   unsigned offset);

/* Makes what a power cut now might leave, in an existing, empty directory: of what was not synced
 * each write, or each of its sectors, or a beginning of all, or nothing, as the seed has it. An odd
 * seed has of all names in a directory only the last change reach the disk. */
void sim_power_cut(const struct sim *s, uint64_t seed, const char *dir);

#endif
