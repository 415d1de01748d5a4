/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* delay TAP0 TAP1 MICROSECONDS: makes two TAP devices and carries every frame from one to the other
 * so much later, in both directions: a long line, for kernels without netem. The time is exact to
 * some ten microseconds while a core is free. Says "ready" when the devices are there; ends by
 * SIGTERM, or with its parent. A frame that finds the line full is lost, as on a real one. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define FRAME_BYTES 9216u /* jumbo frames */
#define FRAMES 8192u      /* 10 ms of 1 Gbit/s are 830 short ones */
#define BURST 32u

struct frame {
    long long due_ns;
    unsigned bytes;
    unsigned char data[FRAME_BYTES];
};

struct line {
    int from, to;
    unsigned head, n; /* a ring */
    struct frame *frames;
};

static long long now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static int open_tap(const char *name)
{
    struct ifreq r = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);

    snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", name);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &r) < 0) {
        fprintf(stderr, "delay: %s: %s\n", name, strerror(errno));
        exit(1);
    }
    return fd;
}

static void take_in(struct line *l, long long delay_ns)
{
    for (unsigned i = 0; i < BURST; i++) {
        struct frame *f = &l->frames[(l->head + l->n) % FRAMES];
        unsigned char lost[FRAME_BYTES];
        ssize_t n = read(l->from, l->n < FRAMES ? f->data : lost, FRAME_BYTES);

        if (n <= 0)
            return;
        if (l->n == FRAMES)
            continue;
        f->bytes = (unsigned)n;
        f->due_ns = now_ns() + delay_ns;
        l->n++;
    }
}

static void give_out(struct line *l)
{
    while (l->n && l->frames[l->head].due_ns <= now_ns()) {
        struct frame *f = &l->frames[l->head];

        if (write(l->to, f->data, f->bytes) < 0 && errno == EAGAIN)
            return;
        l->head = (l->head + 1) % FRAMES;
        l->n--;
    }
}

static void wait_for_work(const struct line lines[2])
{
    struct pollfd p[2] = {{.fd = lines[0].from, .events = POLLIN},
                          {.fd = lines[1].from, .events = POLLIN}};
    long long due = -1, left;
    struct timespec t;

    for (int i = 0; i < 2; i++)
        if (lines[i].n && (due < 0 || lines[i].frames[lines[i].head].due_ns < due))
            due = lines[i].frames[lines[i].head].due_ns;
    left = due < 0 ? 0 : due - now_ns();
    if (left < 0)
        left = 0;
    t = (struct timespec){.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
    ppoll(p, 2, due < 0 ? NULL : &t, NULL);
}

int main(int argc, char **argv)
{
    struct line lines[2] = {0};
    long long delay_ns;

    if (argc != 4) {
        fputs("usage: delay TAP0 TAP1 MICROSECONDS\n", stderr);
        return 2;
    }
    delay_ns = atoll(argv[3]) * 1000;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    /* A line does not wait for its turn; where this is not allowed, it has to. */
    (void)sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
    lines[0].from = lines[1].to = open_tap(argv[1]);
    lines[1].from = lines[0].to = open_tap(argv[2]);
    for (int i = 0; i < 2; i++) {
        lines[i].frames = calloc(FRAMES, sizeof(struct frame));
        if (!lines[i].frames) {
            fputs("delay: no memory\n", stderr);
            return 1;
        }
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        for (int i = 0; i < 2; i++) {
            take_in(&lines[i], delay_ns);
            give_out(&lines[i]);
        }
        wait_for_work(lines);
    }
}
