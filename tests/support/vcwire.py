# SPDX-License-Identifier: LGPL-2.1-or-later
"""A second decoder of the wire protocol's frames and messages, written from docs/formats/wire.md alone,
and an encoder for test vectors; batches are in vcbatch.py. Slow and strict: whatever the page does
not allow raises Bad."""
import struct
from dataclasses import dataclass

MAX_FRAME = 9 << 20
MAX_BLOCK = 64 << 40
MAX_CHANNELS = 64


class Bad(Exception):
    """What is refused, at which stage (frame, message, runs, body, stream) and with which VC_E_* code."""

    def __init__(self, stage, text, code="PROTOCOL"):
        super().__init__(f"{stage}: {text}")
        self.stage, self.text, self.code = stage, text, code


# ---- cursors ----

class Reader:
    def __init__(self, data, stage="message"):
        self.data, self.at, self.stage = bytes(data), 0, stage

    def left(self):
        return len(self.data) - self.at

    def take(self, n):
        if n > self.left():
            raise Bad(self.stage, "cut short")
        self.at += n
        return self.data[self.at - n:self.at]

    def number(self, n):
        return int.from_bytes(self.take(n), "little")

    def u8(self):
        return self.number(1)

    def u16(self):
        return self.number(2)

    def u32(self):
        return self.number(4)

    def u64(self):
        return self.number(8)

    def varint(self):
        value = 0
        for i in range(10):
            byte = self.u8()
            value |= (byte & 0x7f) << 7 * i
            if not byte & 0x80:
                if value >> 64:
                    raise Bad(self.stage, "a varint above 64 bits")
                if i and not byte:
                    raise Bad(self.stage, "a varint that is not in its shortest form")
                return value
        raise Bad(self.stage, "a varint of more than ten bytes")

    def str8(self, least=0):
        text = self.take(self.u8())
        if b"\0" in text:
            raise Bad(self.stage, "NUL in a text")
        if len(text) < least:
            raise Bad(self.stage, "an empty name")
        return text

    def id(self):
        return self.take(16)

    def boolean(self):
        return bool(self.one_of(0, 1))

    def one_of(self, *values):
        value = self.u8()
        if value not in values:
            raise Bad(self.stage, f"{value} is none of {values}")
        return value

    def zero(self, n):
        if any(self.take(n)):
            raise Bad(self.stage, "a reserved field is not zero")

    def end(self):
        if self.left():
            raise Bad(self.stage, f"{self.left()} bytes too many")


def varint(value):
    out = bytearray()
    while value > 0x7f:
        out.append(value & 0x7f | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def zigzag(d):
    return (d << 1 ^ d >> 63) & (1 << 64) - 1


def unzigzag(v):
    return v >> 1 ^ -(v & 1)


def str8(text):
    text = text.encode() if isinstance(text, str) else text
    return bytes([len(text)]) + text


# ---- frames ----

SOURCE, DEST = "source", "destination"
BOTH = (SOURCE, DEST)


@dataclass(frozen=True)
class Type:
    number: int
    name: str
    senders: tuple
    least: int
    most: int
    phases: tuple
    side: tuple = ()  # who may send it on a channel other than 0


_ANY, _LATE = ("hello", "open", "stream", "end"), ("open", "stream", "end")
TYPES = [
    Type(1, "HELLO", BOTH, 25, 512, ("hello",)),
    Type(2, "OPEN", (SOURCE,), 40, 8192, ("open",)),
    Type(3, "ACCEPT", (DEST,), 23, 512, ("open",)),
    Type(4, "START", (SOURCE,), 72, 256, ("open",)),
    Type(16, "BLOCKS", (SOURCE,), 18, 70000, ("stream",)),
    Type(17, "BATCH", (SOURCE,), 48, 4456448, ("stream",), (SOURCE,)),
    Type(18, "EOF", BOTH, 0, 0, ("stream",), (SOURCE,)),
    Type(19, "ACK", (DEST,), 16, 16, ("stream",), (DEST,)),
    Type(20, "REPAIR", (DEST,), 16, 262156, ("stream",)),
    Type(21, "REPAIRED", (SOURCE,), 1040, 4194572, ("stream",)),
    Type(22, "RESEND", (DEST,), 8, 8, ("stream",)),
    Type(23, "RETURN", (DEST,), 1, 65536, ("stream",)),
    Type(24, "ANNOUNCE_BLOCKS", (DEST,), 18, 70000, ("stream",)),
    Type(25, "ANNOUNCE", (DEST,), 14, 65536, ("stream",)),
    Type(26, "ANNOUNCE_END", (DEST,), 0, 0, ("stream",)),
    Type(27, "CREDIT", (DEST,), 8, 8, ("stream",)),
    Type(28, "STREAM_FAILED", BOTH, 5, 512, ("stream",)),
    Type(29, "READS", (DEST,), 40, 40, ("stream",)),
    Type(30, "KEEPS", (DEST,), 1, 1, ("stream",)),
    Type(32, "COMMITTED", BOTH, 56, 56, ("stream", "end")),
    Type(33, "WORD", (SOURCE,), 17, 17, _LATE),
    Type(34, "WORD_DONE", (DEST,), 5, 512, _LATE),
    Type(35, "CLOSE", BOTH, 0, 0, _LATE),
    Type(36, "NEVER_RAN", (DEST,), 5, 512, _LATE),
    Type(40, "REKEYING", BOTH, 8, 8, ("stream",)),
    Type(41, "REKEYED", BOTH, 4, 20484, ("stream",)),
    Type(42, "READY", BOTH, 48, 48, ("stream",)),
    Type(48, "PING", BOTH, 8, 8, _LATE),
    Type(49, "PONG", BOTH, 8, 8, _LATE),
    Type(50, "ERROR", BOTH, 5, 512, _ANY),
]
BY_NUMBER = {t.number: t for t in TYPES}
BY_NAME = {t.name: t for t in TYPES}
OPTIONAL = 1


@dataclass
class Frame:
    type: int
    payload: bytes
    flags: int = 0
    channel: int = 0
    skipped: bool = False  # unknown, and optional

    @property
    def name(self):
        return BY_NUMBER[self.type].name if self.type in BY_NUMBER else f"type {self.type}"

    def bytes(self):
        return struct.pack("<IBBH", len(self.payload), self.type, self.flags, self.channel) + self.payload


def frame(name, payload=b"", flags=0, channel=0):
    return Frame(BY_NAME[name].number, bytes(payload), flags, channel).bytes()


def check_header(length, number, flags, channel, sender=None, phase=None):
    """True if the frame is known, False if it is to be skipped."""
    if flags & ~OPTIONAL:
        raise Bad("frame", f"unknown flags {flags:#x}")
    if channel >= MAX_CHANNELS:
        raise Bad("frame", f"channel {channel}")
    t = BY_NUMBER.get(number)
    if not t:
        if not flags & OPTIONAL or length > MAX_FRAME:
            raise Bad("frame", f"unknown type {number}")
        return False
    if not t.least <= length <= t.most:
        raise Bad("frame", f"{t.name} of {length} bytes")
    if sender and sender not in t.senders:
        raise Bad("frame", f"{t.name} from the {sender}")
    if phase and phase not in t.phases:
        raise Bad("frame", f"{t.name} in phase {phase}")
    if channel and (not t.side or sender and sender not in t.side):
        raise Bad("frame", f"{t.name} on channel {channel}")
    return True


def read_frame(data, at=0, sender=None, phase=None):
    """(frame, place behind it), or (None, at) if it is not all there. A header is judged at once."""
    if len(data) - at < 8:
        return None, at
    length, number, flags, channel = struct.unpack_from("<IBBH", data, at)
    known = check_header(length, number, flags, channel, sender, phase)
    if len(data) - at - 8 < length:
        return None, at
    f = Frame(number, bytes(data[at + 8:at + 8 + length]), flags, channel, not known)
    return f, at + 8 + length


# ---- messages: dicts of their fields ----

MAGIC = b"vecycle\n"
PAGE_SIZES = tuple(1 << n for n in range(10, 17))


def _hello(r, _):
    if r.take(8) != MAGIC:
        raise Bad("message", "not vecycle's magic")
    m = dict(low=r.u16(), high=r.u16(), role=r.one_of(1, 2), security=r.one_of(0, 1, 2))
    r.u16()
    m.update(features=r.u64(), software=r.str8())
    if m["low"] > m["high"]:
        raise Bad("message", f"versions {m['low']} to {m['high']}")
    r.take(r.left())  # of a later version
    return m


def _lineage(r):
    return dict(lineage=r.id(), algorithm=r.u8(), lineage_flags=flags_of(r, 1))


def flags_of(r, known):
    flags = r.u8()
    if flags & ~known:
        raise Bad("message", f"unknown flags {flags:#x}")
    return flags


def _open(r, _):
    m = dict(session=r.id(), vm=r.id(), mode=r.one_of(1, 2, 3, 4, 5, 6, 7), name=r.str8(), window=r.u32())
    m["has_lineage"] = r.boolean()
    if m["has_lineage"]:
        m.update(_lineage(r))
    n = r.u8()
    if n > 64:
        raise Bad("message", f"{n} generations")
    m["generations"] = [(r.id(), r.take(32)) for _ in range(n)]
    if m["mode"] == 5:
        m["interrupted"] = r.id()
    return m


def _accept(r, _):
    m = dict(base_kind=r.one_of(0, 1, 2), generation=r.id(), has_lineage=r.boolean())
    if m["has_lineage"]:
        m.update(_lineage(r), key=r.take(32))
    m.update(needs_key=r.boolean(), max_stream=r.u32())
    return m


def _start(r, _):
    m = dict(**_lineage(r), base_kind=r.one_of(0, 1, 2), has_key=r.boolean(), key=r.take(32),
             generation=r.id())
    if not m["has_key"] and any(m["key"]):
        raise Bad("message", "a key that is said not to be there")
    r.zero(4)
    return m


def _blocks(r, _):
    m = dict(page_size=r.u32())
    if m["page_size"] not in PAGE_SIZES:
        raise Bad("message", f"a page size of {m['page_size']}")
    n = r.u32()
    if not 1 <= n <= 256:
        raise Bad("message", f"{n} blocks")
    m["blocks"] = [(r.str8(1), r.u64()) for _ in range(n)]
    if any(length % m["page_size"] or length > MAX_BLOCK for _, length in m["blocks"]):
        raise Bad("message", "an impossible length of a block")
    if len({name for name, _ in m["blocks"]}) < n:
        raise Bad("message", "two blocks of one name")
    return m


def _ordinals(r, _):
    m = dict(sequence=r.u64())
    n = r.u32()
    if not 1 <= n <= 65536:
        raise Bad("message", f"{n} ordinals")
    m["ordinals"] = [r.u32() for _ in range(n)]
    return m


def _repaired(r, page_size):
    m = dict(sequence=r.u64())
    n = r.u32()
    if not 1 <= n <= 64:
        raise Bad("message", f"{n} pages at once")
    m["pages"] = [(r.u32(), r.take(page_size)) for _ in range(n)]
    return m


def _announce(r, _):
    m = dict(block=r.u32(), page=r.u64(), runs=[])
    while r.left():
        kind, count = r.one_of(0, 1, 2), r.varint()
        if not count:
            raise Bad("message", "an empty run")
        if kind == 2 and 8 * count > r.left():
            raise Bad("message", "cut short")
        m["runs"].append((kind, count, [r.take(8) for _ in range(count)] if kind == 2 else []))
    return m


def _committed(r, _):
    m = dict(generation=r.id(), committed=r.boolean())
    r.zero(7)
    m["root"] = r.take(32)
    return m


def _rekeyed(r, _):
    n = r.u32()
    if n > 1024:
        raise Bad("message", f"{n} ranges")
    m = dict(ranges=[(r.u32(), r.u64(), r.u64()) for _ in range(n)])
    if not all(count for _, _, count in m["ranges"]):
        raise Bad("message", "an empty range")
    return m


def _code_text(r, _):
    return dict(code=r.u32(), text=r.str8())


def _bytes(r, _):
    return dict(data=r.take(r.left()))


def _nothing(r, _):
    return {}


READS = ("elapsed", "waiting", "reading", "bytes", "content")

DECODERS = {
    "HELLO": _hello, "OPEN": _open, "ACCEPT": _accept, "START": _start,
    "BLOCKS": _blocks, "ANNOUNCE_BLOCKS": _blocks, "EOF": _nothing,
    "ACK": lambda r, _: dict(sequence=r.u64(), position=r.u64()),
    "REPAIR": _ordinals, "REPAIRED": _repaired,
    "RESEND": lambda r, _: dict(sequence=r.u64()), "RETURN": _bytes,
    "ANNOUNCE": _announce, "ANNOUNCE_END": _nothing,
    "CREDIT": lambda r, _: dict(bytes=r.u64()), "STREAM_FAILED": _code_text,
    "READS": lambda r, _: {key: r.u64() for key in READS},
    "KEEPS": lambda r, _: dict(flags=r.one_of(0, 1, 2, 3)),
    "COMMITTED": _committed,
    "WORD": lambda r, _: dict(word=r.one_of(1, 2, 3, 12, 24), session=r.id()),
    "WORD_DONE": _code_text, "NEVER_RAN": _code_text, "CLOSE": _nothing,
    "REKEYING": lambda r, _: dict(done=r.u64()), "REKEYED": _rekeyed,
    "READY": lambda r, _: dict(generation=r.id(), root=r.take(32)),
    "PING": lambda r, _: dict(token=r.u64()), "PONG": lambda r, _: dict(token=r.u64()),
    "ERROR": _code_text,
}


def decode(name, payload, page_size=4096, blocks=None):
    """The fields of any message but BATCH. `blocks`: what ANNOUNCE has to keep to."""
    r = Reader(payload)
    m = DECODERS[name](r, page_size)
    r.end()
    if name == "ANNOUNCE" and blocks is not None:
        if m["block"] >= len(blocks):
            raise Bad("message", f"block {m['block']}")
        if m["page"] + sum(n for _, n, _ in m["runs"]) > blocks[m["block"]][1] // page_size:
            raise Bad("message", "pages outside their block")
    return m


def _u(n, *values):
    return b"".join(v.to_bytes(n, "little") for v in values)


def _enc_lineage(m):
    return m["lineage"] + _u(1, m["algorithm"], m["lineage_flags"])


def _enc_open(m):
    out = m["session"] + m["vm"] + _u(1, m["mode"]) + str8(m["name"]) + _u(4, m["window"])
    out += _u(1, m["has_lineage"]) + (_enc_lineage(m) if m["has_lineage"] else b"")
    out += _u(1, len(m["generations"])) + b"".join(i + root for i, root in m["generations"])
    return out + (m["interrupted"] if m["mode"] == 5 else b"")


def _enc_accept(m):
    out = _u(1, m["base_kind"]) + m["generation"] + _u(1, m["has_lineage"])
    out += (_enc_lineage(m) + m["key"]) if m["has_lineage"] else b""
    return out + _u(1, m["needs_key"]) + _u(4, m["max_stream"])


def _enc_announce(m):
    out = _u(4, m["block"]) + _u(8, m["page"])
    return out + b"".join(_u(1, k) + varint(n) + b"".join(p) for k, n, p in m["runs"])


def _enc_blocks(m):
    return (_u(4, m["page_size"], len(m["blocks"]))
            + b"".join(str8(name) + _u(8, length) for name, length in m["blocks"]))


def _enc_code_text(m):
    return _u(4, m["code"]) + str8(m["text"])


ENCODERS = {
    "HELLO": lambda m: (MAGIC + _u(2, m["low"], m["high"]) + _u(1, m["role"], m["security"])
                        + _u(2, 0) + _u(8, m["features"]) + str8(m["software"])),
    "OPEN": _enc_open, "ACCEPT": _enc_accept,
    "START": lambda m: (_enc_lineage(m) + _u(1, m["base_kind"], m["has_key"]) + m["key"]
                        + m["generation"] + _u(4, 0)),
    "BLOCKS": _enc_blocks, "ANNOUNCE_BLOCKS": _enc_blocks, "EOF": lambda m: b"",
    "ACK": lambda m: _u(8, m["sequence"], m["position"]),
    "REPAIR": lambda m: (_u(8, m["sequence"]) + _u(4, len(m["ordinals"]), *m["ordinals"])),
    "REPAIRED": lambda m: (_u(8, m["sequence"]) + _u(4, len(m["pages"]))
                           + b"".join(_u(4, i) + page for i, page in m["pages"])),
    "RESEND": lambda m: _u(8, m["sequence"]), "RETURN": lambda m: m["data"],
    "ANNOUNCE": _enc_announce, "ANNOUNCE_END": lambda m: b"",
    "CREDIT": lambda m: _u(8, m["bytes"]), "STREAM_FAILED": _enc_code_text,
    "READS": lambda m: _u(8, *(m[key] for key in READS)),
    "KEEPS": lambda m: _u(1, m["flags"]),
    "COMMITTED": lambda m: m["generation"] + _u(1, m["committed"]) + bytes(7) + m["root"],
    "WORD": lambda m: _u(1, m["word"]) + m["session"],
    "WORD_DONE": _enc_code_text, "NEVER_RAN": _enc_code_text, "CLOSE": lambda m: b"",
    "REKEYING": lambda m: _u(8, m["done"]),
    "REKEYED": lambda m: (_u(4, len(m["ranges"]))
                          + b"".join(_u(4, b) + _u(8, page, n) for b, page, n in m["ranges"])),
    "READY": lambda m: m["generation"] + m["root"],
    "PING": lambda m: _u(8, m["token"]), "PONG": lambda m: _u(8, m["token"]),
    "ERROR": _enc_code_text,
}


def encode(name, fields):
    """The payload of any message but BATCH."""
    return ENCODERS[name](fields)


def negotiate(a, b):
    """The version that two HELLOs agree on."""
    version = min(a["high"], b["high"])
    if version < max(a["low"], b["low"]):
        raise Bad("message", "no common version", "VERSION")
    return version
