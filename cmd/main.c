/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cmd.h"

static const struct cmd *const commands[] = {
    &cmd_migrate, &cmd_proxy, &cmd_serve,  &cmd_recv,    &cmd_ls,    &cmd_show, &cmd_verify,
    &cmd_rm,      &cmd_gc,    &cmd_policy, &cmd_resolve, &cmd_rekey, &cmd_tls,
};
#define N_COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void help(FILE *out)
{
    fprintf(out,
            "Usage: vecycle COMMAND [OPTION...]\n"
            "\n"
            "Live migration of QEMU VMs that come back: a page that the destination still has\n"
            "is not sent again.\n"
            "\n"
            "Commands:\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-9s  %s\n", commands[i]->name, commands[i]->what);
    fprintf(out,
            "\n"
            "  -h, --help     this text; 'vecycle COMMAND --help' tells more\n"
            "      --version  the version\n"
            "\n"
            "On the destination, with QEMU waiting at /run/vecycle/UUID.qmp (-incoming defer):\n"
            "  vecycle serve\n"
            "On the source:\n"
            "  vecycle migrate --qmp /run/vm1.qmp ssh://root@destination\n");
}

bool cmd_common_option(struct cmd_common *c, const struct cmd *cmd, int opt, int *status)
{
    switch (opt) {
    case OPT_STORE:
        c->context.store = optarg;
        return true;
    case OPT_CONTROL:
        c->context.control = optarg;
        return true;
    case OPT_STORE_LIMIT:
        if (!cmd_parse_size(optarg, &c->context.store_limit_bytes))
            *status = cmd_usage(cmd, "'%s' is not a size", optarg);
        return true;
    case OPT_JSON:
        c->json = true;
        return true;
    case 'q':
        c->verbose = -1;
        return true;
    case 'v':
        c->verbose = 1;
        return true;
    case 'h':
    case OPT_HELP:
        printf("%s" CMD_COMMON_HELP, cmd->help);
        *status = 0;
        return true;
    case OPT_VERSION:
        printf("vecycle %s\n", vecycle_version());
        *status = 0;
        return true;
    case '?': /* getopt_long has said what is wrong */
        fprintf(stderr, "Try 'vecycle %s --help'.\n", cmd->name);
        *status = -VECYCLE_E_USAGE;
        return true;
    default:
        return false;
    }
}

bool cmd_tls_option(struct vecycle_tls *tls, const struct cmd *cmd, int opt, int *status)
{
    char *end;

    switch (opt) {
    case OPT_TLS_DIR:
        tls->dir = optarg;
        return true;
    case OPT_TLS_HOSTNAME:
        tls->hostname = optarg;
        return true;
    case OPT_TLS_TIMEOUT:
        tls->handshake_ms = strtoull(optarg, &end, 10);
        if (*end || *optarg == '-' || tls->handshake_ms < 1 || tls->handshake_ms > 3600000)
            *status = cmd_usage(cmd, "'%s' is not a number of milliseconds", optarg);
        return true;
    default:
        return false;
    }
}

/* The n-th word that the first line of the command's help asks for, options and what they take
 * apart: its bytes, in *out. 0: it asks for no such. */
static int wanted_word(const struct cmd *cmd, int n, const char **out)
{
    const char *at = cmd->help + strlen("Usage: vecycle ") + strlen(cmd->name);
    bool of_option = false;

    for (;;) {
        int bytes;

        at += strspn(at, " ");
        bytes = (int)strcspn(at, " \n");
        if (!bytes)
            return 0;
        if (!of_option && *at != '-' && *at != '[' && n-- == 0) {
            *out = at;
            return bytes > 3 && !strncmp(at + bytes - 3, "...", 3) ? bytes - 3 : bytes;
        }
        of_option = *at == '-';
        at += bytes;
    }
}

int cmd_check_words(const struct cmd *cmd, int have, int least, int most)
{
    const char *word = "an argument";

    if (have < least) {
        int bytes = wanted_word(cmd, have, &word);

        return cmd_usage(cmd, "%.*s is missing", bytes ? bytes : (int)strlen(word), word);
    }
    if (have > most)
        return cmd_usage(cmd, "too many arguments");
    return -1;
}

int cmd_usage(const struct cmd *cmd, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "vecycle %s: ", cmd->name);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, " (try 'vecycle %s --help')\n", cmd->name);
    return -VECYCLE_E_USAGE;
}

int cmd_fail(const struct cmd_common *c, const struct vecycle_error *e)
{
    if (c->json) {
        struct json_object *o = json_object_new_object(), *v = json_object_new_object();

        json_object_object_add(v, "code", json_object_new_int(-e->code));
        json_object_object_add(v, "name", json_object_new_string(vecycle_error_name(e->code)));
        json_object_object_add(v, "message", json_object_new_string(e->message));
        json_object_object_add(v, "hint", json_object_new_string(e->hint));
        json_object_object_add(o, "error", v);
        puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
        json_object_put(o);
    }
    if (e->hint[0])
        fprintf(stderr, "vecycle: %s (%s)\n", e->message, e->hint);
    else
        fprintf(stderr, "vecycle: %s\n", e->message);
    return -e->code;
}

void cmd_log(void *opaque, enum vecycle_log_level level, const char *text)
{
    const struct cmd_common *c = opaque;
    static const char *const names[] = {"error: ", "warning: ", "", "debug: "};

    if ((int)level > (c->verbose < 0 ? 0 : c->verbose ? 3 : 1))
        return;
    flockfile(stderr);
    cmd_progress_make_way();
    fprintf(stderr, "vecycle: %s%s\n", names[level], text);
    funlockfile(stderr);
}

static struct vecycle_cancel *on_signal_cancel;

static void on_signal(int sig)
{
    (void)sig;
    vecycle_cancel_now(on_signal_cancel);
}

/* What whoever started us has us ignore stays ignored: nohup(1), and SIGINT where a script's shell
 * starts a job in the background. */
static void unless_ignored(int sig, const struct sigaction *act)
{
    struct sigaction old;

    if (sigaction(sig, NULL, &old) == 0 && old.sa_handler != SIG_IGN)
        sigaction(sig, act, NULL);
}

struct vecycle_cancel *cmd_cancel_on_signals(void)
{
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

    on_signal_cancel = vecycle_cancel_new();
    if (!on_signal_cancel)
        return NULL;
    unless_ignored(SIGINT, &act);
    unless_ignored(SIGTERM, &act);
    unless_ignored(SIGHUP, &act);
    return on_signal_cancel;
}

bool cmd_parse_seconds(const char *text, uint32_t *ms_out)
{
    uint64_t s;

    if (!cmd_parse_size(text, &s) || s < 1 || s > 3600)
        return false;
    *ms_out = (uint32_t)s * 1000;
    return true;
}

/* What passes through is guests' memory: no core dumps, and no other process looks in. */
static void protect_memory(void)
{
    struct rlimit none = {0, 0};

    setrlimit(RLIMIT_CORE, &none);
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}

/* By default glibc takes ever larger blocks from the heap once one of them was freed, and keeps
 * what is freed there: an index of 16 GiB of RAM left 25 MiB behind. Fixed limits: indexes are
 * mapped and go back whole; the buffers of batches (2 MiB) stay in the heap, where no page has to
 * be cleared each time. */
static void bound_heap(void)
{
    mallopt(M_MMAP_THRESHOLD, 4 << 20);
    mallopt(M_TRIM_THRESHOLD, 8 << 20);
    mallopt(M_ARENA_MAX, 2);
}

/* Where one of them is closed, a socket would take its place, and be written to. */
static void have_standard_fds(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
}

/* What a command printed, and could not: on a full disk, for example. Whoever closed the pipe does
 * not want it. */
static int end(int status, bool must_print)
{
    if ((fflush(stdout) || ferror(stdout)) && errno != EPIPE) {
        fprintf(stderr, "vecycle: cannot write to standard output: %s\n", strerror(errno));
        if (!status && must_print)
            return -VECYCLE_E_FAILED;
    }
    return status;
}

int main(int argc, char **argv)
{
    struct cmd_common c = {.context = {.log = cmd_log}};

    have_standard_fds();
    c.context.opaque = &c;
    signal(SIGPIPE, SIG_IGN);
    protect_memory();
    bound_heap();
    if (argc < 2) {
        help(stderr);
        return -VECYCLE_E_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        help(stdout);
        return end(0, true);
    }
    if (!strcmp(argv[1], "--version")) {
        printf("vecycle %s\n", vecycle_version());
        return 0;
    }
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (!strcmp(argv[1], commands[i]->name))
            return end(commands[i]->run(&c, argc - 1, argv + 1),
                       commands[i] != &cmd_migrate && commands[i] != &cmd_proxy);
    fprintf(stderr, "vecycle: no command '%s' (try 'vecycle --help')\n", argv[1]);
    return -VECYCLE_E_USAGE;
}
