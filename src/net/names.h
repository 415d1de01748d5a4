/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_NET_NAMES_H
#define VC_NET_NAMES_H

#include <netdb.h>

#include "base/err.h"

/* Looking up names. What getaddrinfo(3) does is up to the modules of the name service switch, which
 * are loaded when a name gets as far as them, and ask whom they like: a process that filters its
 * system calls cannot do that. So it starts a process before that does nothing else, and another
 * one that starts it again should it end. */

/** Both have ended, and nothing but addresses can be found any more. (EAI_* are negative.) */
#define VC_NAMES_ENDED 1

/** Starts them; lookups of this process go there from now on. Once, before other threads run. */
int vc_names_start(struct vc_err *err) VC_NODISCARD;
/** Ends them, if there are any: they end with this process anyway. */
void vc_names_stop(void);

/** getaddrinfo(3): 0, EAI_*, VC_NAMES_ENDED. A lookup that takes too long, or that the module does
 *  not survive, is EAI_AGAIN. An address is read in this process. Any thread. */
int vc_names_find(const char *host, const char *port, const struct addrinfo *want,
                  struct addrinfo **out) VC_NODISCARD;
/** NULL is fine. */
void vc_names_free(struct addrinfo *list);

#endif
