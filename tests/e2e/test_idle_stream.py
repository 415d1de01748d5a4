# SPDX-License-Identifier: LGPL-2.1-or-later
"""A stream that pauses at any byte: all of it has reached the destination's QEMU, and no batch waits
to be filled."""
import random
import struct

import pytest
from vctest.proc import wait_for
from vctest.relay import Relay, Valve

POSTCOPY = ("return-path", "events", "postcopy-ram")
REQUESTS = 3, 4  # MIG_RP_MSG_REQ_PAGES_ID, MIG_RP_MSG_REQ_PAGES
# Much less than the stream bytes of one batch (docs/formats/wire.md, BATCH).
FEW = 1 << 20
FIRST = 4 << 20


def requests(messages):
    """How often the destination's QEMU asked for a page, on its return path."""
    n, messages = 0, bytes(messages)
    while len(messages) >= 4:
        kind, length = struct.unpack_from(">HH", messages)
        n += kind in REQUESTS
        messages = messages[4 + length:]
    return n


@pytest.fixture
def valves(fleet):
    """A proxied migration that can be held where QEMU writes, and watched where QEMU reads."""
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=24)
    f.dest = f.new_qemu(1, "defer", ["-S"])
    inner, outer = f.hosts[1].path("inner.sock"), f.hosts[0].path("valve.sock")
    f.dest.set_capabilities(POSTCOPY)
    f.dest.qmp.execute("migrate-incoming", uri=f"unix:{inner}")
    f.sink = Relay(f.hosts[1].path("vm.sock"), inner)
    listen = f.hosts[0].path("out.sock")
    f.proxy, _ = f.vecycle().start_proxy(listen, f.vm, f.vecycles[1].address, "vm")
    f.valve = Valve(outer, listen)
    f.valve.shut()
    f.valve.let(FIRST)  # in the first pass QEMU can always be asked, whatever it waits for
    f.qemu.qmp.execute("migrate-set-parameters", max_postcopy_bandwidth=32 << 10)
    f.qemu.migrate_plain(f"unix:{outer}", downtime_limit=1, capabilities=POSTCOPY)
    yield f
    f.valve.close()
    f.sink.close()


def all_is_through(f):
    wait_for(lambda: len(f.sink.forward) == f.valve.passed, 30,
             "what the source QEMU has sent to reach the destination's")


def passes(f, n):
    """So many bytes of the stream, and then nothing."""
    end = f.valve.passed + n
    f.valve.let(n)
    wait_for(lambda: f.valve.passed == end, 30, "the source QEMU to send")
    all_is_through(f)


@pytest.mark.newer_qemu
def test_a_page_that_is_asked_for_waits_for_no_other(valves):
    """In a postcopy the guest needs one page after the other, and asks for the next one only when it
    has got the last."""
    f, rng = valves, random.Random(5)
    wait_for(lambda: f.valve.passed == FIRST, 60, "the migration to be under way")
    all_is_through(f)
    for n in 1, 3, 4096, 4097, 100000:
        passes(f, n)
    f.qemu.qmp.execute("migrate-start-postcopy")
    f.valve.open()
    wait_for(lambda: f.qemu.qmp.execute("query-migrate")["status"] == "postcopy-active", 60,
             "the switch to postcopy")
    f.dest.qmp.execute("cont")
    wait_for(lambda: requests(f.sink.backward), 30, "a page to be asked for")
    f.valve.shut()
    all_is_through(f)
    start, asked = f.valve.passed, requests(f.sink.backward)
    while requests(f.sink.backward) < asked + 10:
        passes(f, rng.randrange(1, 8000))
        assert f.valve.passed < start + FEW, "the pages that are asked for do not come"
    f.valve.open()
    f.qemu.qmp.execute("migrate-set-parameters", max_postcopy_bandwidth=0)
    f.qemu.wait_migrated()
    assert f.proxy.wait() == 0, f.proxy.messages()
    f.arrived(1, f.dest)
    f.check_guest()
