/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/bytes.h"
#include "wire/wire.h"

/* Payloads of a session of mode 7: docs/formats/wire.md section 6. */

#define RANGE_BYTES 20u

static int complete(const struct vc_reader *r, const char *type, struct vc_err *err)
{
    if (r->failed || r->off != r->len)
        return vc_err_set(err, VC_E_PROTOCOL, "%s: a wrong length, or an illegal field", type);
    return 0;
}

void vc_wire_rekeyed_encode(struct vc_writer *w, const struct vc_wire_range *ranges, uint32_t n)
{
    vc_write_u32(w, n);
    for (uint32_t i = 0; i < n; i++) {
        vc_write_u32(w, ranges[i].block);
        vc_write_u64(w, ranges[i].page.n);
        vc_write_u64(w, ranges[i].count);
    }
}

struct vc_wire_range vc_wire_rekeyed_range(const struct vc_wire_rekeyed *m, uint32_t i)
{
    const uint8_t *p = m->ranges + (size_t)i * RANGE_BYTES;

    return (struct vc_wire_range){
        .block = (uint32_t)vc_load_le(p, 4),
        .page = vc_page(vc_load_le(p + 4, 8)),
        .count = vc_load_le(p + 12, 8),
    };
}

int vc_wire_rekeyed_decode(const uint8_t *p, size_t n, struct vc_wire_rekeyed *m,
                           struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);

    m->n = vc_read_u32(&r);
    if (m->n > VC_WIRE_MAX_REKEYED_RANGES)
        return vc_err_set(err, VC_E_PROTOCOL, "REKEYED: too many ranges");
    m->ranges = vc_read_bytes(&r, (size_t)m->n * RANGE_BYTES);
    for (uint32_t i = 0; i < m->n && m->ranges; i++)
        if (!vc_wire_rekeyed_range(m, i).count)
            r.failed = true;
    return complete(&r, "REKEYED", err);
}

void vc_wire_ready_encode(struct vc_writer *w, const struct vc_wire_generation *m)
{
    vc_write_bytes(w, m->id.b, sizeof(m->id.b));
    vc_write_bytes(w, m->root, VC_WIRE_ROOT_BYTES);
}

int vc_wire_ready_decode(const uint8_t *p, size_t n, struct vc_wire_generation *m,
                         struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);

    vc_read_copy(&r, m->id.b, sizeof(m->id.b));
    vc_read_copy(&r, m->root, VC_WIRE_ROOT_BYTES);
    return complete(&r, "READY", err);
}
