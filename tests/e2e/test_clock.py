# SPDX-License-Identifier: LGPL-2.1-or-later
"""A wall clock that jumps costs nothing: no migration, no checkpoint, no word."""
import os
import struct
import subprocess
import time
from pathlib import Path

import pytest
from vctest.gate import SHUT, WORD, Gate
from vctest.proc import wait_for
from vctest.vecycle import BINARY

PRELOAD = Path(__file__).resolve().parents[1] / "support" / "preload" / "wall_clock.c"
SOURCE, DESTINATION = True, False
DAY, YEAR = 86400, 365 * 86400


class WallClock:
    """Of all vecycles that are started after it; QEMU and the test keep the right one."""

    def __init__(self, directory):
        self.file = directory / "clock"
        self.lib = directory / "wall_clock.so"
        self.set(0)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", self.lib, PRELOAD], check=True)
        self.env = ["env", f"LD_PRELOAD={self.lib}", f"VC_CLOCK_FILE={self.file}"]

    def set(self, wrong_by_s):
        if not self.file.exists():
            self.file.write_bytes(bytes(8))
        with open(self.file, "r+b") as f:
            f.write(struct.pack("<q", wrong_by_s))


@pytest.fixture
def clocked(fleet, tmp_path):
    """Two hosts with a gate between them, whose agents see a clock that can be set."""
    if "VC_TEST_VECYCLE" in os.environ:
        pytest.skip("a sanitizer has to be loaded first")
    f = fleet(namespaces=False, agents=False)
    f.clock = WallClock(tmp_path)
    for v, h in zip(f.vecycles, f.hosts):
        v.wrapper, v.control = f.clock.env, h.path("control")
        v.start_agent([v.address])
    f.gate = Gate(f.hosts[1].path("gate"), f.vecycles[1].address)
    yield f
    f.gate.close()


def run(f, i, *argv):
    """A command that sees the wrong clock, too."""
    v = f.vecycles[i]
    r = f.hosts[i].run([*f.clock.env, BINARY, argv[0], *v.common(), *argv[1:]])
    assert r.returncode == 0, r.stderr
    return r.stdout


def show(f, i):
    return f.vecycles[i].json("show", f.vm)


def there(f, *jumps, frame=SHUT, side=DESTINATION):
    """To the second host; the clock jumps while a frame is held."""
    dest = f.incoming(1)
    f.gate.hold(frame, side)
    p, _ = f.vecycle().start_migrate(f.qemu, f.gate.address, dest.name)
    assert f.gate.is_held.wait(90)
    for jump in jumps:
        f.clock.set(jump)
    f.gate.release()
    assert p.wait() == 0, p.messages()
    assert dest.status() == "running"
    f.arrived(1, dest)


@pytest.mark.parametrize("jump", [YEAR, -DAY, -YEAR])
def test_a_clock_that_jumps_during_a_migration_does_not_end_it(clocked, jump):
    f = clocked
    f.boot_selfcheck(end_mib=8, delay=200000)
    there(f, jump)
    for i in 0, 1:
        assert show(f, i)["handover"] == "settled"
        assert abs(show(f, i)["created_unix"] - (time.time() + jump)) < DAY / 2
    # The clock is set right, and the checkpoint serves on.
    f.clock.set(0)
    assert f.migrate(0)["base"] == 1
    f.check_guest()


def test_a_checkpoint_of_the_future_is_new_to_everybody(clocked):
    f = clocked
    f.boot_selfcheck(end_mib=8, delay=200000)
    f.clock.set(YEAR)
    there(f)
    f.clock.set(0)
    for i in 0, 1:
        line = next(x for x in run(f, i, "ls").splitlines() if f.vm in x)
        assert " 0 s " in line and "shared" in line
        assert "made 0 s ago" in run(f, i, "show", f.vm)
        assert f.vm not in run(f, i, "gc", "--max-age", "1h")
        assert show(f, i)["n_generations"] == 1
    assert f.migrate(0)["base"] == 1
    f.check_guest()


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_forgetting_does_not_believe_a_clock_that_jumps(clocked, jump):
    f = clocked
    f.boot_selfcheck(end_mib=8, delay=200000)
    there(f)
    for i in 0, 1:
        # The agent notes the age after the migration; from then on the clock is not asked.
        wait_for((f.vecycles[i].store / "vms" / f.vm / "age").exists, 30, "the age to be noted")
    f.clock.set(jump)
    for i in 0, 1:
        assert f.vm not in run(f, i, "gc")
        assert show(f, i)["n_generations"] == 1
    f.vecycles[1].agent.stop()
    f.vecycles[1].start_agent([f.vecycles[1].address])  # forgets at its start
    assert f.migrate(0)["base"] == 1
    f.check_guest()


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_a_lost_word_is_settled_whatever_the_clock_says(clocked, jump):
    f = clocked
    f.boot_selfcheck(end_mib=8, delay=200000)
    dest = f.incoming(1)
    f.gate.hold(WORD, SOURCE)
    p, _ = f.vecycle().start_migrate(f.qemu, f.gate.address, dest.name)
    assert f.gate.is_held.wait(90)
    f.gate.refuse()
    f.gate.cut()
    assert p.wait() == 61, p.messages()
    f.clock.set(jump)
    f.gate.refuse(False)
    wait_for(lambda: [show(f, i)["handover"] for i in (0, 1)] == ["settled", "settled"], 90,
             "the word to be given")
    assert dest.status() == "running"
    f.arrived(1, dest)
    f.check_guest()
