/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/api.h"
#include "base/fdio.h"

/* The list of peers (vecycle-peers(5)): a line names peers by a pattern, and what they may reach.
 * It is read anew for each question, so that a change counts from the next connection on; a list
 * that cannot be read allows nothing. */

#define MAX_FILE_BYTES (1u << 20)
#define SPACE " \t\r"

struct list {
    char *text;
    const char *path;
};

static void list_free(struct list *l)
{
    free(l->text);
}

static int list_read(struct list *l, struct vc_err *err)
{
    vc_auto_close int fd = open(l->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    size_t n;

    if (fd < 0 || fstat(fd, &st) < 0)
        return vc_err_set_errno_hint(err, VC_E_REFUSED, "nobody is allowed anything until it can",
                                     "cannot read the list of peers '%s'", l->path);
    if (!S_ISREG(st.st_mode) || st.st_size > MAX_FILE_BYTES)
        return vc_err_set(err, VC_E_REFUSED, "'%s' is not a list of peers", l->path);
    if (!vc_is_guarded(&st))
        return vc_err_set_hint(err, VC_E_REFUSED,
                               "chmod go-w, and the owner is root or who runs vecycle",
                               "others can change the list of peers '%s'", l->path);
    n = (size_t)st.st_size;
    l->text = calloc(1, n + 1);
    if (!l->text)
        return vc_err_set(err, VC_E_NOMEM, "no memory for the list of peers");
    if (n && vc_read_full(fd, l->text, n) < 0)
        return vc_err_set_errno(err, VC_E_REFUSED, "cannot read the list of peers '%s'", l->path);
    if (strlen(l->text) != n) /* what is behind a zero byte would not be looked at */
        return vc_err_set(err, VC_E_REFUSED, "'%s' is not a list of peers", l->path);
    return 0;
}

/* The next line that says something, split in words; NULL at the end. */
static char *next_line(char **at, unsigned *number)
{
    char *line;

    while ((line = strsep(at, "\n"))) {
        ++*number;
        line[strcspn(line, "#")] = '\0';
        line += strspn(line, SPACE);
        if (*line)
            return line;
    }
    return NULL;
}

/* ---- one line ---- */

/* "NAME", "UUID", "NAME=UUID", "*" */
struct entry {
    bool all, has_vm;
    const char *name; /* pattern; NULL: the UUID itself */
    struct vc_id vm;
};

static bool legal_pattern(const char *s)
{
    return *s && strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                           ".-_:*?[]") == strlen(s);
}

static bool parse_entry(char *word, struct entry *e)
{
    char *equals = strchr(word, '=');

    *e = (struct entry){.all = !strcmp(word, "*")};
    if (e->all)
        return true;
    if (!equals && vc_id_parse(word, &e->vm)) {
        e->has_vm = true;
        return true;
    }
    if (equals) {
        *equals = '\0';
        e->has_vm = true;
        if (!vc_id_parse(equals + 1, &e->vm))
            return false;
    }
    e->name = word;
    return legal_pattern(word);
}

static bool entry_allows(const struct entry *e, const struct vc_reach *what)
{
    char uuid[VC_ID_TEXT_BYTES];

    if (e->all)
        return true;
    if (e->has_vm && !vc_id_equal(&e->vm, &what->vm))
        return false;
    if (e->has_vm && !*what->name) /* a word about a VM of which there is no record */
        return true;
    if (!e->name) {
        vc_id_format(&e->vm, uuid);
        return !strcmp(what->name, uuid);
    }
    /* A name alone says nothing about whose memory it is: QEMU has to. */
    return (e->has_vm || what->attested) && fnmatch(e->name, what->name, FNM_NOESCAPE) == 0;
}

static bool is_peer(const char *pattern, const struct vc_conn *peer)
{
    const char *name;

    for (unsigned i = 0; (name = vc_conn_peer_name(peer, i)); i++)
        if (fnmatch(pattern, name, FNM_NOESCAPE | FNM_CASEFOLD) == 0)
            return true;
    return false;
}

/* ---- questions ---- */

/* Goes through the list. @peer NULL: only looks whether it is well-formed. */
static int look_up(struct list *l, const struct vc_conn *peer, const struct vc_reach *what,
                   bool *allowed, struct vc_err *err)
{
    char *at = l->text, *line, *word;
    unsigned number = 0;

    *allowed = false;
    while ((line = next_line(&at, &number))) {
        char *pattern = strsep(&line, SPACE);
        bool about_peer = peer && is_peer(pattern, peer), any = false;

        if (!legal_pattern(pattern))
            return vc_err_set(err, VC_E_REFUSED, "%s:%u: '%.64s' is not a name or a pattern",
                              l->path, number, pattern);
        while ((word = strsep(&line, SPACE))) {
            struct entry e;

            if (!*word)
                continue;
            any = true;
            if (!parse_entry(word, &e))
                return vc_err_set_hint(err, VC_E_REFUSED, "a UUID, NAME=UUID, NAME or *",
                                       "%s:%u: '%.64s' is not a VM", l->path, number, word);
            if (about_peer && (!what->name || entry_allows(&e, what)))
                *allowed = true;
        }
        if (!any)
            return vc_err_set_hint(err, VC_E_REFUSED, "a UUID, NAME=UUID, NAME or *",
                                   "%s:%u: '%.64s' may reach nothing", l->path, number, pattern);
    }
    return 0;
}

int vc_allow_check(const char *path, struct vc_err *err)
{
    VC_CLEANUP(list_free) struct list l = {.path = path};
    bool allowed;
    int rc = list_read(&l, err);

    return rc ? rc : look_up(&l, NULL, NULL, &allowed, err);
}

int vc_allow_lists(const void *path, const char *name, bool *listed, struct vc_err *err)
{
    VC_CLEANUP(list_free) struct list l = {.path = path};
    unsigned number = 0;
    char *at, *line;
    int rc = list_read(&l, err);

    *listed = false;
    at = rc ? NULL : l.text;
    while (at && (line = next_line(&at, &number)))
        *listed |= fnmatch(strsep(&line, SPACE), name, FNM_NOESCAPE | FNM_CASEFOLD) == 0;
    return rc;
}

int vc_allow_may_reach(void *path, const struct vc_conn *peer, const struct vc_reach *what,
                       struct vc_err *err)
{
    VC_CLEANUP(list_free) struct list l = {.path = path};
    char vm[VC_ID_TEXT_BYTES];
    const char *who = vc_conn_peer_name(peer, 0);
    bool allowed;
    int rc = list_read(&l, err);

    if (!rc)
        rc = look_up(&l, peer, what, &allowed, err);
    if (rc || allowed)
        return rc;
    who = who ? who : "a peer without a name";
    if (!what->name)
        return vc_err_set_hint(err, VC_E_REFUSED, "see --allow of vecycle serve",
                               "'%.100s' is not among the peers of this host", who);
    vc_id_format(&what->vm, vm);
    if (!*what->name)
        return vc_err_set_hint(err, VC_E_REFUSED, "see --allow of vecycle serve",
                               "'%.80s' may not reach the VM %s on this host", who, vm);
    return vc_err_set_hint(err, VC_E_REFUSED, "see --allow of vecycle serve",
                           "'%.80s' may not reach '%.40s' (VM %s) on this host", who, what->name,
                           vm);
}
