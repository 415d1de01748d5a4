# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store forgets by itself, and trouble with it costs reuse and no migration."""
import os

import pytest
from vctest.proc import wait_for
from vctest.vecycle import BINARY


def restart(v, *extra):
    v.agent.stop()
    v.start_agent([v.address], extra)


def gc(v, *extra):
    return v.json("gc", *extra)


def at_home(fleet, **kw):
    """A VM that has left its first host, where a checkpoint of it is now."""
    f = fleet(namespaces=False, **kw)
    f.boot_linux(192, 30)
    assert f.migrate(1)["confirmed"]
    return f, f.vecycles[0]


def test_gc_forgets_what_is_over_the_quota_and_the_vm_comes_home_all_the_same(fleet):
    f, home = at_home(fleet)
    assert gc(home)["n_forgotten"] == 0, "nothing is over the defaults"
    told = gc(home, "--quota", "1M", "--dry-run")
    assert [x["vm"] for x in told["forgotten"]] == [f.vm]
    assert told["forgotten"][0]["why"] == "quota"
    assert told["forgotten_bytes"] > 20 << 20
    assert home.json("show", f.vm)["n_generations"] == 1, "a dry run changes nothing"
    assert gc(home, "--quota", "1M")["n_forgotten"] == 1
    assert home.json("ls") == []
    assert not [p for p in home.store.rglob("*") if p.suffix in (".image", ".delta", ".index")]
    back = f.migrate(0)
    assert back["base"] == 0 and back["confirmed"]
    f.check_guest()


def test_the_text_of_gc_and_policy(fleet):
    f, home = at_home(fleet)
    r = home.run("gc", "--quota", "1M", "--dry-run")
    assert r.returncode == 0
    assert f.vm in r.stdout and "would forget 1 of 1 VMs" in r.stdout
    assert home.run("policy", f.vm).stdout == "normal\n"
    assert home.run("policy", f.vm, "pinned").returncode == 0
    assert home.run("policy", f.vm).stdout == "pinned\n"
    assert "pinned" in home.run("ls").stdout
    assert home.json("show", f.vm)["policy"] == "pinned"
    for bad, status in (["gc", "--quota", "much"], 2), (["gc", "--quota", "10"], 2), (["gc", "--max-age", "old"], 2), \
            (["policy", f.vm, "perhaps"], 2), (["policy", "vm1"], 30), (["policy"], 2):
        r = home.run(*bad)
        assert r.returncode == status and r.stderr, bad


def test_a_pinned_checkpoint_stays_and_serves(fleet):
    f, home = at_home(fleet)
    assert home.run("policy", f.vm, "pinned").returncode == 0
    r = gc(home, "--quota", "1M")
    assert r["n_forgotten"] == 0 and r["over"]
    assert f.migrate(0)["base"] == 1


def test_a_checkpoint_expires(fleet):
    f, home = at_home(fleet)
    assert gc(home, "--max-age", "never")["n_forgotten"] == 0
    wait_for(lambda: gc(home, "--max-age", "1s")["n_forgotten"] == 1, 20, "a second to pass")
    assert home.json("ls") == []


def test_a_vm_that_is_never_kept_leaves_no_checkpoint(fleet):
    f = fleet(namespaces=False)
    f.boot_linux(192, 30)
    home, away = f.vecycles
    for v in f.vecycles:
        assert v.run("policy", f.vm, "never").returncode == 0
    for to in 1, 0:
        r = f.migrate(to)
        assert r["base"] == 0 and not r["committed"]
    f.check_guest()
    for v in f.vecycles:
        assert not [p for p in v.store.rglob("*") if p.suffix in (".image", ".delta", ".index")]
    # One that is there goes when the policy changes.
    assert home.run("policy", f.vm, "normal").returncode == 0
    f.migrate(1)
    assert home.json("show", f.vm)["n_generations"] == 1
    assert home.run("policy", f.vm, "never").returncode == 0
    wait_for(lambda: home.run("show", f.vm).returncode == 30 or
             home.json("show", f.vm)["n_generations"] == 0, 20, "the checkpoint to go")


def test_the_agent_forgets_by_itself(fleet):
    f = fleet(namespaces=False)
    for v in f.vecycles:
        restart(v, "--quota", "1M")
    f.boot_linux(192, 30)
    r = f.migrate(1)
    assert not r["committed"] and not r["confirmed"], "what is over the quota is not told as kept"
    for v in f.vecycles:
        wait_for(lambda: v.json("ls") == [], 30, "the agent to forget")
        assert "the limits of the store" in v.log.read_text()
        assert "forgotten (quota)" in v.log.read_text()
    assert f.migrate(0)["base"] == 0
    f.check_guest()


def test_the_reserve_costs_the_checkpoint_and_not_the_migration(fleet):
    f = fleet(namespaces=False)
    restart(f.vecycles[1], "--reserve", "1000T")
    f.boot_linux(192, 20)
    r = f.migrate(1)
    assert r["committed"] and not r["confirmed"], "the source keeps one"
    f.check_guest()
    assert "reserve" in f.vecycles[1].log.read_text()


class SmallStore:
    """An agent whose store is a file system of its own, in a mount namespace that ends with it."""

    def __init__(self, v, size, extra=()):
        v.agent.stop()
        v.store.mkdir(exist_ok=True)
        for p in sorted(v.store.rglob("*"), reverse=True):
            p.rmdir() if p.is_dir() else p.unlink()
        v.log = v.host.dir / "small.log"
        script = f"mount -t tmpfs -o size={size},mode=700 none '{v.store}' && exec \"$@\""
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", BINARY,
                "serve", *v.common(), "--socket-dir", v.host.sockets, "--insecure", "--listen",
                v.address, *extra]
        v.agent = v.host.start(argv, log=v.log)
        wait_for(lambda: not v.agent.alive() or "vecycle: ready" in v.log.read_text(), 20, "it")
        assert v.agent.alive(), v.log.read_text()
        self.root = f"/proc/{v.agent.pid}/root{v.store}"

    def fill(self):
        """Leaves no byte."""
        with open(f"{self.root}/ballast", "wb", buffering=0) as out:
            try:
                while True:
                    out.write(bytes(4096))
            except OSError:
                pass


def needs_mounts():
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")


@pytest.mark.parametrize("where", [0, 1], ids=["source", "destination"])
def test_a_disk_that_fills_up_in_the_middle(fleet, where):
    needs_mounts()
    f = fleet(namespaces=False)
    SmallStore(f.vecycles[where], "24m", ["--reserve", "0"])
    f.boot_linux(192, 60)
    r = f.migrate(1)
    assert not r["confirmed"]
    f.check_guest()
    assert "No space left" in f.vecycles[where].log.read_text()
    # And back: the other host's checkpoint may serve, nobody's VM is lost.
    f.migrate(0)
    f.check_guest()


@pytest.mark.parametrize("where", [0, 1], ids=["source", "destination"])
def test_a_disk_without_a_byte_left(fleet, where):
    needs_mounts()
    f = fleet(namespaces=False)
    small = SmallStore(f.vecycles[where], "1m", ["--reserve", "0"])
    small.fill()
    f.boot_linux(192, 20)
    r = f.migrate(1)
    assert not r["confirmed"]
    f.check_guest()
    log = f.vecycles[where].log.read_text()
    assert "warning" in log and "No space left" in log


@pytest.mark.parametrize("where", [0, 1], ids=["source", "destination"])
def test_a_store_that_breaks_while_the_agent_runs(fleet, where):
    f = fleet(namespaces=False)
    f.boot_linux(192, 20)
    # In the place of the VM's directory there is a file.
    (f.vecycles[where].store / "vms" / f.vm).write_text("no directory")
    r = f.migrate(1)
    f.check_guest()
    # It is taken away, and the VM has a directory again.
    assert r["confirmed"] and (f.vecycles[where].store / "vms" / f.vm).is_dir()


def test_without_a_default_store_a_migration_goes_on_and_says_so(fleet):
    f = fleet(namespaces=False)
    f.vecycles[0].agent.stop()
    f.boot_linux(192, 20)
    dest = f.incoming(1)
    blocked = f.hosts[0].dir / "blocked"
    blocked.write_text("a file")
    # An ordinary user's default is beneath XDG_DATA_HOME.
    argv = ["env", f"XDG_DATA_HOME={blocked}", BINARY, "migrate", "--control", "none", "--qmp",
            f.qemu.qmp_path, "--name", dest.name, f.vecycles[1].address]
    if os.geteuid() == 0:
        script = f"mount --bind '{blocked}' /var/lib/vecycle 2>/dev/null || " \
                 f"{{ mount -t tmpfs -o size=1m none /var/lib && touch /var/lib/vecycle; }}; " \
                 "exec \"$@\""
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *argv]
    r = f.hosts[0].run(argv)
    assert r.returncode == 0, r.stderr
    assert "warning" in r.stderr and "the store cannot be opened" in r.stderr
    f.arrived(1, dest)
    f.check_guest()
