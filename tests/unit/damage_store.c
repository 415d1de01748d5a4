/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "damage.h"

#include "base/fdio.h"

/* Damage to what a host keeps between two visits: in the host that the VM returns to, and in the
 * one that it leaves. */

#define SECTOR 512u

static void flip_bits(uint8_t *data, size_t n)
{
    unsigned k = 1 + (unsigned)(lab_rng() % 4);

    for (unsigned i = 0; i < k; i++)
        data[lab_rng() % n] ^= (uint8_t)(1u << lab_rng() % 8);
}

static void *sector(uint8_t *data, size_t n)
{
    return data + lab_rng() % (n / SECTOR) * SECTOR;
}

/* Damages a file's content in one place, as memory, disks and file systems do. */
static void damage_once(uint8_t *data, size_t n)
{
    unsigned how = (unsigned)(lab_rng() % 8);

    if (how == 0 && n >= 2 * SECTOR)
        memmove(sector(data, n), sector(data, n), SECTOR);
    else if (how == 1 && n >= 2 * SECTOR)
        memset(sector(data, n), 0, SECTOR);
    else
        flip_bits(data, n);
}

/* No places: it is cut off. */
static void damage_file(int dir, const char *name, unsigned places)
{
    int fd = openat(dir, name, O_RDWR);
    struct stat st;
    uint8_t *data;
    size_t n;

    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    n = (size_t)st.st_size;
    data = malloc(n + 1);
    assert_non_null(data);
    assert_int_equal(vc_read_full(fd, data, n), 1);
    for (unsigned i = 0; i < places; i++)
        damage_once(data, n);
    if (places == 0)
        n = lab_rng() % n;
    assert_int_equal(ftruncate(fd, (off_t)n), 0);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    assert_int_equal(vc_write_full(fd, data, n), 0);
    free(data);
    close(fd);
}

/* One of the host's files whose name ends like that; false if it has none. */
static bool damage_some_file(const struct lab_host *h, const char *suffix, unsigned places)
{
    char names[16][80];
    unsigned n = 0;
    DIR *d = opendir(h->vm_dir);
    struct dirent *e;

    assert_non_null(d);
    while ((e = readdir(d))) {
        size_t len = strlen(e->d_name), end = strlen(suffix);

        if (len >= end && !strcmp(e->d_name + len - end, suffix) && n < VC_ARRAY_LEN(names))
            snprintf(names[n++], sizeof(names[0]), "%.79s", e->d_name);
    }
    if (n)
        damage_file(dirfd(d), names[lab_rng() % n], places);
    closedir(d);
    return n > 0;
}

/* Every page of an image differs from what the index says. */
void spoil_images(const struct lab_host *h, const struct pristine *p)
{
    for (unsigned i = 0; i < p->n; i++) {
        const struct file *file = &p->files[i];
        char path[300];
        int fd;

        if (!strstr(file->name, ".image"))
            continue;
        snprintf(path, sizeof(path), "%s/%s", h->vm_dir, file->name);
        fd = open(path, O_WRONLY);
        assert_true(fd >= 0);
        for (size_t at = 7; at < file->n; at += PAGE) {
            uint8_t b = file->data[at] ^ 0x10;

            assert_int_equal(pwrite(fd, &b, 1, (off_t)at), 1);
        }
        close(fd);
    }
}

/* What the host holds now serves again: the VM goes back to where it came from. */
static void assert_next_leg_works(struct lab *lab)
{
    struct visit v = {.from = 0};

    lab_visit(lab, &v);
    assert_int_not_equal(judge(&v), FAILED);
    assert_true(lab_bad_pages(lab, 1) <= 0);
}

/* A kind of file: damaged in so many places for a visit, and for so many visits at each host. A
 * manifest and an index are sealed as a whole, where two places are easier to notice than one. */
struct victim_file {
    const char *suffix;
    enum victim victim;
    unsigned places, visits;
};

static void one_visit(struct lab *lab, int host, const struct victim_file *file, bool cut,
                      const char *kind, const struct pristine *start)
{
    struct filter gate = {.gated = start == lab->parted};
    struct visit v = {.from = 1, .filter = &gate};

    lab_restore(lab, start);
    if (!damage_some_file(&lab->host[host], file->suffix, cut ? 0 : file->places))
        return;
    lab_visit(lab, &v);
    /* It costs reuse at most. */
    assert_int_not_equal(conclude(lab, &v, file->victim, kind, cut ? 1 : file->places), FAILED);
    if (host == 0 && start == lab->kept)
        assert_true(lab_bad_pages(lab, 0) <= 0);
    if (host == 1 && (file->victim == IMAGE || file->victim == DELTA || lab_rng() % 4 == 0))
        assert_next_leg_works(lab);
}

void damaged_stores_are_repaired_or_not_used(void **state)
{
    static const struct victim_file files[] = {
        {".image", IMAGE, 48, 32},
        {".delta", DELTA, 64, 32},
        {".index", INDEX, 1, 1024},
        {"manifest", MANIFEST, 1, 1024},
    };

    (void)state;
    for (int host = 0; host < 2; host++)
        for (size_t i = 0; i < VC_ARRAY_LEN(files); i++)
            for (unsigned k = 0; k < lab_share(the_lab, files[i].visits); k++) {
                bool parted = k % 4 == 3;        /* a return from a third host */
                bool cut = k % 10 == the_worker; /* few visits have some, too */
                char kind[40];

                snprintf(kind, sizeof(kind), "%s's %s%s%s", host ? "source" : "destination",
                         files[i].suffix + (files[i].suffix[0] == '.'), parted ? ", parted" : "",
                         cut ? ", cut" : "");
                one_visit(the_lab, host, &files[i], cut, kind,
                          parted ? the_lab->parted : the_lab->kept);
            }
}

void damaged_store_of_a_recording(struct lab *lab)
{
    static const struct victim_file files[] = {
        {".image", IMAGE, 48, 0}, {".index", INDEX, 1, 0}, {"manifest", MANIFEST, 1, 0}};

    for (size_t i = 0; i < VC_ARRAY_LEN(files); i++)
        for (unsigned k = 0; k < lab->scale; k++) {
            struct visit v = {.from = 1, .stream = &lab->recorded};

            lab_restore(lab, lab->recorded_at);
            assert_true(damage_some_file(&lab->host[0], files[i].suffix, files[i].places));
            lab_visit(lab, &v);
            assert_int_not_equal(conclude(lab, &v, files[i].victim, "recorded: destination's files",
                                          files[i].places),
                                 FAILED);
            assert_true(lab_bad_pages(lab, 0) <= 0);
        }
}
