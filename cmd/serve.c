/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "cmd.h"

static int run(struct cmd_common *c, int argc, char **argv);

const struct cmd cmd_serve = {
    .name = "serve",
    .what = "run the agent of this host",
    .help =
        "Usage: vecycle serve [OPTION...]\n"
        "\n"
        "Runs the host's agent in the foreground: it owns the checkpoint store, takes\n"
        "migrations from other hosts, and does the work of 'vecycle migrate', 'proxy' and\n"
        "'recv' on this host. A peer reaches the QEMUs whose sockets are in the socket\n"
        "directory (NAME.qmp for 'migrate', NAME.sock for 'proxy'), and nothing else.\n"
        "Migrations through ssh need no --listen.\n"
        "\n"
        "Options:\n"
        "      --listen ADDRESS     tls://HOST[:PORT] (port 7891), unix:PATH, or\n"
        "                           tcp://HOST[:PORT] (port 7890, --insecure); may be given\n"
        "                           several times\n"
        "      --tls-dir DIR        certificates and keys (default /etc/vecycle/tls)\n"
        "      --tls-timeout MS     time for a TLS handshake (default 10000)\n"
        "      --allow FILE         which peers may reach which VMs, vecycle-peers(5)\n"
        "                           (default: all that have a certificate may reach all)\n"
        "      --socket-dir DIR     where QEMU's sockets are (default /run/vecycle)\n"
        "      --control-group GROUP  members may use the control socket (default: only root)\n"
        "      --dead-peer SECONDS  silence after which the other host is dead (default "
        "10)\n" CMD_LIMIT_HELP
        "      --user USER          become this user once it listens (default: stay who it is)\n"
        "      --sandbox on|off|strict  refuse system calls that it does not need (default on);\n"
        "                           strict: end at the first\n"
        "      --insecure           allow tcp://: memory crosses the network in the clear, to\n"
        "                           anybody who asks\n",
    .run = run,
};

#define MAX_LISTEN 8

enum {
    OPT_LISTEN = 256,
    OPT_DIR,
    OPT_GROUP,
    OPT_DEAD_PEER,
    OPT_INSECURE,
    OPT_USER,
    OPT_SANDBOX,
    OPT_ALLOW,
};

static const struct option options[] = {
    {"listen", required_argument, NULL, OPT_LISTEN},
    {"socket-dir", required_argument, NULL, OPT_DIR},
    {"control-group", required_argument, NULL, OPT_GROUP},
    {"dead-peer", required_argument, NULL, OPT_DEAD_PEER},
    {"insecure", no_argument, NULL, OPT_INSECURE},
    {"allow", required_argument, NULL, OPT_ALLOW},
    CMD_TLS_OPTIONS,
    {"user", required_argument, NULL, OPT_USER},
    {"sandbox", required_argument, NULL, OPT_SANDBOX},
    CMD_LIMIT_OPTIONS,
    CMD_COMMON_OPTIONS,
    {0},
};

struct serve {
    struct vecycle_agent_options o;
    const char *listen[MAX_LISTEN];
};

static bool parse_sandbox(const char *text, enum vecycle_sandbox *out)
{
    static const char *const names[] = {"off", "on", "strict"};

    for (int i = 0; i < 3; i++)
        if (!strcmp(text, names[i])) {
            *out = (enum vecycle_sandbox)i;
            return true;
        }
    return false;
}

static int parse(struct cmd_common *c, struct serve *s, int argc, char **argv)
{
    int opt, status = -1;

    while (status < 0 && (opt = getopt_long(argc, argv, CMD_COMMON_SHORT, options, NULL)) != -1)
        switch (opt) {
        case OPT_LISTEN:
            if (s->o.n_listen == MAX_LISTEN)
                status = cmd_usage(&cmd_serve, "more than %d --listen", MAX_LISTEN);
            else
                s->listen[s->o.n_listen++] = optarg;
            break;
        case OPT_DIR:
            s->o.socket_dir = optarg;
            break;
        case OPT_GROUP:
            s->o.control_group = optarg;
            break;
        case OPT_DEAD_PEER:
            if (!cmd_parse_seconds(optarg, &s->o.dead_peer_ms))
                status = cmd_usage(&cmd_serve, "'%s' is not a number of seconds", optarg);
            break;
        case OPT_INSECURE:
            s->o.insecure = true;
            break;
        case OPT_ALLOW:
            s->o.allow = optarg;
            break;
        case OPT_USER:
            s->o.user = optarg;
            break;
        case OPT_SANDBOX:
            if (!parse_sandbox(optarg, &s->o.sandbox))
                status = cmd_usage(&cmd_serve, "--sandbox is on, off or strict");
            break;
        default:
            if (!cmd_tls_option(&s->o.tls, &cmd_serve, opt, &status) &&
                !cmd_limit_option(c, &cmd_serve, opt, &status))
                cmd_common_option(c, &cmd_serve, opt, &status);
        }
    return status < 0 ? cmd_check_words(&cmd_serve, argc - optind, 0, 0) : status;
}

static void ready(void *opaque)
{
    const struct cmd_common *c = opaque;

    if (c->verbose >= 0)
        fprintf(stderr, "vecycle: ready\n");
}

/* A session holds some twenty descriptors; select(2), for whose sake the soft limit is low, is used
 * nowhere. */
static void allow_descriptors(void)
{
    struct rlimit l;

    if (getrlimit(RLIMIT_NOFILE, &l) == 0) {
        l.rlim_cur = l.rlim_max;
        setrlimit(RLIMIT_NOFILE, &l);
    }
}

static int run(struct cmd_common *c, int argc, char **argv)
{
    struct serve s = {.o.sandbox = VECYCLE_SANDBOX_ON};
    struct vecycle_error err;
    int status = parse(c, &s, argc, argv);

    if (status >= 0)
        return status;
    if (c->verbose == 0)
        c->verbose = 1; /* a service tells what it does */
    allow_descriptors();
    s.o.listen = s.listen;
    s.o.cancel = cmd_cancel_on_signals();
    s.o.ready = ready;
    s.o.opaque = c;
    return vecycle_agent_run(&c->context, &s.o, &err) ? cmd_fail(c, &err) : 0;
}
