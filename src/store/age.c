/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/durable.h"
#include "base/fdio.h"
#include "store/forget.h"

/* How old a generation is, whatever became of the clock: docs/formats/store.md section 7. */

static const char magic[8] = "vcage\n\0";
#define NOTE_VERSION 1
#define NOTE_BYTES 104u
/** 2020-01-01: a wall clock before this was never set. */
#define EARLIEST_S 1577836800ull
#define REWRITE_S 86400ull

static bool read_boot_id(struct vc_id *id)
{
    vc_auto_close int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    char text[VC_ID_TEXT_BYTES];

    if (fd < 0 || vc_read_full(fd, text, sizeof(text) - 1) != 1)
        return false;
    text[sizeof(text) - 1] = 0;
    return vc_id_parse(text, id);
}

void vc_gc_env_now(struct vc_gc_env *env, int dir_fd)
{
    struct timespec ts = {0};

    *env = (struct vc_gc_env){.wall_s = vc_wall_s()};
    if (read_boot_id(&env->boot) && clock_gettime(CLOCK_BOOTTIME, &ts) == 0)
        env->boot_s = (uint64_t)ts.tv_sec;
    vc_disk_space(dir_fd, &env->disk_bytes, &env->free_bytes);
}

static uint64_t passed_since(const struct vc_age *note, const struct vc_gc_env *env)
{
    uint64_t wall = 0;

    if (!vc_id_is_nil(&env->boot) && vc_id_equal(&note->boot, &env->boot) &&
        env->boot_s >= note->boot_s)
        return env->boot_s - note->boot_s;
    if (note->wall_s >= EARLIEST_S && env->wall_s >= note->wall_s)
        wall = env->wall_s - note->wall_s;
    return VC_MAX(wall, env->boot_s);
}

struct vc_age vc_age_at(const struct vc_age *note, const struct vc_id *gen, uint64_t created_s,
                        const struct vc_gc_env *env)
{
    struct vc_age now = {
        .gen = *gen,
        .wall_s = env->wall_s,
        .boot_s = env->boot_s,
        .boot = env->boot,
    };

    if (note && vc_id_equal(&note->gen, gen))
        now.age_s = note->age_s + passed_since(note, env);
    else if (created_s >= EARLIEST_S && env->wall_s >= created_s)
        now.age_s = env->wall_s - created_s;
    return now;
}

bool vc_age_worth_noting(const struct vc_age *note, const struct vc_age *now)
{
    return !note || !vc_id_equal(&note->gen, &now->gen) || !vc_id_equal(&note->boot, &now->boot) ||
           now->age_s >= note->age_s + REWRITE_S;
}

int vc_age_read(int dir_fd, struct vc_age *out)
{
    vc_auto_close int fd = vc_io_kernel.open(&vc_io_kernel, dir_fd, "age", O_RDONLY);
    uint8_t buf[NOTE_BYTES], sum[VC_SHA256_BYTES];
    struct vc_reader r = vc_reader(buf, sizeof(buf) - VC_SHA256_BYTES);
    const uint8_t *m;

    if (fd < 0 || vc_read_full(fd, buf, sizeof(buf)) != 1 || !vc_sha256(buf, r.len, sum) ||
        memcmp(sum, buf + r.len, sizeof(sum)) != 0)
        return VC_NOT_FOUND;
    m = vc_read_bytes(&r, sizeof(magic));
    if (memcmp(m, magic, sizeof(magic)) != 0 || vc_read_u32(&r) != NOTE_VERSION)
        return VC_NOT_FOUND;
    vc_read_u32(&r);
    vc_read_copy(&r, out->gen.b, sizeof(out->gen.b));
    out->age_s = vc_read_u64(&r);
    out->wall_s = vc_read_u64(&r);
    out->boot_s = vc_read_u64(&r);
    vc_read_copy(&r, out->boot.b, sizeof(out->boot.b));
    return 0;
}

int vc_age_write(const struct vc_io *io, int dir_fd, const struct vc_age *age, struct vc_err *err)
{
    uint8_t buf[NOTE_BYTES];
    struct vc_writer w = vc_writer(buf, sizeof(buf));

    vc_write_bytes(&w, magic, sizeof(magic));
    vc_write_u32(&w, NOTE_VERSION);
    vc_write_u32(&w, 0);
    vc_write_bytes(&w, age->gen.b, sizeof(age->gen.b));
    vc_write_u64(&w, age->age_s);
    vc_write_u64(&w, age->wall_s);
    vc_write_u64(&w, age->boot_s);
    vc_write_bytes(&w, age->boot.b, sizeof(age->boot.b));
    if (!vc_sha256(buf, w.len, buf + w.len))
        return vc_err_set(err, VC_E_FAILED, "OpenSSL: SHA-256 failed");
    return vc_durable_write_file(io, dir_fd, "age", buf, sizeof(buf), err);
}
