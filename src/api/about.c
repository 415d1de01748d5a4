/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/api.h"
#include "base/fdio.h"

/* Which store a command means, and who may use it. Where an agent runs, it is the agent's, with the
 * agent's limits: it is asked over its control socket. */

/* An agent that does not answer is none. */
#define ANSWER_TIMEOUT_S 5
/* Where an agent that root or the unit starts has it. */
#define SYSTEM_STORE "/var/lib/vecycle"

/* ---- at the agent ---- */

struct json_object *vc_about_to_json(const struct vc_store *store)
{
    struct json_object *o = json_object_new_object();
    struct vc_limits l;

    vc_store_get_limits(store, &l);
    vc_json_add_str(o, "store", vc_store_root(store));
    vc_json_add_u64(o, "quota", l.quota_bytes);
    vc_json_add_u64(o, "peer-quota", l.peer_quota_bytes);
    vc_json_add_u64(o, "reserve", l.reserve_bytes);
    vc_json_add_u64(o, "max-age", l.max_age_s);
    return o;
}

/* ---- who asks ---- */

struct about {
    char store[VECYCLE_PATH_BYTES]; /* "": not known */
    struct vecycle_limits limits;
};

static void take_answer(struct json_object *o, struct about *a)
{
    const char *store = vc_json_str(o, "store", "");

    if (*store == '/' && strlen(store) < sizeof(a->store))
        snprintf(a->store, sizeof(a->store), "%s", store);
    a->limits = (struct vecycle_limits){
        .quota_bytes = vc_json_u64(o, "quota", 0),
        .peer_quota_bytes = vc_json_u64(o, "peer-quota", 0),
        .reserve_bytes = vc_json_u64(o, "reserve", 0),
        .max_age_s = vc_json_u64(o, "max-age", 0),
    };
}

/* The first line is the answer; one that knows the question not says something else. */
static void read_answer(int fd, struct about *a)
{
    struct timeval limit = {.tv_sec = ANSWER_TIMEOUT_S};
    vc_auto_json struct json_object *o = NULL;
    char line[VC_CONTROL_MAX_LINE_BYTES], *end = NULL;
    size_t have = 0;
    ssize_t n;

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    while (!end && have < sizeof(line) &&
           (n = vc_read_some(fd, line + have, sizeof(line) - have)) > 0) {
        have += (size_t)n;
        end = memchr(line, '\n', have);
    }
    if (!end)
        return;
    o = vc_json_parse(line, (size_t)(end - line));
    if (vc_json_get(o, "about"))
        take_answer(vc_json_get(o, "about"), a);
}

/* *denied: there is an agent that this user may not ask. */
static void ask(const char *control, struct about *a, bool *denied)
{
    static const char question[] = "{\"do\":\"about\"}\n";
    vc_auto_close int fd = vc_unix_connect(control);

    *a = (struct about){0};
    *denied = fd < 0 && (errno == EACCES || errno == EPERM);
    if (fd >= 0 && vc_send_fds(fd, question, strlen(question), NULL, 0) >= 0)
        read_answer(fd, a);
}

/* Whether there is a store with VMs. */
static bool has_vms(const char *store)
{
    char path[VECYCLE_PATH_BYTES + 8];
    struct dirent *e = NULL;
    DIR *d;

    snprintf(path, sizeof(path), "%s/vms", store);
    d = opendir(path);
    while (d && (e = readdir(d)) && e->d_name[0] == '.')
        continue;
    if (d)
        closedir(d);
    return e;
}

static bool is_same(const char *a, const char *b)
{
    struct stat x, y;

    if (stat(a, &x) < 0 || stat(b, &y) < 0)
        return !strcmp(a, b);
    return x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* The one that a user means who names none. */
static int choose(const struct about *agent, bool denied, const char *control,
                  char path[VECYCLE_PATH_BYTES], struct vc_err *err)
{
    const char *own = vecycle_default_store(), *store = own;
    struct stat st;

    if (*agent->store)
        store = agent->store;
    else if (geteuid() != 0 && !has_vms(own) && stat(SYSTEM_STORE, &st) == 0)
        store = SYSTEM_STORE;
    else if (denied && !has_vms(own))
        return vc_err_set_hint(err, VC_E_REFUSED,
                               "be its user, or root; --store names another store",
                               "no access to the agent at '%.120s', nor to its store", control);
    if (store == agent->store && stat(store, &st) < 0 && errno == ENOENT)
        return vc_err_set_hint(err, VC_E_REFUSED, "--store names it as it is seen from here",
                               "the agent's store '%.150s' cannot be seen from here", store);
    snprintf(path, VECYCLE_PATH_BYTES, "%s", store);
    return 0;
}

static void fill_limits(struct vecycle_limits *l, const struct vecycle_limits *from)
{
    if (!l->quota_bytes)
        l->quota_bytes = from->quota_bytes;
    if (!l->peer_quota_bytes)
        l->peer_quota_bytes = from->peer_quota_bytes;
    if (!l->reserve_bytes)
        l->reserve_bytes = from->reserve_bytes;
    if (!l->max_age_s)
        l->max_age_s = from->max_age_s;
}

int vecycle_use_agent_store(struct vecycle_context *c, char path[VECYCLE_PATH_BYTES],
                            struct vecycle_error *err)
{
    const char *control = vc_public_control(c);
    struct vc_err e = VC_ERR_INIT;
    struct about agent = {0};
    bool denied = false;
    int rc = 0;

    if (control)
        ask(control, &agent, &denied);
    if (!c->store) {
        rc = choose(&agent, denied, control ? control : "", path, &e);
        c->store = path;
    }
    if (!rc && *agent.store && is_same(c->store, agent.store))
        fill_limits(&c->limits, &agent.limits);
    return vc_public_error(rc, &e, err);
}

/* ---- access ---- */

/* Whether it is another user's. */
static bool is_anothers(const char *path)
{
    struct stat st;

    return geteuid() != 0 && stat(path, &st) == 0 && st.st_uid != geteuid();
}

int vc_public_open_store(const struct vecycle_context *c, bool create, struct vc_store **out,
                         struct vc_err *err)
{
    const char *path = c->store ? c->store : vecycle_default_store();
    int rc = vc_public_store(c, create, out, err);

    if (rc != VC_E_STORE)
        return rc;
    if (err->sys_errno != EACCES && err->sys_errno != EPERM && !is_anothers(path))
        return rc;
    return vc_err_set_hint(err, VC_E_REFUSED, "be its user, or root",
                           "no access to the store '%.150s'", path);
}
