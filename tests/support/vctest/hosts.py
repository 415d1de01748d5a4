# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hosts: directories with a network namespace each, joined by a bridge; without root, directories."""
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from .proc import Process, patient


BUILD = Path(os.environ.get("VC_BUILD_DIR", Path(__file__).resolve().parents[3] / "build"))
JUMBO = "9000"
DELAY = BUILD / "bench" / "tools" / "delay"


def can_make_namespaces():
    """(yes, reason)."""
    if os.geteuid() != 0:
        return False, "network namespaces need root"
    for tool in "ip", "tc":
        if not shutil.which(tool):
            return False, f"'{tool}' is missing"
    r = subprocess.run(["ip", "netns", "list"], capture_output=True)
    return (r.returncode == 0, "ip netns does not work here")


def sh(*argv):
    subprocess.run(argv, check=True, capture_output=True)


class Host:
    def __init__(self, name, directory, netns=None, address="127.0.0.1"):
        self.name, self.netns, self.address = name, netns, address
        self.dir = Path(directory) / name
        self.sockets = self.dir / "run"
        self.sockets.mkdir(parents=True)
        self.processes = []

    def argv(self, argv):
        prefix = ["ip", "netns", "exec", self.netns] if self.netns else []
        return prefix + [str(a) for a in argv]

    def start(self, argv, log=None, **kw):
        p = Process(self.argv(argv), log or self.dir / "log", **kw)
        self.processes.append(p)
        return p

    def run(self, argv, timeout=120, **kw):
        return subprocess.run(self.argv(argv), capture_output=True, text=True, timeout=patient(timeout),
                              stdin=subprocess.DEVNULL, **kw)

    def path(self, name):
        return str(self.sockets / name)

    def stop(self):
        for p in reversed(self.processes):
            p.kill() if p.may_be_killed else p.stop()
        self.processes.clear()

    def sent_bytes(self):
        """Bytes that left this host, Ethernet headers included; None without a namespace."""
        if not self.netns:
            return None
        r = self.run(["ip", "-s", "-j", "link", "show", "eth0"])
        return json.loads(r.stdout)[0]["stats64"]["tx"]["bytes"]


class Hosts:
    """n hosts in a temporary directory; `rate` (tc's notation) limits each direction of each link.
    With delay_ms the first host is that far from the others, each way; frames are jumbo then, since
    a program has to carry each of them."""

    def __init__(self, n=2, rate=None, namespaces=None, delay_ms=0):
        self.n, self.rate, self.delay_ms = n, rate, delay_ms
        self.line = None
        self.namespaces = can_make_namespaces()[0] if namespaces is None else namespaces
        self.made = []

    def __enter__(self):
        self.dir = tempfile.mkdtemp(prefix="vecycle-test-")
        self.list = []
        try:
            if self.namespaces:
                self._make_network()
            else:
                self.list = [Host(chr(97 + i), self.dir) for i in range(self.n)]
        except BaseException:
            self.__exit__()
            raise
        return self.list

    def _make_network(self):
        switch = f"vc{os.getpid()}-s"
        sh("ip", "netns", "add", switch)
        self.made.append(switch)
        for bridge in ("br0", "br1") if self.delay_ms else ("br0",):
            sh("ip", "-n", switch, "link", "add", bridge, "type", "bridge", "forward_delay", "0")
            sh("ip", "-n", switch, "link", "set", bridge, "up")
        if self.delay_ms:
            self._make_line(switch)
        for i in range(self.n):
            ns, port = f"vc{os.getpid()}-{i}", f"p{i}"
            sh("ip", "netns", "add", ns)
            self.made.append(ns)
            sh("ip", "-n", ns, "link", "set", "lo", "up")
            sh("ip", "-n", ns, "link", "add", "eth0", "type", "veth", "peer", "name", port,
               "netns", switch)
            sh("ip", "-n", ns, "addr", "add", f"10.88.0.{i + 1}/24", "dev", "eth0")
            sh("ip", "-n", switch, "link", "set", port, "master",
               "br1" if self.delay_ms and i else "br0", "up")
            sh("ip", "-n", ns, "link", "set", "eth0", "up")
            for where, dev in (ns, "eth0"), (switch, port):
                if self.delay_ms:
                    sh("ip", "-n", where, "link", "set", dev, "mtu", JUMBO)
                # Segments as on a real wire: counters and shaping see what would cross it.
                subprocess.run(["ip", "netns", "exec", where, "ethtool", "-K", dev, "tso", "off",
                                "gso", "off", "gro", "off"], capture_output=True)
            self.list.append(Host(chr(97 + i), self.dir, ns, f"10.88.0.{i + 1}"))
        if self.rate:
            self.set_rate(self.rate)

    def _make_line(self, switch):
        """A program that carries frames between the two bridges, later."""
        log = Path(self.dir) / "line.log"
        self.line = Process(["ip", "netns", "exec", switch, DELAY, "line0", "line1",
                             str(int(self.delay_ms * 1000))], log, stdout=subprocess.PIPE)
        ready = self.line.popen.stdout.readline()
        assert ready == b"ready\n", self.line.messages()
        for tap, bridge in ("line0", "br0"), ("line1", "br1"):
            sh("ip", "-n", switch, "link", "set", tap, "mtu", JUMBO, "txqueuelen", "10000", "master",
               bridge, "up")

    def set_rate(self, rate):
        for h in self.list:
            sh("tc", "-n", h.netns, "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate,
               "burst", "256kb", "latency", "20ms")

    def __exit__(self, *_):
        for h in self.list:
            h.stop()
        if self.line:
            self.line.stop()
            self.line.popen.stdout.close()
        for ns in reversed(self.made):
            subprocess.run(["ip", "netns", "del", ns], capture_output=True)
        shutil.rmtree(self.dir, ignore_errors=True)
