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

/* ---- the end of a postcopy's package ---- */

/* With its last byte the destination's QEMU may run the VM: from there on there is no way back to
 * the source's memory. */
struct package {
    uint64_t end;   /* where in the stream */
    unsigned spoil; /* so often the seal of the batch that holds the last byte is made wrong */
    unsigned came;  /* so often that batch came by */
    uint64_t from;  /* where it begins */
    bool right;     /* it went by with a seal that is right */
    bool early;     /* something of the batch was released, or acknowledged, before */
};

static bool holds_end(const struct package *p, const uint8_t *frame)
{
    uint64_t from = vc_load_le(frame + FRAME_HEAD + 8, 8);
    uint64_t bytes = vc_load_le(frame + FRAME_HEAD + 16, 4);

    return from < p->end && p->end <= from + bytes;
}

static void see_batch(struct package *p, uint8_t *frame)
{
    p->from = vc_load_le(frame + FRAME_HEAD + 8, 8);
    if (p->came++ < p->spoil)
        frame[FRAME_HEAD + VC_WIRE_BATCH_HEADER_BYTES - 1] ^= 1;
    else
        p->right = true;
}

static size_t watch_package(struct filter *f, bool to_dest, uint8_t *frame, size_t n)
{
    struct package *p = f->opaque;

    pthread_mutex_lock(&f->mu);
    /* Looked at whenever a frame comes by, before the good one does. */
    p->early |= p->came && !p->right && atomic_load(&f->got) > p->from;
    p->early |= !to_dest && !p->right && frame_type(frame) == VC_WIRE_ACK &&
                vc_load_le(frame + FRAME_HEAD + 8, 8) >= p->end;
    if (to_dest && frame_type(frame) == VC_WIRE_BATCH && holds_end(p, frame))
        see_batch(p, frame);
    pthread_mutex_unlock(&f->mu);
    return n;
}

/* A migration that switches to postcopy: the device state in a package behind the first pass, then
 * the pages that were taken back. Returns where the package ends. */
static size_t put_postcopy(struct buf *b, const struct memory *m, unsigned package_bytes)
{
    const uint64_t back[][2] = {{1 * PAGE, 2 * PAGE}};
    uint8_t bytes[4];
    size_t end;

    put_setup(b, m);
    put_part(b, 2, RAM_ID);
    for (unsigned i = 0; i < m->pages; i++)
        put_memory_page(b, m, i, i == 0);
    put_ram_end(b);
    put_discard(b, "pc.ram", back, 1);
    for (int i = 0; i < 4; i++)
        bytes[i] = (uint8_t)(package_bytes >> (24 - 8 * i));
    put_command(b, 7, bytes, sizeof(bytes)); /* PACKAGED */
    put_fill(b, 0xe7, package_bytes);
    end = b->n;
    put_part(b, 2, RAM_ID);
    put_memory_page(b, m, 1, true);
    put_memory_page(b, m, 2, false);
    put_ram_end(b);
    put_part(b, 3, RAM_ID);
    put_ram_end(b);
    put_u8(b, 0);
    return end;
}

static void spoil_package(struct lab *lab, unsigned package_bytes, unsigned spoil)
{
    struct buf stream = {0};
    struct package p = {.spoil = spoil};
    struct filter f = {.on_frame = watch_package, .opaque = &p};
    struct visit v = {.from = 1, .stream = &stream, .filter = &f};

    p.end = put_postcopy(&stream, &lab->memory, package_bytes);
    lab_restore(lab, lab->kept);
    lab_visit(lab, &v);
    assert_false(p.early);
    if (spoil < 2) {
        assert_int_equal(p.came, spoil + 1);
        assert_int_equal(conclude(lab, &v, WIRE, "the seal of a package's end", spoil), RESENT);
        assert_int_equal(v.source.result.resent_batches, spoil);
    } else {
        assert_int_equal(p.came, 2);
        assert_int_equal(v.source.rc, VC_E_SEAL);
        assert_int_equal(v.dest.rc, VC_E_SEAL);
        assert_true(atomic_load(&f.got) <= p.from); /* all threads have ended */
        assert_false(lab_has_generation(lab, 0));
        v.filter = NULL;
        assert_int_equal(conclude(lab, &v, WIRE, "the seal of a package's end, twice", 2), FAILED);
    }
    buf_free(&stream);
}

void the_end_of_a_package_waits_for_a_seal_that_is_right(void **state)
{
    /* In the batch of the command, and in one behind it. */
    static const unsigned lengths[] = {256, 50000, 700000};

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(lengths); i++)
        for (unsigned spoil = 1; spoil <= 2; spoil++)
            spoil_package(the_lab, lengths[i], spoil);
}

/* ---- an answer that never comes ---- */

/* The first ACK behind the first pages becomes bytes of the return path, which swallow SHUT, unless
 * that has passed already. */
static size_t swallow_shut(struct filter *f, bool to_dest, uint8_t *frame, size_t n)
{
    bool *done = f->opaque;

    if (!to_dest && !*done && frame_type(frame) == VC_WIRE_ACK &&
        vc_load_le(frame + FRAME_HEAD, 8) == 2) {
        memcpy(frame + FRAME_HEAD, "\0\3\0\x40", 4); /* a message of 64 bytes */
        frame[4] = VC_WIRE_RETURN;
        *done = true;
    }
    return n;
}

/* What brings SHUT becomes a frame that nobody has to know. */
static size_t hide_shut(struct filter *f, bool to_dest, uint8_t *frame, size_t n)
{
    bool *done = f->opaque;

    if (!to_dest && frame_type(frame) == VC_WIRE_RETURN) {
        frame[4] = 0x57;
        frame[5] = VC_WIRE_FRAME_OPTIONAL;
        *done = true;
    }
    return n;
}

static enum verdict lose_shut(struct lab *lab, filter_fn how)
{
    bool done = false;
    struct filter f = {.on_frame = how, .opaque = &done};
    struct visit v = {.from = 1, .filter = &f};

    lab_restore(lab, lab->kept);
    lab_visit(lab, &v);
    assert_true(done);
    v.filter = NULL;
    return conclude(lab, &v, WIRE, "SHUT is lost", 1);
}

/* Both sides are alive, and each could wait for the other: the source of a proxied migration for
 * SHUT, the destination for COMMITTED, or for the end of the source QEMU's stream. */
void a_source_does_not_wait_for_an_answer_that_has_passed(void **state)
{
    enum verdict verdict = lose_shut(the_lab, swallow_shut);

    (void)state;
    assert_true(verdict == FAILED || verdict == INTACT);
    assert_int_equal(lose_shut(the_lab, hide_shut), FAILED);
}
