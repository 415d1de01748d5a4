/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BENCH_MICRO_H
#define VC_BENCH_MICRO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* What the micro benchmarks share: options, measuring, one result. A benchmark that cannot do its
 * work prints why and exits with 1. Rates are in units of 10^9 bytes, per second of CPU time of the
 * measuring thread: neighbours on the machine disturb that less than the time on the wall. */

struct micro_option {
    const char *name, *help; /* --NAME=NUMBER; ends with a NULL name */
    double value;            /* default, then what was given */
};

struct micro {
    const char *name;
    struct micro_option *options;
    bool json, smoke; /* smoke: as little as shows that it works */
    double seconds;   /* per figure */
};

/** Reads the command line: --json, --smoke, --seconds=N and the benchmark's own options (may be
 *  NULL). Exits on --help and on errors. */
void micro_init(struct micro *m, const char *name, struct micro_option *own, int argc, char **argv);
double micro_option(const struct micro *m, const char *name);

/** Prints and exits if rc is negative. */
void micro_ok(int rc, const struct vc_err *err, const char *what);
void micro_fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
/** Never NULL; aligned to 64 bytes; free with free(). */
void *micro_alloc(size_t n);

/** Random numbers that are the same in each run. */
uint64_t micro_random(uint64_t *state);
void micro_fill(void *p, size_t n, uint64_t seed);

struct micro_rate {
    double per_cpu_s, best_per_cpu_s; /* units a second of CPU: median of the rounds, and best */
    double per_s;                     /* units a second on the wall, all rounds together */
    unsigned rounds;
};

/** Calls fn, which does `units` of work, for about m->seconds (once if smoke; once more before, to
 *  warm up). */
struct micro_rate micro_measure(const struct micro *m, void (*fn)(void *), void *arg, double units);

double micro_wall_s(void);
double micro_thread_cpu_s(void);

/* ---- the result: fields in order, printed by micro_print ---- */

void micro_number(const char *field, double value, const char *unit);
void micro_text(const char *field, const char *value);
/** FIELD_gb_per_s, FIELD_best_gb_per_s ("" as field: without a prefix) of a rate in bytes. */
void micro_gb(const char *field, const struct micro_rate *r);
/** One line of JSON, or lines for people. */
void micro_print(const struct micro *m);

#endif
