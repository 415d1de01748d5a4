# SPDX-License-Identifier: LGPL-2.1-or-later
"""One VM, one system, one link: migrations, measured or not."""
import os
import shutil
import tempfile
import time
from pathlib import Path

from vctest.pair import Fleet
from vctest.proc import wait_for
from vctest.vecycle import Vecycle as VecycleHost

from . import slow
from .measure import AgentUse, GuestGap, QemuCpu, evict, nonzero_bytes, wait_quiet
from .systems import NotConverged

RUN_TIMEOUT_S = 180
# Guest memory is touched before anything is measured. Where a hypervisor below takes back what lies
# free, the first touch costs 0.1 to 2.5 s for each GiB, in whichever migration comes to it.
QEMU_OPTIONS = ["-mem-prealloc"]


class Lab:
    def __init__(self, system, link, ram_mib, fill_mib, n_hosts=2, programs=False):
        self.system, self.link = system(), link
        self.ram_mib, self.fill_mib = ram_mib, fill_mib
        self.group, self.slow_by, self.gap = None, None, False
        self.images = None  # a directory where the memory at each departure is kept
        shm = Path("/dev/shm")
        room = shm.is_dir() and shutil.disk_usage(shm).free > (ram_mib << 20) * 4
        self.dir = Path(tempfile.mkdtemp(prefix="vecycle-bench-", dir=shm if room else None))
        self.fleet = None
        try:
            self.fleet = Fleet(n_hosts, rate=link.rate, agents=False, namespaces=True,
                               delay_ms=link.delay_ms, options=QEMU_OPTIONS)
            if self.system.agents:
                self._start_agents()
            self.fleet.boot_linux(ram_mib, fill_mib, programs)
        except BaseException:
            self.close()
            raise

    def _start_agents(self):
        bps, wrapper = self.system.read_bps, []
        if bps:
            self.group = slow.make_group(self.fleet.hosts[0].dir, bps)
            self.slow_by = "control group" if self.group else "preloaded library"
            wrapper = [] if self.group else slow.shim_wrapper(bps)
        self.fleet.vecycles = [VecycleHost(h, wrapper=wrapper) for h in self.fleet.hosts]
        for v in self.fleet.vecycles if self.group else ():
            self.group.add(v.agent.pid)

    def close(self):
        if self.fleet:
            self.fleet.close()
        if self.group:
            self.group.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    @property
    def qemu(self):
        return self.fleet.qemu

    @property
    def guest(self):
        return self.fleet.guest

    def next_host(self):
        return (self.fleet.at + 1) % len(self.fleet.hosts)

    def forget(self):
        """No host has a checkpoint of the VM any more."""
        if self.system.agents:
            self._quiet()
            for v in self.fleet.vecycles:
                r = v.run("rm", self.fleet.vm)
                assert r.returncode in (0, 30), r.stderr  # 30: it had none

    def _quiet(self):
        if self.system.agents:
            wait_quiet([v.agent.pid for v in self.fleet.vecycles])

    def _wire_bytes(self):
        return sum(h.sent_bytes() for h in self.fleet.hosts)

    def _chill(self):
        """Facts about the stores, which are then on disk only."""
        sums = [evict(v.store) for v in self.fleet.vecycles]
        facts = {"store_bytes": sum(s[0] for s in sums), "store_cached_bytes": sum(s[1] for s in sums)}
        if self.slow_by:
            facts["read_bps"], facts["slow_by"] = self.system.read_bps, self.slow_by
        return facts

    def migrate(self, scenario, timeout=RUN_TIMEOUT_S, **facts):
        """A whole migration to the next host: the run."""
        to = self.next_host()
        dest = self.system.prepare(self, to)
        run = self._measured(scenario, dest, to, timeout, facts)
        if run["converged"]:
            self._examine(run)
            self.fleet.arrived(to, dest)
        else:
            dest.stop()
        return run

    def _head(self, scenario):
        return {"scenario": scenario, "link": self.link.name, "system": self.system.name,
                "ram_bytes": self.qemu.ram_bytes}

    def _measured(self, scenario, dest, to, timeout, facts):
        self._quiet()
        run = {**self._head(scenario), **facts, "converged": True}
        if self.system.agents and self.system.cold:
            run["store"] = self._chill()
        source, at = self.qemu, self.fleet.at
        cpus = {"source": [QemuCpu(source)], "dest": [QemuCpu(dest)]}
        agents = {}
        if self.system.agents:
            agents = {"source": AgentUse(self.fleet.vecycles[at]),
                      "dest": AgentUse(self.fleet.vecycles[to])}
        gap = GuestGap(source.serial, dest.serial) if self.gap else None
        wire, start = self._wire_bytes(), time.time()
        try:
            self.system.start(self, dest, to)
            run.update(self.system.finish(self, dest, timeout))
        except NotConverged as e:
            run.update(e.facts, converged=False)
        finally:
            if gap:
                run["guest_gap_ms"] = gap.stop()
        run["wire_bytes"] = self._wire_bytes() - wire
        run["command_ms"] = (time.time() - start) * 1000
        run["cpu_ms"] = {side: sum(c.spent_ms() for c in cs) +
                         (agents[side].spent_ms() if agents else 0) for side, cs in cpus.items()}
        run["qemu_cpu_ms"] = {side: cs[0].spent_ms() for side, cs in cpus.items()}
        if agents:
            run["rss_bytes"] = {side: a.peak_rss_bytes() for side, a in agents.items()}
        if run["converged"]:
            stop, resume = source.qmp.event_time("STOP"), dest.qmp.event_time("RESUME")
            run["total_ms"] = (resume - start) * 1000
            run["downtime_ms"] = (resume - stop) * 1000
        return run

    def _examine(self, run):
        """The VM's memory as it left, from the QEMU that it left."""
        path = self.dir / "left.ram"
        self.qemu.save_ram(path)
        run["nonzero_bytes"] = nonzero_bytes(path)
        if self.images:
            os.makedirs(self.images, exist_ok=True)
            before, after = self.images / "before.ram", self.images / "after.ram"
            if after.exists():
                after.replace(before)
            shutil.move(path, after)
        else:
            path.unlink()

    def interrupted(self, share):
        """A migration that is cancelled when it has gone over that share of RAM: facts."""
        to = self.next_host()
        dest = self.system.prepare(self, to)
        self._quiet()
        wire, start = self._wire_bytes(), time.time()
        self.system.start(self, dest, to)

        def far_enough():
            assert not self.system.ended(self), "the migration was over before it could be cancelled"
            return self.system.progress(self) >= share
        wait_for(far_enough, RUN_TIMEOUT_S, "the first pass to be under way", step=0.002)
        reached = self.system.progress(self)
        self.system.cancel(self)
        dest.stop()
        assert self.qemu.status() == "running"
        return {"wire_bytes": self._wire_bytes() - wire, "ms": (time.time() - start) * 1000,
                "share": reached}

    def check(self):
        """The guest finds its memory as it should be."""
        self.fleet.check_guest()
