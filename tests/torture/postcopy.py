# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same faults in migrations that switch to postcopy. After the switch the VM is the
destination's: what is interrupted must be recoverable, and is recovered here, by
`vecycle migrate --recover`. A QEMU that is killed then takes the VM along, as without vecycle; and so
does, before QEMU 10.2, a stream that breaks in the moment of the switch ("QEMU's gap"): the source
cannot go back any more, the destination cannot wait for the rest yet."""
import time

from torture import Breach, SETTLE_LIMIT_S, Torture

from vctest.qmp import QmpError

KINDS = ["kill source agent", "kill destination agent", "kill client", "kill source QEMU",
         "kill destination QEMU", "stop source agent", "stop destination agent", "cut link", "ctrl-c"]
HUNG_S = 20  # that a source QEMU has been `postcopy-active` with nobody at the other end


class PostcopyTorture(Torture):
    RATE = "100mbit"
    OUTCOMES = ["moved", "ran on", "recovered", "by hand", "died with QEMU", "QEMU's gap", "QEMU's bug"]

    def __init__(self, seed, kinds, **kw):
        super().__init__(seed, [k for k in kinds if k in KINDS], **kw)

    def options(self):
        return [self.rng.choice(["--postcopy", "--postcopy-preempt"])]

    def instant(self):
        if self.rng.random() < 0.25:
            return super().instant()
        return "switch", self.rng.choice([0, self.rng.random() * 0.05, self.rng.random()])

    # ---- what became of it ----

    def settle(self, kind, dest, status):
        f = self.f
        if "QEMU" in kind and not (f.qemu if "source" in kind else dest).process.alive():
            outcome = self.without(kind, dest)
        else:
            outcome = self.recover(kind, dest, status)
        self.check_never_two()
        if outcome in ("moved", "recovered"):
            f.arrived(1 - f.at, dest)
        elif outcome in ("ran on", "by hand"):
            dest.stop()
        return outcome

    @staticmethod
    def migration(qemu):
        try:
            return qemu.qmp.execute("query-migrate").get("status", "none")
        except (QmpError, OSError):
            return "gone"

    def without(self, kind, dest):
        """One of the two QEMUs is dead."""
        f, end = self.f, time.monotonic() + SETTLE_LIMIT_S
        if kind == "kill destination QEMU":
            while time.monotonic() < end:
                if self.running() == [f.qemu]:
                    return "ran on"
                if self.migration(f.qemu).startswith("postcopy") or f.qemu.status() == "postmigrate":
                    return "died with QEMU"
                time.sleep(0.05)
            raise Breach(f"the source's VM is {f.qemu.status()}: {self.records()}")
        # All of it may have come before the source QEMU died.
        while time.monotonic() < end and dest.process.alive():
            if self.migration(dest) == "completed":
                if self.running() == [dest]:
                    return "moved"
            elif self.migration(dest) == "postcopy-paused" or dest.status() == "inmigrate":
                break
            time.sleep(0.05)
        else:
            if dest.process.alive():
                raise Breach(f"a VM that has arrived does not run: {self.records()}")
        return "died with QEMU"

    def has_ran(self, qemu):
        watch = self.f.watches[qemu]
        return not watch.ended.wait(10) or bool(watch.ran())

    def recover(self, kind, dest, status):
        """Both QEMUs live: until one VM runs whose memory is all there."""
        f, end, outcome = self.f, time.monotonic() + SETTLE_LIMIT_S, "moved"
        hung = by_hand = None
        while time.monotonic() < end:
            self.check_never_two()
            now = self.migration(f.qemu)
            if self.running() == [f.qemu] and now != "active":
                return "by hand" if by_hand else "ran on"
            # Only if there is nobody who knows whether its user had paused it.
            if kind == "kill source agent" and now == "failed" and f.qemu.status() == "postmigrate":
                by_hand = f.vecycle().run("resolve", f.vm, "--run", "--force").returncode == 0
            if now == "completed" and self.running() == [dest] and \
                    self.migration(dest) == "completed":
                return outcome
            if now == "postcopy-paused" and not dest.process.alive() and \
                    not self.has_ran(dest) and f.qemu.version() < (10, 2):
                return "QEMU's gap"
            if now == "postcopy-paused":
                outcome = "recovered"
                last = f.vecycle().migrate(f.qemu, f.vecycles[1 - f.at].address, dest.name,
                                           ["--recover"], ok=False)
                status = f"{status}, recovery {last['status']}: {last['messages'].strip()}"
            hung = (hung or time.monotonic()) if now == "postcopy-active" else None
            if hung and time.monotonic() - hung > HUNG_S and f.qemu.version() < (8, 2):
                return "QEMU's bug"  # docs/internals/faults.md
            time.sleep(0.05)
        raise Breach(f"it is not settled: exit {status}, {self.records()}, source "
                     f"{self.migration(f.qemu)}, destination {self.migration(dest)}")
