# SPDX-License-Identifier: LGPL-2.1-or-later
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from vctest import qemu as vq  # noqa: E402
from vctest.hosts import Hosts, can_make_namespaces  # noqa: E402
from vctest.pair import Fleet  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "newer_qemu: is run once more with newer QEMUs")
    config.addinivalue_line("markers", "newer_is_long: with these, by `make check-long`")
    config.addinivalue_line("markers", "long: is left to `make check-long`")
    config.addinivalue_line("markers", "alone: while no other end-to-end test runs")


@pytest.fixture(autouse=True)
def needs_qemu():
    ok, why = vq.available()
    if not ok:
        pytest.skip(why)


@pytest.fixture
def hosts():
    """Two hosts; namespaces as root, else directories."""
    with Hosts(2) as h:
        yield h


@pytest.fixture
def fleet():
    """Makes a Fleet of n hosts with an agent each; ends with the test."""
    open_fleets = []

    def make(n=2, **kw):
        f = Fleet(n, **kw)
        open_fleets.append(f)
        return f

    yield make
    for f in open_fleets:
        f.close()


@pytest.fixture
def namespaces():
    ok, why = can_make_namespaces()
    if not ok:
        pytest.skip(why)
