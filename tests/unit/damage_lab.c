/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "damage.h"

#include "base/fdio.h"
#include "net/net.h"

#define PAGES 64u
#define ROUNDS 24u
/* A session hangs if so many looks in turn have seen nothing come through it, and nothing reach its
 * QEMU: it waits for something that will not come. A machine that is busy, or stands still for a
 * while, makes fewer looks. */
#define STALL_LOOKS 1200u
#define LOOK_MS 100
/* With so short a limit for the pause a proxy has no reason to slow its intake down near the end of
 * the first pass, which would be most of the time that a visit takes. */
#define UNPACED_MS 1

const struct vc_id lab_vm_id = {"the VM's UUID..."};

/* ---- chance ---- */

static uint64_t lab_rng_state;

void lab_rng_seed(uint64_t seed)
{
    lab_rng_state = seed;
}

uint64_t lab_rng(void)
{
    uint64_t z = lab_rng_state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* ---- files ---- */

static void drop_files(const struct lab_host *h)
{
    remove_tree(h->vm_dir);
    assert_int_equal(mkdir(h->vm_dir, 0700), 0);
}

static void keep_files(const struct lab_host *h, struct pristine *p)
{
    DIR *d = opendir(h->vm_dir);
    struct dirent *e;

    assert_non_null(d);
    p->n = 0;
    while ((e = readdir(d))) {
        struct file *f = &p->files[p->n];
        struct stat st;
        int fd;

        if (e->d_name[0] == '.')
            continue;
        assert_true(p->n < VC_ARRAY_LEN(p->files));
        snprintf(f->name, sizeof(f->name), "%.60s", e->d_name);
        fd = openat(dirfd(d), e->d_name, O_RDONLY);
        assert_true(fd >= 0 && fstat(fd, &st) == 0);
        f->n = (size_t)st.st_size;
        f->data = malloc(f->n + 1);
        assert_non_null(f->data);
        assert_true(f->n == 0 || vc_read_full(fd, f->data, f->n) == 1);
        close(fd);
        p->n++;
    }
    closedir(d);
}

/* Images have holes, which need not be written thousands of times. */
static void write_sparsely(int fd, const struct file *f)
{
    static const uint8_t zeroes[PAGE];

    for (size_t at = 0; at < f->n; at += PAGE) {
        size_t n = VC_MIN(f->n - at, sizeof(zeroes));

        if (memcmp(f->data + at, zeroes, n) != 0)
            assert_int_equal(pwrite(fd, f->data + at, n, (off_t)at), n);
    }
    assert_int_equal(ftruncate(fd, (off_t)f->n), 0);
}

void lab_restore(struct lab *lab, const struct pristine p[2])
{
    for (int i = 0; i < 2; i++) {
        int dir;

        drop_files(&lab->host[i]);
        dir = open(lab->host[i].vm_dir, O_RDONLY | O_DIRECTORY);
        assert_true(dir >= 0);
        for (unsigned k = 0; k < p[i].n; k++) {
            const struct file *f = &p[i].files[k];
            int fd = openat(dir, f->name, O_WRONLY | O_CREAT | O_TRUNC, 0600);

            assert_true(fd >= 0);
            write_sparsely(fd, f);
            close(fd);
        }
        close(dir);
    }
}

static void free_pristine(struct pristine *p)
{
    for (unsigned i = 0; i < p->n; i++)
        free(p->files[i].data);
    p->n = 0;
}

/* ---- QEMU's two ends ---- */

#define SIDE_BYTES 70000u

/* What QEMU sends on its second connection. */
static uint8_t side_byte(size_t at)
{
    return (uint8_t)(at * 31 + at / 251);
}

struct source_qemu {
    int fd;
    const struct buf *stream;
    struct filter *filter;
    const char *second; /* where it makes its second connection; NULL: nowhere */
};

/* The second connection: all that goes over it, and its end; then until it has arrived. */
static void use_second(struct source_qemu *q)
{
    int fd = vc_unix_connect(q->second);
    uint8_t bytes[SIDE_BYTES];

    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = side_byte(i);
    if (fd >= 0 && vc_write_full(fd, bytes, sizeof(bytes)) == 0) {
        shutdown(fd, SHUT_WR);
        filter_await_side(q->filter);
    }
    if (fd >= 0)
        close(fd);
}

static void *source_qemu_main(void *arg)
{
    struct source_qemu *q = arg;
    uint8_t answer[8];
    /* Without anything to reuse before the RAM is known: everything up to the first page. */
    size_t head = VC_MIN(q->stream->n, (size_t)100);
    size_t end = q->filter && q->filter->pause_at ? q->filter->pause_at : q->stream->n;

    if (vc_write_full(q->fd, q->stream->d, head) == 0) {
        if (q->filter)
            filter_await_gate(q->filter);
        if (q->second)
            use_second(q);
        if (vc_write_full(q->fd, q->stream->d + head, end - head) == 0) {
            if (end < q->stream->n)
                filter_await_end(q->filter);
            else if (vc_read_full(q->fd, answer, sizeof(answer)) < 0)
                end = 0; /* the session is over */
        }
    }
    close(q->fd);
    return NULL;
}

struct dest_qemu {
    int listener, stop;
    const struct buf *stream;
    struct filter *filter;
    bool second;    /* it has a second connection */
    size_t ends_at; /* it goes away when it has so much; 0: never */
    size_t got, side_got;
    bool wrong, side_wrong;
};

static void take_stream(struct dest_qemu *q, int fd)
{
    static const uint8_t shut[8] = {0, 1, 0, 4, 0, 0, 0, 0};
    uint8_t buf[65536];
    ssize_t n;

    while ((n = vc_read_some(fd, buf, sizeof(buf))) > 0) {
        size_t k = (size_t)n;

        if (k > q->stream->n - q->got || memcmp(q->stream->d + q->got, buf, k) != 0)
            q->wrong = true;
        if (q->wrong)
            break;
        q->got += k;
        if (q->filter)
            atomic_store(&q->filter->got, q->got);
        if (q->ends_at && q->got >= q->ends_at)
            break;
        if (q->got == q->stream->n) {
            if (vc_write_full(fd, shut, sizeof(shut)) == 0)
                shutdown(fd, SHUT_WR); /* as QEMU does: all that it had to say */
            break;
        }
    }
    close(fd);
}

/* The next connection; -1: the sessions are over. */
static int await_connection(struct dest_qemu *q)
{
    struct pollfd p[2] = {{.fd = q->listener, .events = POLLIN}, {.fd = q->stop, .events = POLLIN}};

    while (poll(p, 2, -1) < 0 && errno == EINTR) {
        /* again */
    }
    return accept4(q->listener, NULL, NULL, SOCK_CLOEXEC); /* non-blocking */
}

static void *take_second(void *arg)
{
    struct dest_qemu *q = arg;
    int fd = await_connection(q);
    uint8_t buf[16384];
    ssize_t n;

    if (fd < 0)
        return NULL;
    while (!q->side_wrong && (n = vc_read_some(fd, buf, sizeof(buf))) > 0) {
        for (ssize_t i = 0; i < n; i++, q->side_got++)
            q->side_wrong |= q->side_got >= SIDE_BYTES || buf[i] != side_byte(q->side_got);
        if (q->side_got == SIDE_BYTES)
            filter_side_came(q->filter);
    }
    close(fd);
    return NULL;
}

static void *dest_qemu_main(void *arg)
{
    struct dest_qemu *q = arg;
    pthread_t second;
    int fd = await_connection(q);

    if (fd < 0)
        return NULL;
    if (q->second)
        assert_int_equal(pthread_create(&second, NULL, take_second, q), 0);
    take_stream(q, fd);
    if (q->second)
        pthread_join(second, NULL);
    return NULL;
}

/* A session may connect more often than its QEMU expects; the next visit must not meet that. */
static void turn_away_the_rest(int listener)
{
    int fd;

    while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0)
        close(fd);
}

/* ---- sessions ---- */

struct call {
    struct lab *lab;
    struct visit *v;
    struct vc_conn *conn;
    int stream_fd, listen_fd;
    struct vc_cancel cancel;
};

static void *source_main(void *arg)
{
    struct call *c = arg;
    struct vc_source_session o = {
        .store = c->lab->host[c->v->from].store,
        .log = c->lab->log,
        .cancel = &c->cancel,
        .to = "the other host",
        .conn = c->conn,
        .dead_peer_ms = c->v->dead_peer_ms,
        .downtime_limit_ms = UNPACED_MS,
        .name = "",
        .qmp_fd = -1,
        .vm = lab_vm_id,
        .stream_fd = c->stream_fd,
        .listen_fd = c->listen_fd,
    };

    c->v->source.rc = vc_session_source(&o, &c->v->source.result, &c->v->source.err);
    if (c->v->filter)
        filter_end(c->v->filter);
    return NULL;
}

static void *dest_main(void *arg)
{
    struct call *c = arg;
    struct vc_dest_session o = {
        .log = c->lab->log,
        .store = c->v->slow_disk ? c->lab->slow : c->lab->host[!c->v->from].store,
        .cancel = &c->cancel,
        .conn = c->conn,
        .dead_peer_ms = c->v->dead_peer_ms,
        .socket_dir = c->lab->dir,
    };

    c->v->dest.rc = vc_session_dest(&o, &c->v->dest.result, &c->v->dest.err);
    if (c->v->filter)
        filter_end(c->v->filter);
    return NULL;
}

static bool joins_soon(pthread_t thread)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_nsec += LOOK_MS * 1000000L;
    if (t.tv_nsec >= 1000000000L) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000L;
    }
    return pthread_timedjoin_np(thread, NULL, &t) == 0;
}

static void join_or_cancel(pthread_t thread, const struct filter *f, struct call calls[2],
                           bool *stalled)
{
    uint64_t before = 0;

    for (unsigned idle = 0; idle < STALL_LOOKS; idle++) {
        uint64_t now = atomic_load(&f->passed) + atomic_load(&f->got);

        if (joins_soon(thread))
            return;
        if (now != before)
            idle = 0;
        before = now;
    }
    *stalled = true;
    vc_cancel_now(&calls[0].cancel);
    vc_cancel_now(&calls[1].cancel);
    pthread_join(thread, NULL);
}

void lab_visit(struct lab *lab, struct visit *v)
{
    struct call calls[2] = {{.lab = lab, .v = v}, {.lab = lab, .v = v}};
    const struct buf *stream = v->stream ? v->stream : &lab->stream;
    struct source_qemu sq = {.stream = stream, .filter = v->filter};
    struct dest_qemu dq = {
        .stream = stream,
        .listener = lab->listener,
        .filter = v->filter,
        .second = v->second,
        .ends_at = v->dest_ends_at,
    };
    char path[96];
    pthread_t threads[4];
    struct filter plain = {0};
    struct filter *f = v->filter ? v->filter : &plain;
    struct vc_err err;
    uint64_t one = 1;
    int fds[2], ends[2];

    v->source = v->dest = (struct visit_side){0};
    v->stalled = false;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    filter_start(f, &ends[0], &ends[1]);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(vc_conn_from_fds(ends[i], ends[i], VC_CONN_LOCAL, i ? "source" : "dest",
                                          &calls[i].conn, &err),
                         0);
        assert_int_equal(vc_cancel_init(&calls[i].cancel, &err), 0);
    }
    calls[0].stream_fd = fds[0];
    sq.fd = fds[1];
    if (v->second) {
        snprintf(path, sizeof(path), "%s/second", lab->dir);
        calls[0].listen_fd = vc_unix_listen(path, 0600, 4);
        assert_true(calls[0].listen_fd > 0);
        sq.second = path;
    }
    dq.stop = eventfd(0, EFD_CLOEXEC);
    assert_true(dq.stop >= 0);
    assert_int_equal(pthread_create(&threads[0], NULL, dest_qemu_main, &dq), 0);
    assert_int_equal(pthread_create(&threads[1], NULL, source_qemu_main, &sq), 0);
    assert_int_equal(pthread_create(&threads[2], NULL, dest_main, &calls[1]), 0);
    assert_int_equal(pthread_create(&threads[3], NULL, source_main, &calls[0]), 0);
    join_or_cancel(threads[3], f, calls, &v->stalled);
    join_or_cancel(threads[2], f, calls, &v->stalled);
    assert_int_equal(write(dq.stop, &one, sizeof(one)), sizeof(one));
    pthread_join(threads[1], NULL);
    pthread_join(threads[0], NULL);
    filter_join(f);
    turn_away_the_rest(lab->listener);
    if (v->second)
        unlink(path);
    close(dq.stop);
    vc_cancel_fini(&calls[0].cancel);
    vc_cancel_fini(&calls[1].cancel);
    v->wrong = dq.wrong || dq.side_wrong;
    v->side_whole = !dq.side_wrong && dq.side_got == SIDE_BYTES;
    v->whole = !dq.wrong && dq.got == stream->n;
}

/* ---- looking into stores ---- */

struct vc_vm *lab_open_vm(struct lab *lab, int host, enum vc_vm_open mode)
{
    struct vc_vm *vm;
    struct vc_err err;

    assert_int_equal(vc_vm_open(lab->host[host].store, &lab_vm_id, mode, &vm, &err), 0);
    return vm;
}

bool lab_has_generation(struct lab *lab, int host)
{
    struct vc_vm *vm = lab_open_vm(lab, host, VC_VM_READ);
    bool has = vc_vm_n_generations(vm) > 0;

    vc_vm_close(vm);
    return has;
}

bool lab_has_complete(struct lab *lab, int host)
{
    struct vc_vm *vm = lab_open_vm(lab, host, VC_VM_READ);
    bool has = vc_vm_complete(vm) != NULL;

    vc_vm_close(vm);
    return has;
}

long lab_bad_pages(struct lab *lab, int host)
{
    struct vc_vm *vm = lab_open_vm(lab, host, VC_VM_READ);
    struct vc_verify_result r = {0};
    struct vc_lineage l;
    struct vc_gen *g = NULL;
    struct vc_err err;

    if (vc_vm_n_generations(vm)) {
        assert_true(vc_vm_lineage(vm, &l));
        assert_int_equal(vc_gen_open(vm, &vc_vm_generation(vm, 0)->id, &g, &err), 0);
        assert_int_equal(vc_gen_verify(g, &l, NULL, NULL, &r, &err), 0);
    }
    vc_vm_close(vm);
    if (!g)
        return -1;
    vc_gen_close(g);
    return (long)r.bad_pages;
}

void lab_digest(struct lab *lab, int host, unsigned page, uint32_t version, struct vc_digest *out)
{
    struct vc_vm *vm = lab_open_vm(lab, host, VC_VM_READ);
    struct vc_lineage l;
    struct vc_digester *d;
    struct vc_err err;
    uint8_t content[PAGE];
    const uint8_t *p = content;

    assert_true(vc_vm_lineage(vm, &l));
    vc_vm_close(vm);
    fill_page(content, page, version);
    assert_int_equal(vc_digester_new(l.algo, VC_DIGEST_PAGE, l.key, &d, &err), 0);
    assert_int_equal(vc_digest_pages(d, &p, 1, PAGE, out, &err), 0);
    vc_digester_free(d);
}

/* ---- a slow disk ---- */

/* It takes so long to read a page or more. */
#define SLOW_READ_MS 40

static int read_slowly(const struct vc_io *io, int fd, void *buf, size_t n, uint64_t at)
{
    (void)io;
    if (n >= PAGE)
        poll(NULL, 0, SLOW_READ_MS);
    return vc_io_kernel.read(&vc_io_kernel, fd, buf, n, at);
}

/* The store of host 0 once more, on a disk that is slow to read. */
static void open_slowly(struct lab *lab)
{
    struct vc_err err;

    lab->slow_io = vc_io_kernel;
    lab->slow_io.read = read_slowly;
    lab->slow_io.is_cached = NULL;
    assert_int_equal(vc_store_open_on(&lab->slow_io, lab->host[0].root, false, 0, &lab->slow, &err),
                     0);
}

/* ---- the laboratory ---- */

static void lab_unrecord(struct lab *lab)
{
    buf_free(&lab->recorded);
    for (int i = 0; i < 2; i++)
        free_pristine(&lab->recorded_at[i]);
}

static void good_visit(struct lab *lab, int from, const struct memory *m)
{
    struct buf stream = {0};
    struct visit v = {.from = from, .stream = &stream};

    put_migration(&stream, m, NULL);
    lab_visit(lab, &v);
    buf_free(&stream);
    if (v.source.rc)
        fail_msg("%s", v.source.err.message);
    if (v.dest.rc)
        fail_msg("%s", v.dest.err.message);
    assert_true(v.whole);
    assert_true(v.source.result.confirmed && v.dest.result.confirmed);
}

static void change(struct memory *m, unsigned every, uint32_t version)
{
    for (unsigned i = 1; i < m->pages; i += every)
        m->version[i] = version;
}

/* Three legs, so that both hosts have an image and two deltas; then one by way of a third host. */
static void make_history(struct lab *lab)
{
    struct memory *m = &lab->memory;

    some_memory(m, PAGES);
    good_visit(lab, 0, m);
    change(m, 7, 10);
    good_visit(lab, 1, m);
    change(m, 11, 11);
    good_visit(lab, 0, m);
    keep_files(&lab->host[0], &lab->kept[0]);
    keep_files(&lab->host[1], &lab->kept[1]);
    lab->shared = *m;
    lab->parted[0] = lab->kept[0];
    /* What host 0 holds stays; host 1 and a third one, for which host 0 stands in, go on. */
    drop_files(&lab->host[0]);
    change(m, 23, 12);
    good_visit(lab, 1, m);
    keep_files(&lab->host[0], &lab->parted[1]);
    lab->now = *m;
    change(&lab->now, 31, 13);
    put_migration(&lab->stream, &lab->now, NULL);
    lab->now.shift = 5;
    put_migration(&lab->shifted, &lab->now, NULL);
    lab->now.shift = 0;
    lab->now.busy = true;
    lab->now.passes = ROUNDS;
    put_migration(&lab->rounds, &lab->now, NULL);
    lab->now.busy = false;
    lab->now.passes = 1;
}

/* What fuzzing appends to a stream. */
#define CORPUS_TRAILER_BYTES 8u

void lab_record(struct lab *lab, const char *name)
{
    static const struct pristine nothing[2];
    const char *dir = getenv("VC_RECORDED");
    struct visit v = {.from = 0, .stream = &lab->recorded};
    struct stat st;
    char path[300];
    int fd;

    if (!dir)
        fail_msg("VC_RECORDED: the directory of the recorded streams, as `meson test` sets it");
    snprintf(path, sizeof(path), "%s/seed-qemu-%s", dir, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0 && fstat(fd, &st) == 0 && st.st_size > 1000);
    lab_unrecord(lab);
    st.st_size -= CORPUS_TRAILER_BYTES;
    assert_int_equal(vc_read_full(fd, put(&lab->recorded, (size_t)st.st_size), (size_t)st.st_size),
                     1);
    close(fd);
    lab_restore(lab, nothing);
    lab_visit(lab, &v);
    assert_int_equal(v.source.rc, 0);
    assert_true(v.whole && v.source.result.confirmed && v.dest.result.confirmed);
    for (int i = 0; i < 2; i++)
        keep_files(&lab->host[i], &lab->recorded_at[i]);
}

void lab_init(struct lab *lab)
{
    const char *scale = getenv("VC_TEST_SCALE");
    char uuid[VC_ID_TEXT_BYTES], path[160];
    struct vc_err err;

    memset(lab, 0, sizeof(*lab));
    lab->scale = scale ? (unsigned)VC_MAX(atoi(scale), 1) : 1;
    /* In memory where possible: the stores are put back thousands of times. */
    snprintf(lab->dir, sizeof(lab->dir), "%s/vc-damage-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    assert_non_null(mkdtemp(lab->dir));
    vc_id_format(&lab_vm_id, uuid);
    snprintf(path, sizeof(path), "%s/%s.sock", lab->dir, uuid);
    lab->listener = vc_unix_listen(path, 0600, 4);
    assert_true(lab->listener >= 0);
    assert_int_equal(fcntl(lab->listener, F_SETFL, O_NONBLOCK), 0);
    for (int i = 0; i < 2; i++) {
        struct lab_host *h = &lab->host[i];

        snprintf(h->root, sizeof(h->root), "%s/%d", lab->dir, i);
        snprintf(h->vm_dir, sizeof(h->vm_dir), "%s/vms/%s", h->root, uuid);
        assert_int_equal(vc_store_open(h->root, true, 0, &h->store, &err), 0);
    }
    open_slowly(lab);
    make_history(lab);
}

void lab_fini(struct lab *lab)
{
    vc_store_close(lab->slow);
    for (int i = 0; i < 2; i++) {
        vc_store_close(lab->host[i].store);
        free_pristine(&lab->kept[i]);
    }
    free_pristine(&lab->parted[1]);
    lab_unrecord(lab);
    buf_free(&lab->stream);
    buf_free(&lab->shifted);
    buf_free(&lab->rounds);
    close(lab->listener);
    remove_tree(lab->dir);
}
