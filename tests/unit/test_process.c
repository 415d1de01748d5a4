/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <ctype.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fdio.h"
#include "base/process.h"

/* A child that does @what, and then waits to be killed. Returns when it has begun. */
static pid_t child(void (*what)(void))
{
    int up[2];
    pid_t pid;
    char c;

    assert_int_equal(pipe(up), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        close(up[0]);
        if (what)
            what();
        if (write(up[1], "x", 1) != 1)
            _exit(2);
        if (syscall(SYS_gettid) == getpid() && what) /* the leader ends, its thread stays */
            syscall(SYS_exit, 0);
        for (;;)
            pause();
    }
    close(up[1]);
    assert_int_equal(read(up[0], &c, 1), 1);
    close(up[0]);
    return pid;
}

static void end(pid_t pid)
{
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void a_process_lives_until_it_has_ended(void **state)
{
    pid_t pid = child(NULL);
    struct vc_process p;
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);

    (void)state;
    assert_true(vc_process_read(pid, &p));
    assert_int_equal(vc_process_look(&p), VC_PROCESS_ALIVE);
    kill(pid, SIGKILL);
    assert_int_equal(vc_wait_readable(pidfd, -1), 1);
    assert_int_equal(vc_process_look(&p), VC_PROCESS_GONE); /* a zombie */
    end(pid);
    assert_int_equal(vc_process_look(&p), VC_PROCESS_GONE);
    close(pidfd);
}

static void *stay(void *arg)
{
    for (;;)
        pause();
    return arg;
}

static void start_thread(void)
{
    pthread_t t;

    if (pthread_create(&t, NULL, stay, NULL))
        _exit(3);
}

static char state_of(pid_t pid)
{
    char path[64], text[256], *at;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    f = fopen(path, "re");
    assert_non_null(f);
    assert_non_null(fgets(text, sizeof(text), f));
    fclose(f);
    at = strrchr(text, ')');
    return at ? at[2] : '?';
}

static void a_zombie_whose_threads_live_is_alive(void **state)
{
    pid_t pid = child(start_thread);
    struct vc_process p;

    (void)state;
    while (state_of(pid) != 'Z')
        poll(NULL, 0, 1);
    assert_true(vc_process_read(pid, &p));
    assert_int_equal(vc_process_look(&p), VC_PROCESS_ALIVE);
    end(pid);
    assert_int_equal(vc_process_look(&p), VC_PROCESS_GONE);
}

static void a_pid_that_is_used_again_is_another_process(void **state)
{
    pid_t pid = child(NULL);
    struct vc_process p, later;

    (void)state;
    assert_true(vc_process_read(pid, &p));
    later = p;
    later.start++;
    assert_int_equal(vc_process_look(&later), VC_PROCESS_GONE);
    assert_false(vc_process_equal(&p, &later));
    assert_true(vc_process_equal(&p, &p));
    end(pid);
}

static void another_boot_has_ended_all_processes(void **state)
{
    struct vc_process p;

    (void)state;
    assert_true(vc_process_read(getpid(), &p));
    if (vc_id_is_nil(&p.machine)) {
        print_message("needs a machine-id\n");
        skip();
    }
    assert_false(vc_process_is_elsewhere(&p));
    p.boot.b[3] ^= 1;
    assert_int_equal(vc_process_look(&p), VC_PROCESS_GONE);
    assert_false(vc_process_is_elsewhere(&p));
}

static void another_machine_tells_nothing(void **state)
{
    struct vc_process p;

    (void)state;
    assert_true(vc_process_read(getpid(), &p));
    p.machine.b[3] ^= 1; /* the same boot is of the same machine, whatever it is called */
    assert_int_equal(vc_process_look(&p), VC_PROCESS_ALIVE);
    assert_false(vc_process_is_elsewhere(&p));
    p.boot.b[3] ^= 1;
    assert_int_equal(vc_process_look(&p), VC_PROCESS_IN_DOUBT);
    assert_true(vc_process_is_elsewhere(&p));
    p.machine = (struct vc_id){0};
    assert_int_equal(vc_process_look(&p), VC_PROCESS_IN_DOUBT);
    assert_true(vc_process_is_elsewhere(&p));
}

static void what_cannot_be_told_is_in_doubt(void **state)
{
    struct vc_process p, none = {0};

    (void)state;
    assert_int_equal(vc_process_look(&none), VC_PROCESS_IN_DOUBT);
    assert_false(vc_process_equal(&none, &none));
    assert_false(vc_process_read(0, &p));
    assert_false(vc_process_is_known(&p));
    assert_true(vc_process_read(getpid(), &p));
    p.pid_ns++;
    assert_int_equal(vc_process_look(&p), VC_PROCESS_IN_DOUBT);
    p.pid_ns--;
    p.time_ns++;
    assert_int_equal(vc_process_look(&p), VC_PROCESS_IN_DOUBT);
}

/* In a PID namespace of its own, with the /proc of the one above: pid 1 is the child, /proc/1 is
 * not. Exit status 0: it was seen. */
static void look_through_another_proc(void)
{
    struct vc_process p;
    int status;
    pid_t pid;

    if (unshare(CLONE_NEWPID) < 0)
        _exit(77);
    pid = fork();
    if (!pid)
        _exit(getpid() != 1 || vc_process_read(getpid(), &p) || vc_process_is_known(&p));
    _exit(pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status) ? 2
                                                                           : WEXITSTATUS(status));
}

static void the_proc_of_another_pid_namespace_tells_nothing(void **state)
{
    pid_t pid = fork();
    int status;

    (void)state;
    assert_true(pid >= 0);
    if (!pid)
        look_through_another_proc();
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) { /* not root */
        print_message("needs CAP_SYS_ADMIN for a PID namespace\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

static bool is_right(void *opaque, const char *text)
{
    return !strcmp(text, opaque);
}

static void an_option_is_found_with_its_value(void **state)
{
    pid_t pid = fork();

    (void)state;
    assert_true(pid >= 0);
    if (!pid) {
        execl("/bin/sh", "sh", "-c", "kill -STOP $$", "-uuid", "one", "--S", "uuid", "-uuid",
              (char *)NULL);
        _exit(2);
    }
    while (!vc_process_has_option(pid, "S", NULL, NULL)) /* until it is that program */
        poll(NULL, 0, 1);
    assert_true(vc_process_has_option(pid, "uuid", is_right, (char[]){"one"}));
    assert_false(vc_process_has_option(pid, "uuid", is_right, (char[]){"two"}));
    assert_false(vc_process_has_option(pid, "uu", NULL, NULL));
    end(pid);
    assert_false(vc_process_has_option(pid, "S", NULL, NULL));
}

/* The pid of a program with those words. */
static pid_t program(const char *uuid)
{
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (!pid) {
        execl("/bin/sh", "sh", "-c", "kill -STOP $$", "-uuid", uuid, (char *)NULL);
        _exit(2);
    }
    while (!vc_process_has_option(pid, "uuid", NULL, NULL))
        poll(NULL, 0, 1);
    return pid;
}

static void a_process_is_found_by_its_option(void **state)
{
    struct vc_process here, inner;
    struct vc_id id;
    char text[VC_ID_TEXT_BYTES];
    pid_t pid, found;

    (void)state;
    assert_true(vc_process_read(getpid(), &here));
    assert_true(vc_id_random(&id));
    found = vc_process_find_option(&here, "uuid", vc_process_option_is_id, &id, 0);
    if (found < 0) {
        print_message("needs a /proc that hides nothing\n");
        skip();
    }
    assert_int_equal(found, 0);
    vc_id_format(&id, text);
    for (char *c = text; *c; c++)
        *c = (char)toupper((unsigned char)*c);
    pid = program(text);
    assert_int_equal(vc_process_find_option(&here, "uuid", vc_process_option_is_id, &id, 0), pid);
    assert_int_equal(vc_process_find_option(&here, "uuid", vc_process_option_is_id, &id, pid), 0);
    inner = here;
    inner.pid_ns++; /* seen in another namespace: of this one, or beside it */
    found = vc_process_find_option(&inner, "uuid", vc_process_option_is_id, &id, 0);
    assert_true(found == pid || found == -1);
    kill(pid, SIGKILL);
    while (state_of(pid) != 'Z')
        poll(NULL, 0, 1);
    assert_int_equal(vc_process_find_option(&here, "uuid", vc_process_option_is_id, &id, 0), 0);
    end(pid);
}

/* Of a program that has started QEMU, and has its options, nobody may think that it is a new one.
 */
static void who_has_started_a_process_is_not_younger(void **state)
{
    struct vc_process here, older;

    (void)state;
    assert_true(vc_process_read(getpid(), &here));
    older = here;
    older.start--;
    assert_true(vc_process_is_younger(getpid(), &older));
    assert_false(vc_process_is_younger(getpid(), &here));
    assert_false(vc_process_is_younger(getppid(), &here));
    assert_false(vc_process_is_younger(0, &older));
    assert_false(vc_process_is_younger(-1, &older));
    older.pid = 0; /* unknown */
    assert_true(vc_process_is_younger(getpid(), &older));
}

/* With a /proc as `hidepid=` makes it. Exit status 0: it was noticed. */
static void look_with_hidepid(void)
{
    struct vc_process p;
    struct vc_id id = {{1}};

    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("proc", "/proc", "proc", 0, "hidepid=2") < 0)
        _exit(77);
    _exit(!vc_process_read(getpid(), &p) ||
          vc_process_find_option(&p, "uuid", vc_process_option_is_id, &id, 0) != -1);
}

static void where_processes_are_hidden_none_is_missing(void **state)
{
    pid_t pid = fork();
    int status;

    (void)state;
    assert_true(pid >= 0);
    if (!pid)
        look_with_hidepid();
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        print_message("needs CAP_SYS_ADMIN for a /proc of its own\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_process_lives_until_it_has_ended),
        cmocka_unit_test(a_zombie_whose_threads_live_is_alive),
        cmocka_unit_test(a_pid_that_is_used_again_is_another_process),
        cmocka_unit_test(another_boot_has_ended_all_processes),
        cmocka_unit_test(another_machine_tells_nothing),
        cmocka_unit_test(what_cannot_be_told_is_in_doubt),
        cmocka_unit_test(the_proc_of_another_pid_namespace_tells_nothing),
        cmocka_unit_test(an_option_is_found_with_its_value),
        cmocka_unit_test(a_process_is_found_by_its_option),
        cmocka_unit_test(who_has_started_a_process_is_not_younger),
        cmocka_unit_test(where_processes_are_hidden_none_is_missing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
