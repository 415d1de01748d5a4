/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SESSION_SETTINGS_H
#define VC_SESSION_SETTINGS_H

#include "qmp/qmp.h"
#include "store/store.h"

/* Private to src/session: what is changed in a QEMU for one migration, and put back after it
 * (docs/internals/handover.md, "QEMU as it was found").
 *
 * Each change is written into the record before the command is sent, so that whoever finds the
 * record can undo it. A value that is neither what was set nor what had been set before is somebody
 * else's by then, and stays.
 *
 * Thread rule: the session's thread. */

/** Parameters with text. What they are set to for a migration is fixed by their number. */
enum vc_setting_text {
    VC_SETTING_TLS_CREDS = 1, /* "": no TLS within the stream */
    VC_SETTING_MODE = 2,      /* "normal" */
};

struct vc_settings {
    struct vc_qmp *qmp;       /* borrowed; NULL: nothing is changed */
    struct vc_vm *vm;         /* borrowed; whose record has the list; NULL: memory alone */
    const struct vc_log *log; /* borrowed */
    struct vc_id uuid;
    uint32_t n;
    struct vc_handover_setting list[VC_HANDOVER_MAX_SETTINGS];
};

/** Begins an empty list, and looks who QEMU is. */
void vc_settings_init(struct vc_settings *s, struct vc_qmp *q, const struct vc_id *uuid,
                      const struct vc_log *log);
/** Takes over what an earlier session has left changed in this QEMU, as its record says. */
void vc_settings_take_over(struct vc_settings *s, const struct vc_handover *h);
/** From now on the list is in that VM's record too, which was begun. */
void vc_settings_record(struct vc_settings *s, struct vc_vm *vm);

/** Turns capabilities on and off, as vc_qmp_set_capabilities(). */
int vc_settings_capabilities(struct vc_settings *s, const struct vc_qmp_capability *list, size_t n,
                             struct vc_err *err) VC_NODISCARD;
/** Sets a numeric parameter. VC_NOT_FOUND: this QEMU has none of that name. VC_AGAIN: somebody else
 *  has set it since this list did; it is theirs now, and as they have set it. */
int vc_settings_number(struct vc_settings *s, const char *name, uint64_t v,
                       struct vc_err *err) VC_NODISCARD;
/** Sets a parameter to what a migration needs. VC_E_QEMU_STATE: what it is cannot be recorded. */
int vc_settings_text(struct vc_settings *s, enum vc_setting_text which,
                     struct vc_err *err) VC_NODISCARD;
/** QEMU's name of it, and what it is set to. */
const char *vc_setting_text_name(enum vc_setting_text which);
const char *vc_setting_text_value(enum vc_setting_text which);
/** A VM that has arrived is not to start by itself (`stop` in state inmigrate). VC_E_QEMU_STATE:
 *  nothing waits there any more; what runs there runs on. */
int vc_settings_autostart_off(struct vc_settings *s, struct vc_err *err) VC_NODISCARD;

/** Puts back what can be put back now; the rest stays in the list, and in the record. Trouble is
 *  logged. Of a migration that is under way only numbers are. */
void vc_settings_put_back(struct vc_settings *s);
/** The same from a record that somebody has found, over a connection to the VM's QEMU. True: *h has
 *  changed, and is to be written. */
bool vc_settings_restore(struct vc_qmp *q, const struct vc_id *uuid, struct vc_handover *h,
                         const struct vc_log *log);

#endif
