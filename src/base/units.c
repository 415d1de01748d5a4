/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/units.h"

#include <stdio.h>
#include <sys/random.h>

void vc_id_format(const struct vc_id *id, char text[VC_ID_TEXT_BYTES])
{
    char *p = text;

    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *p++ = '-';
        p += sprintf(p, "%02x", id->b[i]);
    }
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

bool vc_id_parse(const char *text, struct vc_id *id)
{
    struct vc_id v;

    for (int i = 0; i < 16; i++) {
        int hi, lo;

        if ((i == 4 || i == 6 || i == 8 || i == 10) && *text++ != '-')
            return false;
        hi = hex_digit(text[0]);
        lo = hi < 0 ? -1 : hex_digit(text[1]);
        if (lo < 0)
            return false;
        v.b[i] = (uint8_t)(hi << 4 | lo);
        text += 2;
    }
    if (*text)
        return false;
    *id = v;
    return true;
}

bool vc_id_random(struct vc_id *id)
{
    if (getrandom(id->b, sizeof(id->b), 0) != (ssize_t)sizeof(id->b))
        return false;
    id->b[6] = (uint8_t)((id->b[6] & 0x0f) | 0x40);
    id->b[8] = (uint8_t)((id->b[8] & 0x3f) | 0x80);
    return true;
}

void vc_ram_map(const struct vc_ram *from, const struct vc_ram *to, int map[VC_MAX_BLOCKS])
{
    for (uint32_t i = 0; i < from->n_blocks; i++)
        map[i] = from->page_bytes == to->page_bytes ? vc_ram_find(to, from->blocks[i].name) : -1;
}
