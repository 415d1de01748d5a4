/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <sys/socket.h>

#include "damage.h"

#include "base/bytes.h"
#include "base/fdio.h"
#include "wire/wire.h"

/* Two threads carry frames from one socket to another, one for each direction. */

static const uint8_t gate_ping[FRAME_HEAD + 8] = {8,   0,   0,   0,   VC_WIRE_PING, 0,   0,   0,
                                                  'd', 'a', 'm', 'a', 'g',          'e', '?', '!'};

struct direction {
    struct filter *f;
    bool to_dest;
    uint8_t *frame;
};

static void open_gate(struct filter *f, bool over)
{
    pthread_mutex_lock(&f->mu);
    f->open = true;
    f->over |= over;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->mu);
}

void filter_end(struct filter *f)
{
    open_gate(f, true);
}

void filter_await_gate(struct filter *f)
{
    pthread_mutex_lock(&f->mu);
    while (f->gated && !f->open)
        pthread_cond_wait(&f->changed, &f->mu);
    pthread_mutex_unlock(&f->mu);
}

void filter_await_side(struct filter *f)
{
    pthread_mutex_lock(&f->mu);
    while (!f->side && !f->over)
        pthread_cond_wait(&f->changed, &f->mu);
    pthread_mutex_unlock(&f->mu);
}

void filter_side_came(struct filter *f)
{
    pthread_mutex_lock(&f->mu);
    f->side = true;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->mu);
}

void filter_await_end(struct filter *f)
{
    pthread_mutex_lock(&f->mu);
    while (!f->over)
        pthread_cond_wait(&f->changed, &f->mu);
    pthread_mutex_unlock(&f->mu);
}

/* The source answers our PING when it has taken in all that came before it. */
static bool is_our_pong(const uint8_t *frame, size_t n)
{
    return frame_type(frame) == VC_WIRE_PONG && n == sizeof(gate_ping) &&
           !memcmp(frame + FRAME_HEAD, gate_ping + FRAME_HEAD, 8);
}

/* One frame; false: the direction is over. */
static bool carry(struct direction *d)
{
    struct filter *f = d->f;
    int in = f->fds[d->to_dest][0], out = f->fds[d->to_dest][1];
    size_t n, pass;
    uint8_t type;

    if (vc_read_full(in, d->frame, FRAME_HEAD) != 1)
        return false;
    n = FRAME_HEAD + vc_load_le(d->frame, 4);
    if (n > VC_WIRE_MAX_FRAME_BYTES ||
        (n > FRAME_HEAD && vc_read_full(in, d->frame + FRAME_HEAD, n - FRAME_HEAD) != 1))
        return false;
    type = frame_type(d->frame);
    if (f->gated && d->to_dest && is_our_pong(d->frame, n)) {
        open_gate(f, false);
        return true;
    }
    if (type == VC_WIRE_START && d->frame[FRAME_HEAD + 18] != VC_WIRE_BASE_ANNOUNCE)
        open_gate(f, false); /* nothing will be announced */
    if (type != VC_WIRE_PING && type != VC_WIRE_PONG)
        atomic_fetch_add(&f->passed, 1);
    pass = f->on_frame ? f->on_frame(f, d->to_dest, d->frame, n) : n;
    if (vc_write_full(out, d->frame, pass))
        return false;
    if (f->gated && type == VC_WIRE_ANNOUNCE_END && pass == n)
        return vc_write_full(out, gate_ping, sizeof(gate_ping)) == 0;
    if (pass < n) {
        shutdown(in, SHUT_RDWR);
        shutdown(out, SHUT_RDWR);
    }
    return pass == n;
}

static void *carry_main(void *arg)
{
    struct direction *d = arg;

    while (carry(d)) {
        /* the next one */
    }
    shutdown(d->f->fds[d->to_dest][1], SHUT_WR);
    shutdown(d->f->fds[d->to_dest][0], SHUT_RD);
    free(d->frame);
    free(d);
    return NULL;
}

void filter_start(struct filter *f, int *source_fd, int *dest_fd)
{
    int a[2], b[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, a), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, b), 0);
    *source_fd = a[0];
    *dest_fd = b[0];
    f->fds[1][0] = f->fds[0][1] = a[1];
    f->fds[1][1] = f->fds[0][0] = b[1];
    atomic_store(&f->got, 0);
    atomic_store(&f->passed, 0);
    f->open = f->side = f->over = false;
    pthread_mutex_init(&f->mu, NULL);
    pthread_cond_init(&f->changed, NULL);
    for (int i = 0; i < 2; i++) {
        struct direction *d = calloc(1, sizeof(*d));

        assert_non_null(d);
        *d = (struct direction){f, i == 1, malloc(VC_WIRE_MAX_FRAME_BYTES)};
        assert_non_null(d->frame);
        assert_int_equal(pthread_create(&f->threads[i], NULL, carry_main, d), 0);
    }
}

void filter_join(struct filter *f)
{
    pthread_join(f->threads[0], NULL);
    pthread_join(f->threads[1], NULL);
    close(f->fds[1][0]);
    close(f->fds[1][1]);
    pthread_mutex_destroy(&f->mu);
    pthread_cond_destroy(&f->changed);
}
