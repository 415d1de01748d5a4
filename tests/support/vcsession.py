# SPDX-License-Identifier: LGPL-2.1-or-later
"""Follows a recorded session of the wire protocol: every frame has to be legal where it stands, every
seal right, and what comes out is QEMU's stream and the new generation as both hosts should have it."""
import struct

import vcbatch
import vcwire
from vcbatch import DATA, INVALIDATE, MOVED, SAME, SHIFTED, ZERO
from vcdigest import PageDigest
from vcstore import HELD, UNKNOWN, UNMENTIONED, root_of
from vcstore import ZERO as STATE_ZERO
from vcwire import DEST, SOURCE, Bad


POSTCOPY = (4, 5, 6)  # modes in which the word comes before the end of the stream


def need(condition, text):
    if not condition:
        raise Bad("session", text)


class Generation:
    """What a migration leaves on both hosts."""

    def __init__(self, page_size, blocks, digest):
        self.page_size, self.blocks, self.digest = page_size, blocks, digest
        self.pages = {}  # (name, page) -> content; b"": zeroes; None: unknown

    def state(self, name, page):
        content = self.pages.get((name, page), 0)
        return {0: UNMENTIONED, None: UNKNOWN, b"": STATE_ZERO}.get(content, HELD)

    def content(self, name, page):
        need(self.state(name, page) == HELD, f"a reference to page {page} of {name}, which is not held")
        return self.pages[name, page]

    def root(self):
        """The index root (docs/formats/store.md, section 3)."""
        states, digests = bytearray(), bytearray()
        for name, length in self.blocks:
            for page in range(length // self.page_size):
                state = self.state(name, page)
                states.append(state)
                digests += self.digest(self.pages[name, page]) if state == HELD else bytes(16)
        return root_of(self.page_size, self.blocks, bytes(states), bytes(digests))


class Side:
    def __init__(self, name):
        self.name, self.buffer, self.phase = name, bytearray(), "hello"
        self.seen = []  # names of frames
        self.over = False


class SideChannel:
    """Channel 1 (section 4): literal bytes under a seal of its own."""

    def __init__(self, seals):
        self.seals, self.stream, self.ended = seals, bytearray(), False
        self.outstanding, self.batches = {}, 0

    def frame(self, f):
        need(not self.ended or f.name == "ACK", f"{f.name} on a channel that has ended")
        if f.name == "BATCH":
            self._batch(f.payload)
        elif f.name == "ACK":
            m = vcwire.decode(f.name, f.payload)
            need(self.outstanding.get(m["sequence"], [0, 0])[1] == m["position"], "ACK of nothing")
            for n in [n for n in self.outstanding if n <= m["sequence"]]:
                del self.outstanding[n]
        else:
            need(f.name == "EOF" and self.batches, f"{f.name} on channel 1")
            self.ended = True

    def _batch(self, payload):
        b = vcbatch.decode_batch(payload)
        need(all(r.kind == vcbatch.OPAQUE for r in b.runs) and len(b.runs) <= 1, "more than bytes")
        need(b.runs or not self.batches, "an empty batch that opens nothing")
        self.batches += 1
        need(b.sequence == self.batches and b.position == len(self.stream), "a gap between batches")
        stream, covered, _ = vcbatch.expand(b, [], 4096)
        need(self.seals.next(b.sequence, b.position, covered) == b.seal, "a wrong seal on channel 1")
        self.stream += stream
        self.outstanding[b.sequence] = b.position, len(self.stream)
        waiting = len(self.stream) - self.outstanding[min(self.outstanding)][0]
        need(len(self.outstanding) <= 256 and waiting <= 1 << 20, "too much on its way")

    def pages(self, page_size):
        """(block's name, page) of each page that it carried (docs/internals/qemu-stream.md)."""
        r, name, found = vcwire.Reader(bytes(self.stream), "stream"), None, set()
        while r.left():
            word = int.from_bytes(r.take(8), "big")
            offset, flags = word & ~0x3ff, word & 0x3ff
            if flags == vcbatch.REC_EOS:
                continue
            if not flags & vcbatch.REC_CONTINUE:
                name = r.take(r.u8())
            flags &= ~vcbatch.REC_CONTINUE
            need(name and flags in (vcbatch.REC_PAGE, vcbatch.REC_ZERO) and not offset % page_size,
                 f"a record with {word:#x} on channel 1")
            r.take(page_size if flags == vcbatch.REC_PAGE else 1)
            found.add((name, offset // page_size))
        return found


class Session:
    """feed() takes what each side sent, in the order in which it was seen on the way.

    `keys`: keys of lineages and `generations`: generations by their id, from sessions before; both
    are added to. `stored(generation, name, page)`: what the destination's store had of them before
    this session, None if it did not hold the page."""

    def __init__(self, keys=None, generations=None, stored=None):
        self.keys = {} if keys is None else keys
        self.generations = {} if generations is None else generations
        self.stored = stored or (lambda *_: None)
        self.sides = {s: Side(s) for s in (SOURCE, DEST)}
        self.hello, self.open, self.accept, self.start = {}, None, None, None
        self.page_size, self.blocks, self.announce_blocks = 4096, [], []
        self.announced = {}
        self.reads = dict.fromkeys(vcwire.READS, 0)
        self.keeps = None
        self.base, self.generation, self.seals = None, None, None
        self.batches, self.asked, self.repaired = {}, {}, {}
        self.recent = {}  # (block name, page): (run, number in it) that carried it last
        self.position, self.acked = 0, 0
        self.returned, self.committed = bytearray(), {}
        self.side_channel = None

    def feed(self, sender, data):
        side = self.sides[sender]
        side.buffer += data
        at = 0
        while True:
            f, at = vcwire.read_frame(side.buffer, at, sender, side.phase)
            if f is None:
                break
            self._frame(side, f)
        del side.buffer[:at]

    def finish(self):
        for side in self.sides.values():
            need(not side.buffer, f"the {side.name} ends in the middle of a frame")
            need(side.over, f"the {side.name} did not say CLOSE")

    def stream(self):
        """QEMU's stream; seals are checked and the new generation is filled on the way."""
        out = bytearray()
        for sequence in sorted(self.batches):
            out += self._expand(self.batches[sequence])
        return bytes(out)

    # ---- frames ----

    def _frame(self, side, f):
        need(not side.over, f"{f.name} from the {side.name} after its last word")
        if f.skipped:
            return
        if f.channel:
            self._side(f)
            return
        side.seen.append(f.name)
        if f.name == "BATCH":
            self._batch(f.payload)
            return
        m = vcwire.decode(f.name, f.payload, self.page_size, self.announce_blocks)
        handler = getattr(self, "_on_" + f.name.lower(), None)
        need(handler or f.name in ("PING", "PONG"), f"{f.name} in a session that went well")
        if handler:
            handler(side, m)

    def _side(self, f):
        need(f.channel == 1 and self._features() & 8, f"{f.name} on channel {f.channel}")
        if not self.side_channel:
            seals = vcbatch.Seals(self.keys[self.start["lineage"]],
                                  self.open["session"] + struct.pack("<H", f.channel))
            self.side_channel = SideChannel(seals)
        self.side_channel.frame(f)

    def _on_hello(self, side, m):
        need(m["role"] == (1 if side.name == SOURCE else 2), "a wrong role")
        need(side.name not in self.hello, "HELLO came twice")
        self.hello[side.name] = m
        if len(self.hello) == 2:
            need(vcwire.negotiate(*self.hello.values()) == 1, "another version")
            for s in self.sides.values():
                s.phase = "open"

    def _features(self):
        return self.hello[SOURCE]["features"] & self.hello[DEST]["features"]

    def _on_open(self, _, m):
        need(not self.open, "OPEN came twice")
        self.open = m

    def _on_accept(self, _, m):
        need(self.open and not self.accept, "ACCEPT out of turn")
        self.accept = m
        if m["has_lineage"]:
            self.keys[m["lineage"]] = m["key"]
        held = {i: root for i, root in self.open["generations"]}
        need(m["base_kind"] != 1 or m["generation"] in held, "ping-pong that was not offered")

    def _on_start(self, _, m):
        need(self.accept and not self.start, "START out of turn")
        need(m["base_kind"] in (0, self.accept["base_kind"]), "another base than was accepted")
        need(m["has_key"] or not self.accept["needs_key"] or
             m["lineage"] != self.open.get("lineage"), "a key that was needed is missing")
        self.start = m
        if m["has_key"]:
            self.keys[m["lineage"]] = m["key"]
        key = self.keys[m["lineage"]]
        self.seals = vcbatch.Seals(key, self.open["session"])
        self.digest = PageDigest(key)
        if m["base_kind"]:
            self.base = self.generations[self.accept["generation"]]
        for s in self.sides.values():
            s.phase = "stream"

    def _on_blocks(self, _, m):
        need(not self.blocks, "BLOCKS came twice")
        self.page_size, self.blocks = m["page_size"], m["blocks"]

    def _on_eof(self, side, _):
        need(side.seen.count("EOF") == 1, "EOF came twice")
        self._maybe_end(side)

    def _maybe_end(self, side):
        if "EOF" in side.seen and "COMMITTED" in side.seen:
            side.phase = "end"

    def _on_ack(self, _, m):
        need(m["sequence"] in self.batches and m["sequence"] >= self.acked, "ACK of nothing")
        b = self.batches[m["sequence"]]
        need(m["position"] == b.position + b.stream_bytes, "ACK with a wrong position")
        self.acked = m["sequence"]

    def _on_repair(self, _, m):
        need(m["sequence"] in self.batches and m["sequence"] > self.acked, "REPAIR of nothing")
        self.asked.setdefault(m["sequence"], []).extend(m["ordinals"])

    def _on_repaired(self, _, m):
        asked = self.asked[m["sequence"]]
        need([i for i, _ in m["pages"]] == asked[:len(m["pages"])], "REPAIRED out of turn")
        del asked[:len(m["pages"])]
        self.repaired.setdefault(m["sequence"], {}).update(m["pages"])

    def _on_resend(self, _, m):
        need(m["sequence"] in self.batches and m["sequence"] > self.acked, "RESEND of nothing")
        self.batches[m["sequence"]].again = True

    def _on_return(self, _, m):
        self.returned += m["data"]

    def _on_announce_blocks(self, _, m):
        need(self.start["base_kind"] == 2 and self._features() & 1, "nothing was to be announced")
        need(not self.announce_blocks, "ANNOUNCE_BLOCKS came twice")
        need([(n, size) for n, size in m["blocks"]] == self.base.blocks, "other blocks announced")
        self.announce_blocks = m["blocks"]
        self.page_size = m["page_size"]

    def _on_announce(self, side, m):
        need(self.announce_blocks and "ANNOUNCE_END" not in side.seen, "ANNOUNCE out of turn")
        name, page = self.announce_blocks[m["block"]][0], m["page"]
        for kind, count, prefixes in m["runs"]:
            for i in range(count):
                self._announced(name, page + i, kind, prefixes[i] if prefixes else None)
            page += count

    def _announced(self, name, page, kind, prefix):
        need((name, page) not in self.announced, "announced twice")
        self.announced[name, page] = kind
        state = self.base.state(name, page)
        need(kind == {STATE_ZERO: 1, HELD: 2}.get(state, 0), f"page {page} of {name} announced as {kind}")
        if kind == 2:
            need(prefix == self.digest(self.base.pages[name, page])[:8], "a wrong prefix")

    def _on_announce_end(self, side, _):
        need(self.announce_blocks and side.seen.count("ANNOUNCE_END") == 1, "ANNOUNCE_END out of turn")

    def _on_reads(self, _, m):
        need(self._features() & 32, "READS, which was not agreed on")
        need(self.batches, "READS before the first batch")
        need(all(m[key] >= self.reads[key] for key in m), "READS of less than before")
        self.reads = m

    def _on_keeps(self, _, m):
        need(self._features() & 256, "KEEPS, which was not agreed on")
        need(self.keeps is None or (self.keeps, m["flags"]) in ((1, 0), (3, 2)), "KEEPS changed back")
        self.keeps = m["flags"]

    def _on_committed(self, side, m):
        need(m["generation"] == self.start["generation"], "another generation")
        need(side.name not in self.committed, "COMMITTED came twice")
        self.committed[side.name] = m
        self._maybe_end(side)

    def _on_word(self, _, m):
        need(self.open["mode"] != 1 and m["session"] == self.open["session"], "WORD out of turn")
        need(self.open["mode"] in POSTCOPY or self.shut_status() == 0,
             "WORD, though the destination QEMU failed")

    def _on_word_done(self, _, m):
        need("WORD" in self.sides[SOURCE].seen and m["code"] == 0, f"WORD_DONE {m}")

    def _on_close(self, side, _):
        side.over = True

    # ---- batches ----

    def _batch(self, payload):
        b = vcbatch.decode_batch(payload, self.blocks, self.page_size, self._features(), self._old,
                                 self._before)
        self._note(b)
        b.again = False
        need(b.stream_bytes <= self.accept["max_stream"], "a batch larger than accepted")
        old = self.batches.get(b.sequence)
        if old:
            need(old.again and b.self_contained, "a batch that was not asked for again")
            need((old.position, old.seal) == (b.position, b.seal), "another batch, sent again")
            self.repaired.pop(b.sequence, None)
        else:
            need("EOF" not in self.sides[SOURCE].seen, "a batch after EOF")
            need(b.sequence == len(self.batches) + 1 and b.position == self.position,
                 "a gap between batches")
            self.position += b.stream_bytes
        self.batches[b.sequence] = b

    def _old(self, name, page):
        """A page of the base generation, whether or not it is what the index says: what a delta is
        made against is not checked by itself."""
        return self.stored(self.accept["generation"], name, page) if self.base else None

    def _before(self, name, page):
        """A page as the session has carried it, or else as it is in the base generation."""
        run, i = self.recent.get((name, page), (None, 0))
        if run is None or run.kind == SAME:
            return self._old(name, page)
        if run.kind == DATA:
            return run.content[i * self.page_size:(i + 1) * self.page_size]
        return bytes(self.page_size)

    def _note(self, b):
        for r in b.runs:
            for i in range(r.count if r.kind in (SAME, ZERO, DATA, INVALIDATE) else 0):
                place = self.blocks[r.block][0], r.page + i
                if r.kind == INVALIDATE:
                    self.recent.pop(place, None)
                else:
                    self.recent[place] = r, i

    def _expand(self, b):
        need(self.base or all(r.kind not in (SAME, MOVED) for r in b.runs), "a reference to nothing")
        stream, covered, pages = vcbatch.expand(
            b, self.blocks, self.page_size, self.base and self.base.content,
            self.repaired.get(b.sequence), self.digest)
        need(len(stream) == b.stream_bytes, "wrong length")
        need(self.seals.next(b.sequence, b.position, covered) == b.seal,
             f"the seal of batch {b.sequence} is wrong")
        self._record(b, pages)
        return stream

    def _record(self, b, pages):
        if self.generation is None:
            self.generation = Generation(self.page_size, self.blocks, self.digest)
            self.generations[self.start["generation"]] = self.generation
        g = self.generation
        g.page_size, g.blocks = self.page_size, self.blocks
        contents = iter(pages)
        for r in b.runs:
            name = self.blocks[r.block][0] if self.blocks else None
            for i in range(0 if r.kind == vcbatch.OPAQUE else r.count):
                if r.kind in (SAME, DATA, MOVED, SHIFTED):
                    g.pages[name, r.page + i] = next(contents)[2]
                elif r.kind == ZERO:
                    if r.as_page:
                        next(contents)
                    g.pages[name, r.page + i] = b""
                elif r.kind == INVALIDATE:
                    g.pages[name, r.page + i] = None

    def shut_status(self):
        """The status of SHUT at the end of the return path."""
        kind, length, status = struct.unpack(">HHI", self.returned[-8:])
        need((kind, length) == (1, 4), "the return path does not end with SHUT")
        return status
