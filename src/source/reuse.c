/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/reuse.h"

/* Theory of operation
 *
 * READING: everything, until the destination's time has gone into reading for long enough.
 * SENDING: once what was decided upon before has arrived, each window shows how fast the link and
 * the processors are. They take some time to come up to it: new windows are looked at as long as
 * each is much better.
 * BALANCED: with a disk of d bytes/s beside a link of l, both are done at the same time if
 * d / (d + l) is read. Neither rate can be seen while the other one is waited for; but there are
 * bounds. Of a time in which R bytes/s were read and S sent, and a part f went into waiting for the
 * disk, the disk was busy for f at least and all else for 1 - f, so
 *
 *     R <= d <= R / f        S <= l <= S / (1 - f)
 *
 * The rates are kept within these bounds. Where the disk is waited for too much, they move to what
 * gives it less to do, and the other way round. The disk's part of the time may be twice that of
 * waiting for the link: a page that is waited for while the link goes on costs nothing. */

/* ---- READING ---- */

/* Of the destination's time: its disk is waited for. */
#define WAITED_FOR 0.35

/* ---- SENDING ---- */

/* Of the time: the link is waited for and nothing else. */
#define ONLY 0.8
/* So many windows may it take to come up to its speed, as long as each is so much better, and not
 * hopeless beside the disk. */
#define MAX_WINDOWS 5
#define BETTER 1.2
#define HOPELESS 0.3
/* So fast must sending be beside the disk, as it gives up much of what reuse saves. */
#define WORTH 0.75

/* ---- BALANCED ---- */

/* How long it takes until what went on counts half: a disk that is held to a rate by the kernel
 * reads by fits and starts, ten times a second. */
#define MEMORY_NS 200e6
/* Of the time: the disk is waited for so little that it could do more. */
#define LITTLE 0.12
/* So much may be amiss. */
#define TOLERATED 0.1
/* So fast must both be together, beside sending alone; and what that was is no truth for ever. */
#define NO_SLOWER 0.95
#define FORGOTTEN 0.98
/* Steps in which the disk is given more to do, and those after so many of them on end. */
#define MORE 1.1
#define FAR_MORE 1.25
#define MANY_STEPS 6
/* From this share on there is nothing to be gained. */
#define NEARLY_ALL 0.9

/* What went on between two reports. */
struct span {
    uint64_t ns, read_bytes, sent_bytes;
    double reading, waiting; /* parts of the time */
};

static struct span between(const struct vc_wire_reads *from, const struct vc_wire_reads *to)
{
    struct span s = {.ns = to->elapsed_ns - from->elapsed_ns,
                     .read_bytes = to->bytes - from->bytes};
    uint64_t content = to->content_bytes - from->content_bytes;

    /* What deltas are made against is read as well. */
    s.sent_bytes = content - VC_MIN(content, s.read_bytes);
    if (s.ns) {
        s.reading = (double)(to->reading_ns - from->reading_ns) / (double)s.ns;
        s.waiting = (double)(to->waiting_ns - from->waiting_ns) / (double)s.ns;
    }
    return s;
}

static double rate(uint64_t bytes, uint64_t ns)
{
    return (double)bytes * 1e9 / (double)ns;
}

void vc_reuse_init(struct vc_reuse *r)
{
    *r = (struct vc_reuse){.share = VC_REUSE_ALL, .hold_ns = VC_REUSE_HOLD_NS};
}

/* The share with which a disk and a link of these rates have done their parts at the same time. */
static unsigned balance(double disk, double link)
{
    double share = VC_REUSE_ALL * disk / (disk + link) + 0.5;

    return share < 1 ? 1 : VC_MIN((unsigned)share, VC_REUSE_ALL);
}

static void set_share(struct vc_reuse *r, unsigned share)
{
    if (share == r->share)
        return;
    r->share = share;
    r->settled_at_bytes = r->last.content_bytes + VC_REUSE_UNDER_WAY_BYTES;
}

static void read_all(struct vc_reuse *r)
{
    set_share(r, VC_REUSE_ALL);
    r->phase = VC_REUSE_READING;
}

/* Everything is read: is the disk waited for? */
static void reading(struct vc_reuse *r, uint64_t now_ns)
{
    struct span s = between(&r->begun, &r->last);

    if (s.ns < VC_REUSE_NOTICE_NS)
        return;
    if (s.reading < WAITED_FOR || now_ns < r->held_until_ns) {
        r->begun = r->last;
        return;
    }
    if (s.read_bytes < VC_REUSE_NOTICE_BYTES ||
        (double)s.ns < VC_REUSE_NOTICE_NS * rate(s.read_bytes, s.ns) / VC_REUSE_SLOW_BPS)
        return;
    r->disk = rate(s.read_bytes, s.ns);
    r->link = 0;
    r->windows = 0;
    r->arrived = false;
    r->phase = VC_REUSE_SENDING;
    set_share(r, 1);
}

/* Whether the span since the window's begin says how fast sending is. A link that is slow says so
 * with little. */
static bool shows_sending(const struct span *s)
{
    return s->ns >= VC_REUSE_WINDOW_NS &&
           (s->sent_bytes >= VC_REUSE_WINDOW_BYTES ||
            (s->waiting > ONLY && s->sent_bytes >= VC_REUSE_WINDOW_BYTES / 8));
}

static void begin_balance(struct vc_reuse *r)
{
    const double ns = VC_REUSE_WINDOW_NS;

    r->lately.ns = ns;
    r->lately.read_bytes = r->disk * ns / 1e9;
    r->lately.sent_bytes = r->link * ns / 1e9;
    r->lately.reading_ns = r->lately.waiting_ns = ns * LITTLE;
    r->phase = VC_REUSE_BALANCED;
    set_share(r, balance(r->disk, r->link));
}

/* Nearly everything is sent: how fast? */
static void sending(struct vc_reuse *r, uint64_t now_ns, const struct vc_wire_reads *before)
{
    struct span latest = between(before, &r->last), s;
    double link;

    if (!r->arrived && latest.read_bytes >= latest.sent_bytes) { /* decided upon before */
        s = between(&r->begun, &r->last);
        if (s.reading > WAITED_FOR)
            r->disk = rate(s.read_bytes, s.ns);
        return;
    }
    if (!r->arrived) {
        r->arrived = true;
        r->begun = r->last; /* what the link had brought while the disk was read says nothing */
    }
    s = between(&r->begun, &r->last);
    if (!shows_sending(&s))
        return;
    link = rate(s.sent_bytes, s.ns);
    r->begun = r->last;
    if (link > r->link * BETTER && link > r->disk * HOPELESS && ++r->windows < MAX_WINDOWS) {
        r->link = link;
        return;
    }
    r->link = VC_MAX(r->link, link);
    if (r->link < r->disk * WORTH) {
        r->held_until_ns = now_ns + r->hold_ns;
        r->hold_ns *= 2;
        read_all(r);
        return;
    }
    r->sending = r->link;
    begin_balance(r);
}

/* What went on lately: what is long ago counts less and less. */
static void note(struct vc_reuse *r, const struct span *s)
{
    double kept = MEMORY_NS / (MEMORY_NS + (double)s->ns);

    r->lately.ns = r->lately.ns * kept + (double)s->ns;
    r->lately.read_bytes = r->lately.read_bytes * kept + (double)s->read_bytes;
    r->lately.sent_bytes = r->lately.sent_bytes * kept + (double)s->sent_bytes;
    r->lately.reading_ns = r->lately.reading_ns * kept + s->reading * (double)s->ns;
    r->lately.waiting_ns = r->lately.waiting_ns * kept + s->waiting * (double)s->ns;
}

static double within(double x, double least, double most)
{
    return VC_MIN(VC_MAX(x, least), most);
}

/* Corrects the rates by what went on lately. */
static void weigh(struct vc_reuse *r)
{
    double reading = within(r->lately.reading_ns / r->lately.ns, 0.05, 0.95);
    double waiting = r->lately.waiting_ns / r->lately.ns;
    double read_rate = r->lately.read_bytes * 1e9 / r->lately.ns;
    double sent_rate = r->lately.sent_bytes * 1e9 / r->lately.ns;
    double most_disk = read_rate / reading, most_link = sent_rate / (1 - reading);
    double too_much = reading - 2 * waiting; /* there is for the disk to do */

    r->disk = within(r->disk, read_rate, most_disk);
    r->link = within(r->link, sent_rate, most_link);
    if (reading < LITTLE) {
        too_much = VC_MIN(too_much, -LITTLE);
    } else if (read_rate + sent_rate < r->sending * NO_SLOWER) {
        too_much = VC_MAX(too_much, reading);
        r->sending *= FORGOTTEN;
    }
    r->steps = too_much < -TOLERATED ? r->steps + 1 : 0;
    if (too_much > TOLERATED) {
        r->disk += too_much * (read_rate - r->disk);
        r->link += too_much * (most_link - r->link);
    } else if (too_much < -TOLERATED) {
        r->disk *= r->steps > MANY_STEPS ? FAR_MORE : MORE;
        r->disk = VC_MIN(r->disk, most_disk);
        if (waiting > reading)
            r->link += too_much * (r->link - sent_rate);
    }
}

/* Both are at work. */
static void balanced(struct vc_reuse *r, const struct vc_wire_reads *before)
{
    struct span s = between(before, &r->last);

    note(r, &s);
    if (r->last.content_bytes < r->settled_at_bytes ||
        r->last.elapsed_ns - r->begun.elapsed_ns < VC_REUSE_WINDOW_NS ||
        r->last.content_bytes - r->begun.content_bytes < VC_REUSE_WINDOW_BYTES)
        return;
    r->begun = r->last;
    weigh(r);
    set_share(r, balance(r->disk, r->link));
    if (r->share > VC_REUSE_ALL * NEARLY_ALL)
        read_all(r);
}

static bool is_later(const struct vc_wire_reads *m, const struct vc_wire_reads *before)
{
    return m->elapsed_ns >= before->elapsed_ns && m->waiting_ns >= before->waiting_ns &&
           m->reading_ns >= before->reading_ns && m->bytes >= before->bytes &&
           m->content_bytes >= before->content_bytes;
}

bool vc_reuse_report(struct vc_reuse *r, uint64_t now_ns, const struct vc_wire_reads *m)
{
    struct vc_wire_reads before = r->last;

    if (!is_later(m, &before))
        return false;
    r->last = *m;
    if (!r->has_begun) {
        r->has_begun = true;
        r->begun = *m;
        return true;
    }
    switch (r->phase) {
    case VC_REUSE_READING:
        reading(r, now_ns);
        break;
    case VC_REUSE_SENDING:
        sending(r, now_ns, &before);
        break;
    case VC_REUSE_BALANCED:
        balanced(r, &before);
        break;
    }
    return true;
}

bool vc_reuse_takes(unsigned share, struct vc_page page)
{
    unsigned part, turn = 0;

    if (share == VC_REUSE_ALL)
        return true;
    part = (unsigned)(page.n / VC_REUSE_RUN_PAGES) % VC_REUSE_ALL;
    /* Its bits the other way round: what is read lies spread among what is sent. */
    for (unsigned bit = 1; bit < VC_REUSE_ALL; bit *= 2)
        turn = turn * 2 + !!(part & bit);
    return turn < share;
}
