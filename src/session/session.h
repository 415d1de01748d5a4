/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SESSION_SESSION_H
#define VC_SESSION_SESSION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "net/net.h"
#include "store/store.h"
#include "wire/wire.h"

/* One migration, seen from one host: who may do what when, and every abort (docs/internals/
 * phases.md). Each function runs a session from beginning to end in the calling thread.
 *
 * Thread rule: a call uses its store by itself; several sessions may use one store at a time. */

/** A flag with a descriptor, to end a session from elsewhere. */
struct vc_cancel {
    int fd; /* eventfd; readable once cancelled */
};
int vc_cancel_init(struct vc_cancel *c, struct vc_err *err) VC_NODISCARD;
/** Any thread, also a signal handler. */
void vc_cancel_now(struct vc_cancel *c);
bool vc_cancel_is_set(const struct vc_cancel *c);
void vc_cancel_fini(struct vc_cancel *c);

enum vc_session_phase {
    VC_PHASE_CONNECT = 0, /* QEMU and the other host */
    VC_PHASE_FIRST_PASS = 1,
    VC_PHASE_ROUNDS = 2, /* pages that the guest dirtied */
    VC_PHASE_SWITCH = 3, /* the guest is paused */
    VC_PHASE_COMMIT = 4, /* it runs at the destination; checkpoints are completed */
    VC_PHASE_DONE = 5,
};

/** What happened, so far or in the end. */
struct vc_session_result {
    uint32_t phase; /* vc_session_phase */
    uint32_t base;  /* vc_wire_base: what could be reused */
    struct vc_id vm, generation;
    uint64_t total_ms, downtime_ms, rounds;
    uint64_t ram_bytes, remaining_bytes;
    uint64_t pages_same, pages_moved, pages_zero, pages_data, pages_unknown;
    uint64_t stream_bytes; /* what QEMU sent: what would have crossed the wire without us */
    uint64_t wire_sent_bytes, wire_received_bytes;
    uint64_t repaired_pages, resent_batches;
    double wire_rate; /* what was sent lately, bytes/s */
    bool committed;   /* this host keeps a checkpoint */
    bool confirmed;   /* and the other host has the same */
    bool passthrough; /* the stream was not understood: reuse was off */
    bool rekeyed;     /* at the destination: that was all that was asked for */
    char reason[160]; /* why */
    char state[32];   /* the VM's run state where it is now, as QEMU calls it; "": not known */
    char peer[128];
};

typedef void (*vc_progress_fn)(void *opaque, const struct vc_session_result *now);

/** Whether this host's list of peers names a host of that name. VC_E_REFUSED: nobody can tell. */
typedef int (*vc_is_listed_fn)(const void *opaque, const char *name, bool *listed,
                               struct vc_err *err);

struct vc_source_session {
    struct vc_store *store; /* NULL: neither reuse nor checkpoint */
    const struct vc_log *log;
    struct vc_cancel *cancel; /* may be NULL */
    uint32_t dead_peer_ms;    /* silence after which the peer is dead; 0: 10 s */
    vc_progress_fn progress;  /* may be NULL; a few times a second */
    void *opaque;

    const char *to;            /* address of the destination's vecycle, for the handover record */
    const char *tls_hostname;  /* name that its certificate had to have, likewise; NULL: `to`'s */
    struct vc_conn *conn;      /* to it; taken */
    const char *name;          /* socket name there; "" = the VM's UUID */
    vc_is_listed_fn is_listed; /* asked of who is called; NULL: there is no list */
    const void *policy;        /* for is_listed */

    /* Driven: QEMU's QMP socket. */
    int qmp_fd;                 /* connected; taken; -1: proxy */
    const char *qmp_name;       /* for messages and the handover record */
    bool must_be_known;         /* QEMU's process, or the migration is refused */
    uint64_t max_bandwidth;     /* bytes/s; 0: unlimited */
    uint64_t downtime_limit_ms; /* 0: as QEMU has it */
    bool suspend;               /* leave it paused at the destination */
    bool postcopy;              /* switch to postcopy after the first pass */
    bool postcopy_preempt;      /* with a connection of their own for pages asked for */
    const char *stream_path;    /* that, and recover: where listen_fd listens */
    bool recover;               /* the rest of an interrupted postcopy */
    bool auto_converge;         /* QEMU's capability of that name */

    /* Proxy: who the VM is, and its migration stream. */
    struct vc_id vm;
    int stream_fd; /* taken; -1: driven */
    int listen_fd; /* where QEMU may open a second connection (driven: both), listening;
                      taken; 0, -1: nowhere */
};

/** Runs a migration from the source's side. *result is filled in as far as things went. */
int vc_session_source(const struct vc_source_session *o, struct vc_session_result *result,
                      struct vc_err *err) VC_NODISCARD;

struct vc_parking;
struct vc_qmp;

/** What a peer wants to reach at the destination. */
struct vc_reach {
    const char *name; /* of a socket; NULL: nothing yet, but to talk to us at all */
    struct vc_id vm;
    bool attested; /* the QEMU behind that socket is asked whether it is that VM */
};
/** 0, or VC_E_REFUSED and other errors. @peer has the names (vc_conn_peer_name()). */
typedef int (*vc_may_reach_fn)(void *opaque, const struct vc_conn *peer,
                               const struct vc_reach *what, struct vc_err *err);

struct vc_dest_session {
    struct vc_store *store; /* NULL: neither reuse nor checkpoint */
    const struct vc_log *log;
    struct vc_cancel *cancel;     /* may be NULL */
    uint32_t dead_peer_ms;        /* silence after which the peer is dead; 0: 10 s */
    struct vc_conn *conn;         /* taken */
    struct vc_parking *parking;   /* may be NULL; borrowed */
    const char *socket_dir;       /* QEMU's sockets are looked for here, and nowhere else */
    vc_may_reach_fn may_reach;    /* asked before what the peer wants is done; NULL: it may */
    void *policy;                 /* for may_reach */
    void (*opened)(void *opaque); /* the peer is past the opening; may be NULL */
    void *opaque;
};

/** Runs a migration (or the repetition of a word) from the destination's side. */
int vc_session_dest(const struct vc_dest_session *o, struct vc_session_result *result,
                    struct vc_err *err) VC_NODISCARD;

/* ---- settle.c, decide.c: what is left of a migration whose end got lost ---- */

#define VC_WHY_BYTES 256

struct vc_settle_options {
    struct vc_store *store;
    const struct vc_id *vm;
    const char *socket_dir;   /* of the destination's QEMUs; NULL: leave them */
    const char *qmp_path;     /* source: QEMU's QMP socket, if not where it was; or NULL */
    bool at_once;             /* to look back, to put back: a VM that is in use is not waited for */
    uint32_t dead_peer_ms;    /* 0: 10 s */
    uint32_t answer_ms;       /* for a word that is repeated; 0: 3 times the dead-peer time */
    struct vc_cancel *cancel; /* may be NULL */
    const struct vc_log *log;
};

/** Reads the record of the VM's handover into *h, after it has been brought up to date, durably,
 * with what this host's own QEMU shows (docs/internals/handover.md): LEAVING becomes LEFT if QEMU
 * completed this migration; LEAVING and LEFT become KEPT if the VM is this host's; ARRIVING and
 * ABOUT_TO_RUN become SETTLED if it runs here. In doubt it stays as it is. @why: what is known of
 * QEMU, or what keeps it from being known; "" if there was no need to look; may be NULL. VC_E_BUSY:
 * the VM is being migrated. */
int vc_session_look_back(const struct vc_settle_options *o, struct vc_handover *h,
                         char why[VC_WHY_BYTES], struct vc_err *err) VC_NODISCARD;
/** Whether the VM of a settled record has left by a postcopy that was interrupted, so that its QEMU
 * here has memory that nobody else has; or has come by one, and waits for such memory.
 * VC_E_POSTCOPY: so it is. 0: no, or it cannot be told. */
int vc_session_check_rest(const struct vc_settle_options *o, const struct vc_handover *h,
                          struct vc_err *err) VC_NODISCARD;

/** Tells the destination what was decided, over a new connection (taken), made for the record of
 * that @session: the source side of mode 3. Locks the VM once the destination has said hello, for
 * no longer than its answer may take; looks at this host's QEMU first, as above. A record that is
 * LEFT: the decision is repeated, and if the destination says that the VM never ran there, it is
 * continued here. KEPT: *abandon*. 0: the record is settled. VC_E_UNSETTLED: in doubt;
 * VC_E_NO_SUCH_VM: that record is not there any more; other errors: another time, perhaps. Without
 * an answer the record stays as it was. */
int vc_session_repeat_word(const struct vc_settle_options *o, const struct vc_id *session,
                           struct vc_conn *conn, struct vc_err *err) VC_NODISCARD;

/** Asks the destination of the record what is known there, over a new connection (taken); nothing
 *  changes. */
int vc_session_ask(const struct vc_settle_options *o, struct vc_conn *conn, char text[VC_WHY_BYTES],
                   struct vc_err *err) VC_NODISCARD;

enum vc_decision {
    VC_DECIDE_RUN,     /* the VM is continued on this host */
    VC_DECIDE_DISCARD, /* this host's VM does not count */
};
/** A person has decided. RUN is refused (VC_E_UNSETTLED) where the VM may run on the other host by
 *  what is known here, unless @force; never for a destination's record that is VOID. */
int vc_session_decide(const struct vc_settle_options *o, enum vc_decision what, bool force,
                      struct vc_err *err) VC_NODISCARD;

/* ---- rekey.c: another key for a checkpoint ---- */

typedef void (*vc_rekey_progress_fn)(void *opaque, uint64_t done, uint64_t total);

struct vc_rekey_session {
    struct vc_store *store;
    const struct vc_log *log;
    struct vc_cancel *cancel;      /* may be NULL */
    uint32_t dead_peer_ms;         /* 0: 10 s */
    vc_rekey_progress_fn progress; /* pages; may be NULL; about once a second */
    void *opaque;
    struct vc_id vm;
    struct vc_conn *conn; /* to the host that has the same checkpoint; taken; NULL: here alone */
    bool listed;          /* that host is on this host's list of peers */
};

struct vc_rekey_result {
    uint64_t pages, dropped; /* digested anew; those that were not as they should be */
    bool confirmed;          /* the other host has the same, under the same new key */
    bool emptied;            /* there was nothing that could be digested: it is gone */
    char peer[128];
};

/** Gives the VM's newest complete checkpoint a new key, and the other host's as well. It stays as
 *  it is where that fails; where the very end of it fails, one of the two hosts may have the new
 *  key alone, which costs reuse. VC_E_NO_SUCH_VM: it is not here, or the other host has another
 *  one; VC_E_BUSY; VC_E_UNSETTLED; VC_E_CANCELLED; VC_E_REFUSED: not over this connection;
 *  VC_E_FAILED: among others, the other host reads for longer than its pages take on any disk. A
 *  migration of the VM that comes while it switches is refused: for 24 times dead_peer_ms and 5 s
 *  at most, whatever the other host does. */
int vc_session_rekey(const struct vc_rekey_session *o, struct vc_rekey_result *result,
                     struct vc_err *err) VC_NODISCARD;
/** How the store's list of holders names that peer. */
void vc_holder_describe(struct vc_holder *who, const struct vc_id *lineage,
                        const struct vc_conn *peer, bool listed);

/* ---- leftover.c: what a session that was killed has left changed in QEMU ---- */

/** Puts the settings of QEMU back that the VM's record lists. 0: no more can be done now. VC_AGAIN:
 *  QEMU could not take all of them yet; another time. VC_E_BUSY: the VM is in use; other
 *  errors: its QEMU cannot be asked. */
int vc_session_put_back(const struct vc_settle_options *o, struct vc_err *err) VC_NODISCARD;

/* ---- target.c: sockets of the destination QEMU ---- */

/** Connects to NAME + suffix in the directory, without following links out of it. Returns a
 *  descriptor; VC_E_NO_SUCH_VM (illegal name), VC_E_DEST_QEMU (no such socket, nobody listens). */
int vc_target_connect(const char *dir, const char *name, const char *suffix,
                      struct vc_err *err) VC_NODISCARD;
/** Whether the QEMU of that connection is the one of a destination's record. VC_E_UNSETTLED: it is
 *  another one; VC_E_QMP. */
int vc_target_check(struct vc_qmp *q, const struct vc_id *vm, const struct vc_handover *h,
                    struct vc_err *err) VC_NODISCARD;
/** Connects to the QEMU of a destination's record. VC_E_UNSETTLED, whatever stands in the way: it
 *  cannot be reached, or is another one. *out is the caller's. */
int vc_target_qemu(const char *dir, const struct vc_id *vm, const struct vc_handover *h,
                   struct vc_qmp **out, struct vc_err *err) VC_NODISCARD;
/** Whether there is a socket of that name. 0 or as above. */
int vc_target_exists(const char *dir, const char *name, const char *suffix,
                     struct vc_err *err) VC_NODISCARD;

#endif
