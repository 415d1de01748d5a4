/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "net/internal.h"

extern char **environ;

/* "[USER@]HOST[:PORT]"; nothing that ssh could take for an option. */
bool vc_ssh_split(const char *rest, char host[256], char port[16])
{
    const char *colon = strrchr(rest, ':');
    size_t n = colon ? (size_t)(colon - rest) : strlen(rest);

    if (n == 0 || n > 255 || *rest == '-' || (colon && (!colon[1] || strlen(colon + 1) > 15)))
        return false;
    for (const char *p = colon ? colon + 1 : ""; *p; p++)
        if (*p < '0' || *p > '9')
            return false;
    memcpy(host, rest, n);
    host[n] = 0;
    snprintf(port, 16, "%s", colon ? colon + 1 : "");
    return true;
}

/* Runs argv with the socket as standard input and output; its messages go where ours go. */
static int spawn(char *const argv[], int sock, pid_t *child)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none, pipe;
    int rc;

    sigemptyset(&none);
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, sock, 0);
    posix_spawn_file_actions_adddup2(&actions, sock, 1);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &pipe);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    rc = posix_spawnp(child, argv[0], &actions, &attr, argv, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&actions);
    return rc;
}

int vc_ssh_start(const char *rest, const struct vc_dial_options *o, const char *address,
                 int *fd_out, pid_t *child_out, struct vc_err *err)
{
    char host[256], port[16];
    const char *ssh = o->ssh ? o->ssh : "ssh";
    const char *argv[12] = {ssh, "-T", "-e", "none", "-o", "BatchMode=yes"};
    size_t n = 6;
    int fds[2], rc;

    if (!vc_ssh_split(rest, host, port))
        return vc_err_set_hint(err, VC_E_USAGE, "ssh://USER@HOST:PORT", "'%s' is not an address",
                               address);
    if (port[0]) {
        argv[n++] = "-p";
        argv[n++] = port;
    }
    argv[n++] = host;
    argv[n++] = o->remote ? o->remote : "vecycle recv";
    argv[n] = NULL;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot make a socket pair");
    rc = spawn((char *const *)argv, fds[1], child_out);
    close(fds[1]);
    if (rc) {
        close(fds[0]);
        errno = rc;
        return vc_err_set_errno_hint(err, VC_E_UNREACHABLE, "install an ssh client",
                                     "cannot run '%s'", ssh);
    }
    *fd_out = fds[0];
    return 0;
}
