/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_API_REKEY_H
#define VC_API_REKEY_H

#include "api/api.h"

/* Private to src/api: re-keying on demand (rekey.c), and by an agent whose list of peers has become
 * shorter (rekeyer.c). */

/** The other host of a VM's newest complete checkpoint. */
struct vc_rekey_peer {
    char name[256];         /* as the checkpoint's note has it */
    char address[256];      /* where it is reached */
    char tls_hostname[256]; /* the name in its certificate; "": the address's */
    bool asks;              /* this host knows the address from having called it */
};

/** 0; VC_NOT_FOUND: there is no such checkpoint; VC_E_USAGE: it cannot be told where it is. */
int vc_rekey_find_peer(struct vc_vm *vm, struct vc_rekey_peer *out,
                       struct vc_err *err) VC_NODISCARD;
/** Whether a name of a host is one that the pattern means. */
bool vc_peer_matches(const char *pattern, const char *name);
/** Whether a checkpoint's note names that host, by its address or by its certificate. */
bool vc_rekey_is_of(const char *peer, const char *host);

/* ---- rekeyer.c: the agent's thread ---- */

struct vc_rekeyer;
/** Re-keys what hosts know that are no longer on the list @allow: at once, and whenever the list
 * has changed. Borrows all that it is given. */
int vc_rekeyer_start(struct vc_store *store, const char *allow, const struct vc_log *log,
                     const struct vecycle_tls *tls, struct vc_rekeyer **out,
                     struct vc_err *err) VC_NODISCARD;
/** Somebody may have been given a key. Any thread; NULL is fine, likewise below. */
void vc_rekeyer_poke(struct vc_rekeyer *k);
void vc_rekeyer_stop(struct vc_rekeyer *k);

#endif
