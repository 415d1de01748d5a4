#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes tests/vectors/wire: golden frames, good and bad, and their manifest (tests/support/vcvectors.py
describes it). Each vector says what is expected of it; the decoder in Python has to agree. Run it
after docs/formats/wire.md has changed, and look at the difference."""
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import vcvectors as v  # noqa: E402
import zstandard  # noqa: E402
from vcbatch import (DATA, DELTA, FEATURE_DELTA, FEATURE_RECENT, FEATURE_SHIFTED, INVALIDATE, MOVED, OPAQUE, RECENT, SAME, SHIFTED, ZERO,  # noqa: E402
                     ZSTD, Batch, Run, encode_batch, encode_runs, old_pages)
from vcdigest import Digest  # noqa: E402
from vcwire import BY_NAME, DEST, SOURCE, encode, frame, varint, zigzag  # noqa: E402

vectors = []


def ident(n):
    return bytes((n + i) % 256 for i in range(16))


def root(n):
    return bytes((n + 3 * i) % 256 for i in range(32))


def add(name, data, verdict="good", sender=None, phase=None, before=b"", features=0):
    kind = next((t for t in BY_NAME.values() if len(data) > 4 and t.number == data[4]), None)
    sender = sender or (kind.senders[0] if kind else SOURCE)
    phase = phase or (kind.phases[0] if kind else "stream")
    found, lines = v.judge(data, sender, phase, before, features)
    assert found == verdict, f"{name}: expected {verdict}, found {found} {lines}"
    assert name not in [x["name"] for x in vectors], name
    vectors.append(dict(name=name, data=data, sender=sender, phase=phase, before=before,
                        features=features, verdict=verdict, lines=lines))


def good(name, kind, /, sender=None, phase=None, **fields):
    add(name, frame(kind, encode(kind, fields)), "good", sender, phase)


def bad(name, kind, payload, stage="message", code="PROTOCOL", **kw):
    add(name, frame(kind, payload), f"bad {code} {stage}", **kw)


# ---- frames ----

def frames():
    ping = struct.pack("<Q", 7)
    add("frame-unknown-optional", struct.pack("<IBBH", 3, 99, 1, 0) + b"xyz", "skip")
    add("frame-known-optional", frame("PING", ping, flags=1))
    add("frame-channel-63", frame("ACK", bytes(16), channel=63))
    add("frame-channel-1-eof", frame("EOF", channel=1), sender=SOURCE)
    wrong = "bad PROTOCOL frame"
    add("frame-unknown-type", struct.pack("<IBBH", 0, 99, 0, 0), wrong)
    add("frame-unknown-optional-too-long", struct.pack("<IBBH", (9 << 20) + 1, 99, 1, 0), wrong)
    add("frame-type-0", struct.pack("<IBBH", 0, 0, 0, 0), wrong)
    add("frame-unknown-flag", frame("PING", ping, flags=2), wrong)
    add("frame-channel-64", frame("ACK", bytes(16), channel=64), wrong)
    add("frame-channel-1-eof-from-destination", frame("EOF", channel=1), wrong, sender=DEST)
    for t in BY_NAME.values():
        if not t.side:
            add(f"frame-channel-1-{t.name.lower()}", frame(t.name, bytes(t.least), channel=1), wrong)
    add("frame-wrong-sender", frame("ACK", bytes(16)), wrong, sender=SOURCE)
    add("frame-wrong-sender-batch", frame("BATCH", bytes(48)), wrong, sender=DEST)
    add("frame-hello-twice", frame("HELLO", bytes(25)), wrong, phase="open")
    add("frame-batch-before-start", frame("BATCH", bytes(48)), wrong, phase="open")
    add("frame-ping-before-hello", frame("PING", ping), wrong, phase="hello")
    add("frame-open-in-stream", frame("OPEN", bytes(40)), wrong, phase="stream")
    for t in BY_NAME.values():
        if t.least:
            add(f"frame-short-{t.name.lower()}", frame(t.name, bytes(t.least - 1)), wrong)
        # The length alone condemns it: the payload is not there.
        header = struct.pack("<IBBH", t.most + 1, t.number, 0, 0)
        add(f"frame-long-{t.name.lower()}", header, wrong)


# ---- messages ----

HELLO = dict(low=1, high=1, role=1, security=1, features=1, software=b"vecycle 0.1.0")
OPEN = dict(session=ident(0x10), vm=ident(0x20), mode=2, name=b"web", window=24 << 20, has_lineage=True,
            lineage=ident(0x30), algorithm=1, lineage_flags=0,
            generations=[(ident(0x40), root(1)), (ident(0x50), root(2))])
ACCEPT = dict(base_kind=2, generation=ident(0x40), has_lineage=True, lineage=ident(0x31), algorithm=1,
              lineage_flags=1, key=root(3), needs_key=False, max_stream=4 << 20)
START = dict(lineage=ident(0x30), algorithm=1, lineage_flags=0, base_kind=1, has_key=True,
             key=root(4), generation=ident(0x60))


def changed(fields, **changes):
    return {**fields, **changes}


def hello():
    good("hello-source", "HELLO", **HELLO)
    good("hello-destination", "HELLO", sender=DEST, **changed(HELLO, role=2, security=0, features=7))
    good("hello-versions", "HELLO", **changed(HELLO, low=1, high=3, software=b""))
    add("hello-longer", frame("HELLO", encode("HELLO", HELLO) + b"of a later version"))
    payload = bytearray(encode("HELLO", HELLO))
    payload[14:16] = b"\x34\x12"
    add("hello-reserved-used", frame("HELLO", payload))
    bad("hello-magic", "HELLO", b"SSH-2.0-" + bytes(40))
    bad("hello-role", "HELLO", encode("HELLO", changed(HELLO, role=3)))
    bad("hello-security", "HELLO", encode("HELLO", changed(HELLO, security=3)))
    bad("hello-versions-crossed", "HELLO", encode("HELLO", changed(HELLO, low=2, high=1)))
    bad("hello-text-cut", "HELLO", encode("HELLO", HELLO)[:-1])
    bad("hello-text-nul", "HELLO", encode("HELLO", changed(HELLO, software=b"a\0b")))


def handshake():
    alone = dict(has_lineage=False, generations=[])
    good("open", "OPEN", **OPEN)
    good("open-first", "OPEN", **{k: x for k, x in changed(OPEN, mode=1, name=b"", **alone).items()
                                  if k not in ("lineage", "algorithm", "lineage_flags")})
    good("open-64-generations", "OPEN",
         **changed(OPEN, generations=[(ident(i), root(i)) for i in range(64)]))
    bad("open-65-generations", "OPEN",
        encode("OPEN", changed(OPEN, generations=[(ident(i), root(i)) for i in range(65)])))
    good("open-rekey", "OPEN", **changed(OPEN, mode=7, name=b""))
    recovery = changed(OPEN, mode=5, interrupted=ident(0x70))
    good("open-recover", "OPEN", **recovery)
    bad("open-recover-cut", "OPEN", encode("OPEN", recovery)[:-16])
    bad("open-mode", "OPEN", encode("OPEN", changed(OPEN, mode=8)))
    bad("open-lineage-flags", "OPEN", encode("OPEN", changed(OPEN, lineage_flags=2)))
    bad("open-trailing", "OPEN", encode("OPEN", OPEN) + b"\0")
    bad("open-cut", "OPEN", encode("OPEN", OPEN)[:-1])
    payload = bytearray(encode("OPEN", OPEN))
    payload[16 + 16 + 1 + 4 + 4] = 2
    bad("open-has-lineage-2", "OPEN", payload)

    good("accept", "ACCEPT", **ACCEPT)
    good("accept-nothing", "ACCEPT", base_kind=0, generation=bytes(16), has_lineage=False,
         needs_key=True, max_stream=1 << 20)
    bad("accept-base", "ACCEPT", encode("ACCEPT", changed(ACCEPT, base_kind=3)))
    bad("accept-trailing", "ACCEPT", encode("ACCEPT", ACCEPT) + b"\0")
    bad("accept-cut", "ACCEPT", encode("ACCEPT", ACCEPT)[:-4])
    bad("accept-needs-key-7", "ACCEPT", encode("ACCEPT", changed(ACCEPT, needs_key=7)))

    good("start", "START", **START)
    good("start-without-key", "START", **changed(START, base_kind=0, has_key=False, key=bytes(32)))
    good("start-exposed", "START", **changed(START, lineage_flags=1))
    bad("start-base", "START", encode("START", changed(START, base_kind=3)))
    bad("start-key-not-there", "START", encode("START", changed(START, has_key=False)))
    bad("start-reserved", "START", encode("START", START)[:-1] + b"\1")
    bad("start-trailing", "START", encode("START", START) + b"\0")


def blocks():
    for kind in "BLOCKS", "ANNOUNCE_BLOCKS":
        n = kind.lower().replace("_", "-")
        good(n, kind, page_size=v.PAGE_SIZE, blocks=v.BLOCKS)
    many = [(f"block-{i}".encode(), 65536 * i) for i in range(256)]
    good("blocks-256", "BLOCKS", page_size=65536, blocks=many)
    good("blocks-largest", "BLOCKS", page_size=4096, blocks=[(b"n" * 255, 64 << 40)])

    def refused(name, page_size=1024, those=v.BLOCKS, extra=b""):
        bad("blocks-" + name, "BLOCKS",
            encode("BLOCKS", dict(page_size=page_size, blocks=those)) + extra)
    refused("page-size-512", 512)
    refused("page-size-128k", 131072)
    refused("page-size-odd", 3072, [(b"pc.ram", 3072 * 4)])
    refused("none", 1024, [], bytes(10))
    refused("257", 1024, many + [(b"one more", 0)])
    refused("no-name", 1024, [(b"", 1024), (b"pc.ram", 1024)])
    refused("nul-in-name", 1024, [(b"a\0b", 1024)])
    refused("twice", 1024, [(b"pc.ram", 1024), (b"pc.ram", 2048)])
    refused("half-a-page", 1024, [(b"pc.ram", 1536)])
    refused("above-64-tib", 4096, [(b"pc.ram", (64 << 40) + 4096)])
    refused("trailing", extra=b"\0")
    bad("blocks-cut", "BLOCKS", encode("BLOCKS", dict(page_size=1024, blocks=v.BLOCKS))[:-1])


def stream():
    good("eof-source", "EOF", sender=SOURCE)
    good("eof-destination", "EOF", sender=DEST)
    good("ack", "ACK", sequence=(1 << 64) - 1, position=1 << 40)
    good("repair", "REPAIR", sequence=5, ordinals=[0, 1, 7, 65535, (1 << 32) - 1])
    bad("repair-count-0", "REPAIR", struct.pack("<QII", 5, 0, 0))
    bad("repair-count-more", "REPAIR", struct.pack("<QII", 5, 2, 0))
    bad("repair-count-less", "REPAIR", struct.pack("<QIII", 5, 1, 0, 0))
    bad("repair-count-huge", "REPAIR", struct.pack("<QII", 5, 0xffffffff, 0))
    pages = [(i * i, v.base_page(b"vga", i)) for i in range(3)]
    good("repaired", "REPAIRED", sequence=5, pages=pages)
    payload = encode("REPAIRED", dict(sequence=5, pages=pages))
    bad("repaired-trailing", "REPAIRED", payload + b"\0")
    bad("repaired-cut", "REPAIRED", payload[:-1])
    bad("repaired-count-0", "REPAIRED", payload[:8] + bytes(4) + payload[12:])
    bad("repaired-count-65", "REPAIRED", struct.pack("<QI", 5, 65) + bytes(4 + v.PAGE_SIZE))
    good("resend", "RESEND", sequence=9)
    good("return", "RETURN", data=bytes.fromhex("00010004000000 00".replace(" ", "")))
    good("credit", "CREDIT", bytes=1 << 20)
    good("stream-failed", "STREAM_FAILED", sender=DEST, code=31, text=b"QEMU hung up")
    good("reads", "READS", elapsed=7 << 32, waiting=1 << 30, reading=3 << 32, bytes=1 << 34,
         content=(1 << 64) - 1)
    for flags in range(4):
        good(f"keeps-{flags}", "KEEPS", flags=flags)
    for flags in 4, 0x81:
        bad(f"keeps-unknown-{flags}", "KEEPS", bytes([flags]))


def announce():
    held = [bytes([i]) * 8 for i in range(5)]
    good("announce", "ANNOUNCE", block=0, page=8, runs=[(0, 4, []), (2, 5, held), (1, 47, [])])
    good("announce-other-block", "ANNOUNCE", block=1, page=15, runs=[(1, 1, [])])
    good("announce-end", "ANNOUNCE_END")

    def refused(name, block, page, tail):
        bad("announce-" + name, "ANNOUNCE", struct.pack("<IQ", block, page) + tail)
    refused("no-such-block", 3, 0, b"\1\1")
    refused("outside", 0, 60, b"\1\5")
    refused("outside-by-page", 0, 65, b"\1\1")
    refused("outside-by-wrap", 0, (1 << 64) - 1, b"\1\2")
    refused("outside-second-run", 0, 0, b"\1\x40\1\1")
    refused("kind", 0, 0, b"\3\1")
    refused("count-0", 0, 0, b"\1\0")
    refused("prefixes-missing", 0, 0, b"\2\2" + bytes(15))
    refused("run-cut", 0, 0, b"\1\1\1")
    refused("varint-padded", 0, 0, b"\1\x81\0")


def rekeying():
    good("rekeying", "REKEYING", done=1 << 40)
    good("rekeying-destination", "REKEYING", sender=DEST, done=0)
    good("rekeyed", "REKEYED", ranges=[(0, 8, 4), (255, 1 << 34, (1 << 64) - 1)])
    good("rekeyed-nothing", "REKEYED", sender=DEST, ranges=[])
    ranges = [(i % 7, 3 * i, 1) for i in range(60)]
    good("rekeyed-many", "REKEYED", ranges=ranges)
    payload = encode("REKEYED", dict(ranges=ranges))
    bad("rekeyed-trailing", "REKEYED", payload + b"\0")
    bad("rekeyed-cut", "REKEYED", payload[:-1])
    bad("rekeyed-count-0", "REKEYED", encode("REKEYED", dict(ranges=[(0, 8, 0)])))
    bad("rekeyed-1025", "REKEYED", struct.pack("<I", 1025) + bytes(20))
    bad("rekeyed-huge", "REKEYED", struct.pack("<I", 0xffffffff))
    good("ready", "READY", generation=ident(0x61), root=root(6))
    good("ready-destination", "READY", sender=DEST, generation=ident(0x61), root=root(6))


def end():
    done = dict(generation=ident(0x60), committed=True, root=root(5))
    good("committed", "COMMITTED", **done)
    good("committed-not", "COMMITTED", sender=DEST, phase="end",
         generation=ident(0x60), committed=False, root=bytes(32))
    payload = bytearray(encode("COMMITTED", done))
    payload[20] = 1
    bad("committed-reserved", "COMMITTED", payload)
    payload = bytearray(encode("COMMITTED", done))
    payload[16] = 2
    bad("committed-2", "COMMITTED", payload)
    for word in 1, 2, 3, 12, 24:
        good(f"word-{word}", "WORD", word=word, session=ident(0x10))
    bad("word-0", "WORD", encode("WORD", dict(word=0, session=ident(0x10))))
    for word in 4, 5, 8, 25:
        bad(f"word-{word}", "WORD", encode("WORD", dict(word=word, session=ident(0x10))))
    good("word-done", "WORD_DONE", code=0, text=b"")
    good("word-done-refused", "WORD_DONE", phase="end", code=12, text=b"the VM is not paused")
    good("never-ran", "NEVER_RAN", code=31, text=b"the destination QEMU died before the VM ran")
    bad("never-ran-cut", "NEVER_RAN", struct.pack("<IB", 31, 9) + b"short")
    good("close", "CLOSE")
    good("close-end", "CLOSE", sender=DEST, phase="end")
    good("ping", "PING", token=1)
    good("pong", "PONG", sender=DEST, phase="end", token=(1 << 64) - 1)
    good("error", "ERROR", code=24, text=b"'x' may not migrate here\nask its owner")
    good("error-in-hello", "ERROR", sender=DEST, phase="hello", code=21, text=b"a" * 255)
    bad("error-cut", "ERROR", struct.pack("<IB", 1, 9) + b"short")
    bad("error-trailing", "ERROR", struct.pack("<IB", 1, 1) + b"ab")
    bad("error-nul", "ERROR", struct.pack("<IB", 1, 3) + b"a\0b")


# ---- batches ----

def pages_of(seed, n):
    """n pages that compress, none of zeroes."""
    return b"".join(bytes((seed + k) % 255 + 1 for _ in range(v.PAGE_SIZE)) for k in range(n))


def batch(runs, sequence=1, position=0, codec=0, self_contained=False, before=b""):
    b = Batch(sequence, position, 0, bytes(16), runs, codec, self_contained)
    b.stream_bytes = sum(r.stream_bytes(v.BLOCKS, v.PAGE_SIZE) for r in runs)
    b.seal = v.seal_of(b, before)
    return b


EVERYTHING = [
    Run(OPAQUE, 23, content=b"section and its payload"),
    Run(SAME, 3, 0, 4, named=True),
    Run(ZERO, 5, 0, 7),
    Run(ZERO, 2, 0, 20, as_page=True),
    Run(DATA, 2, 0, 0, content=pages_of(10, 2)),
    Run(INVALIDATE, 6, 1, 3),
    Run(SAME, 1, 1, 15, named=True),
    Run(ZERO, 1, 0, 63, named=True),
    Run(DATA, 1, 0, 2, content=pages_of(20, 1)),
    Run(OPAQUE, 1, content=b"\x7e"),
]


def batches():
    seal, position = b"", 0
    chain = [
        ("opaque", [Run(OPAQUE, 11, content=b"QEVM and on")], 0, False),
        ("empty", [], 0, False),
        ("same", [Run(SAME, 3, 0, 61, named=True)], 0, False),
        ("zero", [Run(ZERO, 64, 0, 0, named=True)], 0, False),
        ("zero-as-page", [Run(ZERO, 2, 1, 14, named=True, as_page=True)], 0, False),
        ("data", [Run(DATA, 2, 0, 9, named=True, content=pages_of(1, 2))], 0, False),
        ("invalidate", [Run(INVALIDATE, 64, 0, 0), Run(INVALIDATE, 1, 1, 0)], 0, False),
        ("everything", EVERYTHING, 0, False),
        ("everything-zstd", EVERYTHING, 1, False),
        ("self-contained", [Run(DATA, 4, 0, 30, named=True, content=pages_of(77, 4)),
                            Run(ZERO, 2, 0, 34, as_page=True)], 1, True),
        ("back-and-forth", [Run(ZERO, 1, 0, 40, named=True), Run(ZERO, 1, 0, 10), Run(ZERO, 1, 1, 5),
                            Run(ZERO, 1, 1, 4), Run(ZERO, 1, 0, 0)], 0, False),
        ("names-every-time", [Run(ZERO, 1, 0, 1, named=True), Run(ZERO, 1, 0, 2, named=True)], 0,
         False),
        ("not-named", [Run(DATA, 1, 1, 1, content=pages_of(3, 1))], 0, False),
    ]
    for sequence, (name, runs, codec, alone) in enumerate(chain, 1):
        b = batch(runs, sequence, position, codec, alone, seal)
        add("batch-" + name, frame("BATCH", encode_batch(b)), before=seal)
        seal, position = b.seal, position + b.stream_bytes
    b = batch(EVERYTHING[1:2], (1 << 64) - 1, (1 << 64) - 1)
    add("batch-largest-numbers", frame("BATCH", encode_batch(b)))
    b = batch([Run(MOVED, 2, 0, 1, named=True, from_block=1, from_page=14)])
    add("batch-moved", frame("BATCH", encode_batch(b)), features=2)
    bad("batch-moved-not-agreed", "BATCH", encode_batch(b))
    b = batch([Run(SAME, 1, 0, 4, named=True), Run(MOVED, 3, 0, 5, from_block=0, from_page=40),
               Run(MOVED, 1, 0, 8, from_block=0, from_page=4), Run(DATA, 1, 0, 9, content=pages_of(1, 1)),
               Run(MOVED, 1, 1, 2, named=True, from_block=0, from_page=63)], codec=ZSTD)
    add("batch-moved-among-others", frame("BATCH", encode_batch(b)), features=2)
    b = batch([Run(MOVED, 2, 0, 1, named=True, from_block=1, from_page=14)], self_contained=True)
    bad("batch-moved-self-contained", "BATCH", encode_batch(b), features=2)


def touched(n, block, page):
    """n pages of the base generation of which a few bytes have changed."""
    old = [v.base_page(v.BLOCKS[block][0], page + i) for i in range(n)]
    return b"".join(x[:200] + bytes([i + 1]) * 9 + x[209:1000] + b"new" + x[1003:]
                    for i, x in enumerate(old))


def old(count, block, page, named=False):
    return Run(DATA, count, block, page, named=named, old=True, content=touched(count, block, page))


ALL_KINDS = [
    Run(OPAQUE, 23, content=b"section and its payload"),
    Run(SAME, 2, 0, 4, named=True),
    old(2, 0, 28),
    Run(DATA, 1, 0, 30, content=pages_of(50, 1)),
    Run(ZERO, 1, 0, 31),
    Run(ZERO, 1, 0, 32, as_page=True),
    old(1, 0, 52),
    old(1, 1, 10, named=True),
    Run(INVALIDATE, 3, 0, 20),
    old(1, 0, 29, named=True),  # again, so that its old page comes twice
    Run(OPAQUE, 1, content=b"\x7e"),
]


def delta(b, runs=None, **header):
    """The payload, made with the old pages of these runs."""
    return encode_batch(b, prefix=old_pages(runs or b.runs, v.BLOCKS, v.base_page), **header)


def deltas():
    seal, position = b"", 0
    chain = [
        ("page", [old(1, 0, 9, named=True)]),
        ("all-kinds", ALL_KINDS),
        ("dictionary-magic", [old(2, 0, 50, named=True)]),
        ("other-content", [Run(DATA, 1, 1, 0, named=True, old=True, content=pages_of(90, 1))]),
    ]
    for sequence, (name, runs) in enumerate(chain, 1):
        b = batch(runs, sequence, position, DELTA, before=seal)
        payload = delta(b)
        assert name == "all-kinds" or len(payload) < 48 + 200, f"{name}: {len(payload)} bytes"
        add("batch-delta-" + name, frame("BATCH", payload), before=seal, features=FEATURE_DELTA)
        seal, position = b.seal, position + b.stream_bytes
    for name, codec in ("none", 0), ("zstd", ZSTD):  # nothing says that it has to be used
        b = batch(EVERYTHING, codec=codec)
        add("batch-delta-unused-" + name, frame("BATCH", encode_batch(b)), features=FEATURE_DELTA)


def bad_deltas():
    b = batch(ALL_KINDS, codec=DELTA)
    runs, contents = encode_runs(b.runs), b"".join(r.content for r in b.runs)
    whole = len(runs + contents)
    packed = delta(b)[48 + len(runs):]

    def refused(name, payload, verdict="bad PROTOCOL message", features=FEATURE_DELTA):
        add("batch-delta-" + name, frame("BATCH", payload), verdict, features=features)
    refused("not-agreed", delta(b), features=1)
    refused("self-contained", delta(b, flags=1))
    alone = batch([old(1, 0, 9, named=True)], codec=DELTA)
    refused("self-contained-without-same", delta(alone, flags=1))
    for codec in 0, ZSTD:
        plain = batch(alone.runs, codec=codec)
        refused(f"old-in-codec-{codec}", encode_batch(plain))
        refused(f"old-in-codec-{codec}-not-agreed", encode_batch(plain), features=0)
    refused("without-old", delta(batch(EVERYTHING, codec=DELTA), alone.runs))
    refused("of-zeroes-alone", delta(batch([Run(ZERO, 2, 0, 0, as_page=True)], codec=DELTA), alone.runs))
    refused("contents-missing", delta(b, packed=runs))
    refused("contents-empty", delta(b, packed=runs + packed, body_length=len(runs)))
    refused("cut-in-the-runs", delta(b, packed=runs[:-1]))
    refused("runs-more", delta(b, runs_length=len(runs) + 1))
    refused("runs-less", delta(b, runs_length=len(runs) - 1))
    refused("body-more", delta(b, body_length=whole + 1))
    refused("stream-more", delta(b, stream_bytes=b.stream_bytes + 1))

    def frame_refused(name, data, verdict="bad PROTOCOL message"):
        refused("frame-" + name, delta(b, packed=runs + data), verdict)
    for name, data in not_one_frame(packed, contents, "two"):
        frame_refused(name, data)
    everything = zstandard.ZstdCompressor().compress(runs + contents)
    refused("runs-in-the-frame", delta(b, packed=everything))

    # What looks right, and is not: the prefix might be to blame.
    half = len(packed) // 2
    frame_refused("damaged", packed[:half] + b"\xff" * 8 + packed[half + 8:], "bad SEAL seal")
    refused("other-old-pages", delta(b, [old(5, 1, 8)]), "bad SEAL seal")
    refused("fewer-old-pages", delta(b, b.runs[:3]), "bad SEAL seal")
    swapped = [r for r in b.runs if r.block] + [r for r in b.runs if not r.block]
    refused("old-pages-in-another-order", delta(b, swapped), "bad SEAL seal")
    refused("wrong-seal", delta(b, seal=bytes(16)), "bad SEAL seal")


def shifted_run(count, block, page, from_block, from_page, named=False):
    """What it was is there, but for what touched() changes."""
    return Run(SHIFTED, count, block, page, named=named, from_block=from_block, from_page=from_page,
               content=touched(count, from_block, from_page))


def shifted():
    features = FEATURE_DELTA | FEATURE_SHIFTED
    alone = [shifted_run(2, 0, 1, 1, 9, named=True)]
    among = ALL_KINDS[:4] + [shifted_run(1, 0, 31, 0, 2), shifted_run(1, 0, 32, 0, 2), old(1, 0, 33),
                             shifted_run(1, 1, 3, 0, 60, named=True)]
    for name, runs in ("alone", alone), ("among-others", among), (
            "where-it-is", [shifted_run(1, 1, 4, 1, 4, named=True)]):
        b = batch(runs, codec=DELTA)
        payload = delta(b)
        assert name == "among-others" or len(payload) < 48 + 200, f"{name}: {len(payload)} bytes"
        add("batch-shifted-" + name, frame("BATCH", payload), features=features)
    b = batch(alone, codec=DELTA)

    def refused(name, payload, verdict="bad PROTOCOL message", features=features):
        add("batch-shifted-" + name, frame("BATCH", payload), verdict, features=features)
    refused("not-agreed", delta(b), features=FEATURE_DELTA)
    refused("without-delta", delta(b), features=FEATURE_SHIFTED)
    refused("self-contained", delta(b, flags=1))
    for name, codec in ("none", 0), ("zstd", ZSTD):
        refused("in-codec-" + name, encode_batch(batch(alone, codec=codec)))
    refused("in-codec-recent", delta(batch(alone + [old(1, 0, 40)], codec=RECENT)),
            features=features | FEATURE_RECENT)
    refused("from-another-place", delta(b, [shifted_run(2, 0, 1, 1, 8)]), "bad SEAL seal")


BOTH = FEATURE_DELTA | FEATURE_RECENT


def recent():
    """The judges know nothing of batches before: an old page is the base's."""
    for name, runs in ("page", [old(1, 0, 9, named=True)]), ("all-kinds", ALL_KINDS):
        b = batch(runs, 1, 0, RECENT)
        add("batch-recent-" + name, frame("BATCH", delta(b)), features=BOTH)
    b = batch(ALL_KINDS, 7, 5000, RECENT)
    b.after = 6
    add("batch-recent-after-the-last", frame("BATCH", delta(b)), features=BOTH)
    runs, packed = encode_runs(b.runs), delta(b)[48 + len(encode_runs(b.runs)) + 8:]

    def refused(name, payload, verdict="bad PROTOCOL message", features=BOTH):
        add("batch-recent-" + name, frame("BATCH", payload), verdict, features=features)
    refused("not-agreed", delta(b), features=FEATURE_DELTA)
    refused("without-delta", delta(b), features=FEATURE_RECENT)
    refused("self-contained", delta(b, flags=1))
    refused("without-old", delta(batch(EVERYTHING, codec=RECENT), [old(1, 0, 9)]))
    refused("without-after", delta(b, packed=runs + packed))
    refused("cut-in-after", delta(b, packed=runs + struct.pack("<Q", 6)[:7]))
    refused("contents-missing", delta(b, packed=runs + struct.pack("<Q", 6)))
    refused("frame-trailing", delta(b, packed=runs + struct.pack("<Q", 6) + packed + b"\0"))
    refused("body-with-after", delta(b, body_length=len(runs + b"".join(r.content for r in b.runs)) + 8))
    for name, after in ("itself", 7), ("later", 8), ("largest", 2 ** 64 - 1):
        refused("after-" + name, delta(b, packed=runs + struct.pack("<Q", after) + packed))
    refused("other-old-pages", delta(b, [old(5, 1, 8)]), "bad SEAL seal")
    refused("wrong-seal", delta(b, seal=bytes(16)), "bad SEAL seal")


def preempt():
    """Channel 1 has a chain of seals of its own."""
    seal, position = Digest(v.KEY, "seal")(v.SESSION + struct.pack("<H", 1)), 0
    for sequence, (name, runs) in enumerate((("opened", []), ("bytes", [
            Run(OPAQUE, 8, content=struct.pack(">Q", 0x10))])), 1):
        b = batch(runs, sequence, position, before=seal)
        add("batch-channel-1-" + name, frame("BATCH", encode_batch(b), channel=1), before=seal)
        seal, position = b.seal, position + b.stream_bytes


def bad_headers():
    b = batch(EVERYTHING)

    def refused(name, **header):
        bad("batch-" + name, "BATCH", encode_batch(b, **header))
    refused("sequence-0", sequence=0)
    refused("codec-3", codec=3)
    refused("codec-4", codec=4)
    refused("unknown-flag", flags=2)
    refused("reserved", zero=1)
    refused("stream-above-4-mib", stream_bytes=(4 << 20) + 1)
    refused("stream-more", stream_bytes=b.stream_bytes + 1)
    refused("stream-less", stream_bytes=b.stream_bytes - 1)
    body = len(encode_runs(b.runs)) + sum(len(r.content) for r in b.runs)
    refused("body-more", body_length=body + 1)
    refused("body-less", body_length=body - 1)
    refused("body-above-the-stream", body_length=len(encode_runs(b.runs)) + b.stream_bytes + 1)
    refused("runs-above-208896-bytes", runs_length=208897, body_length=208897)
    refused("runs-longer-than-body", runs_length=body + 1)
    refused("runs-more", runs_length=len(encode_runs(b.runs)) + 1)
    refused("runs-less", runs_length=len(encode_runs(b.runs)) - 1)
    refused("reference-in-self-contained", flags=1)
    most = [Run(OPAQUE, 1, content=b"x")] * 4096
    bad("batch-of-4097-runs", "BATCH", encode_batch(batch(most + most[:1], codec=ZSTD)))
    bad("batch-trailing", "BATCH", encode_batch(b) + b"\0")
    bad("batch-cut", "BATCH", encode_batch(b)[:-1])
    add("batch-wrong-seal", frame("BATCH", encode_batch(b, seal=b.seal[:-1] + b"\0")),
        "bad SEAL seal")
    add("batch-wrong-position", frame("BATCH", encode_batch(b, position=1)), "bad SEAL seal")
    b = batch([Run(INVALIDATE, 1, 0, 0)])
    moved = encode_runs([Run(INVALIDATE, 1, 0, 1)])
    add("batch-sealed-for-another-page", frame("BATCH", encode_batch(b, raw_runs=moved)),
        "bad SEAL seal")


def with_dictionary_id(packed):
    """The frame, but as if made with the dictionary of that number."""
    at = 5 if packed[4] & 0x20 else 6  # behind the descriptor, and the window's if there is one
    return packed[:4] + bytes([packed[4] | 1]) + packed[5:at] + b"\7" + packed[at:]


def legacy(content):
    """A frame of zstd 0.7, which libzstd may take, with the content as it is."""
    head = struct.pack("<IBH", 0xfd2fb527, 0x60, len(content) - 256)
    return head + b"\x40" + struct.pack(">H", len(content)) + content + b"\xc0\0\0"


SKIPPABLE = struct.pack("<II", 0x184d2a50, 4) + b"skip"


def not_one_frame(packed, content, two):
    """(name, data): what is not the one zstd frame of this content."""
    yield "none", content
    yield "cut", packed[:-1]
    yield "trailing", packed + b"\0"
    yield two, packed + packed
    yield "skippable-first", SKIPPABLE + packed
    yield "dictionary-id", with_dictionary_id(packed)
    yield "legacy", legacy(content)
    yield "other-length", zstandard.ZstdCompressor(level=3).compress(content + b"x")
    unstated = zstandard.ZstdCompressor(level=3, write_content_size=False)
    yield "length-not-stated", unstated.compress(content)


def bad_zstd():
    b = batch(EVERYTHING, codec=1)
    body = encode_runs(b.runs) + b"".join(r.content for r in b.runs)
    packed = zstandard.ZstdCompressor(level=3).compress(body)

    def refused(name, data):
        bad("batch-zstd-" + name, "BATCH", encode_batch(b, packed=data))
    refused("nothing", b"")
    for name, data in not_one_frame(packed, body, "two-frames"):
        refused(name, data)
    damaged = bytearray(packed)
    damaged[len(packed) // 2:] = bytes(len(packed) - len(packed) // 2)
    refused("damaged", damaged)
    b = batch([], codec=1)
    refused("skippable-alone", SKIPPABLE)


def bad_runs():
    def refused(name, raw, stream_bytes=9, content=b"", features=0):
        b = Batch(1, 0, stream_bytes, bytes(16), [Run(OPAQUE, len(content), content=content)])
        bad("batch-run-" + name, "BATCH", encode_batch(b, raw_runs=raw), features=features)

    def page(difference):
        return varint(zigzag(difference))
    refused("kind-0", b"\0\1")
    refused("kind-7", b"\7\1")
    refused("kind-15", b"\x0f\1")
    refused("opaque-named", b"\x11\1", 1, b"x")
    refused("opaque-block", b"\x21\0\1", 1, b"x")
    refused("opaque-page", b"\x41\2\1", 1, b"x")
    refused("opaque-as-page", b"\x81\1", 1, b"x")
    refused("same-as-page", b"\x82\1", 8 + v.PAGE_SIZE)
    refused("data-as-page", b"\x84\1", 8 + v.PAGE_SIZE, pages_of(1, 1))
    refused("invalidate-named", b"\x15\1", 0)
    refused("invalidate-as-page", b"\x85\1", 0)
    refused("count-0", b"\3\0", 0)
    refused("count-0-opaque", b"\1\0", 0)
    refused("count-padded", b"\3\x81\0")
    refused("count-above-64-bits", b"\3" + b"\xff" * 9 + b"\2")
    refused("count-of-11-bytes", b"\3" + b"\x80" * 10 + b"\1")
    refused("count-largest", b"\3" + varint((1 << 64) - 1))
    refused("count-wraps", b"\3\1\3" + varint((1 << 64) - 1))
    refused("opaque-largest", b"\1" + varint((1 << 64) - 1), 0)
    refused("cut-in-head", b"\x43")
    refused("cut-in-count", b"\3\x81")
    refused("block-3", b"\x23\3\1")
    refused("block-65536", b"\x23" + varint(65536) + b"\1")
    refused("block-its-own", b"\x23\0\1")
    refused("block-empty", b"\x23\2\1")
    refused("page-no-difference", b"\x43\0\1")
    refused("page-negative", b"\x43" + page(-1) + b"\1")
    refused("page-behind", b"\x43" + page(64) + b"\1")
    refused("page-wraps", b"\x43" + page((1 << 63) - 1) + b"\1")
    refused("across-the-end", b"\x43" + page(63) + b"\2", 18)
    refused("after-the-end", b"\3" + varint(64) + b"\3\1", 64 * 9 + 9)
    refused("moved-from-no-block", b"\6\1\3\0", 8 + v.PAGE_SIZE, features=2)
    for name, runs in ("from-no-block", b"\7\1\3\0"), ("cut", b"\7\1\1"), ("old", b"\x87\1\0\0"):
        refused("shifted-" + name, runs, 8 + v.PAGE_SIZE, features=FEATURE_DELTA | FEATURE_SHIFTED)
    refused("shifted-from-outside", b"\7\2\1\x0f", 2 * (8 + v.PAGE_SIZE),
            features=FEATURE_DELTA | FEATURE_SHIFTED)
    refused("moved-from-outside", b"\6\2\1\x0f", 2 * (8 + v.PAGE_SIZE), features=2)
    refused("moved-cut", b"\6\1\1", 8 + v.PAGE_SIZE, features=2)
    for name, raw in ("opaque", b"\x81\1"), ("same", b"\x82\1"), ("invalidate", b"\x85\1"):
        refused(f"{name}-old", raw, 8 + v.PAGE_SIZE, features=FEATURE_DELTA)
    refused("moved-old", b"\x86\1\0\0", 8 + v.PAGE_SIZE, features=2 | FEATURE_DELTA)


def main():
    for make in (frames, hello, handshake, blocks, stream, announce, rekeying, end, batches, deltas, preempt, bad_headers,
                 bad_zstd, bad_deltas, shifted, recent, bad_runs):
        make()
    v.DIRECTORY.mkdir(parents=True, exist_ok=True)
    for old in v.DIRECTORY.glob("*.bin"):
        old.unlink()
    lines = ["# Made by tests/vectors/generate.py; tests/support/vcvectors.py says how to read it."]
    lines += v.context()
    for x in vectors:
        (v.DIRECTORY / f"{x['name']}.bin").write_bytes(x["data"])
        lines += ["", f"vector {x['name']}", f"from {x['sender']}", f"phase {x['phase']}"]
        lines += [f"before {x['before'].hex()}"] if x["before"] else []
        lines += [f"features {x['features']}"] if x["features"] else []
        lines += [x["verdict"], *("  " + text for text in x["lines"])]
    (v.DIRECTORY / "manifest").write_text("\n".join(lines) + "\n")
    size = sum(f.stat().st_size for f in v.DIRECTORY.iterdir())
    print(f"{len(vectors)} vectors, {size} bytes")


if __name__ == "__main__":
    main()
