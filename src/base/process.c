/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/process.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/err.h"
#include "base/fdio.h"

/** Longer command lines are not looked at: the kernel takes 6 MiB at most (execve(2)), QEMU's are
 *  some KiB long. */
#define MAX_COMMAND_LINE_BYTES (1u << 20)
/** The inode of the PID namespace that has all others below it (Linux: PROC_PID_INIT_INO). */
#define INITIAL_PID_NS 0xeffffffcull
/** Field 22 of /proc/PID/stat; the second field is in parentheses and may hold anything. */
#define FIELDS_AFTER_NAME 20

/* Reads up to n bytes of a file of /proc. Returns the length, or -1. */
static ssize_t read_file(const char *path, char *buf, size_t n)
{
    vc_auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t have = 0;

    if (fd < 0)
        return -1;
    while (have < n) {
        ssize_t got = vc_read_some(fd, buf + have, n - have);

        if (got < 0)
            return -1;
        if (!got)
            break;
        have += (size_t)got;
    }
    return (ssize_t)have;
}

static bool read_start(pid_t pid, uint64_t *start)
{
    char path[64], text[1024], *at;
    ssize_t n;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    n = read_file(path, text, sizeof(text) - 1);
    if (n <= 0)
        return false;
    text[n] = 0;
    at = strrchr(text, ')');
    for (int i = 0; at && i < FIELDS_AFTER_NAME; i++)
        at = strchr(at + 1, ' ');
    if (!at)
        return false;
    errno = 0;
    *start = strtoull(at + 1, NULL, 10);
    return !errno && *start;
}

static bool read_boot(struct vc_id *out)
{
    char text[64];
    ssize_t n = read_file("/proc/sys/kernel/random/boot_id", text, sizeof(text) - 1);

    if (n < VC_ID_TEXT_BYTES - 1)
        return false;
    text[VC_ID_TEXT_BYTES - 1] = 0;
    return vc_id_parse(text, out);
}

/* 32 hexadecimal digits, without an UUID's dashes. */
static void read_machine(struct vc_id *out)
{
    char text[64], id[64];
    ssize_t n = read_file("/etc/machine-id", text, sizeof(text) - 1);

    *out = (struct vc_id){0};
    if (n < 32)
        return;
    snprintf(id, sizeof(id), "%.8s-%.4s-%.4s-%.4s-%.12s", text, text + 8, text + 12, text + 16,
             text + 20);
    if (!vc_id_parse(id, out))
        *out = (struct vc_id){0};
}

static uint64_t inode_of(const char *path)
{
    struct stat st;

    return stat(path, &st) ? 0 : st.st_ino;
}

/* Where a pid and a start time mean what they mean. False: it cannot be told. */
static bool read_frame(struct vc_process *p)
{
    p->pid_ns = inode_of("/proc/self/ns/pid");
    p->time_ns = inode_of("/proc/self/ns/time");
    read_machine(&p->machine);
    return p->pid_ns && read_boot(&p->boot);
}

/* Whether /proc shows pids as this process's namespace has them: a container may see another one's
 * (proc(5): "Pid:" of a pidfd is in the namespace of that mount). */
static bool is_own_proc(pid_t pid, int pidfd)
{
    char path[64], text[1024], *at;
    ssize_t n;

    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
    n = read_file(path, text, sizeof(text) - 1);
    if (n <= 0)
        return false;
    text[n] = 0;
    at = strstr(text, "Pid:");
    return at && atoi(at + strlen("Pid:")) == pid;
}

bool vc_process_read(pid_t pid, struct vc_process *out)
{
    struct vc_process p = {.pid = pid};
    vc_auto_close int pidfd = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;

    *out = (struct vc_process){0};
    if (pidfd < 0 || !is_own_proc(pid, pidfd) || !read_start(pid, &p.start) || !read_frame(&p))
        return false;
    *out = p;
    return true;
}

bool vc_process_equal(const struct vc_process *a, const struct vc_process *b)
{
    return vc_process_is_known(a) && a->pid == b->pid && a->start == b->start &&
           vc_id_equal(&a->boot, &b->boot) && a->pid_ns == b->pid_ns && a->time_ns == b->time_ns;
}

bool vc_process_is_younger(pid_t pid, const struct vc_process *p)
{
    struct vc_process other;

    if (pid <= 0)
        return false;
    return !vc_process_read(pid, &other) || !vc_process_is_known(p) ||
           !vc_id_equal(&other.boot, &p->boot) || other.time_ns != p->time_ns ||
           other.start > p->start;
}

/* Another boot, as seen from @now: of this machine? */
static bool is_elsewhere(const struct vc_process *p, const struct vc_process *now)
{
    return !vc_id_equal(&p->boot, &now->boot) &&
           (vc_id_is_nil(&p->machine) || !vc_id_equal(&p->machine, &now->machine));
}

bool vc_process_is_elsewhere(const struct vc_process *p)
{
    struct vc_process now = {0};

    return vc_process_is_known(p) && read_frame(&now) && is_elsewhere(p, &now);
}

enum vc_process_life vc_process_look(const struct vc_process *p)
{
    struct vc_process now = {0};
    vc_auto_close int pidfd = -1;
    uint64_t start;

    if (!vc_process_is_known(p) || !read_frame(&now))
        return VC_PROCESS_IN_DOUBT;
    if (is_elsewhere(p, &now))
        return VC_PROCESS_IN_DOUBT;
    if (!vc_id_equal(&p->boot, &now.boot))
        return VC_PROCESS_GONE;
    if (p->pid_ns != now.pid_ns || p->time_ns != now.time_ns)
        return VC_PROCESS_IN_DOUBT;
    pidfd = (int)syscall(SYS_pidfd_open, p->pid, 0);
    if (pidfd < 0)
        return errno == ESRCH ? VC_PROCESS_GONE : VC_PROCESS_IN_DOUBT;
    /* Whichever process the descriptor is of: it is this one, or this one is gone. */
    if (vc_wait_readable(pidfd, 0) > 0)
        return VC_PROCESS_GONE;
    if (!is_own_proc(p->pid, pidfd) || !read_start(p->pid, &start))
        return VC_PROCESS_IN_DOUBT;
    return start == p->start ? VC_PROCESS_ALIVE : VC_PROCESS_GONE;
}

/* The option's name behind one dash or two, as QEMU takes it (QEMU: softmmu/vl.c, lookup_opt()). */
static bool is_option(const char *word, const char *name)
{
    if (*word != '-')
        return false;
    word += word[1] == '-' ? 2 : 1;
    return !strcmp(word, name);
}

/* 1: so it is; 0: it is not, or has ended; -1: its command line cannot be read. */
static int has_option(pid_t pid, const char *name, bool (*value)(void *opaque, const char *text),
                      void *opaque)
{
    vc_auto_free char *line = malloc(MAX_COMMAND_LINE_BYTES + 1);
    const char *word, *end;
    char path[64];
    ssize_t n;

    snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
    n = line ? read_file(path, line, MAX_COMMAND_LINE_BYTES) : -1;
    if (n <= 0)
        return n && errno != ENOENT && errno != ESRCH ? -1 : 0;
    line[n] = 0;
    end = line + n;
    for (word = line; word < end; word += strlen(word) + 1) {
        const char *next = word + strlen(word) + 1;

        if (is_option(word, name) && (!value || (next < end && value(opaque, next))))
            return 1;
    }
    return n < MAX_COMMAND_LINE_BYTES ? 0 : -1;
}

bool vc_process_has_option(pid_t pid, const char *name,
                           bool (*value)(void *opaque, const char *text), void *opaque)
{
    return has_option(pid, name, value, opaque) == 1;
}

bool vc_process_option_is_id(void *opaque, const char *text)
{
    const struct vc_id *want = opaque;
    struct vc_id have;

    return vc_id_parse(text, &have) && vc_id_equal(&have, want);
}

/* ---- all processes ---- */

/* Of a line of mountinfo (proc_pid_mountinfo(5)): *hides, if it is what is mounted at /proc. */
static void take_mount(const char *line, bool *found, bool *hides)
{
    char point[8];
    const char *options = strstr(line, " - ");

    if (sscanf(line, "%*s %*s %*s %*s %7s", point) != 1 || strcmp(point, "/proc") != 0)
        return;
    *found = true; /* the last one is on top */
    *hides = !options || strstr(options, "hidepid=");
}

/* Whether processes of other users are hidden in /proc, or may be. Also from root, without a look
 * at its capabilities: then it cannot be told, and a person looks. */
static bool proc_hides(void)
{
    FILE *f = fopen("/proc/self/mountinfo", "re");
    vc_auto_free char *line = NULL;
    bool found = false, hides = true;
    size_t n = 0;

    while (f && getline(&line, &n, f) > 0)
        take_mount(line, &found, &hides);
    if (f)
        fclose(f);
    return !found || hides;
}

/* Whether /proc shows all processes among which that one was. */
static bool sees_all(const struct vc_process *p)
{
    vc_auto_close int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    uint64_t here = inode_of("/proc/self/ns/pid");

    return pidfd >= 0 && is_own_proc(getpid(), pidfd) && !proc_hides() &&
           (here == p->pid_ns || here == INITIAL_PID_NS);
}

pid_t vc_process_find_option(const struct vc_process *p, const char *name,
                             bool (*value)(void *opaque, const char *text), void *opaque,
                             pid_t except)
{
    DIR *dir = sees_all(p) ? opendir("/proc") : NULL;
    pid_t found = dir ? 0 : -1;
    struct dirent *e;

    while (dir && found <= 0 && (errno = 0, e = readdir(dir))) {
        pid_t pid = isdigit((unsigned char)e->d_name[0]) ? atoi(e->d_name) : except;
        int has = pid == except ? 0 : has_option(pid, name, value, opaque);

        if (has)
            found = has < 0 ? -1 : pid;
    }
    if (!found && errno)
        found = -1;
    if (dir)
        closedir(dir);
    return found;
}
