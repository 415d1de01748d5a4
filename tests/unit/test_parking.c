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
#include "base/thread.h"
#include "qmp/qmp.h"
#include "session/parking.h"
#include "session/session.h"
#include "synthetic.h"

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

/* ---- later sessions about a VM whose connection is parked ---- */

static const struct vc_id lost_session = {"a lost session"};

struct place {
    char dir[32];
    struct vc_store *store;
    struct vc_parking *parking;
    struct vc_thread thread;
    int qemu_fd;
    char heard[1024]; /* commands [thread: QEMU, then whoever joined it] */
};

/* Answers what comes behind qmp_capabilities, which was answered before: who it is, that it is
 * paused, that it did as it was told. */
static void *answer(void *arg)
{
    static const char *const answers[] = {
        "",
        "{\"id\": 2, \"return\": {\"UUID\": \"aa000000-0000-0000-0000-000000000001\"}}\n",
        "{\"id\": 3, \"return\": {\"status\": \"paused\"}}\n",
        "{\"id\": 4, \"return\": {}}\n",
    };
    struct place *p = arg;
    size_t n = 0, lines = 0;

    while (n < sizeof(p->heard) - 1 && vc_read_some(p->qemu_fd, p->heard + n, 1) == 1)
        if (p->heard[n++] == '\n' && lines < VC_ARRAY_LEN(answers) &&
            vc_write_full(p->qemu_fd, answers[lines], strlen(answers[lines])) == 0)
            lines++;
    return NULL;
}

/* Refuses whatever comes behind qmp_capabilities. */
static void *refuse(void *arg)
{
    struct place *p = arg;
    char c, line[128];
    int id = 0;

    while (vc_read_some(p->qemu_fd, &c, 1) == 1)
        if (c == '\n' && ++id > 1) {
            snprintf(line, sizeof(line), "{\"id\": %d, \"error\": {\"desc\": \"no\"}}\n", id);
            if (vc_write_full(p->qemu_fd, line, strlen(line)))
                break;
        }
    return NULL;
}

/* A store with a record of a migration that has arrived and waits for its word, and the connection
 * to its QEMU, parked. */
static void place_init(struct place *p)
{
    struct vc_handover h = {
        .state = VC_HANDOVER_ARRIVING, .session = lost_session, .peer = "a", .socket = "vm1"};
    struct vc_id id = vm(1);
    struct vc_vm *v;
    struct vc_err err;

    *p = (struct place){.dir = "/tmp/vc-parking-XXXXXX", .parking = vc_parking_new()};
    assert_non_null(p->parking);
    assert_non_null(mkdtemp(p->dir));
    assert_int_equal(vc_store_open(p->dir, true, 0, &p->store, &err), 0);
    assert_int_equal(vc_vm_open(p->store, &id, VC_VM_CREATE, &v, &err), 0);
    assert_int_equal(vc_handover_begin(v, &h, &err), 0);
    vc_vm_close(v);
    park(p->parking, 1, "vm1", &p->qemu_fd);
}

static uint8_t record(struct place *p)
{
    struct vc_handover h;
    struct vc_id id = vm(1);
    struct vc_vm *v;
    struct vc_err err;

    assert_int_equal(vc_vm_open(p->store, &id, VC_VM_READ, &v, &err), 0);
    assert_int_equal(vc_handover_get(v, &h, &err), 0);
    vc_vm_close(v);
    return h.state;
}

static void place_fini(struct place *p)
{
    vc_parking_free(p->parking);
    vc_thread_join(&p->thread);
    close(p->qemu_fd);
    vc_store_close(p->store);
    remove_tree(p->dir);
}

static void say(int fd, uint8_t type, struct vc_writer *w)
{
    uint8_t header[VC_WIRE_HEADER_BYTES];

    vc_wire_frame_encode(&(struct vc_wire_frame){.bytes = (uint32_t)w->len, .type = type}, header);
    assert_int_equal(vc_write_full(fd, header, sizeof(header)), 0);
    assert_int_equal(vc_write_full(fd, w->data, w->len), 0);
    w->len = 0;
}

/* All that a source has to say in that mode, until it loses the connection. */
static void say_all(int fd, uint8_t mode)
{
    uint8_t buf[512];
    struct vc_writer w = vc_writer(buf, sizeof(buf));

    vc_wire_hello_encode(
        &w, &(struct vc_wire_hello){
                .version_min = 1, .version_max = 1, .role = VC_WIRE_SOURCE, .software = "test"});
    say(fd, VC_WIRE_HELLO, &w);
    vc_wire_open_encode(&w, &(struct vc_wire_open){.session = lost_session,
                                                   .vm = vm(1),
                                                   .mode = mode,
                                                   .name = "vm1",
                                                   .window_bytes = 1u << 20});
    say(fd, VC_WIRE_OPEN, &w);
    if (mode == VC_WIRE_MODE_WORD) {
        vc_wire_word_encode(
            &w, &(struct vc_wire_word_msg){.word = VC_WIRE_WORD_CONTINUE, .session = lost_session});
        say(fd, VC_WIRE_WORD, &w);
    } else {
        vc_wire_start_encode(
            &w, &(struct vc_wire_start){.lineage = {.algo = VC_DIGEST_GMAC}, .has_key = true});
        say(fd, VC_WIRE_START, &w);
    }
    assert_int_equal(shutdown(fd, SHUT_WR), 0);
}

/* A session of the destination that such a source talks to; sockets are to be had nowhere. */
static int session(struct place *p, uint8_t mode, struct vc_err *err)
{
    struct vc_dest_session o = {
        .store = p->store, .parking = p->parking, .socket_dir = "/nonexistent"};
    struct vc_session_result result;
    int pair[2], rc;

    *err = VC_ERR_INIT;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    say_all(pair[1], mode);
    assert_int_equal(vc_conn_from_fds(pair[0], pair[0], VC_CONN_LOCAL, "a", &o.conn, err), 0);
    rc = vc_session_dest(&o, &result, err);
    close(pair[1]);
    return rc;
}

/* QEMU serves one client at a time, and that is who parked the connection. */
static void a_lost_word_is_obeyed_over_the_parked_connection(void **state)
{
    struct place p;
    struct vc_err err;

    (void)state;
    place_init(&p);
    assert_int_equal(vc_thread_start(&p.thread, "qemu", answer, &p, &err), 0);
    if (session(&p, VC_WIRE_MODE_WORD, &err))
        fail_msg("%s", err.message);
    assert_int_equal(record(&p), VC_HANDOVER_SETTLED);
    vc_qmp_free(take(p.parking, 1, "vm1")); /* it was there, for the rest of the memory */
    vc_thread_join(&p.thread);
    assert_non_null(strstr(p.heard, "\"cont\""));
    place_fini(&p);
}

/* A QEMU that has ended since is looked for anew. */
static void a_parked_connection_that_broke_is_not_parked_again(void **state)
{
    struct place p;
    struct vc_err err;

    (void)state;
    place_init(&p);
    shutdown(p.qemu_fd, SHUT_RDWR);
    assert_int_equal(session(&p, VC_WIRE_MODE_WORD, &err), VC_E_UNSETTLED);
    assert_non_null(strstr(err.message, "/nonexistent"));
    assert_null(take(p.parking, 1, "vm1"));
    place_fini(&p);
}

/* The VM waits for its word still, and for another recovery: a word that said it never ran would
 * let the source run it too. */
static void a_recovery_that_comes_to_nothing_leaves_all_as_it_was(void **state)
{
    struct place p;
    struct vc_err err;

    (void)state;
    place_init(&p);
    assert_int_equal(vc_thread_start(&p.thread, "qemu", refuse, &p, &err), 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(session(&p, VC_WIRE_MODE_RECOVER, &err), VC_E_DEST_QEMU);
        assert_non_null(strstr(err.message, "migrate-recover"));
        assert_int_equal(record(&p), VC_HANDOVER_ARRIVING);
        assert_true(is_open(p.qemu_fd));
    }
    assert_true(session(&p, VC_WIRE_MODE_PROXY, &err) < 0);
    assert_true(is_open(p.qemu_fd));
    place_fini(&p);
}

/* Nor does another migration to it close the connection, or wait for one. */
static void another_migration_is_refused_over_the_parked_connection(void **state)
{
    struct place p;
    struct vc_err err;

    (void)state;
    place_init(&p);
    assert_int_equal(vc_thread_start(&p.thread, "qemu", answer, &p, &err), 0);
    assert_int_equal(session(&p, VC_WIRE_MODE_POSTCOPY, &err), VC_E_DEST_QEMU);
    assert_null(strstr(err.message, "greeting"));
    assert_int_equal(record(&p), VC_HANDOVER_ARRIVING);
    vc_qmp_free(take(p.parking, 1, "vm1"));
    place_fini(&p);
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
        cmocka_unit_test(a_recovery_that_comes_to_nothing_leaves_all_as_it_was),
        cmocka_unit_test(another_migration_is_refused_over_the_parked_connection),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
