#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""symbols.py LIBRARY HEADER: the library exports what the public header declares, no more and no
less, and does not link GLib."""
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tree import ROOT, SKIP

CC = shlex.split(os.environ.get("CC", "cc"))
LINKER_MADE = {"_init", "_fini", "_edata", "_end", "__bss_start"}


def run(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def exported(library):
    names = set()
    for line in run("nm", "-D", "--defined-only", library).splitlines():
        kind, name = line.split()[-2:]
        if kind != "A":  # the names of symbol versions
            names.add(name.split("@")[0])
    return names - LINKER_MADE


def without_balanced(text, opening, closing):
    """The text without what stands between these brackets, whose depth it follows."""
    out, depth = [], 0
    for c in text:
        if c == opening:
            depth += 1
        elif c == closing:
            depth -= 1
        elif depth == 0:
            out.append(c)
    return "".join(out)


def without_attributes(text):
    while True:
        start = re.search(r"\b__attribute__\s*\(", text)
        if not start:
            return text
        end, depth = start.end(), 1
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        text = text[:start.start()] + text[end:]


def declared(header):
    """The functions that the header itself declares (not what it includes)."""
    include = ROOT / "include"
    text = run(*CC, "-E", f"-I{include}", "-x", "c", str(header))
    lines, ours = [], False
    for line in text.splitlines():
        marker = re.match(r'#\s+\d+\s+"([^"]*)"', line)
        if marker:
            ours = Path(marker[1]).resolve().is_relative_to(include)
        elif ours:
            lines.append(line)
    text = without_balanced(without_attributes("\n".join(lines)), "{", "}")
    names = set()
    for statement in text.split(";"):
        if re.search(r"\b(?:typedef|static)\b", statement):
            continue
        function = re.search(r"(\w+)\s*\((?!\s*\*)", statement)
        if function:
            names.add(function[1])
    return names


def main():
    if len(sys.argv) != 3:
        print("usage: symbols.py LIBRARY HEADER", file=sys.stderr)
        return 2
    library, header = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    if ".so" not in library.name:
        print(f"skipped: {library.name} is not a shared library")
        return SKIP
    for tool in ("nm", "readelf"):
        if not shutil.which(tool):
            print(f"skipped: no {tool} here")
            return SKIP
    have, want = exported(library), declared(header)
    problems = [f"{library.name}: exports '{n}', which the header does not declare"
                for n in sorted(have - want)]
    problems += [f"{header.name}: declares '{n}', which the library does not export"
                 for n in sorted(want - have)]
    if not want:
        problems.append(f"{header.name}: declares no function")
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", library))
    problems += [f"{library.name}: links {n}" for n in needed
                 if re.match(r"lib(?:glib|gobject|gio|gmodule|gthread)-", n)]
    for text in problems:
        print(text)
    print(f"{len(have)} exported, {len(want)} declared, {len(problems)} violations")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
