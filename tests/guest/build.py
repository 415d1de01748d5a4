#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds the guests that the tests and the demo run in QEMU.

  build.py selfcheck OUT --end-mib N [--delay LOOPS]   a boot sector: selfcheck.S
  build.py linux OUTDIR [--programs]                   OUTDIR/kernel and OUTDIR/initrd

The Linux guest is Debian's cloud kernel, taken out of its package, and tests/guest/agent.c as the
only process. With --programs OUTDIR/programs is made too: an initrd that has some of Debian's
programs besides, with their libraries."""
import argparse
import fcntl
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
        obj, elf, flat = f"{tmp}/s.o", f"{tmp}/s.elf", f"{tmp}/s.bin"
        run("as", "--32", "-o", obj, HERE / "selfcheck.S")
        run("ld", "-m", "elf_i386", "-Ttext", "0x7c00", "-o", elf, obj)
        run("objcopy", "-O", "binary", elf, flat)
        image = bytearray(Path(flat).read_bytes())
    assert len(image) == 512 and image[0x1E0:0x1E4] == b"VCSC", "the boot sector came out wrong"
    struct.pack_into("<III", image, 0x1E4, end_mib << 20, step, delay)
    new = Path(f"{out}.{os.getpid()}")  # another test may be about to boot it
    new.write_bytes(image.ljust(1 << 20, b"\0"))
    new.rename(out)


def cpio_entry(name, data, mode, rdev=(0, 0)):
    """One file of a cpio archive, "newc" format (Documentation/driver-api/early-userspace)."""
    name = name.encode() + b"\0"
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(name), 0]
    head = b"070701" + b"".join(b"%08X" % f for f in fields)
    out = head + name
    out += b"\0" * (-len(out) % 4) + data
    return out + b"\0" * (-len(data) % 4)


# What the benchmark lets the guest do. Packages that are not installed are downloaded and unpacked.
PACKAGES = ["redis-server", "coreutils", "xz-utils"]
PROGRAMS = ["usr/bin/redis-server", "usr/bin/redis-cli", "usr/bin/redis-benchmark", "usr/bin/sort",
            "usr/bin/xz"]
LIBRARY_DIRS = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]


def installed(package):
    r = subprocess.run(["dpkg-query", "-W", "-f=${Status}", package], capture_output=True, text=True)
    return "ok installed" in r.stdout


def unpack_missing(tree):
    """The packages, and what they depend on, as far as this machine does not have them."""
    listed = subprocess.run(["apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests",
                             "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances",
                             *PACKAGES], capture_output=True, text=True).stdout
    names = [n for n in listed.splitlines() if re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", n)]
    missing = [n for n in names if not installed(n)]
    with tempfile.TemporaryDirectory() as tmp:
        os.chmod(tmp, 0o777)  # apt drops its privileges for the download
        for name in missing:  # a virtual package cannot be downloaded; what is really needed is seen later
            subprocess.run(["apt-get", "-qq", "download", name], cwd=tmp, stderr=subprocess.DEVNULL)
        for deb in Path(tmp).glob("*.deb"):
            run("dpkg", "-x", deb, tree)


def find(tree, *names):
    """The first of the files in the unpacked packages or on this machine."""
    for name in names:
        for top in Path(tree), Path("/"):
            path = (top / name)
            if path.is_symlink() and os.readlink(path).startswith("/"):
                path = Path(str(top) + os.readlink(path))
            if path.exists():
                return path.resolve()
    sys.exit(f"build.py: {names[0]} is in no package that was unpacked; run apt-get update")


def needed(path):
    """(libraries, loader) of a program or library."""
    text = subprocess.run(["readelf", "-d", "-l", path], capture_output=True, text=True).stdout
    loader = re.search(r"interpreter: (/[^]]+)", text)
    return re.findall(r"\(NEEDED\).*\[(.+)\]", text), loader and loader[1].lstrip("/")


def program_files():
    """{path in the guest: content} of the programs, their libraries, and the loader."""
    files = {}
    with tempfile.TemporaryDirectory() as tree:
        unpack_missing(tree)
        todo = [(name, find(tree, name)) for name in PROGRAMS]
        while todo:
            name, path = todo.pop()
            if name in files:
                continue
            files[name] = path.read_bytes()
            libraries, loader = needed(path)
            if loader:
                todo.append((loader, find(tree, loader, f"usr/{loader}")))
            todo += [(f"lib/x86_64-linux-gnu/{lib}", find(tree, *(f"{d}/{lib}" for d in LIBRARY_DIRS)))
                     for lib in libraries]
    return files


def initrd(out, files=None):
    with tempfile.TemporaryDirectory() as tmp:
        agent = f"{tmp}/init"
        run("cc", "-std=gnu17", "-O2", "-static", "-Wall", "-o", agent, HERE / "agent.c")
        run("strip", agent)
        data = Path(agent).read_bytes()
    archive = cpio_entry("dev", b"", 0o040755)
    archive += cpio_entry("dev/console", b"", 0o020600, (5, 1))
    archive += cpio_entry("init", data, 0o100755)
    folders = {str(p) for name in files or () for p in list(Path(name).parents)[:-1]}
    for name in sorted(folders):
        archive += cpio_entry(name, b"", 0o040755)
    for name, content in (files or {}).items():
        archive += cpio_entry(name, content, 0o100755)
    archive += cpio_entry("TRAILER!!!", b"", 0)
    new = Path(f"{out}.{os.getpid()}")  # another test may be about to boot it
    new.write_bytes(gzip.compress(archive, 6))
    new.rename(out)


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
        shutil.copyfile(image, f"{out}.{os.getpid()}")
    os.rename(f"{out}.{os.getpid()}", out)


def stale(made):
    return not made.exists() or made.stat().st_mtime < (HERE / "agent.c").stat().st_mtime


def linux(outdir, programs=False):
    """Makes what is missing or older than its source."""
    outdir = Path(outdir)
    outdir.mkdir(parents=True, exist_ok=True)
    made = outdir / "initrd"
    with open(outdir / "lock", "w") as lock:  # several tests begin at a time, and one makes it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (outdir / "kernel").exists():
            kernel(outdir / "kernel")
        if stale(made):
            initrd(made)
        if programs and stale(outdir / "programs"):
            initrd(outdir / "programs", program_files())
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
    s.add_argument("--programs", action="store_true")
    a = p.parse_args()
    if a.what == "selfcheck":
        selfcheck(a.out, a.end_mib, a.delay)
    else:
        linux(a.outdir, a.programs)


if __name__ == "__main__":
    main()
