/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "base/clock.h"
#include "qmp/qmp.h"
#include "session/migration.h"

/* Postcopy, seen from the source. QEMU pauses the guest, sends the device state as one package, and
 * the destination runs before the memory is complete. So the word is given in the middle: once QEMU
 * says `postcopy-active` and the destination QEMU was given the whole package. From there on the
 * VM is the destination's. A lost link then leaves both QEMUs `postcopy-paused`, and a new session
 * carries the rest (docs/internals/phases.md). */

#define WORD_AGAIN_MS 1000
#define ASK_AGAIN_MS 10
/* A migration of which no RAM is left has ended by then, unless QEMU has something else to send,
 * like bitmaps of dirty blocks: then it looks for no more RAM until it is asked. */
#define ASK_ANYWAY_MS 2000

/* Once the word was given nothing that QEMU says takes it back; and what is recovered had switched.
 */
bool vc_migration_has_switched(const struct vc_migration *m)
{
    return m->word_given || m->o->recover || (vc_qmp_status_is_switched(m->status) && !m->is_over);
}

/* A destination QEMU that cannot continue the VM now may do so in a moment, and meanwhile the rest
 * of the memory goes on. The last time is when all has arrived. */
static int give_word(struct vc_migration *m, struct vc_err *err)
{
    int rc = vc_migration_give_word(m, err);

    if (rc != VC_AGAIN)
        return rc;
    vc_log_err(m->o->log, VC_LOG_DEBUG, "the word is given again", err);
    *err = VC_ERR_INIT;
    m->next_word_ns = vc_now_ns() + WORD_AGAIN_MS * VC_NS_PER_MS;
    return 0;
}

/* Only for what QEMU finds dirtied since the first pass (its count of syncs is 1 until it has
 * looked): a migration of which nothing is left ends without postcopy, and that of a paused guest
 * ends as well. QEMU 11.1 would fail it: its destination forgets that it listens
 * (CMD_POSTCOPY_LISTEN) if no page was to be discarded before. Up to 10.0 such a migration
 * completes before it can switch. */
static int ask_for_postcopy(struct vc_migration *m, struct vc_err *err)
{
    struct vc_qmp_migration now;
    int rc = vc_qmp_migration(m->qmp, &now, err);
    bool is_left;

    if (rc)
        return rc;
    is_left = now.rounds > 1 && now.ram_remaining;
    if (is_left || !m->ask_anyway_ns)
        m->ask_anyway_ns = vc_now_ns() + ASK_ANYWAY_MS * VC_NS_PER_MS;
    if (is_left ? !vc_run_state_goes_on(m->state) : vc_now_ns() < m->ask_anyway_ns) {
        m->next_ask_ns = vc_now_ns() + ASK_AGAIN_MS * VC_NS_PER_MS;
        return 0;
    }
    rc = vc_qmp_simple(m->qmp, "migrate-start-postcopy", err);
    m->postcopy_asked = !rc;
    return rc;
}

int vc_migration_postcopy(struct vc_migration *m, const struct vc_source_status *st,
                          struct vc_err *err)
{
    int rc = 0;

    if (m->o->postcopy && !m->postcopy_asked && st->first_pass_done &&
        !strcmp(m->status, "active") && vc_now_ns() >= m->next_ask_ns)
        rc = ask_for_postcopy(m, err);
    if (!rc && !m->word_given && st->package_delivered && vc_migration_has_switched(m) &&
        vc_now_ns() >= m->next_word_ns)
        rc = give_word(m, err);
    return rc;
}

int vc_migration_interrupted(struct vc_migration *m, struct vc_err *err)
{
    struct vc_err cause = *err;

    vc_source_abort(m->pipeline, &cause);
    if (!m->word_given)
        vc_migration_record(m, VC_HANDOVER_LEFT);
    return vc_err_set_hint(err, VC_E_POSTCOPY,
                           "`vecycle migrate --recover` carries the rest of its memory",
                           "interrupted after the switch to postcopy: %.150s", cause.message);
}
