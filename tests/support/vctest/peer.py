# SPDX-License-Identifier: LGPL-2.1-or-later
"""A peer of a vecycle that speaks the wire format (docs/formats/wire.md), and says what a test likes."""
import threading

import vcwire
from vcwire import frame
from vctest.proc import Event


class Listener:
    """Keeps what the other end of a session says, until it hangs up."""

    def listen(self, sock):
        self.sock, self.seen, self.error = sock, [], None
        self.answers = {}  # the newest payload of each type
        self.changed, self.ended = threading.Condition(), Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def await_(self, name):
        with self.changed:
            assert self.changed.wait_for(lambda: name in self.seen or self.ended.is_set(), 60)
        assert name in self.seen, (name, self.seen, self.error)
        return self.answers[name]

    def _listen(self):
        try:
            with self.sock.makefile("rb") as stream:
                while head := stream.read(8):
                    payload = stream.read(int.from_bytes(head[:4], "little"))
                    name = vcwire.BY_NUMBER[head[4]].name
                    if name == "ERROR":
                        self.error = payload[5:].decode()
                    with self.changed:
                        self.seen.append(name)
                        self.answers[name] = payload
                        self.changed.notify_all()
        except OSError:
            pass
        self.ended.set()
        with self.changed:
            self.changed.notify_all()


class Peer(Listener, threading.Thread):
    """Runs `play(self)`, which says what it likes, until the other side ends it."""

    def __init__(self, sock, play):
        super().__init__(daemon=True)
        self.play, self.sent = play, 0
        self.listen(sock)
        self.start()

    def say(self, name, payload=b"", **kw):
        self.raw(frame(name, payload, **kw))

    def raw(self, data):
        self.sock.sendall(data)
        self.sent += len(data)

    def run(self):
        try:
            self.play(self)
            while not threading.Event.wait(self.ended, 0.5):
                self.say("PING", bytes(8))
        except OSError:
            self.ended.wait(20)
