/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qstream/parser.h"

#include <stdarg.h>
#include <stdio.h>

/* Theory of operation
 *
 * The parser is a push machine. The stream is a sequence of fields, each with a known width once
 * the one before it was read; fields are gathered in `acc`, so that the input may be cut anywhere,
 * and a handler chosen by the state takes each one and says what comes next. Whatever passes this
 * way is OPAQUE, as many bytes at once as there are.
 *
 * What is worth more than that, PAGE and ZERO records, is taken on a fast path (ram.c): at the
 * start of a record, with all of it in the buffer, one look at its header gives an item. If the
 * record is not complete the caller is asked for more; if the caller cannot wait, the push machine
 * passes the record field by field and calls its page unknown.
 *
 * Events hold from the first byte of the item that carries them. So an item ends where an event is
 * raised, and the event waits in `pending` for the next item. Some are to be told at once, however
 * long the next byte may take; their item begins with the last byte of the field that told
 * (`ahead`: it was taken in, but not given out). */

int vc_qs_parser_new(uint32_t page_bytes_hint, struct vc_qs_parser **out, struct vc_err *err)
{
    struct vc_qs_parser *p;

    if (page_bytes_hint && !vc_qs_page_bytes_valid(page_bytes_hint))
        return vc_err_set(err, VC_E_USAGE, "no page has %u bytes", page_bytes_hint);
    p = calloc(1, sizeof(*p));
    if (!p)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a parser");
    p->page_bytes_hint = page_bytes_hint ? page_bytes_hint : 4096;
    p->ram.page_bytes = p->page_bytes_hint;
    p->block = -1;
    vc_qs_expect(p, VC_QS_ST_HEADER, 8);
    *out = p;
    return 0;
}

void vc_qs_parser_free(struct vc_qs_parser *p)
{
    free(p);
}

const struct vc_ram *vc_qs_ram(const struct vc_qs_parser *p)
{
    return &p->ram;
}

void vc_qs_records(const struct vc_qs_parser *p, uint64_t *data, uint64_t *zero)
{
    *data = p->data_records;
    *zero = p->zero_records;
}

bool vc_qs_is_qemu(const struct vc_qs_parser *p)
{
    return p->is_qemu;
}

bool vc_qs_is_recovery(const struct vc_qs_parser *p)
{
    return p->is_recovery;
}

bool vc_qs_is_parsing(const struct vc_qs_parser *p)
{
    return p->state != VC_QS_ST_VERBATIM;
}

const char *vc_qs_reason(const struct vc_qs_parser *p)
{
    return p->reason;
}

/* An anchor needs a RAM section still to come, or the footers and block names of the present one.
 */
static bool may_resume(const struct vc_qs_parser *p)
{
    if (p->n_resumes >= VC_QS_MAX_RESUMES)
        return false;
    return !p->ram_started || (p->ram_listed && p->footers == VC_QS_FOOTERS_YES);
}

void vc_qs_lose(struct vc_qs_parser *p, bool for_good, const char *fmt, ...)
{
    va_list ap;

    p->quiet = false;
    p->skip = 0;
    p->n_window = 0;
    p->footer_due = false;
    if (p->ram_ended) {
        p->state = VC_QS_ST_VERBATIM;
        vc_qs_raise_here(p, VC_QS_EV_TAIL);
        return;
    }
    va_start(ap, fmt);
    vsnprintf(p->reason, sizeof(p->reason), fmt, ap);
    va_end(ap);
    for (char *c = p->reason; *c; c++)
        if (*c < 0x20 || *c > 0x7e)
            *c = '?';
    p->state = !for_good && may_resume(p) ? VC_QS_ST_SCAN : VC_QS_ST_VERBATIM;
    vc_qs_raise_here(p, VC_QS_EV_LOST);
}

static void field_done(struct vc_qs_parser *p)
{
    p->have = 0;
    if (p->state <= VC_QS_ST_STREAM_LAST)
        vc_qs_stream_field(p);
    else if (p->state <= VC_QS_ST_DISCARD_LAST)
        vc_qs_discard_field(p);
    else if (p->state <= VC_QS_ST_BLOCKS_LAST)
        vc_qs_blocks_field(p);
    else if (p->state <= VC_QS_ST_RAM_LAST)
        vc_qs_ram_field(p);
    else
        vc_qs_iterable_field(p);
}

/* Gathers the present field. Returns the bytes taken. */
static size_t gather(struct vc_qs_parser *p, const uint8_t *data, size_t len)
{
    size_t n = VC_MIN(len, (size_t)(p->want - p->have));

    memcpy(p->acc + p->have, data, n);
    p->have += (unsigned)n;
    if (p->have < p->want)
        return n;
    if (p->counted) {
        p->counted = false;
        p->want = 1u + p->acc[0];
        if (p->have < p->want)
            return n;
    }
    field_done(p);
    return n;
}

/* One step. Returns the bytes taken: none only if an event begins with the next byte. */
static size_t step(struct vc_qs_parser *p, const uint8_t *data, size_t len)
{
    if (p->skip) {
        size_t n = p->skip < len ? (size_t)p->skip : len;

        p->skip -= n;
        return n;
    }
    if (p->state == VC_QS_ST_VERBATIM)
        return len;
    if (p->state == VC_QS_ST_SCAN)
        return vc_qs_scan(p, data, len);
    if (p->state == VC_QS_ST_TYPE && vc_qs_stream_peek(p, data[0]))
        return 0;
    return gather(p, data, len);
}

static bool at_record(const struct vc_qs_parser *p)
{
    return p->state == VC_QS_ST_RECORD && !p->have && !p->skip;
}

/* Field by field, up to the next event or record. */
static void push(struct vc_qs_parser *p, const uint8_t *data, size_t len, struct vc_qs_item *item)
{
    size_t off = p->ahead;
    unsigned events = p->pending;
    uint16_t unknown_block = p->unknown_block;
    struct vc_page unknown_page = p->unknown_page;
    uint64_t unknown_count = p->unknown_count;

    p->ahead = 0;
    p->pending = 0;
    while (off < len && !(off && at_record(p))) {
        size_t begin;

        p->here = false;
        off += step(p, data + off, len - off);
        if (!p->pending)
            continue;
        begin = off - p->here;
        if (begin) {
            p->ahead = p->here;
            off = begin;
            break;
        }
        events |= p->pending;
        p->pending = 0;
    }
    vc_qs_opaque(item, off, events);
    if (events & VC_QS_EV_UNKNOWN) {
        item->block = unknown_block;
        item->page = unknown_page;
        item->count = unknown_count;
    }
    if (events & VC_QS_EV_PACKAGED)
        item->package_bytes = p->package_bytes;
    p->ready = at_record(p) && !p->ahead;
}

void vc_qs_next(struct vc_qs_parser *p, const uint8_t *data, size_t len, bool flush,
                struct vc_qs_item *item)
{
    if (p->ready && vc_qs_ram_record(p, data, len, flush, item))
        return;
    push(p, data, len, item);
}
