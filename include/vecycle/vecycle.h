/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VECYCLE_H
#define VECYCLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* libvecycle: live migration of QEMU VMs that come back.
 *
 * Every call blocks until its work is done, in the calling thread (it starts threads of its own and
 * joins them). The library prints nothing, exits never, installs no signal handlers; an embedding
 * program ignores SIGPIPE. All strings are UTF-8 and NUL-terminated; options left zero have their
 * default. Calls may run at the same time in several threads.
 *
 * A call returns 0 or a negative code, and then fills *err. */

#define VECYCLE_API __attribute__((visibility("default")))

/** Error codes, stable; the exit status of the command line is the code without its sign. */
enum {
    VECYCLE_E_FAILED = -1,          /* anything without a code of its own */
    VECYCLE_E_USAGE = -2,           /* wrong arguments */
    VECYCLE_E_NOMEM = -3,           /* out of memory */
    VECYCLE_E_QMP_CONNECT = -10,    /* no QMP socket there, or nobody listens on it */
    VECYCLE_E_QMP = -11,            /* it does not speak QMP, or a command failed */
    VECYCLE_E_QEMU_STATE = -12,     /* this QEMU cannot migrate now */
    VECYCLE_E_UNREACHABLE = -20,    /* the other host cannot be reached */
    VECYCLE_E_VERSION = -21,        /* no protocol version in common */
    VECYCLE_E_PROTOCOL = -22,       /* the peer sent something illegal */
    VECYCLE_E_PEER_LOST = -23,      /* the connection broke or fell silent */
    VECYCLE_E_REFUSED = -24,        /* refused by policy */
    VECYCLE_E_NO_SUCH_VM = -30,     /* no VM of that name, or the name is illegal */
    VECYCLE_E_DEST_QEMU = -31,      /* the destination QEMU does not listen, or failed */
    VECYCLE_E_STORE = -40,          /* the store cannot be opened, read or written */
    VECYCLE_E_STORE_FULL = -41,     /* no room, or over the size limit */
    VECYCLE_E_CORRUPT = -42,        /* something in the store is damaged */
    VECYCLE_E_BUSY = -43,           /* the VM is in use by another session */
    VECYCLE_E_NOT_QEMU = -50,       /* the stream is not QEMU's */
    VECYCLE_E_NO_RETURN_PATH = -51, /* the stream has no return path */
    VECYCLE_E_MIGRATION = -52,      /* QEMU reports that the migration failed */
    VECYCLE_E_SEAL = -53,           /* a batch failed its seal twice */
    VECYCLE_E_CANCELLED = -60,      /* cancelled */
    VECYCLE_E_UNSETTLED = -61,      /* the last word was lost: vecycle_resolve() */
    VECYCLE_E_POSTCOPY = -62        /* interrupted after the switch to postcopy: `recover` */
};

/** Filled on failure only. */
struct vecycle_error {
    int code;          /* VECYCLE_E_* */
    char message[240]; /* one phrase: the thing and the cause */
    char hint[160];    /* what to do, or "" */
};

/** "0.1.0". Static. */
VECYCLE_API const char *vecycle_version(void);
/** The stable name of a code ("qmp-connect", ...). Static, never NULL. */
VECYCLE_API const char *vecycle_error_name(int code);

/** How important a message is. */
enum vecycle_log_level {
    VECYCLE_LOG_ERROR = 0,
    VECYCLE_LOG_WARNING = 1,
    VECYCLE_LOG_INFO = 2,
    VECYCLE_LOG_DEBUG = 3
};

/** Turns a limit off. */
#define VECYCLE_UNLIMITED UINT64_MAX

/** What the store may take: the least recently used VMs are forgotten. 0 is the default. */
struct vecycle_limits {
    uint64_t quota_bytes;      /* all VMs; three quarters of what they take and what is free */
    uint64_t peer_quota_bytes; /* VMs last migrated from or to one peer; no limit */
    uint64_t reserve_bytes;    /* left free on the file system; 5 % of it, 1 GiB at most */
    uint64_t max_age_s;        /* 14 days */
};

/** What every call needs. */
struct vecycle_context {
    const char *store;          /* directory; NULL: vecycle_default_store(). One that is named has
                                   to work; without the default one a migration goes on */
    const char *control;        /* the agent's control socket; NULL: vecycle_default_control();
                                   "none": never use an agent */
    uint64_t store_limit_bytes; /* RAM above which no checkpoint is kept; 0: 4 TiB */
    /** Messages for a person; NULL: none. Any thread; `text` is one line, valid during the call. */
    void (*log)(void *opaque, enum vecycle_log_level level, const char *text);
    void *opaque;
    struct vecycle_limits limits; /* of this host's store; an agent has its own */
};

/** /var/lib/vecycle for root, else $XDG_DATA_HOME/vecycle (~/.local/share/vecycle). Static. */
VECYCLE_API const char *vecycle_default_store(void);
/** /run/vecycle/control. Static. */
VECYCLE_API const char *vecycle_default_control(void);
/** Directory of the destination QEMUs' sockets: /run/vecycle. Static. */
VECYCLE_API const char *vecycle_default_socket_dir(void);

/** Room for a path. */
#define VECYCLE_PATH_BYTES 4096
/** For the functions on the store: fills in what *c leaves open, from the agent at its control
 *  socket. The store, in @path: the agent's if there is one, else vecycle_default_store(); and if
 * it is the agent's, its limits. VECYCLE_E_REFUSED: an agent has a store that this user has no
 * access to, and there is nothing in one of its own. */
VECYCLE_API int vecycle_use_agent_store(struct vecycle_context *c, char path[VECYCLE_PATH_BYTES],
                                        struct vecycle_error *err);

/* ---- cancelling ---- */

struct vecycle_cancel;
/** NULL: no descriptor to be had. */
VECYCLE_API struct vecycle_cancel *vecycle_cancel_new(void);
/** Ends the calls that were given it. Any thread, also a signal handler; more than once is fine. */
VECYCLE_API void vecycle_cancel_now(struct vecycle_cancel *c);
/** After all calls that were given it have returned; NULL is fine. */
VECYCLE_API void vecycle_cancel_free(struct vecycle_cancel *c);

/* ---- TLS ---- */

/** For tls:// addresses. */
struct vecycle_tls {
    const char *dir;       /* certificates and keys; NULL: vecycle_default_tls_dir() */
    const char *hostname;  /* name in the server's certificate; NULL: the host of the address */
    uint64_t handshake_ms; /* time for a handshake; 0: 10 s */
};

/** /etc/vecycle/tls. Static. */
VECYCLE_API const char *vecycle_default_tls_dir(void);

struct vecycle_tls_init_options {
    const char *dir;          /* where the authority is or is to be; made if missing */
    const char *const *hosts; /* "NAME[,NAME-OR-ADDRESS...]"; the first names its directory */
    size_t n_hosts;
    uint64_t days; /* that hosts' certificates are valid; 0: 730 */
    bool new_ca;   /* a new authority in place of the one that is there */
    bool renew;    /* new certificates for hosts that have some */
};

/** Makes a certificate authority in a directory, unless there is one, and for each host a directory
 *  in it with the five files that go into the host's directory of certificates. *made_ca (may be
 *  NULL): whether there is a new authority. VECYCLE_E_REFUSED: a host's directory is there, or
 *  another user than the caller and root can change the authority. */
VECYCLE_API int vecycle_tls_init(const struct vecycle_tls_init_options *o, bool *made_ca,
                                 struct vecycle_error *err);

/* ---- migrating ---- */

/** Phases in order. */
enum vecycle_phase {
    VECYCLE_PHASE_CONNECT = 0,
    VECYCLE_PHASE_FIRST_PASS = 1,
    VECYCLE_PHASE_ROUNDS = 2,
    VECYCLE_PHASE_SWITCH = 3,
    VECYCLE_PHASE_COMMIT = 4,
    VECYCLE_PHASE_DONE = 5
};
/** "first pass", ... Static. */
VECYCLE_API const char *vecycle_phase_name(enum vecycle_phase phase);

/** A migration so far, or in the end. */
struct vecycle_result {
    char vm[37];    /* UUID */
    char peer[128]; /* the other host */
    enum vecycle_phase phase;
    uint64_t base;        /* what was reused: 0 nothing, 1 what both hosts hold, 2 what the
                             destination announced */
    uint64_t attempts;    /* made, or under way; the rest is about the last one */
    uint64_t total_ms;    /* until the VM runs at the destination */
    uint64_t downtime_ms; /* from STOP at the source to the destination's confirmation */
    uint64_t rounds;      /* passes over dirty memory */
    uint64_t ram_bytes, remaining_bytes;
    uint64_t pages_same, pages_moved, pages_zero, pages_data, pages_unknown;
    uint64_t stream_bytes; /* what QEMU sent: what plain QEMU would have put on the wire */
    uint64_t wire_sent_bytes, wire_received_bytes;
    uint64_t repaired_pages, resent_batches;
    uint64_t wire_bytes_per_s; /* sent: lately; in the end, on the whole */
    bool committed;            /* this host keeps a checkpoint */
    bool confirmed;            /* and the other host has the same */
    bool passthrough;          /* reuse was off, see reason */
    char reason[160];
    char state[32]; /* the VM's run state where it has arrived, as QEMU calls it; "": not known */
};

/** Tells how things go, a few times a second, in the calling thread; `now` is valid during the
 * call. */
typedef void (*vecycle_progress)(void *opaque, const struct vecycle_result *now);

struct vecycle_migrate_options {
    const char *qmp;            /* path of the running QEMU's QMP socket */
    const char *to;             /* HOST or ssh://[USER@]HOST[:PORT], tls://HOST[:PORT],
                                   unix:PATH, tcp://HOST[:PORT] */
    const char *name;           /* the destination's socket NAME.qmp; NULL: the VM's UUID */
    bool insecure;              /* plain TCP is allowed */
    bool suspend;               /* leave the VM paused at the destination */
    bool postcopy;              /* switch to postcopy after the first pass */
    bool postcopy_preempt;      /* that, with a connection for the pages that it waits for */
    bool recover;               /* go on with a postcopy that was interrupted */
    bool auto_converge;         /* slow the guest down where it dirties too much */
    const char *ssh;            /* ssh program and its first arguments; NULL: "ssh" */
    const char *remote;         /* command at the other end of ssh; NULL: "vecycle recv" */
    uint64_t max_bandwidth;     /* bytes/s; 0: unlimited */
    uint64_t downtime_limit_ms; /* 0: as QEMU has it */
    uint32_t dead_peer_ms;      /* silence after which the peer is dead; 0: 10 s, or the agent's */
    unsigned retries; /* attempts after one that failed for a reason that could pass; 0: none */
    struct vecycle_tls tls; /* an agent that does the work uses its own, but for `hostname` */
    struct vecycle_cancel *cancel; /* NULL: none */
    vecycle_progress progress;     /* NULL: none */
    void *opaque;
};

/** Migrates a running VM, driving QEMU through QMP. On success it runs at the destination, and this
 *  QEMU is paused (`postmigrate`). On failure it runs on here, unless the code is
 *  VECYCLE_E_UNSETTLED or VECYCLE_E_POSTCOPY. *result (may be NULL) is filled in either case. */
VECYCLE_API int vecycle_migrate(const struct vecycle_context *c,
                                const struct vecycle_migrate_options *o,
                                struct vecycle_result *result, struct vecycle_error *err);

struct vecycle_proxy_options {
    const char *listen; /* path of the Unix socket that QEMU migrates to */
    const char *vm;     /* UUID */
    const char *to;     /* as above; the destination's socket is NAME.sock */
    const char *name;
    bool insecure;
    const char *ssh, *remote;
    uint64_t downtime_limit_ms; /* what the migration was started with; 0: 300 */
    uint32_t dead_peer_ms;      /* as above */
    uint32_t wait_ms;           /* for QEMU to connect; 0: for ever */
    struct vecycle_tls tls;
    struct vecycle_cancel *cancel;
    vecycle_progress progress;
    void *opaque;
    /** The socket is there; NULL: not needed. */
    void (*listening)(void *opaque);
};

/** Waits for one migration stream and carries it; whoever drives QEMU looks after the rest. */
VECYCLE_API int vecycle_proxy(const struct vecycle_context *c,
                              const struct vecycle_proxy_options *o, struct vecycle_result *result,
                              struct vecycle_error *err);

struct vecycle_receive_options {
    int rfd, wfd;           /* the connection, for example 0 and 1; not closed */
    bool encrypted;         /* it came through ssh or the like; false: local */
    const char *peer;       /* how the peer is called in messages; NULL: "peer" */
    const char *socket_dir; /* NULL: vecycle_default_socket_dir() */
    uint32_t dead_peer_ms;  /* as above */
    struct vecycle_cancel *cancel;
};

/** The destination of one migration, over descriptors. */
VECYCLE_API int vecycle_receive(const struct vecycle_context *c,
                                const struct vecycle_receive_options *o,
                                struct vecycle_result *result, struct vecycle_error *err);

/* ---- the agent ---- */

/** What a running agent may do, apart from what its user may. */
enum vecycle_sandbox {
    VECYCLE_SANDBOX_OFF = 0,
    VECYCLE_SANDBOX_ON = 1,    /* no new privileges; system calls that it does not need fail */
    VECYCLE_SANDBOX_STRICT = 2 /* ... and end the process, for tests */
};

struct vecycle_agent_options {
    const char *const *listen; /* addresses unix:PATH, tls://HOST[:PORT] or tcp://HOST[:PORT] */
    size_t n_listen;
    bool insecure;             /* plain TCP is allowed */
    const char *socket_dir;    /* NULL: vecycle_default_socket_dir(); made if missing */
    const char *control_group; /* group that may use the control socket; NULL: only the owner */
    uint32_t dead_peer_ms;     /* silence after which a peer is dead; 0: 10 s */
    struct vecycle_tls tls;    /* `hostname` is not used */
    const char *allow;         /* list of the TLS peers and what they may reach, vecycle-peers(5);
                                  NULL: every certificate of the authority may reach every VM */
    const char *user; /* root becomes this user once it listens; NULL: it stays who it is */
    /** Unlike the above it holds for the calling thread, and those that it starts, only. */
    enum vecycle_sandbox sandbox;
    struct vecycle_cancel *cancel;
    /** It accepts sessions; NULL: not needed. */
    void (*ready)(void *opaque);
    void *opaque;
};

/** Runs the host agent until it is cancelled. It changes the process for good: no core dumps, no
 *  debugger, another user, no new privileges. Sessions then still running are ended; the VMs of the
 *  migrations run on where they ran. */
VECYCLE_API int vecycle_agent_run(const struct vecycle_context *c,
                                  const struct vecycle_agent_options *o, struct vecycle_error *err);

/* ---- the store ---- */

/** One VM in the store, and its newest checkpoint: a complete one if there is one. */
struct vecycle_vm {
    char vm[37];
    uint64_t n_generations; /* complete ones */
    bool partial;           /* there is no complete one; what follows is of the partial one */
    char generation[37];    /* "" if there is neither */
    char root[65];          /* of its index, hex */
    uint64_t created_unix;
    uint64_t ram_bytes, disk_bytes;
    uint64_t zero_pages, held_pages, unknown_pages;
    uint64_t layers;                 /* files: an image and deltas */
    uint64_t same_pages, data_pages; /* of the migration that made it: reused, newly written */
    char peer[128];                  /* the other host of that migration */
    char role[12];                   /* "source" or "destination" */
    bool confirmed;                  /* the other host has the same */
    bool has_key;                    /* there is a key, whatever is kept under it */
    bool exposed;                    /* its key or pages crossed a network in the clear */
    /* Of a migration that did not finish: what had arrived by then, for the next attempt. */
    char partial_generation[37]; /* "" if there is none */
    uint64_t partial_unix, partial_held_pages, partial_disk_bytes;
    char policy[12];   /* "normal", "pinned", "never"; "?" if it is damaged */
    char handover[16]; /* "none", "leaving", "left", "arriving", "settled", "void", "kept",
                          "about-to-run" */
    char handover_peer[256];
    char handover_socket[1024];
    uint64_t handover_unix;
    bool damaged; /* it cannot be used; error says why */
    char error[240];
};

/** All VMs; *vms is the caller's to free(). */
VECYCLE_API int vecycle_store_list(const struct vecycle_context *c, struct vecycle_vm **vms,
                                   size_t *n, struct vecycle_error *err);
/** One VM, by UUID. VECYCLE_E_NO_SUCH_VM. */
VECYCLE_API int vecycle_store_show(const struct vecycle_context *c, const char *vm,
                                   struct vecycle_vm *out, struct vecycle_error *err);

struct vecycle_verified {
    uint64_t pages, bad_pages;              /* of the newest complete checkpoint */
    uint64_t partial_pages, unusable_pages; /* of the partial one */
};
/** Hashes every page of a VM's checkpoints again. VECYCLE_E_CORRUPT if a page of a complete one or
 *  an index is damaged (*out tells how many). Pages of a partial one whose digest differs are not
 *  usable and no damage: a crash may leave such. @progress may be NULL. */
VECYCLE_API int vecycle_store_verify(const struct vecycle_context *c, const char *vm,
                                     void (*progress)(void *opaque, uint64_t done, uint64_t total),
                                     void *opaque, struct vecycle_verified *out,
                                     struct vecycle_error *err);
/** Deletes a VM's checkpoints and its record. VECYCLE_E_BUSY, VECYCLE_E_UNSETTLED (a handover is
 *  open; @force deletes all the same). */
VECYCLE_API int vecycle_store_remove(const struct vecycle_context *c, const char *vm, bool force,
                                     struct vecycle_error *err);

enum vecycle_policy {
    VECYCLE_POLICY_NORMAL = 0, /* forgotten as the limits demand */
    VECYCLE_POLICY_PINNED = 1, /* kept whatever they say */
    VECYCLE_POLICY_NEVER = 2   /* no checkpoint is kept on this host */
};
/** "normal", ... Static. */
VECYCLE_API const char *vecycle_policy_name(enum vecycle_policy policy);
/** A VM's policy on this host; VECYCLE_POLICY_NORMAL for one that was never here. */
VECYCLE_API int vecycle_store_get_policy(const struct vecycle_context *c, const char *vm,
                                         enum vecycle_policy *out, struct vecycle_error *err);
/** Sets it, durably, also before the VM first comes. With NEVER a checkpoint that is there is
 *  deleted; if a session is using it, by the next vecycle_store_gc(). */
VECYCLE_API int vecycle_store_set_policy(const struct vecycle_context *c, const char *vm,
                                         enum vecycle_policy policy, struct vecycle_error *err);

/** A VM that is forgotten. */
struct vecycle_forgotten {
    char vm[37];
    const char *why; /* "policy", "age", "peer-quota", "quota", "reserve" */
    uint64_t bytes, age_s;
    char peer[128];
};

struct vecycle_gc_result {
    uint64_t n_vms, n_forgotten, n_in_use; /* those in use were skipped */
    uint64_t forgotten_bytes;
    uint64_t used_bytes, free_bytes; /* afterwards */
    uint64_t quota_bytes, reserve_bytes;
    bool over; /* a limit is exceeded, and there is nothing left that may be forgotten */
};
/** Forgets what the limits of *c demand; an agent does this by itself, with its own. @dry_run: only
 *  tells. @report, which may be NULL, is called for each VM. VECYCLE_E_BUSY: another one runs. */
VECYCLE_API int vecycle_store_gc(const struct vecycle_context *c, bool dry_run,
                                 void (*report)(void *opaque, const struct vecycle_forgotten *vm),
                                 void *opaque, struct vecycle_gc_result *out,
                                 struct vecycle_error *err);

/* ---- another key ---- */

struct vecycle_rekey_options {
    const char *to; /* the host that has the same checkpoint; NULL: the other host of the migration
                       that made it */
    bool local;     /* here alone */
    const char *forget; /* a host that is not to get the new key, or a pattern; may be NULL */
    bool insecure;      /* plain TCP is allowed, for a key that has crossed it already */
    const char *ssh, *remote;
    uint32_t dead_peer_ms; /* silence after which the peer is dead; 0: 10 s */
    struct vecycle_tls tls;
    struct vecycle_cancel *cancel;
    /** Pages that are done, about once a second; NULL: not needed. */
    void (*progress)(void *opaque, uint64_t done, uint64_t total);
    /** Before the store is written to, the connection being there, and afterwards: a program may
     *  become the store's owner for that time. NULL: not needed. */
    void (*writes)(void *opaque, bool begins);
    void *opaque;
};

struct vecycle_rekeyed {
    char peer[128];                /* the other host; "": none */
    uint64_t pages, dropped_pages; /* digested anew; damaged ones that are not used any more */
    bool confirmed;                /* the other host has the same under the same new key */
    bool emptied;                  /* there was nothing to digest: what was left is deleted */
};

/** Gives a VM's checkpoint a new key: what is known under the old one is worth nothing any more. At
 *  both hosts, if they have the same checkpoint; it stays as useful as it was. Here alone, the next
 *  return of the VM sends more. VECYCLE_E_NO_SUCH_VM: there is none, or the other host has another
 *  one; VECYCLE_E_BUSY, VECYCLE_E_UNSETTLED: not now; VECYCLE_E_CANCELLED; errors of the
 *  connection: nothing has changed. */
VECYCLE_API int vecycle_rekey(const struct vecycle_context *c, const char *vm,
                              const struct vecycle_rekey_options *o, struct vecycle_rekeyed *out,
                              struct vecycle_error *err);
/** Whether a host, by a name or address of it or a pattern, was given the key of a VM's checkpoint,
 *  as far as this host knows. */
VECYCLE_API int vecycle_key_was_given(const struct vecycle_context *c, const char *vm,
                                      const char *host, bool *out, struct vecycle_error *err);

/* ---- a lost word ---- */

enum vecycle_resolution {
    VECYCLE_RESOLVE_RETRY = 1,  /* source: tell the destination again, over the network */
    VECYCLE_RESOLVE_RUN = 2,    /* continue the VM on this host */
    VECYCLE_RESOLVE_DISCARD = 3 /* this host's VM does not count: forget the record */
};

struct vecycle_resolve_options {
    bool force;             /* RUN: although the VM may run on the other host */
    const char *qmp;        /* source: the VM's QMP socket, if not where it was; or NULL */
    const char *socket_dir; /* where destination QEMUs have their sockets; NULL: the default */
    /* How to reach the other host: */
    const char *to; /* NULL: as it was */
    const char *ssh, *remote;
    bool insecure;
    struct vecycle_tls tls;
    struct vecycle_cancel *cancel; /* may be NULL */
};

/** Settles an open handover (struct vecycle_vm, `handover`). RUN is refused with
 * VECYCLE_E_UNSETTLED where the VM may run on the other host, by what this one knows; with `force`
 * a person has made certain that it does not. */
VECYCLE_API int vecycle_resolve(const struct vecycle_context *c, const char *vm,
                                enum vecycle_resolution how,
                                const struct vecycle_resolve_options *o, struct vecycle_error *err);

/** What is known of a migration that is not settled. */
struct vecycle_doubt {
    char handover[16]; /* as in struct vecycle_vm */
    char peer[256];
    char socket[1024];
    char here[256];  /* of this host's QEMU, in words; "": nothing */
    char there[256]; /* what the other host says; "": it was not asked */
    bool told;       /* source: the destination may have been told to run the VM */
};

/** Looks at this host's QEMU, brings the record up to date with it, and asks the other host, if
 * this one is the source and can reach it. */
VECYCLE_API int vecycle_resolve_show(const struct vecycle_context *c, const char *vm,
                                     const struct vecycle_resolve_options *o,
                                     struct vecycle_doubt *out, struct vecycle_error *err);

#ifdef __cplusplus
}
#endif

#endif
