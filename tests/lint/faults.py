#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every test that docs/internals/faults.md and phases.md name exists, and faults.md names every fault
of tests/torture."""
import re
import sys

from tree import ROOT

PHASES = ROOT / "docs" / "internals" / "phases.md"
PAGE = ROOT / "docs" / "internals" / "faults.md"
TORTURE = ROOT / "tests" / "torture"
NAMED = re.compile(r"`(test_\w+\.(?:py|c))::(\w+)`")


def exists(file, name):
    folder = ROOT / "tests" / ("e2e" if file.endswith(".py") else "unit")
    path = folder / file
    if not path.is_file():
        return False
    pattern = rf"^def {name}\(" if file.endswith(".py") else rf"(?:cmocka_unit_test\w*|TEST)\({name}\)"
    return re.search(pattern, path.read_text(), re.M) is not None


def torture_kinds():
    """Handover's have the host or the command behind a colon."""
    lists = [re.search(rf"^{name} = \[(.*?)\]", (TORTURE / file).read_text(), re.M | re.S)[1]
             for file, name in (("torture.py", "KINDS"), ("handover.py", "THIRD_PARTY"),
                                ("handover.py", "KINDS"))]
    found = [k.split(":")[0] for text in lists for k in re.findall(r'"([^"]+)"', text)]
    return list(dict.fromkeys(found))


def main():
    text = PAGE.read_text()
    named = {(page, *test) for page in (PAGE, PHASES) for test in NAMED.findall(page.read_text())}
    problems = [f"{page.name}: there is no test {f}::{n}" for page, f, n in sorted(named)
                if not exists(f, n)]
    kinds = torture_kinds()
    emphasised = [" ".join(m.split()) for m in re.findall(r"\*([^*]+?)\*", text)]
    problems += [f"{PAGE.name}: torture's fault '{k}' is missing" for k in kinds
                 if k not in emphasised]
    if not named or not kinds:
        problems.append("nothing was found to check")
    for p in problems:
        print(p)
    print(f"{len(named)} tests named, {len(kinds)} kinds of faults, {len(problems)} violations")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
