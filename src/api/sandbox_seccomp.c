/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <linux/fs.h>
#include <linux/sockios.h>
#include <sched.h>
#include <seccomp.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "api/sandbox.h"

/* The calls of an agent that has opened its listeners and its store, as strace -f sees them over
 * migrations there and back, by proxy, over three hosts, with damage and with folding; and those
 * beside them that another libc may use for the same. No programs are started, no code is mapped.
 * An agent is handed its connections; it opens some itself only for tls:// destinations and where
 * it gives a lost word again (settle.c), by TLS or, with --insecure, by plain TCP. */

static const char *const allowed[] = {
    /* memory and threads */
    "brk", "madvise", "mremap", "munmap", "futex", "rseq", "set_robust_list", "set_tid_address",
    "sched_yield", "sched_getaffinity", "membarrier", "exit", "exit_group", "gettid", "getpid",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall",
    /* time, and what one is */
    "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time",
    "getrandom", "getuid", "geteuid", "getgid", "getegid", "prlimit64", "getrlimit", "sysinfo",
    "uname",
    /* waiting */
    "poll", "ppoll", "select", "pselect6", "epoll_create1", "epoll_ctl", "epoll_wait",
    "epoll_pwait", "eventfd2", "timerfd_create", "timerfd_settime", "signalfd4", "pipe2",
    /* any descriptor */
    "read", "readv", "write", "writev", "close", "close_range", "dup", "dup2", "dup3", "fcntl",
    "fstat", "newfstatat", "statx", "lseek", "splice",
    /* whether a QEMU that does not answer is gone */
    "pidfd_open",
    /* sockets that are there */
    "accept4", "bind", "listen", "connect", "socketpair", "shutdown", "sendmsg", "sendto",
    "recvmsg", "recvfrom", "setsockopt", "getsockopt", "getsockname", "getpeername",
    /* files */
    "openat", "openat2", "pread64", "preadv", "preadv2", "pwrite64", "pwritev", "ftruncate",
    "fallocate", "fadvise64", "copy_file_range", "fsync", "fdatasync", "sync_file_range", "flock",
    "getdents64", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "unlink", "unlinkat",
    "rmdir", "fstatfs", "statfs", "access", "faccessat", "faccessat2", "readlink", "readlinkat",
    "stat", "lstat", "open", "fchmod", "chmod", "fchmodat", "ioprio_set", "umask", "getcwd"};

/* Connections to other hosts. Names are looked up by another process. */
static const int families[] = {AF_INET, AF_INET6};

static int add(scmp_filter_ctx ctx, uint32_t action, const char *name, unsigned n,
               const struct scmp_arg_cmp *args)
{
    int nr = seccomp_syscall_resolve_name(name);

    /* Not known to this libseccomp, or not a call of this machine: then nobody makes it. */
    return nr == __NR_SCMP_ERROR ? 0 : seccomp_rule_add_array(ctx, action, nr, n, args);
}

struct rule {
    const char *name;
    struct scmp_arg_cmp arg;
};

/* That others cannot be called is an error of the call, in a strict sandbox too: who calls is told
 * so, and the agent works on for everybody else. */
static int add_network(scmp_filter_ctx ctx, bool dials)
{
    uint32_t action = dials ? SCMP_ACT_ALLOW : SCMP_ACT_ERRNO(EACCES);
    int rc = 0;

    for (size_t i = 0; i < VC_ARRAY_LEN(families) && !rc; i++) {
        struct scmp_arg_cmp family = SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)families[i]);

        rc = add(ctx, action, "socket", 1, &family);
    }
    return rc;
}

/* What libraries only try. (A rule that does what the default does is not taken.) */
static int add_refused(scmp_filter_ctx ctx)
{
    const struct scmp_arg_cmp netlink = SCMP_A0(SCMP_CMP_EQ, AF_NETLINK);
    int rc = add(ctx, SCMP_ACT_ERRNO(ENOSYS), "clone3", 0, NULL);

    if (!rc)
        rc = add(ctx, SCMP_ACT_ERRNO(EACCES), "socket", 1, &netlink);
    if (!rc)
        rc = add(ctx, SCMP_ACT_ERRNO(EPERM), "setfsuid", 0, NULL);
    return rc ? rc : add(ctx, SCMP_ACT_ERRNO(EPERM), "setfsgid", 0, NULL);
}

static int add_all(scmp_filter_ctx ctx, bool strict)
{
    const struct rule rules[] = {
        /* Threads, no processes; without clone3, whose flags cannot be seen, libc uses clone. */
        {"clone", SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD)},
        /* No new code. */
        {"mmap", SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0)},
        {"mprotect", SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0)},
        /* The destination's QEMU is reached through Unix sockets. */
        {"socket", SCMP_A0(SCMP_CMP_EQ, AF_UNIX)},
        {"prctl", SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME)},
        {"prctl", SCMP_A0(SCMP_CMP_EQ, 0x53564d41 /* PR_SET_VMA: names for malloc's memory */)},
        {"ioctl", SCMP_A1(SCMP_CMP_EQ, FICLONE)},
        {"ioctl", SCMP_A1(SCMP_CMP_EQ, FICLONERANGE)},
        {"ioctl", SCMP_A1(SCMP_CMP_EQ, FIONREAD)},
        /* The zone of an address, by name and by number. */
        {"ioctl", SCMP_A1(SCMP_CMP_EQ, SIOCGIFINDEX)},
        {"ioctl", SCMP_A1(SCMP_CMP_EQ, SIOCGIFNAME)},
        {"tgkill", SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid())}, /* abort() */
    };
    int rc = strict ? add_refused(ctx) : 0;

    for (size_t i = 0; i < VC_ARRAY_LEN(allowed) && !rc; i++)
        rc = add(ctx, SCMP_ACT_ALLOW, allowed[i], 0, NULL);
    for (size_t i = 0; i < VC_ARRAY_LEN(rules) && !rc; i++)
        rc = add(ctx, SCMP_ACT_ALLOW, rules[i].name, 1, &rules[i].arg);
    return rc;
}

int vc_sandbox_filter(bool strict, bool dials, struct vc_err *err)
{
    /* As a kernel without the call would say, so that libraries that only try one go on. */
    scmp_filter_ctx ctx = seccomp_init(strict ? SCMP_ACT_KILL_PROCESS : SCMP_ACT_ERRNO(ENOSYS));
    int rc = ctx ? add_all(ctx, strict) : -ENOMEM;

    if (!rc)
        rc = add_network(ctx, dials);
    if (!rc)
        rc = seccomp_load(ctx);
    seccomp_release(ctx);
    errno = -rc;
    return rc ? vc_err_set_errno_hint(err, VC_E_FAILED, "--sandbox off does without",
                                      "the kernel does not take the filter of system calls")
              : 0;
}
