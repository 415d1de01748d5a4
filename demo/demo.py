#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Boots a real Linux VM in stock QEMU on "host A", migrates it to "host B" and back, and once more
after a quarter of its memory has changed; with plain QEMU and with vecycle, over the same link of
1 Gbit/s (network namespaces; needs root, without it a local socket). Prints what crossed the wire,
and writes it to build/demo/result.json."""
import argparse
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

LEGS = [("first-visit", 1), ("idle-return", 0), ("changed-return", 1)]


def say(text):
    print(text, flush=True)


def leg_plain(fleet, to):
    dest, info, total_ms, wire = fleet.plain(to)
    ram = info["ram"]
    pages = {"same": 0, "moved": 0, "zero": ram.get("duplicate", 0), "data": ram.get("normal", 0)}
    return dest, {"wire_bytes": wire, "total_ms": info["total-time"],
                  "downtime_ms": info["downtime"], "pages": pages}


def leg_vecycle(fleet, to):
    dest = fleet.incoming(to)
    a, b = fleet.hosts[fleet.at], fleet.hosts[to]
    before = (a.sent_bytes() or 0) + (b.sent_bytes() or 0)
    r = fleet.vecycle().migrate(fleet.qemu, fleet.vecycles[to].address, dest.name, ["--suspend"])
    wire = (a.sent_bytes() or 0) + (b.sent_bytes() or 0) - before
    pages = {k: r["pages"][k] for k in ("same", "moved", "zero", "data")}
    return dest, {"wire_bytes": wire or r["wire_bytes"], "total_ms": r["total_ms"],
                  "downtime_ms": r["downtime_ms"], "pages": pages}


def run_system(system, migrate, ram_mib, fill_mib, rate):
    from vctest.pair import Fleet
    runs = []
    fleet = Fleet(2, rate=rate)
    try:
        start = time.monotonic()
        fleet.boot_linux(ram_mib, fill_mib)
        say(f"{system}: a Linux VM with {fill_mib} MiB in use booted on host A in "
            f"{time.monotonic() - start:.1f} s")
        for leg, to in LEGS:
            if leg == "changed-return":
                fleet.guest.command("rewrite 25")
            dest, run = migrate(fleet, to)
            ours, nonzero = fleet.qemu.ram_facts()
            run = {"leg": leg, "system": system, "ram_bytes": fleet.qemu.ram_bytes,
                   "nonzero_bytes": nonzero, **run, "identical": ours == dest.ram_digest()}
            dest.qmp.execute("cont")
            fleet.arrived(to, dest)
            fleet.check_guest()
            runs.append(run)
            say(f"{system}: {leg}: {run['wire_bytes'] / 1e6:.1f} MB on the wire, "
                f"{run['total_ms'] / 1000:.2f} s")
    finally:
        fleet.close()
    return runs


def table(runs):
    by = {(r["leg"], r["system"]): r for r in runs}
    say("")
    say(f"{'':16}{'on the wire':>24}{'':9}{'total time':>20}{'downtime':>20}")
    say(f"{'':16}{'plain':>12}{'vecycle':>12}{'':9}{'plain':>10}{'vecycle':>10}"
        f"{'plain':>10}{'vecycle':>10}   memory")
    for leg, _ in LEGS:
        p, v = by[leg, "plain"], by[leg, "vecycle"]
        same = "identical" if p["identical"] and v["identical"] else "DIFFERS"
        say(f"{leg:16}{p['wire_bytes'] / 1e6:9.1f} MB{v['wire_bytes'] / 1e6:9.1f} MB"
            f"{100 * v['wire_bytes'] / p['wire_bytes']:7.2f} %"
            f"{p['total_ms'] / 1000:8.2f} s{v['total_ms'] / 1000:8.2f} s"
            f"{p['downtime_ms']:7d} ms{v['downtime_ms']:7d} ms   {same}")
    idle = by["idle-return", "vecycle"]
    say("")
    say(f"The VM that came back idle: {idle['wire_bytes'] / 1e3:.0f} kB crossed the wire, "
        f"{100 * idle['wire_bytes'] / idle['nonzero_bytes']:.3f} % of its "
        f"{idle['nonzero_bytes'] / 1e6:.0f} MB of memory in use.")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    p.add_argument("--build", default="build")
    p.add_argument("--ram", type=int, default=1024, help="RAM of the VM in MiB")
    p.add_argument("--fill", type=int, default=500, help="MiB of it in use")
    p.add_argument("--rate", default="1gbit")
    a = p.parse_args()
    os.environ["VC_BUILD_DIR"] = str((ROOT / a.build).resolve())
    from vctest.hosts import can_make_namespaces
    root, why = can_make_namespaces()
    rate = a.rate if root else None
    say(f"Two hosts, joined by a link of {rate}." if root
        else f"Two hosts, joined by a local socket without a limit: {why}.")
    runs = run_system("plain", leg_plain, a.ram, a.fill, rate)
    runs += run_system("vecycle", leg_vecycle, a.ram, a.fill, rate)
    out = Path(os.environ["VC_BUILD_DIR"]) / "demo"
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps({"link": rate or "local", "runs": runs}, indent=1))
    table(runs)
    say(f"The figures are in {out / 'result.json'}.")
    sys.exit(0 if all(r["identical"] for r in runs) else 1)


if __name__ == "__main__":
    main()
