# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real migrations and real stores, read by the decoders that were written from docs/formats alone."""
import json
import shutil
import socket
import uuid

import pytest
from vctest.proc import wait_for
from vctest.relay import Relay

import vcbatch
import vcstore
from vcsession import Session
from vcwire import DEST, SOURCE


class Recorder(Relay):
    """Keeps what passes in the order in which it came: an answer stands behind its question. Of
    several connections it keeps the last: a proxy asks whether anyone answers before its session."""

    def __init__(self, listen, to):
        self.log = []
        super().__init__(listen, to)

    def _serve(self):
        while True:
            try:
                a, _ = self.server.accept()
            except OSError:
                return
            b = socket.socket(socket.AF_UNIX)
            b.connect(self.to)
            self.sockets = [a, b]
            self.log = []
            self._start(self._carry, b, a, self.backward)
            back = self.threads[-1]
            self._carry(a, b, self.forward)
            back.join()

    def close(self):
        self.server.shutdown(socket.SHUT_RDWR)  # ends accept()
        super().close()

    def passes(self, data, kept):
        self.log.append((SOURCE if kept is self.forward else DEST, data))
        return data


class Wire:
    """Lets a fleet's sessions pass a recorder, and follows them."""

    def __init__(self, fleet):
        self.f, self.keys, self.generations, self.n = fleet, {}, {}, 0
        self.stored = {}  # of the host that was tapped last, by (generation, block, page)

    def tap(self, to):
        """(recorder, address of it) before host `to`, whose store is read as it is now."""
        self.n += 1
        self.stored = self.read_store(to)
        path = self.f.hosts[to].path(f"tap{self.n}")
        recorder = Recorder(path, self.f.vecycles[to].address.removeprefix("unix:"))
        return recorder, f"unix:{path}"

    def read_store(self, host):
        store = self.f.vecycles[host].store
        if not (store / "vms" / self.f.vm).exists():
            return {}
        vm = vcstore.Vm(store, self.f.vm)
        return {(g.id.bytes, block.name, page): content for g in vm.manifest.generations
                for _, block, page, content in vm.pages(vm.indexes[g.id])}

    def follow(self, recorder):
        """The session that was recorded; all of it was legal."""
        recorder.close()
        session = Session(self.keys, self.generations, lambda *page: self.stored.get(page))
        for sender, data in recorder.log:
            session.feed(sender, data)
        session.finish()
        return session


def roots_agree(session, result):
    """Root of the generation: reported by both hosts, and computed from what crossed the wire."""
    assert result["confirmed"]
    for side in SOURCE, DEST:
        assert session.committed[side] == dict(generation=session.start["generation"],
                                               committed=True, root=session.generation.root())


def has_deltas(session):
    return any(b.codec == vcbatch.DELTA for b in session.batches.values())


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
        assert has_deltas(session) == (base > 0)
        roots_agree(session, result)
    assert result["pages"]["same"] > 7000
    f.check_guest()


def store_agrees(wire, host, session):
    """The host's newest generation is the one that went over the wire, and its files hold it."""
    vm = vcstore.Vm(wire.f.vecycles[host].store, wire.f.vm)
    newest = vm.manifest.generations[0]
    index = vm.indexes[newest.id]
    assert newest.id == uuid.UUID(bytes=session.start["generation"])
    assert newest.root == session.generation.root()
    assert newest.flags == vcstore.CONFIRMED
    assert vm.manifest.lineage == session.start["lineage"]
    assert vm.manifest.key == wire.keys[session.start["lineage"]]
    assert vm.verify(index) == newest.held > 1000
    left = {p.name for p in vm.directory.iterdir()} - vm.names() - {"handover", "age", "holders"}
    assert not left, f"garbage in the store: {left}"
    holders = [h for h in vcstore.read_holders(vm.directory / "holders") if h.lineage == vm.manifest.lineage]
    assert holders and not any(h.listed for h in holders), "the other host has the key, and there is no list"
    return vm


def test_a_driven_vm_and_its_checkpoints_over_three_hosts(fleet):
    f = fleet(3, namespaces=False)
    f.boot_linux(128, 30)
    f.guest.command("text /file 4 1")
    wire = Wire(f)
    for to, base in (1, 0), (2, 0), (0, 2), (2, 1):
        at = f.at
        if base == 2:
            # In the memory that the file had before: most of it is as host 0 knows it until then.
            f.guest.command("text /file 4 2")
        recorder, address = wire.tap(to)
        dest = f.incoming(to)
        result = f.vecycle().migrate(f.qemu, address, dest.name)
        f.arrived(to, dest)
        session = wire.follow(recorder)
        session.stream()
        assert session.start["base_kind"] == result["base"] == base
        assert bool(session.announced) == (base == 2)
        assert has_deltas(session) == (base > 0)
        assert (result["pages"]["same"] > 5000) == (base > 0)
        assert "WORD" in session.sides[SOURCE].seen and "WORD_DONE" in session.sides[DEST].seen
        roots_agree(session, result)
        for host in at, to:
            store_agrees(wire, host, session)
    f.check_guest()
    damage_is_seen(f.vecycles[f.at].store, f.vm, f.hosts[0].dir / "copies")


def preempted(wire, to):
    """By postcopy, with a preempt connection; the guest has asked for pages while the rest was slow."""
    f = wire.f
    recorder, address = wire.tap(to)
    source, dest = f.qemu, f.incoming(to)
    source.qmp.execute("migrate-set-parameters", max_postcopy_bandwidth=1 << 20)
    # So that it cannot be over before the switch.
    p, out = f.vecycle().start_migrate(source, address, dest.name, [
        "--postcopy", "--postcopy-preempt", "--max-bandwidth", "60M", "--downtime-limit", "1"])
    wait_for(lambda: not p.alive() or source.qmp.execute("query-migrate").get("ram", {}).get(
        "postcopy-requests", 0) >= 40, 60, "the guest to ask for pages")
    source.qmp.execute("migrate-set-parameters", max_postcopy_bandwidth=0)
    assert p.wait() == 0, p.messages()
    f.arrived(to, dest)
    session = wire.follow(recorder)
    session.stream()
    return session, f.vecycle().summary(out)


def last_words(session):
    """(kinds of the runs of channel 0 that were about it, in order) of each page."""
    said = {}
    for sequence in sorted(session.batches):
        for r in session.batches[sequence].runs:
            for i in range(0 if r.kind == vcbatch.OPAQUE else r.count):
                said.setdefault((session.blocks[r.block][0], r.page + i), []).append(r.kind)
    return said


def asked_for_pages_are_unknown(wire, session, hosts):
    """Page by page, in both hosts' files: what came on channel 1 is unknown, unless it came on channel
    0 once that had named it; and so is nothing else."""
    asked, said = session.side_channel.pages(session.page_size), last_words(session)
    for page in asked:
        assert vcbatch.INVALIDATE in said[page], f"channel 0 has not named {page}"
    assert any(said[page][0] != vcbatch.INVALIDATE for page in asked), "none was known before"
    unknown = {page for page, kinds in said.items() if kinds[-1] == vcbatch.INVALIDATE}
    assert len(asked & unknown) >= 10
    for host in hosts:
        vm = vcstore.Vm(wire.f.vecycles[host].store, wire.f.vm)
        index = vm.indexes[vm.manifest.generations[0].id]
        state = {(b.name, page): index.states[n] for n, b, page in index.pages()}
        assert {page for page, s in state.items() if s == vcstore.UNKNOWN} == unknown


def test_a_preempt_connection_can_be_read_off_the_wire(fleet):
    f = fleet(namespaces=False)
    f.boot_linux(128, 30)
    f.guest.command("dirty 32 20")
    wire = Wire(f)
    for to, base in (1, 0), (0, 1):
        at = f.at
        session, result = preempted(wire, to)
        assert session.start["base_kind"] == result["base"] == base
        assert has_deltas(session) == (base > 0)
        assert session.side_channel.ended and session.side_channel.stream
        assert not session.side_channel.outstanding
        roots_agree(session, result)
        asked_for_pages_are_unknown(wire, session, (at, to))
    f.guest.command("stop")
    f.check_guest()


def damage_is_seen(store, vm, copies):
    """The reader that found all well is one that would have seen a byte that differs."""
    newest = vcstore.Vm(store, vm).manifest.generations[0]
    layer = newest.layers[-1].file_name()
    for n, name in enumerate(("manifest", f"{newest.index}.index", layer)):
        shutil.copytree(store, copies / str(n))
        path = copies / str(n) / "vms" / vm / name
        data = bytearray(path.read_bytes())
        for i in range(0, len(data), 4096) if name == layer else (len(data) // 2,):
            data[i] ^= 1
        path.write_bytes(data)
        with pytest.raises(vcstore.Bad):
            damaged = vcstore.Vm(copies / str(n), vm)
            damaged.verify(damaged.indexes[newest.id])
