#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What runs the tests leaves none out. `make demo` configures a folder on a machine without cmocka,
and then `make check` demands the tests that need it; .ci/run counts all of both goals in one line."""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import run  # noqa: E402


def pkg_config_path(tmp):
    """A folder like pkg-config's, without cmocka."""
    r = subprocess.run(["pkg-config", "--variable=pc_path", "pkg-config"], capture_output=True,
                       text=True, check=True)
    for d in map(Path, reversed(r.stdout.strip().split(":"))):
        for pc in d.glob("*.pc") if d.is_dir() else ():
            link = Path(tmp) / pc.name
            link.unlink(missing_ok=True)
            if pc.name != "cmocka.pc":
                link.symlink_to(pc)
    return str(tmp)


def demo_then_check(tmp):
    where = Path(tmp) / "build"
    (Path(tmp) / "pc").mkdir()
    env = dict(os.environ, PKG_CONFIG_LIBDIR=pkg_config_path(Path(tmp) / "pc"))
    native = Path(tmp) / "native"
    native.write_text("[binaries]\ncmake = '/bin/false'\n")  # meson's second way to find it
    subprocess.run(["meson", "setup", where, ROOT, "--native-file", native], env=env, check=True,
                   stdout=subprocess.DEVNULL)
    left_out = run.without_a_test(where)
    assert "tests/unit/test_base.c" in left_out, "cmocka was to be hidden"
    run.demand_tests(where)
    assert not run.without_a_test(where), "make check leaves out " + " ".join(run.without_a_test(where))
    return len(left_out)


FAKE_MAKE = """#!/bin/sh
test -z "$FAIL" || exit 2
echo "3 1 2" >>"$VC_TALLY"
echo "make's last word"
test "$1" = check
"""


def last_line(tmp, **environment):
    """(closing line, exit status) of .ci/run with a make that runs nothing."""
    env = dict(os.environ, PATH=f"{tmp}:{os.environ['PATH']}", **environment)
    r = subprocess.run([ROOT / ".ci" / "run"], env=env, capture_output=True, text=True)
    assert "passed" not in "".join(r.stdout.splitlines()[:-1]), r.stdout
    return r.stdout.splitlines()[-1], r.returncode


def one_closing_line(tmp):
    make = Path(tmp) / "make"
    make.write_text(FAKE_MAKE)
    make.chmod(0o755)
    assert last_line(tmp) == ("6 passed, 2 failed, 4 skipped", 1), last_line(tmp)
    make.write_text(FAKE_MAKE.replace("3 1 2", "3 0 2").replace('test "$1" = check\n', ""))
    assert last_line(tmp) == ("6 passed, 0 failed, 4 skipped", 0), last_line(tmp)
    assert last_line(tmp, FAIL="yes") == ("0 passed, 2 failed, 0 skipped", 1)


def main():
    if not shutil.which("pkg-config"):
        print("pkg-config is missing")
        return 77
    with tempfile.TemporaryDirectory() as tmp:
        one_closing_line(tmp)
        n = demo_then_check(tmp)
    print(f"{n} programs that a folder without cmocka has not, demanded; one closing line")
    return 0


if __name__ == "__main__":
    sys.exit(main())
