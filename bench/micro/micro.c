/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "micro.h"

#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_OPTIONS 24
#define MAX_FIELDS 40
#define MAX_ROUNDS 512
#define ROUND_S 0.05 /* long against the clock's grain, short against a scheduler's whims */

static struct field {
    char name[48];
    const char *unit; /* NULL: text */
    double value;
    char text[64];
} fields[MAX_FIELDS];
static unsigned n_fields;

void micro_fail(const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(1);
}

void micro_ok(int rc, const struct vc_err *err, const char *what)
{
    if (rc < 0)
        micro_fail("%s: %s", what, err->message);
}

void *micro_alloc(size_t n)
{
    void *p = aligned_alloc(64, (n + 63) / 64 * 64);

    if (!p)
        micro_fail("no memory for %zu bytes", n);
    memset(p, 0, n);
    return p;
}

uint64_t micro_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

void micro_fill(void *p, size_t n, uint64_t seed)
{
    uint8_t *b = p;

    for (size_t i = 0; i + 8 <= n; i += 8) {
        uint64_t v = micro_random(&seed);

        memcpy(b + i, &v, 8);
    }
}

static void usage(const struct micro *m, FILE *out)
{
    fprintf(out, "usage: bench-%s [--json] [--smoke] [--seconds=N]", m->name);
    for (const struct micro_option *o = m->options; o && o->name; o++)
        fprintf(out, "\n  --%s=%g  %s", o->name, o->value, o->help);
    fputc('\n', out);
}

void micro_init(struct micro *m, const char *name, struct micro_option *own, int argc, char **argv)
{
    struct option o[MAX_OPTIONS] = {
        {"json", no_argument, NULL, 'j'},
        {"smoke", no_argument, NULL, 's'},
        {"seconds", required_argument, NULL, 't'},
        {"help", no_argument, NULL, 'h'},
    };
    int c, at;

    *m = (struct micro){.name = name, .options = own, .seconds = 2};
    for (int i = 4; own && own->name && i < MAX_OPTIONS - 1; i++, own++)
        o[i] = (struct option){own->name, required_argument, NULL, 0};
    while ((c = getopt_long(argc, argv, "", o, &at)) != -1) {
        if (c == 'j')
            m->json = true;
        else if (c == 's')
            m->smoke = true;
        else if (c == 't')
            m->seconds = atof(optarg);
        else if (c == 0)
            m->options[at - 4].value = atof(optarg);
        else {
            usage(m, c == 'h' ? stdout : stderr);
            exit(c == 'h' ? 0 : 2);
        }
    }
    if (optind != argc) {
        usage(m, stderr);
        exit(2);
    }
}

double micro_option(const struct micro *m, const char *name)
{
    for (const struct micro_option *o = m->options; o && o->name; o++)
        if (!strcmp(o->name, name))
            return o->value;
    micro_fail("no option '%s'", name);
}

static double seconds_of(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

double micro_wall_s(void)
{
    return seconds_of(CLOCK_MONOTONIC);
}

double micro_thread_cpu_s(void)
{
    return seconds_of(CLOCK_THREAD_CPUTIME_ID);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

struct micro_rate micro_measure(const struct micro *m, void (*fn)(void *), void *arg, double units)
{
    static double rates[MAX_ROUNDS];
    struct micro_rate r = {0};
    double start = micro_wall_s(), all = 0;

    fn(arg); /* caches, page tables, clock frequency */
    start = micro_wall_s();
    do {
        double from = micro_thread_cpu_s(), spent;
        unsigned calls = 0;

        do {
            fn(arg);
            calls++;
            spent = micro_thread_cpu_s() - from;
        } while (spent < ROUND_S && !m->smoke);
        rates[r.rounds++] = calls * units / (spent > 1e-9 ? spent : 1e-9);
        all += calls * units;
    } while (!m->smoke && micro_wall_s() - start < m->seconds && r.rounds < MAX_ROUNDS);
    r.per_s = all / (micro_wall_s() - start);
    qsort(rates, r.rounds, sizeof(*rates), by_value);
    r.per_cpu_s = rates[r.rounds / 2];
    r.best_per_cpu_s = rates[r.rounds - 1];
    return r;
}

static struct field *new_field(const char *name)
{
    if (n_fields == MAX_FIELDS)
        micro_fail("too many fields");
    snprintf(fields[n_fields].name, sizeof(fields[n_fields].name), "%s", name);
    return &fields[n_fields++];
}

void micro_number(const char *field, double value, const char *unit)
{
    struct field *f = new_field(field);

    f->value = value;
    f->unit = unit;
}

void micro_text(const char *field, const char *value)
{
    struct field *f = new_field(field);

    snprintf(f->text, sizeof(f->text), "%s", value);
}

void micro_gb(const char *field, const struct micro_rate *r)
{
    char name[48];
    const char *sep = *field ? "_" : "";

    snprintf(name, sizeof(name), "%s%sgb_per_s", field, sep);
    micro_number(name, r->per_cpu_s / 1e9, "GB/s of a core");
    snprintf(name, sizeof(name), "%s%sbest_gb_per_s", field, sep);
    micro_number(name, r->best_per_cpu_s / 1e9, "GB/s of a core");
}

void micro_print(const struct micro *m)
{
    if (m->json)
        printf("{\"bench\":\"%s\"", m->name);
    else
        printf("%s\n", m->name);
    for (unsigned i = 0; i < n_fields; i++) {
        const struct field *f = &fields[i];

        if (m->json && f->unit)
            printf(",\"%s\":%.6g", f->name, f->value);
        else if (m->json)
            printf(",\"%s\":\"%s\"", f->name, f->text);
        else if (f->unit)
            printf("  %-28s %.6g %s\n", f->name, f->value, f->unit);
        else
            printf("  %-28s %s\n", f->name, f->text);
    }
    if (m->json)
        puts("}");
    n_fields = 0;
}
