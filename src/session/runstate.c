/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "session/runstate.h"

#include <stddef.h>
#include <string.h>

#include "base/units.h"

enum {
    MIGRATES = 1,  /* may be migrated */
    GOES_ON = 2,   /* the guest is continued afterwards */
    SHOWS_RUN = 4, /* not reached from postmigrate without `cont` */
    PASSING = 8,   /* QEMU's own, in a migration */
};

/* A state that is not here may be new: it is neither migrated nor does it show anything. */
static const struct {
    const char *name;
    unsigned is;
} states[] = {
    {"running", MIGRATES | GOES_ON | SHOWS_RUN},
    {"suspended", MIGRATES | GOES_ON | SHOWS_RUN},
    {"paused", MIGRATES},
    {"prelaunch", MIGRATES}, /* also after system_reset in postmigrate */
    {"shutdown", MIGRATES | SHOWS_RUN},
    {"guest-panicked", MIGRATES | SHOWS_RUN},
    {"io-error", MIGRATES | SHOWS_RUN},
    {"watchdog", MIGRATES | SHOWS_RUN},
    {"internal-error", MIGRATES | SHOWS_RUN},
    {"debug", MIGRATES | SHOWS_RUN},
    {"save-vm", SHOWS_RUN},
    {"restore-vm", SHOWS_RUN},
    {"inmigrate", 0},
    {"colo", 0},
    {"finish-migrate", PASSING},
    {"postmigrate", PASSING},
};

static bool is(const char *state, unsigned what)
{
    for (size_t i = 0; i < VC_ARRAY_LEN(states); i++)
        if (!strcmp(states[i].name, state))
            return states[i].is & what;
    return false;
}

bool vc_run_state_may_migrate(const char *state)
{
    return is(state, MIGRATES);
}

bool vc_run_state_goes_on(const char *state)
{
    return is(state, GOES_ON);
}

bool vc_run_state_shows_run(const char *state)
{
    return is(state, SHOWS_RUN);
}

bool vc_run_state_is_migration(const char *state)
{
    return is(state, PASSING);
}

const char *vc_run_state_after(struct json_object *event)
{
    static const struct {
        const char *event, *action, *state;
    } rows[] = {
        {"RESUME", NULL, "running"},
        {"WAKEUP", NULL, "running"},
        {"SUSPEND", NULL, "suspended"},
        {"SHUTDOWN", NULL, "shutdown"},
        {"GUEST_PANICKED", "pause", "guest-panicked"},
        {"BLOCK_IO_ERROR", "stop", "io-error"},
        {"WATCHDOG", "pause", "watchdog"},
    };
    const char *name = vc_json_str(event, "event", "");
    const char *action = vc_json_str(vc_json_get(event, "data"), "action", "");

    for (size_t i = 0; i < VC_ARRAY_LEN(rows); i++)
        if (!strcmp(rows[i].event, name) && (!rows[i].action || !strcmp(rows[i].action, action)))
            return rows[i].state;
    return NULL;
}
