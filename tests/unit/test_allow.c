/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/api.h"
#include "net/internal.h"

/* The list of peers, rule by rule as vecycle-peers(5) has them. */

#define ONE "6f0c7a52-93a8-4d0b-9b5e-1f6a2f1d9c11"
#define OTHER "4d3b1c9e-52a0-4c57-8f2e-7b9d1f0a6e33"

static char path[] = "/tmp/vc-peers-XXXXXX";

static void write_list(const void *p, size_t n)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void list(const char *text)
{
    write_list(text, strlen(text));
}

/* ---- peers ---- */

#define MAX_NAMES 4
static const char *names[MAX_NAMES + 1]; /* NULL behind the last */

static const char *peer_name(const struct vc_conn *c, unsigned i)
{
    (void)c;
    return names[i];
}

static const struct vc_conn_ops ops = {.peer_name = peer_name};
static const struct vc_conn peer = {.ops = &ops};

static void who(const char *const set[MAX_NAMES])
{
    memcpy(names, set, MAX_NAMES * sizeof(*names));
}

#define WHO(...) who((const char *const[MAX_NAMES]){__VA_ARGS__})

/* ---- questions ---- */

static int ask(const struct vc_reach *what, struct vc_err *err)
{
    *err = VC_ERR_INIT;
    return vc_allow_may_reach(path, &peer, what, err);
}

static bool answer(const struct vc_reach *what)
{
    struct vc_err err;
    int rc = ask(what, &err);

    assert_true(rc == 0 || (rc == VC_E_REFUSED && err.code == rc && err.message[0]));
    return !rc;
}

static struct vc_reach about(const char *socket, const char *vm)
{
    struct vc_reach what = {.name = socket};

    assert_true(!vm || vc_id_parse(vm, &what.vm));
    return what;
}

/* What a proxy's peer tells. */
static bool may(const char *socket, const char *vm)
{
    struct vc_reach what = about(socket, vm);

    return answer(&what);
}

/* The same where QEMU is asked who it is. */
static bool may_attested(const char *socket, const char *vm)
{
    struct vc_reach what = about(socket, vm);

    what.attested = true;
    return answer(&what);
}

static bool may_talk(void)
{
    return may(NULL, NULL);
}

/* ---- peers and their names ---- */

static void only_who_is_named_may_talk(void **state)
{
    (void)state;
    list("host2 *\n");
    WHO("host2");
    assert_true(may_talk());
    assert_true(may("anything", ONE));
    WHO("host3");
    assert_false(may_talk());
    assert_false(may("anything", ONE));
    WHO("host");
    assert_false(may_talk());
    WHO("host22");
    assert_false(may_talk());
    WHO(NULL); /* without a certificate */
    assert_false(may_talk());
    list("* *\n");
    assert_false(may_talk());
}

static void each_name_of_a_certificate_counts(void **state)
{
    (void)state;
    list("192.0.2.7 *\n");
    WHO("a", "a.example", "192.0.2.7");
    assert_true(may("x", ONE));
    WHO("a", "a.example", "192.0.2.17");
    assert_false(may("x", ONE));
}

static void a_pattern_stands_for_dots_too(void **state)
{
    (void)state;
    list("*.lab.example.org *\nhost? *\n2001:db8::* *\n");
    WHO("a.b.lab.example.org");
    assert_true(may_talk());
    WHO("lab.example.org");
    assert_false(may_talk());
    WHO("x.lab.example.org.evil");
    assert_false(may_talk());
    WHO("host7");
    assert_true(may_talk());
    WHO("host");
    assert_false(may_talk());
    WHO("host10");
    assert_false(may_talk());
    WHO("2001:db8::17");
    assert_true(may_talk());
}

static void brackets_stand_for_one_of_those_in_them(void **state)
{
    (void)state;
    list("host[1-3] web[ab]=" ONE "\n");
    WHO("host2");
    assert_true(may("weba", ONE));
    assert_false(may("webc", ONE));
    WHO("host4");
    assert_false(may_talk());
}

static void case_matters_for_sockets_and_not_for_peers(void **state)
{
    (void)state;
    list("Host*.Example db=" ONE "\n");
    WHO("hOST2.eXAMPLE");
    assert_true(may("db", ONE));
    assert_false(may("DB", ONE));
}

/* ---- VMs ---- */

static void a_uuid_is_the_vm_at_the_socket_named_after_it(void **state)
{
    (void)state;
    list("host2 " ONE "\n");
    WHO("host2");
    assert_true(may_talk());
    assert_true(may(ONE, ONE));
    assert_false(may("db", ONE));
    assert_false(may(ONE, OTHER));
    assert_false(may(OTHER, OTHER));
    assert_false(may_attested("db", ONE));
}

static void a_name_with_a_uuid_is_that_vm_at_that_socket(void **state)
{
    (void)state;
    list("host2 db=" ONE "\n");
    WHO("host2");
    assert_true(may("db", ONE));
    assert_false(may("db", OTHER));
    assert_false(may("web", ONE));
    assert_false(may(ONE, ONE));
    assert_false(may_attested("db", OTHER));
}

static void a_name_alone_needs_qemus_own_word(void **state)
{
    (void)state;
    list("host2 web-*\n");
    WHO("host2");
    assert_true(may_attested("web-1", ONE));
    assert_false(may("web-1", ONE));
    assert_false(may_attested("web", ONE));
}

static void the_asterisk_is_every_vm(void **state)
{
    (void)state;
    list("host2 *\n");
    WHO("host2");
    assert_true(may("db", ONE));
    assert_true(may_attested("web", OTHER));
    assert_true(may("", ONE));
}

static void a_name_that_is_a_pattern_still_needs_the_uuid(void **state)
{
    (void)state;
    list("host2 *=" ONE " db-?=" OTHER "\n");
    WHO("host2");
    assert_true(may("whatever", ONE));
    assert_false(may("whatever", OTHER));
    assert_true(may("db-1", OTHER));
    assert_false(may("db-12", OTHER));
}

/* A word about a migration that is not on record here: the socket is not known. */
static void without_a_record_the_uuid_decides(void **state)
{
    (void)state;
    list("host2 " ONE " web-*\nhost3 db=" OTHER "\n");
    WHO("host2");
    assert_true(may("", ONE));
    assert_false(may("", OTHER));
    assert_false(may_attested("", OTHER));
    WHO("host3");
    assert_true(may("", OTHER));
}

/* ---- lines ---- */

static void several_lines_may_speak_of_a_peer(void **state)
{
    (void)state;
    list("host2 a=" ONE "\nhost3 b=" ONE "\nhost* c=" ONE " d=" ONE "\n");
    WHO("host2");
    assert_true(may("a", ONE));
    assert_false(may("b", ONE));
    assert_true(may("c", ONE));
    assert_true(may("d", ONE));
}

static void blanks_and_comments_say_nothing(void **state)
{
    (void)state;
    list("# host3 *\n"
         "\n"
         "   \t \r\n"
         "\thost2  \t a=" ONE "   b=" ONE "# c=" ONE "\r\n"
         "   # host4 *\n"
         "host5 *"); /* no newline at the end */
    WHO("host2");
    assert_true(may("a", ONE));
    assert_true(may("b", ONE));
    assert_false(may("c", ONE));
    WHO("host3");
    assert_false(may_talk());
    WHO("host4");
    assert_false(may_talk());
    WHO("host5");
    assert_true(may("c", ONE));
}

static void an_empty_list_allows_nothing(void **state)
{
    struct vc_err err;

    (void)state;
    list("");
    assert_int_equal(vc_allow_check(path, &err), 0);
    WHO("host2");
    assert_false(may_talk());
}

static void a_change_counts_at_once(void **state)
{
    (void)state;
    WHO("host2");
    list("host2 *\n");
    assert_true(may_talk());
    list("host3 *\n");
    assert_false(may_talk());
}

/* ---- mistakes ---- */

static void a_mistake_anywhere_allows_nothing_and_has_a_line(void **state)
{
    static const char *const mistakes[][2] = {
        {"host3", "'host3' may reach nothing"},
        {"host3 # *", "'host3' may reach nothing"},
        {"ho/st *", "'ho/st' is not a name or a pattern"},
        {"host3! *", "'host3!' is not a name or a pattern"},
        {"host3=" ONE " *", "is not a name or a pattern"},
        {"host3 a/b", "'a/b' is not a VM"},
        {"host3 \\*", "'\\*' is not a VM"},
        {"host3 =" ONE, "is not a VM"},
        {"host3 db=", "is not a VM"},
        {"host3 db=" ONE "0", "is not a VM"},
        {"host3 a=b=" ONE, "is not a VM"},
        {"host3 db=*", "is not a VM"},
        {"host3 a,b", "'a,b' is not a VM"},
        {"h\xc3\xb6st *", "is not a name or a pattern"},
    };

    (void)state;
    WHO("host2");
    for (size_t i = 0; i < VC_ARRAY_LEN(mistakes); i++) {
        struct vc_err err = VC_ERR_INIT;
        char text[256], where[64];

        snprintf(text, sizeof(text), "host2 *\n# a comment\n\n%s\n", mistakes[i][0]);
        list(text);
        assert_int_equal(vc_allow_check(path, &err), VC_E_REFUSED);
        snprintf(where, sizeof(where), "%s:4: ", path);
        if (!strstr(err.message, where) || !strstr(err.message, mistakes[i][1]))
            fail_msg("'%s': %s", mistakes[i][0], err.message);
        assert_false(may_talk());
        assert_false(may("x", ONE));
    }
}

static void a_zero_byte_hides_no_mistake(void **state)
{
    static const char text[] = "host2 *\n# and so on\0\nhost3\n";
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    write_list(text, sizeof(text) - 1);
    WHO("host2");
    assert_int_equal(vc_allow_check(path, &err), VC_E_REFUSED);
    assert_false(may_talk());
}

static void what_is_no_file_allows_nothing(void **state)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_reach what = about("x", ONE);
    char nowhere[] = "/nonexistent/peers";

    (void)state;
    WHO("host2");
    assert_int_equal(vc_allow_check(nowhere, &err), VC_E_REFUSED);
    assert_non_null(strstr(err.message, nowhere));
    assert_true(err.hint[0]);
    assert_int_equal(vc_allow_may_reach(nowhere, &peer, &what, &err), VC_E_REFUSED);
    assert_int_equal(vc_allow_check("/tmp", &err), VC_E_REFUSED);
    assert_int_equal(vc_allow_check("/dev/zero", &err), VC_E_REFUSED);
}

static void a_list_has_a_limit(void **state)
{
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    list("host2 *\n");
    WHO("host2");
    assert_int_equal(truncate(path, (1 << 20) + 1), 0);
    assert_int_equal(vc_allow_check(path, &err), VC_E_REFUSED);
    assert_false(may_talk());
}

static void a_list_that_others_can_change_allows_nothing(void **state)
{
    static const mode_t modes[] = {0620, 0602, 0666, 0622};
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    list("host2 *\n");
    WHO("host2");
    for (size_t i = 0; i < VC_ARRAY_LEN(modes); i++) {
        assert_int_equal(chmod(path, modes[i]), 0);
        assert_int_equal(vc_allow_check(path, &err), VC_E_REFUSED);
        assert_non_null(strstr(err.hint, "chmod"));
        assert_false(may_talk());
    }
    assert_int_equal(chmod(path, 0644), 0);
    assert_true(may_talk());
    if (geteuid() == 0) {
        assert_int_equal(chown(path, 65534, 65534), 0);
        assert_int_equal(vc_allow_check(path, &err), VC_E_REFUSED);
        assert_int_equal(chown(path, 0, 0), 0);
    }
    assert_int_equal(chmod(path, 0600), 0);
    assert_true(may_talk());
}

/* ---- refusals ---- */

static void a_refusal_names_peer_socket_and_vm(void **state)
{
    struct vc_reach what = about("db", ONE);
    struct vc_err err;

    (void)state;
    list("host3 *\n");
    WHO("host2", "host2.example");
    assert_int_equal(ask(&what, &err), VC_E_REFUSED);
    assert_non_null(strstr(err.message, "'host2'"));
    assert_non_null(strstr(err.message, "'db'"));
    assert_non_null(strstr(err.message, ONE));
    what.name = NULL;
    assert_int_equal(ask(&what, &err), VC_E_REFUSED);
    assert_non_null(strstr(err.message, "'host2' is not among the peers"));
    assert_non_null(strstr(err.hint, "--allow"));
    WHO(NULL);
    assert_int_equal(ask(&what, &err), VC_E_REFUSED);
    assert_non_null(strstr(err.message, "without a name"));
}

static int set_up(void **state)
{
    int fd = mkstemp(path);

    (void)state;
    return fd < 0 ? -1 : close(fd);
}

static int tear_down(void **state)
{
    (void)state;
    return unlink(path);
}

static bool is_listed(const char *name)
{
    struct vc_err err;
    bool listed;

    assert_int_equal(vc_allow_lists(path, name, &listed, &err), 0);
    return listed;
}

static void who_is_on_the_list_is_so_for_any_vm(void **state)
{
    struct vc_err err;
    bool listed = true;

    (void)state;
    list("# host3 *\nhost1 " ONE "\n  HOST2.example *\n*.lab web-*\n");
    assert_true(is_listed("host1") && is_listed("Host1") && is_listed("host2.EXAMPLE"));
    assert_true(is_listed("a.b.lab"));
    assert_false(is_listed("host3") || is_listed("host") || is_listed("host11") ||
                 is_listed("lab"));
    list("");
    assert_false(is_listed("host1"));
    unlink(path);
    assert_int_equal(vc_allow_lists(path, "host1", &listed, &err), VC_E_REFUSED);
    assert_false(listed);
    list("");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_who_is_named_may_talk),
        cmocka_unit_test(each_name_of_a_certificate_counts),
        cmocka_unit_test(a_pattern_stands_for_dots_too),
        cmocka_unit_test(brackets_stand_for_one_of_those_in_them),
        cmocka_unit_test(case_matters_for_sockets_and_not_for_peers),
        cmocka_unit_test(a_uuid_is_the_vm_at_the_socket_named_after_it),
        cmocka_unit_test(a_name_with_a_uuid_is_that_vm_at_that_socket),
        cmocka_unit_test(a_name_alone_needs_qemus_own_word),
        cmocka_unit_test(the_asterisk_is_every_vm),
        cmocka_unit_test(a_name_that_is_a_pattern_still_needs_the_uuid),
        cmocka_unit_test(without_a_record_the_uuid_decides),
        cmocka_unit_test(several_lines_may_speak_of_a_peer),
        cmocka_unit_test(blanks_and_comments_say_nothing),
        cmocka_unit_test(an_empty_list_allows_nothing),
        cmocka_unit_test(a_change_counts_at_once),
        cmocka_unit_test(a_mistake_anywhere_allows_nothing_and_has_a_line),
        cmocka_unit_test(a_zero_byte_hides_no_mistake),
        cmocka_unit_test(what_is_no_file_allows_nothing),
        cmocka_unit_test(a_list_has_a_limit),
        cmocka_unit_test(a_list_that_others_can_change_allows_nothing),
        cmocka_unit_test(a_refusal_names_peer_socket_and_vm),
        cmocka_unit_test(who_is_on_the_list_is_so_for_any_vm),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
