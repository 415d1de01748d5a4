/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <inttypes.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cmd.h"

/* A line this often where the output is not a terminal. */
#define LINE_MS 2000

void cmd_progress_init(struct cmd_progress *p, const struct cmd_common *c)
{
    *p = (struct cmd_progress){
        .out = c->verbose < 0 ? NULL : stderr,
        .terminal = isatty(STDERR_FILENO),
    };
}

static uint64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* The first pass is the bulk and counts for 90 %; what is left of the dirty pages moves the rest.
 */
static double percent(const struct vecycle_result *r)
{
    double left = r->ram_bytes ? (double)r->remaining_bytes / (double)r->ram_bytes : 1;

    if (left > 1)
        left = 1;
    switch (r->phase) {
    case VECYCLE_PHASE_CONNECT:
        return 0;
    case VECYCLE_PHASE_FIRST_PASS:
        return 90 * (1 - left);
    case VECYCLE_PHASE_ROUNDS:
        return 90 + 8 * (1 - left);
    case VECYCLE_PHASE_SWITCH:
        return 99;
    default:
        return 100;
    }
}

static uint64_t reused_percent(const struct vecycle_result *r)
{
    uint64_t all = r->pages_same + r->pages_moved + r->pages_data;

    return all ? 100 * (r->pages_same + r->pages_moved) / all : 0;
}

void cmd_progress_show(void *opaque, const struct vecycle_result *r)
{
    struct cmd_progress *p = opaque;
    double pc = percent(r);
    uint64_t now = now_ms();
    char line[240], attempt[40] = "";

    if (!p->out)
        return;
    if (r->attempts != p->attempt) {
        p->attempt = r->attempts;
        p->percent = 0;
        p->last_line_ms = 0;
    }
    if (r->attempts > 1)
        snprintf(attempt, sizeof(attempt), "attempt %" PRIu64 ": ", r->attempts);
    if (pc > p->percent)
        p->percent = pc;
    if (!p->terminal && p->last_line_ms && now - p->last_line_ms < LINE_MS)
        return;
    p->last_line_ms = now;
    snprintf(line, sizeof(line),
             "%s%-10s round %" PRIu64 "  %3.0f%%  reused %" PRIu64 "%%  wire %s  %s/s  left %s",
             attempt, vecycle_phase_name(r->phase), r->rounds, p->percent, reused_percent(r),
             cmd_size(r->wire_sent_bytes), cmd_size(r->wire_bytes_per_s),
             cmd_size(r->remaining_bytes));
    if (p->terminal)
        fprintf(p->out, "\r%-78.78s", line);
    else
        fprintf(p->out, "%s\n", line);
    fflush(p->out);
    p->drawn = true;
}

void cmd_progress_end(struct cmd_progress *p)
{
    if (p->out && p->terminal && p->drawn)
        fprintf(p->out, "\r%-78s\r", "");
}

static struct json_object *result_json(const struct vecycle_result *r)
{
    struct json_object *o = json_object_new_object(), *pages = json_object_new_object();
#define TEXT(name) json_object_object_add(o, #name, json_object_new_string(r->name))
#define NUMBER(name) json_object_object_add(o, #name, json_object_new_uint64(r->name))
#define BOOLEAN(name) json_object_object_add(o, #name, json_object_new_boolean(r->name))
#define PAGES(name) json_object_object_add(pages, #name, json_object_new_uint64(r->pages_##name))
    TEXT(vm);
    TEXT(peer);
    json_object_object_add(o, "phase", json_object_new_string(vecycle_phase_name(r->phase)));
    NUMBER(base);
    NUMBER(attempts);
    NUMBER(total_ms);
    NUMBER(downtime_ms);
    NUMBER(rounds);
    NUMBER(ram_bytes);
    PAGES(same);
    PAGES(moved);
    PAGES(zero);
    PAGES(data);
    PAGES(unknown);
    json_object_object_add(o, "pages", pages);
    NUMBER(stream_bytes);
    NUMBER(wire_sent_bytes);
    NUMBER(wire_received_bytes);
    NUMBER(wire_bytes_per_s);
    json_object_object_add(o, "wire_bytes",
                           json_object_new_uint64(r->wire_sent_bytes + r->wire_received_bytes));
    NUMBER(repaired_pages);
    NUMBER(resent_batches);
    BOOLEAN(committed);
    BOOLEAN(confirmed);
    BOOLEAN(passthrough);
    TEXT(reason);
#undef TEXT
#undef NUMBER
#undef BOOLEAN
#undef PAGES
    return o;
}

static void text_summary(const struct vecycle_result *r)
{
    uint64_t wire = r->wire_sent_bytes + r->wire_received_bytes;

    printf("VM %s now runs at %s\n", r->vm, r->peer);
    printf("  total time  %.2f s, downtime %" PRIu64 " ms, %" PRIu64 " rounds",
           (double)r->total_ms / 1000, r->downtime_ms, r->rounds);
    if (r->attempts > 1)
        printf("; attempt %" PRIu64, r->attempts);
    putchar('\n');
    printf("  pages       %" PRIu64 " same, %" PRIu64 " moved, %" PRIu64 " zero, %" PRIu64
           " data%s\n",
           r->pages_same, r->pages_moved, r->pages_zero, r->pages_data,
           r->repaired_pages ? " (some repaired)" : "");
    printf("  wire        %s sent, %s received; QEMU's stream had %s", cmd_size(r->wire_sent_bytes),
           cmd_size(r->wire_received_bytes), cmd_size(r->stream_bytes));
    if (r->stream_bytes > wire)
        printf(": %s (%.1f %%) saved", cmd_size(r->stream_bytes - wire),
               100.0 * (double)(r->stream_bytes - wire) / (double)r->stream_bytes);
    printf("\n  checkpoint  %s\n", r->confirmed   ? "kept on both hosts"
                                   : r->committed ? "kept on this host only"
                                                  : "none kept on this host");
    if (r->passthrough)
        printf("  reuse was off: %s\n", r->reason);
}

void cmd_summary(const struct cmd_common *c, const struct vecycle_result *r,
                 const struct vecycle_error *err)
{
    struct json_object *o;

    if (!c->json) {
        if (!err && c->verbose >= 0)
            text_summary(r);
        return;
    }
    o = result_json(r);
    if (err) {
        struct json_object *v = json_object_new_object();

        json_object_object_add(v, "code", json_object_new_int(-err->code));
        json_object_object_add(v, "name", json_object_new_string(vecycle_error_name(err->code)));
        json_object_object_add(v, "message", json_object_new_string(err->message));
        json_object_object_add(v, "hint", json_object_new_string(err->hint));
        json_object_object_add(o, "error", v);
    }
    puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    json_object_put(o);
}
