/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SESSION_DISKS_H
#define VC_SESSION_DISKS_H

#include "qmp/qmp.h"

/* Private to src/session: disks of a VM that arrived and was not continued. QEMU has them inactive
 * until `cont` (capability late-block-activate). */

/** Before 10.0 QEMU ends in an assertion (bdrv_inactivate_recurse: BDRV_O_INACTIVE) if it migrates
 * a VM whose disks are inactive. */
#define VC_DISKS_INACTIVE_VERSION 1000

/** Activates the disks of a VM that does not run, without continuing it, and looks that they are.
 * No harm where they were. VC_E_QEMU_STATE: one cannot be activated, as where another QEMU holds
 * its lock; the VM stays as it is. */
int vc_disks_activate(struct vc_qmp *q, struct vc_err *err) VC_NODISCARD;

#endif
