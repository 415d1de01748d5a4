# SPDX-License-Identifier: LGPL-2.1-or-later
"""A driven migration loses its link in each phase: the VM runs, once, and migrates again."""
import pytest
from vctest.gate import ACCEPT, BATCH, CLOSE, COMMITTED, HELLO, OPEN, SHUT, START, Gate
from vctest.proc import wait_for

SOURCE, DESTINATION = True, False


@pytest.fixture
def gated(fleet):
    """Two hosts with a gate between them, a VM on the first, a QEMU that waits on the second."""
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=8, delay=200000)
    f.dest = f.incoming(1)
    f.gate = Gate(f.hosts[1].path("gate"), f.vecycles[1].address)
    yield f
    f.gate.close()


def cut_at(f, frame, side, behind=False, status=23):
    """A migration whose link ends before that frame, or behind it; what it printed."""
    f.gate.hold(frame, side, behind=behind)
    p, out = f.vecycle().start_migrate(f.qemu, f.gate.address, f.dest.name)
    assert f.gate.is_held.wait(60), p.messages()
    f.gate.refuse()
    f.gate.cut()
    assert p.wait() == status, p.messages()
    f.gate.refuse(False)
    return f.vecycle().summary(out)


def handover(f, side):
    """NONE where the store does not know the VM yet."""
    shown = f.vecycles[side].run("show", f.vm, "--json")
    return f.vecycles[side].json("show", f.vm)["handover"] if shown.returncode == 0 else "none"


def is_over(f, side):
    return handover(f, side) in ("none", "settled", "void")


def migrates_into(f, dest):
    """The other host may still be clearing up."""
    wait_for(lambda: f.vecycle().migrate(f.qemu, f.vecycles[1].address, dest.name,
                                         ok=False)["status"] == 0, 30, "the next migration")
    assert f.qemu.status() == "postmigrate" and dest.status() == "running"
    f.arrived(1, dest)
    f.check_guest()


@pytest.mark.parametrize("frame,side,behind", [
    (HELLO, SOURCE, False), (HELLO, DESTINATION, False), (OPEN, SOURCE, False),
    (ACCEPT, DESTINATION, False), (START, SOURCE, False), (START, SOURCE, True),
], ids=["hello", "hello-answer", "open", "accept", "start", "behind-start"])
def test_a_link_lost_in_the_opening_has_changed_nothing(gated, frame, side, behind):
    """The VM runs on, and the QEMU that waits for it waits on: the next migration goes there."""
    f = gated
    cut_at(f, frame, side, behind)
    assert f.qemu.status() == "running"
    f.check_guest()
    assert f.dest.status() == "inmigrate"
    wait_for(lambda: is_over(f, 0) and is_over(f, 1), 30, "the records to be closed")
    migrates_into(f, f.dest)


@pytest.mark.parametrize("frame,side", [(BATCH, SOURCE), (SHUT, DESTINATION)],
                         ids=["batch", "shut"])
def test_a_link_lost_before_the_vm_has_arrived_leaves_it_here(gated, frame, side):
    f = gated
    cut_at(f, frame, side, behind=frame == BATCH)
    f.still_runs_here()
    assert not f.dest.is_running()
    wait_for(lambda: handover(f, 0) == "settled", 60, "the destination to be told")
    f.dest.stop()
    f.dest = f.incoming(1)
    migrates_into(f, f.dest)


@pytest.mark.newer_qemu
@pytest.mark.parametrize("frame,side", [
    (COMMITTED, SOURCE), (COMMITTED, DESTINATION), (CLOSE, SOURCE), (CLOSE, DESTINATION),
], ids=["committed", "committed-answer", "close", "close-answer"])
def test_a_link_lost_after_the_word_costs_nothing(gated, frame, side):
    """The VM runs at the destination alone, and comes home by the checkpoint that both hosts have."""
    f = gated
    r = cut_at(f, frame, side, status=0)
    assert r["committed"]
    assert f.qemu.status() == "postmigrate" and f.dest.status() == "running"
    wait_for(lambda: [handover(f, side) for side in (0, 1)] == ["settled", "settled"], 30,
             "the records to be closed")
    f.arrived(1, f.dest)
    f.check_guest()
    wait_for(lambda: f.vecycles[1].json("show", f.vm)["n_generations"], 30, "the other commit")
    assert f.migrate(0)["base"] == 1
    f.check_guest()
