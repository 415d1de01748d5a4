/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SESSION_MIGRATION_H
#define VC_SESSION_MIGRATION_H

#include "session/common.h"
#include "source/source.h"

/* Private to src/session: the source's side of one migration, shared by source.c (begin, prepare,
 * finish, confirm) and perform.c (while the stream flows). */

struct vc_qmp;

/** Downtime limit given to QEMU while reuse makes its estimate of the bandwidth meaningless. */
#define VC_CAUTIOUS_LIMIT_MS 5

struct vc_migration {
    const struct vc_source_session *o;
    struct vc_session_result *result;
    struct vc_link *link;
    struct vc_inbox inbox;
    struct vc_holding holding;
    struct vc_source *pipeline;
    struct vc_qmp *qmp; /* NULL: proxy */
    struct vc_id vm, session, generation;
    enum vc_wire_base base;
    uint64_t start_ns;
    uint64_t old_bandwidth, old_limit; /* QEMU's parameters before */
    bool parameters_changed;
    bool recorded;                /* a handover was begun */
    bool completed;               /* QEMU said so */
    uint64_t rate_bytes, rate_ns; /* last sample of the intake */
    double intake_rate;
    int stream_fd;      /* proxy: until the pipeline has it */
    uint64_t limit_ms;  /* what QEMU has now */
    uint64_t paused_ns; /* when the guest stopped here */
};

/** Copies what the pipeline knows into the result, and samples the rate of the intake. */
void vc_migration_note(struct vc_migration *m, struct vc_source_status *st);
/** Tells the caller how things go. */
void vc_migration_report(struct vc_migration *m);
/** Waits for the pipeline, QEMU or a cancellation, not longer than a tick. */
void vc_migration_wait(struct vc_migration *m);
/** Until QEMU says `completed` (0), or until the guest is certain to go on here (an error). */
int vc_migration_drive(struct vc_migration *m, struct vc_err *err) VC_NODISCARD;
/** The same for a proxy, which is told by the stream alone. */
int vc_migration_follow(struct vc_migration *m, struct vc_err *err) VC_NODISCARD;

#endif
