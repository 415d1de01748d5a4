/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What the source makes of a stream that has not ended: this test is QEMU, and nobody answers. */

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "test_qstream.h"

#include "base/fdio.h"
#include "link/link.h"
#include "net/net.h"
#include "source/source.h"

#define PAGES 64u
#define TIMEOUT_MS 600000

struct scene {
    struct vc_conn *peer; /* where the wire ends */
    struct vc_link *link;
    struct vc_source *source;
    int qemu;
};

static void drop_frame(void *opaque, struct vc_link_frame *f)
{
    (void)opaque;
    vc_link_frame_free(f);
}

static void begin_on(struct scene *s, const char *machine)
{
    struct vc_source_options o = {
        .session = {"a session"},
        .lineage = {.algo = VC_DIGEST_GMAC, .key = "a key that no guest knows"},
        .needs_return_path = true,
        .on_frame = drop_frame,
    };
    struct vc_err err = VC_ERR_INIT;
    struct vc_conn *conn;
    struct buf b = {0};
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(vc_conn_pair(&conn, &s->peer, &err), 0);
    assert_int_equal(vc_link_new(conn, VC_WIRE_SOURCE, 0, &s->link, &err), 0);
    vc_link_set_phase(s->link, VC_WIRE_PHASE_STREAM);
    o.qemu_fd = pair[0];
    o.link = s->link;
    s->qemu = pair[1];
    assert_int_equal(vc_source_start(&o, &s->source, &err), 0);

    put_header(&b);
    put_config(&b, machine);
    put_command(&b, 1, NULL, 0); /* OPEN_RETURN_PATH */
    put_start(&b, 1, RAM_ID, "ram", 4);
    put_be(&b, (PAGES * 4096) | 4, 8);
    put_block(&b, "pc.ram", PAGES * 4096);
    put_ram_end(&b);
    put_part(&b, 2, RAM_ID);
    assert_int_equal(vc_write_full(s->qemu, b.d, b.n), 0);
    buf_free(&b);
}

static void begin(struct scene *s)
{
    begin_on(s, "pc-i440fx-7.2");
}

/* The wire is the test's from here on. */
static struct vc_link *be_destination(struct scene *s)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_link *dest;

    assert_int_equal(vc_link_new(s->peer, VC_WIRE_DESTINATION, 0, &dest, &err), 0);
    s->peer = NULL;
    vc_link_set_phase(dest, VC_WIRE_PHASE_STREAM);
    return dest;
}

static void end(struct scene *s)
{
    vc_source_free(s->source);
    vc_link_free(s->link);
    vc_conn_close(s->peer);
    close(s->qemu);
}

static void say(struct scene *s, struct buf *b)
{
    assert_int_equal(vc_write_full(s->qemu, b->d, b->n), 0);
    buf_free(b);
}

static void assert_alive(struct scene *s, const struct vc_source_status *st)
{
    struct vc_err err;

    if (!st->failed)
        return;
    vc_source_error(s->source, &err);
    fail_msg("%s (zero pages %llu, stream %llu)", err.message, (unsigned long long)st->pages_zero,
             (unsigned long long)st->stream_bytes);
}

/* Waits until the source has taken so many ZERO records in, and gives its status then. */
static struct vc_source_status after(struct scene *s, uint64_t zero_pages)
{
    struct vc_source_status st;

    for (;;) {
        struct pollfd p = {.fd = vc_source_event_fd(s->source), .events = POLLIN};

        vc_source_status(s->source, &st);
        assert_alive(s, &st);
        if (st.pages_zero >= zero_pages)
            return st;
        poll(&p, 1, 10);
        vc_source_clear(s->source);
    }
}

static void await_end_of_first_pass(struct scene *s)
{
    for (;;) {
        struct pollfd p = {.fd = vc_source_event_fd(s->source), .events = POLLIN};
        struct vc_source_status st;

        vc_source_status(s->source, &st);
        assert_alive(s, &st);
        if (st.first_pass_done)
            return;
        assert_int_equal(poll(&p, 1, TIMEOUT_MS), 1);
        vc_source_clear(s->source);
    }
}

static void the_first_pass_ends_when_every_page_has_come(void **state)
{
    struct scene s;
    struct buf b = {0};

    (void)state;
    begin(&s);
    for (unsigned i = 0; i + 1 < PAGES; i++)
        put_zero(&b, i * 4096, i ? NULL : "pc.ram");
    say(&s, &b);
    assert_false(after(&s, PAGES - 1).first_pass_done);
    put_zero(&b, (PAGES - 1) * 4096, NULL);
    say(&s, &b);
    await_end_of_first_pass(&s);
    end(&s);
}

/* Free pages that a balloon has reported never come. Waiting for them would keep QEMU at a downtime
 * limit of a few ms, and its stream paced, for ever. */
static void the_first_pass_ends_when_a_page_comes_again(void **state)
{
    struct scene s;
    struct buf b = {0};

    (void)state;
    begin(&s);
    for (unsigned i = 0; i < PAGES; i += 2)
        put_zero(&b, i * 4096, i ? NULL : "pc.ram");
    say(&s, &b);
    assert_false(after(&s, PAGES / 2).first_pass_done);
    put_zero(&b, 8 * 4096, NULL);
    say(&s, &b);
    await_end_of_first_pass(&s);
    end(&s);
}

/* A record that QEMU left unfinished for long passes as bytes; it has come all the same. */
static void a_page_that_came_in_pieces_counts(void **state)
{
    struct scene s;
    struct buf b = {0};
    struct vc_source_status st;

    (void)state;
    begin(&s);
    for (unsigned i = 0; i + 1 < PAGES; i++)
        put_zero(&b, i * 4096, i ? NULL : "pc.ram");
    put_record(&b, 0x08, (PAGES - 1) * 4096, NULL);
    put_fill(&b, 7, 1000);
    say(&s, &b);
    await_end_of_first_pass(&s); /* once it is flushed */
    vc_source_status(s.source, &st);
    assert_int_equal(st.pages_unknown, 1);
    end(&s);
}

static struct vc_wire_batch next_batch(struct vc_link *dest)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_wire_batch b = {0};

    while (!b.seq) {
        vc_auto_frame struct vc_link_frame *f = NULL;

        assert_int_equal(vc_link_recv(dest, &f, &err), 0);
        if (f->type == VC_WIRE_BATCH)
            assert_int_equal(vc_wire_batch_decode(f->payload, f->bytes, &b, &err), 0);
    }
    return b;
}

static void an_acknowledgement_of_another_position_is_refused(void **state)
{
    struct vc_source_status st = {0};
    struct vc_err err = VC_ERR_INIT;
    uint8_t payload[16];
    struct vc_writer w = vc_writer(payload, sizeof(payload));
    struct vc_wire_batch b;
    struct vc_wire_ack ack;
    struct vc_link *dest;
    struct scene s;

    (void)state;
    begin(&s);
    dest = be_destination(&s);
    b = next_batch(dest);
    ack = (struct vc_wire_ack){b.seq, b.position + b.stream_bytes - 1};
    vc_wire_ack_encode(&w, &ack);
    assert_int_equal(vc_link_send_small(dest, VC_WIRE_ACK, 0, payload, sizeof(payload)), 0);
    while (!st.failed) {
        struct pollfd p = {.fd = vc_source_event_fd(s.source), .events = POLLIN};

        assert_int_equal(poll(&p, 1, TIMEOUT_MS), 1);
        vc_source_clear(s.source);
        vc_source_status(s.source, &st);
    }
    vc_source_error(s.source, &err);
    assert_int_equal(err.code, VC_E_PROTOCOL);
    assert_non_null(strstr(err.message, "is outstanding"));
    vc_link_free(dest);
    end(&s);
}

/* Whether the batch has runs of pages, all of them legal. @ram: NULL before BLOCKS. */
static bool has_pages(const struct vc_link_frame *f, const struct vc_ram *ram)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_wire_cursor c = {0};
    struct vc_wire_batch b;
    struct vc_wire_run run;
    struct vc_reader r;
    bool pages = false;
    int rc;

    assert_int_equal(vc_wire_batch_decode(f->payload, f->bytes, &b, &err), 0);
    assert_int_equal(b.codec, VC_WIRE_CODEC_NONE);
    r = vc_reader(f->payload + VC_WIRE_BATCH_HEADER_BYTES, b.runs_bytes);
    while ((rc = vc_wire_run_decode(&r, &c, ram, 0, &run, &err)) == 0)
        pages |= run.kind != VC_RUN_OPAQUE;
    assert_int_equal(rc, VC_EOF);
    return pages;
}

/* The size of a page is in no record of this machine's: the blocks are known once records have
 * shown it, and the first of these may be one whose page is not known. */
static void blocks_go_before_the_first_page(void **state)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_ram ram = {0};
    struct vc_link *dest;
    struct buf b = {0};
    struct scene s;
    bool pages = false;

    (void)state;
    begin_on(&s, "versatilepb");
    dest = be_destination(&s);
    put_record(&b, 0x02, 0, "pc.ram");
    put_fill(&b, 7, 1);
    for (unsigned i = 1; i < PAGES; i++)
        put_zero(&b, i * 4096, NULL);
    put_be(&b, 0x10, 8); /* RAM_SAVE_FLAG_EOS */
    say(&s, &b);
    while (!pages) {
        vc_auto_frame struct vc_link_frame *f = NULL;

        assert_int_equal(vc_link_recv(dest, &f, &err), 0);
        if (f->type == VC_WIRE_BLOCKS)
            assert_int_equal(vc_wire_blocks_decode(f->payload, f->bytes, &ram, &err), 0);
        if (f->type == VC_WIRE_BATCH)
            pages = has_pages(f, ram.n_blocks ? &ram : NULL);
    }
    vc_link_free(dest);
    end(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_pass_ends_when_every_page_has_come),
        cmocka_unit_test(the_first_pass_ends_when_a_page_comes_again),
        cmocka_unit_test(a_page_that_came_in_pieces_counts),
        cmocka_unit_test(blocks_go_before_the_first_page),
        cmocka_unit_test(an_acknowledgement_of_another_position_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
