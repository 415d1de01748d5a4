/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_CMD_H
#define VC_CMD_H

#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <json-c/json.h>

#include "vecycle/vecycle.h"

/* Private to the command line: what the commands share. */

/** Options that every command takes. */
struct cmd_common {
    struct vecycle_context context;
    bool json;
    int verbose; /* -1 quiet, 0, 1 */
};

/** Long options of every command; add a command's own behind them. Values from 256 on are free. */
enum { OPT_STORE = 1000, OPT_CONTROL, OPT_STORE_LIMIT, OPT_HELP, OPT_VERSION, OPT_JSON };
#define CMD_COMMON_OPTIONS                                                          \
    {"store", required_argument, NULL, OPT_STORE},                                  \
        {"control", required_argument, NULL, OPT_CONTROL},                          \
        {"store-limit", required_argument, NULL, OPT_STORE_LIMIT},                  \
        {"json", no_argument, NULL, OPT_JSON}, {"quiet", no_argument, NULL, 'q'},   \
        {"verbose", no_argument, NULL, 'v'}, {"help", no_argument, NULL, OPT_HELP}, \
    {                                                                               \
        "version", no_argument, NULL, OPT_VERSION                                   \
    }
#define CMD_COMMON_SHORT "qvh"
#define CMD_COMMON_HELP                                                                       \
    "\nOptions of every command:\n"                                                           \
    "      --store DIR          checkpoint store (default: a running agent's for the\n"       \
    "                           commands on the store; else /var/lib/vecycle for root,\n"     \
    "                           ~/.local/share/vecycle for others)\n"                         \
    "      --control PATH       the agent's control socket (default: /run/vecycle/control;\n" \
    "                           'none': work without an agent)\n"                             \
    "      --store-limit SIZE   RAM above which no checkpoint is kept (default 4T)\n"         \
    "      --json               print the result as JSON\n"                                   \
    "  -q, --quiet              only errors\n"                                                \
    "  -v, --verbose            more about what happens\n"                                    \
    "  -h, --help               this text\n"                                                  \
    "      --version            the version\n"

/** Options of the commands that may use tls:// addresses. */
enum { OPT_TLS_DIR = 1100, OPT_TLS_HOSTNAME, OPT_TLS_TIMEOUT };
#define CMD_TLS_OPTIONS                                         \
    {"tls-dir", required_argument, NULL, OPT_TLS_DIR},          \
    {                                                           \
        "tls-timeout", required_argument, NULL, OPT_TLS_TIMEOUT \
    }
#define CMD_TLS_HOSTNAME_OPTION                                   \
    {                                                             \
        "tls-hostname", required_argument, NULL, OPT_TLS_HOSTNAME \
    }
#define CMD_TLS_HELP                                                                          \
    "      --tls-dir DIR        certificates and keys (default /etc/vecycle/tls; an agent\n"  \
    "                           that does the work uses its own)\n"                           \
    "      --tls-hostname NAME  the name in the other host's certificate, if it is not the\n" \
    "                           one in the address\n"                                         \
    "      --tls-timeout MS     time for the TLS handshake (default 10000)\n"

/** One command. */
struct cmd {
    const char *name;
    const char *what; /* one line */
    const char *help; /* usage and options */
    int (*run)(struct cmd_common *c, int argc, char **argv);
};

extern const struct cmd cmd_migrate, cmd_proxy, cmd_recv, cmd_ls, cmd_show, cmd_verify, cmd_rm,
    cmd_resolve, cmd_rekey;

extern const struct cmd cmd_serve, cmd_tls, cmd_gc, cmd_policy;

/** Options that say what the store may take. */
enum { OPT_QUOTA = 1200, OPT_PEER_QUOTA, OPT_RESERVE, OPT_MAX_AGE };
_Static_assert((int)OPT_JSON < (int)OPT_TLS_DIR && (int)OPT_TLS_TIMEOUT < (int)OPT_QUOTA,
               "options that one command may have together are told apart");
#define CMD_LIMIT_OPTIONS                                        \
    {"quota", required_argument, NULL, OPT_QUOTA},               \
        {"peer-quota", required_argument, NULL, OPT_PEER_QUOTA}, \
        {"reserve", required_argument, NULL, OPT_RESERVE},       \
    {                                                            \
        "max-age", required_argument, NULL, OPT_MAX_AGE          \
    }
#define CMD_LIMIT_HELP                                                                            \
    "      --quota SIZE         what the checkpoints of all VMs may take; 'none' turns a limit\n" \
    "                           off (default: 3/4 of what they take and what is free)\n"          \
    "      --peer-quota SIZE    the same for the VMs of one peer (default: none)\n"               \
    "      --reserve SIZE       what is left free of the disk (default: 5 %, 1G at most)\n"       \
    "      --max-age TIME       after which a checkpoint is forgotten: 36h, 14d, 2w\n"            \
    "                           (default: 14d)\n"
/** True if `opt` is one of these; *status as below. */
bool cmd_limit_option(struct cmd_common *c, const struct cmd *cmd, int opt, int *status);

/** The store that is meant where none is named, and what its agent's limits are. -1, or an exit
 *  status. */
int cmd_find_store(struct cmd_common *c);

/** A store that belongs to another user is worked on as that user, so that its files stay theirs:
 *  for root, before a command that writes into the store and needs nothing else. */
void cmd_become_owner(const struct cmd_common *c);

/** Handles a common option, and what getopt_long() did not understand. Returns true if `opt` was
 *  one; *status is set to an exit status if the command is to end now, else left at -1. */
bool cmd_common_option(struct cmd_common *c, const struct cmd *cmd, int opt, int *status);

/** The same for CMD_TLS_OPTIONS and CMD_TLS_HOSTNAME_OPTION. */
bool cmd_tls_option(struct vecycle_tls *tls, const struct cmd *cmd, int opt, int *status);

/** Checks the number of words that are not options. -1, or an exit status. */
int cmd_check_words(const struct cmd *cmd, int have, int least, int most);

/** "512M", "1G", "100000": bytes. False: not a size. */
bool cmd_parse_size(const char *text, uint64_t *out);

/** "10": milliseconds. False: not a number of seconds from 1 to 3600. */
bool cmd_parse_seconds(const char *text, uint32_t *ms_out);

/** One line on standard error (or JSON on standard output), and the exit status. */
int cmd_fail(const struct cmd_common *c, const struct vecycle_error *e);
/** The same for a mistake in the arguments. */
int cmd_usage(const struct cmd *cmd, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/** Log messages to standard error, as --quiet and --verbose have it. */
void cmd_log(void *opaque, enum vecycle_log_level level, const char *text);

/** A cancel object that SIGINT, SIGTERM and SIGHUP trigger, unless they were ignored at the start.
 */
struct vecycle_cancel *cmd_cancel_on_signals(void);

/** 1536 -> "1.5 KiB". The text lives until the fourth call after it. */
const char *cmd_size(uint64_t bytes);

/* ---- progress.c ---- */

/** A line that is kept up to date on a terminal; on anything else a line every few seconds. */
struct cmd_progress {
    FILE *out; /* NULL: none */
    bool terminal;
    /* Set by the caller: somebody else drives QEMU, and knows what vecycle does not; the VM is to
     * stay paused. */
    bool proxied;
    size_t drawn;                     /* columns that the line takes now */
    double percent;                   /* never runs backwards, nor does what follows */
    uint64_t wire_before, wire_bytes; /* in earlier attempts, in this one */
    uint64_t attempt, rounds, left_bytes;
    enum vecycle_phase phase;
    bool rate_known;
    uint64_t last_line_ms;
};
/** The longest line, and a NUL. */
#define CMD_LINE_BYTES 200
void cmd_progress_init(struct cmd_progress *p, const struct cmd_common *c);
/** For vecycle_*_options.progress; opaque is the struct. */
void cmd_progress_show(void *opaque, const struct vecycle_result *now);
/** Takes the line away for something else on standard error, which the caller has locked. */
void cmd_progress_make_way(void);
/** Ends the line. */
void cmd_progress_end(struct cmd_progress *p);

/** The summary of a migration: text, or JSON. @err: NULL on success. */
void cmd_summary(const struct cmd_common *c, const struct cmd_progress *p,
                 const struct vecycle_result *r, const struct vecycle_error *err);

/** Adds one VM's description to a JSON object. */
struct json_object *cmd_vm_json(const struct vecycle_vm *vm);

#endif
