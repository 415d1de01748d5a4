/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SESSION_RUNSTATE_H
#define VC_SESSION_RUNSTATE_H

#include <stdbool.h>

#include "base/json.h"

/* QEMU's run states (QEMU: qapi/run-state.json, RunState) and what they mean for a migration:
 * docs/internals/handover.md, "Run states". Pure. */

#define VC_RUN_STATE_BYTES 32

/** Whether a VM in that state can be migrated. */
bool vc_run_state_may_migrate(const char *state);
/** Whether the guest goes on in that state: after a migration it is continued. True for "suspended"
 *  too, in which a guest waits to be woken: `cont` leads back there. */
bool vc_run_state_goes_on(const char *state);
/** Whether a VM that stood in "postmigrate" can be in that state only if somebody continued it. */
bool vc_run_state_shows_run(const char *state);
/** Whether QEMU passes through that state by itself in a migration, so that it hides an earlier
 *  one. */
bool vc_run_state_is_migration(const char *state);
/** The state that an event leads to where the guest stopped by itself or went on ("shutdown",
 *  "guest-panicked", "io-error", "watchdog", "suspended", "running"); NULL: another event. */
const char *vc_run_state_after(struct json_object *event);

#endif
