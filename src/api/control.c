/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "api/api.h"

/* The lines of the control socket. Both ends are one installation: a field that is missing has its
 * default, an unknown one is ignored. */

static const struct {
    const char *name;
    enum vc_job_kind kind;
} kinds[] = {
    {"migrate", VC_JOB_MIGRATE},
    {"proxy", VC_JOB_PROXY},
    {"receive", VC_JOB_RECEIVE},
    {"about", VC_JOB_ABOUT},
};

struct json_object *vc_job_to_json(const struct vc_job *j)
{
    struct json_object *o = json_object_new_object();

    for (size_t i = 0; i < VC_ARRAY_LEN(kinds); i++)
        if (kinds[i].kind == j->kind)
            vc_json_add_str(o, "do", kinds[i].name);
    vc_json_add_u64(o, "security", j->security);
    vc_json_add_str(o, "peer", j->peer);
    vc_json_add_str(o, "name", j->name);
    vc_json_add_str(o, "qmp", j->qmp);
    vc_json_add_str(o, "vm", j->vm);
    vc_json_add_u64(o, "max-bandwidth", j->max_bandwidth);
    vc_json_add_u64(o, "downtime-limit-ms", j->downtime_limit_ms);
    vc_json_add_u64(o, "dead-peer-ms", j->dead_peer_ms);
    vc_json_add_bool(o, "suspend", j->suspend);
    vc_json_add_bool(o, "postcopy", j->postcopy);
    vc_json_add_bool(o, "postcopy-preempt", j->postcopy_preempt);
    vc_json_add_str(o, "stream-path", j->stream_path);
    vc_json_add_bool(o, "recover", j->recover);
    vc_json_add_bool(o, "auto-converge", j->auto_converge);
    vc_json_add_bool(o, "dial", j->dial);
    vc_json_add_str(o, "tls-hostname", j->tls_hostname);
    return o;
}

static void get_text(struct json_object *o, const char *key, char *out, size_t n)
{
    snprintf(out, n, "%s", vc_json_str(o, key, ""));
}

int vc_job_from_json(struct json_object *o, struct vc_job *j, struct vc_err *err)
{
    const char *kind = vc_json_str(o, "do", "");
    uint64_t security = vc_json_u64(o, "security", VC_CONN_PLAINTEXT);

    for (size_t i = 0; i < VC_ARRAY_LEN(kinds); i++)
        if (!strcmp(kind, kinds[i].name))
            j->kind = kinds[i].kind;
    if (!j->kind || security > VC_CONN_PLAINTEXT)
        return vc_err_set(err, VC_E_PROTOCOL, "control socket: no request that is known");
    j->security = (enum vc_conn_security)security;
    get_text(o, "peer", j->peer, sizeof(j->peer));
    get_text(o, "name", j->name, sizeof(j->name));
    get_text(o, "qmp", j->qmp, sizeof(j->qmp));
    get_text(o, "vm", j->vm, sizeof(j->vm));
    j->max_bandwidth = vc_json_u64(o, "max-bandwidth", 0);
    j->downtime_limit_ms = vc_json_u64(o, "downtime-limit-ms", 0);
    j->dead_peer_ms =
        (uint32_t)VC_MIN(vc_json_u64(o, "dead-peer-ms", 0), (uint64_t)VC_JOB_MAX_DEAD_PEER_MS);
    j->suspend = vc_json_bool(o, "suspend", false);
    j->postcopy = vc_json_bool(o, "postcopy", false);
    j->postcopy_preempt = vc_json_bool(o, "postcopy-preempt", false);
    get_text(o, "stream-path", j->stream_path, sizeof(j->stream_path));
    j->recover = vc_json_bool(o, "recover", false);
    j->auto_converge = vc_json_bool(o, "auto-converge", false);
    j->dial = vc_json_bool(o, "dial", false);
    get_text(o, "tls-hostname", j->tls_hostname, sizeof(j->tls_hostname));
    return 0;
}

/* The numbers in a result, for both directions. */
#define NUMBER(name)                                    \
    {                                                   \
#name, offsetof(struct vc_session_result, name) \
    }
static const struct {
    const char *name;
    size_t at;
} numbers[] = {
    NUMBER(total_ms),
    NUMBER(downtime_ms),
    NUMBER(rounds),
    NUMBER(ram_bytes),
    NUMBER(remaining_bytes),
    NUMBER(pages_same),
    NUMBER(pages_moved),
    NUMBER(pages_zero),
    NUMBER(pages_data),
    NUMBER(pages_unknown),
    NUMBER(stream_bytes),
    NUMBER(wire_sent_bytes),
    NUMBER(wire_received_bytes),
    NUMBER(repaired_pages),
    NUMBER(resent_batches),
};

static uint64_t *number(const struct vc_session_result *r, size_t i)
{
    return (uint64_t *)((char *)r + numbers[i].at);
}

struct json_object *vc_result_to_json(const struct vc_session_result *r)
{
    struct json_object *o = json_object_new_object();
    char id[VC_ID_TEXT_BYTES];

    vc_json_add_u64(o, "phase", r->phase);
    vc_json_add_u64(o, "base", r->base);
    vc_id_format(&r->vm, id);
    vc_json_add_str(o, "vm", id);
    for (size_t i = 0; i < VC_ARRAY_LEN(numbers); i++)
        vc_json_add_u64(o, numbers[i].name, *number(r, i));
    vc_json_add_u64(o, "wire_rate", (uint64_t)r->wire_rate);
    vc_json_add_bool(o, "committed", r->committed);
    vc_json_add_bool(o, "confirmed", r->confirmed);
    vc_json_add_bool(o, "passthrough", r->passthrough);
    vc_json_add_str(o, "reason", r->reason);
    vc_json_add_str(o, "state", r->state);
    vc_json_add_str(o, "peer", r->peer);
    return o;
}

void vc_result_from_json(struct json_object *o, struct vc_session_result *r)
{
    /* 2^64 as a double would have no way back. */
    uint64_t rate = VC_MIN(vc_json_u64(o, "wire_rate", 0), 1ull << 62);

    *r = (struct vc_session_result){
        .phase = (uint32_t)vc_json_u64(o, "phase", 0),
        .base = (uint32_t)vc_json_u64(o, "base", 0),
        .wire_rate = (double)rate,
        .committed = vc_json_bool(o, "committed", false),
        .confirmed = vc_json_bool(o, "confirmed", false),
        .passthrough = vc_json_bool(o, "passthrough", false),
    };
    for (size_t i = 0; i < VC_ARRAY_LEN(numbers); i++)
        *number(r, i) = vc_json_u64(o, numbers[i].name, 0);
    if (!vc_id_parse(vc_json_str(o, "vm", ""), &r->vm))
        r->vm = (struct vc_id){{0}};
    get_text(o, "reason", r->reason, sizeof(r->reason));
    get_text(o, "state", r->state, sizeof(r->state));
    get_text(o, "peer", r->peer, sizeof(r->peer));
}

struct json_object *vc_error_to_json(const struct vc_err *e)
{
    struct json_object *o = json_object_new_object();

    vc_json_add_u64(o, "code", (uint64_t)-e->code);
    vc_json_add_str(o, "message", e->message);
    vc_json_add_str(o, "hint", e->hint);
    vc_json_add_bool(o, "lasts", e->lasts);
    return o;
}

void vc_error_from_json(struct json_object *o, struct vc_err *e)
{
    *e = VC_ERR_INIT;
    e->code = -(int)(vc_json_u64(o, "code", 1) & 0x7f);
    if (e->code == 0)
        e->code = VC_E_FAILED;
    get_text(o, "message", e->message, sizeof(e->message));
    get_text(o, "hint", e->hint, sizeof(e->hint));
    e->lasts = vc_json_bool(o, "lasts", false);
}
