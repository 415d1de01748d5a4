/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/compiler.h"
#include "source/flow.h"

/* A link that delivers batches one after the other, simulated: no time passes. */

#define QUEUE 256

struct link {
    struct vc_flow flow;
    struct vc_flow_mark marks[QUEUE];
    uint64_t due_ns[QUEUE]; /* when each is acknowledged */
    unsigned head, tail;
    uint64_t now_ns, free_ns; /* the link is busy until then */
    double rate;              /* bytes/s */
    uint64_t delay_ns;        /* one way and back */
};

static void deliver_next(struct link *l)
{
    unsigned i = l->head++ % QUEUE;

    l->now_ns = VC_MAX(l->now_ns, l->due_ns[i]);
    vc_flow_acked(&l->flow, l->now_ns, &l->marks[i]);
}

/* Sends a batch as soon as the flow control lets it. */
static void send(struct link *l, uint32_t wire, uint32_t data, uint32_t same)
{
    struct vc_flow_batch b = {
        .wire_bytes = wire,
        .stream_bytes = data + same,
        .data_bytes = data,
        .backlogged = true,
    };
    enum vc_flow_verdict v;
    unsigned i;

    while ((v = vc_flow_may_send(&l->flow, 24u << 20)) != VC_FLOW_GO) {
        b.wire_limited |= v == VC_FLOW_WIRE_FULL;
        assert_true(l->head < l->tail);
        deliver_next(l);
    }
    while (l->head < l->tail && l->due_ns[l->head % QUEUE] <= l->now_ns)
        deliver_next(l);
    assert_true(l->tail - l->head < QUEUE);
    i = l->tail++ % QUEUE;
    vc_flow_sent(&l->flow, l->now_ns, &b, &l->marks[i]);
    l->free_ns = VC_MAX(l->free_ns, l->now_ns) + (uint64_t)(wire * 1e9 / l->rate);
    l->due_ns[i] = l->free_ns + l->delay_ns;
    l->now_ns += 1000;
}

static void near(double have, double want)
{
    if (have < want * 0.8 || have > want * 1.25)
        fail_msg("%.0f is not near %.0f", have, want);
}

/* ---- rates ---- */

static void the_links_rate_is_found(void **state)
{
    static const double rates[] = {1e6, 12.5e6, 125e6, 1.25e9};
    static const uint64_t delays[] = {50000, 20 * VC_NS_PER_MS};

    (void)state;
    for (size_t r = 0; r < VC_ARRAY_LEN(rates); r++)
        for (size_t d = 0; d < VC_ARRAY_LEN(delays); d++) {
            struct link l = {.rate = rates[r], .delay_ns = delays[d], .now_ns = VC_NS_PER_S};

            for (int i = 0; i < 3000; i++) {
                uint32_t n = vc_flow_batch_data(&l.flow);

                send(&l, n, n, 0);
            }
            near(vc_flow_wire_rate(&l.flow), rates[r]);
            near(vc_flow_data_rate(&l.flow), rates[r]);
        }
}

/* Pages that compress well are delivered many times faster than the link's rate: whoever takes the
 * link's rate for theirs holds QEMU back until it never converges. */
static void the_rate_of_new_pages_counts_what_compression_saves(void **state)
{
    struct link l = {.rate = 12.5e6, .delay_ns = 100000, .now_ns = VC_NS_PER_S};

    (void)state;
    for (int i = 0; i < 3000; i++) {
        uint32_t n = vc_flow_batch_data(&l.flow);

        send(&l, n / 10, n, 0);
    }
    near(vc_flow_wire_rate(&l.flow), 12.5e6);
    near(vc_flow_data_rate(&l.flow), 125e6);
    assert_true(vc_flow_batch_data(&l.flow) > 300000);
}

static void reused_pages_do_not_count_as_new_ones(void **state)
{
    struct link l = {.rate = 12.5e6, .delay_ns = 100000, .now_ns = VC_NS_PER_S};

    (void)state;
    for (int i = 0; i < 500; i++)
        send(&l, 65536, 65536, 0);
    for (int i = 0; i < 2000; i++)
        send(&l, 4096, 4096, 1 << 20);
    near(vc_flow_data_rate(&l.flow), 12.5e6);
}

static void a_link_that_slows_down_is_noticed(void **state)
{
    struct link l = {.rate = 125e6, .delay_ns = 100000, .now_ns = VC_NS_PER_S};

    (void)state;
    for (int i = 0; i < 1000; i++)
        send(&l, 65536, 65536, 0);
    l.rate = 12.5e6;
    for (int i = 0; i < 1000; i++)
        send(&l, 65536, 65536, 0);
    near(vc_flow_wire_rate(&l.flow), 12.5e6);
    near(vc_flow_data_rate(&l.flow), 12.5e6);
}

static void an_idle_source_does_not_lower_the_rate(void **state)
{
    struct link l = {.rate = 125e6, .delay_ns = 100000, .now_ns = VC_NS_PER_S};

    (void)state;
    for (int i = 0; i < 1000; i++)
        send(&l, 65536, 65536, 0);
    while (l.head < l.tail)
        deliver_next(&l);
    for (int i = 0; i < 100; i++) {
        struct vc_flow_batch b = {.wire_bytes = 40000, .stream_bytes = 40000, .data_bytes = 40000};
        struct vc_flow_mark m;

        l.now_ns += 100 * VC_NS_PER_MS;
        vc_flow_sent(&l.flow, l.now_ns, &b, &m);
        l.now_ns += 50 * VC_NS_PER_MS;
        vc_flow_acked(&l.flow, l.now_ns, &m);
    }
    near(vc_flow_wire_rate(&l.flow), 125e6);
    near(vc_flow_data_rate(&l.flow), 125e6);
}

/* ---- what is on its way ---- */

static void the_queue_stays_below_its_limit(void **state)
{
    struct link l = {.rate = 12.5e6, .delay_ns = 100000, .now_ns = VC_NS_PER_S};

    (void)state;
    for (int i = 0; i < 2000; i++) {
        uint32_t n = vc_flow_batch_data(&l.flow);

        send(&l, n, n, 0);
        if (i > 100) /* what is on the wire is delivered within round trip + 30 ms + one batch */
            assert_true(l.due_ns[(l.tail - 1) % QUEUE] - l.now_ns < 60 * VC_NS_PER_MS);
    }
}

/* ---- the downtime limit ---- */

static void the_downtime_limit_allows_for_what_qemu_cannot_see(void **state)
{
    (void)state;
    /* All is new: QEMU's estimate is right. */
    assert_int_equal(vc_flow_downtime_limit(100e6, 100e6, 300, 5), 300);
    /* Reuse makes the intake ten times as fast. */
    assert_int_equal(vc_flow_downtime_limit(100e6, 1000e6, 300, 5), 30);
    assert_int_equal(vc_flow_downtime_limit(1e6, 1000e6, 300, 5), 5);
    /* Nothing is known, or QEMU itself is slow. */
    assert_int_equal(vc_flow_downtime_limit(0, 1000e6, 300, 5), 300);
    assert_int_equal(vc_flow_downtime_limit(100e6, 10e6, 300, 5), 300);
    /* A user's limit below ours stays. */
    assert_int_equal(vc_flow_downtime_limit(1e6, 1000e6, 2, 5), 2);
}

/* At the end of the first pass QEMU's conclusion must be right: (rate it sees) x (its limit) covers
 * no more than is delivered in the pause that the limits allow. */
static void pace_ends_at_an_honest_rate(void **state)
{
    const double rate = 12.5e6;
    const uint64_t limit = 300 * VC_NS_PER_MS;

    (void)state;
    near(vc_flow_pace(rate, 0, limit), rate);
    assert_true(vc_flow_pace(rate, 1ull << 30, limit) > 100 * rate);
    near(vc_flow_pace(rate, 0, 5 * VC_NS_PER_MS), 4 * rate);
    near(vc_flow_pace(0, 0, limit), VC_FLOW_UNKNOWN_RATE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_links_rate_is_found),
        cmocka_unit_test(the_rate_of_new_pages_counts_what_compression_saves),
        cmocka_unit_test(reused_pages_do_not_count_as_new_ones),
        cmocka_unit_test(a_link_that_slows_down_is_noticed),
        cmocka_unit_test(an_idle_source_does_not_lower_the_rate),
        cmocka_unit_test(the_queue_stays_below_its_limit),
        cmocka_unit_test(the_downtime_limit_allows_for_what_qemu_cannot_see),
        cmocka_unit_test(pace_ends_at_an_honest_rate),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
