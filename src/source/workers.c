/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/workers.h"

#include "base/log.h"
#include "link/link.h"

static struct vc_pack_job *job_of(struct vc_pack_workers *w, uint64_t number)
{
    return &w->jobs[number % VC_PACK_AHEAD_MAX];
}

/* The next job, or NULL at the end. */
static struct vc_pack_job *next_job(struct vc_pack_workers *w)
{
    VC_LOCKED(&w->mu);

    while (!w->stop && w->begun == w->given)
        pthread_cond_wait(&w->changed, &w->mu);
    return w->stop ? NULL : job_of(w, w->begun++);
}

static void *worker_main(void *arg)
{
    struct vc_pack_worker *me = arg;
    struct vc_pack_workers *w = me->all;
    struct vc_pack_job *job;

    while ((job = next_job(w))) {
        struct vc_link_frame *f = vc_packer_frame(&me->packer, job->batch, job->form, job->level);

        {
            VC_LOCKED(&w->mu);
            job->frame = f;
            job->done = true;
            pthread_cond_broadcast(&w->changed);
        }
        vc_queue_poke(w->wake);
    }
    return NULL;
}

void vc_pack_workers_init(struct vc_pack_workers *w, struct vc_queue *wake, unsigned n,
                          const struct vc_gen *gen, const int *map,
                          const struct vc_lineage *lineage, const struct vc_log *log)
{
    struct vc_err err = VC_ERR_INIT;

    *w = (struct vc_pack_workers){.wake = wake};
    pthread_mutex_init(&w->mu, NULL);
    vc_cond_init(&w->changed);
    for (; w->n < n && w->n < VC_PACK_WORKERS_MAX; w->n++) {
        struct vc_pack_worker *me = &w->workers[w->n];
        int rc = vc_packer_init(&me->packer, gen, map, lineage, log, &err);

        me->all = w;
        if (!rc)
            rc = vc_thread_start(&me->thread, "vc-src-pack", worker_main, me, &err);
        if (rc) {
            vc_log_err(log, VC_LOG_WARNING, "batches are packed by fewer threads", &err);
            vc_packer_fini(&me->packer);
            break;
        }
    }
}

void vc_pack_workers_fini(struct vc_pack_workers *w)
{
    {
        VC_LOCKED(&w->mu);
        w->stop = true;
        pthread_cond_broadcast(&w->changed);
    }
    for (unsigned i = 0; i < w->n; i++) {
        vc_thread_join(&w->workers[i].thread);
        vc_packer_fini(&w->workers[i].packer);
    }
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->mu);
}

unsigned vc_pack_workers_pending(struct vc_pack_workers *w)
{
    VC_LOCKED(&w->mu);

    return (unsigned)(w->given - w->finished);
}

bool vc_pack_workers_have_room(struct vc_pack_workers *w)
{
    return vc_pack_workers_pending(w) <= w->n;
}

bool vc_pack_workers_are_ready(struct vc_pack_workers *w)
{
    VC_LOCKED(&w->mu);

    return w->finished < w->given && job_of(w, w->finished)->done;
}

void vc_pack_workers_give(struct vc_pack_workers *w, struct vc_src_batch *b, enum vc_src_form form,
                          int level)
{
    VC_LOCKED(&w->mu);

    *job_of(w, w->given++) = (struct vc_pack_job){.batch = b, .form = form, .level = level};
    pthread_cond_broadcast(&w->changed);
}

struct vc_src_batch *vc_pack_workers_take(struct vc_pack_workers *w, struct vc_link_frame **frame)
{
    VC_LOCKED(&w->mu);
    struct vc_pack_job *job = job_of(w, w->finished);

    while (!job->done)
        pthread_cond_wait(&w->changed, &w->mu);
    w->finished++;
    *frame = job->frame;
    return job->batch;
}
