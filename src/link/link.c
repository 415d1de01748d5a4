/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "link/link.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/thread.h"
#include "net/net.h"

/* Theory of operation
 *
 * Frames to send wait in two short queues, urgent ones first, under one mutex that is never held
 * across I/O; the sending thread takes one at a time and writes it. It wakes at least every quarter
 * of a second to send PING after idle time and to look how long ago the peer was last heard. The
 * receiving side has no thread: its caller blocks in the connection's read, and is woken by a
 * shutdown of the connection, which is how every abort works. */

/* Frames that may wait unsent: enough to keep the wire busy, little enough that it adds no delay
 * worth mentioning to what the flow control of the pipelines counts. */
#define MAX_QUEUED_BYTES (512u << 10)
/* Frames that pass the others wait only where a peer asks for much and reads nothing. */
#define MAX_URGENT_BYTES (16u << 20)
/* Unanswered PINGs do no harm while so much else is on its way to the peer. */
#define MAX_PONG_BEHIND_BYTES (1u << 20)
#define TICK_MS 250u
/* Less than that of a frame that has begun is no sign of life: where the two ends disagree about
 * where frames begin, the peer's PINGs would otherwise pass for the rest of it for hours. */
#define TRICKLE_BYTES 1024u
#define FAIL_LINGER_NS VC_NS_PER_S

struct frame_list {
    struct vc_link_frame *head, *tail;
};

struct vc_link {
    struct vc_conn *conn;           /* [const after start] */
    enum vc_wire_role role;         /* [const after start] */
    uint32_t dead_peer_ms;          /* [const after start] */
    uint32_t ping_ms;               /* [const after start] */
    struct vc_thread sender;        /* [const after start] */
    char peer[256];                 /* [const after start] */
    enum vc_wire_security security; /* [thread: recv, before the pipelines start] */

    pthread_mutex_t mu;
    pthread_cond_t changed;
    struct frame_list urgent, bulk; /* [lock: mu] */
    uint64_t queued_bytes;          /* [lock: mu] */
    bool writing;                   /* [lock: mu] the sender is inside a write */
    bool finishing;                 /* [lock: mu] no more frames; end when empty */
    bool down;                      /* [lock: mu] */
    bool broken;                    /* [lock: mu] nothing can be written any more */
    bool silent;                    /* [lock: mu] taken down because the peer fell silent */

    atomic_uint phase;            /* [atomic] vc_wire_phase */
    atomic_ullong heard_ns;       /* [atomic] written by recv, read by the sender */
    atomic_bool listening;        /* [atomic] somebody is in recv */
    atomic_ullong sent, received; /* [atomic] counters */
};

static void list_push(struct frame_list *list, struct vc_link_frame *f)
{
    f->node.next = NULL;
    if (list->tail)
        list->tail->node.next = &f->node;
    else
        list->head = f;
    list->tail = f;
}

static struct vc_link_frame *list_pop(struct frame_list *list)
{
    struct vc_link_frame *f = list->head;

    if (!f)
        return NULL;
    list->head = (struct vc_link_frame *)f->node.next;
    if (!list->head)
        list->tail = NULL;
    return f;
}

static int write_frame(struct vc_link *l, struct vc_link_frame *f, struct vc_err *err)
{
    uint8_t header[VC_WIRE_HEADER_BYTES];
    struct iovec own[VC_REST_FIRST], *iov = f->rest ? f->rest->pieces : own;

    iov[0] = (struct iovec){header, sizeof(header)};
    iov[1] = (struct iovec){f->payload, f->bytes - (f->rest ? f->rest->bytes : 0)};
    vc_wire_frame_encode(
        &(struct vc_wire_frame){.bytes = f->bytes, .type = f->type, .channel = f->channel}, header);
    atomic_fetch_add_explicit(&l->sent, sizeof(header) + f->bytes, memory_order_relaxed);
    return vc_conn_writev_all(l->conn, iov, f->rest ? f->rest->n_pieces : VC_REST_FIRST, err);
}

/* Silence is what somebody listens to: a side that is busy with something else, as with a QEMU that
 * is slow to answer, hears nothing of a peer that is well. */
static bool peer_is_silent(struct vc_link *l)
{
    bool listening = atomic_load_explicit(&l->listening, memory_order_acquire);
    uint64_t heard = atomic_load_explicit(&l->heard_ns, memory_order_relaxed);
    uint64_t now = vc_now_ns();

    return listening && now > heard && now - heard > l->dead_peer_ms * VC_NS_PER_MS;
}

static void shutdown_locked(struct vc_link *l)
{
    l->down = true;
    pthread_cond_broadcast(&l->changed);
    vc_conn_shutdown(l->conn); /* does not block */
}

/* Returns whether the link was taken down. */
static bool check_peer_locked(struct vc_link *l)
{
    if (l->down || !peer_is_silent(l))
        return false;
    l->silent = true;
    shutdown_locked(l);
    return true;
}

void vc_link_check_peer(struct vc_link *l)
{
    VC_LOCKED(&l->mu);

    check_peer_locked(l);
}

/* The next frame to write, a PING when nothing else was sent for long; NULL: the link is over. */
static struct vc_link_frame *next_to_send(struct vc_link *l, uint64_t last_sent_ns)
{
    VC_LOCKED(&l->mu);

    l->writing = false;
    pthread_cond_broadcast(&l->changed);
    while (!l->down) {
        struct vc_link_frame *f = list_pop(&l->urgent);

        if (!f)
            f = list_pop(&l->bulk);
        if (f) {
            l->queued_bytes -= f->bytes + VC_WIRE_HEADER_BYTES;
            l->writing = true;
            pthread_cond_broadcast(&l->changed);
            return f;
        }
        if (l->finishing)
            return NULL;
        if (check_peer_locked(l))
            return NULL;
        if (vc_now_ns() - last_sent_ns > l->ping_ms * VC_NS_PER_MS &&
            atomic_load(&l->phase) != VC_WIRE_PHASE_HELLO) {
            f = vc_link_frame_new(VC_WIRE_PING, 0, 8);
            if (f) {
                memset(f->payload, 0, 8);
                l->writing = true;
                return f;
            }
        }
        vc_cond_wait_until(&l->changed, &l->mu,
                           vc_now_ns() + VC_MIN(TICK_MS, l->ping_ms) * VC_NS_PER_MS);
    }
    return NULL;
}

static bool ends_in_order(struct vc_link *l)
{
    VC_LOCKED(&l->mu);

    return l->finishing && !l->down;
}

/* A peer that closes has often said why, and that may still be on its way. */
static void let_receive(struct vc_link *l)
{
    uint64_t deadline = vc_now_ns() + FAIL_LINGER_NS;
    VC_LOCKED(&l->mu);

    l->broken = true;
    pthread_cond_broadcast(&l->changed);
    while (!l->down && vc_cond_wait_until(&l->changed, &l->mu, deadline)) {
        /* until the receiving side has found its end, and its owner takes the link down */
    }
}

static void *sender_main(void *arg)
{
    struct vc_link *l = arg;
    uint64_t last = vc_now_ns();
    struct vc_link_frame *f;

    while ((f = next_to_send(l, last))) {
        struct vc_err err = VC_ERR_INIT;
        int rc = write_frame(l, f, &err);

        vc_link_frame_free(f);
        last = vc_now_ns();
        if (rc) {
            let_receive(l);
            vc_link_shutdown(l);
            return NULL;
        }
    }
    if (ends_in_order(l))
        vc_conn_shutdown_write(l->conn); /* not under the lock: TLS writes its farewell */
    return NULL;
}

int vc_link_new(struct vc_conn *conn, enum vc_wire_role role, uint32_t dead_peer_ms,
                struct vc_link **out, struct vc_err *err)
{
    struct vc_link *l = calloc(1, sizeof(*l));
    int rc;

    if (!l) {
        vc_conn_close(conn);
        return vc_err_set(err, VC_E_NOMEM, "no memory for a session");
    }
    l->conn = conn;
    l->role = role;
    l->dead_peer_ms = dead_peer_ms ? dead_peer_ms : VC_LINK_DEAD_PEER_MS;
    l->ping_ms = VC_MIN(VC_LINK_PING_MS, l->dead_peer_ms / 5);
    snprintf(l->peer, sizeof(l->peer), "%s", vc_conn_describe(conn));
    l->security = (enum vc_wire_security)vc_conn_security(conn);
    pthread_mutex_init(&l->mu, NULL);
    vc_cond_init(&l->changed);
    atomic_store(&l->phase, VC_WIRE_PHASE_HELLO);
    atomic_store(&l->heard_ns, vc_now_ns());
    rc = vc_thread_start(&l->sender, "vc-link", sender_main, l, err);
    if (rc) {
        vc_link_free(l);
        return rc;
    }
    *out = l;
    return 0;
}

static void drop_all(struct frame_list *list)
{
    struct vc_link_frame *f;

    while ((f = list_pop(list)))
        vc_link_frame_free(f);
}

void vc_link_stop(struct vc_link *l)
{
    struct frame_list urgent, bulk;

    vc_link_shutdown(l);
    vc_thread_join(&l->sender);
    {
        VC_LOCKED(&l->mu);
        urgent = l->urgent;
        bulk = l->bulk;
        l->urgent = l->bulk = (struct frame_list){0};
    }
    drop_all(&urgent);
    drop_all(&bulk);
}

void vc_link_free(struct vc_link *l)
{
    if (!l)
        return;
    vc_link_stop(l);
    vc_conn_close(l->conn);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->mu);
    free(l);
}

void vc_link_set_phase(struct vc_link *l, enum vc_wire_phase phase)
{
    atomic_store(&l->phase, phase);
}

/* Whether it was taken. */
static bool enqueue(struct vc_link *l, struct vc_link_frame *f, bool urgent)
{
    uint64_t cost = f->bytes + VC_WIRE_HEADER_BYTES,
             max = urgent ? MAX_URGENT_BYTES : MAX_QUEUED_BYTES;
    VC_LOCKED(&l->mu);

    /* The sending thread may be stuck in a write, and whoever else looks after the peer in here. */
    while (!l->down && !l->broken && !l->finishing && l->queued_bytes &&
           l->queued_bytes + cost > max && !check_peer_locked(l))
        vc_cond_wait_until(&l->changed, &l->mu, vc_now_ns() + TICK_MS * VC_NS_PER_MS);
    if (l->down || l->broken || l->finishing)
        return false;
    list_push(urgent ? &l->urgent : &l->bulk, f);
    l->queued_bytes += cost;
    pthread_cond_broadcast(&l->changed);
    return true;
}

int vc_link_send(struct vc_link *l, struct vc_link_frame *f, bool urgent)
{
    if (enqueue(l, f, urgent))
        return 0;
    vc_link_frame_free(f);
    return VC_CLOSED;
}

int vc_link_send_small(struct vc_link *l, uint8_t type, uint16_t channel, const void *payload,
                       uint32_t bytes)
{
    struct vc_link_frame *f = vc_link_frame_new(type, channel, bytes);

    if (!f)
        return VC_CLOSED;
    if (bytes)
        memcpy(f->payload, payload, bytes);
    return vc_link_send(l, f, true);
}

/* Fills buf; the peer's silence, if that is why the connection is down, is told apart. */
static int read_full(struct vc_link *l, uint8_t *buf, size_t n, bool at_start, struct vc_err *err)
{
    size_t have = 0, counted = 0;

    while (have < n) {
        ssize_t got = vc_conn_read_some(l->conn, buf + have, n - have, err);

        if (got <= 0) {
            VC_LOCKED(&l->mu);

            if (l->silent)
                return vc_err_set_hint(err, VC_E_PEER_LOST, "check the network and the other host",
                                       "peer '%s' has been silent for %u ms", l->peer,
                                       l->dead_peer_ms);
            if (got < 0)
                return (int)got;
            if (at_start && have == 0)
                return VC_EOF;
            return vc_err_set(err, VC_E_PEER_LOST, "peer '%s' hung up in the middle of a frame",
                              l->peer);
        }
        have += (size_t)got;
        if (at_start || have == n || have - counted >= TRICKLE_BYTES) {
            counted = have;
            atomic_store_explicit(&l->heard_ns, vc_now_ns(), memory_order_relaxed);
        }
    }
    atomic_fetch_add_explicit(&l->received, n, memory_order_relaxed);
    return 0;
}

static int skip(struct vc_link *l, uint32_t bytes, struct vc_err *err)
{
    uint8_t buf[4096];

    while (bytes) {
        uint32_t n = VC_MIN(bytes, (uint32_t)sizeof(buf));
        int rc = read_full(l, buf, n, false, err);

        if (rc)
            return rc;
        bytes -= n;
    }
    return 0;
}

static int recv_frame(struct vc_link *l, struct vc_link_frame **out, struct vc_err *err)
{
    enum vc_wire_role sender = l->role == VC_WIRE_SOURCE ? VC_WIRE_DESTINATION : VC_WIRE_SOURCE;
    uint8_t header[VC_WIRE_HEADER_BYTES];
    struct vc_wire_frame h;
    vc_auto_frame struct vc_link_frame *f = NULL;
    int rc;

    for (;;) {
        rc = read_full(l, header, sizeof(header), true, err);
        if (rc)
            return rc;
        rc = vc_wire_frame_decode(header, sender, (enum vc_wire_phase)atomic_load(&l->phase), &h,
                                  err);
        if (rc != VC_NOT_FOUND)
            break;
        rc = skip(l, h.bytes, err);
        if (rc)
            return rc;
    }
    if (rc)
        return rc;
    f = vc_link_frame_new(h.type, h.channel, h.bytes);
    if (!f)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a frame of %u bytes", h.bytes);
    rc = read_full(l, f->payload, f->bytes, false, err);
    if (rc)
        return rc;
    f->sent_ns = vc_now_ns();
    *out = vc_steal_ptr(f);
    return 0;
}

static bool is_behind(struct vc_link *l, uint64_t bytes)
{
    VC_LOCKED(&l->mu);

    return l->queued_bytes > bytes;
}

/* The receiving thread must not wait for the sending one: an answer that would have to is left out.
 */
static void answer_ping(struct vc_link *l, const struct vc_link_frame *ping)
{
    if (!is_behind(l, MAX_PONG_BEHIND_BYTES))
        vc_link_send_small(l, VC_WIRE_PONG, 0, ping->payload, ping->bytes);
}

/* The peer's ERROR becomes ours, with its code if we know it. */
static int peer_error(const struct vc_link *l, const struct vc_link_frame *f, struct vc_err *err)
{
    struct vc_wire_status s;
    int rc = vc_wire_status_decode(f->payload, f->bytes, &s, err);
    int code;

    if (rc)
        return rc;
    code = s.code && s.code < 128 && strcmp(vc_err_name(-(int)s.code), "unknown") != 0
               ? -(int)s.code
               : VC_E_PROTOCOL;
    return vc_err_set_hint(err, code, s.hint[0] ? s.hint : NULL, "peer '%.80s': %s", l->peer,
                           s.text);
}

static int recv_for_owner(struct vc_link *l, struct vc_link_frame **out, struct vc_err *err)
{
    for (;;) {
        vc_auto_frame struct vc_link_frame *f = NULL;
        int rc = recv_frame(l, &f, err);

        if (rc)
            return rc;
        switch (f->type) {
        case VC_WIRE_PING:
            answer_ping(l, f);
            continue;
        case VC_WIRE_PONG:
            continue;
        case VC_WIRE_ERROR:
            return peer_error(l, f, err);
        default:
            *out = vc_steal_ptr(f);
            return 0;
        }
    }
}

int vc_link_recv(struct vc_link *l, struct vc_link_frame **out, struct vc_err *err)
{
    int rc;

    atomic_store_explicit(&l->heard_ns, vc_now_ns(), memory_order_relaxed);
    atomic_store_explicit(&l->listening, true, memory_order_release);
    rc = recv_for_owner(l, out, err);
    atomic_store_explicit(&l->listening, false, memory_order_release);
    return rc;
}

int vc_link_hello(struct vc_link *l, uint64_t features, uint64_t *features_out, struct vc_err *err)
{
    struct vc_wire_hello mine = {
        .version_min = VC_WIRE_VERSION,
        .version_max = VC_WIRE_VERSION,
        .role = (uint8_t)l->role,
        .security = (uint8_t)l->security,
        .features = features,
        .software = "vecycle " VC_VERSION,
    };
    struct vc_wire_hello theirs;
    uint8_t payload[512];
    struct vc_writer w = vc_writer(payload, sizeof(payload));
    vc_auto_frame struct vc_link_frame *f = NULL;
    int rc;

    vc_wire_hello_encode(&w, &mine);
    if (vc_link_send_small(l, VC_WIRE_HELLO, 0, payload, (uint32_t)w.len))
        return vc_err_set(err, VC_E_PEER_LOST, "peer '%s' hung up", l->peer);
    rc = vc_link_recv(l, &f, err);
    if (rc == VC_EOF)
        return vc_err_set_hint(err, VC_E_PEER_LOST, "is it vecycle that listens there?",
                               "peer '%s' hung up before it said hello", l->peer);
    if (!rc)
        rc = vc_wire_hello_decode(f->payload, f->bytes, &theirs, err);
    if (rc)
        return rc;
    if (theirs.role == mine.role)
        return vc_err_set(err, VC_E_PROTOCOL, "peer '%s' has the same role as this side", l->peer);
    if (theirs.version_min > VC_WIRE_VERSION || theirs.version_max < VC_WIRE_VERSION)
        return vc_err_set_hint(err, VC_E_VERSION, "install versions of vecycle that fit together",
                               "peer '%s' (%.60s) speaks protocol versions %u to %u, this side %u",
                               l->peer, theirs.software, theirs.version_min, theirs.version_max,
                               VC_WIRE_VERSION);
    if (theirs.security == VC_WIRE_PLAINTEXT)
        l->security = VC_WIRE_PLAINTEXT;
    *features_out = features & theirs.features;
    vc_link_set_phase(l, VC_WIRE_PHASE_OPEN);
    return 0;
}

void vc_link_fail(struct vc_link *l, const struct vc_err *why)
{
    struct vc_wire_status s = {.code = (uint32_t)(why->code < 0 ? -why->code : 1)};
    uint8_t payload[512];
    struct vc_writer w = vc_writer(payload, sizeof(payload));

    snprintf(s.text, sizeof(s.text), "%.160s", why->message);
    snprintf(s.hint, sizeof(s.hint), "%.90s", why->hint);
    vc_wire_status_encode(&w, &s);
    /* A peer that reads nothing does not get to hold up the end. */
    if (!is_behind(l, MAX_URGENT_BYTES / 2))
        vc_link_send_small(l, VC_WIRE_ERROR, 0, payload, (uint32_t)w.len);
    vc_link_finish(l, FAIL_LINGER_NS / VC_NS_PER_MS);
    vc_link_shutdown(l);
}

void vc_link_finish(struct vc_link *l, uint32_t timeout_ms)
{
    uint64_t deadline = vc_now_ns() + timeout_ms * VC_NS_PER_MS;
    VC_LOCKED(&l->mu);

    l->finishing = true;
    pthread_cond_broadcast(&l->changed);
    while (!l->down && !l->broken && (l->urgent.head || l->bulk.head || l->writing))
        if (!vc_cond_wait_until(&l->changed, &l->mu, deadline))
            return;
}

void vc_link_shutdown(struct vc_link *l)
{
    VC_LOCKED(&l->mu);

    shutdown_locked(l);
}

uint32_t vc_link_dead_peer_ms(const struct vc_link *l)
{
    return l->dead_peer_ms;
}

uint64_t vc_link_bytes_sent(const struct vc_link *l)
{
    return atomic_load_explicit(&l->sent, memory_order_relaxed);
}

uint64_t vc_link_bytes_received(const struct vc_link *l)
{
    return atomic_load_explicit(&l->received, memory_order_relaxed);
}

const char *vc_link_peer(const struct vc_link *l)
{
    return l->peer;
}

enum vc_wire_security vc_link_security(const struct vc_link *l)
{
    return l->security;
}
