# SPDX-License-Identifier: LGPL-2.1-or-later
"""Holds what an agent reads from disk to a rate: by a control group (version 2 or 1) where one can
be made and is seen to work, else by a library that is preloaded (bench/tools/slow_reads.c)."""
import os
import subprocess
import time
from pathlib import Path

from vctest.guest import BUILD

V2, V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/blkio")
SHIM = BUILD / "bench" / "tools" / "slow_reads.so"
PROBE_BYTES = 24 << 20


def device_of(directory):
    """"MAJOR:MINOR" of the whole disk under a directory, or None."""
    dev = os.stat(directory).st_dev
    node = Path(f"/sys/dev/block/{os.major(dev)}:{os.minor(dev)}")
    if not node.exists():
        return None
    if (node / "partition").exists():
        return (node.resolve().parent / "dev").read_text().strip()
    return node.name


class Group:
    """A control group that limits reading from the disk of `directory`."""

    def __init__(self, directory, bps):
        self.dir = None
        device = device_of(directory)
        name = f"vecycle-bench-{os.getpid()}"
        if not device:
            raise OSError("the directory is on no disk of its own")
        if (V1 / "blkio.throttle.read_bps_device").exists():
            self.dir = V1 / name
            self.dir.mkdir(exist_ok=True)
            (self.dir / "blkio.throttle.read_bps_device").write_text(f"{device} {bps}")
        elif "io" in ((V2 / "cgroup.controllers").read_text().split()
                      if (V2 / "cgroup.controllers").exists() else ()):
            (V2 / "cgroup.subtree_control").write_text("+io")
            self.dir = V2 / name
            self.dir.mkdir(exist_ok=True)
            (self.dir / "io.max").write_text(f"{device} rbps={bps}")
        else:
            raise OSError("no control group limits disks here")

    def add(self, pid):
        (self.dir / "cgroup.procs").write_text(str(pid))

    def close(self):
        if self.dir and self.dir.exists():
            try:
                self.dir.rmdir()
            except OSError:
                pass

    def works(self, directory, bps):
        """Whether a cold file is really read at no more than the rate."""
        path = Path(directory) / "probe"
        try:
            with open(path, "wb") as f:
                f.write(os.urandom(PROBE_BYTES))
                f.flush()
                os.fsync(f.fileno())
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.monotonic()
            subprocess.run(["sh", "-c", 'echo $$ >"$1" && exec cat "$2"', "sh",
                            self.dir / "cgroup.procs", path], stdout=subprocess.DEVNULL, check=True)
            return time.monotonic() - start > 0.6 * PROBE_BYTES / bps
        except (OSError, subprocess.CalledProcessError):
            return False
        finally:
            path.unlink(missing_ok=True)


def make_group(directory, bps):
    """A group that works, or None."""
    group = None
    try:
        group = Group(directory, bps)
        if group.works(directory, bps):
            return group
    except OSError:
        pass
    if group:
        group.close()
    return None


def shim_wrapper(bps):
    """Words to be put before the agent's command line."""
    return ["env", f"LD_PRELOAD={SHIM}", f"VC_SLOW_READ_BPS={bps}"]
