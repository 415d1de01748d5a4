/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store/genlog.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/clock.h"
#include "base/durable.h"

static const char magic[8] = "vcgenlog";

/* A batch is written when it is that old, or tells of that many bytes of pages. */
#define BATCH_NS VC_NS_PER_S
#define BATCH_PAGE_BYTES (8u << 20)
/* Fewer than the format allows: 16 MiB of pages of 4 KiB. */
#define BUFFER_BYTES (64u << 10)
/* Durable after five seconds at most, if the disk needs less than the rest for a sync. */
#define SYNC_NS (3 * VC_NS_PER_S)
/* In between the kernel is asked so often to begin writing: what piles up for seconds would be in
 * the way of the record that is synced while the guest is paused. */
#define WRITEBACK_NS (250 * VC_NS_PER_MS)

#define RECORDS (VC_SHA256_BYTES + VC_BATCH_HEAD_BYTES)

/* ---- header ---- */

size_t vc_genlog_encode(const struct vc_genlog_head *h, uint8_t *buf, size_t cap,
                        uint8_t chain[VC_SHA256_BYTES])
{
    struct vc_writer w = vc_writer(buf, cap - VC_SHA256_BYTES);
    const struct vc_index *ix = &h->ix;

    vc_head_write(&w, magic);
    vc_write_u32(&w, 0); /* the length, below */
    vc_write_u32(&w, ix->ram.page_bytes);
    vc_write_bytes(&w, ix->gen.b, 16);
    vc_write_bytes(&w, ix->lineage.b, 16);
    vc_write_bytes(&w, h->base.b, 16);
    vc_write_u64(&w, ix->n_pages);
    vc_write_u32(&w, ix->ram.n_blocks);
    vc_write_u32(&w, ix->n_layers);
    vc_layers_write(&w, ix->layers, ix->n_layers);
    vc_blocks_write(&w, ix);
    if (w.failed)
        return 0;
    vc_store_le(buf + VC_HEAD_BYTES, w.len + VC_SHA256_BYTES, 4);
    if (!vc_sha256(buf, w.len, chain))
        return 0;
    memcpy(buf + w.len, chain, VC_SHA256_BYTES);
    return w.len + VC_SHA256_BYTES;
}

static bool decode(struct vc_reader *r, struct vc_genlog_head *h)
{
    struct vc_index *ix = &h->ix;
    uint64_t n_pages;

    vc_read_u32(r); /* the length, which has been looked at */
    ix->ram.page_bytes = vc_read_u32(r);
    vc_read_copy(r, ix->gen.b, 16);
    vc_read_copy(r, ix->lineage.b, 16);
    vc_read_copy(r, h->base.b, 16);
    n_pages = vc_read_u64(r);
    ix->ram.n_blocks = vc_read_u32(r);
    ix->n_layers = vc_read_u32(r);
    return vc_layers_read(r, ix->layers, ix->n_layers) && vc_blocks_read(r, ix) && !r->failed &&
           r->off == r->len && n_pages == ix->n_pages;
}

int vc_genlog_read(const struct vc_io *io, int fd, const char *name, struct vc_genlog_head *h,
                   uint64_t *at, uint8_t chain[VC_SHA256_BYTES], struct vc_err *err)
{
    vc_auto_free uint8_t *buf = malloc(VC_HEADER_MAX);
    uint64_t n = 0;
    struct vc_reader r;
    bool frozen;
    int rc;

    if (!buf)
        return vc_err_set(err, VC_E_NOMEM, "no memory to read a log");
    rc = io->read(io, fd, buf, VC_HEAD_BYTES + 4, 0);
    if (rc > 0)
        n = vc_load_le(buf + VC_HEAD_BYTES, 4);
    if (rc > 0 && n > VC_HEAD_BYTES + VC_SHA256_BYTES && n <= VC_HEADER_MAX)
        rc = io->read(io, fd, buf, n, 0);
    else if (rc > 0)
        rc = 0;
    if (rc < 0)
        return vc_store_errno(err, "read", name);
    if (!rc || !vc_sha256(buf, n - VC_SHA256_BYTES, chain) ||
        memcmp(chain, buf + n - VC_SHA256_BYTES, VC_SHA256_BYTES) != 0)
        return vc_err_set(err, VC_E_CORRUPT, "log '%s' is damaged", name);
    r = vc_reader(buf, n - VC_SHA256_BYTES);
    rc = vc_head_read(&r, magic, name, &frozen, err);
    if (!rc && frozen)
        return vc_err_set(err, VC_E_VERSION, "'%s' may not be used by this version", name);
    if (rc < 0)
        return rc;
    *h = (struct vc_genlog_head){0};
    if (rc || !decode(&r, h))
        return vc_err_set(err, VC_E_CORRUPT, "log '%s' is damaged", name);
    *at = n;
    return 0;
}

/* ---- syncing ---- */

static int sync_files(struct vc_genlog *g)
{
    int failure = atomic_load(&g->sync.failure);

    if (!failure && (g->io->sync(g->io, g->layer_fd) < 0 || g->io->sync(g->io, g->fd) < 0 ||
                     g->io->sync_dir(g->io, g->dir_fd) < 0)) {
        failure = errno;
        atomic_store(&g->sync.failure, failure);
    }
    return failure;
}

static void *sync_main(void *arg)
{
    struct vc_genlog *g = arg;
    uint64_t sync_at = vc_now_ns() + SYNC_NS;

    for (;;) {
        uint64_t due = vc_now_ns() + WRITEBACK_NS;

        pthread_mutex_lock(&g->sync.mu);
        while (!g->sync.stop && vc_cond_wait_until(&g->sync.changed, &g->sync.mu, due))
            ;
        if (g->sync.stop)
            break;
        pthread_mutex_unlock(&g->sync.mu);
        if (vc_now_ns() >= sync_at) {
            sync_files(g);
            sync_at = vc_now_ns() + SYNC_NS;
        } else {
            sync_file_range(g->layer_fd, 0, 0, SYNC_FILE_RANGE_WRITE); /* no more than a hint */
        }
    }
    pthread_mutex_unlock(&g->sync.mu);
    return NULL;
}

/* A sync that failed may have lost pages or batches, and the next one would not say so. */
static int check_failure(const struct vc_genlog *g, struct vc_err *err)
{
    int failure = atomic_load(&g->sync.failure);

    if (!failure)
        return 0;
    errno = failure;
    return vc_store_errno(err, "sync", "the new generation");
}

int vc_genlog_sync(struct vc_genlog *g, struct vc_err *err)
{
    int rc = vc_genlog_flush(g, err);

    if (rc)
        return rc;
    sync_files(g);
    return check_failure(g, err);
}

/* ---- writing ---- */

static void start_batch(struct vc_genlog *g)
{
    g->len = 0;
    g->last = SIZE_MAX;
    g->page_bytes = 0;
    g->since_ns = vc_now_ns();
}

static int init(struct vc_genlog *g, struct vc_vm *vm, const struct vc_genlog_head *h,
                struct vc_err *err)
{
    vc_auto_free uint8_t *head = malloc(VC_HEADER_MAX);
    struct iovec iov = {.iov_base = head};
    char name[VC_NAME_BYTES];

    g->buf = malloc(RECORDS + BUFFER_BYTES + VC_SHA256_BYTES);
    if (!g->buf || !head)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a log");
    iov.iov_len = vc_genlog_encode(h, head, VC_HEADER_MAX, g->buf);
    if (!iov.iov_len)
        return vc_err_set(err, VC_E_FAILED, "cannot build the header of a log");
    vc_store_file_name(name, &h->ix.gen, ".log");
    g->fd = g->io->open(g->io, vm->dir_fd, name, O_RDWR | O_CREAT | O_EXCL);
    if (g->fd < 0)
        return vc_store_errno(err, "create", name);
    g->at = iov.iov_len;
    if (g->io->write(g->io, g->fd, &iov, 1, 0) < 0)
        return vc_store_errno(err, "write", name);
    return vc_thread_start(&g->sync.thread, "vc-store-sync", sync_main, g, err);
}

int vc_genlog_open(struct vc_genlog **out, struct vc_vm *vm, const struct vc_genlog_head *h,
                   int layer_fd, struct vc_err *err)
{
    struct vc_genlog *g = calloc(1, sizeof(*g));
    int rc;

    if (!g)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a log");
    g->io = vm->store->io;
    g->dir_fd = vm->dir_fd;
    g->layer_fd = layer_fd;
    g->fd = -1;
    g->seq = 1;
    g->page_size = h->ix.ram.page_bytes;
    pthread_mutex_init(&g->sync.mu, NULL);
    vc_cond_init(&g->sync.changed);
    start_batch(g);
    rc = init(g, vm, h, err);
    if (rc)
        vc_genlog_close(g, NULL);
    else
        *out = g;
    return rc;
}

int vc_genlog_close(struct vc_genlog *g, struct vc_err *err)
{
    int rc;

    if (!g)
        return 0;
    pthread_mutex_lock(&g->sync.mu);
    g->sync.stop = true;
    pthread_cond_signal(&g->sync.changed);
    pthread_mutex_unlock(&g->sync.mu);
    vc_thread_join(&g->sync.thread);
    rc = check_failure(g, err);
    if (g->fd >= 0)
        close(g->fd);
    pthread_cond_destroy(&g->sync.changed);
    pthread_mutex_destroy(&g->sync.mu);
    free(g->buf);
    free(g);
    return rc;
}

int vc_genlog_flush(struct vc_genlog *g, struct vc_err *err)
{
    uint8_t *head = g->buf + VC_SHA256_BYTES, *sum = g->buf + RECORDS + g->len;
    struct iovec iov = {head, VC_BATCH_HEAD_BYTES + g->len + VC_SHA256_BYTES};
    size_t bytes = iov.iov_len;

    if (!g->len)
        return check_failure(g, err);
    vc_store_le(head, g->len, 4);
    vc_store_le(head + 4, 0, 4);
    vc_store_le(head + 8, g->seq, 8);
    if (!vc_sha256(g->buf, RECORDS + g->len, sum))
        return vc_err_set(err, VC_E_FAILED, "OpenSSL: SHA-256 failed");
    if (g->io->write(g->io, g->fd, &iov, 1, g->at) < 0)
        return vc_store_errno(err, "write", "the log of the new generation");
    memcpy(g->buf, sum, VC_SHA256_BYTES);
    g->at += bytes;
    g->seq++;
    start_batch(g);
    return check_failure(g, err);
}

struct record {
    enum vc_record kind;
    uint32_t block;
    uint64_t page;
    uint32_t count, slot;
};

static size_t digest_bytes(const struct record *r)
{
    return r->kind == VC_RECORD_HELD ? (size_t)r->count * VC_DIGEST_BYTES : 0;
}

/* Whether r goes on where the last record of the batch ends; then it becomes part of that. */
static bool extend(struct vc_genlog *g, const struct record *r)
{
    uint8_t *last;
    uint32_t count, slot;

    if (g->last == SIZE_MAX)
        return false;
    last = g->buf + RECORDS + g->last;
    if (last[0] != r->kind || vc_load_le(last + 4, 4) != r->block)
        return false;
    count = (uint32_t)vc_load_le(last + 16, 4);
    slot = (uint32_t)vc_load_le(last + 20, 4);
    /* In an image both slots are 0: told apart from a delta's, where the second cannot be. */
    if (vc_load_le(last + 8, 8) + count != r->page || count > UINT32_MAX - r->count ||
        (r->slot != slot + count && (r->slot || slot)))
        return false;
    vc_store_le(last + 16, count + r->count, 4);
    return true;
}

static void append(struct vc_genlog *g, const struct record *r)
{
    uint8_t *p = g->buf + RECORDS + g->len;

    g->last = g->len;
    memset(p, 0, VC_RECORD_BYTES);
    p[0] = (uint8_t)r->kind;
    vc_store_le(p + 4, r->block, 4);
    vc_store_le(p + 8, r->page, 8);
    vc_store_le(p + 16, r->count, 4);
    vc_store_le(p + 20, r->slot, 4);
    g->len += VC_RECORD_BYTES;
}

int vc_genlog_add(struct vc_genlog *g, enum vc_record kind, uint32_t block, uint64_t page, size_t n,
                  uint32_t slot, const struct vc_digest *digests, struct vc_err *err)
{
    struct record r = {kind, block, page, (uint32_t)n, slot};
    size_t bytes = digest_bytes(&r);
    int rc = 0;

    assert(n && n <= UINT32_MAX && VC_RECORD_BYTES + bytes <= BUFFER_BYTES);
    if (g->len + VC_RECORD_BYTES + bytes > BUFFER_BYTES)
        rc = vc_genlog_flush(g, err);
    if (rc)
        return rc;
    if (!extend(g, &r))
        append(g, &r);
    if (bytes) {
        memcpy(g->buf + RECORDS + g->len, digests, bytes);
        g->len += bytes;
        g->page_bytes += n * g->page_size;
    }
    if (g->page_bytes >= BATCH_PAGE_BYTES || vc_now_ns() - g->since_ns >= BATCH_NS)
        return vc_genlog_flush(g, err);
    return 0;
}
