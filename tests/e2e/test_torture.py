# SPDX-License-Identifier: LGPL-2.1-or-later
"""A short run of tests/torture. VC_TEST_SEED chooses other faults."""
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "torture"))

from torture import KINDS, Torture  # noqa: E402

SECONDS = 35  # no round begins later


def test_faults_at_random_instants_cost_time_and_no_vm():
    seed = int(os.environ.get("VC_TEST_SEED", "1"))
    print(f"seed {seed}")
    t = Torture(seed, KINDS)
    good = t.run(SECONDS)
    t.print_table()
    assert good, f"a promise was broken; seed {seed}"
    assert t.n > 0
