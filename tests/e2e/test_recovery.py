# SPDX-License-Identifier: LGPL-2.1-or-later
"""A postcopy is recovered whatever has become of the stores meanwhile, and what fails can be tried again."""
import pytest
from test_postcopy import at_the_word, handovers, migration, recovers, slow, wait_paused  # noqa: F401
from vctest.preload import restart_refusing

pytestmark = pytest.mark.newer_is_long
BOTH = pytest.mark.parametrize("side", [0, 1], ids=["source", "destination"])


def interrupted(f):
    """Before the decision has come: both hosts have a record that the recovery settles."""
    p = at_the_word(f)
    f.gate.refuse()
    f.gate.cut()
    assert p.wait(60) == 62, p.messages()
    wait_paused(f)
    assert handovers(f) == ["left", "arriving"]


@BOTH
def test_a_recovery_that_cannot_be_recorded_is_tried_again(slow, tmp_path, side):  # noqa: F811
    f = slow
    interrupted(f)
    trigger = restart_refusing(f.vecycles[side], tmp_path)
    trigger.touch()
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, f.dest.name, ["--recover"], ok=False)
    assert r["status"] == 40 and "handover" in r["messages"], r
    assert migration(f.qemu) == migration(f.dest) == "postcopy-paused"
    assert handovers(f) == ["left", "arriving"] and f.dest.status() == "paused"
    trigger.unlink()
    f.gate.refuse(False)
    recovers(f)


@BOTH
def test_a_recovery_needs_no_manifest(slow, side):  # noqa: F811
    f = slow
    interrupted(f)
    (f.vecycles[side].store / "vms" / f.vm / "manifest").write_bytes(b"damaged" * 100)
    f.gate.refuse(False)
    recovers(f)
