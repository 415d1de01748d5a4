/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SESSION_MIGRATION_H
#define VC_SESSION_MIGRATION_H

#include "session/common.h"
#include "session/runstate.h"
#include "session/settings.h"
#include "source/source.h"

/* Private to src/session: the source's side of one migration, shared by source.c (begin, prepare,
 * the whole), perform.c (while the stream flows) and finish.c (finish, confirm). */

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
    pid_t neighbour; /* another process with the VM's UUID, from before this migration; 0, -1: none,
                        or not known: vc_find_other_qemu() */
    enum vc_wire_base base;
    uint64_t features; /* that both sides have */
    uint64_t start_ns;
    struct vc_settings settings; /* of QEMU, that were changed */
    uint64_t old_limit;          /* QEMU's downtime limit before */
    bool recorded;               /* a handover was begun */
    bool completed;              /* QEMU said so, or cannot any more and nothing is missing */
    struct vc_handover_sum sum;  /* of it, from then on; unknown: QEMU cannot say it any more */
    bool has_begun, is_over;     /* events: QEMU began it; it ended otherwise, or another began */
    bool says_completed;         /* an event: QEMU completed one, and was not asked since */
    bool unknown;                /* whether it completed is not known */
    bool orphan;                 /* the source QEMU is gone for certain; the guest was paused */
    bool guest_paused;           /* as far as events tell */
    struct vc_progress progress;
    uint64_t acked_before_pause;  /* bytes of the stream */
    uint64_t rate_bytes, rate_ns; /* last sample of the intake */
    double intake_rate;
    int stream_fd;                     /* proxy: until the pipeline has it */
    int listen_fd;                     /* the same; -1: none */
    uint64_t limit_ms;                 /* what QEMU has now */
    bool limit_is_theirs;              /* somebody else has set it meanwhile */
    uint64_t paused_ns;                /* when the guest stopped here */
    char status[32];                   /* what QEMU says of the migration */
    bool stop_seen;                    /* a STOP event, and nobody has asked why */
    char state[VC_RUN_STATE_BYTES];    /* the guest's, by others' doing than the migration's */
    char event[VC_RUN_STATE_BYTES];    /* the state that the last event told of, or "" */
    bool told;                         /* a decision may have been sent */
    bool started_anew;                 /* its QEMU has ended, and another process has its UUID */
    bool noted;                        /* the destination's success was seen, and passed on */
    enum vc_handover_state owed_state; /* to be recorded once the store answers; 0: none */
    struct {                           /* a note in a store that hangs elsewhere */
        struct vc_thread thread;
        int done_fd; /* 0: none */
        int rc;
        struct vc_err err;
    } noting;
    char shutdown[32]; /* why QEMU is about to end (its event SHUTDOWN), or "" */
    bool continued;    /* somebody may have continued it here, after `completed` */
    bool postcopy_asked, word_given;
    uint64_t next_ask_ns;   /* when QEMU is asked whether there is anything left for postcopy ... */
    uint64_t ask_anyway_ns; /* ... and when it is told to switch although it knows of nothing */
    bool cancelled_late;    /* nothing came of it, and that was said */
    uint64_t next_word_ns;  /* when it is given again, after it was not obeyed */
    bool awaits_answer;     /* a decision was sent, and no answer has come */
    bool owes_word;         /* recover: the interrupted session had not given it */
    char settler[128];      /* who settles what stays open, for messages */
    struct vc_id interrupted; /* recover: that session; nil: there is no record of it */
    bool resumed;             /* recover: QEMU has been seen to go on */
};

/** Copies what the pipeline knows into the result, and samples the rate of the intake. */
void vc_migration_note(struct vc_migration *m, struct vc_source_status *st);
/** Tells the caller how things go. */
void vc_migration_report(struct vc_migration *m);
/** Takes note of what QEMU has said meanwhile. */
int vc_migration_take_events(struct vc_migration *m, struct vc_err *err) VC_NODISCARD;
/** Makes *err say that it was cancelled, and where the VM is. Returns VC_E_CANCELLED. */
int vc_migration_cancelled(const struct vc_migration *m, struct vc_err *err);
/** Waits for the pipeline, QEMU or a cancellation, not longer than a tick. */
void vc_migration_wait(struct vc_migration *m);
/** Until QEMU says `completed` (0), or until the guest is certain to go on here (an error). */
int vc_migration_drive(struct vc_migration *m, struct vc_err *err) VC_NODISCARD;
/** The same for a proxy, which is told by the stream alone. */
int vc_migration_follow(struct vc_migration *m, struct vc_err *err) VC_NODISCARD;

/* ---- source_record.c ---- */

/** Records the state durably, if a record was begun; trouble is logged. True: it is written, or
 *  none was begun. A store that hangs is not waited for: vc_migration_record_owed() does. */
bool vc_migration_record(struct vc_migration *m, enum vc_handover_state state);
/** The last state that was not recorded because the store hung. Waits for the store. */
void vc_migration_record_owed(struct vc_migration *m);
/** The destination has reported success: notes how much this migration sent, and lets QEMU know. An
 *  error: that cannot be noted, and QEMU does not know. */
int vc_migration_note_success(struct vc_migration *m, const struct vc_source_status *st,
                              struct vc_err *err) VC_NODISCARD;

/* ---- finish.c ---- */

/** Whether the VM stays in the state in which it arrives. */
bool vc_migration_stays(const struct vc_migration *m);
/** The migration failed after its stream had begun: records that the VM is this host's, and tells
 *  the destination. @runs: it was seen to run. */
void vc_migration_keep_vm(struct vc_migration *m, bool runs);
/** What a generation's manifest says of this migration. */
void vc_migration_describe(const struct vc_migration *m, struct vc_txn_note *note);
/** Whether a RESUME has come since `completed`; looks at what has come since it was asked last. */
bool vc_migration_was_continued(struct vc_migration *m);
/** Commits this host's generation, and compares it with the other host's. */
void vc_migration_commit(struct vc_migration *m);
/** Records that the VM is the destination's, has it continued there, and records that it was.
 *  VC_AGAIN (with err set): it was heard, but could not be obeyed now. */
int vc_migration_give_word(struct vc_migration *m, struct vc_err *err) VC_NODISCARD;
/** The same when all has arrived: a few times, if need be. */
int vc_migration_give_last_word(struct vc_migration *m, struct vc_err *err) VC_NODISCARD;

/* ---- postcopy.c ---- */

/** Whether QEMU has switched to postcopy: the guest cannot go on here any more. */
bool vc_migration_has_switched(const struct vc_migration *m);
/** Starts postcopy and gives the word where it is time for either. */
int vc_migration_postcopy(struct vc_migration *m, const struct vc_source_status *st,
                          struct vc_err *err) VC_NODISCARD;
/** Something failed after the switch, *err says what: ends the stream, so that both QEMUs pause.
 *  Returns VC_E_POSTCOPY, as *err then is. */
int vc_migration_interrupted(struct vc_migration *m, struct vc_err *err) VC_NODISCARD;

#endif
