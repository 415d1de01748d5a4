/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BASE_ERR_H
#define VC_BASE_ERR_H

#include <stdarg.h>
#include <stdbool.h>

#include "base/compiler.h"

/* Error policy: `int f(..., struct vc_err *err)` returns 0 on success, a negative VC_E_* after
 * filling *err once at the origin, or a positive outcome documented by the function. *err is not
 * touched on success and never examined by the function that fills it. No error path allocates.
 * Messages are one phrase, lower case, without newline or dot, and name the thing; the hint says
 * what to do about it. */

/** Stable error codes. The exit status of the command line is the code without its sign; the
 *  public header repeats them (checked by static assertions in src/api). */
enum {
    VC_E_FAILED = -1,          /* anything without a code of its own: a system call, a bug */
    VC_E_USAGE = -2,           /* wrong arguments */
    VC_E_NOMEM = -3,           /* out of memory, or a named memory limit reached */
    VC_E_QMP_CONNECT = -10,    /* no QMP socket there, or nobody listens on it */
    VC_E_QMP = -11,            /* it does not speak QMP, or a command failed */
    VC_E_QEMU_STATE = -12,     /* this QEMU cannot migrate now (no uuid, wrong run state, ...) */
    VC_E_UNREACHABLE = -20,    /* the other host cannot be reached */
    VC_E_VERSION = -21,        /* the two sides share no protocol version or needed feature */
    VC_E_PROTOCOL = -22,       /* the peer sent something illegal */
    VC_E_PEER_LOST = -23,      /* the connection to the peer broke or fell silent */
    VC_E_REFUSED = -24,        /* the peer refused, by policy */
    VC_E_NO_SUCH_VM = -30,     /* no VM of that name, or the name is illegal */
    VC_E_DEST_QEMU = -31,      /* the destination QEMU does not listen, or failed */
    VC_E_STORE = -40,          /* the store cannot be opened, read or written */
    VC_E_STORE_FULL = -41,     /* no room, or over the size limit */
    VC_E_CORRUPT = -42,        /* something in the store is damaged */
    VC_E_BUSY = -43,           /* the VM is in use by another session */
    VC_E_NOT_QEMU = -50,       /* the stream is not QEMU's */
    VC_E_NO_RETURN_PATH = -51, /* the stream has no return path */
    VC_E_MIGRATION = -52,      /* QEMU reports that the migration failed */
    VC_E_SEAL = -53,           /* a batch failed its seal twice */
    VC_E_CANCELLED = -60,      /* cancelled by the user */
    VC_E_UNSETTLED = -61,      /* the last word was lost: `vecycle resolve` settles it */
    VC_E_POSTCOPY = -62,       /* interrupted after the switch to postcopy: `migrate --recover` */
};

/** Positive outcomes. Each function documents which of them it returns. */
enum {
    VC_AGAIN = 1,     /* nothing yet; try later */
    VC_EOF = 2,       /* the end was reached in an orderly way */
    VC_CLOSED = 3,    /* the queue or pool was closed */
    VC_NOT_FOUND = 4, /* no such thing */
    VC_MISMATCH = 5,  /* content differs from what was expected */
};

struct vc_err {
    int code;         /* VC_E_*, or 0 */
    int sys_errno;    /* 0, or the errno behind it */
    const char *file; /* origin, for debugging */
    int line;
    bool lasts; /* another attempt meets the same cause */
    char message[240];
    char hint[160];
};

#define VC_ERR_INIT ((struct vc_err){0})

/** Fills *err and returns code. @sys_errno 0: none; else ": strerror" is appended.
 *  @hint may be NULL. @err may be NULL. */
int vc_err_set_at(struct vc_err *err, const char *file, int line, int code, int sys_errno,
                  const char *hint, const char *fmt, ...) VC_PRINTF(7, 8);

#define vc_err_set(err, code, ...) \
    vc_err_set_at((err), __FILE__, __LINE__, (code), 0, NULL, __VA_ARGS__)
#define vc_err_set_errno(err, code, ...) \
    vc_err_set_at((err), __FILE__, __LINE__, (code), errno, NULL, __VA_ARGS__)
#define vc_err_set_hint(err, code, hint, ...) \
    vc_err_set_at((err), __FILE__, __LINE__, (code), 0, (hint), __VA_ARGS__)
#define vc_err_set_errno_hint(err, code, hint, ...) \
    vc_err_set_at((err), __FILE__, __LINE__, (code), errno, (hint), __VA_ARGS__)

/** Puts "prefix: " before the message (on the way up). Returns err->code. */
int vc_err_prefix(struct vc_err *err, const char *fmt, ...) VC_PRINTF(2, 3);

/** Puts a question mark in the place of each byte of a control character, and of one that changes
 *  the direction of writing: what others say ends up on terminals and, a line each, in logs. */
void vc_make_printable(char *text);

/** The stable name of a code ("qmp-connect", ...), for JSON; never NULL. */
const char *vc_err_name(int code);

#endif
