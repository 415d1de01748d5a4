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
#include "session/session.h"
#include "synthetic.h"

/* Parked QMP connections against a peer that names what is not its own: leave is given for a VM at
 * the socket of a name, and nothing else is handed out, closed or forgotten for it. */

#define MANY 64 /* that fit in */

/* A connection to a QEMU that has said what it has to, and @more; *qemu_fd: its end. */
static struct vc_qmp *connect_talker(const char *name, const char *more, int *qemu_fd)
{
    static const char said[] = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"
                               "{\"return\": {}, \"id\": 1}\r\n";
    struct vc_qmp *q;
    struct vc_err err;
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(vc_write_full(pair[0], said, sizeof(said) - 1), 0);
    assert_int_equal(vc_write_full(pair[0], more, strlen(more)), 0);
    assert_int_equal(vc_qmp_from_fd(pair[1], name, &q, &err), 0);
    *qemu_fd = pair[0];
    return q;
}

static struct vc_qmp *connect_qemu(const char *name, int *qemu_fd)
{
    return connect_talker(name, "", qemu_fd);
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

static void park(struct vc_parking *p, unsigned n, const char *name, int *qemu_fd)
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
    park(p, 1, "vm1", &fd);
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
    park(p, 1, "a name", &mine);
    park(p, 2, "a name", &other);
    park(p, 3, "another", &third);
    park(p, 1, "a name", &again);
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
        park(p, i, "a name", &fds[i]);
    park(p, MANY, "a name", &late);
    assert_false(is_open(late));
    assert_null(take(p, MANY, "a name"));
    close(late);
    for (unsigned i = 0; i < MANY; i++)
        assert_true(is_open(fds[i]));
    q = take(p, MANY / 2, "a name"); /* there is room again */
    assert_non_null(q);
    vc_qmp_free(q);
    park(p, MANY, "a name", &late);
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
    park(NULL, 1, "a name", &fd);
    assert_false(is_open(fd));
    assert_null(take(NULL, 1, "a name"));
    close(fd);
}

/* ---- a word that was lost, while the connection is parked ---- */

static const struct vc_id lost_session = {"a lost session"};

/* A store with a record of a migration that has arrived and waits for its word. */
static struct vc_store *store_with_record(const char *dir)
{
    struct vc_handover h = {
        .state = VC_HANDOVER_ARRIVING, .session = lost_session, .peer = "a", .socket = "vm1"};
    struct vc_id id = vm(1);
    struct vc_store *s;
    struct vc_vm *v;
    struct vc_err err;

    assert_int_equal(vc_store_open(dir, true, 0, &s, &err), 0);
    assert_int_equal(vc_vm_open(s, &id, VC_VM_CREATE, &v, &err), 0);
    assert_int_equal(vc_handover_begin(v, &h, &err), 0);
    vc_vm_close(v);
    return s;
}

static void say(int fd, uint8_t type, const struct vc_writer *w)
{
    uint8_t header[VC_WIRE_HEADER_BYTES];

    vc_wire_frame_encode(&(struct vc_wire_frame){.bytes = (uint32_t)w->len, .type = type}, header);
    assert_int_equal(vc_write_full(fd, header, sizeof(header)), 0);
    assert_int_equal(vc_write_full(fd, w->data, w->len), 0);
}

/* All that a source has to say that repeats its word; then it only listens. */
static void say_word(int fd)
{
    uint8_t buf[512];
    struct vc_writer w = vc_writer(buf, sizeof(buf));

    vc_wire_hello_encode(
        &w, &(struct vc_wire_hello){
                .version_min = 1, .version_max = 1, .role = VC_WIRE_SOURCE, .software = "test"});
    say(fd, VC_WIRE_HELLO, &w);
    w = vc_writer(buf, sizeof(buf));
    vc_wire_open_encode(&w, &(struct vc_wire_open){
                                .session = lost_session, .vm = vm(1), .mode = VC_WIRE_MODE_WORD});
    say(fd, VC_WIRE_OPEN, &w);
    w = vc_writer(buf, sizeof(buf));
    vc_wire_word_encode(
        &w, &(struct vc_wire_word_msg){.word = VC_WIRE_WORD_CONTINUE, .session = lost_session});
    say(fd, VC_WIRE_WORD, &w);
    assert_int_equal(shutdown(fd, SHUT_WR), 0);
}

/* A session of the destination that such a source talks to; the sockets are looked for nowhere. */
static int hear_word(struct vc_store *s, struct vc_parking *p, struct vc_err *err)
{
    struct vc_dest_session o = {.store = s, .parking = p, .socket_dir = "/nonexistent"};
    struct vc_session_result result;
    int pair[2], rc;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    say_word(pair[1]);
    assert_int_equal(vc_conn_from_fds(pair[0], pair[0], VC_CONN_LOCAL, "a", &o.conn, err), 0);
    rc = vc_session_dest(&o, &result, err);
    close(pair[1]);
    return rc;
}

#define UUID_ANSWER \
    "{\"return\": {\"UUID\": \"aa000000-0000-0000-0000-000000000001\"}, \"id\": 2}\n"

/* QEMU serves one client at a time, and that is who parked the connection. */
static void a_lost_word_is_obeyed_over_the_parked_connection(void **state)
{
    char dir[] = "/tmp/vc-parking-XXXXXX", heard[1024];
    struct vc_parking *p = vc_parking_new();
    struct vc_id id = vm(1);
    struct vc_store *s;
    struct vc_err err;
    ssize_t n;
    int fd;

    (void)state;
    assert_non_null(mkdtemp(dir));
    s = store_with_record(dir);
    vc_parking_put(p, &id,
                   connect_talker("vm1",
                                  UUID_ANSWER "{\"return\": {\"status\": \"paused\"}, \"id\": 3}\n"
                                              "{\"return\": {}, \"id\": 4}\n",
                                  &fd));
    assert_int_equal(hear_word(s, p, &err), 0);
    n = recv(fd, heard, sizeof(heard) - 1, MSG_DONTWAIT);
    assert_true(n > 0);
    heard[n] = '\0';
    assert_non_null(strstr(heard, "\"cont\""));
    assert_true(is_open(fd)); /* for the rest of the memory */
    vc_parking_free(p);
    assert_false(is_open(fd));
    close(fd);
    vc_store_close(s);
    remove_tree(dir);
}

/* A QEMU that has ended since is looked for anew. */
static void a_parked_connection_that_broke_is_not_parked_again(void **state)
{
    char dir[] = "/tmp/vc-parking-XXXXXX";
    struct vc_parking *p = vc_parking_new();
    struct vc_store *s;
    struct vc_err err;
    int fd;

    (void)state;
    assert_non_null(mkdtemp(dir));
    s = store_with_record(dir);
    park(p, 1, "vm1", &fd);
    close(fd);
    assert_int_equal(hear_word(s, p, &err), VC_E_DEST_QEMU);
    assert_non_null(strstr(err.message, "/nonexistent"));
    assert_null(take(p, 1, "vm1"));
    vc_parking_free(p);
    vc_store_close(s);
    remove_tree(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_other_name_and_no_other_vm_is_given_a_connection),
        cmocka_unit_test(a_connection_takes_the_place_of_the_same_vm_s_alone),
        cmocka_unit_test(a_full_parking_keeps_what_it_has),
        cmocka_unit_test(without_a_parking_a_connection_is_closed),
        cmocka_unit_test(a_lost_word_is_obeyed_over_the_parked_connection),
        cmocka_unit_test(a_parked_connection_that_broke_is_not_parked_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
