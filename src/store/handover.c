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
#define SLOT_BYTES 1024u
#define SLOT_AT(seq) (((seq)&1) * 4096u)
#define TEXT_BYTES 256u
#define ZERO_BYTES 175u
/* No record is written so often: the number behind a larger one might be smaller. */
#define MAX_SEQ (1ull << 63)

static void encode(const struct vc_handover *h, uint64_t seq, uint8_t slot[SLOT_BYTES])
{
    struct vc_writer w = vc_writer(slot, SLOT_BYTES - VC_SHA256_BYTES);

    memset(slot, 0, SLOT_BYTES);
    vc_write_bytes(&w, magic, sizeof(magic));
    vc_write_u32(&w, VC_STORE_VERSION);
    vc_write_u32(&w, h->state);
    vc_write_u64(&w, seq);
    vc_write_bytes(&w, h->session.b, 16);
    vc_write_u64(&w, h->since_unix);
    memcpy(vc_write_reserve(&w, TEXT_BYTES), h->peer, strnlen(h->peer, TEXT_BYTES - 1));
    memcpy(vc_write_reserve(&w, TEXT_BYTES), h->socket, strnlen(h->socket, TEXT_BYTES - 1));
    vc_write_u8(&w, h->suspend);
    memcpy(vc_write_reserve(&w, TEXT_BYTES), h->tls_hostname,
           strnlen(h->tls_hostname, TEXT_BYTES - 1));
    if (!vc_sha256(slot, SLOT_BYTES - VC_SHA256_BYTES, slot + SLOT_BYTES - VC_SHA256_BYTES))
        memset(slot, 0xff, SLOT_BYTES); /* never valid */
}

/* Text filled up with NUL. */
static bool read_text(struct vc_reader *r, char text[TEXT_BYTES])
{
    size_t n;

    vc_read_copy(r, text, TEXT_BYTES);
    n = strnlen(text, TEXT_BYTES);
    return n < TEXT_BYTES && vc_is_zero(text + n, TEXT_BYTES - n);
}

/* False if magic or checksum are not right. *legal: so is the rest. */
static bool decode(const uint8_t slot[SLOT_BYTES], struct vc_handover *h, uint64_t *seq,
                   bool *legal)
{
    struct vc_reader r = vc_reader(slot, SLOT_BYTES - VC_SHA256_BYTES);
    uint8_t sum[VC_SHA256_BYTES];
    uint32_t version, state;
    uint8_t suspend;

    if (memcmp(slot, magic, sizeof(magic)) != 0 ||
        !vc_sha256(slot, SLOT_BYTES - VC_SHA256_BYTES, sum) ||
        memcmp(sum, slot + SLOT_BYTES - VC_SHA256_BYTES, sizeof(sum)) != 0)
        return false;
    memset(h, 0, sizeof(*h));
    vc_read_bytes(&r, sizeof(magic));
    version = vc_read_u32(&r);
    state = vc_read_u32(&r);
    *seq = vc_read_u64(&r);
    vc_read_copy(&r, h->session.b, 16);
    h->since_unix = vc_read_u64(&r);
    *legal = version == VC_STORE_VERSION && *seq < MAX_SEQ && state <= VC_HANDOVER_VOID &&
             read_text(&r, h->peer) && read_text(&r, h->socket);
    suspend = vc_read_u8(&r);
    *legal =
        *legal && suspend <= 1 && read_text(&r, h->tls_hostname) && vc_read_zero(&r, ZERO_BYTES);
    h->state = (uint8_t)state;
    h->suspend = suspend == 1;
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
static int write_slot(struct vc_vm *vm, struct vc_err *err)
{
    const struct vc_io *io = vm->store->io;
    uint64_t seq = vm->handover_seq + 1;
    uint8_t slot[SLOT_BYTES];
    struct iovec iov = {slot, sizeof(slot)};
    int rc;

    encode(&vm->handover, seq, slot);
    if (io->write(io, vm->handover_fd, &iov, 1, SLOT_AT(seq)) < 0)
        return vc_store_errno(err, "write", "handover");
    rc = vc_durable_sync(io, vm->handover_fd, "handover", err);
    if (!rc)
        vm->handover_seq = seq;
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

int vc_handover_begin(struct vc_vm *vm, const struct vc_handover *h, struct vc_err *err)
{
    const struct vc_io *io = vm->store->io;
    struct vc_err damage = VC_ERR_INIT;
    struct vc_handover old;
    int rc = read_record(vm, &old, &vm->handover_seq, &damage);
    bool fresh = rc != 0;

    if (vm->handover_fd >= 0)
        close(vm->handover_fd);
    vm->handover_fd = -1;
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
    rc = write_slot(vm, err);
    return rc ? rc : vc_durable_sync_dir(io, vm->dir_fd, "the VM's directory", err);
}

void vc_handover_leave_paused(struct vc_vm *vm)
{
    vm->handover.suspend = true;
}

int vc_handover_set(struct vc_vm *vm, enum vc_handover_state state, struct vc_err *err)
{
    vm->handover.state = (uint8_t)state;
    return write_slot(vm, err);
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
