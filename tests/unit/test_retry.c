/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Which failures are followed by another attempt, which are waited out, and which end it. */

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
    return code ? vc_err_set(err, code, "as the script says") : 0;
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
        assert_false(vc_retry_may_pass(codes[i], &r));
    r.stream_bytes = 0;
    assert_false(vc_retry_may_pass(VC_E_DEST_QEMU, &r)); /* nobody has started one */
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
        cmocka_unit_test(a_pause_can_be_cancelled),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
