/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_API_SANDBOX_H
#define VC_API_SANDBOX_H

#include <stdbool.h>
#include <sys/types.h>

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
/** Whether there is such a user, and we are still root. */
bool vc_sandbox_has_lesser(const struct vc_sandbox_user *u);

/* What an agent makes for that user while it is root: never by path what that user, or another one,
 * could have put something else in the place of. It is made with the user's rights, and so belongs
 * to it from its first moment on; in a directory in which only root may write, as root, and given
 * away by a descriptor. */

struct vc_sandbox_rights {
    bool changed;
    gid_t gid, groups[256];
    int n_groups;
};
/** Has only the user's rights until vc_sandbox_give_back(), which keeps errno. Nothing happens
 *  without a lesser user. The whole process: while there is one thread. */
int vc_sandbox_borrow(const struct vc_sandbox_user *u, struct vc_sandbox_rights *was,
                      struct vc_err *err) VC_NODISCARD;
void vc_sandbox_give_back(struct vc_sandbox_rights *was);
/** The user could not make that path (errno), and root may, safely. Keeps errno. */
bool vc_sandbox_may_as_root(const struct vc_sandbox_user *u, const char *path);
/** Gives the user what root has made at the path (S_IFDIR, S_IFSOCK). 0 or -1 with errno. */
int vc_sandbox_give(const struct vc_sandbox_user *u, const char *path, mode_t kind) VC_NODISCARD;
/** An O_PATH descriptor of what stands there, if it is of that kind and that owner's. 0, -1. */
int vc_sandbox_look(const char *path, mode_t kind, uid_t owner, int *fd_out) VC_NODISCARD;
/** Makes a directory for that user, and those above. 0, or -1 with errno (EEXIST). */
int vc_sandbox_make_dir(const struct vc_sandbox_user *u, const char *path,
                        mode_t mode) VC_NODISCARD;
/** Makes the store's directory if it is missing, for that user. VC_E_STORE: it belongs to another,
 *  also where there is no other user to become. */
int vc_sandbox_give_store(const struct vc_sandbox_user *u, const char *path,
                          struct vc_err *err) VC_NODISCARD;
/** Becomes that user, with its groups, for good. */
int vc_sandbox_become(const struct vc_sandbox_user *u, struct vc_err *err) VC_NODISCARD;

/** No new privileges, and only the system calls that a running agent needs, for this thread and
 *  those that it starts; names are looked up by another process (net/names.h). @strict: any other
 *  call ends the process, else it fails with ENOSYS. @dials: connects to other hosts too; else that
 *  fails (EACCES), and ends nothing. 0; VC_NOT_FOUND: this build cannot filter system calls (the
 *  rest is done). */
int vc_sandbox_enter(bool strict, bool dials, struct vc_err *err) VC_NODISCARD;

/** sandbox_seccomp.c or sandbox_none.c. */
int vc_sandbox_filter(bool strict, bool dials, struct vc_err *err) VC_NODISCARD;

#endif
