# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real VM comes home to files that are damaged all over: tests/unit/test_damage.c has the breadth."""
import os
import random
import time

import pytest
from test_resume import Interrupted
from vctest.proc import wait_for

SEED = int(os.environ.get("VC_TEST_SEED", time.time()))
SECTOR = 512


def written_sectors(fd):
    """Offsets of the sectors of a sparse file that are not holes."""
    size, at, sectors = os.fstat(fd).st_size, 0, []
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        sectors += range(start, at, SECTOR)
    return sectors


def damage(path, places, rng):
    """Flipped bits, sectors of zeroes, and sectors that hold another one's content."""
    fd = os.open(path, os.O_RDWR)
    sectors = written_sectors(fd)
    assert sectors, path
    for _ in range(places):
        at = rng.choice(sectors)
        data = bytearray(os.pread(fd, SECTOR, at))
        how = rng.randrange(8)
        if how == 0:
            data = bytearray(len(data))
        elif how == 1:
            data = bytearray(os.pread(fd, len(data), rng.choice(sectors)))
        else:
            for _ in range(1 + rng.randrange(4)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        os.pwrite(fd, data, at)
    os.close(fd)


@pytest.mark.newer_qemu
def test_a_vm_comes_home_to_damaged_files(fleet):
    print(f"VC_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    f = fleet(namespaces=False)
    f.boot_linux(192, 80)
    f.migrate(1)
    f.guest.command("rewrite 40")
    # An attempt that fails leaves a delta on the image, which is not folded away.
    cut = Interrupted(f, 0, 25 << 20)
    cut.process.wait()
    cut.close()
    f.still_runs_here()
    home = f.vecycles[0]
    wait_for(lambda: home.json("show", f.vm).get("partial_generation"), 20,
             "the attempt to be kept")
    for suffix, places in (".image", 300), (".delta", 100):
        [path] = home.store.rglob("*" + suffix)
        damage(path, places, rng)
    back = f.migrate(0, ["--retry", "2"])  # compares the memories
    assert back["base"] == 2 and back["confirmed"]
    assert back["repaired_pages"] > 100, back
    f.check_guest()
    assert home.json("verify", f.vm)["bad_pages"] == 0, "damaged pages were kept"
    assert f.migrate(1)["base"] == 1
    f.check_guest()


def flip(path, at, bit):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_damaged_manifests_cost_reuse_and_nothing_else(fleet):
    """A bit at a time, at the host that the VM comes to, at the one that it leaves, at both."""
    print(f"VC_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=8, delay=200000)
    f.migrate(1)
    sides = {"source": lambda: [f.at], "destination": lambda: [1 - f.at], "both": lambda: [0, 1]}
    for where in "head", "length", "body", "checksum":
        for name, hosts in sides.items():
            for v in f.vecycles:  # else the agent may write it anew
                wait_for(lambda: v.json("show", f.vm)["layers"] == 1, 30, "it to be folded")
            for host in hosts():
                [path] = f.vecycles[host].store.rglob("manifest")
                size = path.stat().st_size
                start, end = {"head": (0, 24), "length": (24, 32), "body": (32, size - 32),
                              "checksum": (size - 32, size)}[where]
                flip(path, rng.randrange(start, end), rng.randrange(8))
            r = f.migrate(1 - f.at)  # compares the memories
            # A source without a manifest learns the lineage from the destination, which announces.
            assert r["base"] == (2 if name == "source" else 0), (where, name, r)
            assert r["confirmed"], (where, name, r)
            f.guest.wait_passes(1)
    assert f.migrate(1 - f.at)["base"] == 1, "and both hosts hold the same again"
    f.check_guest()
    for v in f.vecycles:
        assert "manifest was damaged" in v.log.read_text()
        assert v.json("verify", f.vm)["bad_pages"] == 0


def put(path, make):
    """Whatever has that name has it no more."""
    if path.is_dir() and not path.is_symlink():
        for p in sorted(path.rglob("*"), reverse=True):
            p.rmdir() if p.is_dir() else p.unlink()
        path.rmdir()
    elif path.exists() or path.is_symlink():
        path.unlink()
    make(path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "directory"])
def test_what_is_no_file_costs_reuse_and_holds_nothing_up(fleet, make):
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=8)
    f.migrate(1)
    f.migrate(0)
    v = f.vecycles[0]
    vm = v.store / "vms" / f.vm
    spare = "00112233-4455-6677-8899-aabbccddeeff"
    files = [p for p in vm.iterdir()]
    files += [vm / n for n in ("age", "manifest.new", f"{spare}.log", f"{spare}.image.tmp")]
    for places in files, [vm]:
        v.agent.stop()
        assert v.agent.popen.returncode == 0
        for place in places:
            put(place, make)
        before = len(v.log.read_text())
        v.start_agent([v.address])
        f.migrate(1)
        f.migrate(0)
        assert f.migrate(1)["base"] == 1, "something was not taken away"
        assert places == [vm] or str(vm) in v.log.read_text()[before:]
        f.migrate(0)
    f.check_guest()
