# SPDX-License-Identifier: LGPL-2.1-or-later
"""A failed attempt is not wasted: the next one sends the rest. Measured by bytes."""
import signal
import time

import pytest
from vctest.gate import Gate, QmpGate
from vctest.proc import wait_for
from vctest.relay import LimitedRelay

SHARE = 0.6
# So slow that little is on its way at any moment, as on a network.
SLOW = ["--max-bandwidth", "30M"]
# The other host may still be clearing up the attempt before.
AGAIN = ["--retry", "2"]


def assert_rest(result, whole):
    """It sent what had not arrived, and 5 % of the whole at most."""
    print(f"whole {whole}, next attempt {result['wire_bytes']}: {result['wire_bytes'] / whole:.1%}")
    assert result["wire_bytes"] <= whole * (1 - SHARE + 0.05), (result["wire_bytes"], whole)


class Interrupted:
    """A migration to host `to` through a link of which so many bytes get through."""

    def __init__(self, fleet, to, limit, hold=False, extra=()):
        self.dest = fleet.incoming(to)
        path = fleet.hosts[to].path("link")
        self.relay = LimitedRelay(path, fleet.vecycles[to].address.removeprefix("unix:"), limit,
                                  hold)
        self.process, self.out = fleet.vecycle().start_migrate(
            fleet.qemu, f"unix:{path}", self.dest.name, [*SLOW, *extra])
        wait_for(lambda: self.relay.reached.is_set() or not self.process.alive(), 120,
                 "the migration to get there")
        assert self.relay.reached.is_set(), self.process.messages()

    def close(self):
        self.relay.close()
        self.dest.stop()


def far_from_home(fleet, fill_mib=100):
    """A VM that has left for a third host, and what crosses the wire on a first visit."""
    f = fleet(3, namespaces=False)
    f.boot_linux(192, fill_mib)
    whole = f.migrate(2)["wire_bytes"]
    assert whole > fill_mib << 20
    return f, whole


def test_a_migration_whose_link_was_cut_sends_only_the_rest(fleet):
    f, whole = far_from_home(fleet)
    cut = Interrupted(f, 1, whole * SHARE)
    assert cut.process.wait() == 23, cut.process.messages()
    cut.close()
    f.still_runs_here()
    wait_for(lambda: f.vecycles[1].json("show", f.vm)["partial"], 20, "the attempt to be kept")
    r = f.migrate(1, AGAIN)
    assert r["base"] == 2 and r["confirmed"]
    assert_rest(r, whole)
    f.check_guest()
    assert not f.vecycles[1].json("show", f.vm)["partial"]
    assert f.vecycles[1].json("verify", f.vm)["bad_pages"] == 0


def settled(path, seconds=2.5):
    """True once the size of the only log in the directory has not changed for that long."""
    state = {}

    def same():
        logs = list(path.rglob("*.log"))
        size = logs[0].stat().st_size if len(logs) == 1 else None
        if size != state.get("size"):
            state.update(size=size, since=time.monotonic())
        return size and time.monotonic() - state["since"] > seconds
    return same


@pytest.mark.newer_qemu
def test_an_agent_that_was_killed_had_kept_what_arrived(fleet):
    f, whole = far_from_home(fleet)
    held = Interrupted(f, 1, whole * SHARE, hold=True)
    # What a killed process had logged counts: at most the last second is lost.
    wait_for(settled(f.vecycles[1].store), 9, "the log to have it")
    f.vecycles[1].agent.kill()
    assert held.process.wait() == 23, held.process.messages()
    held.close()
    f.still_runs_here()
    f.vecycles[1].start_agent([f.vecycles[1].address])
    r = f.migrate(1, AGAIN)
    assert r["base"] == 2 and r["confirmed"]
    assert_rest(r, whole)
    f.check_guest()


def test_a_source_agent_that_was_killed_costs_the_other_host_nothing(fleet):
    f, whole = far_from_home(fleet, 50)
    held = Interrupted(f, 1, whole * SHARE, hold=True)
    f.vecycle().agent.kill()
    assert held.process.wait() == 1, held.process.messages()
    held.close()
    f.still_runs_here()
    wait_for(lambda: f.vecycles[1].json("show", f.vm)["partial"], 20, "the attempt to be kept")
    f.vecycle().start_agent([f.vecycle().address])
    # Its QEMU is asked; where the other host was, nobody is any more.
    wait_for(lambda: f.vecycle().json("show", f.vm)["handover"] == "kept", 20, "the record to be looked at")
    r = f.migrate(1, AGAIN)
    assert r["base"] == 2 and r["confirmed"]
    assert_rest(r, whole)
    f.check_guest()
    assert f.vecycles[1].json("verify", f.vm)["bad_pages"] == 0


def test_a_return_that_was_cancelled_sends_only_the_rest_of_what_changed(fleet):
    f = fleet(namespaces=False)
    f.boot_linux(192, 100)
    f.migrate(1)
    f.guest.command("rewrite 60")
    whole = 60 << 20
    stopped = Interrupted(f, 0, whole * SHARE, hold=True)
    stopped.process.popen.send_signal(signal.SIGINT)
    assert stopped.process.wait() == 60, stopped.process.messages()
    stopped.close()
    f.still_runs_here()
    home = f.vecycles[0]
    shown = wait_for(lambda: (s := home.json("show", f.vm)).get("partial_generation") and s, 20,
                     "the attempt to be kept")
    assert shown["n_generations"] == 1 and not shown["partial"], "the complete one is still there"
    r = f.migrate(0, AGAIN)
    # Announced: what had arrived, and beneath it what both hosts hold anyway.
    assert r["base"] == 2 and r["confirmed"]
    assert r["pages"]["same"] > 2 * r["pages"]["data"]
    assert_rest(r, whole)
    f.check_guest()
    assert f.migrate(1)["base"] == 1, "and both hosts hold the same again"


def test_retry_goes_on_by_itself_once_a_new_qemu_waits(fleet):
    f, whole = far_from_home(fleet)
    flaky = Interrupted(f, 1, whole * SHARE, extra=["--retry", "5", "--suspend"])
    # A QEMU into which a migration failed ends; a new one takes its place.
    wait_for(lambda: not flaky.dest.process.alive(), 30, "the destination QEMU to end")
    flaky.dest.stop()
    f.n_qemus -= 1
    dest = f.incoming(1)
    assert dest.name == flaky.dest.name
    assert flaky.process.wait(120) == 0, flaky.process.messages()
    flaky.relay.close()
    r = f.vecycle().summary(flaky.out)
    assert r["attempts"] > 1 and r["base"] == 2 and r["confirmed"]
    assert_rest(r, whole)
    assert "attempt 1 failed" in flaky.process.messages()
    assert "attempt 2: " in flaky.process.messages()
    assert f.qemu.ram_digest() == dest.ram_digest(), "the memories differ"
    dest.qmp.execute("cont")
    f.arrived(1, dest)
    f.check_guest()


def test_a_lost_link_is_told_as_such_though_qemu_notices_first(fleet):
    """QEMU's answer `failed` is older than the link's failure only for whoever asked before it."""
    f = fleet(namespaces=False)
    f.boot_linux(192, 60)
    dest = f.incoming(1)
    link = Gate(f.hosts[1].path("link"), f.vecycles[1].address)
    qmp = QmpGate(f.hosts[0].path("gate.qmp"), f.qemu.qmp_path)
    f.qemu.qmp_path = qmp.listen
    p, _ = f.vecycle().start_migrate(f.qemu, link.address, dest.name, SLOW)
    wait_for(lambda: f.qemu.qmp.execute("query-migrate").get("ram", {}).get("transferred", 0) >
             8 << 20, 60, "the migration to be under way")
    qmp.hold("query-migrate")
    assert qmp.is_held.wait(30)
    link.cut()
    wait_for(lambda: f.qemu.qmp.execute("query-migrate")["status"] == "failed", 30,
             "QEMU to give up")
    qmp.release()
    assert p.wait() == 23, p.messages()
    f.still_runs_here()
    qmp.close()
    link.close()


def test_retry_does_not_try_again_what_cannot_pass(fleet):
    f = fleet(namespaces=False)
    f.boot_linux(192, 10)
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, "nobody", ["--retry", "3"], ok=False)
    assert r["status"] == 30 and r["attempts"] == 1
    f.still_runs_here()
