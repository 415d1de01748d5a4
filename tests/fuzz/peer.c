/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "peer.h"

#include <sys/socket.h>

#include "base/fdio.h"

bool fuzz_element(struct vc_reader *in, uint8_t *type, struct vc_reader *payload)
{
    if (!vc_reader_left(in))
        return false;
    *type = (uint8_t)fuzz_number(in, 1);
    *payload = fuzz_part(in, (size_t)fuzz_number(in, 2));
    return true;
}

void fuzz_send(struct fuzz_peer *p, uint8_t type, const void *payload, size_t n)
{
    uint8_t header[VC_WIRE_HEADER_BYTES];

    vc_wire_frame_encode(&(struct vc_wire_frame){.bytes = (uint32_t)n, .type = type}, header);
    if (vc_write_full(p->fd, header, sizeof(header)) || (n && vc_write_full(p->fd, payload, n)))
        return; /* the session is over */
}

/* Hands on the frames that are whole. What does not fit is too long to be of interest. */
static void take(struct fuzz_peer *p)
{
    size_t at = 0;

    while (p->n_said - at >= VC_WIRE_HEADER_BYTES) {
        const uint8_t *f = p->said + at;
        size_t n = (size_t)vc_load_le(f, 4);

        FUZZ_ASSERT(n <= VC_WIRE_MAX_FRAME_BYTES);
        if (n > sizeof(p->said) - VC_WIRE_HEADER_BYTES)
            at = p->n_said;
        else if (p->n_said - at < VC_WIRE_HEADER_BYTES + n)
            break;
        else {
            p->came = p->came || f[4] == p->awaited;
            if (p->on_frame)
                p->on_frame(p->opaque, f[4], f + VC_WIRE_HEADER_BYTES, n);
            at += VC_WIRE_HEADER_BYTES + n;
        }
    }
    p->n_said -= at;
    memmove(p->said, p->said + at, p->n_said);
}

/* Reads once. False: the end. */
static bool hear(struct fuzz_peer *p)
{
    ssize_t n = recv(p->fd, p->said + p->n_said, sizeof(p->said) - p->n_said, 0);

    if (n <= 0)
        return false;
    p->n_said += (size_t)n;
    take(p);
    return true;
}

void fuzz_await(struct fuzz_peer *p, uint8_t type)
{
    p->awaited = type;
    p->came = false;
    while (!p->came && !p->in_vain)
        p->in_vain = vc_wait_readable(p->fd, FUZZ_AWAIT_MS) <= 0 || !hear(p);
}

void fuzz_hang_up(struct fuzz_peer *p)
{
    shutdown(p->fd, SHUT_WR);
    while (hear(p)) {
        /* to the end */
    }
}

size_t fuzz_hello(uint8_t *buf, size_t cap, enum vc_wire_role role)
{
    struct vc_writer w = vc_writer(buf, cap);
    struct vc_wire_hello m = {
        .version_min = 1,
        .version_max = 1,
        .role = (uint8_t)role,
        .features = VC_WIRE_FEATURE_ANNOUNCE | VC_WIRE_FEATURE_DELTA,
        .software = "fuzz",
    };

    vc_wire_hello_encode(&w, &m);
    return w.len;
}
