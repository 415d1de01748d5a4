# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a peer makes the other side hold is charged: whatever it sends, and however much, little memory is taken
for it, and the agent goes on. The peers here have leave, the right key, and no mercy."""
import functools
import os
import socket
import threading
import uuid

import pytest
import vcwire
import zstandard
from vcbatch import INVALIDATE, OPAQUE, RECENT, ZERO, ZSTD, Batch, Run, Seals, encode_batch
from vcwire import frame
from vctest import gate
from vctest.peer import Peer
from vctest.proc import wait_for

MIB = 1 << 20
KEY = bytes(range(32))
SOURCE, DESTINATION = 1, 2
FEATURES = 0xff
SESSION_MIB = 120  # of one session at its limits (docs/formats/wire.md, section 5)
ALL_SESSIONS_MIB = 1024  # of 64
GIB = 1 << 30
SESSION = bytes(range(16))  # of all, so that seals are computed once


def peak(process, what="VmHWM"):
    """MiB that the process has had resident, at most."""
    with open(f"/proc/{process.pid}/status") as f:
        return next(int(line.split()[1]) // 1024 for line in f if line.startswith(what))


def hello(role):
    return vcwire.encode("HELLO", dict(low=1, high=1, role=role, security=0, features=FEATURES, software="rogue"))


def opens(name, *then, blocks=()):
    """A source: HELLO to START, the block list, then `then`, each of which is a function of the peer."""
    def play(peer):
        peer.say("HELLO", hello(SOURCE))
        peer.say("OPEN", vcwire.encode("OPEN", dict(
            session=SESSION, vm=uuid.uuid4().bytes, mode=1, name=name, window=16 * MIB, has_lineage=0, generations=[])))
        peer.await_("ACCEPT")
        peer.say("START", vcwire.encode("START", dict(
            lineage=os.urandom(16), algorithm=1, lineage_flags=0, base_kind=0, has_key=1, key=KEY,
            generation=os.urandom(16))))
        if blocks:
            peer.say("BLOCKS", vcwire.encode("BLOCKS", dict(page_size=4096, blocks=blocks)))
        for act in then:
            act(peer)
    return play


RAM = [(b"pc.ram", 64 * GIB), (b"vga.vram", 16 * MIB)]


def pour(payloads):
    """BATCHes until the agent takes no more, or has had enough."""
    def act(peer):
        peer.sock.settimeout(3)  # a full socket: it is waiting, which is right
        try:
            for payload in payloads():
                peer.say("BATCH", payload)
        except TimeoutError:
            pass
        peer.sock.settimeout(None)
    return act


def unsealed(runs, stream_bytes=0, codec=ZSTD, **kw):
    """The agent asks for the first batch again, in vain, and the others wait."""
    first, other = (encode_batch(Batch(n, 0, stream_bytes, bytes(16), runs, codec), **kw) for n in (1, 2))
    return lambda: [first] + [other] * min(20000, 128 * MIB // len(other))


@functools.cache
def chain(kind, count):
    """Batches of (runs, stream bytes, what the seal covers) with the right seals."""
    seals, position, out = Seals(KEY, SESSION), 0, []
    runs, stream_bytes, covered = kind()
    for n in range(1, count + 1):
        seal = seals.next(n, position, covered)
        out.append(encode_batch(Batch(n, position, stream_bytes, seal, runs, ZSTD), level=1))
        position += stream_bytes
    return out


def invalidates(page, count):
    return bytes([INVALIDATE]) + bytes(4) + page.to_bytes(8, "little") + count.to_bytes(8, "little")


def expansion():
    """Some hundred bytes that become 4 MiB."""
    content = bytes(4 * MIB)
    return [Run(OPAQUE, len(content), content=content)], len(content), content


def nothings():
    """4096 runs that stand for nothing."""
    return ([Run(INVALIDATE, 1, 0, 2 * i) for i in range(4096)], 0,
            b"".join(invalidates(2 * i, 1) for i in range(4096)))


def invalidation():
    """All of RAM in one run."""
    pages = RAM[0][1] // 4096
    return [Run(INVALIDATE, pages)], 0, invalidates(0, pages)


def sealed(kind, count):
    return lambda: chain(kind, count)


def with_many_runs(count, each=b"\x05\x01"):
    """As long as the body of a batch could be once: all runs, standing for nothing."""
    raw = each * count
    return unsealed([], raw_runs=raw, packed=zstandard.ZstdCompressor(level=1).compress(raw), body_length=len(raw))


ZEROES = [Run(ZERO, 4000, 0, 0, as_page=False)]
FLOODS = {
    "millions of runs for nothing": pour(with_many_runs(9 * MIB // 2)),
    "opaque runs for nothing": pour(with_many_runs(MIB, b"\x01\x01")),
    "as many runs as there may be": pour(unsealed([Run(INVALIDATE, 1, 0, i) for i in range(4096)])),
    "runs of nothing, sealed": pour(sealed(nothings, 100)),
    "all of RAM invalidated": pour(sealed(invalidation, 100)),
    "a body for no stream": pour(unsealed([], body_length=9 * MIB, runs_length=0,
                                          packed=zstandard.ZstdCompressor().compress(bytes(9 * MIB)))),
    "expansions": pour(unsealed([Run(OPAQUE, 4 * MIB, content=bytes(4 * MIB))], 4 * MIB)),
    "expansions, sealed": pour(sealed(expansion, 30)),
    "zero records": pour(unsealed(ZEROES, 9 * 4000)),
    "plain bytes": pour(unsealed([Run(OPAQUE, 4 * MIB, content=os.urandom(MIB) * 4)], 4 * MIB, codec=0)),
    "deltas to what never was": pour(unsealed([], codec=RECENT, packed=b"")),
    "the block list again": lambda peer: [peer.say("BLOCKS", vcwire.encode("BLOCKS", dict(
        page_size=1024, blocks=[(b"%0255d" % i, 64 << 40) for i in range(256)]))) for _ in range(2000)],
    "ends": lambda peer: peer.raw(frame("EOF") * 200000),
    "pings": lambda peer: peer.raw(frame("PING", bytes(8)) * 200000),
    "words": lambda peer: peer.raw(frame("WORD", b"\x01" + bytes(16)) * 20000),
    "unknown frames": lambda peer: [peer.raw(vcwire.Frame(99, bytes(9 * MIB), flags=1).bytes())
                                       for _ in range(20)],
    "channel 1": lambda peer: [peer.say("BATCH", encode_batch(Batch(
        i, 0, MIB, bytes(16), [Run(OPAQUE, MIB, content=bytes(MIB))], ZSTD)), channel=1) for i in range(1, 500)],
}


@pytest.fixture
def agent(fleet):
    """An agent, and sockets behind which something listens that takes nothing."""
    f = fleet(1, namespaces=False, agents=False)
    v = f.vecycles[0]
    v.control = v.host.path("control")
    v.start_agent([v.address], ["--dead-peer", "20"])
    v.listening = []
    yield v
    for s in v.listening:
        s.close()


def connect(v):
    s = socket.socket(socket.AF_UNIX)
    s.connect(v.address.removeprefix("unix:"))
    return s


def a_socket(v, name):
    s = socket.socket(socket.AF_UNIX)
    s.bind(f"{v.host.sockets}/{name}.sock")
    s.listen(1)
    v.listening.append(s)
    return name


def settle(peers, v):
    """Until all that was sent was looked at, as far as it will be: the memory of the agent moves no more."""
    wait_for(lambda: all(p.ended.is_set() or not p.is_alive() or "PONG" in p.seen for p in peers), 120, "the peers")
    last = []

    def still():
        last.append(peak(v.agent, "VmRSS"))
        return len(last) > 10 and max(last[-10:]) - min(last[-10:]) <= 1
    wait_for(still, 60, "the agent's memory to stand still", step=0.1)


@pytest.mark.parametrize("flood", FLOODS)
def test_no_source_makes_the_agent_hold_much(agent, flood):
    before = peak(agent.agent)
    name = a_socket(agent, "x")
    peer = Peer(connect(agent), opens(name, FLOODS[flood], blocks=RAM))
    settle([peer], agent)
    assert agent.agent.alive()
    taken = peak(agent.agent) - before
    print(f"{taken} MiB were taken for {peer.sent >> 10} KiB ({peer.error})")
    assert taken < SESSION_MIB, f"{taken} MiB were taken for {peer.sent >> 20} MiB ({peer.error})"
    peer.sock.close()


def test_nothing_is_held_for_a_peer_before_it_has_said_what_it_wants(agent):
    before = peak(agent.agent)
    peers = []
    for kind in (2, 4, 16, 17, 21, 25, 99):
        for phase in ("hello", "open"):
            def play(peer, kind=kind, phase=phase):
                if phase == "open":
                    peer.say("HELLO", hello(SOURCE))
                for _ in range(4):
                    peer.raw(vcwire.Frame(kind, bytes(9 * MIB), flags=1).bytes())
            peers.append(Peer(connect(agent), play))
    settle(peers, agent)
    assert agent.agent.alive()
    assert peak(agent.agent) - before < 8
    for p in peers:
        p.sock.close()


def test_sixty_four_sources_together_make_the_agent_hold_a_part_of_a_host(agent):
    before = peak(agent.agent)
    floods = [FLOODS[k] for k in ("expansions, sealed", "expansions", "plain bytes", "runs of nothing, sealed",
                                  "as many runs as there may be", "all of RAM invalidated", "channel 1", "ends")]
    peers = [Peer(connect(agent), opens(a_socket(agent, f"x{i}"), floods[i % len(floods)], blocks=RAM))
             for i in range(64)]
    settle(peers, agent)
    assert agent.agent.alive()
    taken = peak(agent.agent) - before
    print(f"{taken} MiB were taken by 64 sessions")
    assert taken < ALL_SESSIONS_MIB, f"{taken} MiB were taken"
    for p in peers:
        p.sock.close()


# ---- the other way ----

def announces(*then):
    """A destination: HELLO to ACCEPT, with an announcement to come, then `then`."""
    def play(peer):
        peer.say("HELLO", hello(DESTINATION))
        peer.say("ACCEPT", vcwire.encode("ACCEPT", dict(
            base_kind=2, generation=os.urandom(16), has_lineage=1, lineage=os.urandom(16), algorithm=1,
            lineage_flags=0, key=KEY, needs_key=0, max_stream=4 * MIB)))
        for act in then:
            act(peer)
    return play


def announce_blocks(peer):
    peer.say("ANNOUNCE_BLOCKS", vcwire.encode("ANNOUNCE_BLOCKS", dict(
        page_size=4096, blocks=[(b"block%d" % i, 64 * GIB) for i in range(255)])))


def announce(peer, block, page, *runs):
    peer.say("ANNOUNCE", vcwire.encode("ANNOUNCE", dict(block=block, page=page, runs=list(runs))))


def more_than_qemu_reads(peer):
    peer.sock.settimeout(3)
    try:
        for _ in range(4000):
            peer.say("RETURN", bytes(65536))
    except TimeoutError:
        peer.ended.set()


PAGES = 64 * GIB // 4096
ANNOUNCEMENTS = {
    "all of it zero": lambda peer: [announce(peer, b, 0, (1, PAGES, [])) for b in range(255)],
    "a page here and there": lambda peer: [announce(peer, b, p, (2, 1, [bytes(8)]))
                                           for b in range(255) for p in range(0, PAGES, 1 << 16)],
    "all that fits": lambda peer: [announce(peer, b, p, (2, 8000, [bytes(8)] * 8000))
                                   for b in range(2) for p in range(0, PAGES - 8000, 8000)],
    "blocks again": lambda peer: [announce_blocks(peer) for _ in range(1000)],
    "more than QEMU reads": lambda peer: more_than_qemu_reads(peer),
    "words": lambda peer: peer.raw(frame("WORD_DONE", bytes(5)) * 20000),
    "requests": lambda peer: peer.raw(frame("RESEND", (1).to_bytes(8, "little")) * 20000),
}


def answer_probe(server):
    """A proxy looks whether somebody is there before it listens."""
    c, _ = server.accept()
    with c:
        c.recv(64)
        c.sendall(gate.hello(2))
        while c.recv(4096):
            pass


@pytest.mark.parametrize("what", ANNOUNCEMENTS)
def test_no_destination_makes_the_source_hold_much(fleet, what):
    f = fleet(1, namespaces=False, agents=False)
    v = f.vecycles[0]
    path, listen = v.host.path("rogue"), v.host.path("proxy")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(1)
    v.control = "none"
    probe = threading.Thread(target=answer_probe, args=(server,), daemon=True)
    probe.start()
    proxy, _ = v.start_proxy(listen, str(uuid.uuid4()), f"unix:{path}")
    probe.join()
    qemu = socket.socket(socket.AF_UNIX)
    qemu.connect(listen)
    peer = Peer(server.accept()[0], announces(announce_blocks, ANNOUNCEMENTS[what]))
    most = [0]

    def over():
        if proxy.alive():
            try:
                most[0] = max(most[0], peak(proxy))
            except (OSError, StopIteration):
                pass
        return not proxy.alive() or not peer.is_alive() or peer.ended.is_set() or "PONG" in peer.seen
    wait_for(over, 120, "the peer")
    print(f"{most[0]} MiB were taken ({peer.error})")
    assert 0 < most[0] < SESSION_MIB, f"{most[0]} MiB were taken ({peer.error})"
    for s in qemu, peer.sock, server:
        s.close()
