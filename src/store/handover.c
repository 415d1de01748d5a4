/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/durable.h"
#include "store/internal.h"

/* The handover record: docs/formats/store.md section 6. Two slots written in turn, each with its
 * checksum and a sequence number: a torn write leaves the other one. The file has its full length
 * from the start, so that a change of state is one overwrite and no journal commit. */

static const char magic[8] = "vchandov";
#define FILE_BYTES 8192u
#define SLOT_BYTES 4096u
#define SLOT_AT(seq) (((seq)&1) * SLOT_BYTES)
#define USED_BYTES (SLOT_BYTES - VC_SHA256_BYTES)
#define SETTING_BYTES 57u
#define HAS_COUNTS 1u
#define TOLD 2u
#define LEFT_SUSPENDED 4u
#define STARTED_ANEW 8u
#define AWAITS_REST 16u
#define ALL_FLAGS (HAS_COUNTS | TOLD | LEFT_SUSPENDED | STARTED_ANEW | AWAITS_REST)
/* No record is written so often: the number behind a larger one might be smaller. */
#define MAX_SEQ (1ull << 63)

static void write_text(struct vc_writer *w, const char *text, size_t bytes)
{
    memcpy(vc_write_reserve(w, bytes), text, strnlen(text, bytes - 1));
}

static void write_process(struct vc_writer *w, const struct vc_process *p)
{
    vc_write_u32(w, (uint32_t)p->pid);
    vc_write_u64(w, p->start);
    vc_write_bytes(w, p->boot.b, sizeof(p->boot.b));
    vc_write_bytes(w, p->machine.b, sizeof(p->machine.b));
    vc_write_u64(w, p->pid_ns);
    vc_write_u64(w, p->time_ns);
}

static void write_setting(struct vc_writer *w, const struct vc_handover_setting *s)
{
    vc_write_u8(w, s->kind);
    write_text(w, s->name, sizeof(s->name));
    vc_write_u64(w, s->was);
    vc_write_u64(w, s->set);
    vc_write_u64(w, s->last);
}

static void write_sum(struct vc_writer *w, const struct vc_handover_sum *s)
{
    vc_write_u64(w, s->total_ms);
    vc_write_u64(w, s->setup_ms);
    vc_write_u64(w, s->downtime_ms);
    vc_write_u64(w, s->sent_bytes);
    vc_write_u64(w, s->rounds);
    vc_write_u64(w, s->data_pages);
    vc_write_u64(w, s->zero_pages);
}

static uint8_t flags_of(const struct vc_handover *h)
{
    return (uint8_t)((h->has_counts ? HAS_COUNTS : 0) | (h->told ? TOLD : 0) |
                     (h->left_suspended ? LEFT_SUSPENDED : 0) |
                     (h->started_anew ? STARTED_ANEW : 0) | (h->awaits_rest ? AWAITS_REST : 0));
}

static void encode(const struct vc_handover *h, uint64_t seq, uint8_t slot[SLOT_BYTES])
{
    struct vc_writer w = vc_writer(slot, USED_BYTES);

    memset(slot, 0, SLOT_BYTES);
    vc_write_bytes(&w, magic, sizeof(magic));
    vc_write_u32(&w, VC_STORE_VERSION);
    vc_write_u32(&w, h->state);
    vc_write_u64(&w, seq);
    vc_write_bytes(&w, h->session.b, 16);
    vc_write_u64(&w, h->since_unix);
    write_text(&w, h->peer, sizeof(h->peer));
    write_text(&w, h->tls_hostname, sizeof(h->tls_hostname));
    write_text(&w, h->socket, sizeof(h->socket));
    vc_write_u8(&w, h->suspend);
    write_process(&w, &h->qemu);
    vc_write_u8(&w, flags_of(h));
    vc_write_u64(&w, h->data_records);
    vc_write_u64(&w, h->zero_records);
    vc_write_u64(&w, h->noted_ns);
    write_sum(&w, &h->sum);
    vc_write_u8(&w, (uint8_t)h->n_settings);
    for (uint32_t i = 0; i < h->n_settings; i++)
        write_setting(&w, &h->settings[i]);
    if (!vc_sha256(slot, USED_BYTES, slot + USED_BYTES))
        memset(slot, 0xff, SLOT_BYTES); /* never valid */
}

/* Text filled up with NUL. */
static bool read_text(struct vc_reader *r, char *text, size_t bytes)
{
    size_t n;

    vc_read_copy(r, text, bytes);
    n = strnlen(text, bytes);
    return n < bytes && vc_is_zero(text + n, bytes - n);
}

static bool read_flag(struct vc_reader *r, bool *out)
{
    uint8_t v = vc_read_u8(r);

    *out = v == 1;
    return v <= 1;
}

static bool read_process(struct vc_reader *r, struct vc_process *p)
{
    uint32_t pid = vc_read_u32(r);

    p->pid = (int32_t)pid;
    p->start = vc_read_u64(r);
    vc_read_copy(r, p->boot.b, sizeof(p->boot.b));
    vc_read_copy(r, p->machine.b, sizeof(p->machine.b));
    p->pid_ns = vc_read_u64(r);
    p->time_ns = vc_read_u64(r);
    return pid <= INT32_MAX;
}

static void read_sum(struct vc_reader *r, struct vc_handover_sum *s)
{
    s->total_ms = vc_read_u64(r);
    s->setup_ms = vc_read_u64(r);
    s->downtime_ms = vc_read_u64(r);
    s->sent_bytes = vc_read_u64(r);
    s->rounds = vc_read_u64(r);
    s->data_pages = vc_read_u64(r);
    s->zero_pages = vc_read_u64(r);
}

static bool read_settings(struct vc_reader *r, struct vc_handover *h)
{
    bool legal = true;

    h->n_settings = vc_read_u8(r);
    if (h->n_settings > VC_HANDOVER_MAX_SETTINGS)
        return false;
    for (uint32_t i = 0; i < h->n_settings; i++) {
        struct vc_handover_setting *s = &h->settings[i];

        s->kind = vc_read_u8(r);
        legal &= s->kind >= VC_SETTING_CAPABILITY && s->kind <= VC_SETTING_TEXT;
        legal &= read_text(r, s->name, sizeof(s->name));
        s->was = vc_read_u64(r);
        s->set = vc_read_u64(r);
        s->last = vc_read_u64(r);
    }
    return legal &&
           vc_read_zero(r, (VC_HANDOVER_MAX_SETTINGS - h->n_settings) * (size_t)SETTING_BYTES);
}

static bool read_rest(struct vc_reader *r, struct vc_handover *h)
{
    bool legal = read_text(r, h->peer, sizeof(h->peer));
    uint8_t flags;

    legal &= read_text(r, h->tls_hostname, sizeof(h->tls_hostname));
    legal &= read_text(r, h->socket, sizeof(h->socket));
    legal &= read_flag(r, &h->suspend);
    legal &= read_process(r, &h->qemu);
    flags = vc_read_u8(r);
    legal &= flags <= ALL_FLAGS;
    h->has_counts = flags & HAS_COUNTS;
    h->told = flags & TOLD;
    h->left_suspended = flags & LEFT_SUSPENDED;
    h->started_anew = flags & STARTED_ANEW;
    h->awaits_rest = flags & AWAITS_REST;
    h->data_records = vc_read_u64(r);
    h->zero_records = vc_read_u64(r);
    h->noted_ns = vc_read_u64(r);
    read_sum(r, &h->sum);
    return legal && read_settings(r, h) && vc_read_zero(r, vc_reader_left(r)) && !r->failed;
}

/* False if magic or checksum are not right. *legal: so is the rest. */
static bool decode(const uint8_t slot[SLOT_BYTES], struct vc_handover *h, uint64_t *seq,
                   bool *legal)
{
    struct vc_reader r = vc_reader(slot, USED_BYTES);
    uint8_t sum[VC_SHA256_BYTES];
    uint32_t version, state;

    if (memcmp(slot, magic, sizeof(magic)) != 0 || !vc_sha256(slot, USED_BYTES, sum) ||
        memcmp(sum, slot + USED_BYTES, sizeof(sum)) != 0)
        return false;
    memset(h, 0, sizeof(*h));
    vc_read_bytes(&r, sizeof(magic));
    version = vc_read_u32(&r);
    state = vc_read_u32(&r);
    *seq = vc_read_u64(&r);
    vc_read_copy(&r, h->session.b, 16);
    h->since_unix = vc_read_u64(&r);
    *legal = version == VC_STORE_VERSION && *seq < MAX_SEQ && state <= VC_HANDOVER_ABOUT_TO_RUN &&
             read_rest(&r, h);
    h->state = (uint8_t)state;
    return true;
}

/* 0, VC_NOT_FOUND (no record yet), VC_E_CORRUPT. */
static int read_record(struct vc_vm *vm, struct vc_handover *h, uint64_t *seq, struct vc_err *err)
{
    const struct vc_io *io = vm->store->io;
    vc_auto_close int fd = io->open(io, vm->dir_fd, "handover", O_RDONLY);
    uint8_t file[FILE_BYTES];
    bool found = false, legal = false;
    int rc;

    if (fd < 0)
        return errno == ENOENT ? VC_NOT_FOUND : vc_vm_open_errno(vm, "handover", err);
    rc = io->read(io, fd, file, sizeof(file), 0);
    if (rc < 0)
        return vc_store_errno(err, "read", "handover");
    for (unsigned i = 0; i < 2 && rc; i++) {
        struct vc_handover one;
        uint64_t n;
        bool ok;

        if (!decode(file + SLOT_AT(i), &one, &n, &ok) || (found && n < *seq))
            continue;
        *h = one;
        *seq = n;
        legal = ok;
        found = true;
    }
    return found && legal
               ? 0
               : vc_err_set_hint(err, VC_E_CORRUPT, "look at both hosts which of them runs the VM",
                                 "the record of the VM's handover is damaged");
}

/* The sequence number moves on only when the slot is durable: a repetition writes the same one, and
 * leaves the last good one alone. */
int vc_handover_note(struct vc_vm *vm, struct vc_err *err)
{
    const struct vc_io *io = vm->store->io;
    uint64_t seq = vm->handover_seq + 1;
    uint8_t slot[SLOT_BYTES];
    struct iovec iov = {slot, sizeof(slot)};

    encode(&vm->handover, seq, slot);
    if (io->write(io, vm->handover_fd, &iov, 1, SLOT_AT(seq)) < 0)
        return vc_store_errno(err, "write", "handover");
    return 0;
}

static int write_slot(struct vc_vm *vm, struct vc_err *err)
{
    int rc = vc_handover_note(vm, err);

    if (!rc)
        rc = vc_durable_sync(vm->store->io, vm->handover_fd, "handover", err);
    vm->handover_seq += !rc;
    return rc;
}

/* The whole file, in place of none or a damaged one. */
static int make_file(struct vc_vm *vm, struct vc_err *err)
{
    uint8_t file[FILE_BYTES] = {0};

    vm->handover_seq = 1;
    encode(&vm->handover, vm->handover_seq, file + SLOT_AT(vm->handover_seq));
    return vc_durable_write_file(vm->store->io, vm->dir_fd, "handover", file, sizeof(file), err);
}

static void close_file(struct vc_vm *vm)
{
    if (vm->handover_fd >= 0)
        close(vm->handover_fd);
    vm->handover_fd = -1;
}

int vc_handover_begin(struct vc_vm *vm, const struct vc_handover *h, struct vc_err *err)
{
    const struct vc_io *io = vm->store->io;
    struct vc_err damage = VC_ERR_INIT;
    struct vc_handover old;
    int rc = read_record(vm, &old, &vm->handover_seq, &damage);
    bool fresh = rc != 0;

    close_file(vm);
    if (rc < 0 && rc != VC_E_CORRUPT) {
        *err = damage;
        return rc;
    }
    vm->handover = *h;
    rc = fresh ? make_file(vm, err) : 0;
    if (rc)
        return rc;
    vm->handover_fd = io->open(io, vm->dir_fd, "handover", O_RDWR);
    if (vm->handover_fd < 0)
        return vc_store_errno(err, "open", "handover");
    if (fresh)
        return 0;
    /* What was noted and not synced is in the other slot than the one that is overwritten now. */
    rc = vc_durable_sync(io, vm->handover_fd, "handover", err);
    if (!rc)
        rc = write_slot(vm, err);
    return rc ? rc : vc_durable_sync_dir(io, vm->dir_fd, "the VM's directory", err);
}

int vc_handover_forget(struct vc_vm *vm, struct vc_err *err)
{
    const struct vc_io *io = vm->store->io;

    close_file(vm);
    if (io->unlink(io, vm->dir_fd, "handover", 0) < 0 && errno != ENOENT)
        return vc_store_errno(err, "remove", "handover");
    return vc_durable_sync_dir(io, vm->dir_fd, "the VM's directory", err);
}

struct vc_handover *vc_handover_edit(struct vc_vm *vm)
{
    return &vm->handover;
}

int vc_handover_set(struct vc_vm *vm, enum vc_handover_state state, struct vc_err *err)
{
    uint8_t before = vm->handover.state;
    int rc;

    vm->handover.state = (uint8_t)state;
    rc = write_slot(vm, err);
    if (rc) /* a later note must not say what nobody could rely on */
        vm->handover.state = before;
    return rc;
}

int vc_handover_get(struct vc_vm *vm, struct vc_handover *out, struct vc_err *err)
{
    uint64_t seq;
    int rc = read_record(vm, out, &seq, err);

    if (rc != VC_NOT_FOUND)
        return rc;
    *out = (struct vc_handover){.state = VC_HANDOVER_NONE};
    return 0;
}
