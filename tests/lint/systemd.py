#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd.py UNIT BINARY: systemd accepts the agent's unit, and finds that it exposes little; the
calls that the agent's own filter allows, and those that set it up, are in the unit's."""
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tree import ROOT, SKIP, finish

MOST_EXPOSURE = 2.0
AT_START = {"seccomp", "socket", "bind", "listen", "chmod", "chown", "clone", "mmap", "mprotect",
            "prctl", "ioctl", "tgkill"}


def run(*argv):
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=60)


def syscall_sets():
    sets, name = {}, None
    for line in run("systemd-analyze", "--no-pager", "syscall-filter").stdout.splitlines():
        if line.startswith("@"):
            name = line.strip()
            sets[name] = []
        elif name and line.startswith("    ") and not line.strip().startswith("#"):
            sets[name].append(line.strip())
    return sets


def expand(sets, word):
    if not word.startswith("@"):
        return {word}
    return set().union(*(expand(sets, w) for w in sets[word]))


def unit_calls(unit, sets):
    calls = set()
    for words in re.findall(r"^SystemCallFilter=(.*)$", unit, re.M):
        if words.startswith("~"):
            calls -= set().union(*(expand(sets, w) for w in words[1:].split()))
        else:
            calls |= set().union(*(expand(sets, w) for w in words.split()))
    return calls


def own_calls():
    text = (ROOT / "src/api/sandbox_seccomp.c").read_text()
    tables = re.findall(r"(?:allowed|network)\[\] = \{(.*?)\};", text, re.S)
    return set(re.findall(r'"([a-z0-9_]+)"', " ".join(tables)))


def hides_qemu(unit):
    """Settings with which a living QEMU, or its socket, could not be told from one that is gone."""
    wrong = {"ProtectProc": {"invisible", "noaccess", "ptraceable"}, "ProcSubset": {"pid"},
             "PrivateTmp": {"yes", "true", "1"}, "PrivateUsers": {"yes", "true", "1"},
             "PrivatePIDs": {"yes", "true", "1"}, "PrivateNetwork": {"yes", "true", "1"}}
    found = re.findall(r"^(\w+)=(.*)$", unit, re.M)
    return [f"{k}={v} hides QEMUs" for k, v in found if v.strip() in wrong.get(k, ())]


def main():
    if not shutil.which("systemd-analyze"):
        print("skipped: systemd-analyze is missing")
        return SKIP
    unit = Path(sys.argv[1]).read_text()
    problems = hides_qemu(unit)
    with tempfile.TemporaryDirectory() as d:
        copy = Path(d) / "vecycle.service"
        copy.write_text(re.sub(r"ExecStart=\S+", f"ExecStart={Path(sys.argv[2]).resolve()}", unit))
        r = run("systemd-analyze", "verify", "--man=no", copy)
        if r.returncode or r.stdout.strip():
            problems.append(f"systemd-analyze verify: {r.stdout.strip()}")
        r = run("systemd-analyze", "--no-pager", "security", "--offline=true", copy)
        level = re.search(r"exposure level for .*: ([0-9.]+)", r.stdout)
        if not level or float(level[1]) > MOST_EXPOSURE:
            problems.append(f"exposure: {level[1] if level else r.stdout[-300:]}")
    sets = syscall_sets()
    if not sets:
        problems.append("systemd-analyze syscall-filter tells nothing")
    else:
        missing = (own_calls() | AT_START) - unit_calls(unit, sets)
        problems += [f"SystemCallFilter= lacks {name}" for name in sorted(missing)]
    return finish(1, problems)


if __name__ == "__main__":
    sys.exit(main())
