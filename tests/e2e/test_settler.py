# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent's settler: another host that does not answer costs nothing but its own VMs' words."""
import fcntl
import os
import signal
import socket
import threading

import pytest
from vctest.elsewhere import Elsewhere
from vctest.gate import EOF, SHUT, WORD, Gate, hello, ping
from vctest.guest import SelfCheck, selfcheck_options
from vctest.opens import Opens
from vctest.proc import Event, wait_for
from vctest.qemu import Qemu, new_uuid

SOURCE, DESTINATION = True, False


class Mute:
    """In the place of another host: takes connections, and never answers to a word; with `greets` it
    says HELLO and keeps the link alive. It hangs up on nobody."""

    def __init__(self, path, greets):
        self.greets = greets
        self.was_called, self.heard_word, self.was_left = Event(), Event(), Event()
        os.unlink(path)
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(path)
        self.server.listen(16)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                s, _ = self.server.accept()
            except OSError:
                return
            self.was_called.set()
            threading.Thread(target=self._hear, args=(s,), daemon=True).start()

    def _hear(self, s):
        file = s.makefile("rb")
        try:
            if self.greets:
                s.sendall(hello(2))
            while header := file.read(8):
                file.read(int.from_bytes(header[:4], "little"))
                if header[4] == WORD:
                    self.heard_word.set()
                if self.greets:
                    s.sendall(ping())  # whenever the other end says something, which it does all the time
        except OSError:
            pass
        self.was_left.set()

    def close(self):
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()


@pytest.fixture
def hosts(fleet):
    """Two hosts, and what is to be closed at the end."""
    closing = []
    f = fleet(namespaces=False)
    f.closing = closing
    yield f
    for c in closing:
        c.close()


class Moving:
    """A VM that migrates through a gate of its own."""

    def __init__(self, f, name):
        self.f, self.vm = f, new_uuid()
        self.qemu = Qemu(f.hosts[0], f"{name}-0", 64, self.vm, None, selfcheck_options(4, 100000))
        SelfCheck(self.qemu).wait_passes(2)
        self.dest = Qemu(f.hosts[1], f"{name}-1", 64, self.vm, "defer", selfcheck_options(4, 100000))
        self.gate = Gate(f.hosts[1].path(f"gate-{name}"), f.vecycles[1].address)
        f.closing.append(self.gate)

    def lose(self, frame, side, status, *extra):
        """A migration that ends at that frame; the other host is away since."""
        self.gate.hold(frame, side)
        p, _ = self.f.vecycles[0].start_migrate(self.qemu, self.gate.address, self.dest.name, [*extra])
        assert self.gate.is_held.wait(90), p.messages()
        self.gate.refuse()
        self.gate.cut()
        assert p.wait() == status, p.messages()

    def keep(self):
        """The VM stays here, and the destination is not told."""
        self.lose({SHUT, EOF}, DESTINATION, 23, "--dead-peer", "3")
        self.wait_handover("kept")

    def handover(self):
        return self.f.vecycles[0].json("show", self.vm)["handover"]

    def wait_handover(self, state):
        wait_for(lambda: self.handover() == state, 90, f"the record to be {state}")

    def fall_mute(self, greets):
        self.gate.close()
        self.f.closing.remove(self.gate)
        mute = Mute(self.gate.listen, greets)
        self.f.closing.append(mute)
        return mute


def test_a_host_that_does_not_answer_holds_up_no_other_hosts_vm(hosts):
    """Its call does not end in this test, which ends it with the agent."""
    f = hosts
    home = f.vecycles[0]
    mine, other = Moving(f, "mine"), Moving(f, "other")
    for m in mine, other:
        m.lose(WORD, SOURCE, 61)
    home.agent.stop()
    mute = mine.fall_mute(greets=False)
    home.start_agent([home.address], ["--dead-peer", "900"])
    assert mute.was_called.wait(60)
    other.gate.refuse(False)
    wait_for(other.dest.is_running, 90, "the other VM to run")
    other.wait_handover("settled")
    r = home.run("resolve", mine.vm, "--run")
    assert r.returncode == 61 and "in use" not in r.stderr, r.stderr
    assert not mute.was_left.is_set()
    assert mine.handover() == "left" and mine.qemu.status() == "postmigrate"
    assert home.agent.stop() == 0, home.log.read_text()
    assert mute.was_left.wait(60)


@pytest.mark.parametrize("what", ["migrate", "resolve"])
def test_a_vm_is_not_refused_while_its_word_is_not_answered(hosts, what):
    f = hosts
    home = f.vecycles[0]
    m = Moving(f, "vm")
    m.keep()
    home.agent.stop()
    m.qemu.qmp.execute("stop")
    mute = m.fall_mute(greets=True)
    home.start_agent([home.address])
    assert mute.heard_word.wait(60)
    if what == "resolve":
        r = home.run("resolve", m.vm, "--run")
        assert r.returncode == 0, r.stderr
        assert m.qemu.is_running() and m.handover() == "kept"
        return
    m.qemu.qmp.execute("cont")
    m.dest.stop()
    m.dest = Qemu(f.hosts[1], "vm-2", 64, m.vm, "defer", selfcheck_options(4, 100000))
    r = home.migrate(m.qemu, f.vecycles[1].address, m.dest.name)
    assert m.dest.is_running() and m.handover() == "settled"


def test_a_word_that_is_not_answered_stays_what_it_was(hosts):
    """The decision may have been applied, so *left* stays; the host that answers at last settles it."""
    f = hosts
    home = f.vecycles[0]
    m = Moving(f, "vm")
    m.lose(WORD, SOURCE, 61)
    home.agent.stop()
    mute = m.fall_mute(greets=True)
    home.start_agent([home.address])
    assert mute.heard_word.wait(60)
    assert mute.was_left.wait(60), "the call did not end"
    assert m.handover() == "left" and m.qemu.status() == "postmigrate"
    mute.close()
    f.closing.remove(mute)
    m.gate = Gate(m.gate.listen, f.vecycles[1].address)
    f.closing.append(m.gate)
    m.wait_handover("settled")
    assert m.dest.is_running()


def lock_of(home, m):
    return home.store / "vms" / m.vm / "lock"


def is_locked(home, m):
    with open(lock_of(home, m)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_qemu_that_hangs_holds_up_the_look_at_no_other_vm(hosts):
    """Who continues it here is noticed before it can end. The calls to both hosts do not end in this test, so
    it is the looks that lock a VM."""
    f = hosts
    home = f.vecycles[0]
    mine, other = Moving(f, "mine"), Moving(f, "other")
    for m in mine, other:
        m.lose(WORD, SOURCE, 61)
    home.agent.stop()
    mutes = [m.fall_mute(greets=False) for m in (mine, other)]
    other.qemu.process.popen.send_signal(signal.SIGSTOP)
    home.start_agent([home.address], ["--dead-peer", "900"])
    for mute in mutes:
        assert mute.was_called.wait(90)
    looks = Opens(lock_of(home, mine))

    def is_looked_at_meanwhile():
        if not is_locked(home, other):
            return False
        looks.forget()
        while is_locked(home, other):
            if looks.wait(0.05):
                return True
        return False
    wait_for(is_looked_at_meanwhile, 90, "a look at one VM during one at the other")
    looks.close()
    mine.qemu.qmp.execute("cont")
    mine.wait_handover("kept")
    assert other.handover() == "left"
    other.qemu.process.popen.send_signal(signal.SIGCONT)


def test_a_qemu_that_hangs_does_not_keep_the_agent_from_serving(hosts):
    """The look at it that comes first has not ended then."""
    f = hosts
    home = f.vecycles[0]
    m = Moving(f, "vm")
    m.lose(WORD, SOURCE, 61)
    place = Elsewhere(m.qemu.qmp_path)

    def serves_meanwhile():
        home.agent.stop()
        place.silence()
        home.start_agent([home.address])
        s, _ = place.server.accept()  # by the first look
        with s:
            s.settimeout(0)
            try:
                return s.recv(1) != b""
            except BlockingIOError:
                return True
    wait_for(serves_meanwhile, 240, "the agent to serve during a look")
    place.restore()
    m.gate.refuse(False)
    m.wait_handover("settled")
