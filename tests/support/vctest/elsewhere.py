# SPDX-License-Identifier: LGPL-2.1-or-later
"""QMP sockets that are not where they were, for everybody or for one process alone. A QEMU lives on all
the while, and whoever is connected stays connected."""
import os
import socket
import subprocess

# Words before an agent's (Vecycle's `wrapper`): mounts of its own, as a unit with PrivateTmp has them.
OWN_MOUNTS = ("unshare", "--mount")


def can_have_own_mounts():
    """(yes, reason)"""
    r = subprocess.run([*OWN_MOUNTS, "true"], capture_output=True)
    return r.returncode == 0, "a mount namespace needs root"


def hiding(directory):
    """Words like OWN_MOUNTS, for one that sees an empty directory there from its start on."""
    return (*OWN_MOUNTS, "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(directory))


def seeing(*files):
    """Words like OWN_MOUNTS, for one that finds other files in the place of some: (path, file), ..."""
    binds = " && ".join(f'mount --bind "{file}" "{path}"' for path, file in files)
    return (*OWN_MOUNTS, "sh", "-c", f'{binds} && exec "$@"', "sh")


def _nsenter(process, *argv):
    subprocess.run(["nsenter", f"--target={process.pid}", "--mount", *map(str, argv)], check=True,
                   capture_output=True)


def hide(process, directory):
    """From now on that process, started with OWN_MOUNTS, sees an empty directory there."""
    _nsenter(process, "mount", "-t", "tmpfs", "none", directory)


def hide_process(process, other):
    """From now on that process, started with OWN_MOUNTS, does not find the other one in /proc, as if that were
    another machine's."""
    _nsenter(process, "mount", "--bind", "/proc/1", f"/proc/{other.pid}")


def show(process, directory):
    _nsenter(process, "umount", directory)


class Elsewhere:
    """The path of a QMP socket. Each method first puts back what an earlier one did."""

    def __init__(self, path):
        self.path, self.aside = str(path), f"{path}.aside"
        self.taken = None  # from which path the one comes that stands here
        self.clients, self.server = [], None

    def restore(self):
        for s in self.clients:
            s.close()
        self.clients = []
        if self.server:
            self.server.close()
            self.server = None
        # A QEMU that ends unlinks the path that it was given, whoever's socket is there by then.
        if self.taken and os.path.lexists(self.path):
            os.rename(self.path, self.taken)
        self.taken = None
        if os.path.lexists(self.aside):
            os.rename(self.aside, self.path)

    def move(self):
        """ENOENT; the socket is at `aside`."""
        self.restore()
        os.rename(self.path, self.aside)

    def refuse(self):
        """ECONNREFUSED: the socket of somebody who has gone."""
        self.move()
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(self.path)

    def replace(self, other):
        """The socket of another QEMU, which was at `other`."""
        self.move()
        os.rename(other, self.path)
        self.taken = str(other)

    def fill(self):
        """EAGAIN: somebody listens and has no time. The connection of those who were first stays."""
        self.move()
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(self.path)
        self.server.listen(0)
        while True:
            s = socket.socket(socket.AF_UNIX)
            s.setblocking(False)
            self.clients.append(s)
            try:
                s.connect(self.path)
            except BlockingIOError:
                return

    def silence(self):
        """Somebody listens, takes connections and says nothing."""
        self.move()
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(self.path)
        self.server.listen(64)
