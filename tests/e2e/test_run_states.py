# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM keeps the run state in which it stopped: it is continued only if it ran."""
import json

import pytest
from vctest.gate import EOF, SHUT, WORD, Gate
from vctest.guest import SelfCheck
from vctest.proc import comes_true, wait_for

PAUSES = ["-action", "panic=pause,shutdown=pause,reboot=reset", "-device", "pvpanic"]
STOPS = [("shutdown", SelfCheck.POWER_OFF), ("guest-panicked", SelfCheck.PANIC)]
IDS = [s for s, _ in STOPS]


@pytest.fixture
def make(fleet):
    gates = []

    def make(extra=(), boot=True):
        f = fleet(namespaces=False)
        if boot:
            f.boot_selfcheck(end_mib=4, delay=20000, extra=[*PAUSES, *extra])
        else:
            f.ram_mib, f.options = 32, [*PAUSES, *extra]
            f.qemu = f.new_qemu(0, extra=["-S"])
        f.dest = f.incoming(1)
        f.gate = Gate(f.hosts[1].path("gate"), f.vecycles[1].address)
        gates.append(f.gate)
        return f
    yield make
    for g in gates:
        g.close()


def start(f, *extra):
    p, f.out = f.vecycle().start_migrate(f.qemu, f.gate.address, f.dest.name, [*extra])
    return p


def handovers(f):
    return [v.json("show", f.vm)["handover"] for v in f.vecycles]


def wait_handovers(f, *states):
    wait_for(lambda: handovers(f) == [*states], 90, f"the records to be {states}")


def stopped_in_the_middle(f, state, letter, *extra):
    """A migration in its rounds, slow, of a guest that has stopped by itself."""
    p = start(f, "--max-bandwidth", "100K", *extra)
    wait_for(lambda: f.qemu.qmp.execute("query-migrate").get("ram", {}).get("transferred", 0) > 50000, 60,
             "pages to come")
    f.guest.tell(letter)
    f.qemu.wait_status(state)
    return p


def go_on(f):
    """As fast as it can, from here on."""
    f.qemu.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40)


def stands_still(f, qemu, state):
    assert qemu.status() == state
    passes = f.guest.poll(0)
    assert not comes_true(lambda: f.guest.poll(0.1) != passes or qemu.status() != state, 1)


@pytest.mark.newer_qemu
@pytest.mark.parametrize("option", [[], ["--postcopy"]], ids=["precopy", "postcopy"])
@pytest.mark.parametrize("state,letter", STOPS, ids=IDS)
def test_a_guest_that_stops_by_itself_arrives_so_and_is_settled(make, state, letter, option):
    f = make()
    p = stopped_in_the_middle(f, state, letter, *option)
    go_on(f)
    assert p.wait() == 0, p.messages()
    assert f.dest.status() == state
    assert handovers(f) == ["settled", "settled"]
    summary = json.loads(f.out.read_text())
    assert summary["state"] == state and summary["downtime_ms"] in (0, None), summary
    f.guest.attach(f.dest)
    stands_still(f, f.dest, state)


@pytest.mark.parametrize("state,letter", STOPS, ids=IDS)
def test_a_guest_that_stopped_is_not_started_by_a_repeated_word(make, state, letter):
    f = make()
    p = stopped_in_the_middle(f, state, letter)
    f.gate.hold(WORD, True)
    go_on(f)
    assert f.gate.is_held.wait(60), p.messages()
    f.gate.refuse()
    f.gate.cut()
    assert p.wait() == 61, p.messages()
    f.gate.refuse(False)
    wait_handovers(f, "settled", "settled")
    assert f.dest.status() == state


@pytest.mark.newer_qemu
@pytest.mark.parametrize("state,letter", STOPS, ids=IDS)
@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_a_guest_that_stopped_is_not_started_when_its_migration_fails(make, state, letter, late):
    f = make()
    p = stopped_in_the_middle(f, state, letter, "--dead-peer", "4")
    if late:  # all has arrived but the report of it
        f.gate.hold({SHUT, EOF}, False)
        go_on(f)
        assert f.gate.is_held.wait(60), p.messages()
    f.gate.cut()
    assert p.wait() == 23, p.messages()
    wait_handovers(f, "settled", "void")
    assert f.qemu.status() in (state, "postmigrate")  # the latter by QEMU before 8.2
    assert not f.dest.is_running()


@pytest.mark.parametrize("state,letter", STOPS, ids=IDS)
def test_a_guest_that_stopped_is_not_started_when_its_destination_dies(make, state, letter):
    f = make()
    p = stopped_in_the_middle(f, state, letter)
    f.gate.hold(WORD, True)
    go_on(f)
    assert f.gate.is_held.wait(60), p.messages()
    f.dest.process.kill()
    f.gate.release()
    assert p.wait() == 31, p.messages()
    assert f.qemu.status() == "postmigrate" and handovers(f) == ["settled", "void"]


@pytest.mark.newer_qemu
@pytest.mark.parametrize("state", ["shutdown", "guest-panicked", "paused", "suspended"])
def test_a_vm_that_does_not_run_is_migrated_as_it_is(make, state):
    f = make()
    letter = {"shutdown": SelfCheck.POWER_OFF, "guest-panicked": SelfCheck.PANIC,
              "suspended": SelfCheck.SUSPEND}.get(state)
    if letter:
        f.guest.tell(letter)
    else:
        f.qemu.qmp.execute("stop")
    f.qemu.wait_status(state)
    if state == "suspended" and f.qemu.version() < (9, 0):
        state = "running"  # QEMU wakes the guest in the switch
    p = start(f)
    assert p.wait() == 0, p.messages()
    assert f.dest.status() == state and handovers(f) == ["settled", "settled"]
    assert json.loads(f.out.read_text())["state"] == state


@pytest.mark.newer_qemu
def test_a_vm_that_was_never_started_is_migrated_so(make):
    f = make(boot=False)
    p = start(f)
    assert p.wait() == 0, p.messages()
    assert f.dest.status() in ("prelaunch", "paused") and f.qemu.status() == "postmigrate"
    assert handovers(f) == ["settled", "settled"]
    f.dest.qmp.execute("cont")
    wait_for(f.dest.is_running, 30, "the VM to start")


@pytest.mark.newer_qemu
def test_a_paused_vm_goes_there_and_back_with_its_disk(fleet):
    """Its disks are inactive where it has arrived: QEMU before 10.0 would end if it migrated so."""
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=4, delay=20000, disk=True)
    f.guest.tell(f.guest.WRITE)
    f.guest.wait_writes(3)
    f.qemu.qmp.execute("stop")
    before = f.qemu.ram_digest()
    for to in 1, 0, 1:
        dest = f.incoming(to)
        r = f.vecycle().migrate(f.qemu, f.vecycles[to].address, dest.name)
        assert r["state"] == "paused" and dest.status() == "paused" and dest.ram_digest() == before
        f.arrived(to, dest)
    assert not f.qemu.qmp.execute("query-block-exports")
    f.qemu.qmp.execute("cont")
    f.guest.wait_writes(3)
    f.check_guest()


def test_a_guest_that_powers_off_with_its_qemu_is_not_started_there(make):
    """Without -no-shutdown QEMU ends, and what has been sent must never run."""
    f = make(["-action", "shutdown=poweroff"])
    p = start(f, "--retry", "2", "--max-bandwidth", "100K")
    wait_for(lambda: f.qemu.qmp.execute("query-migrate").get("ram", {}).get("transferred", 0) > 50000, 60,
             "pages to come")
    f.guest.tell(SelfCheck.POWER_OFF)
    f.qemu.process.wait(60)
    assert p.wait() == 12, p.messages()
    assert "the guest shut down" in p.messages()
    wait_handovers(f, "settled", "void")
    assert not f.dest.is_running()


def test_a_vm_that_waits_for_a_migration_is_not_migrated(fleet):
    f = fleet(namespaces=False)
    f.ram_mib, f.options = 32, []
    f.qemu = f.incoming(0)
    dest = f.incoming(1)
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, dest.name, ok=False)
    assert r["status"] == 12 and "inmigrate" in r["messages"], r


def test_the_export_that_a_killed_migration_has_left_does_not_stay(fleet):
    """session/disks.c exports each disk for a moment, which activates it."""
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=4, delay=20000, disk=True)
    f.qemu.qmp.execute("stop")
    version = f.qemu.qmp.execute("query-version")["qemu"]["major"]
    if version >= 10:
        pytest.skip("QEMU 10.0 and later migrate inactive disks; none is exported")
    node, *_ = [b["inserted"]["node-name"] for b in f.qemu.qmp.execute("query-block") if "inserted" in b]
    f.qemu.qmp.execute("nbd-server-start", addr={"type": "unix", "data": {"path": f.hosts[0].path("nbd")}})
    f.qemu.qmp.execute("block-export-add", id="vecycle-activate", type="nbd", node_name=node)
    dest = f.incoming(1)
    assert f.vecycle().migrate(f.qemu, f.vecycles[1].address, dest.name)["state"] == "paused"


def test_the_summary_says_that_a_vm_which_is_not_continued_has_inactive_disks(make):
    f = make()
    f.qemu.qmp.execute("stop")
    r = f.hosts[0].run([a for a in f.vecycle().migrate_argv(f.qemu, f.vecycles[1].address, f.dest.name)
                        if a != "--json"])
    assert r.returncode == 0, r.stderr
    assert "paused" in r.stdout and "disks" in r.stdout, r.stdout


def test_a_guest_with_an_error_of_its_disk_keeps_it(make):
    """werror=stop: it stands until somebody looks after the disk and continues it."""
    f = make(boot=False)
    f.qemu.stop()
    f.dest.stop()
    disk = f"{f.network.dir}/disk"
    open(disk, "wb").truncate(16 << 20)
    bad = {"driver": "raw", "node-name": "d0", "file": {
        "driver": "blkdebug", "image": {"driver": "file", "filename": disk, "locking": "off"},
        "inject-error": [{"event": "pwritev", "iotype": "write", "errno": 28, "once": False,
                          "immediately": False}]}}
    device = ["-device", "ide-hd,drive=d0,bus=ide.0,unit=1,werror=stop,rerror=stop"]
    f.boot_selfcheck(end_mib=4, delay=100000, extra=[*PAUSES, "-blockdev", json.dumps(bad), *device])
    good = {"driver": "raw", "node-name": "d0", "file": {"driver": "file", "filename": disk, "locking": "off"}}
    f.options = [a if a != json.dumps(bad) else json.dumps(good) for a in f.options]
    f.dest = f.incoming(1)
    p = stopped_in_the_middle(f, "io-error", SelfCheck.WRITE)
    go_on(f)
    assert p.wait() == 0, p.messages()
    assert f.dest.status() == "io-error" and handovers(f) == ["settled", "settled"]
