# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU refuses each of the commands that it is given, one in each migration."""
from collections import Counter

import pytest
from vctest.gate import RefusingQmp
from vctest.proc import wait_for

CASES = pytest.mark.parametrize("side,options", [
    (0, []), (0, ["--postcopy"]), (0, ["--postcopy-preempt"]),
    (1, []), (1, ["--postcopy"]), (1, ["--postcopy-preempt"]),
], ids=["source", "source, postcopy", "source, preempt",
        "destination", "destination, postcopy", "destination, preempt"])


# Without these there is no migration, whatever the side.
NEEDED = {"qmp_capabilities", "query-uuid", "query-migrate-capabilities", "getfd", "migrate",
          "migrate-incoming", "stop"}


class Refusals:
    def __init__(self, f, side, options):
        self.f, self.side, self.options, self.n = f, side, options, 0

    def migrate(self, refused=None, nth=1):
        """One migration in which that command is refused once; the commands that were seen."""
        f, to = self.f, 1 - self.f.at
        self.n += 1
        dest = f.incoming(to)
        qemu = (f.qemu, dest)[self.side]
        path = qemu.qmp_path
        name = f"refusing{self.n}"
        gate = RefusingQmp(qemu.host.path(f"{name}.qmp"), path, refused, nth)
        if self.side == 0:
            qemu.qmp_path = gate.listen
        else:
            dest.name = name
        r = f.vecycle().migrate(f.qemu, f.vecycles[to].address, dest.name, self.options, ok=False)
        qemu.qmp_path = path
        self.settle(dest, refused and f"{refused} {nth}", r)
        gate.close()
        if refused and nth == 1:
            assert gate.was_refused, f"{refused} was not given"
            assert r["status"] or refused not in NEEDED, f"{refused}: {r}"
            if self.side and refused == "cont":  # the word is given again
                assert r["status"] == 0, r
        assert all(v.agent.alive() for v in f.vecycles), f"{refused} {nth}: an agent died"
        f.guest.wait_passes(1)
        return gate.seen

    def settle(self, dest, refused, r):
        """The VM runs, and once; by itself, or since somebody has looked after it."""
        f = self.f

        def running():
            both = [q for q in (f.qemu, dest) if q.is_running()]
            assert len(both) < 2, f"{refused}: two VMs run: {r}"
            return both

        assert r["status"] in (0, 11, 12, 31, 52, 61, 62), f"{refused}: {r}"
        assert refused or r["status"] == 0, r
        if r["status"] == 61:
            wait_for(lambda: running() or self.resolve(), 60, f"the VM to run after {refused}: {r}",
                     step=0.5)
        elif r["status"] == 62:
            wait_for(lambda: running() or self.recover(dest), 60,
                     f"the recovery after {refused}: {r}", step=0.5)
            assert running() == [dest], f"{refused}, and recovered"
        else:
            wait_for(running, 10, f"the VM to run after {refused}: {r}")
        if r["status"] == 0:
            assert running() == [dest], f"{refused}: {r}"
        if running() == [dest]:
            f.arrived(1 - f.at, dest)
        else:
            dest.stop()

    def recover(self, dest):
        r = self.f.vecycle().migrate(self.f.qemu, self.f.vecycles[1 - self.f.at].address, dest.name,
                                     ["--recover"], ok=False)
        return not r["status"]

    def resolve(self):
        self.f.vecycle().run("resolve", self.f.vm, "--retry", "--insecure")


@CASES
def test_a_refused_command_costs_the_attempt_at_most(fleet, side, options):
    f = fleet(namespaces=False)
    if options:  # it writes too much to be done before the switch
        f.boot_selfcheck(end_mib=16)
        options = [*options, "--max-bandwidth", "24M", "--downtime-limit", "1"]
    else:
        f.boot_selfcheck(end_mib=8, delay=200000)
    t = Refusals(f, side, options)
    commands = Counter(t.migrate())
    assert commands["query-uuid"] and commands[("migrate", "migrate-incoming")[side]], commands
    assert side or not options or commands["migrate-start-postcopy"], commands
    for name, n in commands.items():
        for nth in range(1, min(n, 4) + 1):
            t.migrate(name, nth)
    t.migrate()
