/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BASE_LOG_H
#define VC_BASE_LOG_H

#include "base/compiler.h"
#include "base/err.h"

/* Messages for a person, passed to whoever embeds the library; the library itself prints nothing.
 */

enum vc_log_level { VC_LOG_ERROR = 0, VC_LOG_WARNING = 1, VC_LOG_INFO = 2, VC_LOG_DEBUG = 3 };

/** Called from any thread; @text is one line without newline, valid during the call. */
typedef void (*vc_log_fn)(void *opaque, enum vc_log_level level, const char *text);

struct vc_log {
    vc_log_fn fn; /* NULL: silent */
    void *opaque;
    enum vc_log_level max; /* messages above are dropped */
};

/** @log may be NULL. */
void vc_log(const struct vc_log *log, enum vc_log_level level, const char *fmt, ...)
    VC_PRINTF(3, 4);
/** Logs an error with its hint: "what: message (hint)". */
void vc_log_err(const struct vc_log *log, enum vc_log_level level, const char *what,
                const struct vc_err *err);

#endif
