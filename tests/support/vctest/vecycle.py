# SPDX-License-Identifier: LGPL-2.1-or-later
"""vecycle on a host: agent, migrations, proxies."""
import json
import os

from .guest import BUILD
from .proc import wait_for

BINARY = os.environ.get("VC_TEST_VECYCLE", str(BUILD / "cmd" / "vecycle"))
PORT = 7890
# Any test that lets an agent do something shows that its sandbox allows that.
SANDBOX = os.environ.get("VC_TEST_SANDBOX", "strict")


class Vecycle:
    """The vecycle of one host, with a store and an agent of its own."""

    def __init__(self, host, agent=True, listen=None, extra=(), wrapper=()):
        self.host, self.wrapper = host, wrapper  # words before the agent's: `env NAME=VALUE`, ...
        self.store = host.dir / "store"
        self.control = host.path("control") if agent else "none"
        self.agent = None
        self.address = (f"tcp://{host.address}:{PORT}" if host.netns
                        else f"unix:{host.path('agent')}")
        if agent:
            self.start_agent(listen or [self.address], extra)

    def start_agent(self, listen, extra=()):
        argv = [*self.wrapper, BINARY, "serve", *self.common(), "--socket-dir", self.host.sockets, "--insecure",
                "--sandbox", SANDBOX]
        for address in listen:
            argv += ["--listen", address]
        self.log = self.host.dir / "agent.log"
        before = self.log.read_text().count("vecycle: ready") if self.log.exists() else 0
        self.agent = self.host.start([*argv, *extra], log=self.log)
        wait_for(lambda: not self.agent.alive() or
                 self.log.read_text().count("vecycle: ready") > before, 20, "the agent")
        assert self.agent.alive(), self.log.read_text()

    def common(self):
        return ["--store", self.store, "--control", self.control]

    def run(self, *argv, timeout=120):
        return self.host.run([BINARY, argv[0], *self.common(), *argv[1:]], timeout=timeout)

    def json(self, *argv):
        r = self.run(*argv, "--json")
        assert r.returncode == 0, r.stderr
        return json.loads(r.stdout)

    def migrate_argv(self, qemu, to, name=None, extra=()):
        argv = ["migrate", *self.common(), "--qmp", qemu.qmp_path, "--json", "--insecure", *extra]
        if name:
            argv += ["--name", name]
        return [BINARY, *argv, to]

    def migrate(self, qemu, to, name=None, extra=(), timeout=120, ok=True):
        """Runs a migration to its end: the JSON summary (with `status`, the exit status)."""
        r = self.host.run(self.migrate_argv(qemu, to, name, extra), timeout=timeout)
        assert not ok or r.returncode == 0, r.stderr
        out = json.loads(r.stdout) if r.stdout.strip() else {}
        out["status"], out["messages"] = r.returncode, r.stderr
        return out

    def start_migrate(self, qemu, to, name=None, extra=()):
        """Starts one in the background; the summary is in the file it returns beside it."""
        out = self.host.dir / f"migrate-{len(self.host.processes)}.json"
        with open(out, "wb") as f:
            p = self.host.start(self.migrate_argv(qemu, to, name, extra),
                                log=str(out) + ".log", stdout=f)
        return p, out

    @staticmethod
    def summary(out):
        """What a migration in the background printed."""
        with open(out) as f:
            return json.load(f)

    def start_proxy(self, listen, vm, to, name=None, extra=()):
        out = self.host.dir / f"proxy-{len(self.host.processes)}.json"
        log = str(out) + ".log"
        argv = [BINARY, "proxy", *self.common(), "--listen", listen, "--vm", vm, "--to", to,
                "--json", "--insecure", *extra]
        if name:
            argv += ["--name", name]
        with open(out, "wb") as f:
            p = self.host.start(argv, log=log, stdout=f)
        wait_for(lambda: not p.alive() or "waiting" in p.messages(), 20, "the proxy to listen")
        return p, out
