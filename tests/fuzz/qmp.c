/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* QEMU's side of a QMP conversation: the greeting, answers and events, in the order in which the
 * client happens to read them; then the end of the connection. Nothing waits for it, nothing is
 * taken from a line that is no object.
 *
 * Input: a byte with the commands to run, then all that QEMU says. */

#include <sys/socket.h>

#include "base/fdio.h"
#include "fuzz.h"
#include "qmp/qmp.h"

#define MAX_BYTES 65536u /* what a socket holds without a reader */

static void events(struct vc_qmp *q)
{
    struct vc_err err = VC_ERR_INIT;
    struct json_object *o;
    int rc;

    while ((rc = vc_qmp_event(q, &o, &err)) == 0) {
        FUZZ_ASSERT(vc_json_get(o, "event"));
        json_object_put(o);
    }
    fuzz_check_error(rc, &err);
}

static void migration(struct vc_qmp *q)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_qmp_migration m;
    int rc = vc_qmp_migration(q, &m, &err);

    fuzz_check_error(rc, &err);
    if (!rc)
        FUZZ_ASSERT(memchr(m.status, 0, sizeof(m.status)) && memchr(m.error, 0, sizeof(m.error)));
}

static void commands(struct vc_qmp *q, unsigned which)
{
    static const struct vc_qmp_capability wanted[] = {{"events", true}, {"multifd", false}};
    struct vc_err err = VC_ERR_INIT;
    char state[32];
    struct vc_id id;
    unsigned version;
    uint64_t v;
    int fd, rc = 0;

    if (which & 1)
        rc = vc_qmp_uuid(q, &id, &err);
    if (!rc && which & 2)
        rc = vc_qmp_run_state(q, state, &err);
    if (!rc && which & 4)
        rc = vc_qmp_version(q, &version, &err);
    if (!rc && which & 8)
        rc = vc_qmp_get_parameter(q, "downtime-limit", 300, &v, &err);
    if (!rc && which & 16)
        rc = vc_qmp_set_capabilities(q, wanted, VC_ARRAY_LEN(wanted), &err);
    if (!rc && which & 32) {
        rc = vc_qmp_migrate_fd(q, false, &fd, &err);
        if (!rc)
            close(fd);
    }
    fuzz_check_error(rc, &err);
    if (which & 64)
        migration(q);
    if (which & 128)
        events(q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct vc_reader in = vc_reader(data, n);
    unsigned which = (unsigned)fuzz_number(&in, 1);
    struct vc_reader says = fuzz_rest(&in);
    struct vc_err err = VC_ERR_INIT;
    struct vc_qmp *q;
    int fds[2], rc;

    if (!says.len || says.len > MAX_BYTES)
        return 0;
    FUZZ_ASSERT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    FUZZ_ASSERT(vc_write_full(fds[1], says.data, says.len) == 0);
    shutdown(fds[1], SHUT_WR);
    rc = vc_qmp_from_fd(fds[0], "qmp", &q, &err);
    fuzz_check_error(rc, &err);
    if (!rc) {
        commands(q, which);
        vc_qmp_free(q);
    }
    close(fds[1]);
    return 0;
}
