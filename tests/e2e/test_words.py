# SPDX-License-Identifier: LGPL-2.1-or-later
"""The switch, and the word after it: whoever dies when, one VM at most runs, and one can."""
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from vctest.gate import BATCH, EOF, SHUT, WORD, WORD_DONE, Gate, hello, ping
from vctest.preload import restart_hanging, restart_mortal, restart_refusing, restart_with
from vctest.proc import wait_for

SOURCE, DESTINATION = True, False


@pytest.fixture
def gated(fleet):
    """Two hosts with a gate between them, a guest on the first, a QEMU that waits on the second."""
    gates = []

    def make(ram_mib=96, **kw):
        f = fleet(namespaces=False, **kw)
        f.boot_linux(ram_mib, 8)
        f.dest = f.incoming(1)
        f.gate = Gate(f.hosts[1].path("gate"), f.vecycles[1].address)
        gates.append(f.gate)
        return f

    yield make
    for g in gates:
        g.close()


def start(f, *extra):
    p, _ = f.vecycle().start_migrate(f.qemu, f.gate.address, f.dest.name, [*extra])
    return p


def handovers(f):
    return [v.json("show", f.vm)["handover"] for v in f.vecycles]


def wait_handovers(f, *states):
    wait_for(lambda: handovers(f) == [*states], 90, f"the records to be {states}")


def runs_there(f):
    wait_for(lambda: f.dest.status() == "running", 90, "the VM to run at the destination")
    assert f.qemu.status() == "postmigrate"
    f.arrived(1, f.dest)
    f.check_guest()


def runs_here(f):
    assert not f.dest.is_running()
    f.still_runs_here()
    assert not f.dest.is_running()


def and_migrates_again(f):
    f.dest.stop()
    f.dest = f.incoming(1)
    wait_for(lambda: f.vecycle().migrate(f.qemu, f.vecycles[1].address, f.dest.name,
                                         ok=False)["status"] == 0, 60, "the next migration")
    runs_there(f)


def held(f, *what):
    """A migration that has come to that frame."""
    f.gate.hold(*what)
    p = start(f)
    assert f.gate.is_held.wait(90)
    return p


# Longer than whatever a test does after it, on a busy machine too.
LONG_MS = 20000


def held_long(f, *what):
    """The same, of a migration that takes so long that no later one can have."""
    f.gate.hold(*what)
    p = start(f, "--max-bandwidth", "1M")
    wait_for(lambda: f.qemu.qmp.execute("query-migrate").get("total-time", 0) > LONG_MS, 90,
             "the migration to take long")
    f.qemu.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40)
    assert f.gate.is_held.wait(90)
    return p


def killed_at_the_record(f, tmp_path, host, nth, completes=True, takes_long=False):
    """A migration in which that host's agent dies in the place of writing a record."""
    trigger = restart_mortal(f.vecycles[host], tmp_path, nth)
    p = (held_long if takes_long else held)(f, SHUT, DESTINATION)
    trigger.touch()
    f.gate.release()
    f.vecycles[host].agent.wait(60)
    p.wait(60)
    if completes:
        wait_for(lambda: f.qemu.status() == "postmigrate", 30, "QEMU to complete")
    return p


# The source's agent writes how much was sent, LEFT, SETTLED; the destination's ABOUT TO RUN, SETTLED.

def test_source_agent_dies_before_qemu_may_complete(gated, tmp_path):
    """QEMU has not seen the destination's success, and lets the guest go on."""
    f = gated()
    killed_at_the_record(f, tmp_path, 0, 1, completes=False)
    f.vecycles[0].start_agent([f.vecycles[0].address])
    wait_handovers(f, "settled", "void")
    runs_here(f)


def test_source_agent_dies_before_it_has_recorded_that_qemu_completed(gated, tmp_path):
    f = gated()
    killed_at_the_record(f, tmp_path, 0, 2, takes_long=True)
    assert f.dest.status() == "paused"
    assert handovers(f)[0] == "leaving"
    f.vecycles[0].start_agent([f.vecycles[0].address])
    wait_handovers(f, "settled", "settled")
    runs_there(f)


def test_resolve_retry_asks_qemu_what_became_of_the_migration(gated, tmp_path):
    f = gated()
    killed_at_the_record(f, tmp_path, 0, 2, takes_long=True)
    f.vecycles[0].control = "none"
    wait_for(lambda: f.vecycle().run("resolve", f.vm, "--retry").returncode == 0, 30,
             "the word to be given")
    wait_handovers(f, "settled", "settled")
    runs_there(f)


def test_what_qemu_completed_may_be_a_later_migration_where_only_counts_were_recorded(gated, tmp_path):
    """More time has passed since the note than the migration took: another one has room in it."""
    f = gated()
    killed_at_the_record(f, tmp_path, 0, 2)
    killed_at = time.monotonic()
    took_s = f.qemu.qmp.execute("query-migrate")["total-time"] / 1000
    wait_for(lambda: time.monotonic() - killed_at > took_s, 90, "as much time to pass")
    f.vecycles[0].start_agent([f.vecycles[0].address])
    r = f.vecycles[0].run("resolve", f.vm, "--retry", "--insecure")
    assert r.returncode == 61 and "may be a later one" in r.stderr, r.stderr
    assert "may be a later one" in f.vecycles[0].json("resolve", f.vm, "--insecure")["here"]
    r = f.vecycles[0].run("resolve", f.vm, "--run")
    assert r.returncode == 61 and "may be a later one" in r.stderr, r.stderr
    assert handovers(f) == ["leaving", "arriving"]
    assert f.dest.status() == "paused" and f.qemu.status() == "postmigrate"
    r = f.vecycles[0].run("resolve", f.vm, "--run", "--force")
    assert r.returncode == 0, r.stderr
    wait_handovers(f, "settled", "void")
    runs_here(f)


def test_source_agent_dies_after_the_vm_runs_at_the_destination(gated, tmp_path):
    f = gated()
    killed_at_the_record(f, tmp_path, 0, 3)
    assert f.dest.status() == "running"
    assert handovers(f) == ["left", "settled"]
    f.vecycles[0].start_agent([f.vecycles[0].address])
    wait_handovers(f, "settled", "settled")
    runs_there(f)


def test_destination_agent_dies_before_it_has_recorded_that_it_continues_the_vm(gated, tmp_path):
    f = gated()
    killed_at_the_record(f, tmp_path, 1, 1)
    assert f.dest.status() == "paused" and handovers(f) == ["left", "arriving"]
    f.vecycles[1].start_agent([f.vecycles[1].address])
    wait_handovers(f, "settled", "settled")
    runs_there(f)


def test_destination_agent_dies_before_it_has_recorded_that_the_vm_runs(gated, tmp_path):
    f = gated()
    killed_at_the_record(f, tmp_path, 1, 2)
    assert handovers(f)[1] == "about-to-run"
    assert f.dest.status() == "running"
    f.vecycles[1].start_agent([f.vecycles[1].address])
    wait_handovers(f, "settled", "settled")
    runs_there(f)


def test_destination_agent_dies_before_the_word(gated):
    f = gated()
    p = held(f, WORD, SOURCE)
    f.vecycles[1].agent.kill()
    f.gate.cut()
    assert p.wait() == 61, p.messages()
    assert f.dest.status() == "paused" and handovers(f) == ["left", "arriving"]
    f.vecycles[1].start_agent([f.vecycles[1].address])
    wait_handovers(f, "settled", "settled")
    runs_there(f)


def test_destination_agent_is_stopped_before_the_word(gated):
    f = gated()
    p = held(f, WORD, SOURCE)
    f.vecycles[1].agent.stop()
    f.gate.cut()
    assert p.wait() == 61, p.messages()
    assert f.dest.status() == "paused" and handovers(f) == ["left", "arriving"]
    f.vecycles[1].start_agent([f.vecycles[1].address])
    wait_handovers(f, "settled", "settled")
    runs_there(f)


@pytest.mark.parametrize("call", ["write", "sync"])
def test_the_word_waits_for_a_disk_that_hangs_at_the_record(gated, tmp_path, call):
    """As long as LEFT may not be on the disk, nobody runs the VM, and nobody else decides about it."""
    f = gated()
    trigger, fifo = restart_hanging(f.vecycles[0], tmp_path, call, "1" if call == "write" else "0")
    p = held(f, SHUT, DESTINATION)
    trigger.touch()
    f.gate.hold(WORD, SOURCE)  # and SHUT passes
    wait_for(lambda: not trigger.exists(), 60, "the disk to hang")
    before = dict(f.gate.pings)
    wait_for(lambda: any(n - before[side] >= 4 for side, n in f.gate.pings.items()), 60,
             "more time to pass than a write of a generation is given")
    r = f.vecycle().run("resolve", f.vm, "--retry")
    assert r.returncode == 43 and "in use" in r.stderr, r.stderr
    assert f.qemu.status() == "postmigrate" and f.dest.status() == "paused"
    assert not f.gate.is_held.is_set(), "the word came before the record"
    os.close(os.open(fifo, os.O_WRONLY))
    assert f.gate.is_held.wait(90)
    assert f.dest.status() == "paused" and handovers(f) == ["left", "arriving"]
    f.gate.release()
    assert p.wait() == 0, p.messages()
    wait_handovers(f, "settled", "settled")
    runs_there(f)


def test_a_late_answer_is_not_taken_for_the_answer_to_another_decision(gated, tmp_path):
    """The destination's disk hangs before it continues the VM, and somebody continues it here: both run."""
    f = gated()
    trigger, fifo = restart_hanging(f.vecycles[1], tmp_path, "write", "0")
    f.gate.hold(WORD, SOURCE)
    p = start(f, "--dead-peer", "5")
    assert f.gate.is_held.wait(90), p.messages()
    trigger.touch()
    f.gate.release()
    wait_for(lambda: not trigger.exists(), 60, "the disk to hang")
    f.qemu.qmp.execute("cont")
    assert p.wait(120) == 61, p.messages()
    assert handovers(f)[0] == "kept"
    os.close(os.open(fifo, os.O_WRONLY))
    wait_handovers(f, "kept", "settled")
    r = f.vecycles[0].run("resolve", f.vm, "--retry")
    assert r.returncode == 61 and "both run" in r.stderr, r.stderr
    assert handovers(f) == ["kept", "settled"]


@pytest.mark.parametrize("frame,side", [(WORD, SOURCE), (WORD_DONE, DESTINATION), (None, None)])
def test_a_store_that_hangs_at_a_checkpoint_keeps_the_record_right(gated, tmp_path, frame, side):
    """How much was sent is noted all the same, and the rest once the disk answers."""
    f = gated()
    trigger, fifo = restart_hanging(f.vecycles[0], tmp_path, "other")
    f.gate.hold(BATCH, SOURCE)
    p = start(f, "--dead-peer", "30")
    assert f.gate.is_held.wait(60), p.messages()
    trigger.touch()
    f.gate.hold(SHUT, DESTINATION)
    assert f.gate.is_held.wait(60), p.messages()
    wait_for(lambda: "has not taken a write" in p.messages(), 60, "the disk to be found hanging")
    if frame:
        f.gate.hold(frame, side)
        assert f.gate.is_held.wait(60), p.messages()
        f.gate.refuse()
        f.gate.cut()
    else:
        f.gate.release()
        f.dest.wait_status("running")
    os.close(os.open(fifo, os.O_WRONLY))
    assert p.wait() == (61 if frame else 0), p.messages()
    f.gate.refuse(False)
    wait_handovers(f, "settled", "settled")
    runs_there(f)


def test_a_destination_is_not_told_to_quit_before_that_is_recorded(gated, tmp_path):
    f = gated()
    trigger = restart_refusing(f.vecycles[0], tmp_path)
    p = held(f, SHUT, DESTINATION)
    trigger.touch()
    f.qemu.qmp.execute("migrate_cancel")
    assert p.wait() == 60, p.messages()
    f.gate.release()
    f.still_runs_here()
    trigger.unlink()
    wait_handovers(f, "settled", "void")
    assert "told to quit" not in f.vecycles[1].log.read_text().split("the source gave the migration up")[0]


def test_a_vm_does_not_run_at_the_destination_before_that_is_recorded(gated, tmp_path):
    f = gated()
    trigger = restart_refusing(f.vecycles[1], tmp_path)
    p = held(f, WORD, SOURCE)
    trigger.touch()
    f.gate.release()
    assert p.wait() == 61, p.messages()
    assert f.dest.status() == "paused" and f.qemu.status() == "postmigrate"
    assert handovers(f) == ["left", "arriving"]
    trigger.unlink()
    wait_handovers(f, "settled", "settled")
    runs_there(f)


def test_a_success_that_cannot_be_noted_does_not_reach_the_source_qemu(gated, tmp_path):
    """Later nobody could tell whether QEMU completed this migration; so its guest goes on."""
    f = gated()
    trigger = restart_refusing(f.vecycles[0], tmp_path)
    p = held(f, SHUT, DESTINATION)
    trigger.touch()
    f.gate.release()
    assert p.wait() == 40, p.messages()
    f.still_runs_here()
    assert not f.dest.is_running()
    trigger.unlink()
    wait_handovers(f, "settled", "void")
    runs_here(f)
    and_migrates_again(f)


def test_a_success_that_the_source_cannot_record_is_recorded_later(gated, tmp_path):
    f = gated()
    trigger = restart_refusing(f.vecycles[0], tmp_path)
    p = held(f, WORD_DONE, DESTINATION)
    trigger.touch()
    f.gate.release()
    assert p.wait() == 0, p.messages()
    assert handovers(f)[0] == "left"
    trigger.unlink()
    wait_handovers(f, "settled", "settled")
    runs_there(f)


def test_a_vm_that_is_continued_here_before_its_word_is_never_given_away(gated, tmp_path):
    """While the record is written somebody finds the VM paused, and continues it."""
    f = gated()
    trigger, fifo = restart_hanging(f.vecycles[0], tmp_path, "write", "1")
    p = held(f, SHUT, DESTINATION)
    trigger.touch()
    f.gate.release()
    wait_for(lambda: not trigger.exists(), 60, "the disk to hang")
    f.qemu.qmp.execute("cont")
    os.close(os.open(fifo, os.O_WRONLY))
    assert p.wait() == 60, p.messages()
    wait_handovers(f, "settled", "void")
    runs_here(f)
    and_migrates_again(f)


@pytest.mark.parametrize("frame,side", [(WORD, SOURCE), (WORD_DONE, DESTINATION)])
def test_agents_settle_a_lost_word_when_they_meet_again(gated, frame, side):
    f = gated()
    p = held(f, frame, side)
    f.gate.refuse()
    f.gate.cut()
    assert p.wait() == 61, p.messages()
    assert f.dest.status() == ("paused" if frame == WORD else "running")
    f.gate.refuse(False)
    wait_handovers(f, "settled", "settled")
    runs_there(f)


def test_a_vm_that_is_to_stay_paused_stays_so_when_its_word_is_repeated(gated):
    f = gated()
    f.gate.hold(WORD, SOURCE)
    p = start(f, "--suspend")
    assert f.gate.is_held.wait(90)
    f.gate.cut()
    assert p.wait() == 61, p.messages()
    wait_handovers(f, "settled", "settled")
    assert f.dest.status() == "paused"
    f.dest.qmp.execute("cont")
    runs_there(f)


@pytest.mark.newer_qemu
def test_destination_qemu_dies_before_the_word_and_the_vm_goes_on_here(gated):
    f = gated()
    p = held(f, WORD, SOURCE)
    assert f.qemu.status() == "postmigrate"
    f.dest.process.kill()
    f.gate.release()
    assert p.wait() == 31, p.messages()
    f.still_runs_here()
    assert handovers(f) == ["settled", "void"]
    and_migrates_again(f)


@pytest.mark.newer_qemu
def test_source_qemu_dies_in_the_switch_and_the_vm_runs_at_the_destination(gated):
    f = gated()
    p = held(f, SHUT, DESTINATION)
    wait_for(lambda: f.dest.status() == "paused", 30, "the VM to arrive")
    f.qemu.process.kill()
    f.gate.release()
    assert p.wait() == 0, p.messages()
    wait_for(lambda: f.dest.status() == "running", 30, "the VM to run")
    assert handovers(f) == ["settled", "settled"]
    f.arrived(1, f.dest)
    f.check_guest()


def test_a_vm_that_is_started_anew_in_the_switch_is_not_continued_at_the_destination(gated):
    """By a supervisor that starts a QEMU again which has crashed."""
    f = gated()
    p = held(f, SHUT, DESTINATION)
    wait_for(lambda: f.dest.status() == "paused", 30, "the VM to arrive")
    f.qemu.process.kill()
    again = f.new_qemu(0)
    again.wait_status("running")
    f.gate.release()
    assert p.wait() == 61, p.messages()
    assert f"process {again.process.pid} has the VM's UUID" in p.messages(), p.messages()
    again.stop()
    r = f.vecycle().run("resolve", f.vm, "--retry")
    assert r.returncode == 61 and handovers(f) == ["left", "arriving"], r.stderr
    assert f.dest.status() == "paused"


@pytest.mark.parametrize("aside,status", [(False, 23), (True, 52)])
def test_a_hang_in_the_switch_ends_and_the_vm_goes_on_here(gated, aside, status):
    """The destination's report of success gets lost, with or without all that comes behind it."""
    f = gated()
    f.gate.hold({SHUT, EOF}, DESTINATION, aside)
    p = start(f, "--dead-peer", "4")
    assert f.gate.is_held.wait(90)
    assert f.dest.status() == "paused"
    assert p.wait(120) == status, p.messages()
    runs_here(f)
    wait_handovers(f, "settled", "void")
    and_migrates_again(f)


def test_a_copy_that_never_ran_is_not_migrated_on(gated):
    f = gated()
    f.qemu.qmp.execute("stop")
    f.gate.hold({SHUT, EOF}, DESTINATION, aside=True)
    p = start(f, "--dead-peer", "4")
    assert f.gate.is_held.wait(90)
    assert p.wait(120) != 0, p.messages()
    wait_handovers(f, "settled", "void")
    f.qemu.qmp.execute("cont")
    f.arrived(1, f.dest)
    other = f.incoming(0)
    r = f.vecycle().migrate(f.dest, f.vecycles[0].address, other.name, ok=False)
    assert r["status"] == 61 and "never ran" in r["messages"], r
    assert handovers(f) == ["settled", "void"] and other.status() == "inmigrate"
    r = f.vecycles[1].run("resolve", f.vm)
    assert r.returncode == 0 and "nothing is open" in r.stdout and len(r.stdout.splitlines()) == 1, r.stdout


@pytest.mark.newer_qemu
def test_the_word_is_not_given_for_a_vm_that_was_continued_here(gated):
    f = gated()
    p = held(f, WORD, SOURCE)
    f.gate.refuse()
    f.gate.cut()
    assert p.wait() == 61, p.messages()
    f.qemu.qmp.execute("cont")
    f.gate.refuse(False)
    wait_handovers(f, "settled", "void")
    runs_here(f)
    and_migrates_again(f)


def test_a_word_that_was_obeyed_leaves_the_vm_alone_for_ever(gated):
    f = gated()
    p = held(f, WORD_DONE, DESTINATION)
    f.gate.refuse()
    f.gate.cut()
    assert p.wait() == 61, p.messages()
    f.dest.qmp.execute("stop")  # as somebody does who moves it on by other means
    f.gate.refuse(False)
    wait_handovers(f, "settled", "settled")
    assert f.dest.status() == "paused"


def silent_destination(f, stop):
    """Says HELLO and PING, and nothing else."""
    path = f.hosts[1].path("mute")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(1)
    greeted = threading.Event()

    def serve():
        c, _ = server.accept()
        with c:
            c.recv(64)
            c.sendall(hello(2))
            greeted.set()
            while not stop.wait(1):
                try:
                    c.sendall(ping())
                except OSError:
                    return
    t = threading.Thread(target=serve, daemon=True)
    t.start()
    return f"unix:{path}", greeted, t


@pytest.mark.parametrize("cancel", [False, True])
def test_a_destination_that_never_accepts(fleet, cancel):
    f = fleet(namespaces=False)
    f.boot_linux(96, 8)
    stop = threading.Event()
    address, greeted, t = silent_destination(f, stop)
    p, _ = f.vecycle().start_migrate(f.qemu, address, "vm", ["--dead-peer", "3"])
    if cancel:
        assert greeted.wait(20)
        p.popen.send_signal(signal.SIGINT)
    assert p.wait(60) == (60 if cancel else 23), p.messages()
    stop.set()
    t.join()
    f.still_runs_here()


def test_idle_connections_do_not_shut_others_out(gated):
    f = gated()
    idle = []
    for path in [f.vecycles[1].address.removeprefix("unix:"), f.vecycles[0].control] * 70:
        s = socket.socket(socket.AF_UNIX)
        s.connect(path)
        idle.append(s)
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, f.dest.name)
    assert r["confirmed"]
    runs_there(f)
    for s in idle:
        s.close()


def with_a_record_that_fails(f, side, tmp_path):
    """There is an older record on both hosts, and the new one of that host fails in its last sync."""
    f.arrived(1, f.dest)
    f.migrate(0)
    f.dest = f.incoming(1)
    trigger = tmp_path / "trigger"
    restart_with(f.vecycles[side], tmp_path, "fail_sync", VC_FAIL_TRIGGER=str(trigger), VC_FAIL_NTH="2")
    trigger.touch()


def cut_off(f, p):
    f.gate.refuse()
    f.gate.cut()
    assert p.wait() == 61, p.messages()


def test_a_source_without_a_record_decides_nothing_later(gated, tmp_path):
    """What had reached the disk, and was not kept up to date, would say that no decision was ever sent."""
    f = gated()
    assert start(f).wait() == 0
    with_a_record_that_fails(f, 0, tmp_path)
    p = held(f, WORD, SOURCE)
    assert "not recorded" in f.vecycles[0].log.read_text()
    cut_off(f, p)
    assert handovers(f) == ["none", "arriving"]
    f.gate.refuse(False)
    r = f.vecycles[0].run("resolve", f.vm, "--retry")
    assert r.returncode == 30, r.stderr
    assert handovers(f) == ["none", "arriving"] and not f.qemu.is_running() and not f.dest.is_running()
    r = f.vecycles[1].run("resolve", f.vm, "--run", "--force", "--socket-dir", f.hosts[1].sockets)
    assert r.returncode == 0 and f.dest.is_running(), r.stderr


def test_a_destination_without_a_record_does_not_say_that_the_vm_never_ran(gated, tmp_path):
    f = gated()
    assert start(f).wait() == 0
    with_a_record_that_fails(f, 1, tmp_path)
    p = held(f, WORD_DONE, DESTINATION)
    f.dest.wait_status("running")
    assert "not recorded" in f.vecycles[1].log.read_text()
    cut_off(f, p)
    assert handovers(f) == ["left", "none"]
    f.dest.qmp.execute("stop")  # by its owner
    f.gate.refuse(False)
    r = f.vecycles[0].run("resolve", f.vm, "--retry")
    assert r.returncode == 61 and "knows nothing" in r.stderr, r.stderr
    f.qemu.qmp.execute("cont")
    wait_handovers(f, "kept", "none")
    r = f.vecycles[0].run("resolve", f.vm, "--retry")
    assert r.returncode == 61 and "knows nothing" in r.stderr, r.stderr
    assert f.dest.status() == "paused" and f.qemu.is_running()
