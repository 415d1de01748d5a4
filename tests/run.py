#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs all tests: lint and unit tests, the unit tests again under the sanitizers and with clang,
the end-to-end tests, and some of these with newer QEMUs. Ends with one line: N passed, N failed,
N skipped."""
import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
passed, failed, skipped = 0, 0, 0
failures = []  # names, to be repeated at the end


def count(ok, bad=0, skip=0):
    global passed, failed, skipped
    passed, failed, skipped = passed + ok, failed + bad, skipped + skip


def step(title):
    print(f"== {title}", flush=True)


def build(where, **settings):
    """Configures and builds; the environment's CC counts when it is configured first."""
    env = dict(os.environ, **({"CC": settings.pop("cc")} if "cc" in settings else {}))
    if not (where / "build.ninja").exists():
        options = [f"-D{k}={v}" for k, v in settings.items()]
        subprocess.run(["meson", "setup", where, ROOT, *options], check=True, env=env,
                       stdout=subprocess.DEVNULL)
    r = subprocess.run(["ninja", "-C", where], capture_output=True, text=True)
    if r.returncode:
        print(r.stdout[-4000:])
        failures.append(f"build {where.name}")
    count(r.returncode == 0, r.returncode != 0)
    return r.returncode == 0


def meson_tests(where, *suites):
    # Without it a finding of UBSan is a message in a log that nobody reads.
    env = dict(os.environ, UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1")
    argv = ["meson", "test", "-C", where, "--no-rebuild", "--print-errorlogs"]
    for s in suites:
        argv += ["--suite", s]
    r = subprocess.run(argv, capture_output=True, text=True, env=env)
    log = where / "meson-logs" / "testlog.json"
    results = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for t in results:
        if t["result"] == "SKIP":
            print(f"skipped: {t['name']}: {(t.get('stdout') or '').strip()[-200:]}")
    bad = [t for t in results if t["result"] not in ("OK", "SKIP", "EXPECTEDFAIL")]
    skip = [t for t in results if t["result"] == "SKIP"]
    count(len(results) - len(bad) - len(skip), len(bad), len(skip))
    failures.extend(f"{where.name}: {t['name']} ({t['result']})" for t in bad)
    if r.returncode or bad:
        print(r.stdout[-8000:])
        if not bad:
            count(0, 1)
            failures.append(f"{where.name}: meson test")


def end_to_end(build_dir, extra, **environment):
    env = dict(os.environ, VC_BUILD_DIR=str(build_dir), PYTHONDONTWRITEBYTECODE="1", **environment)
    env.pop("PYTHONPATH", None)
    r = subprocess.run(["/usr/bin/python3", "-m", "pytest", "-q", "-rsfE", "-p", "no:cacheprovider",
                        "--durations=5", ROOT / "tests" / "e2e", *extra],
                       env=env, stdout=subprocess.PIPE, text=True)
    print(r.stdout, flush=True)
    last = r.stdout.strip().splitlines()[-1] if r.stdout.strip() else ""
    found = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}
    bad = found.get("failed", 0) + found.get("error", 0) + found.get("errors", 0)
    if r.returncode and not bad and not (r.returncode == 5 and extra):  # 5: none of that name
        bad = 1
    failures.extend(re.findall(r"^(?:FAILED|ERROR) (\S+)", r.stdout, re.M))
    count(found.get("passed", 0), bad, found.get("skipped", 0))


def newer_qemu(build_dir, suite, extra):
    """Those that are marked for it, with the QEMU of another suite of the distribution."""
    r = subprocess.run(["timeout", "600", ROOT / "scripts" / "newer-qemu", suite,
                        build_dir / "newer-qemu" / suite],
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if r.returncode:
        why = r.stderr.strip().splitlines()[-1:] or [f"exit status {r.returncode}"]
        ours = r.returncode not in (77, 124)  # not a matter of the machine or its network
        print(f"{'failed' if ours else 'skipped'}: the QEMU of {suite}: {why[0]}")
        count(0, ours, not ours)
        failures.extend([f"the QEMU of {suite}"] if ours else [])
        return
    print(r.stderr.strip().splitlines()[0] if r.stderr.strip() else suite, flush=True)
    end_to_end(build_dir, ["-m", "newer_qemu", *extra], VC_TEST_QEMU=r.stdout.strip())


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--build", default="build")
    p.add_argument("--only", choices=["unit", "sanitizers", "e2e", "newer-qemu"], help="one part")
    p.add_argument("rest", nargs="*", help="arguments for pytest")
    a = p.parse_args()
    where = (ROOT / a.build).resolve()
    start = time.monotonic()
    if a.only in (None, "unit"):
        step("gcc: build, lint, unit tests")
        if build(where):
            meson_tests(where)
    if a.only in (None, "sanitizers"):
        for name, cc, sanitize in (("clang, ASan and UBSan", "clang", "address,undefined"),
                                   ("gcc, TSan", "gcc", "thread")):
            step(f"{name}: build, unit tests")
            d = where / f"{cc}-{sanitize.split(',')[0]}"
            if build(d, cc=cc, b_sanitize=sanitize, b_lundef="false", buildtype="debugoptimized"):
                meson_tests(d, "unit")
    if a.only in (None, "e2e"):
        step("end to end, on real QEMU")
        end_to_end(where, a.rest)
    if a.only in (None, "newer-qemu"):
        for suite in ("bookworm-backports", "trixie-backports"):
            step(f"end to end, on the QEMU of {suite}")
            newer_qemu(where, suite, a.rest)
    print(f"{time.monotonic() - start:.0f} s")
    for name in failures:
        print(f"failed: {name}")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
