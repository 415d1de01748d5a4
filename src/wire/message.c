/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "base/bytes.h"
#include "wire/wire.h"

/* Payloads of the small messages, in the order of docs/formats/wire.md section 3. */

static const char hello_magic[8] = VC_WIRE_MAGIC;

static int illegal(struct vc_err *err, const char *type, const char *what)
{
    return vc_err_set(err, VC_E_PROTOCOL, "%s: %s", type, what);
}

/* Every decoder ends here: all fields were there, and nothing behind them. */
static int complete(const struct vc_reader *r, const char *type, struct vc_err *err)
{
    if (r->failed)
        return illegal(err, type, "too short, or a malformed field");
    if (r->off != r->len)
        return illegal(err, type, "bytes behind the last field");
    return 0;
}

/* A boolean byte: 0 or 1. */
static bool read_bool(struct vc_reader *r)
{
    uint8_t v = vc_read_u8(r);

    if (v > 1)
        r->failed = true;
    return v == 1;
}

static void read_zeroes(struct vc_reader *r, size_t n)
{
    while (n--)
        if (vc_read_u8(r))
            r->failed = true;
}

static void write_zeroes(struct vc_writer *w, size_t n)
{
    while (n--)
        vc_write_u8(w, 0);
}

static void read_id(struct vc_reader *r, struct vc_id *id)
{
    vc_read_copy(r, id->b, sizeof(id->b));
}

static void write_id(struct vc_writer *w, const struct vc_id *id)
{
    vc_write_bytes(w, id->b, sizeof(id->b));
}

static void read_lineage(struct vc_reader *r, struct vc_wire_lineage *l)
{
    read_id(r, &l->id);
    l->algo = vc_read_u8(r);
    l->flags = vc_read_u8(r);
    if (l->flags & ~VC_WIRE_LINEAGE_EXPOSED)
        r->failed = true;
}

static void write_lineage(struct vc_writer *w, const struct vc_wire_lineage *l)
{
    write_id(w, &l->id);
    vc_write_u8(w, l->algo);
    vc_write_u8(w, l->flags);
}

void vc_wire_hello_encode(struct vc_writer *w, const struct vc_wire_hello *m)
{
    vc_write_bytes(w, hello_magic, sizeof(hello_magic));
    vc_write_u16(w, m->version_min);
    vc_write_u16(w, m->version_max);
    vc_write_u8(w, m->role);
    vc_write_u8(w, m->security);
    vc_write_u16(w, 0);
    vc_write_u64(w, m->features);
    vc_write_str8(w, m->software);
}

int vc_wire_hello_decode(const uint8_t *p, size_t n, struct vc_wire_hello *m, struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);
    const uint8_t *magic = vc_read_bytes(&r, sizeof(hello_magic));

    if (!magic || memcmp(magic, hello_magic, sizeof(hello_magic)) != 0)
        return illegal(err, "HELLO", "this is not vecycle");
    m->version_min = vc_read_u16(&r);
    m->version_max = vc_read_u16(&r);
    m->role = vc_read_u8(&r);
    m->security = vc_read_u8(&r);
    vc_read_u16(&r);
    m->features = vc_read_u64(&r);
    vc_read_str8(&r, m->software);
    /* A later version may append: only the first fields are fixed for all time. */
    if (r.failed || m->version_min > m->version_max ||
        (m->role != VC_WIRE_SOURCE && m->role != VC_WIRE_DESTINATION) ||
        m->security > VC_WIRE_PLAINTEXT)
        return illegal(err, "HELLO", "a field is out of range");
    return 0;
}

void vc_wire_open_encode(struct vc_writer *w, const struct vc_wire_open *m)
{
    write_id(w, &m->session);
    write_id(w, &m->vm);
    vc_write_u8(w, m->mode);
    vc_write_str8(w, m->name);
    vc_write_u32(w, m->window_bytes);
    vc_write_u8(w, m->has_lineage);
    if (m->has_lineage)
        write_lineage(w, &m->lineage);
    vc_write_u8(w, m->n_generations);
    for (unsigned i = 0; i < m->n_generations; i++) {
        write_id(w, &m->generations[i].id);
        vc_write_bytes(w, m->generations[i].root, VC_WIRE_ROOT_BYTES);
    }
    if (m->mode == VC_WIRE_MODE_RECOVER)
        write_id(w, &m->interrupted);
}

int vc_wire_open_decode(const uint8_t *p, size_t n, struct vc_wire_open *m, struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);

    memset(m, 0, sizeof(*m));
    read_id(&r, &m->session);
    read_id(&r, &m->vm);
    m->mode = vc_read_u8(&r);
    vc_read_str8(&r, m->name);
    m->window_bytes = vc_read_u32(&r);
    m->has_lineage = read_bool(&r);
    if (m->has_lineage)
        read_lineage(&r, &m->lineage);
    m->n_generations = vc_read_u8(&r);
    if (m->n_generations > VC_WIRE_MAX_GENERATIONS)
        return illegal(err, "OPEN", "too many generations");
    for (unsigned i = 0; i < m->n_generations; i++) {
        read_id(&r, &m->generations[i].id);
        vc_read_copy(&r, m->generations[i].root, VC_WIRE_ROOT_BYTES);
    }
    if (m->mode < VC_WIRE_MODE_PROXY || m->mode > VC_WIRE_MODE_REKEY)
        return illegal(err, "OPEN", "unknown mode");
    if (m->mode == VC_WIRE_MODE_RECOVER)
        read_id(&r, &m->interrupted);
    return complete(&r, "OPEN", err);
}

void vc_wire_accept_encode(struct vc_writer *w, const struct vc_wire_accept *m)
{
    vc_write_u8(w, m->base);
    write_id(w, &m->generation);
    vc_write_u8(w, m->has_lineage);
    if (m->has_lineage) {
        write_lineage(w, &m->lineage);
        vc_write_bytes(w, m->key, VC_WIRE_KEY_BYTES);
    }
    vc_write_u8(w, m->needs_key);
    vc_write_u32(w, m->max_batch_stream_bytes);
}

int vc_wire_accept_decode(const uint8_t *p, size_t n, struct vc_wire_accept *m, struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);

    memset(m, 0, sizeof(*m));
    m->base = vc_read_u8(&r);
    read_id(&r, &m->generation);
    m->has_lineage = read_bool(&r);
    if (m->has_lineage) {
        read_lineage(&r, &m->lineage);
        vc_read_copy(&r, m->key, VC_WIRE_KEY_BYTES);
    }
    m->needs_key = read_bool(&r);
    m->max_batch_stream_bytes = vc_read_u32(&r);
    if (m->base > VC_WIRE_BASE_ANNOUNCE)
        return illegal(err, "ACCEPT", "unknown kind of base");
    return complete(&r, "ACCEPT", err);
}

void vc_wire_start_encode(struct vc_writer *w, const struct vc_wire_start *m)
{
    static const uint8_t none[VC_WIRE_KEY_BYTES];

    write_lineage(w, &m->lineage);
    vc_write_u8(w, m->base);
    vc_write_u8(w, m->has_key);
    vc_write_bytes(w, m->has_key ? m->key : none, VC_WIRE_KEY_BYTES);
    write_id(w, &m->generation);
    vc_write_u32(w, 0);
}

int vc_wire_start_decode(const uint8_t *p, size_t n, struct vc_wire_start *m, struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);

    memset(m, 0, sizeof(*m));
    read_lineage(&r, &m->lineage);
    m->base = vc_read_u8(&r);
    m->has_key = read_bool(&r);
    if (m->has_key)
        vc_read_copy(&r, m->key, VC_WIRE_KEY_BYTES);
    else
        read_zeroes(&r, VC_WIRE_KEY_BYTES);
    read_id(&r, &m->generation);
    read_zeroes(&r, 4);
    if (m->base > VC_WIRE_BASE_ANNOUNCE)
        return illegal(err, "START", "unknown kind of base");
    return complete(&r, "START", err);
}

void vc_wire_blocks_encode(struct vc_writer *w, const struct vc_ram *ram)
{
    vc_write_u32(w, ram->page_bytes);
    vc_write_u32(w, ram->n_blocks);
    for (uint32_t i = 0; i < ram->n_blocks; i++) {
        vc_write_str8(w, ram->blocks[i].name);
        vc_write_u64(w, ram->blocks[i].bytes);
    }
}

int vc_wire_blocks_decode(const uint8_t *p, size_t n, struct vc_ram *ram, struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);

    memset(ram, 0, sizeof(*ram));
    ram->page_bytes = vc_read_u32(&r);
    ram->n_blocks = vc_read_u32(&r);
    if (ram->page_bytes < VC_MIN_PAGE_BYTES || ram->page_bytes > VC_MAX_PAGE_BYTES ||
        (ram->page_bytes & (ram->page_bytes - 1)))
        return illegal(err, "BLOCKS", "impossible page size");
    if (ram->n_blocks == 0 || ram->n_blocks > VC_MAX_BLOCKS)
        return illegal(err, "BLOCKS", "impossible number of blocks");
    for (uint32_t i = 0; i < ram->n_blocks; i++) {
        struct vc_block *b = &ram->blocks[i];

        if (!vc_read_str8(&r, b->name) || !b->name[0])
            return illegal(err, "BLOCKS", "a block without a name");
        b->bytes = vc_read_u64(&r);
        if (b->bytes > VC_MAX_BLOCK_BYTES || b->bytes % ram->page_bytes)
            return illegal(err, "BLOCKS", "impossible length of a block");
        for (uint32_t k = 0; k < i; k++)
            if (!strcmp(ram->blocks[k].name, b->name))
                return illegal(err, "BLOCKS", "two blocks of one name");
    }
    return complete(&r, "BLOCKS", err);
}

void vc_wire_ack_encode(struct vc_writer *w, const struct vc_wire_ack *m)
{
    vc_write_u64(w, m->seq);
    vc_write_u64(w, m->position);
}

int vc_wire_ack_decode(const uint8_t *p, size_t n, struct vc_wire_ack *m, struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);

    m->seq = vc_read_u64(&r);
    m->position = vc_read_u64(&r);
    return complete(&r, "ACK", err);
}

void vc_wire_reads_encode(struct vc_writer *w, const struct vc_wire_reads *m)
{
    vc_write_u64(w, m->elapsed_ns);
    vc_write_u64(w, m->waiting_ns);
    vc_write_u64(w, m->reading_ns);
    vc_write_u64(w, m->bytes);
    vc_write_u64(w, m->content_bytes);
}

int vc_wire_reads_decode(const uint8_t *p, size_t n, struct vc_wire_reads *m, struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);

    m->elapsed_ns = vc_read_u64(&r);
    m->waiting_ns = vc_read_u64(&r);
    m->reading_ns = vc_read_u64(&r);
    m->bytes = vc_read_u64(&r);
    m->content_bytes = vc_read_u64(&r);
    return complete(&r, "READS", err);
}

int vc_wire_keeps_decode(const uint8_t *p, size_t n, uint8_t *flags, struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);

    *flags = vc_read_u8(&r);
    if (*flags & ~(VC_WIRE_KEEPS_NEW | VC_WIRE_KEEPS_PARTIAL))
        return vc_err_set(err, VC_E_PROTOCOL, "KEEPS: unknown flags %#x", *flags);
    return complete(&r, "KEEPS", err);
}

void vc_wire_committed_encode(struct vc_writer *w, const struct vc_wire_committed *m)
{
    write_id(w, &m->generation);
    vc_write_u8(w, m->committed);
    write_zeroes(w, 7);
    vc_write_bytes(w, m->root, VC_WIRE_ROOT_BYTES);
}

int vc_wire_committed_decode(const uint8_t *p, size_t n, struct vc_wire_committed *m,
                             struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);

    read_id(&r, &m->generation);
    m->committed = read_bool(&r);
    read_zeroes(&r, 7);
    vc_read_copy(&r, m->root, VC_WIRE_ROOT_BYTES);
    return complete(&r, "COMMITTED", err);
}

void vc_wire_word_encode(struct vc_writer *w, const struct vc_wire_word_msg *m)
{
    vc_write_u8(w, m->word);
    write_id(w, &m->session);
}

int vc_wire_word_decode(const uint8_t *p, size_t n, struct vc_wire_word_msg *m, struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);

    m->word = vc_read_u8(&r);
    read_id(&r, &m->session);
    if ((m->word < VC_WIRE_WORD_CONTINUE || m->word > VC_WIRE_WORD_SUSPEND) &&
        m->word != VC_WIRE_WORD_DISMISS && m->word != VC_WIRE_WORD_ASK)
        return illegal(err, "WORD", "unknown word");
    return complete(&r, "WORD", err);
}

void vc_wire_status_encode(struct vc_writer *w, const struct vc_wire_status *m)
{
    size_t text = strlen(m->text), hint = strlen(m->hint);
    size_t both = hint ? text + 1 + hint : text;

    vc_write_u32(w, m->code);
    if (both > VC_WIRE_MAX_TEXT_BYTES) {
        w->failed = true;
        return;
    }
    vc_write_u8(w, (uint8_t)both);
    vc_write_bytes(w, m->text, text);
    if (hint)
        vc_write_u8(w, '\n');
    vc_write_bytes(w, m->hint, hint);
}

int vc_wire_status_decode(const uint8_t *p, size_t n, struct vc_wire_status *m, struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);

    char *newline;

    memset(m, 0, sizeof(*m));
    m->code = vc_read_u32(&r);
    vc_read_str8(&r, m->text);
    newline = strchr(m->text, '\n');
    if (newline) {
        strcpy(m->hint, newline + 1);
        *newline = '\0';
    }
    vc_make_printable(m->text);
    vc_make_printable(m->hint);
    return complete(&r, "status", err);
}

void vc_wire_u64_encode(struct vc_writer *w, uint64_t v)
{
    vc_write_u64(w, v);
}

int vc_wire_u64_decode(const uint8_t *p, size_t n, uint64_t *v, struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);

    *v = vc_read_u64(&r);
    return complete(&r, "number", err);
}

void vc_wire_repair_encode(struct vc_writer *w, uint64_t seq, const uint32_t *ordinals, uint32_t n)
{
    vc_write_u64(w, seq);
    vc_write_u32(w, n);
    for (uint32_t i = 0; i < n; i++)
        vc_write_u32(w, ordinals[i]);
}

int vc_wire_repair_decode(const uint8_t *p, size_t n, struct vc_wire_repair *m, struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);

    m->seq = vc_read_u64(&r);
    m->n = vc_read_u32(&r);
    if (m->n == 0 || m->n > VC_WIRE_MAX_REPAIR_PAGES)
        return illegal(err, "REPAIR", "impossible number of pages");
    m->ordinals = vc_read_bytes(&r, 4 * (size_t)m->n);
    return complete(&r, "REPAIR", err);
}

int vc_wire_repaired_decode(const uint8_t *p, size_t n, uint32_t page_bytes,
                            struct vc_wire_repaired *m, struct vc_err *err)
{
    struct vc_reader r = vc_reader(p, n);

    m->seq = vc_read_u64(&r);
    m->n = vc_read_u32(&r);
    if (m->n == 0 || m->n > VC_WIRE_REPAIRED_PAGES)
        return illegal(err, "REPAIRED", "impossible number of pages");
    m->entries = vc_read_bytes(&r, (size_t)m->n * (4 + page_bytes));
    return complete(&r, "REPAIRED", err);
}
