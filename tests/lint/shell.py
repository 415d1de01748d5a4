#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""shellcheck on the shell scripts."""
import re
import shutil
import subprocess
import sys

from tree import ROOT, SKIP, walk

SHELL = re.compile(rb"#!.*\b(?:sh|bash|dash)\b")


def is_shell(path):
    if path.suffix not in ("", ".sh"):
        return False
    with open(ROOT / path, "rb") as file:
        return bool(SHELL.match(file.readline(200)))


def main():
    if not shutil.which("shellcheck"):
        print("skipped: no shellcheck here")
        return SKIP
    scripts = [str(p) for p in walk() if is_shell(p)]
    if not scripts:
        print("no shell scripts")
        return 0
    done = subprocess.run(["shellcheck", "--format=gcc", *scripts], cwd=ROOT)
    print(f"{len(scripts)} scripts: {' '.join(scripts)}")
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
