/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <sys/socket.h>

#include "damage.h"

#include "net/net.h"
#include "wire/wire.h"

/* Damage to a word that is repeated after its migration has lost it (mode 3), and to the answer.
 * Neither side has a QEMU any more, so that the records alone decide; whatever is damaged, no
 * record says what is not so, and the next repetition settles it. */

#define WORD_VISITS 32u

struct word_attack {
    uint8_t type; /* 0: none */
    bool to_dest, cut, done;
    uint64_t numbers;
};

/* Numbers for the thread of one direction. */
static uint64_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 33;
}

static size_t attack_word(struct filter *f, bool to_dest, uint8_t *frame, size_t n)
{
    struct word_attack *a = f->opaque;
    unsigned bits;

    if (to_dest != a->to_dest || a->done ||
        (frame_type(frame) != a->type &&
         (a->type != VC_WIRE_WORD_DONE || frame_type(frame) != VC_WIRE_NEVER_RAN)))
        return n;
    a->done = true;
    if (a->cut)
        return next(&a->numbers) % n;
    bits = next(&a->numbers) % 4 ? 1 : 2 + (unsigned)(next(&a->numbers) % 3);
    for (unsigned i = 0; i < bits; i++)
        frame[next(&a->numbers) % n] ^= (uint8_t)(1u << next(&a->numbers) % 8);
    return n;
}

/* ---- records ---- */

static const struct vc_id session = {"the session's id"};

static void set_record(struct lab *lab, int host, enum vc_handover_state state)
{
    struct vc_handover h = {.state = (uint8_t)state, .session = session, .peer = "the other host"};
    struct vc_vm *vm = lab_open_vm(lab, host, VC_VM_WRITE);
    struct vc_err err;

    assert_true(vc_process_read(getpid(), &h.qemu));
    h.qemu.boot.b[0] ^= 1; /* it has ended */

    snprintf(h.socket, sizeof(h.socket), "%s/no-such-qemu", lab->dir);
    assert_int_equal(vc_handover_begin(vm, &h, &err), 0);
    vc_vm_close(vm);
}

static enum vc_handover_state record_of(struct lab *lab, int host)
{
    struct vc_vm *vm = lab_open_vm(lab, host, VC_VM_READ);
    struct vc_handover h;
    struct vc_err err;

    assert_int_equal(vc_handover_get(vm, &h, &err), 0);
    vc_vm_close(vm);
    return (enum vc_handover_state)h.state;
}

/* ---- the session ---- */

struct answerer {
    struct lab *lab;
    struct vc_conn *conn;
    struct vc_session_result result;
    struct vc_err err;
    int rc;
};

static void *answer(void *arg)
{
    struct answerer *a = arg;
    struct vc_dest_session o = {
        .store = a->lab->host[0].store,
        .conn = a->conn,
        .dead_peer_ms = 500,
        .socket_dir = a->lab->dir,
    };

    a->rc = vc_session_dest(&o, &a->result, &a->err);
    return NULL;
}

/* Host 1 repeats its word to host 0. */
static int repeat_word(struct lab *lab, struct word_attack *attack, struct vc_err *err)
{
    struct filter f = {.on_frame = attack_word, .opaque = attack};
    struct answerer a = {.lab = lab};
    struct vc_conn *conn;
    pthread_t thread;
    int ends[2], rc;

    filter_start(&f, &ends[0], &ends[1]);
    assert_int_equal(vc_conn_from_fds(ends[0], ends[0], VC_CONN_LOCAL, "dest", &conn, err), 0);
    assert_int_equal(vc_conn_from_fds(ends[1], ends[1], VC_CONN_LOCAL, "source", &a.conn, err), 0);
    assert_int_equal(pthread_create(&thread, NULL, answer, &a), 0);
    *err = VC_ERR_INIT;
    rc = vc_session_repeat_word(
        &(struct vc_settle_options){.store = lab->host[1].store, .vm = &lab_vm_id}, &session, conn,
        err);
    pthread_join(thread, NULL);
    filter_join(&f);
    return rc;
}

/* @there: what the destination's record says, and must say ever after. */
static void try_word(struct lab *lab, enum vc_handover_state there, struct word_attack *attack,
                     const char *kind)
{
    struct word_attack none = {0};
    enum vc_handover_state here;
    struct vc_err err;
    int rc;

    lab_restore(lab, lab->kept);
    set_record(lab, 0, there);
    set_record(lab, 1, VC_HANDOVER_LEFT);
    rc = repeat_word(lab, attack, &err);
    here = record_of(lab, 1);
    assert_true(attack->done);
    assert_int_equal(record_of(lab, 0), there);
    assert_int_equal(here, rc ? VC_HANDOVER_LEFT : VC_HANDOVER_SETTLED);
    /* Where the VM never ran, and its own QEMU is gone, nobody can settle it but the user. */
    assert_true(rc < 0 || there == VC_HANDOVER_SETTLED);
    tally(WIRE, kind, 1, rc ? FAILED : INTACT);
    if (rc) {
        assert_string_not_equal(err.message, "");
        rc = repeat_word(lab, &none, &err);
        assert_int_equal(rc, there == VC_HANDOVER_SETTLED ? 0 : VC_E_UNSETTLED);
        assert_int_equal(record_of(lab, 0), there);
    }
}

void a_damaged_word_settles_nothing_that_is_not_so(void **state)
{
    static const struct {
        const char *kind;
        uint8_t type;
        bool to_dest;
    } frames[] = {{"OPEN of a word", VC_WIRE_OPEN, true},
                  {"WORD", VC_WIRE_WORD, true},
                  {"WORD_DONE", VC_WIRE_WORD_DONE, false}};

    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(frames); i++)
        for (unsigned k = 0; k < lab_share(the_lab, WORD_VISITS); k++) {
            struct word_attack attack = {
                .type = frames[i].type,
                .to_dest = frames[i].to_dest,
                .cut = k % 4 == 3,
                .numbers = lab_rng(),
            };

            try_word(the_lab, k % 2 ? VC_HANDOVER_VOID : VC_HANDOVER_SETTLED, &attack,
                     frames[i].kind);
        }
}
