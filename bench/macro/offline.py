# SPDX-License-Identifier: LGPL-2.1-or-later
"""What general tools make of two memory images: the one that a host still has, and the one that has to
be there on return. They see both at once, and no network."""
import re
import shutil
import subprocess
import time

TIMEOUT_S = 240  # a tool that takes longer is left out


def _zstd(level):
    def tool(before, after, work):
        out = work / "patch.zst"
        subprocess.run(["zstd", "-q", "-f", f"-{level}", "--long=31", f"--patch-from={before}", after,
                        "-o", out], check=True, timeout=TIMEOUT_S)
        return out.stat().st_size
    return tool


def _rsync(before, after, work):
    """Both directions of its protocol: signatures there, delta back."""
    old = work / "basis" / "image"
    old.parent.mkdir(exist_ok=True)
    shutil.copyfile(before, old)
    new = work / "image"
    new.unlink(missing_ok=True)
    new.symlink_to(after)
    r = subprocess.run(["rsync", "-L", "-I", "--no-whole-file", "--block-size=4096", "--compress",
                        "--stats", f"--only-write-batch={work / 'batch'}", new, old], check=True,
                       capture_output=True, text=True, timeout=TIMEOUT_S)
    batch = (work / "batch").stat().st_size
    heard = re.search(r"Total bytes (?:received|sent): ([\d,]+)\nTotal bytes (?:received|sent): ([\d,]+)",
                      r.stdout)
    back = int(heard[2].replace(",", "")) if heard else 0
    return batch + back


QUICK = {"zstd -3 --patch-from": _zstd(3), "rsync -z -B 4096": _rsync}
FULL = {**QUICK, "zstd -19 --patch-from": _zstd(19)}


def compare(scenario, images, tools):
    """One result for each tool that is there."""
    work = images / "work"
    work.mkdir(exist_ok=True)
    for name, tool in tools.items():
        if not shutil.which(name.split()[0]):
            continue
        start = time.monotonic()
        try:
            n = tool((images / "before.ram").resolve(), (images / "after.ram").resolve(), work)
        except subprocess.TimeoutExpired:
            continue
        yield {"scenario": scenario, "tool": name, "bytes": n, "seconds": time.monotonic() - start}
    shutil.rmtree(work)
