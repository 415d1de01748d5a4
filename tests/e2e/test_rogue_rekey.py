# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host that re-keys with this one, keeps its link alive and never comes to an end holds up nobody for
ever: neither the migrations of that VM, nor whoever re-keys."""
import itertools
import os
import socket
import struct
import threading
import uuid

import pytest
import vcstore
import vcwire
from vctest.peer import Listener
from vctest.proc import wait_for
from vctest.vecycle import BINARY

SOURCE, DESTINATION = 1, 2
REKEY = 7
ANY = 0x3ff  # features


class Rogue(Listener):
    """The other end of a session of mode 7, over that socket."""

    def __init__(self, sock, role):
        self.lock = threading.Lock()
        self.listen(sock)
        self.send("HELLO", vcwire.encode("HELLO", dict(low=1, high=1, role=role, security=0, features=ANY,
                                                       software="rogue")))

    def send(self, name, payload=b""):
        """Also to somebody who has hung up."""
        try:
            with self.lock:
                self.sock.sendall(vcwire.frame(name, payload))
        except OSError:
            pass

    def rekeying(self, done):
        self.send("REKEYING", struct.pack("<Q", done))

    def rekeyed(self):
        self.send("REKEYED", vcwire.encode("REKEYED", dict(ranges=[])))

    def over_and_over(self, say):
        """Calls say(1), say(2), ..., some a second, until the other end hangs up."""
        def run():
            for n in itertools.count(1):
                say(n)
                if threading.Event.wait(self.ended, 0.2):
                    return
        threading.Thread(target=run, daemon=True).start()

    def ping(self):
        self.over_and_over(lambda n: self.send("PING", struct.pack("<Q", n)))

    def has(self, name):
        wait_for(lambda: name in self.answers or self.ended.is_set(), 30, name)
        assert name in self.answers, (self.seen, self.error)
        return self.answers[name]


@pytest.fixture
def apart(fleet):
    """A VM that has come to the second host, whose agent takes silence of a second for the end."""
    f = fleet(namespaces=False, agents=False)
    for v in f.vecycles:
        v.control = v.host.path("control")
        v.start_agent([v.address], ["--dead-peer", "1"])
    f.boot_selfcheck(end_mib=8, delay=20000)
    assert f.migrate(1, compare=False)["confirmed"]
    return f


def asks(f):
    """One that has the same checkpoint, and asks the VM's host for a new key: past START. The session
    before may still be clearing up."""
    return wait_for(lambda: try_to_ask(f), 60, "the session before to have ended")


def try_to_ask(f):
    v = f.vecycles[1]
    m = vcstore.read_manifest(v.store / "vms" / f.vm / "manifest")
    g = m.generations[0]
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(v.address.removeprefix("unix:"))
    r = Rogue(sock, SOURCE)
    r.send("OPEN", vcwire.encode("OPEN", dict(
        session=os.urandom(16), vm=uuid.UUID(f.vm).bytes, mode=REKEY, name="", window=0, has_lineage=1,
        lineage=m.lineage, algorithm=m.algorithm, lineage_flags=int(m.exposed),
        generations=[(g.id.bytes, g.root)])))
    wait_for(lambda: "ACCEPT" in r.answers or r.ended.is_set(), 60, "an answer")
    if "ACCEPT" not in r.answers and "re-keyed already" in r.error:
        return None
    r.has("ACCEPT")
    r.send("START", vcwire.encode("START", dict(
        lineage=os.urandom(16), algorithm=1, lineage_flags=int(m.exposed), base_kind=1, has_key=1,
        key=os.urandom(32), generation=os.urandom(16))))
    return r


def is_asked(f, *argv):
    """The other way round: `vecycle rekey` at the VM's host has asked it. The process as well."""
    path = f.hosts[0].path("rogue")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(1)
    v = f.vecycles[1]
    p = v.host.start([BINARY, "rekey", *v.common(), "--to", f"unix:{path}", "--dead-peer", "1", *argv, f.vm])
    sock, _ = server.accept()
    server.close()
    r = Rogue(sock, DESTINATION)
    m = vcwire.decode("OPEN", r.has("OPEN"))
    r.send("ACCEPT", vcwire.encode("ACCEPT", dict(base_kind=1, generation=m["generations"][0][0], has_lineage=0,
                                                  needs_key=0, max_stream=4 << 20)))
    r.has("START")
    return r, p


def moves_on(f):
    """It is not refused any more."""
    dest = f.incoming(0)
    wait_for(lambda: f.vecycles[1].migrate(f.qemu, f.vecycles[0].address, dest.name, ok=False)["status"] == 0,
             60, "the VM to migrate")
    f.arrived(0, dest)
    f.check_guest()


def locked(r):
    """READY: the host that sends it holds the VM's lock."""
    r.rekeyed()
    r.has("READY")


@pytest.mark.parametrize("asked", [False, True])
def test_nothing_that_a_peer_says_holds_the_vm_for_longer(apart, asked):
    f = apart
    r = is_asked(f)[0] if asked else asks(f)
    locked(r)
    r.over_and_over(r.rekeying)
    assert r.ended.wait(60)
    assert "REKEYING: not at this point" in r.error
    moves_on(f)


@pytest.mark.parametrize("asked", [False, True])
def test_a_peer_that_is_never_ready_holds_the_vm_for_its_time(apart, asked):
    f = apart
    r = is_asked(f)[0] if asked else asks(f)
    locked(r)
    r.ping()
    wait_for(lambda: f.vecycles[1].run("rm", f.vm).returncode == 43, 10, "the VM to be held")
    assert r.ended.wait(60)
    assert "does not get on" in r.error
    moves_on(f)


@pytest.mark.parametrize("asked", [False, True])
def test_a_peer_that_never_ends_reading_is_waited_for_as_long_as_its_pages_take(apart, asked):
    """There are more of them than it names in that time, one by one."""
    f = apart
    r, p = is_asked(f) if asked else (asks(f), None)
    r.has("REKEYED")
    r.over_and_over(r.rekeying)
    assert r.ended.wait(60)
    assert "reads its checkpoint for too long" in r.error
    assert not asked or p.wait() == 1, p.messages()
    moves_on(f)


@pytest.mark.parametrize("numbers", [[1, 2, 2], [5, 4], [0], [1 << 40]], ids=["same", "less", "none", "too-many"])
def test_pages_that_there_are_not_are_no_progress(apart, numbers):
    f = apart
    r = asks(f)
    for n in numbers:
        r.rekeying(n)
    assert r.ended.wait(60)
    assert f"REKEYING: {numbers[-1]} pages" in r.error
    moves_on(f)


def test_frames_of_the_end_come_once_and_in_order(apart):
    f = apart
    for early in "READY", "COMMITTED", "CLOSE":
        r = asks(f)
        r.send(early, bytes(vcwire.BY_NAME[early].least))
        assert r.ended.wait(60)
        assert f"{early}: not at this point" in r.error
    moves_on(f)
