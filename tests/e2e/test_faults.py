# SPDX-License-Identifier: LGPL-2.1-or-later
"""Damage, lost words, other users: what must not cost a VM."""
import os
import pwd
import random
import stat

import pytest
from vctest.proc import wait_for
from vctest.relay import FrameCutter
from vctest.vecycle import BINARY

WORD, WORD_DONE = 33, 34


def layers(vecycle, vm):
    return [p for p in (vecycle.store).rglob("*") if p.suffix in (".image", ".delta")
            and vm in str(p)]


def damage(vecycle, vm, places=20):
    """Flips bytes all over the files that hold pages."""
    rng = random.Random(7)
    files = layers(vecycle, vm)
    assert files, "the store has no files with pages"
    for path in files:
        size = path.stat().st_size
        with open(path, "r+b") as f:
            done = 0
            while done < places:
                offset = rng.randrange(size // 4096) * 4096 + 17
                f.seek(offset)
                byte = f.read(1)
                if byte in (b"\0", b""):  # a hole, most likely: zero pages are not held
                    continue
                f.seek(offset)
                f.write(bytes([byte[0] ^ 0x55]))
                done += 1


def test_damaged_pages_are_fetched_from_the_source(fleet):
    f = fleet()
    f.boot_linux(192, 60)
    f.migrate(1)
    damage(f.vecycles[0], f.vm)
    r = f.vecycles[0].run("verify", f.vm)
    assert r.returncode == 42 and "damaged" in r.stderr
    back = f.migrate(0)
    assert back["confirmed"]
    f.check_guest()
    assert f.vecycles[0].json("verify", f.vm)["bad_pages"] == 0, "damaged pages were kept"


@pytest.mark.parametrize("kind", ["truncated", "garbled"])
def test_a_damaged_index_costs_reuse_and_nothing_else(fleet, kind):
    f = fleet()
    f.boot_linux(192, 40)
    f.migrate(1)
    [index] = [p for p in f.vecycles[0].store.rglob("*.index")]
    if kind == "truncated":
        os.truncate(index, index.stat().st_size // 2)
    else:
        with open(index, "r+b") as fd:
            fd.seek(index.stat().st_size // 2)
            fd.write(b"garbage")
    shown = f.vecycles[0].run("show", f.vm)
    assert shown.returncode == 42 and len(shown.stderr.strip().splitlines()) == 1
    back = f.migrate(0)
    assert back["base"] == 0 and back["confirmed"]
    f.check_guest()


@pytest.mark.parametrize("frame,from_source,runs_there", [(WORD, True, False),
                                                          (WORD_DONE, False, True)])
def test_a_lost_word_is_settled_by_retry(fleet, frame, from_source, runs_there):
    f = fleet(namespaces=False)
    f.boot_linux(192, 20)
    dest = f.incoming(1)
    address = f.vecycles[1].address
    link = f.hosts[1].path("link")
    cutter = FrameCutter(link, address.removeprefix("unix:"), frame, from_source)
    r = f.vecycle().migrate(f.qemu, f"unix:{link}", dest.name, ok=False)
    cutter.close()
    assert cutter.was_cut.is_set()
    assert r["status"] == 61, r["messages"]
    assert f.qemu.status() == "postmigrate"
    assert dest.status() == ("running" if runs_there else "paused"), "nobody runs on a guess"
    shown = f.vecycle().run("resolve", f.vm)
    assert "left" in shown.stdout
    # The destination may still be clearing up the session that broke.
    wait_for(lambda: f.vecycle().run("resolve", f.vm, "--retry", "--to", address).returncode == 0,
             20, "the word to be given")
    assert dest.status() == "running"
    for v in f.vecycles:
        assert v.json("show", f.vm)["handover"] == "settled"
    f.arrived(1, dest)
    f.check_guest()


def test_an_unsettled_vm_is_not_migrated_again(fleet):
    f = fleet(namespaces=False)
    f.boot_linux(192, 20)
    dest = f.incoming(1)
    link = f.hosts[1].path("link")
    cutter = FrameCutter(link, f.vecycles[1].address.removeprefix("unix:"), WORD)
    assert f.vecycle().migrate(f.qemu, f"unix:{link}", dest.name, ok=False)["status"] == 61
    cutter.close()
    # A person decides that it is to run here.
    f.qemu.qmp.execute("cont")
    dest.stop()
    dest = f.incoming(1)
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, dest.name, ok=False)
    assert r["status"] == 61 and "resolve" in r["messages"]
    assert f.vecycle().run("resolve", f.vm, "--run", "--force").returncode == 0
    f.still_runs_here()
    f.qemu.qmp.execute("query-status")
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, dest.name)
    assert r["confirmed"]


FAKE_SSH = """#!/bin/sh
# ssh [options] HOST COMMAND: runs COMMAND as another user.
while [ $# -gt 2 ]; do shift; done
exec setpriv --reuid=nobody --regid={gid} --clear-groups env SSH_CONNECTION='192.0.2.7 1 2 3' \\
    sh -c "$2"
"""


def test_home_through_ssh_as_another_user(fleet):
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    f = fleet(namespaces=False)
    home, away = f.vecycles
    # The agent at home lets a group use its control socket; whoever comes by ssh is in it.
    home.agent.stop()
    gid = pwd.getpwnam("nobody").pw_gid
    import grp
    home.start_agent([home.address], ["--control-group", grp.getgrgid(gid).gr_name])
    for d in [f.hosts[0].sockets, *f.hosts[0].sockets.parents]:
        if str(d).startswith(f.network.dir):
            os.chmod(d, 0o755)
    f.boot_linux(192, 40)
    f.migrate(1)
    ssh = f.hosts[1].dir / "fake-ssh"
    ssh.write_text(FAKE_SSH.format(gid=gid))
    ssh.chmod(ssh.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    dest = f.incoming(0)
    r = away.migrate(f.qemu, "ssh://home", dest.name,
                     ["--ssh", str(ssh), "--remote",
                      f"{BINARY} recv --control {home.control}"])
    # The way out was a Unix socket: neither lineage is exposed, so the checkpoint serves.
    assert r["base"] == 1 and r["confirmed"], r
    f.arrived(0, dest)
    f.check_guest()
    assert "ssh from 192.0.2.7" in home.json("show", f.vm)["peer"]


def test_what_crossed_in_the_clear_is_not_reused_in_secret(fleet, namespaces):
    """An exposed lineage is left by the first secure session."""
    f = fleet()
    f.boot_linux(192, 20)
    f.migrate(1)
    assert f.vecycles[0].json("show", f.vm)["exposed"]
    dest = f.incoming(0)
    # The network namespaces do not separate the file system: a Unix socket is a local connection.
    home = f.vecycles[0]
    home.agent.stop()
    local = f"unix:{f.hosts[0].path('local')}"
    home.start_agent([home.address, local])
    r = f.vecycle().migrate(f.qemu, local, dest.name)
    assert r["base"] == 0 and r["confirmed"]
    assert not home.json("show", f.vm)["exposed"]
    f.arrived(0, dest)
    f.check_guest()


def test_a_full_store_costs_the_checkpoint_and_not_the_migration(fleet):
    f = fleet()
    for v in f.vecycles:
        v.agent.stop()
        v.start_agent([v.address], ["--store-limit", "64M"])
    f.boot_linux(192, 20)
    r = f.migrate(1)
    assert not r["committed"] and not r["confirmed"]
    f.check_guest()
    assert "limit" in f.vecycles[0].log.read_text()


def test_without_an_agent_the_source_opens_the_store_itself(fleet):
    f = fleet(namespaces=False)
    f.boot_linux(192, 40)
    f.vecycles[0].agent.stop()
    f.vecycles[0].control = "none"
    r = f.migrate(1)
    assert r["confirmed"]
    assert f.vecycles[0].json("show", f.vm)["role"] == "source"


def test_the_store_is_folded_in_the_background(fleet):
    f = fleet()
    f.boot_linux(192, 40)
    for to in 1, 0, 1:
        f.migrate(to)
        f.guest.command("rewrite 5")
    for v in f.vecycles:
        wait_for(lambda: v.json("show", f.vm)["layers"] == 1, 30, "the checkpoint to be one file")
        assert v.json("verify", f.vm)["bad_pages"] == 0
    r = f.migrate(0)
    assert r["base"] == 1 and r["pages"]["same"] > r["pages"]["data"]
    f.check_guest()


def test_a_killed_agent_leaves_a_store_that_opens(fleet, namespaces):
    f = fleet(rate="100mbit")
    f.boot_linux(192, 60)
    f.network.set_rate("2gbit")
    f.migrate(1)
    f.guest.command("rewrite 50")
    f.network.set_rate("50mbit")
    dest = f.incoming(0)
    p, _ = f.vecycle().start_migrate(f.qemu, f.vecycles[0].address, dest.name)
    wait_for(lambda: f.qemu.qmp.execute("query-migrate").get("ram", {}).get("transferred", 0)
             > 8 << 20, 30, "the migration to be under way")
    for v in f.vecycles:
        v.agent.kill()
    p.wait()
    f.still_runs_here()
    for v in f.vecycles:
        assert v.json("verify", f.vm)["bad_pages"] == 0
        v.start_agent([v.address])
    f.network.set_rate("2gbit")
    r = f.migrate(0)
    # The earlier checkpoint is still there, and shared; or what had arrived, with it beneath.
    assert r["base"] in (1, 2) and r["pages"]["same"] > r["pages"]["data"]
    f.check_guest()


