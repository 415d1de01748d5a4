/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "dest/batch.h"
#include "digest/digest.h"
#include "link/link.h"
#include "wire/wire.h"

/* The golden frames of tests/vectors/wire: good ones decode to the fields of the manifest and
 * encode to the same bytes, bad ones are refused for the right reason. Then bits of the good ones
 * are flipped: what comes out is refused, or is a message of its own that encodes to these
 * bytes. */

#define MAX_VECTORS 512
#define MAX_FILE_BYTES 8192
/* Every bit is flipped up to here; behind it are contents, mostly, and some must do. */
#define DENSE_BITS (8 * 320)
#define SPARSE_BITS 61

struct vector {
    char name[64], sender[16], phase[16], verdict[64];
    struct vc_digest before;
    uint64_t features;
    char *fields; /* lines, each with its newline */
    uint8_t *data;
    size_t bytes;
};

static struct {
    struct vc_ram ram;
    uint8_t key[VC_DIGEST_KEY_BYTES];
    struct vc_id session;
    struct vc_digest first_seal;
    struct vc_digester *pages, *seals;
    struct vc_wire_codec *codec;
    struct vector vectors[MAX_VECTORS];
    unsigned n;
} g;

enum stage { STAGE_NONE, STAGE_FRAME, STAGE_MESSAGE, STAGE_SEAL };

/* What became of some bytes. */
struct outcome {
    int rc; /* 0, VC_NOT_FOUND (to be skipped), or an error */
    enum stage stage;
    FILE *fields;
};

/* ---- fields as text, as tests/support/vcvectors.py writes them ---- */

static void print_hex(FILE *f, const char *key, const void *p, size_t n)
{
    fprintf(f, "%s ", key);
    for (size_t i = 0; i < n; i++)
        fprintf(f, "%02x", ((const uint8_t *)p)[i]);
    fputc('\n', f);
}

static void print_u64(FILE *f, const char *key, uint64_t v)
{
    fprintf(f, "%s %llu\n", key, (unsigned long long)v);
}

static void print_text(FILE *f, const char *key, const char *text)
{
    fprintf(f, text[0] ? "%s %s\n" : "%s%s\n", key, text);
}

static void print_lineage(FILE *f, const struct vc_wire_lineage *l)
{
    print_hex(f, "lineage", l->id.b, 16);
    print_u64(f, "algorithm", l->algo);
    print_u64(f, "lineage_flags", l->flags);
}

/* ---- messages: decode, print, encode again ---- */

static int hello(const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    struct vc_wire_hello m;
    struct vc_err err;
    int rc = vc_wire_hello_decode(p, n, &m, &err);

    if (rc)
        return rc;
    print_u64(f, "low", m.version_min);
    print_u64(f, "high", m.version_max);
    print_u64(f, "role", m.role);
    print_u64(f, "security", m.security);
    print_u64(f, "features", m.features);
    print_text(f, "software", m.software);
    vc_wire_hello_encode(w, &m);
    /* A later version's fields and the reserved one are not looked at. */
    if (w->failed || w->len > n)
        return 0;
    memcpy(w->data + 14, p + 14, 2);
    vc_write_bytes(w, p + w->len, n - w->len);
    return 0;
}

static int open_(const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    static struct vc_wire_open m;
    struct vc_err err;
    int rc = vc_wire_open_decode(p, n, &m, &err);

    if (rc)
        return rc;
    print_hex(f, "session", m.session.b, 16);
    print_hex(f, "vm", m.vm.b, 16);
    print_u64(f, "mode", m.mode);
    print_text(f, "name", m.name);
    print_u64(f, "window", m.window_bytes);
    print_u64(f, "has_lineage", m.has_lineage);
    if (m.has_lineage)
        print_lineage(f, &m.lineage);
    for (unsigned i = 0; i < m.n_generations; i++) {
        fprintf(f, "generation ");
        for (unsigned k = 0; k < 16; k++)
            fprintf(f, "%02x", m.generations[i].id.b[k]);
        print_hex(f, "", m.generations[i].root, VC_WIRE_ROOT_BYTES);
    }
    if (m.mode == VC_WIRE_MODE_RECOVER)
        print_hex(f, "interrupted", m.interrupted.b, 16);
    vc_wire_open_encode(w, &m);
    return 0;
}

static int accept_(const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    struct vc_wire_accept m;
    struct vc_err err;
    int rc = vc_wire_accept_decode(p, n, &m, &err);

    if (rc)
        return rc;
    print_u64(f, "base_kind", m.base);
    print_hex(f, "generation", m.generation.b, 16);
    print_u64(f, "has_lineage", m.has_lineage);
    if (m.has_lineage) {
        print_lineage(f, &m.lineage);
        print_hex(f, "key", m.key, VC_WIRE_KEY_BYTES);
    }
    print_u64(f, "needs_key", m.needs_key);
    print_u64(f, "max_stream", m.max_batch_stream_bytes);
    vc_wire_accept_encode(w, &m);
    return 0;
}

static int start(const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    struct vc_wire_start m;
    struct vc_err err;
    int rc = vc_wire_start_decode(p, n, &m, &err);

    if (rc)
        return rc;
    print_lineage(f, &m.lineage);
    print_u64(f, "base_kind", m.base);
    print_u64(f, "has_key", m.has_key);
    print_hex(f, "key", m.key, VC_WIRE_KEY_BYTES);
    print_hex(f, "generation", m.generation.b, 16);
    vc_wire_start_encode(w, &m);
    return 0;
}

static int blocks(const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    static struct vc_ram ram;
    struct vc_err err;
    int rc = vc_wire_blocks_decode(p, n, &ram, &err);

    if (rc)
        return rc;
    print_u64(f, "page_size", ram.page_bytes);
    for (uint32_t i = 0; i < ram.n_blocks; i++)
        fprintf(f, "block %llu %s\n", (unsigned long long)ram.blocks[i].bytes, ram.blocks[i].name);
    vc_wire_blocks_encode(w, &ram);
    return 0;
}

static int ack(const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    struct vc_wire_ack m;
    struct vc_err err;
    int rc = vc_wire_ack_decode(p, n, &m, &err);

    if (rc)
        return rc;
    print_u64(f, "sequence", m.seq);
    print_u64(f, "position", m.position);
    vc_wire_ack_encode(w, &m);
    return 0;
}

static int reads(const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    struct vc_wire_reads m;
    struct vc_err err;
    int rc = vc_wire_reads_decode(p, n, &m, &err);

    if (rc)
        return rc;
    print_u64(f, "elapsed", m.elapsed_ns);
    print_u64(f, "waiting", m.waiting_ns);
    print_u64(f, "reading", m.reading_ns);
    print_u64(f, "bytes", m.bytes);
    print_u64(f, "content", m.content_bytes);
    vc_wire_reads_encode(w, &m);
    return 0;
}

static int keeps(const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    uint8_t flags;
    struct vc_err err;
    int rc = vc_wire_keeps_decode(p, n, &flags, &err);

    if (rc)
        return rc;
    print_u64(f, "flags", flags);
    vc_write_u8(w, flags);
    return 0;
}

static int rekeyed(const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    static struct vc_wire_range ranges[VC_WIRE_MAX_REKEYED_RANGES];
    struct vc_wire_rekeyed m;
    struct vc_err err;
    int rc = vc_wire_rekeyed_decode(p, n, &m, &err);

    if (rc)
        return rc;
    for (uint32_t i = 0; i < m.n; i++) {
        ranges[i] = vc_wire_rekeyed_range(&m, i);
        fprintf(f, "range %u %llu %llu\n", ranges[i].block, (unsigned long long)ranges[i].page.n,
                (unsigned long long)ranges[i].count);
    }
    vc_wire_rekeyed_encode(w, ranges, m.n);
    return 0;
}

static int ready(const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    struct vc_wire_generation m;
    struct vc_err err;
    int rc = vc_wire_ready_decode(p, n, &m, &err);

    if (rc)
        return rc;
    print_hex(f, "generation", m.id.b, 16);
    print_hex(f, "root", m.root, VC_WIRE_ROOT_BYTES);
    vc_wire_ready_encode(w, &m);
    return 0;
}

static int repair(const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    struct vc_wire_repair m;
    uint32_t ordinals[16];
    struct vc_err err;
    int rc = vc_wire_repair_decode(p, n, &m, &err);

    if (rc)
        return rc;
    assert_in_range(m.n, 1, 16);
    print_u64(f, "sequence", m.seq);
    for (uint32_t i = 0; i < m.n; i++) {
        ordinals[i] = (uint32_t)vc_load_le(m.ordinals + 4 * (size_t)i, 4);
        print_u64(f, "ordinal", ordinals[i]);
    }
    vc_wire_repair_encode(w, m.seq, ordinals, m.n);
    return 0;
}

static int repaired(const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    uint32_t page_bytes = g.ram.page_bytes;
    struct vc_wire_repaired m;
    struct vc_err err;
    int rc = vc_wire_repaired_decode(p, n, page_bytes, &m, &err);

    if (rc)
        return rc;
    print_u64(f, "sequence", m.seq);
    vc_write_u64(w, m.seq);
    vc_write_u32(w, m.n);
    for (uint32_t i = 0; i < m.n; i++) {
        const uint8_t *entry = m.entries + (size_t)i * (4 + page_bytes);
        uint8_t sha[VC_SHA256_BYTES];

        assert_true(vc_sha256(entry + 4, page_bytes, sha));
        fprintf(f, "page %u", (unsigned)vc_load_le(entry, 4));
        print_hex(f, "", sha, sizeof(sha));
        vc_write_bytes(w, entry, 4 + page_bytes);
    }
    return 0;
}

static int announce(const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    struct vc_wire_announce a;
    struct vc_wire_announce_run run;
    struct vc_err err;
    int rc = vc_wire_announce_open(p, n, &g.ram, &a, &err);

    if (rc)
        return rc;
    print_u64(f, "block", a.block);
    print_u64(f, "page", a.page.n);
    vc_write_u32(w, a.block);
    vc_write_u64(w, a.page.n);
    while ((rc = vc_wire_announce_next(&a, &g.ram, &run, &err)) == 0) {
        size_t bytes = run.held == VC_WIRE_HELD ? 8 * run.count : 0;

        fprintf(f, "run %u %llu", run.held, (unsigned long long)run.count);
        if (bytes)
            print_hex(f, "", run.prefixes, bytes);
        else
            fputc('\n', f);
        vc_write_u8(w, run.held);
        vc_write_varint(w, run.count);
        if (bytes)
            vc_write_bytes(w, run.prefixes, bytes);
    }
    return rc == VC_EOF ? 0 : rc;
}

static int status(const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    struct vc_wire_status m;
    struct vc_err err;
    int rc = vc_wire_status_decode(p, n, &m, &err);

    if (rc)
        return rc;
    print_u64(f, "code", m.code);
    print_text(f, "text", m.text);
    if (m.hint[0])
        print_text(f, "hint", m.hint);
    vc_wire_status_encode(w, &m);
    /* Control characters were replaced, and a newline at the end is gone. */
    for (size_t i = 5; i < n; i++)
        if (p[i] < 0x20 || p[i] == 0x7f) {
            w->len = 0;
            vc_write_bytes(w, p, n);
            break;
        }
    return 0;
}

static int committed(const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    struct vc_wire_committed m;
    struct vc_err err;
    int rc = vc_wire_committed_decode(p, n, &m, &err);

    if (rc)
        return rc;
    print_hex(f, "generation", m.generation.b, 16);
    print_u64(f, "committed", m.committed);
    print_hex(f, "root", m.root, VC_WIRE_ROOT_BYTES);
    vc_wire_committed_encode(w, &m);
    return 0;
}

static int word(const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    struct vc_wire_word_msg m;
    struct vc_err err;
    int rc = vc_wire_word_decode(p, n, &m, &err);

    if (rc)
        return rc;
    print_u64(f, "word", m.word);
    print_hex(f, "session", m.session.b, 16);
    vc_wire_word_encode(w, &m);
    return 0;
}

static int number(const char *key, const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    uint64_t v;
    struct vc_err err;
    int rc = vc_wire_u64_decode(p, n, &v, &err);

    if (rc)
        return rc;
    print_u64(f, key, v);
    vc_wire_u64_encode(w, v);
    return 0;
}

static int message(uint8_t type, const uint8_t *p, size_t n, FILE *f, struct vc_writer *w)
{
    switch (type) {
    case VC_WIRE_HELLO:
        return hello(p, n, f, w);
    case VC_WIRE_OPEN:
        return open_(p, n, f, w);
    case VC_WIRE_ACCEPT:
        return accept_(p, n, f, w);
    case VC_WIRE_START:
        return start(p, n, f, w);
    case VC_WIRE_BLOCKS:
    case VC_WIRE_ANNOUNCE_BLOCKS:
        return blocks(p, n, f, w);
    case VC_WIRE_ACK:
        return ack(p, n, f, w);
    case VC_WIRE_READS:
        return reads(p, n, f, w);
    case VC_WIRE_KEEPS:
        return keeps(p, n, f, w);
    case VC_WIRE_REPAIR:
        return repair(p, n, f, w);
    case VC_WIRE_REPAIRED:
        return repaired(p, n, f, w);
    case VC_WIRE_ANNOUNCE:
        return announce(p, n, f, w);
    case VC_WIRE_COMMITTED:
        return committed(p, n, f, w);
    case VC_WIRE_WORD:
        return word(p, n, f, w);
    case VC_WIRE_STREAM_FAILED:
    case VC_WIRE_WORD_DONE:
    case VC_WIRE_NEVER_RAN:
    case VC_WIRE_ERROR:
        return status(p, n, f, w);
    case VC_WIRE_RESEND:
        return number("sequence", p, n, f, w);
    case VC_WIRE_CREDIT:
        return number("bytes", p, n, f, w);
    case VC_WIRE_REKEYING:
        return number("done", p, n, f, w);
    case VC_WIRE_REKEYED:
        return rekeyed(p, n, f, w);
    case VC_WIRE_READY:
        return ready(p, n, f, w);
    case VC_WIRE_PING:
    case VC_WIRE_PONG:
        return number("token", p, n, f, w);
    default: /* RETURN; EOF, ANNOUNCE_END and CLOSE are empty */
        if (type == VC_WIRE_RETURN)
            print_hex(f, "data", p, n);
        vc_write_bytes(w, p, n);
        return 0;
    }
}

/* ---- batches ---- */

static void base_page(uint32_t block, uint64_t page, uint8_t *out)
{
    bool noise = page % 20 >= 8 && page % 20 < 13;
    uint32_t x = 64 * block + (uint32_t)page;

    for (uint32_t i = 0; i < g.ram.page_bytes; i++) {
        x = 1103515245u * x + 12345u;
        out[i] = noise ? (uint8_t)(x >> 24) : (uint8_t)(7 * i + 13 * page + 31 * block + 1);
    }
    if (block == 0 && page == 50)
        vc_store_le(out, 0xec30a437, 4); /* as a zstd dictionary begins */
}

static void print_run(FILE *f, const struct vc_wire_run *r)
{
    static const char *const names[] = {"",     "opaque",     "same", "zero",
                                        "data", "invalidate", "moved"};

    fprintf(f, "run %s %llu", r->shifted ? "shifted" : names[r->kind],
            (unsigned long long)r->count);
    if (r->kind != VC_RUN_OPAQUE)
        fprintf(f, " at %u %llu", r->block, (unsigned long long)r->page.n);
    if (vc_wire_run_is_elsewhere(r))
        fprintf(f, " from %u %llu", r->from_block, (unsigned long long)r->from_page.n);
    fprintf(f, "%s%s%s\n", r->named ? " named" : "", r->as_page ? " as_page" : "",
            r->old && !r->shifted ? " old" : "");
}

static void print_header(FILE *f, const struct vc_wire_batch *h)
{
    print_u64(f, "sequence", h->seq);
    print_u64(f, "position", h->position);
    print_u64(f, "stream_bytes", h->stream_bytes);
    print_u64(f, "codec", h->codec);
    print_u64(f, "self_contained", h->flags & VC_WIRE_BATCH_SELF_CONTAINED);
    print_hex(f, "seal", h->seal, VC_WIRE_SEAL_BYTES);
}

/* Expands a delta with the pages of the base: no batch came before it. False: it cannot be. */
static bool undelta(struct vc_dst_batch *b)
{
    uint8_t *prefix = malloc((size_t)b->n_old * g.ram.page_bytes), *to = prefix;
    struct vc_err err;
    int rc;

    assert_non_null(prefix);
    for (uint32_t i = 0; i < b->n_runs; i++) {
        const struct vc_wire_run *r = &b->runs[i].run;
        uint16_t block;
        struct vc_page page = vc_wire_run_base_page(r, &block);

        for (uint64_t k = 0; r->old && k < r->count; k++, to += g.ram.page_bytes)
            base_page(block, page.n + k, to);
    }
    assert_int_equal(to - prefix, b->n_old * g.ram.page_bytes);
    rc = vc_dst_batch_undelta(b, g.codec, prefix, (size_t)(to - prefix), &err);
    assert_true(rc == 0 || rc == VC_E_PROTOCOL);
    free(prefix);
    return rc == 0;
}

/* Puts the pages of the base in place and digests all. */
static void fill_in(struct vc_dst_batch *b)
{
    struct vc_err err;

    for (uint32_t i = 0; i < b->n_runs; i++) {
        const struct vc_dst_run *r = &b->runs[i];

        uint16_t block;
        struct vc_page page = vc_wire_run_base_page(&r->run, &block);

        if (!vc_wire_run_is_reference(&r->run) && r->run.kind != VC_RUN_DATA)
            continue;
        for (uint64_t k = 0; k < r->run.count; k++) {
            struct vc_dst_page *p = &b->pages[r->first + k];

            if (vc_wire_run_is_reference(&r->run))
                base_page(block, page.n + k, (uint8_t *)p->content);
            assert_int_equal(
                vc_digest_pages(g.pages, &p->content, 1, g.ram.page_bytes, &p->digest, &err), 0);
        }
    }
}

static void print_stream(FILE *f, const struct vc_dst_batch *b)
{
    struct vc_sha256 *s = vc_sha256_new();
    uint8_t sha[VC_SHA256_BYTES];
    uint64_t bytes = 0;

    assert_non_null(s);
    for (size_t i = 0; i < b->n_iov; i++) {
        vc_sha256_update(s, b->iov[i].iov_base, b->iov[i].iov_len);
        bytes += b->iov[i].iov_len;
    }
    assert_true(vc_sha256_finish(s, sha));
    assert_int_equal(bytes, b->h.stream_bytes);
    assert_int_equal(bytes, b->iov_bytes);
    print_hex(f, "stream", sha, sizeof(sha));
}

/* Header and runs again; the contents, and what zstd makes of them, are as they came. */
static void encode_again(const struct vc_dst_batch *b, const uint8_t *p, size_t n,
                         const uint8_t *body, struct vc_writer *w)
{
    uint8_t header[VC_WIRE_BATCH_HEADER_BYTES], runs[MAX_FILE_BYTES];
    struct vc_writer again = vc_writer(runs, sizeof(runs));
    struct vc_wire_cursor cursor = {0};

    vc_wire_batch_encode(header, &b->h);
    vc_write_bytes(w, header, sizeof(header));
    for (uint32_t i = 0; i < b->n_runs; i++)
        vc_wire_run_encode(&again, &cursor, &b->runs[i].run);
    assert_false(again.failed);
    assert_int_equal(again.len, b->h.runs_bytes);
    assert_memory_equal(runs, body, again.len);
    vc_write_bytes(w, p + sizeof(header), n - sizeof(header));
}

static int batch(const struct vector *v, const uint8_t *p, size_t n, struct outcome *o,
                 struct vc_writer *w)
{
    struct vc_link_frame *frame = vc_link_frame_new(VC_WIRE_BATCH, 0, (uint32_t)n);
    struct vc_dst_batch *b = vc_dst_batch_new();
    struct vc_digest seal;
    struct vc_err err;

    assert_non_null(frame);
    assert_non_null(b);
    memcpy(frame->payload, p, n);
    o->stage = STAGE_MESSAGE;
    o->rc = vc_dst_batch_parse(b, frame, &g.ram, v->features, g.codec, &err);
    if (!o->rc && vc_wire_codec_is_delta(b->h.codec) && !undelta(b)) {
        encode_again(b, p, n, b->body, w);
        o->stage = STAGE_SEAL;
        o->rc = VC_E_SEAL;
    }
    if (!o->rc) {
        fill_in(b);
        assert_int_equal(vc_dst_batch_seal(b, g.seals, &v->before, &seal, &err), 0);
        print_header(o->fields, &b->h);
        for (uint32_t i = 0; i < b->n_runs; i++)
            print_run(o->fields, &b->runs[i].run);
        print_stream(o->fields, b);
        encode_again(b, p, n, b->body ? b->body : b->frame->payload + VC_WIRE_BATCH_HEADER_BYTES,
                     w);
        if (memcmp(seal.b, b->h.seal, sizeof(seal.b)) != 0) {
            o->stage = STAGE_SEAL;
            o->rc = VC_E_SEAL;
        }
    }
    vc_dst_batch_unref(b);
    return o->rc;
}

/* ---- verdicts ---- */

static void judge_payload(const struct vector *v, const struct vc_wire_frame *f, const uint8_t *p,
                          struct outcome *o)
{
    static uint8_t again[MAX_FILE_BYTES];
    struct vc_writer w = vc_writer(again, sizeof(again));

    o->stage = STAGE_MESSAGE;
    if (f->type == VC_WIRE_BATCH)
        batch(v, p, f->bytes, o, &w);
    else
        o->rc = message(f->type, p, f->bytes, o->fields, &w);
    if (o->rc && o->stage != STAGE_SEAL)
        return;
    assert_false(w.failed);
    assert_int_equal(w.len, f->bytes);
    assert_memory_equal(again, p, w.len);
}

static void judge(const struct vector *v, const uint8_t *data, size_t n, struct outcome *o)
{
    enum vc_wire_role sender = !strcmp(v->sender, "source") ? VC_WIRE_SOURCE : VC_WIRE_DESTINATION;
    enum vc_wire_phase phase = !strcmp(v->phase, "hello")    ? VC_WIRE_PHASE_HELLO
                               : !strcmp(v->phase, "open")   ? VC_WIRE_PHASE_OPEN
                               : !strcmp(v->phase, "stream") ? VC_WIRE_PHASE_STREAM
                                                             : VC_WIRE_PHASE_END;
    struct vc_wire_frame f;
    struct vc_err err;
    uint8_t header[VC_WIRE_HEADER_BYTES];
    uint8_t *payload;

    o->stage = STAGE_FRAME;
    assert_true(n >= sizeof(header));
    o->rc = vc_wire_frame_decode(data, sender, phase, &f, &err);
    if (o->rc == VC_NOT_FOUND || o->rc < 0)
        return;
    vc_wire_frame_encode(&f, header);
    assert_memory_equal(header, data, sizeof(header));
    if (f.bytes != n - sizeof(header)) { /* would be waited for */
        o->rc = VC_E_PEER_LOST;
        return;
    }
    payload = malloc(f.bytes + 1); /* of its own, so that a read beyond its end is seen */
    assert_non_null(payload);
    memcpy(payload, data + sizeof(header), f.bytes);
    judge_payload(v, &f, payload, o);
    free(payload);
}

static void verdict_text(const struct outcome *o, char *out, size_t cap)
{
    static const char *const stages[] = {"", "frame", "message", "seal"};

    if (o->rc == 0)
        snprintf(out, cap, "good");
    else if (o->rc == VC_NOT_FOUND)
        snprintf(out, cap, "skip");
    else
        snprintf(out, cap, "bad %s %s",
                 o->rc == VC_E_PROTOCOL ? "PROTOCOL"
                 : o->rc == VC_E_SEAL   ? "SEAL"
                                        : "otherwise",
                 stages[o->stage]);
}

static void every_vector_is_judged_right(void **state)
{
    (void)state;
    assert_true(g.n > 200);
    for (unsigned i = 0; i < g.n; i++) {
        const struct vector *v = &g.vectors[i];
        char *fields = NULL, verdict[64];
        size_t size;
        struct outcome o = {.fields = open_memstream(&fields, &size)};

        assert_non_null(o.fields);
        judge(v, v->data, v->bytes, &o);
        fclose(o.fields);
        verdict_text(&o, verdict, sizeof(verdict));
        if (strcmp(verdict, v->verdict) != 0)
            fail_msg("%s: expected '%s', found '%s'", v->name, v->verdict, verdict);
        if (o.rc == 0 && v->fields[0] && strcmp(fields, v->fields) != 0)
            fail_msg("%s: expected\n%sfound\n%s", v->name, v->fields, fields);
        free(fields);
    }
}

static void a_flipped_bit_never_gets_by(void **state)
{
    static uint8_t data[MAX_FILE_BYTES];
    struct outcome o = {.fields = fopen("/dev/null", "w")};
    unsigned long refused = 0, other = 0;

    (void)state;
    assert_non_null(o.fields);
    for (unsigned i = 0; i < g.n; i++) {
        const struct vector *v = &g.vectors[i];

        if (strcmp(v->verdict, "good") != 0)
            continue;
        memcpy(data, v->data, v->bytes);
        for (size_t bit = 0; bit < 8 * v->bytes; bit += bit < DENSE_BITS ? 1 : SPARSE_BITS) {
            data[bit / 8] ^= (uint8_t)(1u << bit % 8);
            judge(v, data, v->bytes, &o);
            if (o.rc)
                refused++;
            else
                other++;
            /* The seal covers all that stands for the stream. (In a zstd frame a bit may be idle;
             * whether a batch is self-contained is not for the stream to say.) */
            if (v->data[4] == VC_WIRE_BATCH && bit >= 64 && bit != 8 * (8 + 29) &&
                v->data[8 + 28] == VC_WIRE_CODEC_NONE && !v->features)
                assert_int_not_equal(o.rc, 0);
            data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
    }
    fclose(o.fields);
    print_message("%lu refused, %lu are other messages\n", refused, other);
    assert_true(refused > 1000);
    assert_true(other > 1000);
}

/* ---- the files ---- */

static void from_hex(const char *text, void *out, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned v;

        assert_int_equal(sscanf(text + 2 * i, "%2x", &v), 1);
        ((uint8_t *)out)[i] = (uint8_t)v;
    }
}

static void read_data(const char *dir, struct vector *v)
{
    char path[512];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s.bin", dir, v->name);
    f = fopen(path, "r");
    if (!f)
        fail_msg("%s is missing", path);
    v->data = malloc(MAX_FILE_BYTES);
    assert_non_null(v->data);
    v->bytes = fread(v->data, 1, MAX_FILE_BYTES, f);
    assert_true(v->bytes < MAX_FILE_BYTES);
    fclose(f);
}

static void context_line(const char *line)
{
    struct vc_block *b = &g.ram.blocks[g.ram.n_blocks];
    unsigned long long bytes;

    if (!strncmp(line, "key ", 4))
        from_hex(line + 4, g.key, sizeof(g.key));
    else if (!strncmp(line, "session ", 8))
        from_hex(line + 8, g.session.b, sizeof(g.session.b));
    else if (!strncmp(line, "page_size ", 10))
        g.ram.page_bytes = (uint32_t)atoi(line + 10);
    else if (sscanf(line, "block %llu %255s", &bytes, b->name) == 2)
        g.ram.blocks[g.ram.n_blocks++].bytes = bytes;
    else if (line[0] && line[0] != '#')
        fail_msg("manifest: '%s'", line);
}

static void vector_line(struct vector *v, const char *line)
{
    if (line[0] == ' ') {
        size_t have = strlen(v->fields), n = strlen(line);

        if (!strncmp(line, "  # ", 4))
            return;
        v->fields = realloc(v->fields, have + n + 2);
        assert_non_null(v->fields);
        snprintf(v->fields + have, n + 2, "%s\n", line + 2);
    } else if (!strncmp(line, "before ", 7)) {
        from_hex(line + 7, v->before.b, sizeof(v->before.b));
    } else if (sscanf(line, "from %15s", v->sender) != 1 &&
               sscanf(line, "phase %15s", v->phase) != 1 &&
               sscanf(line, "features %lu", &v->features) != 1) {
        snprintf(v->verdict, sizeof(v->verdict), "%.63s", line);
    }
}

static void digesters(void)
{
    struct vc_err err;

    assert_int_equal(vc_digester_new(VC_DIGEST_GMAC, VC_DIGEST_PAGE, g.key, &g.pages, &err), 0);
    assert_int_equal(vc_digester_new(VC_DIGEST_GMAC, VC_DIGEST_SEAL, g.key, &g.seals, &err), 0);
    assert_int_equal(vc_digest_begin(g.seals, &err), 0);
    assert_int_equal(vc_digest_update(g.seals, g.session.b, sizeof(g.session.b), &err), 0);
    assert_int_equal(vc_digest_end(g.seals, &g.first_seal, &err), 0);
    assert_int_equal(vc_wire_codec_new(1, &g.codec, &err), 0);
}

/* From the command line (test_agree.py): only the vectors that are there. */
static const char *directory;

static int load(void **state)
{
    const char *dir = directory ? directory : getenv("VC_VECTORS");
    char path[512], line[4096];
    FILE *f;

    (void)state;
    dir = dir ? dir : "tests/vectors/wire";
    snprintf(path, sizeof(path), "%s/manifest", dir);
    f = fopen(path, "r");
    if (!f)
        fail_msg("%s is missing", path);
    while (fgets(line, sizeof(line), f)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "vector ", 7)) {
            struct vector *v = &g.vectors[g.n++];

            assert_true(g.n <= MAX_VECTORS);
            if (g.n == 1)
                digesters();
            snprintf(v->name, sizeof(v->name), "%.63s", line + 7);
            v->before = g.first_seal;
            v->fields = calloc(1, 1);
            read_data(dir, v);
        } else if (!g.n) {
            context_line(line);
        } else if (line[0]) {
            vector_line(&g.vectors[g.n - 1], line);
        }
    }
    fclose(f);
    return 0;
}

static int unload(void **state)
{
    (void)state;
    for (unsigned i = 0; i < g.n; i++) {
        free(g.vectors[i].fields);
        free(g.vectors[i].data);
    }
    vc_digester_free(g.pages);
    vc_digester_free(g.seals);
    vc_wire_codec_free(g.codec);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest only[] = {cmocka_unit_test(every_vector_is_judged_right)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_vector_is_judged_right),
        cmocka_unit_test(a_flipped_bit_never_gets_by),
    };

    directory = argc > 1 ? argv[1] : NULL;
    return directory ? cmocka_run_group_tests(only, load, unload)
                     : cmocka_run_group_tests(tests, load, unload);
}
