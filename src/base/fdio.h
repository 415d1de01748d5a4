/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BASE_FDIO_H
#define VC_BASE_FDIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "base/err.h"

/* Small wrappers of system calls on descriptors: EINTR is retried, short writes are continued. The
 * functions that return int without an err set errno. SIGPIPE is avoided on sockets only
 * (MSG_NOSIGNAL); programs that write to pipes ignore it. */

/** Reads up to n bytes: > 0 bytes, 0 end of file, -1 with errno. */
ssize_t vc_read_some(int fd, void *buf, size_t n);
/** Reads exactly n bytes: 1; 0: end of file before the first byte; -1 with errno (EPIPE: end of
 *  file in the middle). */
int vc_read_full(int fd, void *buf, size_t n);
/** Writes all: 0 or -1 with errno. */
int vc_write_full(int fd, const void *buf, size_t n);
/** Writes all of the vector, which is used up in the course: 0 or -1 with errno. Takes any count.
 */
int vc_writev_full(int fd, struct iovec *iov, size_t n);
/** The same at a file offset. */
int vc_pwritev_full(int fd, struct iovec *iov, size_t n, uint64_t offset);
/** Reads exactly n bytes at an offset: 1; 0: end of file first; -1 with errno. */
int vc_pread_full(int fd, void *buf, size_t n, uint64_t offset);

/** Drops the first @done bytes of a vector, and what is empty behind them. */
void vc_iov_advance(struct iovec **iov, size_t *n, size_t done);

/** Whether it is a stream socket of a family whose calls shutdown(2) ends (Unix, IPv4, IPv6), and
 *  does not listen. */
bool vc_is_stream(int fd);
/** Whether it is a Unix stream socket that is connected. */
bool vc_is_unix_stream(int fd);
/** Whether it is a Unix stream socket that listens. */
bool vc_is_unix_listener(int fd);
/** Accepts a connection that waits: a close-on-exec descriptor, or -1 with errno, EAGAIN if there
 * is none, since who has the listener as well may have taken it. */
int vc_accept_waiting(int listener);

/** Waits until fd is readable: 1, 0 on time-out, -1 with errno. @timeout_ms < 0: for ever. */
int vc_wait_readable(int fd, int timeout_ms);

/** Connects to a Unix socket given by path, close-on-exec. Returns fd, or -1 with errno
 *  (ENAMETOOLONG if the path is longer than any file's; one that does not fit a socket address is
 *  gone by way of /proc). A full backlog is waited for, so long. */
#define VC_UNIX_CONNECT_S 10
int vc_unix_connect(const char *path);
/** Makes a listening Unix socket with these permissions; an old socket that nobody listens on is
 *  replaced, anything else at the path is EADDRINUSE. Returns fd or -1 with errno. */
int vc_unix_listen(const char *path, unsigned mode, int backlog);

/** mkdirat() of what its owner can use: the umask takes nothing from the owner's part of the mode.
 * 0 or -1 with errno. */
int vc_mkdirat(int dir, const char *name, mode_t mode);
/** fchmod() that an O_PATH descriptor will do for: 0 or -1 with errno. */
int vc_chmod_fd(int fd, mode_t mode);

/** Whether nobody but the caller and root can change it: it belongs to one of them, and neither its
 *  group nor others may write. */
bool vc_is_guarded(const struct stat *st);

/** Sends bytes and descriptors over a Unix socket: 0 or -1 with errno. n >= 1, n_fds <= 4. */
int vc_send_fds(int sock, const void *buf, size_t n, const int *fds, size_t n_fds);
/** Receives up to n bytes and up to max_fds descriptors (close-on-exec, owned by the caller; the
 *  rest are closed). Returns bytes, 0 at end of file, -1 with errno. */
ssize_t vc_recv_fds(int sock, void *buf, size_t n, int *fds, size_t max_fds, size_t *n_fds);

#endif
