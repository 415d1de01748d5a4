# SPDX-License-Identifier: LGPL-2.1-or-later
"""The two guests, as the tests see them over their serial consoles."""
import os
import subprocess
import sys
import time
from pathlib import Path

from .proc import patient, readable, wait_for

GUEST = Path(__file__).resolve().parents[2] / "guest"
BUILD = Path(os.environ.get("VC_BUILD_DIR", Path(__file__).resolve().parents[3] / "build"))


def build(*argv):
    subprocess.run(["/usr/bin/python3", GUEST / "build.py", *map(str, argv)], check=True,
                   stdout=sys.stderr)


def linux_options(programs=False):
    """QEMU options that boot the Linux guest; `programs`: with real programs inside."""
    where = BUILD / "guest"
    build("linux", where, *(["--programs"] if programs else []))
    return ["-kernel", where / "kernel", "-initrd", where / ("programs" if programs else "initrd"),
            # On a busy host a timer that is late looks to the kernel like one that does not work.
            "-append", "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check"]


def selfcheck_options(end_mib, delay=0):
    """QEMU options that boot the self-checking boot sector."""
    image = BUILD / "guest" / f"selfcheck-{end_mib}-{delay}.img"
    image.parent.mkdir(parents=True, exist_ok=True)
    build("selfcheck", image, "--end-mib", end_mib, "--delay", delay)
    return ["-drive", f"file={image},format=raw,if=ide,file.locking=off,snapshot=on"]


class Serial:
    def __init__(self, qemu):
        self.sock = qemu.serial
        self.sock.settimeout(patient(60))

    def close(self):
        self.sock.close()


class LinuxGuest:
    """Speaks to tests/guest/agent.c; attach() follows it to another QEMU."""

    def __init__(self, qemu):
        self.serial = None
        self.attach(qemu)

    def attach(self, qemu):
        if self.serial:
            self.serial.close()
        self.serial = Serial(qemu)
        self.buffer = b""

    def _answer(self, timeout):
        """The next one; `timeout` is as patient as the caller."""
        deadline = time.monotonic() + timeout
        while True:
            while b"\n" in self.buffer:
                line, self.buffer = self.buffer.split(b"\n", 1)
                if b"@@ " in line:
                    return line[line.index(b"@@ ") + 3:].decode().strip()
            left = deadline - time.monotonic()
            assert left > 0 and readable(self.serial.sock, left), "the guest does not answer"
            try:
                data = self.serial.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:  # QEMU has ended, perhaps since the guest did
                raise ConnectionError(f"the guest's console was closed after {self.buffer[-400:]}")
            self.buffer += data

    def wait_ready(self, timeout=60):
        """Its greeting may have gone by before we listened, and so may the first questions. With the
        answer to the last one, nothing else is on its way."""
        asked = 0

        def ready():
            nonlocal asked
            asked += 1
            self.serial.sock.sendall(b"ping %d\n" % asked)
            try:
                while self._answer(min(2 * asked, 30)) != f"OK pong {asked}":
                    pass
                return True
            except AssertionError:
                return False
        wait_for(ready, timeout, "the guest to boot")
        self.buffer = b""

    def start(self, text):
        """Without waiting: answer() does that later, perhaps at another host."""
        self.serial.sock.sendall(text.encode() + b"\n")

    def command(self, text, timeout=120):
        self.start(text)
        return self.answer(text, timeout)

    def answer(self, text, timeout=120):
        answer = self._answer(patient(timeout))
        assert answer.startswith("OK"), f"guest: {text}: {answer}"
        assert answer != "OK ready", f"guest: {text}: it booted anew"
        return answer[3:]


class SelfCheck:
    """Watches the boot sector (tests/guest/selfcheck.S), and tells it what to do: a B for every pass, a
    W for every sector that it has written, an X when a page was wrong."""

    # What it can be told.
    WRITE, WRITE_NO_MORE, REST, GO_ON = "D", "N", "H", "G"
    POWER_OFF, SUSPEND, RESET, PANIC = "P", "S", "R", "C"

    def __init__(self, qemu, boots=1):
        self.passes = self.starts = self.writes = self.errors = 0
        self.boots = boots  # that are no surprise
        self.serial = None
        self.attach(qemu)

    def attach(self, qemu):
        if self.serial:
            self.serial.close()
        self.serial = Serial(qemu)

    def poll(self, timeout=0.0):
        while readable(self.serial.sock, timeout):
            data = self.serial.sock.recv(4096)
            assert b"X" not in data, "the guest found a wrong page in its memory"
            assert data, "the guest's serial console was closed"
            self.passes += data.count(b"B")
            self.writes += data.count(b"W")
            self.errors += data.count(b"E")
            self.starts += data.count(b"A")
            assert self.starts <= self.boots, "the guest booted anew"
            timeout = 0.0
        return self.passes

    def wait_passes(self, n, timeout=60):
        """Until it has gone n times more over its memory."""
        goal = self.poll() + n
        wait_for(lambda: self.poll(0.1) >= goal, timeout, f"{n} passes of the guest")

    def tell(self, letter):
        self.serial.sock.sendall(letter.encode())

    def wait_writes(self, n, timeout=60):
        """Until it has written so many sectors more; its disk has kept what it wrote before."""
        self.poll()
        goal = self.writes + n

        def done():
            self.poll(0.1)
            assert not self.errors, "the guest's disk failed, or lost what had been written to it"
            return self.writes >= goal
        wait_for(done, timeout, f"{n} writes of the guest")
