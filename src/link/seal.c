/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "link/seal.h"

#include <string.h>

#include "base/bytes.h"

int vc_seal_first(struct vc_digester *d, const struct vc_id *session, uint16_t channel,
                  struct vc_digest *out, struct vc_err *err)
{
    uint8_t number[2];
    int rc = vc_digest_begin(d, err);

    vc_store_le(number, channel, 2);
    if (!rc)
        rc = vc_digest_update(d, session->b, sizeof(session->b), err);
    if (!rc && channel)
        rc = vc_digest_update(d, number, sizeof(number), err);
    return rc ? rc : vc_digest_end(d, out, err);
}

int vc_seal_begin(struct vc_digester *d, const struct vc_digest *before, uint64_t seq,
                  uint64_t position, struct vc_err *err)
{
    uint8_t head[VC_DIGEST_BYTES + 16];
    int rc = vc_digest_begin(d, err);

    memcpy(head, before->b, VC_DIGEST_BYTES);
    vc_store_le(head + VC_DIGEST_BYTES, seq, 8);
    vc_store_le(head + VC_DIGEST_BYTES + 8, position, 8);
    return rc ? rc : vc_digest_update(d, head, sizeof(head), err);
}

int vc_seal_invalidate(struct vc_digester *d, const struct vc_wire_run *run, struct vc_err *err)
{
    uint8_t buf[21];

    if (run->kind != VC_RUN_INVALIDATE)
        return 0;
    buf[0] = VC_RUN_INVALIDATE;
    vc_store_le(buf + 1, run->block, 4);
    vc_store_le(buf + 5, run->page.n, 8);
    vc_store_le(buf + 13, run->count, 8);
    return vc_digest_update(d, buf, sizeof(buf), err);
}
