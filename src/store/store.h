/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_STORE_STORE_H
#define VC_STORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/err.h"
#include "base/io.h"
#include "base/log.h"
#include "base/process.h"
#include "base/units.h"
#include "digest/digest.h"

/* The checkpoint store of one host: docs/formats/store.md. Files once committed are never changed.
 *
 * Locking: a VM's directory is locked (flock) from vc_vm_open() with VC_VM_WRITE to vc_vm_close().
 * Readers take no lock: what they have open survives being replaced and unlinked. A lock that is
 * held only for a moment is waited for; that of a VM whose record is LEFT or KEPT for longer, since
 * whoever settles it holds it until another host has answered.
 *
 * Thread rule: an object belongs to one thread at a time, except where a function says otherwise.
 */

struct vc_store; /* a store directory */
struct vc_vm;    /* one VM in it, opened for reading or locked for writing */
struct vc_gen;   /* one committed generation, open for reading */
struct vc_txn;   /* a generation being written */

#define VC_STORE_VERSION 1
/** RAM above which a generation is refused, unless the store was opened with another limit. It is
 * for who wants a smaller one: what a VM's checkpoint takes of disk and memory has limits of its
 * own.
 */
#define VC_STORE_DEFAULT_LIMIT_BYTES (4ull << 40)
/** Files that one generation may be spread over: one image and deltas on top. */
#define VC_STORE_MAX_LAYERS 8
#define VC_STORE_MAX_GENERATIONS 16
#define VC_ROOT_BYTES 32
/** How long the lock of a VM that is being settled is waited for: while its QEMU is looked at, and
 * the other host is waited for. */
#define VC_VM_SETTLED_MS 30000u

/** Opens the store, creating the directory (0700, parents too) if @create. It is the caller's own,
 *  and nobody else may write in it; root may open another user's, and works in it as that user.
 *  @limit_bytes: 0 = default. Errors: VC_E_STORE (not a directory, not writable, another user's,
 *  unknown version; hint says what to do), VC_E_REFUSED: no access to it; VC_NOT_FOUND if it does
 *  not exist and !create. */
int vc_store_open(const char *root, bool create, uint64_t limit_bytes, struct vc_store **out,
                  struct vc_err *err) VC_NODISCARD;
/** The same on another table of system calls (tests): @io is borrowed for the store's life. */
int vc_store_open_on(const struct vc_io *io, const char *root, bool create, uint64_t limit_bytes,
                     struct vc_store **out, struct vc_err *err) VC_NODISCARD;
void vc_store_close(struct vc_store *s);
const char *vc_store_root(const struct vc_store *s);
/** Whether its file system makes names durable (fsync of a directory). */
bool vc_store_syncs_names(const struct vc_store *s);

/** The UUIDs of all VMs in the store, malloc'd array (free with free()). */
int vc_store_list(struct vc_store *s, struct vc_id **ids_out, size_t *n_out,
                  struct vc_err *err) VC_NODISCARD;

/* ---- one VM ---- */

enum vc_vm_open {
    VC_VM_READ,   /* no lock; VC_NOT_FOUND if there is no such VM */
    VC_VM_WRITE,  /* locked; VC_NOT_FOUND if there is no such VM; VC_E_BUSY if it stays locked */
    VC_VM_CREATE, /* as WRITE, and made if missing */
    VC_VM_TRY,    /* as WRITE; VC_E_BUSY at once */
};

/** Opens a VM. WRITE and CREATE recover first: what an interrupted migration had logged becomes the
 *  partial generation, and files that nothing refers to are deleted; READ changes nothing. A
 * damaged manifest: VC_E_CORRUPT (READ, WRITE); with CREATE the VM starts anew, and
 * vc_vm_was_reset() says so. VC_E_VERSION: a newer vecycle's. */
int vc_vm_open(struct vc_store *s, const struct vc_id *uuid, enum vc_vm_open mode,
               struct vc_vm **out, struct vc_err *err) VC_NODISCARD;
void vc_vm_close(struct vc_vm *vm);
const struct vc_id *vc_vm_uuid(const struct vc_vm *vm);
/** True if opening found a damaged manifest and dropped everything (CREATE only). */
bool vc_vm_was_reset(const struct vc_vm *vm);
/** Deletes the VM with all its files, but for its policy (needs WRITE); close it afterwards. */
int vc_vm_remove(struct vc_vm *vm, struct vc_err *err) VC_NODISCARD;

/** Deletes all generations and the lineage; the handover record stays (needs WRITE). */
int vc_vm_drop(struct vc_vm *vm, struct vc_err *err) VC_NODISCARD;

/** The line of descent that a VM's generations share: one key, one digest algorithm. */
struct vc_lineage {
    struct vc_id id;
    uint8_t algo; /* vc_digest_algo */
    bool exposed; /* its key or pages have crossed a network in the clear */
    uint8_t key[VC_DIGEST_KEY_BYTES];
};

/** False if the VM has none yet. */
bool vc_vm_lineage(const struct vc_vm *vm, struct vc_lineage *out);
/** Durably makes it the VM's lineage. Another one than before: all generations are dropped. */
int vc_vm_set_lineage(struct vc_vm *vm, const struct vc_lineage *l,
                      struct vc_err *err) VC_NODISCARD;

/** What the manifest knows of a generation. */
struct vc_gen_info {
    struct vc_id id;
    uint8_t root[VC_ROOT_BYTES];
    uint64_t created_unix; /* seconds */
    uint64_t ram_bytes, zero_pages, held_pages, unknown_pages;
    uint64_t disk_bytes; /* allocated on disk by its files when it was committed */
    uint32_t n_layers;
    uint64_t same_pages; /* of the migration that made it: pages reused */
    uint64_t data_pages; /* ... and pages newly written */
    uint8_t role;        /* 1: this host was the source, 2: the destination */
    bool confirmed;      /* the peer reported the same root after the switch */
    bool partial;        /* of a migration that did not finish; no other host knows its id */
    char peer[128];      /* the other host, as the transport names it */
};

/** Generations: complete ones, newest first, then the partial one if there is one.
 *  i < vc_vm_n_generations(). */
size_t vc_vm_n_generations(const struct vc_vm *vm);
const struct vc_gen_info *vc_vm_generation(const struct vc_vm *vm, size_t i);
/** The newest complete one, and the partial one; NULL: none. Valid until the VM is changed. */
const struct vc_gen_info *vc_vm_complete(const struct vc_vm *vm);
const struct vc_gen_info *vc_vm_partial(const struct vc_vm *vm);

/** Notes durably that the peer has the same generation (after COMMITTED was exchanged). */
int vc_vm_confirm(struct vc_vm *vm, const struct vc_id *gen, struct vc_err *err) VC_NODISCARD;

/* ---- reading a generation ---- */

enum vc_page_state {
    VC_PAGE_UNMENTIONED = 0,
    VC_PAGE_ZERO = 1,
    VC_PAGE_HELD = 2,    /* digest known, content in a layer */
    VC_PAGE_UNKNOWN = 3, /* it went by without us knowing the content */
};

/** A write that takes longer than this is taken for one that may never end. */
#define VC_STORE_PATIENCE_MS 5000u

/** Opens a generation: index checked (checksum, limits, root), layers opened. The index is
 *  read into memory, 22 bytes a page. VC_E_CORRUPT: damaged or truncated index or missing/short
 * layer; VC_NOT_FOUND: no such generation. Lives on its own after vc_vm_close(). A VM that is open
 * for reading may be read anew on the way: what its lineage and generations were before is not what
 * belongs to *out, and pointers to them have other contents. */
int vc_gen_open(struct vc_vm *vm, const struct vc_id *gen, struct vc_gen **out,
                struct vc_err *err) VC_NODISCARD;
void vc_gen_close(struct vc_gen *g);
const struct vc_ram *vc_gen_ram(const struct vc_gen *g);
const struct vc_gen_info *vc_gen_info(const struct vc_gen *g);

/** State of a page (block and page inside vc_gen_ram(), asserted); *digest is set if HELD (may be
 *  NULL). Any thread. Cheap: two array accesses. */
enum vc_page_state vc_gen_lookup(const struct vc_gen *g, uint32_t block, struct vc_page page,
                                 struct vc_digest *digest);

/** Whether the page is HELD; false as well where @block is -1, as vc_ram_map() has it, or the page
 *  lies behind the block's end. *digest as above. Any thread. */
bool vc_gen_holds(const struct vc_gen *g, int block, struct vc_page page, struct vc_digest *digest);

/** Reads n consecutive pages, all HELD, into buf as the files have them; nothing is verified here.
 *  Adjacent pages in one file are one read. Any thread. VC_E_CORRUPT on a short file,
 *  VC_E_STORE on a read error. */
int vc_gen_read(const struct vc_gen *g, uint32_t block, struct vc_page page, size_t n, uint8_t *buf,
                struct vc_err *err) VC_NODISCARD;

/** Whether vc_gen_read() of such pages need not wait for a disk: the last one of each stretch in a
 * file is in memory. A hint, false where the kernel does not say. Any thread. */
bool vc_gen_is_cached(const struct vc_gen *g, uint32_t block, struct vc_page page, size_t n);

/** Has the kernel begin to read those of n consecutive pages that are HELD, if there are so many.
 *  A hint: nothing is waited for, or fails. Any thread. */
void vc_gen_prefetch(const struct vc_gen *g, uint32_t block, struct vc_page page, uint64_t n);
/** From now on vc_gen_read() reads what it is asked for and no more: the kernel does not read
 *  ahead, which on a slow disk is time lost where not all pages in a row are wanted. To be called
 *  before the first page is read. Any thread. */
void vc_gen_read_sparsely(const struct vc_gen *g);

/* ---- writing a generation ---- */

/** Begins a new generation of a VM opened with WRITE or CREATE. @id: zero is VC_E_STORE. @base:
 *  pages marked *same* are taken from it (its layers become the new generation's); NULL: none. It
 *  may be complete or partial, stays the caller's and must outlive the transaction. The transaction
 *  keeps the VM's lock alive; only one at a time. While it runs it appends to a log what it is
 * told, so that whoever locks the VM after a crash can keep what had arrived. VC_E_STORE,
 *  VC_E_STORE_FULL. */
int vc_txn_begin(struct vc_vm *vm, const struct vc_id *id, const struct vc_gen *base,
                 struct vc_txn **out, struct vc_err *err) VC_NODISCARD;

/** Tells the RAM, once, before any page. Over the store's limit: VC_E_STORE_FULL. */
int vc_txn_set_ram(struct vc_txn *t, const struct vc_ram *ram, struct vc_err *err) VC_NODISCARD;

/** The page now holds what the base holds at the same block name and page, which must be HELD there
 *  (else it becomes UNKNOWN). A later call for a page overrides an earlier one, here and below. */
int vc_txn_same(struct vc_txn *t, uint32_t block, struct vc_page page, size_t n,
                struct vc_err *err) VC_NODISCARD;
int vc_txn_zero(struct vc_txn *t, uint32_t block, struct vc_page page, size_t n,
                struct vc_err *err) VC_NODISCARD;
int vc_txn_unknown(struct vc_txn *t, uint32_t block, struct vc_page page, size_t n,
                   struct vc_err *err) VC_NODISCARD;
/** Writes n consecutive pages: contents[i] (page size each, borrowed) with digests[i].
 *  Adjacent pages become few large writes. VC_E_STORE_FULL when the disk is full. */
int vc_txn_put(struct vc_txn *t, uint32_t block, struct vc_page page, size_t n,
               const uint8_t *const *contents, const struct vc_digest *digests,
               struct vc_err *err) VC_NODISCARD;

/** How many of n pages from @page on, one at least, have this in common: *known says whether the
 *  transaction has a content for them (held, or zeroes). Not while another thread records, like
 *  the next one. */
size_t vc_txn_known(const struct vc_txn *t, uint32_t block, struct vc_page page, size_t n,
                    bool *known);
/** Reads n pages, for all of which it has one, into @buf, unverified. */
int vc_txn_read(const struct vc_txn *t, uint32_t block, struct vc_page page, size_t n, uint8_t *buf,
                struct vc_err *err) VC_NODISCARD;

struct vc_txn_note {
    uint64_t same_pages, data_pages;
    uint8_t role;
    const char *peer; /* borrowed; truncated if long */
};

/** Commits: layer and index durable, then the manifest switched by rename, directory synced, then
 *  older generations dropped (their files unlinked unless shared). Frees the transaction whatever
 *  it returns. root_out (may be NULL) is the new generation's root. */
int vc_txn_commit(struct vc_txn *t, const struct vc_txn_note *note, uint8_t root_out[VC_ROOT_BYTES],
                  struct vc_err *err) VC_NODISCARD;
/** Gives up: deletes its files, frees it. NULL is fine. */
void vc_txn_abort(struct vc_txn *t);

/** Writes to the log what is not in it yet. The calls above do that about once a second by
 *  themselves; who has nothing to tell for a second calls this, so that a killed process loses no
 *  more. @sync: and waits until the log and what it tells of are durable (a thread of the
 *  transaction's own does that every few seconds). */
int vc_txn_log(struct vc_txn *t, bool sync, struct vc_err *err) VC_NODISCARD;
/** Ends a transaction of a migration that did not finish by keeping what had arrived: commits it as
 *  the VM's partial generation, with a random id of its own, in the place of an older one. Complete
 *  generations stay. Pages that had not arrived are as the base has them, where it holds them and
 *  the new generation stands on its layers. Frees the transaction whatever it returns. 0;
 *  VC_NOT_FOUND: nothing had arrived, its files are deleted; an error: likewise. NULL:
 * VC_NOT_FOUND.
 */
int vc_txn_suspend(struct vc_txn *t, const struct vc_txn_note *note,
                   struct vc_err *err) VC_NODISCARD;

/** Folds the newest complete generation into one image without deltas, if it has any: copies in the
 *  background (no lock is held while copying), then locks, switches the manifest if the generation
 *  is still the newest, and drops the old files, except those that a partial generation needs. The
 *  generation's id, root, states and digests stay. *stop (may be NULL) set to true from another
 * thread ends it early. 0; VC_AGAIN: stopped, or overtaken by a newer generation, or locked;
 * nothing to do: 0. */
int vc_vm_fold(struct vc_store *s, const struct vc_id *uuid, const _Atomic bool *stop,
               struct vc_err *err) VC_NODISCARD;

/** Digests n pages' @content, one behind the other, all of which the index holds: *bad differ from
 *  what it says, *first (set if *bad) is the first of them. Errors: as vc_digest_pages(). */
int vc_gen_check(const struct vc_gen *g, struct vc_digester *d, uint32_t block, struct vc_page page,
                 size_t n, const uint8_t *content, size_t *bad, struct vc_page *first,
                 struct vc_err *err) VC_NODISCARD;

struct vc_verify_result {
    uint64_t pages, bad_pages;
    uint32_t first_bad_block;
    struct vc_page first_bad_page;
};

/** Hashes every held page of a generation again. 0 and a result (bad_pages may be > 0; of a partial
 *  generation that is no damage: pages may have been written again before a crash, or not at all;
 *  they are not usable), or VC_E_CORRUPT where index or layers cannot be read at all. @progress may
 * be NULL. */
int vc_gen_verify(const struct vc_gen *g, const struct vc_lineage *l,
                  void (*progress)(void *opaque, uint64_t done, uint64_t total), void *opaque,
                  struct vc_verify_result *out, struct vc_err *err) VC_NODISCARD;

/* ---- who has the key: docs/formats/store.md section 8 ---- */

/** As many as `vecycle tls init` puts into a certificate. */
#define VC_HOLDER_NAMES 16

/** A host that was given a lineage's key. */
struct vc_holder {
    struct vc_id lineage;
    bool listed; /* it was on this host's list of peers */
    bool cut;    /* it has more names than these: that none of them is somewhere says nothing */
    uint8_t n_names;
    char names[VC_HOLDER_NAMES][256]; /* n_names of them; the rest is zero */
};
/** Notes durably, before the key goes out, who gets it (needs WRITE or CREATE). One that is noted
 *  already, under the same names, is at most listed from now on. */
int vc_vm_share(struct vc_vm *vm, const struct vc_holder *who, struct vc_err *err) VC_NODISCARD;
/** Those who have the key of the VM's lineage, malloc'd (free with free()). VC_E_CORRUPT: who they
 *  are is not known. */
int vc_vm_holders(struct vc_vm *vm, struct vc_holder **out, size_t *n,
                  struct vc_err *err) VC_NODISCARD;
/** The host in "SCHEME://[USER@]HOST[:PORT]", "[V6]:PORT" or "ssh from HOST"; anything else as it
 *  is. */
void vc_holder_host(const char *address, char out[256]);
/** To whose account what is kept of the VM goes, of a peer as a generation names it: the first name
 *  of its certificate, as far as that is noted beside the key or shown in the peer's; else its
 * host, whatever its port, and whichever side called. "": of nobody. */
void vc_vm_account(struct vc_vm *vm, const char *peer, char out[256]);

/* ---- another key for what is there ---- */

struct vc_rekey; /* the newest complete generation on its way to a new lineage */

/** Pages that are no longer held. */
struct vc_dropped {
    uint32_t block;
    struct vc_page page;
    uint64_t count;
};
/** More such runs are not listed. */
#define VC_REKEY_MAX_DROPPED 1024u

/** Opens it for reading; the VM is not locked, and a migration that begins meanwhile wins.
 *  VC_NOT_FOUND: no such VM, or it has no complete generation; VC_AGAIN: it was replaced just now;
 *  VC_E_BUSY: it is being re-keyed; VC_E_UNSETTLED: a handover is open. */
int vc_rekey_open(struct vc_store *s, const struct vc_id *uuid, struct vc_rekey **out,
                  struct vc_err *err) VC_NODISCARD;
/** Gives up what was not committed. NULL is fine. */
void vc_rekey_close(struct vc_rekey *r);
/** Its id and root are those before. */
const struct vc_gen *vc_rekey_gen(const struct vc_rekey *r);
const struct vc_lineage *vc_rekey_old(const struct vc_rekey *r);

/** Told how many of all pages are done; false ends it. */
typedef bool (*vc_rekey_go_on)(void *opaque, uint64_t done, uint64_t total);
/** Digests each page that is held under @fresh, once; a page that is not as its digest under the
 *  old key says is dropped. @gen: the new generation's id. Takes no memory beside the index.
 *  VC_AGAIN: ended by @fn (which may be NULL). */
int vc_rekey_digest(struct vc_rekey *r, const struct vc_lineage *fresh, const struct vc_id *gen,
                    vc_rekey_go_on fn, void *opaque, struct vc_err *err) VC_NODISCARD;
/** What was dropped by that (*all: the list is complete), and how many pages are dropped in all. */
const struct vc_dropped *vc_rekey_dropped(const struct vc_rekey *r, size_t *n, bool *all);
uint64_t vc_rekey_n_dropped(const struct vc_rekey *r);
/** Drops what another host has dropped. VC_E_PROTOCOL: there are no such pages. */
int vc_rekey_drop(struct vc_rekey *r, const struct vc_dropped *d, struct vc_err *err) VC_NODISCARD;
/** Makes the new index durable and locks the VM. VC_E_BUSY: the generation is not the VM's any
 *  more, or the VM is in use; VC_E_UNSETTLED. */
int vc_rekey_prepare(struct vc_rekey *r, uint8_t root_out[VC_ROOT_BYTES],
                     struct vc_err *err) VC_NODISCARD;
/** Switches to the new lineage: generation, key and index at once, the old ones and what is partial
 *  go. @who is noted as having the new key; NULL: nobody. */
int vc_rekey_commit(struct vc_rekey *r, const struct vc_holder *who,
                    struct vc_err *err) VC_NODISCARD;
/** The VM, locked since vc_rekey_prepare(). */
struct vc_vm *vc_rekey_vm(struct vc_rekey *r);
/** A VM without a complete generation, or with one that cannot be read: gets a new lineage, and
 *  loses what there was. VC_NOT_FOUND: no such VM, or it has no lineage. */
int vc_vm_rekey_empty(struct vc_store *s, const struct vc_id *uuid, const struct vc_lineage *fresh,
                      struct vc_err *err) VC_NODISCARD;

/* ---- who may run the VM ---- */

/** The state of a handover between two hosts, kept durably: docs/formats/store.md section 6, and
 *  docs/internals/handover.md for what each allows. */
enum vc_handover_state {
    VC_HANDOVER_NONE = 0,
    VC_HANDOVER_LEAVING = 1,  /* source: migrating; this host's VM is the one that counts */
    VC_HANDOVER_LEFT = 2,     /* source: completed; the destination is to run; word not confirmed */
    VC_HANDOVER_ARRIVING = 3, /* destination: migrating or arrived, paused, waiting for the word */
    VC_HANDOVER_SETTLED = 4,  /* nothing open */
    VC_HANDOVER_VOID = 5,     /* destination: did not arrive, or died before it ran: it is the
                                 source's for good */
    VC_HANDOVER_KEPT = 6,     /* source: the VM is this host's; the destination is to be told so */
    VC_HANDOVER_ABOUT_TO_RUN = 7, /* destination: `cont` is about to be sent, or was */
};

#define VC_HANDOVER_MAX_SETTINGS 24
#define VC_HANDOVER_PATH_BYTES 1024

/** What was changed in QEMU for this migration, to be put back by whoever ends it. */
struct vc_handover_setting {
    uint8_t kind;  /* enum vc_setting_kind */
    char name[32]; /* QEMU's name of it; of a text: what it was */
    uint64_t was;  /* before; of a text: which one (session/settings.h) */
    uint64_t set;  /* by us; anything else found later is somebody else's */
    uint64_t last; /* what we had set before `set`, if a crash came between record and command */
};
enum vc_setting_kind {
    VC_SETTING_CAPABILITY = 1, /* 0 off, 1 on */
    VC_SETTING_PARAMETER = 2,  /* a number */
    VC_SETTING_AUTOSTART = 3,  /* the VM was to start when it has arrived, and was stopped */
    VC_SETTING_TEXT = 4,       /* a parameter with text */
};

/** What QEMU says of a migration for good once it has completed (query-migrate). */
struct vc_handover_sum {
    uint64_t total_ms; /* 0: unknown */
    uint64_t setup_ms, downtime_ms, sent_bytes, rounds, data_pages, zero_pages;
};

struct vc_handover {
    uint8_t state; /* vc_handover_state */
    struct vc_id session;
    uint64_t since_unix;
    char peer[256];         /* source: where to repeat the word (the destination's address);
                               destination: who it comes from */
    char tls_hostname[256]; /* source: the name in the destination's certificate; "": the one in
                               `peer` */
    char socket[VC_HANDOVER_PATH_BYTES]; /* source: its QMP socket; destination: its name */
    bool suspend;                        /* source: the word leaves the VM as it arrives */
    struct vc_process qemu;              /* this host's, or unknown */
    bool has_counts;       /* source: the destination has reported success, and QEMU was told: */
    uint64_t data_records; /* records of pages with content in the stream ... */
    uint64_t zero_records; /* ... and of zero pages */
    uint64_t noted_ns;     /* vc_boot_ns(): until then QEMU had begun no other one; 0: unknown */
    struct vc_handover_sum sum; /* source, from LEFT on: of this migration */
    bool told;           /* KEPT: a decision may have been sent; ABOUT_TO_RUN: one has come */
    bool left_suspended; /* source: the guest was in ACPI S3 when it left */
    bool started_anew;   /* source: another process had the VM's UUID, after its QEMU had ended */
    bool awaits_rest;    /* destination, SETTLED: not all of the VM's memory had come by postcopy */
    uint32_t n_settings;
    struct vc_handover_setting settings[VC_HANDOVER_MAX_SETTINGS];
};

/** Whether it is of a migration away from here, whatever its state: of a destination's QEMU it has
 * the name. */
static inline bool vc_handover_has_path(const struct vc_handover *h)
{
    return strchr(h->socket, '/') != NULL;
}

/** Prepares the record so that a later write of a new state is one overwrite of allocated blocks
 *  plus fdatasync: no journal commit, as it happens while the guest is paused. Writes and syncs
 *  `h` too. Needs a VM open with CREATE or WRITE. */
int vc_handover_begin(struct vc_vm *vm, const struct vc_handover *h,
                      struct vc_err *err) VC_NODISCARD;
/** Removes the record, which nobody keeps up to date any more: a record that could not be begun may
 *  have reached the disk all the same, and would be believed. VC_E_STORE: it is still there. */
int vc_handover_forget(struct vc_vm *vm, struct vc_err *err) VC_NODISCARD;
/** The record that was begun, for changes that the next vc_handover_set() or _note() writes. */
struct vc_handover *vc_handover_edit(struct vc_vm *vm);
/** Durably changes the state (any thread, one at a time). */
int vc_handover_set(struct vc_vm *vm, enum vc_handover_state state,
                    struct vc_err *err) VC_NODISCARD;
/** Writes the record without syncing it: it outlives this process, and after a power loss the
 *  record is this one or the last one that was synced. Thread rule as for vc_handover_set(). */
int vc_handover_note(struct vc_vm *vm, struct vc_err *err) VC_NODISCARD;
/** Reads it; state NONE if there is none. VC_E_CORRUPT if damaged. */
int vc_handover_get(struct vc_vm *vm, struct vc_handover *out, struct vc_err *err) VC_NODISCARD;

/* ---- forgetting: docs/formats/store.md section 7 ---- */

enum vc_policy {
    VC_POLICY_NORMAL = 0,
    VC_POLICY_PINNED = 1, /* never evicted */
    VC_POLICY_NEVER = 2,  /* no checkpoint is kept */
};

/** "normal", ... Static. */
const char *vc_policy_name(enum vc_policy p);
/** False: not the name of a policy. */
bool vc_policy_parse(const char *text, enum vc_policy *out);
/** A VM's policy; NORMAL for one that the store has never seen. VC_E_STORE; VC_E_CORRUPT: nothing
 *  is to be kept, and nothing to be deleted. */
int vc_policy_get(struct vc_store *s, const struct vc_id *uuid, enum vc_policy *out,
                  struct vc_err *err) VC_NODISCARD;
/** Durably sets it; the VM need not exist, and may be in use. What NEVER makes superfluous goes
 *  with the next vc_store_gc(). VC_E_STORE, VC_E_STORE_FULL, VC_E_BUSY (a gc takes long). */
int vc_policy_set(struct vc_store *s, const struct vc_id *uuid, enum vc_policy p,
                  struct vc_err *err) VC_NODISCARD;

#define VC_UNLIMITED UINT64_MAX

/** What the store may take. 0 is the default, VC_UNLIMITED turns a limit off. */
struct vc_limits {
    uint64_t quota_bytes;      /* all VMs; three quarters of what they take and what is free */
    uint64_t peer_quota_bytes; /* those last migrated from or to one peer; no limit */
    uint64_t reserve_bytes;    /* left free on the file system; 5 % of it, 1 GiB at most */
    uint64_t max_age_s;        /* 14 days */
};
/** Sets them, before the store is used. New generations respect the reserve, vc_store_gc() all. */
void vc_store_set_limits(struct vc_store *s, const struct vc_limits *l);
/** As they were set. */
void vc_store_get_limits(const struct vc_store *s, struct vc_limits *out);

/** Why a VM is forgotten. */
enum vc_gc_why {
    VC_GC_POLICY = 1,
    VC_GC_AGE = 2,
    VC_GC_PEER_QUOTA = 3,
    VC_GC_QUOTA = 4,
    VC_GC_RESERVE = 5,
};

struct vc_gc_item {
    struct vc_id vm;
    enum vc_gc_why why;
    uint64_t bytes, age_s;
    const char *peer; /* borrowed; "" if not known */
};

/** The world as a gc sees it, for tests. */
struct vc_gc_env {
    uint64_t wall_s, boot_s;
    struct vc_id boot; /* zero: not known, and boot_s is 0 */
    uint64_t disk_bytes, free_bytes;
};

struct vc_gc_options {
    bool dry_run; /* changes nothing; what would be forgotten is reported */
    void (*report)(void *opaque, const struct vc_gc_item *item); /* may be NULL */
    void *opaque;
    const struct vc_log *log;    /* trouble with single VMs; may be NULL */
    const _Atomic bool *stop;    /* may be NULL */
    const struct vc_gc_env *env; /* NULL: what the kernel says */
    const struct vc_id *as_idle; /* dry_run: a VM that counts as not in use; NULL: none */
};

struct vc_gc_result {
    uint64_t n_vms, n_evicted, n_in_use;
    uint64_t evicted_bytes;
    uint64_t used_bytes, free_bytes; /* afterwards */
    uint64_t quota_bytes, reserve_bytes;
    bool over; /* a limit is exceeded, and there is nothing left to evict */
};

/** Evicts VMs as the limits demand. VMs in use are skipped; trouble with one does not stop the
 *  others. VC_E_BUSY: another one runs for long; VC_E_STORE. Any thread. */
int vc_store_gc(struct vc_store *s, const struct vc_gc_options *o, struct vc_gc_result *out,
                struct vc_err *err) VC_NODISCARD;

#endif
