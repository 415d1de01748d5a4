/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef FUZZ_HOSTS_H
#define FUZZ_HOSTS_H

#include "fuzz.h"
#include "store/store.h"

/* A directory in memory for targets that need files, and a store in it whose random names and ids
 * are the same in every run. */

/** Makes a directory (below $FUZZ_DIR, /dev/shm or /tmp) that goes when the program ends. */
const char *fuzz_dir(void);
/** Deletes a directory and all in it. */
void fuzz_remove_tree(const char *path);

/** From here on getrandom(2) yields the sequence that this number determines. */
void fuzz_seed_random(uint64_t seed);

/** The VM of the tests, its key, and its RAM: two blocks of small pages. */
extern const struct vc_id fuzz_vm;
extern const struct vc_lineage fuzz_lineage;
#define FUZZ_PAGE_BYTES 1024u
#define FUZZ_PAGES 24u
/** VMs with more RAM get no checkpoint in it. */
#define FUZZ_STORE_LIMIT_BYTES (16ull << 20)
void fuzz_ram(struct vc_ram *ram);
/** Content of a page: `version` 0 is zeroes. */
void fuzz_page(uint8_t *p, unsigned page, unsigned version);
/** Keeps what is in that VM's directory of a store, and puts it back. */
struct fuzz_saved;
struct fuzz_saved *fuzz_save(const char *store);
void fuzz_restore(const struct fuzz_saved *saved);
/** A socket pair: fds[0] reads these bytes and then the end; what is written to it fds[1] reads. */
void fuzz_prefilled(const uint8_t *p, size_t n, int fds[2]);
/** Bytes that a socket holds without a reader. */
#define FUZZ_SOCKET_BYTES 65536u

/** A store with two generations of that VM, the second on top of the first. */
struct vc_store *fuzz_store(const char *path);

#endif
