/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>
#include <string.h>

#include "cmd.h"

static int run(struct cmd_common *c, int argc, char **argv);

#define DEFAULT_DIR "vecycle-tls"
#define MAX_DAYS 36500

const struct cmd cmd_tls = {
    .name = "tls",
    .what = "make the certificates for tls:// (tls init HOST...)",
    .help = "Usage: vecycle tls init [OPTION...] HOST[,NAME-OR-ADDRESS...]...\n"
            "\n"
            "Makes a small certificate authority in DIR, unless there is one, and in DIR/HOST\n"
            "what goes into /etc/vecycle/tls on that host: certificates for all the names and\n"
            "addresses given, valid for both directions, and their keys. The authority's own\n"
            "key, DIR/ca-key.pem, stays where it is.\n"
            "\n"
            "Example: two hosts that trust each other\n"
            "  vecycle tls init host1,10.0.0.1 host2,10.0.0.2\n"
            "  for h in host1 host2; do\n"
            "      tar -C " DEFAULT_DIR "/$h --owner=0 --group=0 -c . | ssh root@$h \\\n"
            "          'mkdir -p /etc/vecycle/tls; tar -C /etc/vecycle/tls -x'; done\n"
            "\n"
            "Options:\n"
            "      --dir DIR            the authority's directory (default: " DEFAULT_DIR ")\n"
            "      --days DAYS          that the hosts' certificates are valid (default 730)\n"
            "      --renew              new certificates and keys for hosts that have some\n"
            "      --new-ca             a new authority in place of the one that is there; what\n"
            "                           that one has signed is not taken any more\n",
    .run = run,
};

enum { OPT_DIR = 256, OPT_DAYS, OPT_RENEW, OPT_NEW_CA };

static const struct option options[] = {
    {"dir", required_argument, NULL, OPT_DIR},
    {"days", required_argument, NULL, OPT_DAYS},
    {"renew", no_argument, NULL, OPT_RENEW},
    {"new-ca", no_argument, NULL, OPT_NEW_CA},
    CMD_COMMON_OPTIONS,
    {0},
};

static int parse(struct cmd_common *c, struct vecycle_tls_init_options *o, int argc, char **argv)
{
    int opt, status = -1;
    char *end;

    while (status < 0 && (opt = getopt_long(argc, argv, CMD_COMMON_SHORT, options, NULL)) != -1)
        switch (opt) {
        case OPT_DIR:
            o->dir = optarg;
            break;
        case OPT_DAYS:
            o->days = strtoull(optarg, &end, 10);
            if (*end || *optarg == '-' || o->days < 1 || o->days > MAX_DAYS)
                status = cmd_usage(&cmd_tls, "'%s' is not a number of days", optarg);
            break;
        case OPT_RENEW:
            o->renew = true;
            break;
        case OPT_NEW_CA:
            o->new_ca = true;
            break;
        default:
            cmd_common_option(c, &cmd_tls, opt, &status);
        }
    if (status < 0 && (optind >= argc || strcmp(argv[optind], "init") != 0))
        status = cmd_usage(&cmd_tls, "'init' is what it can do");
    if (status < 0)
        status = cmd_check_words(&cmd_tls, argc - optind, 2, 1000);
    return status;
}

static void print_json(const struct vecycle_tls_init_options *o, bool made_ca)
{
    struct json_object *v = json_object_new_object(), *hosts = json_object_new_array();

    for (size_t i = 0; i < o->n_hosts; i++)
        json_object_array_add(
            hosts, json_object_new_string_len(o->hosts[i], (int)strcspn(o->hosts[i], ",")));
    json_object_object_add(v, "dir", json_object_new_string(o->dir));
    json_object_object_add(v, "new_ca", json_object_new_boolean(made_ca));
    json_object_object_add(v, "hosts", hosts);
    puts(json_object_to_json_string_ext(v, JSON_C_TO_STRING_PLAIN));
    json_object_put(v);
}

static void print_text(const struct vecycle_tls_init_options *o, bool made_ca)
{
    printf(made_ca ? "%s: a new certificate authority; keep ca-key.pem to yourself\n"
                   : "%s: the certificate authority that was there has signed\n",
           o->dir);
    for (size_t i = 0; i < o->n_hosts; i++)
        printf("%s/%.*s: goes to %s there\n", o->dir, (int)strcspn(o->hosts[i], ","), o->hosts[i],
               vecycle_default_tls_dir());
}

static int run(struct cmd_common *c, int argc, char **argv)
{
    struct vecycle_tls_init_options o = {.dir = DEFAULT_DIR};
    struct vecycle_error err;
    bool made_ca;
    int status = parse(c, &o, argc, argv);

    if (status >= 0)
        return status;
    o.hosts = (const char *const *)argv + optind + 1;
    o.n_hosts = (size_t)(argc - optind - 1);
    if (vecycle_tls_init(&o, &made_ca, &err))
        return cmd_fail(c, &err);
    if (c->json)
        print_json(&o, made_ca);
    else if (c->verbose >= 0)
        print_text(&o, made_ca);
    return 0;
}
