/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The first and only process of the Linux test guest. It owns most of the guest's memory, with
 * contents that it can compute again, and takes one-line commands on the serial console:
 *
 *   ping N                  -> @@ OK pong N
 *   fill MIB SEED           memory is allocated and filled; each page is different
 *   rewrite PERCENT [HOW]   new contents for that share of the pages: the last ones, `spread` over
 *                           all, or `top`, those at the highest physical addresses
 *   check                   everything is compared with what it should be
 *   dirty MIB RATE          a child rewrites MIB of its own memory again and again, RATE MiB/s
 *   count MIB RATE          likewise one word of each page alone, the others being such as no
 *                           compression can do anything about
 *   stop                    it ends
 *   passes                  how often it has gone round
 *   tick MS                 a child writes a dot to the console so often; 0: no more
 *   text PATH MIB SEED      a file with lines of random words
 *   run PROGRAM ARG...      a program, to its end: @@ OK exit STATUS (an argument '' is empty)
 *   spawn PROGRAM ARG...    a program in the background
 *
 * Answers begin with "@@ OK" or "@@ ERR". */

#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define WORDS (PAGE / 8)

static uint64_t *memory;
static size_t pages;
static uint64_t seed;
static uint32_t *versions;

struct shared {
    volatile uint64_t passes, errors;
    volatile int stop;
};
static struct shared *shared;
static pid_t child, ticker;

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

/* xorshift from a start that depends on page and version: fast, and it does not compress. */
static uint64_t start_of(size_t page)
{
    return mix(seed ^ mix(page * 0x100000001ull + versions[page])) | 1;
}

static void write_page(size_t page)
{
    uint64_t *p = memory + page * WORDS, x = start_of(page);

    for (unsigned i = 0; i < WORDS; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        p[i] = x;
    }
}

static int page_is_right(size_t page)
{
    const uint64_t *p = memory + page * WORDS;
    uint64_t x = start_of(page);

    for (unsigned i = 0; i < WORDS; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        if (p[i] != x)
            return 0;
    }
    return 1;
}

static void *map(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

static void fill(size_t mib, uint64_t with)
{
    size_t n = mib << 20;

    if (memory) {
        munmap(memory, pages * PAGE);
        munmap(versions, pages * 4);
    }
    pages = n / PAGE;
    memory = map(n);
    versions = map(pages * 4);
    if (!memory || !versions) {
        if (memory)
            munmap(memory, n);
        if (versions)
            munmap(versions, pages * 4);
        memory = NULL;
        pages = 0;
        puts("@@ ERR no memory");
        return;
    }
    seed = with;
    for (size_t i = 0; i < pages; i++)
        write_page(i);
    printf("@@ OK filled %zu pages\n", pages);
}

struct place {
    uint64_t frame;
    size_t page;
};

static int by_frame(const void *a, const void *b)
{
    const struct place *x = a, *y = b;

    return (x->frame > y->frame) - (x->frame < y->frame);
}

/* The pages in the order of their physical addresses, malloc'd, or NULL. */
static struct place *by_physical_address(void)
{
    struct place *p = malloc(pages * sizeof(*p));
    int fd = open("/proc/self/pagemap", O_RDONLY);
    uint64_t entry = 0;

    for (size_t i = 0; p && i < pages; i++) {
        off_t at = (off_t)(((uintptr_t)memory / PAGE + i) * sizeof(entry));

        if (pread(fd, &entry, sizeof(entry), at) != sizeof(entry) || !(entry >> 63)) {
            free(p);
            p = NULL;
            break;
        }
        p[i] = (struct place){entry & ((1ull << 55) - 1), i};
    }
    close(fd);
    if (p)
        qsort(p, pages, sizeof(*p), by_frame);
    return p;
}

static void rewrite(unsigned percent, const char *how)
{
    int spread = how && !strcmp(how, "spread"), top = how && !strcmp(how, "top");
    struct place *order = top ? by_physical_address() : NULL;
    size_t n = pages * percent / 100;

    if (percent > 100 || (top && !order)) {
        puts(top ? "@@ ERR no pagemap" : "@@ ERR more than everything");
        free(order);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        size_t page = spread ? i * pages / n : pages - n + i;

        if (top)
            page = order[page].page;
        versions[page]++;
        write_page(page);
    }
    free(order);
    printf("@@ OK rewrote %zu pages\n", n);
}

static void check(void)
{
    size_t bad = 0;

    if (!pages && !shared->passes) {
        puts("@@ ERR nothing was filled");
        return;
    }
    for (size_t i = 0; i < pages; i++)
        bad += !page_is_right(i);
    if (bad || (shared && shared->errors))
        printf("@@ ERR %zu of %zu pages are wrong, %llu in the dirtied region\n", bad, pages,
               shared ? (unsigned long long)shared->errors : 0ull);
    else
        printf("@@ OK checked %zu pages\n", pages);
}

/* Each pass writes the number of the pass everywhere, and finds the one before. */
static void dirty_loop(size_t mib, unsigned rate)
{
    size_t n = (mib << 20) / PAGE, per_tick = (size_t)rate * 256 / 100 + 1;
    uint64_t *p = map(n * PAGE);

    for (uint64_t pass = 1; !shared->stop; pass++) {
        for (size_t i = 0; i < n; i++) {
            uint64_t *w = p + i * WORDS;

            for (unsigned k = 0; k < WORDS; k += 32) {
                if (w[k] != (pass == 1 ? 0 : mix(pass - 1) ^ i ^ k))
                    shared->errors++;
                w[k] = mix(pass) ^ i ^ k;
            }
            if (rate && i % per_tick == 0) {
                struct timespec tick = {.tv_nsec = 10000000};

                nanosleep(&tick, NULL);
            }
        }
        shared->passes = pass;
    }
    _exit(0);
}

/* Each pass counts once in every page. */
static void count_loop(size_t mib, unsigned rate)
{
    size_t n = (mib << 20) / PAGE, per_tick = (size_t)rate * 256 / 100 + 1;
    uint64_t *p = map(n * PAGE), x = seed + 1;

    for (size_t i = 0; i < n * WORDS; i++)
        p[i] = x = mix(x);
    for (uint64_t pass = 1; !shared->stop; pass++) {
        for (size_t i = 0; i < n; i++) {
            uint64_t *w = p + i * WORDS;

            if (pass == 1)
                w[1] = w[0];
            if (++w[0] != w[1] + pass)
                shared->errors++;
            if (rate && i % per_tick == 0) {
                struct timespec tick = {.tv_nsec = 10000000};

                nanosleep(&tick, NULL);
            }
        }
        shared->passes = pass;
    }
    _exit(0);
}

static void dirty(size_t mib, unsigned rate, void (*loop)(size_t mib, unsigned rate))
{
    if (child > 0) {
        puts("@@ ERR it runs already");
        return;
    }
    shared->stop = 0;
    shared->passes = shared->errors = 0;
    child = fork();
    if (child == 0)
        loop(mib, rate);
    puts(child > 0 ? "@@ OK dirtying" : "@@ ERR fork");
}

static void stop(void)
{
    shared->stop = 1;
    if (child > 0)
        waitpid(child, NULL, 0);
    child = 0;
    printf("@@ OK stopped after %llu passes\n", (unsigned long long)shared->passes);
}

/* So often that a pause of the guest is seen by whoever listens. */
static void tick(unsigned ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

    if (ticker > 0) {
        kill(ticker, SIGKILL);
        waitpid(ticker, NULL, 0);
    }
    ticker = ms ? fork() : 0;
    if (ms && ticker == 0)
        while (write(1, ".", 1) == 1)
            nanosleep(&t, NULL);
    puts(ticker < 0 ? "@@ ERR fork" : "@@ OK ticking");
}

static void text(const char *path, size_t mib, uint64_t with)
{
    FILE *f = fopen(path, "w");
    uint64_t x = mix(with);
    int good = f != NULL;

    for (size_t n = 0; good && n < mib << 20;) {
        for (int words = 1 + (int)(x % 12); words > 0; words--) {
            char word[8];
            size_t len = 1 + (x = mix(x)) % sizeof(word);

            for (size_t i = 0; i < len; i++)
                word[i] = (char)('a' + (x >> (8 + 5 * i) & 31) % 26);
            good = good && fwrite(word, 1, len, f) == len && putc(words > 1 ? ' ' : '\n', f) != EOF;
            n += len + 1;
        }
    }
    if (f)
        good &= fclose(f) == 0;
    puts(good ? "@@ OK written" : "@@ ERR cannot write");
}

/* The rest of the line that strtok() is at, as a program's arguments. */
static void program(int wait_for_it)
{
    char *argv[40];
    int n = 0, status = 0;
    pid_t pid;

    while (n < 39 && (argv[n] = strtok(NULL, " \r\n"))) {
        if (!strcmp(argv[n], "''"))
            argv[n][0] = 0;
        n++;
    }
    argv[n] = NULL;
    pid = n ? fork() : -1;
    if (pid == 0) {
        int fd = open("/dev/null", O_RDWR);

        for (int i = 0; i < 3; i++)
            dup2(fd, i);
        execv(argv[0], argv);
        _exit(127);
    }
    if (pid > 0 && wait_for_it && waitpid(pid, &status, 0) == pid)
        printf("@@ OK exit %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    else
        puts(pid > 0 ? "@@ OK started" : "@@ ERR no program");
}

static void command(char *line)
{
    char *name = strtok(line, " \r\n"), *a, *b, *c;

    if (!name)
        return;
    if (!strcmp(name, "run") || !strcmp(name, "spawn")) {
        program(name[0] == 'r');
        return;
    }
    a = strtok(NULL, " \r\n");
    b = strtok(NULL, " \r\n");
    c = strtok(NULL, " \r\n");
    if (!strcmp(name, "ping"))
        printf("@@ OK pong %s\n", a ? a : "");
    else if (!strcmp(name, "fill") && a && b)
        fill(strtoul(a, NULL, 10), strtoull(b, NULL, 10));
    else if (!strcmp(name, "rewrite") && a)
        rewrite((unsigned)strtoul(a, NULL, 10), b);
    else if (!strcmp(name, "check"))
        check();
    else if (!strcmp(name, "dirty") && a && b)
        dirty(strtoul(a, NULL, 10), (unsigned)strtoul(b, NULL, 10), dirty_loop);
    else if (!strcmp(name, "count") && a && b)
        dirty(strtoul(a, NULL, 10), (unsigned)strtoul(b, NULL, 10), count_loop);
    else if (!strcmp(name, "stop"))
        stop();
    else if (!strcmp(name, "tick") && a)
        tick((unsigned)strtoul(a, NULL, 10));
    else if (!strcmp(name, "text") && a && b && c)
        text(a, strtoul(b, NULL, 10), strtoull(c, NULL, 10));
    else if (!strcmp(name, "passes"))
        printf("@@ OK passes %llu errors %llu\n", (unsigned long long)shared->passes,
               (unsigned long long)shared->errors);
    else
        puts("@@ ERR unknown command");
}

static void open_console(void)
{
    struct termios t;
    int fd = open("/dev/ttyS0", O_RDWR);

    dup2(fd, 0);
    dup2(fd, 1);
    dup2(fd, 2);
    tcgetattr(0, &t);
    cfmakeraw(&t);
    t.c_oflag |= OPOST | ONLCR;
    tcsetattr(0, TCSANOW, &t);
    setvbuf(stdout, NULL, _IOLBF, 0);
}

int main(void)
{
    char line[1024];

    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    mkdir("/proc", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mkdir("/tmp", 01777);
    open_console();
    shared = map(PAGE);
    puts("@@ OK ready");
    for (;;)
        if (fgets(line, sizeof(line), stdin))
            command(line);
}
