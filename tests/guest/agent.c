/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The first and only process of the Linux test guest. It owns most of the guest's memory, with
 * contents that it can compute again, and takes one-line commands on the serial console:
 *
 *   ping                    -> @@ OK pong
 *   fill MIB SEED           memory is allocated and filled; each page is different
 *   rewrite PERCENT [spread] new contents for that share of the pages, at the end or spread
 *   check                   everything is compared with what it should be
 *   dirty MIB RATE          a child rewrites MIB of its own memory again and again, RATE MiB/s
 *   stop                    it ends
 *   passes                  how often it has gone round
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
static pid_t child;

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

static void rewrite(unsigned percent, int spread)
{
    size_t n = pages * percent / 100;

    if (percent > 100) {
        puts("@@ ERR more than everything");
        return;
    }
    for (size_t i = 0; i < n; i++) {
        size_t page = spread ? i * pages / n : pages - n + i;

        versions[page]++;
        write_page(page);
    }
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

static void dirty(size_t mib, unsigned rate)
{
    if (child > 0) {
        puts("@@ ERR it runs already");
        return;
    }
    shared->stop = 0;
    shared->passes = shared->errors = 0;
    child = fork();
    if (child == 0)
        dirty_loop(mib, rate);
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

static void command(char *line)
{
    char *name = strtok(line, " \r\n"), *a = strtok(NULL, " \r\n"), *b = strtok(NULL, " \r\n");

    if (!name)
        return;
    if (!strcmp(name, "ping"))
        puts("@@ OK pong");
    else if (!strcmp(name, "fill") && a && b)
        fill(strtoul(a, NULL, 10), strtoull(b, NULL, 10));
    else if (!strcmp(name, "rewrite") && a)
        rewrite((unsigned)strtoul(a, NULL, 10), b && !strcmp(b, "spread"));
    else if (!strcmp(name, "check"))
        check();
    else if (!strcmp(name, "dirty") && a && b)
        dirty(strtoul(a, NULL, 10), (unsigned)strtoul(b, NULL, 10));
    else if (!strcmp(name, "stop"))
        stop();
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
    char line[256];

    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    open_console();
    shared = map(PAGE);
    puts("@@ OK ready");
    for (;;)
        if (fgets(line, sizeof(line), stdin))
            command(line);
}
