/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <malloc.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
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

/* The client against a server with a script: it says `reply` after a request that holds `expect`
 * (at once if that is NULL). A # in a reply is the request's id; a reply of NULL hangs up. */

struct step {
    const char *expect, *reply;
    size_t padding; /* spaces before the reply's last character */
};

#define GREETING "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"
#define AGREED                                                   \
    {NULL, GREETING, 0},                                         \
    {                                                            \
        "qmp_capabilities", "{\"return\": {}, \"id\": #}\r\n", 0 \
    }
#define MAX_STEPS 12

struct server {
    struct step steps[MAX_STEPS];
    int fd;
    int passed_fd; /* the last descriptor received, or -1 */
    struct vc_thread thread;
    char wrong[256]; /* what did not go by the script */
};

/* One line of the client; false at the end. */
static bool read_request(struct server *s, char *line, size_t cap)
{
    size_t n = 0;

    while (n + 1 < cap) {
        int fds[1];
        size_t n_fds;
        ssize_t got = vc_recv_fds(s->fd, line + n, 1, fds, 1, &n_fds);

        if (got <= 0)
            return false;
        if (n_fds)
            s->passed_fd = fds[0];
        if (line[n] == '\n')
            break;
        n++;
    }
    line[n] = 0;
    return true;
}

static void say(struct server *s, const struct step *step, const char *request)
{
    const char *id = request ? strstr(request, "\"id\":") : NULL;
    size_t n = strlen(step->reply), have = 0;
    char *out = malloc(n + step->padding + 512);

    for (size_t i = 0; i < n; i++) {
        if (step->reply[i] == '#' && id)
            have += (size_t)snprintf(out + have, 32, "%d", atoi(id + 5));
        else
            out[have++] = step->reply[i];
    }
    if (step->padding) {
        char last = out[have - 1];

        memset(out + have - 1, ' ', step->padding);
        have += step->padding;
        out[have - 1] = last;
    }
    if (vc_write_full(s->fd, out, have) < 0)
        snprintf(s->wrong, sizeof(s->wrong), "the client hung up during a reply");
    free(out);
}

static void *serve(void *arg)
{
    struct server *s = arg;
    char line[4096];

    for (const struct step *step = s->steps; step->expect || step->reply; step++) {
        if (step->expect && !read_request(s, line, sizeof(line)))
            break;
        if (step->expect && !strstr(line, step->expect))
            snprintf(s->wrong, sizeof(s->wrong), "expected %.60s, got %.120s", step->expect, line);
        if (!step->reply) {
            shutdown(s->fd, SHUT_RDWR);
            break;
        }
        say(s, step, step->expect ? line : NULL);
    }
    return NULL;
}

/* Starts such a server; the client's end of the connection. */
static int start(void *(*server)(void *), struct server *s)
{
    struct vc_err err = VC_ERR_INIT;
    int pair[2];

    s->passed_fd = -1;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    s->fd = pair[0];
    assert_int_equal(vc_thread_start(&s->thread, "qmp-server", server, s, &err), 0);
    return pair[1];
}

/* Connects to it; the client's result. */
static int converse_with(void *(*server)(void *), struct server *s, struct vc_qmp **q,
                         struct vc_err *err)
{
    *q = NULL;
    return vc_qmp_from_fd(start(server, s), "the socket", q, err);
}

/* By the script. */
static int converse(struct server *s, struct vc_qmp **q, struct vc_err *err)
{
    return converse_with(serve, s, q, err);
}

static void end(struct server *s, struct vc_qmp *q)
{
    vc_qmp_free(q);
    vc_thread_join(&s->thread);
    close(s->fd);
    if (s->passed_fd >= 0)
        close(s->passed_fd);
    assert_string_equal(s->wrong, "");
}

/* ---- greetings ---- */

static void a_server_that_greets_is_taken(void **state)
{
    struct server s = {{AGREED}};
    struct vc_qmp *q;
    struct vc_err err;

    (void)state;
    assert_int_equal(converse(&s, &q, &err), 0);
    assert_string_equal(vc_qmp_name(q), "the socket");
    end(&s, q);
}

static void what_is_not_qmp_is_refused(void **state)
{
    static const char *const greetings[] = {
        "220 mail.example.org ESMTP\r\n",
        "{}\n",
        "[]\n",
        "17\n",
        "null\n",
        "\"QMP\"\n",
        "{\"event\": \"STOP\"}\n",
        "{\"QMP\": {}} {\"QMP\": {}}\n",
        "{\"QMP\": {}} and more\n",
        "{\"QMP\": {}\n",
        "\xff\xfe\n",
    };

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(greetings); i++) {
        struct server s = {{{NULL, greetings[i], 0}}};
        struct vc_err err = VC_ERR_INIT;
        struct vc_qmp *q;
        int rc = converse(&s, &q, &err);

        if (rc != VC_E_QMP || !strstr(err.message, "'the socket' does not speak QMP"))
            fail_msg("'%s': %s", greetings[i], err.message);
        assert_true(err.hint[0]);
        end(&s, q);
    }
}

static void nesting_has_a_limit(void **state)
{
    char deep[400];
    struct server s = {{{NULL, deep, 0}}};
    struct vc_err err;
    struct vc_qmp *q;

    (void)state;
    snprintf(deep, sizeof(deep), "{\"QMP\": ");
    memset(deep + 8, '[', 100);
    memset(deep + 108, ']', 100);
    snprintf(deep + 208, sizeof(deep) - 208, "}\n");
    assert_int_equal(converse(&s, &q, &err), VC_E_QMP);
    end(&s, q);
}

static void a_server_that_hangs_up_is_named(void **state)
{
    static const char *const said[] = {"", "{\"QMP\": {"};

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(said); i++) {
        struct vc_err err = VC_ERR_INIT;
        int pair[2];
        struct vc_qmp *q = NULL;

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
        assert_int_equal(vc_write_full(pair[0], said[i], strlen(said[i])), 0);
        close(pair[0]);
        assert_int_equal(vc_qmp_from_fd(pair[1], "the socket", &q, &err), VC_E_QMP);
        assert_non_null(strstr(err.message, "the socket"));
        assert_null(q);
    }
}

static void no_socket_is_another_error(void **state)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_qmp *q = NULL;

    (void)state;
    assert_int_equal(vc_qmp_connect("/nonexistent/qmp", &q, &err), VC_E_QMP_CONNECT);
    assert_non_null(strstr(err.message, "/nonexistent/qmp"));
    assert_non_null(strstr(err.hint, "-qmp"));
}

/* ---- commands ---- */

static void an_error_has_qemus_words(void **state)
{
    struct server s = {{AGREED,
                        {"\"cont\"",
                         "{\"id\": #, \"error\": {\"class\": \"GenericError\", "
                         "\"desc\": \"Resetting the VM is required\"}}\n",
                         0}}};
    struct vc_err err = VC_ERR_INIT;
    struct vc_qmp *q;

    (void)state;
    assert_int_equal(converse(&s, &q, &err), 0);
    assert_int_equal(vc_qmp_simple(q, "cont", &err), VC_E_QMP);
    assert_non_null(strstr(err.message, "Resetting the VM is required"));
    assert_non_null(strstr(err.message, "cont"));
    end(&s, q);
}

static void an_error_of_another_shape_is_survived(void **state)
{
    struct server s = {{AGREED,
                        {"\"stop\"", "{\"id\": #, \"error\": 17}\n", 0},
                        {"\"stop\"", "{\"error\": {\"desc\": [1]}}\n", 0},
                        {"\"stop\"", "[\"return\"]\n", 0}}};
    struct vc_err err = VC_ERR_INIT;
    struct vc_qmp *q;

    (void)state;
    assert_int_equal(converse(&s, &q, &err), 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(vc_qmp_simple(q, "stop", &err), VC_E_QMP);
    end(&s, q);
}

static void answers_to_others_are_passed_over(void **state)
{
    struct server s = {{AGREED,
                        {"query-status",
                         "{\"return\": {\"status\": \"old\"}, \"id\": 900}\n"
                         "{\"return\": {\"status\": \"older\"}}\n"
                         "\n  \r\n"
                         "{\"return\": {\"status\": \"running\"}, \"id\": #}\n",
                         0}}};
    struct vc_err err = VC_ERR_INIT;
    struct vc_qmp *q;
    char status[32];

    (void)state;
    assert_int_equal(converse(&s, &q, &err), 0);
    assert_int_equal(vc_qmp_run_state(q, status, &err), 0);
    assert_string_equal(status, "running");
    end(&s, q);
}

static void expect_event(struct vc_qmp *q, const char *name)
{
    vc_auto_json struct json_object *e = NULL;
    struct vc_err err;

    assert_int_equal(vc_qmp_event(q, &e, &err), 0);
    assert_string_equal(vc_json_str(e, "event", "?"), name);
}

static void events_between_are_kept_in_order(void **state)
{
    struct server s = {{AGREED,
                        {"\"stop\"",
                         "{\"event\": \"STOP\"}\n{\"event\": \"RESUME\"}\n"
                         "{\"return\": {}, \"id\": #}\n"
                         "{\"return\": {}, \"id\": 900}\n{\"event\": \"WAKEUP\"}\n",
                         0}}};
    struct vc_err err = VC_ERR_INIT;
    struct json_object *none = NULL;
    struct vc_qmp *q;

    (void)state;
    assert_int_equal(converse(&s, &q, &err), 0);
    assert_int_equal(vc_qmp_simple(q, "stop", &err), 0);
    expect_event(q, "STOP");
    expect_event(q, "RESUME");
    /* The answer before it, which nobody waits for, must not hide it: no more bytes will come. */
    assert_int_equal(vc_wait_readable(vc_qmp_fd(q), 0), 0);
    expect_event(q, "WAKEUP");
    assert_int_equal(vc_qmp_event(q, &none, &err), VC_AGAIN);
    assert_null(none);
    end(&s, q);
}

/* Its data has that member and no other. */
static void expect_word(struct vc_qmp *q, const char *name, const char *member, const char *word)
{
    vc_auto_json struct json_object *e = NULL;
    struct json_object *data;
    struct vc_err err;

    assert_int_equal(vc_qmp_event(q, &e, &err), 0);
    assert_string_equal(vc_json_str(e, "event", "?"), name);
    data = vc_json_get(e, "data");
    assert_string_equal(vc_json_str(data, member, "?"), word);
    assert_int_equal(json_object_object_length(data), 1);
}

static void of_too_many_events_the_oldest_go(void **state)
{
    static char events[300 * 60];
    struct server s = {{AGREED, {"\"stop\"", events, 0}}};
    struct vc_err err = VC_ERR_INIT;
    struct json_object *none;
    struct vc_qmp *q;
    size_t n = 0;

    (void)state;
    for (int i = 0; i < 300; i++)
        n += (size_t)snprintf(events + n, sizeof(events) - n,
                              "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"%d\"}}\n", i);
    snprintf(events + n, sizeof(events) - n, "{\"return\": {}, \"id\": #}\n");
    assert_int_equal(converse(&s, &q, &err), 0);
    assert_int_equal(vc_qmp_simple(q, "stop", &err), 0);
    for (int i = 300 - 256; i < 300; i++) {
        char number[16];

        snprintf(number, sizeof(number), "%d", i);
        expect_word(q, "MIGRATION", "status", number);
    }
    assert_int_equal(vc_qmp_event(q, &none, &err), VC_AGAIN);
    end(&s, q);
}

static void of_an_event_is_kept_what_somebody_reads(void **state)
{
    struct server s = {
        {AGREED,
         {"\"stop\"",
          "{\"event\": \"NIC_RX_FILTER_CHANGED\"}\n{\"event\": 17}\n"
          "{\"event\": \"WATCHDOG\", \"data\": {\"action\": \"pause\", \"x\": [1]}}\n"
          "{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": "
          "\"a-reason-that-is-longer-than-any\"}}\n"
          "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true}}\n"
          "{\"return\": {}, \"id\": #}\n",
          0}}};
    vc_auto_json struct json_object *bare = NULL;
    struct vc_err err = VC_ERR_INIT;
    struct json_object *none;
    struct vc_qmp *q;

    (void)state;
    assert_int_equal(converse(&s, &q, &err), 0);
    assert_int_equal(vc_qmp_simple(q, "stop", &err), 0);
    expect_word(q, "WATCHDOG", "action", "pause");
    expect_word(q, "SHUTDOWN", "reason", "a-reason-that-is-longer-than-an");
    assert_int_equal(vc_qmp_event(q, &bare, &err), 0);
    assert_string_equal(vc_json_str(bare, "event", "?"), "SHUTDOWN");
    assert_null(vc_json_get(bare, "data"));
    assert_int_equal(vc_qmp_event(q, &none, &err), VC_AGAIN);
    end(&s, q);
}

/* A line with so many values, of the kind that costs most. */
static char *add_line(char *at, const char *name, unsigned values)
{
    at += sprintf(at, "{\"event\": \"%s\", \"data\": [", name);
    for (unsigned i = 0; i < values / 2; i++)
        at = stpcpy(at, "{},");
    return stpcpy(at, "0]}\n");
}

#define BIG_EVENTS 16u
#define BIG_VALUES 40000u

static void an_event_costs_the_same_whatever_it_says(void **state)
{
    vc_auto_free char *said = malloc(BIG_EVENTS * (2 * BIG_VALUES + 100));
    struct server s = {{AGREED, {"\"stop\"", said, 0}}};
    struct vc_err err = VC_ERR_INIT;
    struct vc_qmp *q;
    char *at = said;
    size_t before;

    (void)state;
    for (unsigned i = 0; i < BIG_EVENTS; i++)
        at = add_line(at, "STOP", BIG_VALUES);
    strcpy(at, "{\"return\": {}, \"id\": #}\n");
    assert_int_equal(converse(&s, &q, &err), 0);
    before = mallinfo2().uordblks;
    assert_int_equal(vc_qmp_simple(q, "stop", &err), 0);
    vc_thread_join(&s.thread); /* it has a copy of what it says */
    /* As objects they would be more than 200 MiB. */
    assert_true(mallinfo2().uordblks < before + (4u << 20));
    for (unsigned i = 0; i < BIG_EVENTS; i++)
        expect_event(q, "STOP");
    end(&s, q);
}

static void a_line_of_too_many_values_is_not_even_looked_at(void **state)
{
    vc_auto_free char *said = malloc(VC_QMP_MAX_LINE_BYTES);
    struct server s = {
        {AGREED,
         {"\"stop\"", said, 0},
         {"query-status", "{\"return\": {\"status\": \"running\"}, \"id\": #}\n", 0}}};
    struct vc_err err = VC_ERR_INIT;
    char status[32], limit[80];
    struct vc_qmp *q;

    (void)state;
    strcpy(add_line(said, "STOP", VC_QMP_MAX_LINE_BYTES / 2), "{\"return\": {}, \"id\": #}\n");
    assert_int_equal(converse(&s, &q, &err), 0);
    assert_int_equal(vc_qmp_simple(q, "stop", &err), VC_E_QMP);
    snprintf(limit, sizeof(limit), "'the socket' sent a line of more than %u values",
             VC_JSON_MAX_VALUES);
    assert_string_equal(err.message, limit);
    assert_true(err.hint[0]);
    assert_int_equal(vc_qmp_run_state(q, status, &err), 0); /* what is behind it counts again */
    assert_string_equal(status, "running");
    end(&s, q);
}

static void qemu_that_ends_in_between_is_noticed(void **state)
{
    struct server s = {{AGREED, {"\"stop\"", NULL, 0}}};
    struct json_object *e;
    struct vc_err err = VC_ERR_INIT;
    struct vc_qmp *q;

    (void)state;
    assert_int_equal(converse(&s, &q, &err), 0);
    assert_int_equal(vc_qmp_simple(q, "stop", &err), VC_E_QMP);
    assert_non_null(strstr(err.message, "closed"));
    assert_int_equal(vc_qmp_event(q, &e, &err), VC_E_QMP);
    assert_int_equal(vc_qmp_simple(q, "stop", &err), VC_E_QMP);
    end(&s, q);
}

static void lines_have_a_limit(void **state)
{
    const char *answer = "{\"return\": {\"status\": \"running\"}, \"id\": #}\n";
    struct server s = {{AGREED,
                        {"query-status", answer, VC_QMP_MAX_LINE_BYTES / 2},
                        {"query-status", answer, VC_QMP_MAX_LINE_BYTES}}};
    struct vc_err err = VC_ERR_INIT;
    struct vc_qmp *q;
    char status[32], limit[32];

    (void)state;
    assert_int_equal(converse(&s, &q, &err), 0);
    assert_int_equal(vc_qmp_run_state(q, status, &err), 0);
    assert_string_equal(status, "running");
    assert_int_equal(vc_qmp_run_state(q, status, &err), VC_E_QMP);
    snprintf(limit, sizeof(limit), "more than %u", VC_QMP_MAX_LINE_BYTES);
    assert_non_null(strstr(err.message, limit));
    vc_qmp_shutdown(q); /* the server may still be writing */
    vc_thread_join(&s.thread);
    s.wrong[0] = 0;
    end(&s, q);
}

struct call {
    struct vc_qmp *q;
    struct vc_err err;
    int rc;
};

static void *call_main(void *arg)
{
    struct call *c = arg;

    c->rc = vc_qmp_simple(c->q, "stop", &c->err);
    return NULL;
}

static void a_call_that_waits_is_woken_by_shutdown(void **state)
{
    struct server s = {{AGREED, {"\"stop\"", "\n", 0}}};
    struct call c = {.err = VC_ERR_INIT};
    struct vc_thread t = {0};
    struct vc_err err;

    (void)state;
    assert_int_equal(converse(&s, &c.q, &err), 0);
    assert_int_equal(vc_thread_start(&t, "call", call_main, &c, &err), 0);
    vc_thread_join(&s.thread); /* it has had the request */
    vc_qmp_shutdown(c.q);
    vc_thread_join(&t);
    assert_int_equal(c.rc, VC_E_QMP);
    end(&s, c.q);
}

/* ---- answers that do not come ---- */

#define GREETING_OOB "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n"
#define AGREED_OOB                                      \
    {NULL, GREETING_OOB, 0},                            \
    {                                                   \
        "\"oob\"", "{\"return\": {}, \"id\": #}\r\n", 0 \
    }

/* Nothing is sent for a command that fails so: the server would wonder at it. */
static void expect_owed(struct vc_qmp *q, const char *command, const char *owed)
{
    struct vc_err err = VC_ERR_INIT;
    char message[120];

    snprintf(message, sizeof(message), "'the socket' has not answered the command before yet, %s",
             owed);
    assert_int_equal(vc_qmp_simple(q, command, &err), VC_E_QMP);
    assert_string_equal(err.message, message);
    assert_true(err.hint[0]);
    assert_false(vc_qmp_is_gone(q));
}

static void qemu_that_does_not_answer_gets_nothing_but_oob_commands(void **state)
{
    struct server s = {{AGREED_OOB,
                        {"query-uuid", "", 0},
                        {"\"exec-oob\":\"migrate-recover\"", "{\"return\": {}, \"id\": #}\n", 0},
                        {"\"exec-oob\":\"migrate-recover\"",
                         "{\"return\": {}, \"id\": #}\n{\"event\": \"STOP\"}\n"
                         "{\"return\": {}, \"id\": 2}\n",
                         0},
                        {"\"execute\":\"cont\"", "{\"return\": {}, \"id\": #}\n", 0}}};
    struct vc_err err = VC_ERR_INIT;
    struct vc_qmp *q = NULL;
    struct vc_id id;

    (void)state;
    assert_int_equal(vc_qmp_from_fd_oob(start(serve, &s), "the socket", &q, &err), 0);
    vc_qmp_hurry(q, true);
    assert_int_equal(vc_qmp_uuid(q, &id, &err), VC_E_QMP);
    assert_string_equal(err.message, "'the socket' did not answer query-uuid within 15 s");
    for (int i = 0; i < 8; i++)
        expect_owed(q, "stop", "query-uuid");
    assert_int_equal(vc_qmp_recover(q, "/a", &err), 0);
    expect_owed(q, "stop", "query-uuid");
    assert_int_equal(vc_qmp_recover(q, "/b", &err), 0);
    assert_int_equal(vc_qmp_simple(q, "cont", &err), 0); /* the late answer was behind that one */
    expect_event(q, "STOP");
    end(&s, q);
}

/* Each kind of look takes it in. */
static void an_answer_that_comes_late_is_taken_wherever_it_comes(void **state)
{
    struct server s = {
        {AGREED_OOB,
         {"\"stop\"", "[]\n{\"return\": {}, \"id\": #}\n", 0},
         {"\"stop\"", "[]\n", 0},
         {"migrate-recover",
          "{\"id\": 3, \"error\": {\"desc\": \"no\"}}\n"
          "{\"return\": {}, \"id\": #}\n",
          0},
         {"\"stop\"", "[]\n", 0},
         {"migrate-recover", "{\"return\": {}, \"id\": #}\n{\"return\": {}, \"id\": 6}\n", 0},
         {"\"cont\"", "{\"return\": {}, \"id\": #}\n", 0}}};
    struct vc_err err = VC_ERR_INIT;
    struct json_object *none;
    struct vc_qmp *q = NULL;

    (void)state;
    assert_int_equal(vc_qmp_from_fd_oob(start(serve, &s), "the socket", &q, &err), 0);
    vc_qmp_hurry(q, true);
    assert_int_equal(vc_qmp_simple(q, "stop", &err), VC_E_QMP); /* it is behind what is no answer */
    assert_int_equal(vc_qmp_simple(q, "stop", &err), VC_E_QMP); /* and was sent */
    expect_owed(q, "cont", "stop");
    assert_int_equal(vc_qmp_recover(q, "/a", &err), 0); /* before its own answer */
    assert_int_equal(vc_qmp_simple(q, "stop", &err), VC_E_QMP);
    assert_int_equal(vc_qmp_recover(q, "/b", &err), 0);
    assert_int_equal(vc_qmp_event(q, &none, &err), VC_AGAIN); /* in the look for an event */
    assert_int_equal(vc_qmp_simple(q, "cont", &err), 0);
    end(&s, q);
}

/* ---- what the commands make of values ---- */

static void numbers_of_64_bits_are_exact(void **state)
{
    struct server s = {
        {AGREED,
         {"query-migrate",
          "{\"id\": #, \"return\": {\"status\": \"active\", \"total-time\": -5, "
          "\"downtime\": 1.5, \"setup-time\": \"7\", \"ram\": {"
          "\"total\": 18446744073709551615, \"remaining\": 9223372036854775808, "
          "\"transferred\": 9007199254740993, \"dirty-sync-count\": 3}}}\n",
          0},
         {"\"max-bandwidth\":18446744073709551615", "{\"id\": #, \"return\": {}}\n", 0}}};
    struct vc_qmp_migration m;
    struct vc_err err = VC_ERR_INIT;
    struct vc_qmp *q;

    (void)state;
    assert_int_equal(converse(&s, &q, &err), 0);
    assert_int_equal(vc_qmp_migration(q, &m, &err), 0);
    assert_string_equal(m.status, "active");
    assert_true(m.ram_total == UINT64_MAX);
    assert_true(m.ram_remaining == 1ull << 63);
    assert_true(m.ram_transferred == 9007199254740993ull);
    assert_int_equal(m.rounds, 3);
    assert_true(m.total_ms == 0 && m.downtime_ms == 0 && m.setup_ms == 0);
    assert_int_equal(vc_qmp_set_parameter(q, "max-bandwidth", UINT64_MAX, &err), 0);
    end(&s, q);
}

static void what_is_missing_has_a_meaning(void **state)
{
    struct server s = {
        {AGREED,
         {"query-migrate", "{\"id\": #, \"return\": {}}\n", 0},
         {"query-migrate", "{\"id\": #}\n", 0},
         {"query-migrate-parameters", "{\"id\": #, \"return\": {\"a\": 4}}\n", 0},
         {"query-migrate-parameters", "{\"id\": #, \"return\": {\"a\": 4}}\n", 0},
         {"query-uuid", "{\"id\": #, \"return\": {\"UUID\": \"nonsense\"}}\n", 0},
         {"query-version", "{\"id\": #, \"return\": {\"qemu\": {\"major\": 7, \"minor\": 2}}}\n",
          0}}};
    struct vc_qmp_migration m;
    struct vc_err err = VC_ERR_INIT;
    struct vc_id id;
    struct vc_qmp *q;
    unsigned version;
    uint64_t v;

    (void)state;
    assert_int_equal(converse(&s, &q, &err), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(vc_qmp_migration(q, &m, &err), 0);
        assert_string_equal(m.status, "");
    }
    assert_int_equal(vc_qmp_get_parameter(q, "a", 9, &v, &err), 0);
    assert_int_equal(v, 4);
    assert_int_equal(vc_qmp_get_parameter(q, "b", 9, &v, &err), 0);
    assert_int_equal(v, 9);
    assert_int_equal(vc_qmp_uuid(q, &id, &err), VC_E_QMP);
    assert_int_equal(vc_qmp_version(q, &version, &err), 0);
    assert_int_equal(version, 702);
    end(&s, q);
}

static void qemu_gets_the_other_end_of_the_stream(void **state)
{
    struct server s = {{AGREED,
                        {"getfd", "{\"id\": #, \"return\": {}}\n", 0},
                        {"fd:vecycle", "{\"id\": #, \"return\": {}}\n", 0}}};
    struct vc_err err = VC_ERR_INIT;
    struct vc_qmp *q;
    char c = 0;
    int fd;

    (void)state;
    assert_int_equal(converse(&s, &q, &err), 0);
    assert_int_equal(vc_qmp_migrate_fd(q, true, &fd, &err), 0);
    vc_thread_join(&s.thread);
    assert_true(s.passed_fd >= 0);
    assert_int_equal(vc_write_full(s.passed_fd, "x", 1), 0);
    assert_int_equal(vc_read_full(fd, &c, 1), 1);
    assert_int_equal(c, 'x');
    close(fd);
    end(&s, q);
}

static void a_stream_that_qemu_refuses_leaves_no_descriptor(void **state)
{
    struct server s = {{AGREED,
                        {"getfd", "{\"id\": #, \"return\": {}}\n", 0},
                        {"\"migrate\"", "{\"id\": #, \"error\": {\"desc\": \"no\"}}\n", 0},
                        {"closefd", "{\"id\": #, \"return\": {}}\n", 0}}};
    struct vc_err err = VC_ERR_INIT;
    struct vc_qmp *q;
    int fd = -1;
    char c;

    (void)state;
    assert_int_equal(converse(&s, &q, &err), 0);
    assert_int_equal(vc_qmp_migrate_fd(q, false, &fd, &err), VC_E_QMP);
    assert_int_equal(fd, -1);
    vc_thread_join(&s.thread);
    assert_int_equal(vc_read_full(s.passed_fd, &c, 1), 0); /* ours is closed */
    end(&s, q);
}

/* ---- time ---- */

/* A byte now and then, which never comes to an answer. */
static void *trickle(void *arg)
{
    const struct step greeting = {NULL, GREETING, 0};
    struct server *s = arg;

    say(s, &greeting, NULL);
    while (vc_write_full(s->fd, " ", 1) == 0)
        poll(NULL, 0, 20);
    return NULL;
}

static void a_server_that_trickles_is_given_up(void **state)
{
    struct server s = {0};
    struct vc_err err = VC_ERR_INIT;
    struct vc_qmp *q;

    (void)state;
    assert_int_equal(converse_with(trickle, &s, &q, &err), VC_E_QMP);
    assert_non_null(strstr(err.message, "did not answer qmp_capabilities within 15 s"));
    end(&s, q);
}

/* ---- threads ---- */

#define COMMANDS 2000

/* Answers whatever it is asked, with an event before each answer. */
static void *answer_all(void *arg)
{
    const struct step greeting = {NULL, GREETING, 0};
    const struct step each = {NULL, "{\"event\": \"STOP\"}\n{\"return\": {}, \"id\": #}\n", 0};
    struct server *s = arg;
    char line[4096];

    say(s, &greeting, NULL);
    while (read_request(s, line, sizeof(line)))
        say(s, &each, line);
    return NULL;
}

struct listener {
    struct vc_qmp *q;
    atomic_bool stop;
    struct vc_thread thread;
};

static void *listen_for_events(void *arg)
{
    struct listener *l = arg;
    struct json_object *e;
    struct vc_err err;

    while (!l->stop)
        if (vc_qmp_event(l->q, &e, &err) == 0)
            json_object_put(e);
    return NULL;
}

static void a_thread_that_takes_events_takes_no_answer(void **state)
{
    struct server s = {0};
    struct listener l = {0};
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    assert_int_equal(converse_with(answer_all, &s, &l.q, &err), 0);
    assert_int_equal(vc_thread_start(&l.thread, "qmp-events", listen_for_events, &l, &err), 0);
    for (int i = 0; i < COMMANDS; i++)
        assert_int_equal(vc_qmp_simple(l.q, "stop", &err), 0);
    l.stop = true;
    vc_thread_join(&l.thread);
    end(&s, l.q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_server_that_greets_is_taken),
        cmocka_unit_test(what_is_not_qmp_is_refused),
        cmocka_unit_test(nesting_has_a_limit),
        cmocka_unit_test(a_server_that_hangs_up_is_named),
        cmocka_unit_test(no_socket_is_another_error),
        cmocka_unit_test(an_error_has_qemus_words),
        cmocka_unit_test(an_error_of_another_shape_is_survived),
        cmocka_unit_test(answers_to_others_are_passed_over),
        cmocka_unit_test(events_between_are_kept_in_order),
        cmocka_unit_test(of_too_many_events_the_oldest_go),
        cmocka_unit_test(of_an_event_is_kept_what_somebody_reads),
        cmocka_unit_test(an_event_costs_the_same_whatever_it_says),
        cmocka_unit_test(a_line_of_too_many_values_is_not_even_looked_at),
        cmocka_unit_test(qemu_that_ends_in_between_is_noticed),
        cmocka_unit_test(lines_have_a_limit),
        cmocka_unit_test(a_call_that_waits_is_woken_by_shutdown),
        cmocka_unit_test(qemu_that_does_not_answer_gets_nothing_but_oob_commands),
        cmocka_unit_test(an_answer_that_comes_late_is_taken_wherever_it_comes),
        cmocka_unit_test(numbers_of_64_bits_are_exact),
        cmocka_unit_test(what_is_missing_has_a_meaning),
        cmocka_unit_test(qemu_gets_the_other_end_of_the_stream),
        cmocka_unit_test(a_stream_that_qemu_refuses_leaves_no_descriptor),
        cmocka_unit_test(a_server_that_trickles_is_given_up),
        cmocka_unit_test(a_thread_that_takes_events_takes_no_answer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
