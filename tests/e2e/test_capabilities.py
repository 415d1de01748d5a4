# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever migration capabilities somebody has left turned on, a VM moves, and runs once."""
import pytest
from vctest.qmp import QmpError

# What both QEMUs have to agree on, and vecycle leaves to their owner.
MUST_AGREE = {"x-ignore-shared"}


def turn(qemu, name, on):
    """False: this QEMU has no such thing here."""
    try:
        qemu.qmp.execute("migrate-set-capabilities", capabilities=[{"capability": name, "state": on}])
        return True
    except QmpError:
        return False


@pytest.mark.newer_qemu
@pytest.mark.parametrize("on_both", [False, True], ids=["source", "both"])
def test_whatever_capability_is_on(fleet, on_both):
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=8, delay=200000)
    names = [c["capability"] for c in f.qemu.qmp.execute("query-migrate-capabilities")]
    assert "pause-before-switchover" in names
    for name in names:
        dest = f.incoming(1 - f.at)
        set_here = turn(f.qemu, name, True)
        set_there = on_both and turn(dest, name, True)
        r = f.vecycle().migrate(f.qemu, f.vecycles[1 - f.at].address, dest.name, ok=False)
        running = [q for q in (f.qemu, dest) if q.process.alive() and q.status() == "running"]
        if name in MUST_AGREE and set_here != set_there:
            assert r["status"] == 31 and running == [f.qemu], (name, r)
            turn(f.qemu, name, False)
            dest.stop()
        else:
            assert r["status"] == 0 and running == [dest], (name, r)
            f.arrived(1 - f.at, dest)
            turn(f.qemu, name, False)
        assert all(v.agent.alive() for v in f.vecycles), name
        f.guest.wait_passes(1)
