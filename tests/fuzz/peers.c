/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The list of peers (vecycle-peers(5)): any file, and questions about it. The answers agree with a
 * second, simpler reading; a file with a mistake in it allows nothing to anybody, and so does one
 * that does not name the peer; asked again, the answer is the same.
 *
 * Input: a byte of options; the length (2 bytes) of the file and that; two names of a peer and the
 * name of a socket, each a byte of length and the text; and the VM's UUID, as text. */

#include <ctype.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/api.h"
#include "base/fdio.h"
#include "fuzz.h"
#include "net/internal.h"

#define OPT_ATTESTED 1u  /* QEMU is asked which VM it is */
#define OPT_ANYTHING 2u  /* may the peer talk to us at all? */
#define OPT_NAMELESS 4u  /* a peer without a certificate */
#define OPT_NO_RECORD 8u /* the socket has no name */

static int file = -1;
static char path[64], names[2][256], socket_name[256];
static unsigned n_names;

/* ---- the peer ---- */

static const char *peer_name(const struct vc_conn *c, unsigned i)
{
    (void)c;
    return i < n_names ? names[i] : NULL;
}

static const struct vc_conn_ops ops = {.peer_name = peer_name};
static const struct vc_conn peer = {.ops = &ops};

/* ---- the rules once more ---- */

enum answer { MISTAKE, NO, YES, UNTOLD /* brackets are left to fnmatch(3) */ };

struct text {
    const char *p;
    size_t n;
};

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

/* The next word before the end of the line or a comment. */
static struct text next_word(struct text *line)
{
    struct text w;

    while (line->n && is_blank(*line->p)) {
        line->p++;
        line->n--;
    }
    w = (struct text){line->p, 0};
    while (line->n && !is_blank(*line->p)) {
        line->p++;
        line->n--;
        w.n++;
    }
    return w;
}

static bool is_pattern(struct text t)
{
    for (size_t i = 0; i < t.n; i++)
        if (!isalnum((unsigned char)t.p[i]) && !memchr(".-_:*?[]", t.p[i], 8))
            return false;
    return t.n > 0;
}

static bool is_uuid(struct text t, struct vc_id *id)
{
    char text[VC_ID_TEXT_BYTES];

    if (t.n != VC_ID_TEXT_BYTES - 1)
        return false;
    memcpy(text, t.p, t.n);
    text[t.n] = '\0';
    return vc_id_parse(text, id);
}

/* Asterisks and question marks; row[j]: whether the pattern so far stands for j characters. */
static bool matches(struct text pattern, const char *name, bool fold)
{
    bool row[257] = {true}, next[257];
    size_t n = strlen(name);

    for (size_t i = 0; i < pattern.n; i++) {
        unsigned char c = (unsigned char)pattern.p[i];

        next[0] = row[0] && c == '*';
        for (size_t j = 1; j <= n; j++) {
            unsigned char at = (unsigned char)name[j - 1];
            bool same = c == '?' || c == at || (fold && tolower(c) == tolower(at));

            next[j] = c == '*' ? row[j] || next[j - 1] : row[j - 1] && same;
        }
        memcpy(row, next, sizeof(row));
    }
    return row[n];
}

/* What one word lets the peer do. */
static enum answer word_says(struct text w, const struct vc_reach *what)
{
    const char *equals = memchr(w.p, '=', w.n);
    struct text name = {w.p, equals ? (size_t)(equals - w.p) : w.n};
    struct vc_id id;
    char uuid[VC_ID_TEXT_BYTES];

    if (w.n == 1 && *w.p == '*')
        return YES;
    if (is_uuid(w, &id)) {
        vc_id_format(&id, uuid);
        return what->name && vc_id_equal(&id, &what->vm) &&
                       (!*what->name || !strcmp(uuid, what->name))
                   ? YES
                   : NO;
    }
    if (!is_pattern(name) || (equals && !is_uuid((struct text){equals + 1, w.n - name.n - 1}, &id)))
        return MISTAKE;
    if (!what->name || (equals && !vc_id_equal(&id, &what->vm)) || (!equals && !what->attested))
        return NO;
    if (equals && !*what->name)
        return YES;
    return memchr(name.p, '[', name.n) ? UNTOLD : matches(name, what->name, false) ? YES : NO;
}

static enum answer line_says(struct text line, const struct vc_reach *what)
{
    const char *comment = memchr(line.p, '#', line.n);
    struct text who, w;
    enum answer so_far = NO;
    bool about = false, untold, any = false;

    if (comment)
        line.n = (size_t)(comment - line.p);
    who = next_word(&line);
    if (!who.n)
        return NO;
    if (!is_pattern(who))
        return MISTAKE;
    untold = memchr(who.p, '[', who.n);
    for (unsigned i = 0; i < n_names; i++)
        about = about || (!untold && matches(who, names[i], true));
    while ((w = next_word(&line)).n) {
        enum answer says = word_says(w, what);

        any = true;
        if (says == MISTAKE)
            return MISTAKE;
        if (!what->name)
            says = YES; /* to be named at all is enough */
        if (untold && n_names && says == YES)
            says = UNTOLD;
        if ((about || (untold && n_names)) && says > NO && so_far != YES)
            so_far = says;
    }
    return any ? so_far : MISTAKE;
}

static enum answer file_says(struct text t, const struct vc_reach *what)
{
    enum answer so_far = NO;

    if (memchr(t.p, 0, t.n))
        return MISTAKE;
    while (t.n) {
        const char *end = memchr(t.p, '\n', t.n);
        struct text line = {t.p, end ? (size_t)(end - t.p) : t.n};
        enum answer says = line_says(line, what);

        if (says == MISTAKE)
            return MISTAKE;
        if (says > NO && so_far != YES)
            so_far = says;
        t.n -= line.n + !!end;
        t.p += line.n + !!end;
    }
    return so_far;
}

/* ---- questions ---- */

static void set_up(void)
{
    if (file >= 0)
        return;
    file = memfd_create("peers", MFD_CLOEXEC);
    FUZZ_ASSERT(file >= 0 && fchmod(file, 0600) == 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
}

static void read_name(struct vc_reader *in, char out[256])
{
    struct vc_reader r = fuzz_part(in, (size_t)fuzz_number(in, 1));

    memcpy(out, r.data, r.len);
    out[r.len] = '\0';
}

static void check(enum answer says, const struct vc_reach *what)
{
    struct vc_err err = VC_ERR_INIT, again = VC_ERR_INIT;
    int rc = vc_allow_check(path, &err);

    fuzz_check_error(rc, &err);
    FUZZ_ASSERT(rc == (says == MISTAKE ? VC_E_REFUSED : 0));
    rc = vc_allow_may_reach(path, &peer, what, &err);
    fuzz_check_error(rc, &err);
    FUZZ_ASSERT(rc == 0 || rc == VC_E_REFUSED);
    FUZZ_ASSERT(says == UNTOLD || !rc == (says == YES));
    FUZZ_ASSERT(rc || n_names);
    FUZZ_ASSERT(vc_allow_may_reach(path, &peer, what, &again) == rc);
    FUZZ_ASSERT(!rc || !strcmp(err.message, again.message));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct vc_reader in = vc_reader(data, n), text, uuid;
    unsigned options = (unsigned)fuzz_number(&in, 1);
    struct vc_reach what = {.name = options & OPT_ANYTHING ? NULL : socket_name,
                            .attested = options & OPT_ATTESTED};

    set_up();
    text = fuzz_part(&in, (size_t)fuzz_number(&in, 2));
    for (unsigned i = 0; i < VC_ARRAY_LEN(names); i++)
        read_name(&in, names[i]);
    n_names = options & OPT_NAMELESS ? 0 : names[1][0] ? 2 : 1;
    read_name(&in, socket_name);
    if (options & OPT_NO_RECORD)
        socket_name[0] = '\0';
    uuid = fuzz_part(&in, VC_ID_TEXT_BYTES - 1);
    if (!is_uuid((struct text){(const char *)uuid.data, uuid.len}, &what.vm))
        what.vm = (struct vc_id){{0}};
    FUZZ_ASSERT(ftruncate(file, 0) == 0 && lseek(file, 0, SEEK_SET) == 0);
    FUZZ_ASSERT(vc_write_full(file, text.data, text.len) == 0);
    check(file_says((struct text){(const char *)text.data, text.len}, &what), &what);
    return 0;
}
