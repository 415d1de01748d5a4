/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/fdio.h"
#include "link/link.h"
#include "net/net.h"

/* A session's frames against a peer that does not play by the rules. */

struct ends {
    struct vc_link *link;
    struct vc_conn *peer;
    int fd; /* of the peer, borrowed */
};

static struct ends connect_ends(uint32_t dead_peer_ms)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_conn *mine;
    struct ends e;
    int wfd;

    assert_int_equal(vc_conn_pair(&mine, &e.peer, &err), 0);
    vc_conn_fds(e.peer, &e.fd, &wfd);
    assert_int_equal(vc_link_new(mine, VC_WIRE_SOURCE, dead_peer_ms, &e.link, &err), 0);
    vc_link_set_phase(e.link, VC_WIRE_PHASE_STREAM);
    return e;
}

static void close_ends(struct ends *e)
{
    vc_link_free(e->link);
    vc_conn_close(e->peer);
}

static void put_frame(uint8_t *p, uint8_t type, uint32_t bytes)
{
    vc_wire_frame_encode(&(struct vc_wire_frame){.bytes = bytes, .type = type}, p);
    memset(p + VC_WIRE_HEADER_BYTES, 0, bytes);
}

static void *receive_all(void *arg)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_link_frame *f;

    while (vc_link_recv(arg, &f, &err) == 0)
        vc_link_frame_free(f);
    return NULL;
}

#define PINGS 500000u
#define PINGS_A_WRITE 1000u

static void a_flood_of_pings_that_reads_no_answer_costs_little_memory(void **state)
{
    static uint8_t buf[PINGS_A_WRITE * (VC_WIRE_HEADER_BYTES + 8)];
    struct ends e = connect_ends(0);
    pthread_t receiver;
    size_t before;

    (void)state;
    for (size_t i = 0; i < PINGS_A_WRITE; i++)
        put_frame(buf + i * (VC_WIRE_HEADER_BYTES + 8), VC_WIRE_PING, 8);
    before = mallinfo2().uordblks;
    assert_int_equal(pthread_create(&receiver, NULL, receive_all, e.link), 0);
    for (size_t i = 0; i < PINGS / PINGS_A_WRITE; i++)
        assert_int_equal(vc_write_full(e.fd, buf, sizeof(buf)), 0);
    /* 500 000 answers would be more than 30 MiB. */
    assert_true(mallinfo2().uordblks < before + (16u << 20));
    vc_link_shutdown(e.link);
    pthread_join(receiver, NULL);
    close_ends(&e);
}

struct sender {
    struct vc_link *link;
    _Atomic unsigned sent;
};

static void *send_repairs(void *arg)
{
    struct sender *s = arg;

    for (;;) {
        struct vc_link_frame *f = vc_link_frame_new(VC_WIRE_REPAIRED, 0, 1 << 20);

        memset(f->payload, 0, f->bytes);
        if (vc_link_send(s->link, f, true))
            return NULL;
        s->sent++;
    }
}

/* Urgent frames pass others, but are not free: who asks for repairs has to read them. */
static void repairs_that_nobody_reads_stop_being_sent(void **state)
{
    struct ends e = connect_ends(200);
    struct sender s = {.link = e.link};
    pthread_t sender, receiver;

    (void)state;
    assert_int_equal(pthread_create(&receiver, NULL, receive_all, e.link), 0);
    assert_int_equal(pthread_create(&sender, NULL, send_repairs, &s), 0);
    /* The peer is silent as well: the link goes down by itself, and wakes everybody. */
    while (s.sent < 8)
        usleep(1000);
    for (;;) {
        struct vc_link_frame *f = vc_link_frame_new(VC_WIRE_PING, 0, 8);

        vc_link_check_peer(e.link);
        memset(f->payload, 0, 8);
        if (vc_link_send(e.link, f, true) == VC_CLOSED)
            break;
    }
    pthread_join(sender, NULL);
    pthread_join(receiver, NULL);
    assert_true(s.sent <= 18); /* 16 MiB, and what the socket took */
    close_ends(&e);
}

static void saying_why_does_not_wait_for_a_peer_that_reads_nothing(void **state)
{
    struct ends e = connect_ends(60000);
    struct sender s = {.link = e.link};
    struct vc_err why = VC_ERR_INIT;
    pthread_t sender;

    (void)state;
    assert_int_equal(pthread_create(&sender, NULL, send_repairs, &s), 0);
    while (s.sent < 12)
        usleep(1000);
    vc_err_set(&why, VC_E_CANCELLED, "enough");
    vc_link_fail(e.link, &why); /* would hang for ever */
    pthread_join(sender, NULL);
    close_ends(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_flood_of_pings_that_reads_no_answer_costs_little_memory),
        cmocka_unit_test(repairs_that_nobody_reads_stop_being_sent),
        cmocka_unit_test(saying_why_does_not_wait_for_a_peer_that_reads_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
