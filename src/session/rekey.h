/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SESSION_REKEY_H
#define VC_SESSION_REKEY_H

#include <stdatomic.h>

#include "session/arrival.h"

/* Private to src/session: rekey.c, what both sides of a session of mode 7 do; rekey_ask.c and
 * rekey_answer.c, how each of them begins. */

/* What both sides do, behind START. */
struct rekeying {
    struct vc_store *store;
    const struct vc_log *log;
    struct vc_cancel *cancel; /* may be NULL */
    vc_rekey_progress_fn progress;
    void *opaque;
    struct vc_rekey *r;
    struct vc_lineage fresh;
    struct vc_id gen;
    struct vc_rekey_result *result;

    /* With another host. */
    const struct vc_conn *conn;
    bool listed; /* it is on this host's list of peers */
    struct vc_link *link;
    struct vc_inbox inbox;
    struct vc_thread pump;
    atomic_bool ended;     /* nothing will come any more */
    _Atomic uint64_t done; /* REKEYING: how many pages the other side has come */
    unsigned n_taken;      /* [thread: pump] frames behind REKEYING */
    struct vc_err why;     /* [thread: pump, until `ended`] */
    uint64_t told_ns;
};

/** Digests all pages anew. */
int vc_rekeying_digest(struct rekeying *k, struct vc_err *err) VC_NODISCARD;
/** All that follows START, with another host. The link is in its stream phase, and down
 *  afterwards. */
int vc_rekeying_with_other(struct rekeying *k, struct vc_err *err) VC_NODISCARD;

static inline bool vc_rekeying_is_plaintext(const struct vc_link *link)
{
    return vc_link_security(link) == VC_WIRE_PLAINTEXT;
}

/** From OPEN to START. *out: what is to be re-keyed; the caller's, also on failure (or NULL). */
int vc_arrival_rekey_open(struct arrival *a, struct vc_rekey **out,
                          struct vc_err *err) VC_NODISCARD;
/** All that follows; @r is taken. */
int vc_arrival_rekey(struct arrival *a, struct vc_rekey *r, struct vc_err *err) VC_NODISCARD;

#endif
