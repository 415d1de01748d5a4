/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_NET_INTERNAL_H
#define VC_NET_INTERNAL_H

#include <sys/types.h>

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
    int wake_fd;        /* pipes only: readable after shutdown, since shutdown(2) needs a socket */
    bool is_socket;     /* both are */
    enum vc_conn_security security;
    pid_t child; /* > 0: the process at the other end of the socket */
    char describe[256];
};

/** Takes apart what follows "tcp://" ("HOST", "HOST:PORT", "[V6]:PORT"; "tls://" likewise) and
 *  "ssh://"; false: it is no address. */
bool vc_tcp_split(const char *rest, const char *default_port, char host[256], char port[16]);
bool vc_ssh_split(const char *rest, char host[256], char port[16]);

int vc_tcp_connect(const char *rest, const char *default_port, int timeout_ms, const char *address,
                   int *fd_out, struct vc_err *err) VC_NODISCARD;
int vc_tcp_listen(const char *rest, const char *default_port, const char *address, int *fd_out,
                  struct vc_err *err) VC_NODISCARD;
void vc_tcp_tune(int fd);
int vc_ssh_start(const char *rest, const struct vc_dial_options *o, const char *address,
                 int *fd_out, pid_t *child_out, struct vc_err *err) VC_NODISCARD;

/* ---- TLS ---- */

/** Until its handshake a connection of TLS passes nothing. */
extern const struct vc_conn_ops vc_tls_pending_ops;

/** The client's handshake over a connected socket. @host: as the address names it. */
int vc_tls_connect(struct vc_conn *c, const char *host, const struct vc_tls_options *o,
                   struct vc_err *err) VC_NODISCARD;

/** A context with the files of a directory: version, suites, trust, our certificate. */
int vc_tls_context(const char *dir, enum vc_tls_role role, struct ssl_ctx_st **out,
                   struct vc_err *err) VC_NODISCARD;

/** Lets the handshake fail unless the peer's certificate names this host. False: no such name can
 *  be. */
bool vc_tls_expect(struct ssl_st *ssl, const char *host);

/** Why a handshake, or a read after it, failed: from OpenSSL's error queue, which is emptied.
 *  @wanted: the name that the peer should have, or NULL. */
int vc_tls_explain(struct ssl_st *ssl, const char *peer, const char *wanted, struct vc_err *err);

/** The peer's names, each with its NUL, one after another, at most n bytes; whole names only. */
void vc_tls_peer_names(struct ssl_st *ssl, char *out, size_t n);

#endif
