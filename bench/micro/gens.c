/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "gens.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#define GROUP 64u

const struct vc_lineage gens_lineage = {
    .id = {"a lineage......"},
    .algo = VC_DIGEST_GMAC,
    .key = "a key that no guest knows",
};
const struct vc_id gens_vm = {"the VM's UUID.."};

void gens_make(struct gens *g, uint64_t need)
{
    const char *tmp = getenv("TMPDIR");
    struct statvfs st;

    *g = (struct gens){0};
    snprintf(g->dir, sizeof(g->dir), "%s/vecycle-bench-XXXXXX", tmp ? tmp : "/var/tmp");
    if (!mkdtemp(g->dir))
        micro_fail("cannot make a directory like %s", g->dir);
    if (statvfs(g->dir, &st) == 0 && (uint64_t)st.f_bavail * st.f_frsize < need) {
        gens_remove(g);
        micro_fail("%llu MiB are needed in $TMPDIR or /var/tmp", (unsigned long long)(need >> 20));
    }
}

void gens_open(struct gens *g)
{
    struct vc_err err = VC_ERR_INIT;

    micro_ok(vc_store_open(g->dir, true, 0, &g->store, &err), &err, "store");
    micro_ok(vc_vm_open(g->store, &gens_vm, VC_VM_CREATE, &g->vm, &err), &err, "VM");
    micro_ok(vc_vm_set_lineage(g->vm, &gens_lineage, &err), &err, "lineage");
    g->gen = NULL;
    if (vc_vm_n_generations(g->vm))
        micro_ok(vc_gen_open(g->vm, &vc_vm_generation(g->vm, 0)->id, &g->gen, &err), &err,
                 "generation");
}

void gens_close(struct gens *g)
{
    vc_gen_close(g->gen);
    vc_vm_close(g->vm);
    vc_store_close(g->store);
    g->gen = NULL;
    g->vm = NULL;
    g->store = NULL;
}

static int unlink_it(const char *path, const struct stat *st, int flag, struct FTW *f)
{
    (void)st;
    (void)flag;
    (void)f;
    return remove(path);
}

void gens_remove(struct gens *g)
{
    if (nftw(g->dir, unlink_it, 8, FTW_DEPTH | FTW_PHYS) < 0)
        fprintf(stderr, "could not delete %s\n", g->dir);
}

/* Pages [from, to) are data, digested here. */
static void put(struct vc_txn *t, struct vc_digester *d, struct synth *s, uint64_t from,
                uint64_t to)
{
    const uint8_t *pages[GROUP];
    struct vc_digest digests[GROUP];
    struct vc_err err = VC_ERR_INIT;

    while (from < to) {
        size_t n = to - from < GROUP ? (size_t)(to - from) : GROUP;

        for (size_t i = 0; i < n; i++)
            pages[i] = synth_page(s, from + i);
        micro_ok(vc_digest_pages(d, pages, n, SYNTH_PAGE, digests, &err), &err, "digest");
        micro_ok(vc_txn_put(t, 0, vc_page(from), n, pages, digests, &err), &err, "put");
        from += n;
    }
}

enum kind { ZERO, SAME, DATA };

static enum kind kind_of(const struct synth *s, uint64_t page, bool changed_only)
{
    if (synth_is_zero(s, page))
        return ZERO;
    return changed_only && !synth_is_changed(s, page) ? SAME : DATA;
}

uint64_t gens_write(struct gens *g, struct synth *s, const struct vc_id *id, bool changed_only)
{
    struct vc_txn_note note = {.peer = "bench"};
    struct vc_err err = VC_ERR_INIT;
    struct vc_ram *ram = synth_ram(s);
    struct vc_digester *d;
    struct vc_txn *t;
    uint64_t written = 0;

    micro_ok(vc_digester_new(gens_lineage.algo, VC_DIGEST_PAGE, gens_lineage.key, &d, &err), &err,
             "digester");
    micro_ok(vc_txn_begin(g->vm, id, changed_only ? g->gen : NULL, &t, &err), &err, "transaction");
    micro_ok(vc_txn_set_ram(t, ram, &err), &err, "RAM");
    for (uint64_t from = 0, to; from < s->pages; from = to) {
        enum kind kind = kind_of(s, from, changed_only);

        for (to = from + 1; to < s->pages && kind_of(s, to, changed_only) == kind; to++) {
            /* to the end of the run */
        }
        if (kind == ZERO)
            micro_ok(vc_txn_zero(t, 0, vc_page(from), to - from, &err), &err, "zero");
        else if (kind == SAME)
            micro_ok(vc_txn_same(t, 0, vc_page(from), to - from, &err), &err, "same");
        else {
            put(t, d, s, from, to);
            written += (to - from) * SYNTH_PAGE;
        }
    }
    micro_ok(vc_txn_commit(t, &note, NULL, &err), &err, "commit");
    vc_digester_free(d);
    free(ram);
    return written;
}
