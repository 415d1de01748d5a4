/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* QEMU's stream through both pipelines: whatever it is, the destination QEMU gets the very bytes
 * that the source QEMU sent, with a checkpoint in common, an announced one, or none; and if both
 * hosts keep one, it is the same.
 *
 * Input: a byte of options, then the stream. */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include "base/fdio.h"
#include "dest/dest.h"
#include "hosts.h"
#include "link/link.h"
#include "net/net.h"
#include "source/source.h"

#define OPT_BASE 3u  /* vc_wire_base; 3: none, and both record */
#define OPT_DELTA 4u /* changed pages may be sent as what has changed */
#define OPT_MOVED 8u /* contents that have moved may be referred to */
#define WAIT_S 1200  /* then it hangs: much, as the machine may be busy */

struct host {
    struct vc_store *store;
    struct vc_gen *gen; /* what both hold */
    struct vc_vm *vm;   /* a VM that is only here for the present input */
};

static struct host hosts[2];
static int dest_fd;
static unsigned n_vms;

static void set_up(void)
{
    if (hosts[0].store)
        return;
    for (int i = 0; i < 2; i++) {
        char path[300];
        struct vc_vm *vm;
        struct vc_err err;

        snprintf(path, sizeof(path), "%s/%d", fuzz_dir(), i);
        hosts[i].store = fuzz_store(path);
        FUZZ_ASSERT(vc_vm_open(hosts[i].store, &fuzz_vm, VC_VM_READ, &vm, &err) == 0);
        FUZZ_ASSERT(vc_gen_open(vm, &vc_vm_generation(vm, 0)->id, &hosts[i].gen, &err) == 0);
        vc_vm_close(vm);
    }
}

static struct vc_txn *record(struct host *h)
{
    struct vc_id id = {"new VM"};
    struct vc_txn *t;
    struct vc_err err;

    vc_store_le(id.b + 8, n_vms, 8);
    FUZZ_ASSERT(vc_vm_open(h->store, &id, VC_VM_CREATE, &h->vm, &err) == 0);
    FUZZ_ASSERT(vc_vm_set_lineage(h->vm, &fuzz_lineage, &err) == 0);
    FUZZ_ASSERT(vc_txn_begin(h->vm, &id, NULL, &t, &err) == 0);
    return t;
}

static void forget(struct host *h)
{
    struct vc_err err;

    if (!h->vm)
        return;
    FUZZ_ASSERT(vc_vm_remove(h->vm, &err) == 0);
    vc_vm_close(h->vm);
    h->vm = NULL;
}

static int connect_dest(void *opaque, struct vc_err *err)
{
    (void)opaque;
    (void)err;
    return vc_steal_fd(&dest_fd);
}

static void drop_frame(void *opaque, struct vc_link_frame *f)
{
    (void)opaque;
    vc_link_frame_free(f);
}

static void wait_on(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int rc;

    do
        rc = poll(&p, 1, WAIT_S * 1000);
    while (rc < 0 && errno == EINTR); /* libFuzzer has an alarm */
    FUZZ_ASSERT(rc == 1);
}

struct ends {
    struct vc_link *links[2];
    struct vc_source *source;
    struct vc_dest *dest;
    int source_qemu[2], dest_qemu[2];
};

static void start(struct ends *e, const uint8_t *stream, size_t n, unsigned options)
{
    static const uint8_t shut[8] = {0, 1, 0, 4, 0, 0, 0, 0};
    static const struct vc_id session = {"a session"};
    unsigned base = options & OPT_BASE;
    bool keep = base > VC_WIRE_BASE_ANNOUNCE;
    struct vc_conn *a, *b;
    struct vc_err err = VC_ERR_INIT;

    base = keep ? VC_WIRE_BASE_NONE : base;
    fuzz_prefilled(stream, n, e->source_qemu);
    fuzz_prefilled(shut, sizeof(shut), e->dest_qemu);
    dest_fd = e->dest_qemu[0];
    FUZZ_ASSERT(vc_conn_pair(&a, &b, &err) == 0);
    FUZZ_ASSERT(vc_link_new(a, VC_WIRE_SOURCE, 0, &e->links[0], &err) == 0);
    FUZZ_ASSERT(vc_link_new(b, VC_WIRE_DESTINATION, 0, &e->links[1], &err) == 0);
    vc_link_set_phase(e->links[0], VC_WIRE_PHASE_STREAM);
    vc_link_set_phase(e->links[1], VC_WIRE_PHASE_STREAM);

    struct vc_dest_options d = {
        .link = e->links[1],
        .session = session,
        .lineage = fuzz_lineage,
        .base = (enum vc_wire_base)base,
        .gen = base ? hosts[1].gen : NULL,
        .txn = keep ? record(&hosts[1]) : NULL,
        .features = (options & OPT_DELTA
                         ? VC_WIRE_FEATURE_DELTA | VC_WIRE_FEATURE_RECENT | VC_WIRE_FEATURE_SHIFTED
                         : 0) |
                    (options & OPT_MOVED ? VC_WIRE_FEATURE_MOVED : 0),
        .connect = connect_dest,
        .on_frame = drop_frame,
    };
    struct vc_source_options s = {
        .qemu_fd = e->source_qemu[0],
        .delta = options & OPT_DELTA,
        .moved = options & OPT_MOVED,
        .recent = options & OPT_DELTA,
        .shifted = options & OPT_DELTA,
        .reads = true,
        .link = e->links[0],
        .session = session,
        .lineage = fuzz_lineage,
        .base = (enum vc_wire_base)base,
        .shared_gen = base == VC_WIRE_BASE_PING_PONG ? hosts[0].gen : NULL,
        .local_gen = base ? hosts[0].gen : NULL,
        .txn = keep ? record(&hosts[0]) : NULL,
        .on_frame = drop_frame,
    };
    FUZZ_ASSERT(vc_dest_start(&d, &e->dest, &err) == 0);
    FUZZ_ASSERT(vc_source_start(&s, &e->source, &err) == 0);
}

/* True: the stream has ended on both sides; false: the source has refused it. */
static bool finish(struct ends *e)
{
    struct vc_source_status s;
    struct vc_dest_status d;
    struct vc_err err = VC_ERR_INIT;

    for (;;) {
        vc_source_status(e->source, &s);
        if (s.failed || s.stream_ended)
            break;
        wait_on(vc_source_event_fd(e->source));
        vc_source_clear(e->source);
    }
    if (s.failed) {
        vc_source_error(e->source, &err);
        FUZZ_ASSERT(err.code == VC_E_NOT_QEMU);
        return false;
    }
    for (;;) {
        vc_dest_status(e->dest, &d);
        if (d.failed || d.source_eof)
            break;
        wait_on(vc_dest_event_fd(e->dest));
        vc_dest_clear(e->dest);
    }
    vc_dest_error(e->dest, &err);
    if (d.failed)
        fprintf(stderr, "destination: %s\n", err.message);
    FUZZ_ASSERT(!d.failed);
    return true;
}

static void check_output(int fd, const uint8_t *stream, size_t n)
{
    uint8_t *got = malloc(n + 1);

    FUZZ_ASSERT(got);
    FUZZ_ASSERT(n == 0 || vc_read_full(fd, got, n) == 1);
    FUZZ_ASSERT(n == 0 || !memcmp(got, stream, n));
    free(got);
}

static void commit(struct ends *e)
{
    struct vc_txn_note note = {.peer = "p"};
    struct vc_txn *a = vc_source_join(e->source), *b = vc_dest_join(e->dest);
    uint8_t roots[2][VC_ROOT_BYTES];
    struct vc_err ea = VC_ERR_INIT, eb = VC_ERR_INIT;
    int ra = a ? vc_txn_commit(a, &note, roots[0], &ea) : VC_NOT_FOUND;
    int rb = b ? vc_txn_commit(b, &note, roots[1], &eb) : VC_NOT_FOUND;

    fuzz_check_error(ra, &ea);
    fuzz_check_error(rb, &eb);
    FUZZ_ASSERT(ra == rb);
    FUZZ_ASSERT(ra || !memcmp(roots[0], roots[1], VC_ROOT_BYTES));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct vc_reader in = vc_reader(data, n);
    unsigned options = (unsigned)fuzz_number(&in, 1);
    struct vc_reader stream = fuzz_part(&in, FUZZ_SOCKET_BYTES);
    struct ends e;
    bool whole;

    set_up();
    n_vms++;
    start(&e, stream.data, stream.len, options);
    whole = finish(&e);
    if (whole)
        commit(&e);
    vc_source_free(e.source);
    vc_dest_free(e.dest);
    if (whole)
        check_output(e.dest_qemu[1], stream.data, stream.len);
    vc_link_free(e.links[0]);
    vc_link_free(e.links[1]);
    if (dest_fd >= 0)
        close(dest_fd);
    close(e.source_qemu[1]);
    close(e.dest_qemu[1]);
    forget(&hosts[0]);
    forget(&hosts[1]);
    return 0;
}
