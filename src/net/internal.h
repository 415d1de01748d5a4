/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_NET_INTERNAL_H
#define VC_NET_INTERNAL_H

#include <sys/types.h>

#include "net/net.h"

/* Private to src/net. All transports of this version are descriptors underneath; what differs is
 * how they come about and how they end. */
struct vc_conn {
    int rfd, wfd;   /* equal for a socket */
    int wake_fd;    /* pipes only: readable after shutdown, since shutdown(2) needs a socket */
    bool is_socket; /* both are */
    enum vc_conn_security security;
    pid_t child; /* > 0: the process at the other end of the socket */
    char describe[256];
};

/** Takes apart what follows "tcp://" and "ssh://"; false: it is no address. */
bool vc_tcp_split(const char *rest, char host[256], char port[16]);
bool vc_ssh_split(const char *rest, char host[256], char port[16]);

int vc_tcp_connect(const char *rest, int timeout_ms, const char *address, int *fd_out,
                   struct vc_err *err) VC_NODISCARD;
int vc_tcp_listen(const char *rest, const char *address, int *fd_out,
                  struct vc_err *err) VC_NODISCARD;
void vc_tcp_tune(int fd);
int vc_ssh_start(const char *rest, const struct vc_dial_options *o, const char *address,
                 int *fd_out, pid_t *child_out, struct vc_err *err) VC_NODISCARD;

#endif
