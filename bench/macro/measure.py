# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is measured around a migration: processor time, memory, bytes, the pause as a guest sees it."""
import ctypes
import mmap
import os
import platform
import select
import subprocess
import threading
import time
from pathlib import Path

from vctest.proc import Timeout, wait_for


def process_cpu_ms(pid):
    """Processor time of a process with all its threads, those that have ended too."""
    try:
        return time.clock_gettime(~pid << 3 | 2) * 1000  # the kernel's number for its clock
    except OSError:
        return 0.0


def thread_cpu_ms(pid, tid):
    try:
        return int(Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()[0]) / 1e6
    except OSError:
        return 0.0


class QemuCpu:
    """Processor time that a QEMU spends, its guest's own apart."""

    def __init__(self, qemu):
        self.pid = qemu.process.pid
        self.vcpus = [c["thread-id"] for c in qemu.qmp.execute("query-cpus-fast")]
        self.before = self._now()

    def _now(self):
        return process_cpu_ms(self.pid) - sum(thread_cpu_ms(self.pid, t) for t in self.vcpus)

    def spent_ms(self):
        return self._now() - self.before


class AgentUse:
    """Processor time and peak memory of an agent, from now on."""

    def __init__(self, vecycle):
        self.pid = vecycle.agent.pid
        self.before = process_cpu_ms(self.pid)
        try:  # the peak counts from here
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        except OSError:
            pass

    def spent_ms(self):
        return process_cpu_ms(self.pid) - self.before

    def peak_rss_bytes(self):
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0


def wait_quiet(pids, timeout=15):
    """Until none of the processes does anything to speak of (folding, committing)."""
    def quiet():
        before = [process_cpu_ms(p) for p in pids]
        time.sleep(0.2)  # the span over which is measured
        return all(process_cpu_ms(p) - b < 2 for p, b in zip(pids, before))
    try:
        wait_for(quiet, timeout, "the agents to be idle")
    except Timeout:
        pass


# ---- the page cache ----

LIBC = ctypes.CDLL(None, use_errno=True)


def resident_bytes(path):
    """How much of a file the page cache holds (mincore)."""
    size = path.stat().st_size
    if not size:
        return 0
    with open(path, "rb") as f, mmap.mmap(f.fileno(), size, mmap.MAP_PRIVATE,
                                          mmap.PROT_READ | mmap.PROT_WRITE) as m:
        pages = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE
        vector = (ctypes.c_ubyte * pages)()
        start = ctypes.c_ubyte.from_buffer(m)
        rc = LIBC.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), vector)
        del start
        if rc:
            raise OSError(ctypes.get_errno(), f"mincore: {path}")
        return sum(v & 1 for v in bytes(vector)) * mmap.PAGESIZE


def evict(directory):
    """Writes a store to disk and drops it from the page cache: (bytes, bytes that still are in it).
    Deltas may be folded into an image meanwhile, and then it is done again."""
    while True:
        try:
            return _evict(directory)
        except FileNotFoundError:
            pass


def _evict(directory):
    files = [p for p in Path(directory).rglob("*") if p.is_file()]
    for p in files:
        fd = os.open(p, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    return (sum(p.stat().st_blocks * 512 for p in files), sum(resident_bytes(p) for p in files))


# ---- the pause as the guest shows it ----

class GuestGap:
    """Listens to both serial consoles while a guest writes something all the time. The pause is the
    longest silence from when this began to when it ends."""

    def __init__(self, source, dest):
        self.socks = [source, dest]
        self.longest, self.ended = 0.0, False
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self):
        before = None
        while not self.ended:
            for sock in select.select(self.socks, [], [], 0.2)[0]:
                if not sock.recv(65536):
                    self.socks.remove(sock)
                    continue
                now = time.monotonic()
                self.longest = max(self.longest, now - (before or now))
                before = now

    def stop(self):
        """The pause in milliseconds."""
        self.ended = True
        self.thread.join()
        return self.longest * 1000


# ---- memory images ----

def nonzero_bytes(path):
    zero, n = bytes(4096), 0
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            n += sum(chunk[i:i + 4096] != zero for i in range(0, len(chunk), 4096))
    return n * 4096


def machine():
    def first(path, key):
        for line in Path(path).read_text().splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
        return "?"
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True)
    return {
        "cpu": first("/proc/cpuinfo", "model name"), "cores": os.cpu_count(),
        "memory_bytes": int(first("/proc/meminfo", "MemTotal").split()[0]) * 1024,
        "kernel": platform.release(), "qemu": qemu.stdout.splitlines()[0],
        "kvm": os.access("/dev/kvm", os.R_OK | os.W_OK), "load_before": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
