# SPDX-License-Identifier: LGPL-2.1-or-later
"""What cannot be reached is not gone, and what is not known stays in doubt: docs/internals/handover.md."""
import os

import pytest
from vctest.elsewhere import OWN_MOUNTS, Elsewhere, can_have_own_mounts, hide, hide_process, seeing
from vctest.gate import BATCH, EOF, HELLO, SHUT, WORD, WORD_DONE, Gate, QmpGate
from vctest.proc import wait_for
from vctest.qemu import Qemu, new_uuid
from vctest.qmp import QmpError
from vctest.vecycle import BINARY

SOURCE, DESTINATION = True, False


@pytest.fixture
def gated(fleet):
    """Two hosts with a gate between them, a guest on the first, a QEMU that waits on the second."""
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=4, delay=100000, extra=["-action", "reboot=reset"])
    f.dest = f.incoming(1)
    f.gate = Gate(f.hosts[1].path("gate"), f.vecycles[1].address)
    yield f
    f.gate.close()


def start(f, *extra):
    p, _ = f.vecycle().start_migrate(f.qemu, f.gate.address, f.dest.name, [*extra])
    return p


def handovers(f):
    return [v.json("show", f.vm)["handover"] for v in f.vecycles]


def wait_handovers(f, *states):
    wait_for(lambda: handovers(f) == [*states], 90, f"the records to be {states}")


def word_lost(f, frame=WORD, side=SOURCE):
    """A migration that completed, and of which the destination was not told, or did not answer."""
    f.gate.hold(frame, side)
    p = start(f)
    assert f.gate.is_held.wait(90), p.messages()
    f.gate.refuse()
    f.gate.cut()
    assert p.wait() == 61, p.messages()
    assert handovers(f)[0] == "left"


def retry(f, *extra):
    return f.vecycles[0].run("resolve", f.vm, "--retry", *extra)


def never_both(f):
    assert not (f.qemu.is_running() and f.dest.is_running())


def odd_socket(f, host, kind, qemu):
    """That QEMU's QMP socket is not what it was, for that host's agent."""
    place = Elsewhere(qemu.qmp_path)
    if kind == "moved":
        place.move()
    elif kind == "refused":
        place.refuse()
    elif kind == "busy":
        place.fill()
    elif kind == "silent":
        place.silence()
    elif kind == "no rights":
        os.chmod(qemu.qmp_path, 0)
    elif kind == "another VM's":
        other = Qemu(f.hosts[host], "other", 16, new_uuid())
        place.replace(other.qmp_path)
    elif kind == "hidden":
        hide(f.vecycles[host].agent, f.hosts[host].sockets)
    return place


SOCKETS = ["moved", "refused", "busy", "another VM's", "hidden"]


def with_own_mounts(f, host, kind="hidden"):
    if kind != "hidden":
        return
    yes, why = can_have_own_mounts()
    if not yes:
        pytest.skip(why)
    v = f.vecycles[host]
    v.agent.stop()
    v.wrapper = OWN_MOUNTS
    v.start_agent([v.address])


@pytest.mark.parametrize("kind", SOCKETS)
def test_a_source_qemu_that_cannot_be_reached_may_run_and_the_word_is_not_given(gated, kind):
    f = gated
    with_own_mounts(f, 0, kind)
    f.gate.hold(WORD, SOURCE)
    p = start(f)
    assert f.gate.is_held.wait(90), p.messages()
    # From here on the agent finds something else at the path.
    f.gate.refuse()
    place = odd_socket(f, 0, kind, f.qemu)
    f.qemu.qmp.execute("cont") if f.qemu.status() == "postmigrate" else None
    f.gate.cut()
    assert p.wait() in (60, 61), p.messages()
    f.gate.refuse(False)
    r = retry(f, "--insecure")
    assert r.returncode in (61, 43, 0), r.stderr
    assert f.qemu.status() == "running" and not f.dest.is_running()
    place.restore()
    if kind == "hidden":
        f.vecycles[0].agent.stop()
        f.vecycles[0].wrapper = ()
        f.vecycles[0].start_agent([f.vecycles[0].address])
    wait_handovers(f, "settled", "void")
    f.still_runs_here()
    assert not f.dest.is_running()


@pytest.mark.parametrize("kind", SOCKETS)
def test_a_destination_qemu_that_cannot_be_reached_may_run_and_the_source_stays_paused(gated, kind):
    f = gated
    with_own_mounts(f, 1, kind)
    word_lost(f)
    place = odd_socket(f, 1, kind, f.dest)
    f.dest.qmp.execute("cont")  # by a person
    f.gate.refuse(False)
    r = retry(f, "--insecure")
    assert r.returncode in (61, 43), r.stderr
    assert kind != "busy" or r.returncode == 43 or "too many wait" in r.stderr, r.stderr
    assert f.qemu.status() == "postmigrate" and f.dest.status() == "running"
    assert handovers(f) == ["left", "arriving"]
    place.restore()
    if kind == "hidden":
        f.vecycles[1].agent.stop()
        f.vecycles[1].wrapper = ()
        f.vecycles[1].start_agent([f.vecycles[1].address])
    wait_handovers(f, "settled", "settled")
    never_both(f)


def test_a_source_qemu_that_has_ended_is_gone_and_the_word_is_given(gated):
    f = gated
    with_own_mounts(f, 0)
    hide_process(f.vecycles[0].agent, f.dest.process)
    word_lost(f)
    f.qemu.process.kill()
    f.gate.refuse(False)
    wait_handovers(f, "settled", "settled")
    assert f.dest.status() == "running"


def test_a_source_vm_that_was_started_anew_may_run_and_the_word_is_not_given(gated):
    """As after a reboot of its host; by another path than before, so that only its process is seen."""
    f = gated
    with_own_mounts(f, 0)
    hide_process(f.vecycles[0].agent, f.dest.process)
    word_lost(f)
    again = f.new_qemu(0)
    again.wait_status("running")
    f.qemu.process.kill()
    f.gate.refuse(False)
    v = f.vecycles[0]
    wait_for(lambda: f"process {again.process.pid} has the VM's UUID" in v.log.read_text(), 60,
             "the agent to look")
    assert handovers(f) == ["left", "arriving"]
    assert again.is_running() and not f.dest.is_running()
    again.stop()  # what waits at the destination is older, and its disk has changed since
    wait_for(lambda: "another process had the VM's UUID" in v.log.read_text(), 60, "the agent to look again")
    assert handovers(f) == ["left", "arriving"] and not f.dest.is_running()
    r = f.vecycles[1].run("resolve", f.vm, "--run", "--force", "--socket-dir", f.hosts[1].sockets)
    assert r.returncode == 0 and f.dest.is_running(), r.stderr
    wait_handovers(f, "left", "settled")
    r = v.run("resolve", f.vm, "--discard", "--force")
    assert r.returncode == 0 and handovers(f) == ["settled", "settled"], r.stderr


def test_a_destination_qemu_that_died_after_its_word_was_lost_is_in_doubt(gated):
    """Nobody was connected to it when it died: somebody may have continued it before."""
    f = gated
    word_lost(f)
    f.dest.process.kill()
    f.gate.refuse(False)
    r = retry(f, "--insecure")
    assert r.returncode in (61, 43), r.stderr
    assert f.qemu.status() == "postmigrate" and handovers(f)[0] == "left"
    r = f.vecycles[0].run("resolve", f.vm, "--run")
    assert r.returncode == 61 and "--force" in r.stderr, r.stderr
    assert f.qemu.status() == "postmigrate"
    r = f.vecycles[0].run("resolve", f.vm, "--run", "--force")
    assert r.returncode == 0, r.stderr
    f.still_runs_here()


def test_what_was_continued_here_is_recorded_while_the_other_host_is_away(gated):
    f = gated
    word_lost(f)
    f.qemu.qmp.execute("cont")
    wait_handovers(f, "kept", "arriving")
    f.qemu.process.kill()  # and is gone before the hosts meet
    f.gate.refuse(False)
    wait_handovers(f, "settled", "void")
    assert not f.dest.is_running()


def test_a_vm_that_both_hosts_run_is_told_and_nobody_touches_it(gated):
    f = gated
    word_lost(f, WORD_DONE, DESTINATION)
    assert f.dest.status() == "running"
    f.qemu.qmp.execute("cont")  # by a person
    wait_for(lambda: handovers(f)[0] == "kept", 60, "the source to notice")
    f.gate.refuse(False)
    r = retry(f, "--insecure")
    assert r.returncode in (61, 43), r.stderr
    wait_for(lambda: "stop one" in f.vecycles[0].log.read_text() or "runs there" in r.stderr, 60, "a warning")
    assert handovers(f) == ["kept", "settled"]
    f.qemu.qmp.execute("stop")
    r = f.vecycles[0].run("resolve", f.vm, "--run")
    assert r.returncode == 61, r.stderr
    assert f.qemu.status() == "paused"


def test_a_vm_that_was_continued_here_while_the_answer_was_waited_for_is_kept(gated):
    """Its QEMU has ended when the wait is over: only the event tells."""
    f = gated
    f.gate.hold(WORD, SOURCE)
    p = start(f)
    assert f.gate.is_held.wait(90), p.messages()
    f.qemu.qmp.execute("cont")
    f.qemu.process.kill()
    f.gate.refuse()
    f.gate.cut()
    assert p.wait() == 61, p.messages()
    assert handovers(f)[0] == "kept"
    f.gate.refuse(False)
    wait_handovers(f, "settled", "void")
    assert not f.dest.is_running()


def test_a_vm_that_was_continued_here_while_the_destination_continued_it_is_told(gated):
    f = gated
    f.gate.hold(WORD_DONE, DESTINATION)
    p = start(f)
    assert f.gate.is_held.wait(90), p.messages()
    f.qemu.qmp.execute("cont")  # by a person
    f.gate.release()
    assert p.wait() == 61 and "stop one of the two" in p.messages(), p.messages()
    assert handovers(f) == ["kept", "settled"]


# ---- another migration that QEMU completed ----

def to_a_file(f):
    """As whoever knows nothing of vecycle does it; what a killed agent has left set is put right."""
    f.qemu.qmp.execute("migrate-set-capabilities", capabilities=[{"capability": "return-path", "state": False}])
    f.qemu.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40, downtime_limit=60000)
    f.qemu.qmp.execute("migrate", uri=f"exec:cat >{f.hosts[0].path('saved')}")
    f.qemu.wait_migrated()


def test_a_migration_by_other_means_is_not_taken_for_the_interrupted_one(gated):
    f = gated
    f.gate.hold({SHUT, EOF}, DESTINATION)
    p = start(f)
    assert f.gate.is_held.wait(90), p.messages()
    f.vecycles[0].agent.kill()
    f.gate.cut()
    p.wait()
    wait_for(f.qemu.is_running, 30, "the guest to go on")
    to_a_file(f)
    assert f.qemu.status() == "postmigrate"
    f.vecycles[0].start_agent([f.vecycles[0].address])
    wait_handovers(f, "settled", "void")
    assert f.qemu.status() == "postmigrate" and not f.dest.is_running()


def test_a_vm_that_was_continued_and_migrated_on_after_a_lost_word_stays_in_doubt(gated):
    f = gated
    word_lost(f)
    f.vecycles[0].agent.kill()
    f.qemu.qmp.execute("cont")
    f.guest.wait_passes(2)
    to_a_file(f)
    f.gate.refuse(False)
    f.vecycles[0].start_agent([f.vecycles[0].address])
    r = retry(f, "--insecure")
    assert r.returncode in (61, 43), r.stderr
    assert handovers(f) == ["left", "arriving"] and not f.dest.is_running()
    r = f.vecycles[0].run("resolve", f.vm, "--run")
    assert r.returncode == 61, r.stderr
    assert f.qemu.status() == "postmigrate"


HALTED = b"\xba\xf8\x03\xb0h\xee\xfa\xf4\xeb\xfd"  # "h" to the serial port; cli; hlt, for ever


def boot_halted(f, tmp_path):
    """A guest that does nothing: all its migrations send as many pages."""
    image = tmp_path / "halted.img"
    image.write_bytes((HALTED.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 15, b"\0"))
    f.ram_mib = 64
    f.options = ["-drive", f"file={image},format=raw,if=ide,file.locking=off,snapshot=on"]
    f.qemu = f.new_qemu(0)
    f.qemu.serial.settimeout(90)
    assert f.qemu.serial.recv(1) == b"h"


@pytest.mark.newer_qemu
def test_an_idle_vm_that_was_continued_and_migrated_on_after_a_lost_word_stays_in_doubt(fleet, tmp_path):
    f = fleet(namespaces=False)
    boot_halted(f, tmp_path)
    f.dest = f.incoming(1)
    f.gate = Gate(f.hosts[1].path("gate"), f.vecycles[1].address)
    word_lost(f)
    f.vecycles[0].agent.kill()
    uri = f"unix:{f.hosts[1].path('plain')}"
    third = f.new_qemu(1, uri)
    f.qemu.qmp.execute("cont")
    f.qemu.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40, downtime_limit=300)
    f.qemu.qmp.execute("migrate", uri=uri)
    f.qemu.wait_migrated()
    third.wait_status("running")
    f.gate.refuse(False)
    f.vecycles[0].start_agent([f.vecycles[0].address])
    r = retry(f, "--insecure")
    assert r.returncode == 61 and "completed another migration since" in r.stderr, r.stderr
    assert handovers(f) == ["left", "arriving"]
    assert third.is_running() and not f.dest.is_running() and not f.qemu.is_running()
    f.gate.close()


def test_a_reset_of_the_vm_that_has_left_is_no_sign_that_it_ran(gated):
    f = gated
    word_lost(f, WORD_DONE, DESTINATION)
    f.qemu.qmp.execute("system_reset")
    wait_for(lambda: f.qemu.status() == "prelaunch", 60, "the reset")
    f.vecycles[0].agent.kill()
    f.gate.refuse(False)
    r = retry(f, "--insecure")
    assert r.returncode == 61, r.stderr
    assert f.dest.status() == "running" and not f.qemu.is_running()
    assert handovers(f) == ["left", "settled"]


# ---- whose record it is ----

def restarted_elsewhere(f, tmp_path, machine):
    """The source's agent, after the host was started anew, or its store was copied to another one."""
    yes, why = can_have_own_mounts()
    if not yes:
        pytest.skip(why)
    v = f.vecycles[0]
    v.agent.stop()
    files = {"/proc/sys/kernel/random/boot_id": "11111111-2222-3333-4444-555555555555\n"}
    if machine is not None:
        files["/etc/machine-id"] = machine
    binds = []
    for path, text in files.items():
        file = tmp_path / path.rsplit("/", 1)[1]
        file.write_text(text)
        binds.append((path, file))
    v.wrapper = seeing(*binds)
    v.start_agent([v.address])


@pytest.mark.parametrize("machine", ["0123456789abcdef0123456789abcdef\n", "uninitialized\n"])
def test_a_record_of_another_machine_says_nothing_of_a_qemu(gated, tmp_path, machine):
    """A store was restored, or its host cloned: the other boot id is not that of a later start."""
    f = gated
    word_lost(f)
    f.vecycles[0].agent.stop()
    f.qemu.qmp.execute("cont")  # at the real source, by a person
    place = Elsewhere(f.qemu.qmp_path)
    place.move()  # which is not there on the other machine
    f.gate.refuse(False)
    restarted_elsewhere(f, tmp_path, machine)
    v = f.vecycles[0]
    wait_for(lambda: "another machine" in v.log.read_text(), 60, "the agent to look")
    r = f.hosts[0].run([*v.wrapper, BINARY, "resolve", *v.common(), f.vm, "--retry", "--insecure"])
    assert r.returncode == 61 and "another machine" in r.stderr, r.stderr
    assert handovers(f) == ["left", "arriving"]
    assert f.qemu.is_running() and not f.dest.is_running()
    place.restore()


# ---- hints ----

def test_the_hints_of_resolve_never_make_two_run(gated):
    """The report of success got lost: the source goes on, the destination has all and waits."""
    f = gated
    f.gate.hold({SHUT, EOF}, DESTINATION)
    p = start(f, "--dead-peer", "3")
    assert f.gate.is_held.wait(90), p.messages()
    f.vecycles[0].agent.kill()
    f.gate.refuse()
    f.gate.cut()
    p.wait()
    wait_for(f.qemu.is_running, 60, "the guest to go on")
    f.vecycles[1].agent.kill()
    f.vecycles[1].start_agent([f.vecycles[1].address])
    assert f.dest.status() == "paused" and handovers(f)[1] == "arriving"
    sockets = ["--socket-dir", f.hosts[1].sockets]
    shown = f.vecycles[1].run("resolve", f.vm, *sockets)
    assert shown.returncode == 0 and "--run" not in shown.stdout, shown.stdout
    r = f.vecycles[1].run("resolve", f.vm, "--run", *sockets)
    assert r.returncode == 61 and f.dest.status() == "paused", r.stderr
    f.vecycles[0].start_agent([f.vecycles[0].address])
    f.gate.refuse(False)
    wait_handovers(f, "settled", "void")
    r = f.vecycles[1].run("resolve", f.vm, "--run", "--force", *sockets)
    assert r.returncode != 0
    f.still_runs_here()
    assert not f.dest.is_running()


def test_resolve_says_what_both_hosts_know(gated):
    f = gated
    word_lost(f)
    f.vecycles[0].agent.kill()
    shown = f.vecycles[0].run("resolve", f.vm, "--insecure")
    assert "cannot be asked" in shown.stdout and "postmigrate" in shown.stdout, shown.stdout
    f.gate.refuse(False)
    doubt = f.vecycles[0].json("resolve", f.vm, "--insecure")
    assert doubt["handover"] == "left" and doubt["may_run_there"]
    assert "waits" in doubt["there"] and "'paused'" in doubt["there"], doubt
    assert f.dest.status() == "paused" and handovers(f) == ["left", "arriving"]
    assert retry(f, "--insecure").returncode == 0
    assert f.dest.status() == "running"


def test_a_socket_that_has_moved_can_be_named(gated):
    f = gated
    word_lost(f)
    f.vecycles[0].agent.kill()
    os.rename(f.qemu.qmp_path, f.qemu.qmp_path + ".new")
    f.gate.refuse(False)
    assert retry(f, "--insecure").returncode == 61
    r = retry(f, "--insecure", "--qmp", f.qemu.qmp_path + ".new")
    assert r.returncode == 0, r.stderr
    assert f.dest.status() == "running"


# ---- what is left over, and who else continues ----

def test_a_destination_that_is_left_over_is_told_to_quit_once_the_source_is_seen_to_run(gated):
    f = gated
    f.gate.hold({SHUT, EOF}, DESTINATION)
    p = start(f, "--dead-peer", "3")
    assert f.gate.is_held.wait(90), p.messages()
    assert f.dest.status() == "paused"
    f.gate.cut()
    assert p.wait() == 23, p.messages()
    f.dest.process.wait(60)
    wait_handovers(f, "settled", "void")
    f.still_runs_here()


def test_a_third_party_that_continues_the_vm_at_the_destination_has_it_recorded(gated):
    f = gated
    f.gate.hold(WORD, SOURCE)
    p = start(f)
    assert f.gate.is_held.wait(90), p.messages()
    f.dest.qmp.execute("cont")
    wait_for(lambda: handovers(f)[1] == "about-to-run", 60, "the agent to notice")
    f.gate.release()
    assert p.wait() == 0, p.messages()
    assert handovers(f) == ["settled", "settled"] and f.qemu.status() == "postmigrate"
    f.arrived(1, f.dest)
    f.check_guest()


def test_what_a_third_party_continued_at_the_destination_is_continued_by_nobody_else(gated):
    f = gated
    f.gate.hold({SHUT, EOF}, DESTINATION)
    p = start(f, "--dead-peer", "3")
    assert f.gate.is_held.wait(90), p.messages()
    f.dest.qmp.execute("cont")
    wait_for(lambda: handovers(f)[1] == "about-to-run", 60, "the agent to notice")
    f.dest.qmp.execute("stop")
    f.gate.refuse()
    f.gate.cut()
    assert p.wait() == 23, p.messages()
    assert f.qemu.is_running()
    r = f.vecycles[1].run("resolve", f.vm, "--run")
    assert r.returncode == 61 and "--force" in r.stderr, r.stderr
    assert f.dest.status() == "paused" and f.qemu.is_running()


def test_a_destination_qemu_that_ran_before_it_died_has_not_never_run(gated):
    f = gated
    f.gate.hold(WORD, SOURCE)
    p = start(f)
    assert f.gate.is_held.wait(90), p.messages()
    f.dest.qmp.execute("cont")
    wait_for(lambda: handovers(f)[1] == "about-to-run", 60, "the agent to notice")
    f.dest.process.kill()
    f.gate.release()
    assert p.wait() == 61, p.messages()
    assert f.qemu.status() == "postmigrate"


def test_a_qmp_socket_that_is_relayed_names_no_qemu(gated):
    """The relay is what listens: its end, and that of QEMU, are two things."""
    f = gated
    relay = QmpGate(f.hosts[1].path("relayed.qmp"), f.dest.qmp_path)
    f.gate.hold(WORD, SOURCE)
    p, _ = f.vecycle().start_migrate(f.qemu, f.gate.address, "relayed")
    assert f.gate.is_held.wait(90), p.messages()
    relay.cut()
    relay.close()
    f.gate.release()
    assert p.wait() == 61, p.messages()
    assert f.qemu.status() == "postmigrate" and f.dest.status() == "paused"


# ---- what a person decides is looked at ----

def test_a_vm_that_is_continued_while_the_peer_says_hello_is_not_given_away(gated):
    """The look comes after the peer's HELLO, right before the decision."""
    f = gated
    word_lost(f)
    f.vecycles[0].agent.kill()
    f.gate.hold(HELLO, DESTINATION)
    f.gate.refuse(False)
    v = f.vecycles[0]
    p = f.hosts[0].start([BINARY, "resolve", *v.common(), f.vm, "--retry", "--insecure"],
                         log=f.hosts[0].dir / "retry.log")
    assert f.gate.is_held.wait(60)
    f.qemu.qmp.execute("cont")
    f.gate.release()
    assert p.wait() == 0, p.messages()
    wait_handovers(f, "settled", "void")
    assert f.qemu.is_running() and not f.dest.is_running()


def test_another_migration_that_completes_meanwhile_is_not_taken_for_this_one(gated):
    """An operator cancels it in QEMU and at once migrates the VM to a third host, by plain QEMU, while
    the destination's report of success is on its way."""
    f = gated
    uri = f"unix:{f.hosts[1].path('plain')}"
    third = f.new_qemu(1, uri)
    f.gate.hold(SHUT, DESTINATION)
    p = start(f)
    assert f.gate.is_held.wait(90), p.messages()
    f.qemu.qmp.execute("migrate_cancel")

    def migrates():
        try:
            f.qemu.qmp.execute("migrate", uri=uri)
        except QmpError:  # until it is cancelled
            return False
        return True
    wait_for(migrates, 30, "the other migration to begin", step=0.002)
    f.qemu.wait_migrated()
    assert p.wait() == 60, p.messages()
    f.gate.release()
    wait_for(lambda: handovers(f)[0] in ("kept", "settled"), 60, "the record to say so")
    assert handovers(f)[1] in ("arriving", "void")
    assert third.is_running() and not f.dest.is_running() and not f.qemu.is_running()


def test_a_vm_that_was_kept_and_paused_since_is_continued_by_run(gated):
    f = gated
    f.gate.hold({SHUT, EOF}, DESTINATION)
    p = start(f, "--dead-peer", "3")
    assert f.gate.is_held.wait(90), p.messages()
    f.gate.refuse()
    f.gate.cut()
    assert p.wait() == 23, p.messages()
    wait_for(lambda: handovers(f)[0] == "kept", 60, "the record")
    f.qemu.qmp.execute("stop")
    r = f.vecycles[0].run("resolve", f.vm, "--run")
    assert r.returncode == 0 and f.qemu.is_running(), r.stderr
    assert not f.dest.is_running()


@pytest.mark.parametrize("since", ["ended", "paused", "shutdown"])
def test_what_may_have_run_is_discarded_by_force_alone(gated, since):
    """Without --discard the source continues its own, which is older if this one has run."""
    f = gated
    word_lost(f)
    f.dest.qmp.execute("cont")
    f.dest.wait_status("running")
    if since == "ended":
        f.dest.process.kill()
    elif since == "paused":
        f.dest.qmp.execute("stop")
    else:
        f.dest.qmp.execute("set-action", shutdown="pause")
        f.guest.attach(f.dest)
        f.guest.tell(f.guest.POWER_OFF)
        f.dest.wait_status("shutdown")
    r = f.vecycles[1].run("resolve", f.vm, "--discard", "--socket-dir", f.hosts[1].sockets)
    assert r.returncode == 61, r.stderr
    assert handovers(f) == ["left", "arriving"]


def test_a_copy_that_runs_is_not_discarded(gated):
    f = gated
    word_lost(f)
    f.dest.qmp.execute("cont")
    r = f.vecycles[1].run("resolve", f.vm, "--discard", "--socket-dir", f.hosts[1].sockets)
    assert r.returncode == 61, r.stderr
    f.gate.refuse(False)
    wait_handovers(f, "settled", "settled")
    assert f.qemu.status() == "postmigrate" and f.dest.is_running()


def test_a_decision_that_cannot_be_carried_out_leaves_the_record_as_it_was(gated):
    f = gated
    word_lost(f)
    f.vecycles[0].agent.kill()
    f.qemu.qmp.execute("system_reset")
    wait_for(lambda: f.qemu.status() == "prelaunch", 60, "the reset")
    r = f.vecycles[0].run("resolve", f.vm, "--run", "--force")
    assert r.returncode == 12 and "prelaunch" in r.stderr, r.stderr
    assert handovers(f) == ["left", "arriving"]


def test_a_vm_whose_arrival_is_in_doubt_is_not_migrated_on(gated):
    f = gated
    word_lost(f)
    back = f.incoming(0)
    r = f.vecycles[1].migrate(f.dest, f.vecycles[0].address, back.name, ok=False)
    assert r["status"] == 61, r
    assert handovers(f) == ["left", "arriving"]
    f.gate.refuse(False)
    wait_handovers(f, "settled", "settled")


def test_a_record_that_is_open_is_not_removed(gated):
    f = gated
    f.gate.hold(BATCH, SOURCE)
    p = start(f)
    assert f.gate.is_held.wait(60), p.messages()
    f.vecycles[0].agent.kill()
    f.gate.cut()
    p.wait()
    assert f.vecycles[0].run("rm", f.vm).returncode == 61
    assert f.vecycles[0].run("rm", f.vm, "--force").returncode == 0
