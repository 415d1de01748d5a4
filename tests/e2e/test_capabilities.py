# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever migration capabilities somebody has left turned on, a VM moves, and runs once."""
import pytest
from vctest.qmp import QmpError

# What both QEMUs have to agree on, and vecycle leaves to their owner.
MUST_AGREE = {"x-ignore-shared"}
NEEDS = {"zero-copy-send": "multifd", "postcopy-preempt": "postcopy-ram", "switchover-ack": "return-path"}
# Every QEMU since 7.2 takes these; others are newer, gone meanwhile, or not built into each.
TAKEN = {"xbzrle", "auto-converge", "events", "postcopy-ram", "release-ram", "return-path",
         "pause-before-switchover", "multifd", "dirty-bitmaps", "late-block-activate",
         "x-ignore-shared", "validate-uuid", "postcopy-preempt"}


def turn(qemu, name, on):
    """With what it needs. False: this QEMU takes it not, or not here."""
    try:
        qemu.qmp.execute("migrate-set-capabilities", capabilities=[
            {"capability": n, "state": on} for n in (name, NEEDS.get(name)) if n])
        return True
    except QmpError:
        return False


@pytest.mark.newer_qemu
@pytest.mark.parametrize("on_both", [False, True], ids=["source", "both"])
def test_whatever_capability_is_on(fleet, on_both):
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=8, delay=200000)
    names = [c["capability"] for c in f.qemu.qmp.execute("query-migrate-capabilities")]
    taken = set()
    for name in names:
        dest = f.incoming(1 - f.at)
        set_here = turn(f.qemu, name, True)
        set_there = on_both and turn(dest, name, True)
        taken |= {name} if set_here else set()
        r = f.vecycle().migrate(f.qemu, f.vecycles[1 - f.at].address, dest.name, ok=False)
        running = [q for q in (f.qemu, dest) if q.is_running()]
        if name in MUST_AGREE and set_here != set_there:
            assert r["status"] == 31 and running == [f.qemu], (name, r)
            dest.stop()
        else:
            assert r["status"] == 0 and running == [dest], (name, r)
            f.arrived(1 - f.at, dest)
        turn(f.qemu, name, False)
        assert all(v.agent.alive() for v in f.vecycles), name
        f.guest.wait_passes(1)
    expected = TAKEN | ({"x-colo"} if f.qemu.version() < (8, 0) else set())
    assert taken >= expected, f"not turned on: {expected - taken}"
