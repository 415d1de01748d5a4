# SPDX-License-Identifier: LGPL-2.1-or-later
"""A disk on storage that both hosts see, with QEMU's default locks on it, and a guest that writes to it
before, during and after: whatever ends a migration, one QEMU can have it, and what was written is there."""
import signal
from pathlib import Path

import pytest
from vctest.disk import make_qcow2, shared_disk_options
from vctest.gate import BATCH, EOF, SHUT, WORD, WORD_DONE, Gate
from vctest.guest import SelfCheck
from vctest.proc import wait_for
from vctest.qemu import Qemu, new_uuid

pytestmark = [pytest.mark.newer_qemu, pytest.mark.newer_is_long]


@pytest.fixture
def f(fleet):
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=4, delay=100000, disk=True)
    f.guest.tell(f.guest.WRITE)
    f.guest.wait_writes(3)
    f.dest = f.incoming(1)
    f.spare = [f"{f.network.dir}/spare.raw", make_qcow2(f"{f.network.dir}/spare.qcow2")]
    open(f.spare[0], "wb").truncate(1 << 20)
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


def with_more_disks(f, options):
    """The VM is started anew with those, too."""
    f.qemu.stop()
    f.dest.stop()
    f.options += options
    f.qemu = f.new_qemu(0)
    f.guest = SelfCheck(f.qemu)
    f.guest.wait_passes(2)
    f.guest.tell(f.guest.WRITE)
    f.guest.wait_writes(3)
    f.dest = f.incoming(1)


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


def stands_there(f):
    """It has left with --suspend, and is the destination's."""
    p = start(f, "--suspend")
    assert p.wait() == 0, p.messages()
    f.arrived(1, f.dest)
    if f.qemu.version() >= (10, 0):
        pytest.skip("QEMU 10.0 and later migrate inactive disks")
    f.dest = f.incoming(0)


def goes_home(f):
    r = f.vecycle().migrate(f.qemu, f.vecycles[0].address, f.dest.name)
    assert r["state"] == "paused"
    f.arrived(0, f.dest)
    f.qemu.qmp.execute("cont")
    f.guest.wait_writes(3)
    f.check_guest()


def is_refused_until_it_is_free(f, others_disk):
    """QEMU would end in an assertion."""
    other = Qemu(f.hosts[1], "other", 64, new_uuid(), None, ["-S", *others_disk])
    for _ in range(2):
        r = f.vecycle().migrate(f.qemu, f.vecycles[0].address, f.dest.name, ok=False)
        assert r["status"] == 12 and "inactive" in r["messages"], r
        assert f.qemu.status() == "paused" and f.dest.status() == "inmigrate"
    other.stop()
    goes_home(f)


def test_a_vm_that_stands_is_not_moved_on_while_another_process_has_its_disk(f):
    stands_there(f)
    is_refused_until_it_is_free(f, shared_disk_options(f.disk))


SPARE = {"read-only": "file={0},format=raw,if=virtio,read-only=on",  # it keeps writers out
         "raw": "file={0},format=raw,if=virtio",
         "no device": "file={1},format=qcow2,if=none,id=spare"}


@pytest.mark.parametrize("kind", SPARE)
def test_the_same_holds_for_a_disk_that_its_guest_does_not_write(f, kind):
    with_more_disks(f, ["-drive", SPARE[kind].format(*f.spare)])
    stands_there(f)
    is_refused_until_it_is_free(f, ["-drive", SPARE[kind].format(*f.spare).replace(",read-only=on", "")])


def test_the_same_holds_for_an_image_that_no_device_has(f):
    with_more_disks(f, ["-blockdev", f"driver=qcow2,node-name=spare,file.driver=file,file.filename={f.spare[1]}"])
    stands_there(f)
    is_refused_until_it_is_free(f, ["-drive", f"file={f.spare[1]},format=qcow2,if=virtio"])


def test_a_writer_that_shares_keeps_a_vm_that_does_not_from_moving_on(f):
    """QEMU takes half of what it needs then."""
    with_more_disks(f, ["-drive", SPARE["raw"].format(*f.spare)])
    stands_there(f)
    is_refused_until_it_is_free(f, ["-drive", f"file={f.spare[0]},format=raw,if=none,id=s", "-device",
                                    "virtio-blk-pci,drive=s,share-rw=on"])


def test_a_vm_that_stands_is_moved_on_with_drives_of_all_kinds(f):
    """None of them is locked, and some never show a permission that an inactive one has not."""
    raw, qcow2 = f.spare
    more = [f"{raw}.{i}" for i in range(5)]
    for path in more:
        open(path, "wb").truncate(1 << 20)
    firmware = Path("/usr/share/seabios/bios-256k.bin")
    flash = ["-drive", f"file={firmware},if=pflash,format=raw,readonly=on"] if firmware.exists() else []
    with_more_disks(f, [
        *flash,
        "-blockdev", f"driver=qcow2,node-name=spare,file.driver=file,file.filename={qcow2}",
        "-blockdev", f"driver=file,node-name=bare,filename={more[0]}",
        "-drive", f"file={more[1]},format=raw,if=none,id=unused",
        "-drive", f"file={more[2]},format=raw,if=none,id=shared,read-only=on",
        "-device", "virtio-blk-pci,drive=shared,share-rw=on,id=disk",
        "-blockdev", f"driver=raw,node-name=mine,file.driver=file,file.filename={more[3]}",
        "-device", "ide-hd,drive=mine,bus=ide.1,unit=1,id=named",
        "-drive", f"file={more[4]},format=raw,if=floppy,read-only=on",
        "-drive", f"file={raw},if=ide,index=2,media=cdrom,format=raw"])
    stands_there(f)
    goes_home(f)


def test_postcopy(f):
    p = start(f, "--postcopy")
    assert p.wait() == 0, p.messages()
    writes_there(f)
