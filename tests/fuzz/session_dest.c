/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A destination's session, in any mode, against a source and a QEMU that say anything: it ends; no
 * byte reaches QEMU but those of batches with the right seal, in order, on either connection; the
 * VM is continued on the source's word alone, and never once the source was told that it will not
 * be.
 *
 * Input: a byte of options; the length (1 byte) of what QEMU answers and that; then what the source
 * says (peer.h), up to three sessions, one after the other. A payload of no length is one that
 * fits: HELLO, OPEN, START, BLOCKS, REPAIRED, REKEYED, READY, COMMITTED, WORD; so are a byte for
 * OPEN, which is the mode (bit 7: without a lineage), and for WORD, which is the word. The payload
 * of a BATCH is a byte of flags, the length of its runs (2 bytes), the runs, and contents; header,
 * seal, and as much content as it takes are made for it. */

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/fdio.h"
#include "dest/batch.h"
#include "link/link.h"
#include "peer.h"
#include "session/parking.h"
#include "session/session.h"

#define OPT_STORE 1u
#define OPT_RAW 2u       /* the source's bytes as they are */
#define OPT_BASE_SHIFT 2 /* vc_wire_base of the default START */
#define OPT_DAMAGE 16u   /* pages of the checkpoint are damaged */
#define OPT_SHUT 32u     /* QEMU answers SHUT */
#define OPT_STAY 64u     /* QEMU does not close its end by itself */
#define OPT_ENDED 128u   /* whoever listens for QMP is known to have ended */

#define FLAG_SELF 1u
#define FLAG_COMPRESS 2u
#define FLAG_SPOIL 4u /* a wrong seal; the next batch takes its place */
#define FLAG_DELTA 8u /* against the pages of OLD runs; spoilt, against what they became */

#define MAX_EXPECTED FUZZ_QEMU_BYTES
#define MAX_CONTENT (256u << 10)
#define MAX_SESSIONS 3

/* What was sent on one channel. */
struct channel {
    uint64_t seq, position;
    struct vc_digest seal;
    size_t n_expected;
    bool too_much;
};

struct state {
    struct fuzz_peer peer;
    struct fuzz_qemu qemu;
    struct vc_cancel cancel;
    unsigned options;
    struct vc_ram ram;
    struct channel channels[2];
    uint64_t repair_seq; /* what the session last asked for */
    uint32_t repair_ordinal;
    uint8_t ready[48];        /* READY as the session has said it */
    bool rekeys;              /* the source has said so; likewise: */
    bool recovers, abandoned; /* what the source has said it does */
    atomic_bool may_run;      /* the word was said, or may have been */
    atomic_bool is_void;      /* the source was told that the VM will not run */
};

struct session {
    pthread_t thread;
    struct vc_dest_session o;
};

/* What QEMU may get, and what it got. */
static uint8_t expected[2][MAX_EXPECTED];

static const struct vc_id session_id = {"a session"};
static struct vc_store *store;
static struct fuzz_saved *saved;
static struct vc_gen *gen;
static struct vc_digester *pages, *seals;
static struct vc_wire_codec *codec;
static char socket_dir[300], image[600];
static int qmp_listeners[2]; /* of a process of which nothing is known, and of one that ended */

/* ---- QEMU ---- */

static void on_command(void *opaque, const char *name)
{
    struct state *st = opaque;

    if (strcmp(name, "cont") != 0)
        return;
    FUZZ_ASSERT(atomic_load(&st->may_run));
    FUZZ_ASSERT(!atomic_load(&st->is_void));
}

static void set_up_qemu(struct state *st, struct vc_reader answer)
{
    static const uint8_t shut[8] = {0, 1, 0, 4, 0, 0, 0, 0};
    static uint8_t all[256 + sizeof(shut)];
    struct fuzz_qemu *q = &st->qemu;

    memcpy(all, answer.data, answer.len);
    memcpy(all + answer.len, shut, sizeof(shut));
    fuzz_qemu_init(q, false);
    q->answer = vc_reader(all, answer.len + (st->options & OPT_SHUT ? sizeof(shut) : 0));
    q->ends_answer = st->options & OPT_SHUT && !(st->options & OPT_STAY);
    q->qmp_listener = qmp_listeners[!!(st->options & OPT_ENDED)];
    q->on_command = on_command;
    q->opaque = st;
}

/* Its sockets, for one session: that of a proxy's migration, and QMP. */
static void make_sockets(struct state *st)
{
    static const char *const from[] = {"qmp", "qmp-ended"};
    char path[400], real[400];

    snprintf(path, sizeof(path), "%s/vm.sock", socket_dir);
    unlink(path);
    if (st->qemu.listener >= 0)
        close(st->qemu.listener);
    st->qemu.listener = vc_unix_listen(path, 0600, 4);
    snprintf(path, sizeof(path), "%s/vm.qmp", socket_dir);
    snprintf(real, sizeof(real), "%s/%s", fuzz_dir(), from[!!(st->options & OPT_ENDED)]);
    unlink(path);
    FUZZ_ASSERT(st->qemu.listener >= 0 && link(real, path) == 0);
}

/* ---- batches that fit ---- */

/* What batches make use of, of all that was agreed on. */
#define FEATURES (VC_WIRE_FEATURE_DELTA | VC_WIRE_FEATURE_MOVED | VC_WIRE_FEATURE_SHIFTED)

/* Bytes of the stream that the runs stand for, and of content that they need. */
static void sum_up(const struct vc_ram *ram, struct vc_reader runs, uint64_t *stream,
                   uint64_t *content)
{
    struct vc_wire_cursor c = {0};
    struct vc_wire_run r;
    struct vc_err err;

    *stream = *content = 0;
    while (vc_wire_run_decode(&runs, &c, ram, FEATURES, &r, &err) == 0) {
        bool whole = vc_wire_run_is_reference(&r) || r.kind == VC_RUN_DATA || r.as_page;

        if (r.kind == VC_RUN_INVALIDATE)
            continue;
        if (r.kind == VC_RUN_OPAQUE) {
            *stream += r.count;
            *content += r.count;
            continue;
        }
        *stream += r.count * (whole ? 8 + ram->page_bytes : 9) +
                   (r.named ? 1 + strlen(ram->blocks[r.block].name) : 0);
        if (r.kind == VC_RUN_DATA)
            *content += r.count * ram->page_bytes;
    }
}

/* Reads pages of the checkpoint. False: it does not hold them. */
static bool read_base(const struct state *st, const struct vc_wire_run *run, uint8_t *to)
{
    uint16_t named;
    struct vc_page page = vc_wire_run_base_page(run, &named);
    int block = vc_ram_find(vc_gen_ram(gen), st->ram.blocks[named].name);
    struct vc_err err;

    if (block < 0 || st->ram.page_bytes != FUZZ_PAGE_BYTES ||
        page.n + run->count > vc_ram_block_pages(vc_gen_ram(gen), (uint32_t)block))
        return false;
    for (uint64_t k = 0; k < run->count; k++)
        if (vc_gen_lookup(gen, (uint32_t)block, vc_page(page.n + k), NULL) != VC_PAGE_HELD)
            return false;
    return vc_gen_read(gen, (uint32_t)block, page, run->count, to, &err) == 0;
}

/* What a delta of these runs is made against; zeroes where the checkpoint does not hold it. Of no
 * length: too much. */
static size_t read_old(const struct state *st, struct vc_reader runs, uint8_t *to, size_t cap)
{
    struct vc_wire_cursor c = {0};
    struct vc_wire_run r;
    struct vc_err err;
    size_t n = 0;

    while (st->ram.n_blocks && vc_wire_run_decode(&runs, &c, &st->ram, FEATURES, &r, &err) == 0) {
        uint64_t bytes = r.count * st->ram.page_bytes;

        if (!r.old)
            continue;
        if (bytes > cap - n)
            return 0;
        if (!read_base(st, &r, to + n))
            memset(to + n, 0, bytes);
        n += bytes;
    }
    return n;
}

/* Fills in pages of the checkpoint and all digests, as the session has to. */
static bool resolve(const struct state *st, struct vc_dst_batch *b)
{
    struct vc_err err;

    for (uint32_t i = 0; i < b->n_runs; i++) {
        const struct vc_dst_run *run = &b->runs[i];

        if (!vc_wire_run_is_reference(&run->run) && run->run.kind != VC_RUN_DATA)
            continue;
        if (vc_wire_run_is_reference(&run->run) &&
            !read_base(st, &run->run, (uint8_t *)b->pages[run->first].content))
            return false;
        for (uint64_t k = 0; k < run->run.count; k++) {
            struct vc_dst_page *p = &b->pages[run->first + k];

            FUZZ_ASSERT(
                vc_digest_pages(pages, &p->content, 1, st->ram.page_bytes, &p->digest, &err) == 0);
        }
    }
    return true;
}

static void expect(struct channel *c, uint8_t *to, const struct vc_dst_batch *b)
{
    for (size_t i = 0; i < b->n_iov; i++) {
        if (b->iov[i].iov_len > MAX_EXPECTED - c->n_expected) {
            c->too_much = true;
            return;
        }
        memcpy(to + c->n_expected, b->iov[i].iov_base, b->iov[i].iov_len);
        c->n_expected += b->iov[i].iov_len;
    }
}

/* The blocks that the runs of a channel may speak of. */
static const struct vc_ram *ram_of(const struct state *st, unsigned channel)
{
    return channel == 0 && st->ram.n_blocks ? &st->ram : NULL;
}

/* Seals the batch that is in `payload`. @old: what it was made against, if it is a delta. */
static void seal(struct state *st, unsigned channel, uint8_t *payload, size_t n,
                 struct vc_wire_batch *h, const struct vc_wire_prefix *old, bool spoil)
{
    struct channel *c = &st->channels[channel];
    struct vc_link_frame *f = vc_link_frame_new(VC_WIRE_BATCH, 0, (uint32_t)n);
    struct vc_dst_batch *b = vc_dst_batch_new();
    struct vc_digest sealed;
    struct vc_err err;

    FUZZ_ASSERT(f && b);
    memcpy(f->payload, payload, n);
    if (vc_dst_batch_parse(b, f, ram_of(st, channel), FEATURES, codec, &err) == 0 &&
        (h->codec != VC_WIRE_CODEC_DELTA ||
         vc_dst_batch_undelta(b, codec, old->p, old->bytes, &err) == 0) &&
        resolve(st, b)) {
        FUZZ_ASSERT(vc_dst_batch_seal(b, seals, &c->seal, &sealed, &err) == 0);
        memcpy(h->seal, sealed.b, sizeof(h->seal));
        h->seal[0] ^= spoil;
        vc_wire_batch_encode(payload, h);
        if (!spoil) {
            c->seal = sealed;
            c->seq++;
            c->position += h->stream_bytes;
            expect(c, expected[channel], b);
        }
    }
    vc_dst_batch_unref(b);
}

/* Puts the body into the frame as the flags say. Returns its length there. */
static size_t pack(struct vc_wire_batch *h, unsigned flags, const struct vc_wire_prefix *old,
                   const uint8_t *body, uint8_t *out, size_t cap)
{
    size_t runs = old->bytes ? h->runs_bytes : 0, n = 0;

    if (flags & (FLAG_COMPRESS | FLAG_DELTA))
        n = vc_wire_body_compress(codec, body + runs, h->body_bytes - runs, old->bytes ? old : NULL,
                                  out + runs, cap - runs);
    h->codec = !n ? VC_WIRE_CODEC_NONE : old->bytes ? VC_WIRE_CODEC_DELTA : VC_WIRE_CODEC_ZSTD;
    memcpy(out, body, n ? runs : h->body_bytes);
    return n ? runs + n : h->body_bytes;
}

static void send_batch(struct state *st, unsigned channel, struct vc_reader in)
{
    static uint8_t old_pages[MAX_CONTENT];
    struct vc_wire_prefix old = {.p = old_pages};
    unsigned flags = (unsigned)fuzz_number(&in, 1);
    struct vc_reader runs = fuzz_part(&in, (size_t)fuzz_number(&in, 2)), rest = fuzz_rest(&in);
    uint64_t stream, content;
    struct vc_wire_batch h = {.seq = st->channels[channel].seq,
                              .position = st->channels[channel].position};
    uint8_t *body, *payload;
    size_t cap, n;

    sum_up(ram_of(st, channel), runs, &stream, &content);
    content = VC_MIN(content, (uint64_t)MAX_CONTENT);
    h.stream_bytes = (uint32_t)stream;
    h.runs_bytes = (uint32_t)runs.len;
    h.body_bytes = (uint32_t)(runs.len + content);
    h.flags = flags & FLAG_SELF;
    cap = VC_WIRE_BATCH_HEADER_BYTES + vc_wire_body_bound(h.body_bytes);
    body = calloc(1, h.body_bytes + 1u);
    payload = malloc(cap);
    FUZZ_ASSERT(body && payload);
    memcpy(body, runs.data, runs.len);
    for (size_t i = 0; i < content && rest.len; i++)
        body[runs.len + i] = rest.data[i % rest.len];
    if (flags & FLAG_DELTA)
        old.bytes = read_old(st, runs, old_pages, sizeof(old_pages));
    if (flags & FLAG_SPOIL)
        memcpy(old_pages, body + runs.len, VC_MIN(old.bytes, content));
    n = pack(&h, flags, &old, body, payload + VC_WIRE_BATCH_HEADER_BYTES,
             cap - VC_WIRE_BATCH_HEADER_BYTES);
    vc_wire_batch_encode(payload, &h);
    seal(st, channel, payload, VC_WIRE_BATCH_HEADER_BYTES + n, &h, &old, flags & FLAG_SPOIL);
    fuzz_send(&st->peer, (uint8_t)(VC_WIRE_BATCH | (channel ? FUZZ_CHANNEL : 0)), payload,
              VC_WIRE_BATCH_HEADER_BYTES + n);
    free(body);
    free(payload);
}

/* ---- the source ---- */

static void on_frame(void *opaque, uint8_t type, const uint8_t *p, size_t n)
{
    struct state *st = opaque;

    if (type == VC_WIRE_NEVER_RAN)
        atomic_store(&st->is_void, true);
    if (type == VC_WIRE_READY && n == sizeof(st->ready))
        memcpy(st->ready, p, sizeof(st->ready));
    if (type != VC_WIRE_REPAIR || n < 16)
        return;
    st->repair_seq = vc_load_le(p, 8);
    st->repair_ordinal = (uint32_t)vc_load_le(p + 12, 4);
}

/* The payload that a short one stands for. */
static void defaults(struct state *st, uint8_t type, struct vc_reader in, struct vc_writer *w)
{
    struct vc_wire_open open = {.session = session_id,
                                .vm = fuzz_vm,
                                .mode = in.len ? in.data[0] & 0x7f : VC_WIRE_MODE_PROXY,
                                .name = "vm",
                                .window_bytes = 1u << 20};
    struct vc_wire_start start = {
        .lineage = {.id = fuzz_lineage.id, .algo = fuzz_lineage.algo},
        .base = (uint8_t)(st->options >> OPT_BASE_SHIFT & 3),
        .has_key = true,
        .generation = {"generation new"},
    };
    struct vc_wire_committed committed = {.generation = start.generation, .committed = true};
    const struct vc_wire_range dropped = {.page = vc_page(1), .count = 1};
    struct vc_ram ram;

    switch (type) {
    case VC_WIRE_HELLO:
        w->len = fuzz_hello(w->data, w->cap, VC_WIRE_SOURCE);
        break;
    case VC_WIRE_OPEN:
        open.has_lineage = !in.len || !(in.data[0] & 0x80);
        open.lineage = start.lineage;
        if (start.base == VC_WIRE_BASE_PING_PONG) {
            open.n_generations = 1;
            open.generations[0].id = vc_gen_info(gen)->id;
            memcpy(open.generations[0].root, vc_gen_info(gen)->root, VC_WIRE_ROOT_BYTES);
        }
        vc_wire_open_encode(w, &open);
        break;
    case VC_WIRE_START:
        memcpy(start.key, fuzz_lineage.key, sizeof(start.key));
        start.lineage.id.b[0] ^= st->rekeys;
        start.key[0] ^= st->rekeys;
        vc_wire_start_encode(w, &start);
        break;
    case VC_WIRE_BLOCKS:
        fuzz_ram(&ram);
        vc_wire_blocks_encode(w, &ram);
        break;
    case VC_WIRE_REPAIRED:
        vc_write_u64(w, st->repair_seq);
        vc_write_u32(w, 1);
        vc_write_u32(w, st->repair_ordinal);
        fuzz_page(vc_write_reserve(w, FUZZ_PAGE_BYTES), 1, 1);
        break;
    case VC_WIRE_REKEYING:
        vc_write_u64(w, 1);
        break;
    case VC_WIRE_REKEYED:
        vc_wire_rekeyed_encode(w, &dropped, 1);
        break;
    case VC_WIRE_READY:
        vc_write_bytes(w, st->ready, sizeof(st->ready));
        break;
    case VC_WIRE_COMMITTED:
        vc_wire_committed_encode(w, &committed);
        break;
    case VC_WIRE_WORD:
        w->len = fuzz_word(w->data, w->cap, in, &session_id);
        break;
    default:
        break;
    }
}

static bool is_short(uint8_t type, const struct vc_reader *payload)
{
    return !payload->len || (payload->len == 1 && (type == VC_WIRE_OPEN || type == VC_WIRE_WORD));
}

/* The record that the store begins with is of another migration, and would refuse it. */
static void settle_record(void)
{
    struct vc_handover h = {.state = VC_HANDOVER_SETTLED};
    struct vc_err err;
    struct vc_vm *vm;

    if (!vc_vm_open(store, &fuzz_vm, VC_VM_WRITE, &vm, &err)) {
        if (vc_handover_begin(vm, &h, &err))
            fuzz_check_error(err.code, &err);
        vc_vm_close(vm);
    }
}

/* Before it is sent: what it lets the session do. */
static void note(struct state *st, uint8_t type, const struct vc_reader *payload)
{
    struct vc_err err;

    if (type == FUZZ_BYTES || (type == VC_WIRE_WORD && payload->data[0] == VC_WIRE_WORD_CONTINUE))
        atomic_store(&st->may_run, true);
    if (type == FUZZ_BYTES || (type == VC_WIRE_WORD && payload->data[0] == VC_WIRE_WORD_ABANDON))
        st->abandoned = true;
    if (type == VC_WIRE_OPEN && payload->len > 32)
        st->recovers = payload->data[32] == VC_WIRE_MODE_RECOVER;
    if (type == VC_WIRE_OPEN && payload->len > 32)
        st->rekeys = payload->data[32] == VC_WIRE_MODE_REKEY;
    if (st->rekeys && type == VC_WIRE_OPEN && st->options & OPT_STORE)
        settle_record();
    if (type == VC_WIRE_OPEN && payload->len > 32 && payload->data[32] != VC_WIRE_MODE_WORD)
        atomic_store(&st->is_void, false); /* another migration */
    if (type == VC_WIRE_BLOCKS && !st->ram.n_blocks &&
        vc_wire_blocks_decode(payload->data, payload->len, &st->ram, &err))
        st->ram.n_blocks = 0;
}

static void play_element(struct state *st, uint8_t type, struct vc_reader payload)
{
    uint8_t buf[2048];
    struct vc_writer w = vc_writer(buf, sizeof(buf));

    if (type == FUZZ_AWAIT) {
        fuzz_await(&st->peer, payload.len ? payload.data[0] : 0);
        return;
    }
    if (type == FUZZ_QEMU) {
        fuzz_qemu_script(&st->qemu, payload);
        return;
    }
    if ((type & 0x7f) == VC_WIRE_BATCH) {
        send_batch(st, type & FUZZ_CHANNEL ? 1 : 0, payload);
        return;
    }
    if (is_short(type, &payload)) {
        defaults(st, type, payload, &w);
        if (w.len)
            payload = vc_reader(buf, w.len);
    }
    note(st, type, &payload);
    fuzz_send(&st->peer, type, payload.data, payload.len);
}

/* Until the end of the input (false), or of the session. */
static bool play(struct state *st, struct vc_reader *in)
{
    struct vc_reader payload;
    uint8_t type;

    for (int i = 0; i < FUZZ_MAX_ELEMENTS && fuzz_element(in, &type, &payload); i++) {
        if (type == FUZZ_AGAIN)
            return true;
        if (type == FUZZ_CANCEL)
            vc_cancel_now(&st->cancel);
        else
            play_element(st, type, payload);
    }
    return false;
}

/* ---- the whole ---- */

static void *run_session(void *arg)
{
    struct session *s = arg;
    struct vc_session_result result;
    struct vc_err err = VC_ERR_INIT;
    int rc = vc_session_dest(&s->o, &result, &err);

    fuzz_check_error(rc, &err);
    if (getenv("FUZZ_VERBOSE"))
        fprintf(stderr, "phase %u, code %d: %s\n", result.phase, rc, err.message);
    FUZZ_ASSERT(rc <= 0 && result.phase <= VC_PHASE_DONE);
    /* QEMU serves one client at a time, and the last one was ours. */
    FUZZ_ASSERT(!rc || !strstr(err.message, "sent no QMP greeting"));
    return NULL;
}

static void check_output(const struct state *st)
{
    for (unsigned i = 0; i < 2; i++) {
        const struct channel *c = &st->channels[i];
        size_t n = st->qemu.n_got[i];

        if (c->too_much)
            continue;
        FUZZ_ASSERT(n <= c->n_expected);
        FUZZ_ASSERT(n == 0 || !memcmp(st->qemu.got[i], expected[i], n));
    }
}

/* A peer may have any VM but those whose names begin so. */
static int may_reach(void *opaque, const struct vc_conn *peer, const struct vc_reach *what,
                     struct vc_err *err)
{
    (void)opaque;
    (void)peer;
    return what->name && what->name[0] == '-'
               ? vc_err_set(err, VC_E_REFUSED, "'%.40s' is not for anybody", what->name)
               : 0;
}

static void damage(void)
{
    int fd = open(image, O_WRONLY | O_CLOEXEC);

    FUZZ_ASSERT(fd >= 0 && pwrite(fd, "?", 1, FUZZ_PAGE_BYTES + 5) == 1);
    close(fd);
}

static void find_image(void)
{
    char dir[400], uuid[VC_ID_TEXT_BYTES];
    DIR *d;
    struct dirent *e;

    vc_id_format(&fuzz_vm, uuid);
    snprintf(dir, sizeof(dir), "%s/vms/%s", fuzz_dir(), uuid);
    d = opendir(dir);
    while (d && (e = readdir(d)))
        if (strstr(e->d_name, ".image"))
            snprintf(image, sizeof(image), "%s/%.100s", dir, e->d_name);
    FUZZ_ASSERT(d && image[0]);
    closedir(d);
}

static void set_up(void)
{
    struct vc_vm *vm;
    struct vc_err err;
    char path[400];

    if (store)
        return;
    store = fuzz_store(fuzz_dir());
    saved = fuzz_save(fuzz_dir());
    find_image();
    FUZZ_ASSERT(vc_vm_open(store, &fuzz_vm, VC_VM_READ, &vm, &err) == 0);
    FUZZ_ASSERT(vc_gen_open(vm, &vc_vm_generation(vm, 0)->id, &gen, &err) == 0);
    vc_vm_close(vm);
    snprintf(socket_dir, sizeof(socket_dir), "%s/sockets", fuzz_dir());
    FUZZ_ASSERT(mkdir(socket_dir, 0700) == 0);
    snprintf(path, sizeof(path), "%s/qmp", fuzz_dir());
    qmp_listeners[0] = fuzz_qemu_listen(path, false);
    snprintf(path, sizeof(path), "%s/qmp-ended", fuzz_dir());
    qmp_listeners[1] = fuzz_qemu_listen(path, true);
    FUZZ_ASSERT(vc_wire_codec_new(1, &codec, &err) == 0);
    FUZZ_ASSERT(
        vc_digester_new(fuzz_lineage.algo, VC_DIGEST_PAGE, fuzz_lineage.key, &pages, &err) == 0);
    FUZZ_ASSERT(
        vc_digester_new(fuzz_lineage.algo, VC_DIGEST_SEAL, fuzz_lineage.key, &seals, &err) == 0);
}

/* The seals that the two channels begin with. */
static void first_seals(struct state *st)
{
    static const uint8_t number[] = {1, 0};
    struct vc_err err;

    for (unsigned i = 0; i < 2; i++) {
        st->channels[i] = (struct channel){.seq = 1};
        FUZZ_ASSERT(vc_digest_begin(seals, &err) == 0);
        FUZZ_ASSERT(vc_digest_update(seals, session_id.b, sizeof(session_id.b), &err) == 0);
        FUZZ_ASSERT(!i || vc_digest_update(seals, number, sizeof(number), &err) == 0);
        FUZZ_ASSERT(vc_digest_end(seals, &st->channels[i].seal, &err) == 0);
    }
}

/* The state of the VM's record. */
static unsigned record(const struct state *st)
{
    struct vc_handover h = {0};
    struct vc_err err;
    struct vc_vm *vm;

    if (!(st->options & OPT_STORE))
        return VC_HANDOVER_NONE;
    if (vc_vm_open(store, &fuzz_vm, VC_VM_READ, &vm, &err) == 0) {
        if (vc_handover_get(vm, &h, &err))
            h.state = VC_HANDOVER_NONE;
        vc_vm_close(vm);
    }
    return h.state;
}

/* Runs one session. Returns whether there is another one in the input. */
static bool one_session(struct state *st, struct vc_parking *parking, struct vc_reader *in)
{
    struct session s;
    struct vc_conn *conn;
    struct vc_err err = VC_ERR_INIT;
    struct vc_reader rest;
    bool again = false;
    unsigned before = record(st);
    int ends[2];

    st->recovers = st->abandoned = false;
    first_seals(st);
    st->ram.n_blocks = 0;
    make_sockets(st);
    FUZZ_ASSERT(vc_cancel_init(&st->cancel, &err) == 0);
    if (!(st->options & OPT_RAW))
        fuzz_prelude(in, &st->qemu);
    fuzz_qemu_start(&st->qemu);
    FUZZ_ASSERT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    FUZZ_ASSERT(vc_conn_from_fds(ends[0], ends[0], VC_CONN_LOCAL, "fuzz", &conn, &err) == 0);
    st->peer = (struct fuzz_peer){.fd = ends[1], .on_frame = on_frame, .opaque = st};
    s.o = (struct vc_dest_session){
        .store = st->options & OPT_STORE ? store : NULL,
        .log = &fuzz_log,
        .cancel = &st->cancel,
        .conn = conn,
        .parking = parking,
        .socket_dir = socket_dir,
        .may_reach = may_reach,
    };
    FUZZ_ASSERT(pthread_create(&s.thread, NULL, run_session, &s) == 0);
    if (st->options & OPT_RAW) {
        rest = fuzz_rest(in);
        if (vc_write_full(ends[1], rest.data, rest.len)) {
            /* The session is over. */
        }
    } else {
        again = play(st, in);
    }
    fuzz_hang_up(&st->peer);
    pthread_join(s.thread, NULL);
    fuzz_qemu_stop(&st->qemu);
    check_output(st);
    /* A recovery that fails is no reason to think that the VM will never run here. */
    if (st->recovers && !st->abandoned && before == VC_HANDOVER_ARRIVING)
        FUZZ_ASSERT(record(st) != VC_HANDOVER_VOID || atomic_load(&st->is_void));
    vc_cancel_fini(&st->cancel);
    close(ends[1]);
    return again;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct state st;
    struct vc_reader in = vc_reader(data, n), answer;
    struct vc_parking *parking;

    set_up();
    st.options = (unsigned)fuzz_number(&in, 1);
    st.repair_seq = st.repair_ordinal = 0;
    atomic_store(&st.may_run, st.options & OPT_RAW);
    atomic_store(&st.is_void, false);
    answer = fuzz_part(&in, (size_t)fuzz_number(&in, 1));
    if (st.options & OPT_STORE)
        fuzz_restore(saved);
    if (st.options & OPT_STORE && st.options & OPT_DAMAGE)
        damage();
    fuzz_seed_random(4);
    set_up_qemu(&st, answer);
    parking = vc_parking_new();
    FUZZ_ASSERT(parking);
    for (int i = 0; one_session(&st, parking, &in) && i < MAX_SESSIONS - 1; i++) {
        /* The next one. */
    }
    vc_parking_free(parking);
    fuzz_qemu_fini(&st.qemu);
    return 0;
}
