/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_QMP_QMP_H
#define VC_QMP_QMP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/json.h"
#include "base/process.h"
#include "base/units.h"

/* A client of QEMU's machine protocol (QEMU: docs/interop/qmp-spec.rst), and the few commands that
 * a migration needs.
 *
 * Thread rule: any thread, until one frees it; a command waits for the answer to another thread's.
 * vc_qmp_identify() before it is shared. */

struct vc_qmp;

/** Time a command may take, and longest line that is accepted. */
#define VC_QMP_TIMEOUT_MS 15000
#define VC_QMP_MAX_LINE_BYTES (4u << 20)

/** Connects and negotiates. VC_E_QMP_CONNECT: no socket, or nobody listens; VC_E_QMP: not QMP. */
int vc_qmp_connect(const char *path, struct vc_qmp **out, struct vc_err *err) VC_NODISCARD;
/** The same on a connected socket, which is taken; @name is for messages. */
int vc_qmp_from_fd(int fd, const char *name, struct vc_qmp **out, struct vc_err *err) VC_NODISCARD;
/** The same, with out-of-band commands where QEMU has them (they need no lock of QEMU's). */
int vc_qmp_from_fd_oob(int fd, const char *name, struct vc_qmp **out,
                       struct vc_err *err) VC_NODISCARD;
/** While QEMU owes an answer, a further command waits for it as long as for its own, and is not
 * sent without. @hurry: it fails at once, as on a connection to a QEMU that is known to hang. Any
 *  thread. */
void vc_qmp_hurry(struct vc_qmp *q, bool hurry);
/** The number of a descriptor that QEMU was given for as long as this connection lasts; -1: none.
 */
void vc_qmp_keep_fd(struct vc_qmp *q, int number);
int vc_qmp_kept_fd(const struct vc_qmp *q);
/** Frees; NULL is fine. */
void vc_qmp_free(struct vc_qmp *q);
/** Wakes a call that waits, for good. Any thread. */
void vc_qmp_shutdown(struct vc_qmp *q);
/** For poll: readable when an event may have come. */
int vc_qmp_fd(const struct vc_qmp *q);
/** Whether the connection is over, so that no command will ever be answered again. */
bool vc_qmp_is_gone(const struct vc_qmp *q);
/** Looks who QEMU is: the process that called listen() on this socket, if its command line has
 *  `-uuid` with that VM. Anybody else may have handed the socket to QEMU, or relay it. */
void vc_qmp_identify(struct vc_qmp *q, const struct vc_id *vm);
/** QEMU's process, unknown if that could not be shown. */
const struct vc_process *vc_qmp_process(const struct vc_qmp *q);
/** Whether QEMU's process has ended for certain; waits for it so long. False if it is unknown. */
bool vc_qmp_process_ended(const struct vc_qmp *q, int timeout_ms);
/** Whether the VM has run since this connection was made, as far as events and answers told. */
bool vc_qmp_has_run(const struct vc_qmp *q);
/** Whether the process at the other end of that Unix socket is the one behind QMP, or its user's.
 */
bool vc_qmp_is_same_peer(const struct vc_qmp *q, int fd);
/** How it is called in messages. */
const char *vc_qmp_name(const struct vc_qmp *q);

/** As vc_qmp_execute(), out of band if that was negotiated: then it goes out whatever QEMU has not
 *  answered. Few commands can be ("allow-oob" in QEMU's schema). */
int vc_qmp_execute_oob(struct vc_qmp *q, const char *command, struct json_object *args,
                       struct vc_err *err) VC_NODISCARD;
/** Runs a command. @args is taken (NULL: none). @fd: sent along, or -1; stays the caller's.
 *  *ret_out (may be NULL) is the caller's. VC_E_QMP: QEMU refused, or broke off; the message holds
 *  QEMU's own words. Also if it has not answered the command before in time: then nothing was sent.
 *  Whoever asks again waits a little between. */
int vc_qmp_execute(struct vc_qmp *q, const char *command, struct json_object *args, int fd,
                   struct json_object **ret_out, struct vc_err *err) VC_NODISCARD;

/** The next event that came, without waiting: 0 (*out is the caller's); VC_AGAIN: none now, or
 *  another thread waits for an answer; VC_E_QMP: QEMU is gone. Only of those that a migration
 * needs, and what it needs of them (client.c, known_events); others are dropped. */
int vc_qmp_event(struct vc_qmp *q, struct json_object **out, struct vc_err *err) VC_NODISCARD;

/* ---- commands.c ---- */

/** The VM's UUID; nil if it has none. */
int vc_qmp_uuid(struct vc_qmp *q, struct vc_id *out, struct vc_err *err) VC_NODISCARD;
/** Makes vc_qmp_has_run() true. */
void vc_qmp_note_run(struct vc_qmp *q);
/** Its run state ("running", "inmigrate", ...: qapi/run-state.json, RunState). */
int vc_qmp_run_state(struct vc_qmp *q, char out[32], struct vc_err *err) VC_NODISCARD;
/** QEMU's version, major * 100 + minor. */
int vc_qmp_version(struct vc_qmp *q, unsigned *out, struct vc_err *err) VC_NODISCARD;

struct vc_qmp_capability {
    const char *name;
    bool on;
    bool optional; /* `on` is a wish: a QEMU that does not know it does without */
};
#define VC_QMP_MAX_CAPABILITIES 32
/** Turns them (32 at most) on and off, in one command, since some depend on each other. One that is
 *  to be off is off where QEMU does not know it; one that is to be on, and not optional: VC_E_QMP.
 */
int vc_qmp_set_capabilities(struct vc_qmp *q, const struct vc_qmp_capability *list, size_t n,
                            struct vc_err *err) VC_NODISCARD;
/** Those of them that QEMU has otherwise (room for all); VC_E_QMP as above. Changes nothing. */
int vc_qmp_differing_capabilities(struct vc_qmp *q, const struct vc_qmp_capability *list, size_t n,
                                  struct vc_qmp_capability *out, size_t *n_out,
                                  struct vc_err *err) VC_NODISCARD;
/** 0; VC_NOT_FOUND: this QEMU does not know it. */
int vc_qmp_get_capability(struct vc_qmp *q, const char *name, bool *on,
                          struct vc_err *err) VC_NODISCARD;
int vc_qmp_set_parameter(struct vc_qmp *q, const char *name, uint64_t v,
                         struct vc_err *err) VC_NODISCARD;
/** A numeric migration parameter; @missing if this QEMU has none of that name. */
int vc_qmp_get_parameter(struct vc_qmp *q, const char *name, uint64_t missing, uint64_t *out,
                         struct vc_err *err) VC_NODISCARD;

int vc_qmp_set_text(struct vc_qmp *q, const char *name, const char *text,
                    struct vc_err *err) VC_NODISCARD;
/** A migration parameter with text. VC_E_QEMU_STATE: it has no room in @out, which has its begin.
 */
int vc_qmp_get_text(struct vc_qmp *q, const char *name, const char *missing, char *out, size_t cap,
                    struct vc_err *err) VC_NODISCARD;

/** What a stream is for. */
enum vc_qmp_stream {
    VC_QMP_OUTGOING, /* `migrate` */
    VC_QMP_RESUME,   /* `migrate` with resume: a postcopy that is paused */
    VC_QMP_INCOMING, /* `migrate-incoming` */
};
/** Hands QEMU one end of a new socket pair and starts a migration over it. *fd_out is the other
 * end, the caller's. */
int vc_qmp_migrate_fd(struct vc_qmp *q, enum vc_qmp_stream kind, int *fd_out,
                      struct vc_err *err) VC_NODISCARD;

/** The same over a Unix socket at that path, to which an outgoing QEMU connects, also more than
 * once, and at which an incoming one listens. */
int vc_qmp_migrate_unix(struct vc_qmp *q, enum vc_qmp_stream kind, const char *path,
                        struct vc_err *err) VC_NODISCARD;

/** `migrate-recover` at a Unix socket that QEMU makes there, out of band if that was negotiated. */
int vc_qmp_recover(struct vc_qmp *q, const char *path, struct vc_err *err) VC_NODISCARD;

/** A command without arguments or answer ("stop", "cont", "migrate_cancel"). */
int vc_qmp_simple(struct vc_qmp *q, const char *command, struct vc_err *err) VC_NODISCARD;

struct vc_qmp_migration {
    char status[32]; /* "" before the first migration */
    char error[200]; /* of a failed one, or "" */
    uint64_t total_ms, downtime_ms, setup_ms;
    uint64_t ram_total, ram_remaining, ram_transferred;
    uint64_t rounds;                     /* dirty-sync-count */
    uint64_t data_records, zero_records; /* pages sent, and zero pages (ram.normal, .duplicate) */
};
int vc_qmp_migration(struct vc_qmp *q, struct vc_qmp_migration *out,
                     struct vc_err *err) VC_NODISCARD;

/** Whether by that status (qapi/migration.json, MigrationStatus) no migration is under way; one
 * that is not known says that there is. */
bool vc_qmp_status_is_idle(const char *status);

/** Whether the VM has become the destination's by postcopy: the guest never goes on at the source.
 * Not so yet while the destination loads the device state ("postcopy-device", QEMU 10.2): if the
 * migration fails then, the source's guest goes on. */
bool vc_qmp_status_is_switched(const char *status);

#endif
