# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes that end with the test that started them."""
import select
import signal
import subprocess
import time

# Tests that run in the background of a script ignore these, and so would what they start: a program
# keeps to that. A handler of ours is none of theirs.
for _signal in signal.SIGINT, signal.SIGHUP:
    if signal.getsignal(_signal) == signal.SIG_IGN:
        signal.signal(_signal, lambda *_: None)


class Timeout(AssertionError):
    pass


def wait_for(condition, timeout=30, what="a condition", step=0.02):
    """Polls until condition() is true, and returns its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Timeout(f"timed out after {timeout} s waiting for {what}")
        time.sleep(step)


class Process:
    """A child with its standard error in a file; stopped by its id."""

    def __init__(self, argv, log, **kw):
        self.argv = [str(a) for a in argv]
        self.log = log
        with open(log, "ab") as err:
            self.popen = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stderr=err, **kw)

    @property
    def pid(self):
        return self.popen.pid

    def alive(self):
        return self.popen.poll() is None

    def messages(self):
        with open(self.log, errors="replace") as f:
            return f.read()

    def wait(self, timeout=60):
        return self.popen.wait(timeout)

    def kill(self):
        if self.alive():
            self.popen.kill()
        self.popen.wait()

    def stop(self, timeout=10):
        if self.alive():
            self.popen.terminate()
            try:
                self.popen.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.popen.returncode


def readable(fd, timeout):
    return bool(select.select([fd], [], [], timeout)[0])
