/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_STORE_INTERNAL_H
#define VC_STORE_INTERNAL_H

#include "base/bytes.h"
#include "base/io.h"
#include "store/store.h"

/* Private to src/store. */

struct vc_store {
    char root[4096];
    const struct vc_io *io;
    int vms_fd;  /* ROOT/vms */
    int root_fd; /* ROOT */
    uint64_t limit_bytes;
    struct vc_limits limits; /* as given */
};

enum vc_layer_kind { VC_LAYER_IMAGE = 1, VC_LAYER_DELTA = 2 };

struct vc_layer {
    struct vc_id id;
    uint8_t kind;   /* vc_layer_kind */
    uint64_t bytes; /* length of the file */
};

/* A generation as the manifest has it. */
struct vc_entry {
    struct vc_gen_info info;
    struct vc_id index;                          /* name of its index file */
    struct vc_layer layers[VC_STORE_MAX_LAYERS]; /* info.n_layers of them */
};

/* Complete generations, newest first, then the partial one. */
struct vc_manifest {
    bool has_lineage;
    struct vc_lineage lineage;
    size_t n_gens;
    struct vc_entry gens[VC_STORE_MAX_GENERATIONS];
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
    bool in_doubt;      /* a manifest was renamed and not synced: nothing may be deleted */
    struct vc_txn *txn; /* the one in progress, or NULL */
    struct vc_manifest m;
};

/* The content of an index file. Pages are numbered through all blocks: first[block] + page. The
 * arrays are either of their own (a transaction) or parts of the file as it was read. */
struct vc_index {
    struct vc_id gen, lineage;
    uint8_t root[VC_ROOT_BYTES];
    struct vc_ram ram;
    uint64_t first[VC_MAX_BLOCKS];
    uint64_t image_offset[VC_MAX_BLOCKS]; /* in layer 0 */
    uint64_t image_room[VC_MAX_BLOCKS];   /* of the block, in layer 0 */
    uint64_t n_pages;
    uint32_t n_layers;
    struct vc_layer layers[VC_STORE_MAX_LAYERS];
    uint8_t *digest; /* 16 bytes each */
    uint8_t *slot;   /* u32 little-endian each: page of a delta file */
    uint8_t *state;  /* vc_page_state */
    uint8_t *layer;  /* of HELD pages */

    uint64_t charged; /* see vc_index_alloc() and vc_index_read() */
};

struct vc_gen {
    const struct vc_io *io;
    struct vc_index index;
    struct vc_id index_file;
    struct vc_gen_info info;
    int fds[VC_STORE_MAX_LAYERS];
    uint8_t *file; /* the index; read and not mapped: a disk that fails must not be a SIGBUS */
};

/* ---- store.c: names and messages ---- */

#define VC_NAME_BYTES 64
void vc_store_file_name(char name[VC_NAME_BYTES], const struct vc_id *id, const char *suffix);
const char *vc_layer_suffix(unsigned kind);
void vc_layer_name(char name[VC_NAME_BYTES], const struct vc_layer *l);
/* The suffix of a file name made of an id and one of ours, with its dot, and the id; NULL: none. */
const char *vc_store_parse_name(const char *name, struct vc_id *id);
/* Disk full, or anything else that went wrong with a file. */
int vc_store_errno(struct vc_err *err, const char *what, const char *name);
/* A file that should be there was not opened (but for ENOENT): something else has its name, or it
 * is not ours to read, which is damage like any other (VC_E_CORRUPT); or as above. */
int vc_store_open_errno(struct vc_err *err, const char *name);
#define VC_PATH_BYTES 560
void vc_store_path(const struct vc_vm *vm, const char *name, char path[VC_PATH_BYTES]);
/* vc_store_open_errno() with the path of a VM's file. */
int vc_vm_open_errno(const struct vc_vm *vm, const char *name, struct vc_err *err);
/* Puts the VM's directory before an error that does not name it. Returns rc. */
int vc_vm_blame(const struct vc_vm *vm, int rc, struct vc_err *err);

/* ---- codec.c: what several files have in common ---- */

#define VC_HEAD_BYTES 24
/* Longest header of an index or a log. */
#define VC_HEADER_MAX (96u << 10)
void vc_head_write(struct vc_writer *w, const char magic[8]);
/* 0; VC_MISMATCH: another magic; VC_E_VERSION (err filled). *frozen: not to be written to by us. */
int vc_head_read(struct vc_reader *r, const char magic[8], const char *name, bool *frozen,
                 struct vc_err *err) VC_NODISCARD;
void vc_layers_write(struct vc_writer *w, const struct vc_layer *l, uint32_t n);
/* False: not legal (1..8 layers, an image below deltas). */
bool vc_layers_read(struct vc_reader *r, struct vc_layer *l, uint32_t n);
bool vc_layers_equal(const struct vc_layer *a, const struct vc_layer *b, uint32_t n);
/* The blocks of ix->ram with their places in layer 0; the numbers of both are stored elsewhere. */
void vc_blocks_write(struct vc_writer *w, const struct vc_index *ix);
/* Numbers the pages too. False: not legal. ix->ram.page_bytes, n_blocks and layer 0 are set. */
bool vc_blocks_read(struct vc_reader *r, struct vc_index *ix);
bool vc_read_zero(struct vc_reader *r, size_t n);

/* ---- manifest.c ---- */

int vc_manifest_read(struct vc_vm *vm, struct vc_err *err) VC_NODISCARD; /* VC_NOT_FOUND: none */
/* Makes it the VM's, on disk and in vm->m. On failure vm->m is what the disk has, as far as that
 * can be told; if it cannot, or is not durable, vm->in_doubt is set. */
int vc_manifest_switch(struct vc_vm *vm, const struct vc_manifest *m,
                       struct vc_err *err) VC_NODISCARD;
/* The entry, or NULL. */
struct vc_entry *vc_manifest_find(struct vc_manifest *m, const struct vc_id *gen);
bool vc_manifest_lists_layer(const struct vc_manifest *m, const struct vc_id *layer);
bool vc_manifest_lists_index(const struct vc_manifest *m, const struct vc_id *index);

/* ---- index.c ---- */

/* What an index has of one page, all arrays together. */
#define VC_INDEX_PAGE_BYTES 22u

void vc_index_number(struct vc_index *ix);    /* first[] and n_pages from ix->ram */
uint64_t vc_index_place(struct vc_index *ix); /* places of the blocks; length of an image */
/* Moves *@page to the next held page of the block; how many follow each other there, at most @max.
 * 0: no more. */
uint64_t vc_index_held(const struct vc_index *ix, uint32_t block, uint64_t *page, uint64_t max);
int vc_index_root(const struct vc_index *ix, uint8_t root[VC_ROOT_BYTES],
                  struct vc_err *err) VC_NODISCARD;
/* A peer names the RAM, and so the size of an index. What all that are being made in this process
 * reserve together has a limit: 8 GiB, which is that of 1.4 TiB of RAM, or a third of the host's
 * memory. (Reserved: memory is taken as pages come.) VC_E_STORE_FULL: over the limit, or none. */
int vc_index_alloc(struct vc_index *ix, struct vc_err *err) VC_NODISCARD;
void vc_index_free(struct vc_index *ix); /* its arrays, where they are on the heap */
/* One that was read is let go of. */
void vc_index_uncharge(struct vc_index *ix);
/* What the format wants to be zero becomes zero. */
void vc_index_normalize(struct vc_index *ix);
/* Writes all into an open, empty file and syncs it. */
int vc_index_write(const struct vc_index *ix, const struct vc_io *io, int fd, const char *name,
                   struct vc_err *err) VC_NODISCARD;
/* Reads and checks; the arrays of *ix point into *file, which is the caller's to free, with
 * vc_index_uncharge(), which is called after a failure too. All that are open in this process take
 * a third of the host's memory at most, or 1 GiB. VC_NOT_FOUND: no such file (err filled).
 * VC_E_STORE_FULL: over the limit, or no memory. */
int vc_index_read(struct vc_index *ix, struct vc_vm *vm, const struct vc_entry *e, uint8_t **file,
                  struct vc_err *err) VC_NODISCARD;
/* Where a HELD page lies. */
uint64_t vc_index_offset(const struct vc_index *ix, uint32_t block, uint64_t page, uint32_t *layer);
bool vc_ram_equal(const struct vc_ram *a, const struct vc_ram *b);

/* ---- commit.c ---- */

/* Commits an index whose layers are durable: root, index file, directory, manifest; then sweeps.
 * ix->gen becomes the generation's id. A complete one takes the place of all others, a partial one
 * that of the partial one. root_out may be NULL. */
int vc_commit(struct vc_vm *vm, struct vc_index *ix, const struct vc_txn_note *note, bool partial,
              uint8_t root_out[VC_ROOT_BYTES], struct vc_err *err) VC_NODISCARD;
/* Pages that the index does not mention become what the base has, where it is held there; the
 * base's layers are the index's first ones. */
void vc_commit_fill(struct vc_index *ix, const struct vc_index *base);

/* Layers that no page is in any more need not be kept. */
void vc_commit_prune(struct vc_index *ix);

/* ---- tmp.c ---- */

/* A file that is written without the VM's lock: its own lock keeps it from being swept. */
struct vc_tmp {
    char name[VC_NAME_BYTES];
    int fd;
    bool named; /* it has its final name, which is not to be removed */
};
#define VC_TMP_INIT \
    {               \
        .fd = -1    \
    }
/* VC_AGAIN: swept, or taken, before it was locked. */
int vc_tmp_make(struct vc_vm *vm, const struct vc_id *id, const char *suffix, struct vc_tmp *t,
                struct vc_err *err) VC_NODISCARD;
/* Closes it; without a final name it is deleted. */
void vc_tmp_drop(struct vc_vm *vm, struct vc_tmp *t);
/* Gives it its final name, with the VM locked. */
int vc_tmp_name(struct vc_vm *vm, struct vc_tmp *t, const char *name,
                struct vc_err *err) VC_NODISCARD;

/* ---- txn.c ---- */

/* The names of the files that the transaction writes ("" for what it has not). */
void vc_txn_names(const struct vc_txn *t, char layer[VC_NAME_BYTES], char log[VC_NAME_BYTES]);

/* ---- recover.c ---- */

/* Commits what interrupted migrations had logged. Needs the lock. */
int vc_vm_recover(struct vc_vm *vm, struct vc_err *err) VC_NODISCARD;

/* ---- sweep.c ---- */

/* Deletes files that nothing refers to. Needs the lock. @synced: the directory has been synced
 * since the manifest was read or written. */
void vc_vm_sweep(struct vc_vm *vm, bool synced);

/* ---- policy.c ---- */

#define VC_STORE_LOCK_WAIT_MS 10000
/* One at a time evicts or changes a policy: held until the descriptor is closed. VC_E_BUSY. */
int vc_store_lock(struct vc_store *s, unsigned wait_ms, int *fd_out,
                  struct vc_err *err) VC_NODISCARD;

/* flock() failed, and not because somebody else has the lock. */
int vc_lock_errno(struct vc_err *err, const char *path);

/* ---- room.c ---- */

/* Called before n bytes are written to a new generation: VC_E_STORE_FULL if the reserve would be
 * touched. *granted is the caller's, 0 at first. */
int vc_store_room(struct vc_store *s, uint64_t *granted, uint64_t n,
                  struct vc_err *err) VC_NODISCARD;

#endif
