/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_API_API_H
#define VC_API_API_H

#include <stdatomic.h>

#include "base/err.h"
#include "base/json.h"
#include "base/log.h"
#include "session/session.h"
#include "vecycle/vecycle.h"

/* Private to src/api: what is behind the public header. A *job* is one session with its descriptors
 * already open, run here or handed to the agent. The keys of a TLS connection belong to one process
 * and cannot be handed over: such a job connects where it runs. */

enum vc_job_kind {
    VC_JOB_MIGRATE = 1,
    VC_JOB_PROXY = 2,
    VC_JOB_RECEIVE = 3,
    VC_JOB_ABOUT = 4, /* none: the agent tells about itself (about.c) */
};

#define VC_JOB_TEXT_BYTES 256
/** Paths, with their NUL: as much as a record of the handover holds. */
#define VC_JOB_PATH_BYTES 1024
#define VC_JOB_STREAM_BYTES (VC_JOB_PATH_BYTES + 32)

/** More is cut: an hour. */
#define VC_JOB_MAX_DEAD_PEER_MS 3600000u

struct vc_job {
    enum vc_job_kind kind;
    enum vc_conn_security security;
    char peer[VC_JOB_TEXT_BYTES]; /* how the peer is called; the address for a source */
    char name[VC_JOB_TEXT_BYTES];
    char qmp[VC_JOB_PATH_BYTES];
    char vm[VC_ID_TEXT_BYTES];
    char socket_dir[VC_JOB_PATH_BYTES]; /* receive; an agent uses its own */
    uint64_t max_bandwidth, downtime_limit_ms;
    uint32_t dead_peer_ms;        /* 0: as it is */
    struct vc_parking *parking;   /* receive; of the process that runs it; may be NULL */
    void (*opened)(void *opaque); /* receive: past the opening; of the process that runs it */
    bool suspend, postcopy, postcopy_preempt, recover, auto_converge;
    char stream_path[VC_JOB_STREAM_BYTES]; /* migrate: where listen_fd listens */
    bool must_be_known;                    /* migrate: QEMU's process, or it is refused */
    bool dial;                             /* connect to the peer, which is a tls:// address */
    bool accept_tls;                       /* conn is to be secured first */
    char tls_hostname[VC_JOB_TEXT_BYTES];  /* dial: name in the certificate; "": the address's */
    const char *tls_dir;                   /* borrowed; NULL: the default; an agent uses its own */
    uint32_t handshake_ms;                 /* 0: the default; an agent uses its own */
    const char *allow;                     /* list of peers, borrowed; NULL: no list */
    atomic_bool *peer_known; /* set once the peer's certificate is verified; borrowed, or NULL */
    struct vc_conn *conn;    /* the connection, or NULL: */
    int rfd, wfd;            /* the connection; equal for a socket */
    int qemu_fd;             /* QMP socket (migrate) or migration stream (proxy); -1: none */
    int listen_fd;           /* where QEMU may connect (proxy: once more); -1: none */
};

#define VC_JOB_INIT ((struct vc_job){.rfd = -1, .wfd = -1, .qemu_fd = -1, .listen_fd = -1})

/** Closes what is left of its descriptors and its connection. */
void vc_job_close(struct vc_job *j);
/** Runs it in this process; its descriptors are taken. */
int vc_job_run(struct vc_job *j, struct vc_store *store, const struct vc_log *log,
               struct vc_cancel *cancel, vc_progress_fn progress, void *opaque,
               struct vc_session_result *result, struct vc_err *err) VC_NODISCARD;
/** Folds the VM's checkpoint into one file where that has become worth it. */
void vc_job_fold(struct vc_store *store, const struct vc_id *vm, uint32_t min_layers,
                 const _Atomic bool *stop, const struct vc_log *log);

/* ---- settle.c, look.c: what lost connections left open, in the background of an agent ---- */

struct vc_settler;
/** Starts the threads, and waits until what this host can tell alone is settled, as long as its
 *  QEMUs answer. Borrows the store, the directory of the destination QEMUs' sockets, and the
 *  agent's options. */
int vc_settler_start(struct vc_store *store, const char *socket_dir, const struct vc_log *log,
                     const struct vecycle_agent_options *agent, struct vc_settler **out,
                     struct vc_err *err) VC_NODISCARD;
/** There may be something new to settle. Any thread. */
void vc_settler_kick(struct vc_settler *s);
/** It begins to end, and locks no VM any more; NULL is fine. */
void vc_settler_cancel(struct vc_settler *s);
/** Ends it; NULL is fine. */
void vc_settler_stop(struct vc_settler *s);

/* ---- retry.c: attempts ---- */

struct vc_retry {
    unsigned retries;   /* attempts after the first one */
    bool authenticates; /* the way there is through ssh or TLS: never knocked at again and again */
    const struct vc_log *log;
    struct vc_cancel *cancel; /* may be NULL */
    /** One attempt. *r is filled in as far as things went. */
    int (*once)(void *opaque, struct vc_session_result *r, struct vc_err *err);
    void *opaque;
    unsigned attempts; /* made, or under way */
};
/** Makes attempts until one succeeds, fails for good, or there were enough. 0, or the last error.
 */
int vc_retry_run(struct vc_retry *t, struct vc_session_result *r, struct vc_err *err) VC_NODISCARD;
/** Whether another attempt may go better: the VM runs on here, and the cause could pass. */
bool vc_retry_may_pass(const struct vc_err *err, const struct vc_session_result *r);

/** The pause before the next look whether the other host is ready, behind one of that length. */
uint32_t vc_retry_step_ms(const struct vc_retry *t, uint32_t last);

/* ---- probe.c ---- */

/** Whether a vecycle answers at the address, as far as this process can tell: what is wrong with it
 *  is said before anything begins. With an agent that is to connect to a tls:// address only
 *  whether the port is open. @d, @tls: as for the session. */
int vc_probe(const char *address, const struct vc_dial_options *d, const struct vecycle_tls *tls,
             const char *control, uint32_t dead_peer_ms, const struct vecycle_cancel *cancel,
             struct vc_err *err) VC_NODISCARD;

/* ---- allow.c: which peers may reach what ---- */

/** Whether that file is a list of peers. VC_E_REFUSED. */
int vc_allow_check(const char *path, struct vc_err *err) VC_NODISCARD;
/** Whether a line of it is about a peer of that name: a vc_is_listed_fn, its opaque is the path.
 *  VC_E_REFUSED: it cannot be read. */
int vc_allow_lists(const void *path, const char *name, bool *listed,
                   struct vc_err *err) VC_NODISCARD;
/** A vc_may_reach_fn; its opaque is the path. */
int vc_allow_may_reach(void *path, const struct vc_conn *peer, const struct vc_reach *what,
                       struct vc_err *err);

/* ---- housekeeping.c: forgetting ---- */

/** Forgets what the store's limits demand, and says so. Trouble is logged. */
void vc_forget(struct vc_store *store, const struct vc_log *log, const _Atomic bool *stop);

/** A thread that does it at once, when it is told to, and once an hour. */
struct vc_keeper;
int vc_keeper_start(struct vc_store *store, const struct vc_log *log, struct vc_keeper **out,
                    struct vc_err *err) VC_NODISCARD;
/** Any thread. */
void vc_keeper_poke(struct vc_keeper *k);
/** Ends it, in the middle of its work too. NULL is fine. */
void vc_keeper_stop(struct vc_keeper *k);

/* ---- the control socket: one line of JSON each way, then lines from the agent ---- */

#define VC_CONTROL_MAX_LINE_BYTES 32768 /* three long paths, every byte escaped */

struct json_object *vc_job_to_json(const struct vc_job *j);
/** VC_E_PROTOCOL. */
int vc_job_from_json(struct json_object *o, struct vc_job *j, struct vc_err *err) VC_NODISCARD;
struct json_object *vc_result_to_json(const struct vc_session_result *r);
void vc_result_from_json(struct json_object *o, struct vc_session_result *r);
struct json_object *vc_error_to_json(const struct vc_err *e);
void vc_error_from_json(struct json_object *o, struct vc_err *e);

/** Hands the job to the agent behind that socket and waits for its end. VC_NOT_FOUND: there is no
 *  agent (nothing was taken). Else the job's descriptors were taken. */
int vc_agent_call(const char *control, struct vc_job *j, const struct vc_log *log,
                  struct vc_cancel *cancel, vc_progress_fn progress, void *opaque,
                  struct vc_session_result *result, struct vc_err *err) VC_NODISCARD;

/* ---- about.c: the store that is meant, and who may use it ---- */

/** What an agent tells of its store. */
struct json_object *vc_about_to_json(const struct vc_store *store);
/** As vc_public_store(), for the commands on the store: without access to it, VC_E_REFUSED. */
int vc_public_open_store(const struct vecycle_context *c, bool create, struct vc_store **out,
                         struct vc_err *err) VC_NODISCARD;

/* ---- between the public and the private types ---- */

void vc_public_result(const struct vc_session_result *r, struct vecycle_result *out);
/** Copies the error if there is one (code < 0), and returns the code. @out may be NULL. */
int vc_public_error(int rc, const struct vc_err *e, struct vecycle_error *out);
struct vc_log vc_public_log(const struct vecycle_context *c);
/** Says so if the connection is in the clear. */
void vc_public_warn_plaintext(const struct vc_log *log, const struct vc_conn *conn);
/** For dialling; @cancel may be NULL, and has to outlive it. */
struct vc_tls_options vc_public_tls(const struct vecycle_tls *t, const struct vc_cancel *cancel);
/** For dialling: where messages go, what gives it up, what the other end has to say first. Both
 *  have to outlive it; @cancel may be NULL. */
struct vc_dial_options vc_public_dial(const struct vc_log *log,
                                      const struct vecycle_cancel *cancel);
/** The address in full: "HOST" is short for "ssh://HOST", a relative path becomes absolute.
 * VC_E_USAGE.
 */
int vc_public_address(const char *to, char out[VC_JOB_TEXT_BYTES], struct vc_err *err) VC_NODISCARD;
/** A path that other processes, and later ones, find as well: the one that was given, from the
 * root. VC_E_USAGE: too long. @what: for messages. */
int vc_public_path(const char *path, const char *what, char out[VC_JOB_PATH_BYTES],
                   struct vc_err *err) VC_NODISCARD;
/** The control socket to use, or NULL for none. */
const char *vc_public_control(const struct vecycle_context *c);
int vc_public_store(const struct vecycle_context *c, bool create, struct vc_store **out,
                    struct vc_err *err) VC_NODISCARD;
/** The store, and the VM's id, for a command about one VM. VC_E_NO_SUCH_VM: no store. */
int vc_public_vm(const struct vecycle_context *c, const char *vm, struct vc_store **store,
                 struct vc_id *id, struct vc_err *err) VC_NODISCARD;
/** "none", "leaving", ...: how a vc_handover_state is called. */
const char *vc_public_handover(uint8_t state);

struct vecycle_cancel {
    struct vc_cancel c;
};

#endif
