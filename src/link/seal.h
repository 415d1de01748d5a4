/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_LINK_SEAL_H
#define VC_LINK_SEAL_H

#include <stdint.h>

#include "base/err.h"
#include "base/units.h"
#include "digest/digest.h"
#include "wire/wire.h"

/* The chain of seals of a channel (docs/formats/wire.md, "The seal" and section 4): what both ends
 * feed it with beside the bytes of the stream. @d: a digester of VC_DIGEST_SEAL. All return 0 or
 * VC_E_FAILED (OpenSSL); the digester's thread. */

/** seal(0) of a channel. */
int vc_seal_first(struct vc_digester *d, const struct vc_id *session, uint16_t channel,
                  struct vc_digest *out, struct vc_err *err) VC_NODISCARD;
/** Begins a batch's seal with the one before and the batch's place. Then its content goes into
 *  vc_digest_update(), its *invalidate* runs into vc_seal_invalidate(), and vc_digest_end() ends.
 */
int vc_seal_begin(struct vc_digester *d, const struct vc_digest *before, uint64_t seq,
                  uint64_t position, struct vc_err *err) VC_NODISCARD;
/** Adds a run if it is an *invalidate* run. */
int vc_seal_invalidate(struct vc_digester *d, const struct vc_wire_run *run,
                       struct vc_err *err) VC_NODISCARD;

#endif
