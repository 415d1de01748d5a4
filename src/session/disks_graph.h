/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_SESSION_DISKS_GRAPH_H
#define VC_SESSION_DISKS_GRAPH_H

#include "qmp/qmp.h"

/* Private to src/session/disks.c: QEMU's graph of block nodes, with who may do what to whom. */

/** More are not looked at. */
#define VC_DISKS_MAX_NODES 4096
#define VC_DISKS_MAX_EDGES 16384

struct vc_disks_node {
    uint64_t id;
    const char *name; /* in the graph's JSON */
    bool is_backend;  /* between a device or an export and a node */
    bool is_node;     /* neither that nor a job */
    bool is_top;      /* a node that none is above */
    bool is_shown;    /* some permission is as of an active node alone */
    bool reads_file;  /* has a file below it, which it reads by itself or for others */
};

struct vc_disks {
    struct json_object *graph, *media; /* x-debug-query-block-graph, query-block */
    struct vc_disks_node *nodes;
    size_t n;
};

/** Asks QEMU. *out: to be given to vc_disks_put(), also where this fails. VC_E_QMP;
 *  VC_E_QEMU_STATE: it is larger than what is looked at. */
int vc_disks_get(struct vc_qmp *q, struct vc_disks *out, struct vc_err *err) VC_NODISCARD;
/** Frees what is in it. */
void vc_disks_put(struct vc_disks *d);
/** Whether a top node is active. It was exported successfully before, as else a write permission
 *  may be left of an attempt to activate it. May ask QEMU for more. */
bool vc_disks_is_active(struct vc_qmp *q, const struct vc_disks *d, const struct vc_disks_node *n);
/** How users call it: its drive, its device, or the node. */
const char *vc_disks_name(const struct vc_disks *d, const struct vc_disks_node *n);

#endif
