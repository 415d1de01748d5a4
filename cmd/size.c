/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"

bool cmd_parse_size(const char *text, uint64_t *out)
{
    static const char units[] = "KMGT";
    unsigned long long v;
    const char *unit;
    char *end;

    if (text[0] < '0' || text[0] > '9') /* strtoull(3) takes blanks and signs */
        return false;
    errno = 0;
    v = strtoull(text, &end, 10);
    if (errno)
        return false;
    if (*end) {
        unit = strchr(units, toupper((unsigned char)*end));
        if (!unit || end[1])
            return false;
        for (int i = 0; i <= unit - units; i++) {
            if (v > UINT64_MAX / 1024)
                return false;
            v *= 1024;
        }
    }
    *out = v;
    return true;
}

const char *cmd_size(uint64_t bytes)
{
    static char texts[4][32];
    static unsigned next;
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    char *text = texts[next++ % 4];
    double v = (double)bytes;
    unsigned u = 0;

    while (v >= 1024 && u < 4) {
        v /= 1024;
        u++;
    }
    snprintf(text, sizeof(texts[0]), u && v < 100 ? "%.1f %s" : "%.0f %s", v, units[u]);
    return text;
}
