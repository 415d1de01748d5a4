# SPDX-License-Identifier: LGPL-2.1-or-later
"""Faults in the handover, of a VM without a disk, and of one with a disk on shared storage that QEMU
locks and the guest writes before, during and after. A frame is lost at the switch, and meanwhile others use the QEMUs, their QMP
sockets are elsewhere, agents see other mounts than QEMU, or die at the n-th step of writing a record.

After each fault: never do two VMs run by vecycle's doing (if somebody else continues a second one, that
is his); one can be continued, by whatever `vecycle resolve` offers; its memory and its disk are right;
the stores verify; the next migration works. Which of `resolve`'s texts and records it is, is not looked
at."""
import os
import threading
import time

from torture import Breach, DEAD_PEER_S, KINDS as PLAIN, NEEDS_NAMESPACES, Torture, WatchedFleet
from torture import CANCEL_BUG_WRITE, overlap

from vctest.at_record import AtRecord
from vctest.elsewhere import Elsewhere, OWN_MOUNTS, can_have_own_mounts, hide, hiding, show
from vctest.gate import Gate, SHUT, WORD, WORD_DONE
from vctest.proc import comes_true, patient
from vctest.qemu import Qemu, new_uuid
from vctest.qmp import QmpError

THIRD_PARTY = ["third party: cont", "third party: stop", "third party: migrate", "third party: quit",
               "third party: migrate_cancel", "third party: resolve --run"]
HOSTS = ["source", "destination"]
KINDS = ["locked disk", *THIRD_PARTY, *(f"moved socket: {h}" for h in HOSTS),
         *(f"mount namespace: {h}" for h in HOSTS), *(f"record write: {h}" for h in HOSTS)]
NEEDS_MOUNTS = "mount namespace"
# What may not get through: (frame, from the source?)
LOST = [(WORD, True), (WORD_DONE, False), (SHUT, False)]
STEPS_OF_RECORDS = {"source": 8, "destination": 6}  # about as many as a migration has
MEET_S = 6            # agents that can reach each other have tried


class HandoverFleet(WatchedFleet):
    """Two hosts without namespaces, a gate before each agent, and another VM on each host."""

    def __init__(self):
        self.at_record = []
        super().__init__(False, None)
        self.gates = [Gate(str(h.dir / "gate"), v.address) for h, v in zip(self.hosts, self.vecycles)]
        self.elsewhere, self.hidden = [], set()
        self.others = {}

    def start_agent(self, v):
        i = self.vecycles.index(v)
        if len(self.at_record) <= i:
            self.at_record.append(AtRecord(v.host.dir / "steps"))
            # Beside the directory of QEMU's sockets, which may be hidden from it.
            v.control, v.address = str(v.host.dir / "control"), f"unix:{v.host.dir}/agent"
        mounts = hiding(v.host.sockets) if i in getattr(self, "hidden", ()) else OWN_MOUNTS
        v.wrapper = (*(mounts if can_have_own_mounts()[0] else ()), *self.at_record[i].words)
        super().start_agent(v)

    def other(self, i):
        """The QMP socket of another VM there."""
        if i not in self.others or not os.path.exists(self.others[i].qmp_path):
            self.others[i] = Qemu(self.hosts[i], f"other{self.n_qemus}", 16, new_uuid())
        return self.others[i].qmp_path

    def hide(self, i):
        self.hidden.add(i)
        hide(self.vecycles[i].agent, self.hosts[i].sockets)

    def restore(self):
        """All sockets are back, for everybody."""
        for e in self.elsewhere:
            e.restore()
        self.elsewhere.clear()
        for i in self.hidden:
            if self.vecycles[i].agent.alive():
                show(self.vecycles[i].agent, self.hosts[i].sockets)
        self.hidden.clear()

    def close(self):
        for g in self.gates:
            g.close()
        super().close()


class HandoverTorture(Torture):
    OUTCOMES = ["moved", "ran on", "settled later", "by retry", "by hand", "by cont", "forced",
                "third party's", "died with QEMU", "QEMU's bug"]

    def __init__(self, seed, kinds, **kw):
        able = can_have_own_mounts()[0]
        super().__init__(seed, [k for k in kinds if able or NEEDS_MOUNTS not in k], **kw)
        self.namespaces = False

    def of_mine(self, kinds):
        return [k for k in kinds if k in KINDS]

    def boot(self):
        self.lives += 1
        self.f = HandoverFleet()
        # QEMU's lock keeps a second VM from running, so every other guest has no disk.
        self.has_disk = self.lives % 2 == 1
        self.f.boot_selfcheck(32, 8, delay=100000, disk=self.has_disk)
        if self.has_disk:
            self.f.guest.tell(self.f.guest.WRITE)
            self.f.guest.wait_writes(2)
        self.last_s, self.rounds, self.known = 2.0, 0, [None, None]

    # ---- a round ----

    def next_kind(self):
        kind = super().next_kind()
        if kind == "locked disk" and not self.has_disk and len(self.kinds) > 1:
            return self.next_kind()
        return kind

    def one_round(self):
        f, kind = self.f, self.next_kind()
        self.n += 1
        self.pause_s, self.cut_host = self.rng.choice([0.3, DEAD_PEER_S + 2]), 0
        self.conts, self.stops, self.what = [], False, ""
        dest = f.incoming(1 - f.at)
        gate = f.gates[1 - f.at]
        lost = self.rng.choice(LOST + ([None, None] if "socket" not in kind and "mount" not in kind
                                       else []))
        if kind == "locked disk":
            lost = None
        self.kind, self.lost = kind, lost
        if lost:
            gate.hold(*lost)
        start = time.monotonic()
        if kind.startswith("record write"):  # before the first record is written
            self.arm(kind)
        client, _ = f.vecycle().start_migrate(f.qemu, gate.address, dest.name)
        self.meet_fault(kind, lost, gate, dest, client)
        try:
            client.wait(120)
        except Exception:
            raise Breach("vecycle migrate does not end") from None
        self.check_never_two()
        if self.rng.random() < 0.3 or not lost:
            self.restore(kind)
        self.heal()
        gate.refuse(False)
        gate.release()
        outcome = self.settle(kind, dest)
        self.table[kind][outcome] += 1
        self.say(f"{self.n:4}  {kind:30} {self.what:38} {self.name(lost):18} exit "
                 f"{client.popen.returncode:3} {time.monotonic() - start:6.1f} s  {outcome}")
        if outcome in ("died with QEMU", "third party's", "QEMU's bug"):
            return False
        self.check_all(moved=kind != "locked disk" or f.qemu is dest)
        self.clean_migration()
        return True

    @staticmethod
    def name(lost):
        return {None: "nothing is lost", WORD: "WORD is lost", WORD_DONE: "WORD_DONE is lost",
                SHUT: "SHUT is lost"}[lost and lost[0]]

    def meet_fault(self, kind, lost, gate, dest, client):
        """At a random instant, or while the frame that will be lost is held; some come later."""
        f = self.f
        if kind == "locked disk":
            plain = self.rng.choice([k for k in PLAIN if k not in NEEDS_NAMESPACES and "QEMU" not in k])
            self.what, when = plain, self.instant()
            self.inject(plain, when, dest, client)
            return
        if not lost:
            if not kind.startswith("record"):
                self.inject_here(kind, self.instant(), dest)
        else:
            comes_true(lambda: gate.is_held.is_set() or not client.alive() or self.at_step(kind),
                       patient(60))
            if self.at_step(kind):
                self.await_step(kind, client)
            late = self.rng.random() < 0.3
            if not late:
                self.strike(kind, dest)
            gate.refuse()
            gate.cut()
            if late:
                comes_true(lambda: not client.alive(), patient(60))
                self.strike(kind, dest)
        if kind.startswith("record") and not self.has_stepped:
            self.await_step(kind, client)

    def inject_here(self, kind, when, dest):
        how, seconds = when
        if how == "switch":
            comes_true(lambda: self.f.watches[self.f.qemu].stopped.is_set(), patient(10))
        time.sleep(seconds)  # the instant is the point of it
        self.strike(kind, dest)

    def strike(self, kind, dest):
        if kind.startswith("third party"):
            self.third_party(kind.split(": ")[1], dest)
        elif kind.startswith("moved socket"):
            self.move(kind, dest)
        elif kind.startswith("mount namespace"):
            self.hide(kind, dest)

    # ---- the kinds ----

    def host_of(self, kind):
        return self.f.at if kind.endswith("source") else 1 - self.f.at

    def qemu_of(self, kind, dest):
        return self.f.qemu if kind.endswith("source") else dest

    def third_party(self, command, dest, where=None):
        f = self.f
        where = where or self.rng.choice(HOSTS)
        q = f.qemu if where == "source" else dest
        self.what += f" {command} at the {where}"
        if command == "resolve --run":
            self.both_resolve()
            return
        try:
            if command == "cont":
                self.conts.append((q, self.is_left()))
            self.stops |= command in ("stop", "migrate")
            q.qmp.execute(command, **({"uri": "exec:cat >/dev/null"} if command == "migrate" else {}))
            if command == "quit":
                q.process.wait()
        except (QmpError, OSError):
            pass

    def is_left(self):
        """QEMU at the source has completed, and nobody has been told to run what arrived: from here on
        only evidence may make vecycle continue one of the two."""
        try:
            return self.f.qemu.status() == "postmigrate" and not self.may_be_told
        except (QmpError, OSError):
            return False

    @property
    def may_be_told(self):
        """The word may be on its way, or there; not where it, or what it follows, is held until it is lost."""
        return not self.lost or self.lost[0] == WORD_DONE

    def both_resolve(self):
        """Two operators, one at each host, who each want it to run there."""
        threads = [threading.Thread(target=self.resolve, args=(i, "--run")) for i in range(2)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.check_never_two()

    def restart(self, i):
        """What the agent had kept, connections and all, is gone."""
        v = self.f.vecycles[i]
        v.agent.kill()
        self.f.start_agent(v)
        self.what += ", agent anew"

    def and_more(self, kind, dest):
        """Somebody uses the QEMU while vecycle cannot see it."""
        if self.rng.random() < 0.5:
            self.third_party(self.rng.choice(["cont", "cont", "stop", "quit"]), dest,
                             kind.split(": ")[1])
        if self.rng.random() < 0.4:
            self.restart(self.host_of(kind))

    def move(self, kind, dest):
        f, i = self.f, self.host_of(kind)
        e = Elsewhere(self.qemu_of(kind, dest).qmp_path)
        f.elsewhere.append(e)
        how = self.rng.choice(["move", "refuse", "fill", "silence", "replace"])
        self.what = how
        getattr(e, how)(*([f.other(i)] if how == "replace" else []))
        self.and_more(kind, dest)

    def hide(self, kind, dest):
        self.f.hide(self.host_of(kind))
        self.and_more(kind, dest)

    def restore(self, kind):
        self.f.restore()

    def arm(self, kind):
        step = self.rng.randint(1, STEPS_OF_RECORDS[kind.split(": ")[1]])
        self.what, self.has_stepped = f"step {step}", False
        self.f.at_record[self.host_of(kind)].arm(step)

    def at_step(self, kind):
        return kind.startswith("record") and self.f.at_record[self.host_of(kind)].stands()

    def await_step(self, kind, client):
        i, self.has_stepped = self.host_of(kind), True
        if not self.f.at_record[i].kill(self.f.vecycles[i].agent, lambda: not client.alive()):
            self.what += ", not reached"

    # ---- what became of it ----

    def check_never_two(self):
        """By vecycle's doing."""
        watches = list(self.f.watches.items())
        for i, (q, w) in enumerate(watches):
            for other, o in watches[i + 1:]:
                both = overlap(w.ran(), o.ran())
                if both > 0 and not self.is_theirs():
                    raise Breach(f"{q.name} and {other.name} ran at a time, for {both * 1000:.3f} ms")
                self.theirs |= both > 0

    theirs = False

    def is_theirs(self):
        """Somebody continued a VM while the other one ran, or was to run: plain QEMU has no more to
        set against that. Where vecycle had still to decide, it has to look."""
        return any(not left for _, left in self.conts)

    def resolve(self, i, *options):
        f = self.f
        r = f.vecycles[i].run("resolve", f.vm, *options, "--socket-dir", f.hosts[i].sockets)
        self.said.append(f"{f.hosts[i].name}: {' '.join(options)}: {r.returncode} {r.stderr.strip()}")
        return r.returncode == 0

    said = []

    def one_runs(self, seconds):
        try:
            return comes_true(lambda: len(self.running()) == 1, seconds)
        finally:
            self.check_never_two()

    def has_died(self, dest):
        """What would have to be continued is gone with its QEMU."""
        f = self.f
        if not dest.process.alive() and self.died_running(dest):
            return True
        if f.qemu.process.alive():
            return False
        try:
            return not dest.process.alive() or dest.status() in ("inmigrate", "prelaunch")
        except (QmpError, OSError):
            return True

    def settle(self, kind, dest):
        f, self.said, self.theirs = self.f, [], False
        outcome = None
        if not self.one_runs(0.2):
            outcome = "settled later" if self.one_runs(MEET_S) else None
            if not outcome and not self.theirs:
                self.restore(kind)
                outcome = self.by_somebody(dest)
        elif f.elsewhere or f.hidden:
            comes_true(lambda: False, MEET_S)  # agents have met, and have not seen all
            self.check_never_two()
        self.restore(kind)
        comes_true(lambda: False, 1)
        self.check_never_two()
        if not outcome and not self.theirs and self.stops and not self.one_runs(5):
            outcome = self.by_somebody(dest)  # a third party's migration has completed since
        if outcome == "died with QEMU":
            return outcome
        if self.theirs:
            return "third party's"
        if not self.one_runs(5):
            if "migrate_cancel" in f"{kind} {self.what}" and CANCEL_BUG_WRITE in f.qemu.process.messages():
                return "QEMU's bug"  # docs/internals/faults.md
            raise Breach(f"{len(self.running())} VMs run in the end; {self.records()}, source "
                         f"{self.state(f.qemu)}, destination {self.state(dest)}; {self.said}")
        [q] = self.running()
        if q is dest:
            f.arrived(1 - f.at, dest)
            return outcome or "moved"
        dest.stop()
        return outcome or "ran on"

    def by_somebody(self, dest):
        """Nothing comes by itself: what can be done, the least first."""
        f = self.f
        if self.has_died(dest):
            return "died with QEMU"
        for options, outcome in (("--retry",), "by retry"), (("--run",), "by hand"):
            for i in self.rng.sample([0, 1], 2):
                self.resolve(i, *options)
                if self.one_runs(3):
                    return outcome
        if self.has_died(dest):
            return "died with QEMU"
        if self.stops:  # it keeps the state in which somebody else has put it
            for q in dest, f.qemu:
                if q.process.alive() and q.status() in ("paused", "postmigrate"):
                    try:
                        q.qmp.execute("cont")
                    except QmpError:  # the other one has the disk
                        continue
                    if self.one_runs(3):
                        if not dest.process.alive():  # nobody but a person can say that it never ran
                            self.resolve(f.at, "--run", "--force")
                        return "by cont"
        # A person knows what neither host does. Where the VM has run at the destination, it is there.
        ran = bool(f.watches[dest].ran()) or not f.qemu.process.alive()
        self.resolve(1 - f.at if ran else f.at, "--run", "--force")
        if self.one_runs(3):
            return "forced"
        raise Breach(f"none can be continued: {self.records()}, source {self.state(f.qemu)}, "
                     f"destination {self.state(dest)}, {self.said}")

    @staticmethod
    def state(q):
        try:
            return q.status() if q.process.alive() else "gone"
        except (QmpError, OSError) as e:
            return str(e)

    def check_guest(self):
        super().check_guest()
        try:
            if self.has_disk:
                self.f.guest.wait_writes(2)
        except (AssertionError, ConnectionError) as e:
            raise Breach(f"the guest's disk: {e}") from None

    def heal(self):
        for i, v in enumerate(self.f.vecycles):
            self.f.at_record[i].arm(0)
            if not v.agent.alive():
                self.f.start_agent(v)

    def dump(self):
        self.say(f"-- {self.kind}, {self.what}, {self.name(self.lost)}, conts "
                 f"{[(q.name, left) for q, left in self.conts]}, said {self.said}")
        super().dump()

