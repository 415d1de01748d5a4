# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever is wrong: one clear line, an exit status of its own, and the VM runs on."""
import json
import os
import re
import socket
import struct
import subprocess
import threading

import pytest
from vctest.proc import wait_for
from vctest.vecycle import BINARY


@pytest.fixture
def running(fleet):
    """A fleet without namespaces, its VM in the firmware: enough for what never starts."""
    f = fleet(namespaces=False)
    f.boot_selfcheck(delay=20000)
    return f


def one_line(text):
    lines = [x for x in text.strip().splitlines()
             if not re.match(r"(first pass|rounds|connecting|switching)", x)]
    assert len(lines) == 1, text
    assert lines[0].startswith("vecycle: ")
    return lines[0]


def refused(f, status, *argv, words=()):
    """Runs vecycle on the first host; returns its one line."""
    r = f.vecycle().run(*argv)
    assert r.returncode == status, (r.returncode, r.stderr)
    line = one_line(r.stderr)
    for w in words:
        assert w in line, line
    return line


def migrate(f, status, to, *extra, words=(), qmp=None):
    line = refused(f, status, "migrate", "--qmp", qmp or f.qemu.qmp_path, *extra, to, words=words)
    f.still_runs_here()
    return line


class Server:
    """A peer that misbehaves: runs `serve(connection)` for one connection."""

    def __init__(self, path, serve):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(path)
        self.sock.listen(4)
        self.thread = threading.Thread(target=self._run, args=(serve,), daemon=True)
        self.thread.start()

    def _run(self, serve):
        try:
            connection, _ = self.sock.accept()
            with connection:
                serve(connection)
        except OSError:
            pass

    def close(self):
        self.sock.close()


def frame(kind, payload=b"", flags=0, channel=0):
    return struct.pack("<IBBH", len(payload), kind, flags, channel) + payload


def hello(role=2, low=1, high=1):
    return frame(1, b"vecycle\n" + struct.pack("<HHBBHQ", low, high, role, 0, 0, 1) + b"\x01x\0")


def misbehave(f, data, status, words=()):
    path = f.hosts[0].path("rogue")
    def serve(c):
        c.sendall(data)
        while c.recv(65536):
            pass
    server = Server(path, serve)
    try:
        return migrate(f, status, f"unix:{path}", words=words)
    finally:
        server.close()
        os.unlink(path)


def test_no_qmp_socket(running):
    refused(running, 10, "migrate", "--qmp", "/nonexistent/qmp", "unix:/x", words=["/nonexistent/qmp"])


def test_a_socket_that_is_not_qmp(running):
    path = running.hosts[0].path("notqmp")
    server = Server(path, lambda c: c.sendall(b"220 mail.example.org ESMTP\r\n"))
    refused(running, 11, "migrate", "--qmp", path, running.vecycles[1].address, words=["QMP"])
    server.close()


def test_a_vm_without_uuid(running):
    from vctest.qemu import Qemu
    q = Qemu(running.hosts[0], "nil", 32, "00000000-0000-0000-0000-000000000000")
    refused(running, 12, "migrate", "--qmp", q.qmp_path, running.vecycles[1].address,
            words=["UUID", "-uuid"])


def test_an_unreachable_host(running):
    migrate(running, 20, "unix:/nonexistent/agent", words=["/nonexistent/agent"])
    migrate(running, 20, "tcp://127.0.0.1:9", "--insecure", words=["127.0.0.1"])


def test_plain_tcp_has_to_be_asked_for(running):
    migrate(running, 24, "tcp://127.0.0.1:9", words=["--insecure"])


def test_an_address_that_is_none(running):
    migrate(running, 2, "gopher://x", words=["gopher://x"])


def test_no_destination_of_that_name(running):
    migrate(running, 30, running.vecycles[1].address, "--name", "nobody", words=["nobody"])


@pytest.mark.parametrize("name", ["../vm", "a/b", ".hidden", "/etc/passwd", "x" * 200, "a b"])
def test_names_are_never_paths(running, name):
    migrate(running, 30, running.vecycles[1].address, "--name", name, words=["name"])


def test_a_link_out_of_the_socket_directory_is_not_followed(running):
    os.symlink(running.qemu.qmp_path, running.hosts[1].path("linked.qmp"))
    migrate(running, 31, running.vecycles[1].address, "--name", "linked", words=["linked"])


def test_a_destination_qemu_that_does_not_wait(running):
    other = running.new_qemu(1)
    migrate(running, 31, running.vecycles[1].address, "--name", other.name, words=["defer"])


def test_a_destination_qmp_that_somebody_else_has(running):
    dest = running.incoming(1)
    client = socket.socket(socket.AF_UNIX)
    client.connect(f"{running.hosts[1].sockets}/{dest.name}.qmp")
    assert client.recv(1000)  # QEMU serves this one
    # Longer than the peer may be silent (10 s), which it is not.
    migrate(running, 31, running.vecycles[1].address, "--name", dest.name,
            words=["QMP greeting", "one client at a time"])
    client.close()


def test_a_destination_that_is_another_vm(running):
    from vctest.qemu import Qemu, new_uuid
    other = Qemu(running.hosts[1], "other", running.ram_mib, new_uuid(), "defer", running.options)
    migrate(running, 31, running.vecycles[1].address, "--name", other.name, words=["-uuid"])


def test_a_destination_with_less_memory_fails_cleanly(running):
    from vctest.qemu import Qemu
    other = Qemu(running.hosts[1], "small", running.ram_mib // 2, running.vm, "defer",
                 running.options)
    r = running.vecycle().run("migrate", "--qmp", running.qemu.qmp_path, "--name", other.name,
                              running.vecycles[1].address)
    assert r.returncode in (31, 52), r.stderr
    one_line(r.stderr)
    running.still_runs_here()


def test_a_peer_of_another_version(running):
    misbehave(running, hello(low=7, high=9), 21, words=["version"])


def test_a_peer_that_is_no_vecycle(running):
    misbehave(running, b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 600, 22)


@pytest.mark.parametrize("data", [
    hello(role=1),                                     # the same role as ours
    hello() + frame(200),                              # unknown and not optional
    hello() + frame(3, b"\xff" * 100),                 # ACCEPT full of nonsense
    hello() + frame(17, b"\0" * 48),                   # BATCH is not for it to send
    hello() + struct.pack("<IBBH", 1 << 31, 3, 0, 0),  # a length without measure
    hello() + frame(3, b"\0" * 23, flags=0x80),        # unknown flags
    hello() + frame(19, b"\0" * 16),                   # ACK in the wrong phase
], ids=["role", "type", "accept", "direction", "length", "flags", "phase"])
def test_an_illegal_frame(running, data):
    misbehave(running, data, 22)


def test_a_peer_that_hangs_up(running):
    path = running.hosts[0].path("rogue")
    server = Server(path, lambda c: c.sendall(hello()))
    migrate(running, 23, f"unix:{path}", words=["rogue"])
    server.close()


def test_illegal_frames_do_not_hurt_the_agent(running):
    f = running
    for data in b"\0" * 4096, b"\xff" * 4096, hello(1) + frame(2, b"\xff" * 500), os.urandom(9000):
        c = socket.socket(socket.AF_UNIX)
        c.connect(f.vecycles[1].address.removeprefix("unix:"))
        c.settimeout(20)
        try:
            c.sendall(data)
            while c.recv(65536):
                pass
        except ConnectionError:
            pass
        c.close()
    assert f.vecycles[1].agent.alive()
    assert f.migrate(1, compare=False)["confirmed"]


def test_rubbish_on_the_control_socket(running):
    v = running.vecycles[0]
    for data in b"hello\n", b'{"do":"migrate"}\n', b'{"do":7}\n', b"\xff" * 5000:
        c = socket.socket(socket.AF_UNIX)
        c.connect(v.control)
        c.settimeout(20)
        c.sendall(data)
        answer = c.recv(65536)
        while more := c.recv(65536):
            answer += more
        assert b"error" in answer
        c.close()
    assert v.agent.alive()


def ask(v, request, fds):
    """The agent's last line for a request with these descriptors."""
    c = socket.socket(socket.AF_UNIX)
    c.connect(v.control)
    c.settimeout(20)
    socket.send_fds(c, [json.dumps(request).encode() + b"\n"], [x.fileno() for x in fds])
    answer = b""
    while more := c.recv(65536):
        answer += more
    c.close()
    return json.loads(answer.splitlines()[-1])["end"]["error"]


def test_only_what_a_shutdown_wakes_is_taken_on_the_control_socket(running):
    """An agent that waited for something else could not end any more."""
    v, receive, proxy = running.vecycles[0], {"do": "receive", "security": 1, "peer": "me"}, {
        "do": "proxy", "security": 1, "peer": "me", "vm": running.vm}
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 2)  # NETLINK_USERSOCK
    udp, listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX)
    tcp = socket.create_server(("127.0.0.1", 0))
    listener.bind(running.hosts[0].path("listener"))
    listener.listen(1)
    a, _ = good = socket.socketpair()
    for bad in netlink, udp, listener, tcp:
        for fds in [bad, bad], [a, bad], [bad, a]:
            assert "neither a stream socket nor a pipe" in ask(v, receive, fds)["message"]
        assert "no connected Unix stream" in ask(v, proxy, [a, a, bad])["message"]
    for bad in netlink, udp, tcp, a:
        assert "no Unix stream socket that listens" in ask(v, proxy, [a, a, a, bad])["message"]
    for s in netlink, udp, tcp, listener, *good:
        s.close()
    assert v.agent.stop() >= 0, "it had to be killed"


def proxy_with(f, data, status, words=()):
    listen = f.hosts[0].path("out.sock")
    f.new_qemu(1, f"unix:{f.hosts[1].path('vm.sock')}")
    p, _ = f.vecycle().start_proxy(listen, f.vm, f.vecycles[1].address, "vm")
    c = socket.socket(socket.AF_UNIX)
    c.connect(listen)
    try:
        c.sendall(data)
        c.shutdown(socket.SHUT_WR)
    except ConnectionError:
        pass
    assert p.wait() == status, p.messages()
    c.close()
    line = one_line(p.messages().replace("vecycle: waiting for a migration\n", ""))
    for w in words:
        assert w in line, line


def test_a_qemu_that_refuses_to_migrate(fleet):
    f = fleet()
    # A device with memory of another VM's: QEMU migrates that only where it owns it.
    f.boot_selfcheck(extra=["-object", "memory-backend-ram,id=shm,size=1M,share=on",
                            "-device", "ivshmem-plain,memdev=shm,master=off"])
    dest = f.incoming(1)
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, dest.name, ok=False)
    assert r["status"] == 11 and "ivshmem" in r["messages"], r
    f.still_runs_here()
    assert all(v.agent.alive() for v in f.vecycles)
    assert f.vecycle().json("show", f.vm)["handover"] == "settled"
    dest.wait_status("inmigrate")  # nothing has come: it still waits


def test_a_stream_that_is_not_qemus(running):
    proxy_with(running, b"GET / HTTP/1.1\r\n\r\n" * 10, 50, words=["not a migration stream"])


def test_a_stream_without_return_path(running):
    listen = running.hosts[0].path("out.sock")
    running.new_qemu(1, f"unix:{running.hosts[1].path('vm.sock')}")
    p, _ = running.vecycle().start_proxy(listen, running.vm, running.vecycles[1].address, "vm")
    running.qemu.migrate_plain(f"unix:{listen}", capabilities=("events",))
    assert p.wait() == 51, p.messages()
    assert "return-path" in p.messages()
    running.still_runs_here()


def test_a_proxy_carries_no_multifd(running):
    listen = running.hosts[0].path("out.sock")
    running.new_qemu(1, f"unix:{running.hosts[1].path('vm.sock')}")
    p, _ = running.vecycle().start_proxy(listen, running.vm, running.vecycles[1].address, "vm")
    running.qemu.migrate_plain(f"unix:{listen}", capabilities=("return-path", "events", "multifd"))
    assert p.wait() == 50, p.messages()
    assert "turn off the migration capability 'multifd'" in p.messages(), p.messages()
    running.still_runs_here()


@pytest.mark.newer_qemu
def test_a_preempt_connection_that_the_destination_does_not_expect(fleet, namespaces):
    f = fleet(rate="100mbit")
    f.boot_linux(192, 60)
    listen = f.hosts[0].path("out.sock")
    dest = f.new_qemu(1, "defer")
    dest.set_capabilities(["postcopy-ram"])
    dest.qmp.execute("migrate-incoming", uri=f"unix:{f.hosts[1].path('vm.sock')}")
    p, _ = f.vecycle().start_proxy(listen, f.vm, f.vecycles[1].address, "vm")
    f.qemu.migrate_plain(f"unix:{listen}", capabilities=(
        "return-path", "events", "postcopy-ram", "postcopy-preempt"))
    late = f.qemu.version() >= (8, 0)  # connects in the switch, which cannot be undone
    if late:
        f.qemu.qmp.execute("migrate-start-postcopy")
    assert p.wait() == 31, p.messages()
    assert "postcopy-preempt" in p.messages(), p.messages()
    if late:
        wait_for(lambda: f.qemu.qmp.execute("query-migrate")["status"] in
                 ("postcopy-paused", "failed"), 30, "the migration to end")
    else:
        f.still_runs_here()


def test_a_proxy_whose_destination_does_not_listen(running):
    listen = running.hosts[0].path("out.sock")
    p, _ = running.vecycle().start_proxy(listen, running.vm, running.vecycles[1].address, "vm")
    running.qemu.migrate_plain(f"unix:{listen}")
    assert p.wait() == 30, p.messages()
    running.still_runs_here()


def test_a_proxy_for_no_uuid(running):
    refused(running, 2, "proxy", "--listen", "/tmp/x", "--vm", "vm1", "--to", "unix:/x",
            words=["UUID"])


def test_a_store_that_cannot_be_opened(running):
    blocked = running.hosts[0].dir / "blocked"
    blocked.write_text("a file")
    running.incoming(1)
    argv = ["migrate", "--store", blocked, "--control", "none", "--qmp", running.qemu.qmp_path,
            running.vecycles[1].address]
    r = running.hosts[0].run([BINARY, *argv])
    assert r.returncode == 40, r.stderr
    assert str(blocked) in one_line(r.stderr)
    running.still_runs_here()
    for argv in ["ls"], ["show", running.vm], ["serve", "--control", running.hosts[0].path("c2")]:
        r = running.hosts[0].run([BINARY, argv[0], "--store", blocked, *argv[1:]], timeout=20)
        assert r.returncode == 40, (argv, r.stderr)


def test_the_checkpoint_of_a_vm_that_migrates_is_not_removed(fleet, namespaces):
    f = fleet(rate="50mbit")
    f.boot_linux(192, 60)
    dest = f.incoming(1)
    p, _ = f.vecycle().start_migrate(f.qemu, f.vecycles[1].address, dest.name)
    wait_for(lambda: f.qemu.qmp.execute("query-migrate").get("status") == "active", 20, "a start")
    r = f.vecycle().run("rm", f.vm)
    assert r.returncode == 43, r.stderr
    p.popen.terminate()
    assert p.wait() == 60
    f.still_runs_here()


def test_unknown_vms(running):
    none = "12345678-1234-1234-1234-123456789abc"
    for command in "show", "verify", "rm", "resolve":
        assert none in refused(running, 30, command, none) or command != "show"
        refused(running, 30, command, "../../etc")
    assert json.loads(running.vecycle().run("ls", "--json").stdout) == []


@pytest.mark.parametrize("argv", [[], ["fly"], ["migrate"], ["migrate", "--qmp"], ["ls", "--wings"],
                                  ["migrate", "--qmp", "x", "a", "b"], ["serve", "extra"],
                                  ["migrate", "--qmp", "x", "--max-bandwidth", "fast", "y"]])
def test_wrong_arguments(hosts, argv):
    r = hosts[0].run([BINARY, *argv])
    assert r.returncode == 2 and r.stderr


def test_a_directory_with_something_else_in_it_is_no_store(running):
    other = running.hosts[0].dir / "other"
    other.mkdir(0o700)
    (other / "passwd").touch()
    running.vecycle().store, running.vecycle().control = other, "none"
    refused(running, 40, "policy", running.vm, "pinned", words=[str(other), "something else"])
    dest = running.incoming(1)
    migrate(running, 40, running.vecycles[1].address, "--name", dest.name, words=[str(other)])
    assert os.listdir(other) == ["passwd"]


def test_what_cannot_be_printed_is_told(running):
    with open("/dev/full", "w") as full:
        r = subprocess.run([BINARY, "ls", "--json", *map(str, running.vecycle().common())], stdout=full,
                           stderr=subprocess.PIPE, text=True)
    assert r.returncode == 1 and "standard output" in one_line(r.stderr)


def test_each_command_prints_json(running):
    v = running.vecycle()
    assert v.json("policy", running.vm, "pinned") == {"policy": "pinned"}
    running.migrate(1)
    assert v.json("resolve", running.vm)["handover"] == "settled"
    assert v.json("resolve", running.vm, "--retry")["handover"] == "settled"
    assert v.json("rm", running.vm) == {"removed": [running.vm]}
