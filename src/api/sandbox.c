/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "api/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fdio.h"
#include "digest/digest.h"
#include "net/names.h"

void vc_sandbox_protect_memory(void)
{
    struct rlimit none = {0, 0};

    setrlimit(RLIMIT_CORE, &none);
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}

int vc_sandbox_find_user(const char *name, struct vc_sandbox_user *out, struct vc_err *err)
{
    struct passwd *p;

    *out = (struct vc_sandbox_user){0};
    if (!name)
        return 0;
    p = getpwnam(name);
    if (!p)
        return vc_err_set(err, VC_E_USAGE, "there is no user '%s'", name);
    if (geteuid() != 0 && geteuid() != p->pw_uid)
        return vc_err_set(err, VC_E_USAGE, "only root can become user '%s'", name);
    *out = (struct vc_sandbox_user){name, p->pw_uid, p->pw_gid};
    return 0;
}

/* ---- while it is still root ---- */

bool vc_sandbox_has_lesser(const struct vc_sandbox_user *u)
{
    return u->name && geteuid() == 0 && u->uid != 0;
}

int vc_sandbox_borrow(const struct vc_sandbox_user *u, struct vc_sandbox_rights *was,
                      struct vc_err *err)
{
    *was = (struct vc_sandbox_rights){.gid = getegid()};
    if (!vc_sandbox_has_lesser(u))
        return 0;
    was->n_groups = getgroups(VC_ARRAY_LEN(was->groups), was->groups);
    if (was->n_groups < 0)
        was->n_groups = 0;
    was->changed = true;
    if (initgroups(u->name, u->gid) < 0 || setegid(u->gid) < 0 || seteuid(u->uid) < 0) {
        vc_err_set_errno(err, VC_E_FAILED, "cannot become user '%s'", u->name);
        vc_sandbox_give_back(was);
        return VC_E_FAILED;
    }
    return 0;
}

void vc_sandbox_give_back(struct vc_sandbox_rights *was)
{
    int saved = errno;

    if (was->changed && (seteuid(0) < 0 || setegid(was->gid) < 0 ||
                         setgroups((size_t)was->n_groups, was->groups) < 0))
        abort(); /* neither the one nor the other */
    was->changed = false;
    errno = saved;
}

/* The directory that a path is in, and its name there. -1 with errno. */
static int open_parent(const char *path, char name[NAME_MAX + 1])
{
    char dir[PATH_MAX];
    size_t n = strlen(path);
    const char *slash;

    while (n > 1 && path[n - 1] == '/')
        n--;
    if (n >= sizeof(dir)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(dir, path, n);
    dir[n] = 0;
    slash = strrchr(dir, '/');
    if (snprintf(name, NAME_MAX + 1, "%s", slash ? slash + 1 : dir) > NAME_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if (slash)
        dir[slash == dir ? 1 : slash - dir] = 0;
    return open(slash ? dir : ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
}

/* A directory in which nobody but root can put anything in the place of what root makes there. */
static bool is_roots_alone(int dir)
{
    struct stat st;

    return fstat(dir, &st) == 0 && st.st_uid == 0 && !(st.st_mode & 022);
}

int vc_sandbox_look(const char *path, mode_t kind, uid_t owner, int *fd_out)
{
    char name[NAME_MAX + 1];
    vc_auto_close int dir = open_parent(path, name), fd = -1;
    struct stat st;

    fd = dir < 0 ? -1 : openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return -1;
    if ((st.st_mode & S_IFMT) != kind || st.st_uid != owner ||
        (kind == S_IFSOCK && st.st_nlink != 1)) {
        errno = EPERM;
        return -1;
    }
    *fd_out = vc_steal_fd(&fd);
    return 0;
}

bool vc_sandbox_may_as_root(const struct vc_sandbox_user *u, const char *path)
{
    char name[NAME_MAX + 1];
    vc_auto_close int dir = -1;
    bool denied = errno == EACCES || errno == EPERM;
    int saved = errno;

    if (!vc_sandbox_has_lesser(u) || !denied)
        return false;
    dir = open_parent(path, name);
    errno = saved;
    return dir >= 0 && is_roots_alone(dir);
}

int vc_sandbox_give(const struct vc_sandbox_user *u, const char *path, mode_t kind)
{
    vc_auto_close int fd = -1;

    return vc_sandbox_look(path, kind, 0, &fd) < 0
               ? -1
               : fchownat(fd, "", u->uid, u->gid, AT_EMPTY_PATH);
}

static int make_one(const struct vc_sandbox_user *u, const char *path, mode_t mode, bool give)
{
    struct vc_sandbox_rights was;
    struct vc_err err;
    int rc;

    if (vc_sandbox_borrow(u, &was, &err))
        return -1;
    rc = vc_mkdirat(AT_FDCWD, path, mode);
    vc_sandbox_give_back(&was);
    if (rc == 0 || !vc_sandbox_may_as_root(u, path))
        return rc;
    rc = vc_mkdirat(AT_FDCWD, path, mode);
    return rc < 0 || !give ? rc : vc_sandbox_give(u, path, S_IFDIR);
}

int vc_sandbox_make_dir(const struct vc_sandbox_user *u, const char *path, mode_t mode)
{
    char part[PATH_MAX];

    if (snprintf(part, sizeof(part), "%s", path) >= (int)sizeof(part)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    /* Those above, as anybody may enter them; if they cannot be made, the last step says so. */
    for (char *p = part + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = 0;
        if (make_one(u, part, 0755, false) < 0 && errno != EEXIST)
            break;
        *p = '/';
    }
    return make_one(u, path, mode, true);
}

int vc_sandbox_give_store(const struct vc_sandbox_user *u, const char *path, struct vc_err *err)
{
    struct stat st;

    if (!vc_sandbox_has_lesser(u)) {
        if (stat(path, &st) == 0 && st.st_uid != geteuid())
            return vc_err_set_hint(err, VC_E_STORE,
                                   "become it with --user, chown -R it, or name another with "
                                   "--store",
                                   "the store '%s' belongs to user %u", path, (unsigned)st.st_uid);
        return 0;
    }
    if (vc_sandbox_make_dir(u, path, 0700) == 0)
        return 0;
    if (errno != EEXIST || stat(path, &st) < 0)
        return vc_err_set_errno_hint(err, VC_E_STORE, "another directory can be given with --store",
                                     "user '%s' cannot create '%s'", u->name, path);
    if (st.st_uid != u->uid)
        return vc_err_set_hint(err, VC_E_STORE, "chown -R it, or name another with --store",
                               "the store '%s' does not belong to user '%s'", path, u->name);
    return 0;
}

/* ---- for good ---- */

int vc_sandbox_become(const struct vc_sandbox_user *u, struct vc_err *err)
{
    if (!u->name || geteuid() != 0)
        return 0;
    if (initgroups(u->name, u->gid) < 0 || setresgid(u->gid, u->gid, u->gid) < 0 ||
        setresuid(u->uid, u->uid, u->uid) < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot become user '%s'", u->name);
    if (u->uid != 0 && setuid(0) == 0)
        return vc_err_set(err, VC_E_FAILED, "user '%s' could become root again", u->name);
    vc_sandbox_protect_memory(); /* a change of user takes it back */
    return 0;
}

int vc_sandbox_enter(bool strict, bool dials, struct vc_err *err)
{
    uint8_t sum[VC_SHA256_BYTES];

    /* OpenSSL sets itself up at its first use: it opens its configuration, and may load code. */
    if (!vc_sha256("", 0, sum))
        return vc_err_set(err, VC_E_FAILED, "OpenSSL: SHA-256 failed");
    if (vc_names_start(err))
        return VC_E_FAILED;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot give up new privileges");
    return vc_sandbox_filter(strict, dials, err);
}
