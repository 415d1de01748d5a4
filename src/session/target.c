/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fdio.h"
#include "qmp/qmp.h"
#include "session/session.h"

/* A peer names the VM's socket; it may reach those in the configured directory and nothing else.
 * The name is one path component of harmless characters, and the kernel resolves it beneath the
 * directory without links (openat2(2), RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS). */

#define MAX_NAME 128

static bool legal_name(const char *name)
{
    size_t n = strlen(name);

    if (n == 0 || n > MAX_NAME || name[0] == '.')
        return false;
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)name[i]) && !strchr("._-", name[i]))
            return false;
    return true;
}

/* An O_PATH descriptor of the socket. */
static int open_socket(const char *dir, const char *name, const char *suffix, struct vc_err *err)
{
    struct open_how how = {
        .flags = O_PATH | O_CLOEXEC | O_NOFOLLOW,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    vc_auto_close int dirfd = -1;
    vc_auto_close int fd = -1;
    char file[MAX_NAME + 16];
    struct stat st;

    if (!legal_name(name))
        return vc_err_set_hint(err, VC_E_NO_SUCH_VM,
                               "a name has letters, digits, '.', '_', '-', and no leading dot",
                               "'%.64s' is not a legal name of a VM", name);
    dirfd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dirfd < 0)
        return vc_err_set_errno_hint(err, VC_E_DEST_QEMU, "see --socket-dir of vecycle serve",
                                     "cannot open the destination's socket directory '%s'", dir);
    snprintf(file, sizeof(file), "%s%s", name, suffix);
    fd = (int)syscall(SYS_openat2, dirfd, file, &how, sizeof(how));
    if (fd < 0)
        return vc_err_set_errno_hint(err, errno == ENOENT ? VC_E_NO_SUCH_VM : VC_E_DEST_QEMU,
                                     "start the destination QEMU with its socket there, or give "
                                     "its name with --name, or another "
                                     "directory there with --socket-dir",
                                     "the destination has no socket '%s' in '%s'", file, dir);
    if (fstat(fd, &st) < 0 || !S_ISSOCK(st.st_mode))
        return vc_err_set(err, VC_E_DEST_QEMU, "'%s' in '%s' is not a socket", file, dir);
    return vc_steal_fd(&fd);
}

int vc_target_exists(const char *dir, const char *name, const char *suffix, struct vc_err *err)
{
    int fd = open_socket(dir, name, suffix, err);

    if (fd < 0)
        return fd;
    close(fd);
    return 0;
}

int vc_target_connect(const char *dir, const char *name, const char *suffix, struct vc_err *err)
{
    vc_auto_close int at = open_socket(dir, name, suffix, err);
    char path[64];
    int fd;

    if (at < 0)
        return at;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", at);
    fd = vc_unix_connect(path);
    if (fd < 0 && errno == EACCES)
        return vc_err_set_errno_hint(err, VC_E_DEST_QEMU,
                                     "start QEMU with `umask 007`, or chmod g+w that socket: "
                                     "vecycle-serve(1), QEMU'S SOCKETS",
                                     "user %u of the agent may not connect to '%s/%s%s'",
                                     (unsigned)geteuid(), dir, name, suffix);
    if (fd < 0 && errno == EAGAIN)
        return vc_err_set_errno_hint(err, VC_E_DEST_QEMU,
                                     "does another QMP client keep QEMU busy, or does it hang?",
                                     "too many wait for '%s%s' in '%s'", name, suffix, dir);
    if (fd < 0)
        return vc_err_set_errno_hint(err, VC_E_DEST_QEMU, "is the destination QEMU running?",
                                     "nobody listens on '%s%s' in '%s'", name, suffix, dir);
    return fd;
}

int vc_target_check(struct vc_qmp *q, const struct vc_id *vm, const struct vc_handover *h,
                    struct vc_err *err)
{
    struct vc_id uuid;
    int rc = vc_qmp_uuid(q, &uuid, err);

    if (rc)
        return rc;
    if (!vc_id_equal(&uuid, vm))
        return vc_err_set(err, VC_E_UNSETTLED, "another VM's QEMU has its socket now");
    vc_qmp_identify(q, vm);
    if (vc_process_look(&h->qemu) == VC_PROCESS_GONE ||
        !vc_process_may_equal(vc_qmp_process(q), &h->qemu))
        return vc_err_set(err, VC_E_UNSETTLED, "another QEMU of the VM has its socket now");
    return 0;
}

int vc_target_qemu(const char *dir, const struct vc_id *vm, const struct vc_handover *h,
                   struct vc_qmp **out, struct vc_err *err)
{
    int fd = vc_target_connect(dir, h->socket, ".qmp", err);
    int rc = fd < 0 ? fd : vc_qmp_from_fd(fd, h->socket, out, err);

    if (!rc) {
        rc = vc_target_check(*out, vm, h, err);
        if (rc)
            vc_qmp_free(vc_steal_ptr(*out));
    }
    if (rc)
        err->code = VC_E_UNSETTLED;
    return rc ? VC_E_UNSETTLED : 0;
}
