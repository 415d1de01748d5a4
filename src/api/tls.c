/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "api/api.h"

int vecycle_tls_init(const struct vecycle_tls_init_options *o, bool *made_ca,
                     struct vecycle_error *err)
{
    struct vc_tls_ca_options ca = {
        .dir = o->dir,
        .hosts = o->hosts,
        .n_hosts = o->n_hosts,
        .days = (uint32_t)VC_MIN(o->days, (uint64_t)UINT32_MAX),
        .new_ca = o->new_ca,
        .renew = o->renew,
        .made_ca = made_ca,
    };
    struct vc_err e = VC_ERR_INIT;

    return vc_public_error(vc_tls_ca_init(&ca, &e), &e, err);
}
