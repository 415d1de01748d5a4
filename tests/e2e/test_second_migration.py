# SPDX-License-Identifier: LGPL-2.1-or-later
"""A second migration of a VM, asked for while one is under way: refused, and the first goes on."""
from pathlib import Path

import pytest
from vctest.gate import BATCH, OPEN, Gate
from vctest.proc import wait_for


@pytest.fixture
def moving(fleet):
    """Three hosts, a gate before the second one, a VM with two QMP sockets that moves there."""
    f = fleet(3, namespaces=False)
    f.other_qmp = f.hosts[0].path("other.qmp")
    f.boot_selfcheck(end_mib=8, delay=200000, extra=["-qmp", f"unix:{f.other_qmp},server=on,wait=off"])
    f.options = f.options[:-2]
    f.dest = f.incoming(1)
    f.gate = Gate(f.hosts[1].path("gate"), f.vecycles[1].address)
    yield f
    f.gate.close()


def start(f, held_at=BATCH):
    f.gate.hold(held_at, True)
    p, _ = f.vecycle().start_migrate(f.qemu, f.gate.address, f.dest.name)
    assert f.gate.is_held.wait(60), p.messages()
    return p


def arrives(f, p):
    """The first one, all the same."""
    assert p.alive() and f.dest.status() == "inmigrate"
    f.gate.release()
    assert p.wait() == 0, p.messages()
    assert f.qemu.status() == "postmigrate" and f.dest.status() == "running"
    assert f.vecycles[0].json("show", f.vm)["handover"] == "settled"
    f.arrived(1, f.dest)
    f.check_guest()


def is_refused(r, status, words):
    assert r["status"] == status and words in r["messages"], r


@pytest.mark.parametrize("held_at,status,words", [(OPEN, 43, "in use"),
                                                  (BATCH, 12, "being migrated already")],
                         ids=["opening", "stream"])
def test_the_source_refuses_a_second_migration(moving, held_at, status, words):
    f = moving
    p = start(f, held_at)
    elsewhere, first = f.incoming(2), f.qemu.qmp_path
    f.qemu.qmp_path = f.other_qmp
    r = f.vecycle().migrate(f.qemu, f.vecycles[2].address, elsewhere.name, ok=False)
    is_refused(r, status, words)
    f.qemu.qmp_path = first
    assert elsewhere.status() == "inmigrate"
    arrives(f, p)


def connections(path):
    return Path("/proc/net/unix").read_text().count(str(path))


def test_one_that_waits_for_the_qmp_socket_finds_that_the_vm_has_left(moving):
    """QEMU serves one client at a time at each of its sockets."""
    f = moving
    p = start(f)
    elsewhere, before = f.incoming(2), connections(f.qemu.qmp_path)
    second, _ = f.vecycle().start_migrate(f.qemu, f.vecycles[2].address, elsewhere.name)
    wait_for(lambda: connections(f.qemu.qmp_path) > before, 20, "the second to knock")
    f.gate.release()
    assert p.wait() == 0, p.messages()
    assert second.wait() == 12 and "postmigrate" in second.messages(), second.messages()
    assert f.dest.status() == "running" and elsewhere.status() == "inmigrate"
    f.arrived(1, f.dest)
    f.check_guest()


def test_the_destination_refuses_a_second_vm_of_that_uuid(moving):
    f = moving
    p = start(f)
    twin, place = f.new_qemu(2), f.incoming(1)
    r = f.vecycles[2].migrate(twin, f.vecycles[1].address, place.name, ok=False)
    is_refused(r, 43, "in use")
    assert twin.status() == "running" and place.status() == "inmigrate"
    arrives(f, p)
