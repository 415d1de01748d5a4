/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmd.h"

static int run(struct cmd_common *c, int argc, char **argv);

const struct cmd cmd_rekey = {
    .name = "rekey",
    .what = "give a checkpoint another key",
    .help =
        "Usage: vecycle rekey [OPTION...] UUID\n"
        "       vecycle rekey [OPTION...] --all\n"
        "       vecycle rekey [OPTION...] --forget HOST\n"
        "\n"
        "Digests a VM's checkpoint anew under another key, at this host and at the one that has\n"
        "the same: what a third host knows of the old key is worth nothing any more, and the\n"
        "VM's next return between these two is as cheap as before. Pages stay where they are; a\n"
        "damaged one is dropped. An agent with a list of peers does it by itself for what a host\n"
        "knows that is taken off the list.\n"
        "\n"
        "Options:\n"
        "      --to DESTINATION     the host that has the same checkpoint (default: the one that\n"
        "                           the VM last came from, or went to)\n"
        "      --local              here alone: the next return sends more\n"
        "      --all                all VMs in the store\n"
        "      --forget HOST        the VMs whose key that host, a name or a pattern, was given;\n"
        "                           it does not get the new one\n"
        "      --dead-peer SECONDS  silence after which the other host is dead (default 10)\n"
        "      --insecure           allow tcp://, for a checkpoint that has crossed it "
        "already\n" CMD_TLS_HELP "      --ssh COMMAND        the ssh command\n"
        "      --remote COMMAND     what ssh runs there\n",
    .run = run,
};

enum {
    OPT_TO = 256,
    OPT_LOCAL,
    OPT_ALL,
    OPT_FORGET,
    OPT_DEAD_PEER,
    OPT_INSECURE,
    OPT_SSH,
    OPT_REMOTE
};

static const struct option options[] = {
    {"to", required_argument, NULL, OPT_TO},
    {"local", no_argument, NULL, OPT_LOCAL},
    {"all", no_argument, NULL, OPT_ALL},
    {"forget", required_argument, NULL, OPT_FORGET},
    {"dead-peer", required_argument, NULL, OPT_DEAD_PEER},
    {"insecure", no_argument, NULL, OPT_INSECURE},
    {"ssh", required_argument, NULL, OPT_SSH},
    {"remote", required_argument, NULL, OPT_REMOTE},
    CMD_TLS_OPTIONS,
    CMD_TLS_HOSTNAME_OPTION,
    CMD_COMMON_OPTIONS,
    {0},
};

struct request {
    struct cmd_common *c;
    struct vecycle_rekey_options o;
    bool all;
    bool terminal, drawn;
    struct json_object *list; /* NULL: text */
    int status;               /* of the first that failed */
};

static int check(struct request *r, int words)
{
    bool many = r->all || r->o.forget;

    if (r->all && r->o.forget)
        return cmd_usage(&cmd_rekey, "--all and --forget exclude each other");
    if (r->o.local && r->o.to)
        return cmd_usage(&cmd_rekey, "--local and --to exclude each other");
    return cmd_check_words(&cmd_rekey, words, !many, !many);
}

static int parse(struct request *r, int argc, char **argv)
{
    int opt, status = -1;

    while (status < 0 && (opt = getopt_long(argc, argv, CMD_COMMON_SHORT, options, NULL)) != -1)
        switch (opt) {
        case OPT_TO:
            r->o.to = optarg;
            break;
        case OPT_LOCAL:
            r->o.local = true;
            break;
        case OPT_ALL:
            r->all = true;
            break;
        case OPT_FORGET:
            r->o.forget = optarg;
            break;
        case OPT_DEAD_PEER:
            if (!cmd_parse_seconds(optarg, &r->o.dead_peer_ms))
                status = cmd_usage(&cmd_rekey, "'%s' is not a number of seconds", optarg);
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
            if (!cmd_tls_option(&r->o.tls, &cmd_rekey, opt, &status))
                cmd_common_option(r->c, &cmd_rekey, opt, &status);
        }
    return status < 0 ? check(r, argc - optind) : status;
}

/* ---- one VM ---- */

/* The store's files stay its owner's, while connections are made as who one is: only root can. */
static void on_writes(void *opaque, bool begins)
{
    const struct request *r = opaque;
    const char *store = r->c->context.store ? r->c->context.store : vecycle_default_store();
    struct stat st;

    if (getuid() != 0 || stat(store, &st) < 0 || st.st_uid == 0)
        return;
    if (begins ? setegid(st.st_gid) < 0 || seteuid(st.st_uid) < 0
               : seteuid(0) < 0 || setegid(0) < 0)
        perror("vecycle: warning: cannot become the owner of the store");
}

static void on_progress(void *opaque, uint64_t done, uint64_t total)
{
    struct request *r = opaque;

    if (!r->terminal)
        return;
    fprintf(stderr, "\r%3u %% of %" PRIu64 " pages", (unsigned)(total ? 100 * done / total : 100),
            total);
    fflush(stderr);
    r->drawn = true;
}

static void end_line(struct request *r)
{
    if (r->drawn)
        fprintf(stderr, "\r%40s\r", "");
    r->drawn = false;
}

static void report(struct request *r, const char *vm, const struct vecycle_rekeyed *done)
{
    if (r->list) {
        struct json_object *o = json_object_new_object();

        json_object_object_add(o, "vm", json_object_new_string(vm));
        json_object_object_add(o, "peer", json_object_new_string(done->peer));
        json_object_object_add(o, "pages", json_object_new_uint64(done->pages));
        json_object_object_add(o, "dropped_pages", json_object_new_uint64(done->dropped_pages));
        json_object_object_add(o, "confirmed", json_object_new_boolean(done->confirmed));
        json_object_object_add(o, "emptied", json_object_new_boolean(done->emptied));
        json_object_array_add(r->list, o);
        return;
    }
    if (r->c->verbose < 0)
        return;
    if (done->emptied)
        printf("%s: another key; there was no checkpoint that could be kept\n", vm);
    else if (done->confirmed)
        printf("%s: another key for %" PRIu64 " pages, here and at '%s'\n", vm, done->pages,
               done->peer);
    else if (done->peer[0])
        printf("%s: another key for %" PRIu64 " pages here; '%s' has not confirmed it\n", vm,
               done->pages, done->peer);
    else
        printf("%s: another key for %" PRIu64 " pages, here alone\n", vm, done->pages);
    if (done->dropped_pages)
        printf("%s: %" PRIu64 " pages were damaged and are dropped\n", vm, done->dropped_pages);
}

static void one(struct request *r, const char *vm)
{
    struct vecycle_rekeyed done;
    struct vecycle_error err;
    int rc = vecycle_rekey(&r->c->context, vm, &r->o, &done, &err);

    end_line(r);
    if (!rc) {
        report(r, vm, &done);
        return;
    }
    if (!r->status)
        r->status = -rc;
    if (r->list) { /* told at the end */
        struct json_object *o = json_object_new_object();

        json_object_object_add(o, "vm", json_object_new_string(vm));
        json_object_object_add(o, "code", json_object_new_int(-rc));
        json_object_object_add(o, "message", json_object_new_string(err.message));
        json_object_array_add(r->list, o);
    }
    fprintf(stderr, "vecycle: %s: %s%s%s%s\n", vm, err.message, err.hint[0] ? " (" : "", err.hint,
            err.hint[0] ? ")" : "");
}

/* ---- many ---- */

static bool is_meant(struct request *r, const struct vecycle_vm *vm)
{
    struct vecycle_error err;
    bool given;

    if (!r->o.forget)
        return vm->has_key;
    if (vecycle_key_was_given(&r->c->context, vm->vm, r->o.forget, &given, &err)) {
        if (!r->status)
            r->status = cmd_fail(&(struct cmd_common){0}, &err);
        return false;
    }
    return given && vm->has_key;
}

static int many(struct request *r)
{
    struct vecycle_vm *vms = NULL;
    struct vecycle_error err;
    size_t n = 0;

    if (vecycle_store_list(&r->c->context, &vms, &n, &err))
        return cmd_fail(r->c, &err);
    for (size_t i = 0; i < n && r->status != -VECYCLE_E_CANCELLED; i++)
        if (is_meant(r, &vms[i]))
            one(r, vms[i].vm);
    free(vms);
    return 0;
}

static int run(struct cmd_common *c, int argc, char **argv)
{
    struct request r = {.c = c};
    int status = parse(&r, argc, argv);

    if (status >= 0)
        return status;
    r.terminal = isatty(STDERR_FILENO) && c->verbose >= 0;
    r.o.cancel = cmd_cancel_on_signals();
    r.o.progress = on_progress;
    r.o.writes = on_writes;
    r.o.opaque = &r;
    r.list = c->json ? json_object_new_array() : NULL;
    if (r.all || r.o.forget)
        status = many(&r);
    else
        one(&r, argv[optind]);
    if (r.list && status <= 0) {
        puts(json_object_to_json_string_ext(r.list, JSON_C_TO_STRING_PLAIN));
        json_object_put(r.list);
    }
    vecycle_cancel_free(r.o.cancel);
    return status > 0 ? status : r.status;
}
