/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "peer.h"

#include <sys/socket.h>

#include "base/fdio.h"

static void look_at_line(void *opaque, enum vc_log_level level, const char *text)
{
    (void)opaque;
    FUZZ_ASSERT(level <= VC_LOG_DEBUG && text[0] && !strchr(text, '\n'));
}

const struct vc_log fuzz_log = {look_at_line, NULL, VC_LOG_DEBUG};

bool fuzz_element(struct vc_reader *in, uint8_t *type, struct vc_reader *payload)
{
    if (!vc_reader_left(in))
        return false;
    *type = (uint8_t)fuzz_number(in, 1);
    *payload = fuzz_part(in, (size_t)fuzz_number(in, 2));
    return true;
}

void fuzz_prelude(struct vc_reader *in, struct fuzz_qemu *q)
{
    struct vc_reader ahead = *in, script;
    uint8_t type;

    while (fuzz_element(&ahead, &type, &script) && type == FUZZ_QEMU) {
        fuzz_qemu_script(q, script);
        *in = ahead;
    }
}

void fuzz_send(struct fuzz_peer *p, uint8_t type, const void *payload, size_t n)
{
    uint8_t header[VC_WIRE_HEADER_BYTES];
    struct vc_wire_frame f = {
        .bytes = (uint32_t)n,
        .type = type & 0x7f,
        .channel = type & FUZZ_CHANNEL ? VC_WIRE_CHANNEL_PREEMPT : 0,
    };

    if (f.type == FUZZ_BYTES) {
        if (vc_write_full(p->fd, payload, n))
            return; /* the session is over */
        return;
    }
    vc_wire_frame_encode(&f, header);
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
            uint8_t type = (uint8_t)(f[4] | (f[6] ? FUZZ_CHANNEL : 0));

            p->came[type]++;
            if (p->on_frame)
                p->on_frame(p->opaque, type, f + VC_WIRE_HEADER_BYTES, n);
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
    p->awaited[type]++;
    while (p->came[type] < p->awaited[type] && !p->in_vain)
        p->in_vain = vc_wait_readable(p->fd, FUZZ_AWAIT_MS) <= 0 || !hear(p);
}

void fuzz_hang_up(struct fuzz_peer *p)
{
    shutdown(p->fd, SHUT_WR);
    while (hear(p)) {
        /* to the end */
    }
}

size_t fuzz_word(uint8_t *buf, size_t cap, struct vc_reader in, const struct vc_id *session)
{
    struct vc_writer w = vc_writer(buf, cap);
    struct vc_wire_word_msg m = {
        .word = in.len ? in.data[0] : VC_WIRE_WORD_CONTINUE,
        .session = *session,
    };

    vc_wire_word_encode(&w, &m);
    return w.len;
}

size_t fuzz_word_done(uint8_t *buf, size_t cap, struct vc_reader in)
{
    struct vc_writer w = vc_writer(buf, cap);
    struct vc_wire_status m = {.code = in.len ? in.data[0] : 0, .text = "so it is"};

    vc_wire_status_encode(&w, &m);
    return w.len;
}

size_t fuzz_hello(uint8_t *buf, size_t cap, enum vc_wire_role role)
{
    struct vc_writer w = vc_writer(buf, cap);
    struct vc_wire_hello m = {
        .version_min = 1,
        .version_max = 1,
        .role = (uint8_t)role,
        .features = VC_WIRE_FEATURE_ANNOUNCE | VC_WIRE_FEATURE_MOVED | VC_WIRE_FEATURE_CHANNELS |
                    VC_WIRE_FEATURE_DELTA | VC_WIRE_FEATURE_READS | VC_WIRE_FEATURE_RECENT |
                    VC_WIRE_FEATURE_SHIFTED | VC_WIRE_FEATURE_KEEPS,
        .software = "fuzz",
    };

    vc_wire_hello_encode(&w, &m);
    return w.len;
}
