#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The golden frames of tests/vectors/wire, judged by the decoder in Python. Exit status 77: skipped."""
import re
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

try:
    import vcbatch
    import vcvectors
    import vcwire
    from vcdigest import Digest
except ImportError as e:
    print(f"skipped: {e} (Debian: python3-zstandard, python3-cryptography)")
    sys.exit(77)

HEAD, VECTORS = vcvectors.read_manifest((vcvectors.DIRECTORY / "manifest").read_text())


def data_of(vector):
    return (vcvectors.DIRECTORY / f"{vector['name']}.bin").read_bytes()


def judge(x, data):
    return vcvectors.judge(data, x["sender"], x["phase"], x["before"], x["features"])


class Vectors(unittest.TestCase):
    def test_the_manifest_is_complete(self):
        self.assertEqual(HEAD, vcvectors.context())
        files = {f.stem for f in vcvectors.DIRECTORY.glob("*.bin")}
        self.assertEqual(files, {x["name"] for x in VECTORS})
        self.assertEqual(len(files), len(VECTORS))

    def test_every_type_has_a_good_and_a_bad_one(self):
        for want in "good", "bad":
            seen = {data_of(x)[4] for x in VECTORS if x["verdict"].startswith(want)}
            self.assertLessEqual(set(vcwire.BY_NUMBER), seen, want)

    def test_verdicts_and_fields(self):
        for x in VECTORS:
            with self.subTest(x["name"]):
                verdict, lines = judge(x, data_of(x))
                self.assertEqual(verdict, x["verdict"])
                if verdict == "good":
                    self.assertEqual(lines, x["fields"])

    def test_what_is_cut_short_is_never_good(self):
        for x in VECTORS:
            data = data_of(x)
            if x["verdict"] != "good" or x["name"] == "hello-longer":
                continue
            step = max(1, len(data) // 97)
            for n in range(8, len(data), step):
                short = (n - 8).to_bytes(4, "little") + data[4:n]
                verdict, _ = judge(x, short)
                # The bytes of RETURN end where they end, and so does a list of announced runs.
                if data[4] not in (vcwire.BY_NAME["RETURN"].number,
                                   vcwire.BY_NAME["ANNOUNCE"].number):
                    self.assertTrue(verdict.startswith("bad"), f"{x['name']} cut at {n}: {verdict}")


class Deltas(unittest.TestCase):
    """What the golden frames do not show, as their base holds every page."""

    OLD = vcvectors.base_page(b"vga", 3)
    NEW = OLD[:100] + b"what has changed" + OLD[116:]

    def decoded(self, base, recent=None, codec=vcbatch.DELTA):
        run = vcbatch.Run(vcbatch.DATA, 1, 1, 3, old=True, content=self.NEW)
        b = vcbatch.Batch(1, 0, 8 + vcvectors.PAGE_SIZE, bytes(16), [run], codec)
        payload = vcbatch.encode_batch(b, prefix=self.OLD)
        self.assertLess(len(payload), 48 + 68)
        return vcbatch.decode_batch(payload, vcvectors.BLOCKS, vcvectors.PAGE_SIZE,
                                    vcbatch.FEATURE_DELTA | vcbatch.FEATURE_RECENT, base, recent)

    def test_recent_pages_come_before_those_of_the_base(self):
        b = self.decoded(lambda *_: bytes(vcvectors.PAGE_SIZE), lambda *_: self.OLD, vcbatch.RECENT)
        self.assertEqual(b.runs[0].content, self.NEW)
        with self.assertRaises(vcwire.Bad) as e:
            self.decoded(lambda *_: self.OLD, lambda *_: None, vcbatch.RECENT)
        self.assertEqual(e.exception.code, "SEAL")

    def test_contents_come_from_the_old_page(self):
        asked = []

        def base(*page):
            asked.append(page)
            return self.OLD
        self.assertEqual(self.decoded(base).runs[0].content, self.NEW)
        self.assertEqual(asked, [(b"vga", 3)])

    def test_old_pages_have_to_be_held(self):
        for base in None, lambda *_: None:
            with self.assertRaises(vcwire.Bad) as e:
                self.decoded(base)
            self.assertEqual((e.exception.stage, e.exception.code), ("base", "PROTOCOL"))

    def test_another_old_page_gives_another_content_or_none(self):
        for page in bytes(vcvectors.PAGE_SIZE), self.OLD[1:] + b"x":
            try:
                self.assertNotEqual(self.decoded(lambda *_, page=page: page).runs[0].content, self.NEW)
            except vcwire.Bad as e:
                self.assertEqual(e.code, "SEAL")


class Frames(unittest.TestCase):
    def test_the_table_of_the_page(self):
        """The decoder's table was typed; it has to follow the page when that changes."""
        text = (ROOT / "docs/formats/wire.md").read_text()
        rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \| (\w+) \| ([\d.]+) \| ([^|]+?) \|$", text, re.M)
        self.assertEqual(len(rows), len(vcwire.TYPES))
        for (number, name, sender, length, phases), t in zip(rows, vcwire.TYPES):
            least, _, most = length.partition("..")
            allowed = phases.replace(" (reserved)", "").split(", ")
            allowed = {"any": ["hello", "open", "stream", "end"],
                       "any but hello": ["open", "stream", "end"]}.get(allowed[0], allowed)
            self.assertEqual(
                (int(number), name, [sender], int(least), int(most or least), allowed),
                (t.number, t.name, ["both"] if len(t.senders) == 2 else list(t.senders), t.least,
                 t.most, list(t.phases)))


class Digests(unittest.TestCase):
    def test_the_table_of_the_page(self):
        text = (ROOT / "docs/internals/digest.md").read_text()
        rows = re.findall(r"^\| (empty|`\w+`) \| ([0-9a-f]{32}) \| ([0-9a-f]{32}) \|$", text, re.M)
        page = bytes((7 * i + i // 256) % 256 for i in range(4096))
        messages = {"empty": b"", "`abc`": b"abc", "`p`": page}
        self.assertEqual(len(rows), 3)
        for name, *expected in rows:
            found = [Digest(bytes(range(32)), p)(messages[name]).hex() for p in ("page", "seal")]
            self.assertEqual(found, expected, name)


class Numbers(unittest.TestCase):
    def test_varints_have_one_form(self):
        for n in 0, 1, 127, 128, 16383, 16384, (1 << 63), (1 << 64) - 1:
            data = vcwire.varint(n)
            self.assertEqual(vcwire.Reader(data).varint(), n)
            padded = data[:-1] + bytes([data[-1] | 0x80, 0])
            with self.assertRaises(vcwire.Bad):
                vcwire.Reader(padded).varint()

    def test_zigzag(self):
        for n, v in ((0, 0), (-1, 1), (1, 2), (-(1 << 63), (1 << 64) - 1), ((1 << 63) - 1, (1 << 64) - 2)):
            self.assertEqual((vcwire.zigzag(n), vcwire.unzigzag(v)), (v, n))


if __name__ == "__main__":
    unittest.main()
