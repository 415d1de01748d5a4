# SPDX-License-Identifier: LGPL-2.1-or-later
"""The golden frames of tests/vectors/wire: what they are judged against, and their manifest.

The manifest is plain text. It begins with the context that all vectors share; then each vector has
a line "vector NAME" (its bytes are in NAME.bin), its circumstances, a verdict, and for a good one the
decoded fields, indented. Verdicts: "good"; "skip" (unknown, optional); "bad CODE STAGE", where STAGE
is frame (header), message (payload) or seal."""
import hashlib
import struct
from pathlib import Path

import vcbatch
import vcwire
from vcwire import Bad

DIRECTORY = Path(__file__).resolve().parents[1] / "vectors" / "wire"
KEY = bytes(range(32))
SESSION = bytes(range(0x10, 0x20))
PAGE_SIZE = 1024
BLOCKS = [(b"pc.ram", 64 * PAGE_SIZE), (b"vga", 16 * PAGE_SIZE), (b"empty", 0)]
TEXTS = ("name", "software")


def base_page(name, page):
    """Content of the base generation, which holds all pages of all blocks. Some pages have nothing in
    common with others. One begins as a zstd dictionary does, since a guest may write that."""
    block = [n for n, _ in BLOCKS].index(name)
    if not 8 <= page % 20 < 13:
        return bytes((7 * i + 13 * page + 31 * block + 1) % 256 for i in range(PAGE_SIZE))
    content, x = bytearray(), 64 * block + page
    for _ in range(PAGE_SIZE):
        x = (1103515245 * x + 12345) % (1 << 32)
        content.append(x >> 24)
    if (block, page) == (0, 50):
        content[:4] = 0xec30a437.to_bytes(4, "little")
    return bytes(content)


def context():
    lines = [f"key {KEY.hex()}", f"session {SESSION.hex()}", f"page_size {PAGE_SIZE}"]
    return lines + [f"block {length} {name.decode()}" for name, length in BLOCKS]


# ---- decoded fields as text ----

def dump(name, m):
    lines = []
    for key, value in m.items():
        if key == "text":
            text, _, hint = value.decode(errors="replace").partition("\n")
            lines += [f"text {text}"] + ([f"hint {hint}"] if hint else [])
        elif key in TEXTS:
            lines.append(f"{key} {value.decode(errors='replace')}")
        elif isinstance(value, bytes):
            lines.append(f"{key} {value.hex()}")
        elif isinstance(value, list):
            lines += [_item(key, x) for x in value]
        else:
            lines.append(f"{key} {int(value)}")
    return [x.rstrip() for x in lines]


def _item(key, x):
    if key == "generations":
        return f"generation {x[0].hex()} {x[1].hex()}"
    if key == "blocks":
        return f"block {x[1]} {x[0].decode(errors='replace')}"
    if key == "ordinals":
        return f"ordinal {x}"
    if key == "ranges":
        return "range {} {} {}".format(*x)
    if key == "pages":
        return f"page {x[0]} {hashlib.sha256(x[1]).hexdigest()}"
    return f"run {x[0]} {x[1]} {b''.join(x[2]).hex()}"


def dump_batch(b):
    lines = [f"sequence {b.sequence}", f"position {b.position}", f"stream_bytes {b.stream_bytes}",
             f"codec {b.codec}", f"self_contained {int(b.self_contained)}", f"seal {b.seal.hex()}"]
    for r in b.runs:
        text = f"run {vcbatch.KINDS[r.kind]} {r.count}"
        if r.kind != vcbatch.OPAQUE:
            text += f" at {r.block} {r.page}"
        if r.kind in (vcbatch.MOVED, vcbatch.SHIFTED):
            text += f" from {r.from_block} {r.from_page}"
        lines.append(text + " named" * r.named + " as_page" * r.as_page + " old" * r.old)
    stream, _, _ = vcbatch.expand(b, BLOCKS, PAGE_SIZE, base_page)
    return lines + [f"stream {hashlib.sha256(stream).hexdigest()}"]


# ---- verdicts ----

def seal_of(b, before):
    seals = vcbatch.Seals(KEY, SESSION)
    seals.last = before or seals.last
    _, covered, _ = vcbatch.expand(b, BLOCKS, PAGE_SIZE, base_page, digest=seals.page)
    return seals.next(b.sequence, b.position, covered)


def _judge_batch(payload, before, features):
    b = vcbatch.decode_batch(payload, BLOCKS, PAGE_SIZE, features, base_page)
    if seal_of(b, before) != b.seal:
        raise Bad("seal", "the seal is wrong", "SEAL")
    if vcbatch.encode_runs(b.runs) != _runs_of(payload, b.codec):
        raise AssertionError("the runs have a second encoding")
    return dump_batch(b)


def _runs_of(payload, codec):
    runs_length, body_length = struct.unpack_from("<II", payload, 20)
    return vcbatch.split_body(codec, payload[48:], runs_length, body_length)[0]


def judge(data, sender, phase, before=b"", features=0):
    """(verdict, lines of the fields or the reason)."""
    try:
        f, end = vcwire.read_frame(data, 0, sender, phase)
        if f is None or end != len(data):
            raise Bad("frame", "not one whole frame")
        if f.skipped:
            return "skip", []
        if f.name == "BATCH":
            return "good", _judge_batch(f.payload, before, features)
        m = vcwire.decode(f.name, f.payload, PAGE_SIZE, BLOCKS)
        if f.name != "HELLO" and vcwire.encode(f.name, m) != f.payload:
            raise AssertionError(f"{f.name} has a second encoding")
        return "good", dump(f.name, m)
    except Bad as e:
        stage = e.stage if e.stage in ("frame", "seal") else "message"
        return f"bad {e.code} {stage}", [f"# {e.text}"]


# ---- the manifest ----

def read_manifest(text):
    """(lines of the context, [dict(name, sender, phase, before, features, verdict, fields)])."""
    head, vectors = [], []
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if line.startswith("#") or not word:
            continue
        if word == "vector" and not line.startswith(" "):
            vectors.append(dict(name=rest, before=b"", features=0, fields=[]))
        elif not vectors:
            head.append(line)
        elif line.startswith(" "):
            if word != "#":
                vectors[-1]["fields"].append(line.strip())
        elif word == "from":
            vectors[-1]["sender"] = rest
        elif word == "phase":
            vectors[-1]["phase"] = rest
        elif word == "before":
            vectors[-1]["before"] = bytes.fromhex(rest)
        elif word == "features":
            vectors[-1]["features"] = int(rest)
        else:
            vectors[-1]["verdict"] = line
    return head, vectors
