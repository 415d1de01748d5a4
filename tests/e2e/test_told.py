# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is told is true, and helps: rates, causes, what is kept and where."""
import json
import os
import pty
import re
import shutil
import subprocess
import tempfile

import pytest
from vctest.vecycle import BINARY

MIB = 1 << 20
LOOKS_LIKE_DAMAGE = ("seal", "damage", "corrupt", "trusted", "differs")
NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "env",
          "HOME=/nonexistent", "XDG_DATA_HOME="]


def says_nothing_of_damage(f, result):
    told = result["messages"] + "".join(v.log.read_text() for v in f.vecycles)
    for word in LOOKS_LIKE_DAMAGE:
        assert word not in told, told


def restart(v, *extra):
    v.agent.stop()
    v.start_agent([v.address], extra)


@pytest.mark.parametrize("how", ["policy", "limit", "reserve"])
def test_a_destination_that_keeps_nothing_is_no_damage(fleet, how):
    f = fleet(namespaces=False)
    home, away = f.vecycles
    restart(away, *{"policy": [], "limit": ["--store-limit", "1M"], "reserve": ["--reserve", "1000T"]}[how])
    f.boot_linux(128, 30)
    if how == "policy":
        assert away.run("policy", f.vm, "never").returncode == 0
    f.guest.command("dirty 16 20")  # so that pages are sent again and again
    r = f.migrate(1, ["--max-bandwidth", "60M"])
    assert not r["confirmed"] and r["rounds"] > 1
    says_nothing_of_damage(f, r)
    if how == "policy":
        assert "vecycle:" not in r["messages"] and r["resent_batches"] == 0
    f.check_guest()


def test_gc_and_ls_know_the_agents_store_and_limits(fleet):
    f = fleet(namespaces=False)
    home = f.vecycles[0]
    restart(home, "--quota", "900M", "--reserve", "3M", "--max-age", "3d")
    f.boot_linux(128, 30)
    f.migrate(1)

    def run(*argv):
        r = f.hosts[0].run([BINARY, argv[0], "--control", home.control, *argv[1:]])
        assert r.returncode == 0, r.stderr
        return r.stdout

    for store in [], ["--store", home.store]:
        told = json.loads(run("gc", "--dry-run", "--json", *store))
        assert told["quota_bytes"] == 900 * MIB and told["reserve_bytes"] == 3 * MIB
        assert told["n_vms"] == 1
        assert json.loads(run("gc", "--dry-run", "--json", "--quota", "1M", *store))["n_forgotten"] == 1
        assert [vm["vm"] for vm in json.loads(run("ls", "--json", *store))] == [f.vm]
        assert f.vm in run("ls", *store) and "of 900 MiB used" in run("ls", *store)
    assert home.json("ls", "--control", "none"), "a store that is named needs no agent"


def test_whoever_may_not_use_the_agents_store_is_told(fleet):
    if os.geteuid() != 0:
        pytest.skip("being another user needs root")
    f = fleet(namespaces=False)
    v = f.vecycles[0]
    where = tempfile.mkdtemp()  # others cannot look into the host's directory, nor perhaps ours
    os.chmod(where, 0o755)
    program = shutil.copy(BINARY, where)
    vm = "00000000-0000-0000-0000-000000000001"
    for command in (["ls"], ["gc"], ["show", vm], ["verify", vm], ["rm", vm], ["policy", vm],
                    ["policy", vm, "never"], ["resolve", vm], ["resolve", "--run", vm]):
        for store in [], ["--store", v.store]:
            r = f.hosts[0].run([*NOBODY, program, *command, *store, "--control", v.control])
            assert r.returncode == 24, (command, store, r.stdout, r.stderr)
            assert "no access to" in r.stderr or "cannot open the store" in r.stderr
            assert r.stderr.count("\n") == 1, r.stderr
            assert not r.stdout
    shutil.rmtree(where)


def rates(text):
    units = {"B": 1, "KiB": 1 << 10, "MiB": MIB, "GiB": 1 << 30}
    return [float(n) * units[unit] for n, unit in re.findall(r"([\d.]+) (\w+)/s", text)]


def test_the_rate_on_the_progress_line_is_that_of_the_link(fleet, namespaces):
    f = fleet(rate="100mbit")
    f.boot_linux(256, 120)
    dest = f.incoming(1)
    argv = [a for a in f.vecycle().migrate_argv(f.qemu, f.vecycles[1].address, dest.name) if a != "--json"]
    ours, theirs = pty.openpty()
    p = subprocess.Popen(f.hosts[0].argv(argv), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                         stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:
        pass  # it has ended
    os.close(ours)
    assert p.wait(120) == 0
    f.arrived(1, dest)
    f.check_guest()
    seen = rates(shown.decode())
    assert max(seen) > 1 * MIB, shown
    assert max(seen) < 1.1 * 100e6 / 8, shown
    assert b"\n" not in shown.replace(b"\r\n", b"") and b"\x1b" not in shown


@pytest.mark.parametrize("command, word", [("migrate", "DESTINATION"), ("show", "UUID"),
                                           ("rm", "UUID"), ("policy", "UUID"), ("resolve", "UUID")])
def test_what_is_missing_is_named(command, word):
    r = subprocess.run([BINARY, command], capture_output=True, text=True)
    assert r.returncode == 2
    assert f"{word} is missing" in r.stderr and r.stderr.count("\n") == 1
