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
    yield 40, le(1 << 20, 8)
    yield 41, le(2, 4) + (le(1, 4) + le(7, 8) + le(3, 8)) * 2
    yield 42, ID + ROOT
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
                                ("delta-moved", old + run(6, 1) + b"\0\0", 1 | 16 | 32 | 64),
                                ("shifted", run(7, 2, named=True) + b"\0\1" + old, 1 | 32 | 64),
                                ("shifted-not-agreed", run(7, 1) + b"\0\1", 1 | 32),
                                ("shifted-outside", run(7, 2) + b"\0\x7f", 1 | 32 | 64)):
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


def returning_stream(touched=(), shift=0, grown=False):
    """A VM whose pages the hosts of hosts.c hold, but for some, and some that have changed a bit; all
    may have moved, and come twice. `grown`: where nothing was there is what has moved, and changed."""
    def ram(offset, content, name=None):
        return streams.record_head(0x08, offset, name) + content
    out = streams.config("versatilepb", 10) + streams.command(1) + streams.start(1, 2, "ram", 4)
    out += be(24 * 1024 | 4, 8) + str8("pc.ram") + be(20 * 1024, 8)
    out += str8("vga.vram") + be(4 * 1024, 8) + be(0x10, 8) + streams.footer(2) + streams.part(2, 2)
    for i in [*range(16)] * (2 if shift else 1):
        page = (i + shift) % 16
        version = 9 if page == 3 else 2 if page % 5 == 0 else 1
        content = (touched_page if i in touched else known_page)(page, version)
        out += ram(i * 1024, content, None if i else "pc.ram")
    if grown:
        for i, content in enumerate((known_page(8, 1), touched_page(9, 1), touched_page(10, 2))):
            out += ram((16 + i) * 1024, content)
        return out + be(0x10, 8) + streams.footer(2) + streams.TAIL
    out += streams.zero(16 * 1024) + ram(17 * 1024, bytes(1024)) + be(0x10, 8) + streams.footer(2)
    out += streams.part(3, 2) + ram(1024, known_page(101, 7), "vga.vram") + be(0x10, 8)
    return out + streams.footer(2) + streams.TAIL


def short_stream():
    """The same VM with two pages that the hosts do not hold and one that they do; without its end."""
    out = streams.config("versatilepb", 10) + streams.command(1) + streams.start(1, 2, "ram", 4)
    out += be(24 * 1024 | 4, 8) + str8("pc.ram") + be(20 * 1024, 8) + str8("vga.vram") + be(4 * 1024, 8)
    out += be(0x10, 8) + streams.footer(2) + streams.part(2, 2)
    for i, version in enumerate((2, 9, 3)):
        out += streams.record_head(0x08, i * 1024, None if i else "pc.ram") + known_page(i, version)
    for i in range(3, 20):
        out += streams.zero(i * 1024)
    for i in range(4):
        out += streams.zero(i * 1024, None if i else "vga.vram")
    return out + be(0x10, 8) + streams.footer(2)


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
        for what in 0, 4:
            save("pipelines", f"shifted-{base | what}", bytes([base | what | 8]) +
                 returning_stream(range(16), 3, grown=True))
            save("pipelines", f"moved-{base | what}", bytes([base | what | 8]) + returning_stream(shift=3))
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
REKEYING, REKEYED, READY = 40, 41, 42


def heard(kind):
    """Waits for such a frame."""
    return 0, bytes([kind])


# Elements that are no frames, and the bit for channel 1 (peer.h).
BYTES, QEMU, AGAIN, CANCEL, ACKS, SIDE = 0x7F, 0x7E, 0x7D, 0x7C, 0x7B, 0x80
# QEMU's moments and actions (qemu.h).
COMMANDS = ("qmp_capabilities", "query-uuid", "query-status", "query-migrate", "query-migrate-capabilities",
            "migrate-set-capabilities", "query-migrate-parameters", "migrate-set-parameters", "stop", "cont",
            "getfd", "migrate", "migrate-incoming", "migrate-recover", "migrate-start-postcopy",
            "migrate_cancel", "greets", "let go", "shut", "connected", "side", "now")
ACTIONS = ("error", "say", "status", "state", "go", "answer and go", "return", "end stream", "idle", "event",
           "stream", "send side", "end side")
OTHER_VM = '{"UUID": "4d3b1c9e-52a0-4c57-8f2e-7b9d1f0a6e33"}'


def qemu(*steps):
    """More of QEMU's script: moment, action, and its text; those for the same moment are done together."""
    out = b""
    for i, (moment, action, *text) in enumerate(steps):
        more = any(later[0] == moment for later in steps[i + 1:]) << 7 if moment != "now" else 0
        text = text[0].encode("latin-1") if text and isinstance(text[0], str) else b"".join(text)
        out += bytes([COMMANDS.index(moment), ACTIONS.index(action) | more]) + le(len(text), 2) + text
    return QEMU, out


def sealed(runs, flags=0, kind=BATCH):
    return kind, bytes([flags]) + le(len(runs), 2) + runs + bytes(range(1, 60))


def session_dest_modes():
    """The modes in which the destination drives its QEMU, and what is left of them."""
    driven, word, postcopy, recover, preempt = ((OPEN, bytes([n])) for n in (2, 3, 4, 5, 6))
    opaque, after = sealed(run(1, 40)), sealed(run(1, 7))
    pages = sealed(run(1, 9) + run(4, 3, named=True) + run(3, 4) + run(5, 2))
    first, side = (BATCH | SIDE, b"\0\0\0"), sealed(run(1, 500), kind=BATCH | SIDE)
    packed, side_ack, side_eof = sealed(run(1, 2000), 2, BATCH | SIDE), heard(ACK | SIDE), EOF | SIDE
    said, end = heard(WORD_DONE), (EOF, heard(COMMITTED), COMMITTED, CLOSE)
    has_come, suspend, abandon = heard(RETURN), (WORD, b"\3"), (WORD, b"\2")
    settle, ask_again = (HELLO, word, WORD, said), (AGAIN, HELLO, word, WORD, said)
    switched = qemu(("connected", "status", "postcopy-active"))
    arrives = (HELLO, driven, START, opaque, BLOCKS_, pages, has_come)
    runs_on = (HELLO, postcopy, START, opaque, BLOCKS_, pages, heard(ACK), WORD, said)

    def save_(name, *parts, options=33, answer=b""):
        save("session_dest", name, bytes([options, len(answer)]) + answer + elements(*parts))
    for store in 0, 1:
        save_(f"driven-{store}", *arrives, WORD, said, *end, options=32 | store)
        save_(f"preempt-{store}", switched, HELLO, preempt, START, opaque, BLOCKS_, pages, first, side_ack,
              heard(ACK), WORD, said, side, packed, side_ack, side_ack, side_eof, after, *end, options=32 | store)
    rekey = (HELLO, (OPEN, b"\7"), heard(ACCEPT), START)
    agree = (heard(READY), READY)
    for options, name in (5, "rekey"), (21, "rekey-damaged"), (1, "rekey-without-base"), (4, "rekey-without-store"):
        save_(name, *rekey, REKEYING, REKEYED, *agree, heard(COMMITTED), COMMITTED, CLOSE, AGAIN, *rekey,
              options=options)
    save_("rekey-outside", *rekey, (REKEYED, le(1, 4) + le(0, 4) + le(1 << 63, 8) + le(1 << 63, 8)), options=5)
    save_("rekey-nothing-dropped", *rekey, (REKEYED, le(0, 4)), *agree, COMMITTED, CLOSE, options=5)
    save_("rekey-other-root", *rekey, REKEYED, heard(READY), (READY, ID + ROOT), options=5)
    save_("rekey-too-early", *rekey, COMMITTED, READY, options=5)
    save_("rekey-batch", *rekey, BLOCKS_, opaque, options=5)
    save_("rekey-cancel", *rekey, CANCEL, options=5)
    save_("driven-suspend", *arrives, suspend, said, *end)
    save_("driven-abandon", *arrives, abandon, *ask_again)
    save_("driven-early-word", HELLO, driven, START, WORD, options=1)
    save_("driven-failed", HELLO, driven, START, opaque, has_come, WORD, options=1, answer=rp(1, be(1, 4)))
    save_("driven-no-word", *arrives, *ask_again, *ask_again)
    save_("driven-no-word-abandon", *arrives, AGAIN, HELLO, word, abandon, said, *ask_again)
    save_("driven-no-word-runs", *arrives, AGAIN, qemu(("now", "state", "running")), HELLO, word, abandon, said,
          *ask_again)
    save_("driven-no-word-gone-on", *arrives, AGAIN, qemu(("query-status", "state", "shutdown")), *settle)
    save_("driven-no-word-other", *arrives, AGAIN, qemu(("query-uuid", "return", OTHER_VM)), *settle)
    save_("driven-other-vm", qemu(("query-uuid", "return", OTHER_VM)), HELLO, driven)
    save_("driven-other-word", *arrives, (WORD, b"\1" + ID), heard(ERROR))
    save_("driven-cancelled", HELLO, driven, START, opaque, heard(ACK), CANCEL, heard(ERROR), options=1)
    save_("driven-cancelled-early", HELLO, CANCEL, options=1)
    save_("driven-no-lineage", HELLO, (OPEN, b"\x82"), START, opaque, BLOCKS_, pages, has_come, WORD, said, *end)
    save_("driven-word-twice", *arrives, WORD, said, *end, *ask_again, AGAIN, HELLO, word, abandon, said)
    for ended in 0, 128:
        save_(f"driven-died-{ended}", qemu(("cont", "go")), *arrives, WORD, said, *ask_again, options=33 | ended)
        save_(f"driven-died-running-{ended}", qemu(("cont", "event", "RESUME"), ("cont", "go")), *arrives, WORD,
              said, *ask_again, options=33 | ended)
    save_("driven-no-cont", qemu(("cont", "error", "no")), *arrives, WORD, said, *ask_again)
    save_("driven-leaves", *arrives, EOF, WORD, said, heard(COMMITTED), COMMITTED, CLOSE, options=97)
    for moment, *what in (("query-uuid", "return", '{"UUID": ""}'), ("query-status", "state", "running"),
                          ("query-migrate-capabilities", "return", "[]"), ("getfd", "error", "no"),
                          ("migrate-set-capabilities", "error", "a\nb"), ("stop", "go"), ("greets", "say", "{}"),
                          ("migrate-incoming", "error", "no"),
                          ("connected", "end stream"), ("qmp_capabilities", "say", '{"error": {}}')):
        save_(f"driven-{moment}-{what[0].replace(' ', '-')}", qemu((moment, *what)), HELLO, driven, START, opaque,
              heard(FAILED), options=1)
    save_("driven-name", HELLO, (OPEN, ID + ID + b"\2" + str8("a\nb") + bytes(6)), heard(ERROR))
    save_("driven-refused", HELLO, (OPEN, ID + ID + b"\2" + str8("-vm") + bytes(6)), heard(ERROR))
    save_("word-unknown", *settle, options=0)
    save_("word-left", HELLO, (OPEN, b"\3"), (WORD, b"\1" + bytes(16)))
    save_("postcopy", switched, *runs_on, after, *end)
    save_("postcopy-early-word", HELLO, postcopy, START, WORD)
    save_("postcopy-cut", *runs_on, after, heard(ACK), AGAIN, qemu(("connected", "stream", rp(1, be(0, 4)))),
          HELLO, recover, START, opaque, heard(ACK), has_come, suspend, said, after, *end, options=1)
    save_("postcopy-cut-twice", *runs_on, AGAIN, HELLO, recover, START, opaque, first, side, side_ack, AGAIN, HELLO,
          qemu(("side", "stream", rp(1, be(0, 4)))), recover, START, opaque, first, has_come, has_come, suspend, said,
          side_eof, *end, options=1, answer=rp(7, b""))
    save_("postcopy-cut-before-word", switched, HELLO, postcopy, START, opaque, heard(ACK), AGAIN, HELLO, recover,
          START, opaque, has_come, WORD, said, *end)
    save_("postcopy-cut-and-not-recovered", switched, HELLO, postcopy, START, opaque, heard(ACK), AGAIN, HELLO, recover,
          START, AGAIN, HELLO, recover, START, opaque, has_come, WORD, said, *end)
    save_("postcopy-cancelled", switched, HELLO, postcopy, START, opaque, heard(ACK), CANCEL, heard(ERROR), AGAIN, HELLO,
          recover, START, opaque, has_come, WORD, said, *end)
    save_("postcopy-cut-then-another", switched, HELLO, postcopy, START, opaque, heard(ACK), AGAIN, HELLO, postcopy,
          AGAIN, HELLO, recover, START, opaque, has_come, WORD, said, *end)
    save_("postcopy-busy", qemu(("query-migrate", "error", "no")), HELLO, postcopy, START, opaque, heard(ACK),
          AGAIN, *settle)
    save_("recover-refused", qemu(("migrate-recover", "error", "no")), HELLO, recover, START, opaque, heard(FAILED))
    save_("preempt-proxied", HELLO, OPEN, START, opaque, first, side, side_ack, side_ack, side_eof, after, *end)
    save_("preempt-closed", switched, qemu(("side", "end stream")), HELLO, preempt, START, opaque, first, side_ack,
          side, heard(FAILED), options=1)
    for options in 1, 33:
        save_(f"preempt-side-closed-{options}", switched, qemu(("side", "end side")), HELLO, preempt, START, opaque,
              first, side_ack, heard(FAILED), options=options)
    save_("preempt-side-closed-later", switched, HELLO, preempt, START, opaque, first, side, side_ack, side_ack,
          qemu(("now", "end side")), side, heard(FAILED), options=1)
    save_("preempt-order", HELLO, preempt, START, opaque, first,
          (BYTES, le(50, 4) + b"\x11\0\1\0" + le(9, 8) + bytes(8) + le(1, 4) + le(1, 4) + le(2, 4) + bytes(20) +
           run(1, 1)), heard(ERROR), options=1)
    save_("preempt-none", HELLO, driven, START, opaque, first, heard(FAILED))
    save_("preempt-unsealed", HELLO, preempt, START, opaque, first, sealed(run(1, 5), 4, BATCH | SIDE), heard(ERROR))
    save_("preempt-pages", HELLO, preempt, START, opaque, BLOCKS_, sealed(run(4, 1), 0, BATCH | SIDE),
          heard(ERROR))
    save_("preempt-empty", HELLO, preempt, START, opaque, first, first, heard(ERROR))
    save_("preempt-ended", HELLO, preempt, START, opaque, first, side_eof, side, heard(ERROR))
    save_("preempt-unopened", HELLO, preempt, START, side_eof, heard(ERROR))
    save_("channel-2", HELLO, preempt, START, (BYTES, le(0, 4) + b"\x12\0\2\0"), heard(ERROR))
    save_("channel-64", HELLO, preempt, START, (BYTES, le(0, 4) + b"\x12\0\x40\0"), heard(ERROR))


def session_dest():
    begin = (HELLO, OPEN, START)
    opaque = sealed(run(1, 40))
    some = sealed(run(1, 9) + run(4, 3, named=True) + run(3, 4) + run(5, 2) + run(3, 1, as_page=True))
    same = sealed(run(2, 4, named=True) + run(2, 2, page=2))
    moved = sealed(run(6, 3, named=True) + varint(0) + varint(6) + run(2, 2) + run(6, 1) + varint(0) +
                   varint(15))
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
        save("session_dest", f"moved-{base}", bytes([options, 0]) +
             elements(*begin, BLOCKS_, moved, some, *end))
        save("session_dest", f"moved-repair-{base}", bytes([options | 16, 0]) +
             elements(*begin, BLOCKS_, moved, heard(REPAIR), REPAIRED, some, *end))
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
            ("shifted", 0, (changed(8, run(7, 2, named=True, page=16) + varint(0) + varint(0) +
                                    run(7, 1) + varint(0) + varint(4)), same, some, *end)),
            ("shifted-from-nothing", 0, (sealed(run(7, 1) + varint(0) + varint(18), 8), heard(ERROR))),
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
    session_dest_modes()


def session_source_modes():
    """The modes in which the source drives its QEMU, its second connection, and what is left of them."""
    side, driven, postcopy, preempt, recover, settle, suspend = (n << 4 for n in range(1, 8))
    body, tail = short_stream(), streams.TAIL
    stream = body + tail
    package = streams.command(4) + streams.command(5)
    rest = streams.command(7, be(len(package), 4)) + package + streams.part(3, 2) + be(0x10, 8) + streams.footer(2)
    again = b"QEVM\0\0\0\3" + streams.command(9) + tail
    said, word, batch = heard(WORD), WORD_DONE, heard(BATCH)
    never_ran, failed = (WORD_DONE, b"\x1f"), (RETURN, rp(1, be(1, 4)))
    bitmap, side_batch = (RETURN, rp(6, be(1, 4))), heard(BATCH | SIDE)
    end = (heard(EOF), EOF, heard(COMMITTED), COMMITTED, CLOSE)
    arrives = (HELLO, ACCEPT, ACKS, batch, RETURN)
    switches = qemu(("migrate-start-postcopy", "stream", rest + tail))
    asks = qemu(("migrate-start-postcopy", "send side", bytes(300)), ("migrate-start-postcopy", "stream", rest + tail))
    switched = (switches, HELLO, ACCEPT, ACKS, said)

    def save_(name, options, data, *parts):
        save("session_source", name, bytes([options]) + le(len(data), 2) + data + elements(*parts))
    for store in 0, 1:
        save_(f"driven-{store}", driven | store, stream, *arrives, said, word, *end)
        save_(f"suspend-{store}", suspend | store | store << 2, stream, *arrives, said, word, *end)
    save_("driven-never-ran", driven | 1, stream, *arrives, said, never_ran, heard(ERROR))
    save_("driven-never-ran-no-cont", driven | 1, stream, qemu(("cont", "error", "no")), *arrives, said, never_ran)
    save_("driven-no-answer", driven | 1, stream, *arrives, said)
    save_("driven-other-answer", driven | 1, stream, *arrives, said, (WORD_DONE, b"\x3d"))
    save_("driven-failed", driven | 1, stream, HELLO, ACCEPT, batch, failed, heard(WORD))
    save_("driven-dest-failed", driven | 1, stream, HELLO, ACCEPT, batch, (FAILED, le(31, 4) + str8("no")), heard(WORD))
    save_("driven-cut", driven | 1, stream, HELLO, ACCEPT, batch)
    save_("driven-cancelled", driven | 1, stream, HELLO, ACCEPT, batch, CANCEL, heard(WORD))
    save_("driven-cancelled-early", driven | 1, stream, HELLO, CANCEL)
    save_("preempt-cancelled", preempt | 1, stream, qemu(("migrate", "idle"), ("query-migrate", "idle")), HELLO,
          CANCEL, ACCEPT)
    save_("proxy-cancelled", 1, body, HELLO, ACCEPT, batch, CANCEL)
    save_("postcopy-cancelled", postcopy | 1, body, *switched, word, CANCEL)
    save_("settle-cancelled", settle, b"", HELLO, said, CANCEL)
    save_("driven-paused", driven | 1, stream, qemu(("query-status", "idle"), ("now", "event", "STOP"),
                                                    ("connected", "event", "RESUME")), *arrives, said, word, *end)
    save_("driven-user-paused", driven | 1, stream, qemu(("connected", "event", "STOP")),
          qemu(("query-status", "state", "running")), qemu(("query-status", "state", "paused")),
          *arrives, said, word, *end)
    for ended in 0, 128:
        gone = qemu(("query-migrate", "idle"), ("getfd", "idle"))
        save_(f"driven-gone-{ended}", driven | 1 | ended, stream, gone, HELLO, ACCEPT, ACKS, batch, qemu(("now", "go")),
              RETURN, said, word, *end)
        save_(f"driven-gone-running-{ended}", driven | 1 | ended, b"", qemu(("connected", "stream", stream[:900])),
              HELLO, ACCEPT, batch, qemu(("now", "go")), heard(WORD))
        save_(f"postcopy-gone-{ended}", postcopy | 1 | ended, body, *switched, word, qemu(("now", "go")), heard(EOF))
        save_(f"preempt-gone-{ended}", preempt | 1 | ended, body, qemu(("migrate", "go")), HELLO, ACCEPT, heard(ERROR))
    for moment, *what in (("query-uuid", "return", '{"UUID": "00000000-0000-0000-0000-000000000000"}'),
                          ("query-status", "state", "paused"), ("query-migrate", "status", "active"),
                          ("query-migrate", "status", "postcopy-active"), ("getfd", "error", "no"),
                          ("query-migrate-capabilities", "return", "[]"), ("migrate", "error", "no"),
                          ("migrate-set-parameters", "error", "no"), ("query-migrate-parameters", "go")):
        save_(f"driven-{moment}-{what[0].replace(' ', '-')}-{len(what[-1])}", driven | 1, stream,
              qemu((moment, *what)), HELLO, ACCEPT, heard(ERROR))
    for how in "cancelled", "failed", "postcopy-paused", "completed":
        save_(f"driven-is-{how}", driven | 1, stream, qemu(("connected", "status", how)), HELLO, ACCEPT, ACKS, batch,
              said, word)
    save_("postcopy", postcopy | 1, body, *switched, word, RETURN, *end)
    save_("postcopy-cut", postcopy | 1, body, *switched, word)
    save_("postcopy-no-answer", postcopy | 1, body, *switched)
    save_("postcopy-never-ran", postcopy | 1, body, *switched, never_ran)
    save_("postcopy-cut-before-word", postcopy | 1, body, switches, HELLO, ACCEPT, batch)
    save_("postcopy-failed-later", postcopy | 1, body, *switched, word, qemu(("query-migrate", "status", "failed")),
          heard(WORD))
    save_("postcopy-device", postcopy | 1, body, qemu(("migrate-start-postcopy", "idle"), (
        "migrate-start-postcopy", "status", "postcopy-device")), HELLO, ACCEPT, batch)
    save_("preempt", preempt | 1, body, asks, HELLO, ACCEPT, ACKS, side_batch, side_batch, said, word, RETURN, *end)
    save_("preempt-refused", preempt | 1, body, qemu(("migrate", "idle")), HELLO, ACCEPT, heard(ERROR))
    save_("preempt-old-peer", preempt | 1, body, (HELLO, b"vecycle\n" + le(1, 2) + le(1, 2) + b"\2\0\0\0" + le(1, 8) +
                                                  str8("old")), ACCEPT, heard(ERROR))
    save_("preempt-bad-ack", preempt | 1, body, asks, HELLO, ACCEPT, side_batch, (ACK | SIDE, le(9, 8) + le(0, 8)),
          heard(ERROR))
    save_("proxy-side", side | 1, stream, qemu(("now", "send side", bytes(200))), HELLO, ACCEPT, ACKS, batch,
          side_batch, side_batch, RETURN, *end)
    save_("proxy-side-old-peer", side | 1, stream, qemu(("now", "send side", bytes(200))),
          (HELLO, b"vecycle\n" + le(1, 2) + le(1, 2) + b"\2\0\0\0" + le(1, 8) + str8("old")), ACCEPT, heard(ERROR))
    save_("proxy-multifd", side | 1, stream, qemu(("now", "send side", be(0x11223344, 4) + bytes(20))), HELLO, ACCEPT,
          side_batch, heard(ERROR))
    for base in 0, 4:
        save_(f"recover-{base}", recover | 1 | base, again, HELLO, ACCEPT, ACKS, batch, bitmap, RETURN, said, word,
              *end)
        save_(f"recover-cancelled-{base}", recover | 1 | base, again, HELLO, ACCEPT, heard(START), CANCEL)
        save_(f"recover-cut-{base}", recover | 1 | base, again, HELLO, ACCEPT, batch, bitmap)
    save_("recover-not-paused", recover | 1, again, qemu(("query-migrate", "status", "active")), heard(OPEN))
    save_("recover-refused", recover | 1, again, qemu(("migrate", "error", "no")), HELLO, ACCEPT, heard(ERROR))
    save_("recover-no-store", recover, again, HELLO, ACCEPT, ACKS, batch, RETURN, said, word, *end)
    for record in range(4):
        options = settle | record << 2
        save_(f"settle-{record}", options, b"", HELLO, said, word)
        save_(f"settle-gone-{record}", options | 128, b"", HELLO, said, word)
        save_(f"settle-runs-{record}", options, b"", qemu(("now", "state", "running")), HELLO, said, word)
        save_(f"settle-unclear-{record}", options, b"", qemu(("now", "state", "paused")), HELLO, said, word)
    save_("settle-never-ran", settle, b"", HELLO, said, never_ran)
    save_("settle-other-answer", settle, b"", HELLO, said, (WORD_DONE, b"\x3d"))
    save_("settle-runs-in-both", settle, b"", qemu(("now", "state", "running")), HELLO, said, (WORD_DONE, b"\x3d"))
    save_("settle-gone-never-ran", settle | 128, b"", HELLO, said, never_ran)
    save_("settle-no-answer", settle, b"", qemu(("greets", "idle")), HELLO, said, word)
    save_("settle-other-vm", settle, b"", qemu(("query-uuid", "return", OTHER_VM)), HELLO, said, never_ran)
    save_("settle-leaving-other-vm", settle | 4, b"", qemu(("query-migrate", "status", "failed")), HELLO, said, word)


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
    session_source_modes()


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
