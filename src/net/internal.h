/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_NET_INTERNAL_H
#define VC_NET_INTERNAL_H

#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "net/address.h"
#include "net/net.h"

struct ssl_ctx_st;
struct ssl_st;

/* Private to src/net. All transports of this version are descriptors underneath; what differs is
 * how they come about, how bytes get through, and how they end. */
struct vc_conn_ops {
    ssize_t (*read_some)(struct vc_conn *c, void *buf, size_t n, struct vc_err *err);
    int (*writev_all)(struct vc_conn *c, struct iovec *iov, size_t n, struct vc_err *err);
    void (*shutdown)(struct vc_conn *c);
    void (*shutdown_write)(struct vc_conn *c);
    const char *(*peer_name)(const struct vc_conn *c, unsigned i); /* NULL: it has none */
    void (*release)(struct vc_conn *c);                            /* NULL: nothing to do */
};

struct vc_tls;

struct vc_conn {
    const struct vc_conn_ops *ops;
    struct vc_tls *tls; /* TLS: after the handshake */
    int rfd, wfd;       /* equal for a socket */
    int wake_fd;        /* readable after a shutdown */
    atomic_bool down;   /* [atomic] the same */
    size_t late_bytes;  /* [thread: reader] that were read after it */
    int in[2], out[2];  /* beside a pipe, one of our own (fds.c); else -1 */
    enum vc_conn_security security;
    struct vc_ssh *ssh; /* the process at the other end of the socket, or NULL */
    char describe[256];
};

/** Addresses that one name may have. */
#define VC_TCP_MAX_ADDRESSES 16

/** Connects to the first address that takes it. @text: the address as it was given, for messages.
 *  VC_E_UNREACHABLE, VC_E_USAGE, VC_E_CANCELLED. */
int vc_tcp_connect(const struct vc_address *a, const char *default_port,
                   const struct vc_dial_options *o, const char *text, int *fd_out,
                   struct vc_err *err) VC_NODISCARD;
/** Listens on every address of the host. *n_out of them; @note: what somebody should know of it, or
 *  "". */
int vc_tcp_listen(const struct vc_address *a, const char *default_port, const char *text,
                  int fds[VC_TCP_MAX_ADDRESSES], size_t *n_out, char note[256],
                  struct vc_err *err) VC_NODISCARD;
void vc_tcp_tune(int fd);
/** The other end's address as digits, with its zone; "a peer" if it has gone. */
void vc_tcp_remote(int fd, char *text, size_t n);

/* ---- ssh ---- */

struct vc_ssh;
/** Time for the other end to speak, as a multiple of the time to connect. */
#define VC_SSH_OPEN_TIMES 6
/** Starts it; *fd_out is the connection. */
int vc_ssh_start(const struct vc_address *a, const struct vc_dial_options *o, struct vc_ssh **out,
                 int *fd_out, struct vc_err *err) VC_NODISCARD;
/** Waits until what comes is vecycle's, and skips what comes before. */
int vc_ssh_await(struct vc_ssh *s, int fd, struct vc_err *err) VC_NODISCARD;
/** What ssh has to say for itself if it was the one that ended a session. */
void vc_ssh_blame(struct vc_ssh *s, struct vc_err *err);
/** Its connection is closed: waits, then ends it. NULL is fine. */
void vc_ssh_end(struct vc_ssh *s);

/* ---- TLS ---- */

/** Until its handshake a connection of TLS passes nothing. */
extern const struct vc_conn_ops vc_tls_pending_ops;

/** The client's handshake over a connected socket. @host: as the address names it. */
int vc_tls_connect(struct vc_conn *c, const char *host, const struct vc_tls_options *o,
                   struct vc_err *err) VC_NODISCARD;

/** A context with the files of a directory: version, suites, trust, our certificate. */
int vc_tls_context(const char *dir, enum vc_tls_role role, struct ssl_ctx_st **out,
                   struct vc_err *err) VC_NODISCARD;

/** Whether a private key is its owner's alone, the caller's or root's; root's may also be readable
 *  by a group that root chose. */
bool vc_tls_key_is_private(const struct stat *st);

/** Lets the handshake fail unless the peer's certificate names this host. False: no such name can
 *  be. */
bool vc_tls_expect(struct ssl_st *ssl, const char *host);

/** Why a handshake, or a read after it, failed: from OpenSSL's error queue, which is emptied.
 *  @wanted: the name that the peer should have, or NULL. */
int vc_tls_explain(struct ssl_st *ssl, const char *peer, const char *wanted, struct vc_err *err);

/** The peer's names, each with its NUL, one after another, at most n bytes; whole names only. */
void vc_tls_peer_names(struct ssl_st *ssl, char *out, size_t n);

#endif
