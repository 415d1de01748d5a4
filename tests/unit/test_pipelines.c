/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The two pipelines against each other over an in-memory connection: QEMU's part is played by two
 * threads with a synthetic stream. What must hold: the very bytes come out, both hosts hold the
 * same generation afterwards, and damage is repaired or noticed. */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "synthetic.h"

#include "base/clock.h"
#include "base/fdio.h"
#include "dest/dest.h"
#include "link/link.h"
#include "net/net.h"
#include "source/lookup.h"
#include "source/source.h"
#include "store/store.h"

#define PAGES MAX_PAGES
#define SLOW_READ_BPS 25e6
#define TICK_MS 20
/* With a disk that hangs, and with one that may be busy. */
#define PATIENCE_MS 1000
#define LONG_PATIENCE_MS 600000

/* ---- QEMU's two ends ---- */

struct qemu {
    int fd;
    struct buf stream; /* source: what it sends; destination: what came */
    size_t expected;   /* destination */
    pthread_t thread;
};

static void *source_qemu(void *arg)
{
    struct qemu *q = arg;
    uint8_t answer[8];

    assert_int_equal(vc_write_full(q->fd, q->stream.d, q->stream.n), 0);
    /* Like the real one: it waits for the answer before it closes. */
    if (vc_read_full(q->fd, answer, sizeof(answer)) == 1)
        assert_int_equal(answer[1], 1);
    close(q->fd);
    return NULL;
}

static void *dest_qemu(void *arg)
{
    static const uint8_t shut[8] = {0, 1, 0, 4, 0, 0, 0, 0};
    struct qemu *q = arg;
    uint8_t buf[65536];
    ssize_t n;

    while (q->stream.n < q->expected && (n = vc_read_some(q->fd, buf, sizeof(buf))) > 0)
        put_bytes(&q->stream, buf, (size_t)n);
    if (q->stream.n == q->expected) {
        assert_int_equal(vc_write_full(q->fd, shut, sizeof(shut)), 0);
        while (vc_read_some(q->fd, buf, sizeof(buf)) > 0) {
            /* until the other side closes */
        }
    }
    close(q->fd);
    return NULL;
}

/* ---- a disk that hangs ---- */

static struct {
    pthread_mutex_t mu;
    pthread_cond_t changed;
    bool hangs;
} disk = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};

static void set_disk(bool hangs)
{
    pthread_mutex_lock(&disk.mu);
    disk.hangs = hangs;
    pthread_cond_broadcast(&disk.changed);
    pthread_mutex_unlock(&disk.mu);
}

static int write_when_it_can(const struct vc_io *io, int fd, struct iovec *iov, size_t n,
                             uint64_t at)
{
    (void)io;
    pthread_mutex_lock(&disk.mu);
    while (disk.hangs)
        pthread_cond_wait(&disk.changed, &disk.mu);
    pthread_mutex_unlock(&disk.mu);
    return vc_io_kernel.write(&vc_io_kernel, fd, iov, n, at);
}

/* ---- a disk that fills up ---- */

static atomic_uint writes_left;

static int write_until_full(const struct vc_io *io, int fd, struct iovec *iov, size_t n,
                            uint64_t at)
{
    (void)io;
    if (atomic_load(&writes_left) == 0) {
        errno = ENOSPC;
        return -1;
    }
    atomic_fetch_sub(&writes_left, 1);
    return vc_io_kernel.write(&vc_io_kernel, fd, iov, n, at);
}

/* ---- a disk that gives back something else ---- */

static int read_wrongly(const struct vc_io *io, int fd, void *buf, size_t n, uint64_t at)
{
    int rc = vc_io_kernel.read(&vc_io_kernel, fd, buf, n, at);

    (void)io;
    for (size_t i = 1000; i < n; i += PAGE)
        ((uint8_t *)buf)[i] ^= 1;
    return rc;
}

/* ---- a disk that counts ---- */

static atomic_ullong bytes_read;

static int read_and_count(const struct vc_io *io, int fd, void *buf, size_t n, uint64_t at)
{
    (void)io;
    atomic_fetch_add(&bytes_read, n);
    return vc_io_kernel.read(&vc_io_kernel, fd, buf, n, at);
}

/* ---- a disk that is slow to read ---- */

static double slow_read_bps = SLOW_READ_BPS;

static int read_slowly(const struct vc_io *io, int fd, void *buf, size_t n, uint64_t at)
{
    uint64_t ns = (uint64_t)((double)n * 1e9 / slow_read_bps);
    struct timespec t = {(time_t)(ns / VC_NS_PER_S), (long)(ns % VC_NS_PER_S)};

    (void)io;
    clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
    return vc_io_kernel.read(&vc_io_kernel, fd, buf, n, at);
}

/* ---- hosts ---- */

struct host {
    char dir[64];
    struct vc_io io;
    bool hangs;         /* its disk, in the next migration */
    bool keeps_nothing; /* nor is it known to its peer */
    struct vc_store *store;
    struct vc_vm *vm;
    struct vc_gen *gen;
};

static struct vc_lineage lineage = {.algo = VC_DIGEST_GMAC, .key = "a key that no guest knows"};
static const struct vc_id vm_id = {"the VM's UUID..."};

static void open_vm(struct host *h)
{
    struct vc_err err;

    assert_int_equal(vc_vm_open(h->store, &vm_id, VC_VM_CREATE, &h->vm, &err), 0);
    assert_int_equal(vc_vm_set_lineage(h->vm, &lineage, &err), 0);
    h->gen = NULL;
    if (vc_vm_n_generations(h->vm))
        assert_int_equal(vc_gen_open(h->vm, &vc_vm_generation(h->vm, 0)->id, &h->gen, &err), 0);
}

static void close_vm(struct host *h)
{
    vc_gen_close(h->gen);
    vc_vm_close(h->vm);
}

static void host_init(struct host *h)
{
    struct vc_err err;

    snprintf(h->dir, sizeof(h->dir), "/tmp/vc-pipelines-XXXXXX");
    assert_non_null(mkdtemp(h->dir));
    h->hangs = h->keeps_nothing = false;
    h->io = vc_io_kernel;
    h->io.write = write_when_it_can;
    assert_int_equal(vc_store_open_on(&h->io, h->dir, true, 0, &h->store, &err), 0);
}

static void host_fini(struct host *h)
{
    vc_store_close(h->store);
    remove_tree(h->dir);
}

/* ---- a session without its negotiation ---- */

struct outcome {
    struct vc_source_status source;
    struct vc_dest_status dest;
    uint8_t roots[2][VC_ROOT_BYTES];
    uint64_t wire_bytes; /* from the source */
    bool delivered;      /* the bytes that came out are those that went in */
};

static int dest_fd;

static int connect_dest(void *opaque, struct vc_err *err)
{
    (void)opaque;
    (void)err;
    return dest_fd;
}

static void drop_frame(void *opaque, struct vc_link_frame *f)
{
    (void)opaque;
    vc_link_frame_free(f);
}

static void wait_on(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    assert_true(poll(&p, 1, TICK_MS) >= 0);
}

static void greet(struct vc_link *a, struct vc_link *b)
{
    /* Phases only: HELLO has its own tests. */
    vc_link_set_phase(a, VC_WIRE_PHASE_STREAM);
    vc_link_set_phase(b, VC_WIRE_PHASE_STREAM);
}

static bool speaks_recent = true, speaks_shifted = true, speaks_keeps = true; /* both */
static atomic_uint warnings;                                                  /* of both */

static void on_log(void *opaque, enum vc_log_level level, const char *text)
{
    (void)opaque;
    if (level > VC_LOG_WARNING)
        return;
    print_message("%s\n", text);
    atomic_fetch_add(&warnings, 1);
}

static const struct vc_log log_to_count = {.fn = on_log, .max = VC_LOG_DEBUG};
static unsigned migrations; /* every other one with threads that compress */

static struct outcome migrate(struct host *from, struct host *to, const struct memory *m,
                              enum vc_wire_base base)
{
    struct outcome out = {0};
    struct qemu sq = {0}, dq = {0};
    struct vc_conn *ca, *cb;
    struct vc_link *la, *lb;
    struct vc_source *source;
    struct vc_dest *dest;
    struct vc_err err = VC_ERR_INIT;
    struct vc_id session = {"a session"}, gen;
    struct vc_txn_note note = {.peer = "test"};
    struct vc_txn *txn;
    uint32_t patience_ms = from->hangs || to->hangs ? PATIENCE_MS : LONG_PATIENCE_MS;
    int a[2], b[2];

    assert_true(vc_id_random(&gen));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, a), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, b), 0);
    assert_int_equal(vc_conn_pair(&ca, &cb, &err), 0);
    assert_int_equal(vc_link_new(ca, VC_WIRE_SOURCE, 0, &la, &err), 0);
    assert_int_equal(vc_link_new(cb, VC_WIRE_DESTINATION, 0, &lb, &err), 0);
    greet(la, lb);
    open_vm(from);
    open_vm(to);

    put_migration(&sq.stream, m, NULL);
    sq.fd = a[1];
    dq.fd = b[1];
    dq.expected = sq.stream.n;
    dest_fd = b[0];
    pthread_create(&dq.thread, NULL, dest_qemu, &dq);
    pthread_create(&sq.thread, NULL, source_qemu, &sq);

    struct vc_dest_options d = {
        .link = lb,
        .session = session,
        .lineage = lineage,
        .base = base,
        .gen = to->gen,
        .features = VC_WIRE_FEATURE_DELTA | VC_WIRE_FEATURE_MOVED | VC_WIRE_FEATURE_READS |
                    (speaks_shifted ? VC_WIRE_FEATURE_SHIFTED : 0) |
                    (speaks_recent ? VC_WIRE_FEATURE_RECENT : 0) |
                    (speaks_keeps ? VC_WIRE_FEATURE_KEEPS : 0),
        .log = &log_to_count,
        .connect = connect_dest,
        .store_patience_ms = patience_ms,
        .on_frame = drop_frame,
    };
    struct vc_source_options s = {
        .qemu_fd = a[0],
        .link = la,
        .session = session,
        .lineage = lineage,
        .base = base,
        .shared_gen = base == VC_WIRE_BASE_PING_PONG ? from->gen : NULL,
        .local_gen = from->gen,
        .delta = true,
        .moved = true,
        .shifted = speaks_shifted,
        .recent = speaks_recent,
        .reads = true,
        .keeps = speaks_keeps,
        .log = &log_to_count,
        .workers = migrations++ % 2 * 3,
        .needs_return_path = true,
        .store_patience_ms = patience_ms,
        .on_frame = drop_frame,
    };
    if (!from->keeps_nothing)
        assert_int_equal(vc_txn_begin(from->vm, &gen, from->gen, &s.txn, &err), 0);
    if (!to->keeps_nothing)
        assert_int_equal(vc_txn_begin(to->vm, &gen, to->gen, &d.txn, &err), 0);
    set_disk(from->hangs || to->hangs);
    assert_int_equal(vc_dest_start(&d, &dest, &err), 0);
    assert_int_equal(vc_source_start(&s, &source, &err), 0);

    for (;;) {
        vc_source_status(source, &out.source);
        if (out.source.failed || out.source.stream_ended)
            break;
        wait_on(vc_source_event_fd(source));
        vc_source_check_store(source);
        vc_dest_check_store(dest);
        vc_source_clear(source);
    }
    for (;;) {
        vc_dest_status(dest, &out.dest);
        if (out.dest.failed || out.dest.source_eof)
            break;
        wait_on(vc_dest_event_fd(dest));
        vc_dest_check_store(dest);
        vc_dest_clear(dest);
    }
    set_disk(false);
    txn = vc_source_join(source);
    if (txn)
        assert_int_equal(vc_txn_commit(txn, &note, out.roots[0], &err), 0);
    txn = vc_dest_join(dest);
    if (txn)
        assert_int_equal(vc_txn_commit(txn, &note, out.roots[1], &err), 0);
    vc_source_status(source, &out.source);
    vc_dest_status(dest, &out.dest);
    vc_source_free(source);
    vc_dest_free(dest);
    pthread_join(sq.thread, NULL);
    pthread_join(dq.thread, NULL);
    out.wire_bytes = vc_link_bytes_sent(la);
    out.delivered = dq.stream.n == sq.stream.n && !memcmp(dq.stream.d, sq.stream.d, sq.stream.n);
    vc_link_free(la);
    vc_link_free(lb);
    close_vm(from);
    close_vm(to);
    buf_free(&sq.stream);
    buf_free(&dq.stream);
    return out;
}

static void assert_good_outcome(const struct outcome *o)
{
    assert_true(o->delivered);
    assert_memory_equal(o->roots[0], o->roots[1], VC_ROOT_BYTES);
    assert_true(o->source.shut && o->source.shut_status == 0);
}

static void verify_host(struct host *h, uint64_t bad)
{
    struct vc_verify_result r;
    struct vc_err err;

    open_vm(h);
    assert_non_null(h->gen);
    assert_int_equal(vc_gen_verify(h->gen, &lineage, NULL, NULL, &r, &err), 0);
    assert_int_equal(r.bad_pages, bad);
    close_vm(h);
}

/* ---- promises ---- */

/* Two hosts, and a VM that has gone from the first to the second. */
static struct outcome first_visit(struct host *a, struct host *b, const struct memory *m)
{
    struct outcome o;

    host_init(a);
    host_init(b);
    o = migrate(a, b, m, VC_WIRE_BASE_NONE);
    assert_good_outcome(&o);
    return o;
}

/* There and back: an even round goes home. */
static struct outcome return_visit(struct host *a, struct host *b, const struct memory *m,
                                   int round)
{
    struct outcome o = round % 2 ? migrate(a, b, m, VC_WIRE_BASE_PING_PONG)
                                 : migrate(b, a, m, VC_WIRE_BASE_PING_PONG);

    assert_good_outcome(&o);
    return o;
}

/* What both hold is right, and they are done with. */
static void end_well(struct host *a, struct host *b)
{
    verify_host(a, 0);
    verify_host(b, 0);
    host_fini(a);
    host_fini(b);
}

static void both_hosts_hold_the_same_after_a_first_visit(void **state)
{
    struct memory m;
    struct host a, b;
    struct outcome o;

    (void)state;
    some_memory(&m, PAGES);
    o = first_visit(&a, &b, &m);
    assert_int_equal(o.source.pages_same, 0);
    assert_true(o.source.pages_data > PAGES / 2);
    end_well(&a, &b);
}

static void a_return_sends_only_what_changed(void **state)
{
    struct memory m;
    struct host a, b;
    struct outcome o;

    (void)state;
    some_memory(&m, PAGES);
    o = first_visit(&a, &b, &m);
    for (int round = 0; round < 12; round++) { /* more than a generation has layers */
        for (unsigned i = 0; i < PAGES; i += 64)
            m.version[i] = 10 + (uint32_t)round;
        o = return_visit(&a, &b, &m, round);
        assert_true(o.source.pages_data >= PAGES / 64);
        assert_true(o.source.pages_data < PAGES / 16);
    }
    end_well(&a, &b);
}

static void a_third_host_is_told_by_announcement(void **state)
{
    struct memory m;
    struct host a, b, c;
    struct outcome o;

    (void)state;
    host_init(&c);
    some_memory(&m, PAGES);
    o = first_visit(&a, &b, &m);
    o = migrate(&b, &c, &m, VC_WIRE_BASE_NONE);
    assert_good_outcome(&o);
    for (unsigned shift = 0; shift <= 500; shift += 500) {
        m.version[7]++;
        m.shift = shift;
        o = migrate(&c, &a, &m, VC_WIRE_BASE_ANNOUNCE);
        assert_good_outcome(&o);
        /* How many are reused depends on when the announcement came; none may be wrong. */
        assert_int_equal(o.source.repaired_pages, 0);
        verify_host(&a, 0);
    }
    host_fini(&a);
    host_fini(&b);
    host_fini(&c);
}

/* Flips a byte in each of the first pages that the host's files hold. */
static unsigned damage(const char *path)
{
    DIR *d = opendir(path);
    struct dirent *e;
    unsigned n = 0;

    while (d && (e = readdir(d))) {
        char name[600];
        struct stat st;
        const char *dot = strrchr(e->d_name, '.');

        snprintf(name, sizeof(name), "%s/%s", path, e->d_name);
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || lstat(name, &st) < 0)
            continue;
        if (S_ISDIR(st.st_mode)) {
            n += damage(name);
        } else if (dot && (!strcmp(dot, ".image") || !strcmp(dot, ".delta"))) {
            int fd = open(name, O_RDWR);

            for (unsigned i = 1; i < 40; i++) {
                uint8_t byte;

                if (i % 5 == 0 || pread(fd, &byte, 1, (off_t)i * PAGE + 5) != 1)
                    continue;
                byte ^= 0x40;
                assert_int_equal(pwrite(fd, &byte, 1, (off_t)i * PAGE + 5), 1);
                n++;
            }
            close(fd);
        }
    }
    if (d)
        closedir(d);
    return n;
}

static void damaged_pages_are_repaired_from_the_window(void **state)
{
    struct memory m;
    struct host a, b;
    struct outcome o;
    unsigned n;

    (void)state;
    some_memory(&m, PAGES);
    o = first_visit(&a, &b, &m);
    n = damage(a.dir);
    assert_true(n > 10);
    verify_host(&a, n);
    o = return_visit(&a, &b, &m, 0);
    assert_true(o.dest.repaired_pages >= n);
    assert_int_equal(o.dest.repaired_pages, o.source.repaired_pages);
    verify_host(&a, 0);
    host_fini(&a);
    host_fini(&b);
}

/* What arrives is not taken to be in a file that nobody has looked into. */
static void pages_that_were_sent_take_the_place_of_damaged_ones(void **state)
{
    struct memory m;
    struct host a, b;
    struct outcome o;

    (void)state;
    some_memory(&m, PAGES);
    o = first_visit(&a, &b, &m);
    assert_true(damage(a.dir) > 10);
    o = migrate(&b, &a, &m, VC_WIRE_BASE_NONE);
    assert_good_outcome(&o);
    assert_int_equal(o.source.pages_same, 0);
    verify_host(&a, 0);
    host_fini(&a);
    host_fini(&b);
}

/* Some pages change by a few bytes each. Some of these are the first ones, which damage() damages;
 * returns how many. */
static unsigned touch(struct memory *m)
{
    unsigned n = 0;

    for (unsigned i = 0; i < PAGES; i += i < 40 ? 1 : 8) {
        m->version[i] = m->version[i] ? m->version[i] ^ TOUCHED : 1;
        n++;
    }
    return n;
}

/* It cannot be compressed. */
static void hard_memory(struct memory *m)
{
    some_memory(m, PAGES);
    for (unsigned i = 0; i < PAGES; i++)
        m->version[i] = 1;
}

static void a_changed_page_costs_what_has_changed_in_it(void **state)
{
    struct memory m;
    struct host a, b;
    struct outcome o;
    unsigned n;

    (void)state;
    hard_memory(&m);
    o = first_visit(&a, &b, &m);
    assert_true(o.wire_bytes > (uint64_t)PAGES * PAGE);
    for (int round = 0; round < 4; round++) {
        n = touch(&m);
        o = return_visit(&a, &b, &m, round);
        assert_true(o.source.pages_data >= n);
        assert_true(o.wire_bytes < (uint64_t)n * PAGE / 20);
        assert_int_equal(o.dest.resent_batches, 0);
    }
    end_well(&a, &b);
}

static void pages_that_are_unlike_do_not_hide_the_others(void **state)
{
    const uint64_t ram = (uint64_t)PAGES * PAGE;
    struct memory m;
    struct host a, b;
    struct outcome o;

    (void)state;
    hard_memory(&m);
    o = first_visit(&a, &b, &m);
    for (unsigned i = 0; i < PAGES; i++)
        m.version[i] = rng() % 4 ? 1 | TOUCHED : 5;
    o = return_visit(&a, &b, &m, 0);
    print_message("a quarter unlike: %llu of %llu bytes\n", (unsigned long long)o.wire_bytes,
                  (unsigned long long)ram);
    assert_true(o.wire_bytes < ram / 2);
    end_well(&a, &b);
}

/* The sample is of pages that were something before, few as they are. */
static void pages_that_were_zero_do_not_hide_the_others(void **state)
{
    const uint64_t ram = (uint64_t)PAGES * PAGE;
    struct memory m;
    struct host a, b;
    struct outcome o;

    (void)state;
    hard_memory(&m);
    for (unsigned i = 0; i < PAGES; i++)
        m.version[i] = i % 4 == 0;
    o = first_visit(&a, &b, &m);
    for (unsigned i = 0; i < PAGES; i++)
        m.version[i] = i % 4 == 0 ? 1 | TOUCHED : 5;
    o = return_visit(&a, &b, &m, 0);
    assert_true(o.source.pages_data >= PAGES);
    assert_true(o.wire_bytes < ram - ram / 8);
    end_well(&a, &b);
}

/* A few pages of a batch say that its deltas would be no smaller. */
static void what_pages_were_is_not_read_in_vain(void **state)
{
    const uint64_t ram = (uint64_t)PAGES * PAGE;
    struct memory m;
    struct host a, b;
    struct outcome o;

    (void)state;
    hard_memory(&m);
    o = first_visit(&a, &b, &m);
    b.io.read = read_and_count;
    atomic_store(&bytes_read, 0);
    touch(&m);
    o = return_visit(&a, &b, &m, 0);
    assert_true(o.source.pages_data > PAGES / 10);
    assert_true(atomic_load(&bytes_read) > o.source.pages_data * PAGE / 2);

    b.io.read = vc_io_kernel.read;
    a.io.read = read_and_count;
    atomic_store(&bytes_read, 0);
    for (unsigned i = 0; i < PAGES; i++)
        m.version[i] = 5;
    o = return_visit(&a, &b, &m, 1);
    assert_true(o.source.pages_data >= PAGES);
    assert_true(atomic_load(&bytes_read) > 0);
    print_message("read: %llu of %llu bytes\n", (unsigned long long)atomic_load(&bytes_read),
                  (unsigned long long)ram);
    assert_true(atomic_load(&bytes_read) < ram / 2); /* less, if batches are large */
    a.io.read = vc_io_kernel.read;
    end_well(&a, &b);
}

/* At the source a page that is damaged is no prefix; at the destination the seal notices. */
static void change_over_damage(const struct memory *before, void (*change)(struct memory *m))
{
    enum { SOURCE, DEST };

    for (int side = SOURCE; side <= DEST; side++) {
        struct memory m = *before;
        struct host a, b;
        struct outcome o = first_visit(&a, &b, &m);

        change(&m);
        assert_true(damage(side == DEST ? a.dir : b.dir) > 10);
        o = return_visit(&a, &b, &m, 0);
        assert_int_equal(o.dest.resent_batches > 0, side == DEST);
        assert_int_equal(o.dest.resent_batches, o.source.resent_batches);
        end_well(&a, &b);
    }
}

static void touch_some(struct memory *m)
{
    touch(m);
}

static void damage_under_a_delta_costs_a_batch_at_most(void **state)
{
    struct memory m;

    (void)state;
    some_memory(&m, PAGES);
    change_over_damage(&m, touch_some);
}

/* The source believes in a generation that the destination's differs from, digests and all: only
 * the seal can notice. @shift: of the contents of pages, meanwhile. */
static struct outcome return_under_a_wrong_belief(unsigned shift)
{
    struct memory m, other;
    struct host a, b, c;
    struct outcome o;

    host_init(&c);
    some_memory(&m, PAGES);
    other = m;
    for (unsigned i = 1; i < PAGES; i += 100)
        other.version[i] = 999;
    o = first_visit(&a, &b, &m);
    o = migrate(&c, &a, &other, VC_WIRE_BASE_NONE); /* a holds something else now */
    assert_good_outcome(&o);
    m.shift = shift;
    o = migrate(&b, &a, &m, VC_WIRE_BASE_PING_PONG);
    assert_true(o.delivered);
    assert_true(o.dest.resent_batches > 0);
    assert_memory_equal(o.roots[0], o.roots[1], VC_ROOT_BYTES);
    verify_host(&a, 0);
    host_fini(&a);
    host_fini(&b);
    host_fini(&c);
    return o;
}

static void a_wrong_belief_fails_the_seal_and_is_sent_again(void **state)
{
    (void)state;
    return_under_a_wrong_belief(0);
}

/* Questions until all pages are counted, and placed; some more are in the same group. */
#define MISSES (2 * PAGES / VC_LOOKUP_STEP + 64u)

static void contents_are_found_at_other_addresses(void **state)
{
    struct memory m;
    struct host a, b;
    struct outcome o;

    (void)state;
    some_memory(&m, PAGES);
    o = first_visit(&a, &b, &m);
    for (int round = 0; round < 4; round++) {
        m.shift += 700;
        o = return_visit(&a, &b, &m, round);
        assert_true(o.source.pages_data <= MISSES);
        assert_true(o.source.pages_moved > PAGES / 2);
        assert_int_equal(o.source.pages_moved, o.dest.pages_moved);
        assert_true(o.wire_bytes < MISSES * PAGE + PAGES);
        assert_int_equal(o.dest.repaired_pages + o.dest.resent_batches, 0);
    }
    end_well(&a, &b);
}

static void pages_that_have_moved_are_verified_and_repaired(void **state)
{
    struct memory m;
    struct host a, b;
    struct outcome o;

    (void)state;
    some_memory(&m, PAGES);
    o = first_visit(&a, &b, &m);
    assert_true(damage(a.dir) > 10);
    m.shift = PAGES / 2; /* what is damaged comes late, when it is looked for */
    o = return_visit(&a, &b, &m, 0);
    assert_true(o.source.pages_moved > PAGES / 2);
    assert_true(o.dest.repaired_pages > 10);
    assert_int_equal(o.dest.repaired_pages, o.source.repaired_pages);
    end_well(&a, &b);
}

/* The first half of memory has what the second one will have. */
static void half_a_memory(struct memory *m)
{
    hard_memory(m);
    for (unsigned i = PAGES / 2; i < PAGES; i++)
        m->version[i] = 0;
}

/* It moves, and three pages of four change by a few bytes; what was there is zeroes. */
static uint64_t move_and_touch(struct memory *m)
{
    uint64_t bytes = 0;

    m->shift = PAGES / 2;
    for (unsigned i = 0; i < PAGES / 2; i++)
        if (i % 4) {
            m->version[i] ^= TOUCHED;
            bytes += PAGE;
        }
    return bytes;
}

static void what_has_moved_and_changed_costs_what_has_changed(void **state)
{
    (void)state;
    for (int speaks = 1; speaks >= 0; speaks--) {
        struct memory m;
        struct host a, b;
        struct outcome o;
        uint64_t bytes;

        speaks_shifted = speaks; /* or is an older version */
        half_a_memory(&m);
        o = first_visit(&a, &b, &m);
        bytes = move_and_touch(&m);
        o = return_visit(&a, &b, &m, 0);
        print_message("%llu of %llu bytes\n", (unsigned long long)o.wire_bytes,
                      (unsigned long long)bytes);
        assert_int_equal(o.dest.resent_batches, 0);
        if (speaks)
            assert_true(o.wire_bytes < bytes / 10 + MISSES * PAGE);
        else
            assert_true(o.wire_bytes > bytes);
        end_well(&a, &b);
    }
    speaks_shifted = true;
}

static void move_and_touch_late(struct memory *m)
{
    move_and_touch(m);
    for (unsigned i = 0; i < MISSES; i++) /* so that what is damaged is looked for */
        m->version[PAGES / 2 + i] = 5;
}

static void damage_to_what_has_moved_and_changed_is_noticed(void **state)
{
    struct memory m;

    (void)state;
    half_a_memory(&m);
    change_over_damage(&m, move_and_touch_late);
}

/* It refers to what is not there. */
static void a_wrong_belief_of_what_has_moved_fails_the_seal(void **state)
{
    struct outcome o = return_under_a_wrong_belief(300);

    (void)state;
    assert_true(o.source.pages_moved > PAGES / 2);
}

/* More than all the buffers hold goes through while not one write ends. (Both stores lie on it.) */
static void a_disk_that_hangs_costs_the_checkpoint_and_not_the_migration(void **state)
{
    struct memory m;
    struct host a, b;
    struct outcome o;

    (void)state;
    host_init(&a);
    host_init(&b);
    some_memory(&m, PAGES);
    m.passes = 8;
    b.hangs = true;
    o = migrate(&a, &b, &m, VC_WIRE_BASE_NONE);
    assert_true(o.delivered);
    assert_true(o.source.shut && o.source.shut_status == 0);
    assert_false(o.source.recording || o.dest.recording);
    open_vm(&a);
    open_vm(&b);
    assert_int_equal(vc_vm_n_generations(a.vm) + vc_vm_n_generations(b.vm), 0);
    close_vm(&a);
    close_vm(&b);
    /* And the next one finds a store that is in order. */
    b.hangs = false;
    m.passes = 1;
    o = migrate(&a, &b, &m, VC_WIRE_BASE_NONE);
    assert_good_outcome(&o);
    end_well(&a, &b);
}

/* Nothing to compress, but what is sent again has changed by a few bytes. */
static void busy_memory(struct memory *m)
{
    hard_memory(m);
    m->passes = 8; /* one, and what is under way before the destination has shown that it records */
    m->busy = true;
}

static void a_page_sent_again_costs_what_has_changed_since(void **state)
{
    const uint64_t ram = (uint64_t)PAGES * PAGE;
    struct memory m;
    struct host a, b;
    struct outcome o;

    (void)state;
    busy_memory(&m);
    o = first_visit(&a, &b, &m);
    print_message("first visit: %llu bytes\n", (unsigned long long)o.wire_bytes);
    assert_true(o.wire_bytes < 5 * ram);
    assert_int_equal(o.dest.resent_batches, 0);
    for (unsigned i = 0; i < PAGES; i++)
        m.version[i] = 5; /* what they were before is no help */
    o = return_visit(&a, &b, &m, 0);
    print_message("return: %llu bytes\n", (unsigned long long)o.wire_bytes);
    assert_true(o.wire_bytes < 5 * ram);
    assert_int_equal(o.dest.resent_batches, 0);
    end_well(&a, &b);

    speaks_recent = false; /* an older version */
    for (unsigned i = 0; i < PAGES; i++)
        m.version[i] = 1;
    o = first_visit(&a, &b, &m);
    print_message("without: %llu bytes\n", (unsigned long long)o.wire_bytes);
    assert_true(o.wire_bytes > 8 * ram);
    speaks_recent = true;
    end_well(&a, &b);
}

/* Both read the same past of every page, whatever it went through: no seal fails. */
static void both_hosts_agree_on_what_a_page_was(void **state)
{
    struct memory m;
    struct host a, b;
    struct outcome o;

    (void)state;
    some_memory(&m, PAGES);
    m.busy = true;
    m.passes = 2;
    m.writes = 6 * PAGES;
    o = first_visit(&a, &b, &m);
    assert_int_equal(o.dest.resent_batches, 0);
    for (int round = 0; round < 4; round++) {
        touch(&m);
        m.passes = 1 + round % 3;
        o = return_visit(&a, &b, &m, round);
        assert_int_equal(o.dest.resent_batches, 0);
    }
    end_well(&a, &b);
}

/* The source is told; where the destination is an older one, by a batch that it has to send again,
 * and nobody is warned of anything. */
static void a_host_that_keeps_nothing_has_no_recent_pages(void **state)
{
    enum { SOURCE, DEST, OLD_DEST, SIDES };

    (void)state;
    for (int side = SOURCE; side < SIDES; side++) {
        struct memory m;
        struct host a, b;
        struct outcome o;

        host_init(&a);
        host_init(&b);
        busy_memory(&m);
        a.keeps_nothing = side == SOURCE;
        b.keeps_nothing = side != SOURCE;
        speaks_keeps = side != OLD_DEST;
        atomic_store(&warnings, 0);
        o = migrate(&a, &b, &m, VC_WIRE_BASE_NONE);
        speaks_keeps = true;
        assert_int_equal(atomic_load(&warnings), 0);
        assert_true(o.delivered);
        assert_true(o.source.shut && o.source.shut_status == 0);
        assert_int_equal(o.dest.resent_batches, o.source.resent_batches);
        assert_int_equal(o.dest.resent_batches, side == OLD_DEST);
        verify_host(side == SOURCE ? &b : &a, 0);
        host_fini(&a);
        host_fini(&b);
    }
}

/* Neither host looks at the digests of such pages: the seal tells. */
static void a_wrong_past_costs_a_batch(void **state)
{
    enum { SOURCE, DEST };

    (void)state;
    for (int side = SOURCE; side <= DEST; side++) {
        struct memory m;
        struct host a, b;
        struct outcome o;

        host_init(&a);
        host_init(&b);
        busy_memory(&m);
        (side == SOURCE ? &a : &b)->io.read = read_wrongly;
        o = migrate(&a, &b, &m, VC_WIRE_BASE_NONE);
        assert_good_outcome(&o);
        /* At the source it is only a byte more that has changed. */
        assert_int_equal(o.dest.resent_batches > 0, side == DEST);
        assert_true(o.dest.resent_batches <= 1);
        assert_int_equal(o.dest.resent_batches, o.source.resent_batches);
        a.io.read = b.io.read = vc_io_kernel.read;
        end_well(&a, &b);
    }
}

static void a_recorder_that_gives_up_takes_the_recent_pages_along(void **state)
{
    enum { SOURCE, DEST };

    (void)state;
    for (int side = SOURCE; side <= DEST; side++) {
        struct memory m;
        struct host a, b;
        struct outcome o;

        host_init(&a);
        host_init(&b);
        busy_memory(&m);
        (side == SOURCE ? &a : &b)->io.write = write_until_full;
        atomic_store(&writes_left, 10 + (unsigned)(rng() % 40));
        atomic_store(&warnings, 0);
        o = migrate(&a, &b, &m, VC_WIRE_BASE_NONE);
        assert_int_equal(atomic_load(&warnings), 1); /* of the store, and of no seal */
        assert_true(o.delivered);
        assert_true(o.source.shut && o.source.shut_status == 0);
        assert_int_equal(o.source.recording, side == DEST);
        assert_int_equal(o.dest.recording, side == SOURCE);
        if (side == SOURCE)
            assert_int_equal(o.dest.resent_batches, 0);
        verify_host(side == SOURCE ? &b : &a, 0);
        host_fini(&a);
        host_fini(&b);
    }
}

/* The link is as fast as memory here: it carries part of what is on the slow disk. */
static void a_slow_disk_gets_help_from_the_link(void **state)
{
    struct memory m;
    struct host a, b;
    struct outcome o;
    uint64_t unread, begun = vc_now_ns();

    (void)state;
    some_memory(&m, PAGES);
    o = first_visit(&a, &b, &m);
    /* Slower than everything else is, however busy the machine. */
    slow_read_bps = VC_MIN(SLOW_READ_BPS, PAGES * PAGE * 2.5e8 / (double)(vc_now_ns() - begun));
    m.passes = 12;
    a.io.read = read_slowly;
    a.io.is_cached = NULL;
    o = return_visit(&a, &b, &m, 0);
    assert_true(o.source.pages_data > PAGES / 2);
    assert_true(o.source.pages_same > PAGES);
    unread = o.source.pages_unknown; /* QEMU's thread was held up in the middle of them */
    /* What was sent so is new to neither host. */
    a.io.read = vc_io_kernel.read;
    verify_host(&a, 0);
    m.passes = 1;
    o = return_visit(&a, &b, &m, 1);
    assert_true(o.source.pages_data <= unread);
    host_fini(&a);
    host_fini(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_hosts_hold_the_same_after_a_first_visit),
        cmocka_unit_test(a_return_sends_only_what_changed),
        cmocka_unit_test(a_third_host_is_told_by_announcement),
        cmocka_unit_test(damaged_pages_are_repaired_from_the_window),
        cmocka_unit_test(pages_that_were_sent_take_the_place_of_damaged_ones),
        cmocka_unit_test(a_changed_page_costs_what_has_changed_in_it),
        cmocka_unit_test(pages_that_are_unlike_do_not_hide_the_others),
        cmocka_unit_test(pages_that_were_zero_do_not_hide_the_others),
        cmocka_unit_test(what_pages_were_is_not_read_in_vain),
        cmocka_unit_test(damage_under_a_delta_costs_a_batch_at_most),
        cmocka_unit_test(a_page_sent_again_costs_what_has_changed_since),
        cmocka_unit_test(both_hosts_agree_on_what_a_page_was),
        cmocka_unit_test(a_host_that_keeps_nothing_has_no_recent_pages),
        cmocka_unit_test(a_wrong_past_costs_a_batch),
        cmocka_unit_test(a_recorder_that_gives_up_takes_the_recent_pages_along),
        cmocka_unit_test(a_wrong_belief_fails_the_seal_and_is_sent_again),
        cmocka_unit_test(contents_are_found_at_other_addresses),
        cmocka_unit_test(pages_that_have_moved_are_verified_and_repaired),
        cmocka_unit_test(what_has_moved_and_changed_costs_what_has_changed),
        cmocka_unit_test(damage_to_what_has_moved_and_changed_is_noticed),
        cmocka_unit_test(a_wrong_belief_of_what_has_moved_fails_the_seal),
        cmocka_unit_test(a_slow_disk_gets_help_from_the_link),
        cmocka_unit_test(a_disk_that_hangs_costs_the_checkpoint_and_not_the_migration),
    };

    rng_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
