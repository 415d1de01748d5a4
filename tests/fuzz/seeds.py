#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes the seeds of the corpus, tests/fuzz/corpus/TARGET/seed-NAME. Those that come from a real
QEMU are recorded anew with --record only; the others are always written."""
import argparse
import json
import zlib
from pathlib import Path

import streams
from streams import be, str8

CORPUS = Path(__file__).resolve().parent / "corpus"
RECORDED = {
    "plain": dict(),
    "return-path": dict(capabilities=["return-path"]),
    "postcopy-advise": dict(capabilities=["postcopy-ram"]),
    "xbzrle": dict(memory="8M", guest=3, capabilities=["return-path", "xbzrle"], rounds=3),
    "rounds": dict(memory="8M", guest=3, capabilities=["return-path"], rounds=3),
    "postcopy": dict(memory="8M", guest=3, capabilities=["postcopy-ram"], rounds=2, postcopy=True),
}


def save(target, name, data):
    path = CORPUS / target / f"seed-{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def le(v, n):
    return int(v).to_bytes(n, "little")


def varint(v):
    out = bytearray()
    while v >= 0x80:
        out.append(v & 0x7F | 0x80)
        v >>= 7
    return bytes(out + bytes([v]))


# ---- streams ----

def qstream(record):
    for name, data in streams.synthetics():
        save("qstream", name, data + le(zlib.crc32(name.encode()), 8))
    if record:
        for name, how in RECORDED.items():
            data = streams.fewer_parts(streams.shorten(streams.record(**how)))
            save("qstream", f"qemu-{name}", data + le(zlib.crc32(name.encode()), 8))


def rp(kind, payload):
    return be(kind, 2) + be(len(payload), 2) + payload


def return_path():
    pong, shut = rp(2, be(1, 4)), rp(1, be(0, 4))
    pages = rp(3, be(0, 8) + be(4096, 4) + str8("pc.ram")) + rp(4, be(0, 8) + be(4096, 4))
    bitmap = rp(5, str8("pc.ram")) + be(16, 8) + b"\xff" * 16 + be(0x0123456789ABCDEF, 8)
    for name, data in (("precopy", pong + shut), ("failed", rp(1, be(1, 4))), ("pages", pages + shut),
                       ("recovery", bitmap + rp(6, be(1, 4)) + shut), ("ack", rp(7, b"") + shut)):
        save("return_path", name, le(len(data), 8) + data)


# ---- the wire ----

BLOCKS = le(1024, 4) + le(2, 4) + str8("pc.ram") + le(20480, 8) + str8("vga.vram") + le(4096, 8)
ID, KEY, ROOT = bytes(range(16)), bytes(range(32)), bytes(range(32, 64))
LINEAGE = ID + b"\1\0"


def messages():
    """Frame type and payload of one message each."""
    status = le(31, 4) + str8("the destination QEMU failed")
    yield 1, b"vecycle\n" + le(1, 2) + le(1, 2) + b"\1\0\0\0" + le(1, 8) + str8("vecycle 0.1.0")
    yield 2, ID + ID + b"\2" + str8("vm1") + le(24 << 20, 4) + b"\0\0"
    yield 2, ID + ID + b"\1" + str8("") + le(24 << 20, 4) + b"\1" + LINEAGE + b"\1" + ID + ROOT
    yield 3, b"\0" + ID + b"\0\0" + le(4 << 20, 4)
    yield 3, b"\1" + ID + b"\1" + LINEAGE + KEY + b"\1" + le(4 << 20, 4)
    yield 4, LINEAGE + b"\0\1" + KEY + ID + le(0, 4)
    yield 16, BLOCKS
    yield 19, le(7, 8) + le(4096, 8)
    yield 20, le(7, 8) + le(2, 4) + le(3, 4) + le(9, 4)
    yield 21, le(7, 8) + le(1, 4) + le(3, 4) + b"\x5a" * 1024
    yield 22, le(7, 8)
    yield 25, le(0, 4) + le(0, 8) + b"\1" + varint(5) + b"\2" + varint(2) + b"\x77" * 16 + b"\0\1"
    yield 28, status
    yield 32, ID + b"\1" + bytes(7) + ROOT
    yield 33, b"\1" + ID
    yield 34, le(0, 4) + str8("")
    yield 48, le(1, 8)
    yield 50, status
    yield 29, b"".join(le(n << 30, 8) for n in (7, 1, 3, 16, 200))


def wire():
    for i, (kind, payload) in enumerate(messages()):
        save("wire", f"frame-{i}", b"\0" + le(len(payload), 4) + bytes([kind, 0, 0, 0]))
        extra = b""
        if kind == 25:
            extra = le(len(BLOCKS), 2) + BLOCKS
        if kind == 21:
            extra = b"\0"
        save("wire", f"message-{i}", bytes([kind]) + extra + payload)


def run(kind, count, block=None, page=None, named=False, as_page=False, old=False):
    head = kind | named << 4 | (block is not None) << 5 | (page is not None) << 6 | (as_page or old) << 7
    out = bytes([head])
    if block is not None:
        out += varint(block)
    if page is not None:
        out += varint(page << 1)
    return out + varint(count)


def ready_frame(content):
    """A frame of zstd around content of a single value, made by hand: a block that repeats it."""
    head = b"\x28\xb5\x2f\xfd" + b"\x60" + le(len(content) - 256, 2)
    return head + le(len(content) << 3 | 1 << 1 | 1, 3) + content[:1]


def batch():
    runs = (run(1, 30) + run(4, 3, 0, named=True) + run(3, 5) + run(5, 1) + run(3, 2, as_page=True) +
            run(4, 1, 1, 2, named=True) + run(1, 9))
    same = run(2, 4, named=True) + run(3, 2) + run(2, 1, page=3)
    for name, body in (("data", runs), ("same", same), ("opaque", run(1, 100))):
        for options in (1 | 32, 1 | 2 | 32, 1 | 4 | 32, 1 | 16 | 32):
            save("batch", f"{name}-{options}", bytes([options]) + le(len(BLOCKS), 2) + BLOCKS +
                 le(len(body), 2) + body + bytes(range(1, 200)))
    old = run(1, 30) + run(4, 2, named=True, old=True) + run(4, 1) + run(2, 1) + run(4, 1, 1, 1, old=True)
    for name, body, options in (("delta", old, 1 | 32 | 64), ("delta-zstd", old, 1 | 2 | 32 | 64),
                                ("delta-self", old, 1 | 4 | 32 | 64), ("delta-none", old, 1 | 32),
                                ("delta-unused", runs, 1 | 2 | 32 | 64),
                                ("delta-before-blocks", old, 1 | 8 | 32 | 64),
                                ("delta-moved", old + run(6, 1) + b"\0\0", 1 | 16 | 32 | 64)):
        save("batch", name, bytes([options]) + le(len(BLOCKS), 2) + BLOCKS + le(len(body), 2) + body +
             bytes(range(1, 200)))
    for many in (65, 66):
        again = (run(5, 20) + run(5, 4, 1)) + (run(5, 20, 0) + run(5, 4, 1)) * (many - 1)
        save("batch", f"invalid-{many}", b"\x21" + le(len(BLOCKS), 2) + BLOCKS + le(len(again), 2) + again)
    body = run(1, 5) + b"hello"
    header = le(1, 8) + le(0, 8) + le(5, 4) + le(2, 4) + le(len(body), 4) + b"\0\0\0\0" + bytes(16)
    save("batch", "raw", b"\0" + le(0, 2) + header + body)
    old = run(4, 1, named=True, old=True)
    frame = ready_frame(bytes([0x55]) * 1024)
    header = le(1, 8) + le(0, 8) + le(15 + 1024, 4) + le(len(old), 4) + le(len(old) + 1024, 4)
    raw = b"\x40" + le(len(BLOCKS), 2) + BLOCKS + header + b"\2\0\0\0" + bytes(16) + old
    for name, data in (("", frame), ("-trailing", frame + b"\0"), ("-cut", frame[:-1]), ("-no-contents", b""),
                       ("-not-zstd", bytes(range(100))), ("-beyond", frame[:-2] + b"\xff\xff")):
        save("batch", f"raw-delta{name}", raw + data)


# ---- whole sessions ----

def random_bytes(seed, n):
    """The sequence of fuzz_random(), a byte of each number."""
    mask, out = (1 << 64) - 1, bytearray()
    for _ in range(n):
        seed = seed + 0x9E3779B97F4A7C15 & mask
        z = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        out.append((z ^ z >> 31) & 0xFF)
    return bytes(out)


def known_page(page, version):
    """A page of the store that hosts.c makes."""
    return random_bytes(page * 1000 + version, 1024)


def touched_page(page, version):
    """The page, but for a few bytes."""
    content = known_page(page, version)
    return content[:100] + b"what has changed" + content[116:]


def returning_stream(touched=()):
    """A VM whose pages the hosts of hosts.c hold, but for some, and some that have changed a bit."""
    def ram(offset, content, name=None):
        return streams.record_head(0x08, offset, name) + content
    out = streams.config("versatilepb", 10) + streams.command(1) + streams.start(1, 2, "ram", 4)
    out += be(24 * 1024 | 4, 8) + str8("pc.ram") + be(20 * 1024, 8)
    out += str8("vga.vram") + be(4 * 1024, 8) + be(0x10, 8) + streams.footer(2) + streams.part(2, 2)
    for i in range(16):
        version = 9 if i == 3 else 2 if i % 5 == 0 else 1
        content = (touched_page if i in touched else known_page)(i, version)
        out += ram(i * 1024, content, None if i else "pc.ram")
    out += streams.zero(16 * 1024) + ram(17 * 1024, bytes(1024)) + be(0x10, 8) + streams.footer(2)
    out += streams.part(3, 2) + ram(1024, known_page(101, 7), "vga.vram") + be(0x10, 8)
    return out + streams.footer(2) + streams.TAIL


def pipelines():
    for name, data in streams.synthetics():
        if len(data) < 6000:
            save("pipelines", name, b"\3" + data)
    for options in range(4):
        save("pipelines", f"returning-{options}", bytes([options]) + returning_stream())
    for base in 1, 2:
        for delta in 0, 4:
            save("pipelines", f"touched-{base | delta}", bytes([base | delta]) +
                 returning_stream((0, 1, 4, 5, 6, 15)))
    save("pipelines", "empty", b"\0")


def elements(*parts):
    """What a peer says: frame types, or pairs of a type and its payload."""
    out = b""
    for part in parts:
        kind, payload = part if isinstance(part, tuple) else (part, b"")
        out += bytes([kind]) + le(len(payload), 2) + payload
    return out


HELLO, OPEN, ACCEPT, START, BLOCKS_, BATCH, EOF, ACK, REPAIR = 1, 2, 3, 4, 16, 17, 18, 19, 20
REPAIRED, RESEND, RETURN, ANNOUNCE_BLOCKS, ANNOUNCE, ANNOUNCE_END = 21, 22, 23, 24, 25, 26
FAILED, COMMITTED, WORD, WORD_DONE, CLOSE, PING, ERROR = 28, 32, 33, 34, 35, 48, 50


def heard(kind):
    """Waits for such a frame."""
    return 0, bytes([kind])


def session_dest():
    def sealed(runs, flags=0):
        return BATCH, bytes([flags]) + le(len(runs), 2) + runs + bytes(range(1, 60))
    begin = (HELLO, OPEN, START)
    opaque = sealed(run(1, 40))
    some = sealed(run(1, 9) + run(4, 3, named=True) + run(3, 4) + run(5, 2) + run(3, 1, as_page=True))
    same = sealed(run(2, 4, named=True) + run(2, 2, page=2))
    wrong = (BATCH, bytes([4]) + some[1][1:])
    end = (EOF, heard(COMMITTED), COMMITTED, CLOSE)
    for store in (0, 1):
        options = store | 32
        save("session_dest", f"whole-{store}", bytes([options, 0]) + elements(
            *begin, opaque, BLOCKS_, some, sealed(run(1, 900), 2), (PING, le(1, 8)),
            *end))
        save("session_dest", f"unsealed-{store}", bytes([options, 0]) + elements(
            *begin, BLOCKS_, wrong, heard(RESEND), some, *end))
    for base in (1, 2):
        options = 1 | base << 2 | 32
        save("session_dest", f"same-{base}", bytes([options, 0]) +
             elements(*begin, BLOCKS_, same, some, *end))
        save("session_dest", f"repair-{base}", bytes([options | 16, 0]) +
             elements(*begin, BLOCKS_, same, heard(REPAIR), REPAIRED, some, *end))
    content = b"".join(touched_page(i, 2 if i % 5 == 0 else 1) for i in (0, 1, 4))
    old = run(4, 2, named=True, old=True) + run(4, 1, page=2, old=True)
    whole = run(4, 2, named=True) + run(4, 1, page=2)

    def changed(flags, runs):
        return BATCH, bytes([flags]) + le(len(runs), 2) + runs + content
    for name, options, parts in (
            ("whole", 0, (changed(8, old), same, some, *end)),
            ("unsealed", 0, (changed(8 | 4, old), heard(RESEND), changed(1, whole), some, *end)),
            ("damaged", 16, (changed(8, old), heard(RESEND), some)),
            ("unknown-page", 0, (sealed(run(4, 1, page=18, old=True), 8), heard(ERROR))),
            ("zero-page", 0, (sealed(run(4, 1, page=16, old=True), 8), heard(ERROR))),
            ("old-without", 0, (changed(0, old), heard(ERROR))),
            ("self", 0, (changed(8 | 1, old), heard(ERROR)))):
        save("session_dest", f"delta-{name}", bytes([1 | 2 << 2 | 32 | options, 0]) +
             elements(*begin, BLOCKS_, *parts))
    save("session_dest", "delta-without-base", b"\x21\0" +
         elements(*begin, BLOCKS_, changed(8, old), heard(ERROR)))
    save("session_dest", "pong", bytes([0, 8]) + rp(2, be(1, 4)) + elements(*begin, opaque, heard(RETURN)))
    save("session_dest", "failed", bytes([0, 8]) + rp(1, be(1, 4)) + elements(*begin, opaque, heard(RETURN)))
    save("session_dest", "word", b"\0\0" + elements(HELLO, (OPEN, ID + ID + b"\3\0" + bytes(6)),
                                                    (WORD, b"\1" + ID)))
    save("session_dest", "raw", b"\2\0" + le(12, 4) + b"\1\0\0\0" + b"vecycle\nnope")


def session_source():
    stream = returning_stream()
    head = le(len(stream), 2) + stream
    begin = (HELLO, ACCEPT, heard(BATCH))
    end = (heard(EOF), RETURN, ACK, EOF, heard(COMMITTED), COMMITTED, CLOSE)
    known = (ANNOUNCE, le(0, 4) + le(0, 8) + b"\1" + varint(5) + b"\2" + varint(2) + bytes(16))
    for store in (0, 1):
        for base in (0, 1, 2):
            options = bytes([store | base << 2])
            save("session_source", f"whole-{store}-{base}", options + head +
                 elements(*begin, *end))
    touched = returning_stream((0, 1, 4))
    for name, again in ("delta", ()), ("delta-again", (RESEND, heard(BATCH))):
        save("session_source", name, b"\5" + le(len(touched), 2) + touched +
             elements(*begin, heard(EOF), *again, *end[1:]))
    save("session_source", "repair", b"\1" + head + elements(
        *begin, heard(EOF), REPAIR, heard(REPAIRED), RESEND, heard(BATCH), *end[1:]))
    save("session_source", "repair-twice", b"\1" + head + elements(*begin, heard(EOF), REPAIR, REPAIR, *end))
    save("session_source", "repair-many", b"\1" + head + elements(
        *begin, heard(EOF), (REPAIR, le(1, 8) + le(3, 4) + bytes(12)), *end))
    save("session_source", "announce", b"\x09" + head + elements(HELLO, ACCEPT, ANNOUNCE_BLOCKS, known,
                                                                ANNOUNCE_END, *end))
    save("session_source", "failed", b"\0" + head + elements(
        *begin, (FAILED, le(31, 4) + str8("no")), CLOSE))
    save("session_source", "error", b"\0" + head + elements(HELLO, (ERROR, le(30, 4) + str8("no"))))
    save("session_source", "no-return-path", b"\0" + le(200, 2) + streams.config("pc-1.0") +
         bytes(200)[:179] + elements(*begin, *end))


# ---- lines and words ----

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": []}}


def qmp():
    def lines(*objects):
        return b"".join(json.dumps(o).encode() + b"\r\n" for o in objects)

    def ok(number, value):
        return {"return": value, "id": number}
    event = {"event": "MIGRATION", "data": {"status": "active"}, "timestamp": {"seconds": 1}}
    uuid = {"UUID": "00000000-0000-0000-0000-000000000007"}
    migration = {"status": "completed", "total-time": 5, "downtime": 1, "setup-time": 1,
                 "ram": {"total": 1 << 40, "remaining": 0, "transferred": 9, "dirty-sync-count": 3}}
    save("qmp", "all", b"\xff" + lines(
        GREETING, ok(1, {}), event, ok(2, uuid), ok(3, {"status": "running"}),
        ok(4, {"qemu": {"major": 7, "minor": 2}}), ok(5, {"downtime-limit": 300}), ok(6, {}),
        ok(7, {}), event, ok(8, {}), ok(9, migration), event, event))
    save("qmp", "refused", b"\1" + lines(GREETING, {"error": {"class": "X", "desc": "no"}, "id": 1}))
    save("qmp", "stale", b"\2" + lines(GREETING, ok(9, {}), ok(1, {}), event, ok(2, {"status": "x"})))
    save("qmp", "numbers", b"\x40" + lines(GREETING, ok(1, {}), ok(2, dict(
        migration, ram={"total": (1 << 64) - 1, "remaining": -1, "transferred": 1e30}))))
    save("qmp", "no-qmp", b"\0" + b"HTTP/1.1 400 Bad Request\r\n\r\n")


def control():
    job = {"do": "migrate", "security": 1, "peer": "ssh://b", "name": "vm1", "qmp": "/run/q.sock",
           "vm": "00000000-0000-0000-0000-000000000007", "max-bandwidth": 1 << 63,
           "downtime-limit-ms": 300, "suspend": True}
    result = {"phase": 3, "base": 1, "vm": job["vm"], "pages_same": 5, "stream_bytes": 1 << 40,
              "wire_rate": 100, "committed": True, "reason": "\u0001\"", "peer": "b"}
    for i, o in enumerate((job, result, {"code": 42, "message": "m", "hint": "h"})):
        save("control", f"line-{i}", bytes([i]) + json.dumps(o).encode())
    save("control", "deep", b"\0" + b"[" * 40 + b"]" * 40)
    save("control", "twice", b"\0" + json.dumps(dict(job, do="proxy")).encode() + b' {"do":"x"}')


def text():
    for i, word in enumerate(("512M", "1g", "100000", "18446744073709551615", "16777215T", "1 ", "+5",
                              "18446744073709551616")):
        save("text", f"size-{i}", b"\0" + word.encode())
    for i, word in enumerate(("host", "host:7890", "[::1]:80", "[fe80::1%eth0]", ":1", "h:")):
        save("text", f"tcp-{i}", b"\1" + word.encode())
    for i, word in enumerate(("user@host:22", "host", "-oProxyCommand=x", "u@h:2x")):
        save("text", f"ssh-{i}", b"\2" + word.encode())
    save("text", "uuid", b"\3" + b"00000000-0000-4000-8000-00000000000A")


def peers():
    one, other = "6f0c7a52-93a8-4d0b-9b5e-1f6a2f1d9c11", "4d3b1c9e-52a0-4c57-8f2e-7b9d1f0a6e33"
    lab = f"# the lab\n\n*.lab.example.org {one} db={other}\tweb-*\r\nhost2 *   # the other half\n"

    def ask(name, file, who=("a.LAB.example.org", ""), socket=one, vm=one, options=0):
        save("peers", name, bytes([options]) + le(len(file), 2) + file.encode("latin-1") +
             str8(who[0]) + str8(who[1]) + str8(socket) + vm.encode())
    ask("uuid", lab)
    ask("named", lab, socket="db", vm=other)
    ask("other-vm", lab, socket="db")
    ask("name-attested", lab, socket="web-1", options=1)
    ask("name-told", lab, socket="web-1")
    ask("no-record", lab, socket="", vm=other, options=8)
    ask("all", lab, who=("10.0.0.2", "HOST2"), socket="x")
    ask("stranger", lab, who=("host3", "lab.example.org"))
    ask("at-all", lab, options=2)
    ask("nameless", lab, options=4)
    ask("addresses", f"::1 {one}\n192.0.2.? a*b?c={one}\n", who=("192.0.2.7", ""), socket="axxb-c")
    ask("class", "host[0-9] *\n", who=("host7", ""))
    ask("line-in-name", lab, socket="db\nhost2 *", vm=other)
    for i, bad in enumerate(("host2\n", "host2 a/b\n", f"host2 db={other}0\n", f"host2 ={one}\n", "ho/st *\n",
                             "host2 #*\n", "host2 *\0\nhost3\n", "\0", "host2 db=", "\xe4 *\n")):
        ask(f"mistake-{i}", lab + bad)


# ---- the store: options, then changes (store.c) ----

def change(what, file, at, rest=b""):
    return bytes([what << 3 | file]) + le(at, 2) + rest


def store():
    patch, number, cut, replace, append, remove, copy = range(7)
    save("store", "as-made", b"\x0e")
    for file in range(7):
        save("store", f"gone-{file}", b"\x0e" + change(remove, file, 0))
        save("store", f"empty-{file}", b"\x0e" + change(cut, file, 0))
        save("store", f"short-{file}", b"\x0e" + change(cut, file, 100))
        save("store", f"longer-{file}", b"\x06" + change(append, file, 64))
        save("store", f"other-{file}", b"\x06" + change(copy, file, 0, bytes([(file + 1) % 7])))
        save("store", f"bytes-{file}", b"\x06" + change(patch, file, 8, b"\4\xff\xff\xff\xff"))
        save("store", f"sum-{file}", b"\x01" + change(patch, file, 60, b"\1\x55"))
    for at in range(8, 160, 8):
        for file in (3, 4, 5):
            save("store", f"number-{file}-{at}",
                 b"\2" + change(number, file, at, bytes([(at // 8 % 17) << 2 | 3])))


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--record", action="store_true", help="record streams from qemu-system-x86_64")
    a = p.parse_args()
    qstream(a.record)
    return_path()
    wire()
    batch()
    pipelines()
    session_dest()
    session_source()
    qmp()
    control()
    text()
    peers()
    store()


if __name__ == "__main__":
    main()
