# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two stock libvirtd as two hosts; `virsh migrate` there and back through vecycle."""
import json
import shutil
import tempfile

import pytest
from vctest.guest import LinuxGuest
from vctest.libvirt import Console, LibvirtHost, available, domain_xml
from vctest.qemu import new_uuid
from vctest.vecycle import Vecycle

SOCKET = "/run/vecycle/vm1.sock"


@pytest.fixture
def libvirt_hosts():
    ok, why = available()
    if not ok:
        pytest.skip(why)
    directory = tempfile.mkdtemp(prefix="vecycle-test-")
    hosts = []
    try:
        for name in "a", "b":
            hosts.append(LibvirtHost(directory, name))
        yield hosts
    finally:
        for h in hosts:
            h.stop()
        shutil.rmtree(directory, ignore_errors=True)


def virsh_migrate(source, dest, vm, guest):
    p, out = source.vecycle.start_proxy(SOCKET, vm, dest.vecycle.address, "vm1")
    r = source.virsh("migrate", "--live", "--p2p", "vm1", dest.uri(), "--migrateuri",
                     f"unix://{SOCKET}")
    assert r.returncode == 0, r.stderr + p.messages()
    assert p.wait() == 0, p.messages()
    assert dest.virsh("domstate", "vm1").stdout.strip() == "running"
    assert "vm1" not in source.virsh("list", "--name").stdout.split()
    guest.attach(Console(dest, "vm1"))
    return json.loads(out.read_text())


def test_virsh_migrates_there_and_back_with_reuse(libvirt_hosts):
    a, b = libvirt_hosts
    for h in libvirt_hosts:
        h.vecycle = Vecycle(h)
    vm = new_uuid()
    xml = a.dir / "vm1.xml"
    xml.write_text(domain_xml("vm1", vm, 192))
    r = a.virsh("create", str(xml))
    assert r.returncode == 0, r.stderr
    guest = LinuxGuest(Console(a, "vm1"))
    guest.wait_ready()
    guest.command("fill 50 3")
    out = virsh_migrate(a, b, vm, guest)
    assert out["confirmed"] and out["pages"]["data"] > 12000
    guest.command("check")
    back = virsh_migrate(b, a, vm, guest)
    assert back["base"] == 1 and back["confirmed"]
    assert back["wire_bytes"] < out["wire_bytes"] / 50
    guest.command("check")
