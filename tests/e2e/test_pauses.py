# SPDX-License-Identifier: LGPL-2.1-or-later
"""Somebody else pauses and continues the guest while it migrates: it arrives as they left it."""
import json

import pytest
from vctest.gate import BATCH, WORD, Gate, RefusingQmp
from vctest.proc import wait_for


@pytest.fixture
def watched(fleet):
    """Two hosts with a gate between them, and one that counts commands before the source's QEMU."""
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=8, delay=200000)
    f.dest = f.incoming(1)
    f.gate = Gate(f.hosts[1].path("gate"), f.vecycles[1].address)
    f.qmp = RefusingQmp(f.hosts[0].path("gate.qmp"), f.qemu.qmp_path)
    f.qemu.qmp_path = f.qmp.listen
    yield f
    f.gate.close()
    f.qmp.close()


def start(f, *extra):
    """A migration of which no page has arrived yet."""
    f.gate.hold(BATCH, True)
    p, _ = f.vecycle().start_migrate(f.qemu, f.gate.address, f.dest.name, [*extra])
    assert f.gate.is_held.wait(60), p.messages()
    return p


def pause(f):
    f.qmp.pause(f.qemu.qmp)


def carry_on(f):
    f.qemu.qmp.execute("cont")


def handovers(f):
    return [v.json("show", f.vm)["handover"] for v in f.vecycles]


def arrives_paused(f):
    assert f.qemu.status() == "postmigrate" and f.dest.status() == "paused"
    assert handovers(f) == ["settled", "settled"]
    f.dest.qmp.execute("cont")
    f.arrived(1, f.dest)
    f.check_guest()


@pytest.mark.newer_qemu
@pytest.mark.parametrize("option", [[], ["--postcopy"]], ids=["precopy", "postcopy"])
def test_a_vm_that_somebody_pauses_arrives_paused(watched, option):
    f = watched
    p = start(f, *option)
    pause(f)
    f.gate.release()
    assert p.wait() == 0, p.messages()
    # Nothing is left of it after the first pass, and a QEMU may fail a postcopy of nothing.
    assert "migrate-start-postcopy" not in f.qmp.seen
    arrives_paused(f)


def test_a_vm_that_was_paused_and_continued_arrives_running(watched):
    f = watched
    p = start(f)
    pause(f)
    carry_on(f)
    f.gate.release()
    assert p.wait() == 0, p.messages()
    assert f.qemu.status() == "postmigrate" and f.dest.status() == "running"
    f.arrived(1, f.dest)
    f.check_guest()


def test_a_vm_that_was_paused_stays_paused_when_its_word_is_repeated(watched):
    f = watched
    p = start(f)
    pause(f)
    f.gate.hold(WORD, True)
    assert f.gate.is_held.wait(60)
    f.gate.cut()
    assert p.wait() == 61, p.messages()
    wait_for(lambda: handovers(f) == ["settled", "settled"], 60, "the word to be given")
    arrives_paused(f)


def test_a_vm_that_was_paused_is_still_so_when_its_migration_fails(watched):
    f = watched
    p = start(f)
    pause(f)
    f.gate.cut()
    assert p.wait() == 23, p.messages()
    assert f.qemu.status() == "paused"
    wait_for(lambda: handovers(f) == ["settled", "void"], 60, "the destination to be told")
    carry_on(f)
    f.still_runs_here()


def test_a_vm_that_was_paused_comes_back_paused_if_its_destination_dies(watched):
    f = watched
    p = start(f)
    pause(f)
    f.gate.hold(WORD, True)
    assert f.gate.is_held.wait(60)
    f.dest.process.kill()
    f.gate.release()
    assert p.wait() == 31, p.messages()
    assert f.qemu.status() != "running"
    wait_for(lambda: handovers(f) == ["settled", "void"], 60, "the destination to be told")
    carry_on(f)
    f.still_runs_here()


@pytest.mark.newer_qemu
@pytest.mark.parametrize("end", ["migrate-continue", "migrate_cancel"])
def test_a_proxied_vm_waits_before_the_switch_for_whoever_asked_it_to(fleet, end):
    """QEMU's capability pause-before-switchover: libvirt uses it for its disks."""
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=8, delay=200000)
    dest = f.new_qemu(1, f"unix:{f.hosts[1].path('vm.sock')}", ["-S"])
    listen = f.hosts[0].path("out.sock")
    p, out = f.vecycle().start_proxy(listen, f.vm, f.vecycles[1].address, "vm")
    f.qemu.migrate_plain(f"unix:{listen}", capabilities=("return-path", "events",
                                                         "pause-before-switchover"))
    wait_for(lambda: f.qemu.qmp.execute("query-migrate")["status"] == "pre-switchover", 60,
             "QEMU to wait before the switch")
    assert p.alive() and dest.status() == "inmigrate"
    if end == "migrate_cancel":
        f.qemu.qmp.execute("migrate_cancel")
        assert p.wait() != 0
        f.still_runs_here()
        assert not dest.process.alive() or dest.status() != "running"
        return
    f.qemu.qmp.execute("migrate-continue", state="pre-switchover")
    f.qemu.wait_migrated()
    assert p.wait() == 0, p.messages()
    assert json.loads(out.read_text())["confirmed"]
    assert f.qemu.ram_digest() == dest.ram_digest(), "the memories differ"
    dest.qmp.execute("cont")
    f.arrived(1, dest)
    f.check_guest()
