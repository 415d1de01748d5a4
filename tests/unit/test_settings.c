/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
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
#include "base/json.h"
#include "base/thread.h"
#include "session/capabilities.h"
#include "session/settings.h"
#include "synthetic.h"

/* What is changed in QEMU and put back, against a pretended QEMU with a few parameters and
 * capabilities. It lives in this process, which is started with -uuid, so that it can be shown who
 * it is. */

#define UUID "aa000000-0000-0000-0000-000000000001"
#define MAX_COMMANDS 64

struct qemu {
    uint64_t limit, bandwidth;
    char creds[40];
    bool xbzrle, events, multifd;
    const char *status, *state; /* of the migration, and of the VM */
    const char *refused;        /* a command, or NULL */
    bool refuses_many;          /* takes one capability at a time */

    struct vc_store *store;          /* whose record is read before a command ... */
    char recorded[MAX_COMMANDS][64]; /* ... as "name=value" for what the command is about */
    char heard[MAX_COMMANDS][32];    /* commands that change something */
    unsigned n_heard;
    int fd;
    struct vc_qmp *qmp;
    struct vc_thread thread;
};

static const struct vc_id vm = {.b = {0xaa, [15] = 1}};

/* ---- a QEMU ---- */

static struct json_object *capability(const char *name, bool on)
{
    struct json_object *o = json_object_new_object();

    vc_json_add_str(o, "capability", name);
    vc_json_add_bool(o, "state", on);
    return o;
}

static struct json_object *query(const struct qemu *q, const char *command)
{
    struct json_object *o = json_object_new_object();

    if (!strcmp(command, "query-migrate-parameters")) {
        vc_json_add_u64(o, "downtime-limit", q->limit);
        vc_json_add_u64(o, "max-bandwidth", q->bandwidth);
        vc_json_add_str(o, "tls-creds", q->creds);
    } else if (!strcmp(command, "query-migrate")) {
        if (*q->status)
            vc_json_add_str(o, "status", q->status);
    } else if (!strcmp(command, "query-status")) {
        vc_json_add_str(o, "status", q->state);
    } else if (!strcmp(command, "query-migrate-capabilities")) {
        json_object_put(o);
        o = json_object_new_array();
        json_object_array_add(o, capability("xbzrle", q->xbzrle));
        json_object_array_add(o, capability("events", q->events));
        json_object_array_add(o, capability("multifd", q->multifd));
    }
    return o;
}

static void set_parameters(struct qemu *q, struct json_object *args)
{
    q->limit = vc_json_u64(args, "downtime-limit", q->limit);
    q->bandwidth = vc_json_u64(args, "max-bandwidth", q->bandwidth);
    if (vc_json_get(args, "tls-creds"))
        snprintf(q->creds, sizeof(q->creds), "%s", vc_json_str(args, "tls-creds", "?"));
}

/* False: it refuses. */
static bool set_capabilities(struct qemu *q, struct json_object *args)
{
    struct json_object *list = vc_json_get(args, "capabilities");
    size_t n = json_object_array_length(list);

    if (q->refuses_many && n > 1)
        return false;
    for (size_t i = 0; i < n; i++) {
        struct json_object *one = json_object_array_get_idx(list, i);
        const char *name = vc_json_str(one, "capability", "");
        bool on = vc_json_bool(one, "state", false);

        q->xbzrle = !strcmp(name, "xbzrle") ? on : q->xbzrle;
        q->events = !strcmp(name, "events") ? on : q->events;
        q->multifd = !strcmp(name, "multifd") ? on : q->multifd;
    }
    return true;
}

/* What the record says when a command comes. */
static void look_at_record(struct qemu *q)
{
    char *out = q->recorded[q->n_heard];
    struct vc_handover h;
    struct vc_vm *v;
    struct vc_err err;

    if (!q->store || vc_vm_open(q->store, &vm, VC_VM_READ, &v, &err))
        return;
    if (!vc_handover_get(v, &h, &err) && h.n_settings)
        snprintf(out, sizeof(q->recorded[0]), "%s=%llu", h.settings[h.n_settings - 1].name,
                 (unsigned long long)h.settings[h.n_settings - 1].set);
    vc_vm_close(v);
}

static bool obey(struct qemu *q, const char *command, struct json_object *args)
{
    if (!strncmp(command, "query-", 6) || !strcmp(command, "qmp_capabilities"))
        return true;
    assert_true(q->n_heard < MAX_COMMANDS);
    look_at_record(q);
    snprintf(q->heard[q->n_heard++], sizeof(q->heard[0]), "%s", command);
    if (q->refused && !strcmp(command, q->refused))
        return false;
    if (!strcmp(command, "migrate-set-parameters"))
        set_parameters(q, args);
    return strcmp(command, "migrate-set-capabilities") != 0 || set_capabilities(q, args);
}

static void *serve(void *arg)
{
    struct qemu *q = arg;
    char line[4096];
    size_t n = 0;

    while (n < sizeof(line) && vc_read_some(q->fd, line + n, 1) == 1) {
        vc_auto_json struct json_object *request = NULL, *answer = NULL;
        const char *command, *text;

        if (line[n++] != '\n')
            continue;
        request = vc_json_parse(line, n - 1);
        n = 0;
        command = vc_json_str(request, "execute", "?");
        answer = json_object_new_object();
        vc_json_add_u64(answer, "id", vc_json_u64(request, "id", 0));
        if (obey(q, command, vc_json_get(request, "arguments"))) {
            json_object_object_add(answer, "return", query(q, command));
        } else {
            struct json_object *error = json_object_new_object();

            vc_json_add_str(error, "desc", "not now");
            json_object_object_add(answer, "error", error);
        }
        text = vc_json_line(answer);
        if (vc_write_full(q->fd, text, strlen(text)) || vc_write_full(q->fd, "\n", 1))
            break;
    }
    return NULL;
}

static void start(struct qemu *q)
{
    static const char greeting[] = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";
    struct vc_err err;
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    q->fd = pair[0];
    assert_int_equal(vc_write_full(q->fd, greeting, sizeof(greeting) - 1), 0);
    assert_int_equal(vc_thread_start(&q->thread, "qemu", serve, q, &err), 0);
    assert_int_equal(vc_qmp_from_fd(pair[1], "qemu", &q->qmp, &err), 0);
}

static void end(struct qemu *q)
{
    vc_qmp_free(q->qmp);
    vc_thread_join(&q->thread);
    close(q->fd);
}

static unsigned times(const struct qemu *q, const char *command)
{
    unsigned n = 0;

    for (unsigned i = 0; i < q->n_heard; i++)
        n += !strcmp(q->heard[i], command);
    return n;
}

#define OWNERS                                                                         \
    (struct qemu)                                                                      \
    {                                                                                  \
        .limit = 1500, .bandwidth = 4000, .creds = "tc", .xbzrle = true, .status = "", \
        .state = "running"                                                             \
    }

/* What a migration sets. */
static void change(struct vc_settings *s)
{
    static const struct vc_qmp_capability list[] = {{"xbzrle"},
                                                    {"multifd"},
                                                    {"events", .on = true},
                                                    {"unheard-of", .on = true, .optional = true}};
    struct vc_err err = VC_ERR_INIT;

    assert_int_equal(vc_settings_capabilities(s, list, VC_ARRAY_LEN(list), &err), 0);
    assert_int_equal(vc_settings_number(s, "downtime-limit", 5, &err), 0);
    assert_int_equal(vc_settings_number(s, "max-bandwidth", 1 << 20, &err), 0);
    assert_int_equal(vc_settings_text(s, VC_SETTING_TLS_CREDS, &err), 0);
    assert_int_equal(vc_settings_text(s, VC_SETTING_MODE, &err), 0); /* this QEMU has none */
}

static void assert_is_owners(const struct qemu *q)
{
    assert_int_equal(q->limit, 1500);
    assert_int_equal(q->bandwidth, 4000);
    assert_string_equal(q->creds, "tc");
    assert_true(q->xbzrle && !q->events && !q->multifd);
}

/* ---- a session ---- */

static void what_was_set_is_put_back(void **state)
{
    struct qemu q = OWNERS;
    struct vc_settings s;
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    start(&q);
    vc_settings_init(&s, q.qmp, &vm, NULL);
    change(&s);
    assert_int_equal(vc_settings_number(&s, "downtime-limit", 80, &err), 0);
    assert_int_equal(vc_settings_number(&s, "downtime-limit", 60, &err), 0);
    assert_int_equal(q.limit, 60);
    assert_string_equal(q.creds, "");
    assert_true(!q.xbzrle && q.events);
    vc_settings_put_back(&s);
    assert_int_equal(s.n, 0);
    assert_is_owners(&q);
    q.n_heard = 0;
    vc_settings_put_back(&s);
    assert_int_equal(q.n_heard, 0);
    end(&q);
}

static void the_record_comes_before_the_command(void **state)
{
    char dir[] = "/tmp/vc-settings-XXXXXX";
    struct vc_handover h = {.state = VC_HANDOVER_LEAVING};
    struct qemu q = OWNERS;
    struct vc_settings s;
    struct vc_vm *v;
    struct vc_err err;

    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(vc_store_open(dir, true, 0, &q.store, &err), 0);
    assert_int_equal(vc_vm_open(q.store, &vm, VC_VM_CREATE, &v, &err), 0);
    assert_int_equal(vc_handover_begin(v, &h, &err), 0);
    start(&q);
    vc_settings_init(&s, q.qmp, &vm, NULL);
    vc_settings_record(&s, v);
    change(&s);
    assert_string_equal(q.recorded[0], "events=1");
    assert_string_equal(q.recorded[1], "downtime-limit=5");
    assert_string_equal(q.recorded[2], "max-bandwidth=1048576");
    assert_string_equal(q.recorded[3], "tc=1");
    vc_settings_put_back(&s);
    assert_int_equal(vc_handover_get(v, &h, &err), 0);
    assert_int_equal(h.n_settings, 0);
    assert_int_equal(h.state, VC_HANDOVER_LEAVING);
    assert_true(vc_process_equal(&h.qemu, vc_qmp_process(q.qmp)));
    vc_vm_close(v);
    end(&q);
    vc_store_close(q.store);
    remove_tree(dir);
}

static void a_value_of_somebody_elses_is_theirs_from_then_on(void **state)
{
    struct qemu q = OWNERS;
    struct vc_settings s;
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    start(&q);
    vc_settings_init(&s, q.qmp, &vm, NULL);
    change(&s);
    q.limit = 1500; /* also the value that it had */
    assert_int_equal(vc_settings_number(&s, "downtime-limit", 80, &err), VC_AGAIN);
    assert_int_equal(q.limit, 1500);
    q.limit = 5; /* and ours */
    q.bandwidth = 777;
    strcpy(q.creds, "other");
    vc_settings_put_back(&s);
    assert_int_equal(s.n, 0);
    assert_int_equal(q.limit, 5);
    assert_int_equal(q.bandwidth, 777);
    assert_string_equal(q.creds, "other");
    end(&q);
}

static void a_text_that_no_record_can_hold_is_left_alone(void **state)
{
    struct qemu q = OWNERS;
    struct vc_settings s;
    struct vc_err err = VC_ERR_INIT;

    (void)state;
    strcpy(q.creds, "credentials-with-a-name-of-32-by");
    start(&q);
    vc_settings_init(&s, q.qmp, &vm, NULL);
    assert_int_equal(vc_settings_text(&s, VC_SETTING_TLS_CREDS, &err), VC_E_QEMU_STATE);
    assert_int_equal(q.n_heard, 0);
    end(&q);
}

static void a_refused_command_leaves_the_rest_as_it_was(void **state)
{
    static const char *const commands[] = {"migrate-set-capabilities", "migrate-set-parameters"};

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(commands); i++) {
        struct vc_qmp_capability off = {"xbzrle"};
        struct qemu q = OWNERS;
        struct vc_settings s;
        struct vc_err err = VC_ERR_INIT;
        int rc;

        start(&q);
        vc_settings_init(&s, q.qmp, &vm, NULL);
        q.refused = commands[i];
        rc = vc_settings_capabilities(&s, &off, 1, &err);
        assert_int_equal(rc, i ? 0 : VC_E_QMP);
        err = VC_ERR_INIT;
        rc = vc_settings_number(&s, "downtime-limit", 5, &err);
        assert_int_equal(rc, i ? VC_E_QMP : 0);
        q.refused = NULL;
        vc_settings_put_back(&s);
        assert_int_equal(s.n, 0);
        assert_is_owners(&q);
        end(&q);
    }
}

/* ---- a record that somebody finds ---- */

static void a_crash_between_record_and_command_leaves_the_owners_value(void **state)
{
    static const struct {
        uint64_t was, last, set, now, after;
    } cases[] = {
        {1500, 1500, 5, 1500, 1500}, /* died before the first command ... */
        {1500, 1500, 5, 5, 1500},    /* ... and behind it */
        {1500, 5, 80, 5, 1500},      /* the same with a later one */
        {1500, 5, 80, 80, 1500},     {1500, 5, 80, 81, 81},
        {1500, 5, 80, 300, 300},     {5, 5, 5, 5, 5},
    };

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(cases); i++) {
        struct vc_handover h = {
            .n_settings = 1,
            .settings = {{VC_SETTING_PARAMETER, "downtime-limit", cases[i].was, cases[i].set,
                          cases[i].last}},
        };
        struct qemu q = OWNERS;

        q.limit = cases[i].now;
        start(&q);
        assert_true(vc_settings_restore(q.qmp, &vm, &h, NULL));
        assert_int_equal(h.n_settings, 0);
        assert_int_equal(q.limit, cases[i].after);
        assert_false(vc_settings_restore(q.qmp, &vm, &h, NULL));
        end(&q);
    }
}

static void a_migration_that_is_under_way_keeps_its_capabilities(void **state)
{
    static const char *const under_way[] = {"setup",           "active",          "cancelling",
                                            "postcopy-paused", "postcopy-active", "device",
                                            "some-new-one"};

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(under_way); i++) {
        struct qemu q = OWNERS;
        struct vc_settings s;

        start(&q);
        vc_settings_init(&s, q.qmp, &vm, NULL);
        change(&s);
        q.status = under_way[i];
        vc_settings_put_back(&s);
        assert_int_equal(q.limit, 1500);
        assert_int_equal(q.bandwidth, 4000);
        assert_string_equal(q.creds, "");
        assert_true(!q.xbzrle && q.events);
        q.status = "completed";
        vc_settings_put_back(&s);
        assert_is_owners(&q);
        end(&q);
    }
}

static void capabilities_that_do_not_go_together_go_one_by_one(void **state)
{
    struct qemu q = OWNERS;
    struct vc_settings s;

    (void)state;
    start(&q);
    vc_settings_init(&s, q.qmp, &vm, NULL);
    change(&s);
    q.refuses_many = true;
    vc_settings_put_back(&s);
    assert_is_owners(&q);
    end(&q);
}

/* Only a VM that has yet to arrive, in the very process, with nothing begun. */
static void a_vm_never_runs_by_what_is_put_back(void **state)
{
    static const struct {
        const char *state, *status;
        bool same, cont, stays;
    } cases[] = {
        {"inmigrate", "", true, true, false},
        {"inmigrate", "none", true, true, false},
        {"inmigrate", "", false, false, false},
        {"inmigrate", "setup", true, false, true},
        {"inmigrate", "active", true, false, true},
        {"inmigrate", "failed", true, false, false},
        {"inmigrate", "completed", true, false, false},
        {"paused", "", true, false, false},
        {"paused", "completed", true, false, false},
        {"running", "completed", true, false, false},
        {"postmigrate", "completed", true, false, false},
        {"prelaunch", "", true, false, false},
        {"preconfig", "", true, false, false},
    };

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(cases); i++) {
        struct vc_handover h = {
            .n_settings = 1,
            .settings = {{VC_SETTING_AUTOSTART, "autostart", 1, 0, 0}},
        };
        struct qemu q = OWNERS;

        q.state = cases[i].state;
        q.status = cases[i].status;
        start(&q);
        vc_qmp_identify(q.qmp, &vm);
        assert_true(vc_process_is_known(vc_qmp_process(q.qmp)));
        if (cases[i].same)
            h.qemu = *vc_qmp_process(q.qmp);
        (void)vc_settings_restore(q.qmp, &vm, &h, NULL);
        assert_int_equal(times(&q, "cont"), cases[i].cont);
        assert_int_equal(h.n_settings, cases[i].stays);
        end(&q);
    }
}

static void the_settings_of_another_process_went_with_it(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct vc_handover h = {
            .n_settings = 1,
            .settings = {{VC_SETTING_PARAMETER, "downtime-limit", 300, 1500, 1500}},
        };
        struct qemu q = OWNERS;

        start(&q);
        vc_qmp_identify(q.qmp, &vm);
        h.qemu = *vc_qmp_process(q.qmp);
        if (i == 0)
            h.qemu.start++; /* the pid was used before */
        else if (i == 1)
            h.qemu.boot.b[0] ^= 1; /* before the host was started again */
        else
            h.qemu.pid_ns++; /* seen from another container: nobody knows; the value tells */
        assert_true(vc_settings_restore(q.qmp, &vm, &h, NULL));
        assert_int_equal(h.n_settings, 0);
        assert_int_equal(q.limit, i == 2 ? 300 : 1500);
        end(&q);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_set_is_put_back),
        cmocka_unit_test(the_record_comes_before_the_command),
        cmocka_unit_test(a_value_of_somebody_elses_is_theirs_from_then_on),
        cmocka_unit_test(a_text_that_no_record_can_hold_is_left_alone),
        cmocka_unit_test(a_refused_command_leaves_the_rest_as_it_was),
        cmocka_unit_test(a_crash_between_record_and_command_leaves_the_owners_value),
        cmocka_unit_test(a_migration_that_is_under_way_keeps_its_capabilities),
        cmocka_unit_test(capabilities_that_do_not_go_together_go_one_by_one),
        cmocka_unit_test(a_vm_never_runs_by_what_is_put_back),
        cmocka_unit_test(the_settings_of_another_process_went_with_it),
    };

    if (argc == 1) {
        char *again[] = {argv[0], (char *)"-uuid", (char *)UUID, NULL};

        execv("/proc/self/exe", again);
        return 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
