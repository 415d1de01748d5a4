/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BASE_DURABLE_H
#define VC_BASE_DURABLE_H

#include <stddef.h>

#include "base/err.h"
#include "base/io.h"

/* The only place that renames or syncs files. The order that makes a change durable: data and size
 * of the new file (fdatasync), its name (rename), the directory that holds the name (fsync). A
 * power cut before the last step leaves the old state or the new one, after it the new one, never a
 * mixture. @io: &vc_io_kernel, or a test's. */

/** fdatasync(fd); VC_E_STORE with @what in the message. A failed sync may have dropped what it was
 *  to write, and a second one would not tell: the file is lost then. */
int vc_durable_sync(const struct vc_io *io, int fd, const char *what,
                    struct vc_err *err) VC_NODISCARD;
/** fsync of a directory. */
int vc_durable_sync_dir(const struct vc_io *io, int dirfd, const char *what,
                        struct vc_err *err) VC_NODISCARD;
/** Renames @from to @to in the directory, and does not sync it. */
int vc_durable_rename(const struct vc_io *io, int dirfd, const char *from, const char *to,
                      struct vc_err *err) VC_NODISCARD;
/** Syncs fd, renames @from to @to in the directory, syncs the directory. Whatever stands at @to, an
 *  empty directory too, is replaced. */
int vc_durable_publish(const struct vc_io *io, int dirfd, int fd, const char *from, const char *to,
                       struct vc_err *err) VC_NODISCARD;
/** Writes a whole small file as NAME.new and publishes it under its name, mode 0600. A file or link
 *  that is called NAME.new is unlinked first, and never written to. A disk without room is
 *  VC_E_STORE_FULL. */
int vc_durable_write_file(const struct vc_io *io, int dirfd, const char *name, const void *data,
                          size_t n, struct vc_err *err) VC_NODISCARD;
/** The same, written as @tmp: for what several may write at once, each under a name of its own. */
int vc_durable_write_file_as(const struct vc_io *io, int dirfd, const char *tmp, const char *name,
                             const void *data, size_t n, struct vc_err *err) VC_NODISCARD;
/** Takes away whatever has a name: unlinked, an empty directory removed, one that is not empty
 * moved aside as NAME.odd. 0 (also if there was nothing), or -1 with errno. Not synced. */
int vc_durable_clear(const struct vc_io *io, int dirfd, const char *name) VC_NODISCARD;

#endif
