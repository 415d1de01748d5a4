# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which scenarios, systems and links belong to `make bench-quick`, `make bench` and `make bench-full`,
the important ones first: what does not fit into the time is left out, and said."""
from dataclasses import dataclass

from .scenarios import PERCENTS

CHANGED = [f"changed-{p}" for p in PERCENTS]
RETURNS = ["idle-return", *CHANGED]
WORK = ["work-redis", "work-sort", "work-xz", "work-restart"]
PEER_SCENARIOS = ["first-visit", "idle-return", "changed-25", "writing", "work-redis"]
BOTH = ["plain", "vecycle"]
PEERS = ["xbzrle", "multifd-zstd"]


@dataclass(frozen=True)
class Job:
    links: list
    systems: list
    scenarios: list
    repeats: int = 3
    ram_mib: int = 1024
    fill_mib: int = 700


def small(*a, **kw):
    """For slow links: 256 MB in use."""
    return Job(*a, ram_mib=512, fill_mib=200, **kw)


def quick(**kw):
    return Job(["1gbit", "unshaped"], BOTH, ["first-visit", "idle-return"], fill_mib=500, **kw)


@dataclass(frozen=True)
class Plan:
    jobs: list
    minutes: float
    offline: tuple = ()  # scenarios whose images the offline tools are given
    offline_all: bool = False
    micro_seconds: float = 1
    micro: tuple = ()  # these alone; empty: all
    micro_full: bool = False


PLANS = {
    # Everything once, then again: on a busy machine there is at least one of each.
    "quick": Plan([quick(repeats=1), quick(repeats=2)], 5, micro_seconds=0.3,
                  micro=("digest", "zero", "qstream")),
    "bench": Plan([
        Job(["1gbit"], BOTH, ["first-visit", *RETURNS, "writing"]),
        Job(["unshaped"], BOTH, ["first-visit", "idle-return", "changed-25", "writing"]),
        small(["100mbit"], BOTH, ["first-visit", "idle-return", "changed-25"], repeats=1),
        Job(["1gbit"], PEERS, PEER_SCENARIOS, repeats=2),
        Job(["1gbit"], BOTH, [*WORK, "third-host", "resume"], repeats=2),
        Job(["1gbit", "unshaped"], ["vecycle-cold", "vecycle-slow"], ["idle-return", "changed-25"],
            repeats=2),
        Job(["1gbit-20ms"], BOTH, ["first-visit", "idle-return", "changed-25"], repeats=2),
        small(["100mbit"], [*BOTH, "xbzrle"], ["writing"], repeats=1),
    ], 45, offline=("idle-return", "changed-25", "work-redis")),
    "downtime": Plan([small(["100mbit"], BOTH, ["tail-changed"], repeats=10)], 20),
    "full": Plan([
        Job(["1gbit", "unshaped"], BOTH + PEERS,
            ["first-visit", *RETURNS, "writing", "resume", *WORK, "third-host"], repeats=5),
        small(["100mbit"], BOTH, ["tail-changed"], repeats=10),
        small(["100mbit"], BOTH + PEERS,
              ["first-visit", *RETURNS, "writing", "resume", *WORK, "third-host"], repeats=3),
        Job(["1gbit-20ms"], BOTH + PEERS,
            ["first-visit", *RETURNS, "writing", "resume", *WORK, "third-host"], repeats=3),
        Job(["1gbit", "unshaped"], ["vecycle-cold", "vecycle-slow"],
            [*RETURNS, *WORK, "third-host"], repeats=3),
    ], 720, offline=(*RETURNS, *WORK), offline_all=True, micro_seconds=3, micro_full=True),
}
