/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SOURCE_RECENT_H
#define VC_SOURCE_RECENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/* In which batch each page went out last: up to there both hosts must have recorded before it can
 * be the past of the same page, sent again. A byte for a page, 0.02 % of its memory, is enough: of
 * a number only the rest of a division is kept, so that a page that went out long ago may seem to
 * have gone later. That costs a wait, and is never wrong. Belongs to the ingest thread. */

struct vc_recent {
    uint8_t *last; /* NULL: nothing is noted */
};

/** For that many pages, none of which went out. VC_E_NOMEM. */
int vc_recent_init(struct vc_recent *r, uint64_t pages, struct vc_err *err) VC_NODISCARD;
void vc_recent_fini(struct vc_recent *r);

/** The page is in batch @seq, with a content that is recorded. */
void vc_recent_sent(struct vc_recent *r, uint64_t page, uint64_t seq);
/** Likewise as zeroes, or nobody knows what it holds: n pages are no past for anything. */
void vc_recent_lost(struct vc_recent *r, uint64_t page, uint64_t n);
/** It has been in a batch. */
bool vc_recent_is_noted(const struct vc_recent *r, uint64_t page);
/** A batch before @seq that is not before the last one with the page; 0: none, or its content is no
 *  past, or not of a batch before. */
uint64_t vc_recent_before(const struct vc_recent *r, uint64_t page, uint64_t seq);

#endif
