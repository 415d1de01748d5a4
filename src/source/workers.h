/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SOURCE_WORKERS_H
#define VC_SOURCE_WORKERS_H

#include <pthread.h>

#include "base/thread.h"
#include "source/pack.h"

/* Private to src/source: threads that pack batches ahead of the sender, side by side. Frames come
 * out in the order in which their batches went in. Thread rule: all functions are the sender's. */

#define VC_PACK_WORKERS_MAX 4
/* Batches that are packed or wait for their turn: a worker that is done has another one. */
#define VC_PACK_AHEAD_MAX (VC_PACK_WORKERS_MAX + 1)

struct vc_pack_job {
    struct vc_src_batch *batch; /* a reference */
    enum vc_src_form form;
    int level;
    bool done;                   /* [lock: mu] */
    struct vc_link_frame *frame; /* [lock: mu] NULL, although it is done: no memory */
};

struct vc_pack_workers;

struct vc_pack_worker {
    struct vc_thread thread;
    struct vc_packer packer; /* [thread: the worker] */
    struct vc_pack_workers *all;
};

struct vc_pack_workers {
    unsigned n;            /* [const after start] */
    struct vc_queue *wake; /* likewise */
    pthread_mutex_t mu;
    pthread_cond_t changed;
    struct vc_pack_job jobs[VC_PACK_AHEAD_MAX]; /* number k at k modulo their count */
    uint64_t given, begun, finished;            /* [lock: mu] numbers of jobs */
    bool stop;                                  /* [lock: mu] */
    struct vc_pack_worker workers[VC_PACK_WORKERS_MAX];
};

/** @wake: poked whenever a frame is done; borrowed. @n: at most VC_PACK_WORKERS_MAX; 0: none. The
 * others as for vc_packer_init(). Where not all of them can be started there are less.
 * vc_pack_workers_fini() in any case. */
void vc_pack_workers_init(struct vc_pack_workers *w, struct vc_queue *wake, unsigned n,
                          const struct vc_gen *gen, const int *map,
                          const struct vc_lineage *lineage, const struct vc_log *log);
/** Ends and joins them. Nothing may be pending. */
void vc_pack_workers_fini(struct vc_pack_workers *w);

/** Batches that were given and not taken back. */
unsigned vc_pack_workers_pending(struct vc_pack_workers *w);
/** Whether another one can be given. */
bool vc_pack_workers_have_room(struct vc_pack_workers *w);
/** Whether the oldest one is done. */
bool vc_pack_workers_are_ready(struct vc_pack_workers *w);
/** Takes the reference. @form: PLAIN or DELTA. @level: not 0. */
void vc_pack_workers_give(struct vc_pack_workers *w, struct vc_src_batch *b, enum vc_src_form form,
                          int level);
/** Waits for the oldest one, and takes it back with its frame (NULL: no memory). */
struct vc_src_batch *vc_pack_workers_take(struct vc_pack_workers *w, struct vc_link_frame **frame);

#endif
