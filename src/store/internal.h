/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_STORE_INTERNAL_H
#define VC_STORE_INTERNAL_H

#include "store/store.h"

/* Private to src/store. */

struct vc_writer;

struct vc_store {
    char root[4096];
    int vms_fd;  /* ROOT/vms */
    int root_fd; /* ROOT */
    uint64_t limit_bytes;
    struct vc_limits limits; /* as given */
};

struct vc_vm {
    struct vc_store *store; /* borrowed */
    struct vc_id uuid;
    int dir_fd;
    int lock_fd;     /* -1: opened for reading */
    int handover_fd; /* -1: not begun */
    uint64_t handover_seq;
    struct vc_handover handover;
    bool was_reset;
    bool has_lineage;
    struct vc_lineage lineage;
    size_t n_gens;
    struct vc_gen_info gens[VC_STORE_MAX_GENERATIONS];
};

enum vc_layer_kind { VC_LAYER_IMAGE = 1, VC_LAYER_DELTA = 2 };

struct vc_layer {
    struct vc_id id;
    uint8_t kind;   /* vc_layer_kind */
    uint64_t bytes; /* length of the file */
};

/* The content of an index file. Pages are numbered through all blocks: first[block] + page. The
 * arrays are either on the heap (a transaction) or in the mapped file. */
struct vc_index {
    struct vc_id gen, lineage;
    struct vc_ram ram;
    uint64_t first[VC_MAX_BLOCKS];
    uint64_t image_offset[VC_MAX_BLOCKS];
    uint64_t image_bytes;
    uint64_t n_pages;
    uint32_t n_layers;
    struct vc_layer layers[VC_STORE_MAX_LAYERS];
    uint8_t *state;  /* vc_page_state */
    uint8_t *layer;  /* of HELD pages */
    uint8_t *slot;   /* u32 little-endian each: page of a delta file */
    uint8_t *digest; /* 16 bytes each */
};

struct vc_gen {
    struct vc_index index;
    struct vc_gen_info info;
    int fds[VC_STORE_MAX_LAYERS];
    void *map;
    size_t map_bytes;
};

/* file names */
#define VC_NAME_BYTES 64
void vc_store_file_name(char name[VC_NAME_BYTES], const struct vc_id *id, const char *suffix);
const char *vc_layer_suffix(unsigned kind);

/* manifest.c */
int vc_manifest_read(struct vc_vm *vm,
                     struct vc_err *err) VC_NODISCARD; /* VC_NOT_FOUND: none yet */
int vc_manifest_write(struct vc_vm *vm, struct vc_err *err) VC_NODISCARD;

/* index.c */
void vc_index_layout(struct vc_index *ix); /* numbers and offsets from ix->ram */
int vc_index_root(const struct vc_index *ix, uint8_t root[VC_ROOT_BYTES],
                  struct vc_err *err) VC_NODISCARD;
int vc_index_write(const struct vc_index *ix, int dir_fd, struct vc_err *err) VC_NODISCARD;
/* Maps and checks; the arrays of *ix point into *map_out. */
int vc_index_map(struct vc_index *ix, int dir_fd, const struct vc_id *gen, void **map_out,
                 size_t *bytes_out, struct vc_err *err) VC_NODISCARD;

/* gen.c */
/* Where a HELD page lies. */
uint64_t vc_index_offset(const struct vc_index *ix, uint32_t block, uint64_t page, uint32_t *layer);

/* vm.c */
/* Deletes files that nothing refers to. Needs the lock. */
void vc_vm_sweep(struct vc_vm *vm);

/* policy.c */
#define VC_STORE_LOCK_WAIT_MS 10000
/* One at a time evicts or changes a policy: held until the descriptor is closed. VC_E_BUSY. */
int vc_store_lock(struct vc_store *s, unsigned wait_ms, int *fd_out,
                  struct vc_err *err) VC_NODISCARD;

/* room.c */
/* Called before n bytes are written to a new generation: VC_E_STORE_FULL if the reserve would be
 * touched. *granted is the caller's, 0 at first. */
int vc_store_room(struct vc_store *s, uint64_t *granted, uint64_t n,
                  struct vc_err *err) VC_NODISCARD;

/* Disk full, or anything else that went wrong with a file. */
int vc_store_errno(struct vc_err *err, const char *what, const char *name);

#endif
