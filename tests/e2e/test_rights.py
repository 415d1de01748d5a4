# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose files and sockets are whose: an agent, QEMUs and an administrator who are different users."""
import grp
import os
import pwd
import re
import stat
import subprocess
from pathlib import Path

import pytest
from vctest.gate import SHUT, Gate, QmpGate
from vctest.proc import wait_for
from vctest.vecycle import BINARY

ROOT = Path(__file__).resolve().parents[2]
AGENT, QEMU = "nobody", "daemon"  # users that every Debian has
GROUP = grp.getgrgid(pwd.getpwnam(AGENT).pw_gid).gr_name
UID = pwd.getpwnam(AGENT).pw_uid


@pytest.fixture(autouse=True)
def as_root():
    if os.geteuid() != 0:
        pytest.skip("other users need root")


@pytest.fixture
def umask():
    """An ordinary one, whatever the test was started with."""
    old = os.umask(0o022)
    yield
    os.umask(old)


def installed_dir():
    """Mode of the directory for QEMU's sockets, as the package makes it."""
    text = (ROOT / "packaging/systemd/vecycle.tmpfiles.conf").read_text()
    mode, user, group = re.search(r"^d\s+/run/vecycle\s+(\d+)\s+(\S+)\s+(\S+)", text, re.M).groups()
    assert (user, group) == ("vecycle", "vecycle")
    assert not re.search(r"^a", text, re.M), "an ACL does not survive QEMU's umask"
    return int(mode, 8)


def as_installed(f, host):
    """That host's agent is a user of its own, and its socket directory as the package makes it."""
    h, v = f.hosts[host], f.vecycles[host]
    v.agent.stop()
    os.chmod(f.network.dir, 0o755)
    os.chmod(h.dir, 0o755)
    os.chown(h.sockets, UID, grp.getgrnam(GROUP).gr_gid)
    os.chmod(h.sockets, installed_dir())
    for path in sorted(v.store.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    v.store.rmdir()
    os.mkdir(v.store, 0o700)
    os.chown(v.store, UID, -1)
    v.start_agent([v.address], ["--user", AGENT])


def qemus_run_as(host, user, mask):
    """QEMUs that are started there from now on are another user's, in the agent's group."""
    start = type(host).start

    def other(argv, *rest, **kw):
        if "qemu" in str(argv[0]):
            argv = ["setpriv", f"--reuid={user}", f"--regid={user}", f"--groups={GROUP}",
                    "sh", "-c", f'umask {mask}; exec "$@"', "sh", *argv]
        return start(host, argv, *rest, **kw)
    host.start = other


def one_line(text):
    return len([line for line in text.strip().splitlines() if "vecycle:" in line]) == 1


# ---- QEMU's sockets ----

@pytest.mark.parametrize("mask", ["007", "002"])
def test_a_qemu_of_another_user_with_the_umask_that_is_told(fleet, umask, mask):
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=8)
    as_installed(f, 1)
    qemus_run_as(f.hosts[1], QEMU, mask)
    assert f.migrate(1)["confirmed"]
    st = os.stat(f.qemu.qmp_path)
    assert (st.st_uid, st.st_gid) == (pwd.getpwnam(QEMU).pw_uid, grp.getgrnam(GROUP).gr_gid)


def test_a_qemu_of_another_user_with_an_ordinary_umask_is_told_what_to_do(fleet, umask):
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=8)
    as_installed(f, 1)
    qemus_run_as(f.hosts[1], QEMU, "022")
    dest = f.incoming(1)
    r = f.vecycles[0].migrate(f.qemu, f.vecycles[1].address, dest.name, ok=False)
    assert r["status"] == 31, r["messages"]
    for word in dest.qmp_path, "umask 007", "chmod g+w", "vecycle-serve(1)":
        assert word in r["messages"]
    f.still_runs_here()
    page = (ROOT / "docs/man/vecycle-serve.1.scd").read_text()
    command = re.search(r"^\t(chmod \S+) /run/vecycle/vm1.qmp$", page, re.M)[1]
    subprocess.run([*command.split(), dest.qmp_path], check=True)
    r = f.vecycles[0].migrate(f.qemu, f.vecycles[1].address, dest.name)
    assert dest.status() == "running"


def test_what_a_killed_agent_leaves_at_roots_socket_is_settled_by_root(fleet, umask):
    f = fleet(namespaces=False)
    as_installed(f, 0)
    v = f.vecycles[0]
    f.boot_selfcheck(end_mib=8, delay=200000)
    assert stat.S_IMODE(os.stat(f.qemu.qmp_path).st_mode) & 0o022 == 0
    dest = f.incoming(1)
    gate = Gate(f.hosts[1].path("gate"), f.vecycles[1].address)
    gate.hold(SHUT, False)
    p, _ = v.start_migrate(f.qemu, gate.address, dest.name)
    assert gate.is_held.wait(60), p.messages()
    v.agent.kill()
    p.wait()
    gate.release()
    v.start_agent([v.address], ["--user", AGENT])
    wait_for(lambda: f"vecycle resolve --retry {f.vm}` as root" in v.log.read_text(), 60,
             "the agent to say who can settle it")
    assert f.qemu.qmp_path in v.log.read_text()
    r = v.run("resolve", "--retry", f.vm)
    gate.close()
    assert r.returncode == 0, r.stderr
    f.still_runs_here()
    assert {path.lstat().st_uid for path in [v.store, *v.store.rglob("*")]} == {UID}


# ---- the store ----

def test_what_root_does_without_the_agent_is_the_agents_to_read(fleet, umask):
    f = fleet(namespaces=False)
    f.boot_selfcheck(end_mib=8)
    as_installed(f, 0)
    as_installed(f, 1)
    for mode in 0o777, installed_dir():  # QEMU is root's here, and the agents reach it
        for h in f.hosts:
            os.chmod(h.sockets, mode)
    for v in f.vecycles:
        v.agent.stop()
    ssh = f.hosts[0].dir / "ssh"
    ssh.write_text('#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\nexec sh -c "$2"\n')
    ssh.chmod(0o755)
    other = f.vecycles[1]
    recv = f"{BINARY} recv --store {other.store} --control none --socket-dir {f.hosts[1].sockets}"
    dest = f.incoming(1)
    r = f.vecycles[0].migrate(f.qemu, "root@host2", dest.name,
                              ["--ssh", ssh, "--remote", recv])
    assert r["confirmed"]
    f.arrived(1, dest)
    for v in f.vecycles:
        for argv in ["policy", f.vm, "pinned"], ["gc"], ["verify", f.vm], ["ls"]:
            assert v.run(*argv).returncode == 0, argv
        wrong = [p for p in [v.store, *v.store.rglob("*")] if p.lstat().st_uid != UID]
        assert not wrong
        v.start_agent([v.address], ["--user", AGENT])
    os.chmod(f.qemu.qmp_path, 0o777)
    back = f.incoming(0)
    os.chmod(back.qmp_path, 0o777)
    r = f.vecycles[1].migrate(f.qemu, f.vecycles[0].address, back.name)
    assert r["base"] == 1, "the checkpoint that root made is used by the agents"


def test_a_store_in_which_others_may_write_is_refused(fleet):
    f = fleet(namespaces=False)
    v = f.vecycles[0]
    v.agent.stop()
    os.chmod(v.store, 0o770)
    r = v.run("serve", "--socket-dir", f.hosts[0].sockets, timeout=20)
    assert r.returncode == 40 and str(v.store) in r.stderr and "chmod" in r.stderr
    assert one_line(r.stderr)


def test_an_agent_that_is_root_does_not_take_another_users_store(fleet):
    f = fleet(namespaces=False)
    v = f.vecycles[0]
    v.agent.stop()
    os.chown(v.store, UID, -1)
    r = v.run("serve", "--socket-dir", f.hosts[0].sockets, timeout=20)
    assert r.returncode == 40 and str(v.store) in r.stderr and "--user" in r.stderr
    assert one_line(r.stderr)


NO_LOCKS = r"""
#define _GNU_SOURCE
#include <errno.h>
int flock(int fd, int what);
int flock(int fd, int what) { (void)fd, (void)what; errno = ENOLCK; return -1; }
"""

# As a user who may write in the directory: what was just made there becomes a link to another file.
SWAPPER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int listen(int fd, int n);
int listen(int fd, int n)
{
    int (*real)(int, int) = (int (*)(int, int))dlsym(RTLD_NEXT, "listen");
    const char *path = getenv("VC_SWAP"), *to = getenv("VC_TARGET");
    if (path && to && access(path, F_OK) == 0) {
        unlink(path);
        if (symlink(to, path)) abort();
    }
    return real(fd, n);
}
"""


def preload(f, text):
    source, lib = f.hosts[0].dir / "preload.c", f.hosts[0].dir / "preload.so"
    source.write_text(text)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", lib, source, "-ldl"], check=True)
    return lib


def test_a_file_system_without_locks_costs_reuse_and_not_the_migration(fleet):
    f = fleet(namespaces=False)
    lib = preload(f, NO_LOCKS)
    f.boot_selfcheck(end_mib=8)
    for v in f.vecycles:
        v.agent.stop()
        v.wrapper = ["env", f"LD_PRELOAD={lib}"]
        v.start_agent([v.address])
    assert f.migrate(1)["base"] == 0
    assert f.migrate(0)["base"] == 0
    f.check_guest()
    for v in f.vecycles:
        log = v.log.read_text()
        assert "flock" in log and str(v.store) in log and f.vm in log
        assert log.count("cannot be forgotten") == 1, "once is enough"


def test_root_gives_nothing_away_that_was_put_in_the_place_of_its_socket(fleet):
    f = fleet(namespaces=False, agents=False)
    lib = preload(f, SWAPPER)
    h = f.hosts[0]
    os.chmod(f.network.dir, 0o755)
    mine = h.dir / "mine"
    mine.mkdir()
    os.chown(mine, UID, -1)
    secret = h.dir / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    before = secret.stat()
    for argv in ["--control", mine / "control"], ["--control", mine / "control", "--control-group",
                                                  "daemon"]:
        p = h.start(["env", f"LD_PRELOAD={lib}", f"VC_SWAP={mine / 'control'}",
                     f"VC_TARGET={secret}", BINARY, "serve", "--user", AGENT, "--store",
                     mine / "store", "--socket-dir", mine, *argv], log=h.dir / "swap.log")
        wait_for(lambda: not p.alive() or "ready" in p.messages(), 30, "the agent")
        p.stop()
        now = secret.stat()
        assert (now.st_uid, now.st_gid, now.st_mode) == (before.st_uid, before.st_gid,
                                                         before.st_mode)
        (mine / "control").unlink(missing_ok=True)


@pytest.mark.parametrize("relayed", [False, True])
def test_the_agent_works_for_another_user_if_it_knows_which_process_his_qemu_is(fleet, relayed):
    """It reaches that QEMU later, by the path that he has named and with its own rights."""
    f = fleet(namespaces=False)
    home = f.vecycles[0]
    home.agent.stop()
    home.start_agent([home.address], ["--control-group", GROUP])
    f.boot_selfcheck(end_mib=4, delay=100000)
    dest = f.incoming(1)
    path = f.hosts[0].path("relayed.qmp") if relayed else f.qemu.qmp_path
    relay = QmpGate(path, f.qemu.qmp_path) if relayed else None
    for d in [f.hosts[0].sockets, f.hosts[1].sockets, *f.hosts[0].sockets.parents, *f.hosts[1].sockets.parents]:
        if str(d).startswith(f.network.dir):
            os.chmod(d, 0o755)
    for socket_path in path, f.vecycles[1].address.removeprefix("unix:"):
        os.chmod(socket_path, 0o666)
    r = f.hosts[0].run(["setpriv", "--reuid", AGENT, "--regid", GROUP, "--clear-groups", BINARY, "migrate",
                        "--control", home.control, "--qmp", path, "--name", dest.name, "--insecure",
                        f.vecycles[1].address])
    if relayed:
        assert r.returncode == 24 and "which process" in r.stderr and one_line(r.stderr), r.stderr
        assert f.qemu.is_running()
        relay.cut()
        relay.close()
    else:
        assert r.returncode == 0, r.stderr
        dest.wait_status("running")


# ---- keys ----

@pytest.fixture
def certificates(tmp_path):
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_mode & 0o001 == 0:
            os.chmod(parent, parent.stat().st_mode | 0o001)
    subprocess.run([BINARY, "tls", "init", "--dir", tmp_path / "ca", "127.0.0.1"], check=True,
                   capture_output=True)
    os.chmod(tmp_path / "ca", 0o755)
    os.chmod(tmp_path / "ca" / "127.0.0.1", 0o755)
    return tmp_path / "ca" / "127.0.0.1"


def serve_tls(f, tls, *extra):
    h = f.hosts[0]
    os.chmod(f.network.dir, 0o755)
    os.chmod(h.dir, 0o777)
    return h.start([BINARY, "serve", "--user", AGENT, "--store", h.dir / "tls-store", "--control",
                    h.dir / "tls-control", "--socket-dir", h.sockets, "--tls-dir", tls,
                    "--listen", "tls://127.0.0.1:0", *extra], log=h.dir / f"tls-{len(h.processes)}")


def test_keys_that_the_agents_user_cannot_read_end_it_at_the_start(fleet, certificates):
    f = fleet(namespaces=False, agents=False)
    p = serve_tls(f, certificates)  # 0600 of root's, as `vecycle tls init` leaves them
    assert p.wait(30) == 24
    assert str(certificates) in p.messages() and "vecycle-tls(1)" in p.messages()
    assert one_line(p.messages())
    page = (ROOT / "docs/man/vecycle-tls.1.scd").read_text()
    told = re.search(r"^\t(chgrp -R vecycle /etc/vecycle/tls; chmod .*)$", page, re.M)[1]
    told = told.replace("vecycle /etc", f"{GROUP} /etc").replace("/etc/vecycle/tls",
                                                                 str(certificates))
    subprocess.run(["sh", "-c", told], check=True)
    p = serve_tls(f, certificates)
    wait_for(lambda: not p.alive() or "ready" in p.messages(), 30, "the agent")
    assert p.alive(), p.messages()


def test_a_list_of_peers_is_looked_at_as_the_user_who_reads_it(fleet, certificates):
    f = fleet(namespaces=False, agents=False)
    subprocess.run(["chmod", "-R", "u=rwX,g=rX", certificates], check=True)
    subprocess.run(["chgrp", "-R", GROUP, certificates], check=True)
    peers = f.hosts[0].dir / "peers"
    peers.write_text("* *\n")
    peers.chmod(0o600)
    p = serve_tls(f, certificates, "--allow", peers)
    assert p.wait(30) == 24
    assert str(peers) in p.messages()
