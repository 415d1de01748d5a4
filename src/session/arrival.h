/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SESSION_ARRIVAL_H
#define VC_SESSION_ARRIVAL_H

#include "dest/dest.h"
#include "session/common.h"
#include "session/settings.h"

/* Private to src/session: the destination's side of one migration, shared by opening.c (HELLO to
 * START), dest.c (the phases behind it) and obey.c (the source's word). */

struct vc_qmp;

struct arrival {
    const struct vc_dest_session *o;
    struct vc_session_result *result;
    struct vc_link *link;
    struct vc_inbox inbox;
    struct vc_holding holding;
    struct vc_dest *pipeline;
    struct vc_qmp *qmp;          /* NULL: proxy */
    struct vc_settings settings; /* of QEMU, that were changed */
    bool was_parked;             /* ... of an interrupted postcopy, and kept for its rest */
    struct vc_wire_open open;
    char name[256];
    struct vc_wire_start start;
    uint8_t offered; /* vc_wire_base of our ACCEPT ... */
    bool of_partial; /* ... which names the partial generation */
    uint64_t features;
    const char *stream_suffix;      /* of the socket that QEMU was told to listen on, or NULL */
    bool recorded;                  /* a handover was begun, and is open */
    bool holds_record;              /* there is one that can be written */
    struct vc_handover interrupted; /* recover: the record that there was; state NONE: none */
    bool word_done;    /* it runs here, or is to stay paused here: the source knows, or will ask */
    bool is_void;      /* it will never run here */
    bool stopped_late; /* this vecycle is to stop, and waits for the end of a postcopy */
    bool about_to_run; /* it was continued, or is about to be, by us or by somebody */
    bool end_seen;     /* the end of the QMP connection was noticed ... */
    bool unwatched; /* ... and QEMU's process did not end with it: somebody may have continued it */
    struct vc_progress progress;
};

/** HELLO to START, within a time and unless cancelled. 0; VC_EOF: a word was repeated, and that was
 *  all; or an error. */
int vc_arrival_open(struct arrival *a, struct vc_err *err) VC_NODISCARD;
/** The generation that the base of START names, or NULL. */
struct vc_gen *vc_arrival_base(const struct arrival *a);
/** Whether the peer may have the VM of OPEN at that socket; NULL: may it talk to us at all? 0, or
 *  an error that ends the session. */
int vc_arrival_ask_leave(struct arrival *a, const char *name, struct vc_err *err) VC_NODISCARD;
/** Records durably that the VM will never run here; only then may anybody be told. */
int vc_arrival_make_void(struct arrival *a, struct vc_err *err) VC_NODISCARD;
/** Connects to QEMU's QMP at the socket of that name, over a connection that was parked if there is
 *  one: QEMU serves one client at a time. */
int vc_arrival_connect(struct arrival *a, const char *name, struct vc_err *err) VC_NODISCARD;
/** Takes in what QEMU has told meanwhile; never waits. */
void vc_arrival_note_events(struct arrival *a);
/** Notices, and records, that somebody has continued the VM before the source decided. */
void vc_arrival_watch(struct arrival *a);
/** Whether it may run before its memory is complete. */
bool vc_arrival_is_postcopy(const struct arrival *a);
/** Obeys a WORD frame and answers it. An error ends the session. */
int vc_arrival_obey(struct arrival *a, const struct vc_link_frame *f,
                    struct vc_err *err) VC_NODISCARD;
/** A session of mode 3: a word that was lost is given again. */
int vc_arrival_repeat_word(struct arrival *a, struct vc_err *err) VC_NODISCARD;

#endif
