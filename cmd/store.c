/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cmd.h"

/* ls, show, verify and rm: the store. */

static int run_ls(struct cmd_common *c, int argc, char **argv);
static int run_show(struct cmd_common *c, int argc, char **argv);
static int run_verify(struct cmd_common *c, int argc, char **argv);
static int run_rm(struct cmd_common *c, int argc, char **argv);

const struct cmd cmd_ls = {
    .name = "ls",
    .what = "list the VMs whose checkpoints this host keeps",
    .help = "Usage: vecycle ls [OPTION...]\n"
            "\n"
            "Lists the VMs in this host's store: UUID, size on disk, RAM, age, state.\n",
    .run = run_ls,
};
const struct cmd cmd_show = {
    .name = "show",
    .what = "show one VM's checkpoint: size, age, peers, reuse",
    .help = "Usage: vecycle show [OPTION...] UUID\n"
            "\n"
            "Shows what the store knows of a VM.\n",
    .run = run_show,
};
const struct cmd cmd_verify = {
    .name = "verify",
    .what = "hash every page of a checkpoint again",
    .help = "Usage: vecycle verify [OPTION...] UUID\n"
            "\n"
            "Reads a VM's checkpoint and compares every page with its digest. Exit status 42\n"
            "if anything is damaged; damaged pages are never used, and are fetched from the\n"
            "source when they are needed.\n",
    .run = run_verify,
};
const struct cmd cmd_rm = {
    .name = "rm",
    .what = "delete a VM's checkpoints",
    .help = "Usage: vecycle rm [OPTION...] UUID...\n"
            "\n"
            "Deletes the checkpoints of VMs, which hold what was in their memory.\n"
            "\n"
            "Options:\n"
            "      --force              also if a migration of the VM is not settled\n",
    .run = run_rm,
};

enum { OPT_FORCE = 256 };

static const struct option common_options[] = {CMD_COMMON_OPTIONS, {0}};
static const struct option rm_options[] = {
    {"force", no_argument, NULL, OPT_FORCE},
    CMD_COMMON_OPTIONS,
    {0},
};

/* -1, or an exit status. */
static int parse(struct cmd_common *c, const struct cmd *cmd, const struct option *options,
                 bool *force, int argc, char **argv, int least, int most)
{
    int opt, status = -1;

    while (status < 0 && (opt = getopt_long(argc, argv, CMD_COMMON_SHORT, options, NULL)) != -1)
        if (opt == OPT_FORCE)
            *force = true;
        else
            cmd_common_option(c, cmd, opt, &status);
    if (status < 0)
        status = cmd_check_words(cmd, argc - optind, least, most);
    return status < 0 ? cmd_find_store(c) : status;
}

struct json_object *cmd_vm_json(const struct vecycle_vm *vm)
{
    struct json_object *o = json_object_new_object();
#define TEXT(name) json_object_object_add(o, #name, json_object_new_string(vm->name))
#define NUMBER(name) json_object_object_add(o, #name, json_object_new_uint64(vm->name))
#define BOOLEAN(name) json_object_object_add(o, #name, json_object_new_boolean(vm->name))
    TEXT(vm);
    NUMBER(n_generations);
    BOOLEAN(partial);
    TEXT(generation);
    TEXT(root);
    NUMBER(created_unix);
    NUMBER(ram_bytes);
    NUMBER(disk_bytes);
    NUMBER(zero_pages);
    NUMBER(held_pages);
    NUMBER(unknown_pages);
    NUMBER(layers);
    NUMBER(same_pages);
    NUMBER(data_pages);
    TEXT(peer);
    TEXT(role);
    BOOLEAN(confirmed);
    BOOLEAN(exposed);
    TEXT(partial_generation);
    NUMBER(partial_unix);
    NUMBER(partial_held_pages);
    NUMBER(partial_disk_bytes);
    TEXT(policy);
    TEXT(handover);
    TEXT(handover_peer);
    TEXT(handover_socket);
    NUMBER(handover_unix);
    BOOLEAN(damaged);
    TEXT(error);
#undef TEXT
#undef NUMBER
#undef BOOLEAN
    return o;
}

static void print_json(struct json_object *o)
{
    puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    json_object_put(o);
}

/* "3 h", "2 d". */
static const char *age(uint64_t unix_s)
{
    static char text[32];
    uint64_t now = (uint64_t)time(NULL), s = now > unix_s ? now - unix_s : 0;

    if (!unix_s)
        return "-";
    if (s < 120)
        snprintf(text, sizeof(text), "%" PRIu64 " s", s);
    else if (s < 7200)
        snprintf(text, sizeof(text), "%" PRIu64 " min", s / 60);
    else if (s < 172800)
        snprintf(text, sizeof(text), "%" PRIu64 " h", s / 3600);
    else
        snprintf(text, sizeof(text), "%" PRIu64 " d", s / 86400);
    return text;
}

/* Somebody, on this host or the other one, has not heard yet what became of it. */
static bool is_open(const struct vecycle_vm *vm)
{
    static const char *const open[] = {"leaving", "left", "kept", "arriving", "about-to-run"};

    for (size_t i = 0; i < sizeof(open) / sizeof(open[0]); i++)
        if (!strcmp(vm->handover, open[i]))
            return true;
    return false;
}

static const char *state(const struct vecycle_vm *vm)
{
    if (vm->damaged)
        return "damaged";
    if (is_open(vm))
        return "unsettled";
    if (vm->partial)
        return "partial";
    if (!vm->n_generations)
        return "empty";
    return vm->confirmed ? "shared" : "own";
}

/* What all of them may take; nothing where that cannot be told. */
static void print_limits(struct cmd_common *c, size_t n_vms)
{
    struct vecycle_gc_result r;
    struct vecycle_error err;

    cmd_become_owner(c);
    if (vecycle_store_gc(&c->context, true, NULL, NULL, &r, &err))
        return;
    printf("%zu VM%s; %s", n_vms, n_vms == 1 ? "" : "s",
           cmd_size(r.used_bytes + r.forgotten_bytes));
    if (r.quota_bytes != VECYCLE_UNLIMITED)
        printf(" of %s", cmd_size(r.quota_bytes));
    printf(" used, %s free, of which %s are kept in reserve\n",
           cmd_size(r.free_bytes - r.forgotten_bytes), cmd_size(r.reserve_bytes));
}

static int run_ls(struct cmd_common *c, int argc, char **argv)
{
    struct vecycle_vm *vms;
    struct vecycle_error err;
    size_t n;
    int status = parse(c, &cmd_ls, common_options, NULL, argc, argv, 0, 0);

    if (status >= 0)
        return status;
    if (vecycle_store_list(&c->context, &vms, &n, &err))
        return cmd_fail(c, &err);
    if (c->json) {
        struct json_object *list = json_object_new_array();

        for (size_t i = 0; i < n; i++)
            json_object_array_add(list, cmd_vm_json(&vms[i]));
        print_json(list);
    } else {
        if (n)
            printf("%-36s  %10s  %10s  %8s  %s\n", "VM", "DISK", "RAM", "AGE", "STATE");
        for (size_t i = 0; i < n; i++)
            printf("%-36s  %10s  %10s  %8s  %s%s\n", vms[i].vm, cmd_size(vms[i].disk_bytes),
                   cmd_size(vms[i].ram_bytes), age(vms[i].created_unix), state(&vms[i]),
                   strcmp(vms[i].policy, "pinned") ? "" : ", pinned");
        if (n)
            print_limits(c, n);
    }
    free(vms);
    return 0;
}

static void show_text(const struct vecycle_vm *vm)
{
    uint64_t moved = vm->same_pages + vm->data_pages;

    printf("VM           %s\n", vm->vm);
    printf("state        %s\n", state(vm));
    printf("policy       %s\n", vm->policy);
    if (vm->damaged)
        printf("damage       %s\n", vm->error);
    if (vm->generation[0]) {
        printf("generation   %s, made %s ago%s%s\n", vm->generation, age(vm->created_unix),
               vm->role[0] ? " as " : "", vm->role);
        if (vm->peer[0])
            printf("peer         %s (%s)\n", vm->peer,
                   vm->confirmed ? "has the same" : "not known to have the same");
        printf("RAM          %s: %" PRIu64 " pages held, %" PRIu64 " zero, %" PRIu64 " unknown\n",
               cmd_size(vm->ram_bytes), vm->held_pages, vm->zero_pages, vm->unknown_pages);
        printf("on disk      %s in %" PRIu64 " file%s\n", cmd_size(vm->disk_bytes), vm->layers,
               vm->layers == 1 ? "" : "s");
        printf("reuse        %" PRIu64 " of %" PRIu64 " pages (%.1f %%) were not sent again\n",
               vm->same_pages, moved, moved ? 100.0 * (double)vm->same_pages / (double)moved : 0.0);
        printf("exposed      %s\n", vm->exposed ? "yes: it crossed a network in the clear" : "no");
    }
    if (vm->partial_generation[0])
        printf("unfinished   %" PRIu64
               " pages held from a migration that ended %s ago, %s on disk\n",
               vm->partial_held_pages, age(vm->partial_unix), cmd_size(vm->partial_disk_bytes));
    if (is_open(vm))
        printf("unsettled    %s '%s' since %s ago: see `vecycle resolve`\n",
               !strcmp(vm->handover, "left")   ? "it left to"
               : !strcmp(vm->handover, "kept") ? "it is this host's, and was leaving to"
                                               : "it arrived from",
               vm->handover_peer, age(vm->handover_unix));
}

static int run_show(struct cmd_common *c, int argc, char **argv)
{
    struct vecycle_vm vm;
    struct vecycle_error err;
    int status = parse(c, &cmd_show, common_options, NULL, argc, argv, 1, 1);

    if (status >= 0)
        return status;
    if (vecycle_store_show(&c->context, argv[optind], &vm, &err))
        return cmd_fail(c, &err);
    if (c->json)
        print_json(cmd_vm_json(&vm));
    else
        show_text(&vm);
    if (!vm.damaged)
        return 0;
    snprintf(err.message, sizeof(err.message), "%s", vm.error);
    snprintf(err.hint, sizeof(err.hint), "the next migration of the VM starts anew");
    err.code = VECYCLE_E_CORRUPT;
    c->json = false;
    return cmd_fail(c, &err);
}

static int run_verify(struct cmd_common *c, int argc, char **argv)
{
    struct vecycle_verified v;
    struct vecycle_error err;
    int rc, status = parse(c, &cmd_verify, common_options, NULL, argc, argv, 1, 1);

    if (status >= 0)
        return status;
    rc = vecycle_store_verify(&c->context, argv[optind], NULL, NULL, &v, &err);
    if (c->json && (!rc || err.code == VECYCLE_E_CORRUPT)) {
        struct json_object *o = json_object_new_object();

        json_object_object_add(o, "pages", json_object_new_uint64(v.pages));
        json_object_object_add(o, "bad_pages", json_object_new_uint64(v.bad_pages));
        json_object_object_add(o, "partial_pages", json_object_new_uint64(v.partial_pages));
        json_object_object_add(o, "unusable_pages", json_object_new_uint64(v.unusable_pages));
        print_json(o);
        c->json = false;
    } else if (!rc) {
        printf("%" PRIu64 " pages, all as they should be\n", v.pages);
        if (v.partial_pages)
            printf("%" PRIu64 " of %" PRIu64 " pages of an unfinished migration can be used\n",
                   v.partial_pages - v.unusable_pages, v.partial_pages);
    }
    return rc ? cmd_fail(c, &err) : 0;
}

static int run_rm(struct cmd_common *c, int argc, char **argv)
{
    struct vecycle_error err;
    struct json_object *removed, *o;
    bool force = false;
    int status = parse(c, &cmd_rm, rm_options, &force, argc, argv, 1, 1000);

    if (status >= 0)
        return status;
    cmd_become_owner(c);
    for (int i = optind; i < argc; i++)
        if (vecycle_store_remove(&c->context, argv[i], force, &err))
            return cmd_fail(c, &err);
    if (!c->json)
        return 0;
    o = json_object_new_object();
    removed = json_object_new_array();
    for (int i = optind; i < argc; i++)
        json_object_array_add(removed, json_object_new_string(argv[i]));
    json_object_object_add(o, "removed", removed);
    print_json(o);
    return 0;
}
