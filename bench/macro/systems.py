# SPDX-License-Identifier: LGPL-2.1-or-later
"""What moves the VM: plain QEMU in three settings, and vecycle. All have the same downtime limit and
no limit of bandwidth; each starts the destination so that it runs as soon as it can."""
import json
import signal
import time

from vctest.proc import wait_for

DOWNTIME_LIMIT_MS = 300
PORT = 4444


class NotConverged(Exception):
    """It did not end in the given time, and was cancelled: the VM runs on at the source."""

    def __init__(self, facts):
        super().__init__("not converged")
        self.facts = facts


class Plain:
    """QEMU by itself. `migrate` returns facts of its own that go into the run."""
    name = "plain"
    agents = False
    capabilities = ("return-path", "events")

    def parameters(self, lab):
        return {}

    def prepare(self, lab, to):
        """The destination's QEMU, listening."""
        dest = lab.fleet.new_qemu(to, "defer")
        dest.set_capabilities(self.capabilities)
        if self.parameters(lab):
            dest.qmp.execute("migrate-set-parameters", **self.parameters(lab))
        self.uri = f"tcp:{lab.fleet.hosts[to].address}:{PORT}"
        dest.qmp.execute("migrate-incoming", uri=self.uri)
        return dest

    def start(self, lab, dest, to):
        lab.qemu.migrate_plain(self.uri, DOWNTIME_LIMIT_MS, self.capabilities,
                               **self.parameters(lab))

    def progress(self, lab):
        """The share of RAM that has been gone over, in the first pass."""
        ram = lab.qemu.qmp.execute("query-migrate").get("ram")
        return 1 - ram["remaining"] / ram["total"] if ram and ram["total"] else 0

    def ended(self, lab):
        return lab.qemu.qmp.execute("query-migrate")["status"] == "completed"

    def cancel(self, lab):
        lab.qemu.qmp.execute("migrate_cancel")
        wait_for(lambda: lab.qemu.qmp.execute("query-migrate")["status"] == "cancelled", 60,
                 "the migration to be cancelled")

    def finish(self, lab, dest, timeout):
        """Waits for the end: facts."""
        deadline = time.monotonic() + timeout
        while True:
            info = lab.qemu.qmp.execute("query-migrate")
            if info["status"] == "completed":
                break
            assert info["status"] not in ("failed", "cancelled"), info
            if time.monotonic() > deadline:
                self.cancel(lab)
                raise NotConverged(self._facts(info))
            time.sleep(0.01)
        dest.wait_status("running")
        return self._facts(info)

    @staticmethod
    def _facts(info):
        ram = info["ram"]
        return {"rounds": ram["dirty-sync-count"], "own_total_ms": info.get("total-time"),
                "own_downtime_ms": info.get("downtime"),
                "pages": {"same": 0, "moved": 0, "zero": ram["duplicate"], "data": ram["normal"],
                          "xbzrle": info.get("xbzrle-cache", {}).get("pages", 0)}}


class Xbzrle(Plain):
    """Deltas of pages that are sent again. Its cache may take half of the RAM."""
    name = "xbzrle"
    capabilities = ("return-path", "events", "xbzrle")

    def parameters(self, lab):
        return {"xbzrle_cache_size": lab.ram_mib << 19}


class MultifdZstd(Plain):
    """Two channels, each with a thread that compresses."""
    name = "multifd-zstd"
    capabilities = ("return-path", "events", "multifd")

    def parameters(self, lab):
        return {"multifd_channels": 2, "multifd_compression": "zstd"}


class Vecycle:
    name = "vecycle"
    agents = True
    cold = False     # the stores are dropped from the page cache before each measured migration
    read_bps = None  # a limit on what the agents read from disk

    def prepare(self, lab, to):
        return lab.fleet.incoming(to)

    def start(self, lab, dest, to):
        fleet = lab.fleet
        self.process, self.out = fleet.vecycle().start_migrate(
            lab.qemu, fleet.vecycles[to].address, dest.name,
            ["--downtime-limit", str(DOWNTIME_LIMIT_MS)])

    progress = Plain.progress

    def ended(self, lab):
        return not self.process.alive()

    def cancel(self, lab):
        self.process.popen.send_signal(signal.SIGINT)
        self.process.wait(60)
        wait_for(lambda: lab.qemu.status() == "running", 60, "the VM to run on at the source")

    def finish(self, lab, dest, timeout):
        try:
            status = self.process.wait(timeout)
        except Exception:
            self.cancel(lab)
            raise NotConverged(self._facts()) from None
        assert status == 0, f"vecycle: exit status {status}: {self.process.messages()}"
        assert dest.status() == "running"
        return self._facts()

    def _facts(self):
        text = self.out.read_text()
        r = json.loads(text) if text.strip() else {}
        keep = ("rounds", "base", "stream_bytes", "repaired_pages", "resent_batches", "confirmed",
                "passthrough", "reason")
        return {"own_total_ms": r.get("total_ms"), "own_downtime_ms": r.get("downtime_ms"),
                "own_wire_bytes": r.get("wire_bytes"), "pages": r.get("pages", {}),
                **{k: r[k] for k in keep if k in r}}


class VecycleCold(Vecycle):
    name = "vecycle-cold"
    cold = True


class VecycleSlow(Vecycle):
    name = "vecycle-slow"
    cold = True
    read_bps = 100_000_000


SYSTEMS = {s.name: s for s in (Plain, Xbzrle, MultifdZstd, Vecycle, VecycleCold, VecycleSlow)}
PEERS = ["plain", "xbzrle", "multifd-zstd"]
