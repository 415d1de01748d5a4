/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/durable.h"
#include "base/fdio.h"
#include "store/internal.h"

static const char format_text[] = "vecycle store 1\n";

int vc_store_errno(struct vc_err *err, const char *what, const char *name)
{
    if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)
        return vc_err_set_errno_hint(err, VC_E_STORE_FULL,
                                     "make room, or drop checkpoints with 'vecycle rm'",
                                     "cannot %s '%s'", what, name);
    return vc_err_set_errno_hint(err, VC_E_STORE, "another directory can be given with --store",
                                 "cannot %s '%s'", what, name);
}

static const char *odd_kind(int error)
{
    return error == EISDIR ? "is a directory" : error == ELOOP ? "is a link" : "is no file";
}

int vc_store_open_errno(struct vc_err *err, const char *name)
{
    if (errno == ENOTDIR)
        return vc_err_set_hint(err, VC_E_CORRUPT, "move it away", "'%s' is no directory", name);
    if (vc_io_is_odd(errno))
        return vc_err_set_hint(err, VC_E_CORRUPT, "move it away",
                               "'%s' %s where a file of the store belongs", name, odd_kind(errno));
    if (errno == EACCES || errno == EPERM)
        return vc_err_set_errno_hint(err, VC_E_CORRUPT,
                                     "all of a store belongs to one user: chown -R, chmod u+rw",
                                     "cannot open '%s'", name);
    return vc_store_errno(err, "open", name);
}

void vc_store_path(const struct vc_vm *vm, const char *name, char path[VC_PATH_BYTES])
{
    char uuid[VC_ID_TEXT_BYTES];

    vc_id_format(&vm->uuid, uuid);
    snprintf(path, VC_PATH_BYTES, "%.400s/vms/%s/%s", vm->store->root, uuid, name);
}

int vc_vm_open_errno(const struct vc_vm *vm, const char *name, struct vc_err *err)
{
    char path[VC_PATH_BYTES];
    int saved = errno;

    vc_store_path(vm, name, path);
    errno = saved;
    return vc_store_open_errno(err, path);
}

int vc_vm_blame(const struct vc_vm *vm, int rc, struct vc_err *err)
{
    char uuid[VC_ID_TEXT_BYTES], where[VC_PATH_BYTES];

    if (rc >= 0 || !err)
        return rc;
    vc_id_format(&vm->uuid, uuid);
    if (strstr(err->message, vm->store->root)) /* who knew more has said more */
        return rc;
    snprintf(where, sizeof(where), "%.160s/vms/%s", vm->store->root, uuid);
    vc_err_prefix(err, "%s", where);
    return rc;
}

void vc_store_file_name(char name[VC_NAME_BYTES], const struct vc_id *id, const char *suffix)
{
    char text[VC_ID_TEXT_BYTES];

    vc_id_format(id, text);
    snprintf(name, VC_NAME_BYTES, "%s%s", text, suffix);
}

const char *vc_layer_suffix(unsigned kind)
{
    return kind == VC_LAYER_IMAGE ? ".image" : ".delta";
}

void vc_layer_name(char name[VC_NAME_BYTES], const struct vc_layer *l)
{
    vc_store_file_name(name, &l->id, vc_layer_suffix(l->kind));
}

const char *vc_store_parse_name(const char *name, struct vc_id *id)
{
    static const char *const suffixes[] = {".index", ".image", ".delta", ".log"};
    char text[VC_ID_TEXT_BYTES];

    if (strnlen(name, sizeof(text)) < sizeof(text))
        return NULL;
    memcpy(text, name, sizeof(text) - 1);
    text[sizeof(text) - 1] = 0;
    if (!vc_id_parse(text, id))
        return NULL;
    vc_id_format(id, text); /* ours are in lower case */
    if (strncmp(name, text, sizeof(text) - 1) != 0)
        return NULL;
    for (size_t i = 0; i < VC_ARRAY_LEN(suffixes); i++)
        if (!strcmp(name + sizeof(text) - 1, suffixes[i]))
            return suffixes[i];
    return NULL;
}

/* Makes a directory; its name is durable when this returns. 0, or -1 with errno. */
static int make_dir(const char *path, mode_t mode)
{
    char parent[4096];
    vc_auto_close int fd = -1;
    char *slash;

    if (vc_mkdirat(AT_FDCWD, path, mode) < 0)
        return errno == EEXIST ? 0 : -1;
    snprintf(parent, sizeof(parent), "%s", path);
    slash = strrchr(parent, '/');
    if (slash)
        slash[slash == parent] = 0;
    fd = open(slash ? parent : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || vc_durable_sync_dir(&vc_io_kernel, fd, parent, NULL) ? -1 : 0;
}

static int make_path(const char *root)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s", root);
    for (char *p = path + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = 0;
        if (make_dir(path, 0755) < 0)
            return -1;
        *p = '/';
    }
    return make_dir(path, 0700);
}

/* Nothing of a store may be used, or nothing can be found in it. */
static int store_is_none(struct vc_err *err)
{
    if (err && err->code == VC_E_CORRUPT)
        err->code = VC_E_STORE;
    return err ? err->code : VC_E_STORE;
}

/* Several may make a new store at once, and all of them write the same. */
static int write_format(const struct vc_io *io, int root_fd, struct vc_err *err)
{
    char tmp[VC_NAME_BYTES];
    struct vc_id id;

    if (!vc_id_random(&id))
        return vc_err_set(err, VC_E_FAILED, "the kernel gives no random numbers");
    vc_store_file_name(tmp, &id, ".format.new");
    return vc_durable_write_file_as(io, root_fd, tmp, "format", format_text, strlen(format_text),
                                    err);
}

/* What others may write in, they may fill with what they like; and where not all belongs to one
 * user, somebody cannot read it. Root works in another's store as that user (base/io). */
static int check_owner(int fd, const char *path, struct vc_err *err)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return vc_store_errno(err, "look at", path);
    if (st.st_mode & 022)
        return vc_err_set_hint(err, VC_E_STORE, "chmod go-w it, and look who has been there",
                               "others than its owner may write in the store '%s'", path);
    if (st.st_uid != geteuid() && geteuid() != 0)
        return vc_err_set_hint(err, VC_E_STORE, "chown -R it, or name another with --store",
                               "the store '%s' belongs to user %u", path, (unsigned)st.st_uid);
    return 0;
}

/* Whether a directory without a format may become a store: nothing is in it but what others who
 * make the same one have begun. */
static bool may_become_store(int root_fd)
{
    int fd = openat(root_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *e;
    bool may = d != NULL;

    while (may && (e = readdir(d))) {
        const char *end = strstr(e->d_name, ".format.new");

        may = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") ||
              !strcmp(e->d_name, "lost+found") || !strcmp(e->d_name, "format") ||
              !strcmp(e->d_name, "vms") || (end && !end[strlen(".format.new")]);
    }
    if (d)
        closedir(d);
    else if (fd >= 0)
        close(fd);
    return may;
}

static int check_format(const struct vc_io *io, int root_fd, bool create, const char *root,
                        struct vc_err *err)
{
    char text[sizeof(format_text)] = "";
    vc_auto_close int fd = io->open(io, root_fd, "format", O_RDONLY);
    bool is_new = fd < 0 && errno == ENOENT && create;
    char path[VC_PATH_BYTES];
    int rc;

    if (is_new && !may_become_store(root_fd))
        return vc_err_set_hint(err, VC_E_STORE,
                               "name an empty directory with --store, or a new one",
                               "'%s' is no store, and there is something else in it", root);
    if (is_new)
        return write_format(io, root_fd, err);
    if (fd < 0) {
        rc = errno;
        snprintf(path, sizeof(path), "%.400s/format", root);
        errno = rc;
        vc_store_open_errno(err, path);
        return store_is_none(err);
    }
    rc = io->read(io, fd, text, strlen(format_text), 0);
    if (rc < 0)
        return vc_store_errno(err, "read", root);
    if (!rc || strcmp(text, format_text) != 0)
        return vc_err_set_hint(err, VC_E_STORE, "another directory can be given with --store",
                               "'%s' is not a store of this version", root);
    return 0;
}

static int open_vms(const struct vc_io *io, int root_fd, bool create, const char *root,
                    struct vc_err *err)
{
    vc_auto_close int fd = -1;
    char path[VC_PATH_BYTES];
    int rc;

    snprintf(path, sizeof(path), "%.400s/vms", root);
    if (create) {
        if (io->mkdir(io, root_fd, "vms") < 0 && errno != EEXIST)
            return vc_store_errno(err, "create", path);
        /* Also if it was there: who made it may have died before this. */
        if (vc_durable_sync_dir(io, root_fd, "the store", err))
            return VC_E_STORE;
    }
    fd = io->open(io, root_fd, "vms", O_RDONLY | O_DIRECTORY);
    if (fd < 0) {
        vc_store_open_errno(err, path);
        return store_is_none(err);
    }
    rc = check_owner(fd, path, err);
    return rc ? rc : vc_steal_fd(&fd);
}

static int no_root(const char *root, struct vc_err *err)
{
    if (errno == EACCES)
        return vc_err_set_errno_hint(err, VC_E_REFUSED, "only its owner and root may look into it",
                                     "cannot open the store '%s'", root);
    return vc_store_errno(err, "open", root);
}

int vc_store_open_on(const struct vc_io *io, const char *root, bool create, uint64_t limit_bytes,
                     struct vc_store **out, struct vc_err *err)
{
    vc_auto_free struct vc_store *s = calloc(1, sizeof(*s));
    vc_auto_close int fd = -1;
    int rc;

    if (!s)
        return vc_err_set(err, VC_E_NOMEM, "no memory for the store");
    snprintf(s->root, sizeof(s->root), "%s", root);
    s->io = io;
    s->limit_bytes = limit_bytes ? limit_bytes : VC_STORE_DEFAULT_LIMIT_BYTES;
    if (create && make_path(root) < 0)
        return vc_store_errno(err, "create", root);
    fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT && !create ? VC_NOT_FOUND : no_root(root, err);
    rc = check_owner(fd, root, err);
    if (!rc)
        rc = check_format(io, fd, create, root, err);
    if (rc)
        return rc;
    s->vms_fd = open_vms(io, fd, create, root, err);
    if (s->vms_fd < 0)
        return s->vms_fd;
    s->root_fd = vc_steal_fd(&fd);
    *out = vc_steal_ptr(s);
    return 0;
}

int vc_store_open(const char *root, bool create, uint64_t limit_bytes, struct vc_store **out,
                  struct vc_err *err)
{
    return vc_store_open_on(&vc_io_kernel, root, create, limit_bytes, out, err);
}

void vc_store_close(struct vc_store *s)
{
    if (!s)
        return;
    close(s->vms_fd);
    close(s->root_fd);
    free(s);
}

bool vc_store_syncs_names(const struct vc_store *s)
{
    return fsync(s->root_fd) == 0 || !vc_io_lacks(errno);
}

const char *vc_store_root(const struct vc_store *s)
{
    return s->root;
}

int vc_store_list(struct vc_store *s, struct vc_id **ids_out, size_t *n_out, struct vc_err *err)
{
    int fd = openat(s->vms_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    vc_auto_free struct vc_id *ids = NULL;
    size_t n = 0, cap = 0;
    struct dirent *e;

    if (!d)
        return vc_store_errno(err, "list", s->root);
    while ((e = readdir(d))) {
        struct vc_id id;

        if (!vc_id_parse(e->d_name, &id))
            continue;
        if (n == cap) {
            struct vc_id *more = realloc(ids, (cap = cap ? 2 * cap : 16) * sizeof(*ids));

            if (!more) {
                closedir(d);
                return vc_err_set(err, VC_E_NOMEM, "no memory for the list of VMs");
            }
            ids = more;
        }
        ids[n++] = id;
    }
    closedir(d);
    *ids_out = vc_steal_ptr(ids);
    *n_out = n;
    return 0;
}
