/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Which failures are followed by another attempt, which are waited out, and which end it. */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "api/api.h"

/* What the attempts come to, one after the other. */
struct outcome {
    int code;
    bool began; /* the stream */
    bool lasts;
    int sys_errno;
};

struct script {
    const struct outcome *outcomes;
    unsigned n, at;
    struct vc_cancel *cancel; /* set in the course of the first one */
};

#define SCRIPT(...)                                                 \
    ((struct script){                                               \
        .outcomes = (const struct outcome[]){__VA_ARGS__},          \
        .n = VC_ARRAY_LEN(((const struct outcome[]){__VA_ARGS__})), \
    })

static int once(void *opaque, struct vc_session_result *r, struct vc_err *err)
{
    struct script *s = opaque;
    int code;

    assert_true(s->at < s->n);
    *r = (struct vc_session_result){.stream_bytes = s->outcomes[s->at].began};
    code = s->outcomes[s->at++].code;
    if (s->cancel)
        vc_cancel_now(s->cancel);
    if (!code)
        return 0;
    vc_err_set(err, code, "as the script says");
    err->lasts = s->outcomes[s->at - 1].lasts;
    err->sys_errno = s->outcomes[s->at - 1].sys_errno;
    return code;
}

static int run(struct script s, unsigned retries, unsigned *attempts, unsigned *calls)
{
    struct vc_retry t = {.retries = retries, .once = once, .opaque = &s, .cancel = s.cancel};
    struct vc_session_result r;
    struct vc_err err = VC_ERR_INIT;
    int rc = vc_retry_run(&t, &r, &err);

    assert_true(rc == 0 || err.code == rc);
    *attempts = t.attempts;
    *calls = s.at;
    return rc;
}

static void what_went_well_is_not_done_again(void **state)
{
    unsigned attempts, calls;

    (void)state;
    assert_int_equal(run(SCRIPT({0, true}), 5, &attempts, &calls), 0);
    assert_int_equal(attempts, 1);
    assert_int_equal(calls, 1);
}

static void a_lost_peer_is_tried_again_and_no_oftener_than_asked_for(void **state)
{
    unsigned attempts, calls;

    (void)state;
    assert_int_equal(run(SCRIPT({VC_E_PEER_LOST, true}), 0, &attempts, &calls), VC_E_PEER_LOST);
    assert_int_equal(attempts, 1);
    assert_int_equal(run(SCRIPT({VC_E_PEER_LOST, true}, {0, true}), 3, &attempts, &calls), 0);
    assert_int_equal(attempts, 2);
    assert_int_equal(
        run(SCRIPT({VC_E_PEER_LOST, true}, {VC_E_DEST_QEMU, true}), 1, &attempts, &calls),
        VC_E_DEST_QEMU);
    assert_int_equal(attempts, 2);
    assert_int_equal(calls, 2);
}

static void what_cannot_pass_ends_it(void **state)
{
    static const int codes[] = {VC_E_USAGE,     VC_E_QMP_CONNECT, VC_E_QEMU_STATE, VC_E_VERSION,
                                VC_E_PROTOCOL,  VC_E_REFUSED,     VC_E_NO_SUCH_VM, VC_E_STORE,
                                VC_E_MIGRATION, VC_E_CANCELLED,   VC_E_UNSETTLED};
    struct vc_session_result r = {.stream_bytes = 1};

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(codes); i++)
        assert_false(vc_retry_may_pass(&(struct vc_err){.code = codes[i]}, &r));
    r.stream_bytes = 0;
    assert_false(vc_retry_may_pass(&(struct vc_err){.code = VC_E_DEST_QEMU}, &r)); /* none there */
}

static void a_new_destination_qemu_is_waited_for_without_counting(void **state)
{
    unsigned attempts, calls;

    (void)state;
    assert_int_equal(
        run(SCRIPT({VC_E_DEST_QEMU, true}, {VC_E_BUSY, false}, {VC_E_NO_SUCH_VM, false}, {0, true}),
            1, &attempts, &calls),
        0);
    assert_int_equal(attempts, 2);
    assert_int_equal(calls, 4);
}

static void what_lasts_is_not_tried_again(void **state)
{
    unsigned attempts, calls;

    (void)state;
    assert_int_equal(run(SCRIPT({VC_E_UNREACHABLE, false, true}), 5, &attempts, &calls),
                     VC_E_UNREACHABLE);
    assert_int_equal(calls, 1);
    assert_int_equal(
        run(SCRIPT({VC_E_PEER_LOST, true}, {VC_E_UNREACHABLE, false, true}), 5, &attempts, &calls),
        VC_E_UNREACHABLE);
    assert_int_equal(calls, 2);
}

static void an_agent_that_starts_again_is_waited_for(void **state)
{
    unsigned attempts, calls;

    (void)state;
    assert_int_equal(
        run(SCRIPT({VC_E_PEER_LOST, true}, {VC_E_UNREACHABLE, false, true, ENOENT}, {0, true}), 1,
            &attempts, &calls),
        0);
    assert_int_equal(attempts, 2);
    assert_int_equal(calls, 3);
}

static void a_login_is_tried_ever_more_rarely(void **state)
{
    struct vc_retry local = {.retries = 1}, login = {.retries = 1, .authenticates = true};
    uint32_t step = 1000, sum = 0, n = 0;

    (void)state;
    assert_int_equal(vc_retry_step_ms(&local, 1000), 1000);
    for (; sum < 60000; n++) {
        uint32_t next = vc_retry_step_ms(&login, step);

        assert_true(next >= step);
        sum += step;
        step = next;
    }
    assert_true(n < 10); /* in a minute */
}

static void a_pause_can_be_cancelled(void **state)
{
    struct script s = SCRIPT({VC_E_UNREACHABLE, false});
    struct vc_cancel cancel;
    unsigned attempts, calls;
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_cancel_init(&cancel, &err), 0);
    s.cancel = &cancel;
    assert_int_equal(run(s, 1000, &attempts, &calls), VC_E_CANCELLED);
    assert_int_equal(calls, 1);
    vc_cancel_fini(&cancel);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_went_well_is_not_done_again),
        cmocka_unit_test(a_lost_peer_is_tried_again_and_no_oftener_than_asked_for),
        cmocka_unit_test(what_cannot_pass_ends_it),
        cmocka_unit_test(a_new_destination_qemu_is_waited_for_without_counting),
        cmocka_unit_test(what_lasts_is_not_tried_again),
        cmocka_unit_test(an_agent_that_starts_again_is_waited_for),
        cmocka_unit_test(a_login_is_tried_ever_more_rarely),
        cmocka_unit_test(a_pause_can_be_cancelled),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
