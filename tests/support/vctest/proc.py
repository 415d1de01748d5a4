# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes that end with the test that started them."""
import select
import signal
import subprocess
import threading
import time

# Tests that run in the background of a script ignore these, and so would what they start: a program
# keeps to that. A handler of ours is none of theirs.
for _signal in signal.SIGINT, signal.SIGHUP:
    if signal.getsignal(_signal) == signal.SIG_IGN:
        signal.signal(_signal, lambda *_: None)

# A limit ends a test that hangs, and nothing else: it is what a machine of one's own may need, and one
# that others use too is given so many times that. A test that passes waits for none of them.
PATIENCE = 10


def patient(seconds):
    return None if seconds is None else seconds * PATIENCE


class Timeout(AssertionError):
    pass


class Turns:
    """Time that passes no faster than this process is let run: between two looks it is a second at most,
    so a machine that stood still for a while has used up no more of it."""

    def __init__(self, seconds):
        self.left, self.last = seconds, time.monotonic()

    def over(self):
        return self.left <= 0

    def rest(self, step):
        time.sleep(step)
        now = time.monotonic()
        self.left -= min(now - self.last, max(step, 1.0))
        self.last = now


def comes_true(condition, seconds, step=0.02):
    """Polls condition() for so long, and returns its last value: where either is an answer."""
    turns = Turns(seconds)
    while not (value := condition()) and not turns.over():
        turns.rest(step)
    return value


def wait_for(condition, timeout=30, what="a condition", step=0.02):
    """Polls until condition() is true, and returns its value."""
    value = comes_true(condition, patient(timeout), step)
    if not value:
        raise Timeout(f"timed out after {patient(timeout)} s waiting for {what}")
    return value


class Event(threading.Event):
    """One that a test waits for with a limit."""

    def wait(self, timeout=None):
        return super().wait(patient(timeout))


class Process:
    """A child with its standard error in a file; stopped by its id."""

    def __init__(self, argv, log, **kw):
        self.argv = [str(a) for a in argv]
        self.log = log
        self.may_be_killed = False  # at the end of a test: it leaves nothing that anybody looks at
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
        return self.popen.wait(patient(timeout))

    def kill(self):
        if self.alive():
            self.popen.kill()
        self.popen.wait()

    def stop(self, timeout=10):
        if self.alive():
            self.popen.terminate()
            try:
                self.popen.wait(patient(timeout))
            except subprocess.TimeoutExpired:
                self.kill()
        return self.popen.returncode


def readable(fd, timeout):
    return bool(select.select([fd], [], [], timeout)[0])
