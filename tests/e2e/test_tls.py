# SPDX-License-Identifier: LGPL-2.1-or-later
"""tls://: certificates on both sides, and the list of peers, on real QEMU."""
import os
import socket
import subprocess
from pathlib import Path

import pytest
from vctest.proc import wait_for
from vctest.relay import FrameCutter
from vctest.vecycle import BINARY

PORT = 7891
WORD = 33
DIE = Path(__file__).resolve().parents[1] / "support" / "preload" / "die_at_handover.c"


class Secure:
    """A fleet whose agents listen on tls:// alone, with certificates from `vecycle tls init`."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.pki = fleet.hosts[0].dir / "pki"
        self.init(*(f"{h.name},{h.address}" for h in fleet.hosts))

    def init(self, *hosts, pki=None):
        r = subprocess.run([BINARY, "tls", "init", "--dir", pki or self.pki, *hosts],
                           capture_output=True, text=True)
        assert r.returncode == 0, r.stderr

    def start(self, i, certificates=None, extra=()):
        v, h = self.fleet.vecycles[i], self.fleet.hosts[i]
        v.control = h.path("control")
        v.address = f"tls://{h.address}:{PORT}"
        v.start_agent([v.address], ["--tls-dir", certificates or self.pki / h.name, *extra])
        return v

    def restart(self, i, **kw):
        self.fleet.vecycles[i].agent.stop()
        return self.start(i, **kw)

    def refused(self, words, name=None, extra=(), status=24):
        """A migration that the other host does not take."""
        f = self.fleet
        r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, name, extra, ok=False)
        assert r["status"] == status, r["messages"]
        for w in words:
            assert w in r["messages"], r["messages"]
        f.still_runs_here()


@pytest.fixture
def secure(fleet, namespaces):
    return Secure(fleet(agents=False))


@pytest.fixture
def started(secure):
    """Both agents run, and a small VM on the first host."""
    secure.start(0)
    secure.start(1)
    secure.fleet.boot_selfcheck(end_mib=8, delay=200000)
    return secure


def test_there_and_back_with_reuse(secure):
    f = secure.fleet
    secure.start(0)
    secure.start(1)
    f.boot_linux(192, 60)
    first = f.migrate(1)
    assert first["confirmed"] and first["pages"]["data"] > 15000
    back = f.migrate(0)
    assert back["base"] == 1
    assert back["wire_bytes"] < first["wire_bytes"] / 50
    f.check_guest()
    for v in f.vecycles:
        assert v.json("show", f.vm)["exposed"] is False
    assert "b at 10.88.0.2" in f.vecycles[0].json("show", f.vm)["peer"]


def test_a_source_without_an_agent_uses_its_own_certificates(started):
    f = started.fleet
    dest = f.incoming(1)
    argv = ["--control", "none", "--store", f.hosts[0].dir / "own", "--tls-dir", started.pki / "a"]
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, dest.name, argv)
    assert r["confirmed"] and dest.status() == "running"
    assert "in the clear" not in r["messages"]
    f.arrived(1, dest)
    f.check_guest()


def test_a_peer_of_another_authority_is_refused(started):
    f = started.fleet
    other = f.hosts[0].dir / "other"
    started.init(f"a,{f.hosts[0].address}", pki=other)
    started.restart(0, certificates=other / "a")
    started.refused(["is not trusted", "one authority"])
    # A peer that does not care who the server is, is not let in either.
    mixed = f.hosts[0].dir / "mixed"
    mixed.mkdir()
    for name, of in (("ca-cert.pem", started.pki / "a"), ("client-cert.pem", other / "a"),
                     ("client-key.pem", other / "a"), ("server-cert.pem", other / "a"),
                     ("server-key.pem", other / "a")):
        (mixed / name).write_bytes((of / name).read_bytes())
        (mixed / name).chmod(0o600)
    started.restart(0, certificates=mixed)
    started.refused(["does not take this host's certificate"])
    assert f.vecycles[1].json("ls") == [] and f.vecycles[1].agent.alive()


def test_a_host_of_another_name_is_refused_unless_it_is_asked_for(started):
    f = started.fleet
    started.init("elsewhere.example")
    started.restart(1, certificates=started.pki / "elsewhere.example")
    dest = f.incoming(1)
    started.refused(["is not for '10.88.0.2'", "--tls-hostname"], dest.name)
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, dest.name,
                            ["--tls-hostname", "elsewhere.example"])
    assert r["confirmed"]
    f.arrived(1, dest)
    f.check_guest()


def test_the_list_says_who_may_reach_what(started):
    f = started.fleet
    peers = f.hosts[1].dir / "peers"
    peers.write_text("# nobody that we know\nelsewhere.example *\n")
    started.restart(1, extra=["--allow", peers])
    dest = f.incoming(1)
    started.refused(["'a' is not among the peers"], dest.name)
    # The list counts as it is when a peer comes.
    peers.write_text("a 12345678-1234-1234-1234-123456789abc other-*\n")
    started.refused(["may not reach", f.vm], dest.name)
    peers.write_text(f"a {f.vm}\n")  # but not under that name
    started.refused(["may not reach", f.vm], dest.name)
    peers.write_text("a vm*\nthis is = no line\n")
    started.refused(["peers:2"], dest.name)
    assert f.vecycles[1].json("ls") == [], "the store was not touched"
    assert dest.status() == "inmigrate"
    peers.write_text(f"A*  {dest.name}   # case does not matter in names of hosts\n")
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, dest.name)
    assert r["confirmed"]
    f.arrived(1, dest)
    f.check_guest()


def test_a_proxy_needs_name_and_uuid_on_the_list(started):
    f = started.fleet
    peers = f.hosts[1].dir / "peers"
    peers.write_text("a in\n")  # QEMU cannot be asked which VM that is
    started.restart(1, extra=["--allow", peers])
    dest = f.new_qemu(1, f"unix:{f.hosts[1].path('in.sock')}", ["-S"])
    listen = f.hosts[0].path("out.sock")
    p, _ = f.vecycle().start_proxy(listen, f.vm, f.vecycles[1].address, "in")
    f.qemu.migrate_plain(f"unix:{listen}")
    assert p.wait() == 24, p.messages()
    f.still_runs_here()
    peers.write_text(f"a in={f.vm}\n")
    p, _ = f.vecycle().start_proxy(listen, f.vm, f.vecycles[1].address, "in")
    f.qemu.migrate_plain(f"unix:{listen}")
    f.qemu.wait_migrated()
    assert p.wait() == 0, p.messages()
    assert f.qemu.ram_digest() == dest.ram_digest()
    dest.qmp.execute("cont")
    f.arrived(1, dest)
    f.check_guest()


def test_a_lost_word_is_given_again_over_tls(secure):
    f = secure.fleet
    secure.start(0)
    peers = f.hosts[1].dir / "peers"
    peers.write_text("b *\n")
    plain = f.hosts[1].path("plain")
    secure.start(1, extra=["--listen", f"unix:{plain}", "--allow", peers])
    f.boot_selfcheck(end_mib=8, delay=200000)
    dest = f.incoming(1)
    link = f.hosts[1].path("link")
    cutter = FrameCutter(link, plain, WORD)
    r = f.vecycle().migrate(f.qemu, f"unix:{link}", dest.name, ok=False)
    cutter.close()
    assert r["status"] == 61, r["messages"]
    argv = ["resolve", f.vm, "--retry", "--to", f.vecycles[1].address, "--tls-dir"]

    def retry(status):
        # The destination may still be clearing up the session that broke.
        wait_for(lambda: f.vecycle().run(*argv, secure.pki / "a").returncode == status, 20,
                 "the word to be given")

    assert f.vecycle().run(*argv, "/nonexistent").returncode == 2
    retry(24)
    peers.write_text("a other\n")
    retry(24)
    assert dest.status() == "paused"
    peers.write_text(f"a {dest.name}\n")  # the record has the name
    retry(0)
    assert dest.status() == "running"
    f.arrived(1, dest)
    f.check_guest()


@pytest.mark.parametrize("name,resolve", [(None, False), ("elsewhere.example", False),
                                          ("elsewhere.example", True)])
def test_agents_settle_a_lost_word_over_tls(secure, tmp_path, name, resolve):
    """By the record: the address, and the name in the certificate there. Nobody can look into TLS, so
    the word is lost with the source's agent, which dies before it gives it."""
    if "VC_TEST_VECYCLE" in os.environ:
        pytest.skip("a sanitizer has to be loaded first")
    f = secure.fleet
    source, lib, trigger = f.vecycles[0], tmp_path / "die.so", tmp_path / "trigger"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", lib, DIE, "-ldl"], check=True)
    source.wrapper = ["env", f"LD_PRELOAD={lib}", f"VC_DIE_TRIGGER={trigger}",
                      "VC_DIE_STATE=2"]  # LEFT
    if name:
        secure.init(name)
    secure.start(0)
    secure.start(1, certificates=secure.pki / (name or "b"))
    names = ["--tls-hostname", name] if name else []
    f.boot_selfcheck(end_mib=8, delay=200000)
    f.migrate(1, names)  # there is a record to overwrite
    f.migrate(0)
    trigger.touch()
    dest = f.incoming(1)
    assert source.migrate(f.qemu, f.vecycles[1].address, dest.name, names, ok=False)["status"] != 0
    source.agent.wait(20)
    wait_for(lambda: f.qemu.status() == "postmigrate", 30, "QEMU to complete")

    def handovers():
        return [v.json("show", f.vm)["handover"] for v in f.vecycles]

    assert dest.status() == "paused" and handovers() == ["leaving", "arriving"]
    source.wrapper = ()
    if resolve:  # without an agent, and without being told the name
        source.control = "none"
        argv = ["resolve", f.vm, "--retry", "--tls-dir", secure.pki / "a"]
        wait_for(lambda: source.run(*argv).returncode == 0, 30, "the word to be given")
    else:
        secure.start(0)
    wait_for(lambda: handovers() == ["settled", "settled"], 90, "the agents to settle it")
    assert dest.status() == "running"
    f.arrived(1, dest)
    f.check_guest()


# Opens connections and says nothing on them, until its standard input ends.
IDLE = """
import socket, sys
c = []
for _ in range(int(sys.argv[2])):
    s = socket.socket()
    s.connect((sys.argv[1], int(sys.argv[3])))
    s.send(b"\\x16")
    c.append(s)
print("connected", flush=True)
sys.stdin.read()
"""


def test_peers_that_never_finish_their_handshake_hold_nobody_up(started):
    f = started.fleet
    started.restart(1, extra=["--tls-timeout", "600000"])
    idle = subprocess.Popen(
        f.hosts[0].argv(["/usr/bin/python3", "-c", IDLE, f.hosts[1].address, "200", PORT]),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert idle.stdout.readline() == "connected\n"
        assert f.migrate(1, compare=False)["confirmed"]
        fds = Path(f"/proc/{agent_pid(f.vecycles[1])}/fd")
        sockets = [fd for fd in fds.iterdir() if os.readlink(fd).startswith("socket:")]
        assert len(sockets) < 180, "connections of unknown peers are limited"
    finally:
        idle.stdin.close()
        idle.wait(10)
    # The agent ends in spite of those that still dawdle.
    f.vecycles[1].agent.popen.terminate()
    assert f.vecycles[1].agent.wait(20) == 0


def agent_pid(v):
    """`ip netns exec` becomes the program itself."""
    assert open(f"/proc/{v.agent.pid}/comm").read().startswith("vecycle")
    return v.agent.pid


def test_only_who_may_use_the_control_socket_hands_a_migration_over(started):
    f = started.fleet
    os.chmod(f.network.dir, 0o755)
    os.chmod(f.qemu.qmp_path, 0o777)  # this VM is that user's
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", BINARY, "migrate",
            "--control", f.vecycles[0].control, "--qmp", f.qemu.qmp_path, f.vecycles[1].address]
    r = f.hosts[0].run(argv)
    assert r.returncode == 24, r.stderr
    assert f.vecycles[0].control in r.stderr and "--control-group" in r.stderr
    f.still_runs_here()


def serve(secure, *argv):
    h = secure.fleet.hosts[0]
    return h.run([BINARY, "serve", "--store", h.dir / "store", "--control", h.path("c"),
                  "--socket-dir", h.sockets, *argv], timeout=20)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_authority_that_another_user_has_planted_is_refused(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    argv = [BINARY, "tls", "init", "--dir", shared / "vecycle-tls"]
    theirs = subprocess.run([*argv, "attacker"], capture_output=True, text=True)
    assert "new certificate authority" in theirs.stdout
    subprocess.run(["chown", "-R", "65534:65534", shared / "vecycle-tls"], check=True)
    r = subprocess.run([*argv, "host1"], capture_output=True, text=True)
    assert r.returncode == 24 and str(shared / "vecycle-tls") in r.stderr and "--dir" in r.stderr
    assert not (shared / "vecycle-tls" / "host1").exists()
    # One's own is used, and that is said.
    subprocess.run(["chown", "-R", "0:0", shared / "vecycle-tls"], check=True)
    r = subprocess.run([*argv, "host1"], capture_output=True, text=True)
    assert r.returncode == 0 and "was there" in r.stdout.splitlines()[0]


def test_an_agent_does_not_start_with_what_is_not_safe(secure):
    a = secure.pki / "a"
    listen = ["--listen", "tls://127.0.0.1:0"]
    r = serve(secure, *listen, "--tls-dir", "/nonexistent")
    assert r.returncode == 2 and "vecycle tls init" in r.stderr
    (a / "server-key.pem").chmod(0o644)
    r = serve(secure, *listen, "--tls-dir", a)
    assert r.returncode == 24 and "server-key.pem" in r.stderr and "chmod" in r.stderr
    (a / "server-key.pem").chmod(0o600)
    for name, mode in (".", 0o700), ("ca-cert.pem", 0o600), ("server-cert.pem", 0o600):
        (a / name).chmod(mode | 0o020)
        r = serve(secure, *listen, "--tls-dir", a)
        assert r.returncode == 24 and str(a / name) in r.stderr and "chmod" in r.stderr
        (a / name).chmod(mode)
    r = serve(secure, *listen, "--tls-dir", a, "--allow", "/nonexistent/peers")
    assert r.returncode == 24 and "/nonexistent/peers" in r.stderr
    peers = secure.fleet.hosts[0].dir / "peers"
    peers.write_text("a\n")
    r = serve(secure, *listen, "--tls-dir", a, "--allow", peers)
    assert r.returncode == 24 and "peers:1" in r.stderr
    peers.write_text("a *\n")
    peers.chmod(0o666)
    r = serve(secure, *listen, "--tls-dir", a, "--allow", peers)
    assert r.returncode == 24 and "chmod" in r.stderr
    peers.chmod(0o644)
    r = serve(secure, "--listen", "tcp://127.0.0.1:0", "--insecure", "--allow", peers)
    assert r.returncode == 2 and "--allow" in r.stderr


def test_plain_text_is_told_about(started):
    f = started.fleet
    v = f.vecycles[1]
    v.agent.stop()
    v.start_agent([f"tcp://{f.hosts[1].address}:7890"])
    assert "in the clear" in v.log.read_text()
    dest = f.incoming(1)
    r = f.vecycle().migrate(f.qemu, f"tcp://{f.hosts[1].address}:7890", dest.name)
    assert "in the clear" in r["messages"]
    f.arrived(1, dest)
    shown = f.vecycles[1].json("show", f.vm)
    assert shown["exposed"] is True and shown["peer"] == f"tcp://{f.hosts[0].address}", shown
    f.check_guest()


def test_tls_and_plain_text_do_not_mix(started):
    f = started.fleet
    v = f.vecycles[1]
    r = f.vecycle().migrate(f.qemu, f"tcp://{f.hosts[1].address}:{PORT}", ok=False)
    assert r["status"] in (22, 23), r["messages"]
    f.still_runs_here()
    v.agent.stop()
    v.start_agent([f"tcp://{f.hosts[1].address}:{PORT}"])
    started.refused(["tls://"], status=22)
    with socket.socket(socket.AF_UNIX) as s:  # both agents live
        s.connect(v.control)
