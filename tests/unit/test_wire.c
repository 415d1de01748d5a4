/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "wire/wire.h"

/* What holds for every message: it survives the way to bytes and back, and is not taken when a byte
 * is missing; frames are allowed as the table of docs/formats/wire.md says, which is read here.
 * The golden frames are in test_vectors.c. */

#define ROUNDS 200

static uint64_t rng_state;

static int seed(void **state)
{
    const char *s = getenv("VC_TEST_SEED");

    (void)state;
    rng_state = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL);
    print_message("seed: VC_TEST_SEED=%llu\n", (unsigned long long)rng_state);
    return 0;
}

static uint64_t rng(void)
{
    uint64_t z = rng_state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static uint64_t below(uint64_t n)
{
    return rng() % n;
}

/* Small numbers are as likely as large ones. */
static uint64_t any_u64(void)
{
    return rng() >> below(64);
}

static void fill(void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((uint8_t *)p)[i] = (uint8_t)rng();
}

static void any_text(char *out, size_t max)
{
    size_t n = below(max + 1);

    for (size_t i = 0; i < n; i++)
        out[i] = (char)(0x20 + below(0x5f));
    out[n] = 0;
}

/* ---- the table of frames, as the page has it ---- */

struct row {
    unsigned type, senders, phases;
    unsigned long min, max;
    char name[32];
};

static unsigned phases_of(const char *text)
{
    static const struct {
        const char *word;
        unsigned bits;
    } words[] = {
        {"hello", VC_WIRE_PHASE_HELLO},
        {"open", VC_WIRE_PHASE_OPEN},
        {"stream", VC_WIRE_PHASE_STREAM},
        {"end", VC_WIRE_PHASE_END},
    };
    unsigned bits = 0;

    if (strstr(text, "any but hello"))
        return VC_WIRE_PHASE_OPEN | VC_WIRE_PHASE_STREAM | VC_WIRE_PHASE_END;
    if (strstr(text, "any"))
        return VC_WIRE_PHASE_HELLO | VC_WIRE_PHASE_OPEN | VC_WIRE_PHASE_STREAM | VC_WIRE_PHASE_END;
    for (size_t i = 0; i < VC_ARRAY_LEN(words); i++)
        if (strstr(text, words[i].word))
            bits |= words[i].bits;
    return bits;
}

static bool parse_row(const char *line, struct row *r)
{
    char from[16], length[32], phases[64];

    if (sscanf(line, "| %u | %31[A-Z_] | %15[a-z] | %31[0-9.] | %63[^|]|", &r->type, r->name, from,
               length, phases) != 5)
        return false;
    r->senders = !strcmp(from, "both")     ? 1u << VC_WIRE_SOURCE | 1u << VC_WIRE_DESTINATION
                 : !strcmp(from, "source") ? 1u << VC_WIRE_SOURCE
                                           : 1u << VC_WIRE_DESTINATION;
    if (sscanf(length, "%lu..%lu", &r->min, &r->max) != 2)
        r->max = r->min;
    r->phases = phases_of(phases);
    return true;
}

static unsigned read_page(struct row *rows, unsigned cap)
{
    const char *path = getenv("VC_WIRE_PAGE");
    FILE *f = fopen(path ? path : "docs/formats/wire.md", "r");
    char line[1024];
    unsigned n = 0;

    assert_non_null(f);
    while (fgets(line, sizeof(line), f) && n < cap)
        n += parse_row(line, &rows[n]);
    fclose(f);
    return n;
}

static int decode(const struct vc_wire_frame *f, unsigned role, unsigned phase)
{
    uint8_t header[VC_WIRE_HEADER_BYTES];
    struct vc_wire_frame out;
    struct vc_err err = VC_ERR_INIT;
    int rc;

    vc_wire_frame_encode(f, header);
    rc = vc_wire_frame_decode(header, (enum vc_wire_role)role, (enum vc_wire_phase)phase, &out,
                              &err);
    if (rc >= 0)
        assert_memory_equal(&out, f, sizeof(out));
    else
        assert_true(rc == VC_E_PROTOCOL && err.code == rc && err.message[0]);
    return rc;
}

static void frames_are_allowed_as_the_page_says(void **state)
{
    struct row rows[64];
    unsigned n = read_page(rows, VC_ARRAY_LEN(rows));
    bool known[256] = {false};

    (void)state;
    assert_int_equal(n, 30);
    for (unsigned i = 0; i < n; i++) {
        const struct row *r = &rows[i];
        const unsigned long lengths[] = {r->min,     r->max,     (r->min + r->max) / 2,
                                         r->max + 1, r->min - 1, UINT32_MAX};

        known[r->type] = true;
        assert_string_equal(vc_wire_type_name(r->type), r->name);
        for (unsigned role = VC_WIRE_SOURCE; role <= VC_WIRE_DESTINATION; role++)
            for (unsigned phase = 1; phase <= VC_WIRE_PHASE_END; phase <<= 1)
                for (size_t k = 0; k < VC_ARRAY_LEN(lengths); k++) {
                    struct vc_wire_frame f = {(uint32_t)lengths[k], (uint8_t)r->type, 0, 0};
                    bool fits = f.bytes >= r->min && f.bytes <= r->max;
                    bool allowed = r->senders & 1u << role && r->phases & phase;

                    if ((decode(&f, role, phase) == 0) != (fits && allowed))
                        fail_msg("%s of %u bytes from role %u in phase %u", r->name, f.bytes, role,
                                 phase);
                }
    }
    for (unsigned type = 0; type < 256; type++) {
        struct vc_wire_frame f = {0, (uint8_t)type, 0, 0};

        if (known[type])
            continue;
        assert_int_equal(decode(&f, VC_WIRE_SOURCE, VC_WIRE_PHASE_STREAM), VC_E_PROTOCOL);
        f.flags = VC_WIRE_FRAME_OPTIONAL;
        assert_int_equal(decode(&f, VC_WIRE_SOURCE, VC_WIRE_PHASE_STREAM), VC_NOT_FOUND);
        f.bytes = VC_WIRE_MAX_FRAME_BYTES + 1;
        assert_int_equal(decode(&f, VC_WIRE_SOURCE, VC_WIRE_PHASE_STREAM), VC_E_PROTOCOL);
    }
}

static void channels_and_flags_have_limits(void **state)
{
    (void)state;
    for (unsigned channel = 0; channel < 65536; channel += channel < 70 ? 1 : 977) {
        struct vc_wire_frame eof = {0, VC_WIRE_EOF, 0, (uint16_t)channel};
        struct vc_wire_frame ping = {8, VC_WIRE_PING, 0, (uint16_t)channel};

        assert_int_equal(decode(&eof, VC_WIRE_SOURCE, VC_WIRE_PHASE_STREAM) == 0, channel < 64);
        assert_int_equal(decode(&eof, VC_WIRE_DESTINATION, VC_WIRE_PHASE_STREAM) == 0, !channel);
        assert_int_equal(decode(&ping, VC_WIRE_SOURCE, VC_WIRE_PHASE_STREAM) == 0, !channel);
    }
    for (unsigned flags = 0; flags < 256; flags++) {
        struct vc_wire_frame f = {8, VC_WIRE_PING, (uint8_t)flags, 0};

        assert_int_equal(decode(&f, VC_WIRE_SOURCE, VC_WIRE_PHASE_STREAM) == 0, flags < 2);
    }
}

/* ---- messages ---- */

/* One of any kind, for the generic checks below. */
union any {
    struct vc_wire_hello hello;
    struct vc_wire_open open;
    struct vc_wire_accept accept;
    struct vc_wire_start start;
    struct vc_ram ram;
    struct vc_wire_ack ack;
    struct vc_wire_reads reads;
    struct vc_wire_committed committed;
    struct vc_wire_word_msg word;
    struct vc_wire_status status;
    uint64_t number;
};

static void any_lineage(struct vc_wire_lineage *l)
{
    fill(l->id.b, 16);
    l->algo = (uint8_t)rng();
    l->flags = (uint8_t)below(2);
}

static void make_hello(union any *m)
{
    m->hello.version_min = (uint16_t)any_u64();
    m->hello.version_max = (uint16_t)(m->hello.version_min + below(65536 - m->hello.version_min));
    m->hello.role = (uint8_t)(1 + below(2));
    m->hello.security = (uint8_t)below(3);
    m->hello.features = any_u64();
    any_text(m->hello.software, 255);
}

static void make_open(union any *m)
{
    fill(m->open.session.b, 16);
    fill(m->open.vm.b, 16);
    m->open.mode = (uint8_t)(1 + below(3));
    any_text(m->open.name, 255);
    m->open.window_bytes = (uint32_t)any_u64();
    m->open.has_lineage = below(2);
    if (m->open.has_lineage)
        any_lineage(&m->open.lineage);
    m->open.n_generations = (uint8_t)below(VC_WIRE_MAX_GENERATIONS + 1);
    fill(m->open.generations, m->open.n_generations * sizeof(m->open.generations[0]));
}

static void make_accept(union any *m)
{
    m->accept.base = (uint8_t)below(3);
    fill(m->accept.generation.b, 16);
    m->accept.has_lineage = below(2);
    if (m->accept.has_lineage) {
        any_lineage(&m->accept.lineage);
        fill(m->accept.key, VC_WIRE_KEY_BYTES);
    }
    m->accept.needs_key = below(2);
    m->accept.max_batch_stream_bytes = (uint32_t)any_u64();
}

static void make_start(union any *m)
{
    any_lineage(&m->start.lineage);
    m->start.base = (uint8_t)below(3);
    m->start.has_key = below(2);
    if (m->start.has_key)
        fill(m->start.key, VC_WIRE_KEY_BYTES);
    fill(m->start.generation.b, 16);
}

static void make_blocks(union any *m)
{
    m->ram.page_bytes = 1024u << below(7);
    m->ram.n_blocks = (uint32_t)(1 + below(VC_MAX_BLOCKS));
    for (uint32_t i = 0; i < m->ram.n_blocks; i++) {
        struct vc_block *b = &m->ram.blocks[i];
        size_t n = (size_t)snprintf(b->name, sizeof(b->name), "%u", i);

        any_text(b->name + n, 255 - n);
        for (char *c = b->name + n; *c; c++) /* no two are equal */
            *c = *c >= '0' && *c <= '9' ? '-' : *c;
        b->bytes = below(VC_MAX_BLOCK_BYTES / m->ram.page_bytes + 1) * m->ram.page_bytes;
    }
}

static void make_ack(union any *m)
{
    m->ack.seq = any_u64();
    m->ack.position = any_u64();
}

static void make_reads(union any *m)
{
    m->reads.elapsed_ns = any_u64();
    m->reads.waiting_ns = any_u64();
    m->reads.reading_ns = any_u64();
    m->reads.bytes = any_u64();
    m->reads.content_bytes = any_u64();
}

static void make_committed(union any *m)
{
    fill(m->committed.generation.b, 16);
    m->committed.committed = below(2);
    fill(m->committed.root, VC_WIRE_ROOT_BYTES);
}

static void make_word(union any *m)
{
    m->word.word = (uint8_t)(1 + below(3));
    fill(m->word.session.b, 16);
}

static void make_status(union any *m)
{
    m->status.code = (uint32_t)any_u64();
    any_text(m->status.text, below(2) ? 255 : 100);
    if (strlen(m->status.text) <= 100)
        any_text(m->status.hint, 150);
}

static void make_number(union any *m)
{
    m->number = any_u64();
}

#define MESSAGE(name, member)                                                              \
    static void encode_##name(struct vc_writer *w, const union any *m)                     \
    {                                                                                      \
        vc_wire_##name##_encode(w, &m->member);                                            \
    }                                                                                      \
    static int decode_##name(const uint8_t *p, size_t n, union any *m, struct vc_err *err) \
    {                                                                                      \
        return vc_wire_##name##_decode(p, n, &m->member, err);                             \
    }

MESSAGE(hello, hello)
MESSAGE(open, open)
MESSAGE(accept, accept)
MESSAGE(start, start)
MESSAGE(blocks, ram)
MESSAGE(ack, ack)
MESSAGE(reads, reads)
MESSAGE(committed, committed)
MESSAGE(word, word)

static void encode_status(struct vc_writer *w, const union any *m)
{
    vc_wire_status_encode(w, &m->status);
}

static int decode_status(const uint8_t *p, size_t n, union any *m, struct vc_err *err)
{
    int rc = vc_wire_status_decode(p, n, &m->status, err);
    size_t text = strlen(m->status.text);

    /* What is behind the NUL does not count. */
    memset(m->status.text + text, 0, sizeof(m->status.text) - text);
    return rc;
}

static void encode_number(struct vc_writer *w, const union any *m)
{
    vc_wire_u64_encode(w, m->number);
}

static int decode_number(const uint8_t *p, size_t n, union any *m, struct vc_err *err)
{
    return vc_wire_u64_decode(p, n, &m->number, err);
}

static const struct message {
    const char *name;
    size_t size; /* of the struct; all of it is compared */
    void (*make)(union any *m);
    void (*encode)(struct vc_writer *w, const union any *m);
    int (*decode)(const uint8_t *p, size_t n, union any *m, struct vc_err *err);
    uint8_t type; /* its limits hold for what is encoded */
    bool takes_more;
} messages[] = {
    {"HELLO", sizeof(struct vc_wire_hello), make_hello, encode_hello, decode_hello, VC_WIRE_HELLO,
     true},
    {"OPEN", sizeof(struct vc_wire_open), make_open, encode_open, decode_open, VC_WIRE_OPEN, false},
    {"ACCEPT", sizeof(struct vc_wire_accept), make_accept, encode_accept, decode_accept,
     VC_WIRE_ACCEPT, false},
    {"START", sizeof(struct vc_wire_start), make_start, encode_start, decode_start, VC_WIRE_START,
     false},
    {"BLOCKS", sizeof(struct vc_ram), make_blocks, encode_blocks, decode_blocks, VC_WIRE_BLOCKS,
     false},
    {"ACK", sizeof(struct vc_wire_ack), make_ack, encode_ack, decode_ack, VC_WIRE_ACK, false},
    {"READS", sizeof(struct vc_wire_reads), make_reads, encode_reads, decode_reads, VC_WIRE_READS,
     false},
    {"COMMITTED", sizeof(struct vc_wire_committed), make_committed, encode_committed,
     decode_committed, VC_WIRE_COMMITTED, false},
    {"WORD", sizeof(struct vc_wire_word_msg), make_word, encode_word, decode_word, VC_WIRE_WORD,
     false},
    {"ERROR", sizeof(struct vc_wire_status), make_status, encode_status, decode_status,
     VC_WIRE_ERROR, false},
    {"PING", sizeof(uint64_t), make_number, encode_number, decode_number, VC_WIRE_PING, false},
};

static uint8_t bytes[80000];

/* Makes one and encodes it; the number of its bytes. */
static size_t encoded(const struct message *t, union any *m)
{
    struct vc_writer w = vc_writer(bytes, sizeof(bytes));

    memset(m, 0, sizeof(*m));
    t->make(m);
    t->encode(&w, m);
    assert_false(w.failed);
    return w.len;
}

static unsigned phase_of(uint8_t type)
{
    return type == VC_WIRE_HELLO                           ? VC_WIRE_PHASE_HELLO
           : type >= VC_WIRE_OPEN && type <= VC_WIRE_START ? VC_WIRE_PHASE_OPEN
                                                           : VC_WIRE_PHASE_STREAM;
}

static void every_message_survives_the_way_to_bytes_and_back(void **state)
{
    static union any m, back;

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(messages); i++)
        for (unsigned round = 0; round < ROUNDS; round++) {
            const struct message *t = &messages[i];
            size_t n = encoded(t, &m);
            struct vc_wire_frame f = {(uint32_t)n, t->type, 0, 0};
            bool from_dest =
                t->type == VC_WIRE_ACCEPT || t->type == VC_WIRE_ACK || t->type == VC_WIRE_READS;
            unsigned role = from_dest ? VC_WIRE_DESTINATION : VC_WIRE_SOURCE;
            struct vc_err err;

            assert_int_equal(decode(&f, role, phase_of(t->type)), 0);
            memset(&back, 0, sizeof(back));
            assert_int_equal(t->decode(bytes, n, &back, &err), 0);
            if (memcmp(&m, &back, t->size) != 0)
                fail_msg("%s came back as another one", t->name);
        }
}

static void no_message_is_taken_short_or_long(void **state)
{
    static union any m, back;

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(messages); i++) {
        const struct message *t = &messages[i];
        size_t n = encoded(t, &m);
        struct vc_err err = VC_ERR_INIT;

        for (size_t k = 0; k < n; k += 1 + (n > 2000 ? below(40) : 0)) {
            uint8_t *copy = malloc(k + 1); /* so that a read beyond it is seen */

            memcpy(copy, bytes, k);
            assert_int_equal(t->decode(copy, k, &back, &err), VC_E_PROTOCOL);
            assert_non_null(strstr(err.message, ":"));
            free(copy);
        }
        bytes[n] = 0;
        assert_int_equal(t->decode(bytes, n + 1, &back, &err), t->takes_more ? 0 : VC_E_PROTOCOL);
    }
}

static void no_message_is_written_beyond_its_room(void **state)
{
    static union any m;

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(messages); i++) {
        const struct message *t = &messages[i];
        size_t n = encoded(t, &m);

        for (size_t k = 0; k < n; k += 1 + (n > 2000 ? below(200) : 0)) {
            uint8_t *room = malloc(k + 1);
            struct vc_writer w = vc_writer(room, k);

            t->encode(&w, &m);
            assert_true(w.failed);
            free(room);
        }
    }
}

static void a_text_and_its_hint_share_a_limit(void **state)
{
    struct vc_wire_status m = {.code = 1}, back;
    uint8_t buf[512];
    struct vc_err err;

    (void)state;
    for (unsigned hint = 0; hint < 100; hint++) {
        struct vc_writer w = vc_writer(buf, sizeof(buf));

        memset(m.text, 'a', 200);
        memset(m.hint, 'b', hint);
        m.hint[hint] = 0;
        vc_wire_status_encode(&w, &m);
        assert_int_equal(w.failed, hint > 54);
        if (w.failed)
            continue;
        assert_int_equal(vc_wire_status_decode(buf, w.len, &back, &err), 0);
        assert_string_equal(back.text, m.text);
        assert_string_equal(back.hint, m.hint);
    }
}

static void a_text_cannot_reach_for_the_terminal(void **state)
{
    static const char evil[] = "\x1b]0;x\x07\r\x7fok\nhint\n\x1b[2J";
    struct vc_wire_status m;
    struct vc_err err;
    uint8_t buf[64];
    struct vc_writer w = vc_writer(buf, sizeof(buf));

    (void)state;
    vc_write_u32(&w, 7);
    vc_write_str8(&w, evil);
    assert_int_equal(vc_wire_status_decode(buf, w.len, &m, &err), 0);
    assert_string_equal(m.text, "?]0;x???ok");
    assert_string_equal(m.hint, "hint??[2J");
}

/* ---- REPAIR and REPAIRED ---- */

static void repairs_survive(void **state)
{
    static uint32_t ordinals[VC_WIRE_MAX_REPAIR_PAGES];
    static uint8_t big[12 + 4 * VC_WIRE_MAX_REPAIR_PAGES];
    const uint32_t counts[] = {1, 2, 63, 64, 65, 1000, VC_WIRE_MAX_REPAIR_PAGES};

    (void)state;
    fill(ordinals, sizeof(ordinals));
    for (size_t i = 0; i < VC_ARRAY_LEN(counts); i++) {
        struct vc_writer w = vc_writer(big, sizeof(big));
        struct vc_wire_repair m;
        struct vc_err err;

        vc_wire_repair_encode(&w, 77, ordinals, counts[i]);
        assert_false(w.failed);
        assert_int_equal(vc_wire_repair_decode(big, w.len, &m, &err), 0);
        assert_true(m.seq == 77 && m.n == counts[i]);
        for (uint32_t k = 0; k < m.n; k++)
            assert_int_equal(vc_load_le(m.ordinals + 4 * (size_t)k, 4), ordinals[k]);
        assert_int_equal(vc_wire_repair_decode(big, w.len - 1, &m, &err), VC_E_PROTOCOL);
    }
}

static void repaired_pages_have_the_page_size(void **state)
{
    size_t n = 12 + 3 * (4 + 4096);
    uint8_t *p = calloc(1, n);
    struct vc_wire_repaired m;
    struct vc_err err;

    (void)state;
    vc_store_le(p + 8, 3, 4);
    assert_int_equal(vc_wire_repaired_decode(p, n, 4096, &m, &err), 0);
    assert_int_equal(m.n, 3);
    for (uint32_t page = 1024; page <= 65536; page *= 2)
        if (page != 4096)
            assert_int_equal(vc_wire_repaired_decode(p, n, page, &m, &err), VC_E_PROTOCOL);
    vc_store_le(p + 8, UINT32_MAX, 4);
    assert_int_equal(vc_wire_repaired_decode(p, n, 4096, &m, &err), VC_E_PROTOCOL);
    free(p);
}

/* ---- runs ---- */

static void any_run(const struct vc_ram *ram, struct vc_wire_run *r)
{
    uint64_t pages;

    *r = (struct vc_wire_run){.kind = (uint8_t)(1 + below(6))};
    if (r->kind == VC_RUN_OPAQUE) {
        r->count = 1 + any_u64() / 2;
        return;
    }
    do
        r->block = (uint16_t)below(ram->n_blocks);
    while (!(pages = vc_ram_block_pages(ram, r->block)));
    r->page = vc_page(any_u64() % pages);
    r->count = 1 + any_u64() % (pages - r->page.n);
    r->named = r->kind != VC_RUN_INVALIDATE && below(2);
    r->as_page = r->kind == VC_RUN_ZERO && below(2);
    r->old = r->kind == VC_RUN_DATA && below(2);
    r->shifted = r->old && below(2);
    if (vc_wire_run_is_elsewhere(r)) {
        r->from_block = r->block;
        r->from_page = vc_page(below(pages - r->count + 1));
    }
}

static void runs_survive(void **state)
{
    static union any m;
    struct vc_wire_run runs[64], back;

    (void)state;
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct vc_writer w = vc_writer(bytes, sizeof(bytes));
        struct vc_wire_cursor to = {0}, from = {0};
        unsigned n = (unsigned)(1 + below(VC_ARRAY_LEN(runs)));
        struct vc_reader r;
        struct vc_err err;

        make_blocks(&m);
        m.ram.blocks[0].bytes = m.ram.page_bytes * 1000ull;
        memset(runs, 0, sizeof(runs));
        for (unsigned i = 0; i < n; i++) {
            size_t before = w.len;

            any_run(&m.ram, &runs[i]);
            vc_wire_run_encode(&w, &to, &runs[i]);
            assert_true(w.len - before <= VC_WIRE_RUN_MAX_BYTES);
        }
        assert_false(w.failed);
        r = vc_reader(bytes, w.len);
        for (unsigned i = 0; i < n; i++) {
            memset(&back, 0, sizeof(back));
            assert_int_equal(vc_wire_run_decode(&r, &from, &m.ram,
                                                VC_WIRE_FEATURE_MOVED | VC_WIRE_FEATURE_DELTA |
                                                    VC_WIRE_FEATURE_SHIFTED,
                                                &back, &err),
                             0);
            assert_memory_equal(&back, &runs[i], sizeof(back));
        }
        assert_int_equal(vc_wire_run_decode(&r, &from, &m.ram, 0, &back, &err), VC_EOF);
    }
}

/* One bit of a run's head is AS_PAGE to some kinds, OLD to others, and nothing to most. */
static void old_is_for_data_and_has_to_be_agreed_on(void **state)
{
    static union any m;
    const uint64_t features = VC_WIRE_FEATURE_DELTA | VC_WIRE_FEATURE_MOVED;
    struct vc_wire_run run;
    struct vc_err err;

    (void)state;
    make_blocks(&m);
    m.ram.blocks[0].bytes = m.ram.page_bytes;
    for (unsigned kind = 0; kind < 16; kind++) {
        const uint8_t text[] = {(uint8_t)(0x80 | kind), 1, 0, 0};
        bool legal = kind == VC_RUN_DATA || kind == VC_RUN_ZERO;

        for (int agreed = 0; agreed <= 1; agreed++) {
            struct vc_reader r = vc_reader(text, legal ? 2 : sizeof(text));
            struct vc_wire_cursor c = {0};
            bool taken = agreed || kind == VC_RUN_ZERO;

            assert_int_equal(vc_wire_run_decode(
                                 &r, &c, &m.ram,
                                 agreed ? features : features & ~VC_WIRE_FEATURE_DELTA, &run, &err),
                             legal && taken ? 0 : VC_E_PROTOCOL);
            if (!legal || !taken)
                continue;
            assert_int_equal(run.old, kind == VC_RUN_DATA);
            assert_int_equal(run.as_page, kind == VC_RUN_ZERO);
        }
    }
}

static void shifted_runs_have_to_be_agreed_on(void **state)
{
    static union any m;
    const uint64_t both = VC_WIRE_FEATURE_DELTA | VC_WIRE_FEATURE_SHIFTED;
    static const uint8_t text[] = {7, 1, 0, 1};
    struct vc_wire_run run;
    struct vc_err err;

    (void)state;
    make_blocks(&m);
    m.ram.blocks[0].bytes = 2 * m.ram.page_bytes;
    for (uint64_t without = 0; without <= both; without++) {
        struct vc_reader r = vc_reader(text, sizeof(text));
        struct vc_wire_cursor c = {0};
        int rc = vc_wire_run_decode(&r, &c, &m.ram, ~without, &run, &err);

        assert_int_equal(rc, without & both ? VC_E_PROTOCOL : 0);
        if (rc)
            continue;
        assert_true(run.kind == VC_RUN_DATA && run.old && run.shifted);
        assert_int_equal(run.from_page.n, 1);
    }
}

static void runs_of_noise_stay_inside_their_blocks(void **state)
{
    static union any m;
    unsigned taken = 0;

    (void)state;
    make_blocks(&m);
    for (unsigned round = 0; round < 100 * ROUNDS; round++) {
        uint8_t noise[24];
        struct vc_reader r = vc_reader(noise, 1 + below(sizeof(noise)));
        struct vc_wire_cursor c = {0};
        struct vc_wire_run run;
        struct vc_err err;

        fill(noise, sizeof(noise));
        while (vc_wire_run_decode(&r, &c, below(8) ? &m.ram : NULL, rng(), &run, &err) == 0) {
            uint64_t pages;

            taken++;
            assert_true(run.count > 0);
            if (run.kind == VC_RUN_OPAQUE)
                continue;
            assert_true(run.block < m.ram.n_blocks);
            pages = vc_ram_block_pages(&m.ram, run.block);
            assert_true(run.page.n < pages && run.count <= pages - run.page.n);
            if (!vc_wire_run_is_elsewhere(&run))
                continue;
            assert_true(run.from_block < m.ram.n_blocks);
            pages = vc_ram_block_pages(&m.ram, run.from_block);
            assert_true(run.from_page.n < pages && run.count <= pages - run.from_page.n);
        }
    }
    assert_true(taken > 0);
}

/* ---- bodies ---- */

static void make_body(uint8_t *p, size_t n, unsigned kind)
{
    fill(p, n);
    for (size_t i = 0; i < n && kind; i++)
        p[i] = kind == 1 ? (uint8_t)(p[i] & 3) : (uint8_t)(i >> 8);
}

static void bodies_survive_compression(void **state)
{
    const size_t sizes[] = {0, 1, 63, 64, 65, 4096, 65536, 300000, 1 << 20};
    struct vc_wire_codec *c;
    unsigned smaller = 0;
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_wire_codec_new(1, &c, &err), 0);
    for (size_t i = 0; i < VC_ARRAY_LEN(sizes); i++)
        for (unsigned kind = 0; kind < 3; kind++) {
            size_t n = sizes[i], cap = vc_wire_body_bound(n), k;
            uint8_t *body = malloc(n + 1), *packed = malloc(cap), *back = malloc(n + 2);

            make_body(body, n, kind);
            k = vc_wire_body_compress(c, body, n, NULL, packed, cap);
            assert_true(k <= n);
            if (n < 64 || kind == 0)
                assert_int_equal(k, 0);
            if (k) {
                smaller++;
                assert_int_equal(vc_wire_body_expand(c, packed, k, NULL, 0, back, n, &err), 0);
                assert_memory_equal(back, body, n);
                assert_int_equal(vc_wire_body_expand(c, packed, k, NULL, 0, back, n - 1, &err),
                                 VC_E_PROTOCOL);
                assert_int_equal(vc_wire_body_expand(c, packed, k, NULL, 0, back, n + 1, &err),
                                 VC_E_PROTOCOL);
                assert_int_equal(vc_wire_body_expand(c, packed, k - 1, NULL, 0, back, n, &err),
                                 VC_E_PROTOCOL);
            }
            free(body);
            free(packed);
            free(back);
        }
    assert_true(smaller > 8);
    vc_wire_codec_free(c);
}

/* ---- bodies with a prefix ---- */

enum { PAGE = 4096, MOST_PAGES = 256 };

/* What the other side has too, what has become of it, and room. */
static struct {
    uint8_t prefix[MOST_PAGES * PAGE], body[MOST_PAGES * PAGE], back[MOST_PAGES * PAGE],
        packed[MOST_PAGES * PAGE];
} d;

static size_t pack(struct vc_wire_codec *c, size_t n)
{
    const struct vc_wire_prefix prefix = {.p = d.prefix, .bytes = n};

    return vc_wire_body_compress(c, d.body, n, &prefix, d.packed, n);
}

static int unpack(struct vc_wire_codec *c, size_t packed, const uint8_t *prefix, size_t n)
{
    struct vc_err err;

    memset(d.back, 0, n);
    return vc_wire_body_expand(c, d.packed, packed, prefix, prefix ? n : 0, d.back, n, &err);
}

static void change_a_few_bytes(size_t n)
{
    memcpy(d.body, d.prefix, n);
    for (size_t at = 0; at < n; at += PAGE) {
        d.body[at + 1000] ^= 0xff;
        memcpy(d.body + at + 2000, "what has changed", 16);
    }
}

static void a_changed_page_shrinks_to_what_has_changed(void **state)
{
    const unsigned counts[] = {1, 2, 16, 17, MOST_PAGES};
    struct vc_wire_codec *c;
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_wire_codec_new(1, &c, &err), 0);
    for (size_t i = 0; i < VC_ARRAY_LEN(counts); i++)
        for (int level = 1; level <= 3; level++) {
            size_t n = (size_t)counts[i] * PAGE, k;

            vc_wire_codec_set_level(c, level);
            fill(d.prefix, n); /* cannot be compressed by itself */
            change_a_few_bytes(n);
            k = pack(c, n);
            assert_in_range(k, 1, 64 + 40 * (size_t)counts[i]);
            assert_int_equal(unpack(c, k, d.prefix, n), 0);
            assert_memory_equal(d.back, d.body, n);
            /* A prefix is for one body. */
            assert_int_equal(vc_wire_body_compress(c, d.body, n, NULL, d.packed, n), 0);
        }
    vc_wire_codec_free(c);
}

/* As a database may have them: numbers of twelve digits, most of which are 0. */
static void put_values(uint8_t *p, size_t n, unsigned one_of)
{
    enum { VALUE = 736, HEAD = 16 };

    for (size_t at = 0; at + VALUE <= n; at += VALUE) {
        if (below(one_of))
            continue;
        for (size_t i = HEAD; i + 12 <= VALUE; i += 12) {
            char number[13];

            snprintf(number, sizeof(number), "%012u", (unsigned)below(40000));
            memcpy(p + at + i, number, 12);
        }
    }
}

/* What is not changed is found in its old page, not in what looks like its begin elsewhere. */
static void values_that_are_alike_do_not_hide_what_a_page_was(void **state)
{
    size_t n = sizeof(d.prefix), k;
    struct vc_wire_codec *c;
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_wire_codec_new(1, &c, &err), 0);
    memset(d.prefix, 7, n);
    put_values(d.prefix, n, 1);
    memcpy(d.body, d.prefix, n);
    put_values(d.body, n, 4);
    k = pack(c, n);
    print_message("%zu of %zu bytes\n", k, n);
    assert_in_range(k, 1, n / 14);
    assert_int_equal(unpack(c, k, d.prefix, n), 0);
    assert_memory_equal(d.back, d.body, n);
    vc_wire_codec_free(c);
}

static void a_wrong_prefix_never_gives_the_body(void **state)
{
    static uint8_t other[16 * PAGE];
    struct vc_wire_codec *c;
    struct vc_err err;
    size_t k;

    (void)state;
    assert_int_equal(vc_wire_codec_new(1, &c, &err), 0);
    for (unsigned round = 0; round < ROUNDS; round++) {
        size_t n = PAGE * (1 + below(16));

        fill(d.prefix, n);
        change_a_few_bytes(n);
        k = pack(c, n);
        assert_int_not_equal(k, 0);
        memcpy(other, d.prefix, n);
        if (below(2))
            other[PAGE * below(n / PAGE) + 500] ^= 1; /* where nothing has changed */
        else
            fill(other, n);
        if (unpack(c, k, other, n) == 0)
            assert_memory_not_equal(d.back, d.body, n);
        if (unpack(c, k, NULL, n) == 0)
            assert_memory_not_equal(d.back, d.body, n);
        /* And nothing of that is left behind. */
        assert_int_equal(unpack(c, k, d.prefix, n), 0);
        assert_memory_equal(d.back, d.body, n);
    }
    vc_wire_codec_free(c);
}

/* A page that begins as a zstd dictionary is content like any other: a guest could write it. */
static void a_guest_cannot_write_a_dictionary(void **state)
{
    struct vc_wire_codec *c;
    struct vc_err err;
    size_t k;

    (void)state;
    assert_int_equal(vc_wire_codec_new(1, &c, &err), 0);
    for (unsigned pages = 1; pages <= 32; pages *= 2) {
        fill(d.prefix, pages * PAGE);
        vc_store_le(d.prefix, 0xec30a437, 4);
        change_a_few_bytes(pages * PAGE);
        k = pack(c, pages * PAGE);
        assert_in_range(k, 1, 64 + 40 * pages);
        assert_int_equal(unpack(c, k, d.prefix, pages * PAGE), 0);
        assert_memory_equal(d.back, d.body, pages * PAGE);
    }
    vc_wire_codec_free(c);
}

static void what_a_prefix_does_not_help_is_sent_as_it_is(void **state)
{
    struct vc_wire_codec *c;
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_wire_codec_new(1, &c, &err), 0);
    for (unsigned pages = 1; pages <= MOST_PAGES; pages *= 4) {
        fill(d.prefix, pages * PAGE);
        fill(d.body, pages * PAGE);
        assert_int_equal(pack(c, pages * PAGE), 0);
    }
    change_a_few_bytes(PAGE);
    assert_int_equal(pack(c, 63), 0);
    vc_wire_codec_free(c);
}

static void some_pages_of_a_body_may_have_an_old_one(void **state)
{
    const struct vc_wire_prefix prefix = {.p = d.prefix, .bytes = 8 * PAGE};
    const size_t n = 40 * PAGE;
    struct vc_wire_codec *c;
    struct vc_err err;
    size_t k;

    (void)state;
    assert_int_equal(vc_wire_codec_new(1, &c, &err), 0);
    fill(d.prefix, prefix.bytes);
    fill(d.body, n);
    memcpy(d.body + 32 * PAGE, d.prefix, prefix.bytes);
    d.body[33 * PAGE] ^= 1;
    k = vc_wire_body_compress(c, d.body, n, &prefix, d.packed, n);
    assert_in_range(k, 1, 33 * PAGE);
    memset(d.back, 0, n);
    assert_int_equal(vc_wire_body_expand(c, d.packed, k, d.prefix, prefix.bytes, d.back, n, &err),
                     0);
    assert_memory_equal(d.back, d.body, n);
    vc_wire_codec_free(c);
}

static void a_sample_shrinks_by_itself_or_beside_what_it_was(void **state)
{
    const struct vc_wire_prefix old = {.p = d.prefix, .bytes = PAGE};
    struct vc_wire_codec *c;
    struct vc_err err;

    (void)state;
    assert_int_equal(vc_wire_codec_new(1, &c, &err), 0);
    fill(d.prefix, PAGE);
    change_a_few_bytes(PAGE);
    assert_false(vc_wire_sample_shrinks(c, d.body, PAGE, NULL));
    assert_true(vc_wire_sample_shrinks(c, d.body, PAGE, &old));
    fill(d.body, PAGE);
    assert_false(vc_wire_sample_shrinks(c, d.body, PAGE, &old));
    memset(d.body, 'a', PAGE);
    assert_true(vc_wire_sample_shrinks(c, d.body, PAGE, NULL));
    /* So much is looked at, and no more. */
    fill(d.body, VC_WIRE_SAMPLE_BYTES);
    memset(d.body + VC_WIRE_SAMPLE_BYTES, 'a', VC_WIRE_SAMPLE_BYTES);
    assert_false(vc_wire_sample_shrinks(c, d.body, 2 * VC_WIRE_SAMPLE_BYTES, NULL));
    vc_wire_codec_set_level(c, 0);
    memset(d.body, 'a', PAGE);
    assert_false(vc_wire_sample_shrinks(c, d.body, PAGE, NULL));
    vc_wire_codec_free(c);
}

static void only_one_frame_of_zstd_is_a_body(void **state)
{
    const size_t n = 2 * PAGE;
    struct vc_wire_codec *c;
    struct vc_err err;
    size_t k;

    (void)state;
    assert_int_equal(vc_wire_codec_new(1, &c, &err), 0);
    fill(d.prefix, n);
    change_a_few_bytes(n);
    k = pack(c, n);
    assert_int_equal(vc_wire_body_check(d.packed, k, n, &err), 0);
    assert_int_equal(vc_wire_body_check(d.packed, k, n + 1, &err), VC_E_PROTOCOL);
    assert_int_equal(vc_wire_body_check(d.packed, k, n - 1, &err), VC_E_PROTOCOL);
    assert_int_equal(vc_wire_body_check(d.packed, k + 1, n, &err), VC_E_PROTOCOL);
    for (size_t i = 0; i < k; i++)
        assert_int_equal(vc_wire_body_check(d.packed, i, n, &err), VC_E_PROTOCOL);
    for (unsigned magic = 1; magic < 256; magic++) { /* skippable ones, those of old versions */
        d.packed[0] ^= (uint8_t)magic;
        assert_int_equal(vc_wire_body_check(d.packed, k, n, &err), VC_E_PROTOCOL);
        d.packed[0] ^= (uint8_t)magic;
    }
    vc_wire_codec_free(c);
}

static void a_batch_header_survives(void **state)
{
    (void)state;
    for (unsigned round = 0; round < ROUNDS; round++) {
        static uint8_t payload[VC_WIRE_BATCH_HEADER_BYTES + 4096];
        struct vc_wire_batch b = {0}, back;
        struct vc_err err;
        size_t n = VC_WIRE_BATCH_HEADER_BYTES;

        memset(&back, 0, sizeof(back));
        b.seq = any_u64() | 1;
        b.position = any_u64();
        b.stream_bytes = (uint32_t)below(VC_WIRE_MAX_BATCH_STREAM_BYTES + 1);
        b.codec = (uint8_t)below(3);
        b.runs_bytes = (uint32_t)below(b.codec == 1 ? VC_WIRE_MAX_BATCH_RUNS_BYTES + 1 : 2048);
        b.body_bytes = b.runs_bytes + (uint32_t)below(b.codec ? b.stream_bytes + 1ull
                                                              : VC_MIN(b.stream_bytes, 2048u) + 1);
        b.flags = (uint8_t)below(2);
        fill(b.seal, sizeof(b.seal));
        if (b.codec == VC_WIRE_CODEC_DELTA) {
            b.flags = 0;
            n += b.runs_bytes + 1 + below(4096 - b.runs_bytes);
        } else {
            n += b.codec ? below(4097) : b.body_bytes;
        }
        vc_wire_batch_encode(payload, &b);
        assert_int_equal(vc_wire_batch_decode(payload, n, &back, &err), 0);
        assert_memory_equal(&back, &b, sizeof(b));
        if (b.codec != VC_WIRE_CODEC_DELTA)
            continue;
        assert_int_equal(
            vc_wire_batch_decode(payload, VC_WIRE_BATCH_HEADER_BYTES + b.runs_bytes, &back, &err),
            VC_E_PROTOCOL); /* contents missing */
        b.flags = VC_WIRE_BATCH_SELF_CONTAINED;
        vc_wire_batch_encode(payload, &b);
        assert_int_equal(vc_wire_batch_decode(payload, n, &back, &err), VC_E_PROTOCOL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_are_allowed_as_the_page_says),
        cmocka_unit_test(channels_and_flags_have_limits),
        cmocka_unit_test(every_message_survives_the_way_to_bytes_and_back),
        cmocka_unit_test(no_message_is_taken_short_or_long),
        cmocka_unit_test(no_message_is_written_beyond_its_room),
        cmocka_unit_test(a_text_and_its_hint_share_a_limit),
        cmocka_unit_test(a_text_cannot_reach_for_the_terminal),
        cmocka_unit_test(repairs_survive),
        cmocka_unit_test(repaired_pages_have_the_page_size),
        cmocka_unit_test(runs_survive),
        cmocka_unit_test(old_is_for_data_and_has_to_be_agreed_on),
        cmocka_unit_test(shifted_runs_have_to_be_agreed_on),
        cmocka_unit_test(runs_of_noise_stay_inside_their_blocks),
        cmocka_unit_test(bodies_survive_compression),
        cmocka_unit_test(a_changed_page_shrinks_to_what_has_changed),
        cmocka_unit_test(values_that_are_alike_do_not_hide_what_a_page_was),
        cmocka_unit_test(a_wrong_prefix_never_gives_the_body),
        cmocka_unit_test(a_guest_cannot_write_a_dictionary),
        cmocka_unit_test(what_a_prefix_does_not_help_is_sent_as_it_is),
        cmocka_unit_test(some_pages_of_a_body_may_have_an_old_one),
        cmocka_unit_test(a_sample_shrinks_by_itself_or_beside_what_it_was),
        cmocka_unit_test(only_one_frame_of_zstd_is_a_body),
        cmocka_unit_test(a_batch_header_survives),
    };

    return cmocka_run_group_tests(tests, seed, NULL);
}
