# SPDX-License-Identifier: LGPL-2.1-or-later
"""Relays between Unix sockets: one records what passes, one cuts a session at a frame."""
import os
import socket
import struct
import threading

from vctest.proc import Event, patient


class Relay:
    """Takes one connection on `listen` and carries it to `to`; what passes is kept."""

    def __init__(self, listen, to):
        self.listen, self.to = listen, to
        self.forward, self.backward = bytearray(), bytearray()
        if os.path.exists(listen):
            os.unlink(listen)
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(listen)
        self.server.listen(1)
        self.sockets, self.threads = [], []
        self._start(self._serve)

    def _start(self, fn, *args):
        t = threading.Thread(target=fn, args=args, daemon=True)
        t.start()
        self.threads.append(t)

    def _serve(self):
        try:
            a, _ = self.server.accept()
            b = socket.socket(socket.AF_UNIX)
            b.connect(self.to)
        except OSError:
            return
        self.sockets = [a, b]
        self._start(self._carry, b, a, self.backward)
        self._carry(a, b, self.forward)

    def passes(self, data, kept):
        """What of the data goes on; None cuts the connection."""
        return data

    def _carry(self, source, sink, kept):
        try:
            while data := source.recv(1 << 18):
                data = self.passes(data, kept)
                if data is None:
                    self.cut()
                    return
                kept += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def cut(self):
        for s in self.sockets:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.server.close()
        self.cut()
        for t in self.threads:
            t.join(patient(10))


class Valve(Relay):
    """Once it is shut, only so many bytes pass forward as it is told."""

    def __init__(self, listen, to):
        self.passed, self.limit = 0, None
        self.changed = threading.Condition()
        super().__init__(listen, to)

    def shut(self):
        """At whatever byte the stream happens to be."""
        with self.changed:
            self.limit = self.passed

    def let(self, n):
        """So many more, of a valve that is shut."""
        with self.changed:
            self.limit += n
            self.changed.notify_all()

    def open(self):
        with self.changed:
            self.limit = None
            self.changed.notify_all()

    def _take(self, n):
        with self.changed:
            self.changed.wait_for(lambda: self.limit is None or self.limit > self.passed)
            if self.limit is not None:
                n = min(n, self.limit - self.passed)
            self.passed += n
        return n

    def _carry(self, source, sink, kept):
        if kept is not self.forward:
            super()._carry(source, sink, kept)
            return
        try:
            while data := source.recv(1 << 14):
                while data:
                    n = self._take(len(data))
                    sink.sendall(data[:n])
                    kept += data[:n]
                    data = data[n:]
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self.open()
        super().close()


class FrameCutter(Relay):
    """Lets a session of vecycle pass until the source or the destination sends a frame of that
    type, which does not get through: the connection ends before it."""

    def __init__(self, listen, to, frame_type, from_source=True):
        self.frame_type, self.from_source = frame_type, from_source
        self.state = {True: bytearray(), False: bytearray()}
        self.left = {True: 0, False: 0}
        self.was_cut = Event()
        super().__init__(listen, to)

    def passes(self, data, kept):
        side = kept is self.forward
        buffer, out = self.state[side], bytearray()
        buffer += data
        while buffer:
            if self.left[side]:
                n = min(self.left[side], len(buffer))
            else:
                if len(buffer) < 8:
                    break
                length, kind = struct.unpack_from("<IB", buffer)
                if kind == self.frame_type and side == self.from_source:
                    self.was_cut.set()
                    return None
                n, self.left[side] = 8, length + 8
            out += buffer[:n]
            del buffer[:n]
            self.left[side] -= n
        return bytes(out)


class LimitedRelay:
    """Carries one connection after another from `listen` to `to`. The first one gets only so many
    bytes forward: then it is cut, or held (the other direction passes on)."""

    def __init__(self, listen, to, limit, hold=False):
        self.listen, self.to, self.limit, self.hold = listen, to, limit, hold
        self.forward = 0  # bytes of the first connection
        self.reached = Event()
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(listen)
        self.server.listen(4)
        self.sockets, self.threads = [], []
        self._start(self._serve)

    def _start(self, fn, *args):
        t = threading.Thread(target=fn, args=args, daemon=True)
        t.start()
        self.threads.append(t)

    def _serve(self):
        first = True
        while True:
            try:
                a, _ = self.server.accept()
            except OSError:
                return
            b = socket.socket(socket.AF_UNIX)
            try:
                b.connect(self.to)
            except OSError:
                a.close()
                b.close()
                continue
            self.sockets += [a, b]
            self._start(self._carry, a, b, first)
            self._start(self._carry, b, a, False)
            first = False

    def _carry(self, source, sink, limited):
        try:
            while data := source.recv(1 << 16):
                if limited and self.forward + len(data) >= self.limit:
                    self.reached.set()
                    if not self.hold:
                        self.shutdown(source, sink)
                    return
                if limited:
                    data = self.passes(data)
                    self.forward += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def passes(self, data):
        return data

    @staticmethod
    def shutdown(*sockets):
        for s in sockets:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.shutdown(self.server)
        self.server.close()
        self.shutdown(*self.sockets)
        for t in self.threads:
            t.join(patient(10))
        for s in self.sockets:
            s.close()


class Flipper(LimitedRelay):
    """Turns a bit over in one byte of what the first connection carries forward."""

    def __init__(self, listen, to, at, bit):
        self.at, self.bit, self.flipped = at, bit, Event()
        super().__init__(listen, to, float("inf"))

    def passes(self, data):
        i = self.at - self.forward
        if 0 <= i < len(data):
            data = bytearray(data)
            data[i] ^= 1 << self.bit
            self.flipped.set()
        return data
