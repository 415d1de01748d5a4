#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs the tests: lint and unit tests, the unit tests again under the sanitizers and with clang, the
end-to-end tests, and some of these with newer QEMUs. With --long those that take long, instead: the
meson suite "long" and what pytest has marked so. Ends with one line: N passed, N failed, N skipped.

The end-to-end tests run in several processes at a time, a file in each; those marked "alone" come
afterwards, one by one."""
import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
E2E = ROOT / "tests" / "e2e"
HANG_S = 1200  # without a test that ends, end-to-end tests are taken to hang
NEWER = ["bookworm-backports", "trixie-backports"]
passed, failed, skipped = 0, 0, 0
failures = []  # names, to be repeated at the end
lock = threading.Lock()


def count(ok, bad=0, skip=0, names=()):
    global passed, failed, skipped
    with lock:
        passed, failed, skipped = passed + ok, failed + bad, skipped + skip
        failures.extend(names)


def step(title):
    print(f"== {title}", flush=True)


# ---- meson ----

def introspect(where, what):
    r = subprocess.run(["meson", "introspect", where, what], check=True, stdout=subprocess.PIPE)
    return json.loads(r.stdout)


def demand_tests(where, env=None):
    """Whoever configured this folder may have had no use for tests: `make demo` installs no cmocka."""
    options = {o["name"]: o["value"] for o in introspect(where, "--buildoptions")}
    if options["tests"] != "enabled":
        subprocess.run(["meson", "setup", "--reconfigure", where, ROOT, "-Dtests=enabled"], check=True,
                       env=env, stdout=subprocess.DEVNULL)


def defined(where, *suites, without=None):
    """Names of the tests of these suites (all, if none is named), but not of that one."""
    found = [(t["name"], {s.split(":")[-1] for s in t["suite"]}) for t in introspect(where, "--tests")]
    return [name for name, of in found if (not suites or of & set(suites)) and without not in of]


def without_a_test(where):
    """Programs in tests/unit and tests/fuzz that are no test of the folder: somebody has forgotten
    them in a meson.build, or this folder was configured without."""
    names = set(defined(where))
    unit = {p.stem.removeprefix("test_"): p for p in (ROOT / "tests" / "unit").glob("test_*.c")}
    fuzz = {f"fuzz-{d.name}": d for d in (ROOT / "tests" / "fuzz" / "corpus").iterdir()}
    return sorted(str(p.relative_to(ROOT)) for n, p in {**unit, **fuzz}.items() if n not in names)


def build(where, **settings):
    """Configures and builds; the environment's CC counts when it is configured first."""
    env = dict(os.environ, **({"CC": settings.pop("cc")} if "cc" in settings else {}))
    r = None
    try:
        if not (where / "build.ninja").exists():
            options = [f"-D{k}={v}" for k, v in settings.items()]
            subprocess.run(["meson", "setup", where, ROOT, "-Dtests=enabled", *options], check=True,
                           env=env, stdout=subprocess.DEVNULL)
        demand_tests(where, env)
        r = subprocess.run(["ninja", "-C", where], capture_output=True, text=True)
    except subprocess.CalledProcessError as e:
        print(e)
    good = r is not None and r.returncode == 0
    if r is not None and not good:
        print(r.stdout[-4000:])
    count(good, not good, names=[] if good else [f"build {where.name}"])
    return good


def meson_tests(where, *suites, without=None, **environment):
    missing = without_a_test(where)
    if missing:
        print(f"not in {where.name}: {' '.join(missing)}")
        count(0, len(missing), names=[f"{where.name}: {m} is not run" for m in missing])
    names = defined(where, *suites, without=without)
    if not names:
        return
    # Without it a finding of UBSan is a message in a log that nobody reads.
    env = dict(os.environ, UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1", **environment)
    argv = ["meson", "test", "-C", where, "--no-rebuild", "--print-errorlogs"]
    for s in suites:
        argv += ["--suite", s]
    if without:
        argv += ["--no-suite", without]
    log = where / "meson-logs" / "testlog.json"
    log.unlink(missing_ok=True)
    r = subprocess.run(argv, capture_output=True, text=True, env=env)
    results = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for t in results:
        if t["result"] == "SKIP":
            print(f"skipped: {t['name']}: {(t.get('stdout') or '').strip()[-200:]}")
    bad = [t for t in results if t["result"] not in ("OK", "SKIP", "EXPECTEDFAIL")]
    skip = [t for t in results if t["result"] == "SKIP"]
    count(len(results) - len(bad) - len(skip), len(bad), len(skip),
          [f"{where.name}: {t['name']} ({t['result']})" for t in bad])
    lost = len(names) - len(results)
    print(f"{len(results)} of {len(names)} tests; the longest: " + ", ".join(
        f"{t['name']} {t['duration']:.0f} s" for t in
        sorted(results, key=lambda t: -t["duration"])[:5]), flush=True)
    if r.returncode or bad or lost > 0:
        print(r.stdout[-8000:])
        if not bad:
            count(0, max(lost, 1), names=[f"{where.name}: meson test: {len(results)} of {len(names)}"])


# ---- pytest ----

class Item:
    """A file of end-to-end tests, for one QEMU."""

    def __init__(self, path, tests, qemu=None, suite=None):
        self.path, self.tests, self.qemu, self.suite = path, tests, qemu, suite
        self.name = f"{path.name}{f' with the QEMU of {suite}' if suite else ''}"


def pytest_argv(*argv):
    return ["/usr/bin/python3", "-m", "pytest", "-p", "no:cacheprovider", *map(str, argv)]


def pytest_env(build_dir, qemu=None):
    env = dict(os.environ, VC_BUILD_DIR=str(build_dir), PYTHONDONTWRITEBYTECODE="1",
               PYTHONUNBUFFERED="1", **({"VC_TEST_QEMU": qemu} if qemu else {}))
    env.pop("PYTHONPATH", None)
    return env


def collect(build_dir, marks, extra, qemu=None, suite=None):
    """The files that have tests with these marks."""
    r = subprocess.run(pytest_argv("-q", "--collect-only", "-m", marks, E2E, *extra),
                       env=pytest_env(build_dir), stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if r.returncode not in (0, 5):  # 5: none of that name
        print(r.stdout)
        count(0, 1, names=["pytest --collect-only"])
    tests = {}
    for line in r.stdout.splitlines():
        if "::" in line:
            tests[line.split("::")[0]] = tests.get(line.split("::")[0], 0) + 1
    return [Item(ROOT / path, n, qemu, suite) for path, n in tests.items()]


def follow(p, last):
    """Its output, until it ends."""
    out = []
    for line in p.stdout:
        out.append(line)
        last[0] = time.monotonic()
    return "".join(out)


def watch(p, last):
    """Ends it if it hangs."""
    while p.poll() is None:
        if time.monotonic() - last[0] > HANG_S:
            os.killpg(p.pid, 9)  # a session of its own
            return
        time.sleep(1)


def run_item(item, build_dir, marks, extra):
    start, last = time.monotonic(), [time.monotonic()]
    p = subprocess.Popen(pytest_argv("-v", "-rsfE", "--durations=3", "-m", marks, item.path, *extra),
                         env=pytest_env(build_dir, item.qemu), stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True)
    threading.Thread(target=watch, args=(p, last), daemon=True).start()
    text = follow(p, last)
    p.wait()
    seconds = time.monotonic() - start
    found = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)",
                                                    (text.strip().splitlines() or [""])[-1])}
    bad = found.get("failed", 0) + found.get("error", 0) + found.get("errors", 0)
    ok, skip = found.get("passed", 0), found.get("skipped", 0)
    names = [n + (f" ({item.suite})" if item.suite else "")
             for n in re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.M)]
    lost = item.tests - ok - bad - skip
    if lost > 0 or (p.returncode and not bad):
        bad += max(lost, 1)
        names.append(f"{item.name}: {ok + skip} of {item.tests} tests ended well, exit status "
                     f"{p.returncode}")
    count(ok, bad, skip, names)
    with lock:
        if bad:
            print(text)
        else:
            for line in re.findall(r"^SKIPPED .*", text, re.M):
                print(line)
        print(f"{item.name}: {ok} passed, {bad} failed, {skip} skipped in {seconds:.0f} s", flush=True)
    return seconds


def run_items(items, build_dir, marks, extra, shards):
    """The longest first, as far as an earlier run has told."""
    memory = build_dir / "e2e-seconds.json"
    known = json.loads(memory.read_text()) if memory.exists() else {}
    queue = sorted(items, key=lambda i: known.get(i.name, 8.0 * i.tests))
    took = {}

    def work():
        while True:
            with lock:
                if not queue:
                    return
                item = queue.pop()
            took[item.name] = run_item(item, build_dir, marks(item), extra)
    workers = [threading.Thread(target=work) for _ in range(shards)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    if not extra:
        memory.write_text(json.dumps({**known, **took}))


def newer_qemu(build_dir, suite):
    """The path of the QEMU of another suite of the distribution, or None."""
    r = subprocess.run(["timeout", "600", ROOT / "scripts" / "newer-qemu", suite,
                        build_dir / "newer-qemu" / suite],
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if r.returncode:
        why = r.stderr.strip().splitlines()[-1:] or [f"exit status {r.returncode}"]
        ours = r.returncode not in (77, 124)  # not a matter of the machine or its network
        print(f"{'failed' if ours else 'skipped'}: the QEMU of {suite}: {why[0]}")
        count(0, ours, not ours, [f"the QEMU of {suite}"] if ours else [])
        return None
    print(r.stderr.strip().splitlines()[0] if r.stderr.strip() else suite, flush=True)
    return r.stdout.strip()


def which(length, alone, newer):
    """The marks of the tests of a run, as pytest's -m takes them."""
    if not newer:
        return f"{length} and {alone}"
    length = "(long or newer_is_long)" if length == "long" else "not long and not newer_is_long"
    return f"{length} and {alone} and newer_qemu"


def end_to_end(build_dir, parts, length, extra, shards):
    qemus = [(None, None)] if "e2e" in parts else []
    if "newer-qemu" in parts:
        qemus += [(q, suite) for suite in NEWER if (q := newer_qemu(build_dir, suite))]

    for alone, n in ("not alone", shards), ("alone", 1):
        items = []
        for qemu, suite in qemus:
            items += collect(build_dir, which(length, alone, suite), extra, qemu, suite)
        run_items(items, build_dir, lambda item: which(length, alone, item.suite), extra, n)


# ---- all ----

SANITIZERS = [("clang, ASan and UBSan", "clang", "address,undefined"), ("gcc, TSan", "gcc", "thread")]


def sanitized(where, suite):
    for name, cc, sanitize in SANITIZERS:
        step(f"{name}: build, {suite} tests")
        d = where / f"{cc}-{sanitize.split(',')[0]}"
        if build(d, cc=cc, b_sanitize=sanitize, b_lundef="false", buildtype="debugoptimized"):
            meson_tests(d, suite, without="one-thread" if sanitize == "thread" else None)
            if suite == "long" and sanitize == "thread":
                meson_tests(d, "scaled", VC_TEST_SCALE="4")


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--build", default="build")
    p.add_argument("--only", choices=["unit", "sanitizers", "e2e", "newer-qemu"], help="one part")
    p.add_argument("--long", action="store_true", help="what takes long, instead")
    p.add_argument("--shards", type=int, default=min(4, len(os.sched_getaffinity(0)) + 1),
                   help="end-to-end tests that run at a time (they wait more than they compute)")
    p.add_argument("rest", nargs="*", help="arguments for pytest")
    a = p.parse_args()
    parts = {a.only} if a.only else {"unit", "sanitizers", "e2e", "newer-qemu"}
    where = (ROOT / a.build).resolve()
    start = time.monotonic()
    if "unit" in parts:
        step("gcc: build, long unit tests" if a.long else "gcc: build, lint, unit tests")
        if build(where):
            meson_tests(where, *(["long"] if a.long else ["lint", "unit"]))
    if "sanitizers" in parts:
        sanitized(where, "long" if a.long else "unit")
    if parts & {"e2e", "newer-qemu"}:
        step(f"end to end, on real QEMU, {a.shards} at a time")
        end_to_end(where, parts, "long" if a.long else "not long", a.rest, a.shards)
    print(f"{time.monotonic() - start:.0f} s")
    for name in failures:
        print(f"failed: {name}")
    if os.environ.get("VC_TALLY"):  # .ci/run says it for all that it calls
        with open(os.environ["VC_TALLY"], "a") as f:
            f.write(f"{passed} {failed} {skipped}\n")
    else:
        print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
