/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a peer makes a side hold, and VMs as large as they are sold: what is named costs nothing,
 * what comes is charged, and what is too large costs reuse and never the migration. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <unistd.h>

#include "base/bytes.h"
#include "dest/batch.h"
#include "link/link.h"
#include "sanitized.h"
#include "source/batch.h"
#include "source/remote.h"
#include "wire/wire.h"

#define TIB (1024 * VC_GIB)

static uint8_t buf[1u << 20];
static char warned[768];
static unsigned warnings;

static void on_log(void *opaque, enum vc_log_level level, const char *text)
{
    (void)opaque;
    assert_int_equal(level, VC_LOG_WARNING);
    snprintf(warned, sizeof(warned), "%s", text);
    warnings++;
}

static const struct vc_log log_here = {.fn = on_log, .max = VC_LOG_DEBUG};

/* Resident memory of this process, in MiB. */
static size_t resident(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    unsigned long all, in_memory;

    assert_non_null(f);
    assert_int_equal(fscanf(f, "%lu %lu", &all, &in_memory), 2);
    fclose(f);
    return in_memory * (size_t)sysconf(_SC_PAGESIZE) >> 20;
}

/* As QEMU lists it: DIMMs, video memory, a ROM or two. */
static struct vc_ram *a_vm(uint64_t bytes, unsigned dimms)
{
    static struct vc_ram ram;

    memset(&ram, 0, sizeof(ram));
    ram.page_bytes = 4096;
    for (unsigned i = 0; i < dimms; i++) {
        struct vc_block *b = &ram.blocks[ram.n_blocks++];

        snprintf(b->name, sizeof(b->name), i ? "dimm%u" : "pc.ram", i);
        b->bytes = bytes / dimms / VC_MIB * VC_MIB;
    }
    ram.blocks[ram.n_blocks++] = (struct vc_block){"vga.vram", 16 * VC_MIB};
    ram.blocks[ram.n_blocks++] = (struct vc_block){"/rom@etc/acpi/tables", 128 * VC_KIB};
    ram.blocks[ram.n_blocks++] = (struct vc_block){"pc.bios", 256 * VC_KIB};
    return &ram;
}

static void announce_blocks(struct vc_remote *r, const struct vc_ram *ram)
{
    struct vc_writer w = vc_writer(buf, sizeof(buf));
    struct vc_err err = VC_ERR_INIT;

    warnings = 0;
    vc_remote_init(r, VC_WIRE_BASE_ANNOUNCE, NULL);
    r->log = &log_here;
    vc_wire_blocks_encode(&w, ram);
    assert_false(w.failed);
    assert_int_equal(vc_remote_blocks(r, buf, w.len, &err), 0);
}

/* One ANNOUNCE of one run; the digests of held pages are their numbers. */
static int announce(struct vc_remote *r, uint32_t block, uint64_t page, uint8_t held, uint64_t n)
{
    struct vc_writer w = vc_writer(buf, sizeof(buf));
    struct vc_err err = VC_ERR_INIT;

    vc_write_u32(&w, block);
    vc_write_u64(&w, page);
    vc_write_u8(&w, held);
    vc_write_varint(&w, n);
    for (uint64_t i = 0; held == VC_WIRE_HELD && i < n; i++)
        vc_write_u64(&w, page + i + 1);
    assert_false(w.failed);
    return vc_remote_announce(r, buf, w.len, &err);
}

static bool has(struct vc_remote *r, const struct vc_ram *ram, uint16_t block, uint64_t page)
{
    struct vc_digest d = {{0}};

    vc_store_le(d.b, page + 1, 8);
    return vc_remote_has(r, ram, block, vc_page(page), &d);
}

static void a_vm_of_terabytes_with_video_memory_is_announced(void **state)
{
    static const struct {
        uint64_t bytes;
        unsigned dimms;
    } vms[] = {{512 * VC_GIB, 1}, {TIB, 1}, {TIB, 128}, {2 * TIB, 1}, {8 * TIB, 253}};
    static struct vc_remote r;
    struct vc_err err;

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(vms); i++) {
        const struct vc_ram *ram = a_vm(vms[i].bytes, vms[i].dimms);
        uint64_t last = vc_ram_block_pages(ram, 0) - 1;
        uint16_t vga = (uint16_t)vc_ram_find(ram, "vga.vram");

        announce_blocks(&r, ram);
        vc_remote_limit(&r, ram);
        assert_int_equal(announce(&r, 0, 0, VC_WIRE_HELD, 3), 0);
        assert_int_equal(announce(&r, 0, 3, VC_WIRE_HELD_ZERO, last - 3), 0);
        assert_int_equal(announce(&r, 0, last, VC_WIRE_HELD, 1), 0);
        assert_int_equal(announce(&r, vga, 7, VC_WIRE_HELD, 4089), 0);
        assert_int_equal(vc_remote_announced(&r, &err), 0);
        assert_true(has(&r, ram, 0, 2));
        assert_false(has(&r, ram, 0, 3));
        assert_false(has(&r, ram, 0, last - 1));
        assert_true(has(&r, ram, 0, last));
        assert_true(has(&r, ram, vga, 4095));
        assert_int_equal(warnings, 0);
        vc_remote_fini(&r);
    }
}

static void an_announcement_beyond_all_limits_is_not_looked_at_and_ends_nothing(void **state)
{
    static struct vc_remote r;
    struct vc_ram *ram = a_vm(17 * TIB, 1);
    struct vc_err err;

    (void)state;
    announce_blocks(&r, ram);
    assert_int_equal(announce(&r, 0, 0, VC_WIRE_HELD, 3), 0);
    assert_int_equal(vc_remote_announced(&r, &err), 0);
    assert_false(has(&r, ram, 0, 2));
    assert_int_equal(warnings, 1);
    assert_non_null(strstr(warned, "too much"));
    vc_remote_fini(&r);
}

static void what_an_announcement_names_costs_nothing(void **state)
{
    static struct vc_remote r;
    struct vc_ram *ram = a_vm(16 * TIB - 64 * VC_MIB, 253);
    size_t before = resident();

    (void)state;
    announce_blocks(&r, ram);
    for (uint32_t i = 0; i < ram->n_blocks; i++)
        assert_int_equal(announce(&r, i, 0, i % 2 ? VC_WIRE_HELD_ZERO : VC_WIRE_NOT_HELD,
                                  vc_ram_block_pages(ram, i)),
                         0);
    assert_int_equal(r.n_chunks, 0);
    if (!SANITIZED)
        assert_true(resident() - before < 16);
    vc_remote_fini(&r);
}

static void no_page_is_announced_twice(void **state)
{
    static struct vc_remote r;

    (void)state;
    announce_blocks(&r, a_vm(VC_GIB, 2));
    assert_int_equal(announce(&r, 0, 100, VC_WIRE_HELD, 50), 0);
    assert_int_equal(announce(&r, 0, 149, VC_WIRE_HELD, 1), VC_E_PROTOCOL);
    assert_int_equal(announce(&r, 0, 0, VC_WIRE_HELD_ZERO, 1000), VC_E_PROTOCOL);
    assert_int_equal(announce(&r, 0, 150, VC_WIRE_NOT_HELD, 10), 0);
    assert_int_equal(announce(&r, 1, 0, VC_WIRE_HELD, 10), 0);
    assert_int_equal(announce(&r, 0, 160, VC_WIRE_HELD, 1), VC_E_PROTOCOL);
    vc_remote_fini(&r);
}

/* One page in each chunk, so that little of what comes takes much. */
static void a_destination_takes_no_more_than_the_vm_can_need(void **state)
{
    static struct vc_remote r;
    const struct vc_ram *ram = a_vm(8 * TIB, 1);
    struct vc_ram *own;
    uint64_t early = VC_REMOTE_EARLY_BYTES / sizeof(struct vc_remote_chunk), n = 0;

    (void)state;
    announce_blocks(&r, ram);
    for (; n < early + 100; n++)
        assert_int_equal(announce(&r, 0, n * VC_REMOTE_CHUNK_PAGES, VC_WIRE_HELD, 1), 0);
    assert_int_equal(r.n_chunks, early);
    assert_int_equal(warnings, 1);
    assert_non_null(strstr(warned, "more of a checkpoint than this VM can use"));
    vc_remote_fini(&r);

    announce_blocks(&r, ram);
    own = a_vm(64 * VC_GIB, 1);
    vc_remote_limit(&r, own);
    for (n = 0; n < 100000; n++)
        assert_int_equal(announce(&r, 0, n * VC_REMOTE_CHUNK_PAGES, VC_WIRE_HELD, 1), 0);
    assert_int_equal(r.n_chunks, 2 * (1024 + 3) + VC_MAX_BLOCKS);
    assert_int_equal(warnings, 1);
    assert_true(has(&r, own, 0, 0));
    vc_remote_fini(&r);
}

/* ---- batches ---- */

/* A BATCH of n runs, each of two bytes, that stands for so much of the stream; zstd makes nothing
 * of it. */
static int parse(struct vc_dst_batch *b, uint8_t kind, uint32_t n, uint32_t stream_bytes,
                 uint32_t contents)
{
    static struct vc_wire_codec *codec;
    struct vc_wire_batch h = {
        .seq = 1,
        .stream_bytes = stream_bytes,
        .runs_bytes = 2 * n,
        .body_bytes = 2 * n + contents,
        .codec = VC_WIRE_CODEC_ZSTD,
    };
    vc_auto_free uint8_t *body = calloc(1, h.body_bytes + 1);
    struct vc_link_frame *f;
    struct vc_err err = VC_ERR_INIT;
    size_t packed;
    int rc;

    if (!codec)
        assert_int_equal(vc_wire_codec_new(1, &codec, &err), 0);
    for (uint32_t i = 0; i < n; i++)
        memcpy(body + 2 * (size_t)i, (uint8_t[]){kind, 1}, 2);
    f = vc_link_frame_new(VC_WIRE_BATCH, 0,
                          VC_WIRE_BATCH_HEADER_BYTES + (uint32_t)vc_wire_body_bound(h.body_bytes));
    packed = vc_wire_body_compress(codec, body, h.body_bytes, NULL,
                                   f->payload + VC_WIRE_BATCH_HEADER_BYTES, h.body_bytes);
    assert_true(packed > 0);
    f->bytes = VC_WIRE_BATCH_HEADER_BYTES + (uint32_t)packed;
    vc_wire_batch_encode(f->payload, &h);
    rc = vc_dst_batch_parse(b, f, a_vm(64 * VC_GIB, 1), UINT64_MAX, codec, &err);
    return rc;
}

static void runs_that_stand_for_nothing_are_counted(void **state)
{
    static const struct {
        uint8_t kind;
        uint32_t each, contents;
    } kinds[] = {{VC_RUN_INVALIDATE, 0, 0}, {VC_RUN_OPAQUE, 1, 1}, {VC_RUN_ZERO, 9, 0}};

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(kinds); i++) {
        for (uint32_t more = 0; more <= 40000; more += more ? 39999 : 1) {
            struct vc_dst_batch *b = vc_dst_batch_new();
            uint32_t n = VC_WIRE_MAX_BATCH_RUNS + more;
            int rc = parse(b, kinds[i].kind, n, n * kinds[i].each, n * kinds[i].contents);

            assert_int_equal(rc, more ? VC_E_PROTOCOL : 0);
            assert_true(b->n_runs <= VC_WIRE_MAX_BATCH_RUNS);
            vc_dst_batch_unref(b);
        }
    }
    assert_true(VC_SRC_BATCH_RUNS <= VC_WIRE_MAX_BATCH_RUNS / 8);
}

static void nothing_of_an_impossible_body_is_expanded(void **state)
{
    struct vc_dst_batch *b = vc_dst_batch_new();
    size_t before = vc_dst_batches_held();

    (void)state;
    /* millions of runs, as long as the body was once allowed to be */
    assert_int_equal(parse(b, VC_RUN_INVALIDATE, (9u << 20) / 2, 0, 0), VC_E_PROTOCOL);
    assert_null(b->body);
    assert_int_equal(b->n_runs, 0);
    assert_true(vc_dst_batches_held() - before < 4096);
    vc_dst_batch_unref(b);

    b = vc_dst_batch_new(); /* contents for which there is no place in the stream */
    assert_int_equal(parse(b, VC_RUN_OPAQUE, 1, 1, 4u << 20), VC_E_PROTOCOL);
    assert_null(b->body);
    vc_dst_batch_unref(b);
}

/* The dearest kinds of batches, at the limit of the stream bytes. */
static void a_batch_is_charged_with_what_it_takes(void **state)
{
    struct vc_dst_batch *b = vc_dst_batch_new();
    uint32_t n = VC_WIRE_MAX_BATCH_RUNS, bytes = VC_WIRE_MAX_BATCH_STREAM_BYTES;
    size_t tables;

    (void)state;
    assert_int_equal(parse(b, VC_RUN_OPAQUE, n, n, n), 0);
    tables = n * (sizeof(struct vc_dst_run) + sizeof(struct iovec));
    assert_true(b->held >= tables + b->h.body_bytes && b->held < tables + b->h.body_bytes + 16384);
    assert_int_equal(vc_dst_batches_held(), b->held);
    vc_dst_batch_unref(b);
    assert_int_equal(vc_dst_batches_held(), 0);

    b = vc_dst_batch_new();
    assert_int_equal(parse(b, VC_RUN_ZERO, n, 9 * n, 0), 0);
    assert_true(b->held < (1u << 20));
    vc_dst_batch_unref(b);
    assert_true(bytes + n * sizeof(struct vc_dst_run) + 2 * (bytes / 1032) * sizeof(struct iovec) +
                    bytes / 1032 * sizeof(struct vc_dst_page) + VC_WIRE_MAX_BATCH_BYTES <
                10u << 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_vm_of_terabytes_with_video_memory_is_announced),
        cmocka_unit_test(an_announcement_beyond_all_limits_is_not_looked_at_and_ends_nothing),
        cmocka_unit_test(what_an_announcement_names_costs_nothing),
        cmocka_unit_test(no_page_is_announced_twice),
        cmocka_unit_test(a_destination_takes_no_more_than_the_vm_can_need),
        cmocka_unit_test(runs_that_stand_for_nothing_are_counted),
        cmocka_unit_test(nothing_of_an_impossible_body_is_expanded),
        cmocka_unit_test(a_batch_is_charged_with_what_it_takes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
