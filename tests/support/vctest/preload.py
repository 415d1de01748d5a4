# SPDX-License-Identifier: LGPL-2.1-or-later
"""Agents with a file of tests/support/preload in front of the C library: what they write fails, hangs or
kills them."""
import os
import subprocess
from pathlib import Path

import pytest

PRELOAD = Path(__file__).resolve().parents[1] / "preload"


def compile_shim(tmp_path, shim):
    """That file of tests/support/preload, to be put in front of the C library."""
    if "VC_TEST_VECYCLE" in os.environ:
        pytest.skip("a sanitizer has to be loaded first")
    lib = tmp_path / f"{shim}.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", lib, PRELOAD / f"{shim}.c", "-ldl"], check=True)
    return lib


def restart_with(vecycle, tmp_path, shim, **env):
    """Its agent, with that file of tests/support/preload in front of the C library."""
    env = {"LD_PRELOAD": str(compile_shim(tmp_path, shim)), **env}
    vecycle.agent.stop()
    os.environ.update(env)
    try:
        vecycle.start_agent([vecycle.address])
    finally:
        for name in env:
            del os.environ[name]


def restart_hanging(vecycle, tmp_path, what, after="0"):
    """Its agent, whose disk hangs in that from when the first file exists until the second, a FIFO, is
    opened for writing."""
    trigger, fifo = tmp_path / "trigger", tmp_path / "disk"
    os.mkfifo(fifo)
    restart_with(vecycle, tmp_path, "hang_at_handover", VC_HANG_TRIGGER=str(trigger),
                 VC_HANG_FIFO=str(fifo), VC_HANG_IN=what, VC_HANG_AFTER=after)
    return trigger, fifo


def restart_mortal(vecycle, tmp_path, nth):
    """Its agent will be killed in the place of its n-th write to a record, once the file exists."""
    trigger = tmp_path / "trigger"
    restart_with(vecycle, tmp_path, "die_at_handover", VC_DIE_TRIGGER=str(trigger),
                 VC_DIE_WRITE=str(nth))
    return trigger


def restart_refusing(vecycle, tmp_path):
    """Its agent, whose writes to a record fail as long as that file exists."""
    trigger = tmp_path / "trigger"
    restart_with(vecycle, tmp_path, "refuse_handover", VC_REFUSE_TRIGGER=str(trigger))
    return trigger
