/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/fdio.h"
#include "link/link.h"
#include "link/seal.h"
#include "source/pipeline.h"

/* Theory of operation
 *
 * QEMU makes its second connection when it likes: with the first one (7.2), or at the switch (8.0
 * and later). Its peer waits for the connection itself, so an empty batch goes out at once. From
 * then on whatever can be read is sent at once as one batch of literal bytes, past everything that
 * waits for the wire: a guest stands still until its page is there. What is unacknowledged is
 * bounded, and nothing is kept: the destination has no way to put in a wrong byte, so it never asks
 * again. Pages that pass here are not recorded: QEMU has named them on channel 0 as discarded, and
 * they stay unknown there. */

/** QEMU makes its connections one right after the other. */
#define QUIET_MS 250
#define CHUNK_BYTES (128u << 10)
#define MAGIC_BYTES 4

struct channel {
    struct vc_source *s;
    struct vc_digester *seals;
    struct vc_wire_codec *codec;
    struct vc_digest seal;
    uint64_t bytes; /* read */
    bool connected, ended;
    uint8_t head[MAGIC_BYTES];                         /* the first bytes */
    uint8_t body[VC_WIRE_RUN_MAX_BYTES + CHUNK_BYTES]; /* the run right before its bytes */
    struct vc_err err;
};

/* ---- sending ---- */

static int seal_batch(struct channel *c, uint64_t seq, uint64_t position, const uint8_t *p,
                      uint32_t n)
{
    int rc = vc_seal_begin(c->seals, &c->seal, seq, position, &c->err);

    if (!rc)
        rc = vc_digest_update(c->seals, p, n, &c->err);
    return rc ? rc : vc_digest_end(c->seals, &c->seal, &c->err);
}

/* The frame of a batch; its bytes are at body + VC_WIRE_RUN_MAX_BYTES. NULL: no memory. */
static struct vc_link_frame *batch_frame(struct channel *c, struct vc_wire_batch *h, uint32_t n)
{
    uint8_t run[VC_WIRE_RUN_MAX_BYTES];
    struct vc_writer w = vc_writer(run, sizeof(run));
    struct vc_wire_cursor cursor = {0};
    uint8_t *body = c->body + VC_WIRE_RUN_MAX_BYTES;
    struct vc_link_frame *f;

    if (n)
        vc_wire_run_encode(&w, &cursor, &(struct vc_wire_run){.kind = VC_RUN_OPAQUE, .count = n});
    body -= w.len;
    memcpy(body, run, w.len);
    h->stream_bytes = n;
    h->runs_bytes = (uint32_t)w.len;
    h->body_bytes = (uint32_t)w.len + n;
    h->flags = VC_WIRE_BATCH_SELF_CONTAINED;
    memcpy(h->seal, c->seal.b, sizeof(h->seal));
    f = vc_link_frame_new(VC_WIRE_BATCH, VC_WIRE_CHANNEL_PREEMPT,
                          VC_WIRE_BATCH_HEADER_BYTES + h->body_bytes);
    if (!f)
        return NULL;
    f->bytes =
        VC_WIRE_BATCH_HEADER_BYTES +
        (uint32_t)vc_wire_body_pack(c->codec, body, h, f->payload + VC_WIRE_BATCH_HEADER_BYTES);
    vc_wire_batch_encode(f->payload, h);
    return f;
}

/* Sends n bytes, which are in place, as one batch; none: the channel is opened. */
static int send_batch(struct channel *c, uint32_t n)
{
    struct vc_src_channel *state = &c->s->side;
    struct vc_wire_batch h = {0};
    struct vc_link_frame *f;
    int rc;

    {
        VC_LOCKED(&c->s->mu);
        h.position = state->position;
        h.seq = ++state->seq;
        state->position += n;
        state->outstanding[h.seq % VC_WIRE_CHANNEL_BATCHES] = n;
    }
    rc = seal_batch(c, h.seq, h.position, c->body + VC_WIRE_RUN_MAX_BYTES, n);
    if (rc)
        return rc;
    f = batch_frame(c, &h, n);
    if (!f)
        return vc_err_set(&c->err, VC_E_NOMEM, "no memory for a frame");
    return vc_link_send(c->s->o.link, f, true);
}

static int send_eof(struct channel *c)
{
    c->ended = true;
    if (vc_link_send_small(c->s->o.link, VC_WIRE_EOF, VC_WIRE_CHANNEL_PREEMPT, NULL, 0))
        return VC_CLOSED;
    return 0;
}

/* Stream bytes that may be sent now; 0: not before the next ACK. */
static uint32_t room(struct channel *c)
{
    const struct vc_src_channel *state = &c->s->side;
    VC_LOCKED(&c->s->mu);

    if (state->seq - state->acked_seq >= VC_WIRE_CHANNEL_BATCHES)
        return 0;
    return VC_WIRE_CHANNEL_BYTES - (uint32_t)(state->position - state->acked_position);
}

/* ---- QEMU's end ---- */

/* QEMU (7.2 at least) is not safe against a connection that breaks while it makes others: so what
 * it has made stays open, and is joined by what follows until nothing does, and then the migration
 * fails by its main connection. */
static int refuse(struct channel *c, int fd, const char *what)
{
    struct vc_src_channel *side = &c->s->side;

    while (fd >= 0 && side->n_refused < VC_SRC_REFUSED_MAX) {
        side->refused[side->n_refused++] = fd;
        fd = vc_wait_readable(side->listen_fd, QUIET_MS) > 0 ? vc_accept_waiting(side->listen_fd)
                                                             : -1;
    }
    vc_cleanup_close(&fd);
    return vc_err_set_hint(&c->err, VC_E_NOT_QEMU,
                           "turn off the migration capability 'multifd' on both QEMUs",
                           "QEMU opens more connections than vecycle carries: %s", what);
}

/* Whether it is the process that opened the first connection. Others look whether somebody listens
 * here, which is no reason to bother the destination. Pids are 0 across pid namespaces. */
static bool is_qemu(const struct channel *c, int fd)
{
    struct ucred want, have;
    socklen_t n = sizeof(want), k = sizeof(have);

    if (getsockopt(c->s->o.qemu_fd, SOL_SOCKET, SO_PEERCRED, &want, &n) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &have, &k) < 0)
        return false;
    return want.pid > 0 && have.pid > 0 ? want.pid == have.pid : want.uid == have.uid;
}

static int take_connection(struct channel *c)
{
    int fd = vc_accept_waiting(c->s->side.listen_fd);

    if (fd < 0)
        return errno == EINTR || errno == ECONNABORTED || errno == EAGAIN
                   ? 0
                   : vc_err_set_errno(&c->err, VC_E_FAILED, "cannot accept QEMU's connection");
    if (!is_qemu(c, fd)) {
        vc_log(c->s->o.log, VC_LOG_INFO, "somebody else than QEMU connected, and was turned away");
        close(fd);
        return 0;
    }
    if (c->connected)
        return refuse(c, fd, "a third one");
    if (!c->s->o.channels) {
        close(fd);
        return vc_err_set_hint(&c->err, VC_E_VERSION,
                               "install a newer vecycle there, or turn off the migration "
                               "capability 'postcopy-preempt'",
                               "the other host's vecycle carries one connection of QEMU, and this "
                               "QEMU opens a second one");
    }
    c->connected = true;
    {
        VC_LOCKED(&c->s->mu);
        c->s->side.fd = fd;
        if (c->s->side.over)
            shutdown(fd, SHUT_RDWR);
    }
    return send_batch(c, 0);
}

/* A multifd channel says so with its first bytes; a preempt channel cannot begin so. */
static bool is_multifd(struct channel *c, const uint8_t *p, size_t n)
{
    static const uint8_t magic[MAGIC_BYTES] = {0x11, 0x22, 0x33, 0x44};

    for (size_t i = 0; i < n && c->bytes + i < MAGIC_BYTES; i++)
        c->head[c->bytes + i] = p[i];
    return c->bytes < MAGIC_BYTES && c->bytes + n >= MAGIC_BYTES &&
           !memcmp(c->head, magic, sizeof(magic));
}

static int carry(struct channel *c, uint32_t most)
{
    uint8_t *p = c->body + VC_WIRE_RUN_MAX_BYTES;
    ssize_t n = vc_read_some(c->s->side.fd, p, VC_MIN(most, CHUNK_BYTES));

    if (n <= 0)
        return send_eof(c);
    if (is_multifd(c, p, (size_t)n))
        return refuse(c, fcntl(c->s->side.fd, F_DUPFD_CLOEXEC, 0), "multifd channels");
    c->bytes += (uint64_t)n;
    vc_count(&c->s->n.stream_bytes, (uint64_t)n);
    return send_batch(c, (uint32_t)n);
}

static bool is_over(struct vc_source *s)
{
    VC_LOCKED(&s->mu);

    return s->stop || s->side.over;
}

static void quiet(int fd)
{
    uint64_t n;

    if (read(fd, &n, sizeof(n)) < 0) {
        /* Nothing to clear. */
    }
}

/* Until the end: takes connections, and reads where there is room. */
static int run(struct channel *c)
{
    const struct vc_src_channel *state = &c->s->side;

    while (!is_over(c->s)) {
        uint32_t most = c->connected && !c->ended ? room(c) : 0;
        struct pollfd p[3] = {
            {.fd = state->wake_fd, .events = POLLIN},
            {.fd = state->listen_fd, .events = POLLIN},
            {.fd = most ? state->fd : -1, .events = POLLIN},
        };
        int rc = 0;

        if (poll(p, 3, -1) < 0 && errno != EINTR)
            return vc_err_set_errno(&c->err, VC_E_FAILED, "cannot wait for QEMU");
        if (p[0].revents)
            quiet(state->wake_fd);
        if (p[1].revents)
            rc = take_connection(c);
        if (!rc && p[2].revents)
            rc = carry(c, most);
        if (rc)
            return rc;
    }
    return c->connected && !c->ended ? send_eof(c) : 0;
}

static int prepare(struct channel *c)
{
    const struct vc_source_options *o = &c->s->o;
    int rc = vc_digester_new(o->lineage.algo, VC_DIGEST_SEAL, o->lineage.key, &c->seals, &c->err);

    if (!rc)
        rc = vc_wire_codec_new(1, &c->codec, &c->err);
    return rc ? rc
              : vc_seal_first(c->seals, &o->session, VC_WIRE_CHANNEL_PREEMPT, &c->seal, &c->err);
}

static void *channel_main(void *arg)
{
    struct vc_source *s = arg;
    struct channel *c = calloc(1, sizeof(*c));
    struct vc_err no_memory;
    int rc;

    if (!c) {
        vc_err_set(&no_memory, VC_E_NOMEM, "no memory for a second connection of QEMU");
        vc_source_abort(s, &no_memory);
        return NULL;
    }
    c->s = s;
    rc = prepare(c);
    if (!rc)
        rc = run(c);
    if (rc < 0)
        vc_source_abort(s, &c->err);
    /* A link that is closed tells the receiving stage why: the peer may have said it. */
    if (c->connected)
        vc_log(s->o.log, VC_LOG_INFO, "QEMU's preempt connection has carried %llu bytes",
               (unsigned long long)c->bytes);
    vc_digester_free(c->seals);
    vc_wire_codec_free(c->codec);
    free(c);
    return NULL;
}

/* ---- the others' side ---- */

void vc_src_channel_init(struct vc_src_channel *c, int listen_fd)
{
    c->listen_fd = listen_fd;
    c->wake_fd = c->fd = -1;
}

int vc_src_channel_start(struct vc_source *s, struct vc_err *err)
{
    struct vc_src_channel *c = &s->side;

    if (c->listen_fd < 0)
        return 0;
    c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->wake_fd < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot make an eventfd");
    return vc_thread_start(&c->thread, "vc-src-channel", channel_main, s, err);
}

static void wake(const struct vc_src_channel *c)
{
    uint64_t one = 1;

    if (c->wake_fd >= 0 && write(c->wake_fd, &one, sizeof(one)) < 0) {
        /* Full means: already readable. */
    }
}

int vc_src_channel_ack(struct vc_source *s, uint16_t channel, const struct vc_wire_ack *ack,
                       struct vc_err *err)
{
    struct vc_src_channel *c = &s->side;

    {
        VC_LOCKED(&s->mu);
        if (channel != VC_WIRE_CHANNEL_PREEMPT || ack->seq > c->seq || ack->seq <= c->acked_seq)
            return vc_err_set(err, VC_E_PROTOCOL,
                              "ACK: batch %llu of channel %u is not outstanding",
                              (unsigned long long)ack->seq, channel);
        while (c->acked_seq < ack->seq)
            c->acked_position += c->outstanding[++c->acked_seq % VC_WIRE_CHANNEL_BATCHES];
        if (c->acked_position != ack->position)
            return vc_err_set(err, VC_E_PROTOCOL, "ACK: another position on channel %u than sent",
                              channel);
    }
    wake(c);
    return 0;
}

static void end(struct vc_source *s, int how)
{
    {
        VC_LOCKED(&s->mu);
        s->side.over = true;
        if (s->side.fd >= 0)
            shutdown(s->side.fd, how);
    }
    wake(&s->side);
}

void vc_src_channel_abort(struct vc_source *s)
{
    end(s, SHUT_RDWR);
}

void vc_src_channel_join(struct vc_source *s)
{
    end(s, SHUT_RD);
    vc_thread_join(&s->side.thread);
}

void vc_src_channel_fini(struct vc_src_channel *c)
{
    while (c->n_refused)
        close(c->refused[--c->n_refused]);
    vc_cleanup_close(&c->fd);
    vc_cleanup_close(&c->wake_fd);
    vc_cleanup_close(&c->listen_fd);
}
