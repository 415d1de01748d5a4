# SPDX-License-Identifier: LGPL-2.1-or-later
"""An agent that is killed at the n-th step of writing a handover record (tests/torture/at_record.c)."""
import mmap
import struct

from .guest import BUILD
from .proc import wait_for

LIBRARY = BUILD / "tests" / "torture" / "at_record.so"


class AtRecord:
    """Of the agents of one host; begin with `words` before the agent's (Vecycle's `wrapper`)."""

    def __init__(self, path):
        self.path = str(path)
        with open(self.path, "w+b") as f:
            f.truncate(8)
            self.steps = mmap.mmap(f.fileno(), 8)
        self.words = ("env", f"LD_PRELOAD={LIBRARY}", f"VC_AT_RECORD={self.path}")

    def arm(self, n):
        """To stand still at the n-th step from now on; 0: no longer."""
        self.steps[0:8] = struct.pack("=ii", n, 0)

    def stands(self):
        return struct.unpack("=ii", self.steps[0:8])[1] == 1

    def kill(self, agent, otherwise=lambda: False):
        """When it stands there; False if otherwise() comes first."""
        wait_for(lambda: self.stands() or otherwise(), 120, "a record to be written", step=0.005)
        there = self.stands()
        if there:
            agent.kill()
        self.arm(0)
        return there
