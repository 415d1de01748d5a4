# SPDX-License-Identifier: LGPL-2.1-or-later
"""Migration streams for the corpus: recorded from a stock QEMU and cut down, and synthetic ones of
machines that need not be installed (docs/internals/qemu-stream.md has the format)."""
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))
from vctest.proc import readable, wait_for  # noqa: E402
from vctest.qmp import Qmp  # noqa: E402

SHUT = bytes([0, 1, 0, 4, 0, 0, 0, 0])
EOS, CONTINUE = 0x10, 0x20
FLAGS = 0x3FF


# ---- recording ----

class Recorder:
    """Plays the destination: takes the stream, and says that all went well once it has ended, which
    only its silence tells."""

    def __init__(self, path):
        self.data = bytearray()
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.server.bind(str(path))
        self.server.listen(1)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        peer, _ = self.server.accept()
        with peer:
            while True:
                if not readable(peer, 1.5):
                    peer.sendall(SHUT)
                    peer.settimeout(20)
                chunk = peer.recv(1 << 16)
                if not chunk:
                    break
                self.data += chunk

    def stream(self):
        self.thread.join(60)
        self.server.close()
        return bytes(self.data)


def record(memory="2M", guest=None, capabilities=(), rounds=0, postcopy=False, extra=()):
    """Migrates a small VM away and returns what QEMU said."""
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        argv = ["qemu-system-x86_64", "-machine", "pc,accel=tcg", "-m", memory, "-nodefaults",
                "-display", "none", "-vga", "none", "-uuid", str(uuid.UUID(int=7)),
                "-qmp", f"unix:{tmp}/qmp,server=on,wait=off", *extra]
        if guest:
            subprocess.run(["/usr/bin/python3", ROOT / "tests/guest/build.py", "selfcheck",
                            tmp / "guest.img", "--end-mib", str(guest), "--delay", "1000"],
                           check=True)
            argv += ["-drive", f"file={tmp}/guest.img,format=raw,if=ide,snapshot=on"]
        else:
            argv += ["-S"]
        qemu = subprocess.Popen(argv)
        try:
            qmp = Qmp(f"{tmp}/qmp")
            recorder = Recorder(tmp / "stream")
            caps = [{"capability": c, "state": True} for c in capabilities]
            if caps:
                qmp.execute("migrate-set-capabilities", capabilities=caps)
            qmp.execute("migrate-set-parameters", max_bandwidth=(4 << 20) if rounds else (1 << 40),
                        downtime_limit=1 if rounds else 300)
            qmp.execute("migrate", uri=f"unix:{tmp}/stream")

            def info():
                return qmp.execute("query-migrate")
            if rounds:
                wait_for(lambda: info().get("ram", {}).get("dirty-sync-count", 0) > rounds, 60,
                         "more rounds")
                if postcopy:
                    qmp.execute("migrate-start-postcopy")
                qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40, downtime_limit=2000)
            wait_for(lambda: info().get("status") in ("completed", "failed"), 60, "the end")
            return recorder.stream()
        finally:
            qemu.kill()
            qemu.wait()


# ---- cutting down ----

class Cursor:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        if self.at + n > len(self.data):
            raise EOFError
        self.at += n
        return self.data[self.at - n:self.at]

    def number(self, n):
        return int.from_bytes(self.take(n), "big")

    def text(self):
        return self.take(self.number(1))


def ram_records(c, keep):
    """Reads records up to EOS and returns those that keep() wants, names put right."""
    out, block, named = bytearray(), None, None
    while True:
        header = c.number(8)
        flags = header & FLAGS
        if flags & 0x04:  # MEM_SIZE
            out += struct.pack(">Q", header)
            left = header & ~FLAGS
            while left:
                name, size = c.text(), c.number(8)
                out += bytes([len(name)]) + name + struct.pack(">Q", size)
                left -= size
            continue
        if flags in (EOS, 0x200, 0x80):
            out += struct.pack(">Q", header)
            if flags == EOS:
                return bytes(out)
            continue
        if not flags & CONTINUE:
            block = c.text()
        kind = flags & ~CONTINUE
        if kind == 0x08:
            body = c.take(4096)
        elif kind == 0x02:
            body = c.take(1)
        elif kind == 0x40:
            head = c.take(3)
            body = head + c.take(int.from_bytes(head[1:], "big"))
        elif kind == 0x100:
            head = c.take(4)
            body = head + c.take(int.from_bytes(head, "big"))
        else:
            raise ValueError(f"flags {flags:#x}")
        if not keep(kind, block):
            continue
        if named == block:
            out += struct.pack(">Q", header | CONTINUE) + body
        else:
            out += struct.pack(">Q", header & ~CONTINUE) + bytes([len(block)]) + block + body
            named = block


def shorten(data, pages=2, zeroes=5, others=3, tail=1200):
    """Keeps the frame of a stream, and of each RAM section only so many records."""
    c = Cursor(data)
    out = bytearray(c.take(8))
    while True:
        start = c.at
        kind = c.number(1)
        if kind == 0x07:
            c.take(c.number(4))
        elif kind == 0x08:
            command, n = c.number(2), c.number(2)
            body = c.take(n)
            if command == 7:  # PACKAGED
                n = int.from_bytes(body, "big")
                blob = c.take(n)[:300]
                out += b"\x08\0\x07\0\x04" + struct.pack(">I", len(blob)) + blob
                continue
        elif kind in (1, 2, 3):
            c.take(4)
            if kind == 1:
                c.text()
                c.take(8)
            out += data[start:c.at]
            left = {0x08: pages, 0x02: zeroes, 0x40: others, 0x100: others}

            def keep(flag, _block):
                left[flag] -= 1
                return left[flag] >= 0
            out += ram_records(c, keep)
            out += c.take(5)  # footer
            continue
        else:  # device state: verbatim to the end
            rest = data[start:]
            return bytes(out) + rest[:tail // 2] + rest[-tail // 2:]
        out += data[start:c.at]


def fewer_parts(data, most=4):
    """Drops RAM PART sections in the middle (footer, PART: 7e id 02 id)."""
    marks, at = [], 0
    while (at := data.find(b"\x7e\0\0\0", at)) >= 0:
        if at + 10 <= len(data) and data[at + 5] == 2 and data[at + 6:at + 10] == data[at + 1:at + 5]:
            marks.append(at + 5)
        at += 1
    if len(marks) <= most:
        return data
    return data[:marks[most // 2]] + data[marks[-(most // 2)]:]


# ---- synthetic ones ----

def be(v, n):
    return int(v).to_bytes(n, "big")


def str8(s):
    s = s.encode()
    return bytes([len(s)]) + s


def start(kind, number, name, version, instance=0):
    return bytes([kind]) + be(number, 4) + str8(name) + be(instance, 4) + be(version, 4)


def part(kind, number):
    return bytes([kind]) + be(number, 4)


def footer(number):
    return b"\x7e" + be(number, 4)


def page(offset, size, name=None):
    body = bytes((0x81 + (offset >> 10) + i * 7) & 0xFF | 0x80 for i in range(size))
    return record_head(0x08, offset, name) + body


def zero(offset, name=None):
    return record_head(0x02, offset, name) + b"\0"


def record_head(flag, offset, name):
    return be(offset | flag | (0 if name else CONTINUE), 8) + (str8(name) if name else b"")


def config(machine, page_bits=None):
    out = b"QEVM\0\0\0\3" + b"\x07" + be(len(machine), 4) + machine.encode()
    if page_bits:
        out += b"\x05" + str8("configuration/target-page-bits") + be(1, 4) + be(page_bits, 4)
    return out


def command(number, payload=b""):
    return b"\x08" + be(number, 2) + be(len(payload), 2) + payload


TAIL = start(4, 0, "timer", 2) + b"\x55" * 60 + footer(0) + b"\0\x06" + be(2, 4) + b"{}"


def synthetic(machine, block, size, page_bits=None, others=b"", footers=True, huge=0, late=b""):
    """A whole stream of a machine with pages of that size."""
    def foot(n):
        return footer(n) if footers else b""
    out = config(machine, page_bits) + command(1) + command(2, be(1, 4))
    if huge:
        out += command(3, be(size | huge, 8) + be(size, 8))
    out += others + start(1, 2, "ram", 4) + be(16 * size | 4, 8) + str8(block) + be(16 * size, 8)
    if huge:
        out += be(huge, 8)
    out += be(EOS, 8) + foot(2) + part(2, 2)
    out += zero(0, block) + zero(size) + page(2 * size, size) + zero(3 * size) + be(EOS, 8) + foot(2)
    out += late + part(3, 2) + page(size, size, block) + zero(2 * size) + be(EOS, 8) + foot(2)
    return out + TAIL


def synthetics():
    """Name and stream of each kind that the recorded ones do not show."""
    yield "aarch64", synthetic("virt-7.2", "mach-virt.ram", 4096, 12)
    yield "arm-1k", synthetic("versatilepb", "versatile.ram", 1024)
    yield "s390x", synthetic("s390-ccw-virtio-7.2", "s390.ram", 4096,
                             others=start(1, 3, "s390-storage_attributes", 0) + be(0x02, 8) +
                             be(8, 8) + b"\1" * 8 + be(0x10, 8) + footer(3),
                             late=part(2, 3) + be(0x40, 8) + be(4, 8) + b"\2" * 4 + be(0x10, 8) +
                             footer(3))
    yield "ppc64", synthetic("pseries-7.2", "ppc_spapr.ram", 4096,
                             others=start(1, 5, "spapr/htab", 1) + be(24, 4) + footer(5),
                             late=part(2, 5) + be(0, 4) + be(2, 2) + be(1, 2) + b"\7" * 32 +
                             be(0, 4) + be(0, 2) + be(0, 2) + footer(5))
    yield "sparc64-8k", synthetic("sun4u", "sun4u.ram", 8192)
    yield "no-footers", synthetic("pc-i440fx-2.3", "pc.ram", 4096, footers=False)
    yield "postcopy-huge", synthetic("pc-q35-7.2", "m", 4096, huge=8 * 4096)
    yield "dirty-bitmap", synthetic("pc-q35-7.2", "pc.ram", 4096,
                                    others=start(1, 4, "dirty-bitmap", 1) + b"\x8c" + str8("d0") +
                                    str8("b0") + be(65536, 4) + b"\1" + b"\x01" + footer(4))
    yield "virtio-mem-early", synthetic("pc-q35-8.0", "pc.ram", 4096, others=start(
        4, 9, "0000:00:02.0/virtio-mem-device-early", 1) + b"\0" * 20 + be(0, 4) + be(8, 8) +
        be(16, 8)[:4] + b"\0" * 8 + footer(9))
    # Lost and found again: an unknown section between two of RAM.
    yield "unknown-section", synthetic("pc-q35-7.2", "pc.ram", 4096,
                                       late=start(1, 8, "strange", 1) + b"\x44" * 40 + footer(8) +
                                       part(2, 2) + zero(0, "pc.ram") + page(4096, 4096) +
                                       be(EOS, 8) + footer(2))
    yield "multifd", be(0x11223344, 4) + be(1, 4) + bytes(40)
    yield "tls", b"\x16\x03\x01" + bytes(40)
    yield "recovery", b"QEVM\0\0\0\3" + command(9) + command(10, str8("pc.ram"))
    compressed = (record_head(0x100, 0, "pc.ram") + be(9, 4) + b"deflated!" +
                  record_head(0x40, 4096, None) + b"\1" + be(5, 2) + b"\0\1x\1y")
    yield "compress-xbzrle", synthetic("pc-q35-7.2", "pc.ram", 4096, late=part(2, 2) + compressed +
                                       be(0x200, 8) + be(EOS, 8) + footer(2))
