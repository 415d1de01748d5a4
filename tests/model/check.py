#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""tests/model/transitions ties the model of the handover to the code: every step of an agent or a
person in tests/model/model.h has a function, every function of src/ that writes a handover record,
gives or answers a decision, or sends `cont`, `stop` or `quit` has a step, and does what the table
says, no more and no less."""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "tests" / "model" / "transitions"
MODEL = ROOT / "tests" / "model" / "model.h"

# Calls that do what another host, QEMU or whoever comes later can see.
CALLS = [
    (re.compile(r"\bvc_handover_(?:begin|set)\("), "record"),
    (re.compile(r"\bvc_handover_note\("), "note"),
    (re.compile(r"\bVC_SESSION_SEND\((?=[^;]*\bvc_wire_word_encode\b)"), "word"),
    (re.compile(r"\bVC_SESSION_SEND\((?=[^;]*\bvc_wire_status_encode\b)"), "answer"),
    (re.compile(r'\bvc_qmp_\w+\((?=[^;]*"cont")'), "cont"),
    (re.compile(r'\bvc_qmp_\w+\((?=[^;]*"stop")'), "stop"),
    (re.compile(r'\bvc_qmp_\w+\((?=[^;]*"quit")'), "quit"),
]
# ... and which of them it is, where the call itself says so.
KINDS = {
    "record": re.compile(r"(?<![=!]= )\bVC_HANDOVER_([A-Z_]+)\b"),
    "word": re.compile(r"\bVC_WIRE_WORD_(CONTINUE|SUSPEND|ABANDON|DISMISS|ASK)\b"),
    "answer": re.compile(r"\bVC_WIRE_(WORD_DONE|NEVER_RAN)\b"),
}
# A record that is begun, or whose state was set some lines before.
ASSIGNED = re.compile(r"\bstate = ([^;]*\bVC_HANDOVER_[^;]*?)[;,]")
STEP = re.compile(r'X\(\w+,\s*"([^"]+)",\s*(?:AGENT|PERSON)\)')
COMMENT = re.compile(r"/\*.*?\*/", re.S)
# A function's head begins a line and its body's braces stand there too (.clang-format).
FUNCTION = re.compile(r"^(?!static const|struct |enum )[a-z][^;{}=#]*?\b(\w+)\([^;{}]*\)\s*\n\{\n(.*?)^\}",
                      re.M | re.S)


def functions(path):
    """(name, body) of each function of a file, without comments."""
    for found in FUNCTION.finditer(COMMENT.sub(" ", path.read_text())):
        yield found[1], re.sub(r"\s+", " ", found[2])


def read_table():
    """Rows of steps, of wrappers, and of what is outside the model: (line number, first word, file, function, effects)."""
    rows = []
    for number, line in enumerate(TABLE.read_text().splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 4:
            sys.exit(f"{TABLE.name}:{number}: four words are expected, not {len(words)}")
        effects = set() if words[3] == "-" else set(words[3].split(","))
        rows.append((number, *words[:3], effects))
    return rows


def arguments(body, at):
    """The text between the parentheses of the call whose opening one is before `at`."""
    depth, end = 1, at
    while depth and end < len(body):
        depth += (body[end] == "(") - (body[end] == ")")
        end += 1
    return body[at:end]


def kinds(effect, body, at):
    if effect not in KINDS:
        return {effect}
    text = arguments(body, at)
    found = KINDS[effect].findall(text)
    if not found and effect == "record":
        found = KINDS[effect].findall(" ".join(ASSIGNED.findall(body)))
    return {name.lower().replace("_", "-") for name in found} or {effect}


def seen_in(code, wrappers):
    """What each function does, by itself and by calling wrappers, or by having them called."""
    seen = {}
    for (file, name), body in code.items():
        calls = [(found.end(), effect) for call, effect in CALLS for found in call.finditer(body)]
        for (where, wrapper), effects in wrappers.items():
            if (file, name) == (where, wrapper) or (not wrapper.startswith("vc_") and file != where):
                continue
            calls += [(found.end(), effect) for effect in effects
                      for found in re.finditer(rf"(?<![\w>.]){wrapper}(?:\(|(?=, ))", body)]
        seen[file, name] = set().union(*(kinds(effect, body, at) for at, effect in calls))
    return seen


def check(rows, steps, code):
    wrappers = {(f, n): e for _, kind, f, n, e in rows if kind == "wrapper"}
    seen = seen_in(code, wrappers)
    wanted, named = {}, set()
    for number, kind, file, name, effects in rows:
        at = f"{TABLE.name}:{number}"
        if kind not in ("wrapper", "outside") and kind not in steps:
            yield f"{at}: the model has no step '{kind}'"
        if (file, name) not in code:
            yield f"{at}: there is no function {name}() in src/{file}"
            continue
        named.add(kind)
        wanted.setdefault((file, name), set()).update(effects)
    for step in sorted(steps - named):
        yield f"{MODEL.name}: no function does '{step}': {TABLE.name} has no row"
    for (file, name), effects in sorted(seen.items()):
        does = wanted.get((file, name), set())
        for effect in sorted(effects - does):
            yield f"src/{file}: {name}() does '{effect}', and the model knows nothing of it"
        for effect in sorted(does - effects):
            yield f"src/{file}: {name}() does not '{effect}', as {TABLE.name} says"


def main():
    code = {(str(path.relative_to(ROOT / "src")), name): body
            for path in sorted((ROOT / "src").rglob("*.c")) if path.parent.name != "store"
            for name, body in functions(path)}
    steps = set(STEP.findall(MODEL.read_text()))
    rows = read_table()
    problems = list(check(rows, steps, code))
    if not steps or not code:
        problems.append("nothing was found to check")
    for text in problems:
        print(text)
    print(f"{len(steps)} steps, {len(rows)} rows, {len(problems)} violations")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
