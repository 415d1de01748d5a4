# SPDX-License-Identifier: LGPL-2.1-or-later
"""A small QMP client."""
import json
import socket

from .proc import Turns, patient


class QmpError(Exception):
    pass


class Qmp:
    def __init__(self, path, timeout=20):
        turns = Turns(patient(timeout))
        while True:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self.sock.connect(path)
                break
            except OSError:
                self.sock.close()
                if turns.over():
                    raise
                turns.rest(0.02)
        self.sock.settimeout(patient(60))
        self.file = self.sock.makefile("r")
        self.events = []
        self._read()
        self.execute("qmp_capabilities")

    def _read(self):
        line = self.file.readline()
        if not line:
            raise QmpError("QEMU closed its QMP socket")
        return json.loads(line)

    def send(self, command):
        """Whoever asks next reads past the answer."""
        self.sock.sendall(json.dumps({"execute": command, "id": "unread"}).encode() + b"\n")

    def execute(self, command, **arguments):
        request = {"execute": command}
        if arguments:
            request["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        self.sock.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._read()
            if "event" in answer:
                self.events.append(answer)
            elif answer.get("id") == "unread":
                pass
            elif "error" in answer:
                raise QmpError(f"{command}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def event_time(self, name):
        """Wall-clock seconds of the last event of that name, or None."""
        self.execute("query-status")
        for e in reversed(self.events):
            if e["event"] == name:
                return e["timestamp"]["seconds"] + e["timestamp"]["microseconds"] / 1e6
        return None

    def close(self):
        self.file.close()
        self.sock.close()
