# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU is left as it was found: parameters, capabilities, and whether a VM that arrives starts."""
import signal

import pytest
from vctest.gate import BATCH, START, WORD, Gate, QmpGate, RefusingQmp
from vctest.proc import wait_for

# Of the source's owner: ours are 5 ms and 1 TiB/s.
PARAMETERS = {"downtime-limit": 1500, "max-bandwidth": 40000000}
# On both hosts; ours is off. (A source that may not start postcopy, and a destination that could.)
CAPABILITIES = {"xbzrle", "release-ram", "auto-converge"}
TLS = ["-object", "tls-creds-anon,id=tc,endpoint={},verify-peer=off"]


def parameters(qemu, names=tuple(PARAMETERS)):
    now = qemu.qmp.execute("query-migrate-parameters")
    return {name: now.get(name) for name in names}


def set_parameters(qemu, values):
    qemu.qmp.execute("migrate-set-parameters", **values)


def capabilities(qemu):
    return {c["capability"] for c in qemu.qmp.execute("query-migrate-capabilities") if c["state"]}


def is_as_before(qemu):
    return capabilities(qemu) == CAPABILITIES and parameters(qemu) == PARAMETERS


def incoming(f, to, extra=()):
    dest = f.incoming(to, extra)
    dest.set_capabilities(CAPABILITIES)
    return dest


@pytest.fixture
def owned(fleet):
    """A VM and a destination with settings of their owner's, and a gate between the hosts."""
    gates = []

    def make(agents=True, extra=(), dest_extra=(), end_mib=8, delay=200000):
        f = fleet(namespaces=False, agents=agents)
        if not agents:  # a migration without an agent still needs one at the destination
            f.vecycles[1] = type(f.vecycles[0])(f.hosts[1])
        f.boot_selfcheck(end_mib=end_mib, delay=delay, extra=extra)
        f.qemu.set_capabilities(CAPABILITIES)
        set_parameters(f.qemu, PARAMETERS)
        f.options = [o for o in f.options if o not in extra]
        f.dest = incoming(f, 1, dest_extra)
        f.gate = Gate(f.hosts[1].path("gate"), f.vecycles[1].address)
        gates.append(f.gate)
        return f
    yield make
    for g in gates:
        if not g.closed:
            g.close()


def start(f, *extra):
    return f.vecycle().start_migrate(f.qemu, f.gate.address, f.dest.name, extra)[0]


def hold(f, frame=BATCH):
    """A migration of which nothing gets through yet."""
    f.gate.hold(frame, True)
    p = start(f)
    assert f.gate.is_held.wait(60), p.messages()
    return p


def goes_there(f):
    r = f.vecycle().migrate(f.qemu, f.gate.address, f.dest.name, ["--retry", "3"])
    f.dest.wait_status("running")
    return r


def arrives_running(f, qemu):
    """Whether a VM that plain QEMU sends there starts, though nobody says `cont`. (It could always
    run: the one that is sent ends.)"""
    path = f.hosts[1].path("plain")
    qemu.qmp.execute("migrate-incoming", uri=f"unix:{path}")
    f.qemu.migrate_plain(f"unix:{path}", capabilities=[])
    f.qemu.wait_migrated()
    wait_for(lambda: qemu.status() != "inmigrate", 30, "the VM to arrive")
    return qemu.status() == "running"


# ---- the end of a session ----

@pytest.mark.newer_qemu
@pytest.mark.parametrize("option", [[], ["--postcopy"], ["--auto-converge"]], ids=str)
def test_both_ends_are_as_before_when_the_vm_has_moved(owned, option):
    f = owned()
    f.vecycle().migrate(f.qemu, f.gate.address, f.dest.name, option)
    assert is_as_before(f.qemu)
    assert capabilities(f.dest) == CAPABILITIES


def test_the_source_is_as_before_when_the_vm_did_not_move(owned):
    f = owned()
    p = hold(f)
    assert not is_as_before(f.qemu)
    p.popen.send_signal(signal.SIGINT)
    assert p.wait() == 60, p.messages()
    assert is_as_before(f.qemu)
    f.still_runs_here()


@pytest.mark.parametrize("command", ["getfd", "migrate", "migrate-set-parameters",
                                     "migrate-set-capabilities"])
def test_the_source_is_as_before_when_it_refuses(owned, command):
    f = owned()
    path, f.qemu.qmp_path = f.qemu.qmp_path, f.hosts[0].path("refusing.qmp")
    gate = RefusingQmp(f.qemu.qmp_path, path, command)
    p = start(f)
    assert p.wait() == 11, p.messages()
    assert gate.was_refused and is_as_before(f.qemu)
    gate.close()


@pytest.mark.parametrize("command", ["stop", "migrate-incoming", "migrate-set-capabilities"])
def test_a_destination_that_refuses_is_as_before(owned, command):
    f = owned()
    path = f.dest.qmp_path
    name, f.dest.name = f.dest.name, "refusing"
    gate = RefusingQmp(f.hosts[1].path("refusing.qmp"), path, command)
    p = start(f)
    assert p.wait() == 31, p.messages()
    f.dest.name = name
    wait_for(lambda: capabilities(f.dest) == CAPABILITIES, 30, "the destination to be as before")
    gate.close()
    f.still_runs_here()
    # Behind somebody's relay nobody knows which process QEMU is, and so whether it had -S.
    assert arrives_running(f, f.dest) == (command != "migrate-incoming")


def test_a_destination_that_is_refused_in_the_opening_is_not_touched(owned):
    f = owned()
    path, name = f.dest.qmp_path, f.dest.name
    gate = RefusingQmp(f.hosts[1].path("watched.qmp"), path)
    f.dest.name = "watched"
    p = hold(f, START)
    f.gate.cut()
    assert p.wait() == 23, p.messages()
    wait_for(lambda: "ended" in f.vecycles[1].log.read_text() or
             "hung up" in f.vecycles[1].log.read_text(), 30, "the other agent to notice")
    assert not {"stop", "migrate-set-capabilities", "migrate-set-parameters"} & set(gate.seen)
    gate.close()
    f.dest.name = name
    assert capabilities(f.dest) == CAPABILITIES
    assert arrives_running(f, f.dest)


@pytest.mark.parametrize("stopped", [False, True], ids=["starts", "-S"])
def test_a_vm_that_did_not_come_starts_by_itself_as_before(owned, stopped):
    f = owned(dest_extra=["-S"] if stopped else [])
    p = hold(f)
    wait_for(lambda: capabilities(f.dest) != CAPABILITIES, 30, "the destination to be set up")
    f.gate.refuse()  # or the source's agent would tell the destination's to end that QEMU
    p.popen.send_signal(signal.SIGINT)
    assert p.wait() == 60, p.messages()
    f.gate.cut()
    wait_for(lambda: capabilities(f.dest) == CAPABILITIES, 30, "the destination to be as before")
    assert f.dest.status() == "inmigrate"
    assert arrives_running(f, f.dest) == (not stopped)


def test_a_vm_that_somebody_else_has_brought_meanwhile_runs_on(owned):
    f = owned()
    name, f.dest.name = f.dest.name, "slow"
    gate = QmpGate(f.hosts[1].path("slow.qmp"), f.dest.qmp_path)
    gate.hold("stop")
    p = start(f)
    assert gate.is_held.wait(60), p.messages()
    other = f.new_qemu(0)
    path = f.hosts[1].path("plain")
    f.dest.qmp.execute("migrate-incoming", uri=f"unix:{path}")
    other.migrate_plain(f"unix:{path}", capabilities=[])
    f.dest.wait_status("running")
    gate.release()
    assert p.wait() == 31, p.messages()
    assert "somebody else's migration" in p.messages()
    assert f.dest.status() == "running" and f.qemu.status() == "running"
    gate.close()


# ---- kill -9 ----

def test_an_agent_that_was_killed_puts_back_what_it_had_set(owned):
    f = owned()
    p = hold(f)
    f.vecycles[0].agent.kill()
    p.kill()
    f.gate.cut()
    assert not is_as_before(f.qemu)
    f.vecycles[0].start_agent([f.vecycles[0].address])
    wait_for(lambda: is_as_before(f.qemu), 30, "the source to be as before")
    f.still_runs_here()
    f.dest.stop()
    f.dest = incoming(f, 1)
    goes_there(f)
    assert is_as_before(f.qemu)


def test_a_destination_agent_that_was_killed_puts_back_what_it_had_set(owned):
    f = owned()
    hold(f)
    wait_for(lambda: capabilities(f.dest) != CAPABILITIES, 30, "the destination to be set up")
    f.gate.refuse()
    f.vecycles[1].agent.kill()
    f.gate.cut()
    assert capabilities(f.dest) != CAPABILITIES
    f.vecycles[1].start_agent([f.vecycles[1].address])
    wait_for(lambda: capabilities(f.dest) == CAPABILITIES, 30, "the destination to be as before")
    f.still_runs_here()
    assert f.dest.status() == "inmigrate"
    assert arrives_running(f, f.dest)


def test_the_next_migration_takes_nothing_of_a_killed_one_for_the_users(owned):
    f = owned(agents=False)
    p = hold(f)
    p.kill()
    f.gate.cut()
    assert not is_as_before(f.qemu)
    f.dest.stop()
    f.dest = incoming(f, 1)
    goes_there(f)
    assert is_as_before(f.qemu)


def test_what_the_owner_has_set_since_a_killed_migration_is_left_alone(owned):
    f = owned(agents=False)
    p = hold(f)
    p.kill()
    f.gate.cut()
    set_parameters(f.qemu, {"downtime-limit": 777})
    f.dest.stop()
    f.dest = incoming(f, 1)
    goes_there(f)
    assert parameters(f.qemu) == {**PARAMETERS, "downtime-limit": 777}
    assert capabilities(f.qemu) == CAPABILITIES


# ---- an interrupted postcopy ----

def is_paused(qemu):
    return qemu.qmp.execute("query-migrate").get("status") == "postcopy-paused"


@pytest.mark.newer_qemu
@pytest.mark.parametrize("killed", [None, 0, 1], ids=["cut", "source agent", "destination agent"])
def test_what_a_postcopy_needs_stays_until_it_is_recovered(owned, killed):
    f = owned(end_mib=48, delay=0)
    set_parameters(f.qemu, {"max-postcopy-bandwidth": 32 << 10})
    f.gate.hold(WORD, True)
    p = start(f, "--postcopy", "--max-bandwidth", "24M", "--downtime-limit", "1")
    assert f.gate.is_held.wait(60), p.messages()
    f.dest.wait_status("paused")
    if killed is not None:
        f.vecycles[killed].agent.kill()
    f.gate.cut()
    p.wait()
    wait_for(lambda: is_paused(f.qemu) and is_paused(f.dest), 60, "the migration to pause")
    if killed is not None:
        f.vecycles[killed].start_agent([f.vecycles[killed].address])
    assert "postcopy-ram" in capabilities(f.qemu) & capabilities(f.dest)
    set_parameters(f.qemu, {"max-postcopy-bandwidth": 0})
    wait_for(lambda: f.vecycle().migrate(f.qemu, f.gate.address, f.dest.name, ["--recover"],
                                         ok=False)["status"] == 0, 60, "the recovery", step=0.2)
    assert is_as_before(f.qemu)
    assert capabilities(f.dest) == CAPABILITIES
    f.dest.wait_status("running")


# ---- the owner, meanwhile ----

def test_a_value_that_is_set_during_the_migration_stays(owned):
    f = owned()
    p = hold(f)
    theirs = {"downtime-limit": 2345, "max-bandwidth": 123 << 20}
    set_parameters(f.qemu, theirs)
    f.gate.release()
    seen = set()
    while p.alive():
        seen.add(parameters(f.qemu)["downtime-limit"])
    assert p.wait() == 0, p.messages()
    assert parameters(f.qemu) == theirs and seen <= {2345}
    assert capabilities(f.qemu) == CAPABILITIES


# ---- parameters that lead the stream elsewhere ----

def tls(endpoint):
    return [o.format(endpoint) for o in TLS]


@pytest.mark.newer_qemu
@pytest.mark.parametrize("source,dest", [(True, False), (False, True), (True, True)],
                         ids=["source", "destination", "both"])
def test_tls_of_an_earlier_migration_is_put_aside(owned, source, dest):
    f = owned(extra=tls("client"), dest_extra=tls("server"))
    for qemu, wanted in ((f.qemu, source), (f.dest, dest)):
        if wanted:
            set_parameters(qemu, {"tls-creds": "tc", "tls-hostname": "there"})
    goes_there(f)
    names = "tls-creds", "tls-hostname"
    assert parameters(f.qemu, names) == dict(zip(names, ("tc", "there") if source else ("", "")))
    assert parameters(f.dest, names) == dict(zip(names, ("tc", "there") if dest else ("", "")))


@pytest.mark.parametrize("at_source", [True, False], ids=["source", "destination"])
def test_tls_that_nothing_would_stand_in_for_is_not_put_aside(fleet, namespaces, at_source):
    f = fleet()
    f.boot_selfcheck(end_mib=8, delay=200000)
    dest = f.incoming(1)
    set_parameters(f.qemu if at_source else dest, {"tls-creds": "tc"})
    r = f.vecycle().migrate(f.qemu, f.vecycles[1].address, dest.name, ok=False)
    assert r["status"] == (12 if at_source else 31) and "tls-creds is 'tc'" in r["messages"], r
    assert f.qemu.status() == "running" and dest.status() == "inmigrate"
    assert parameters(f.qemu if at_source else dest, ["tls-creds"]) == {"tls-creds": "tc"}


@pytest.mark.parametrize("at_source", [True, False], ids=["source", "destination"])
def test_tls_within_a_proxied_stream_fails_at_once(owned, at_source):
    """The guest goes on; QEMU's own TLS is not understood."""
    f = owned(extra=tls("client"), dest_extra=tls("server"))
    f.dest.stop()
    path = f.hosts[1].path("vm.sock")
    f.dest = f.new_qemu(1, "defer", tls("server"))
    set_parameters(f.qemu if at_source else f.dest, {"tls-creds": "tc", "tls-hostname": "there"})
    f.dest.qmp.execute("migrate-incoming", uri=f"unix:{path}")
    f.qemu.set_capabilities([])
    f.qemu.qmp.execute("migrate-set-capabilities", capabilities=[
        {"capability": c, "state": False} for c in CAPABILITIES])
    p, _ = f.vecycle().start_proxy(f.hosts[0].path("out.sock"), f.vm, f.vecycles[1].address, "vm")
    f.qemu.migrate_plain(f"unix:{f.hosts[0].path('out.sock')}")
    assert p.wait(30) in ((50,) if at_source else (23, 31, 52)), p.messages()
    if at_source:
        assert "TLS" in p.messages()
    f.still_runs_here()


HARMLESS = {"announce-initial": 60, "announce-max": 700, "announce-rounds": 2, "announce-step": 50,
            "compress-level": 2, "compress-threads": 3, "decompress-threads": 3,
            "throttle-trigger-threshold": 40, "cpu-throttle-initial": 30, "cpu-throttle-increment": 5,
            "cpu-throttle-tailslow": True, "tls-hostname": "x", "tls-authz": "y",
            "block-incremental": True, "x-checkpoint-delay": 100, "multifd-channels": 3,
            "multifd-compression": "zlib", "multifd-zlib-level": 3, "multifd-zstd-level": 3,
            "multifd-qatzip-level": 2, "xbzrle-cache-size": 1 << 20, "max-cpu-throttle": 90,
            "max-postcopy-bandwidth": 50 << 20, "x-vcpu-dirty-limit-period": 500,
            "vcpu-dirty-limit": 7, "direct-io": True, "zero-page-detection": "none",
            "x-rdma-chunk-size": 2 << 20, "compress-wait-thread": False}
PUT_ASIDE = [("mode", "cpr-reboot"), ("mode", "cpr-transfer"), ("mode", "cpr-exec"),
             ("avail-switchover-bandwidth", 4096), ("tls-creds", "tc")]
NOT_TRIED = {"downtime-limit", "max-bandwidth", "cpr-exec-command", "block-bitmap-mapping"}


@pytest.mark.newer_qemu
def test_whatever_parameter_is_set(owned):
    """A VM moves, and it is still so afterwards."""
    f = owned()
    f.gate.close()
    before = f.qemu.qmp.execute("query-migrate-parameters")
    known = set(HARMLESS) | {name for name, _ in PUT_ASIDE} | NOT_TRIED
    assert not set(before) - known, "what do these do?"
    for values in [HARMLESS, *({n: v} for n, v in PUT_ASIDE)]:
        values = {n: v for n, v in values.items() if n in before}
        try:
            set_parameters(f.qemu, values)
        except Exception as e:
            assert "mode" in values, e  # one that this QEMU does not have
            continue
        now = f.qemu.qmp.execute("query-migrate-parameters")
        left = f.qemu
        f.vecycle().migrate(f.qemu, f.vecycles[1 - f.at].address, f.dest.name)
        assert left.qmp.execute("query-migrate-parameters") == now, values
        f.arrived(1 - f.at, f.dest)
        f.check_guest()
        f.dest = f.incoming(1 - f.at)
