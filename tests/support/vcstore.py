# SPDX-License-Identifier: LGPL-2.1-or-later
"""A second reader of the store, written from docs/formats/store.md alone: manifests, indexes, pages.
Strict: whatever the page does not allow raises Bad. Logs and handover records are not read."""
import hashlib
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

from vcdigest import PageDigest

UNMENTIONED, ZERO, HELD, UNKNOWN = range(4)
PARTIAL, CONFIRMED = 1, 2
MAX_BLOCK = 64 << 40


class Bad(Exception):
    pass


def need(condition, text):
    if not condition:
        raise Bad(text)


class Reader:
    def __init__(self, data, at=0):
        self.data, self.at = data, at

    def take(self, n):
        need(n <= len(self.data) - self.at, "cut short")
        self.at += n
        return self.data[self.at - n:self.at]

    def number(self, n):
        return int.from_bytes(self.take(n), "little")

    def zero(self, n):
        need(not any(self.take(n)), "a reserved field is not zero")

    def str8(self):
        text = self.take(self.number(1))
        need(b"\0" not in text, "NUL in a text")
        return text


def _checked(data, magic):
    """A reader behind the head of a file whose checksum and version are right."""
    need(len(data) >= 56 and hashlib.sha256(data[:-32]).digest() == data[-32:], "wrong checksum")
    r = Reader(data[:-32])
    need(r.take(8) == magic, "wrong magic")
    version, incompatible, _, _ = struct.unpack("<4I", r.take(16))
    need(version == 1 and not incompatible, f"version {version}, features {incompatible:#x}")
    return r


@dataclass
class Layer:
    id: uuid.UUID
    kind: int
    length: int

    def file_name(self):
        return f"{self.id}.{'image' if self.kind == 1 else 'delta'}"


def _layers(r, n):
    found = []
    for i in range(n):
        layer = Layer(uuid.UUID(bytes=r.take(16)), r.number(1), 0)
        r.zero(7)
        layer.length = r.number(8)
        need(layer.kind == (1 if i == 0 else 2), f"layer {i} of kind {layer.kind}")
        found.append(layer)
    return found


# ---- the manifest ----

@dataclass
class Generation:
    id: uuid.UUID
    index: uuid.UUID
    root: bytes
    flags: int
    role: int
    layers: list
    created: int
    ram_bytes: int
    zero: int
    held: int
    unknown: int
    disk_bytes: int
    reused: int
    written: int
    peer: bytes


@dataclass
class Manifest:
    vm: uuid.UUID
    lineage: bytes  # None: the VM has none
    algorithm: int
    exposed: bool
    key: bytes
    generations: list


def read_manifest(path):
    data = Path(path).read_bytes()
    r = _checked(data, b"vcmanif\n")
    need(r.number(4) == len(data) <= 65536, "wrong length")
    n = r.number(4)
    need(n <= 16, f"{n} generations")
    vm, has = uuid.UUID(bytes=r.take(16)), r.number(1)
    need(has <= 1 and str(vm) == Path(path).parent.name, "not this VM's")
    algorithm, flags = r.number(1), r.number(1)
    need(not flags & ~1, "unknown lineage flags")
    r.zero(5)
    lineage, key = r.take(16), r.take(32)
    need(has or not (algorithm or flags or any(lineage) or any(key)), "a lineage that is not there")
    generations = [_generation(r) for _ in range(n)]
    need(r.at == len(r.data), "bytes behind the last generation")
    need(sum(bool(g.flags & PARTIAL) for g in generations) <= 1, "two partial generations")
    return Manifest(vm, lineage if has else None, algorithm, bool(flags), key, generations)


@dataclass
class Holder:
    lineage: bytes
    listed: bool
    cut: bool
    names: list


def read_holders(path):
    data = Path(path).read_bytes()
    need(len(data) >= 48 and hashlib.sha256(data[:-32]).digest() == data[-32:], "wrong checksum")
    r = Reader(data[:-32])
    need(r.take(8) == b"vchold\n\0" and r.number(4) == 1, "another kind of file, or version")
    n = r.number(4)
    need(n <= 256, f"{n} holders")
    holders = [_holder(r) for _ in range(n)]
    need(r.at == len(r.data), "bytes behind the last holder")
    return holders


def _holder(r):
    lineage, flags, n = r.take(16), r.number(1), r.number(1)
    need(not flags & ~3 and 1 <= n <= 16, "flags, or a number of names")
    names = [r.str8() for _ in range(n)]
    need(all(names), "an empty name")
    return Holder(lineage, bool(flags & 1), bool(flags & 2), names)


def _generation(r):
    ids = uuid.UUID(bytes=r.take(16)), uuid.UUID(bytes=r.take(16))
    root, flags, role, n = r.take(32), r.number(4), r.number(1), r.number(1)
    r.zero(2)
    need(not flags & ~3 and role <= 2 and 1 <= n <= 8, "a field of a generation")
    numbers = [r.number(8) for _ in range(8)]
    layers, peer = _layers(r, n), r.str8()
    need(len(peer) <= 127, "a long peer")
    return Generation(*ids, root, flags, role, layers, *numbers, peer)


# ---- the index ----

@dataclass
class Block:
    name: bytes
    length: int
    offset: int
    room: int


@dataclass
class Index:
    page_size: int
    id: uuid.UUID
    lineage: bytes
    root: bytes
    layers: list
    blocks: list
    digests: bytes
    slots: bytes
    states: bytes
    layer_of: bytes

    def pages(self):
        """(number, block, page of the block) of all pages."""
        number = 0
        for b in self.blocks:
            for page in range(b.length // self.page_size):
                yield number, b, page
                number += 1

    def digest(self, number):
        return self.digests[16 * number:16 * number + 16]


def root_of(page_size, blocks, states, digests):
    """`blocks`: (name, length); `states`, `digests`: of all pages, 16 zero bytes where none is held."""
    h = hashlib.sha256(b"vecycle root 1\n\0" + struct.pack("<II", page_size, len(blocks)))
    for name, length in blocks:
        h.update(bytes([len(name)]) + name + struct.pack("<Q", length))
    first = 0
    for _, length in blocks:
        n = length // page_size
        h.update(states[first:first + n])
        h.update(b"".join(digests[16 * i:16 * i + 16] for i in range(first, first + n)
                          if states[i] == HELD))
        first += n
    return h.digest()


def read_index(path):
    data = Path(path).read_bytes()
    r = _checked(data, b"vcindex\n")
    need(r.number(8) == len(data), "wrong length")
    header, page_size = r.number(4), r.number(4)
    need(header % 4096 == 0 and page_size in (1 << n for n in range(10, 17)), "header or page size")
    ids = uuid.UUID(bytes=r.take(16)), r.take(16)
    root, n, n_blocks, n_layers = r.take(32), r.number(8), r.number(4), r.number(4)
    need(n <= 0xffffffff and n_blocks <= 256 and 1 <= n_layers <= 8, "counts")
    layers = _layers(r, n_layers)
    blocks = [_block(r, page_size, layers[0]) for _ in range(n_blocks)]
    need(len({b.name for b in blocks}) == n_blocks, "two blocks of one name")
    need(sum(b.length for b in blocks) == n * page_size, "another number of pages")
    need(r.at <= header, "the header is too short")
    r.zero(header - r.at)
    index = Index(page_size, *ids, root, layers, blocks, r.take(16 * n), r.take(4 * n), r.take(n),
                  r.take(n))
    need(r.at == len(r.data), "bytes behind the layer numbers")
    _check_pages(index)
    return index


def _block(r, page_size, image):
    length, offset, room = r.number(8), r.number(8), r.number(8)
    b = Block(r.str8(), length, offset, room)
    need(b.name and length <= MAX_BLOCK and length % page_size == 0, "a block")
    need(offset % page_size == 0 and room % page_size == 0, "a block's place")
    need(not room or offset + room <= image.length, "a block outside its image")
    return b


def _check_pages(x):
    for number, _, _ in x.pages():
        if x.states[number] != HELD:
            need(x.states[number] in (UNMENTIONED, ZERO, UNKNOWN), "a state")
            need(not any(x.digest(number)) and not any(x.slots[4 * number:4 * number + 4])
                 and not x.layer_of[number], "fields of a page that is not held")
    need(root_of(x.page_size, [(b.name, b.length) for b in x.blocks], x.states, x.digests) == x.root,
         "the root is not that of its pages")


# ---- a whole VM ----

class Vm:
    """One VM's directory, all of whose generations are read and whose pages are digested."""

    def __init__(self, store, vm):
        self.directory = Path(store) / "vms" / str(vm)
        need((Path(store) / "format").read_bytes() == b"vecycle store 1\n", "not a store")
        self.manifest = read_manifest(self.directory / "manifest")
        self.indexes = {}
        for g in self.manifest.generations:
            self.indexes[g.id] = self._check(g, read_index(self.directory / f"{g.index}.index"))

    def _check(self, g, x):
        states = [x.states.count(s) for s in (ZERO, HELD, UNKNOWN)]
        need((x.id, x.root, x.layers) == (g.id, g.root, g.layers), "the index is another's")
        need(x.lineage == self.manifest.lineage, "a generation of another lineage")
        need(states == [g.zero, g.held, g.unknown], "other numbers of pages")
        need(sum(b.length for b in x.blocks) == g.ram_bytes, "another size of RAM")
        return x

    def content(self, index, files, number, block, page):
        layer = index.layer_of[number]
        need(layer < len(files), "a layer that is not there")
        if layer:
            slot = struct.unpack_from("<I", index.slots, 4 * number)[0]
            at = slot * index.page_size
        else:
            need((page + 1) * index.page_size <= block.room, "a page that its image has no room for")
            at = block.offset + page * index.page_size
        files[layer].seek(at)
        data = files[layer].read(index.page_size)
        need(len(data) == index.page_size, "a layer is too short")
        return data

    def pages(self, index):
        """(number, block, page of the block, content) of all held pages."""
        files = [open(self.directory / layer.file_name(), "rb") for layer in index.layers]
        try:
            for number, block, page in index.pages():
                if index.states[number] == HELD:
                    yield number, block, page, self.content(index, files, number, block, page)
        finally:
            for f in files:
                f.close()

    def verify(self, index):
        """Digests every held page; returns their number."""
        digest, held = PageDigest(self.manifest.key), 0
        for number, _, _, data in self.pages(index):
            need(any(data) and digest(data) == index.digest(number), f"page {number}")
            held += 1
        return held

    def names(self):
        """Names of files that the manifest and its indexes refer to."""
        found = {"lock", "manifest"}
        for g in self.manifest.generations:
            found |= {f"{g.index}.index", *(layer.file_name() for layer in g.layers)}
        return found
