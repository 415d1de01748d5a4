# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vecycle migrate` between two and three hosts, on real QEMU."""
import signal
import time

import pytest
from vctest.proc import wait_for


def test_an_idle_vm_comes_home_for_less_than_a_hundredth(fleet):
    f = fleet()
    f.boot_linux(256, 100)
    first = f.migrate(1)
    assert first["confirmed"] and first["pages"]["data"] > 25000
    nonzero = (first["pages"]["data"] + first["pages"]["same"]) * 4096
    back = f.migrate(0)
    assert back["base"] == 1, "nothing was announced: both hosts held the same"
    assert back["wire_bytes"] < nonzero / 100
    f.check_guest()


@pytest.mark.newer_qemu
def test_a_vm_wanders_there_and_back_four_times(fleet):
    f = fleet()
    f.boot_linux(192, 60)
    for to in 1, 0, 1, 0:
        r = f.migrate(to)
        assert r["confirmed"]
        f.guest.command("rewrite 10 spread")
    assert r["pages"]["same"] > 3 * r["pages"]["data"]
    f.check_guest()
    for v in f.vecycles:
        assert v.json("verify", f.vm)["bad_pages"] == 0


def test_contents_that_have_moved_in_memory_are_found(fleet):
    """A program is started anew and has the same data, in other pages."""
    f = fleet()
    f.boot_linux(256, 100)
    f.migrate(1)
    f.guest.command("fill 100 1")
    r = f.migrate(0)
    assert r["pages"]["moved"] > 5000 and r["pages"]["moved"] > 3 * r["pages"]["data"], r["pages"]
    assert r["wire_bytes"] < r["pages"]["moved"] * 4096 / 3
    assert r["repaired_pages"] == 0 and r["resent_batches"] == 0
    f.check_guest()
    f.migrate(1)
    for v in f.vecycles:
        assert v.json("verify", f.vm)["bad_pages"] == 0
    f.check_guest()


def test_a_vm_returns_after_a_third_host(fleet):
    f = fleet(3)
    f.boot_linux(192, 60)
    f.migrate(1)
    f.migrate(2)
    r = f.migrate(0)
    assert r["base"] == 2, "the destination announced what it had"
    # Pages pass before the announcement is there, so some are sent though they are held.
    assert r["pages"]["same"] > r["pages"]["data"]
    assert r["repaired_pages"] == 0 and r["resent_batches"] == 0
    f.check_guest()


def test_a_guest_that_dirties_memory_hard_stays_consistent(fleet, namespaces):
    f = fleet(rate="1gbit")
    f.boot_linux(256, 40)
    f.guest.command("dirty 64 40")
    for to in 1, 0:
        f.migrate(to)
        time.sleep(0.3)  # some more passes; nothing is asserted about how many
    f.guest.command("stop")
    f.check_guest()


def test_a_guest_that_counts_in_many_pages_stays_consistent(fleet, namespaces):
    """Its pages go in several rounds, as what has changed since the one before; how much that saves
    depends on how busy the machine is."""
    f = fleet(rate="200mbit")
    f.boot_linux(192, 20)
    f.guest.command("count 24 8")
    wait_for(lambda: int(f.guest.command("passes").split()[1]) > 1, 60, "every page to be there")
    for to in 1, 0:
        assert f.migrate(to)["confirmed"]
    f.guest.command("stop")
    f.check_guest()
    for v in f.vecycles:
        assert v.json("verify", f.vm)["bad_pages"] == 0


@pytest.mark.newer_qemu
def test_the_boot_sector_finds_its_memory_right_all_the_way(fleet):
    f = fleet()
    f.boot_selfcheck(delay=2000)
    # What the guest writes must not keep a busy machine from ever coming to an end.
    limit = ["--downtime-limit", "5000"]
    for to in 1, 0, 1:
        f.migrate(to, limit, compare=False)
        f.guest.wait_passes(3)
    r = f.migrate(0, limit)
    assert r["confirmed"]
    f.check_guest()


@pytest.mark.newer_qemu
def test_a_guest_that_writes_faster_than_can_be_sent_is_slowed_down_if_asked(fleet):
    """--auto-converge: QEMU throttles the guest, and its memory is right all the same."""
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=16)
    f.qemu.qmp.execute("migrate-set-parameters", throttle_trigger_threshold=1,
                       cpu_throttle_initial=90)
    dest = f.incoming(1)
    # It never comes to an end while all of its memory is written in less time than it takes to send.
    p, _ = f.vecycle().start_migrate(f.qemu, f.vecycles[1].address, dest.name, [
        "--auto-converge", "--max-bandwidth", "8M", "--downtime-limit", "1000"])
    wait_for(lambda: not p.alive() or
             f.qemu.qmp.execute("query-migrate").get("cpu-throttle-percentage", 0) >= 90, 60,
             "QEMU to slow the guest down")
    assert p.alive(), p.messages()
    f.guest.poll()
    f.qemu.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40)
    assert p.wait() == 0, p.messages()
    assert f.qemu.status() == "postmigrate" and dest.status() == "running"
    f.arrived(1, dest)
    f.check_guest()


def started(f, process):
    """The migration has taken in some of the stream."""
    def active():
        info = f.qemu.qmp.execute("query-migrate")
        return not process.alive() or info.get("ram", {}).get("transferred", 0) > 4 << 20
    wait_for(active, 30, "the migration to be under way")
    assert process.alive(), process.messages()


@pytest.mark.newer_qemu
def test_ctrl_c_leaves_the_vm_here_and_it_can_migrate_again(fleet, namespaces):
    f = fleet(rate="100mbit")
    f.boot_linux(256, 100)
    dest = f.incoming(1)
    p, _ = f.vecycle().start_migrate(f.qemu, f.vecycles[1].address, dest.name)
    started(f, p)
    p.popen.send_signal(signal.SIGINT)
    assert p.wait() == 60, p.messages()
    f.still_runs_here()
    f.network.set_rate("2gbit")
    assert f.migrate(1)["confirmed"]
    f.check_guest()


def test_the_destination_qemu_dies(fleet, namespaces):
    f = fleet(rate="100mbit")
    f.boot_linux(256, 100)
    dest = f.incoming(1)
    p, _ = f.vecycle().start_migrate(f.qemu, f.vecycles[1].address, dest.name)
    started(f, p)
    dest.process.kill()
    assert p.wait() == 31, p.messages()
    f.still_runs_here()
    f.network.set_rate("2gbit")
    assert f.migrate(1)["confirmed"]
    f.check_guest()


def test_the_destination_agent_dies(fleet, namespaces):
    f = fleet(rate="100mbit")
    f.boot_linux(256, 100)
    dest = f.incoming(1)
    p, _ = f.vecycle().start_migrate(f.qemu, f.vecycles[1].address, dest.name)
    started(f, p)
    f.vecycles[1].agent.kill()
    assert p.wait() == 23, p.messages()
    f.still_runs_here()
    f.vecycles[1].start_agent([f.vecycles[1].address])
    f.network.set_rate("2gbit")
    assert f.migrate(1)["confirmed"]
    f.check_guest()


def test_the_source_agent_dies(fleet, namespaces):
    f = fleet(rate="100mbit")
    f.boot_linux(256, 100)
    dest = f.incoming(1)
    p, _ = f.vecycle().start_migrate(f.qemu, f.vecycles[1].address, dest.name)
    started(f, p)
    f.vecycles[0].agent.kill()
    assert p.wait() == 1, p.messages()
    f.still_runs_here()
    f.vecycles[0].start_agent([f.vecycles[0].address])
    f.network.set_rate("2gbit")
    assert f.migrate(1)["confirmed"]
    f.check_guest()


def test_a_silent_network_counts_as_a_dead_peer(fleet, namespaces):
    f = fleet(rate="100mbit")
    f.boot_linux(192, 60)
    dest = f.incoming(1)
    p, _ = f.vecycle().start_migrate(f.qemu, f.vecycles[1].address, dest.name)
    started(f, p)
    f.hosts[1].run(["ip", "link", "set", "eth0", "down"])
    assert p.wait() == 23, p.messages()
    f.still_runs_here()


def test_a_migration_whose_standard_descriptors_are_closed(fleet):
    """As a daemon may start it: none of its sockets takes their place."""
    f = fleet(namespaces=False)
    f.boot_linux(96, 8)
    dest = f.incoming(1)
    f.vecycle().control = "none"
    argv = f.vecycle().migrate_argv(f.qemu, f.vecycles[1].address, dest.name)
    r = f.hosts[0].run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *argv])
    assert r.returncode == 0 and not r.stdout and not r.stderr
    f.arrived(1, dest)
    f.check_guest()


def test_a_stream_not_understood_passes_as_it_is(fleet):
    f = fleet()
    f.boot_linux(192, 40)
    # Without a shared backend x-ignore-shared changes nothing but the layout of the block list.
    capability = [{"capability": "x-ignore-shared", "state": True}]
    dest = f.incoming(1)
    for q in f.qemu, dest:
        q.qmp.execute("migrate-set-capabilities", capabilities=capability)
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, dest.name, ["--suspend"])
    assert r["passthrough"] and "x-ignore-shared" in r["reason"], r
    assert r["pages"]["same"] == r["pages"]["data"] == 0
    assert f.qemu.ram_digest() == dest.ram_digest()
    dest.qmp.execute("cont")
    f.arrived(1, dest)
    f.check_guest()


def test_xbzrle_records_pass_as_they_are(fleet, namespaces):
    f = fleet(rate="1gbit")
    f.boot_linux(192, 40)
    f.guest.command("dirty 20 30")
    dest = f.incoming(1)
    dest.qmp.execute("migrate-set-capabilities",
                     capabilities=[{"capability": "xbzrle", "state": True}])
    proxy_path = f.hosts[0].path("out.sock")
    # Somebody else drives QEMU here: `migrate` turns xbzrle off.
    dest.stop()
    dest = f.new_qemu(1, f"unix:{f.hosts[1].path('in.sock')}", ["-S"])
    p, out = f.vecycle().start_proxy(proxy_path, f.vm, f.vecycles[1].address, "in")
    f.qemu.migrate_plain(f"unix:{proxy_path}", capabilities=("return-path", "xbzrle"))
    f.qemu.wait_migrated()
    assert p.wait() == 0, p.messages()
    assert f.qemu.ram_digest() == dest.ram_digest()
    dest.qmp.execute("cont")
    f.arrived(1, dest)
    f.guest.command("stop")
    f.check_guest()
