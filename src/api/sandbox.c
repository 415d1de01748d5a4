/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "api/sandbox.h"

#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <netdb.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "digest/digest.h"

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

/* The directories above, as anybody may enter them. */
static void make_parents(const char *path)
{
    char part[PATH_MAX];

    snprintf(part, sizeof(part), "%s", path);
    for (char *p = part + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = 0;
        if (mkdir(part, 0755) < 0 && errno != EEXIST)
            return; /* the next step says what is wrong */
        *p = '/';
    }
}

int vc_sandbox_give_store(const struct vc_sandbox_user *u, const char *path, struct vc_err *err)
{
    struct stat st;

    if (!u->name || geteuid() != 0)
        return 0;
    make_parents(path);
    if (mkdir(path, 0700) == 0) {
        if (lchown(path, u->uid, u->gid) < 0)
            return vc_err_set_errno(err, VC_E_STORE, "cannot give '%s' to user '%s'", path,
                                    u->name);
        return 0;
    }
    if (errno != EEXIST || stat(path, &st) < 0)
        return vc_err_set_errno_hint(err, VC_E_STORE, "another directory can be given with --store",
                                     "cannot create '%s'", path);
    if (st.st_uid != u->uid)
        return vc_err_set_hint(err, VC_E_STORE, "chown -R it, or name another with --store",
                               "the store '%s' does not belong to user '%s'", path, u->name);
    return 0;
}

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

/* So does libc's resolver, and it may load code for it. */
static void set_up_resolver(void)
{
    struct addrinfo want = {.ai_socktype = SOCK_STREAM}, *list;

    if (getaddrinfo("localhost", NULL, &want, &list) == 0)
        freeaddrinfo(list);
}

int vc_sandbox_enter(bool strict, bool dials, struct vc_err *err)
{
    uint8_t sum[VC_SHA256_BYTES];

    /* OpenSSL sets itself up at its first use: it opens its configuration, and may load code. */
    if (!vc_sha256("", 0, sum))
        return vc_err_set(err, VC_E_FAILED, "OpenSSL: SHA-256 failed");
    if (dials)
        set_up_resolver();
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot give up new privileges");
    return vc_sandbox_filter(strict, dials, err);
}
