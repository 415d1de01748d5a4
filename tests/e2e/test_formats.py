# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real migrations, read off the wire by the decoder that was written from docs/formats alone."""
import json

from vctest.relay import Relay

from vcsession import Session
from vcwire import DEST, SOURCE


class Recorder(Relay):
    """Keeps what passes in the order in which it came: an answer stands behind its question."""

    def __init__(self, listen, to):
        self.log = []
        super().__init__(listen, to)

    def passes(self, data, kept):
        self.log.append((SOURCE if kept is self.forward else DEST, data))
        return data


class Wire:
    """Lets a fleet's sessions pass a recorder, and follows them."""

    def __init__(self, fleet):
        self.f, self.keys, self.generations, self.n = fleet, {}, {}, 0

    def tap(self, to):
        """(recorder, address of it) before host `to`."""
        self.n += 1
        path = self.f.hosts[to].path(f"tap{self.n}")
        recorder = Recorder(path, self.f.vecycles[to].address.removeprefix("unix:"))
        return recorder, f"unix:{path}"

    def follow(self, recorder):
        """The session that was recorded; all of it was legal."""
        recorder.close()
        session = Session(self.keys, self.generations)
        for sender, data in recorder.log:
            session.feed(sender, data)
        session.finish()
        return session


def roots_agree(session, result):
    """Root of the generation, as both hosts reported it."""
    assert result["confirmed"]
    one, other = session.committed[SOURCE], session.committed[DEST]
    assert one == other and one["committed"]
    assert one["generation"] == session.start["generation"]


def proxied(wire, to):
    """Through a proxy, the wire and the destination's socket being recorded."""
    f = wire.f
    src, dst = f.hosts[f.at], f.hosts[to]
    inner = dst.path("inner.sock")
    dest = f.new_qemu(to, f"unix:{inner}", ["-S"])
    last = Relay(dst.path("vm.sock"), inner)
    recorder, address = wire.tap(to)
    listen = src.path("out.sock")
    p, out = f.vecycle().start_proxy(listen, f.vm, address, "vm")
    f.qemu.migrate_plain(f"unix:{listen}")
    f.qemu.wait_migrated()
    assert p.wait() == 0, p.messages()
    last.close()
    dest.qmp.execute("cont")
    f.arrived(to, dest)
    return wire.follow(recorder), last, out


def test_a_proxied_stream_can_be_read_off_the_wire(fleet):
    f = fleet(namespaces=False)
    f.boot_linux(128, 30)
    wire = Wire(f)
    for to, base in (1, 0), (0, 1):
        session, given, out = proxied(wire, to)
        result = json.loads(out.read_text())
        assert session.start["base_kind"] == result["base"] == base
        assert session.stream() == bytes(given.forward), "the wire says something else"
        assert session.returned == given.backward and session.shut_status() == 0
        assert session.position == result["stream_bytes"]
        roots_agree(session, result)
    assert result["pages"]["same"] > 7000
    f.check_guest()


def test_a_driven_vm_over_three_hosts(fleet):
    f = fleet(3, namespaces=False)
    f.boot_linux(128, 30)
    wire = Wire(f)
    for to, base in (1, 0), (2, 0), (0, 2), (2, 1):
        recorder, address = wire.tap(to)
        dest = f.incoming(to)
        result = f.vecycle().migrate(f.qemu, address, dest.name)
        f.arrived(to, dest)
        session = wire.follow(recorder)
        session.stream()
        assert session.start["base_kind"] == result["base"] == base
        assert bool(session.announced) == (base == 2)
        assert (result["pages"]["same"] > 5000) == (base > 0)
        assert "WORD" in session.sides[SOURCE].seen and "WORD_DONE" in session.sides[DEST].seen
        roots_agree(session, result)
    f.check_guest()
