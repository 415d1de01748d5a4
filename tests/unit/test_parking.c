/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fdio.h"
#include "qmp/qmp.h"
#include "session/parking.h"

/* Parked QMP connections against a peer that names what is not its own: leave is given for a VM at
 * the socket of a name, and nothing else is handed out, closed or forgotten for it. */

#define MANY 64 /* that fit in */

/* A connection to a QEMU that has said what it has to; *qemu_fd: its end. */
static struct vc_qmp *connect_qemu(const char *name, int *qemu_fd)
{
    static const char said[] = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"
                               "{\"return\": {}, \"id\": 1}\r\n";
    struct vc_qmp *q;
    struct vc_err err;
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(vc_write_full(pair[0], said, sizeof(said) - 1), 0);
    assert_int_equal(vc_qmp_from_fd(pair[1], name, &q, &err), 0);
    *qemu_fd = pair[0];
    return q;
}

static bool is_open(int qemu_fd)
{
    char buf[256];
    ssize_t n;

    do
        n = recv(qemu_fd, buf, sizeof(buf), MSG_DONTWAIT);
    while (n > 0);
    return n < 0;
}

static struct vc_id vm(unsigned n)
{
    return (struct vc_id){.b = {0xaa, [15] = (uint8_t)n}};
}

static void put(struct vc_parking *p, unsigned n, const char *name, int *qemu_fd)
{
    struct vc_id id = vm(n);

    vc_parking_put(p, &id, connect_qemu(name, qemu_fd));
}

static struct vc_qmp *take(struct vc_parking *p, unsigned n, const char *name)
{
    struct vc_id id = vm(n);

    return vc_parking_take(p, &id, name);
}

static void no_other_name_and_no_other_vm_is_given_a_connection(void **state)
{
    static const char *const names[] = {
        "",
        "v",
        "vm",
        "vm1 ",
        "vm11",
        "VM1",
        " vm1",
        "./vm1",
        "vm1/.",
        "../vm1",
        "vm1.qmp",
        "vm1\n",
        "*",
        "%s",
        "/vm1",
        "vm2",
        "the VM at the socket of that name, and much more than any name may be long",
    };
    struct vc_parking *p = vc_parking_new();
    struct vc_qmp *q;
    int fd;

    (void)state;
    assert_non_null(p);
    put(p, 1, "vm1", &fd);
    for (size_t i = 0; i < VC_ARRAY_LEN(names); i++)
        assert_null(take(p, 1, names[i]));
    for (unsigned n = 0; n < 256; n++)
        assert_true(n == 1 || !take(p, n, "vm1"));
    assert_true(is_open(fd));
    q = take(p, 1, "vm1");
    assert_non_null(q);
    assert_string_equal(vc_qmp_name(q), "vm1");
    assert_null(take(p, 1, "vm1")); /* it is given once */
    vc_parking_free(p);
    assert_true(is_open(fd)); /* and is the taker's */
    vc_qmp_free(q);
    assert_false(is_open(fd));
    close(fd);
}

static void a_connection_takes_the_place_of_the_same_vm_s_alone(void **state)
{
    struct vc_parking *p = vc_parking_new();
    struct vc_qmp *q;
    int mine, again, other, third;

    (void)state;
    assert_non_null(p);
    put(p, 1, "a name", &mine);
    put(p, 2, "a name", &other);
    put(p, 3, "another", &third);
    put(p, 1, "a name", &again);
    assert_false(is_open(mine));
    assert_true(is_open(again) && is_open(other) && is_open(third));
    q = take(p, 1, "a name");
    assert_non_null(q);
    vc_qmp_free(q);
    assert_false(is_open(again));
    assert_true(is_open(other) && is_open(third));
    vc_parking_free(p);
    assert_false(is_open(other) || is_open(third));
    close(mine);
    close(again);
    close(other);
    close(third);
}

static void a_full_parking_keeps_what_it_has(void **state)
{
    struct vc_parking *p = vc_parking_new();
    struct vc_qmp *q;
    int fds[MANY], late;

    (void)state;
    assert_non_null(p);
    for (unsigned i = 0; i < MANY; i++)
        put(p, i, "a name", &fds[i]);
    put(p, MANY, "a name", &late);
    assert_false(is_open(late));
    assert_null(take(p, MANY, "a name"));
    close(late);
    for (unsigned i = 0; i < MANY; i++)
        assert_true(is_open(fds[i]));
    q = take(p, MANY / 2, "a name"); /* there is room again */
    assert_non_null(q);
    vc_qmp_free(q);
    put(p, MANY, "a name", &late);
    assert_true(is_open(late));
    vc_parking_free(p);
    assert_false(is_open(late));
    close(late);
    for (unsigned i = 0; i < MANY; i++)
        close(fds[i]);
}

static void without_a_parking_a_connection_is_closed(void **state)
{
    int fd;

    (void)state;
    put(NULL, 1, "a name", &fd);
    assert_false(is_open(fd));
    assert_null(take(NULL, 1, "a name"));
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_other_name_and_no_other_vm_is_given_a_connection),
        cmocka_unit_test(a_connection_takes_the_place_of_the_same_vm_s_alone),
        cmocka_unit_test(a_full_parking_keeps_what_it_has),
        cmocka_unit_test(without_a_parking_a_connection_is_closed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
