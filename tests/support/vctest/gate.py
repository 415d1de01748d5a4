# SPDX-License-Identifier: LGPL-2.1-or-later
"""A relay between two vecycles that looks at frames (docs/formats/wire.md): it can hold frames of a
type back, let all else pass, cut, and refuse."""
import json
import os
import socket
import struct
import threading

from vctest.proc import Event, patient, wait_for

HELLO, OPEN, ACCEPT, START = 1, 2, 3, 4
BATCH, EOF, RETURN, COMMITTED, WORD, WORD_DONE, CLOSE, PING = 17, 18, 23, 32, 33, 34, 35, 48
SHUT = 1000  # a RETURN frame in which the destination QEMU reports success or failure


def hello(role):
    """A HELLO frame."""
    payload = b"vecycle\n" + struct.pack("<HHBBHQ", 1, 1, role, 0, 0, 0) + b"\4test" + b"\0"
    return struct.pack("<IBBH", len(payload), HELLO, 0, 0) + payload


def ping():
    return struct.pack("<IBBH", 8, PING, 0, 0) + bytes(8)


def has_shut(messages):
    """Whether QEMU's return path, from the beginning of a message on, has MIG_RP_MSG_SHUT."""
    while len(messages) >= 4:
        kind, length = struct.unpack_from(">HH", messages)
        if kind == 1:
            return True
        messages = messages[4 + length:]
    return False


class Gate:
    """Takes any number of connections on `listen` and carries each to `to`."""

    def __init__(self, listen, to):
        self.listen, self.to = listen, to.removeprefix("unix:")
        self.address = f"unix:{listen}"
        self.held = None        # (frame types, from the source?) that do not get through now
        self.aside = self.behind = False
        self.n_held = 0         # connections on which such a frame waits
        self.n_holds = 0
        self.pings = {True: 0, False: 0}  # that got through, from the source and to it; 2 s apart
        self.is_held = Event()
        self.changed = threading.Condition()
        self.refusing = self.closed = False
        self.sockets, self.threads = [], []
        if os.path.exists(listen):
            os.unlink(listen)
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(listen)
        self.server.listen(16)
        self._start(self._serve)

    # ---- what a test does ----

    def hold(self, frame_types, from_source, aside=False, behind=False):
        """From now on such frames wait, and whatever comes behind them on that way; what was held
        before passes. With `aside` the rest passes, and they are never delivered; with `behind` they
        pass, and what comes behind them waits."""
        self.is_held.clear()
        with self.changed:
            self.aside, self.behind = aside, behind
            self.held = frame_types if isinstance(frame_types, set) else {frame_types}, from_source
            self.n_holds += 1
            self.n_held = 0
            self.changed.notify_all()

    def release(self):
        with self.changed:
            self.held = None
            self.changed.notify_all()

    def refuse(self, yes=True):
        """New connections end at once."""
        self.refusing = yes

    def cut(self):
        """All connections there are end, without what was held."""
        for s in self.sockets:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        with self.changed:
            self.sockets.clear()
            self.held = None
            self.changed.notify_all()

    def close(self):
        self.closed = True
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.cut()
        for t in self.threads:
            t.join(patient(10))

    # ---- carrying ----

    def _start(self, fn, *args):
        t = threading.Thread(target=fn, args=args, daemon=True)
        t.start()
        self.threads.append(t)

    def _serve(self):
        while not self.closed:
            try:
                a, _ = self.server.accept()
                if self.refusing:
                    a.close()
                    continue
                b = socket.socket(socket.AF_UNIX)
                b.connect(self.to)
            except OSError:
                if self.closed:
                    return
                a.close()
                continue
            self.sockets += [a, b]
            self._start(self._carry, a, b, True)
            self._start(self._carry, b, a, False)

    def _is_held(self, kind, body, from_source):
        if not self.held or self.held[1] != from_source:
            return False
        return kind in self.held[0] or (SHUT in self.held[0] and kind == RETURN and has_shut(body))

    def _may_pass(self, kind, body, from_source):
        with self.changed:
            if self._is_held(kind, body, from_source):
                self.is_held.set()
                if self.aside:
                    return False
                mine = self.n_holds
                self.n_held += 1
                while mine == self.n_holds and self._is_held(kind, body, from_source):
                    self.changed.wait()
                self.n_held -= mine == self.n_holds
        return True

    def _carry(self, source, sink, from_source):
        file = source.makefile("rb", buffering=1 << 18)
        try:
            while header := file.read(8):
                length, kind = struct.unpack_from("<IB", header)
                body = file.read(length)
                behind = self.behind and self._is_held(kind, body, from_source)
                if behind:
                    sink.sendall(header + body)
                if self._may_pass(kind, body, from_source):
                    if not behind:
                        sink.sendall(header + body)
                    self.pings[from_source] += kind == PING
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        finally:
            file.close()


class QmpGate(Gate):
    """The same between a vecycle and a QEMU: holds the commands of a name back, and all behind them."""

    def hold(self, command):
        super().hold(command, True)

    def _line(self, source, sink, line, fds, from_source):
        """One command or answer, with the descriptors that came with it."""
        if not fds:
            self._may_pass(json.loads(line).get("execute"), line, from_source)
        socket.send_fds(sink, [line + b"\n"], fds)

    def _carry(self, source, sink, from_source):
        rest = b""
        try:
            while True:
                data, fds, _, _ = socket.recv_fds(source, 1 << 16, 4)
                if not data:
                    break
                *lines, rest = (rest + data).split(b"\n")
                assert lines or not fds, "a descriptor comes with the whole of its command"
                for line in lines:
                    self._line(source, sink, line, fds, from_source)
                    for fd in fds:
                        os.close(fd)
                    fds = []
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


class LateQmp(QmpGate):
    """Of a QEMU that in so many answers gives its migration, or itself, another status than it has."""

    def __init__(self, listen, to, status, instead, times):
        self.status, self.instead = (json.dumps(s).encode() for s in (status, instead))
        self.n_left, self.seen = times, []
        super().__init__(listen, to)

    def _line(self, source, sink, line, fds, from_source):
        if from_source:
            self.seen.append(json.loads(line).get("execute"))
        if not from_source and self.n_left and self.status in line:
            self.n_left -= 1
            line = line.replace(self.status, self.instead)
        super()._line(source, sink, line, fds, from_source)


class RefusingQmp(QmpGate):
    """Of a QEMU that refuses one command, the n-th time that it is given."""

    def __init__(self, listen, to, refused=None, nth=1):
        self.refused, self.nth, self.seen, self.was_refused = refused, nth, [], False
        super().__init__(listen, to)

    def pause(self, qmp):
        """Pauses the guest by another connection; returns when whoever is behind this one has asked
        why it stopped."""
        asked = self.seen.count("query-status")
        qmp.execute("stop")
        wait_for(lambda: self.seen.count("query-status") > asked, 30, "the agent to notice")

    def _line(self, source, sink, line, fds, from_source):
        request = json.loads(line)
        name = request.get("execute") or request.get("exec-oob")
        if from_source:
            self.seen.append(name)
        if from_source and name == self.refused and self.seen.count(name) == self.nth:
            self.was_refused = True
            error = {"class": "GenericError", "desc": "this test refuses it"}
            source.sendall(json.dumps({"id": request.get("id"), "error": error}).encode() + b"\n")
        else:
            super()._line(source, sink, line, fds, from_source)
