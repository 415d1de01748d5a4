/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <inttypes.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "cmd.h"

/* A line this often where the output is not a terminal. */
#define LINE_MS 2000
/* Of a terminal that does not say how wide it is. */
#define DEFAULT_COLUMNS 80

/* The line that a log message has to make way for. Standard error's own lock keeps whoever logs and
 * who shows the progress apart. */
static struct cmd_progress *shown;

void cmd_progress_init(struct cmd_progress *p, const struct cmd_common *c)
{
    *p = (struct cmd_progress){
        .out = c->verbose < 0 ? NULL : stderr,
        .terminal = isatty(STDERR_FILENO),
        .left_bytes = UINT64_MAX,
    };
    if (p->out && p->terminal)
        shown = p;
}

static uint64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- figures that never run backwards ---- */

/* Not before QEMU has looked at its memory for the first time; a proxy counts what passes by in the
 * first pass. */
static bool knows_left(const struct cmd_progress *p, const struct vecycle_result *r)
{
    if (!r->ram_bytes)
        return false;
    return p->proxied ? r->phase == VECYCLE_PHASE_FIRST_PASS : r->rounds || r->remaining_bytes;
}

/* The first pass is the bulk and counts for 90 %; what is left of the dirty pages moves the rest,
 * where it is known. */
static double percent(const struct cmd_progress *p, const struct vecycle_result *r)
{
    double left = knows_left(p, r) ? (double)r->remaining_bytes / (double)r->ram_bytes : 1;

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

#define AT_LEAST(have, now) ((have) = (now) > (have) ? (now) : (have))

/* Another attempt begins again, but for the share that is done and what has crossed the wire. What
 * is left counts down within a round. */
static void note(struct cmd_progress *p, const struct vecycle_result *r)
{
    if (r->attempts != p->attempt || r->wire_sent_bytes < p->wire_bytes) {
        p->wire_before += p->wire_bytes;
        p->wire_bytes = p->rounds = 0;
        p->rate_known = false;
        p->left_bytes = UINT64_MAX;
        p->phase = VECYCLE_PHASE_CONNECT;
        p->last_line_ms = 0;
    }
    p->attempt = r->attempts;
    if (r->rounds > p->rounds || r->phase > p->phase)
        p->left_bytes = UINT64_MAX;
    p->rate_known |= r->wire_bytes_per_s > 0;
    AT_LEAST(p->rounds, r->rounds);
    AT_LEAST(p->phase, r->phase);
    AT_LEAST(p->percent, percent(p, r));
    AT_LEAST(p->wire_bytes, r->wire_sent_bytes);
    if (knows_left(p, r) && r->remaining_bytes < p->left_bytes)
        p->left_bytes = r->remaining_bytes;
}

static uint64_t reused_percent(const struct vecycle_result *r)
{
    uint64_t all = r->pages_same + r->pages_moved + r->pages_data;

    return all ? 100 * (r->pages_same + r->pages_moved) / all : 0;
}

/* ---- the line ---- */

/* Its parts, from left to right, and which of them a narrow terminal does without first. */
enum part { ATTEMPT, PHASE, ROUND, PERCENT, REUSED, WIRE, RATE, LEFT, PARTS };
static const enum part first_to_go[] = {ROUND, REUSED, LEFT, WIRE, RATE, ATTEMPT, PHASE};

static void write_parts(const struct cmd_progress *p, const struct vecycle_result *r,
                        char text[PARTS][48])
{
    if (p->attempt > 1)
        snprintf(text[ATTEMPT], sizeof(text[0]), "attempt %" PRIu64 ":", p->attempt);
    snprintf(text[PHASE], sizeof(text[0]), "%-10s", vecycle_phase_name(p->phase));
    if (!p->proxied)
        snprintf(text[ROUND], sizeof(text[0]), "round %" PRIu64, p->rounds);
    snprintf(text[PERCENT], sizeof(text[0]), "%3.0f%%", p->percent);
    snprintf(text[REUSED], sizeof(text[0]), "reused %" PRIu64 "%%", reused_percent(r));
    snprintf(text[WIRE], sizeof(text[0]), "wire %s", cmd_size(p->wire_before + p->wire_bytes));
    if (p->rate_known)
        snprintf(text[RATE], sizeof(text[0]), "%s/s", cmd_size(r->wire_bytes_per_s));
    if (p->left_bytes != UINT64_MAX)
        snprintf(text[LEFT], sizeof(text[0]), "left %s", cmd_size(p->left_bytes));
}

static size_t join(char line[CMD_LINE_BYTES], char text[PARTS][48])
{
    size_t n = 0;

    line[0] = 0;
    for (int i = 0; i < PARTS; i++)
        if (text[i][0])
            n += (size_t)snprintf(line + n, CMD_LINE_BYTES - n, "%s%s",
                                  n == 0                     ? ""
                                  : i == PHASE || i == ROUND ? " "
                                                             : "  ",
                                  text[i]);
    return n;
}

/* What has room in so many columns. All of it is ASCII: a byte is a column. */
static size_t compose(const struct cmd_progress *p, const struct vecycle_result *r, size_t columns,
                      char line[CMD_LINE_BYTES])
{
    char text[PARTS][48] = {{0}};
    size_t n;

    write_parts(p, r, text);
    n = join(line, text);
    for (size_t i = 0; n > columns && i < sizeof(first_to_go) / sizeof(first_to_go[0]); i++) {
        if (first_to_go[i] == ATTEMPT && p->attempt > 1 && text[ATTEMPT][0] != '#') {
            snprintf(text[ATTEMPT], sizeof(text[0]), "#%" PRIu64, p->attempt);
            n = join(line, text);
            if (n <= columns)
                break;
        }
        text[first_to_go[i]][0] = 0;
        n = join(line, text);
    }
    if (n > columns)
        line[n = columns] = 0;
    return n;
}

/* Asked each time: it may change. The last column stays free, since a terminal may go on to its
 * next line there. */
static size_t terminal_columns(void)
{
    struct winsize w;
    size_t n = DEFAULT_COLUMNS;

    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0)
        n = w.ws_col;
    return (n < CMD_LINE_BYTES ? n : CMD_LINE_BYTES) - 1;
}

/* No more than a carriage return and blanks, which every terminal knows. */
static void draw(struct cmd_progress *p, const char *line, size_t n, size_t columns)
{
    size_t old = p->drawn < columns ? p->drawn : columns;

    fprintf(p->out, "\r%s%*s", line, (int)(old > n ? old - n : 0), "");
    p->drawn = n;
}

static void erase(struct cmd_progress *p)
{
    size_t columns = terminal_columns();

    if (!p->drawn)
        return;
    draw(p, "", 0, columns);
    fputc('\r', p->out);
}

void cmd_progress_show(void *opaque, const struct vecycle_result *r)
{
    struct cmd_progress *p = opaque;
    uint64_t now = now_ms();
    char line[CMD_LINE_BYTES];
    size_t columns, n;

    if (!p->out)
        return;
    note(p, r);
    if (!p->terminal && p->last_line_ms && now - p->last_line_ms < LINE_MS)
        return;
    p->last_line_ms = now;
    columns = p->terminal ? terminal_columns() : CMD_LINE_BYTES - 1;
    n = compose(p, r, columns, line);
    flockfile(p->out);
    if (p->terminal)
        draw(p, line, n, columns);
    else
        fprintf(p->out, "%s\n", line);
    fflush(p->out);
    funlockfile(p->out);
}

void cmd_progress_make_way(void)
{
    if (shown)
        erase(shown);
}

void cmd_progress_end(struct cmd_progress *p)
{
    flockfile(stderr);
    if (p->out && p->terminal)
        erase(p);
    fflush(stderr);
    shown = NULL;
    funlockfile(stderr);
}

/* ---- the summary ---- */

/* What nobody knows is null. */
static void add_number(struct json_object *o, const char *name, uint64_t v, bool known)
{
    json_object_object_add(o, name, known ? json_object_new_uint64(v) : NULL);
}

static struct json_object *result_json(const struct vecycle_result *r, bool driven)
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
    add_number(o, "downtime_ms", r->downtime_ms, driven);
    add_number(o, "rounds", r->rounds, driven);
    add_number(o, "ram_bytes", r->ram_bytes, r->ram_bytes > 0);
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
    json_object_object_add(o, "state", r->state[0] ? json_object_new_string(r->state) : NULL);
#undef TEXT
#undef NUMBER
#undef BOOLEAN
#undef PAGES
    return o;
}

/* Of a proxied migration only what passed by is known: not where the VM runs, nor how long it did
 * not. */
static void text_summary(const struct vecycle_result *r, bool driven)
{
    uint64_t wire = r->wire_sent_bytes + r->wire_received_bytes;

    if (!driven)
        printf("VM %s was carried to %s\n", r->vm, r->peer);
    else if (!r->state[0] || !strcmp(r->state, "running"))
        printf("VM %s %s at %s\n", r->vm, r->state[0] ? "now runs" : "is now", r->peer);
    else
        printf("VM %s is now at %s, in state '%s'; its disks stay inactive there until it is "
               "continued\n",
               r->vm, r->peer, r->state);
    printf("  total time  %.2f s", (double)r->total_ms / 1000);
    if (driven)
        printf(", downtime %" PRIu64 " ms, %" PRIu64 " rounds", r->downtime_ms, r->rounds);
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

void cmd_summary(const struct cmd_common *c, const struct cmd_progress *p,
                 const struct vecycle_result *r, const struct vecycle_error *err)
{
    struct json_object *o;

    if (!c->json) {
        if (!err && c->verbose >= 0)
            text_summary(r, !p->proxied);
        return;
    }
    o = result_json(r, !p->proxied);
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
