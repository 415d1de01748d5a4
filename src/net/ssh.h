/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_NET_SSH_H
#define VC_NET_SSH_H

#include <pthread.h>
#include <sys/types.h>

#include "base/thread.h"
#include "net/internal.h"

/* Private to the files ssh*.c: a running ssh. */

#define VC_SSH_MAX_WORDS 64
#define VC_SSH_LINE_BYTES 200

struct vc_ssh {
    pid_t child;                  /* leader of a process group of its own; 0: it was waited for */
    int pidfd;                    /* of it, readable once it has ended; -1: none is to be had */
    int status;                   /* as of waitpid(2) */
    int tty;                      /* our terminal, while ssh has its foreground; else -1 */
    char name[160];               /* USER@HOST, for messages */
    const char *program, *remote; /* borrowed until vc_ssh_await() has returned */
    const void *greeting;         /* likewise */
    unsigned greeting_bytes, greeting_at;
    int cancel_fd, limit_ms;
    struct vc_log log;
    /* What it says on its standard error (ssh_words.c). */
    int words, stop; /* a pipe; an eventfd that ends the thread */
    struct vc_thread thread;
    pthread_mutex_t mu;
    bool begun;  /* [lock: mu] vecycle speaks at the other end */
    bool ending; /* [lock: mu] we have hung up: what it says now is of no interest */
    char last[VC_SSH_LINE_BYTES]; /* [lock: mu] a line that was not passed on yet, or "" */
    char told[240];               /* [lock: mu] the error that the user is told */
    uint64_t lines_until_ns; /* [lock: mu] the time that the lines so far take, at the rate set */
    uint64_t left_out;       /* [lock: mu] lines that were too many, and not counted aloud yet */
};

/** Takes a command line apart as rsync(1) -e does: words between blanks, quotes ('...', "..."), a
 *  quote twice within them for one. VC_E_USAGE. @buf: the words; room for as many bytes as the
 *  text has, and one. */
int vc_ssh_split(const char *text, char *buf, const char *words[VC_SSH_MAX_WORDS], size_t *n,
                 struct vc_err *err) VC_NODISCARD;

/** Starts to listen to it. @words is taken. */
int vc_ssh_listen(struct vc_ssh *s, int words, struct vc_err *err) VC_NODISCARD;
/** Stops; what it said last is passed on. */
void vc_ssh_stop_listening(struct vc_ssh *s);
/** The last thing that it said, which is passed on nowhere else then. Waits a moment for it to
 *  have finished. */
void vc_ssh_last_words(struct vc_ssh *s, char out[VC_SSH_LINE_BYTES]);
/** Whether it has ended; waits for it so long. */
bool vc_ssh_has_ended(struct vc_ssh *s, int timeout_ms);
/** Why it ended before vecycle spoke. @noise: what came instead, as text, or "". */
int vc_ssh_explain(struct vc_ssh *s, const char *noise, struct vc_err *err);

#endif
