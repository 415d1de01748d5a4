/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <grp.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmd.h"

/** A smaller limit is a unit that was forgotten. */
#define LEAST_LIMIT_BYTES (1u << 20)

/* gc and policy: what the store forgets. */

static int run_gc(struct cmd_common *c, int argc, char **argv);
static int run_policy(struct cmd_common *c, int argc, char **argv);

const struct cmd cmd_gc = {
    .name = "gc",
    .what = "forget checkpoints that are old, or too many",
    .help =
        "Usage: vecycle gc [OPTION...]\n"
        "\n"
        "Deletes the checkpoints of VMs: those that are too old, then, the least recently used\n"
        "first, as many as the limits demand. An agent does this by itself, with its own\n"
        "options. VMs that are pinned, or in use, are left alone.\n"
        "\n"
        "Options:\n"
        "      --dry-run            only tell what would be forgotten\n" CMD_LIMIT_HELP,
    .run = run_gc,
};
const struct cmd cmd_policy = {
    .name = "policy",
    .what = "say whether a VM's checkpoint is kept",
    .help =
        "Usage: vecycle policy [OPTION...] UUID [normal|pinned|never]\n"
        "\n"
        "Shows or sets what this host does with a VM's checkpoints: normal, they are forgotten\n"
        "as the limits demand (see 'vecycle gc'); pinned, they are kept whatever these say;\n"
        "never, none is kept, and one that is there is deleted.\n",
    .run = run_policy,
};

enum { OPT_DRY_RUN = 256 };

static const struct option gc_options[] = {
    {"dry-run", no_argument, NULL, OPT_DRY_RUN},
    CMD_LIMIT_OPTIONS,
    CMD_COMMON_OPTIONS,
    {0},
};
static const struct option policy_options[] = {CMD_COMMON_OPTIONS, {0}};

/* ---- limits ---- */

static bool parse_limit(const char *text, uint64_t *out)
{
    if (!strcmp(text, "never") || !strcmp(text, "none")) {
        *out = VECYCLE_UNLIMITED;
        return true;
    }
    return cmd_parse_size(text, out);
}

/* "90s", "30m", "36h", "14d", "2w". */
static bool parse_time(const char *text, uint64_t *out)
{
    static const struct {
        char unit;
        uint64_t s;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}, {'w', 604800}};
    char *end;
    unsigned long long v = strtoull(text, &end, 10);

    if (end == text || *text == '-' || !*end || end[1])
        return false;
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
        if (units[i].unit == *end && v && v <= UINT64_MAX / units[i].s) {
            *out = v * units[i].s;
            return true;
        }
    return false;
}

/* An absent limit is zero in the library; here zero means what it says. */
static int take_size(const struct cmd *cmd, uint64_t zero, uint64_t *out)
{
    if (!parse_limit(optarg, out))
        return cmd_usage(cmd, "'%s' is not a size", optarg);
    if (*out && *out < LEAST_LIMIT_BYTES)
        return cmd_usage(cmd, "'%s' is less than 1M, and 0 means no room: is there a unit missing?",
                         optarg);
    if (*out == 0)
        *out = zero;
    return -1;
}

bool cmd_limit_option(struct cmd_common *c, const struct cmd *cmd, int opt, int *status)
{
    struct vecycle_limits *l = &c->context.limits;

    switch (opt) {
    case OPT_QUOTA:
        *status = take_size(cmd, 1, &l->quota_bytes); /* no room at all */
        return true;
    case OPT_PEER_QUOTA:
        *status = take_size(cmd, 1, &l->peer_quota_bytes);
        return true;
    case OPT_RESERVE:
        *status = take_size(cmd, VECYCLE_UNLIMITED, &l->reserve_bytes);
        return true;
    case OPT_MAX_AGE:
        if (!strcmp(optarg, "never") || !strcmp(optarg, "0"))
            l->max_age_s = VECYCLE_UNLIMITED;
        else if (!parse_time(optarg, &l->max_age_s))
            *status = cmd_usage(cmd, "'%s' is not a time such as 36h or 14d", optarg);
        return true;
    default:
        return false;
    }
}

int cmd_find_store(struct cmd_common *c)
{
    static char path[VECYCLE_PATH_BYTES];
    struct vecycle_error err;

    return vecycle_use_agent_store(&c->context, path, &err) ? cmd_fail(c, &err) : -1;
}

void cmd_become_owner(const struct cmd_common *c)
{
    const char *store = c->context.store ? c->context.store : vecycle_default_store();
    struct stat st;

    if (geteuid() != 0 || stat(store, &st) < 0 || st.st_uid == 0)
        return;
    if (setgroups(0, NULL) < 0 || setgid(st.st_gid) < 0 || setuid(st.st_uid) < 0)
        perror("vecycle: warning: cannot become the owner of the store");
}

/* ---- gc ---- */

static struct json_object *forgotten_json(const struct vecycle_forgotten *f)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "vm", json_object_new_string(f->vm));
    json_object_object_add(o, "why", json_object_new_string(f->why));
    json_object_object_add(o, "bytes", json_object_new_uint64(f->bytes));
    json_object_object_add(o, "age_s", json_object_new_uint64(f->age_s));
    json_object_object_add(o, "peer", json_object_new_string(f->peer));
    return o;
}

struct output {
    struct json_object *list; /* NULL: text */
    bool quiet;
};

static void on_forgotten(void *opaque, const struct vecycle_forgotten *f)
{
    const struct output *out = opaque;

    if (out->list)
        json_object_array_add(out->list, forgotten_json(f));
    else if (!out->quiet)
        printf("%s  %10s  %6" PRIu64 " h  %s\n", f->vm, cmd_size(f->bytes), f->age_s / 3600,
               f->why);
}

static void print_result(const struct vecycle_gc_result *r, bool dry_run)
{
    char quota[40] = "", in_use[60] = "";

    if (r->quota_bytes != VECYCLE_UNLIMITED)
        snprintf(quota, sizeof(quota), " of %s", cmd_size(r->quota_bytes));
    if (r->n_in_use)
        snprintf(in_use, sizeof(in_use), ", %" PRIu64 " in use", r->n_in_use);
    printf("%s %" PRIu64 " of %" PRIu64 " VMs%s; %s%s used, %s free%s\n",
           dry_run ? "would forget" : "forgot", r->n_forgotten, r->n_vms, in_use,
           cmd_size(r->used_bytes), quota, cmd_size(r->free_bytes),
           r->over ? "; still over the limits" : "");
}

static void print_json(struct json_object *list, const struct vecycle_gc_result *r)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "forgotten", list);
#define NUMBER(name) json_object_object_add(o, #name, json_object_new_uint64(r->name))
    NUMBER(n_vms);
    NUMBER(n_forgotten);
    NUMBER(n_in_use);
    NUMBER(forgotten_bytes);
    NUMBER(used_bytes);
    NUMBER(free_bytes);
    NUMBER(quota_bytes);
    NUMBER(reserve_bytes);
#undef NUMBER
    json_object_object_add(o, "over", json_object_new_boolean(r->over));
    puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    json_object_put(o);
}

static int run_gc(struct cmd_common *c, int argc, char **argv)
{
    struct vecycle_gc_result r;
    struct vecycle_error err;
    struct output out = {0};
    bool dry_run = false;
    int opt, status = -1;

    while (status < 0 && (opt = getopt_long(argc, argv, CMD_COMMON_SHORT, gc_options, NULL)) != -1)
        if (opt == OPT_DRY_RUN)
            dry_run = true;
        else if (!cmd_limit_option(c, &cmd_gc, opt, &status))
            cmd_common_option(c, &cmd_gc, opt, &status);
    if (status < 0)
        status = cmd_check_words(&cmd_gc, argc - optind, 0, 0);
    if (status < 0)
        status = cmd_find_store(c);
    if (status >= 0)
        return status;
    cmd_become_owner(c);
    out.quiet = c->verbose < 0;
    out.list = c->json ? json_object_new_array() : NULL;
    if (vecycle_store_gc(&c->context, dry_run, on_forgotten, &out, &r, &err)) {
        json_object_put(out.list);
        return cmd_fail(c, &err);
    }
    if (c->json)
        print_json(out.list, &r);
    else if (!out.quiet)
        print_result(&r, dry_run);
    return 0;
}

/* ---- policy ---- */

static int show_policy(struct cmd_common *c, const char *vm)
{
    enum vecycle_policy policy;
    struct vecycle_error err;

    if (vecycle_store_get_policy(&c->context, vm, &policy, &err))
        return cmd_fail(c, &err);
    printf(c->json ? "{\"policy\":\"%s\"}\n" : "%s\n", vecycle_policy_name(policy));
    return 0;
}

static int run_policy(struct cmd_common *c, int argc, char **argv)
{
    struct vecycle_error err;
    int opt, status = -1;

    while (status < 0 &&
           (opt = getopt_long(argc, argv, CMD_COMMON_SHORT, policy_options, NULL)) != -1)
        cmd_common_option(c, &cmd_policy, opt, &status);
    if (status < 0)
        status = cmd_check_words(&cmd_policy, argc - optind, 1, 2);
    if (status < 0)
        status = cmd_find_store(c);
    if (status >= 0)
        return status;
    if (argc - optind == 1)
        return show_policy(c, argv[optind]);
    for (int p = VECYCLE_POLICY_NORMAL; p <= VECYCLE_POLICY_NEVER; p++) {
        if (strcmp(argv[optind + 1], vecycle_policy_name((enum vecycle_policy)p)) != 0)
            continue;
        cmd_become_owner(c);
        if (vecycle_store_set_policy(&c->context, argv[optind], (enum vecycle_policy)p, &err))
            return cmd_fail(c, &err);
        return c->json ? show_policy(c, argv[optind]) : 0;
    }
    return cmd_usage(&cmd_policy, "'%s' is not a policy", argv[optind + 1]);
}
