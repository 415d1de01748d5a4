/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef FUZZ_QEMU_H
#define FUZZ_QEMU_H

#include <pthread.h>

#include "hosts.h"

/* A QEMU of one side: a thread that answers QMP, and has the migration's connections. By itself it
 * behaves; a script says at which moments it does something else. It always answers a command or
 * hangs up, and a migration whose connection is gone has an end, so nobody waits for it long.
 *
 * A script is a list of steps: a byte with the moment, a byte with the action, the length (2 bytes)
 * of its text and that. At each moment the first step for it that is left is done; bit 7 of the
 * action says: and the next one for it too. A moment is the number of a command in the list below,
 * or one of those: */

enum {
    FUZZ_QEMU_GREETS = 16,    /* a client has connected */
    FUZZ_QEMU_LET_GO = 17,    /* the migration's connection was closed */
    FUZZ_QEMU_SHUT = 18,      /* source: SHUT has come on the return path */
    FUZZ_QEMU_CONNECTED = 19, /* the migration's connection is there */
    FUZZ_QEMU_SIDE = 20,      /* its second one is */
    FUZZ_QEMU_NOW = 21,       /* at once */
    FUZZ_QEMU_MOMENTS = 22,
};
/* "qmp_capabilities", "query-uuid", "query-status", "query-migrate", "query-migrate-capabilities",
 * "migrate-set-capabilities", "query-migrate-parameters", "migrate-set-parameters", "stop", "cont",
 * "getfd", "migrate", "migrate-incoming", "migrate-recover", "migrate-start-postcopy",
 * "migrate_cancel" */

enum {
    FUZZ_QEMU_ERROR = 0,      /* refuses the command, in the words of the text */
    FUZZ_QEMU_SAY = 1,        /* says the text, as a line */
    FUZZ_QEMU_STATUS = 2,     /* the migration's status is the text */
    FUZZ_QEMU_STATE = 3,      /* so is the run state */
    FUZZ_QEMU_GO = 4,         /* hangs up QMP */
    FUZZ_QEMU_ANSWER_GO = 5,  /* after the answer */
    FUZZ_QEMU_RETURN = 6,     /* answers with the text as the value */
    FUZZ_QEMU_END_STREAM = 7, /* closes the migration's connections */
    FUZZ_QEMU_IDLE = 8,       /* answers, and does nothing */
    FUZZ_QEMU_EVENT = 9,      /* an event of that name, with the migration's status */
    FUZZ_QEMU_STREAM = 10,    /* sends the text on the migration's connection */
    FUZZ_QEMU_SEND_SIDE = 11, /* and on the second one, which a source opens for it */
    FUZZ_QEMU_END_SIDE = 12,  /* closes the second one, and its direction of the first */
    FUZZ_QEMU_ACTIONS = 13,
};

#define FUZZ_QEMU_STEPS 48
#define FUZZ_QEMU_BYTES (1u << 20) /* more than it is given */

struct fuzz_qemu_step {
    uint8_t moment, action;
    bool done;
    struct vc_reader text;
};

struct fuzz_qemu {
    /* What is set before it starts. */
    bool is_source, preempt;
    bool proxied;            /* somebody else drives it, and has its stream ended */
    int qmp_listener;        /* borrowed; -1: none */
    int listener;            /* where a destination takes the migration; taken; -1: not yet */
    struct vc_reader stream; /* a source sends it when it is told to migrate */
    struct vc_reader answer; /* a destination sends it when it is connected */
    bool ends_answer;        /* and ends its direction */
    char status[32], state[32];
    /** Called for each command. Thread: QEMU's. */
    void (*on_command)(void *opaque, const char *name);
    void *opaque;

    uint8_t *got[2]; /* what came on its two connections, of FUZZ_QEMU_BYTES */
    size_t n_got[2];

    /* Its own. */
    pthread_mutex_t mu;
    pthread_t thread;
    int wake_fd, qmp, fds[2], passed_fd;
    char path[256]; /* of the migration's socket: a source connects there, a destination listens */
    char line[8192];
    size_t n_line, looked_at;
    bool over, shut, came, hang_up;
    struct fuzz_qemu_step steps[FUZZ_QEMU_STEPS];
    unsigned n_steps;
};

/** A QEMU with nothing under way. The buffers are kept for the next one. */
void fuzz_qemu_init(struct fuzz_qemu *q, bool is_source);
/** More of its script. Any thread, also before it starts. */
void fuzz_qemu_script(struct fuzz_qemu *q, struct vc_reader script);
void fuzz_qemu_start(struct fuzz_qemu *q);
/** When nobody is left to talk to it: it takes in what is still there, and its thread ends. It can
 *  be started again. */
void fuzz_qemu_stop(struct fuzz_qemu *q);
void fuzz_qemu_fini(struct fuzz_qemu *q);

/** A listening socket that another process made: one that has ended for certain, or (@ended false)
 *  one of which nothing can be known. */
int fuzz_qemu_listen(const char *path, bool ended);

#endif
