# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vecycle proxy`: the same path without QMP."""
import json

import pytest
from vctest.gate import BATCH, Gate
from vctest.proc import wait_for
from vctest.relay import Relay


def proxied(f, to, tee=False, wait=True):
    """Migrates through a proxy, QEMU being driven by this test."""
    src, dst = f.hosts[f.at], f.hosts[to]
    dest_socket = dst.path("inner.sock" if tee else "vm.sock")
    dest = f.new_qemu(to, f"unix:{dest_socket}", ["-S"])
    listen = src.path("out.sock")
    p, out = f.vecycle().start_proxy(listen, f.vm, f.vecycles[to].address, "vm")
    relays = []
    uri = listen
    if tee:
        relays.append(Relay(dst.path("vm.sock"), dest_socket))
        uri = src.path("tee.sock")
        relays.insert(0, Relay(uri, listen))
    f.qemu.migrate_plain(f"unix:{uri}")
    f.qemu.let_converge()
    f.qemu.wait_migrated()
    assert p.wait() == 0, p.messages()
    for r in relays:
        r.close()
    assert f.qemu.ram_digest() == dest.ram_digest(), "the memories differ"
    dest.qmp.execute("cont")
    f.arrived(to, dest)
    return json.loads(out.read_text()), relays


@pytest.mark.newer_qemu
def test_the_destination_gets_the_very_bytes_that_the_source_wrote(fleet):
    f = fleet()
    f.boot_linux(192, 50)
    for to in 1, 0:
        r, (source, dest) = proxied(f, to, tee=True)
        assert len(source.forward) == r["stream_bytes"] > 50 << 20
        assert source.forward == dest.forward, "the migration stream was changed"
        assert source.backward == dest.backward, "the return path was changed"
    assert r["pages"]["same"] > 12000
    f.check_guest()


def test_a_proxied_vm_comes_home_cheaply(fleet):
    f = fleet()
    f.boot_linux(192, 50)
    proxied(f, 1)
    r, _ = proxied(f, 0)
    assert r["base"] == 1 and r["confirmed"]
    assert r["wire_bytes"] < r["stream_bytes"] / 100
    assert r["downtime_ms"] is None and r["rounds"] is None, "only whoever drives QEMU knows"
    f.check_guest()


def test_a_boot_sector_dirtying_memory_is_carried_right(fleet):
    f = fleet()
    f.boot_selfcheck(end_mib=24, delay=4000)
    for to in 1, 0, 1:
        proxied(f, to, tee=True)
        f.guest.wait_passes(2)


def test_a_cancel_is_not_blamed_on_the_destination_qemu_that_libvirt_ends_then(fleet):
    f = fleet(namespaces=False)
    f.boot_linux(192, 60)
    dest = f.new_qemu(1, f"unix:{f.hosts[1].path('vm.sock')}", ["-S"])
    gate = Gate(f.hosts[1].path("gate"), f.vecycles[1].address)
    gate.hold(BATCH, True)
    listen = f.hosts[0].path("out.sock")
    p, _ = f.vecycle().start_proxy(listen, f.vm, gate.address, "vm")
    f.qemu.migrate_plain(f"unix:{listen}")
    assert gate.is_held.wait(60)
    f.qemu.qmp.execute("migrate_cancel")
    wait_for(lambda: f.qemu.qmp.execute("query-migrate")["status"] == "cancelled", 60, "QEMU to give up")
    gate.release()
    dest.process.kill()
    assert p.wait() == 52 and "gave the migration up" in p.messages(), p.messages()
    assert "destination" not in p.messages()
    f.still_runs_here()
    gate.close()


def test_a_migration_cancelled_in_qemu_leaves_the_vm_here(fleet, namespaces):
    f = fleet(rate="100mbit")
    f.boot_linux(192, 60)
    f.new_qemu(1, f"unix:{f.hosts[1].path('vm.sock')}", ["-S"])
    listen = f.hosts[0].path("out.sock")
    p, _ = f.vecycle().start_proxy(listen, f.vm, f.vecycles[1].address, "vm")
    f.qemu.migrate_plain(f"unix:{listen}")
    wait_for(lambda: f.qemu.qmp.execute("query-migrate").get("ram", {}).get("transferred", 0)
             > 4 << 20, 30, "the migration to be under way")
    f.qemu.qmp.execute("migrate_cancel")
    assert p.wait() != 0
    f.still_runs_here()
    f.network.set_rate("2gbit")
    r, _ = proxied(f, 1)
    assert r["confirmed"]
    f.check_guest()
