# SPDX-License-Identifier: LGPL-2.1-or-later
"""When a file is opened, by whomever: inotify(7)."""
import ctypes
import os
import select

IN_OPEN = 0x20


class Opens:
    def __init__(self, path):
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init()
        if self.fd < 0 or libc.inotify_add_watch(self.fd, os.fsencode(path), IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), str(path))

    def wait(self, timeout):
        """Whether it was opened since the last call; waits so long for it."""
        if not select.select([self.fd], [], [], timeout)[0]:
            return False
        os.read(self.fd, 65536)
        return True

    def forget(self):
        while self.wait(0):
            pass

    def close(self):
        os.close(self.fd)
