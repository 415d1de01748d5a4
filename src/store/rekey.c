/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>

#include "base/durable.h"
#include "store/forget.h"

/* Theory of operation
 *
 * Re-keying gives a generation another key: each page is read, compared with its digest under the
 * old key, and digested under the new one, in the index as it was read into memory. The pages stay
 * where they are; what is new on disk is one index and the manifest that refers to it, which also
 * has the new key. As with folding nothing is locked while pages are read, so that a migration need
 * not wait: it wins, and the work was in vain. Two that re-key the same checkpoint are kept apart
 * by a lock on its index file. */

#define CHUNK_PAGES 64

struct vc_rekey {
    struct vc_store *store;
    struct vc_id uuid;
    struct vc_vm *reader; /* without the lock */
    struct vc_vm *vm;     /* locked; NULL: not prepared */
    struct vc_gen *gen;   /* its index becomes the new one, in memory */
    struct vc_lineage old, fresh;
    int claim; /* the index file, locked against another re-keying */
    struct vc_dropped *dropped;
    size_t n_dropped, cap_dropped;
    bool too_many; /* that list is not all */
    uint64_t n_pages_dropped;
    struct vc_tmp tmp;
    struct vc_id file; /* the new index */
};

static bool is_settled(const struct vc_handover *h)
{
    return h->state == VC_HANDOVER_NONE || h->state == VC_HANDOVER_SETTLED ||
           h->state == VC_HANDOVER_VOID;
}

static int check_settled(struct vc_vm *vm, struct vc_err *err)
{
    struct vc_handover h;
    int rc = vc_handover_get(vm, &h, err);

    if (rc || is_settled(&h))
        return rc;
    return vc_err_set_hint(err, VC_E_UNSETTLED, "wait for its end, or see `vecycle resolve`",
                           "a migration of the VM is under way, or not settled");
}

/* ---- beginning ---- */

static int claim(struct vc_rekey *r, struct vc_err *err)
{
    const struct vc_io *io = r->store->io;
    char name[VC_NAME_BYTES];

    vc_store_file_name(name, &r->gen->index_file, ".index");
    r->claim = io->open(io, r->reader->dir_fd, name, O_RDONLY);
    if (r->claim < 0)
        return errno == ENOENT ? VC_AGAIN : vc_store_errno(err, "open", name);
    /* A file system that knows no such locks costs the work of two, and nothing else. */
    if (flock(r->claim, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK)
        return vc_err_set_hint(err, VC_E_BUSY, "wait for its end",
                               "the VM's checkpoint is being re-keyed already");
    return 0;
}

static int begin(struct vc_rekey *r, struct vc_err *err)
{
    const struct vc_gen_info *info;
    int rc = vc_vm_open(r->store, &r->uuid, VC_VM_READ, &r->reader, err);

    if (!rc)
        rc = check_settled(r->reader, err);
    if (rc)
        return rc;
    info = vc_vm_complete(r->reader);
    if (!info || !vc_vm_lineage(r->reader, &r->old))
        return VC_NOT_FOUND;
    rc = vc_gen_open(r->reader, &info->id, &r->gen, err);
    if (rc == VC_NOT_FOUND)
        return VC_AGAIN; /* another one took its place just now */
    /* While it was read: what the manifest says of the generation is not older than the lineage. */
    if (!rc && !vc_id_equal(&r->gen->index.lineage, &r->old.id))
        return VC_AGAIN;
    return rc ? rc : claim(r, err);
}

int vc_rekey_open(struct vc_store *s, const struct vc_id *uuid, struct vc_rekey **out,
                  struct vc_err *err)
{
    struct vc_rekey *r = calloc(1, sizeof(*r));
    int rc;

    if (!r)
        return vc_err_set(err, VC_E_NOMEM, "no memory to re-key a checkpoint");
    *r = (struct vc_rekey){.store = s, .uuid = *uuid, .claim = -1, .tmp = VC_TMP_INIT};
    rc = begin(r, err);
    if (rc)
        vc_rekey_close(r);
    else
        *out = r;
    return rc;
}

void vc_rekey_close(struct vc_rekey *r)
{
    if (!r)
        return;
    if (r->reader)
        vc_tmp_drop(r->reader, &r->tmp);
    if (r->claim >= 0)
        close(r->claim);
    vc_gen_close(r->gen);
    vc_vm_close(r->vm);
    vc_vm_close(r->reader);
    vc_wipe(&r->old, sizeof(r->old));
    vc_wipe(&r->fresh, sizeof(r->fresh));
    free(r->dropped);
    free(r);
}

const struct vc_gen *vc_rekey_gen(const struct vc_rekey *r)
{
    return r->gen;
}

const struct vc_lineage *vc_rekey_old(const struct vc_rekey *r)
{
    return &r->old;
}

struct vc_vm *vc_rekey_vm(struct vc_rekey *r)
{
    return r->vm;
}

uint64_t vc_rekey_n_dropped(const struct vc_rekey *r)
{
    return r->n_pages_dropped;
}

const struct vc_dropped *vc_rekey_dropped(const struct vc_rekey *r, size_t *n, bool *all)
{
    *n = r->n_dropped;
    *all = !r->too_many;
    return r->dropped;
}

/* ---- digesting ---- */

static int note_dropped(struct vc_rekey *r, uint32_t block, uint64_t page, struct vc_err *err)
{
    struct vc_dropped *last = r->n_dropped ? &r->dropped[r->n_dropped - 1] : NULL;
    struct vc_dropped *more;

    if (last && last->block == block && last->page.n + last->count == page) {
        last->count++;
        return 0;
    }
    if (r->n_dropped == r->cap_dropped) {
        size_t cap = r->cap_dropped ? 2 * r->cap_dropped : 16;

        if (r->n_dropped >= VC_REKEY_MAX_DROPPED) {
            r->too_many = true;
            return 0;
        }
        more = realloc(r->dropped, cap * sizeof(*more));
        if (!more)
            return vc_err_set(err, VC_E_NOMEM, "no memory for a list of pages");
        r->dropped = more;
        r->cap_dropped = cap;
    }
    r->dropped[r->n_dropped++] =
        (struct vc_dropped){.block = block, .page = vc_page(page), .count = 1};
    return 0;
}

static void drop(struct vc_rekey *r, uint32_t block, uint64_t page)
{
    uint8_t *state = &r->gen->index.state[r->gen->index.first[block] + page];

    r->n_pages_dropped += *state == VC_PAGE_HELD;
    if (*state == VC_PAGE_HELD)
        *state = VC_PAGE_UNKNOWN;
}

struct digesters {
    struct vc_digester *old, *fresh;
    uint8_t *buf;
};

/* A page that cannot be read is as bad as a wrong one. */
static void read_chunk(const struct vc_gen *g, uint32_t block, uint64_t page, size_t n,
                       uint8_t *buf, bool readable[CHUNK_PAGES])
{
    uint32_t page_bytes = g->index.ram.page_bytes;
    struct vc_err ignored = VC_ERR_INIT;
    bool all = vc_gen_read(g, block, vc_page(page), n, buf, &ignored) == 0;

    for (size_t i = 0; i < n; i++)
        readable[i] =
            all || vc_gen_read(g, block, vc_page(page + i), 1, buf + i * page_bytes, &ignored) == 0;
}

/* n pages in a row, all held. */
static int digest_chunk(struct vc_rekey *r, struct digesters *d, uint32_t block, uint64_t page,
                        size_t n, struct vc_err *err)
{
    struct vc_index *ix = &r->gen->index;
    uint8_t *digests = ix->digest + (ix->first[block] + page) * VC_DIGEST_BYTES;
    struct vc_digest was[CHUNK_PAGES], is[CHUNK_PAGES];
    const uint8_t *pages[CHUNK_PAGES];
    bool readable[CHUNK_PAGES];
    int rc;

    read_chunk(r->gen, block, page, n, d->buf, readable);
    for (size_t i = 0; i < n; i++)
        pages[i] = d->buf + i * ix->ram.page_bytes;
    rc = vc_digest_pages(d->old, pages, n, ix->ram.page_bytes, was, err);
    if (!rc)
        rc = vc_digest_pages(d->fresh, pages, n, ix->ram.page_bytes, is, err);
    for (size_t i = 0; i < n && !rc; i++) {
        struct vc_digest want;

        memcpy(want.b, digests + i * VC_DIGEST_BYTES, VC_DIGEST_BYTES);
        memcpy(digests + i * VC_DIGEST_BYTES, is[i].b, VC_DIGEST_BYTES);
        if (readable[i] && vc_digest_equal(&want, &was[i]))
            continue;
        drop(r, block, page + i);
        rc = note_dropped(r, block, page + i, err);
    }
    return rc;
}

static int digest_block(struct vc_rekey *r, struct digesters *d, uint32_t block, uint64_t *done,
                        vc_rekey_go_on fn, void *opaque, struct vc_err *err)
{
    const struct vc_index *ix = &r->gen->index;

    for (uint64_t p = 0, n; (n = vc_index_held(ix, block, &p, CHUNK_PAGES)) > 0; p += n) {
        int rc = digest_chunk(r, d, block, p, n, err);

        if (rc)
            return rc;
        *done += n;
        if (fn && !fn(opaque, *done, r->gen->info.held_pages))
            return VC_AGAIN;
    }
    return 0;
}

int vc_rekey_digest(struct vc_rekey *r, const struct vc_lineage *fresh, const struct vc_id *gen,
                    vc_rekey_go_on fn, void *opaque, struct vc_err *err)
{
    vc_auto_free uint8_t *buf = malloc((size_t)CHUNK_PAGES * r->gen->index.ram.page_bytes);
    struct digesters d = {.buf = buf};
    uint64_t done = 0;
    int rc;

    if (!buf)
        return vc_err_set(err, VC_E_NOMEM, "no memory to re-key a checkpoint");
    if (vc_id_is_nil(gen) || vc_id_equal(gen, &r->gen->index.gen) ||
        vc_id_equal(&fresh->id, &r->old.id))
        return vc_err_set(err, VC_E_PROTOCOL, "the new lineage or generation is not a new one");
    r->fresh = *fresh;
    rc = vc_digester_new(r->old.algo, VC_DIGEST_PAGE, r->old.key, &d.old, err);
    if (!rc)
        rc = vc_digester_new(fresh->algo, VC_DIGEST_PAGE, fresh->key, &d.fresh, err);
    for (uint32_t b = 0; b < r->gen->index.ram.n_blocks && !rc; b++)
        rc = digest_block(r, &d, b, &done, fn, opaque, err);
    vc_digester_free(d.old);
    vc_digester_free(d.fresh);
    r->gen->index.gen = *gen;
    r->gen->index.lineage = fresh->id;
    return rc;
}

int vc_rekey_drop(struct vc_rekey *r, const struct vc_dropped *d, struct vc_err *err)
{
    const struct vc_ram *ram = &r->gen->index.ram;
    uint64_t pages = d->block < ram->n_blocks ? vc_ram_block_pages(ram, d->block) : 0;

    if (d->page.n > pages || d->count > pages - d->page.n)
        return vc_err_set(err, VC_E_PROTOCOL, "REKEYED: pages outside their block");
    for (uint64_t i = 0; i < d->count; i++)
        drop(r, d->block, d->page.n + i);
    return 0;
}

/* ---- switching ---- */

static int overtaken(struct vc_err *err)
{
    return vc_err_set_hint(err, VC_E_BUSY, "try again",
                           "the VM's checkpoint was replaced while it was re-keyed");
}

static int check_current(struct vc_rekey *r, struct vc_err *err)
{
    const struct vc_manifest *m = &r->vm->m;
    const struct vc_entry *e = &m->gens[0];

    if (!m->has_lineage || !vc_id_equal(&m->lineage.id, &r->old.id) || !m->n_gens ||
        e->info.partial || !vc_id_equal(&e->info.id, &r->gen->info.id) ||
        !vc_id_equal(&e->index, &r->gen->index_file))
        return overtaken(err);
    return check_settled(r->vm, err);
}

static int write_index(struct vc_rekey *r, struct vc_err *err)
{
    struct vc_index *ix = &r->gen->index;
    int rc;

    vc_commit_prune(ix);
    vc_index_normalize(ix);
    rc = vc_index_root(ix, ix->root, err);
    if (!rc && !vc_id_random(&r->file))
        rc = vc_err_set(err, VC_E_FAILED, "the kernel gives no random numbers");
    if (!rc)
        rc = vc_tmp_make(r->reader, &r->file, ".index.tmp", &r->tmp, err);
    return rc ? rc : vc_index_write(ix, r->store->io, r->tmp.fd, r->tmp.name, err);
}

int vc_rekey_prepare(struct vc_rekey *r, uint8_t root_out[VC_ROOT_BYTES], struct vc_err *err)
{
    int rc = write_index(r, err);

    if (!rc)
        rc = vc_vm_open(r->store, &r->uuid, VC_VM_WRITE, &r->vm, err);
    if (rc == VC_AGAIN || rc == VC_NOT_FOUND)
        rc = overtaken(err);
    if (!rc)
        rc = check_current(r, err);
    if (!rc)
        memcpy(root_out, r->gen->index.root, VC_ROOT_BYTES);
    return rc;
}

static void describe(const struct vc_rekey *r, struct vc_entry *e)
{
    const struct vc_index *ix = &r->gen->index;

    e->index = r->file;
    e->info.id = ix->gen;
    memcpy(e->info.root, ix->root, VC_ROOT_BYTES);
    e->info.confirmed = false;
    e->info.held_pages -= VC_MIN(e->info.held_pages, r->n_pages_dropped);
    e->info.unknown_pages += r->n_pages_dropped;
    e->info.n_layers = ix->n_layers;
    memcpy(e->layers, ix->layers, sizeof(e->layers));
}

/* The checkpoint is no younger for its new key. */
static void carry_age(struct vc_rekey *r, const struct vc_id *before)
{
    struct vc_err ignored = VC_ERR_INIT;
    struct vc_age age;

    if (vc_age_read(r->vm->dir_fd, &age) || !vc_id_equal(&age.gen, before))
        return;
    age.gen = r->gen->index.gen;
    if (vc_age_write(r->store->io, r->vm->dir_fd, &age, &ignored))
        return; /* then the age is told from the generation's creation */
}

static int switch_manifest(struct vc_rekey *r, struct vc_err *err)
{
    struct vc_manifest m = r->vm->m;
    struct vc_id before = m.gens[0].info.id;
    int rc;

    m.lineage = r->fresh;
    m.n_gens = 1; /* a partial one knows the old key alone */
    describe(r, &m.gens[0]);
    rc = vc_manifest_switch(r->vm, &m, err);
    vc_wipe(&m.lineage, sizeof(m.lineage));
    if (!rc)
        carry_age(r, &before);
    return rc;
}

int vc_rekey_commit(struct vc_rekey *r, const struct vc_holder *who, struct vc_err *err)
{
    struct vc_vm *vm = r->vm;
    char name[VC_NAME_BYTES];
    int rc = who ? vc_vm_share(vm, who, err) : 0;

    vc_store_file_name(name, &r->file, ".index");
    if (!rc)
        rc = vc_tmp_name(vm, &r->tmp, name, err);
    if (!rc)
        rc = vc_durable_sync_dir(vm->store->io, vm->dir_fd, "the VM's directory", err);
    if (!rc)
        rc = switch_manifest(r, err);
    vc_vm_sweep(vm, rc == 0);
    return rc;
}

int vc_vm_rekey_empty(struct vc_store *s, const struct vc_id *uuid, const struct vc_lineage *fresh,
                      struct vc_err *err)
{
    struct vc_lineage l = *fresh, old;
    struct vc_vm *vm = NULL;
    int rc = vc_vm_open(s, uuid, VC_VM_WRITE, &vm, err);

    if (!rc)
        rc = check_settled(vm, err);
    if (!rc && !vc_vm_lineage(vm, &old))
        rc = VC_NOT_FOUND;
    if (!rc) {
        l.exposed = old.exposed;
        rc = vc_vm_set_lineage(vm, &l, err);
        vc_wipe(&old, sizeof(old));
    }
    vc_vm_close(vm);
    vc_wipe(&l, sizeof(l));
    return rc;
}
