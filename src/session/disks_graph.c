/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "session/disks_graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Theory of operation
 *
 * QEMU before 10.0 says of no node whether it is active, but its graph shows it, whatever the
 * storage is and whoever may open it. A device has its permissions only while its node is active:
 * until then it does not write, and shares all (QEMU: block/block-backend.c, blk_root_activate()).
 * A format likewise has its file to itself only while it is active (block.c,
 * bdrv_default_perms_for_storage()).
 *
 * What never writes, and minds nobody else who does, shows nothing: read-only firmware, and a raw
 * image that no device has. That needs no lock, so it was not kept from being activated. */

static size_t length(struct json_object *list)
{
    return json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
}

static bool has(struct json_object *list, const char *permission)
{
    for (size_t i = 0; i < length(list); i++) {
        struct json_object *o = json_object_array_get_idx(list, i);

        if (json_object_is_type(o, json_type_string) &&
            !strcmp(json_object_get_string(o), permission))
            return true;
    }
    return false;
}

static struct vc_disks_node *find(struct vc_disks *d, uint64_t id)
{
    for (size_t i = 0; i < d->n; i++)
        if (d->nodes[i].id == id)
            return &d->nodes[i];
    return NULL;
}

static int take_nodes(struct vc_disks *d, struct vc_err *err)
{
    struct json_object *list = vc_json_get(d->graph, "nodes");
    size_t n = length(list);

    if (n > VC_DISKS_MAX_NODES)
        return vc_err_set(err, VC_E_QEMU_STATE, "it has %zu block nodes", n);
    d->nodes = calloc(n + 1, sizeof(*d->nodes));
    if (!d->nodes)
        return vc_err_set(err, VC_E_NOMEM, "no memory for %zu block nodes", n);
    for (d->n = 0; d->n < n; d->n++) {
        struct json_object *o = json_object_array_get_idx(list, d->n);
        const char *type = vc_json_str(o, "type", "");

        d->nodes[d->n] = (struct vc_disks_node){
            .id = vc_json_u64(o, "id", 0),
            .name = vc_json_str(o, "name", ""),
            .is_backend = !strcmp(type, "block-backend"),
            .is_node = !strcmp(type, "block-driver"),
            .is_top = !strcmp(type, "block-driver"),
        };
    }
    return 0;
}

static void take_edge(struct vc_disks *d, struct json_object *edge)
{
    struct vc_disks_node *parent = find(d, vc_json_u64(edge, "parent", 0));
    struct vc_disks_node *child = find(d, vc_json_u64(edge, "child", 0));
    struct json_object *perm = vc_json_get(edge, "perm");
    bool shows = has(perm, "write") || !has(vc_json_get(edge, "shared-perm"), "write");

    if (!parent || !child)
        return;
    if (parent->is_backend) {
        child->is_shown |= shows;
        return;
    }
    child->is_top &= !parent->is_node;
    if (parent->is_node && !strcmp(vc_json_str(edge, "name", ""), "file")) {
        parent->is_shown |= shows;
        parent->reads_file |= length(perm) > 0;
    }
}

static int take_edges(struct vc_disks *d, struct vc_err *err)
{
    struct json_object *list = vc_json_get(d->graph, "edges");

    if (length(list) > VC_DISKS_MAX_EDGES)
        return vc_err_set(err, VC_E_QEMU_STATE, "its block nodes have %zu edges", length(list));
    for (size_t i = 0; i < length(list); i++)
        take_edge(d, json_object_array_get_idx(list, i));
    return 0;
}

int vc_disks_get(struct vc_qmp *q, struct vc_disks *out, struct vc_err *err)
{
    int rc;

    *out = (struct vc_disks){0};
    rc = vc_qmp_execute(q, "x-debug-query-block-graph", NULL, -1, &out->graph, err);
    if (!rc)
        rc = vc_qmp_execute(q, "query-block", NULL, -1, &out->media, err);
    if (!rc)
        rc = take_nodes(out, err);
    return rc ? rc : take_edges(out, err);
}

void vc_disks_put(struct vc_disks *d)
{
    json_object_put(d->graph);
    json_object_put(d->media);
    free(d->nodes);
    *d = (struct vc_disks){0};
}

/* What query-block says of the drive or device that has the node; NULL: none has it. */
static struct json_object *medium_of(const struct vc_disks *d, const struct vc_disks_node *n)
{
    for (size_t i = 0; i < length(d->media); i++) {
        struct json_object *o = json_object_array_get_idx(d->media, i);

        if (!strcmp(vc_json_str(vc_json_get(o, "inserted"), "node-name", ""), n->name))
            return o;
    }
    return NULL;
}

const char *vc_disks_name(const struct vc_disks *d, const struct vc_disks_node *n)
{
    struct json_object *medium = medium_of(d, n);
    const char *drive = vc_json_str(medium, "device", "");

    return *drive ? drive : vc_json_str(medium, "qdev", n->name);
}

/* Whether the device lets nobody else write. Firmware (pflash) has no such choice, and does. @qdev:
 * its id or its path. */
static bool keeps_others_out(struct vc_qmp *q, const char *qdev)
{
    vc_auto_json struct json_object *shares = NULL;
    struct json_object *args = json_object_new_object();
    struct vc_err ignored = VC_ERR_INIT;
    char path[512];

    snprintf(path, sizeof(path), "%s%s", *qdev == '/' ? "" : "/machine/peripheral/", qdev);
    vc_json_add_str(args, "path", path);
    vc_json_add_str(args, "property", "share-rw");
    return !vc_qmp_execute(q, "qom-get", args, -1, &shares, &ignored) &&
           !json_object_get_boolean(shares);
}

bool vc_disks_is_active(struct vc_qmp *q, const struct vc_disks *d, const struct vc_disks_node *n)
{
    struct json_object *medium = medium_of(d, n), *inserted = vc_json_get(medium, "inserted");
    const char *qdev = vc_json_str(medium, "qdev", "");

    if (n->is_shown)
        return true;
    if (!medium)
        return !n->reads_file; /* raw reads for others only */
    if (n->reads_file && strcmp(vc_json_str(inserted, "drv", ""), "raw") != 0)
        return false;
    return !*qdev || (vc_json_bool(inserted, "ro", false) && !keeps_others_out(q, qdev));
}
