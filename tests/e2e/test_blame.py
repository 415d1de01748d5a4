# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose failure it was is told, once and with what to do; and what cannot pass is not repeated."""
import os
import pty
import re
import socket
import subprocess

import pytest
from vctest.gate import BATCH, Gate
from vctest.proc import readable, wait_for
from vctest.vecycle import BINARY


@pytest.fixture
def pair(fleet):
    f = fleet(namespaces=False)
    f.boot_selfcheck(ram_mib=32, end_mib=8, delay=20000)
    f.dest = f.incoming(1)
    return f


def script(f, body):
    """A program that stands in for ssh, and counts how often it is run."""
    path, runs = f.hosts[0].dir / "ssh", f.hosts[0].dir / "runs"
    runs.write_text("")
    path.write_text(f"#!/bin/sh\necho >>{runs}\nwhile [ $# -gt 2 ]; do shift; done\n{body}\n")
    path.chmod(0o755)
    return path, lambda: len(runs.read_text())


def remote(f):
    v = f.vecycles[1]
    return f"{BINARY} recv --store {v.store} --control none --socket-dir {f.hosts[1].sockets}"


def through(f, body, extra=(), to="root@host2"):
    """A migration through that."""
    ssh, runs = script(f, body)
    r = f.vecycle().migrate(f.qemu, to, f.dest.name,
                            ["--ssh", ssh, "--remote", remote(f), *extra], ok=False)
    return r, runs()


# ---- QEMU ----

def test_an_operators_cancel_is_a_cancellation_and_is_not_undone(pair):
    f = pair
    gate = Gate(f.hosts[1].path("gate"), f.vecycles[1].address)
    try:
        gate.hold(BATCH, True)
        p, _ = f.vecycle().start_migrate(f.qemu, gate.address, f.dest.name, ["--retry", "3"])
        assert gate.is_held.wait(60), p.messages()
        f.qemu.qmp.execute("migrate_cancel")
        gate.release()
        assert p.wait() == 60, p.messages()
        assert "cancelled in QEMU" in p.messages()
        f.still_runs_here()
    finally:
        gate.close()


def test_a_qemu_that_is_told_to_end_is_not_a_broken_qmp(pair):
    f = pair
    p, _ = f.vecycle().start_migrate(f.qemu, f.vecycles[1].address, f.dest.name,
                                     ["--max-bandwidth", "300K"])
    wait_for(lambda: not p.alive() or f.qemu.qmp.execute("query-migrate").get("ram", {})
             .get("transferred", 0) > 100000, 60, "the migration to be under way")
    f.qemu.qmp.execute("quit")
    assert p.wait() == 12, p.messages()
    assert "told to end (host-qmp-quit)" in p.messages()


@pytest.mark.parametrize("make,words", [
    (lambda p: None, "-qmp unix:"),
    (lambda p: socket.socket(socket.AF_UNIX).bind(p), "is it running"),
], ids=["nothing", "left behind"])
def test_a_qmp_socket_that_fails_says_what_to_do(fleet, tmp_path, make, words):
    f = fleet(1, namespaces=False, agents=False)
    make(str(tmp_path / "q"))
    r = f.hosts[0].run([BINARY, "migrate", *f.vecycles[0].common(), "--qmp", tmp_path / "q", "host2"])
    assert r.returncode == 10 and words in r.stderr, r.stderr


# ---- ssh ----

SSH_FAILS = [  # what it does, the exit status, words
    ("echo 'Host key verification failed.' >&2; exit 255", 20, "Host key verification failed"),
    ("echo 'me@h: Permission denied (publickey).' >&2; exit 255", 20, "Permission denied"),
    ("exec sh -c 'vecycle-is-not-here recv'", 20, "install vecycle there"),
    ("exit 126", 20, "cannot be run"),
    ("echo 'This account is currently not available.'; exit 1", 23, "currently not available"),
    ("exec yes", 22, "is not vecycle"),
]


def test_what_ssh_cannot_do_is_told_once_and_not_tried_again(pair):
    for body, status, words in SSH_FAILS:
        r, runs = through(pair, body, ["--retry", "3"])
        assert r["status"] == status and r["messages"].count(words) == 1, r
        assert runs == 1
    pair.still_runs_here()


def test_a_command_of_ssh_that_fails_for_a_moment_is_tried_again(pair):
    f = pair
    once = f.hosts[0].dir / "once"
    r, runs = through(f, f"[ -e {once} ] || {{ touch {once}; echo 'connect: timed out' >&2; exit 255; }}\n"
                         "exec sh -c \"$2\"", ["--retry", "1"])
    assert r["status"] == 0 and runs == 2, r


def test_what_the_other_shell_prints_is_skipped_and_shown(pair):
    f = pair
    r, _ = through(f, "echo 'Welcome to host2'; printf '\\007'; exec sh -c \"$2\"")
    assert r["status"] == 0 and "'Welcome to host2'" in r["messages"], r
    assert "\007" not in r["messages"]
    assert f.dest.status() == "running"


def test_the_other_vecycles_own_failure_is_told_with_its_words(pair):
    """The store there is not to be had: said by `vecycle recv`, before it says hello."""
    f = pair
    r, _ = through(f, "exec sh -c \"$2\"", ["--remote", f"{remote(f)} --store /dev/null/store"])
    assert r["status"] == 40 and "'root@host2': " in r["messages"], r
    assert r["messages"].count("/dev/null/store") == 1
    f.still_runs_here()


# ---- a proxy ----

@pytest.mark.parametrize("to,status", [
    ("tls://nowhere.invalid", 20), ("unix:/nonexistent/agent", 20), ("tcp://127.0.0.1:1", 20),
    ("fd00::1:22", 2), ("http://host2", 2), ("tls://127.0.0.1:1", 20),
])
def test_a_proxy_that_cannot_work_says_so_before_it_listens(fleet, to, status):
    f = fleet(1, namespaces=False, agents=False)
    path = f.hosts[0].path("proxy")
    p, _ = f.vecycles[0].start_proxy(path, f.vm, to)
    assert p.wait() == status, p.messages()
    assert "waiting" not in p.messages() and not os.path.exists(path)


def test_a_proxy_ends_when_the_migration_is_given_up_while_it_connects(pair):
    """The second time ssh never comes to an end."""
    f = pair
    second = f.hosts[0].dir / "second"
    ssh, runs = script(f, f"[ -e {second} ] && exec sleep 1000\ntouch {second}; exec sh -c \"$2\"")
    path = f.hosts[0].path("proxy")
    p, _ = f.vecycle().start_proxy(path, f.vm, "root@host2", extra=[
        "--ssh", ssh, "--remote", remote(f)])
    assert p.alive(), p.messages()
    f.qemu.migrate_plain(f"unix:{path}", capabilities=["return-path"])
    wait_for(lambda: runs() == 2 or not p.alive(), 30, "the proxy to connect")
    f.qemu.qmp.execute("migrate_cancel")
    assert p.wait() == 52, p.messages()
    assert "gave the migration up" in p.messages() and not os.path.exists(path)
    f.still_runs_here()


def test_a_proxy_that_nobody_uses_ends_in_its_time(pair):
    f = pair
    path = f.hosts[0].path("proxy")
    p, _ = f.vecycle().start_proxy(path, f.vm, f.vecycles[1].address, extra=["--wait", "1"])
    assert p.wait() == 60, p.messages()
    assert "no migration came" in p.messages() and not os.path.exists(path)


# ---- addresses ----

def listening(text):
    return set(re.findall(r"(\S+):(\d+)\s+\S+:\*", text))


def test_an_agent_that_only_this_host_can_reach_says_so(fleet):
    f = fleet(1, namespaces=False, agents=False)
    v = f.vecycles[0]
    v.control = f.hosts[0].path("control")
    v.start_agent(["tcp://localhost:0"])
    assert "no other host can connect" in v.log.read_text()


def test_every_address_of_a_name_is_listened_on(fleet, namespaces, tmp_path):
    f = fleet(1, agents=False)
    h, v = f.hosts[0], f.vecycles[0]
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{h.address} me\nfd99::2 me\n")
    h.run(["ip", "addr", "add", "fd99::2/64", "dev", "eth0", "nodad"])
    v.control = h.path("control")
    v.wrapper = ["unshare", "-m", "sh", "-c", f"mount --bind {hosts} /etc/hosts; exec \"$@\"", "sh"]
    v.start_agent(["tcp://me"])
    seen = {a for a, _ in listening(h.run(["ss", "-Hltn"]).stdout)}
    assert {h.address, "[fd99::2]"} <= seen, seen
    assert "no other host" not in v.log.read_text()


HOSTS = [  # the address, ssh's last words but one
    ("root@fd00::2", ["root@fd00::2"]), ("root@[fd00::2]:2222", ["-p", "2222", "root@fd00::2"]),
    ("ssh://[fe80::1%eth0]/", ["fe80::1%eth0"]), ("me@work@host2:22", ["-p", "22", "me@work@host2"]),
]


def test_ssh_is_given_the_host_as_it_knows_it(pair):
    f = pair
    args = f.hosts[0].dir / "args"
    ssh = f.hosts[0].dir / "a ssh"
    ssh.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >{args}; exit 255\n")
    ssh.chmod(0o755)
    for to, words in HOSTS:
        r = f.vecycle().migrate(f.qemu, to, None, ["--ssh", f"'{ssh}' -i \"a b\"", "--remote", "R"],
                                ok=False)
        assert r["status"] == 20, r
        got = args.read_text().splitlines()
        assert got[:2] == ["-i", "a b"] and got[-len(words) - 1:] == [*words, "R"], got


# ---- paths ----

@pytest.mark.parametrize("options", [[], ["--postcopy-preempt"]], ids=["", "preempt"])
def test_a_socket_may_have_any_path_that_a_file_may_have(fleet, options):
    """More than a socket address holds: of QEMU's sockets on both hosts, and of the agent's."""
    f = fleet(namespaces=False, agents=False)
    for v in f.vecycles:
        deep = v.host.sockets / ("d" * 120)
        deep.mkdir()
        v.control, v.address = str(deep / "control"), f"unix:{deep}/agent"
        v.host.sockets, v.shallow = deep, v.host.sockets
        v.start_agent([v.address])
    for v in f.vecycles:
        v.host.sockets = v.shallow
    f.boot_selfcheck(ram_mib=32, end_mib=8, delay=20000)
    f.dest = f.incoming(1)
    for q, v in ((f.qemu, f.vecycles[0]), (f.dest, f.vecycles[1])):
        os.rename(q.qmp_path, v.shallow / ("d" * 120) / f"{q.name}.qmp")
    f.qemu.qmp_path = str(f.vecycles[0].shallow / ("d" * 120) / f"{f.qemu.name}.qmp")
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, f.dest.name, options)
    assert f.dest.status() == "running", r
    assert f.vecycles[0].json("show", f.vm)["handover"] == "settled"


def test_a_path_that_no_record_holds_is_refused(pair):
    f = pair
    f.qemu.qmp_path = "/" + "d/" * 600 + "q"
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, f.dest.name, ok=False)
    assert r["status"] == 2 and "1023 bytes" in r["messages"], r


# ---- signals ----

PUMP = r'''#!/usr/bin/python3
import os, signal, subprocess, sys, threading
signal.signal(signal.SIGINT, signal.SIG_DFL)
p = subprocess.Popen(["sh", "-c", sys.argv[-1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                     start_new_session=True)
def pump(a, b):
    try:
        while d := os.read(a, 65536):
            while d:
                d = d[os.write(b, d):]
    except OSError:
        pass
    os.close(b)
threading.Thread(target=pump, args=(0, p.stdin.fileno()), daemon=True).start()
pump(p.stdout.fileno(), 1)
sys.exit(p.wait())
'''


def start_through_pump(f, prefix=(), extra=()):
    """In a process group of its own, as a shell's job; ssh ends of SIGINT and SIGHUP."""
    ssh = f.hosts[0].dir / "pump"
    ssh.write_text(PUMP)
    ssh.chmod(0o755)
    argv = f.vecycle().migrate_argv(f.qemu, "root@host2", f.dest.name,
                                    ["--ssh", ssh, "--remote", remote(f), *extra])
    p = f.hosts[0].start([*prefix, *argv], log=f.hosts[0].dir / "pumped.log", start_new_session=True,
                         stdout=subprocess.DEVNULL)
    wait_for(lambda: not p.alive() or f.qemu.qmp.execute("query-migrate").get("ram", {})
             .get("transferred", 0) > 100000, 60, "the migration to be under way")
    assert p.alive(), p.messages()
    return p


@pytest.mark.parametrize("signal", ["INT", "HUP"])
def test_a_terminals_signal_cancels_and_is_not_ssh_s_failure(pair, signal):
    f = pair
    p = start_through_pump(f, extra=["--max-bandwidth", "300K", "--retry", "2"])
    subprocess.run(["kill", f"-{signal}", "--", f"-{p.pid}"], check=True)
    assert p.wait() == 60, p.messages()
    assert "cancelled" in p.messages() and "ssh" not in p.messages()
    f.still_runs_here()


@pytest.mark.parametrize("keys,status,words", [(b"secret\n", 20, "got secret"),
                                               (b"\3", 60, "cancelled")], ids=["answer", "ctrl-c"])
def test_an_ssh_of_the_users_own_may_ask_at_the_terminal(fleet, keys, status, words):
    """It has the terminal's foreground while it connects, and a Ctrl-C there is a cancellation."""
    f = fleet(1, namespaces=False, agents=False)
    h, v = f.hosts[0], f.vecycles[0]
    listener = socket.socket(socket.AF_UNIX)  # nobody speaks QMP before the other host is there
    listener.bind(h.path("qmp"))
    listener.listen()
    ssh = h.dir / "ssh"
    ssh.write_text("#!/bin/sh\nprintf 'password: ' >/dev/tty\nread x </dev/tty\n"
                   "echo \"got $x\" >&2\nexit 255\n")
    ssh.chmod(0o755)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(BINARY, [BINARY, "migrate", *map(str, v.common()), "--qmp", h.path("qmp"), "--ssh", str(ssh),
                          "host2"])
    shown, asked = b"", False
    try:
        while readable(terminal, 60):
            shown += os.read(terminal, 1000)
            if b"password" in shown and not asked:
                asked = os.write(terminal, keys) > 0
    except OSError:  # how Linux says that nobody has it any more
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status, shown
    assert words in shown.decode() and asked
    os.close(terminal)


@pytest.mark.parametrize("signal", ["HUP", "INT"])
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(pair, signal):
    f = pair
    p = start_through_pump(f, ["sh", "-c", f"trap '' {signal}; exec \"$@\"", "sh"],
                           ["--max-bandwidth", "300K"])
    subprocess.run(["kill", f"-{signal}", "--", f"-{p.pid}"], check=True)
    f.qemu.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40)
    assert p.wait() == 0, p.messages()
    assert f.dest.status() == "running"
