/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BASE_DURABLE_H
#define VC_BASE_DURABLE_H

#include <stddef.h>

#include "base/err.h"

/* The only place that renames or syncs files. The order that makes a change durable: data and size
 * of the new file (fdatasync), its name (rename), the directory that holds the name (fsync). A
 * power cut before the last step leaves the old state, after it the new one, never a mixture. */

/** fdatasync(fd); VC_E_STORE with @what in the message. */
int vc_durable_sync(int fd, const char *what, struct vc_err *err) VC_NODISCARD;
/** fsync of a directory. */
int vc_durable_sync_dir(int dirfd, const char *what, struct vc_err *err) VC_NODISCARD;
/** Syncs fd, renames @from to @to in the directory, syncs the directory. */
int vc_durable_publish(int dirfd, int fd, const char *from, const char *to,
                       struct vc_err *err) VC_NODISCARD;
/** Writes a whole small file and publishes it under its name, mode 0600. A disk without room is
 *  VC_E_STORE_FULL. */
int vc_durable_write_file(int dirfd, const char *name, const void *data, size_t n,
                          struct vc_err *err) VC_NODISCARD;

#endif
