/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "cmd.h"

static int run(struct cmd_common *c, int argc, char **argv);

const struct cmd cmd_resolve = {
    .name = "resolve",
    .what = "show and settle a migration whose last word was lost",
    .help =
        "Usage: vecycle resolve [OPTION...] UUID\n"
        "\n"
        "A VM that has arrived is continued on the source's word, given when the migration is\n"
        "complete there. If the connection is lost at that moment, the VM is paused on both\n"
        "hosts. Without an option this shows what is open; with one it settles it:\n"
        "  on the source, --retry gives the word again: safe at any time;\n"
        "  on either host, --run continues the VM here, and --discard forgets the record. Make\n"
        "  sure first that the VM does not run, and will not, on the other host.\n"
        "\n"
        "Options:\n"
        "      --retry              source: give the word again over the network\n"
        "      --to DESTINATION     with --retry: where, if not where it was\n"
        "      --run                continue the VM on this host\n"
        "      --discard            this host's VM does not count\n"
        "      --socket-dir DIR     where QEMU's sockets are (default /run/vecycle)\n"
        "      --insecure           with --retry: allow tcp://\n" CMD_TLS_HELP
        "      --ssh PROGRAM        with --retry: the ssh program\n"
        "      --remote COMMAND     with --retry: what ssh runs there\n",
    .run = run,
};

enum { OPT_RETRY = 256, OPT_TO, OPT_RUN, OPT_DISCARD, OPT_DIR, OPT_INSECURE, OPT_SSH, OPT_REMOTE };

static const struct option options[] = {
    {"retry", no_argument, NULL, OPT_RETRY},
    {"to", required_argument, NULL, OPT_TO},
    {"run", no_argument, NULL, OPT_RUN},
    {"discard", no_argument, NULL, OPT_DISCARD},
    {"socket-dir", required_argument, NULL, OPT_DIR},
    {"insecure", no_argument, NULL, OPT_INSECURE},
    {"ssh", required_argument, NULL, OPT_SSH},
    {"remote", required_argument, NULL, OPT_REMOTE},
    CMD_TLS_OPTIONS,
    CMD_TLS_HOSTNAME_OPTION,
    CMD_COMMON_OPTIONS,
    {0},
};

struct request {
    struct vecycle_migrate_options o;
    const char *socket_dir;
    int how; /* enum vecycle_resolution, 0: show */
};

static int parse(struct cmd_common *c, struct request *r, int argc, char **argv)
{
    int opt, status = -1, asked = 0;

    while (status < 0 && (opt = getopt_long(argc, argv, CMD_COMMON_SHORT, options, NULL)) != -1)
        switch (opt) {
        case OPT_RETRY:
            r->how = VECYCLE_RESOLVE_RETRY;
            asked++;
            break;
        case OPT_RUN:
            r->how = VECYCLE_RESOLVE_RUN;
            asked++;
            break;
        case OPT_DISCARD:
            r->how = VECYCLE_RESOLVE_DISCARD;
            asked++;
            break;
        case OPT_TO:
            r->o.to = optarg;
            break;
        case OPT_DIR:
            r->socket_dir = optarg;
            break;
        case OPT_INSECURE:
            r->o.insecure = true;
            break;
        case OPT_SSH:
            r->o.ssh = optarg;
            break;
        case OPT_REMOTE:
            r->o.remote = optarg;
            break;
        default:
            if (!cmd_tls_option(&r->o.tls, &cmd_resolve, opt, &status))
                cmd_common_option(c, &cmd_resolve, opt, &status);
        }
    if (status < 0)
        status = cmd_check_words(&cmd_resolve, argc - optind, 1, 1);
    if (status < 0 && asked > 1)
        status = cmd_usage(&cmd_resolve, "--retry, --run and --discard exclude each other");
    return status < 0 ? cmd_find_store(c) : status;
}

static int show(struct cmd_common *c, const char *uuid)
{
    struct vecycle_vm vm;
    struct vecycle_error err;

    if (vecycle_store_show(&c->context, uuid, &vm, &err))
        return cmd_fail(c, &err);
    if (c->json) {
        struct json_object *o = cmd_vm_json(&vm);

        puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
        json_object_put(o);
    } else if (!strcmp(vm.handover, "left")) {
        printf("%s left to '%s'; whether it runs there is not known. Here it is paused at '%s'.\n"
               "vecycle resolve --retry %s asks again.\n",
               vm.vm, vm.handover_peer, vm.handover_socket, vm.vm);
    } else if (!strcmp(vm.handover, "arriving")) {
        printf("%s arrived, or is arriving, from '%s' and waits for its word at '%s'.\n"
               "vecycle resolve --retry %s on the source gives it.\n",
               vm.vm, vm.handover_peer, vm.handover_socket, vm.vm);
    } else if (!strcmp(vm.handover, "leaving")) {
        printf("%s is leaving to '%s', or its migration was interrupted; it counts here.\n", vm.vm,
               vm.handover_peer);
    } else {
        printf("%s: nothing is open\n", vm.vm);
    }
    return 0;
}

static int run(struct cmd_common *c, int argc, char **argv)
{
    struct request r = {0};
    struct vecycle_error err;
    int status = parse(c, &r, argc, argv);

    if (status >= 0)
        return status;
    if (!r.how)
        return show(c, argv[optind]);
    if (vecycle_resolve(&c->context, argv[optind], (enum vecycle_resolution)r.how, &r.o,
                        r.socket_dir, &err))
        return cmd_fail(c, &err);
    if (c->verbose >= 0 && !c->json)
        printf("%s: settled\n", argv[optind]);
    return 0;
}
