# SPDX-License-Identifier: LGPL-2.1-or-later
"""What happens to the VM before and while it migrates. A scenario is given a lab whose VM is on a host,
and yields a run for each measured migration, as long as more() says so."""
import itertools
import re

from vctest.proc import wait_for


RESUME_AT = 0.6         # of the first pass
SETTLE_TIMEOUT_S = 300  # of the guest's programs, under an emulated processor
TAIL_PERCENT = 30


def first_visit(lab, more):
    """Nobody has seen this VM before."""
    while more():
        lab.forget()
        yield lab.migrate("first-visit")


def ping_pong(lab):
    """Both hosts have a checkpoint, and it is the same."""
    lab.migrate("prepare")


def idle_return(lab, more):
    """It did nothing since it came."""
    ping_pong(lab)
    while more():
        yield lab.migrate("idle-return")


def changed(percent):
    def scenario(lab, more):
        """So much of the filled memory was rewritten, all over it."""
        ping_pong(lab)
        while more():
            lab.guest.command(f"rewrite {percent} spread", SETTLE_TIMEOUT_S)
            yield lab.migrate(f"changed-{percent}", percent=percent)
    return scenario


def tail_changed(lab, more):
    """What was rewritten lies at the end of RAM, where it comes last in the first pass: a system
    that believes the rate at which the pages before it went stops the guest too early."""
    ping_pong(lab)
    lab.guest.command("tick 2")
    lab.gap = True
    while more():
        lab.guest.command(f"rewrite {TAIL_PERCENT} top", SETTLE_TIMEOUT_S)
        yield lab.migrate("tail-changed", percent=TAIL_PERCENT)
    lab.gap = False
    lab.guest.command("tick 0")


def writing(lab, more):
    """A program rewrites part of the memory all the time, a fifth as fast as the link is at best."""
    rate = max(1, int(min(lab.link.bytes_per_s or 1e9, 200e6) / 5 / (1 << 20)))
    ping_pong(lab)
    lab.guest.command(f"dirty 64 {rate}")
    try:
        while more():
            yield lab.migrate("writing", timeout=60, dirty_mib_per_s=rate)
    finally:
        lab.guest.command("stop")


def restart(lab, more):
    """A program is started anew, and has the same data, in other pages."""
    ping_pong(lab)
    while more():
        lab.guest.command(f"fill {lab.fill_mib} 1", SETTLE_TIMEOUT_S)
        yield lab.migrate("work-restart")


def third_host(lab, more):
    """It returns to a host by way of a third one: the two hosts of the migration hold different
    checkpoints, and the source has to learn what the destination has."""
    for _ in range(2):
        lab.migrate("prepare")
    while more():
        yield lab.migrate("third-host")


def resume(lab, more):
    """A first visit is cancelled when it is through with 60 % of the memory, and tried again."""
    while more():
        lab.forget()
        first = lab.interrupted(RESUME_AT)
        yield lab.migrate("resume", first_attempt=first)


# ---- programs from Debian inside the guest ----

REDIS = "/usr/bin/redis-{} -s /tmp/redis.sock"
KEYS = 40000
VALUE = "__rand_int__" * 60  # twelve digits each


def _redis(lab, round_):
    """A key-value store in which a quarter of the values is overwritten at random."""
    if not round_:
        lab.guest.command("spawn /usr/bin/redis-server --port 0 --unixsocket /tmp/redis.sock "
                          "--save '' --appendonly no")
        wait_for(lambda: "exit 0" in lab.guest.command(f"run {REDIS.format('cli')} ping"), 60,
                 "redis to listen", step=0.5)
    n = KEYS // 4 if round_ else KEYS * 3
    _must(lab, f"run {REDIS.format('benchmark')} -q -c 4 -P 16 -r {KEYS} -n {n} "
               f"set key:__rand_int__ {VALUE}")


def _sort(lab, round_):
    """Text is sorted, each time by something else, and written beside it."""
    if not round_:
        _text(lab, 24, 7)
    _must(lab, f"run /usr/bin/sort -k 1.{round_ + 1} -S 64M --parallel=1 -T /tmp -o /tmp/sorted "
               "/tmp/lines")


def _xz(lab, round_):
    """New text is compressed."""
    _text(lab, 4, round_)
    _must(lab, "run /usr/bin/xz -1 -k -f -T1 /tmp/lines")


def _text(lab, mib, seed):
    lab.guest.command(f"text /tmp/lines {mib} {seed}", SETTLE_TIMEOUT_S)


def _must(lab, command):
    answer = lab.guest.command(command, SETTLE_TIMEOUT_S)
    assert re.search(r"exit 0\b", answer), f"{command}: {answer}"


def work(name, job):
    def scenario(lab, more):
        """A program works on the host where the VM is before it returns."""
        job(lab, 0)
        ping_pong(lab)
        for round_ in itertools.count(1):
            if not more():
                break
            job(lab, round_)
            yield lab.migrate(f"work-{name}")
    return scenario


class Scenario:
    def __init__(self, run, n_hosts=2, programs=False):
        self.run, self.n_hosts, self.programs = run, n_hosts, programs

    def needs(self):
        """Scenarios with equal needs share a VM."""
        return self.n_hosts, self.programs


PERCENTS = (10, 25, 50, 75, 100)
SCENARIOS = {
    "first-visit": Scenario(first_visit),
    "idle-return": Scenario(idle_return),
    **{f"changed-{p}": Scenario(changed(p)) for p in PERCENTS},
    "tail-changed": Scenario(tail_changed),
    "writing": Scenario(writing),
    "resume": Scenario(resume),
    "work-restart": Scenario(restart),
    "third-host": Scenario(third_host, n_hosts=3),
    "work-redis": Scenario(work("redis", _redis), programs=True),
    "work-sort": Scenario(work("sort", _sort), programs=True),
    "work-xz": Scenario(work("xz", _xz), programs=True),
}
