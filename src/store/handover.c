/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/bytes.h"
#include "base/durable.h"
#include "base/fdio.h"
#include "store/internal.h"

/* The handover record: docs/formats/store.md section 6. Two slots written in turn, each with its
 * checksum and a sequence number: a torn write leaves the other one. The file has its full length
 * from the start, so that a change of state is one overwrite and no journal commit. */

#define SLOT_BYTES 1024u

static void encode(const struct vc_handover *h, uint64_t seq, uint8_t slot[SLOT_BYTES])
{
    struct vc_writer w = vc_writer(slot, SLOT_BYTES - VC_SHA256_BYTES);

    memset(slot, 0, SLOT_BYTES);
    vc_write_u64(&w, seq);
    vc_write_u8(&w, h->state);
    vc_write_bytes(&w, h->session.b, 16);
    vc_write_u64(&w, h->since_unix);
    vc_write_str8(&w, h->peer);
    vc_write_str8(&w, h->socket);
    vc_write_u8(&w, h->suspend);
    if (!vc_sha256(slot, SLOT_BYTES - VC_SHA256_BYTES, slot + SLOT_BYTES - VC_SHA256_BYTES))
        memset(slot, 0xff, SLOT_BYTES); /* never valid */
}

/* False if the slot is not intact. */
static bool decode(const uint8_t slot[SLOT_BYTES], struct vc_handover *h, uint64_t *seq)
{
    struct vc_reader r = vc_reader(slot, SLOT_BYTES - VC_SHA256_BYTES);
    uint8_t sum[VC_SHA256_BYTES];

    if (!vc_sha256(slot, SLOT_BYTES - VC_SHA256_BYTES, sum) ||
        memcmp(sum, slot + SLOT_BYTES - VC_SHA256_BYTES, sizeof(sum)) != 0)
        return false;
    *seq = vc_read_u64(&r);
    h->state = vc_read_u8(&r);
    vc_read_copy(&r, h->session.b, 16);
    h->since_unix = vc_read_u64(&r);
    vc_read_str8(&r, h->peer);
    vc_read_str8(&r, h->socket);
    h->suspend = vc_read_u8(&r);
    return !r.failed && h->state <= VC_HANDOVER_VOID;
}

/* 0, VC_NOT_FOUND (no record yet), VC_E_CORRUPT. */
static int read_record(struct vc_vm *vm, struct vc_handover *h, uint64_t *seq, struct vc_err *err)
{
    vc_auto_close int fd = openat(vm->dir_fd, "handover", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    uint8_t slots[2 * SLOT_BYTES];
    bool found = false;

    if (fd < 0)
        return errno == ENOENT ? VC_NOT_FOUND : vc_store_errno(err, "open", "handover");
    if (vc_pread_full(fd, slots, sizeof(slots), 0) == 1) {
        for (int i = 0; i < 2; i++) {
            struct vc_handover one;
            uint64_t n;

            if (!decode(slots + (size_t)i * SLOT_BYTES, &one, &n) || (found && n < *seq))
                continue;
            *h = one;
            *seq = n;
            found = true;
        }
    }
    return found
               ? 0
               : vc_err_set_hint(err, VC_E_CORRUPT, "look at both hosts which of them runs the VM",
                                 "the record of the VM's handover is damaged");
}

static int write_slot(struct vc_vm *vm, struct vc_err *err)
{
    uint8_t slot[SLOT_BYTES];
    struct iovec iov = {slot, sizeof(slot)};

    vm->handover_seq++;
    encode(&vm->handover, vm->handover_seq, slot);
    if (vc_pwritev_full(vm->handover_fd, &iov, 1, (vm->handover_seq & 1) * SLOT_BYTES) < 0)
        return vc_store_errno(err, "write", "handover");
    return vc_durable_sync(vm->handover_fd, "handover", err);
}

int vc_handover_begin(struct vc_vm *vm, const struct vc_handover *h, struct vc_err *err)
{
    static const uint8_t zeroes[2 * SLOT_BYTES];
    struct vc_handover old;
    uint64_t seq = 0;
    int rc = read_record(vm, &old, &seq, err);

    if (vm->handover_fd >= 0)
        close(vm->handover_fd);
    vm->handover_fd =
        openat(vm->dir_fd, "handover", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (vm->handover_fd < 0)
        return vc_store_errno(err, "create", "handover");
    if (rc && vc_write_full(vm->handover_fd, zeroes, sizeof(zeroes)) < 0)
        return vc_store_errno(err, "write", "handover");
    vm->handover_seq = seq;
    vm->handover = *h;
    rc = write_slot(vm, err);
    return rc ? rc : vc_durable_sync_dir(vm->dir_fd, "the VM's directory", err);
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
