# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the lint tests share: the project's files."""
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SKIP = 77  # meson takes this exit status for a test that was skipped


def tracked():
    """The files git knows, or None outside a checkout (a release archive, no git)."""
    try:
        done = subprocess.run(["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    names = [Path(n.decode()) for n in done.stdout.split(b"\0") if n]
    return sorted(n for n in names if (ROOT / n).is_file()) or None


def walk():
    """The project's files as they lie there: no build directories, no caches, no hidden folders
    but .ci."""
    found = []

    def descend(folder):
        for path in sorted(folder.iterdir()):
            if path.is_symlink():
                continue
            if path.is_file():
                found.append(path.relative_to(ROOT))
            elif path.name.startswith(".") and path.name != ".ci":
                continue
            elif path.name == "__pycache__" or (path / "meson-private").is_dir():
                continue  # (a build directory)
            elif path.is_dir():
                descend(path)

    descend(ROOT)
    return found


def c_files():
    return [f for f in walk() if f.suffix in (".c", ".h")]


def finish(n_files, problems):
    for text in problems:
        print(text)
    print(f"{n_files} files, {len(problems)} violations")
    return 1 if problems else 0
