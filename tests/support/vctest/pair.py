# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM that wanders over hosts: what most end-to-end tests do."""
import time

from .disk import make_qcow2, shared_disk_options
from .guest import LinuxGuest, SelfCheck, linux_options, selfcheck_options
from .hosts import Hosts
from .proc import wait_for
from .qemu import Qemu, new_uuid
from .vecycle import Vecycle


class Fleet:
    """n hosts with an agent each, and one VM on the first of them."""

    def __init__(self, n=2, rate=None, namespaces=None, agents=True, delay_ms=0,
                 options=()):
        self.network = Hosts(n, rate=rate, namespaces=namespaces, delay_ms=delay_ms)
        self.hosts = self.network.__enter__()
        self.vecycles = [Vecycle(h, agent=agents) for h in self.hosts]
        self.vm = new_uuid()
        self.common = options  # of every QEMU
        self.at, self.qemu, self.guest, self.n_qemus = 0, None, None, 0

    def close(self):
        self.network.__exit__(None, None, None)

    # ---- the VM ----

    def new_qemu(self, host, incoming=None, extra=()):
        self.n_qemus += 1
        return Qemu(self.hosts[host], f"vm{self.n_qemus}", self.ram_mib, self.vm, incoming,
                    [*self.common, *self.options, *extra])

    def boot_linux(self, ram_mib=256, fill_mib=100, programs=False):
        self.ram_mib, self.options = ram_mib, linux_options(programs)
        self.qemu = self.new_qemu(0)
        self.guest = LinuxGuest(self.qemu)
        self.guest.wait_ready()
        if fill_mib:
            self.guest.command(f"fill {fill_mib} 1")

    def boot_selfcheck(self, ram_mib=64, end_mib=40, delay=0, extra=(), disk=False):
        """With `disk` it has one that both hosts see, `self.disk`, with QEMU's locks on it; it is told
        to write by guest.tell(guest.WRITE)."""
        self.ram_mib, self.options = ram_mib, [*selfcheck_options(end_mib, delay), *extra]
        if disk:
            self.disk = make_qcow2(f"{self.network.dir}/disk.qcow2")
            self.options += shared_disk_options(self.disk)
        self.qemu = self.new_qemu(0)
        self.guest = SelfCheck(self.qemu)
        self.guest.wait_passes(2)

    def vecycle(self):
        return self.vecycles[self.at]

    def incoming(self, to, extra=()):
        return self.new_qemu(to, "defer", extra)

    def arrived(self, to, dest):
        """The VM is at `dest` now; the QEMU that it left ends."""
        self.guest.attach(dest)
        self.qemu.stop()
        self.at, self.qemu = to, dest

    def migrate(self, to, extra=(), compare=True):
        """A whole migration. With `compare` the memory of both ends is compared in between."""
        dest = self.incoming(to)
        flags = ["--suspend"] if compare else []
        result = self.vecycle().migrate(self.qemu, self.vecycles[to].address, dest.name,
                                        [*flags, *extra])
        if compare:
            assert dest.status() == "paused"
            assert self.qemu.ram_digest() == dest.ram_digest(), "the memories differ"
            dest.qmp.execute("cont")
        else:
            assert dest.status() == "running"
        assert self.qemu.status() == "postmigrate"
        self.arrived(to, dest)
        return result

    def check_guest(self):
        if isinstance(self.guest, SelfCheck):
            self.guest.wait_passes(2)
        else:
            self.guest.command("check")

    def still_runs_here(self):
        """After a migration that failed."""
        wait_for(lambda: self.qemu.status() == "running", 30, "the source VM to run on")
        self.check_guest()

    def plain(self, to, suspend=True):
        """The same with plain QEMU: (info of query-migrate, milliseconds, bytes on the wire)."""
        host = self.hosts[to]
        uri = f"tcp:{host.address}:4444" if host.netns else f"unix:{host.path('plain')}"
        dest = self.new_qemu(to, uri, ["-S"] if suspend else [])
        before = self.hosts[self.at].sent_bytes(), host.sent_bytes()
        start = time.monotonic()
        self.qemu.migrate_plain(uri)
        info = self.qemu.wait_migrated()
        ms = (time.monotonic() - start) * 1000
        after = self.hosts[self.at].sent_bytes(), host.sent_bytes()
        wire = (sum(after) - sum(before)) if host.netns else info["ram"]["transferred"]
        dest.wait_status("paused" if suspend else "running")
        return dest, info, ms, wire
