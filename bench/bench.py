#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The benchmark: a Linux VM on stock QEMU is migrated between hosts (network namespaces; needs root)
by plain QEMU, by QEMU with xbzrle, by QEMU with multifd and zstd, and by vecycle; scenarios, systems
and links are in bench/macro. Writes results.json, report.md and charts to BUILD/bench."""
import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "bench")]
sys.dont_write_bytecode = True
MICRO = [
    ("digest",), ("zero",), ("qstream",), ("lookup",), ("store",), ("wire",),
    ("pipeline",), ("pipeline", "--return=0"),
    ("pipeline", "--source-only=1", "--pin=1", "--zero=0", "--changed=0", "--passes=4"),
]
MICRO_FULL = [
    ("pipeline", "--gib=16", "--zero=50", "--bounded=1"),
    ("pipeline", "--gib=64", "--zero=95", "--bounded=1"),
    ("pipeline", "--return=0", "--gib=8"),
    ("pipeline", "--gib=1", "--passes=64", "--record=0", "--bounded=1"),
]


def say(text):
    print(text, flush=True)


class Bench:
    def __init__(self, plan, out, deadline):
        from macro import measure
        self.plan, self.out, self.deadline = plan, out, deadline
        self.results = {"machine": measure.machine(), "runs": [], "offline": [], "micro": [],
                        "failures": [], "skipped": []}

    def save(self):
        tmp = self.out / "results.json.tmp"
        tmp.write_text(json.dumps(self.results, indent=1))
        tmp.replace(self.out / "results.json")

    def late(self):
        return time.monotonic() > self.deadline

    # ---- micro ----

    def micro(self, build):
        for name, *extra in MICRO + (MICRO_FULL if self.plan.micro_full else []):
            if self.plan.micro and name not in self.plan.micro:
                continue
            r = subprocess.run([build / "bench" / "micro" / f"bench-{name}", "--json",
                                f"--seconds={self.plan.micro_seconds}", *extra],
                               capture_output=True, text=True, timeout=3600)
            if r.returncode:
                self.results["failures"].append(f"bench-{name} {' '.join(extra)}: {r.stderr.strip()}")
                continue
            self.results["micro"].append(json.loads(r.stdout))
            say(f"micro: {r.stdout.strip()}")
        self.save()

    # ---- macro ----

    def job(self, job):
        from macro.scenarios import SCENARIOS
        for link in job.links:
            for system in job.systems:
                by_needs = {}
                for s in job.scenarios:
                    by_needs.setdefault(SCENARIOS[s].needs(), []).append(s)
                for names in by_needs.values():
                    self.lab(job, link, system, names)

    def lab(self, job, link, system, names):
        """Scenarios that share a VM; after a failure the rest gets a new one."""
        from macro.lab import Lab
        from macro.links import LINKS
        from macro.scenarios import SCENARIOS
        from macro.systems import SYSTEMS
        n_hosts, programs = SCENARIOS[names[0]].needs()
        names = list(names)
        while names and not self.late():
            lab = None
            try:
                fill = max(32, job.fill_mib - 200) if programs else job.fill_mib
                lab = Lab(SYSTEMS[system], LINKS[link], job.ram_mib, fill, n_hosts, programs)
                while names and not self.late():
                    self.scenario(lab, names.pop(0), job.repeats)
            except Exception as e:
                trace = traceback.format_exc()
                self.results["failures"].append(f"{link}, {system}: {type(e).__name__}: {e}")
                say(f"FAILED: {link}, {system}\n{trace}")
            finally:
                if lab:
                    lab.close()
                self.save()
        self.results["skipped"] += [f"{s}, {system}, {link}" for s in names]

    def scenario(self, lab, name, repeats):
        from macro.scenarios import SCENARIOS
        offline = (name in self.plan.offline and lab.system.name == "vecycle" and
                   not any(o["scenario"] == name for o in self.results["offline"]))
        lab.images = lab.dir / name if offline else None  # (the directory goes with the lab)
        done = 0

        def more():
            return done < repeats and not self.late()
        for run in SCENARIOS[name].run(lab, more):
            done += 1
            self.results["runs"].append(run)
            self.save()
            self.show(run)
        lab.check()
        if lab.images and done and not self.late():
            self.offline(name, lab.images, run["wire_bytes"])

    def offline(self, name, images, wire_bytes):
        """On the images of the last run: no other one has sent the same changes."""
        from macro import offline
        if not (images / "before.ram").exists():
            return
        for o in offline.compare(name, images, offline.FULL if self.plan.offline_all else
                                 offline.QUICK):
            o["vecycle_bytes"] = wire_bytes
            self.results["offline"].append(o)
            say(f"  {o['tool']}: {o['bytes'] / 1e6:.2f} MB in {o['seconds']:.1f} s")
        self.save()

    @staticmethod
    def show(run):
        head = f"{run['link']:10} {run['system']:12} {run['scenario']:12}"
        if not run["converged"]:
            say(f"{head} did not converge")
            return
        say(f"{head} {run['wire_bytes'] / 1e6:9.2f} MB {run['total_ms'] / 1000:7.2f} s, pause "
            f"{run['downtime_ms']:6.0f} ms, CPU {run['cpu_ms']['source']:.0f} + "
            f"{run['cpu_ms']['dest']:.0f} ms")


def chosen(plan, a):
    """The plan with what the command line says."""
    jobs = []
    for job in plan.jobs:
        job = dataclasses.replace(
            job, links=a.link or job.links, systems=a.system or job.systems,
            scenarios=a.scenario or job.scenarios, repeats=a.repeats or job.repeats,
            ram_mib=a.ram or job.ram_mib, fill_mib=a.fill or job.fill_mib)
        if job not in jobs:
            jobs.append(job)
    if a.link or a.system or a.scenario:
        jobs = jobs[:1]
    return dataclasses.replace(plan, jobs=jobs)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--build", default="build")
    p.add_argument("--plan", default="bench", choices=["quick", "bench", "downtime", "full"])
    p.add_argument("--minutes", type=float, help="nothing new is begun after so long")
    for name in "link", "system", "scenario":
        p.add_argument(f"--{name}", action="append", help="this one only (may be repeated)")
    p.add_argument("--repeats", type=int)
    p.add_argument("--ram", type=int, help="MiB of RAM")
    p.add_argument("--fill", type=int, help="MiB of it filled")
    p.add_argument("--no-micro", action="store_true")
    p.add_argument("--report", action="store_true", help="write the report of results.json again")
    a = p.parse_args()
    build = (ROOT / a.build).resolve()
    os.environ["VC_BUILD_DIR"] = str(build)
    from macro import plans, report
    from vctest.hosts import can_make_namespaces
    out = build / "bench"
    out.mkdir(parents=True, exist_ok=True)
    if a.report:
        report.write(json.loads((out / "results.json").read_text()), out)
        return
    ok, why = can_make_namespaces()
    if not ok:
        sys.exit(f"bench.py: {why}: run this as root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is cleaned up
    plan = chosen(plans.PLANS[a.plan], a)
    start = time.monotonic()
    # The last migration may take its time after the deadline: half a minute, as a rule.
    bench = Bench(plan, out, start + (a.minutes or plan.minutes) * 60 - 30)
    if not a.no_micro:
        bench.micro(build)
    for job in plan.jobs:
        bench.job(job)
    bench.results["seconds"] = time.monotonic() - start
    bench.save()
    report.write(bench.results, out)
    say(f"{len(bench.results['runs'])} migrations in {bench.results['seconds']:.0f} s; see "
        f"{out / 'report.md'}")
    sys.exit(1 if bench.results["failures"] else 0)


if __name__ == "__main__":
    main()
