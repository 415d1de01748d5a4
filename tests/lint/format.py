#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every C file is as clang-format would write it."""
import os
import shutil
import subprocess
import sys

from tree import ROOT, SKIP, c_files


def main():
    tool = os.environ.get("CLANG_FORMAT", "clang-format")
    if not shutil.which(tool):
        print(f"skipped: no {tool} here")
        return SKIP
    files = [str(f) for f in c_files()]
    done = subprocess.run([tool, "--dry-run", "-Werror", "--style=file", *files], cwd=ROOT)
    print(f"{len(files)} files")
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
