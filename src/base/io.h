/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BASE_IO_H
#define VC_BASE_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* The system calls that change a store or may fail in reading it, as a table, so that a test can
 * put a disk underneath that fails, tears and forgets. Descriptors are the kernel's own; what can
 * neither change anything nor fail usefully (close, fstat, flock) is called directly. All set errno
 * and return -1 on failure. Any thread. */

struct vc_io {
    /** openat() with close-on-exec, without following links, mode 0600, and without waiting.
     * Without O_DIRECTORY it opens regular files only; see vc_io_is_odd(). Where root works in
     * another user's directory, that user opens it. */
    int (*open)(const struct vc_io *io, int dir, const char *name, int flags);
    /** Reads exactly n bytes: 1; 0: end of file first; -1. */
    int (*read)(const struct vc_io *io, int fd, void *buf, size_t n, uint64_t at);
    /** Whether the byte there can be read without waiting for a disk, as far as the kernel and the
     * file system say so. The kernel may begin to read its page. NULL: nobody knows. */
    bool (*is_cached)(const struct vc_io *io, int fd, uint64_t at);
    /** Writes all of the vector, which is used up: 0 or -1. */
    int (*write)(const struct vc_io *io, int fd, struct iovec *iov, size_t n, uint64_t at);
    /** copy_file_range(): bytes copied, 0 or -1 where it cannot be done this way. */
    ssize_t (*copy)(const struct vc_io *io, int from, uint64_t from_at, int to, uint64_t to_at,
                    size_t n);
    int (*resize)(const struct vc_io *io, int fd, uint64_t bytes);
    /** fdatasync() */
    int (*sync)(const struct vc_io *io, int fd);
    /** fsync() of a directory; 0 too where the file system cannot do it. */
    int (*sync_dir)(const struct vc_io *io, int dir);
    int (*rename)(const struct vc_io *io, int dir, const char *from, const char *to);
    int (*unlink)(const struct vc_io *io, int dir, const char *name, int flags);
    /** mkdirat() with mode 0700, whatever the umask, as the user whose directory it is in. */
    int (*mkdir)(const struct vc_io *io, int dir, const char *name);
};

/** The kernel itself. */
extern const struct vc_io vc_io_kernel;

/** Whether that errno says that a file system cannot do a thing at all. */
bool vc_io_lacks(int error);
/** Whether that errno of an open says that something else than a file (or a directory, where one is
 *  asked for) has the name: EISDIR, ELOOP (a link), ENOTDIR, ENXIO (the rest). */
bool vc_io_is_odd(int error);

#endif
