# SPDX-License-Identifier: LGPL-2.1-or-later
"""Postcopy: the VM runs at the destination while its memory is still coming."""
import json
import re
import signal

import pytest

from vctest.gate import BATCH, RETURN, WORD, WORD_DONE, Gate, LateQmp, QmpGate, RefusingQmp
from vctest.proc import wait_for

pytestmark = pytest.mark.newer_is_long

POSTCOPY = ("return-path", "events", "postcopy-ram")
PREEMPT = (*POSTCOPY, "postcopy-preempt")


def boot_linux(f):
    f.boot_linux(256, 100)
    if f.qemu.version() > (10, 0):
        pytest.skip("QEMU 11.1 crashes a Linux guest under TCG in a postcopy, without vecycle too")


def transferred(qemu, n):
    """Waits until so many bytes of the stream have gone over."""
    def so_many():
        info = qemu.qmp.execute("query-migrate")
        assert info.get("status", "setup") in ("setup", "active"), info
        return info.get("ram", {}).get("transferred", 0) > n
    wait_for(so_many, 60, "the migration to be under way")


def switch_to_postcopy(qemu):
    """As soon as some of the memory has gone over."""
    transferred(qemu, 8 << 20)
    qemu.qmp.execute("migrate-start-postcopy")


def proxied(f, to, capabilities=POSTCOPY, switch=True):
    """A postcopy migration through a proxy, both QEMUs being driven by this test."""
    dst = f.hosts[to]
    dest = f.new_qemu(to, "defer", ["-S"])
    dest.set_capabilities(capabilities)
    dest.qmp.execute("migrate-incoming", uri=f"unix:{dst.path('vm.sock')}")
    listen = f.hosts[f.at].path("out.sock")
    p, out = f.vecycle().start_proxy(listen, f.vm, f.vecycles[to].address, "vm")
    f.qemu.migrate_plain(f"unix:{listen}", capabilities=capabilities)
    if switch:
        switch_to_postcopy(f.qemu)
        wait_for(lambda: f.qemu.qmp.execute("query-migrate")["status"] in
                 ("postcopy-active", "completed"), 30, "the switch to postcopy")
        dest.qmp.execute("cont")
    f.qemu.wait_migrated()
    assert p.wait() == 0, p.messages()
    if not switch:
        assert f.qemu.ram_digest() == dest.ram_digest(), "the memories differ"
        dest.qmp.execute("cont")
    dest.wait_status("running")
    f.arrived(to, dest)
    return json.loads(out.read_text())


@pytest.mark.parametrize("capabilities", [POSTCOPY, PREEMPT], ids=["plain", "preempt"])
def test_postcopy_through_a_proxy_there_and_back(fleet, capabilities):
    f = fleet()
    boot_linux(f)
    f.guest.command("dirty 32 20")
    for to in 1, 0:
        r = proxied(f, to, capabilities)
        assert r["confirmed"] and not r["passthrough"], r
    assert r["base"] == 1 and r["pages"]["same"] > 12000
    f.guest.command("stop")
    f.check_guest()
    # What both hold now is a whole checkpoint: the next return needs nothing else.
    f.migrate(1)
    r = f.migrate(0)
    assert r["wire_bytes"] < r["stream_bytes"] / 50


def test_a_preempt_connection_may_never_be_needed(fleet):
    f = fleet()
    f.boot_linux(192, 50)
    for to in 1, 0:
        r = proxied(f, to, PREEMPT, switch=False)
        assert r["confirmed"] and not r["passthrough"], r
    f.check_guest()


OPTIONS = pytest.mark.parametrize("option", ["--postcopy", "--postcopy-preempt"],
                                  ids=["plain", "preempt"])


def driven(f, to, option="--postcopy"):
    dest = f.incoming(to)
    r = f.vecycle().migrate(f.qemu, f.vecycles[to].address, dest.name, [option])
    assert dest.status() == "running" and f.qemu.status() == "postmigrate"
    f.arrived(to, dest)
    return r


@pytest.mark.newer_qemu
@OPTIONS
def test_postcopy_driven_there_and_back(fleet, option):
    f = fleet()
    boot_linux(f)
    f.guest.command("dirty 32 20")
    for to in 1, 0:
        r = driven(f, to, option)
        assert r["confirmed"] and not r["passthrough"], r
    assert r["base"] == 1 and r["pages"]["same"] > 12000
    f.guest.command("stop")
    f.check_guest()
    f.migrate(1)
    r = f.migrate(0)
    assert r["wire_bytes"] < r["stream_bytes"] / 50


@OPTIONS
def test_the_boot_sector_stays_right_through_postcopy(fleet, option):
    f = fleet()
    f.boot_selfcheck(end_mib=24, delay=2000)
    for to in 1, 0, 1:
        driven(f, to, option)
        f.guest.wait_passes(2)


def test_bitmaps_of_dirty_blocks_go_along(fleet):
    f = fleet(namespaces=False)
    disk = ["-blockdev", f"null-co,node-name=disk,size={1 << 40},read-zeroes=on"]
    f.boot_selfcheck(end_mib=24, delay=2000, extra=disk)
    f.qemu.qmp.execute("block-dirty-bitmap-add", node="disk", name="backup", granularity=65536)
    f.qemu.set_capabilities(["dirty-bitmaps"])
    dest = f.incoming(1)
    dest.set_capabilities(["dirty-bitmaps"])
    f.vecycle().migrate(f.qemu, f.vecycles[1].address, dest.name, ["--postcopy"])
    nodes = {n["node-name"]: n for n in dest.qmp.execute("query-named-block-nodes")}
    assert [b["name"] for b in nodes["disk"]["dirty-bitmaps"]] == ["backup"]
    f.arrived(1, dest)
    f.check_guest()


def test_pages_that_are_asked_for_have_a_connection_of_their_own(fleet, namespaces):
    f = fleet(rate="100mbit")
    boot_linux(f)
    dest = f.incoming(1)
    p, out = f.vecycle().start_migrate(f.qemu, f.vecycles[1].address, dest.name,
                                       ["--postcopy-preempt", "--verbose"])
    transferred(f.qemu, 64 << 20)
    f.guest.command("rewrite 100")
    wait_for(lambda: f.qemu.qmp.execute("query-migrate").get("status") == "postcopy-active" and
             dest.status() == "running", 120, "the switch to postcopy")
    f.guest.attach(dest)
    f.guest.command("check")  # needs all of it, while the rest is still coming
    assert p.wait(120) == 0, p.messages()
    r = f.vecycle().summary(out)
    assert r["confirmed"] and not r["passthrough"], r
    carried = re.search(r"preempt connection has carried (\d+) bytes", p.messages())
    assert carried and int(carried[1]) > 64 << 10, p.messages()
    f.qemu.stop()
    f.at, f.qemu = 1, dest
    # Those pages are not in the checkpoint, and what is in it is right.
    f.migrate(0)
    f.check_guest()


def saying(f, status, instead, times):
    """The source's QEMU, as it gives in so many answers another status than it has."""
    late = LateQmp(f.hosts[0].path("late.qmp"), f.qemu.qmp_path, status, instead, times)
    f.qemu.qmp_path = late.listen
    return late


def set_link(f, state):
    f.hosts[1].run(["ip", "link", "set", "eth0", state])


def interrupt(f, option):
    """A postcopy whose link fails after the switch; the destination's QEMU."""
    boot_linux(f)
    dest = f.incoming(1)
    p, _ = f.vecycle().start_migrate(f.qemu, f.vecycles[1].address, dest.name, [option])
    transferred(f.qemu, 64 << 20)
    f.guest.command("rewrite 100")
    wait_for(lambda: f.qemu.qmp.execute("query-migrate").get("status") == "postcopy-active" and
             dest.status() == "running", 120, "the switch to postcopy")
    set_link(f, "down")
    assert p.wait(60) == 62, p.messages()
    # The destination's QMP may be out of reach: a guest that waits for a page can hold QEMU's lock.
    wait_for(lambda: f.qemu.qmp.execute("query-migrate")["status"] == "postcopy-paused", 60,
             "the migration to pause")
    assert f.qemu.status() != "running"
    wait_for(lambda: "interrupted" in f.vecycles[1].log.read_text(), 60, "the other agent to notice")
    set_link(f, "up")
    return dest


@pytest.mark.newer_qemu
@OPTIONS
def test_an_interrupted_postcopy_is_recovered(fleet, namespaces, option):
    f = fleet(rate="100mbit")
    dest = interrupt(f, option)
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, dest.name, ok=False)
    assert r["status"] == 12 and "--recover" in r["messages"], r
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, dest.name, ["--recover"])
    assert dest.status() == "running" and f.qemu.status() == "postmigrate"
    f.arrived(1, dest)
    f.check_guest()
    f.migrate(0)
    f.check_guest()


def test_a_qemu_that_is_slow_to_resume_is_waited_for(fleet, namespaces):
    f = fleet(rate="100mbit")
    dest = interrupt(f, "--postcopy")
    late = saying(f, "postcopy-recover", "postcopy-paused", 3)
    f.vecycle().migrate(f.qemu, f.vecycles[1].address, dest.name, ["--recover"])
    assert late.n_left < 3, "it was not late"
    f.arrived(1, dest)
    f.check_guest()
    late.close()


def test_a_source_qemu_that_dies_after_the_switch_is_no_success(fleet, namespaces):
    f = fleet(rate="100mbit")
    boot_linux(f)
    dest = f.incoming(1)
    p, _ = f.vecycle().start_migrate(f.qemu, f.vecycles[1].address, dest.name, ["--postcopy"])
    transferred(f.qemu, 64 << 20)
    f.guest.command("rewrite 100")
    wait_for(lambda: f.qemu.qmp.execute("query-migrate").get("status") == "postcopy-active" and
             dest.status() == "running", 120, "the switch to postcopy")
    f.qemu.process.kill()
    assert p.wait(60) == 62, p.messages()
    assert "gone" not in p.messages(), "it was not left to the destination, which lacks memory"


@pytest.fixture
def slow(fleet):
    """A gate between two hosts, and a guest that has rewritten its memory before it was sent once, so
    that much is left for after the switch, which is in no hurry. The guest touches RAM alone, so it
    never waits for a page with QEMU's lock held, and QEMU can always be asked."""
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=48)
    f.qemu.qmp.execute("migrate-set-parameters", max_postcopy_bandwidth=32 << 10)
    f.dest = f.incoming(1)
    f.gate = Gate(f.hosts[1].path("gate"), f.vecycles[1].address)
    yield f
    f.gate.close()


def start_slow(f):
    # The downtime limit keeps QEMU from ending in precopy though the guest has written but little.
    return f.vecycle().start_migrate(f.qemu, f.gate.address, f.dest.name,
                                     ["--postcopy", "--max-bandwidth", "24M",
                                      "--downtime-limit", "1"])[0]


def migration(qemu):
    return qemu.qmp.execute("query-migrate").get("status")


def at_the_word(f):
    """One that is switched; nothing comes through any more."""
    f.gate.hold(WORD, True)
    p = start_slow(f)
    assert f.gate.is_held.wait(60)
    assert migration(f.qemu) == "postcopy-active"
    f.dest.wait_status("paused")  # before that it could not wait for the rest
    return p


def test_the_word_waits_for_a_destination_that_loads_the_device_state(slow):
    f = slow
    # As QEMU 10.2 and later have it: until the destination has loaded the device state the source's
    # guest goes on if the migration fails.
    late = saying(f, "postcopy-active", "postcopy-device", 10)
    p = at_the_word(f)
    assert late.n_left == 0, "the word was given while the guest could have gone on at the source"
    f.gate.release()
    f.dest.wait_status("running")
    f.qemu.qmp.execute("migrate-set-parameters", max_postcopy_bandwidth=0)
    assert p.wait(60) == 0, p.messages()
    f.arrived(1, f.dest)
    f.check_guest()
    late.close()


def start_loading(f):
    """What QEMU 10.2 and later really do, if they never hear that the device state was loaded."""
    if f.qemu.version() < (10, 2):
        pytest.skip("needs QEMU 10.2, which has the state postcopy-device")
    f.gate.hold(RETURN, False, aside=True)
    p = start_slow(f)
    wait_for(lambda: migration(f.dest) == "postcopy-active", 60, "the device state to be loaded")
    assert migration(f.qemu) == "postcopy-device"
    return p


@pytest.mark.newer_qemu
def test_a_link_lost_while_the_device_state_is_loaded_leaves_the_vm_here(slow):
    f = slow
    asked = saying(f, "postcopy-device", "postcopy-device", 10)  # counts alone
    p = start_loading(f)
    wait_for(lambda: not asked.n_left, 60, "the source's agent to know where QEMU is")
    f.gate.cut()
    assert p.wait(60) not in (0, 61, 62), p.messages()
    assert not f.dest.process.alive() or f.dest.status() == "paused"
    f.still_runs_here()
    asked.close()


@pytest.mark.newer_qemu
def test_a_source_qemu_that_dies_while_the_device_state_is_loaded_is_no_success(slow):
    f = slow
    p = start_loading(f)
    f.qemu.process.kill()
    assert p.wait(60) != 0, p.messages()
    assert handovers(f)[0] != "left", "the word would be given"
    assert not f.dest.process.alive() or f.dest.status() == "paused"


def in_postcopy(f):
    """One that runs at the destination, with much of its memory still here: no page gets through."""
    p = at_the_word(f)
    f.gate.hold(BATCH, True)
    f.dest.wait_status("running")
    return p


def handovers(f):
    return [v.json("show", f.vm)["handover"] for v in f.vecycles]


def wait_paused(f):
    for qemu in f.qemu, f.dest:
        wait_for(lambda: migration(qemu) == "postcopy-paused", 60, "the migration to pause")


def recovers(f, state="running"):
    """Both QEMUs pause the migration, and it can be recovered; the VM ran nowhere else meanwhile."""
    wait_paused(f)
    assert f.qemu.status() != "running"
    carries_the_rest(f, state)


def carries_the_rest(f, state):
    f.qemu.qmp.execute("migrate-set-parameters", max_postcopy_bandwidth=0)
    tries = []

    def recover():
        tries.append(f.vecycle().migrate(f.qemu, f.gate.address, f.dest.name, ["--recover"],
                                         ok=False))
        return tries[-1]["status"] == 0

    wait_for(recover, 60, "the recovery", step=0.2)  # the other agent may still be clearing up
    assert f.qemu.status() == "postmigrate"
    f.dest.wait_status(state)
    assert handovers(f) == ["settled", "settled"]
    if state == "paused":
        f.dest.qmp.execute("cont")
    f.arrived(1, f.dest)
    f.check_guest()
    f.migrate(0)
    f.check_guest()


def test_a_link_lost_before_the_word_is_recovered_and_the_word_follows(slow):
    f = slow
    p = at_the_word(f)
    f.gate.cut()
    assert p.wait(60) == 62, p.messages()
    assert f.dest.status() == "paused" and handovers(f) == ["left", "arriving"]
    recovers(f)


def test_a_vm_that_somebody_paused_stays_so_through_a_recovery(slow):
    f = slow
    qmp = RefusingQmp(f.hosts[0].path("gate.qmp"), f.qemu.qmp_path)
    f.qemu.qmp_path = qmp.listen
    f.gate.hold(WORD, True)
    p = start_slow(f)
    transferred(f.qemu, 8 << 20)
    qmp.pause(f.qemu.qmp)
    # vecycle would not, for a VM that is paused
    f.qemu.qmp.execute("migrate-start-postcopy")
    assert f.gate.is_held.wait(60)
    assert migration(f.qemu) == "postcopy-active"
    f.dest.wait_status("paused")
    f.gate.cut()
    assert p.wait(60) == 62, p.messages()
    recovers(f, "paused")
    qmp.close()


@pytest.mark.parametrize("side", [0, 1], ids=["source", "destination"])
def test_an_agent_that_dies_in_postcopy_pauses_it_until_it_is_recovered(slow, side):
    f = slow
    p = in_postcopy(f)
    f.vecycles[side].agent.kill()
    f.gate.cut()
    assert p.wait(60) != 0, p.messages()
    f.vecycles[side].start_agent([f.vecycles[side].address])
    recovers(f)


def test_an_agent_that_dies_before_it_has_recorded_the_switch_still_owes_the_word(slow):
    f = slow
    late = saying(f, "postcopy-active", "active", 10 ** 6)  # so it does not know of the switch
    start_slow(f)
    wait_for(lambda: migration(f.dest) == "postcopy-active", 60, "the device state to arrive")
    assert handovers(f) == ["leaving", "arriving"] and f.dest.status() == "paused"
    f.vecycles[0].agent.kill()
    late.n_left = 0
    f.vecycles[0].start_agent([f.vecycles[0].address])
    recovers(f)
    late.close()


@pytest.mark.parametrize("who", ["client", "source agent", "destination agent"])
def test_after_the_switch_nothing_is_cancelled(slow, who):
    """There is no way back: whoever is told to stop carries the rest first."""
    f = slow
    p = in_postcopy(f)
    target = {"client": p, "source agent": f.vecycles[0].agent,
              "destination agent": f.vecycles[1].agent}[who]
    target.popen.send_signal(signal.SIGINT)
    if who != "destination agent":
        wait_for(lambda: "too late to cancel" in p.messages(), 30, "it to be said")
    assert migration(f.qemu) == "postcopy-active" and f.dest.status() == "running"
    f.qemu.qmp.execute("migrate-set-parameters", max_postcopy_bandwidth=0)
    f.gate.release()
    assert p.wait(60) == 0, p.messages()
    if who != "client":
        assert target.wait(30) == 0, target.messages()
    assert f.qemu.status() == "postmigrate" and migration(f.dest) == "completed"
    f.arrived(1, f.dest)
    f.check_guest()


@pytest.mark.newer_qemu
@pytest.mark.parametrize("capabilities", [POSTCOPY, PREEMPT], ids=["plain", "preempt"])
def test_a_proxied_postcopy_is_recovered_by_whoever_drives_it(slow, capabilities):
    f, listen = slow, slow.hosts[0].path("out.sock")
    incoming = f"unix:{f.hosts[1].path('vm.sock')}"

    def start_proxy():
        return f.vecycle().start_proxy(listen, f.vm, f.gate.address, "vm")[0]

    f.dest.set_capabilities(capabilities)
    f.dest.qmp.execute("migrate-incoming", uri=incoming)
    p = start_proxy()
    f.qemu.migrate_plain(f"unix:{listen}", downtime_limit=1, capabilities=capabilities)
    switch_to_postcopy(f.qemu)
    f.dest.wait_status("running")
    f.gate.cut()
    assert p.wait(60) == 23, p.messages()
    wait_paused(f)
    f.qemu.qmp.execute("migrate-set-parameters", max_postcopy_bandwidth=0)
    f.dest.qmp.execute("migrate-recover", uri=incoming)
    p = start_proxy()
    f.qemu.qmp.execute("migrate", uri=f"unix:{listen}", resume=True)
    wait_for(lambda: migration(f.qemu) == "completed", 60, "the migration to be completed")
    assert p.wait() == 0, p.messages()
    f.arrived(1, f.dest)
    f.check_guest()
    f.migrate(0)
    f.check_guest()


def test_there_is_nothing_to_recover(fleet):
    f = fleet()
    f.boot_selfcheck()
    dest = f.incoming(1)
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, dest.name, ["--recover"], ok=False)
    assert r["status"] == 12 and "no interrupted postcopy" in r["messages"], r
    f.still_runs_here()


def test_a_recovery_leaves_a_vm_alone_that_was_continued_before(slow):
    """The destination continued it, its answer was lost, and an operator has paused it since."""
    f = slow
    f.gate.hold(WORD_DONE, False, aside=True)  # pages pass: QEMU cannot stop a guest that waits for one
    p = start_slow(f)
    assert f.gate.is_held.wait(60)
    wait_for(lambda: handovers(f)[1] == "settled", 60, "the destination's record")
    f.dest.qmp.execute("stop")
    f.gate.cut()
    assert p.wait() == 62, p.messages()
    recovers(f, "paused")


def test_the_rest_that_a_source_qemu_holds_is_told_when_all_vecycles_have_died(slow):
    """Whoever is told that nothing is open may end that QEMU."""
    f = slow
    p = in_postcopy(f)
    for v in f.vecycles:
        v.agent.kill()
    f.gate.cut()
    p.wait()
    wait_paused(f)
    assert handovers(f)[0] == "settled"
    for v in f.vecycles:
        v.start_agent([v.address])
    wait_for(lambda: "must not be ended" in f.vecycles[0].log.read_text(), 60, "the agent to say so")
    for argv in [], ["--retry"]:
        r = f.vecycles[0].run("resolve", f.vm, *argv)
        assert r.returncode == 62 and "--recover" in r.stderr, (r.stdout, r.stderr)
    recovers(f)


def test_a_vm_that_its_qemu_has_left_standing_stays_open_until_it_runs(slow):
    """As QEMU 7.2 does where the switch fails: it does not continue the VM, and the agent that could
    have done so is dead."""
    f = slow
    qemu = saying(f, "running", "postmigrate", 0)
    f.gate.hold(BATCH, True)
    p = start_slow(f)
    assert f.gate.is_held.wait(60)
    f.vecycles[0].agent.kill()
    p.wait()
    wait_for(lambda: migration(f.qemu) == "failed", 60, "QEMU to notice")
    qemu.n_left = 10 ** 6
    f.vecycles[0].start_agent([f.vecycles[0].address])
    wait_for(lambda: handovers(f) == ["kept", "void"], 60, "the destination to know")
    r = f.vecycles[0].run("resolve", f.vm, "--retry")
    assert r.returncode == 61 and "'postmigrate'" in r.stderr and "--run" in r.stderr, r.stderr
    assert handovers(f)[0] == "kept"
    r = f.vecycles[0].run("resolve", f.vm, "--run")
    assert r.returncode == 0 and "cont" in qemu.seen, r.stderr
    qemu.n_left = 0
    r = f.vecycles[0].run("resolve", f.vm, "--retry")
    assert r.returncode == 0 and handovers(f) == ["settled", "void"], r.stderr
    qemu.close()


def runs_there(f):
    p = start_slow(f)
    f.dest.wait_status("running")
    return p


def is_starved(f, p):
    """Interrupted while the guest waits for a page."""
    f.gate.hold(RETURN, False)
    assert f.gate.is_held.wait(60), "the guest does not ask for a page"
    f.gate.cut()
    assert p.wait() == 62, p.messages()
    wait_paused(f)


def answers_nobody(f, p):
    """Then an operator pauses the VM, so QEMU's main loop waits for the guest."""
    is_starved(f, p)
    f.dest.qmp.send("stop")


def test_a_recovery_reaches_a_qemu_that_answers_nobody(slow):
    f = slow
    answers_nobody(f, runs_there(f))
    carries_the_rest(f, "paused")


def test_a_postcopy_that_ended_unseen_can_be_continued_by_a_person(slow):
    """QEMU completes while its agent waits for an answer, and the agent is killed before the word."""
    f = slow
    qmp = QmpGate(f.hosts[0].path("gate.qmp"), f.qemu.qmp_path)
    f.qemu.qmp_path = qmp.listen
    qmp.hold("migrate-start-postcopy")
    p = start_slow(f)
    assert qmp.is_held.wait(60)
    f.qemu.qmp.execute("migrate-set-parameters", max_postcopy_bandwidth=0)
    qmp.hold("query-migrate")  # and the switch is asked for
    wait_for(lambda: migration(f.dest) == "completed", 60, "all of the VM to arrive")
    f.vecycles[0].agent.kill()
    qmp.cut()
    f.gate.cut()
    p.wait()
    f.vecycles[0].start_agent([f.vecycles[0].address])
    assert not f.dest.is_running() and handovers(f)[1] == "arriving", "nobody gave the word"
    r = f.vecycles[1].run("resolve", f.vm, "--run", "--force", "--socket-dir", f.hosts[1].sockets)
    assert r.returncode == 0 and f.dest.is_running(), r.stderr
    assert not f.qemu.is_running()
