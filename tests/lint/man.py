#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""man.py BINARY PAGE-OR-FOLDER...: the manual pages name every subcommand, every long option that
--help prints, and every exit status."""
import re
import subprocess
import sys
from pathlib import Path

from tree import ROOT

ERR_H = ROOT / "src" / "base" / "err.h"
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")
CODE = re.compile(r"\b(VC_E_\w+)\s*=\s*-(\d+)")
SUBCOMMAND = re.compile(r"\s+(?:vecycle\s+)?([a-z][a-z0-9-]*)(?:\s|,|$)")


def help_of(binary, *arguments):
    """What --help prints, or None if it fails."""
    done = subprocess.run([binary, *arguments, "--help"], text=True, timeout=30,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    return done.stdout if done.returncode == 0 else None


def subcommands(text):
    """The first words of the lines under a heading with "command" in it ("Commands:"), of those
    lines that are indented least: others continue a description."""
    names, indent, inside = [], None, False
    for line in text.splitlines():
        if line and not line[0].isspace():
            inside = bool(re.search(r"\bcommands?\b.*:\s*$", line, re.I))
            indent = None
            continue
        found = SUBCOMMAND.match(line) if inside else None
        if not found:
            continue
        depth = len(line) - len(line.lstrip())
        if indent is None:
            indent = depth
        if depth == indent and found[1] not in names:
            names.append(found[1])
    if not names:  # no such heading: the usage lines tell
        names = re.findall(r"^\s*(?:usage:\s*)?vecycle\s+([a-z][a-z0-9-]*)", text, re.M | re.I)
    return list(dict.fromkeys(names))


def plain(page):
    return page.read_text().replace("\\", "")  # scdoc escapes with a backslash


def section(text, title):
    """The lines of a "# TITLE" section."""
    found = re.search(rf"^# {title}\s*$(.*?)(?=^# |\Z)", text, re.M | re.S)
    return found[1] if found else None


def pages_of(arguments):
    pages = {}
    for argument in map(Path, arguments):
        found = argument.glob("*.scd") if argument.is_dir() else [argument]
        pages.update((page.name, plain(page)) for page in sorted(found) if page.is_file())
    return pages


def mentions(text, word):
    return re.search(rf"(?<![a-z0-9-]){re.escape(word)}(?![a-z0-9-])", text) is not None


def check_options(binary, pages, problems):
    top = help_of(binary)
    if top is None:
        problems.append("vecycle --help fails")
        return 0
    names = subcommands(top)
    if not names:
        problems.append("vecycle --help lists no subcommands")
    main_page = pages.get("vecycle.1.scd", "")
    common = set(OPTION.findall(top))
    n_options = len(common)
    problems += [f"vecycle.1.scd: option --{o} is missing" for o in sorted(common)
                 if not mentions(main_page, "--" + o)]
    for name in names:
        if not mentions(main_page, name):
            problems.append(f"vecycle.1.scd: subcommand {name} is missing")
        if name == "help":
            continue
        text = help_of(binary, name)
        if text is None:
            problems.append(f"vecycle {name} --help fails")
            continue
        options = set(OPTION.findall(text))
        n_options += len(options - common)
        page = f"vecycle-{name}.1.scd"
        own = pages.get(page)
        if own is None:
            page = "vecycle.1.scd"
        # An option that all have may stand on the main page alone.
        problems += [f"{page}: option --{o} of {name} is missing" for o in sorted(options)
                     if not mentions(own if own is not None else main_page, "--" + o)
                     and not (o in common and mentions(main_page, "--" + o))]
    return n_options


def check_statuses(pages, problems):
    codes = CODE.findall(ERR_H.read_text())
    if not codes:
        problems.append(f"{ERR_H.relative_to(ROOT)}: no VC_E_* found")
    text = section(pages.get("vecycle.1.scd", ""), "EXIT STATUS")
    if text is None:
        problems.append("vecycle.1.scd: no section EXIT STATUS")
        return len(codes)
    problems += [f"vecycle.1.scd: EXIT STATUS lacks {number} ({name})" for name, number in codes
                 if not re.search(rf"(?<!\d){number}(?!\d)", text)]
    return len(codes)


def main():
    if len(sys.argv) < 3:
        print("usage: man.py BINARY PAGE-OR-FOLDER...", file=sys.stderr)
        return 2
    binary = str(Path(sys.argv[1]).resolve())
    pages = pages_of(sys.argv[2:])
    problems = []
    if "vecycle.1.scd" not in pages:
        problems.append("there is no vecycle.1.scd")
    n_options = check_options(binary, pages, problems)
    n_statuses = check_statuses(pages, problems)
    for text in problems:
        print(text)
    print(f"{len(pages)} pages, {n_options} options, {n_statuses} exit statuses, "
          f"{len(problems)} violations")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
