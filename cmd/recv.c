/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>
#include <string.h>

#include "cmd.h"

static int run(struct cmd_common *c, int argc, char **argv);

const struct cmd cmd_recv = {
    .name = "recv",
    .what = "the destination's side on standard input and output, run by ssh",
    .help =
        "Usage: vecycle recv [OPTION...]\n"
        "\n"
        "Takes one migration on standard input and output: what 'vecycle migrate HOST' runs at\n"
        "the other end of ssh. Hands it to the agent of this host if there is one.\n"
        "\n"
        "Options:\n"
        "      --socket-dir DIR     where QEMU's sockets are (default /run/vecycle; an agent\n"
        "                           uses its own)\n"
        "      --dead-peer SECONDS  silence after which the other host is dead (default 10)\n",
    .run = run,
};

enum { OPT_SOCKET_DIR = 256, OPT_DEAD_PEER };

static const struct option options[] = {
    {"socket-dir", required_argument, NULL, OPT_SOCKET_DIR},
    {"dead-peer", required_argument, NULL, OPT_DEAD_PEER},
    CMD_COMMON_OPTIONS,
    {0},
};

/* "ssh from 192.0.2.1", as sshd tells in SSH_CONNECTION. */
static const char *describe_peer(char text[80])
{
    const char *from = getenv("SSH_CONNECTION");

    if (!from)
        return "standard input";
    snprintf(text, 80, "ssh from %.*s", (int)(strcspn(from, " ") > 60 ? 60 : strcspn(from, " ")),
             from);
    return text;
}

static int run(struct cmd_common *c, int argc, char **argv)
{
    struct vecycle_receive_options o = {.rfd = 0, .wfd = 1};
    struct vecycle_error err;
    char peer[80];
    int opt, status = -1;

    while (status < 0 && (opt = getopt_long(argc, argv, CMD_COMMON_SHORT, options, NULL)) != -1)
        if (opt == OPT_SOCKET_DIR)
            o.socket_dir = optarg;
        else if (opt != OPT_DEAD_PEER)
            cmd_common_option(c, &cmd_recv, opt, &status);
        else if (!cmd_parse_seconds(optarg, &o.dead_peer_ms))
            status = cmd_usage(&cmd_recv, "'%s' is not a number of seconds", optarg);
    if (status < 0)
        status = cmd_check_words(&cmd_recv, argc - optind, 0, 0);
    if (status >= 0)
        return status;
    o.peer = describe_peer(peer);
    o.encrypted = true; /* whoever runs this over something else has chosen so */
    o.cancel = cmd_cancel_on_signals();
    c->json = false; /* standard output is the connection */
    return vecycle_receive(&c->context, &o, NULL, &err) ? cmd_fail(c, &err) : 0;
}
