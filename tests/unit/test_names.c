/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Names that another process looks up. getaddrinfo() is this program's own, in the place of what
 * the modules of the name service switch do. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/names.h"

static pid_t asker;

static struct addrinfo *make(const char *address, struct addrinfo *next)
{
    struct addrinfo *a = calloc(1, sizeof(*a) + sizeof(struct sockaddr_in));
    struct sockaddr_in *in = (struct sockaddr_in *)(a + 1);

    *in = (struct sockaddr_in){.sin_family = AF_INET};
    inet_pton(AF_INET, address, &in->sin_addr);
    a->ai_family = AF_INET;
    a->ai_socktype = SOCK_STREAM;
    a->ai_addrlen = sizeof(*in);
    a->ai_addr = (struct sockaddr *)in;
    a->ai_next = next;
    return a;
}

int getaddrinfo(const char *host, const char *port, const struct addrinfo *want,
                struct addrinfo **out)
{
    (void)port;
    if (want->ai_flags & AI_NUMERICHOST) {
        if (strcmp(host, "192.0.2.3") != 0)
            return EAI_NONAME;
        *out = make("192.0.2.3", NULL);
        return 0;
    }
    if (getpid() == asker)
        return EAI_FAIL; /* it was not to be asked here */
    if (!strcmp(host, "killed"))
        kill(getppid(), SIGKILL);
    if (!strcmp(host, "all killed"))
        kill(0, SIGKILL); /* they are a process group */
    if (!strcmp(host, "crashes"))
        raise(SIGSEGV);
    if (!strcmp(host, "ends"))
        exit(0);
    if (strcmp(host, "two") != 0)
        return EAI_NONAME;
    *out = make("192.0.2.1", make("192.0.2.2", NULL));
    return 0;
}

void freeaddrinfo(struct addrinfo *list)
{
    vc_names_free(list);
}

static int find(const char *host, struct addrinfo **out)
{
    struct addrinfo want = {.ai_socktype = SOCK_STREAM};

    return vc_names_find(host, "7891", &want, out);
}

static int start(void **state)
{
    struct vc_err err;

    (void)state;
    asker = getpid();
    return vc_names_start(&err);
}

static int stop(void **state)
{
    (void)state;
    vc_names_stop();
    return 0;
}

static void all_addresses_of_a_name_come_back(void **state)
{
    struct addrinfo *list;
    char text[2][INET_ADDRSTRLEN];
    int n = 0;

    (void)state;
    assert_int_equal(find("two", &list), 0);
    for (const struct addrinfo *a = list; a && n < 2; a = a->ai_next) {
        assert_int_equal(a->ai_family, AF_INET);
        assert_int_equal(a->ai_socktype, SOCK_STREAM);
        inet_ntop(AF_INET, &((struct sockaddr_in *)a->ai_addr)->sin_addr, text[n++],
                  sizeof(text[0]));
    }
    assert_int_equal(n, 2);
    assert_string_equal(text[0], "192.0.2.1");
    assert_string_equal(text[1], "192.0.2.2");
    vc_names_free(list);
    assert_int_equal(find("none", &list), EAI_NONAME);
    assert_null(list);
}

static void a_module_that_crashes_costs_one_lookup(void **state)
{
    struct addrinfo *list;

    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(find("crashes", &list), EAI_AGAIN);
        assert_int_equal(find("ends", &list), EAI_AGAIN);
        assert_int_equal(find("two", &list), 0);
        vc_names_free(list);
    }
}

static void a_name_that_is_too_long_is_none(void **state)
{
    char name[400];
    struct addrinfo *list;

    (void)state;
    memset(name, 'a', sizeof(name) - 1);
    name[sizeof(name) - 1] = 0;
    assert_int_equal(find(name, &list), EAI_NONAME);
}

static void the_process_is_started_again(void **state)
{
    struct addrinfo *list;

    (void)state;
    for (int i = 0; i < 3; i++) {
        int rc = find("killed", &list);

        assert_int_equal(rc, EAI_NONAME);
        do { /* one question may be lost with it */
            rc = find("two", &list);
        } while (rc == EAI_AGAIN);
        assert_int_equal(rc, 0);
        vc_names_free(list);
    }
}

/* Where it cannot be started again that is said, and addresses can be called all the same. */
static void an_address_needs_no_process(void **state)
{
    struct addrinfo *list;
    int rc = find("all killed", &list);

    (void)state;
    while (rc == EAI_AGAIN) /* they are about to end */
        rc = find("two", &list);
    assert_int_equal(rc, VC_NAMES_ENDED);
    assert_int_equal(find("192.0.2.3", &list), 0);
    assert_int_equal(list->ai_addrlen, sizeof(struct sockaddr_in));
    assert_null(list->ai_next);
    vc_names_free(list);
}

static void without_the_process_it_is_asked_here(void **state)
{
    struct addrinfo *list;

    (void)state;
    vc_names_stop();
    assert_int_equal(find("two", &list), EAI_FAIL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_addresses_of_a_name_come_back),
        cmocka_unit_test(a_module_that_crashes_costs_one_lookup),
        cmocka_unit_test(a_name_that_is_too_long_is_none),
        cmocka_unit_test(the_process_is_started_again),
        cmocka_unit_test(an_address_needs_no_process),
        cmocka_unit_test(without_the_process_it_is_asked_here),
    };

    return cmocka_run_group_tests_name("names", tests, start, stop);
}
