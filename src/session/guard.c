/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "session/common.h"

/* While two sides come to terms each waits for the other in turn, in one thread. A second one sees
 * to it that this ends: on a cancellation, or when the time is up, it takes the link down. */

static void *guard_main(void *arg)
{
    struct vc_guard *g = arg;
    uint64_t deadline = vc_now_ns() + (uint64_t)g->limit_ms * VC_NS_PER_MS;
    struct pollfd p[2] = {
        {.fd = g->over_fd, .events = POLLIN},
        {.fd = g->cancel ? g->cancel->fd : -1, .events = POLLIN},
    };

    for (;;) {
        uint64_t now = vc_now_ns();
        int n = poll(p, 2, now < deadline ? (int)((deadline - now) / VC_NS_PER_MS) + 1 : 0);

        if (n < 0 && errno == EINTR)
            continue;
        if (n > 0 && p[0].revents)
            return NULL;
        if (n > 0)
            g->cancelled = true;
        else if (vc_now_ns() < deadline)
            continue;
        else
            g->too_late = true;
        vc_link_shutdown(g->link);
        return NULL;
    }
}

int vc_guard_start(struct vc_guard *g, struct vc_link *link, struct vc_cancel *cancel,
                   uint32_t limit_ms, struct vc_err *err)
{
    int rc;

    *g = (struct vc_guard){.link = link, .cancel = cancel, .limit_ms = limit_ms};
    g->over_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (g->over_fd < 0)
        return vc_err_set_errno(err, VC_E_FAILED, "cannot make an eventfd");
    rc = vc_thread_start(&g->thread, "vc-guard", guard_main, g, err);
    if (rc)
        return vc_guard_end(g, rc, err);
    return 0;
}

int vc_guard_end(struct vc_guard *g, int rc, struct vc_err *err)
{
    uint64_t one = 1;

    if (write(g->over_fd, &one, sizeof(one)) < 0) {
        /* Full means: readable already. */
    }
    vc_thread_join(&g->thread);
    close(g->over_fd);
    if (g->cancelled)
        return vc_err_set(err, VC_E_CANCELLED, "cancelled before anything had begun");
    if (g->too_late)
        return vc_err_set_hint(err, VC_E_PEER_LOST, "see the other host's own messages",
                               "'%.100s' did not come to terms within %u s", vc_link_peer(g->link),
                               g->limit_ms / 1000);
    return rc;
}
