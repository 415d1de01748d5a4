/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/fdio.h"
#include "digest/digest.h"
#include "link/seal.h"
#include "source/ingest.h"

/* Theory of operation
 *
 * One thread reads QEMU's socket into large buffers and never copies a page: parser items point
 * into the buffer, batches keep the buffer alive. Items are gathered into a small group, so that
 * digests are computed in batches while the pages are still in the cache; then each page is matched
 * against what the destination holds and appended to the open batch, whose running seal is fed on
 * the way. A batch ends when it is full, when its new data would keep the link busy for longer than
 * a few milliseconds, or when QEMU has nothing more to say and the sender is idle. (It often pauses
 * for a fraction of a millisecond. For so long, but no more than a few in all, a batch that is
 * small on the wire is not sent, unless the guest is paused or in postcopy.)
 *
 * Nothing is held back for good: an unfinished record is kept for at most PARTIAL_NS after the
 * input fell silent and then goes as opaque bytes. */

#define SLAB_BYTES_LEFT_MIN (64u << 10)
/* Longer than QEMU sleeps when it has used up its bandwidth (migration.c, BUFFER_DELAY: 100 ms),
 * which it does in the middle of a record: a page that is flushed is lost to the checkpoint. */
#define PARTIAL_NS (150 * VC_NS_PER_MS)
/* Less than this is not worth a frame while QEMU may go on. */
#define SMALL_BYTES (64u << 10)
#define SILENCE_NS VC_NS_PER_MS
#define MOST_AGE_NS (4 * VC_NS_PER_MS)

/* Every page was mentioned, or the guest is paused for good: nothing to pace any more. */
static void first_pass_over(struct vc_ingest *in)
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
static int process_group(struct vc_ingest *in)
{
    const uint8_t *pages[VC_INGEST_GROUP];
    struct vc_digest digests[VC_INGEST_GROUP];
    int8_t at[VC_INGEST_GROUP];
    uint32_t n = 0;
    int rc = 0;

    for (uint32_t i = 0; i < in->n_group; i++) {
        const struct vc_ingest_item *g = &in->group[i];
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
        const struct vc_ingest_item *g = &in->group[i];

        if (g->qs.kind == VC_QS_ZERO)
            rc = vc_runs_zero(in, g);
        else
            rc = vc_runs_page(in, g, at[i] < 0 ? NULL : &digests[at[i]]);
    }
    in->n_group = 0;
    if (in->seen &&
        (in->repeated || !atomic_load_explicit(&in->s->n.first_pass_left, memory_order_relaxed)))
        first_pass_over(in);
    return rc;
}

/* ---- events of the parser ---- */

static int ram_known(struct vc_ingest *in)
{
    struct vc_source *s = in->s;
    struct vc_err err = VC_ERR_INIT;
    uint64_t pages = 0;

    s->ram = *vc_qs_ram(in->parser);
    for (uint32_t i = 0; i < s->ram.n_blocks; i++) {
        in->block_first[i] = pages;
        pages += vc_ram_block_pages(&s->ram, i);
    }
    vc_remote_limit(&s->remote, &s->ram);
    /* Where there is no memory for these the migration goes on without, as it would for QEMU. */
    in->seen = calloc(pages / 8 + 1, 1);
    if (s->o.delta && s->o.recent && s->o.txn && vc_recent_init(&in->recent, pages, &err))
        vc_log_err(s->o.log, VC_LOG_WARNING, "pages that are sent again are sent whole", &err);
    if (s->o.local_gen)
        vc_ram_map(&s->ram, vc_gen_ram(s->o.local_gen), s->local_map);
    atomic_store(&s->n.first_pass_left, vc_ram_bytes(&s->ram));
    {
        VC_LOCKED(&s->mu);
        s->ram_known = true;
    }
    vc_source_notify(s);
    return vc_runs_mark(in, VC_SRC_BLOCKS);
}

static bool carries_migration(const struct vc_ingest *in)
{
    return vc_qs_is_qemu(in->parser) || vc_qs_is_recovery(in->parser);
}

static int not_qemu(struct vc_ingest *in)
{
    return vc_err_set_hint(&in->err, VC_E_NOT_QEMU, "TLS inside QEMU and multifd are not taken",
                           "this is not a migration stream of QEMU: %s", vc_qs_reason(in->parser));
}

static int lost_track(struct vc_ingest *in)
{
    struct vc_source *s = in->s;
    const char *reason = vc_qs_reason(in->parser);

    if (!carries_migration(in))
        return not_qemu(in);
    in->hurry = true;
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
        int rc = vc_runs_invalidate(in, (uint16_t)i, vc_page(0), vc_ram_block_pages(&s->ram, i));

        if (rc)
            return rc;
    }
    return 0;
}

/* Bytes of the stream up to here. */
static uint64_t stream_position(const struct vc_ingest *in)
{
    return in->position + (in->batch ? in->batch->stream_bytes : 0);
}

static int events(struct vc_ingest *in, const struct vc_qs_item *item)
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
        rc = vc_runs_invalidate(in, item->block, item->page, item->count);
    if (item->events & VC_QS_EV_PACKAGED) {
        VC_LOCKED(&s->mu);
        s->package_end = stream_position(in) + item->package_bytes;
    }
    if (item->events & (VC_QS_EV_RAM_END | VC_QS_EV_TAIL | VC_QS_EV_PACKAGED)) {
        in->hurry = true;
        first_pass_over(in);
    }
    return rc;
}

/* Before they go on: whoever hears that all has arrived finds all counted. */
static void note_records(struct vc_ingest *in)
{
    uint64_t data, zero;

    vc_qs_records(in->parser, &data, &zero);
    atomic_store_explicit(&in->s->n.data_records, data, memory_order_relaxed);
    atomic_store_explicit(&in->s->n.zero_records, zero, memory_order_relaxed);
}

/* Parses what was read and not parsed yet; with `flush` nothing is left. */
static int parse(struct vc_ingest *in, bool flush)
{
    while (in->parsed < in->used) {
        const uint8_t *p = in->slab->data + in->parsed;
        struct vc_qs_item item;
        int rc = 0;

        vc_qs_next(in->parser, p, in->used - in->parsed, flush, &item);
        if (item.kind == VC_QS_NEED)
            break;
        note_records(in);
        in->parsed += item.bytes;
        if (item.kind == VC_QS_OPAQUE || item.events)
            rc = process_group(in);
        if (!rc && item.events)
            rc = events(in, &item);
        if (!rc && item.kind == VC_QS_OPAQUE) {
            rc = vc_runs_opaque(in, p, item.bytes);
        } else if (!rc) {
            in->group[in->n_group++] = (struct vc_ingest_item){.qs = item, .p = p};
            if (in->n_group == VC_INGEST_GROUP)
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
static int make_space(struct vc_ingest *in)
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
static size_t pace(struct vc_ingest *in, size_t most, int *wait_ms)
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

/* Whether more may come soon that can go with the open batch. */
static bool may_wait(const struct vc_ingest *in, uint64_t idle_since)
{
    const struct vc_src_batch *b = in->batch;
    uint64_t now = vc_now_ns();

    return !in->hurry && !vc_qs_is_recovery(in->parser) &&
           b->data_bytes + b->opaque_bytes < SMALL_BYTES && now - idle_since < SILENCE_NS &&
           now - in->opened_ns < MOST_AGE_NS;
}

/* The input is empty (or paced): whatever need not wait goes out. Returns the time to wait for
 * input, in ms (-1: as long as it takes). */
static int when_idle(struct vc_ingest *in, uint64_t idle_since, int *wait_ms)
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
        if (atomic_load(&in->s->unsent) == 0 && !may_wait(in, idle_since))
            return vc_runs_close(in);
        *wait_ms = 1;
    }
    return 0;
}

/* Reads once. 0, VC_EOF, or an error. */
static int read_more(struct vc_ingest *in)
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

static int run(struct vc_ingest *in)
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
    return rc ? rc : vc_runs_mark(in, VC_SRC_EOF);
}

static int prepare(struct vc_ingest *in)
{
    const struct vc_lineage *l = &in->s->o.lineage;
    int rc = vc_qs_parser_new(0, &in->parser, &in->err);

    if (!rc)
        rc = vc_digester_new(l->algo, VC_DIGEST_PAGE, l->key, &in->pages, &in->err);
    if (!rc)
        rc = vc_digester_new(l->algo, VC_DIGEST_SEAL, l->key, &in->seals, &in->err);
    return rc ? rc : vc_seal_first(in->seals, &in->s->o.session, 0, &in->seal, &in->err);
}

void *vc_source_ingest_main(void *arg)
{
    struct vc_ingest *in = calloc(1, sizeof(*in));
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
    vc_queue_close(&s->to_send);
    vc_source_notify(s);
    vc_src_batch_unref(in->batch);
    vc_slab_unref(in->slab);
    vc_digester_free(in->pages);
    vc_digester_free(in->seals);
    vc_qs_parser_free(in->parser);
    free(in->seen);
    vc_recent_fini(&in->recent);
    free(in);
    return NULL;
}
