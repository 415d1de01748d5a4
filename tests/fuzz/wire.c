/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Frame headers and the payload of every small message: what is accepted is within its limits, and
 * is encoded to the very bytes that it was decoded from.
 *
 * Input: a byte that chooses a decoder by frame type (0: a frame's header), then what it gets. */

#include "wire/wire.h"
#include "fuzz.h"

static void check_header(const uint8_t header[VC_WIRE_HEADER_BYTES], enum vc_wire_role sender,
                         enum vc_wire_phase phase)
{
    uint8_t again[VC_WIRE_HEADER_BYTES];
    struct vc_err err = VC_ERR_INIT;
    struct vc_wire_frame f;
    bool known;
    int rc = vc_wire_frame_decode(header, sender, phase, &f, &err);

    fuzz_check_error(rc, &err);
    if (rc < 0) {
        FUZZ_ASSERT(rc == VC_E_PROTOCOL);
        return;
    }
    known = strcmp(vc_wire_type_name(f.type), "?") != 0;
    FUZZ_ASSERT(known == (rc == 0));
    FUZZ_ASSERT(known || (f.flags & VC_WIRE_FRAME_OPTIONAL));
    FUZZ_ASSERT(f.bytes <= VC_WIRE_MAX_FRAME_BYTES && f.channel < VC_WIRE_MAX_CHANNELS);
    vc_wire_frame_encode(&f, again);
    FUZZ_ASSERT(!memcmp(header, again, sizeof(again)));
}

static void frame_header(struct vc_reader in)
{
    static const enum vc_wire_phase phases[] = {VC_WIRE_PHASE_HELLO, VC_WIRE_PHASE_OPEN,
                                                VC_WIRE_PHASE_STREAM, VC_WIRE_PHASE_END};
    uint8_t header[VC_WIRE_HEADER_BYTES] = {0};
    struct vc_reader part = fuzz_part(&in, sizeof(header));

    if (part.len)
        memcpy(header, part.data, part.len);
    for (size_t i = 0; i < VC_ARRAY_LEN(phases); i++) {
        check_header(header, VC_WIRE_SOURCE, phases[i]);
        check_header(header, VC_WIRE_DESTINATION, phases[i]);
    }
}

/* Decodes into a variable of that type and back. @same: the bytes must be the very ones; else only
 * what they decode to. */
#define MESSAGE(name, type, decode, encode, same)                         \
    static void name(struct vc_reader in)                                 \
    {                                                                     \
        static uint8_t buf[1 << 17], twice[1 << 17];                      \
        struct vc_writer w = vc_writer(buf, sizeof(buf));                 \
        struct vc_writer w2 = vc_writer(twice, sizeof(twice));            \
        struct vc_err err = VC_ERR_INIT;                                  \
        static type m, m2;                                                \
        int rc = decode(in.data, in.len, &m, &err);                       \
                                                                          \
        fuzz_check_error(rc, &err);                                       \
        FUZZ_ASSERT(rc == 0 || rc == VC_E_PROTOCOL);                      \
        if (rc)                                                           \
            return;                                                       \
        encode(&w, &m);                                                   \
        FUZZ_ASSERT(!w.failed);                                           \
        if (same)                                                         \
            FUZZ_ASSERT(w.len == in.len && !memcmp(buf, in.data, w.len)); \
        FUZZ_ASSERT(decode(buf, w.len, &m2, &err) == 0);                  \
        encode(&w2, &m2);                                                 \
        FUZZ_ASSERT(w2.len == w.len && !memcmp(buf, twice, w.len));       \
    }

static void u64_encode(struct vc_writer *w, const uint64_t *v)
{
    vc_wire_u64_encode(w, *v);
}

static void keeps_encode(struct vc_writer *w, const uint8_t *flags)
{
    vc_write_u8(w, *flags);
}

/* A later version's HELLO may be longer, and a status text is made printable. */
MESSAGE(hello, struct vc_wire_hello, vc_wire_hello_decode, vc_wire_hello_encode, false)
MESSAGE(open_, struct vc_wire_open, vc_wire_open_decode, vc_wire_open_encode, true)
MESSAGE(accept_, struct vc_wire_accept, vc_wire_accept_decode, vc_wire_accept_encode, true)
MESSAGE(start, struct vc_wire_start, vc_wire_start_decode, vc_wire_start_encode, true)
MESSAGE(blocks, struct vc_ram, vc_wire_blocks_decode, vc_wire_blocks_encode, true)
MESSAGE(ack, struct vc_wire_ack, vc_wire_ack_decode, vc_wire_ack_encode, true)
MESSAGE(reads, struct vc_wire_reads, vc_wire_reads_decode, vc_wire_reads_encode, true)
MESSAGE(keeps, uint8_t, vc_wire_keeps_decode, keeps_encode, true)
MESSAGE(committed, struct vc_wire_committed, vc_wire_committed_decode, vc_wire_committed_encode,
        true)
MESSAGE(word, struct vc_wire_word_msg, vc_wire_word_decode, vc_wire_word_encode, true)
MESSAGE(status, struct vc_wire_status, vc_wire_status_decode, vc_wire_status_encode, false)
MESSAGE(number, uint64_t, vc_wire_u64_decode, u64_encode, true)

MESSAGE(ready, struct vc_wire_generation, vc_wire_ready_decode, vc_wire_ready_encode, true)

static void rekeyed(struct vc_reader in)
{
    static uint8_t buf[4 + 20 * VC_WIRE_MAX_REKEYED_RANGES];
    static struct vc_wire_range ranges[VC_WIRE_MAX_REKEYED_RANGES];
    struct vc_writer w = vc_writer(buf, sizeof(buf));
    struct vc_err err = VC_ERR_INIT;
    struct vc_wire_rekeyed m;
    int rc = vc_wire_rekeyed_decode(in.data, in.len, &m, &err);

    fuzz_check_error(rc, &err);
    if (rc)
        return;
    for (uint32_t i = 0; i < m.n; i++) {
        ranges[i] = vc_wire_rekeyed_range(&m, i);
        FUZZ_ASSERT(ranges[i].count);
    }
    vc_wire_rekeyed_encode(&w, ranges, m.n);
    FUZZ_ASSERT(!w.failed && w.len == in.len && !memcmp(buf, in.data, w.len));
}

static void repair(struct vc_reader in)
{
    static uint8_t buf[12 + 4 * VC_WIRE_MAX_REPAIR_PAGES];
    static uint32_t ordinals[VC_WIRE_MAX_REPAIR_PAGES];
    struct vc_writer w = vc_writer(buf, sizeof(buf));
    struct vc_err err = VC_ERR_INIT;
    struct vc_wire_repair m;
    int rc = vc_wire_repair_decode(in.data, in.len, &m, &err);

    fuzz_check_error(rc, &err);
    if (rc)
        return;
    for (uint32_t i = 0; i < m.n; i++)
        ordinals[i] = (uint32_t)vc_load_le(m.ordinals + 4 * (size_t)i, 4);
    vc_wire_repair_encode(&w, m.seq, ordinals, m.n);
    FUZZ_ASSERT(!w.failed && w.len == in.len && !memcmp(buf, in.data, w.len));
}

static void repaired(struct vc_reader in)
{
    uint32_t page_bytes = VC_MIN_PAGE_BYTES << fuzz_number(&in, 1) % 7;
    struct vc_reader rest = fuzz_rest(&in);
    struct vc_err err = VC_ERR_INIT;
    struct vc_wire_repaired m;
    int rc = vc_wire_repaired_decode(rest.data, rest.len, page_bytes, &m, &err);

    fuzz_check_error(rc, &err);
    if (rc)
        return;
    FUZZ_ASSERT(m.n >= 1 && m.n <= VC_WIRE_REPAIRED_PAGES);
    FUZZ_ASSERT(m.entries == rest.data + 12);
    FUZZ_ASSERT(rest.len == 12 + (size_t)m.n * (4 + page_bytes));
}

/* The list of blocks with a length before it, then an ANNOUNCE about them. */
static void announce(struct vc_reader in)
{
    size_t n_blocks = (size_t)fuzz_number(&in, 2);
    struct vc_reader list = fuzz_part(&in, n_blocks), rest = fuzz_rest(&in);
    uint8_t *buf = malloc(rest.len + 1);
    struct vc_writer w = vc_writer(buf, rest.len);
    struct vc_err err = VC_ERR_INIT;
    struct vc_wire_announce a;
    struct vc_wire_announce_run run;
    static struct vc_ram ram;
    int rc = vc_wire_blocks_decode(list.data, list.len, &ram, &err);

    FUZZ_ASSERT(buf);
    if (!rc)
        rc = vc_wire_announce_open(rest.data, rest.len, &ram, &a, &err);
    if (!rc) {
        FUZZ_ASSERT(a.block < ram.n_blocks);
        vc_write_u32(&w, a.block);
        vc_write_u64(&w, a.page.n);
    }
    while (!rc && (rc = vc_wire_announce_next(&a, &ram, &run, &err)) == 0) {
        FUZZ_ASSERT(run.count >= 1 && run.held <= VC_WIRE_HELD);
        FUZZ_ASSERT(run.count <= vc_ram_block_pages(&ram, a.block));
        FUZZ_ASSERT(run.page.n <= vc_ram_block_pages(&ram, a.block) - run.count);
        vc_write_u8(&w, run.held);
        vc_write_varint(&w, run.count);
        if (run.held == VC_WIRE_HELD)
            vc_write_bytes(&w, run.prefixes, 8 * run.count);
    }
    fuzz_check_error(rc, &err);
    if (rc == VC_EOF)
        FUZZ_ASSERT(!w.failed && w.len == rest.len && !memcmp(buf, rest.data, w.len));
    free(buf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct vc_reader in = vc_reader(data, n);
    uint8_t type = (uint8_t)fuzz_number(&in, 1);
    struct vc_reader rest = fuzz_rest(&in);

    switch (type) {
    case 0:
        frame_header(rest);
        break;
    case VC_WIRE_HELLO:
        hello(rest);
        break;
    case VC_WIRE_OPEN:
        open_(rest);
        break;
    case VC_WIRE_ACCEPT:
        accept_(rest);
        break;
    case VC_WIRE_START:
        start(rest);
        break;
    case VC_WIRE_BLOCKS:
    case VC_WIRE_ANNOUNCE_BLOCKS:
        blocks(rest);
        break;
    case VC_WIRE_ACK:
        ack(rest);
        break;
    case VC_WIRE_READS:
        reads(rest);
        break;
    case VC_WIRE_KEEPS:
        keeps(rest);
        break;
    case VC_WIRE_REKEYED:
        rekeyed(rest);
        break;
    case VC_WIRE_READY:
        ready(rest);
        break;
    case VC_WIRE_REPAIR:
        repair(rest);
        break;
    case VC_WIRE_REPAIRED:
        repaired(rest);
        break;
    case VC_WIRE_ANNOUNCE:
        announce(rest);
        break;
    case VC_WIRE_COMMITTED:
        committed(rest);
        break;
    case VC_WIRE_WORD:
        word(rest);
        break;
    case VC_WIRE_WORD_DONE:
    case VC_WIRE_NEVER_RAN:
    case VC_WIRE_STREAM_FAILED:
    case VC_WIRE_ERROR:
        status(rest);
        break;
    case VC_WIRE_REKEYING:
    case VC_WIRE_RESEND:
    case VC_WIRE_PING:
    case VC_WIRE_PONG:
    case VC_WIRE_CREDIT:
        number(rest);
        break;
    default:
        return -1; /* not worth keeping */
    }
    return 0;
}
