/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>

#include "cmd.h"

static int run(struct cmd_common *c, int argc, char **argv);

const struct cmd cmd_proxy = {
    .name = "proxy",
    .what = "carry one migration that somebody else drives (libvirt, a script)",
    .help = "Usage: vecycle proxy --listen PATH --vm UUID --to DESTINATION [OPTION...]\n"
            "\n"
            "Listens on the Unix socket PATH, takes one migration stream from QEMU, and carries\n"
            "it to the vecycle at DESTINATION (as for 'vecycle migrate'), which connects it to\n"
            "NAME.sock in its socket directory, where a QEMU waits (-incoming unix:...). Whoever\n"
            "drives QEMU looks after the rest. The migration needs the capability return-path;\n"
            "postcopy-preempt is carried too, multifd is not.\n"
            "\n"
            "Example, with libvirt on both hosts:\n"
            "  vecycle proxy --listen /run/vecycle/vm1.sock --vm $(virsh domuuid vm1) \\\n"
            "                --name vm1 --to root@host2 &\n"
            "  virsh migrate --live --p2p vm1 qemu+ssh://root@host2/system \\\n"
            "                --migrateuri unix:///run/vecycle/vm1.sock\n"
            "\n"
            "Options:\n"
            "      --listen PATH        the Unix socket that QEMU migrates to\n"
            "      --vm UUID            which VM it is\n"
            "      --to DESTINATION     the other host\n"
            "      --name NAME          the destination's socket is NAME.sock (default: the UUID)\n"
            "      --downtime-limit MS  what the migration was started with (default 300)\n"
            "      --wait SECONDS       end if no migration has come by then (default: wait on)\n"
            "      --dead-peer SECONDS  silence after which the other host is dead (default 10)\n"
            "      --insecure           allow tcp://: memory crosses the network in the "
            "clear\n" CMD_TLS_HELP "      --ssh COMMAND        the ssh command\n"
            "      --remote COMMAND     what ssh runs there (default: vecycle recv)\n",
    .run = run,
};

enum {
    OPT_LISTEN = 256,
    OPT_VM,
    OPT_TO,
    OPT_NAME,
    OPT_DOWNTIME,
    OPT_DEAD_PEER,
    OPT_INSECURE,
    OPT_SSH,
    OPT_REMOTE,
    OPT_WAIT
};

static const struct option options[] = {
    {"listen", required_argument, NULL, OPT_LISTEN},
    {"vm", required_argument, NULL, OPT_VM},
    {"to", required_argument, NULL, OPT_TO},
    {"name", required_argument, NULL, OPT_NAME},
    {"downtime-limit", required_argument, NULL, OPT_DOWNTIME},
    {"dead-peer", required_argument, NULL, OPT_DEAD_PEER},
    {"insecure", no_argument, NULL, OPT_INSECURE},
    {"ssh", required_argument, NULL, OPT_SSH},
    {"remote", required_argument, NULL, OPT_REMOTE},
    {"wait", required_argument, NULL, OPT_WAIT},
    CMD_TLS_OPTIONS,
    CMD_TLS_HOSTNAME_OPTION,
    CMD_COMMON_OPTIONS,
    {0},
};

static int parse(struct cmd_common *c, struct vecycle_proxy_options *o, int argc, char **argv)
{
    int opt, status = -1;

    while (status < 0 && (opt = getopt_long(argc, argv, CMD_COMMON_SHORT, options, NULL)) != -1)
        switch (opt) {
        case OPT_LISTEN:
            o->listen = optarg;
            break;
        case OPT_VM:
            o->vm = optarg;
            break;
        case OPT_TO:
            o->to = optarg;
            break;
        case OPT_NAME:
            o->name = optarg;
            break;
        case OPT_DOWNTIME:
            if (!cmd_parse_size(optarg, &o->downtime_limit_ms) || o->downtime_limit_ms > 2000000)
                status = cmd_usage(&cmd_proxy, "'%s' is not a number of milliseconds", optarg);
            break;
        case OPT_DEAD_PEER:
            if (!cmd_parse_seconds(optarg, &o->dead_peer_ms))
                status = cmd_usage(&cmd_proxy, "'%s' is not a number of seconds", optarg);
            break;
        case OPT_INSECURE:
            o->insecure = true;
            break;
        case OPT_SSH:
            o->ssh = optarg;
            break;
        case OPT_REMOTE:
            o->remote = optarg;
            break;
        case OPT_WAIT:
            if (!cmd_parse_seconds(optarg, &o->wait_ms))
                status = cmd_usage(&cmd_proxy, "'%s' is not a number of seconds", optarg);
            break;
        default:
            if (!cmd_tls_option(&o->tls, &cmd_proxy, opt, &status))
                cmd_common_option(c, &cmd_proxy, opt, &status);
        }
    if (status < 0)
        status = cmd_check_words(&cmd_proxy, argc - optind, 0, 0);
    if (status < 0 && (!o->listen || !o->vm || !o->to))
        status = cmd_usage(&cmd_proxy, "--listen, --vm and --to are needed");
    return status;
}

static void listening(void *opaque)
{
    const struct cmd_progress *p = opaque;

    if (p->out)
        fprintf(p->out, "vecycle: waiting for a migration\n");
}

static int run(struct cmd_common *c, int argc, char **argv)
{
    struct vecycle_proxy_options o = {0};
    struct vecycle_result result = {0};
    struct vecycle_error err;
    struct cmd_progress progress;
    int rc, status = parse(c, &o, argc, argv);

    if (status >= 0)
        return status;
    cmd_progress_init(&progress, c);
    progress.proxied = true;
    o.cancel = cmd_cancel_on_signals();
    o.progress = cmd_progress_show;
    o.listening = listening;
    o.opaque = &progress;
    rc = vecycle_proxy(&c->context, &o, &result, &err);
    cmd_progress_end(&progress);
    cmd_summary(c, &progress, &result, rc ? &err : NULL);
    c->json = false; /* the summary has the error */
    return rc ? cmd_fail(c, &err) : 0;
}
