/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/api.h"
#include "net/address.h"

/* The public header repeats the codes so that it stands alone; here is what keeps them equal. */
#define SAME_CODE(name) \
    static_assert((int)VECYCLE_E_##name == (int)VC_E_##name, "error code " #name)
SAME_CODE(FAILED);
SAME_CODE(USAGE);
SAME_CODE(NOMEM);
SAME_CODE(QMP_CONNECT);
SAME_CODE(QMP);
SAME_CODE(QEMU_STATE);
SAME_CODE(UNREACHABLE);
SAME_CODE(VERSION);
SAME_CODE(PROTOCOL);
SAME_CODE(PEER_LOST);
SAME_CODE(REFUSED);
SAME_CODE(NO_SUCH_VM);
SAME_CODE(DEST_QEMU);
SAME_CODE(STORE);
SAME_CODE(STORE_FULL);
SAME_CODE(CORRUPT);
SAME_CODE(BUSY);
SAME_CODE(NOT_QEMU);
SAME_CODE(NO_RETURN_PATH);
SAME_CODE(MIGRATION);
SAME_CODE(SEAL);
SAME_CODE(CANCELLED);
SAME_CODE(UNSETTLED);
static_assert((int)VECYCLE_LOG_DEBUG == (int)VC_LOG_DEBUG, "log levels");
static_assert((int)VECYCLE_PHASE_DONE == (int)VC_PHASE_DONE, "phases");

const char *vecycle_version(void)
{
    return VC_VERSION;
}

const char *vecycle_error_name(int code)
{
    return vc_err_name(code);
}

const char *vecycle_phase_name(enum vecycle_phase phase)
{
    static const char *const names[] = {"connecting", "first pass", "rounds",
                                        "switching",  "committing", "done"};

    return (unsigned)phase < VC_ARRAY_LEN(names) ? names[phase] : "?";
}

static char default_store[512];

static void find_default_store(void)
{
    const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");

    if (geteuid() == 0)
        snprintf(default_store, sizeof(default_store), "/var/lib/vecycle");
    else if (data && *data == '/')
        snprintf(default_store, sizeof(default_store), "%s/vecycle", data);
    else
        snprintf(default_store, sizeof(default_store), "%s/.local/share/vecycle",
                 home ? home : "/nonexistent");
}

const char *vecycle_default_store(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, find_default_store);
    return default_store;
}

const char *vecycle_default_control(void)
{
    return "/run/vecycle/control";
}

const char *vecycle_default_socket_dir(void)
{
    return "/run/vecycle";
}

struct vecycle_cancel *vecycle_cancel_new(void)
{
    struct vecycle_cancel *c = calloc(1, sizeof(*c));
    struct vc_err err;

    if (c && vc_cancel_init(&c->c, &err)) {
        free(c);
        c = NULL;
    }
    return c;
}

void vecycle_cancel_now(struct vecycle_cancel *c)
{
    vc_cancel_now(&c->c);
}

void vecycle_cancel_free(struct vecycle_cancel *c)
{
    if (!c)
        return;
    vc_cancel_fini(&c->c);
    free(c);
}

const char *vecycle_default_tls_dir(void)
{
    return VC_TLS_DEFAULT_DIR;
}

struct vc_tls_options vc_public_tls(const struct vecycle_tls *t, const struct vc_cancel *cancel)
{
    return (struct vc_tls_options){
        .dir = t->dir,
        .hostname = t->hostname,
        .handshake_ms = (uint32_t)VC_MIN(t->handshake_ms, (uint64_t)INT32_MAX),
        .cancel_fd = cancel ? cancel->fd : -1,
    };
}

void vc_public_warn_plaintext(const struct vc_log *log, const struct vc_conn *conn)
{
    if (vc_conn_security(conn) == VC_CONN_PLAINTEXT)
        vc_log(log, VC_LOG_WARNING,
               "'%s' is not encrypted: the VM's memory crosses the network in the clear",
               vc_conn_describe(conn));
}

int vc_public_path(const char *path, const char *what, char out[VC_JOB_PATH_BYTES],
                   struct vc_err *err)
{
    char here[VC_JOB_PATH_BYTES] = "";
    const char *slash = "";
    int n;

    /* Links stay: they are how a path outlives what it leads to. */
    if (*path != '/' && getcwd(here, sizeof(here))) {
        slash = here[1] ? "/" : "";
        while (path[0] == '.' && path[1] == '/')
            path += 2 + strspn(path + 2, "/");
    }
    n = snprintf(out, VC_JOB_PATH_BYTES, "%s%s%s", here, slash, path);
    if (n >= VC_JOB_PATH_BYTES)
        return vc_err_set_hint(err, VC_E_USAGE, "choose a shorter one",
                               "%s has more than %d bytes: '%.100s...'", what,
                               VC_JOB_PATH_BYTES - 1, path);
    return 0;
}

int vc_public_address(const char *to, char out[VC_JOB_TEXT_BYTES], struct vc_err *err)
{
    char path[VC_JOB_PATH_BYTES];
    struct vc_address a;
    int rc = vc_address_parse(to, &a, err);

    if (!rc && a.path) {
        rc = vc_public_path(a.path, "the path of the other host's socket", path, err);
        a.path = path;
    }
    if (!rc && !vc_address_format(&a, NULL, out, VC_JOB_TEXT_BYTES))
        rc = vc_err_set_hint(err, VC_E_USAGE, "choose a shorter one",
                             "the address '%.80s...' has more than %d bytes", to,
                             VC_JOB_TEXT_BYTES - 1);
    return rc;
}

struct vc_dial_options vc_public_dial(const struct vc_log *log, const struct vecycle_cancel *cancel)
{
    return (struct vc_dial_options){
        .log = log,
        .cancel_fd = cancel ? cancel->c.fd : 0,
        .greeting = VC_WIRE_GREETING,
        .greeting_bytes = sizeof(VC_WIRE_GREETING) - 1,
        .greeting_at = VC_WIRE_GREETING_AT,
    };
}

struct vc_log vc_public_log(const struct vecycle_context *c)
{
    return (struct vc_log){
        .fn = (vc_log_fn)c->log,
        .opaque = c->opaque,
        .max = VC_LOG_DEBUG,
    };
}

const char *vc_public_control(const struct vecycle_context *c)
{
    if (c->control && !strcmp(c->control, "none"))
        return NULL;
    return c->control ? c->control : vecycle_default_control();
}

int vc_public_store(const struct vecycle_context *c, bool create, struct vc_store **out,
                    struct vc_err *err)
{
    const struct vecycle_limits *l = &c->limits;
    int rc = vc_store_open(c->store ? c->store : vecycle_default_store(), create,
                           c->store_limit_bytes, out, err);

    if (!rc)
        vc_store_set_limits(*out, &(struct vc_limits){
                                      .quota_bytes = l->quota_bytes,
                                      .peer_quota_bytes = l->peer_quota_bytes,
                                      .reserve_bytes = l->reserve_bytes,
                                      .max_age_s = l->max_age_s,
                                  });
    return rc;
}

int vc_public_error(int rc, const struct vc_err *e, struct vecycle_error *out)
{
    if (rc >= 0)
        return 0;
    if (out) {
        out->code = rc;
        snprintf(out->message, sizeof(out->message), "%s", e->message);
        snprintf(out->hint, sizeof(out->hint), "%s", e->hint);
    }
    return rc;
}

/* Lately, while it goes on; on the whole in the end. */
static uint64_t wire_rate(const struct vc_session_result *r)
{
    if (r->phase == VC_PHASE_DONE && r->total_ms)
        return (uint64_t)((double)r->wire_sent_bytes * 1000 / (double)r->total_ms);
    return (uint64_t)r->wire_rate;
}

void vc_public_result(const struct vc_session_result *r, struct vecycle_result *out)
{
    *out = (struct vecycle_result){
        .phase = (enum vecycle_phase)r->phase,
        .base = r->base,
        .attempts = 1,
        .total_ms = r->total_ms,
        .downtime_ms = r->downtime_ms,
        .rounds = r->rounds,
        .ram_bytes = r->ram_bytes,
        .remaining_bytes = r->remaining_bytes,
        .pages_same = r->pages_same,
        .pages_moved = r->pages_moved,
        .pages_zero = r->pages_zero,
        .pages_data = r->pages_data,
        .pages_unknown = r->pages_unknown,
        .stream_bytes = r->stream_bytes,
        .wire_sent_bytes = r->wire_sent_bytes,
        .wire_received_bytes = r->wire_received_bytes,
        .repaired_pages = r->repaired_pages,
        .resent_batches = r->resent_batches,
        .wire_bytes_per_s = wire_rate(r),
        .committed = r->committed,
        .confirmed = r->confirmed,
        .passthrough = r->passthrough,
    };
    vc_id_format(&r->vm, out->vm);
    snprintf(out->peer, sizeof(out->peer), "%s", r->peer);
    snprintf(out->reason, sizeof(out->reason), "%s", r->reason);
    snprintf(out->state, sizeof(out->state), "%s", r->state);
}
