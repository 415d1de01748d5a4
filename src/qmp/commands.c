/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "qmp/qmp.h"

int vc_qmp_simple(struct vc_qmp *q, const char *command, struct vc_err *err)
{
    return vc_qmp_execute(q, command, NULL, -1, NULL, err);
}

int vc_qmp_uuid(struct vc_qmp *q, struct vc_id *out, struct vc_err *err)
{
    vc_auto_json struct json_object *ret = NULL;
    int rc = vc_qmp_execute(q, "query-uuid", NULL, -1, &ret, err);

    if (rc)
        return rc;
    return vc_id_parse(vc_json_str(ret, "UUID", ""), out)
               ? 0
               : vc_err_set(err, VC_E_QMP, "'%s' gave no UUID", vc_qmp_name(q));
}

int vc_qmp_run_state(struct vc_qmp *q, char out[32], struct vc_err *err)
{
    vc_auto_json struct json_object *ret = NULL;
    int rc = vc_qmp_execute(q, "query-status", NULL, -1, &ret, err);

    if (rc)
        return rc;
    snprintf(out, 32, "%s", vc_json_str(ret, "status", "?"));
    if (!strcmp(out, "running"))
        vc_qmp_note_run(q);
    return 0;
}

int vc_qmp_version(struct vc_qmp *q, unsigned *out, struct vc_err *err)
{
    vc_auto_json struct json_object *ret = NULL;
    int rc = vc_qmp_execute(q, "query-version", NULL, -1, &ret, err);
    struct json_object *v = vc_json_get(ret, "qemu");

    if (!rc)
        *out = (unsigned)(vc_json_u64(v, "major", 0) * 100 + vc_json_u64(v, "minor", 0));
    return rc;
}

/* 1: on; 0: off; -1: not among what query-migrate-capabilities has returned. */
static int state_of(struct json_object *list, const char *name)
{
    for (size_t i = 0;
         json_object_is_type(list, json_type_array) && i < json_object_array_length(list); i++) {
        struct json_object *one = json_object_array_get_idx(list, i);

        if (!strcmp(vc_json_str(one, "capability", ""), name))
            return vc_json_bool(one, "state", false);
    }
    return -1;
}

int vc_qmp_differing_capabilities(struct vc_qmp *q, const struct vc_qmp_capability *list, size_t n,
                                  struct vc_qmp_capability *out, size_t *n_out, struct vc_err *err)
{
    vc_auto_json struct json_object *now = NULL;
    int rc = vc_qmp_execute(q, "query-migrate-capabilities", NULL, -1, &now, err);

    if (rc)
        return rc;
    for (size_t i = 0; i < n; i++)
        if (list[i].on && !list[i].optional && state_of(now, list[i].name) < 0)
            return vc_err_set_hint(err, VC_E_QMP, "leave out the option that needs it",
                                   "QEMU '%.100s' has no migration capability %s", vc_qmp_name(q),
                                   list[i].name);
    *n_out = 0;
    for (size_t i = 0; i < n; i++) {
        int state = state_of(now, list[i].name);

        if (state >= 0 && state != list[i].on)
            out[(*n_out)++] = list[i];
    }
    return 0;
}

int vc_qmp_set_capabilities(struct vc_qmp *q, const struct vc_qmp_capability *list, size_t n,
                            struct vc_err *err)
{
    struct vc_qmp_capability need[VC_QMP_MAX_CAPABILITIES];
    struct json_object *args, *changes;
    size_t n_need;
    int rc = vc_qmp_differing_capabilities(q, list, n, need, &n_need, err);

    if (rc || !n_need)
        return rc;
    changes = json_object_new_array();
    for (size_t i = 0; i < n_need; i++) {
        struct json_object *one = json_object_new_object();

        vc_json_add_str(one, "capability", need[i].name);
        vc_json_add_bool(one, "state", need[i].on);
        json_object_array_add(changes, one);
    }
    args = json_object_new_object();
    json_object_object_add(args, "capabilities", changes);
    return vc_qmp_execute(q, "migrate-set-capabilities", args, -1, NULL, err);
}

int vc_qmp_get_capability(struct vc_qmp *q, const char *name, bool *on, struct vc_err *err)
{
    vc_auto_json struct json_object *list = NULL;
    int rc = vc_qmp_execute(q, "query-migrate-capabilities", NULL, -1, &list, err);
    int state = rc ? -1 : state_of(list, name);

    *on = state > 0;
    return rc ? rc : state < 0 ? VC_NOT_FOUND : 0;
}

int vc_qmp_set_parameter(struct vc_qmp *q, const char *name, uint64_t v, struct vc_err *err)
{
    struct json_object *args = json_object_new_object();

    vc_json_add_u64(args, name, v);
    return vc_qmp_execute(q, "migrate-set-parameters", args, -1, NULL, err);
}

int vc_qmp_get_parameter(struct vc_qmp *q, const char *name, uint64_t missing, uint64_t *out,
                         struct vc_err *err)
{
    vc_auto_json struct json_object *ret = NULL;
    int rc = vc_qmp_execute(q, "query-migrate-parameters", NULL, -1, &ret, err);

    if (!rc)
        *out = vc_json_u64(ret, name, missing);
    return rc;
}

int vc_qmp_set_text(struct vc_qmp *q, const char *name, const char *text, struct vc_err *err)
{
    struct json_object *args = json_object_new_object();

    vc_json_add_str(args, name, text);
    return vc_qmp_execute(q, "migrate-set-parameters", args, -1, NULL, err);
}

int vc_qmp_get_text(struct vc_qmp *q, const char *name, const char *missing, char *out, size_t cap,
                    struct vc_err *err)
{
    vc_auto_json struct json_object *ret = NULL;
    int rc = vc_qmp_execute(q, "query-migrate-parameters", NULL, -1, &ret, err);

    if (rc)
        return rc;
    if ((size_t)snprintf(out, cap, "%s", vc_json_str(ret, name, missing)) < cap)
        return 0;
    return vc_err_set_hint(err, VC_E_QEMU_STATE, "set it back before the migration",
                           "QEMU's migration parameter %s has more than %zu bytes: '%.100s'", name,
                           cap - 1, out);
}

static const char *const stream_commands[] = {
    [VC_QMP_OUTGOING] = "migrate",
    [VC_QMP_RESUME] = "migrate",
    [VC_QMP_INCOMING] = "migrate-incoming",
};

static int migrate_uri(struct vc_qmp *q, enum vc_qmp_stream kind, const char *uri,
                       struct vc_err *err)
{
    struct json_object *args = json_object_new_object();

    vc_json_add_str(args, "uri", uri);
    if (kind == VC_QMP_RESUME)
        vc_json_add_bool(args, "resume", true);
    return vc_qmp_execute(q, stream_commands[kind], args, -1, NULL, err);
}

int vc_qmp_migrate_unix(struct vc_qmp *q, enum vc_qmp_stream kind, const char *path,
                        struct vc_err *err)
{
    char uri[256];

    snprintf(uri, sizeof(uri), "unix:%s", path);
    return migrate_uri(q, kind, uri, err);
}

/* A QEMU that refuses to migrate has not taken it out of its list. */
static void forget_fd(struct vc_qmp *q)
{
    struct vc_err ignored = VC_ERR_INIT;
    struct json_object *args;

    if (vc_qmp_is_gone(q))
        return;
    args = json_object_new_object();
    vc_json_add_str(args, "fdname", "vecycle");
    if (vc_qmp_execute(q, "closefd", args, -1, NULL, &ignored))
        return;
}

int vc_qmp_migrate_fd(struct vc_qmp *q, enum vc_qmp_stream kind, int *fd_out, struct vc_err *err)
{
    struct json_object *args = json_object_new_object();
    vc_auto_close int theirs = -1;
    vc_auto_close int ours = -1;
    int pair[2], rc;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        json_object_put(args);
        return vc_err_set_errno(err, VC_E_FAILED, "cannot make a socket pair");
    }
    ours = pair[0];
    theirs = pair[1];
    vc_json_add_str(args, "fdname", "vecycle");
    rc = vc_qmp_execute(q, "getfd", args, theirs, NULL, err);
    if (rc)
        return rc;
    rc = migrate_uri(q, kind, "fd:vecycle", err);
    if (!rc)
        *fd_out = vc_steal_fd(&ours);
    else
        forget_fd(q);
    return rc;
}

int vc_qmp_recover(struct vc_qmp *q, const char *path, struct vc_err *err)
{
    struct json_object *args = json_object_new_object();
    char uri[256];

    snprintf(uri, sizeof(uri), "unix:%s", path);
    vc_json_add_str(args, "uri", uri);
    return vc_qmp_execute_oob(q, "migrate-recover", args, err);
}

bool vc_qmp_status_is_idle(const char *status)
{
    static const char *const idle[] = {"", "none", "completed", "failed", "cancelled"};

    for (size_t i = 0; i < VC_ARRAY_LEN(idle); i++)
        if (!strcmp(status, idle[i]))
            return true;
    return false;
}

bool vc_qmp_status_is_switched(const char *status)
{
    return !strncmp(status, "postcopy-", strlen("postcopy-")) &&
           strcmp(status, "postcopy-device") != 0;
}

int vc_qmp_migration(struct vc_qmp *q, struct vc_qmp_migration *out, struct vc_err *err)
{
    vc_auto_json struct json_object *ret = NULL;
    int rc = vc_qmp_execute(q, "query-migrate", NULL, -1, &ret, err);
    struct json_object *ram = vc_json_get(ret, "ram");

    if (rc)
        return rc;
    *out = (struct vc_qmp_migration){
        .total_ms = vc_json_u64(ret, "total-time", 0),
        .downtime_ms = vc_json_u64(ret, "downtime", 0),
        .setup_ms = vc_json_u64(ret, "setup-time", 0),
        .ram_total = vc_json_u64(ram, "total", 0),
        .ram_remaining = vc_json_u64(ram, "remaining", 0),
        .ram_transferred = vc_json_u64(ram, "transferred", 0),
        .rounds = vc_json_u64(ram, "dirty-sync-count", 0),
        .data_records = vc_json_u64(ram, "normal", 0),
        .zero_records = vc_json_u64(ram, "duplicate", 0),
    };
    snprintf(out->status, sizeof(out->status), "%s", vc_json_str(ret, "status", ""));
    snprintf(out->error, sizeof(out->error), "%s", vc_json_str(ret, "error-desc", ""));
    return 0;
}
