# SPDX-License-Identifier: LGPL-2.1-or-later
"""The batches of docs/formats/wire.md: decoder, encoder for test vectors, QEMU's stream rebuilt, seals.
The other half of vcwire.py, and written like it from the page alone."""
import struct
from dataclasses import dataclass, field

import zstandard

from vcdigest import Digest, PageDigest
from vcwire import Bad, Reader, flags_of, str8, unzigzag, varint, zigzag

MAX_STREAM = 4 << 20
MAX_RUNS, MAX_RUNS_BYTES = 4096, 208896
OPAQUE, SAME, ZERO, DATA, INVALIDATE, MOVED, SHIFTED = range(1, 8)
KINDS = {OPAQUE: "opaque", SAME: "same", ZERO: "zero", DATA: "data", INVALIDATE: "invalidate",
         MOVED: "moved", SHIFTED: "shifted"}
NAMED, BLOCK, PAGE, AS_PAGE = 16, 32, 64, 128
OLD = 128  # of data, where zero has AS_PAGE
NONE, ZSTD, DELTA, RECENT = range(4)  # codecs
DELTAS = DELTA, RECENT
FEATURE_MOVED, FEATURE_DELTA, FEATURE_RECENT, FEATURE_SHIFTED = 1 << 1, 1 << 4, 1 << 6, 1 << 7
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
    old: bool = False
    from_block: int = 0  # moved, shifted
    from_page: int = 0
    content: bytes = b""  # opaque, data, shifted

    def is_pages(self):
        """Stands for PAGE records."""
        return self.kind in (SAME, DATA, MOVED, SHIFTED) or self.kind == ZERO and self.as_page

    def content_bytes(self, page_size):
        return self.count * {OPAQUE: 1, DATA: page_size, SHIFTED: page_size}.get(self.kind, 0)

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
    codec: int = NONE
    self_contained: bool = False
    after: int = 0  # recent


def encode_runs(runs):
    """The runs in the shortest form that the page allows."""
    out, block, page = bytearray(), 0, 0
    for r in runs:
        head = r.kind | (NAMED if r.named else 0) | (AS_PAGE if r.as_page else 0) | (OLD if r.old else 0)
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
        if r.kind in (MOVED, SHIFTED):
            out += varint(r.from_block) + varint(r.from_page)
    return bytes(out)


def encode_batch(b, raw_runs=None, level=3, prefix=b"", **header):
    """The payload of BATCH; `raw_runs` and header fields may be replaced to make bad ones.

    `prefix`: what a delta is made against (old_pages())."""
    runs = encode_runs(b.runs) if raw_runs is None else raw_runs
    contents = b"".join(r.content for r in b.runs)
    h = dict(sequence=b.sequence, position=b.position, stream_bytes=b.stream_bytes,
             runs_length=len(runs), body_length=len(runs + contents), codec=b.codec,
             flags=SELF_CONTAINED if b.self_contained else 0, zero=0, seal=b.seal)
    h.update({k: v for k, v in header.items() if k != "packed"})
    packed = header.get("packed")
    if packed is None:
        packed = _pack(b.codec, runs, contents, level, prefix, b.after)
    return struct.pack("<QQIIIBBH16s", *(h[k] for k in (
        "sequence", "position", "stream_bytes", "runs_length", "body_length", "codec", "flags",
        "zero", "seal"))) + packed


def _pack(codec, runs, contents, level, prefix, after):
    if codec == ZSTD:
        return zstandard.ZstdCompressor(level=level).compress(runs + contents)
    if codec in DELTAS:
        between = struct.pack("<Q", after) if codec == RECENT else b""
        packed = zstandard.ZstdCompressor(level=level, dict_data=_raw(prefix)).compress(contents)
        return runs + between + packed
    return runs + contents


def _raw(prefix):
    return zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def old_pages(runs, blocks, base, codec=DELTA):
    """What the contents of a delta were compressed with."""
    places = [(r.from_block, r.from_page) if r.kind == SHIFTED else (r.block, r.page) for r in runs]
    pages = [base(blocks[block][0], page + i) for r, (block, page) in zip(runs, places)
             if r.old or r.kind == SHIFTED for i in range(r.count)]
    if None in pages and codec == RECENT:
        raise Bad("seal", "OLD, where there is nothing", "SEAL")
    if None in pages:
        raise Bad("base", "OLD, where the base generation holds nothing")
    return b"".join(pages)


def _check_frame(data, length):
    """One frame of zstd, and nothing else (RFC 8878, section 3.1.1)."""
    try:
        head, at = zstandard.get_frame_parameters(data), zstandard.frame_header_size(data)
    except zstandard.ZstdError as e:
        raise Bad("body", f"zstd: {e}") from e
    if data[:4] != b"\x28\xb5\x2f\xfd":
        raise Bad("body", "a skippable frame")
    if head.content_size != length:
        raise Bad("body", "the body's length is not as stated")
    if head.dict_id:
        raise Bad("body", "a dictionary id")
    r, last = Reader(data[at:], "body"), False
    while not last:
        block = r.number(3)
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        if kind == 3:
            raise Bad("body", "zstd: a reserved kind of block")
        r.take(1 if kind == 1 else size)
    r.take(4 if head.has_checksum else 0)
    r.end()


def _unpack(data, length, prefix=None):
    """The content of a frame; `prefix`: of a delta, which was made with that."""
    tool = zstandard.ZstdDecompressor(dict_data=_raw(prefix)) if prefix else zstandard.ZstdDecompressor()
    try:
        return tool.decompress(data, max_output_size=length + 1)
    except zstandard.ZstdError as e:
        if prefix:  # it may be this side's old pages that are wrong
            raise Bad("seal", f"zstd: {e}", "SEAL") from e
        raise Bad("body", f"zstd: {e}") from e


def split_body(codec, data, runs_length, length):
    """(the runs, the contents: those of a delta are still packed)."""
    if codec in DELTAS:
        frame = runs_length + (8 if codec == RECENT else 0)
        if len(data) <= frame or length == runs_length:
            raise Bad("body", "a delta without contents")
        _check_frame(data[frame:], length - runs_length)
        return data[:runs_length], data[frame:]
    if codec == ZSTD:
        _check_frame(data, length)
        data = _unpack(data, length)
    if len(data) != length:
        raise Bad("body", "the body's length is not as stated")
    return data[:runs_length], data[runs_length:]


def decode_batch(payload, blocks=(), page_size=4096, features=0, base=None, recent=None):
    """`blocks`: (name, length) as in BLOCKS; `features`: in use; `base(name, page)`: what a page of the
    base generation is, None if it is not held; `recent(name, page)`: what a page was before this
    batch, None if nothing of it is known (not given: there was no batch before)."""
    r = Reader(payload)
    b = Batch(r.u64(), r.u64(), r.u32(), b"")
    runs_length, body_length, b.codec = r.u32(), r.u32(), r.one_of(NONE, ZSTD, DELTA, RECENT)
    b.self_contained = bool(flags_of(r, SELF_CONTAINED))
    r.zero(2)
    b.seal = r.take(16)
    if not b.sequence:
        raise Bad("message", "sequence number 0")
    if b.stream_bytes > MAX_STREAM:
        raise Bad("message", f"{b.stream_bytes} bytes of the stream at once")
    if runs_length > body_length:
        raise Bad("message", "runs longer than the body")
    if runs_length > MAX_RUNS_BYTES:
        raise Bad("message", f"{runs_length} bytes of runs")
    if body_length - runs_length > b.stream_bytes:
        raise Bad("message", "more contents than bytes of the stream")
    needs = {DELTA: FEATURE_DELTA, RECENT: FEATURE_DELTA | FEATURE_RECENT}.get(b.codec, 0)
    if features & needs != needs:
        raise Bad("message", "a delta, which was not agreed on")
    if b.codec in DELTAS and b.self_contained:
        raise Bad("message", "a self-contained delta")
    body = r.take(r.left())
    runs, contents = split_body(b.codec, body, runs_length, body_length)
    if b.codec == RECENT:
        b.after = int.from_bytes(body[runs_length:runs_length + 8], "little")
        if b.after >= b.sequence:
            raise Bad("message", "a delta to what is yet to come")
    b.runs = decode_runs(runs, blocks, page_size)
    _check_runs(b, features)
    if sum(x.stream_bytes(blocks, page_size) for x in b.runs) != b.stream_bytes:
        raise Bad("stream", "the runs do not add up to the batch's stream bytes")
    if sum(x.content_bytes(page_size) for x in b.runs) != body_length - runs_length:
        raise Bad("stream", "the contents do not add up to the body")
    if b.codec in DELTAS:
        of = recent if b.codec == RECENT and recent else base
        contents = _unpack(contents, body_length - runs_length,
                           old_pages(b.runs, blocks, of or (lambda *_: None), b.codec))
    _fill(b, Reader(contents, "stream"), page_size)
    return b


def _check_runs(b, features):
    """What the batch that they are in does not allow."""
    if any(x.kind == MOVED for x in b.runs) and not features & FEATURE_MOVED:
        raise Bad("runs", "moved, which was not agreed on")
    if b.self_contained and any(x.kind in (SAME, MOVED) for x in b.runs):
        raise Bad("runs", "a reference in a self-contained batch")
    shifted = any(x.kind == SHIFTED for x in b.runs)
    if shifted and (not features & FEATURE_SHIFTED or not features & FEATURE_DELTA):
        raise Bad("runs", "shifted, which was not agreed on")
    if shifted and b.codec != DELTA:
        raise Bad("runs", "shifted where old pages are not the base's")
    if (shifted or any(x.old for x in b.runs)) != (b.codec in DELTAS):
        raise Bad("runs", "a delta to nothing" if b.codec in DELTAS else "OLD where there is no delta")


def _fill(b, contents, page_size):
    for r in b.runs:
        if r.kind in (OPAQUE, DATA, SHIFTED):
            r.content = contents.take(r.content_bytes(page_size))
        if r.kind in (DATA, SHIFTED) and any(r.content.count(0, i, i + page_size) == page_size
                                  for i in range(0, len(r.content), page_size)):
            raise Bad("body", "a page of zeroes as data")
    contents.end()


def decode_runs(data, blocks, page_size):
    r, runs, block, page = Reader(data, "runs"), [], 0, 0
    while r.left():
        head = r.u8()
        kind, named, high = head & 15, bool(head & NAMED), bool(head & 128)  # AS_PAGE or OLD
        if kind not in KINDS:
            raise Bad("runs", f"kind {kind}")
        if kind == OPAQUE and head != OPAQUE:
            raise Bad("runs", "flags on opaque")
        if named and kind not in (SAME, ZERO, DATA, MOVED, SHIFTED) or high and kind not in (ZERO, DATA):
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
        run = Run(kind, count, named=named, as_page=high and kind == ZERO, old=high and kind == DATA)
        if kind != OPAQUE:
            _check_inside(blocks, page_size, block, page, count)
            run.block, run.page, page = block, page, page + count
        if kind in (MOVED, SHIFTED):
            run.from_block, run.from_page = r.varint(), r.varint()
            _check_inside(blocks, page_size, run.from_block, run.from_page, count)
        if len(runs) == MAX_RUNS:
            raise Bad("runs", "too many")
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
    if r.kind in (DATA, SHIFTED):
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
