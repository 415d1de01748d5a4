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
        "hosts. Without an option this shows what both hosts know; with one it settles it:\n"
        "  on the source, --retry tells the destination again: safe at any time;\n"
        "  --run continues the VM on this host, and is refused where it may run on the other;\n"
        "  --discard forgets this host's record, so that its VM does not count.\n"
        "\n"
        "Options:\n"
        "      --retry              source: tell the destination again over the network\n"
        "      --to DESTINATION     where the other host is, if not where it was\n"
        "      --run                continue the VM on this host\n"
        "      --force              with --run: although it may run on the other host, as far as\n"
        "                           this one knows; with --discard at a destination: although\n"
        "                           it may have run here. Make certain first that it does not\n"
        "      --discard            this host's VM does not count\n"
        "      --qmp PATH           source: the VM's QMP socket, if it has moved\n"
        "      --socket-dir DIR     where QEMU's sockets are (default /run/vecycle)\n"
        "      --insecure           allow tcp://\n" CMD_TLS_HELP
        "      --ssh COMMAND        the ssh command\n"
        "      --remote COMMAND     what ssh runs there\n",
    .run = run,
};

enum {
    OPT_RETRY = 256,
    OPT_TO,
    OPT_RUN,
    OPT_FORCE,
    OPT_DISCARD,
    OPT_QMP,
    OPT_DIR,
    OPT_INSECURE,
    OPT_SSH,
    OPT_REMOTE
};

static const struct option options[] = {
    {"retry", no_argument, NULL, OPT_RETRY},
    {"to", required_argument, NULL, OPT_TO},
    {"run", no_argument, NULL, OPT_RUN},
    {"force", no_argument, NULL, OPT_FORCE},
    {"discard", no_argument, NULL, OPT_DISCARD},
    {"qmp", required_argument, NULL, OPT_QMP},
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
    struct vecycle_resolve_options o;
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
        case OPT_FORCE:
            r->o.force = true;
            break;
        case OPT_QMP:
            r->o.qmp = optarg;
            break;
        case OPT_TO:
            r->o.to = optarg;
            break;
        case OPT_DIR:
            r->o.socket_dir = optarg;
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
    if (status < 0 && r->o.force && r->how != VECYCLE_RESOLVE_RUN &&
        r->how != VECYCLE_RESOLVE_DISCARD)
        status = cmd_usage(&cmd_resolve, "--force goes with --run or --discard");
    return status < 0 ? cmd_find_store(c) : status;
}

/* What is known here, and what can be done about it. Nothing is suggested that could make two run.
 */
static const char *const sayings[][3] = {
    {"leaving", "it was leaving to '%s', and was interrupted",
     "vecycle resolve --retry %s looks again, and tells the other host"},
    {"left", "it has left to '%s', which has not confirmed that it runs",
     "vecycle resolve --retry %s tells the other host again"},
    {"kept",
     "it is this host's: '%s' is to be told, or has not confirmed, that its copy never runs",
     "vecycle resolve --retry %s tells it"},
    {"arriving", "it is arriving, or has arrived, from '%s', and waits for its word",
     "vecycle resolve --retry %s on the source gives it"},
    {"about-to-run", "it came from '%s', and was about to be continued here",
     "vecycle resolve --retry %s on the source continues it here"},
    {"void", "nothing is open; what arrived from '%s' is the source's, and never runs here", NULL},
};

/* @text has one %s, for that word. */
static void say(const char *text, const char *word)
{
    const char *at = strstr(text, "%s");

    printf("%.*s%s%s\n", (int)(at - text), text, word, at + 2);
}

static int show_json(const char *uuid, const struct vecycle_doubt *d)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "vm", json_object_new_string(uuid));
    json_object_object_add(o, "handover", json_object_new_string(d->handover));
    json_object_object_add(o, "peer", json_object_new_string(d->peer));
    json_object_object_add(o, "socket", json_object_new_string(d->socket));
    json_object_object_add(o, "here", json_object_new_string(d->here));
    json_object_object_add(o, "there", json_object_new_string(d->there));
    json_object_object_add(o, "may_run_there", json_object_new_boolean(d->told));
    puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    json_object_put(o);
    return 0;
}

static int show(struct cmd_common *c, const char *uuid, const struct vecycle_resolve_options *o)
{
    struct vecycle_doubt d;
    struct vecycle_error err;
    size_t i = 0;

    if (vecycle_resolve_show(&c->context, uuid, o, &d, &err))
        return cmd_fail(c, &err);
    if (c->json)
        return show_json(uuid, &d);
    while (i < sizeof(sayings) / sizeof(*sayings) && strcmp(sayings[i][0], d.handover) != 0)
        i++;
    if (i == sizeof(sayings) / sizeof(*sayings)) {
        printf("%s: nothing is open\n", uuid);
        return 0;
    }
    printf("%s: ", uuid);
    say(sayings[i][1], d.peer);
    if (!sayings[i][2])
        return 0;
    printf("here ('%s'): %s\n", d.socket, *d.here ? d.here : "its QEMU was not asked");
    printf("there: %s\n", *d.there ? d.there : "this host cannot ask; run vecycle resolve there");
    say(sayings[i][2], uuid);
    return 0;
}

/* What became of it: --run at the source leaves it open until the other host has confirmed. */
static void print_outcome(struct cmd_common *c, const char *uuid)
{
    struct vecycle_error ignored;
    struct vecycle_vm vm;
    bool known = vecycle_store_show(&c->context, uuid, &vm, &ignored) == 0;

    if (c->json) {
        struct json_object *o = json_object_new_object();

        json_object_object_add(o, "vm", json_object_new_string(uuid));
        json_object_object_add(o, "handover", json_object_new_string(known ? vm.handover : "none"));
        json_object_object_add(o, "peer", json_object_new_string(known ? vm.handover_peer : ""));
        puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
        json_object_put(o);
        return;
    }
    if (c->verbose < 0)
        return;
    if (known && !strcmp(vm.handover, "kept"))
        printf("%s: it runs here; '%s' is still to be told (vecycle resolve --retry %s)\n", uuid,
               vm.handover_peer, uuid);
    else
        printf("%s: settled\n", uuid);
}

static int run(struct cmd_common *c, int argc, char **argv)
{
    struct request r = {0};
    struct vecycle_error err;
    int status = parse(c, &r, argc, argv);

    if (status >= 0)
        return status;
    if (!r.how)
        return show(c, argv[optind], &r.o);
    if (vecycle_resolve(&c->context, argv[optind], (enum vecycle_resolution)r.how, &r.o, &err))
        return cmd_fail(c, &err);
    print_outcome(c, argv[optind]);
    return 0;
}
