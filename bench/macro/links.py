# SPDX-License-Identifier: LGPL-2.1-or-later
"""The links between the hosts. The rate is tc's token bucket on each host's side, each direction; the
delay is a program in the switch's namespace (bench/tools/delay.c)."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    name: str
    title: str
    rate: str | None = None
    delay_ms: float = 0  # each way
    bytes_per_s: float | None = None


LINKS = {link.name: link for link in (
    Link("unshaped", "an unshaped link"),
    Link("1gbit", "1 Gbit/s", "1gbit", bytes_per_s=125e6),
    Link("100mbit", "100 Mbit/s", "100mbit", bytes_per_s=12.5e6),
    Link("1gbit-20ms", "1 Gbit/s with 20 ms", "1gbit", 10, bytes_per_s=125e6),  # there and back
)}
