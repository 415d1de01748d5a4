/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a process can do no more once it is in the sandbox. Each case is a child of its own. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/sandbox.h"
#include "base/fdio.h"
#include "net/names.h"

/* Exit statuses of a child. */
enum { DONE = 10, REFUSED = 11, NO_FILTER = 12, NO_SANDBOX = 13 };

static int try_execve(void)
{
    char *const argv[] = {(char *)"/bin/true", NULL};

    return execv(argv[0], argv);
}

static int try_fork(void)
{
    pid_t pid = fork();

    if (pid == 0)
        _exit(0);
    return pid < 0 ? -1 : 0;
}

static int try_ptrace(void)
{
    return (int)ptrace(PTRACE_TRACEME, 0, NULL, NULL);
}

static int try_network(void)
{
    return socket(AF_INET, SOCK_STREAM, 0);
}

/* As the agent gives a lost word again; that nobody listens there is an answer too. */
static int try_dial(void)
{
    struct addrinfo want = {.ai_socktype = SOCK_STREAM}, *list;
    int fd, rc = -1;

    if (vc_names_find("localhost", "1", &want, &list))
        return -1;
    fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, list->ai_protocol);
    if (fd >= 0) {
        rc = connect(fd, list->ai_addr, list->ai_addrlen) == 0 || errno != ENOSYS ? 0 : -1;
        close(fd);
    }
    vc_names_free(list);
    return rc;
}

/* By which modules is not our affair: one loads code, another asks the kernel or a service. */
static int try_name(void)
{
    struct addrinfo want = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    char name[64] = "";
    int rc = gethostname(name, sizeof(name) - 1);

    if (rc == 0)
        rc = vc_names_find(name, "1", &want, &list); /* found or not: it came back */
    vc_names_free(list);
    rc = vc_names_find("fe80::1%lo", "1", &want, &list); /* a zone: of an interface */
    vc_names_free(list);
    return rc ? -1 : 0;
}

static int try_zone(void)
{
    char name[IF_NAMESIZE];

    return if_nametoindex("lo") && if_indextoname(1, name) ? 0 : -1;
}

static int try_netlink(void)
{
    return socket(AF_NETLINK, SOCK_RAW, 0);
}

static int try_code(void)
{
    return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED
               ? -1
               : 0;
}

static int try_code_later(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return p == MAP_FAILED ? 0 : mprotect(p, 4096, PROT_READ | PROT_EXEC);
}

static int try_setuid(void)
{
    return setuid(getuid());
}

static int try_unix_socket(void)
{
    return socket(AF_UNIX, SOCK_STREAM, 0);
}

static int try_file(void)
{
    return open("/etc/passwd", O_RDONLY);
}

/* Of an agent that was started with such a umask. */
static int try_directory(void)
{
    char name[64];
    int rc;

    snprintf(name, sizeof(name), "/tmp/vc-test-sandbox-%d", (int)getpid());
    umask(0777);
    rc = vc_mkdirat(AT_FDCWD, name, 0700);
    rmdir(name);
    return rc;
}

static void *nothing(void *arg)
{
    return arg;
}

static int try_thread(void)
{
    pthread_t t;

    return pthread_create(&t, NULL, nothing, NULL) || pthread_join(t, NULL) ? -1 : 0;
}

/* The exit status, or minus the signal. */
static int in_sandbox(int (*attempt)(void), bool strict, bool dials)
{
    struct vc_err err = VC_ERR_INIT;
    int status;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        int rc;

        vc_sandbox_protect_memory();
        rc = vc_sandbox_enter(strict, dials, &err);
        if (rc < 0)
            fprintf(stderr, "%s\n", err.message);
        if (rc)
            _exit(rc == VC_NOT_FOUND ? NO_FILTER : NO_SANDBOX);
        _exit(attempt() < 0 ? REFUSED : DONE);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static const struct {
    const char *what;
    int (*attempt)(void);
    bool allowed, spares; /* refused, and even a strict sandbox goes on */
} cases[] = {
    {"another program", try_execve, false},
    {"another process", try_fork, false},
    {"tracing", try_ptrace, false},
    {"the network", try_network, false, true},
    {"a name, whoever finds it", try_name, true},
    {"a zone of an address", try_zone, true},
    {"addresses of our own", try_netlink, false, true},
    {"new code", try_code, false},
    {"memory that becomes code", try_code_later, false},
    {"another user", try_setuid, false},
    {"a Unix socket", try_unix_socket, true},
    {"a file", try_file, true},
    {"a directory, whatever the umask", try_directory, true},
    {"a thread", try_thread, true},
};

static void what_an_agent_does_not_need_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(cases); i++) {
        int got = in_sandbox(cases[i].attempt, false, false);

        if (got == NO_FILTER)
            skip();
        if (got != (cases[i].allowed ? DONE : REFUSED))
            print_error("%s: %d\n", cases[i].what, got);
        assert_int_equal(got, cases[i].allowed ? DONE : REFUSED);
    }
}

static void a_strict_sandbox_ends_the_process(void **state)
{
    (void)state;
    for (size_t i = 0; i < VC_ARRAY_LEN(cases); i++) {
        int got = in_sandbox(cases[i].attempt, true, false), want;

        if (got == NO_FILTER)
            skip();
        want = cases[i].allowed ? DONE : cases[i].spares ? REFUSED : -SIGSYS;
        if (got != want)
            print_error("%s: %d\n", cases[i].what, got);
        assert_int_equal(got, want);
    }
}

static void an_agent_with_plain_tcp_may_call_other_hosts(void **state)
{
    int got = in_sandbox(try_dial, true, true);

    (void)state;
    if (got == NO_FILTER)
        skip();
    assert_int_equal(got, DONE);
    assert_int_equal(in_sandbox(try_fork, true, true), -SIGSYS);
}

static void without_a_sandbox_all_of_it_works(void **state)
{
    (void)state;
    /* Else the tests above would show nothing. */
    assert_true(try_fork() == 0);
    assert_true(try_network() >= 0);
    assert_true(try_code() == 0);
    assert_true(try_setuid() == 0);
}

static void memory_is_protected_without_a_filter_too(void **state)
{
    int status;
    pid_t pid = fork();

    (void)state;
    assert_true(pid >= 0);
    if (pid == 0) {
        struct rlimit core = {1, 1};

        vc_sandbox_protect_memory();
        getrlimit(RLIMIT_CORE, &core);
        _exit(core.rlim_cur == 0 && core.rlim_max == 0 && prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0
                  ? DONE
                  : REFUSED);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), DONE);
}

static void an_unknown_user_is_named(void **state)
{
    struct vc_err err = VC_ERR_INIT;
    struct vc_sandbox_user u;

    (void)state;
    assert_int_equal(vc_sandbox_find_user("no-such-user-here", &u, &err), VC_E_USAGE);
    assert_non_null(strstr(err.message, "no-such-user-here"));
    assert_int_equal(vc_sandbox_find_user(NULL, &u, &err), 0);
    assert_null(u.name);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_sandbox_all_of_it_works),
        cmocka_unit_test(what_an_agent_does_not_need_is_refused),
        cmocka_unit_test(a_strict_sandbox_ends_the_process),
        cmocka_unit_test(an_agent_with_plain_tcp_may_call_other_hosts),
        cmocka_unit_test(memory_is_protected_without_a_filter_too),
        cmocka_unit_test(an_unknown_user_is_named),
    };

    return cmocka_run_group_tests_name("sandbox", tests, NULL, NULL);
}
