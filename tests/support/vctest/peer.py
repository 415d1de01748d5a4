# SPDX-License-Identifier: LGPL-2.1-or-later
"""A peer of a vecycle that speaks the wire format (docs/formats/wire.md), and says what a test likes."""
import threading

import vcwire
from vcwire import frame


class Peer(threading.Thread):
    """One end of a session: runs `play(self)`, which says what it likes, until the other side ends it."""

    def __init__(self, sock, play):
        super().__init__(daemon=True)
        self.sock, self.play, self.seen, self.error = sock, play, [], None
        self.answers = {}  # the newest payload of each type
        self.changed, self.ended = threading.Condition(), threading.Event()
        self.sent = 0
        threading.Thread(target=self._listen, daemon=True).start()
        self.start()

    def say(self, name, payload=b"", **kw):
        self.raw(frame(name, payload, **kw))

    def raw(self, data):
        self.sock.sendall(data)
        self.sent += len(data)

    def await_(self, name):
        with self.changed:
            assert self.changed.wait_for(lambda: name in self.seen or self.ended.is_set(), 60)
        assert name in self.seen, (name, self.seen, self.error)

    def run(self):
        try:
            self.play(self)
            while not self.ended.wait(0.5):
                self.say("PING", bytes(8))
        except OSError:
            self.ended.wait(20)

    def _listen(self):
        try:
            with self.sock.makefile("rb") as stream:
                while head := stream.read(8):
                    payload = stream.read(int.from_bytes(head[:4], "little"))
                    with self.changed:
                        self.seen.append(vcwire.BY_NUMBER[head[4]].name)
                        self.answers[self.seen[-1]] = payload
                        self.changed.notify_all()
                    if self.seen[-1] == "ERROR":
                        self.error = payload[5:].decode()
        except OSError:
            pass
        self.ended.set()
        with self.changed:
            self.changed.notify_all()
