/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Lines of the agent's control socket, and JSON as such: a text is one value or none; what is taken
 * from a line goes into a line that gives the same again, and that fits the other end's buffer.
 *
 * Input: a byte that chooses between a request and the agent's answers, then the line. */

#include "api/api.h"
#include "fuzz.h"

/* What json-c makes of it has to be the whole of the text. */
static void check_value(struct json_object *o, const struct vc_reader *line)
{
    vc_auto_json struct json_object *again = NULL;
    const char *text;

    FUZZ_ASSERT(!memchr(line->data, 0, line->len));
    text = vc_json_line(o);
    FUZZ_ASSERT(text && !strchr(text, '\n'));
    if (!json_object_is_type(o, json_type_object))
        return; /* no line of ours: json-c wants more behind a bare number */
    again = vc_json_parse(text, strlen(text));
    FUZZ_ASSERT(again);
}

static void check_text(const char *text, size_t n)
{
    FUZZ_ASSERT(memchr(text, 0, n));
}

/* Sends it over: as a line, and back. */
static struct json_object *carry(struct json_object *o, size_t most)
{
    const char *line = vc_json_line(o);
    struct json_object *there;

    FUZZ_ASSERT(strlen(line) + 1 < most);
    there = vc_json_parse(line, strlen(line));
    FUZZ_ASSERT(there);
    return there;
}

static void request(struct json_object *o)
{
    vc_auto_json struct json_object *back = NULL, *there = NULL;
    struct vc_job j = VC_JOB_INIT, k = VC_JOB_INIT;
    struct vc_err err = VC_ERR_INIT;
    int rc = vc_job_from_json(o, &j, &err);

    fuzz_check_error(rc, &err);
    if (rc)
        return;
    FUZZ_ASSERT(j.kind >= VC_JOB_MIGRATE && j.kind <= VC_JOB_ABOUT);
    FUZZ_ASSERT(j.security <= VC_CONN_PLAINTEXT);
    check_text(j.peer, sizeof(j.peer));
    check_text(j.name, sizeof(j.name));
    check_text(j.qmp, sizeof(j.qmp));
    check_text(j.vm, sizeof(j.vm));
    check_text(j.tls_hostname, sizeof(j.tls_hostname));
    /* What only the agent itself may say. */
    FUZZ_ASSERT(!j.accept_tls && !j.conn && !j.tls_dir && !j.allow && !j.peer_known);
    back = vc_job_to_json(&j);
    there = carry(back, VC_CONTROL_MAX_LINE_BYTES);
    FUZZ_ASSERT(vc_job_from_json(there, &k, &err) == 0);
    FUZZ_ASSERT(k.kind == j.kind && k.security == j.security && k.suspend == j.suspend);
    FUZZ_ASSERT(!strcmp(k.peer, j.peer) && !strcmp(k.name, j.name) && !strcmp(k.qmp, j.qmp) &&
                !strcmp(k.vm, j.vm));
    FUZZ_ASSERT(k.dial == j.dial && !strcmp(k.tls_hostname, j.tls_hostname));
    FUZZ_ASSERT(k.max_bandwidth == j.max_bandwidth && k.downtime_limit_ms == j.downtime_limit_ms);
    FUZZ_ASSERT(k.rfd == -1 && k.wfd == -1 && k.qemu_fd == -1);
}

static void result(struct json_object *o)
{
    vc_auto_json struct json_object *back = NULL, *there = NULL;
    struct vc_session_result r, s;

    vc_result_from_json(o, &r);
    check_text(r.reason, sizeof(r.reason));
    check_text(r.peer, sizeof(r.peer));
    back = vc_result_to_json(&r);
    there = carry(back, VC_CONTROL_MAX_LINE_BYTES);
    vc_result_from_json(there, &s);
    FUZZ_ASSERT(r.phase == s.phase && r.base == s.base && vc_id_equal(&r.vm, &s.vm));
    FUZZ_ASSERT(r.pages_same == s.pages_same && r.stream_bytes == s.stream_bytes);
    FUZZ_ASSERT(!strcmp(r.reason, s.reason) && !strcmp(r.peer, s.peer));
}

static void error(struct json_object *o)
{
    vc_auto_json struct json_object *back = NULL, *there = NULL;
    struct vc_err e, f;

    vc_error_from_json(o, &e);
    FUZZ_ASSERT(e.code < 0 && e.code >= -127);
    check_text(e.message, sizeof(e.message));
    check_text(e.hint, sizeof(e.hint));
    FUZZ_ASSERT(vc_err_name(e.code));
    back = vc_error_to_json(&e);
    there = carry(back, VC_CONTROL_MAX_LINE_BYTES);
    vc_error_from_json(there, &f);
    FUZZ_ASSERT(e.code == f.code && !strcmp(e.message, f.message) && !strcmp(e.hint, f.hint));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct vc_reader in = vc_reader(data, n);
    unsigned kind = (unsigned)fuzz_number(&in, 1) % 3;
    struct vc_reader line = fuzz_rest(&in);
    vc_auto_json struct json_object *o = NULL;

    if (!line.len)
        return 0;
    o = vc_json_parse((const char *)line.data, line.len);
    if (!o)
        return 0;
    check_value(o, &line);
    if (kind == 0)
        request(o);
    else if (kind == 1)
        result(o);
    else
        error(o);
    return 0;
}
