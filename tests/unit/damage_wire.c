/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "damage.h"

#include "base/bytes.h"
#include "wire/wire.h"

/* Damage to what crosses the wire, in either direction, in every kind of frame. Transports do not
 * do that; the next one to write here may be a program with an error in it. */

/* How to bring the frames about. */
enum scene {
    RETURN,     /* the VM returns; both hosts have the same generation */
    REPAIRS,    /* the same, and files of the destination are damaged */
    PARTED_WAY, /* it returns from a third host: the destination announces */
    WRONG_WAY,  /* the same, and the announcement is wrong in one place: a batch is sent again */
    SECOND,     /* as RETURN, and QEMU makes a second connection: channel 1 */
    SLOW,       /* as RETURN, and the destination's disk is slow: it says READS */
    GIVEN_UP,   /* as RETURN, and the destination's QEMU goes away: STREAM_FAILED */
    SHIFTED,    /* as RETURN, and every page has another place than before */
    MANY,       /* as RETURN, and every page comes again and again: codec recent */
    RECORDED,   /* the VM returns with the very stream of a real QEMU with which it had left */
};

/* A target's visits are multiplied by this, and shared by the workers. */
#define WIRE_TIMES 5u

/* RECENT: all of a batch of that codec. */
enum part { WHOLE, HEAD, FIELDS, SEAL, RUNS, BODY, RECENT };

struct target {
    const char *kind;
    uint8_t type;
    bool to_dest;
    enum part part;
    enum scene scene;
    unsigned visits;
    uint16_t channel;
};

static const struct target targets[] = {
    {"HELLO to the destination", VC_WIRE_HELLO, true, WHOLE, RETURN, 8},
    {"HELLO to the source", VC_WIRE_HELLO, false, WHOLE, RETURN, 8},
    {"OPEN", VC_WIRE_OPEN, true, WHOLE, RETURN, 10},
    {"ACCEPT", VC_WIRE_ACCEPT, false, WHOLE, RETURN, 10},
    {"START", VC_WIRE_START, true, WHOLE, RETURN, 10},
    {"BLOCKS", VC_WIRE_BLOCKS, true, WHOLE, RETURN, 16},
    {"BATCH, frame", VC_WIRE_BATCH, true, HEAD, RETURN, 24},
    {"BATCH, header", VC_WIRE_BATCH, true, FIELDS, RETURN, 32},
    {"BATCH, seal", VC_WIRE_BATCH, true, SEAL, RETURN, 16},
    {"BATCH, runs", VC_WIRE_BATCH, true, RUNS, RETURN, 48},
    {"BATCH, body", VC_WIRE_BATCH, true, BODY, RETURN, 32},
    {"BATCH, announced", VC_WIRE_BATCH, true, WHOLE, PARTED_WAY, 32},
    {"EOF to the destination", VC_WIRE_EOF, true, WHOLE, RETURN, 8},
    {"EOF to the source", VC_WIRE_EOF, false, WHOLE, RETURN, 8},
    {"ACK", VC_WIRE_ACK, false, WHOLE, RETURN, 24},
    {"RETURN", VC_WIRE_RETURN, false, WHOLE, RETURN, 16},
    {"COMMITTED to the destination", VC_WIRE_COMMITTED, true, WHOLE, RETURN, 10},
    {"COMMITTED to the source", VC_WIRE_COMMITTED, false, WHOLE, RETURN, 10},
    {"CLOSE", VC_WIRE_CLOSE, true, WHOLE, RETURN, 4},
    {"REPAIR", VC_WIRE_REPAIR, false, WHOLE, REPAIRS, 24},
    {"REPAIRED", VC_WIRE_REPAIRED, true, WHOLE, REPAIRS, 32},
    {"RESEND", VC_WIRE_RESEND, false, WHOLE, WRONG_WAY, 16},
    {"BATCH, sent again", VC_WIRE_BATCH, true, WHOLE, WRONG_WAY, 24},
    {"ANNOUNCE_BLOCKS", VC_WIRE_ANNOUNCE_BLOCKS, false, WHOLE, PARTED_WAY, 16},
    {"ANNOUNCE", VC_WIRE_ANNOUNCE, false, WHOLE, PARTED_WAY, 32},
    {"ANNOUNCE_END", VC_WIRE_ANNOUNCE_END, false, WHOLE, PARTED_WAY, 6},
    {"BATCH of channel 1", VC_WIRE_BATCH, true, WHOLE, SECOND, 24, 1},
    {"BATCH of channel 1, header", VC_WIRE_BATCH, true, FIELDS, SECOND, 16, 1},
    {"EOF of channel 1", VC_WIRE_EOF, true, WHOLE, SECOND, 8, 1},
    {"ACK of channel 1", VC_WIRE_ACK, false, WHOLE, SECOND, 16, 1},
    {"READS", VC_WIRE_READS, false, WHOLE, SLOW, 8},
    {"BATCH, moved", VC_WIRE_BATCH, true, WHOLE, SHIFTED, 16},
    {"BATCH, moved, runs", VC_WIRE_BATCH, true, RUNS, SHIFTED, 32},
    {"BATCH, recent", VC_WIRE_BATCH, true, RECENT, MANY, 24},
    {"KEEPS", VC_WIRE_KEEPS, false, WHOLE, MANY, 12},
    {"STREAM_FAILED", VC_WIRE_STREAM_FAILED, false, WHOLE, GIVEN_UP, 10},
};

/* Numbers for the thread of one direction. */
static uint64_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 33;
}

#define NO_FRAME UINT32_MAX

struct attack {
    const struct target *t;
    unsigned nth;  /* which frame of the type */
    unsigned came; /* so many came by */
    uint64_t numbers;
    bool cut, done;
    const struct lie *lie; /* WRONG_WAY */
};

/* ---- a wrong announcement ---- */

struct lie {
    unsigned page;           /* the destination has another content of it ... */
    struct vc_digest digest; /* ... and shall seem to have this one */
};

static void make_lie(struct lab *lab, struct lie *lie)
{
    lie->page = 0;
    while (!(lab->now.version[lie->page] == 13 && lab->memory.version[lie->page]))
        lie->page++;
    lab_digest(lab, 1, lie->page, 13, &lie->digest);
}

static void tell_lie(const struct lie *lie, uint8_t *frame, size_t n)
{
    struct vc_reader r = vc_reader(frame + FRAME_HEAD, n - FRAME_HEAD);
    uint64_t page;

    vc_read_u32(&r);
    page = vc_read_u64(&r);
    while (!r.failed && vc_reader_left(&r)) {
        uint8_t held = vc_read_u8(&r);
        uint64_t count = vc_read_varint(&r);

        if (held == VC_WIRE_HELD) {
            uint8_t *p = (uint8_t *)vc_read_bytes(&r, count * 8);

            if (p && lie->page >= page && lie->page - page < count)
                memcpy(p + 8 * (lie->page - page), lie->digest.b, 8);
        }
        page += count;
    }
}

/* ---- the attack ---- */

/* The stretch of a frame that is a target's part; false: it has none. */
static bool find_part(enum part part, const uint8_t *frame, size_t n, size_t *from, size_t *to)
{
    size_t runs = FRAME_HEAD + VC_WIRE_BATCH_HEADER_BYTES, bytes;

    *from = 0;
    *to = n;
    if (part == WHOLE || part == RECENT)
        return part == WHOLE || frame[FRAME_HEAD + 28] == VC_WIRE_CODEC_RECENT;
    bytes = vc_load_le(frame + FRAME_HEAD + 20, 4);
    if (frame[FRAME_HEAD + 28] != VC_WIRE_CODEC_NONE)
        bytes = 0;
    *from = part == HEAD ? 0 : part == FIELDS ? FRAME_HEAD : part == SEAL ? runs - 16 : runs;
    *to = part == HEAD     ? FRAME_HEAD
          : part == FIELDS ? runs - 16
          : part == SEAL   ? runs
          : part == RUNS   ? runs + bytes
                           : n;
    if (part == BODY)
        *from += bytes;
    return *from < *to;
}

static size_t attack(struct filter *f, bool to_dest, uint8_t *frame, size_t n)
{
    struct attack *a = f->opaque;
    size_t from, to;
    unsigned bits;

    if (a->lie && !to_dest && frame_type(frame) == VC_WIRE_ANNOUNCE)
        tell_lie(a->lie, frame, n);
    /* The rest of *a belongs to the thread of the direction that is attacked. */
    if (to_dest != a->t->to_dest || a->done || frame_type(frame) != a->t->type ||
        vc_load_le(frame + 6, 2) != a->t->channel || !find_part(a->t->part, frame, n, &from, &to) ||
        a->came++ < a->nth)
        return n;
    a->done = true;
    if (a->cut)
        return next(&a->numbers) % n;
    bits = next(&a->numbers) % 4 ? 1 : 2 + (unsigned)(next(&a->numbers) % 7);
    for (unsigned i = 0; i < bits; i++)
        frame[from + next(&a->numbers) % (to - from)] ^= (uint8_t)(1u << next(&a->numbers) % 8);
    return n;
}

static void set_scene(struct lab *lab, enum scene scene)
{
    bool parted = scene == PARTED_WAY || scene == WRONG_WAY;
    const struct pristine *start = scene == RECORDED ? lab->recorded_at
                                   : parted          ? lab->parted
                                                     : lab->kept;

    lab_restore(lab, start);
    if (scene == REPAIRS)
        spoil_images(&lab->host[0], &start[0]);
}

static bool visit_under(struct lab *lab, struct attack *a, struct visit *v, struct filter *f)
{
    *f = (struct filter){
        .on_frame = attack,
        .opaque = a,
        .gated = a->t->scene == PARTED_WAY || a->t->scene == WRONG_WAY,
    };
    *v = (struct visit){
        .from = 1,
        .filter = f,
        .second = a->t->scene == SECOND,
        .slow_disk = a->t->scene == SLOW,
        .stream = a->t->scene == RECORDED  ? &lab->recorded
                  : a->t->scene == SHIFTED ? &lab->shifted
                  : a->t->scene == MANY    ? &lab->rounds
                                           : NULL,
        .dest_ends_at = a->t->scene == GIVEN_UP ? lab->stream.n / 2 : 0,
    };
    /* A wrong length is found out by the silence that follows. Where the machine is too busy for so
     * short a time, the session fails, which is all that is asked of it. */
    if (a->nth != NO_FRAME && (a->t->part == WHOLE || a->t->part == HEAD || a->t->part == RECENT))
        v->dead_peer_ms = 500;
    set_scene(lab, a->t->scene);
    lab_visit(lab, v);
    return a->done;
}

/* How many frames of the target's kind there are if nothing is done to them. One at the very end
 * (EOF to the source) may come too late on a busy machine: then the visit is made again. */
static unsigned count_frames(struct lab *lab, const struct target *t, const struct lie *lie)
{
    struct attack a = {.t = t, .nth = NO_FRAME, .lie = lie};
    struct filter f;
    struct visit v;

    for (int i = 0; i < 20 && !a.came; i++) {
        visit_under(lab, &a, &v, &f);
        assert_int_equal(judge(&v) == FAILED, t->scene == GIVEN_UP);
        assert_true(v.side_whole || t->scene != SECOND);
        if (t->scene == WRONG_WAY)
            assert_int_equal(judge(&v), RESENT);
        assert_true(v.source.result.pages_moved > 10 || t->scene != SHIFTED);
        if (t->scene == REPAIRS)
            assert_int_equal(judge(&v), REPAIRED);
    }
    assert_true(a.came > 0);
    return a.came;
}

/* One visit in which the attack has struck: there may be fewer frames than were counted, and where
 * the machine is too busy for a short time-out, a session fails before they have come. */
static void strike(struct lab *lab, struct attack *a, struct visit *v, struct filter *f)
{
    for (unsigned tries = 0; !visit_under(lab, a, v, f); tries++) {
        assert_true(tries < 20);
        if (!v->dead_peer_ms)
            assert_int_equal(judge(v) == FAILED, a->t->scene == GIVEN_UP);
        else
            (void)judge(v);
        a->nth = a->nth % VC_MAX(a->came, 1u);
        a->came = 0;
    }
}

static void attack_target(struct lab *lab, const struct target *t, const struct lie *lie, bool cut)
{
    unsigned frames = count_frames(lab, t, lie);
    unsigned visits = lab_share(lab, cut ? t->visits + WORKERS : t->visits * WIRE_TIMES);

    for (unsigned i = 0; i < visits; i++) {
        struct attack a = {
            .t = t,
            .nth = (unsigned)(lab_rng() % frames),
            .numbers = lab_rng(),
            .cut = cut,
            .lie = lie,
        };
        struct filter f;
        struct visit v;
        char kind[40];

        strike(lab, &a, &v, &f);
        v.filter = NULL;
        v.dead_peer_ms = 0;
        snprintf(kind, sizeof(kind), "%s%s", cut ? "cut: " : "", t->kind);
        conclude(lab, &v, WIRE, kind, 1);
    }
}

static void attack_all(bool cut)
{
    struct lie lie;

    lab_restore(the_lab, the_lab->parted);
    make_lie(the_lab, &lie);
    for (size_t i = 0; i < VC_ARRAY_LEN(targets); i++)
        attack_target(the_lab, &targets[i], targets[i].scene == WRONG_WAY ? &lie : NULL, cut);
}

void damage_meets_what_a_real_qemu_has_sent(void **state)
{
    static const char *const streams[] = {"return-path", "rounds", "xbzrle", "postcopy",
                                          "postcopy-advise"};
    static const struct target targets_here[] = {
        {"recorded: BLOCKS", VC_WIRE_BLOCKS, true, WHOLE, RECORDED, 2},
        {"recorded: BATCH, header", VC_WIRE_BATCH, true, FIELDS, RECORDED, 4},
        {"recorded: BATCH, seal", VC_WIRE_BATCH, true, SEAL, RECORDED, 2},
        {"recorded: BATCH, body", VC_WIRE_BATCH, true, BODY, RECORDED, 8},
        {"recorded: ACK", VC_WIRE_ACK, false, WHOLE, RECORDED, 2},
        {"recorded: RETURN", VC_WIRE_RETURN, false, WHOLE, RECORDED, 2},
    };

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(streams); i++) {
        lab_record(the_lab, streams[i]);
        for (size_t k = 0; k < VC_ARRAY_LEN(targets_here); k++)
            attack_target(the_lab, &targets_here[k], NULL, false);
        damaged_store_of_a_recording(the_lab);
    }
}

void damaged_frames_are_noticed(void **state)
{
    (void)state;
    attack_all(false);
}

void a_connection_cut_anywhere_can_be_tried_again(void **state)
{
    (void)state;
    attack_all(true);
}

void a_false_prefix_costs_a_batch_and_no_page(void **state)
{
    static const struct target t = {"a false prefix", 0, false, WHOLE, WRONG_WAY, 1};
    struct attack a = {.t = &t, .nth = NO_FRAME};
    struct lie lie;
    struct filter f;
    struct visit v;

    (void)state;
    lab_restore(the_lab, the_lab->parted);
    make_lie(the_lab, &lie);
    a.lie = &lie;
    visit_under(the_lab, &a, &v, &f);
    assert_int_equal(conclude(the_lab, &v, WIRE, t.kind, 1), RESENT);
    assert_int_equal(v.source.result.resent_batches, 1);
    assert_true(v.source.result.pages_same > the_lab->now.pages / 2);
    assert_int_equal(lab_bad_pages(the_lab, 0), 0);
}
