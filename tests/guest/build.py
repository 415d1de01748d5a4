#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds the guests that the tests and the demo run in QEMU.

  build.py selfcheck OUT --end-mib N [--delay LOOPS]   a boot sector that checks its own memory
  build.py linux OUTDIR                                OUTDIR/kernel and OUTDIR/initrd

The Linux guest is Debian's cloud kernel, taken out of its package, and tests/guest/agent.c as the
only process."""
import argparse
import gzip
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run(*argv, **kw):
    return subprocess.run(argv, check=True, **kw)


def selfcheck(out, end_mib, delay=0, step=4096):
    """Assembles the boot sector and patches its parameters."""
    with tempfile.TemporaryDirectory() as tmp:
        obj, elf = f"{tmp}/s.o", f"{tmp}/s.elf"
        run("as", "--32", "-o", obj, HERE / "selfcheck.S")
        run("ld", "-m", "elf_i386", "-Ttext", "0x7c00", "-o", elf, obj)
        run("objcopy", "-O", "binary", elf, out)
    image = bytearray(Path(out).read_bytes())
    assert len(image) == 512 and image[0x1E0:0x1E4] == b"VCSC", "the boot sector came out wrong"
    struct.pack_into("<III", image, 0x1E4, end_mib << 20, step, delay)
    Path(out).write_bytes(image.ljust(1 << 20, b"\0"))


def cpio_entry(name, data, mode, rdev=(0, 0)):
    """One file of a cpio archive, "newc" format (Documentation/driver-api/early-userspace)."""
    name = name.encode() + b"\0"
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(name), 0]
    head = b"070701" + b"".join(b"%08X" % f for f in fields)
    out = head + name
    out += b"\0" * (-len(out) % 4) + data
    return out + b"\0" * (-len(data) % 4)


def initrd(out):
    with tempfile.TemporaryDirectory() as tmp:
        agent = f"{tmp}/init"
        run("cc", "-std=gnu17", "-O2", "-static", "-Wall", "-o", agent, HERE / "agent.c")
        run("strip", agent)
        data = Path(agent).read_bytes()
    archive = cpio_entry("dev", b"", 0o040755)
    archive += cpio_entry("dev/console", b"", 0o020600, (5, 1))
    archive += cpio_entry("init", data, 0o100755)
    archive += cpio_entry("TRAILER!!!", b"", 0)
    Path(out).write_bytes(gzip.compress(archive, 6))


def kernel(out):
    """The newest cloud kernel that the package lists know."""
    text = subprocess.run(["apt-cache", "depends", "linux-image-cloud-amd64"],
                          capture_output=True, text=True).stdout
    found = re.findall(r"Depends: (linux-image-\S*cloud-amd64\S*)", text)
    if not found:
        sys.exit("build.py: apt knows no linux-image-cloud-amd64; run apt-get update")
    with tempfile.TemporaryDirectory() as tmp:
        os.chmod(tmp, 0o777)  # apt drops its privileges for the download
        run("apt-get", "-qq", "download", found[0], cwd=tmp)
        run("dpkg", "-x", next(Path(tmp).glob("*.deb")), f"{tmp}/x")
        image = next(Path(f"{tmp}/x/boot").glob("vmlinuz-*"))
        shutil.copyfile(image, f"{out}.tmp")
    os.rename(f"{out}.tmp", out)


def linux(outdir):
    """Makes what is missing or older than its source."""
    outdir = Path(outdir)
    outdir.mkdir(parents=True, exist_ok=True)
    if not (outdir / "kernel").exists():
        kernel(outdir / "kernel")
    made = outdir / "initrd"
    if not made.exists() or made.stat().st_mtime < (HERE / "agent.c").stat().st_mtime:
        initrd(made)
    return outdir / "kernel", made


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    sub = p.add_subparsers(dest="what", required=True)
    s = sub.add_parser("selfcheck")
    s.add_argument("out")
    s.add_argument("--end-mib", type=int, required=True)
    s.add_argument("--delay", type=int, default=0)
    s = sub.add_parser("linux")
    s.add_argument("outdir")
    a = p.parse_args()
    if a.what == "selfcheck":
        selfcheck(a.out, a.end_mib, a.delay)
    else:
        linux(a.outdir)


if __name__ == "__main__":
    main()
