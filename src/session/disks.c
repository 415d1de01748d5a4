/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "session/disks.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/clock.h"
#include "session/disks_graph.h"

/* Theory of operation
 *
 * No command before QEMU 10.0 says "activate", but a block export does it: a node that is exported
 * has to be ready (QEMU: block/export/export.c, blk_exp_add()). So each disk is exported for a
 * moment, read-only, by an NBD server that takes one client, and that is us: we are connected
 * before QEMU is handed the socket, so nobody else gets in.
 *
 * The export succeeds all the same where QEMU could not activate the node, as where another process
 * has a lock of its image. So it is looked at afterwards (disks_graph.c). QEMU asserts of each node
 * on top of a graph that it is active, whether a device has it or not; those below are activated
 * with it. */

#define EXPORT "vecycle-activate"
#define FD_NAME "vecycle-nbd"
#define GONE_TIMEOUT_MS 5000

/* A listening socket with a name that the kernel makes up, and the first client of it. */
static int listen_unnamed(int *client, struct vc_err *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    socklen_t n = sizeof(a);
    vc_auto_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    *client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || *client < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a.sun_family)) < 0 ||
        listen(fd, 1) < 0 || getsockname(fd, (struct sockaddr *)&a, &n) < 0 ||
        connect(*client, (struct sockaddr *)&a, n) < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot make a socket for QEMU");
    return vc_steal_fd(&fd);
}

/* *client: ours, to be closed when the server has ended. */
static int start_server(struct vc_qmp *q, int *client, struct vc_err *err)
{
    vc_auto_close int fd = listen_unnamed(client, err);
    struct json_object *args, *data, *addr;
    int rc;

    if (fd < 0)
        return fd;
    args = json_object_new_object();
    vc_json_add_str(args, "fdname", FD_NAME);
    rc = vc_qmp_execute(q, "getfd", args, fd, NULL, err);
    if (rc)
        return rc;
    data = json_object_new_object();
    vc_json_add_str(data, "str", FD_NAME);
    addr = json_object_new_object();
    vc_json_add_str(addr, "type", "fd");
    json_object_object_add(addr, "data", data);
    args = json_object_new_object();
    json_object_object_add(args, "addr", addr);
    vc_json_add_u64(args, "max-connections", 1);
    rc = vc_qmp_execute(q, "nbd-server-start", args, -1, NULL, err);
    if (rc) { /* QEMU has the descriptor still */
        struct vc_err ignored = VC_ERR_INIT;

        args = json_object_new_object();
        vc_json_add_str(args, "fdname", FD_NAME);
        if (vc_qmp_execute(q, "closefd", args, -1, NULL, &ignored))
            return rc;
    }
    return rc;
}

static bool is_exported(struct vc_qmp *q)
{
    vc_auto_json struct json_object *list = NULL;
    struct vc_err ignored = VC_ERR_INIT;

    if (vc_qmp_execute(q, "query-block-exports", NULL, -1, &list, &ignored) ||
        !json_object_is_type(list, json_type_array))
        return false;
    for (size_t i = 0; i < json_object_array_length(list); i++)
        if (!strcmp(vc_json_str(json_object_array_get_idx(list, i), "id", ""), EXPORT))
            return true;
    return false;
}

static int end_export(struct vc_qmp *q, struct vc_err *err)
{
    uint64_t deadline = vc_now_ns() + GONE_TIMEOUT_MS * VC_NS_PER_MS;
    struct json_object *args = json_object_new_object();
    int rc;

    vc_json_add_str(args, "id", EXPORT);
    vc_json_add_str(args, "mode", "hard");
    rc = vc_qmp_execute(q, "block-export-del", args, -1, NULL, err);
    while (!rc && is_exported(q) && vc_now_ns() < deadline)
        poll(NULL, 0, 1);
    return rc;
}

/* Somebody was killed in the middle of this. */
static int end_leftover(struct vc_qmp *q, struct vc_err *err)
{
    int rc = is_exported(q) ? end_export(q, err) : VC_NOT_FOUND;

    if (rc)
        return rc == VC_NOT_FOUND ? 0 : rc;
    return vc_qmp_simple(q, "nbd-server-stop", err);
}

static int activate(struct vc_qmp *q, const char *node, struct vc_err *err)
{
    struct json_object *args = json_object_new_object();
    int rc;

    vc_json_add_str(args, "id", EXPORT);
    vc_json_add_str(args, "type", "nbd");
    vc_json_add_str(args, "node-name", node);
    vc_json_add_bool(args, "writable", false);
    rc = vc_qmp_execute(q, "block-export-add", args, -1, NULL, err);
    return rc ? rc : end_export(q, err);
}

static int activate_all(struct vc_qmp *q, struct vc_err *err)
{
    struct vc_disks d;
    int rc = vc_disks_get(q, &d, err);

    for (size_t i = 0; !rc && i < d.n; i++)
        if (d.nodes[i].is_top)
            rc = activate(q, d.nodes[i].name, err);
    vc_disks_put(&d);
    return rc;
}

static int check_all(struct vc_qmp *q, struct vc_err *err)
{
    struct vc_disks d;
    int rc = vc_disks_get(q, &d, err);

    for (size_t i = 0; !rc && i < d.n; i++)
        if (d.nodes[i].is_top && !vc_disks_is_active(q, &d, &d.nodes[i]))
            rc = vc_err_set(err, VC_E_QEMU_STATE,
                            "'%.60s' stays inactive, as if its image were locked",
                            vc_disks_name(&d, &d.nodes[i]));
    vc_disks_put(&d);
    return rc;
}

int vc_disks_activate(struct vc_qmp *q, struct vc_err *err)
{
    struct vc_err why = VC_ERR_INIT;
    vc_auto_close int client = -1;
    unsigned version;
    bool ours;
    int rc = vc_qmp_version(q, &version, err);

    if (rc || version >= VC_DISKS_INACTIVE_VERSION)
        return rc;
    rc = end_leftover(q, err);
    if (rc)
        return rc;
    ours = start_server(q, &client, &why) == 0; /* else there may be one, which does as well */
    why = VC_ERR_INIT;
    rc = activate_all(q, &why);
    if (!rc)
        rc = check_all(q, &why);
    /* QEMU waits for its clients when it stops the server, and does not look at their sockets
     * meanwhile (7.2 waits in AIO_WAIT_WHILE, which polls others): a command that it has answered
     * since shows that its main loop has come round, and has seen ours closed. */
    vc_cleanup_close(&client);
    client = -1;
    (void)is_exported(q);
    if (ours && vc_qmp_simple(q, "nbd-server-stop", err))
        return err->code;
    return rc ? vc_err_set_hint(
                    err, VC_E_QEMU_STATE,
                    "end what else has its images open, or continue the VM once; then try again",
                    "this QEMU cannot migrate a VM with inactive disks, and they cannot "
                    "be activated: %.130s",
                    why.message)
              : 0;
}
