/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "session/settings.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *value;
} texts[] = {
    [VC_SETTING_TLS_CREDS] = {"tls-creds", ""},
    [VC_SETTING_MODE] = {"mode", "normal"},
};

/* ---- the list ---- */

void vc_settings_init(struct vc_settings *s, struct vc_qmp *q, const struct vc_id *uuid,
                      const struct vc_log *log)
{
    *s = (struct vc_settings){.qmp = q, .log = log, .uuid = *uuid};
    if (!vc_process_is_known(vc_qmp_process(q)))
        vc_qmp_identify(q, uuid);
}

/* Before the command that it is about: who dies in between has left `was` or `last`. */
static void write_list(struct vc_settings *s)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_handover *h;

    if (!s->vm)
        return;
    h = vc_handover_edit(s->vm);
    h->n_settings = s->n;
    memcpy(h->settings, s->list, s->n * sizeof(s->list[0]));
    if (!vc_process_is_known(&h->qemu))
        h->qemu = *vc_qmp_process(s->qmp);
    if (!vc_handover_note(s->vm, &err))
        return;
    vc_log_err(s->log, VC_LOG_WARNING, "what is changed in QEMU is not recorded", &err);
    s->vm = NULL;
}

void vc_settings_record(struct vc_settings *s, struct vc_vm *vm)
{
    s->vm = vm;
    if (s->n)
        write_list(s);
}

/* Of a text the name is what it was, and `was` which it is. */
static struct vc_handover_setting *find(struct vc_settings *s, enum vc_setting_kind kind,
                                        const char *name, uint64_t was)
{
    for (uint32_t i = 0; i < s->n; i++)
        if (s->list[i].kind == kind && !strcmp(s->list[i].name, name) &&
            (kind != VC_SETTING_TEXT || s->list[i].was == was))
            return &s->list[i];
    return NULL;
}

/* The one of that name, made if there is none. NULL: the list is full. */
static struct vc_handover_setting *get(struct vc_settings *s, enum vc_setting_kind kind,
                                       const char *name, uint64_t was, struct vc_err *err)
{
    struct vc_handover_setting *e = find(s, kind, name, was);

    if (e)
        return e;
    if (s->n == VC_HANDOVER_MAX_SETTINGS) {
        vc_err_set(err, VC_E_FAILED, "no record has room for QEMU's setting '%s'", name);
        return NULL;
    }
    e = &s->list[s->n++];
    *e = (struct vc_handover_setting){.kind = (uint8_t)kind, .was = was, .set = was, .last = was};
    snprintf(e->name, sizeof(e->name), "%s", name);
    return e;
}

static void drop(struct vc_settings *s, struct vc_handover_setting *e)
{
    uint32_t at = (uint32_t)(e - s->list);

    memmove(e, e + 1, (--s->n - at) * sizeof(*e));
}

/* ---- changes ---- */

int vc_settings_capabilities(struct vc_settings *s, const struct vc_qmp_capability *list, size_t n,
                             struct vc_err *err)
{
    struct vc_qmp_capability need[VC_HANDOVER_MAX_SETTINGS];
    size_t n_need;
    int rc = n > VC_ARRAY_LEN(need)
                 ? vc_err_set(err, VC_E_FAILED, "too many capabilities")
                 : vc_qmp_differing_capabilities(s->qmp, list, n, need, &n_need, err);

    if (rc)
        return rc;
    for (size_t i = 0; i < n_need; i++) {
        struct vc_handover_setting *e =
            get(s, VC_SETTING_CAPABILITY, need[i].name, !need[i].on, err);

        if (!e)
            return err->code;
        e->set = need[i].on;
        e->last = !need[i].on;
    }
    if (!n_need)
        return 0;
    write_list(s);
    return vc_qmp_set_capabilities(s->qmp, need, n_need, err);
}

static bool is_ours(const struct vc_handover_setting *e, uint64_t now)
{
    return now == e->set || now == e->last;
}

int vc_settings_number(struct vc_settings *s, const char *name, uint64_t v, struct vc_err *err)
{
    struct vc_handover_setting *e = find(s, VC_SETTING_PARAMETER, name, 0);
    uint64_t now;
    int rc = vc_qmp_get_parameter(s->qmp, name, UINT64_MAX, &now, err);

    if (rc)
        return rc;
    if (now == UINT64_MAX)
        return VC_NOT_FOUND;
    if (e && !is_ours(e, now)) {
        drop(s, e);
        write_list(s);
        return VC_AGAIN;
    }
    if (now == v)
        return 0;
    e = get(s, VC_SETTING_PARAMETER, name, now, err);
    if (!e)
        return err->code;
    e->last = now;
    e->set = v;
    write_list(s);
    rc = vc_qmp_set_parameter(s->qmp, name, v, err);
    if (!rc) /* `last` is somebody else's, if it is found from now on */
        e->last = v;
    return rc;
}

const char *vc_setting_text_name(enum vc_setting_text which)
{
    return texts[which].name;
}

const char *vc_setting_text_value(enum vc_setting_text which)
{
    return texts[which].value;
}

int vc_settings_text(struct vc_settings *s, enum vc_setting_text which, struct vc_err *err)
{
    const char *name = texts[which].name;
    char now[sizeof(s->list[0].name)];
    int rc = vc_qmp_get_text(s->qmp, name, texts[which].value, now, sizeof(now), err);

    if (rc || !strcmp(now, texts[which].value))
        return rc;
    if (!get(s, VC_SETTING_TEXT, now, which, err))
        return err->code;
    write_list(s);
    return vc_qmp_set_text(s->qmp, name, texts[which].value, err);
}

/* Whether it is certain that a VM which arrives there would have started by itself. */
static bool starts_by_itself(const struct vc_qmp *q)
{
    const struct vc_process *p = vc_qmp_process(q);

    return vc_process_is_known(p) && vc_process_has_option(p->pid, "uuid", NULL, NULL) &&
           !vc_process_has_option(p->pid, "S", NULL, NULL);
}

/* 0: the VM has yet to arrive. */
static int check_waits(struct vc_qmp *q, struct vc_err *err)
{
    char state[32];
    int rc = vc_qmp_run_state(q, state, err);

    if (!rc && strcmp(state, "inmigrate") != 0)
        rc = vc_err_set(err, VC_E_QEMU_STATE,
                        "somebody else's migration has come to '%.100s' meanwhile: the VM is '%s'",
                        vc_qmp_name(q), state);
    return rc;
}

/* QEMU: qmp_stop() in inmigrate. In any other state that would pause a guest that runs: another
 * migration may have come since this QEMU was found waiting. */
static int stop(struct vc_qmp *q, struct vc_err *err)
{
    struct vc_err ignored = VC_ERR_INIT;
    int rc = check_waits(q, err);

    if (!rc)
        rc = vc_qmp_simple(q, "stop", err);
    if (!rc)
        rc = check_waits(q, err);
    if (rc == VC_E_QEMU_STATE && vc_qmp_has_run(q) && vc_qmp_simple(q, "cont", &ignored))
        vc_err_set(err, VC_E_QEMU_STATE, "a VM at '%.80s' was paused by mistake: %.100s",
                   vc_qmp_name(q), ignored.message);
    return rc;
}

int vc_settings_autostart_off(struct vc_settings *s, struct vc_err *err)
{
    if (starts_by_itself(s->qmp)) {
        struct vc_handover_setting *e = get(s, VC_SETTING_AUTOSTART, "autostart", 1, err);

        if (!e)
            return err->code;
        e->set = e->last = 0;
        write_list(s);
    }
    return stop(s->qmp, err);
}

/* ---- putting back ---- */

/** What QEMU says now. */
struct present {
    bool idle;  /* no migration is under way */
    bool waits; /* the VM has yet to arrive, and nothing has begun */
    bool same;  /* it is for certain the process that the list is about */
};

static int ask(struct vc_qmp *q, struct present *p, struct vc_err *err)
{
    struct vc_qmp_migration m;
    char state[32];
    int rc = vc_qmp_migration(q, &m, err);

    if (!rc)
        rc = vc_qmp_run_state(q, state, err);
    if (rc)
        return rc;
    p->idle = vc_qmp_status_is_idle(m.status);
    p->waits = !strcmp(state, "inmigrate") && (!*m.status || !strcmp(m.status, "none"));
    return 0;
}

static int put_number(struct vc_qmp *q, const struct vc_handover_setting *e,
                      const struct vc_log *log, struct vc_err *err)
{
    uint64_t now;
    int rc = vc_qmp_get_parameter(q, e->name, UINT64_MAX, &now, err);

    if (rc || now == e->was)
        return rc;
    if (now != UINT64_MAX && is_ours(e, now))
        return vc_qmp_set_parameter(q, e->name, e->was, err);
    vc_log(log, VC_LOG_DEBUG, "somebody has set QEMU's %s meanwhile, to %llu", e->name,
           (unsigned long long)now);
    return 0;
}

static int put_text(struct vc_qmp *q, const struct vc_handover_setting *e, struct vc_err *err)
{
    char now[sizeof(e->name)];
    int rc;

    if (e->was < VC_SETTING_TLS_CREDS || e->was >= VC_ARRAY_LEN(texts))
        return 0;
    rc = vc_qmp_get_text(q, texts[e->was].name, "", now, sizeof(now), err);
    if (rc == VC_E_QEMU_STATE) { /* longer than what it is set to: somebody else's */
        *err = VC_ERR_INIT;
        return 0;
    }
    if (rc || strcmp(now, texts[e->was].value) != 0)
        return rc;
    return vc_qmp_set_text(q, texts[e->was].name, e->name, err);
}

/* The VM cannot run by that: it has yet to arrive. Whether it is to start then is all that changes
 * (QEMU: qmp_cont() in inmigrate). */
static int put_autostart(struct vc_qmp *q, const struct present *now, struct vc_err *err)
{
    struct present again = {0};
    int rc = 0;

    if (now->waits && now->same && starts_by_itself(q))
        rc = ask(q, &again, err); /* the last look: another VM may arrive at any time */
    return !rc && again.waits ? vc_qmp_simple(q, "cont", err) : rc;
}

/* Capabilities that depend on each other go in one command; if QEMU does not take it, one by one.
 */
static void put_capabilities(struct vc_qmp *q, const struct vc_handover_setting *list, uint32_t n,
                             const struct vc_log *log)
{
    struct vc_qmp_capability back[VC_HANDOVER_MAX_SETTINGS];
    struct vc_err err = VC_ERR_INIT;
    uint32_t k = 0;

    for (uint32_t i = 0; i < n; i++)
        if (list[i].kind == VC_SETTING_CAPABILITY)
            back[k++] = (struct vc_qmp_capability){list[i].name, list[i].was, .optional = true};
    if (!k || !vc_qmp_set_capabilities(q, back, k, &err))
        return;
    for (uint32_t i = 0; i < k && !vc_qmp_is_gone(q); i++) {
        err = VC_ERR_INIT;
        if (vc_qmp_set_capabilities(q, &back[i], 1, &err))
            vc_log_err(log, VC_LOG_DEBUG, "a capability of QEMU's was not put back", &err);
    }
}

/* 0: done with it; VC_AGAIN: another time; an error: QEMU does not answer, or refuses. */
static int put_one(struct vc_qmp *q, const struct vc_handover_setting *e, const struct present *now,
                   const struct vc_log *log, struct vc_err *err)
{
    if (e->kind == VC_SETTING_PARAMETER)
        return put_number(q, e, log, err);
    if (!now->idle)
        return VC_AGAIN;
    if (e->kind == VC_SETTING_TEXT)
        return put_text(q, e, err);
    return e->kind == VC_SETTING_AUTOSTART ? put_autostart(q, now, err) : 0;
}

/* What is left stays in the list. */
static void put_back(struct vc_qmp *q, struct vc_handover_setting *list, uint32_t *n, bool same,
                     const struct vc_log *log)
{
    struct vc_err err = VC_ERR_INIT;
    struct present now = {.same = same};
    uint32_t left = 0;
    int rc;

    if (vc_qmp_is_gone(q) || ask(q, &now, &err))
        return;
    if (now.idle)
        put_capabilities(q, list, *n, log);
    for (uint32_t i = 0; i < *n; i++) {
        err = VC_ERR_INIT;
        rc = vc_qmp_is_gone(q) ? VC_AGAIN : put_one(q, &list[i], &now, log, &err);
        if (rc < 0)
            vc_log_err(log, VC_LOG_DEBUG, "a setting of QEMU's was not put back", &err);
        if (rc)
            list[left++] = list[i];
    }
    *n = left;
}

void vc_settings_put_back(struct vc_settings *s)
{
    uint32_t n = s->n;

    if (!s->qmp || !n)
        return;
    put_back(s->qmp, s->list, &s->n, true, s->log);
    if (s->n != n)
        write_list(s);
}

/* Whether the list of that record is about another process than this one, for certain: one that is
 * gone, or another one as seen from the same place. */
static bool is_other(const struct vc_handover *h, const struct vc_process *p)
{
    const struct vc_process *was = &h->qemu;

    if (!vc_process_is_known(was) || vc_process_equal(was, p))
        return false;
    return vc_process_look(was) == VC_PROCESS_GONE ||
           (vc_process_is_known(p) && was->pid_ns == p->pid_ns && was->time_ns == p->time_ns);
}

bool vc_settings_restore(struct vc_qmp *q, const struct vc_id *uuid, struct vc_handover *h,
                         const struct vc_log *log)
{
    uint32_t n = h->n_settings;

    if (!n)
        return false;
    if (!vc_process_is_known(vc_qmp_process(q)))
        vc_qmp_identify(q, uuid);
    if (is_other(h, vc_qmp_process(q)))
        h->n_settings = 0; /* they went with their QEMU */
    else
        put_back(q, h->settings, &h->n_settings, vc_process_equal(&h->qemu, vc_qmp_process(q)),
                 log);
    return h->n_settings != n;
}

void vc_settings_take_over(struct vc_settings *s, const struct vc_handover *h)
{
    if (is_other(h, vc_qmp_process(s->qmp)))
        return;
    s->n = h->n_settings;
    memcpy(s->list, h->settings, s->n * sizeof(s->list[0]));
}
