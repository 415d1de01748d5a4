/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef DAMAGE_H
#define DAMAGE_H

#include <pthread.h>

#include "sanitized.h"
#include "synthetic.h"

#include "session/session.h"
#include "store/store.h"

/* Whole sessions (both sides of a proxied migration, negotiation and commit included) over a
 * connection that can be tampered with, on stores that can be damaged and put back. QEMU's part is
 * played by threads with a synthetic stream; what the destination's gets is compared as it comes.
 *
 * VC_TEST_SCALE multiplies the number of places (default 1). */

/* ---- the connection: damage_filter.c ---- */

#define FRAME_HEAD 8u /* length, type, flags, channel */

struct filter;

/** Sees every frame, head and payload, and may change it. Returns how many bytes of it pass: fewer
 *  than n, and the connection is cut there. Thread: that of the direction. */
typedef size_t (*filter_fn)(struct filter *f, bool to_dest, uint8_t *frame, size_t n);

struct filter {
    filter_fn on_frame;
    void *opaque;
    bool gated;      /* the source's QEMU waits until the announcement has been taken in */
    size_t pause_at; /* the source's QEMU writes no more than that; 0: all */

    int fds[2][2]; /* [to_dest]: in, out; private from here on */
    pthread_t threads[2];
    pthread_mutex_t mu;
    pthread_cond_t changed;
    bool open;               /* [lock: mu] the gate */
    _Atomic size_t got;      /* what the destination's QEMU has been given */
    _Atomic uint64_t passed; /* frames that are not only a sign of life */
    bool side;               /* [lock: mu] all of QEMU's second connection has arrived */
    bool over;               /* [lock: mu] a session has ended: wait for nothing */
};

static inline uint8_t frame_type(const uint8_t *frame)
{
    return frame[4];
}
void filter_await_gate(struct filter *f);
/** Until filter_side_came(), or a session has ended. */
void filter_await_side(struct filter *f);
void filter_side_came(struct filter *f);
/** Until a session has ended. */
void filter_await_end(struct filter *f);
/** A session has ended: opens the gate for good. */
void filter_end(struct filter *f);
/** Starts; *source_fd and *dest_fd are the two ends. */
void filter_start(struct filter *f, int *source_fd, int *dest_fd);
void filter_join(struct filter *f);

/* ---- hosts and sessions: damage_lab.c ---- */

struct file {
    char name[64];
    uint8_t *data;
    size_t n;
};
/** What a host holds of the VM, kept in memory to start from again and again. */
struct pristine {
    struct file files[16];
    unsigned n;
};

struct lab_host {
    char root[96], vm_dir[192];
    struct vc_store *store;
};

/* Two hosts; the VM leaves host 1 and returns to host 0, unless said otherwise. */
struct lab {
    char dir[64];
    int listener; /* the destination's QEMU */
    struct lab_host host[2];
    struct vc_store *slow; /* host 0's, read from a slow disk */
    struct vc_io slow_io;
    struct pristine kept[2];        /* both have the same generation: an image and two deltas */
    struct pristine parted[2];      /* host 0 has an older one than host 1 */
    struct memory shared;           /* as `kept` has it */
    struct memory memory;           /* as host 1 of `parted` has it */
    struct memory now;              /* as it is when it returns */
    struct buf stream;              /* the migration of `now` */
    struct buf shifted;             /* the same, and every page has moved */
    struct buf rounds;              /* a migration of `now` in which every page comes many times */
    struct buf recorded;            /* a migration that a real QEMU has sent */
    struct pristine recorded_at[2]; /* both have the generation of it */
    unsigned scale;
    const struct vc_log *log; /* of both sessions; NULL: none */
};

/** Numbers that say what is damaged, and where. rng() has a state for each source file, which
 *  nobody seeds but in the one with main(). */
uint64_t lab_rng(void);
void lab_rng_seed(uint64_t seed);

void lab_init(struct lab *lab);
void lab_fini(struct lab *lab);
/** Reads a stream of the corpus into `recorded`, and lets the VM go from host 0 to host 1 by it. */
void lab_record(struct lab *lab, const char *name);
void lab_restore(struct lab *lab, const struct pristine p[2]);

struct visit_side {
    int rc;
    struct vc_err err;
    struct vc_session_result result;
};

struct visit {
    int from;                 /* the host that the VM leaves */
    const struct buf *stream; /* NULL: the lab's */
    struct filter *filter;    /* NULL: none */
    uint32_t dead_peer_ms;    /* 0: as usual */
    bool second;              /* QEMU makes a second connection; needs a filter */
    bool slow_disk;           /* the destination's; the VM comes to host 0 */
    size_t dest_ends_at;      /* the destination's QEMU goes away there; 0: never */

    struct visit_side source, dest;
    bool whole;      /* all bytes came out, and were right */
    bool wrong;      /* some byte that came out was not */
    bool side_whole; /* all bytes of the second connection came out, and were right */
    bool stalled;    /* it had to be cancelled */
};
void lab_visit(struct lab *lab, struct visit *v);

/** Pages of the host's newest generation that are not what its index says; -1: it has none. */
long lab_bad_pages(struct lab *lab, int host);
extern const struct vc_id lab_vm_id;
/** Close it afterwards. */
struct vc_vm *lab_open_vm(struct lab *lab, int host, enum vc_vm_open mode);
bool lab_has_generation(struct lab *lab, int host);
bool lab_has_complete(struct lab *lab, int host);
/** The digest of a page under the lineage of a host. */
void lab_digest(struct lab *lab, int host, unsigned page, uint32_t version, struct vc_digest *out);

/** damage_store.c: every page of the host's images differs from what its index says. */
void spoil_images(const struct lab_host *h, const struct pristine *p);

/* ---- judging: damage_tally.c ---- */

enum verdict { INTACT, REPAIRED, RESENT, NO_REUSE, FAILED, N_VERDICTS };

/** What must hold of every visit, whatever was damaged. */
enum verdict judge(const struct visit *v);
/** What is damaged. */
enum victim { IMAGE, DELTA, INDEX, MANIFEST, WIRE, N_VICTIMS };

/** What `workers` processes count can be printed by their parent; before they are forked. */
void tally_init(unsigned workers);
/** The caller is that worker. */
void tally_as(unsigned worker);
/** Counts it under a kind of damage. */
void tally(enum victim victim, const char *kind, unsigned places, enum verdict v);
/** The places that all workers have counted. */
unsigned tallied_places(enum victim victim);
void print_tally(void);
/** As judge() and tally(); after a failure the same visit without damage must succeed. */
enum verdict conclude(struct lab *lab, struct visit *v, enum victim victim, const char *kind,
                      unsigned places);

/* ---- the kinds: damage_store.c, damage_wire.c, damage_order.c ---- */

extern struct lab *the_lab;

/** A visit mostly waits for threads and sockets, so several processes share the places, each with a
 *  laboratory of its own. This one is the_worker. */
#define WORKERS 8u
/* A worker's share of n visits: some, under a sanitizer a quarter, and of that a quarter where it
 * is the one for threads. */
static inline unsigned lab_share(const struct lab *lab, unsigned n)
{
    unsigned share = (n * lab->scale + WORKERS - 1) / WORKERS;

    return share / (THREAD_SANITIZED ? 16 : SANITIZED ? 4 : 1) + SANITIZED;
}
extern unsigned the_worker;

/** The destination's files, before the VM returns with the stream that was recorded. */
void damaged_store_of_a_recording(struct lab *lab);
void damaged_stores_are_repaired_or_not_used(void **state);
void damaged_frames_are_noticed(void **state);
void damage_meets_what_a_real_qemu_has_sent(void **state);
void a_damaged_word_settles_nothing_that_is_not_so(void **state);
void a_connection_cut_anywhere_can_be_tried_again(void **state);
void a_seal_that_fails_twice_quarantines_both_ends(void **state);
void a_false_prefix_costs_a_batch_and_no_page(void **state);
void a_repair_gives_the_page_of_its_place_in_the_stream(void **state);
void a_source_does_not_wait_for_an_answer_that_has_passed(void **state);
void the_end_of_a_package_waits_for_a_seal_that_is_right(void **state);

#endif
