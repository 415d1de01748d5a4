/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/fdio.h"
#include "digest/digest.h"
#include "source/pipeline.h"

/* Theory of operation
 *
 * One thread reads QEMU's socket into large buffers and never copies a page: parser items point
 * into the buffer, batches keep the buffer alive. Items are gathered into a small group, so that
 * digests are computed in batches while the pages are still in the cache; then each page is matched
 * against what the destination holds and appended to the open batch, whose running seal is fed on
 * the way. A batch ends when it is full, when its new data would keep the link busy for longer than
 * a few milliseconds, or when QEMU has nothing more to say and the sender is idle.
 *
 * Nothing is held back for good: an unfinished record is kept for at most PARTIAL_NS after the
 * input fell silent and then goes as opaque bytes. */

#define SLAB_BYTES_LEFT_MIN (64u << 10)
#define GROUP_ITEMS 64
/* Longer than QEMU sleeps when it has used up its bandwidth (migration.c, BUFFER_DELAY: 100 ms),
 * which it does in the middle of a record: a page that is flushed is lost to the checkpoint. */
#define PARTIAL_NS (150 * VC_NS_PER_MS)

struct group_item {
    struct vc_qs_item qs;
    const uint8_t *p;
};

struct ingest {
    struct vc_source *s;
    struct vc_qs_parser *parser;
    struct vc_digester *pages, *seals;
    struct vc_err err;

    struct vc_slab *slab;
    size_t used;   /* bytes of the slab read into */
    size_t parsed; /* ... of these parsed */

    struct group_item group[GROUP_ITEMS];
    uint32_t n_group;

    struct vc_src_batch *batch; /* open, or NULL */
    uint64_t next_seq, position;
    struct vc_digest seal; /* of the last closed batch */

    uint8_t *seen; /* first pass: one bit a page, blocks one behind the other */
    bool repeated; /* a page came again */
    uint64_t block_first[VC_MAX_BLOCKS];
    bool return_path;
    int local_map[VC_MAX_BLOCKS];
    double credit_bytes; /* pacing: bytes that may be read now */
    uint64_t credit_ns;
};

/* ---- batches ---- */

static int open_batch(struct ingest *in)
{
    uint8_t head[VC_DIGEST_BYTES + 16];
    int rc;

    in->batch = vc_src_batch_new(VC_SRC_BATCH, in->next_seq, in->position);
    if (!in->batch)
        return vc_err_set(&in->err, VC_E_NOMEM, "no memory for a batch");
    in->batch->ram = in->s->ram.n_blocks ? &in->s->ram : NULL;
    memcpy(head, in->seal.b, VC_DIGEST_BYTES);
    vc_store_le(head + VC_DIGEST_BYTES, in->next_seq, 8);
    vc_store_le(head + VC_DIGEST_BYTES + 8, in->position, 8);
    rc = vc_digest_begin(in->seals, &in->err);
    return rc ? rc : vc_digest_update(in->seals, head, sizeof(head), &in->err);
}

/* Invalidate runs count into the seal after the content (docs/formats/wire.md, "The seal"). */
static int seal_invalidations(struct ingest *in)
{
    for (uint32_t i = 0; i < in->batch->n_runs; i++) {
        const struct vc_wire_run *r = &in->batch->runs[i].run;
        uint8_t buf[21];
        int rc;

        if (r->kind != VC_RUN_INVALIDATE)
            continue;
        buf[0] = VC_RUN_INVALIDATE;
        vc_store_le(buf + 1, r->block, 4);
        vc_store_le(buf + 5, r->page.n, 8);
        vc_store_le(buf + 13, r->count, 8);
        rc = vc_digest_update(in->seals, buf, sizeof(buf), &in->err);
        if (rc)
            return rc;
    }
    return 0;
}

static int push(struct ingest *in, struct vc_src_batch *b)
{
    struct vc_source *s = in->s;

    vc_src_batch_ref(b);
    if (vc_queue_push(&s->to_record, &b->record_node, b->stream_bytes)) {
        vc_src_batch_unref(b);
        if (!atomic_load(&s->store_stuck)) {
            vc_src_batch_unref(b);
            return VC_CLOSED;
        }
    }
    atomic_fetch_add(&s->unsent, 1);
    if (vc_queue_push(&s->to_send, &b->send_node, b->data_bytes + b->opaque_bytes + 1024u)) {
        vc_src_batch_unref(b);
        return VC_CLOSED;
    }
    return 0;
}

static int close_batch(struct ingest *in)
{
    struct vc_src_batch *b = in->batch;
    int rc;

    if (!b)
        return 0;
    rc = seal_invalidations(in);
    if (!rc)
        rc = vc_digest_end(in->seals, &in->seal, &in->err);
    if (rc)
        return rc;
    b->seal = in->seal;
    in->batch = NULL;
    in->next_seq++;
    in->position += b->stream_bytes;
    vc_count(&in->s->n.batches, 1);
    return push(in, b);
}

static int push_mark(struct ingest *in, enum vc_src_item item)
{
    struct vc_src_batch *b;
    int rc = close_batch(in);

    if (rc)
        return rc;
    b = vc_src_batch_new(item, 0, 0);
    if (!b)
        return vc_err_set(&in->err, VC_E_NOMEM, "no memory for a batch");
    b->ram = &in->s->ram;
    return push(in, b);
}

/* Makes sure that the open batch can take so much more. */
static int make_room(struct ingest *in, size_t stream_bytes)
{
    int rc;

    if (in->batch && !vc_src_batch_has_room(in->batch, stream_bytes, in->slab)) {
        rc = close_batch(in);
        if (rc)
            return rc;
    }
    return in->batch ? 0 : open_batch(in);
}

static bool batch_has_enough_data(struct ingest *in)
{
    uint32_t most;

    if (!in->batch || in->batch->data_bytes + in->batch->opaque_bytes < VC_FLOW_BATCH_MIN_BYTES)
        return false;
    {
        VC_LOCKED(&in->s->mu);
        most = vc_flow_batch_data(&in->s->flow);
    }
    return in->batch->data_bytes + in->batch->opaque_bytes >= most;
}

static int add_opaque(struct ingest *in, const uint8_t *p, size_t n)
{
    while (n) {
        size_t k = VC_MIN(n, (size_t)VC_SRC_BATCH_STREAM_BYTES / 4);
        int rc = make_room(in, k);

        if (!rc)
            rc = vc_digest_update(in->seals, p, k, &in->err);
        if (rc)
            return rc;
        vc_src_batch_add_opaque(in->batch, in->slab, p, (uint32_t)k);
        p += k;
        n -= k;
        if (batch_has_enough_data(in)) {
            rc = close_batch(in);
            if (rc)
                return rc;
        }
    }
    return 0;
}

/* ---- pages ---- */

/* The first pass ends when every page has come, or one comes again: QEMU goes over memory in order,
 * so it has been at the end then. (Some pages never come: those that a balloon has reported free.)
 */
static void mark_seen(struct ingest *in, uint16_t block, struct vc_page page)
{
    uint64_t bit = in->block_first[block] + page.n;
    uint8_t mask = (uint8_t)(1u << (bit & 7));

    if (!in->seen)
        return;
    if (in->seen[bit >> 3] & mask) {
        in->repeated = true;
        return;
    }
    in->seen[bit >> 3] |= mask;
    /* Only this thread writes it. */
    atomic_store_explicit(&in->s->n.first_pass_left,
                          atomic_load_explicit(&in->s->n.first_pass_left, memory_order_relaxed) -
                              in->s->ram.page_bytes,
                          memory_order_relaxed);
}

static bool local_has(const struct ingest *in, uint16_t block, struct vc_page page,
                      const struct vc_digest *digest)
{
    const struct vc_gen *gen = in->s->o.local_gen;
    struct vc_digest d;
    int b;

    if (!gen || (b = in->local_map[block]) < 0)
        return false;
    return page.n < vc_ram_block_pages(vc_gen_ram(gen), (uint32_t)b) &&
           vc_gen_lookup(gen, (uint32_t)b, page, &d) == VC_PAGE_HELD &&
           !memcmp(d.b, digest->b, sizeof(d.b));
}

static int add_page(struct ingest *in, const struct group_item *g, const struct vc_digest *digest)
{
    static const struct vc_digest zero_digest;
    struct vc_source *s = in->s;
    const uint8_t *content = g->p + g->qs.header_bytes;
    struct vc_wire_run run = {
        .kind = VC_RUN_DATA,
        .named = g->qs.named,
        .block = g->qs.block,
        .page = g->qs.page,
        .count = 1,
    };
    bool local_same = false;
    int rc = make_room(in, g->qs.bytes);

    if (rc)
        return rc;
    mark_seen(in, run.block, run.page);
    if (!digest) {
        run.kind = VC_RUN_ZERO;
        run.as_page = true;
        digest = &zero_digest;
        vc_count(&s->n.pages_zero, 1);
    } else {
        local_same = local_has(in, run.block, run.page, digest);
        if (vc_remote_has(&s->remote, &s->ram, run.block, run.page, digest)) {
            run.kind = VC_RUN_SAME;
            vc_count(&s->n.pages_same, 1);
        } else {
            vc_count(&s->n.pages_data, 1);
            vc_count(&s->n.data_bytes, s->ram.page_bytes);
        }
    }
    rc = vc_digest_update(in->seals, g->p, g->qs.header_bytes, &in->err);
    if (!rc)
        rc = vc_digest_update(in->seals, digest->b, VC_DIGEST_BYTES, &in->err);
    if (rc)
        return rc;
    vc_src_batch_add_page(in->batch, in->slab, &run, g->qs.header_bytes, content, s->ram.page_bytes,
                          digest, local_same);
    return run.kind == VC_RUN_DATA && batch_has_enough_data(in) ? close_batch(in) : 0;
}

static int add_zero(struct ingest *in, const struct group_item *g)
{
    struct vc_wire_run run = {
        .kind = VC_RUN_ZERO,
        .named = g->qs.named,
        .block = g->qs.block,
        .page = g->qs.page,
        .count = 1,
    };
    int rc = make_room(in, g->qs.bytes);

    if (!rc)
        rc = vc_digest_update(in->seals, g->p, g->qs.bytes, &in->err);
    if (rc)
        return rc;
    mark_seen(in, run.block, run.page);
    vc_count(&in->s->n.pages_zero, 1);
    vc_src_batch_add_page(in->batch, in->slab, &run, (uint32_t)g->qs.bytes, NULL, 0, NULL, false);
    return 0;
}

static int add_invalidate(struct ingest *in, uint16_t block, struct vc_page page, uint64_t count)
{
    int rc = make_room(in, 0);

    if (rc || count == 0)
        return rc;
    for (uint64_t i = 0; i < count && in->seen && !in->repeated; i++)
        mark_seen(in, block, vc_page(page.n + i));
    vc_src_batch_add_invalidate(in->batch, block, page, count);
    vc_count(&in->s->n.pages_unknown, count);
    return 0;
}

/* Every page was mentioned, or the guest is paused for good: nothing to pace any more. */
static void first_pass_over(struct ingest *in)
{
    struct vc_source *s = in->s;

    free(in->seen);
    in->seen = NULL;
    {
        VC_LOCKED(&s->mu);
        s->first_pass_done = true;
    }
    vc_source_notify(s);
}

/* ---- the group ---- */

/* Digests the group's pages at once and appends its items in order. */
static int process_group(struct ingest *in)
{
    const uint8_t *pages[GROUP_ITEMS];
    struct vc_digest digests[GROUP_ITEMS];
    int8_t at[GROUP_ITEMS];
    uint32_t n = 0;
    int rc = 0;

    for (uint32_t i = 0; i < in->n_group; i++) {
        const struct group_item *g = &in->group[i];
        const uint8_t *content = g->p + g->qs.header_bytes;

        at[i] = -1;
        if (g->qs.kind != VC_QS_PAGE || vc_is_zero(content, in->s->ram.page_bytes))
            continue;
        at[i] = (int8_t)n;
        pages[n++] = content;
    }
    if (n)
        rc = vc_digest_pages(in->pages, pages, n, in->s->ram.page_bytes, digests, &in->err);
    for (uint32_t i = 0; i < in->n_group && !rc; i++) {
        const struct group_item *g = &in->group[i];

        if (g->qs.kind == VC_QS_ZERO)
            rc = add_zero(in, g);
        else
            rc = add_page(in, g, at[i] < 0 ? NULL : &digests[at[i]]);
    }
    in->n_group = 0;
    if (in->seen &&
        (in->repeated || !atomic_load_explicit(&in->s->n.first_pass_left, memory_order_relaxed)))
        first_pass_over(in);
    return rc;
}

/* ---- events of the parser ---- */

static int ram_known(struct ingest *in)
{
    struct vc_source *s = in->s;
    uint64_t pages = 0;

    s->ram = *vc_qs_ram(in->parser);
    for (uint32_t i = 0; i < s->ram.n_blocks; i++) {
        in->block_first[i] = pages;
        pages += vc_ram_block_pages(&s->ram, i);
    }
    in->seen = calloc(pages / 8 + 1, 1);
    if (!in->seen)
        return vc_err_set(&in->err, VC_E_NOMEM, "no memory for %llu pages",
                          (unsigned long long)pages);
    if (s->o.local_gen)
        vc_ram_map(&s->ram, vc_gen_ram(s->o.local_gen), in->local_map);
    atomic_store(&s->n.first_pass_left, vc_ram_bytes(&s->ram));
    {
        VC_LOCKED(&s->mu);
        s->ram_known = true;
    }
    vc_source_notify(s);
    return push_mark(in, VC_SRC_BLOCKS);
}

static bool carries_migration(const struct ingest *in)
{
    return vc_qs_is_qemu(in->parser) || vc_qs_is_recovery(in->parser);
}

static int not_qemu(struct ingest *in)
{
    return vc_err_set_hint(&in->err, VC_E_NOT_QEMU, "TLS inside QEMU and multifd are not taken",
                           "this is not a migration stream of QEMU: %s", vc_qs_reason(in->parser));
}

static int lost_track(struct ingest *in)
{
    struct vc_source *s = in->s;
    const char *reason = vc_qs_reason(in->parser);

    if (!carries_migration(in))
        return not_qemu(in);
    vc_log(s->o.log, VC_LOG_WARNING,
           "reuse is off, the stream passes as it is: %s; the checkpoint will not hold what passes "
           "now",
           reason);
    {
        VC_LOCKED(&s->mu);
        s->lost = true;
        snprintf(s->reason, sizeof(s->reason), "%s", reason);
    }
    for (uint32_t i = 0; i < s->ram.n_blocks; i++) {
        int rc = add_invalidate(in, (uint16_t)i, vc_page(0), vc_ram_block_pages(&s->ram, i));

        if (rc)
            return rc;
    }
    return 0;
}

/* Bytes of the stream up to here. */
static uint64_t stream_position(const struct ingest *in)
{
    return in->position + (in->batch ? in->batch->stream_bytes : 0);
}

static int events(struct ingest *in, const struct vc_qs_item *item)
{
    struct vc_source *s = in->s;
    int rc = 0;

    if (item->events & VC_QS_EV_RETURN_PATH)
        in->return_path = true;
    if ((item->events & VC_QS_EV_SECTION) && s->o.needs_return_path && !in->return_path)
        return vc_err_set_hint(
            &in->err, VC_E_NO_RETURN_PATH,
            "turn on the migration capability 'return-path' on the source QEMU",
            "the stream has no return path, so its sender would not notice a loss");
    if (item->events & VC_QS_EV_RAM)
        rc = ram_known(in);
    if (!rc && (item->events & VC_QS_EV_LOST))
        rc = lost_track(in);
    if (!rc && (item->events & VC_QS_EV_UNKNOWN))
        rc = add_invalidate(in, item->block, item->page, item->count);
    if (item->events & VC_QS_EV_PACKAGED) {
        VC_LOCKED(&s->mu);
        s->package_end = stream_position(in) + item->package_bytes;
    }
    if (item->events & (VC_QS_EV_RAM_END | VC_QS_EV_TAIL | VC_QS_EV_PACKAGED))
        first_pass_over(in);
    return rc;
}

/* Parses what was read and not parsed yet; with `flush` nothing is left. */
static int parse(struct ingest *in, bool flush)
{
    while (in->parsed < in->used) {
        const uint8_t *p = in->slab->data + in->parsed;
        struct vc_qs_item item;
        int rc = 0;

        vc_qs_next(in->parser, p, in->used - in->parsed, flush, &item);
        if (item.kind == VC_QS_NEED)
            break;
        in->parsed += item.bytes;
        if (item.kind == VC_QS_OPAQUE) {
            rc = process_group(in);
            /* Blocks are announced after the bytes that list them, other events before theirs:
             * either way at this place of the stream. */
            if (!rc && (item.events & ~VC_QS_EV_RAM))
                rc = events(in, &(struct vc_qs_item){
                                    .events = item.events & ~(unsigned)VC_QS_EV_RAM,
                                    .block = item.block,
                                    .page = item.page,
                                    .count = item.count,
                                    .package_bytes = item.package_bytes,
                                });
            if (!rc)
                rc = add_opaque(in, p, item.bytes);
            if (!rc && (item.events & VC_QS_EV_RAM))
                rc = events(in, &(struct vc_qs_item){.events = VC_QS_EV_RAM});
        } else {
            if (item.events)
                rc = process_group(in);
            if (!rc && item.events)
                rc = events(in, &item);
            in->group[in->n_group++] = (struct group_item){.qs = item, .p = p};
            if (!rc && in->n_group == GROUP_ITEMS)
                rc = process_group(in);
        }
        if (rc)
            return rc;
        if (!carries_migration(in) && in->position + in->parsed >= 8)
            return not_qemu(in);
    }
    return 0;
}

/* ---- reading ---- */

/* Room to read into; what is left unparsed moves along. */
static int make_space(struct ingest *in)
{
    struct vc_slab *next;
    size_t left = in->used - in->parsed;
    int rc;

    if (in->slab && in->s->slabs.slab_bytes - in->used >= SLAB_BYTES_LEFT_MIN)
        return 0;
    rc = process_group(in); /* its items point into the old slab, which a batch must hold */
    if (rc)
        return rc;
    rc = vc_slab_get(&in->s->slabs, UINT64_MAX, &next, &in->err);
    if (rc)
        return rc;
    if (left)
        memcpy(next->data, in->slab->data + in->parsed, left);
    vc_slab_unref(in->slab);
    in->slab = next;
    in->used = left;
    in->parsed = 0;
    return 0;
}

/* Bytes that may be read now; 0: not yet, *wait_ms says for how long. */
static size_t pace(struct ingest *in, size_t most, int *wait_ms)
{
    struct vc_source *s = in->s;
    uint64_t limit = atomic_load_explicit(&s->pace_limit_ns, memory_order_relaxed);
    uint64_t left = atomic_load_explicit(&s->n.first_pass_left, memory_order_relaxed);
    uint64_t now;
    double rate;

    *wait_ms = 0;
    if (!limit || !in->seen || !left)
        return most;
    {
        VC_LOCKED(&s->mu);
        rate = vc_flow_pace(vc_flow_data_rate(&s->flow), left, limit);
    }
    now = vc_now_ns();
    in->credit_bytes += rate * (double)(now - in->credit_ns) / 1e9;
    in->credit_ns = now;
    if (in->credit_bytes > rate / 100 + (256 << 10))
        in->credit_bytes = rate / 100 + (256 << 10);
    if (in->credit_bytes >= 16384)
        return VC_MIN(most, (size_t)in->credit_bytes);
    *wait_ms = 1;
    return 0;
}

/* The input is empty (or paced): whatever need not wait goes out. Returns the time to wait for
 * input, in ms (-1: as long as it takes). */
static int when_idle(struct ingest *in, uint64_t idle_since, int *wait_ms)
{
    int rc = process_group(in);

    *wait_ms = -1;
    if (rc)
        return rc;
    if (in->parsed < in->used) {
        if (vc_now_ns() - idle_since < PARTIAL_NS) {
            *wait_ms = 1;
        } else {
            rc = parse(in, true);
            if (!rc)
                rc = process_group(in);
            if (rc)
                return rc;
        }
    }
    if (in->batch) {
        if (atomic_load(&in->s->unsent) == 0)
            return close_batch(in);
        *wait_ms = 1;
    }
    return 0;
}

/* Reads once. 0, VC_EOF, or an error. */
static int read_more(struct ingest *in)
{
    int fd = in->s->o.qemu_fd;
    int wait_ms, rc = make_space(in); /* may take long */
    uint64_t idle_since = vc_now_ns();
    size_t most;
    ssize_t n;

    if (rc)
        return rc;
    for (;;) {
        int ready;

        most = pace(in, in->s->slabs.slab_bytes - in->used, &wait_ms);
        ready = most ? vc_wait_readable(fd, 0) : 0;
        if (ready)
            break;
        if (vc_source_stopping(in->s))
            return VC_CLOSED;
        if (most) {
            rc = when_idle(in, idle_since, &wait_ms);
            if (rc)
                return rc;
            vc_wait_readable(fd, wait_ms);
        } else {
            poll(NULL, 0, wait_ms);
            idle_since = vc_now_ns(); /* it is not QEMU that is silent */
        }
    }
    n = vc_read_some(fd, in->slab->data + in->used, most);
    if (n <= 0)
        return VC_EOF; /* a reset says no more than an end: the return path tells success apart */
    in->used += (size_t)n;
    in->credit_bytes -= (double)n;
    vc_count(&in->s->n.stream_bytes, (uint64_t)n);
    return 0;
}

static int run(struct ingest *in)
{
    int rc;

    while ((rc = read_more(in)) == 0) {
        rc = parse(in, false);
        if (rc)
            return rc;
    }
    if (rc != VC_EOF)
        return rc;
    rc = parse(in, true);
    if (!rc)
        rc = process_group(in);
    return rc ? rc : push_mark(in, VC_SRC_EOF);
}

static int prepare(struct ingest *in)
{
    const struct vc_lineage *l = &in->s->o.lineage;
    int rc = vc_qs_parser_new(0, &in->parser, &in->err);

    if (!rc)
        rc = vc_digester_new(l->algo, VC_DIGEST_PAGE, l->key, &in->pages, &in->err);
    if (!rc)
        rc = vc_digester_new(l->algo, VC_DIGEST_SEAL, l->key, &in->seals, &in->err);
    /* seal(0) */
    if (!rc)
        rc = vc_digest_begin(in->seals, &in->err);
    if (!rc)
        rc = vc_digest_update(in->seals, in->s->o.session.b, sizeof(in->s->o.session.b), &in->err);
    return rc ? rc : vc_digest_end(in->seals, &in->seal, &in->err);
}

void *vc_source_ingest_main(void *arg)
{
    struct ingest *in = calloc(1, sizeof(*in));
    struct vc_source *s = arg;
    int rc;

    if (!in) {
        struct vc_err err;

        vc_err_set(&err, VC_E_NOMEM, "no memory for the intake");
        vc_source_abort(s, &err);
        return NULL;
    }
    in->s = s;
    in->next_seq = 1;
    in->credit_ns = vc_now_ns();
    rc = prepare(in);
    if (!rc)
        rc = run(in);
    if (rc < 0)
        vc_source_abort(s, &in->err);
    {
        VC_LOCKED(&s->mu);
        s->stream_ended = true;
        s->first_pass_done = true;
    }
    vc_queue_close(&s->to_record);
    vc_queue_close(&s->to_send);
    vc_source_notify(s);
    vc_src_batch_unref(in->batch);
    vc_slab_unref(in->slab);
    vc_digester_free(in->pages);
    vc_digester_free(in->seals);
    vc_qs_parser_free(in->parser);
    free(in->seen);
    free(in);
    return NULL;
}
