/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_API_SETTLER_H
#define VC_API_SETTLER_H

#include "api/api.h"
#include "base/thread.h"

/* Private to src/api: what settle.c, which has other hosts told, and look.c, which looks at this
 * host's own QEMUs, have in common. */

/* What a thread waits for. */
enum vc_settler_news {
    VC_NEWS_TO_SETTLE = 1, /* for vc-settle: something may be open that was not */
    VC_NEWS_TO_LOOK = 2,   /* the same for vc-look */
    VC_NEWS_CALLED = 4,    /* a call has ended */
    VC_NEWS_LOOKED = 8,    /* a look at a VM has ended */
};

struct peer;
struct watch;

struct vc_settler {
    struct vc_store *store;
    struct vc_log log;
    const char *socket_dir;
    const struct vecycle_agent_options *agent;
    struct vc_cancel cancel;
    struct vc_thread thread, looker;
    struct peer *peers;    /* [thread: vc-settle] */
    struct watch *watches; /* [thread: vc-look] */
    pthread_mutex_t mu;
    pthread_cond_t changed;
    unsigned news;     /* [lock: mu] */
    bool looked_first; /* [lock: mu] all that was open when the agent started was looked at once */
    bool stop;         /* [lock: mu] */
};

/* ---- settle.c ---- */

/** The VM's record as it is, without the lock. False: it cannot be read, or there is none. */
bool vc_settler_read(struct vc_settler *s, const struct vc_id *vm, struct vc_handover *h);
/** For a look at that VM, and for its word. */
struct vc_settle_options vc_settler_options(struct vc_settler *s, const struct vc_id *vm);
/** A way through ssh is for whoever has the keys: what is left is to look. */
bool vc_settler_can_call(const struct vc_handover *h);
/** Whether something is to be done for that record that may succeed another time. */
bool vc_settler_is_open(const struct vc_handover *h);
/** Whether there is something new; waits for it until the deadline (0: for ever). *got: what.
 *  False: it is time to end. */
bool vc_settler_wait(struct vc_settler *s, unsigned which, uint64_t deadline, unsigned *got);
/** Wakes those who wait for that. */
void vc_settler_tell(struct vc_settler *s, unsigned news);

/* ---- look.c ---- */

/** What this host knows of the VM by itself, also while the other one is away. @h: the record as it
 *  was read, and then as it is. True: the other host has to be told something, and can be. *open:
 *  something is open, and another look may help. */
bool vc_settler_look_at(struct vc_settler *s, const struct vc_id *vm, struct vc_handover *h,
                        bool *open);
/** Starts vc-look, and waits until all that is open was looked at once; not for long, since one
 *  QEMU may not answer. */
int vc_looker_start(struct vc_settler *s, struct vc_err *err) VC_NODISCARD;

#endif
