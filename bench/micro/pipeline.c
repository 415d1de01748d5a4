/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The pipelines end to end, without QEMU: a generator writes the stream of a pretended VM, the
 * source takes it in, the destination rebuilds it, a sink reads it. Source and destination are
 * processes of their own, joined by a socket, so that each one's memory and processor time are
 * known; generator and sink are threads beside them whose time is not counted.
 *
 *   a return, 5 % changed:            bench-pipeline --gib=4
 *   a first visit:                    bench-pipeline --return=0
 *   the source alone, on one core:    bench-pipeline --source-only=1 --changed=0 --zero=0
 *   64 GiB of RAM with little in use: bench-pipeline --gib=64 --zero=95
 *   64 GiB of stream:                 bench-pipeline --gib=1 --passes=64
 *   is memory bounded?                bench-pipeline --gib=16 --zero=95 --bounded=1 */
#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/fdio.h"
#include "dest/dest.h"
#include "gens.h"
#include "link/link.h"
#include "net/net.h"
#include "source/source.h"

#define STALLED_MS 120000
/* What a session takes: docs/internals/threads.md. */
#define BOUND_BYTES (64ull << 20)
#define BOUND_BYTES_A_PAGE 56ull

static const struct vc_id base_id = {"a generation 1."}, new_id = {"a generation 2."},
                          session_id = {"a session......"};
static const uint8_t shut[8] = {0, 1, 0, 4, 0, 0, 0, 0}; /* QEMU's last word: success */

struct setup {
    struct synth synth;
    struct gens hosts[2];
    uint64_t stream_bytes;
    bool is_return, source_only, record, pin, bounded;
    unsigned workers;
};

/* What a process reports to its parent. */
struct report {
    double begun, ended; /* on the monotonic clock */
    double cpu_s;
    uint64_t peak_rss_bytes, wire_bytes;
    uint64_t same, zero, data, unknown, repaired, resent;
    uint8_t root[VC_ROOT_BYTES];
    bool recorded;
};

/* Generator or sink. */
struct qemu {
    struct setup *s;
    int fd;
    pthread_t thread;
    double cpu_s, ended;
};

static void pin_to(unsigned cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof(set), &set) < 0 && cpu == 0)
        micro_fail("cannot be pinned to a core: %s", strerror(errno));
}

static void *generator(void *arg)
{
    struct qemu *q = arg;
    uint8_t answer[8];

    if (q->s->pin)
        pin_to(1);
    if (synth_write(&q->s->synth, q->fd) < 0)
        micro_fail("the source took not all of the stream: %s", strerror(errno));
    if (vc_read_full(q->fd, answer, sizeof(answer)) != 1)
        micro_fail("no answer came on the return path");
    q->ended = micro_wall_s();
    close(q->fd);
    q->cpu_s = micro_thread_cpu_s();
    return NULL;
}

static void *sink(void *arg)
{
    struct qemu *q = arg;
    size_t cap = 1u << 20;
    uint8_t *buf = micro_alloc(cap);
    uint64_t left = q->s->stream_bytes;
    ssize_t n;

    while (left && (n = vc_read_some(q->fd, buf, cap)) > 0)
        left -= (uint64_t)n < left ? (uint64_t)n : left;
    if (left)
        micro_fail("%llu bytes did not come out", (unsigned long long)left);
    q->ended = micro_wall_s();
    if (vc_write_full(q->fd, shut, sizeof(shut)) < 0)
        micro_fail("the return path is closed");
    while (vc_read_some(q->fd, buf, cap) > 0) {
        /* until the other side closes */
    }
    close(q->fd);
    free(buf);
    q->cpu_s = micro_thread_cpu_s();
    return NULL;
}

static double process_cpu_s(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static uint64_t peak_rss_bytes(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    unsigned long long kib = 0;
    char line[256];

    while (f && fgets(line, sizeof(line), f))
        sscanf(line, "VmHWM: %llu", &kib);
    if (f)
        fclose(f);
    return kib << 10;
}

static struct vc_link *open_link(int fd, enum vc_wire_role role)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_conn *conn;
    struct vc_link *link;

    micro_ok(vc_conn_from_fds(fd, fd, VC_CONN_LOCAL, "bench", &conn, &err), &err, "connection");
    micro_ok(vc_link_new(conn, role, 0, &link, &err), &err, "link");
    vc_link_set_phase(link, VC_WIRE_PHASE_STREAM);
    return link;
}

static void wait_on(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    if (poll(&p, 1, STALLED_MS) == 0)
        micro_fail("nothing moves any more");
}

static void drop_frame(void *opaque, struct vc_link_frame *f)
{
    (void)opaque;
    vc_link_frame_free(f);
}

/* The same, and notes when no more will come. @opaque: a semaphore. */
static void drop_until_end(void *opaque, struct vc_link_frame *f)
{
    if (f)
        vc_link_frame_free(f);
    else
        sem_post(opaque);
}

static struct vc_txn *begin_txn(const struct setup *s, struct gens *g)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_txn *t = NULL;

    if (s->record)
        micro_ok(vc_txn_begin(g->vm, &new_id, g->gen, &t, &err), &err, "transaction");
    return t;
}

static void commit(struct vc_txn *t, struct report *r)
{
    struct vc_txn_note note = {.peer = "bench"};
    struct vc_err err = VC_ERR_INIT;

    if (!t)
        return;
    micro_ok(vc_txn_commit(t, &note, r->root, &err), &err, "commit");
    r->recorded = true;
}

static void thread(struct qemu *q, void *(*fn)(void *))
{
    if (pthread_create(&q->thread, NULL, fn, q))
        micro_fail("cannot start a thread");
}

/* ---- the two sides ---- */

static void run_source(struct setup *s, int link_fd, struct report *r)
{
    struct gens *g = &s->hosts[0];
    struct vc_source_status st;
    struct vc_err err = VC_ERR_INIT;
    struct vc_source *source;
    sem_t end;
    int pair[2];

    if (s->pin)
        pin_to(0);
    gens_open(g);
    if (sem_init(&end, 0, 0) < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
        micro_fail("the source has no socket: %s", strerror(errno));

    struct qemu q = {.s = s, .fd = pair[1]};
    struct vc_source_options o = {
        .qemu_fd = pair[0],
        .link = open_link(link_fd, VC_WIRE_SOURCE),
        .session = session_id,
        .lineage = gens_lineage,
        .base = s->is_return ? VC_WIRE_BASE_PING_PONG : VC_WIRE_BASE_NONE,
        .shared_gen = s->is_return ? g->gen : NULL,
        .local_gen = g->gen,
        .txn = begin_txn(s, g),
        .workers = s->workers,
        .needs_return_path = true,
        .on_frame = drop_until_end,
        .opaque = &end,
    };

    r->cpu_s = -process_cpu_s();
    r->begun = micro_wall_s();
    micro_ok(vc_source_start(&o, &source, &err), &err, "source");
    thread(&q, generator);
    for (;;) {
        vc_source_status(source, &st);
        if (st.failed) {
            vc_source_error(source, &err);
            micro_fail("source: %s", err.message);
        }
        if (st.stream_ended)
            break;
        wait_on(vc_source_event_fd(source));
        vc_source_clear(source);
    }
    commit(vc_source_join(source), r);
    pthread_join(q.thread, NULL);
    vc_source_status(source, &st);
    r->ended = q.ended;
    r->cpu_s += process_cpu_s() - q.cpu_s;
    r->wire_bytes = vc_link_bytes_sent(o.link) + vc_link_bytes_received(o.link);
    r->same = st.pages_same;
    r->zero = st.pages_zero;
    r->data = st.pages_data;
    r->unknown = st.pages_unknown;
    r->repaired = st.repaired_pages;
    r->resent = st.resent_batches;
    r->peak_rss_bytes = peak_rss_bytes();
    /* A destination hangs up once it has read the end: before that, it would miss it. */
    while (!s->source_only && sem_wait(&end) < 0) {
        /* interrupted */
    }
    vc_source_free(source);
    vc_link_free(o.link);
    sem_destroy(&end);
    gens_close(g);
}

static int dest_fd;

static int connect_dest(void *opaque, struct vc_err *err)
{
    (void)opaque;
    (void)err;
    return dest_fd;
}

static void run_dest(struct setup *s, int link_fd, struct report *r)
{
    struct gens *g = &s->hosts[1];
    struct vc_dest_status st;
    struct vc_err err = VC_ERR_INIT;
    struct vc_dest *dest;
    int pair[2];

    gens_open(g);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
        micro_fail("socketpair: %s", strerror(errno));
    dest_fd = pair[0];

    struct qemu q = {.s = s, .fd = pair[1]};
    struct vc_dest_options o = {
        .link = open_link(link_fd, VC_WIRE_DESTINATION),
        .session = session_id,
        .lineage = gens_lineage,
        .base = s->is_return ? VC_WIRE_BASE_PING_PONG : VC_WIRE_BASE_NONE,
        .gen = g->gen,
        .txn = begin_txn(s, g),
        .connect = connect_dest,
        .on_frame = drop_frame,
    };

    r->cpu_s = -process_cpu_s();
    thread(&q, sink);
    micro_ok(vc_dest_start(&o, &dest, &err), &err, "destination");
    for (;;) {
        vc_dest_status(dest, &st);
        if (st.failed) {
            vc_dest_error(dest, &err);
            micro_fail("destination: %s", err.message);
        }
        if (st.source_eof)
            break;
        wait_on(vc_dest_event_fd(dest));
        vc_dest_clear(dest);
    }
    commit(vc_dest_join(dest), r);
    r->peak_rss_bytes = peak_rss_bytes();
    vc_dest_free(dest);
    pthread_join(q.thread, NULL);
    r->ended = q.ended;
    r->cpu_s += process_cpu_s() - q.cpu_s;
    vc_link_free(o.link);
    gens_close(g);
}

/* In place of a destination: acknowledges, and answers when everything has come. */
static void run_acknowledger(struct setup *s, int link_fd, struct report *r)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_link *link;
    struct vc_link_frame *f;
    int rc;

    (void)r;
    if (s->pin)
        pin_to(1);
    link = open_link(link_fd, VC_WIRE_DESTINATION);
    while ((rc = vc_link_recv(link, &f, &err)) == 0) {
        if (f->type == VC_WIRE_BATCH) {
            struct vc_wire_batch b;
            uint8_t ack[16];

            micro_ok(vc_wire_batch_decode(f->payload, f->bytes, &b, &err), &err, "batch");
            vc_store_le(ack, b.seq, 8);
            vc_store_le(ack + 8, b.position + b.stream_bytes, 8);
            vc_link_send_small(link, VC_WIRE_ACK, 0, ack, sizeof(ack));
            if (b.position + b.stream_bytes == s->stream_bytes)
                vc_link_send_small(link, VC_WIRE_RETURN, 0, shut, sizeof(shut));
        } else if (f->type == VC_WIRE_EOF) {
            vc_link_send_small(link, VC_WIRE_EOF, 0, NULL, 0);
        }
        vc_link_frame_free(f);
    }
    vc_link_free(link);
}

/* ---- processes ---- */

typedef void side_fn(struct setup *s, int link_fd, struct report *r);

static pid_t fork_side(struct setup *s, side_fn *fn, int fd, int other, int *report_fd)
{
    int p[2];
    pid_t pid;

    if (pipe(p) < 0 || (pid = fork()) < 0)
        micro_fail("cannot start a process: %s", strerror(errno));
    if (!pid) {
        struct report r = {0};

        close(other);
        close(p[0]);
        fn(s, fd, &r);
        _exit(vc_write_full(p[1], &r, sizeof(r)) < 0);
    }
    close(p[1]);
    *report_fd = p[0];
    return pid;
}

static bool end_of_side(pid_t pid, int report_fd, struct report *r)
{
    bool good = vc_read_full(report_fd, r, sizeof(*r)) == 1;
    int status;

    close(report_fd);
    return waitpid(pid, &status, 0) == pid && status == 0 && good;
}

static void prepare(struct setup *s)
{
    if (!s->is_return)
        return;
    s->synth.version = 0;
    for (int i = 0; i < (s->source_only ? 1 : 2); i++) {
        gens_open(&s->hosts[i]);
        gens_write(&s->hosts[i], &s->synth, &base_id, false);
        gens_close(&s->hosts[i]);
    }
    s->synth.version = 1;
}

static void print(const struct micro *m, const struct setup *s, const struct report r[2])
{
    double gb = (double)s->stream_bytes / 1e9;
    double wall = (s->source_only ? r[0].ended : r[1].ended) - r[0].begun;

    micro_text("what", s->source_only ? "source alone" : s->is_return ? "return" : "first visit");
    micro_number("ram_gib", (double)s->synth.pages * SYNTH_PAGE / 0x1p30, "GiB");
    micro_number("stream_gb", gb, "GB");
    micro_number("seconds", wall, "s");
    micro_number("gb_per_s", gb / wall, "GB/s of stream");
    micro_number("source_cpu_s", r[0].cpu_s, "s");
    micro_number("source_gb_per_cpu_s", gb / r[0].cpu_s, "GB/s of a core");
    if (!s->source_only) {
        micro_number("dest_cpu_s", r[1].cpu_s, "s");
        micro_number("dest_gb_per_cpu_s", gb / r[1].cpu_s, "GB/s of a core");
    }
    micro_number("source_peak_rss_mib", (double)r[0].peak_rss_bytes / 0x1p20, "MiB");
    if (!s->source_only)
        micro_number("dest_peak_rss_mib", (double)r[1].peak_rss_bytes / 0x1p20, "MiB");
    micro_number("wire_mb", (double)r[0].wire_bytes / 1e6, "MB");
    micro_number("pages_same", (double)r[0].same, "");
    micro_number("pages_zero", (double)r[0].zero, "");
    micro_number("pages_data", (double)r[0].data, "");
    micro_number("pages_unknown", (double)r[0].unknown, "");
    micro_print(m);
}

/* However long the stream is, queues are bounded; only indexes grow, with the RAM. */
static void check_memory(const struct setup *s, const char *side, const struct report *r)
{
    uint64_t bound = BOUND_BYTES + s->synth.pages * BOUND_BYTES_A_PAGE;

    if (r->peak_rss_bytes > bound)
        micro_fail("the %s took %.1f MiB, and %.1f are allowed: see docs/internals/threads.md",
                   side, (double)r->peak_rss_bytes / 0x1p20, (double)bound / 0x1p20);
}

static void check(const struct setup *s, const struct report r[2])
{
    uint64_t pages = s->synth.pages * s->synth.passes;
    uint64_t seen = r[0].same + r[0].zero + r[0].data;

    /* A page in the middle of which the generator was held up goes on its way unread. */
    if (seen + pages / 100 + 1 < pages)
        micro_fail("only %llu of %llu pages were recognised", (unsigned long long)seen,
                   (unsigned long long)pages);
    if (r[0].repaired || r[0].resent)
        micro_fail("%llu pages had to be repaired", (unsigned long long)r[0].repaired);
    if (s->is_return && s->synth.changed < 1 && !r[0].same)
        micro_fail("nothing was reused");
    if (s->record && !s->source_only &&
        (!r[0].recorded || memcmp(r[0].root, r[1].root, VC_ROOT_BYTES)))
        micro_fail("the two hosts hold different generations now");
    if (s->bounded)
        check_memory(s, "source", &r[0]);
    if (s->bounded && !s->source_only)
        check_memory(s, "destination", &r[1]);
}

int main(int argc, char **argv)
{
    struct micro_option options[] = {
        {"gib", "RAM of the VM", 1},
        {"zero", "% of its pages that are zero", 20},
        {"changed", "% of the others that changed since the last visit", 5},
        {"random", "% of a page that does not compress", 100},
        {"return", "1: both hosts hold the memory before the changes; 0: a first visit", 1},
        {"passes", "how often the stream goes over the RAM", 1},
        {"record", "1: both sides write the new generation", 1},
        {"source-only", "1: batches are acknowledged and dropped", 0},
        {"workers", "threads of the source that compress beside the sender", 0},
        {"pin", "1: the source on core 0, all else of a --source-only run on core 1", 0},
        {"bounded", "1: fail if a side takes more memory than docs/internals/threads.md says", 0},
        {0},
    };
    struct report r[2] = {0};
    struct setup s = {0};
    int link[2], report_fd[2];
    struct micro m;
    uint64_t pages;
    pid_t pid[2];
    bool good;

    /* As cmd/main.c has it. */
    mallopt(M_MMAP_THRESHOLD, 4 << 20);
    mallopt(M_TRIM_THRESHOLD, 8 << 20);
    mallopt(M_ARENA_MAX, 2);
    micro_init(&m, "pipeline", options, argc, argv);
    pages = m.smoke ? 8192 : (uint64_t)(micro_option(&m, "gib") * (1 << 18));
    synth_init(&s.synth, pages, micro_option(&m, "zero") / 100, micro_option(&m, "changed") / 100,
               micro_option(&m, "random") / 100);
    s.is_return = micro_option(&m, "return") != 0;
    s.source_only = micro_option(&m, "source-only") != 0;
    s.record = micro_option(&m, "record") != 0;
    s.pin = s.source_only && micro_option(&m, "pin") != 0;
    s.bounded = micro_option(&m, "bounded") != 0;
    s.workers = (unsigned)micro_option(&m, "workers");
    s.synth.passes = (unsigned)micro_option(&m, "passes");
    for (int i = 0; i < 2; i++)
        gens_make(&s.hosts[i], (uint64_t)((double)(2 * pages * SYNTH_PAGE) * (1.1 - s.synth.zero)));
    prepare(&s);
    s.stream_bytes = synth_stream_bytes(&s.synth);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, link) < 0)
        micro_fail("socketpair: %s", strerror(errno));
    pid[0] = fork_side(&s, run_source, link[0], link[1], &report_fd[0]);
    pid[1] =
        fork_side(&s, s.source_only ? run_acknowledger : run_dest, link[1], link[0], &report_fd[1]);
    close(link[0]);
    close(link[1]);
    good = end_of_side(pid[0], report_fd[0], &r[0]);
    good &= end_of_side(pid[1], report_fd[1], &r[1]);
    for (int i = 0; i < 2; i++)
        gens_remove(&s.hosts[i]);
    if (!good)
        micro_fail("a side failed");
    check(&s, r);
    print(&m, &s, r);
    synth_fini(&s.synth);
    return 0;
}
