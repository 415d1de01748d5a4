# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stock libvirtd as a host of its own: private mount, UTS and network namespaces, private /run,
/etc/libvirt and /var/lib/libvirt."""
import os
import shutil
import socket
import subprocess
import uuid
from pathlib import Path

from .guest import linux_options
from .proc import Process, patient, wait_for

QEMU_CONF = """security_driver = "none"
namespaces = []
cgroup_controllers = []
user = "root"
group = "root"
stdio_handler = "file"
"""

SETUP = """set -e
mount --make-rprivate /
mkdir -p /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt
mount --bind "$1/run" /run
mount --bind "$1/etc" /etc/libvirt
mount --bind "$1/lib" /var/lib/libvirt
mount --bind "$1/cache" /var/cache/libvirt
mount --bind "$1/log" /var/log/libvirt
# libvirtd looks for this user before it reads that it is not to be used.
for f in passwd group; do cp /etc/$f "$1/$f"; done
grep -q ^libvirt-qemu: "$1/passwd" || echo libvirt-qemu:x:64055:64055::/:/bin/false >> "$1/passwd"
grep -q ^libvirt-qemu: "$1/group" || echo libvirt-qemu:x:64055: >> "$1/group"
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
hostname "$2"
ip link set lo up
exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file /run/libvirtd.pid
"""


def available():
    """(yes, reason)."""
    if os.geteuid() != 0:
        return False, "two libvirtd on one machine need root"
    for tool in "libvirtd", "virsh", "unshare", "nsenter":
        if not shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            return False, f"'{tool}' is missing"
    r = subprocess.run(["unshare", "-m", "-u", "-n", "true"], capture_output=True)
    return r.returncode == 0, "namespaces cannot be made here"


class LibvirtHost:
    """Looks enough like hosts.Host that a Vecycle can live on it."""
    netns = None
    address = "127.0.0.1"

    def __init__(self, directory, name):
        self.name, self.dir = name, Path(directory) / name
        for sub in "run/vecycle", "run/libvirt", "etc/qemu", "lib", "cache", "log":
            (self.dir / sub).mkdir(parents=True)
        self.sockets = self.dir / "run" / "vecycle"
        (self.dir / "etc" / "qemu.conf").write_text(QEMU_CONF)
        (self.dir / "etc" / "libvirtd.conf").write_text(
            f'host_uuid = "{uuid.uuid4()}"\nauth_unix_rw = "none"\nunix_sock_rw_perms = "0700"\n')
        self.processes = []
        self.daemon = Process(["unshare", "-m", "-u", "-n", "sh", "-c", SETUP, "sh", self.dir, name],
                              self.dir / "libvirtd.log", start_new_session=True)
        self.socket = self.dir / "run" / "libvirt" / "libvirt-sock"
        wait_for(lambda: self.socket.exists() and self.virsh("version").returncode == 0, 60,
                 f"libvirtd of host {name}")

    def argv(self, argv):
        return ["nsenter", "-t", str(self.daemon.pid), "-m", "-u", "-n", "--"] + [str(a) for a in argv]

    def start(self, argv, log=None, **kw):
        p = Process(self.argv(argv), log or self.dir / "other.log", **kw)
        self.processes.append(p)
        return p

    def run(self, argv, timeout=120):
        return subprocess.run(self.argv(argv), capture_output=True, text=True, timeout=patient(timeout),
                              stdin=subprocess.DEVNULL)

    def virsh(self, *argv, timeout=120):
        return self.run(["virsh", "-q", "-c", "qemu:///system", *argv], timeout)

    def uri(self):
        """For the other libvirtd."""
        return f"qemu+unix:///system?socket={self.socket}"

    def path(self, name):
        return str(self.sockets / name)

    def stop(self):
        for name in self.virsh("list", "--name").stdout.split():
            self.virsh("destroy", name)
        for p in reversed(self.processes):
            p.stop()
        self.daemon.stop()


def domain_xml(name, vm, ram_mib):
    options = linux_options()
    return f"""<domain type='qemu'>
  <name>{name}</name><uuid>{vm}</uuid>
  <memory unit='KiB'>{ram_mib * 1024 + 1024}</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{options[1]}</kernel><initrd>{options[3]}</initrd><cmdline>{options[5]}</cmdline></os>
  <cpu mode='custom' match='exact'><model>qemu64</model></cpu>
  <on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <serial type='unix'><source mode='bind' path='/run/vecycle/{name}.serial'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""


class Console:
    """What guest.LinuxGuest needs of a QEMU: its serial console, connected."""

    def __init__(self, host, name):
        path = host.path(f"{name}.serial")
        self.serial = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        wait_for(lambda: self._connect(path), 30, "the serial console")

    def _connect(self, path):
        try:
            self.serial.connect(path)
            return True
        except OSError:
            return False
