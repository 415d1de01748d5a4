/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "session/parking.h"

#include <stdlib.h>
#include <string.h>

#include "base/thread.h"
#include "qmp/qmp.h"

/** More interrupted VMs than that on one host are recovered over new connections. */
#define MAX_PARKED 64

struct vc_parking {
    pthread_mutex_t mu;
    struct {
        struct vc_id vm;
        struct vc_qmp *qmp;
    } slots[MAX_PARKED]; /* [lock: mu] qmp NULL: free */
};

struct vc_parking *vc_parking_new(void)
{
    struct vc_parking *p = calloc(1, sizeof(*p));

    if (p)
        pthread_mutex_init(&p->mu, NULL);
    return p;
}

void vc_parking_free(struct vc_parking *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < MAX_PARKED; i++)
        vc_qmp_free(p->slots[i].qmp);
    pthread_mutex_destroy(&p->mu);
    free(p);
}

void vc_parking_put(struct vc_parking *p, const struct vc_id *vm, struct vc_qmp *qmp)
{
    if (p) {
        VC_LOCKED(&p->mu);
        size_t at = MAX_PARKED;

        for (size_t i = 0; i < MAX_PARKED; i++)
            if (p->slots[i].qmp ? vc_id_equal(&p->slots[i].vm, vm) : at == MAX_PARKED)
                at = i;
        if (at < MAX_PARKED) {
            struct vc_qmp *old = p->slots[at].qmp;

            p->slots[at].vm = *vm;
            p->slots[at].qmp = qmp;
            qmp = old;
        }
    }
    vc_qmp_free(qmp);
}

struct vc_qmp *vc_parking_take(struct vc_parking *p, const struct vc_id *vm, const char *name)
{
    if (p) {
        VC_LOCKED(&p->mu);
        for (size_t i = 0; i < MAX_PARKED; i++)
            if (p->slots[i].qmp && vc_id_equal(&p->slots[i].vm, vm) &&
                !strcmp(vc_qmp_name(p->slots[i].qmp), name))
                return vc_steal_ptr(p->slots[i].qmp);
    }
    return NULL;
}
