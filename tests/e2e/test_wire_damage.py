# SPDX-License-Identifier: LGPL-2.1-or-later
"""A bit flips on a wire that nobody authenticates: it costs time, and never a VM or a page."""
import os
import random
import time

from vctest.proc import wait_for
from vctest.relay import Flipper

SEED = int(os.environ.get("VC_TEST_SEED", time.time()))
# What a migration may end with: illegal frames, a peer that waits for more or hangs up, another VM or
# socket named, a QEMU that ends, seals that never match, a word that has to be repeated.
CLEAN = {20, 21, 22, 23, 24, 30, 31, 43, 52, 53, 60, 61}


def flipped(f, n, at, bit):
    """A migration whose wire flips that bit of its byte; what it printed, and the QEMU it went to."""
    path = f.hosts[1 - f.at].path(f"flip{n}")
    relay = Flipper(path, f.vecycles[1 - f.at].address.removeprefix("unix:"), at, bit)
    dest = f.incoming(1 - f.at)
    r = f.vecycle().migrate(f.qemu, f"unix:{path}", dest.name, ["--suspend", "--dead-peer", "3"],
                            ok=False)
    if r["status"] == 61:
        wait_for(lambda: f.vecycle().json("show", f.vm)["handover"] == "settled", 60,
                 "the word to be given")
    relay.close()
    assert relay.flipped.is_set(), relay.forward
    return r, dest


def ends_well(f, r, dest, what):
    """The VM is at one of the two, with the memory that it has."""
    assert r["status"] == 0 or r["status"] in CLEAN, (what, r)
    if f.qemu.status() == "postmigrate":
        assert dest.status() == "paused", (what, r)
        assert f.qemu.ram_digest() == dest.ram_digest(), (what, "the memories differ", r)
        dest.qmp.execute("cont")
        f.arrived(1 - f.at, dest)
    else:
        assert r["status"], (what, r)
        assert f.qemu.status() == "running", (what, r)
        assert not dest.process.alive() or dest.status() != "running", (what, r)
        dest.stop()
    f.guest.wait_passes(1)
    assert all(v.agent.alive() for v in f.vecycles), what


def test_a_bit_that_flips_on_the_wire_costs_time_and_no_vm(fleet):
    print(f"VC_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    f = fleet(namespaces=False, agents=False)
    for v, h in zip(f.vecycles, f.hosts):
        v.control = h.path("control")
        v.start_agent([v.address], ["--dead-peer", "3"])
    f.boot_selfcheck(end_mib=16, delay=200000)
    whole, resent = f.migrate(1)["wire_bytes"], 0
    kilobytes = [0, 0, 1, 2, 4, 8, 16, 32, 64]
    assert whole > 80 << 10, whole
    for n, kilobyte in enumerate(kilobytes):
        for v in f.vecycles:  # so that all of it crosses the wire again
            wait_for(lambda: v.run("rm", "--force", f.vm).returncode in (0, 30), 30, "the session to end")
        at, bit = (kilobyte << 10) + rng.randrange(1024), rng.randrange(8)
        r, dest = flipped(f, n, at, bit)
        print(f"bit {bit} of byte {at}: status {r['status']}")
        ends_well(f, r, dest, f"bit {bit} of byte {at}")
        resent += r.get("resent_batches", 0)
    assert resent, "no flip was found by a seal and repaired"
    assert f.migrate(1 - f.at)["confirmed"]
    f.check_guest()
