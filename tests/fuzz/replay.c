/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Runs a target over files, or over all files of a directory: the corpus as a regression test, with
 * any compiler. */

#include <dirent.h>
#include <errno.h>
#include <sys/stat.h>

#include "fuzz.h"

static unsigned n_run;

static int replay_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    uint8_t *data;
    size_t n;

    if (!f || fstat(fileno(f), &st) < 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 1;
    }
    n = (size_t)st.st_size;
    data = malloc(n ? n : 1); /* just as long: a sanitizer sees a look too far */
    if (!data || fread(data, 1, n, f) != n) {
        fprintf(stderr, "%s: cannot be read\n", path);
        fclose(f);
        free(data);
        return 1;
    }
    fclose(f);
    if (getenv("FUZZ_VERBOSE"))
        fprintf(stderr, "%s\n", path);
    LLVMFuzzerTestOneInput(data, n);
    free(data);
    n_run++;
    return 0;
}

static int replay(const char *path)
{
    DIR *d = opendir(path);
    struct dirent *e;
    int bad = 0;

    if (!d)
        return replay_file(path);
    while ((e = readdir(d))) {
        char name[4096];

        if (e->d_name[0] == '.')
            continue;
        snprintf(name, sizeof(name), "%s/%s", path, e->d_name);
        bad += replay_file(name);
    }
    closedir(d);
    return bad;
}

int main(int argc, char **argv)
{
    int bad = 0;

    for (int i = 1; i < argc; i++)
        bad += replay(argv[i]);
    LLVMFuzzerTestOneInput(NULL, 0);
    printf("%u inputs\n", n_run);
    return bad || !n_run;
}
