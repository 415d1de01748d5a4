#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Holds the #include lines to the layer table (docs/internals/layers.md): a folder of src/ may
include lower layers and itself, never a sibling; cmd and daemon see the public header only."""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

LAYERS = [
    {"base"},
    {"digest", "qstream", "wire", "metrics"},
    {"store", "net", "qmp"},
    {"link"},
    {"source", "dest"},
    {"session"},
    {"api"},
]
PROGRAMS = ("cmd", "daemon")
PUBLIC = "vecycle/"
LEVEL = {folder: level for level, folders in enumerate(LAYERS) for folder in folders}
INCLUDE = re.compile(r'\s*#\s*include\s*(["<])([^">]+)[">]')


def includes(path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        found = INCLUDE.match(line)
        if found:
            yield number, found[1] == '"', found[2]


def resolve(path, name):
    """The place, relative to the root, of the project's file that the line means, or None."""
    for base in (path.parent, ROOT / "src", ROOT / "include"):
        file = (base / name).resolve()
        if file.is_file() and file.is_relative_to(ROOT):
            return file.relative_to(ROOT)
    return None


def wrong_in_src(folder, path, quoted, name):
    target = resolve(path, name)
    if target is None:
        return f'no such header: "{name}"' if quoted else None
    if target.parts[0] == "include":
        return None if folder == "api" else "only api may include the public header"
    if target.parts[0] != "src":
        return f"{target} is outside src/"
    if not quoted:
        return f'<{name}> is our own: write "{name}"'
    other = target.parts[1]
    if other not in LEVEL:
        return f"folder src/{other} has no layer"
    if name != "/".join(target.parts[1:]):
        return f'write "{"/".join(target.parts[1:])}", not "{name}"'
    if other == folder or LEVEL[other] < LEVEL[folder]:
        return None
    what = "its sibling" if LEVEL[other] == LEVEL[folder] else "the higher layer"
    return f"{folder} (L{LEVEL[folder]}) includes {what} {other} (L{LEVEL[other]})"


def wrong_in_program(folder, path, quoted, name):
    target = resolve(path, name)
    if target is None:
        return f'no such header: "{name}"' if quoted else None
    if target.parts[0] == "include" and name.startswith(PUBLIC):
        return None
    if target.parts[0] == folder:
        return None
    return f"{folder} may include only vecycle/vecycle.h and its own headers, not {target}"


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.suffix in (".c", ".h", ".S"))


def main():
    problems = []
    n_files = 0

    def check(folder, path, wrong):
        for number, quoted, name in includes(path):
            text = wrong(folder, path, quoted, name)
            if text:
                problems.append(f"{path.relative_to(ROOT)}:{number}: {text}")

    for path in files(ROOT / "src"):
        n_files += 1
        folder = path.relative_to(ROOT / "src").parts[0]
        if folder in LEVEL:
            check(folder, path, wrong_in_src)
        else:
            problems.append(f"{path.relative_to(ROOT)}:1: folder src/{folder} has no layer")
    for program in PROGRAMS:
        for path in files(ROOT / program):
            n_files += 1
            check(program, path, wrong_in_program)
    for text in problems:
        print(text)
    print(f"{n_files} files, {len(problems)} violations")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
