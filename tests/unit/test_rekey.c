/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "api/rekey.h"
#include "net/internal.h"

/* By which names a host is known that was given a key. */

static void assert_host(const char *address, const char *host)
{
    char got[256];

    vc_holder_host(address, got);
    assert_string_equal(got, host);
}

static void an_address_has_a_host(void **state)
{
    (void)state;
    assert_host("ssh://root@box.example:2222", "box.example");
    assert_host("ssh://box", "box");
    assert_host("tls://10.0.0.7:7891", "10.0.0.7");
    assert_host("tls://[2001:db8::7]:7891", "2001:db8::7");
    assert_host("tls://[fe80::7%eth0]", "fe80::7%eth0");
    assert_host("tls://2001:db8::7", "2001:db8::7");
    assert_host("ssh from 192.0.2.1", "192.0.2.1");
    assert_host("ssh from 2001:db8::7", "2001:db8::7");
    assert_host("unix:/run/user@b:1", "unix:/run/user@b:1");
    assert_host("standard input", "standard input");
    assert_host("", "");
}

static const char *names[VC_HOLDER_NAMES + 2];

static const char *peer_name(const struct vc_conn *c, unsigned i)
{
    (void)c;
    return i < VC_ARRAY_LEN(names) ? names[i] : NULL;
}

static const struct vc_conn_ops ops = {.peer_name = peer_name};

static void a_holder_has_the_names_of_its_certificate_or_those_of_its_address(void **state)
{
    static struct vc_holder h;
    const struct vc_conn with = {.ops = &ops, .describe = "b at 10.0.0.7"};
    const struct vc_conn without = {.ops = &ops, .describe = "ssh://root@b.example"};
    const struct vc_id lineage = {"a lineage's id."};

    (void)state;
    names[0] = "b.example";
    names[1] = "10.0.0.7";
    vc_holder_describe(&h, &lineage, &with, true);
    assert_true(h.listed && h.n_names == 2 && vc_id_equal(&h.lineage, &lineage));
    assert_string_equal(h.names[0], "b.example");
    assert_string_equal(h.names[1], "10.0.0.7");
    names[0] = NULL;
    vc_holder_describe(&h, &lineage, &without, false);
    assert_true(!h.listed && h.n_names == 1);
    assert_string_equal(h.names[0], "b.example");
}

/* What is not noted of a host cannot be asked for later: then it is noted that there is more. */
static void a_holder_knows_whether_its_names_are_all(void **state)
{
    static struct vc_holder h;
    static char texts[VC_HOLDER_NAMES + 1][16], longest[256], longer[257];
    const struct vc_conn peer = {.ops = &ops, .describe = "b at 10.0.0.7"};
    const struct vc_id lineage = {"a lineage's id."};

    (void)state;
    for (unsigned i = 0; i < VC_HOLDER_NAMES; i++) {
        snprintf(texts[i], sizeof(texts[i]), "net%u.example", i);
        names[i] = texts[i];
    }
    names[VC_HOLDER_NAMES] = NULL;
    vc_holder_describe(&h, &lineage, &peer, true);
    assert_true(h.n_names == VC_HOLDER_NAMES && !h.cut);
    assert_string_equal(h.names[VC_HOLDER_NAMES - 1], "net15.example");
    names[VC_HOLDER_NAMES] = "one.more";
    names[VC_HOLDER_NAMES + 1] = NULL;
    vc_holder_describe(&h, &lineage, &peer, true);
    assert_true(h.n_names == VC_HOLDER_NAMES && h.cut);
    memset(longest, 'a', sizeof(longest) - 1);
    memset(longer, 'a', sizeof(longer) - 1);
    names[0] = longer;
    names[1] = longest;
    names[2] = NULL;
    vc_holder_describe(&h, &lineage, &peer, true);
    assert_true(h.n_names == 1 && h.cut);
    assert_string_equal(h.names[0], longest);
    names[0] = NULL;
}

static void a_checkpoint_is_of_the_host_that_its_note_names(void **state)
{
    (void)state;
    assert_true(vc_rekey_is_of("b at 10.0.0.7", "b"));
    assert_true(vc_rekey_is_of("b at 10.0.0.7", "10.0.0.7"));
    assert_true(vc_rekey_is_of("b at 2001:db8::7", "2001:db8::7"));
    assert_true(vc_rekey_is_of("tls://B.example:7891", "b.*"));
    assert_true(vc_rekey_is_of("ssh://root@b", "b"));
    assert_true(vc_rekey_is_of("unix:/run/b", "unix:/run/b"));
    assert_true(vc_rekey_is_of("b at 10.0.0.9 at 10.0.0.7", "10.0.0.7"));
    assert_false(vc_rekey_is_of("b at 10.0.0.9 at 10.0.0.7", "10.0.0.9"));
    assert_false(vc_rekey_is_of("b at 10.0.0.7", "c"));
    assert_false(vc_rekey_is_of("ssh://root@b", "root"));
    assert_false(vc_rekey_is_of("", "b"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_address_has_a_host),
        cmocka_unit_test(a_holder_has_the_names_of_its_certificate_or_those_of_its_address),
        cmocka_unit_test(a_holder_knows_whether_its_names_are_all),
        cmocka_unit_test(a_checkpoint_is_of_the_host_that_its_note_names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
