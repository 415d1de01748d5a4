# SPDX-License-Identifier: LGPL-2.1-or-later
"""An agent that has as few rights as it can do with."""
import os
import pwd
import stat

import pytest
from vctest.vecycle import BINARY

USER = "nobody"


def status(pid):
    with open(f"/proc/{pid}/status") as f:
        return dict(line.strip("\n").split(":\t", 1) for line in f if ":\t" in line)


def all_threads(pid, field):
    return {status(f"{pid}/task/{t}")[field] for t in os.listdir(f"/proc/{pid}/task")}


@pytest.fixture
def unprivileged(fleet):
    """Two hosts whose agents are another user than root; QEMU's sockets are open to it."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    old = os.umask(0)  # for QEMU's sockets
    try:
        f = fleet(namespaces=False)
        os.chmod(f.network.dir, 0o755)
        for h, v in zip(f.hosts, f.vecycles):
            v.agent.stop()
            for path in h.dir, h.sockets:
                os.chmod(path, 0o777)
            for path in sorted(v.store.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            v.store.rmdir()
            v.start_agent([v.address], ["--user", USER])
        yield f
    finally:
        os.umask(old)


def test_there_and_back_as_a_user_of_its_own_in_the_sandbox(unprivileged):
    f = unprivileged
    uid = pwd.getpwnam(USER).pw_uid
    f.boot_linux(192, 40)
    for to in 1, 0:
        r = f.migrate(to)
        assert r["confirmed"]
    assert r["base"] == 1, "the checkpoint was used"
    f.check_guest()
    for v in f.vecycles:
        pid = v.agent.pid
        assert status(pid)["Uid"].split() == [str(uid)] * 4
        assert all_threads(pid, "NoNewPrivs") == {"1"}
        assert int(status(pid)["CapEff"], 16) == int(status(pid)["CapPrm"], 16) == 0
        with open(f"/proc/{pid}/limits") as limits:
            assert [x.split()[4:6] for x in limits if "core file" in x] == [["0", "0"]]
        for path in [v.store, *v.store.rglob("*")]:
            st = path.lstat()
            assert st.st_uid == uid
            assert stat.S_IMODE(st.st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("mask", ["0277", "0777"])
def test_what_is_made_is_its_owners_whatever_the_umask(unprivileged, mask):
    """An agent that is another user than root from the start, in the sandbox."""
    f = unprivileged
    f.boot_selfcheck(end_mib=8)
    for v in f.vecycles:
        v.agent.stop()
        v.store = v.host.dir / "another"
        v.wrapper = ["setpriv", "--reuid", USER, "--regid", str(pwd.getpwnam(USER).pw_gid), "--clear-groups",
                     "sh", "-c", f'umask {mask}; exec "$@"', "sh"]
        v.start_agent([v.address])
    for to in 1, 0:
        r = f.migrate(to)
        assert r["confirmed"]
    assert r["base"] == 1, "the checkpoint was used"
    for v in f.vecycles:
        for path in [v.store, *v.store.rglob("*")]:
            assert stat.S_IMODE(path.lstat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_the_filter_is_in_force_in_all_threads(unprivileged):
    f = unprivileged
    if "does not filter" in f.vecycles[0].log.read_text():
        pytest.skip("built without libseccomp, or with a sanitizer")
    for v in f.vecycles:
        assert all_threads(v.agent.pid, "Seccomp") == {"2"}


def test_root_leaves_the_files_to_the_owner_of_the_store(unprivileged):
    f = unprivileged
    f.boot_linux(192, 20)
    f.migrate(1)
    uid = pwd.getpwnam(USER).pw_uid
    home = f.vecycles[0]
    assert home.run("policy", f.vm, "pinned").returncode == 0
    assert home.run("gc").returncode == 0
    owners = {p.lstat().st_uid for p in home.store.rglob("*")}
    assert owners == {uid}
    assert f.migrate(0)["base"] == 1


def test_a_store_of_another_user_is_refused(unprivileged):
    f = unprivileged
    other = f.hosts[0].dir / "other"
    other.mkdir(mode=0o700)
    r = f.hosts[0].run([BINARY, "serve", "--store", other, "--control", f.hosts[0].path("c2"),
                        "--socket-dir", f.hosts[0].sockets, "--user", USER], timeout=20)
    assert r.returncode == 40 and USER in r.stderr and str(other) in r.stderr


def test_without_a_sandbox_if_asked(fleet):
    f = fleet(namespaces=False)
    v = f.vecycles[0]
    v.agent.stop()
    v.start_agent([v.address], ["--sandbox", "off"])
    assert status(v.agent.pid)["Seccomp"] == "0"
    r = v.run("serve", "--sandbox", "perhaps")
    assert r.returncode == 2
