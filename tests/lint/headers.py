#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every header compiles alone; the public ones also as strict C99 and as C++."""
import concurrent.futures
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CC = shlex.split(os.environ.get("CC", "cc"))
CXX = shlex.split(os.environ.get("CXX", "c++"))
WARN = ["-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
INTERNAL = CC + WARN + ["-std=gnu17", "-Isrc", "-Iinclude", "-D_GNU_SOURCE", "-x", "c"]
C99 = CC + WARN + ["-std=c99", "-pedantic", "-Iinclude", "-x", "c"]
CPP = CXX + WARN + ["-pedantic", "-Iinclude", "-x", "c++"]


def compile_alone(job):
    language, command, header = job
    # Included twice, so that a guard which does not guard is noticed too.
    source = f'#include "{ROOT / header}"\n#include "{ROOT / header}"\n'
    done = subprocess.run(command + ["-"], input=source, text=True, cwd=ROOT,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode == 0:
        return None
    return f"{header}:1: does not compile alone as {language}:\n{done.stdout}"


def main():
    internal = sorted(p.relative_to(ROOT) for p in (ROOT / "src").rglob("*.h"))
    public = sorted(p.relative_to(ROOT) for p in (ROOT / "include").rglob("*.h"))
    jobs = [("gnu17", INTERNAL, h) for h in internal + public]
    jobs += [("C99", C99, h) for h in public]
    if shutil.which(CXX[0]):
        jobs += [("C++", CPP, h) for h in public]
    elif public:
        print(f"no C++ compiler ({CXX[0]}): the public header is not tried as C++")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = [text for text in pool.map(compile_alone, jobs) if text]
    for text in problems:
        print(text)
    print(f"{len(internal)} internal and {len(public)} public headers, {len(problems)} violations")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
