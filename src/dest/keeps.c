/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dest/resolve.h"
#include "link/link.h"

/* What the source may build on here, and its being told of it (KEEPS): docs/formats/wire.md. */

bool vc_dst_base_is_partial(const struct vc_dst_resolve *r)
{
    const struct vc_dest_options *o = &r->d->o;

    return o->base != VC_WIRE_BASE_NONE && o->gen && vc_gen_info(o->gen)->partial;
}

/* What a recorder that was too slow once has is not asked for any more. */
static uint8_t flags(struct vc_dst_resolve *r)
{
    bool records = !r->too_slow && atomic_load(&r->d->recorder.alive);

    return (uint8_t)((records ? VC_WIRE_KEEPS_NEW : 0) |
                     (vc_dst_base_is_partial(r) ? VC_WIRE_KEEPS_PARTIAL : 0));
}

void vc_dst_keeps_tell(struct vc_dst_resolve *r)
{
    uint8_t now = flags(r);

    if (r->keeps_told && now == r->keeps)
        return;
    r->keeps = now;
    r->keeps_told = true;
    /* A link that is down is noticed elsewhere. */
    if (r->d->o.features & VC_WIRE_FEATURE_KEEPS)
        (void)!vc_link_send_small(r->d->o.link, VC_WIRE_KEEPS, 0, &now, 1);
}
