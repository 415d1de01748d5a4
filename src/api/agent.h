/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_API_AGENT_H
#define VC_API_AGENT_H

#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "api/api.h"
#include "api/rekey.h"
#include "api/sandbox.h"
#include "base/thread.h"

/* Private to the agent: agent_server.c waits for connections, agent_sessions.c looks after what
 * becomes of them. */

#define MAX_LISTENERS 8
#define MAX_SESSIONS 64
/* Beside these, peers and clients that have not got past the opening, TLS handshake included, which
 * takes an honest one a moment: whoever fills all places must keep coming back faster than that. As
 * many as may run can come at once, when a host is evacuated, and none of them is sent away. */
#define MAX_UNOPENED MAX_SESSIONS

struct agent;

/* What goes on for one peer, or one client. */
struct session {
    struct agent *agent;
    struct session *next;
    struct vc_thread thread;
    struct vc_job job; /* [thread: session] */
    struct vc_cancel cancel;
    int control;            /* connection of the client, or -1 */
    struct vc_log log;      /* to the client and to the agent's own log */
    atomic_bool peer_known; /* TLS: its certificate is verified */
    atomic_bool opened;     /* the request was read; a peer is past the opening */
    atomic_bool finished;
};

struct agent {
    const struct vecycle_agent_options *o;
    struct vc_log log;
    struct vc_store *store;
    struct vc_keeper *keeper;
    struct vc_rekeyer *rekeyer; /* NULL: no list of peers */
    struct vc_sandbox_user user;
    const char *socket_dir;
    struct vc_parking *parking;
    struct vc_listener *listeners[MAX_LISTENERS];
    size_t n_listeners;
    int control; /* listening */
    char control_path[PATH_MAX];
    ino_t control_ino;
    int wake;                 /* eventfd: a session has finished */
    struct session *sessions; /* [thread: main] */
    size_t n_sessions;
    struct vc_settler *settler;
    bool tired;       /* [thread: main] a connection could not be taken */
    atomic_bool stop; /* for what goes on in the background */
};

/** Whether to look for new connections at all: not while one has to end first. Thread: main, like
 *  all of these. */
bool vc_agent_is_open(const struct agent *a);
/** Whether there is room for one more that has not said yet what it wants; one may have to go. */
bool vc_agent_make_room(struct agent *a);
/** Starts a session; the job's descriptors and @control (-1: none) are taken. */
void vc_agent_start_session(struct agent *a, struct vc_job *job, int control);
/** Frees the sessions that have finished. */
void vc_agent_reap(struct agent *a);
/** Cancels all of them, waits for them, and frees them. */
void vc_agent_end_sessions(struct agent *a);

#endif
