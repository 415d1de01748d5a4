/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BENCH_GENS_H
#define VC_BENCH_GENS_H

#include "micro.h"
#include "store/store.h"
#include "synth.h"

/* Hosts with a store each, for pretended VMs. Errors end the program. */

struct gens {
    char dir[256];
    struct vc_store *store;
    struct vc_vm *vm;
    struct vc_gen *gen; /* the newest, or NULL */
};

extern const struct vc_lineage gens_lineage;
extern const struct vc_id gens_vm;

/** Makes a directory under $TMPDIR (or /var/tmp, as the figures should be those of a disk) with a
 *  store in it, and says so if there are not `need` bytes free. */
void gens_make(struct gens *g, uint64_t need);
/** Opens the store, the VM and its newest generation. */
void gens_open(struct gens *g);
void gens_close(struct gens *g);
/** Deletes everything. */
void gens_remove(struct gens *g);

/** Writes the VM's memory as a generation of that id, on top of the newest one if `changed_only`:
 *  pages that have not changed are *same*. Returns the bytes of pages written. */
uint64_t gens_write(struct gens *g, struct synth *s, const struct vc_id *id, bool changed_only);

#endif
