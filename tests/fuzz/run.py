#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds the fuzz targets with clang's libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer, and
runs them one after another, each for some minutes. Prints a table; ends with 1 if anything was found.

What a target finds is kept in BUILD/found, what it learns in BUILD/corpus (which later runs start
from); --merge adds the smallest part of that to tests/fuzz/corpus which covers what it does not."""
import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Longest input worth trying, in bytes: several pages of a stream, a few frames, a line. And how long
# a single input may take before it counts as a hang: much, since the machine may be busy.
MAX_LEN = {"qstream": 32768, "pipelines": 24576, "session_dest": 8192, "session_source": 24576}
DEFAULT_MAX_LEN = 4096
# With threads of its own a target always looks as if it leaked; replaying the corpus tells.
THREADS = ("pipelines", "session_dest", "session_source")
HANG_S = 180
RSS_MIB = 3072


def build(where):
    if not (where / "build.ninja").exists():
        subprocess.run(["meson", "setup", where, ROOT, "-Dfuzz=true", "-Db_lundef=false",
                        "-Db_sanitize=address,undefined", "-Dbuildtype=debugoptimized"],
                       check=True, env=dict(os.environ, CC="clang"), stdout=subprocess.DEVNULL)
    subprocess.run(["ninja", "-C", where], check=True, stdout=subprocess.DEVNULL)
    names = sorted(p.name[5:] for p in (where / "tests" / "fuzz").glob("fuzz_*")
                   if p.is_file() and os.access(p, os.X_OK))
    return names


def environment(scratch):
    env = dict(os.environ, FUZZ_DIR=scratch)
    env["UBSAN_OPTIONS"] = "halt_on_error=1:abort_on_error=1:print_stacktrace=1"
    env["ASAN_OPTIONS"] = "abort_on_error=1:detect_leaks=1:allocator_may_return_null=1:quarantine_size_mb=16"
    return env


def fuzz(where, name, seconds, extra):
    """Runs one target. Returns its row of the table."""
    learnt, found = where / "corpus" / name, where / "found"
    seeds = HERE / "corpus" / name
    for d in (learnt, found):
        d.mkdir(parents=True, exist_ok=True)
    before = set(found.iterdir())
    log = where / f"{name}.log"
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as tmp:
        argv = [where / "tests" / "fuzz" / f"fuzz_{name}", learnt, *([seeds] if seeds.exists() else []),
                f"-max_total_time={seconds}", f"-max_len={MAX_LEN.get(name, DEFAULT_MAX_LEN)}",
                f"-timeout={HANG_S}", f"-rss_limit_mb={RSS_MIB}", f"-artifact_prefix={found}/{name}-",
                "-print_final_stats=1", f"-detect_leaks={int(name not in THREADS)}", *extra]
        with open(log, "w") as out:
            subprocess.run([str(a) for a in argv], stdout=out, stderr=subprocess.STDOUT,
                           env=environment(tmp), cwd=tmp)
    text = log.read_text(errors="replace")
    runs = re.findall(r"stat::number_of_executed_units:\s+(\d+)", text)
    coverage = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text)
    news = sorted(set(found.iterdir()) - before)
    return {"target": name, "runs": int(runs[-1]) if runs else 0,
            "edges": int(coverage[-1][0]) if coverage else 0,
            "corpus": int(coverage[-1][2]) if coverage else 0, "found": news}


def merge(where, name):
    """Adds inputs to the committed corpus, as few as bring something new."""
    target, learnt = HERE / "corpus" / name, where / "corpus" / name
    target.mkdir(parents=True, exist_ok=True)
    before = set(target.iterdir())
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run([where / "tests" / "fuzz" / f"fuzz_{name}", "-merge=1", target, learnt],
                       env=environment(tmp), cwd=tmp, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
    return len(set(target.iterdir()) - before)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("targets", nargs="*", help="all of them unless named")
    p.add_argument("--build", default="build/fuzz", help="build directory (build/fuzz)")
    p.add_argument("--minutes", type=float, default=float(os.environ.get("FUZZ_MINUTES") or 1),
                   help="for each target (1, or $FUZZ_MINUTES)")
    p.add_argument("--merge", action="store_true", help="add what is new to tests/fuzz/corpus")
    p.add_argument("--libfuzzer", action="append", default=[], metavar="OPTION",
                   help="another option for libFuzzer")
    a = p.parse_args()
    where = (ROOT / a.build).resolve()
    names = build(where)
    unknown = set(a.targets) - set(names)
    if unknown:
        p.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    print(f"{'target':<16}{'executions':>12}{'edges':>8}{'inputs':>8}{'found':>7}", flush=True)
    found = []
    for name in a.targets or names:
        row = fuzz(where, name, max(1, int(a.minutes * 60)), a.libfuzzer)
        found += row["found"]
        print(f"{row['target']:<16}{row['runs']:>12}{row['edges']:>8}{row['corpus']:>8}"
              f"{len(row['found']):>7}", flush=True)
        if not row["runs"] and not row["found"]:
            print(f"{name}: did not run, see {where / name}.log")
            sys.exit(1)
        if a.merge:
            print(f"{'':16}{merge(where, name)} inputs added to tests/fuzz/corpus/{name}")
    for path in found:
        print(f"found: {path}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
