/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_NET_NET_H
#define VC_NET_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"
#include "base/log.h"

/* Transports: a reliable byte stream in each direction, whatever carries it. Each kind is a table
 * of operations (struct vc_conn_ops) in a file of its own.
 *
 * Thread rule: one thread may read while another writes; vc_conn_shutdown() may be called by any
 * thread at any time and wakes both. vc_conn_close() comes last, alone. */

struct vc_conn;
struct vc_listener;

enum vc_conn_security {
    VC_CONN_LOCAL = 0,     /* does not leave the host */
    VC_CONN_ENCRYPTED = 1, /* TLS, ssh */
    VC_CONN_PLAINTEXT = 2, /* TCP as it is */
};

/** Ports of vecycle's own listeners, unless the address names one. */
#define VC_NET_DEFAULT_PORT "7890"
#define VC_NET_DEFAULT_TLS_PORT "7891"

/** Where certificates and keys are, unless a directory is named. */
#define VC_TLS_DEFAULT_DIR "/etc/vecycle/tls"
/** Time for a handshake, unless set. */
#define VC_TLS_HANDSHAKE_MS 10000u

/** TLS of one connection. The files are read anew for each, so that a certificate or a revocation
 *  list can be replaced at any time. */
struct vc_tls_options {
    const char *dir;       /* NULL: VC_TLS_DEFAULT_DIR */
    const char *hostname;  /* dialling: the name in the server's certificate; NULL: the address's */
    uint32_t handshake_ms; /* 0: VC_TLS_HANDSHAKE_MS */
    int cancel_fd;         /* readable: give the handshake up; -1: none */
    uint64_t rekey_bytes;  /* sent under one key; 0: 64 GiB, well below what AES-GCM allows */
};
#define VC_TLS_OPTIONS_INIT ((struct vc_tls_options){.cancel_fd = -1})

enum vc_tls_role { VC_TLS_CLIENT = 0, VC_TLS_SERVER = 1 };

struct vc_dial_options {
    bool insecure;                    /* plain TCP is allowed */
    const char *ssh;                  /* the ssh program and its first arguments, in words as
                                         rsync(1) -e has them; NULL: "ssh" */
    const char *remote;               /* words for the remote shell; NULL: "vecycle recv" */
    int timeout_ms;                   /* to connect; 0: 10 s */
    const struct vc_tls_options *tls; /* NULL: all defaults */
    int cancel_fd;                    /* readable: give it up; 0: none */
    const struct vc_log *log;         /* what ssh and the other host's shell say; may be NULL */
    const void *greeting;             /* ssh: how the other end begins, but for what varies: */
    unsigned greeting_bytes;          /* that many, ... */
    unsigned greeting_at;             /* ... which come that far behind its first byte. What comes
                                         before is skipped and logged. NULL: all is taken */
};

/** Connects to `unix:PATH`, `tls://HOST[:PORT]`, `tcp://HOST[:PORT]` or
 *  `ssh://[USER@]HOST[:PORT]`. VC_E_USAGE (address, no certificates), VC_E_REFUSED (plain TCP
 *  without `insecure`; the certificate is not that host's), VC_E_UNREACHABLE, VC_E_CANCELLED. A
 *  server that does not take our certificate says so after the handshake: the first read then
 *  fails with VC_E_REFUSED. */
int vc_conn_dial(const char *address, const struct vc_dial_options *o, struct vc_conn **out,
                 struct vc_err *err) VC_NODISCARD;

/** Wraps descriptors, which are taken also on failure; @wfd may equal @rfd (a socket). Another
 *  process may have them as well: whatever it does, a shutdown wakes who waits. @describe is
 * copied. VC_E_USAGE: one is neither a stream socket (Unix, IPv4, IPv6) nor a pipe. */
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
/** Ends the sending direction: the peer reads what was sent, then the end. Like a write: for the
 *  thread that writes, and woken by vc_conn_shutdown(). */
void vc_conn_shutdown_write(struct vc_conn *c);
/** After a session over it failed: where ssh carried it and has ended by itself, its words and its
 *  status are added to *err. */
void vc_conn_blame(struct vc_conn *c, struct vc_err *err);
/** Frees; waits for a child process that carried it, and ends it. NULL is fine. */
void vc_conn_close(struct vc_conn *c);
/** Its descriptors, borrowed, to be handed to another process. Not for TLS, whose keys stay here.
 */
void vc_conn_fds(const struct vc_conn *c, int *rfd, int *wfd);
/** How the peer is called in messages. Belongs to the connection. */
const char *vc_conn_describe(const struct vc_conn *c);
enum vc_conn_security vc_conn_security(const struct vc_conn *c);

/** The peer's @i-th name as its certificate has it: DNS names and addresses, or the common name if
 *  there is none of those. NULL: no more; a peer without a certificate has none. */
const char *vc_conn_peer_name(const struct vc_conn *c, unsigned i);

/** Listens on `unix:PATH` (permissions @mode), `tls://HOST[:PORT]` or `tcp://HOST[:PORT]` (needs
 *  @insecure), and there on every address that HOST has. VC_E_USAGE, VC_E_REFUSED,
 *  VC_E_UNREACHABLE (no such name), VC_E_FAILED. */
int vc_listener_open(const char *address, bool insecure, unsigned mode, struct vc_listener **out,
                     struct vc_err *err) VC_NODISCARD;
/** What to do where a Unix socket cannot be made for that errno; NULL: nothing is known. */
const char *vc_listen_hint(int sys_errno);
/** For poll: readable when a connection waits. */
int vc_listener_fd(const struct vc_listener *l);
/** Takes a connection that waits. One of TLS can only be closed or given to
 *  vc_conn_tls_accept(). */
int vc_listener_accept(struct vc_listener *l, struct vc_conn **out,
                       struct vc_err *err) VC_NODISCARD;
/** What whoever runs it should know: that no other host can connect, that an address of the name is
 *  left out. "": nothing. */
const char *vc_listener_note(const struct vc_listener *l);
/** Whether its connections need vc_conn_tls_accept(). */
bool vc_listener_is_tls(const struct vc_listener *l);
/** Stops listening; a Unix socket's file is removed. */
void vc_listener_close(struct vc_listener *l);

/* ---- TLS 1.3 with certificates on both sides (docs/internals/tls.md) ---- */

/** The server's handshake, which takes at most the time set; the connection's name becomes that of
 *  the peer's certificate. VC_E_REFUSED (certificate), VC_E_PROTOCOL, VC_E_VERSION (no TLS 1.3),
 *  VC_E_PEER_LOST (also: too slow), VC_E_CANCELLED. The caller closes in any case. */
int vc_conn_tls_accept(struct vc_conn *c, const struct vc_tls_options *o,
                       struct vc_err *err) VC_NODISCARD;

/** Whether a directory (NULL: the default) holds what that role needs. VC_E_USAGE (something is
 *  missing), VC_E_REFUSED (a key that others can read), VC_E_FAILED (damaged). */
int vc_tls_check(const char *dir, enum vc_tls_role role, struct vc_err *err) VC_NODISCARD;

/** A small certificate authority of one's own. */
struct vc_tls_ca_options {
    const char *dir;          /* made if missing */
    const char *const *hosts; /* "NAME[,NAME-OR-ADDRESS...]": the first one names its directory */
    size_t n_hosts;
    uint32_t days; /* that the hosts' certificates are valid; 0: VC_TLS_DEFAULT_DAYS */
    bool new_ca;   /* a new authority in place of one that is there; what it signed is void */
    bool renew;    /* new certificates and keys for hosts that have some */
    int64_t now;   /* seconds since 1970; 0: the clock's */
    bool *made_ca; /* whether an authority was made; may be NULL */
};
#define VC_TLS_DEFAULT_DAYS 730u
#define VC_TLS_MAX_DAYS 36500u

/** Makes the authority (`ca-cert.pem`, `ca-key.pem`) unless there is one, and for each host a
 *  directory with the five files that vecycle, QEMU and libvirt know. Keys have mode 0600.
 *  VC_E_USAGE (a name), VC_E_REFUSED (something is there already, or others can change the
 *  authority), VC_E_STORE (files). */
int vc_tls_ca_init(const struct vc_tls_ca_options *o, struct vc_err *err) VC_NODISCARD;

#endif
