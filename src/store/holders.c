/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "base/durable.h"
#include "store/internal.h"

/* Who has been given the key of a lineage: docs/formats/store.md section 8. Written before the key
 * goes out, so that nobody has it who is not on the list. Those of lineages that the VM had before
 * stay there: a VM that comes from a host which was not there to re-key brings the old one back. */

static const char magic[8] = "vchold\n\0";
#define FILE_VERSION 1
/** More are forgotten, the oldest first. */
#define MAX_HOLDERS 256u
#define MAX_FILE_BYTES (1u << 20)
#define FLAG_LISTED 1u
#define FLAG_CUT 2u

struct list {
    struct vc_holder *h;
    size_t n;
};

static void list_free(struct list *l)
{
    free(l->h);
}

static bool decode_one(struct vc_reader *r, struct vc_holder *h)
{
    uint8_t flags;

    vc_read_copy(r, h->lineage.b, 16);
    flags = vc_read_u8(r);
    h->listed = flags & FLAG_LISTED;
    h->cut = flags & FLAG_CUT;
    h->n_names = vc_read_u8(r);
    if (flags & ~(FLAG_LISTED | FLAG_CUT) || h->n_names < 1 || h->n_names > VC_HOLDER_NAMES)
        return false;
    for (unsigned i = 0; i < h->n_names; i++)
        if (!vc_read_str8(r, h->names[i]) || !h->names[i][0])
            return false;
    return true;
}

static int corrupt(struct vc_err *err)
{
    return vc_err_set_hint(err, VC_E_CORRUPT, "`vecycle rekey` begins a new one",
                           "the list of the hosts that have the checkpoint's key is damaged");
}

static int decode(const uint8_t *buf, size_t n, struct list *l, struct vc_err *err)
{
    uint8_t sum[VC_SHA256_BYTES];
    struct vc_reader r;
    const uint8_t *m;
    uint32_t count;

    if (n < VC_SHA256_BYTES || !vc_sha256(buf, n - VC_SHA256_BYTES, sum) ||
        memcmp(sum, buf + n - VC_SHA256_BYTES, sizeof(sum)) != 0)
        return corrupt(err);
    r = vc_reader(buf, n - VC_SHA256_BYTES);
    m = vc_read_bytes(&r, sizeof(magic));
    if (!m || memcmp(m, magic, sizeof(magic)) != 0)
        return corrupt(err);
    if (vc_read_u32(&r) != FILE_VERSION)
        return vc_err_set(err, VC_E_VERSION, "'holders' was written by a newer vecycle");
    count = vc_read_u32(&r);
    if (count > MAX_HOLDERS)
        return corrupt(err);
    l->h = calloc(count + 1, sizeof(*l->h)); /* one more for who is added */
    if (!l->h)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a list of hosts");
    for (l->n = 0; l->n < count; l->n++)
        if (!decode_one(&r, &l->h[l->n]))
            return corrupt(err);
    return r.failed || r.off != r.len ? corrupt(err) : 0;
}

/* No such file: an empty list. */
static int read_list(struct vc_vm *vm, struct list *l, struct vc_err *err)
{
    const struct vc_io *io = vm->store->io;
    vc_auto_close int fd = io->open(io, vm->dir_fd, "holders", O_RDONLY | O_NONBLOCK);
    vc_auto_free uint8_t *buf = NULL;
    struct stat st;
    int rc;

    *l = (struct list){0};
    if (fd < 0 && errno == ENOENT) {
        l->h = calloc(1, sizeof(*l->h));
        return l->h ? 0 : vc_err_set(err, VC_E_NOMEM, "no memory for a list of hosts");
    }
    if (fd < 0 || fstat(fd, &st) < 0)
        return vc_store_errno(err, "open", "holders");
    if (!S_ISREG(st.st_mode) || st.st_size > MAX_FILE_BYTES)
        return corrupt(err);
    buf = malloc((size_t)st.st_size + 1);
    if (!buf)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a list of hosts");
    rc = io->read(io, fd, buf, (size_t)st.st_size, 0);
    if (rc < 0)
        return vc_store_errno(err, "read", "holders");
    return rc ? decode(buf, (size_t)st.st_size, l, err) : corrupt(err);
}

static int write_list(struct vc_vm *vm, const struct list *l, struct vc_err *err)
{
    vc_auto_free uint8_t *buf = malloc(MAX_FILE_BYTES);
    struct vc_writer w = vc_writer(buf, MAX_FILE_BYTES - VC_SHA256_BYTES);

    if (!buf)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a list of hosts");
    vc_write_bytes(&w, magic, sizeof(magic));
    vc_write_u32(&w, FILE_VERSION);
    vc_write_u32(&w, (uint32_t)l->n);
    for (size_t i = 0; i < l->n; i++) {
        vc_write_bytes(&w, l->h[i].lineage.b, 16);
        vc_write_u8(&w, (l->h[i].listed ? FLAG_LISTED : 0) | (l->h[i].cut ? FLAG_CUT : 0));
        vc_write_u8(&w, l->h[i].n_names);
        for (unsigned k = 0; k < l->h[i].n_names; k++)
            vc_write_str8(&w, l->h[i].names[k]);
    }
    if (w.failed || !vc_sha256(buf, w.len, buf + w.len))
        return vc_err_set(err, VC_E_FAILED, "cannot build the list of hosts");
    return vc_durable_write_file(vm->store->io, vm->dir_fd, "holders", buf, w.len + VC_SHA256_BYTES,
                                 err);
}

static bool has_same_names(const struct vc_holder *a, const struct vc_holder *b)
{
    return a->n_names == b->n_names && a->cut == b->cut &&
           !memcmp(a->names, b->names, sizeof(a->names));
}

static struct vc_holder *find(const struct list *l, const struct vc_holder *who)
{
    for (size_t i = 0; i < l->n; i++)
        if (vc_id_equal(&l->h[i].lineage, &who->lineage) && has_same_names(&l->h[i], who))
            return &l->h[i];
    return NULL;
}

/* Whoever gives it another key may know of no list, as a command does. */
static bool was_listed(const struct list *l, const struct vc_holder *who)
{
    for (size_t i = 0; i < l->n; i++)
        if (l->h[i].listed && has_same_names(&l->h[i], who))
            return true;
    return false;
}

/* In the place of a list that is damaged: who was on it is on it as one whom no list of peers has.
 */
static int begin_anew(struct vc_vm *vm, struct list *l, struct vc_err *err)
{
    list_free(l);
    *l = (struct list){.h = calloc(2, sizeof(*l->h))};
    if (!l->h)
        return vc_err_set(err, VC_E_NOMEM, "no memory for a list of hosts");
    if (!vm->m.has_lineage)
        return 0;
    l->h[l->n++] = (struct vc_holder){
        .lineage = vm->m.lineage.id,
        .listed = true,
        .n_names = 1,
        .names = {"a host whose name is lost"},
    };
    return 0;
}

int vc_vm_share(struct vc_vm *vm, const struct vc_holder *who, struct vc_err *err)
{
    VC_CLEANUP(list_free) struct list l;
    struct vc_holder *known;
    bool listed;
    int rc = read_list(vm, &l, err);

    if (rc == VC_E_CORRUPT)
        rc = begin_anew(vm, &l, err);
    if (rc)
        return rc;
    known = find(&l, who);
    if (known && (known->listed || !who->listed))
        return 0;
    if (known) {
        known->listed = true;
        return write_list(vm, &l, err);
    }
    if (l.n == MAX_HOLDERS)
        memmove(l.h, l.h + 1, --l.n * sizeof(*l.h));
    listed = who->listed || was_listed(&l, who);
    l.h[l.n] = *who;
    l.h[l.n++].listed = listed;
    return write_list(vm, &l, err);
}

int vc_vm_holders(struct vc_vm *vm, struct vc_holder **out, size_t *n, struct vc_err *err)
{
    struct list l;
    int rc = read_list(vm, &l, err);

    if (rc) {
        list_free(&l);
        return rc;
    }
    *n = 0;
    for (size_t i = 0; i < l.n; i++)
        if (vm->m.has_lineage && vc_id_equal(&l.h[i].lineage, &vm->m.lineage.id))
            l.h[(*n)++] = l.h[i];
    *out = l.h;
    return 0;
}

/* ---- who it is ---- */

void vc_holder_host(const char *address, char out[256])
{
    const char *at = strstr(address, "://"), *end, *user;

    if (!strncmp(address, "unix:", 5)) { /* whoever listens there */
        snprintf(out, 256, "%s", address);
        return;
    }
    at = at ? at + 3 : !strncmp(address, "ssh from ", 9) ? address + 9 : address;
    user = strrchr(at, '@');
    at = user ? user + 1 : at;
    if (*at == '[' && (end = strchr(at, ']'))) {
        at++;
    } else {
        end = strchr(at, ':');
        if (!end || strchr(end + 1, ':')) /* no port, or an IPv6 address without brackets */
            end = at + strlen(at);
    }
    snprintf(out, 256, "%.*s", (int)VC_MIN(end - at, (ptrdiff_t)255), at);
}

/* The name before the last " at ": "NAME at ADDRESS" is who came with a certificate. */
static void own_name(const char *peer, char out[256])
{
    const char *end = NULL;

    for (const char *p = peer; (p = strstr(p, " at ")); p++)
        end = p;
    if (end)
        snprintf(out, 256, "%.*s", (int)VC_MIN(end - peer, (ptrdiff_t)255), peer);
    else
        vc_holder_host(peer, out);
}

static bool has_name(const struct vc_holder *h, const char *name)
{
    for (unsigned i = 0; i < h->n_names; i++)
        if (!strcasecmp(h->names[i], name))
            return true;
    return false;
}

void vc_vm_account(struct vc_vm *vm, const char *peer, char out[256])
{
    vc_auto_free struct vc_holder *h = NULL;
    struct vc_err ignored = VC_ERR_INIT;
    size_t n = 0;

    own_name(peer, out);
    if (!*peer || vc_vm_holders(vm, &h, &n, &ignored))
        return;
    while (n-- > 0) /* those noted last are at the end */
        if (has_name(&h[n], out)) {
            memcpy(out, h[n].names[0], 256);
            return;
        }
}
