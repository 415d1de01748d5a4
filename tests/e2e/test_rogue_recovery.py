# SPDX-License-Identifier: LGPL-2.1-or-later
"""A peer that may reach a VM's socket asks to send the rest of a postcopy that there is none of, or that another
host sends: the VM stays as it is."""
import os
import socket
import struct
import threading
import uuid

import test_postcopy
import vcwire
from test_postcopy import (answers_nobody, handovers, in_postcopy, migration, runs_there, slow,  # noqa: F401
                           wait_paused)
from vctest.gate import hello
from vctest.peer import Peer
from vctest.proc import wait_for

DISMISS = 12


def ask_to_recover(v, vm, name, interrupted=bytes(16), mode=5):
    """Whatever comes of it, the VM is said to be the source's."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(v.address.removeprefix("unix:"))
    session = os.urandom(16)

    def play(peer):
        peer.raw(hello(1))
        peer.say("OPEN", vcwire.encode("OPEN", dict(
            session=session, vm=uuid.UUID(vm).bytes, mode=mode, name=name.encode(), window=1 << 20, has_lineage=False,
            generations=[], interrupted=interrupted)))
        peer.say("START", vcwire.encode("START", dict(
            lineage=os.urandom(16), algorithm=1, lineage_flags=0, base_kind=0, has_key=True, key=os.urandom(32),
            generation=os.urandom(16))))
        peer.say("WORD", bytes([DISMISS]) + session)
    peer = Peer(sock, play)
    assert peer.ended.wait(60), peer.seen
    sock.close()
    return peer


def test_a_vm_that_has_settled_and_is_paused_is_nobodys_to_dismiss(fleet):
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=4, delay=100000)
    f.migrate(1, compare=False)
    f.qemu.qmp.execute("stop")
    peer = ask_to_recover(f.vecycles[1], f.vm, f.qemu.name)
    assert "ACCEPT" not in peer.seen and "postcopy" in peer.error, (peer.seen, peer.error)
    assert f.qemu.status() == "paused" and handovers(f) == ["settled", "settled"]
    f.qemu.qmp.execute("cont")
    f.check_guest()


def test_a_vm_that_was_never_migrated_is_nobodys_to_dismiss(fleet):
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=4, delay=100000)
    f.qemu.qmp.execute("stop")
    peer = ask_to_recover(f.vecycles[0], f.vm, f.qemu.name)
    assert "ACCEPT" not in peer.seen, peer.seen
    assert f.qemu.status() == "paused"


def test_the_store_gets_no_vm_for_the_asking(fleet):
    f = fleet(namespaces=False)
    v = f.vecycles[1]
    for _ in range(20):
        peer = ask_to_recover(v, str(uuid.uuid4()), "nobody")
        assert "ACCEPT" not in peer.seen
    assert not os.listdir(v.store / "vms")


def test_a_peer_that_may_reach_one_socket_locks_no_other_vm(fleet):
    """Its own QEMU does not greet, so it is not known to be of that VM; the VM's migrations go on."""
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=4, delay=100000)
    f.migrate(1, compare=False)
    f.migrate(0, compare=False)
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(f.hosts[1].sockets / "web-1.qmp"))
    silent.listen(1)
    asking = threading.Thread(target=ask_to_recover, args=(f.vecycles[1], f.vm, "web-1"))
    asking.start()
    connection, _ = silent.accept()
    f.migrate(1, compare=False)
    connection.close()
    silent.close()
    asking.join()


def session_of(v, vm):
    """Of the newest record (docs/formats/store.md, section 6)."""
    data = (v.store / "vms" / vm / "handover").read_bytes()
    newest = max((data[:4096], data[4096:]), key=lambda slot: struct.unpack_from("<Q", slot, 16))
    return newest[24:40]


def interrupted(f):
    p = in_postcopy(f)
    f.gate.cut()
    assert p.wait() == 62, p.messages()
    wait_paused(f)


def carries_the_rest(f):
    f.qemu.qmp.execute("migrate-set-parameters", max_postcopy_bandwidth=0)
    r = f.vecycle().migrate(f.qemu, f.gate.address, f.dest.name, ["--recover"])
    assert r["status"] == 0 and f.qemu.status() == "postmigrate"
    r = f.vecycle().migrate(f.qemu, f.gate.address, f.dest.name, ["--recover"], ok=False)
    assert r["status"] == 12 and "has completed" in r["messages"], r
    f.dest.wait_status("running")
    f.arrived(1, f.dest)
    f.check_guest()


def test_the_rest_of_a_postcopy_is_taken_from_the_host_that_has_it(slow):  # noqa: F811
    f = slow
    interrupted(f)
    before = handovers(f)
    peer = ask_to_recover(f.vecycles[1], f.vm, f.dest.name, os.urandom(16))
    assert "ACCEPT" not in peer.seen and "another migration" in peer.error, (peer.seen, peer.error)
    assert handovers(f) == before and migration(f.dest) == "postcopy-paused"
    carries_the_rest(f)


def test_a_qemu_that_waits_for_its_rest_is_asked_nothing(slow):  # noqa: F811
    """It answers nobody, as its guest waits for a page: eight commands that wait for an answer keep QEMU
    from reading the one that recovers it."""
    f = slow
    answers_nobody(f, runs_there(f))
    there = f.vecycles[1]
    wait_for(lambda: "postcopy migration was interrupted" in there.log.read_text(), 90, "the session to end")
    for mode in [2, 4] * 6:
        peer = ask_to_recover(there, f.vm, f.dest.name, mode=mode)
        assert "ACCEPT" not in peer.seen and "waits for the rest" in peer.error, (peer.seen, peer.error)
    test_postcopy.carries_the_rest(f, "paused")


def test_even_that_host_cannot_dismiss_a_vm_that_may_run(slow):  # noqa: F811
    f = slow
    interrupted(f)
    peer = ask_to_recover(f.vecycles[1], f.vm, f.dest.name, session_of(f.vecycles[1], f.vm))
    assert "ACCEPT" in peer.seen and "may run here" in peer.error, (peer.seen, peer.error)
    assert f.dest.process.alive() and migration(f.dest) == "postcopy-paused"
    carries_the_rest(f)


def test_a_source_qemu_does_not_resume_for_a_destination_that_awaits_nothing(slow):  # noqa: F811
    """QEMU before 8.2 would hang in it for ever, and the VM be lost."""
    f = slow
    interrupted(f)
    wrong = f.new_qemu(1, "defer")
    r = f.vecycle().migrate(f.qemu, f.gate.address, wrong.name, ["--recover"], ok=False)
    assert r["status"] == 31 and "postcopy" in r["messages"], r
    assert migration(f.qemu) == "postcopy-paused" and wrong.status() == "inmigrate"
    carries_the_rest(f)
