/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SESSION_COMMON_H
#define VC_SESSION_COMMON_H

#include "base/bytes.h"
#include "base/queue.h"
#include "base/thread.h"
#include "link/link.h"
#include "session/session.h"

struct vc_settings;

/** What both roles offer in HELLO. */
#define VC_SESSION_FEATURES                                                        \
    (VC_WIRE_FEATURE_ANNOUNCE | VC_WIRE_FEATURE_MOVED | VC_WIRE_FEATURE_CHANNELS | \
     VC_WIRE_FEATURE_DELTA | VC_WIRE_FEATURE_READS | VC_WIRE_FEATURE_RECENT |      \
     VC_WIRE_FEATURE_SHIFTED | VC_WIRE_FEATURE_KEEPS | VC_WIRE_FEATURE_REKEY)

/* Private to src/session: what both sides do alike. */

/** Limits of the phases, as multiples of the dead-peer time (VC_LINK_DEAD_PEER_MS unless set):
 * until both sides have come to terms; without any progress while the guest runs; while it is
 * paused; at the destination, where a source that keeps to the first two has long ended it; until
 * WORD is answered, or a stream that is complete ends; until the other side has committed, which
 * may have to sync much to a slow disk. */
#define VC_OPEN_TIMES 6
#define VC_STALL_TIMES 12
#define VC_STALL_PAUSED_TIMES 3
#define VC_STALL_DEST_TIMES 16
#define VC_ANSWER_TIMES 3
#define VC_COMMIT_TIMES 12

/** For how long the guest may be paused at the source before the VM is the destination's, when that
 *  has taken so many bytes of the stream meanwhile: VC_STALL_TIMES, and once more for each
 *  VC_PAUSED_BYTES. At 10 s that is 26 KB/s, a fifth of a link of 1 Mbit/s. */
#define VC_PAUSED_BYTES (256u << 10)
uint64_t vc_pause_limit_ms(uint32_t dead_peer_option_ms, uint64_t taken_bytes);

/** Since when nothing has moved. Zero: nothing was looked at yet. */
struct vc_progress {
    uint64_t mark, ns;
};
/** Nanoseconds since @mark, a sum of what moves, was another one for the last time. */
uint64_t vc_stands_still_ns(struct vc_progress *p, uint64_t mark);

static inline uint32_t vc_dead_peer_ms(uint32_t option_ms)
{
    return option_ms ? option_ms : VC_LINK_DEAD_PEER_MS;
}

/** Ends a link that has not got past the opening in time, or is cancelled (guard.c). */
struct vc_guard {
    struct vc_link *link;
    struct vc_cancel *cancel;
    uint32_t limit_ms;
    int over_fd;
    bool cancelled, too_late; /* [thread: guard, then whoever joined it] */
    struct vc_thread thread;
};
int vc_guard_start(struct vc_guard *g, struct vc_link *link, struct vc_cancel *cancel,
                   uint32_t limit_ms, struct vc_err *err) VC_NODISCARD;
/** Returns rc, or why the guard has ended the link. Call once, if it was started. */
int vc_guard_end(struct vc_guard *g, int rc, struct vc_err *err) VC_NODISCARD;

/** Frames that may wait to be looked at: there are four kinds, and each comes once. */
#define VC_INBOX_MAX_FRAMES 16

/** Frames that the pipelines hand up (WORD, WORD_DONE, COMMITTED, CLOSE), in order. */
struct vc_inbox {
    struct vc_queue q;
    int fd;                     /* readable when something came, or nothing will come any more */
    struct vc_link_frame *back; /* [thread: session] given back: comes first */
};
int vc_inbox_init(struct vc_inbox *in, struct vc_err *err) VC_NODISCARD;
void vc_inbox_fini(struct vc_inbox *in);
/** The pipelines' on_frame; NULL closes, and so does one frame too many. */
void vc_inbox_put(void *inbox, struct vc_link_frame *f);
/** The next frame: 0; VC_AGAIN: not within the time; VC_CLOSED: none will come. */
int vc_inbox_get(struct vc_inbox *in, uint64_t timeout_ms, struct vc_link_frame **out) VC_NODISCARD;
/** Gives back the frame that was got last (taken): it is the next one. */
void vc_inbox_unget(struct vc_inbox *in, struct vc_link_frame *f);

/** This host's part in a VM's store for one session. */
struct vc_holding {
    struct vc_vm *vm;       /* locked, or NULL: no store, or it cannot be used */
    struct vc_gen *gen;     /* the newest complete generation, or NULL */
    struct vc_gen *partial; /* what had arrived, or left, in a migration that failed, or NULL */
    bool keeps;             /* a new generation is wanted, and may be written */
    bool has_lineage;
    struct vc_lineage lineage;
    struct vc_store *store;
    struct vc_id uuid;
    bool recovers; /* the rest of a postcopy: the record is that of what was interrupted */
    const struct vc_log *log;
};
/** Opens the VM for writing and its generations. Whatever is wrong with the store turns reuse off,
 *  with a warning, and fails nothing; so does a policy that keeps no checkpoint. @plaintext: kind
 * of the connection, which the lineage must fit: another one is left aside. @recovers: the rest of
 *  a postcopy, which needs the VM's record alone: no checkpoint is used or changed, and a VM that
 * the store has not got is not made. VC_E_BUSY (the VM is in another session), VC_E_NOMEM. */
int vc_holding_open(struct vc_holding *h, struct vc_store *store, const struct vc_id *uuid,
                    bool plaintext, bool recovers, const struct vc_log *log,
                    struct vc_err *err) VC_NODISCARD;
/** Of the two generations the one that more pages can be taken from here; NULL: there is none.
 *  @announce_bytes: what each page that it holds costs on the wire to make it known, where that of
 *  `gen` is free (both hosts have it); 0: it costs nothing, or both cost the same. */
struct vc_gen *vc_holding_best(const struct vc_holding *h, uint32_t announce_bytes);
/** Makes that lineage the VM's, if it is not yet: everything under another one is dropped. Where
 *  the store cannot note it, nothing will be kept. */
void vc_holding_adopt(struct vc_holding *h, const struct vc_lineage *l);
/** Notes who is given the key of the lineage that the holding has: before it goes out. Where the
 *  store cannot note it, a warning says so. @listed: the peer was on this host's list. */
void vc_holding_share(struct vc_holding *h, const struct vc_conn *peer, bool listed);
/** The same of a host that was called, which the list was not asked to let in: it is listed if
 *  @is_listed says so of one of its names (NULL: there is no list), and a warning tells if of none.
 */
void vc_holding_share_called(struct vc_holding *h, const struct vc_conn *peer,
                             vc_is_listed_fn is_listed, const void *policy);
/** Begins the record of the handover, with what was @settings changed in QEMU. *recorded: there is
 *  one, to be kept up to date. Where the store cannot hold it, a warning says so, and there is
 * none: plain QEMU has none either. VC_E_STORE: one that is not true may be on the disk, and stay
 * there. In a recovery, where the record that there is stays true: any error. */
int vc_holding_record(struct vc_holding *h, const struct vc_handover *record,
                      struct vc_settings *settings, bool *recorded,
                      struct vc_err *err) VC_NODISCARD;
/** Whether the generation that was just committed stays once the session has ended: it is not told
 *  as kept where the store's limits demand at once that it goes. Says so if not. */
bool vc_holding_stays(struct vc_holding *h);
/** Nothing of it is to be trusted any more: a new lineage, the generations are dropped. */
void vc_holding_quarantine(struct vc_holding *h);
void vc_holding_close(struct vc_holding *h);
/** A new lineage with a random key. */
int vc_lineage_random(struct vc_lineage *l, bool exposed, struct vc_err *err) VC_NODISCARD;

/** Ends a transaction whose migration failed: what it has is kept for the next attempt. @txn:
 * taken; NULL is fine. */
void vc_session_keep(struct vc_txn *txn, const struct vc_txn_note *note, const struct vc_log *log);

/** The end of a session, after the switch: exchanges COMMITTED, notes in the store whether both
 * ends have the same, and says CLOSE. @root: NULL if this host keeps nothing. */
void vc_session_confirm(struct vc_link *link, struct vc_inbox *in, struct vc_holding *h,
                        const struct vc_id *gen, const uint8_t *root, bool *confirmed,
                        const struct vc_log *log);

/** Says CLOSE and waits (not for long) until the other end has hung up. */
void vc_session_bye(struct vc_link *link, struct vc_inbox *in);

/** Sends a record of up to 8 KiB that @encode writes. VC_E_PEER_LOST. */
#define VC_SESSION_SEND(link, type, encode, msg, err)                         \
    ({                                                                        \
        uint8_t _buf[8192];                                                   \
        struct vc_writer _w = vc_writer(_buf, sizeof(_buf));                  \
        int _rc;                                                              \
        encode(&_w, (msg));                                                   \
        _rc = vc_session_send((link), (type), _buf, (uint32_t)_w.len, (err)); \
        vc_wipe(_buf, _w.len); /* it may hold a key */                        \
        _rc;                                                                  \
    })
int vc_session_send(struct vc_link *link, uint8_t type, const void *p, uint32_t n,
                    struct vc_err *err) VC_NODISCARD;
/** The next frame, which must be of that type. VC_E_PEER_LOST, VC_E_PROTOCOL, the peer's error. */
int vc_session_expect(struct vc_link *link, uint8_t type, struct vc_link_frame **out,
                      struct vc_err *err) VC_NODISCARD;

#endif
