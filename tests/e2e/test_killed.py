# SPDX-License-Identifier: LGPL-2.1-or-later
"""kill -9 of the vecycles that are no agents: `recv` behind ssh, `proxy`, and `migrate` alone."""
import os
import signal
import stat

import pytest
from vctest.gate import BATCH, SHUT, WORD, Gate, QmpGate
from vctest.proc import wait_for
from vctest.vecycle import BINARY

SSH = """#!/bin/sh
# ssh [options] HOST COMMAND
while [ $# -gt 2 ]; do shift; done
exec sh -c "echo \\$\\$ >{pid}; exec $2"
"""
AGENTS = pytest.mark.parametrize("agents", [True, False], ids=["agent", "alone"])


def two_hosts(fleet, agents):
    f = fleet(namespaces=False, agents=agents)
    f.boot_selfcheck(end_mib=8, delay=200000)
    f.dest = f.incoming(1)
    return f


def stays_here(f):
    """The VM runs at the source alone, and migrates again."""
    f.still_runs_here()
    assert not f.dest.process.alive() or f.dest.status() != "running"
    f.dest.stop()


def runs_there(f):
    f.dest.wait_status("running")
    assert f.qemu.status() == "postmigrate"
    f.arrived(1, f.dest)
    f.check_guest()


def under_way(f):
    def so_much():
        info = f.qemu.qmp.execute("query-migrate")
        assert info.get("status", "setup") in ("setup", "active"), info
        return info.get("ram", {}).get("transferred", 0) > 2 << 20
    wait_for(so_much, 30, "the migration to be under way")


# ---- recv ----

class Ssh:
    """What stands in for ssh to the second host; knows the process id of the last `recv`."""

    def __init__(self, f):
        other = f.vecycles[1]
        self.pid = f.hosts[1].dir / "pid"
        program = f.hosts[0].dir / "ssh"
        program.write_text(SSH.format(pid=self.pid))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        recv = (f"{BINARY} recv --store {other.store} --control {other.control} "
                f"--socket-dir {f.hosts[1].sockets}")
        self.options = ["--ssh", str(program), "--remote", recv]

    def kill_recv(self):
        os.kill(int(self.pid.read_text()), signal.SIGKILL)


@AGENTS
def test_recv_is_killed_and_the_vm_runs_on(fleet, agents):
    f = two_hosts(fleet, agents)
    ssh = Ssh(f)
    p, _ = f.vecycle().start_migrate(f.qemu, "ssh://b", f.dest.name,
                                     [*ssh.options, "--max-bandwidth", "4M"])
    under_way(f)
    ssh.kill_recv()
    # An agent that loses its client says so to the other host.
    assert p.wait() == (60 if agents else 23), p.messages()
    stays_here(f)
    f.dest = f.incoming(1)
    r = f.vecycle().migrate(f.qemu, "ssh://b", f.dest.name, [*ssh.options, "--retry", "3"])
    assert r["confirmed"]
    runs_there(f)


def test_recv_is_killed_before_it_obeys_and_the_next_one_does(fleet):
    f = two_hosts(fleet, False)
    ssh = Ssh(f)
    qmp = QmpGate(f.hosts[1].path("gate.qmp"), f.dest.qmp_path)
    qmp.hold("cont")
    p, _ = f.vecycle().start_migrate(f.qemu, "ssh://b", "gate", ssh.options)
    assert qmp.is_held.wait(60), p.messages()
    ssh.kill_recv()
    qmp.cut()
    assert p.wait() == 61, p.messages()
    assert f.qemu.status() == "postmigrate" and f.dest.status() == "paused"
    r = f.vecycle().run("resolve", f.vm, "--retry", *ssh.options)
    assert r.returncode == 0, r.stderr
    runs_there(f)
    assert [v.json("show", f.vm)["handover"] for v in f.vecycles] == ["settled", "settled"]
    qmp.close()


# ---- proxy ----

def start_proxied(f, to):
    """A migration that QEMU makes through a proxy, both driven by this test."""
    f.dest.stop()
    f.dest = f.new_qemu(1, f"unix:{f.hosts[1].path('vm.sock')}", ["-S"])
    listen = f.hosts[0].path("out.sock")
    p, _ = f.vecycle().start_proxy(listen, f.vm, to, "vm")
    f.qemu.migrate_plain(f"unix:{listen}")
    return p


def proxied(f, to):
    p = start_proxied(f, to)
    f.qemu.wait_migrated()
    assert p.wait() == 0, p.messages()
    assert f.qemu.ram_digest() == f.dest.ram_digest(), "the memories differ"
    f.dest.qmp.execute("cont")
    runs_there(f)


@pytest.fixture
def gated(fleet):
    """Two hosts, with an agent at the second one and a gate before it."""
    gates = []

    def make(agents):
        f = two_hosts(fleet, True)
        if not agents:
            f.vecycles[0].agent.stop()
            f.vecycles[0].control = "none"
        f.gate = Gate(f.hosts[1].path("gate"), f.vecycles[1].address)
        gates.append(f.gate)
        return f

    yield make
    for g in gates:
        g.close()


POINTS = pytest.mark.parametrize("frame,from_source", [(BATCH, True), (SHUT, False)],
                                 ids=["stream", "switch"])


def hold(f, frame, from_source):
    f.gate.hold(frame, from_source, behind=frame == BATCH)


@AGENTS
@POINTS
@pytest.mark.parametrize("side", [0, 1], ids=["source", "destination"])
def test_a_proxy_is_killed_and_the_vm_runs_on(gated, agents, frame, from_source, side):
    """Or the agent that does its work at the destination; `agents`: there is one at the source too."""
    f = gated(agents)
    hold(f, frame, from_source)
    p = start_proxied(f, f.gate.address)
    assert f.gate.is_held.wait(60), p.messages()
    if side:
        f.vecycles[1].agent.kill()
    else:
        p.kill()
    f.gate.cut()
    assert p.wait() != 0
    stays_here(f)
    if side:
        f.vecycles[1].start_agent([f.vecycles[1].address])
    for v in f.vecycles:  # refused as long as a session has the VM
        wait_for(lambda: v.run("rm", f.vm).returncode in (0, 30), 30, "the session to end")
    proxied(f, f.gate.address)


# ---- migrate, without an agent ----

@POINTS
def test_migrate_without_an_agent_is_killed_and_the_vm_runs_on(gated, frame, from_source):
    f = gated(False)
    hold(f, frame, from_source)
    p, _ = f.vecycle().start_migrate(f.qemu, f.gate.address, f.dest.name)
    assert f.gate.is_held.wait(60), p.messages()
    p.kill()
    f.gate.release()
    stays_here(f)
    f.dest = f.incoming(1)
    assert f.vecycle().migrate(f.qemu, f.gate.address, f.dest.name, ["--retry", "3"])["confirmed"]
    runs_there(f)


def test_migrate_without_an_agent_is_killed_before_the_word(gated):
    """Paused on both sides, until somebody has the word given."""
    f = gated(False)
    f.gate.hold(WORD, True)
    p, _ = f.vecycle().start_migrate(f.qemu, f.gate.address, f.dest.name)
    assert f.gate.is_held.wait(60), p.messages()
    p.kill()
    f.gate.cut()
    assert f.qemu.status() == "postmigrate" and f.dest.status() == "paused"
    r = f.vecycle().migrate(f.qemu, f.gate.address, f.dest.name, ok=False)
    assert r["status"] == 12, r
    assert f.qemu.status() == "postmigrate" and f.dest.status() == "paused"
    # The other host may still be clearing up.
    wait_for(lambda: f.vecycle().run("resolve", f.vm, "--retry").returncode == 0, 30,
             "the word to be given")
    runs_there(f)
    assert [v.json("show", f.vm)["handover"] for v in f.vecycles] == ["settled", "settled"]
