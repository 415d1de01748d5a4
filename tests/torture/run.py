#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Faults at random instants of real migrations, see torture.py, postcopy.py and handover.py.

  run.py [--minutes N] [--seed N] [--faults KIND,...]      (TORTURE_MINUTES, TORTURE_SEED)

A fifth of the time goes to migrations that switch to postcopy, two fifths to faults in the handover.
Exit status 1 on any breach."""
import argparse
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from handover import KINDS as HANDOVER, HandoverTorture  # noqa: E402
from postcopy import PostcopyTorture  # noqa: E402
from torture import KINDS, Torture  # noqa: E402
from vctest import qemu as vq  # noqa: E402

PARTS = [("precopy", Torture, 0.4), ("postcopy", PostcopyTorture, 0.2),
         ("handover", HandoverTorture, 0.4)]


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--minutes", type=float, default=float(os.environ.get("TORTURE_MINUTES", 10)))
    p.add_argument("--seed", type=int, default=int(os.environ.get("TORTURE_SEED",
                                                                 time.time_ns() % 1_000_000)))
    p.add_argument("--faults", default=",".join(KINDS + HANDOVER), help="only these kinds")
    p.add_argument("--only", choices=[name for name, _, _ in PARTS])
    a = p.parse_args()
    ok, why = vq.available()
    if not ok:
        print(f"skipped: {why}")
        return 77
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # cleans up on the way
    print(f"seed {a.seed} (TORTURE_SEED={a.seed} repeats the choices, not the timing)", flush=True)
    done, good = [], True
    for name, kind, share in PARTS:
        if good and a.only in (None, name):
            print(f"\n-- {name} --", flush=True)
            done.append(kind(a.seed, [k.strip() for k in a.faults.split(",")]))
            good = done[-1].run(a.minutes * 60 * (1 if a.only else share))
    for t in done:
        t.print_table()
    lost = sum(row[o] for t in done for row in t.table.values() for o in ("QEMU's gap", "QEMU's bug"))
    print("BREACHED" if not good else "no wrong page, never two, no lost VM" if not lost else
          f"no wrong page, never two; VMs that QEMU itself lost: {lost} (docs/internals/faults.md)")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
