/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_API_SANDBOX_H
#define VC_API_SANDBOX_H

#include <stdbool.h>

#include "base/err.h"

/* Private to src/api: what an agent gives up once it has opened what it needs. It changes the
 * process for good: docs/SECURITY.md. */

/** No core dumps, no debugger of another user: the process holds what is in guests' memory. */
void vc_sandbox_protect_memory(void);

/** The user to become. */
struct vc_sandbox_user {
    const char *name; /* NULL: nobody else */
    unsigned uid, gid;
};
/** Looks the name up. VC_E_USAGE: there is none, or we are not root and somebody else. */
int vc_sandbox_find_user(const char *name, struct vc_sandbox_user *out,
                         struct vc_err *err) VC_NODISCARD;
/** Makes the store's directory if it is missing, for that user. VC_E_STORE: it belongs to another.
 */
int vc_sandbox_give_store(const struct vc_sandbox_user *u, const char *path,
                          struct vc_err *err) VC_NODISCARD;
/** Becomes that user, with its groups, for good. */
int vc_sandbox_become(const struct vc_sandbox_user *u, struct vc_err *err) VC_NODISCARD;

/** No new privileges, and only the system calls that a running agent needs, for this thread and
 *  those that it starts. @strict: any other call ends the process, else it fails with ENOSYS.
 *  @dials: connects to other hosts too. 0; VC_NOT_FOUND: this build cannot filter system calls (the
 *  rest is done). */
int vc_sandbox_enter(bool strict, bool dials, struct vc_err *err) VC_NODISCARD;

/** sandbox_seccomp.c or sandbox_none.c. */
int vc_sandbox_filter(bool strict, bool dials, struct vc_err *err) VC_NODISCARD;

#endif
