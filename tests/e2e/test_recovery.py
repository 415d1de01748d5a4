# SPDX-License-Identifier: LGPL-2.1-or-later
"""A postcopy is recovered whatever has become of the stores meanwhile, and what fails can be tried again."""
import os

import pytest
from test_postcopy import (answers_nobody, at_the_word, carries_the_rest, handovers, is_starved,  # noqa: F401
                           migration, recovers, runs_there, slow, start_slow, wait_paused)
from vctest.gate import WORD, WORD_DONE
from vctest.preload import restart_refusing
from vctest.proc import wait_for

pytestmark = pytest.mark.newer_is_long
BOTH = pytest.mark.parametrize("side", [0, 1], ids=["source", "destination"])


def interrupted(f):
    """Before the decision has come: both hosts have a record that the recovery settles."""
    p = at_the_word(f)
    f.gate.refuse()
    f.gate.cut()
    assert p.wait(60) == 62, p.messages()
    wait_paused(f)
    assert handovers(f) == ["left", "arriving"]


@BOTH
def test_a_recovery_that_cannot_be_recorded_is_tried_again(slow, tmp_path, side):  # noqa: F811
    f = slow
    interrupted(f)
    trigger = restart_refusing(f.vecycles[side], tmp_path)
    trigger.touch()
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, f.dest.name, ["--recover"], ok=False)
    assert r["status"] == 40 and "handover" in r["messages"], r
    assert migration(f.qemu) == migration(f.dest) == "postcopy-paused"
    assert handovers(f) == ["left", "arriving"] and f.dest.status() == "paused"
    trigger.unlink()
    f.gate.refuse(False)
    recovers(f)


@BOTH
def test_a_recovery_needs_no_manifest(slow, side):  # noqa: F811
    f = slow
    interrupted(f)
    (f.vecycles[side].store / "vms" / f.vm / "manifest").write_bytes(b"damaged" * 100)
    f.gate.refuse(False)
    recovers(f)


def rest_arrives_and_the_decision_is_lost(f):
    interrupted(f)
    f.gate.refuse(False)
    f.qemu.qmp.execute("migrate-set-parameters", max_postcopy_bandwidth=0)
    f.gate.hold(WORD, True)
    p, _ = f.vecycle().start_migrate(f.qemu, f.gate.address, f.dest.name, ["--recover"])
    assert f.gate.is_held.wait(60), p.messages()
    wait_for(lambda: migration(f.dest) == "completed", 60, "the rest to arrive")
    f.gate.refuse()
    f.gate.cut()
    assert p.wait(60) != 0, p.messages()


def test_a_vm_whose_rest_has_arrived_is_reached_by_a_person(slow):  # noqa: F811
    """The source host is gone for good. The agent keeps no connection that nothing is recovered over."""
    f = slow
    rest_arrives_and_the_decision_is_lost(f)
    f.vecycles[0].agent.kill()
    f.qemu.process.kill()
    r = f.vecycles[1].run("resolve", f.vm, "--run", "--force", "--socket-dir", f.hosts[1].sockets)
    assert r.returncode == 0 and f.dest.is_running(), r.stderr


def test_a_vm_whose_rest_has_arrived_migrates_on(slow):  # noqa: F811
    f = slow
    rest_arrives_and_the_decision_is_lost(f)
    f.gate.refuse(False)
    wait_for(lambda: handovers(f) == ["settled", "settled"], 60, "the decision to be sent again")
    f.dest.wait_status("running")
    f.arrived(1, f.dest)
    f.check_guest()
    f.migrate(0)
    f.check_guest()


def test_the_host_whose_vm_waits_for_its_rest_says_so(slow):  # noqa: F811
    """A guest that waits for a page stands still, whatever its run state."""
    f = slow
    is_starved(f, runs_there(f))
    there = f.vecycles[1]

    def asks(*options):
        return there.run("resolve", f.vm, *options, "--socket-dir", f.hosts[1].sockets)

    for options in [], ["--retry"]:
        r = asks(*options)
        assert r.returncode == 62 and "--recover" in r.stderr, r.stderr
    there.agent.kill()
    there.start_agent([there.address])
    wait_for(lambda: "waits for the rest" in there.log.read_text(), 60, "the agent to say so")
    recovers(f)
    assert asks().returncode == 0


def test_a_qemu_that_answers_nobody_is_recovered_at_a_path_longer_than_a_sockets(slow):  # noqa: F811
    """It has the directory from before."""
    f = slow
    name = "v" * (108 - len(f"{f.hosts[1].sockets}/.recover"))
    os.link(f.dest.qmp_path, f.hosts[1].sockets / f"{name}.qmp")
    f.dest.name = name
    answers_nobody(f, runs_there(f))
    carries_the_rest(f, "paused")


def test_a_person_who_asks_does_not_stand_in_the_way_of_a_recovery(slow):  # noqa: F811
    """The answer to the word was lost, and no agent gives it again."""
    f = slow
    f.vecycles[0].agent.stop()
    f.vecycles[0].control = "none"
    f.gate.hold(WORD_DONE, False, aside=True)
    p = start_slow(f)
    assert f.gate.is_held.wait(60)
    answers_nobody(f, p)
    assert handovers(f)[0] == "left"
    for _ in range(8):
        r = f.vecycles[0].run("resolve", f.vm, "--insecure")
        assert "there: the migration is settled" in r.stdout, (r.stdout, r.stderr)
    f.qemu.qmp.execute("migrate-set-parameters", max_postcopy_bandwidth=0)
    f.vecycle().migrate(f.qemu, f.gate.address, f.dest.name, ["--recover"])
    f.dest.wait_status("paused")
    assert handovers(f) == ["settled", "settled"]
    f.dest.qmp.execute("cont")
    f.arrived(1, f.dest)
    f.check_guest()
