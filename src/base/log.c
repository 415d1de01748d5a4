/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/err.h"

void vc_log(const struct vc_log *log, enum vc_log_level level, const char *fmt, ...)
{
    char text[768];
    va_list ap;

    if (!log || !log->fn || level > log->max)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    vc_make_printable(text);
    log->fn(log->opaque, level, text);
}

void vc_log_err(const struct vc_log *log, enum vc_log_level level, const char *what,
                const struct vc_err *err)
{
    if (err->hint[0])
        vc_log(log, level, "%s: %s (%s)", what, err->message, err->hint);
    else
        vc_log(log, level, "%s: %s", what, err->message);
}
