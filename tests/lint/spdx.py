#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every source and script names its licence in its first three lines; no tabs in C; no file of
src/ is longer than 700 lines."""
import re
import sys

from tree import ROOT, finish, walk

SUFFIXES = (".c", ".h", ".S", ".py", ".sh", ".syms")
NAMES = ("meson.build", "meson_options.txt", "Makefile")
MAX_LINES = 700
SPDX = re.compile(r"SPDX-License-Identifier: \S")


def names_a_licence(path):
    if path.suffix in SUFFIXES or path.name in NAMES:
        return True
    if path.parts[0] == "scripts" or path.parts[:2] == (".ci", "run"):
        return True
    with open(ROOT / path, "rb") as file:  # a script without a suffix
        return not path.suffix and file.read(2) == b"#!"


def main():
    problems = []
    n_files = 0
    for path in walk():
        if not names_a_licence(path):
            continue
        n_files += 1
        lines = (ROOT / path).read_text(errors="replace").split("\n")
        if not any(SPDX.search(line) for line in lines[:3]):
            problems.append(f"{path}:1: no SPDX-License-Identifier in the first three lines")
        if path.suffix in (".c", ".h"):
            problems += [f"{path}:{i}: a tab" for i, line in enumerate(lines, 1) if "\t" in line]
        n_lines = len(lines) - (lines[-1] == "")
        if path.parts[0] == "src" and n_lines > MAX_LINES:
            problems.append(f"{path}:{n_lines}: more than {MAX_LINES} lines")
    return finish(n_files, problems)


if __name__ == "__main__":
    sys.exit(main())
