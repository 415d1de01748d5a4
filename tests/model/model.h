/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_TESTS_MODEL_H
#define VC_TESTS_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A model of the handover of one VM (docs/internals/handover.md), looked through exhaustively: both
 * agents, both QEMUs, both durable records, the messages between them, third parties at either
 * QEMU, crashes and power cuts between any two steps.
 *
 * A step of the model is what nobody can come between without it being that one's own doing: what
 * vecycle looks at, and what it does on that alone. A write of the record, an exchange with the
 * other host and an answer of QEMU's are steps of their own.
 *
 * Bounds:
 * - One migration by precopy, from START on. A second one of the same VM is a third party's.
 * - At most so many faults (crash of an agent, power cut of a host, lost link or message, an
 *   answer that comes too late, a record that cannot be written) and at most so many acts of
 *   third parties (cont, stop, system_reset, migrate, end of a QEMU; its socket moved, hidden, or
 *   another process's) in one run. What repairs is free.
 * - One message whose sender has given up is under way at a time, besides the one that is waited
 *   for.
 * - A record is written whole or not at all (tests/unit/test_store_crash.c looks at torn writes).
 * - Any other migration sends as many records as this one did (the guest does nothing).
 * - Another process with the VM's UUID at a path waits (inmigrate), or, at the source, runs.
 *
 * Third parties may make two VMs run by themselves, and are excused by these rules:
 * - What a third party does behind a look of vecycle's, and before what follows from it at once.
 * - A third party continues the arrived VM before the source's QEMU has completed: as with plain
 *   QEMU.
 * - The VM was continued at the source while no agent could see it, and ended there before one
 *   did (handover.md, "If QEMU is gone and the record says left"). */

/* ---- the state ---- */

enum source_qemu { SQ_RUNS, SQ_PAUSED, SQ_FINISH, SQ_POSTMIGRATE, SQ_PRELAUNCH, SQ_GONE };
/** Of its newest migration. */
enum migration { MIG_ACTIVE, MIG_OURS, MIG_OTHER, MIG_FAILED };
enum dest_qemu { DQ_INMIGRATE, DQ_ARRIVED, DQ_RUNS, DQ_STOPPED, DQ_PRELAUNCH, DQ_GONE };
enum path { PATH_RIGHT, PATH_NOWHERE, PATH_OTHER };
/** Another process with the VM's UUID behind the path. */
enum other { OTHER_NONE, OTHER_WAITS, OTHER_RUNS };
enum source_record { SR_LEAVING, SR_LEFT, SR_KEPT, SR_SETTLED };
enum dest_record { DR_ARRIVING, DR_ABOUT, DR_SETTLED, DR_VOID };
enum message { MSG_NONE, MSG_WORD, MSG_ABANDON, MSG_ABANDON_QUIT };
enum answer { ANS_NONE, ANS_DONE, ANS_NEVER_RAN, ANS_REFUSED, ANS_DOUBT };
/** SHUT(0) on the return path: on its way; in the source agent's hands, or passed on. */
enum shut { SHUT_NONE, SHUT_SENT, SHUT_HERE };

/** Where the source's agent (or whoever resolves) is. */
enum source_at {
    S_IDLE,
    S_FLOW,    /* the stream flows */
    S_NOTE,    /* SHUT is here; the counts are to be noted */
    S_PASS,    /* SHUT is to be passed to QEMU */
    S_WAIT,    /* for `completed` */
    S_DONE,    /* QEMU completed; left is to be written */
    S_LOOK,    /* left is durable; the look, and the decision */
    S_WORD,    /* in the session: the answer to the decision */
    S_CLOSED,  /* QEMU's socket is closed; its verdict */
    S_ABANDON, /* in the session, kept is durable: the answer to abandon */
    S_ASK,     /* in a later session: the answer */
    S_NEVER,   /* NEVER_RAN came */
    S_CONT,    /* only where "kept" is written before `cont` */
    S_KEEP,    /* kept is to be written, no decision was sent */
    S_KEEP_TOLD /* ... one may have been sent */,
    S_SETTLE /* settled is to be written */
};

/** Where the destination's agent is with the message that it was given. */
enum dest_at {
    D_IDLE,
    D_GOT,       /* it was read */
    D_CONT,      /* about to run is durable; `cont` */
    D_CONTED,    /* QEMU has it, and has not answered */
    D_SETTLE,    /* settled is to be written, then WORD_DONE */
    D_TELL,      /* WORD_DONE, then settled is to be written */
    D_LATE,      /* settled is to be written, and that is all */
    D_LATE_VOID, /* only where void is written after NEVER_RAN */
    D_QUIT,      /* void is durable; QEMU is to quit */
    D_SAY_DONE,  /* the answers */
    D_SAY_NEVER,
    D_SAY_REFUSED,
    D_SAY_DOUBT,
};

struct state {
    /* the source's QEMU */
    uint64_t sq : 3, mig : 2, spath : 2, sother : 2;
    uint64_t sknown : 1;     /* its identity was proved */
    uint64_t equal : 1;      /* QEMU counts as vecycle does */
    uint64_t suspend : 1;    /* the VM stays as it arrives */
    uint64_t was_paused : 1; /* somebody had paused the VM before the switch */
    uint64_t passed : 1;     /* SHUT is in its socket */
    uint64_t closed : 1;     /* its migration socket is closed */
    uint64_t went_on : 1;    /* ghost: it ran again by its own logic, or by vecycle */
    uint64_t cont3 : 1;      /* ghost: a third party continued it since `completed` */
    uint64_t seen : 1;       /* ghost: vecycle looked since */
    uint64_t unseen : 1;     /* ghost: it ended, and nobody could have looked */
    uint64_t elsewhere : 1;  /* ghost: another migration took it away */
    uint64_t booted : 1;     /* ghost: a third party started it anew at the source */
    uint64_t aside : 1;      /* ... and it runs there, behind another path */
    uint64_t in_switch : 1;  /* by its events: paused for the switch */
    uint64_t late : 1;       /* since the note more time has passed than the migration took */
    /* the source's agent and record */
    uint64_t sup : 1, sat : 4, srec : 2, counts : 1, told : 1;
    uint64_t slive : 1;   /* its session */
    uint64_t asked : 1;   /* ... has said abandon */
    uint64_t sconn : 1;   /* the QMP connection of it, unbroken */
    uint64_t sresume : 1; /* a RESUME since `completed` came there */
    /* the destination's QEMU */
    uint64_t dq : 3, dpath : 2, dother : 2;
    uint64_t dknown : 1;
    uint64_t autostart : 1; /* a third party said `cont` while it waited */
    uint64_t drun : 1;      /* ghost: it ran by vecycle */
    uint64_t stayed : 1;    /* ghost: it was found as it is to stay */
    uint64_t drun3 : 1;     /* ghost: it ran by a third party, before a record said void */
    /* the destination's agent and record */
    uint64_t dup : 1, dat : 4, drec : 2;
    uint64_t dtold : 1; /* about to run: the source decided so */
    uint64_t dlive : 1;
    uint64_t dconn : 1;          /* one QMP connection, unbroken since before the VM arrived */
    uint64_t dresume : 1;        /* ... saw RESUME */
    uint64_t dmsg : 2, dold : 1; /* what it works on, and whether nobody waits for the answer */
    uint64_t
        dstale : 1; /* ghost: of the decision that it works on, or that its record stands for */
    /* the wire */
    uint64_t link : 1, shut : 2;
    uint64_t msg : 2, stale : 1; /* ghost stale: the source's VM had run when it was sent */
    uint64_t answer : 3;
    uint64_t old : 2, old_stale : 1;
    /* the bounds */
    uint64_t faults : 2, third : 2;
};

/* ---- transitions ---- */

/** Who acts: code that runs in an agent; a person with `vecycle resolve`; QEMU or the network, as
 *  they work; a third party; a fault; what repairs. */
enum actor { BY_AGENT, BY_PERSON, BY_WORLD, BY_THIRD, BY_FAULT, BY_REPAIR };

/* The names of those of an agent and a person are the first column of tests/model/transitions. */
#define MODEL_TRANSITIONS(X)                                                                  \
    X(START, "start", WORLD)                                                                  \
    /* the source, in the session */                                                          \
    X(S_SHUT, "source.shut", AGENT)                                                           \
    X(S_NOTE, "source.note", AGENT)                                                           \
    X(S_PASS, "source.pass-shut", AGENT)                                                      \
    X(S_COMPLETED, "source.completed", AGENT)                                                 \
    X(S_FAILED, "source.failed", AGENT)                                                       \
    X(S_GIVE_UP, "source.give-up", AGENT)                                                     \
    X(S_CANCEL, "source.cancel", PERSON)                                                      \
    X(S_ORPHAN, "source.orphan", AGENT)                                                       \
    X(S_LEFT, "source.left", AGENT)                                                           \
    X(S_WORD, "source.word", AGENT)                                                           \
    X(S_CONTINUED, "source.continued", AGENT)                                                 \
    X(S_UNSETTLED, "source.unsettled", AGENT)                                                 \
    X(S_HEARD, "source.heard", AGENT)                                                         \
    X(S_TAKE_BACK, "source.take-back", AGENT)                                                 \
    X(S_ABANDON, "source.abandon", AGENT)                                                     \
    X(S_CONFIRMED, "source.confirmed", AGENT)                                                 \
    X(S_KEPT, "source.kept", AGENT)                                                           \
    X(S_SETTLED, "source.settled", AGENT)                                                     \
    /* the source, later */                                                                   \
    X(R_LOOK, "resolve.look", AGENT)                                                          \
    X(R_KEPT, "resolve.kept", AGENT)                                                          \
    X(R_WORD, "resolve.word", AGENT)                                                          \
    X(R_ABANDON, "resolve.abandon", AGENT)                                                    \
    X(R_HEARD, "resolve.heard", AGENT)                                                        \
    X(R_STANDS, "resolve.left-standing", AGENT)                                               \
    X(R_LOST, "resolve.lost", AGENT)                                                          \
    X(R_RUN_SOURCE, "resolve.run-source", PERSON)                                             \
    X(R_RUN_DEST, "resolve.run-destination", PERSON)                                          \
    X(R_FORCE_SOURCE, "resolve.force-source", PERSON)                                         \
    X(R_FORCE_DEST, "resolve.force-destination", PERSON)                                      \
    /* the destination */                                                                     \
    X(D_WATCH, "destination.watch", AGENT)                                                    \
    X(D_LOOK_BACK, "destination.look-back", AGENT)                                            \
    X(D_GET, "destination.get", AGENT)                                                        \
    X(D_GET_OLD, "destination.get-old", AGENT)                                                \
    X(D_ABOUT, "destination.about-to-run", AGENT)                                             \
    X(D_CONT, "destination.cont", AGENT)                                                      \
    X(D_CONT_FAILS, "destination.cont-fails", AGENT)                                          \
    X(D_STAYS, "destination.stays", AGENT)                                                    \
    X(D_NEVER_RAN, "destination.never-ran", AGENT)                                            \
    X(D_DOUBT, "destination.doubt", AGENT)                                                    \
    X(D_AGAIN, "destination.again", AGENT)                                                    \
    X(D_VOID, "destination.void", AGENT)                                                      \
    X(D_REFUSE, "destination.refuse", AGENT)                                                  \
    X(D_QUIT, "destination.quit", AGENT)                                                      \
    X(D_SETTLED, "destination.settled", AGENT)                                                \
    X(D_ANSWER, "destination.answer", AGENT)                                                  \
    X(D_END, "destination.end", AGENT)                                                        \
    /* the world */                                                                           \
    X(Q_SWITCH, "QEMU stops the VM for the switch", WORLD)                                    \
    X(Q_ARRIVES, "the VM has arrived; SHUT(0)", WORLD)                                        \
    X(Q_DIES, "the destination's QEMU ends: its stream did", WORLD)                           \
    X(Q_COMPLETES, "the source's QEMU completes", WORLD)                                      \
    X(Q_FAILS, "the source's QEMU fails, and goes on", WORLD)                                 \
    X(Q_LATER, "time passes since the note", WORLD)                                           \
    X(A_SOURCE, "the source's agent starts", WORLD)                                           \
    X(A_DEST, "the destination's agent starts", WORLD)                                        \
    X(T_CONT_S, "somebody: cont at the source", THIRD)                                        \
    X(T_STOP_S, "somebody: stop at the source", THIRD)                                        \
    X(T_RESET_S, "somebody: system_reset at the source", THIRD)                               \
    X(T_MIGRATE_S, "somebody: migrate at the source", THIRD)                                  \
    X(T_CANCEL_S, "somebody: migrate_cancel at the source", THIRD)                            \
    X(T_END_S, "the source's QEMU ends", THIRD)                                               \
    X(T_HIDE_S, "the source QEMU's socket moves, refuses, or is hidden", THIRD)               \
    X(T_OTHER_S, "another QEMU of that UUID waits at the source's path", THIRD)               \
    X(T_BOOT_S, "another QEMU of that UUID runs at the source's path", THIRD)                 \
    X(T_BOOT_ASIDE_S, "another QEMU of that UUID runs at the source, at another path", THIRD) \
    X(T_CONT_D, "somebody: cont at the destination", THIRD)                                   \
    X(T_STOP_D, "somebody: stop at the destination", THIRD)                                   \
    X(T_RESET_D, "somebody: system_reset at the destination", THIRD)                          \
    X(T_END_D, "the destination's QEMU ends", THIRD)                                          \
    X(T_HIDE_D, "the destination QEMU's socket moves, refuses, or is hidden", THIRD)          \
    X(T_OTHER_D, "another QEMU of that UUID waits at the destination's path", THIRD)          \
    X(F_LINK, "the link is lost", FAULT)                                                      \
    X(F_CRASH_S, "the source's agent is killed", FAULT)                                       \
    X(F_CRASH_D, "the destination's agent is killed", FAULT)                                  \
    X(F_POWER_S, "the source loses its power", FAULT)                                         \
    X(F_POWER_D, "the destination loses its power", FAULT)                                    \
    X(F_LOSE, "the message, or its answer, is lost", FAULT)                                   \
    X(F_LATE, "the answer comes too late", FAULT)                                             \
    X(F_QMP_S, "the QMP connection at the source breaks", FAULT)                              \
    X(F_QMP_D, "the QMP connection at the destination breaks", FAULT)                         \
    X(F_LEFT, "left cannot be written", FAULT)                                                \
    X(F_DIES, "the destination's QEMU dies as it continues", FAULT)                           \
    X(F_FAILS, "the source's QEMU fails by itself, and goes on", FAULT)                       \
    X(P_PATH_S, "the source's path is right again", REPAIR)                                   \
    X(P_PATH_D, "the destination's path is right again", REPAIR)

enum transition {
#define X(id, name, actor) T_##id,
    MODEL_TRANSITIONS(X)
#undef X
        N_TRANSITIONS
};

extern const char *const transition_names[N_TRANSITIONS];
extern const enum actor transition_actors[N_TRANSITIONS];

/* ---- rules that can be taken away ---- */

/* Each is a rule of the design turned into what the text says; the explorer must find what comes of
 * it. */
#define MODEL_RULES(X)                                                                             \
    X(ERRNO_IS_GONE, "source: a socket that cannot be reached means that QEMU is gone")            \
    X(ERRNO_IS_NEVER_RAN, "destination: the same, for a decision that is repeated")                \
    X(ANY_ERROR_IS_NEVER_RAN,                                                                      \
      "source: whatever the destination did not do means that the VM never ran")                   \
    X(RUN_UNGUARDED, "resolve --run at the destination while it is arriving")                      \
    X(OTHERS_ARE_OURS, "completed means this migration, whichever it was")                         \
    X(OTHERS_ARE_OURS_LEFT, "the same, once the record says left")                                 \
    X(DIAL_BEFORE_KEPT, "continued here: told before it is written")                               \
    X(NO_ABOUT_TO_RUN, "cont at the destination without a record of it")                           \
    X(ANY_PID, "the pid of whoever called listen() is QEMU's")                                     \
    X(SETTLED_NOT_KEPT,                                                                            \
      "a failure past START, or a VM that was continued here, is settled at once")                 \
    X(PRELAUNCH_IS_RUN, "prelaunch shows that the VM was continued here")                          \
    X(COUNTS_ARE_RUN, "other counts show that the VM was continued here")                          \
    X(KEPT_FORGETS_TOLD, "kept does not remember that a decision may have been sent")              \
    X(NO_QUERY_MIGRATE, "cont at the source without a look at query-migrate")                      \
    X(RESUME_IGNORED, "RESUME after completed means nothing")                                      \
    X(LATE_RESUME_IGNORED, "RESUME means nothing while the answer to the decision is waited for")  \
    X(LOOK_BEFORE_LEFT, "the look comes before left is durable, not behind it")                    \
    X(KEPT_BEFORE_CONT, "after NEVER_RAN the record says kept before cont")                        \
    X(INMIGRATE_SETTLES, "a decision for a QEMU that waits is settled")                            \
    X(ABANDON_UNSEEN, "abandon without a look at the destination's QEMU")                          \
    X(QUIT_ANYBODY, "quit without proof who that QEMU is")                                         \
    X(SUSPEND_TOLD_FIRST, "WORD_DONE before settled, where the VM stays as it is")                 \
    X(NO_WATCH, "nobody looks at the source's QEMU while left is open")                            \
    X(SHUT_BEFORE_NOTE, "the counts are noted after QEMU could complete")                          \
    X(CONNECTION_OPTIONAL, "NEVER_RAN over a connection that was made later")                      \
    X(BROKEN_IS_UNBROKEN, "the end of a QMP connection is the end of its QEMU")                    \
    X(VOID_AFTER_NEVER_RAN, "void is written behind NEVER_RAN")                                    \
    X(WATCH_IS_DECISION, "resolve --run at the destination because others had continued it there") \
    X(COUNTS_ARE_OURS, "as many records mean this migration")                                      \
    X(GONE_IS_NOWHERE, "the recorded QEMU is gone: so the VM does not run at the source")          \
    X(OTHERS_ARE_OURS_LIVE, "completed means this migration, while its session is there")

enum broken {
#define X(id, text) id,
    MODEL_RULES(X)
#undef X
        STRICT_UNSEEN, /* no rule: what nobody could see is not excused */
    N_BROKEN
};
extern const char *const rule_texts[N_BROKEN];
#define WITHOUT(rule) (1u << (rule))

struct rules {
    uint32_t broken; /* WITHOUT(...) */
    unsigned faults, third;
};

/* ---- steps ---- */

struct step {
    struct state to;
    enum transition by;
    const char *bad; /* the promise that this step breaks, or NULL */
};
#define MAX_STEPS 64
struct steps {
    const struct rules *rules;
    struct step v[MAX_STEPS];
    unsigned n;
};

/** The next step that may be taken: a copy of *from, to be changed. */
struct state *step(struct steps *out, const struct state *from, enum transition by);
/** The step that was added last breaks a promise. */
void breaks(struct steps *out, const char *promise);
static inline bool is_broken(const struct steps *out, enum broken b)
{
    return out->rules->broken & WITHOUT(b);
}

void source_steps(struct steps *out, const struct state *s);
void later_steps(struct steps *out, const struct state *s);
void dest_steps(struct steps *out, const struct state *s);
void world_steps(struct steps *out, const struct state *s);
void third_steps(struct steps *out, const struct state *s);
void fault_steps(struct steps *out, const struct state *s);

/** What the source's QEMU shows to whoever looks now. */
enum look { LOOK_DOUBT, LOOK_CONTINUED, LOOK_NOT_OURS, LOOK_OURS, LOOK_GONE };
enum look source_look(const struct steps *out, const struct state *s);
/** Whether that shows a VM that runs. */
bool source_is_seen_running(const struct state *s);
/** Sends a decision: *to is the state behind it. */
void send_message(const struct steps *out, struct state *to, enum message m);
/** The sender waits no longer. */
void give_up_waiting(struct state *to);
/** The source's session ends, with the connections that it held. */
void end_source_session(struct state *to);
/** vecycle sends `cont` to the source's QEMU. */
void source_cont(struct steps *out, struct state *to);
/** QEMU, or vecycle, lets the source's guest go on: looks whether that may be. */
void check_source_goes_on(struct steps *out, const struct state *to);
/** vecycle sends `cont` to the destination's. */
void dest_cont(struct steps *out, struct state *to);

/* ---- what is wanted of every state ---- */

/** Whether the VM runs where its newest memory is, or is not vecycle's affair. */
bool vm_is_well(const struct state *s);
/** vm_is_well(), or a person's --force makes it so. */
bool person_can_help(const struct state *s);
/** Whether nothing is left to be done for the agents. */
bool is_settled(const struct steps *rules, const struct state *s);

/* ---- the explorer ---- */

struct finding {
    const char *bad; /* NULL: nothing */
    unsigned long states, edges;
    unsigned depth; /* of the trace */
};
/** Goes through all states that the rules allow, until something is found. @verbose: prints the
 *  shortest way to what was found. */
struct finding explore(const struct rules *rules, bool liveness, bool verbose);
void print_state(const struct state *s);

#endif
