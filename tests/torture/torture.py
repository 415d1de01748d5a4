# SPDX-License-Identifier: LGPL-2.1-or-later
"""Faults at random instants of real migrations: processes killed and stopped, links cut, migrations
cancelled, on guests that dirty their memory and check it.

After each fault: never did two VMs run at a time, and one runs; its memory is right; both stores
open, verify, and have the generations they had; the next migration works. Prints a table of faults
and outcomes. As root: the hosts are network namespaces."""
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from vctest import qemu as vq  # noqa: E402
from vctest.guest import SelfCheck  # noqa: E402
from vctest.hosts import can_make_namespaces  # noqa: E402
from vctest.pair import Fleet  # noqa: E402
from vctest.proc import comes_true, patient  # noqa: E402
from vctest.qmp import QmpError  # noqa: E402

PEER_LOST = 23           # exit status
DEAD_PEER_S = 3          # of the agents: silence that is longer counts
ROUNDS_PER_LIFE = 12     # then another guest
CLIENT_LIMIT_S = 120     # `vecycle migrate` ends by itself
SETTLE_LIMIT_S = 90      # and the agents settle what is open
KINDS = ["kill source agent", "kill destination agent", "kill client", "kill source QEMU",
         "kill destination QEMU", "stop source agent", "stop destination agent", "cut link",
         "migrate_cancel", "ctrl-c"]
NEEDS_NAMESPACES = {"cut link"}
# What QEMU 7.2 says some time after a migrate_cancel that came in the moment in which it stopped the
# guest for the switch: docs/internals/faults.md.
CANCEL_BUG = "bdrv_inactivate_recurse: Assertion"
# ... and at the next write of a guest that has a disk.
CANCEL_BUG_WRITE = "bdrv_co_write_req_prepare: Assertion"


class Breach(Exception):
    """A promise was broken."""


class Watch:
    """The events of one QEMU, from a QMP socket of its own: when its VM ran."""

    def __init__(self, path, running):
        self.qmp = vq.Qmp(path)
        self.qmp.sock.settimeout(None)
        self.lock = threading.Lock()
        self.since = time.time() if running else None
        self.intervals = []
        self.stopped, self.ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def _follow(self):
        try:
            while True:
                e = self.qmp._read()
                if e.get("event") in ("STOP", "RESUME"):
                    t = e["timestamp"]
                    self._note(e["event"], t["seconds"] + t["microseconds"] / 1e6)
        except (OSError, QmpError, ValueError):
            pass
        self._note("STOP", time.time())
        self.ended.set()

    def _note(self, event, when):
        with self.lock:
            if event == "RESUME":
                self.since = self.since or when
                self.stopped.clear()
                return
            if self.since:
                self.intervals.append((self.since, when))
            self.since = None
            self.stopped.set()

    def ran(self):
        with self.lock:
            return self.intervals + ([(self.since, float("inf"))] if self.since else [])

    def is_running(self):
        with self.lock:
            return self.since is not None


def overlap(one, other):
    """Seconds for which both ran."""
    return sum(max(0.0, min(b, d) - max(a, c)) for a, b in one for c, d in other)


class WatchedFleet(Fleet):
    """Two hosts with agents that give up soon, and a watch on every QEMU."""

    def __init__(self, namespaces, rate):
        super().__init__(2, rate=rate if namespaces else None, namespaces=namespaces, agents=False)
        self.watches = {}
        for v in self.vecycles:
            v.control = v.host.path("control")
            self.start_agent(v)

    def start_agent(self, v):
        v.start_agent([v.address], ["--dead-peer", str(DEAD_PEER_S), "-v"])

    def new_qemu(self, host, incoming=None, extra=()):
        mon = self.hosts[host].path(f"vm{self.n_qemus + 1}.mon")
        q = super().new_qemu(host, incoming, [*extra, "-qmp", f"unix:{mon},server=on,wait=off"])
        self.watches[q] = Watch(mon, running=incoming is None)
        return q


class Torture:
    RATE = "300mbit"
    OUTCOMES = ["moved", "ran on", "settled later", "by retry", "by hand", "died with QEMU",
                "QEMU's bug"]

    def __init__(self, seed, kinds, out=sys.stdout):
        self.rng = random.Random(seed)
        self.namespaces = can_make_namespaces()[0]
        self.kinds = [k for k in self.of_mine(kinds) if self.namespaces or k not in NEEDS_NAMESPACES]
        self.table = defaultdict(Counter)
        self.out = out
        self.f = None
        self.lives = self.n = self.last_s = 0
        self.queue = []

    def of_mine(self, kinds):
        return [k for k in kinds if k in KINDS]

    def say(self, text):
        print(text, file=self.out, flush=True)

    # ---- a life: a guest from its boot on ----

    def boot(self):
        self.lives += 1
        self.f = WatchedFleet(self.namespaces, self.RATE)
        if self.lives % 2:
            self.f.boot_linux(128, 40)
            self.f.guest.command("dirty 8 20")
        else:
            # Slow enough to converge on a loaded machine.
            self.f.boot_selfcheck(48, 24, delay=20000)
        self.last_s, self.rounds = 4.0, 0
        self.known = [None, None]

    def end_life(self):
        if self.f:
            self.f.close()
        self.f = None

    # ---- a round ----

    def next_kind(self):
        """All kinds come equally often, in random order."""
        if not self.queue:
            self.queue = self.rng.sample(self.kinds, len(self.kinds))
        return self.queue.pop()

    def instant(self):
        """Anywhere in a migration, or close to the switch, where it matters most."""
        if self.rng.random() < 0.5:
            return "at", self.rng.random() * self.last_s * 1.1
        return "switch", self.rng.choice([0, self.rng.random() * 0.02, self.rng.random() * 0.2])

    def options(self):
        """Of the migration that meets the fault."""
        return []

    def inject(self, kind, when, dest, client):
        """In a thread: waits for the instant, then does it. Returns what heals it."""
        f, src, dst = self.f, self.f.vecycles[self.f.at], self.f.vecycles[1 - self.f.at]
        how, seconds = when
        if how == "switch":
            f.watches[f.qemu].stopped.wait(60)
        time.sleep(seconds)  # the instant is the point of it
        pause = self.pause_s
        if kind == "kill source agent":
            src.agent.kill()
        elif kind == "kill destination agent":
            dst.agent.kill()
        elif kind == "kill client":
            client.kill()
        elif kind == "kill source QEMU":
            f.qemu.process.kill()
        elif kind == "kill destination QEMU":
            dest.process.kill()
        elif kind in ("stop source agent", "stop destination agent"):
            p = src.agent if "source" in kind else dst.agent
            os.kill(p.pid, signal.SIGSTOP)
            time.sleep(pause)
            os.kill(p.pid, signal.SIGCONT)
        elif kind == "cut link":
            host = f.hosts[self.cut_host]
            host.run(["ip", "link", "set", "eth0", "down"])
            time.sleep(pause)
            host.run(["ip", "link", "set", "eth0", "up"])
        elif kind == "migrate_cancel":
            try:
                f.qemu.qmp.execute("migrate_cancel")
            except (QmpError, OSError):
                pass
        elif kind == "ctrl-c" and client.alive():
            client.popen.send_signal(signal.SIGINT)

    def one_round(self):
        f, kind, when = self.f, self.next_kind(), self.instant()
        self.pause_s = self.rng.choice([0.3, 1.5, DEAD_PEER_S + 2])
        self.cut_host = self.rng.randrange(2)
        self.n += 1
        self.prepare_guest()
        dest = f.incoming(1 - f.at)
        client, _ = f.vecycle().start_migrate(f.qemu, f.vecycles[1 - f.at].address, dest.name,
                                              self.options())
        injector = threading.Thread(target=self.inject, args=(kind, when, dest, client), daemon=True)
        injector.start()
        start = time.monotonic()
        try:
            client.wait(CLIENT_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise Breach(f"vecycle migrate has not ended after {CLIENT_LIMIT_S} s") from None
        took = time.monotonic() - start
        injector.join(90)
        self.heal()
        outcome = self.settle(kind, dest, client.popen.returncode)
        self.table[kind][outcome] += 1
        self.say(f"{self.n:4}  {kind:24} {when[0]:>6} +{when[1]:5.2f} s  exit {client.popen.returncode:4}"
                 f"  {took:5.1f} s  {outcome}")
        if outcome in ("died with QEMU", "QEMU's gap", "QEMU's bug"):
            dest.stop()
            return False
        try:
            self.check_all(moved=f.qemu is dest)
            self.clean_migration()
        except Breach:
            if kind != "migrate_cancel" or CANCEL_BUG not in f.qemu.process.messages():
                raise
            self.table[kind].update({outcome: -1, "QEMU's bug": 1})
            return False
        return True

    def heal(self):
        for v in self.f.vecycles:
            if not v.agent.alive():
                self.f.start_agent(v)

    def running(self):
        return [q for q, w in self.f.watches.items() if w.is_running()]

    def check_never_two(self):
        watches = list(self.f.watches.values())
        for i, w in enumerate(watches):
            for other in watches[i + 1:]:
                both = overlap(w.ran(), other.ran())
                if both > 0:
                    raise Breach(f"two VMs ran at a time, for {both * 1000:.3f} ms")

    def settle(self, kind, dest, status):
        """Until one VM runs; how that came about."""
        f = self.f

        def wait_running(seconds):
            try:
                return comes_true(lambda: len(self.running()) == 1, seconds)
            finally:
                self.check_never_two()
        killed = kind == "kill source QEMU" and not f.qemu.process.alive()
        if kind == "kill destination QEMU" and self.died_running(dest):
            self.check_never_two()
            return "died with QEMU"  # the migration was over: the VM ran there, and only there
        # A VM whose QEMU was killed runs on only if it had arrived whole.
        if wait_running(0.2):
            outcome = None
        elif wait_running(5 if killed else SETTLE_LIMIT_S):
            outcome = "settled later"
        elif killed:
            outcome = self.orphan(dest, wait_running)
            if outcome == "died with QEMU":
                return outcome
        elif not dest.process.alive() and self.about_to_run():
            # Its QEMU died behind that record: only a person can say that it never ran.
            f.vecycle().run("resolve", f.vm, "--run", "--force")
            if not wait_running(10):
                raise Breach(f"a VM that died before it ran cannot be continued: {self.records()}")
            outcome = "by hand"
        else:
            r = f.vecycle().run("resolve", f.vm, "--retry", "--insecure")
            if not wait_running(10):
                raise Breach(f"no VM runs after a fault: exit {status}, {self.records()}, "
                             f"retry: {r.stderr.strip()}")
            outcome = "by retry"
        [q] = self.running()
        if q is dest:
            f.arrived(1 - f.at, dest)
            return outcome or "moved"
        dest.stop()
        return outcome or "ran on"

    def about_to_run(self):
        f = self.f
        return f.vecycles[1 - f.at].json("show", f.vm)["handover"] == "about-to-run"

    def died_running(self, dest):
        watch = self.f.watches[dest]
        return not dest.process.alive() and watch.ended.wait(10) and bool(watch.ran())

    def orphan(self, dest, wait_running):
        """The source QEMU is dead, and the VM has not been continued: had it arrived?"""
        f = self.f
        record = f.vecycles[1 - f.at].json("show", f.vm)["handover"]
        alive = dest.process.alive() and dest.status() == "paused"
        if not alive or record != "arriving":
            return "died with QEMU"
        r = f.vecycles[1 - f.at].run("resolve", f.vm, "--run", "--force", "--socket-dir",
                                     f.hosts[1 - f.at].sockets)
        if not wait_running(10):
            raise Breach(f"a VM that has arrived cannot be continued: {r.stderr.strip()}")
        return "by hand"

    def records(self):
        out = []
        for v in self.f.vecycles:
            r = v.run("show", self.f.vm, "--json")
            out.append(json.loads(r.stdout).get("handover") if r.returncode == 0 else "-")
        return "records " + " and ".join(out)

    # ---- what must hold ----

    def prepare_guest(self):
        if not isinstance(self.f.guest, SelfCheck):
            self.f.guest.command("stop")
            self.f.guest.command("rewrite 30")
            self.f.guest.command("dirty 8 20")

    def check_guest(self):
        try:
            if not isinstance(self.f.guest, SelfCheck):
                self.f.guest.command("stop")
            self.f.check_guest()
        except (AssertionError, ConnectionError) as e:
            raise Breach(f"the guest: {e}") from None

    def generation(self, i):
        """(id, root) of the complete generation in the store of host i, which verifies, or None."""
        v = self.f.vecycles[i]
        r = v.run("verify", self.f.vm, "--json")
        if r.returncode == 30:
            return None
        if r.returncode:
            raise Breach(f"the store of host {i} does not verify: {r.stderr.strip()}")
        shown = v.json("show", self.f.vm)
        # A partial one is shown where there is no other.
        return (shown["generation"], shown["root"]) if shown["n_generations"] else None

    def check_stores(self, moved):
        """Every host has the generation that it had; where the VM has moved, that or the new one,
        and both hosts have the same new one."""
        have = [self.generation(i) for i in range(2)]
        for i, (old, new) in enumerate(zip(self.known, have)):
            if old and not new:
                raise Breach(f"the store of host {i} has lost its generation {old[0]}")
            if new != old and not moved:
                raise Breach(f"the store of host {i} has generation {new} and not {old}, "
                             "and the VM has not moved")
        new = [have[i] for i in range(2) if have[i] != self.known[i]]
        if len(set(new)) > 1:
            raise Breach(f"the two stores have different new generations, {new}")
        self.known = have

    def check_all(self, moved):
        self.check_guest()
        self.check_stores(moved)
        self.check_never_two()

    def migrate_again(self):
        """What it printed, and the QEMU that the VM is at. On a machine that has much else to do an agent
        may be silent for longer than the other one waits: then once more."""
        f = self.f
        for _ in range(5):
            dest = f.incoming(1 - f.at)
            start = time.monotonic()
            r = f.vecycle().migrate(f.qemu, f.vecycles[1 - f.at].address, dest.name, ["--suspend"],
                                    ok=False)
            self.last_s = max(0.5, time.monotonic() - start)
            if not r["status"]:
                return r, dest
            if r["status"] != PEER_LOST or not comes_true(lambda: self.running() == [f.qemu],
                                                          SETTLE_LIMIT_S):
                break
            dest.stop()
        raise Breach(f"the next migration failed: {r['messages'].strip()}")

    def clean_migration(self):
        """The next one works, and both hosts have the same, new generation afterwards."""
        f, before = self.f, self.known
        self.prepare_guest()
        r, dest = self.migrate_again()
        if not comes_true(lambda: not self.running(), patient(5)):
            raise Breach("the next migration suspended the VM and it runs")
        if not r["confirmed"]:
            raise Breach("the next migration left different checkpoints")
        if f.qemu.ram_digest() != dest.ram_digest():
            raise Breach("the next migration brought other memory than it took")
        dest.qmp.execute("cont")
        f.arrived(1 - f.at, dest)
        self.check_all(moved=True)
        if not self.known[0] or self.known[0] != self.known[1] or self.known == before:
            raise Breach(f"the next migration left the generations {self.known}")

    # ---- all ----

    def run(self, seconds):
        """True: nothing was breached."""
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                if not self.f:
                    self.boot()
                self.rounds += 1
                if not self.one_round() or self.rounds == ROUNDS_PER_LIFE:
                    self.end_life()
            return True
        except (Breach, AssertionError, OSError, QmpError, subprocess.TimeoutExpired) as e:
            self.say(f"BREACH in round {self.n}: {type(e).__name__}: {e}")
            self.dump()
            return False
        finally:
            self.end_life()

    def dump(self):
        try:
            self.say(f"-- the source QEMU: {self.f.qemu.qmp.execute('query-migrate')}")
        except (AttributeError, OSError, QmpError):
            pass
        for v in self.f.vecycles if self.f else []:
            lines = v.log.read_text(errors="replace").splitlines()[-30:]
            self.say(f"-- agent of {v.host.name}:")
            for line in lines:
                self.say("   " + line)
        for q in self.f.watches if self.f else []:
            tail = q.process.messages().splitlines()[-5:]
            self.say(f"-- {q.name} on {q.host.name}, exit {q.process.popen.poll()}: {tail}")

    def print_table(self):
        self.say("")
        self.say(f"{'fault':26}" + "".join(f"{o:>16}" for o in self.OUTCOMES))
        for kind in self.kinds:
            row = self.table[kind]
            self.say(f"{kind:26}" + "".join(f"{row[o] or '-':>16}" for o in self.OUTCOMES))
        total = sum(sum(row.values()) for row in self.table.values())
        kills = sum(sum(row.values()) for kind, row in self.table.items() if kind.startswith("kill"))
        self.say(f"{total} faults ({kills} of them kills), and a clean migration after each; "
                 f"guests booted: {self.lives}")
