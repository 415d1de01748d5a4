/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <poll.h>

#include "api/api.h"
#include "base/clock.h"
#include "base/fdio.h"

/* Theory of operation
 *
 * A failure may be followed by another attempt if the VM runs on here and the cause could pass by
 * itself: the other host or the network, and a destination QEMU, which ends when a migration into
 * it fails and must be started again by somebody. What had arrived is kept there, so the next
 * attempt sends the rest. Between attempts there is a growing pause; then an attempt that cannot
 * even begin (no new QEMU yet, the other host still clearing up) is not counted but repeated, for
 * a limited time; ever more rarely where each one is a login, which is work for the other host and
 * what its administrator (or fail2ban) takes for an attack. */

#define FIRST_PAUSE_MS 1000u
#define LONGEST_PAUSE_MS 30000u
/** How long an attempt waits for the other host to be ready, and how often it looks. */
#define READY_LIMIT_MS 60000u
#define READY_STEP_MS 1000u
/** The longest pause of that kind where each look is a login. */
#define LONGEST_STEP_MS 16000u

/* Whether anything of the VM had been sent. */
static bool began(const struct vc_session_result *r)
{
    return r->stream_bytes > 0;
}

bool vc_retry_may_pass(const struct vc_err *err, const struct vc_session_result *r)
{
    if (err->lasts)
        return false;
    switch (err->code) {
    case VC_E_PEER_LOST:
    case VC_E_UNREACHABLE:
    case VC_E_BUSY:
    case VC_E_SEAL: /* the next one goes without reuse */
        return true;
    case VC_E_DEST_QEMU:
        return began(r); /* else nobody waits there */
    default:
        return false;
    }
}

/* Whether the other host is not ready, and may be in a moment. A socket that has gone since the
 * last attempt is an agent's that starts again. */
static bool is_early(const struct vc_err *err, const struct vc_session_result *r)
{
    int code = err->code;

    if (err->lasts && err->sys_errno != ENOENT)
        return false;
    return !began(r) && (code == VC_E_DEST_QEMU || code == VC_E_NO_SUCH_VM || code == VC_E_BUSY ||
                         code == VC_E_UNREACHABLE || code == VC_E_PEER_LOST);
}

static int pause_ms(const struct vc_retry *t, uint32_t ms, struct vc_err *err)
{
    if (!t->cancel)
        poll(NULL, 0, (int)ms);
    else if (vc_wait_readable(t->cancel->fd, (int)ms) > 0)
        return vc_err_set(err, VC_E_CANCELLED, "cancelled; the VM runs on here");
    return 0;
}

uint32_t vc_retry_step_ms(const struct vc_retry *t, uint32_t last)
{
    return t->authenticates ? VC_MIN(2 * last, LONGEST_STEP_MS) : last;
}

/* One more attempt, as soon as the other host is ready. */
static int attempt(const struct vc_retry *t, struct vc_session_result *r, struct vc_err *err)
{
    uint64_t deadline = vc_now_ns() + READY_LIMIT_MS * VC_NS_PER_MS;
    uint32_t step = READY_STEP_MS;

    for (;;) {
        int rc = t->once(t->opaque, r, err);

        if (!rc || !is_early(err, r) || vc_now_ns() > deadline)
            return rc;
        vc_log(t->log, VC_LOG_DEBUG, "not yet: %s", err->message);
        rc = pause_ms(t, step, err);
        if (rc)
            return rc;
        step = vc_retry_step_ms(t, step);
    }
}

int vc_retry_run(struct vc_retry *t, struct vc_session_result *r, struct vc_err *err)
{
    uint32_t ms = FIRST_PAUSE_MS;
    int rc;

    t->attempts = 1;
    rc = t->once(t->opaque, r, err);
    while (rc && t->attempts <= t->retries && vc_retry_may_pass(err, r)) {
        vc_log(t->log, VC_LOG_WARNING, "attempt %u failed, the next one follows in %u s: %s",
               t->attempts, ms / 1000, err->message);
        rc = pause_ms(t, ms, err);
        if (rc)
            return rc;
        t->attempts++;
        ms = VC_MIN(2 * ms, LONGEST_PAUSE_MS);
        rc = attempt(t, r, err);
    }
    return rc;
}
