/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "test_qstream.h"

/* The parser on synthetic streams: what it recognises, and each trap of the format. */

struct expect {
    enum vc_qs_kind kind;
    uint16_t block;
    uint64_t page;
    bool named;
};

/* The PAGE and ZERO items, in order and complete. */
static void assert_records(const struct run *r, const struct expect *e, size_t n)
{
    size_t k = 0;

    for (size_t i = 0; i < r->n; i++) {
        const struct vc_qs_item *it = &r->items[i].item;

        if (it->kind == VC_QS_OPAQUE)
            continue;
        assert_true(k < n);
        assert_int_equal(it->kind, e[k].kind);
        assert_int_equal(it->block, e[k].block);
        assert_int_equal(it->page.n, e[k].page);
        assert_int_equal(it->named, e[k].named);
        k++;
    }
    assert_int_equal(k, n);
}
#define ASSERT_RECORDS(r, ...)                               \
    do {                                                     \
        const struct expect e_[] = {__VA_ARGS__};            \
        assert_records(r, e_, sizeof(e_) / sizeof((e_)[0])); \
    } while (0)

static void assert_good(const struct run *r)
{
    assert_int_equal(count_events(r, VC_QS_EV_LOST), 0);
    assert_string_equal(vc_qs_reason(r->p), "");
    assert_true(vc_qs_is_qemu(r->p));
}

/* Parsing stopped for good, once, at this byte, and the reason has this in it. */
static void assert_lost(const struct run *r, const char *reason)
{
    assert_true(count_events(r, VC_QS_EV_LOST) >= 1);
    if (!strstr(vc_qs_reason(r->p), reason))
        fail_msg("reason is '%s', expected '%s'", vc_qs_reason(r->p), reason);
}

static void precopy_stream_gives_its_pages(void **state)
{
    struct buf b = {0};
    struct run r;
    const struct vc_ram *ram;

    (void)state;
    put_precopy(&b);
    r = run_all(b);
    assert_good(&r);
    ram = vc_qs_ram(r.p);
    assert_int_equal(ram->page_bytes, 4096);
    assert_int_equal(ram->n_blocks, 2);
    assert_string_equal(ram->blocks[0].name, "pc.ram");
    assert_int_equal(ram->blocks[0].bytes, RAM_BYTES);
    assert_string_equal(ram->blocks[1].name, "vga.vram");
    ASSERT_RECORDS(&r, {VC_QS_PAGE, 0, 0, true}, {VC_QS_ZERO, 0, 1, false},
                   {VC_QS_ZERO, 0, 2, false}, {VC_QS_ZERO, 0, 3, false}, {VC_QS_ZERO, 0, 4, false},
                   {VC_QS_ZERO, 0, 5, false}, {VC_QS_PAGE, 0, 6, false}, {VC_QS_PAGE, 0, 7, false},
                   {VC_QS_ZERO, 1, 0, true}, {VC_QS_PAGE, 0, 1, true});
    assert_false(vc_qs_is_parsing(r.p));
    run_free(&r);
    buf_free(&b);
}

static void events_stand_where_they_belong(void **state)
{
    struct buf b = {0};
    size_t section, list_end, first_page, end, tail;
    struct run r;

    (void)state;
    put_preamble(&b);
    section = b.n;
    put_ram_start(&b, true);
    list_end = b.n - 8 - 5;
    put_part(&b, 2, RAM_ID);
    first_page = b.n;
    put_page(&b, 0, "pc.ram", 4096);
    put_ram_end(&b);
    put_part(&b, 3, RAM_ID);
    put_eos(&b);
    end = b.n;
    put_footer(&b, RAM_ID);
    tail = b.n;
    put_tail(&b);
    r = run_all(b);
    assert_good(&r);
    /* Some are told with the last byte of what tells them. */
    assert_int_equal(event_at(&r, VC_QS_EV_RETURN_PATH), 8 + 15 + 4);
    assert_int_equal(event_at(&r, VC_QS_EV_SECTION), section);
    assert_int_equal(event_at(&r, VC_QS_EV_RAM), list_end - 1);
    assert_int_equal(nth(&r, VC_QS_PAGE, 0)->at, first_page);
    assert_int_equal(event_at(&r, VC_QS_EV_RAM_END), end - 1);
    assert_int_equal(event_at(&r, VC_QS_EV_TAIL), tail);
    for (unsigned ev = 1; ev <= VC_QS_EV_TAIL; ev <<= 1)
        assert_in_range(count_events(&r, ev), 0, 1);
    run_free(&r);
    buf_free(&b);
}

static void no_return_path_is_no_event(void **state)
{
    struct buf b = {0};
    struct run r;

    (void)state;
    put_header(&b);
    put_config(&b, "pc-q35-7.2");
    put_ram_start(&b, true);
    r = run_all(b);
    assert_int_equal(count_events(&r, VC_QS_EV_RETURN_PATH), 0);
    assert_int_equal(event_at(&r, VC_QS_EV_SECTION), 8 + 15);
    assert_true(vc_qs_is_parsing(r.p));
    run_free(&r);
    buf_free(&b);
}

/* ---- records ---- */

static void section_start(struct buf *b)
{
    put_preamble(b);
    put_ram_start(b, true);
    put_part(b, 2, RAM_ID);
}

static void odd_fill_byte_is_opaque_and_unknown(void **state)
{
    struct buf b = {0};
    struct run r;
    size_t at;

    (void)state;
    section_start(&b);
    put_zero(&b, 0, "pc.ram");
    at = b.n;
    put_record(&b, 2, 3 << 12, NULL);
    put_u8(&b, 0x5a);
    put_zero(&b, 4 << 12, NULL);
    put_ram_end(&b);
    r = run_all(b);
    assert_good(&r);
    ASSERT_RECORDS(&r, {VC_QS_ZERO, 0, 0, true}, {VC_QS_ZERO, 0, 4, false});
    assert_int_equal(count_events(&r, VC_QS_EV_UNKNOWN), 1);
    assert_int_equal(event_at(&r, VC_QS_EV_UNKNOWN), at);
    run_free(&r);
    buf_free(&b);
}

static void xbzrle_and_compressed_pages_are_unknown(void **state)
{
    static const char *const names[] = {NULL, "vga.vram"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct buf b = {0};
        struct run r;

        section_start(&b);
        put_page(&b, 0, "pc.ram", 4096);
        put_record(&b, 0x40, 1 << 12, names[i]);
        put_u8(&b, 1);
        put_be(&b, 3, 2);
        put_bytes(&b, "abc", 3);
        put_record(&b, 0x40, 0, names[i]); /* nothing changed */
        put_u8(&b, 1);
        put_be(&b, 0, 2);
        put_record(&b, 0x100, 2 << 12, NULL);
        put_be(&b, 5, 4);
        put_bytes(&b, "abcde", 5);
        put_zero(&b, 3 << 12, NULL);
        put_ram_end(&b);
        put_part(&b, 2, RAM_ID);
        put_zero(&b, 0, NULL);
        put_ram_end(&b);
        r = run_all(b);
        assert_good(&r);
        assert_int_equal(count_events(&r, VC_QS_EV_UNKNOWN), 3);
        ASSERT_RECORDS(&r, {VC_QS_PAGE, 0, 0, true}, {VC_QS_ZERO, (uint16_t)i, 3, false},
                       {VC_QS_ZERO, (uint16_t)i, 0, false});
        run_free(&r);
        buf_free(&b);
    }
}

static void hook_and_flush_records_pass(void **state)
{
    struct buf b = {0};
    struct run r;

    (void)state;
    put_preamble(&b);
    put_start(&b, 1, RAM_ID, "ram", 4);
    put_be(&b, RAM_BYTES | 4, 8);
    put_block(&b, "pc.ram", RAM_BYTES);
    put_be(&b, 0x80, 8);
    put_be(&b, 0x200, 8); /* QEMU 8.1.0 sends it without multifd, too */
    put_ram_end(&b);
    put_part(&b, 2, RAM_ID);
    put_be(&b, 0x200, 8);
    put_zero(&b, 0, "pc.ram");
    put_be(&b, 0x200, 8);
    put_zero(&b, 1 << 12, NULL);
    put_ram_end(&b);
    r = run_all(b);
    assert_good(&r);
    assert_int_equal(count(&r, VC_QS_ZERO), 2);
    run_free(&r);
    buf_free(&b);
}

/* A flushed record passes as bytes, its page is unknown, and the one behind it is read. */
static void flushed_record_is_unknown(void **state)
{
    static const size_t head[] = {8 + 7, 8};

    (void)state;
    for (size_t k = 0; k < 2; k++) {
        struct buf b = {0};
        size_t at, body;

        section_start(&b);
        put_page(&b, 0, "pc.ram", 4096);
        at = b.n;
        if (k == 0)
            put_page(&b, 5 << 12, "pc.ram", 4096);
        else
            put_page(&b, 5 << 12, NULL, 4096);
        body = at + head[k];
        put_zero(&b, 6 << 12, NULL);
        for (size_t cut = at + 1; cut < body + 4096; cut += cut < body + 2 ? 1 : 1023) {
            struct run r = {.in = b};
            struct vc_err err = VC_ERR_INIT;

            assert_int_equal(vc_qs_parser_new(0, &r.p, &err), 0);
            feed_to(&r, cut, false);
            assert_int_equal(r.at, at);
            feed_to(&r, cut, true);
            assert_int_equal(r.at, cut);
            feed_to(&r, b.n, false);
            ASSERT_RECORDS(&r, {VC_QS_PAGE, 0, 0, true}, {VC_QS_ZERO, 0, 6, false});
            assert_int_equal(count_events(&r, VC_QS_EV_UNKNOWN), 1);
            for (size_t i = 0; i < r.n; i++)
                if (r.items[i].item.events & VC_QS_EV_UNKNOWN)
                    assert_int_equal(r.items[i].item.page.n, 5);
            assert_in_range(event_at(&r, VC_QS_EV_UNKNOWN), at, body);
            run_free(&r);
        }
        buf_free(&b);
    }
}

static void assert_counted(const struct run *r, uint64_t data, uint64_t zero)
{
    uint64_t have_data, have_zero;

    vc_qs_records(r->p, &have_data, &have_zero);
    assert_int_equal(have_data, data);
    assert_int_equal(have_zero, zero);
}

/* Whatever is flushed where, a page record is seen as what it is or as unknown, and is counted as
 * QEMU counts it. */
static void flush_never_hides_a_page(void **state)
{
    uint64_t n_data = 0, n_zero = 0;
    struct buf b = {0};
    struct run whole;

    (void)state;
    put_precopy(&b);
    whole = run(b, FEED_WHOLE);
    for (size_t i = 0; i < whole.n; i++) {
        n_data += whole.items[i].item.kind == VC_QS_PAGE;
        n_zero += whole.items[i].item.kind == VC_QS_ZERO;
    }
    assert_true(n_data && n_zero);
    assert_counted(&whole, n_data, n_zero);
    for (int round = 0; round < 200; round++) {
        struct run r = run(b, round ? FEED_CUTS_FLUSH : FEED_BYTES_FLUSH);
        size_t j = 0;

        for (size_t i = 0; i < whole.n; i++) {
            const struct vc_qs_item *it = &whole.items[i].item;

            if (it->kind == VC_QS_OPAQUE)
                continue;
            while (r.items[j].item.kind == VC_QS_OPAQUE &&
                   !(r.items[j].item.events & VC_QS_EV_UNKNOWN))
                j++;
            assert_true(j < r.n);
            assert_int_equal(r.items[j].item.block, it->block);
            assert_int_equal(r.items[j].item.page.n, it->page.n);
            assert_in_range(r.items[j].at, whole.items[i].at, whole.items[i].at + it->bytes - 1);
            j++;
        }
        assert_counted(&r, n_data, n_zero);
        run_free(&r);
    }
    run_free(&whole);
    buf_free(&b);
}

/* ---- what makes a record impossible ---- */

static void bad_record_stops_parsing(void **state)
{
    static const struct {
        uint64_t header;
        const char *name, *reason;
    } bad[] = {
        {0, NULL, "unknown flags"},
        {0x001, "pc.ram", "unknown flags"},
        {0x00a, "pc.ram", "unknown flags"},
        {0x048, "pc.ram", "unknown flags"},
        {0x300, NULL, "unknown flags"},
        {0x030, NULL, "unknown flags"},
        {0x1010, NULL, "unknown flags"},
        {0x1200, NULL, "unknown flags"},
        {0x004, NULL, "unknown flags"},
        {0x008, "pc.rom", "unknown RAM block 'pc.rom'"},
        {0x008, "", "unknown RAM block ''"},
        {0x408, "pc.ram", "impossible offset"},
        {RAM_BYTES | 8, "pc.ram", "impossible offset"},
        {RAM_BYTES | 0x28, NULL, "impossible offset"},
        {VGA_BYTES | 2, "vga.vram", "impossible offset"},
        {1ull << 63 | 8, "pc.ram", "impossible offset"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct buf b = {0};
        struct run r;

        section_start(&b);
        put_zero(&b, 0, "pc.ram");
        put_be(&b, bad[i].header, 8);
        if (bad[i].name)
            put_str8(&b, bad[i].name);
        put_fill(&b, 0, 300);
        r = run_all(b);
        assert_lost(&r, bad[i].reason);
        assert_int_equal(count_events(&r, VC_QS_EV_LOST), 1);
        assert_int_equal(count(&r, VC_QS_ZERO), 1);
        run_free(&r);
        buf_free(&b);
    }
}

static void first_record_must_name_its_block(void **state)
{
    struct buf b = {0};
    struct run r;

    (void)state;
    section_start(&b);
    put_zero(&b, 0, NULL);
    r = run_all(b);
    assert_lost(&r, "continues no block");
    run_free(&r);
    buf_free(&b);
}

/* ---- the list of blocks ---- */

static void bad_block_list_is_lost_for_good(void **state)
{
    static const struct {
        uint64_t total;
        const char *name;
        size_t name_len;
        uint64_t bytes;
        const char *reason;
    } bad[] = {
        {0, "pc.ram", 6, 4096, "it is empty"},
        {8192, "", 0, 4096, "not a name"},
        {8192, "a\0b", 3, 4096, "not a name"},
        {8192, "x", 1, 4096 + 512, "length is impossible"},
        {8192, "x", 1, 8192 + 4096, "length is impossible"},
        {8192, "x", 1, UINT64_MAX - 4095, "length is impossible"},
        {8192, "x", 1, 4096, "occurs twice"},
        {2048, "x", 1, 2048, "not a number of pages"},
        {UINT64_MAX - 4095, "x", 1, VC_MAX_BLOCK_BYTES + 4096, "length is impossible"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct buf b = {0};
        struct run r;

        put_preamble(&b);
        put_start(&b, 1, RAM_ID, "ram", 4);
        put_be(&b, bad[i].total | 4, 8);
        for (int k = 0; k < 2; k++) {
            put_u8(&b, (uint8_t)bad[i].name_len);
            put_bytes(&b, bad[i].name, bad[i].name_len);
            put_be(&b, bad[i].bytes, 8);
        }
        put_ram_end(&b);
        r = run_all(b);
        assert_lost(&r, bad[i].reason);
        assert_false(vc_qs_is_parsing(r.p));
        assert_int_equal(count_events(&r, VC_QS_EV_RAM), 0);
        run_free(&r);
        buf_free(&b);
    }
}

static void blocks_have_a_named_maximum(void **state)
{
    (void)state;
    for (unsigned n = VC_MAX_BLOCKS; n <= VC_MAX_BLOCKS + 1; n++) {
        struct buf b = {0};
        struct run r;

        put_preamble(&b);
        put_start(&b, 1, RAM_ID, "ram", 4);
        put_be(&b, n * 4096ull | 4, 8);
        for (unsigned i = 0; i < n; i++) {
            char name[16];

            snprintf(name, sizeof(name), "block%u", i);
            put_block(&b, name, 4096);
        }
        put_ram_end(&b);
        put_part(&b, 2, RAM_ID);
        put_zero(&b, 0, "block255");
        put_ram_end(&b);
        r = run_all(b);
        if (n == VC_MAX_BLOCKS)
            ASSERT_RECORDS(&r, {VC_QS_ZERO, 255, 0, true});
        else
            assert_lost(&r, "too many blocks");
        run_free(&r);
        buf_free(&b);
    }
}

/* hugetlb and postcopy: blocks whose page size is unusual have it behind their length. */
static void postcopy_page_sizes_are_recognised(void **state)
{
    (void)state;
    for (unsigned mask = 0; mask < 8; mask++) {
        static const char *const names[] = {"m", "0000:00:02.0/vga.vram", "pc.bios"};
        struct buf b = {0};
        struct run r;

        put_preamble(&b);
        put_advise(&b, 0x201000, 0x1000);
        put_start(&b, 1, RAM_ID, "ram", 4);
        put_be(&b, (3ull << 21) | 4, 8);
        for (unsigned i = 0; i < 3; i++) {
            put_block(&b, names[i], 1 << 21);
            if (mask & 1u << i)
                put_be(&b, 0x200000, 8);
        }
        put_ram_end(&b);
        put_part(&b, 2, RAM_ID);
        put_zero(&b, 0, "m");
        put_zero(&b, 1 << 12, "pc.bios");
        put_ram_end(&b);
        r = run_all(b);
        assert_good(&r);
        assert_int_equal(vc_qs_ram(r.p)->n_blocks, 3);
        assert_string_equal(vc_qs_ram(r.p)->blocks[1].name, names[1]);
        ASSERT_RECORDS(&r, {VC_QS_ZERO, 0, 0, true}, {VC_QS_ZERO, 2, 1, true});
        assert_int_equal(count_events(&r, VC_QS_EV_POSTCOPY), 1);
        run_free(&r);
        buf_free(&b);
    }
}

/* ---- page sizes ---- */

/* A PART whose first records are `n_zero` ZERO records and then PAGE records. */
static void put_sized(struct buf *b, const char *machine, uint32_t bits, unsigned page_bytes,
                      unsigned n_zero, unsigned n_pages)
{
    const char *name = "mach-virt.ram";

    put_header(b);
    if (machine)
        put_config(b, machine);
    if (bits)
        put_page_bits(b, bits);
    put_start(b, 1, RAM_ID, "ram", 4);
    put_be(b, (64ull << 16) | 4, 8);
    put_block(b, name, 64ull << 16);
    put_ram_end(b);
    put_part(b, 2, RAM_ID);
    for (unsigned i = 0; i < n_zero + n_pages; i++)
        if (i < n_zero)
            put_zero(b, (uint64_t)i * page_bytes, i ? NULL : name);
        else
            put_page(b, (uint64_t)i * page_bytes, i ? NULL : name, page_bytes);
    put_ram_end(b);
}

static void page_size_is_read_or_found(void **state)
{
    static const struct {
        const char *machine;
        uint32_t bits;
        unsigned page_bytes;
    } cases[] = {
        {"virt-7.2", 12, 4096}, {"virt-9.9", 16, 65536},    {"virt-2.6", 0, 1024},
        {"virt", 0, 4096},      {"clipper", 0, 8192},       {"virt", 0, 16384},
        {"virt", 0, 65536},     {"pc-i440fx-7.2", 0, 4096}, {NULL, 0, 4096},
    };
    static const unsigned zeros[] = {0, 1, 2, 40};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        for (size_t k = 0; k < 4; k++) {
            struct buf b = {0};
            struct run r;

            put_sized(&b, cases[i].machine, cases[i].bits, cases[i].page_bytes, zeros[k], 5);
            r = run(b, FEED_WHOLE);
            assert_good(&r);
            assert_int_equal(vc_qs_ram(r.p)->page_bytes, cases[i].page_bytes);
            assert_int_equal(count(&r, VC_QS_PAGE), 5);
            assert_int_equal(count(&r, VC_QS_ZERO), zeros[k]);
            assert_int_equal(count_events(&r, VC_QS_EV_RAM), 1);
            run_free(&r);
            /* Also where it must be waited for. */
            r = run(b, FEED_CUTS);
            assert_good(&r);
            assert_int_equal(vc_qs_ram(r.p)->page_bytes, cases[i].page_bytes);
            assert_int_equal(count(&r, VC_QS_PAGE), 5);
            run_free(&r);
            for (int n = 0; n < 20; n++) {
                r = run(b, FEED_CUTS_FLUSH);
                run_free(&r);
            }
            buf_free(&b);
        }
}

static void zero_pages_alone_tell_the_page_size(void **state)
{
    static const unsigned sizes[] = {1024, 4096, 8192, 16384, 65536};

    (void)state;
    for (size_t i = 0; i < 5; i++) {
        struct buf b = {0};
        struct run r;

        put_sized(&b, "none", 0, sizes[i], 60, 0);
        r = run(b, FEED_WHOLE);
        assert_good(&r);
        assert_int_equal(vc_qs_ram(r.p)->page_bytes, sizes[i]);
        assert_int_equal(count(&r, VC_QS_ZERO), 60);
        run_free(&r);
        buf_free(&b);
    }
}

static void hinted_page_size_is_tried_first(void **state)
{
    struct buf b = {0};
    struct vc_qs_parser *p;
    struct vc_err err = VC_ERR_INIT;
    struct run r;

    (void)state;
    put_sized(&b, "none", 0, 2048, 0, 80); /* no size that would be tried */
    r = run(b, FEED_WHOLE);
    assert_lost(&r, "no page size fits");
    run_free(&r);
    r = run_hint(b, FEED_WHOLE, 2048);
    assert_good(&r);
    assert_int_equal(count(&r, VC_QS_PAGE), 80);
    run_free(&r);
    assert_int_equal(vc_qs_parser_new(4095, &p, &err), VC_E_USAGE);
    assert_int_equal(vc_qs_parser_new(512, &p, &err), VC_E_USAGE);
    assert_int_equal(vc_qs_parser_new(131072, &p, &err), VC_E_USAGE);
    buf_free(&b);
}

static void advised_page_size_counts(void **state)
{
    struct buf b = {0};
    struct run r;

    (void)state;
    put_header(&b);
    put_config(&b, "clipper");
    put_advise(&b, 0x2000, 0x2000);
    put_start(&b, 1, RAM_ID, "ram", 4);
    put_be(&b, (1ull << 20) | 4, 8);
    put_block(&b, "ram", 1ull << 20);
    put_ram_end(&b);
    r = run_all(b);
    assert_good(&r);
    assert_int_equal(vc_qs_ram(r.p)->page_bytes, 8192);
    assert_int_equal(count_events(&r, VC_QS_EV_RAM), 1); /* before any page */
    run_free(&r);
    buf_free(&b);
}

/* ---- configuration, commands, sections ---- */

static void configuration_subsections_pass(void **state)
{
    struct buf b = {0};
    struct run r;

    (void)state;
    put_header(&b);
    put_config(&b, "virt-7.2");
    put_page_bits(&b, 12);
    put_subsection(&b, "configuration/capabilities");
    put_be(&b, 0, 4);
    put_subsection(&b, "configuration/uuid");
    put_fill(&b, 7, 16);
    put_ram_start(&b, true);
    put_part(&b, 2, RAM_ID);
    put_zero(&b, 0, "pc.ram");
    r = run_all(b);
    assert_good(&r);
    assert_int_equal(count(&r, VC_QS_ZERO), 1);
    run_free(&r);
    buf_free(&b);
}

static void layout_changing_capabilities_stop_parsing(void **state)
{
    static const char *const caps[] = {"x-ignore-shared", "mapped-ram", "some-new-thing"};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct buf b = {0};
        struct run r;

        put_header(&b);
        put_config(&b, "pc-q35-9.0");
        put_subsection(&b, "configuration/capabilities");
        put_be(&b, 1, 4);
        put_str8(&b, caps[i]);
        put_ram_start(&b, true);
        r = run_all(b);
        assert_lost(&r, caps[i]);
        assert_false(vc_qs_is_parsing(r.p));
        assert_true(vc_qs_is_qemu(r.p));
        run_free(&r);
        buf_free(&b);
    }
}

static void other_streams_are_verbatim_from_the_start(void **state)
{
    static const struct {
        const char *d;
        const char *reason;
    } cases[] = {
        {"\x16\x03\x01\x02\x00\x01\x00\x01", "TLS"},
        {"\x11\x22\x33\x44\0\0\0\1", "multifd"},
        {"\x08\0\x0a\0\x07\x06pc", "recovery"},
        {"\x08\0\x09\0\0\0\0\0", "recovery"},
        {"QEVM\0\0\0\2", "version"},
        {"\0\0\0\0\0\0\0\0", "does not begin"},
        {"GET / HTTP", "does not begin"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct buf b = {0};
        struct run r;

        put_bytes(&b, cases[i].d, 8);
        put_ram_start(&b, true);
        r = run_all(b);
        assert_lost(&r, cases[i].reason);
        assert_false(vc_qs_is_qemu(r.p));
        assert_false(vc_qs_is_parsing(r.p));
        assert_true(event_at(&r, VC_QS_EV_LOST) < 8);
        run_free(&r);
        buf_free(&b);
    }
}

static void colo_and_recovery_commands_stop_parsing(void **state)
{
    (void)state;
    for (uint16_t cmd = 8; cmd <= 9; cmd++) {
        struct buf b = {0};
        struct run r;

        put_preamble(&b);
        put_command(&b, cmd, NULL, 0);
        put_ram_start(&b, true);
        r = run_all(b);
        assert_lost(&r, cmd == 8 ? "COLO" : "recovery");
        assert_false(vc_qs_is_parsing(r.p));
        run_free(&r);
        buf_free(&b);
    }
}

/* The 4 bytes of PACKAGED are a length; the blob that follows may hold anything. */
static void postcopy_stream_parses_on_behind_its_package(void **state)
{
    struct buf b = {0};
    size_t blob, pages;
    struct run r;

    (void)state;
    put_preamble(&b);
    put_advise(&b, 0x1000, 0x1000);
    put_ram_start(&b, true);
    put_part(&b, 2, RAM_ID);
    put_page(&b, 0, "pc.ram", 4096);
    put_ram_end(&b);
    put_command(&b, 11, NULL, 0);                                             /* SWITCHOVER_START */
    put_command(&b, 6, "\0\6pc.ram\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0", 25); /* RAM_DISCARD */
    put_command(&b, 2, "\0\0\0\2", 4);
    put_command(&b, 7, "\0\0\2\0", 4);
    blob = b.n;
    put_fill(&b, 4, 512);
    put_command(&b, 2, "\0\0\0\4", 4);
    put_part(&b, 2, RAM_ID);
    pages = b.n;
    put_page(&b, 1 << 12, NULL, 4096);
    put_ram_end(&b);
    put_part(&b, 3, RAM_ID);
    put_ram_end(&b);
    put_u8(&b, 0);
    r = run_all(b);
    assert_good(&r);
    assert_int_equal(event_at(&r, VC_QS_EV_PACKAGED), blob);
    assert_int_equal(nth(&r, VC_QS_PAGE, 1)->at, pages);
    assert_int_equal(count_events(&r, VC_QS_EV_RAM_END), 1);
    assert_int_equal(event_at(&r, VC_QS_EV_TAIL), b.n - 1);
    run_free(&r);
    buf_free(&b);
}

static void background_snapshot_has_no_end_of_ram(void **state)
{
    struct buf b = {0};
    size_t tail;
    struct run r;

    (void)state;
    put_header(&b);
    put_config(&b, "pc-q35-7.2");
    put_ram_start(&b, true);
    put_part(&b, 2, RAM_ID);
    put_page(&b, 0, "pc.ram", 4096);
    put_ram_end(&b);
    tail = b.n;
    put_tail(&b);
    r = run_all(b);
    assert_good(&r);
    assert_int_equal(event_at(&r, VC_QS_EV_TAIL), tail);
    assert_int_equal(count_events(&r, VC_QS_EV_RAM_END), 0);
    run_free(&r);
    buf_free(&b);
}

static void streams_without_footers_are_parsed(void **state)
{
    struct buf b = {0};
    struct run r;

    (void)state;
    put_header(&b); /* nor a configuration: machine types up to 2.3 */
    put_ram_start(&b, false);
    put_part(&b, 2, RAM_ID);
    put_page(&b, 0, "pc.ram", 4096);
    put_page(&b, 1 << 12, NULL, 4096);
    put_eos(&b);
    put_part(&b, 3, RAM_ID);
    put_page(&b, 2 << 12, NULL, 4096);
    put_eos(&b);
    put_start(&b, 4, 0, "timer", 2);
    r = run_all(b);
    assert_good(&r);
    assert_int_equal(count(&r, VC_QS_PAGE), 3);
    assert_int_equal(count_events(&r, VC_QS_EV_TAIL), 1);
    run_free(&r);
    buf_free(&b);
}

static void footers_are_checked(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct buf b = {0};
        struct run r;

        put_preamble(&b);
        put_ram_start(&b, i != 2);
        put_part(&b, 2, RAM_ID);
        put_eos(&b);
        if (i == 0)
            put_footer(&b, RAM_ID + 1);
        else if (i == 2)
            put_footer(&b, RAM_ID);
        put_part(&b, 2, RAM_ID);
        r = run_all(b);
        assert_lost(&r, i == 0 ? "footer of 3" : i == 1 ? "no footer" : "type 0x7e");
        run_free(&r);
        buf_free(&b);
    }
}

static void virtio_mem_early_section_is_passed(void **state)
{
    struct buf b = {0};
    struct run r;

    (void)state;
    put_preamble(&b);
    put_ram_start(&b, true);
    put_start(&b, 4, 9, "0000:00:03.0/virtio-mem-device-early", 1);
    put_be(&b, 0x140000000, 8);
    put_be(&b, 65 * (2ull << 20), 8);
    put_be(&b, 2ull << 20, 8);
    put_be(&b, 0, 4);
    put_be(&b, 0, 8);
    put_fill(&b, 1, 16);
    put_footer(&b, 9);
    put_part(&b, 2, RAM_ID);
    put_zero(&b, 0, "pc.ram");
    put_ram_end(&b);
    r = run_all(b);
    assert_good(&r);
    assert_int_equal(count(&r, VC_QS_ZERO), 1);
    run_free(&r);
    buf_free(&b);
}

static void virtio_mem_early_sizes_are_bounded(void **state)
{
    static const uint64_t sizes[][2] = {{1 << 20, 0}, {UINT64_MAX, 1}};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct buf b = {0};
        struct run r;

        put_preamble(&b);
        put_ram_start(&b, true);
        put_start(&b, 4, 9, "virtio-mem-device-early", 1);
        put_be(&b, 0, 8);
        put_be(&b, sizes[i][0], 8);
        put_be(&b, sizes[i][1], 8);
        put_fill(&b, 0, 12);
        r = run_all(b);
        assert_lost(&r, "virtio-mem");
        run_free(&r);
        buf_free(&b);
    }
}

static void put_disk(struct buf *b, int part)
{
    if (part) {
        put_be(b, 0x800 << 9 | 1, 8);
        put_str8(b, "drive-virtio-disk0");
        put_fill(b, 0x10, 1 << 20);
        put_be(b, 0x1000 << 9 | 9, 8); /* a block of zeros */
        put_str8(b, "drive-virtio-disk0");
        put_be(b, 50 << 9 | 4, 8);
    }
    put_be(b, 2, 8);
}
static void put_bitmap(struct buf *b, int part)
{
    if (!part) {
        put_u8(b, 0x10 | 8 | 4);
        put_str8(b, "node");
        put_str8(b, "bitmap");
        put_be(b, 65536, 4);
        put_u8(b, 1);
    } else {
        put_u8(b, 0x40 | 8 | 4 | 2);
        put_str8(b, "node");
        put_str8(b, "bitmap");
        put_be(b, 0, 8);
        put_be(b, 128, 4);
        put_u8(b, 0x40);
        put_be(b, 128, 8);
        put_be(b, 128, 4);
        put_be(b, 7, 8);
        put_fill(b, 0xff, 7);
        put_u8(b, 0x20 | 4);
        put_str8(b, "other");
    }
    put_u8(b, 1);
}
static void put_vfio(struct buf *b, int part)
{
    if (part == 1) {
        put_be(b, 0xffffffffef100005, 8); /* INIT_DATA_SENT ends the section by itself */
        return;
    }
    if (part) {
        put_be(b, 0xffffffffef100004, 8);
        put_be(b, 1000, 8);
        put_fill(b, 2, 1000);
    } else {
        put_be(b, 0xffffffffef100003, 8);
    }
    put_be(b, 0xffffffffef100001, 8);
}
static void put_attr(struct buf *b, int part)
{
    if (part) {
        put_be(b, 0x12345000 | 2, 8);
        put_be(b, 300, 8);
        put_fill(b, 1, 300);
        put_be(b, 8, 8);
    }
    put_be(b, 1, 8);
}
static void put_htab(struct buf *b, int part)
{
    put_be(b, part ? 0 : 24, 4);
    if (!part)
        return;
    put_be(b, 77, 4);
    put_be(b, 3, 2);
    put_be(b, 9, 2);
    put_fill(b, 7, 48);
    put_be(b, 99, 4);
    put_be(b, 0, 2);
    put_be(b, 1, 2);
    put_be(b, 0, 8);
}
static void put_no_htab(struct buf *b, int part)
{
    (void)part;
    put_be(b, UINT32_MAX, 4);
}

static void other_iterables_are_passed(void **state)
{
    static const struct {
        const char *idstr;
        uint32_t version;
        void (*put)(struct buf *b, int part);
    } cases[] = {
        {"block", 1, put_disk},
        {"dirty-bitmap", 1, put_bitmap},
        {"0000:00:05.0/vfio", 1, put_vfio},
        {"s390-storage_attributes", 0, put_attr},
        {"spapr/htab", 1, put_htab},
        {"spapr/htab", 1, put_no_htab},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct buf b = {0};
        struct run r;

        put_preamble(&b);
        put_start(&b, 1, 1, cases[i].idstr, cases[i].version);
        cases[i].put(&b, 0);
        put_footer(&b, 1);
        put_ram_start(&b, true);
        for (int part = 1; part < 4; part++) {
            put_part(&b, 2, 1);
            cases[i].put(&b, part);
            put_footer(&b, 1);
            put_part(&b, 2, RAM_ID);
            put_zero(&b, 0, part == 1 ? "pc.ram" : NULL);
            put_ram_end(&b);
        }
        put_part(&b, 3, RAM_ID);
        put_ram_end(&b);
        put_part(&b, 3, 1);
        cases[i].put(&b, 3);
        put_footer(&b, 1);
        put_tail(&b);
        /* Byte-wise feeding of a megabyte tells nothing more. */
        r = i ? run_all(b) : run(b, FEED_CUTS);
        assert_good(&r);
        assert_int_equal(count(&r, VC_QS_ZERO), 3);
        assert_int_equal(count_events(&r, VC_QS_EV_TAIL), 1);
        run_free(&r);
        buf_free(&b);
    }
}

static void malformed_iterables_stop_parsing(void **state)
{
    static const struct {
        const char *idstr;
        uint32_t version;
        const char *d;
        size_t n;
        const char *reason;
    } cases[] = {
        {"block", 1, "\0\0\0\0\0\0\0\3", 8, "'block'"},
        {"dirty-bitmap", 1, "\x80", 1, "'dirty-bitmap'"},
        {"dirty-bitmap", 1, "\x40\0\0\0\0\0\0\0\0\0\0\0\1\xff\0\0\0\0\0\0\0", 21, "'dirty-bitmap'"},
        {"x/vfio", 1, "\xff\xff\xff\xff\xef\x10\0\2", 8, "'vfio'"},
        {"x/vfio", 1, "\xff\xff\xff\xff\xef\x10\0\4\1\0\0\0\0\0\0\0", 16, "'vfio'"},
        {"vfio", 1, "\0\0\0\0\0\0\0\0", 8, "'vfio'"},
        {"s390-storage_attributes", 0, "\0\0\0\0\0\0\0\3", 8, "'s390"},
        {"ram", 3, "", 0, "unknown version"},
        {"block", 2, "", 0, "unknown version"},
        {"some-new-device", 1, "", 0, "unknown section 'some-new-device'"},
        {"xvfio", 1, "", 0, "unknown section"},
        {"\x01\x02", 1, "", 0,
         "unknown section '?"
         "?'"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct buf b = {0};
        struct run r;

        put_preamble(&b);
        put_start(&b, 1, 5, cases[i].idstr, cases[i].version);
        put_bytes(&b, cases[i].d, cases[i].n);
        r = run_all(b);
        assert_lost(&r, cases[i].reason);
        assert_true(vc_qs_is_parsing(r.p)); /* the RAM section may yet be found */
        run_free(&r);
        buf_free(&b);
    }
}

static void sections_have_a_named_maximum(void **state)
{
    struct buf b = {0};
    struct run r;

    (void)state;
    put_preamble(&b);
    for (uint32_t i = 0; i < 65; i++) {
        put_start(&b, 1, 100 + i, "x/vfio", 1);
        put_vfio(&b, 0);
        put_footer(&b, 100 + i);
    }
    r = run_all(b);
    assert_lost(&r, "more than 64 sections");
    run_free(&r);
    buf_free(&b);
}

static void bad_frames_stop_parsing(void **state)
{
    static const struct {
        const char *d;
        size_t n;
        const char *reason;
    } cases[] = {
        {"\x02\0\0\0\x63", 5, "section 99 was never started"},
        {"\x03\0\0\0\x63", 5, "section 99 was never started"},
        {"\x05\3abc", 5, "type 0x05"},
        {"\x07\0\0\0\1", 5, "type 0x07"},
        {"\x09", 1, "type 0x09"},
        {"\x7e\0\0\0\2", 5, "type 0x7e"},
        {"\x08\0\7\0\5", 5, "PACKAGED"},
        {"\x04\0\0\0\7\5timer\0\0\0\0\0\0\0\2", 19, "unknown section 'timer'"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct buf b = {0};
        struct run r;

        put_preamble(&b);
        put_ram_start(&b, true);
        put_bytes(&b, cases[i].d, cases[i].n);
        put_fill(&b, 0xee, 50);
        r = run_all(b);
        assert_lost(&r, cases[i].reason);
        assert_int_equal(count_events(&r, VC_QS_EV_LOST), 1);
        run_free(&r);
        buf_free(&b);
    }
}

/* What the switch to postcopy takes back is unknown until it comes again. */
static void discarded_pages_are_unknown(void **state)
{
    static const uint64_t ranges[][2] = {{0, 4096}, {3 << 12, 2 << 12}};
    struct buf b = {0};
    struct run r;
    unsigned n = 0;

    (void)state;
    put_preamble(&b);
    put_ram_start(&b, true);
    put_part(&b, 2, RAM_ID);
    put_page(&b, 0, "pc.ram", 4096);
    put_ram_end(&b);
    put_discard(&b, "vga.vram", NULL, 0);
    put_discard(&b, "pc.ram", ranges, 2);
    put_command(&b, 2, "\0\0\0\2", 4);
    put_command(&b, 7, "\0\0\1\0", 4);
    put_fill(&b, 0xee, 256);
    put_part(&b, 2, RAM_ID);
    put_page(&b, 0, "pc.ram", 4096);
    put_ram_end(&b);
    r = run_all(b);
    assert_good(&r);
    assert_int_equal(count_events(&r, VC_QS_EV_UNKNOWN), 2);
    for (size_t i = 0; i < r.n; i++) {
        const struct vc_qs_item *it = &r.items[i].item;

        if (it->events & VC_QS_EV_UNKNOWN) {
            assert_int_equal(it->block, 0);
            assert_int_equal(it->page.n, ranges[n][0] >> 12);
            assert_int_equal(it->count, ranges[n][1] >> 12);
            n++;
        }
        if (it->events & VC_QS_EV_PACKAGED)
            assert_int_equal(it->package_bytes, 256);
    }
    assert_int_equal(count_events(&r, VC_QS_EV_PACKAGED), 1);
    ASSERT_RECORDS(&r, {VC_QS_PAGE, 0, 0, true}, {VC_QS_PAGE, 0, 0, true});
    run_free(&r);
    buf_free(&b);
}

static void impossible_discards_lose(void **state)
{
    static const struct {
        const char *name;
        uint64_t range[2];
        const char *reason;
    } cases[] = {
        {"pc.rom", {0, 4096}, "unknown block"},
        {"pc.ram", {1, 4096}, "impossible range"},
        {"pc.ram", {0, 1}, "impossible range"},
        {"pc.ram", {0, 1ull << 62}, "impossible range"},
        {"pc.ram", {~0xfffull, 4096}, "impossible range"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct buf b = {0};
        struct run r;

        put_preamble(&b);
        put_ram_start(&b, true);
        put_discard(&b, cases[i].name, &cases[i].range, 1);
        put_fill(&b, 0xee, 50);
        r = run_all(b);
        assert_lost(&r, cases[i].reason);
        run_free(&r);
        buf_free(&b);
    }
    for (uint16_t n = 0; n < 40; n++) { /* cut short, at every length but those that fit */
        static const uint8_t payload[40] = "\0\6pc.ram";
        struct buf b = {0};
        struct run r;

        if (n == 9 || n == 25)
            continue;
        put_preamble(&b);
        put_ram_start(&b, true);
        put_command(&b, 6, payload, n);
        put_fill(&b, 0xee, 50);
        r = run_all(b);
        assert_lost(&r, "too short");
        run_free(&r);
        buf_free(&b);
    }
}

static void unknown_commands_are_skipped(void **state)
{
    struct buf b = {0};
    struct run r;

    (void)state;
    put_preamble(&b);
    put_command(&b, 77, "\1\2\3\4\5", 5);
    put_command(&b, 3, NULL, 0); /* ADVISE for dirty bitmaps only */
    put_ram_start(&b, true);
    put_part(&b, 2, RAM_ID);
    put_zero(&b, 0, "pc.ram");
    r = run_all(b);
    assert_good(&r);
    assert_int_equal(count(&r, VC_QS_ZERO), 1);
    run_free(&r);
    buf_free(&b);
}

/* Once RAM has ended nothing can be lost any more. */
static void trouble_behind_the_end_of_ram_is_the_tail(void **state)
{
    struct buf b = {0};
    size_t tail;
    struct run r;

    (void)state;
    put_precopy(&b);
    b.n -= 1 + 4 + 6 + 8 + 100 + 5 + 1 + 5 + 2;
    tail = b.n;
    put_part(&b, 3, 77);
    put_fill(&b, 0xee, 50);
    r = run_all(b);
    assert_good(&r);
    assert_int_equal(event_at(&r, VC_QS_EV_TAIL), tail + 4);
    assert_false(vc_qs_is_parsing(r.p));
    run_free(&r);
    buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(precopy_stream_gives_its_pages),
        cmocka_unit_test(events_stand_where_they_belong),
        cmocka_unit_test(no_return_path_is_no_event),
        cmocka_unit_test(odd_fill_byte_is_opaque_and_unknown),
        cmocka_unit_test(xbzrle_and_compressed_pages_are_unknown),
        cmocka_unit_test(hook_and_flush_records_pass),
        cmocka_unit_test(flushed_record_is_unknown),
        cmocka_unit_test(flush_never_hides_a_page),
        cmocka_unit_test(bad_record_stops_parsing),
        cmocka_unit_test(first_record_must_name_its_block),
        cmocka_unit_test(bad_block_list_is_lost_for_good),
        cmocka_unit_test(blocks_have_a_named_maximum),
        cmocka_unit_test(postcopy_page_sizes_are_recognised),
        cmocka_unit_test(page_size_is_read_or_found),
        cmocka_unit_test(zero_pages_alone_tell_the_page_size),
        cmocka_unit_test(hinted_page_size_is_tried_first),
        cmocka_unit_test(advised_page_size_counts),
        cmocka_unit_test(configuration_subsections_pass),
        cmocka_unit_test(layout_changing_capabilities_stop_parsing),
        cmocka_unit_test(other_streams_are_verbatim_from_the_start),
        cmocka_unit_test(colo_and_recovery_commands_stop_parsing),
        cmocka_unit_test(postcopy_stream_parses_on_behind_its_package),
        cmocka_unit_test(background_snapshot_has_no_end_of_ram),
        cmocka_unit_test(streams_without_footers_are_parsed),
        cmocka_unit_test(footers_are_checked),
        cmocka_unit_test(virtio_mem_early_section_is_passed),
        cmocka_unit_test(virtio_mem_early_sizes_are_bounded),
        cmocka_unit_test(other_iterables_are_passed),
        cmocka_unit_test(malformed_iterables_stop_parsing),
        cmocka_unit_test(sections_have_a_named_maximum),
        cmocka_unit_test(bad_frames_stop_parsing),
        cmocka_unit_test(discarded_pages_are_unknown),
        cmocka_unit_test(impossible_discards_lose),
        cmocka_unit_test(unknown_commands_are_skipped),
        cmocka_unit_test(trouble_behind_the_end_of_ram_is_the_tail),
    };

    rng_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
