/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>

#include "cmd.h"

#define MAX_RETRIES 1000

static int run(struct cmd_common *c, int argc, char **argv);

const struct cmd cmd_migrate = {
    .name = "migrate",
    .what = "migrate a running VM, driving its QEMU through QMP",
    .help = "Usage: vecycle migrate --qmp SOCKET [OPTION...] DESTINATION\n"
            "\n"
            "Migrates the VM whose QEMU has its QMP at SOCKET to DESTINATION:\n"
            "  HOST, ssh://[USER@]HOST[:PORT]   through ssh, which runs 'vecycle recv' there\n"
            "  tls://HOST[:PORT]                an agent's TLS port (vecycle serve --listen)\n"
            "  unix:PATH                        an agent's Unix socket\n"
            "  tcp://HOST[:PORT]                an agent's TCP port, with --insecure\n"
            "There a QEMU with the same UUID waits, started with -incoming defer and its QMP\n"
            "at NAME.qmp in the agent's socket directory. It arrives paused and is continued\n"
            "once the migration is complete here. Ctrl-C cancels; the VM then runs on here.\n"
            "\n"
            "Example:\n"
            "  vecycle migrate --qmp /run/vm1.qmp root@host2\n"
            "\n"
            "Options:\n"
            "      --qmp SOCKET         the running QEMU's QMP socket\n"
            "      --name NAME          the destination's socket is NAME.qmp (default: the UUID)\n"
            "      --max-bandwidth SIZE bytes a second that QEMU may send (default: no limit)\n"
            "      --downtime-limit MS  longest pause to aim at (default: as QEMU has it, 300)\n"
            "      --retry N            try up to N times more where the cause could pass: the\n"
            "                           network, the other host, a destination QEMU that has\n"
            "                           to be started again; only the rest is sent (default 0)\n"
            "      --suspend            leave the VM paused at the destination\n"
            "      --postcopy           after the first pass let the VM run at the destination\n"
            "                           while the rest of its memory follows\n"
            "      --postcopy-preempt   the same, and the pages that it waits for come on a\n"
            "                           connection of their own (QEMU 7.1 and later)\n"
            "      --recover            go on with a postcopy that was interrupted\n"
            "      --auto-converge      slow the VM down where it dirties memory too fast\n"
            "      --dead-peer SECONDS  silence after which the other host is dead (default 10)\n"
            "      --insecure           allow tcp://: memory crosses the network in the "
            "clear\n" CMD_TLS_HELP "      --ssh COMMAND        the ssh command\n"
            "      --remote COMMAND     what ssh runs there (default: vecycle recv)\n",
    .run = run,
};

enum {
    OPT_QMP = 256,
    OPT_NAME,
    OPT_BANDWIDTH,
    OPT_DOWNTIME,
    OPT_DEAD_PEER,
    OPT_INSECURE,
    OPT_SUSPEND,
    OPT_POSTCOPY,
    OPT_POSTCOPY_PREEMPT,
    OPT_RECOVER,
    OPT_AUTO_CONVERGE,
    OPT_RETRY,
    OPT_SSH,
    OPT_REMOTE
};

static const struct option options[] = {
    {"qmp", required_argument, NULL, OPT_QMP},
    {"name", required_argument, NULL, OPT_NAME},
    {"max-bandwidth", required_argument, NULL, OPT_BANDWIDTH},
    {"downtime-limit", required_argument, NULL, OPT_DOWNTIME},
    {"retry", required_argument, NULL, OPT_RETRY},
    {"suspend", no_argument, NULL, OPT_SUSPEND},
    {"postcopy", no_argument, NULL, OPT_POSTCOPY},
    {"postcopy-preempt", no_argument, NULL, OPT_POSTCOPY_PREEMPT},
    {"recover", no_argument, NULL, OPT_RECOVER},
    {"auto-converge", no_argument, NULL, OPT_AUTO_CONVERGE},
    {"dead-peer", required_argument, NULL, OPT_DEAD_PEER},
    {"insecure", no_argument, NULL, OPT_INSECURE},
    {"ssh", required_argument, NULL, OPT_SSH},
    {"remote", required_argument, NULL, OPT_REMOTE},
    CMD_TLS_OPTIONS,
    CMD_TLS_HOSTNAME_OPTION,
    CMD_COMMON_OPTIONS,
    {0},
};

static int parse(struct cmd_common *c, struct vecycle_migrate_options *o, int argc, char **argv)
{
    int opt, status = -1;
    uint64_t n;

    while (status < 0 && (opt = getopt_long(argc, argv, CMD_COMMON_SHORT, options, NULL)) != -1)
        switch (opt) {
        case OPT_QMP:
            o->qmp = optarg;
            break;
        case OPT_NAME:
            o->name = optarg;
            break;
        case OPT_BANDWIDTH:
            if (!cmd_parse_size(optarg, &o->max_bandwidth))
                status = cmd_usage(&cmd_migrate, "'%s' is not a size", optarg);
            break;
        case OPT_DOWNTIME:
            if (!cmd_parse_size(optarg, &o->downtime_limit_ms) || o->downtime_limit_ms > 2000000)
                status = cmd_usage(&cmd_migrate, "'%s' is not a number of milliseconds", optarg);
            break;
        case OPT_DEAD_PEER:
            if (!cmd_parse_seconds(optarg, &o->dead_peer_ms))
                status = cmd_usage(&cmd_migrate, "'%s' is not a number of seconds", optarg);
            break;
        case OPT_INSECURE:
            o->insecure = true;
            break;
        case OPT_SUSPEND:
            o->suspend = true;
            break;
        case OPT_POSTCOPY:
            o->postcopy = true;
            break;
        case OPT_POSTCOPY_PREEMPT:
            o->postcopy = o->postcopy_preempt = true;
            break;
        case OPT_RECOVER:
            o->recover = true;
            break;
        case OPT_AUTO_CONVERGE:
            o->auto_converge = true;
            break;
        case OPT_RETRY:
            if (!cmd_parse_size(optarg, &n) || n > MAX_RETRIES)
                status =
                    cmd_usage(&cmd_migrate, "'%s' is not a number up to %d", optarg, MAX_RETRIES);
            else
                o->retries = (unsigned)n;
            break;
        case OPT_SSH:
            o->ssh = optarg;
            break;
        case OPT_REMOTE:
            o->remote = optarg;
            break;
        default:
            if (!cmd_tls_option(&o->tls, &cmd_migrate, opt, &status))
                cmd_common_option(c, &cmd_migrate, opt, &status);
        }
    if (status >= 0)
        return status;
    status = cmd_check_words(&cmd_migrate, argc - optind, 1, 1);
    if (status < 0 && !o->qmp)
        status = cmd_usage(&cmd_migrate, "--qmp is missing");
    if (status < 0 && o->suspend && (o->postcopy || o->recover))
        status = cmd_usage(&cmd_migrate, "--suspend does not go with postcopy");
    if (status < 0)
        o->to = argv[optind];
    return status;
}

static int run(struct cmd_common *c, int argc, char **argv)
{
    struct vecycle_migrate_options o = {0};
    struct vecycle_result result = {0};
    struct vecycle_error err;
    struct cmd_progress progress;
    int rc, status = parse(c, &o, argc, argv);

    if (status >= 0)
        return status;
    cmd_progress_init(&progress, c);
    o.cancel = cmd_cancel_on_signals();
    o.progress = cmd_progress_show;
    o.opaque = &progress;
    rc = vecycle_migrate(&c->context, &o, &result, &err);
    cmd_progress_end(&progress);
    cmd_summary(c, &progress, &result, rc ? &err : NULL);
    c->json = false; /* the summary has the error */
    return rc ? cmd_fail(c, &err) : 0;
}
