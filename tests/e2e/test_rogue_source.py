# SPDX-License-Identifier: LGPL-2.1-or-later
"""A source that keeps its link alive and sends nothing of the VM holds up nobody for ever."""
import os
import socket
import threading
import uuid

import vcwire
from vctest.gate import hello, ping
from vctest.proc import wait_for

PROXY, DRIVEN = 1, 2
STEPS = ["HELLO", "OPEN", "START"]
ERROR = vcwire.BY_NAME["ERROR"].number


class RogueSource(threading.Thread):
    """Goes as far as `last`, one of STEPS, and then sends PING until the destination hangs up."""

    def __init__(self, f, last, mode=PROXY, name="nobody", vm=None):
        super().__init__(daemon=True)
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(f.vecycles[1].address.removeprefix("unix:"))
        self.open = {"session": os.urandom(16), "vm": vm or os.urandom(16), "mode": mode,
                     "name": name, "window": 24 << 20, "has_lineage": 0, "generations": []}
        self.begin = {"lineage": os.urandom(16), "algorithm": 1, "lineage_flags": 0, "base_kind": 0,
                      "has_key": 1, "key": os.urandom(32), "generation": os.urandom(16)}
        self.last, self.seen, self.error, self.pings = last, set(), None, 0
        self.ended = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()
        self.start()

    def _send(self, name, fields):
        payload = vcwire.encode(name, fields)
        head = len(payload).to_bytes(4, "little") + bytes([vcwire.BY_NAME[name].number, 0, 0, 0])
        self.sock.sendall(head + payload)

    def run(self):
        try:
            self.sock.sendall(hello(1))
            for name, fields in zip(STEPS[1:], (self.open, self.begin)):
                if STEPS.index(name) <= STEPS.index(self.last):
                    self._send(name, fields)
            while not self.ended.wait(0.2):
                self.sock.sendall(ping())
                self.pings += 1
        except OSError:
            pass

    def _listen(self):
        with self.sock.makefile("rb") as stream:
            try:
                while head := stream.read(8):
                    payload = stream.read(int.from_bytes(head[:4], "little"))
                    self.seen.add(vcwire.BY_NUMBER[head[4]].name)
                    if head[4] == ERROR:
                        self.error = payload[5:].decode()
            except OSError:
                pass
        self.ended.set()


def test_a_source_that_only_answers_is_let_go(fleet):
    f = fleet(namespaces=False, agents=False)
    for v in f.vecycles:
        v.control = v.host.path("control")
        v.start_agent([v.address], ["--dead-peer", "1"])
    f.boot_selfcheck(delay=20000)
    dest = f.incoming(1)
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for i, s in enumerate(waiting):
        s.bind(f"{f.hosts[1].sockets}/other{i}.sock")
        s.listen(1)
    rogues = [RogueSource(f, "HELLO"), RogueSource(f, "OPEN", name="other0"),
              RogueSource(f, "START", name="other1"),
              RogueSource(f, "START", DRIVEN, dest.name, uuid.UUID(f.vm).bytes)]
    wait_for(lambda: f.vecycles[1].run("show", f.vm).returncode == 0 and
             f.vecycles[1].json("show", f.vm)["handover"] == "arriving", 20, "the VM to be held")
    assert f.vecycles[1].run("rm", f.vm).returncode == 43  # busy
    for rogue in rogues:
        assert rogue.ended.wait(60), (rogue.last, rogue.open["mode"])
        assert rogue.pings >= 20 and "PONG" in rogue.seen  # it was not silence that ended it
    assert "ACCEPT" in rogues[1].seen
    for rogue in rogues[2:]:
        assert "has sent nothing of the VM" in rogue.error
    assert f.vecycles[1].json("show", f.vm)["handover"] == "void"
    assert dest.status() == "inmigrate"
    assert f.migrate(1, compare=False)["confirmed"]
    for s in waiting:
        s.close()
