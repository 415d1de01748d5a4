/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../cmd/cmd.h"

/* The progress line on a terminal that is played here: what is on its rows after all that was
 * written to standard error. */

#define ROWS 8
#define MOST_COLUMNS 400

struct screen {
    int master, old_stderr;
    unsigned columns, row, column;
    char rows[ROWS][MOST_COLUMNS + 1];
};

static void resize(struct screen *s, unsigned columns)
{
    struct winsize w = {.ws_row = ROWS, .ws_col = (unsigned short)columns};

    assert_int_equal(ioctl(s->master, TIOCSWINSZ, &w), 0);
    s->columns = columns ? columns : 80;
}

static void screen_open(struct screen *s, unsigned columns)
{
    struct termios t;
    int slave;

    *s = (struct screen){.master = posix_openpt(O_RDWR | O_NOCTTY), .old_stderr = dup(2)};
    assert_true(s->master >= 0);
    assert_int_equal(grantpt(s->master), 0);
    assert_int_equal(unlockpt(s->master), 0);
    slave = open(ptsname(s->master), O_RDWR | O_NOCTTY);
    assert_true(slave >= 0);
    assert_int_equal(tcgetattr(slave, &t), 0);
    cfmakeraw(&t);
    assert_int_equal(tcsetattr(slave, TCSANOW, &t), 0);
    dup2(slave, 2);
    close(slave);
    fcntl(s->master, F_SETFL, O_NONBLOCK);
    resize(s, columns);
    memset(s->rows, ' ', sizeof(s->rows));
    for (unsigned i = 0; i < ROWS; i++)
        s->rows[i][MOST_COLUMNS] = 0;
}

static void screen_close(struct screen *s)
{
    dup2(s->old_stderr, 2);
    close(s->old_stderr);
    close(s->master);
}

/* Takes what was written. A row that is full goes on in the next one. */
static void look(struct screen *s)
{
    char buf[4096];
    ssize_t n;

    fflush(stderr);
    while ((n = read(s->master, buf, sizeof(buf))) > 0)
        for (ssize_t i = 0; i < n; i++) {
            assert_true(buf[i] == '\r' || buf[i] == '\n' || (buf[i] >= ' ' && buf[i] <= '~'));
            if (buf[i] == '\r') {
                s->column = 0;
            } else if (buf[i] == '\n') {
                s->row++;
                s->column = 0;
            } else {
                if (s->column == s->columns) {
                    s->row++;
                    s->column = 0;
                }
                assert_true(s->row < ROWS);
                s->rows[s->row][s->column++] = buf[i];
            }
        }
}

static double number_after(const char *line, const char *word)
{
    const char *at = strstr(line, word);
    char unit = 0;
    double v = 0;

    if (!at || sscanf(at + strlen(word), " %lf %c", &v, &unit) < 1)
        return 0;
    return v * (unit == 'K' ? 1 << 10 : unit == 'M' ? 1 << 20 : unit == 'G' ? 1 << 30 : 1);
}

static double percent_of(const char *line)
{
    const char *at = line;

    while ((at = strchr(at, '%'))) {
        const char *p = at;

        while (p > line && p[-1] >= '0' && p[-1] <= '9')
            p--;
        if (p - 7 < line || strncmp(p - 7, "reused ", 7) != 0)
            return atof(p);
        at++;
    }
    return -1;
}

/* How three attempts go, two of which fail. */
static bool next(struct vecycle_result *r, unsigned step)
{
    unsigned attempt = step / 30, at = step % 30;

    *r = (struct vecycle_result){.vm = "x", .attempts = attempt + 1, .ram_bytes = 4ull << 30};
    r->phase = at < 2    ? VECYCLE_PHASE_CONNECT
               : at < 15 ? VECYCLE_PHASE_FIRST_PASS
               : at < 28 ? VECYCLE_PHASE_ROUNDS
                         : VECYCLE_PHASE_SWITCH;
    if (attempt < 2 && at > 20)
        r->phase = VECYCLE_PHASE_CONNECT; /* what it failed with says nothing any more */
    if (at == 18)
        r->phase = VECYCLE_PHASE_FIRST_PASS;
    r->rounds = at > 15 ? 1 + (at - 15) / 3 : 0;
    r->remaining_bytes = (uint64_t)(at < 15 ? 15 - at : 1 + at % 3) << 28;
    r->wire_sent_bytes = (uint64_t)at * 111111111;
    r->wire_bytes_per_s = 29360128;
    r->pages_same = at;
    r->pages_data = 7;
    return attempt < 3;
}

static const unsigned widths[] = {1, 2, 5, 12, 20, 33, 40, 79, 80, 81, 132, 300, 0};

static void one_line_stays_one_line_at_any_width(void **state)
{
    struct cmd_common c = {0};

    (void)state;
    for (size_t w = 0; w < sizeof(widths) / sizeof(widths[0]); w++) {
        struct cmd_progress p;
        struct vecycle_result r;
        struct screen s;

        screen_open(&s, widths[w]);
        cmd_progress_init(&p, &c);
        for (unsigned i = 0; next(&r, i); i++) {
            cmd_progress_show(&p, &r);
            look(&s);
        }
        cmd_progress_end(&p);
        look(&s);
        screen_close(&s);
        assert_int_equal(s.row, 0);
        assert_int_equal(s.column, 0);
        for (unsigned i = 0; i < s.columns; i++)
            assert_int_equal(s.rows[0][i], ' ');
    }
}

static void a_terminal_may_change_its_width(void **state)
{
    struct cmd_common c = {0};
    struct cmd_progress p;
    struct vecycle_result r;
    struct screen s;

    (void)state;
    screen_open(&s, 80);
    cmd_progress_init(&p, &c);
    for (unsigned i = 0; next(&r, i); i++) {
        resize(&s, 20 + 37 * i % 100);
        cmd_progress_show(&p, &r);
        look(&s);
        assert_true(s.column < s.columns);
    }
    cmd_progress_end(&p);
    look(&s);
    screen_close(&s);
    assert_int_equal(s.row, 0);
}

static void no_figure_runs_backwards_whatever_the_attempt(void **state)
{
    struct cmd_common c = {0};
    struct cmd_progress p;
    struct vecycle_result r;
    struct screen s;
    double percent = 0, wire = 0;

    (void)state;
    screen_open(&s, 132);
    cmd_progress_init(&p, &c);
    for (unsigned i = 0; next(&r, i); i++) {
        char attempt[32];

        cmd_progress_show(&p, &r);
        look(&s);
        assert_true(percent_of(s.rows[0]) >= percent);
        percent = percent_of(s.rows[0]);
        assert_true(number_after(s.rows[0], "wire") >= wire);
        wire = number_after(s.rows[0], "wire");
        snprintf(attempt, sizeof(attempt), "attempt %u:", i / 30 + 1);
        assert_int_equal(strstr(s.rows[0], attempt) != NULL, i >= 30);
    }
    cmd_progress_end(&p);
    screen_close(&s);
    assert_true(percent == 99);
    assert_true(wire > 6e9); /* of all of them together */
}

static void a_message_has_a_line_to_itself(void **state)
{
    struct cmd_common c = {0};
    struct cmd_progress p;
    struct vecycle_result r;
    struct screen s;

    (void)state;
    screen_open(&s, 60);
    cmd_progress_init(&p, &c);
    next(&r, 20);
    cmd_progress_show(&p, &r);
    flockfile(stderr);
    cmd_progress_make_way();
    fputs("vecycle: warning\r\n", stderr);
    funlockfile(stderr);
    cmd_progress_show(&p, &r);
    look(&s);
    assert_int_equal(s.row, 1);
    assert_int_equal(strncmp(s.rows[0], "vecycle: warning ", 17), 0);
    for (unsigned i = 16; i < 60; i++)
        assert_int_equal(s.rows[0][i], ' ');
    assert_non_null(strstr(s.rows[1], "rounds"));
    cmd_progress_end(&p);
    screen_close(&s);
}

/* A proxy does not see QEMU's rounds, nor what is left after the first pass. */
static void a_proxy_shows_what_it_knows(void **state)
{
    struct cmd_common c = {0};
    struct cmd_progress p;
    struct vecycle_result r;
    struct screen s;

    (void)state;
    screen_open(&s, 132);
    cmd_progress_init(&p, &c);
    p.proxied = true;
    next(&r, 10);
    cmd_progress_show(&p, &r);
    look(&s);
    assert_null(strstr(s.rows[0], " round "));
    assert_non_null(strstr(s.rows[0], "left"));
    next(&r, 20);
    r.remaining_bytes = 0;
    cmd_progress_show(&p, &r);
    look(&s);
    assert_null(strstr(s.rows[0], "left"));
    assert_true(percent_of(s.rows[0]) == 90);
    cmd_progress_end(&p);
    screen_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_line_stays_one_line_at_any_width),
        cmocka_unit_test(a_terminal_may_change_its_width),
        cmocka_unit_test(no_figure_runs_backwards_whatever_the_attempt),
        cmocka_unit_test(a_message_has_a_line_to_itself),
        cmocka_unit_test(a_proxy_shows_what_it_knows),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
