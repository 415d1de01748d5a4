# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is told is true: rates, causes, what is kept."""
import pytest

LOOKS_LIKE_DAMAGE = ("seal", "damage", "corrupt", "trusted", "differs")


def says_nothing_of_damage(f, result):
    told = result["messages"] + "".join(v.log.read_text() for v in f.vecycles)
    for word in LOOKS_LIKE_DAMAGE:
        assert word not in told, told


def busy_guest(f, away_first=False):
    """It writes all the time, so that pages are sent again and again."""
    f.boot_selfcheck(64, 40, 100)
    if away_first:
        f.migrate(1)


@pytest.mark.parametrize("how", ["policy", "limit", "no-room"])
def test_a_destination_that_keeps_nothing_is_no_damage(fleet, how):
    f = fleet(namespaces=False)
    away = f.vecycles[1]
    extra = {"policy": [], "limit": ["--store-limit", "1M"], "no-room": ["--reserve", "1000T"]}[how]
    away.agent.stop()
    away.start_agent([away.address], extra)
    busy_guest(f)
    if how == "policy":
        assert away.run("policy", f.vm, "never").returncode == 0
    r = f.migrate(1, ["--max-bandwidth", "40M"], compare=False)
    assert not r["confirmed"]
    if how == "policy":
        assert r["messages"] == "", "nothing is wrong"
        assert r["resent_batches"] == 0
    says_nothing_of_damage(f, r)
    f.check_guest()
