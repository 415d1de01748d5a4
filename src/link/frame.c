/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>

#include "digest/digest.h"
#include "link/link.h"

/* What a link carries, before and after. */

struct vc_link_frame *vc_link_frame_new(uint8_t type, uint16_t channel, uint32_t bytes)
{
    struct vc_link_frame *f = malloc(sizeof(*f) + bytes);

    if (!f)
        return NULL;
    *f = (struct vc_link_frame){.type = type, .channel = channel, .bytes = bytes};
    return f;
}

void vc_link_frame_free(struct vc_link_frame *f)
{
    if (f && (f->type == VC_WIRE_ACCEPT || f->type == VC_WIRE_START))
        vc_wipe(f->payload, f->bytes); /* they carry keys */
    if (f && f->rest) {
        f->rest->release(f->rest->owner);
        free(f->rest);
    }
    free(f);
}

bool vc_link_frame_gather(struct vc_link_frame *f, uint32_t n, void *owner,
                          void (*release)(void *owner))
{
    struct vc_rest *r = calloc(1, sizeof(*r) + (VC_REST_FIRST + n) * sizeof(r->pieces[0]));

    if (!r)
        return false;
    r->owner = owner;
    r->release = release;
    r->n_pieces = VC_REST_FIRST + n;
    f->rest = r;
    return true;
}
