# SPDX-License-Identifier: LGPL-2.1-or-later
"""A QEMU on a host. It has two QMP sockets: one for vecycle (NAME.qmp), one for the test."""
import hashlib
import os
import shutil
import socket
import uuid

from .proc import wait_for
from .qmp import Qmp, QmpError

BINARY = os.environ.get("VC_TEST_QEMU", "qemu-system-x86_64")


def available():
    return bool(shutil.which(BINARY)), f"{BINARY} is missing"


# QEMU before 9.0 loses writes of a TCG guest during migration where a RAM block is a multiple of 64
# pages (fixed by "physmem: Fix migration dirty bitmap coherency with TCG memory access"): plain
# migration corrupts such a guest too. 8 KiB more RAM keep to the path that is right.
ODD_KIB = 8


class Qemu:
    def __init__(self, host, name, ram_mib, vm, incoming=None, extra=(), machine="pc"):
        self.host, self.name, self.ram_mib, self.vm = host, name, ram_mib, vm
        self.ram_bytes = (ram_mib * 1024 + ODD_KIB) * 1024
        self.qmp_path = host.path(f"{name}.qmp")
        self.serial_path = host.path(f"{name}.serial")
        test_path = host.path(f"{name}.test")
        argv = [BINARY, "-machine", f"{machine},accel=tcg", "-m", f"{self.ram_bytes // 1024}K", "-nodefaults",
                "-display", "none", "-vga", "none", "-uuid", vm,
                "-no-reboot",  # a guest that crashed must not look like one that was carried over
                "-chardev", f"socket,id=serial,path={self.serial_path},server=on,wait=off",
                "-serial", "chardev:serial",
                "-qmp", f"unix:{self.qmp_path},server=on,wait=off",
                "-qmp", f"unix:{test_path},server=on,wait=off", *extra]
        if incoming:
            argv += ["-incoming", incoming]
        self.process = host.start(argv, log=host.dir / f"{name}.log")
        self.process.may_be_killed = True  # one whose postcopy is paused does not end by itself
        self.qmp = Qmp(test_path)
        # Before anything migrates in: a UART that arrives in the middle of a retry and finds nobody
        # connected never sends again.
        self.serial = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.serial.connect(self.serial_path)

    def status(self):
        return self.qmp.execute("query-status")["status"]

    def is_running(self):
        """It is there, and its VM runs. One that is about to end closes its sockets first."""
        try:
            return self.process.alive() and self.status() == "running"
        except (OSError, QmpError):
            self.process.wait(30)
            return False

    def wait_status(self, status, timeout=30):
        wait_for(lambda: self.status() == status, timeout, f"{self.name} to be {status}")

    def version(self):
        """(major, minor)"""
        v = self.qmp.execute("query-version")["qemu"]
        return v["major"], v["minor"]

    def ram_facts(self):
        """(SHA-256 of all of its memory, bytes in pages that are not zero); it has to be paused."""
        path = self.host.path(f"{self.name}.ram")
        self.save_ram(path)
        digest, zero, nonzero = hashlib.sha256(), bytes(4096), 0
        with open(path, "rb") as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)
                nonzero += sum(chunk[i:i + 4096] != zero for i in range(0, len(chunk), 4096))
        os.unlink(path)
        return digest.hexdigest(), nonzero * 4096

    def save_ram(self, path):
        """All of its memory into a file; it has to be paused."""
        self.qmp.execute("pmemsave", val=0, size=self.ram_bytes, filename=str(path))

    def ram_digest(self):
        return self.ram_facts()[0]

    def set_capabilities(self, capabilities):
        self.qmp.execute("migrate-set-capabilities",
                         capabilities=[{"capability": c, "state": True} for c in capabilities])

    def migrate_plain(self, uri, downtime_limit=300, capabilities=("return-path", "events"),
                      **parameters):
        """Starts a migration as a user of plain QEMU would."""
        self.set_capabilities(capabilities)
        self.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40,
                         downtime_limit=downtime_limit, **parameters)
        self.qmp.execute("migrate", uri=uri)

    def wait_migrated(self, timeout=120):
        def done():
            info = self.qmp.execute("query-migrate")
            assert info["status"] not in ("failed", "cancelled"), info
            # It says so a moment before it has summed up.
            return info if info["status"] == "completed" and info["total-time"] else None
        return wait_for(done, timeout, f"{self.name} to be migrated")

    def let_converge(self, rounds=2):
        """After so many rounds, whatever the guest writes meanwhile: a machine that has much else to
        do moves memory slower than a guest dirties it."""
        def done():
            info = self.qmp.execute("query-migrate")
            return (info["status"] in ("completed", "failed")
                    or info.get("ram", {}).get("dirty-sync-count", 0) > rounds)
        wait_for(done, 120, f"{self.name} to be migrated for {rounds} rounds")
        self.qmp.execute("migrate-set-parameters", downtime_limit=60000)

    def stop(self):
        self.serial.close()
        self.qmp.close()
        self.process.stop()


def new_uuid():
    return str(uuid.uuid4())
