# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many VMs at once between two agents: all arrive, memory is bounded, nothing leaks."""
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from vctest.gate import HELLO, SHUT, Gate
from vctest.proc import wait_for
from vctest.qemu import Qemu, new_uuid

MANY = 32
RAM_MIB, USED_MIB = 16, 8
SOURCE, DESTINATION = True, False
MIB = 1 << 20
# docs/internals/threads.md, "What a session takes": these VMs' streams fill no queue.
AGENT_BYTES = 32 * MIB
SESSION_BYTES = (USED_MIB + 4) * MIB


def halting_firmware(path):
    """64 KiB that stop the processor for ever: a guest that runs, takes no time and keeps its memory."""
    image = bytearray(b"\xf4" * 65536)
    image[0xfff0:0xfff4] = b"\xfa\xf4\xeb\xfd"  # cli; 1: hlt; jmp 1b
    path.write_bytes(image)
    return path


class Vm:
    """A VM with random memory of its own, and the QEMU that waits for it."""

    def __init__(self, f, n, firmware):
        self.name, self.uuid = f"vm{n}", new_uuid()
        memory = f.hosts[0].dir / f"memory{n}"
        memory.write_bytes(os.urandom(USED_MIB * MIB))
        load = ["-device", f"loader,file={memory},addr={MIB:#x},force-raw=on"]
        bios = ["-bios", firmware]
        self.source = Qemu(f.hosts[0], self.name, RAM_MIB, self.uuid, None, [*bios, *load])
        self.dest = Qemu(f.hosts[1], self.name, RAM_MIB, self.uuid, "defer", bios)
        memory.unlink()

    def same_memory(self):
        self.dest.qmp.execute("stop")
        return self.source.ram_digest() == self.dest.ram_digest()


def number_of(agent, what):
    return len(os.listdir(f"/proc/{agent.pid}/{what}"))


def counts(f):
    return [(number_of(v.agent, "fd"), number_of(v.agent, "task")) for v in f.vecycles]


def peak_bytes(agent):
    for line in Path(f"/proc/{agent.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("the kernel does not tell the peak")


@pytest.fixture
def many(fleet, tmp_path):
    """The VMs, and a gate between the two agents. They are patient: 64 QEMUs share this machine."""
    f = fleet(namespaces=False, agents=False)
    for v, h in zip(f.vecycles, f.hosts):
        v.control = h.path("control")
        v.start_agent([v.address], ["--dead-peer", "60"])
    firmware = halting_firmware(tmp_path / "firmware")
    with ThreadPoolExecutor(8) as pool:
        f.vms = list(pool.map(lambda n: Vm(f, n, firmware), range(MANY)))
    f.gate = Gate(f.hosts[1].path("gate"), f.vecycles[1].address)
    yield f
    f.gate.close()


def wait_held(f, started):
    wait_for(lambda: f.gate.n_held == MANY or not all(p.alive() for p, _ in started), 120,
             "all to have come to the same point")
    assert f.gate.n_held == MANY, [p.messages() for p, _ in started if not p.alive()]


def test_many_sessions_at_once_arrive_in_bounded_memory_and_leave_nothing(many):
    f = many
    before = counts(f)
    f.gate.hold(HELLO, SOURCE)  # so that none is past the opening before all have come
    started = [f.vecycle().start_migrate(vm.source, f.gate.address, vm.name, ["--dead-peer", "60"])
               for vm in f.vms]
    wait_held(f, started)
    f.gate.hold(SHUT, DESTINATION)  # so that the last one meets the first one
    wait_held(f, started)
    during = counts(f)
    for (fds, threads), (fds_then, threads_then) in zip(before, during):
        assert fds_then >= fds + MANY and threads_then >= threads + MANY
    f.gate.release()
    for p, out in started:
        assert p.wait(120) == 0, p.messages()
        assert f.vecycle().summary(out)["confirmed"], p.messages()
    if "VC_TEST_VECYCLE" not in os.environ:  # a sanitizer takes more
        for v in f.vecycles:
            assert peak_bytes(v.agent) < AGENT_BYTES + MANY * SESSION_BYTES
    held = [{c["vm"]: (c["root"], c["confirmed"], c["handover"]) for c in v.json("ls")}
            for v in f.vecycles]
    assert held[0] == held[1] and set(held[0]) == {vm.uuid for vm in f.vms}
    assert all(confirmed and word == "settled" for _, confirmed, word in held[0].values())
    for vm in f.vms:
        assert vm.source.status() == "postmigrate" and vm.dest.status() == "running"
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(Vm.same_memory, f.vms)), "the memories differ"
    # Folding and forgetting end with the sessions, or soon after.
    wait_for(lambda: counts(f) == before, 30, f"descriptors and threads to be {before}")
