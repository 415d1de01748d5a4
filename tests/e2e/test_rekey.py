# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vecycle rekey`, on real QEMU: a key that a third host may know is worth nothing afterwards, and the
next return is as cheap as without."""
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess

import pytest
import vcstore
from test_tls import Secure
from vctest.preload import compile_shim
from vctest.proc import wait_for
from vctest.relay import FrameCutter
from vctest.vecycle import BINARY


def key_of(v, vm):
    return vcstore.read_manifest(v.store / "vms" / vm / "manifest").key


def lineage_of(v, vm):
    return vcstore.read_manifest(v.store / "vms" / vm / "manifest").lineage


def is_anywhere(v, secret):
    return [p for p in v.store.rglob("*") if p.is_file() and secret in p.read_bytes()]


def there_and_back(fleet, **kw):
    """A VM at its first host; both hosts hold what it was when it came back there."""
    f = fleet(namespaces=False, **kw)
    f.boot_linux(192, 60)
    assert f.migrate(1)["confirmed"]
    assert f.migrate(0)["confirmed"]
    return f


def same_on_both(f):
    a, b = (v.json("show", f.vm) for v in f.vecycles[:2])
    return a["generation"] == b["generation"] and a["root"] == b["root"] and a["confirmed"] and b["confirmed"]


def rekey(v, *argv, status=0):
    r = v.run("rekey", *argv)
    assert r.returncode == status, r.stderr
    return r


def test_both_hosts_have_another_key_and_the_return_is_as_cheap(fleet):
    f = there_and_back(fleet)
    cheap = f.migrate(1)["wire_bytes"]
    before = [(key_of(v, f.vm), lineage_of(v, f.vm)) for v in f.vecycles]
    assert before[0] == before[1]
    held = f.vecycles[0].json("show", f.vm)["held_pages"]
    done = f.vecycles[0].json("rekey", f.vm)  # it called the other, and knows where that is
    assert done[0]["confirmed"] and done[0]["dropped_pages"] == 0 and done[0]["pages"] > 10000
    after = [(key_of(v, f.vm), lineage_of(v, f.vm)) for v in f.vecycles]
    assert after[0] == after[1] and after[0][0] != before[0][0] and after[0][1] != before[0][1]
    assert same_on_both(f)
    assert f.vecycles[0].json("show", f.vm)["held_pages"] == held
    for v in f.vecycles:
        assert not is_anywhere(v, before[0][0]), "the old key is still there"
        assert is_anywhere(v, after[0][0]) == [v.store / "vms" / f.vm / "manifest"]
        assert v.json("verify", f.vm)["bad_pages"] == 0
    back = f.migrate(0)
    assert back["base"] == 1 and back["confirmed"]
    assert back["wire_bytes"] < 2 * cheap + 100000
    f.check_guest()


def test_the_host_that_was_called_can_ask_as_well(fleet):
    f = there_and_back(fleet)
    here, there = f.vecycles
    r = rekey(here, f.vm, status=2)
    assert "--to" in r.stderr, "a Unix socket has no name for the other end"
    rekey(here, f.vm, "--to", there.address)
    assert same_on_both(f)
    assert f.migrate(1)["base"] == 1
    f.check_guest()


def test_alone_it_costs_the_reuse_of_one_return(fleet):
    f = there_and_back(fleet)
    here, there = f.vecycles
    old = key_of(here, f.vm)
    there.agent.stop()
    r = rekey(here, f.vm, "--to", there.address, status=20)
    assert key_of(here, f.vm) == old, "nothing has changed"
    assert here.json("show", f.vm)["confirmed"]
    r = rekey(here, f.vm, "--local")
    assert "here alone" in r.stdout
    assert key_of(here, f.vm) != old and not is_anywhere(here, old)
    assert here.json("verify", f.vm)["bad_pages"] == 0
    there.start_agent([there.address])
    # Here and there differ: what is here is not what the other host has.
    rekey(here, f.vm, "--to", there.address, status=30)
    first = f.migrate(1)
    assert first["base"] == 0 and first["confirmed"]
    assert f.migrate(0)["base"] == 1
    f.check_guest()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_roots_files_are_the_stores_owners(fleet):
    f = there_and_back(fleet)
    here, there = f.vecycles
    here.agent.stop()
    subprocess.run(["chown", "-R", "65534:65534", here.store], check=True)
    here.store.parent.chmod(0o755)
    here.store.parent.parent.chmod(0o755)
    old = key_of(here, f.vm)
    rekey(here, f.vm, "--to", there.address)
    assert key_of(here, f.vm) != old and same_on_both(f)
    assert {p.stat().st_uid for p in here.store.rglob("*")} == {65534}


def has_let_go(v, vm):
    """Whether no session of that host holds the VM, or has begun to write what takes its checkpoint's place."""
    with open(v.store / "vms" / vm / "lock", "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return not list(v.store.rglob("*.tmp"))


@pytest.mark.parametrize("frame,from_source", [(40, True), (41, True), (41, False), (42, True), (42, False),
                                               (32, True), (32, False)])
def test_a_connection_lost_at_any_step_leaves_each_host_a_whole_checkpoint(fleet, frame, from_source):
    f = there_and_back(fleet)
    here, there = f.vecycles
    old = key_of(here, f.vm)
    cutter = FrameCutter(f.hosts[0].path("link"), there.address.removeprefix("unix:"), frame, from_source)
    r = here.run("rekey", f.vm, "--to", f"unix:{f.hosts[0].path('link')}")
    if frame != 40:  # which there is none of where the disk is fast
        assert cutter.was_cut.is_set()
    cutter.close()
    wait_for(lambda: has_let_go(there, f.vm), 30, "the other host to give up, or to switch")
    keys = [key_of(v, f.vm) for v in f.vecycles]
    if frame == 41:
        assert r.returncode == 23, r.stderr
        assert keys == [old, old]
    if frame == 32:  # both have switched, and one does not know it of the other
        assert r.returncode == 0, r.stderr
        assert from_source or "has not confirmed" in r.stdout, r.stdout
        wait_for(lambda: key_of(there, f.vm) == key_of(here, f.vm) != old, 30, "the other host to switch")
    assert all(v.json("verify", f.vm)["bad_pages"] == 0 for v in f.vecycles)
    r = f.migrate(1)
    assert r["confirmed"]
    assert r["base"] == (1 if keys[0] == keys[1] else 0)
    assert f.migrate(0)["base"] == 1
    f.check_guest()


def test_damaged_pages_are_dropped_at_both_hosts(fleet):
    f = there_and_back(fleet)
    here, there = f.vecycles
    wait_for(lambda: all(v.json("show", f.vm)["layers"] == 1 for v in f.vecycles), 60, "folding")
    for v, at in (here, 5 << 20), (there, 40 << 20):
        image, = (v.store / "vms" / f.vm).glob("*.image")
        with open(image, "r+b") as file:
            file.seek(at)
            data = file.read(4096)
            file.seek(at)
            file.write(bytes(x ^ 0xff for x in data))
    bad = sum(v.run("verify", f.vm).returncode == 42 for v in f.vecycles)
    assert bad == 2
    done = here.json("rekey", f.vm, "--to", there.address)
    assert done[0]["dropped_pages"] == 2 and done[0]["confirmed"]
    assert same_on_both(f)
    assert all(v.json("verify", f.vm)["bad_pages"] == 0 for v in f.vecycles)
    assert f.migrate(1)["base"] == 1
    f.check_guest()


def test_all_and_forget_say_what_they_mean(fleet):
    f = there_and_back(fleet)
    here, there = f.vecycles
    old = key_of(there, f.vm)
    assert json.loads(rekey(there, "--all", "--json").stdout)[0]["vm"] == f.vm
    assert key_of(there, f.vm) != old and same_on_both(f)
    new = key_of(there, f.vm)
    assert json.loads(rekey(there, "--forget", "nobody.example", "--json").stdout) == []
    assert key_of(there, f.vm) == new
    # The other host itself is to forget: nobody gets the new key.
    assert "here alone" in rekey(there, "--forget", here.address).stdout
    assert key_of(there, f.vm) != new and key_of(here, f.vm) == new
    for wrong in ([], [f.vm, "--all"], ["--all", "--forget", "b"], [f.vm, "--local", "--to", "b"],
                  [f.vm, "--dead-peer", "0"]):
        rekey(there, *wrong, status=2)
    rekey(there, "vm1", status=30)
    r = rekey(there, f.vm, "--to", there.address, status=43)
    assert "being re-keyed already" in r.stderr, "a host has no other one in itself"
    rekey(there, "00000000-0000-4000-8000-000000000000", status=30)


def test_an_open_migration_refuses_it(fleet):
    f = fleet(namespaces=False)
    f.boot_linux(192, 60)
    dest = f.incoming(1)
    p, out = f.vecycle().start_migrate(f.qemu, f.vecycles[1].address, dest.name, ["--max-bandwidth", "2M"])
    wait_for(lambda: is_leaving(f), 30, "the migration")
    r = rekey(f.vecycles[0], f.vm, "--local", status=61)
    assert "under way" in r.stderr
    p.popen.send_signal(signal.SIGINT)
    p.wait(60)
    f.still_runs_here()


def test_a_verify_beside_it_looks_at_the_new_checkpoint(fleet, tmp_path):
    """The key is changed between the manifest and the index that it names."""
    f = there_and_back(fleet)
    here = f.vecycles[0]
    trigger, fifo = tmp_path / "trigger", tmp_path / "fifo"
    trigger.touch()
    os.mkfifo(fifo)
    env = {"LD_PRELOAD": compile_shim(tmp_path, "hang_at_index"), "VC_HANG_TRIGGER": trigger, "VC_HANG_FIFO": fifo}
    argv = ["env", *(f"{k}={v}" for k, v in env.items()), BINARY, "verify", "--json", *here.common(), f.vm]
    with open(tmp_path / "verified", "wb") as out:
        p = f.hosts[0].start(argv, log=tmp_path / "verify.log", stdout=out)
    wait_for(lambda: not trigger.exists(), 60, "the index to be opened")
    rekey(here, f.vm, "--local")
    fifo.write_text("")
    assert p.wait(60) == 0, p.messages()
    done = json.loads((tmp_path / "verified").read_text())
    assert done["pages"] > 10000 and done["bad_pages"] == 0, "not as if there were none"


def is_leaving(f):
    r = f.vecycles[0].run("show", f.vm, "--json")
    return r.returncode == 0 and json.loads(r.stdout)["handover"] == "leaving"


# ---- the list of peers ----

@pytest.fixture
def pool(fleet, namespaces):
    """Three hosts; the first two keep a list of peers, and the VM has been to all."""
    s = Secure(fleet(3, agents=False))
    f = s.fleet
    for h in f.hosts:
        (h.dir / "peers").write_text("a *\nb *\nc *\n")
    for i in range(3):
        s.start(i, extra=["--allow", f.hosts[i].dir / "peers"])
    f.boot_linux(192, 40)
    for to in 2, 0, 1:
        assert f.migrate(to)["confirmed"]
    return s


def unlist(s, i, text):
    new = s.fleet.hosts[i].dir / "peers.new"
    new.write_text(text)
    new.rename(s.fleet.hosts[i].dir / "peers")


def test_a_host_that_is_taken_off_the_list_loses_its_key(pool):
    f = pool.fleet
    a, b, c = f.vecycles
    old = key_of(a, f.vm)
    assert key_of(c, f.vm) == old, "it came by"
    shutil.copytree(c.store, f.hosts[2].dir / "kept")
    unlist(pool, 0, "a *\nb *\n")
    wait_for(lambda: key_of(a, f.vm) != old, 60, "another key")
    assert key_of(b, f.vm) == key_of(a, f.vm)
    wait_for(lambda: same_on_both(f), 10, "the confirmation")
    assert "'c' has left the list" in (f.hosts[0].dir / "agent.log").read_text()
    new = key_of(a, f.vm)
    back = f.migrate(0)
    assert back["base"] == 1 and back["confirmed"]
    f.check_guest()
    # Once is enough, whoever else looks.
    unlist(pool, 1, "a *\nb *\n")
    pool.restart(1, extra=["--allow", f.hosts[1].dir / "peers"])
    pool.restart(0, extra=["--allow", f.hosts[0].dir / "peers"])
    assert f.migrate(1)["base"] == 1
    assert key_of(a, f.vm) == key_of(b, f.vm) == new


def test_what_was_taken_off_while_no_agent_ran_counts_too(pool):
    f = pool.fleet
    a, b, c = f.vecycles
    old = key_of(a, f.vm)
    a.agent.stop()
    unlist(pool, 0, "a *\nb *\n")
    pool.start(0, extra=["--allow", f.hosts[0].dir / "peers"])
    wait_for(lambda: key_of(a, f.vm) != old, 60, "another key")
    assert key_of(b, f.vm) == key_of(a, f.vm)


def test_the_host_with_the_checkpoint_itself_gets_no_new_key(pool):
    f = pool.fleet
    a, b, c = f.vecycles
    old = key_of(a, f.vm)
    unlist(pool, 0, "a *\nc *\n")
    wait_for(lambda: key_of(a, f.vm) != old, 60, "another key")
    assert key_of(b, f.vm) == old
    log = f.hosts[0].dir / "agent.log"
    wait_for(lambda: "here alone" in log.read_text(), 30, "the agent to say so")


def test_an_old_key_that_comes_back_with_the_vm_is_changed_again(pool):
    f = pool.fleet
    a, b, c = f.vecycles
    old = key_of(a, f.vm)
    a.agent.stop()
    rekey(a, f.vm, "--local")
    unlist(pool, 0, "a *\nb *\n")
    pool.start(0, extra=["--allow", f.hosts[0].dir / "peers"])
    assert key_of(b, f.vm) == old != key_of(a, f.vm)
    assert f.migrate(0)["confirmed"], "it comes from where the old key still is"
    wait_for(lambda: key_of(a, f.vm) == key_of(b, f.vm) != old, 60, "another key at both")
    assert f.migrate(1)["base"] == 1
    f.check_guest()


def test_a_list_with_a_mistake_says_nothing_about_anybody(pool):
    f = pool.fleet
    a = f.vecycles[0]
    old = key_of(a, f.vm)
    unlist(pool, 0, "this is = no line\n")
    log = f.hosts[0].dir / "agent.log"
    wait_for(lambda: "who has left the pool cannot be told" in log.read_text(), 60, "the list to be seen")
    assert key_of(a, f.vm) == old


def test_a_host_that_the_list_knows_by_its_last_name_has_not_left(fleet, namespaces):
    s = Secure(fleet(3, agents=False))
    f = s.fleet
    s.pki = f.hosts[0].dir / "pki2"
    a, b, c = (f"{h.name},{h.address}" for h in f.hosts)
    s.init(a, ",".join([b, *(f"b-net{i}.example" for i in range(14))]), c, pki=s.pki)
    (f.hosts[0].dir / "peers").write_text("b-net13.example *\nc *\n")
    s.start(0, extra=["--allow", f.hosts[0].dir / "peers"])
    s.start(1)
    s.start(2)
    f.boot_linux(192, 40)
    for to in 2, 0, 1:
        assert f.migrate(to)["confirmed"]
    a, b, c = f.vecycles
    old = key_of(a, f.vm)
    unlist(s, 0, "b-net13.example *\n")
    log = f.hosts[0].dir / "agent.log"
    wait_for(lambda: "has left the list" in log.read_text(), 60, "another key")
    assert "'c' has left the list" in log.read_text() and "'b' has left" not in log.read_text()
    assert key_of(b, f.vm) == key_of(a, f.vm) != old, "it stays, and has the new one"
    assert f.migrate(0)["base"] == 1
    f.check_guest()


def test_a_key_for_a_host_that_no_line_names_is_told(fleet, namespaces):
    """Its client's certificate is listed, and it is called by the name in its server's."""
    s = Secure(fleet(2, agents=False))
    f = s.fleet
    s.pki = f.hosts[0].dir / "pki2"
    s.init(f"a,{f.hosts[0].address}", f"b-server,{f.hosts[1].address}", "b-client", pki=s.pki)
    (s.pki / "b").mkdir(mode=0o700)
    for of, names in (("b-server", ("ca-cert", "server-cert", "server-key")), ("b-client", ("client-cert", "client-key"))):
        for name in names:
            shutil.copy(s.pki / of / f"{name}.pem", s.pki / "b")
    peers = f.hosts[0].dir / "peers"
    peers.write_text("b-client *\n")
    s.start(0, extra=["--allow", peers])
    s.start(1)
    f.boot_linux(192, 40)
    warning = "'b-server' gets the key"
    there = f.migrate(1)
    assert there["confirmed"] and warning in there["messages"]
    assert f.migrate(0)["base"] == 1, "it may come, and has the key already"
    unlist(s, 0, "b-client *\nb-server *\n")
    there = f.migrate(1)
    assert there["base"] == 1 and "gets the key" not in there["messages"]
    old = key_of(f.vecycles[0], f.vm)
    unlist(s, 0, "b-client *\n")
    wait_for(lambda: key_of(f.vecycles[0], f.vm) != old, 60, "another key, once it was on the list")


def cut_names(v, vm, name):
    """As if that host's certificate had more names than its entry has room for."""
    path = v.store / "vms" / vm / "holders"
    data = bytearray(path.read_bytes()[:-32])
    at = data.index(bytes([len(name)]) + name.encode()) - 2  # its flags
    data[at] |= 2
    path.write_bytes(data + hashlib.sha256(data).digest())
    assert [h.cut for h in vcstore.read_holders(path) if name.encode() in h.names] == [True]


def test_nobody_has_left_by_a_part_of_its_names(pool):
    f = pool.fleet
    a = f.vecycles[0]
    old = key_of(a, f.vm)
    a.agent.stop()
    cut_names(a, f.vm, "c")
    unlist(pool, 0, "a *\nb *\n")
    pool.start(0, extra=["--allow", f.hosts[0].dir / "peers"])
    log = f.hosts[0].dir / "agent.log"
    wait_for(lambda: "whether 'c' has left" in log.read_text(), 60, "the list to be looked at")
    assert key_of(a, f.vm) == old
    # By hand it is taken for one that may be meant.
    r = f.hosts[0].run([BINARY, "rekey", *a.common(), "--tls-dir", pool.pki / "a", "--forget", "another-name"])
    assert r.returncode == 0, r.stderr
    assert key_of(a, f.vm) != old


def test_who_may_not_have_the_vm_may_not_rekey_it(pool):
    f = pool.fleet
    a, b, c = f.vecycles
    old = key_of(b, f.vm)
    unlist(pool, 1, "a 12345678-1234-1234-1234-123456789abc\nc *\n")
    r = f.hosts[0].run([BINARY, "rekey", *a.common(), "--tls-dir", pool.pki / "a", f.vm])
    assert r.returncode == 24 and "may not reach" in r.stderr, r.stderr
    assert key_of(b, f.vm) == old


def test_by_hand_over_tls(pool):
    f = pool.fleet
    a, b, c = f.vecycles
    old = key_of(a, f.vm)
    r = f.hosts[0].run([BINARY, "rekey", *a.common(), "--tls-dir", pool.pki / "a", "--forget", "c"])
    assert r.returncode == 0 and "here and at" in r.stdout, r.stderr
    assert key_of(a, f.vm) == key_of(b, f.vm) != old
    # The host that was called knows the other one's name and address.
    mid = key_of(a, f.vm)
    r = f.hosts[1].run([BINARY, "rekey", *b.common(), "--tls-dir", pool.pki / "b", f.vm])
    assert r.returncode == 0 and "here and at" in r.stdout, r.stderr
    assert key_of(a, f.vm) == key_of(b, f.vm) != mid
    assert f.migrate(0)["base"] == 1
    f.check_guest()


def test_a_key_never_goes_out_in_the_clear(fleet, namespaces):
    f = fleet(2)
    f.boot_linux(192, 30)
    assert f.migrate(1)["confirmed"] and f.migrate(0)["confirmed"]
    here, there = f.vecycles
    exposed = key_of(here, f.vm)
    rekey(here, f.vm, "--to", there.address, status=24)  # without --insecure
    rekey(here, f.vm, "--to", there.address, "--insecure")
    assert here.json("show", f.vm)["exposed"], "what has crossed in the clear stays so"
    assert key_of(here, f.vm) != exposed and same_on_both(f)
