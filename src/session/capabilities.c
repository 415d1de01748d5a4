/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "session/capabilities.h"

/* qapi/migration.json, MigrationCapability. A QEMU keeps what was set for its last migration, and a
 * destination becomes a source; so nothing is left to chance but what does no harm. */

static const char *const never[] = {
    /* These do what we do, and hide pages from us. */
    "xbzrle",
    "compress",
    /* Other connections than we carry. */
    "multifd",
    "zero-copy-send", /* needs multifd */
    "mapped-ram",
    /* Both VMs would run. */
    "x-colo",
    "background-snapshot",
    /* The guest would stay paused until somebody says migrate-continue. */
    "pause-before-switchover",
    /* What it has thrown away cannot be sent again: an interrupted postcopy could not be recovered.
     */
    "release-ram",
    /* A destination that has it not never acknowledges, and the migration never ends. */
    "switchover-ack",
};

int vc_session_set_capabilities(struct vc_qmp *q, const struct vc_session_wants *w,
                                struct vc_err *err)
{
    struct vc_qmp_capability list[VC_ARRAY_LEN(never) + 6];
    size_t n = 0;

    for (; n < VC_ARRAY_LEN(never); n++)
        list[n] = (struct vc_qmp_capability){.name = never[n]};
    list[n++] = (struct vc_qmp_capability){"events", .on = true};
    list[n++] = (struct vc_qmp_capability){"postcopy-ram", .on = w->postcopy};
    list[n++] = (struct vc_qmp_capability){"postcopy-preempt", .on = w->preempt};
    if (w->source) /* without it a loss goes unnoticed */
        list[n++] = (struct vc_qmp_capability){"return-path", .on = true};
    else /* until the VM is continued here, the source can take the locks of its images back */
        list[n++] = (struct vc_qmp_capability){"late-block-activate", .on = true, .optional = true};
    if (w->auto_converge) {
        list[n++] = (struct vc_qmp_capability){"auto-converge", .on = true};
        list[n++] = (struct vc_qmp_capability){"dirty-limit"}; /* not both */
    }
    return vc_qmp_set_capabilities(q, list, n, err);
}
