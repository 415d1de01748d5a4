# SPDX-License-Identifier: LGPL-2.1-or-later
"""A destination that keeps its link alive and takes the VM in no time that an honest link needs: the
guest, which is paused for it, goes on where it was."""
import itertools
import struct
import threading

import pytest
from vctest.gate import EOF, SHUT, Gate, ping
from vctest.proc import wait_for
from vcwire import BY_NAME, frame

DESTINATION = False
ACK = BY_NAME["ACK"].number


PONG = frame("RETURN", struct.pack(">HHI", 2, 4, 0))  # QEMU's


class Rogue(Gate):
    """Success never gets through, nor, with `keeps_acks`, any ACK; the source is told other things. `said`:
    how many."""

    def __init__(self, *where):
        self.acks, self.keeps_acks, self.said = [], False, 0
        self.over = threading.Event()
        super().__init__(*where)
        self.hold({SHUT, EOF}, DESTINATION, aside=True)

    def _may_pass(self, kind, body, from_source):
        if kind == ACK and not from_source and self.keeps_acks:
            self.acks.append(frame("ACK", body))
            self.sockets[0].sendall(ping())
            return False
        return super()._may_pass(kind, body, from_source)

    def drip(self, frames, every):
        """Says them to the source, so many seconds apart, while it listens."""
        def run():
            for said in frames:
                try:
                    self.sockets[0].sendall(said)
                except (OSError, IndexError):
                    return
                self.said += 1
                if threading.Event.wait(self.over, every):
                    return
        threading.Thread(target=run, daemon=True).start()


@pytest.fixture
def rogue(fleet):
    f = fleet(namespaces=False, agents=False)
    for v in f.vecycles:
        v.control = v.host.path("control")
        v.start_agent([v.address], ["--dead-peer", "2"])
    f.boot_selfcheck(end_mib=8, delay=20000)
    f.dest = f.incoming(1)
    f.gate = Rogue(f.hosts[1].path("gate"), f.vecycles[1].address)
    yield f
    f.gate.over.set()
    f.gate.close()


def start(f, *extra):
    return f.vecycle().start_migrate(f.qemu, f.gate.address, f.dest.name, ["--dead-peer", "2", *extra])[0]


def goes_on(f):
    f.still_runs_here()
    f.dest.stop()
    f.dest = f.incoming(1)
    wait_for(lambda: f.vecycle().migrate(f.qemu, f.vecycles[1].address, f.dest.name,
                                         ok=False)["status"] == 0, 60, "the next migration")
    f.arrived(1, f.dest)
    f.check_guest()


def test_the_guest_does_not_wait_for_what_a_destination_says_for_ever(rogue):
    """QEMU's return path carries PONG as well."""
    f = rogue
    p = start(f)
    assert f.gate.is_held.wait(90), p.messages()
    f.gate.drip(itertools.repeat(PONG), 0.5)
    assert p.wait() == 52, p.messages()
    assert "has not moved" in p.messages() and "with the guest paused" in p.messages()
    assert f.gate.said > 3
    goes_on(f)


def test_the_guest_does_not_wait_for_what_is_taken_bit_by_bit(rogue):
    """Each time within the limit for standing still."""
    f = rogue
    p = start(f, "--max-bandwidth", "1M")  # small batches
    f.gate.keeps_acks = True
    wait_for(lambda: len(f.gate.acks) > 20, 60, "batches on their way")
    f.qemu.qmp.execute("migrate-set-parameters", downtime_limit=1000000)  # it pauses the guest at once
    f.gate.drip(f.gate.acks, 2)
    assert p.wait(60) == 52, p.messages()
    assert "the destination has taken" in p.messages()
    assert f.gate.said > 5
    goes_on(f)
