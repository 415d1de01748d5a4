# SPDX-License-Identifier: LGPL-2.1-or-later
"""A disk on storage that both hosts see, with QEMU's default locks on it, and a guest that writes to it
before, during and after: whatever ends a migration, one QEMU can have it, and what was written is there."""
import signal

import pytest
from vctest.gate import BATCH, EOF, SHUT, WORD, WORD_DONE, Gate
from vctest.proc import wait_for

pytestmark = [pytest.mark.newer_qemu, pytest.mark.newer_is_long]


@pytest.fixture
def f(fleet):
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=4, delay=100000, disk=True)
    f.guest.tell(f.guest.WRITE)
    f.guest.wait_writes(3)
    f.dest = f.incoming(1)
    f.gate = Gate(f.hosts[1].path("gate"), f.vecycles[1].address)
    yield f
    f.gate.close()


def start(f, *extra):
    p, _ = f.vecycle().start_migrate(f.qemu, f.gate.address, f.dest.name, ["--dead-peer", "4", *extra])
    return p


def held(f, *what, extra=()):
    f.gate.hold(*what)
    p = start(f, *extra)
    assert f.gate.is_held.wait(60), p.messages()
    return p


def handovers(f):
    return [v.json("show", f.vm)["handover"] for v in f.vecycles]


def writes_there(f):
    wait_for(f.dest.is_running, 60, "the VM to run at the destination")
    f.arrived(1, f.dest)
    f.guest.wait_writes(3)
    f.check_guest()


def writes_here_and_moves_on(f):
    """What is left over there does not keep the disk from the VM, nor the VM from its next migration."""
    f.still_runs_here()
    f.guest.wait_writes(3)
    assert not f.dest.is_running()
    wait_for(lambda: handovers(f)[0] == "settled", 60, "the source to be settled")
    f.dest.stop()
    f.dest = f.incoming(1)
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, f.dest.name)
    assert r["status"] == 0
    writes_there(f)


def test_a_migration(f):
    p = start(f)
    assert p.wait() == 0, p.messages()
    writes_there(f)


def test_there_and_back(f):
    for to in 1, 0:
        r = f.vecycle().migrate(f.qemu, f.vecycles[to].address, f.dest.name)
        assert r["status"] == 0
        f.arrived(to, f.dest)
        f.guest.wait_writes(3)
        f.dest = f.incoming(1 - to)


def test_a_link_lost_while_pages_come(f):
    p = held(f, BATCH, True)
    f.gate.cut()
    assert p.wait() == 23, p.messages()
    writes_here_and_moves_on(f)


def test_ctrl_c(f):
    p = held(f, BATCH, True)
    p.popen.send_signal(signal.SIGINT)
    assert p.wait() == 60, p.messages()
    f.gate.release()
    writes_here_and_moves_on(f)


def test_the_report_of_success_lost(f):
    """The destination's QEMU has all, and lives on: without late-block-activate it would have the disk."""
    p = held(f, {SHUT, EOF}, False)
    f.gate.cut()
    assert p.wait() == 23, p.messages()
    writes_here_and_moves_on(f)


def test_ctrl_c_while_the_report_of_success_is_on_its_way(f):
    p = held(f, {SHUT, EOF}, False)
    p.popen.send_signal(signal.SIGINT)
    assert p.wait() == 60, p.messages()
    f.gate.release()
    writes_here_and_moves_on(f)


def test_the_source_agent_killed_in_the_switch(f):
    p = held(f, {SHUT, EOF}, False)
    f.vecycles[0].agent.kill()
    f.gate.cut()
    p.wait()
    f.vecycles[0].start_agent([f.vecycles[0].address])
    writes_here_and_moves_on(f)


def test_the_destination_agent_killed_in_the_switch(f):
    p = held(f, {SHUT, EOF}, False)
    f.vecycles[1].agent.kill()
    f.gate.cut()
    assert p.wait() != 0
    f.vecycles[1].start_agent([f.vecycles[1].address])
    writes_here_and_moves_on(f)


def test_the_destination_qemu_dead_before_the_switch(f):
    p = held(f, BATCH, True)
    f.dest.process.kill()
    f.gate.release()
    assert p.wait() == 31, p.messages()
    writes_here_and_moves_on(f)


def test_the_destination_qemu_dead_before_its_word(f):
    p = held(f, WORD, True)
    f.dest.process.kill()
    f.gate.release()
    assert p.wait() == 31, p.messages()
    writes_here_and_moves_on(f)


@pytest.mark.parametrize("frame,side", [(WORD, True), (WORD_DONE, False)], ids=["word", "answer"])
def test_a_lost_word(f, frame, side):
    p = held(f, frame, side)
    f.gate.refuse()
    f.gate.cut()
    assert p.wait() == 61, p.messages()
    f.gate.refuse(False)
    wait_for(lambda: handovers(f) == ["settled", "settled"], 60, "the word to be given")
    writes_there(f)


def test_a_word_lost_and_a_person_who_continues_the_vm_here(f):
    """The destination, paused, holds no lock: its disks are inactive."""
    p = held(f, WORD, True)
    f.gate.refuse()
    f.gate.cut()
    assert p.wait() == 61, p.messages()
    f.qemu.qmp.execute("cont")
    wait_for(lambda: handovers(f)[0] == "kept", 60, "the source to notice")
    f.guest.wait_writes(3)
    f.gate.refuse(False)
    wait_for(lambda: handovers(f) == ["settled", "void"], 60, "the destination to be told")
    writes_here_and_moves_on(f)


def test_a_word_lost_and_a_person_who_decides_for_the_source(f):
    p = held(f, WORD, True)
    f.gate.refuse()
    f.gate.cut()
    assert p.wait() == 61, p.messages()
    r = f.vecycles[0].run("resolve", f.vm, "--run", "--force")
    assert r.returncode == 0, r.stderr
    f.guest.wait_writes(3)
    f.gate.refuse(False)
    wait_for(lambda: handovers(f) == ["settled", "void"], 60, "the destination to be told")
    writes_here_and_moves_on(f)


def test_a_vm_that_stays_paused_there_has_inactive_disks_and_can_be_continued(f):
    p = start(f, "--suspend")
    assert p.wait() == 0, p.messages()
    assert f.dest.status() == "paused"
    f.dest.qmp.execute("cont")
    writes_there(f)


def test_postcopy(f):
    p = start(f, "--postcopy")
    assert p.wait() == 0, p.messages()
    writes_there(f)
