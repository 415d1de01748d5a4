/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "damage.h"

#include "base/bytes.h"
#include "wire/wire.h"

/* Damage that meets the order of things: seals that fail again, and pages that change while an
 * older version of them is being repaired. */

/* ---- a seal that fails twice ---- */

struct spoil {
    uint64_t seq;
    unsigned times;
};

static size_t spoil_seal(struct filter *f, bool to_dest, uint8_t *frame, size_t n)
{
    struct spoil *s = f->opaque;

    if (to_dest && frame_type(frame) == VC_WIRE_BATCH &&
        vc_load_le(frame + FRAME_HEAD, 8) == s->seq) {
        frame[FRAME_HEAD + VC_WIRE_BATCH_HEADER_BYTES - 1] ^= 1;
        s->times++;
    }
    return n;
}

void a_seal_that_fails_twice_quarantines_both_ends(void **state)
{
    struct lab *lab = the_lab;

    (void)state;
    for (uint64_t seq = 1; seq <= 2; seq++) { /* what begins the stream, and pages */
        struct spoil spoil = {.seq = seq};
        struct filter f = {.on_frame = spoil_seal, .opaque = &spoil};
        struct visit v = {.from = 1, .filter = &f}, again = {.from = 1}, back = {.from = 0};

        lab_restore(lab, lab->kept);
        lab_visit(lab, &v);
        assert_int_equal(spoil.times, 2);
        assert_int_equal(judge(&v), FAILED);
        assert_int_equal(v.source.rc, VC_E_SEAL);
        assert_int_equal(v.dest.rc, VC_E_SEAL);
        assert_false(lab_has_generation(lab, 0));
        assert_false(lab_has_generation(lab, 1));
        tally(WIRE, "a seal, twice", 1, FAILED);

        lab_visit(lab, &again);
        assert_int_equal(judge(&again), NO_REUSE);
        assert_int_equal(again.source.result.base, VC_WIRE_BASE_NONE);
        lab_visit(lab, &back); /* and what that one left is good for reuse */
        assert_int_equal(judge(&back), INTACT);
    }
}

/* ---- a page that is overwritten while an older version is repaired ---- */

struct hold {
    uint64_t until; /* REPAIR waits until so much of the stream is on its way */
    uint64_t sent;
    unsigned came;
};

static size_t hold_repair(struct filter *f, bool to_dest, uint8_t *frame, size_t n)
{
    struct hold *h = f->opaque;

    pthread_mutex_lock(&f->mu);
    if (to_dest && frame_type(frame) == VC_WIRE_BATCH) {
        h->sent = vc_load_le(frame + FRAME_HEAD + 8, 8) + vc_load_le(frame + FRAME_HEAD + 16, 4);
        pthread_cond_broadcast(&f->changed);
    } else if (!to_dest && frame_type(frame) == VC_WIRE_REPAIR) {
        h->came++;
        while (h->sent < h->until && !f->over)
            pthread_cond_wait(&f->changed, &f->mu);
    }
    pthread_mutex_unlock(&f->mu);
    return n;
}

static void overwritten_meanwhile(struct lab *lab, bool parted, const char *kind)
{
    struct memory later = lab->memory;
    struct buf stream = {0}, tail = {0};
    struct hold hold = {0};
    struct filter f = {.on_frame = hold_repair, .opaque = &hold, .gated = parted};
    struct visit v = {.from = 1, .stream = &stream, .filter = &f};

    for (unsigned i = 1; i < later.pages; i += 16)
        later.version[i] = 200; /* 16 pages: they fit on the wire beside what is not acknowledged */
    put_migration(&stream, &lab->memory, &later);
    put_tail(&tail);
    hold.until = stream.n - tail.n - 16;
    buf_free(&tail);
    lab_restore(lab, parted ? lab->parted : lab->kept);
    spoil_images(&lab->host[0], &(parted ? lab->parted : lab->kept)[0]);
    lab_visit(lab, &v);
    assert_int_equal(conclude(lab, &v, IMAGE, kind, 1), REPAIRED);
    assert_true(hold.came > 0);
    assert_int_equal(lab_bad_pages(lab, 0), 0);
    buf_free(&stream);
}

void a_repair_gives_the_page_of_its_place_in_the_stream(void **state)
{
    (void)state;
    overwritten_meanwhile(the_lab, false, "overwritten meanwhile");
    overwritten_meanwhile(the_lab, true, "overwritten meanwhile, parted");
}
