# SPDX-License-Identifier: LGPL-2.1-or-later
"""The boot sector does what it is told, and the helpers that stand for odd hosts do what they say:
other tests build on that."""
import errno
import os
import socket

import pytest
from vctest.elsewhere import Elsewhere, OWN_MOUNTS, can_have_own_mounts, hide, show
from vctest.guest import SelfCheck
from vctest.proc import wait_for
from vctest.qemu import Qemu, new_uuid

PAUSES = ["-action", "panic=pause,shutdown=pause,reboot=reset", "-device", "pvpanic"]


@pytest.fixture
def f(fleet):
    f = fleet(1, namespaces=False, agents=False)
    f.boot_selfcheck(end_mib=2, delay=2000, extra=PAUSES, disk=True)
    return f


@pytest.mark.parametrize("letter,status", [(SelfCheck.POWER_OFF, "shutdown"),
                                           (SelfCheck.PANIC, "guest-panicked"),
                                           (SelfCheck.SUSPEND, "suspended")],
                         ids=["power-off", "panic", "suspend"])
def test_the_guest_stops_as_it_is_told(f, letter, status):
    f.guest.tell(letter)
    f.qemu.wait_status(status)


def test_the_guest_boots_anew_when_it_is_told(f):
    f.guest.boots = 2
    f.guest.tell(f.guest.RESET)
    wait_for(lambda: f.guest.poll(0.1) and f.guest.starts == 2, 60, "the guest to boot again")
    f.guest.wait_passes(2)


def test_the_guest_writes_and_rests(f):
    f.guest.tell(f.guest.WRITE)
    f.guest.wait_writes(5)
    f.guest.tell(f.guest.WRITE_NO_MORE)
    f.guest.wait_passes(2)
    writes = f.guest.writes
    f.guest.wait_passes(3)
    assert f.guest.writes == writes and not f.guest.errors
    f.guest.tell(f.guest.REST + f.guest.GO_ON)
    f.guest.wait_passes(1)


def test_a_guest_without_a_disk_says_so(fleet):
    f = fleet(1, namespaces=False, agents=False)
    f.boot_selfcheck(end_mib=2, delay=2000)
    f.guest.tell(f.guest.WRITE)
    wait_for(lambda: f.guest.poll(0.1) and f.guest.errors, 60, "an error of the disk")


def test_only_one_qemu_has_a_shared_disk(f):
    other = f.hosts[0].start([*f.qemu.process.argv[:1], "-machine", "none", "-display", "none", "-drive",
                              f"file={f.disk},format=qcow2,if=none"], log=f.hosts[0].dir / "other.log")
    assert other.wait() != 0 and "lock" in other.messages()


def what_connects(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.setblocking(False)
        return errno.errorcode.get(s.connect_ex(path), "connected")


def test_a_qmp_socket_is_elsewhere_and_comes_back(f):
    path = f.qemu.qmp_path
    e = Elsewhere(path)
    e.move()
    assert what_connects(path) == "ENOENT" and what_connects(e.aside) == "connected"
    e.refuse()
    assert what_connects(path) == "ECONNREFUSED"
    e.fill()
    assert what_connects(path) == "EAGAIN"
    e.silence()
    assert what_connects(path) == "connected"
    other = Qemu(f.hosts[0], "other", 16, new_uuid())
    e.replace(other.qmp_path)
    assert what_connects(path) == "connected" and not os.path.exists(other.qmp_path)
    e.restore()
    assert {p for p in os.listdir(f.hosts[0].sockets) if ".qmp" in p} == \
        {os.path.basename(path), "other.qmp"}
    assert f.qemu.status() == "running"


def test_a_directory_is_hidden_from_one_process_alone(f):
    ok, why = can_have_own_mounts()
    if not ok:
        pytest.skip(why)
    directory, path = f.hosts[0].sockets, f.qemu.qmp_path
    p = f.hosts[0].start([*OWN_MOUNTS, "sleep", "infinity"])
    seen = f"/proc/{p.pid}/root{path}"
    wait_for(lambda: os.readlink(f"/proc/{p.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"), 30,
             "the process to have its own mounts")
    hide(p, directory)
    assert os.path.exists(path) and not os.path.exists(seen)
    show(p, directory)
    assert os.path.exists(seen)
