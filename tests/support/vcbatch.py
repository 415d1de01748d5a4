# SPDX-License-Identifier: LGPL-2.1-or-later
"""The batches of docs/formats/wire.md: decoder, encoder for test vectors, QEMU's stream rebuilt, seals.
The other half of vcwire.py, and written like it from the page alone."""
import struct
from dataclasses import dataclass, field

import zstandard

from vcdigest import Digest, PageDigest
from vcwire import Bad, Reader, flags_of, str8, unzigzag, varint, zigzag

MAX_STREAM = 4 << 20
MAX_BODY = 9 << 20
OPAQUE, SAME, ZERO, DATA, INVALIDATE, MOVED = range(1, 7)
KINDS = {OPAQUE: "opaque", SAME: "same", ZERO: "zero", DATA: "data", INVALIDATE: "invalidate",
         MOVED: "moved"}
NAMED, BLOCK, PAGE, AS_PAGE = 16, 32, 64, 128
SELF_CONTAINED = 1
REC_ZERO, REC_PAGE, REC_EOS, REC_CONTINUE = 0x02, 0x08, 0x10, 0x20  # docs/internals/qemu-stream.md


@dataclass
class Run:
    kind: int
    count: int
    block: int = 0
    page: int = 0
    named: bool = False
    as_page: bool = False
    from_block: int = 0  # moved
    from_page: int = 0
    content: bytes = b""  # opaque, data

    def is_pages(self):
        """Stands for PAGE records."""
        return self.kind in (SAME, DATA, MOVED) or self.kind == ZERO and self.as_page

    def stream_bytes(self, blocks, page_size):
        if self.kind == OPAQUE:
            return self.count
        if self.kind == INVALIDATE:
            return 0
        name = 1 + len(blocks[self.block][0]) if self.named else 0
        return self.count * (8 + (page_size if self.is_pages() else 1)) + name


@dataclass
class Batch:
    sequence: int
    position: int
    stream_bytes: int
    seal: bytes
    runs: list = field(default_factory=list)
    codec: int = 0
    self_contained: bool = False


def encode_runs(runs):
    """The runs in the shortest form that the page allows."""
    out, block, page = bytearray(), 0, 0
    for r in runs:
        head = r.kind | (NAMED if r.named else 0) | (AS_PAGE if r.as_page else 0)
        fields = b""
        if r.kind != OPAQUE:
            if r.block != block:
                head, block, page = head | BLOCK, r.block, 0
                fields += varint(block)
            if r.page != page:
                head |= PAGE
                fields += varint(zigzag(r.page - page))
            page = r.page + r.count
        out += bytes([head]) + fields + varint(r.count)
        if r.kind == MOVED:
            out += varint(r.from_block) + varint(r.from_page)
    return bytes(out)


def encode_batch(b, raw_runs=None, level=3, **header):
    """The payload of BATCH; `raw_runs` and header fields may be replaced to make bad ones."""
    runs = encode_runs(b.runs) if raw_runs is None else raw_runs
    body = runs + b"".join(r.content for r in b.runs)
    h = dict(sequence=b.sequence, position=b.position, stream_bytes=b.stream_bytes,
             runs_length=len(runs), body_length=len(body), codec=b.codec,
             flags=SELF_CONTAINED if b.self_contained else 0, zero=0, seal=b.seal)
    h.update({k: v for k, v in header.items() if k != "packed"})
    packed = header.get("packed")
    if packed is None:
        packed = zstandard.ZstdCompressor(level=level).compress(body) if b.codec == 1 else body
    return struct.pack("<QQIIIBBH16s", *(h[k] for k in (
        "sequence", "position", "stream_bytes", "runs_length", "body_length", "codec", "flags",
        "zero", "seal"))) + packed


def unpack(codec, data, length):
    if codec == 0:
        if len(data) != length:
            raise Bad("body", "the body's length is not as stated")
        return data
    try:
        if zstandard.get_frame_parameters(data).content_size != length:
            raise Bad("body", "the body's length is not as stated")
        body = zstandard.ZstdDecompressor().decompress(data, max_output_size=length + 1,
                                                       allow_extra_data=False)
    except zstandard.ZstdError as e:
        raise Bad("body", f"zstd: {e}") from e
    return body


def decode_batch(payload, blocks=(), page_size=4096, moved=False):
    """`blocks`: (name, length) as in BLOCKS; `moved`: feature bit 1 is in use."""
    r = Reader(payload)
    b = Batch(r.u64(), r.u64(), r.u32(), b"")
    runs_length, body_length, b.codec = r.u32(), r.u32(), r.one_of(0, 1)
    b.self_contained = bool(flags_of(r, SELF_CONTAINED))
    r.zero(2)
    b.seal = r.take(16)
    if not b.sequence:
        raise Bad("message", "sequence number 0")
    if b.stream_bytes > MAX_STREAM:
        raise Bad("message", f"{b.stream_bytes} bytes of the stream at once")
    if body_length > MAX_BODY:
        raise Bad("message", f"a body of {body_length} bytes")
    if runs_length > body_length:
        raise Bad("message", "runs longer than the body")
    body = unpack(b.codec, r.take(r.left()), body_length)
    b.runs = decode_runs(body[:runs_length], blocks, page_size)
    if not moved and any(x.kind == MOVED for x in b.runs):
        raise Bad("runs", "moved, which was not agreed on")
    if b.self_contained and any(x.kind in (SAME, MOVED) for x in b.runs):
        raise Bad("runs", "a reference in a self-contained batch")
    _fill(b, Reader(body[runs_length:], "stream"), page_size)
    if sum(x.stream_bytes(blocks, page_size) for x in b.runs) != b.stream_bytes:
        raise Bad("stream", "the runs do not add up to the batch's stream bytes")
    return b


def _fill(b, contents, page_size):
    for r in b.runs:
        if r.kind in (OPAQUE, DATA):
            r.content = contents.take(r.count * (page_size if r.kind == DATA else 1))
        if r.kind == DATA and any(r.content.count(0, i, i + page_size) == page_size
                                  for i in range(0, len(r.content), page_size)):
            raise Bad("body", "a page of zeroes as data")
    contents.end()


def decode_runs(data, blocks, page_size):
    r, runs, block, page = Reader(data, "runs"), [], 0, 0
    while r.left():
        head = r.u8()
        kind, named, as_page = head & 15, bool(head & NAMED), bool(head & AS_PAGE)
        if kind not in KINDS:
            raise Bad("runs", f"kind {kind}")
        if kind == OPAQUE and head != OPAQUE:
            raise Bad("runs", "flags on opaque")
        if named and kind not in (SAME, ZERO, DATA, MOVED) or as_page and kind != ZERO:
            raise Bad("runs", f"flags {head:#x}")
        if head & BLOCK:
            before, block, page = block, r.varint(), 0
            if block == before:
                raise Bad("runs", "BLOCK names the cursor's own")
        if head & PAGE:
            step = unzigzag(r.varint())
            if not step:
                raise Bad("runs", "PAGE of no difference")
            page += step
        count = r.varint()
        if not count:
            raise Bad("runs", "a run of nothing")
        run = Run(kind, count, named=named, as_page=as_page)
        if kind != OPAQUE:
            _check_inside(blocks, page_size, block, page, count)
            run.block, run.page, page = block, page, page + count
        if kind == MOVED:
            run.from_block, run.from_page = r.varint(), r.varint()
            _check_inside(blocks, page_size, run.from_block, run.from_page, count)
        runs.append(run)
    return runs


def _check_inside(blocks, page_size, block, page, count):
    if block >= len(blocks):
        raise Bad("runs", f"block {block}")
    if page < 0 or page + count > blocks[block][1] // page_size:
        raise Bad("runs", "pages outside their block")


# ---- from runs to QEMU's stream, and the seal ----

def expand(b, blocks, page_size, base=None, repaired=None, digest=None):
    """(stream bytes, what the seal covers, [(run, i, content) for each PAGE record]).

    `base(name, page)` has the content of *same*; `repaired` maps ordinals to pages."""
    stream, covered, pages = bytearray(), bytearray(), []
    for r in b.runs:
        if r.kind == OPAQUE:
            stream += r.content
            covered += r.content
        if r.kind in (OPAQUE, INVALIDATE):
            continue
        for i in range(r.count):
            name = str8(blocks[r.block][0]) if r.named and i == 0 else b""
            flags = (REC_PAGE if r.is_pages() else REC_ZERO) | (0 if name else REC_CONTINUE)
            head = struct.pack(">Q", (r.page + i) * page_size | flags) + name
            stream += head
            covered += head
            if not r.is_pages():
                stream += b"\0"
                covered += b"\0"
                continue
            page = (repaired or {}).get(len(pages))
            if page is None:
                page = _content(r, i, blocks, page_size, base)
            pages.append((r, i, page))
            stream += page
            if digest:
                covered += digest(page)
    for r in b.runs:
        if r.kind == INVALIDATE:
            covered += struct.pack("<BIQQ", INVALIDATE, r.block, r.page, r.count)
    return bytes(stream), bytes(covered), pages


def _content(r, i, blocks, page_size, base):
    if r.kind == DATA:
        return r.content[i * page_size:(i + 1) * page_size]
    if r.kind == ZERO:
        return bytes(page_size)
    block, page = (r.block, r.page) if r.kind == SAME else (r.from_block, r.from_page)
    return base(blocks[block][0], page + i)


class Seals:
    """The chain of seals of a session."""

    def __init__(self, master, session):
        self.page, self.digest = PageDigest(master), Digest(master, "seal")
        self.last = self.digest(session)

    def next(self, sequence, position, covered):
        self.last = self.digest(self.last + struct.pack("<QQ", sequence, position) + covered)
        return self.last
