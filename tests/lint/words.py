#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tracked files speak of the project alone: no paths of a workplace, no names of tools that had a
hand in them, no note to do something that is not numbered."""
import re
import sys

from tree import ROOT, SKIP, finish, tracked

# Spelled so that this file does not hold what it refuses.
REFUSED = [
    ("a path of a workplace", re.compile(r"/wor[k]/")),
    ("the name of a tool", re.compile(r"\b(?:claud[e]|anthropi[c]|chatgp[t]|copilo[t])\b", re.I)),
    ("a note without a number", re.compile(r"\b(?:TOD[O]|FIXM[E])\b(?!\s*\(?#?\d)")),
]


def main():
    files = tracked()
    if files is None:
        print("skipped: this is no git checkout, or git is missing")
        return SKIP
    problems = []
    for path in files:
        data = (ROOT / path).read_bytes()
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
            for what, pattern in REFUSED:
                found = pattern.search(line)
                if found:
                    problems.append(f"{path}:{number}: {what}: '{found[0]}'")
    return finish(len(files), problems)


if __name__ == "__main__":
    sys.exit(main())
