/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "simdisk.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fdio.h"
#include "sanitized.h"

#define SECTOR 512u

/* One thing that was done and is not durable. */
struct change {
    struct change *next;
    bool doubtful; /* a sync of it has failed: no later one makes it durable */
    enum { WRITE, RESIZE, ADD, REMOVE, MOVE } kind;
    uint64_t at, n; /* WRITE, RESIZE */
    uint8_t *bytes;
    char name[80], to[80]; /* of a directory */
    struct node *node;     /* ADD, MOVE */
};

struct entry {
    struct entry *next;
    char name[80];
    struct node *node;
};

/* A file or a directory, also one that has no name any more. */
struct node {
    struct node *next;
    dev_t dev;
    ino_t ino;
    bool is_dir;
    uint8_t *data; /* durable */
    uint64_t n;
    struct entry *entries;        /* durable */
    struct change *first, **last; /* since then, in order */
};

struct sim {
    struct vc_io io;
    pthread_mutex_t mu; /* the store has a thread that syncs */
    struct node *nodes; /* newest first: an inode number may be used again */
    struct node *root;
    enum sim_fault fault;
    unsigned at, dies_at, calls;
    bool struck, dead;
    uint64_t rng;
};

static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static void *need(void *p)
{
    if (!p)
        abort();
    return p;
}

/* ---- nodes ---- */

static struct node *new_node(struct sim *s, int fd, bool is_dir)
{
    struct node *node = need(calloc(1, sizeof(*node)));
    struct stat st;

    if (fstat(fd, &st) < 0)
        abort();
    node->dev = st.st_dev;
    node->ino = st.st_ino;
    node->is_dir = is_dir;
    node->last = &node->first;
    node->next = s->nodes;
    s->nodes = node;
    return node;
}

static struct node *node_of(struct sim *s, int fd)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return NULL;
    for (struct node *n = s->nodes; n; n = n->next)
        if (n->ino == st.st_ino && n->dev == st.st_dev)
            return n;
    return NULL;
}

static struct change *note(struct node *node, int kind)
{
    struct change *c = need(calloc(1, sizeof(*c)));

    c->kind = kind;
    *node->last = c;
    node->last = &c->next;
    return c;
}

static void free_changes(struct node *node)
{
    struct change *next;

    for (struct change *c = node->first; c; c = next) {
        next = c->next;
        free(c->bytes);
        free(c);
    }
    node->first = NULL;
    node->last = &node->first;
}

/* ---- what changes do to the durable state ---- */

static void grow(uint8_t **data, uint64_t *n, uint64_t to)
{
    *data = need(realloc(*data, to ? to : 1));
    if (to > *n)
        memset(*data + *n, 0, to - *n);
    *n = to;
}

static void apply_bytes(uint8_t **data, uint64_t *n, uint64_t at, const uint8_t *bytes, uint64_t k)
{
    if (at + k > *n)
        grow(data, n, at + k);
    memcpy(*data + at, bytes, k);
}

static void drop_entry(struct entry **list, const char *name)
{
    for (struct entry **p = list; *p; p = &(*p)->next)
        if (!strcmp((*p)->name, name)) {
            struct entry *dead = *p;

            *p = dead->next;
            free(dead);
            return;
        }
}

static void add_entry(struct entry **list, const char *name, struct node *node)
{
    struct entry *e = need(calloc(1, sizeof(*e)));

    drop_entry(list, name);
    snprintf(e->name, sizeof(e->name), "%s", name);
    e->node = node;
    e->next = *list;
    *list = e;
}

static void apply_name(struct entry **list, const struct change *c)
{
    if (c->kind == ADD) {
        add_entry(list, c->name, c->node);
    } else {
        drop_entry(list, c->name);
        if (c->kind == MOVE)
            add_entry(list, c->to, c->node);
    }
}

static void free_entries(struct entry *e)
{
    while (e) {
        struct entry *next = e->next;

        free(e);
        e = next;
    }
}

/* A sync: everything up to now is durable, but for what an earlier one has failed to write: that
 * has been written in its time, or never will be. */
static void settle(struct sim *s, struct node *node)
{
    for (struct change *c = node->first; c; c = c->next) {
        if (c->doubtful && draw(&s->rng) % 2)
            continue;
        if (c->kind == WRITE)
            apply_bytes(&node->data, &node->n, c->at, c->bytes, c->n);
        else if (c->kind == RESIZE)
            grow(&node->data, &node->n, c->n);
        else
            apply_name(&node->entries, c);
    }
    free_changes(node);
}

/* ---- faults ---- */

/* Begins a call. 0: it works; -1: it fails with errno, and *half may be done of it. */
static int enter(struct sim *s, bool needs_room, bool *half)
{
    bool now = s->calls == s->at && s->fault != SIM_NONE;
    bool dies = s->calls == s->dies_at;

    s->calls++;
    *half = draw(&s->rng) & 1;
    s->struck |= now;
    if (s->dead || dies) {
        s->dead = true;
        *half = false;
        errno = EIO;
        return -1;
    }
    if (now && (s->fault == SIM_EIO || s->fault == SIM_TWICE)) {
        errno = EIO;
        return -1;
    }
    if (s->fault == SIM_ENOSPC && s->struck && needs_room) {
        errno = ENOSPC;
        return -1;
    }
    return 0;
}

#define SIM(io) struct sim *s = (struct sim *)(io)
#define LOCK(s)                                                           \
    __attribute__((cleanup(unlock))) pthread_mutex_t *held_ = (&(s)->mu); \
    pthread_mutex_lock(held_)

static void unlock(pthread_mutex_t **mu)
{
    pthread_mutex_unlock(*mu);
}

/* ---- the calls ---- */

static int sim_open(const struct vc_io *io, int dir, const char *name, int flags)
{
    SIM(io);
    LOCK(s);
    bool half, made = (flags & O_CREAT) && faccessat(dir, name, F_OK, AT_SYMLINK_NOFOLLOW) < 0;
    int fd;

    if (enter(s, made, &half))
        return -1;
    fd = vc_io_kernel.open(&vc_io_kernel, dir, name, flags);
    if (fd < 0)
        return -1;
    if (made) {
        struct change *c = note(node_of(s, dir), ADD);

        snprintf(c->name, sizeof(c->name), "%s", name);
        c->node = new_node(s, fd, false);
    } else if (flags & O_TRUNC) {
        note(node_of(s, fd), RESIZE);
    }
    return fd;
}

static int sim_read(const struct vc_io *io, int fd, void *buf, size_t n, uint64_t at)
{
    SIM(io);
    LOCK(s);
    bool half;

    return enter(s, false, &half) ? -1 : vc_pread_full(fd, buf, n, at);
}

static void write_through(struct sim *s, int fd, const uint8_t *bytes, uint64_t n, uint64_t at)
{
    struct iovec iov = {(void *)bytes, n};
    struct change *c = note(node_of(s, fd), WRITE);

    c->at = at;
    c->n = n;
    c->bytes = need(malloc(n ? n : 1));
    memcpy(c->bytes, bytes, n);
    if (vc_pwritev_full(fd, &iov, 1, at) < 0)
        abort();
}

static int sim_write(const struct vc_io *io, int fd, struct iovec *iov, size_t n, uint64_t at)
{
    SIM(io);
    LOCK(s);
    uint64_t total = 0, k = 0;
    uint8_t *bytes;
    bool half;
    int rc = enter(s, true, &half), saved = errno;

    if (rc && !half)
        return -1;
    for (size_t i = 0; i < n; i++)
        total += iov[i].iov_len;
    bytes = need(malloc(total ? total : 1));
    for (size_t i = 0; i < n; i++) {
        if (iov[i].iov_len)
            memcpy(bytes + k, iov[i].iov_base, iov[i].iov_len);
        k += iov[i].iov_len;
    }
    write_through(s, fd, bytes, rc ? total / 2 : total, at);
    free(bytes);
    errno = saved;
    return rc;
}

static ssize_t sim_copy(const struct vc_io *io, int from, uint64_t from_at, int to, uint64_t to_at,
                        size_t n)
{
    (void)io, (void)from, (void)from_at, (void)to, (void)to_at, (void)n;
    errno = EOPNOTSUPP;
    return -1;
}

static int sim_resize(const struct vc_io *io, int fd, uint64_t bytes)
{
    SIM(io);
    LOCK(s);
    bool half;

    if (enter(s, true, &half))
        return -1;
    note(node_of(s, fd), RESIZE)->n = bytes;
    return ftruncate(fd, (off_t)bytes);
}

static int sync_node(struct sim *s, int fd)
{
    struct node *node = node_of(s, fd);
    bool half;

    if (enter(s, true, &half)) {
        /* Names are in a journal, and it is tried again; of data the kernel may drop anything. */
        if (!s->dead && node && !node->is_dir)
            for (struct change *c = node->first; c; c = c->next)
                c->doubtful = true;
        return -1;
    }
    if (!node) {
        errno = EBADF;
        return -1;
    }
    settle(s, node);
    return 0;
}

static int sim_sync(const struct vc_io *io, int fd)
{
    SIM(io);
    LOCK(s);

    return sync_node(s, fd);
}

static struct node *named(struct sim *s, int dir, const char *name)
{
    int fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    struct node *node = fd < 0 ? NULL : node_of(s, fd);

    if (fd >= 0)
        close(fd);
    return node;
}

static int sim_rename(const struct vc_io *io, int dir, const char *from, const char *to)
{
    SIM(io);
    LOCK(s);
    struct node *node = named(s, dir, from);
    bool half;
    int rc = enter(s, true, &half), saved = errno;

    /* One that fails may have happened. */
    if (rc && !half)
        return -1;
    if (renameat(dir, from, dir, to) < 0)
        return -1;
    {
        struct change *c = note(node_of(s, dir), MOVE);

        snprintf(c->name, sizeof(c->name), "%s", from);
        snprintf(c->to, sizeof(c->to), "%s", to);
        c->node = node;
    }
    errno = saved;
    return rc;
}

static int sim_unlink(const struct vc_io *io, int dir, const char *name, int flags)
{
    SIM(io);
    LOCK(s);
    struct change *c;
    bool half;

    if (enter(s, false, &half) || unlinkat(dir, name, flags) < 0)
        return -1;
    c = note(node_of(s, dir), REMOVE);
    snprintf(c->name, sizeof(c->name), "%s", name);
    return 0;
}

static int sim_mkdir(const struct vc_io *io, int dir, const char *name)
{
    SIM(io);
    LOCK(s);
    struct change *c;
    bool half;
    int fd;

    if (enter(s, true, &half) || mkdirat(dir, name, 0700) < 0)
        return -1;
    fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    c = note(node_of(s, dir), ADD);
    snprintf(c->name, sizeof(c->name), "%s", name);
    c->node = new_node(s, fd, true);
    close(fd);
    return 0;
}

/* ---- the disk ---- */

struct sim *sim_new(const char *dir, enum sim_fault fault, unsigned at, uint64_t seed)
{
    struct sim *s = need(calloc(1, sizeof(*s)));
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    s->io = (struct vc_io){
        .open = sim_open,
        .read = sim_read,
        .write = sim_write,
        .copy = sim_copy,
        .resize = sim_resize,
        .sync = sim_sync,
        .sync_dir = sim_sync,
        .rename = sim_rename,
        .unlink = sim_unlink,
        .mkdir = sim_mkdir,
    };
    pthread_mutex_init(&s->mu, NULL);
    s->fault = fault;
    s->at = at;
    s->rng = seed;
    s->dies_at = UINT_MAX;
    if (fault == SIM_DIES)
        s->dies_at = at;
    else if (fault == SIM_TWICE)
        s->dies_at = at + 1 + (unsigned)(draw(&s->rng) % 12);
    s->root = new_node(s, fd, true);
    close(fd);
    return s;
}

void sim_free(struct sim *s)
{
    struct node *next;

    for (struct node *n = s->nodes; n; n = next) {
        next = n->next;
        free_changes(n);
        free_entries(n->entries);
        free(n->data);
        free(n);
    }
    pthread_mutex_destroy(&s->mu);
    free(s);
}

const struct vc_io *sim_io(struct sim *s)
{
    return &s->io;
}

unsigned sim_calls(const struct sim *s)
{
    return s->calls;
}

bool sim_struck(const struct sim *s)
{
    return s->struck;
}

bool sim_dead(const struct sim *s)
{
    return s->dead;
}

/* ---- a power cut ---- */

/* How much of what was not synced reached the disk, in one file or directory. */
enum fate { NOTHING, EVERYTHING, BEGINNING, SOME, SECTORS, N_FATES, LAST };

struct cut {
    uint64_t rng;
    bool last_names; /* of names only the last change reached the disk: the worst for who relies on
                        an order */
};

static bool reached(struct cut *cut, const struct change *c, enum fate fate, bool *going)
{
    uint64_t r = draw(&cut->rng);

    switch (fate) {
    case NOTHING:
        return false;
    case EVERYTHING:
        return true;
    case BEGINNING:
        *going = *going && r % 4;
        return *going;
    case LAST:
        return !c->next;
    default:
        return r % 2;
    }
}

static void make_file(struct cut *cut, const struct node *node, int dir, const char *name)
{
    enum fate fate = (enum fate)(draw(&cut->rng) % N_FATES);
    uint64_t n = node->n;
    uint8_t *data = need(malloc(n ? n : 1));
    struct iovec iov;
    bool going = true;
    int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    if (n)
        memcpy(data, node->data, n);
    for (const struct change *c = node->first; c; c = c->next) {
        if (c->kind == RESIZE) {
            if (reached(cut, c, fate, &going))
                grow(&data, &n, c->n);
            continue;
        }
        if (fate != SECTORS) {
            if (reached(cut, c, fate, &going))
                apply_bytes(&data, &n, c->at, c->bytes, c->n);
            else if (fate == BEGINNING && c->n)
                apply_bytes(&data, &n, c->at, c->bytes, draw(&cut->rng) % c->n);
            if (fate == BEGINNING && !going)
                break;
            continue;
        }
        for (uint64_t at = 0; at < c->n; at += SECTOR)
            if (draw(&cut->rng) % 2)
                apply_bytes(&data, &n, c->at + at, c->bytes + at,
                            c->n - at < SECTOR ? c->n - at : SECTOR);
    }
    iov = (struct iovec){data, n};
    if (fd < 0 || vc_pwritev_full(fd, &iov, 1, 0) < 0)
        abort();
    close(fd);
    free(data);
}

static void make_dir(struct cut *cut, const struct node *node, int dir)
{
    enum fate fate = cut->last_names ? LAST : (enum fate)(draw(&cut->rng) % N_FATES);
    struct entry *entries = NULL;
    bool going = true;

    for (const struct entry *e = node->entries; e; e = e->next)
        add_entry(&entries, e->name, e->node);
    for (const struct change *c = node->first; c; c = c->next)
        if (reached(cut, c, fate, &going))
            apply_name(&entries, c);
    for (const struct entry *e = entries; e; e = e->next) {
        int fd;

        if (!e->node->is_dir) {
            make_file(cut, e->node, dir, e->name);
            continue;
        }
        if (mkdirat(dir, e->name, 0700) < 0)
            abort();
        fd = openat(dir, e->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        make_dir(cut, e->node, fd);
        close(fd);
    }
    free_entries(entries);
}

void sim_power_cut(const struct sim *s, uint64_t seed, const char *dir)
{
    struct cut cut = {.rng = seed, .last_names = seed % 2};
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        abort();
    make_dir(&cut, s->root, fd);
    close(fd);
}

/* ---- the calls of a life ---- */

void sim_each_call(sim_suffer_fn *suffer, enum sim_fault fault, unsigned cuts, unsigned step,
                   unsigned offset)
{
    unsigned at;

    step *= SANITIZED ? 15 : 1;
    for (at = offset % step; suffer(fault, at, cuts); at += step)
        ;
    assert_true(at > 100);
    print_message("%u calls\n", at);
}
