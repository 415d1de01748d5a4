/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_NET_NET_H
#define VC_NET_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"

/* Transports: a reliable byte stream in each direction, whatever carries it. Each kind is a table
 * of operations (struct vc_conn_ops) in a file of its own.
 *
 * Thread rule: one thread may read while another writes; vc_conn_shutdown() may be called by any
 * thread at any time and wakes both. vc_conn_close() comes last, alone. */

struct vc_conn;
struct vc_listener;

enum vc_conn_security {
    VC_CONN_LOCAL = 0,     /* does not leave the host */
    VC_CONN_ENCRYPTED = 1, /* ssh */
    VC_CONN_PLAINTEXT = 2, /* TCP as it is */
};

/** Port of vecycle's own TCP listener, unless the address names one. */
#define VC_NET_DEFAULT_PORT "7890"

struct vc_dial_options {
    bool insecure;      /* plain TCP is allowed */
    const char *ssh;    /* the ssh program; NULL: "ssh" */
    const char *remote; /* words for the remote shell; NULL: "vecycle recv" */
    int timeout_ms;     /* 0: 10 s */
};

/** Connects to `unix:PATH`, `tcp://HOST[:PORT]` or `ssh://[USER@]HOST[:PORT]`.
 *  VC_E_USAGE (address), VC_E_REFUSED (plain TCP without `insecure`), VC_E_UNREACHABLE. */
int vc_conn_dial(const char *address, const struct vc_dial_options *o, struct vc_conn **out,
                 struct vc_err *err) VC_NODISCARD;

/** Wraps descriptors, which are taken also on failure; @wfd may equal @rfd (a socket). @describe
 *  is copied. */
int vc_conn_from_fds(int rfd, int wfd, enum vc_conn_security security, const char *describe,
                     struct vc_conn **out, struct vc_err *err) VC_NODISCARD;

/** Two ends of a local connection, for tests. */
int vc_conn_pair(struct vc_conn **a, struct vc_conn **b, struct vc_err *err) VC_NODISCARD;

/** Up to n bytes: > 0; 0 at the end; VC_E_PEER_LOST. */
ssize_t vc_conn_read_some(struct vc_conn *c, void *buf, size_t n, struct vc_err *err) VC_NODISCARD;
/** Writes all; the vector is used up. VC_E_PEER_LOST. */
int vc_conn_writev_all(struct vc_conn *c, struct iovec *iov, size_t n,
                       struct vc_err *err) VC_NODISCARD;
/** Ends both directions. Does not block. */
void vc_conn_shutdown(struct vc_conn *c);
/** Ends the sending direction: the peer reads what was sent, then the end. Does not block. */
void vc_conn_shutdown_write(struct vc_conn *c);
/** Frees; waits for a child process that carried it. NULL is fine. */
void vc_conn_close(struct vc_conn *c);
/** Its descriptors, borrowed, to be handed to another process. */
void vc_conn_fds(const struct vc_conn *c, int *rfd, int *wfd);
/** How the peer is called in messages. Belongs to the connection. */
const char *vc_conn_describe(const struct vc_conn *c);
enum vc_conn_security vc_conn_security(const struct vc_conn *c);

/** Listens on `unix:PATH` (permissions @mode) or `tcp://HOST[:PORT]` (needs @insecure). */
int vc_listener_open(const char *address, bool insecure, unsigned mode, struct vc_listener **out,
                     struct vc_err *err) VC_NODISCARD;
/** For poll: readable when a connection waits. */
int vc_listener_fd(const struct vc_listener *l);
/** Takes a connection that waits. */
int vc_listener_accept(struct vc_listener *l, struct vc_conn **out,
                       struct vc_err *err) VC_NODISCARD;
/** Stops listening; a Unix socket's file is removed. */
void vc_listener_close(struct vc_listener *l);

#endif
