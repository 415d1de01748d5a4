/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "session/capabilities.h"

/* qapi/migration.json, MigrationCapability and MigrationParameters. A QEMU keeps what was set for
 * its last migration, and a destination becomes a source; so nothing is left to chance but what
 * does no harm. All of it is put back afterwards (settings.h).
 *
 * Parameters that are set for the migration:
 *
 *   tls-creds                    QEMU would speak TLS within the stream, and wait for a handshake
 *   mode (8.2)                   cpr-*: another QEMU on this host gets the VM, with its memory left
 *                                where it is; cpr-exec replaces the process
 *   avail-switchover-bandwidth   (8.2) takes the place of QEMU's estimate, which the downtime limit
 *                                is adjusted to; source only
 *   downtime-limit, max-bandwidth   source only (source.c, perform.c)
 *
 * Of no effect without a capability that is off, or a mode that is not set: multifd-*, direct-io,
 * compress-*, decompress-threads, xbzrle-cache-size, x-checkpoint-delay, x-rdma-chunk-size,
 * cpr-exec-command; and tls-hostname, tls-authz without tls-creds. Its owner's, and harmless:
 * announce-*, cpu-throttle-*, max-cpu-throttle, throttle-trigger-threshold, vcpu-dirty-limit and
 * x-vcpu-dirty-limit-period, max-postcopy-bandwidth, zero-page-detection (where zero pages come
 * with their content, they are seen all the same), block-incremental, block-bitmap-mapping. */

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

/* The list for this migration. Returns how many. */
static size_t capabilities_for(const struct vc_session_wants *w,
                               struct vc_qmp_capability list[VC_QMP_MAX_CAPABILITIES])
{
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
    return n;
}

/* The link is all that protects what QEMU was told to encrypt. */
static int check_encryption(struct vc_qmp *q, bool plaintext, struct vc_err *err)
{
    char creds[32];
    int rc = vc_qmp_get_text(q, "tls-creds", "", creds, sizeof(creds), err);

    if (!rc && *creds && plaintext)
        rc = vc_err_set_hint(err, VC_E_QEMU_STATE,
                             "encrypt the connection (--tls-*, --ssh), or set tls-creds to \"\"",
                             "QEMU is to encrypt its migrations (tls-creds is '%s'), and this "
                             "connection is not encrypted",
                             creds);
    return rc;
}

int vc_session_check_settings(struct vc_qmp *q, const struct vc_session_wants *w,
                              struct vc_err *err)
{
    struct vc_qmp_capability list[VC_QMP_MAX_CAPABILITIES], need[VC_QMP_MAX_CAPABILITIES];
    size_t n_need;
    int rc = vc_qmp_differing_capabilities(q, list, capabilities_for(w, list), need, &n_need, err);

    return rc ? rc : check_encryption(q, w->plaintext, err);
}

int vc_session_set_up(struct vc_settings *s, const struct vc_session_wants *w, struct vc_err *err)
{
    struct vc_qmp_capability list[VC_QMP_MAX_CAPABILITIES];
    int rc = vc_settings_capabilities(s, list, capabilities_for(w, list), err);

    return rc ? rc : vc_session_set_stream(s, w, err);
}

int vc_session_set_stream(struct vc_settings *s, const struct vc_session_wants *w,
                          struct vc_err *err)
{
    int rc = check_encryption(s->qmp, w->plaintext, err);

    if (!rc)
        rc = vc_settings_text(s, VC_SETTING_TLS_CREDS, err);
    if (!rc)
        rc = vc_settings_text(s, VC_SETTING_MODE, err);
    if (!rc && w->source)
        rc = vc_settings_number(s, "avail-switchover-bandwidth", 0, err);
    return rc < 0 ? rc : 0;
}
