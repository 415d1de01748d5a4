/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/fdio.h"
#include "session/session.h"

int vc_cancel_init(struct vc_cancel *c, struct vc_err *err)
{
    c->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return c->fd < 0 ? vc_err_set_errno(err, VC_E_FAILED, "cannot make an eventfd") : 0;
}

void vc_cancel_now(struct vc_cancel *c)
{
    uint64_t one = 1;

    if (write(c->fd, &one, sizeof(one)) < 0) {
        /* Full means: set already. */
    }
}

bool vc_cancel_is_set(const struct vc_cancel *c)
{
    return vc_wait_readable(c->fd, 0) > 0;
}

void vc_cancel_fini(struct vc_cancel *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}
